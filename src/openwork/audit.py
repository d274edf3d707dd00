"""An append-only log in which no line can be changed, removed or moved unnoticed: JSON lines in a hash chain.

Each entry carries its number, the hash of the entry before it and, last, its own: SHA-256 over the line's text before
it; with a key, HMAC-SHA256, so that only who has the key can write a chain that verifies. Beside the log, NAME.head
says how many entries there are and the last one's hash, so that a log cut short is noticed too.

Knows records and files. Does not know what entries are about.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openwork.errors import RunError, UsageError
from openwork.files import read_json, write_json

START = "0" * 64
Record = dict[str, Any]


@dataclass(frozen=True)
class Head:
    """The end of a chain: how many entries, the last one's hash, and how long the file is in bytes."""

    entries: int = 0
    hash: str = START
    size: int = 0


def key_from(variable: str | None) -> bytes | None:
    """The key in an environment variable; None without one. UsageError where the variable is not set."""
    if variable is None:
        return None
    value = os.environ.get(variable)
    if not value:
        raise UsageError(f"--key-env {variable}: this environment variable is not set; put the key there.")
    return value.encode()


def _hash(text: bytes, key: bytes | None) -> str:
    return hmac.new(key, text, "sha256").hexdigest() if key else hashlib.sha256(text).hexdigest()


def chained(records: Iterable[Mapping[str, Any]], head: Head, key: bytes | None) -> tuple[bytes, Head]:
    """Records (plain data) as the next lines of a chain, and the chain's end after them."""
    n, last, lines = head.entries, head.hash, []
    for record in records:
        text = json.dumps({"n": n, "prev": last, **record}, separators=(",", ":"), allow_nan=False)[:-1].encode()
        last = _hash(text, key)
        lines.append(text + _ending(last))
        n += 1
    data = b"".join(lines)
    return data, Head(n, last, head.size + len(data))


def _ending(own: str) -> bytes:
    return f',"hash":"{own}"}}\n'.encode()


ENDING = len(_ending(START))


def head_of(path: Path) -> Path:
    """The file that says where a log ends."""
    return path.with_name(path.name + ".head")


def write_head(path: Path, head: Head) -> None:
    """Notes a log's end beside it."""
    write_json(head_of(path), vars(head))


def entries(path: Path) -> Iterator[Record]:
    """The entries of a log, without checking it; RunError for a line that is no entry."""
    for number, line in enumerate(_lines(path), 1):
        try:
            entry = json.loads(line)
        except ValueError as e:
            raise RunError(
                f"{path}: line {number} is not JSON; check the log with: openwork audit verify {path}"
            ) from e
        if not isinstance(entry, dict):
            raise RunError(f"{path}: line {number} is no entry; check the log with: openwork audit verify {path}")
        yield entry


def _lines(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        raise UsageError(f"{path} is not a file; expected a log that openwork watch wrote with --out.")
    with path.open("rb") as f:
        yield from f


def verify_log(path: Path, key: bytes | None = None) -> Record:
    """Checks a log: `intact`, how many `entries`, and every problem found as {line, problem}."""
    problems: list[Record] = []
    expected, last, lines, size = 0, START, 0, 0

    def problem(line: int, what: str) -> None:
        problems.append({"line": line, "problem": what})

    for lines, raw in enumerate(_lines(path), 1):
        size += len(raw)
        entry = _entry(raw)
        if entry is None:
            problem(lines, "this line is no entry: it was changed or cut off")
            expected, last = expected + 1, ""  # what the next entry should follow cannot be known
            continue
        n, own = entry["n"], entry["hash"]
        if raw[-ENDING:] != _ending(_hash(raw[:-ENDING], key)):
            problem(lines, f"entry {n} was changed" + (" or written with another key" if key or not problems else ""))
        elif n > expected:
            missing = f"entry {expected} is" if n == expected + 1 else f"entries {expected} to {n - 1} are"
            problem(lines, f"{missing} missing before entry {n}")
        elif n < expected:
            problem(lines, f"entry {n} stands after entry {expected - 1}: it was moved or repeated")
        elif last and entry["prev"] != last:
            problem(lines, f"entry {n} does not follow the entry before it: one of them was replaced")
        expected, last = n + 1, own
    head = read_head(path)
    if head is None:
        problem(lines, f"{head_of(path).name} is missing or damaged: whether the log was cut short cannot be told")
    elif not problems and (head.entries, head.hash, head.size) != (expected, last if lines else START, size):
        more = f"has {expected} entries and {head_of(path).name} notes {head.entries}"
        problem(lines, f"the log {more}: its end was cut off or added to")
    return {"log": str(path), "intact": not problems, "entries": lines, "problems": problems}


def check_log(path: Path, key_env: str | None = None) -> Record:
    """`verify_log` with the key in an environment variable; a log that is not intact is said to have `failed`."""
    result = verify_log(path, key_from(key_env))
    return result if result["intact"] else result | {"failed": f"{path} is not intact: {first_of(result)}"}


def first_of(result: Record) -> str:
    """The first problem of a result, in words."""
    problem, many = result["problems"][0], len(result["problems"])
    where = f"line {problem['line']}" if "line" in problem else f"entry {problem['entry']}"
    return f"{where}: {problem['problem']} ({'the only problem' if many == 1 else f'the first of {many} problems'})."


def _entry(raw: bytes) -> Record | None:
    try:
        entry = json.loads(raw)
    except ValueError:
        return None
    good = isinstance(entry, dict) and type(entry.get("n")) is int and {"prev", "hash"} <= entry.keys()
    return entry if good and isinstance(entry["hash"], str) else None


def read_head(path: Path) -> Head | None:
    """A log's end as noted beside it; None where that is missing or damaged."""
    at = head_of(path)
    try:
        return Head(**read_json(at)) if at.exists() else None
    except (RunError, TypeError):
        return None


__all__ = [
    "START",
    "Head",
    "chained",
    "check_log",
    "entries",
    "first_of",
    "head_of",
    "key_from",
    "read_head",
    "verify_log",
    "write_head",
]
