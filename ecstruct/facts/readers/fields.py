"""Values of a record, by their keys and of the type they must have.

Records come from anywhere: every access says what is wrong, with the keys that lead there.
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, cast

from ecstruct.errors import InputError

_TYPES = {str: "a text", list: "a list", Mapping: "an object"}
_ESCAPE = re.compile(r"\\u(?!d[89a-f])([0-9a-f]{4})", re.IGNORECASE)  # but no half of a pair
_LONGEST = 1_000_000
"""Characters of a list within a table that are still read; a parser needs many times as many bytes."""


def text(record: Mapping[str, Any], *keys: str | int) -> str:
    """The text under one key after the other, not empty.

    Raises:
        InputError: there is none.
    """
    found = _value(record, keys, str)
    if not found.strip():
        raise InputError(f"{_path(keys)} is empty.")
    return found


def items(record: Mapping[str, Any], *keys: str | int) -> list[Any]:
    """The list under one key after the other.

    Raises:
        InputError: there is none.
    """
    return _value(record, keys, list)


def texts(record: Mapping[str, Any], *keys: str | int) -> list[str]:
    """A list of texts.

    Raises:
        InputError: there is none.
    """
    found = items(record, *keys)
    if not all(isinstance(value, str) for value in found):
        raise InputError(f"{_path(keys)} is no list of texts.")
    return found


def objects(record: Mapping[str, Any], *keys: str | int) -> list[Mapping[str, Any]]:
    """A list of objects.

    Raises:
        InputError: there is none.
    """
    found = items(record, *keys)
    if not all(isinstance(value, Mapping) for value in found):
        raise InputError(f"{_path(keys)} is no list of objects.")
    return found


def aliases(record: Mapping[str, Any], *keys: str) -> list[str]:
    """The aliases under the last of the keys, if there are any: a list of texts or, as tables have it,
    of lists of texts, or Python's notation of either.

    Raises:
        InputError: there is something else.
    """
    *way, last = keys
    holder = _value(record, tuple(way), Mapping) if way else record
    found = holder.get(last)
    if isinstance(found, str):
        found = _literal(found, keys) if found.strip() not in ("", "nan") else None
    if found is None:
        return []
    if isinstance(found, list):
        flat = [a for group in found for a in (group if isinstance(group, list | tuple) else [group])]
        if all(isinstance(alias, str) for alias in flat):
            return flat
    raise InputError(f"{_path(keys)} is no list of texts.")


def string_list(record: Mapping[str, Any], key: str) -> list[str] | None:
    """A list of texts that may be missing: in a table as a JSON list, or parted by `|`.

    Raises:
        InputError: there is something else.
    """
    found = record.get(key)
    if isinstance(found, str):
        if not found.strip():
            return None
        found = _json_list(found, key) if found.lstrip().startswith("[") else found.split("|")
    if found is None:
        return None
    if not isinstance(found, list | tuple) or not all(isinstance(value, str) for value in found):
        raise InputError(f"{key!r} is no list of texts.")
    return list(found)


def unescaped(written: str) -> str:
    r"""A text without escapes that were escaped once more, as files of LRE have them ("Bras\\u00edlia")."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), written)


def _literal(written: str, keys: tuple[str | int, ...]) -> Any:
    if len(written) > _LONGEST:
        raise InputError(f"{_path(keys)} is a list of {len(written)} characters, more than {_LONGEST}.")
    try:
        return ast.literal_eval(written)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(f"{_path(keys)} is no list of texts.") from error


def _json_list(written: str, key: str) -> Any:
    try:
        return json.loads(written)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{key!r} begins as a JSON list but is none.") from error


def _value(record: Mapping[str, Any], keys: tuple[str | int, ...], kind: Any) -> Any:
    found: Any = record
    for i, key in enumerate(keys):
        if isinstance(key, int):
            there = isinstance(found, list) and key < len(found)
        else:
            there = isinstance(found, Mapping) and key in found
        if not there:
            raise InputError(f"there is no {_path(keys[: i + 1])}.")
        found = cast(Any, found)[key]
    if not isinstance(found, kind):
        raise InputError(f"{_path(keys)} is of type {type(found).__name__}, but must be {_TYPES[kind]}.")
    return found


def _path(keys: tuple[str | int, ...]) -> str:
    return repr(".".join(map(str, keys)))
