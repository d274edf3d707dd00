"""Sparse layers run as sparse products where that is faster, told by measuring when they are loaded.

A layer is tried with every kernel of KERNELS at a few batch sizes, and each batch later takes the kernel that was
fastest at the nearest size. The dense product is one of them, so what is chosen was not slower than dense when it was
measured. A compiled kernel joins as one more entry of KERNELS. Products of a sparse matrix want the batch as columns,
so a network keeps its activations transposed from its first layer to its last.

Knows weight matrices. Does not know models or what they compute.

Shapes: B examples; x is [in, B], as columns.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import sparse

from openwork.errors import UsageError
from openwork.export.parts import Layer

Product = Callable[[np.ndarray], np.ndarray]  # columns [in, B] -> [out, B]

SIZES = (1, 16, 256)  # batch sizes at which kernels are measured
ROUNDS = 5
LEAST = 5e-3  # seconds that a measurement of a kernel takes at least


def _dense(w: np.ndarray) -> Product:
    weight = torch.from_numpy(w)
    return lambda x: (weight @ torch.from_numpy(x)).numpy()


def _scipy_csr(w: np.ndarray) -> Product:
    matrix = sparse.csr_array(w)
    return lambda x: (matrix @ x[:, 0])[:, None] if x.shape[1] == 1 else matrix @ x


def _torch_csr(w: np.ndarray) -> Product:
    with warnings.catch_warnings():  # torch says once that CSR is in beta
        warnings.simplefilter("ignore", UserWarning)
        matrix = torch.from_numpy(w).to_sparse_csr()
    return lambda x: (matrix @ torch.from_numpy(x)).numpy()


KERNELS: Mapping[str, Callable[[np.ndarray], Product]] = {
    "dense": _dense, "scipy_csr": _scipy_csr, "torch_csr": _torch_csr,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class SparseLayer:
    """One weight matrix [out, in] with its bias [out], ready to run.

    chosen   batch size -> name of the kernel that was fastest there
    seconds  batch size -> kernel -> seconds of one product
    """

    bias: np.ndarray
    kernels: Mapping[str, Product]
    chosen: Mapping[int, str]
    seconds: Mapping[int, Mapping[str, float]]
    shape: tuple[int, int]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """[out, B] of columns [in, B]."""
        size = min(self.chosen, key=lambda s: abs(np.log(s / x.shape[1])))
        y = self.kernels[self.chosen[size]](x)
        return y + self.bias[:, None]


def load_layer(layer: Layer, sizes: Sequence[int] = SIZES, seed: int = 0) -> SparseLayer:
    """A layer with the fastest kernel for each batch size, by measuring now."""
    w, b = (np.ascontiguousarray(v, dtype=np.float32) for v in layer)
    if w.ndim != 2 or b.shape != (w.shape[0],):
        raise UsageError(f"a layer is a weight [out, in] and a bias [out]; these are {w.shape} and {b.shape}.")
    kernels = {name: make(w) for name, make in KERNELS.items()}
    rng = np.random.default_rng(seed)
    seconds = {n: measured(kernels, rng.normal(size=(w.shape[1], n)).astype(np.float32)) for n in sizes}
    chosen = {n: min(t, key=t.__getitem__) for n, t in seconds.items()}
    used = {name: kernels[name] for name in {*chosen.values()}}
    return SparseLayer(b, used, chosen, seconds, (w.shape[0], w.shape[1]))


def measured(kernels: Mapping[str, Product], x: np.ndarray) -> dict[str, float]:
    """Seconds of one product by each kernel, taken in turn: the least of ROUNDS, as other programs only add to it."""
    times: dict[str, list[float]] = {name: [] for name in kernels}
    repeats = {}
    for name, product in kernels.items():
        product(x)  # the first call allocates
        began = time.perf_counter()
        product(x)
        repeats[name] = max(1, int(LEAST / max(time.perf_counter() - began, 1e-6)))
    for _ in range(ROUNDS):
        for name, product in kernels.items():
            began = time.perf_counter()
            for _ in range(repeats[name]):
                product(x)
            times[name].append((time.perf_counter() - began) / repeats[name])
    return {name: min(t) for name, t in times.items()}


@dataclass(frozen=True, eq=False)
class SparseNetwork:
    """A perceptron of sparse layers with an activation between them."""

    layers: tuple[SparseLayer, ...]
    activation: str = "relu"
    names: Sequence[str] = field(default=())

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Outputs [B, C] of inputs [B, F]."""
        h = np.ascontiguousarray(x.T, dtype=np.float32)
        for layer in self.layers[:-1]:
            z = layer(h)
            h = np.maximum(z, 0, out=z) if self.activation == "relu" else z / (1 + np.exp(-z))
        return np.ascontiguousarray(self.layers[-1](h).T)

    def choices(self) -> list[dict[str, object]]:
        """Per layer: its shape, and the kernel of each batch size."""
        return [{"shape": x.shape, "kernels": dict(x.chosen)} for x in self.layers]


def load_network(layers: Sequence[Layer], activation: str = "relu", sizes: Sequence[int] = SIZES) -> SparseNetwork:
    """A perceptron whose layers each take the fastest kernel; "relu" or "silu" follows all but the last."""
    if activation not in ("relu", "silu"):
        raise UsageError(f"no network is run with the activation {activation}; relu and silu can be.")
    return SparseNetwork(tuple(load_layer(x, sizes) for x in layers), activation)


__all__ = ["KERNELS", "SIZES", "SparseLayer", "SparseNetwork", "load_layer", "load_network", "measured"]
