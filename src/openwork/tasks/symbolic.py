"""Formulas to be learned as regressions: the symbolic tasks on which BIMT was shown (Liu, Gan, Tegmark 2023,
arXiv 2305.08746), with numbers drawn uniformly from -1 to 1 and the mean squared error as loss.

Knows formulas and their data. Does not know models or methods. There are no questions with answers to choose from here,
so these train models but are no subject whose circuits are searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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


def symbolic_data(name: str, seed: int = 0, n: int = 100) -> SymbolicData:
    """Training data of the formula of that name; refuses another with the nearest one."""
    if name not in FORMULAS:
        raise unknown("formula", name, FORMULAS)
    return SymbolicData(FORMULAS[name], seed, n)
