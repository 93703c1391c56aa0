"""Pretraining the organism: from a seed to a Hugging Face folder, in minutes on a laptop's CPU.

One seed fixes the world, the initial weights and the order of the sentences, so that the same seed
and the same number of threads give bit-identical weights (on one kind of CPU and one version of
torch). Beside the model, `pretraining.json` says how to replay the run and what it measured.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ecstruct.errors import InputError
from ecstruct.organism.sentences import MIXTURE, held_out_sentences, vocabulary
from ecstruct.organism.tokenizer import word_tokenizer
from ecstruct.organism.training import CONTEXT, Recipe, first_token_accuracy, train
from ecstruct.organism.world import World

_PACKAGES = ("torch", "transformers", "tokenizers")


def pretrain(
    out: Path | str,
    *,
    seed: int = 0,
    steps: int = Recipe.steps,
    threads: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Pretrain an organism from scratch and write it to the folder `out`.

    Args:
        out: a folder that is empty or does not exist yet. It is filled in one go, at the end.
        seed: fixes the world, the initial weights and the order of the sentences.
        steps: optimiser steps; with far fewer than the default the organism knows little.
        threads: CPU threads to use; by default, those that torch is set to.
        progress: show a progress bar.

    Returns:
        The content of `pretraining.json`: what replays the run, the seconds it took, and as
        `held_out_accuracy` the share of held-out implications whose first answer token is right.

    Raises:
        InputError: `out` cannot be filled, or `steps` or `threads` is below 1.
    """
    out = Path(out)
    _check_out(out)
    for name, value in {"steps": steps, "threads": threads}.items():
        if value is not None and value < 1:
            raise InputError(f"{name}={value} cannot pretrain an organism; use 1 or more")
    recipe = Recipe(steps=steps)
    start = time.perf_counter()
    world = World.build(seed)
    words = vocabulary(world)
    tokenizer = word_tokenizer(words, context=CONTEXT)
    with _torch_threads(threads) as n_threads:
        model = train(world, tokenizer, seed=seed, recipe=recipe, progress=progress)
        accuracy = {
            name: first_token_accuracy(model, tokenizer, sentences)
            for name, sentences in held_out_sentences(world).items()
        }
    report = {
        "command": f"ecstruct organism pretrain --seed {seed} --steps {steps}",
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
    _write(out, model, tokenizer, report)
    return report


def _check_out(out: Path) -> None:
    """Raise unless `out` can be filled; makes its parent folders."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder that is empty or does not exist yet")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; empty it or name another folder for the organism")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=out.parent).cleanup()
    except OSError as error:
        why = f"cannot be written ({error.strerror})"
        raise InputError(f"{out} {why}; name a folder that you may create") from error


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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    report: Mapping[str, Any],
) -> None:
    """Fill `out` by one rename, so that no half-written folder is ever seen there."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / out.name
        with _no_transformers_progress():
            model.save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)  # safetensors makes it unreadable to others
        tokenizer.save_pretrained(folder)
        text = json.dumps(report, indent=2) + "\n"
        (folder / "pretraining.json").write_text(text, encoding="utf-8")
        _check_out(out)
        if out.exists():
            out.rmdir()
        folder.rename(out)


@contextmanager
def _no_transformers_progress() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
