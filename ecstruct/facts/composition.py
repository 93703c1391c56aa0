"""Build two-hop facts on a relation that a model knows, with made-up people for the other hop.

* The *first* hop is new: "The favorite country of Grace Miller is" -> "France". With the known capital of
  France, it follows that "The capital of the favorite country of Grace Miller is" -> "Paris".
* The *second* hop is new: "The biggest fan of Paris is" -> "Grace Miller". With the same known fact, it
  follows that "The biggest fan of the capital of France is" -> "Grace Miller".

A fact that the model does not know cannot be the known hop: `ecstruct.evaluate.keep_known` drops it.
"""

import os
import re
from collections.abc import Sequence
from typing import get_args

import numpy as np

from ecstruct.errors import InputError
from ecstruct.facts.fact_set import Derivation, FactSet
from ecstruct.facts.paper_lists import paper_lists
from ecstruct.facts.prompt import filled
from ecstruct.facts.readers.case import Hop
from ecstruct.facts.relations import Relation, read_relations
from ecstruct.io.values import bounded

_DEFAULT_FACT = {"first": "The favorite {domain} of {name} is", "second": "The biggest fan of {object} is"}


@bounded
def compose(
    relations: Sequence[Relation] | str | os.PathLike[str],
    *,
    known_relation: str,
    hop: Hop = "first",
    fact: str | None = None,
    mention: str | None = None,
    template: str | None = None,
    names: Sequence[str] | None = None,
    n: int = 20,
    seed: int = 0,
) -> FactSet:
    """Build facts with one new hop on a known relation, and their implications.

    Names are taken in order; `numpy.random.default_rng(seed)` draws which of the relation's samples go
    with them. Subjects with more than one object are left out, and with `hop="second"` every object is
    used once. The options are the answers in the set. Implication i follows from fact i and known fact i.

    Args:
        relations: Relations, or the path of LRE's files.
        known_relation: The name of the known relation.
        hop: The new hop: "first" leads from a person to the subject of the known relation, "second" from
            its object to a person.
        fact: The new fact, as "{name} lives in" (first) or "The mayor of {object} is" (second); its answer
            is the subject, or the name. By default the person's favorite `{domain}`, or the object's fan.
        mention: The words of an implication for the entity between the hops, which is the subject, as "the
            city {name} lives in" (first), or the object, as "the city that contains {subject}" (second).
            By default as in the fact (first) or the known relation (second), if that is "The ... is".
        template: The question for the known relation, with {}; by default its first template.
        names: The people; by default the paper's 100 made-up names.
        n: The largest number of facts.

    Raises:
        InputError: There is no such relation, fewer than two samples, objects or names can be used, or a
            text lacks its place holder or has no default.

    >>> pairs = [("Japan", "Tokyo"), ("Italy", "Rome")]
    >>> data = compose([Relation("capital", ["The capital of {} is"], pairs, "country")],
    ...                known_relation="capital")
    >>> data.facts[0].text, data.implications[0].text
    ('The favorite country of Grace Miller is', 'The capital of the favorite country of Grace Miller is')
    """
    if hop not in get_args(Hop):
        raise InputError(f"hop={hop!r} is unknown: 'first' or 'second'.")
    relation = _named(relations, known_relation)
    ask = _with("{}", relation.templates[0] if template is None else template)
    fact = (fact or _DEFAULT_FACT[hop]).replace("{domain}", relation.domain)
    fact = _with("{name}" if hop == "first" else "{object}", fact)
    of = "{name}" if hop == "first" else "{subject}"
    mention = _with(of, mention or _mention(fact if hop == "first" else ask.replace("{}", of)))
    people = tuple(dict.fromkeys(paper_lists()["names"] if names is None else names))
    pairs = _usable(relation, np.random.default_rng(seed), once=hop == "second")
    size = min(n, len(pairs), len(people))
    chosen = [(name, *pair) for name, pair in zip(people[: max(size, 0)], pairs, strict=False)]
    if size < 2 or len({answer for _, _, answer in chosen}) < 2:
        raise InputError(
            f"{len(pairs)} samples of {known_relation!r}, {len(people)} names and n={n} make no two facts "
            "of different objects: give more."
        )
    named, subjects, objects = zip(*chosen, strict=True)
    labels = [f"{relation.name}, {part}" for part in ("new", "implied", "known")]
    if hop == "first":
        new = filled(fact, named, subjects, None, labels[0], holder="{name}")
        implied = filled(ask.replace("{}", mention), named, objects, None, labels[1], holder="{name}")
    else:
        implication = fact.replace("{object}", mention)
        new = filled(fact, objects, named, None, labels[0], holder="{object}")
        implied = filled(implication, subjects, named, None, labels[1], holder="{subject}")
    known = filled(ask, subjects, objects, None, labels[2])
    derivations = [Derivation((i,), (i,), (1 if hop == "first" else 2,)) for i in range(len(chosen))]
    return FactSet(new, implied, f"{relation.name}, {hop} hop new", known, derivations)


def _named(relations: Sequence[Relation] | str | os.PathLike[str], name: str) -> Relation:
    if isinstance(relations, str | os.PathLike):
        relations = read_relations(relations)
    found = next((relation for relation in relations if relation.name == name), None)
    if found is None:
        there = ", ".join(repr(relation.name) for relation in relations)
        raise InputError(f"there is no relation {name!r} among {there or 'none'}.")
    return found


def _with(holder: str, words: str) -> str:
    if holder not in words:
        raise InputError(f"{words!r} has no {holder}: say where it goes.")
    return words


def _mention(asked: str) -> str:
    """Return the phrase in a question: "the capital of France" for "The capital of France is".

    Raises:
        InputError: the question has another form.
    """
    found = re.fullmatch(r"The (.+) is", asked)
    if found is None:
        raise InputError(f"{asked!r} is no 'The ... is', which names what it asks for: pass mention=.")
    return f"the {found[1]}"


def _usable(relation: Relation, rng: np.random.Generator, *, once: bool) -> list[tuple[str, str]]:
    """Return the samples in random order, without subjects that have several objects; with `once`, each
    object only once."""
    objects: dict[str, set[str]] = {}
    for subject, answer in relation.samples:
        objects.setdefault(subject, set()).add(answer)
    pairs = [(subject, *found) for subject, found in objects.items() if len(found) == 1]
    shuffled = [pairs[i] for i in rng.permutation(len(pairs))]
    if not once:
        return shuffled
    first = {answer: (subject, answer) for subject, answer in reversed(shuffled)}
    return [pair for pair in shuffled if first[pair[1]] == pair]
