"""Read the original files of public sets, and files in ecstruct's own format, as a `FactSet`.

`read` recognises a format by the keys of its records. One small module per format says how to understand
a record; docs/data.md has a table of these. All formats share the following rules:

* A damaged file is refused as a whole. A record that does not fit is left out, and listed with its
  line and the reason.
* If a set gives no options, they are the answers to all prompts of the same relation (of the same template,
  if the set names no relations), without aliases of the right answer; if these are fewer than two, all
  answers of the set.
* Every fact is there once. A record with a fact that contradicts an earlier one is left out.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import datasets

from ecstruct.errors import InputError
from ecstruct.facts.fact_set import FactSet
from ecstruct.facts.readers.assembly import Skipped, assemble
from ecstruct.facts.readers.case import Case, Format, Hop
from ecstruct.facts.readers.easyedit import EASYEDIT, ZSRE
from ecstruct.facts.readers.inference import NLI, PAIRS
from ecstruct.facts.readers.instructions import ALPACA, MESSAGES
from ecstruct.facts.readers.lre import LRE
from ecstruct.facts.readers.mquake import MQUAKE
from ecstruct.facts.readers.own import OWN
from ecstruct.facts.readers.reversal import PARENTS, REVERSAL
from ecstruct.facts.readers.rippleedits import RIPPLEEDITS
from ecstruct.facts.readers.rome import COUNTERFACT, KNOWN_1000
from ecstruct.facts.readers.source import Row, keys_of, rows_of, saved_by_datasets
from ecstruct.facts.readers.two_hop_tables import HOPPING, TWO_HOP_FACT
from ecstruct.io.values import shortened

FORMATS = {
    format.name: format
    for format in (
        MQUAKE,
        RIPPLEEDITS,
        TWO_HOP_FACT,
        HOPPING,
        COUNTERFACT,
        KNOWN_1000,
        LRE,
        REVERSAL,
        PARENTS,
        EASYEDIT,
        ZSRE,
        ALPACA,
        MESSAGES,
        NLI,
        PAIRS,
        OWN,
    )
}
_LOOKED_AT = 20
"""The number of records that are used to recognise a format; the first alone might not fit."""

_log = logging.getLogger(__name__)

Source = str | os.PathLike[str] | datasets.Dataset | datasets.DatasetDict


@dataclass(frozen=True)
class Understood:
    """What was read from a source: its format, the number of records, the facts, and what was left out."""

    source: str
    format: str
    records: int
    data: FactSet
    skipped: tuple[Skipped, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the account as JSON types, with numbers of prompts instead of the prompts."""
        hops = Counter(d.new_hops for d in self.data.derivations)
        return {
            "source": self.source,
            "format": self.format,
            "records": self.records,
            "facts": len(self.data.facts),
            "implications": len(self.data.implications),
            "known": len(self.data.known),
            "new_hops": [{"hops": list(h), "implications": hops[h]} for h in sorted(hops)],
            "skipped": [{"place": s.place, "reason": s.reason} for s in self.skipped],
        }


def read(
    path: Source, format: str | None = None, *, hop: Hop | None = None, strict: bool = False
) -> FactSet:
    """Read the facts of a file, a folder or a dataset, with their implications.

    If records do not fit, their number is logged as a warning; `understand` lists them.

    Args:
        path: A file (JSON, JSON lines, CSV, TSV), a folder of these or one to which a dataset was saved,
            or a dataset. A `DatasetDict` has the splits of `FactSet.to_dataset`.
        format: One of `FORMATS`; by default it is recognised from the records.
        hop: Which hop is new, "first" (the default) or "second", in sets that leave it open
            (twohopfact, hopping).
        strict: Refuse the file instead of leaving anything out.

    Raises:
        InputError: The source cannot be read or is damaged, its format is unknown or a different one, no
            record fits, with `strict` some do not, or `hop` is given but the set itself determines it.
    """
    return understand(path, format, hop=hop, strict=strict).data


