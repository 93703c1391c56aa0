"""Plain models in which no two components share a weight, and I computed with them."""

import copy
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ecstruct.scores.result import ExtractiveScores
from helpers.comparisons import (
    HEADS,
)
from helpers.oracle import Block, blocks, head_columns, outside, reward_of
from helpers.tiny import D_HEAD, N_HEADS, N_LAYERS, PROMPTS, double_throughout, plain_pair


class HeadCopy(nn.Module):
    """The reading side of one head: its own copies of the pre-norm and of its slices of Q, K and V; of all
    of Q and K where their norms see all heads of a token at once."""

    def __init__(self, block: Block, head: int, slices: dict[str, tuple[Tensor, Tensor | None]]) -> None:
        super().__init__()
        self.norm = nn.Identity() if block.ln1 is None else copy.deepcopy(block.ln1)
        self.parts: Any = nn.ModuleDict()
        for name, (weight, bias) in slices.items():
            linear = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, dtype=weight.dtype)
            linear.weight.data = weight.clone()
            if bias is not None:
                linear.bias.data = bias.clone()
            self.parts[name] = linear
        norms: Any = block.qk_norms
        for name, norm in zip(("q_norm", "k_norm"), norms, strict=False):
            self.parts[name] = own = copy.deepcopy(norm)
            if norm.weight.ndim == 2:  # a row for each head
                row = norm.weight[head * len(norm.weight) // N_HEADS]
                own.weight = nn.Parameter(row.detach().clone())

    def part(self, name: str, x: Tensor) -> Tensor:
        """Return the query ("q"), key ("k") or value ("v") of the head."""
        y = self.parts[name](self.norm(x))
        return self.parts[f"{name}_norm"](y) if f"{name}_norm" in self.parts else y


class Projection(nn.Module):
    """A projection assembled from the heads' own ones; `order` lists (head, name of the part)."""

    def __init__(self, heads: Any, order: list[tuple[int, str]], shared: int = 1) -> None:
        super().__init__()
        self.heads, self.order, self.shared = heads, order, shared

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._own(h, self.heads[h].part(n, x)) for h, n in self.order], -1)

    def _own(self, head: int, part: Tensor) -> Tensor:
        """Select the head's own slice if `part` covers several heads."""
        i = head // self.shared if part.shape[-1] > D_HEAD else 0
        return part[..., i * D_HEAD : (i + 1) * D_HEAD]


def slices_of(plain: PreTrainedModel, block: Any, head: int) -> dict:
    """Return weight [d_head, d_model] and bias of a query head's query, key and value; those of all heads
    for query and key where they are normed together."""

    def cut(module: Any, start: int) -> tuple[Tensor, Tensor | None]:
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        rows = slice(start * D_HEAD, (start + 1) * D_HEAD)
        bias = None if module.bias is None else module.bias[rows].detach()
        return weight[rows].detach(), bias

    if plain.config.model_type == "gpt2":
        return {n: cut(block.qkv[0], i * N_HEADS + head) for i, n in enumerate("qkv")}
    if plain.config.model_type == "gpt_neox":
        return {n: cut(block.qkv[0], 3 * head + i) for i, n in enumerate("qkv")}
    q, k, v = block.qkv
    shared = head // getattr(block.attn, "num_key_value_groups", 1)
    if plain.config.model_type == "olmo2":
        return {"q": (q.weight.detach(), None), "k": (k.weight.detach(), None), "v": cut(v, shared)}
    return {"q": cut(q, head), "k": cut(k, shared), "v": cut(v, shared)}


@dataclass(frozen=True)
class Untied:
    """The same function as a plain model, in which no two components share a weight: every head has its own
    key, value, norms of them and pre-norm, and so has the MLP its pre-norm. Tied embeddings are separate
    too. `heads` are those of every layer, `blocks` are the other parts."""

    plain: PreTrainedModel
    heads: list[nn.ModuleList]
    blocks: list[Block]


@cache
def untied(family: str, which: int) -> Untied:
    """Return W (0) or W' (1), untied."""
    return untie(plain_pair(family)[which])


