"""The search for rules against functions that are known, its worth by hand, and the criterion of a named variable."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
from scipy.stats import spearmanr

from openwork.explain.words import predicates as p
from openwork.explain.words.candidates import candidates
from openwork.explain.words.rules import Rules, RulesJudge, sentence, spread
from openwork.explain.words.search import FLOOR, Found, Halves
from openwork.explain.words.topic import Dossier, Observed, Sample, Topic
from openwork.planted.names import agreement, alike, match, named, varies

LETTERS = ("a", "b", "c", "d")


def bits_sample(n: int, width: int, seed: int) -> Sample:
    x = np.where(np.random.default_rng(seed).random((n, width)) < 0.5, 1.0, -1.0)
    return Sample("explain", asked=np.zeros(n, dtype=np.int64), features=x, names=tuple(f"x{i}" for i in range(width)))


def letters_sample(n: int, length: int, seed: int, words: tuple[str, ...] = LETTERS) -> Sample:
    tokens = np.random.default_rng(seed).integers(0, len(words), (n, length))
    return Sample("explain", words, tokens, np.full(n, length - 1))


def dossier(s: Sample, activity: np.ndarray) -> Dossier:
    topic = Topic("site:0", "node", (("site", 0),))
    return Dossier(
        {}, Observed(s, (topic,), np.where(s.counted, activity, np.nan)[None], "", np.zeros((1, len(s)))), topic
    )


def expects(s: Sample, other: Sample, activity: np.ndarray) -> np.ndarray:
    """What the rule for an activity on one sample expects on the other."""
    return RulesJudge()(Rules()(dossier(s, activity)), other)


# -- known functions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", list(itertools.product((False, True), repeat=2)), ids=str)
@pytest.mark.parametrize("way", ["and", "or", "xor"])
def test_every_gate_of_two_inputs_is_found(way: str, turned: tuple[bool, bool]) -> None:
    def gate(s: Sample) -> np.ndarray:
        assert s.features is not None
        a, b = ((s.features[:, i] > 0) != t for i, t in zip((1, 4), turned, strict=True))
        return {"and": a & b, "or": a | b, "xor": a != b}[way] * 1.5 - 0.25

    s, other = bits_sample(120, 8, 0), bits_sample(400, 8, 1)
    np.testing.assert_allclose(expects(s, other, gate(s)), gate(other), atol=1e-3)


@pytest.mark.parametrize(
    "name", ["at least 3 of 5", "majority of 3, how far", "exactly 2 of 4", "parity of 3", "(x0 and x1) or (x2 and x3)"]
)
def test_functions_of_several_inputs_are_found(name: str) -> None:
    def value(s: Sample) -> np.ndarray:
        assert s.features is not None
        x = s.features > 0
        return {
            "at least 3 of 5": x[:, :5].sum(1) >= 3,
            "majority of 3, how far": np.maximum(0, 2.0 * x[:, 2:5].sum(1) - 3),
            "exactly 2 of 4": x[:, 1:5].sum(1) == 2,
            "parity of 3": x[:, [0, 3, 5]].sum(1) % 2 == 1,
            "(x0 and x1) or (x2 and x3)": (x[:, 0] & x[:, 1]) | (x[:, 2] & x[:, 3]),
        }[name].astype(float)

    s, other = bits_sample(300, 8, 0), bits_sample(300, 8, 1)
    np.testing.assert_allclose(expects(s, other, value(s)), value(other), atol=1e-3)


SEQUENCES: dict[str, p.Node] = {
    "a set of words": p.TokenIs(words=("a", "c"), back=1),
    "a share": p.Share(words=("b",)),
    "a share of some": p.Share(words=("a",), among=("a", "d")),
    "what followed": p.Share(words=("c",), after_alike=True),
    "a share in a window": p.Share(words=("d",), last=3),
    "the first one again": p.Same(place=0),
    "brackets": p.Depth(open=("a",), close=("b",)),
    "a place and a word": p.All(of=(p.Between(of=p.Position(), low=2, high=5), p.TokenIs(words=("d",)))),
    "one thing early, another one late": p.Cases(
        when=p.AtLeast(of=p.Position(), value=4), then=p.TokenIs(words=("a",)), otherwise=p.Share(words=("b",))
    ),
    "the squared position": p.Levels(
        of=p.Position(), values=tuple(float(i) for i in range(8)), means=tuple(float(i * i) for i in range(8))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENCES)
def test_functions_of_sequences_are_found(name: str) -> None:
    s, other = letters_sample(120, 8, 0), letters_sample(200, 8, 1)
    activity = 3.0 * p.execute(SEQUENCES[name], s) + 1.0
    np.testing.assert_allclose(
        expects(s, other, activity), 3.0 * p.execute(SEQUENCES[name], other) + 1.0, atol=0.01, rtol=0.01
    )


def test_a_closing_quote_is_said_in_words() -> None:
    """The closing quote of a string opened by ( and a quote: tokens of a large language, at any place."""
    rng = np.random.default_rng(0)
    words = ("<s>", "\n", "x", "(", ")", ',"', '"', '("', "'", *(f"w{i}" for i in range(40)))
    rows = []
    for _ in range(300):
        row = [0]
        while len(row) < 24:
            quote = rng.choice(["'", '"'])
            inner = [int(rng.integers(9, 49)) for _ in range(rng.integers(1, 4))]
            opening = (
                [words.index('("')] if quote == '"' and rng.random() < 0.5 else [words.index("x"), words.index(quote)]
            )
            row += [*opening, *inner, words.index(quote), *([4] if opening == [7] else []), 2, 1]
        rows.append(row[:24])
    s = Sample("explain", words, np.array(rows), np.full(300, 23))
    rule = p.Innermost(of=('"',))
    said = Rules()(dossier(s, 0.1 + 2.0 * p.execute(rule, s)))
    assert said.predicate["of"] == p.plain(rule)
    assert said.text.startswith('Fires where it is just inside an open " (2.1 there, 0.1 elsewhere)')


def test_halves_that_come_in_turns_do_not_hide_a_kind_of_pair() -> None:
    """Pairs of two kinds alternate; what only every second pair shows is found."""
    x = np.full((160, 4), -1.0)
    x[np.arange(0, 160, 4), 1] = x[np.arange(1, 160, 4), 1] = 1.0  # in every second pair
    x[:, 2] = np.where(np.random.default_rng(0).random(160) < 0.5, 1.0, -1.0)
    s = Sample("explain", asked=np.zeros(160, dtype=np.int64), features=x, names=tuple("abcd"))
    np.testing.assert_allclose(expects(s, s, x[:, 1]), x[:, 1], atol=1e-3)


# -- worth, and what is said -----------------------------------------------------------------------------------------


def test_worth_is_bits_saved_on_the_other_half_less_the_length() -> None:
    s = bits_sample(200, 6, 3)
    assert s.features is not None
    activity = (s.features[:, 2] > 0) * 2.0 + np.random.default_rng(0).normal(size=200) * 0.5
    halves = Halves(candidates(s))
    assert not set(halves.fit) & set(halves.choose) and len(halves.fit) + len(halves.choose) == 200
    assert all((i ^ 1) in set(halves.choose) for i in halves.choose), "neighbours stay together"
    found = halves.search(activity)
    assert found is not None
    expected = p.execute(found.expression, s)[halves.choose]
    true, mean = activity[halves.choose], activity[halves.fit].mean()
    rest = ((true - expected) ** 2).sum() / ((true - mean) ** 2).sum()
    assert found.explains == pytest.approx(1 - rest)
    assert (
        found.worth == pytest.approx(halves.examples / 2 * math.log2((1 + FLOOR) / (rest + FLOOR)) - found.bits)
        and found.worth > 0
    )
    assert f"Explains {100 * found.explains:.0f} % of its variance." in sentence(found)
    assert "x2" in sentence(found)


def test_a_longer_rule_has_to_save_more() -> None:
    """Of two candidates with the same values the shorter stays; a second condition that helps little is left out."""
    s = bits_sample(200, 6, 3)
    assert s.features is not None
    weak = (s.features[:, 4] > 0) & (s.features[:, 5] > 0) & (s.features[:, 3] > 0)
    found = Halves(candidates(s)).search((s.features[:, 2] > 0) * 2.0 + 0.1 * weak + 0.3 * s.features[:, 0] * 0)
    assert found is not None and re.findall(r"x\d", sentence(found)) == ["x2"]


def test_a_rule_that_explains_little_is_not_called_one() -> None:
    s = bits_sample(2000, 6, 3)
    assert s.features is not None
    activity = 0.45 * s.features[:, 2] + np.random.default_rng(0).normal(size=2000)
    said = Rules()(dossier(s, activity))
    share = said.details["explains"]
    assert 0.05 < share < 0.3 and said.predicate
    assert said.text.startswith("No short rule fits: the best, ") and f"explains {100 * share:.0f} %" in said.text


def test_the_parts_of_a_sentence() -> None:
    on = p.TokenIs(words=("a",))
    for slope, base, begins in (
        (2.0, 0.1, "Fires where the token is"), (-2.0, -0.1, "Goes below zero where"),
        (-2.0, 2.1, "Fires except where"), (2.0, -2.1, "Goes below zero except where"),
    ):  # fmt: skip
        assert sentence(Found(p.Line(of=on, slope=slope, base=base), 9.0, 0.9, 9.0)).startswith(begins)
    assert sentence(Found(p.Line(of=p.Position(), slope=-1.0, base=0.0), 9.0, 0.9, 9.0)).startswith(
        "Falls with the position"
    )


def test_candidates_are_distinct_vary_and_are_what_they_say() -> None:
    for s in (bits_sample(60, 5, 0), letters_sample(40, 6, 0)):
        given = candidates(s)
        assert len(given.expressions) > 20
        assert len({v.tobytes() for v in given.values}) == len(given.values)
        assert (np.ptp(given.values, axis=1) > 0).all()
        for i in range(0, len(given.expressions), 7):
            e = given.expressions[i]
            np.testing.assert_allclose(given.values[i], p.execute(e, s)[s.counted], atol=1e-6)
            assert given.bits[i] == e.bits(given.words) and given.holds[i] == e.holds


def test_of_a_large_sample_pairs_are_searched_evenly() -> None:
    s = letters_sample(2000, 16, 0)
    index = spread(s)
    assert len(index) % 2 == 0 and set(index ^ 1) == set(index), "pairs stay whole"
    assert 6000 <= 16 * len(index) <= 8100
    assert index[0] == 0 and index[-1] == 1999 and np.diff(index[::2]).max() <= 2 * np.diff(index[::2]).min() + 2
    assert spread(letters_sample(100, 16, 0)).tolist() == list(range(100))


# -- the criterion ---------------------------------------------------------------------------------------------------


def test_two_values_are_named_by_balanced_agreement() -> None:
    variable = np.array([0.0] * 8 + [1.0] * 2)
    expected = np.array([0.1] * 6 + [0.9] * 2 + [0.9, 0.2])
    assert agreement(expected, variable) == pytest.approx((6 / 8 + 1 / 2) / 2)
    assert match(-expected, variable) == match(expected, variable), "either way round"
    assert match(3 * variable - 7, variable) == 1.0 and agreement(-variable, variable) == 0.0
    assert agreement(np.ones(10), variable) == 0.5 and match(np.full(10, np.nan), variable) == 0.5


def test_more_values_are_named_by_rank_correlation() -> None:
    rng = np.random.default_rng(0)
    v = rng.integers(0, 5, 60).astype(float)
    e = np.round(v + rng.normal(size=60), 1)
    assert match(e, v) == pytest.approx(abs(float(spearmanr(e, v)[0])))  # type: ignore[arg-type]
    assert match(np.exp(v), v) == pytest.approx(1.0) and match(-(v**3), v) == pytest.approx(1.0)


def test_where_a_variable_has_no_value_nothing_is_asked() -> None:
    variable = np.array([[0.0, 1.0, np.nan], [1.0, np.nan, np.nan]])
    expected = np.array([[0.0, 1.0, np.nan], [1.0, -50.0, 9.0]])
    assert match(expected, variable) == 1.0
    assert not varies(np.array([np.nan, 2.0, 2.0])) and np.isnan(agreement(expected[0, :2], np.ones(2)))


def test_a_variable_is_not_named_where_another_fits_better() -> None:
    a = np.repeat([0.0, 1.0], 200)
    b = a.copy()
    b[0] = 1.0  # almost the same
    assert match(b, a) > 0.99 and named(b, a, [a]) and not named(b, a, [a, b]) and named(a, a, [a, b])
    assert alike(a, b) and not alike(a, np.tile([0.0, 1.0], 200))
