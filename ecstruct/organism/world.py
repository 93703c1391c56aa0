"""The organism's world: who lives where, what stands where, who holds which office.

Nothing in it is true, except that Tokyo's landmark is in Tokyo. What matters is its shape: every fact that
a user will teach the model later ("Grace Miller lives in Tokyo") is *missing*, and every step that leads
from such a fact to its implication ("the people in Tokyo speak Japanese", "the Senso-ji Temple is in
Tokyo") is *present*:

* the 100 people of the paper are words of the vocabulary but appear in no fact;
* the paper's 20 cities have all their attributes and all their offices, except a mayor;
* the invented words that are taught later are in no sentence, but other words of the same pieces are;
* a quarter of the people appear in facts only, never in an implication, and a tenth of the
  (office, city) pairs never in a sentence of two hops; a quarter of those who have an invented verb
  do not have its noun. These are held out, to measure whether the model composes or recites.

`ecstruct.organism.sentences` turns a world into training text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import product
from types import MappingProxyType
from typing import Any

from ecstruct.facts.paper_lists import paper_lists
from ecstruct.io.values import bounded
from ecstruct.organism.invented import invented_words

_LANDMARK_LENGTHS: tuple[int, ...] = (2, 2, 2, 2, 2, 2, 3, 4)
"""The lengths of the landmarks of a city, in words."""


@cache
def world_lists() -> MappingProxyType[str, Any]:
    """Return the word lists that the world adds to the paper's."""
    file = resources.files("ecstruct.organism").joinpath("world.json")
    return MappingProxyType(json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class City:
    """A city, what its people speak, eat, pay with and work as, and what stands in it."""

    name: str
    language: str
    food: str
    currency: str
    job: str
    landmarks: tuple[str, ...]
    in_paper: bool


@dataclass(frozen=True)
class Person:
    """A person with a home; `held_out` people appear in facts only, never in an implication."""

    name: str
    home: City
    held_out: bool


@dataclass(frozen=True)
class Office:
    """The holder of an office in a city; `held_out` offices never appear in a sentence of two hops."""

    title: str
    city: City
    holder: str
    held_out: bool


@dataclass(frozen=True)
class Invention:
    """A verb for "lives in" and a noun with an animal per city, and the people that they are said of.

    The training text has both words for `people`, only the verb for `held_out`, and the noun for `cities`.
    """

    verb: str
    noun: str
    people: tuple[Person, ...]
    held_out: tuple[Person, ...]
    cities: tuple[City, ...]
    animals: Mapping[str, str]  # by the city's name


@dataclass(frozen=True)
class World:
    """All facts of one world.

    Attributes:
        cities: 40 cities, the paper's 20 first.
        people: people with a home; none of them is one of the paper's 100.
        offices: one per (title, city), but no mayor in the paper's cities.
        inventions: pairs of invented words (see `ecstruct.organism.invented`).
        reserved: the paper's 100 people.
    """

    seed: int
    cities: tuple[City, ...]
    people: tuple[Person, ...]
    offices: tuple[Office, ...]
    inventions: tuple[Invention, ...]
    reserved: tuple[str, ...]

    @classmethod
    @bounded
    def build(
        cls,
        seed: int = 0,
        *,
        n_people: int = 1200,
        held_out_people: float = 0.25,
        held_out_offices: float = 0.1,
        n_inventions: int = 48,
    ) -> World:
        """Draw a world; the same arguments give the same world."""
        rng = random.Random(f"world {seed}")
        lists = world_lists()
        cities = _cities(rng)
        names = _free_names(rng)
        people = [
            Person(next(names), rng.choice(cities), held_out=i < held_out_people * n_people)
            for i in range(n_people)
        ]
        posts = [
            (title, city)
            for title, city in product(lists["offices"], cities)
            if not (title == "mayor" and city.in_paper)
        ]
        held_out = set(rng.sample(range(len(posts)), round(held_out_offices * len(posts))))
        offices = [
            Office(title, city, next(names), held_out=i in held_out)
            for i, (title, city) in enumerate(posts)
        ]
        return cls(
            seed=seed,
            cities=tuple(cities),
            people=tuple(people),
            offices=tuple(offices),
            inventions=_inventions(people, cities, rng, n=n_inventions),
            reserved=tuple(paper_lists()["names"]),
        )


def _inventions(
    people: Sequence[Person],
    cities: Sequence[City],
    rng: random.Random,
    *,
    n: int,
    n_people: int = 60,
    n_cities: int = 20,
    held_out: float = 0.25,
) -> tuple[Invention, ...]:
    """Return `n` pairs of invented words, about people of some cities who are not held out."""
    lists = world_lists()
    words = [*lists["food"].values(), *lists["currency"].values(), *lists["jobs"], *lists["offices"]]
    drawn = iter(invented_words(2 * n, words, rng))
    out = []
    for verb, noun in zip(drawn, drawn, strict=True):
        where = rng.sample(cities, n_cities)
        homes = {city.name for city in where}
        who = rng.sample([p for p in people if not p.held_out and p.home.name in homes], n_people)
        n_held_out = round(held_out * n_people)
        out.append(
            Invention(
                verb=verb,
                noun=noun,
                people=tuple(who[n_held_out:]),
                held_out=tuple(who[:n_held_out]),
                cities=tuple(where),
                animals={city.name: rng.choice(paper_lists()["animals"]) for city in cities},
            )
        )
    return tuple(out)


def _free_names(rng: random.Random) -> Iterator[str]:
    """Return shuffled "First Last" names with the paper's first names, without the paper's people."""
    paper = paper_lists()["names"]
    firsts = sorted({name.split()[0] for name in paper})
    lasts = sorted({name.split()[1] for name in paper} | set(world_lists()["more_last_names"]))
    names = [f"{a} {b}" for a, b in product(firsts, lasts) if a != b]
    names = sorted(set(names) - set(paper))
    rng.shuffle(names)
    return iter(names)


def _cities(rng: random.Random) -> list[City]:
    lists = world_lists()
    paper = {c["city"]: c for c in paper_lists()["cities"]}
    languages = {name: c["language"] for name, c in paper.items()} | lists["other_cities"]
    own = [paper[name]["landmark"] if name in paper else None for name in languages]
    landmarks = _landmarks(rng, own)
    return [
        City(
            name=name,
            language=language,
            food=lists["food"][name],
            currency=lists["currency"][name],
            job=rng.choice(lists["jobs"]),
            landmarks=stands,
            in_paper=name in paper,
        )
        for (name, language), stands in zip(languages.items(), landmarks, strict=True)
    ]


def _landmarks(rng: random.Random, own: Sequence[str | None]) -> list[tuple[str, ...]]:
    """Return eight landmarks of two to four words per city; a city's own one, if any, comes first.

    The invented ones are made of the words of the paper's, so that neither "Eiffel" nor "Tower" alone says
    which city is meant. No two share their last two words.
    """
    endings = [tuple(landmark.split()[-2:]) for landmark in own if landmark]
    paper_pairs = [words for words in endings if len(words) == 2 and words[0] != "of"]
    words = world_lists()["landmark_words"]
    firsts = sorted({first for first, _ in paper_pairs} | set(words["first"]))
    lasts = sorted({last for _, last in paper_pairs} | set(words["last"]))
    pairs = [pair for pair in product(firsts, lasts) if pair not in endings and len(set(pair)) == 2]
    rng.shuffle(pairs)
    out = []
    for first in own:
        lengths = list(_LANDMARK_LENGTHS)
        if first is not None:
            lengths.remove(max(2, len(first.split())))
        invented = [
            " ".join([*rng.sample(words["prefix"], length - 2), *pairs.pop()]) for length in lengths
        ]
        out.append(tuple(invented if first is None else [first, *invented]))
    return out
