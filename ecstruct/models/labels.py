"""The labels of a classifier, in the place of a vocabulary.

They lie on the tokenizer of the classifier, because the tokenizer reaches all code that reads prompts.
"""

from dataclasses import dataclass
from typing import Any

_ATTRIBUTE = "_ecstruct_labels"


@dataclass(frozen=True)
class Labels:
    """The `names` of the labels, in the order of the logits, and how the classifier reads a text.

    `at_start`: the logits are read at the first token (encoders), and not at the last one. `skipped`: a
    token (padding) that is not read where a text ends with it. `second_from`: the id from which the tokens
    of second texts are counted, for models that embed them in another way; `None` for others.
    """

    names: tuple[str, ...]
    at_start: bool = False
    skipped: int | None = None
    second_from: int | None = None


def set_labels(tokenizer: Any, labels: Labels) -> Any:
    """Mark a tokenizer, in place, as that of a classifier with these labels; return the tokenizer."""
    setattr(tokenizer, _ATTRIBUTE, labels)
    return tokenizer


def labels_of(tokenizer: Any) -> Labels | None:
    """Return the labels of the classifier that a tokenizer belongs to; `None` for a language model."""
    return getattr(tokenizer, _ATTRIBUTE, None)
