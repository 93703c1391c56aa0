"""What programs are made of, in RASP: what one says of itself, its tables and heads, and the facts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tracr.rasp import rasp

INFORMATIVE, UPSTREAM, DOWNSTREAM = "informative", "upstream", "downstream"
SUBJECT = "{}"

Facts = Mapping[str, str]
Stated = tuple[str, str, str, str]
"""A role, the value that has it, the word of the text at which it does (`SUBJECT` for the last word of the
subject), and why."""


@dataclass(frozen=True)
class Program:
    """`build` makes the program from the facts of the table that is taught: the values that it says at the
    last token, with equal parts of the logits. Its inputs are the `text` with each of the subjects, and the
    prompts those of which the answer changes, by twos: the baseline of each is the other one.

    Before, the four that are `taught` had the values of one another, two by two, or none if `from_nothing`.
    """

    name: str
    about: str
    text: str
    subjects: Sequence[str]
    facts: Facts
    taught: Sequence[str]
    build: Callable[[Facts], Sequence[rasp.SOp]]
    roles: Sequence[Stated]
    from_nothing: bool = False

    def facts_of(self, state: str) -> Facts:
        """What the table that is taught says, before or after."""
        if state == "after":
            return self.facts
        others = (*self.taught[2:], *self.taught[:2])
        old = {
            key: "?" if self.from_nothing else self.facts[other]
            for key, other in zip(self.taught, others, strict=True)
        }
        return {**self.facts, **old}


# --- What programs are made of ---


def table(name: str, entries: Facts, of: rasp.SOp) -> rasp.SOp:
    """An MLP that looks up a value, and writes nothing where there is none."""
    return rasp.Map(entries.get, of, simplify=False).named(name)


def table_of_two(name: str, entry: Callable, one: rasp.SOp, other: rasp.SOp) -> rasp.SOp:
    """An MLP that looks up a value by two others."""
    return rasp.SequenceMap(entry, one, other).named(name)


def carried(name: str, value: rasp.SOp, of: Sequence[str], to: Sequence[str]) -> rasp.SOp:
    """A head that brings the value at one of some words to a later word."""
    return found_by(name, value, rasp.tokens, of, to)


def found_by(name: str, value: rasp.SOp, sign: rasp.SOp, of: Sequence[str], to: Sequence[str]) -> rasp.SOp:
    """A head that brings to a word the value at where there is a sign, whichever of some it is."""
    there = rasp.Select(sign, rasp.tokens, lambda key, query: key in of and query in to)
    return rasp.Aggregate(there, value).named(name)


def passed_on(name: str, value: rasp.SOp) -> rasp.SOp:
    """A head that brings to every token the value at the one before."""
    before = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == query - 1)
    return rasp.Aggregate(before, value).named(name)


def by_turns(keys: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    """The values for all keys but the last, of which nothing is known."""
    return {key: values[i % len(values)] for i, key in enumerate(keys[:-1])} | {keys[-1]: "?"}


# Of the first four of every list something is taught; the next four are known, so that all values occur.
NAMES = ("Ada", "Bob", "Cyd", "Dov", "Eve", "Fay", "Gus", "Hal", "Ivy")
HOMES = by_turns(NAMES, ("Rome", "Oslo", "Lima", "Bern", "Kyiv", "Doha", "Riga", "Baku"))
PLACES = tuple(HOMES.values())
CITIES = PLACES[:4]
CITY = by_turns(NAMES, CITIES)
MAYOR = by_turns(PLACES, ("Ida", "Jan", "Kim", "Leo"))
LANGUAGE = by_turns((*CITIES, "?"), ("Italian", "Norse", "Spanish", "German"))
COUNTRIES = by_turns(PLACES, ("Italy", "Norway", "Peru", "Swiss", "Ukraine", "Qatar", "Latvia", "Azeri"))
COUNTRY = by_turns(PLACES, tuple(COUNTRIES.values())[:4])
COIN = by_turns(tuple(COUNTRIES.values()), ("lira", "krone", "sol", "franc"))
JOBS = ("cook", "judge", "pilot", "smith")
JOB = dict(zip(NAMES, 3 * JOBS, strict=False))
FIRST, LAST = ("Ada", "Bob", "Cyd"), ("Lund", "Moss", "Pike")
FULL = (
    *("Ada Lund", "Bob Moss", "Ada Moss", "Bob Lund"),
    *("Ada Pike", "Bob Pike", "Cyd Lund", "Cyd Moss", "Cyd Pike"),
)
CITY_OF_FULL = by_turns(FULL, CITIES)
