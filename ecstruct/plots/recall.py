"""How facts are recalled: means over prompts by layer, and the tokens of one prompt by layer."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from ecstruct.errors import InputError
from ecstruct.plots.beside import axes_of, fitting, legend_width, side_by_side
from ecstruct.plots.lines import add_line, step_axis, value_axis
from ecstruct.plots.panels import Column, Panel, panel_figure
from ecstruct.plots.style import INK, LINE_COLOURS, token_label
from ecstruct.scores.bootstrap import Bootstrap

CHANGE = "change of the probability (%)"
LEVEL, RESAMPLES, SEED = 0.95, 1000, 0


def layer_lines(
    arrays: xr.DataArray | Mapping[str, xr.DataArray], *, lines: str, y: str, own_scales: bool = False
) -> go.Figure:
    """Means over prompts by layer, a line for each entry of the dimension `lines`; several arrays stand
    side by side.

    The band is the 95% interval about the mean, of bootstrap draws of prompts; one prompt has none. Prompts
    without a value (NaN) do not count.

    Args:
        arrays: (prompt, layer, `lines`), in any order, or several by title.
        lines: the dimension whose entries are lines, as "group"; these have one colour in all panels.
        y: the title of the y axis, with its unit.
        own_scales: give each array a scale of its own, not all of them one.

    Raises:
        InputError: nothing to show, or an array without one of these dimensions.
    """
    panels = {"": arrays} if isinstance(arrays, xr.DataArray) else dict(arrays)
    if not panels:
        raise InputError("there are no arrays to show; give at least one")
    for title, array in panels.items():
        if missing := {"prompt", "layer", lines} - {*array.dims}:
            raise InputError(f"{title or 'this array'} has no dimension {sorted(missing)[0]!r} to show")
    names = list(dict.fromkeys(str(name) for array in panels.values() for name in array[lines].values))
    colours = {name: LINE_COLOURS[i % len(LINE_COLOURS)] for i, name in enumerate(names)}
    figure, unnamed, widths, ends = go.Figure(), set(names), [], []
    for i, array in enumerate(panels.values()):
        layers = array["layer"].values
        widths.append(float(np.clip(len(layers) * 16, 260, 480)))
        shown = [np.zeros(1)]
        for entry in array[lines].values:
            values = array.sel({lines: entry}).transpose("prompt", "layer").values
            name = str(entry)
            mean, low, high = _mean(values)
            shown += [mean, low, high]
            add_line(
                figure,
                name,
                layers,
                mean,
                (low, high) if np.isfinite(low).any() else None,
                between=f"{LEVEL:.0%} interval",
                colour=colours[name],
                hover=f"layer %{{x}}<br>{escape(y, quote=False)}: %{{y:.3~g}}",
                markers=len(layers) * 8 < widths[-1],
                showlegend=name in unnamed,
                **axes_of(i),
            )
            unnamed.discard(name)
        figure.update_layout({f"xaxis{i + 1}": step_axis("", int(layers[-1]))})
        finite = np.concatenate(shown)
        finite = finite[np.isfinite(finite)]
        ends.append((float(finite.min()), float(finite.max())))
    if not own_scales:
        ends = [(min(low for low, _ in ends), max(high for _, high in ends))] * len(ends)
    for i, (low, high) in enumerate(ends):
        spare = 0.05 * (high - low) or 0.5
        axis = value_axis("", low - spare, high + spare)
        labelled = {"showticklabels": own_scales or i == 0}
        zero = {"zeroline": True, "zerolinecolor": INK, "zerolinewidth": 1, **labelled}
        figure.update_layout({f"yaxis{i + 1}": {**axis, **zero}})
    around = {"left": 76, "gap": 56 if own_scales else 30, "right": legend_width(names)}
    side_by_side(
        figure,
        list(panels),
        x=["layer"] * len(panels),
        y=y,
        widths=fitting(widths, **around),
        height=264,
        **around,
    )
    return figure.update_layout(showlegend=True)


def knockout_lines(arrays: xr.DataArray | Mapping[str, xr.DataArray]) -> go.Figure:
    """The effect of attention knockout by layer, a line per group of source tokens: Fig. 2 of Geva et al.
    2023. Each array has a scale of its own.

    Args:
        arrays: from `ecstruct.recall.knockout`, or several by title, as before and after finetuning.

    Raises:
        InputError: as `layer_lines`.
    """
    return layer_lines(arrays, lines="group", y=CHANGE, own_scales=True)


def knockout_heatmap(arrays: xr.DataArray | Mapping[str, xr.DataArray]) -> go.Figure:
    """The effect of attention knockout of single tokens of one prompt, layer by token; layer 0 is at the
    bottom, and blue where the probability falls.

    Args:
        arrays: from `ecstruct.recall.knockout_tokens`, or several by title.

    Raises:
        InputError: nothing to show, or something that is not of single tokens.
    """
    panels = {"": arrays} if isinstance(arrays, xr.DataArray) else dict(arrays)
    if not panels:
        raise InputError("there are no arrays to show; give at least one")
    for title, array in panels.items():
        if {*array.dims} != {"token", "layer"}:
            raise InputError(
                f"{title or 'this array'} has the dimensions {array.dims}, not token and layer: give what "
                "recall.knockout_tokens returns"
            )
    columns = [
        _tokens_column(escape(title, quote=False), array, first=i == 0)
        for i, (title, array) in enumerate(panels.items())
    ]
    figure = panel_figure(columns, [""], scale="symmetric")
    return figure.for_each_trace(_number_bar, {"type": "heatmap"})


def _number_bar(trace: Any) -> None:
    """Percentages have three digits."""
    bar = trace.colorbar
    bar.update(ticktext=[f"{value:+.3g}".replace("-", "−") for value in bar.tickvals])


def _tokens_column(title: str, array: xr.DataArray, *, first: bool) -> Column:
    values = array.transpose("layer", "token").values
    layers = [int(layer) for layer in array["layer"].values]
    labels = [token_label(str(text)) for text in array["token_text"].values]
    hover = np.array(
        [
            [f"layer {layer}, {label}<br>{value:+.3g}%" for label, value in zip(labels, row, strict=True)]
            for layer, row in zip(layers, values, strict=True)
        ]
    )
    read = token_label(str(array["read"].values))
    asked = f"p(“{read}”) = {float(array['probability']):.2g}"
    title = f"{title}: {asked}" if title else asked
    panel = Panel(values, layers, labels, hover, CHANGE)
    return Column(title, [panel], "token not seen", first_of_group=first)


def _mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Over the prompts that have a value, and the ends of the interval about it, each (layer)."""
    mean, low, high = np.full((3, values.shape[1]), np.nan)
    several = len(values) > 1
    bootstrap = Bootstrap(len(values), ci=LEVEL, resamples=RESAMPLES, seed=SEED) if several else None
    for layer, of_layer in enumerate(values.T):
        known = np.asarray(np.isfinite(of_layer))
        if known.any():
            mean[layer] = of_layer[known].mean()
        if bootstrap:
            low[layer], high[layer] = bootstrap.interval(of_layer, known)
    return mean, low, high
