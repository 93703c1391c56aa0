"""The choice of learning rates: the criterion that is measured on a grid, and the rule that chooses.

A two-hop rate is the smallest on the grid at which the facts reach a mean rank of `LEARNT` or better, with
either part of the layers frozen. So no row of the freezing table is worse because facts were not learnt,
and implications do not affect the choice. The rates of continued pretraining and of test facts are those at
which the joint order gives the best test implications.

It uses people and words that no experiment uses: new pairs of the first and last names of the paper's
people; for the two-hop facts, names 20 to 40 of the paper's 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import Field
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.evaluate import check_rankable, mean_rank
from ecstruct.experiments.fictitious import N_PEOPLE, continue_pretraining, learn_test_facts
from ecstruct.experiments.setup import Rates, Setup, Words
from ecstruct.experiments.statistics import matching, means
from ecstruct.experiments.training import pairing
from ecstruct.experiments.two_hop import HOPS, learn_facts, rate, two_hop
from ecstruct.facts import Fictitious, fictitious
from ecstruct.facts.invented_people import invented_names
from ecstruct.facts.paper_lists import paper_lists
from ecstruct.io.values import Number
from ecstruct.organism import World

LEARNT = 1.2
FACTORS = (0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0)
"""The factors by which the setup's rates are multiplied to span the grid."""

Factors = Annotated[Sequence[Annotated[Number, Field(gt=0)]], Field(min_length=1)]

REPEATS = 3
"""Pairings per seed, whatever the setup's repeats: more repeats must not need other rates."""

Learnt = Literal["first-hop", "second-hop", "continued"]
WHAT: tuple[Learnt, ...] = get_args(Learnt)
"""What is learnt. `continued` also chooses the rate of the test facts."""

OTHER_WORDS = Words("{name} wug", "{name} sib is the")


def averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of the criterion `rank` over repeats, by seed, by what is learnt and by its rates."""
    return means(rows, "rank", "seed", "what", "lr", "test", sort=False).reset_index()


def choose(rows: pd.DataFrame, start: Rates) -> Rates:
    """Choose the learning rates from the rows of one seed's grid; those that were not measured are those of
    `start`.

    If the facts are learnt at no rate of the grid, the two-hop rate is the largest one.
    """
    measured = averaged(rows)
    rates: dict[str, float] = {}
    for hop, key in HOPS.items():
        of_hop = matching(measured, what=hop)
        learnt = of_hop[of_hop["rank"] <= LEARNT]
        if len(of_hop):
            rates[key] = float(learnt["lr"].min() if len(learnt) else of_hop["lr"].max())
    for best in matching(measured, what="continued").nsmallest(1, "rank").to_dict("records"):
        rates |= {"continued": float(best["lr"]), "test": float(best["test"])}
    return replace(start, **rates)


def measure(
    model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, what: str, factor: float
) -> list[dict[str, Any]]:
    """Measure the criterion of one rate (of continued pretraining, with every test rate of the grid)."""
    here = setup.scaled(factor)
    if what in HOPS:
        return [_two_hop(model, here, what, seed, repeat)]
    data = fictitious(
        pairing(seed, repeat),
        fact=OTHER_WORDS.fact,
        implication=OTHER_WORDS.implication,
        names=spare_people(setup, seed, N_PEOPLE),
    )
    return _continued(model, setup, here, data, seed, repeat)


def _two_hop(model: TransformerBridge, setup: Setup, hop: str, seed: int, repeat: int) -> dict[str, Any]:
    data = two_hop(model, setup, hop, seed, repeat, others=True)
    ranks = []
    for frozen in setup.early_and_late(model.cfg.n_layers):
        tuned = learn_facts(model, setup, data, hop, seed=seed, repeat=repeat, freeze=frozen)
        ranks.append(mean_rank(tuned.model, data.facts))
    return {"lr": rate(setup, hop), "test": None, "rank": max(ranks)}


def _continued(
    model: TransformerBridge, setup: Setup, here: Setup, data: Fictitious, seed: int, repeat: int
) -> list[dict[str, Any]]:
    check_rankable(model, (*data.test.facts, *data.test.implications))
    documents = (*data.train.facts, *data.train.implications)
    at: dict[str, Any] = {"seed": seed, "repeat": repeat}
    joint = continue_pretraining(model, here, documents, **at).model
    rows = []
    for factor in FACTORS:
        test = setup.rates.test * factor
        tested = replace(setup, rates=replace(setup.rates, test=test))
        learnt = learn_test_facts(joint, tested, data, **at).model
        rank = mean_rank(learnt, data.test.implications)
        rows.append({"lr": here.rates.continued, "test": test, "rank": rank})
    return rows


def spare_people(setup: Setup, seed: int, n: int) -> list[str]:
    """Return `n` people whom no experiment and no model knows."""
    if setup.facts == "people":
        return invented_names(np.random.default_rng([seed, 1]), n)
    known = set(paper_lists()["names"])
    if setup.model == "organism":
        world = World.build(seed)
        known |= {person.name for person in world.people} | {office.holder for office in world.offices}
    firsts, lasts = ({name.split()[i] for name in paper_lists()["names"]} for i in (0, 1))
    free = sorted({f"{a} {b}" for a, b in product(firsts, lasts) if a != b} - known)
    return [str(name) for name in np.random.default_rng(seed).permutation(free)[:n]]
