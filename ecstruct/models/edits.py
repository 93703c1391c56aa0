"""Edits: replace the inputs or outputs of the sites of a block while it runs.

An edit is a function from the tensor that the block computed, in the graph of its run, to the tensor that
replaces it. The heads' z is the input of the site `attn.o`. What attention and the MLP write, before any
post-norm, are the outputs of `attn.o` and of `mlp.out`. Shortcuts are edits that insert outputs which are
known already, and skip the computations whose results nothing reads.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ecstruct.models.sites import Site, by_prompt, entries, in_form_of

Edit = Callable[[Tensor], Tensor]


@contextmanager
def editing(
    sites: Mapping[str, Site], inputs: Mapping[str, Edit], outputs: Mapping[str, Edit], n: int
) -> Iterator[None]:
    """Apply edits to the inputs and outputs of sites of one block, by site name, whenever it runs in this
    context on `n` prompts. The input of `mlp.out` of a mixture of experts must not be edited: that site is
    an identity."""

    def before(edit: Edit) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if "hidden_states" in kwargs:
                return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}
            return (in_form_of(args[0], edit(by_prompt(args[0], n))), *args[1:]), kwargs

        return hook

    def after(edit: Edit) -> Callable[..., Any]:
        return lambda _module, _args, output: in_form_of(output, edit(by_prompt(output, n)))

    with ExitStack() as stack:
        for name, edit in inputs.items():
            handle = sites[name].component.register_forward_pre_hook(before(edit), with_kwargs=True)
            stack.callback(handle.remove)
        for name, edit in outputs.items():
            stack.callback(sites[name].component.register_forward_hook(after(edit)).remove)
        yield


def first_token(x: Tensor) -> Tensor:
    """Keep the first token only, [batch, 1, d]: the edit for an input whose output nothing reads."""
    return x[:, :1]


def replaced_by(value: Tensor) -> Edit:
    """Return the edit that puts `value` in the place of whatever was computed."""
    return lambda _: value


def shortcuts(
    sites: Mapping[str, Site],
    written: Mapping[str, Tensor],
    at: Int[Tensor, "batch read"] | None,
    n: int,
    length: int,
) -> AbstractContextManager[None]:
    """Return a context in which a block on `n` prompts of `length` tokens computes only what is read.

    `written` has known outputs of `attn.o` and `mlp.out`, by name, which need not be computed. With `at`,
    attention and MLP write at these positions only, and zeros elsewhere; see `HookedView.through`."""
    rows = None if at is None else torch.arange(len(at), device=at.device)[:, None]

    def repeat_token(output: Float[Tensor, "batch 1 d"]) -> Float[Tensor, "batch pos d"]:
        return output.expand(-1, length, -1).contiguous()

    def gather_read(x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch read d"]:
        return x[rows, at]

    def scatter_read(output: Float[Tensor, "batch read d"]) -> Float[Tensor, "batch pos d"]:
        zeros = output.new_zeros(len(output), length, output.shape[-1])
        return zeros.index_put((rows, at), output)

    inputs: dict[str, Edit] = {}
    outputs: dict[str, Edit] = {}
    if "attn.o" in written:
        inputs |= dict.fromkeys((*entries(sites), "attn.o"), first_token)
        outputs |= dict.fromkeys(entries(sites), repeat_token)
    elif at is not None:
        inputs["attn.o"], outputs["attn.o"] = gather_read, scatter_read
    if at is not None:
        inputs[next(name for name in ("ln2", "mlp", "mlp.in") if name in sites)] = gather_read
        outputs["mlp.out"] = scatter_read
    outputs |= {name: replaced_by(value) for name, value in written.items()}
    return editing(sites, inputs, outputs, n)
