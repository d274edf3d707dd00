"""Necessary: without the circuit's nodes the model no longer does the task, and without others it still does.

Ablates only the circuit's nodes and keeps everything else ("inverse pruning" in Gao et al. 2025, arXiv 2511.13653,
section A.5), against as many nodes elsewhere (partial necessity of Shi et al. 2024, arXiv 2410.13032).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from openwork import stats
from openwork.circuit import Evidence
from openwork.verify.question import (
    ALPHA,
    ROUNDING,
    Measured,
    Question,
    accuracy_interval,
    chance_accuracy,
    clusters,
    decide,
    random_nodes,
    size,
)

LEAST_GAP = 1e-3  # nats between the whole model and nothing, below which no share of it is told


def necessary(q: Question) -> Evidence:
    """What ablating the circuit's nodes, and nothing else, does to the loss and accuracy of the model.

    bar              midway between the whole model's accuracy and chance (1 / number of answers)
    holds            accuracy falls to the bar or below, and p <= 0.05
    fails            the lower end of the accuracy's 95 % interval is above the bar, or p > 0.05, or the whole model is
                     no better than chance
    too little data  fewer than 32 examples; or accuracy above a bar that lies inside its interval
    null             ablating as many random live nodes at every site, outside the circuit wherever enough are there;
                     p is the rank of the circuit's rise in loss among theirs, all on the fixed sample of examples

    The rivals spare the circuit because a single node of it may be all it takes to break the task. The price: for a
    circuit that is itself a random set the p is a little small when it holds a large share of its sites, since a node
    that matters can then sit in no rival (with a quarter of all nodes, p <= 0.05 for 11 % of random circuits; with a
    tenth, 6 %; with a fortieth, 5 %). The bar on accuracy does not depend on it.

    `complement_faithfulness` in the details is the completeness of Marks et al. 2024 (arXiv 2403.19647): how far the
    rest of the model gets from knowing nothing (every prunable node ablated: 0) to the whole model (1), on losses; it
    should be near 0. None where the whole model is less than 0.001 nats better than nothing.
    """
    started = time.perf_counter()
    whole, chance = q.whole_run, chance_accuracy(q.verify)
    without = q.measure(q.verify, {n: ~m for n, m in q.kept.items()})
    rise = without.losses - whole.losses
    interval = stats.bootstrap_mean(rise, clusters(q.verify), seed=q.seed)
    accuracy = accuracy_interval(without, q.verify)
    empty = q.measure(q.verify, {n: torch.zeros_like(m) for n, m in q.kept.items()})
    gap = empty.loss - whole.loss
    base = q.measure(q.sample).loss
    own = _without(q, q.kept).loss - base
    rivals = [_without(q, nodes) for nodes in _elsewhere(q)]
    null = np.array([r.loss for r in rivals]) - base
    null_accuracy = float(np.mean([r.accuracy for r in rivals]))
    p = stats.rank_p(own, null + ROUNDING)
    bar = (whole.accuracy + chance) / 2
    able = whole.accuracy > chance
    verdict = decide(
        q,
        met=able and without.accuracy <= bar and p <= ALPHA,
        excluded=not able or accuracy[0] > bar or p > ALPHA,
    )
    sentence = (
        f"Ablating only the circuit's {size(q.kept)} nodes takes accuracy from {whole.accuracy:.3f} to "
        f"{without.accuracy:.3f} (chance {chance:.2g}, bar {bar:.3f}) and raises the loss by {rise.mean():z.3f} nats "
        f"(95 % {interval[0]:z.3f} to {interval[1]:z.3f}); ablating as many nodes elsewhere raises it by "
        f"{null.mean():z.3f} on average and {null.max():z.3f} at worst, with a mean accuracy of {null_accuracy:.3f}."
    )
    return Evidence(
        claim="necessary",
        verdict=verdict,
        sentence=sentence,
        value=float(rise.mean()),
        unit="nats of loss",
        interval=interval,
        null=f"ablating as many random live nodes elsewhere at every site, {q.n_null} draws",
        null_value=float(null.mean()),
        p=p,
        n=len(q.verify),
        split=q.verify.name,
        seed=q.seed,
        seconds=time.perf_counter() - started,
        details={
            "whole_model_loss": whole.loss,
            "whole_model_accuracy": whole.accuracy,
            "loss_without": without.loss,
            "accuracy_without": without.accuracy,
            "accuracy_interval": list(accuracy),
            "nothing_kept_loss": empty.loss,
            "complement_faithfulness": (empty.loss - without.loss) / gap if gap >= LEAST_GAP else None,
            "chance_accuracy": chance,
            "accuracy_bar": bar,
            "null_draws": q.n_null,
            "null_worst": float(null.max()),
            "null_losses": [round(float(x), 6) for x in null + base],
            "null_accuracy": null_accuracy,
            "null_overlaps_circuit_at": _crowded(q),
            "sample": len(q.sample),
            "rise_on_sample": own,
        },
    )


def _elsewhere(q: Question) -> Iterator[dict[str, Tensor]]:
    """Per draw, as many random live nodes per site as the circuit has: outside it, its own only where those run out."""
    rng = q.rng("necessary")
    for _ in range(q.n_null):
        yield {n: random_nodes(rng, int(m.sum()), q.live[n] & ~m, m, ~m) for n, m in q.kept.items()}


def _without(q: Question, nodes: dict[str, Tensor]) -> Measured:
    """The model on the sample with these nodes ablated."""
    return q.measure(q.sample, {n: ~m for n, m in nodes.items()})


def _crowded(q: Question) -> list[str]:
    """Sites with fewer live nodes outside the circuit than in it."""
    return [n for n, m in q.kept.items() if int((q.live[n] & ~m).sum()) < int(m.sum())]
