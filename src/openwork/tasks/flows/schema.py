"""What columns a set of flows has and what classes, learned from a stream of rows; and how a row becomes features.

A batch of rows is a mapping from column to a NumPy array: of str (None where missing) as read from a file, or of
floats (nan where missing). A schema says of each column what it is:

    number    a quantity: asinh where it spans orders of magnitude, then centred and scaled to unit variance and cut off
              at CUT; missing values become the mean, and where some were missing a further feature says so
    category  one feature per value seen often enough, and one for all others: a value never seen before is data too
    ignored   no feature: names of single flows or hosts, constants, and what the user names

Ports are categories, as they name services. Everything about a column comes from training rows. Knows NumPy. Does not
know files, models or tasks.

Shapes: N rows, F features.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from openwork.errors import UsageError, unknown

Batch = Mapping[str, np.ndarray]
Kind = Literal["number", "category", "ignored"]

VERSION = 1
SAMPLE = 50_000  # rows kept to tell quantiles from
MOST_VALUES = 64  # features of one category
RARE = 1e-4  # share of rows below which a value counts among the others
IDENTIFIER = 0.5  # share of distinct values from which text names single rows
HOLDS = 20_000  # distinct values counted per column; more make it an identifier
NUMERIC = 0.99  # share of the values of a column that are numbers, from which it is one
CUT = 8.0  # standard deviations
HUGE = 3e38  # what float32 holds
WIDE = 50.0  # a number spans orders of magnitude if its 99 % quantile exceeds this many times its median
NORMAL = ("normal", "benign", "background", "legitimate", "0", "false", "no")
ATTACK = "attack"  # the class of all labels but the normal one, where there are two classes
MISSING = ("", "-", "(empty)", "nan", "NaN", "null", "None", "?")
IDENTIFIERS = ("uid", "id.orig_h", "id.resp_h", "ts", "flow id", "timestamp", "src ip", "dst ip", "srcip", "dstip")
PORTS = ("port", "id.orig_p", "id.resp_p", "sport", "dport", "dsport")
EPHEMERAL = 1024  # source ports from here on are drawn at random by the operating system


@dataclass(frozen=True)
class Column:
    """One column as the training rows had it.

    why      of an ignored column, the reason
    unit     what a number counts, where its name tells
    missing  share of rows without a value
    spread   of a number: whether it is taken through asinh before it is scaled
    centre, scale  of a number: what is subtracted (after asinh) and divided by
    low, high      of a number: the range of the middle 98 % of training rows without attack, in its own unit
    least, most    of a number: smallest and largest value
    values   of a category: those with a feature of their own, most frequent first
    usual    of a category: share of each of them among training rows without attack
    """

    name: str
    kind: Kind
    why: str = ""
    unit: str = ""
    missing: float = 0.0
    spread: bool = False
    centre: float = 0.0
    scale: float = 1.0
    low: float = 0.0
    high: float = 0.0
    least: float = 0.0
    most: float = 0.0
    values: tuple[str, ...] = ()
    usual: tuple[float, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """Names of its features."""
        if self.kind == "number":
            return (self.name, f"{self.name} missing") if self.missing else (self.name,)
        return (*(f"{self.name}={v}" for v in self.values), f"{self.name} unlisted") if self.kind == "category" else ()


@dataclass(frozen=True)
class Schema:
    """Columns and classes of a set of flows.

    columns  in the order of the file, without the label
    label    name of the column with the class; "" where there is none
    classes  names of the classes, the one without attack first; model outputs are in this order
    shares   share of each class among all rows
    rows     number of rows it was learned from
    normal   the label without attack; with two classes every other label, whether seen before or not, is the second
    binary   whether there are two classes, whatever the labels
    """

    columns: tuple[Column, ...]
    label: str
    classes: tuple[str, ...]
    shares: tuple[float, ...]
    rows: int
    normal: str
    binary: bool = False
    version: int = VERSION

    @property
    def used(self) -> tuple[Column, ...]:
        """The columns that have features."""
        return tuple(c for c in self.columns if c.kind != "ignored")

    @cached_property
    def features(self) -> tuple[str, ...]:
        """Names [F] of all features, column by column."""
        return tuple(f for c in self.columns for f in c.features)

    @cached_property
    def column_of(self) -> tuple[int, ...]:
        """Per feature [F], the place of its column among `columns`."""
        return tuple(i for i, c in enumerate(self.columns) for _ in c.features)

    def column(self, name: str) -> Column:
        """The column of that name; refuses with the nearest one."""
        by = {c.name: c for c in self.columns}
        if name not in by:
            raise unknown("column", name, by)
        return by[name]

    def digest(self) -> str:
        """SHA-256 of all that it says."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Schema:
        """The inverse of `to_dict`; UsageError for data of a later version or another shape."""
        if data.get("version") != VERSION:
            raise UsageError(f"this schema has version {data.get('version')!r}; this openwork reads {VERSION}.")
        try:
            columns = tuple(
                Column(**{**c, "values": tuple(c["values"]), "usual": tuple(c["usual"])}) for c in data["columns"]
            )
            return Schema(**{**data, "columns": columns, **{k: tuple(data[k]) for k in ("classes", "shares")}})
        except (KeyError, TypeError) as e:
            raise UsageError(f"this is no schema of flows: {e!r}.") from e

    # -- rows to features ------------------------------------------------------------------------------------------

    def missing_columns(self, names: Iterable[str]) -> list[str]:
        """The used columns that are not among these."""
        have = set(names)
        return [c.name for c in self.used if c.name not in have]

    def codes(self, batch: Batch) -> dict[str, np.ndarray]:
        """Every used column as numbers [N]: a quantity in float32 (nan where missing), a category as the place of its
        value (uint16; the number of values stands for any other). UsageError where a column is missing."""
        gone = self.missing_columns(batch)
        if gone:
            raise UsageError(f"these rows have no column {', '.join(gone)}; the model was trained with it.")
        out: dict[str, np.ndarray] = {}
        for c in self.used:
            if c.kind == "number":
                out[c.name] = np.clip(numbers(batch[c.name]), -HUGE, HUGE).astype(np.float32)
            else:
                place = {v: i for i, v in enumerate(c.values)}
                other = len(c.values)
                texts, get = texts_of(batch[c.name]), place.get
                out[c.name] = np.fromiter((get(v, other) for v in texts), np.uint16, len(texts))  # type: ignore[arg-type]
        return out

    def expand(self, codes: Mapping[str, np.ndarray]) -> np.ndarray:
        """Features float32 [N, F] of columns as `codes` gives them."""
        n = len(next(iter(codes.values()))) if codes else 0
        out = np.zeros((n, len(self.features)), dtype=np.float32)
        at = 0
        for c in self.used:
            x = codes[c.name]
            if c.kind == "number":
                absent = np.isnan(x)
                y = np.arcsinh(x) if c.spread else x
                y = np.clip((y - np.float32(c.centre)) / np.float32(c.scale), -CUT, CUT)
                out[:, at] = np.where(absent, 0.0, y)
                if c.missing:
                    out[:, at + 1] = absent
            else:
                out[np.arange(n), at + x.astype(np.int64)] = 1.0
            at += len(c.features)
        return out

    def encode(self, batch: Batch) -> np.ndarray:
        """Features float32 [N, F] of rows as they were read."""
        return self.expand(self.codes(batch))

    def unscaled(self, feature: str, value: float) -> float:
        """What a number's feature stands for in the column's own unit; a category's feature is what it is."""
        c = self.columns[self.column_of[self.features.index(feature)]]
        if c.kind != "number" or feature != c.name:
            return value
        y = value * c.scale + c.centre
        return math.sinh(y) if c.spread else y

    def labels(self, batch: Batch) -> np.ndarray:
        """Classes int64 [N] of rows; UsageError for a label that no class has."""
        if self.binary:
            return np.array([str(v).strip() != self.normal for v in texts_of(batch[self.label])], dtype=np.int64)
        place = {v: i for i, v in enumerate(self.classes)}
        texts = [str(v).strip() for v in texts_of(batch[self.label])]
        strange = sorted(set(texts) - place.keys())
        if strange:
            raise UsageError(f'label "{strange[0]}" is none of the classes {", ".join(self.classes)}.')
        return np.fromiter((place[v] for v in texts), np.int64, len(texts))

    def drift(self, batch: Batch) -> list[dict[str, Any]]:
        """Per column, how far rows are from the training ones: share beyond least and most, of values never seen, of
        missing values (and in training)."""
        codes, out = self.codes(batch), []
        for c in self.used:
            x = codes[c.name]
            gone = np.isnan(x) if c.kind == "number" else np.zeros(len(x), dtype=bool)
            strange = ((x < c.least) | (x > c.most)) & ~gone if c.kind == "number" else x == len(c.values)
            expected = 0.0 if c.kind == "number" else max(0.0, 1 - sum(c.usual))
            out.append({
                "column": c.name, "beyond": float(np.mean(strange)) if len(x) else 0.0, "beyond_in_training": expected,
                "missing": float(np.mean(gone)) if len(x) else 0.0, "missing_in_training": c.missing,
            })  # fmt: skip
        return out


