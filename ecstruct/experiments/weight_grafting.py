"""Weight grafting (Table 3): the change from learning implications helps with other facts too.

With F facts and F' facts of the same people with other cities,

    W_graft   = W_F' + W_{F, Impl F} - W_F       what learning Impl F changes after F is learnt
    W_control = W_F' + W_{Impl F}    - W         what learning Impl F changes before

where W_{F, Impl F} is trained on F, then on Impl F. If learning implications after facts makes the model
read facts in general, then W_graft knows the implications of F', and W_control does not.
"""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.experiments.fictitious import WORDS, Assignment
from ecstruct.experiments.paper import GRAFTING_COLUMNS, beside_paper, paper_numbers, rank_bars
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import over_seeds, shown
from ecstruct.experiments.sweep import Folder, Rows
from ecstruct.experiments.training import mean_ranks

ROWS = ("W_F'", "W_graft", "W_control")


class Grafting(Result):
    """The result of weight grafting. `frame` has a row per seed, repeat, words and `weights` (W_F',
    W_graft, W_control), with the mean ranks on "Impl F'", "Impl F" and "F'"."""

    name = "grafting"
    title = "Weight grafting (Table 3)"
    shows = "Mean rank of the answers by the weights that were added; dots are seeds, diamonds the paper's."
    lists = "Ours, and in brackets the paper's; with several seeds, mean ± standard deviation."

    @property
    def figure(self) -> go.Figure:
        paper = paper_numbers()["grafting"]["paper"]
        table = {
            f"{row}, {words} words": stats for words in WORDS for row, stats in self.final(words).items()
        }
        return rank_bars(table, GRAFTING_COLUMNS, {f"{row}, novel words": paper[row] for row in ROWS})

    def table(self) -> pd.DataFrame:
        paper = paper_numbers()["grafting"]["paper"]
        known, novel = self.final("known"), self.final("novel")
        rows = []
        for row in ROWS:
            cells, beside = {"weights": row}, beside_paper(novel[row], paper[row])
            for i, column in enumerate(GRAFTING_COLUMNS):
                cells[f"{column}, known words"] = shown(known[row][i])
                cells[f"{column}, novel words"] = beside[i]
            rows.append(cells)
        return pd.DataFrame(rows)

    def results(self) -> dict[str, Any]:
        return {"grafting": self.final("known"), "grafting_novel": self.final("novel")}

    def final(self, words: str) -> dict[str, Any]:
        """Return, for each kind of weights, one statistic for each of Impl F', Impl F and F'."""
        return {
            row: [over_seeds(self.frame, column, words=words, weights=row) for column in GRAFTING_COLUMNS]
            for row in ROWS
        }

    def conclusion(self) -> str:
        sentences = []
        for words in WORDS:
            means = {row: [stat["mean"] for stat in stats] for row, stats in self.final(words).items()}
            graft, control = means["W_graft"], means["W_control"]
            sentences.append(
                f"With {words} words, the graft is at {graft[0]:.2f} on the implications of F' and the "
                f"control at {control[0]:.2f}; on those of F, which both were trained on, at "
                f"{graft[1]:.2f} and {control[1]:.2f}."
            )
        return " ".join(sentences)


@experiment
def grafting(setup: Setup | None = None, *, out: Folder = None, progress: bool = True) -> Grafting:
    """Measure mean ranks of a model that knows F', with the graft or the control added."""
    return Grafting.of(measure, setup, out, progress, words=list(WORDS))


def measure(model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, words: str) -> Rows:
    """Measure all three kinds of weights for one assignment."""
    return ranks_of_grafts(Assignment(model, setup, words, seed, repeat))


def ranks_of_grafts(its: Assignment) -> Rows:
    """Return the mean ranks of an assignment's prompts with each kind of weights."""
    learnt = its.change("other facts")
    weights = {
        "W_F'": learnt,
        "W_graft": learnt + its.change("facts", "implications"),
        "W_control": learnt + its.change("implications"),
    }
    train, other = its.data.train, its.data.counterfactual
    asked = {"Impl F'": other.implications, "Impl F": train.implications, "F'": other.facts}
    return [
        {"weights": name, **mean_ranks(delta.apply_to(its.model), asked)} for name, delta in weights.items()
    ]
