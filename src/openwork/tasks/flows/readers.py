"""Flow logs as a stream of batches: CSV, Parquet, and Zeek's conn.log as TSV or JSON, each also compressed (.gz).

A file is never held whole. Values that its format marks as missing come as None or nan; a column whose values in a
batch are all numbers comes as floats. Lines that are broken are left out and counted.

Needs polars (the extra `data`). Knows files and columns. Does not know what columns mean.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from openwork.errors import RunError, UsageError
from openwork.tasks.flows.schema import MISSING, Batch

Format = Literal["csv", "parquet", "zeek", "zeek-json"]

BATCH = 65_536  # rows
CHUNK = 8 << 20  # bytes of text read at once


@dataclass
class Flows:
    """A flow log that can be read from its beginning as often as wanted.

    columns  names for a file without a header line; () takes the file's own
    broken   lines that could not be read, in the last reading that came to its end
    """

    path: Path
    format: Format
    columns: tuple[str, ...] = ()
    rows: int = BATCH
    broken: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[Batch]:
        self.broken = 0
        if self.format == "parquet":
            yield from self._parquet()
        elif self.format == "zeek-json":
            yield from self._json()
        else:
            yield from self._lines()

    def _parquet(self) -> Iterator[Batch]:
        pl = _polars()
        try:
            count = int(pl.scan_parquet(self.path).select(pl.len()).collect().item())
            for at in range(0, count, self.rows):
                yield _batch(pl.scan_parquet(self.path).slice(at, self.rows).collect())
        except pl.exceptions.PolarsError as e:
            raise RunError(f"{self.path} is damaged: it cannot be read as Parquet ({_first(e)}).") from e

    def _lines(self) -> Iterator[Batch]:
        """CSV and Zeek TSV: text in chunks of whole lines, each with as many fields as there are columns."""
        separator = "\t" if self.format == "zeek" else ","
        names = self.columns
        for text in _chunks(self.path):
            if not names:
                names, text = _header(self.path, text, self.format)
            lines = [x for x in text.split("\n") if x and not (self.format == "zeek" and x.startswith("#"))]
            good = lines if '"' in text else [x for x in lines if x.count(separator) == len(names) - 1]
            self.broken += len(lines) - len(good)
            for at in range(0, len(good), self.rows):
                yield self._parsed(good[at : at + self.rows], names, separator)

    def _parsed(self, lines: list[str], names: tuple[str, ...], separator: str) -> Batch:
        pl = _polars()
        frame = pl.read_csv(
            io.BytesIO("\n".join(lines).encode()), has_header=False, separator=separator, infer_schema=False,
            quote_char='"' if self.format == "csv" else None, truncate_ragged_lines=True, new_columns=None,
            null_values=list(MISSING), schema={n: pl.String for n in _distinct(names)}, ignore_errors=True,
        )  # fmt: skip
        self.broken += len(lines) - len(frame)
        return _batch(frame)

    def _json(self) -> Iterator[Batch]:
        names = self.columns
        for text in _chunks(self.path):
            records: list[dict[str, Any]] = []
            for line in text.split("\n"):
                if not line:
                    continue
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if isinstance(record, dict):
                    records.append(record)
                else:
                    self.broken += 1
            if not records:
                continue
            names = names or tuple(dict.fromkeys(k for r in records for k in r))  # later, rarer keys are not known
            for at in range(0, len(records), self.rows):
                part = records[at : at + self.rows]
                yield {n: _column([r.get(n) for r in part]) for n in names}


def open_flows(path: Path, format: Format | None = None, columns: tuple[str, ...] = ()) -> Flows:
    """A flow log, its format told by its name and first bytes where not given; UsageError where there is none."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path} is not a file; expected flows as CSV, Parquet or Zeek's conn.log.")
    _polars()
    return Flows(path, format or _format(path), columns)


def _format(path: Path) -> Format:
    with path.open("rb") as f:
        if f.read(4) == b"PAR1":
            return "parquet"
    with _text(path) as f:
        start = f.read(64).lstrip()
    if not start:
        raise UsageError(f"{path} is empty.")
    if start.startswith("{"):
        return "zeek-json"
    return "zeek" if start.startswith("#separator") else "csv"


def _text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace", newline="\n")
    return path.open("r", encoding="utf-8", errors="replace", newline="\n")


def _chunks(path: Path) -> Iterator[str]:
    """The text of a file in parts of whole lines; carriage returns before line ends are left out."""
    rest = ""
    try:
        with _text(path) as f:
            while part := f.read(CHUNK):
                rest += part
                end = rest.rfind("\n") + 1
                if end:
                    yield rest[:end].replace("\r\n", "\n")
                    rest = rest[end:]
    except (OSError, EOFError) as e:
        raise RunError(f"{path} cannot be read: {e}.") from e
    if rest:
        yield rest.replace("\r", "")


def _header(path: Path, text: str, format: Format) -> tuple[tuple[str, ...], str]:
    """Names of the columns, and the text without the line that named them."""
    if format == "zeek":
        for line in text.split("\n"):
            if line.startswith("#fields"):
                return tuple(line.split("\t")[1:]), text
        raise UsageError(f"{path} has no #fields line, which names the columns of a Zeek log.")
    first, _, rest = text.partition("\n")
    names = tuple(n.strip().strip('"') for n in first.split(","))
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice or not all(names):
        raise UsageError(f"{path}: its first line should name the columns, each once; it says {first[:120]!r}.")
    return names, rest


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n if names.index(n) == i else f"{n}_{i}" for i, n in enumerate(names))


def _batch(frame: Any) -> Batch:
    return {name: _series(frame[name]) for name in frame.columns}


def _series(x: Any) -> np.ndarray:
    """A polars column as floats where all that is there are numbers, else as objects."""
    pl = _polars()
    if x.dtype == pl.String:
        x = x.str.strip_chars()
        y = x.cast(pl.Float64, strict=False)
        if y.null_count() > x.null_count() or y.null_count() == len(y):
            return np.array(x.to_list(), dtype=object)
        return y.to_numpy().astype(np.float64)
    if x.dtype.is_numeric() or x.dtype == pl.Boolean:
        return x.cast(pl.Float64).to_numpy().astype(np.float64)
    return np.array([None if v is None else str(v) for v in x.to_list()], dtype=object)


def _column(values: list[Any]) -> np.ndarray:
    if all(v is None or isinstance(v, int | float) for v in values) and any(v is not None for v in values):
        return np.array([np.nan if v is None else float(v) for v in values])
    return np.array(
        [None if v in (None, *MISSING) else v if isinstance(v, str) else json.dumps(v) for v in values], object
    )


def _polars() -> Any:
    try:
        import polars
    except ImportError as e:
        raise UsageError('reading flow logs needs polars: pip install "openwork[data]".') from e
    return polars


def _first(e: Exception) -> str:
    return str(e).split("\n")[0]


__all__ = ["BATCH", "Flows", "Format", "open_flows"]
