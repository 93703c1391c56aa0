"""Numbers that are NaN or infinite, of which argmax and sorting make an answer like any other."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ecstruct.errors import InputError


def check_weight(source: str, name: str, weight: Tensor) -> None:
    """Raise `InputError` if a weight of a model from `source` has such numbers."""
    # In one pass, unlike isfinite().all(); the sum of finite halves may be too large for one.
    if not torch.isfinite(weight.sum(dtype=torch.promote_types(weight.dtype, torch.float32))):
        raise InputError(f"{source} has NaN or infinite values in {name}: use another checkpoint.")


def check_weights(source: str, weights: Mapping[str, Tensor]) -> None:
    """`check_weight` of all of them: a model may have been changed since it was loaded."""
    for name, weight in weights.items():
        check_weight(source, name, weight)


def finite(values: Tensor, what: str) -> Tensor:
    """The values, none of which is NaN or infinite.

    Raises:
        InputError: one is; `what` says what of.
    """
    if not torch.isfinite(values).all():
        raise InputError(
            f"{what} are NaN or infinite: the model overflows on these prompts, so load it in float32 or "
            "use another checkpoint."
        )
    return values
