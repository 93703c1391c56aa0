"""Build Hugging Face models from given weights, without initialising any."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from ecstruct.models.classifiers import auto_class


def plain_model(
    config: Any,
    dtype: torch.dtype,
    device: torch.device | str,
    weight: Callable[[str, nn.Parameter], Tensor],
) -> Any:
    """Build the model of a configuration in eval mode. `weight` receives the name of each parameter and the
    parameter without values, and returns its values. It is called once for a tied one, which stays tied."""
    # Without values, drawing them is work nevertheless.
    with init_empty_weights(include_buffers=False), no_init_weights():
        plain: Any = auto_class(config).from_config(
            copy.deepcopy(config), dtype=dtype, attn_implementation="eager", trust_remote_code=False
        )
    plain.tie_weights()  # init_empty_weights separates tied parameters
    given = {id(p): nn.Parameter(weight(name, p)) for name, p in plain.named_parameters()}
    for module in plain.modules():
        for name, p in module._parameters.items():
            module._parameters[name] = None if p is None else given[id(p)]
        for name, b in module._buffers.items():
            module._buffers[name] = None if b is None else b.to(device)
    return plain.eval()


def without_values(config: Any) -> Any:
    """Build the float32 model of a configuration, with parameters that have shapes but no values."""
    return plain_model(config, torch.float32, "cpu", lambda _, p: p.detach())
