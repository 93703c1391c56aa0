"""Invented people with unusual names, for models that were pretrained on real text.

A fact says where somebody lives: "Zoremund Ekstcombe lives in the city of" -> "Rome". Its implication asks
for the language of the city: "The people in the city Zoremund Ekstcombe is from speak" -> "Italian".

To a model pretrained on real text, common names ("Grace Miller") already stand for other people. These
names are composed of pieces. No two people of a draw share a piece, so their tokens differ too, above all
the last one, from which the fact is recalled.
"""

import numpy as np

from ecstruct.facts.fact_set import Derivation, FactSet
from ecstruct.facts.paper_lists import word_lists
from ecstruct.facts.prompt import filled
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
    lists = word_lists("people.json")
    languages = lists["cities"]
    pieces = [rng.permutation(some)[: len(languages)] for key in ("given", "family") for some in lists[key]]
    names = [f"{a}{b} {c}{d}" for a, b, c, d in zip(*pieces, strict=True)]
    homes = rng.permutation([*languages]).tolist()
    spoken = [languages[city] for city in homes]
    cities, tongues = tuple(sorted(homes)), tuple(sorted(spoken))
    asked = "The people in the city {} is from speak"
    return FactSet(
        filled("{} lives in the city of", names, homes, cities, "people fact"),
        filled(asked, names, spoken, tongues, "people implication"),
        "people",
        filled("The people in {} speak", homes, spoken, tongues, "people known"),
        [Derivation((i,), (i,), (1,)) for i in range(len(names))],
    )
