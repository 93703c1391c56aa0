"""The word lists in this package, above all the paper's (appendix D): 100 made-up names, 20 cities, 20
animals."""

import json
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any


@cache
def word_lists(file: str) -> MappingProxyType[str, Any]:
    """Return the lists of a JSON file of this package."""
    text = resources.files("ecstruct.facts").joinpath(file).read_text(encoding="utf-8")
    return MappingProxyType(json.loads(text))


def paper_lists() -> MappingProxyType[str, Any]:
    """Return `names`, `animals`, and `cities`, each with its country, language and landmark."""
    return word_lists("paper_lists.json")


def of_cities(key: str) -> tuple[str, ...]:
    """Return the "city" (its name), "country", "language" or "landmark" of every city."""
    return tuple(city[key] for city in paper_lists()["cities"])
