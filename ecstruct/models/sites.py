"""Sites: the modules of a hooked model that are affine in their weights, with their inputs and outputs.

A site is a projection, a norm or an embedding. The effect of a change of its weights on its output is an
exact product, token by token; all scores of weight changes are computed site by site.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

Weights = Mapping[str, Tensor]
"""Tensors by the weight's name in the whole model."""

QK_NORMS = ("attn.q_norm", "attn.k_norm")
"""The norms of queries and keys, whose weights belong to the heads."""

PRE_NORMS = ("ln1", "ln2")

_LINEAR = (nn.Linear, Conv1D, nn.Embedding)


@dataclass(frozen=True)
class Tap:
    """The input and output of one call of a module, in the graph of its run."""

    input: Tensor
    output: Tensor


@dataclass(frozen=True)
class Site:
    """A module that is affine in its weights; `weights` maps the names that its parameters have in the
    module to those that they have in the whole model."""

    name: str
    component: nn.Module
    weights: dict[str, str]

    @property
    def module(self) -> nn.Module:
        """The model's own module, below TransformerLens' hooks."""
        return self.component.original_component  # type: ignore[return-value]

    @property
    def projection(self) -> str | None:
        """The projection of MLPs or heads that the site is: "q", "k", "v", "o", "in", "gate", "out", or
        "norm" for pre-norms and the norms of queries and keys; `None` if it belongs to neither."""
        if self.name in (*QK_NORMS, *PRE_NORMS):
            return "norm"
        part, _, projection = self.name.partition(".")
        return projection if part in ("attn", "mlp") else None

    def product(self, x: Tensor, change: Weights, weights: Weights | None = None) -> Tensor | None:
        """Return J(x) dW, the derivative of the output along a change of the weights, in the shape of the
        output; `x` is the input. As the output is affine in the weights, this is f(x; dW) - f(x; 0),
        without any linearisation error, and the same at all `weights`. Return `None` if none of them
        changes."""
        along = self._local(change)
        if not along:
            return None
        dtype = next(iter(along.values())).dtype
        # TransformerLens adds a bias of zeros, as a buffer, to an unembedding without bias.
        for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            if name not in along and name in ("weight", "bias"):
                along[name] = torch.zeros(tensor.shape, dtype=dtype, device=x.device)
        out = functional_call(self.module, along, (x,))
        if isinstance(self.module, _LINEAR):
            return out
        return out - functional_call(
            self.module, {name: torch.zeros_like(d) for name, d in along.items()}, (x,)
        )

    def difference(self, x: Tensor, change: Weights, weights: Weights) -> Tensor | None:
        """Return f(x; W + dW) - f(x; W) at the site's `weights` W, `None` if none of them changes."""
        return self.product(x, change)

    def gradient(self, x: Tensor, d_output: Tensor, weights: Weights) -> dict[str, Tensor]:
        """Return dR/dW of the site's weights, by their names in the whole model, in the shapes of the
        weights: summed over rows and tokens of its input `x` [row, pos, d_in]. `d_output` [row, pos, d_out]
        is dR/d(output), and `weights` have its weights."""
        at = {here: w.detach().requires_grad_() for here, w in self._local(weights).items()}
        if not at:
            return {}
        with torch.enable_grad():
            out = functional_call(self.module, at, (x,))
            found = torch.autograd.grad(
                out, [*at.values()], d_output, allow_unused=True, materialize_grads=True
            )
        return {self.weights[here]: gradient for here, gradient in zip(at, found, strict=True)}

    def matrix(self, weights: Weights) -> Float[Tensor, "d_out d_in"] | None:
        weight = self._local(weights).get("weight")
        return weight.T if weight is not None and isinstance(self.module, Conv1D) else weight

    def bias(self, weights: Weights) -> Float[Tensor, " d_out"] | None:
        return self._local(weights).get("bias")

    def _local(self, weights: Weights) -> dict[str, Tensor]:
        return {here: weights[name] for here, name in self.weights.items() if name in weights}


