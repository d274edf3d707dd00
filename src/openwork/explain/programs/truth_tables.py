"""Boolean functions as formulas: from a truth table to the shortest text that has the same table.

    decompose   two inputs that the rest sees as one bit become one gate (and, or, xor); repeated, this finds every
                formula that reads each input once (Ashenhurst 1957: a bound set of two inputs)
    count       what is left, where only the number of true inputs (or of their negations) matters: "at least 2 of 5"
    cover       what is left otherwise: the smallest set of prime implicants (Quine 1952, McCluskey 1956) that covers
                the ones, or the zeros; by integer programming, so smallest is proved, not hoped for

A formula is text that Python runs: `a and (b or not c)`, `(a + b + c) >= 2`. Knows tables of booleans. Does not know
models, tasks, or where a table comes from.

Shapes: k inputs, 2^k rows; row r gives input i the bit k - 1 - i of r, so that rows read like binary numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openwork.errors import UsageError

MOST_INPUTS = 12  # rows double with every input
Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Formula:
    """One node of a formula: an input, a constant, or a gate over other formulas.

    gate    "input" (then `name`), "true", "false", "not", "and", "or", "xor" or "count"
    counts  of a "count": the numbers of true parts with which it is true
    """

    gate: str
    parts: tuple[Formula, ...] = ()
    name: str = ""
    counts: tuple[int, ...] = ()

    def literals(self) -> int:
        """How often an input is read: the length of a formula."""
        return 1 if self.gate == "input" else sum(p.literals() for p in self.parts)

    def inputs(self) -> tuple[str, ...]:
        """Names that are read, each once, in the order of their first use."""
        if self.gate == "input":
            return (self.name,)
        return tuple(dict.fromkeys(n for p in self.parts for n in p.inputs()))

    def value(self, inputs: Mapping[str, Bits]) -> Bits:
        """Its value where the inputs, all of one shape, have these values."""
        if self.gate == "input":
            return inputs[self.name]
        if self.gate in ("true", "false"):
            return np.asarray(self.gate == "true")
        parts = [p.value(inputs) for p in self.parts]
        if self.gate == "not":
            return ~parts[0]
        total = sum(p.astype(int) for p in parts)
        if self.gate == "xor":
            return np.asarray(total % 2 == 1)
        if self.gate == "count":
            return np.isin(total, self.counts)
        return np.all(parts, 0) if self.gate == "and" else np.any(parts, 0)

    def __str__(self) -> str:
        """As Python that runs on names of booleans."""
        if self.gate == "input":
            return self.name
        if self.gate in ("true", "false"):
            return self.gate.capitalize()
        if self.gate == "not":
            return f"not {self.parts[0]._operand()}"
        if self.gate in ("and", "or"):
            return f" {self.gate} ".join(str(p) if p.gate == "not" else p._operand() for p in self.parts)
        operands = [p._operand() for p in self.parts]
        if self.gate == "xor":
            return " != ".join(operands) if len(operands) == 2 else f"({' + '.join(operands)}) % 2 == 1"
        return self._counted(" + ".join(operands))

    def _operand(self) -> str:
        return str(self) if self.gate in ("input", "true", "false") else f"({self})"

    def _counted(self, total: str) -> str:
        low, high, k = min(self.counts), max(self.counts), len(self.parts)
        if self.counts != tuple(range(low, high + 1)):
            return f"({total}) in {self.counts}"
        if low == high:
            return f"({total}) == {low}"
        if high == k:
            return f"({total}) >= {low}"
        return f"({total}) <= {high}" if low == 0 else f"{low} <= ({total}) <= {high}"


TRUE, FALSE = Formula("true"), Formula("false")


def negated(f: Formula) -> Formula:
    """The negation, carried inwards to the inputs."""
    if f.gate in ("true", "false"):
        return FALSE if f.gate == "true" else TRUE
    if f.gate == "not":
        return f.parts[0]
    if f.gate in ("and", "or"):
        return _joined("or" if f.gate == "and" else "and", [negated(p) for p in f.parts])
    if f.gate == "xor":
        return Formula("xor", (negated(f.parts[0]), *f.parts[1:]))
    if f.gate == "count":
        left = sorted(set(range(len(f.parts) + 1)) - set(f.counts))
        return Formula("count", f.parts, counts=tuple(left))
    return Formula("not", (f,))


def _joined(gate: str, parts: Sequence[Formula]) -> Formula:
    """A gate over parts, with parts of the same gate laid open and xor's negations cancelled."""
    flat = [q for p in parts for q in (p.parts if p.gate == gate else (p,))]
    if gate != "xor":
        return flat[0] if len(flat) == 1 else Formula(gate, tuple(flat))
    odd = sum(p.gate == "not" for p in flat) % 2
    bare = [p.parts[0] if p.gate == "not" else p for p in flat]
    if odd:  # one negation stays, at the end
        bare[-1] = negated(bare[-1])
    return Formula("xor", tuple(bare))


# -- from a table to a formula ---------------------------------------------------------------------------------------


def table_of(function: Callable[[Sequence[bool]], bool], k: int) -> Bits:
    """The table [2^k] of a function of k booleans; UsageError beyond MOST_INPUTS."""
    _check(k)
    return np.array([bool(function(row)) for row in itertools.product((False, True), repeat=k)], dtype=bool)


def rows_of(k: int) -> Bits:
    """All assignments [2^k, k] in the order of a table's rows."""
    _check(k)
    return (np.arange(2**k)[:, None] >> np.arange(k - 1, -1, -1) & 1).astype(bool)


def _check(k: int) -> None:
    if k > MOST_INPUTS:
        raise UsageError(
            f"a truth table of {k} inputs has {2**k} rows; at most {MOST_INPUTS} inputs are written as a formula: "
            "find a circuit that reads fewer."
        )


