"""The mnist subject: images of 28 x 28 pixels from four local files in the original idx format, scaled to 0..1.

Knows the file format, the images and their classes. Does not know models, and downloads nothing.

The splits are those of `image_files`: of the 60,000 train images 50,000 are train, 5,000 discover and 5,000 explain,
and the t10k files are verify and, moved, the out-of-distribution split.

Format (LeCun, Cortes and Burges, "THE IDX FILE FORMAT" at the foot of http://yann.lecun.com/exdb/mnist/): two zero
bytes, the type of the values (8: unsigned byte), the number of axes, each axis' length as a big-endian 32-bit integer,
then the values, the last axis running fastest.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openwork.errors import RunError, UsageError
from openwork.tasks.image_files import ImageFileData, Images, make_image_task
from openwork.tasks.images import SIDES, WITH_LOOP, Sides, told_apart
from openwork.tasks.task import Task

SIDE = 28
UNSIGNED_BYTE = 8

FILES = {  # part -> images, labels
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "t10k": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

_SIDES: dict[str, Sides] = {"loop": (WITH_LOOP, (1, 2, 3, 4, 5, 7)), **SIDES}

MNIST_TASKS: dict[str, str] = {
    "mnist": "name the digit of a 28 x 28 image; it competes with the other nine",
    "loop": "tell a digit with a loop (0, 6, 8, 9) from one without; each competes with its counterpart's digit",
    **told_apart(SIDE),
}


# -- files -----------------------------------------------------------------------------------------------------------


def read_idx(path: Path, axes: int) -> Tensor:
    """The unsigned bytes of an idx file with so many axes, gzipped where its name ends in .gz.

    RunError where it is not such a file, or holds fewer or more values than its head says.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise RunError(f"{path} is truncated or damaged: {e}.") from e
    head = bytes([0, 0, UNSIGNED_BYTE, axes])
    if data[:4] != head:
        raise RunError(f"{path} is not an idx file of bytes with {axes} axes: it begins {data[:4]!r}, not {head!r}.")
    begin = 4 + 4 * axes
    if len(data) < begin:
        raise RunError(f"{path} is truncated: its head takes {begin} bytes, it has {len(data)}.")
    shape = struct.unpack(f">{axes}I", data[4:begin])
    if len(data) - begin != math.prod(shape):
        problem = "truncated" if len(data) - begin < math.prod(shape) else "damaged"
        raise RunError(
            f"{path} is {problem}: its head says {' x '.join(map(str, shape))} values, it holds {len(data) - begin}."
        )
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=begin).reshape(shape).copy())


def _find(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The four files, each as it is or gzipped; refuses with all names where one is missing."""
    found: dict[str, Path] = {}
    names = [n for pair in FILES.values() for n in pair]
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                found.setdefault(name, path)
    missing = [n for n in names if n not in found]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} not found in {folder}. --data names the folder that holds the four files of MNIST, "
            f"{', '.join(names)}, as they are or with .gz at the end."
        )
    return {part: (found[a], found[b]) for part, (a, b) in FILES.items()}


@cache
def load_images(folder: Path) -> Images:
    """The four files of a folder. UsageError where one is missing, RunError where one is damaged or does not fit."""
    pixels, labels = {}, {}
    for part, (images, classes) in _find(folder).items():
        x, y = read_idx(images, 3), read_idx(classes, 1)
        if tuple(x.shape[1:]) != (SIDE, SIDE):
            raise RunError(f"{images} holds images of {x.shape[1]} x {x.shape[2]} pixels, not {SIDE} x {SIDE}.")
        if len(x) != len(y) or len(y) < 12:
            raise RunError(f"{images} holds {len(x)} images and {classes.name} {len(y)} labels: 12 or more, one each.")
        if int(y.max()) > 9:
            raise RunError(f"{classes} holds the label {int(y.max())}; digits are 0 to 9.")
        pixels[part], labels[part] = x.flatten(1), y.long()
    return Images("mnist", pixels, labels, SIDE, test="t10k")


# -- tasks and training data -----------------------------------------------------------------------------------------


def make_mnist_task(name: str, folder: Path, n: int) -> Task:
    """The task of that name (see MNIST_TASKS) with up to n examples per split; refuses another with the nearest one."""
    return make_image_task(name, MNIST_TASKS, _SIDES, load_images(folder), n, tuple(map(str, range(10))))


class MnistData(ImageFileData):
    """Training data: batches of the train images, drawn with replacement."""

    def images(self) -> Images:
        return load_images(self.folder)
