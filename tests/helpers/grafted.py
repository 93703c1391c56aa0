"""Slices of plain models that belong to components, replaced by those of another model."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from helpers.oracle import blocks, ids_of
from helpers.tiny import (
    D_HEAD,
    N_HEADS,
    N_LAYERS,
    PROMPTS,
    double_throughout,
)

N = N_LAYERS * (1 + N_HEADS)
Masks = tuple[np.ndarray, np.ndarray]


def masks(*names: str) -> Masks:
    """MLPs and heads by name: "0" is an MLP, "0.1" a head."""
    mlps, heads = np.zeros(N_LAYERS, bool), np.zeros((N_LAYERS, N_HEADS), bool)
    for name in names:
        place = tuple(map(int, name.split(".")))
        (mlps if len(place) == 1 else heads)[place] = True
    return mlps, heads


ALL = masks(*map(str, range(N_LAYERS)), *(f"{n}.{h}" for n in range(N_LAYERS) for h in range(N_HEADS)))
SOME = {
    "one head": masks("1.2"),
    "another head": masks("0.3"),
    "two of one key and value head": masks("1.2", "1.3"),
    "two of two": masks("1.0", "1.2"),
    "an MLP": masks("2"),
    "some": masks("0", "2", "0.1", "2.0", "2.3"),
    "none": masks(),
    "all": ALL,
}


def whole(module: nn.Module) -> list[tuple[Tensor, tuple]]:
    return [(p, (...,)) for p in module.parameters()]


def head_slices(block: Any, head: int) -> list[tuple[Tensor, tuple]]:
    """The parameters of a plain block that a head has a part of, and which part."""
    z = slice(head * D_HEAD, (head + 1) * D_HEAD)
    found: list[tuple[Tensor, tuple]] = [] if block.ln1 is None else whole(block.ln1)
    if hasattr(block.attn, "c_attn"):  # GPT-2: [d_model, query | key | value], each of them [head, d_head]
        columns = [part * N_HEADS * D_HEAD + i for part in range(3) for i in range(D_HEAD * N_HEADS)[z]]
        (qkv,) = block.qkv
        return [*found, (qkv.weight, (..., columns)), (qkv.bias, (columns,)), (block.o.weight, (z,))]
    found.append((block.o.weight, (..., z)))
    if len(block.qkv) == 1:  # GPT-NeoX: [head, query | key | value, d_head]
        rows = slice(3 * head * D_HEAD, 3 * (head + 1) * D_HEAD)
        return [*found, *((p, (rows,)) for p in block.qkv[0].parameters())]
    for module in (*block.qkv, *block.qk_norms):
        if module.weight.numel() == D_HEAD:  # a norm that all heads share
            found += whole(module)
            continue
        if module in block.qk_norms and module.weight.ndim == 2:  # a row for each head
            found.append((module.weight, (head * len(module.weight) // N_HEADS,)))
            continue
        n_shared = N_HEADS * D_HEAD // module.weight.shape[0]
        rows = slice(head // n_shared * D_HEAD, (head // n_shared + 1) * D_HEAD)
        found += [(p, (rows,)) for p in module.parameters()]
    return found


def slices(block: Any, mlp: bool, heads: np.ndarray) -> list[tuple[Tensor, tuple]]:
    found = [part for head in np.flatnonzero(heads) for part in head_slices(block, int(head))]
    if mlp:
        found += whole(block.mlp) + ([] if block.ln2 is None else whole(block.ln2))
    return found


def replaced(target: PreTrainedModel, source: PreTrainedModel, mlps, heads) -> PreTrainedModel:
    """A copy of a plain model with the weights of some components of another."""
    mixed = copy.deepcopy(target)
    with torch.no_grad():
        for layer, (to, come_from) in enumerate(zip(blocks(mixed), blocks(source), strict=True)):
            chosen = [slices(block, mlps[layer], heads[layer]) for block in (to, come_from)]
            for (parameter, part), (new, _) in zip(*chosen, strict=True):
                parameter[part] = new[part]
    return mixed


def logits(run: Callable[[Tensor], Tensor]) -> Tensor:
    """At the last token of every prompt."""
    with torch.no_grad(), double_throughout():
        return torch.stack([run(ids_of(p))[0, -1] for p in PROMPTS])


def of_plain(plain: PreTrainedModel) -> Tensor:
    return logits(lambda ids: plain(ids).logits)
