"""Sensitivity (Figs. 9-23): how ocr, ordering and grafting depend on learning rate and epochs.

Each of them runs again on a grid: all learning rates of the setup times a factor, by a number of epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from pydantic import Field
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.evaluate import mean_rank
from ecstruct.experiments.choice import Factors
from ecstruct.experiments.data_ordering import ORDERS, PHASES
from ecstruct.experiments.fictitious import Assignment
from ecstruct.experiments.out_of_context import measure as measure_ocr
from ecstruct.experiments.paper import GRAFTING_COLUMNS, paper_numbers
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import means, over_seeds, rows_by
from ecstruct.experiments.sweep import Folder, Rows
from ecstruct.experiments.two_hop import HOPS, KINDS
from ecstruct.experiments.weight_grafting import ROWS, ranks_of_grafts
from ecstruct.plots import value_grids

FACTORS = (0.3, 1.0, 3.0)
EPOCHS = (4, 8)
Epochs = Annotated[Sequence[Annotated[int, Field(ge=1, lt=10**6)]], Field(min_length=1)]
MEASURES = {
    "Out-of-context reasoning": [f"{hop} {kind}s" for hop in HOPS for kind in KINDS],
    "Ordering": list(ORDERS),
    "Grafting": [f"{weights} on {GRAFTING_COLUMNS[0]}" for weights in ROWS],
}
"""The values of the column `measure`, by experiment."""


class Sensitivity(Result):
    """The result on the grid. `frame` has a row per seed, repeat, `factor` of the learning rates, `epochs`
    and `measure`, with the final mean rank as `value`."""

    name = "sensitivity"
    title = "Sensitivity (Figs. 9-23)"
    shows = "Final mean ranks by learning rate and number of epochs."

    @property
    def figure(self) -> go.Figure:
        """Mean ranks by learning rate and epochs, with a panel per experiment."""
        ranks = means(self.frame, "value", "factor", "epochs", "measure").unstack("measure")
        ranks.index = [f"x {factor:g}, {epochs} epochs" for factor, epochs in ranks.index]
        return value_grids(
            {title: ranks[measures] for title, measures in MEASURES.items()},
            x="what is ranked",
            y="learning rates and epochs",
            value="mean rank of the answer (0 is best)",
        )

    def table(self) -> pd.DataFrame:
        wide = means(self.frame, "value", "factor", "epochs", "measure").unstack("measure")[
            [name for names in MEASURES.values() for name in names]
        ]
        return wide.round(2).reset_index().rename(columns={"factor": "rates, times"})

    def paper_table(self) -> pd.DataFrame:
        """Return the paper's grafting grids (Figs. 11 and 20-23): mean ranks on Impl F' by model, learning
        rate and epochs."""
        return pd.DataFrame(
            {
                "model": model,
                "learning rate": lr,
                "epochs": int(epochs),
                **{f"{weights}: {GRAFTING_COLUMNS[0]}": values[0] for weights, values in rows.items()},
            }
            for model, by_rate in paper_numbers()["grafting_sweep"].items()
            for lr, by_epochs in by_rate.items()
            for epochs, rows in by_epochs.items()
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        return {
            "Mean ranks by learning rates and epochs.": self.table(),
            "The paper's grafting grids (Figs. 11, 20-23): mean ranks on Impl F'.": self.paper_table(),
        }

    def results(self) -> dict[str, Any]:
        by_point = rows_by(self.frame, "measure", "factor", "epochs")
        return {
            "sensitivity": {
                f"{measure}, rates x {factor:g}, {epochs} epochs": over_seeds(rows, "value")
                for (measure, factor, epochs), rows in by_point.items()
            }
        }

    def conclusion(self) -> str:
        ranks = means(self.frame, "value", "measure", "factor", "epochs")
        worse = ranks["implications first"] - np.maximum(ranks["joint"], ranks["facts first"])
        better = ranks["W_control on Impl F'"] - ranks["W_graft on Impl F'"]
        return (
            f"Implications first is worse than both other orders in {(worse > 0).sum()} of {len(worse)} "
            f"settings ({worse.min():+.2f} to {worse.max():+.2f} ranks), the graft better than the control "
            f"in {(better > 0).sum()} of {len(better)} ({better.min():+.2f} to {better.max():+.2f})."
        )


@experiment
def sensitivity(
    setup: Setup | None = None,
    *,
    factors: Factors = FACTORS,
    epochs: Epochs = EPOCHS,
    words: Literal["known", "novel"] = "known",
    out: Folder = None,
    progress: bool = True,
) -> Sensitivity:
    """Measure final mean ranks of ocr, ordering and grafting on a grid of learning rates and epochs.

    Args:
        factors: the factors by which all learning rates are multiplied.
        epochs: how often every document is seen.
        words: `"known"` or `"novel"`, for ordering and grafting.

    Raises:
        InputError: a model or folder that cannot be used; no factors, no epochs or unknown words.
    """
    # A grid shows trends: seeds serve as the repeats.
    axes = {"repeat": [0], "factor": factors, "epochs": epochs, "words": [words]}
    return Sensitivity.of(measure, setup, out, progress, **axes)


def measure(
    model: TransformerBridge,
    setup: Setup,
    *,
    seed: int,
    repeat: int,
    factor: float,
    epochs: int,
    words: str,
) -> Rows:
    """Run all three experiments at one point of the grid."""
    here = replace(setup.scaled(factor), epochs=epochs)
    at: dict[str, Any] = {"seed": seed, "repeat": repeat}
    its = Assignment(model, here, words, seed, repeat)
    asked = its.data.test.implications  # refused here, before any training, if they cannot be ranked
    values: dict[str, float] = {}
    for hop in HOPS:
        last = measure_ocr(model, here, **at, hop=hop)[-1]
        values |= {f"{hop} {kind}s": last[kind] for kind in KINDS}
    for order, phases in PHASES.items():
        values[order] = mean_rank(its.after_test_facts(its.after(*phases)).model, asked)
    for row in ranks_of_grafts(its):
        values[f"{row['weights']} on {GRAFTING_COLUMNS[0]}"] = row[GRAFTING_COLUMNS[0]]
    return [{"measure": name, "value": value} for name, value in values.items()]
