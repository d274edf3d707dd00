"""Images from the user's own files: which image belongs to which split, tasks over their classes, training batches.

Image i of the training files (counted from 0) belongs to discover where i % 12 is 10, to explain where it is 11, else
to train. The test files are verify, and moved by a pixel or two (left, right, up, down in turn; what becomes free is
black) the out-of-distribution split.

Knows pixels and classes. Does not know file formats, models or methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openwork.errors import unknown
from openwork.tasks.images import Sides, image_split, shifted
from openwork.tasks.task import Inputs, Split, Task

HELD_OUT = 500  # images in one batch of held-out data
SPLITS = ("train", "discover", "verify", "ood", "explain")


@dataclass(frozen=True, eq=False)
class Images:
    """Pixels uint8 [N, channels * side * side] and classes int64 [N] of the training and the test files.

    name    of the subject; train, test: what the two parts are called; side: pixels of a side
    """

    name: str
    pixels: dict[str, Tensor]
    labels: dict[str, Tensor]
    side: int
    train: str = "train"
    test: str = "test"

    def members(self, split: str) -> tuple[str, Tensor]:
        """The part that a split is taken from, and the ascending indices of its images there."""
        if split not in SPLITS:
            raise unknown(f"split of {self.name}", split, SPLITS)
        return self._members[split]

    @cached_property
    def _members(self) -> dict[str, tuple[str, Tensor]]:
        turn, tested = torch.arange(len(self.labels[self.train])) % 12, torch.arange(len(self.labels[self.test]))
        mine = {"train": turn < 10, "discover": turn == 10, "explain": turn == 11}
        ids = {split: (self.train, of.nonzero().flatten()) for split, of in mine.items()}
        return ids | {"verify": (self.test, tested), "ood": (self.test, tested)}

    def of(self, part: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels in 0..1 [K, F] and classes [K] of some images of a part."""
        return self.pixels[part][ids].float() / 255, self.labels[part][ids]


def make_image_task(
    name: str, tasks: Mapping[str, str], sides: Mapping[str, Sides], data: Images, n: int, classes: tuple[str, ...]
) -> Task:
    """The task of that name with up to n examples per split; refuses another with the nearest one.

    tasks   what there is, with what each asks
    sides   two groups of classes for each task that tells one from the other; without them each class competes with
            the other nine
    classes what the ten are called
    """
    if name not in tasks:
        raise unknown(f"{data.name} task", name, tasks)
    of_two = sides.get(name)

    def split(of: str) -> Split:
        part, ids = data.members(of)
        made = image_split(of, data.labels[part], ids, of_two, n, classes)
        x, _ = data.of(part, made.ids)
        if of == "ood":
            return made.split(shifted(x, data.side, reach=2), ", moved by a pixel or two")
        return made.split(x)

    pair = (of_two[0][0], of_two[1][0]) if of_two and len(of_two[0]) == len(of_two[1]) == 1 else range(10)
    splits = {s: split(s) for s in ("discover", "verify", "ood", "explain")}
    return Task(name, tasks[name], splits, tuple(classes[c] for c in pair))


@dataclass(frozen=True)
class ImageFileData(ABC):
    """Training data: batches of the training images, drawn with replacement."""

    folder: Path
    seed: int = 0
    size: int = 64

    @abstractmethod
    def images(self) -> Images:
        """The images of the folder."""

    def batch(self, step: int) -> tuple[Inputs, Tensor]:
        """Images ([B, F],) and classes [B]; a pure function of (seed, step)."""
        data = self.images()
        part, train = data.members("train")
        rows = np.random.default_rng([self.seed, step]).integers(0, len(train), self.size)
        x, y = data.of(part, train[torch.from_numpy(rows)])
        return (x,), y

    def held_out(self, split: str) -> Iterable[tuple[Inputs, Tensor]]:
        """All images of a split."""
        data = self.images()
        part, ids = data.members(split)
        for rows in ids.split(HELD_OUT):
            x, y = data.of(part, rows)
            yield (x,), y
