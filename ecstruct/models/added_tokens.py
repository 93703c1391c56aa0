"""Tokens that a finetuning added to the vocabulary.

Prompts are read with the tokenizer before, which has none of these tokens. So the rows of added tokens are
left out of the embedding and the unembedding after, and their logits out of every softmax; all other rows
are compared like any weights.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

ROWS = ("embed.weight", "unembed.weight", "unembed.bias")
"""The weights that have a row for every token."""


def without_added(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights `after` without the rows of tokens that those `before` lack."""
    return {
        name: w[: len(before[name])] if name in before and grown(name, before[name].shape, w.shape) else w
        for name, w in after.items()
    }


def grown(name: str, before: Sequence[int], after: Sequence[int]) -> bool:
    """Return whether a weight has the rows of more tokens after than before, and is otherwise as large."""
    return name in ROWS and tuple(before[1:]) == tuple(after[1:]) and before[0] < after[0]
