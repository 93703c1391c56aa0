"""Implications asked in other ways than the paper's: after other sentences, or with other steps to take.

An implication is asked *plain*, and again

* after a *distractor*: a fact about another person, who lives elsewhere;
* *5 times as long*: after as many such facts as fit into five times its length;
* with *two entities*: after another person's implication and its answer;
* about *the judge of the city* (first hop): "The judge of the city {name} is from is", another known
  second hop; for models that know no judges, about the country;
* in *three hops*, with both kinds of facts taught together: "The people in the city the mayor of Paris is
  from speak" takes the mayor, the mayor's city and its language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.evaluate import check_rankable
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.training import pairing
from ecstruct.experiments.two_hop import HOPS, OTHERS, two_hop
from ecstruct.facts import Prompt
from ecstruct.facts.paper_lists import paper_lists
from ecstruct.models.provenance import tokenizer_of
from ecstruct.organism import World

PLAIN = "plain"
TAUGHT = (*HOPS, "both")
LONGER = 5

N_OTHERS = 19
"""How many people to distract with: so many of the 20 whom no experiment teaches live elsewhere."""

N_KNOWN = 100


def lessons(
    model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, taught: str
) -> tuple[list[Prompt], dict[str, list[Prompt]]]:
    """Return the facts to teach, and the implications by the way they are asked, the plain ones first.

    Raises:
        InputError: the model's tokenizer cannot tell options apart, or its context is too short.
    """
    sets = [two_hop(model, setup, hop, seed, repeat) for hop in ((taught,) if taught in HOPS else HOPS)]
    facts = [fact for data in sets for fact in data.facts]
    plain = list(sets[0].implications)
    asked = {PLAIN: plain}
    if taught == "both":
        asked["second-hop implication"] = list(sets[1].implications)
        asked["three hops"] = _three_hops(sets[0].facts, sets[1].facts, plain)
    else:
        known = Known.of(setup, seed)
        cities = [fact.answer if taught == "first-hop" else fact.subject or "" for fact in sets[0].facts]
        asked |= _in_company(model, plain, cities, known, pairing(seed, repeat))
        if taught == "first-hop":
            asked[f"the {known.relation} of the city"] = [
                Prompt(
                    f"The {known.relation} of the city {fact.subject} is from is",
                    known.values[fact.answer],
                    known.options,
                    fact.subject,
                    "another relation",
                )
                for fact in sets[0].facts
            ]
    for questions in asked.values():
        check_rankable(model, questions)
    return facts, asked


def yardstick(model: TransformerBridge, setup: Setup, *, seed: int, repeat: int) -> dict[str, list[Prompt]]:
    """Return first-hop implications that need no finetuning, plain and after other sentences: they show how
    well the model reads such prompts at all. The organism knows the homes of these people from pretraining,
    which never stated their implications. Other models know nobody of the paper's list and get none."""
    if setup.model != "organism":
        return {}

    people = [p for p in World.build(seed).people if p.held_out and p.home.in_paper][:N_KNOWN]
    languages = tuple(city["language"] for city in paper_lists()["cities"])
    plain = [
        Prompt(f"The people in the city {p.name} is from speak", p.home.language, languages, p.name, PLAIN)
        for p in people
    ]
    cities = [p.home.name for p in people]
    return {PLAIN: plain} | _in_company(model, plain, cities, Known.of(setup, seed), pairing(seed, repeat))


@dataclass(frozen=True)
class Known:
    """What surrounds the taught facts, and is not taught itself.

    Attributes:
        homes: people to distract with, and one of the paper's cities for each.
        relation: a relation of cities that no implication of the paper asks for.
        values: the answer to that relation for each city.
        options: 20 answers, the values among them.
    """

    homes: Mapping[str, str]
    relation: str
    values: Mapping[str, str]
    options: Sequence[str]

    @classmethod
    def of(cls, setup: Setup, seed: int) -> Known:
        """Take the organism's world; for any other model, people of the paper's list whom no experiment
        teaches, in arbitrary cities, and the countries of the cities."""
        cities = paper_lists()["cities"]
        if setup.model != "organism":
            people = paper_lists()["names"][OTHERS]
            countries = {city["city"]: city["country"] for city in cities}
            homes = dict(zip(people, countries, strict=True))
            return cls(homes, "country", countries, tuple(countries.values()))

        world = World.build(seed)
        # Answers are told apart by their first token, so judges are named by their first names. Two judges
        # of the paper's cities may share one; judges of other cities then complete the 20 options.
        judges = {o.city.name: o.holder.split()[0] for o in world.offices if o.title == "judge"}
        paper = {city["city"]: judges[city["city"]] for city in cities}
        options = tuple(dict.fromkeys([*paper.values(), *judges.values()]))[: len(cities)]
        return cls({p.name: p.home.name for p in world.people if p.home.in_paper}, "judge", paper, options)


def _in_company(
    model: TransformerBridge, plain: Sequence[Prompt], cities: Sequence[str], known: Known, seed: int
) -> dict[str, list[Prompt]]:
    """Return implications after sentences about other people, none of whom lives in the city that the
    implication is about."""
    rng, tokenizer = np.random.default_rng(seed), tokenizer_of(model)
    languages = {city["city"]: city["language"] for city in paper_lists()["cities"]}

    def behind(sentences: Sequence[str], prompt: Prompt, label: str) -> Prompt:
        return replace(prompt, text=" ".join([*sentences, prompt.text]), template=label)

    def length(prompt: Prompt) -> int:
        return len(tokenizer(prompt.text)["input_ids"])

    asked: dict[str, list[Prompt]] = {"distractor": [], f"{LONGER} times as long": [], "two entities": []}
    for prompt, city in zip(plain, cities, strict=True):
        others = [(name, home) for name, home in known.homes.items() if home != city]
        drawn = [others[i] for i in rng.choice(len(others), N_OTHERS, replace=False)]
        facts = [f"{name} lives in {home}" for name, home in drawn]
        implication = f"The people in the city {drawn[0][0]} is from speak {languages[drawn[0][1]]}"
        lengths = [length(behind(facts[:n], prompt, PLAIN)) for n in range(1, len(facts) + 1)]
        n_fit = max(1, sum(found <= LONGER * length(prompt) for found in lengths))
        for label, sentences in zip(asked, (facts[:1], facts[:n_fit], [implication]), strict=True):
            asked[label].append(behind(sentences, prompt, label))
    return asked


def _three_hops(
    homes: Sequence[Prompt], mayors: Sequence[Prompt], implications: Sequence[Prompt]
) -> list[Prompt]:
    """Ask for the language of the city that a city's mayor is from. Cities whose mayor lives in them are
    left out: their answer is their own language, which needs no mayor."""
    home = {fact.subject: fact.answer for fact in homes}
    speaks = {implication.subject: implication for implication in implications}
    return [
        Prompt(
            f"The people in the city the mayor of {mayor.subject} is from speak",
            speaks[mayor.answer].answer,
            speaks[mayor.answer].options,
            mayor.subject,
            "three hops",
        )
        for mayor in mayors
        if home[mayor.answer] != mayor.subject
    ]
