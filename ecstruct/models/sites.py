"""Sites: the modules of a hooked model that are affine in their weights, with their inputs and outputs.

A site is a projection, a norm or an embedding. The effect of a change of its weights on its output is an
exact product, token by token; all scores of weight changes are computed site by site. Some sites are not
affine in their weights, and their product is a derivative in forward mode.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

Weights = Mapping[str, Tensor]
"""Tensors by the weight's name in the whole model."""

QK_NORMS = ("attn.q_norm", "attn.k_norm")
"""The norms of queries and keys, whose weights belong to the heads."""

SINKS = "attn.sinks"
"""A logit for each head, a weight of its own, which takes part in every softmax and reads no token."""

LATENT = (
    *("attn.q_proj", "attn.q_a_proj", "attn.q_a_layernorm", "attn.q_b_proj"),
    *("attn.kv_a_proj_with_mqa", "attn.kv_a_layernorm", "attn.kv_b_proj"),
)
"""The sites of multi-head latent attention: queries, and keys with values, are each made of a latent that
all heads share, by the matrices called b."""

PRE_NORMS = ("ln1", "ln2")

_LINEAR = (nn.Linear, Conv1D, nn.Embedding)

_AFFINE = ("weight", "bias")
"""The names of the parameters of modules that are affine in these."""


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
        "norm" for pre-norms and the norms of queries and keys; `None` if it belongs to neither. Latent keys
        and values count as "k"."""
        if self.name in (*QK_NORMS, *PRE_NORMS) or self.name.endswith("_a_layernorm"):
            return "norm"
        part, _, projection = self.name.partition(".")
        if self.name in LATENT:
            return projection[0]
        return projection if part in ("attn", "mlp") else None

    def product(self, x: Tensor, change: Weights, weights: Weights | None = None) -> Tensor | None:
        """Return J(x) dW, the derivative of the output along a change of the weights, in the shape of the
        output; `x` is the input. As the output is affine in the weights, this is f(x; dW) - f(x; 0),
        without any linearisation error, and the same at all `weights`. Return `None` if none of them
        changes."""
        along = self._local(change)
        if not along:
            return None
        if type(self.module) is nn.Linear and "weight" in along:
            return functional.linear(x, along["weight"], along.get("bias"))
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


class Curved(Site):
    """An activation with weights of its own: not affine in them, so its derivatives depend on `weights`."""

    @property
    def module(self) -> nn.Module:
        """The activation itself, which TransformerLens does not hook."""
        return getattr(self.component, "original_component", self.component)

    @property
    def projection(self) -> str:
        """ "in": that of what it acts on."""
        return "in"

    def product(self, x: Tensor, change: Weights, weights: Weights | None = None) -> Tensor | None:
        along, at = self._local(change), self._local(weights or {})
        if not along:
            return None
        with forward_mode():
            moving = {n: forward_ad.make_dual(t, along[n]) if n in along else t for n, t in at.items()}
            moved = forward_ad.unpack_dual(self._output(moving, x))
        return torch.zeros_like(moved.primal) if moved.tangent is None else moved.tangent

    def difference(self, x: Tensor, change: Weights, weights: Weights) -> Tensor | None:
        if not (along := self._local(change)):
            return None
        at = self._local(weights)
        moved = {name: w + along[name] if name in along else w for name, w in at.items()}
        return self._output(moved, x) - self._output(at, x)

    def _output(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return by_prompt(functional_call(self.module, weights, (x,)), len(x))


class WholeMLP(Curved):
    """`mlp.in` of an MLP without the usual projections (a mixture of experts): the whole MLP, from its
    input to what it writes."""

    @property
    def projection(self) -> str:
        """ "experts": its projections are not told apart."""
        return "experts"


class Written(Site):
    """`mlp.out` of such an MLP: an identity, whose input and output are what the MLP writes."""


class Sinks(Site):
    """`attn.sinks`: weights [head] that the attention itself reads, so that its tap has them as output."""

    @property
    def projection(self) -> str:
        """ "k": they are the logits of a key that all tokens see, whose value is zero."""
        return "k"

    def product(self, x: Tensor, change: Weights, weights: Weights | None = None) -> Tensor | None:
        return self._local(change).get("sinks")


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


def of_heads(sites: Iterable[str]) -> list[str]:
    """Return those of a block's sites that come before the heads' z: all of its attention but W_O."""
    return [name for name in sites if name.startswith("attn.") and name != "attn.o"]


def entries(sites: Iterable[str]) -> list[str]:
    """Return those of a block's sites that read what its attention reads."""
    inner = (*QK_NORMS, SINKS)
    return [n for n in of_heads(sites) if n not in inner and not n.endswith(("_layernorm", "_b_proj"))]


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
        if parameter == "sinks":
            sites[SINKS] = Sinks(SINKS, component, {parameter: name})
            continue
        of = Site if parameter in _AFFINE else Curved
        site = sites.setdefault(path, of(path, component, {}))
        site.weights[parameter] = name
    return sites


