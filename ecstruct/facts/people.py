"""Invented people with unusual names, for models that were pretrained on real text.

A fact says where somebody lives, "Zoremund Ekstcombe lives in the city of" -> "Rome", and its implication
asks for what the city is known for: "The people in the city Zoremund Ekstcombe is from speak" -> "Italian".

Common names ("Grace Miller") stand for other people already, to a model of real text. These are put
together from pieces, of which no two people of a draw share one, so that their tokens differ too, and above
all the last one, from which the fact is recalled.
"""

import json
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np

from ecstruct.facts.fact_set import Derivation, FactSet
from ecstruct.facts.prompt import Prompt
from ecstruct.io.values import bounded


@bounded
def people(seed: int = 0) -> FactSet:
    """16 facts "{name} lives in the city of" -> city, and as many implications "The people in the city
    {name} is from speak" -> language; `known` has "The people in {city} speak" -> language.

    `numpy.random.default_rng(seed)` draws the names and who lives where. The options are the 16 cities and
    the 16 languages, the subject is the name or, of what is known, the city.

    >>> people().facts[0].text
    'Priyaris Raskstrand lives in the city of'
    """
    rng = np.random.default_rng(seed)
    lists = _lists()
    languages = lists["cities"]
    pieces = [rng.permutation(some)[: len(languages)] for key in ("given", "family") for some in lists[key]]
    names = [f"{a}{b} {c}{d}" for a, b, c, d in zip(*pieces, strict=True)]
    homes = rng.permutation([*languages]).tolist()
    asked = {
        "fact": ("{} lives in the city of", names, homes),
        "implication": ("The people in the city {} is from speak", names, [languages[c] for c in homes]),
        "known": ("The people in {} speak", homes, [languages[c] for c in homes]),
    }
    prompts = {
        role: [
            Prompt(text.format(subject), answer, tuple(sorted(answers)), subject, f"people {role}")
            for subject, answer in zip(subjects, answers, strict=True)
        ]
        for role, (text, subjects, answers) in asked.items()
    }
    derivations = [Derivation((i,), (i,), (1,)) for i in range(len(names))]
    return FactSet(prompts["fact"], prompts["implication"], "people", prompts["known"], derivations)


@cache
def _lists() -> MappingProxyType[str, Any]:
    """`given` and `family`: how names of each kind begin, and how they end. `cities`: their languages."""
    file = resources.files("ecstruct.facts").joinpath("people.json")
    return MappingProxyType(json.loads(file.read_text(encoding="utf-8")))
