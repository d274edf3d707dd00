"""Scores of explanations: the true one scores 1 and holds, others score chance and do not; every figure by hand."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, kstest, pearsonr, rankdata, spearmanr

from openwork import stats
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Evidence, Explanation
from openwork.errors import UsageError
from openwork.explain.words.scores import SCORES, Interchanges, Nulls, Question, ScoreSettings, score, support
from openwork.explain.words.scoring import Hearing, Material
from openwork.explain.words.scoring.question import Executed, choose
from openwork.explain.words.topic import Observed, Sample
from scored_worlds import K, explanations, judge, observed, on_tokens, said, sample, topics, world

FAST = ScoreSettings(draws=499)
OF_TEXT = ("trigger", "detection", "fuzzing", "simulation", "damage", "identified")


def scored(
    some: Sequence[Explanation], o: Observed, nulls: Nulls | None = None, by: Any = judge, **more: Any
) -> list[dict[str, Evidence]]:
    """Per explanation, claim -> evidence."""
    more = {"settings": FAST, **more}
    return [{x.claim: x for x in e.evidence} for e in score(some, o, nulls or Nulls(), by, **more)]


# -- figures by hand ---------------------------------------------------------------------------------------------------


def test_auc_by_hand_and_by_counting() -> None:
    assert float(stats.auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])) == 0.75
    assert float(stats.auc([1, 1, 1], [0, 1, 1])) == 0.5
    rng = np.random.default_rng(0)
    x, labels = rng.integers(0, 5, 30), rng.random((3, 30)) < 0.4
    for y, got in zip(labels, stats.auc(x, labels), strict=True):
        pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(x[y], x[~y])]
        assert got == pytest.approx(np.mean(pairs))
    assert math.isnan(float(stats.auc([1, 2], [1, 1])))


def test_balanced_accuracy_by_hand() -> None:
    # of 4 positives 3 are found, of 2 negatives 1: (3/4 + 1/2) / 2
    assert float(stats.balanced_accuracy([1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 0])) == 0.625
    assert float(stats.balanced_accuracy([1] * 5, [1, 0, 0, 0, 0])) == 0.5
    assert stats.balanced_accuracy([1, 0], [[1, 0], [0, 1]]).tolist() == [1.0, 0.0]


def test_correlations_by_hand_and_beside_scipy() -> None:
    assert stats.pearson([1, 2, 3], [2, 4, 7]) == pytest.approx(5 / math.sqrt(2 * 38 / 3))
    assert stats.spearman([1, 2, 3, 4], [1, 3, 2, 9]) == pytest.approx(0.8)
    rng = np.random.default_rng(1)
    x, y = rng.normal(1e6, 1, 50), rng.integers(0, 4, 50)
    assert stats.pearson(x, y) == pytest.approx(pearsonr(x, y)[0])
    assert stats.spearman(x, y) == pytest.approx(spearmanr(x, y)[0])
    assert stats.pearson([1e9] * 5, rng.normal(size=5)) == 0.0


def test_standardised_rows_know_what_is_unknown() -> None:
    z = stats.standardised([[1.0, 3.0, 99.0], [5.0, 5.0, 5.0]], [[True, True, False], [True] * 3])
    assert z == pytest.approx(np.array([[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))


def test_bootstrap_counts_have_the_right_mean_and_sum() -> None:
    times = stats.times_drawn(20, 2_000, seed=3)
    assert (times.sum(1) == 20).all()
    assert np.abs(times.mean(0) - 1).max() < 0.12
    assert times.var() == pytest.approx(0.95, abs=0.05)  # binomial: n * 1/n * (1 - 1/n)


# -- which places are asked about ------------------------------------------------------------------------------------


def test_places_are_balanced_and_share_no_cluster() -> None:
    rng = np.random.default_rng(0)
    yes, hard = rng.random((100, 8)) < 0.3, rng.random((100, 8)) < 0.3
    hard &= ~yes
    easy = ~yes & ~hard
    clusters = np.arange(100) // 2
    p = choose(yes, hard, easy, clusters, 40, rng)
    assert len(p) == 40
    assert len(set(clusters[p.example])) == 40
    assert int(p.yes.sum()) == 20
    assert int(p.hard.sum()) == 10
    kind = np.where(p.yes, 0, np.where(p.hard, 1, 2))
    for k, candidates in enumerate((yes, hard, easy)):
        assert candidates[p.example[kind == k], p.column[kind == k]].all()


@pytest.mark.parametrize("rare", ["yes", "hard", "easy"])
def test_where_one_sort_is_rare_all_of_it_is_used(rare: str) -> None:
    rng = np.random.default_rng(1)
    sort = np.full((60, 5), {"yes": 2, "hard": 2, "easy": 1}[rare])
    if rare != "yes":
        sort[:30] = 0
    places = rng.choice(np.arange(0, 60) if rare == "yes" else np.arange(30, 60), 5, replace=False)
    sort[places, 2] = {"yes": 0, "hard": 1, "easy": 2}[rare]
    p = choose(sort == 0, sort == 1, sort == 2, np.arange(60), 60, rng)
    count = {"yes": p.yes, "hard": p.hard, "easy": ~p.yes & ~p.hard}[rare].sum()
    assert count == 5
    assert len(p) == (5 + 30 if rare == "yes" else 60)


def test_every_place_of_a_sort_is_chosen_sometimes() -> None:
    yes = np.zeros((12, 4), dtype=bool)
    yes[:6] = True
    seen = np.zeros_like(yes)
    for seed in range(60):
        p = choose(yes, np.zeros_like(yes), ~yes, np.arange(12), 12, np.random.default_rng(seed))
        seen[p.example, p.column] = True
    assert seen.all()


# -- the true explanation, and wrong ones ----------------------------------------------------------------------------


def test_the_true_explanations_score_one_and_hold() -> None:
    o, nulls = world()
    for found in scored(explanations(o), o, nulls, clusters=np.arange(160) // 2):
        assert list(found) == list(OF_TEXT)  # the first is the primary one
        for claim, e in found.items():
            assert e.value == pytest.approx(1.0), claim
            assert e.verdict == HOLDS, e.sentence
            assert e.p <= 0.05
            assert e.n in (80, 20), claim  # pairs, or picks from 4 pairs each
            assert (e.split, e.seed) == ("verify", 0)


def test_explanations_of_other_topics_score_chance_and_fail() -> None:
    o, nulls = world(seed=1)
    found = [x for shift in range(1, K) for x in scored(explanations(o, shift), o, nulls)]
    for claim, chance in (("trigger", 0.5), ("detection", 0.5), ("fuzzing", 0.5), ("simulation", 0.0), ("damage", 0.0)):
        values = np.array([f[claim].value for f in found])
        # tokens exclude each other at one place, so that a wrong one is a little below chance there
        assert chance - 0.17 < values.mean() < chance + 0.03, claim
        assert {f[claim].verdict for f in found} == {FAILS}, claim
    picks = np.array([f["identified"].value for f in found])
    assert picks.mean() < 0.03  # the true one is in the line-up
    assert {f["identified"].verdict for f in found} == {FAILS}


def test_a_description_of_what_all_topics_do_does_not_get_past_siblings() -> None:
    o, _ = world(seed=2)

    def any_topic(e: Explanation, s: Sample) -> np.ndarray:
        assert s.tokens is not None
        return (s.tokens < K) * 1.0

    e = scored([said("s0:0", {"any": True})], o, by=any_topic)[0]["trigger"]
    assert e.details["auc_against_siblings"] == 0.5
    assert e.details["auc_against_silence"] == 1.0
    assert e.value == pytest.approx(0.75, abs=0.02)


def test_an_explanation_that_fits_random_parts_as_well_fails() -> None:
    o, _ = world(seed=3, sites=K)
    same = Nulls(parts=tuple(replace(o) for _ in range(19)))
    for e in scored(explanations(o)[:1], o, same)[0].values():
        if e.claim == "identified":
            continue
        assert (e.value, e.p, e.verdict) == (pytest.approx(1.0), 1.0, FAILS), e.claim
        assert "random parts" in e.sentence.split("Not beaten")[1]


def test_an_explanation_that_fits_random_weights_as_well_fails() -> None:
    o, _ = world(seed=3, sites=K)
    e = scored(explanations(o)[:1], o, Nulls(weights=tuple(replace(o) for _ in range(19))))[0]["trigger"]
    assert (e.p, e.verdict) == (1.0, FAILS)


def test_with_too_few_draws_nothing_is_claimed() -> None:
    o, nulls = world(seed=4, sites=K, draws=18)
    found = scored(explanations(o), o, nulls)
    assert {f["trigger"].verdict for f in found} == {UNDECIDED}
    assert "Too few draws" in found[0]["trigger"].sentence
    o, nulls = world(seed=4, sites=K, draws=19)
    assert {f["trigger"].verdict for f in scored(explanations(o), o, nulls)} == {HOLDS}


def test_random_parts_of_one_size_serve_all_topics_of_that_size_but_models_only_their_own() -> None:
    o, nulls = world(seed=4, sites=2, draws=7)  # three topics at each of two sites: 21 random parts for each
    (found, *_) = scored(explanations(o), o, nulls, claims=["trigger"])
    assert "21 random parts" in found["trigger"].null and "7 parts with random weights" in found["trigger"].null
    assert found["trigger"].verdict == UNDECIDED, "seven models cannot give p below 1/8, however many nodes they have"
    many = Nulls(nulls.parts, nulls.weights * 3)
    assert {f["trigger"].verdict for f in scored(explanations(o), o, many, claims=["trigger"])} == {HOLDS}


def test_draws_whose_damage_was_not_measured_are_left_out() -> None:
    o, nulls = world(seed=4, sites=2, draws=7)

    def unmeasured(x: Observed, rows: Sequence[int]) -> Observed:
        damage = x.damage.copy()
        damage[list(rows)] = np.nan
        return replace(x, damage=damage)

    some = Nulls(
        tuple(unmeasured(x, [0] if r == 0 else []) for r, x in enumerate(nulls.parts)),
        tuple(unmeasured(x, range(K)) for x in nulls.weights),
    )
    found = scored(explanations(o), o, some, claims=["damage"])
    assert "20 random parts" in found[0]["damage"].null
    assert "21 random parts" in found[1]["damage"].null
    assert "random weights" not in found[0]["damage"].null
    whole = scored(explanations(o), o, Nulls(nulls.parts), claims=["damage"])
    assert found[1]["damage"].details["nulls"]["random parts"] == whole[1]["damage"].details["nulls"]["random parts"]


def test_a_rival_that_does_better_is_enough_to_fail() -> None:
    o, nulls = world(seed=5)
    half = replace(explanations(o)[0], predicate={"half": 0})

    def half_judge(e: Explanation, s: Sample) -> np.ndarray:
        if "half" not in e.predicate:
            return judge(e, s)
        out = judge(said("", {"token": 0}), s)
        out[:, ::2] = 0
        return out

    alone = scored([half], o, nulls, half_judge, claims=["trigger"])[0]["trigger"]
    assert alone.value == pytest.approx(0.75, abs=0.08)
    better = said("elsewhere", {"token": 0})
    beside = scored([half], o, nulls, half_judge, claims=["trigger"], others=[better])[0]["trigger"]
    assert beside.details["nulls"]["descriptions"]["as_good"] == 1.0
    assert beside.details["nulls"]["descriptions"]["who"] == ["elsewhere"]
    assert beside.verdict == FAILS


def test_topics_that_act_alike_are_no_rivals_and_no_siblings() -> None:
    rng = np.random.default_rng(6)
    s = sample(rng)
    o = observed(s, on_tokens(s, [0, 0, 1, 2]))  # the first two do the same
    words = [said(t.name, {"token": i}, text) for t, i, text in zip(o.topics, (0, 3, 1, 2), "abcd", strict=True)]
    m = Material(words, (), o, Nulls(), judge, 0, None, FAST, None)
    assert Hearing(m, 0).rivals() == (2, 3)
    assert not Hearing(m, 0).siblings_active[s.tokens == 0].any()
    assert Hearing(m, 2).rivals() == (0, 1, 3)
    repeated = [*words[:3], replace(words[0], subject=o.topics[3].name)]
    m = Material(repeated, (), o, Nulls(), judge, 0, None, FAST, None)
    assert Hearing(m, 0).rivals() == (2,)  # the fourth says the same as the first


def test_topics_that_are_alike_in_what_a_score_looks_at_are_no_rivals_in_it() -> None:
    rng = np.random.default_rng(6)
    s = sample(rng)
    acts = on_tokens(s, range(4))
    damage = np.stack([rng.random(160)] * 3 + [rng.random(160)])  # the first three are missed on the same examples
    o = observed(s, acts, damage)
    found = scored(explanations(o), o, claims=["trigger", "damage"])
    assert "3 descriptions" in found[0]["trigger"].null
    assert "1 description of" in found[0]["damage"].null
    assert "3 descriptions" in found[3]["damage"].null
    near = np.where(np.arange(24)[None, :] == s.asked[:, None] - 1, 1.0, 0.0)
    last = np.where(np.arange(24)[None, :] == s.asked[:, None], 1.0, 0.0)
    some = rng.random(160)[:, None] < 0.5
    o = observed(s, np.stack([near * some, last * some, *acts[:2]]))  # other places, the same snippets
    found = scored(explanations(o), o, claims=["trigger", "detection"])
    assert "3 descriptions" in found[0]["trigger"].null
    assert "2 descriptions" in found[0]["detection"].null


def test_activity_below_the_reference_is_activity() -> None:
    o, nulls = world(seed=7)
    down = replace(o, activity=-o.activity)
    right = scored(explanations(o), down, nulls, lambda e, s: -judge(e, s))
    assert {(f[c].value, f[c].verdict) for f in right for c in ("trigger", "detection", "fuzzing")} == {(1.0, HOLDS)}
    wrong = scored(explanations(o), down, nulls)
    assert max(f["trigger"].value for f in wrong) == 0.0  # what is expected up goes down


# -- laws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "f", [lambda x: x**3, np.exp, lambda x: 5 * x - 40, np.arctan], ids=["cube", "exp", "line", "atan"]
)
def test_ranks_alone_decide_trigger(f: Any) -> None:
    o, _ = world(seed=8, noise=0.6)
    noisy = {e.subject: o.activity[k] for k, e in enumerate(explanations(o))}

    def guess(e: Explanation, s: Sample) -> np.ndarray:
        rng = np.random.default_rng(0)
        return np.nan_to_num(noisy[e.subject]) + rng.normal(0, 0.7, (len(s), 24))

    plain = scored(explanations(o), o, by=guess, claims=["trigger"])
    mapped = scored(explanations(o), o, by=lambda e, s: f(guess(e, s)), claims=["trigger"])
    values = [x["trigger"].value for x in plain]
    assert [x["trigger"].value for x in mapped] == pytest.approx(values)
    assert 0.6 < min(values) < max(values) < 0.99


def test_simulation_and_damage_do_not_care_about_scale() -> None:
    o, _ = world(seed=9, noise=0.5)
    plain, scaled = (
        scored(explanations(o), o, by=lambda e, s, c=c: c * judge(e, s), claims=["simulation", "damage"])
        for c in (1.0, 1e-4)
    )
    for a, b in zip(plain, scaled, strict=True):
        assert [x.value for x in a.values()] == pytest.approx([x.value for x in b.values()])


def test_simulation_and_damage_are_plain_correlations() -> None:
    o, nulls = world(seed=10, noise=0.5)
    found = scored(explanations(o), o, nulls, claims=["simulation", "damage"])
    counted = o.sample.counted
    for k, f in enumerate(found):
        e = judge(explanations(o)[k], o.sample)
        assert f["simulation"].value == pytest.approx(np.corrcoef(e[counted], o.activity[k][counted])[0, 1])
        others = [np.corrcoef(judge(x, o.sample)[counted], o.activity[k][counted])[0, 1] for x in explanations(o)]
        mean = np.mean([r for j, r in enumerate(others) if j != k])
        assert f["simulation"].details["nulls"]["descriptions"]["value"] == pytest.approx(mean)
        parts = [np.corrcoef(e[counted], p.activity[j][counted])[0, 1] for p in nulls.parts for j in range(K)]
        assert f["simulation"].details["nulls"]["random parts"]["value"] == pytest.approx(np.mean(parts))
        at = np.arange(24)[None, :]
        near = (at <= o.sample.asked[:, None]) & (at > o.sample.asked[:, None] - 8)
        assert f["damage"].value == pytest.approx(spearmanr((e * near).sum(1), o.damage[k])[0])


def test_an_effect_that_is_said_takes_the_place_of_activity() -> None:
    o, _ = world(seed=11)
    at_end = (o.sample.tokens == 3)[np.arange(160), o.sample.asked] * 1.0  # type: ignore[index]
    o = replace(o, damage=np.stack([at_end + 0.0] * K))
    plain = explanations(o)[0]
    told = replace(plain, details={"effect": {"token": 3}})
    a, b = (scored([e], o, claims=["damage"])[0]["damage"] for e in (plain, told))
    assert (a.details["said"], b.details["said"]) == ("activity", "effect")
    assert (b.value, b.verdict) == (pytest.approx(1.0), HOLDS)
    assert abs(a.value) < 0.3


@pytest.mark.parametrize("claim", OF_TEXT)
def test_same_seed_same_evidence_whatever_else_is_scored(claim: str) -> None:
    o, nulls = world(seed=12, noise=0.8)

    def plain(found: list[dict[str, Evidence]]) -> list[Any]:
        return [replace(f[claim], seconds=0.0) for f in found]

    alone, all_of_them = scored(explanations(o), o, nulls, claims=[claim]), scored(explanations(o), o, nulls)
    assert repr(plain(alone)) == repr(plain(all_of_them))
    other = scored(explanations(o), o, nulls, seed=1, claims=[claim])
    assert repr([x.interval for x in plain(other)]) != repr([x.interval for x in plain(alone)]) or claim == "identified"


def test_examples_that_repeat_each_other_are_worth_one() -> None:
    o, nulls = world(seed=13, noise=1.5, n=80)

    def twice(x: Observed) -> Observed:
        s = x.sample.take(np.repeat(np.arange(80), 2))
        return Observed(s, x.topics, np.repeat(x.activity, 2, 1), x.unit, np.repeat(x.damage, 2, 1))

    doubled = Nulls(tuple(map(twice, nulls.parts)), tuple(map(twice, nulls.weights)))
    once = scored(explanations(o), o, nulls)
    again = scored(explanations(o), twice(o), doubled, clusters=np.repeat(np.arange(80), 2))
    for a, b in zip(once, again, strict=True):
        for claim in OF_TEXT:
            assert a[claim].n == b[claim].n, claim
        for claim in ("simulation", "damage"):
            assert a[claim].value == pytest.approx(b[claim].value)
            assert a[claim].interval == pytest.approx(b[claim].interval, abs=1e-9)


# -- what is missing -------------------------------------------------------------------------------------------------


def test_what_the_judge_cannot_say_is_left_out_and_counted() -> None:
    o, nulls = world(seed=14)

    def silent_on_half(e: Explanation, s: Sample) -> np.ndarray:
        out = judge(e, s)
        out[: len(s) // 2] = np.nan
        return out

    found = scored(explanations(o), o, nulls, silent_on_half)[0]
    for claim in ("trigger", "detection", "fuzzing"):
        e = found[claim]
        assert e.value == 1.0
        assert e.details["missing"] == e.details["questions"] - e.n > 20
    assert found["simulation"].value == pytest.approx(1.0)
    assert found["simulation"].details["not_judged"] == int(o.sample.counted[:80].sum())
    assert found["simulation"].details["examples"] == 80


def test_a_judge_that_says_nothing_leaves_everything_open() -> None:
    o, nulls = world(seed=15)
    words = [said(t.name, {}, f"text {t.name}") for t in o.topics]
    for f in scored(words, o, nulls):
        assert {e.verdict for e in f.values()} == {UNDECIDED}
        assert all(math.isnan(e.value) for e in f.values())


def test_a_dead_topic_and_one_that_is_always_active_leave_everything_open() -> None:
    s = sample(np.random.default_rng(16))
    o = observed(s, np.stack([np.zeros((160, 24)), np.ones((160, 24)), *on_tokens(s, [0])]))
    words = [said(t.name, {"token": k}) for k, t in enumerate(o.topics)]
    found = scored(words, o)
    for f in found[:2]:
        assert {e.verdict for e in f.values()} == {UNDECIDED}


def test_a_constant_expectation_is_no_correlation() -> None:
    o, nulls = world(seed=17)
    found = scored(explanations(o), o, nulls, lambda e, s: np.full(s.counted.shape, 3.7))
    for f in found:
        assert (f["simulation"].value, f["damage"].value) == (0.0, pytest.approx(0.0, abs=0.3))
        assert (f["trigger"].value, f["detection"].value, f["fuzzing"].value) == (0.5, 0.5, 0.5)
        assert HOLDS not in {e.verdict for e in f.values()}


def test_few_examples_decide_nothing() -> None:
    o, nulls = world(seed=18, n=30)
    for f in scored(explanations(o), o, nulls):
        assert {f[c].verdict for c in OF_TEXT if c != "identified"} == {UNDECIDED}
        assert f["identified"].verdict == UNDECIDED  # 30 examples give 7 picks


def test_what_does_not_fit_is_refused() -> None:
    o, nulls = world(seed=19)
    with pytest.raises(UsageError, match="of no topic that was observed"):
        scored([said("elsewhere:1", {"token": 1})], o)
    with pytest.raises(UsageError, match="shape"):
        scored(explanations(o), o, by=lambda e, s: np.zeros((3, 3)))
    with pytest.raises(UsageError, match="not observed on the same"):
        scored(explanations(o), o, world(n=50)[1])
    with pytest.raises(UsageError, match="7 cluster numbers for 160"):
        scored(explanations(o), o, nulls, clusters=np.arange(7))
    with pytest.raises(UsageError, match='Nearest: "trigger"'):
        scored(explanations(o), o, claims=["triger"])
    with pytest.raises(ValueError, match="extra"):
        ScoreSettings(bars=1)  # type: ignore[call-arg]


# -- judges that are asked -------------------------------------------------------------------------------------------


class Clerk:
    """A judge that answers questions from the words alone, as somebody who was shown them would."""

    def __init__(self, forgets: int = 0, mumbles: bool = False) -> None:
        self.calls: list[list[tuple[Explanation, Sequence[Question]]]] = []
        self.samples: list[int] = []
        self.forgets, self.mumbles = forgets, mumbles

    def __call__(self, e: Explanation, s: Sample) -> np.ndarray:
        self.samples.append(len(s))
        return judge(e, s)

    def answer(self, asks: Sequence[tuple[Explanation, Sequence[Question]]]) -> list[Mapping[str, float]]:
        self.calls.append(list(asks))
        return [
            {q.id: self._answer(e, q) for k, q in enumerate(questions) if k >= self.forgets} for e, questions in asks
        ]

    def _answer(self, e: Explanation, q: Question) -> float:
        if self.mumbles:
            return 7.0
        word = f"w{e.predicate['token']}"
        if q.kind == "detection":
            return float(word in q.snippet)
        return float(np.mean([q.snippet[k] == word for k in q.marks])) * 0.98 + 0.01


def test_a_judge_that_is_asked_gets_all_questions_of_a_kind_at_once_and_says_the_same() -> None:
    o, nulls = world(seed=20)
    clerk = Clerk()
    few = ScoreSettings(questions=40, rivals=2, examples=40, draws=499)
    found = scored(explanations(o), o, nulls, clerk, settings=few)
    assert len(clerk.calls) == 3
    for call in clerk.calls:
        assert len(call) == K * 3  # each explanation and two rivals on each topic's questions
        assert len({q.kind for _, questions in call for q in questions}) == 1
        assert {len(questions) for _, questions in call} == {40}
    assert clerk.samples == [40] * K
    for f in found:
        assert [f[c].value for c in OF_TEXT] == pytest.approx([1.0] * 6)
        assert {f[c].verdict for c in OF_TEXT} == {HOLDS}
        assert (f["trigger"].n, f["trigger"].details["rivals"]) == (40, 2)
        assert f["simulation"].details["examples"] == 40


def test_the_same_questions_carry_the_same_ids_and_no_answer() -> None:
    o, nulls = world(seed=21)
    a, b = Clerk(), Clerk()
    for clerk in (a, b):
        scored(explanations(o), o, nulls, clerk)
    questions = [[q for call in c.calls for _, some in call for q in some] for c in (a, b)]
    assert questions[0] == questions[1]
    for q in {x.id: x for x in questions[0]}.values():
        start = q.start
        assert q.snippet == tuple(f"w{t}" for t in o.sample.tokens[q.example, start : q.stop])  # type: ignore[index]
        assert len(q.context) == start
        assert all(start <= m < q.stop <= o.sample.asked[q.example] + 1 for m in q.marked)
    by_content = {(q.kind, q.example, q.start, q.stop, q.marked, q.side) for q in questions[0]}
    assert len(by_content) == len({q.id for q in questions[0]})


def test_lost_answers_are_left_out_and_counted_never_taken_for_no() -> None:
    o, nulls = world(seed=22)
    found = scored(explanations(o), o, nulls, Clerk(forgets=30))[0]
    for claim in ("trigger", "detection", "fuzzing"):
        assert found[claim].details["missing"] == 30
        assert found[claim].value == 1.0
    found = scored(explanations(o), o, nulls, Clerk(mumbles=True))[0]  # 7 is no probability
    assert found["trigger"].verdict == UNDECIDED
    assert found["trigger"].details["missing"] == found["trigger"].details["questions"]


def test_executed_answers_grow_with_expected_activity_and_mean_yes_above_the_threshold() -> None:
    s = sample(np.random.default_rng(23), n=1)
    e = np.full((1, 24), 0.0)
    e[0, :5] = [-1.0, 0.29, 0.31, 1.0, 0.5]
    for side in (1, -1):
        clerk = Executed(lambda _e, _s, side=side: side * e, s)
        ask = [Question("trigger", f"{k}", 0, 0, 8, (k,), side, (), ()) for k in range(5)]
        ask += [
            Question("detection", "any", 0, 0, 5, (), side, (), ()),
            Question("detection", "few", 0, 0, 2, (), side, (), ()),
            Question("fuzzing", "mean", 0, 0, 8, (1, 2, 4), side, (), ()),
        ]
        p = clerk.answer([(said("x", {}), ask)])[0]
        ranks = rankdata([p[str(k)] for k in range(5)]).tolist()
        assert ranks == [1, 2, 3, 5, 4]
        assert [p[str(k)] > 0.5 for k in range(5)] == [False, False, True, True, True]
        assert p["any"] == p["3"]
        assert p["few"] == p["1"] < 0.5 < p["mean"]


# -- vectors -----------------------------------------------------------------------------------------------------------


def test_examples_of_named_features_are_scored_without_places() -> None:
    rng = np.random.default_rng(24)
    x = rng.normal(size=(160, 4))
    s = Sample("verify", asked=np.zeros(160, dtype=np.int64), features=x, names=("a", "b", "c", "d"))
    o = Observed(s, topics(4), np.maximum(0, x.T), "made up", np.maximum(0, x.T))
    words = [said(t.name, {"feature": k}) for k, t in enumerate(o.topics)]

    def by_feature(e: Explanation, s: Sample) -> np.ndarray:
        assert s.features is not None
        return np.maximum(0, s.features[:, e.predicate["feature"]])

    for f in scored(words, o, by=by_feature):
        assert set(f) == {"trigger", "simulation", "damage", "identified"}
        assert {e.verdict for e in f.values()} == {HOLDS}
        assert [f[c].value for c in ("trigger", "simulation", "damage")] == pytest.approx([1.0] * 3)
    clerk = Executed(by_feature, s)
    asked: list[Question] = []

    class Listener:
        def __call__(self, e: Explanation, s: Sample) -> np.ndarray:
            return by_feature(e, s)

        def answer(self, asks: Any) -> Any:
            asked.extend(q for _, some in asks for q in some)
            return clerk.answer(asks)

    scored(words, o, by=Listener(), claims=["trigger"])
    assert asked[0].snippet[0].startswith("a=")
    assert {(q.marked, q.context) for q in asked} == {((), ())}


# -- p-values and power ----------------------------------------------------------------------------------------------


def uniform(p: Sequence[float], *, exact: bool) -> None:
    """Refuses p-values that are too small for a uniform p (and, where exact, that KS tells from one)."""
    values = np.array(p)
    for alpha in (0.05, 0.2, 0.5):
        assert (values <= alpha).sum() <= binom.ppf(0.9999, len(values), alpha), f"p <= {alpha} too often"
    if exact:
        assert kstest(values, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("claim", ["trigger", "detection", "fuzzing", "simulation", "damage"])
def test_p_of_explanations_that_mean_nothing_is_uniform(claim: str) -> None:
    p: dict[str, list[float]] = {"chance": [], "descriptions": [], "random parts": [], "all": []}
    held = 0
    for seed in range(30):
        rng = np.random.default_rng([seed, 77])
        s = sample(rng, n=100, vocabulary=4)
        o, *parts = (observed(s, rng.normal(size=(5, 100, 24)), rng.normal(size=(5, 100)), sites=5) for _ in range(20))
        nulls = Nulls(parts=tuple(parts))
        words = [said(t.name, {"noise": int(rng.integers(2**31))}) for t in o.topics]
        for f in scored(words, o, nulls, claims=[claim], seed=seed, settings=ScoreSettings(draws=199)):
            e = f[claim]
            held += e.verdict == HOLDS
            p["all"].append(e.p)
            for name, null in e.details["nulls"].items():
                p[name].append(null["p"])
    assert held <= binom.ppf(0.999, 150, 0.05 * 0.5)  # p is small in one of twenty, and the bar is to be met
    for name, values in p.items():
        assert len(values) == 150
        uniform(values, exact=name in ("chance", "descriptions") and claim in ("trigger", "simulation", "damage"))


def test_a_planted_signal_is_found_the_more_surely_the_less_noise() -> None:
    share = []
    for noise in (0.3, 1.0, 6.0):
        found = []
        for seed in range(3):
            o, nulls = world(seed=100 + seed, noise=noise)
            found += [
                f["simulation"].verdict == HOLDS for f in scored(explanations(o), o, nulls, claims=["simulation"])
            ]
        share.append(np.mean(found))
    assert share[0] == 1.0
    assert share == sorted(share, reverse=True)
    assert share[2] == 0.0  # an explanation of 3 % of the variance is real, but below the bar


def test_the_interval_covers_the_true_auc() -> None:
    """Activity that the expectation foretells by half: AUC = Phi(d / sqrt 2) with d the distance of the two normals."""
    from scipy.stats import norm

    d, hits, worlds = 1.0, 0, 60
    for seed in range(worlds):
        rng = np.random.default_rng([seed, 5])
        s = Sample("verify", asked=np.zeros(120, dtype=np.int64), features=np.zeros((120, 1)), names=("x",))
        y = (rng.random(120) < 0.5) * 1.0
        o = Observed(s, topics(1), y[None], "made up", y[None])
        x = rng.normal(d * y, 1)
        e = scored([said("s0:0", {"x": 1})], o, by=lambda _e, _s, x=x: x, claims=["trigger"], seed=seed)[0]["trigger"]
        hits += e.interval[0] <= norm.cdf(d / math.sqrt(2)) <= e.interval[1]
    assert hits >= binom.ppf(0.001, worlds, 0.92)


def swapped(rng: np.random.Generator, fixed: bool, shift: Any) -> Evidence:
    """The interchange evidence of a feature: `shift` makes of its change what the output does."""
    x = rng.choice([0.0, 1.0], 200)
    s = Sample("verify", asked=np.zeros(200, dtype=np.int64), features=x[:, None], names=("x",))
    base, source = np.arange(200), rng.permutation(200)
    o = Observed(s, topics(1), x[None], "made up", x[None])
    runs = Interchanges(o.topics, base, source, shift(x[source] - x[base])[None], fixed)
    some = [said("s0:0", {"x": 1})]
    (found,) = scored(some, o, by=lambda _e, s: s.features[:, 0], claims=["interchange"], interchanges=runs)
    return found["interchange"]


def test_where_the_sign_means_something_the_output_has_to_move_to_the_right_side() -> None:
    rng = np.random.default_rng(27)
    assert swapped(rng, True, lambda d: 3 * d).value == 1.0
    assert swapped(rng, True, lambda d: -3 * d).value == 1.0  # a part that works against
    assert swapped(rng, True, lambda d: 3 * np.abs(d)).value == pytest.approx(0.75, abs=0.06)  # right half the time
    assert swapped(rng, False, lambda d: 3 * np.abs(d)).value == 1.0
    assert swapped(rng, False, lambda d: np.zeros(len(d))).value == 0.5
    small = swapped(rng, False, lambda d: np.where(d == 0, 0.28, 1.0))
    large = swapped(rng, False, lambda d: np.where(d == 0, 0.32, 1.0))  # "same" pairs move as well
    assert (small.value, large.value) == (1.0, 0.5)


@pytest.mark.parametrize("fixed", [True, False])
def test_patches_that_have_nothing_to_do_with_the_variable_seldom_pass(fixed: bool) -> None:
    rng = np.random.default_rng(28)
    found = [swapped(rng, fixed, lambda d: rng.choice([-1.0, 0.0, 1.0], len(d))) for _ in range(80)]
    assert HOLDS not in {e.verdict for e in found}
    uniform([e.p for e in found], exact=False)


# -- many explanations -----------------------------------------------------------------------------------------------


def test_support_corrects_for_the_number_of_explanations() -> None:
    def with_p(p: float, verdict: str = HOLDS) -> Explanation:
        e = Evidence("trigger", verdict, "", 0.9, "AUC", (0.8, 1.0), "", 0.5, p, 99, "verify", 0, 0.0)
        return replace(said("x", {}), evidence=(e,))

    some = [with_p(0.001), with_p(0.02), with_p(0.04), with_p(0.001, FAILS), with_p(float("nan"), UNDECIDED)]
    s = support(some)
    assert (s.holds, s.of, s.share, s.least_p) == (3, 5, 0.6, 0.001)
    assert s.corrected == 1  # 0.02 * 3 and 0.04 * 2 are above 0.05
    assert s.interval == stats.wilson(3, 5)
    nobody = support([])
    assert (nobody.of, nobody.corrected) == (0, 0)
    assert math.isnan(nobody.share)


def test_older_evidence_of_other_claims_is_kept_behind() -> None:
    o, nulls = world(seed=25)
    old = Evidence("runs", HOLDS, "", 1.0, "", (1.0, 1.0), "", 0.0, 0.01, 9, "verify", 0, 0.0)
    stale = replace(old, claim="trigger")
    e = score([replace(explanations(o)[0], evidence=(stale, old))], o, nulls, judge, claims=["simulation", "trigger"])[
        0
    ]
    assert [x.claim for x in e.evidence] == ["trigger", "simulation", "runs"]
    assert e.supported


# -- contract ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contract() -> tuple[list[dict[str, Evidence]], list[dict[str, Evidence]]]:
    """All scores of the true explanations, and of nonsense: topics that are active on the word that is asked alone."""
    rng = np.random.default_rng(26)
    s = replace(sample(rng, n=200, vocabulary=5), asked=np.full(200, 20))
    assert s.tokens is not None
    at_end = np.arange(24)[None, :] == s.asked[:, None]
    o = observed(s, on_tokens(s, range(4)) * at_end)
    parts, weights = (
        [observed(s, rng.normal(size=(4, 200, 24)), rng.normal(size=(4, 200))) for _ in range(19)] for _ in "ab"
    )
    last, base, source = s.tokens[np.arange(200), s.asked], np.arange(200), rng.permutation(200)
    differs = np.stack([(last[base] == k) != (last[source] == k) for k in range(4)])
    runs = Interchanges(o.topics, base, source, differs * rng.uniform(1.0, 2.0, 200))

    def on_the_end(e: Explanation, s: Sample) -> np.ndarray:
        return judge(e, s) * (np.arange(24)[None, :] == s.asked[:, None])

    nonsense = [said(t.name, {"noise": int(rng.integers(2**31))}) for t in o.topics]
    nulls = Nulls(tuple(parts), tuple(weights))
    return (
        scored(explanations(o), o, nulls, on_the_end, interchanges=runs),
        scored(nonsense, o, nulls, on_the_end, interchanges=runs),
    )


@pytest.mark.parametrize("claim", SCORES)
def test_every_score_keeps_the_contract(
    claim: str, contract: tuple[list[dict[str, Evidence]], list[dict[str, Evidence]]]
) -> None:
    good, nonsense = contract
    for f in (*good, *nonsense):
        e = f[claim]
        assert e.claim == claim
        assert e.split == "verify"
        assert e.sentence.endswith(".")
        assert 0 <= e.p <= 1
        assert e.interval[0] <= e.value <= e.interval[1] + 1e-12
        assert e.null
        assert math.isfinite(e.null_value)
        json.dumps(dict(e.details), allow_nan=False)
    assert HOLDS not in {f[claim].verdict for f in nonsense}
    told = SCORES[claim].__doc__ or ""
    assert "holds" in told or "as in" in told


def test_true_explanations_hold_in_every_score(
    contract: tuple[list[dict[str, Evidence]], list[dict[str, Evidence]]],
) -> None:
    for f in contract[0]:
        assert {c: f[c].verdict for c in SCORES if c != "identified"} == dict.fromkeys(f.keys() - {"identified"}, HOLDS)
        assert [f[c].value for c in SCORES if c not in ("identified", "fuzzing")] == pytest.approx([1.0] * 5)
