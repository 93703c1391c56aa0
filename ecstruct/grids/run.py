"""Running all cells of a grid: submit, watch and retry them, and continue an interrupted sweep.

DIR/grid.json       the grid that the sweep runs over
DIR/queue.json      which cells wait or have jobs
DIR/cells, setups, organisms    see `ecstruct.grids.cell`
DIR/jobs/           submitit's files, including the output of jobs
DIR/results.csv, report.html    see `ecstruct.grids.combine`
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from ecstruct.errors import InputError
from ecstruct.grids.cell import KILLED, Attempt, CellFiles, read_grid
from ecstruct.grids.cell_states import read_queue, status
from ecstruct.grids.combine import combine
from ecstruct.grids.executors import Executor, Local, Slurm, log_of, slurm_options
from ecstruct.grids.grid import AXES, Grid
from ecstruct.io.files import exclusive, write_note
from ecstruct.io.values import differences
from ecstruct.models.sources import check_there


def sweep(
    grid: Grid,
    folder: str | Path,
    executor: Executor,
    *,
    retries: int = 1,
    resume: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Compute all cells that are not finished, and combine the finished ones.

    Args:
        folder: where everything is kept.
        executor: where jobs run; it must be made for the same folder.
        retries: how often a failed cell is tried again.
        resume: continue the sweep that the folder holds; the grid may have more values than before.
        progress: show a progress bar.

    Returns:
        The table of `ecstruct.grids.status`, which includes failed cells.

    Raises:
        InputError: a model does not exist; the folder holds another sweep, or this one and `resume` is
            not set, or another process is using it; the executor cannot run jobs.
        Terminated: on SIGTERM, if a caller listens for it; the jobs on this machine have ended.
    """
    folder = Path(folder)
    if retries < 0:
        raise InputError(f"retries={retries} cannot be: use 0 or more.")
    for model in grid.models:  # a job would find out only later, in each of its attempts
        check_there(model)
    with exclusive(folder):
        _claim(folder, grid, resume)
        work = _Work(grid, folder, executor, retries, progress)
        try:
            work.run()
        except BaseException:
            executor.stop(work.jobs.values())
            raise
        combine(folder)
        return status(folder)


def run_sweep(
    path: Path | None,
    folder: Path,
    executor: str,
    jobs: int | None,
    slurm: Sequence[str],
    retries: int,
    resume: bool,
    device: str | None,
    progress: bool,
) -> list[str]:
    """Run `sweep` with the arguments of the command line; without a `path`, on the grid in the folder.

    Returns:
        The cells that failed.
    """
    grid = Grid.read(path) if path is not None else read_grid(folder)
    if executor == "slurm":
        where: Executor = Slurm(folder, jobs, device, slurm_options(slurm))
    elif slurm:
        raise InputError("--slurm is for --executor slurm: add it, or leave the options out.")
    else:
        where = Local(folder, jobs, device)
    table = sweep(grid, folder, where, retries=retries, resume=resume, progress=progress)
    if progress:
        done = table["state"].tolist().count("done")
        tqdm.write(f"{done} of {len(table)} cells finished\nreport: {folder / 'report.html'}")
    return [name for name, state in zip(table["cell"], table["state"], strict=True) if state != "done"]


