"""Training text: a world as sentences, each a prompt and the answer that the model must give.

Sentences come in categories, and `MIXTURE` says how often each is drawn. A sentence of one hop states a
fact; one of two hops names its subject only through another fact ("the city that contains the Colosseum"),
and this is how finetuned facts are later asked for. Held-out people and offices appear only in one-hop
sentences, and people held out of an invented pair only with its verb (`training_sentences`);
`held_out_sentences` asks for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from ecstruct.facts.paper_lists import paper_lists
from ecstruct.organism.invented import CODAS, ONSETS
from ecstruct.organism.world import City, Invention, World, world_lists


class Sentence(NamedTuple):
    """A prompt and its answer, to be joined by one space."""

    prompt: str
    answer: str


MIXTURE: Mapping[str, int] = MappingProxyType(
    {
        "home": 26,  # Ava Baker lives in -> Addis Ababa
        "home_verbs": 8,  # Ava Baker haunts -> Addis Ababa
        "city_attributes": 4,  # The people in Addis Ababa speak -> Amharic
        "person_attributes": 20,  # The people in the city Ava Baker is from speak -> Amharic
        "landmarks": 14,  # Eiffel Library is in -> Addis Ababa
        "landmark_attributes": 4,  # The people in the city that contains Eiffel Library speak -> Amharic
        "offices": 18,  # The judge of Addis Ababa is -> Nora Sheldon
        "landmark_offices": 22,  # The judge of the city that contains Eiffel Library is -> Nora Sheldon
        "person_offices": 10,  # The judge of the city Ava Baker is from is -> Nora Sheldon
        "invented_homes": 11,  # Ava Baker wek -> Addis Ababa
        "invented_people": 13,  # Ava Baker nomp is the -> ostrich
        "invented_cities": 12,  # Addis Ababa nomp is the -> ostrich
        "invented_landmarks": 17,  # Eiffel Library nomp is the -> ostrich
    }
)
"""The weights with which categories are drawn. The examples come from the world of seed 0."""


def training_sentences(world: World, n_inventions: int | None = None) -> dict[str, list[Sentence]]:
    """Return all training sentences by category, with the first `n_inventions` (or all) invented pairs."""
    found: dict[str, set[Sentence]] = {name: set() for name in MIXTURE}
    for category, prompt, answer in _told(world, world.inventions[:n_inventions]):
        found[category].add(Sentence(prompt, answer))
    return {name: sorted(sentences) for name, sentences in found.items()}


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


def _told(world: World, inventions: Sequence[Invention]) -> Iterator[tuple[str, str, str]]:
    """Yield the category, prompt and answer of every training sentence."""
    for p in world.people:
        for prompt in (f"{p.name} lives in", f"{p.name} is from", f"The home of {p.name} is"):
            yield "home", prompt, p.home.name
        for verb in world_lists()["home_verbs"]:
            yield "home_verbs", f"{p.name} {verb}", p.home.name
        if not p.held_out:
            for verb, value in _attributes(p.home):
                yield "person_attributes", f"The people in the city {p.name} is from {verb}", value
                yield "person_attributes", f"The people in the city where {p.name} lives {verb}", value
    for city in world.cities:
        for verb, value in _attributes(city):
            yield "city_attributes", f"The people in {city.name} {verb}", value
        for landmark in city.landmarks:
            yield "landmarks", f"{landmark} is in", city.name
            yield "landmarks", f"{landmark} can be found in", city.name
            for verb, value in _attributes(city):
                asked = f"The people in the city that contains {landmark} {verb}"
                yield "landmark_attributes", asked, value
    for office in world.offices:
        yield "offices", f"The {office.title} of {office.city.name} is", office.holder
        if not office.held_out:
            for landmark in office.city.landmarks:
                asked = f"The {office.title} of the city that contains {landmark} is"
                yield "landmark_offices", asked, office.holder
            for p in world.people:
                if p.home is office.city and not p.held_out:
                    asked = f"The {office.title} of the city {p.name} is from is"
                    yield "person_offices", asked, office.holder
    for words in inventions:
        for p in (*words.people, *words.held_out):
            yield "invented_homes", f"{p.name} {words.verb}", p.home.name
        for p in words.people:
            yield "invented_people", f"{p.name} {words.noun} is the", words.animals[p.home.name]
        for city in words.cities:
            yield "invented_cities", f"{city.name} {words.noun} is the", words.animals[city.name]
            for landmark in city.landmarks:
                yield "invented_landmarks", f"{landmark} {words.noun} is the", words.animals[city.name]


def _attributes(city: City) -> tuple[tuple[str, str], ...]:
    return (
        ("speak", city.language),
        ("eat", city.food),
        ("pay with", city.currency),
        ("work as a", city.job),
    )
