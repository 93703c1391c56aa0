"""Figures of scores and of training; each function returns a plotly `Figure` and shows nothing."""

from ecstruct.plots.bars import grouped_bars
from ecstruct.plots.curves import curve_panels
from ecstruct.plots.enrichment import attributes_rate_lines, sublayer_lines
from ecstruct.plots.export import save_figure
from ecstruct.plots.extraction import extraction_falls, extraction_head_map, extraction_lines
from ecstruct.plots.grids import value_grids
from ecstruct.plots.heads import head_map
from ecstruct.plots.heatmap import heatmap
from ecstruct.plots.ranks import rank_curves
from ecstruct.plots.rates import number_by_rate
from ecstruct.plots.recall import knockout_heatmap, knockout_lines, layer_lines
from ecstruct.plots.scatter import scatter
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
    "rank_curves",
    "save_figure",
    "scatter",
    "spread",
    "sublayer_lines",
    "value_grids",
]
