"""Hooked models without weights, and the place of each of their weights in a checkpoint.

A skeleton has the modules, buffers and hooks of a model, but each of its tensors is one number, expanded to
the tensor's shape. So it takes no memory, whatever the size of the model, and runs under weights that are
passed to it.

A hooked model keeps query, key and value separate where some checkpoints fuse them into one tensor. To find
which rows and columns of a fused tensor went where, three skeletons are hooked. Their tensors hold the
tensor's number, the index of the row, and that of the column, so that their parts hold the addresses. They
take no memory either, as long as TransformerLens splits tensors into views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from ecstruct.models.boot import boot
from ecstruct.models.bridge import named_weights, saved_buffers
from ecstruct.models.plain import plain_model, without_values

_Fill = Callable[[int, tuple[int, ...]], Tensor]
"""A function from the number and the shape of a tensor to its contents, to be broadcast."""

Parts = list[tuple[str, ...]]
"""The names in a file of what a tensor is made of: its own, or for each expert those of the matrices that
follow one another in its rows."""


@dataclass(frozen=True)
class Place:
    """The place of a weight in a checkpoint: these rows and columns (`None` for all) of `tensor`,
    transposed or not. `shape` is that of the weight."""

    tensor: str
    shape: tuple[int, ...]
    rows: Tensor | None = None
    columns: Tensor | None = None
    transposed: bool = False

    @property
    def whole(self) -> bool:
        """Whether the weight is the whole tensor, not transposed."""
        return self.rows is None and self.columns is None and not self.transposed

    def take(self, tensor: Tensor) -> Tensor:
        """Return the weight, given the tensor of the checkpoint."""
        part = tensor if self.rows is None else tensor[self.rows]
        part = part if self.columns is None else part[:, self.columns]
        return part.T if self.transposed else part

    def put(self, tensor: Tensor, weight: Tensor) -> None:
        """Write a weight to its place in the tensor, in place."""
        value = (weight.T if self.transposed else weight).to(tensor)
        rows = torch.arange(len(tensor)) if self.rows is None else self.rows
        if tensor.ndim == 1:
            tensor[rows] = value
        else:
            columns = torch.arange(tensor.shape[1]) if self.columns is None else self.columns
            tensor[rows[:, None], columns] = value


@dataclass(frozen=True)
class Skeleton:
    """A hooked model without weights. `tensors` has the shapes of the checkpoint's weights by name,
    `buffers` those buffers of the model that a checkpoint has, and `places` the places of the weights.
    `parts_in` finds the tensors by name among the names in a file, which may be older, lack the prefix
    of the decoder, or be those of single experts."""

    model: TransformerBridge
    tensors: dict[str, tuple[int, ...]]
    buffers: dict[str, Tensor]
    places: dict[str, Place]
    parts_in: Callable[[Iterable[str]], dict[str, Parts]]

    @classmethod
    def of(cls, name: str, config: Any, tokenizer: Any, device: torch.device | str = "cpu") -> Skeleton:
        """Make the skeleton of a Hugging Face configuration; raises what `ecstruct.load` raises."""

        empty = without_values(config)
        named = {p_name: tuple(p.shape) for p_name, p in empty.named_parameters()}
        numbers = {p_name: number for number, p_name in enumerate(named)}

        def hooked(fill: _Fill) -> tuple[TransformerBridge, list[nn.Parameter], dict[str, Tensor]]:
            def weight(name: str, p: nn.Parameter) -> Tensor:
                value = fill(numbers[name], tuple(p.shape))
                return value.to(device, torch.float32).expand(p.shape)

            plain = plain_model(config, torch.float32, device, weight).requires_grad_(False)
            tensors = list(plain.parameters())  # hooking removes fused tensors from the model
            buffers = saved_buffers(plain)
            return boot(name, plain, tokenizer), tensors, buffers

        model, tensors, buffers = hooked(lambda number, _: torch.tensor(number))
        whole = {id(p): Place(*named_shape) for p, named_shape in zip(tensors, named.items(), strict=True)}
        weights = named_weights(model)
        places = {weight: whole[id(p)] for weight, p in weights.items() if id(p) in whole}
        if len(places) < len(weights):
            by_row, *_ = hooked(lambda _, shape: torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1)))
            by_column, *_ = hooked(lambda _, shape: torch.arange(shape[-1]))
            rows, columns = named_weights(by_row), named_weights(by_column)
            for weight in weights.keys() - places.keys():
                tensor = list(named)[int(weights[weight].flatten()[0])]
                places[weight] = _place_of(tensor, named[tensor], rows[weight], columns[weight])
        return cls(model, named, buffers, places, _finder(empty))


def _finder(plain: Any) -> Callable[[Iterable[str]], dict[str, Parts]]:
    mapping = get_model_conversion_mapping(plain)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    stackings = [entry for entry in mapping if isinstance(entry, WeightConverter) and _stacks(entry)]
    order = [None, *(pattern for entry in stackings for pattern in entry.source_patterns)]
    known = plain.state_dict()

    def parts_in(names: Iterable[str]) -> dict[str, Parts]:
        found: dict[str, dict[str | None, list[str]]] = {}
        for name in sorted(names, key=dot_natural_key):
            tensor, pattern = rename_source_key(name, renamings, stackings, plain.base_model_prefix, known)
            its = found.setdefault(tensor, {})
            its[pattern] = [*its.get(pattern, ()), name] if pattern else [name]
        return {
            tensor: list(zip(*(its[pattern] for pattern in sorted(its, key=order.index)), strict=False))
            for tensor, its in found.items()
        }

    return parts_in


def _stacks(entry: WeightConverter) -> bool:
    """Return whether a conversion stacks matrices of single experts, those of one below one another."""
    done = [(type(op), getattr(op, "dim", None)) for op in entry.operations]
    return done in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])


def _place_of(tensor: str, shape: tuple[int, ...], row: Tensor, column: Tensor) -> Place:
    """Return the place in a fused tensor, named `tensor` and of this shape, of a weight: `row` and `column`
    have, for each entry of the weight, the row and the column of the tensor that it comes from."""
    row, column = row.detach().long(), column.detach().long()
    if len(shape) == 1:
        return Place(tensor, tuple(row.shape), _unless_all(row, shape[0]))
    transposed = not torch.equal(row, row[:, :1].expand_as(row))
    place = Place(
        tensor,
        tuple(row.shape),
        _unless_all(row[0] if transposed else row[:, 0], shape[0]),
        _unless_all(column[:, 0] if transposed else column[0], shape[1]),
        transposed,
    )
    for index, addresses in ((torch.arange(shape[0])[:, None], row), (torch.arange(shape[1]), column)):
        if not torch.equal(place.take(index.expand(shape)), addresses):
            raise AssertionError(f"{tensor} is split in a way that rows and columns cannot tell")
    return place


def _unless_all(index: Tensor, size: int) -> Tensor | None:
    index = index.cpu().contiguous()
    return None if torch.equal(index, torch.arange(size)) else index.clone()
