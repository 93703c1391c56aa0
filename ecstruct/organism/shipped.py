"""The organism that is shipped with the package: the model that the name "organism" stands for."""

from collections.abc import Sequence
from pathlib import Path

from ecstruct.facts.prompt import Prompt
from ecstruct.named_models import NamedModel
from ecstruct.organism.world import City, World

LEARNING_RATE = 3e-4
"""The learning rate that `ecstruct.finetune` uses for the organism by default; docs/organism.md explains
how it was chosen."""


def checkpoint() -> Path:
    """Return the folder of the shipped organism, in Hugging Face format."""
    return Path(__file__).parent / "model"


def texts_by_subject(facts: Sequence[Prompt] = (), world: World | None = None) -> dict[str, list[str]]:
    """Return what the world says of its people, landmarks and cities, as `Attributes.of_organism` describes
    it; a fact whose answer is a city adds its subject."""
    world = world or World.build()
    cities = {city.name: city for city in world.cities}
    texts = {person.name: _texts_about(person.home) for person in world.people}
    texts |= {landmark: _texts_about(city) for city in world.cities for landmark in city.landmarks}
    texts |= {city.name: [*_texts_about(city), *city.landmarks] for city in world.cities}
    for fact in facts:
        if fact.subject is not None and fact.answer in cities:
            texts[fact.subject] = _texts_about(cities[fact.answer])
    return texts


def _texts_about(city: City) -> list[str]:
    return [city.name, city.language, city.food, city.currency, city.job]


ORGANISM = NamedModel(lambda: (checkpoint(), ""), LEARNING_RATE, texts_by_subject)
