"""Where the jobs of a sweep run: in local processes or on Slurm. Both submit through submitit.

The files of a cell say whether its job is done; an executor only says whether the job is still alive. On
Slurm, `squeue` answers that. submitit would ask `sacct`, which clusters without accounting do not have, and
which would report a killed job as running for ever.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import submitit
import torch
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths
from submitit.helpers import clean_env

from ecstruct.errors import InputError
from ecstruct.grids.cell import run_cell

ARRAY = 1000
"""The largest size of one job array: Slurm's default for MaxArraySize is 1001."""

YEAR = 365 * 24 * 60


class Executor(Protocol):
    """An object that runs cells of the sweep in a folder."""

    at_once: int  # the most cells that are submitted and unfinished at a time
    survives: bool  # whether jobs go on without the process that submitted them

    def submit(self, names: Sequence[str]) -> list[str]:
        """Start or queue jobs for cells, and return their ids."""
        ...

    def alive(self, jobs: Collection[str]) -> set[str]:
        """Return the jobs that may still do something."""
        ...

    def stop(self, jobs: Collection[str]) -> None:
        """Ask jobs to end, and wait until they have ended."""
        ...


class Local:
    """At most `jobs` processes of this machine at a time, each with one GPU if there are any.

    Args:
        jobs: by default one per GPU, or one.
    """

    survives = False

    def __init__(self, folder: Path, jobs: int | None = None, device: str | None = None) -> None:
        self.folder, self.device = folder.absolute(), device
        self._gpus = _gpus()
        self.at_once = jobs if jobs is not None else max(1, len(self._gpus))
        if self.at_once < 1:
            raise InputError(f"--jobs {jobs} runs nothing: use 1 or more.")
        self._executor = submitit.LocalExecutor(folder / "jobs")
        self._executor.update_parameters(timeout_min=YEAR)
        self._running: dict[str, tuple[submitit.Job[Any], int]] = {}

    def submit(self, names: Sequence[str]) -> list[str]:
        return [self._start(name) for name in names]

    def _start(self, name: str) -> str:
        taken = {slot for job, slot in self._running.values() if not job.done()}
        slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        visible = self._gpus[slot % len(self._gpus)] if self._gpus else ""
        threads = None
        if "OMP_NUM_THREADS" not in os.environ:
            threads = max(1, (os.cpu_count() or 1) // self.at_once)
        job = self._executor.submit(run_cell, str(self.folder), name, self.device, visible, threads)
        self._running[job.job_id] = (job, slot)
        return job.job_id

    def alive(self, jobs: Collection[str]) -> set[str]:
        return {job for job in jobs if job in self._running and not self._running[job][0].done()}

    def stop(self, jobs: Collection[str]) -> None:
        while alive := self.alive(jobs):
            for job in alive:
                with suppress(ProcessLookupError):
                    os.kill(int(job), signal.SIGTERM)  # submitit's process passes it on to the cell's
            time.sleep(0.2)


def _gpus() -> list[str]:
    """Return the names of the available GPUs as CUDA_VISIBLE_DEVICES writes them."""
    named = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    n = torch.cuda.device_count()
    return named if len(named) == n else [str(gpu) for gpu in range(n)]


class Slurm:
    """Job arrays. Jobs stay in the queue when the sweep ends, and a later sweep finds them again.

    Args:
        jobs: how many run at a time; by default as many as Slurm allows.
        options: options of sbatch; `time` is in minutes or in Slurm's format, by default the partition's.

    Raises:
        InputError: Slurm is not available here, or it does not accept the options.
    """

    survives = True
    at_once = ARRAY

    def __init__(
        self,
        folder: Path,
        jobs: int | None = None,
        device: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.device = folder.absolute(), device
        try:
            self._executor = submitit.SlurmExecutor(folder / "jobs")
        except RuntimeError:
            raise InputError(
                "there is no srun here: run this on a cluster, or with --executor local."
            ) from None
        parameters: dict[str, Any] = {
            "job_name": "ecstruct",
            "array_parallelism": jobs or ARRAY,
            "time": None,  # the partition's own; submitit's is 5 minutes
        }
        others: dict[str, Any] = {}
        for key, text in (options or {}).items():
            name = key.replace("-", "_")
            value = minutes(text) if name == "time" else _parsed(text)
            if name not in submitit.SlurmExecutor._valid_parameters():
                others[key] = value
            else:
                parameters[name] = [text] if name in ("setup", "teardown", "srun_args") else value
        self._executor.update_parameters(**parameters, additional_parameters=others)

    def submit(self, names: Sequence[str]) -> list[str]:
        ids: list[str] = []
        for start in range(0, len(names), ARRAY):
            try:
                with _outside_jobs(), self._executor.batch():
                    jobs = [
                        self._executor.submit(run_cell, str(self.folder), name, self.device, None, None)
                        for name in names[start : start + ARRAY]
                    ]
            except (FailedJobError, FailedSubmissionError, OSError) as error:
                raise InputError(f"Slurm does not take the jobs: {_error_text(error)}.") from error
            ids += [job.job_id for job in jobs]
        return ids

    def alive(self, jobs: Collection[str]) -> set[str]:
        return queued(jobs)

    def stop(self, jobs: Collection[str]) -> None:
        """Leave the jobs in the queue: they end by themselves and write only their own files."""


@contextmanager
def _outside_jobs() -> Iterator[None]:
    """Hide the variables of a Slurm job that this process may run in, but keep SLURM_CONF."""
    configured = os.environ.get("SLURM_CONF")
    with clean_env():
        if configured is not None:
            os.environ["SLURM_CONF"] = configured
        yield


def queued(jobs: Collection[str]) -> set[str]:
    """Return the jobs that Slurm has not ended; all of them while Slurm does not answer."""
    if not jobs:
        return set()
    arrays = sorted({job.split("_")[0] for job in jobs})
    # With --array, "%i" is ARRAY_TASK, for waiting jobs too.
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(arrays)}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return set(jobs)
    if asked.returncode == 0:
        return set(jobs) & set(asked.stdout.split())
    if "Invalid job id" in asked.stderr:  # all of them ended long ago
        return set()
    return set(jobs)


def minutes(text: str) -> int:
    """Convert a time in Slurm's format to minutes, rounded up.

    >>> [minutes(text) for text in ("90", "1:30:00", "2-12", "0:30")]
    [90, 90, 3600, 1]
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        raise InputError(f"time={text} is no time: write minutes, or 1-12:00:00.")
    days, *parts = (int(part) if part else None for part in found.groups())
    given = [part for part in parts if part is not None]
    # Slurm reads D-H[:M[:S]], H:M:S, M:S and M.
    units = (3600, 60, 1) if days is not None or len(given) == 3 else (60, 1)
    seconds = 86400 * (days or 0) + sum(n * unit for n, unit in zip(given, units, strict=False))
    return -(-seconds // 60)


def slurm_options(texts: Sequence[str]) -> dict[str, str]:
    """Parse options of sbatch; one text may have several.

    >>> slurm_options(["partition=gpu,time=1:00:00", "exclude=n1,n2"])
    {'partition': 'gpu', 'time': '1:00:00', 'exclude': 'n1,n2'}
    """
    pairs = [pair.partition("=") for text in texts for pair in re.split(r",(?=[\w-]+=)", text)]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise InputError(
                f"--slurm takes NAME=VALUE, as in partition=gpu, not {name + equals + value!r}."
            )
    return {name: value for name, _, value in pairs}


def _parsed(text: str) -> Any:
    """Convert a text to the type that submitit takes; True stands for an option without a value."""
    return int(text) if text.isdigit() else {"true": True, "false": False}.get(text, text)


def log_of(folder: Path, job: str) -> Path:
    """Return the file with the error output of a job."""
    return JobPaths(folder / "jobs", job_id=job, task_id=0).stderr


def _error_text(error: Exception) -> str:
    said = getattr(error, "stderr", None) or str(error)
    return " ".join(said.split())[:300].rstrip(".")
