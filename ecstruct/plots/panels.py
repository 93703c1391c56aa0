"""Panels of cells on a grid, laid out in pixels: what heatmap and head map are made of.

Figures are sized from what they show, so that cells stay readable and text never meets text: the
panels' sizes are chosen in pixels first, and the figure is as large as they need. Layer 0 is at
the bottom. A cell that is marked has a dot: dark with a light rim, so that it is seen on every
colour, and in print.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.style import CHARACTER, FONT_SIZE, INK, TEMPLATE, colour_scale, number

Scale = Literal["symmetric", "paper"]

PAPER_FLOOR = -0.25
"""The lower end of the paper's scale, as a share of the panel's maximum."""

_BAR = 10  # width of a colour bar
_BAR_TEXT = 54  # of its numbers
_TITLE = 22  # a line of title, or of the note below
_DOT = 4  # diameter of a mark, within cells of 9 pixels and more
_UPRIGHT = 2  # characters of the longest label that is not turned
TAG = re.compile("</?(i|span[^>]*)>")


@dataclass(frozen=True)
class Panel:
    """One grid of values (layer, column), NaN where there is none, and how to speak of it."""

    values: np.ndarray
    layers: Sequence[int]
    columns: Sequence[str]  # labels of the columns, which may repeat; HTML
    hover: np.ndarray  # (layer, column), HTML
    bar_title: str
    marked: np.ndarray | None = None  # (layer, column), whether a cell gets a dot


@dataclass(frozen=True)
class Column:
    """Panels that share the columns' labels, one above the other, under a title."""

    title: str
    panels: Sequence[Panel]
    column_axis: str
    first_of_group: bool = False  # its panels show the layers' numbers
    numbered: bool = False  # labels count, so that some may be left out


def panel_figure(
    columns: Sequence[Column],
    rows: Sequence[str],
    *,
    scale: Scale,
    groups: Sequence[tuple[str, int]] = (),
    note: str = "",
) -> go.Figure:
    """A figure of `columns` side by side; `rows` name the panels of each from top to bottom.

    Args:
        scale: "symmetric": from minus the panel's largest absolute value to plus it. "paper":
            from -0.25 times the panel's maximum to the maximum; what is below is clipped.
        groups: A title above so many columns, from left to right.
        note: What a dot means, below the panels.
    """
    most_layers = max(len(panel.layers) for column in columns for panel in column.panels)
    height = float(np.clip(most_layers * 26, 120, max(170, most_layers * 9)))
    widths = [_panel_width(column) for column in columns]
    hang = max(_hang(column) for column in columns)

    left = max(92.0, hang + 20)
    lefts: list[float] = []
    x = left
    for i, (column, width) in enumerate(zip(columns, widths, strict=True)):
        if i and column.first_of_group:
            x += 62  # the numbers and the title of its layers
        lefts.append(x)
        x += width + _BAR + _BAR_TEXT + 22
    lines = max((title.count("<br>") + 1 for title, _ in groups), default=0)
    top = 14 + _TITLE + (_TITLE * lines + 6 if groups else 0)
    below = hang + _TITLE + 10
    bottom = below + (_TITLE if note else 0)
    gap = 20
    inner = len(rows) * height + (len(rows) - 1) * gap
    right = 18
    figure = go.Figure()
    layout = _Canvas(left, x - left, inner)

    for i, column in enumerate(columns):
        for j, panel in enumerate(column.panels):
            box = _Box(lefts[i], widths[i], (len(rows) - 1 - j) * (height + gap), height)
            name = str(i * len(rows) + j + 1)
            figure.add_trace(_trace(panel, name, scale, box, layout))
            if panel.marked is not None and panel.marked.any():
                figure.add_trace(_dots(panel, panel.marked, name))
            figure.update_layout(
                _axes(
                    panel,
                    name,
                    box,
                    layout,
                    column=column if j == len(rows) - 1 else None,
                    standoff=6 + hang - _hang(column),
                    row_title=rows[j] if i == 0 else "",
                    show_layers=i == 0 or column.first_of_group,
                )
            )
        figure.add_annotation(layout.title(column.title, lefts[i] + widths[i] / 2, 4))
    first = 0
    for title, size in groups:
        last = first + size - 1
        middle = (lefts[first] + lefts[last] + widths[last]) / 2
        figure.add_annotation(layout.title(f"<b>{title}</b>", middle, 4 + _TITLE, FONT_SIZE + 3))
        first += size
    if note:
        figure.add_annotation(layout.note(f"● {note}", below))
    figure.update_layout(
        template=TEMPLATE,
        width=round(x + right),
        height=round(top + inner + bottom),
        margin={"l": left, "r": right, "t": top, "b": bottom, "autoexpand": False},
    )
    return figure


@dataclass(frozen=True)
class _Box:
    """Where a panel is, in pixels from the left edge and from the bottom of the lowest panel."""

    left: float
    width: float
    bottom: float
    height: float


@dataclass(frozen=True)
class _Canvas:
    """Plotly measures in shares of the area within the margins; this translates from pixels."""

    left: float
    width: float
    height: float

    def x(self, pixels: float) -> float:
        return (pixels - self.left) / self.width

    def y(self, pixels: float) -> float:
        return pixels / self.height

    def title(self, text: str, middle: float, above: float, size: int = FONT_SIZE + 1) -> dict[str, Any]:
        return {
            "text": text,
            "x": self.x(middle),
            "y": 1,
            "xref": "paper",
            "yref": "paper",
            "xanchor": "center",
            "yanchor": "bottom",
            "yshift": above,
            "showarrow": False,
            "font": {"size": size},
        }

    def note(self, text: str, below: float) -> dict[str, Any]:
        return {
            "text": text,
            "x": 0,
            "y": 0,
            "xref": "paper",
            "yref": "paper",
            "xanchor": "left",
            "yanchor": "top",
            "yshift": -below,
            "showarrow": False,
            "font": {"size": FONT_SIZE - 1},
        }


