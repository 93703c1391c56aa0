"""Do summed scores predict what a set of components does together?

Random sets of components are grafted at all positions, and the gain in reward of each set, R(S) - R_before,
is compared, by Spearman's correlation, with the sum of its components' scores. This is the linear
datamodelling score (Park et al. 2023, arXiv 2303.14186), with components in the place of training examples.
It is 1 if the sums put all sets in the right order, and 0 if they predict nothing. As components interact,
even scores that are right for each of them need not reach 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from annotated_types import Ge, Gt, Lt, MinLen
from scipy.stats import rankdata
from tqdm.auto import tqdm

from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.grafting.grafted_runs import Graft
from ecstruct.grafting.measured import GraftRuns
from ecstruct.grafting.rankings import (
    Rankings,
    named_rankings,
    names_of,
    numbered,
    values_of,
    values_without_scores,
)
from ecstruct.io.values import Seed, bounded, check
from ecstruct.plots.points import scatter
from ecstruct.scores.pair import ModelAfter, ModelBefore, Pair
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.reward import RewardLike

Shares = Annotated[Sequence[Annotated[float, Gt(0), Lt(1)]], MinLen(1)]
Sets = Annotated[int, Ge(3), Lt(10**6)]

_TAKEN = ("share", "k", "gain", "components", "attribution", "weight change", "random")
_BETWEEN = ", "


@dataclass(frozen=True)
class RandomSets:
    """Random sets of components, and what they do.

    `frame` has a row per set: the `share` of the components that it has, their number `k`, its `gain` in
    reward (mean over prompts), the names of its `components`, and their summed values in a column for every
    ranking: those given; "attribution", g'_C . (y'_C - y*_C) in the finetuned model; and "weight change",
    |dW_C|.
    """

    frame: pd.DataFrame

    @property
    def rankings(self) -> list[str]:
        return [str(column) for column in self.frame.columns[4:]]

    @bounded
    def table(self, *, ci: float = 0.95, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Return a row per share and ranking: Spearman's `correlation` of summed values and gains, with
        the `low` and `high` end of its interval over draws of the sets with replacement. Of the ranking
        "random", components have random values: the mean and the interval are over draws of these."""
        rng = np.random.default_rng(seed)
        rows = []
        for share, sets in self.frame.groupby("share"):
            draws, gains = rng.integers(len(sets), size=(resamples, len(sets))), sets["gain"].to_numpy()
            found = {}
            for ranking in self.rankings:
                sums = sets[ranking].to_numpy()
                found[ranking] = float(_spearman(sums, gains)), _spearman(sums[draws], gains[draws])
            members = sets["components"].str.get_dummies(_BETWEEN).to_numpy()
            at_random = _spearman((members @ rng.random((members.shape[1], resamples))).T, gains)
            found["random"] = np.nanmean(at_random), at_random
            for ranking, (correlation, drawn) in found.items():
                low, high = np.nanquantile(drawn, [(1 - ci) / 2, (1 + ci) / 2])
                row = {"share": share, "sets": len(sets), "ranking": ranking}
                rows.append({**row, "correlation": correlation, "low": low, "high": high})
        return pd.DataFrame(rows)

    @property
    def figure(self) -> go.Figure:
        """Draw a point per set: its gain against its summed values, a panel per ranking."""
        panels, fits = {}, {}
        for ranking in self.rankings:
            named = self.frame.assign(name=[f"{k} components" for k in self.frame["k"]])
            panels[ranking] = named.rename(columns={ranking: "x", "gain": "y", "k": "layer"})
            fits[ranking] = f"n = {len(named)}"
        return scatter(
            panels, x="sum over the set", y="gain in reward", fit=fits, colour="number of components"
        )

    def conclusion(self) -> str:
        """Say how well the sums of each ranking predict what sets do."""
        table = self.table()
        shares = ", ".join(f"{share:.0%}" for share in dict.fromkeys(table["share"]))
        by_ranking = [
            f"{ranking} {', '.join(f'{value:.2f}' for value in rows['correlation'])}"
            for ranking, rows in table.groupby("ranking", sort=False)
        ]
        return (
            f"Of {table['sets'].iloc[0]} random sets each of {shares} of the components, summed values and "
            f"gains in reward are correlated (Spearman): {'; '.join(by_ranking)}."
        )


@bounded
def random_sets(
    before: ModelBefore,
    after: ModelAfter,
    prompts: PromptsLike,
    ranking: Rankings,
    *,
    n_sets: int = 100,
    shares: Sequence[float] = (0.1, 0.25, 0.5),
    seed: int = 0,
    reward: RewardLike = "logit_diff",
    progress: bool = True,
) -> RandomSets:
    """Graft random sets of components, and compare what they do with the sums of their scores.

    Args:
        before, after, prompts, ranking: as for `ecstruct.grafting.grafts`, but rankings are all scores.
        n_sets: how many sets there are of each share, at least 3.
        shares: the shares of the components, MLPs and heads alike, that the sets have.
        seed: the same seed draws the same sets.
        reward: R, as for `ecstruct.score`, from the answer's first token.
        progress: show a progress bar.

    Raises:
        InputError: fewer than 3 sets, a share that is not between 0 and 1, a ranking that is no scores or
            is of another model; also as `ecstruct.score`.
    """
    check(
        {"n_sets": n_sets, "shares": shares, "seed": seed},
        {"n_sets": Sets, "shares": Shares, "seed": Seed},
        "the call",
    )
    pair = Pair.of(before, after)
    view = pair.view
    values = {}
    for name, its in named_rankings(ranking, taken=_TAKEN).items():
        if not isinstance(its, ExtractiveScores):
            raise InputError(f"the ranking {name!r} has no values to sum: give scores.")
        values[name] = np.nan_to_num(values_of(its, view))
    prompts, names = as_prompts(prompts), names_of(view)
    values |= values_without_scores(pair, prompts, reward)
    rng = np.random.default_rng(seed)
    drawn = [
        (share, rng.permutation(len(names))[: max(1, round(share * len(names)))])
        for share in shares
        for _ in range(n_sets)
    ]

    ran = GraftRuns.of(pair, prompts, reward)
    everywhere = [range(len(prompt.ids)) for prompt in ran.prompts]
    grafts = {i: Graft(numbered(view, chosen), everywhere) for i, (_, chosen) in enumerate(drawn)}
    total = len(ran.prompts) * len(grafts)
    with tqdm(total=total, desc="random sets", unit="run", disable=not progress) as bar:
        found = ran.measured(grafts, tick=bar.update)
    start = float(ran.ends().sel(state="before", measure="reward").mean())
    return RandomSets(
        pd.DataFrame(
            {
                "share": share,
                "k": len(chosen),
                "gain": float(found[i].sel(measure="reward").mean()) - start,
                "components": _BETWEEN.join(names[i] for i in chosen),
                **{name: float(its[chosen].sum()) for name, its in values.items()},
            }
            for i, (share, chosen) in enumerate(drawn)
        )
    )


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the correlations of x and y, [..., set], over their last axis; NaN where one does not vary."""
    ranks = (rankdata(values, axis=-1) for values in (x, y))
    a, b = (each - each.mean(-1, keepdims=True) for each in ranks)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
