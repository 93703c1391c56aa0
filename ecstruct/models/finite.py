"""Checks for NaN and infinite numbers, from which argmax and sorting would return plausible answers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ecstruct.errors import InputError


def check_weight(source: str, name: str, weight: Tensor) -> None:
    """Raise `InputError` if a weight of the model from `source` has NaN or infinite values."""
    # A sum takes one pass, unlike isfinite().all(). In half precision, it could overflow: hence float32.
    if not torch.isfinite(weight.sum(dtype=torch.promote_types(weight.dtype, torch.float32))):
        raise InputError(f"{source} has NaN or infinite values in {name}: use another checkpoint.")


def check_weights(source: str, weights: Mapping[str, Tensor]) -> None:
    """Call `check_weight` for all weights; a model may have been changed since it was loaded."""
    for name, weight in weights.items():
        check_weight(source, name, weight)


def finite(values: Tensor, what: str) -> Tensor:
    """Return the values unchanged if all are finite.

    Raises:
        InputError: A value is NaN or infinite; the message begins with `what`.
    """
    # A sum is several times as fast, but that of finite values may overflow.
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        raise InputError(
            f"{what} are NaN or infinite: the model overflows on these prompts, so load it in float32 or "
            "use another checkpoint."
        )
    return values
