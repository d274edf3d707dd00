"""How good explanations are: each scored on held-out examples, beside what an explanation scores that cannot be right.

`score` gives every explanation its evidence; `support` says of many how many stand and how many of these may be false,
`levels` where each of them stands among the others. The scores themselves, one per file, are in
`explain.words.scoring`. Knows explanations, observations and a judge. Does not know models, authors or files; the
observations are of examples that the author never saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from openwork import stats
from openwork.circuit import HOLDS, Explanation
from openwork.errors import unknown
from openwork.explain.words.scoring import (
    SCORES,
    Answers,
    Asks,
    Executed,
    Hearing,
    Interchanges,
    Material,
    Nulls,
    Question,
    ScoreSettings,
)
from openwork.explain.words.scoring.hearing import ALPHA
from openwork.explain.words.topic import Judge, Observed


def score(
    explanations: Sequence[Explanation],
    observed: Observed,
    nulls: Nulls,
    judge: Judge,
    seed: int = 0,
    *,
    clusters: Any = None,
    others: Sequence[Explanation] = (),
    interchanges: Interchanges | None = None,
    claims: Sequence[str] | None = None,
    settings: ScoreSettings | None = None,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Explanation, ...]:
    """The explanations with their evidence, in the order of SCORES: `trigger` first.

    observed      what the topics did on examples that the author never saw; each explanation's subject is one of them
    nulls         random parts and random weights on the same sample; 19 draws of each are the least that can tell
    judge         executed on whole examples; one that has a method `answer` (see `Asks`) is asked questions instead
                  for trigger, detection and fuzzing
    clusters      [N] integers, shared by examples that belong together (`stats.pair_clusters`); default: none do
    others        further explanations that serve as rivals only, such as those of other circuits
    interchanges  runs for `interchange`; without them that score is left out
    claims        names in SCORES, in any order; default: all
    tick          called after every explanation and score

    An explanation that has evidence of other claims keeps it, behind the new. Same seed, same result. UsageError for an
    unknown claim, a subject that was not observed, or arrays that do not fit.
    """
    names = list(SCORES) if claims is None else list(claims)
    for name in names:
        if name not in SCORES:
            raise unknown("claim", name, SCORES)
    chosen = [n for n in SCORES if n in names]
    material = Material(
        explanations, others, observed, nulls, judge, seed, clusters, settings or ScoreSettings(), interchanges
    )
    out = []
    for e, explanation in enumerate(explanations):
        evidence = []
        for name in chosen:
            found = SCORES[name](Hearing(material, e))
            evidence += [found] if found is not None else []
            tick()
        kept = tuple(x for x in explanation.evidence if x.claim not in SCORES)
        out.append(replace(explanation, evidence=(*evidence, *kept)))
    return tuple(out)


@dataclass(frozen=True)
class Support:
    """How many of several explanations have a claim that holds, and how many of these may be false.

    holds        how many, each judged by itself
    of           how many were scored, those with too little data among them
    share        holds / of, and its 95 % Wilson interval; topics of one circuit are not independent, so read it as a
                 description of these
    false_share  of those that hold, the share that is expected to be false is at most this: the largest q among them
                 (nan where none holds); `false_share_any` whatever the dependence
    kept         how many hold with q at 0.05 or less; `kept_any` whatever the dependence
    corrected    how many are still told from their nulls after Holm's correction: the probability that even one of
                 these is false is at most 0.05
    least_p      the smallest p among them: where it is above 0.05 / of, Holm's correction could leave none
    """

    claim: str
    holds: int
    of: int
    share: float
    interval: stats.Interval
    false_share: float
    false_share_any: float
    kept: int
    kept_any: int
    corrected: int
    least_p: float


@dataclass(frozen=True)
class Level:
    """One explanation among others.

    p      of its claim; 1 where the claim fails for another reason than its p (the bar, too little data)
    q      the false discovery rate at which it would be kept among the others (Benjamini & Hochberg)
    q_any  the same whatever the dependence (Benjamini & Yekutieli)
    """

    p: float
    q: float
    q_any: float


def levels(explanations: Sequence[Explanation], claim: str = "trigger") -> dict[int, Level]:
    """Place of an explanation -> its level among all that have evidence of a claim.

    What holds has met its bar besides, so its p is the p of a test that also asks for the bar; one that did not meet it
    counts with p = 1, lest it make room for others.
    """
    found = {k: x for k, e in enumerate(explanations) for x in e.evidence if x.claim == claim}
    usable = {k: np.isfinite(x.p) and (x.verdict == HOLDS or x.p > ALPHA) for k, x in found.items()}
    p = np.array([x.p if usable[k] else 1.0 for k, x in found.items()])
    rows = zip(found, p, stats.false_discovery(p), stats.false_discovery(p, any_dependence=True), strict=True)
    return {k: Level(*map(float, row)) for k, *row in rows}


def support(explanations: Sequence[Explanation], claim: str = "trigger") -> Support:
    """How many explanations have a claim that holds, and what correcting for their number leaves."""
    at = levels(explanations, claim)
    verdicts = {k: x.verdict for k, e in enumerate(explanations) for x in e.evidence if x.claim == claim}
    good = [level for k, level in at.items() if verdicts[k] == HOLDS]
    strict = stats.holm([x.p for x in at.values()])  # what fails has p above ALPHA, and so stays out
    holds, of = len(good), len(at)
    return Support(
        claim, holds, of, holds / of if of else float("nan"), stats.wilson(holds, of),
        max((x.q for x in good), default=float("nan")), max((x.q_any for x in good), default=float("nan")),
        sum(x.q <= ALPHA for x in good), sum(x.q_any <= ALPHA for x in good),
        int((strict <= ALPHA).sum()), min((x.p for x in at.values()), default=1.0),
    )  # fmt: skip


__all__ = [
    "SCORES", "Answers", "Asks", "Executed", "Interchanges", "Level", "Nulls", "Question", "ScoreSettings", "Support",
    "levels", "score", "support",
]  # fmt: skip
