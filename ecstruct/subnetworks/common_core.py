"""The core: the components that every subnetwork keeps, compared with what chance would leave in all.

Of n components of a kind, let subnetwork s keep k_s. If these were drawn at random and independently, a
component would be in all subnetworks with the probability prod_s k_s / n, and

    E[size] = n prod_s k_s / n.

The distribution of the size is built up by subnetwork: of m components that are in all so far, the
next one keeps a hypergeometric number. This is exact, and p is the probability of a core at least as large.
The random subnetworks have as many heads and MLPs each as the real ones, so a core that exists only because
MLPs are kept more often than heads is not significant.

Source: Bhaskar, Friedman & Chen, "The Heuristic Core: Understanding Subnetwork Generalization in Pretrained
Language Models" (ACL 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from scipy.stats import hypergeom

from ecstruct.errors import InputError
from ecstruct.io.saved import SavedDataset
from ecstruct.plots.subnetworks import frequencies
from ecstruct.scores.components import component_frame, component_names
from ecstruct.subnetworks.masks import Masks

ALL = "all"
"""The name of the group that contains the subnetworks of all sparsities."""

_NAMES = {"heads": "heads", "mlp": "MLPs"}

MasksLike = Masks | Mapping[float, Masks]
"""Subnetworks of one sparsity, or by sparsity."""


@dataclass(frozen=True, eq=False)
class Core(SavedDataset):
    """The core of subnetworks of one model; what `ecstruct.subnetworks.core` returns.

    It wraps one `xarray.Dataset`, available as `.dataset`, with the coordinates `group` (the sparsities as
    text, then "all"), `kind` (those of "heads" and "mlp" that were pruned), `layer` and `head`:

    * `heads` (group, layer, head) and `mlp` (group, layer): whether all subnetworks keep the component;
    * `heads_frequency` and `mlp_frequency`: the share of subnetworks that keep it;
    * `size`, `expected` and `p` (group, kind) of the core; `kept` (group, kind), the mean number of
      components that a subnetwork keeps; `subnetworks` and `distinct` (group), how many there are.
    """

    format = "ecstruct core 1"
    contents = "cores"

    @property
    def groups(self) -> list[str]:
        return [str(group) for group in self.dataset["group"].values]

    @property
    def kinds(self) -> list[str]:
        """The kinds of components that were pruned; components of other kinds are in no core."""
        return [str(kind) for kind in self.dataset["kind"].values]

    @property
    def heads(self) -> xr.DataArray:
        """Whether every subnetwork keeps each head (layer, head)."""
        return self.dataset["heads"].isel(group=-1, drop=True)

    @property
    def mlp(self) -> xr.DataArray:
        """Whether every subnetwork keeps each MLP (layer)."""
        return self.dataset["mlp"].isel(group=-1, drop=True)

    def frequency(self, group: str | float = ALL) -> xr.Dataset:
        """Return the share of a group's subnetworks that keep each of the `heads` (layer, head) and of the
        `mlp` (layer); by default of all subnetworks.

        Raises:
            InputError: there is no such group.
        """
        of_group = self._group(group)
        return xr.Dataset({"heads": of_group["heads_frequency"], "mlp": of_group["mlp_frequency"]})

    def components(self, group: str | float = ALL) -> list[str]:
        """Return the names of the core's components, such as "MLP 4"; by default of all subnetworks."""
        of_group = self._group(group)
        frame = component_frame(of_group["layer"].values, of_group["head"].values)
        kept = np.concatenate([of_group[kind].values.ravel() for kind in ("mlp", "heads")])
        return component_names(frame.loc[kept])

    def table(self) -> pd.DataFrame:
        """Return a row per group and kind: the number of `subnetworks` and of `distinct` ones, the number
        of `components`, how many of these a subnetwork keeps on average (`kept`) and all keep (`core`), how
        many chance would leave in all (`expected`), and the probability of at least as many (`p`)."""
        dataset, renamed = self.dataset, {"size": "core"}
        columns = dataset[["subnetworks", "distinct"]]
        columns["components"] = "kind", [dataset[kind][0].size for kind in self.kinds]
        columns = columns.merge(dataset[["kept", "size", "expected", "p"]].rename(renamed))
        return columns.to_dataframe(["group", "kind"]).reset_index()

    def conclusion(self) -> str:
        """Say what was found, in a sentence per kind of components."""
        table, last = self.table(), self.groups[-1]
        return " ".join(map(_sentence, table.loc[table["group"] == last].to_dict(orient="records")))

    @property
    def figure(self) -> go.Figure:
        """How often each head and MLP is kept, with a panel per group; dots mark the core."""
        return frequencies(self)

    def _group(self, group: str | float) -> xr.Dataset:
        """Return a group by name. `ALL` is the last one, and the only one if there is one sparsity."""
        name = self.groups[-1] if group == ALL else str(group)
        if name not in self.groups:
            raise InputError(f"there is no core of {name!r}: there are {self.groups}.")
        return self.dataset.sel(group=name, drop=True)


