"""A small language of programs over sequences, and its interpreter: what a compiled transformer has to compute.

After RASP (Weiss et al. 2021, arXiv 2106.06981) and its compiler Tracr (Lindner et al. 2023, arXiv 2301.05062), with
two differences that our transformer makes: attention is causal, so a position selects among those up to itself, and a
selection of nothing is a selection of everything (equal scores), where Tracr attends to a token that is always there.

Knows programs and token ids. Does not know weights, channels or tensors.

Every expression has one value per position. Expressions with a `domain` are categorical, one of so many values;
the others are numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

LEAST = 0.75  # share of the selected positions above which Sharp begins to see a value
UNCLEAR = object()  # the value of an expression that has none: fetched from positions that differ, or made from that


@dataclass(frozen=True, eq=False)
class Tokens:
    """The token at each position, an id below `size`."""

    size: int

    @property
    def domain(self) -> tuple[int, ...]:
        """All ids."""
        return tuple(range(self.size))


@dataclass(frozen=True, eq=False)
class Positions:
    """The position itself, from 0, below `size`."""

    size: int

    @property
    def domain(self) -> tuple[int, ...]:
        """All positions."""
        return tuple(range(self.size))


@dataclass(frozen=True, eq=False)
class Indicator:
    """A number that depends on one categorical expression: `value(v)` where that is v, 0 where it has no value."""

    of: Categorical
    value: Callable[[Hashable], float]


@dataclass(frozen=True, eq=False)
class Select:
    """Which earlier positions (its own included) each position looks at: those where `predicate(key, query)` holds.

    A position whose key has no value (None) is not looked for, and one whose query has none looks for nothing.
    """

    keys: Categorical
    queries: Categorical
    predicate: Callable[[Hashable, Hashable], bool]


@dataclass(frozen=True, eq=False)
class Average:
    """The mean of a number over the selected positions."""

    select: Select
    of: Indicator


@dataclass(frozen=True, eq=False)
class Fetch:
    """The value of a categorical expression at the selected positions; UNCLEAR where they differ.

    keep  the values that matter; at positions with another one, what is fetched is None: no value
    """

    select: Select
    of: Categorical
    keep: tuple[Hashable, ...] = ()

    @property
    def domain(self) -> tuple[Hashable, ...]:
        """The values that can be fetched."""
        return self.keep or self.of.domain


@dataclass(frozen=True, eq=False)
class Sharp:
    """A fetched value as it is; None where no value has more than `LEAST` of the positions that are looked at."""

    of: Fetch

    @property
    def domain(self) -> tuple[Hashable, ...]:
        """The same values."""
        return self.of.domain


@dataclass(frozen=True, eq=False)
class Same:
    """1 where two categorical expressions agree on one of the values that both can have, else 0."""

    first: Categorical
    second: Categorical


@dataclass(frozen=True, eq=False)
class Curve:
    """A number made of a number, piecewise linear through `points` (x, y) with x rising; the last piece goes on."""

    of: Average
    points: tuple[tuple[float, float], ...]


Categorical = Tokens | Positions | Fetch | Sharp
Number = Average | Same | Curve
Expression = Categorical | Number | Indicator


def run(program: Expression, tokens: Sequence[int]) -> list[Hashable]:
    """The value of a program at every position of a sequence of T token ids; UNCLEAR where it has none."""
    if isinstance(program, Tokens):
        return list(tokens)
    if isinstance(program, Positions):
        return list(range(len(tokens)))
    if isinstance(program, Sharp):
        return [_sharpened(program.of, values) for values in _found(program.of, tokens)]
    if isinstance(program, Indicator):
        return [v if v is UNCLEAR else 0.0 if v is None else program.value(v) for v in run(program.of, tokens)]
    if isinstance(program, Same):
        both = set(program.first.domain) & set(program.second.domain)
        pairs = zip(run(program.first, tokens), run(program.second, tokens), strict=True)
        return [UNCLEAR if UNCLEAR in pair else float(pair[0] == pair[1] and pair[0] in both) for pair in pairs]
    if isinstance(program, Curve):
        return [UNCLEAR if x is UNCLEAR else along(program.points, float(x)) for x in run(program.of, tokens)]  # type: ignore[arg-type]
    out: list[Hashable] = []
    for found in _found(program, tokens):
        if UNCLEAR in found:
            out.append(UNCLEAR)
        elif isinstance(program, Average):
            out.append(sum(found) / len(found))  # type: ignore[arg-type]
        else:
            distinct = {v if v in program.domain else None for v in found}
            out.append(distinct.pop() if len(distinct) == 1 else UNCLEAR)
    return out


def _found(program: Average | Fetch, tokens: Sequence[int]) -> list[list[Hashable]]:
    """Per position, the values at the positions that it looks at."""
    values = run(program.of, tokens)
    return [[UNCLEAR] if some is None else [values[j] for j in some] for some in selected(program.select, tokens)]


def _sharpened(fetch: Fetch, found: list[Hashable]) -> Hashable:
    if UNCLEAR in found:
        return UNCLEAR
    shares = {v: found.count(v) / len(found) for v in fetch.domain if v in found}
    most = max(shares, key=lambda v: shares[v], default=None)
    if most is None or shares[most] <= LEAST:
        return None
    return most if shares[most] == 1 else UNCLEAR


def selected(select: Select, tokens: Sequence[int]) -> list[list[int] | None]:
    """Per position, those it looks at: all up to itself where the predicate holds for none; None where unclear."""
    keys, queries = run(select.keys, tokens), run(select.queries, tokens)
    out: list[list[int] | None] = []
    for q in range(len(tokens)):
        if UNCLEAR in keys[: q + 1] or queries[q] is UNCLEAR:
            out.append(None)
            continue
        some = [j for j in range(q + 1) if None not in (keys[j], queries[q]) and select.predicate(keys[j], queries[q])]
        out.append(some or list(range(q + 1)))
    return out


def along(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at x of the line through points; level before the first, straight on after the last."""
    y = points[0][1]
    for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
        if x > x0:
            y = y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return y
