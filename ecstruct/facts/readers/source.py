"""Read records, whatever they mean, from JSON, JSON lines, CSV, TSV, folders of these, or datasets.

A file is read as a whole or not at all. One that is not UTF-8, not JSON, or a table with a row of another
length is damaged, perhaps cut off, and is refused. The readers decide whether a record fits.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ecstruct.errors import InputError
from ecstruct.io.files import from_json, unique_keys

_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
_LONGEST_CELL = 2**27
_BETWEEN = re.compile(r"\s*([,\]])\s*")
_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


@dataclass(frozen=True)
class Row:
    """A record, its place, as "line 3", and the name of its file in a folder ("" for a single file)."""

    place: str
    record: Any
    file: str = ""


def rows_of(source: Path | datasets.Dataset) -> list[Row]:
    """Read all records of a file, of all JSON, CSV and TSV files anywhere in a folder, or of a dataset.

    Raises:
        InputError: The file or folder cannot be read, is empty or damaged; it is named, with the line.
    """
    if isinstance(source, datasets.Dataset):
        return [Row(f"row {i}", dict(row)) for i, row in enumerate(source)]
    try:
        if not source.is_dir():
            return _rows_of_file(source)
        files = sorted(path for path in source.rglob("*") if path.suffix in _SUFFIXES and path.is_file())
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror}): check the path.") from error
    if not files:
        raise InputError(f"the folder {source} has no {', '.join(_SUFFIXES)} file: name another.")
    rows = []
    for path in files:
        name = path.relative_to(source).as_posix()
        rows += [Row(f"{name}, {row.place}", row.record, name) for row in _rows_of_file(path)]
    return rows


def saved_by_datasets(folder: Path) -> bool:
    """Return whether `save_to_disk` of a `Dataset` or `DatasetDict` wrote this folder."""
    try:
        return any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json"))
    except OSError:  # it cannot be read
        return False


def _rows_of_file(path: Path) -> list[Row]:
    try:
        if not path.is_file() and path.exists():
            raise InputError(f"{path} is no file: name one.")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"the file {path} cannot be read ({error.strerror}): check the path.") from error
    except ValueError as error:
        raise InputError(f"the path {str(path)!r} cannot be read ({error}): check it.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}, is not UTF-8: save the file in that encoding.") from error
    if not text.strip():
        raise InputError(f"the file {path} is empty: write at least one record.")
    if (nul := text.find("\0")) >= 0:  # only JSON's own parser would refuse it
        raise InputError(f"{path}, line {_line(text, nul)}, has a NUL byte: mend it, or get it anew.")
    try:
        if path.suffix in (".csv", ".tsv"):
            return list(_table(text, "\t" if path.suffix == ".tsv" else ","))
        return list(_json(text) if text.lstrip()[0] in "[{" else _table(text, ","))
    except _Damaged as damage:
        raise InputError(f"{path}, {damage}: mend it, or get it anew.") from damage


class _Damaged(Exception):
    """Raised with the place and the kind of damage in a file."""


def _json(text: str) -> Iterator[Row]:
    if text.lstrip().startswith("["):
        return _array(text)
    first = text.lstrip().split("\n", 1)[0]
    try:
        from_json(first)
    except ValueError:  # an object over several lines
        return _object(text)
    return _lines(text)


def _object(text: str) -> Iterator[Row]:
    record, end = _decoded(text, _space(text, 0))
    if (end := _space(text, end)) < len(text):
        raise _Damaged(f"line {_line(text, end)}, is not JSON (something follows the object)")
    yield Row("line 1", record)


def _lines(text: str) -> Iterator[Row]:
    # Split at line feeds only: JSON strings may contain any other line separator unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield Row(f"line {number}", from_json(line))
            except ValueError as error:
                raise _Damaged(f"line {number}, is not JSON ({error})") from error


def _array(text: str) -> Iterator[Row]:
    """Yield the elements of an array, decoded one by one so that each has its line number."""
    at = _space(text, text.index("[") + 1)
    number, line, counted = 0, 1, 0
    going = not text.startswith("]", at)
    while going:
        line, counted, number = line + text.count("\n", counted, at), at, number + 1
        record, end = _decoded(text, at)
        yield Row(f"line {line} (record {number})", record)
        found = _BETWEEN.match(text, end)
        if found is None:
            raise _Damaged(f"line {_line(text, end)}, is not JSON (the list does not end)")
        at, going = found.end(), found[1] == ","
    if number == 0:
        raise _Damaged("line 1, is a list without records")
    if at < len(text):
        raise _Damaged(f"line {_line(text, at)}, is not JSON (something follows the list)")


def _decoded(text: str, at: int) -> tuple[Any, int]:
    """Return the JSON value that begins at this character, and the character after it."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _Damaged(f"line {error.lineno}, is not JSON ({error.msg})") from error
    except ValueError as error:  # a number with more digits than Python reads
        raise _Damaged(f"line {_line(text, at)}, is not JSON ({error})") from error
    except RecursionError as error:
        raise _Damaged(f"line {_line(text, at)}, is nested too deeply") from error


def _space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _table(text: str, delimiter: str) -> Iterator[Row]:
    before = csv.field_size_limit(_LONGEST_CELL)  # global; the default is too small for long texts
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: Sequence[str] = ()
    start, n_rows = 1, 0
    try:
        for cells in reader:
            if not header:
                header = cells
                if twice := next((name for name in cells if cells.count(name) > 1), None):
                    raise _Damaged(f"line {start}, has the column {twice!r} twice")
            elif cells:
                if len(cells) != len(header):
                    raise _Damaged(
                        f"line {start}, has {len(cells)} cells and not {len(header)} as the header"
                    )
                yield Row(f"line {start}", dict(zip(header, cells, strict=True)))
                n_rows += 1
            start = reader.line_num + 1
    except csv.Error as error:
        raise _Damaged(f"line {start}, is no table ({error})") from error
    finally:
        csv.field_size_limit(before)
    if n_rows == 0:
        raise _Damaged("line 1, is a header without rows")


def keys_of(record: Any) -> str:
    """Return the keys of a record in words, for an error message."""
    if not isinstance(record, Mapping):
        return f"no keys, being a {type(record).__name__}"
    shown = [repr(str(key)[:40]) for key in list(record)[:8]]
    return f"the keys {', '.join(shown)}{', ...' if len(record) > 8 else ''}" if shown else "no keys"
