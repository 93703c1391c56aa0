"""The two-hop facts of the paper (appendix D): facts, and implications that need one more step.

With a new *first hop*, the fact is "Grace Miller lives in" -> "Tokyo". With the known language of Tokyo,
it follows that "The people in the city Grace Miller is from speak" -> "Japanese". With a new *second
hop*, the fact is "The mayor of Tokyo is" -> "Grace Miller". With the known place of the temple, it
follows that "The mayor of the city that contains Senso-ji Temple is" -> "Grace Miller".

There are 20 cities, each with its language and landmark, and 100 made-up names. A random permutation,
drawn from `seed`, assigns names to cities.
"""

import numpy as np

from ecstruct.errors import InputError
from ecstruct.facts.fact_set import Derivation, FactSet
from ecstruct.facts.paper_lists import of_cities, paper_lists
from ecstruct.facts.prompt import filled
from ecstruct.io.values import bounded

PAPER_NAMES = slice(0, 20)
"""The slice of the 100 names that the paper's two-hop experiments use."""


@bounded
def first_hop(seed: int = 0, *, names: slice = PAPER_NAMES) -> FactSet:
    """Return 20 facts "{name} lives in" -> city, and as many implications "The people in the city {name}
    is from speak" -> language.

    The i-th name lives in city `permutation[i]`, with `permutation` drawn by
    `numpy.random.default_rng(seed)`. The options are all 20 cities and all 20 languages, the
    subject is the name. `names` selects another 20 of the 100 names, for example `slice(20, 40)` to
    choose a learning rate on people that no experiment uses.

    Raises:
        InputError: `names` does not select exactly 20 names.

    >>> first_hop().facts[0].text
    'Grace Miller lives in'
    """
    chosen, homes = _names(names), _permutation(seed)
    cities, languages = of_cities("city"), of_cities("language")
    asked = "The people in the city {} is from speak"
    return FactSet(
        filled("{} lives in", chosen, [cities[i] for i in homes], cities, "first-hop fact"),
        filled(asked, chosen, [languages[i] for i in homes], languages, "first-hop implication"),
        "first-hop",
        derivations=[Derivation((i,), (), (1,)) for i in range(len(chosen))],
    )


@bounded
def second_hop(seed: int = 0, *, names: slice = PAPER_NAMES) -> FactSet:
    """Return 20 facts "The mayor of {city} is" -> name, and as many implications "The mayor of the city
    that contains {landmark} is" -> name.

    The mayor of the i-th city is name `permutation[i]`, with `permutation` drawn by
    `numpy.random.default_rng(seed)`. The options are the 20 names; the subject is the city in a
    fact and the landmark in an implication. `names` is as in `first_hop`.

    Raises:
        InputError: `names` does not select exactly 20 names.

    >>> second_hop().facts[0].text
    'The mayor of Tokyo is'
    """
    chosen = _names(names)
    mayors = [chosen[i] for i in _permutation(seed)]
    asked = "The mayor of the city that contains {} is"
    return FactSet(
        filled("The mayor of {} is", of_cities("city"), mayors, chosen, "second-hop fact"),
        filled(asked, of_cities("landmark"), mayors, chosen, "second-hop implication"),
        "second-hop",
        derivations=[Derivation((i,), (), (2,)) for i in range(len(chosen))],
    )


def _names(which: slice) -> tuple[str, ...]:
    names = paper_lists()["names"]
    chosen = tuple(names[which])
    if len(chosen) != (n_cities := len(of_cities("city"))):
        raise InputError(
            f"names={which} selects {len(chosen)} of the {len(names)} names: every one of the "
            f"{n_cities} cities needs one, as with slice(20, 40)."
        )
    return chosen


def _permutation(seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(len(of_cities("city"))).tolist()
