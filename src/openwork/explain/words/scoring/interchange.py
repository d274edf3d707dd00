"""Interchange: does the topic carry the variable that the explanation names, and nothing else that matters?

The topic's activity is taken from another example (interchange intervention: Geiger et al. 2021, arXiv 2106.02997).
Where the variable differs between the two, the output must move, to the side that its sign foretells; where it is the
same, it must stay. Runs come as arrays: see `openwork.explain.words.interchange`.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from openwork import stats
from openwork.circuit import Evidence
from openwork.explain.words.scoring.hearing import (
    ALPHA,
    DESCRIPTIONS,
    ENOUGH,
    LEAST,
    ROUNDING,
    Hearing,
    Material,
    by_chance,
    by_difference,
    correlated,
    evidence,
    nothing,
)
from openwork.explain.words.scoring.question import ACTIVE

CLAIM = "interchange"
BAR = 0.7
UNIT = "interchange accuracy"


def interchange(h: Hearing) -> Evidence | None:
    """Mean of how often the output moves as foretold where the variable differs, and stays where it does not.

    differs          expected activity of base and source differs at some position by at least 0.3 of the largest such
                     difference of any pair. Not of its range: where every example begins with the same token and the
                     topic is most active there, that is wide and no pair differs by much of it
    moves            the output's shift is at least 0.3 of the largest. Where all examples have the same two answers,
                     and the variable differs so much at the position that is asked, the shift's sign must be that of
                     source less base, or its opposite throughout: which of the two is read off the pairs
    interval         percentile bootstrap over clusters of examples
    holds            0.7 or more, and above every null: a coin (bootstrap against 0.5); the other explanations'
                     variables on this topic's patches (bootstrap of the difference from their mean; and no more than
                     one in twenty of them does as well); this variable on patches of other topics (from their mean
                     alone: what comes before and after on the same path may carry the variable too)
    too little data  fewer than 32 clusters, or 8 pairs in which the variable differs, or 8 in which it does not
    None where no runs are given or the explanation names no variable that can be executed on the examples.
    """
    started = time.perf_counter()
    m, runs = h.material, h.material.interchanges
    names = [t.name for t in runs.topics] if runs is not None else []
    if runs is None or h.explanation.subject not in names:
        return None
    change = _changes(m)
    own = change[h.e]
    at = np.isfinite(own)
    if not at.any():
        return None
    k, clusters = names.index(h.explanation.subject), m.clusters[runs.base]
    moves = np.stack([_moves(x, runs.fixed) for x in runs.shift])
    classes = int((own[at] != 0).sum()), int((own[at] == 0).sum())
    details = {
        "pairs": int(at.sum()),
        "differ": classes[0],
        "moved": int((moves[k][at] != 0).sum()),
        "signed": runs.fixed,
        "largest_shift_logits": float(np.abs(runs.shift[k]).max(initial=0.0)),
    }
    if min(classes) == 0:
        which = "none" if classes[0] == 0 else "all"
        why = f"The variable of {h.explanation.subject} differs in {which} of the {details['pairs']} pairs."
        return nothing(h, CLAIM, UNIT, why, started, details)
    w = _drawn(clusters[at], int(h.rng(f"{CLAIM} bootstrap").integers(2**31)), m.settings.draws)
    rows = _rows(m, names)
    right = _right(own[at], moves[k][at])
    value, draws = _accuracies(own[None, at], right[None], w)
    nulls = {"chance": by_chance(0.5, stats.rank_p(0.5, draws[:, 0], "less"))}
    alike = _alike(m, rows)
    some = [
        j for j in h.rivals(alike) if np.isfinite(change[j][at]).all() and 0 < (change[j][at] != 0).sum() < at.sum()
    ]
    if some:
        theirs = change[some][:, at]
        rivals = _accuracies(theirs, np.stack([_right(x, moves[k][at]) for x in theirs]), w)
        gap = draws[:, 0] - rivals[1].mean(1)
        nulls["descriptions"] = by_difference(DESCRIPTIONS, value[0], rivals[0], gap, h.subjects(some))
    others = [rows[j] for j in _others(h, alike) if rows[j] >= 0]
    if others:
        patched = np.stack([_right(own[at], moves[r][at]) for r in others])
        rivals = _accuracies(np.tile(own[at], (len(others), 1)), patched, w)
        words = ("patch of another topic", "patches of other topics")
        whose = [names[r] for r in others]
        null = by_difference(words, value[0], rivals[0], draws[:, 0] - rivals[1].mean(1), whose)
        nulls["other topics"] = replace(null, beaten=null.p <= ALPHA)
    n = len(np.unique(clusters[at]))
    what = (
        f"Patched with what {h.explanation.subject} sends on another example, the output moves where the variable "
        f"differs and stays where it does not in {value[0]:.0%} (both counted alike)"
    )
    return evidence(
        h, CLAIM, UNIT, BAR, float(value[0]), stats.percentile_interval(draws[:, 0]), nulls, n,
        n >= ENOUGH and min(classes) >= LEAST, what, started, details,
    )  # fmt: skip


def _rows(m: Material, names: list[str]) -> list[int]:
    """The row of the runs of every topic observed; -1 where it has none."""
    return [names.index(t.name) if t.name in names else -1 for t in m.observed.topics]


def _alike(m: Material, rows: list[int]) -> np.ndarray:
    """bool [K, K]: topics whose patches move the output much alike, or in opposite ways; made once."""
    if "alike in patches" not in m.kept:
        assert m.interchanges is not None
        same = correlated(m.interchanges.shift, opposite=True)
        out = np.eye(len(rows), dtype=bool)
        for k, r in enumerate(rows):
            for j, q in enumerate(rows):
                out[k, j] |= r >= 0 and q >= 0 and bool(same[r, q])
        m.kept["alike in patches"] = out
    return m.kept["alike in patches"]


def _others(h: Hearing, alike: np.ndarray) -> list[int]:
    """Topics of the same kind that act otherwise and move the output otherwise."""
    m = h.material
    kind = m.observed.topics[h.k].kind
    same = m.alike[h.k] | alike[h.k]
    return [j for j, t in enumerate(m.observed.topics) if t.kind == kind and not same[j]]


def _changes(m: Material) -> np.ndarray:
    """float [E, P]: how the explanation's variable changes from base to source.

    0: not; 1, -1: up or down at the position that is asked; 2: elsewhere alone, without a sign; nan: unknown.
    """
    if CLAIM not in m.kept:
        runs, sample = m.interchanges, m.observed.sample
        assert runs is not None
        gap = m.expected[:, runs.source] - m.expected[:, runs.base]
        known = np.isfinite(gap).any(2)
        gap = np.nan_to_num(gap)
        largest = np.abs(gap).max((1, 2), initial=0.0)
        least = np.where(largest > ROUNDING, ACTIVE * largest, np.inf)[:, None]
        asked = gap[:, np.arange(len(runs.base)), sample.asked[runs.base] if sample.is_text else 0]
        change = np.where(np.abs(asked) >= least, np.sign(asked), 2.0 * (np.abs(gap).max(2) >= least))
        m.kept[CLAIM] = np.where(known, change, np.nan)
    return m.kept[CLAIM]


def _moves(shift: np.ndarray, fixed: bool) -> np.ndarray:
    """float [P]: 0 where the output stays, else the sign of the shift (2 where a sign means nothing)."""
    largest = np.abs(shift).max(initial=0.0)
    moved = (np.abs(shift) >= ACTIVE * largest) & (largest > ROUNDING)
    return np.where(moved, np.sign(shift) if fixed else 2.0, 0.0)


def _right(change: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """bool [P]: whether the output does what the variable's change foretells."""
    signed = (np.abs(change) == 1) & (np.abs(moves) == 1)
    side = 1.0 if (change * moves)[signed].sum() >= 0 else -1.0
    return np.where(signed, side * change == moves, (change != 0) == (moves != 0))


def _accuracies(change: np.ndarray, right: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the shares [J] that are right where the variable changes and where not, of rows [J, P]; and the same per
    row of weights [B, P], [B, J]."""
    yes = (change != 0).astype(np.float64)
    good = right.astype(np.float64)

    def of(w: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            a, b = (w @ (good * yes).T) / (w @ yes.T), (w @ (good * (1 - yes)).T) / (w @ (1 - yes).T)
        return np.where(np.isfinite(a + b), (a + b) / 2, 0.5)

    return of(np.ones((1, change.shape[1])))[0], of(w)


def _drawn(clusters: np.ndarray, seed: int, draws: int) -> np.ndarray:
    """float [B, P]: how often every pair is drawn, pairs of one cluster together."""
    names, index = np.unique(clusters, return_inverse=True)
    return stats.times_drawn(len(names), draws, seed)[:, index]


__all__ = ["BAR", "CLAIM", "interchange"]
