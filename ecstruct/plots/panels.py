"""Panels of coloured cells, layer by column, in rows and columns: what heatmaps and head maps are made of.

Layer 0 is at the bottom. A cell that is marked has a dot: dark with a light rim, so that it is seen on
every colour, and in print.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import unescape
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.layout import note, pixel_grid
from ecstruct.plots.style import CELLS, CHARACTER, FONT_SIZE, INK, colour_scale, number

Scale = Literal["symmetric", "paper"]

PAPER_FLOOR = -0.25
"""The lower end of the paper's scale, as a share of the panel's maximum."""

_BAR = 10  # width of a colour bar
_BAR_TEXT = 54  # of its numbers
_TITLE = 22  # a line of title, or of the note below
_TEXT = CHARACTER * (FONT_SIZE - 2) / FONT_SIZE  # width of a character of `Column.texts`
_DOT = 4  # diameter of a mark, within cells of 9 pixels and more
UPRIGHT = 2
"""The characters of the longest label up to which labels are not turned."""

TAG = re.compile("</?(i|span[^>]*)>")


@dataclass(frozen=True)
class Panel:
    """A panel is one grid of values with the words for them.

    Attributes:
        values: (layer, column), NaN where there is none.
        layers: The layers' numbers.
        columns: The labels of the columns as HTML; labels may repeat.
        bar_title: The title of the colour bar.
        describe: What hovering says of a cell as HTML, from its layer, column, value and the two's indices.
        marked: Whether a cell has a dot, (layer, column).
    """

    values: np.ndarray
    layers: Sequence[int]
    columns: Sequence[str]
    bar_title: str = ""
    describe: Callable[[int, str, float, int, int], str] = field(default=lambda *_: "")
    marked: np.ndarray | None = None

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
        first_of_group: Whether its panels show the layers' numbers.
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


def panel_figure(
    columns: Sequence[Column],
    rows: Sequence[str],
    *,
    scale: Scale,
    groups: Sequence[tuple[str, int]] = (),
    meaning: str = "",
) -> go.Figure:
    """Draw `columns` of panels side by side; `rows` name the panels of each from top to bottom.

    Args:
        scale: "symmetric": from minus the panel's largest absolute value to plus it. "paper":
            from -0.25 times the panel's maximum to the maximum; what is below is clipped.
        groups: A title above so many columns, from left to right.
        meaning: What a dot means, written below the panels.
    """
    most_layers = max(len(panel.layers) for column in columns for panel in column.panels)
    smallest = 12 if any(column.texts for column in columns) else 9
    height = float(np.clip(most_layers * 26, 120, max(170, most_layers * smallest)))
    hang = max(map(_hang, columns))
    right = _BAR + _BAR_TEXT + 22
    lines = max((title.count("<br>") + 1 for title, _ in groups), default=0)
    below = hang + _TITLE + 10
    on_right = [right + column.texts_width for column in columns]
    figure = pixel_grid(
        [_panel_width(column) for column in columns],
        height,
        # 62 pixels take the numbers and the title of the layers of a group.
        lefts=[
            max(92.0, hang + 20),
            *(r + 62 * column.first_of_group for r, column in zip(on_right, columns[1:], strict=False)),
        ],
        right=on_right[-1] + 18,
        top=14 + _TITLE + (_TITLE * lines + 6 if groups else 0),
        bottom=below + (_TITLE if meaning else 0),
        titles=[column.title for column in columns],
        rows=len(rows),
        gap=20,
        template=CELLS,
    )
    add_group_titles(figure, groups, yshift=4 + _TITLE, size=FONT_SIZE + 3)
    if meaning:
        style = {"xanchor": "left", "yanchor": "top", "yshift": -below, "font_size": FONT_SIZE - 1}
        figure.add_annotation(note(f"● {meaning}", x=0, y=0, **style))
    for column, panel, row, place in panels_of(columns, rows):
        (subplot,) = figure.select_xaxes(**place)
        (up,) = figure.select_yaxes(**place)
        bar = _colour_bar(panel, scale, subplot.domain[1], sum(up.domain) / 2, height)
        bar["xpad"] += column.texts_width
        figure.add_trace(_cells(panel, scale, bar), **place)
        if panel.marked is not None and panel.marked.any():
            figure.add_trace(dots(panel.marked, panel.layers, _DOT), **place)
        lowest, first = place["row"] == len(rows), place["col"] == 1
        if column.texts and lowest:
            figure.add_trace(_texts(column.texts, panel), **place)
        tick_steps = step(height / len(panel.layers), 13), 1
        if column.numbered:
            width = _panel_width(column)
            tick_steps = tick_steps[0], step(width / len(panel.columns), 20)
        level = column.longest_label <= UPRIGHT
        x_axis, y_axis = cell_axes(
            panel,
            tick_steps,
            labelled=lowest,
            angle=0 if level else -45,
            layered=first or column.first_of_group,
            row_title=row if first else "",
        )
        standoff = 6 + hang - _hang(column)
        title = {"text": column.column_axis, "standoff": standoff} if lowest else {}
        figure.update_xaxes(**x_axis, title=title, **place)
        figure.update_yaxes(**y_axis, **place)
    return figure


def panels_of(
    columns: Sequence[Column], rows: Sequence[str]
) -> Iterator[tuple[Column, Panel, str, dict[str, Any]]]:
    """Yield every panel with its column, the name of its row and its place in the grid, by columns."""
    for i, column in enumerate(columns):
        for j, (panel, row) in enumerate(zip(column.panels, rows, strict=True)):
            yield column, panel, row, {"row": j + 1, "col": i + 1}


def add_group_titles(
    figure: go.Figure, groups: Sequence[tuple[str, int]], *, yshift: float, size: float
) -> None:
    """Write each title above the middle of its columns, from left to right."""
    first = 1
    for title, n_columns in groups:
        (left,), (right,) = (figure.select_xaxes(row=1, col=col) for col in (first, first + n_columns - 1))
        middle = (left.domain[0] + right.domain[1]) / 2
        style = {"xanchor": "center", "yanchor": "bottom", "yshift": yshift, "font_size": size}
        figure.add_annotation(note(f"<b>{title}</b>", x=middle, y=1, **style))
        first += n_columns


def cell_axes(
    panel: Panel,
    tick_steps: tuple[int, int],
    *,
    labelled: bool,
    angle: int,
    layered: bool,
    row_title: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the x and y axis of a panel, with labels of columns if `labelled`, of layers if `layered`.

    `tick_steps` says of every how many layers, and columns, there is a label.
    """
    n_columns, layers = len(panel.columns), list(panel.layers)
    layer_step, column_step = tick_steps
    title = f"<b>{row_title}</b><br>layer" if row_title else "layer"
    x_axis = {
        "range": [-0.5, n_columns - 0.5],
        "tickvals": list(range(0, n_columns, column_step)),
        "ticktext": list(panel.columns[::column_step]),
        "tickangle": angle if labelled else 0,
        "showticklabels": labelled,
        "ticks": "outside" if labelled else "",
    }
    y_axis = {
        "range": [min(layers) - 0.5, max(layers) + 0.5],
        "tickvals": [layer for layer in layers if layer % layer_step == 0],
        "showticklabels": layered,
        "ticks": "outside" if layered else "",
        "title_text": title if layered else "",
    }
    return x_axis, y_axis


