"""How a model calls its blocks: recorded in a dry run, and replayed.

Masks, rotary tables, sliding windows: whatever an architecture passes to a block besides the residual
stream is taken from the model's own forward, in which a `Bypass` stands in for every block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class BlockCall:
    """The arguments with which the model called a block, without the residual stream."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_keyword: bool

    def bind(self, resid: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.by_keyword:
            return self.args, {**self.kwargs, "hidden_states": resid}
        return (resid, *self.args), self.kwargs


class Stop(Exception):
    """Ends a run from within, once everything that was asked for has been seen."""


class Bypass(nn.Module):
    """Stands in for a block in a dry run: `visit` gets the call and the residual stream entering the
    block, and gives what is to leave it."""

    def __init__(self, block: nn.Module, visit: Callable[[BlockCall, Tensor], Any]) -> None:
        super().__init__()
        self._real = (block,)  # in a tuple, so that the block is not registered as a submodule
        self._visit = visit

    def __getattr__(self, name: str) -> Any:
        # Some architectures read an attribute of the block (a layer type) in their own forward.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._real[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if "hidden_states" in kwargs:
            resid = kwargs.pop("hidden_states")
            return self._visit(BlockCall(args, kwargs, by_keyword=True), resid)
        return self._visit(BlockCall(args[1:], kwargs, by_keyword=False), args[0])
