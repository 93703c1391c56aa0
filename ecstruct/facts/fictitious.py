"""The fictitious relations of the paper (appendix D): facts and implications in words nobody knows.

"{name} dax" takes a city and "{name} zong is the" an animal, the same for all people of a city. So
the city of a person is the hidden step from a fact to its implication, as in the two-hop facts, but
what is not known beforehand is the step from cities to animals: it has to be learnt, from the facts
and implications of some people (*train*), before it can be of use for others (*test*).

A second assignment of cities to the same people, in which nobody keeps their city, is F' of the
grafting experiment: `counterfactual`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ecstruct.errors import InputError
from ecstruct.facts.fact_set import FactSet
from ecstruct.facts.paper_lists import paper_lists
from ecstruct.facts.prompt import Prompt
from ecstruct.io.values import bounded

N_TEST = 20
"""The last names, one per city."""

_MOST_NAMES = 200
"""Assignments are drawn until nobody keeps their city; with more people that takes too long."""


@dataclass(frozen=True)
class Fictitious:
    """F and its implications, F' of the same people and its implications, and those of other people."""

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
    """80 people to learn the relations from and 20 to test them on.

    Each of the 20 cities is that of four people of `train`, of four of `counterfactual` and of one of
    `test`; which, and what animal goes with it, is drawn by `numpy.random.default_rng(seed)`. The
    options are the 20 cities and the 20 animals, the subject is the name.

    Args:
        fact, implication: the prompts, with `{name}`. With a relation that the model knows ("{name}
            lives in") the fact says what it can already mean; only the animals are then new.
        names: other people than the paper's 100, a multiple of 20 from 40 to 200.
        between: what the facts tell of a person and the animals depend on: `"city"`, or the
            `"country"`, `"language"` or `"landmark"` of the paper's cities instead.

    Raises:
        InputError: a template without `{name}`, names that are too few, too many, twice there or
            leave the cities uneven, or an unknown `between`.

    >>> fictitious().train.facts[0].text, fictitious().train.implications[0].text
    ('Grace Miller dax', 'Grace Miller zong is the')
    """
    for template in (fact, implication):
        if "{name}" not in template:
            raise InputError(f"the template {template!r} has no {{name}}: say where it goes.")
    values = _values(between)
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

    def told(names: Sequence[str], homes: np.ndarray, label: str) -> FactSet:
        return FactSet(
            [
                Prompt(fact.replace("{name}", name), values[home], values, name, f"{label} fact")
                for name, home in zip(names, homes, strict=True)
            ],
            [
                Prompt(
                    implication.replace("{name}", name),
                    animals[animal_of[home]],
                    tuple(animals),
                    name,
                    f"{label} implication",
                )
                for name, home in zip(names, homes, strict=True)
            ],
            label,
        )

    return Fictitious(
        train=told(train, homes, "train"),
        counterfactual=told(train, others, "counterfactual"),
        test=told(test, _shared_out(rng, len(test), len(values)), "test"),
    )


def _values(between: str) -> tuple[str, ...]:
    cities = paper_lists()["cities"]
    if between not in cities[0]:
        raise InputError(f"between={between!r} is unknown: choose among {', '.join(cities[0])}.")
    return tuple(city[between] for city in cities)


def _shared_out(rng: np.random.Generator, n: int, n_values: int) -> np.ndarray:
    """Each of the values for as many of the n people, in random order."""
    return rng.permutation(np.arange(n) % n_values)
