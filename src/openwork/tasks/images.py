"""The digits subject: scikit-learn's 1,797 embedded images of handwritten digits, 8 x 8 pixels scaled to 0..1.

Knows the images and their classes. Does not know models or methods.

Split, class by class and always by seed 0, into train 60 %, discover 13 %, verify 14 %, explain 13 %. The
out-of-distribution split holds the verify images moved by one pixel (left, right, up, down in turn; the free row or
column is black).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from openwork.errors import unknown
from openwork.tasks.task import Inputs, Split, Task

SHARES = (("train", 0.60), ("discover", 0.13), ("verify", 0.14), ("explain", 0.13))

PAIRS = {"three_eight": (3, 8), "four_nine": (4, 9), "one_seven": (1, 7)}

DIGIT_TASKS: dict[str, str] = {
    "digits": "name the digit of an 8 x 8 image; it competes with the other nine",
    **{name: f"tell a {a} from a {b} in an 8 x 8 image" for name, (a, b) in PAIRS.items()},
}


@cache
def _images() -> tuple[Tensor, Tensor]:
    """Pixels in 0..1 [1797, 64] and classes [1797]."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(classes, dtype=torch.long)


@cache
def _members() -> dict[str, Tensor]:
    """Split -> ascending indices of its images; every class is shared out alike."""
    classes = _images()[1].numpy()
    rng = np.random.default_rng(0)
    parts: dict[str, list[int]] = {name: [] for name, _ in SHARES}
    for c in range(10):
        mine = rng.permutation(np.flatnonzero(classes == c))
        ends = [round(len(mine) * sum(s for _, s in SHARES[: i + 1])) for i in range(len(SHARES))]
        for (name, _), start, end in zip(SHARES, [0, *ends], ends, strict=False):
            parts[name] += mine[start:end].tolist()
    return {name: torch.tensor(sorted(ids), dtype=torch.long) for name, ids in parts.items()}


def _shifted(x: Tensor) -> Tensor:
    """Images [N, 64] moved by one pixel, the direction taken in turn."""
    padded = torch.nn.functional.pad(x.view(-1, 8, 8), (1, 1, 1, 1))
    corners = ((1, 2), (1, 0), (2, 1), (0, 1))  # top left corner of the window: left, right, up, down
    moved = [padded[i, r : r + 8, c : c + 8] for i, (r, c) in ((i, corners[i % 4]) for i in range(len(x)))]
    return torch.stack(moved).reshape(-1, 64)


def _split(name: str, classes: tuple[int, ...]) -> Split:
    """Images of some classes. Two classes: equally many of each, the k-th of one paired with the k-th of the other."""
    pixels, labels = _images()
    ids = _members()["verify" if name == "ood" else name]
    pair = torch.full((0,), -1, dtype=torch.long)
    if len(classes) == 2:
        a, b = (ids[labels[ids] == c] for c in classes)
        k = min(len(a), len(b))
        ids = torch.stack([a[:k], b[:k]], 1).flatten()
        pair = torch.arange(2 * k) ^ 1
    else:
        pair = torch.full((len(ids),), -1, dtype=torch.long)
    answer = labels[ids]
    others = [[c for c in classes if c != y] for y in answer.tolist()]
    x = _shifted(pixels[ids]) if name == "ood" else pixels[ids]
    moved = ", moved by one pixel" if name == "ood" else ""
    texts = tuple(f"image {i} of a {y}{moved}" for i, y in zip(ids.tolist(), answer.tolist(), strict=True))
    return Split(name, (x,), answer, torch.tensor(others, dtype=torch.long), pair, texts)


def make_digit_task(name: str) -> Task:
    """The task of that name (see DIGIT_TASKS); refuses another with the nearest one."""
    if name not in DIGIT_TASKS:
        raise unknown("digits task", name, DIGIT_TASKS)
    classes = PAIRS.get(name, tuple(range(10)))
    splits = {s: _split(s, classes) for s in ("discover", "verify", "ood", "explain")}
    return Task(name, DIGIT_TASKS[name], splits, tuple(str(c) for c in classes))


@dataclass(frozen=True)
class DigitsData:
    """Training data: batches of the train images, drawn with replacement."""

    seed: int = 0
    size: int = 64

    def batch(self, step: int) -> tuple[Inputs, Tensor]:
        """Images ([B, 64],) and classes [B]; a pure function of (seed, step)."""
        pixels, labels = _images()
        train = _members()["train"]
        rows = train[torch.from_numpy(np.random.default_rng([self.seed, step]).integers(0, len(train), self.size))]
        return (pixels[rows],), labels[rows]

    def held_out(self, split: str) -> Iterable[tuple[Inputs, Tensor]]:
        """All images of a split, in one batch."""
        if split not in _members():
            raise unknown("split of the digits", split, _members())
        pixels, labels = _images()
        ids = _members()[split]
        return [((pixels[ids],), labels[ids])]


def digits_data(seed: int = 0, batch: int = 64) -> DigitsData:
    """Training data of the digits; the seed orders the batches, the split is always the same."""
    return DigitsData(seed, batch)
