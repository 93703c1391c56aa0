"""Exact gradients of upstream scores: g' with only late weights new (Feng et al. 2024, eq. 5).

The upstream score of component C asks what the *late* weights make of what C writes. So its gradient g'
is taken at what C writes under W, with new late weights: those of later layers, the final norm and the
unembedding; for a head also its own layer's post-attention norm and MLP with its norms, for an MLP its own
post-norm. `upstream="surrogate"` takes g' with all weights new, which differs to first order, because
what C writes then differs too.

Every layer is a boundary: W is used up to it, W' from there on. The tails of many boundaries run in one
growing batch, which a boundary's rows join at its layer. This costs about 2 n_layers forward passes,
however the boundaries are split to fit into memory.
"""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from ecstruct.engine.plan import free_bytes, graph_bytes
from ecstruct.models.hooked import HookedView, Part
from ecstruct.scores.pair import Pair
from ecstruct.scores.relevance import Relevance
from ecstruct.scores.tails import Tails
from ecstruct.scores.walk import Walk

WRITERS: Mapping[Part, str] = {"attn": "attn.o", "mlp": "mlp.out"}
"""The site of the output projection of each part of a block."""


def late_gradients(
    pair: Pair,
    walk: Walk,
    b: int,
    tails: Tails,
    rules: Relevance | None = None,
    memory: float | None = None,
) -> list[dict[str, Float[Tensor, "batch pos d_model"]]]:
    """Return dR/dy at what attention ("attn.o") and MLP ("mlp.out") of each layer write, before post-norms.

    Args:
        pair: W and W'.
        walk: a walk under W, after its way up.
        b: the index of one of its batches.
        tails: that batch under W'.
        rules: rules of relevance for the slopes; None for gradients.
        memory: bytes that graphs may take, by default half of the free memory; at least one boundary at a
            time is run, however little memory there is.
    """
    n_layers = walk.view.n_layers
    memory = memory or free_bytes(walk.view.device) / 2
    of_block = graph_bytes(walk.view, *walk.batches[b].ids.shape) * len(WRITERS)
    found: list[dict[str, Tensor]] = []
    end = n_layers
    while end:
        start = end - 1
        while start and of_block * _runs(start - 1, end, n_layers) <= memory:
            start -= 1
        found = _between(start, end, pair, walk, b, tails, rules) + found
        end = start
    return found


def _parts_by_late(view: HookedView, layer: int) -> dict[tuple[str, ...], list[Part]]:
    """Group the parts of a block by the block's weights that are late for them: parts with the same ones,
    as in most parallel blocks, share a run."""
    parts: dict[tuple[str, ...], list[Part]] = {}
    for part in WRITERS:
        parts.setdefault(tuple(view.late_in_block(layer, part)), []).append(part)
    return parts


def _runs(start: int, end: int, n_layers: int) -> int:
    """Count block runs, each on one copy of the batch, for the boundaries in [start, end)."""
    return sum(min(layer, end - 1) - start + 1 for layer in range(start, n_layers))


def _between(
    start: int, end: int, pair: Pair, walk: Walk, b: int, tails: Tails, rules: Relevance | None
) -> list[dict[str, Tensor]]:
    """Return the gradients at the layers in [start, end), whose tails share a batch."""
    written: list[tuple[int, str, Tensor]] = []

    def joining(boundary: int) -> Tensor | None:
        layer = boundary - 1
        if not start <= layer < end:
            return None
        leaving = []
        for late, parts in _parts_by_late(pair.view, layer).items():
            leaf = walk.resid(layer, b).detach().requires_grad_()
            trace = pair.view.block(layer, pair.mixed(late), walk.call(layer, b), leaf)
            leaving.append(trace.output)
            written.extend((layer, WRITERS[p], trace.taps[WRITERS[p]].output) for p in parts)
        return torch.cat(leaving)

    with torch.enable_grad():
        reward = tails.rewards(joining, rules).sum()
    with rules.followed() if rules else nullcontext():
        gradients = torch.autograd.grad(reward, [output for _, _, output in written])
    found: list[dict[str, Tensor]] = [{} for _ in range(start, end)]
    for (layer, name, _), gradient in zip(written, gradients, strict=True):
        found[layer - start][name] = gradient
    return found
