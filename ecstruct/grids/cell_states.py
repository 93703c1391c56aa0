"""The state of the cells of a sweep, read from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from typing_extensions import TypedDict

from ecstruct.grids.cell import KILLED, Attempt, CellFiles, read_grid
from ecstruct.grids.executors import queued
from ecstruct.io.files import is_held, read_note

STATES = ("done", "running", "waiting", "failed", "missing")
COLUMNS = ("cell", "state", "attempts", "seconds", "job", "error")


class _Queue(TypedDict):
    waiting: list[str]
    jobs: dict[str, str]
    slurm: bool


def status(folder: str | Path) -> pd.DataFrame:
    """Return a row per cell of the sweep in a folder: its state (of `STATES`), the number of attempts, and
    the seconds, job and error of the last attempt.

    Raises:
        InputError: the folder holds no sweep.
    """
    folder = Path(folder)
    waiting = _waiting(folder)
    rows = [_row(CellFiles(folder, cell), cell.name in waiting) for cell in read_grid(folder).cells()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def status_text(folder: Path) -> str:
    """Return the table of `status` as text, followed by the number of cells in each state."""
    table = status(folder)
    found = table["state"].tolist()
    counts = ", ".join(f"{found.count(state)} {state}" for state in STATES if state in found)
    shown = table.assign(seconds=table["seconds"].map("{:.1f}".format, na_action="ignore").fillna(""))
    return f"{shown.to_string(index=False)}\n{len(table)} cells: {counts}"


def read_queue(folder: Path) -> dict[str, Any]:
    """Read what the sweep in a folder last knew: the cells that wait to be submitted (`waiting`), the
    `jobs` of submitted cells by cell, and whether these are on `slurm`."""
    return read_note(folder / "queue.json", _Queue) or {"waiting": [], "jobs": {}, "slurm": False}


def _waiting(folder: Path) -> set[str]:
    queue = read_queue(folder)
    if is_held(folder / ".lock"):
        return {*queue["waiting"], *queue["jobs"]}
    alive = queued(queue["jobs"].values()) if queue["slurm"] else set()
    return {name for name, job in queue["jobs"].items() if job in alive}


def _row(files: CellFiles, waiting: bool) -> tuple[Any, ...]:
    """Return a cell's values of `COLUMNS`; an untried cell, or one that was asked to end, is missing."""
    attempts = files.attempts()
    last: Attempt = attempts[-1] if attempts else {}
    if files.done():
        state = "done"
    elif files.running():
        state = "running"
    elif waiting:
        state = "waiting"
    else:  # a last attempt without an end was killed, as no process holds the lock
        state = "failed" if attempts and ("error" in last or "seconds" not in last) else "missing"
    error = "" if state == "done" else last.get("error") or (KILLED if state == "failed" else "")
    return files.cell.name, state, len(attempts), last.get("seconds"), last.get("job") or "", error
