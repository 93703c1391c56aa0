"""The attention mask in the call of a block: reading it, and replacing it.

Models make a mask for every block, for instance for the sliding window of its layer. It is either added to
the attention scores (the dtype's minimum where an edge is closed; elsewhere 0, or in some models a bias
that depends on the distance), or boolean, in which case either value may stand for closed.
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
"""`heads` may be 1, and so may `batch`, unless the mask was read with a size."""

_MASKED = -1e30
"""Added to an attention score, it closes the edge in any dtype in which scores are computed."""


def mask_of(call: BlockCall, batch: int) -> Mask:
    """Return the mask in a block's call, expanded to `batch` rows.

    Raises:
        InputError: the block is not called with a mask.
    """
    masks = [value for value in (*call.args, *call.kwargs.values()) if _is_mask(value)]
    if len(masks) != 1:
        raise InputError(
            "the blocks of this model are not called with an attention mask, so that no edge can be "
            "blocked: use another architecture."
        )
    return masks[0].expand(batch, -1, -1, -1)


def with_mask(call: BlockCall, mask: Mask) -> BlockCall:
    """Return the call with its mask replaced."""
    args = tuple(mask if _is_mask(value) else value for value in call.args)
    return replace(call, args=args, kwargs={k: mask if _is_mask(v) else v for k, v in call.kwargs.items()})


def closing(mask: Mask, edges: Bool[Tensor, "batch query key"]) -> Mask:
    """Return the mask with these edges closed as well."""
    closed = not _opens(mask) if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return mask.masked_fill(rearrange(edges, "batch query key -> batch 1 query key"), closed)


def is_closed(mask: Mask) -> Bool[Tensor, "batch query key"]:
    """Return which edges are closed for all heads."""
    closed = mask != _opens(mask) if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2
    return closed.all(1)


def all_alike(mask: Mask) -> Mask:
    """Return a mask in which every edge is masked, and those that the model itself masks are masked more.
    Each token then sees all tokens that it may see equally.

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
    """Return whether True stands for an open edge in a boolean mask, or for a closed one. The edge of the
    first token to itself is open in every mask."""
    return bool(mask[0, 0, 0, 0])


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] == value.shape[-2] > 0
