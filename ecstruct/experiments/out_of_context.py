"""Out-of-context reasoning (Fig. 3): a model that is finetuned on facts learns their implications too.

Per epoch of finetuning on 20 facts: the mean rank of the answers to the facts and to their implications,
which are never trained on.
"""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.experiments.paper import paper_numbers
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import curve, over_seeds, shown
from ecstruct.experiments.sweep import Folder, Rows
from ecstruct.experiments.training import ranks_by_epoch
from ecstruct.experiments.two_hop import HOPS, KINDS, by_kind, learn_facts, two_hop
from ecstruct.plots import rank_curves


class Ocr(Result):
    """`frame` has a row per seed, repeat, hop and epoch, with the mean ranks `fact` and `implication`."""

    name = "ocr"
    title = "Out-of-context reasoning (Fig. 3)"
    shows = (
        "Mean rank of the answers among all options, per epoch of finetuning on the facts. Bands: lowest "
        "and highest seed."
    )

    @property
    def figure(self) -> go.Figure:
        """Mean ranks per epoch; solid lines are facts, dashed lines implications."""
        return rank_curves(
            {f"{hop} {kind}": curve(self.frame, "epoch", kind, hop=hop) for hop in HOPS for kind in KINDS}
        )

    def table(self) -> pd.DataFrame:
        paper, before, after = paper_numbers()["ocr"], self.at_epoch(0), self.final()
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
        return {
            key: {kind: over_seeds(self.frame, kind, hop=hop, epoch=epoch) for kind in KINDS}
            for hop, key in HOPS.items()
        }

    def conclusion(self) -> str:
        before, after = self.at_epoch(0), self.final()
        ranks = (
            f"{hop} ones went from mean rank {before[key]['implication']['mean']:.2f} to "
            f"{after[key]['implication']['mean']:.2f}"
            for hop, key in HOPS.items()
        )
        return f"Implications were never trained on: {', '.join(ranks)}."


@experiment
def ocr(setup: Setup | None = None, *, out: Folder = None, progress: bool = True) -> Ocr:
    """Measure mean ranks of facts and implications in the course of finetuning."""
    return Ocr.of(measure, setup, out, progress, hop=list(HOPS))


def measure(model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, hop: str) -> Rows:
    """Finetune once, and measure the ranks after every epoch."""
    data = two_hop(model, setup, hop, seed, repeat)
    tuned = learn_facts(model, setup, data, hop, seed=seed, repeat=repeat, evaluate=by_kind(data))
    return [{"epoch": epoch, **ranks} for epoch, ranks in enumerate(ranks_by_epoch(tuned))]