def others_of(block: Any, prefix: str) -> dict[str, nn.Parameter]:
    """Return the parameters of a block's attention and MLP that are neither weights nor biases of a module
    (sinks, slopes of activations), by name; `prefix` is that of the block."""
    return {
        f"{prefix}{part}.{name}": p
        for part in ("attn", "mlp")
        if hasattr(block, part) and getattr(block, part).name is not None
        for name, p in getattr(block, part).original_component.named_parameters()
        if name.rpartition(".")[2] not in _AFFINE
    }


def names_under(root: nn.Module, sites: Mapping[str, Site]) -> dict[str, str]:
    """Return the path below `root` of each weight of the sites, as `functional_call` takes it."""
    paths = {id(module): path for path, module in root.named_modules()}
    return {
        name: f"{paths[id(site.module)]}.{parameter}"
        for site in sites.values()
        for parameter, name in site.weights.items()
    }


def by_prompt(seen: Any, n: int) -> Tensor:
    """Return what a module reads or writes for `n` prompts as [prompt, pos, ...]. Some modules write a
    tuple, of which this is the first, and some see the tokens of all prompts in one row."""
    seen = seen[0] if isinstance(seen, tuple) else seen
    return seen.unflatten(0, (n, -1)) if seen.ndim == 2 and seen.is_floating_point() else seen


def in_form_of(seen: Any, value: Tensor) -> Any:
    """Return a value [prompt, pos, ...] in the form in which a module reads or writes such values."""
    if isinstance(seen, tuple):
        return (in_form_of(seen[0], value), *seen[1:])
    return value.flatten(0, 1) if seen.ndim == 2 else value


@contextmanager
def tapping(sites: Mapping[str, Site], n: int, leaves: bool = False) -> Iterator[dict[str, Tap]]:
    """Collect the `Tap` of every site's last call, on `n` prompts. With `leaves`, what is looked up becomes
    a leaf of the graph with that many rows: a position embedding is looked up once for all prompts, but
    belongs to each."""
    taps: dict[str, Tap] = {}
    inputs: dict[str, Tensor] = {}

    def enter(name: str) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> Any:
            inputs[name] = by_prompt(args[0], n)
            return None if inputs[name] is args[0] else (in_form_of(args[0], inputs[name]), *args[1:])

        return hook

    def leave(name: str) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if looked_up := leaves and not args[0].is_floating_point():
                written = output.detach().expand(n, *output.shape[1:]).contiguous().requires_grad_()
            else:
                written = by_prompt(output, n)
            taps[name] = Tap(written if isinstance(sites[name], Written) else inputs[name], written)
            if written is output:
                return None
            return written if looked_up else in_form_of(output, written)

        return hook

    with ExitStack() as stack:
        for name, site in sites.items():
            stack.callback(site.component.register_forward_pre_hook(enter(name)).remove)
            stack.callback(site.component.register_forward_hook(leave(name)).remove)
        yield taps