class WholeMLP(Site):
    """`mlp.in` of an MLP without the usual projections (a mixture of experts): the whole MLP, from its
    input to what it writes. It is not affine in its weights, so its derivatives depend on `weights`."""

    @property
    def projection(self) -> str:
        """ "experts": its projections are not told apart."""
        return "experts"

    def product(self, x: Tensor, change: Weights, weights: Weights | None = None) -> Tensor | None:
        along, at = self._local(change), self._local(weights or {})
        if not along:
            return None
        with forward_mode():
            moving = {n: forward_ad.make_dual(t, along[n]) if n in along else t for n, t in at.items()}
            moved = forward_ad.unpack_dual(functional_call(self.module, moving, (x,)))
        return torch.zeros_like(moved.primal) if moved.tangent is None else moved.tangent

    def difference(self, x: Tensor, change: Weights, weights: Weights) -> Tensor | None:
        if not (along := self._local(change)):
            return None
        at = self._local(weights)
        moved = {name: w + along[name] if name in along else w for name, w in at.items()}
        return functional_call(self.module, moved, (x,)) - functional_call(self.module, at, (x,))


class Written(Site):
    """`mlp.out` of such an MLP: an identity, whose input and output are what the MLP writes."""


@contextmanager
def forward_mode() -> Iterator[None]:
    """Let dual tensors carry derivatives forward in this context."""
    with forward_ad.dual_level(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # raised by torch's own code
        yield


def whole_mlp(component: nn.Module, prefix: str) -> dict[str, Site]:
    """Return both sites of such an MLP; `prefix` comes before the names of its parameters."""
    own = component.original_component.named_parameters()  # type: ignore[union-attr, operator]
    weights = {name: prefix + name.replace("_original_component.", "") for name, _ in own}
    return {"mlp.in": WholeMLP("mlp.in", component, weights), "mlp.out": Written("mlp.out", component, {})}


def token_axis(norm: Site) -> int:
    """Return the token axis of the input of a norm of single queries or keys: it is [batch, head, pos,
    d_head] or, if the norm has weights for each head, [batch, pos, head, d_head]."""
    return 1 if any(p.ndim == 2 for p in norm.module.parameters()) else 2


def sites_of(root: nn.Module, names: list[str], prefix: str) -> dict[str, Site]:
    """Return the sites below `root` to which the weights `names` belong; `prefix` is cut off the names."""
    sites: dict[str, Site] = {}
    for name in names:
        path, _, parameter = name.removeprefix(prefix).rpartition(".")
        component = root
        for part in path.split("."):
            component = getattr(component, part)
        site = sites.setdefault(path, Site(path, component, {}))
        site.weights[parameter] = name
    return sites


def names_under(root: nn.Module, sites: Mapping[str, Site]) -> dict[str, str]:
    """Return the path below `root` of each weight of the sites, as `functional_call` takes it."""
    paths = {id(module): path for path, module in root.named_modules()}
    return {
        name: f"{paths[id(site.module)]}.{parameter}"
        for site in sites.values()
        for parameter, name in site.weights.items()
    }


@contextmanager
def tapping(sites: Mapping[str, Site], leaves: int = 0) -> Iterator[dict[str, Tap]]:
    """Collect the `Tap` of every site's last call. With `leaves`, what is looked up becomes a leaf of the
    graph with that many rows: a position embedding is looked up once for all prompts, but belongs to each.
    """
    taps: dict[str, Tap] = {}

    def tap(name: str) -> Callable[..., Tensor | None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            looked_up = leaves and not args[0].is_floating_point()
            if looked_up:
                rows = output.detach().expand(leaves, *output.shape[1:])
                output = rows.contiguous().requires_grad_()
            taps[name] = Tap(output if isinstance(sites[name], Written) else args[0], output)
            return output if looked_up else None

        return hook

    handles = [site.component.register_forward_hook(tap(name)) for name, site in sites.items()]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()
