"""Files that are whole or absent: atomic writes, readable faults, and the parts of our formats that need no torch.

A file is written beside its place, flushed to the disk and renamed into it; a folder likewise. What a killed process
leaves behind has a name of its own (".name.pid-n.tmp"), is read by nobody, and is swept away when the same path is
written again. Whatever goes wrong with the disk or with a damaged file is a `RunError` of one sentence.

Knows bytes, JSON, YAML, numpy. Does not know torch, models or circuits as values.

    model/     config.json (format "openwork-model": config, digest, sha256 of the tensors, extra) + model.safetensors
    circuits/  circuit.json (format "openwork-circuit": graph, counts, origin, evidence, explanations) + tensors.safetensors
"""  # noqa: E501

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from openwork.errors import RunError, UsageError

MODEL, CIRCUIT = "openwork-model", "openwork-circuit"
VERSION = 1  # of both formats; a reader accepts its own and every older one
MODEL_TENSORS, CIRCUIT_TENSORS = "model.safetensors", "tensors.safetensors"

Arrays = dict[str, NDArray[Any]]

# -- writing -----------------------------------------------------------------------------------------------------------

_count = itertools.count()
_ours: set[Path] = set()  # temporary paths that this process is writing now


def _temporary(path: Path) -> Path:
    """A new name beside `path`; sweeps away what killed processes left there."""
    for old in path.parent.glob(f".{_escape(path.name)}.*.tmp"):
        pid = re.fullmatch(r".*\.(\d+)-\d+\.tmp", old.name)
        if pid and old not in _ours and not _alive(int(pid[1])):
            remove(old)
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_count)}.tmp")


