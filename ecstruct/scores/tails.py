"""Tails: the layers after a boundary, run again, with many variants of a batch stacked in one.

Whatever changes at a layer, the layers before it stay as they are. So an intervention needs the layers
from its own on, and as all of them run the same layers under the same weights, they share a batch: *copies*
of the prompts, one per intervention, that differ in the residual stream they enter with.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from ecstruct.facts.tokens import Batch
from ecstruct.models.calls import BlockCall
from ecstruct.models.hooked import HookedView
from ecstruct.models.sites import Weights


class Tails:
    """The blocks and the head under `weights`, on copies of one batch.

    The residual stream is [copies * batch, pos, d_model], copy after copy; the logits are read at
    `positions` [batch, read], and `reward` is of logits and batch, as `ecstruct.scores.reward`.
    """

    def __init__(
        self,
        view: HookedView,
        weights: Weights,
        batch: Batch,
        positions: Tensor,
        reward: Callable[[Tensor, Batch], Tensor],
    ) -> None:
        self.view, self.weights = view, weights
        self._batch, self._positions, self._reward = batch, positions, reward
        self._calls_on = lru_cache(maxsize=8)(self._record)  # a handful of sizes comes again and again

    def _record(self, copies: int) -> list[BlockCall]:
        """How the model calls its blocks on so many copies."""
        batch = self._batch.repeat(copies)
        with torch.no_grad():
            return self.view.embed(self.weights, batch.ids, batch.mask)[1]

    def block(
        self,
        layer: int,
        resid: Float[Tensor, "rows pos d_model"],
        weights: Weights | None = None,
        added: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """One block on all copies, under the tail's weights unless others are given."""
        copies = len(resid) // len(self._batch.ids)
        at = None
        if layer == self.view.n_layers - 1 and self._positions.shape[1] == 1:
            at = self._positions[:, 0].repeat(copies)  # nothing else of the last block is read
        call = self._calls_on(copies)[layer]
        return self.view.through(layer, weights or self.weights, call, resid, added, at)

    def rewards(
        self, layer: int, resid: Float[Tensor, "rows pos d_model"]
    ) -> Float[Tensor, "copies batch"]:
        """The rewards of all copies, from the residual stream entering block `layer`."""
        for later in range(layer, self.view.n_layers):
            resid = self.block(later, resid)
        copies = len(resid) // len(self._batch.ids)
        rows = torch.arange(len(resid), device=resid.device)[:, None]
        logits = self.view.head(self.weights, resid[rows, self._positions.repeat(copies, 1)]).output
        return self._reward(logits, self._batch.repeat(copies)).unflatten(0, (copies, -1))
