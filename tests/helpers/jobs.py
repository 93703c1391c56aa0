"""Jobs of sweeps for tests."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from ecstruct.grids import status
from ecstruct.grids.cell import CellFiles, run_cell
from ecstruct.io.interruption import Terminated


class Here:
    """Runs cells in this process, which does the same as a job and saves the seconds of starting one."""

    def __init__(self, folder: Path, survives: bool = False, at_once: int = 2) -> None:
        self.folder, self.survives, self.at_once = folder, survives, at_once
        self.submitted: list[str] = []
        self.stopped: list[str] = []

    def submit(self, names: Sequence[str]) -> list[str]:
        ids = []
        for name in names:
            self.submitted.append(name)
            ids.append(f"job-{len(self.submitted)}")
            os.environ.update(SUBMITIT_EXECUTOR="local", SUBMITIT_LOCAL_JOB_ID=ids[-1])
            with contextlib.suppress(Exception, Terminated):  # a job's process would end here
                run_cell(str(self.folder), name, None, None, None)
        return ids

    def alive(self, jobs: Collection[str]) -> set[str]:
        return set()

    def stop(self, jobs: Collection[str]) -> None:
        self.stopped += jobs


def until(ready: Callable[[], Any], seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)
    return found


def pieces(place: CellFiles) -> dict[str, int]:
    """Return a cell's finished pieces and when each was written, without those that a killed job began."""
    return {path.name: path.stat().st_mtime_ns for path in place.setup.glob("cells/ocr/[!.]*.json")}


def states(folder: Path) -> dict[str, str]:
    """Return the states of a sweep's cells by their names."""
    table = status(folder)
    return dict(zip(table["cell"], table["state"], strict=True))
