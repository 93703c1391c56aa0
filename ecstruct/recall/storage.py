"""Results of recall as netCDF files (HDF5), which appear whole or not at all."""

import json
import os
from pathlib import Path

import numpy as np
import xarray as xr

from ecstruct.errors import InputError
from ecstruct.files import write_atomically

_FORMAT = "ecstruct recall 1"


def save(result: xr.DataArray | xr.Dataset, path: str | os.PathLike[str]) -> None:
    """Write what a function of `ecstruct.recall` returned, with all of its labels and attributes.

    netCDF text holds no NUL and no half of a surrogate pair: such characters in a token are replaced.

    Raises:
        InputError: the file cannot be written.
    """
    alone = isinstance(result, xr.DataArray)
    dataset = result.to_dataset(name=result.name or "value") if alone else result.copy()
    dataset = dataset.drop_encoding()
    for name, variable in dataset.variables.items():
        if variable.dtype.kind not in "biuf":
            dataset[name] = variable.copy(data=_storable(variable))
    dataset.attrs = {"format": _FORMAT, "alone": int(alone), "attrs": json.dumps(result.attrs)}
    if alone:
        dataset[result.name or "value"].attrs = {}
    numeric = [name for name, variable in dataset.data_vars.items() if variable.dtype.kind in "biuf"]
    checksums = {name: {"fletcher32": True} for name in numeric}
    # In memory: HDF5 ends the whole process when it writes to a disk that fills.
    content = dataset.to_netcdf(engine="h5netcdf", encoding=checksums)
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(content))


def load(path: str | os.PathLike[str]) -> xr.DataArray | xr.Dataset:
    """Read what `save` wrote, an array or a dataset.

    Raises:
        InputError: no such file, a damaged one, or one that holds something else.
    """
    try:
        dataset = xr.load_dataset(path, engine="h5netcdf")
        if dataset.attrs.get("format") != _FORMAT:
            raise InputError(f"{path} is a netCDF file, but not one of ecstruct.recall")
        attrs, alone = json.loads(dataset.attrs["attrs"]), dataset.attrs["alone"]
        dataset = dataset.drop_encoding()
        result = dataset[next(iter(dataset.data_vars))] if alone else dataset
        result.attrs = attrs
        return result
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except InputError:
        raise
    # A damaged file can fail anywhere in HDF5, netCDF or JSON, each with errors of its own.
    except Exception as error:
        raise InputError(f"{path} cannot be read: it is damaged or no netCDF file") from error


def _storable(variable: xr.Variable) -> np.ndarray:
    plain = [
        str(text).replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "replace").decode()
        for text in variable.values.ravel()
    ]
    return np.array(plain, dtype=str).reshape(variable.shape)
