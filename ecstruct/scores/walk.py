"""The walk: one set of weights, run up the blocks and back down, over batches of prompts.

Up, every block runs on a detached copy of its input, with a small graph of its own; so on the way down
one block at a time can be differentiated, looked at and let go. Blocks are the outer loop and batches
the inner one: what one block writes for all prompts is known before any of it is scored. Graphs are
kept between the ways when memory allows; otherwise a block is run again on its stored input.

One forward and one backward pass in all, with respect to activations only. The numbers are those of the
model's own forward, bit for bit.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ecstruct.facts.tokens import Batch
from ecstruct.models.hooked import BlockCall, HookedView, Trace
from ecstruct.models.sites import Tap, Weights

RewardOfLogits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Visit:
    """One block under one set of weights, seen on the way down: its taps, and dR/d(what they hold).

    `d_input` and `d_output` are gradients of the summed reward with respect to the inputs and outputs of
    the components that were asked for.
    """

    taps: dict[str, Tap]
    d_input: dict[str, Tensor]
    d_output: dict[str, Tensor]

    def input(self, name: str) -> Tensor:
        return self.taps[name].input.detach()

    def output(self, name: str) -> Tensor:
        return self.taps[name].output.detach()


class Walk:
    """A walk under `weights`. Call `up`, then `read_out`, then `down` for every layer from the last to
    the first, all batches of a layer before the next, then `to_embedding`."""

    def __init__(
        self, view: HookedView, weights: Weights, batches: Sequence[Batch], keep_graphs: bool
    ) -> None:
        self.view, self.weights, self.batches = view, weights, batches
        self._keep_graphs = keep_graphs
        self._embedded: list[Trace] = []
        self._calls: list[list[BlockCall]] = []
        self._resid: list[list[Tensor]] = [[] for _ in range(view.n_layers + 1)]
        self._traces: dict[tuple[int, int], tuple[Tensor, Trace]] = {}
        self._d_resid: list[Tensor] = []

    def resid(self, layer: int, batch: int) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream entering block `layer`."""
        return self._resid[layer][batch]

    def call(self, layer: int, batch: int) -> BlockCall:
        return self._calls[batch][layer]

    def up(
        self,
        see: Callable[[int, int, Trace], None] | None = None,
        tick: Callable[[], object] | None = None,
    ) -> None:
        """Run all blocks; `see` as for `climb`, `tick` is called after every layer."""
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
        """Run one block, the lower ones before it; `see` is shown every trace as (layer, batch, trace)."""
        for b in range(len(self.batches)):
            leaf, trace = self._run(layer, b)
            if see:
                see(layer, b, trace)
            self._resid[layer + 1].append(trace.output.detach())
            if self._keep_graphs:
                self._traces[layer, b] = leaf, trace

    def read_out(
        self, batch: int, positions: Tensor, reward: RewardOfLogits
    ) -> tuple[Float[Tensor, " batch"], Visit]:
        """The reward of every prompt from the logits at `positions` [batch, read], and the visit of the
        model's head. Batches are read in their order, once."""
        final = self._resid[-1][batch]
        rows = torch.arange(len(final), device=final.device)[:, None]
        leaf = final[rows, positions].requires_grad_()
        with torch.enable_grad():
            trace = self.view.head(self.weights, leaf)
            rewards = reward(trace.output)
        outputs = list(trace.taps)
        grads = torch.autograd.grad(rewards.sum(), [leaf, *(trace.taps[name].output for name in outputs)])
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
        """Differentiate one block: gradients with respect to the inputs and outputs of the named
        components, and on to the block's own input."""
        leaf, trace = self._traces.pop((layer, batch), None) or self._run(layer, batch)
        inputs, outputs = list(inputs), list(outputs)
        wanted = [leaf]
        wanted += [trace.taps[name].input for name in inputs]
        wanted += [trace.taps[name].output for name in outputs]
        grads = torch.autograd.grad(
            trace.output, wanted, grad_outputs=self._d_resid[batch], retain_graph=retain_graph
        )
        self._d_resid[batch] = grads[0]
        n = len(inputs)
        return Visit(
            trace.taps,
            dict(zip(inputs, grads[1 : 1 + n], strict=True)),
            dict(zip(outputs, grads[1 + n :], strict=True)),
        )

    def to_embedding(self, batch: int) -> Visit:
        """The visit of the embedding, after all blocks."""
        trace = self._embedded[batch]
        outputs = list(trace.taps)
        grads = torch.autograd.grad(
            trace.output,
            [trace.taps[name].output for name in outputs],
            grad_outputs=self._d_resid[batch],
        )
        return Visit(trace.taps, {}, dict(zip(outputs, grads, strict=True)))

    def _run(self, layer: int, batch: int) -> tuple[Tensor, Trace]:
        leaf = self._resid[layer][batch].detach().requires_grad_()
        with torch.enable_grad():
            trace = self.view.block(layer, self.weights, self.call(layer, batch), leaf)
        return leaf, trace
