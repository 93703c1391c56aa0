"""Profiles: a score of every MLP and head in logits, the mean over prompts of the sum over tokens."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from scipy.stats import pearsonr

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
