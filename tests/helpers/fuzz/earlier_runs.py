"""Damaged files that runs continue from, by their place; test_pieces covers damaged contents."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from ecstruct.grids import Grid
from ecstruct.grids.cell import CellFiles
from ecstruct.io.store import save_json
from helpers.fuzz.cases import Case, Make, Words, damages
from helpers.fuzz.damage import PLACED
from helpers.fuzz.inputs import score_words

LINKS = ("a dangling link", "a link to itself")


def resumed(source: str, pattern: str, change: Callable[[Path], object], words: str) -> Make:
    """Make a run whose OUT holds the files of an earlier run, one of them damaged."""

    def make(inputs: Path, folder: Path) -> tuple[Words, str]:
        out = Path(shutil.copytree(inputs / source, folder / "out"))
        change(next(path for path in sorted(out.glob(pattern)) if path.is_file()))
        prompts = inputs / "prompts.jsonl"
        if words == "score":
            return [*score_words(inputs, out), "--batch-size", 2, "--quiet"], Path(pattern).parts[0]
        tuning = ("finetune", "--model", inputs / "model", "--facts", prompts, "--lr", 0.01, "--epochs", 1)
        return [*tuning, "--checkpoint-every", 1, "--out", out, "--quiet"], "checkpoint"

    return make


def resumed_cases() -> list[Case]:
    cases = []
    for file in ("run.json", "*.safetensors"):
        for name, change in PLACED.items():
            if name in LINKS and file != "run.json":
                continue  # this counts as a missing file
            made = resumed("begun", f"checkpoint/step-*/{file}", change, "finetune")
            cases.append(Case(f"{file} of a checkpoint: {name}", made))
    for file in ("part-*.safetensors", "baseline.safetensors"):
        for name, change in PLACED.items():
            if name == "a dangling link":
                continue  # this counts as no file
            cases.append(
                Case(f"{file} of a scoring: {name}", resumed("parts", f"shards/{file}", change, "score"))
            )
    return cases


SWEPT: dict[str, tuple[str, tuple[str, ...]]] = {
    "grid.json": ("--status", ()),
    "queue.json": ("--status", LINKS[:1]),
    "cells/*/attempts.json": ("--status", ("an empty list", *LINKS[:1])),
}
"""Files of a sweep, the option that reads them, and the damage that counts as a missing file."""


def swept(pattern: str, change: Callable[[Path], object], option: str) -> Make:
    """Make a sweep whose cells are all done, with a damaged file."""

    def make(inputs: Path, folder: Path) -> tuple[Words, tuple[str, ...]]:
        out = folder / "out"
        grid = Grid(["ocr"])
        place = CellFiles(out, grid.cells()[0])
        place.home.mkdir(parents=True)
        (out / "grid.json").write_text(json.dumps(grid.to_dict(), indent=1))
        (out / "queue.json").write_text('{"waiting": [], "jobs": {}, "slurm": false}')
        (place.home / "attempts.json").write_text('[{"job": "1", "started": 1.0, "seconds": 2.0}]')
        result = {"cell": place.cell.columns(), "rows": [{"rank": 1.0}], "results": {}}
        save_json(place.home / "result.json", result)
        change(next(iter(out.glob(pattern))))
        return ["sweep", "--out", out, option, "--quiet"], (Path(pattern).name, "out holds")

    return make


def swept_cases() -> list[Case]:
    return [
        Case(f"{Path(pattern).name} of a sweep: {name}", swept(pattern, change, option))
        for pattern, (option, fine) in SWEPT.items()
        for name, change in damages(pattern)
        if name not in fine
    ]
