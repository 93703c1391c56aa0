"""Files of prompts, damaged as a whole or in single records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.fuzz.cases import Case, Make, Words, filled, named, of_file
from helpers.fuzz.damage import VALUES, put, ways, without

RANK = ("rank", "--model", "{model}", "--prompts", "{file}", "--out", "{out}")
PAIR = ("--before", "{model}", "--after", "{after}")
TAKE_PROMPTS: dict[str, tuple[str, ...]] = {
    "rank": RANK,
    "score": ("score", *PAIR, "--prompts", "{file}", "--out", "{out}"),
    "fidelity": ("fidelity", *PAIR, "--prompts", "{file}", "--out", "{out}"),
    "finetune": ("finetune", "--model", "{model}", "--facts", "{file}", "--lr", "1e-3", "--out", "{out}"),
    "finetune --evaluate": (
        *("finetune", "--model", "{model}", "--facts", "{prompts}", "--lr", "1e-3", "--out", "{out}"),
        *("--evaluate", "seen={file}"),
    ),
}


def good_prompts(inputs: Path) -> bytes:
    return (inputs / "prompts.jsonl").read_bytes()


RECORD = {
    **{"prompt": "Mia lives in", "answer": "Rome", "options": ["Rome", "Paris"], "subject": "Mia"},
    **{"template": "lives", "aliases": ["Roma"]},
}
OPTIONAL = ("options", "subject", "template", "aliases")


def bad_records() -> Iterator[tuple[str, Any]]:
    """Yield records with a wrong value, a missing key, or values that contradict one another."""
    for way in ways(RECORD):
        at = ".".join(map(str, way))
        for name, value in VALUES.items():
            same = isinstance(value, str) and value.strip() and value.isascii()
            left_out = value is None and way in [(key,) for key in OPTIONAL]
            if not (same or left_out or (value == [] and way == ("aliases",))):
                yield f"{at} is {name}", put(RECORD, way, value)
    for key in ("prompt", "answer"):
        yield f"no {key}", without(RECORD, (key,))
    yield "a subject of another text", {**RECORD, "subject": "Zoe"}
    yield "an answer that is no option", {**RECORD, "answer": "Oslo"}
    yield "an option twice", {**RECORD, "options": ["Rome", "Paris", "Rome"]}
    yield "an alias that is an option", {**RECORD, "aliases": ["Paris"]}
    yield "a prompt that ends with a blank", {**RECORD, "prompt": "Mia lives in "}
    yield "blanks around the answer", {**RECORD, "answer": " Rome"}


def of_record(record: Any) -> Make:
    def make(inputs: Path, folder: Path) -> tuple[Words, str]:
        path = folder / "p.jsonl"
        path.write_text(f"{json.dumps(RECORD)}\n{json.dumps(record)}\n")
        return filled(RANK, inputs, path, folder / "out"), "p.jsonl, line 2: "

    return make


def prompt_cases() -> list[Case]:
    cases = [
        each
        for target, words in TAKE_PROMPTS.items()
        for each in named(target, of_file(words, "p.jsonl", good_prompts, set()))
    ]
    cases += [Case(f"a record: {name}", of_record(record)) for name, record in bad_records()]
    return cases
