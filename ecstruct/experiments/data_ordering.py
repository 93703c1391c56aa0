"""Data ordering (Fig. 6): new facts generalise only if facts came before their implications in training.

Continued pretraining uses 80 fictitious facts and their implications in three orders: both mixed ("joint"),
all facts before all implications, or all implications before all facts. Every document is seen `epochs`
times, and each phase has a new optimiser. Then the model is finetuned on the facts of 20 other people and
asked for their implications.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.experiments.fictitious import WORDS, Assignment, continue_pretraining, learn_test_facts
from ecstruct.experiments.paper import paper_numbers
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import curve, matching, over_seeds, shown
from ecstruct.experiments.sweep import Folder, Rows
from ecstruct.experiments.training import ranks_by_epoch
from ecstruct.experiments.two_hop import by_kind
from ecstruct.plots import curve_panels

ORDERS: Mapping[str, str] = {
    "joint": "joint",
    "facts first": "facts_first",
    "implications first": "implications_first",
}
"""The orders, with their names in `results.json`."""

PHASES: Mapping[str, tuple[str, ...]] = {
    "joint": ("both",),
    "facts first": ("facts", "implications"),
    "implications first": ("implications", "facts"),
}
"""What each phase of an order trains on, by the names of `Assignment.documents`."""

TRAINING, TESTING = "continued pretraining", "test finetuning"


class Ordering(Result):
    """The result of data ordering. `frame` has a row per seed, repeat, words, order, stage ("continued
    pretraining", "test finetuning") and epoch, with the mean ranks `fact` and `implication` of the people
    of that stage: first the 80 that it trains on, then the 20 test people."""

    name = "ordering"
    title = "Data ordering (Fig. 6)"
    shows = (
        "Mean rank of the answers, per epoch, by the order of continued pretraining. Dotted: where two "
        "phases meet. Bands: lowest and highest seed."
    )

    @property
    def figure(self) -> go.Figure:
        """Ranks of the train people's implications during continued pretraining, and of the test people's
        during finetuning on their facts, by order; novel words are on the right."""
        panels, boundaries = {}, {}
        for words, (stage, people) in product(WORDS, {TRAINING: "train", TESTING: "test"}.items()):
            title = f"{words} words: {stage}, {people} implications"
            if stage == TRAINING:
                boundaries[title] = [self.setup.epochs]
            rows = matching(self.frame, words=words, stage=stage)
            panels[title] = {order: curve(rows, "epoch", "implication", order=order) for order in ORDERS}
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
        """Return the final mean ranks of the test people's implications, by order, where prompts had these
        `words` (one of `WORDS`)."""
        last = matching(self.frame, stage=TESTING, epoch=self.setup.epochs, words=words)
        return {key: over_seeds(last, "implication", order=order) for order, key in ORDERS.items()}

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


@experiment
def ordering(setup: Setup | None = None, *, out: Folder = None, progress: bool = True) -> Ordering:
    """Measure mean ranks during continued pretraining in three orders, and of test people afterwards."""
    return Ordering.of(measure, setup, out, progress, words=list(WORDS), order=list(ORDERS))


def measure(
    model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, words: str, order: str
) -> Rows:
    """Measure one order: run its phases, then finetune on the test facts."""
    its = Assignment(model, setup, words, seed, repeat)
    at: dict[str, Any] = {"seed": seed, "repeat": repeat}
    train, test = by_kind(its.data.train), by_kind(its.data.test)
    rows: list[dict[str, Any]] = []
    for phase in PHASES[order]:
        tuned = continue_pretraining(model, setup, its.documents(phase), evaluate=train, **at)
        # A phase begins at the end of the one before, which has a row already.
        for ranks in ranks_by_epoch(tuned)[len(rows) > 0 :]:
            rows.append({"stage": TRAINING, "epoch": len(rows), **ranks})
        model = tuned.model
    tested = learn_test_facts(model, setup, its.data, evaluate=test, **at)
    epochs = enumerate(ranks_by_epoch(tested))
    return [*rows, *({"stage": TESTING, "epoch": epoch, **ranks} for epoch, ranks in epochs)]
