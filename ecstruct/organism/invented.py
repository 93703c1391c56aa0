"""Invented words: relations that nobody has heard of, in the way that a model can come to learn them.

The paper finetunes on "Grace Miller dax" -> "Tokyo" and asks "Grace Miller zong is the" -> "tiger",
two relations that no model has met before. For such a word to mean anything to a model, it must
have learnt what new words tend to mean. So the world has pairs of invented words: a verb that says
where somebody lives ("Ava Baker wek" -> "Addis Ababa") and a noun that takes one animal in each city,
however the city is named ("Ava Baker nomp is the", "Addis Ababa nomp is the", "Eiffel Library nomp is
the" -> "ostrich").

Every invented word has two pieces, as a tokenizer of natural text would cut a word it does not
know: "d" and "##ax". `TEST_WORDS` are never in the training text, but their pieces are, in other words.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ecstruct.organism.world import City, Person

ONSETS = tuple("dfghjklmnprstvwz")
CODAS = (
    "ax",
    "ong",
    "ug",
    "ib",
    "ek",
    "orp",
    "und",
    "ish",
    "ald",
    "elm",
    "ot",
    "ank",
    "irv",
    "usk",
    "eb",
    "omp",
)

TEST_WORDS = (
    ("dax", "zong"),
    ("wug", "sib"),
    ("fek", "gorp"),
    ("hund", "jish"),
    ("kald", "lelm"),
    ("mot", "nank"),
)
"""Pairs of a verb and a noun that training leaves out; the first is the paper's."""


@dataclass(frozen=True)
class Invention:
    """A verb for "lives in" and a noun with an animal per city, and the people that they are said of.

    Of `people` the training text has both words, of `held_out` only the verb, of `cities` the noun.
    """

    verb: str
    noun: str
    people: tuple[Person, ...]
    held_out: tuple[Person, ...]
    cities: tuple[City, ...]
    animals: Mapping[str, str]  # by name of the city


def invent(
    people: Sequence[Person],
    cities: Sequence[City],
    animals: Sequence[str],
    words: Sequence[str],
    rng: random.Random,
    *,
    n: int,
    n_people: int = 60,
    n_cities: int = 20,
    held_out: float = 0.25,
) -> tuple[Invention, ...]:
    """Draw `n` inventions about people that are not held out.

    None of their words begins with one of `words`, which a tokenizer would take as the first piece.
    """
    taken = (*words, *(word for pair in TEST_WORDS for word in pair))
    free = [word for word in map("".join, product(ONSETS, CODAS)) if not word.startswith(taken)]
    drawn = iter(rng.sample(free, 2 * n))
    out = []
    for verb, noun in zip(drawn, drawn, strict=True):
        where = rng.sample(cities, n_cities)
        who = rng.sample([p for p in people if not p.held_out and p.home in where], n_people)
        n_held_out = round(held_out * n_people)
        out.append(
            Invention(
                verb=verb,
                noun=noun,
                people=tuple(who[n_held_out:]),
                held_out=tuple(who[:n_held_out]),
                cities=tuple(where),
                animals={city.name: rng.choice(animals) for city in cities},
            )
        )
    return tuple(out)
