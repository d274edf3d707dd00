"""Regressions: the symbolic formulas and the in-context regression on which BIMT was shown (Liu, Gan, Tegmark 2023,
arXiv 2305.08746), with the mean squared error as loss. The formulas' numbers are drawn uniformly from -1 to 1.

Knows formulas and their data. Does not know models or methods. There are no questions with answers to choose from here,
so models can be trained on these, but no circuits are searched in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openwork.errors import unknown
from openwork.tasks.task import Inputs

HELD_OUT = {"discover": 1, "verify": 2}  # split -> what its random numbers are seeded with, beside the data's own seed


@dataclass(frozen=True)
class Formula:
    """A function of points [n, inputs] to values [n, outputs], in words and as code."""

    says: str
    inputs: int
    outputs: int
    value: Callable[[Tensor], Tensor]


FORMULAS: dict[str, Formula] = {
    "independence": Formula(
        "(x1 + x3)^3 and x2^2 + sin(pi x4): two things that have nothing in common",
        4, 2,
        lambda x: torch.stack([(x[:, 0] + x[:, 2]) ** 3, x[:, 1] ** 2 + torch.sin(torch.pi * x[:, 3])], 1),
    ),
    "feature_sharing": Formula(
        "x1^2, x1^2 + x2^2 and x1^2 + x2^2 + x3^2: three things made of the same squares",
        3, 3,
        lambda x: (x**2).cumsum(1),
    ),
    "compositionality": Formula(
        "sqrt((x1 - x2)^2 + (x3 - x4)^2): squares first, then their sum, then the root",
        4, 1,
        lambda x: ((x[:, 0] - x[:, 1]) ** 2 + (x[:, 2] - x[:, 3]) ** 2).sqrt()[:, None],
    ),
}  # fmt: skip


@dataclass(frozen=True)
class SymbolicData:
    """Training data of one formula: `n` points to learn from, all in every batch, and `n` others per held-out split."""

    formula: Formula
    seed: int = 0
    n: int = 100

    def batch(self, step: int) -> tuple[Inputs, Tensor]:
        """Points ([n, inputs],) and values [n, outputs]; the same at every step."""
        return self._points(0)

    def held_out(self, split: str) -> Iterable[tuple[Inputs, Tensor]]:
        """The points of a split, in one batch."""
        if split not in HELD_OUT:
            raise unknown("split of a formula", split, HELD_OUT)
        return [self._points(HELD_OUT[split])]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error over points and outputs."""
        return F.mse_loss(outputs, targets)

    def _points(self, part: int) -> tuple[Inputs, Tensor]:
        g = torch.Generator().manual_seed(3 * self.seed + part)
        x = torch.rand(self.n, self.formula.inputs, generator=g) * 2 - 1
        return (x,), self.formula.value(x)


IN_CONTEXT = "in_context_regression"


@dataclass(frozen=True)
class InContextData:
    """Sequences x1, y1, x2 of real numbers, from which y2 is to be told: y = w x with another w for every sequence.

    The simplest in-context regression: what the model cannot know before, it has to read from the one example. The
    published notebook's draws are not known to us; here w is uniform from -1 to 1, x of either sign and of a size
    uniform from 0.5 to 1.5, so that y1 / x1 is always well-behaved.

    n      sequences to learn from, and as many others per held-out split
    size   sequences per step, drawn with replacement
    """

    seed: int = 0
    size: int = 64
    n: int = 10_000

    def batch(self, step: int) -> tuple[Inputs, Tensor]:
        """Sequences ([B, 3, 1], the position that is asked [B]) and values [B, 1]; a pure function of (seed, step)."""
        x, y = _sequences(3 * self.seed, self.n)
        rows = torch.from_numpy(np.random.default_rng([self.seed, step]).integers(0, self.n, self.size))
        return _asked_last(x[rows]), y[rows]

    def held_out(self, split: str) -> Iterable[tuple[Inputs, Tensor]]:
        """The sequences of a split, in one batch."""
        if split not in HELD_OUT:
            raise unknown("split of a regression", split, HELD_OUT)
        x, y = _sequences(3 * self.seed + HELD_OUT[split], self.n)
        return [(_asked_last(x), y)]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(outputs, targets)


@cache
def _sequences(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """x1, y1, x2 [n, 3, 1] and y2 [n, 1]."""
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(n, 1, generator=g) * 2 - 1
    x = (torch.rand(n, 2, generator=g) + 0.5) * (torch.randint(2, (n, 2), generator=g) * 2 - 1)
    return torch.stack([x[:, :1], w * x[:, :1], x[:, 1:]], 1), w * x[:, 1:]


def _asked_last(x: Tensor) -> Inputs:
    return x, torch.full((len(x),), x.shape[1] - 1)


def symbolic_data(name: str, seed: int = 0, n: int = 100) -> SymbolicData:
    """Training data of the formula of that name; refuses another with the nearest one."""
    if name not in FORMULAS:
        raise unknown("formula", name, FORMULAS)
    return SymbolicData(FORMULAS[name], seed, n)
