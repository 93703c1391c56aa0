"""Finetuning as a setup says it, in the order that a seed's repeat draws."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from ecstruct.experiments.setup import Setup
from ecstruct.facts import Prompt
from ecstruct.finetuning import Finetuned, finetune


def pairing(seed: int, repeat: int) -> int:
    """A number that no other seed's repeat has, to draw pairings and orders by.

    >>> pairing(0, 3), pairing(2, 1)
    (3, 2001)
    """
    return 1000 * seed + repeat


def train(
    model: TransformerBridge,
    setup: Setup,
    documents: Iterable[Prompt],
    *,
    lr: float,
    seed: int,
    repeat: int,
    **options: Any,
) -> Finetuned:
    """`ecstruct.finetune` with the epochs and batches of the setup and further `options`."""
    return finetune(
        model,
        list(documents),
        lr=lr,
        epochs=setup.epochs,
        batch_size=setup.batch_size,
        seed=pairing(seed, repeat),
        progress=False,
        **options,
    )
