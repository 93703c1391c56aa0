"""How many rows run at once, and what happens when memory runs out.

A row is a prompt, or a copy of one with an intervention of its own. As many run together as a matrix
product needs for full speed, and as the free memory holds. When memory runs out all the same, half as many
are tried. Nothing here changes a number, but for rounding.
"""

import logging
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import psutil
import torch

from ecstruct.facts.tokens import Batch, TokenizedPrompt, collate
from ecstruct.models.hooked import HookedView

TOKENS_PER_BATCH = 2048
"""Enough tokens for matrix products to run at full speed."""

T = TypeVar("T")
R = TypeVar("R")

_logger = logging.getLogger(__name__)


def rows_at_once(view: HookedView, length: int, *, kept: int = 0, memory: float | None = None) -> int:
    """Return how many rows of `length` tokens to run at once: at least one, and no more than are
    efficient or than `affordable` with the graph of one block."""
    return max(1, min(affordable(view, length, kept=kept, memory=memory), TOKENS_PER_BATCH // length))


def affordable(
    view: HookedView, length: int, *, graphs: int = 1, kept: int = 0, memory: float | None = None
) -> int:
    """Return how many rows of `length` tokens fit into `memory` bytes, by default a quarter of the free
    memory, but at least one. Every row has the graphs of so many blocks, and `kept` bytes besides."""
    of_row = graphs * graph_bytes(view, 1, length) + kept
    return max(1, int((memory or free_bytes(view.device) / 4) // of_row))


def graph_bytes(view: HookedView, n: int, length: int) -> int:
    """Estimate the bytes of one block's graph on `n` prompts of `length` tokens: inputs, outputs and
    intermediate values of every projection; scores, softmax and pattern of every head."""
    widths = 0
    for site in view.block_sites[0].values():
        widths += sum(sum(p.shape) for p in site.module.parameters() if p.ndim == 2)
    itemsize = torch.finfo(view.dtype).bits // 8
    return n * length * (3 * widths + 4 * view.n_heads * length) * itemsize


def free_bytes(device: torch.device) -> int:
    """Return the bytes that can be allocated, including the system's file cache; of main memory, this
    process's share among the processes launched on the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_out_of_memory(error: Exception) -> bool:
    """Recognise CUDA's own exception, and the RuntimeError of the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def halving(size: int, run: Callable[[int], R]) -> R:
    """Return `run(size)`; whenever memory runs out, halve the size and run again."""
    while True:
        try:
            return run(size)
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        # Only here is the error gone, with the tensors of the frames in its traceback.
        size //= 2
        _logger.warning("out of memory: trying again with batch_size=%d", size)


def each_piece(things: Sequence[T], size: int, run: Callable[[Sequence[T]], object]) -> None:
    """Call `run` on `size` things at a time, in order, and on fewer from where memory runs out. What `run`
    does for a piece it does at its end, because the piece may come again in halves."""
    done = 0

    def go_on(size: int) -> None:
        nonlocal done
        while done < len(things):
            run(things[done : done + size])
            done += size

    halving(max(1, min(size, len(things))), go_on)


def by_length(prompts: Sequence[TokenizedPrompt]) -> list[int]:
    """Return the indices of the prompts, the shortest first: those of similar length need less padding."""
    return sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))


def each_batch(
    prompts: Sequence[TokenizedPrompt],
    size: int,
    device: torch.device,
    pad_id: int,
    run: Callable[[list[int], Batch], object],
) -> None:
    """Call `run` on the indices of at most `size` prompts of similar length, and on their batch, for all
    prompts in turn; see `each_piece`."""

    def on(rows: Sequence[int]) -> None:
        run(list(rows), collate([prompts[i] for i in rows], device, pad_id))

    each_piece(by_length(prompts), size, on)
