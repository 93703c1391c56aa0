"""Do added heads build on the core? This measures how much their z changes when the core is ablated.

For a head h with z_h in the full model, and z_h* with the core ablated,

    change = mean over prompts of the mean over their tokens of |z_h* - z_h| / |z_h|.

The controls ablate as many random components that are not in the core: any of them, or as many from each of
the core's layers, because an early ablation reaches more of the model. For a head that is itself ablated, z
is measured before it is replaced.

Heads in the core's first layer and in earlier ones cannot depend on the core, and are left out.

Source: Bhaskar, Friedman & Chen, "The Heuristic Core" (ACL 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Float, Float64
from torch import Tensor

from ecstruct.engine.forward import Embedded, Step, run_blocks
from ecstruct.engine.plan import rows_at_once
from ecstruct.engine.session import Model
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.facts.tokens import Batch
from ecstruct.io.store import Steps, stepping
from ecstruct.io.values import bounded
from ecstruct.models.finite import finite
from ecstruct.plots.bars import grouped_bars
from ecstruct.subnetworks.ablation import NothingToAblate, Parts, check_draws, drawn_outside, parts_of
from ecstruct.subnetworks.common_core import MasksLike, as_groups, core, merged
from ecstruct.subnetworks.running import GatedModel

_ABLATED = ("the core", "random ones", "random ones of its layers")


@dataclass(frozen=True)
class Dependence:
    """`frame` has a row per head (`layer`, `head`), per set that is `ablated` ("the core", "random ones",
    "random ones of its layers"; of so many `components`), and per `draw`: the head's relative `change`."""

    frame: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """Return a row per set that is `ablated`: its mean number of `components`, the mean `change` of the
        heads, the `lowest` and `highest` mean of a draw, and `p`, the share of draws that change the heads
        at least as much as the core does, counting the core as one draw."""
        means = self._means()
        of_core = means["the core"].item()
        rows = []
        for name, its in means.items():
            n = self.frame.loc[self.frame["ablated"] == name, "components"].mean()
            row = {"ablated": name, "components": n, "change": its.mean()}
            row |= {"lowest": its.min(), "highest": its.max()}
            p = (1 + int((its >= of_core).sum())) / (1 + len(its)) if name != "the core" else np.nan
            rows.append(row | {"p": p})
        return pd.DataFrame(rows)

    def conclusion(self) -> str:
        """Say how much the heads change, compared with the controls."""
        rows = self.table().set_index("ablated").to_dict(orient="index")
        n = len(self.frame.loc[self.frame["ablated"] == "the core"])
        of_core, random, of_layers = (rows[name] for name in _ABLATED)
        return (
            f"With the core's components ablated ({of_core['components']:.0f}), what {n} heads after it "
            f"write changes by {of_core['change']:.0%}; with random ones ({random['components']:.0f}) by "
            f"{random['change']:.0%} (p = {random['p']:.2g}), and with random ones of its layers "
            f"({of_layers['components']:.0f}) by {of_layers['change']:.0%} (p = {of_layers['p']:.2g})."
        )

    @property
    def figure(self) -> go.Figure:
        """The mean change by what is ablated; dots are draws."""
        means = {name: {"mean over heads": its.tolist()} for name, its in self._means().items()}
        return grouped_bars(means, y="relative change of z")

    def _means(self) -> dict[str, np.ndarray]:
        """Return the mean changes over heads, by draw."""
        by_draw = self.frame.pivot_table(index="draw", columns="ablated", values="change", aggfunc="mean")
        return {name: by_draw[name].dropna().to_numpy() for name in _ABLATED}


