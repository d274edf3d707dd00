"""The cifar10 subject: colour images of 32 x 32 pixels from local files, scaled to 0..1, all red before green and blue.

Two forms are read: the *binary version* of CIFAR-10 (Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html: files
data_batch_1.bin to data_batch_5.bin and test_batch.bin; every image is one byte for its class and 3,072 for its pixels,
red, green, blue, each row by row), and one .npz file of NumPy with x_train and x_test [N, 32, 32, 3] and y_train and
y_test [N]. The *python version* consists of pickles, which are never opened.

Knows the file formats. Does not know models, and downloads nothing. The splits are those of `image_files`.
"""

from __future__ import annotations

import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openwork.errors import RunError, UsageError
from openwork.tasks.image_files import ImageFileData, Images, make_image_task
from openwork.tasks.images import Sides
from openwork.tasks.task import Task

SIDE, CHANNELS = 32, 3
ROW = 1 + CHANNELS * SIDE * SIDE
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = "test_batch.bin"

_SIDES: dict[str, Sides] = {
    "animal": ((2, 3, 4, 5, 6, 7), (0, 1, 8, 9)),
    "cat_dog": ((3,), (5,)),
    "automobile_truck": ((1,), (9,)),
    "deer_horse": ((4,), (7,)),
}

CIFAR_TASKS: dict[str, str] = {
    "cifar10": "name the thing in a 32 x 32 image; it competes with the other nine",
    "animal": "tell an animal from a vehicle; each competes with its counterpart's class",
    **{
        name: f"tell {CLASSES[a[0]]} from {CLASSES[b[0]]} in a 32 x 32 image"
        for name, (a, b) in _SIDES.items()
        if name != "animal"
    },
}


def read_rows(path: Path) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [N, 3072] and classes int64 [N] of one file of the binary version.

    RunError where its length is not a whole number of images or a class is not 0 to 9.
    """
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if len(data) == 0 or len(data) % ROW:
        raise RunError(f"{path} is truncated or damaged: {len(data)} bytes are not a number of images of {ROW} bytes.")
    rows = data.reshape(-1, ROW)
    if rows[:, 0].max() > 9:
        raise RunError(f"{path} is damaged: it holds the class {rows[:, 0].max()}; classes are 0 to 9.")
    return torch.from_numpy(rows[:, 1:].copy()), torch.from_numpy(rows[:, 0].astype(np.int64))


def _npz(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    try:
        with np.load(path, allow_pickle=False) as held:
            missing = [k for k in ("x_train", "y_train", "x_test", "y_test") if k not in held]
            if missing:
                raise RunError(f"{path} lacks {', '.join(missing)}.")
            found = {part: (held[f"x_{part}"], held[f"y_{part}"]) for part in ("train", "test")}
    except (ValueError, zipfile.BadZipFile, EOFError, OSError) as e:
        raise RunError(f"{path} is not a readable .npz file of plain arrays: {e}.") from e
    out = {}
    for part, (x, y) in found.items():
        if x.dtype != np.uint8 or x.shape[1:] != (SIDE, SIDE, CHANNELS) or y.shape != (len(x),) or len(x) < 12:
            raise RunError(f"{path}: x_{part} {x.dtype} {x.shape}, y_{part} {y.shape}: uint8 [N, 32, 32, 3] and [N].")
        if int(y.min()) < 0 or int(y.max()) > 9:
            raise RunError(f"{path}: y_{part} holds classes {int(y.min())} to {int(y.max())}; classes are 0 to 9.")
        pixels = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).reshape(len(x), -1)
        out[part] = (torch.from_numpy(pixels), torch.from_numpy(y.astype(np.int64)))
    return out


@cache
def load_cifar(folder: Path) -> Images:
    """The images of a folder: the binary version's six files, or one .npz. UsageError where neither is there."""
    files = {n: p for n in (*TRAIN, TEST) for p in (folder / n, folder / "cifar-10-batches-bin" / n) if p.is_file()}
    arrays = sorted(folder.glob("*.npz"))
    if len(files) == len(TRAIN) + 1:
        x, y = zip(*(read_rows(files[n]) for n in TRAIN), strict=True)
        parts = {"train": (torch.cat(x), torch.cat(y)), "test": read_rows(files[TEST])}
    elif len(arrays) == 1:
        parts = _npz(arrays[0])
    else:
        pickled = " What lies there are pickles, which are never opened." if (folder / "data_batch_1").exists() else ""
        raise UsageError(
            f"{', '.join(n for n in (*TRAIN, TEST) if n not in files)} not found in {folder}.{pickled} --data names "
            "the folder of the binary version of CIFAR-10, or of one .npz file with x_train, y_train, x_test, y_test."
        )
    return Images("cifar10", {p: x for p, (x, _) in parts.items()}, {p: y for p, (_, y) in parts.items()}, SIDE)


def make_cifar_task(name: str, folder: Path, n: int) -> Task:
    """The task of that name (see CIFAR_TASKS) with up to n examples per split; refuses another with the nearest one."""
    return make_image_task(name, CIFAR_TASKS, _SIDES, load_cifar(folder), n, CLASSES)


class CifarData(ImageFileData):
    """Training data: batches of the training images, drawn with replacement."""

    def images(self) -> Images:
        return load_cifar(self.folder)
