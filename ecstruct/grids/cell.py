"""One cell of a sweep as a job: it can be run again or killed at any time, and leaves a whole result or
none.

DIR/cells/NAME/result.json     the measured results; exists when the cell is finished
DIR/cells/NAME/attempts.json   when it was tried, by which job, and how that ended
DIR/cells/NAME/.lock           held while the cell is computed
DIR/setups/SETUP/              the folder of experiments (`ecstruct.experiments.sweep`) for the cell's
                               model, rate, epochs and seed: a killed cell continues from it
DIR/organisms/                 organisms of all seeds
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
import torch

from ecstruct.errors import InputError
from ecstruct.experiments.reproduction import reproduce
from ecstruct.grids.grid import Cell, Grid
from ecstruct.io.files import explaining_write_errors, is_held, locked, read_note, write_note
from ecstruct.io.interruption import Terminated, listening
from ecstruct.io.store import if_whole, read_json, save_json

Attempt = dict[str, Any]
"""`job`, `host`, `process`, `started`; after the end `seconds`, and `error` or `stopped` unless it
succeeded. `stopped` says whether the attempt made progress before it was asked to end."""


KILLED = "ended without a word: killed, or out of memory or time"


@dataclass(frozen=True)
class CellFiles:
    """The files of one cell of the sweep in `folder`; they say whether it is finished, and what was
    tried."""

    folder: Path
    cell: Cell

    @property
    def home(self) -> Path:
        return self.folder / "cells" / self.cell.name

    @property
    def setup(self) -> Path:
        return self.folder / "setups" / self.cell.setup_name

    def result(self) -> dict[str, Any] | None:
        """Return the measured results, or None before the cell is finished."""
        return if_whole(read_json, self.home / "result.json")

    def done(self) -> bool:
        return self.result() is not None

    def attempts(self) -> list[Attempt]:
        return read_note(self.home / "attempts.json", list[Attempt]) or []

    def running(self) -> bool:
        """Return whether a process holds the cell, also on another machine if the file system tells."""
        return is_held(self.home / ".lock")

    def note(self, attempt: Attempt) -> None:
        """Add an attempt, or replace the last one if it is by the same job and started at the same time."""
        attempts = self.attempts()
        if attempts and all(attempts[-1].get(key) == attempt.get(key) for key in ("job", "started")):
            attempts.pop()
        write_note(self.home / "attempts.json", [*attempts, attempt])

    def progress(self) -> int:
        """Return the number of finished pieces of the cell, including those of choosing learning rates."""
        parts = ("rates/*.json", f"{self.cell.experiment}*/*.json")
        return sum(1 for part in parts for _ in (self.setup / "cells").glob(part))


def run_cell(folder: str, name: str, device: str | None, visible: str | None, threads: int | None) -> None:
    """Compute the cell `name` of the sweep in a folder, unless it is finished. If another process computes
    it, wait for that process first.

    Args:
        visible: the value of CUDA_VISIBLE_DEVICES; None where the executor leaves it as it is.
        threads: the number of CPU threads; None leaves torch's own.

    Raises:
        Terminated: on SIGTERM, or on SIGUSR2, which Slurm sends shortly before a job's time is up; the
            piece in progress is finished first.
    """
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    if threads is not None:
        torch.set_num_threads(threads)
    grid = read_grid(Path(folder))
    cell = next(cell for cell in grid.cells() if cell.name == name)
    files = CellFiles(Path(folder), cell)
    with listening(signal.SIGTERM, signal.SIGUSR2), locked(files.home / ".lock", wait=True):
        if not files.done():
            _attempt(files, grid, device)


def _attempt(files: CellFiles, grid: Grid, device: str | None) -> None:
    start, before = time.time(), files.progress()
    job = submitit.JobEnvironment().job_id if "SUBMITIT_EXECUTOR" in os.environ else None
    attempt: Attempt = {
        "job": job,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": start,
    }
    files.note(attempt)
    end: Mapping[str, Any] = {}
    try:
        _compute(files, grid, device)
    except (Terminated, KeyboardInterrupt):
        end = {"stopped": files.progress() > before}
        raise
    except BaseException as error:
        end = {"error": str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"}
        raise
    finally:
        with suppress(InputError):  # a full disk, which the cell itself has reported
            files.note({**attempt, "seconds": round(time.time() - start, 1), **end})


def _compute(files: CellFiles, grid: Grid, device: str | None) -> None:
    cell = files.cell
    if cell.model == "organism":
        _share_organisms(files)
    options = {name: given for name, given in grid.options.items() if name == cell.experiment}
    setup = grid.setup(cell, device)
    (result,) = reproduce([cell.experiment], setup, options, out=files.setup, progress=False)
    found = {
        "cell": cell.columns(),
        "rows": result.frame.astype(object).where(result.frame.notna(), None).to_dict("records"),
        "results": result.results(),
        "conclusion": result.conclusion(),
        "config": result.config,
    }
    save_json(files.home / "result.json", found)


def _share_organisms(files: CellFiles) -> None:
    """Link a setup's folder to the sweep's organisms, which are pretrained once for all its setups."""
    link = files.setup / "organisms"
    with explaining_write_errors(link):
        (files.folder / "organisms").mkdir(parents=True, exist_ok=True)
        files.setup.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(Path("..", "..", "organisms"), target_is_directory=True)


def read_grid(folder: Path) -> Grid:
    """Read the grid of the sweep in a folder.

    Raises:
        InputError: the folder holds no sweep.
    """
    path = folder / "grid.json"
    if (found := read_note(path)) is None:
        raise InputError(f"{folder} holds no sweep: give its GRID.yaml, or the folder of another.")
    try:
        return Grid.from_dict(found)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
