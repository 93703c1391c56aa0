"""Results of recall as netCDF files: labelled arrays, or several of them."""

import os

import xarray as xr

from ecstruct import netcdf

_FORMAT = "ecstruct recall 1"


def save(result: xr.DataArray | xr.Dataset, path: str | os.PathLike[str]) -> None:
    """Write what a function of `ecstruct.recall` returned, with all of its labels and attributes.

    Raises:
        InputError: the file cannot be written.
    """
    alone = isinstance(result, xr.DataArray)
    dataset = result.to_dataset(name=result.name or "value") if alone else result.copy()
    if alone:
        dataset[result.name or "value"].attrs = {}
    dataset.attrs = {"alone": alone, "attrs": result.attrs}
    netcdf.write(dataset, path, _FORMAT)


def load(path: str | os.PathLike[str]) -> xr.DataArray | xr.Dataset:
    """Read what `save` wrote, an array or a dataset.

    Raises:
        InputError: no such file, a damaged one, or one that holds something else.
    """
    dataset = netcdf.read(path, _FORMAT, "recall")
    result = dataset[next(iter(dataset.data_vars))] if dataset.attrs["alone"] else dataset
    result.attrs = dataset.attrs["attrs"]
    return result
