"""What hidden states say of a subject, by layer, and without some of the layers' updates."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
import xarray as xr

from ecstruct.plots.recall import layer_lines


def attributes_rate_lines(rates: xr.DataArray | Mapping[str, xr.DataArray]) -> go.Figure:
    """The attributes rate by layer, a line per position.

    Args:
        rates: from `ecstruct.recall.attributes_rate`, or several by title, as before and after finetuning.

    Raises:
        InputError: as `layer_lines`.
    """
    return layer_lines(rates, lines="position", y="attributes rate (%)")


def sublayer_lines(changes: xr.DataArray | Mapping[str, xr.DataArray]) -> go.Figure:
    """How the attributes rate changes without the attention or the MLPs of a window of layers, by the first
    of them.

    Args:
        changes: from `ecstruct.recall.sublayer_knockout`, or several by title.

    Raises:
        InputError: as `layer_lines`.
    """
    figure = layer_lines(changes, lines="part", y="change of the attributes rate (pp)")
    return figure.for_each_xaxis(lambda axis: axis.update(title_text="first layer cancelled"))
