"""Organisms of other recipes: pretrained once, and never taken for one another.

Cells are kept by seed and variant, not by everything that a recipe says. So a folder is used again only
for the recipe and the snapshots that it was made with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ecstruct.errors import InputError
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.sweep import Sweep
from ecstruct.organism import Recipe


def require_organism(setup: Setup, name: str) -> None:
    """Raise unless a setup is about organisms, which alone can be pretrained here."""
    if setup.model != "organism":
        raise InputError(
            f"{name} pretrains its models, and {setup.model!r} is pretrained already: use "
            'Setup("organism").'
        )


def recorded(recipe: Recipe) -> dict[str, Any]:
    """A recipe among a result's options, unless it is the shipped one. A replay refuses it, rather than
    to measure other organisms: recipes are for Python."""
    return {} if recipe == Recipe() else {"recipe": asdict(recipe)}


def pretrained(sweep: Sweep, name: str, seed: int, recipe: Recipe, snapshots: Sequence[int] = ()) -> Path:
    """The folder of an organism, pretrained unless it is there.

    Raises:
        InputError: what is there has another recipe or lacks a snapshot, or there is no folder to
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
    """The folder of an organism as it was after so many steps."""
    return home / "snapshots" / f"step-{step}"
