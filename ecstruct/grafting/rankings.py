"""Values of components that rank them: scores, attributions, and the size of their weight change.

Components are numbered as in `ExtractiveScores.components`: MLPs first, layer by layer, then heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.grafting.weight_sets import WeightSet
from ecstruct.models.delta import WeightDelta
from ecstruct.models.hooked import HookedView
from ecstruct.models.sites import SINKS, Site, Weights
from ecstruct.options import ScoreOptions
from ecstruct.scores.components import component_frame, component_names, located
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.pair import Pair
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.reward import RewardLike

Order = Int64[np.ndarray, " component"]
"""Components by number, the strongest first."""

Ranking = ExtractiveScores | Sequence[str]
Rankings = ExtractiveScores | Mapping[str, Ranking]
"""Scores, of which the informative ones rank, or rankings by name: scores, or the names of components, the
strongest first."""


def named_rankings(rankings: Rankings, taken: Iterable[str]) -> Mapping[str, Ranking]:
    """Return rankings by name.

    Raises:
        InputError: there are none, or one has a name that is `taken`.
    """
    named = {"informative": rankings} if isinstance(rankings, ExtractiveScores) else dict(rankings)
    if not named:
        raise InputError("ranking={} ranks nothing: give scores of these models.")
    for name in set(named) & set(taken):
        raise InputError(
            f"a ranking is called {name!r}, as one that is always there: give it another name."
        )
    return named


def values_of(scores: ExtractiveScores, view: HookedView) -> Float64[np.ndarray, " component"]:
    """Return the informative score of every component, NaN where it was not computed.

    Raises:
        InputError: the scores are of another model.
    """
    scores.check_of(view.n_layers, view.n_heads)
    return scores.components("informative")["value"].to_numpy(dtype=float)


def order_of(ranking: Ranking, view: HookedView) -> Order:
    """Return the order of components by a ranking; those that it does not name come last.

    Raises:
        InputError: the ranking is of another model.
    """
    if isinstance(ranking, ExtractiveScores):
        return largest_first(values_of(ranking, view))
    every = names_of(view)
    listed = [every.index(name) for name, _ in located(ranking, view.n_layers, view.n_heads)]
    return np.array([*dict.fromkeys(listed), *sorted({*range(len(every))} - {*listed})])


def largest_first(values: Float64[np.ndarray, " component"]) -> Order:
    """Return the order of components by their values, those without one last."""
    return np.argsort(-values, kind="stable")


def numbered(view: HookedView, chosen: Iterable[int]) -> WeightSet:
    """Return the set of the components with these numbers."""
    mask = np.zeros(view.n_layers * (1 + view.n_heads), bool)
    mask[list(chosen)] = True
    heads = mask[view.n_layers :].reshape(view.n_layers, view.n_heads)
    return WeightSet.of(mask[: view.n_layers], heads)


def values_without_scores(
    pair: Pair, prompts: PromptsLike, reward: RewardLike
) -> dict[str, Float64[np.ndarray, " component"]]:
    """Return the values of every component by which rankings are always compared:

    * "attribution": g'_C . (y'_C - y*_C) in the model after finetuning, the mean over prompts of the sum
      over tokens, with the mean of y_C over the prompts of a template as y*;
    * "weight change": |dW_C|, the Frobenius norm.
    """
    options = ScoreOptions(reward=reward, baseline="mean", upstream="surrogate", propagation="gradient")
    scores = ScoreEngine(pair, None, options, progress=False).score(prompts)
    found: Any = scores.attribution.sel(state="after").sum("token").mean("prompt")
    attributions = np.concatenate([found[part].values.ravel() for part in ("mlp", "heads")]).astype(float)
    changes = change_norms(pair.view, WeightDelta.from_weights(pair.before, pair.after))
    return {"attribution": attributions, "weight change": changes}


def change_norms(view: HookedView, delta: WeightDelta) -> Float64[np.ndarray, " component"]:
    """Return |dW_C|, the Frobenius norm, of every component."""
    squares = np.zeros(view.n_layers * (1 + view.n_heads))
    for layer, sites in enumerate(view.block_sites):
        first = view.n_layers + layer * view.n_heads
        sets = {i: numbered(view, [i]) for i in (layer, *range(first, first + view.n_heads))}
        for site in sites.values():
            change = {name: delta.tensors[name] for name in site.weights.values() if name in delta.tensors}
            for i, chosen in sets.items() if change else ():
                if (its := chosen.features(view, layer, site)) is not None:
                    squares[i] += float(its.double() @ _squares(site, change, len(its)))
    return np.sqrt(squares)


def _squares(site: Site, change: Weights, n: int) -> Float64[Tensor, " {n}"]:
    """Return the sum of the squares of a site's change by feature, or of all of it for a single one. A bias
    of `attn.o` has no features."""
    parts = [*change.values()]
    if n > 1 and site.name != SINKS:
        parts = [site.matrix(change), site.bias(change)]
        if site.name == "attn.o":
            parts = [None if parts[0] is None else parts[0].T]
    sums = [t.cpu().double().reshape(n, -1).square().sum(1) for t in parts if t is not None]
    return torch.stack([torch.zeros(n, dtype=torch.float64), *sums]).sum(0)


def names_of(view: HookedView) -> list[str]:
    """Return the names of all components, by number."""
    return component_names(component_frame(np.arange(view.n_layers), np.arange(view.n_heads)))
