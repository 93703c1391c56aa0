"""Tails: rerun the layers after a boundary, with many variants of one batch stacked together.

An intervention leaves all earlier layers unchanged, so only its own layer and the later ones are run again.
Interventions run the same layers under the same weights and therefore share a stack of *copies* of the
prompts, one per intervention, which differ in the residual stream. The stack grows on the way up: a copy
joins it at the layer from which it differs, so every block runs once for all copies that have joined.
Tokens that packed prompts share are computed once, and the last block computes little more than the
positions that are read.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ecstruct.facts.tokens import Batch
from ecstruct.models.calls import BlockCall
from ecstruct.models.hooked import HookedView
from ecstruct.models.sites import Weights
from ecstruct.scores.packing import Packing
from ecstruct.scores.relevance import Relevance

Rows = Float[Tensor, "rows pos d"]
"""The residual stream of stacked copies of a batch, copy after copy: [copies * batch, pos, d_model] or,
packed, [copies, token, d_model]."""


class Tails:
    """Runs blocks and the model's head under `weights`, on copies of one batch.

    Logits are read at `positions` [batch, read]; `reward` maps logits and batch to one number per prompt,
    as in `ecstruct.scores.reward`.
    """

    def __init__(
        self,
        view: HookedView,
        weights: Weights,
        batch: Batch,
        positions: Int[Tensor, "batch read"],
        reward: Callable[[Tensor, Batch], Tensor],
        packing: Packing | None = None,
    ) -> None:
        self.view, self.weights = view, weights
        self._batch, self._reward, self._packing = batch, reward, packing
        if packing:
            positions = packing.places.gather(1, positions).flatten()[None]
        self._read = positions  # for one copy, [rows, read]
        self._calls_on = lru_cache(maxsize=16)(self._record)  # only a few batch sizes occur, repeatedly

    def rows(self, x: Float[Tensor, "batch pos d"]) -> Rows:
        """Return `x` as the rows of one copy of the batch."""
        return self._packing.pack(x) if self._packing else x

    def block(
        self,
        layer: int,
        rows: Rows,
        weights: Weights | None = None,
        written: Mapping[str, Rows] | None = None,
    ) -> Rows:
        """Run one block on all copies, under `weights` or by default the tail's own; `written` is as for
        `HookedView.through`."""
        copies = len(rows) // len(self._read)
        at = self._read.repeat(copies, 1) if layer == self.view.n_layers - 1 else None
        call = self._calls_on(copies)[layer]
        return self.view.through(layer, weights or self.weights, call, rows, written, at)

    def rewards(
        self, joining_at: Callable[[int], Rows | None], rules: Relevance | None = None
    ) -> Float[Tensor, "copies batch"]:
        """Return the rewards of all copies, in the order in which they join the stack.

        Args:
            joining_at: is called with every layer in turn, and then with `n_layers`. It returns the
                residual stream that enters this block (for `n_layers`, the head) in the copies that join
                the stack here, or None if none does.
            rules: rules of relevance for which the graph of the logits is prepared.
        """
        stack: list[Rows] = []
        for layer in range(self.view.n_layers + 1):
            joined = joining_at(layer)
            stack += [] if joined is None else [joined]
            if stack and layer < self.view.n_layers:
                stack = [self.block(layer, torch.cat(stack))]
        rows = torch.cat(stack)
        copies = len(rows) // len(self._read)
        each = torch.arange(len(rows), device=rows.device)[:, None]
        read = rows[each, self._read.repeat(copies, 1)].reshape(
            copies * len(self._batch.ids), -1, rows.shape[-1]
        )
        logits = self.view.head(self.weights, read).output
        if rules:
            rules.prepare(logits)
        return self._reward(logits, self._batch.repeat(copies)).unflatten(0, (copies, -1))

    def _record(self, copies: int) -> list[BlockCall]:
        """Record how the model calls its blocks on this many copies."""
        with torch.no_grad():
            if not self._packing:
                batch = self._batch.repeat(copies)
                return self.view.embed(self.weights, batch.ids, batch.mask)[1]
            seen = self._packing.seen
            least = torch.finfo(self.view.dtype).min
            mask = torch.zeros_like(seen, dtype=self.view.dtype).masked_fill(~seen, least)
            ids, positions = (
                t.repeat(copies, 1) for t in (self._packing.ids, self._packing.positions[None])
            )
            return self.view.embed(self.weights, ids, mask.repeat(copies, 1, 1, 1), positions)[1]
