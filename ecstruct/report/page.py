"""A report: one HTML file that holds all it shows, and opens anywhere, offline.

It has text, tables, figures and the command that makes it all again. plotly.js is in the file once,
whatever the number of figures; the page asks no network for anything, and its own security policy
forbids it to. All text is escaped. The page follows the reader's light or dark mode and fits a phone:
wide figures and tables scroll in their own place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
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
    return _page("sections.html", title, summary, sections=sections)


def write_page(
    path: Path,
    template: str,
    title: str,
    summary: str,
    replay: str,
    config: Mapping[str, Any] | None = None,
    **shown: Any,
) -> None:
    """Write the report of a command, whose template says what is on it, as `write_report` does.

    A template has the values `shown`; `picture(figure, caption)`, `table(frame, caption)` and, for all else
    that a section may hold, `show(item)` show them. Every page ends with the command `replay` that makes it
    again, and its `config`.
    """
    write_text(path, _page(template, title, summary, Replay(replay, config), **shown))


class Found(Protocol):
    """A result that says itself what was found, and of what."""

    @property
    def attrs(self) -> Mapping[str, Any]: ...
    def conclusion(self) -> str: ...


def write_result(path: Path, template: str, title: str, result: Found, replay: str) -> None:
    """Write the report of a command that is of one result, `result` in its template."""
    write_page(path, template, title, result.conclusion(), replay, result.attrs, result=result)


def _page(template: str, title: str, summary: str, again: Replay | None = None, **shown: Any) -> str:
    """Return a page whose sections a template has, figures and explorers numbered through the page."""
    numbers, kinds = count(1), set[type]()

    def show(item: Item) -> Markup:
        kinds.add(type(item))
        match item:
            case str():
                part = render("paragraph.html", text=item)
            case Picture():
                part = item.html(f"figure-{next(numbers)}")
            case Explorer():
                part = item.html(f"explorer-{next(numbers)}")
            case Table() | Replay():
                part = item.html()
            case _:
                raise TypeError(f"a report has no place for a {type(item).__name__}")
        return Markup(part)

    def shown_as(kind: Callable[..., Item]) -> Callable[..., Markup]:
        return lambda content, caption: show(kind(content, " ".join(caption.split())))

    kinds_by_name = {"table": shown_as(Table), "picture": shown_as(Picture)}
    main = render(template, show=show, **kinds_by_name, **shown)
    scripts = [get_plotlyjs()] if kinds & {Picture, Explorer} else []
    scripts += [explorer_script()] if Explorer in kinds else []
    last = again and again.html()
    return render("page.html", title=title, summary=summary, main=main, again=last, scripts=scripts)


def _cell(value: Any) -> str:
    """Return the text in a cell of a table; numbers have four digits, and – stands for no value."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "–"
    if isinstance(value, float):
        return f"{value:{'.4g' if abs(value) < 1e4 else ',.0f'}}".replace("-", "−")
    return str(value)
