"""Figures of scores and of training; each function returns a plotly `Figure` and shows nothing."""

from ecstruct.plots.bars import grouped_bars
from ecstruct.plots.curves import curve_panels, number_by_rate, rank_curves
from ecstruct.plots.export import save_figure
from ecstruct.plots.grids import value_grids
from ecstruct.plots.points import scatter
from ecstruct.plots.projections import projection_map
from ecstruct.plots.recall import (
    attributes_rate_lines,
    extraction_falls,
    extraction_head_map,
    extraction_lines,
    knockout_heatmap,
    knockout_lines,
    layer_lines,
    patched_lines,
    rank_lines,
    sublayer_lines,
)
from ecstruct.plots.scores import head_map, heatmap
from ecstruct.plots.subnetworks import frequencies, spread

__all__ = [
    "attributes_rate_lines",
    "curve_panels",
    "extraction_falls",
    "extraction_head_map",
    "extraction_lines",
    "frequencies",
    "grouped_bars",
    "head_map",
    "heatmap",
    "knockout_heatmap",
    "knockout_lines",
    "layer_lines",
    "number_by_rate",
    "patched_lines",
    "projection_map",
    "rank_curves",
    "rank_lines",
    "save_figure",
    "scatter",
    "spread",
    "sublayer_lines",
    "value_grids",
]
