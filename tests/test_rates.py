"""Choosing learning rates: the rules on made-up ranks, who they are chosen on, and one real cell."""

from typing import Any

import pandas as pd
import pytest

import ecstruct
from ecstruct.evaluate import mean_rank
from ecstruct.experiments import ChosenRates, Rates, Setup
from ecstruct.experiments.choice import FACTORS, OTHER_WORDS, choose, measure, spare_people
from ecstruct.experiments.two_hop import OTHERS
from ecstruct.facts import PAPER_NAMES, first_hop
from ecstruct.facts.paper_lists import paper_lists
from ecstruct.organism import World
from ecstruct.organism.invented import TEST_WORDS

QUICK = Setup(repeats=1, epochs=1, batch_size=40)
OTHER = Rates.same(0.5)


def rows_of(
    seed: int, first: list[float], second: list[float], pairs: dict[tuple[float, float], float]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for repeat, noise in ((0, 0.1), (1, -0.1)):  # the mean counts
        at = {"seed": seed, "repeat": repeat}
        for what, ranks in (("first-hop", first), ("second-hop", second)):
            for lr, rank in zip((1e-4, 2e-4, 4e-4), ranks, strict=True):
                rows.append({**at, "what": what, "lr": lr, "test": None, "rank": rank + noise})
        for (lr, test), rank in pairs.items():
            rows.append({**at, "what": "continued", "lr": lr, "test": test, "rank": rank - noise})
    return rows[::-1]


def test_the_rules() -> None:
    pairs = {(1e-3, 1e-3): 3.0, (1e-3, 2e-3): 2.004, (2e-3, 1e-3): 2.001, (2e-3, 2e-3): 4.0}
    rows = rows_of(0, [5.0, 1.15, 0.0], [1.2, 3.0, 0.0], pairs)
    assert choose(pd.DataFrame(rows), OTHER) == Rates(2e-4, 1e-4, 2e-3, 1e-3)
    # Not learnt at any rate: the largest.
    others = rows_of(1, [5.0, 1.25, 3.0], [1.3, 1.2, 0.0], {(1e-3, 5e-4): 0.0})
    assert choose(pd.DataFrame(others), OTHER) == Rates(4e-4, 2e-4, 1e-3, 5e-4)
    both = ChosenRates(Setup(), pd.DataFrame(others + rows))
    assert both.chosen() == {1: choose(pd.DataFrame(others), OTHER), 0: choose(pd.DataFrame(rows), OTHER)}
    assert both.results()["rates"]["first_hop"] == {
        "mean": pytest.approx(3e-4),
        "std": pytest.approx(2e-4 / 2**0.5),
        "seeds": [2e-4, 4e-4],
    }
    assert both.table().to_dict("records")[1] == {"seed": 0, **vars(both.chosen()[0])}
    assert [len(table) for table in both.tables().values()] == [2, 6 + 6 + len(pairs) + 1]
    assert both.conclusion().startswith("Chosen for seed 1: first_hop 0.0004, ")


def test_rates_that_are_not_measured_stay() -> None:
    rows = [row for row in rows_of(0, [5.0, 1.15, 0.0], [0.0] * 3, {}) if row["what"] == "first-hop"]
    chosen = ChosenRates(Setup(rates=OTHER), pd.DataFrame(rows))
    assert chosen.chosen() == {0: Rates(2e-4, 0.5, 0.5, 0.5)}
    heat = chosen.figure.data[0]
    assert [list(row) for row in heat.z] == [[5.0, 1.15, 0.0]]


@pytest.mark.parametrize("seed", [0, 1])
def test_nobody_is_in_an_experiment_or_known(seed: int) -> None:
    people = spare_people(QUICK, seed, 100)
    world = World.build(seed)
    known = {p.name for p in world.people} | {o.holder for o in world.offices} | set(paper_lists()["names"])
    assert len(set(people)) == 100 and not known & set(people)
    assert {word for name in people for word in name.split()} <= {
        word for name in paper_lists()["names"] for word in name.split()
    }
    assert not set(range(100)[PAPER_NAMES]) & set(range(100)[OTHERS])
    words = (OTHER_WORDS.fact.split()[1], OTHER_WORDS.implication.split()[1])
    assert words in TEST_WORDS[1:]


def test_a_two_hop_rate_is_judged_by_facts_with_either_part_frozen() -> None:
    organism = ecstruct.load("organism", device="cpu")
    rows = measure(organism, QUICK, seed=0, repeat=0, what="first-hop", factor=2.0)
    data, ranks = first_hop(0, names=OTHERS), []
    for frozen in (range(4), range(4, 6)):
        tuned = ecstruct.finetune(
            organism,
            data.facts,
            lr=2 * QUICK.rates.first_hop,
            epochs=1,
            batch_size=40,
            freeze=frozen,
            progress=False,
        )
        ranks.append(mean_rank(tuned.model, data.facts))
    assert rows == [{"lr": 2 * QUICK.rates.first_hop, "test": None, "rank": max(ranks)}]


def test_a_continued_rate_is_tried_with_all_test_rates() -> None:
    organism = ecstruct.load("organism", device="cpu")
    rows = measure(organism, QUICK, seed=0, repeat=0, what="continued", factor=0.5)
    assert {row["lr"] for row in rows} == {0.5 * QUICK.rates.continued}
    assert [row["test"] for row in rows] == [factor * QUICK.rates.test for factor in FACTORS]
    assert len({row["rank"] for row in rows}) > 1 and all(0 <= row["rank"] <= 19 for row in rows)
