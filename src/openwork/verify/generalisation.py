"""Generalises: on examples built otherwise, the circuit still decides what the whole model decides.

A circuit that is right where the model is right may be right for its own reasons; where the model *errs*, only a
circuit that computes what the model computes errs with it. So agreement is measured on the model's mistakes as well.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from openwork import stats
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Evidence
from openwork.verify.question import ALPHA, ENOUGH, Measured, Question, clusters, decide

MARGIN = 0.05  # accuracy that the circuit may lose against the whole model
ENOUGH_MISTAKES = 10


def generalises(q: Question) -> Evidence:
    """Agreement of the circuit's decisions with the whole model's, out of distribution and on the model's mistakes.

    value            share of out-of-distribution examples on which both decide alike (95 % Wilson interval over pairs)
    holds            agreement beats its null (p <= 0.05), the circuit's accuracy there is at most 0.05 below the
                     whole model's, and it errs where the model errs, if mistakes are enough to tell
    fails            p > 0.05, or the 95 % interval (bootstrap over pairs) of the accuracy lost lies wholly beyond 0.05,
                     or the circuit gets right most of what the model gets wrong
    too little data  fewer than 32 examples in either split, or no such split; or more than 0.05 lost, but the interval
                     reaches it; or mistakes that decide nothing
    null             the circuit's decisions shuffled over the examples: the agreement that the marginals give. A
                     decision is the place of the chosen answer among the example's answers, sorted by output index;
                     p is computed on one example of each pair, drawn at random, because the two are not independent

    The model's mistakes are those of both splits together. Their null is sharper: decisions shuffled among examples
    with the same right answer, that is a circuit that errs as often but not where the model errs; there the two of a
    pair count as two. Erring alike holds with p <= 0.05, fails when the 95 % interval of its share lies wholly below
    one half, and is not asked of fewer than 10 mistakes.
    """
    started = time.perf_counter()
    if q.ood is None or len(q.ood) == 0:
        return _nothing(q, started)
    whole, circuit = q.measure(q.ood), q.measure_circuit(q.ood)
    groups = clusters(q.ood)
    both = stats.agreement(whole.decision, circuit.decision, seed=q.seed)
    one = stats.one_per_cluster(groups, q.seed)
    p, n_pairs = stats.agreement(whole.decision[one], circuit.decision[one], seed=q.seed).p, len(one)
    interval = stats.wilson(both.share * n_pairs, n_pairs)
    lost = whole.correct - circuit.correct
    lost_interval = stats.bootstrap_mean(lost, groups, seed=q.seed)
    mistakes = _mistakes(q, whole, circuit)
    verdict = decide(
        q,
        met=p <= ALPHA and lost.mean() <= MARGIN and (mistakes["verdict"] == HOLDS or mistakes["n"] < ENOUGH_MISTAKES),
        excluded=p > ALPHA or lost_interval[0] > MARGIN or mistakes["verdict"] == FAILS,
    )
    if len(q.ood) < ENOUGH:
        verdict = UNDECIDED
    sentence = (
        f"On {len(q.ood)} examples built otherwise the circuit decides as the whole model does in {both.share:.1%} "
        f"(shuffled decisions: {both.expected:.1%}), with accuracy {circuit.accuracy:.3f} against {whole.accuracy:.3f} "
        f"and a loss of {circuit.loss:.3f} nats; {_said(mistakes)}."
    )
    return Evidence(
        claim="generalises",
        verdict=verdict,
        sentence=sentence,
        value=both.share,
        unit="share of equal decisions",
        interval=interval,
        null="the circuit's decisions shuffled over the examples",
        null_value=both.expected,
        p=p,
        n=len(q.ood),
        split=q.ood.name,
        seed=q.seed,
        seconds=time.perf_counter() - started,
        details={
            "loss": circuit.loss,
            "accuracy": circuit.accuracy,
            "whole_model_loss": whole.loss,
            "whole_model_accuracy": whole.accuracy,
            "accuracy_lost": float(lost.mean()),
            "accuracy_lost_interval": list(lost_interval),
            "margin": MARGIN,
            "mistakes": mistakes,
        },
    )


def _mistakes(q: Question, whole: Measured, circuit: Measured) -> dict[str, Any]:
    """Agreement on the whole model's mistakes, verify and out-of-distribution examples together; plain data."""
    decided = np.concatenate([q.whole_run.decision, whole.decision])
    same = np.concatenate([q.circuit_run.decision, circuit.decision])
    right = np.concatenate([q.whole_run.right, whole.right])
    wrong = np.concatenate([q.whole_run.correct, whole.correct]) == 0
    test = stats.agreement(decided, same, on=wrong, strata=right, seed=q.seed)
    if test.n == 0:
        return {"n": 0, "verdict": UNDECIDED, "agreement": None, "expected": None, "p": None}
    verdict = UNDECIDED
    if test.n >= ENOUGH_MISTAKES:
        most = stats.wilson(test.share * test.n, test.n)[1]
        verdict = HOLDS if test.p <= ALPHA else FAILS if most < 0.5 else UNDECIDED
    return {"n": test.n, "verdict": verdict, "agreement": test.share, "expected": test.expected, "p": test.p}


def _said(mistakes: dict[str, Any]) -> str:
    n = mistakes["n"]
    if n < ENOUGH_MISTAKES:
        return f"the model makes {n} mistakes, too few to compare" if n else "the model makes no mistake to compare"
    return (
        f"on the model's {n} mistakes it errs alike in {mistakes['agreement']:.1%} (errors placed at random: "
        f"{mistakes['expected']:.1%}, p = {mistakes['p']:.2g})"
    )


def _nothing(q: Question, started: float) -> Evidence:
    nan = float("nan")
    return Evidence(
        claim="generalises",
        verdict=UNDECIDED,
        sentence="The task has no out-of-distribution examples, so generalisation was not tested.",
        value=nan,
        unit="share of equal decisions",
        interval=stats.NO_INTERVAL,
        null="the circuit's decisions shuffled over the examples",
        null_value=nan,
        p=nan,
        n=0,
        split="ood",
        seed=q.seed,
        seconds=time.perf_counter() - started,
    )
