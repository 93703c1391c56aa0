"""Organisms of other recipes: pretrained once, and never confused with one another.

Cells are kept by seed and variant, not by everything that a recipe says. So a folder is used again only for
the recipe and the snapshots that it was made with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ecstruct.errors import InputError
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.sweep import Sweep
from ecstruct.organism import Recipe


def organisms_only(setup: Setup | None, name: str) -> Setup:
    """Return the setup, or the default one, of an experiment that pretrains its models.

    Raises:
        InputError: the setup is not about organisms, the only models that can be pretrained here.
    """
    setup = setup or Setup()
    if setup.model != "organism":
        raise InputError(
            f"{name} pretrains its models, and {setup.model!r} is pretrained already: use "
            'Setup("organism").'
        )
    return setup


def pretrained(sweep: Sweep, name: str, seed: int, recipe: Recipe, snapshots: Sequence[int] = ()) -> Path:
    """Return the folder of an organism; pretrain it first unless it exists.

    Raises:
        InputError: the existing folder has another recipe or lacks a snapshot, or there is no folder to
            keep it in.
    """
    home = sweep.organism(name, seed, recipe=recipe, snapshots=snapshots)
    report = json.loads((home / "pretraining.json").read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(asdict(recipe)))  # tuples as lists
    if report["recipe"] != wanted:
        raise InputError(f"{home} was pretrained with another recipe: choose another folder for out=.")
    for step in snapshots:
        if not snapshot(home, step).exists():
            raise InputError(f"{home} has no snapshot of step {step}: choose another folder for out=.")
    return home


def snapshot(home: Path, step: int) -> Path:
    """Return the folder of the snapshot of an organism after `step` steps."""
    return home / "snapshots" / f"step-{step}"
