"""A user's flows on disk as arrays: one file per column and split, from which training draws rows without holding them.

    schema.json        columns and classes (see `schema`)
    prepared.json      rows per split, broken lines, digest and names of the files that were read
    SPLIT/COLUMN.bin   float32 of a quantity, uint16 of a category, in the rows' order; label.bin: uint16

Which split a row belongs to is a function of what it holds: equal rows, of which flow logs are full, are never in two
splits. A second file, where there is one, is the out-of-distribution split whole.

Knows rows and files. Does not know models or tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from openwork.errors import RunError, UsageError
from openwork.files import new_folder, read_json, write_json
from openwork.tasks.flows.schema import Batch, Schema, learn

SPLITS = ("train", "discover", "verify", "explain", "ood")
OF_TWENTY = ("train",) * 13 + ("discover",) * 2 + ("verify",) * 3 + ("explain",) * 2
LEAST = 40  # rows of a class that are needed for it to be in every split


@dataclass(frozen=True, eq=False)
class Prepared:
    """Prepared rows in a folder."""

    folder: Path

    @cached_property
    def schema(self) -> Schema:
        """Columns and classes."""
        return Schema.from_dict(read_json(self.folder / "schema.json"))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What prepared.json says."""
        return read_json(self.folder / "prepared.json")

    def __len__(self) -> int:
        return sum(self.facts["rows"].values())

    def rows(self, split: str) -> int:
        """Number of rows of a split."""
        return int(self.facts["rows"].get(split, 0))

    def labels(self, split: str) -> np.ndarray:
        """Classes uint16 [N] of a split, on disk."""
        return self._array(split, "label", np.uint16)

    def features(self, split: str, at: np.ndarray | slice) -> np.ndarray:
        """Features float32 [K, F] of some rows of a split."""
        return self.schema.expand(self.codes(split, at))

    def codes(self, split: str, at: np.ndarray | slice) -> dict[str, np.ndarray]:
        """Columns of some rows of a split, as `Schema.codes` gives them."""
        out = {}
        for i, c in enumerate(self.schema.columns):
            if c.kind != "ignored":
                out[c.name] = self._array(split, str(i), _type(c.kind))[at]
        return out

    def _array(self, split: str, name: str, dtype: Any) -> np.ndarray:
        n, path = self.rows(split), self.folder / split / f"{name}.bin"
        if not n:
            return np.zeros(0, dtype=dtype)
        if not path.is_file() or path.stat().st_size != n * np.dtype(dtype).itemsize:
            raise RunError(
                f"{path} is damaged: it should hold {n:,} values; delete {self.folder} and prepare it again."
            )
        return np.memmap(path, dtype=dtype, mode="r", shape=(n,))


def prepare(
    folder: Path,
    flows: Iterable[Batch],
    label: str,
    test: Iterable[Batch] | None = None,
    ignore: Sequence[str] = (),
    normal: str = "",
    binary: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Prepared:
    """Reads flows twice, to learn their schema and to write them in arrays; a folder that is there already is used.

    flows  can be iterated over more than once; test likewise
    facts  anything worth noting of where they come from; a folder made from other facts is refused

    UsageError where a class has too few rows to be in every split.
    """
    folder = Path(folder)
    asked = {
        "label": label, "ignore": list(ignore), "normal": normal, "binary": binary, **dict(facts or {}),
    }  # fmt: skip
    if (folder / "prepared.json").exists():
        have = read_json(folder / "prepared.json")["asked"]
        if have != asked:
            changed = ", ".join(sorted(k for k in asked.keys() | have.keys() if asked.get(k) != have.get(k)))
            raise UsageError(
                f"{folder} holds flows that were prepared otherwise ({changed} differ); choose another --out."
            )
        return Prepared(folder)
    schema = learn(flows, label, ignore, normal, binary)
    few = [(c, round(s * schema.rows)) for c, s in zip(schema.classes, schema.shares, strict=True)]
    few = [(c, n) for c, n in few if n < LEAST]
    if few:
        said = ", ".join(f"{c} ({n} rows)" for c, n in few)
        raise UsageError(
            f"these classes are too rare to be in every split (at least {LEAST} rows each): {said}; "
            "leave them out, or tell attacks apart only from normal flows (--classes two)."
        )
    with new_folder(folder) as temp:
        counts = _write(temp, schema, flows, test)
        write_json(temp / "schema.json", schema.to_dict())
        broken = {"flows": getattr(flows, "broken", 0), "test": getattr(test, "broken", 0)}
        write_json(temp / "prepared.json", {"asked": asked, "rows": counts, "broken": broken})
    return Prepared(folder)


def _write(folder: Path, schema: Schema, flows: Iterable[Batch], test: Iterable[Batch] | None) -> dict[str, int]:
    counts: dict[str, int] = {s: 0 for s in SPLITS}
    files: dict[tuple[str, str], BinaryIO] = {}
    try:
        for source, only in ((flows, ""), (test or (), "ood")):
            for batch in source:
                codes, labels = schema.codes(batch), schema.labels(batch).astype(np.uint16)
                turn = turns(codes, labels) if not only else None
                for split in (only,) if only else SPLITS[:-1]:
                    mine = (
                        slice(None)
                        if turn is None
                        else np.isin(turn, [i for i, s in enumerate(OF_TWENTY) if s == split])
                    )
                    counts[split] += len(labels[mine])
                    _append(files, folder, split, "label", labels[mine])
                    for i, c in enumerate(schema.columns):
                        if c.kind != "ignored":
                            _append(files, folder, split, str(i), codes[c.name][mine])
    finally:
        for f in files.values():
            f.close()
    return counts


def _append(files: dict[tuple[str, str], BinaryIO], folder: Path, split: str, name: str, x: np.ndarray) -> None:
    if (split, name) not in files:
        (folder / split).mkdir(exist_ok=True)
        files[split, name] = (folder / split / f"{name}.bin").open("wb")
    files[split, name].write(np.ascontiguousarray(x).tobytes())


def turns(codes: Mapping[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
    """For each row [N] a number below 20 that depends on what it holds alone: equal rows, equal numbers."""
    h = labels.astype(np.uint64)
    with np.errstate(over="ignore"):
        for name in sorted(codes):
            x = codes[name]
            bits = (x + x.dtype.type(0)).view(np.uint32 if x.dtype.itemsize == 4 else np.uint16).astype(np.uint64)
            salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") | 1
            h = (h ^ (bits * np.uint64(salt))) * np.uint64(0x9E3779B97F4A7C15)
            h ^= h >> np.uint64(29)
    return (h >> np.uint64(33)) % np.uint64(20)


def _type(kind: str) -> Any:
    return np.float32 if kind == "number" else np.uint16


__all__ = ["OF_TWENTY", "SPLITS", "Prepared", "prepare", "turns"]
