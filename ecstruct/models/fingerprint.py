"""The fingerprint of a set of weights: were these the weights that a result was computed with?"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of the names, shapes, dtypes and bytes of all tensors.

    >>> fingerprint({"w": torch.zeros(2)}) == fingerprint({"w": torch.zeros(2)})
    True
    >>> fingerprint({"w": torch.zeros(2)}) == fingerprint({"w": torch.zeros(1, 2)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        t = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
