"""Two moons: points of the plane on two half circles that reach into each other, scikit-learn's `make_moons`.

500 points per split, half of either moon, moved by normal noise of 0.1; every split has random numbers of its own,
which are always the same. All points to train on are in every batch, as for BIMT (Liu, Gan, Tegmark 2023, arXiv
2305.08746). Out of distribution are the verify points, turned by 20 degrees about the middle of the moons.

Knows the points. Does not know models or methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from openwork.errors import unknown
from openwork.tasks.task import Inputs, Split, Task

POINTS, NOISE = 500, 0.1
SPLITS = ("train", "discover", "verify", "explain")  # a split's place here seeds its points
TURN = math.radians(20)
MIDDLE = (0.5, 0.25)

MOON_TASKS: dict[str, str] = {"two_moons": "tell on which of two half circles a point of the plane lies"}


@cache
def points(split: str) -> tuple[Tensor, Tensor]:
    """Points float32 [500, 2] and moons int64 [500] of a split, of either moon in turn; refuses an unknown split."""
    if split not in SPLITS:
        raise unknown("split of the moons", split, SPLITS)
    from sklearn.datasets import make_moons

    x, moon = make_moons(POINTS, noise=NOISE, shuffle=False, random_state=SPLITS.index(split))
    order = torch.arange(POINTS).view(2, -1).T.flatten()  # unshuffled, the one moon comes after the other
    return torch.tensor(x, dtype=torch.float32)[order], torch.tensor(moon, dtype=torch.long)[order]


def turned(x: Tensor) -> Tensor:
    """Points [N, 2] turned about the middle of the moons."""
    c, s = math.cos(TURN), math.sin(TURN)
    middle = torch.tensor(MIDDLE)
    return (x - middle) @ torch.tensor([[c, s], [-s, c]]) + middle


def _split(name: str, n: int) -> Split:
    x, moon = points("verify" if name == "ood" else name)
    x, moon = (t[: n - n % 2] for t in (turned(x) if name == "ood" else x, moon))
    texts = tuple(f"point ({a:.2f}, {b:.2f}) of moon {m}" for (a, b), m in zip(x.tolist(), moon.tolist(), strict=True))
    return Split(name, (x,), moon, 1 - moon[:, None], torch.arange(len(x)) ^ 1, texts)


def make_moon_task(name: str, n: int) -> Task:
    """The task of that name with up to n points per split; the counterpart of a point lies on the other moon."""
    if name not in MOON_TASKS:
        raise unknown("task of the moons", name, MOON_TASKS)
    return Task(
        name, MOON_TASKS[name], {s: _split(s, n) for s in ("discover", "verify", "ood", "explain")}, ("upper", "lower")
    )


@dataclass(frozen=True)
class MoonData:
    """Training data: all 500 points in every batch."""

    def batch(self, step: int) -> tuple[Inputs, Tensor]:
        """Points ([500, 2],) and moons [500]; the same at every step."""
        x, moon = points("train")
        return (x,), moon

    def held_out(self, split: str) -> Iterable[tuple[Inputs, Tensor]]:
        """The points of a split, in one batch."""
        x, moon = points(split)
        return [((x,), moon)]
