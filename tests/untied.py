"""Plain models in which every head has its own key, value and pre-norm, and what they say of I."""

import copy
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from comparisons import (
    HEADS,
)
from tiny import (
    D_HEAD,
    N_HEADS,
    N_LAYERS,
    PROMPTS,
    blocks,
    double_throughout,
    head_columns,
    outside,
    plain_pair,
    reward_of,
)
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ecstruct.scores.result import ExtractiveScores


class HeadCopy(nn.Module):
    """The weights of one head as its own: copies of the pre-norm and of its slices of Q, K and V."""

    def __init__(self, norm: nn.Module, slices: dict[str, tuple[Tensor, Tensor | None]]) -> None:
        super().__init__()
        self.norm = copy.deepcopy(norm)
        for name, (weight, bias) in slices.items():
            linear = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, dtype=weight.dtype)
            linear.weight.data = weight.clone()
            if bias is not None:
                linear.bias.data = bias.clone()
            setattr(self, name, linear)


class Projection(nn.Module):
    """A projection put together from the heads' own: `order` are (head, name of the slice)."""

    def __init__(self, heads: nn.ModuleList, order: list[tuple[int, str]]) -> None:
        super().__init__()
        self.heads, self.order = heads, order

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self.heads[h], n)(self.heads[h].norm(x)) for h, n in self.order], -1)


def slices_of(plain: PreTrainedModel, attn: nn.Module, head: int) -> dict:
    """Weight [d_head, d_model] and bias of a query head's query, key and value."""

    def cut(module: nn.Module, start: int) -> tuple[Tensor, Tensor | None]:
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        rows = slice(start * D_HEAD, (start + 1) * D_HEAD)
        bias = None if module.bias is None else module.bias[rows].detach()
        return weight[rows].detach(), bias

    if plain.config.model_type == "gpt2":
        return {n: cut(attn.c_attn, i * N_HEADS + head) for i, n in enumerate("qkv")}
    if plain.config.model_type == "gpt_neox":
        return {n: cut(attn.query_key_value, 3 * head + i) for i, n in enumerate("qkv")}
    shared = head // attn.num_key_value_groups
    return {"q": cut(attn.q_proj, head), "k": cut(attn.k_proj, shared), "v": cut(attn.v_proj, shared)}


@cache
def untied(family: str, which: int) -> tuple[PreTrainedModel, list[nn.ModuleList]]:
    """The same function as the plain model, in which no two heads share a weight: every head has its
    own key, value and pre-norm. Tied embeddings are two as well."""
    plain = plain_pair(family)[which]
    free = copy.deepcopy(plain)
    unembed = free.get_output_embeddings()
    unembed.weight = nn.Parameter(unembed.weight.detach().clone())
    all_heads = []
    for block in blocks(free):
        attn = block.attn
        heads = nn.ModuleList(HeadCopy(block.ln1, slices_of(free, attn, h)) for h in HEADS)
        all_heads.append(heads)
        if free.config.model_type == "gpt2":
            attn.c_attn = Projection(heads, [(h, n) for n in "qkv" for h in HEADS])
        elif free.config.model_type == "gpt_neox":
            attn.query_key_value = Projection(heads, [(h, n) for h in HEADS for n in "qkv"])
        else:
            for n in "qkv":
                setattr(attn, f"{n}_proj", Projection(heads, [(h, n) for h in HEADS]))
            attn.num_key_value_groups = 1
        block.ln1.forward = lambda x: x
    return free, all_heads


def along(module: nn.Module, other: nn.Module) -> float:
    """<dR/dW, dW> of all weights of a module, dW being the change to `other`."""
    pairs = zip(module.parameters(), other.parameters(), strict=True)
    return sum(float((p.grad * (q - p).detach()).sum()) for p, q in pairs if p.grad is not None)


@dataclass
class InformativeOracle:
    """<dR/dW, dW> per prompt: of MLPs and heads without their pre-norms, of these, and of the rest."""

    mlp: np.ndarray
    ln2: np.ndarray
    heads: np.ndarray
    ln1: np.ndarray
    rest: dict[str, np.ndarray]
    total: np.ndarray


@cache
def informative_oracle(family: str) -> InformativeOracle:
    (before, after), n = plain_pair(family), len(PROMPTS)
    (free, heads), (free_after, heads_after) = (untied(family, which) for which in (0, 1))
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
            free.zero_grad()
            free_reward = reward_of(free, prompt)
            free_reward.backward()
        torch.testing.assert_close(free_reward, reward, rtol=0, atol=1e-12)  # untying changes nothing
        for layer, (block, other) in enumerate(zip(blocks(free), blocks(free_after), strict=True)):
            oracle.mlp[i, layer], oracle.ln2[i, layer] = (
                along(block.mlp, other.mlp),
                along(block.ln2, other.ln2),
            )
            oracle.rest["post_norm"][i] += sum(map(along, block.post, other.post))
            o, o_after = block.o, other.o
            if o.bias is not None:
                oracle.rest["attn_bias"][i] += float(o.bias.grad @ (o_after.bias - o.bias).detach())
            product = o.weight.grad * (o_after.weight - o.weight).detach()
            for h in HEADS:
                own, new = heads[layer][h], heads_after[layer][h]
                oracle.ln1[i, layer, h] = along(own.norm, new.norm)
                oracle.heads[i, layer, h] = sum(along(getattr(own, n), getattr(new, n)) for n in "qkv")
                oracle.heads[i, layer, h] += float(head_columns(o, product, h).sum())
        others = outside(free_after)
        for name, module in outside(free).items():
            oracle.rest[name][i] += along(module, others[name])
    return oracle


def rest_of(scores: ExtractiveScores) -> dict[str, np.ndarray]:
    return {str(g): scores.rest.sel(group=g).values for g in scores.rest.group.values}


class Moved:
    """Moves some weights of a plain model along dW, and puts them back."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """`pairs` of a weight (or a slice of one) and its change."""
        self.pairs = [(p.data, d.detach()) for p, d in pairs]
        self.kept = [p.clone() for p, _ in self.pairs]

    def to(self, step: float) -> None:
        for (p, d), kept in zip(self.pairs, self.kept, strict=True):
            p.copy_(kept + step * d)


def changes(module: nn.Module, other: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(p, q - p) for p, q in zip(module.parameters(), other.parameters(), strict=True)]