def untie(plain: PreTrainedModel) -> Untied:
    """Return an untied copy of a plain model."""
    free: Any = copy.deepcopy(plain)
    unembed = free.get_output_embeddings()
    unembed.weight = nn.Parameter(unembed.weight.detach().clone())
    all_heads, all_blocks = [], []
    for block in blocks(free):
        attn: Any = block.attn
        heads = nn.ModuleList(HeadCopy(block, h, slices_of(free, block, h)) for h in HEADS)
        all_heads.append(heads)
        if free.config.model_type == "gpt2":
            attn.c_attn = Projection(heads, [(h, n) for n in "qkv" for h in HEADS])
        elif free.config.model_type == "gpt_neox":
            attn.query_key_value = Projection(heads, [(h, n) for h in HEADS for n in "qkv"])
        else:
            shared = getattr(attn, "num_key_value_groups", 1)
            for n in "qkv":
                order = [(h, n) for h in HEADS]
                setattr(attn, f"{n}_proj", Projection(heads, order, 1 if n == "q" else shared))
            attn.num_key_value_groups = 1
        if block.ln1 and block.ln1 is block.ln2:
            copied = copy.deepcopy(block.ln1)
            block = replace(block, ln2=copied)
            block.mlp.register_forward_pre_hook(lambda _module, args, norm=copied: (norm(args[0]),))
        for norm in (block.ln1, *block.qk_norms):
            if norm:
                norm.forward = nn.Identity().forward
        all_blocks.append(block)
    return Untied(free, all_heads, all_blocks)


def along(module: Any, other: Any) -> float:
    """Return <dR/dW, dW> of all weights of a module, where dW is the change to `other`."""
    pairs = zip(module.parameters(), other.parameters(), strict=True)
    return sum(float((p.grad * (q - p).detach()).sum()) for p, q in pairs if p.grad is not None)


@dataclass
class InformativeOracle:
    """<dR/dW, dW> per prompt: of MLPs and heads without pre-norms, of the pre-norms, and of the rest."""

    mlp: np.ndarray
    ln2: np.ndarray
    heads: np.ndarray
    ln1: np.ndarray
    rest: dict[str, np.ndarray]
    total: np.ndarray


@cache
def informative_oracle(family: str) -> InformativeOracle:
    return informative_along(*plain_pair(family), *(untied(family, which) for which in (0, 1)))


def informative_along(
    before: PreTrainedModel, after: PreTrainedModel, old: Untied, new: Untied
) -> InformativeOracle:
    """Compute the oracle of W and W', which are given as they are and untied."""
    n = len(PROMPTS)
    shape = n, N_LAYERS
    oracle = InformativeOracle(
        *(np.zeros(s) for s in (shape, shape, (*shape, N_HEADS), (*shape, N_HEADS))),
        rest=defaultdict(lambda: np.zeros(n)),
        total=np.zeros(n),
    )
    for i, prompt in enumerate(PROMPTS):
        before.zero_grad()
        with double_throughout():
            reward = reward_of(before, prompt)
            reward.backward()
            oracle.total[i] = along(before, after)
            old.plain.zero_grad()
            for block in old.blocks:
                if block.ln2:  # a copy is not a part of the model
                    block.ln2.zero_grad()
            free_reward = reward_of(old.plain, prompt)
            free_reward.backward()
        torch.testing.assert_close(free_reward, reward, rtol=0, atol=1e-12)  # untying must change nothing
        for layer, (block, other) in enumerate(zip(old.blocks, new.blocks, strict=True)):
            oracle.mlp[i, layer] = along(block.mlp, other.mlp)
            if block.ln2:
                oracle.ln2[i, layer] = along(block.ln2, other.ln2)
            oracle.rest["post_norm"][i] += sum(map(along, block.post, other.post))
            o: Any = block.o
            o_after: Any = other.o
            if o.bias is not None:
                oracle.rest["attn_bias"][i] += float(o.bias.grad @ (o_after.bias - o.bias).detach())
            product = o.weight.grad * (o_after.weight - o.weight).detach()
            for h in HEADS:
                own: Any = old.heads[layer][h]
                its: Any = new.heads[layer][h]
                oracle.ln1[i, layer, h] = along(own.norm, its.norm)
                oracle.heads[i, layer, h] = along(own.parts, its.parts)
                oracle.heads[i, layer, h] += float(head_columns(o, product, h).sum())
        others = outside(new.plain)
        for name, module in outside(old.plain).items():
            oracle.rest[name][i] += along(module, others[name])
    return oracle


def rest_of(scores: ExtractiveScores) -> dict[str, np.ndarray]:
    return {str(g): scores.rest.sel(group=g).values for g in scores.rest.group.values}


class Moved:
    """Moves some weights of a plain model along dW, always from their original values."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Take `pairs` of a weight (or a slice of one) and its change."""
        self.pairs = [(p.data, d.detach()) for p, d in pairs]
        self.kept = [p.clone() for p, _ in self.pairs]

    def to(self, step: float) -> None:
        for (p, d), kept in zip(self.pairs, self.kept, strict=True):
            p.copy_(kept + step * d)


def changes(module: nn.Module, other: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(p, q - p) for p, q in zip(module.parameters(), other.parameters(), strict=True)]
