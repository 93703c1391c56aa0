"""Panels of cells for print: as wide as a column of a paper, in type of 7 to 8.5 points, all vector.

`panels.py` sizes a figure from what it shows; here the width is given and cells divide it. Cells are bars,
which plotly draws as shapes (its heatmaps are pixels), and colour bars lie above the panels, where they
take no width. There is no title: a caption says what it would. Red and blue of one strength are the same
grey, so cells that lower the reward by more than a tenth of the panel's largest have a minus sign. Panels
grow with their layers until they fill a page; cells of less than 3 points have neither signs nor dots.
Headings that are wider than their panels lose what is in brackets, and labels of tokens are turned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.panels import Column, Panel, Scale, label_length, limits, longest_label, step
from ecstruct.plots.style import GREY, INK, TEMPLATE, colour_scale, number

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
_ABOVE = 9.0 + _BAR + 1.4 * SMALL  # a panel: its colour bar and the numbers
_TALLEST = 230.0  # three panels of it fill a page
_SIGNED = 3 * POINT  # the least cell on which a sign can be seen
_NEGATIVE = 0.1  # of the panel's largest: where colours begin to be seen


@dataclass(frozen=True)
class _Place:
    """Where a panel is, in pixels from the left and the bottom, on a canvas of so many."""

    left: float
    bottom: float
    width: float
    height: float
    canvas: tuple[float, float]

    def x(self, share: float) -> float:
        return (self.left + share * self.width) / self.canvas[0]

    def y(self, above: float) -> float:
        return (self.bottom + above) / self.canvas[1]


def paper_figure(
    columns: Sequence[Column],
    rows: Sequence[str],
    *,
    scale: Scale,
    groups: Sequence[tuple[str, int]] = (),
    note: str = "",
    width: Width = "column",
) -> go.Figure:
    """The figure of `panel_figure` for print, `width` wide: "column", "text", or a number of inches.

    Labels of tokens for which there is no room are left out.

    Raises:
        InputError: a width that is none, or too little for what is shown.
    """
    wide = inches(width) * INCH
    sizes = [len(column.panels[0].columns) for column in columns]
    leads = [_LAYERS if i == 0 or column.first_of_group else _BETWEEN for i, column in enumerate(columns)]
    room = wide - sum(leads) - _RIGHT
    if room / sum(sizes) < POINT:
        raise InputError(
            f"width={width!r} has no room for {sum(sizes)} cells side by side; give more inches, or "
            "show less"
        )
    widths = _widths(sizes, room, max(_heading_width(_short(column.title)) for column in columns))
    headings = [column.title for column in columns]
    if any(_heading_width(heading) > width for heading, width in zip(headings, widths, strict=True)):
        headings = [_short(heading) for heading in headings]
    lefts = np.cumsum(leads) + np.cumsum([0, *widths[:-1]])
    layers = max(len(panel.layers) for column in columns for panel in column.panels)
    height = float(np.clip(layers * 9, 66, np.clip(layers * _SIGNED, 112, _TALLEST)))
    size_of_cell = min(*(width / size for width, size in zip(widths, sizes, strict=True)), height / layers)
    canvas = wide, len(rows) * (height + _ABOVE)
    turned = not all(
        _level(column, width / size) for column, width, size in zip(columns, widths, sizes, strict=True)
    )
    longest = max(longest_label(column) for column in columns) * _CHARACTER
    below = 8 + (longest if turned else 1.1 * SMALL)  # the labels of tokens
    bottom = below + 2 * _LINE

    figure = go.Figure()
    for i, (column, left, across) in enumerate(zip(columns, lefts, widths, strict=True)):
        for j, panel in enumerate(column.panels):
            low = (len(rows) - 1 - j) * (height + _ABOVE)
            place = _Place(float(left), low, across, height, canvas)
            name = str(i * len(rows) + j + 1)
            figure.add_traces(_traces(panel, name, scale, place, size_of_cell))
            labelled = column if j == len(rows) - 1 else None
            titled = rows[j] if leads[i] == _LAYERS else None
            figure.update_layout(_axes(panel, name, place, labelled, titled, turned))
        middle = (left + across / 2) / wide
        figure.add_annotation(_text(headings[i], middle, 1, -4, TYPE, "center"))
        figure.add_annotation(_text(column.column_axis, middle, 0, -below - _LINE, TYPE, "center"))
    first = 0
    for title, n in groups:
        last = first + n - 1
        middle = (lefts[first] + lefts[last] + widths[last]) / 2 / wide
        figure.add_annotation(_text(f"<b>{title}</b>", middle, 1, _LINE - 4, LARGE, "center"))
        first += n
    notes = " &nbsp; ".join(_notes(columns, note, size_of_cell))
    figure.add_annotation(_text(notes, 1 - _RIGHT / wide, 0, -bottom + 1, SMALL, "right"))
    top = _LINE * (2 if groups else 1) - 4
    figure.update_layout(
        template=TEMPLATE,
        font={"size": TYPE},
        width=round(wide),
        height=round(top + canvas[1] + bottom),
        margin={"l": 0, "r": 0, "t": top, "b": bottom, "pad": 0, "autoexpand": False},
        barmode="overlay",
        showlegend=False,
    )
    return figure


def inches(width: Width) -> float:
    """A width by its name, or as a number of inches.

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
    """What is before the brackets.

    >>> _short("attention (heads summed)"), _short("MLP")
    ('attention', 'MLP')
    """
    return heading.split(" (")[0]


