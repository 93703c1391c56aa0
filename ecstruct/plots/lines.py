"""Lines with bands about them, in panels side by side, for figures of training and of recall."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from ecstruct.plots.layout import PAGE_WIDTH, axes_of, legend_width, side_by_side
from ecstruct.plots.style import LINE_COLOURS


@dataclass(frozen=True)
class Line:
    """A line has values `y` at `x`, and the ends of a band about them, NaN where there is none."""

    x: np.ndarray
    y: np.ndarray
    ends: tuple[np.ndarray, np.ndarray] | None = None

    def extent(self) -> list[float]:
        """Return the finite values of the line and of its band."""
        values = np.concatenate([self.y, *(self.ends or ())])
        return values[np.isfinite(values)].tolist()


def line_panels(
    panels: Mapping[str, Mapping[str, Line]],
    *,
    x: str,
    y: str,
    hover: str,
    between: str,
    own_scales: bool = False,
    include: tuple[float, ...] = (),
    at_most: float = math.inf,
) -> go.Figure:
    """Draw a panel of lines per title; a name looks the same in every panel and is once in the legend.

    Args:
        panels: Lines by name, by the title of their panel.
        x, y: The titles of the axes.
        hover: What hovering says below the name of a line, with plotly's placeholders.
        between: What the ends of the bands are.
        own_scales: Give each panel a y axis of its own, rather than all of them one.
        include: Values that every y axis has to show.
        at_most: The furthest from 0 that a y axis goes; lines may leave the panel there.
    """
    colours = line_colours(dict.fromkeys(name for lines in panels.values() for name in lines))
    around = {"left": 76, "gap": 56 if own_scales else 30, "right": legend_width(list(colours))}
    lasts = [max(int(line.x[-1]) for line in lines.values()) for lines in panels.values()]
    # A panel alone has the page to itself; several together are made to fit one.
    wanted = [float(np.clip(16 * last, 260 if len(panels) > 1 else 400, 480)) for last in lasts]
    room = PAGE_WIDTH - around["left"] - around["right"] - around["gap"] * (len(panels) - 1)
    widths = [max(width * min(1.0, room / sum(wanted)), 200.0) for width in wanted]
    figure = side_by_side(list(panels), x=x, y=y, widths=widths, height=264, **around)
    shown = [
        [*include, *(v for line in lines.values() for v in line.extent())] for lines in panels.values()
    ]
    if not own_scales:
        shown = [[value for values in shown for value in values]] * len(panels)
    unnamed = set(colours)
    for i, (lines, last, values) in enumerate(zip(panels.values(), lasts, shown, strict=True)):
        for name, line in lines.items():
            placed = {"showlegend": name in unnamed, **axes_of(i)}
            markers = 8 * last < widths[i]
            add_line(figure, name, line, between, colours[name], hover, markers=markers, **placed)
            unnamed.discard(name)
        low, high = max(min(values), -at_most), min(max(values), at_most)
        spare = 0.05 * (high - low) or 0.5
        y_axis = {"range": [low - spare, high + spare], "showticklabels": own_scales}
        figure.update_layout({f"xaxis{i + 1}": _step_axis(last), f"yaxis{i + 1}": y_axis})
    figure.update_yaxes(showticklabels=True, col=1)
    if math.isfinite(at_most):
        figure.update_traces(cliponaxis=True)
    return figure.update_layout(showlegend=True)


def add_line(
    figure: go.Figure,
    name: str,
    line: Line,
    between: str,
    colour: str,
    hover: str,
    *,
    markers: bool = True,
    **placed: Any,
) -> None:
    """Draw a line with the band about it; it is dashed if its name says that it is of implications.

    Args:
        between: What the ends of the band are.
        hover: What hovering says below the name, with plotly's placeholders.
        placed: The axes (`xaxis`, `yaxis`), and whether the legend has the line (`showlegend`).
    """
    shown, dashed = escape(name, quote=False), is_implication(name)
    if line.ends is not None:
        low, high = line.ends
        hover += f"<br>{between}: %{{customdata[0]:.3~g}} to %{{customdata[1]:.3~g}}"
        known = np.flatnonzero(np.isfinite(low))
        around: list[float | None] = []
        edges: list[float | None] = []
        # Each run of known steps is a closed shape; None stands between two shapes.
        for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
            around += [None, *line.x[run].tolist(), *line.x[run][::-1].tolist()]
            edges += [None, *high[run].tolist(), *low[run][::-1].tolist()]
        band = go.Scatter(
            x=around[1:],
            y=edges[1:],
            name=shown,
            legendgroup=shown,
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor=f"rgba{(*hex_to_rgb(colour), 0.18)}",
            hoverinfo="skip",
        )
        figure.add_trace(band.update({**placed, "showlegend": False}))
    drawn = go.Scatter(
        x=line.x.tolist(),
        y=line.y.tolist(),
        customdata=None if line.ends is None else np.stack(line.ends, 1).tolist(),
        name=shown,
        legendgroup=shown,
        mode="lines+markers" if markers else "lines",
        cliponaxis=False,
        line={"color": colour, "dash": "dash" if dashed else "solid"},
        marker={"size": 6, "symbol": "circle-open" if dashed else "circle"},
        hovertemplate=f"{shown}<br>{hover}<extra></extra>",
    )
    figure.add_trace(drawn.update(placed))


def line_colours(names: Iterable[str]) -> Mapping[str, str]:
    """Choose a colour for each name; names that differ only in "facts" and "implications" share one."""
    names = list(names)
    settings = list(dict.fromkeys(map(_setting, names)))
    return {name: LINE_COLOURS[settings.index(_setting(name)) % len(LINE_COLOURS)] for name in names}


def is_implication(name: str) -> bool:
    """Say whether a name ends in "implication", "implications" or "impl".

    >>> is_implication("first-hop implications"), is_implication("implications first")
    (True, False)
    """
    return bool(re.search(r"(?i)\bimpl(ications?)?$", name.strip()))


def _setting(name: str) -> str:
    """Return what is left of a name without "facts" or "implications" at its end.

    >>> _setting("first-hop facts") == _setting("first-hop implications")
    True
    """
    return re.sub(r"(?i)\W*\b(facts?|impl|implications?)$", "", name.strip()).strip()


def _step_axis(last: int) -> dict[str, Any]:
    """Return an axis of the steps 0 to `last`, of which a dozen at most have numbers."""
    every = next((n for n in (1, 2, 3, 5, 10, 20, 50) if last <= 12 * n), 100 * (last // 1200 + 1))
    return {"range": [-0.2, last + 0.2], "dtick": every}
