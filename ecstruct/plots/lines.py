"""Lines with bands about them: means over seeds, from the lowest to the highest, or over prompts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

import numpy as np
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from ecstruct.errors import InputError
from ecstruct.plots.style import EMPTY, INK, LINE_COLOURS

Curve: TypeAlias = Sequence[float] | Sequence[Sequence[float]] | np.ndarray
"""Values by step, or by step and seed."""


def by_seed(name: str, values: Curve) -> np.ndarray:
    """A curve as an array (step, seed); one without seeds is that of one seed.

    Raises:
        InputError: no values, or not the same number of seeds at each step.
    """
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"{name!r} does not have a number for each seed at every step") from None
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{name!r} is no curve: it needs values by step, or by step and seed")
    return array


def add_curve(figure: go.Figure, name: str, values: np.ndarray, **options: Any) -> None:
    """Draw the mean over seeds at the steps 0, 1, 2..., and the range of the seeds about it.

    Where a seed is missing (NaN), line and band have a gap: a mean over fewer seeds is another.

    Args:
        values: (step, seed).
        options: as of `add_line`.
    """
    ends = (values.min(1), values.max(1)) if values.shape[1] > 1 else None
    add_line(figure, name, np.arange(len(values)), values.mean(1), ends, between="seeds", **options)


def add_line(
    figure: go.Figure,
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray] | None,
    *,
    between: str,
    colour: str,
    hover: str,
    markers: bool = True,
    **placed: Any,
) -> None:
    """Draw a line with a band about it; dashed if it is of implications.

    Args:
        ends: The lower and the upper end of the band, NaN where there is none.
        between: What the ends of the band are.
        hover: What hovering says below the name, in plotly's placeholders.
        placed: Where the line stands (`xaxis`, `yaxis`) and whether the legend names it.
    """
    shown, dashed = escape(name, quote=False), is_implication(name)
    if ends is not None:
        low, high = ends
        hover += f"<br>{between}: %{{customdata[0]:.3~g}} to %{{customdata[1]:.3~g}}"
        known = np.flatnonzero(np.isfinite(low))
        around: list[float | None] = []
        edges: list[float | None] = []
        for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
            around += [None, *x[run].tolist(), *x[run][::-1].tolist()]
            edges += [None, *high[run].tolist(), *low[run][::-1].tolist()]
        red, green, blue = hex_to_rgb(colour)
        band = go.Scatter(
            x=around[1:],
            y=edges[1:],
            name=shown,
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor=f"rgba({red}, {green}, {blue}, 0.18)",
            hoverinfo="skip",
        )
        figure.add_trace(band.update(legendgroup=shown, **{**placed, "showlegend": False}))
    line = go.Scatter(
        x=x.tolist(),
        y=y.tolist(),
        customdata=None if ends is None else np.stack(ends, 1).tolist(),
        name=shown,
        mode="lines+markers" if markers else "lines",
        cliponaxis=False,
        line={"color": colour, "dash": "dash" if dashed else "solid"},
        marker={"size": 6, "symbol": "circle-open" if dashed else "circle"},
        hovertemplate=f"{shown}<br>{hover}<extra></extra>",
    )
    figure.add_trace(line.update(legendgroup=shown, **placed))


def line_colours(names: Iterable[str]) -> Mapping[str, str]:
    """A colour for each name; names that differ only in "facts" and "implications" share one."""
    names = list(names)
    settings = list(dict.fromkeys(_setting(name) for name in names))
    return {name: LINE_COLOURS[settings.index(_setting(name)) % len(LINE_COLOURS)] for name in names}


def is_implication(name: str) -> bool:
    """Whether a name ends in "implication", "implications" or "impl".

    >>> is_implication("first-hop implications"), is_implication("implications first")
    (True, False)
    """
    return bool(re.search(r"(?i)\bimpl(ications?)?$", name.strip()))


def step_axis(title: str, last: int) -> dict[str, Any]:
    """An axis of the steps 0 to `last`, a dozen of them numbered at most."""
    every = (1, 2, 3, 5, 10, 20, 50)
    return {
        "title": {"text": title, "standoff": 8},
        "range": [-0.2, last + 0.2],
        "dtick": next((n for n in every if last <= 12 * n), 100 * (last // 1200 + 1)),
        "showline": True,
        "linecolor": INK,
    }


def value_axis(title: str, low: float, high: float) -> dict[str, Any]:
    return {
        "title": {"text": title},
        "range": [low, high],
        "showgrid": True,
        "gridcolor": EMPTY,
        "showline": True,
        "linecolor": INK,
    }


def _setting(name: str) -> str:
    """What is left of a name without a last "facts" or "implications".

    >>> _setting("first-hop facts") == _setting("first-hop implications")
    True
    """
    return re.sub(r"(?i)\W*\b(facts?|impl|implications?)$", "", name.strip()).strip()
