"""Labelled results as netCDF files (HDF5), written atomically.

Numbers are stored exactly, with their type. netCDF text cannot hold NUL or half of a surrogate pair: such
characters in a token are replaced.
"""

import json
import os
from pathlib import Path

import numpy as np
import xarray as xr
import xxhash

from ecstruct.errors import InputError
from ecstruct.io.files import write_atomically

Result = xr.DataArray | xr.Dataset


def write(dataset: xr.Dataset, path: str | os.PathLike[str], form: str) -> None:
    """Write labelled arrays, with the format `form` as an attribute.

    Raises:
        InputError: the file cannot be written.
    """
    stored = dataset.drop_encoding()
    stored.attrs = {"format": form, "attrs": json.dumps(dataset.attrs)}
    for name, variable in stored.variables.items():
        if variable.dtype.kind not in "biuf":
            stored[name] = variable.copy(data=_storable(variable.values))
    stored.attrs["checksum"] = _checksum(stored)
    # In memory, because HDF5 ends the whole process when the disk that it writes to is full.
    content = stored.to_netcdf(engine="h5netcdf")
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(content))


def read(path: str | os.PathLike[str], form: str, what: str) -> xr.Dataset:
    """Read a file of `write`; `what` names its content in messages.

    Raises:
        InputError: the file does not exist, is damaged, or has another format.
    """
    try:
        dataset = xr.load_dataset(path, engine="h5netcdf")
        if dataset.attrs.get("format") != form:
            raise InputError(f"{path} is a netCDF file, but not one of ecstruct's {what}.")
        # Files of version 0.1.0 have checksums of HDF5's own.
        if dataset.attrs.get("checksum", (sum_of := _checksum(dataset))) != sum_of:
            raise ValueError("its checksum is another")
        dataset.attrs = json.loads(dataset.attrs["attrs"])
        return dataset.drop_encoding()
    except FileNotFoundError:
        raise InputError(f"there is no file of {what} {path}.") from None
    except InputError:
        raise
    # A damaged file can fail anywhere in HDF5, netCDF or JSON, each with errors of its own.
    except Exception as error:
        raise InputError(f"{path} cannot be read as {what}: it is damaged or no netCDF file.") from error


def _checksum(dataset: xr.Dataset) -> str:
    """Return the 128-bit XXH3 of the names, dimensions and values of all variables, including coordinates,
    and of the attributes; text is hashed by its characters, whatever its dtype."""
    checksum = xxhash.xxh3_128(dataset.attrs["attrs"].encode())
    for name, variable in sorted(dataset.variables.items(), key=lambda item: str(item[0])):
        values = variable.values
        checksum.update(repr((name, variable.dims, values.shape)).encode())
        if values.dtype.kind in "biuf":
            checksum.update(f"{values.dtype}".encode() + values.tobytes())
        else:
            checksum.update("\0".join(map(str, values.ravel())).encode())
    return checksum.hexdigest()


def _storable(texts: np.ndarray) -> np.ndarray:
    plain = [
        str(text).replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "replace").decode()
        for text in texts.ravel()
    ]
    return np.array(plain, dtype=str).reshape(texts.shape)
