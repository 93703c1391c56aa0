"""Panels of coloured cells, layer by column, in rows and columns: what heatmaps and head maps are made of.

Layer 0 is at the bottom. The colour bar of a panel lies above it and is as wide; what colours mean is
written once, below all panels. A cell that is marked has a dot: dark with a light rim, so that it is seen
on every colour. The sizes of all this are `screen.py`'s or `paper.py`'s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import unescape
from itertools import product
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.layout import note, pixel_grid
from ecstruct.plots.style import CELLS, CHARACTER, FONT_SIZE, INK, number

Scale = Literal["symmetric", "paper"]

PAPER_FLOOR = -0.25
"""The lower end of the paper's scale, as a share of the panel's maximum."""

_TEXT = CHARACTER * (FONT_SIZE - 2) / FONT_SIZE  # width of a character of `Column.texts`
UPRIGHT = 2
"""The characters of the longest label up to which labels are not turned."""

TAG = re.compile("</?(b|i|span[^>]*)>")


@dataclass(frozen=True)
class Panel:
    """A panel is one grid of values with the words for them.

    Attributes:
        values: (layer, column), NaN where there is none.
        layers: The layers' numbers.
        columns: The labels of the columns as HTML; labels may repeat.
        unit: What colours are, with their unit.
        describe: What hovering says of a cell as HTML, from its layer, column, value and the two's indices.
        marked: Whether a cell has a dot, (layer, column).
        most: The furthest from 0 that colours go; cells beyond have the last one.
    """

    values: np.ndarray
    layers: Sequence[int]
    columns: Sequence[str]
    unit: str = ""
    describe: Callable[[int, str, float, int, int], str] = field(default=lambda *_: "")
    marked: np.ndarray | None = None
    most: float = math.inf

    def hover(self) -> list[list[str]]:
        """Return the hover text of every cell, (layer, column)."""
        return [
            [
                self.describe(layer, column, float(self.values[i, j]), i, j)
                for j, column in enumerate(self.columns)
            ]
            for i, layer in enumerate(self.layers)
        ]


@dataclass(frozen=True)
class Column:
    """Panels that share the columns' labels, one above the other, under a title.

    Attributes:
        column_axis: The title of the axis below the lowest panel.
        first_of_group: Whether its panels show the layers' numbers; those of the first column always do.
        numbered: Whether its labels are numbers that count up, so that some of them may be left out.
        texts: What is written on the right of each layer, of its lowest panel.
    """

    title: str
    panels: Sequence[Panel]
    column_axis: str
    first_of_group: bool = False
    numbered: bool = False
    texts: Sequence[str] = ()

    @property
    def texts_width(self) -> float:
        """Return the pixels that `texts` take."""
        return max((_TEXT * label_length(text) + 8 for text in self.texts), default=0.0)

    @property
    def longest_label(self) -> int:
        """Count the characters of the longest of the labels."""
        return max(map(label_length, self.panels[0].columns))


@dataclass(frozen=True)
class Sizes:
    """The sizes of the parts of a figure, in pixels.

    Attributes:
        widths: The width of each column of panels.
        height: The height of every panel.
        lefts: The free space on the left of each column; that of the first is the margin.
        right: The right margin.
        below: What the labels of columns take below the lowest panels.
        angles: How far the labels of each column are turned, in degrees.
        group, heading, label, small: Type of titles of groups, of headings and titles of axes, of labels,
            and of notes and the numbers of colour bars.
        line: The height of a line of a title.
        bar: The thickness of a colour bar.
    """

    widths: Sequence[float]
    height: float
    lefts: Sequence[float]
    right: float
    below: float
    angles: Sequence[int]
    group: float
    heading: float
    label: float
    small: float
    line: float
    bar: float

    @property
    def above(self) -> float:
        """Return what the colour bar of a panel and its numbers take above it."""
        return 9 + self.bar + 1.4 * self.small


Groups = Sequence[tuple[str, int]]
"""Titles above so many columns, from left to right."""


def draw_panels(
    columns: Sequence[Column],
    rows: Sequence[str],
    sizes: Sizes,
    cells: Callable[[Panel, float, float, dict[str, Any]], list[Any]],
    *,
    scale: Scale,
    groups: Groups,
    notes: Sequence[str],
) -> go.Figure:
    """Draw panels at their sizes; labels of columns for which there is no room are left out.

    Args:
        cells: The traces of a panel, from the ends of its colours and its colour bar.
        scale, groups: As of `screen.panel_figure`.
        notes: What is written below the panels.
    """
    above, line = sizes.above, sizes.line
    titles = max((title.count("<br>") + 1 for title, _ in groups), default=0)
    figure = pixel_grid(
        sizes.widths,
        sizes.height,
        lefts=sizes.lefts,
        right=sizes.right,
        top=above + line * (1 + titles),
        bottom=sizes.below + 2 * line,
        titles=[column.title for column in columns],
        rows=len(rows),
        gap=above,
        template=CELLS,
    )
    figure.update_annotations(font_size=sizes.heading, yshift=above - 4, borderpad=0)
    ends = [axis.domain for axis in figure.select_xaxes(row=1)]
    first = 0
    for title, n_columns in groups:
        middle = (ends[first][0] + ends[first + n_columns - 1][1]) / 2
        _write(figure, f"<b>{title}</b>", middle, above + line - 4, sizes.group, y=1)
        first += n_columns
    inner = len(rows) * (sizes.height + above) - above
    for (i, column), (j, row) in product(enumerate(columns), enumerate(rows)):
        panel, lowest = column.panels[j], j == len(rows) - 1
        place: dict[str, Any] = {"row": j + 1, "col": i + 1}
        (across,), (up,) = figure.select_xaxes(**place), figure.select_yaxes(**place)
        low, high = limits(panel, scale)
        bar = _colour_bar(panel, low, high, sizes.widths[i], sizes)
        bar |= {"x": across.domain[0], "y": up.domain[1] + (above - 7) / inner}
        figure.add_traces(cells(panel, low, high, bar), place["row"], place["col"])
        if column.texts and lowest:
            figure.add_trace(_texts(column.texts, panel), **place)
        n_columns, layers = len(panel.columns), list(panel.layers)
        every = step(sizes.height / len(layers), 1.2 * sizes.label)
        column_step = step(sizes.widths[i] / n_columns, 20 if column.numbered else 1.1 * sizes.small)
        # Numbers count from 0; of tokens the last is where the answer is read.
        labelled = range(0 if column.numbered else (n_columns - 1) % column_step, n_columns, column_step)
        figure.update_xaxes(
            range=[-0.5, n_columns - 0.5],
            tickvals=list(labelled),
            ticktext=[panel.columns[label] for label in labelled],
            tickangle=sizes.angles[i] if lowest else 0,
            showticklabels=lowest,
            ticks="outside" if lowest else "",
            tickfont_size=sizes.label,
            **place,
        )
        layered = i == 0 or column.first_of_group
        title = f"<b>{row}</b><br>layer" if row and i == 0 else "layer"
        figure.update_yaxes(
            range=[min(layers) - 0.5, max(layers) + 0.5],
            tickvals=[layer for layer in layers if layer % every == 0],
            showticklabels=layered,
            ticks="outside" if layered else "",
            tickfont_size=sizes.label,
            title={"text": title if layered else "", "standoff": 3, "font_size": sizes.heading},
            **place,
        )
    for column, (left, right) in zip(columns, ends, strict=True):
        _write(figure, column.column_axis, (left + right) / 2, -sizes.below - line, sizes.heading)
    style = {"xanchor": "right", "yanchor": "bottom", "borderpad": 0, "font_size": sizes.small}
    shown = " &nbsp; ".join(filter(None, notes))
    return figure.add_annotation(note(shown, x=1, y=0, yshift=1 - sizes.below - 2 * line, **style))


def dots(marked: np.ndarray, layers: Sequence[int], size: float, **marker: Any) -> go.Scatter:
    """Draw a dot of `size` pixels, or another `marker`, on every cell (layer, column) that is marked."""
    rows, columns = np.nonzero(marked)
    return go.Scatter(
        x=columns,
        y=np.array(layers)[rows],
        mode="markers",
        marker={"size": size, "color": INK, "line": {"color": "white", "width": 1}, **marker},
        hoverinfo="skip",
        showlegend=False,
    )


def label_length(label: str) -> int:
    """Count the characters of a label that are seen.

    >>> label_length("<i>X</i>"), label_length("&lt;s&gt;")
    (1, 3)
    """
    return len(unescape(TAG.sub("", label)))


def units(columns: Sequence[Column]) -> str:
    """Say what the colours of all panels are."""
    return " / ".join(dict.fromkeys(panel.unit for column in columns for panel in column.panels))


def limits(panel: Panel, scale: Scale) -> tuple[float, float]:
    """Return the lower and upper end of a panel's colour scale."""
    if scale not in ("symmetric", "paper"):
        raise InputError(f"scale={scale!r} is unknown; it is 'symmetric' or 'paper'")
    finite = panel.values[np.isfinite(panel.values)]
    largest = min(float(np.abs(finite).max(initial=0.0)), panel.most)
    if scale == "symmetric":
        return -(largest or 1.0), largest or 1.0  # nothing to see is shown as white, whatever the unit
    top = min(float(finite.max(initial=0.0)), panel.most) or largest or 1.0
    return PAPER_FLOOR * top, top


