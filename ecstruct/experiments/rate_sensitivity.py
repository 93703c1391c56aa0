"""Sensitivity (Figs. 9-23): how ocr, ordering and grafting depend on learning rate and epochs.

Each of them runs again on a grid: all learning rates of the setup times a factor, by a number of epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.experiments.data_ordering import ORDERS
from ecstruct.experiments.data_ordering import measure as measure_ordering
from ecstruct.experiments.fictitious import WORDS, relations
from ecstruct.experiments.out_of_context import KINDS
from ecstruct.experiments.out_of_context import measure as measure_ocr
from ecstruct.experiments.paper import GRAFTING_COLUMNS, paper_numbers
from ecstruct.experiments.result import Result
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import over_seeds, rows_by
from ecstruct.experiments.sweep import Rows
from ecstruct.experiments.two_hop import HOPS
from ecstruct.experiments.weight_grafting import ROWS
from ecstruct.experiments.weight_grafting import measure as measure_grafting
from ecstruct.plots import value_grids

FACTORS = (0.3, 1.0, 3.0)
EPOCHS = (4, 8)
MEASURES = {
    "Out-of-context reasoning": [f"{hop} {kind}s" for hop in HOPS for kind in KINDS],
    "Ordering": list(ORDERS),
    "Grafting": [f"{weights} on {GRAFTING_COLUMNS[0]}" for weights in ROWS],
}
"""The values of the column `measure`, by experiment."""


@dataclass(frozen=True)
class Sensitivity(Result):
    """The result on the grid. `frame` has a row per seed, repeat, `factor` of the learning rates, `epochs`
    and `measure`, with the final mean rank as `value`."""

    name: ClassVar[str] = "sensitivity"
    title: ClassVar[str] = "Sensitivity (Figs. 9-23)"
    shows: ClassVar[str] = "Final mean ranks by learning rate and number of epochs."

    @property
    def figure(self) -> go.Figure:
        """Mean ranks by learning rate and epochs, with a panel per experiment."""
        means = _means(self.frame, "factor", "epochs", "measure").unstack("measure")
        means.index = [f"x {factor:g}, {epochs} epochs" for factor, epochs in means.index]
        return value_grids(
            {title: means[measures] for title, measures in MEASURES.items()},
            x="what is ranked",
            y="learning rates and epochs",
            value="mean rank of the answer (0 is best)",
        )

    def table(self) -> pd.DataFrame:
        wide = _means(self.frame, "factor", "epochs", "measure").unstack("measure")[
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
        means = _means(self.frame, "measure", "factor", "epochs")
        worse = means["implications first"] - np.maximum(means["joint"], means["facts first"])
        better = means["W_control on Impl F'"] - means["W_graft on Impl F'"]
        return (
            f"Implications first is worse than both other orders in {(worse > 0).sum()} of {len(worse)} "
            f"settings ({worse.min():+.2f} to {worse.max():+.2f} ranks), the graft better than the control "
            f"in {(better > 0).sum()} of {len(better)} ({better.min():+.2f} to {better.max():+.2f})."
        )


def sensitivity(
    setup: Setup | None = None,
    *,
    factors: Sequence[float] = FACTORS,
    epochs: Sequence[int] = EPOCHS,
    words: str = "known",
    out: str | Path | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Measure final mean ranks of ocr, ordering and grafting on a grid of learning rates and epochs.

    Args:
        setup: the model and how it is trained; the organism by default.
        factors: the factors by which all learning rates are multiplied.
        epochs: how often every document is seen.
        words: `"known"` or `"novel"`, for ordering and grafting.
        out: a folder that keeps finished cells, so that an interrupted run continues where it stopped.
        progress: show progress bars.

    Raises:
        InputError: a model or folder that cannot be used; no factors, no epochs or unknown words.
    """
    if not (factors and epochs) or words not in WORDS:
        raise InputError(
            f"factors={factors!r}, epochs={epochs!r} and words={words!r} make no grid: give at least one "
            f"factor and number of epochs, and as words {' or '.join(map(repr, WORDS))}."
        )
    result = Sensitivity.of(
        measure,
        setup,
        out,
        progress,
        repeat=[0],  # a grid shows trends: seeds serve as the repeats
        factor=list(factors),
        epochs=list(epochs),
        words=[words],
    )
    return replace(result, options={"factors": list(factors), "epochs": list(epochs), "words": words})


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
    relations(model, here, words, **at)  # refuses prompts that cannot be ranked before any training
    values: dict[str, float] = {}
    for hop in HOPS:
        last = measure_ocr(model, here, **at, hop=hop)[-1]
        values |= {f"{hop} {kind}s": last[kind] for kind in KINDS}
    for order in ORDERS:
        values[order] = measure_ordering(model, here, **at, words=words, order=order)[-1]["implication"]
    for row in measure_grafting(model, here, **at, words=words):
        values[f"{row['weights']} on {GRAFTING_COLUMNS[0]}"] = row[GRAFTING_COLUMNS[0]]
    return [{"measure": name, "value": value} for name, value in values.items()]


def _means(rows: pd.DataFrame, *of: str) -> Any:
    """Return the mean value for each combination of the columns `of`, in ascending order."""
    groups: Any = rows.groupby(list(of))
    return groups["value"].mean()
