"""The digits subject: scikit-learn's 1,797 embedded images of handwritten digits, 8 x 8 pixels scaled to 0..1.

Knows the images and their classes, and how images become a split. Does not know models or methods.

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

DIGITS = tuple(map(str, range(10)))

PAIRS = {"three_eight": (3, 8), "four_nine": (4, 9), "one_seven": (1, 7)}

Sides = tuple[tuple[int, ...], tuple[int, ...]]  # two groups of classes

WITH_LOOP, WITHOUT_LOOP = (0, 6, 8, 9), (1, 2, 3, 5, 7)  # a 4 is in neither: some are written with a loop

SIDES: dict[str, Sides] = {
    **{name: ((a,), (b,)) for name, (a, b) in PAIRS.items()},
    **{f"digit_{d}": ((d,), tuple(c for c in range(10) if c != d)) for d in range(10)},
    "loops": (WITH_LOOP, WITHOUT_LOOP),
}


def told_apart(side: int) -> dict[str, str]:
    """What the tasks of SIDES ask, of images of so many pixels a side."""
    image = f"{'an' if side == 8 else 'a'} {side} x {side} image"
    return {
        **{name: f"tell {_a(a)} from {_a(b)} in {image}" for name, (a, b) in PAIRS.items()},
        **{f"digit_{d}": f"tell {_a(d)} from the other nine; each competes with its counterpart's" for d in range(10)},
        "loops": f"tell a digit with a loop (0, 6, 8, 9) from one without (1, 2, 3, 5, 7) in {image}; no fours",
    }


def _a(d: int | str) -> str:
    return f"an {d}" if str(d)[:1] in "8aeiou" else f"a {d}"


DIGIT_TASKS: dict[str, str] = {
    "digits": "name the digit of an 8 x 8 image; it competes with the other nine",
    **told_apart(8),
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


def shifted(x: Tensor, side: int, reach: int = 1) -> Tensor:
    """Images [N, channels * side * side] moved left, right, up, down in turn; four by one pixel, four by two, up to
    `reach`."""
    padded = torch.nn.functional.pad(x.view(len(x), -1, side, side), (reach,) * 4)
    moved = []
    for i in range(len(x)):
        by = 1 + i // 4 % reach
        down, right = ((0, by), (0, -by), (by, 0), (-by, 0))[i % 4]  # where the window goes the image does not
        moved.append(padded[i, :, reach + down :, reach + right :][:, :side, :side])
    return torch.stack(moved).flatten(1) if moved else x


@dataclass(frozen=True, eq=False)
class Chosen:
    """The images of a split before their pixels: indices [N], and the parts of a Split that follow from the classes."""

    name: str
    ids: Tensor
    answer: Tensor
    wrong: Tensor
    pair: Tensor
    classes: tuple[str, ...]

    def split(self, x: Tensor, moved: str = "") -> Split:
        """The split with pixels [N, F]; `moved` says what was done to them."""
        named = zip(self.ids.tolist(), self.answer.tolist(), strict=True)
        texts = tuple(f"image {i} of {_a(self.classes[y])}{moved}" for i, y in named)
        return Split(self.name, (x,), self.answer, self.wrong, self.pair, texts)


def image_split(
    name: str,
    labels: Tensor,
    ids: Tensor,
    sides: Sides | None,
    n: int | None = None,
    classes: tuple[str, ...] = DIGITS,
) -> Chosen:
    """Which of the images `ids` make a split, with up to n examples; labels int64 [all] in 0..9.

    sides   two groups of classes: equally many images of each, the k-th of one group with the k-th of the other as its
            counterpart, whose class is the one wrong answer. Without groups each class competes with the other nine.
    """
    if sides is None:
        ids = ids[:n]
        answer = labels[ids]
        others = [[c for c in range(10) if c != y] for y in range(10)]
        return Chosen(
            name, ids, answer, torch.tensor(others)[answer], torch.full((len(ids),), -1, dtype=torch.long), classes
        )
    a, b = (ids[torch.isin(labels[ids], torch.tensor(side))] for side in sides)
    k = min(len(a), len(b), len(ids) if n is None else n // 2)
    ids = torch.stack([a[:k], b[:k]], 1).flatten()
    pair = torch.arange(2 * k) ^ 1
    return Chosen(name, ids, labels[ids], labels[ids][pair][:, None], pair, classes)


def _split(name: str, sides: Sides | None) -> Split:
    """Images of all classes, or as many of one group of them as of another."""
    pixels, labels = _images()
    chosen = image_split(name, labels, _members()["verify" if name == "ood" else name], sides)
    x = pixels[chosen.ids]
    return chosen.split(shifted(x, 8), ", moved by one pixel") if name == "ood" else chosen.split(x)


def make_digit_task(name: str) -> Task:
    """The task of that name (see DIGIT_TASKS); refuses another with the nearest one."""
    if name not in DIGIT_TASKS:
        raise unknown("digits task", name, DIGIT_TASKS)
    splits = {s: _split(s, SIDES.get(name)) for s in ("discover", "verify", "ood", "explain")}
    return Task(name, DIGIT_TASKS[name], splits, tuple(str(c) for c in PAIRS.get(name, range(10))))


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
