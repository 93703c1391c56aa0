"""Read values of a record by their keys, and check their types.

Records may come from anywhere, so every access says what is wrong and under which keys.
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, cast

from ecstruct.errors import InputError

_TYPES = {str: "a text", list: "a list", Mapping: "an object"}
_ESCAPE = re.compile(r"\\u(?!d[89a-f])([0-9a-f]{4})", re.IGNORECASE)  # but no surrogates
_LONGEST = 1_000_000
"""The most characters of a list in a table cell; parsing takes many times as many bytes."""


def text(record: Mapping[str, Any], *keys: str | int) -> str:
    """Return the non-empty text under nested keys.

    Raises:
        InputError: There is none.
    """
    found = _value(record, keys, str)
    if not found.strip():
        raise InputError(f"{_path(keys)} is empty.")
    return found


def items(record: Mapping[str, Any], *keys: str | int) -> list[Any]:
    """Return the list under nested keys, such as `items(record, "a", 0, "b")` for `record["a"][0]["b"]`.

    Raises:
        InputError: There is none.
    """
    return _value(record, keys, list)


def texts(record: Mapping[str, Any], *keys: str | int) -> list[str]:
    """Return the list of texts under nested keys.

    Raises:
        InputError: There is none.
    """
    return _items_of(record, keys, str, "texts")


def objects(record: Mapping[str, Any], *keys: str | int) -> list[Mapping[str, Any]]:
    """Return the list of objects under nested keys.

    Raises:
        InputError: There is none.
    """
    return _items_of(record, keys, Mapping, "objects")


def _items_of(record: Mapping[str, Any], keys: tuple[str | int, ...], kind: Any, called: str) -> list[Any]:
    found = items(record, *keys)
    if not all(isinstance(value, kind) for value in found):
        raise InputError(f"{_path(keys)} is no list of {called}.")
    return found


def aliases(record: Mapping[str, Any], *keys: str) -> list[str]:
    """Return the aliases under nested keys, of which the last may be missing. They may be a list of texts
    or, as in tables, a list of lists of texts, or either in Python's notation.

    Raises:
        InputError: There is something else.
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
    """Return a list of texts, `None` if it is missing. In a table it is a JSON list or separated by `|`.

    Raises:
        InputError: There is something else.
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
    r"""Return a text with doubly escaped characters decoded, which LRE's files have ("Bras\\u00edlia")."""
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
