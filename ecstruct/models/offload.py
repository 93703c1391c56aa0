"""Offload two checkpoints: they stay on disk and serve as the weights of one model.

One part of the model (the embedding, a block, the head) is in memory at a time, before and after. While it
is used, the next one is read: the next in the direction in which parts were asked for, because walks go up
through the parts and down again. So two models of any depth take the memory of one block each, and as much
again for the blocks that are being read. The experts of a mixture are read one by one, when a token needs
them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.models.adapters import is_adapter
from ecstruct.models.added_tokens import ROWS, grown
from ecstruct.models.checkpoint import LazyWeights, TensorFiles, check_all_read, empty_mmap
from ecstruct.models.classifiers import tokenizer_for
from ecstruct.models.configs import check_same_computation, warn_of_buffers
from ecstruct.models.delta import WeightDelta, check_fits, is_delta, open_delta
from ecstruct.models.experts import Experts
from ecstruct.models.hooked import HookedView
from ecstruct.models.loading import device_of
from ecstruct.models.provenance import Provenance, mark
from ecstruct.models.quantised import quantisation_of
from ecstruct.models.skeleton import Parts, Skeleton
from ecstruct.models.sources import Located, located, read_config, read_tokenizer, usable_tokenizer
from ecstruct.models.support import check_runs
from ecstruct.models.tied import second_names, with_untied_embeddings

Source = str | Path
"""A source given as text, as `ecstruct.load` takes it."""

States = tuple[dict[str, Tensor], dict[str, Tensor]]
"""The weights of one part of a model, by name, before and after."""


@dataclass(frozen=True)
class Offloaded:
    """A model without weights of its own, two mappings that read the weights before and after when they are
    asked for, and the provenance and tokenizer of the checkpoint after."""

    model: TransformerBridge
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    after_described: dict[str, Any]
    tokenizer_after: Any = None


def offloaded(before: Any, after: Any, device: str | torch.device | None = None) -> Offloaded:
    """Open two checkpoints; only configurations, tokenizers and headers are read immediately.

    Args:
        before: A source that names a checkpoint, as `ecstruct.load` takes it.
        after: Such a source, a `WeightDelta` or the path of a saved one.
        device: The device to which weights are read; by default a GPU if there is one.

    Raises:
        InputError: A model is in memory already, or a checkpoint cannot be used.
    """
    for which, given in (("before", before), ("after", after)):
        if not isinstance(given, str | Path | WeightDelta):
            raise InputError(
                f"offload=True reads checkpoints from disk, and {which} is a {type(given).__name__} in "
                "memory: give its folder or hub id, or score without offload."
            )
    if isinstance(before, WeightDelta):
        raise InputError("before is a WeightDelta: give the model that it is a change of.")
    for given in (before, after):
        if not isinstance(given, WeightDelta) and is_adapter(given):
            raise InputError(
                f"{given} is an adapter, which is merged in memory: save the whole model first, with "
                "ecstruct.save_model(ecstruct.load(base, adapter=...), folder)."
            )
    device = device_of(device)
    at, folder = _fetched(before)
    config = _config_of(at)
    tokenizer = tokenizer_for(config, read_tokenizer(at))
    with at.explaining_errors():
        skeleton = Skeleton.of(at.name, with_untied_embeddings(config), tokenizer, device)
        view = HookedView(skeleton.model)
        check_runs(view)
    base = _FolderWeights(at.name, folder, config, skeleton)
    for buffer, its in skeleton.buffers.items():
        its.copy_(base.buffers[buffer])
    if isinstance(after, WeightDelta) or is_delta(after):
        named = after.name if isinstance(after, WeightDelta) else str(after)
        new, made_from = _DeltaWeights.of(after, skeleton), Provenance(named, None, None)
    else:
        other, other_folder = _fetched(after)
        other_config = _config_of(other)
        check_same_computation(config, other_config)
        new = _FolderWeights(other.name, other_folder, other_config, skeleton, after=True)
        warn_of_buffers(base.buffers, new.buffers)
        own = tokenizer_for(other_config, usable_tokenizer(other))
        made_from = Provenance(other.name, other.revision, own, weights=other.weights)

    def read(names: Sequence[str]) -> States:
        old = {n: _cast(t, device) for n, t in base.read(names)}
        return old, new.after(old, device)

    stream = _Stream(_parts(view), read)
    mark(skeleton.model, Provenance(at.name, at.revision, tokenizer, weights=at.weights))
    before, after = (LazyWeights(stream.part_of, partial(stream.weight, state)) for state in (0, 1))
    return Offloaded(skeleton.model, before, after, made_from.described, made_from.tokenizer)


def _cast(t: Tensor, device: torch.device) -> Tensor:
    """Return a copy in float32, on the CPU in memory that returns to the system when it is freed."""
    if isinstance(t, Experts):
        return Experts(lambda index: _cast(t.read(index), device), t.shape, device)
    t = t.detach().to(device)
    return (empty_mmap if device.type == "cpu" else t.new_empty)(t.shape, dtype=torch.float32).copy_(t)


def _parts(view: HookedView) -> list[list[str]]:
    """Return the names of the weights of each part of a model, from the embedding to the head."""
    parts = [view.embed_sites, *view.block_sites, view.head_sites]
    return [[name for site in sites.values() for name in site.weights.values()] for sites in parts]


class _Stream:
    """A reader that keeps one part of the model in memory (the embedding, a block or the head), with its
    weights before and after, and reads the part that will be needed next in a thread of its own."""

    def __init__(self, parts: Sequence[Sequence[str]], read: Callable[[Sequence[str]], States]) -> None:
        self._parts, self._read = parts, read
        self.part_of = {name: index for index, names in enumerate(parts) for name in names}
        self._at = -1
        self._held: States = {}, {}
        self._ahead: tuple[int, Future[States]] | None = None
        self._reader = ThreadPoolExecutor(1, "ecstruct-offload")

    def weight(self, state: int, name: str) -> Tensor:
        index = self.part_of[name]
        if index != self._at:
            self._turn_to(index)
        return self._held[state][name]

    def _turn_to(self, index: int) -> None:
        before, self._at = self._at, -1
        self._held = {}, {}  # free the memory before the next part needs it
        if self._ahead is None or self._ahead[0] != index:
            self._read_ahead(index)
        assert self._ahead is not None
        _, future = self._ahead
        self._ahead = None
        self._held = future.result()
        following = index + 1 if index > before else index - 1
        if following == len(self._parts):
            following = index - 1  # walks turn round at the head
        self._at = index
        if following >= 0:
            self._read_ahead(following)

    def _read_ahead(self, index: int) -> None:
        if self._ahead is not None:
            self._ahead[1].cancel()
        self._ahead = index, self._reader.submit(self._read, self._parts[index])


class _FolderWeights:
    """The weights of a Hugging Face folder, by their names in a hooked model."""

    def __init__(
        self, name: str, folder: Path, config: Any, skeleton: Skeleton, *, after: bool = False
    ) -> None:
        self._tensors = TensorFiles.of_folder(folder)
        self._places = skeleton.places
        self._rows = {skeleton.places[row].tensor for row in ROWS if row in skeleton.places}
        self._parts = _parts_in(name, self._tensors.shapes, config, skeleton, self._rows if after else ())
        self.buffers = {buffer: self._tensors[self._parts[buffer][0][0]] for buffer in skeleton.buffers}

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        fused: dict[str, Tensor] = {}  # a fused tensor is read once for all its parts
        for weight in names:
            place = self._places[weight]
            parts = self._parts[place.tensor]
            if len(place.shape) == 3:
                read = partial(self._expert, parts, place.shape[1:])
                yield weight, Experts(read, place.shape, torch.device("cpu"))
                continue
            if place.tensor not in fused:
                fused = {place.tensor: self._tensors[parts[0][0]]}
            taken = place.take(fused[place.tensor])
            yield weight, taken[: place.shape[0]] if place.tensor in self._rows else taken

    def _expert(self, parts: Parts, shape: Sequence[int], index: int) -> Tensor:
        if len(self._tensors.shapes[parts[0][0]]) == 3:
            return self._tensors.row(parts[0][0], index)
        rows = [self._tensors[name] for name in parts[index]]
        return torch.cat(rows, out=empty_mmap(shape, torch.float32))

    def after(self, old: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Return the weights W' with the names of `old`, in float32."""
        return {name: _cast(t, device) for name, t in self.read([*old])}


