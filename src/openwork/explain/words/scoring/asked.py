"""Scores made of yes-or-no questions: the questions are drafted for all topics, asked at once, and judged per topic.

A question without a usable answer is left out and counted, never taken for a no. Knows hearings and questions. Does not
know what the questions are about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from openwork import stats
from openwork.circuit import Evidence
from openwork.explain.words.scoring.hearing import (
    DESCRIPTIONS,
    ENOUGH,
    LEAST,
    NULL_WORDS,
    Hearing,
    Null,
    by_chance,
    by_difference,
    by_rank,
    evidence,
    nothing,
)
from openwork.explain.words.scoring.question import Question


@dataclass(frozen=True, eq=False)
class Draft:
    """Q questions about one topic.

    yes     bool [Q]: the true answers
    hard    bool [Q]: negatives of the harder sort
    nulls   name of a null -> bool [R, Q]: the true answers about its draws
    rivals  the explanations that are wrong about them, all or some
    """

    questions: tuple[Question, ...]
    yes: np.ndarray
    hard: np.ndarray
    nulls: dict[str, np.ndarray]
    rivals: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Asked:
    """What was answered.

    own     float [Q]: probability of yes by the explanation's own answers; nan where there is none
    rivals  float [J, Q]: by the rivals' answers
    """

    draft: Draft
    own: np.ndarray
    rivals: np.ndarray

    @property
    def answered(self) -> np.ndarray:
        """bool [Q]"""
        return np.isfinite(self.own)


def ask(h: Hearing, kind: str, draft: Callable[[Hearing], Draft]) -> Asked:
    """The answers to this topic's questions of one kind; those of all topics are asked together, once."""
    known = h.material.kept
    if kind not in known:
        hearings = [Hearing(h.material, e) for e in range(h.material.tested)]
        drafts = [draft(x) for x in hearings]
        asks, at = [], []
        for x, d in zip(hearings, drafts, strict=True):
            who = (x.e, *d.rivals) if d.questions else ()
            at.append((len(asks), len(who)))
            asks += [(h.material.explanations[j], d.questions) for j in who]
        answers = h.material.answer(asks)
        known[kind] = []
        for d, (first, many) in zip(drafts, at, strict=True):
            rows = [[a.get(q.id, np.nan) for q in d.questions] for a in answers[first : first + many]]
            p = np.array(rows, dtype=np.float64).reshape(many, len(d.questions))
            p[~((p >= 0) & (p <= 1))] = np.nan  # what is no probability is no answer
            known[kind].append(Asked(d, p[0] if many else np.zeros(0), p[1:]))
    return known[kind][h.e]


def no_answers(h: Hearing, claim: str, unit: str, asked: Asked, started: float) -> Evidence | None:
    """Evidence that nothing could be asked or nothing was answered; None where there is something to judge."""
    yes = asked.draft.yes[asked.answered]
    if yes.any() and not yes.all():
        return None
    if not len(asked.draft.yes) or asked.draft.yes.all() or not asked.draft.yes.any():
        why = f"{h.explanation.subject} is active everywhere or nowhere on these examples: nothing can be told apart."
    else:
        why = f"Of {len(asked.own)} questions about {h.explanation.subject} too few got a usable answer."
    return nothing(h, claim, unit, why, started, counts(asked))


def enough(asked: Asked) -> bool:
    """Whether there are answers enough, of both classes, to decide."""
    yes = asked.draft.yes[asked.answered]
    return len(yes) >= ENOUGH and min(yes.sum(), (~yes).sum()) >= LEAST


def permuted(h: Hearing, claim: str, yes: np.ndarray) -> np.ndarray:
    """bool [B, Q]: the true answers dealt out anew."""
    return h.rng(f"{claim} labels").permuted(np.tile(yes, (h.material.settings.draws, 1)), axis=1)


def weights(h: Hearing, claim: str, n: int) -> np.ndarray:
    """float [B, n]: how often each question is drawn in each bootstrap draw."""
    seed = int(h.rng(f"{claim} bootstrap").integers(2**31))
    return stats.times_drawn(n, h.material.settings.draws, seed)


