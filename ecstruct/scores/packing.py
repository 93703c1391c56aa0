"""Packing: prompts with a common beginning in one row, so that shared tokens are computed once.

Prompts of a template share their first tokens, and in a causal model later tokens do not change what is
computed there. So a batch becomes a single row: the shared tokens, then each prompt's own tokens, one
prompt after the other. A mask lets every token see the shared ones and those of its own prompt up to
itself, and every token keeps its position in its prompt. In the paper's prompts, 5 of 11 tokens are shared.

Architectures may modify the mask (sliding windows), so callers must compare rewards with unpacked ones.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ecstruct.facts.tokens import Batch


@dataclass(frozen=True)
class Packing:
    """A batch as one row. `prompts` and `positions` [token] say where the row's tokens are in the batch,
    `places` [batch, pos] where the batch's tokens are in the row; all prompts share the first
    `n_shared`."""

    ids: Int[Tensor, "1 token"]
    prompts: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    places: Int[Tensor, "batch pos"]
    n_shared: int

    @classmethod
    def of(cls, batch: Batch, at_most: int) -> "Packing":
        """Pack a batch, sharing no more than `at_most` tokens; every prompt keeps at least its last one."""
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
        """The attention mask: True where a token (row) sees another one (column)."""
        shared = torch.arange(len(self.prompts), device=self.prompts.device) < self.n_shared
        own = ~shared[:, None] & (self.prompts[:, None] == self.prompts)
        return (shared | own) & (self.positions <= self.positions[:, None])

    def pack(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "1 token d"]:
        """Return a batch as a row."""
        return x[self.prompts, self.positions][None]
