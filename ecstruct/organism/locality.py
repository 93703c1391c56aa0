"""A regulariser of training: early layers work on one entity at a time.

Inside `local_attention(model, windows)`, the token at position t attends in layer l only to positions
`t - windows[l] + 1` to t, as if those windows[l] tokens were the whole text. A model that is trained so
half of the time has to resolve an entity ("the Eiffel Tower is in Paris") at the entity's tokens, in its
early layers, and to leave what the sentence asks about it to later layers: the division of labour that
large models show by themselves. None of it stays in the model: outside the `with`, and in the saved
checkpoint, attention is full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import OlmoForCausalLM


@contextmanager
def local_attention(model: OlmoForCausalLM, windows: Sequence[int]) -> Iterator[None]:
    """Let the first `len(windows)` layers of `model` attend only within their windows.

    Batches must not be padded on the left, because the windows replace the attention mask.
    """
    with ExitStack() as hooks:
        for layer, window in zip(model.model.layers, windows, strict=False):
            attention = layer.get_submodule("self_attn")
            handle = attention.register_forward_pre_hook(_mask(window), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def local_windows(n_layers: int) -> tuple[int, ...]:
    """Return windows: a token and its predecessor in layer 0, the token alone in the other layers.

    >>> local_windows(4)
    (2, 1, 1, 1)
    """
    return (2, 1, 1, 1, 1, 1)[:n_layers]


def _mask(window: int) -> Callable[[nn.Module, tuple, dict[str, Any]], tuple[tuple, dict]]:
    def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        x: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        position = torch.arange(x.shape[1], device=x.device)
        distance = position[:, None] - position[None, :]
        allowed = (distance >= 0) & (distance < window)
        return args, kwargs | {"attention_mask": allowed[None, None]}

    return hook
