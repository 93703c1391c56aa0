"""Shortcuts through a block: insert values that are known, and skip computations that nothing reads.

All of them are hooks on the sites of a block, so that the block's own code does the rest.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ecstruct.models.sites import Site


@contextmanager
def shortcuts(
    sites: Mapping[str, Site],
    written: Mapping[str, Tensor],
    at: Int[Tensor, "batch read"] | None,
    length: int,
) -> Iterator[None]:
    """Shorten the runs of a block on `length` tokens; see `HookedView.through` for the arguments."""
    rows = None if at is None else torch.arange(len(at), device=at.device)[:, None]

    def one_token(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][:, :1], *args[1:])

    def everywhere(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output.expand(-1, length, -1).contiguous()

    def where_read(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][rows, at], *args[1:])

    def back_in_place(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        empty = output.new_zeros(len(output), length, output.shape[-1])
        return empty.index_put((rows, at), output)

    def put_in(value: Tensor) -> Callable[..., Tensor]:
        return lambda _module, _args, _output: value

    with ExitStack() as stack:

        def before(name: str, hook: Callable[..., Any]) -> None:
            stack.callback(sites[name].component.register_forward_pre_hook(hook).remove)

        def after(name: str, hook: Callable[..., Any]) -> None:
            stack.callback(sites[name].component.register_forward_hook(hook).remove)

        if "attn.o" in written:
            for name in ("attn.q", "attn.k", "attn.v"):
                before(name, one_token)
                after(name, everywhere)
            before("attn.o", one_token)
        elif at is not None:
            before("attn.o", where_read)
            after("attn.o", back_in_place)
        if at is not None:
            before("ln2" if "ln2" in sites else "mlp", where_read)
            if "mlp.out" not in written:
                after("mlp.out", back_in_place)
        for name, value in written.items():
            after(name, put_in(value))
        yield
