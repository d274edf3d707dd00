"""Reference dependence: the circuit does the task whatever its ablated outside sends.

What is called the circuit depends on what an ablated node sends instead: zero, a mean, what another example sends
(Miller et al. 2024, arXiv 2407.08734). A circuit that meets its target only under the reference that it was searched
under may use that reference as a hint.

Knows a Question and makes other references for it. Does not know under which one the search ran.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from openwork import patching, stats
from openwork.circuit import Evidence
from openwork.tasks.task import Inputs, Split
from openwork.verify.question import (
    ALPHA,
    BATCH,
    RIVALS,
    ROUNDING,
    Measured,
    Question,
    clusters,
    decide,
    random_circuits,
)


def reference_dependence(q: Question) -> Evidence:
    """Held-out loss of the circuit alone under several references, beside that under the one of the question.

    references       "as found" (the question's); "zero"; "mean" over the verify split's own inputs, position by
                     position up to the one that is asked; "resample", each example another one of equal length. One
                     that is the question's own is not run twice.
    value            the largest change of mean loss from "as found" to another one, either way, nats; interval of that
                     change (95 % bootstrap over pairs)
    holds            the mean loss is at or below the target under every reference, and p <= 0.05
    fails            under some reference the loss's interval (95 % for all of them together) lies above the target; or
                     p > 0.05
    too little data  fewer than 32 examples; or a mean above a target that its interval reaches
    null             19 circuits of as many random live nodes at every site, under the same reference; p is the largest
                     over the references of the rank of the circuit's loss among theirs, on the fixed sample of examples
                     ("under all of them", an intersection-union test, Berger 1982)

    The circuit and its edges stay as they are; nothing is searched again. Zero lies off the distribution of what a node
    sends, so a circuit can fail under it and be right: the sentence names each figure.
    """
    started = time.perf_counter()
    others = _others(q)
    own = next((f"{n}, as found" for n, r in others.items() if _same(q.reference, r)), "as found")
    asked = {own: q} | {n: replace(q, reference=r) for n, r in others.items() if not _same(q.reference, r)}
    runs: dict[str, Measured] = {name: each.measure_circuit(q.verify) for name, each in asked.items()}
    groups, level = clusters(q.verify), 1 - ALPHA / len(asked)
    intervals = {n: stats.bootstrap_mean(r.losses, groups, level, seed=q.seed) for n, r in runs.items()}
    ps, nulls = {}, {}
    for name, each in asked.items():
        loss = each.measure_circuit(q.sample).loss
        few, rng = replace(each, n_null=RIVALS), q.rng(f"reference {name}")
        null = np.array([each.measure(q.sample, nodes).loss for nodes in random_circuits(few, rng)])
        ps[name], nulls[name] = stats.rank_p(loss, null - ROUNDING, "less"), float(null.mean())
    p = max(ps.values())
    change = {n: r.losses - runs[own].losses for n, r in runs.items() if n != own}
    furthest = max(change, key=lambda n: abs(change[n].mean()))
    signed = change[furthest] * (1.0 if change[furthest].mean() >= 0 else -1.0)
    worst = max(runs, key=lambda n: runs[n].loss)
    verdict = decide(
        q,
        met=runs[worst].loss <= q.target and p <= ALPHA,
        excluded=any(i[0] > q.target for i in intervals.values()) or p > ALPHA,
    )
    told = ", ".join(f"{n} {r.loss:.3f}" for n, r in runs.items())
    missed = [n for n, r in runs.items() if r.loss > q.target]
    target_is = "met under all" if not missed else f"missed under {', '.join(missed)}"
    sentence = (
        f"Alone, the circuit reaches these losses with the rest at each reference: {told} nats; the target of "
        f"{q.target:g} is {target_is}, and random circuits of equal size reach {min(nulls.values()):.3f} to "
        f"{max(nulls.values()):.3f} on average."
    )
    return Evidence(
        claim="reference_dependence",
        verdict=verdict,
        sentence=sentence,
        value=float(signed.mean()),
        unit="nats of change",
        interval=stats.bootstrap_mean(signed, groups, seed=q.seed),
        null=f"{RIVALS} circuits of as many random live nodes at every site, under the same reference",
        null_value=nulls[worst],
        p=p,
        n=len(q.verify),
        split=q.verify.name,
        seed=q.seed,
        seconds=time.perf_counter() - started,
        details={
            "target": q.target,
            "references": {
                n: {
                    "loss": r.loss,
                    "interval": list(intervals[n]),
                    "accuracy": r.accuracy,
                    "p": ps[n],
                    "null_mean": nulls[n],
                    "meets_target": r.loss <= q.target,
                }
                for n, r in runs.items()
            },
            "largest_change_under": furthest,
        },
    )


def _others(q: Question) -> dict[str, patching.Reference | str]:
    return {
        "zero": patching.zero_reference(q.model),
        "mean": patching.mean_reference(q.model, _unpadded(q)),
        "resample": "resample",
    }


def _same(a: patching.Reference | str, b: patching.Reference | str) -> bool:
    """Whether two references say the same at every site that both have."""
    if isinstance(a, str) or isinstance(b, str):
        return isinstance(a, str) and isinstance(b, str) and a == b
    return all(a[n].shape == b[n].shape and torch.allclose(a[n].cpu(), b[n].cpu()) for n in a.keys() & b.keys())


def _unpadded(q: Question) -> Iterable[Inputs]:
    """The verify split's inputs in batches without padding: prompts of one length together, every position recorded."""
    split: Split = q.verify
    device = next(q.model.parameters()).device
    if split.tight() is split:
        yield from (tuple(x[i].to(device) for x in split.inputs) for i in torch.arange(len(split)).split(BATCH))
        return
    tokens, at = split.inputs
    for length in at.unique().tolist():
        yield (tokens[at == length][:, : length + 1].to(device),)
