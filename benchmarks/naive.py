"""The three scores as one would write them with TransformerLens itself, against ecstruct.

`run_with_cache` and hooks, one batch for all prompts, per-head outputs from `hook_result`, weight gradients
by backpropagation. Under W and W', one forward and one backward pass that cache activations and gradients;
one forward pass under W in which every component is given its input under W'. Nothing is computed twice,
and no gradient of a weight where none is needed.

Backpropagation sums the weight gradients of a batch. So informative scores of each prompt take passes of
one prompt under W ("a prompt at a time"); in one batch, their sum over prompts is all there is ("in one
batch"). Either way they are not split over tokens, which ecstruct's are. Before anything is timed, all
scores, summed over tokens, are held against those of ecstruct.

    python -m benchmarks.naive
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from benchmarks.agreement import check_equal
from benchmarks.command import main
from benchmarks.models import N_HEADS, PAPER, Shape, hooked_pair, ids_of, logit_diff, make_prompts
from benchmarks.setup import Setup
from benchmarks.table import Row
from benchmarks.timing import Side
from ecstruct.scores import ExtractiveScores
from ecstruct.scores.engine import ScoreEngine

SIZES = (("olmo", 8, 512), ("olmo", 32, 256))
ATTENTION = ("q", "k", "v", "o")
GATED_MLP = ("gate", "in", "out")

Scores = dict[str, tuple[Tensor, Tensor]]
"""By name, of MLPs [prompt, layer] and of heads [prompt, layer, head]; informative ones [pass, ...]."""


@dataclass
class Naive:
    """Two hooked models without norm weights and biases in their blocks, as OLMo's are."""

    before: TransformerBridge
    after: TransformerBridge

    def __post_init__(self) -> None:
        self.before.set_use_attn_result(True)
        self.layers = range(len(self.before.blocks))
        for parameter in self.weights(self.before):  # those of W' stay frozen
            parameter.requires_grad_()

    def scores(self, ids: Tensor, answers: Tensor, at_once: int) -> Scores:
        """With `at_once` prompts in a pass under W."""
        writes = self.names("mlp.hook_out", "attn.hook_result")
        reads = self.names("ln1.hook_in", "ln2.hook_in")
        written: dict[str, list[Tensor]] = {name: [] for name in writes}
        old: dict[str, list[Tensor]] = {name: [] for name in self.gradients_at}
        mlp, heads = [], []
        for some, right in zip(ids.split(at_once), answers.split(at_once), strict=True):
            cache, d_weights = self.run(
                self.before, some, right, answers, writes, self.weights(self.before)
            )
            for name in writes:
                written[name].append(cache[name])
            for name in self.gradients_at:
                old[name].append(cache[f"{name}_grad"])
            of_mlp, of_heads = self.informative(d_weights)
            mlp.append(of_mlp)
            heads.append(of_heads)
        y = {name: torch.cat(parts) for name, parts in written.items()}
        g = {name: torch.cat(parts) for name, parts in old.items()}
        new, _ = self.run(self.after, ids, answers, answers, reads, [])
        put_in = [(name, lambda x, hook: new[hook.name]) for name in reads]
        with torch.no_grad(), self.before.hooks(fwd_hooks=put_in):
            _, at_new = self.before.run_with_cache(ids, names_filter=writes, return_cache_object=False)
        up, down = [], []
        for layer in self.layers:
            at = f"blocks.{layer}"
            for name, to in (
                (f"{at}.mlp.hook_out", "mlp.hook_out"),
                (f"{at}.attn.hook_result", "attn.hook_out"),
            ):
                gradient, change = g[f"{at}.{to}"], new[f"{at}.{to}_grad"] - g[f"{at}.{to}"]
                others = (y[name].sum(0, keepdim=True) - y[name]) / (len(ids) - 1)
                up.append(summed(change, y[name] - others))
                down.append(summed(gradient, at_new[name] - y[name]))
        return {
            "informative": (torch.stack(mlp), torch.stack(heads)),
            "upstream": (torch.stack(up[::2], 1), torch.stack(up[1::2], 1)),
            "downstream": (torch.stack(down[::2], 1), torch.stack(down[1::2], 1)),
        }

    def run(
        self,
        model: TransformerBridge,
        ids: Tensor,
        answers: Tensor,
        options: Tensor,
        keep: list[str],
        weights: list[Tensor],
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """Activations, gradients at what components write ("_grad"), and the gradients of weights."""
        cache: dict[str, Tensor] = {}
        _, forward, _ = model.get_caching_hooks(keep, cache=cache)
        _, _, backward = model.get_caching_hooks(self.gradients_at, incl_bwd=True, cache=cache)
        # With every weight frozen, it is from here on that there is something to differentiate.
        leaf = ("embed.hook_out", lambda x, hook: x.requires_grad_())
        with model.hooks(fwd_hooks=[leaf, *forward], bwd_hooks=backward):
            logits = model(ids)[:, -1]
            reward = logit_diff(logits, answers, options).sum()
            if weights:
                return cache, torch.autograd.grad(reward, weights)
            reward.backward()
        return cache, ()

    def informative(self, d_weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """dR/dW . dW of MLPs [layer] and heads [layer, head]."""
        pairs = zip(d_weights, self.weights(self.before), self.weights(self.after), strict=True)
        with torch.no_grad():
            products = [gradient * (new - old) for gradient, old, new in pairs]
        mlp, heads = [], []
        for layer in self.layers:
            n_here = len(ATTENTION) + len(GATED_MLP)
            q, k, v, o, *of_mlp = products[layer * n_here : (layer + 1) * n_here]
            heads.append(sum(p.view(N_HEADS, -1).sum(1) for p in (q, k, v, o.T.contiguous())))
            mlp.append(sum(p.sum() for p in of_mlp))
        return torch.stack(mlp), torch.stack(heads)

    @property
    def gradients_at(self) -> list[str]:
        """Where attention and MLP write: the gradient is the same at each head's part."""
        return self.names("mlp.hook_out", "attn.hook_out")

    def names(self, *parts: str) -> list[str]:
        return [f"blocks.{layer}.{part}" for layer in self.layers for part in parts]

    def weights(self, model: TransformerBridge) -> list[Tensor]:
        return [
            getattr(part, name).original_component.weight
            for block in model.blocks
            for part, names in ((block.attn, ATTENTION), (block.mlp, GATED_MLP))
            for name in names
        ]


def summed(gradient: Tensor, value: Tensor) -> Tensor:
    """Inner product at each token, summed over tokens: of an MLP [prompt], of heads [prompt, head]."""
    product = "bpd,bpd->b" if value.ndim == 3 else "bpd,bphd->bh"
    return torch.einsum(product, gradient, value)


def check(ours: ExtractiveScores, naive: Scores) -> None:
    for score, (mlp, heads) in naive.items():
        for kind, found, expected in (("MLPs", mlp, ours.mlp), ("heads", heads, ours.heads)):
            values = expected.sel(score=score).sum("token")
            if len(found) == 1:
                values = values.sum("prompt").expand_dims("pass")
            check_equal(f"{score} scores of {kind}", found.cpu(), values.values)


def sides(setup: Setup, shape: Shape) -> dict[str, Side]:
    """Checked against one another."""
    prompts = make_prompts(setup.n_prompts)
    ids, answers = ids_of(prompts, setup.device)
    engine = ScoreEngine(*hooked_pair(shape, setup.device), **PAPER, progress=False)
    naive = Naive(*hooked_pair(shape, setup.device))
    ways = {
        "TransformerLens, a prompt at a time": partial(naive.scores, ids, answers, 1),
        "TransformerLens, in one batch": partial(naive.scores, ids, answers, len(ids)),
    }
    ours = engine.score(prompts)
    for way in ways.values():
        check(ours, way())
    return {**ways, "ScoreEngine.score": partial(engine.score, prompts)}


def rows(setup: Setup) -> Iterator[Row]:
    for shape in setup.shapes(*SIZES):
        found = setup.compared(sides(setup, shape))
        ours = found.pop("ScoreEngine.score")
        for measured in found.values():
            yield Row("three scores written with TransformerLens", str(shape), measured, ours)


if __name__ == "__main__":
    main({"naive": rows})
