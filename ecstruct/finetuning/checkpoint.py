"""The state of a finetuning on disk, from which it resumes as if it had never stopped.

A checkpoint is a folder `step-N` with the trained weights and Adam's two averages, written by
`torch.distributed.checkpoint` as safetensors: each rank writes what it holds, and any number of ranks can
read it. Its `run.json` identifies the run and holds the history so far and the checksums of all files (see
`ecstruct.io.store`). It gets its name when it is whole, and only then the previous checkpoint is removed.

From the end of training until all results are written, a note beside it says whose results these are.
"""

import json
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ecstruct.errors import InputError
from ecstruct.finetuning.result import History
from ecstruct.io.distributed import Ranks
from ecstruct.io.files import explaining_write_errors
from ecstruct.io.store import Damaged, check_same_run, if_whole, read_json, read_sums, save_json, save_sums

SECONDS = 600.0
"""The seconds between two checkpoints, if `every` is not given."""

FILE_BYTES = 2**30
"""The size of a file in bytes. A file is put together in memory, so writing takes that much memory."""

_NAME = re.compile(r"(step|\.writing)-\d+")

_AVERAGES = ("exp_avg", "exp_avg_sq")

_RUN, _NOTE = "run.json", "results.json"


class Checkpoint:
    """The checkpoints of one run in `folder`; `run` is everything on which its numbers depend."""

    def __init__(self, folder: Path, every: int | None, run: Mapping[str, Any], across: Ranks) -> None:
        if every is not None and every < 1:
            raise InputError(f"checkpoint_every={every} is no number of steps: use 1 or more.")
        self.folder, self._every, self._across = folder, every, across
        # Converted to what JSON returns, because it is compared with what was read from a file.
        self._run: dict[str, Any] = json.loads(json.dumps(dict(run)))
        self._written = time.monotonic()

    def due(self, step: int) -> bool:
        """Return whether to write a checkpoint after `step` steps."""
        if self._every:
            return step % self._every == 0
        return time.monotonic() > self._written + SECONDS

    def save(
        self, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Adam, history: History
    ) -> None:
        """Write a checkpoint that `load` reads, and remove the previous one; all ranks call this."""
        step = len(history.loss)
        begun, whole = self.folder / f".writing-{step}", self.folder / f"step-{step}"
        with_state = [name for name, p in weights.items() if optimizer.state.get(p)]

        @explaining_write_errors(self.folder)
        def prepare() -> None:
            shutil.rmtree(begun, ignore_errors=True)
            begun.mkdir(parents=True)

        @explaining_write_errors(self.folder)
        def finish() -> None:
            about = {"run": self._run, "history": history.to_dict(), "with_state": with_state}
            save_sums(begun / _RUN, about)
            if whole.exists():
                shutil.rmtree(whole)  # it is damaged, or the run would have resumed from it
            begun.replace(whole)
            for old in _written_in(self.folder):
                if old != whole:
                    shutil.rmtree(old)

        try:
            self._across.on_first(prepare)
            # GPT-2's queries, keys and values are views of one matrix, which safetensors rejects.
            state = {name: t.contiguous() for name, t in _tensors(weights, optimizer, with_state).items()}
            with _quiet():
                try:
                    save(state, storage_writer=_writer(begun, state), no_dist=self._across.size == 1)
                except CheckpointException as error:
                    raise InputError(f"cannot write to {self.folder}: is the disk full?") from error
            self._across.on_first(finish)
        finally:
            if self._across.first:
                shutil.rmtree(begun, ignore_errors=True)
        self._written = time.monotonic()

    def load(
        self, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Adam, history: History
    ) -> bool:
        """Fill weights, optimiser and history from the last whole checkpoint; return whether there was one.

        Raises:
            InputError: it belongs to another run.
        """
        found = self._across.on_first(self._found)
        if found is None:
            return False
        path, described = found
        step = len(described["history"]["loss"])
        for name in described["with_state"]:
            averages = {key: torch.zeros_like(weights[name].detach()) for key in _AVERAGES}
            optimizer.state[weights[name]] = {"step": torch.tensor(float(step)), **averages}
        state = _tensors(weights, optimizer, described["with_state"])
        with _quiet():
            try:
                reader = HuggingFaceStorageReader(str(path))
                load(state, storage_reader=reader, no_dist=self._across.size == 1)
            except CheckpointException as error:
                raise InputError(f"the checkpoint {path} cannot be read: remove the folder.") from error
        history.loss[:] = described["history"]["loss"]
        for name, values in described["history"]["ranks"].items():
            history.ranks[name][:] = values
        return True

    def _found(self) -> tuple[Path, dict[str, Any]] | None:
        steps = {int(p.name.partition("-")[2]): p for p in _written_in(self.folder) if p.name[0] != "."}
        for _, path in sorted(steps.items(), reverse=True):
            if not (path / _RUN).exists():
                raise InputError(f"{path} is no checkpoint: delete it to begin anew.")
            if about := if_whole(read_sums, path / _RUN):
                check_same_run(self.folder, about["run"], self._run)
                return path, about
        return None


def discard(folder: str | Path) -> None:
    """Remove the checkpoints of a run whose results are written; leave files of others there."""
    folder = Path(folder)
    (folder / _NOTE).unlink(missing_ok=True)  # before the checkpoints, from which results can be remade
    for path in _written_in(folder):
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # it contains other files, or was never made
        folder.rmdir()


def note_results(folder: Path, run: Mapping[str, Any]) -> None:
    """Note, before any result is written, that files under the results' names belong to this run."""
    save_json(folder / _NOTE, run)


def has_results(folder: Path, run: Mapping[str, Any]) -> bool:
    """Return whether this run began to write results, and was stopped before all were written."""
    try:
        return read_json(folder / _NOTE) == run
    except (OSError, Damaged):
        return False


def _written_in(folder: Path) -> list[Path]:
    """Return the checkpoints, and unfinished ones of a run that was killed."""
    return [path for path in folder.glob("*") if _NAME.fullmatch(path.name)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's warning that a single process does not use torch.distributed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _tensors(
    weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Adam, with_state: list[str]
) -> dict[str, Tensor]:
    """Return the tensors to save; loading fills them in place."""
    tensors = {f"weight {name}": p.detach() for name, p in weights.items()}
    for name in with_state:
        state = optimizer.state[weights[name]]
        tensors |= {f"{key} {name}": state[key] for key in _AVERAGES}
    return tensors


def _writer(folder: Path, state: Mapping[str, Tensor]) -> HuggingFaceStorageWriter:
    """Return a writer that gives each rank files of about `FILE_BYTES`, without splitting tensors."""
    ends = np.cumsum([tensor.nbytes for tensor in state.values()])
    files = {name: 1 + int(end // FILE_BYTES) for name, end in zip(state, ends, strict=True)}
    return HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