def numbers(x: np.ndarray) -> np.ndarray:
    """Values float64 [N]; nan for what is missing or is no number."""
    if x.dtype != object and x.dtype.kind in "fiub":
        y = x.astype(np.float64)
    else:
        y = np.fromiter((_number(v) for v in x.tolist()), np.float64, len(x))
    return np.where(np.isfinite(y), y, np.nan)


def _number(v: Any) -> float:
    if v is None:
        return math.nan
    if isinstance(v, bool):
        return float(v)
    try:
        return float(v)
    except (TypeError, ValueError):
        return {"T": 1.0, "F": 0.0, "true": 1.0, "false": 0.0}.get(str(v), math.nan)


# -- learning a schema -------------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    """What is counted of one column while rows go by."""

    rows: int = 0
    present: int = 0
    numeric: int = 0
    least: float = math.inf
    most: float = -math.inf
    counts: Counter[str] = field(default_factory=Counter)
    many: bool = False

    def add(self, x: np.ndarray) -> None:
        y = numbers(x)
        good = ~np.isnan(y)
        self.rows += len(x)
        self.numeric += int(good.sum())
        if good.any():
            self.least, self.most = min(self.least, float(y[good].min())), max(self.most, float(y[good].max()))
        self.present += sum(v is not None and v == v for v in x.tolist()) if x.dtype == object else int(good.sum())
        if not self.many:
            self.counts.update(v for v in texts_of(x) if v is not None)
            self.many = len(self.counts) > HOLDS


