"""Localization (Fig. 8): does the graft change the downstream components?

The graft makes a model read facts that it was never trained to read. If it does so by making downstream
components, those whose weight change matters for it (informative scores of W_F' -> W_graft on Impl F')
later decode new facts (downstream scores of W_graft -> W_graft finetuned on test facts, on the test
people's implications).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
from scipy.stats import pearsonr
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.experiments.fictitious import WORDS, learn_test_facts, relations
from ecstruct.experiments.paper import paper_numbers
from ecstruct.experiments.result import Result
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import rows_by, shown, statistic
from ecstruct.experiments.sweep import Rows
from ecstruct.experiments.weight_grafting import graft, learn_counterfactual
from ecstruct.plots import scatter
from ecstruct.scores.components import component_names
from ecstruct.scores.engine import score

KINDS: Mapping[str, str] = {"MLP": "mlp", "head": "heads"}
"""The kinds of components, with their names in `results.json`."""


@dataclass(frozen=True)
class Localization(Result):
    """`frame` has a row per seed, repeat, words and component, with the `informative` score of the graft
    and the `downstream` score for test facts: means over prompts of sums over tokens, in logits."""

    name: ClassVar[str] = "localization"
    title: ClassVar[str] = "Localization (Fig. 8)"
    shows: ClassVar[str] = (
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
            points = _means(rows, "component", "layer")
            panels[title] = points.rename(columns=columns)
            r, p = _pearson(points)
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
        by = rows_by(self.frame, "words", "kind")
        out = {}
        for kind, key in KINDS.items():
            means = _means(by[words, kind], "seed", "component")
            by_seed = [_pearson(of_seed) for of_seed in rows_by(means, "seed").values()]
            out[key] = {
                "r": statistic([r for r, _ in by_seed]),
                "r2": statistic([r * r for r, _ in by_seed]),
                "p": statistic([p for _, p in by_seed]),
                "pooled": _pooled(means),
            }
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


def localization(
    setup: Setup | None = None, *, out: str | Path | None = None, progress: bool = True
) -> Localization:
    """Correlate the graft's informative scores with the downstream scores of facts that are learnt later.

    Args:
        setup: the model and how it is trained; the organism by default.
        out: a folder that keeps finished cells, so that an interrupted run continues where it stopped.
        progress: show progress bars.

    Raises:
        InputError: a model or folder that cannot be used.
    """
    return Localization.of(measure, setup, out, progress, words=list(WORDS))


def measure(model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, words: str) -> Rows:
    """Measure both scores of every component for one assignment."""
    data = relations(model, setup, words, seed, repeat)
    counterfactual = learn_counterfactual(model, setup, data, seed=seed, repeat=repeat)
    grafted = (counterfactual + graft(model, setup, data, seed=seed, repeat=repeat)).apply_to(model)
    tested = learn_test_facts(grafted, setup, data, seed=seed, repeat=repeat).model
    before = counterfactual.apply_to(model)
    graft_scores = score(before, grafted, data.counterfactual.implications, progress=False)
    test_scores = score(grafted, tested, data.test.implications, progress=False)
    informative, downstream = graft_scores.components("informative"), test_scores.components("downstream")
    return [
        {
            "kind": "MLP" if kind == "mlp" else "head",
            "component": name,
            "layer": int(layer),
            "informative": float(now),
            "downstream": float(later),
        }
        for name, kind, layer, now, later in zip(
            component_names(informative),
            informative["kind"],
            informative["layer"],
            informative["value"],
            downstream["value"],
            strict=True,
        )
    ]


def _means(rows: pd.DataFrame, *of: str) -> pd.DataFrame:
    """Average both scores over all rows that agree in the columns `of`."""
    groups: Any = rows.groupby(list(of))
    return groups[["informative", "downstream"]].mean().reset_index()


def _pooled(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the correlation over the components of all seeds, None where it is undefined."""
    r, p = _pearson(rows)
    defined = {} if math.isnan(r) else {"r": r, "r2": r * r, "p": p}
    return {"r": None, "r2": None, "p": None, **defined, "n": len(rows)}


def _pearson(rows: pd.DataFrame) -> tuple[float, float]:
    """Return r and its two-sided p-value, NaN where one of the scores is the same for all rows."""
    if any(len(set(rows[score])) < 2 for score in ("informative", "downstream")):
        return math.nan, math.nan
    result: Any = pearsonr(rows["informative"], rows["downstream"])
    return float(result.statistic), float(result.pvalue)
