"""Longer and nested prompts: do finetuned facts reach them, and do the same components carry them?

The prompts are those of `ecstruct.experiments.beyond.asking`. Where both kinds of facts are taught, the
second-hop implications show how much the profiles of two different implications agree. The yardstick of the
ranks is implications that the model knows without finetuning, asked in the same ways.

A *profile* is the score of every MLP and head, in logits: the mean over prompts of the sum over tokens.
Profiles are compared with that of the *plain* implication under the same finetuning, by Pearson's r over
components and by the share of the `TOP` largest that both have.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.evaluate import mean_rank
from ecstruct.experiments.beyond.asking import PLAIN, TAUGHT, lessons, yardstick
from ecstruct.experiments.profiles import agreement, profile
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import matching, means, over_seeds, rows_by, shown
from ecstruct.experiments.sweep import Folder, Rows
from ecstruct.experiments.training import train
from ecstruct.experiments.two_hop import HOPS, rate
from ecstruct.plots import grouped_bars, scatter
from ecstruct.scores.engine import score

RANKS = ("before", "after", "known")
SCORES = ("informative", "downstream")
TOP = 5
CHANCE = 9.5


class Prompts(Result):
    """`frame` has a row per seed, repeat, what was `taught`, `variant` and component, with its
    `informative` and `downstream` score and the variant's mean ranks `before` and `after` finetuning;
    `known` is the mean rank of implications known from pretraining, where there are any."""

    name = "prompts"
    title = "Longer and nested prompts"
    shows = (
        "Mean rank of the answers among 20 options before and after finetuning on the facts, by what was "
        "taught and how it was asked for; known: implications that the model knew all along, asked in the "
        "same way. Dots are seeds."
    )
    lists = (
        "Mean ranks, and how the components' scores agree with those for the plain implication: Pearson's "
        f"r, and the share of the {TOP} largest in common."
    )

    @property
    def figure(self) -> go.Figure:
        return grouped_bars(
            {
                f"{taught}: {variant}": {when: stats[when]["seeds"] for when in RANKS if when in stats}
                for taught, variants in self.by_variant().items()
                for variant, stats in variants.items()
            },
            y="mean rank of the answer (0 is best)",
            chance=CHANCE,
        )

    def figures(self) -> dict[str, go.Figure]:
        """Return the figure of the ranks, then a figure of every profile against the plain one."""
        profiles = {
            f"{taught.capitalize()} facts taught: each component's {kind} score for the implication asked "
            "otherwise, against its score for the plain one.": self._profiles(taught, kind)
            for taught in self.by_variant()
            for kind in SCORES
        }
        return {self.shows: self.figure, **profiles}

    def table(self) -> pd.DataFrame:
        rows = []
        for taught, variants in self.by_variant().items():
            for variant, stats in variants.items():
                cells = {"taught": taught, "asked": variant}
                cells |= {when: shown(stats[when]) if when in stats else "" for when in RANKS}
                for kind in SCORES:
                    agreement = stats.get(kind)
                    cells[f"{kind} r"] = shown(agreement["r"]) if agreement else ""
                    cells[f"{kind} top {TOP}"] = shown(agreement["top"]) if agreement else ""
                rows.append(cells)
        return pd.DataFrame(rows)

    def results(self) -> dict[str, Any]:
        return {"prompts": self.by_variant()}

    def by_variant(self) -> dict[str, Any]:
        """Return, by what was taught and how it was asked for: the mean ranks of `RANKS`, and for each of
        `SCORES` the agreement with the plain profile, `r` and `top`, all as statistics over seeds. A seed's
        profile is the mean over its repeats. The plain implication has ranks only."""
        found: dict[str, Any] = {}
        for (taught, variant), rows in rows_by(self.frame, "taught", "variant").items():
            ranks = {when: over_seeds(rows, when) for when in RANKS if not pd.isna(rows[when].iat[0])}
            agreeing = {} if variant == PLAIN else self._agreement(taught, variant)
            found.setdefault(taught, {})[variant] = {**ranks, **agreeing}
        return found

    def conclusion(self) -> str:
        """Describe, for each variant, the share of the plain implication's gain in rank that it reaches."""
        sentences = []
        for taught, variants in self.by_variant().items():
            plain = _gain(variants[PLAIN])
            if plain <= 0:
                sentences.append(f"{taught.capitalize()} facts: not even the plain implications gain.")
                continue
            others = {variant: stats for variant, stats in variants.items() if variant != PLAIN}
            told = [
                f"{variant} {_gain(stats) / plain:.0%} (r = {stats['informative']['r']['mean']:.2f} "
                f"informative, {stats['downstream']['r']['mean']:.2f} downstream)"
                for variant, stats in others.items()
            ]
            reached = [variant for variant, stats in others.items() if _gain(stats) >= plain / 2]
            sentences.append(
                f"{taught.capitalize()} facts: plain implications gain {plain:.2f} ranks; of that "
                f"gain have {', '.join(told)}. At least half of it: {', '.join(reached) or 'none of them'}."
            )
            known = [f"{v} {s['known']['mean']:.2f}" for v, s in variants.items() if "known" in s]
            if known:
                sentences.append(f"Implications known from pretraining are at {', '.join(known)}.")
        return " ".join(sentences)

    def _agreement(self, taught: str, variant: str) -> dict[str, Any]:
        rows, at = matching(self.frame, taught=taught), ("seed", "component", "variant")
        found = {}
        for kind in SCORES:
            stats = agreement(means(rows, kind, *at).unstack("variant"), PLAIN, variant, TOP)
            found[kind] = {"r": stats["r"], "top": stats["common"]}
        return found

    def _profiles(self, taught: str, kind: str) -> go.Figure:
        panels, fits = {}, {}
        plain = _profile(matching(self.frame, taught=taught, variant=PLAIN))
        for variant, stats in self.by_variant()[taught].items():
            if variant != PLAIN:
                asked = _profile(matching(self.frame, taught=taught, variant=variant))
                points = {"x": plain[kind], "y": asked[kind], "layer": plain["layer"], "name": plain.index}
                panels[variant] = pd.DataFrame(points)
                fits[variant] = f"r = {shown(stats[kind]['r'])}"
        return scatter(panels, x="asked plainly (logits)", y=f"{kind} score (logits)", fit=fits)


