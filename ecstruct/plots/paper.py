"""Panels of cells for print: as wide as a column of a paper, in type of 7 to 8.5 points, all vector.

On the screen a figure has the size of what it shows; here the width is given and cells divide it. Cells are
bars, which plotly draws as shapes (its heatmaps are pixels). There is no title: a caption says what it
would. Red and blue of one strength are the same grey, so cells that lower the reward by more than a tenth
of the panel's largest have a minus sign. Panels grow with their layers until they fill a page; cells of
less than 3 points have neither signs nor dots. Headings that are wider than their panels lose what is in
brackets, and labels of tokens are turned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.panels import (
    UPRIGHT,
    Column,
    Groups,
    Panel,
    Scale,
    Sizes,
    dots,
    draw_panels,
    label_length,
    units,
)
from ecstruct.plots.style import GREY, INK, colour_scale

Width = Literal["column", "text"] | float

INCHES = {"column": 3.25, "text": 6.75}
"""Widths of two-column layouts (ICML's); that of one column on a page (NeurIPS, ICLR) is 5.5 inches."""

INCH = 96  # in pixels, as browsers, SVG and kaleido's PDF have it
POINT = INCH / 72
SMALL, TYPE, LARGE = 7 * POINT, 8 * POINT, 8.5 * POINT
HAIR = 0.5 * POINT

_NARROWEST, _WIDEST = 2.0, 20.0  # inches
_CHARACTER = 0.52 * SMALL  # mean width, on the wide side
_LINE = 1.3 * TYPE
_LAYERS = 46.0  # what the numbers and the title of layers take, left of a group
_BETWEEN = 9.0  # columns
_APART = 4.0  # labels of tokens that stand side by side
_RIGHT = 4.0
_BAR = 4.0  # thickness of a colour bar
_TALLEST = 230.0  # three panels of it fill a page
_SIGNED = 3 * POINT  # the least cell on which a sign can be seen
_NEGATIVE = 0.1  # of the panel's largest: where colours begin to be seen


def paper_figure(
    columns: Sequence[Column],
    rows: Sequence[str],
    *,
    scale: Scale,
    groups: Groups = (),
    meaning: str = "",
    width: Width = "column",
) -> go.Figure:
    """Draw the figure of `screen.panel_figure` for print, `width` wide: "column", "text", or inches.

    Labels of tokens for which there is no room are left out.

    Raises:
        InputError: The width is none of a paper's, or too little for what is shown.
    """
    wide = inches(width) * INCH
    sizes = [len(column.panels[0].columns) for column in columns]
    lefts = [_LAYERS if i == 0 or column.first_of_group else _BETWEEN for i, column in enumerate(columns)]
    room = wide - sum(lefts) - _RIGHT
    if room / sum(sizes) < POINT:
        raise InputError(
            f"width={width!r} has no room for {sum(sizes)} cells side by side; give more inches, or "
            "show less"
        )
    widths = _widths(sizes, room, max(_heading_width(_short(column.title)) for column in columns))
    headings = [column.title for column in columns]
    if any(_heading_width(heading) > width for heading, width in zip(headings, widths, strict=True)):
        columns = [replace(column, title=_short(column.title)) for column in columns]
    layers = max(len(panel.layers) for column in columns for panel in column.panels)
    height = float(np.clip(layers * 9, 66, np.clip(layers * _SIGNED, 112, _TALLEST)))
    each = [width / size for width, size in zip(widths, sizes, strict=True)]
    cell = min(*each, height / layers)
    turned = not all(map(_level, columns, each))
    longest = max(column.longest_label for column in columns) * _CHARACTER
    figure = draw_panels(
        columns,
        rows,
        Sizes(
            widths=widths,
            height=height,
            lefts=lefts,
            right=_RIGHT,
            below=8 + (longest if turned else 1.1 * SMALL),
            angles=[-90 if turned and column.longest_label > UPRIGHT else 0 for column in columns],
            group=LARGE,
            heading=TYPE,
            label=SMALL,
            small=SMALL,
            line=_LINE,
            bar=_BAR,
        ),
        lambda panel, low, high, bar: _traces(panel, low, high, bar, cell),
        scale=scale,
        groups=groups,
        notes=_notes(columns, meaning, cell),
    )
    frame = {"showline": True, "mirror": True, "linewidth": HAIR, "linecolor": GREY}
    frame |= {"tickwidth": HAIR, "ticklen": 2}
    figure.update_xaxes(**frame).update_yaxes(**frame)
    return figure.update_layout(font_size=TYPE, margin_pad=0, barmode="overlay", showlegend=False)


def inches(width: Width) -> float:
    """Return a width, given by its name or as a number of inches, in inches.

    >>> inches("column"), inches(5.5)
    (3.25, 5.5)
    """
    found = INCHES.get(width) if isinstance(width, str) else width
    if found is None or not _NARROWEST <= found <= _WIDEST:
        named = " or ".join(f"{name!r} ({size} inches)" for name, size in INCHES.items())
        raise InputError(
            f"width={width!r} is none of a paper's; it is {named}, or a number of inches from "
            f"{_NARROWEST:g} to {_WIDEST:g}"
        )
    return found


def _short(heading: str) -> str:
    """Return what is before the brackets of a heading.

    >>> _short("attention (heads summed)"), _short("MLP")
    ('attention', 'MLP')
    """
    return heading.split(" (")[0]


def _heading_width(heading: str) -> float:
    """Return the width of a heading in pixels."""
    return len(heading) * _CHARACTER * TYPE / SMALL


def _level(column: Column, cell: float) -> bool:
    """Say whether all labels of a column fit from left to right; of numbers, some are enough."""
    lengths = [_CHARACTER * label_length(label) for label in column.panels[0].columns]
    between = max(((a + b) / 2 for a, b in pairwise(lengths)), default=0.0)
    fit = between + _APART <= cell and max(lengths[0], lengths[-1]) <= cell + _APART
    return fit or column.longest_label <= UPRIGHT


def _widths(sizes: Sequence[int], room: float, least: float) -> list[float]:
    """Divide `room` among panels by their numbers of cells, but give each at least `least` if it can be.

    >>> _widths([4, 1, 1], 60, 12), _widths([2, 1], 60, 40)
    ([36.0, 12.0, 12.0], [30.0, 30.0])
    """
    least = min(least, room / len(sizes))
    narrow = np.zeros(len(sizes), bool)
    while True:
        cell = (room - least * narrow.sum()) / np.sum(sizes, where=~narrow)
        widths = np.where(narrow, least, cell * np.asarray(sizes))
        if (widths > least - 1e-9).all():
            return widths.tolist()
        narrow |= widths < least - 1e-9


def _notes(columns: Sequence[Column], meaning: str, cell: float) -> list[str]:
    """Say what the colours, the signs and the dots mean, as far as there are any."""
    notes = [units(columns)]
    if cell < _SIGNED:
        return notes
    if any(_negative(panel).any() for column in columns for panel in column.panels):
        notes.append("− negative")
    return [*notes, *([f"● {meaning}"] if meaning else [])]


def _negative(panel: Panel) -> np.ndarray:
    """Return which cells have a minus sign, (layer, column)."""
    values = np.nan_to_num(panel.values)
    return values < -_NEGATIVE * np.abs(values).max()


def _traces(panel: Panel, low: float, high: float, bar: dict[str, Any], cell: float) -> list[Any]:
    """Draw a panel's cells, whose lesser side is `cell`, with their colour bar, signs and dots."""
    layers = np.asarray(panel.layers)
    rows, columns = np.nonzero(np.isfinite(panel.values))
    marker = {
        "color": panel.values[rows, columns],
        "cmin": low,
        "cmax": high,
        "colorscale": colour_scale(low / high),
        "colorbar": bar,
        "line": {"color": "white", "width": min(HAIR, 0.1 * cell)},
    }
    base, ones = layers[rows] - 0.5, np.ones(len(rows))
    bars = go.Bar(x=columns, y=ones, base=base, width=1, marker=marker, hoverinfo="skip")
    if cell < _SIGNED:
        return [bars]
    negative, marked = _negative(panel), panel.marked
    dark = np.maximum(panel.values[negative], low) < -0.5 * high
    stroke = {"color": np.where(dark, "#ffffff", INK), "width": HAIR}
    half, dot = float(np.clip(0.35 * cell, 1.5, 3)), float(np.clip(0.4 * cell, 1.5, 3.5))
    drawn: list[Any] = [bars]
    if negative.any():
        drawn.append(dots(negative, panel.layers, half, symbol="line-ew", line=stroke))
    if marked is not None and marked.any():
        rim = {"color": "white", "width": HAIR / 2}
        drawn.append(dots(marked, panel.layers, dot, symbol="circle", line=rim))
    return drawn
