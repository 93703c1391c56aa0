"""Hook points, most of a hooked model's modules, as the leaves that they are."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from transformer_lens.hook_points import HookPoint


@contextmanager
def as_leaves() -> Iterator[None]:
    """Let hook points be neither looked through nor copied by general means in this context: that takes
    much of the time in which a small model is hooked or copied.

    TransformerLens looks for hooks among all attributes of every module, and copies a block for each layer.
    """
    with patch.multiple(HookPoint, create=True, __dir__=lambda _: (), __deepcopy__=_copied):
        yield


def _copied(hook: HookPoint, memo: dict[int, Any]) -> HookPoint:
    """Copy the attributes; those that are empty, which are most, without a search for what is in them."""
    memo[id(hook)] = new = type(hook).__new__(type(hook))
    for name, value in vars(hook).items():
        empty = isinstance(value, dict | list | set) and not value
        vars(new)[name] = value.copy() if empty else copy.deepcopy(value, memo)
    return new
