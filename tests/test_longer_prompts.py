"""Implications asked in longer and nested prompts: the prompts are sound, and the claims are computed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ecstruct.evaluate import mean_rank
from ecstruct.experiments.beyond.asking import PLAIN, TAUGHT, Known, lessons, yardstick
from ecstruct.experiments.beyond.longer_prompts import Prompts, measure
from ecstruct.experiments.setup import Rates, Setup
from ecstruct.facts.paper_lists import paper_lists
from ecstruct.models.provenance import tokenizer_of
from ecstruct.organism import World

REPEAT = 4
CITIES = {city["city"]: city["language"] for city in paper_lists()["cities"]}


@pytest.fixture(scope="module")
def asked(organism):
    """By what is taught: the facts, and the implications by variant."""
    setup = Setup()
    return {taught: lessons(organism, setup, seed=0, repeat=REPEAT, taught=taught) for taught in TAUGHT}


def questions_of(asked, taught):
    return asked[taught][1]


def homes_of(asked):
    return {fact.subject: fact.answer for fact in asked["first-hop"][0]}


def test_prompts_are_words_that_the_organism_knows_and_can_read(organism, asked) -> None:
    tokenizer = tokenizer_of(organism)
    for facts, variants in asked.values():
        for prompt in (*facts, *(p for questions in variants.values() for p in questions)):
            ids = tokenizer(f"{prompt.text} {prompt.answer}")["input_ids"]
            assert tokenizer.unk_token_id not in ids, prompt.text
            assert len(ids) <= organism.cfg.n_ctx
            firsts = {tokenizer(option)["input_ids"][0] for option in prompt.options}
            assert len(firsts) == len(prompt.options) == 20


@pytest.mark.parametrize("taught", ["first-hop", "second-hop"])
def test_what_stands_in_front_is_true_and_gives_nothing_away(asked, taught) -> None:
    homes = {person.name: person.home for person in World.build(0).people}
    facts, variants = asked[taught]
    for i, (fact, plain) in enumerate(zip(facts, variants[PLAIN], strict=True)):
        about = fact.answer if taught == "first-hop" else fact.subject
        for label in ("distractor", "5 times as long"):
            front = variants[label][i].text.removesuffix(plain.text).strip()
            told = said(front, homes)
            assert all(homes[name].name == city != about for name, city in told)
            assert (
                len({name for name, _ in told}) == len(told) == (1 if label == "distractor" else len(told))
            )
        n_words = len(variants["5 times as long"][i].text.split())
        assert 4.2 * len(plain.text.split()) < n_words <= 5 * len(plain.text.split())
        front = variants["two entities"][i].text.removesuffix(f" {plain.text}")
        name, language = front.removeprefix("The people in the city ").split(" is from speak ")
        assert homes[name].language == language != CITIES[about]
        assert all(variants[label][i].answer == plain.answer for label in variants if "judge" not in label)


def said(front: str, homes) -> list[tuple[str, str]]:
    """The people and cities of sentences "{first} {last} lives in {city}", which nothing separates."""
    words, told = front.split(), []
    while words:
        name = " ".join(words[:2])
        assert words[2:4] == ["lives", "in"]
        n = len(homes[name].name.split())
        told.append((name, " ".join(words[4 : 4 + n])))
        words = words[4 + n :]
    return told


def test_judges_are_those_of_the_world(asked) -> None:
    judges = {o.city.name: o.holder for o in World.build(0).offices if o.title == "judge"}
    questions = questions_of(asked, "first-hop")["the judge of the city"]
    for prompt, home in zip(questions, homes_of(asked).values(), strict=True):
        assert judges[home].split()[0] == prompt.answer


@pytest.mark.parametrize("seed", range(5))
def test_first_names_of_judges_are_20_options_in_every_world(seed) -> None:
    known = Known.of(Setup(), seed)
    assert len(set(known.options)) == len(known.options) == 20
    assert set(known.values.values()) <= set(known.options)


def test_three_hops_go_through_the_mayors_home(asked) -> None:
    facts, variants = asked["both"]
    homes = {fact.subject: fact.answer for fact in facts if fact.text.endswith("lives in")}
    mayors = {fact.subject: fact.answer for fact in facts if fact.text.startswith("The mayor")}
    assert len(facts) == 40
    elsewhere = [city for city, mayor in mayors.items() if homes[mayor] != city]
    assert 0 < len(elsewhere) < 20  # this repeat has mayors of both kinds
    assert [p.subject for p in variants["three hops"]] == elsewhere
    for prompt in variants["three hops"]:
        assert prompt.text == f"The people in the city the mayor of {prompt.subject} is from speak"
        assert prompt.answer == CITIES[homes[mayors[prompt.subject]]] != CITIES[prompt.subject]


def test_the_yardstick_is_of_people_that_the_organism_knows(organism, asked) -> None:
    people = {person.name: person for person in World.build(0).people}
    known = yardstick(organism, Setup(), seed=0, repeat=REPEAT)
    assert set(known) < set(questions_of(asked, "first-hop"))
    for questions in known.values():
        assert len({prompt.subject for prompt in questions}) == len(questions) == 100
        for prompt in questions:
            person = people[prompt.subject]
            assert person.held_out and prompt.answer == person.home.language in prompt.options
            assert prompt.text.endswith(f"The people in the city {person.name} is from speak")
    assert mean_rank(organism, known[PLAIN]) < 1  # chance is 9.5
    assert yardstick(organism, Setup("some/model", rates=Rates.same(1e-5)), seed=0, repeat=0) == {}


def test_other_models_are_distracted_by_people_that_no_experiment_teaches() -> None:
    known = Known.of(Setup("some/model", rates=Rates.same(1e-5)), 0)
    assert list(known.homes) == paper_lists()["names"][20:40]
    assert set(known.homes.values()) == set(CITIES)
    assert known.relation == "country" and known.values["Tokyo"] == "Japan"
    assert set(known.values.values()) == set(known.options) and len(known.options) == 20


def made(shift: float, sign: float = 1.0) -> Prompts:
    """Two seeds of a plain implication, which gains 9 ranks, and of a distractor that ends `shift` ranks
    higher, with a profile that is `sign` times the plain one, plus 1."""
    rng = np.random.default_rng(0)
    rows = []
    for taught in TAUGHT:
        for seed in range(2):
            profile = rng.normal(size=(8, 2))
            for variant, after in ((PLAIN, 0.5), ("distractor", 0.5 + shift)):
                scores = profile if variant == PLAIN else sign * profile + 1
                rows += [
                    {"seed": seed, "repeat": 0, "taught": taught, "variant": variant, "layer": i // 2}
                    | {"component": f"MLP {i}", "before": 9.5, "after": after}
                    | {"known": 0.25 + seed if taught == "first-hop" else None}
                    | {"informative": informative, "downstream": downstream}
                    for i, (informative, downstream) in enumerate(scores)
                ]
    return Prompts(Setup(), pd.DataFrame(rows))


def test_agreement_is_that_of_the_profiles() -> None:
    same, opposite = made(0.0).by_variant()["both"], made(0.0, sign=-1.0).by_variant()["both"]
    for kind in ("informative", "downstream"):
        assert same["distractor"][kind]["r"]["seeds"] == pytest.approx([1.0, 1.0])
        assert same["distractor"][kind]["top"]["seeds"] == [1.0, 1.0]
        assert opposite["distractor"][kind]["r"]["seeds"] == pytest.approx([-1.0, -1.0])
        assert opposite["distractor"][kind]["top"]["mean"] == pytest.approx(2 / 5)  # 5 of 8 from both ends
    assert "informative" not in same[PLAIN]
    assert same[PLAIN]["after"]["mean"] == 0.5


def test_the_conclusion_turns_with_the_ranks() -> None:
    near, far, never = made(2.0).conclusion(), made(7.0).conclusion(), made(0.0)
    assert "distractor 78%" in near and "At least half of it: distractor." in near
    assert "distractor 22%" in far and "At least half of it: none of them." in far
    assert "r = -1.00" in made(2.0, sign=-1.0).conclusion()
    assert near.count("known from pretraining are at plain 0.75, distractor 0.75.") == 1
    never.frame["after"] = never.frame["before"]
    assert "not even the plain implications gain" in never.conclusion()


def test_figures_and_table_hold_every_variant() -> None:
    result = made(2.0)
    assert len(result.table()) == 2 * len(TAUGHT)
    assert len(result.figures()) == 1 + 2 * len(TAUGHT)
    assert list(result.figure.data[0].y) == [9.5] * 6
    assert result.results()["prompts"].keys() == set(TAUGHT)


def test_a_cell_measures_every_variant_of_every_component(organism) -> None:
    rows = pd.DataFrame(measure(organism, Setup(epochs=1), seed=0, repeat=REPEAT, taught="both"))
    _, variants = lessons(organism, Setup(), seed=0, repeat=REPEAT, taught="both")
    n_components = organism.cfg.n_layers * (1 + organism.cfg.n_heads)
    assert rows.groupby("variant").size().to_dict() == dict.fromkeys(variants, n_components)
    assert rows["known"].isna().all()
    for variant, of_variant in rows.groupby("variant"):
        assert of_variant["before"].unique() == [mean_rank(organism, variants[variant])]
        assert of_variant[["informative", "downstream"]].notna().all(axis=None)
        assert of_variant["after"].iloc[0] != of_variant["before"].iloc[0]
