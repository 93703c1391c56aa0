"""The ids of a classifier's answers: labels in the place of words.

A classifier is a model whose vocabulary are its labels: the options of a prompt are names of labels, its
answer is one of them, and the "first token" of an option is the index of the label among the logits. So
ranks, rewards and all that is built on them are the same for classifiers and for language models.
"""

import logging
from collections.abc import Sequence

from ecstruct.errors import InputError
from ecstruct.facts.prompt import Prompt
from ecstruct.facts.soundness import enumerated, shown
from ecstruct.models.labels import Labels

_log = logging.getLogger(__name__)


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
                f"the prompt {shown(prompt.text)} has "
                f"{'a chat template' if prompt.wrapper else 'aliases'}, and this is a classifier, which "
                "reads the text alone and answers with a label: leave that out."
            )


def label_ids(prompts: Sequence[Prompt], labels: Labels) -> tuple[list[int], list[tuple[int, ...]]]:
    """Return the index of every prompt's answer, and those of its options: all labels, if it has none.

    A warning is logged if options leave labels out.

    Raises:
        InputError: An answer or an option is no label.
    """
    answers = [_index(prompt.answer, prompt, labels) for prompt in prompts]
    options = [
        tuple(_index(option, prompt, labels) for option in prompt.options or labels.names)
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


def _index(name: str, prompt: Prompt, labels: Labels) -> int:
    """Return the index of a label among the logits."""
    if name in labels.names:
        return labels.names.index(name)
    raise InputError(
        f"{shown(name)}, an answer or option of the prompt {shown(prompt.text)}, is no label of this "
        f"classifier: its labels are {enumerated(labels.names, 20)}."
    )
