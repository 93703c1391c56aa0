"""Data ordering (Fig. 6): new facts generalise only if facts came before their implications in training.

Continued pretraining uses 80 fictitious facts and their implications in three orders: both mixed ("joint"),
all facts before all implications, or all implications before all facts. Every document is seen `epochs`
times, and each phase has a new optimiser. Then the model is finetuned on the facts of 20 other people and
asked for their implications.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.experiments.fictitious import WORDS, continue_pretraining, learn_test_facts, relations
from ecstruct.experiments.paper import paper_numbers
from ecstruct.experiments.result import Result
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import over_seeds, rows_by, shown
from ecstruct.experiments.sweep import Rows
from ecstruct.facts import Fictitious, Prompt
from ecstruct.plots import curve_panels

ORDERS: Mapping[str, str] = {
    "joint": "joint",
    "facts first": "facts_first",
    "implications first": "implications_first",
}
"""The orders, with their names in `results.json`."""


@dataclass(frozen=True)
class Ordering(Result):
    """The result of data ordering. `frame` has a row per seed, repeat, words, order, stage ("continued
    pretraining", "test finetuning") and epoch, with the mean ranks `fact` and `implication` of the people
    of that stage: first the 80 that it trains on, then the 20 test people."""

    name: ClassVar[str] = "ordering"
    title: ClassVar[str] = "Data ordering (Fig. 6)"
    shows: ClassVar[str] = (
        "Mean rank of the answers, per epoch, by the order of continued pretraining. Bands: lowest and "
        "highest seed."
    )

    @property
    def figure(self) -> go.Figure:
        """Ranks of the train people's implications during continued pretraining, and of the test people's
        during finetuning on their facts, by order; novel words are on the right."""
        panels: dict[str, dict[str, Sequence[Sequence[float]]]] = {}
        boundaries = {}
        for (words, stage), rows in rows_by(self.frame, "words", "stage").items():
            of = "train" if stage == TRAINING else "test"
            title = f"{words} words: {stage}, {of} implications"
            if stage == TRAINING:
                boundaries[title] = [self.setup.epochs]
            panels[title] = {
                order: [
                    over_seeds(at, "implication")["seeds"] for at in rows_by(of_order, "epoch").values()
                ]
                for order, of_order in rows_by(rows, "order").items()
            }
        return curve_panels(
            panels, x="epoch", y="mean rank of the answer (0 is best)", boundaries=boundaries
        )

    def table(self) -> pd.DataFrame:
        paper = paper_numbers()["ordering"]
        summaries = {words: self.final(words) for words in WORDS}
        return pd.DataFrame(
            {
                "order": order,
                **{f"{words} words": shown(summaries[words][key]) for words in WORDS},
                "paper (novel words)": f"{paper[key]:.2f}",
            }
            for order, key in ORDERS.items()
        )

    def results(self) -> dict[str, Any]:
        return {"ordering": self.final("known"), "ordering_novel": self.final("novel")}

    def final(self, words: str) -> dict[str, Any]:
        """Return the final mean ranks of the test people's implications, by order."""
        by = rows_by(self.frame, "stage", "epoch", "words", "order")
        last = TESTING, self.setup.epochs, words
        return {key: over_seeds(by[*last, order], "implication") for order, key in ORDERS.items()}

    def conclusion(self) -> str:
        sentences = []
        for words in WORDS:
            means = {order: self.final(words)[key]["mean"] for order, key in ORDERS.items()}
            gap = means["implications first"] - max(means["joint"], means["facts first"])
            sentences.append(
                f"With {words} words, test implications end at {means['joint']:.2f} (joint), "
                f"{means['facts first']:.2f} (facts first) and {means['implications first']:.2f} "
                f"(implications first): implications first is {abs(gap):.2f} ranks "
                f"{'worse' if gap > 0 else 'better'} than the worse of the others."
            )
        return " ".join(sentences)


TRAINING, TESTING = "continued pretraining", "test finetuning"


def ordering(
    setup: Setup | None = None, *, out: str | Path | None = None, progress: bool = True
) -> Ordering:
    """Measure mean ranks during continued pretraining in three orders, and of test people afterwards.

    Args:
        setup: the model and how it is trained; the organism by default.
        out: a folder that keeps finished cells, so that an interrupted run continues where it stopped.
        progress: show progress bars.

    Raises:
        InputError: a model or folder that cannot be used.
    """
    return Ordering.of(measure, setup, out, progress, words=list(WORDS), order=list(ORDERS))


def measure(
    model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, words: str, order: str
) -> Rows:
    """Measure one order: run its phases, then finetune on the test facts."""
    data = relations(model, setup, words, seed, repeat)
    train = {"fact": data.train.facts, "implication": data.train.implications}
    test = {"fact": data.test.facts, "implication": data.test.implications}
    rows: list[dict[str, Any]] = []
    for documents in phases(data, order):
        tuned = continue_pretraining(model, setup, documents, seed=seed, repeat=repeat, evaluate=train)
        rows += _rows(TRAINING, tuned.history.ranks, skip=len(rows) > 0, start=len(rows))
        model = tuned.model
    tested = learn_test_facts(model, setup, data, seed=seed, repeat=repeat, evaluate=test)
    return rows + _rows(TESTING, tested.history.ranks, skip=False, start=0)


def phases(data: Fictitious, order: str) -> list[list[Prompt]]:
    """Return the documents of each phase of continued pretraining."""
    facts, implications = list(data.train.facts), list(data.train.implications)
    if order == "joint":
        return [facts + implications]
    return [facts, implications] if order == "facts first" else [implications, facts]


def in_order(
    model: TransformerBridge, setup: Setup, data: Fictitious, order: str, *, seed: int, repeat: int
) -> TransformerBridge:
    """Return the model after all phases of an order."""
    for documents in phases(data, order):
        model = continue_pretraining(model, setup, documents, seed=seed, repeat=repeat).model
    return model


def _rows(
    stage: str, ranks: Mapping[str, Sequence[float]], *, skip: bool, start: int
) -> list[dict[str, Any]]:
    """Return a row per epoch, counted from `start`; `skip` drops the first, the last phase's end."""
    n = len(next(iter(ranks.values())))
    return [
        {"stage": stage, "epoch": start + i - skip, **{name: values[i] for name, values in ranks.items()}}
        for i in range(int(skip), n)
    ]
