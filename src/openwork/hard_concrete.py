"""The hard-concrete gate (Louizos, Welling and Kingma 2018, arXiv 1712.01312): noisy, and exactly 0 or 1 at times.

With noise u, uniform in (0, 1), and one learned number a per gate,

    s = sigmoid((logit u + a) / BETA)    z = clip(s (ZETA - GAMMA) + GAMMA, 0, 1)

so z is exactly 0 or exactly 1 with some probability, and P(z != 0) has a slope in a: a number of open gates that can
be minimised. Knows tensors. Does not know what a gate stands before: a weight in training, an edge in discovery.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # as published
SHUT = math.log(-GAMMA / ZETA)  # -log 11 = -2.398: at or below it the gate without noise is exactly 0


def noisy_gate(a: Tensor, u: Tensor) -> Tensor:
    """z of the shape of a, with noise u in [0, 1] of the same shape."""
    s = torch.sigmoid((torch.logit(u.clamp(1e-6, 1 - 1e-6)) + a) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def noiseless_gate(a: Tensor) -> Tensor:
    """The gate without noise: clip(sigmoid(a)(ZETA - GAMMA) + GAMMA, 0, 1); exactly 0 iff a <= SHUT."""
    return (torch.sigmoid(a) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def nonzero_probability(a: Tensor) -> Tensor:
    """P(z != 0) = sigmoid(a - BETA log(-GAMMA / ZETA)) = sigmoid(a + 1.599)."""
    return torch.sigmoid(a - BETA * SHUT)


__all__ = ["BETA", "GAMMA", "SHUT", "ZETA", "noiseless_gate", "noisy_gate", "nonzero_probability"]
