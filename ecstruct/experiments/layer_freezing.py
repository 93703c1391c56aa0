"""Layer freezing (Tables 2 and 4): which layers must change for facts, and for their implications.

The early or the late layers get their old weights back after finetuning on facts ("post"), or are frozen
before it, so that the other layers have to learn the facts alone ("pre").
"""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.experiments.paper import COLUMNS, beside_paper, paper_numbers, rank_bars
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import over_seeds
from ecstruct.experiments.sweep import Folder, Rows
from ecstruct.experiments.training import mean_ranks
from ecstruct.experiments.two_hop import HOPS, KINDS, by_kind, learn_facts, two_hop

ROWS = ("None", "Early (post)", "Late (post)", "All", "Early (pre)", "Late (pre)")
"""What is frozen, and when. "All", with all layers put back, is the model before finetuning."""


class Freezing(Result):
    """The result of layer freezing. `frame` has a row per seed, repeat, hop and frozen `layers`, with the
    mean ranks `fact` and `implication`."""

    name = "freezing"
    title = "Layer freezing (Tables 2 and 4)"
    shows = "Mean rank of the answers by what was frozen, and when; dots are seeds, diamonds the paper's."
    lists = "Ours, and in brackets the paper's; with several seeds, mean ± standard deviation."

    @property
    def figure(self) -> go.Figure:
        return rank_bars(self.by_row(), COLUMNS, paper_numbers()["freezing"]["paper"])

    def table(self) -> pd.DataFrame:
        paper = paper_numbers()["freezing"]["paper"]
        rows = [(row, *beside_paper(stats, paper[row])) for row, stats in self.by_row().items()]
        return pd.DataFrame(rows, columns=["frozen", *COLUMNS])

    def results(self) -> dict[str, Any]:
        return {"freezing": self.by_row()}

    def by_row(self) -> dict[str, Any]:
        """Return, for each row of the table, a statistic for each of `COLUMNS`."""
        return {
            row: [over_seeds(self.frame, kind, layers=row, hop=hop) for hop in HOPS for kind in KINDS]
            for row in ROWS
        }

    def conclusion(self) -> str:
        means = {row: [stat["mean"] for stat in stats] for row, stats in self.by_row().items()}
        whole, early, late = (means[row] for row in ("None", "Early (post)", "Late (post)"))
        return (
            f"With the early layers put back, first-hop implications are at {early[1]:.2f} and second-hop "
            f"ones at {early[3]:.2f}; with the late layers put back, at {late[1]:.2f} and {late[3]:.2f}. "
            f"With nothing put back, they are at {whole[1]:.2f} and {whole[3]:.2f}."
        )


@experiment
def freezing(setup: Setup | None = None, *, out: Folder = None, progress: bool = True) -> Freezing:
    """Measure mean ranks with early or late layers frozen, after finetuning or before it. The setup says
    which share of the layers counts as early."""
    return Freezing.of(measure, setup, out, progress, hop=list(HOPS))


def measure(model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, hop: str) -> Rows:
    """Measure all rows of one hop, which takes three finetunings."""
    data = two_hop(model, setup, hop, seed, repeat)
    early, late = setup.early_and_late(model.cfg.n_layers)
    at: dict[str, Any] = {"seed": seed, "repeat": repeat}

    def ranks(layers: str, model: TransformerBridge) -> dict[str, Any]:
        return {"layers": layers, **mean_ranks(model, by_kind(data))}

    def frozen(layers: range) -> TransformerBridge:
        return learn_facts(model, setup, data, hop, freeze=layers, **at).model

    after = learn_facts(model, setup, data, hop, **at)
    return [
        ranks("None", after.model),
        ranks("Early (post)", (after.delta - after.delta.restrict(early)).apply_to(model)),
        ranks("Late (post)", (after.delta - after.delta.restrict(late)).apply_to(model)),
        ranks("All", model),
        ranks("Early (pre)", frozen(early)),
        ranks("Late (pre)", frozen(late)),
    ]
