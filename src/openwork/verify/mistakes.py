"""Agrees on mistakes: where the whole model errs, the circuit errs with it.

A circuit that is right where the model is right may be right for its own reasons; where the model *errs*, only a
circuit that computes what the model computes errs with it. This is a claim of its own: `generalises` asks only whether
decisions agree on examples built otherwise, mistakes or not.
"""

from __future__ import annotations

import time

import numpy as np

from openwork import stats
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Evidence
from openwork.verify.question import ALPHA, Question, clusters, nothing

ENOUGH_MISTAKES = 10  # pairs of examples with a mistake; below, nothing is decided
HALF = 0.5  # of the model's mistakes that the circuit has to make as well
UNIT, NULL = (
    "share of mistakes made alike",
    "the circuit's decisions shuffled among examples with the same right answer",
)


def agrees_on_mistakes(q: Question) -> Evidence:
    """Share of the whole model's mistakes, verify and out-of-distribution examples together, that the circuit makes
    too.

    value            share of the mistakes on which both decide alike (95 % Wilson interval over pairs)
    holds            at least one half, and p <= 0.05
    fails            the upper end of the interval is below one half
    too little data  mistakes in fewer than 10 pairs of examples, fewer than 32 examples, or neither of the above
    null             a circuit that errs as often but not where the model errs: its decisions shuffled among examples
                     with the same right answer. p is computed on one example of each pair, because the two are not
                     independent: one where the model errs, if there is one. That choice never looks at the circuit.
    """
    started = time.perf_counter()
    runs = [(q.verify, q.whole_run, q.circuit_run)]
    if q.ood is not None and len(q.ood):
        runs.append((q.ood, q.measure(q.ood), q.measure_circuit(q.ood)))
    split = " + ".join(s.name for s, _, _ in runs)
    whole, circuit, right = (
        np.concatenate(x)
        for x in ([w.decision for _, w, _ in runs], [c.decision for _, _, c in runs], [w.right for _, w, _ in runs])
    )
    groups, offset = [], 0
    for s, _, _ in runs:
        groups.append(clusters(s) + offset)
        offset += len(s)
    group, wrong = np.concatenate(groups), whole != right
    n = int(wrong.sum())
    if n == 0:
        what = f"The model makes no mistake on {len(whole)} examples, so there is none to share."
        return nothing(q, "agrees_on_mistakes", UNIT, NULL, what, started, split)
    pairs = len(np.unique(group[wrong]))
    share = float((whole == circuit)[wrong].mean())
    interval = stats.wilson(share * pairs, pairs)
    one = _one_per_pair(group, wrong, q.seed)
    test = stats.agreement(whole[one], circuit[one], on=wrong[one], strata=right[one], seed=q.seed)
    verdict = UNDECIDED
    if pairs >= ENOUGH_MISTAKES and not q.small:
        verdict = HOLDS if share >= HALF and test.p <= ALPHA else FAILS if interval[1] < HALF else UNDECIDED
    many = f"mistake{'s' * (n != 1)}"
    few = ", too few to tell" if pairs < ENOUGH_MISTAKES else ""
    sentence = (
        f"On the model's {n} {many} in {pairs} pairs of examples{few} the circuit errs alike in {share:.1%} (errors "
        f"placed at random: {test.expected:.1%}); the circuit makes {int((circuit != right).sum())} mistakes in all."
    )
    return Evidence(
        claim="agrees_on_mistakes",
        verdict=verdict,
        sentence=sentence,
        value=share,
        unit=UNIT,
        interval=interval,
        null=NULL,
        null_value=test.expected,
        p=test.p,
        n=n,
        split=split,
        seed=q.seed,
        seconds=time.perf_counter() - started,
        details={
            "pairs_with_mistakes": pairs,
            "needed_pairs": ENOUGH_MISTAKES,
            "circuit_mistakes": int((circuit != right).sum()),
            "examples": len(whole),
        },
    )


def _one_per_pair(group: np.ndarray, wrong: np.ndarray, seed: int) -> stats.Ints:
    """Places of one example of every cluster: one that is `wrong` where there is one, else one at random."""
    order = np.random.default_rng(seed).permutation(len(group))
    order = order[np.argsort(~wrong[order], kind="stable")]
    _, first = np.unique(group[order], return_index=True)
    return np.sort(order[first])
