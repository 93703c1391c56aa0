"""Tables whose cells are coloured by their values, side by side on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.layout import BAR_WIDTH, axes_of, colour_bar, side_by_side, text_width
from ecstruct.plots.style import CELLS, INK

COLOURS = ("#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6")
"""ColorBrewer's Blues without the darkest, so that numbers can be read on all of them."""


def value_grids(
    panels: Mapping[str, pd.DataFrame], *, x: str, y: str, value: str, reversed_scale: bool = False
) -> go.Figure:
    """Draw a table per frame, its first row on top, with the number in each cell.

    All panels share one scale, from 0 to the largest value of them all; what is negative has the
    colour of 0. Cells without a value are grey.

    Args:
        panels: By title, frames whose index names the rows and whose columns name the columns.
        x, y: What columns and rows are, with their units.
        value: What the cells are, with its unit: the title of the colour bar.
        reversed_scale: Dark is low rather than high, as for ranks, of which 0 is the best.

    Raises:
        InputError: There is nothing to show.
    """
    grids = {title: frame.to_numpy(dtype=float) for title, frame in panels.items()}
    if not grids or not all(np.isfinite(grid).any() for grid in grids.values()):
        raise InputError("there are no values to show; give each panel at least one")
    largest = max(float(np.nanmax(grid)) for grid in grids.values())
    top = largest if largest > 0 else 1.0
    # Numbers have three digits of the largest value, and two decimals if that is a rank or a share.
    decimals = max(2 if top < 100 else 0, 2 - int(np.floor(np.log10(top))))
    texts = {
        title: [[_text(cell, decimals) for cell in row] for row in grid] for title, grid in grids.items()
    }
    columns = [_labels(frame.columns) for frame in panels.values()]
    rows = [_labels(frame.index) for frame in panels.values()]
    widths = []
    for labels, cells in zip(columns, texts.values(), strict=True):
        widest = max(text_width(text) for text in [*labels, *(text for row in cells for text in row)])
        widths.append(max(widest + 18, 46) * len(labels))
    names = max(text_width(label) for labels in rows for label in labels)
    figure = side_by_side(
        list(grids),
        x=x,
        y=y,
        widths=widths,
        height=max(30 * max(len(grid) for grid in grids.values()), text_width(value) + 10, 120),
        left=names + 48,
        gap=names + 30,
        right=BAR_WIDTH,
        template=CELLS,
    )
    hover = "<br>".join(
        f"{escape(name, quote=False)}: %{{{place}}}"
        for name, place in ((y, "customdata[0]"), (x, "customdata[1]"), (value, "z:.3~g"))
    )
    for i, (title, grid) in enumerate(grids.items()):
        figure.add_heatmap(
            z=grid.tolist(),
            # Cells are at places, not names: names may repeat, and numbers would be taken for places.
            x=list(range(len(columns[i]))),
            y=list(range(len(rows[i]))),
            text=texts[title],
            texttemplate="%{text}",
            textfont={"color": INK},
            coloraxis="coloraxis",
            customdata=[[[row, column] for column in columns[i]] for row in rows[i]],
            hovertemplate=f"{hover}<extra></extra>",
            **axes_of(i),
        )
        up = named_axis(rows[i])
        axes = {f"xaxis{i + 1}": named_axis(columns[i]), f"yaxis{i + 1}": up | {"range": up["range"][::-1]}}
        figure.update_layout(axes)
    return figure.update_layout(coloraxis=blues(top, value, reversescale=reversed_scale))


def named_axis(labels: Sequence[str], shown: Sequence[int] | None = None) -> dict[str, Any]:
    """Return an axis of cells with their labels, or with those at the places `shown` only."""
    shown = range(len(labels)) if shown is None else shown
    return {
        "range": [-0.5, len(labels) - 0.5],
        "tickvals": list(shown),
        "ticktext": [labels[place] for place in shown],
        "tickangle": 0,
    }


def blues(top: float, title: str, *, reversescale: bool = False, **bar: Any) -> dict[str, Any]:
    """Return the colours that all panels share, from 0 to `top`; `bar` has options of the colour bar."""
    return {
        "colorscale": COLOURS,
        "reversescale": reversescale,
        "cmin": 0,
        "cmax": top,
        "colorbar": colour_bar(title, **bar),
    }


def _text(value: float, decimals: int) -> str:
    """Return the number in a cell as text, or nothing if it has none."""
    return "" if np.isnan(value) else f"{value:z.{decimals}f}".replace("-", "−")


def _labels(index: pd.Index) -> list[str]:
    """Return the names of rows or columns as HTML, 1e-05 rather than 0.00001."""
    return [
        f"{label:g}" if isinstance(label, float) else escape(str(label), quote=False) for label in index
    ]
