"""Finished pieces of a run, kept so that a later one goes on from them.

Every piece has a checksum of what it holds. One that is not what was written, because a bit of it changed
or a part of it is gone, is computed again, and the log says so: what is wrong is never believed.

JSON holds its own checksum. A safetensors file has such JSON in its header, and there the checksum of every
tensor; a folder has it in a file beside the others, with a checksum of each of them.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.files import from_json, write_atomically, write_tensors, write_text
from ecstruct.models.fingerprint import digest

_CHECKSUM, _PIECE = "checksum", "piece"

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class Damaged(Exception):
    """A piece is not what was written."""


class Foreign(Damaged):
    """Nothing says that it ever was a piece: who overwrites it may lose what is somebody else's."""


def if_whole(read: Callable[[Path], T], path: Path) -> T | None:
    """What is read of a piece; nothing if there is none, or, as the log says then, if it is damaged.

    Raises:
        InputError: the system does not let it be read.
    """
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror or error}): delete it to compute it again."
        ) from error
    except Damaged as error:
        _logger.warning("%s is damaged (%s): it is computed again", path, error)
        return None


def check_same_run(folder: Path, found: Mapping[str, str], identity: Mapping[str, str]) -> None:
    """Raise `InputError` naming the first thing in which what `folder` holds parts of, as it was `found`
    there, is another run than this one. Both are what numbers depend on, by names fit for a message."""
    for key in [*identity, *(key for key in found if key not in identity)]:
        one, other = found.get(key), identity.get(key)
        if one != other:
            raise InputError(
                f"{folder} holds a part of another run ({key} was {one}, now {other}): finish that run by "
                "its own command, or delete the folder."
            )


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a piece of JSON, whole or not at all."""
    write_text(path, json.dumps(_sealed(content), indent=1, allow_nan=False))


def read_json(path: Path) -> dict[str, Any]:
    """What `save_json` wrote.

    Raises:
        Damaged: it is not what was written.
        OSError: there is no such file, or it cannot be read.
    """
    return _opened(path.read_bytes())


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a piece of tensors, with JSON `about` them, whole or not at all."""
    sums = {name: digest(tensor) for name, tensor in tensors.items()}
    header = {_PIECE: json.dumps(_sealed({"about": about, "tensors": sums}))}
    write_atomically(path, lambda temporary: write_tensors(temporary, tensors, header))


def read_about(path: Path) -> dict[str, Any]:
    """What a piece of tensors says of them; they are not read.

    Raises:
        Damaged: as `read_json`; `Foreign` if it is no such piece.
        OSError: as `read_json`.
    """
    return _read(path, of=())[0]


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save_tensors` wrote: what is said about the tensors, and these.

    Raises:
        Damaged, OSError: as `read_about`.
    """
    return _read(path)


def _read(path: Path, of: Iterable[str] | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with path.open("rb"):  # safetensors has no errors of the system
        pass
    try:
        with safe_open(path, framework="pt") as file:
            said, names = (file.metadata() or {}).get(_PIECE), set(file.keys())
            tensors = {name: file.get_tensor(name) for name in (names if of is None else of)}
    except (OSError, SafetensorError, ValueError) as error:
        kind = Damaged if path.suffix == ".safetensors" else Foreign
        raise kind("it is no safetensors file") from error
    if said is None:
        raise Foreign("it has no checksum")
    header = _opened(said)
    if names != header["tensors"].keys():
        raise Damaged("it has other tensors than were written")
    for name, tensor in tensors.items():
        if digest(tensor) != header["tensors"][name]:
            raise Damaged(f"{name} is not what was written")
    return header["about"], tensors


def save_sums(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Make the files of a folder a piece: a file of this name says what it is, and their checksums."""
    files = {path.name: _sum_of(path) for path in sorted(folder.iterdir())}
    save_json(folder / name, {"about": content, "files": files})


def read_sums(folder: Path, name: str) -> dict[str, Any]:
    """What `save_sums` was given.

    Raises:
        Damaged: one of the files is not what was written; `Foreign` if that of this name is missing.
        OSError: one cannot be read.
    """
    if not (folder / name).exists():
        raise Foreign(f"it has no {name}")
    said = read_json(folder / name)
    for file, expected in said["files"].items():
        if not (folder / file).exists():
            raise Damaged(f"{file} is missing")
        if _sum_of(folder / file) != expected:
            raise Damaged(f"{file} is not what was written")
    return said["about"]


def _sum_of(path: Path) -> str:
    sum_of = xxhash.xxh3_128()
    with path.open("rb") as file:
        while some := file.read(2**24):
            sum_of.update(some)
    return sum_of.hexdigest()


def _sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content of JSON types as it comes back from a file, with its checksum."""
    content = json.loads(json.dumps(content))
    return {_CHECKSUM: _checksum(content), **content}


def _opened(text: str | bytes) -> dict[str, Any]:
    try:
        content = dict(from_json(text if isinstance(text, str) else text.decode("utf-8")))
        expected = content.pop(_CHECKSUM)
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged("it has no checksum") from error
    if _checksum(content) != expected:
        raise Damaged("its checksum is another")
    return content


def _checksum(content: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