def dots(marked: np.ndarray, layers: Sequence[int], size: float) -> go.Scatter:
    """Draw a dot of `size` pixels on every cell (layer, column) that is marked."""
    rows, columns = np.nonzero(marked)
    return go.Scatter(
        x=columns,
        y=np.array(layers)[rows],
        mode="markers",
        marker={"size": size, "color": INK, "line": {"color": "white", "width": 1}},
        hoverinfo="skip",
        showlegend=False,
    )


def label_length(label: str) -> int:
    """Count the characters of a label that are seen.

    >>> label_length("<i>X</i>"), label_length("&lt;s&gt;")
    (1, 3)
    """
    return len(unescape(TAG.sub("", label)))


def limits(values: np.ndarray, scale: Scale) -> tuple[float, float]:
    """Return the lower and upper end of a panel's colour scale."""
    if scale not in ("symmetric", "paper"):
        raise InputError(f"scale={scale!r} is unknown; it is 'symmetric' or 'paper'")
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max()) if finite.size else 0.0
    if scale == "paper" and finite.size and finite.max() > 0:
        return PAPER_FLOOR * float(finite.max()), float(finite.max())
    # Nothing to see is shown as white, whatever the unit.
    top = largest or 1.0
    return (PAPER_FLOOR * top if scale == "paper" else -top), top


def lowest_text(panel: Panel, low: float) -> str:
    """Return the number at the lower end of a colour bar, with ≤ if values below it are clipped."""
    clipped = panel.values[np.isfinite(panel.values)].min(initial=0.0) < low
    return f"≤ {number(low)}" if clipped else number(low)


def step(pixels: float, needed: float) -> int:
    """Return every how many cells there is room for a label."""
    return next((step for step in (1, 2, 4, 5, 8, 10, 16, 20, 50) if step * pixels > needed), 100)


def _panel_width(column: Column) -> float:
    """Return the width of a column's panels in pixels; few columns get wider cells."""
    n_columns = len(column.panels[0].columns)
    narrowest = 10 if column.numbered else 16  # what labels at 45 degrees need
    return float(np.clip(n_columns * 24, 130, max(290, n_columns * narrowest)))


def _hang(column: Column) -> float:
    """Return how far the labels of a column reach below its lowest panel, and to the left of it."""
    longest = column.longest_label
    return 16 + (longest * CHARACTER * 0.71 if longest > UPRIGHT else 4)


def _cells(panel: Panel, scale: Scale, bar: dict[str, Any]) -> go.Heatmap:
    """Draw the cells of a panel with their colour bar."""
    low, high = limits(panel.values, scale)
    return go.Heatmap(
        z=panel.values,
        x=list(range(len(panel.columns))),
        y=list(panel.layers),
        zmin=low,
        zmax=high,
        colorscale=colour_scale(low / high),
        text=panel.hover(),
        hovertemplate="%{text}<extra></extra>",
        colorbar=bar,
    )


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


def _colour_bar(panel: Panel, scale: Scale, edge: float, middle: float, height: float) -> dict[str, Any]:
    """Return the colour bar on the right of a panel that ends at `edge`, of the panel's height."""
    low, high = limits(panel.values, scale)
    ticks = [low, 0.0, high / 2, high] if scale == "paper" else [low, low / 2, 0.0, high / 2, high]
    return {
        "x": edge,
        "xanchor": "left",
        "xpad": 5,
        "y": middle,
        "yanchor": "middle",
        "ypad": 0,
        "len": height,
        "lenmode": "pixels",
        "thickness": _BAR,
        "outlinewidth": 0,
        "tickvals": ticks,
        "ticktext": [lowest_text(panel, low), *map(number, ticks[1:])],
        "tickfont": {"size": FONT_SIZE - 2},
        "ticks": "outside",
        "ticklen": 2,
        "title": {"text": panel.bar_title, "side": "right", "font": {"size": FONT_SIZE - 2}},
    }
