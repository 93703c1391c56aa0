"""Scorings on which one process and several must agree. As a script, what every rank of a launch runs:

    torchrun --nproc-per-node 3 tests/helpers/parallel_cases.py DIR lives|dies score --before ...

scores all cases, then runs the command. With "dies", rank 2 is killed during that, in its down pass, after
another rank has finished its part.
"""

import copy
import os
import signal
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import ecstruct
from ecstruct.cli import app
from ecstruct.errors import InputError
from ecstruct.io.distributed import Ranks, ranks
from ecstruct.models.bridge import named_weights
from ecstruct.models.delta import WeightDelta
from ecstruct.scores import batching
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.passes import Passes
from helpers.tiny import NAMES, PROMPTS, plain_pair, single_pair, tokenizer

TWO_TEMPLATES = [
    *(replace(p, template="speak") for p in PROMPTS),
    *(
        replace(p, text=f"{name} knows that people Dutch speak that", template="that")
        for name, p in zip(NAMES, PROMPTS, strict=True)
    ),
]
"""Prompts of 6 to 11 tokens."""

CASES = {
    "counterfactual": ("llama", {"batch_size": 3}),
    "a batch for one rank only": ("llama", {}),
    "rounds": ("llama", {"batch_size": 2, "round": 40}),
    "exact": ("neox", {"batch_size": 2, "upstream": "exact", "baseline": "mean", "round": 40}),
    "path": ("llama", {"batch_size": 4, "path_steps": 2, "baseline": "zero", "round": 40}),
    "answer": ("llama", {"batch_size": 4, "reward": "logprob", "answer_tokens": "all"}),
    "offload": ("llama", {"batch_size": 3, "offload": True, "round": 80}),
    "organism": ("organism", {"batch_size": 4}),
}
ON_TWO = ("a batch for one rank only", "rounds", "exact", "offload")
"""The cases that two ranks run, too: those in which their number matters to who has what."""


@cache
def organism():
    model = ecstruct.load("organism", device="cpu")
    generator = torch.Generator().manual_seed(0)
    noise = {
        name: 0.02 * w.detach().std().nan_to_num(0) * torch.randn(w.shape, generator=generator)
        for name, w in named_weights(model).items()
    }
    return model, WeightDelta(noise)


def save_checkpoints(folder: Path) -> None:
    """Save the checkpoints of a tiny family."""
    for plain, name in zip(plain_pair("llama"), ("before", "after"), strict=True):
        copy.deepcopy(plain).float().save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)


def engine_and_prompts(name: str, folder: Path):
    """Return the engine and prompts of a case; `folder` holds the checkpoints."""
    family, options = CASES[name]
    batching.TOKENS_PER_ROUND = options.get("round", 10_000)
    options = {key: value for key, value in options.items() if key != "round"}
    if family == "organism":
        return ScoreEngine(*organism(), progress=False, **options), ecstruct.facts.first_hop().implications
    pair = single_pair(family)
    if options.get("offload"):
        pair = str(folder / "before"), str(folder / "after")
    return ScoreEngine(*pair, progress=False, device="cpu", **options), TWO_TEMPLATES


def refused(joined: Ranks) -> str:
    """Return the error that a rank raises when options differ between ranks."""
    engine = ScoreEngine(
        *single_pair("llama"), baseline="mean" if joined.rank else "counterfactual", progress=False
    )
    try:
        engine.score_across(PROMPTS, joined)
    except InputError as error:
        return str(error)
    return ""


def kill(rank: int, shards: Path) -> None:
    passes: Any = Passes
    scored = passes._score_states

    def dying(self, layer, *arguments):
        if self.ranks.rank == rank and layer == 0:
            until = time.monotonic() + 60
            while not list(shards.glob("part-*")) and time.monotonic() < until:
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        return scored(self, layer, *arguments)

    passes._score_states = dying


def main(folder: str, fate: str, *words: str) -> None:
    torch.set_num_threads(1)
    out, rounds = Path(folder), batching.TOKENS_PER_ROUND
    with ranks("cpu") as joined:
        for name in CASES if joined.size > 2 else ON_TWO:
            engine, prompts = engine_and_prompts(name, out.parent)
            scores = engine.score_across(prompts, joined, out / f"{name}-shards")
            assert (scores is None) == (joined.rank > 0)
            if scores:
                scores.save(out / f"{name}.nc")
        (out / f"refused-{joined.rank}").write_text(refused(joined))
    batching.TOKENS_PER_ROUND = rounds
    if fate == "dies":
        kill(2, Path(words[words.index("--out") + 1]) / "shards")
    app(words)


if __name__ == "__main__":
    main(*sys.argv[1:])
