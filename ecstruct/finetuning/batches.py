"""The batches of facts: in which order, which part a rank runs, and as which tensors."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ecstruct.facts.tokens import TokenizedPrompt, padded

IGNORED = -100  # the label that cross_entropy leaves out


def shuffled_batches(n: int, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Return the batches of all epochs in order, as indices of the `n` facts, shuffled anew in each
    epoch."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(n).tolist() for _ in range(epochs)]
    return [o[start : start + batch_size] for o in orders for start in range(0, n, batch_size)]


def micro_batches(batch: Sequence[int], accumulate: int, rank: int, size: int) -> list[Sequence[int]]:
    """Return a rank's facts of a batch in micro-batches, which run one after the other (gradient
    accumulation): at most `accumulate`, and as many on all of the `size` ranks, because these run the
    blocks together. Some may be empty."""
    largest = math.ceil(len(batch) / size)
    per_micro_batch = math.ceil(largest / accumulate)
    share = batch[rank::size]
    return [share[start : start + per_micro_batch] for start in range(0, largest, per_micro_batch)]


def teacher_forced(
    facts: Sequence[TokenizedPrompt], pad_id: int, device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Return ids, attention mask and labels of facts. The input is the prompt and all but the last answer
    token; each answer token is the label of the position before it or, in an encoder, of the first
    position. All other labels are `IGNORED`."""
    ids = [[*t.ids, *t.answer_ids[:-1]] for t in facts]
    read = [0 if t.at_start else len(t.ids) - 1 for t in facts]
    labels = [[*[IGNORED] * position, *t.answer_ids] for t, position in zip(facts, read, strict=True)]
    mask = [[1] * len(row) for row in ids]
    return (
        padded(ids, pad_id, device),
        padded(mask, 0, device),
        padded(
            [[*row, *[IGNORED] * (len(its) - len(row))] for row, its in zip(labels, ids, strict=True)],
            IGNORED,
            device,
        ),
    )
