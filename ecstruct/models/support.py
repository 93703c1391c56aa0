"""Check in a trial run that ecstruct can tap the components of a hooked model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ecstruct.errors import InputError
from ecstruct.models.hooked import HookedView, Trace
from ecstruct.models.names import layer_of
from ecstruct.models.sites import QK_NORMS, SINKS, entries, token_axis

_PROMPTS = 2
"""The number of prompts in the trial run."""


def check_runs(view: HookedView) -> None:
    """Run the embedding, the first block and the head. Raise `InputError` if the heads do not read what
    enters the block, if a module of the block does not see prompts and tokens as its first dimensions, or
    if the model reads weights that are not among the named ones."""
    weights = {
        name: p.detach().to(view.dtype)
        for name, p in view.named_weights.items()
        if layer_of(name) in (None, 0)
    }
    n_tokens = min(view.n_heads + 1, view.model.cfg.n_ctx)  # no other dimension has this size
    ids = torch.zeros((_PROMPTS, n_tokens), dtype=torch.long, device=view.device)
    known = {id(p) for p in view.named_weights.values()}
    unnamed = {name: p for name, p in view.hf.named_parameters() if id(p) not in known}
    with torch.enable_grad(), _requiring_grad(unnamed.values()):
        embedded, calls = view.embed(weights, ids, torch.ones_like(ids))
        trace = view.block(0, weights, calls[0], embedded.output)
        _check_taps(view, trace, embedded.output)
        if unnamed:
            logits = view.head(weights, trace.output).output
            gradients = torch.autograd.grad(logits.sum(), [*unnamed.values()], allow_unused=True)
            read = [name for name, g in zip(unnamed, gradients, strict=True) if g is not None]
            _check_unread(view, unnamed, read)


def _check_taps(view: HookedView, trace: Trace, resid: Tensor) -> None:
    """Raise `InputError` unless the heads read `resid`, which enters the block, and every tap has prompts
    and tokens as its first dimensions."""
    architecture = type(view.hf).__name__
    readers = entries(trace.taps)
    entry = "ln1" if "ln1" in trace.taps else readers[0]
    if not torch.equal(trace.taps[entry].input, resid):
        raise InputError(
            f"{entry} of this {architecture} does not read what enters the block, which its heads are to "
            "see: use another architecture."
        )
    read = [trace.taps[name].input.nan_to_num() for name in readers]  # the norm of a zero may be NaN
    for name, its in zip(readers, read, strict=True):
        if not torch.equal(its, read[0]):
            raise InputError(
                f"{name} of this {architecture} reads something else than {readers[0]}: use another "
                "architecture."
            )
    for name, tap in trace.taps.items():
        if name == SINKS:  # which see no tokens
            continue
        shape = tap.output.shape
        axis = token_axis(view.block_sites[0][name]) if name in QK_NORMS and len(shape) == 4 else 1
        if len(shape) < 3 or shape[0] != len(resid):
            raise InputError(
                f"{name} of this {architecture} sees the tokens of all prompts in one row, where they "
                "cannot be told apart: use another architecture."
            )
        if shape[axis] != resid.shape[1]:
            raise InputError(
                f"{name} of this {architecture} sees something else where tokens are looked for: use "
                "another architecture."
            )


def _check_unread(view: HookedView, unnamed: Mapping[str, nn.Parameter], read: Sequence[str]) -> None:
    """Check that no unnamed parameter is read. Unread ones are fused projections, which were split into
    named weights; parameters of later blocks are judged by those of the first."""
    later = {id(p) for block in view.blocks[1:] for p in block.parameters()}
    unread = {_pattern(n) for n, p in unnamed.items() if id(p) not in later} - {*map(_pattern, read)}
    for name in unnamed:
        if _pattern(name) not in unread:
            raise InputError(
                f"this {type(view.hf).__name__} has weights in {name.replace('_original_component.', '')}, "
                "which belong to no component that ecstruct knows: use another architecture."
            )


def _pattern(name: str) -> str:
    """Return the name of a parameter with its numbers replaced by "*"."""
    return re.sub(r"\d+", "*", name)


@contextmanager
def _requiring_grad(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    flags = [(p, p.requires_grad) for p in parameters]
    try:
        for p, _ in flags:
            p.requires_grad_()
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