def by_accuracy(h: Hearing, claim: str, bar: float, words: str, asked: Asked, started: float) -> Evidence:
    """The evidence of a score by balanced accuracy, (share of yes right + share of no right) / 2; yes above 0.5."""
    unit = "balanced accuracy"
    empty = no_answers(h, claim, unit, asked, started)
    if empty is not None:
        return empty
    at = asked.answered
    yes, said = asked.draft.yes[at], asked.own[at] > 0.5
    value = float(stats.balanced_accuracy(said, yes))
    w = weights(h, claim, len(yes))
    right = (said == yes).astype(np.float64)
    nulls = {"chance": by_chance(0.5, stats.rank_p(value, stats.balanced_accuracy(said, permuted(h, claim, yes))))}
    rivals, subjects = heard(h, asked)
    if len(rivals):
        known = np.isfinite(rivals)
        theirs = np.where(known, (rivals > 0.5) == yes, np.nan)
        many = known.sum(0)
        mean = np.where(many > 0, np.nansum(theirs, 0) / np.maximum(1, many), 0.5)
        values = np.array([_accuracy(r, yes) for r in theirs])
        nulls["descriptions"] = by_difference(DESCRIPTIONS, value, values, _balanced(right - mean, yes, w), subjects)
    nulls |= stand_ins(asked, value, lambda labels: stats.balanced_accuracy(said, labels))
    draws = _balanced(right, yes, w)
    hard = asked.draft.hard[at]
    return evidence(
        h, claim, unit, bar, value, stats.percentile_interval(draws[np.isfinite(draws)]), nulls, len(yes),
        enough(asked), f"{words} with balanced accuracy {value:.2f}", started,
        {
            **counts(asked),
            "right_of_yes": float(right[yes].mean()),
            "right_of_no": float(right[~yes].mean()),
            "right_of_hard_no": float(right[hard].mean()) if hard.any() else None,
        },
    )  # fmt: skip


def stand_ins(asked: Asked, own: float, score: Callable[[np.ndarray], np.ndarray]) -> dict[str, Null]:
    """The nulls of random parts and random weights: the same answers, held against what those do at the same places.

    One that does much the same at all of them (fewer than 8 of either class) counts as chance: an AUC of a handful is
    large by luck.
    """
    out = {}
    for name, labels in asked.draft.nulls.items():
        there = labels[:, asked.answered]
        few = np.minimum(there.sum(1), (~there).sum(1)) < LEAST
        with np.errstate(invalid="ignore"):
            out[name] = by_rank(NULL_WORDS[name], own, np.where(few, 0.5, score(there)))
    return out


def heard(h: Hearing, asked: Asked) -> tuple[np.ndarray, list[str]]:
    """float [J, answered]: the rivals that answered at least half of what the explanation answered; their subjects."""
    rivals = asked.rivals[:, asked.answered]
    enough = [j for j in range(len(rivals)) if np.isfinite(rivals[j]).mean() >= 0.5]
    return rivals[enough], h.subjects([asked.draft.rivals[j] for j in enough])


def counts(asked: Asked) -> dict[str, Any]:
    """How many questions there were, of which sort, and how many got no usable answer."""
    yes, own = asked.draft.yes, asked.answered
    return {
        "questions": len(own),
        "active": int(yes.sum()),
        "hard": int(asked.draft.hard.sum()),
        "missing": int((~own).sum()),
        "missing_of_rivals": int((~np.isfinite(asked.rivals)).sum()),
        "rivals": len(asked.rivals),
    }


def _accuracy(right: np.ndarray, yes: np.ndarray) -> float:
    """Balanced accuracy of answers of which some (nan) are missing; 0.5 where a class has none."""
    known = np.isfinite(right)
    a, b = right[known & yes], right[known & ~yes]
    return float((a.mean() + b.mean()) / 2) if len(a) and len(b) else 0.5


def _balanced(x: np.ndarray, yes: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Mean of the two classes' weighted means of x [Q], per draw [B]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (w[:, yes] @ x[yes] / w[:, yes].sum(1) + w[:, ~yes] @ x[~yes] / w[:, ~yes].sum(1)) / 2


__all__ = [
    "Asked", "Draft", "ask", "by_accuracy", "counts", "enough", "heard", "no_answers", "permuted", "stand_ins",
    "weights",
]  # fmt: skip
