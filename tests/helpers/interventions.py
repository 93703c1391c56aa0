"""The interventions that define the scores, by brute force on plain models, each in a row of its own.

This module computes the causal scores of docs/scores.md, and the gradients in models of which only the
later weights are new, from which the exact form of U is made. It runs whole Hugging Face models on copies
of one prompt at a time, without padding; forward hooks replace values, and weights are copied. Nothing is
linearised, and nothing is taken from the code under test.

A component is the MLP of a layer or one of its heads. Its output y is [token, d_model]: the output of the
MLP, or the head's share z_h W_O^h of the output projection, both before any post-norm.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ecstruct import Prompt
from helpers.oracle import (
    Block,
    blocks,
    head_columns,
    ids_of,
    is_parallel,
    outside,
    reward_of,
    rewards_of,
    watching,
)
from helpers.tiny import D_HEAD, N_HEADS, N_LAYERS, N_LENGTHS, PROMPTS, double_throughout, plain_pair

Pair = tuple[PreTrainedModel, PreTrainedModel]
Component = tuple[int, int | None]
"""A layer and a head, or a layer and None for its MLP."""

COMPONENTS: list[Component] = [(layer, c) for layer in range(N_LAYERS) for c in (None, *range(N_HEADS))]


# --- Runs ---


@dataclass
class Run:
    """One run of a whole model: the residual stream [1, token, d_model] that enters the pre-norms, by
    (layer, "ln1" or "ln2"), and what the components wrote, [token, d_model]."""

    inputs: dict[tuple[int, str], Tensor]
    written: dict[Component, Tensor]


def share_of(block: Block, head: int, z: Tensor) -> Tensor:
    """Return z_h W_O^h of one head, where z [..., heads * d_head] is the input of the output projection."""
    own = slice(head * D_HEAD, (head + 1) * D_HEAD)
    weight: Any = block.o.weight
    return z[..., own] @ head_columns(block.o, weight, head).T


@contextmanager
def entering(modules: dict[tuple[int, str], nn.Module], inputs: dict[tuple[int, str], Tensor]) -> Iterator:
    """Call modules on these inputs instead of those that they are given."""

    def hook_of(value: Tensor) -> Callable:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            return ((value,), kwargs) if args else ((), {**kwargs, "hidden_states": value})

        return hook

    handles = [
        modules[key].register_forward_pre_hook(hook_of(x), with_kwargs=True) for key, x in inputs.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(plain: PreTrainedModel, prompt: Prompt, inputs: dict[tuple[int, str], Tensor] | None = None) -> Run:
    """Run a model. With `inputs`, all components are called on these instead of the model's own residual
    stream, so that each of them is f_C(inputs, W_C) and none sees what another one wrote."""
    norms, writers = {}, {}
    for layer, block in enumerate(blocks(plain)):
        norms |= {(layer, name): m for name, m in zip(("ln1", "ln2"), block.entries, strict=True)}
        writers |= {(layer, "o"): block.o, (layer, "mlp"): block.mlp}
    with entering(norms, inputs or {}), watching(norms | writers) as seen:
        plain(input_ids=ids_of(prompt), use_cache=False)
    written = {}
    for layer, block in enumerate(blocks(plain)):
        written[layer, None] = seen[layer, "mlp"].output[0]
        for head in range(N_HEADS):
            written[layer, head] = share_of(block, head, seen[layer, "o"].input[0])
    return Run({key: seen[key].input for key in norms}, written)


@contextmanager
def writing(
    plain: PreTrainedModel, component: Component, value: Tensor, at: Tensor | None = None
) -> Iterator[None]:
    """Replace y_C by `value` in all runs, or only where `at` [row of the batch, token] is 1."""
    layer, head = component
    block = blocks(plain)[layer]

    def hook(_module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        change = value - (output if head is None else share_of(block, head, args[0]))
        return output + (change if at is None else at[..., None] * change)

    handle = (block.mlp if head is None else block.o).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def effects(
    plain: PreTrainedModel, prompt: Prompt, values: dict[Component, Tensor], places: list[list[int]]
) -> dict[Component, np.ndarray]:
    """Return R[y_C <- value] - R of every component for interventions at several places, each of them a
    list of tokens. Each has a row of its own in a batch of copies of the prompt."""
    n = len(places)
    with ExitStack() as stack:
        for i, (component, value) in enumerate(values.items()):
            at = torch.zeros(1 + n * len(values), len(value))
            for row, place in enumerate(places, 1 + i * n):
                at[row, place] = 1
            stack.enter_context(writing(plain, component, value, at))
        reward, *rewards = rewards_of(plain, prompt, 1 + n * len(values)).tolist()
    return dict(zip(values, np.reshape(rewards, (-1, n)) - reward, strict=True))


# --- Only the later weights are new ---


def later_modules(plain: PreTrainedModel, layer: int, part: str) -> list[nn.Module]:
    """Return the modules after a layer's `part`, "attn" or "mlp", except the unembedding. The bias of the
    output projection is added next to what the heads write, not after it."""
    found = [outside(plain)["ln_final"]]
    for block in blocks(plain)[layer + 1 :]:
        found += [block.ln1, block.attn, block.ln2, block.mlp, *block.post]
    own = blocks(plain)[layer]
    if part == "mlp":
        found += own.post[1:]
    elif not is_parallel(plain):
        found += [own.ln2, own.mlp, *own.post]
    return [module for module in found if module is not None]


@cache
def late(before: PreTrainedModel, after: PreTrainedModel, layer: int, part: str) -> PreTrainedModel:
    """Return a copy of W in which the weights after a layer's `part` are those of W'. Tied embeddings are
    separated here: the unembedding is late, the embedding is not."""
    mixed = copy.deepcopy(before)
    early: Any = mixed.get_output_embeddings()
    new: Any = after.get_output_embeddings()
    early.weight = nn.Parameter(new.weight.detach().clone())
    pairs = zip(later_modules(mixed, layer, part), later_modules(after, layer, part), strict=True)
    for module, other in pairs:
        module.load_state_dict(other.state_dict())
    return mixed


@cache
def late_gradients(family: str, *, family_pair: Pair | None = None) -> list[dict[tuple[int, str], Tensor]]:
    """Return, for each of the first `N_LENGTHS` prompts, dR/dy [token, d_model] when only the weights after
    a component are new: at (layer, "mlp") for the output of the MLP, at (layer, "attn") for that of the
    output projection, both before the post-norm. The gradient of a head's y is that of its output
    projection."""
    before, after = family_pair or plain_pair(family)
    found: list[dict[tuple[int, str], Tensor]] = [{} for _ in range(N_LENGTHS)]
    for layer in range(N_LAYERS):
        for part in ("mlp", "attn"):
            mixed = late(before, after, layer, part)
            block = blocks(mixed)[layer]
            for prompt, gradients in zip(PROMPTS, found, strict=False):
                mixed.zero_grad()
                with double_throughout(), watching({"y": block.mlp if part == "mlp" else block.o}) as seen:
                    reward_of(mixed, prompt).backward()
                gradients[layer, part] = seen["y"].output.grad[0]
    return found


# --- Baselines ---

PREFIX = len(["<bos>", "people", "that"])


def aligned(token: int, length: int, other_length: int) -> int:
    """Return the position in a prompt of `other_length` tokens that corresponds to `token` in one of
    `length`: counted from the beginning in the prefix, and from the end after it. The surplus tokens of a
    longer entity correspond to the other's first entity token."""
    if token < PREFIX:
        return token
    return max(PREFIX, token + other_length - length)


