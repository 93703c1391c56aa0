"""Hard-concrete gates (Louizos, Welling and Kingma 2018): random, in [0, 1], often exactly 0 or 1.

    s = sigmoid((log u - log(1 - u) + log alpha) / beta),    u uniform in [1e-6, 1 - 1e-6]
    z = min(1, max(0, s (zeta - gamma) + gamma))

A gate is 0 with probability P(z = 0) = sigmoid(beta log(-gamma / zeta) - log alpha), and has a gradient
with respect to log alpha where it is neither 0 nor 1.
"""

import math

import torch
from torch import Tensor

BETA, GAMMA, ZETA, EDGE = 2 / 3, -0.1, 1.1, 1e-6


def hard_concrete(log_alpha: Tensor, u: Tensor) -> Tensor:
    """Return gates for uniform numbers `u` of the same shape as `log_alpha`."""
    s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def probability_of_zero(log_alpha: Tensor) -> Tensor:
    return torch.sigmoid(BETA * math.log(-GAMMA / ZETA) - log_alpha)
