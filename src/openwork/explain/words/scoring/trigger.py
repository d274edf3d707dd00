"""Trigger: does the explanation say where the topic is active, and not merely where anything is?

Positives are places where the topic is active. Half of the negatives are places where a sibling, another topic that
acts otherwise, is active and this one is not: a description of what all of them do does not get past those.
"""

from __future__ import annotations

import time

import numpy as np

from openwork import stats
from openwork.circuit import Evidence
from openwork.explain.words.scoring.asked import (
    Asked,
    Draft,
    ask,
    counts,
    enough,
    heard,
    no_answers,
    permuted,
    stand_ins,
    weights,
)
from openwork.explain.words.scoring.hearing import DESCRIPTIONS, Hearing, by_chance, by_difference, evidence
from openwork.explain.words.scoring.question import choose

CLAIM = "trigger"
BAR = 0.75
UNIT = "AUC"


def trigger(h: Hearing) -> Evidence:
    """Area under the ROC curve of what the explanation expects at places where the topic is, and is not, active.

    places           one of every cluster of examples, at most `questions`: half active (at least 0.3 of the topic's
                     largest activity on its side of the reference), half not; of these half with an active sibling
    value            AUC: probability that an active place is expected more than another; 0.5 says nothing
    interval         percentile bootstrap over places
    holds            AUC >= 0.75, and above every null: the labels dealt out anew (permutation), the mean of the other
                     topics' explanations on the same places (bootstrap of the difference; and no more than one in
                     twenty of them does as well), random parts of the same size and models with random weights at the
                     same places (rank)
    too little data  fewer than 32 places, or 8 of either class
    """
    started = time.perf_counter()
    asked = ask(h, CLAIM, _draft)
    empty = no_answers(h, CLAIM, UNIT, asked, started)
    if empty is not None:
        return empty
    at = asked.answered
    yes, own = asked.draft.yes[at], asked.own[at]
    value = float(stats.auc(own, yes))
    w = weights(h, CLAIM, len(yes))
    mine = _above(own, yes)
    nulls = {"chance": by_chance(0.5, stats.rank_p(value, stats.auc(own, permuted(h, CLAIM, yes))))}
    rivals, subjects = heard(h, asked)
    if len(rivals):
        theirs = np.stack([_above(r, yes) for r in rivals])
        nulls["descriptions"] = by_difference(
            DESCRIPTIONS, value, theirs.mean((1, 2)), _weighted(mine - theirs.mean(0), yes, w), subjects
        )
    nulls |= stand_ins(asked, value, lambda labels: stats.auc(own, labels))
    draws = _weighted(mine, yes, w)
    return evidence(
        h, CLAIM, UNIT, BAR, value, stats.percentile_interval(draws[np.isfinite(draws)]), nulls, len(yes),
        enough(asked),
        f"The explanation tells places where {h.explanation.subject} is active from others with AUC {value:.2f}",
        started, {**counts(asked), **_by_sort(asked)},
    )  # fmt: skip


def _draft(h: Hearing) -> Draft:
    m, text = h.material, h.material.observed.sample.is_text
    hard = h.siblings_active
    easy = m.counted & ~h.active & ~hard
    p = choose(h.active & m.counted, hard, easy, m.clusters, m.settings.questions, h.rng("places"))
    spots = list(zip(p.example.tolist(), p.column.tolist(), strict=True))
    return Draft(
        tuple(m.snippets.question("trigger", n, m.snippets.of(n, t), (t,) if text else (), h.side) for n, t in spots),
        p.yes,
        p.hard,
        h.nulls_at(m.null_active, p.example, p.column),
        h.some(h.rivals()),
    )


def _above(scores: np.ndarray, yes: np.ndarray) -> np.ndarray:
    """[P, Q - P]: 1 where a positive scores above a negative, half where equal or where one is missing."""
    a, b = scores[yes][:, None], scores[~yes][None, :]
    out = (a > b) + 0.5 * (a == b)
    return np.where(np.isnan(a) | np.isnan(b), 0.5, out)


def _weighted(x: np.ndarray, yes: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Mean of x [P, Q - P] under the weights of the positives and the negatives, per draw [B]."""
    a, b = w[:, yes], w[:, ~yes]
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((a @ x) * b).sum(1) / (a.sum(1) * b.sum(1))


def _by_sort(asked: Asked) -> dict[str, float | None]:
    """AUC against places with an active sibling, and against the other silent ones."""
    at, yes, hard = asked.answered, asked.draft.yes, asked.draft.hard
    out: dict[str, float | None] = {}
    for name, sort in (("auc_against_siblings", hard), ("auc_against_silence", ~yes & ~hard)):
        some = at & (yes | sort)
        known = bool((sort & at).any())
        out[name] = float(stats.auc(asked.own[some], yes[some])) if known else None
    return out


__all__ = ["BAR", "CLAIM", "trigger"]
