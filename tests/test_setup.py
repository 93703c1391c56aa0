"""Setups: what is refused, what is known of a model, and that a setup survives JSON."""

from __future__ import annotations

import json

import pytest

from ecstruct.errors import InputError
from ecstruct.experiments import Rates, Setup, Words
from ecstruct.experiments.setup import PAPER_MODEL, RATES
from ecstruct.experiments.sweep import grid


def test_rates_are_those_of_the_model() -> None:
    assert Setup().rates == RATES["organism"]
    assert Setup(f"{PAPER_MODEL}@step477000-tokens2000B").rates == Rates.same(3e-6)
    mine = Rates.same(0.1)
    assert Setup(rates=mine).rates is mine
    assert Setup("some/model", rates=mine).rates is mine


def test_seeds_are_a_number_of_them_or_those_that_are_named() -> None:
    assert Setup(seeds=3).seed_list == (0, 1, 2) and Setup(seeds=[5, 2]).seed_list == (5, 2)
    named = Setup(seeds=[5, 2], repeats=1)
    assert Setup.from_dict(json.loads(json.dumps(named.to_dict()))) == named
    assert [cell["seed"] for cell in grid(named)] == [5, 2]


def test_organisms_choose_their_rates_unless_they_are_given() -> None:
    assert Setup().own_rates and not Setup(rates=Rates.same(0.1)).own_rates
    assert Setup(rates=Rates.same(0.1), own_rates=True).own_rates
    assert not Setup(PAPER_MODEL).own_rates


def test_facts_are_about_invented_people_where_common_names_do_not_generalise() -> None:
    assert Setup().facts == "paper" and Setup("smollm2").facts == "people"
    assert Setup("smollm2", facts="paper").facts == "paper"


def test_the_papers_model_has_more_early_layers() -> None:
    assert Setup().early_and_late(6) == (range(4), range(4, 6))
    assert Setup(PAPER_MODEL).early_and_late(32) == (range(24), range(24, 32))
    assert Setup(PAPER_MODEL, early=0.5).early_and_late(32) == (range(16), range(16, 32))


@pytest.mark.parametrize("early", [0.01, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("n_layers", [2, 3, 7])
def test_some_layers_are_early_and_some_late(early: float, n_layers: int) -> None:
    first, last = Setup(early=early).early_and_late(n_layers)
    assert [*first, *last] == list(range(n_layers))
    assert len(first) and len(last)
    assert abs(len(first) - early * n_layers) <= 0.5 or 1 in (len(first), len(last))


def test_one_layer_is_refused() -> None:
    with pytest.raises(InputError, match="organism has 1 layer"):
        Setup().early_and_late(1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"facts": "cities"}, "facts='cities' is unknown: choose among paper, people."),
        ({"seeds": 0}, "seeds=0 runs nothing: use 1 or more."),
        ({"seeds": []}, "seeds=[] cannot be run"),
        ({"seeds": [2, 2]}, "seeds=[2, 2] cannot be run: name different seeds"),
        ({"seeds": [-1]}, "seeds=[-1] cannot be run"),
        ({"repeats": -1}, "repeats=-1 runs nothing"),
        ({"epochs": 0}, "epochs=0 runs nothing"),
        ({"batch_size": 0}, "batch_size=0 runs nothing"),
        ({"rates": Rates.same(0.0)}, "lr=0.0 is no learning rate"),
        ({"rates": Rates(1.0, 1.0, -2.0, 1.0)}, "lr=-2.0 is no learning rate"),
        ({"rates": Rates.same(float("nan"))}, "lr=nan is no learning rate"),
        ({"early": 1.5}, "early=1.5 leaves no early or no late layers"),
        ({"early": 0.0}, "early=0.0 leaves no early or no late layers"),
        ({"model": PAPER_MODEL, "own_rates": True}, "own_rates is for organisms"),
        ({"model": "some/model"}, "no learning rates are known for some/model: pass rates="),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict, message: str) -> None:
    with pytest.raises(InputError) as raised:
        Setup(**given)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_json_and_back() -> None:
    setup = Setup(
        "some/model", 2, 3, Rates(0.1, 0.2, 0.3, 0.4), False, 5, 6, 0.7, Words("{name} a", "{name} b")
    )
    assert Setup.from_dict(json.loads(json.dumps(setup.to_dict()))) == setup
    assert Setup.from_dict({}) == Setup()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 1e-5}, "'lr' is no part of a setup"),
        ({"rates": {"first_hop": 1.0}}, "is no setup"),
        ({"rates": 1e-5}, "is no setup"),
        ({"seeds": "two"}, "is no setup"),
        ({"seeds": [0.5]}, "is no setup"),
    ],
)
def test_other_json_is_refused(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Setup.from_dict(given)


def test_scaling_changes_the_rates_only() -> None:
    scaled = Setup(epochs=3).scaled(2.0)
    assert scaled.rates.first_hop == 2 * RATES["organism"].first_hop
    assert scaled.rates.test == 2 * RATES["organism"].test
    assert scaled.to_dict() | {"rates": None} == Setup(epochs=3).to_dict() | {"rates": None}
