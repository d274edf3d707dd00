"""Refusals say what was asked, what exists and what to do, and carry the exit code of who can mend them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openwork.errors import OpenworkError, RunError, UsageError, several, unknown


def test_exit_codes() -> None:
    assert (UsageError.exit_code, RunError.exit_code) == (2, 1)
    assert issubclass(UsageError, OpenworkError) and issubclass(RunError, OpenworkError)


def test_an_unknown_name_meets_its_nearest() -> None:
    text = str(unknown("regime", "topc", ["topk", "dense", "l1"]))
    assert '"topc"' in text and 'Nearest: "topk"' in text
    assert text.index("dense") < text.index("l1"), "choices are listed in order"


def test_nothing_near_is_not_guessed() -> None:
    assert "Nearest" not in str(unknown("task", "zzzz", ["for_while"]))
    assert "There is: none." in str(unknown("circuit", "a", []))


def test_a_long_list_is_cut_and_counted() -> None:
    text = str(unknown("site", "x", [f"site{i:03}" for i in range(100)]))
    assert "100 in all" in text and "site039" in text and "site040" not in text


@given(st.text(max_size=8), st.lists(st.text(max_size=8), max_size=5))
def test_any_name_can_be_refused(asked: str, names: list[str]) -> None:
    error = unknown("thing", asked, names)
    assert isinstance(error, UsageError) and asked in str(error)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_all_problems_are_told_at_once(n: int) -> None:
    problems = [f"line {i}: bad" for i in range(n)]
    text = str(several("file.jsonl", problems))
    assert text.startswith("file.jsonl") and all(p in text for p in problems)
    assert (f"{n} problems" in text) == (n > 1)
