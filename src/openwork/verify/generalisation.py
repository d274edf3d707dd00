"""Generalises: on examples built otherwise, the circuit still decides what the whole model decides.

Whether it also errs where the model errs is a claim of its own (`agrees_on_mistakes`).
"""

from __future__ import annotations

import time

from openwork import stats
from openwork.circuit import UNDECIDED, Evidence
from openwork.verify.question import ALPHA, ENOUGH, Question, clusters, decide, nothing

MARGIN = 0.05  # accuracy that the circuit may lose against the whole model
UNIT, NULL = "share of equal decisions", "the circuit's decisions shuffled over the examples"


def generalises(q: Question) -> Evidence:
    """Agreement of the circuit's decisions with the whole model's, out of distribution.

    value            share of out-of-distribution examples on which both decide alike (95 % Wilson interval over pairs)
    holds            agreement beats its null (p <= 0.05), and the circuit's accuracy there is at most 0.05 below the
                     whole model's
    fails            p > 0.05, or the 95 % interval (bootstrap over pairs) of the accuracy lost lies wholly beyond 0.05
    too little data  fewer than 32 examples in either split, or no such split; or more than 0.05 lost, but the interval
                     reaches it
    null             the circuit's decisions shuffled over the examples: the agreement that the marginals give. A
                     decision is the place of the chosen answer among the example's answers, sorted by output index;
                     p is computed on one example of each pair, drawn at random, because the two are not independent
    """
    started = time.perf_counter()
    if q.ood is None or len(q.ood) == 0:
        what = "The task has no out-of-distribution examples, so generalisation was not tested."
        return nothing(q, "generalises", UNIT, NULL, what, started, "ood")
    whole, circuit = q.measure(q.ood), q.measure_circuit(q.ood)
    groups = clusters(q.ood)
    both = stats.agreement(whole.decision, circuit.decision, seed=q.seed)
    one = stats.one_per_cluster(groups, q.seed)
    p, n_pairs = stats.agreement(whole.decision[one], circuit.decision[one], seed=q.seed).p, len(one)
    interval = stats.wilson(both.share * n_pairs, n_pairs)
    lost = whole.correct - circuit.correct
    lost_interval = stats.bootstrap_mean(lost, groups, seed=q.seed)
    verdict = decide(q, met=p <= ALPHA and lost.mean() <= MARGIN, excluded=p > ALPHA or lost_interval[0] > MARGIN)
    if len(q.ood) < ENOUGH:
        verdict = UNDECIDED
    sentence = (
        f"On {len(q.ood)} examples built otherwise the circuit decides as the whole model does in {both.share:.1%} "
        f"(shuffled decisions: {both.expected:.1%}), with accuracy {circuit.accuracy:.3f} against {whole.accuracy:.3f} "
        f"and a loss of {circuit.loss:.3f} nats."
    )
    return Evidence(
        claim="generalises",
        verdict=verdict,
        sentence=sentence,
        value=both.share,
        unit=UNIT,
        interval=interval,
        null=NULL,
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
        },
    )
