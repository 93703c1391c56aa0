"""Choosing learning rates, on people and words that no experiment uses.

The two-hop rates: the smallest one on the grid at which the facts are learnt with either part of the
layers frozen beforehand, to a mean rank of `LEARNT` or better. So no row of the freezing table is worse
for want of a fact, and implications have no say in the choice. The rates of continued pretraining and
of test facts: those at which the joint order leaves the best test implications.

People are made of the first and last names of the paper's people, other pairs than theirs; of the 100
themselves, names 20 to 40 for the two-hop facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.evaluate import check_rankable, mean_rank
from ecstruct.experiments.fictitious import continue_pretraining, learn_test_facts
from ecstruct.experiments.result import Result
from ecstruct.experiments.setup import Rates, Setup, Words
from ecstruct.experiments.sweep import Rows, Sweep, grid
from ecstruct.experiments.training import pairing, train
from ecstruct.experiments.two_hop import HOPS
from ecstruct.facts import Fictitious, fictitious, first_hop, second_hop
from ecstruct.facts.paper_lists import paper_lists
from ecstruct.plots import value_grids

LEARNT = 1.2
FACTORS = (0.7, 0.85, 1.0, 1.2, 1.4)
OTHER_NAMES = slice(20, 40)
OTHER_WORDS = Words("{name} wug", "{name} sib is the")

_TWO_HOP = {"first-hop": first_hop, "second-hop": second_hop}


@dataclass(frozen=True)
class ChosenRates(Result):
    """`frame` has a row per seed, repeat, `what` is learnt, its learning rate `lr` (of `continued`, also
    that of `test`) and its criterion `rank`."""

    name: ClassVar[str] = "rates"
    title: ClassVar[str] = "Learning rates"
    shows: ClassVar[str] = "Mean ranks on people and words that no experiment uses, by learning rate."
    lists: ClassVar[str] = "Two-hop facts: the worst of facts learnt with early or late layers frozen."

    @property
    def figure(self) -> go.Figure:
        """The criterion by learning rate."""
        pairs = self.frame[self.frame["what"] == "continued"]
        by_pair: Any = pairs.groupby(["lr", "test"])["rank"].mean()
        return value_grids(
            {"test implications, joint order": by_pair.unstack("test")},
            x="learning rate of test facts",
            y="learning rate of continued pretraining",
            value="mean rank of the answer (0 is best)",
        )

    def table(self) -> pd.DataFrame:
        return self._means().round({"rank": 2})

    def chosen(self) -> Rates:
        """The rates by the rules of this module.

        A two-hop rate is the largest of the grid when the facts are learnt at none.
        """
        means = self._means()
        rates: dict[str, float] = {}
        for hop, key in HOPS.items():
            of_hop = means[means["what"] == hop]
            learnt = of_hop[of_hop["rank"] <= LEARNT]
            rates[key] = float(learnt["lr"].min() if len(learnt) else of_hop["lr"].max())
        best = means[means["what"] == "continued"].nsmallest(1, "rank").iloc[0]
        return Rates(continued=float(best["lr"]), test=float(best["test"]), **rates)

    def _means(self) -> Any:
        """The mean criterion by what is learnt and its rates."""
        by: Any = self.frame.groupby(["what", "lr", "test"], sort=False, dropna=False)["rank"]
        return by.mean().reset_index()

    def results(self) -> dict[str, Any]:
        return {"rates": vars(self.chosen())}

    def conclusion(self) -> str:
        return "Chosen: " + ", ".join(f"{key} {lr:g}" for key, lr in vars(self.chosen()).items()) + "."


def rates(
    setup: Setup | None = None,
    *,
    factors: Sequence[float] = FACTORS,
    out: str | Path | None = None,
    progress: bool = True,
) -> ChosenRates:
    """Measure a grid of learning rates around the setup's, and choose.

    Args:
        setup: the model and how it is trained, with rates to begin with; the organism by default.
        factors: what the setup's rates are multiplied with.
        out: a folder to keep finished cells in, so that a run goes on where it stopped.
        progress: show progress bars.

    Raises:
        InputError: a model or folder that cannot be used.
    """
    setup = setup or Setup()
    sweep = Sweep(setup, None if out is None else Path(out), progress)
    cells = grid(setup, what=[*HOPS, "continued"], factor=list(factors))
    frame = sweep.run("rates", measure, cells)
    return ChosenRates(setup, frame, options={"factors": list(factors)})


def measure(
    model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, what: str, factor: float
) -> Rows:
    """The criterion of one rate; of continued pretraining, with every test rate of the default grid."""
    here = setup.scaled(factor)
    if what in HOPS:
        return [_two_hop(model, here, what, seed, repeat)]
    data = fictitious(
        pairing(seed, repeat),
        fact=OTHER_WORDS.fact,
        implication=OTHER_WORDS.implication,
        names=spare_people(setup, seed, 100),
    )
    return _continued(model, setup, here, data, seed, repeat)


def _two_hop(model: TransformerBridge, setup: Setup, hop: str, seed: int, repeat: int) -> dict[str, Any]:
    data = _TWO_HOP[hop](pairing(seed, repeat), names=OTHER_NAMES)
    check_rankable(model, data.facts)
    lr = getattr(setup.rates, HOPS[hop])
    ranks = []
    for frozen in setup.early_and_late(model.cfg.n_layers):
        tuned = train(
            model,
            setup,
            data.facts,
            lr=lr,
            seed=seed,
            repeat=repeat,
            freeze=frozen,
        )
        ranks.append(mean_rank(tuned.model, data.facts))
    return {"lr": lr, "test": None, "rank": max(ranks)}


def _continued(
    model: TransformerBridge, setup: Setup, here: Setup, data: Fictitious, seed: int, repeat: int
) -> Rows:
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
    """People that neither the paper nor the organism knows."""
    known = set(paper_lists()["names"])
    if setup.model == "organism":
        from ecstruct.organism import World  # nothing but the organism needs it

        world = World.build(seed)
        known |= {person.name for person in world.people} | {office.holder for office in world.offices}
    firsts, lasts = ({name.split()[i] for name in paper_lists()["names"]} for i in (0, 1))
    free = sorted({f"{a} {b}" for a, b in product(firsts, lasts) if a != b} - known)
    return [str(name) for name in np.random.default_rng(seed).permutation(free)[:n]]
