"""A report: one HTML file that holds all it shows, and opens anywhere, offline.

It has text, tables, figures and the command that makes it all again. plotly.js is in the file once,
whatever the number of figures; the page asks no network for anything, and its own security policy
forbids it to. All text is escaped. The page follows the reader's light or dark mode and fits a phone:
wide figures and tables scroll in their own place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ecstruct.io.files import write_text
from ecstruct.report.explorer import Explorer, explorer_script
from ecstruct.report.templates import render

_CONFIG = {"displaylogo": False, "responsive": False, "modeBarButtons": [["toImage"]]}
"""Of plotly's buttons only the one that keeps a picture is shown: others need a network or a mouse."""


@dataclass(frozen=True)
class Table:
    """A table of a report: the first column names the rows, and the index is not shown."""

    frame: pd.DataFrame
    caption: str = ""

    def html(self) -> str:
        """Return the table as a part of a page."""
        frame = self.frame
        columns = [
            {"name": column, "numeric": pd.api.types.is_numeric_dtype(frame[column])} for column in frame
        ]
        rows = [[_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
        return render("table.html", columns=columns, rows=rows, caption=self.caption)


@dataclass(frozen=True)
class Picture:
    """A plotly figure at its own size, with a caption that says what it shows."""

    figure: go.Figure
    caption: str = ""

    def html(self, name: str) -> str:
        """Return the figure as a part of a page; `name` is unique there."""
        drawing = self.figure.to_html(
            full_html=False, include_plotlyjs=False, include_mathjax=False, div_id=name, config=_CONFIG
        )
        return render("picture.html", drawing=drawing, caption=self.caption)


@dataclass(frozen=True)
class Replay:
    """What makes the same results again: a command, and the configuration that it reads."""

    command: str
    config: Mapping[str, Any] | None = None

    def html(self) -> str:
        """Return the command and the configuration as a part of a page."""
        config = [] if self.config is None else [json.dumps(self.config, indent=2, ensure_ascii=False)]
        return render("replay.html", blocks=[self.command, *config])


Item: TypeAlias = str | Table | Picture | Explorer | Replay
"""What a section may hold; text is a paragraph."""


@dataclass(frozen=True)
class Section:
    """A heading and what is under it, in order."""

    title: str
    items: Sequence[Item]


def write_report(
    path: str | os.PathLike[str], *, title: str, summary: str, sections: Sequence[Section]
) -> None:
    """Write a report as one self-contained HTML file, whole or not at all.

    Args:
        title: The heading of the page.
        summary: What was found, in a sentence or two, for those who read no further.
        sections: The rest of the page.

    Raises:
        InputError: The path cannot be written.
    """
    write_text(Path(path), report_html(title=title, summary=summary, sections=sections))


def report_html(*, title: str, summary: str, sections: Sequence[Section]) -> str:
    """Return the page of `write_report`; the same input makes the same page, to the letter."""
    numbers = count(1)
    contents = [
        {"title": section.title, "contents": [_html(item, numbers) for item in section.items]}
        for section in sections
    ]
    kinds = {type(item) for section in sections for item in section.items}
    scripts = [get_plotlyjs()] if kinds & {Picture, Explorer} else []
    scripts += [explorer_script()] if Explorer in kinds else []
    return render("page.html", title=title, summary=summary, sections=contents, scripts=scripts)


def _html(item: Item, numbers: count[int]) -> str:
    """Return an item of a section as HTML; figures and explorers are numbered through the page."""
    match item:
        case str():
            return render("paragraph.html", text=item)
        case Picture():
            return item.html(f"figure-{next(numbers)}")
        case Explorer():
            return item.html(f"explorer-{next(numbers)}")
        case Table() | Replay():
            return item.html()
        case _:
            raise TypeError(f"a report has no place for a {type(item).__name__}")


def _cell(value: Any) -> str:
    """Return the text in a cell of a table; numbers have four digits, and – stands for no value."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "–"
    if isinstance(value, float):
        return f"{value:{'.4g' if abs(value) < 1e4 else ',.0f'}}".replace("-", "−")
    return str(value)
