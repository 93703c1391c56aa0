"""The weights of a mixture's experts, read one expert at a time.

transformers stacks the weights of a layer's experts in one tensor, [expert, ...], and runs one expert after
another, each by its index. So a layer takes the memory of one expert if indexing this tensor reads nothing,
and each product reads the weight that it multiplies. Autograd then keeps what reads a weight and not its
numbers, which are read again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_aten = torch.ops.aten

_VIEWS = frozenset(
    {_aten.alias.default, _aten.detach.default, _aten.t.default, _aten.transpose.int, _aten.permute.default}
)
_ELEMENTWISE = frozenset(
    {_aten.alias.default, _aten.detach.default, _aten._to_copy.default, _aten.sub.Tensor, _aten.lerp.Scalar}
)
_OF_MEMORY = frozenset({_aten.is_same_size.default, _aten._has_same_storage_numel.default})
"""What forward mode asks about a weight and its tangent."""


class Unread(Tensor):
    """A tensor that `read()` reads for each function that needs its numbers. Its views are unread, too."""

    read: Callable[..., Tensor]

    @staticmethod
    def __new__(
        cls,
        read: Callable[..., Tensor],
        shape: Sequence[int],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Any:
        made: Any = Tensor._make_wrapper_subclass(cls, torch.Size(shape), dtype=dtype, device=device)  # type: ignore[attr-defined]
        made.read = read
        return made

    def whole(self) -> Tensor:
        return self.read()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, options = args[0], kwargs or {}
        if func in _OF_MEMORY:
            return given.shape == args[1].shape
        if isinstance(given, Experts):
            if func is _aten.select.int and args[1] == 0:
                one = partial(given.read, args[2] % len(given))
                return Unread(one, given.shape[1:], given.device, given.dtype)
            if func is _aten.unbind.int and not any(args[1:]):
                return [given[index] for index in range(len(given))]
            if func is _aten.equal.default:
                return all(map(torch.equal, *args))
            if func is _aten.sum.default:
                return sum(expert.sum(**options) for expert in given)
            if func in _ELEMENTWISE:
                return given.each(func, *args[1:], **options)
        elif func in _VIEWS:
            shape = func(torch.empty(given.shape, device="meta"), *args[1:]).shape
            return Unread(lambda: func(given.read(), *args[1:]), shape, given.device, given.dtype)
        args, options = tree_map(lambda x: x.whole() if isinstance(x, Unread) else x, (args, options))
        return func(*args, **options)


class Experts(Unread):
    """A stack of weights of a layer's experts, [expert, ...], of which `read(i)` reads one. Functions of
    one expert after another read one at a time; any other function reads the whole stack."""

    def whole(self) -> Tensor:
        return torch.stack([self.read(index) for index in range(len(self))])

    def each(self, func: Callable[..., Tensor], *others: Any, **options: Any) -> Experts:
        """Return an elementwise function of this stack, and of others, computed when an expert is read."""

        def read(index: int) -> Tensor:
            rows = [x.read(index) if isinstance(x, Experts) else x for x in others]
            return func(self.read(index), *rows, **options)

        device, dtype = options.get("device") or self.device, options.get("dtype") or self.dtype
        return Experts(read, self.shape, device, dtype)
