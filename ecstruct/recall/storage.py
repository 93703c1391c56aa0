"""Results of recall as netCDF files: labelled arrays and datasets."""

import os

from ecstruct.io.netcdf import Result, read_result, write_result

_FORMAT = "ecstruct recall 1"


def save(result: Result, path: str | os.PathLike[str]) -> None:
    """Write what a function of `ecstruct.recall` returned, with all of its labels and attributes.

    Raises:
        InputError: the file cannot be written.
    """
    write_result(result, path, _FORMAT)


def load(path: str | os.PathLike[str]) -> Result:
    """Read the array or dataset that `save` wrote.

    Raises:
        InputError: the file does not exist, is damaged, or holds something else.
    """
    return read_result(path, _FORMAT, "recall")
