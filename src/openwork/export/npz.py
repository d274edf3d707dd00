"""A perceptron as arrays in one .npz file, and the few lines of NumPy that run it again.

Weights are stored by their nonzero entries. Reading unpickles nothing. Knows the parts of a perceptron, and files.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np

from openwork.errors import RunError
from openwork.export.parts import Parts
from openwork.tasks.flows.decision import Decision
from openwork.tasks.flows.schema import Schema


def to_npz(parts: Parts) -> bytes:
    """The file's content: per layer `rows`, `columns`, `values` of nonzero weights and `bias`; `metadata` as JSON."""
    arrays: dict[str, np.ndarray] = {"metadata": np.frombuffer(json.dumps(parts.metadata()).encode(), np.uint8)}
    for i, (w, b) in enumerate(parts.layers):
        rows, columns = np.nonzero(w)
        arrays |= {
            f"rows{i}": rows.astype(np.int32), f"columns{i}": columns.astype(np.int32),
            f"values{i}": w[rows, columns].astype(np.float32), f"bias{i}": b.astype(np.float32),
        }  # fmt: skip
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def read_npz(path: Path) -> Parts:
    """The parts in a file that `to_npz` wrote; RunError where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {n: stored[n] for n in stored.files}
        m = json.loads(arrays["metadata"].tobytes())
        layers, sizes = [], m["sizes"]
        for i in range(len(sizes) - 1):
            w = np.zeros((sizes[i + 1], sizes[i]), np.float32)
            w[arrays[f"rows{i}"], arrays[f"columns{i}"]] = arrays[f"values{i}"]
            layers.append((w, arrays[f"bias{i}"]))
        return Parts(
            tuple(layers), m["activation"], tuple(m["inputs"]), tuple(m["outputs"]), m["digest"],
            Schema.from_dict(m["schema"]) if m["schema"] else None,
            Decision.from_dict(m["decision"]) if m["decision"] else None, tuple(m["about"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile) as e:
        raise RunError(f"{path} is damaged, or no file that openwork export --to npz wrote ({e}).") from e


__all__ = ["read_npz", "to_npz"]
