"""What the training loop trains: weights by name, and a function from tokens to logits that uses them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.models.bridge import logits_at, named_weights
from ecstruct.models.classifiers import is_classifier
from ecstruct.models.names import WeightSelection, kind_of


@dataclass(frozen=True)
class Learner:
    """A model as the training loop sees it. `logits` maps the positions to read, ids and attention mask,
    [batch, pos], to logits, [read, d_vocab]; `weights` are those to train, by name, a tied weight under one
    name."""

    logits: Callable[[Tensor, Tensor, Tensor], Tensor]
    weights: Mapping[str, nn.Parameter]
    device: torch.device


def learner_of(model: TransformerBridge, frozen: WeightSelection | None, train_embeddings: bool) -> Learner:
    """Return the learner of a hooked model on one device, with all weights that are not frozen."""
    weights = weights_to_train(model, frozen, train_embeddings)
    return Learner(partial(logits_at, model), weights, next(iter(weights.values())).device)


def weights_to_train(
    model: TransformerBridge, frozen: WeightSelection | None, train_embeddings: bool
) -> dict[str, nn.Parameter]:
    """Return the weights to train. A tied weight is frozen if either of its names is; it appears once. The
    head of a classifier is no unembedding: it is trained unless it is frozen."""
    embeddings = ("embed",) if is_classifier(model.original_model.config) else ("embed", "unembed")

    def is_frozen(name: str) -> bool:
        if not train_embeddings and kind_of(name) in embeddings:
            return True
        return frozen is not None and frozen.matches(name)

    weights = named_weights(model)
    if frozen is not None:
        frozen.check_names(weights)
    kept = {id(p) for name, p in weights.items() if is_frozen(name)}
    left = {name: p for name, p in weights.items() if id(p) not in kept}
    if not left:
        raise InputError(f"freeze={frozen} leaves nothing to train: freeze less.")
    once = {id(p): name for name, p in reversed(left.items())}
    return {name: p for name, p in left.items() if once[id(p)] == name}


@contextmanager
def requiring_grad_only(weights: Sequence[nn.Parameter], of: TransformerBridge) -> Iterator[None]:
    """Let only these weights of a model require a gradient in this context; restore the others after it."""
    everything = {id(p): p for p in (*of.parameters(), *named_weights(of).values())}.values()
    before = [(p, p.requires_grad) for p in everything]
    for p in everything:
        p.requires_grad_(False)
    for p in weights:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p, required in before:
            p.requires_grad_(required)


@contextmanager
def recomputing(blocks: Sequence[nn.Module], recompute: bool = True) -> Iterator[None]:
    """Let blocks keep only their inputs in this context, and run again in the backward pass (activation
    checkpointing); if not `recompute`, do nothing."""
    for block in blocks if recompute else ():
        rerun: Any = partial(checkpoint, block.forward, use_reentrant=False)
        block.__dict__["forward"] = rerun  # bypasses what TransformerLens does when an attribute is set
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
