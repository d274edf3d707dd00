"""Predicates: each kind against a slow reading of its sentence, JSON and back, and no look at what comes later."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.errors import UsageError
from openwork.explain.words import predicates as p
from openwork.explain.words.reading import OPENERS, Reading
from openwork.explain.words.topic import Sample

WORDS = ("a", "b", "c", "(", ")", '"', "\n", " x")


def text_sample(rng: np.random.Generator, n: int = 6, length: int = 9) -> Sample:
    tokens = rng.integers(0, len(WORDS), (n, length))
    return Sample("verify", WORDS, tokens, rng.integers(0, length, n), right=tuple(WORDS[i % 3] for i in range(n)))


def spelled(text: str) -> Sample:
    """One example, a character per token."""
    words = tuple(sorted(set(text)))
    tokens = np.array([[words.index(c) for c in text]])
    return Sample("verify", words, tokens, np.array([len(text) - 1]))


# -- against the sentence, position by position ----------------------------------------------------------------------


def slow(e: p.Node, s: Sample, i: int, t: int) -> float:
    """The value of a predicate about tokens, by its definition, from the words of example i up to position t alone."""
    assert s.tokens is not None
    w = [s.words[k] for k in s.tokens[i, : t + 1]]

    def word(k: int) -> str:
        return w[max(k, 0)]

    if isinstance(e, p.TokenIs):
        return float(word(t - e.back) in e.words)
    if isinstance(e, p.TokenAt):
        return float(w[min(t, e.place)] in e.words)
    if isinstance(e, p.Ngram):
        return float(tuple(w[-len(e.words) :]) == e.words)
    if isinstance(e, p.Looks):
        return float(p.looks_like(word(t - e.back)) == e.like)
    if isinstance(e, p.Seen):
        return float(any(x in e.words for x in w[:-1]))
    if isinstance(e, p.Recent):
        return float(next((x in e.words for x in reversed(w) if x in e.among), False))
    if isinstance(e, p.Repeated):
        return float(w[-1] in w[:-1])
    if isinstance(e, p.Earlier):
        return float(w[:-1].count(w[-1]))
    if isinstance(e, p.Same):
        return float(w[-1] == (word(t - e.back) if e.place is None else w[min(t, e.place)]))
    if isinstance(e, p.Count):
        return float(sum((x in e.words) - (x in e.minus) for x in w))
    if isinstance(e, p.Share):
        return slow_share(e, w)
    if isinstance(e, p.Depth):
        depth = 0
        for x in w:
            depth = max(0, depth + (x in e.open) - (x in e.close))
        return float(depth)
    if isinstance(e, p.Position):
        return float(t)
    raise AssertionError(e)


def slow_share(e: p.Share, w: list[str]) -> float:
    places = list(range(len(w)))[-e.last if e.last else 0 :]
    if e.alike or e.after_alike:
        mine = [j for j in places if w[j if e.alike else max(j - 1, 0)] == w[-1] or w[j] in e.among]
    else:
        mine = [j for j in places if not e.among or w[j] in e.among]
        mine = [j for j in mine if not e.after or w[max(j - 1, 0)] in e.after]
    mine = mine or list(range(len(w)))
    looked_at = [w[max(j - e.shift, 0)] for j in mine]
    return float(Fraction(sum((x in e.words) - (x in e.minus) for x in looked_at), len(looked_at)))


ABOUT_TOKENS = (
    p.TokenIs(words=("a", "(")), p.TokenIs(words=("b",), back=1), p.TokenIs(words=("b",), back=4),
    p.TokenAt(words=("c",), place=0), p.TokenAt(words=("a", "b"), place=3), p.Ngram(words=("a", "b")),
    p.Ngram(words=("c",)), p.Ngram(words=("a", "a", "b")), p.Looks(like="a sign"), p.Looks(like="a word", back=2),
    p.Looks(like="a line break"), p.Seen(words=("a",)), p.Seen(words=("(", ")")),
    p.Recent(words=("a",), among=("a", "b")),
    p.Recent(words=("c", ")"), among=("a", "b", "c", ")")), p.Repeated(), p.Earlier(), p.Same(place=0), p.Same(place=4),
    p.Same(back=1), p.Same(back=3), p.Count(words=("a", "b")), p.Count(words=("(",), minus=(")",)),
    p.Share(words=("a",)),
    p.Share(words=("a",), last=3), p.Share(words=("(",), minus=(")",)), p.Share(words=("a",), among=("a", "b")),
    p.Share(words=("b",), after=("a",)), p.Share(words=("b",), among=("b", "c"), after=("a", "b"), last=5),
    p.Share(words=("c",), after_alike=True), p.Share(words=("a",), alike=True, among=("a",)),
    p.Share(words=("b",), among=("a",), shift=True), p.Share(words=("b",), last=2, shift=True),
    p.Depth(open=("(",), close=(")",)), p.Depth(open=("a", "b"), close=("c",)), p.Position(),
)  # fmt: skip


@pytest.mark.parametrize("e", ABOUT_TOKENS, ids=lambda e: e.says()[:50])
def test_a_predicate_is_what_it_says(e: p.Node) -> None:
    s = text_sample(np.random.default_rng(3), 12, 10)
    assert s.tokens is not None
    got = p.execute(e, s)
    expected = np.array([[slow(e, s, i, t) for t in range(10)] for i in range(12)])
    np.testing.assert_allclose(got[s.counted], expected[s.counted], atol=1e-9)
    assert np.isnan(got[~s.counted]).all() and np.isfinite(got[s.counted]).all()


@pytest.mark.parametrize(
    ("text", "innermost"),
    [
        ("f(a[1])", " (([[( "),
        ("'a' \"b\"", "''  \"\" "),
        ('"\'" x', '""   '),
        ("(')')", "(''( "),
        ("#(\n(", "   ("),
        ("''(", "' ("),
        (r"'\''", "''' "),
        ("'a\n(", "'' ("),
        ("{'k':[", "{''{{["),
    ],
)
def test_what_is_open_innermost_is_read_off_the_characters(text: str, innermost: str) -> None:
    """`innermost` has a character for what is open after each one of the text, a space for nothing."""
    assert len(text) == len(innermost), "the expectation is as long as the text"
    codes = Reading(spelled(text)).lexed["innermost"][0]
    assert "".join(" " if c < 0 else OPENERS[c] for c in codes) == innermost


@pytest.mark.parametrize("quote", ["'", '"'])
def test_three_quotes_open_and_close_one_string(quote: str) -> None:
    text = f"x={3 * quote}a{quote}b{2 * quote}c(\n{3 * quote}+("
    codes = Reading(spelled(text)).lexed["innermost"][0]
    inside = [OPENERS[c] if c >= 0 else "" for c in codes]
    begins, ends = text.index(3 * quote) + 2, text.rindex(3 * quote) + 2
    assert inside[begins:ends] == [3 * quote] * (ends - begins)
    assert inside[ends] == "" and inside[-2:] == ["", "("]


def test_tokens_may_be_cut_anywhere() -> None:
    """The same text in other tokens leaves the same open."""
    text = "d = f('a(', [1, \"]\"\n    for x"
    whole = Reading(spelled(text)).lexed
    words = ("d = f('", "a(", "', [1", ', "', ']"', "\n    ", "for", " x")
    s = Sample("verify", words, np.arange(len(words))[None], np.array([len(words) - 1]))
    ends = np.cumsum([len(w) for w in words]) - 1
    for key in ("innermost", "indent", "open:(", "open:'"):
        assert Reading(s).lexed[key][0].tolist() == whole[key][0][ends].tolist(), key
    assert Reading(s).lexed["line_token"][0].tolist() == [0] * 5 + [-1, 6, 6]
    assert Reading(s).lexed["line_place"][0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    starts = p.execute(p.LineStarts(words=("for",)), s)[0]
    assert starts.tolist() == [0] * 6 + [1, 1]


# -- vectors and images ----------------------------------------------------------------------------------------------


def image_sample(images: np.ndarray) -> Sample:
    n, h, w = images.shape
    names = tuple(f"row {r}, column {c}" for r in range(h) for c in range(w))
    return Sample("verify", asked=np.zeros(n, dtype=int), features=images.reshape(n, -1), names=names, shape=(h, w, 1),
                  right=tuple(str(i % 3) for i in range(n)))  # fmt: skip


def test_pictures_patches_features_and_answers() -> None:
    rng = np.random.default_rng(0)
    images = np.where(rng.random((40, 5, 6)) < 0.5, 1.0, -1.0)
    s = image_sample(images)
    picture = p.Picture(rows=("#.", ".#"), above=0.0)
    wanted = np.array([[1, -1], [-1, 1]])
    for top, bottom in ((0, None), (1, None), (0, 3), (2, 4)):
        e = picture.model_copy(update={"top": top, "bottom": bottom})
        end = 5 if bottom is None else bottom
        found = [
            any((m[r : r + 2, c : c + 2] == wanted).all() for r in range(top, end - 1) for c in range(5))
            for m in images
        ]
        assert p.execute(e, s).tolist() == [float(f) for f in found], (top, bottom)
    assert not p.execute(p.Picture(rows=("#" * 7,)), s).any(), "what is wider than the image is nowhere"
    np.testing.assert_allclose(
        p.execute(p.Patch(top=1, left=2, height=2, width=3), s), images[:, 1:3, 2:5].mean((1, 2))
    )
    np.testing.assert_allclose(p.execute(p.Feature(name="row 1, column 2"), s), images[:, 1, 2])
    assert p.execute(p.Answer(words=("0", "2")), s).tolist() == [float(i % 3 != 1) for i in range(40)]


def test_channels_of_an_image_stand_last() -> None:
    images = np.arange(2 * 3 * 3 * 2, dtype=float).reshape(2, 3, 3, 2)
    s = Sample("verify", asked=np.zeros(2, dtype=int), features=images.reshape(2, -1),
               names=tuple(f"f{i}" for i in range(18)), shape=(3, 3, 2))  # fmt: skip
    np.testing.assert_allclose(p.execute(p.Patch(top=0, left=0, height=1, width=1), s), images[:, 0, 0].mean(-1))


# -- joints ----------------------------------------------------------------------------------------------------------

A, B, X = p.TokenIs(words=("a",)), p.TokenIs(words=("b",), back=1), p.Count(words=("a", "b", "c"))


def test_joints_by_their_truth_tables() -> None:
    s = text_sample(np.random.default_rng(5), 30)
    a, b, x = (p.execute(e, s) for e in (A, B, X))
    here = s.counted
    same = [
        (p.All(of=(A, B)), a * b), (p.AnyOf(of=(A, B)), np.maximum(a, b)), (p.Not(of=A), 1 - a),
        (p.Odd(of=(A, B)), (a + b) % 2), (p.Total(of=(A, B)), a + b), (p.AtLeast(of=X, value=2), x >= 2),
        (p.Between(of=X, low=1, high=2), (x >= 1) & (x <= 2)), (p.Excess(of=X, value=1.5), np.maximum(x - 1.5, 0)),
        (p.Constant(value=-2.5), np.full(x.shape, -2.5)), (p.Line(of=A, slope=3.0, base=-1.0), 3 * a - 1),
        (p.Cases(when=B, then=X, otherwise=p.Line(of=A, slope=2.0, base=0.5)), np.where(b > 0, x, 2 * a + 0.5)),
    ]  # fmt: skip
    assert len(np.unique(x[here])) > 3 and set(np.unique((a + b)[here])) == {0, 1, 2}
    for e, values in same:
        np.testing.assert_allclose(p.execute(e, s)[here], values[here].astype(float))


def test_levels_give_the_mean_of_the_nearest_value() -> None:
    s = Sample(
        "verify", asked=np.zeros(5, dtype=int), features=np.array([[-9.0], [0.4], [0.6], [1.9], [70.0]]), names=("x",)
    )
    e = p.Levels(of=p.Feature(name="x"), values=(0.0, 1.0, 2.0), means=(5.0, -1.0, 3.0))
    assert p.execute(e, s).tolist() == [5.0, 5.0, -1.0, 3.0, 3.0]


# -- as data ---------------------------------------------------------------------------------------------------------

some_words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(tuple)
steps = st.integers(0, 5)
leaves = st.one_of(
    st.builds(p.TokenIs, words=some_words, back=steps), st.builds(p.TokenAt, words=some_words, place=steps),
    st.builds(p.Ngram, words=some_words), st.builds(p.Looks, like=st.sampled_from(p.LOOKS), back=steps),
    st.builds(p.Seen, words=some_words), st.builds(p.Recent, words=some_words, among=some_words), st.just(p.Repeated()),
    st.builds(p.Same, place=st.none() | steps, back=steps),
    st.builds(p.Innermost, of=st.lists(st.sampled_from(OPENERS), min_size=1).map(tuple)),
    st.builds(p.LineStarts, words=some_words),
)  # fmt: skip
numbers = st.one_of(
    st.builds(p.Count, words=some_words, minus=st.just(()) | some_words), st.just(p.Earlier()), st.just(p.Position()),
    st.builds(
        p.Share, words=some_words, among=st.just(()) | some_words, last=st.none() | st.integers(1, 6),
        alike=st.booleans(), shift=st.booleans(),
    ),
    st.builds(p.Depth, open=some_words, close=some_words), st.just(p.Indent()), st.just(p.LinePlace()),
    st.builds(p.Open, of=st.lists(st.sampled_from(OPENERS), min_size=1).map(tuple)),
    st.builds(p.Constant, value=st.floats(-5, 5)),
)  # fmt: skip


def joined(inner: st.SearchStrategy[p.Node]) -> st.SearchStrategy[p.Node]:
    several = st.lists(inner, min_size=1, max_size=3).map(tuple)
    value = st.floats(-3, 3)
    return st.one_of(
        st.builds(p.All, of=several), st.builds(p.AnyOf, of=several), st.builds(p.Not, of=inner),
        st.builds(p.Odd, of=several), st.builds(p.Total, of=several), st.builds(p.AtLeast, of=inner, value=value),
        st.builds(p.Between, of=inner, low=value, high=value), st.builds(p.Excess, of=inner, value=value),
        st.builds(p.Line, of=inner, slope=value, base=value),
        st.builds(p.Cases, when=inner, then=inner, otherwise=inner),
        st.builds(lambda of: p.Levels(of=of, values=(0.0, 1.5), means=(2.0, -1.0)), inner),
    )  # fmt: skip


expressions = st.recursive(st.one_of(leaves, numbers), joined, max_leaves=6)


@settings(max_examples=150, deadline=None)
@given(e=expressions, seed=st.integers(0, 1000))
def test_any_predicate_goes_to_json_and_back_and_never_looks_ahead(e: p.Node, seed: int) -> None:
    data = json.loads(json.dumps(p.plain(e)))
    assert p.parse(data) == e and p.plain(p.parse(data)) == data
    rng = np.random.default_rng(seed)
    s = text_sample(rng)
    assert s.tokens is not None
    values = p.execute(data, s)
    assert (
        values.shape == s.tokens.shape and np.isfinite(values[s.counted]).all() and np.isnan(values[~s.counted]).all()
    )
    if e.holds:
        assert set(np.unique(values[s.counted])) <= {0.0, 1.0}
    assert e.says() and "\n" not in e.says(), "what is read out stands on one line"
    assert e.bits(8) > 0
    cut = int(rng.integers(0, s.tokens.shape[1]))
    later = s.tokens.copy()
    later[:, cut + 1 :] = rng.integers(0, len(WORDS), later[:, cut + 1 :].shape)
    other = p.execute(e, Sample("verify", WORDS, later, s.asked, right=s.right))
    np.testing.assert_array_equal(values[:, : cut + 1], other[:, : cut + 1])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"kind": "tokn", "words": ["a"]}, 'Nearest: "token"'),
        ({"kind": "all", "of": [{"kind": "nonsense"}]}, "nonsense"),
        ({"words": ["a"]}, "kind of predicate"),
        ({"kind": "token", "words": []}, "words"),
        ({"kind": "token", "words": ["a"], "back": -1}, "back"),
        ({"kind": "token", "words": ["a"], "bakc": 1}, "bakc"),
        ({"kind": "levels", "of": {"kind": "position"}, "values": [1.0, 0.0], "means": [0.0, 1.0]}, "values"),
        ({"kind": "levels", "of": {"kind": "position"}, "values": [1.0], "means": [0.0, 1.0]}, "means"),
        ({"kind": "picture", "rows": ["#x"]}, "rows"),
        ({"kind": "picture", "rows": ["#.", "#"]}, "rows"),
        ({"kind": "picture", "rows": ["#" * 8] * 8}, "rows"),
    ],
)
def test_what_is_no_predicate_is_refused(data: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        p.parse(data)


def test_a_predicate_about_what_is_not_there_is_refused() -> None:
    text = text_sample(np.random.default_rng(0))
    vectors = image_sample(np.zeros((2, 3, 3)))
    for e, s in (
        (p.Feature(name="x"), text), (p.Picture(rows=("#",)), text), (p.TokenIs(words=("a",)), vectors),
        (p.Repeated(), vectors), (p.Feature(name="nobody"), vectors),
        (p.Patch(top=9, left=0, height=1, width=1), vectors),
        (p.Innermost(of=("(",)), vectors),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            p.execute(e, s)


def test_odd_words_are_escaped_and_long_sets_are_counted() -> None:
    assert p.TokenIs(words=("\n", '"', "\u0000")).says() == 'the token is "\\n", "\\"" or "\\u0000"'
    many = tuple(f"w{i}" for i in range(12))
    assert "and 4 others" in p.TokenIs(words=many).says()


def test_more_words_make_a_longer_predicate() -> None:
    one, two = p.TokenIs(words=("a",)), p.TokenIs(words=("a", "b"))
    assert one.bits(2) < one.bits(1024) < two.bits(1024) < p.All(of=(one, two)).bits(1024)
    assert p.TokenIs(words=("a",), back=2).bits(8) > one.bits(8)
