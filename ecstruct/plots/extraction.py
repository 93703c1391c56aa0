"""Where the prediction is extracted: by attention and by MLP, under interventions, and by which heads."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from ecstruct.errors import InputError
from ecstruct.plots.panels import Column, Panel, panel_figure
from ecstruct.plots.recall import layer_lines
from ecstruct.plots.style import token_label

_RATE = "extraction rate (% of prompts)"
_PARTS = ("attention", "mlp")


def extraction_lines(events: xr.Dataset | Mapping[str, xr.Dataset]) -> go.Figure:
    """The extraction rate by layer without interventions, a line for attention and one for the MLPs.

    Args:
        events: from `ecstruct.recall.extraction`, or several by title, as before and after finetuning.

    Raises:
        InputError: as `layer_lines`.
    """
    panels = {"": events} if isinstance(events, xr.Dataset) else events
    rates = {title: _percent(its).isel(condition=0, drop=True) for title, its in panels.items()}
    return layer_lines(rates, lines="part", y=_RATE)


def extraction_falls(events: xr.Dataset) -> go.Figure:
    """The extraction rate by layer under every intervention, a line each: by attention on the left, by the
    MLPs on the right.

    Args:
        events: from `ecstruct.recall.extraction`.

    Raises:
        InputError: as `layer_lines`.
    """
    rates = _percent(events)
    return layer_lines({part: rates.sel(part=part) for part in _PARTS}, lines="condition", y=_RATE)


def extraction_head_map(heads: xr.Dataset | Mapping[str, xr.Dataset]) -> go.Figure:
    """Layer by head: for which share of the prompts a head's weights map the subject to an attribute;
    layer 0 is at the bottom. Hovering shows what the head makes of the first prompt's subject.

    Args:
        heads: from `ecstruct.recall.extraction_heads`, or several by title.

    Raises:
        InputError: nothing to show.
    """
    panels = {"": heads} if isinstance(heads, xr.Dataset) else dict(heads)
    if not panels:
        raise InputError("there are no heads to show; give at least one array")
    columns = [
        _column(escape(title, quote=False), its, first=i == 0)
        for i, (title, its) in enumerate(panels.items())
    ]
    return panel_figure(columns, [""], scale="symmetric")


def _percent(events: xr.Dataset) -> xr.DataArray:
    return 100 * events[list(_PARTS)].to_dataarray("part").astype(float)


def _column(title: str, heads: xr.Dataset, *, first: bool) -> Column:
    values = heads["share"].transpose("layer", "head").values
    layers = [int(layer) for layer in heads["layer"].values]
    names = [str(head) for head in heads["head"].values]
    tokens = heads["top_tokens"].isel(prompt=0).transpose("layer", "head", "place").values
    subject = token_label(str(heads["subject"].values[0]))
    hover = np.array(
        [
            [
                f"head {layer}.{head}: {value:.3g}% of prompts<br>{subject}: "
                + ", ".join(token_label(str(token)) for token in shown)
                for head, value, shown in zip(names, row, of_layer, strict=True)
            ]
            for layer, row, of_layer in zip(layers, values, tokens, strict=True)
        ]
    )
    panel = Panel(values, layers, names, hover, "prompts with an attribute (%)")
    return Column(title, [panel], "head", first_of_group=first, numbered=True)
