"""Tables whose cells are coloured by their values, side by side on one scale."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.beside import BAR_WIDTH, axes_of, colour_bar, side_by_side, text_width
from ecstruct.plots.style import EMPTY, INK

COLOURS = ("#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6")
"""ColorBrewer's Blues without its darkest, so that the numbers are read on all of them."""


def value_grids(
    panels: Mapping[str, pd.DataFrame], *, x: str, y: str, value: str, reversed_scale: bool = False
) -> go.Figure:
    """A table per frame, its first row on top, with the number in each cell.

    All panels share one scale, from 0 to the largest value of them all; what is negative has the
    colour of 0. Cells without a value are grey.

    Args:
        panels: By title, frames whose index names the rows and whose columns name the columns.
        x, y: What columns and rows are, with their units.
        value: What the cells are, with its unit: the title of the colour bar.
        reversed_scale: Dark is low rather than high, as for ranks, of which 0 is the best.

    Raises:
        InputError: nothing to show.
    """
    grids = {title: frame.to_numpy(dtype=float) for title, frame in panels.items()}
    if not grids or not all(np.isfinite(grid).any() for grid in grids.values()):
        raise InputError("there are no values to show; give each panel at least one")
    largest = max(float(np.nanmax(grid)) for grid in grids.values())
    top = largest if largest > 0 else 1.0
    # Three digits of the largest, and two decimals where that is a rank or a share.
    decimals = max(2 if top < 100 else 0, 2 - int(np.floor(np.log10(top))))

    figure = go.Figure()
    widths: list[float] = []
    for i, (title, grid) in enumerate(grids.items()):
        columns, rows = _labels(panels[title].columns), _labels(panels[title].index)
        texts = [[f"{cell:.{decimals}f}".replace("-", "−") for cell in row] for row in grid]
        texts = [["" if text == "nan" else text for text in row] for row in texts]
        cell = max(text_width(text) for text in [*columns, *(text for row in texts for text in row)]) + 18
        widths.append(max(cell, 46) * len(columns))
        figure.add_trace(
            go.Heatmap(
                z=grid.tolist(),
                # Places, not names: names may repeat, and numbers would be taken for places.
                x=list(range(len(columns))),
                y=list(range(len(rows))),
                text=texts,
                texttemplate="%{text}",
                textfont={"color": INK},
                coloraxis="coloraxis",
                xgap=1,
                ygap=1,
                hoverongaps=False,
                customdata=[[[row, column] for column in columns] for row in rows],
                hovertemplate=f"{escape(y, quote=False)}: %{{customdata[0]}}"
                f"<br>{escape(x, quote=False)}: %{{customdata[1]}}"
                f"<br>{escape(value, quote=False)}: %{{z:.3~g}}<extra></extra>",
                **axes_of(i),
            )
        )
        figure.update_layout(
            {
                f"xaxis{i + 1}": {
                    "range": [-0.5, len(columns) - 0.5],
                    "tickvals": list(range(len(columns))),
                    "ticktext": columns,
                    "tickangle": 0,
                },
                f"yaxis{i + 1}": {
                    "range": [len(rows) - 0.5, -0.5],
                    "tickvals": list(range(len(rows))),
                    "ticktext": rows,
                },
            }
        )
    names = max(text_width(label) for frame in panels.values() for label in _labels(frame.index))
    side_by_side(
        figure,
        list(grids),
        x=[x] * len(grids),
        y=y,
        widths=widths,
        height=max(30 * max(len(grid) for grid in grids.values()), text_width(value) + 10, 120),
        left=names + 48,
        gap=names + 30,
        right=BAR_WIDTH,
    )
    return figure.update_layout(
        plot_bgcolor=EMPTY,  # shows where there is no value
        coloraxis={
            "colorscale": COLOURS,
            "reversescale": reversed_scale,
            "cmin": 0,
            "cmax": top,
            "colorbar": colour_bar(value),
        },
    )


def _labels(index: pd.Index) -> list[str]:
    """Names of rows or columns as HTML, 1e-05 rather than 0.00001."""
    return [
        f"{label:g}" if isinstance(label, float) else escape(str(label), quote=False) for label in index
    ]
