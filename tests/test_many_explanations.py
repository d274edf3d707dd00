"""What is said of many explanations at once: the share of false ones, shared draws, and a fair score of damage."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from openwork import stats
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Evidence, Explanation
from openwork.errors import UsageError
from openwork.explain.words.measure import measure
from openwork.explain.words.scores import Interchanges, Nulls, ScoreSettings, levels, score, support
from openwork.explain.words.scoring import Material
from openwork.explain.words.topic import Observed, Sample, Topic, size_of
from openwork.explain.words.topics import topics_of
from openwork.planted import Case, make_case
from scored_worlds import judge, observed, on_tokens, said, sample, topics, world

# Table 1 of Benjamini & Hochberg (1995): fifteen hypotheses of one study of thrombolysis
FIFTEEN = [
    0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0,
]  # fmt: skip


# -- the share of false ones -----------------------------------------------------------------------------------------


def stepped_up(p: np.ndarray, level: float, factor: float = 1.0) -> np.ndarray:
    """Benjamini and Hochberg's procedure as stated: the k smallest, k the largest with p_(k) <= k a / m."""
    order = np.argsort(p, kind="stable")
    fits = [k for k in range(1, len(p) + 1) if p[order[k - 1]] <= k * level / (len(p) * factor) * (1 + 1e-12)]
    out = np.zeros(len(p), dtype=bool)
    out[order[: max(fits, default=0)]] = True
    return out


def test_q_values_by_hand_and_on_the_example_of_the_paper() -> None:
    assert stats.false_discovery([0.01, 0.02, 0.03, 0.04, 0.5]) == pytest.approx([0.05, 0.05, 0.05, 0.05, 0.5])
    assert stats.false_discovery([0.04, 0.001, 0.6]) == pytest.approx([0.06, 0.003, 0.6])
    assert stats.false_discovery([0.04, 0.001, 0.6], any_dependence=True) == pytest.approx([0.11, 0.0055, 1.0])
    assert stats.false_discovery([]).shape == (0,)
    q = stats.false_discovery(FIFTEEN)
    assert (q <= 0.05).tolist() == [True] * 4 + [False] * 11, "the paper keeps four, Bonferroni's and Holm's way three"
    assert (stats.holm(FIFTEEN) <= 0.05).sum() == 3