def _heading_width(heading: str) -> float:
    return len(heading) * _CHARACTER * TYPE / SMALL


def _level(column: Column, cell: float) -> bool:
    """Whether there is room for all labels of a column from left to right; for numbers, some are enough."""
    lengths = [_CHARACTER * label_length(label) for label in column.panels[0].columns]
    between = max(((a + b) / 2 for a, b in pairwise(lengths)), default=0.0)
    fit = between + _APART <= cell and max(lengths[0], lengths[-1]) <= cell + _APART
    return fit or longest_label(column) <= 2


def _widths(sizes: Sequence[int], room: float, least: float) -> list[float]:
    """The widths of panels of so many cells: by cells, but none under `least` if it can be.

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


def _text(text: str, x: float, y: float, above: float, size: float, anchor: str) -> dict[str, Any]:
    return {
        "text": text,
        "x": x,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": anchor,
        "yanchor": "bottom",
        "yshift": above,
        "borderpad": 0,
        "showarrow": False,
        "font": {"size": size},
    }


def _notes(columns: Sequence[Column], note: str, cell: float) -> list[str]:
    panels = [panel for column in columns for panel in column.panels]
    notes = [" / ".join(dict.fromkeys(panel.bar_title for panel in panels))]
    if cell < _SIGNED:
        return notes
    if any(_negative(panel).any() for panel in panels):
        notes.append("− negative")
    return [*notes, *([f"● {note}"] if note else [])]


def _negative(panel: Panel) -> np.ndarray:
    """Which cells have a minus sign (layer, column)."""
    values = np.nan_to_num(panel.values)
    return values < -_NEGATIVE * np.abs(values).max()


def _traces(panel: Panel, name: str, scale: Scale, place: _Place, cell: float) -> list[Any]:
    """A panel's cells, whose lesser side is `cell`, with their colour bar, and signs and dots on them."""
    low, high = limits(panel.values, scale)
    layers = np.asarray(panel.layers)
    axes = {"xaxis": f"x{name}", "yaxis": f"y{name}", "hoverinfo": "skip"}
    rows, columns = np.nonzero(np.isfinite(panel.values))
    values = panel.values[rows, columns]
    cells = {
        "color": values,
        "cmin": low,
        "cmax": high,
        "colorscale": colour_scale(low / high),
        "colorbar": _bar(low, high, bool(values.min(initial=0.0) < low), place),
        "line": {"color": "white", "width": min(HAIR, 0.1 * cell)},
    }
    traces: list[Any] = [
        go.Bar(x=columns, y=np.ones(len(rows)), base=layers[rows] - 0.5, width=1, marker=cells, **axes)
    ]
    if cell < _SIGNED:
        return traces
    dark = np.maximum(panel.values[_negative(panel)], low) < -0.5 * high
    signs = {
        "symbol": "line-ew",
        "size": float(np.clip(0.35 * cell, 1.5, 3)),  # half of its length
        "line": {"color": np.where(dark, "#ffffff", INK), "width": HAIR},
    }
    dots = {
        "symbol": "circle",
        "size": float(np.clip(0.4 * cell, 1.5, 3.5)),
        "color": INK,
        "line": {"color": "white", "width": HAIR / 2},
    }
    marked = np.zeros_like(panel.values) if panel.marked is None else panel.marked
    for marker, where in ((signs, _negative(panel)), (dots, marked)):
        rows, columns = np.nonzero(where)
        if len(rows):
            traces.append(go.Scatter(x=columns, y=layers[rows], mode="markers", marker=marker, **axes))
    return traces


