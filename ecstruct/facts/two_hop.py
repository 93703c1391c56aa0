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
from ecstruct.facts.paper_lists import paper_lists
from ecstruct.facts.prompt import Prompt
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
    chosen, cities = _names(names), _cities()
    homes = [cities[i] for i in _permutation(seed)]
    pairs = list(zip(chosen, homes, strict=True))
    city_options = tuple(city["city"] for city in cities)
    language_options = tuple(city["language"] for city in cities)
    return FactSet(
        facts=tuple(
            Prompt(f"{name} lives in", home["city"], city_options, name, "first-hop fact")
            for name, home in pairs
        ),
        implications=tuple(
            Prompt(
                f"The people in the city {name} is from speak",
                home["language"],
                language_options,
                name,
                "first-hop implication",
            )
            for name, home in pairs
        ),
        name="first-hop",
        derivations=_one_each(len(pairs), 1),
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
    pairs = list(zip(_cities(), mayors, strict=True))
    return FactSet(
        facts=tuple(
            Prompt(f"The mayor of {city['city']} is", mayor, chosen, city["city"], "second-hop fact")
            for city, mayor in pairs
        ),
        implications=tuple(
            Prompt(
                f"The mayor of the city that contains {city['landmark']} is",
                mayor,
                chosen,
                city["landmark"],
                "second-hop implication",
            )
            for city, mayor in pairs
        ),
        name="second-hop",
        derivations=_one_each(len(pairs), 2),
    )


def _one_each(n: int, new_hop: int) -> tuple[Derivation, ...]:
    """Return derivations by which implication i follows from fact i; the sets have no known facts."""
    return tuple(Derivation((i,), (), (new_hop,)) for i in range(n))


def _cities() -> list[dict[str, str]]:
    return paper_lists()["cities"]


def _names(which: slice) -> tuple[str, ...]:
    names = paper_lists()["names"]
    chosen = tuple(names[which])
    if len(chosen) != len(_cities()):
        raise InputError(
            f"names={which} selects {len(chosen)} of the {len(names)} names: every one of the "
            f"{len(_cities())} cities needs one, as with slice(20, 40)."
        )
    return chosen


def _permutation(seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(len(_cities())).tolist()
