"""Finetuning with the options of a setup, in the order that is drawn for a seed's repeat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from ecstruct.evaluate import mean_rank
from ecstruct.experiments.setup import Setup
from ecstruct.facts import Prompt
from ecstruct.finetuning import Finetuned, finetune


def pairing(seed: int, repeat: int) -> int:
    """Return a number unique to this seed and repeat, from which pairings and orders are drawn.

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
    """Call `ecstruct.finetune` with the epochs and batch size of the setup and further `options`."""
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


def mean_ranks(model: TransformerBridge, asked: Mapping[str, Sequence[Prompt]]) -> dict[str, float]:
    """Return a model's mean rank of the answers on several sets of prompts, by their names."""
    return {name: mean_rank(model, prompts) for name, prompts in asked.items()}


def ranks_by_epoch(tuned: Finetuned) -> list[dict[str, float]]:
    """Return the mean ranks of a finetuning's evaluation, by name, for each epoch from 0, the start."""
    ranks = tuned.history.ranks
    return [dict(zip(ranks, of_epoch, strict=True)) for of_epoch in zip(*ranks.values(), strict=True)]
