"""Interventions on what the components of one block write: replacements, and the rewards that result.

Every intervention replaces y_C, what component C writes before any post-norm, by another value.
`Replacements` computes the new value minus y_C. A `Variant` is a run of the rest of the model in which such
a difference is added to what attention or the MLP writes; many variants share a stack
(`ecstruct.scores.tails`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from typing import TypeVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ecstruct.engine.forward import Resid
from ecstruct.engine.plan import each_piece
from ecstruct.models.calls import BlockCall
from ecstruct.models.hooked import HookedView, Trace
from ecstruct.models.sites import Weights, of_heads
from ecstruct.scores.ascent import Ascent
from ecstruct.scores.late import WRITERS
from ecstruct.scores.linear import split_heads
from ecstruct.scores.pair import Pair
from ecstruct.scores.tails import Rows, Tails
from ecstruct.scores.walk import Walk

T = TypeVar("T")
ByHead = Float[Tensor, "head batch pos d_model"]


@dataclass(frozen=True)
class Replacements:
    """The differences that interventions make to what the heads and the MLP of a block write under W, on
    one batch.

    The methods named after an intervention return the differences of all heads, and that of the MLP."""

    pair: Pair
    ascent: Ascent
    layer: int
    batch: int

    def informative(self) -> tuple[ByHead, Resid]:
        """Return f_C(z_C, W'_C) - y_C: each component has its own weights from W', and its input under
        W."""
        walk = self.ascent.before
        inputs = walk.call(self.layer, self.batch), walk.resid(self.layer, self.batch)
        return of_new_weights(self.pair, self.layer, *inputs, self._old)

    def downstream(self) -> tuple[ByHead, Resid]:
        """Return f_C(z'_C, W_C) - y_C: each component has its input from the run under W'."""
        view, walk = self.pair.view, self.ascent.after
        given = view.given_to_mlp(self.layer, self._new.taps)
        inputs = walk.call(self.layer, self.batch), walk.resid(self.layer, self.batch), given
        z, hidden = view.writer_inputs(self.layer, self.pair.before, *inputs)
        moved = hidden - self._old.taps["mlp.out"].input
        out = view.block_sites[self.layer]["mlp.out"].matrix(self.pair.before)
        return self._written(z - self._z, self.pair.before), moved if out is None else moved @ out.T

    def patching(self) -> tuple[ByHead, Resid]:
        """Return y'_C - y_C: each component writes what it writes in the run under W'."""
        return self.as_in(self._new, self.pair.after)

    def as_in(self, run: Trace, weights: Weights) -> tuple[ByHead, Resid]:
        """Return the differences if each component writes what it writes in another run of the block, under
        `weights`."""
        taps = run.taps
        return (
            self._written(taps["attn.o"].input, weights) - self._written(self._z, self.pair.before),
            taps["mlp.out"].output - self._old.taps["mlp.out"].output,
        )

    def upstream(self) -> tuple[ByHead, Resid]:
        """Return y*_C - y_C: each component writes its baseline."""
        y = self._old.taps["mlp.out"].output
        z_star = self.ascent.baseline.of(self.layer, "attn.o", self.batch, self._z)
        y_star = self.ascent.baseline.of(self.layer, "mlp.out", self.batch, y)
        return self._written(z_star - self._z, self.pair.before), y_star - y

    @cached_property
    def _old(self) -> Trace:
        return self._run(self.ascent.before)

    @cached_property
    def _new(self) -> Trace:
        return self._run(self.ascent.after)

    def _run(self, walk: Walk) -> Trace:
        """Run the block as in `walk`."""
        call, resid = walk.call(self.layer, self.batch), walk.resid(self.layer, self.batch)
        return self.pair.view.block(self.layer, walk.weights, call, resid)

    @property
    def _z(self) -> Tensor:
        return self._old.taps["attn.o"].input

    @property
    def written(self) -> dict[str, Resid]:
        """The values that attention ("attn.o") and MLP ("mlp.out") write under W, not differences."""
        return {name: self._old.taps[name].output for name in WRITERS.values()}

    def _written(self, z: Float[Tensor, "batch pos width"], weights: Weights) -> ByHead:
        return written_by_heads(self.pair.view, self.layer, z, weights)


def of_new_weights(
    pair: Pair, layer: int, call: BlockCall, resid: Resid, run: Trace
) -> tuple[ByHead, Resid]:
    """Return what the new weights of each component of a block change on its inputs in a `run` of the block
    under W: f_C(z, W'_C) - f_C(z, W_C) of the heads and of the MLP. A head's weights are its rows of W_Q,
    W_K and W_V and its columns of W_O; heads that share a key and value head get a copy each."""
    view, sites = pair.view, pair.view.block_sites[layer]
    norm = "ln1" if view.shared_norm else "ln2"
    own = ["ln1", *of_heads(sites), norm, *(site for site in sites if site.startswith("mlp."))]
    new = pair.mixed(name for site in own if site in sites for name in sites[site].weights.values())
    # One run for both: on the given inputs, neither part reads what the other one writes.
    z, hidden = view.writer_inputs(layer, new, call, resid, view.given_to_mlp(layer, run.taps))
    before = written_by_heads(view, layer, run.taps["attn.o"].input, pair.before)
    out = sites["mlp.out"]
    matrix, bias = out.matrix(pair.after), out.bias(pair.after)
    y = hidden if matrix is None else hidden @ matrix.T  # None if `hidden` is already the MLP's output
    y = y if bias is None else y + bias
    return written_by_heads(view, layer, z, pair.after) - before, y - run.taps["mlp.out"].output


def written_by_heads(
    view: HookedView, layer: int, z: Float[Tensor, "batch pos width"], weights: Weights
) -> ByHead:
    """Return z_h W_O^h for every head of a layer; z is the concatenation of the heads' z."""
    matrix = view.block_sites[layer]["attn.o"].matrix(weights)
    assert matrix is not None
    w_o = rearrange(matrix, "d_model (head d_head) -> d_model head d_head", head=view.n_heads)
    return torch.einsum("bthd,ohd->hbto", split_heads(z, view.n_heads), w_o)


@dataclass(frozen=True)
class Variant:
    """A run of the model from block `layer` on, in which `change` is added to what `writer` ("attn.o" or
    "mlp.out") writes there, at one `token` or (None) at all of them. Without a change nothing is added.

    `written` has what both writers write under W. The block runs under `weights`: W, or W with the weights
    that are late for the writer from W'."""

    layer: int
    weights: Weights
    written: Mapping[str, Resid]
    writer: str
    change: Resid | None = None
    token: int | None = None

    def change_like(self, x: Resid) -> Resid:
        """Return the change in the shape of `x`: zero without a change, and at tokens other than
        `token`."""
        if self.change is None:
            return torch.zeros_like(x)
        if self.token is None:
            return self.change
        alone = torch.zeros_like(x)
        alone[:, self.token] = self.change[:, self.token]
        return alone


def rewards_of(
    variants: Iterable[tuple[T, Variant]], tails: Tails, walk: Walk, batch: int, copies: int
) -> Iterator[tuple[T, Float[np.ndarray, " batch"]]]:
    """Yield the label and the rewards [batch] of every variant of one batch.

    Args:
        variants: pairs of a label and a variant, in the order of their layers. Only as many are taken at a
            time as run at once, so they may be made on demand.
        tails: tails of that batch, under the weights of the layers after a variant's own layer.
        walk: a walk under W, whose residual stream enters the blocks of the variants.
        batch: the index of the batch in the walk.
        copies: how many variants run at once; fewer do when memory runs out.
    """
    rewards: list[np.ndarray] = []

    def run(some: Sequence[Variant]) -> None:
        def joining_at(layer: int) -> Rows | None:
            leaving = [
                _block_output(list(alike), tails, walk, batch)
                for (before, *_), alike in groupby(some, lambda v: (v.layer, id(v.weights), v.writer))
                if before == layer - 1
            ]
            return torch.cat(leaving) if leaving else None

        rewards.extend(tails.rewards(joining_at).cpu().numpy())

    variants = iter(variants)
    while piece := [*islice(variants, copies)]:
        each_piece([variant for _, variant in piece], copies, run)
        yield from zip((label for label, _ in piece), rewards, strict=True)
        rewards.clear()


def _block_output(alike: Sequence[Variant], tails: Tails, walk: Walk, batch: int) -> Rows:
    """Run the block of variants that share layer, weights and writer; return its output as rows, variant
    after variant."""
    layer, writer, as_ever = alike[0].layer, alike[0].writer, alike[0].written
    if writer == "mlp.out" and not walk.view.late_in_block(layer, "mlp"):
        # Nothing in the block comes after what its MLP writes: its change is added to the block's output.
        leaving = walk.resid(layer + 1, batch)
        return torch.cat([tails.rows(leaving + variant.change_like(leaving)) for variant in alike])
    written = {"attn.o": tails.rows(as_ever["attn.o"]).repeat(len(alike), 1, 1)}  # spares recomputing it
    changed = [as_ever[writer] + variant.change_like(as_ever[writer]) for variant in alike]
    written[writer] = torch.cat([tails.rows(y) for y in changed])
    entering = tails.rows(walk.resid(layer, batch)).repeat(len(alike), 1, 1)
    return tails.block(layer, entering, alike[0].weights, written)
