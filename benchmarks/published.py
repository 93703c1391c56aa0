"""The three scores by the passes of the paper's published code, against ecstruct.

Prompt by prompt, 10 counterfactuals each; for every one of the ten, all of this again, a forward and a
backward pass with gradients of all parameters each time:

1. under W: what components write, and gradients there;
2. under W', dW being added to the weights in place and taken off again: the same, and components' inputs;
3. under W with these inputs put in: what components write then (D);
4. under W on the counterfactual: what they write there (U);
5. under W: inputs and gradients of every projection, for <g, x dW^T> token by token (I).

That is 50 forward and 50 backward passes for a prompt. The implementation is our own, with a Hugging Face
model and the published code's conventions (`convention="reference"`). Counterfactuals are drawn without
repetition, so that of 11 prompts each has all the others, and all scores of all tokens can be held against
ecstruct's before anything is timed.

    python -m benchmarks.published
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.agreement import check_equal
from benchmarks.command import main
from benchmarks.models import (
    N_HEADS,
    PAPER,
    Shape,
    hooked_pair,
    ids_of,
    logit_diff,
    make_prompts,
    plain_pair,
)
from benchmarks.setup import Setup
from benchmarks.table import Measured, Row
from benchmarks.timing import Side, alternate
from ecstruct.scores.engine import ScoreEngine

N_COUNTERFACTUALS = 10
N_TIMED = 2
"""Prompts that are timed: all of them cost the same."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED_MLP = ("gate_proj", "up_proj", "down_proj")
INPUTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Where what a component reads, after its pre-norm, can be put in."""

Site = tuple[int, str]
"""A layer's projection."""
Scores = dict[str, tuple[Tensor, Tensor]]
"""By name, of MLPs [layer, pos] and of heads [layer, head, pos]."""


@dataclass
class Seen:
    """What one pass saw of every projection, [1, pos, width] each."""

    inputs: dict[Site, Tensor] = field(default_factory=dict)
    outputs: dict[Site, Tensor] = field(default_factory=dict)
    d_inputs: dict[Site, Tensor] = field(default_factory=dict)
    d_outputs: dict[Site, Tensor] = field(default_factory=dict)


