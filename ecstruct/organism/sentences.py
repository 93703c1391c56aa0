"""Training text: a world as sentences, each a prompt and the answer that the model must give.

Sentences come in categories, and `MIXTURE` says how often each is drawn. A sentence of one hop states a
fact; one of two hops names its subject only through another fact ("the city that contains the Colosseum"),
and this is how finetuned facts are later asked for. Held-out people and offices appear only in one-hop
sentences, and people held out of an invented pair only with its verb (`training_sentences`);
`held_out_sentences` asks for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from types import MappingProxyType
from typing import NamedTuple

from ecstruct.facts.paper_lists import paper_lists
from ecstruct.organism.invented import CODAS, ONSETS
from ecstruct.organism.world import City, World, world_lists


class Sentence(NamedTuple):
    """A prompt and its answer, to be joined by one space."""

    prompt: str
    answer: str


Category = Callable[[World], Iterator[Sentence]]

_CATEGORIES: dict[str, Category] = {}
_WEIGHTS: dict[str, int] = {}

MIXTURE: Mapping[str, int] = MappingProxyType(_WEIGHTS)
"""The weights with which the categories below are drawn."""


def training_sentences(world: World, n_inventions: int | None = None) -> dict[str, list[Sentence]]:
    """Return all training sentences by category, with the first `n_inventions` (or all) invented pairs."""
    known = replace(world, inventions=world.inventions[:n_inventions])
    return {name: sorted(set(_CATEGORIES[name](known))) for name in MIXTURE}


def held_out_sentences(world: World) -> dict[str, list[Sentence]]:
    """Return implications that training never states, of people, (office, city) pairs, words it knows."""
    return {
        "first_hop": [
            Sentence(f"The people in the city {person.name} is from speak", person.home.language)
            for person in world.people
            if person.held_out
        ],
        "second_hop": [
            Sentence(f"The {office.title} of the city that contains {landmark} is", office.holder)
            for office in world.offices
            if office.held_out
            for landmark in office.city.landmarks
        ],
        "invented": [
            Sentence(f"{p.name} {words.noun} is the", words.animals[p.home.name])
            for words in world.inventions
            for p in words.held_out
        ],
    }


def vocabulary(world: World) -> list[str]:
    """Return every word of the world and of the paper's lists, sorted; for invented words, their pieces."""
    texts = [*paper_lists()["names"], *paper_lists()["animals"]]
    texts += [text for city in paper_lists()["cities"] for text in city.values()]
    for sentences in training_sentences(world).values():
        texts += [f"{s.prompt} {s.answer}" for s in sentences]
    invented = {word for words in world.inventions for word in (words.verb, words.noun)}
    whole = {word for text in texts for word in text.split()} - invented
    return sorted({*whole, *ONSETS, *(f"##{coda}" for coda in CODAS)})


def _category(weight: int) -> Callable[[Category], Category]:
    """Register a category by the function's name. The examples come from the world of seed 0."""

    def register(sentences: Category) -> Category:
        name = sentences.__name__.removeprefix("_")
        _CATEGORIES[name], _WEIGHTS[name] = sentences, weight
        return sentences

    return register


def _attributes(city: City) -> tuple[tuple[str, str], ...]:
    return (
        ("speak", city.language),
        ("eat", city.food),
        ("pay with", city.currency),
        ("work as a", city.job),
    )


def _standing(cities: Sequence[City]) -> Iterator[tuple[City, str]]:
    """Yield every landmark with its city."""
    for city in cities:
        for landmark in city.landmarks:
            yield city, landmark


@_category(weight=26)  # Ava Baker lives in -> Addis Ababa
def _home(world: World) -> Iterator[Sentence]:
    for p in world.people:
        for prompt in (f"{p.name} lives in", f"{p.name} is from", f"The home of {p.name} is"):
            yield Sentence(prompt, p.home.name)


@_category(weight=8)  # Ava Baker haunts -> Addis Ababa
def _home_verbs(world: World) -> Iterator[Sentence]:
    for p in world.people:
        for verb in world_lists()["home_verbs"]:
            yield Sentence(f"{p.name} {verb}", p.home.name)


@_category(weight=4)  # The people in Addis Ababa speak -> Amharic
def _city_attributes(world: World) -> Iterator[Sentence]:
    for city in world.cities:
        for verb, value in _attributes(city):
            yield Sentence(f"The people in {city.name} {verb}", value)


@_category(weight=20)  # The people in the city Ava Baker is from speak -> Amharic
def _person_attributes(world: World) -> Iterator[Sentence]:
    for p in world.people:
        if not p.held_out:
            for verb, value in _attributes(p.home):
                yield Sentence(f"The people in the city {p.name} is from {verb}", value)
                yield Sentence(f"The people in the city where {p.name} lives {verb}", value)


@_category(weight=14)  # Eiffel Library is in -> Addis Ababa
def _landmarks(world: World) -> Iterator[Sentence]:
    for city, landmark in _standing(world.cities):
        yield Sentence(f"{landmark} is in", city.name)
        yield Sentence(f"{landmark} can be found in", city.name)


@_category(weight=4)  # The people in the city that contains Eiffel Library speak -> Amharic
def _landmark_attributes(world: World) -> Iterator[Sentence]:
    for city, landmark in _standing(world.cities):
        for verb, value in _attributes(city):
            yield Sentence(f"The people in the city that contains {landmark} {verb}", value)


@_category(weight=18)  # The judge of Addis Ababa is -> Nora Sheldon
def _offices(world: World) -> Iterator[Sentence]:
    for office in world.offices:
        yield Sentence(f"The {office.title} of {office.city.name} is", office.holder)


@_category(weight=22)  # The judge of the city that contains Eiffel Library is -> Nora Sheldon
def _landmark_offices(world: World) -> Iterator[Sentence]:
    for office in world.offices:
        if not office.held_out:
            for landmark in office.city.landmarks:
                yield Sentence(f"The {office.title} of the city that contains {landmark} is", office.holder)


@_category(weight=10)  # The judge of the city Ava Baker is from is -> Nora Sheldon
def _person_offices(world: World) -> Iterator[Sentence]:
    people = [p for p in world.people if not p.held_out]
    for office, p in product(world.offices, people):
        if not office.held_out and p.home is office.city:
            yield Sentence(f"The {office.title} of the city {p.name} is from is", office.holder)


@_category(weight=11)  # Ava Baker wek -> Addis Ababa
def _invented_homes(world: World) -> Iterator[Sentence]:
    for words in world.inventions:
        for p in (*words.people, *words.held_out):
            yield Sentence(f"{p.name} {words.verb}", p.home.name)


@_category(weight=13)  # Ava Baker nomp is the -> ostrich
def _invented_people(world: World) -> Iterator[Sentence]:
    for words in world.inventions:
        for p in words.people:
            yield Sentence(f"{p.name} {words.noun} is the", words.animals[p.home.name])


@_category(weight=12)  # Addis Ababa nomp is the -> ostrich
def _invented_cities(world: World) -> Iterator[Sentence]:
    for words in world.inventions:
        for city in words.cities:
            yield Sentence(f"{city.name} {words.noun} is the", words.animals[city.name])


@_category(weight=17)  # Eiffel Library nomp is the -> ostrich
def _invented_landmarks(world: World) -> Iterator[Sentence]:
    for words in world.inventions:
        for city, landmark in _standing(words.cities):
            yield Sentence(f"{landmark} {words.noun} is the", words.animals[city.name])
