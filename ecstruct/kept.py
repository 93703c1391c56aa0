"""Finished results of a run that goes on, as netCDF files in a folder."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import xarray as xr

from ecstruct import netcdf
from ecstruct.cost import Bar
from ecstruct.errors import InputError
from ecstruct.files import from_json, write_text
from ecstruct.interruption import finishing
from ecstruct.pieces import check_same_run

Result = xr.DataArray | xr.Dataset

T = TypeVar("T", bound=Result)

_FORMAT = "ecstruct part 1"
_IDENTITY = "identity.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """Finished results of one run in a folder, until all of them are there; without a folder none is kept.

    DIR/identity.json    what the numbers depend on, by names that are fit for a message
    DIR/NAME.nc          a result

    Raises:
        InputError: the folder holds results of another run.
    """

    folder: Path | None
    identity: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        path = self.folder / _IDENTITY
        if path.exists():
            try:
                found = dict(from_json(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                raise InputError(f"{path} is damaged: delete {self.folder} to begin anew.") from error
            check_same_run(self.folder, found, self.identity)

    def result(self, name: str, measure: Callable[[], Result]) -> tuple[Result, bool]:
        """What is kept under a name, or what is measured now, and whether it is new."""
        path = self.folder and self.folder / f"{name.replace(' ', '-')}.nc"
        if path and path.exists():
            try:
                return read_result(path, _FORMAT, "part of a run"), False
            except InputError as error:
                _log.warning("%s It is computed again.", error)
        found = measure()
        if path:
            with finishing():
                # Not before: what is refused at once leaves nothing behind.
                if not (identity := path.parent / _IDENTITY).exists():
                    write_text(identity, json.dumps(dict(self.identity), indent=1))
                write_result(found, path, _FORMAT)
            # As it is read again: what is kept and what is new are alike to the bit.
            found = read_result(path, _FORMAT, "part of a run")
        return found, True


@dataclass(frozen=True)
class Steps:
    """The steps of a run: what each of them finds is kept, and the bar goes on."""

    bar: Bar
    kept: Kept = Kept(None, {})

    def take(self, name: str, measure: Callable[[], T], cost: int = 1) -> T:
        """What is kept under a name, or what is measured now; `cost` is that of the bar."""
        found, new = self.kept.result(name, measure)
        self.bar.step(cost, new=new)
        return cast(T, found)


def write_result(result: Result, path: str | os.PathLike[str], format_name: str) -> None:
    """Write an array or a dataset, with all of its labels and attributes.

    Raises:
        InputError: the file cannot be written.
    """
    alone = isinstance(result, xr.DataArray)
    dataset = result.to_dataset(name=result.name or "value") if alone else result.copy()
    if alone:
        dataset[result.name or "value"].attrs = {}
    dataset.attrs = {"alone": alone, "attrs": result.attrs}
    netcdf.write(dataset, path, format_name)


def read_result(path: str | os.PathLike[str], format_name: str, what: str) -> Result:
    """Read what `write_result` wrote.

    Raises:
        InputError: no such file, a damaged one, or one that holds something else.
    """
    dataset = netcdf.read(path, format_name, what)
    result = dataset[next(iter(dataset.data_vars))] if dataset.attrs["alone"] else dataset
    result.attrs = dataset.attrs["attrs"]
    return result
