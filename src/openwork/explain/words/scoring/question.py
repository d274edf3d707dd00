"""Questions that a judge answers about an explanation, and which held-out places are asked about.

    trigger    a snippet with one place marked: is the topic active there?
    detection  a snippet: is the topic active anywhere in it?
    fuzzing    a snippet with some places marked: are these the ones on which the topic is active?

Detection and fuzzing as in Paulo et al. 2024 (arXiv 2410.13928), with harder negatives. A judge that asks somebody (a
language model) has a method `answer`; one that only tells expected activity is executed: `Executed` answers for it.
Knows arrays, words and plain data. Does not know models, authors, nor what is made of the answers.

Shapes: N examples, T positions, W snippets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np

from openwork.circuit import Explanation
from openwork.errors import UsageError
from openwork.explain.words.topic import Judge, Sample

Kind = Literal["trigger", "detection", "fuzzing"]
KINDS: tuple[str, ...] = get_args(Kind)
SNIPPET = 16  # positions of a snippet, at most
ACTIVE = 0.3  # of the largest activity: what counts as active (the highlighting threshold of arXiv 2410.13928's code)

Bools = np.ndarray  # of bool


@dataclass(frozen=True)
class Question:
    """One yes-or-no question about one explanation; the same question may be asked about several.

    id       what is asked, not whether the answer is yes: the same text for the same question in every run
    example  its place in the sample, and `start`, `stop` the snippet's positions there
    marked   positions of the example that are asked about; () where the whole snippet is
    side     1: "active" means well above what the topic sends on the reference; -1: well below
    context  words of the example before the snippet, which may be shown but are not asked about
    snippet  words (or "feature=value" of an example of named features) from `start` up to `stop`
    """

    kind: Kind
    id: str
    example: int
    start: int
    stop: int
    marked: tuple[int, ...]
    side: int
    context: tuple[str, ...]
    snippet: tuple[str, ...]

    @property
    def marks(self) -> tuple[int, ...]:
        """The marked positions, counted from the beginning of the snippet."""
        return tuple(p - self.start for p in self.marked)


Answers = Mapping[str, float]  # id -> probability of yes, in 0..1; a question that got no usable answer is left out
Ask = tuple[Explanation, Sequence[Question]]


@runtime_checkable
class Asks(Protocol):
    """A judge that answers questions itself. All that is to be asked comes at once, so that it can be sent at once."""

    def answer(self, asks: Sequence[Ask]) -> Sequence[Answers]:
        """One `Answers` per ask, in that order."""
        ...


class Executed:
    """Answers questions by the expected activity e of a judge that is executed.

    x = side * e: of the marked place (trigger), the largest in the snippet (detection), the mean over the marked places
    (fuzzing). Yes where x is above ACTIVE of the largest x of the sample; as a probability, the logistic function of
    (x - ACTIVE * largest) / (0.1 * range), which is strictly increasing in x. Not a number: no answer.
    """

    def __init__(self, judge: Judge, sample: Sample) -> None:
        self.judge, self.sample = judge, sample
        self._known: dict[int, tuple[Explanation, np.ndarray, float, float]] = {}
        self._spots: tuple[Sequence[Question], _Spots] | None = None

    def expected(self, explanation: Explanation) -> np.ndarray:
        """Expected activity [N, T] (T = 1 for vectors), nan where it cannot say or a position does not count."""
        return self._expected(explanation)[1]

    def answer(self, asks: Sequence[Ask]) -> list[Answers]:
        """See `Asks.answer`."""
        return [self._answers(explanation, questions) for explanation, questions in asks]

    def _expected(self, explanation: Explanation) -> tuple[Explanation, np.ndarray, float, float]:
        """The explanation (held, so that its id is not given to another), e, its least and largest value."""
        if id(explanation) not in self._known:
            e = shaped(self.judge(explanation, self.sample), self.sample, explanation.subject)
            finite = e[np.isfinite(e)]
            low, high = (float(finite.min()), float(finite.max())) if len(finite) else (np.nan, np.nan)
            self._known[id(explanation)] = explanation, e, low, high
        return self._known[id(explanation)]

    def _answers(self, explanation: Explanation, questions: Sequence[Question]) -> Answers:
        _, e, low, high = self._expected(explanation)
        if not questions or np.isnan(low):
            return {}
        if self._spots is None or self._spots[0] is not questions:  # rivals are asked the same ones, one after another
            self._spots = questions, _Spots(questions)
        spots = self._spots[1]
        x = spots.side * spots.values(e)
        largest = np.where(spots.side > 0, high, -low)
        if high == low:
            p = (x > 0).astype(np.float64)
        else:
            with np.errstate(over="ignore"):  # far below the threshold p is 0
                p = 1 / (1 + np.exp(-(x - ACTIVE * np.maximum(largest, 0.0)) / (0.1 * (high - low))))
        known = np.isfinite(x)
        return {i: v for i, v, k in zip(spots.ids, p.tolist(), known.tolist(), strict=True) if k}


class _Spots:
    """Where questions look, as arrays."""

    def __init__(self, questions: Sequence[Question]) -> None:
        at = [q.marked or tuple(range(q.start, q.stop)) for q in questions]
        width = max(map(len, at))
        self.ids = [q.id for q in questions]
        self.side = np.array([q.side for q in questions])
        self.mean = np.array([bool(q.marked) for q in questions])
        self.example = np.array([q.example for q in questions])[:, None]
        self.column = np.array([(*a, *[0] * (width - len(a))) for a in at])
        self.there = np.array([[True] * len(a) + [False] * (width - len(a)) for a in at])

    def values(self, e: np.ndarray) -> np.ndarray:
        """float [Q]: mean of e over the marked places; of a whole snippet, the value that is largest on its side."""
        x = e[self.example, self.column]
        known = self.there & np.isfinite(x)
        many = known.sum(1)
        mean = np.where(known, x, 0.0).sum(1) / np.maximum(1, many)
        side = self.side[:, None]
        most = self.side * np.where(known, side * x, -np.inf).max(1)
        return np.where(many > 0, np.where(self.mean, mean, most), np.nan)


def shaped(values: np.ndarray, sample: Sample, subject: str) -> np.ndarray:
    """A judge's values as float [N, T], nan where positions do not count; refuses another shape than the sample's."""
    counted, e = sample.counted, np.array(values, dtype=np.float64)
    if e.shape != counted.shape:
        raise UsageError(
            f"the judge gave expected activity of shape {e.shape} for {subject}; the sample's shape is {counted.shape}."
        )
    e[~counted | ~np.isfinite(e)] = np.nan
    return e if e.ndim == 2 else e[:, None]


# -- which places are asked about --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Places:
    """Places chosen for one topic, no two in one cluster of examples, so that a test may take them as independent.

    example, column  int [Q]: where
    yes              bool [Q]: whether the topic is active there
    hard             bool [Q]: a negative of the harder sort
    """

    example: np.ndarray
    column: np.ndarray
    yes: Bools
    hard: Bools

    def __len__(self) -> int:
        return len(self.example)


def choose(yes: Bools, hard: Bools, easy: Bools, clusters: np.ndarray, most: int, rng: np.random.Generator) -> Places:
    """At most `most` places: half where `yes`, a quarter each `hard` and `easy`, as far as there are enough clusters.

    yes, hard, easy  bool [N, C]: the candidates of each sort
    clusters         int [N]: examples with the same number belong together
    """
    names, of = np.unique(clusters, return_inverse=True)
    m = len(names)
    has = np.stack([np.bincount(of, x.any(1), m) > 0 for x in (yes, hard, easy)])
    sort = np.full(m, -1)
    positive, negative = _deal(has[0], has[1] | has[2], most - most // 2, most // 2, rng)
    sort[positive] = 0
    mine = np.zeros(m, dtype=bool)
    mine[negative] = True
    half = len(negative) // 2
    for number, members in zip((1, 2), _deal(has[1] & mine, has[2] & mine, m, m, rng, half), strict=True):
        sort[members] = number
    wanted = sort[of]  # [N]
    able = ((wanted == 0)[:, None] & yes) | ((wanted == 1)[:, None] & hard) | ((wanted == 2)[:, None] & easy)
    key = np.where(able, rng.random(able.shape), -1.0)
    column = key.argmax(1)
    best = key[np.arange(len(key)), column]
    order = np.lexsort((-best, of))  # within a cluster, the example whose key is largest comes first
    first = order[np.unique(of[order], return_index=True)[1]]
    example = np.sort(first[best[first] >= 0])
    return Places(example, column[example], wanted[example] == 0, wanted[example] == 1)


def _deal(
    a: Bools, b: Bools, most_a: int, most_b: int, rng: np.random.Generator, half: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters dealt to two sorts, each to one it has, as evenly as can be (or `half` of them to each)."""
    order = rng.permutation(len(a))
    only_a, only_b, both = (order[x[order]] for x in (a & ~b, b & ~a, a & b))
    even = (len(only_b) + len(both) - len(only_a)) / 2 if half is None else half - len(only_a)
    cut = int(np.clip(np.ceil(even), 0, len(both)))
    return np.concatenate([only_a, both[:cut]])[:most_a], np.concatenate([only_b, both[cut:]])[:most_b]


