"""p-values are uniform, or stochastically larger, when the null is true.

Each test is run on many worlds in which its null holds by construction; the share of p <= alpha may exceed alpha by no
more than sampling noise. Where the test is exact and fine-grained, the share may not fall far below either.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.random import Generator
from scipy.stats import binom

from openwork import patching, stats
from openwork.circuit import Circuit, Evidence
from openwork.models import MLP, MLPConfig
from openwork.tasks.task import Split
from openwork.verify import Question, necessary, sufficient
from openwork.verify.question import live_nodes, random_nodes

ALPHAS = (0.05, 0.2, 0.5)


def sign_flip(rng: Generator) -> float:
    return stats.sign_flip_p(rng.normal(0, rng.exponential(1, 30)), draws=199, seed=int(rng.integers(2**31)))


def sign_flip_of_pairs(rng: Generator) -> float:
    d = np.repeat(rng.normal(0, 1, 10), 2) + rng.normal(0, 0.1, 20)
    return stats.sign_flip_p(d, clusters=np.repeat(np.arange(10), 2))


def paired_t(rng: Generator) -> float:
    return float(stats.paired_t_p(rng.normal(0, 2, 12))[0])


def rank(rng: Generator) -> float:
    return stats.rank_p(rng.exponential(), rng.exponential(size=99))


def binomial(rng: Generator) -> float:
    return stats.binomial_p(int(rng.binomial(60, 0.3)), 60, 0.3)


def agreement(rng: Generator) -> float:
    a, b = rng.choice(3, 40, p=(0.6, 0.3, 0.1)), rng.choice(3, 40, p=(0.2, 0.4, 0.4))
    return stats.agreement(a, b, draws=99, seed=int(rng.integers(2**31))).p


def agreement_on_mistakes(rng: Generator) -> float:
    """Two raters that err independently: each knows the right answer, neither knows where the other errs."""
    right = rng.choice(2, 60)
    a, b = (np.where(rng.random(60) < 0.25, 1 - right, right) for _ in range(2))
    return stats.agreement(a, b, on=a != right, strata=right, draws=99, seed=int(rng.integers(2**31))).p


def agreement_of_pairs(rng: Generator) -> float:
    """Two raters that decide by coin for each pair, and the other way for its second example."""
    a, b = (np.stack([x, 1 - x], 1).ravel() for x in rng.choice(2, (2, 40)))
    one = stats.one_per_cluster(np.repeat(np.arange(40), 2), int(rng.integers(2**31)))
    return stats.agreement(a[one], b[one], draws=99, seed=int(rng.integers(2**31))).p


def smallest_of_holm(rng: Generator) -> float:
    return float(stats.holm([paired_t(rng) for _ in range(8)]).min())


EXACT = (sign_flip, sign_flip_of_pairs, paired_t, rank)
CAREFUL = (binomial, agreement, agreement_of_pairs, agreement_on_mistakes, smallest_of_holm)


def check(p: np.ndarray, *, exact: bool) -> None:
    """Refuses a share of p <= alpha that a uniform p would give once in 10,000 times (either way where exact)."""
    for alpha in ALPHAS:
        hits = int((p <= alpha).sum())
        assert hits <= binom.ppf(0.9999, len(p), alpha), f"p <= {alpha} in {hits} of {len(p)}: too often"
        if exact:
            assert hits >= binom.ppf(0.0001, len(p), alpha), f"p <= {alpha} in {hits} of {len(p)}: too seldom"


@pytest.mark.parametrize("draw", EXACT + CAREFUL, ids=lambda f: f.__name__)
def test_p_is_uniform_under_the_null(draw: Callable[[Generator], float]) -> None:
    rng = np.random.default_rng(0)
    check(np.array([draw(rng) for _ in range(800)]), exact=draw in EXACT)


def test_the_check_itself_refuses_a_p_that_is_too_small_or_too_large() -> None:
    uniform = (np.arange(800) + 0.5) / 800
    check(uniform, exact=True)
    with pytest.raises(AssertionError, match="too often"):
        check(uniform**1.3, exact=False)
    with pytest.raises(AssertionError, match="too seldom"):
        check(uniform**0.6, exact=True)


@pytest.mark.parametrize(("claim", "share"), [(sufficient, 4), (necessary, 40)])
def test_a_random_circuit_is_no_better_than_random_circuits(claim: Callable[[Question], Evidence], share: int) -> None:
    """Circuits drawn like the null's own draws, in models with random weights: p of the whole check is uniform.

    share  one in how many nodes is in the circuit; `necessary` says in its docstring why it must be small there
    """
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(34, 40, generator=g)
    answer = (x[:, 0] > 0).long()
    split = Split("verify", (x,), answer, (1 - answer)[:, None], torch.full((34,), -1), ("",) * 34)
    rng = np.random.default_rng(0)
    p = []
    for seed in range(200):
        if seed % 20 == 0:
            model = MLP(MLPConfig(inputs=40, hidden=(40,), outputs=2))
            where, reference = patching.support(model), patching.zero_reference(model)
        live = live_nodes(model)
        nodes = {n: random_nodes(rng, len(m) // share, m) for n, m in live.items()}
        circuit = Circuit.from_nodes(model.graph(), nodes, where)
        e = claim(Question(model, circuit, reference, split, None, 0.1, seed=seed, n_null=19))
        p.append(e.p)
    check(np.array(p), exact=True)  # ranks among 19 draws are multiples of 0.05, so the shares are exact there
