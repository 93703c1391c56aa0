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
from ecstruct.models.hooked import HookedView, Sublayer
from ecstruct.scores.pair import Pair
from ecstruct.scores.relevance import Relevance
from ecstruct.scores.tails import Tails
from ecstruct.scores.walk import Walk

WRITERS: Mapping[Sublayer, str] = {"attn": "attn.o", "mlp": "mlp.out"}
"""The site of the output projection of each sublayer of a block."""


def late_gradients(
    pair: Pair,
    walk: Walk,
    b: int,
    tails: Tails,
    rules: Relevance | None = None,
    memory: float | None = None,
) -> list[dict[str, Float[Tensor, "batch pos d_model"]]]:
    """Return dR/dy for each layer: y is what attention ("attn.o") and MLP ("mlp.out") write under W, before
    post-norms, and R the reward with only their late weights new.

    Args:
        pair: W and W'.
        walk: a walk under W, after its way up.
        b: the index of one of its batches.
        tails: the tails of that batch under W'.
        rules: rules of relevance, which give the slope of a large step in place of a gradient.
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


def _sublayers_by_late_weights(view: HookedView, layer: int) -> dict[tuple[str, ...], list[Sublayer]]:
    """Group attention and MLP of a block by the names of the block's weights that are late for them. Those
    with the same late weights, as in most parallel blocks, share a run."""
    sublayers: dict[tuple[str, ...], list[Sublayer]] = {}
    for sublayer in WRITERS:
        sublayers.setdefault(tuple(view.late_in_block(layer, sublayer)), []).append(sublayer)
    return sublayers


def _runs(start: int, end: int, n_layers: int) -> int:
    """Count block runs, each on one copy of the batch, for the boundaries in [start, end)."""
    return sum(min(layer, end - 1) - start + 1 for layer in range(start, n_layers))


def _between(
    start: int, end: int, pair: Pair, walk: Walk, b: int, tails: Tails, rules: Relevance | None
) -> list[dict[str, Tensor]]:
    """Return dR/dy by writer ("attn.o", "mlp.out") for each layer in [start, end); all tails share a
    stack."""
    written: list[tuple[int, str, Tensor]] = []

    def joining_at(boundary: int) -> Tensor | None:
        layer = boundary - 1
        if not start <= layer < end:
            return None
        outputs = []
        for late, sublayers in _sublayers_by_late_weights(pair.view, layer).items():
            leaf = walk.resid(layer, b).detach().requires_grad_()
            trace = pair.view.block(layer, pair.mixed(late), walk.call(layer, b), leaf)
            outputs.append(trace.output)
            written.extend((layer, WRITERS[s], trace.taps[WRITERS[s]].output) for s in sublayers)
        return torch.cat(outputs)

    with torch.enable_grad():
        reward = tails.rewards(joining_at, rules).sum()
    with rules.followed() if rules else nullcontext():
        gradients = torch.autograd.grad(reward, [output for _, _, output in written])
    found: list[dict[str, Tensor]] = [{} for _ in range(start, end)]
    for (layer, name, _), gradient in zip(written, gradients, strict=True):
        found[layer - start][name] = gradient
    return found
