"""Profiles: a score of every MLP and head in logits, the mean over prompts of the sum over tokens."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from scipy.stats import pearsonr

from ecstruct.experiments.statistics import statistic
from ecstruct.scores.components import component_names
from ecstruct.scores.result import ExtractiveScores


def profile(scores: ExtractiveScores, *names: str) -> pd.DataFrame:
    """Return a row per component: its `kind` ("mlp" or "head"), the name `component`, its `layer`, and a
    column for each score of `names`."""
    values = {name: scores.components(name)["value"].astype(float) for name in names}
    components = scores.components(names[0])
    return pd.DataFrame(
        {
            "kind": components["kind"],
            "component": component_names(components),
            "layer": components["layer"].astype(int),
            **values,
        }
    )


def pearson(one: pd.Series, other: pd.Series) -> tuple[float, float]:
    """Return Pearson's r of two profiles and its two-sided p-value, NaN where one of them is constant."""
    if one.nunique() < 2 or other.nunique() < 2:
        return math.nan, math.nan
    result: Any = pearsonr(one, other)
    return float(result.statistic), float(result.pvalue)


def agreement(profiles: pd.DataFrame, one: Any, other: Any, n_largest: int) -> dict[str, Any]:
    """Compare two columns of `profiles`, which are scores by seed and component.

    Returns:
        Statistics over seeds: Pearson's `r` over components; the share of the `n_largest` components that
        both have in `common`; the `ratio` of the total positive score of `one` to that of `other`.
    """
    found: dict[str, list[float]] = {"r": [], "common": [], "ratio": []}
    for _, of_seed in profiles.groupby("seed", sort=True):
        pair: list[Any] = [of_seed[one], of_seed[other]]
        largest = [{*profile.nlargest(n_largest).index} for profile in pair]
        totals = [float(profile.clip(lower=0).sum()) for profile in pair]
        found["r"].append(pearson(*pair)[0])
        found["common"].append(len(largest[0] & largest[1]) / len(largest[0]))
        found["ratio"].append(totals[0] / totals[1] if totals[1] else math.nan)
    return {name: statistic(values) for name, values in found.items()}
