"""The tensors of safetensors files, read one at a time when they are asked for.

A file is opened for one tensor and closed again: what is mapped of a file stays in memory for as long as
the file is open.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.models.boot import gist

_INDEX = "model.safetensors.index.json"


class TensorFiles(Mapping[str, Tensor]):
    """Tensors by name, as they were saved; `shapes` are known without reading them.

    Raises:
        InputError: a file is missing, truncated or no safetensors file; the index of a folder names a
            tensor that is not in its file.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        of_file = {path: _shapes(path) for path in dict.fromkeys(files.values())}
        for tensor, path in files.items():
            if tensor not in of_file[path]:
                raise InputError(
                    f"{path.parent / _INDEX} places {tensor} in {path.name}, where it is not: fetch or "
                    "save the checkpoint again."
                )
        self._files = files
        self.shapes = {tensor: of_file[path][tensor] for tensor, path in files.items()}

    @classmethod
    def of_folder(cls, folder: Path) -> TensorFiles:
        """The weights of a Hugging Face folder, in one file or in shards."""
        index = folder / _INDEX
        if index.is_file():
            return cls({tensor: folder / file for tensor, file in _read_index(index).items()})
        return cls({t: path for path in sorted(folder.glob("*.safetensors")) for t in _shapes(path)})

    @classmethod
    def of_file(cls, path: Path) -> TensorFiles:
        return cls(dict.fromkeys(_shapes(path), path))

    def __getitem__(self, tensor: str) -> Tensor:
        with _opened(self._files[tensor]) as file:
            return file.get_tensor(tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"the safetensors file {path} is corrupt, truncated or out of reach ({gist(error)}): fetch or "
            "save it again."
        ) from error


def _read_index(path: Path) -> dict[str, str]:
    try:
        files = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no index of safetensors files: fetch or save it again.") from error
    for file in files.values():
        if not (path.parent / file).is_file():
            raise InputError(f"{path} names {file}, which is missing: fetch or save the checkpoint again.")
    return files
