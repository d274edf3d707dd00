"""Every author of explanations: repeats itself, sees the dossier alone, says something, and cannot explain noise.

An author here is one that works from a dossier without a network; its judge runs on examples it never saw. A new one is
a line in AUTHORS.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from openwork.circuit import Explanation
from openwork.errors import UsageError
from openwork.explain.words import predicates as p
from openwork.explain.words.rules import Rules, RulesJudge
from openwork.explain.words.topic import Author, Dossier, Judge, Observed, Sample, Topic

AUTHORS: dict[str, Callable[[], tuple[Author, Judge]]] = {"rules": lambda: (Rules(), RulesJudge())}
WORDS = ("<s>", "a", "b", "c", "(", ")", '"', "\n")

each_author = pytest.mark.parametrize("make", AUTHORS.values(), ids=AUTHORS)
each_kind = pytest.mark.parametrize("kind", ["tokens", "vectors", "images"])


def sample(kind: str, split: str, seed: int, n: int = 120) -> Sample:
    rng = np.random.default_rng(seed)
    right = tuple("no" if i % 2 else "yes" for i in range(n))
    if kind == "tokens":
        tokens = rng.integers(1, len(WORDS), (n, 10))
        tokens[:, 0] = 0
        return Sample(split, WORDS, tokens, rng.integers(4, 10, n), right=right)
    zeros = np.zeros(n, dtype=np.int64)
    if kind == "vectors":
        return Sample(split, asked=zeros, features=rng.normal(size=(n, 6)), names=tuple("uvwxyz"), right=right)
    x = np.where(rng.random((n, 36)) < 0.5, 1.0, -1.0)
    names = tuple(f"row {i // 6}, column {i % 6}" for i in range(36))
    return Sample(split, asked=zeros, features=x, names=names, shape=(6, 6, 1), right=right)


RULE: dict[str, p.Node] = {
    "tokens": p.All(of=(p.TokenIs(words=("a", "b")), p.Not(of=p.Seen(words=("(",))))),
    "vectors": p.All(of=(p.AtLeast(of=p.Feature(name="v"), value=0.0), p.AtLeast(of=p.Feature(name="y"), value=-0.4))),
    "images": p.Picture(rows=("##", "#."), above=0.0),
}


def dossier(s: Sample, *activities: np.ndarray) -> Dossier:
    """A dossier of the first of some topics that did this on the sample."""
    topics = tuple(Topic(f"site:{i}", "node", (("site", i),)) for i in range(len(activities)))
    counted = [np.where(s.counted, a, np.nan) for a in activities]
    observed = Observed(s, topics, np.stack(counted), "sent", np.zeros((len(topics), len(s))))
    return Dossier({}, observed, topics[0])


def true_activity(kind: str, s: Sample, noise: float, seed: int = 9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 2.0 * p.execute(RULE[kind], s) - 0.3 + noise * rng.normal(size=s.counted.shape)


def explained(expected: np.ndarray, activity: np.ndarray) -> float:
    """Share of the variance of an activity that an expectation explains, where there is one."""
    here = np.isfinite(activity)
    e, a = expected[here], activity[here]
    return 1 - float(((a - e) ** 2).sum() / ((a - a.mean()) ** 2).sum())


def nonsense(s: Sample) -> Iterator[np.ndarray]:
    """Activities that no input leads to: new at every place, the same at all places of an example, rarely on."""
    for seed in range(6):
        rng = np.random.default_rng(100 + seed)
        yield rng.normal(size=s.counted.shape)
        per_example = rng.normal(size=len(s)).reshape(-1, *[1] * (s.counted.ndim - 1))
        yield np.broadcast_to(per_example, s.counted.shape).copy()
        yield (rng.random(s.counted.shape) < 0.05).astype(float)


@each_author
@each_kind
def test_a_plain_rule_is_found_and_holds_on_other_examples(make: Callable[[], tuple[Author, Judge]], kind: str) -> None:
    author, judge = make()
    s, held_out = sample(kind, "explain", 1), sample(kind, "verify", 2)
    said = author(dossier(s, true_activity(kind, s, noise=0.3)))
    assert said.subject == "site:0" and said.text.strip()
    expected = judge(said, held_out)
    assert expected.shape == held_out.counted.shape
    assert np.isfinite(expected[held_out.counted]).all(), "it says something of every place that counts"
    assert explained(expected, true_activity(kind, held_out, noise=0.0)) > 0.9


@each_author
@each_kind
def test_it_repeats_itself(make: Callable[[], tuple[Author, Judge]], kind: str) -> None:
    s = sample(kind, "explain", 1)
    activities = [true_activity(kind, s, noise=1.0), np.random.default_rng(4).normal(size=s.counted.shape)]
    first, again = make()[0], make()[0]
    alone = again(dossier(s, activities[0]))
    first(dossier(s, activities[1]))  # what it did before does not matter
    said = first(dossier(s, activities[0]))
    assert said == alone
    assert json.loads(json.dumps([dict(said.predicate), dict(said.details)])) == [said.predicate, said.details]


@each_author
@each_kind
def test_it_looks_at_nothing_but_the_dossiers_topic(make: Callable[[], tuple[Author, Judge]], kind: str) -> None:
    """What siblings do, how they are called, and places that do not count leave a rule as it is; and the dossier."""
    author, _ = make()
    s = sample(kind, "explain", 1)
    mine = true_activity(kind, s, noise=0.5)
    alone = author(dossier(s, mine))
    given = dossier(s, mine, np.ones_like(mine))
    before = given.observed.activity.copy()
    assert author(given) == alone
    np.testing.assert_array_equal(given.observed.activity, before)
    if s.tokens is not None:
        padding = np.where(s.counted, s.tokens, 3)
        assert make()[0](dossier(replace(s, tokens=padding), mine)) == alone


@each_author
@each_kind
def test_noise_gets_no_rule_or_one_that_fails_elsewhere(make: Callable[[], tuple[Author, Judge]], kind: str) -> None:
    author, judge = make()
    s, held_out = sample(kind, "explain", 1), sample(kind, "verify", 2)
    claims = 0
    for a, other in zip(nonsense(s), nonsense(held_out), strict=True):
        said = author(dossier(s, a))
        assert said.text.strip(), "where nothing is found, that is said"
        claims += bool(said.predicate)
        expected = judge(said, held_out)
        assert expected.shape == held_out.counted.shape
        if said.predicate:
            assert explained(expected, np.where(held_out.counted, other, np.nan)) < 0.1
        else:
            assert np.isnan(expected).all(), "a judge of no claim expects nothing"
    assert claims <= 2, "of 18 activities that mean nothing, nearly none gets a rule"


@each_author
def test_an_activity_that_never_changes_is_called_so(make: Callable[[], tuple[Author, Judge]]) -> None:
    author, judge = make()
    s = sample("tokens", "explain", 1)
    for value in (0.0, -1.25):
        said = author(dossier(s, np.full(s.counted.shape, value)))
        expected = judge(said, s)
        np.testing.assert_allclose(expected[s.counted], value, atol=1e-9)


@each_author
def test_a_judge_refuses_examples_of_another_kind(make: Callable[[], tuple[Author, Judge]]) -> None:
    _, judge = make()
    claim = Explanation("site:0", "x", "fires on a", predicate=p.plain(p.TokenIs(words=("a",))))
    with pytest.raises(UsageError, match="tokens"):
        judge(claim, sample("vectors", "verify", 0))
