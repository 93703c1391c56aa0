"""Fingerprints of sets of weights, by which a result says with which weights it was computed."""

from collections.abc import Mapping

import xxhash
from torch import Tensor

from ecstruct.io.files import digest


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return the 128-bit XXH3, in hexadecimal, of the names, shapes, dtypes and bytes of all tensors.
    It tells checkpoints apart at the speed of memory, but does not protect against forgery.

    >>> import torch
    >>> fingerprint({"w": torch.zeros(2)}) == fingerprint({"w": torch.zeros(2)})
    True
    >>> fingerprint({"w": torch.zeros(2)}) == fingerprint({"w": torch.zeros(1, 2)})
    False
    """
    return combined({name: digest(t) for name, t in weights.items()})


def combined(digests: Mapping[str, str]) -> str:
    """Return the fingerprint, given the digest of each tensor by name; their order does not matter."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return xxhash.xxh3_128(lines.encode()).hexdigest()
