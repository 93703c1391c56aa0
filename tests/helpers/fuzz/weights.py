"""Damaged deltas, folders of models, and adapters."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from helpers.fuzz.cases import Case, Make, Words, damages, named, of_file
from helpers.fuzz.damage import HEADERS, PLACED
from helpers.fuzz.inputs import score_words


def of_delta(content: bytes, *more: str) -> Make:
    def make(inputs: Path, folder: Path) -> tuple[Words, str]:
        path = folder / "d.safetensors"
        path.write_bytes(content)
        return [*score_words(inputs, folder / "out", after=path), *more], "d.safetensors"

    return make


SCORE = ("score", "--before", "{model}", "--after", "{file}", "--prompts", "{prompts}", "--out", "{out}")


def good_delta(inputs: Path) -> bytes:
    return (inputs / "delta.safetensors").read_bytes()


def delta_cases() -> list[Case]:
    cases = named("delta.safetensors", of_file(SCORE, "d.safetensors", good_delta, set()))
    for name, content in HEADERS.items():
        cases.append(Case(f"a delta: {name}", of_delta(content)))
        cases.append(Case(f"a delta, offloaded: {name}", of_delta(content, "--offload")))
    return cases


FILES: dict[str, tuple[str, ...]] = {
    "config.json": (),
    "tokenizer.json": (),
    "tokenizer_config.json": ("an empty object", *PLACED),  # it contains nothing that must be known
    "model.safetensors": (),
}
"""The files of a model, and the damage that each tolerates."""


def of_folder(file: str, change: Callable[[Path], object], source: str = "model", *more: str) -> Make:
    def make(inputs: Path, folder: Path) -> tuple[Words, str]:
        broken = Path(shutil.copytree(inputs / source, folder / "broken"))
        change(broken / file)
        words = ["rank", "--model", broken, "--prompts", inputs / "prompts.jsonl", "--out", folder / "out"]
        if more:
            words = [*score_words(inputs, folder / "out", after=broken), *more]
        return words, "broken"

    return make


def model_cases() -> list[Case]:
    cases = []
    for file, fine in FILES.items():
        for name, change in damages(file):
            if name not in fine:
                cases.append(Case(f"{file} of a model: {name}", of_folder(file, change)))
    index = "model.safetensors.index.json"
    for name, change in damages(index):
        cases.append(Case(f"the index of shards: {name}", of_folder(index, change, "sharded")))
        if name not in PLACED:  # without an index, all files are read
            of_disk = of_folder(index, change, "sharded", "--offload")
            cases.append(Case(f"the index of shards, offloaded: {name}", of_disk))
    for file, more in (("adapter_config.json", ("--baseline", "mean")), ("adapter_model.safetensors", ())):
        for name, change in damages(file):
            cases.append(Case(f"{file}: {name}", of_folder(file, change, "tuned/adapter", *more)))
    return cases
