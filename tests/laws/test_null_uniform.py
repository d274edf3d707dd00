"""p-values are uniform, or stochastically larger, when the null is true.

Each test is run on many worlds in which its null holds by construction; the share of p <= alpha may exceed alpha by no
more than sampling noise. Where the test is exact and fine-grained, the share may not fall far below either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.random import Generator
from scipy.stats import binom

from openwork import patching, stats
from openwork.circuit import Circuit, Evidence
from openwork.models import MLP, MLPConfig, TransformerConfig, build
from openwork.tasks.task import Split
from openwork.verify import (
    Question,
    adversarial,
    adversary,
    keeps_attention,
    mistakes,
    necessary,
    reference_dependence,
    selective,
    stability,
    sufficient,
    tests_of_literature,
)
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


def agreement_of_mistakes_that_come_in_pairs(rng: Generator) -> float:
    """Two raters that err independently of each other, but on both examples of a pair or on none."""
    right, group = rng.choice(2, 120), np.repeat(np.arange(60), 2)
    a, b = (np.where((rng.random(60) < 0.3)[group], 1 - right, right) for _ in range(2))
    one = mistakes._one_per_pair(group, a != right, int(rng.integers(2**31)))
    return stats.agreement(a[one], b[one], on=(a != right)[one], strata=right[one], draws=99).p


def equivalent(rng: Generator) -> float:
    """A share on the edge of what is called equivalent, with a third of ties."""
    return tests_of_literature.equivalence_p(rng.choice((-1.0, 0.0, 1.0), 60, p=(0.2, 0.4, 0.4)))


def independent(rng: Generator) -> float:
    x, y = rng.exponential(size=(2, 25))
    return tests_of_literature.hsic(x, y, 99, int(rng.integers(2**31)))[1]


def minimal(rng: Generator) -> float:
    """A node whose effect is above nine in ten of random ones, no more."""
    return float(tests_of_literature.minimality_p(np.array([0.9]), rng.random(40))[0])


def overlap(rng: Generator) -> float:
    """Circuits that have nothing to do with each other, at two sites of which one is small."""
    sizes = {"large": (40, (8, 10, 12)), "small": (4, (2, 2, 3))}
    masks = {n: [torch.from_numpy(rng.permutation(m) < k) for k in some] for n, (m, some) in sizes.items()}
    null = stability.random_overlaps(masks, {}, 99, rng)
    return stats.rank_p(stability.mean_overlap(stability.overlaps(masks)), null)


def smallest_of_holm(rng: Generator) -> float:
    return float(stats.holm([paired_t(rng) for _ in range(8)]).min())


EXACT = (sign_flip, sign_flip_of_pairs, paired_t, rank, independent)
CAREFUL = (
    binomial, agreement, agreement_of_pairs, agreement_on_mistakes, agreement_of_mistakes_that_come_in_pairs,
    equivalent, minimal, overlap, smallest_of_holm,
)  # fmt: skip


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


@pytest.mark.parametrize(
    ("claim", "share", "worlds", "exact"),
    [
        (sufficient, 4, 200, True),
        (necessary, 40, 200, True),
        (selective, 4, 120, True),
        (adversarial, 4, 50, True),
        (reference_dependence, 4, 50, False),
    ],
)
def test_a_random_circuit_is_no_better_than_random_circuits(
    claim: Callable[[Question], Evidence], share: int, worlds: int, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Circuits drawn like the null's own draws, in models with random weights: p of the whole check is uniform.

    share  one in how many nodes is in the circuit; `necessary` says in its docstring why it must be small there
    exact  whether p may not be larger either; it is where it is the largest over several references
    """
    monkeypatch.setattr(adversary, "BUDGET", 2)  # p is that of the short search
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(34, 40, generator=g)
    answer = (x[:, 0] > 0).long()
    split = Split("verify", (x,), answer, (1 - answer)[:, None], torch.full((34,), -1), ("",) * 34)
    rng = np.random.default_rng(0)
    p = []
    for seed in range(worlds):
        if seed % 20 == 0:
            model = MLP(MLPConfig(inputs=40, hidden=(40,), outputs=2))
            where, reference = patching.support(model), patching.zero_reference(model)
            with torch.no_grad():
                told = model(x).argmax(1)  # a task that the model can do
        live = live_nodes(model)
        nodes = {n: random_nodes(rng, len(m) // share, m) for n, m in live.items()}
        circuit = Circuit.from_nodes(model.graph(), nodes, where)
        others = {"own": replace(split, answer=told, wrong=(1 - told)[:, None])}
        p.append(claim(Question(model, circuit, reference, split, None, 0.1, seed, 19, others)).p)
    check(np.array(p), exact=exact)  # ranks among 19 draws are multiples of 0.05, so the shares are exact there


def test_random_circuits_keep_attention_as_random_circuits_do() -> None:
    config = TransformerConfig(vocab=9, n_layer=1, d_model=16, d_head=4, d_mlp=8, n_ctx=6, init_std=0.5, bigram=False)
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(9, (34, 6), generator=g)
    answer, pair = tokens[:, 0], torch.full((34,), -1)
    split = Split("verify", (tokens, torch.full((34,), 5)), answer, ((answer + 1) % 9)[:, None], pair, ("",) * 34)
    rng = np.random.default_rng(0)
    p = []
    for seed in range(60):
        if seed % 6 == 0:
            model = build(config, seed)
            where, reference = patching.support(model), patching.zero_reference(model)
        nodes = {n: random_nodes(rng, len(m) // 2, m) for n, m in live_nodes(model).items()}
        circuit = Circuit.from_nodes(patching.graph_of(model), nodes, where)
        p.append(keeps_attention(Question(model, circuit, reference, split, None, 0.1, seed, 19)).p)
    check(np.array(p), exact=True)
