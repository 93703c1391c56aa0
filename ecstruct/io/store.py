"""Finished pieces of a run, from which a later run resumes.

A *piece* is a file with a checksum of what it holds, in one format for each kind of content:

    JSON                    `save_json`, `read_json`
    tensors                 `save_tensors`, `read_tensors`: safetensors with JSON about them in its header,
                            the checksum of every tensor included
    labelled arrays         `save_result`, `read_result`: such a piece of tensors, as netCDF takes far
                            longer to write and to read
    files of other formats  `save_sums`, `read_sums`: JSON beside them, with the checksum of each of them

A piece that is damaged or incomplete is computed again, with a warning in the log. A file that never was a
piece belongs to somebody else, and is not overwritten.

`FinishedPieces` is a folder of pieces with the identity of their run; those of another run are refused.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import xarray as xr
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ecstruct.cost import Bar
from ecstruct.errors import InputError
from ecstruct.io.files import (
    digest,
    from_json,
    read_note,
    write_atomically,
    write_note,
    write_tensors,
    write_text,
)
from ecstruct.io.interruption import finishing
from ecstruct.io.netcdf import Result
from ecstruct.io.values import differences

_CHECKSUM, _PIECE = "checksum", "piece"

SHOWN = 5
"""The largest number of differences in a message."""

T = TypeVar("T")
R = TypeVar("R", bound=Result)

_logger = logging.getLogger(__name__)


class Damaged(Exception):
    """A piece differs from what was written."""


class Foreign(Damaged):
    """A file shows no sign of ever having been a piece."""


@dataclass(frozen=True)
class FinishedPieces:
    """The finished pieces of one run in a folder; without a folder, no pieces are kept.

    The file `note` has the `identity`: everything that results depend on, by names that can go into a
    message. It is written with the first piece, so that a run that is refused leaves nothing behind.

    Raises:
        InputError: the folder holds pieces of another run.
    """

    folder: Path | None
    identity: Mapping[str, Any]
    note: str = "identity.json"

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        found = read_note(
            self.folder / self.note, way_out=f"choose another folder, or delete {self.folder}"
        )
        if found is not None:
            check_same_run(self.folder, found, self.identity)

    def claim(self) -> None:
        """Write the identity to the folder, unless it is there."""
        if self.folder is not None and not (path := self.folder / self.note).exists():
            write_note(path, dict(self.identity))

    def find(self, name: str, read: Callable[[Path], T]) -> T | None:
        """Return what `read` returns for the piece in the file `name`; None if it is missing or damaged."""
        return None if self.folder is None else if_whole(read, self.folder / name)

    def keep(self, name: str, save: Callable[..., None], *content: Any) -> None:
        """Write content with `save` as the piece in the file `name`; a SIGTERM waits for that."""
        if self.folder is None:
            return
        with finishing():
            self.claim()
            save(self.folder / name, *content)

    def result(self, name: str, measure: Callable[[], Result]) -> tuple[Result, bool]:
        """Return the result kept under a name, or measure it now; also return whether it is new."""
        file = f"{name.replace(' ', '-')}.safetensors"
        if (found := self.find(file, read_result)) is not None:
            return found, False
        measured = measure()
        self.keep(file, save_result, measured)
        # Read it back, so that new results equal kept ones to the bit.
        return (measured if self.folder is None else read_result(self.folder / file)), True


@dataclass(frozen=True)
class Steps:
    """The steps of a run: the result of each is kept, and advances the bar. The names of all of them begin
    with `part`."""

    bar: Bar
    kept: FinishedPieces = FinishedPieces(None, {})
    part: str = ""

    def of(self, part: str) -> "Steps":
        """Return the steps of a part of the run."""
        return replace(self, part=f"{self.part}{part} ")

    def take(self, name: str, measure: Callable[[], R], cost: int = 1) -> R:
        """Return the result kept under a name, or measure it now; advance the bar by `cost`."""
        found, new = self.kept.result(f"{self.part}{name}", measure)
        self.bar.step(cost, new=new)
        return cast(R, found)


@contextmanager
def stepping(
    progress: bool | Steps,
    total: int,
    name: str,
    kept: FinishedPieces = FinishedPieces(None, {}),
    unit: str = "run",
) -> Iterator[Steps]:
    """Yield the steps of a run that costs `total`, with a bar that is shown with `progress`. The steps of a
    longer run that this one is a part of stand in the place of `progress`, and are yielded."""
    if isinstance(progress, Steps):
        yield progress
        return
    with Bar(total, name, unit=unit, disable=not progress) as bar:
        yield Steps(bar, kept)


def check_same_run(where: Path, found: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Compare the identity that was `found` with that of this run.

    Raises:
        InputError: they differ; the message lists the first differences.
    """
    if differing := list(differences(found, identity)):
        more = [f"{len(differing) - SHOWN} more"] if len(differing) > SHOWN else []
        raise InputError(
            f"{where} holds a part of another run ({'; '.join([*differing[:SHOWN], *more])}): finish that "
            "run by its own command, choose another folder, or delete it."
        )


