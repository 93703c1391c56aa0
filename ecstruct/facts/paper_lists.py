"""The word lists of the paper (appendix D): 100 made-up names, 20 cities, 20 animals."""

import json
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any


@cache
def paper_lists() -> MappingProxyType[str, Any]:
    """Return `names`, `animals`, and `cities`, each with its country, language and landmark."""
    file = resources.files("ecstruct.facts").joinpath("paper_lists.json")
    return MappingProxyType(json.loads(file.read_text(encoding="utf-8")))
