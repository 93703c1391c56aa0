"""Packing: prompts that begin alike in one row, what they share computed once.

Prompts of a template share their first tokens, and in a causal model nothing that follows changes what
happens there. So a batch becomes a single row: the shared tokens, then what is each prompt's own, one
prompt after the other. A mask lets every token see the shared ones and those of its own prompt up to
itself, and every token keeps the position that it has in its prompt. Of the paper's prompts' 11 tokens, 5
are shared.

Architectures are free to make other masks of a mask (sliding windows), so whoever packs compares rewards.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ecstruct.facts.tokens import Batch


@dataclass(frozen=True)
class Packing:
    """A batch as one row. `prompts` and `positions` [token] say what the row's tokens are in the batch,
    `places` [batch, pos] where the batch's tokens are in the row; the first `n_shared` are everybody's."""

    ids: Int[Tensor, "1 token"]
    prompts: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    places: Int[Tensor, "batch pos"]
    n_shared: int

    @classmethod
    def of(cls, batch: Batch, at_most: int) -> "Packing":
        """Share no more than `at_most` of the first tokens; every prompt keeps at least its last one."""
        ids, lengths = batch.ids, batch.lengths
        alike = int((ids == ids[:1]).all(0).long().cumprod(0).sum())
        n_shared = min(alike, at_most, int(lengths.min()) - 1)
        at = torch.arange(ids.shape[1], device=ids.device)
        prompts, positions = ((at >= n_shared) & (at < lengths[:, None])).nonzero(as_tuple=True)
        places = at.repeat(len(ids), 1)
        places[prompts, positions] = n_shared + torch.arange(len(prompts), device=ids.device)
        places[at >= lengths[:, None]] = 0  # padding is never read: any place will do
        prompts = torch.cat([torch.zeros_like(at[:n_shared]), prompts])
        positions = torch.cat([at[:n_shared], positions])
        return cls(ids[prompts, positions][None], prompts, positions, places, n_shared)

    @property
    def seen(self) -> Bool[Tensor, "token token"]:
        """Which token (column) is seen from which (row)."""
        shared = torch.arange(len(self.prompts), device=self.prompts.device) < self.n_shared
        own = ~shared[:, None] & (self.prompts[:, None] == self.prompts)
        return (shared | own) & (self.positions <= self.positions[:, None])

    def pack(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "1 token d"]:
        """The row of a batch."""
        return x[self.prompts, self.positions][None]