def understand(
    path: Source, format: str | None = None, *, hop: Hop | None = None, strict: bool = False
) -> Understood:
    """Read a source as `read` does, and return its facts with an account of what was left out.

    Raises:
        InputError: As for `read`.
    """
    source, name = _opened(path)
    if isinstance(source, datasets.DatasetDict):
        data = FactSet.from_dataset(source)
        n = sum(map(len, (data.facts, data.implications, data.known)))
        return Understood(name, "fact set", n, data, ())
    rows = rows_of(source)
    chosen = _chosen(rows, name, format)
    if hop is not None and (not chosen.either_hop or hop not in get_args(Hop)):
        either = " or ".join(f.name for f in FORMATS.values() if f.either_hop)
        raise InputError(
            f"hop={hop!r} does not go with {name}, which is {chosen.name}: it is 'first' or 'second', "
            f"and for {either} only."
        )
    cases: list[tuple[str, Case]] = []
    skipped: list[Skipped] = []
    for found in _cases(rows, chosen, hop or "first"):
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            cases.append(found)
    if not cases:
        raise InputError(f"no record of {name} fits {chosen.name}; {_first(skipped)}")
    try:
        data, contradicting = assemble(cases, source.stem if isinstance(source, Path) else "")
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    skipped += contradicting
    if skipped and strict:
        raise InputError(
            f"{len(skipped)} of the records of {name} cannot be read as {chosen.name}; {_first(skipped)}"
        )
    if skipped:
        _log.warning("records of %s that are left out: %d; %s", name, len(skipped), _first(skipped))
    return Understood(name, chosen.name, len(rows), data, tuple(skipped))


def _opened(path: Source) -> tuple[Path | datasets.Dataset | datasets.DatasetDict, str]:
    """Return a source, loaded if a dataset was saved there, and its name in messages."""
    if isinstance(path, datasets.Dataset | datasets.DatasetDict):
        return path, "the dataset"
    if not isinstance(path, str | os.PathLike):
        raise InputError(
            f"a {type(path).__name__} cannot be read: pass the path of a file or a folder, or a dataset."
        )
    folder = Path(path)
    if not saved_by_datasets(folder):
        return folder, str(folder)
    try:
        return datasets.load_from_disk(str(folder)), str(folder)
    except Exception as error:  # a damaged file may raise any kind of error in there
        raise InputError(f"the dataset in {folder} cannot be read ({error}): save it anew.") from error


def _chosen(rows: list[Row], name: str, wanted: str | None) -> Format:
    """Return the format that is `wanted`, or else the first one that recognises one of the first
    records."""
    if wanted is not None:
        aliases = {**FORMATS, "socrates": TWO_HOP_FACT, "knowedit": EASYEDIT}
        if wanted.lower() not in aliases:
            raise InputError(f"the format {wanted!r} is unknown: choose among {', '.join(FORMATS)}.")
        return aliases[wanted.lower()]
    if not rows:
        raise InputError(f"{name} has no records: write at least one.")
    looked_at = [row.record for row in rows[:_LOOKED_AT] if isinstance(row.record, Mapping)]
    for format in FORMATS.values():
        if any(map(format.recognises, looked_at)):
            return format
    raise InputError(
        f"{name} is in none of the formats {', '.join(FORMATS)}: its first record has "
        f"{keys_of(rows[0].record)}; docs/data.md says what each has."
    )


def _cases(rows: list[Row], format: Format, hop: Hop) -> Iterator[tuple[str, Case] | Skipped]:
    """Yield every case with its place, or why a record, or all of a file, is left out."""
    left_out: set[str] = set()
    for row in rows:
        if row.file and (reason := format.left_out(row.file)):
            if row.file not in left_out:
                left_out.add(row.file)
                yield Skipped(row.file, reason)
        elif not isinstance(row.record, Mapping) or not format.recognises(row.record):
            missing = ", ".join(map(repr, sorted(format.keys)))
            yield Skipped(row.place, f"it has {keys_of(row.record)}, but needs {missing}.")
        else:
            yield from _parts(row, format, hop)


def _parts(row: Row, format: Format, hop: Hop) -> Iterator[tuple[str, Case] | Skipped]:
    """Do as `_cases` for one record, which some formats split into several."""
    place = row.place
    try:
        for part, record in format.parts(row.record):
            place = f"{row.place}, {part}" if part else row.place
            try:
                yield place, format.case(record, row.file, hop)
            except InputError as error:
                yield _skipped(place, error)
    except InputError as error:
        yield _skipped(place, error)


def _skipped(place: str, error: InputError) -> Skipped:
    return Skipped(place, shortened(" ".join(str(error).split()), 500))


def _first(skipped: list[Skipped]) -> str:
    return f"the first: {skipped[0].place}: {skipped[0].reason}"
