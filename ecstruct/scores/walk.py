"""The walk: a forward pass, block by block, over batches of prompts, and the backward passes on its graphs.

On the way up, every block runs on a detached copy of its input and records a small graph of its own, so on
the way down blocks can be differentiated, read and freed one at a time. Blocks are the outer loop and
batches the inner one: what a block writes for all prompts is known before any of it is scored. Graphs are
kept until the way down if memory allows; otherwise each block is run again on its stored input.

A *descent* is one backward pass with respect to activations; at each block it returns a *visit*: the inputs
and outputs of the block's sites, with the gradients of the reward there. Several descents may share the
graphs of a walk: one follows gradients, another the rules of relevance. A descent under other weights runs
every block again on its input in the walk. A walk has the values of the model's own forward pass, bit for
bit.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ecstruct.facts.tokens import Batch
from ecstruct.models.hooked import BlockCall, HookedView, Trace
from ecstruct.models.sites import Tap, Weights
from ecstruct.scores.relevance import Relevance

RewardOfLogits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Visit:
    """The inputs and outputs of the sites of one block (or of the embedding or the head) on one batch, with
    the gradients of the reward there.

    `d_input` and `d_output` are dR/d(input) and dR/d(output) of the sites that were asked for, by name, in
    the shapes of the inputs and outputs: [batch, pos, d] except for norms of single queries and keys. Rows
    do not mix, so that each has the gradient of its own reward.
    """

    taps: dict[str, Tap]
    d_input: dict[str, Tensor] = field(default_factory=dict)
    d_output: dict[str, Tensor] = field(default_factory=dict)

    def input(self, name: str) -> Tensor:
        return self.taps[name].input.detach()

    def output(self, name: str) -> Tensor:
        return self.taps[name].output.detach()


@dataclass(frozen=True)
class Run:
    """A run of one block; `leaf` is its input, the residual stream [batch, pos, d_model]."""

    leaf: Tensor
    trace: Trace


class Walk:
    """A walk over `batches` under `weights`: call `up`, then make descents.

    With `keep_graphs`, the graphs of all blocks stay in memory until the way down; otherwise blocks are run
    again there. `rules` are those that some of the descents follow. Without `descends`, no graphs are
    recorded and no descent is possible."""

    def __init__(
        self,
        view: HookedView,
        weights: Weights,
        batches: Sequence[Batch],
        keep_graphs: bool,
        rules: Relevance | None = None,
        descends: bool = True,
    ) -> None:
        self.view, self.weights, self.batches = view, weights, batches
        self.keep_graphs, self.rules, self._descends = keep_graphs, rules, descends
        self._embedded: list[Trace] = []
        self._calls: list[list[BlockCall]] = []
        self._resid: list[list[Tensor]] = [[] for _ in range(view.n_layers + 1)]
        self._runs: dict[tuple[int, int], Run] = {}

    def resid(self, layer: int, batch: int) -> Float[Tensor, "batch pos d_model"]:
        """Return the residual stream that enters block `layer`; with `n_layers`, the final one."""
        return self._resid[layer][batch]

    def call(self, layer: int, batch: int) -> BlockCall:
        return self._calls[batch][layer]

    def up(
        self,
        see: Callable[[int, int, Trace], None] | None = None,
        tick: Callable[[], object] | None = None,
    ) -> None:
        """Run the embedding and all blocks; `see` is as for `climb`, and `tick` is called after every
        layer."""
        self.embed()
        for layer in range(self.view.n_layers):
            self.climb(layer, see)
            if tick:
                tick()

    def embed(self) -> None:
        """Embed all batches."""
        for batch in self.batches:
            with torch.enable_grad():
                trace, calls = self.view.embed(self.weights, batch.ids, batch.mask)
            self._embedded.append(trace)
            self._calls.append(calls)
            self._resid[0].append(trace.output.detach())

    def climb(self, layer: int, see: Callable[[int, int, Trace], None] | None = None) -> None:
        """Run one block on all batches, after all lower blocks; `see` is called with the layer, the index
        of the batch and the trace."""
        for b in range(len(self.batches)):
            run = self.run(layer, b)
            if see:
                see(layer, b, run.trace)
            self._resid[layer + 1].append(run.trace.output.detach())
            if not self.keep_graphs:
                self.free(layer, b)

    def run(self, layer: int, batch: int) -> Run:
        """Return the run of a block on a batch, in which it reads its input in this walk. It is kept until
        `free` is called."""
        if (layer, batch) not in self._runs:
            self._runs[layer, batch] = self.under(self.weights, layer, batch)
        return self._runs[layer, batch]

    def free(self, layer: int, batch: int) -> None:
        """Free the run of a block, with its graph."""
        self._runs.pop((layer, batch), None)

    def under(self, weights: Weights, layer: int, batch: int) -> Run:
        """Run a block under other `weights` on its input in this walk; the run is not kept."""
        leaf = self._resid[layer][batch].detach().requires_grad_()
        with torch.set_grad_enabled(self._descends):
            trace = self.view.block(layer, weights, self.call(layer, batch), leaf)
        if self.rules:
            self.rules.prepare(trace.output)
        return Run(leaf, trace)

    def embedded(self, batch: int) -> Trace:
        return self._embedded[batch]


class Descent:
    """A backward pass down a walk, from the reward to the embedding.

    It is under the walk's weights or, with `weights`, under others on the walk's residual stream. It
    follows gradients or, if given, `rules`, which must be the walk's. Call `read_out` for every batch, then
    `down` for every layer from the last to the first, all batches of a layer before the next, then
    `to_embedding`."""

    def __init__(self, walk: Walk, weights: Weights | None = None, rules: Relevance | None = None) -> None:
        self._walk, self._weights, self._rules = walk, weights, rules
        self._d_resid: list[Tensor] = []

    def read_out(
        self, batch: int, positions: Int[Tensor, "batch read"], reward: RewardOfLogits
    ) -> tuple[Float[Tensor, " batch"], Visit]:
        """Return the reward of every prompt, from the logits at `positions`, and the visit of
        the model's head. Call it once per batch, in order: it begins the backward pass."""
        walk = self._walk
        final = walk.resid(walk.view.n_layers, batch)
        rows = torch.arange(len(final), device=final.device)[:, None]
        leaf = final[rows, positions].requires_grad_()
        with torch.enable_grad():
            trace = walk.view.head(walk.weights if self._weights is None else self._weights, leaf)
            rewards = reward(trace.output)
        if self._rules:
            self._rules.prepare(trace.output)
        outputs = list(trace.taps)
        grads = self._grads(rewards.sum(), [leaf, *(trace.taps[name].output for name in outputs)])
        d_final = torch.zeros_like(final)
        d_final.index_put_((rows.expand_as(positions), positions), grads[0], accumulate=True)
        self._d_resid.append(d_final)
        return rewards.detach(), Visit(trace.taps, {}, dict(zip(outputs, grads[1:], strict=True)))

    def down(
        self,
        layer: int,
        batch: int,
        inputs: Iterable[str],
        outputs: Iterable[str],
        retain_graph: bool = False,
    ) -> Visit:
        """Return the visit of one block, with gradients at the inputs and outputs of the sites that are
        named, and go on to the block below. The walk keeps the block's run until `free` is called."""
        walk = self._walk
        weights = self._weights
        run = walk.run(layer, batch) if weights is None else walk.under(weights, layer, batch)
        inputs, outputs = list(inputs), list(outputs)
        taps = run.trace.taps
        wanted = [
            run.leaf,
            *(taps[name].input for name in inputs),
            *(taps[name].output for name in outputs),
        ]
        grads = self._grads(run.trace.output, wanted, self._d_resid[batch], retain_graph)
        self._d_resid[batch] = grads[0]
        n = len(inputs)
        return Visit(
            taps,
            dict(zip(inputs, grads[1 : 1 + n], strict=True)),
            dict(zip(outputs, grads[1 + n :], strict=True)),
        )

    def to_embedding(self, batch: int) -> Visit:
        """Return the visit of the embedding; call it after all blocks."""
        trace = self._walk.embedded(batch)
        outputs = list(trace.taps)
        grads = self._grads(
            trace.output, [trace.taps[name].output for name in outputs], self._d_resid[batch]
        )
        return Visit(trace.taps, {}, dict(zip(outputs, grads, strict=True)))

    def _grads(
        self,
        output: Tensor,
        of: Sequence[Tensor],
        d_output: Tensor | None = None,
        retain_graph: bool = False,
    ) -> tuple[Tensor, ...]:
        with self._rules.followed() if self._rules else nullcontext():
            return torch.autograd.grad(output, of, grad_outputs=d_output, retain_graph=retain_graph)
