"""Grids of sweeps with everything that YAML can hold, and with values of wrong types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from helpers.fuzz.cases import Case, Make, Words, filled, named, of_file
from helpers.fuzz.configurations import stands
from helpers.fuzz.damage import DEEP, VALUES, put, ways

GRID: dict[str, Any] = {
    **{"experiments": ["ocr"], "models": ["organism"], "learning_rates": [1e-4], "epochs": [1]},
    **{"seeds": [0], "repeats": 1, "batch_size": 8, "early": 0.5, "own_rates": False},
    **{"rates": None, "known": {"fact": "{name} a", "implication": "{name} b"}, "options": {"ocr": {}}},
}
GRIDS: dict[str, bytes] = {
    "a tag that runs code": b"experiments: !!python/object/apply:os.system ['true']\n",
    "a tag of a tuple": b"experiments: !!python/tuple [ocr]\n",
    "an unknown tag": b"experiments: !mine [ocr]\n",
    "an alias of nothing": b"experiments: *none\n",
    "a list that holds itself": b"experiments: &a [ocr, *a]\n",
    "lists of lists of aliases": b"a0: &a0 [ocr, ocr]\n"
    + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 40))
    + b"experiments: *a39\n",
    "a key twice": b"experiments: [ocr]\nseeds: [0]\nseeds: [1]\n",
    "a key that is a list": b"? [a, b]\n: [ocr]\nexperiments: [ocr]\n",
    "a key that is an object": b"? {a: b}\n: [ocr]\nexperiments: [ocr]\n",
    "a number for a key": b"7: [ocr]\nexperiments: [ocr]\n",
    "a date for a seed": b"experiments: [ocr]\nseeds: [2020-01-01]\n",
    "a date that is none": b"experiments: [ocr]\nseeds: [2020-99-99]\n",
    "a number of 10,000 digits": b"experiments: [ocr]\nseeds: [" + b"9" * 10_000 + b"]\n",
    "more than one document": b"experiments: [ocr]\n---\nexperiments: [ocr]\n",
    "tabs": b"experiments:\n\t- ocr\n",
    "a list that does not end": b"experiments: [ocr\n",
    "a text that does not end": b'experiments: ["ocr]\n',
    "lists in lists below a key": b"experiments: " + b"[" * DEEP + b"]" * DEEP,
    "indented 2,000 times": b"".join(b" " * i + b"a:\n" for i in range(2000)),
    "a control character": b"experiments: [o\x07cr]\n",
    "10,000 options twice": b"experiments: [ocr]\nseeds: [" + b"7," * 10_000 + b"]\n",
    "an axis of text": b"experiments: ocr\n",
    "infinity": b"experiments: [ocr]\nlearning_rates: [.inf]\n",
    "no number": b"experiments: [ocr]\nlearning_rates: [.nan]\n",
    "a binary": b"experiments: [!!binary aGVsbG8=]\n",
    "a set": b"experiments: !!set {ocr}\n",
    "a merge of a text": b"<<: text\nexperiments: [ocr]\n",
}
SWEEP = ("sweep", "{file}", "--out", "{out}")


def of_grid(content: bytes) -> Make:
    def make(inputs: Path, folder: Path) -> tuple[Words, str]:
        path = folder / "grid.yaml"
        path.write_bytes(content)
        return filled(SWEEP, inputs, path, folder / "out"), "grid.yaml"

    return make


def grid_cases() -> list[Case]:
    good = yaml.safe_dump(GRID).encode()
    cases = named("grid.yaml", of_file(SWEEP, "grid.yaml", lambda _: good, {"cut in the middle"}))
    cases += [Case(f"a grid: {name}", of_grid(content)) for name, content in GRIDS.items()]
    for way in ways(GRID):
        was = GRID
        for part in way:
            was = was[part]
        for name, value in VALUES.items():
            if name == "half a pair" or stands(way, was, name, value):  # YAML cannot write half a pair
                continue
            content = yaml.safe_dump(put(GRID, way, value), allow_unicode=True).encode()
            cases.append(Case(f"a grid: {'.'.join(map(str, way))} is {name}", of_grid(content)))
    cases.append(Case("a grid: no experiments", of_grid(b"seeds: [0]\n")))
    return cases
