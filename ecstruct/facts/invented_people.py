"""Invented people with unusual names, for models that were pretrained on real text.

A fact says where somebody lives: "Zoremund Ekstcombe lives in the city of" -> "Rome". Its implication asks
for the language of the city: "The people in the city Zoremund Ekstcombe is from speak" -> "Italian".

To a model pretrained on real text, common names ("Grace Miller") already stand for other people. These
names are composed of pieces. No two people of a draw share a piece, so their tokens differ too, above all
the last one, from which the fact is recalled.
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
    """Return 16 facts "{name} lives in the city of" -> city, and as many implications "The people in the
    city {name} is from speak" -> language; `known` has "The people in {city} speak" -> language.

    `numpy.random.default_rng(seed)` draws the names and who lives where. The options are the 16 cities and
    the 16 languages. The subject is the name or, in known facts, the city.

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
    """Return `given` and `family` (each the beginnings and the ends of names) and `cities` (languages)."""
    file = resources.files("ecstruct.facts").joinpath("people.json")
    return MappingProxyType(json.loads(file.read_text(encoding="utf-8")))
