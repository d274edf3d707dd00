"""How good explanations are: each scored on held-out examples, beside what an explanation scores that cannot be right.

`score` gives every explanation its evidence; `support` says of many how many stand, corrected for their number. The
scores themselves, one per file, are in `explain.words.scoring`. Knows explanations, observations and a judge. Does not
know models, authors or files; the observations are of examples that the author never saw.
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
    nulls         random parts and random weights on the same sample; 19 draws are the least that can tell (fewer may
                  do where several topics have as many nodes at every site: their draws serve each other)
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
    """How many of several explanations have a claim that holds.

    holds      how many, each judged by itself
    of         how many were scored, those with too little data among them
    share      holds / of, and its 95 % Wilson interval; topics of one circuit are not independent, so read it as a
               description of these
    corrected  how many hold and are still told from their nulls at 0.05 after Holm's correction over all of them
    least_p    the smallest p among them: where it is above 0.05 / of, no correction could leave any
    """

    claim: str
    holds: int
    of: int
    share: float
    interval: stats.Interval
    corrected: int
    least_p: float


def support(explanations: Sequence[Explanation], claim: str = "trigger") -> Support:
    """The share of explanations whose evidence of a claim holds, by itself and after Holm's correction."""
    found = [x for e in explanations for x in e.evidence if x.claim == claim]
    good = np.array([x.verdict == HOLDS for x in found], dtype=bool)
    p = np.array([x.p if np.isfinite(x.p) else 1.0 for x in found])
    holds, of = int(good.sum()), len(found)
    return Support(
        claim, holds, of, holds / of if of else float("nan"), stats.wilson(holds, of),
        int((good & (stats.holm(p) <= ALPHA)).sum()), float(p.min(initial=1.0)),
    )  # fmt: skip


__all__ = [
    "SCORES", "Answers", "Asks", "Executed", "Interchanges", "Nulls", "Question", "ScoreSettings", "Support", "score",
    "support",
]  # fmt: skip
