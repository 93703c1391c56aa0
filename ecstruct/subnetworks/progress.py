"""The progress of pruning: the state of every seed's optimisation, in memory and in a checkpoint file."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecstruct.engine.session import Session
from ecstruct.facts.prompt import Prompt
from ecstruct.io.store import check_same_run, if_whole, read_tensors, save_tensors
from ecstruct.io.values import checksum
from ecstruct.models.provenance import versions

SECONDS = 30.0
"""The seconds between checkpoints."""

INITIAL, NOISE = 10.0, 0.01
"""The mean and standard deviation of the initial log alpha."""


_AVERAGES = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """`tensors` has `log_alpha` [seed, gate] and `multipliers` [seed, 2], in float64 because gates are
    cheap; AdamW's averages of each, as `log_alpha exp_avg`; and the number of steps `done` [seed]."""

    seeds: list[int]
    tensors: dict[str, Tensor]
    path: Path | None
    about: dict[str, Any]
    _saved: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(
        cls, seeds: list[int], n_gates: int, checkpoint: str | Path | None, about: Mapping[str, Any]
    ) -> "Progress":
        """Begin at the first step or, if there is a whole checkpoint, at the step where it was written.

        Raises:
            InputError: the file belongs to another run, or is not a checkpoint.
        """
        draws = [np.random.default_rng((seed, 0)).normal(INITIAL, NOISE, n_gates) for seed in seeds]
        tensors = {
            "log_alpha": torch.from_numpy(np.stack(draws)),
            "multipliers": torch.zeros(len(seeds), 2, dtype=torch.float64),
        }
        averages = {f"{n} {a}": torch.zeros_like(t) for n, t in tensors.items() for a in _AVERAGES}
        tensors |= {**averages, "done": torch.zeros(len(seeds), dtype=torch.long)}
        run = {**about, "seeds": seeds}
        path = None if checkpoint is None else Path(checkpoint)
        found = None if path is None else if_whole(lambda path: _read(path, run), path)
        return cls(seeds, found or tensors, path, run)

    @property
    def done(self) -> list[int]:
        return self.tensors["done"].tolist()

    def parameters(self, rows: slice) -> dict[str, Tensor]:
        """Return the parameters of some seeds; what an optimiser does to them it does to `tensors`."""
        return {name: self.tensors[name][rows].requires_grad_() for name in ("log_alpha", "multipliers")}

    def resume(self, optimizer: torch.optim.Optimizer, of: Mapping[str, Tensor], rows: slice) -> None:
        """Give an optimiser of the parameters of some seeds its averages, also to be changed in place."""
        for name, parameter in of.items():
            averages = {average: self.tensors[f"{name} {average}"][rows] for average in _AVERAGES}
            optimizer.state[parameter] = {"step": torch.tensor(float(self.done[rows][0])), **averages}

    def due(self) -> bool:
        """Return whether to write a checkpoint now."""
        return self.path is not None and time.monotonic() > self._saved + SECONDS

    def save(self) -> None:
        """Write a checkpoint, if there is a path for it."""
        if self.path is None:
            return
        save_tensors(self.path, self.tensors, self.about)
        self._saved = time.monotonic()


def described(
    session: Session, options: Mapping[str, Any], prompts: Mapping[str, Sequence[Prompt]]
) -> dict[str, Any]:
    """Return everything but the seeds that masks depend on, in the form in which JSON returns it."""
    about = {
        "method": "pruning",
        "model": dict(session.described),
        **{name: f"{len(some)} with checksum {checksum(tuple(some))}" for name, some in prompts.items()},
        "options": dict(options),
        "versions": versions(),
    }
    return json.loads(json.dumps(about))


def _read(path: Path, run: Mapping[str, Any]) -> dict[str, Tensor]:
    found, tensors = read_tensors(path)
    check_same_run(path, _identity(found), _identity(run))
    return tensors


def _identity(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what masks depend on, without the path or revision by which the model was named."""
    described = run.get("model", {})
    model = {name: value for name, value in described.items() if name not in ("source", "revision")}
    return {**run, "model": model}
