"""What only generalising subnetworks have: the best third compared with the worst.

The subnetworks of each sparsity are ordered by their mean rank on the generalization set (ties in the order
given). The best thirds of all sparsities form one group and the worst thirds another (each third has at
least one subnetwork). A component's difference is

    d = share of the best that keep it - share of the worst that keep it.

If the component has nothing to do with generalisation, chance decided which subnetworks were the best. So
ranks are permuted within each sparsity, and p is how often |d*| >= |d| (counting the real order). Among
many components some differ by chance: `p_adjusted` is how often the *largest* |d*| of all components is at
least |d| (Westfall and Young). When no component truly differs, at most 5% of experiments have any
component with p_adjusted <= 0.05.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float64

from ecstruct.errors import InputError
from ecstruct.io.values import bounded
from ecstruct.scores.components import component_frame, component_names
from ecstruct.subnetworks.common_core import MasksLike, as_groups, core, merged
from ecstruct.subnetworks.masks import Masks

Ranks = xr.DataArray | Sequence[float] | np.ndarray
"""A mean rank for each subnetwork, in the order of the masks."""

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Generalising:
    """The components that the subnetworks that generalise best keep, and the worst ones do not.

    `frame` has a row per component that was pruned: `kind`, `layer`, `head` (missing for an MLP), the
    shares of the `best` and of the `worst` that keep it, their `difference`, `p`, `p_adjusted`, whether it
    is in the `core`, and whether it is `added`: kept by more than half of the best, and not in the core.
    The fields `best` and `worst` are the mean ranks of both thirds; `heads` (layer, head) and `mlp` (layer)
    say which are added.
    """

    frame: pd.DataFrame
    best: float
    worst: float
    heads: xr.DataArray
    mlp: xr.DataArray

    def significant(self, level: float = 0.05) -> pd.DataFrame:
        """Return the components whose difference is significant at this level, the largest first."""
        found = self.frame.loc[self.frame["p_adjusted"] <= level]
        return found.sort_values(by="difference", ascending=False, ignore_index=True)

    def conclusion(self) -> str:
        """Say which components differ, or that none does."""
        thirds = (
            f"The best third of the subnetworks generalises with a mean rank of {self.best:.2f}, the worst "
            f"with {self.worst:.2f}. "
        )
        found = self.significant()
        if found.empty:
            least = self.frame["p_adjusted"].min()
            return (
                f"{thirds}No component is significantly more frequent in either (the least adjusted p is "
                f"{least:.2g})."
            )
        listed = [
            f"{name} ({row['best']:.0%} of the best, {row['worst']:.0%} of the worst, adjusted p "
            f"{row['p_adjusted']:.2g})"
            for name, row in zip(component_names(found), found.to_dict(orient="records"), strict=True)
        ]
        return f"{thirds}They differ in {', '.join(listed)}."


@bounded
def generalising(
    masks: MasksLike,
    ranks: Ranks | Mapping[float, Ranks],
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> Generalising:
    """Compare the best and the worst third of subnetworks by their ranks on a generalization set.

    Args:
        masks: Subnetworks of one sparsity, or by sparsity.
        ranks: A mean rank for each subnetwork, by sparsity if the masks are; 0 is best.
        permutations: How many permutations to draw.
        seed: The same seed draws the same permutations.

    Raises:
        InputError: fewer than two subnetworks of a sparsity, ranks that do not match the masks or are not
            finite, or no permutations.
    """
    if permutations < 1:
        raise InputError(f"permutations={permutations} give no p-value; draw 1 or more, as in 10000.")
    groups = as_groups(masks)
    by_group = _ranks_by_group(groups, ranks)
    together = merged(list(groups.values()))
    kept, frame = _components(together)
    best, worst = np.zeros(len(kept), bool), np.zeros(len(kept), bool)
    start = 0
    rng = np.random.default_rng(seed)
    shares = np.zeros((permutations + 1, len(kept)))  # weights of subnetworks in d; the real order first
    thirds = {name: max(1, len(of_group) // 3) for name, of_group in by_group.items()}
    n = sum(thirds.values())
    for name, of_group in by_group.items():
        own, third = slice(start, start + len(of_group)), thirds[name]
        order = of_group.argsort(kind="stable")
        best[own][order[:third]] = worst[own][order[-third:]] = True
        real = (best[own].astype(float) - worst[own]) / n
        shares[0, own] = real
        shares[1:, own] = rng.permuted(np.tile(real, (permutations, 1)), axis=1)
        start += len(of_group)
    d = np.abs(shares @ kept)
    seen = d[0] - _ROUNDING
    every_rank = np.concatenate(list(by_group.values()))
    found = core(masks)
    in_core = np.isin(component_names(frame), found.components())
    of_best, of_worst = kept[best].mean(0), kept[worst].mean(0)
    frame = frame.assign(
        best=of_best,
        worst=of_worst,
        difference=of_best - of_worst,
        p=(d >= seen).mean(0),
        p_adjusted=(d.max(1)[:, None] >= seen).mean(0),
        core=in_core,
        added=(of_best > 0.5) & ~in_core,
    )
    added = {
        kind: (together.dataset[kind][best].mean("seed") > 0.5)
        & ~getattr(found, kind)
        & (kind in together.kinds)
        for kind in ("heads", "mlp")
    }
    return Generalising(
        frame, float(every_rank[best].mean()), float(every_rank[worst].mean()), added["heads"], added["mlp"]
    )


def _ranks_by_group(
    groups: Mapping[str, Masks], ranks: Ranks | Mapping[float, Ranks]
) -> dict[str, Float64[np.ndarray, " subnetwork"]]:
    """Return the ranks of the subnetworks of every group; raise `InputError` if they do not fit the groups,
    or are not finite."""
    if isinstance(ranks, Mapping):
        given = {str(sparsity): np.asarray(of, dtype=float) for sparsity, of in ranks.items()}
    elif len(groups) > 1:
        raise InputError("ranks= are those of one sparsity: give them by sparsity, as the masks.")
    else:
        given = {name: np.asarray(ranks, dtype=float) for name in groups}
    if set(given) != set(groups):
        raise InputError(f"ranks= are of the sparsities {list(given)}, but the masks of {list(groups)}.")
    for name, of_group in groups.items():
        if given[name].shape != (len(of_group),):
            raise InputError(
                f"ranks= of {name} are {given[name].shape}: give a mean rank for each of its "
                f"{len(of_group)} subnetworks."
            )
        if not np.isfinite(given[name]).all():
            raise InputError(f"ranks= of {name} are not all finite: leave those subnetworks out.")
    return {name: given[name] for name in groups}


def _components(masks: Masks) -> tuple[Float64[np.ndarray, "subnetwork component"], pd.DataFrame]:
    """Return which components each subnetwork keeps, and their frame, of the kinds that were pruned."""
    frame = component_frame(masks.heads["layer"].values, masks.heads["head"].values)
    kept = np.concatenate([masks.mlp.values, masks.heads.values.reshape(len(masks), -1)], axis=1)
    pruned = frame["kind"].replace("head", "heads").isin(masks.kinds).to_numpy()
    return kept[:, pruned].astype(float), frame.loc[pruned].reset_index(drop=True)
