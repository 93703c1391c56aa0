"""Which facts a step sees, which of these a rank sees, and how they enter the model."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ecstruct.facts.tokens import TokenizedPrompt, padded

IGNORED = -100  # the label that cross_entropy leaves out


def shuffled_batches(n: int, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Return the batches of all epochs, as indices of facts."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(n).tolist() for _ in range(epochs)]
    return [o[start : start + batch_size] for o in orders for start in range(0, n, batch_size)]


def parts_of(batch: Sequence[int], accumulate: int, rank: int, size: int) -> list[Sequence[int]]:
    """Return the parts of a batch that a rank runs one after the other. All ranks have the same number of
    parts, because they run the blocks together; some parts may be empty."""
    largest = math.ceil(len(batch) / size)
    of_part = math.ceil(largest / accumulate)
    share = batch[rank::size]
    return [share[start : start + of_part] for start in range(0, largest, of_part)]


def teacher_forced(
    part: Sequence[TokenizedPrompt], pad_id: int, device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Return ids, attention mask and labels: the input is the prompt and all but the last answer token, and
    each answer token is the label of the position before it or, in an encoder, of the first position."""
    ids = [[*t.ids, *t.answer_ids[:-1]] for t in part]
    places = [0 if t.at_start else len(t.ids) - 1 for t in part]
    labels = [[*[IGNORED] * place, *t.answer_ids] for t, place in zip(part, places, strict=True)]
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
