"""What each feature adds on the straight way from one input to others, exactly, in a perceptron of ReLUs.

On a straight line such a network is linear piece by piece. The pieces are walked one after the other, of all ways side
by side: within a piece each feature's share of the change is its slope times its step, so the shares add up to the
whole change of the output but for float rounding. It is integrated gradients (Sundararajan et al. 2017, arXiv
1703.01365) without their approximation. The slope at the end alone can mislead: there a saturated neuron, which
decided, has none.

The change is also a sum over paths through the hidden layers: a neuron of the first has its slope times its own step
(conductance: Dhamdhere et al. 2018, arXiv 1805.12233). Where neurons are shared out among modules, paths are told by
the modules that they begin and end in; with two hidden layers, those that begin and end in one stay in it.

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
    pairs  [N, k, k], what the paths from each module (of the first hidden layer) to each (of the last) add; they sum to
           after - before
    slopes  [k, N, n], mean slope of the first hidden layer's neurons over the way, by paths that end in each module
    """

    shares: np.ndarray
    before: np.ndarray
    after: np.ndarray
    pieces: np.ndarray
    pairs: np.ndarray
    slopes: np.ndarray


def along(
    layers: Sequence[Layer],
    start: np.ndarray,
    ends: np.ndarray,
    to: np.ndarray,
    modules: Sequence[np.ndarray] | None = None,
) -> Ways:
    """The ways from one input [F] to others [N, F], for the sum of outputs weighted by `to` [N, C].

    modules  of each hidden layer, the module [n] of every neuron, 0 to k - 1; without them all are in one
    """
    steps, first = ends - start, layers[0][0]
    sides = modules if modules is not None and len(modules) else [np.zeros(len(b), dtype=np.int64) for _, b in layers]
    k = 1 + max(int(m.max(initial=0)) for m in sides)
    last = [np.flatnonzero(sides[len(layers) - 2] == m) for m in range(k)] if len(layers) > 1 else []
    into = [layers[-2][0][some] for some in last] if len(layers) > 2 else []
    slopes, t = np.zeros((k, len(ends), len(first))), np.zeros(len(ends))
    pieces, walking = np.zeros(len(ends), dtype=np.int64), np.arange(len(ends))
    while len(walking):
        at = t[walking]
        on, until = _piece(layers, start, steps[walking], at)
        slopes[:, walking] += _back((until - at)[:, None] * to[walking], layers, on, last, into)
        t[walking] = until
        pieces[walking] += 1
        walking = walking[until < 1]
    before, after = forward(layers, start[None])[0], forward(layers, ends)
    pairs = np.moveaxis((slopes * (steps @ first.T)) @ np.eye(k)[sides[0]], 0, 2)
    return Ways((slopes.sum(0) @ first) * steps, to @ before, (after * to).sum(1), pieces, pairs, slopes)


def _back(
    slope: np.ndarray,
    layers: Sequence[Layer],
    on: Sequence[np.ndarray],
    last: Sequence[np.ndarray],
    into: Sequence[np.ndarray],
) -> np.ndarray:
    """Slopes [k, N, n] of the first layer's neurons from those of the outputs [N, C], where `on` says which are on: by
    paths through each of k sets of the last hidden layer's neurons, `last`, whose weights are `into`."""
    if not on:
        return slope[None]
    slope = (slope @ layers[-1][0]) * on[-1]
    if len(on) == 1:
        parts = np.zeros((len(last), *slope.shape))
        for m, some in enumerate(last):
            parts[m][:, some] = slope[:, some]
        return parts
    parts = np.empty((len(last), len(slope), layers[-2][0].shape[1]))
    for m, some in enumerate(last):
        np.matmul(slope[:, some] if len(last) > 1 else slope, into[m], out=parts[m])
    parts *= on[-2]
    for (w, _), alive in zip(reversed(layers[1:-2]), reversed(on[:-2]), strict=True):
        parts = (parts @ w) * alive
    return parts


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
