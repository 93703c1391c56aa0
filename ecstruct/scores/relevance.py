"""The rules of relevance: a backward pass that gives the slope of a large step, not that of a small one.

A gradient is the slope of an infinitesimal step. An intervention removes the whole of what a component
writes, which passes through norms, products and activations on its way to the reward; there, the slope of
an infinitesimal step says little about the whole one. Layer-wise relevance propagation passes on the effect
of the whole step. Its rules, as used by Achtibat et al. 2024 for transformers (arXiv 2402.05602), and by
Jafari, Eberle, Khakzar and Nanda 2025 for attribution patching (RelP, arXiv 2508.21258), are those of a
linear model that has the values of the forward pass:

| operation | rule |
|---|---|
| norm, x / s(x) | s is held constant: d_x = d_y / s; the mean of a layer norm is not held |
| product of two activations, a b | each factor gets half: d_a = d_y b / 2, d_b = d_y a / 2 |
| activation, f(x) with f(0) = 0 | f(x) / x is held: d_x = d_y f(x) / x, and d_y f'(0) where x = 0 |
| x f(x), elementwise | this counts as an activation: f is held, d_x = d_y f(x) |
| softmax, sigmoid | the output is held: attention patterns, routers and gates pass nothing on |
| linear operations | the gradient |

Therefore a soft-cap is an activation; norms of queries and keys, rotations and position biases have no
effect; a norm after a component is a norm like any other; experts are weighted by the held router; parallel
blocks need no rule.

The model is not modified. An operation is recognised by its node in the graph that autograd recorded in the
model's own forward pass, and a hook on the node applies the rule in those backward passes that ask for it;
in all others the same graph gives gradients.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ecstruct.errors import InputError

Node = Any
"""A node of autograd's graph; torch has no public type for the nodes that it makes."""

Edge = tuple[Node, int]
"""A node, and the index of one of its outputs."""

Grads = tuple[Any, ...]

Rule = Callable[[Grads, Grads], Grads]
"""A function from the gradients of a node's inputs and outputs to what its inputs get instead."""

Passing = dict[Node, tuple[bool, ...]]
"""For each node, whether it passes anything on to each of its inputs."""

_LINEAR = frozenset(
    {
        *("Add", "Sub", "Rsub", "Neg", "Sum", "Mean", "Cumsum", "Clone", "ToCopy", "Copy", "Alias"),
        *("View", "ReshapeAlias", "UnsafeView", "Permute", "Transpose", "T", "Expand", "Repeat"),
        *(
            "Squeeze",
            "Unsqueeze",
            "Slice",
            "Select",
            "Narrow",
            "Index",
            "IndexSelect",
            "Gather",
            "AsStrided",
        ),
        *("Cat", "Stack", "Split", "SplitWithSizes", "Unbind", "Where", "MaskedFill", "IndexPut"),
        *(
            "IndexPutImpl",
            "IndexAdd",
            "ScatterAdd",
            "Scatter",
            "ConstantPadNd",
            "Roll",
            "Flip",
            "CopySlices",
        ),
        *("Relu", "LeakyRelu"),  # their quotient f(x) / x equals their slope
    }
)
_HELD = frozenset({"Softmax", "Sigmoid", "Rsqrt", "Sqrt", "Reciprocal", "LinalgVectorNorm", "Norm"})
_PRODUCTS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"Mul": (0, 1), "Mm": (0, 1), "Bmm": (0, 1), "Addmm": (1, 2), "Baddbmm": (1, 2)}
)
"""For each kind of product, the indices of the inputs that are its factors."""

_ACTIVATIONS: Mapping[str, Callable[[Node], Callable[[Tensor], Tensor]]] = MappingProxyType(
    {
        "Silu": lambda node: functional.silu,
        "Gelu": lambda node: partial(functional.gelu, approximate=node._saved_approximate),
        "Clamp": lambda node: partial(torch.clamp, min=node._saved_min, max=node._saved_max),
        "Hardtanh": lambda node: partial(torch.clamp, min=node._saved_min_val, max=node._saved_max_val),
        "Mish": lambda node: functional.mish,
        "Hardswish": lambda node: functional.hardswish,
        "Pow": lambda node: partial(torch.pow, exponent=node._saved_exponent),
        "Tanh": lambda node: torch.tanh,
        "Expm1": lambda node: torch.expm1,
        "Minimum": lambda node: partial(torch.minimum, other=node._saved_other),
        "GeLUFunction": lambda node: partial(functional.gelu, approximate="tanh"),  # of transformers' Bloom
    }
)
"""For each kind of activation, a function from its node to the activation itself."""

_KNOWN = {*_LINEAR, *_HELD, *_PRODUCTS, *_ACTIVATIONS, "Div", "NativeLayerNorm", "FusedRmsNorm"} | {
    "AccumulateGrad"
}

_ELEMENTWISE = {*_ACTIVATIONS, "Add", "Sub", "Rsub", "Neg", "Mul", "Div", "ToCopy", "Relu"} | {
    *("Sigmoid", "Erf", "Exp")
}