@bounded
def dependence(
    model: Model,
    masks: MasksLike,
    prompts: PromptsLike,
    *,
    added: xr.DataArray | None = None,
    kinds: str | Sequence[str] = ("heads",),
    draws: int = 20,
    seed: int = 0,
    progress: bool | Steps = True,
) -> Dependence:
    """Measure how much heads beyond the core depend on it, in the full model.

    Args:
        model: The model that was pruned.
        masks: Subnetworks of one sparsity, or by sparsity, that share the core.
        prompts: Prompts on which z is measured; use the implications to see how generalisation depends on
            the core.
        added: The heads to measure (layer, head), as `Generalising.heads`; by default all outside the core.
        kinds, draws, seed: As in `ablate_core`.

    Raises:
        NothingToAblate: no component of these kinds is in the core, or all are; no added head comes after
            it.
        InputError: masks of another model, or without reference values; prompts that cannot be read; no
            draws.
    """
    check_draws(draws)
    found = core(masks)
    of_core = parts_of(found, kinds)
    added_heads = ~found.heads.values & (True if added is None else np.asarray(added, bool))
    first = min(int(np.nonzero(part)[0][0]) for part in of_core.values() if part.any())
    later = np.argwhere(added_heads & (np.arange(len(added_heads)) > first)[:, None])
    if not len(later):
        raise NothingToAblate(f"no added head comes after layer {first}, in which the core begins.")
    rng, prompts = np.random.default_rng(seed), as_prompts(prompts)
    ablated: list[tuple[str, int, Parts]] = [("the core", 0, of_core)]
    for draw in range(draws):
        ablated.append(("random ones", draw, drawn_outside(of_core, rng)))
        ablated.append(("random ones of its layers", draw, drawn_outside(of_core, rng, by_layer=True)))
    gated = GatedModel.of(model, merged(list(as_groups(masks).values())))
    with stepping(progress, len(prompts) * n_ablated(draws), "dependence") as steps:
        changes = _changes(gated, prompts, [parts for _, _, parts in ablated], steps)
    rows = []
    for (name, draw, parts), change in zip(ablated, changes, strict=True):
        row = {"ablated": name, "components": sum(int(part.sum()) for part in parts.values()), "draw": draw}
        rows += [
            {"layer": int(layer), "head": int(head), **row, "change": change[layer, head].item()}
            for layer, head in later
        ]
    return Dependence(pd.DataFrame(rows))


def n_ablated(draws: int) -> int:
    """Return how many sets of components `dependence` ablates in turn."""
    return 1 + 2 * draws


def _changes(
    gated: GatedModel, prompts: PromptsLike, ablated: Sequence[Parts], steps: Steps
) -> list[Float64[Tensor, "layer head"]]:
    """Return the relative change of every head, for each set of components that is ablated."""
    tokenized = gated.session.tokenize(prompts, with_options=False)
    changes: list[Tensor] = [torch.zeros(())] * len(ablated)
    view, longest = gated.view, max(len(t.ids) for t in tokenized)
    # The z of all layers are in memory at once, of the full model and of the ablated one.
    kept = 2 * view.n_layers * longest * view.n_heads * view.d_head * torch.finfo(view.dtype).bits // 8

    def run(rows: list[int], batch: Batch) -> None:
        some = _Batch(gated, batch, len(tokenized))
        found = [
            steps.take(f"dependence {rows[0]} {len(rows)} {i}", partial(some.change, parts), len(rows))
            for i, parts in enumerate(ablated)
        ]
        for i, change in enumerate(found):
            changes[i] = changes[i] + torch.from_numpy(change.values)

    gated.session.each_batch(tokenized, run, rows_at_once(view, longest, kept=kept))
    return changes


@dataclass(frozen=True)
class _Batch:
    """Some of the `n_prompts` prompts, run together."""

    gated: GatedModel
    batch: Batch
    n_prompts: int

    @cached_property
    def _embedded(self) -> Embedded:
        return self.gated.embed(self.batch)

    @cached_property
    def _whole(self) -> Float[Tensor, "layer batch pos head d_head"]:
        return self._z({})

    def change(self, ablated: Parts) -> xr.DataArray:
        """Return what these prompts add to the mean relative change of every head over all prompts."""
        real = self.batch.mask.to(self.gated.view.dtype)
        weight = real / real.sum(1, keepdim=True) / self.n_prompts
        moved = self._z(ablated)
        change = (moved - self._whole).norm(dim=-1) / self._whole.norm(dim=-1)
        mean = torch.einsum("lbth,bt->lh", change, weight)
        return xr.DataArray(mean.double().cpu().numpy(), dims=("layer", "head"))

    def _z(self, ablated: Parts) -> Float[Tensor, "layer batch pos head d_head"]:
        """Return the z of every head with some components ablated; of ablated heads, before it is
        replaced."""
        view, found = self.gated.view, []
        none = {kind: np.zeros(shape, bool) for kind, shape in self.gated.shapes.items()}
        gates = self.gated.gates(**{kind: ~part[None] for kind, part in {**none, **ablated}.items()})
        gating = self.gated.gating(gates.each(len(self.batch.ids)))

        def seen(step: Step) -> Step:
            step = gating(step)
            ablate = step.inputs["attn.o"]

            def see(z: Tensor) -> Tensor:
                found.append(z)
                return ablate(z)

            return replace(step, inputs={"attn.o": see})

        run_blocks(self.gated.session, self._embedded.calls, self._embedded.resid, seen)
        z = rearrange(found, "l batch pos (head d_head) -> l batch pos head d_head", head=view.n_heads)
        return finite(z, "what heads write")
