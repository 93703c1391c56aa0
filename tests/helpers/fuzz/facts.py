"""Damaged files and folders of facts, and damaged saved datasets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset

from helpers.facts_fixtures import FACTS
from helpers.fuzz.cases import Case, Make, Words, named, of_file
from helpers.fuzz.damage import DEEP, WRITTEN
from helpers.readers_records import RECORDS, written

SHOW = ("facts", "show", "{file}", "--out", "{out}")
OF_FACTS = {
    "json": ("mquake", set[str]()),
    "jsonl": ("prompts", {"cut in the middle"}),  # the cut is between two lines
    "csv": ("hopping", set[str]()),
    "tsv": ("twohopfact", set[str]()),
}


def fact_file(suffix: str) -> Callable[[Path], bytes]:
    record = RECORDS[OF_FACTS[suffix][0]]

    def good(_: Path) -> bytes:
        if suffix == "jsonl":
            return "".join(f"{json.dumps(record)}\n" for record in (record, record)).encode()
        if suffix == "json":
            return json.dumps([record]).encode()
        by = "\t" if suffix == "tsv" else ","
        return f"{by.join(record)}\n{by.join(str(v) for v in record.values())}\n".encode()

    return good


def in_folder(change: Callable[[Path], None]) -> Make:
    """Make a folder of files, one of them damaged."""

    def make(_inputs: Path, folder: Path) -> tuple[Words, str]:
        home = folder / "facts"
        home.mkdir()
        written(home, "lre", RECORDS["lre"])
        change(home)
        return ["facts", "show", home, "--out", folder / "out"], "facts"

    return make


def one_more(folder: Path, change: Callable[[bytes], bytes]) -> None:
    (folder / "more.json").write_bytes(change(json.dumps(RECORDS["lre"]).encode()))


def in_saved(change: Callable[[Path], object]) -> Make:
    """Make a folder with a saved dataset, and damage it."""

    def make(_inputs: Path, folder: Path) -> tuple[Words, str]:
        home = folder / "saved"
        Dataset.from_list([{"prompt": p, "answer": a} for p, a in FACTS]).save_to_disk(home)
        change(home)
        return ["facts", "show", home, "--out", folder / "out"], "saved"

    return make


SAVED: dict[str, Callable[[Path], object]] = {
    "a cut-off table": lambda f: next(f.glob("*.arrow")).write_bytes(b"ARROW1"),
    "no table": lambda f: next(f.glob("*.arrow")).unlink(),
    "a state that is no JSON": lambda f: (f / "state.json").write_text("{"),
    "a state that is a list": lambda f: (f / "state.json").write_text("[]"),
    "a state without files": lambda f: (f / "state.json").write_text("{}"),
    "a state that is nested deeply": lambda f: (f / "state.json").write_text("[" * DEEP),
    "no features": lambda f: (f / "dataset_info.json").write_text('{"features": 3}'),
}


def fact_cases() -> list[Case]:
    cases = []
    for suffix, (_, stands) in OF_FACTS.items():
        cases += named(f"facts.{suffix}", of_file(SHOW, f"x.{suffix}", fact_file(suffix), stands))
    for name, change in WRITTEN.items():
        if name not in ("an empty object", "a pointer of git"):  # their records are listed as left out
            cases.append(Case(f"facts in a folder: {name}", in_folder(lambda f, c=change: one_more(f, c))))
    cases.append(Case("facts in a folder: none", in_folder(lambda f: shutil.rmtree(f) or f.mkdir())))
    cases += [Case(f"a saved dataset: {name}", in_saved(change)) for name, change in SAVED.items()]
    return cases