def baseline_value(kind: str, i: int, values: list[Tensor]) -> Tensor:
    """Return y* of prompt i, [token, d_model]; `values` are what the component wrote for all prompts."""
    own = values[i]
    if kind == "zero":
        return torch.zeros_like(own)
    others = [v for v, p in zip(values, PROMPTS, strict=True) if p.answer != PROMPTS[i].answer]
    if kind == "mean":
        others = values
    rows = [[v[aligned(t, len(own), len(v))] for v in others] for t in range(len(own))]
    return torch.stack([torch.stack(row).mean(0) for row in rows])


# --- Causal scores ---


def values_of(kind: str, baseline: str, before: PreTrainedModel, after: PreTrainedModel) -> list[dict]:
    """Return the values that replace y_C, per prompt and component, [token, d_model].

    Heads of a layer share their pre-norm (perhaps with the MLP), some keys and values, and norms of these.
    Still, with all weights new on the old input, each writes what it would with only its own copies new.
    """
    old = [run(before, p) for p in PROMPTS]
    if kind == "informative":  # f_C(z_C, W'_C)
        return [run(after, p, r.inputs).written for p, r in zip(PROMPTS, old, strict=True)]
    if kind == "downstream":  # f_C(z'_C, W_C)
        return [run(before, p, run(after, p).inputs).written for p in PROMPTS]
    every = {c: [r.written[c] for r in old] for c in COMPONENTS}
    return [{c: baseline_value(baseline, i, every[c]) for c in COMPONENTS} for i in range(len(PROMPTS))]