@experiment
def prompts(setup: Setup | None = None, *, out: Folder = None, progress: bool = True) -> Prompts:
    """Measure mean ranks and scores of implications that are asked in longer and nested prompts."""
    return Prompts.of(measure, setup, out, progress, taught=list(TAUGHT))


def measure(model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, taught: str) -> Rows:
    """Finetune once and ask in all ways; if both kinds of facts are taught, use the first hop's rate."""
    facts, asked = lessons(model, setup, seed=seed, repeat=repeat, taught=taught)
    known = yardstick(model, setup, seed=seed, repeat=repeat) if taught == "first-hop" else {}
    lr = rate(setup, taught if taught in HOPS else "first-hop")
    tuned = train(model, setup, facts, lr=lr, seed=seed, repeat=repeat).model
    rows = []
    for variant, questions in asked.items():
        ranks: dict[str, float | None] = {
            "before": mean_rank(model, questions),
            "after": mean_rank(tuned, questions),
            "known": mean_rank(model, known[variant]) if variant in known else None,
        }
        components = profile(score(model, tuned, questions, progress=False), *SCORES)
        rows += [
            {"variant": variant, "component": row["component"], "layer": row["layer"], **ranks}
            | {kind: row[kind] for kind in SCORES}
            for row in components.to_dict("records")
        ]
    return rows


def _profile(rows: pd.DataFrame) -> Any:
    """Return a frame of mean scores by component, with the layer of each component."""
    return means(rows, [*SCORES, "layer"], "component", sort=False).astype({"layer": int})


def _gain(stats: Mapping[str, Any]) -> float:
    return stats["before"]["mean"] - stats["after"]["mean"]