def _bar(low: float, high: float, clipped: bool, place: _Place) -> dict[str, Any]:
    """A colour bar over the panel, its numbers below it, within the panel's width."""
    ends = ["≤ " * clipped + number(low), number(high)]
    per_pixel = (high - low) / place.width
    wide = [len(end) * _CHARACTER * per_pixel for end in ends]
    ticks, texts = [low + wide[0] / 2, high - wide[1] / 2], ends
    if low + wide[0] < -_CHARACTER * per_pixel and high - wide[1] > _CHARACTER * per_pixel:
        ticks, texts = [ticks[0], 0.0, ticks[1]], [ends[0], "0", ends[1]]
    return {
        "orientation": "h",
        "x": place.x(0),
        "xanchor": "left",
        "xpad": 0,
        "y": place.y(place.height + _ABOVE - 7),
        "yanchor": "top",
        "ypad": 0,
        "len": place.width,
        "lenmode": "pixels",
        "thickness": _BAR,
        "outlinewidth": 0,
        "tickvals": ticks,
        "ticktext": texts,
        "tickfont": {"size": SMALL},
        "tickangle": 0,
        "ticks": "",
    }


def _axes(
    panel: Panel, name: str, place: _Place, labelled: Column | None, titled: str | None, turned: bool
) -> dict[str, Any]:
    """Both axes of a panel: with labels of tokens if `labelled`, of layers if `titled`."""
    n_columns, layers = len(panel.columns), list(panel.layers)
    every = step(place.height / len(layers), 1.3 * SMALL)
    # Upright labels need their height; those that count, their length; other level ones have room.
    column_step = step(place.width / n_columns, 1.1 * SMALL)
    level = labelled is None or not turned or longest_label(labelled) <= 2
    hair = {"tickwidth": HAIR, "ticklen": 2, "tickfont": {"size": SMALL}}
    hair |= {"showline": True, "mirror": True, "linewidth": HAIR, "linecolor": GREY}
    title = f"<b>{titled}</b><br>layer" if titled else "layer"
    return {
        f"xaxis{name}": {
            "domain": [place.x(0), place.x(1)],
            "anchor": f"y{name}",
            "range": [-0.5, n_columns - 0.5],
            "tickvals": list(range(0, n_columns, column_step)),
            "ticktext": list(panel.columns[::column_step]),
            "tickangle": 0 if level else -90,
            "showticklabels": labelled is not None,
            "ticks": "outside" if labelled else "",
            **hair,
        },
        f"yaxis{name}": {
            "domain": [place.y(0), place.y(place.height)],
            "anchor": f"x{name}",
            "range": [min(layers) - 0.5, max(layers) + 0.5],
            "tickvals": [layer for layer in layers if layer % every == 0],
            "showticklabels": titled is not None,
            "ticks": "outside" if titled is not None else "",
            "title": {
                "text": title if titled is not None else "",
                "standoff": 3,
                "font": {"size": TYPE},
            },
            **hair,
        },
    }
