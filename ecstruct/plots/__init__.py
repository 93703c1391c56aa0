"""Figures of scores and of training; each function returns a plotly `Figure` and shows nothing."""

from ecstruct.plots.export import save_figure
from ecstruct.plots.heads import head_map
from ecstruct.plots.heatmap import heatmap
from ecstruct.plots.ranks import rank_curves

__all__ = ["head_map", "heatmap", "rank_curves", "save_figure"]
