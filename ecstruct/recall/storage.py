"""Results of recall as netCDF files: labelled arrays and datasets."""

import os

import xarray as xr

from ecstruct.io.netcdf import Result, read, write

_FORMAT = "ecstruct recall 1"


def save(result: Result, path: str | os.PathLike[str]) -> None:
    """Write what a function of `ecstruct.recall` returned, with all of its labels and attributes.

    Raises:
        InputError: the file cannot be written.
    """
    alone = isinstance(result, xr.DataArray)
    dataset = result.to_dataset(name=result.name or "value") if alone else result.copy()
    if alone:
        dataset[result.name or "value"].attrs = {}
    dataset.attrs = {"alone": alone, "attrs": result.attrs}
    write(dataset, path, _FORMAT)


def load(path: str | os.PathLike[str]) -> Result:
    """Read the array or dataset that `save` wrote.

    Raises:
        InputError: the file does not exist, is damaged, or holds something else.
    """
    dataset = read(path, _FORMAT, "recall")
    result = dataset[next(iter(dataset.data_vars))] if dataset.attrs["alone"] else dataset
    result.attrs = dataset.attrs["attrs"]
    return result
