"""The page of `ecstruct grafts`."""

from __future__ import annotations

from pathlib import Path

from ecstruct.grafting import Grafts, RandomSets
from ecstruct.report.page import write_page


def grafts_report(path: Path, grafts: Grafts, drawn: RandomSets | None, replay: str) -> None:
    """Write the report of what grafting and reverting components does, and of what random sets do."""
    summary = grafts.conclusion() + (f" {drawn.conclusion()}" if drawn else "")
    write_page(path, "grafts.html", "Grafts", summary, replay, grafts=grafts, drawn=drawn)
