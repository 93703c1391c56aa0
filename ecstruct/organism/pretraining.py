"""Pretraining the organism: from a seed to a Hugging Face folder, in minutes on a laptop's CPU.

One seed fixes the world, the initial weights and the order of the sentences. The same seed and number of
threads give bit-identical weights (on one kind of CPU and one version of torch). The file
`pretraining.json` in the folder says how to replay the run and what it measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ecstruct.errors import InputError
from ecstruct.io.files import check_free, write_folder
from ecstruct.io.values import Count, Seed, Threads, check, or_none
from ecstruct.models.boot import without_bars
from ecstruct.organism.locality import local_windows
from ecstruct.organism.sentences import MIXTURE, vocabulary
from ecstruct.organism.tokenizer import word_tokenizer
from ecstruct.organism.training import CONTEXT, Recipe, held_out_accuracy, train
from ecstruct.organism.world import World

_PACKAGES = ("torch", "transformers", "tokenizers")
_TYPES: Mapping[str, Any] = {"seed": Seed, "steps": Count, "threads": or_none(Threads)}


def pretrain(
    out: Path | str,
    *,
    seed: int = 0,
    recipe: Recipe = Recipe(),  # noqa: B008
    snapshots: Sequence[int] = (),
    threads: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Pretrain an organism from scratch and write it to the folder `out`.

    Args:
        out: a folder that is empty or does not exist yet. It is filled in one go, at the end.
        seed: fixes the world, the initial weights and the order of the sentences.
        recipe: how it is trained; with far fewer steps than by default, the organism knows little.
        snapshots: steps after which to keep a copy of the model, in `out/snapshots/step-N`.
        threads: CPU threads to use; by default, the number that torch is set to.
        progress: show a progress bar.

    Returns:
        The content of `pretraining.json`: what replays the run, the seconds it took, and as
        `held_out_accuracy` the share of held-out implications whose first answer token is right.

    Raises:
        InputError: `out` cannot be filled, `threads` or the steps are below 1, or phases or snapshots are
            invalid.
    """
    out = Path(out)
    check_free(out)
    check({"seed": seed, "steps": recipe.steps, "threads": threads}, _TYPES, "the organism")
    for name, value in {"steps": recipe.steps, "threads": threads}.items():
        if value is not None and value < 1:
            raise InputError(f"{name}={value} cannot pretrain an organism; use 1 or more.")
    for step in snapshots:
        if not 1 <= step <= recipe.steps:
            raise InputError(f"there is no step {step} to keep; name steps from 1 to {recipe.steps}.")
    start = time.perf_counter()
    world = World.build(seed)
    _check_phases(recipe, world)
    words = vocabulary(world)
    tokenizer = word_tokenizer(words, context=CONTEXT)
    with _torch_threads(threads) as n_threads:
        model, kept = train(
            world, tokenizer, seed=seed, recipe=recipe, snapshots=snapshots, progress=progress
        )
        accuracy = held_out_accuracy(model, tokenizer, world)
    report = {
        "command": _command(seed, recipe),
        "seed": seed,
        "threads": n_threads,
        "recipe": asdict(recipe),
        "mixture": dict(MIXTURE),
        "world": {
            "people": len(world.people),
            "cities": len(world.cities),
            "offices": len(world.offices),
            "words": len(words),
        },
        "parameters": model.num_parameters(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "held_out_accuracy": accuracy,
        "seconds": round(time.perf_counter() - start, 1),
    }
    _write(out, {"": model} | {f"snapshots/step-{step}": m for step, m in kept.items()}, tokenizer, report)
    return report


def _command(seed: int, recipe: Recipe) -> str | None:
    """Return the command that repeats this run, or None for a recipe that only Python can express."""
    layers = len(recipe.local_windows)
    if recipe != Recipe(steps=recipe.steps, local_windows=local_windows(layers)):
        return None
    return f"ecstruct organism pretrain --seed {seed} --steps {recipe.steps} --local-layers {layers}"


def _check_phases(recipe: Recipe, world: World) -> None:
    steps = sum(phase.steps_of(recipe.steps) for phase in recipe.phases)
    if steps != recipe.steps:
        raise InputError(f"the phases share out {steps} steps, not {recipe.steps}; let shares sum to 1.")
    for phase in recipe.phases:
        if not 0 <= phase.inventions <= len(world.inventions):
            n = len(world.inventions)
            raise InputError(f"there are no {phase.inventions} inventions; a world has {n}.")
        for name in phase.categories or ():
            if name not in MIXTURE:
                raise InputError(f"there are no sentences {name!r}; choose among {', '.join(MIXTURE)}.")


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _write(
    out: Path,
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    report: Mapping[str, Any],
) -> None:

    def fill(folder: Path) -> None:
        for place, model in models.items():
            with without_bars():
                model.save_pretrained(folder / place)
            tokenizer.save_pretrained(folder / place)
        text = json.dumps(report, indent=2) + "\n"
        (folder / "pretraining.json").write_text(text, encoding="utf-8")

    check_free(out)
    write_folder(out, fill)