@pytest.mark.parametrize("any_dependence", [False, True])
def test_a_q_value_is_the_least_level_at_which_the_procedure_keeps_it(any_dependence: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        m = int(rng.integers(1, 12))
        p = np.round(rng.random(m) ** rng.integers(1, 4), 2)  # with ties
        factor = sum(1 / i for i in range(1, m + 1)) if any_dependence else 1.0
        q = stats.false_discovery(p, any_dependence)
        candidates = sorted({min(1.0, m * factor * x / k) for x in p for k in range(1, m + 1)} | {1.0})
        for i in range(m):
            kept_at = [a for a in candidates if stepped_up(p, a, factor)[i]]
            assert q[i] == pytest.approx(min(kept_at, default=1.0))


def test_of_what_is_kept_no_larger_share_is_false_though_all_share_their_draws() -> None:
    """20 of 25 claims are false, and all are ranked among the same 99 draws, as topics of one size are."""
    rng = np.random.default_rng(1)
    kept, single, none_false = [], [], []
    for _ in range(600):
        draws, values = rng.normal(size=99), rng.normal(size=25)
        values[:5] += 4.0
        p = np.array([stats.rank_p(v, draws) for v in values])
        false = np.arange(25) >= 5
        for found, good in ((kept, stats.false_discovery(p) <= 0.05), (single, p <= 0.05)):
            found.append(false[good].mean() if good.any() else 0.0)
        none_false.append(not (false & (stats.holm(p) <= 0.05)).any())
    assert np.mean(kept) <= 0.05 < 0.13 < np.mean(single), "each judged by itself, many of those kept are false"
    assert np.mean(none_false) >= 0.95


def with_p(p: float, verdict: str = HOLDS) -> Explanation:
    e = Evidence("trigger", verdict, "", 0.9, "AUC", (0.8, 1.0), "", 0.5, p, 99, "verify", 0, 0.0)
    return replace(said("x", {}), evidence=(e,))


def test_what_misses_its_bar_makes_no_room_for_others() -> None:
    some = [with_p(0.01), with_p(0.04), with_p(0.001, FAILS), with_p(0.2, FAILS), with_p(math.nan, UNDECIDED)]
    at = levels([said("y", {}), *some])
    assert list(at) == [1, 2, 3, 4, 5], "one that was not scored has no level"
    assert [x.p for x in at.values()] == [0.01, 0.04, 1.0, 0.2, 1.0]
    assert [x.q for x in at.values()] == pytest.approx([0.05, 0.1, 1.0, 1 / 3, 1.0])
    s = support(some)
    assert (s.holds, s.of, s.kept, s.kept_any, s.corrected, s.least_p) == (2, 5, 1, 0, 1, 0.01)
    harmonic = 1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5
    assert s.false_share == pytest.approx(5 * 0.04 / 2) and s.false_share_any == pytest.approx(0.1 * harmonic)
    nothing = support([with_p(0.5, FAILS)])
    assert (nothing.holds, nothing.kept) == (0, 0) and math.isnan(nothing.false_share)
    assert levels([]) == {} and math.isnan(support([]).false_share)


# -- draws -----------------------------------------------------------------------------------------------------------


def material(o: Observed, nulls: Nulls) -> Material:
    return Material([said(o.topics[0].name, {"token": 0})], (), o, nulls, judge, 0, None, ScoreSettings(), None)


def test_random_parts_stand_in_for_their_kind_and_size_and_models_for_their_own_topic() -> None:
    rng = np.random.default_rng(2)
    s = sample(rng)
    kinds = (
        Topic("a:0", "node", (("a", 0),)), Topic("a:1", "node", (("a", 1),)), Topic("b:0", "node", (("b", 0),)),
        Topic("m", "module", (("a", 0), ("b", 0))), Topic("c", "circuit", (("a", 0), ("b", 0))),
    )  # fmt: skip
    o = replace(observed(s, on_tokens(s, range(5))), topics=kinds)
    drawn = tuple(replace(t, name=f"{t.name}, drawn {r}") for r in range(3) for t in kinds if t.name != "a:1")
    parts = replace(observed(s, on_tokens(s, [6] * 12)), topics=drawn)
    m = material(o, Nulls((parts,), (o, o)))
    for k, t in enumerate(kinds):
        found = m.stand_ins("random parts", k)
        assert [r for r, _ in found] == [0, 0, 0] and {size_of(drawn[j]) for _, j in found} == {size_of(t)}
        assert m.stand_ins("random weights", k) == [(0, k), (1, k)]
    assert m.stand_ins("random parts", 0) == m.stand_ins("random parts", 1) != m.stand_ins("random parts", 3)
    few = replace(observed(s, on_tokens(s, [6])), topics=drawn[:1])
    with pytest.raises(UsageError, match="no random part is a node with as many nodes at every site as b:0"):
        material(o, Nulls((few,)))


def test_p_against_random_models_is_no_smaller_than_the_models_allow_though_their_nodes_agree() -> None:
    """In every random model all nodes do the same: six nodes of it are one draw, and p is one of 1/20, 2/20, ..."""
    rng = np.random.default_rng(3)
    o, nulls = world(seed=3)
    alike = tuple(replace(o, activity=np.repeat(x.activity[:1], len(o.topics), 0)) for x in nulls.weights)
    wrong = [said(t.name, {"noise": int(rng.integers(1 << 30))}) for t in o.topics]
    found = score(wrong, o, Nulls(weights=alike), judge, claims=["trigger"], settings=ScoreSettings(draws=199))
    p = [e.evidence[0].details["nulls"]["random weights"]["p"] * (1 + len(alike)) for e in found]
    assert p == pytest.approx([round(x) for x in p]) and min(p) >= 1


# -- damage ----------------------------------------------------------------------------------------------------------


def test_a_description_of_what_comes_after_is_not_held_against_a_perfect_one_but_against_a_poor_one() -> None:
    """Topic 0 is lost as much as it is active times how close the decision is; topic 1 is active just so much."""
    rng = np.random.default_rng(4)
    n = 200
    active, close = rng.random(n), rng.random(n)
    rough = active + 2.0 * rng.random(n)
    acts = np.stack([active, active * close, rng.random(n), rng.random(n)])
    s = Sample("verify", asked=np.zeros(n, dtype=np.int64), features=np.stack([active, rough], 1), names=("x", "y"))
    o = Observed(s, topics(4), acts, "", np.stack([active * close, rng.random(n), acts[2], acts[3]]))
    expects = {"perfect": active, "rough": rough, "after": acts[1], "third": acts[2], "fourth": acts[3]}

    def by_name(e: Explanation, _s: Sample) -> np.ndarray:
        return expects[e.predicate["as"]]

    for name, verdict, counted, beyond in (("perfect", HOLDS, 0.0, 1), ("rough", FAILS, 0.0, 1)):
        words = [said(t.name, {"as": x}) for t, x in zip(o.topics, (name, "after", "third", "fourth"), strict=True)]
        (first, *_) = score(words, o, Nulls(), by_name, claims=["damage"], settings=ScoreSettings(draws=499))
        (e,) = first.evidence
        assert (e.verdict, e.details["beyond_reach"]) == (verdict, beyond), e.sentence
        assert e.details["nulls"]["descriptions"]["as_good"] == counted
        assert e.details["by_measured_activity"] == pytest.approx(stats.spearman(active, active * close))
    between = 0.7 * active + 0.3 * rough  # a rival that foretells it better than the rough one, and within reach
    expects["third"] = between
    words = [said(t.name, {"as": x}) for t, x in zip(o.topics, ("rough", "after", "third", "fourth"), strict=True)]
    (first, *_) = score(words, o, Nulls(), by_name, claims=["damage"], settings=ScoreSettings(draws=499))
    (e,) = first.evidence
    assert (e.verdict, e.details["nulls"]["descriptions"]["who"]) == (FAILS, [o.topics[2].name])
    effect = replace(words[0], details={"effect": {"as": "rough"}})
    (first, *_) = score([effect, *words[1:]], o, Nulls(), by_name, claims=["damage"])
    assert "beyond_reach" not in first.evidence[0].details, "who speaks of the effect is held against whoever knows it"


# -- interchange -----------------------------------------------------------------------------------------------------


def test_where_all_examples_begin_alike_their_variable_differs_all_the_same() -> None:
    """Most active on the first token, which is the same everywhere; after it 0 or 1, and that moves the output."""
    rng = np.random.default_rng(5)
    n, width = 120, 6
    s = Sample("verify", ("a",), np.zeros((n, width), dtype=np.int64), np.full(n, width - 1))
    bit = rng.integers(0, 2, n)
    acts = np.zeros((1, n, width))
    acts[0, :, 0], acts[0, :, -1] = 10.0, bit
    o = Observed(s, topics(1), acts, "", np.zeros((1, n)))
    base, source = np.arange(n), rng.permutation(n)
    shift = 3.0 * (bit[source] - bit[base])

    def evidence(shift: np.ndarray) -> Evidence:
        runs = Interchanges(o.topics, base, source, shift[None], fixed=True)
        words = [said(o.topics[0].name, {})]
        (e,) = score(words, o, Nulls(), lambda _e, _s: acts[0], claims=["interchange"], interchanges=runs)
        return e.evidence[0]

    right = evidence(shift)
    assert (right.value, right.verdict) == (1.0, HOLDS)
    assert right.details["differ"] == int((bit[source] != bit[base]).sum()) > 0
    assert evidence(rng.permutation(shift)).verdict == FAILS


# -- planted networks ------------------------------------------------------------------------------------------------


def planted_nodes(case: Case) -> Observed:
    """What the varying nodes of the true circuit do on the verify split, inside it."""
    split = case.task.split("verify")
    text = tuple(map(str, range(int(split.inputs[0].max()) + 1)))
    s = Sample("verify", text, split.inputs[0].numpy(), split.inputs[1].numpy())
    nodes = [t for t in topics_of(case.truth, "c") if t.kind == "node"]
    o = measure(case.model, case.truth, case.reference, nodes, split, s).observed
    keep = [k for k in range(len(nodes)) if np.nanmax(o.activity[k]) - np.nanmin(o.activity[k]) > 1e-6]
    return Observed(s, tuple(nodes[k] for k in keep), o.activity[keep], "", o.damage[keep])


def test_on_a_planted_network_the_truth_is_not_beaten_by_what_comes_after_and_other_truths_do_not_pass() -> None:
    case = make_case("hand_induction_4x9", 0)
    o = planted_nodes(case)
    clusters = stats.pair_clusters(case.task.split("verify").pair)

    def of_node(e: Explanation, _s: Sample) -> np.ndarray:
        return o.activity[e.predicate["of"]].astype(float)

    def verdicts(of: list[int]) -> list[Evidence]:
        words = [said(t.name, {"of": k}) for t, k in zip(o.topics, of, strict=True)]
        found = score(
            words, o, Nulls(), of_node, claims=["damage"], clusters=clusters, settings=ScoreSettings(draws=499)
        )
        return [e.evidence[0] for e in found]

    true = verdicts(list(range(len(o.topics))))
    beaten = [e for e in true if e.value >= e.details["bar"] and e.details.get("beyond_reach", 0) > 0.05 * len(true)]
    assert len(beaten) >= 3, "descriptions of later nodes foretell the damage of earlier ones better than these do"
    assert sum(e.verdict == HOLDS for e in beaten) >= 3
    dealt = torch.randperm(len(o.topics), generator=torch.Generator().manual_seed(0)).tolist()
    flat = np.nan_to_num(o.activity).reshape(len(o.topics), -1)
    away = [k for k, j in enumerate(dealt) if abs(np.corrcoef(flat[k], flat[j])[0, 1]) < 0.5]
    wrong = verdicts(dealt)
    assert len(away) > 20 and sum(wrong[k].verdict == HOLDS for k in away) <= 0.05 * len(away)
