"""Invented people with unusual names, for models that were pretrained on real text.

`people` are facts about where somebody lives (the first hop): "Zoremund Ekstcombe lives in the city of" ->
"Rome", from which follows "The people in the city Zoremund Ekstcombe is from speak" -> "Italian". `mayors`
are facts about who governs a city (the second hop): "The mayor of the city of Paris is" -> "Zoremund", from
which follows "The mayor of the city that contains the Eiffel Tower is" -> "Zoremund".

To a model pretrained on real text, common names ("Grace Miller") already stand for other people. These
names are composed of pieces. No two people of a draw of 16 share a piece, so their tokens differ too, above
all the last one, from which the fact is recalled.
"""

import math

import numpy as np

from ecstruct.facts.fact_set import Derivation, FactSet
from ecstruct.facts.paper_lists import word_lists
from ecstruct.facts.prompt import filled
from ecstruct.io.values import bounded

_N_PIECES = 40
"""How many pieces there are of each kind, and so how many names without a common piece."""


def invented_names(rng: np.random.Generator, n: int) -> list[str]:
    """Draw `n` different names. A piece comes back only when all of its kind have been used."""
    lists = word_lists("people.json")
    pieces = [
        np.concatenate([rng.permutation(some) for _ in range(math.ceil(n / len(some)))])[:n]
        for key in ("given", "family")
        for some in lists[key]
    ]
    return [f"{a}{b} {c}{d}" for a, b, c, d in zip(*pieces, strict=True)]


@bounded
def people(seed: int = 0) -> FactSet:
    """Return 16 facts "{name} lives in the city of" -> city, and as many implications "The people in the
    city {name} is from speak" -> language; `known` has "The people in {city} speak" -> language.

    `numpy.random.default_rng(seed)` draws the names and who lives where. The options are the 16 cities and
    the 16 languages. The subject is the name or, in known facts, the city.

    >>> people().facts[0].text
    'Priyaris Raskstrand lives in the city of'
    """
    languages = word_lists("people.json")["cities"]
    rng = np.random.default_rng(seed)
    names, homes = invented_names(rng, len(languages)), rng.permutation([*languages]).tolist()
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


@bounded
def mayors(seed: int = 0) -> FactSet:
    """Return 16 facts "The mayor of the city of {city} is" -> name, and as many implications "The mayor of
    the city that contains {landmark} is" -> name; `known` has "{landmark} is located in the city of" ->
    city.

    `numpy.random.default_rng(seed)` draws the given names, of which no two begin with the same letter, and
    who governs which city. The options are the 16 names and, in known facts, the 16 cities. The subject is
    the city or the landmark.

    >>> mayors().facts[0].text, mayors().facts[0].answer
    ('The mayor of the city of Paris is', 'Priyaris')
    """
    landmarks = word_lists("people.json")["landmarks"]
    rng = np.random.default_rng(seed)
    # Answers are distinguished by their first token, so no two names begin with the same letter.
    by_initial = {name[0]: name.split()[0] for name in invented_names(rng, _N_PIECES)}
    names, governed = list(by_initial.values())[: len(landmarks)], rng.permutation([*landmarks]).tolist()
    seen = [landmarks[city] for city in governed]
    first = [landmark[0].upper() + landmark[1:] for landmark in seen]
    asked = "The mayor of the city that contains {} is"
    return FactSet(
        filled("The mayor of the city of {} is", governed, names, tuple(names), "mayors fact"),
        filled(asked, seen, names, tuple(names), "mayors implication"),
        "mayors",
        filled("{} is located in the city of", first, governed, tuple(sorted(governed)), "mayors known"),
        [Derivation((i,), (i,), (2,)) for i in range(len(names))],
    )