@dataclass(frozen=True)
class _DeltaWeights:
    """Weights W + dW, computed from the weights before and a delta."""

    change: Mapping[str, Tensor]

    @classmethod
    def of(cls, given: WeightDelta | Source, skeleton: Skeleton) -> _DeltaWeights:
        if isinstance(given, WeightDelta):
            change: Mapping[str, Tensor] = given.tensors
            shapes = {name: tuple(t.shape) for name, t in change.items()}
        else:
            files, _ = open_delta(given)
            change, shapes = files, files.shapes
        check_fits(shapes, {name: place.shape for name, place in skeleton.places.items()})
        return cls(change)

    def after(self, old: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Return the weights W + dW, given W in float32; weights that do not change are the same
        tensors."""
        return {name: self._added(name, t, device) if name in self.change else t for name, t in old.items()}

    def _added(self, name: str, old: Tensor, device: torch.device) -> Tensor:
        if not isinstance(old, Experts):
            return _cast(self.change[name], device).add_(old)
        files = self.change if isinstance(self.change, TensorFiles) else None
        row = partial(files.row, name) if files else self.change[name].__getitem__
        return Experts(lambda i: _cast(row(i), device).add_(old.read(i)), old.shape, device)


def _config_of(at: Located) -> Any:
    config = read_config(at)
    if method := quantisation_of(config):
        raise InputError(
            f"{at.name} is quantised ({method}), and offload=True reads weights as they are: dequantise it "
            f"first, with ecstruct.save_model(ecstruct.load({at.name!r}), folder)."
        )
    return config


def _fetched(source: Source) -> tuple[Located, Path]:
    """Locate a source and return its folder, which is downloaded if the source is on the hub."""
    at = located(source)
    if at.folder is not None:
        return at, at.folder
    wanted = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        return at, Path(snapshot_download(at.name, revision=at.revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise at.unreadable(error) from error


def _parts_in(
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    config: Any,
    skeleton: Skeleton,
    may_grow: Collection[str],
) -> dict[str, Parts]:
    """Return the names in a checkpoint of what the tensors of a skeleton are made of. One of two tied
    tensors may be missing; if both are there, each is read. Those in `may_grow` may have the rows of more
    tokens."""
    found = skeleton.parts_in(shapes)
    for one, other in second_names(config).items():
        for missing, there in ((one, other), (other, one)):
            if missing not in found and there in found:
                found[missing] = found[there]
    buffers = {buffer: tuple(b.shape) for buffer, b in skeleton.buffers.items()}
    for tensor, shape in (skeleton.tensors | buffers).items():
        its = _shape_of(found.get(tensor, []), shapes, stacked=len(shape) == 3)
        if its != shape and not (tensor in may_grow and grown(ROWS[0], shape, its)):
            raise InputError(
                f"{name} has no weights of the right shape for {tensor}, which its config.json asks for: "
                "the folder is incomplete, mixes two models or holds its weights in another layout."
            )
    check_all_read(name, found.keys() - skeleton.tensors.keys() - buffers.keys())
    return found


def _shape_of(parts: Parts, shapes: Mapping[str, tuple[int, ...]], stacked: bool) -> tuple[int, ...]:
    """Return the shape of a tensor made of these parts, () if there are none or they do not fit."""
    each = {tuple(shapes[name] for name in its) for its in parts}
    if len(each) != 1:
        return ()
    (first, *others) = each.pop()
    if not stacked or len(first) == 3:
        return first if len(parts) == 1 and not others else ()
    rows = sum(shape[0] for shape in (first, *others))
    return (len(parts), rows, *first[1:]) if {first[1:], *(s[1:] for s in others)} == {first[1:]} else ()
