"""Runs of the blocks of a model, from any layer on, with interventions on the way.

An intervention is a function of the `Step` that is about to be taken. It may change the residual stream
that enters a block, the call of the block (its attention mask), and the inputs and outputs of its sites.
Gradients flow through all of that, and the model is unchanged afterwards.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ecstruct.engine.session import Session
from ecstruct.facts.tokens import Batch
from ecstruct.models.calls import BlockCall
from ecstruct.models.edits import Edit, editing
from ecstruct.models.hooked import Trace

Resid = Float[Tensor, "batch pos d_model"]


@dataclass(frozen=True)
class Step:
    """A block that is about to run on `resid`, with edits of the inputs and of the outputs of its sites, by
    site name."""

    layer: int
    call: BlockCall
    resid: Resid
    inputs: Mapping[str, Edit] = field(default_factory=dict)
    outputs: Mapping[str, Edit] = field(default_factory=dict)


Intervention = Callable[[Step], Step]
"""A function that is applied to every step of a run before it is taken."""


def nothing(step: Step) -> Step:
    """Return the step unchanged: the intervention that does nothing."""
    return step


@dataclass(frozen=True)
class Embedded:
    """A batch that is ready for the blocks: what enters block 0, the calls of all blocks, and the position
    of every row at which its answer is predicted."""

    resid: Resid
    calls: list[BlockCall]
    read: Int[Tensor, " batch"]


def embed(session: Session, batch: Batch) -> Embedded:
    """Embed a batch, and record how the model calls its blocks on it."""
    with torch.no_grad():
        trace, calls = session.view.embed(session.weights, batch.ids, batch.mask)
    return Embedded(trace.output.detach(), calls, batch.read)


def logits_of(
    session: Session, embedded: Embedded, intervention: Intervention = nothing
) -> Float[Tensor, "batch d_vocab"]:
    """Return the logits at the position of every row at which its answer is predicted."""
    left = run_blocks(session, embedded.calls, embedded.resid, intervention)
    return session.view.logits_at(session.weights, left, embedded.read)


def entering(session: Session, embedded: Embedded) -> list[Resid]:
    """Return what enters every block, and at last the head."""
    ran = traces(session, embedded.calls, embedded.resid)
    return [embedded.resid, *(trace.output for trace in ran)]


def traces(
    session: Session,
    calls: Sequence[BlockCall],
    resid: Resid,
    intervention: Intervention = nothing,
    start: int = 0,
) -> Iterator[Trace]:
    """Run the blocks from `start` on in order, the first on `resid` and each further one on the output of
    the one before; yield the trace of each."""
    for layer in range(start, len(calls)):
        step = intervention(Step(layer, calls[layer], resid))
        with editing(session.view.block_sites[layer], step.inputs, step.outputs, len(resid)):
            trace = session.view.block(layer, session.weights, step.call, step.resid)
        yield trace
        resid = trace.output


def run_blocks(
    session: Session,
    calls: Sequence[BlockCall],
    resid: Resid,
    intervention: Intervention = nothing,
    start: int = 0,
) -> Resid:
    """Return the residual stream that leaves the last of these blocks, when block `start` runs on
    `resid`."""
    for layer in range(start, len(calls)):
        step = intervention(Step(layer, calls[layer], resid))
        with editing(session.view.block_sites[layer], step.inputs, step.outputs, len(resid)):
            resid = session.view.through(layer, session.weights, step.call, step.resid)
    return resid