def texts_of(x: np.ndarray) -> list[str | None]:
    """Values as text, whole numbers without a point; None where missing."""
    if x.dtype == object:
        return [None if v is None or v != v else v if isinstance(v, str) else _text(v) for v in x.tolist()]
    values, back = np.unique(x, return_inverse=True)  # far fewer texts are made than there are rows
    texts = [None if v != v else _text(v) for v in values.tolist()]
    return [texts[i] for i in back.tolist()]


def _text(v: Any) -> str:
    return str(int(v)) if isinstance(v, float) and v.is_integer() else str(v)


def learn(
    batches: Iterable[Batch],
    label: str,
    ignore: Sequence[str] = (),
    normal: str = "",
    binary: bool = False,
    seed: int = 0,
) -> Schema:
    """The schema of a stream of labelled rows, in one pass; UsageError with every fault that is found.

    label   column with the class
    ignore  columns that are to have no feature
    normal  the label without attack; by default the one of NORMAL that there is, else the most frequent
    binary  one class for all other labels together, "attack"
    """
    rng = np.random.default_rng(seed)
    tallies: dict[str, _Tally] = {}
    kept: dict[str, list[Any]] = {}
    classes: Counter[str] = Counter()
    rows = 0
    for batch in batches:
        n = len(next(iter(batch.values()))) if batch else 0
        if not tallies:
            _check(batch, label, ignore)
            tallies, kept = {name: _Tally() for name in batch}, {name: [] for name in batch}
        classes.update(str(v).strip() for v in texts_of(batch[label]))
        for name, x in batch.items():
            tallies[name].add(x)
        places = _reservoir(rows, n, rng)
        for name, x in batch.items():
            column = kept[name]
            for i, at in places:
                if at < len(column):
                    column[at] = x[i]
                else:
                    column.append(x[i])
        rows += n
    if not rows:
        raise UsageError("there are no rows to learn from.")
    if len(classes) < 2:
        raise UsageError(f'all {rows:,} rows have the label "{next(iter(classes))}"; a detector needs two classes.')
    first = _normal(classes, normal)
    names = (first, ATTACK) if binary else (first, *sorted(classes.keys() - {first}))
    counts = {ATTACK: rows - classes[first], **({} if binary else classes), first: classes[first]}
    clean = np.array([str(v).strip() == first for v in texts_of(np.array(kept[label], dtype=object))])
    made = [
        _column(name, tallies[name], np.array(kept[name], dtype=object), clean, name in ignore)
        for name in tallies
        if name != label
    ]
    if all(c.kind == "ignored" for c in made):
        raise UsageError("no column is left to learn from: all are ignored, constant or name single rows.")
    return Schema(tuple(made), label, names, tuple(counts[c] / rows for c in names), rows, first, binary)


