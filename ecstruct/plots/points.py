"""One score against another: a point per component of the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.polynomial import Polynomial

from ecstruct.errors import InputError
from ecstruct.plots.layout import BAR_WIDTH, axes_of, colour_bar, side_by_side
from ecstruct.plots.style import EMPTY, GREY, INK

COLUMNS = ("x", "y", "name", "layer")
"""The columns of a panel's frame: a point's place, its component and that component's layer."""

_SIDE = 250  # pixels of a panel
_KEY = "■ MLPs &nbsp; ● heads"


def scatter(
    panels: Mapping[str, pd.DataFrame],
    *,
    x: str,
    y: str,
    fit: Mapping[str, str] | None = None,
    colour: str = "layer",
) -> go.Figure:
    """Draw points coloured by layer, a panel per frame, with the line y = a + b x of least squares.

    MLPs are squares, other components circles. Points without a finite place are left out; so is the
    line where x does not vary. Each panel has a scale of its own, and hovering names the component. Up
    to three panels are in a row.

    Args:
        panels: By title, frames with the columns `COLUMNS`.
        x, y: The titles of the axes, with their units.
        fit: By panel, what is said of it below its title, such as "r = 0.61, n = 24".
        colour: What the numbers in the column "layer" are, if not layers.

    Raises:
        InputError: There are no panels, a frame lacks a column or has no points, or `fit` names a panel
            that is not there.
    """
    if not panels:
        raise InputError("there are no panels to show; give at least one")
    fit = fit or {}
    if unknown := [title for title in fit if title not in panels]:
        raise InputError(f"fit= names {unknown[0]!r}, but the panels are {list(panels)}")
    frames = {title: _points(title, frame) for title, frame in panels.items()}
    both = len({mlp for points in frames.values() for mlp in _are_mlps(points)}) == 2
    figure = side_by_side(
        list(panels),
        subtitles=[re.sub(r"-(?=\d)", "−", fit.get(title, "")) for title in panels],
        x=x,
        y=y,
        widths=[_SIDE] * len(panels),
        height=_SIDE,
        right=BAR_WIDTH,
        key=_KEY if both else "",
    )
    hover = f"{escape(x, quote=False)}: %{{x:.3~g}}<br>{escape(y, quote=False)}: %{{y:.3~g}}"
    for i, points in enumerate(frames.values()):
        across, up = points["x"].to_numpy(dtype=float), points["y"].to_numpy(dtype=float)
        if np.ptp(across):  # without that there is no line
            line, ends = Polynomial.fit(across, up, 1), [float(across.min()), float(across.max())]
            figure.add_scatter(
                x=ends,
                y=line(np.array(ends)).tolist(),
                mode="lines",
                line={"color": GREY, "width": 1},
                hoverinfo="skip",
                **axes_of(i),
            )
        figure.add_scatter(
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
            hovertemplate=f"<b>%{{text}}</b><br>{hover}<extra></extra>",
            **axes_of(i),
        )
    zero = {"zeroline": True, "zerolinewidth": 1, "zerolinecolor": EMPTY}
    figure.update_xaxes(nticks=6, **zero).update_yaxes(nticks=6, showgrid=False, **zero)
    layers = [layer for points in frames.values() for layer in points["layer"].tolist()]
    first, last = min(layers), max(layers)
    step = max(1, int(-(-(last - first) // 8)))
    return figure.update_layout(
        showlegend=False,
        coloraxis={
            "colorscale": "Viridis",
            "cmin": first,
            "cmax": max(last, first + 1),
            "colorbar": colour_bar(colour, tickvals=[*range(int(first), int(last) + 1, step)]),
        },
    )


def _are_mlps(points: pd.DataFrame) -> list[bool]:
    """Say whether each point is an MLP, by its name."""
    return [str(name).startswith("MLP") for name in points["name"]]


def _points(title: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a frame that have a finite place."""
    if missing := [column for column in COLUMNS if column not in frame]:
        raise InputError(f"the frame of {title!r} has no column {missing[0]!r}; it needs {list(COLUMNS)}")
    points = frame.loc[np.isfinite(frame[["x", "y"]].to_numpy(dtype=float)).all(1)]
    if points.empty:
        raise InputError(f"the frame of {title!r} has no points to show")
    return points