def _escape(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _alive(pid: int) -> bool:
    """Whether another process of that number runs; our own number belonged to a dead one if we do not know the path."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def remove(path: Path) -> None:
    """Removes a file or a folder with all it holds; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot(action: str, path: Path, fault: OSError) -> RunError:
    hint = " Make room and run the same command again." if fault.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return RunError(f"cannot {action} {path}: {fault.strerror or fault}.{hint}")


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes a file whole: it has either its old or its new content, whatever happens. Makes missing folders."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = _temporary(path)
        _ours.add(temp)
        try:
            with open(temp, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temp, path)
            _sync(path.parent)
        finally:
            remove(temp)
            _ours.discard(temp)
    except OSError as e:
        raise _cannot("write", path, e) from e


def write_text(path: Path, text: str) -> None:
    """Writes a text file (UTF-8) whole."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes an object as readable JSON; numbers that JSON has no word for (nan, infinities) become null."""
    write_text(path, json.dumps(plain(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_yaml(path: Path, data: Mapping[str, Any]) -> None:
    """Writes an object as YAML, keys in the order given."""
    write_text(path, yaml.safe_dump(plain(data), sort_keys=False))


def plain(value: Any) -> Any:
    """The same value made of dict, list, str, int, float, bool and None only."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "model_dump"):  # pydantic
        return plain(value.model_dump(mode="json"))
    if hasattr(value, "tolist"):  # numpy and torch, arrays and scalars
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence):
        return [plain(v) for v in value]
    raise TypeError(f"{type(value).__name__} has no plain form")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` to fill; it takes the place of `path` when the block ends well.

    If the block fails, the temporary folder is removed and an older `path` stays as it was. A folder cannot be
    replaced in one step: if the process dies between the two renames, the older one waits under a hidden name and is
    put back by the next call.
    """
    path = Path(path)
    old = path.with_name(f".{path.name}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if old.exists():
            if path.exists():
                remove(old)
            else:
                os.replace(old, path)
        temp = _temporary(path)
        _ours.add(temp)
        try:
            temp.mkdir()
            yield temp
            for item in sorted(temp.rglob("*")):
                _sync(item)
            _sync(temp)
            if path.exists():
                os.replace(path, old)
            os.replace(temp, path)
            _sync(path.parent)
            remove(old)
        finally:
            remove(temp)
            _ours.discard(temp)
    except OSError as e:
        raise _cannot("write", path, e) from e


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` for a file written bit by bit, which takes its place when the block ends well.

    If the block fails, the temporary file is removed and an older `path` stays as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = _temporary(path)
        _ours.add(temp)
        try:
            yield temp
            _sync(temp)
            os.replace(temp, path)
            _sync(path.parent)
        finally:
            remove(temp)
            _ours.discard(temp)
    except OSError as e:
        raise _cannot("write", path, e) from e


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Adds one line to a file of JSON lines; a line that does not fit on the disk is taken back."""
    path = Path(path)
    line = json.dumps(plain(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as f:
            start = f.tell()
            try:
                if f.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                f.truncate(start)
                raise
    except OSError as e:
        raise _cannot("write", path, e) from e


# -- reading -----------------------------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """The content of a file."""
    path = Path(path)
    try:
        return path.read_bytes()
    except FileNotFoundError as e:
        raise RunError(f"there is no file {path}.") from e
    except OSError as e:
        raise _cannot("read", path, e) from e


def read_text(path: Path) -> str:
    """The text of a file (UTF-8)."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as e:
        raise RunError(f"{path} is damaged: byte {e.start} is not UTF-8 text.") from e


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        data = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as e:
        raise RunError(f"{path} is damaged: it is not JSON ({e}).") from e
    if not isinstance(data, dict):
        raise RunError(f"{path} is damaged: it holds a {type(data).__name__} where an object is expected.")
    return data


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; none where there is no file. A last line cut short by a kill is left out."""
    if not Path(path).exists():
        return []
    lines = read_bytes(path).split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError as e:
            if number == len(lines):
                break
            raise RunError(f"{path} is damaged: line {number} is not JSON ({e}).") from e
    return records


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        data = yaml.safe_load(read_text(path))
    except yaml.YAMLError as e:
        raise UsageError(f"{path} is not YAML: {' '.join(str(e).split())}.") from e
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds a {type(data).__name__}; expected settings, one `name: value` per line.")
    return data


def sha256(data: bytes) -> str:
    """Digest of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


# -- our formats, without torch ----------------------------------------------------------------------------------------


def read_header(path: Path, form: str) -> dict[str, Any]:
    """The JSON part of a model or circuit folder, after checking that this version can read it.

    path  config.json or circuit.json
    form  MODEL or CIRCUIT
    """
    data = read_json(path)
    if data.get("format") != form:
        raise RunError(f'{path} is not of the format "{form}": its format is {data.get("format")!r}.')
    version = data.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RunError(f"{path} is damaged: its version is {version!r}.")
    if version > VERSION:
        raise RunError(
            f"{path} has version {version} and this openwork reads up to {VERSION}; "
            "upgrade with `pip install --upgrade openwork`."
        )
    return data


def read_model_header(folder: Path) -> dict[str, Any]:
    """config, digest, extra and sha256 of a stored model."""
    return _require(
        read_header(Path(folder) / "config.json", MODEL), Path(folder) / "config.json", "config digest sha256"
    )


def read_circuit_header(folder: Path) -> dict[str, Any]:
    """graph, counts, origin, evidence and explanations of a stored circuit: all that a view needs besides its masks."""
    path = Path(folder) / "circuit.json"
    return _require(read_header(path, CIRCUIT), path, "graph counts origin evidence explanations sha256")


def _require(data: dict[str, Any], path: Path, keys: str) -> dict[str, Any]:
    missing = [k for k in keys.split() if k not in data]
    if missing:
        raise RunError(f"{path} is damaged: {', '.join(missing)} missing.")
    return data


def check_sha256(path: Path, data: bytes, expected: Any) -> None:
    """Refuses bytes that are not the ones that were written."""
    if sha256(data) != expected:
        raise RunError(
            f"{path} is damaged or was changed: its SHA-256 is not the one noted beside it. "
            "Restore its folder from a copy, or delete it and run again what made it."
        )


def read_arrays(path: Path, expected: Any = None) -> Arrays:
    """The arrays of a safetensors file, whose SHA-256 must be `expected` where given."""
    data = read_bytes(path)
    if expected is not None:
        check_sha256(path, data, expected)
    try:
        return load_arrays(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as e:
        raise RunError(f"{path} is damaged: {e}.") from e


def read_masks(folder: Path) -> tuple[Arrays, Arrays]:
    """The masks of a stored circuit: site -> bool [n], and link -> bool [dst, src] or [n]."""
    folder = Path(folder)
    header = read_circuit_header(folder)
    path = folder / CIRCUIT_TENSORS
    arrays = read_arrays(path, header["sha256"])
    try:
        shapes = {f"nodes/{s['name']}": (int(s["size"]),) for s in header["graph"]["sites"]}
        shapes |= {f"edges/{e['name']}": tuple(map(int, e["shape"])) for e in header["graph"]["links"]}
    except (KeyError, TypeError, ValueError) as e:
        raise RunError(f"{folder / 'circuit.json'} is damaged: its graph cannot be read ({e!r}).") from e
    for name in shapes.keys() ^ arrays.keys():
        have = "is missing" if name in shapes else "is not in the graph"
        raise RunError(f"{path} is damaged: the mask {name} {have}.")
    masks = {name: _mask(path, name, arrays[name], shape) for name, shape in shapes.items()}
    nodes = {n.removeprefix("nodes/"): m for n, m in masks.items() if n.startswith("nodes/")}
    edges = {n.removeprefix("edges/"): m for n, m in masks.items() if n.startswith("edges/")}
    return nodes, edges


def _mask(path: Path, name: str, kept: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The mask whose flat kept indices are given."""
    mask = np.zeros(math.prod(shape), dtype=bool)
    if kept.ndim != 1 or kept.dtype.kind != "i" or (kept.size and not 0 <= kept.min() <= kept.max() < mask.size):
        raise RunError(f"{path} is damaged: the mask {name} does not fit its shape {shape}.")
    mask[kept] = True
    return mask.reshape(shape)