class Snippets:
    """A sample's examples cut into snippets from their end, so that the place that is asked is always in one.

    width   positions of a snippet: SNIPPET, or less where a tenth of the examples are shorter than that; of vectors 1
    whole   bool [N, W]: snippets that begin within the example. Others are no good to ask whether anything in them is
            active: shorter ones are silent more often, whatever is said of them
    """

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        counted = sample.counted if sample.is_text else np.ones((len(sample), 1), dtype=bool)
        length = counted.sum(1)
        self.width = max(1, min(SNIPPET, int(np.quantile(length, 0.1)))) if len(length) else 1
        many = -(-counted.shape[1] // self.width)
        self._place = length[:, None] - many * self.width + np.arange(many * self.width)[None, :]  # below 0: none
        self.whole = self._place.reshape(len(length), many, self.width)[:, :, 0] >= 0

    def many(self, places: Bools) -> np.ndarray:
        """How many places of each snippet are True: [N, T] -> int [N, W]."""
        found = np.take_along_axis(places, np.maximum(0, self._place), 1) & (self._place >= 0)
        return found.reshape(*self.whole.shape, self.width).sum(2)

    def of(self, example: int, place: int) -> int:
        """The snippet in which a place is."""
        return int(place - self._place[example, 0]) // self.width

    def span(self, example: int, snippet: int) -> slice:
        """The positions of a snippet."""
        start = int(self._place[example, snippet * self.width])
        return slice(max(0, start), start + self.width)

    def question(self, kind: Kind, example: int, snippet: int, marked: Sequence[int], side: int) -> Question:
        """The question about one snippet of one example, in words; of vectors, all of the example is the snippet."""
        span, words = self.span(example, snippet), self._words[example]
        places = "" if kind == "detection" else "/" + ",".join(map(str, marked))
        name = f"{kind}/{self.sample.split}/{example}/{span.start}-{span.stop}{places}/{'+' if side > 0 else '-'}"
        shown = words[span] if self.sample.is_text else words
        before = words[: span.start] if self.sample.is_text else ()
        return Question(kind, name, example, span.start, span.stop, tuple(marked), side, before, shown)

    @cached_property
    def _words(self) -> tuple[tuple[str, ...], ...]:
        s = self.sample
        if s.tokens is not None:
            names = s.words or tuple(map(str, range(int(s.tokens.max(initial=0)) + 1)))
            rows = zip(s.tokens.tolist(), s.asked.tolist(), strict=True)
            return tuple(tuple(names[i] for i in row[: at + 1]) for row, at in rows)
        if s.features is None:
            return ((),) * len(s)
        names = s.names or tuple(f"x{i}" for i in range(s.features.shape[1]))
        return tuple(tuple(f"{n}={v:.3g}" for n, v in zip(names, row, strict=True)) for row in s.features.tolist())


__all__ = [
    "ACTIVE", "KINDS", "SNIPPET", "Answers", "Ask", "Asks", "Executed", "Kind", "Places", "Question", "Snippets",
    "choose", "shaped",
]  # fmt: skip
