"""Groups of positions: "subject", "last" and others by name, or positions themselves.

The subject of a prompt is `Prompt.subject`, and its tokens are those that overlap its characters. A token
may be in several groups: where a prompt ends with its subject, its last token is in "subject" and in
"last".

Names can be joined, "subject-last+last", and turned round, "all-but-first": every token but these.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

from ecstruct.errors import InputError
from ecstruct.facts.alignment import Span
from ecstruct.facts.tokens import TokenizedPrompt

Which = str | int | np.integer | slice | Sequence[int] | np.ndarray
"""A group of one prompt's positions: names of `NAMES` joined by "+", the same after "all-but-", a position
(negative from the end), a slice or a list of positions."""

Groups = Sequence[str] | Mapping[str, Which]
"""Groups by name: names of `NAMES`, or a mapping from any labels to any groups."""

NAMES = {
    "subject": "all tokens of the subject",
    "subject-first": "its first token",
    "subject-last": "its last token",
    "subject-others": "its tokens between these two",
    "non-subject": "neither of the subject nor last; a BOS token is one of them",
    "after-subject": "the token after the subject",
    "first": "the first token, BOS or not",
    "last": "the last token, where the answer is predicted",
    "all": "every token",
}
ALL_BUT = "all-but-"


@dataclass(frozen=True)
class RecallPrompt(TokenizedPrompt):
    """A tokenised prompt with the tokens of its `subject`, `None` if they are not known."""

    subject: Span | None = None


def positions(prompt: RecallPrompt, which: Which, *, may_be_empty: bool = False) -> list[int]:
    """Return the positions of a group, in ascending order.

    Raises:
        InputError: an unknown name, a position outside of the prompt, a group of the subject when the
            prompt has none, or a group without tokens unless it `may_be_empty`.
    """
    n, text, which = len(prompt.ids), prompt.prompt.text, plain(which)
    group = f"'of positions' (positions {which!r})"
    if isinstance(which, str):
        names = which.removeprefix(ALL_BUT).split("+")
        found = {p for name in names for p in _named(prompt, name)}
        if which.startswith(ALL_BUT):
            found = {*range(n)} - found
        group = f"{which!r} ({NAMES[which]})" if which in NAMES else repr(which)
    elif isinstance(which, slice):
        found = range(n)[which]
    else:
        asked = [which] if isinstance(which, int) else which
        if outside := [p for p in asked if not -n <= p < n]:
            raise InputError(f"there is no position {outside[0]} in the {n} tokens of {text!r}.")
        found = {p % n for p in asked}
    if not (places := sorted(found)) and not may_be_empty:
        raise InputError(f"the group {group} has no token in {text!r}: leave it out, or the prompt.")
    return places


def plain(which: Which) -> str | int | slice | list[int]:
    """Return a group with all NumPy integers converted to Python's.

    Raises:
        InputError: it is not a group.
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


def as_json(which: Which) -> Any:
    """Return a group as JSON types."""
    found = plain(which)
    return {"slice": [found.start, found.stop, found.step]} if isinstance(found, slice) else found


def named(groups: Groups) -> dict[str, Which]:
    """Return groups by their labels.

    Raises:
        InputError: there are no groups, or a label occurs twice.
    """
    if isinstance(groups, str):
        groups = (groups,)
    by_label = dict(groups if isinstance(groups, Mapping) else {name: name for name in groups})
    if not by_label:
        raise InputError(f"groups={groups!r} has no group: choose among {', '.join(NAMES)}.")
    if len(by_label) < len(groups):
        raise InputError(f"groups={groups!r} names a group twice: name each once.")
    return by_label


def _named(prompt: RecallPrompt, name: str) -> Iterable[int]:
    """Return the positions of the group with one of the names in `NAMES`; raise `InputError` for any other,
    and for a group of the subject if the prompt has none."""
    everything = range(len(prompt.ids))
    if name not in NAMES:
        raise InputError(
            f"there is no group of positions {name!r}: choose among {', '.join(NAMES)}, joined by + if "
            f"they are several, after {ALL_BUT} if they are to be left out."
        )
    if name in ("first", "last", "all"):
        return {"first": everything[:1], "last": everything[-1:], "all": everything}[name]
    text, subject = prompt.prompt.text, prompt.prompt.subject
    if subject is None:
        raise InputError(f"the prompt {text!r} has no subject: give it one, or positions instead of names.")
    if prompt.subject is None:
        raise InputError(
            f"the tokens of the subject {subject!r} cannot be told in {text!r} by this tokenizer: use its "
            "fast version, or give positions instead of names."
        )
    its = everything[slice(*prompt.subject)]
    if name == "non-subject":
        return [p for p in everything[:-1] if p not in its]
    parts = {
        "subject": its,
        "subject-first": its[:1],
        "subject-last": its[-1:],
        "subject-others": its[1:-1],
        "after-subject": everything[its.stop : its.stop + 1],
    }
    return parts[name]
