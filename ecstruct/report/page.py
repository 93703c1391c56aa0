"""A report: one HTML file that holds all it shows, and opens anywhere, offline.

Text, tables, figures and the command that makes it all again. plotly.js is in the file once,
whatever the number of figures; the page asks no network for anything, and its own security policy
forbids it to. All text is escaped. It follows the reader's light or dark mode and fits a phone:
wide figures and tables scroll in their own place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import count
from pathlib import Path
from string import Template
from typing import Any, TypeAlias

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ecstruct.io.files import write_text
from ecstruct.report.explorer import Explorer, explorer_script


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows, the index is not shown."""

    frame: pd.DataFrame
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A plotly figure under its own size, with what it shows said in words."""

    figure: go.Figure
    caption: str = ""


@dataclass(frozen=True)
class Replay:
    """What makes the same again: a command, and the configuration that it reads."""

    command: str
    config: Mapping[str, Any] | None = None


Item: TypeAlias = str | Table | Picture | Explorer | Replay
"""Text is a paragraph."""


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
        sections: The rest.

    Raises:
        InputError: a path that cannot be written.
    """
    write_text(Path(path), report_html(title=title, summary=summary, sections=sections))


def report_html(*, title: str, summary: str, sections: Sequence[Section]) -> str:
    """The page of `write_report`; the same input makes the same page, to the letter."""
    numbers = count(1)
    bodies = [_section(section, numbers) for section in sections]
    kinds = {type(item) for section in sections for item in section.items}
    scripts = [get_plotlyjs()] if kinds & {Picture, Explorer} else []
    scripts += [explorer_script()] if Explorer in kinds else []
    page = Template((files("ecstruct.report") / "page.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=escape(title),
        summary=_paragraph(summary),
        sections="\n".join(bodies),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _section(section: Section, numbers: count[int]) -> str:
    items = "\n".join(_item(item, numbers) for item in section.items)
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{items}\n</section>"


def _item(item: Item, numbers: count[int]) -> str:
    match item:
        case str():
            return _paragraph(item)
        case Table():
            return _table(item)
        case Picture():
            return _picture(item, f"figure-{next(numbers)}")
        case Explorer():
            return item.html(f"explorer-{next(numbers)}")
        case Replay():
            return _replay(item)
        case _:
            raise TypeError(f"a report has no place for a {type(item).__name__}")


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _table(table: Table) -> str:
    frame = table.frame
    numeric = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame.columns]
    head = "".join(
        f'<th scope="col"{_class(right)}>{escape(str(column))}</th>'
        for column, right in zip(frame.columns, numeric, strict=True)
    )
    rows = []
    for row in frame.itertuples(index=False, name=None):
        cells = [
            f'<th scope="row"{_class(right)}>{_cell(value)}</th>'
            if i == 0
            else f"<td{_class(right)}>{_cell(value)}</td>"
            for i, (value, right) in enumerate(zip(row, numeric, strict=True))
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    label = escape(table.caption or "table")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>{caption}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
    )


def _class(right: bool) -> str:
    return ' class="number"' if right else ""


def _cell(value: Any) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "–"
    if isinstance(value, float):
        return f"{value:{'.4g' if abs(value) < 1e4 else ',.0f'}}".replace("-", "−")
    return escape(str(value))


def _picture(picture: Picture, name: str) -> str:
    drawing = picture.figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        include_mathjax=False,
        div_id=name,
        # Of plotly's buttons only the one that keeps a picture: others need a network or a mouse.
        config={"displaylogo": False, "responsive": False, "modeBarButtons": [["toImage"]]},
    )
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    label = escape(picture.caption or "figure")
    return (
        f'<figure><div class="scroll" role="region" tabindex="0" aria-label="{label}">'
        f'<div class="drawing">{drawing}</div></div>{caption}</figure>'
    )


def _replay(replay: Replay) -> str:
    blocks = [replay.command]
    if replay.config is not None:
        blocks.append(json.dumps(replay.config, indent=2, ensure_ascii=False))
    return "\n".join(f'<pre tabindex="0">{escape(block)}</pre>' for block in blocks)
