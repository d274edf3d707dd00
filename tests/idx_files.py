"""Small idx files as MNIST's are, and where the real ones lie, for the tests that need either."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np

from openwork.tasks.mnist import FILES

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("OPENWORK_DATA", ROOT.parent / "shared" / "data"))
REAL = DATA / "mnist"
NO_REAL = f"the files of MNIST are not in {REAL}; OPENWORK_DATA may name the folder that holds mnist/"


def idx_bytes(values: np.ndarray) -> bytes:
    """An idx file of unsigned bytes."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(struct.pack(">I", n) for n in values.shape)
    return head + values.astype(np.uint8).tobytes()


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 28, 28] and classes [n]: class c is a bar of two bright rows, the lower the larger c, among noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, n)
    images = rng.integers(0, 40, (n, 28, 28))
    for image, c in zip(images, labels, strict=True):
        image[4 + 2 * c : 6 + 2 * c, 4:24] += 200
    return images, labels


def write_files(folder: Path, train: int = 1200, verify: int = 200, packed: bool = True) -> Path:
    """The four files of a drawn data set; gzipped or plain."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (part, n) in enumerate((("train", train), ("t10k", verify))):
        for name, values in zip(FILES[part], drawn(n, seed), strict=True):
            data = idx_bytes(values)
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data, 1) if packed else data)
    return folder