class _Work:
    """The state of a running sweep: which cells wait, which have jobs, and how often each was tried."""

    def __init__(self, grid: Grid, folder: Path, executor: Executor, retries: int, progress: bool) -> None:
        self.folder, self.executor, self.retries = folder, executor, retries
        self.files = {cell.name: CellFiles(folder, cell) for cell in grid.cells()}
        missing = [name for name, files in self.files.items() if not files.done()]
        before = read_queue(folder)["jobs"] if executor.survives else {}
        alive = executor.alive(before.values()) if before else set()
        self.jobs: dict[str, str] = {name: before[name] for name in missing if before.get(name) in alive}
        self.waiting = [name for name in missing if name not in self.jobs]
        self.tries: Counter[str] = Counter()
        self.gone: Counter[str] = Counter()
        self.bar = tqdm(
            total=len(self.files),
            initial=len(self.files) - len(missing),
            desc="sweep",
            unit="cell",
            disable=not progress,
        )

    def run(self) -> None:
        poll = 0.2
        try:
            while self.waiting or self.jobs:
                self._submit()
                time.sleep(poll)
                # Slurm's controller is shared, so it is asked less and less often.
                poll = min(1.2 * poll, 15.0) if self.executor.survives else poll
                self._watch()
            self._save_queue()
        finally:
            self.bar.close()

    def _submit(self) -> None:
        room = max(0, self.executor.at_once - len(self.jobs))
        if batch := self.waiting[:room]:
            self.jobs |= zip(batch, self.executor.submit(batch), strict=True)
            del self.waiting[:room]
            self._save_queue()

    def _watch(self) -> None:
        alive = self.executor.alive(self.jobs.values())
        for name, job in list(self.jobs.items()):
            files = self.files[name]
            # A cell may outlive the submitted process that stood for it, so check its lock too.
            if job in alive or files.running():
                continue
            if not files.done() and self.executor.survives and not self.gone[job]:
                self.gone[job] += 1  # its files may arrive late from another machine
                continue
            del self.jobs[name]
            if files.done():
                self.bar.update()
            elif self._try_again(name, job):
                self.waiting.append(name)
            self._save_queue()

    def _try_again(self, name: str, job: str) -> bool:
        """Return whether a cell whose job ended without a result is tried again."""
        files = self.files[name]
        ended = self._last_attempt(files, job)
        if not ended.get("stopped"):  # an attempt that made progress does not count
            self.tries[name] += 1
        again = self.tries[name] <= self.retries
        if not again and not self.bar.disable:
            tqdm.write(f"{name} failed: {ended.get('error', KILLED)}")
        return again

    def _last_attempt(self, files: CellFiles, job: str) -> Attempt:
        """Return the attempt of a job, with what is known of its end."""
        attempts = files.attempts()
        last = attempts[-1] if attempts and attempts[-1].get("job") == job else None
        if last is not None and "seconds" in last:
            return last
        last = last or {"job": job, "started": time.time()}
        last = {**last, "error": f"{KILLED}{_last_log_line(log_of(self.folder, job))}"}
        files.note(last)
        return last

    def _save_queue(self) -> None:
        self.bar.set_postfix_str(f"{len(self.jobs)} submitted, {len(self.waiting)} waiting")
        queue = {"waiting": self.waiting, "jobs": self.jobs, "slurm": self.executor.survives}
        write_note(self.folder / "queue.json", queue)


def _last_log_line(log: Path) -> str:
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    except OSError:
        return ""
    return f" ({lines[-1][:200]})" if lines else ""


def _claim(folder: Path, grid: Grid, resume: bool) -> None:
    """Note the grid of a folder; refuse it unless it equals or extends the grid that the folder has."""
    if (folder / "grid.json").exists():
        old = read_grid(folder)
        if changes := list(_changes(old, grid)):
            raise InputError(f"{folder} holds another sweep ({'; '.join(changes)}): choose another folder.")
        if not resume:
            done = [CellFiles(folder, cell).done() for cell in old.cells()]
            raise InputError(
                f"{folder} holds this sweep, {sum(done)} of {len(done)} cells finished: add --resume to go "
                "on with it, or choose another folder."
            )
    write_note(folder / "grid.json", grid.to_dict())


def _changes(old: Grid, new: Grid) -> list[str]:
    """Return in what the finished cells of an old grid differ from those of a new one."""
    found = []
    for axis in AXES:
        if lost := [value for value in getattr(old, axis) if value not in getattr(new, axis)]:
            found.append(f"{axis} had {', '.join(map(str, lost))}")
    cell = old.cells()[0]
    found += differences(old.setup(cell).to_dict(), new.setup(cell).to_dict())
    options = ({name: grid.options.get(name, {}) for name in old.experiments} for grid in (old, new))
    found += (f"options.{each}" for each in differences(*options))
    return found
