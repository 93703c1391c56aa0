"""What one record of a file says: facts, and what follows from them.

A reader turns a record into a `Case`. Options are not its business, but what they are made of is: the
`relation` of a prompt, whose answers compete with one another, and `rivals`, other answers that the record
itself brings, as the true one beside a counterfactual one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ecstruct.facts.prompt import Prompt

Hop = Literal["first", "second"]


@dataclass(frozen=True)
class Said:
    """A prompt, and which prompts it shares its options with. One that has options keeps them."""

    prompt: Prompt
    relation: str | None
    rivals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Implied:
    """What follows from the facts of its case and from `known` ones; which hops are new, from 1."""

    said: Said
    new_hops: tuple[int, ...] = ()
    known: tuple[Said, ...] = ()


@dataclass(frozen=True)
class Case:
    """Facts to be taught and their implications. Implications that follow from facts of other records
    have the same `label` as these."""

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
    """One public format: how a record of it is recognised, and what it says.

    `case` gets the record, the name of its file within the folder that is read ("" for a single file)
    and, for a format with `either_hop`, which hop is to be new. It raises `InputError` about a record
    that does not fit. `parts` cuts a record into several, each with a word about its place; `left_out`
    says why a file of a folder is not read.
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
    """A prompt as it is in a file, with the whitespace at its ends gone, and of its aliases those that
    say something. Its template is the text without its subject, which does not have to be in it, and
    its relation is by default its template."""
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
