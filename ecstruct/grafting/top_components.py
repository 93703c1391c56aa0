"""Grafts: is the weight change of the top components sufficient for the answer, and is it necessary?

Components are ranked by their informative score, and the weight change dW_C of the top k of them is

* **grafted** onto the original model, W[W_C <- W'_C for the top k]: is it sufficient?
* **reverted** in the finetuned one, W'[W_C <- W_C for the top k]: is it necessary?

The measures are the mean rank of the answers (0 is best) and the mean reward R. If the scores find what
matters, a few components have almost the effect of all of them, both ways. They are compared with

* the k components of largest **attribution** in the finetuned model, g'_C . (y'_C - y*_C);
* the k components of largest **weight change**, by the Frobenius norm |dW_C|. (Not relative to |W_C|: it is
  dW_C itself that the informative score dR/dW_C . dW_C is linear in);
* k **random** components;
* k random components of the **same kinds**, as many MLPs and as many heads as the top k have: an MLP has
  more weights than a head, so that a ranking may look good for no more than preferring MLPs.

One number for a ranking is its **faithfulness** (as for circuits in MIB, arXiv 2504.13151): the mean, over
shares p of the components from 0.1% to 50%, of the share of the reward's change that the top p have,
grafted or reverted: 0 if they do nothing, 1 if the first one does all of it.

`ecstruct.grafting.weight_sets` says which weights a component has. Those that belong to none stay as they
are, in W or in W'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
import xxhash

from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.grafting.grafted_runs import Graft
from ecstruct.grafting.measured import GraftRuns
from ecstruct.grafting.rankings import (
    Order,
    Rankings,
    largest_first,
    named_rankings,
    names_of,
    numbered,
    order_of,
    values_without_scores,
)
from ecstruct.io.store import FinishedPieces, stepping
from ecstruct.io.values import bounded, checksum
from ecstruct.models.provenance import versions
from ecstruct.plots.curves import curve_panels
from ecstruct.scores.pair import ModelAfter, ModelBefore, Pair
from ecstruct.scores.reward import RewardLike

_HOW = {"graft": "grafted onto the original", "revert": "reverted in the finetuned"}
_BY = {
    "informative": "of highest informative score",
    "attribution": "of largest attribution",
    "weight change": "of largest weight change",
    "random": "drawn at random",
    "same kinds": "drawn among the same kinds",
}
_SHARES = (0.001, 0.5)
"""The shares of components over which faithfulness is a mean."""


@dataclass(frozen=True)
class Grafts:
    """`frame` has a row per `how` ("graft" or "revert"), per ranking `by` which components are chosen
    (those given, "attribution", "weight change", "random", "same kinds"), per number `k` of them and, where
    they are drawn, per `seed`: `rank` is the mean rank of the answers, `reward` their mean reward. The
    least k is 0, the largest all. `orders` has the names of all components in the order in which they are
    taken, by ranking and seed."""

    frame: pd.DataFrame
    orders: Mapping[tuple[str, int | None], Sequence[str]]

    def ranks(self, how: str, by: str) -> pd.DataFrame:
        """Return the mean ranks by k (rows) and seed (columns; a single one if nothing is drawn)."""
        return self._values(how, by, "rank")

    def faithfulness(self) -> pd.DataFrame:
        """Return the faithfulness of every ranking (rows), grafted and reverted; draws are averaged.
        Between the numbers of components that were run, shares are interpolated."""
        return pd.DataFrame(
            {how: {by: self._faithfulness(how, by) for by in self._rankings} for how in _HOW}
        ).rename_axis("ranking")

    def _faithfulness(self, how: str, by: str) -> float:
        rewards = self._values(how, by, "reward").mean(axis=1)
        gone = (rewards - rewards.iloc[0]) / (rewards.iloc[-1] - rewards.iloc[0])
        at = np.linspace(*_SHARES, 500)
        return float(np.interp(at, rewards.index / rewards.index[-1], gone).mean())

    @property
    def _rankings(self) -> list[str]:
        return list(dict.fromkeys(self.frame["by"]))

    def _values(self, how: str, by: str, measure: str) -> pd.DataFrame:
        rows = self.frame[(self.frame["how"] == how) & (self.frame["by"] == by)]
        return rows.fillna({"seed": 0}).pivot(index="k", columns="seed", values=measure)

    @property
    def figure(self) -> go.Figure:
        """Mean rank against k, grafted and reverted; of drawn components the mean and the range."""
        panels = {
            f"k components {where} model": {by: self.ranks(how, by).to_numpy() for by in self._rankings}
            for how, where in _HOW.items()
        }
        figure = curve_panels(panels, x="k", y="mean rank of the answer (0 is best)")
        # Curves are drawn over the steps 0, 1, 2...; here these are the numbers of components.
        ks = [str(k) for k in sorted(set(self.frame["k"]))]
        figure.for_each_trace(
            lambda trace: trace.update(x=[None if step is None else ks[int(step)] for step in trace.x])
        )
        return figure.update_xaxes(type="category", categoryorder="array", categoryarray=ks, dtick=1)

    def conclusion(self) -> str:
        """Say what all components do to the mean rank, and which k is the least that does half of it."""
        sentences = []
        for how in _HOW:
            means = {by: self.ranks(how, by).mean(axis=1) for by in self._rankings}
            first = next(iter(means.values()))
            ks, (start, end) = list(first.index), first.iloc[[0, -1]]
            sentences.append(
                f"{how.capitalize()}ing all {ks[-1]} components takes the mean rank from {start:.2f} to "
                f"{end:.2f}."
            )
            if start != end:
                gone = {by: (start - of_each.to_numpy()) / (start - end) for by, of_each in means.items()}
                listed = [
                    f"{ks[int(np.argmax(share >= 0.5))]} {_BY.get(by, f'by {by}')}"
                    for by, share in gone.items()
                ]
                sentences.append(f"Half of the way is gone with {', '.join(listed[:-1])} or {listed[-1]}.")
        return " ".join(sentences)


@bounded
def grafts(
    before: ModelBefore,
    after: ModelAfter,
    prompts: PromptsLike,
    ranking: Rankings,
    *,
    ks: Sequence[int] | None = None,
    random_seeds: int = 5,
    reward: RewardLike = "logit_diff",
    folder: Path | None = None,
    progress: bool = True,
) -> Grafts:
    """Compute mean rank and reward of prompts when the top components' weight changes are grafted, and when
    they are reverted.

    Args:
        before, after: as for `ecstruct.score`.
        prompts: the prompts whose answers are ranked, as for `ecstruct.mean_rank`.
        ranking: scores of these models, on any prompts, or several rankings by name; components are ranked
            by informative scores, those without a score last. "same kinds" are those of the first ranking.
        ks: the numbers of components; 1, 2, 4, 8... by default. No and all components are always added.
        random_seeds: how often components are drawn. A draw is an order: its first 4 are among its first 8.
        reward: R, as for `ecstruct.score`, from the answer's first token.
        folder: where finished orders are kept; those found there are not run again. Delete it once the
            result is safe.
        progress: show a progress bar.

    Raises:
        InputError: `ks` is empty or has a number that is out of range, the ranking is of another model, or
            `folder` holds parts of another run; also as `ecstruct.score` and `ecstruct.mean_rank`.
    """
    pair = Pair.of(before, after)
    view = pair.view
    n = view.n_layers * (1 + view.n_heads)
    counts = _counts(ks, n)
    if random_seeds < 1:
        raise InputError(f"random_seeds={random_seeds} draws nothing: use 1 or more.")
    given = named_rankings(ranking, taken=[*_BY][1:])
    orders: dict[tuple[str, int | None], Order] = {
        (by, None): order_of(its, view) for by, its in given.items()
    }
    first = next(iter(orders.values()))
    asked = as_prompts(prompts)
    for by, its in values_without_scores(pair, asked, reward).items():
        orders[by, None] = largest_first(its)
    for seed in range(random_seeds):
        drawn = np.random.default_rng(seed).permutation(n)
        orders["random", seed] = drawn
        orders["same kinds", seed] = _of_same_kinds(drawn, first, view.n_layers)

    ran = GraftRuns.of(pair, asked, reward)
    if folder is not None:
        ran.reward.check_is_known_by_name()
    everywhere = [range(len(prompt.ids)) for prompt in ran.prompts]
    identity = {
        **{f"the weights {state}": str(its["fingerprint"]) for state, its in pair.sources.items()},
        "dtype": str(view.dtype),
        "the prompts": checksum(asked),
        "the ranking": xxhash.xxh3_64_hexdigest(b"".join(o.tobytes() for o in orders.values())),
        "the numbers of components": str(counts),
        "the reward": ran.reward.name,
        **{f"{name}'s version": found for name, found in versions().items()},
    }

    def of_order(how: str, order: Order) -> xr.DataArray:
        chosen = {k: Graft(numbered(view, order[:k]), everywhere) for k in counts}
        found = ran.measured(chosen, complement=how == "revert")
        means = {k: its.sel(measure=["rank", "reward"]).mean("prompt") for k, its in found.items()}
        return xr.concat(means.values(), pd.Index(means, name="k"))

    cells = [(how, by, seed, order) for how in _HOW for (by, seed), order in orders.items()]
    rows = []
    kept = FinishedPieces(folder, identity)
    with stepping(progress, len(cells), "grafts", kept, "order") as steps:
        for how, by, seed, order in cells:
            steps.bar.phase(f"{how}s by {by}")
            found = steps.take(f"{how} {by} {seed}", partial(of_order, how, order))
            for k in counts:
                rank, reached = (float(found.sel(k=k, measure=m)) for m in ("rank", "reward"))
                rows.append({"how": how, "by": by, "k": k, "seed": seed, "rank": rank, "reward": reached})
    names = names_of(view)
    named = {of: [names[i] for i in order] for of, order in orders.items()}
    return Grafts(pd.DataFrame(rows).astype({"seed": "Int64"}), named)


def _of_same_kinds(drawn: Order, ranked: Order, n_layers: int) -> Order:
    """Return an order with an MLP wherever `ranked` has one, and MLPs and heads each in drawn order."""
    order = np.empty_like(drawn)
    order[ranked < n_layers], order[ranked >= n_layers] = drawn[drawn < n_layers], drawn[drawn >= n_layers]
    return order


def _counts(ks: Sequence[int] | None, n: int) -> list[int]:
    """Return the numbers of components in ascending order, with 0 and `n` (all) included."""
    if ks is None:
        ks = [2**i for i in range(n.bit_length())]
    if not len(ks):
        raise InputError("ks=[] asks for nothing: give numbers of components, as [1, 2, 4].")
    for k in ks:
        if not 0 <= k <= n:
            raise InputError(f"ks= has {k}, but this model has {n} components: use 0 to {n}.")
    return sorted({0, *ks, n})
