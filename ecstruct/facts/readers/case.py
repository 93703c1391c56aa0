"""The contents of one record of a file: facts, and what follows from them.

A reader turns a record into a `Case`. It does not make options, but gives what they are made from: the
`relation` of a prompt, whose answers are options for one another, and `rivals`, other answers in the
record, such as the true answer next to a counterfactual one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ecstruct.facts.prompt import Prompt

Hop = Literal["first", "second"]


@dataclass(frozen=True)
class Said:
    """A prompt, and the relation whose prompts share their options. A prompt with options keeps them."""

    prompt: Prompt
    relation: str | None
    rivals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Implied:
    """An implication of the facts of its case and of `known` ones. `new_hops` are counted from 1."""

    said: Said
    new_hops: tuple[int, ...] = ()
    known: tuple[Said, ...] = ()


@dataclass(frozen=True)
class Case:
    """Facts to be taught, and their implications. Implications of facts in other records have the same
    `label` as these."""

    facts: tuple[Said, ...] = ()
    implied: tuple[Implied, ...] = ()
    known: tuple[Said, ...] = ()
    label: str | None = None


def _whole(record: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    return [("", record)]


def _any_file(name: str) -> str | None:
    return None


@dataclass(frozen=True)
class Format:
    """A public format: how to recognise its records, and how to read them.

    A record of the format has all `keys`. `case` receives the record, the name of its file within the
    folder that is read ("" for a single file) and, for a format with `either_hop`, which hop should be new.
    It raises `InputError` for a record that does not fit. `parts` splits a record into several, each with
    its place; `left_out` returns why a file of a folder is not read, or `None`.
    """

    name: str
    title: str
    keys: frozenset[str]
    case: Callable[[Mapping[str, Any], str, Hop], Case]
    either_hop: bool = False
    parts: Callable[[Mapping[str, Any]], Iterable[tuple[str, Mapping[str, Any]]]] = _whole
    left_out: Callable[[str], str | None] = _any_file

    def recognises(self, record: Mapping[str, Any]) -> bool:
        return self.keys <= record.keys()


def said(
    text: str,
    answer: str,
    *,
    subject: str | None = None,
    relation: str | None = None,
    aliases: Iterable[str] = (),
    options: Iterable[str] | None = None,
    rivals: Iterable[str] = (),
) -> Said:
    """Make a prompt from the values in a file, without whitespace around them and without aliases that
    add nothing. A subject that is not in the text is dropped. The template is the text without its
    subject, or else the relation; by default, the relation is the template."""
    text, answer = text.rstrip(), answer.strip()
    subject = subject if subject and subject in text else None
    template = relation if subject is None else text.replace(subject, "{}", 1)
    others = dict.fromkeys(stripped for alias in aliases if (stripped := alias.strip()))
    others.pop(answer, None)
    given = None if options is None else tuple(dict.fromkeys(option.strip() for option in options))
    prompt = Prompt(
        text,
        answer,
        given,
        subject,
        template,
        tuple(alias for alias in others if alias not in (given or ())),
    )
    return Said(prompt, relation or template, tuple(rivals))
