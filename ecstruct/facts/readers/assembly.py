"""Assemble the cases of a file into one fact set: each fact once, with options and derivations.

Facts that contradict one another cannot all be taught. The first one counts; later cases that contradict it
are left out, and so are implications whose known fact contradicts one that is taught or known.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ecstruct.errors import InputError
from ecstruct.facts.fact_set import Derivation, FactSet
from ecstruct.facts.prompt import Prompt, with_options
from ecstruct.facts.readers.case import Case, Implied, Said


@dataclass(frozen=True)
class Skipped:
    """A part of a file that was left out, and the reason."""

    place: str
    reason: str


class _Once:
    """A list of prompts with each text once, and the place where it was said first."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.places: list[str] = []
        self._index: dict[tuple[str, str | None], int] = {}

    def add(self, said: Said, place: str) -> int:
        index = self._index.setdefault(said.prompt.texts, len(self.said))
        if index == len(self.said):
            self.said.append(said)
            self.places.append(place)
        return index

    def against(self, said: Said) -> str | None:
        """Return how a prompt contradicts one in the list, or `None`."""
        index = self._index.get(said.prompt.texts)
        if index is None or self.said[index].prompt.answer == said.prompt.answer:
            return None
        return (
            f"{said.prompt.text[:100]!r} is answered by {said.prompt.answer[:50]!r}, but at "
            f"{self.places[index]} by {self.said[index].prompt.answer[:50]!r}"
        )


def assemble(cases: Sequence[tuple[str, Case]], name: str) -> tuple[FactSet, list[Skipped]]:
    """Return the fact set of cases, given as (place, case), and what was left out as contradictory.

    Raises:
        InputError: There are no facts, or prompts cannot be used with the options that they get.
    """
    facts, known, skipped = _Once(), _Once(), []
    kept: list[tuple[str, Case]] = []
    labelled: dict[str, tuple[set[int], set[int]]] = {}
    for place, case in cases:
        if against := next(filter(None, map(facts.against, case.facts)), None):
            skipped.append(Skipped(place, f"the fact {against}."))
            continue
        kept.append((place, case))
        mine = [facts.add(said, place) for said in case.facts]
        if case.label is not None:
            labelled.setdefault(case.label, (set(), set()))[0].update(mine)
    if not facts.said:
        raise InputError(
            "there is no fact to be taught among its records, only what would follow from one."
        )
    for place, case in kept:
        for said in case.known:
            if against := facts.against(said) or known.against(said):
                skipped.append(Skipped(place, f"the known fact {against}."))
            elif case.label is not None:
                labelled.setdefault(case.label, (set(), set()))[1].add(known.add(said, place))
            else:
                known.add(said, place)
    implications: list[Said] = []
    derivations: list[Derivation] = []
    for place, case, implied in _implied(kept):
        if against := next(
            filter(None, (facts.against(said) or known.against(said) for said in implied.known)), None
        ):
            skipped.append(Skipped(place, f"an implication follows from a known fact, of which {against}."))
            continue
        same_label = labelled.get(case.label or "", (set(), set()))
        from_facts = {facts.add(said, place) for said in case.facts} | same_label[0]
        from_known = {known.add(said, place) for said in implied.known} | same_label[1]
        implications.append(implied.said)
        derivations.append(
            Derivation(tuple(sorted(from_facts)), tuple(sorted(from_known)), implied.new_hops)
        )
    pools = _pools([*facts.said, *known.said, *implications])
    data = FactSet(
        [_asked(said, pools) for said in facts.said],
        [_asked(said, pools) for said in implications],
        name,
        [_asked(said, pools) for said in known.said],
        derivations if any(d != Derivation() for d in derivations) else (),
    )
    return data, skipped


def _implied(cases: Sequence[tuple[str, Case]]) -> Iterator[tuple[str, Case, Implied]]:
    for place, case in cases:
        for implied in case.implied:
            yield place, case, implied


def _pools(everything: Sequence[Said]) -> dict[str, tuple[str, ...]]:
    """Return the answers of every relation, those of all prompts first, then the rivals."""
    answers: dict[str, dict[str, None]] = {}
    for said in everything:
        if said.relation is not None:
            answers.setdefault(said.relation, {})[said.prompt.answer] = None
    for said in everything:
        if said.relation is not None:
            answers[said.relation].update(dict.fromkeys(said.rivals))
    return {relation: tuple(found) for relation, found in answers.items()}


def _asked(said: Said, pools: dict[str, tuple[str, ...]]) -> Prompt:
    if said.prompt.options is not None or said.relation is None:
        return said.prompt
    return with_options(said.prompt, pools[said.relation])