def formula_of(table: Bits, names: Sequence[str]) -> Formula:
    """A shortest formula with this table: [2^k] booleans, and k names. UsageError where they do not fit each other.

    Inputs on which the value never depends are left out. Exact for formulas that read every input once, for functions
    of the number of true inputs, and smallest among sums of products and products of sums otherwise.
    """
    k = len(names)
    _check(k)
    if np.shape(table) != (2**k,) or len(set(names)) != k:
        raise UsageError(f"a table of {k} differently named inputs has {2**k} rows; got {np.shape(table)}.")
    f = np.asarray(table, dtype=bool).reshape((2,) * k)
    inputs = [Formula("input", name=n) for n in names]
    for axis in reversed(range(k)):
        if bool((f.take(0, axis) == f.take(1, axis)).all()):
            f, inputs = f.take(0, axis), inputs[:axis] + inputs[axis + 1 :]
    merged = _merge(f, inputs)
    while merged is not None:
        f, inputs = merged
        merged = _merge(f, inputs)
    if f.ndim == 0:
        return TRUE if f else FALSE
    if f.ndim == 1:
        return inputs[0] if f[1] else negated(inputs[0])
    return _counted(f, inputs) or _covered(f, inputs)


def _merge(f: Bits, inputs: list[Formula]) -> tuple[Bits, list[Formula]] | None:
    """Two inputs that the rest of f sees as one bit, made one; None where there are no two."""
    for i, j in itertools.combinations(range(f.ndim), 2):
        seen = np.moveaxis(f, (i, j), (0, 1)).reshape(4, -1)
        same = [bool((row == seen[0]).all()) for row in seen]
        other = seen[same.index(False)] if False in same else seen[0]
        if any(not s and bool((row != other).any()) for s, row in zip(same, seen, strict=True)):
            continue
        where = [r for r in range(4) if not same[r]]  # the assignments of the pair for which the new bit is true
        a, b = inputs[i], inputs[j]
        if len(where) == 2:  # 01 and 10; were it one input alone, the other would not matter
            gate = _joined("xor", [a, b])
        else:
            [r] = where if len(where) == 1 else [0]
            gate = _joined("and", [p if bit else negated(p) for p, bit in ((a, r >> 1), (b, r & 1))])
            gate = gate if len(where) == 1 else negated(gate)
        shape = np.delete(f.shape, (i, j))
        new = np.stack([seen[0].reshape(shape), other.reshape(shape)], axis=i)
        return new, [*inputs[:i], gate, *inputs[i + 1 : j], *inputs[j + 1 :]]
    return None


def _counted(f: Bits, inputs: list[Formula]) -> Formula | None:
    """The function as one of the number of true inputs, some of them negated first; None where it is none."""
    k = f.ndim
    rows, values = rows_of(k), f.ravel()
    for signs in itertools.product((False, True), repeat=k - 1):  # the first is not negated: count the other way
        total = (rows ^ np.array([False, *signs])).sum(1)
        true = {int(n) for n in total[values]}
        if not true & {int(n) for n in total[~values]}:
            parts = (negated(p) if s else p for p, s in zip(inputs, (False, *signs), strict=True))
            return Formula("count", tuple(parts), counts=tuple(sorted(true)))
    return None


def _covered(f: Bits, inputs: list[Formula]) -> Formula:
    """The shorter of the smallest sum of products and the smallest product of sums."""
    ones = _joined("or", [_product(c, inputs) for c in smallest_cover(f)])
    zeros = negated(_joined("or", [_product(c, inputs) for c in smallest_cover(~f)]))
    return zeros if zeros.literals() < ones.literals() else ones


def _product(cube: Sequence[int], inputs: list[Formula]) -> Formula:
    return _joined("and", [p if bit else negated(p) for p, bit in zip(inputs, cube, strict=True) if bit < 2])


def prime_implicants(f: Bits) -> npt.NDArray[np.int64]:
    """All prime implicants [n, k] of a function [2, ..., 2] of k inputs: per input 0, 1, or 2 where it is not read.

    An array of side 3 holds every cube at once: along each axis, place 2 is the conjunction of places 0 and 1.
    """
    cubes = f
    for axis in range(f.ndim):
        cubes = np.concatenate([cubes, cubes.take([0], axis) & cubes.take([1], axis)], axis)
    prime = cubes.copy()
    for axis in range(f.ndim):
        wider = cubes.take([2], axis)
        prime &= np.concatenate([~wider, ~wider, np.ones_like(wider)], axis)
    return np.argwhere(prime)


def smallest_cover(f: Bits) -> list[tuple[int, ...]]:
    """Prime implicants that together are true exactly where f is, with the fewest literals and terms in all.

    An integer programme: minimise sum x_i (literals_i + 1) so that every one of f lies in a chosen cube. Ties fall as
    the solver has them, which is the same way every time.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    cubes = prime_implicants(f)
    ones = np.argwhere(f)
    if not len(ones):
        return []
    inside = ((cubes[None] == 2) | (cubes[None] == ones[:, None])).all(-1).astype(float)  # [ones, cubes]
    cost = (cubes < 2).sum(1) + 1.0
    found = milp(cost, integrality=np.ones(len(cubes)), bounds=Bounds(0, 1), constraints=LinearConstraint(inside, lb=1))
    chosen = np.round(found.x).astype(bool)
    return [tuple(map(int, c)) for c in cubes[chosen]]


__all__ = [
    "FALSE", "MOST_INPUTS", "TRUE", "Bits", "Formula", "formula_of", "negated", "prime_implicants", "rows_of",
    "smallest_cover", "table_of",
]  # fmt: skip
