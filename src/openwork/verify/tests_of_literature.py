"""The hypothesis tests of Shi et al. 2024 (arXiv 2410.13032), repaired, beside their published form.

    equivalence    the circuit is better than the model about as often as worse
    independence   what is left without the circuit says nothing about what the model does
    minimality     every node matters more than a random node that was added does

COMPARISONS is the one list. They are not among the claims of every circuit: `sufficient`, `necessary` and `one_minimal`
ask what a reader wants to know; these are here to be compared with published figures.

What is repaired, each beside `as_published=True`, which keeps it:

    * ties count as half. In the published test of equivalence a circuit that is the model itself is "not equivalent":
      it is never better, so its share is 0 and not 1/2 (p = 4e-29 with 128 prompts). The public code averages the raw
      difference instead of counting, with the same end.
    * what is claimed is what is shown. Published, a claim stands unless its test refuses it, so that few prompts prove
      anything; here equivalence (two one-sided tests) and minimality (the opposite hypothesis) have to be shown.
    * p is never 0 and never has a tie on its side, and Holm's correction covers the nodes.

Knows a Question. Works on losses per example, of which one pair of prompts gives one value.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats as scipy_stats

from openwork import patching, stats
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Circuit, Evidence, induced_edges
from openwork.verify.question import ALPHA, ENOUGH, ROUNDING, Question, clusters, random_nodes

EPSILON = 0.1  # how far from one half a share may lie and still be called equivalent; the paper's
Q_STAR = 0.9  # share of random nodes that a needed one has to beat; the paper's
DRAWS = 100  # random nodes; the paper's
WEAK = 0.3  # rank correlation below which two scores are called independent
SHUFFLES = 999
ERRS = 0.001  # probability with which the interval of the share of ties may err
MOST_POINTS = 256  # pairs of prompts that the test of independence uses


# -- equivalence -------------------------------------------------------------------------------------------------------


def equivalence_p_published(differences: np.ndarray, epsilon: float = EPSILON) -> float:
    """p of "not equivalent" as published: small where the share of positive differences is far from one half.

    t = |share(d > 0) - 1/2|; p = sum over k with |k / n - 1/2| >= t of Binomial(n, 1/2 + epsilon)(k).
    """
    n = len(differences)
    t = abs(float((differences > 0).mean()) - 0.5)
    k = np.arange(n + 1)
    far = np.abs(k / n - 0.5) >= t - 1e-12
    return float(min(1.0, scipy_stats.binom.pmf(k[far], n, 0.5 + epsilon).sum()))


def equivalence_p(differences: np.ndarray, epsilon: float = EPSILON) -> float:
    """p of "equivalent", ties as half: small where the share theta = P(d > 0) + P(d = 0) / 2 is shown to be near 1/2.

    Two one-sided tests (Schuirmann 1987), theta <= 1/2 - epsilon and theta >= 1/2 + epsilon; p is the larger. Each is
    exact: twice the sum of halves has the law of (p- + p0 x + p+ x^2)^n, and p is the largest over the unknown share p0
    of ties, on 101 values of its 99.9 % interval, plus the 0.001 that this interval may err (Berger & Boos 1994).
    """
    n, tied = len(differences), int((differences == 0).sum())
    s = int(2 * (differences > 0).sum()) + tied
    shares = stats.clopper_pearson(tied, n, 1 - ERRS)
    both = (_at_most(t, n, 0.5 + epsilon, shares) for t in (s, 2 * n - s))  # the other side, mirrored
    return min(1.0, max(both) + ERRS)


def _at_most(s: int, n: int, theta: float, shares: stats.Interval) -> float:
    """The largest P(S <= s) over shares of ties, S the sum of n values 0, 1, 2 with mean 2 theta; 0 if none can be."""
    most = 2 * min(theta, 1 - theta)
    if shares[0] > most:
        return 0.0
    tied = np.linspace(shares[0], min(most, shares[1]), 101)
    law = np.stack([1 - theta - tied / 2, tied, theta - tied / 2], 1)
    coefficients = np.fft.irfft(np.fft.rfft(law, 2 * n + 1) ** n, 2 * n + 1)
    return float(np.clip(coefficients[:, : s + 1].sum(1).max(), 0.0, 1.0))


def equivalence(q: Question, as_published: bool = False) -> Evidence:
    """Is the circuit's loss above the model's about as often as below, pair by pair?

    value            share of pairs in which the circuit's loss is higher, ties as half (as published: without ties)
    holds            p <= 0.05: a share within 0.1 of one half is shown (published: p > 0.05, no other share is)
    fails            the share's 95 % interval lies wholly beyond (published: p <= 0.05)
    too little data  fewer than 32 examples, or neither (published: never)
    """
    started = time.perf_counter()
    d = _pair_means(q.circuit_run.losses - q.whole_run.losses, q)
    d = np.where(np.abs(d) <= ROUNDING, 0.0, d)
    n = len(d)
    tied = float((d == 0).mean())
    share = float((d > 0).mean()) + (0.0 if as_published else tied / 2)
    interval = stats.clopper_pearson(round(share * n), n)
    p = equivalence_p_published(d) if as_published else equivalence_p(d)
    beyond = interval[0] > 0.5 + EPSILON or interval[1] < 0.5 - EPSILON
    verdict = _verdict(q, as_published, p, beyond)
    return _evidence(
        q, "equivalence", as_published, verdict, share, "share of pairs with a higher loss", interval,
        f"a share of one half, within {EPSILON:g}" if as_published else f"a share {EPSILON:g} or more from one half",
        0.5 if as_published else 0.5 + EPSILON, p, n, started,
        f"The circuit's loss is above the whole model's in {share:.1%} of {n} pairs ({tied:.1%} are ties).",
        {"ties": tied},
    )  # fmt: skip


# -- independence ------------------------------------------------------------------------------------------------------


def hsic(x: np.ndarray, y: np.ndarray, shuffles: int, seed: int, as_published: bool = False) -> tuple[float, float]:
    """The Hilbert-Schmidt independence criterion of two scores [n], and its p by shuffling one of them.

    HSIC = tr(K H L H) / n^2 with Gaussian kernels, the median distance as bandwidth (Gretton et al. 2008). As
    published, p is the share of shuffles with as large a value, which can be 0; here the observed order counts as one
    of them.
    """
    k, m = _gram(x), _gram(y)
    n = len(x)
    centre = k - k.mean(0) - k.mean(1)[:, None] + k.mean()
    own = float((centre * m).sum()) / n**2
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(n) for _ in range(shuffles)]
    null = np.array([(centre * m[np.ix_(o, o)]).sum() / n**2 for o in orders])
    slack = 1e-12 * max(1.0, abs(own))
    return own, float((null >= own - slack).mean()) if as_published else stats.rank_p(own - slack, null)


def _gram(x: np.ndarray) -> np.ndarray:
    distance = np.abs(x[:, None] - x[None, :])
    width = float(np.median(distance[np.triu_indices(len(x), 1)]))
    return np.exp(-(distance**2) / (2 * width**2)) if width > 0 else (distance == 0).astype(np.float64)


def independence(q: Question, as_published: bool = False) -> Evidence:
    """Does the model without the circuit's nodes still tell which examples the whole model finds hard?

    value            Spearman's rank correlation of the two losses over pairs (95 % bootstrap)
    holds            HSIC's p > 0.05, and the correlation's interval lies within 0.3 of 0 (published: p > 0.05 alone)
    fails            p <= 0.05: the two are dependent
    too little data  fewer than 32 examples, or not dependent but not shown to be apart (published: never)
    """
    started = time.perf_counter()
    rest = q.measure(q.verify, {n: ~m for n, m in q.kept.items()})
    x, y = (_pair_means(r.losses, q)[:MOST_POINTS] for r in (rest, q.whole_run))
    value, p = hsic(x, y, SHUFFLES, q.seed, as_published)
    ranks = scipy_stats.rankdata(x), scipy_stats.rankdata(y)
    rho = _correlation(*ranks, np.ones((1, len(x))) / len(x))[0]
    interval = stats.percentile_interval(_correlation(*ranks, stats.bootstrap_weights(len(x), seed=q.seed)))
    apart = max(abs(interval[0]), abs(interval[1])) <= WEAK
    if as_published:
        verdict = HOLDS if p > ALPHA else FAILS
    else:
        verdict = UNDECIDED if len(q.verify) < ENOUGH else FAILS if p <= ALPHA else HOLDS if apart else UNDECIDED
    return _evidence(
        q, "independence", as_published, verdict, float(rho), "rank correlation", interval,
        "one of the two shuffled over the pairs", 0.0, p, len(x), started,
        f"Losses of the model without the circuit go with the whole model's at a rank correlation of {rho:z.2f}.",
        {"hsic": value, "weak": WEAK},
    )  # fmt: skip


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted correlation for every row of weights [draws, n]; 0 where one of them does not vary."""
    mx, my = weights @ x, weights @ y
    covariance = weights @ (x * y) - mx * my
    spread = np.sqrt(np.maximum(weights @ x**2 - mx**2, 0) * np.maximum(weights @ y**2 - my**2, 0))
    return np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 1e-12)


