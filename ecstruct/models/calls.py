"""Record how a model calls its blocks in a dry run, and replay these calls.

Whatever an architecture passes to a block besides the residual stream (masks, rotary tables, sliding
windows) is taken from the model's own forward, in which a `Bypass` replaces every block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ecstruct.errors import InputError


@dataclass(frozen=True)
class BlockCall:
    """The arguments with which the model calls a block, without the residual stream."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_keyword: bool

    def bind(self, resid: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.by_keyword:
            return self.args, {**self.kwargs, "hidden_states": resid}
        return (resid, *self.args), self.kwargs


def written_by(output: Any, architecture: str) -> Tensor:
    """Return the residual stream that a block writes; `output` may be a tuple, of which it is the first.

    Raises:
        InputError: The block writes indices, too, for the next one.
    """
    if not isinstance(output, tuple):
        return output
    if any(isinstance(other, Tensor) and not other.is_floating_point() for other in output[1:]):
        raise InputError(
            f"each block of this {architecture} tells the next one which tokens to attend to (sparse "
            "attention with an indexer), and blocks are scored one by one: use a model with full attention."
        )
    return output[0]


class Stop(Exception):
    """Raised inside a forward pass to end it once everything needed has been seen."""


class Bypass(nn.Module):
    """A module that replaces a block in a dry run. `visit` receives the call and the residual stream
    entering the block, and returns the output of the block."""

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
