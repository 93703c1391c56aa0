"""Save a hooked model as a Hugging Face folder in the layout of its checkpoint.

A hooked model keeps query, key and value separate where some checkpoints fuse them into one tensor; its
skeleton knows where they belong.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.io.files import check_free, write_folder
from ecstruct.models.boot import without_bars
from ecstruct.models.bridge import named_weights
from ecstruct.models.plain import plain_model
from ecstruct.models.provenance import tokenizer_of
from ecstruct.models.skeleton import Place, Skeleton


def save_model(model: TransformerBridge, folder: str | Path) -> None:
    """Write config, safetensors weights and tokenizer; the folder appears only when it is complete.

    Raises:
        InputError: `folder` exists and is not empty, or it cannot be written.
    """
    folder = Path(folder)
    check_free(folder)

    def fill(whole: Path) -> None:
        with without_bars():
            plain_view(model).save_pretrained(whole)
        tokenizer_of(model).save_pretrained(whole)

    write_folder(folder, fill)


def to_hugging_face(model: TransformerBridge) -> Any:
    """Return a plain Hugging Face model with a copy of this model's weights."""
    return copy.deepcopy(plain_view(model))


def plain_view(model: TransformerBridge, places: Mapping[str, Place] | None = None) -> Any:
    """Return a plain Hugging Face model that shares the memory of this model's weights, except for fused
    tensors, which are copies. `places` are those of the model's skeleton, computed if not given."""
    weights = named_weights(model)
    config, some = model.original_model.config, next(iter(weights.values()))
    places = places or Skeleton.of("skeleton", config, tokenizer_of(model)).places
    parts_of: dict[str, list[str]] = {}
    for name, place in places.items():
        parts_of.setdefault(place.tensor, []).append(name)

    def tensor(name: str, p: nn.Parameter) -> Tensor:
        parts = parts_of[name]
        if places[parts[0]].whole:
            return weights[parts[0]].detach()
        fused = torch.full(p.shape, torch.nan, dtype=some.dtype, device=some.device)
        for part in parts:
            places[part].put(fused, weights[part].detach())
        return fused

    return plain_model(config, some.dtype, some.device, tensor)
