"""Grafts: is the weight change of the top components sufficient for the answer, and is it necessary?

Components are ranked by their informative score, and the weight change dW_C of the top k of them is

* **grafted** onto the original model, W[W_C <- W'_C for the top k]: is it sufficient?
* **reverted** in the finetuned one, W'[W_C <- W_C for the top k]: is it necessary?

The measure is the mean rank of the answers (0 is best). If the scores find what matters, a few components
have almost the effect of all of them, both ways. They are compared with

* the k components of largest **weight change**, by the Frobenius norm |dW_C|. (Not relative to |W_C|: it is
  dW_C itself that the informative score dR/dW_C . dW_C is linear in);
* k **random** components;
* k random components of the **same kinds**, as many MLPs and as many heads as the top k have: an MLP has
  more weights than a head, so that a ranking may look good for no more than preferring MLPs.

An MLP comprises all its weights and its pre-norm. A head comprises its rows of W_Q, the rows of W_K and W_V
of the key and value head that it reads, the biases and norms of these, and its columns of W_O. Weights that
components share (a key and value head, a norm or a pre-norm) come with the first of them that is chosen.
Embeddings, final norm, unembedding, attention's output bias and post-norms belong to no component: a graft
leaves them as in W, a reversion as in W'.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
import xxhash
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ecstruct.cost import Bar
from ecstruct.errors import InputError
from ecstruct.evaluate import mean_rank
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.io.store import Kept, Steps
from ecstruct.io.values import bounded
from ecstruct.models.delta import WeightDelta
from ecstruct.models.hooked import HookedView
from ecstruct.models.provenance import versions
from ecstruct.models.sites import QK_NORMS, Site, Weights
from ecstruct.plots.curves import curve_panels
from ecstruct.scores.pair import ModelAfter, ModelBefore, Pair
from ecstruct.scores.result import ExtractiveScores

_HOW = {"graft": "grafted onto the original", "revert": "reverted in the finetuned"}
_BY = {
    "informative": "of highest informative score",
    "weight change": "of largest weight change",
    "random": "drawn at random",
    "same kinds": "drawn among the same kinds",
}

Order = Int64[np.ndarray, " component"]
"""Components by their number in `ExtractiveScores.components`: MLPs first, layer by layer."""


@dataclass(frozen=True)
class Grafts:
    """`frame` has a row per `how` ("graft" or "revert"), per ranking `by` which components are chosen
    ("informative", "weight change", "random", "same kinds"), per number `k` of them and, where they are
    drawn, per `seed`: `rank` is the mean rank of the answers. The least k is 0, the largest all."""

    frame: pd.DataFrame

    def ranks(self, how: str, by: str) -> pd.DataFrame:
        """Return the mean ranks by k (rows) and seed (columns; a single one if nothing is drawn)."""
        rows = self.frame[(self.frame["how"] == how) & (self.frame["by"] == by)]
        return rows.fillna({"seed": 0}).pivot(index="k", columns="seed", values="rank")

    @property
    def figure(self) -> go.Figure:
        """Mean rank against k, grafted and reverted; of drawn components the mean and the range."""
        panels = {
            f"k components {where} model": {by: self.ranks(how, by).to_numpy() for by in _BY}
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
            means = {by: self.ranks(how, by).mean(axis=1) for by in _BY}
            ks = list(means["informative"].index)
            start, end = means["informative"].iloc[[0, -1]]
            sentences.append(
                f"{how.capitalize()}ing all {ks[-1]} components takes the mean rank from {start:.2f} to "
                f"{end:.2f}."
            )
            if start != end:
                gone = {by: (start - of_each.to_numpy()) / (start - end) for by, of_each in means.items()}
                listed = [f"{ks[int(np.argmax(gone[by] >= 0.5))]} {which}" for by, which in _BY.items()]
                sentences.append(f"Half of the way is gone with {', '.join(listed[:-1])} or {listed[-1]}.")
        return " ".join(sentences)


@bounded
def grafts(
    before: ModelBefore,
    after: ModelAfter,
    prompts: PromptsLike,
    ranking: ExtractiveScores,
    *,
    ks: Sequence[int] | None = None,
    random_seeds: int = 5,
    folder: Path | None = None,
    progress: bool = True,
) -> Grafts:
    """Compute the mean rank of prompts when the top components' weight changes are grafted, and when they
    are reverted.

    Args:
        before, after: as for `ecstruct.score`.
        prompts: the prompts whose answers are ranked, as for `ecstruct.mean_rank`.
        ranking: scores of these models, on any prompts; components are ranked by informative scores, those
            without a score last.
        ks: the numbers of components; 1, 2, 4, 8... by default. No and all components are always added.
        random_seeds: how often components are drawn. A draw is an order: its first 4 are among its first 8.
        folder: where finished ranks are kept; those found there are not computed again. Delete it once the
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
    _check_fits(ranking, view)
    delta = WeightDelta.from_weights(pair.before, pair.after)
    informative = _largest_first(ranking.components("informative")["value"].to_numpy())
    orders: list[tuple[str, int | None, Order]] = [
        ("informative", None, informative),
        ("weight change", None, _largest_first(_norms(view, delta))),
    ]
    for seed in range(random_seeds):
        drawn = np.random.default_rng(seed).permutation(n)
        orders.append(("random", seed, drawn))
        orders.append(("same kinds", seed, _of_same_kinds(drawn, informative, view.n_layers)))

    prompts = as_prompts(prompts)
    identity = {
        **{f"the weights {state}": str(its["fingerprint"]) for state, its in pair.sources.items()},
        "dtype": str(view.dtype),
        "the prompts": xxhash.xxh3_64_hexdigest(repr(prompts).encode()),
        "the ranking": xxhash.xxh3_64_hexdigest(informative.tobytes()),
        **{f"{name}'s version": found for name, found in versions().items()},
    }

    @cache
    def rank(how: str, chosen: frozenset[int]) -> xr.DataArray:
        part = of_components(view, delta, *_selected(view, chosen))
        model = (part if how == "graft" else delta - part).apply_to(view.model)
        return xr.DataArray(mean_rank(model, prompts))

    cells = [(how, by, seed, order, k) for how in _HOW for by, seed, order in orders for k in counts]
    rows = []
    with Bar(len(cells), "grafts", unit="cell", disable=not progress) as bar:
        steps = Steps(bar, Kept(folder, identity))
        for how, by, seed, order, k in cells:
            bar.phase(f"{how}s by {by}")
            measure = partial(rank, how, frozenset(order[:k].tolist()))
            measured = steps.take(f"{how} {by} {seed} {k}", measure)
            rows.append({"how": how, "by": by, "k": k, "seed": seed, "rank": float(measured)})
    return Grafts(pd.DataFrame(rows).astype({"seed": "Int64"}))


