"""Numbers by learning rate: a line per series over a logarithmic axis, a dot per seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.lines import is_implication, line_colours
from ecstruct.plots.style import EMPTY, INK, TEMPLATE


def number_by_rate(series: Mapping[str, Mapping[float, Sequence[float]]], *, y: str = "value") -> go.Figure:
    """Lines through the means over seeds, and the seeds; series of implications are dashed.

    Args:
        series: By name, the values of the seeds at each learning rate.
        y: The title of the axis of values.

    Raises:
        InputError: no series, or a learning rate that is not positive.
    """
    if not series:
        raise InputError("there are no series to show; give at least one")
    if wrong := [lr for values in series.values() for lr in values if not lr > 0]:
        raise InputError(f"lr={wrong[0]} has no place on a logarithmic axis; give positive ones")
    figure = go.Figure()
    for (name, values), colour in zip(series.items(), line_colours(series).values(), strict=True):
        rates = sorted(values)
        shown, dashed = escape(name, quote=False), is_implication(name)
        dots = [(lr, value) for lr in rates for value in values[lr] if len(values[lr]) > 1]
        if dots:
            figure.add_trace(
                go.Scatter(
                    x=[lr for lr, _ in dots],
                    y=[value for _, value in dots],
                    mode="markers",
                    name=shown,
                    legendgroup=shown,
                    showlegend=False,
                    marker={"size": 4, "color": colour, "opacity": 0.5},
                    hovertemplate=f"{shown}, one seed<br>lr %{{x:.3~g}}: %{{y:.3~g}}<extra></extra>",
                )
            )
        figure.add_trace(
            go.Scatter(
                x=rates,
                y=[float(np.mean(values[lr])) for lr in rates],
                mode="lines+markers",
                name=shown,
                legendgroup=shown,
                line={"color": colour, "dash": "dash" if dashed else "solid"},
                marker={"size": 6, "symbol": "circle-open" if dashed else "circle"},
                hovertemplate=f"{shown}<br>lr %{{x:.3~g}}: %{{y:.3~g}}<extra></extra>",
            )
        )
    measured = sorted({lr for values in series.values() for lr in values})
    axis = {"showline": True, "linecolor": INK, "showgrid": True, "gridcolor": EMPTY}
    return figure.update_layout(
        template=TEMPLATE,
        plot_bgcolor="white",
        width=640,
        height=360 + 20 * len(series),
        margin={"l": 64, "r": 16, "t": 16, "b": 64 + 20 * len(series)},
        xaxis={
            **axis,
            "type": "log",
            "title": {"text": "learning rate"},
            "tickvals": measured,
            "ticktext": [f"{lr:g}" for lr in measured],
        },
        yaxis={**axis, "title": {"text": y}},
        legend={"orientation": "v", "yanchor": "top", "y": -0.22, "x": 0},
    )
