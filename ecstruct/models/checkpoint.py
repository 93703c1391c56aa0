"""Read the tensors of safetensors files one at a time, when they are asked for.

The library reads and checks the headers. Tensors are read by offset and not through its memory map: what
was read through a mapping counts as memory in use.
"""

from __future__ import annotations

import logging
import math
import mmap
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.io.files import from_json
from ecstruct.models.boot import gist

_logger = logging.getLogger(__name__)

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"

_BUFFERS = re.compile(
    r"(^|\.)((attn|attention|self_attn|self_attention)\.(attention\.)?(bias|masked_bias)|"
    r"rotary_emb\.inv_freq|position_ids)$"
)
"""Buffers that older versions saved with the weights and that may be ignored: masks, frequencies, ids."""

_WRAPPER = re.compile(r"_orig_mod\.|module\.")
"""The prefixes that torch.compile and DistributedDataParallel add to the names of weights."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class _Span:
    """The place of a tensor in a file: `n_bytes` bytes, beginning at byte `start`."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    n_bytes: int


class LazyWeights(Mapping[str, Tensor]):
    """A mapping of weights whose tensors are read or computed whenever they are asked for."""

    def __init__(self, names: Collection[str], weight: Callable[[str], Tensor]) -> None:
        self._names, self._weight = names, weight

    def __getitem__(self, name: str) -> Tensor:
        return self._weight(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own method would ask for the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class TensorFiles(LazyWeights):
    """A mapping from names to tensors in their saved dtype. `shapes`, and the `metadata` of a single file,
    are known without reading the tensors.

    Raises:
        InputError: A file is missing, truncated or not a safetensors file, or the index of a folder
            places a tensor in a file that lacks it.
    """

    def __init__(self, spans: Mapping[str, _Span], metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(spans, lambda tensor: self._read(tensor, spans[tensor]))
        self._spans, self.metadata = spans, metadata or {}
        self.shapes = {name: span.shape for name, span in spans.items()}

    @classmethod
    def of_folder(cls, folder: Path) -> TensorFiles:
        """Open the weights of a Hugging Face folder, in one file or in shards. Only files that transformers
        reads are opened. Names are those of the model, without the prefix of a wrapper."""
        spans = cls._of_folder(folder)
        wrapper = wrapper_of(str(folder), spans)
        return cls({name.removeprefix(wrapper): span for name, span in spans.items()})

    @classmethod
    def _of_folder(cls, folder: Path) -> Mapping[str, _Span]:
        if (folder / _FILE).is_file():
            return cls.of_file(folder / _FILE)._spans
        index = folder / _INDEX
        files = _read_index(index)
        known = {file: cls.of_file(folder / file)._spans for file in dict.fromkeys(files.values())}
        for tensor, file in files.items():
            if tensor not in known[file]:
                raise InputError(
                    f"{index} places {tensor} in {file}, where it is not: fetch or save the checkpoint "
                    "again."
                )
        return {tensor: known[file][tensor] for tensor, file in files.items()}

    @classmethod
    def of_file(cls, path: Path) -> TensorFiles:
        spans = {}
        try:
            with path.open("rb") as file, safe_open(path, framework="np") as opened:
                start = 8 + int.from_bytes(file.read(8), "little")  # the length of the header comes first
                for name in opened.offset_keys():  # tensors follow one another without gaps
                    entry = opened.get_slice(name)
                    dtype, shape = _DTYPES[entry.get_dtype()], tuple(entry.get_shape())
                    spans[name] = _Span(path, dtype, shape, start, math.prod(shape) * dtype.itemsize)
                    start += spans[name].n_bytes
                return cls(spans, opened.metadata())
        except KeyError as error:
            raise _unreadable(path, f"it has tensors of the type {error.args[0]}") from error
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, getattr(error, "strerror", None) or gist(error)) from error

    def row(self, tensor: str, index: int) -> Tensor:
        """Read what a tensor has at one index of its first dimension."""
        span = self._spans[tensor]
        n_bytes = span.n_bytes // span.shape[0]
        start = span.start + index * n_bytes
        return self._read(tensor, replace(span, shape=span.shape[1:], start=start, n_bytes=n_bytes))

    def _read(self, tensor: str, span: _Span) -> Tensor:
        found = empty_mmap(span.shape, span.dtype)
        try:
            with span.path.open("rb", buffering=0) as file:
                file.seek(span.start)
                room = memoryview(found.view(-1).view(torch.uint8).numpy().data)
                while room and (n := file.readinto(room)):  # one call reads 2 GB at most
                    room = room[n:]
        except OSError as error:
            raise _unreadable(span.path, error.strerror or str(error)) from error
        if room:
            raise _unreadable(span.path, f"it ends within {tensor}")
        return found


def check_weights_are_there(folder: Path) -> None:
    """Raise `InputError` if a folder lacks the weight files that transformers reads."""
    if (folder / _FILE).is_file() or (folder / _INDEX).is_file():
        return
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if not others:
        raise InputError(
            f"the folder {folder} has no *.safetensors weights: save the model with save_pretrained(), "
            "which writes them."
        )
    if "delta.safetensors" in others:
        raise InputError(
            f"the folder {folder} has no model, but a change of weights: give {folder}/delta.safetensors."
        )
    raise InputError(
        f"the folder {folder} has {others[0]}, but neither {_FILE} nor {_INDEX}, which transformers reads: "
        "give the file that name, or fetch the one that is missing."
    )


def wrapper_of(name: str, tensors: Iterable[str]) -> str:
    """Return the prefix that all tensor names have if the model was compiled, or trained on several
    devices, when it was saved (usually ""). If there is one, log a warning that it is left out."""
    tensors, wrapper = list(tensors), ""
    while tensors and (found := _WRAPPER.match(tensors[0], len(wrapper))):
        if not all(tensor.startswith(found[0], len(wrapper)) for tensor in tensors):
            break
        wrapper += found[0]
    if wrapper:
        _logger.warning("the names of all weights of %s begin with %r, which is left out", name, wrapper)
    return wrapper


def lacking(loaded: Mapping[str, Any]) -> list[str]:
    """Return the weights that a checkpoint lacks or has in another shape, in the order of their names, by
    what transformers says about its loading."""
    return sorted({*loaded["missing_keys"], *(key[0] for key in loaded["mismatched_keys"])})


def check_all_read(name: str, unasked: Iterable[str]) -> None:
    """Raise `InputError` if a checkpoint has tensors that the model does not ask for, other than buffers of
    older versions."""
    if weights := sorted(tensor for tensor in unasked if not _BUFFERS.search(tensor)):
        raise InputError(
            f"{name} has weights in {weights[0]} that its config.json does not ask for: the two belong to "
            "different models."
        )


def empty_mmap(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised CPU tensor whose memory returns to the system when it is freed.

    The allocator would keep the memory for the thread that frees the tensor, but here one thread reads the
    tensors and another frees them."""
    n_bytes = math.prod(shape) * dtype.itemsize
    memory = torch.frombuffer(mmap.mmap(-1, max(1, n_bytes)), dtype=torch.uint8)
    return memory[:n_bytes].view(dtype).view(shape)


def _unreadable(path: Path, why: str) -> InputError:
    return InputError(f"the safetensors file {path} cannot be read ({why}): fetch or save it again.")


def _read_index(path: Path) -> dict[str, str]:
    try:
        files = dict(from_json(path.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no index of safetensors files: fetch or save it again.") from error
    for file in files.values():
        if not (path.parent / file).is_file():
            raise InputError(f"{path} names {file}, which is missing: fetch or save the checkpoint again.")
    return files
