"""Kinds of damage to files: to their contents, to their place, and to single values of JSON."""

import copy
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEEP = 100_000
"""More levels of nesting than any recursive parser can follow."""

LONG = 10_000_000
"""The length of one line, in bytes."""

WRITTEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "blank": lambda _: b" \n\t\n",
    "cut in the middle": lambda good: good[: len(good) // 2],
    "UTF-16": lambda good: good.decode("latin-1").encode("utf-16"),
    "half of a UTF-8 character": lambda good: b"\xc3" + good,
    "latin-1": lambda good: "é".encode("latin-1") + good,
    "NUL bytes": lambda good: bytes(len(good)),
    "NUL bytes at the end": lambda good: good.rstrip() + bytes(512),
    "binary": lambda _: bytes(range(256)) * 8,
    "a pickle": lambda _: pickle.dumps({"prompt": "Mia", "command": "demo", "experiments": ["ocr"]}, 4),
    "one line of 10 MB": lambda _: b"x" * LONG,
    "an open list of 10 MB": lambda _: b"[" + (b'"' + b"x" * 999 + b'",') * (LONG // 1000),
    "lists in lists": lambda _: b"[" * DEEP + b"]" * DEEP,
    "objects in objects": lambda _: b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "null": lambda _: b"null",
    "a number": lambda _: b"7",
    "a number of 10,000 digits": lambda _: b"9" * 10_000,
    "a huge exponent": lambda _: b"1e999",
    "NaN": lambda _: b"NaN",
    "true": lambda _: b"true",
    "a text": lambda _: b'"text"',
    "an empty list": lambda _: b"[]",
    "an empty object": lambda _: b"{}",
    "two objects in a line": lambda _: b"{} {}",
    "HTML": lambda _: b"<!DOCTYPE html><html><body>404: not found</body></html>\n",
    "a pointer of git": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}
"""Functions from the good contents of a file to its damaged contents."""


def _gone(path: Path) -> None:
    if path.is_dir():
        path.rename(path.with_name("elsewhere"))
    else:
        path.unlink(missing_ok=True)


def _folder(path: Path) -> None:
    _gone(path)
    path.mkdir()


def _dangling(path: Path) -> None:
    _gone(path)
    path.symlink_to(path.with_name("nowhere"))


def _loop(path: Path) -> None:
    _gone(path)
    path.symlink_to(path)


PLACED: dict[str, Callable[[Path], None]] = {
    "a folder": _folder,
    "a dangling link": _dangling,
    "a link to itself": _loop,
}
"""Functions that put something else in the place of a file. Even root cannot read a link to itself."""

PATHS: dict[str, Callable[[Path], Path]] = {
    "no file": lambda path: path.with_name("no-such" + path.suffix),
    "below a file": lambda path: path / ("x" + path.suffix),
    "a name that is too long": lambda path: path.with_name("x" * 300 + path.suffix),
}
"""Functions from the path of a good file to a path that cannot be read."""

VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "a number": 7,
    "a fraction": 0.5,
    "a negative number": -3,
    "a huge number": 10**400,
    "infinity": float("inf"),
    "NaN": float("nan"),
    "a text": "text",
    "an empty text": "",
    "half a pair": "\ud800",
    "an empty list": [],
    "a list": [1, None, {"a": []}],
    "an empty object": {},
    "an object": {"a": None},
}


def ways(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of keys to everything inside a value of JSON, except to the value itself."""
    inside = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, found in inside:
        yield (*way, key)
        yield from ways(found, (*way, key))


def put(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of a value of JSON with the value at the end of a path of keys replaced."""
    changed = copy.deepcopy(value)
    holder = changed
    for key in way[:-1]:
        holder = holder[key]
    holder[way[-1]] = new
    return changed


def without(value: Any, way: tuple[Any, ...]) -> Any:
    """Return a copy without the value at the end of a path of keys."""
    changed = copy.deepcopy(value)
    holder = changed
    for key in way[:-1]:
        holder = holder[key]
    del holder[way[-1]]
    return changed


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a file in the format's form: the length of the header, the header, the tensors' bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    """Return a header's entry for one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


DELTA = {"format": "ecstruct-delta-1", "metadata": "{}"}


def _with(entry: Any, data: bytes = b"") -> bytes:
    """Return a delta whose header has this entry for a tensor."""
    return safetensors({"__metadata__": DELTA, "a": entry}, data)


HEADERS: dict[str, bytes] = {
    "a header longer than any file": safetensors({}, length=2**63),
    "a header longer than the file": safetensors({}, length=1000),
    "no header": safetensors(b""),
    "a header of half a line": safetensors(b'{"a": '),
    "a header that is a list": safetensors([]),
    "a header that is nested deeply": safetensors(b"[" * DEEP),
    "a header in UTF-16": safetensors("{}".encode("utf-16")),
    "metadata that is a number": safetensors({"__metadata__": 3}),
    "metadata of numbers": safetensors({"__metadata__": {"format": 1, "metadata": 2}}),
    "another format": safetensors({"__metadata__": {"format": "pt"}}),
    "metadata that is no JSON": safetensors({"__metadata__": {**DELTA, "metadata": "{"}}),
    "metadata that is nested deeply": safetensors({"__metadata__": {**DELTA, "metadata": "[" * DEEP}}),
    "an entry that is a list": _with([]),
    "an entry that is null": _with(None),
    "an entry without a type": _with({"shape": [1], "data_offsets": [0, 4]}, bytes(4)),
    "a shape that is a text": _with(tensor("ab", 0, 4), bytes(4)),
    "a shape of texts": _with(tensor(["1"], 0, 4), bytes(4)),
    "a negative shape": _with(tensor([-1, -1], 0, 4), bytes(4)),
    "a shape of fractions": _with(tensor([1.5], 0, 4), bytes(4)),
    "a tensor of 10**18 numbers": _with(tensor([10**18], 0, 4 * 10**18), bytes(4)),
    "a tensor of 10**400 numbers": _with(tensor([10**400], 0, 4 * 10**400), bytes(4)),
    "a shape that overflows": _with(tensor([2**32, 2**32], 0, 0)),
    "an end before the begin": _with(tensor([1], 4, 0)),
    "a begin before the file": _with(tensor([3], -8, 4), bytes(4)),
    "an end that is infinite": _with(tensor([1], 0, float("inf")), bytes(4)),
    "offsets that are texts": _with(tensor([1], "0", "4"), bytes(4)),
    "a type that is unknown": _with(tensor([1], 0, 4, "Q7"), bytes(4)),
    "a type that is a list": _with(tensor([1], 0, 4, ["F32"]), bytes(4)),
    "bytes behind the tensors": _with(tensor([1], 0, 4), bytes(8)),
    "tensors without bytes": _with(tensor([1], 0, 4)),
}
"""Whole safetensors files with invalid headers."""
