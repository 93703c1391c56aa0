"""Masks: which heads and MLPs of a model a subnetwork keeps.

True means kept. A component that is not kept is ablated: what it writes is replaced by its mean over a
reference set, or by zero. These values are stored with the masks, so a subnetwork can run on any prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from pydantic import Field
from typing_extensions import TypedDict

from ecstruct.errors import InputError
from ecstruct.io.saved import SavedDataset
from ecstruct.io.values import Number, check
from ecstruct.subnetworks.reference import Reference

TOLERANCE = 0.1
"""How far the sparsity that the gates expect may be from the one asked for, as a share of components."""

_DIMS = {"heads": ("seed", "layer", "head"), "mlp": ("seed", "layer")}
_REFERENCE = {"heads_reference": ("layer", "head", "d_head"), "mlp_reference": ("layer", "d_model")}


class _OptionsAttr(TypedDict, total=False):
    kinds: Annotated[list[Literal["heads", "mlp"]], Field(min_length=1)]
    sparsity: Annotated[Number, Field(gt=0, lt=1)]


class _ModelAttr(TypedDict, total=False):
    fingerprint: str


_ATTRS = {"options": _OptionsAttr, "model": _ModelAttr}
"""The types of the attributes that `prune` sets and that are read here."""


@dataclass(frozen=True, eq=False)
class Masks(SavedDataset):
    """Subnetworks of one model, one for each seed; what `ecstruct.subnetworks.prune` returns.

    It wraps one `xarray.Dataset`, available as `.dataset`, with the boolean variables `heads` (seed, layer,
    head) and `mlp` (seed, layer). With a `reference`, it also has the values that ablated components write:
    `heads_reference` (layer, head, d_head), the heads' z, and `mlp_reference` (layer, d_model). Masks from
    `prune` have `expected_sparsity` (seed), the share of gates that the optimisation expects to be zero.
    `len(masks)` is the number of seeds.

    Raises:
        InputError: variables, coordinates or attributes of other names, dimensions or types; values that
            are not finite; no seeds, or a seed that occurs twice.
    """

    format = "ecstruct masks 1"
    contents = "masks"

    def __post_init__(self) -> None:
        for name, dims in _DIMS.items():
            self._check(name, dims, "b", "bool")
        if any(name in self.dataset.data_vars for name in _REFERENCE):
            for name, dims in _REFERENCE.items():
                self._check(name, dims, "f", "floating point")
                if not np.isfinite(self.dataset[name].values).all():
                    raise InputError(f"this is no dataset of masks: {name!r} has NaN or infinite values.")
        for name in _DIMS["heads"]:
            self._check(name, (name,), "iu", "whole numbers")
            if name != "seed" and (self.dataset[name] != np.arange(self.dataset.sizes[name])).any():
                raise InputError(f"this is no dataset of masks: {name!r} does not count from 0.")
        check(self.dataset.attrs, _ATTRS, "this dataset of masks")
        seeds = self.seeds
        if not seeds:
            raise InputError("there are no masks: give at least one seed.")
        if len(set(seeds)) < len(seeds):
            twice = next(seed for seed in seeds if seeds.count(seed) > 1)
            raise InputError(f"two masks have the seed {twice}: each needs one of its own.")

    def _check(self, name: str, dims: tuple[str, ...], kinds: str, of: str) -> None:
        """Check that a variable or coordinate has these dimensions, none of them empty, and a dtype of one
        of these NumPy `kinds`; errors call the type `of`."""
        if name not in self.dataset.variables and dims != (name,):
            raise InputError(f"this is no dataset of masks: it has no variable {name!r}.")
        found = self.dataset[name]
        if found.dims != dims or found.dtype.kind not in kinds or 0 in found.shape[1:]:
            raise InputError(
                f"this is no dataset of masks: {name!r} is {found.dtype} of the sizes {dict(found.sizes)}, "
                f"not {of} of {dims}."
            )

    @classmethod
    def of(
        cls,
        heads: Bool[np.ndarray, "seed layer head"],
        mlp: Bool[np.ndarray, "seed layer"],
        *,
        seeds: Iterable[int] | None = None,
        reference: Reference | None = None,
        expected: Float[np.ndarray, " seed"] | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> Masks:
        """Make masks from arrays that are True where a component is kept. `seeds` are 0, 1, ... by default;
        `reference` is needed to run the masks; `expected` is the expected sparsity of the gates, if any.

        >>> masks = Masks.of(np.ones((2, 3, 4)), np.zeros((2, 3)))
        >>> masks.heads.sizes["head"], masks.sparsity.values.tolist()
        (4, [0.2, 0.2])

        Raises:
            InputError: arrays that do not go together, or values that are neither 0 nor 1.
        """
        heads, mlp = np.asarray(heads), np.asarray(mlp)
        if heads.ndim != 3 or mlp.shape != heads.shape[:2]:
            raise InputError(
                f"masks of heads {heads.shape} and MLPs {mlp.shape} do not go together: they are "
                "(seed, layer, head) and (seed, layer)."
            )
        for values in (heads, mlp):
            if not np.isin(values, (0, 1)).all():
                raise InputError("a mask has values other than 0 and 1: a component is kept or it is not.")
        chosen = list(range(len(heads))) if seeds is None else list(seeds)
        if len(chosen) != len(heads):
            raise InputError(f"there are {len(heads)} masks, but {len(chosen)} seeds: give one for each.")
        variables: dict[str, Any] = {
            name: (_DIMS[name], v.astype(bool)) for name, v in (("heads", heads), ("mlp", mlp))
        }
        if reference is not None:
            if reference.heads.shape[:2] != heads.shape[1:]:
                raise InputError(
                    "the reference values are of (layers, heads) = "
                    f"{tuple(reference.heads.shape[:2])}, and "
                    f"the masks of {heads.shape[1:]}: compute them with the model that is masked."
                )
            values = (reference.heads.cpu().numpy(), reference.mlp.cpu().numpy())
            variables |= {name: (_REFERENCE[name], v) for name, v in zip(_REFERENCE, values, strict=True)}
        if expected is not None:
            variables["expected_sparsity"] = ("seed", expected)
        dataset = xr.Dataset(
            variables,
            {
                "seed": np.array(chosen, dtype=np.int64),
                "layer": np.arange(heads.shape[1]),
                "head": np.arange(heads.shape[2]),
            },
            dict(attrs or {}),
        )
        return cls(dataset)

    @property
    def heads(self) -> xr.DataArray:
        """Which heads are kept (seed, layer, head)."""
        return self.dataset["heads"]

    @property
    def mlp(self) -> xr.DataArray:
        """Which MLPs are kept (seed, layer)."""
        return self.dataset["mlp"]

    @property
    def reference(self) -> Reference | None:
        """The values that ablated components write, or `None` if they are unknown."""
        if not set(_REFERENCE) <= set(self.dataset.data_vars):
            return None
        return Reference(*(torch.from_numpy(self.dataset[name].values) for name in _REFERENCE))

    @property
    def seeds(self) -> list[int]:
        return [int(seed) for seed in self.dataset["seed"].values]

    @property
    def kinds(self) -> list[str]:
        """The kinds of components that were pruned: "heads" and "mlp", unless `attrs` say otherwise."""
        return list(dict.fromkeys(self.dataset.attrs.get("options", {}).get("kinds", _DIMS)))

    @property
    def sparsity(self) -> xr.DataArray:
        """The share of components that is ablated (seed), among the `kinds` that were pruned."""
        kept = [
            self.dataset[kind].stack(component=_DIMS[kind][1:], create_index=False) for kind in self.kinds
        ]
        every = np.concatenate([of_kind.values for of_kind in kept], axis=1)
        return xr.DataArray((~every).mean(1), {"seed": self.dataset["seed"]}, name="sparsity")

    @property
    def converged(self) -> xr.DataArray:
        """Whether each seed's optimisation came within `TOLERANCE` of the sparsity asked for (seed); true
        for masks that no optimisation found."""
        expected = self.dataset.get("expected_sparsity", self.sparsity)
        return (abs(expected - self.sparsity) <= TOLERANCE).rename("converged")

    def check_converged(self) -> None:
        """Reject masks that were decided by the order of the gates and not by the optimisation.

        Raises:
            InputError: some seeds did not converge.
        """
        failed = ~self.converged
        if not failed.any():
            return
        which = [int(seed) for seed in self.dataset["seed"].values[failed.values]]
        listed = ", ".join(map(str, which[:8])) + (f" and {len(which) - 8} more" if len(which) > 8 else "")
        expected = self.dataset["expected_sparsity"].values[failed.values].mean()
        steps = (self.dataset.attrs.get("options") or {}).get("steps", "its")
        raise InputError(
            f"pruning did not converge for {len(which)} of {len(self)} seeds ({listed}): after {steps} "
            f"steps their gates expect {expected:.0%} of the components to be ablated on average, not "
            f"{float(self.sparsity.mean()):.0%}, so that their masks mean nothing; prune again with more "
            "steps (500 are ample at the default rate for most models), or ask for another sparsity."
        )

    def like(
        self,
        heads: Bool[np.ndarray, "seed layer head"],
        mlp: Bool[np.ndarray, "seed layer"],
        *,
        seeds: Iterable[int] | None = None,
    ) -> Masks:
        """Return other masks of the same model, with the same reference values and `attrs`."""
        return Masks.of(heads, mlp, seeds=seeds, reference=self.reference, attrs=self.attrs)

    def select(self, seeds: Iterable[int]) -> Masks:
        """Return the masks of these seeds, in this order.

        Raises:
            InputError: there is no mask of one of the seeds, or no seeds are given.
        """
        chosen, known = list(seeds), self.seeds
        if missing := [seed for seed in chosen if seed not in known]:
            raise InputError(f"there is no mask of seed {missing[0]}: they are {known}.")
        return Masks(self.dataset.sel(seed=chosen))

    def __len__(self) -> int:
        return len(self.dataset["seed"])

    def __repr__(self) -> str:
        sizes, failed = self.heads.sizes, int((~self.converged).sum())
        warning = f", {failed} of the seeds did not converge" if failed else ""
        return (
            f"<Masks of {sizes['layer']} MLPs and {sizes['layer']} x {sizes['head']} heads, "
            f"{len(self)} seeds, {float(self.sparsity.mean()):.0%} ablated{warning}>"
        )