def step(pixels: float, needed: float) -> int:
    """Return every how many cells there is room for a label."""
    return next((step for step in (1, 2, 4, 5, 8, 10, 16, 20, 50) if step * pixels > needed), 100)


def _write(figure: go.Figure, text: str, x: float, yshift: float, size: float, y: float = 0) -> None:
    """Write a title in the middle of `x`, above `yshift` pixels from `y`."""
    style = {"xanchor": "center", "yanchor": "bottom", "borderpad": 0, "font_size": size}
    figure.add_annotation(note(text, x=x, y=y, yshift=yshift, **style))


def _texts(texts: Sequence[str], panel: Panel) -> go.Scatter:
    """Write a text on the right of each layer of a panel."""
    return go.Scatter(
        x=[len(panel.columns) - 0.5] * len(texts),
        y=list(panel.layers),
        text=[f" {text}" for text in texts],
        mode="text",
        textposition="middle right",
        textfont={"size": FONT_SIZE - 2, "color": INK},
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )


def _colour_bar(panel: Panel, low: float, high: float, width: float, sizes: Sizes) -> dict[str, Any]:
    """Return a colour bar as wide as its panel, with numbers below it that stay within that width."""
    finite = panel.values[np.isfinite(panel.values)]
    ends = [
        "≤ " * bool(finite.min(initial=0.0) < low) + number(low),
        "≥ " * bool(finite.max(initial=0.0) > high) + number(high),
    ]
    character = 0.52 * sizes.small * (high - low) / width  # mean width, on the wide side
    wide = [len(end) * character for end in ends]
    ticks, texts = [low + wide[0] / 2, high - wide[1] / 2], ends
    if low + wide[0] < -character and high - wide[1] > character:
        ticks, texts = [ticks[0], 0.0, ticks[1]], [ends[0], "0", ends[1]]
    return {
        "orientation": "h",
        "xanchor": "left",
        "xpad": 0,
        "yanchor": "top",
        "ypad": 0,
        "len": width,
        "lenmode": "pixels",
        "thickness": sizes.bar,
        "outlinewidth": 0,
        "tickvals": ticks,
        "ticktext": texts,
        "tickfont": {"size": sizes.small},
        "tickangle": 0,
        "ticks": "",
    }
