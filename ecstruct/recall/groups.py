"""Groups of positions: "subject", "last" and others by name, or positions themselves.

The subject of a prompt is `Prompt.subject`, and its tokens are those that overlap its characters. A token
may be in several groups: where a prompt ends with its subject, its last token is in "subject" and in
"last".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index

import numpy as np
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from ecstruct.errors import InputError
from ecstruct.facts.alignment import Span, subject_span
from ecstruct.facts.encoding import offsets
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import TokenizedPrompt, tokenize
from ecstruct.models.provenance import tokenizer_of

Which = str | int | np.integer | slice | Sequence[int] | np.ndarray
"""A group of one prompt's positions: a name of `NAMES`, a position (negative from the end), a slice or a
list of positions."""

Groups = Sequence[str] | Mapping[str, Which]
"""Groups by name: names of `NAMES`, or a mapping from any labels to any groups."""

NAMES = {
    "subject": "all tokens of the subject",
    "subject-first": "its first token",
    "subject-last": "its last token",
    "subject-others": "its tokens between these two",
    "non-subject": "neither of the subject nor last; a BOS token is one of them",
    "last": "the last token, where the answer is predicted",
    "all": "every token",
}


@dataclass(frozen=True)
class RecallPrompt(TokenizedPrompt):
    """A tokenised prompt with the tokens of its `subject`, `None` when they are not known."""

    subject: Span | None = None


def read(model: TransformerBridge, prompts: PromptsLike) -> list[RecallPrompt]:
    """Prompts as the model's own tokenizer reads them, with the tokens of their subjects.

    Raises:
        InputError: a prompt that cannot be used, see `ecstruct.facts.tokens.tokenize`.
    """
    tokenizer = tokenizer_of(model)
    tokenized = tokenize(prompts, tokenizer, n_ctx=model.cfg.n_ctx, with_options=False)
    subjects = _subjects(tokenized, tokenizer)
    return [RecallPrompt(**vars(t), subject=its) for t, its in zip(tokenized, subjects, strict=True)]


def positions(prompt: RecallPrompt, which: Which, *, may_be_empty: bool = False) -> list[int]:
    """The positions of a group, in ascending order.

    Raises:
        InputError: an unknown name, a position outside of the prompt, a group of the subject when the
            prompt has none, or a group without tokens unless it `may_be_empty`.
    """
    n, shown, which = len(prompt.ids), f"{prompt.prompt.text!r}", plain(which)
    if isinstance(which, str):
        if which not in NAMES:
            raise InputError(f"there is no group of positions {which!r}: choose among {', '.join(NAMES)}.")
        found = _named(prompt, which)
        reason = NAMES[which]
    else:
        reason = f"positions {which!r}"
        if isinstance(which, slice):
            found = list(range(n)[which])
        else:
            asked = [which] if isinstance(which, int) else which
            if outside := [p for p in asked if not -n <= p < n]:
                raise InputError(f"there is no position {outside[0]} in the {n} tokens of {shown}.")
            found = sorted({p % n for p in asked})
    if not found and not may_be_empty:
        name = which if isinstance(which, str) else "of positions"
        raise InputError(
            f"the group {name!r} ({reason}) has no token in {shown}: leave it out, or the prompt."
        )
    return sorted(found)


def plain(which: Which) -> str | int | slice | list[int]:
    """A group with all numbers as Python's own.

    Raises:
        InputError: it is none.
    """
    try:
        if isinstance(which, str):
            return which
        if isinstance(which, slice):
            ends = (which.start, which.stop, which.step)
            return slice(*(None if end is None else index(end) for end in ends))
        return index(which) if isinstance(which, int | np.integer) else [index(p) for p in which]
    except TypeError as error:
        raise InputError(
            f"{which!r} is no group of positions: give a name, a position, a slice or a list of positions."
        ) from error


def named(groups: Groups) -> dict[str, Which]:
    """Groups by their labels.

    Raises:
        InputError: there are none, or a label is there twice.
    """
    if isinstance(groups, str):
        groups = (groups,)
    by_label: dict[str, Which] = {}
    by_label.update(groups if isinstance(groups, Mapping) else {name: name for name in groups})
    if not by_label:
        raise InputError(f"groups={groups!r} has no group: choose among {', '.join(NAMES)}.")
    if len(by_label) < len(groups):
        raise InputError(f"groups={groups!r} names a group twice: name each once.")
    return by_label


def _named(prompt: RecallPrompt, name: str) -> list[int]:
    n = len(prompt.ids)
    if name == "last":
        return [n - 1]
    if name == "all":
        return list(range(n))
    start, end = _span(prompt)
    if name == "non-subject":
        return [p for p in range(n - 1) if not start <= p < end]
    parts = {
        "subject": range(start, end),
        "subject-first": [start],
        "subject-last": [end - 1],
        "subject-others": range(start + 1, end - 1),
    }
    return list(parts[name])


def _span(prompt: RecallPrompt) -> Span:
    text, subject = prompt.prompt.text, prompt.prompt.subject
    if subject is None:
        raise InputError(f"the prompt {text!r} has no subject: give it one, or positions instead of names.")
    if prompt.subject is None:
        raise InputError(
            f"the tokens of the subject {subject!r} cannot be told in {text!r} by this tokenizer: use its "
            "fast version, or give positions instead of names."
        )
    return prompt.subject


def _subjects(
    tokenized: Sequence[TokenizedPrompt], tokenizer: PreTrainedTokenizerBase
) -> list[Span | None]:
    if not tokenizer.is_fast:
        return [None] * len(tokenized)
    prompts = [t.prompt for t in tokenized]
    return [
        subject_span(t.prompt.text, t.prompt.subject, of_prompt[: len(t.ids)])
        if t.prompt.subject is not None
        else None
        for t, of_prompt in zip(tokenized, offsets(prompts, tokenizer), strict=True)
    ]
