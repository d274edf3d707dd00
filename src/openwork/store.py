"""Models and circuits as folders: safetensors and versioned JSON, digests, atomic writes. Nothing is ever unpickled.

A model keeps only its nonzero weights where it is sparse: a matrix with less than 30 % nonzeros is stored as
`<name>.indices` (flat) and `<name>.values`, and is dense again when loaded. A circuit keeps the flat indices of what
its masks keep. Loading checks the version, the SHA-256 of the tensors and every shape; a circuit that is asked for
together with a model refuses when it was found in another one.

Knows folders, models, circuits. Does not know runs, tasks or training. The part that needs no torch is in `files`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from openwork import files
from openwork.circuit import Circuit, Evidence, Explanation
from openwork.errors import OpenworkError, RunError, UsageError
from openwork.files import append_jsonl, new_folder, read_json, read_yaml, write_json, write_text, write_yaml
from openwork.graph import Graph
from openwork.models import build

SPARSE_BELOW = 0.3  # share of nonzeros under which index and value take less room than the matrix


# -- tensors -----------------------------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes a safetensors file whole and returns its SHA-256."""
    data = save_tensors({n: t.detach().cpu().contiguous() for n, t in tensors.items()})
    files.write_bytes(path, data)
    return files.sha256(data)


def read_tensors(path: Path, expected: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, whose SHA-256 must be `expected` where given."""
    data = files.read_bytes(path)
    if expected is not None:
        files.check_sha256(path, data, expected)
    try:
        return load_tensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as e:
        raise RunError(f"{path} is damaged: {e}.") from e


def _indices(mask: Tensor) -> Tensor:
    """Flat indices [k] of what a mask keeps, in the smaller integer type that holds them."""
    kept = mask.flatten().nonzero().flatten()
    return kept.int() if mask.numel() < 2**31 else kept


# -- models ------------------------------------------------------------------------------------------------------------


def model_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all parameters and buffers. -0 counts as 0."""
    digest = hashlib.sha256()
    for name, t in sorted(model.state_dict().items()):
        t = t.detach().cpu().contiguous()
        t = t + 0.0 if t.is_floating_point() else t
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_model(folder: Path, model: nn.Module, extra: Mapping[str, Any] | None = None) -> None:
    """Writes a model that has a `config`, with anything else worth knowing about it in `extra`.

    UsageError for a model with parametrizations (gates, weight norm): its config does not say how to build those.
    """
    for name, module in model.named_modules():
        if is_parametrized(module):
            raise UsageError(
                f"{name or 'the model'} still has its parametrizations; remove them first "
                "(a regime's finish does, or torch.nn.utils.parametrize.remove_parametrizations)."
            )
    tensors: dict[str, Tensor] = {}
    for name, t in model.state_dict().items():
        t = t.detach().cpu()
        if t.dim() >= 2 and int(t.count_nonzero()) < SPARSE_BELOW * t.numel():
            kept = _indices(t != 0)
            tensors |= {f"{name}.indices": kept, f"{name}.values": t.flatten()[kept.long()]}
        else:
            tensors[name] = t
    with new_folder(folder) as temp:
        written = write_tensors(temp / files.MODEL_TENSORS, tensors)
        header = {
            "format": files.MODEL,
            "version": files.VERSION,
            "config": cast(BaseModel, model.config),
            "digest": model_digest(model),
            "sha256": written,
            "extra": dict(extra or {}),
        }
        write_json(temp / "config.json", header)


def load_model(folder: Path) -> nn.Module:
    """The model stored in a folder, on the CPU."""
    folder = Path(folder)
    header = files.read_model_header(folder)
    path = folder / files.MODEL_TENSORS
    stored = read_tensors(path, header["sha256"])
    try:
        model = build(header["config"])
    except (OpenworkError, AttributeError, TypeError) as e:
        raise RunError(f"{folder / 'config.json'} is damaged: {e}") from e
    want = model.state_dict()
    state = {name: _dense(path, name, stored, tuple(t.shape)) for name, t in want.items()}
    if stored:
        raise RunError(f"{path} does not fit its config: {', '.join(sorted(stored))} belongs to no parameter.")
    model.load_state_dict(state)
    if model_digest(model) != header["digest"]:
        raise RunError(f"{folder} is damaged or was changed: its weights are not the ones that config.json names.")
    return model


def _dense(path: Path, name: str, stored: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Takes one parameter out of what is stored, as a dense tensor."""
    if name in stored:
        t = stored.pop(name)
    elif f"{name}.indices" in stored and f"{name}.values" in stored:
        kept, values = stored.pop(f"{name}.indices").long(), stored.pop(f"{name}.values")
        size = math.prod(shape)
        if kept.shape != values.shape or (len(kept) and not 0 <= int(kept.min()) <= int(kept.max()) < size):
            raise RunError(f"{path} is damaged: the indices of {name} do not fit {shape}.")
        t = torch.zeros(size, dtype=values.dtype).index_put_((kept,), values).view(shape)
    else:
        raise RunError(f"{path} is damaged: {name} is missing.")
    if tuple(t.shape) != shape:
        raise RunError(f"{path} does not fit its config: {name} is {tuple(t.shape)}, expected {shape}.")
    return t


# -- circuits ----------------------------------------------------------------------------------------------------------


def save_circuit(folder: Path, circuit: Circuit) -> None:
    """Writes a circuit as a folder of its own: circuit.json, readable without torch, and tensors.safetensors."""
    with new_folder(folder) as temp:
        write_circuit(temp, circuit)


def write_circuit(folder: Path, circuit: Circuit) -> None:
    """Writes the two files of a circuit, flat indices of what its masks keep, into a folder that is being made."""
    masks = {f"nodes/{n}": m for n, m in circuit.nodes.items()} | {f"edges/{n}": m for n, m in circuit.edges.items()}
    written = write_tensors(folder / files.CIRCUIT_TENSORS, {n: _indices(m) for n, m in masks.items()})
    header = {
        "format": files.CIRCUIT,
        "version": files.VERSION,
        "counts": circuit.counts(),
        "origin": circuit.origin,
        "evidence": [vars(e) for e in circuit.evidence],
        "explanations": [{**vars(x), "evidence": [vars(e) for e in x.evidence]} for x in circuit.explanations],
        "sha256": written,
        "graph": circuit.graph.to_dict(),
    }
    write_json(folder / "circuit.json", header)


def load_circuit(folder: Path, digest: str | None = None) -> Circuit:
    """The circuit stored in a folder.

    digest  of the model it is to be used with: a circuit that was found in another model is refused
    """
    folder = Path(folder)
    header = files.read_circuit_header(folder)
    nodes, edges = files.read_masks(folder)
    try:
        circuit = Circuit(
            Graph.from_dict(header["graph"]),
            {n: torch.from_numpy(m) for n, m in nodes.items()},
            {n: torch.from_numpy(m) for n, m in edges.items()},
            dict(header["origin"]),
            tuple(_evidence(e) for e in header["evidence"]),
            tuple(
                Explanation(**{**x, "evidence": tuple(_evidence(e) for e in x["evidence"])})
                for x in header["explanations"]
            ),
        )
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError, OpenworkError) as e:
        raise RunError(f"{folder / 'circuit.json'} is damaged: {e!r}.") from e
    found_in = circuit.origin.get("model")
    if digest is not None and found_in != digest:
        raise RunError(
            f"the circuit in {folder} was found in model {str(found_in)[:12]}, not in this one ({digest[:12]}): "
            "discover it again in this model."
        )
    return circuit


def _evidence(data: Mapping[str, Any]) -> Evidence:
    """Evidence from plain data; null stands for nan."""

    def number(x: Any) -> float:
        return math.nan if x is None else float(x)

    low, high = data["interval"]
    numbers = {k: number(data[k]) for k in ("value", "null_value", "p", "seconds")}
    return Evidence(**{**data, **numbers, "interval": (number(low), number(high))})


__all__ = [
    "append_jsonl",
    "load_circuit",
    "load_model",
    "model_digest",
    "new_folder",
    "read_json",
    "read_tensors",
    "read_yaml",
    "save_circuit",
    "save_model",
    "write_circuit",
    "write_json",
    "write_tensors",
    "write_text",
    "write_yaml",
]
