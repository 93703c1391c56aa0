"""Figures of scores and of training; each function returns a plotly `Figure` and shows nothing."""

from ecstruct.plots.bars import grouped_bars
from ecstruct.plots.curves import curve_panels
from ecstruct.plots.export import save_figure
from ecstruct.plots.grids import value_grids
from ecstruct.plots.heads import head_map
from ecstruct.plots.heatmap import heatmap
from ecstruct.plots.ranks import rank_curves
from ecstruct.plots.rates import number_by_rate
from ecstruct.plots.recall import knockout_heatmap, knockout_lines, layer_lines
from ecstruct.plots.scatter import scatter

__all__ = [
    "curve_panels",
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
    "value_grids",
]
