"""A card says what was observed, in so many tokens at most, and never shows what an explanation is scored on."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.errors import UsageError
from openwork.explain.words.card import LEAST_FIRST, LIMIT, Card, as_json, clip, count_tokens, make_card, told, trimmed
from openwork.explain.words.measure import Measured
from openwork.explain.words.topic import Observed, Sample, Topic
from openwork.explain.words.wires import MATRIX, Wire, Wires

WORDS = ("<pad>", "if", " a", "('", '("', "foo", " bar", "')", '")')
NO_WIRES = Wires((), (), 0, 0, None)


def measured(
    activity: np.ndarray, tokens: np.ndarray, asked: np.ndarray, split: str = "explain", kind: str = "node"
) -> Measured:
    k, n = len(activity), len(tokens)
    right = tuple("')" if i % 2 == 0 else '")' for i in range(n))
    sample = Sample(split, WORDS, tokens, asked, right=right, wrong=tuple(reversed(right)))
    activity = np.where(sample.counted, activity, np.nan)
    topics = tuple(Topic(f"s:{j}", kind, (("s", j),)) for j in range(k))
    damage = np.zeros((k, n))
    damage[:, ::2] = 0.5
    shift = np.zeros((k, len(WORDS)))
    shift[0, 7], shift[0, 8] = -2.0, 1.0
    return Measured(Observed(sample, topics, activity, "u", damage), np.full(n, 0.1), shift)


def card_of(m: Measured, k: int = 0, wires: Wires = NO_WIRES, **more: object) -> Card:
    about = {"task": "quotes", "about": "close", "answers": ("')", '")'), "outputs": WORDS, "unit": "u"}
    return make_card(m.observed.topics[k], m, wires, **(about | more))  # type: ignore[arg-type]


def small() -> Measured:
    """Two nodes; the first is active on token 3 only, at 2 and 4, and below the reference on token 5."""
    tokens = np.asarray([[1, 2, 3, 5], [1, 3, 2, 0], [2, 2, 6, 0], [6, 2, 1, 5]])
    asked = np.asarray([3, 2, 2, 3])
    first = np.where(tokens == 3, 2.0, 0.0)
    first[1, 1], first[0, 3], first[3, 3] = 4.0, -1.0, -4.0
    return measured(np.stack([first, np.where(tokens == 6, 1.0, 0.0)]), tokens, asked)


def test_examples_are_ordered_and_scaled_to_ten() -> None:
    card = card_of(small())
    assert card.activity.ten == 4.0
    assert [(e.text, e.acts, e.act) for e in card.top[:2]] == [
        (["if", "('", " a"], [0, 10, 0], 10),
        (["if", " a", "('", "foo"], [0, 0, 5, -2], 5),
    ]
    assert [(e.text, e.acts) for e in card.lowest] == [([" bar", " a", "if", "foo"], [0, 0, 0, -10])]
    assert card.silent[0].text == [" a", " a", " bar"]
    assert card.top[0].right == '")'
    assert card.activity.deciles[0] == -4.0 and card.activity.deciles[-1] == 4.0
    assert card.activity.active == pytest.approx(3 / 14, abs=1e-3)  # 2, 4 and -4 of 14 places


def test_effects_tell_what_is_lost_and_on_which_answers() -> None:
    card = card_of(small())
    assert (card.effects.damage, card.effects.hurt, card.effects.of) == (0.25, 0.5, 0.1)
    assert card.effects.raised == [('")', 1.0)] and card.effects.lowered == [("')", -2.0)]
    assert [(a.answer, a.n, a.damage) for a in card.by_answer] == [("')", 2, 0.5), ('")', 2, 0.0)]
    assert card_of(small(), elsewhere={"b": 0.1, "a": -0.4}).by_task == [("a", -0.4), ("b", 0.1)]


def test_the_lens_weighs_each_node_by_its_activity_where_it_is_active() -> None:
    lens = np.zeros((1, len(WORDS)))
    lens[0, 7], lens[0, 8] = 0.5, -1.0
    card = card_of(small(), wires=Wires((), (), 0, 0, lens))
    mean = (2.0 + 4.0 - 4.0) / 3
    assert card.lens.promoted == [("')", pytest.approx(0.5 * mean, rel=1e-2))]
    assert card.lens.suppressed == [('")', pytest.approx(-mean, rel=1e-2))]


def test_siblings_come_with_a_place_that_tells_them_apart() -> None:
    card = card_of(small(), labels={"s:1": "fires on bar"})
    (other,) = card.siblings
    assert (other.name, other.label) == ("s:1", "fires on bar")
    assert other.not_here is not None and other.not_here.acts[other.not_here.text.index(" bar")] == 10


def test_neighbours_carry_the_labels_written_so_far() -> None:
    wires = Wires((Wire("s:0", "s:1", -0.5, MATRIX),), (Wire("s:0", "logits:7", 2.0, MATRIX),), 0, 0, None)
    card = card_of(small(), wires=wires, labels={"s:1": "fires on bar"})
    assert [(e.other, e.weight, e.label) for e in card.reads] == [("s:1", -0.5, "fires on bar")]
    assert card.writes[0].label == 'output "\')"'


def test_vectors_have_a_table_of_features_and_images_a_picture() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 16)).astype(np.float32)
    sample = Sample(
        "explain", asked=np.zeros(60, dtype=np.int64), features=x, names=tuple(f"p{i}" for i in range(16)),
        shape=(4, 4, 1), right=("a", "b") * 30, wrong=("b", "a") * 30,
    )  # fmt: skip
    activity = np.maximum(x[:, 5], 0)[None]
    seen = Observed(sample, (Topic("h:0", "node", (("h", 0),)),), activity, "u", np.zeros((1, 60)))
    card = card_of(Measured(seen, np.zeros(60), np.zeros((1, 2))), outputs=("a", "b"))
    best = card.features[0]
    assert best.name == "p5" and best.r > 0.7 and best.active > 0.5 > best.else_
    assert card.image[1][1] == 9 and len(card.image) == len(card.image[0]) == 4
    assert ("p5", pytest.approx(float(x[:, 5].max()), rel=1e-2)) in card.top[0].values
    assert "text" not in told(card)["top"][0]


def test_a_silent_topic_has_a_card_too() -> None:
    m = small()
    quiet = dataclasses.replace(m.observed, activity=np.where(np.isfinite(m.observed.activity), 0.0, np.nan))
    card = card_of(dataclasses.replace(m, observed=quiet))
    assert card.activity.ten == 1.0 and all(set(e.acts) == {0} for e in card.top)


# -- what an explanation is scored on --------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["verify", "discover", "ood"])
def test_other_splits_are_refused(split: str) -> None:
    m = small()
    other = dataclasses.replace(m.observed, sample=dataclasses.replace(m.observed.sample, split=split))
    with pytest.raises(UsageError, match="must not be seen"):
        card_of(dataclasses.replace(m, observed=other))


# -- how long it is --------------------------------------------------------------------------------------------------


def heavy(words: tuple[str, ...], n: int = 40, t: int = 60) -> tuple[Measured, Wires, dict[str, object]]:
    """As much of everything as a card can be given."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(len(words), size=(n, t))
    sample = Sample(
        "explain", words, tokens, np.full(n, t - 1), right=tuple(words[i % len(words)] * 9 for i in range(n)),
        wrong=tuple(" | ".join(words) for _ in range(n)),
    )  # fmt: skip
    nodes = tuple((f"{words[0][:50]}{i % 40}", i) for i in range(200))
    topics = (*(Topic(f"{s}:{i}", "module", ((s, i), (s, i + 1))) for s, i in nodes), Topic("all", "module", nodes))
    k = len(topics)
    seen = Observed(sample, topics, rng.normal(size=(k, n, t)) * 1e5, "u" * 500, rng.normal(size=(k, n)))
    wires = tuple(Wire(words[0] * 20, words[-1] * 20, -1.23456e-7, MATRIX) for _ in range(24))
    more = {
        "task": words[0] * 50, "about": words[0] * 500, "answers": tuple(w * 9 for w in words * 9), "unit": "u" * 500,
        "outputs": words * 3, "labels": {t.name: words[0] * 99 for t in topics},
        "elsewhere": {w * 9: 1.0 for w in words},
    }  # fmt: skip
    return Measured(seen, np.zeros(n), rng.normal(size=(k, 3 * len(words)))), Wires(wires, wires, 0, 0, None), more


