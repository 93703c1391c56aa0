"""Informative scores by layer and projection."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from ecstruct.plots.panels import Column, Panel, Scale
from ecstruct.plots.screen import panel_figure


def projection_map(projections: xr.Dataset, *, scale: Scale = "symmetric") -> go.Figure:
    """Draw informative scores by layer and projection, for MLPs and for the heads of a layer together.

    A cell is how much the change of a matrix raised the reward, the mean over prompts of the sum over
    tokens, in the reward's unit; red raises, blue lowers it, white is zero.

    Args:
        projections: `ExtractiveScores.projections`.
        scale: As in `heatmap`.
    """
    found = projections.mean("prompt")
    parts = {"MLPs": found["mlp"], "heads": found["heads"].sum("head")}
    columns: list[Column] = []
    for title, part in parts.items():
        part = part.isel(projection=np.flatnonzero((part != 0).any("layer")))
        labels = [str(name) for name in part["projection"].values]
        panel = Panel(
            part.transpose("layer", "projection").values,
            part["layer"].values.tolist(),
            labels,
            unit="Δ reward",
            describe=lambda layer, name, value, *_, of=title: f"{name} of {of}, layer {layer}: {value:.3g}",
        )
        columns.append(Column(f"<b>{title}</b>", [panel], "projection"))
    return panel_figure(columns, [""], scale=scale, groups=[("informative", len(columns))])
