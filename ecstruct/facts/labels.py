"""The labels of a classifier, in the place of a vocabulary.

A classifier is a model whose vocabulary are its labels: the options of a prompt are names of labels, its
answer is one of them, and the "first token" of an option is the index of the label among the logits. So
ranks, rewards and all that is built on them are the same for classifiers and for language models.

The labels lie on the tokenizer of a classifier, because the tokenizer reaches all code that reads prompts.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ecstruct.errors import InputError
from ecstruct.facts.prompt import Prompt
from ecstruct.facts.soundness import enumerated, shown

_ATTRIBUTE = "_ecstruct_labels"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labels:
    """The `names` of the labels, in the order of the logits, and how the classifier reads a text.

    `at_start`: the logits are read at the first token (encoders), and not at the last one. `skipped`: a
    token (padding) that is not read where a text ends with it. `second_from`: the id from which the tokens
    of second texts are counted, for models with an embedding of their own for these; `None` for others.
    """

    names: tuple[str, ...]
    at_start: bool = False
    skipped: int | None = None
    second_from: int | None = None

    def index(self, name: str, prompt: Prompt) -> int:
        """Return the index of a label among the logits.

        Raises:
            InputError: The classifier has no such label.
        """
        if name in self.names:
            return self.names.index(name)
        raise InputError(
            f"{shown(name)}, an answer or option of the prompt {shown(prompt.text)}, is no label of this "
            f"classifier: its labels are {enumerated(self.names, 20)}."
        )


def labelled(tokenizer: Any, labels: Labels) -> Any:
    """Mark a tokenizer, in place, as that of a classifier with these labels, and return it."""
    setattr(tokenizer, _ATTRIBUTE, labels)
    return tokenizer


def labels_of(tokenizer: Any) -> Labels | None:
    """Return the labels of the classifier that a tokenizer belongs to; `None` for a language model."""
    return getattr(tokenizer, _ATTRIBUTE, None)


def check_readable(prompts: Sequence[Prompt], labels: Labels | None) -> None:
    """Raise `InputError` if a prompt has what the model cannot read: a second text, for a language model;
    for a classifier, a chat template, or aliases of the answer."""
    for prompt in prompts:
        if labels is None and prompt.second is not None:
            raise InputError(
                f"the prompt {shown(prompt.text)} has a second text, {shown(prompt.second)}, and this is a "
                "language model, which reads one: write both into the prompt, or load a classifier "
                "(a ...ForSequenceClassification checkpoint, or load(..., labels=[...]))."
            )
        if labels is not None and (prompt.wrapper or prompt.aliases):
            raise InputError(
                f"the prompt {shown(prompt.text)} has {'a chat template' if prompt.wrapper else 'aliases'}, "
                "and this is a classifier, which reads the text alone and answers with a label: leave that "
                "out."
            )


def label_ids(prompts: Sequence[Prompt], labels: Labels) -> tuple[list[int], list[tuple[int, ...]]]:
    """Return the index of every prompt's answer, and those of its options: all labels, if it has none.

    A warning is logged if options leave labels out.

    Raises:
        InputError: An answer or an option is no label.
    """
    answers = [labels.index(prompt.answer, prompt) for prompt in prompts]
    options = [
        tuple(labels.index(option, prompt) for option in prompt.options or labels.names)
        for prompt in prompts
    ]
    fewer = [ids for ids in options if len(ids) < len(labels.names)]
    if fewer:
        _log.warning(
            "%d of %d prompts are answered by %d of the %d labels, without %s: the others are no options.",
            *(len(fewer), len(prompts), len(fewer[0]), len(labels.names)),
            enumerated([name for i, name in enumerate(labels.names) if i not in fewer[0]]),
        )
    return answers, options
