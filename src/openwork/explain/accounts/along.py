"""What each feature adds on the straight way from one input to others, exactly, in a perceptron of ReLUs.

On a straight line such a network is linear piece by piece. The pieces are walked one after the other, of all ways side
by side: within a piece each feature's share of the change is its slope times its step, so the shares add up to the
whole change of the output but for float rounding. It is integrated gradients (Sundararajan et al. 2017, arXiv
1703.01365) without their approximation. The slope at the end alone can mislead: there a saturated neuron, which
decided, has none.

Knows weight matrices as arrays. Does not know models, tasks or what the features mean.

Shapes: N ways, F features, C outputs, n neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Layer = tuple[np.ndarray, np.ndarray]  # weight [out, in] and bias [out]; a ReLU follows all but the last
NEAR = 1e-12  # a neuron so near its border, relative to its bias, is told by the direction


@dataclass(frozen=True)
class Ways:
    """What straight ways add up to.

    shares  [N, F], what each feature adds; they sum to after - before
    before, after  [N], the output's value where each way begins and where it ends
    pieces  [N], how many linear pieces it has
    """

    shares: np.ndarray
    before: np.ndarray
    after: np.ndarray
    pieces: np.ndarray


def along(layers: Sequence[Layer], start: np.ndarray, ends: np.ndarray, to: np.ndarray) -> Ways:
    """The ways from one input [F] to others [N, F], for the sum of outputs weighted by `to` [N, C]."""
    steps = ends - start
    shares, t = np.zeros(ends.shape), np.zeros(len(ends))
    pieces, walking = np.zeros(len(ends), dtype=np.int64), np.arange(len(ends))
    while len(walking):
        step, at = steps[walking], t[walking]
        on, until = _piece(layers, start, step, at)
        slope = to[walking]
        for (w, _), alive in zip(reversed(layers[1:]), reversed(on), strict=True):
            slope = (slope @ w) * alive
        shares[walking] += (until - at)[:, None] * (slope @ layers[0][0]) * step
        t[walking] = until
        pieces[walking] += 1
        walking = walking[until < 1]
    before, after = forward(layers, start[None])[0], forward(layers, ends)
    return Ways(shares, to @ before, (after * to).sum(1), pieces)


def forward(layers: Sequence[Layer], x: np.ndarray) -> np.ndarray:
    """Outputs [N, C] of inputs [N, F]."""
    for w, b in layers[:-1]:
        x = np.maximum(x @ w.T + b, 0)
    return x @ layers[-1][0].T + layers[-1][1]


def _piece(
    layers: Sequence[Layer], start: np.ndarray, step: np.ndarray, t: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """Which hidden neurons [N, n] per layer are on just after t [N], and until where on its way that stays so [N]."""
    value, slope, until = start + t[:, None] * step, step, np.ones(len(t))
    on = []
    for w, b in layers[:-1]:
        z, dz = value @ w.T + b, slope @ w.T
        zero = np.abs(z) <= NEAR * (1 + np.abs(b))
        alive = np.where(zero, dz > 0, z > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            border = t[:, None] - z / dz
        ahead = (dz != 0) & ~zero & (border > t[:, None])
        until = np.minimum(until, np.where(ahead, border, 1.0).min(1, initial=1.0))
        value, slope = np.where(alive, z, 0.0), np.where(alive, dz, 0.0)
        on.append(alive)
    return on, np.maximum(until, np.nextafter(t, 2.0))


__all__ = ["Layer", "Ways", "along", "forward"]