def if_whole(read: Callable[[Path], T], path: Path) -> T | None:
    """Return what `read` returns for a piece; None if it is missing, or (with a warning) if it is damaged.

    Raises:
        InputError: the system refuses to read it, or it was never a piece.
    """
    try:
        with path.open("rb"):  # the libraries that read pieces hide the system's error
            pass
        return read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror or error}): delete it to compute it again."
        ) from error
    except Foreign as error:
        raise InputError(
            f"{path} is no checkpoint of ecstruct ({error}): delete it to begin anew."
        ) from error
    except Damaged as error:
        _logger.warning("%s is damaged (%s): it is computed again", path, error)
        return None


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a piece of JSON, atomically."""
    write_text(path, json.dumps(_sealed(content), indent=1, allow_nan=False))


def read_json(path: Path) -> dict[str, Any]:
    """Read a piece of `save_json`.

    Raises:
        Damaged: it differs from what was written.
        OSError: it cannot be read.
    """
    return _opened(path.read_bytes())


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a piece of tensors, with JSON `about` them, atomically."""
    sums = {name: digest(tensor) for name, tensor in tensors.items()}
    header = {_PIECE: json.dumps(_sealed({"about": about, "tensors": sums}))}
    write_atomically(path, lambda temporary: write_tensors(temporary, tensors, header))


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a piece of `save_tensors`: the JSON about the tensors, and the tensors.

    Raises:
        Damaged: it differs from what was written; `Foreign` if it is no such piece.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = (file.metadata() or {}).get(_PIECE)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        kind = Damaged if path.suffix == ".safetensors" else Foreign
        raise kind("it is no safetensors file") from error
    if said is None:
        raise Foreign("it has no checksum")
    header = _opened(said)
    if tensors.keys() != header["tensors"].keys():
        raise Damaged("it has other tensors than were written")
    for name, tensor in tensors.items():
        if digest(tensor) != header["tensors"][name]:
            raise Damaged(f"{name} is not what was written")
    return header["about"], tensors


def save_result(path: Path, result: Result) -> None:
    """Write a piece of labelled arrays, atomically: numbers as tensors, and text in the JSON about them."""
    form, numbers = result.to_dict(data="array"), {}
    for name, array in _arrays_of(form):
        values = array.pop("data")
        if values.dtype.kind in "biuf":
            numbers[name] = torch.from_numpy(values.copy(order="C"))
        else:
            array |= {"text": [*map(str, values.ravel())], "shape": values.shape}
    save_tensors(path, numbers, form)


def read_result(path: Path) -> Result:
    """Read a piece of `save_result`.

    Raises:
        Damaged: it differs from what was written; `Foreign` if it is no such piece.
    """
    form, numbers = read_tensors(path)
    for name, array in _arrays_of(form):
        if name in numbers:
            array["data"] = numbers[name].numpy()
        else:
            array["data"] = np.array(array.pop("text"), dtype=str).reshape(array.pop("shape"))
    return (xr.Dataset if "data_vars" in form else xr.DataArray).from_dict(form)


def _arrays_of(form: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the arrays in what xarray calls the dictionary form of a result, by name; without one if the
    result is a single array."""
    yield from form["coords"].items()
    yield from form["data_vars"].items() if "data_vars" in form else [("", form)]


def save_sums(path: Path, about: Mapping[str, Any]) -> None:
    """Make the files in a folder a piece: write `about` and their checksums to `path` in it."""
    save_json(path, {"about": about, "files": {f.name: _sum_of(f) for f in sorted(path.parent.iterdir())}})


def read_sums(path: Path) -> dict[str, Any]:
    """Check the files of `save_sums`; return what it was given about them.

    Raises:
        Damaged: a file is missing or differs from what was written.
        OSError: a file cannot be read.
    """
    said = read_json(path)
    for name, expected in said["files"].items():
        if not (file := path.with_name(name)).exists():
            raise Damaged(f"{name} is missing")
        if _sum_of(file) != expected:
            raise Damaged(f"{name} is not what was written")
    return said["about"]


def _sum_of(path: Path) -> str:
    sum_of = xxhash.xxh3_128()
    with path.open("rb") as file:
        while some := file.read(2**24):
            sum_of.update(some)
    return sum_of.hexdigest()


def _sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return content as JSON would read it back, with its checksum."""
    content = json.loads(json.dumps(content))
    return {_CHECKSUM: _checksum(content), **content}


def _opened(text: str | bytes) -> dict[str, Any]:
    """Check and remove the checksum that `_sealed` added; return the content."""
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
