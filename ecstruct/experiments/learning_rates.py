"""Learning rates as a result of their own: a grid around a setup's rates, and the rates chosen from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import pandas as pd
import plotly.graph_objects as go
from pydantic import Field

from ecstruct.experiments.choice import FACTORS, WHAT, Factors, Learnt, averaged, choose
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Rates, Setup
from ecstruct.experiments.statistics import matching, means, rows_by, statistic
from ecstruct.experiments.sweep import Folder, Sweep
from ecstruct.plots import value_grids


class ChosenRates(Result):
    """The chosen learning rates. `frame` has a row per seed, repeat, `what` is learnt and learning rate
    `lr` (for `continued`, also the rate `test`), with the criterion `rank`."""

    name = "rates"
    title = "Learning rates"
    shows = "Mean ranks on people and words that no experiment uses, by learning rate."
    lists = "The learning rates that were chosen."

    @property
    def figure(self) -> go.Figure:
        """The criterion by learning rate, as a mean over seeds: of continued pretraining and test facts or,
        if that was not measured, of two-hop facts."""
        continued = matching(self.frame, what="continued")
        if continued.empty:
            by_rate = means(self.frame, "rank", "what", "lr").unstack("lr")
            return value_grids(
                {"two-hop facts, with the worse of early and late layers frozen": by_rate},
                x="learning rate",
                y="facts",
                value="mean rank of the answer (0 is best)",
            )
        by_pair = means(continued, "rank", "lr", "test")
        return value_grids(
            {"test implications, joint order": by_pair.unstack("test")},
            x="learning rate of test facts",
            y="learning rate of continued pretraining",
            value="mean rank of the answer (0 is best)",
        )

    def table(self) -> pd.DataFrame:
        return pd.DataFrame({"seed": seed, **asdict(chosen)} for seed, chosen in self.chosen().items())

    def tables(self) -> dict[str, pd.DataFrame]:
        grid = averaged(self.frame).round({"rank": 2})
        measured = "The grid. Two-hop facts: mean rank with the worse of early and late layers frozen."
        return {self.lists: self.table(), measured: grid}

    def chosen(self) -> dict[int, Rates]:
        """Return the rates chosen for each seed from its rows."""
        return {
            int(seed): choose(rows, self.setup.rates) for seed, rows in rows_by(self.frame, "seed").items()
        }

    def results(self) -> dict[str, Any]:
        by_seed = [asdict(chosen) for _, chosen in sorted(self.chosen().items())]
        return {"rates": {key: statistic([of_seed[key] for of_seed in by_seed]) for key in by_seed[0]}}

    def conclusion(self) -> str:
        told = [
            f"seed {seed}: " + ", ".join(f"{key} {lr:.3g}" for key, lr in asdict(chosen).items())
            for seed, chosen in self.chosen().items()
        ]
        return "Chosen for " + "; ".join(told) + "."


@experiment
def rates(
    setup: Setup | None = None,
    *,
    factors: Factors = FACTORS,
    what: Annotated[Sequence[Learnt], Field(min_length=1)] = WHAT,
    out: Folder = None,
    progress: bool = True,
) -> ChosenRates:
    """Measure a grid of learning rates around the setup's, and choose the rates for every seed.

    Args:
        factors: the factors by which the setup's rates are multiplied.
        what: what is learnt: `"first-hop"`, `"second-hop"`, `"continued"`. Rates of anything else stay
            those of the setup.
    """
    sweep = Sweep(setup or Setup(), out, progress)
    return ChosenRates(sweep.setup, sweep.rates(sweep.setup.seed_list, factors, what))