class Relevance:
    """The rules on all graphs given to `prepare`; backward passes within `followed` apply them."""

    def __init__(self) -> None:
        self._followed = False

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Make backward passes in this block follow the rules; outside, they give gradients."""
        self._followed = True
        try:
            yield
        finally:
            self._followed = False

    def prepare(self, output: Tensor) -> None:
        """Attach the rules to the graph that leads to `output`.

        Raises:
            InputError: it has an operation without a rule.
        """
        assert output.grad_fn is not None
        passing: Passing = {}
        for node in _inputs_first(output.grad_fn):
            passing[node], rule = _rule(node, passing)
            if rule is not None:
                node.register_hook(self._only_when_followed(rule))
        _check_has_rules(output.grad_fn, passing)

    def _only_when_followed(self, rule: Rule) -> Callable[[Grads, Grads], Grads | None]:
        def hook(d_inputs: Grads, d_outputs: Grads) -> Grads | None:
            asked = self._followed and any(d is not None for d in d_outputs)
            return rule(d_inputs, d_outputs) if asked else None

        return hook


def _inputs_first(output: Node) -> list[Node]:
    """Return the nodes of a graph in topological order, inputs first."""
    found: dict[Node, None] = {}
    stack = [(output, False)]
    while stack:
        node, seen = stack.pop()
        if seen:
            found[node] = None
        elif node not in found:
            stack.append((node, True))
            stack += [(of, False) for of, _ in node.next_functions if of is not None and of not in found]
    return list(found)


def _check_has_rules(output: Node, passing: Passing) -> None:
    """Raise `InputError` if an operation that passes something on has no rule."""
    stack, seen = [output], {output}
    while stack:
        node = stack.pop()
        if _kind(node) not in _KNOWN:
            raise InputError(
                f"this model has an operation without a rule of relevance ({node.name()}): score it with "
                "propagation='gradient'."
            )
        edges = zip(node.next_functions, passing[node], strict=False)
        new = {of for (of, _), passes in edges if passes and of is not None} - seen
        seen |= new
        stack += new


def _rule(node: Node, passing: Passing) -> tuple[tuple[bool, ...], Rule | None]:
    """Return to which inputs a node passes anything on, and its rule, or None for the gradient."""
    name = _kind(node)
    reached = tuple(of is not None and any(passing[of]) for of, _ in node.next_functions)
    nothing = (False,) * len(reached)
    if name == "AccumulateGrad":
        return (True,), None  # a leaf, the input of the graph
    if not any(reached):
        return nothing, None
    if name in _HELD or (name == "Pow" and node._saved_exponent < 0):
        return nothing, lambda d_inputs, _: (None,) * len(d_inputs)
    if name == "Div":
        return (reached[0], False), lambda d_inputs, _: (d_inputs[0], None)
    if name in _PRODUCTS:
        return _product(node, name, reached)
    if name in _ACTIVATIONS:
        return reached, _activation(node, _ACTIVATIONS[name](node))
    if name == "NativeLayerNorm":
        return reached, _layer_norm(node)
    if name == "FusedRmsNorm":
        return reached, _rms_norm(node)
    return reached, None


def _kind(node: Node) -> str:
    return node.name().rpartition("::")[2].partition("Backward")[0]


def _product(node: Node, name: str, reached: tuple[bool, ...]) -> tuple[tuple[bool, ...], Rule | None]:
    """Return what `_rule` does for a product: both factors get half of their gradients; in x f(x), a gate,
    x gets all of it and f(x) none."""
    first, second = _PRODUCTS[name]
    if not (reached[first] and reached[second]):
        return reached, None
    held = _gate(node) if name == "Mul" else None
    if held is None:
        return reached, lambda d_inputs, _: tuple(
            d / 2 if d is not None and at in (first, second) else d for at, d in enumerate(d_inputs)
        )
    return tuple(at != held for at in range(2)), lambda d_inputs, _: tuple(
        None if at == held else d for at, d in enumerate(d_inputs)
    )


def _gate(product: Node) -> int | None:
    """Return which factor of x f(x) is f(x), 0 or 1; None if neither is a function of the other."""
    x, f = product.next_functions
    if _is_function_of(f, _without_scale(x)):
        return 1
    return 0 if _is_function_of(x, _without_scale(f)) else None


def _without_scale(edge: Edge) -> Edge:
    """Follow an edge back through multiplications by constants."""
    while _kind(edge[0]) in ("Mul", "Div", "Neg"):
        factors = [of for of in edge[0].next_functions if of[0] is not None]
        if len(factors) != 1:
            break
        edge = factors[0]
    return edge


def _is_function_of(edge: Edge, x: Edge) -> bool:
    """Return whether a tensor is an elementwise function of `x` alone."""
    stack = [edge]
    while stack:
        node, at = stack.pop()
        if (node, at) == x:
            continue
        if _kind(node) not in _ELEMENTWISE:
            return False
        stack += [of for of in node.next_functions if of[0] is not None]
    return True


def _activation(node: Node, f: Callable[[Tensor], Tensor]) -> Rule:
    if inverse := {"Tanh": torch.atanh, "Expm1": torch.log1p}.get(_kind(node)):
        x = inverse(node._saved_result.detach())
    else:
        x = (node.saved_tensors[0] if hasattr(node, "saved_tensors") else node._saved_self).detach()

    def rule(d_inputs: Grads, d_outputs: Grads) -> Grads:
        return (torch.where(x == 0, d_inputs[0], d_outputs[0] * f(x) / x), *d_inputs[1:])

    return rule


def _layer_norm(node: Node) -> Rule:
    scale, weight, shape = node._saved_result2, node._saved_weight, node._saved_normalized_shape
    over = tuple(range(-len(shape), 0))

    def rule(d_inputs: Grads, d_outputs: Grads) -> Grads:
        d: Any = d_outputs[0] if weight is None else d_outputs[0] * weight
        return ((d - d.mean(over, keepdim=True)) * scale, *d_inputs[1:])

    return rule


def _rms_norm(node: Node) -> Rule:
    scale, weight = node._saved_result1, node._saved_weight

    def rule(d_inputs: Grads, d_outputs: Grads) -> Grads:
        return ((d_outputs[0] if weight is None else d_outputs[0] * weight) * scale, *d_inputs[1:])

    return rule