# -- minimality --------------------------------------------------------------------------------------------------------


def minimality_p(effects: np.ndarray, random_effects: np.ndarray, as_published: bool = False) -> np.ndarray:
    """Per node [k], from the size of its effect and that of random nodes [m].

    As published, p of "no more than a random node": P(Binomial(m, 0.9) <= #{random < effect}), small where minimality
    is refused. Otherwise p of "needed", P(Binomial(m, 0.9) >= #{random < effect} + half of the ties), small where it
    is shown.
    """
    m = len(random_effects)
    below = (random_effects[None, :] < effects[:, None] - ROUNDING).sum(1)
    if as_published:
        return np.asarray(scipy_stats.binom.cdf(below, m, Q_STAR))
    tied = (np.abs(random_effects[None, :] - effects[:, None]) <= ROUNDING).sum(1)
    return np.asarray(scipy_stats.binom.sf(np.floor(below + tied / 2) - 1, m, Q_STAR))


def minimality(q: Question, as_published: bool = False) -> Evidence:
    """Does every node of the circuit matter more than a random node does that was added to it?

    The paper removes edges, and adds random paths to the circuit; here nodes go, and what is added is one random live
    node outside at every site, so that every path has its place; one of the added nodes is then removed again.

    value            share of nodes whose removal changes the loss more than 90 % of the random ones do
    holds            p <= 0.05, the largest over nodes, "all are needed" (published: no node is refused at 0.05)
    fails            a node is refused at 0.05 after Holm's correction (published: without it)
    too little data  fewer than 32 examples, no node to remove or to add, or neither (published: never the last)
    """
    started = time.perf_counter()
    base, rng = q.measure_circuit(q.sample).loss, q.rng("minimality")
    effects, names = [], []
    for site, mask in q.kept.items():
        for i in mask.nonzero().flatten().tolist():
            fewer = mask.clone()
            fewer[i] = False
            effects.append(abs(_loss_of(q, {site: fewer}) - base))
            names.append(f"{site}:{i}")
    outside = {n: q.live[n] & ~m for n, m in q.kept.items() if bool((q.live[n] & ~m).any())}
    unit, null = "share of nodes above 90 % of random ones", f"{DRAWS} random nodes added to the circuit"
    if not effects or not outside:
        return _evidence(
            q, "minimality", as_published, UNDECIDED, float("nan"), unit, stats.NO_INTERVAL, null, float("nan"),
            float("nan"), 0, started, "There is no node to remove, or none outside to set beside it.", {},
        )  # fmt: skip
    random = []
    for _ in range(DRAWS):
        added = {n: random_nodes(rng, 1, pool) for n, pool in outside.items()}
        site = list(outside)[int(rng.integers(len(outside)))]
        more = {n: q.kept[n] | a for n, a in added.items()}
        random.append(abs(_loss_of(q, more | {site: q.kept[site]}) - _loss_of(q, more)))
    ps = minimality_p(np.array(effects), np.array(random), as_published)
    refused = stats.holm(minimality_p(np.array(effects), np.array(random), as_published=True)) <= ALPHA
    share = float(np.mean([(np.array(random) < e - ROUNDING).mean() > Q_STAR for e in effects]))
    p = float(ps.min() if as_published else ps.max())
    if as_published:
        verdict = FAILS if p <= ALPHA else HOLDS
    else:
        verdict = UNDECIDED if q.small else HOLDS if p <= ALPHA else FAILS if refused.any() else UNDECIDED
    return _evidence(
        q, "minimality", as_published, verdict, share, unit,
        stats.clopper_pearson(round(share * len(effects)), len(effects)), null, 1 - Q_STAR, p, len(q.sample), started,
        f"{round(share * len(effects))} of {len(effects)} nodes matter more than {Q_STAR:.0%} of random nodes do.",
        {"unneeded": [n for n, r in zip(names, refused, strict=True) if r][:50], "random_effects": len(random)},
    )  # fmt: skip


