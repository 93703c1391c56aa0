"""The definition of a case, and the cases of any file: all kinds of damage to contents and place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.fuzz.damage import HEADERS, PATHS, PLACED, WRITTEN

Words = list[Any]
Make = Callable[[Path, Path], tuple[Words, str | tuple[str, ...]]]
"""Maps the folder of good inputs and the case's own folder, which contains OUT, to a command and the words
that its message must contain."""


@dataclass(frozen=True)
class Case:
    name: str
    make: Make


def filled(words: tuple[str, ...], inputs: Path, file: Path, out: Path) -> Words:
    known = {name: inputs / name for name in ("model", "after")}
    return [w.format(**known, prompts=inputs / "prompts.jsonl", file=file, out=out) for w in words]


def of_file(words: tuple[str, ...], name: str, good: Callable[[Path], bytes], skip: set[str]) -> list[Case]:
    """Return a case for every kind of damage to a file with the contents `good`, except those in `skip`."""

    def damaged(
        change: Callable[[bytes], bytes] = lambda data: data,
        place: Callable[[Path], object] = lambda _: None,
        called: Callable[[Path], Path] = lambda path: path,
    ) -> Make:
        def make(inputs: Path, folder: Path) -> tuple[Words, str]:
            path = folder / name
            path.write_bytes(change(good(inputs)))
            place(path)
            return filled(words, inputs, called(path), folder / "out"), called(path).name

        return make

    made = {
        **{damage: damaged(change=change) for damage, change in WRITTEN.items()},
        **{damage: damaged(place=place) for damage, place in PLACED.items()},
        **{damage: damaged(called=called) for damage, called in PATHS.items()},
    }
    return [Case(damage, make) for damage, make in made.items() if damage not in skip]


def named(target: str, cases: list[Case]) -> list[Case]:
    return [Case(f"{target}: {each.name}", each.make) for each in cases]


def damages(file: str) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Yield functions that damage the file at a path, with their names."""
    for name, change in WRITTEN.items():
        yield name, lambda path, c=change: path.write_bytes(c(path.read_bytes()))
    yield from PLACED.items()
    if file.endswith(".safetensors"):
        for name, content in HEADERS.items():
            yield name, lambda path, c=content: path.write_bytes(c)
