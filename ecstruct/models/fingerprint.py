"""The fingerprint of a set of weights: were these the weights that a result was computed with?"""

from collections.abc import Mapping

import torch
import xxhash
from torch import Tensor


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """128-bit XXH3, in hexadecimal, of the names, shapes, dtypes and bytes of all tensors. It tells
    checkpoints apart at the speed of memory; it is no defence against forgery.

    >>> fingerprint({"w": torch.zeros(2)}) == fingerprint({"w": torch.zeros(2)})
    True
    >>> fingerprint({"w": torch.zeros(2)}) == fingerprint({"w": torch.zeros(1, 2)})
    False
    """
    digest = xxhash.xxh3_128()
    for name in sorted(weights):
        t = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
