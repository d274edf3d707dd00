"""Selective: the circuit is this task's; the model's other tasks live without it, and it does not do them.

A set of nodes that every behaviour needs (all of an early layer, say) is necessary for any task. So the circuit is
asked about the other tasks of the same model: ablating its nodes must leave them, and alone it must not carry them. The
random parts of its size that it stands beside follow Hod et al. 2022 (arXiv 2110.08058).

Knows a Question and held-out examples of other tasks. Does not know what the tasks are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from openwork import stats
from openwork.circuit import Evidence
from openwork.tasks.task import Split
from openwork.verify.question import (
    ALPHA,
    ENOUGH,
    ROUNDING,
    Measured,
    Question,
    chance_accuracy,
    clusters,
    decide,
    nothing,
    random_like,
    whole_pairs,
)

MARGIN = 0.05  # accuracy that another task may lose
SAMPLE = 32  # examples per task on which the circuit and its random rivals are compared
UNIT = "accuracy lost on the other task that loses most"
NULL = "ablating as many random live nodes at every site"


@dataclass(frozen=True, eq=False)
class _Other:
    """What the circuit is to another task."""

    name: str
    n: int
    whole: Measured
    lost: float
    lost_interval: stats.Interval
    alone: Measured
    alone_interval: stats.Interval
    bar: float


def selective(q: Question) -> Evidence:
    """What ablating the circuit's nodes does to other tasks, and what the circuit alone makes of them.

    asked            other tasks with at least 32 examples whose accuracy in the whole model is beyond chance (the lower
                     end of its 95 % Wilson interval); k of them
    value            accuracy that the task which loses most loses when the circuit's nodes are ablated
    interval         of that task; 95 % for all k together (bootstrap over pairs at 1 - 0.05 / k)
    holds            every task loses at most 0.05, the circuit alone is at or below midway between the whole model's
                     accuracy and chance on every one, and p <= 0.05
    fails            for some task an interval (95 % for all k together) lies wholly beyond the bar; or p > 0.05
    too little data  no task to ask, fewer than 32 examples of the circuit's own, or neither of the above
    null             ablating as many random live nodes at every site. Per task, p is the rank of (rise in the circuit's
                     own loss) - (rise in the other's) among theirs, on 32 examples of each. The p here is the largest
                     of them, valid for "all of them" as an intersection-union test (Berger 1982); the details name the
                     tasks from which the circuit is told apart at 0.05 after Holm's correction.
    """
    started = time.perf_counter()
    others = [(n, s, q.measure(s)) for n, s in sorted(q.others.items()) if len(s) >= ENOUGH]
    able = [(n, s, w) for n, s, w in others if _beyond_chance(w, s)]
    if not able:
        why = f"none of its {len(q.others)} is one that it can do" if q.others else "none was given"
        what = f"There is no other task of this model to set beside this one: {why}."
        return nothing(q, "selective", UNIT, NULL, what, started)
    asked = [_other(q, name, split, whole, len(able)) for name, split, whole in able]
    samples = [whole_pairs(q.verify, SAMPLE)] + [whole_pairs(s, SAMPLE) for _, s, _ in able]
    base = [q.measure(s) for s in samples]
    own = np.array([q.measure(s, _off(q.kept)).loss for s in samples]) - [b.loss for b in base]
    rng, rises, null_lost = q.rng("selective"), [], []
    for _ in range(q.n_null):
        off = _off(random_like(q, rng))
        runs = [q.measure(s, off) for s in samples]
        rises.append([r.loss - b.loss for r, b in zip(runs, base, strict=True)])
        null_lost.append(max(b.accuracy - r.accuracy for r, b in zip(runs[1:], base[1:], strict=True)))
    null = np.array(rises)  # [draws, 1 + tasks]; the circuit's own task first
    gap, null_gap = own[0] - own[1:], null[:, :1] - null[:, 1:]
    ps = np.array([stats.rank_p(g, d + ROUNDING) for g, d in zip(gap, null_gap.T, strict=True)])
    p, told_apart = float(ps.max()), stats.holm(ps) <= ALPHA
    worst = max(asked, key=lambda o: o.lost)
    best = max(asked, key=lambda o: o.alone.accuracy - o.bar)
    spared = all(o.lost <= MARGIN for o in asked)
    silent = all(o.alone.accuracy <= o.bar for o in asked)
    hurt = any(o.lost_interval[0] > MARGIN or o.alone_interval[0] > o.bar for o in asked)
    verdict = decide(q, met=spared and silent and p <= ALPHA, excluded=hurt or p > ALPHA)
    as_far = int((null_gap.min(1) + ROUNDING >= gap.min()).sum())
    sentence = (
        f"Ablating the circuit costs the {len(asked)} other task{'s' * (len(asked) > 1)} at most {worst.lost:.1%} of "
        f"accuracy ({worst.name}; {MARGIN:.0%} is allowed) and raises its own loss by {own[0]:z.3f} nats; alone, the "
        f"circuit is right in {best.alone.accuracy:.1%} of {best.name} (bar {best.bar:.1%}); {as_far} of {q.n_null} "
        "sets of as many random nodes tell its own task as far from the others."
    )
    return Evidence(
        claim="selective",
        verdict=verdict,
        sentence=sentence,
        value=worst.lost,
        unit=UNIT,
        interval=worst.lost_interval,
        null=NULL,
        null_value=float(np.mean(null_lost)),
        p=p,
        n=sum(o.n for o in asked),
        split=q.verify.name,
        seed=q.seed,
        seconds=time.perf_counter() - started,
        details={
            "allowed": MARGIN,
            "tasks": {
                o.name: {
                    "n": o.n,
                    "whole_model_accuracy": o.whole.accuracy,
                    "accuracy_lost": o.lost,
                    "accuracy_lost_interval": list(o.lost_interval),
                    "rise_on_sample": float(rise),
                    "accuracy_alone": o.alone.accuracy,
                    "accuracy_alone_interval": list(o.alone_interval),
                    "bar_alone": o.bar,
                    "p": float(each),
                    "told_apart": bool(apart),
                }
                for o, rise, each, apart in zip(asked, own[1:], ps, told_apart, strict=True)
            },
            "not_asked": sorted(set(q.others) - {o.name for o in asked}),
            "own_rise_on_sample": float(own[0]),
            "null_draws": q.n_null,
            "sample": [len(s) for s in samples],
        },
    )


def _beyond_chance(run: Measured, split: Split) -> bool:
    n = len(np.unique(clusters(split)))
    return stats.wilson(run.accuracy * n, n)[0] > chance_accuracy(split)


def _off(nodes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: ~m for n, m in nodes.items()}


def _other(q: Question, name: str, split: Split, whole: Measured, k: int) -> _Other:
    """One task; its intervals hold for all `k` tasks together (Bonferroni)."""
    level, groups = 1 - ALPHA / k, clusters(split)
    lost = whole.correct - q.measure(split, _off(q.kept)).correct
    alone = q.measure_circuit(split)
    n = len(np.unique(groups))
    return _Other(
        name, len(split), whole, float(lost.mean()), stats.bootstrap_mean(lost, groups, level, seed=q.seed),
        alone, stats.wilson(alone.accuracy * n, n, level), (whole.accuracy + chance_accuracy(split)) / 2,
    )  # fmt: skip
