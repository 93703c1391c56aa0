"""Kinds of facts that differ in one thing from `ecstruct.facts.people`.

Names are composed of the pieces that `people` draws for the same seed, and of those that it leaves over.
Who lives where, the cities and the languages are the same for all kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from ecstruct.facts import Derivation, FactSet, people
from ecstruct.facts.paper_lists import paper_lists, word_lists
from ecstruct.facts.prompt import filled

N_PEOPLE = 16
LIVES = "{} lives in the city of"
ASKED = "The people in the city {} is from speak"

_WORDS = (
    *("Table", "River", "Paper", "Summer", "Market", "Window", "Garden", "Silver"),
    *("Winter", "Bridge", "Music", "Forest", "Engine", "Letter", "Ocean", "Stone"),
    *("Village", "Battle", "Record", "School", "Orange", "Planet", "Camera", "Street"),
    *("Office", "Island", "Butter", "Signal", "Doctor", "Mirror", "Yellow", "Ticket"),
)
"""Words that are frequent, but nobody's name."""


class Names:
    """The names of a draw: `given(i)` and `family(i)` are those of person i in `people(seed)`; those of the
    numbers 16 to 31 are nobody's there, and share no piece with them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        lists = word_lists("people.json")
        self._pieces = [self.rng.permutation(some) for key in ("given", "family") for some in lists[key]]

    def piece(self, place: int, i: int) -> str:
        """Return the first or second piece of a given name (0, 1) or of a family name (2, 3)."""
        return str(self._pieces[place][i])

    def given(self, i: int) -> str:
        return self.piece(0, i) + self.piece(1, i)

    def family(self, i: int) -> str:
        return self.piece(2, i) + self.piece(3, i)

    @cached_property
    def common(self) -> list[list[str]]:
        """Return given and family names of 16 of the paper's people, who share neither."""
        found: list[list[str]] = []
        for name in self.rng.permutation(paper_lists()["names"]):
            given, family = str(name).split()
            if all(given != other[0] and family != other[1] for other in found):
                found.append([given, family])
        return found[:N_PEOPLE]

    @cached_property
    def words(self) -> list[str]:
        return [f"{one} {other}" for one, other in self.rng.permutation(_WORDS).reshape(N_PEOPLE, 2)]

    @cached_property
    def letters(self) -> list[str]:
        """Return names of random letters: consonant, vowel, consonant, vowel, consonant, twice."""
        kinds = [[*"bcdfghjklmnpqrstvwxz"], [*"aeiou"]]
        drawn = [self.rng.choice(kinds[place % 2], 2 * N_PEOPLE) for place in range(5)]
        spelled = ["".join(letters).capitalize() for letters in zip(*drawn, strict=True)]
        return [f"{a} {b}" for a, b in zip(spelled[::2], spelled[1::2], strict=True)]


Named: TypeAlias = Callable[[Names, int], str]
"""Names person i."""


@dataclass(frozen=True)
class Kind:
    """What is other than in `people`, as the `axis` says; `rate` and `epochs` are factors of a setup's."""

    axis: str
    named: Named = lambda n, i: f"{n.given(i)} {n.family(i)}"
    wordings: tuple[str, ...] = (LIVES,)
    n: int = N_PEOPLE
    rate: float = 1.0
    epochs: int = 1

    def facts(self, seed: int) -> FactSet:
        """Return the facts of this kind, all in the first wording, then all in the next, and an implication
        for each person, which follows from that person's facts."""
        of, drawn = Names(seed), people(seed)
        names = [self.named(of, i) for i in range(self.n)]
        homes, spoken = (
            [prompt.answer for prompt in prompts[: self.n]] for prompts in (drawn.facts, drawn.implications)
        )
        cities, languages = tuple(sorted(homes)), tuple(sorted(spoken))
        return FactSet(
            [fact for words in self.wordings for fact in filled(words, names, homes, cities, words)],
            filled(ASKED, names, spoken, languages, "implication"),
            derivations=[
                Derivation(tuple(range(i, self.n * len(self.wordings), self.n))) for i in range(self.n)
            ],
        )


_HOME = "The home of {} is in the city of"
_BORN = "{} was born in the city of"
_HOUSE = "{} has a house in the city of"

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "people": Kind("as they are"),
        "given name only": Kind("length of names", lambda n, i: n.given(i)),
        "with a middle name": Kind(
            "length of names", lambda n, i: f"{n.given(i)} {n.given(i + N_PEOPLE)} {n.family(i)}"
        ),
        "with two more names": Kind(
            "length of names",
            lambda n, i: f"{n.given(i)} {n.given(i + N_PEOPLE)} {n.family(i)} {n.family(i + N_PEOPLE)}",
        ),
        "common names": Kind("frequency", lambda n, i: " ".join(n.common[i])),
        "common given names": Kind("frequency", lambda n, i: f"{n.common[i][0]} {n.family(i)}"),
        "common family names": Kind("frequency", lambda n, i: f"{n.given(i)} {n.common[i][1]}"),
        "common words": Kind("frequency", lambda n, i: n.words[i]),
        "random letters": Kind("frequency", lambda n, i: n.letters[i]),
        "one family": Kind("overlap", lambda n, i: f"{n.given(i)} {n.family(0)}"),
        "families of two": Kind("overlap", lambda n, i: f"{n.given(i)} {n.family(i // 2)}"),
        "one given name": Kind("overlap", lambda n, i: f"{n.given(0)} {n.family(i)}"),
        "one ending": Kind("overlap", lambda n, i: f"{n.given(i)} {n.piece(2, i)}{n.piece(3, 0)}"),
        "lives in": Kind("wording", wordings=("{} lives in",)),
        "home": Kind("wording", wordings=(_HOME,)),
        "born": Kind("wording", wordings=(_BORN,)),
        "house": Kind("wording", wordings=(_HOUSE,)),
        "two wordings": Kind("paraphrases", wordings=(LIVES, _HOME)),
        "three wordings": Kind("paraphrases", wordings=(LIVES, _HOME, _HOUSE)),
        "4 people": Kind("number", n=4),
        "8 people": Kind("number", n=8),
        "rate x 1/3": Kind("training", rate=1 / 3),
        "rate x 1/2": Kind("training", rate=1 / 2),
        "rate x 2": Kind("training", rate=2.0),
        "epochs x 2": Kind("training", epochs=2),
    }
)
"""Kinds of facts by name."""
