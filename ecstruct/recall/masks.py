"""The attention mask in the call of a block: what it closes, and another one in its place.

Models make a mask of their own for every block, of their layer's sliding window for instance. It is what is
added to the attention scores (the dtype's minimum where an edge is closed, and in some models a bias of
each distance elsewhere), or a boolean one, in which either value may stand for closed.
"""

from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Shaped
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.models.calls import BlockCall

Mask = Shaped[Tensor, "batch heads query key"]
"""`heads` and, unless it was read with a size, `batch` may be 1."""

_MASKED = -1e30
"""Added to an attention score it leaves nothing of it, in any dtype that scores are computed in."""


def mask_of(call: BlockCall, batch: int) -> Mask:
    """The mask of a block's call, with `batch` rows.

    Raises:
        InputError: the block is called without one.
    """
    masks = [value for value in (*call.args, *call.kwargs.values()) if _is_mask(value)]
    if len(masks) != 1:
        raise InputError(
            "the blocks of this model are not called with an attention mask, so that no edge can be "
            "blocked: use another architecture."
        )
    return masks[0].expand(batch, -1, -1, -1)


def with_mask(call: BlockCall, mask: Mask) -> BlockCall:
    """The call with another mask."""
    args = tuple(mask if _is_mask(value) else value for value in call.args)
    return replace(call, args=args, kwargs={k: mask if _is_mask(v) else v for k, v in call.kwargs.items()})


def closing(mask: Mask, edges: Bool[Tensor, "batch query key"]) -> Mask:
    """The mask with these edges closed, too."""
    closed = not _opens(mask) if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return mask.masked_fill(rearrange(edges, "batch query key -> batch 1 query key"), closed)


def is_closed(mask: Mask) -> Bool[Tensor, "batch query key"]:
    """The edges that no head sees."""
    closed = mask != _opens(mask) if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2
    return closed.all(1)


def all_alike(mask: Mask) -> Mask:
    """The mask with every edge masked, and those that the model masks itself masked more: so that each
    token sees all tokens that it may see alike.

    Raises:
        InputError: a boolean mask.
    """
    if mask.dtype == torch.bool:
        raise InputError(
            "the blocks of this model are called with a boolean mask, under which no edges are masked more "
            "than others: use mode='zero'."
        )
    return closing(torch.full_like(mask, _MASKED), is_closed(mask))


def _opens(mask: Mask) -> bool:
    """What an open edge is in a boolean mask: the first token sees itself."""
    return bool(mask[0, 0, 0, 0])


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] == value.shape[-2] > 0
