"""Cases that the tests of recall share: prompts with subjects, and plain models with edits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers import PreTrainedModel

from helpers.oracle import Block, blocks, ids_of, outside
from helpers.tiny import D_HEAD, N_HEADS, NAMES, PROMPTS

SUBJECTS = [replace(p, subject=name) for p, name in zip(PROMPTS, NAMES, strict=True)]
"""Prompts with subjects of one to three tokens, each after "<bos> people that"."""

Replace = Callable[[Tensor], Tensor]


def span_of(prompt) -> range:
    return range(3, 3 + len(prompt.subject.split()))


def parts_of(prompt: Any) -> dict[str, list[int]]:
    """Positions by hand: a BOS, "people that", the name, "knows speak"."""
    n_name = len(prompt.subject.split())
    subject = list(range(3, 3 + n_name))
    last = 4 + n_name
    return {
        "subject": subject,
        "non-subject": [0, 1, 2, last - 1],
        "last": [last],
        "subject-last": subject[-1:],
        "third": [2],
    }


def layers_of(plain: Any) -> nn.ModuleList:
    if plain.config.model_type in ("gpt2", "gptj"):
        return plain.transformer.h
    return plain.gpt_neox.layers if plain.config.model_type == "gpt_neox" else plain.model.layers


def writer(block: Block, part: str) -> nn.Module:
    """Return the module whose output is added to the residual stream."""
    if block.post:
        return block.post[part == "mlp"]
    return block.o if part == "attention" else block.out


def unembedding(plain: PreTrainedModel) -> Tensor:
    weight = outside(plain)["unembed"].weight
    assert isinstance(weight, Tensor)
    return weight.detach()


@contextmanager
def edited(edits: list[tuple[nn.Module, str, Replace]]) -> Iterator[None]:
    """Edit the "input" or "output" of plain modules."""

    def on_input(edit: Replace) -> Callable:
        def hook(_module, args, kwargs):
            if args:
                return (edit(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

        return hook

    def on_output(edit: Replace) -> Callable:
        return lambda _module, _args, output: edit(output)

    handles = [
        module.register_forward_pre_hook(on_input(edit), with_kwargs=True)
        if where == "input"
        else module.register_forward_hook(on_output(edit))
        for module, where, edit in edits
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def states(plain: PreTrainedModel, prompt, edits=(), **kwargs) -> tuple[list[Tensor], Tensor]:
    """Return the output of every layer [pos, d_model], and the logits at the last position."""
    final: list[Tensor] = []
    catch = (outside(plain)["ln_final"], "input", lambda x: final.append(x) or x)
    with edited([*edits, catch]):
        out = plain(ids_of(prompt), use_cache=False, output_hidden_states=True, **kwargs)
    return [h[0] for h in (*out.hidden_states[1:-1], final[0])], out.logits[0, -1]


def zeros_at(positions: list[int]) -> Replace:
    def edit(written: Tensor) -> Tensor:
        written = written.clone()
        written[:, positions] = 0
        return written

    return edit


def without_queries(plain: PreTrainedModel, block: Block) -> list[tuple[nn.Module, str, Replace]]:
    """Return edits that make all queries 0, so that attention is uniform over all visible tokens."""

    def edit(qkv: Tensor) -> Tensor:
        qkv = qkv.clone()
        if plain.config.model_type == "gpt2":
            qkv[..., : N_HEADS * D_HEAD] = 0
        elif plain.config.model_type == "gpt_neox":
            qkv.view(*qkv.shape[:2], N_HEADS, 3, D_HEAD)[..., 0, :] = 0
        else:
            qkv[:] = 0
        return qkv

    return [(block.qkv[0], "output", edit)]


def blocking_mask(plain: PreTrainedModel, n: int, sources: list[int]) -> Tensor | dict[str, Tensor]:
    """Return an explicit additive attention mask that closes the edges from `sources` to the last of n
    tokens; a mask per kind of layer for models with two kinds."""
    i, j = torch.arange(n)[:, None], torch.arange(n)
    open_ = j <= i
    blocked = (i == n - 1) & torch.isin(j, torch.tensor(sources))

    def additive(seen: Tensor) -> Tensor:
        lowest = torch.finfo(torch.float64).min
        return torch.zeros(n, n, dtype=torch.float64).masked_fill(~seen | blocked, lowest)[None, None]

    if plain.config.model_type not in ("gemma2", "gemma3_text"):
        return additive(open_)
    window = plain.config.sliding_window
    return {"full_attention": additive(open_), "sliding_attention": additive(open_ & (i - j < window))}


def value_output(plain: Any, layer: int, head: int) -> tuple[Tensor, Tensor]:
    """Return W_V [d_head, d_model] and W_O [d_model, d_head] of one head, from plain weights."""
    block: Any = blocks(plain)[layer]
    o = block.o.weight.detach()
    o = o.T if isinstance(block.o, hf.pytorch_utils.Conv1D) else o
    w_o = o[:, head * D_HEAD : (head + 1) * D_HEAD]
    if plain.config.model_type == "gpt2":
        w_v = block.qkv[0].weight.detach().T[2 * N_HEADS * D_HEAD :].view(N_HEADS, D_HEAD, -1)[head]
    elif plain.config.model_type == "gpt_neox":
        w_v = block.qkv[0].weight.detach().view(N_HEADS, 3, D_HEAD, -1)[head, 2]
    else:
        by_kv = block.qkv[2].weight.detach().view(-1, D_HEAD, N_HEADS * D_HEAD)
        w_v = by_kv.repeat_interleave(N_HEADS // len(by_kv), 0)[head]
    return w_v, w_o


def attentions(plain: Any) -> list[nn.Module]:
    if plain.config.model_type == "bloom":
        return [block.self_attention for block in plain.transformer.h]
    if plain.config.model_type == "mpt":
        return [block.attn for block in plain.transformer.blocks]
    return [block.attn for block in blocks(plain)]


@contextmanager
def masked(
    plain: PreTrainedModel, layers: range, into: Sequence[int], sources: Sequence[int]
) -> Iterator[None]:
    """Attention modules of some layers get an explicit mask in which some edges are closed."""

    def edit(value: object) -> object:
        if not (isinstance(value, Tensor) and value.ndim == 4 and value.shape[2] == value.shape[3] > 1):
            return value
        mask = value.clone()
        # MPT's is true where an edge is closed.
        closed = True if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        for query in into:
            for key in sources:
                mask[:, :, query, key] = closed
        return mask

    def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        edited = tuple(map(edit, args)), {name: edit(value) for name, value in kwargs.items()}
        assert [*map(id, args), *map(id, kwargs.values())] != [
            id(v) for v in (*edited[0], *edited[1].values())
        ]
        return edited

    handles = [
        module.register_forward_pre_hook(hook, with_kwargs=True)
        for layer, module in enumerate(attentions(plain))
        if layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
