"""Whether what an explanation expects of a node is the node's true variable: the criterion, on held-out examples.

    two values   the expectation, cut halfway between its extremes, agrees in at least ENOUGH of them, balanced, and
                 either way round: "not a" tells the same two sets apart as "a"
    more values  their rank correlation is at least ENOUGH, either way round
    and          no other variable of the case fits the expectation better; variables that are equal may tie

So a variable has to be named up to a monotone map. One that never changes names nothing and is not judged. Fixed before
any search was tuned. Knows arrays. Does not know cases, explanations or models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ENOUGH = 0.99
TIE = 1e-9


def varies(variable: np.ndarray) -> bool:
    """Whether a variable (any shape; nan where it has no value) has at least two values."""
    x = variable[np.isfinite(variable)]
    return len(x) > 0 and float(np.ptp(x)) > 1e-9


def match(expected: np.ndarray, variable: np.ndarray) -> float:
    """How well an expectation fits a variable of the same shape, either way round: 0 to 1, chance 1/2 of two values.

    An expectation that is always the same, or that has no value somewhere (nan), fits as chance does.
    """
    signed = agreement(expected, variable)
    if not np.isfinite(signed):
        return 0.0
    two = len(np.unique(np.round(variable[np.isfinite(variable)], 9))) == 2
    return max(signed, 1 - signed) if two else abs(2 * signed - 1)


def agreement(expected: np.ndarray, variable: np.ndarray) -> float:
    """How well an expectation fits a variable, the same way round: 1 for just it, 1/2 for chance, 0 for its opposite.

    Balanced agreement of two values, (1 + rank correlation) / 2 of more. An expectation that is always the same, or
    that has no value somewhere (nan), tells nothing: 1/2. nan where the variable never changes.
    """
    here = np.isfinite(variable)
    e, v = np.round(expected[here], 9), np.round(variable[here], 9)
    if not varies(variable):
        return float("nan")
    if not np.isfinite(e).all() or float(np.ptp(e)) <= 1e-9:
        return 0.5
    if len(np.unique(v)) > 2:
        return (1 + float(np.corrcoef(_ranks(e), _ranks(v))[0, 1])) / 2
    high, says = v == v.max(), e > (e.min() + e.max()) / 2
    return (float(says[high].mean()) + float((~says[~high]).mean())) / 2


def named(expected: np.ndarray, variable: np.ndarray, others: Sequence[np.ndarray]) -> bool:
    """Whether an expectation names a variable rather than one of the others of its case: the criterion above."""
    fit = match(expected, variable)
    return fit >= ENOUGH and all(match(expected, o) <= fit + TIE for o in others)


def alike(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two variables are one by this criterion, where both have a value: then each names the other."""
    both = np.isfinite(first) & np.isfinite(second)
    return match(first[both], second[both]) >= ENOUGH


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks of values, equal ones sharing their mean rank."""
    _, place, number = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(number) - (number - 1) / 2)[place]


__all__ = ["ENOUGH", "agreement", "alike", "match", "named", "varies"]
