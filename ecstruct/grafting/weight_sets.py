"""Sets of weights: some components, or some of their projections, by name.

A component comprises all its weights. An MLP has the projections `in`, `gate` and `out` and its pre-norm. A
head has its rows of `q`, the rows of `k` and `v` of the key and value head that it reads, with their biases
and norms, its columns of `o`, and the pre-norm. Weights that components share (a key and value head, a norm
or a pre-norm) come with the first of them that is chosen. Embeddings, final norm, unembedding, attention's
output bias and post-norms belong to no component.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.models.hooked import HookedView
from ecstruct.models.sites import LATENT, QK_NORMS, SINKS, Site
from ecstruct.scores.components import component_names, selected

OF_HEADS: tuple[str, ...] = ("q", "k", "v", "o", "norm")
OF_MLPS: tuple[str, ...] = ("in", "gate", "out", "norm")
PROJECTIONS = tuple(dict.fromkeys((*OF_HEADS, *OF_MLPS)))
"""The projections of components; `norm` are pre-norms and the norms of queries and keys."""

Named = str | Iterable[str] | pd.DataFrame | None
"""A set by its names (see `named`), or a frame of components; `None` for all of them."""

Strongest = Callable[[str, int], pd.DataFrame]
"""A function from a score and a number to so many components of highest score."""

_RANGE = r"(?: (\d+)(?:-(\d+))?)?"
_KIND = re.compile(rf"(all|layers?|(?:mlps?|heads?|attn)(?:\.(\w+))?){_RANGE}", re.IGNORECASE)
_TOP = re.compile(r"(\w+) top (\d+)", re.IGNORECASE)
_HEAD = re.compile(r"head \d+\.\d+", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class WeightSet:
    """Which projections of which components are in a set."""

    heads: Bool[np.ndarray, "projection layer head"]
    mlps: Bool[np.ndarray, "projection layer"]

    @classmethod
    def of(cls, mlps: Bool[np.ndarray, " layer"], heads: Bool[np.ndarray, "layer head"]) -> WeightSet:
        """Return the set of all weights of these components."""
        return cls(np.stack([heads] * len(OF_HEADS)), np.stack([mlps] * len(OF_MLPS)))

    def __or__(self, other: WeightSet) -> WeightSet:
        return WeightSet(self.heads | other.heads, self.mlps | other.mlps)

    def only(self, projections: Iterable[str] | None) -> WeightSet:
        """Return the part of the set in these projections; `None` for all."""
        if projections is None:
            return self
        of_heads = np.isin(OF_HEADS, [*projections])
        return WeightSet(
            self.heads & of_heads[:, None, None], self.mlps & np.isin(OF_MLPS, [*projections])[:, None]
        )

    @property
    def layers(self) -> list[int]:
        """The layers in which the set has weights."""
        return np.flatnonzero(self.mlps.any(0) | self.heads.any((0, 2))).tolist()

    @property
    def components(self) -> tuple[int, int]:
        """The numbers of MLPs and of heads of which the set has weights."""
        return int(self.mlps.any(0).sum()), int(self.heads.any(0).sum())

    def drawn(self, rng: np.random.Generator) -> WeightSet:
        """Return a set of as many random MLPs and heads, in the same projections."""
        layers, heads = rng.permutation(self.mlps.shape[1]), rng.permutation(self.heads[0].size)
        of_heads = self.heads.reshape(len(OF_HEADS), -1)[:, heads].reshape(self.heads.shape)
        return WeightSet(of_heads, self.mlps[:, layers])

    def features(self, view: HookedView, layer: int, site: Site) -> Bool[Tensor, " feature"] | None:
        """Return which features of a site's weights are in the set: rows of its matrix or, of `attn.o`,
        columns; a single one stands for all. `None` if the site belongs to no component."""
        name = site.name
        heads = dict(zip(OF_HEADS, torch.from_numpy(self.heads[:, layer]), strict=True))
        mlp = dict(zip(OF_MLPS, torch.from_numpy(self.mlps[:, layer]), strict=True))
        if name.startswith("mlp."):
            return mlp.get(name.removeprefix("mlp."), mlp["in"]).reshape(1)
        if name == "ln2":
            return mlp["norm"].reshape(1)
        if name == "ln1":
            chosen = heads["norm"].any() | (mlp["norm"] if view.shared_norm else False)
            return chosen.reshape(1)
        if name == SINKS:
            return heads["k"]
        if name in QK_NORMS:
            n = next(site.module.parameters()).numel()
            return heads["norm"].any().reshape(1) if n == view.d_head else _rows(heads["norm"], n, view)
        if name in LATENT:  # of which heads have no rows of their own
            return heads[site.projection or "norm"].any().reshape(1)
        if name not in ("attn.q", "attn.k", "attn.v", "attn.o"):
            return None
        matrix = site.matrix(view.named_weights)
        assert matrix is not None
        n = matrix.shape[1 if name == "attn.o" else 0]
        return _rows(heads[name.removeprefix("attn.")], n, view)


def _rows(heads: Bool[Tensor, " head"], n: int, view: HookedView) -> Bool[Tensor, " {n}"]:
    """Return which of `n` features these heads have; a key and value head may serve several of them."""
    return heads.view(n // view.d_head, -1).any(1).repeat_interleave(view.d_head)


def named(names: Named, view: HookedView, strongest: Strongest | None = None) -> WeightSet:
    """Return the union of what `names` name, in any case of letters:

    * "all", "mlps", "heads": all components, or those of one kind;
    * "mlp 4", "head 5.2", "head 5": one component, or all heads of a layer;
    * "layers 0-9", "mlps 0-9", "heads 20-29", "layer 3": those of some layers, the last one included;
    * "mlp.out", "heads.o", "mlp.in 0-9": one projection, see `PROJECTIONS`; heads are also called "attn";
    * "informative top 8": the components of highest score, if `strongest` gives them.

    Several names are separated by " + ", or given as a list.

    Raises:
        InputError: a name that is none of these, or a layer, head or projection that the model lacks.
    """
    if names is None:
        names = "all"
    if isinstance(names, pd.DataFrame):
        names = component_names(names)
    if isinstance(names, str):
        names = names.split("+")
    found = [_named(name.strip(), view, strongest) for name in names]
    if not found:
        raise InputError("a set of weights is empty: name a component, as 'mlp 4', or leave the set out.")
    return reduce(or_, found)


def _named(name: str, view: HookedView, strongest: Strongest | None) -> WeightSet:
    if _HEAD.fullmatch(name):
        return WeightSet.of(*selected([name], view.n_layers, view.n_heads))
    if (ranked := _TOP.fullmatch(name)) and strongest is not None:
        top = strongest(ranked[1].lower(), int(ranked[2]))
        return WeightSet.of(*selected(top, view.n_layers, view.n_heads))
    if not (of_kind := _KIND.fullmatch(name)):
        raise InputError(
            f"{name!r} names no weights: use 'all', 'mlps', 'heads', 'mlp 4', 'head 5.2', 'layers 0-9', "
            "'heads.o', 'mlp.out 0-9' or 'informative top 8'."
        )
    kind, projection, first, last = of_kind.groups()
    start = 0 if first is None else int(first)
    end = view.n_layers - 1 if first is None else int(last or first)
    if not start <= end < view.n_layers:
        raise InputError(f"{name!r} names no layers of this model, which has 0 to {view.n_layers - 1}.")
    layers = (np.arange(view.n_layers) >= start) & (np.arange(view.n_layers) <= end)
    of_all = not kind.lower().startswith(("mlp", "head", "attn"))
    mlps = layers & (of_all or kind.lower().startswith("mlp"))
    heads = np.repeat(layers[:, None], view.n_heads, 1) & (of_all or not mlps.any())
    chosen = WeightSet.of(mlps, heads)
    if projection is None:
        return chosen
    known = OF_MLPS if mlps.any() else OF_HEADS
    if projection not in known:
        raise InputError(
            f"{name!r} names no projection: those of {'MLPs' if mlps.any() else 'heads'} are "
            f"{', '.join(known)}."
        )
    return chosen.only([projection])


def check_projections(projections: Iterable[str] | None) -> None:
    """Raise `InputError` for projections that do not exist, or for none."""
    if projections is None:
        return
    if isinstance(projections, str):
        raise InputError(f"projections={projections!r} is one name: pass a list, as in [{projections!r}].")
    for name in (given := [*projections]):
        if name not in PROJECTIONS:
            raise InputError(f"there is no projection {name!r}: choose among {', '.join(PROJECTIONS)}.")
    if not given:
        raise InputError("projections=[] names none: leave it out for all of them.")
