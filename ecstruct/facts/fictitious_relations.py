"""The fictitious relations of the paper (appendix D): facts and implications in invented words.

The answer to "{name} dax" is a city, and that to "{name} zong is the" an animal, the same for all people
of a city. As in the two-hop facts, the city of a person links a fact to its implication. But here the
model does not know the step from cities to animals: it has to learn it from the facts and implications
of some people (*train*) before it can use it for others (*test*).

`counterfactual` is a second assignment of cities to the same people, in which nobody keeps their city:
F' of the grafting experiment.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ecstruct.errors import InputError
from ecstruct.facts.fact_set import FactSet
from ecstruct.facts.paper_lists import of_cities, paper_lists
from ecstruct.facts.prompt import filled
from ecstruct.io.values import bounded

N_TEST = 20
"""The number of people, the last ones, that are for testing: one per city."""

_MOST_NAMES = 200
"""The most people: assignments are drawn until nobody keeps their city, which takes too long with more."""


@dataclass(frozen=True)
class Fictitious:
    """Facts with implications: F (`train`), F' of the same people (`counterfactual`), others' (`test`)."""

    train: FactSet
    counterfactual: FactSet
    test: FactSet


@bounded
def fictitious(
    seed: int = 0,
    *,
    fact: str = "{name} dax",
    implication: str = "{name} zong is the",
    names: Sequence[str] | None = None,
    between: str = "city",
) -> Fictitious:
    """Return 80 people from whom to learn the relations, and 20 on whom to test them.

    Each of the 20 cities is that of four people in `train`, of four in `counterfactual` and of one in
    `test`. `numpy.random.default_rng(seed)` draws which these are, and the animal of each city. The
    options are the 20 cities and the 20 animals, the subject is the name.

    Args:
        fact, implication: The prompts, with `{name}`. If the fact uses a relation that the model knows
            ("{name} lives in"), only the animals are new.
        names: People instead of the paper's 100: a multiple of 20, from 40 to 200.
        between: The property of a person that facts state and that determines the animal: `"city"`, or
            the `"country"`, `"language"` or `"landmark"` of the paper's cities.

    Raises:
        InputError: A template has no `{name}`; there are too few or too many names, one is there twice,
            or they cannot be shared out evenly; or `between` is unknown.

    >>> fictitious().train.facts[0].text, fictitious().train.implications[0].text
    ('Grace Miller dax', 'Grace Miller zong is the')
    """
    for template in (fact, implication):
        if "{name}" not in template:
            raise InputError(f"the template {template!r} has no {{name}}: say where it goes.")
    if between not in (known := paper_lists()["cities"][0]):
        raise InputError(f"between={between!r} is unknown: choose among {', '.join(known)}.")
    values = of_cities(between)
    animals = paper_lists()["animals"]
    people = tuple(paper_lists()["names"] if names is None else names)
    fewest = N_TEST + len(values)
    even = len(people) % len(values) == 0 and fewest <= len(people) <= _MOST_NAMES
    if not even or len(set(people)) < len(people):
        raise InputError(
            f"{len(people)} names ({len(set(people))} different) cannot be shared out evenly: give "
            f"{fewest} to {_MOST_NAMES} different ones, a multiple of {len(values)}."
        )
    rng = np.random.default_rng(seed)
    animal_of = rng.permutation(len(animals))
    train, test = people[:-N_TEST], people[-N_TEST:]
    homes = _shared_out(rng, len(train), len(values))
    others = _shared_out(rng, len(train), len(values))
    while (others == homes).any():
        others = _shared_out(rng, len(train), len(values))

    def about(names: Sequence[str], homes: np.ndarray, label: str) -> FactSet:
        """Return the facts and implications about people, whose cities are values[homes]."""
        cities, kept = [values[home] for home in homes], [animals[animal_of[home]] for home in homes]
        return FactSet(
            filled(fact, names, cities, values, f"{label} fact", holder="{name}"),
            filled(implication, names, kept, tuple(animals), f"{label} implication", holder="{name}"),
            label,
        )

    return Fictitious(
        train=about(train, homes, "train"),
        counterfactual=about(train, others, "counterfactual"),
        test=about(test, _shared_out(rng, len(test), len(values)), "test"),
    )


def _shared_out(rng: np.random.Generator, n: int, n_values: int) -> np.ndarray:
    """Return the index of a value for each of n people, in random order, all values equally often."""
    return rng.permutation(np.arange(n) % n_values)