def _loss_of(q: Question, nodes: dict[str, torch.Tensor]) -> float:
    """Loss on the sample of the circuit with some sites' masks replaced; edges it lacks between its nodes stay out."""
    support = patching.support(q.model)
    own = induced_edges(q.circuit.graph, q.circuit.nodes, support)
    new = {n: m.clone() for n, m in q.circuit.nodes.items()} | nodes
    edges = {n: m & ~(own[n] & ~q.circuit.edges[n]) for n, m in induced_edges(q.circuit.graph, new, support).items()}
    changed = Circuit(q.circuit.graph, new, edges)
    return Question(q.model, changed, q.reference, q.sample, None, q.target, q.seed).measure_circuit(q.sample).loss


# -- what they share ---------------------------------------------------------------------------------------------------


def _pair_means(values: np.ndarray, q: Question) -> np.ndarray:
    """One value per pair of examples: the mean of the two."""
    _, index = np.unique(clusters(q.verify), return_inverse=True)
    return np.bincount(index, weights=values) / np.bincount(index)


def _verdict(q: Question, as_published: bool, p: float, beyond: bool) -> str:
    if as_published:
        return HOLDS if p > ALPHA else FAILS
    return UNDECIDED if q.small else HOLDS if p <= ALPHA else FAILS if beyond else UNDECIDED


def _evidence(
    q: Question, claim: str, as_published: bool, verdict: str, value: float, unit: str, interval: stats.Interval,
    null: str, null_value: float, p: float, n: int, started: float, sentence: str, details: dict[str, object],
) -> Evidence:  # fmt: skip
    told = sentence.removesuffix(".") + (f"; as published, p = {p:.2g}." if as_published else f"; p = {p:.2g}.")
    return Evidence(
        claim, verdict, told, value, unit, interval, null, null_value, p, n, q.verify.name, q.seed,
        time.perf_counter() - started, {"as_published": as_published, **details},
    )  # fmt: skip


COMPARISONS: dict[str, Callable[..., Evidence]] = {
    "equivalence": equivalence,
    "independence": independence,
    "minimality": minimality,
}

__all__ = [
    "COMPARISONS", "equivalence", "equivalence_p", "equivalence_p_published", "hsic", "independence", "minimality",
    "minimality_p",
]  # fmt: skip
