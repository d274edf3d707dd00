"""A formula has the table it was made from, and none is shorter, by brute force and beside an independent judge."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.errors import UsageError
from openwork.explain.programs.truth_tables import (
    Formula,
    formula_of,
    negated,
    prime_implicants,
    rows_of,
    smallest_cover,
    table_of,
)
from openwork.planted.boolean import FORMULAS

LITERALS = {  # of the shortest formula, counted by hand
    "and2": 2, "and4": 4, "or3": 3, "xor": 2, "parity3": 3, "parity4_deep": 4, "majority5": 5, "at_least_2_of_5": 5,
    "exactly_2_of_4": 4, "multiplexer2": 4, "multiplexer4": 12, "implications3": 4, "implications5": 8, "both_ors": 4,
    "and_or_and": 8,
}  # fmt: skip
TEXTS = {
    "and2": "x0 and x1",
    "or3": "x0 or x1 or x2",
    "xor": "x0 != x1",
    "parity3": "(x0 + x1 + x2) % 2 == 1",
    "at_least_2_of_5": "(x0 + x1 + x2 + x3 + x4) >= 2",
    "exactly_2_of_4": "(x0 + x1 + x2 + x3) == 2",
    "both_ors": "(x0 or x1) and (x2 or x3)",
    "and_or_and": "((x0 and x1) or (x2 and x3)) and ((x4 and x5) or (x6 and x7))",
}


def names_of(k: int) -> list[str]:
    return [f"x{i}" for i in range(k)]


def same(formula: Formula, table: np.ndarray, k: int) -> None:
    """The formula's value, and its text run as Python, are the table."""
    rows = rows_of(k)
    value = formula.value({n: rows[:, i] for i, n in enumerate(names_of(k))})
    assert np.array_equal(np.broadcast_to(value, len(rows)), table)
    said = [bool(eval(str(formula), {}, dict(zip(names_of(k), row, strict=True)))) for row in rows.tolist()]
    assert said == table.tolist(), str(formula)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_planted_formulas_are_found(name: str) -> None:
    true = FORMULAS[name]()
    table = table_of(true.function, true.inputs)
    found = formula_of(table, names_of(true.inputs))
    same(found, table, true.inputs)
    assert found.literals() <= LITERALS.get(name, 99)
    assert str(found) == TEXTS.get(name, str(found))


@given(st.integers(1, 5).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, 2 ** (2**k) - 1))))
@settings(max_examples=150, deadline=None)
def test_any_table_comes_back(drawn: tuple[int, int]) -> None:
    k, number = drawn
    table = np.array([bool(number >> r & 1) for r in range(2**k)])
    found = formula_of(table, names_of(k))
    same(found, table, k)
    same(negated(found), ~table, k)


def test_all_functions_of_three_inputs() -> None:
    for number in range(256):
        table = np.array([bool(number >> r & 1) for r in range(8)])
        same(formula_of(table, names_of(3)), table, 3)


def test_inputs_that_do_not_matter_are_not_read() -> None:
    table = table_of(lambda x: x[1] and not x[3], 5)
    assert formula_of(table, names_of(5)).inputs() == ("x1", "x3")
    assert str(formula_of(np.ones(8, dtype=bool), names_of(3))) == "True"


@pytest.mark.parametrize("k", [3, 4])
def test_prime_implicants_by_brute_force(k: int) -> None:
    rng = np.random.default_rng(k)
    for _ in range(20):
        f = rng.random((2,) * k) < rng.random()

        def implies(cube: tuple[int, ...], f: np.ndarray = f) -> bool:
            return all(f[row] for row in itertools.product((0, 1), repeat=k) if fits(cube, row))

        def fits(cube: tuple[int, ...], row: tuple[int, ...]) -> bool:
            return all(c in (2, r) for c, r in zip(cube, row, strict=True))

        every = [c for c in itertools.product((0, 1, 2), repeat=k) if implies(c)]
        wider = [
            c for c in every if not any(c != d and all(b in (2, a) for a, b in zip(c, d, strict=True)) for d in every)
        ]
        assert sorted(map(tuple, prime_implicants(f).tolist())) == sorted(wider)


def test_the_cover_is_the_smallest() -> None:
    """Every set of prime implicants that covers is tried."""
    rng = np.random.default_rng(0)
    for _ in range(15):
        f = rng.random((2, 2, 2)) < 0.5
        primes = [tuple(p) for p in prime_implicants(f).tolist()]
        ones = [tuple(r) for r in np.argwhere(f).tolist()]
        best = min(
            sum(sum(b < 2 for b in c) + 1 for c in chosen)
            for n in range(len(primes) + 1)
            for chosen in itertools.combinations(primes, n)
            if all(any(all(b in (2, r) for b, r in zip(c, one, strict=True)) for c in chosen) for one in ones)
        )
        assert sum(sum(b < 2 for b in c) + 1 for c in smallest_cover(f)) == best


def test_no_longer_than_an_independent_minimiser() -> None:
    from sympy import symbols
    from sympy.logic import SOPform

    rng = np.random.default_rng(1)
    for _ in range(5):
        table = rng.random(32) < 0.5
        theirs = SOPform(symbols(names_of(5)), np.flatnonzero(table).tolist())
        literals = sum(1 for a in __import__("sympy").preorder_traversal(theirs) if a.is_Symbol)
        assert formula_of(table, names_of(5)).literals() <= literals


def test_too_many_inputs_and_wrong_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="8192 rows; at most 12"):
        table_of(any, 13)
    with pytest.raises(UsageError, match="has 8 rows"):
        formula_of(np.ones(4, dtype=bool), names_of(3))
