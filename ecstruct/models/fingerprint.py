"""The fingerprint of a set of weights: were these the weights that a result was computed with?"""

from collections.abc import Mapping

import xxhash
from torch import Tensor

from ecstruct.io.files import digest


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """128-bit XXH3, in hexadecimal, of the names, shapes, dtypes and bytes of all tensors. It tells
    checkpoints apart at the speed of memory; it is no defence against forgery.

    >>> import torch
    >>> fingerprint({"w": torch.zeros(2)}) == fingerprint({"w": torch.zeros(2)})
    True
    >>> fingerprint({"w": torch.zeros(2)}) == fingerprint({"w": torch.zeros(1, 2)})
    False
    """
    return combined({name: digest(t) for name, t in weights.items()})


def combined(digests: Mapping[str, str]) -> str:
    """The fingerprint, from the digests of all tensors in any order."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return xxhash.xxh3_128(lines.encode()).hexdigest()
