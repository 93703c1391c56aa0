"""The contents of one record of a file, as a reader returns them: facts, and what follows from them.

A reader turns a record into a `Case`. It does not make options, but says what to make them from: the
`relation` of a statement, as the answers of a relation are options for one another, and `rivals`, other
answers in the record, such as the true answer next to a counterfactual one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ecstruct.facts.prompt import Prompt

Hop = Literal["first", "second"]


@dataclass(frozen=True)
class Statement:
    """A prompt with its answer, and what its options are made from, unless it has some: its `relation`
    (None for no options), and `rivals`, further options."""

    prompt: Prompt
    relation: str | None
    rivals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Implication:
    """An implication of the facts of its case and of `known` facts. `new_hops` are the numbers of its hops
    that are taught, counted from 1; see `ecstruct.facts.Derivation`."""

    statement: Statement
    new_hops: tuple[int, ...] = ()
    known: tuple[Statement, ...] = ()


@dataclass(frozen=True)
class Case:
    """What one record holds: `facts` to be taught, what is `implied` by them, and facts that are `known`.

    Cases with the same `label` belong together: what one of them implies follows from the facts, and from
    the known facts, of all of them."""

    facts: tuple[Statement, ...] = ()
    implied: tuple[Implication, ...] = ()
    known: tuple[Statement, ...] = ()
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


def statement(
    text: str,
    answer: str,
    *,
    subject: str | None = None,
    relation: str | None = None,
    aliases: Iterable[str] = (),
    options: Iterable[str] | None = None,
    rivals: Iterable[str] = (),
) -> Statement:
    """Make a statement from the values in a file, without whitespace around them and without aliases that
    repeat the answer or an option. A subject that is not in the text is dropped. The template is the text
    with {} for its subject or, without a subject, the relation; by default, the relation is the
    template."""
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
    return Statement(prompt, relation or template, tuple(rivals))
