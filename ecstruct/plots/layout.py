"""Where the panels of a figure are: plotly's subplots, measured in pixels.

A figure is as large as what it shows needs, so that cells stay readable and text never meets text. Sizes
are therefore chosen in pixels; plotly measures in shares of the area within the margins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ecstruct.plots.style import CHARACTER, FONT_SIZE, LINES

BAR_WIDTH = 100
"""The pixels that a colour bar with its numbers and its title takes on the right of the panels."""

PAGE_WIDTH = 1240
"""The pixels of a figure that a report shows whole in a window of 1300."""

_LINE = 20  # height of a line of title
_KEY = 24  # of what symbols mean, above the titles


def pixel_grid(
    widths: Sequence[float],
    height: float,
    *,
    lefts: Sequence[float],
    right: float,
    top: float,
    bottom: float,
    titles: Sequence[str] = (),
    rows: int = 1,
    gap: float = 0,
    panels: int | None = None,
    template: go.layout.Template = LINES,
) -> go.Figure:
    """Return an empty figure with a grid of subplots; all sizes are in pixels.

    Args:
        widths: The width of each column of panels.
        height: The height of every panel.
        lefts: The free space on the left of each column; that of the first is the margin.
        right, top, bottom: The other margins.
        titles: HTML above the panels, row by row; titles that are left out are empty.
        rows: The number of rows.
        gap: The free space between two rows.
        panels: The number of panels, row by row, if the last row is not full.
        template: The template of the figure.
    """
    columns, inner = len(widths), sum(widths) + sum(lefts[1:])
    high = rows * height + (rows - 1) * gap
    spaces = [0.0, *lefts[1:]]
    # Without "r", rounding may end the last panel a little above 1, which plotly refuses.
    cells = [{"l": space / inner, "r": 1e-12} for space in spaces]
    figure = make_subplots(
        rows,
        columns,
        specs=[
            [cell if panels is None or row * columns + i < panels else None for i, cell in enumerate(cells)]
            for row in range(rows)
        ],
        column_widths=[width + space for width, space in zip(widths, spaces, strict=True)],
        horizontal_spacing=0,
        vertical_spacing=gap / high,
        subplot_titles=titles,
    )
    figure.update_annotations(font_size=FONT_SIZE + 1, yshift=4)
    return figure.update_layout(
        template=template,
        width=round(lefts[0] + inner + right),
        height=round(top + high + bottom),
        margin={"l": lefts[0], "r": right, "t": top, "b": bottom, "autoexpand": False},
    )


def side_by_side(
    titles: Sequence[str],
    *,
    x: str,
    y: str,
    widths: Sequence[float],
    height: float,
    right: float,
    subtitles: Sequence[str] = (),
    left: float = 76,
    gap: float = 56,
    key: str = "",
    template: go.layout.Template = LINES,
) -> go.Figure:
    """Return an empty figure with a panel per title; axes have the numbers of their panels.

    All text is escaped here. Panels grow where a title needs more room, and stand in as many rows as it
    takes for the figure to fit `PAGE_WIDTH`.

    Args:
        titles, subtitles: The lines above each panel, which takes no room for those that are empty in all.
        x: The title of every x axis.
        y: The title of the y axis, on the left of the first panel of a row.
        widths, height: The size of the panels in pixels.
        left, gap, right: The pixels on the left of the panels, between them and on the right of them.
        key: What symbols mean, as HTML above the titles.
        template: The template of the figure.
    """
    lines = [texts for texts in (titles, subtitles) if any(texts)]
    # Titles are bold and a size larger, hence the factor.
    longest = zip(*lines, [x] * len(widths), strict=True)
    needed = [1.15 * max(map(text_width, texts)) for texts in longest]
    widths = [max(pair) for pair in zip(widths, needed, strict=True)]
    in_row, columns = len(widths), widths
    for rows in range(1, len(widths) + 1):
        in_row = -(-len(widths) // rows)
        columns = [max(widths[column::in_row]) for column in range(in_row)]
        if left + sum(columns) + gap * (in_row - 1) + right <= PAGE_WIDTH + 1:
            break
    shown = [f"<b>{escape(title, quote=False)}</b>" if title else "" for title in titles]
    if len(lines) == 2:
        under = [escape(text, quote=False) or "&nbsp;" for text in subtitles]
        shown = [f"{title}<br>{text}" for title, text in zip(shown, under, strict=True)]
    titled = max(26, 14 + _LINE * len(lines))  # the button of a page stands above the legend
    bottom = 56
    figure = pixel_grid(
        columns,
        max(height, text_width(y) + 20),
        lefts=[left, *[gap] * (len(columns) - 1)],
        right=right,
        top=titled + (_KEY if key else 0),
        bottom=bottom,
        titles=shown,
        rows=-(-len(widths) // in_row),
        gap=titled + bottom,
        panels=len(widths),
        template=template,
    )
    if key:
        style = {"xanchor": "left", "yanchor": "bottom", "yshift": titled}
        figure.add_annotation(note(key, x=0, y=1, **style))
    inner = figure.layout.width - left - right
    figure.update_xaxes(title_text=escape(x, quote=False))
    figure.update_yaxes(title_text=escape(y, quote=False), col=1)
    legend = {"x": 1 + 16 / inner, "y": 1, "xanchor": "left", "yanchor": "top", "tracegroupgap": 0}
    return figure.update_layout(legend=legend)


def axes_of(panel: int) -> dict[str, str]:
    """Name the axes of a panel, counted from 0 and row by row, for a trace."""
    return {"xaxis": f"x{panel + 1}", "yaxis": f"y{panel + 1}"}


def text_width(text: str) -> float:
    """Return the width of a text in pixels, estimated on the wide side."""
    return CHARACTER * len(text)


def differing_parts(names: Sequence[Any]) -> list[str]:
    """Return, as HTML, what is left of names without the words with which all begin, and all end.

    >>> differing_parts(["run/epochs/2.safetensors", "run/epochs/10.safetensors"])
    ['2', '10']
    >>> differing_parts(["run@100", "run@100"]), differing_parts(["a run"])
    (['100', '100'], ['a run'])
    """
    words = [re.findall(r"\w+|\W", str(name)) for name in names]
    for end in (0, -1) if len(words) > 1 else ():
        while all(len(of) > 1 and of[end] == words[0][end] for of in words):
            words = [of[1:] if end == 0 else of[:-1] for of in words]
    return [escape("".join(of), quote=False) for of in words]


def legend_width(names: Sequence[str]) -> float:
    """Return the pixels that a legend takes, with its symbols and the space around it."""
    return 76 + max(map(text_width, names))


def note(text: str, *, x: float, y: float, **options: Any) -> dict[str, Any]:
    """Return an annotation without an arrow, placed in shares of the area within the margins."""
    return {"text": text, "x": x, "y": y, "xref": "paper", "yref": "paper", "showarrow": False, **options}


def colour_bar(title: str, **options: Any) -> dict[str, Any]:
    """Return a colour bar on the right of the last panel and as high; it needs `BAR_WIDTH`."""
    return {
        "title": {"text": escape(title, quote=False), "side": "right"},
        "x": 1,
        "xanchor": "left",
        "xpad": 14,
        "len": 1,
        "ypad": 0,
        "thickness": 12,
        "outlinewidth": 0,
        **options,
    }