@cache
def causal(
    family: str,
    kind: str,
    *,
    per_token: bool = False,
    baseline: str = "counterfactual",
    family_pair: Pair | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the scores of all MLPs [prompt, layer] and heads [prompt, layer, head] by interventions, of
    the first `N_LENGTHS` prompts.

    With `per_token`, they have a last axis: the only token at which y_C is replaced, zero past the end of a
    prompt. Without it, y_C is replaced at all tokens at once.

    Args:
        family: one of `FAMILIES`.
        kind: "informative", "downstream" or "upstream".
        per_token: intervene at one token at a time.
        baseline: y* of "upstream": "counterfactual", "mean" or "zero".
        family_pair: W and W' as plain models, instead of those of `plain_pair`.
    """
    before, after = family_pair or plain_pair(family)
    lengths = [ids_of(p).shape[1] for p in PROMPTS[:N_LENGTHS]]
    shape = N_LENGTHS, N_LAYERS, max(lengths) if per_token else 1
    mlp, heads = np.zeros(shape), np.zeros((*shape[:2], N_HEADS, shape[2]))
    with double_throughout(), torch.no_grad():
        values = values_of(kind, baseline, before, after)
        for i, (prompt, length) in enumerate(zip(PROMPTS, lengths, strict=False)):
            places = [[t] for t in range(length)] if per_token else [list(range(length))]
            found = effects(before, prompt, values[i], places)
            if kind == "upstream":  # (R_late - R_late[y*]) - (R - R[y*])
                for layer, part in product(range(N_LAYERS), ("mlp", "attn")):
                    heads_or_mlp = range(N_HEADS) if part == "attn" else (None,)
                    own = {(layer, head): values[i][layer, head] for head in heads_or_mlp}
                    mixed = effects(late(before, after, layer, part), prompt, own, places)
                    found |= {component: found[component] - mixed[component] for component in own}
            for (layer, head), effect in found.items():
                scores = mlp[i, layer] if head is None else heads[i, layer, head]
                scores[: len(places)] = effect
    return (mlp, heads) if per_token else (mlp[..., 0], heads[..., 0])


@cache
def full_rewards(family: str, *, family_pair: Pair | None = None) -> np.ndarray:
    """Return R under W and under W', [prompt, 2]."""
    pair = family_pair or plain_pair(family)
    with double_throughout(), torch.no_grad():
        return np.array([[float(reward_of(plain, p)) for plain in pair] for p in PROMPTS])