@pytest.mark.parametrize(
    "words",
    [
        ("if", "('"), ("x" * 300, "yy"), ("é☃𝄞" * 40, "\ud800"), ("\n\t\x00\x1b", '"\\'), ("0" * 99, "1"),
        ("\u2028", "<b>"),
    ],
    ids=["plain", "long", "scripts", "control", "digits", "separators"],
)  # fmt: skip
def test_no_card_is_longer_than_the_limit(words: tuple[str, ...]) -> None:
    m, wires, more = heavy(words)
    for k in (0, len(m.observed.topics) - 1):
        card = card_of(m, k, wires, **more)
        text = as_json(told(card))
        assert count_tokens(text) <= LIMIT and len(text.encode()) <= 3 * LIMIT
        assert card.dropped, "the test is not heavy enough to show that anything is dropped"
        assert Card.model_validate_json(text) == card


def test_the_least_important_goes_first_and_the_card_says_so() -> None:
    m, wires, more = heavy(("if", " a", "('"))
    full = card_of(m, len(m.observed.topics) - 1, wires, **more, limit=10**9)
    assert not full.dropped
    size, last = count_tokens(as_json(told(full))), -1
    for share in (0.9, 0.7, 0.5, 0.3):
        card = trimmed(full, int(size * share))
        gone = [LEAST_FIRST.index(name) for name in card.dropped]
        data, whole = told(card), told(full)
        for name in LEAST_FIRST[: max(gone)]:
            at = data
            for step in name.split("."):
                at = at[step]
            assert not at, f"{name} is less important than what was dropped"
        for name, many in card.dropped.items():
            a: Any = data
            b: Any = whole
            for step in name.split("."):
                a, b = a[step], b[step]
            assert len(a) + many == len(b) and a == b[: len(a)]
        assert max(gone) >= last
        last = max(gone)
    assert set(LEAST_FIRST) <= {*Card.model_fields, "size.sites", *(f"{a}" for a in LEAST_FIRST if "." in a)}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_the_counter_counts_no_fewer_than_a_third_of_the_bytes(text: str) -> None:
    count = count_tokens(text)
    assert count >= len(text.encode("utf-8", "replace")) / 3
    assert count_tokens(text + "(1)") >= count + 2
    assert clip(text, 10).encode()[:1] is not None and len(clip(text, 10)) <= 10


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), ("abc", 1), ("abcd", 2), ("[1,23]", 6), ("a b", 2), ("é", 2), ("☃", 3), ('"a"', 3)]
)
def test_the_counter_by_hand(text: str, count: int) -> None:
    assert count_tokens(text) == count


def test_a_card_is_plain_data_of_a_documented_schema() -> None:
    card = card_of(small())
    data = json.loads(as_json(told(card)))
    assert data["version"] == 1 and data["split"] == "explain"
    assert Card.model_validate(data) == card
    with pytest.raises(ValueError, match="extra"):
        Card.model_validate(data | {"secret": 1})
