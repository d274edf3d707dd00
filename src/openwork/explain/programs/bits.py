"""Steps of a program that are 0 or 1: their roles as formulas, one formula of all of them, and fewer of them.

Everything here is exact: a bit that reads a few bits is known by its truth table. Knows programs and truth tables. Does
not know models, circuits, tasks, or why a step is a bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openwork.errors import UsageError
from openwork.explain.programs.program import Bend, Feature, Op, Program, Sum, reads, run
from openwork.explain.programs.truth_tables import MOST_INPUTS, Formula, formula_of, rows_of

Floats = NDArray[np.float64]


def formula_of_program(program: Program, low: Floats, high: Floats) -> Formula:
    """Where a program of features decides for its second answer, as a formula over the names of its features.

    low, high  per feature [F], the values that count as false and as true
    """
    read = [(s.name, s.op.index) for s in program.steps if isinstance(s.op, Feature)]
    rows = rows_of(len(read))
    x = np.tile(low, (len(rows), 1))
    for k, (_, i) in enumerate(read):
        x[:, i] = np.where(rows[:, k], high[i], low[i])
    logits = run(program, x)
    return formula_of(logits[:, 1] > logits[:, 0], [name for name, _ in read])


def formula_of_binarised(program: Program) -> tuple[Formula, dict[str, float]]:
    """Where a binarised program decides for its second answer, as a formula over "the feature is over its threshold".

    Returns the formula over the names of the features, and the threshold of each. UsageError where a feature is read
    otherwise than by one threshold.
    """
    ops = program.by_name
    features = {s.name: s.op.index for s in program.steps if isinstance(s.op, Feature)}
    thresholds: dict[str, float] = {}
    for s in program.steps:
        for name in (n for n in reads(s.op) if n in features):
            over = isinstance(s.op, Sum) and s.op.terms == ((name, 1.0),) and name not in thresholds
            steps = [t for t in program.steps if s.name in reads(t.op)]
            if not over or not all(isinstance(t.op, Bend) and t.op.curve == "step" for t in steps):
                raise UsageError(
                    f"{name} is read as a number, not by one threshold; binarise the circuit's inputs first."
                )
            thresholds[name] = -ops[s.name].bias  # type: ignore[union-attr]  # a Sum, as just seen
    low = np.zeros(max(features.values(), default=-1) + 1)
    high = low.copy()
    for name, i in features.items():
        low[i], high[i] = thresholds[name] - 1.0, thresholds[name] + 1.0
    return formula_of_program(program, low, high), thresholds


def roles(program: Program) -> dict[str, str]:
    """What each step that is 0 or 1 says: a formula of others that are 0 or 1, or a threshold of a feature.

    Steps that read other numbers, or more than a truth table may have, are told as the sum that they compare with 0.
    """
    ops = program.by_name
    out: dict[str, str] = {}
    for s in program.steps:
        if not (isinstance(s.op, Bend) and s.op.curve == "step"):
            continue
        total = ops[s.op.of]
        total = total if isinstance(total, Sum) else Sum(((s.op.of, 1.0),))
        out[s.name] = _role(total, ops)
    return out


def _role(total: Sum, ops: Mapping[str, Op]) -> str:
    names = [n for n, _ in total.terms]
    two_valued = all(_is_bit(ops[n]) for n in names)
    if two_valued and 0 < len(names) <= MOST_INPUTS:
        rows = rows_of(len(names))
        weights = np.array([c for _, c in total.terms])
        return str(formula_of(rows @ weights + total.bias > 0, names))
    if len(names) == 1 and total.terms[0][1]:
        [(name, c)] = total.terms
        return f"{name} {'>' if c > 0 else '<'} {-total.bias / c:.4g}"
    text = " ".join(f"{'-' if c < 0 else '+'} {abs(c):.3g} * {n}" for n, c in total.terms).removeprefix("+ ")
    return f"{text} > {-total.bias:.4g}"


def merged_bits(program: Program) -> Program:
    """The same program with fewer bits: what never matters to a bit is not read by it, and a bit that says what another
    says, or the opposite, or always the same, is read as that.

    Exact, whatever the inputs. A bit is a step that is 0 or 1; those that read up to MOST_INPUTS other bits are looked
    at.
    """
    ops = dict(program.by_name)
    table: NDArray[Any]
    as_bit: dict[str, tuple[str, float, float]] = {}  # bit -> (another, scale, offset) that it equals
    seen: dict[tuple[tuple[str, ...], bytes], str] = {}
    for s in program.steps:
        op = ops[s.name]
        if isinstance(op, Sum):
            op = _read_as(op, as_bit)
        ops[s.name] = op
        if not (isinstance(op, Bend) and op.curve == "step" and isinstance(total := ops[op.of], Sum)):
            continue
        names = [n for n, _ in total.terms]
        if len(names) > MOST_INPUTS or not all(_is_bit(ops[n]) for n in names):
            continue
        weights = np.array([c for _, c in total.terms])
        table = (rows_of(len(names)) @ weights + total.bias > 0).reshape((2,) * len(names))
        matters = [bool((table.take(0, k) != table.take(1, k)).any()) for k in range(len(names))]
        for k in reversed(range(len(names))):
            table = table if matters[k] else np.asarray(table.take(0, k))
        kept = tuple(t for t, m in zip(total.terms, matters, strict=True) if m)
        if len(kept) < len(names) and sum(op.of in reads(o) for o in ops.values()) == 1:
            ops[op.of] = Sum(kept, total.bias)  # what never matters may as well be 0
        left = tuple(n for n, _ in kept)
        if not left:
            as_bit[s.name] = "", 0.0, float(table)
        elif len(left) == 1:
            as_bit[s.name] = (left[0], 1.0, 0.0) if table[1] else (left[0], -1.0, 1.0)
        else:
            order = tuple(sorted(range(len(left)), key=left.__getitem__))
            key = tuple(left[i] for i in order), table.transpose(order).tobytes()
            if key in seen:
                as_bit[s.name] = seen[key], 1.0, 0.0
            else:
                seen[key] = s.name
    return _only_read(replace(program, steps=tuple(replace(s, op=ops[s.name]) for s in program.steps)))


def _is_bit(op: Op) -> bool:
    return isinstance(op, Bend) and op.curve == "step"


def _read_as(total: Sum, as_bit: Mapping[str, tuple[str, float, float]]) -> Sum:
    """A sum with each bit read as what it equals; terms of the same bit become one."""
    terms: dict[str, float] = {}
    bias = total.bias
    for name, c in total.terms:
        other, scale, offset = as_bit.get(name, (name, 1.0, 0.0))
        bias += c * offset
        if other:
            terms[other] = terms.get(other, 0.0) + c * scale
    return Sum(tuple((n, c) for n, c in terms.items() if c), bias)


def _only_read(program: Program) -> Program:
    wanted, kept = {a.step for a in program.answers}, []
    for s in reversed(program.steps):
        if s.name in wanted:
            wanted |= set(reads(s.op))
            kept.append(s)
    return replace(program, steps=tuple(reversed(kept)))


def depends_on(program: Program, name: str) -> tuple[str, ...]:
    """The features that a step is made of, in the program's order."""
    wanted = {name}
    for s in reversed(program.steps):
        if s.name in wanted:
            wanted |= set(reads(s.op))
    return tuple(s.name for s in program.steps if s.name in wanted and isinstance(s.op, Feature))


__all__ = ["depends_on", "formula_of_binarised", "formula_of_program", "merged_bits", "roles"]
