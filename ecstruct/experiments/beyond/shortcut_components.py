"""What is left without the right order: which components generalise after implications came first.

The paper finds that continued pretraining on implications, then facts, makes later facts generalise far
less than the other orders, and leaves open what carries the little that remains. Here every order is
scored: W after continued pretraining, W' after finetuning on the test facts, on the test people's
implications. A component's score is the mean over prompts of the sum over tokens, in logits, positive where
it raises the reward. If the remainder comes from the structures that the other orders learn, only weaker,
then its scores have the same profile over components (Pearson correlation near 1) with a smaller total. If
other structures carry it, the profile differs.

A check without scores takes dW = W' - W and either puts back one layer's part of it (W' - dW_l) or keeps
only that part (W + dW_l), and ranks the implications.
"""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.evaluate import mean_rank
from ecstruct.experiments.data_ordering import ORDERS, PHASES
from ecstruct.experiments.fictitious import WORDS, Assignment
from ecstruct.experiments.profiles import agreement, profile
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import along, listed, matching, means, over_seeds, shown, statistic
from ecstruct.experiments.sweep import Folder, Rows
from ecstruct.plots import curve_panels, value_grids
from ecstruct.scores.assemble import SCORES, STATES
from ecstruct.scores.engine import score

LAST = "implications first"
PAIRS = ((LAST, "facts first"), (LAST, "joint"), ("joint", "facts first"))
"""The orders whose profiles are compared; the profiles of the last pair should be alike."""

CHECKS = ("put back", "alone")
N_LARGEST = 3


