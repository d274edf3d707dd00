"""The tests of the literature: their published oddities, that ours do not have them, and exact laws by enumeration."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from openwork import patching, verify
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Circuit
from openwork.verify import Question
from openwork.verify import tests_of_literature as lit
from planted import PADDED, PLANTED, WRONG, circuit_of, examples, planted_model


def asked(kept: dict[str, list[int]] | None = None, pairs: int = 80) -> Question:
    """About the circuit of these nodes; without them, about the whole model as its own circuit."""
    model = planted_model()
    whole = Circuit.whole(model.graph(), patching.support(model))
    circuit = whole if kept is None else circuit_of(model, kept)
    return Question(model, circuit, patching.zero_reference(model), examples("verify", pairs, 0), None, 0.1)


def test_a_circuit_that_is_the_model_is_equivalent_to_it() -> None:
    assert lit.equivalence_p_published(np.zeros(128)) == pytest.approx(4e-29, rel=0.1)  # as published: it is not
    assert lit.equivalence_p_published(np.zeros(6)) == pytest.approx(0.051, abs=5e-4)
    assert lit.equivalence_p(np.zeros(128)) <= 0.002
    published, ours = (verify.COMPARISONS["equivalence"](asked(), as_published=p) for p in (True, False))
    assert published.verdict == FAILS
    assert (ours.verdict, ours.value, ours.details["ties"]) == (HOLDS, 0.5, 1.0)


def test_few_prompts_show_nothing() -> None:
    """Published, three prompts are enough to be called equivalent; here too few are too few."""
    rng = np.random.default_rng(0)
    three = np.array([1.0, -1.0, 1.0])
    assert lit.equivalence_p_published(three) > 0.05
    assert lit.equivalence_p(three) > 0.3
    few = asked(PLANTED, 10)
    assert lit.equivalence(few).verdict == UNDECIDED
    assert lit.independence(few).verdict == UNDECIDED
    assert lit.equivalence_p(rng.normal(0, 1, 2000)) < 0.01


def test_a_tie_is_half_a_win() -> None:
    ties = np.repeat([0.0, 1.0, -1.0], [1000, 250, 250])
    assert lit.equivalence_p(ties) <= 0.002
    assert lit.equivalence_p(np.repeat([0.0, 1.0], [1800, 200])) <= 0.002  # a share of 0.55
    assert lit.equivalence_p(np.repeat([0.0, 1.0], [1400, 600])) > 0.99  # 0.65


def test_better_as_often_as_worse_is_needed_on_both_sides() -> None:
    d = np.repeat([1.0, -1.0], [400, 100])
    assert lit.equivalence_p(d) > 0.99
    assert lit.equivalence_p(-d) > 0.99
    assert lit.equivalence(asked(WRONG)).verdict == FAILS


@pytest.mark.parametrize(("s", "theta", "tied"), [(0, 0.6, 0.0), (2, 0.6, 0.3), (4, 0.4, 0.5), (5, 0.6, 0.8)])
def test_the_law_of_halves_is_that_of_all_outcomes(s: int, theta: float, tied: float) -> None:
    p = {0: 1 - theta - tied / 2, 1: tied, 2: theta - tied / 2}
    by_hand = sum(np.prod([p[x] for x in xs]) for xs in itertools.product(range(3), repeat=3) if sum(xs) <= s)
    assert lit._at_most(s, 3, theta, (tied, tied)) == pytest.approx(by_hand, abs=1e-9)


def test_without_ties_the_law_is_the_binomial() -> None:
    assert lit._at_most(2 * 11, 30, 0.6, (0.0, 0.0)) == pytest.approx(binom.cdf(11, 30, 0.6), abs=1e-9)
    assert lit._at_most(3, 9, 0.6, (0.85, 1.0)) == 0.0  # a mean of 0.6 leaves at most 0.8 ties


def test_hsic_is_the_trace_formula_and_sees_what_correlation_does_not() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, 60)
    y = x**2 + 0.1 * rng.normal(0, 1, 60)
    h = np.eye(60) - 1 / 60
    by_hand = np.trace(lit._gram(x) @ h @ lit._gram(y) @ h) / 60**2
    value, p = lit.hsic(x, y, 199, 0)
    assert value == pytest.approx(by_hand)
    assert p == 1 / 200
    assert lit.hsic(x, y, 199, 0, as_published=True)[1] == 0.0  # the published p can be 0
    assert lit.hsic(np.zeros(60), y, 199, 0)[1] == 1.0  # all distances 0: no bandwidth, and still an answer


def test_what_the_rest_of_the_model_still_knows() -> None:
    """Without the wrong nodes the planted ones are left: they know everything."""
    known = lit.independence(asked(WRONG))
    assert known.verdict == FAILS
    assert known.value == pytest.approx(1.0, abs=1e-4)
    rest = lit.independence(asked(PLANTED, 200))
    assert rest.verdict == HOLDS
    assert abs(rest.value) < 0.2


def test_minimality_has_to_be_shown() -> None:
    random = np.array([0.0] * 95 + [1.0] * 5)
    needed, idle = lit.minimality_p(np.array([2.0, 0.0]), random)
    assert needed == pytest.approx(0.9**100)
    assert idle > 0.99
    published = lit.minimality_p(np.array([2.0, 0.0]), random, as_published=True)
    assert published[0] == pytest.approx(1.0)
    assert published[1] == pytest.approx(binom.cdf(0, 100, 0.9))


def test_minimality_tells_padding_from_what_is_needed() -> None:
    planted, padded = (lit.minimality(asked(kept, 40)) for kept in (PLANTED, PADDED))
    assert (planted.verdict, planted.value) == (HOLDS, 1.0)
    assert padded.verdict == FAILS
    assert set(padded.details["unneeded"]) == {"input:3", "hidden0:5", "hidden1:4"}
    assert lit.minimality(asked()).verdict == UNDECIDED  # nothing is left that could be added
    few = lit.minimality(asked(PLANTED, 10)), lit.minimality(asked(PLANTED, 10), as_published=True)
    assert [e.verdict for e in few] == [UNDECIDED, HOLDS]


def test_comparisons_are_repeatable_and_no_claims_of_every_circuit() -> None:
    assert not set(verify.COMPARISONS) & set(verify.VERIFIERS)
    for test in verify.COMPARISONS.values():
        first, second = (test(asked(PADDED, 30)) for _ in range(2))
        assert replace(first, seconds=0.0) == replace(second, seconds=0.0)
