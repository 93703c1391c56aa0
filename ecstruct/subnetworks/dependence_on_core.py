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
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.cost import Bar
from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.facts.tokens import Batch, pad_id_of, tokenize
from ecstruct.io.store import Steps
from ecstruct.io.values import bounded
from ecstruct.models.bridge import eval_mode
from ecstruct.models.edits import editing
from ecstruct.models.finite import finite
from ecstruct.models.provenance import tokenizer_of
from ecstruct.plots.bars import grouped_bars
from ecstruct.scores.batching import cut
from ecstruct.subnetworks.ablation import NothingToAblate, Parts, check_draws, drawn_outside, parts_of
from ecstruct.subnetworks.common_core import MasksLike, as_groups, core, merged
from ecstruct.subnetworks.running import Embedded, GatedModel, Gates

_TOKENS = 512
"""The number of tokens in a batch. It is small because the z of all layers are in memory at once."""

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
            row = {
                "ablated": name,
                "components": n,
                "change": its.mean(),
                "lowest": its.min(),
                "highest": its.max(),
            }
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
    model: TransformerBridge,
    masks: MasksLike,
    prompts: PromptsLike,
    *,
    added: xr.DataArray | None = None,
    kinds: str | Sequence[str] = ("heads",),
    draws: int = 20,
    seed: int = 0,
    progress: bool = True,
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
    prompts = as_prompts(prompts)
    n_runs = len(prompts) * n_ablated(draws)
    with Bar(n_runs, "dependence", unit="run", disable=not progress) as bar:
        return depending(
            *(model, masks, prompts, Steps(bar)), added=added, kinds=kinds, draws=draws, seed=seed
        )


def n_ablated(draws: int) -> int:
    """Return how many sets of components `dependence` ablates in turn."""
    return 1 + 2 * draws


def depending(
    model: TransformerBridge,
    masks: MasksLike,
    prompts: PromptsLike,
    steps: Steps,
    *,
    added: xr.DataArray | None = None,
    kinds: str | Sequence[str] = ("heads",),
    draws: int = 20,
    seed: int = 0,
) -> Dependence:
    """Run `dependence` in steps; the cost is one for each prompt and set of components."""
    check_draws(draws)
    found = core(masks)
    of_core = parts_of(found, kinds)
    added_heads = ~found.heads.values & (True if added is None else np.asarray(added, bool))
    first = min(int(np.nonzero(part)[0][0]) for part in of_core.values() if part.any())
    later = np.argwhere(added_heads & (np.arange(len(added_heads)) > first)[:, None])
    if not len(later):
        raise NothingToAblate(f"no added head comes after layer {first}, in which the core begins.")
    rng = np.random.default_rng(seed)
    ablated: list[tuple[str, int, Parts]] = [("the core", 0, of_core)]
    for draw in range(draws):
        ablated.append(("random ones", draw, drawn_outside(of_core, rng)))
        ablated.append(("random ones of its layers", draw, drawn_outside(of_core, rng, by_layer=True)))
    reference = merged(list(as_groups(masks).values())).reference
    if reference is None:
        raise InputError("these masks do not say what takes the place of ablated components: prune anew.")
    gated = GatedModel(model, reference)
    changes = _changes(model, gated, prompts, [parts for _, _, parts in ablated], steps)
    rows = []
    for (name, draw, parts), change in zip(ablated, changes, strict=True):
        row = {"ablated": name, "components": sum(int(part.sum()) for part in parts.values()), "draw": draw}
        rows += [
            {"layer": int(layer), "head": int(head), **row, "change": change[layer, head].item()}
            for layer, head in later
        ]
    return Dependence(pd.DataFrame(rows))


def _changes(
    model: TransformerBridge,
    gated: GatedModel,
    prompts: PromptsLike,
    ablated: Sequence[Parts],
    steps: Steps,
) -> list[Float[Tensor, "layer head"]]:
    """Return the relative change of every head, for each set of components that is ablated."""
    tokenizer = tokenizer_of(model)
    tokenized = tokenize(prompts, tokenizer, n_ctx=model.cfg.n_ctx, with_options=False)
    changes: list[Tensor] = [torch.zeros(())] * len(ablated)
    at_once = max(1, _TOKENS // max(len(t.ids) for t in tokenized))
    job = cut(tokenized, at_once, gated.view.device, pad_id_of(tokenizer), False)
    with torch.no_grad(), eval_mode(model):
        for b, batch in enumerate(job.batches):
            run = _Batch(gated, batch, len(tokenized))
            for i, parts in enumerate(ablated):
                found = steps.take(f"dependence {b} {i}", partial(run.change, parts), len(job.rows[b]))
                changes[i] = changes[i] + torch.from_numpy(found.values)
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
        return _z(self.gated, self._embedded, {})

    def change(self, ablated: Parts) -> xr.DataArray:
        """Return what these prompts add to the mean relative change of every head over all prompts."""
        real = self.batch.mask.to(self.gated.view.dtype)
        weight = real / real.sum(1, keepdim=True) / self.n_prompts
        moved = _z(self.gated, self._embedded, ablated)
        change = (moved - self._whole).norm(dim=-1) / self._whole.norm(dim=-1)
        mean = torch.einsum("lbth,bt->lh", change, weight)
        return xr.DataArray(mean.double().cpu().numpy(), dims=("layer", "head"))


def _z(
    gated: GatedModel, embedded: Embedded, ablated: Parts
) -> Float[Tensor, "layer batch pos head d_head"]:
    """Return the z of every head with some components ablated; of ablated heads, before it is replaced."""
    shape, device, dtype = gated.reference.heads.shape[:2], gated.view.device, gated.view.dtype
    kept = {"heads": torch.ones(shape), "mlp": torch.ones(shape[0])}
    kept |= {kind: torch.from_numpy(~part).float() for kind, part in ablated.items()}
    n_rows = len(embedded.resid)
    gates = Gates(*(kept[kind][None].to(device, dtype) for kind in ("heads", "mlp"))).each(n_rows)
    resid, found = embedded.resid, []
    for layer, call in enumerate(embedded.calls):
        inputs, outputs = gated.edits(layer, gates)
        ablate = inputs["attn.o"]

        def see(z: Tensor, ablate=ablate) -> Tensor:
            found.append(z)
            return ablate(z)

        with editing(gated.view.block_sites[layer], {"attn.o": see}, outputs):
            resid = gated.view.through(layer, gated.weights, call, resid)
    z = torch.stack(found).unflatten(-1, (shape[1], -1))
    return finite(z, "what heads write")
