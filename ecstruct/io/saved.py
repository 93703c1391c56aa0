"""Results that are one `xarray.Dataset`, and how they are saved and read."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import xarray as xr

from ecstruct.io import netcdf


@dataclass(frozen=True, eq=False)
class SavedDataset:
    """A result that wraps one `xarray.Dataset`, accessible as `.dataset`.

    A class of results gives `format`, which its files declare and whose number changes with their layout,
    and `contents`, what messages call what is in them.
    """

    dataset: xr.Dataset

    format: ClassVar[str]
    contents: ClassVar[str]

    @property
    def attrs(self) -> dict[str, Any]:
        """A copy of what is needed to compute it again: models with fingerprints, options, versions."""
        return copy.deepcopy(self.dataset.attrs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one netCDF file (HDF5), which appears whole or not at all.

        Numbers are stored exactly, with their type. netCDF text cannot hold NUL or half of a surrogate
        pair: such characters in a token are replaced.

        Raises:
            InputError: the file cannot be written.
        """
        netcdf.write(self.dataset, path, self.format)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: the file does not exist, is damaged, or holds something else.
        """
        return cls(netcdf.read(path, cls.format, cls.contents))
