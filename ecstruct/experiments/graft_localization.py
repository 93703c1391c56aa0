"""Localization (Fig. 8): does the graft change the downstream components?

The graft makes a model read facts that it was never trained to read. If it does so by making downstream
components, those whose weight change matters for it (informative scores of W_F' -> W_graft on Impl F')
later decode new facts (downstream scores of W_graft -> W_graft finetuned on test facts, on the test
people's implications).
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.experiments.fictitious import WORDS, Assignment
from ecstruct.experiments.paper import paper_numbers
from ecstruct.experiments.profiles import pearson, profile
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import matching, means, rows_by, shown, statistic
from ecstruct.experiments.sweep import Folder, Rows
from ecstruct.plots import scatter
from ecstruct.scores.engine import score

KINDS: Mapping[str, str] = {"MLP": "mlp", "head": "heads"}
"""The kinds of components, with their names in `results.json`."""

SCORES = ["informative", "downstream"]


class Localization(Result):
    """`frame` has a row per seed, repeat, words and component, with the `informative` score of the graft
    and the `downstream` score for test facts: means over prompts of sums over tokens, in logits."""

    name = "localization"
    title = "Localization (Fig. 8)"
    shows = (
        "A point per component: what its change does for the graft, and what it does to decode facts that "
        "were learnt later."
    )

    @property
    def figure(self) -> go.Figure:
        """Show a point per component, averaged over seeds and repeats."""
        panels, fits = {}, {}
        columns = {"informative": "x", "downstream": "y", "component": "name"}
        for (words, kind), rows in rows_by(self.frame, "words", "kind").items():
            title = f"{kind}s, {words} words"
            points = means(rows, SCORES, "component", "layer").reset_index()
            panels[title] = points.rename(columns=columns)
            r, p = pearson(*(points[score] for score in SCORES))
            fits[title] = f"r = {r:.2f}, r² = {r * r:.2f}, p = {p:.2g}, n = {len(points)}"
        return scatter(
            panels,
            x="informative score of the graft (logits)",
            y="downstream score for test facts (logits)",
            fit=fits,
        )

    def table(self) -> pd.DataFrame:
        paper = paper_numbers()["localization"]
        rows = []
        for words in WORDS:
            for kind, key in KINDS.items():
                stats = self.correlations(words)[key]
                rows.append(
                    {
                        "components": f"{kind}s, {words} words",
                        "r": shown(stats["r"]),
                        "r²": shown(stats["r2"]),
                        "p": shown(stats["p"], ".2g"),
                        "r², paper": f"{paper['paper'][key]['r2']:.2f}",
                        "r², paper's rerun": f"{paper['rerun'][key]['r2']:.2f}",
                    }
                )
        return pd.DataFrame(rows)

    def results(self) -> dict[str, Any]:
        return {
            "localization": self.correlations("novel"),
            "localization_known": self.correlations("known"),
        }

    def correlations(self, words: str) -> dict[str, Any]:
        """Return, for each kind of component, r, r² and the two-sided p over each seed's components (scores
        averaged over its repeats), and over the pooled components of all seeds."""
        out = {}
        for kind, key in KINDS.items():
            rows = matching(self.frame, words=words, kind=kind)
            averaged = means(rows, SCORES, "seed", "component")
            seeds = [_correlation(of_seed) for _, of_seed in averaged.groupby("seed")]
            by_seed = {column: statistic([found[column] for found in seeds]) for column in ("r", "r2", "p")}
            pooled = {name: None if math.isnan(v) else v for name, v in _correlation(averaged).items()}
            out[key] = {**by_seed, "pooled": {**pooled, "n": len(averaged)}}
        return out

    def conclusion(self) -> str:
        sentences = []
        for words in WORDS:
            correlations = self.correlations(words)
            for kind, key in KINDS.items():
                pooled = correlations[key]["pooled"]
                r = (
                    "is not defined"
                    if pooled["r"] is None
                    else f"is {pooled['r']:.2f} (p = {pooled['p']:.2g})"
                )
                sentences.append(
                    f"With {words} words, the correlation over {pooled['n']} {kind}s of all seeds {r}."
                )
        return " ".join(sentences)


@experiment
def localization(setup: Setup | None = None, *, out: Folder = None, progress: bool = True) -> Localization:
    """Correlate the graft's informative scores with downstream scores of facts that are learnt later."""
    return Localization.of(measure, setup, out, progress, words=list(WORDS))


def measure(model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, words: str) -> Rows:
    """Measure both scores of every component for one assignment."""
    its = Assignment(model, setup, words, seed, repeat)
    counterfactual = its.change("other facts")
    grafted = (counterfactual + its.change("facts", "implications")).apply_to(model)
    tested = its.after_test_facts(grafted).model
    before = counterfactual.apply_to(model)
    graft_scores = score(before, grafted, its.data.counterfactual.implications, progress=False)
    test_scores = score(grafted, tested, its.data.test.implications, progress=False)
    rows = profile(graft_scores, "informative").join(profile(test_scores, "downstream")["downstream"])
    return rows.replace({"kind": {"mlp": "MLP"}}).to_dict("records")


def _correlation(scores: Any) -> dict[str, float]:
    """Return Pearson's r of both scores, r² and the p-value of r, NaN where they are undefined."""
    r, p = pearson(*(scores[name] for name in SCORES))
    return {"r": r, "r2": r * r, "p": p}
