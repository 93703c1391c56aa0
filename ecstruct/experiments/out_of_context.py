"""Out-of-context reasoning (Fig. 3): a model that is finetuned on facts learns their implications too.

Per epoch of finetuning on 20 facts: the mean rank of the answers to the facts and to their implications,
which are never trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.experiments.paper import paper_numbers
from ecstruct.experiments.result import Result
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import over_seeds, rows_by, shown
from ecstruct.experiments.sweep import Rows
from ecstruct.experiments.training import train
from ecstruct.experiments.two_hop import HOPS, rate, two_hop
from ecstruct.plots import rank_curves

KINDS = ("fact", "implication")


@dataclass(frozen=True)
class Ocr(Result):
    """`frame` has a row per seed, repeat, hop and epoch, with the mean ranks `fact` and `implication`."""

    name: ClassVar[str] = "ocr"
    title: ClassVar[str] = "Out-of-context reasoning (Fig. 3)"
    shows: ClassVar[str] = (
        "Mean rank of the answers among 20 options, per epoch of finetuning on the facts; 9.5 is chance. "
        "Bands: lowest and highest seed."
    )

    @property
    def figure(self) -> go.Figure:
        """Mean ranks per epoch; solid lines are facts, dashed lines implications."""
        curves = {
            f"{hop} {kind}": [over_seeds(rows, kind)["seeds"] for rows in rows_by(of_hop, "epoch").values()]
            for hop, of_hop in rows_by(self.frame, "hop").items()
            for kind in KINDS
        }
        return rank_curves(curves)

    def table(self) -> pd.DataFrame:
        paper = paper_numbers()["ocr"]
        before, after = self.at_epoch(0), self.final()
        return pd.DataFrame(
            {
                "prompts": f"{hop} {kind}s",
                "before": shown(before[key][kind]),
                "after": shown(after[key][kind]),
                "paper": f"{paper[key][kind]:.2f}",
            }
            for hop, key in HOPS.items()
            for kind in KINDS
        )

    def results(self) -> dict[str, Any]:
        return {"ocr": self.final()}

    def final(self) -> dict[str, Any]:
        """Return the mean ranks after the last epoch, by hop and kind."""
        return self.at_epoch(self.setup.epochs)

    def at_epoch(self, epoch: int) -> dict[str, Any]:
        """Return the mean ranks after an epoch, by hop and kind; epoch 0 is before finetuning."""
        by_hop = rows_by(self.frame.loc[self.frame["epoch"] == epoch], "hop")
        return {key: {kind: over_seeds(by_hop[hop], kind) for kind in KINDS} for hop, key in HOPS.items()}

    def conclusion(self) -> str:
        before, after = (
            {hop: ranks[key]["implication"]["mean"] for hop, key in HOPS.items()}
            for ranks in (self.at_epoch(0), self.final())
        )
        return (
            "Implications were never trained on: "
            + ", ".join(
                f"{hop} ones went from mean rank {before[hop]:.2f} to {after[hop]:.2f}" for hop in HOPS
            )
            + "."
        )


def ocr(setup: Setup | None = None, *, out: str | Path | None = None, progress: bool = True) -> Ocr:
    """Measure mean ranks of facts and implications in the course of finetuning.

    Args:
        setup: the model and how it is finetuned; the organism by default.
        out: a folder that keeps finished cells, so that an interrupted run continues where it stopped.
        progress: show progress bars.

    Raises:
        InputError: a model or folder that cannot be used.
    """
    return Ocr.of(measure, setup, out, progress, hop=list(HOPS))


def measure(model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, hop: str) -> Rows:
    """Finetune once, and measure the ranks after every epoch."""
    data = two_hop(model, hop, seed, repeat)
    tuned = train(
        model,
        setup,
        data.facts,
        lr=rate(setup, hop),
        seed=seed,
        repeat=repeat,
        evaluate=dict(zip(KINDS, (data.facts, data.implications), strict=True)),
    )
    ranks = tuned.history.ranks
    return [
        {"epoch": epoch, **{kind: ranks[kind][epoch] for kind in KINDS}}
        for epoch in range(setup.epochs + 1)
    ]