class Published:
    """`change` is dW, in the order of the parameters of `model`."""

    def __init__(self, model: PreTrainedModel, after: PreTrainedModel) -> None:
        self.model = model.requires_grad_(True)
        pairs = zip(model.parameters(), after.parameters(), strict=True)
        self.change = [(new - old).detach() for old, new in pairs]
        self.n_layers = model.config.num_hidden_layers
        self.sites = {site: module for site, module in self._projections(model)}
        self.d_weights = {
            site: (new.weight - self.sites[site].weight).detach() for site, new in self._projections(after)
        }
        self.forward_passes = self.backward_passes = 0

    def scores(self, index: int, ids: Tensor, answers: Tensor, rng: np.random.Generator) -> Scores:
        """Of one prompt among all [prompt, pos], the mean over its counterfactuals."""
        others = [i for i in range(len(ids)) if i != index]
        drawn = rng.choice(others, N_COUNTERFACTUALS, replace=False)
        found = [self.of_pair(index, int(other), ids, answers) for other in drawn]
        self.model.zero_grad()
        mlp, heads = ({name: mean([s[name][kind] for s in found]) for name in found[0]} for kind in (0, 1))
        return {name: (mlp[name], heads[name]) for name in mlp}

    def of_pair(self, index: int, other: int, ids: Tensor, answers: Tensor) -> Scores:
        """Of one prompt, with one counterfactual."""
        run = partial(self.run, ids=ids, answers=answers)
        old = run(index)
        self.shift(1)
        new = run(index)
        self.shift(-1)
        at_new = run(index, put_in=new.inputs)
        counterfactual = run(other)
        again = run(index)
        up, down = [], []
        for of in (self.of_mlp, self.of_heads):
            (y, g), (_, g_new), (y_new, _), (y_star, _) = map(of, (old, new, at_new, counterfactual))
            up.append(dot(g_new - g, y - y_star))
            down.append(dot(g, y_new - y))
        return {
            "informative": self.informative(again),
            "upstream": (up[0], up[1]),
            "downstream": (down[0], down[1]),
        }

    def run(
        self, index: int, put_in: dict[Site, Tensor] | None = None, *, ids: Tensor, answers: Tensor
    ) -> Seen:
        """One forward and one backward pass with gradients of parameters, which nobody reads."""
        seen = Seen()
        with ExitStack() as stack:
            for site, module in self.sites.items():
                given = None if put_in is None or site[1] not in INPUTS else put_in[site]
                for handle in watch(module, site, seen, given):
                    stack.callback(handle.remove)
            self.model.zero_grad()
            one = slice(index, index + 1)
            logits = self.model(input_ids=ids[one], use_cache=False).logits[:, -1]
            self.forward_passes += 1
            logit_diff(logits, answers[one], answers).sum().backward()
            self.backward_passes += 1
        return seen

    @torch.no_grad()
    def shift(self, sign: int) -> None:
        for parameter, change in zip(self.model.parameters(), self.change, strict=True):
            parameter.add_(change, alpha=sign)

    def of_mlp(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """What MLPs write and the gradient there [layer, pos, d_model]."""
        sites = [(layer, "down_proj") for layer in range(self.n_layers)]
        return stacked(seen.outputs, sites), stacked(seen.d_outputs, sites)

    def of_heads(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """z and the gradient there [layer, head, pos, d_head]."""
        sites = [(layer, "o_proj") for layer in range(self.n_layers)]
        return by_head(stacked(seen.inputs, sites)), by_head(stacked(seen.d_inputs, sites))

    def informative(self, seen: Seen) -> tuple[Tensor, Tensor]:
        mlp, heads = [], []
        for layer in range(self.n_layers):
            sites = [(layer, name) for name in GATED_MLP]
            along = [dot(seen.d_outputs[s], seen.inputs[s] @ self.d_weights[s].T) for s in sites]
            mlp.append(torch.cat(along).sum(0))
            into = [
                dot(by_head(seen.d_outputs[s]), by_head(seen.inputs[s] @ self.d_weights[s].T))
                for s in ((layer, name) for name in ATTENTION[:-1])
            ]
            o = (layer, ATTENTION[-1])
            out_of = dot(by_head(seen.d_outputs[o] @ self.d_weights[o]), by_head(seen.inputs[o]))
            heads.append(torch.cat([*into, out_of]).sum(0))
        return torch.stack(mlp), torch.stack(heads)

    def _projections(self, model: Any) -> Iterator[tuple[Site, nn.Linear]]:
        for layer, block in enumerate(model.model.layers):
            for part, names in ((block.self_attn, ATTENTION), (block.mlp, GATED_MLP)):
                for name in names:
                    yield (layer, name), getattr(part, name)


def watch(module: nn.Module, site: Site, seen: Seen, given: Tensor | None) -> list[Any]:
    """Hooks that see what a projection takes and gives, or give it something else to take."""

    def before(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        x = args[0] if given is None else given
        seen.inputs[site] = x.detach()
        if site[1] == "o_proj":
            x.register_hook(lambda gradient: seen.d_inputs.__setitem__(site, gradient))
        return (x,)

    def after(_module: nn.Module, _args: Any, y: Tensor) -> None:
        seen.outputs[site] = y.detach()
        y.register_hook(lambda gradient: seen.d_outputs.__setitem__(site, gradient))

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def stacked(tensors: dict[Site, Tensor], sites: Sequence[Site]) -> Tensor:
    return torch.cat([tensors[site] for site in sites])


def mean(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).mean(0)


def by_head(x: Tensor) -> Tensor:
    """[..., pos, head * d_head] to [..., head, pos, d_head]."""
    return x.unflatten(-1, (N_HEADS, -1)).transpose(-2, -3)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def check(setup: Setup, shape: Shape) -> None:
    """Against ecstruct on 11 prompts, of which one is scored."""
    prompts = make_prompts(N_COUNTERFACTUALS + 1)
    ids, answers = ids_of(prompts, setup.device)
    published = Published(*plain_pair(shape, setup.device))
    engine = ScoreEngine(*hooked_pair(shape, setup.device), **PAPER, convention="reference", progress=False)
    ours = engine.score(prompts)
    for name, (mlp, heads) in published.scores(1, ids, answers, np.random.default_rng(0)).items():
        of_prompt = (part.sel(score=name).isel(prompt=1).values for part in (ours.mlp, ours.heads))
        for kind, found, expected in zip(("MLPs", "heads"), (mlp, heads), of_prompt, strict=True):
            check_equal(f"{name} scores of {kind}", found.cpu(), expected)


def block_calls(engine: ScoreEngine, run: Side) -> int:
    """How often the last block is called in a run: how many forward passes each prompt goes through."""
    calls: list[int] = []
    last = engine.pair.view.blocks[-1]
    handle = last.register_forward_pre_hook(lambda *_: calls.append(1))
    run()
    handle.remove()
    return len(calls)


def rows(setup: Setup) -> Iterator[Row]:
    for shape in setup.shapes(("olmo", 32, 256)):
        check(setup, shape)
        prompts = make_prompts(20)
        ids, answers = ids_of(prompts, setup.device)
        published = Published(*plain_pair(shape, setup.device))
        engine = ScoreEngine(*hooked_pair(shape, setup.device), **PAPER, progress=False)
        ours = partial(engine.score, prompts)
        published.scores(0, ids, answers, np.random.default_rng(0))
        yield Row(
            "published way, forward passes of a prompt",
            str(shape),
            Measured(
                f"published, {published.backward_passes} backward beside", published.forward_passes, ""
            ),
            Measured("ScoreEngine.score", block_calls(engine, ours), ""),
        )

        def slowly(published=published, ids=ids, answers=answers) -> None:
            for index in range(N_TIMED):
                published.scores(index, ids, answers, np.random.default_rng(index))

        costs = alternate({"published": slowly, "ScoreEngine.score": ours}, setup.repeats, setup.device)
        slow, fast = costs["published"].over(N_TIMED), costs["ScoreEngine.score"].over(len(prompts))
        for what, unit, attribute in (
            ("CPU time", "s/prompt", "cpu"),
            ("wall time", "s/prompt", "wall"),
            ("matrix products", "GFLOP/prompt", "gflop"),
        ):
            yield Row(
                f"published way, {what}",
                str(shape),
                Measured("published", getattr(slow, attribute), unit, slow.peak),
                Measured("ScoreEngine.score", getattr(fast, attribute), unit, fast.peak),
                ">= 50" if attribute == "cpu" else "",
            )


if __name__ == "__main__":
    main({"published": rows})
