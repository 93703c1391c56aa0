"""Edits: replace the inputs or outputs of the sites of a block while it runs.

The heads' z is the input of `attn.o`. What attention and the MLP write, before any post-norm, is the output
of `attn.o` and of `mlp.out`. An edit is a function from the value that the block computed, in the graph of
its run, to the new one. Shortcuts are edits that insert values which are known, and skip computations that
nothing reads.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ecstruct.models.sites import Site

Edit = Callable[[Tensor], Tensor]


@contextmanager
def editing(
    sites: Mapping[str, Site], inputs: Mapping[str, Edit], outputs: Mapping[str, Edit]
) -> Iterator[None]:
    """Edit the inputs and outputs of these sites of one block, by name, in every run of the block.

    Do not edit the input of `mlp.out` of an MLP without the usual projections (a mixture of experts): that
    site is an identity.
    """

    def before(edit: Edit) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if "hidden_states" in kwargs:
                return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}
            return (edit(args[0]), *args[1:]), kwargs

        return hook

    def after(edit: Edit) -> Callable[..., Any]:
        return lambda _module, _args, output: edit(output)

    with ExitStack() as stack:
        for name, edit in inputs.items():
            handle = sites[name].component.register_forward_pre_hook(before(edit), with_kwargs=True)
            stack.callback(handle.remove)
        for name, edit in outputs.items():
            stack.callback(sites[name].component.register_forward_hook(after(edit)).remove)
        yield


def first_token(x: Tensor) -> Tensor:
    """Keep one token, [batch, 1, d], of an input of which nothing reads the output."""
    return x[:, :1]


def replaced_by(value: Tensor) -> Edit:
    """Return the edit that replaces whatever was computed by `value`."""
    return lambda _: value


def shortcuts(
    sites: Mapping[str, Site],
    written: Mapping[str, Tensor],
    at: Int[Tensor, "batch read"] | None,
    length: int,
) -> AbstractContextManager[None]:
    """Shorten the runs of a block on `length` tokens; see `HookedView.through` for the arguments."""
    rows = None if at is None else torch.arange(len(at), device=at.device)[:, None]

    def everywhere(output: Tensor) -> Tensor:
        return output.expand(-1, length, -1).contiguous()

    def where_read(x: Tensor) -> Tensor:
        return x[rows, at]

    def back_in_place(output: Tensor) -> Tensor:
        empty = output.new_zeros(len(output), length, output.shape[-1])
        return empty.index_put((rows, at), output)

    inputs: dict[str, Edit] = {}
    outputs: dict[str, Edit] = {}
    if "attn.o" in written:
        inputs |= dict.fromkeys(("attn.q", "attn.k", "attn.v", "attn.o"), first_token)
        outputs |= dict.fromkeys(("attn.q", "attn.k", "attn.v"), everywhere)
    elif at is not None:
        inputs["attn.o"], outputs["attn.o"] = where_read, back_in_place
    if at is not None:
        inputs[next(name for name in ("ln2", "mlp", "mlp.in") if name in sites)] = where_read
        outputs["mlp.out"] = back_in_place
    outputs |= {name: replaced_by(value) for name, value in written.items()}
    return editing(sites, inputs, outputs)
