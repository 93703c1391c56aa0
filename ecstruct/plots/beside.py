"""Panels side by side, laid out in pixels: wide enough for their text, in one row or several."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from ecstruct.plots.style import CHARACTER, FONT_SIZE, TEMPLATE

BAR_WIDTH = 100
"""Pixels right of the panels that a colour bar takes, its numbers and its title."""

PAGE_WIDTH = 1240
"""Pixels of a figure that a report shows whole in a window of 1300."""

_LINE = 20  # height of a line of title


def axes_of(panel: int) -> dict[str, str]:
    """The axes of a panel, counted from 0, as a trace names them."""
    return {"xaxis": f"x{panel + 1}", "yaxis": f"y{panel + 1}"}


def text_width(text: str) -> float:
    """The width of a text in pixels, on the wide side."""
    return CHARACTER * len(text)


def legend_width(names: Sequence[str]) -> float:
    """The pixels that a legend takes, its symbols and the space around it."""
    return 76 + max(map(text_width, names))


def fitting(widths: Sequence[float], *, left: float, gap: float, right: float) -> list[float]:
    """The widths of panels, less where they and what is beside them would be wider than a page."""
    room = PAGE_WIDTH - left - right - gap * (len(widths) - 1)
    share = min(1.0, room / sum(widths))
    return [width * share for width in widths]


def side_by_side(
    figure: go.Figure,
    titles: Sequence[str],
    *,
    x: Sequence[str],
    y: str,
    widths: Sequence[float],
    height: float,
    right: float,
    subtitles: Sequence[str] = (),
    left: float = 76,
    gap: float = 56,
    in_row: int | None = None,
    above: float = 0,
) -> None:
    """Give each panel its place and its titles, and the figure its size; text is escaped here.

    Args:
        titles, subtitles: Above each panel.
        x: The title of each panel's x axis.
        y: The title of the y axis, left of the first panel of a row.
        widths, height: Of the panels in pixels; they grow where a title needs more.
        left, gap, right: Pixels left of the panels, between them and right of them.
        in_row: How many panels are side by side; all of them by default.
        above: Pixels left free above the titles.
    """
    lines = [subtitles, titles] if any(subtitles) else [titles]  # upwards
    # Titles are bold and a size larger.
    needed = (1.15 * max(map(text_width, texts)) for texts in zip(x, *lines, strict=True))
    widths = [max(pair) for pair in zip(widths, needed, strict=True)]
    height = max(height, text_width(y) + 20)
    in_row = in_row or len(widths)
    columns = [max(widths[column::in_row]) for column in range(min(in_row, len(widths)))]
    rows = -(-len(widths) // in_row)
    titled, bottom = 14 + _LINE * len(lines), 56
    inner = sum(columns) + gap * (len(columns) - 1)
    across = rows * height + (rows - 1) * (titled + bottom)  # of the plot, from top to bottom
    for panel in range(len(widths)):
        row, column = divmod(panel, in_row)
        start = sum(columns[:column]) + gap * column
        low = (rows - 1 - row) * (height + titled + bottom)
        high = min((low + height) / across, 1.0)
        axes = {
            f"xaxis{panel + 1}": {
                "domain": [start / inner, min((start + columns[column]) / inner, 1.0)],
                "anchor": f"y{panel + 1}",
                "title": {"text": escape(x[panel], quote=False), "standoff": 8},
            },
            f"yaxis{panel + 1}": {
                "domain": [low / across, high],
                "anchor": f"x{panel + 1}",
                "title": {"text": "" if column else escape(y, quote=False), "standoff": 8},
            },
        }
        figure.update_layout(axes)
        for line, texts in enumerate(lines):
            text = escape(texts[panel], quote=False)
            middle = (start + columns[column] / 2) / inner
            figure.add_annotation(_above(middle, high, line, text, title=texts is titles))
    top = titled + above
    figure.update_layout(
        template=TEMPLATE,
        plot_bgcolor="white",
        width=round(left + inner + right),
        height=round(top + across + bottom),
        margin={"l": left, "r": right, "t": top, "b": bottom, "autoexpand": False},
        legend={"x": 1 + 16 / inner, "y": 1, "xanchor": "left", "yanchor": "top", "tracegroupgap": 0},
    )


def colour_bar(title: str, **more: Any) -> dict[str, Any]:
    """A colour bar right of the last panel and as high; it needs `BAR_WIDTH`."""
    return {
        "title": {"text": escape(title, quote=False), "side": "right"},
        "x": 1,
        "xanchor": "left",
        "xpad": 14,
        "len": 1,
        "ypad": 0,
        "thickness": 12,
        "outlinewidth": 0,
        **more,
    }


def _above(middle: float, y: float, line: int, text: str, *, title: bool) -> dict[str, Any]:
    return {
        "text": f"<b>{text}</b>" if title else text,
        "x": middle,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "center",
        "yanchor": "bottom",
        "yshift": 4 + _LINE * line,
        "showarrow": False,
        "font": {"size": FONT_SIZE + 1 if title else FONT_SIZE},
    }
