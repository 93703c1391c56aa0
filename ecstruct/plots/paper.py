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
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.layout import note, pixel_grid
from ecstruct.plots.panels import (
    UPRIGHT,
    Column,
    Panel,
    Scale,
    add_group_titles,
    cell_axes,
    label_length,
    limits,
    lowest_text,
    panels_of,
    step,
)
from ecstruct.plots.style import CELLS, GREY, INK, colour_scale, number

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


def paper_figure(
    columns: Sequence[Column],
    rows: Sequence[str],
    *,
    scale: Scale,
    groups: Sequence[tuple[str, int]] = (),
    meaning: str = "",
    width: Width = "column",
) -> go.Figure:
    """Draw the figure of `panel_figure` for print, `width` wide: "column", "text", or a number of inches.

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
        headings = [_short(heading) for heading in headings]
    layers = max(len(panel.layers) for column in columns for panel in column.panels)
    height = float(np.clip(layers * 9, 66, np.clip(layers * _SIGNED, 112, _TALLEST)))
    cells = [width / size for width, size in zip(widths, sizes, strict=True)]
    cell = min(*cells, height / layers)
    turned = not all(map(_level, columns, cells))
    longest = max(column.longest_label for column in columns) * _CHARACTER
    below = 8 + (longest if turned else 1.1 * SMALL)  # the labels of tokens
    bottom = below + 2 * _LINE
    figure = pixel_grid(
        widths,
        height,
        lefts=lefts,
        right=_RIGHT,
        top=_ABOVE + _LINE * (2 if groups else 1) - 4,
        bottom=bottom,
        titles=headings,
        rows=len(rows),
        gap=_ABOVE,
        template=CELLS,
    )
    figure.update_annotations(font_size=TYPE, yshift=_ABOVE - 4, borderpad=0)
    add_group_titles(figure, groups, yshift=_ABOVE + _LINE - 4, size=LARGE)
    for column, panel, row, place in panels_of(columns, rows):
        (x_axis,), (y_axis,) = figure.select_xaxes(**place), figure.select_yaxes(**place)
        across, lowest = widths[place["col"] - 1], place["row"] == len(rows)
        inner_height = len(rows) * (height + _ABOVE) - _ABOVE
        bar = _colour_bar(panel, scale, across) | {
            "x": x_axis.domain[0],
            "y": y_axis.domain[1] + (_ABOVE - 7) / inner_height,
        }
        figure.add_traces(_traces(panel, scale, bar, cell), place["row"], place["col"])
        layered = lefts[place["col"] - 1] == _LAYERS
        # Upright labels need their height; those that count, their length; other level ones have room.
        steps = (
            step(height / len(panel.layers), 1.3 * SMALL),
            step(across / len(panel.columns), 1.1 * SMALL),
        )
        level = not turned or column.longest_label <= UPRIGHT
        axes = cell_axes(
            panel, steps, labelled=lowest, angle=0 if level else -90, layered=layered, row_title=row
        )
        figure.update_xaxes(**axes[0], **place)
        figure.update_yaxes(**axes[1], title_standoff=3, title_font_size=TYPE, **place)
        if lowest:
            middle = sum(x_axis.domain) / 2
            figure.add_annotation(_below(column.column_axis, middle, -below - _LINE, TYPE, "center"))
    meanings = " &nbsp; ".join(_meanings(columns, meaning, cell))
    figure.add_annotation(_below(meanings, 1, -bottom + 1, SMALL, "right"))
    frame = {"showline": True, "mirror": True, "linewidth": HAIR, "linecolor": GREY}
    frame |= {"tickwidth": HAIR, "ticklen": 2, "tickfont_size": SMALL}
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


def _below(text: str, x: float, shift: float, size: float, anchor: str) -> dict[str, Any]:
    """Return a line of text below the panels, `shift` pixels above their lower edge."""
    style = {"xanchor": anchor, "yanchor": "bottom", "borderpad": 0, "font_size": size}
    return note(text, x=x, y=0, yshift=shift, **style)


def _meanings(columns: Sequence[Column], meaning: str, cell: float) -> list[str]:
    """Say what the colours, the signs and the dots mean, as far as there are any."""
    panels = [panel for column in columns for panel in column.panels]
    meanings = [" / ".join(dict.fromkeys(panel.bar_title for panel in panels))]
    if cell < _SIGNED:
        return meanings
    if any(_negative(panel).any() for panel in panels):
        meanings.append("− negative")
    return [*meanings, *([f"● {meaning}"] if meaning else [])]


def _negative(panel: Panel) -> np.ndarray:
    """Return which cells have a minus sign, (layer, column)."""
    values = np.nan_to_num(panel.values)
    return values < -_NEGATIVE * np.abs(values).max()


def _traces(panel: Panel, scale: Scale, bar: dict[str, Any], cell: float) -> list[Any]:
    """Draw a panel's cells, whose lesser side is `cell`, with their colour bar, signs and dots."""
    low, high = limits(panel.values, scale)
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
    traces: list[Any] = [
        go.Bar(x=columns, y=ones, base=base, width=1, marker=marker, hoverinfo="skip"),
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
            traces.append(
                go.Scatter(x=columns, y=layers[rows], mode="markers", marker=marker, hoverinfo="skip")
            )
    return traces


def _colour_bar(panel: Panel, scale: Scale, width: float) -> dict[str, Any]:
    """Return a colour bar as wide as its panel, with numbers below it that stay within that width."""
    low, high = limits(panel.values, scale)
    ends = [lowest_text(panel, low), number(high)]
    per_pixel = (high - low) / width
    wide = [len(end) * _CHARACTER * per_pixel for end in ends]
    ticks, texts = [low + wide[0] / 2, high - wide[1] / 2], ends
    if low + wide[0] < -_CHARACTER * per_pixel and high - wide[1] > _CHARACTER * per_pixel:
        ticks, texts = [ticks[0], 0.0, ticks[1]], [ends[0], "0", ends[1]]
    return {
        "orientation": "h",
        "xanchor": "left",
        "xpad": 0,
        "yanchor": "top",
        "ypad": 0,
        "len": width,
        "lenmode": "pixels",
        "thickness": _BAR,
        "outlinewidth": 0,
        "tickvals": ticks,
        "ticktext": texts,
        "tickfont": {"size": SMALL},
        "tickangle": 0,
        "ticks": "",
    }