def of_components(
    view: HookedView,
    delta: WeightDelta,
    mlps: Bool[np.ndarray, " layer"],
    heads: Bool[np.ndarray, "layer head"],
) -> WeightDelta:
    """Return the part of a change that is in some MLPs and heads, as defined in `ecstruct.checks.grafting`;
    it is zero everywhere else."""
    tensors: dict[str, Tensor] = {}
    for layer, sites in enumerate(view.block_sites):
        for site in sites.values():
            change = {name: delta.tensors[name] for name in site.weights.values() if name in delta.tensors}
            norm = "ln1" if view.shared_norm else "ln2"
            of_mlp = site.name == norm or site.name.startswith("mlp.")
            if of_mlp and mlps[layer]:
                tensors |= change
            elif heads[layer].any() and (not of_mlp or site.name == "ln1"):
                tensors |= _of_heads(site, change, torch.from_numpy(heads[layer]), view.d_head)
    return WeightDelta({name: t for name, t in tensors.items() if t.any()})


def _of_heads(site: Site, change: Weights, heads: Bool[Tensor, " head"], d_head: int) -> dict[str, Tensor]:
    """Return the part of a site's change that is in some heads of its layer, at least one."""
    if site.name == "ln1" or (site.name in QK_NORMS and all(t.numel() == d_head for t in change.values())):
        return dict(change)  # all heads have it
    kept = {name: torch.zeros_like(t) for name, t in change.items()}
    for all_of, chosen in zip(_by_head(site, change), _by_head(site, kept), strict=True):
        rows = heads.view(len(all_of) // d_head, -1).any(1).repeat_interleave(d_head)
        chosen[rows] = all_of[rows]
    return kept


def _by_head(site: Site, weights: Weights) -> list[Tensor]:
    """Return views [head * d_head, ...] of those of a site's weights that belong to heads."""
    matrix, bias = site.matrix(weights), site.bias(weights)
    if site.name == "attn.o":
        return [] if matrix is None else [matrix.T]
    found = [t for t in (matrix, bias) if t is not None]
    if site.name in QK_NORMS:
        return [t.view(-1) for t in found]
    return found if site.name in ("attn.q", "attn.k", "attn.v") else []


def _selected(
    view: HookedView, chosen: Iterable[int]
) -> tuple[Bool[np.ndarray, " layer"], Bool[np.ndarray, "layer head"]]:
    """Return masks of MLPs and heads for components given by number (see `Order`)."""
    mask = np.zeros(view.n_layers * (1 + view.n_heads), bool)
    mask[list(chosen)] = True
    return mask[: view.n_layers], mask[view.n_layers :].reshape(view.n_layers, view.n_heads)


def _largest_first(values: Float64[np.ndarray, " component"]) -> Order:
    return np.argsort(-values, kind="stable")  # NaN last


def _of_same_kinds(drawn: Order, ranked: Order, n_layers: int) -> Order:
    """Return an order with an MLP wherever `ranked` has one, and MLPs and heads each in drawn order."""
    order = np.empty_like(drawn)
    order[ranked < n_layers], order[ranked >= n_layers] = drawn[drawn < n_layers], drawn[drawn >= n_layers]
    return order


def _norms(view: HookedView, delta: WeightDelta) -> Float64[np.ndarray, " component"]:
    """Return |dW_C|, the Frobenius norm, of every component."""
    of_each = (
        of_components(view, delta, *_selected(view, [i])).tensors.values()
        for i in range(view.n_layers * (1 + view.n_heads))
    )
    return np.array([sum(float(t.double().square().sum()) for t in tensors) ** 0.5 for tensors in of_each])


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


def _check_fits(ranking: ExtractiveScores, view: HookedView) -> None:
    sizes = ranking.heads.sizes
    if (sizes["layer"], sizes["head"]) != (view.n_layers, view.n_heads):
        raise InputError(
            f"the ranking is of {sizes['layer']} layers of {sizes['head']} heads, but this model has "
            f"{view.n_layers} of {view.n_heads}: rank by scores of the same model."
        )