class Shortcut(Result):
    """`frame` has a row per seed, repeat, words, order and measured `value`. `measure` is a score (of a
    `component` and its `layer`, in logits), "put back" or "alone" (mean rank with the change of a `layer`
    put back, or kept alone), or "rank" or "reward" before or after the test facts."""

    name = "shortcut"
    title = "What is left when implications come first"
    shows = "Scores of the test implications by layer and order of pretraining, novel words."
    lists = (
        "Mean ranks and rewards of the test implications before and after the test facts are learnt; the "
        "first-order change is the sum of all informative scores."
    )

    @property
    def figure(self) -> go.Figure:
        """Scores by layer and order with the paper's words."""
        return self.profile_figure("novel")

    def profile_figure(self, words: str) -> go.Figure:
        """Return a panel per score: scores by layer, summed over heads, by order."""
        panels = {}
        for name in SCORES:
            rows = matching(self.frame, words=words, measure=name)
            kind = np.where(rows["component"].str.startswith("MLP"), "MLPs", "heads")
            label = rows["order"] + ": " + kind
            at = ["label", "layer", "seed", "repeat"]
            summed = rows.assign(label=label, layer=rows["layer"].astype(int)).groupby(at)["value"].sum()
            by_layer = summed.groupby(["label", "layer"]).mean().unstack("layer")
            panels[f"{name}, {words} words"] = by_layer.reindex(
                [f"{order}: {kind}" for order in ORDERS for kind in ("MLPs", "heads")]
            )
        return value_grids(panels, x="layer", y="order", value="score (logits)")

    @property
    def layer_figure(self) -> go.Figure:
        """Mean ranks with one layer's change put back, and with one layer's change alone."""
        return curve_panels(
            {
                f"{words} words: one layer {check}": {
                    order: [stat["seeds"] for stat in self.by_layer(words, order, check)]
                    for order in ORDERS
                }
                for words in WORDS
                for check in CHECKS
            },
            x="layer",
            y="mean rank of the answer (0 is best)",
        )

    def figures(self) -> dict[str, go.Figure]:
        known = "The same with a fact relation that the model knows."
        layers = (
            "Mean rank of the test implications with the change of one layer put back, or of one layer "
            "alone. Bands: lowest and highest seed."
        )
        return {self.shows: self.figure, known: self.profile_figure("known"), layers: self.layer_figure}

    def table(self) -> pd.DataFrame:
        gains = {(order, words): self.gain(words, order) for words in WORDS for order in ORDERS}
        return pd.DataFrame(
            {
                "order": f"{order}, {words} words",
                **{f"rank {state}": shown(gain["rank"][state]) for state in STATES},
                "ranks gained": shown(gain["rank"]["gain"]),
                "reward gained": shown(gain["reward"]["gain"]),
                "first-order change": shown(gain["reward"]["first_order"]),
            }
            for (order, words), gain in gains.items()
        )

    def agreement_table(self) -> pd.DataFrame:
        """Return how similar the profiles of two orders are, and how large one is relative to the other."""
        return pd.DataFrame(
            {
                "scores": f"{name}, {words} words",
                "orders": f"{one} and {other}",
                "Pearson r": shown(stats["r"]),
                "ratio of positive totals": shown(stats["ratio"]),
            }
            for words in WORDS
            for name in SCORES
            for one, other in PAIRS
            for stats in (self.agreement(words, name, one, other),)
        )

    def largest_table(self) -> pd.DataFrame:
        """Return the components that have most of the positive score after implications first."""
        return pd.DataFrame(
            {
                "scores": f"{name}, {words} words",
                "component": component,
                **{order: shown(shares[order][component], ".0%") for order in ORDERS},
            }
            for words in WORDS
            for name in SCORES
            for shares in ({order: self.shares(words, order, name) for order in ORDERS},)
            for component in list(shares[LAST])[:N_LARGEST]
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        return {
            self.lists: self.table(),
            "Profiles over components: correlation, and total positive score of the first order over that "
            "of the second.": self.agreement_table(),
            f"The {N_LARGEST} components with the largest share of the positive score after implications "
            "first, and their share after the other orders.": self.largest_table(),
        }

    def results(self) -> dict[str, Any]:
        return {"shortcut": {words: self._entries(words) for words in WORDS}}

    def _entries(self, words: str) -> dict[str, Any]:
        orders = {
            key: {
                **self.gain(words, order),
                "layers": {check.replace(" ", "_"): self.by_layer(words, order, check) for check in CHECKS},
                "shares": {
                    name: dict(list(self.shares(words, order, name).items())[:N_LARGEST]) for name in SCORES
                },
            }
            for order, key in ORDERS.items()
        }
        agreement = {
            name: {
                f"{ORDERS[one]}/{ORDERS[other]}": self.agreement(words, name, one, other)
                for one, other in PAIRS
            }
            for name in SCORES
        }
        return {**orders, "agreement": agreement}

    def gain(self, words: str, order: str) -> dict[str, Any]:
        """Return rank and reward before and after, and their gain, positive for better; for the reward also
        the change to first order, which is the sum of all informative scores."""
        rows, out = matching(self.frame, words=words, order=order), {}
        for what, sign in (("rank", -1), ("reward", 1)):
            stats = {state: over_seeds(rows, "value", measure=f"{what} {state}") for state in STATES}
            before, after = (np.array(stats[state]["seeds"]) for state in STATES)
            out[what] = {**stats, "gain": statistic(list(sign * (after - before)))}
        totals = self.profiles(words, "informative")[order].groupby("seed").sum()
        out["reward"]["first_order"] = statistic(totals.tolist())
        return out

    def profiles(self, words: str, name: str) -> Any:
        """Return a score by seed and component, averaged over repeats, with a column per order."""
        rows = matching(self.frame, words=words, measure=name)
        return means(rows, "value", "seed", "component", "order", sort=False).unstack("order")

    def agreement(self, words: str, name: str, one: str, other: str) -> dict[str, Any]:
        """Return each seed's Pearson correlation of two orders' profiles, and the total positive score of
        `one` as a multiple of that of `other`."""
        stats = agreement(self.profiles(words, name), one, other, N_LARGEST)
        return {key: stats[key] for key in ("r", "ratio")}

    def shares(self, words: str, order: str, name: str) -> dict[str, Any]:
        """Return each component's share of an order's positive score, the largest first."""
        positive = self.profiles(words, name)[order].clip(lower=0)
        share = (positive / positive.groupby("seed").transform("sum")).rename("share").reset_index()
        stats = {str(of): over_seeds(rows, "share") for of, rows in share.groupby("component", sort=False)}
        return dict(sorted(stats.items(), key=lambda item: -(item[1]["mean"] or 0.0)))

    def by_layer(self, words: str, order: str, check: str) -> list[dict[str, Any]]:
        """Return a statistic of the mean rank for each layer's check."""
        return along(self.frame, "layer", "value", words=words, measure=check, order=order)

    def decisive(self, words: str, order: str, check: str) -> tuple[int, float]:
        """Return the most decisive layer by a check, and the ranks it costs put back or gains alone."""
        ranks = [stat["mean"] for stat in self.by_layer(words, order, check)]
        ends = self.gain(words, order)["rank"]
        if check == "put back":
            layer = int(np.argmax(ranks))
            return layer, ranks[layer] - ends["after"]["mean"]
        layer = int(np.argmin(ranks))
        return layer, ends["before"]["mean"] - ranks[layer]

    def lacking(self, words: str, name: str) -> tuple[str, float, float]:
        """Return the component that falls behind facts first most, with its scores after implications first
        and after facts first."""
        scores = self.profiles(words, name).groupby("component").mean()
        component = (scores["facts first"] - scores[LAST]).idxmax()
        ours, theirs = (float(scores.at[component, order]) for order in (LAST, "facts first"))
        return str(component), ours, theirs

    def conclusion(self) -> str:
        return " ".join(f"With {words} words, {self._conclusion(words)}" for words in WORDS)

    def _conclusion(self, words: str) -> str:
        gains = {order: self.gain(words, order)["rank"]["gain"]["mean"] for order in ORDERS}
        sentences = [f"the test facts gain {listed(gains)} ranks on their implications."]
        for name in SCORES:
            stats = {pair: self.agreement(words, name, *pair) for pair in PAIRS}
            r = [stats[pair]["r"]["mean"] for pair in PAIRS]
            ratio = shown({**stats[PAIRS[0]]["ratio"], "std": None})
            component, stat = next(iter(self.shares(words, LAST, name).items()))
            share = shown({**stat, "std": None}, ".0%")
            behind, ours, theirs = self.lacking(words, name)
            sentences.append(
                f"After {LAST}, {name} scores correlate with those of facts first and of joint by "
                f"r = {r[0]:.2f} and {r[1]:.2f}, {'both' if max(r[:2]) < r[2] else 'not both'} below the "
                f"{r[2]:.2f} between these; the positive total is {ratio} times that of facts first, "
                f"with {share} in {component}, and {behind} falls behind most ({ours:.2f} "
                f"logits for {theirs:.2f})."
            )
        for order in ORDERS:
            needed, cost = self.decisive(words, order, "put back")
            enough, kept = self.decisive(words, order, "alone")
            sentences.append(
                f"After {order}, layer {needed} put back costs most ({cost:.2f} ranks), and layer {enough} "
                f"alone gains most ({kept:.2f} of {gains[order]:.2f})."
            )
        return " ".join(sentences)


@experiment
def shortcut(setup: Setup | None = None, *, out: Folder = None, progress: bool = True) -> Shortcut:
    """Score the generalisation of test facts by the order of continued pretraining."""
    return Shortcut.of(measure, setup, out, progress, words=list(WORDS), order=list(ORDERS))


def measure(
    model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, words: str, order: str
) -> Rows:
    """Measure one order: run its phases, learn and score the test facts, and check every layer."""
    its = Assignment(model, setup, words, seed, repeat)
    before = its.after(*PHASES[order])
    learnt = its.after_test_facts(before)
    asked = its.data.test.implications
    scored = score(before, learnt.model, asked, progress=False)
    rows: list[dict[str, Any]] = []
    components = profile(scored, *SCORES).to_dict("records")
    for name in SCORES:
        rows += [_row(name, of[name], of["layer"], of["component"]) for of in components]
    for state, ranked in zip(STATES, (before, learnt.model), strict=True):
        rows.append(_row(f"rank {state}", mean_rank(ranked, asked)))
        rows.append(_row(f"reward {state}", float(scored.reward.sel(state=state).mean())))
    for layer in range(before.cfg.n_layers):
        alone = learnt.delta.restrict([layer])
        for check, delta in zip(CHECKS, (learnt.delta - alone, alone), strict=True):
            rows.append(_row(check, mean_rank(delta.apply_to(before), asked), layer))
    return rows


def _row(
    measure: str, value: float, layer: int | None = None, component: str | None = None
) -> dict[str, Any]:
    return {"measure": measure, "component": component, "layer": layer, "value": value}
