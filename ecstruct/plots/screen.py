"""Panels of cells for the screen: as large as what they show needs, with a text on hovering over a cell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go

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
from ecstruct.plots.style import CHARACTER, FONT_SIZE, colour_scale

_BAR = 8  # thickness of a colour bar
_GAP = 24  # between two columns
_NUMBERS = 62  # what the numbers and the title of the layers of a further group take
_LINE = 22  # a line of title, or of the note below
_DOT = 4  # diameter of a mark, within cells of 9 pixels and more


def panel_figure(
    columns: Sequence[Column], rows: Sequence[str], *, scale: Scale, groups: Groups = (), meaning: str = ""
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
    hang = max(map(_hang, columns))
    between = [
        _GAP + left.texts_width + _NUMBERS * column.first_of_group for left, column in pairwise(columns)
    ]
    lefts = [max(92.0, hang + 20), *between]
    sizes = Sizes(
        widths=_widths(columns, lefts, groups),
        height=float(np.clip(most_layers * 26, 120, max(170, most_layers * smallest))),
        lefts=lefts,
        right=_GAP + columns[-1].texts_width,
        below=hang,
        angles=[0 if column.longest_label <= UPRIGHT else -45 for column in columns],
        group=FONT_SIZE + 3,
        heading=FONT_SIZE + 1,
        label=FONT_SIZE,
        small=FONT_SIZE - 2,
        line=_LINE,
        bar=_BAR,
    )

    def cells(panel: Panel, low: float, high: float, bar: dict[str, Any]) -> list[Any]:
        drawn: list[Any] = [
            go.Heatmap(
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
        ]
        if panel.marked is not None and panel.marked.any():
            drawn.append(dots(panel.marked, panel.layers, _DOT))
        return drawn

    notes = [units(columns), *([f"● {meaning}"] if meaning else [])]
    return draw_panels(columns, rows, sizes, cells, scale=scale, groups=groups, notes=notes)


def _widths(columns: Sequence[Column], lefts: Sequence[float], groups: Groups) -> list[float]:
    """Return the width of each column's panels, which cells, its heading and the title of its group need.
    Few cells are wider than many."""
    widths = []
    for column in columns:
        n_cells = len(column.panels[0].columns)
        narrowest = 10 if column.numbered else 16  # what labels at 45 degrees need
        cells = float(np.clip(n_cells * 24, 130, max(290, n_cells * narrowest)))
        widths.append(max(cells, 1.1 * CHARACTER * label_length(column.title)))
    first = 0
    for title, n_columns in groups:
        last = first + n_columns
        needed = 1.35 * CHARACTER * max(map(label_length, title.split("<br>")))
        lacking = needed - sum(widths[first:last]) - sum(lefts[first + 1 : last])
        widths[first:last] = [width + max(lacking, 0.0) / n_columns for width in widths[first:last]]
        first = last
    return widths


def _hang(column: Column) -> float:
    """Return how far the labels of a column reach below its lowest panel, and to the left of it."""
    longest = column.longest_label
    return 16 + (longest * CHARACTER * 0.71 if longest > UPRIGHT else 4)
