"""One score against another: a point per component of the model."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.beside import BAR_WIDTH, axes_of, colour_bar, side_by_side
from ecstruct.plots.style import EMPTY, GREY, INK

COLUMNS = ("x", "y", "name", "layer")
"""What the frame of a panel has: a point's place, its component and that component's layer."""

_SIDE, _IN_ROW = 250, 3  # pixels of a panel, and panels side by side: a row fits most screens
_KEY = 24  # pixels above the titles


def scatter(
    panels: Mapping[str, pd.DataFrame], *, x: str, y: str, fit: Mapping[str, str] | None = None
) -> go.Figure:
    """Points coloured by layer, a panel per frame, each with the line y = a + b x of least squares.

    MLPs are squares, other components circles. Points without a finite place are left out; so is the
    line where x does not vary. Each panel has a scale of its own, and hovering names the component. Up
    to three panels are in a row.

    Args:
        panels: By title, frames with the columns `COLUMNS`.
        x, y: The titles of the axes, with their units.
        fit: By panel, what is said of it below its title, such as "r = 0.61, n = 24".

    Raises:
        InputError: no panels, a column that is not there, a panel without points, a fit of a
            panel that is not there.
    """
    if not panels:
        raise InputError("there are no panels to show; give at least one")
    fit = fit or {}
    if unknown := [title for title in fit if title not in panels]:
        raise InputError(f"fit= names {unknown[0]!r}, but the panels are {list(panels)}")
    figure = go.Figure()
    layers: list[int] = []
    kinds: set[bool] = set()
    for i, (title, frame) in enumerate(panels.items()):
        points = _points(title, frame)
        layers += points["layer"].tolist()
        kinds.update(_are_mlps(points))
        across, up = points["x"].to_numpy(dtype=float), points["y"].to_numpy(dtype=float)
        if (line := _least_squares(across, up)) is not None:
            figure.add_trace(line.update(axes_of(i)))
        figure.add_trace(
            go.Scatter(
                x=across.tolist(),
                y=up.tolist(),
                text=[escape(str(name), quote=False) for name in points["name"]],
                mode="markers",
                cliponaxis=False,
                marker={
                    "size": 8,
                    "symbol": ["square" if mlp else "circle" for mlp in _are_mlps(points)],
                    "color": points["layer"].tolist(),
                    "coloraxis": "coloraxis",
                    # The scale's yellow would vanish on white.
                    "line": {"color": INK, "width": 0.5},
                },
                hovertemplate=f"<b>%{{text}}</b><br>{escape(x, quote=False)}: %{{x:.3~g}}"
                f"<br>{escape(y, quote=False)}: %{{y:.3~g}}<extra></extra>",
                **axes_of(i),
            )
        )
        axis = {
            "showline": True,
            "linecolor": INK,
            "nticks": 6,
            "zeroline": True,
            "zerolinewidth": 1,
            "zerolinecolor": EMPTY,
        }
        figure.update_layout({f"xaxis{i + 1}": axis, f"yaxis{i + 1}": axis})
    both = len(kinds) == 2
    side_by_side(
        figure,
        list(panels),
        subtitles=[fit.get(title, "") for title in panels],
        x=[x] * len(panels),
        y=y,
        widths=[_SIDE] * len(panels),
        height=_SIDE,
        right=BAR_WIDTH,
        in_row=-(-len(panels) // -(-len(panels) // _IN_ROW)),
        above=_KEY if both else 0,
    )
    if both:
        figure.add_annotation(
            text="■ MLPs &nbsp; ● heads",
            x=0,
            y=1,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            yshift=figure.layout.margin.t - _KEY,
            showarrow=False,
        )
    first, last = min(layers), max(layers)
    step = max(1, -(-(last - first) // 8))
    return figure.update_layout(
        showlegend=False,
        coloraxis={
            "colorscale": "Viridis",
            "cmin": first,
            "cmax": max(last, first + 1),
            "colorbar": colour_bar("layer", tickvals=list(range(first, last + 1, step))),
        },
    )


def _are_mlps(points: pd.DataFrame) -> list[bool]:
    return [str(name).startswith("MLP") for name in points["name"]]


def _points(title: str, frame: pd.DataFrame) -> pd.DataFrame:
    if missing := [column for column in COLUMNS if column not in frame]:
        raise InputError(f"the frame of {title!r} has no column {missing[0]!r}; it needs {list(COLUMNS)}")
    points = frame.loc[np.isfinite(frame[["x", "y"]].to_numpy(dtype=float)).all(1)]
    if points.empty:
        raise InputError(f"the frame of {title!r} has no points to show")
    return points


def _least_squares(x: np.ndarray, y: np.ndarray) -> go.Scatter | None:
    """The line from the least x to the largest; None where x does not vary."""
    from_mean = x - x.mean()
    spread = float(from_mean @ from_mean)
    if not spread:
        return None
    slope = float(from_mean @ (y - y.mean())) / spread
    ends = [float(x.min()), float(x.max())]
    return go.Scatter(
        x=ends,
        y=[float(y.mean() + slope * (end - x.mean())) for end in ends],
        mode="lines",
        line={"color": GREY, "width": 1},
        hoverinfo="skip",
    )
