"""Ways of shipping a trained perceptron: FORMATS, by name. Each is a file here and gives a file's content.

Knows the parts of a perceptron. Does not know how it was trained.
"""

from __future__ import annotations

from collections.abc import Callable

from openwork.export.c import to_c
from openwork.export.npz import read_npz, to_npz
from openwork.export.onnx import to_onnx
from openwork.export.parts import Parts, compacted
from openwork.export.sparse import load_network

FORMATS: dict[str, tuple[str, Callable[[Parts], bytes]]] = {  # name -> (the file's name, its content)
    "c": ("model.c", lambda parts: to_c(parts).encode()),
    "c-int8": ("model.c", lambda parts: to_c(parts, int8=True).encode()),
    "onnx": ("model.onnx", to_onnx),
    "npz": ("model.npz", to_npz),
}

__all__ = ["FORMATS", "Parts", "compacted", "load_network", "read_npz", "to_c", "to_npz", "to_onnx"]
