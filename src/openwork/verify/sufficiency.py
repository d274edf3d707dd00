"""Sufficient: the circuit alone does the task, and as many nodes drawn at random do not.

The paper's validation (Gao et al. 2025, arXiv 2511.13653, section 2.2: everything outside at its mean) with the null
of Shi et al. 2024 (arXiv 2410.13032): random circuits of the same size.
"""

from __future__ import annotations

import time

import numpy as np

from openwork import stats
from openwork.circuit import Evidence
from openwork.verify.question import (
    ALPHA,
    ROUNDING,
    Question,
    accuracy_interval,
    clusters,
    decide,
    random_circuits,
    size,
)


def sufficient(q: Question) -> Evidence:
    """Mean held-out task loss of the circuit alone, everything else at the reference.

    holds            the mean loss is at or below the target, and p <= 0.05
    fails            the lower end of its 95 % interval (bootstrap over pairs) is above the target, or p > 0.05
    too little data  fewer than 32 examples; or the mean is above a target that lies inside the interval
    null             circuits of as many random live nodes at every site, with every edge between them; p is the rank of
                     the circuit's loss among theirs, all on the fixed sample of examples
    """
    started = time.perf_counter()
    run, whole = q.circuit_run, q.whole_run
    interval = stats.bootstrap_mean(run.losses, clusters(q.verify), seed=q.seed)
    own = q.measure_circuit(q.sample).loss
    null = np.array([q.measure(q.sample, nodes).loss for nodes in random_circuits(q, q.rng("sufficient"))])
    as_good = int((null - ROUNDING <= own).sum())
    p = stats.rank_p(own, null - ROUNDING, "less")
    verdict = decide(q, met=run.loss <= q.target and p <= ALPHA, excluded=interval[0] > q.target or p > ALPHA)
    beside = "meets" if run.loss <= q.target else "misses"
    sentence = (
        f"Alone, the circuit's {size(q.kept)} nodes reach a loss of {run.loss:.3f} nats on {len(q.verify)} held-out "
        f"examples (95 % {interval[0]:.3f} to {interval[1]:.3f}), which {beside} the target of {q.target:g}; "
        f"{q.n_null} random circuits of equal size reach {null.mean():.3f} on average and {null.min():.3f} at "
        f"best ({as_good or 'none'} of them as low)."
    )
    accuracy = accuracy_interval(run, q.verify)
    return Evidence(
        claim="sufficient",
        verdict=verdict,
        sentence=sentence,
        value=run.loss,
        unit="nats",
        interval=interval,
        null=f"{q.n_null} circuits of as many random live nodes at every site",
        null_value=float(null.mean()),
        p=p,
        n=len(q.verify),
        split=q.verify.name,
        seed=q.seed,
        seconds=time.perf_counter() - started,
        details={
            "target": q.target,
            "accuracy": run.accuracy,
            "accuracy_interval": list(accuracy),
            "whole_model_loss": whole.loss,
            "whole_model_accuracy": whole.accuracy,
            "nodes": size(q.kept),
            "null_draws": q.n_null,
            "null_best": float(null.min()),
            "null_losses": [round(float(x), 6) for x in null],
            "sample": len(q.sample),
            "loss_on_sample": own,
        },
    )
