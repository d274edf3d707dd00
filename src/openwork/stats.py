"""Tests and intervals: how much a figure can be trusted.

Every p-value here is the probability, under the null, of a value at least as extreme, and is uniform or stochastically
larger under it (tests/laws simulates that); every draw comes from the seed. Knows numbers. Does not know models,
circuits, tasks or what is being tested.

    n         observations
    cluster   examples that belong together (the two prompts of a pair): they are drawn and flipped as one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

from openwork.errors import UsageError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Side = Literal["greater", "less", "two-sided"]
Interval = tuple[float, float]

NO_INTERVAL: Interval = (float("nan"), float("nan"))


def _floats(values: Any) -> Floats:
    return np.asarray(values, dtype=np.float64)


# -- p-values --------------------------------------------------------------------------------------------------------


def rank_p(observed: float, null: Any, side: Literal["greater", "less"] = "greater") -> float:
    """Rank of an observed value among draws from its null.

    p = (1 + #{null >= observed}) / (1 + n); for "less", #{null <= observed}. The observed value counts as one draw, so
    p is never 0 and a tie counts against it (Phipson & Smyth 2010, doi 10.2202/1544-6115.1585). The smallest p that n
    draws can give is 1 / (1 + n).
    """
    draws = _floats(null)
    as_extreme = draws >= observed if side == "greater" else draws <= observed
    return float((1 + as_extreme.sum()) / (1 + draws.size))


def binomial_p(successes: int, n: int, share: float = 0.5, side: Side = "greater") -> float:
    """Exact binomial test of `successes` among `n` against a success probability `share`.

    "greater": P(X >= successes), X ~ Binomial(n, share) (Clopper & Pearson 1934). "two-sided": the sum over all
    outcomes that are no likelier than the observed one.
    """
    return float(scipy_stats.binomtest(int(successes), int(n), share, alternative=side).pvalue)


def sign_flip_p(
    differences: Any, clusters: Any = None, side: Side = "greater", draws: int = 9_999, seed: int = 0
) -> float:
    """Paired permutation test that the differences of paired values have a mean above (below, unequal to) zero.

    Null: each cluster's difference is as likely as its negative. Statistic: the sum. With at most 12 clusters all 2^n
    sign patterns are counted, otherwise `draws` random ones, the observed pattern among them (Fisher 1935; Phipson &
    Smyth 2010).
    """
    d = _cluster_sums(_floats(differences), clusters)
    d = d[d != 0]  # a zero flips into itself
    if d.size == 0:
        return 1.0
    if d.size <= 12:
        patterns = np.arange(2**d.size)[:, None] >> np.arange(d.size) & 1
        sums = (1.0 - 2.0 * patterns) @ d
        extra = 0  # the observed pattern is one of them
    else:
        rng = np.random.default_rng(seed)
        sums = np.concatenate([rng.choice((-1.0, 1.0), (k, d.size)) @ d for k in _chunks(draws, d.size)])
        extra = 1
    total, slack = float(d.sum()), 1e-12 * float(np.abs(d).sum())  # rounding must not turn a tie into a difference
    if side == "greater":
        hits = sums >= total - slack
    elif side == "less":
        hits = sums <= total + slack
    else:
        hits = np.abs(sums) >= abs(total) - slack
    return float((extra + hits.sum()) / (extra + sums.size))


def paired_t_p(differences: Any, clusters: Any = None) -> Floats:
    """One-sided paired t-test per row: p of a mean difference as large or larger when the true mean is zero.

    differences  [k, n] (or [n]): k comparisons on the same n examples; returns [k]
    t = mean / (sd / sqrt(m)) on the m cluster sums, with m - 1 degrees of freedom (Student 1908). Gives small p where
    Holm's correction over thousands of comparisons needs them, which permutations cannot. Exact for normal differences,
    otherwise as good as the central limit theorem at m. Rows without variation: 0 where positive, else 1.
    """
    d = np.atleast_2d(_floats(differences))
    d = np.stack([_cluster_sums(row, clusters) for row in d]) if len(d) else d
    m = d.shape[1]
    if m < 2:
        return np.ones(len(d))
    mean, spread = d.mean(1), d.std(1, ddof=1) / np.sqrt(m)
    t = np.divide(mean, spread, out=np.where(mean > 0, np.inf, -np.inf), where=spread > 0)
    return np.asarray(scipy_stats.t.sf(t, m - 1), dtype=np.float64)


@dataclass(frozen=True)
class Agreement:
    """How often two raters agree.

    share     how often they do
    expected  how often they would if their choices had nothing to do with each other
    p         probability of agreeing as often then
    n         number of examples that count
    """

    share: float
    expected: float
    p: float
    n: int


def agreement(a: Any, b: Any, on: Any = None, strata: Any = None, draws: int = 1_999, seed: int = 0) -> Agreement:
    """Permutation test of the agreement of two raters beyond what their marginals give.

    a, b    [n] the choices of each, as integers
    on      [n] bool: the examples whose agreement counts (default: all)
    strata  [n] integers: b is shuffled only among examples with the same number (default: among all)
    Null: within a stratum any order of b is as likely. Exact expectation: an example whose a is c agrees with the share
    of c among b in its stratum (Cohen 1960 for one stratum); p by rank among `draws` shuffles (Good 2005, chapter 3).
    """
    a, b = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    counted = np.ones(len(a), dtype=bool) if on is None else np.asarray(on, dtype=bool)
    group = np.zeros(len(a), dtype=np.int64) if strata is None else np.asarray(strata, dtype=np.int64)
    if not counted.any():
        return Agreement(float("nan"), float("nan"), 1.0, 0)
    observed = int((a == b)[counted].sum())
    expected = sum(float((b[group == group[i]] == a[i]).mean()) for i in np.flatnonzero(counted))
    order = np.argsort(group, kind="stable")  # a shuffle within strata = sort by (stratum, random key)
    a_sorted, b_sorted, counted_sorted, group_sorted = a[order], b[order], counted[order], group[order]
    rng = np.random.default_rng(seed)
    hits = [
        (b_sorted[np.lexsort((rng.random((k, len(a))), np.broadcast_to(group_sorted, (k, len(a)))))] == a_sorted)
        for k in _chunks(draws, len(a))
    ]
    counts = np.concatenate([(h & counted_sorted).sum(1) for h in hits])
    n = int(counted.sum())
    return Agreement(observed / n, expected / n, rank_p(observed, counts), n)


def holm(p: Any) -> Floats:
    """p-values adjusted so that rejecting those at or below alpha errs even once with probability at most alpha.

    Sorted p_(1) <= ... <= p_(m): adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)); holds under any
    dependence (Holm 1979).
    """
    p = _floats(p)
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, p[order] * np.arange(p.size, 0, -1))
    out = np.empty(p.size)
    out[order] = np.maximum.accumulate(steps)
    return out


def false_discovery(p: Any, any_dependence: bool = False) -> Floats:
    """q-values: the smallest level at which each would be kept if the expected share of false ones among all that are
    kept is to be no larger than that level.

    Sorted p_(1) <= ... <= p_(m): q_(i) = min over j >= i of min(1, m p_(j) / j) (Benjamini & Hochberg 1995). Holds for
    independent p-values and for those that depend positively on each of the true nulls (Benjamini & Yekutieli 2001,
    theorem 1.2), as ranks of one score among shared draws do (Bates et al. 2023, doi 10.1214/22-AOS2244).
    any_dependence  m times 1 + 1/2 + ... + 1/m in place of m: holds whatever the dependence (theorem 1.3)
    """
    return _floats(scipy_stats.false_discovery_control(_floats(p), method="by" if any_dependence else "bh"))


# -- intervals -------------------------------------------------------------------------------------------------------


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Exact interval of a share: covers with at least `level`, whatever the true share (Clopper & Pearson 1934)."""
    if n == 0:
        return (0.0, 1.0)
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(scipy_stats.beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(scipy_stats.beta.ppf(1 - tail, successes + 1, n - successes))
    return (low, high)


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Score interval of a share s = successes / n: all shares that the normal score test does not refuse.

    (s + z^2/2n +- z sqrt(s (1-s) / n + z^2 / 4n^2)) / (1 + z^2/n) (Wilson 1927). `n` need not be whole: where examples
    come in pairs, give the number of pairs and the same share, which is the careful side.
    """
    if n <= 0:
        return (0.0, 1.0)
    s, z = successes / n, float(scipy_stats.norm.ppf(0.5 + level / 2))
    middle = s + z * z / (2 * n)
    half = z * float(np.sqrt(s * (1 - s) / n + z * z / (4 * n * n)))
    return (max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n)))


def times_drawn(n: int, draws: int = 1_999, seed: int = 0) -> Floats:
    """How often each of n is drawn in each bootstrap draw, [draws, n]: rows sum to n."""
    drawn = np.random.default_rng(seed).integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    return _floats(np.bincount(drawn.reshape(-1), minlength=draws * n).reshape(draws, n))


def bootstrap_weights(n: int, clusters: Any = None, draws: int = 1_999, seed: int = 0) -> Floats:
    """How much every example weighs in each bootstrap draw, [draws, n]: rows sum to 1.

    Whole clusters are drawn with replacement, as many as there are (Davison & Hinkley 1997, section 3.8). A statistic
    that is a mean is `values @ weights.T`.
    """
    index, m = _cluster_index(n, clusters)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(m, np.full(m, 1 / m), size=draws)[:, index].astype(np.float64)
    return times / times.sum(1, keepdims=True)


def t_interval(values: Any, level: float = 0.95) -> Interval:
    """Interval of the mean of independent, roughly normal values, such as one figure of several training seeds.

    mean +- t * sd / sqrt(n), with t the quantile (1 + level) / 2 of Student's distribution with n - 1 degrees of
    freedom and sd the sample's (Student 1908). nan with fewer than two values. A share's may end above 1.
    """
    v = _floats(values)
    if v.size < 2:
        return NO_INTERVAL
    half = float(scipy_stats.t.ppf((1 + level) / 2, v.size - 1) * v.std(ddof=1) / np.sqrt(v.size))
    return (float(v.mean()) - half, float(v.mean()) + half)


def bootstrap_mean(
    values: Any, clusters: Any = None, level: float = 0.95, draws: int = 1_999, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a mean, resampling clusters (Efron 1979; Davison & Hinkley 1997, section 5.3.1).

    values    [n]
    clusters  [n] integers; examples with the same number are drawn together (default: each on its own)
    """
    v = _floats(values)
    if v.size == 0:
        return NO_INTERVAL
    return percentile_interval(bootstrap_weights(v.size, clusters, draws, seed) @ v, level)


def percentile_interval(draws: Any, level: float = 0.95) -> Interval:
    """The middle `level` of bootstrap draws."""
    low, high = np.quantile(_floats(draws), [(1 - level) / 2, (1 + level) / 2])
    return (float(low), float(high))


def geometric_mean_ratio(
    numerators: Sequence[float], denominators: Sequence[float], level: float = 0.95, draws: int = 9_999, seed: int = 0
) -> tuple[float, Interval]:
    """Geometric mean over tasks of numerator / denominator, with a percentile bootstrap interval over the tasks.

    exp(mean(log(a_i / b_i))), tasks drawn with replacement. With one task the interval is not defined (nan). With a
    handful of tasks the interval is narrower than it should be: it speaks of tasks like these.
    """
    a, b = _floats(numerators), _floats(denominators)
    if a.shape != b.shape or a.size == 0 or not ((a > 0).all() and (b > 0).all()):
        raise UsageError("a geometric mean of ratios needs one positive numerator and denominator per task.")
    logs = np.log(a / b)
    value = float(np.exp(logs.mean()))
    if a.size == 1:
        return value, NO_INTERVAL
    low, high = bootstrap_mean(logs, level=level, draws=draws, seed=seed)
    return value, (float(np.exp(low)), float(np.exp(high)))


# -- agreement of a prediction with what happened ----------------------------------------------------------------------


def auc(scores: Any, labels: Any) -> Floats:
    """Area under the ROC curve: probability that a positive scores above a negative, ties counted as half.

    scores  [n]
    labels  bool [..., n]; returns [...], nan where all labels are the same
    From the rank sum of the positives, (sum - P (P + 1) / 2) / (P Q) (Mann & Whitney 1947). Any strictly increasing map
    of the scores leaves it as it is.
    """
    yes = np.asarray(labels, dtype=bool)
    ranks = scipy_stats.rankdata(_floats(scores))
    p, n = yes.sum(-1), yes.shape[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return _floats((yes @ ranks - p * (p + 1) / 2) / (p * (n - p)))


def balanced_accuracy(said: Any, labels: Any) -> Floats:
    """Mean of the share of positives that are called so and of negatives that are not: 0.5 for any constant answer.

    said    bool [n]
    labels  bool [..., n]; returns [...], nan where all labels are the same
    """
    a, yes = np.asarray(said, dtype=bool), np.asarray(labels, dtype=bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _floats(((yes & a).sum(-1) / yes.sum(-1) + (~yes & ~a).sum(-1) / (~yes).sum(-1)) / 2)


def correlation(sums: Any) -> Floats:
    """Pearson's correlation from sums [..., 6] of 1, x, y, x^2, y^2, xy; 0 where x or y is constant.

    A constant prediction tells nothing of what varies, so it counts as no correlation instead of an undefined one.
    """
    n, x, y, xx, yy, xy = np.moveaxis(_floats(sums), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        vx, vy = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2
        r = (xy / n - x / n * y / n) / np.sqrt(vx * vy)
        flat = (vx <= 1e-12 * xx / n) | (vy <= 1e-12 * yy / n)  # what rounding leaves of a constant
    return np.where(flat | ~np.isfinite(r), 0.0, np.clip(r, -1.0, 1.0))


def moments(x: Any, y: Any) -> Floats:
    """The terms [..., 6] whose sums `correlation` takes."""
    x, y = _floats(x), _floats(y)
    return np.stack([np.ones(np.broadcast(x, y).shape), *np.broadcast_arrays(x, y, x * x, y * y, x * y)], -1)


def pearson(x: Any, y: Any) -> float:
    """Pearson's correlation of two [n]; 0 where one is constant."""
    x, y = _floats(x), _floats(y)
    return float(correlation(moments(x - x.mean(), y - y.mean()).sum(0))) if x.size else float("nan")


def spearman(x: Any, y: Any) -> float:
    """Spearman's rank correlation of two [n], ties sharing their mean rank; 0 where one is constant."""
    return pearson(scipy_stats.rankdata(_floats(x)), scipy_stats.rankdata(_floats(y)))


def standardised(values: Any, known: Any) -> Floats:
    """Rows [..., n] less their mean, over their standard deviation, both over what is known; 0 elsewhere and for
    constant rows."""
    v, known = _floats(values), np.asarray(known, dtype=bool)
    n = np.maximum(1, known.sum(-1, keepdims=True))
    scale = np.maximum(1e-300, np.abs(np.where(known, v, 0.0)).max(-1, keepdims=True, initial=0.0))
    v = np.where(known, v / scale, 0.0)
    v = np.where(known, v - v.sum(-1, keepdims=True) / n, 0.0)
    spread = np.sqrt((v * v).sum(-1, keepdims=True) / n)
    return _floats(np.divide(v, spread, out=np.zeros_like(v), where=spread > 1e-9))


# -- clusters --------------------------------------------------------------------------------------------------------


def pair_clusters(pair: Any) -> Ints:
    """A cluster number per example from the index of its counterpart (-1: none): the two of a pair share one."""
    p = np.asarray(pair, dtype=np.int64)
    return np.where(p < 0, np.arange(p.size), np.minimum(p, np.arange(p.size)))


def one_per_cluster(clusters: Any, seed: int = 0) -> Ints:
    """Indices of one example of every cluster, drawn at random: examples that a test may take as independent."""
    names = np.asarray(clusters)
    order = np.random.default_rng(seed).permutation(names.size)
    _, first = np.unique(names[order], return_index=True)
    return np.sort(order[first])


def _cluster_index(n: int, clusters: Any) -> tuple[Ints, int]:
    """Cluster numbers made dense, 0 .. m - 1, and m."""
    if clusters is None:
        return np.arange(n), n
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    return index.reshape(-1), len(names)


def _cluster_sums(values: Floats, clusters: Any) -> Floats:
    index, m = _cluster_index(values.size, clusters)
    return _floats(np.bincount(index, weights=values, minlength=m))


def _chunks(total: int, width: int) -> list[int]:
    """Sizes that add up to `total`, each small enough that size * width numbers fit well into memory."""
    size = max(1, min(total, 2_000_000 // max(1, width)))
    return [min(size, total - at) for at in range(0, total, size)]
