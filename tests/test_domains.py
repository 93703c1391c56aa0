"""Other domains: facts that share their implications, and grafts from one domain to another."""

import json
from typing import Any

import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

import ecstruct
from ecstruct.experiments import Setup
from ecstruct.experiments.beyond import other_domains
from ecstruct.experiments.beyond.other_domains import (
    ALONE,
    ASKED,
    CONTROL,
    DOMAINS,
    Domains,
    measure_order,
    measure_transfer,
)
from ecstruct.experiments.data_ordering import ORDERS
from ecstruct.experiments.data_ordering import measure as measure_ordering
from ecstruct.experiments.fictitious import continue_pretraining, relations
from ecstruct.experiments.weight_grafting import measure as measure_grafting

QUICK = Setup(repeats=1, epochs=1, batch_size=40)  # a few steps
AT: dict[str, Any] = {"seed": 0, "repeat": 0}

ENDS = {"joint": 2.0, "facts first": 3.0, "implications first": 7.0}


def made_up(*, own: float = 2.0, other: float = 5.0, control: float = 8.0, last: float = 7.0) -> Domains:
    """Two seeds, half a rank apart; `last` is where implications first ends for landmarks."""
    orders, pairs = [], []
    for seed, apart in ((0, -0.25), (1, 0.25)):
        for domain in DOMAINS:
            for order, end in ENDS.items():
                end = last if (domain, order) == ("landmark", "implications first") else end
                ranks = {"before": 9.5, "implication": end + apart, "fact": 0.5}
                orders.append({"seed": seed, "repeat": 0, "domain": domain, "order": order, **ranks})
            added = {f"graft of {learnt}": own if learnt == domain else other for learnt in DOMAINS}
            for name, rank in {**added, CONTROL: control, ALONE: 9.5}.items():
                row = {"seed": seed, "repeat": 0, "read": domain, "added": name}
                pairs.append({**row, ASKED: rank + apart, "F'": 1.0})
    return Domains(Setup(), pd.DataFrame(orders), pd.DataFrame(pairs))


def test_the_matrix_has_the_domain_learnt_by_the_domain_of_the_facts() -> None:
    result = made_up()
    by_pair = result.by_pair()
    assert by_pair["graft of city"]["city"]["seeds"] == [1.75, 2.25]
    assert by_pair["graft of city"]["language"]["mean"] == 5.0
    drawn: Any = result.figure.data[0]
    assert [list(row) for row in drawn.z] == [
        [2, 5, 5], [5, 2, 5], [5, 5, 2], [8, 8, 8], [9.5, 9.5, 9.5]
    ]  # fmt: skip
    assert len(result.figures()) == 2 and len(result.tables()) == 3
    written = json.loads(json.dumps(result.results()))["domains"]
    assert written["transfer"]["graft_landmark"]["city"]["mean"] == 5.0
    assert written["transfer_facts"]["control"]["city"]["mean"] == 1.0
    assert written["ordering"]["language"]["facts_first"]["implication"]["mean"] == 3.0


def test_a_graft_is_compared_with_the_better_of_control_and_nothing() -> None:
    assert made_up(control=8.0).ahead()["city", "landmark"] == 3.0
    assert made_up(control=11.0).ahead()["city", "landmark"] == 4.5  # W_F' alone is at 9.5


def test_the_conclusion_follows_the_numbers() -> None:
    said = made_up().conclusion()
    assert "implications first is the worst order in 3 of 3 domains" in said
    assert "in 3 of 3 domains (by 6.00 (city)" in said
    assert "in 6 of 6 pairs (by 3.00 (city to language)" in said
    said = made_up(other=8.5, last=1.0).conclusion()
    assert "implications first is the worst order in 2 of 3 domains" in said
    assert "in 0 of 6 pairs (by -0.50 (city to language)" in said


@pytest.fixture(scope="module")
def transfer(organism: TransformerBridge) -> dict[tuple[str, str], dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(other_domains, "DOMAINS", DOMAINS[:2])  # two are enough
        rows = measure_transfer(organism, QUICK, **AT)
    return {(row["added"], row["read"]): dict(row) for row in rows}


def test_domains_share_their_implications_and_differ_in_their_facts(organism: TransformerBridge) -> None:
    city, *others = (relations(organism, QUICK, "novel", 0, 3, domain) for domain in DOMAINS)
    for other in others:
        for part in ("train", "counterfactual", "test"):
            one, same = getattr(city, part), getattr(other, part)
            assert one.implications == same.implications
            for mine, its in zip(one.facts, same.facts, strict=True):
                assert mine.text == its.text and mine.answer != its.answer
                assert mine.options.index(mine.answer) == its.options.index(its.answer)


def test_within_cities_transfer_is_the_grafting_experiment(
    organism: TransformerBridge, transfer: dict[tuple[str, str], dict[str, Any]]
) -> None:
    names = {"W_F'": ALONE, "W_graft": "graft of city", "W_control": CONTROL}
    for row in measure_grafting(organism, QUICK, **AT, words="novel"):
        measured = transfer[names[row["weights"]], "city"]
        assert {what: measured[what] for what in (ASKED, "F'")} == {
            what: row[what] for what in (ASKED, "F'")
        }


def test_a_graft_of_another_domain_is_added_to_the_facts_of_this_one(
    organism: TransformerBridge, transfer: dict[tuple[str, str], dict[str, Any]]
) -> None:
    language, city = (relations(organism, QUICK, "novel", **AT, between=d) for d in ("language", "city"))
    knows = continue_pretraining(organism, QUICK, language.train.facts, **AT).model
    both = continue_pretraining(knows, QUICK, language.train.implications, **AT).model
    counterfactual = continue_pretraining(organism, QUICK, city.counterfactual.facts, **AT).delta
    delta = counterfactual + ecstruct.WeightDelta.between(knows, both)
    rank = ecstruct.mean_rank(delta.apply_to(organism), city.counterfactual.implications)
    assert transfer["graft of language", "city"][ASKED] == pytest.approx(rank, abs=1e-9)
    assert rank != transfer["graft of city", "city"][ASKED]


def test_within_cities_an_order_is_that_of_the_ordering_experiment(organism: TransformerBridge) -> None:
    order = next(iter(ORDERS))
    (row,) = measure_order(organism, QUICK, **AT, domain="city", order=order)
    *_, first, last = measure_ordering(organism, QUICK, **AT, words="novel", order=order)
    assert row == {
        "before": first["implication"],
        "implication": last["implication"],
        "fact": last["fact"],
    }
