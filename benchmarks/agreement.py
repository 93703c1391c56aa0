"""Whether two ways of computing the same scores say the same, before they are timed."""

import numpy as np
from numpy.typing import ArrayLike


def check_equal(what: str, found: ArrayLike, expected: ArrayLike, tolerance: float = 1e-3) -> None:
    """Up to `tolerance` of the largest: both are differences of close states, in float32.

    Raises:
        ArithmeticError: they differ by more.
    """
    a, b = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    if a.shape != b.shape:
        raise ArithmeticError(f"{what}: shapes {a.shape} and {b.shape} differ")
    off = np.abs(a - b).max() / np.abs(b).max()
    if not off <= tolerance:
        raise ArithmeticError(f"{what}: the two ways differ by {off:.1e} of the largest score")