def _check(batch: Batch, label: str, ignore: Sequence[str]) -> None:
    problems = [f"no column {name!r} (--label)" for name in (label,) if name not in batch]
    problems += [f"no column {name!r} to ignore" for name in ignore if name not in batch]
    if problems:
        raise UsageError(f"the rows have {' and '.join(problems)}; there are {', '.join(batch)}.")


def _reservoir(seen: int, n: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Which of the next n rows go to which place of a fair sample of SAMPLE rows (Vitter's algorithm R)."""
    fills = min(n, max(0, SAMPLE - seen))
    places = [(i, seen + i) for i in range(fills)]
    if fills < n:
        at = rng.integers(0, np.arange(seen + fills, seen + n) + 1)
        places += [(fills + int(i), int(at[i])) for i in np.flatnonzero(at < SAMPLE)]
    return places


def _normal(classes: Counter[str], wanted: str) -> str:
    if wanted:
        if wanted not in classes:
            raise unknown("class", wanted, classes)
        return wanted
    by = {c.lower(): c for c in classes}
    return next((by[n] for n in NORMAL if n in by), classes.most_common(1)[0][0])


def _column(name: str, t: _Tally, sample: np.ndarray, clean: np.ndarray, ignored: bool) -> Column:
    missing = 1 - t.present / t.rows
    low = name.lower()
    base = Column(name, "ignored", missing=missing, unit=unit_of(low))
    if ignored:
        return replace(base, why="named by the user")
    if not t.present:
        return replace(base, why="always missing")
    if low in IDENTIFIERS:
        return replace(base, why="names a single flow, host or moment")
    if not t.many and len(t.counts) == 1 and not missing:
        return replace(base, why="always the same value")
    port = any(low == p or low.endswith(p) for p in PORTS)
    if port and (t.many or _ephemeral(t.counts)):
        return replace(base, why="a source port drawn by the operating system")
    if t.numeric >= NUMERIC * t.present and not port:
        return _quantity(base, t, numbers(sample), clean)
    if t.many or len(t.counts) > max(2 * MOST_VALUES, IDENTIFIER * t.present):
        return replace(base, why="names single rows")
    often = [v for v, n in t.counts.most_common(MOST_VALUES) if n >= max(2, RARE * t.rows)]
    texts = np.array(texts_of(sample[clean]), dtype=object)
    usual = tuple(float(np.mean(texts == v)) if len(texts) else 0.0 for v in often)
    return replace(base, kind="category", values=tuple(often), usual=usual)


def _ephemeral(counts: Counter[str]) -> bool:
    """Whether most rows have a port from EPHEMERAL on, each of them rare."""
    total = sum(counts.values())
    high = sum(n for v, n in counts.items() if v.isdigit() and int(v) >= EPHEMERAL and n < 0.01 * total)
    return high > 0.5 * total


def _quantity(base: Column, t: _Tally, x: np.ndarray, clean: np.ndarray) -> Column:
    good = x[~np.isnan(x)]
    if not len(good):
        return replace(base, why="hardly ever a number")
    size = np.abs(good)
    typical = max(float(np.median(size)), 1e-3 * float(np.quantile(size, 0.99)), 1e-12)
    spread = float(np.quantile(size, 0.999)) > WIDE * typical and float(size.max()) > 10
    y = np.arcsinh(good) if spread else good
    scale = float(y.std())
    usual = x[clean & ~np.isnan(x)]
    usual = usual if len(usual) else good
    low, high = (float(v) for v in np.quantile(usual, (0.01, 0.99)))
    return replace(
        base, kind="number", spread=spread, centre=float(y.mean()), scale=scale if scale > 1e-9 else 1.0,
        low=low, high=high, least=t.least, most=t.most,
    )  # fmt: skip


UNITS = {
    "bytes": "bytes", "duration": "s", "pkts": "packets", "packets": "packets", "rate": "", "port": "", "hour": "h",
    "seconds": "s", "logins": "logins",
}  # fmt: skip


def unit_of(name: str) -> str:
    """The unit that a column's name tells; "" where it tells none."""
    return next((u for word, u in UNITS.items() if word in name.lower()), "")


__all__ = ["CUT", "HUGE", "MISSING", "Batch", "Column", "Schema", "learn", "numbers", "texts_of", "unit_of"]