def _panel_width(column: Column) -> float:
    n_columns = len(column.panels[0].columns)
    # Labels at 45 degrees need 16 pixels each; few columns get wider cells.
    narrowest = 10 if column.numbered else 16
    return float(np.clip(n_columns * 24, 130, max(290, n_columns * narrowest)))


def _hang(column: Column) -> float:
    """How far the labels of a column reach below its lowest panel, and to the left of it."""
    longest = longest_label(column)
    return 16 + (longest * CHARACTER * 0.71 if longest > _UPRIGHT else 4)


def longest_label(column: Column) -> int:
    """Characters of the longest of a column's labels."""
    return max(map(label_length, column.panels[0].columns))


def label_length(label: str) -> int:
    """The characters of a label that are seen.

    >>> label_length("<i>X</i>"), label_length("&lt;s&gt;")
    (1, 3)
    """
    return len(unescape(TAG.sub("", label)))


def limits(values: np.ndarray, scale: Scale) -> tuple[float, float]:
    """The lower and upper end of a panel's colour scale."""
    if scale not in ("symmetric", "paper"):
        raise InputError(f"scale={scale!r} is unknown; it is 'symmetric' or 'paper'")
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max()) if finite.size else 0.0
    if scale == "paper" and finite.size and finite.max() > 0:
        return PAPER_FLOOR * float(finite.max()), float(finite.max())
    # Nothing to see is shown as white, whatever the unit.
    top = largest or 1.0
    return (PAPER_FLOOR * top if scale == "paper" else -top), top


def _trace(panel: Panel, name: str, scale: Scale, box: _Box, canvas: _Canvas) -> go.Heatmap:
    low, high = limits(panel.values, scale)
    ticks = [low, 0.0, high / 2, high] if scale == "paper" else [low, low / 2, 0.0, high / 2, high]
    texts = [number(tick) for tick in ticks]
    if panel.values[np.isfinite(panel.values)].min(initial=0.0) < low:
        texts[0] = f"≤ {texts[0]}"
    return go.Heatmap(
        z=panel.values,
        x=list(range(len(panel.columns))),
        y=list(panel.layers),
        xaxis=f"x{name}",
        yaxis=f"y{name}",
        zmin=low,
        zmax=high,
        colorscale=colour_scale(low / high),
        xgap=1,
        ygap=1,
        hoverongaps=False,
        text=panel.hover,
        hovertemplate="%{text}<extra></extra>",
        colorbar={
            "x": canvas.x(box.left + box.width + 5),
            "xanchor": "left",
            "xpad": 0,
            "y": canvas.y(box.bottom + box.height / 2),
            "yanchor": "middle",
            "ypad": 0,
            "len": box.height,
            "lenmode": "pixels",
            "thickness": _BAR,
            "outlinewidth": 0,
            "tickvals": ticks,
            "ticktext": texts,
            "tickfont": {"size": FONT_SIZE - 2},
            "ticks": "outside",
            "ticklen": 2,
            "title": {
                "text": panel.bar_title,
                "side": "right",
                "font": {"size": FONT_SIZE - 2},
            },
        },
    )


def _dots(panel: Panel, marked: np.ndarray, name: str) -> go.Scatter:
    rows, columns = np.nonzero(marked)
    return go.Scatter(
        x=columns,
        y=np.array(panel.layers)[rows],
        xaxis=f"x{name}",
        yaxis=f"y{name}",
        mode="markers",
        marker={"size": _DOT, "color": INK, "line": {"color": "white", "width": 1}},
        hoverinfo="skip",
        showlegend=False,
    )


def _axes(
    panel: Panel,
    name: str,
    box: _Box,
    canvas: _Canvas,
    *,
    column: Column | None,
    standoff: float,
    row_title: str,
    show_layers: bool,
) -> dict[str, Any]:
    """Both axes of a panel. Labels are below the lowest panel of a `column`, None for others."""
    n_columns, layers = len(panel.columns), list(panel.layers)
    layer_step = step(box.height / len(layers), 13)
    column_step = step(box.width / n_columns, 20) if column and column.numbered else 1
    upright = column is None or longest_label(column) <= _UPRIGHT
    title = f"<b>{row_title}</b><br>layer" if row_title else "layer"
    return {
        f"xaxis{name}": {
            "domain": [canvas.x(box.left), canvas.x(box.left + box.width)],
            "anchor": f"y{name}",
            "range": [-0.5, n_columns - 0.5],
            "tickvals": list(range(0, n_columns, column_step)),
            "ticktext": list(panel.columns[::column_step]),
            "tickangle": 0 if upright else -45,
            "showticklabels": column is not None,
            "ticks": "outside" if column else "",
            "title": {"text": column.column_axis if column else "", "standoff": standoff},
        },
        f"yaxis{name}": {
            "domain": [canvas.y(box.bottom), canvas.y(box.bottom + box.height)],
            "anchor": f"x{name}",
            "range": [min(layers) - 0.5, max(layers) + 0.5],
            "tickvals": [layer for layer in layers if layer % layer_step == 0],
            "showticklabels": show_layers,
            "ticks": "outside" if show_layers else "",
            "title": {"text": title if show_layers else "", "standoff": 8},
        },
    }


def step(pixels: float, needed: float) -> int:
    """Every how many cells there is room for a label."""
    return next((step for step in (1, 2, 4, 5, 8, 10, 16, 20, 50) if step * pixels > needed), 100)
