"""Robust: the circuit goes on doing the task whichever part of the rest is ablated.

A circuit found with everything outside ablated may lean on that: half of the outside at the reference can hurt where
all of it does not, because parts that cancel come apart. So random subsets of the outside are ablated (after the
partial ablations of causal scrubbing, and the critique of full mean ablation in Gao et al. 2025, appendix E).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from openwork import stats
from openwork.circuit import UNDECIDED, Evidence
from openwork.verify.question import ALPHA, ROUNDING, Question, bound, decide, size

SHARE = 0.95  # of the draws that must stay within the bound
LEAST, MOST = 0.1, 0.9  # share of the outside that a draw ablates


def robust(q: Question) -> Evidence:
    """How often the model stays good when a random part of what is outside the circuit is ablated.

    bound            max(2 * target, target + the whole model's loss)
    value            share of draws whose mean loss stays within the bound (Clopper-Pearson interval over draws)
    holds            at least 95 % of the draws stay within the bound, and p <= 0.05
    fails            the interval's upper end is below 95 %, or p > 0.05
    too little data  fewer than 32 examples; no live node outside the circuit; or a share below 95 % whose interval
                     reaches it
    null             as many random live nodes ablated, the circuit's among them; sizes are the same draw by draw, and p
                     is a sign-flip test of the differences in loss

    A draw ablates between 10 % and 90 % of the live nodes outside the circuit, every number as likely. All draws are
    judged on the fixed sample of examples.
    """
    started = time.perf_counter()
    rng, whole = q.rng("robust"), q.measure(q.sample)
    outside = {n: q.live[n] & ~m for n, m in q.kept.items()}
    m = size(outside)
    most_loss = bound(q.target, whole.loss)
    least, most = max(1, round(LEAST * m)), max(1, round(MOST * m))
    sizes = rng.integers(least, most + 1, q.n_null) if m else np.zeros(q.n_null, dtype=np.int64)
    anything = {n: q.live[n] | k for n, k in q.kept.items()}
    runs = [q.measure(q.sample, nodes) for nodes in _without(rng, outside, sizes)]
    rivals = [q.measure(q.sample, nodes) for nodes in _without(rng, anything, sizes)]
    loss, rival = np.array([r.loss for r in runs]), np.array([r.loss for r in rivals])
    accuracy = np.array([r.accuracy for r in runs])
    stays = int((loss <= most_loss).sum())
    share, rival_share = stays / q.n_null, float((rival <= most_loss).mean())
    interval = stats.clopper_pearson(stays, q.n_null)
    harm = rival - loss
    p = stats.sign_flip_p(np.where(np.abs(harm) <= ROUNDING, 0.0, harm), seed=q.seed)
    verdict = decide(q, met=share >= SHARE and p <= ALPHA, excluded=interval[1] < SHARE or p > ALPHA)
    sentence = (
        f"With {least} to {most} of the {m} live nodes outside the circuit ablated at random, {stays} of {q.n_null} "
        f"draws keep the loss at or below {most_loss:.3f} nats (mean {loss.mean():.3f}, worst {loss.max():.3f}; worst "
        f"accuracy {accuracy.min():.3f}); with the circuit's nodes in the draw, {rival_share:.0%} do "
        f"(mean {rival.mean():.3f})."
    )
    if m == 0:
        verdict, sentence = UNDECIDED, "No live node is outside the circuit, so there is nothing to ablate."
    return Evidence(
        claim="robust",
        verdict=verdict,
        sentence=sentence,
        value=share,
        unit="share of draws within the bound",
        interval=interval,
        null="as many random live nodes ablated, the circuit's among them",
        null_value=rival_share,
        p=p,
        n=len(q.sample),
        split=q.verify.name,
        seed=q.seed,
        seconds=time.perf_counter() - started,
        details={
            "bound": most_loss,
            "draws": q.n_null,
            "outside_nodes": m,
            "mean_loss": float(loss.mean()),
            "worst_loss": float(loss.max()),
            "mean_accuracy": float(accuracy.mean()),
            "worst_accuracy": float(accuracy.min()),
            "null_mean_loss": float(rival.mean()),
            "null_worst_loss": float(rival.max()),
            "whole_model_loss": whole.loss,
            "sample": len(q.sample),
            "sizes": [int(k) for k in sizes],
            "losses": [round(float(x), 6) for x in loss],
        },
    )


def _without(rng: np.random.Generator, pool: dict[str, Tensor], sizes: np.ndarray) -> Iterator[dict[str, Tensor]]:
    """Node masks that keep everything but `sizes[i]` nodes drawn at random from the pool, over all sites together."""
    flat = torch.cat(list(pool.values()))
    free = flat.nonzero().flatten().numpy()
    for k in sizes:
        keep = torch.ones(len(flat), dtype=torch.bool)
        keep[torch.from_numpy(rng.choice(free, min(int(k), len(free)), replace=False))] = False
        yield dict(zip(pool, keep.split([len(mask) for mask in pool.values()]), strict=True))
