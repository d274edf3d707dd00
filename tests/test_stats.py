"""Every test and interval against a value worked out otherwise: by hand, by counting, or by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from openwork import stats
from openwork.errors import UsageError


def test_rank_p_counts_itself_and_ties_against_the_observed() -> None:
    assert stats.rank_p(5.0, [1, 2, 3]) == 1 / 4
    assert stats.rank_p(2.0, [1, 2, 3]) == 3 / 4
    assert stats.rank_p(0.0, [1, 2, 3], "less") == 1 / 4
    assert stats.rank_p(0.0, []) == 1.0


def test_t_interval_is_that_of_the_one_sample_t_test() -> None:
    values = [0.971, 0.964, 0.98, 0.955, 0.969]
    for level in (0.9, 0.95):
        expected = ttest_1samp(values, 0.0).confidence_interval(level)
        assert stats.t_interval(values, level) == pytest.approx((expected.low, expected.high))
    # by hand: mean 2, sd sqrt(2), 12.706 = t(0.975; 1), half-width 12.706 * sqrt(2) / sqrt(2)
    assert stats.t_interval([1.0, 3.0]) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-4)
    assert all(math.isnan(end) for end in stats.t_interval([1.0]))
    assert stats.t_interval([5.0, 5.0, 5.0]) == (5.0, 5.0)


def test_binomial_p_is_the_tail_sum() -> None:
    tail = sum(math.comb(20, k) * 0.3**k * 0.7 ** (20 - k) for k in range(9, 21))
    assert stats.binomial_p(9, 20, 0.3) == pytest.approx(tail)
    assert stats.binomial_p(0, 20, 0.3, "less") == pytest.approx(0.7**20)


@pytest.mark.parametrize("n", [9, 14])
@pytest.mark.parametrize("side", ["greater", "less", "two-sided"])
def test_sign_flip_is_the_share_of_sign_patterns(n: int, side: stats.Side) -> None:
    d = np.random.default_rng(n).normal(0.4, 1, n)
    sums = np.array([np.dot(s, d) for s in itertools.product((1, -1), repeat=n)])
    exact = {"greater": sums >= d.sum(), "less": sums <= d.sum(), "two-sided": abs(sums) >= abs(d.sum())}[side].mean()
    assert stats.sign_flip_p(d, side=side) == pytest.approx(exact, abs=0 if n <= 12 else 0.02)


def test_sign_flip_of_no_difference_is_one_and_zeros_do_not_count() -> None:
    assert stats.sign_flip_p([0.0, 0.0, 0.0]) == 1.0
    assert stats.sign_flip_p([1.0, 0.0, 2.0, 0.0]) == 1 / 4


def test_sign_flip_flips_clusters_as_one() -> None:
    assert stats.sign_flip_p([1.0, 2.0, 3.0, 4.0], clusters=[7, 7, 9, 9]) == 1 / 4
    assert stats.sign_flip_p([1.0, 2.0, 3.0, 4.0]) == 1 / 16


def test_paired_t_is_scipys_per_row_and_survives_rows_without_variation() -> None:
    d = np.random.default_rng(0).normal(0.2, 1, (3, 20))
    expected = ttest_1samp(d, 0, axis=1, alternative="greater").pvalue
    assert stats.paired_t_p(d) == pytest.approx(expected)
    assert stats.paired_t_p([[0.0] * 5, [1.0] * 5, [-1.0] * 5]).tolist() == [1.0, 0.0, 1.0]
    twice = np.repeat(d, 2, axis=1)  # examples that only repeat each other are worth one
    assert stats.paired_t_p(twice, np.repeat(np.arange(20), 2)) == pytest.approx(expected)


def test_agreement_counts_and_expects_what_the_marginals_give() -> None:
    a, b = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    r = stats.agreement(a, b)
    assert (r.share, r.n) == (0.75, 4)
    assert r.expected == pytest.approx(3 / 4 * 2 / 4 + 1 / 4 * 2 / 4)
    everything = np.mean([(a == np.array(o)).mean() >= 0.75 for o in itertools.permutations(b)])
    assert r.p == pytest.approx(everything, abs=0.05)


def test_agreement_within_strata_gives_no_credit_for_the_stratum() -> None:
    right = np.repeat([0, 1], 50)
    assert stats.agreement(right, right).p < 0.01
    assert stats.agreement(right, right, strata=right).p == 1.0
    wrong = np.arange(100) % 10 == 0
    decided = np.where(wrong, 1 - right, right)
    alike = stats.agreement(decided, decided, on=wrong, strata=right)
    assert (alike.share, alike.n) == (1.0, 10)
    assert alike.expected == pytest.approx(0.1)
    assert alike.p < 0.01


def test_agreement_on_nothing() -> None:
    r = stats.agreement([0, 1], [0, 1], on=[False, False])
    assert (r.n, r.p) == (0, 1.0)
    assert math.isnan(r.share)


def test_holm_by_hand_in_any_order() -> None:
    assert stats.holm([0.04, 0.01, 0.03]).tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert stats.holm([0.9, 0.6]).tolist() == [1.0, 1.0]
    assert stats.holm([]).size == 0


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.97])
def test_intervals_of_a_share_cover(share: float) -> None:
    n = 40
    chance = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
    exact, score = (
        sum(c for k, c in enumerate(chance) if f(k, n)[0] <= share <= f(k, n)[1])
        for f in (stats.clopper_pearson, stats.wilson)
    )
    assert exact >= 0.95
    assert score >= 0.90  # Wilson's promise is on average over shares


def test_intervals_of_a_share_at_the_ends() -> None:
    assert stats.clopper_pearson(0, 30) == (0.0, pytest.approx(1 - 0.025 ** (1 / 30)))
    assert stats.clopper_pearson(30, 30) == (pytest.approx(0.025 ** (1 / 30)), 1.0)
    assert stats.clopper_pearson(0, 0) == stats.wilson(0, 0) == (0.0, 1.0)
    low, high = stats.wilson(30, 30)
    assert 0.85 < low < 0.95
    assert high == pytest.approx(1.0)


def test_bootstrap_covers_the_mean_of_clusters_and_single_examples_do_not() -> None:
    covered = {"clusters": 0, "alone": 0}
    groups = np.repeat(np.arange(30), 2)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        values = np.repeat(rng.exponential(1.0, 30), 2)  # the two of a pair are equal: 30 observations, not 60
        for name, g in (("clusters", groups), ("alone", None)):
            low, high = stats.bootstrap_mean(values, g, draws=400, seed=seed)
            covered[name] += low <= 1.0 <= high
    assert covered["clusters"] >= 0.88 * 300
    assert covered["alone"] < 0.86 * 300


def test_bootstrap_weights_sum_to_one_and_follow_the_seed() -> None:
    w = stats.bootstrap_weights(6, [0, 0, 1, 1, 2, 2], draws=50, seed=3)
    assert w.shape == (50, 6)
    assert w.sum(1) == pytest.approx(np.ones(50))
    assert (w[:, ::2] == w[:, 1::2]).all()
    assert (w == stats.bootstrap_weights(6, [0, 0, 1, 1, 2, 2], draws=50, seed=3)).all()
    assert (w != stats.bootstrap_weights(6, [0, 0, 1, 1, 2, 2], draws=50, seed=4)).any()


def test_geometric_mean_ratio() -> None:
    value, (low, high) = stats.geometric_mean_ratio([8, 2], [1, 1])
    assert value == pytest.approx(4)
    assert (low, high) == pytest.approx((2, 8))
    inverse, (a, b) = stats.geometric_mean_ratio([1, 1], [8, 2])
    assert (inverse, a, b) == pytest.approx((1 / 4, 1 / 8, 1 / 2))
    assert all(math.isnan(x) for x in stats.geometric_mean_ratio([3], [1])[1])
    for bad in (([1.0], [0.0]), ([1.0, 2.0], [1.0]), ([], [])):
        with pytest.raises(UsageError, match="one positive"):
            stats.geometric_mean_ratio(*bad)


def test_one_per_cluster_takes_each_member_now_and_then() -> None:
    taken = np.array([stats.one_per_cluster([4, 4, 9, 2, 9], seed) for seed in range(200)])
    assert taken.shape == (200, 3)
    assert (np.diff(taken, axis=1) > 0).all()
    assert (taken == 3).any(1).all()
    for pair in ((0, 1), (2, 4)):
        assert all(0.35 < (taken == i).any(1).mean() < 0.65 for i in pair)
        assert (np.isin(taken, pair).sum(1) == 1).all()


def test_pair_clusters_join_the_two_of_a_pair() -> None:
    assert stats.pair_clusters([3, -1, -1, 0]).tolist() == [0, 1, 2, 0]