def core(masks: MasksLike) -> Core:
    """Find the components that every subnetwork keeps, and how many of them chance explains.

    Args:
        masks: Subnetworks of one sparsity, or by sparsity. With several sparsities there is a core for
            each, and one for all together.

    Raises:
        InputError: no subnetworks, fewer than two, some that did not converge, or subnetworks of different
            models.
    """
    by_sparsity = as_groups(masks)
    together = merged(list(by_sparsity.values()))
    groups = by_sparsity if len(by_sparsity) == 1 else by_sparsity | {ALL: together}
    return Core(xr.concat([_core_of_group(name, of) for name, of in groups.items()], "group"))


def as_groups(masks: MasksLike) -> dict[str, Masks]:
    """Return subnetworks by their sparsity as text; for `Masks` alone it is their mean sparsity.

    Raises:
        InputError: no subnetworks, or some that did not converge.
    """
    if isinstance(masks, Masks):
        masks.check_converged()
        return {f"{float(masks.sparsity.mean()):.2g}": masks}
    if not masks:
        raise InputError("there are no masks: give those of at least one sparsity.")
    for of_sparsity in masks.values():
        of_sparsity.check_converged()
    return {str(sparsity): of_sparsity for sparsity, of_sparsity in masks.items()}


def merged(groups: Sequence[Masks]) -> Masks:
    """Join all subnetworks; if there are several groups, seeds are renumbered from 0.

    Raises:
        InputError: they are of different models, were pruned of different kinds of components, or put
            different values in the place of what is ablated.
    """
    first = groups[0]
    for other in groups[1:]:
        for name in ("layer", "head"):
            ours, theirs = first.heads.sizes[name], other.heads.sizes[name]
            if ours != theirs:
                raise InputError(
                    f"some subnetworks have {ours} {name}s and some {theirs}: give those of one model."
                )
        if first.kinds != other.kinds:
            raise InputError(
                f"some subnetworks were pruned of {first.kinds} and some of {other.kinds}: give those that "
                "were pruned of the same kinds."
            )
        if not _same_reference(first, other):
            raise InputError(
                "some subnetworks put other values in the place of what is ablated than others: prune with "
                "one reference set."
            )
    if len(groups) == 1:
        return first
    heads, mlp = (np.concatenate([of.dataset[kind].values for of in groups]) for kind in ("heads", "mlp"))
    return first.like(heads, mlp)


def chance_overlap(total: int, sizes: Sequence[int]) -> np.ndarray:
    """Return the probabilities that 0, 1, ..., `total` components are in all of several independent random
    subsets of these `sizes`, each drawn from the same `total` components.

    >>> chance_overlap(4, [2, 2]).round(4).tolist()  # 1, 4 and 1 of the 6 second ones
    [0.1667, 0.6667, 0.1667, 0.0, 0.0]
    """
    probabilities, left = np.zeros(total + 1), np.arange(total + 1)
    probabilities[total] = 1.0
    # Of m components that are in all subsets so far, the next subset keeps a hypergeometric number.
    steps = {size: hypergeom.pmf(left[:, None], total, left, size) for size in set(sizes)}
    for size in sizes:
        probabilities = steps[size] @ probabilities
    return probabilities


def _same_reference(one: Masks, other: Masks) -> bool:
    ours, theirs = one.reference, other.reference
    if ours is None or theirs is None:
        return ours is theirs
    return torch.equal(ours.heads, theirs.heads) and torch.equal(ours.mlp, theirs.mlp)


def _core_of_group(name: str, masks: Masks) -> xr.Dataset:
    """Return the variables of `Core.dataset` for one group of at least two subnetworks."""
    if len(masks) < 2:
        raise InputError(f"{name}: what one subnetwork keeps is no core; prune with 2 seeds or more.")
    kinds = masks.kinds
    every = np.concatenate([masks.dataset[kind].values.reshape(len(masks), -1) for kind in kinds], axis=1)
    variables: dict[str, Any] = {"subnetworks": len(masks), "distinct": len(np.unique(every, axis=0))}
    for kind in ("heads", "mlp"):
        kept = masks.dataset[kind]
        variables[kind] = kept.all("seed") & (kind in kinds)
        variables[f"{kind}_frequency"] = kept.mean("seed")
    measured: dict[str, list[float]] = {"size": [], "expected": [], "kept": [], "p": []}
    for kind in kinds:
        kept = masks.dataset[kind].values.reshape(len(masks), -1)
        total, sizes, size = kept.shape[1], kept.sum(1), int(variables[kind].sum())
        measured["size"].append(size)
        measured["kept"].append(float(sizes.mean()))
        measured["expected"].append(total * float(np.prod(sizes / total)))
        measured["p"].append(min(1.0, float(chance_overlap(total, sizes.tolist())[size:].sum())))
    variables |= {what: ("kind", np.array(values)) for what, values in measured.items()}
    variables["size"] = ("kind", np.array(measured["size"], dtype=np.int64))
    return xr.Dataset(variables, {"kind": kinds}).expand_dims(group=[name])


def _sentence(row: Mapping[str, Any]) -> str:
    expected = f"{row['expected']:{'.2g' if row['expected'] < 10 else '.0f'}}"
    size, are, name = row["core"], "is" if row["core"] == 1 else "are", _NAMES[row["kind"]]
    return (
        f"{size} of {row['components']} {name} {are} in all {row['subnetworks']} subnetworks; of random "
        f"ones of the same sizes {expected} would be, and {size} or more with probability "
        f"{row['p']:.2g}."
    )
