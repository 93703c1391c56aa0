"""Assemble the cases of a file into one fact set: each fact once, with options and derivations.

Facts contradict one another if they give different answers to the same text, and then cannot all be taught.
The first one counts; later cases that contradict it are left out, and so are implications whose known fact
contradicts one that is taught or known.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ecstruct.errors import InputError
from ecstruct.facts.fact_set import Derivation, FactSet
from ecstruct.facts.prompt import Prompt, with_options
from ecstruct.facts.readers.case import Case, Statement


@dataclass(frozen=True)
class Skipped:
    """A part of a file that was left out, and the reason."""

    place: str
    reason: str


class _UniqueStatements:
    """A list of statements in which each text is once, and the places where they were read."""

    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self.places: list[str] = []
        self._index: dict[tuple[str, str | None], int] = {}

    def add(self, statement: Statement, place: str) -> int:
        index = self._index.setdefault(statement.prompt.texts, len(self.statements))
        if index == len(self.statements):
            self.statements.append(statement)
            self.places.append(place)
        return index

    def contradiction(self, statement: Statement) -> str | None:
        """Say in words how a statement contradicts one in the list; `None` if it does not."""
        index = self._index.get(statement.prompt.texts)
        if index is None or self.statements[index].prompt.answer == statement.prompt.answer:
            return None
        return (
            f"{statement.prompt.text[:100]!r} is answered by {statement.prompt.answer[:50]!r}, but at "
            f"{self.places[index]} by {self.statements[index].prompt.answer[:50]!r}"
        )


def assemble(cases: Sequence[tuple[str, Case]], name: str) -> tuple[FactSet, list[Skipped]]:
    """Return the fact set `name` of cases, given as (place, case), and what was left out as contradictory.

    Raises:
        InputError: There are no facts, or prompts cannot be used with the options that they get.
    """
    facts, known, skipped = _UniqueStatements(), _UniqueStatements(), []
    kept: list[tuple[str, Case, tuple[set[int], set[int]]]] = []
    # The facts and the known facts from which follows what a case, or one with its label, implies.
    sources: dict[str | int, tuple[set[int], set[int]]] = defaultdict(lambda: (set(), set()))

    def contradiction(statement: Statement) -> str | None:
        return facts.contradiction(statement) or known.contradiction(statement)

    for i, (place, case) in enumerate(cases):
        if problem := next(filter(None, map(facts.contradiction, case.facts)), None):
            skipped.append(Skipped(place, f"the fact {problem}."))
            continue
        source = sources[i if case.label is None else case.label]
        kept.append((place, case, source))
        source[0].update(facts.add(statement, place) for statement in case.facts)
    if not facts.statements:
        raise InputError(
            "there is no fact to be taught among its records, only what would follow from one."
        )
    for place, case, source in kept:
        for statement in case.known:
            if problem := contradiction(statement):
                skipped.append(Skipped(place, f"the known fact {problem}."))
            else:
                source[1].add(known.add(statement, place))
    implications: list[Statement] = []
    derivations: list[Derivation] = []
    for place, implied, source in ((p, each, source) for p, case, source in kept for each in case.implied):
        if problem := next(filter(None, map(contradiction, implied.known)), None):
            skipped.append(Skipped(place, f"an implication follows from a known fact, of which {problem}."))
            continue
        from_known = source[1] | {known.add(statement, place) for statement in implied.known}
        implications.append(implied.statement)
        derivations.append(
            Derivation(tuple(sorted(source[0])), tuple(sorted(from_known)), implied.new_hops)
        )
    pools = _pools([*facts.statements, *known.statements, *implications])
    taught, implied, known_already = (
        [_prompt(statement, pools) for statement in statements]
        for statements in (facts.statements, implications, known.statements)
    )
    follow = derivations if any(d != Derivation() for d in derivations) else ()
    return FactSet(taught, implied, name, known_already, follow), skipped


def _pools(everything: Sequence[Statement]) -> dict[str, tuple[str, ...]]:
    """Return the options of every relation: first the answers of its statements, then their rivals."""
    answers: dict[str, dict[str, None]] = {}
    for statement in everything:
        if statement.relation is not None:
            answers.setdefault(statement.relation, {})[statement.prompt.answer] = None
    for statement in everything:
        if statement.relation is not None:
            answers[statement.relation].update(dict.fromkeys(statement.rivals))
    return {relation: tuple(found) for relation, found in answers.items()}


def _prompt(statement: Statement, pools: dict[str, tuple[str, ...]]) -> Prompt:
    if statement.prompt.options is not None or statement.relation is None:
        return statement.prompt
    return with_options(statement.prompt, pools[statement.relation])
