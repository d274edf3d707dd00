"""The simple expressions that a rule is searched among, with their values on a sample.

Of tokens: what stands here and a few places back, what has come so far and how often, shares as attention heads take
them, brackets and strings, lines, positions. Of vectors: features and their thresholds; of images also patches and
small pictures. What is the same everywhere, or the same as a shorter one, is left out. Depends on examples alone, not
on any activity, so that all nodes of a circuit share it. Knows readings and predicates. Does not know activity.

Shapes: F candidates, P places (positions that count, of all examples, in order; of vectors the examples).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from openwork.explain.words import predicates as p
from openwork.explain.words.reading import OPENERS, Reading
from openwork.explain.words.topic import Sample

SMALL = 16  # words and positions of a small language, in which pairs of words are candidates too
BACK = 4  # furthest token back
FREQUENT = 60  # words of a large language that are counted
STRUCTURAL = 10  # its signs, of which pairs are candidates
THRESHOLDS = 8
PARITY = 4  # features of which an odd number may hold
FEW_FEATURES = 24
PICTURES = ((2, 2), (2, 3), (3, 2), (3, 3), (2, 4), (4, 2))
PER_SIZE = 256  # pictures of one size, the most telling first


@dataclass(frozen=True, eq=False)
class Candidates:
    """Expressions and their values.

    values  float32 [F, P]
    bits    float [F], how long each is
    holds   bool [F], whether it is a condition
    words   number of distinct words (or features) that an expression may name
    example int [P], which example a place belongs to
    """

    reading: Reading
    expressions: tuple[p.Node, ...]
    values: np.ndarray
    bits: np.ndarray
    holds: np.ndarray
    words: int
    example: np.ndarray

    def flat(self, values: np.ndarray) -> np.ndarray:
        """Values [N, T] or [N] at the places that count, [P]."""
        return values[self.reading.sample.counted]


def candidates(sample: Sample) -> Candidates:
    """All simple expressions about a sample."""
    reading = Reading(sample)
    counted = sample.counted
    example = np.broadcast_to(np.arange(len(sample)).reshape(-1, *[1] * (counted.ndim - 1)), counted.shape)[counted]
    words = len(present(reading)) if sample.is_text else sample.features.shape[1] if sample.features is not None else 1
    found: dict[bytes, tuple[p.Node, np.ndarray, float]] = {}
    for e in of_text(reading) if sample.is_text else of_vectors(reading):
        x = e.on(reading)[counted].astype(np.float32)
        if len(x) == 0 or x.min() == x.max():
            continue
        key, bits = x.tobytes(), e.bits(words)
        if key not in found or bits < found[key][2]:
            found[key] = (e, x, bits)
    kept = list(found.values())
    return Candidates(
        reading, tuple(e for e, _, _ in kept),
        np.stack([x for _, x, _ in kept]) if kept else np.zeros((0, int(counted.sum())), np.float32),
        np.array([b for _, _, b in kept]), np.array([e.holds for e, _, _ in kept], dtype=bool), words, example,
    )  # fmt: skip


def present(reading: Reading) -> tuple[str, ...]:
    """The words at places that count, the most frequent first, of equally frequent ones by their text."""
    ids, counts = np.unique(reading.tokens[reading.sample.counted], return_counts=True)
    count: Counter[str] = Counter()
    for i, n in zip(ids.tolist(), counts.tolist(), strict=True):
        count[reading.sample.words[i]] += n
    return tuple(sorted(count, key=lambda w: (-count[w], w)))


# -- tokens ----------------------------------------------------------------------------------------------------------


def of_text(reading: Reading) -> Iterator[p.Node]:
    """Candidates about tokens."""
    words, length = present(reading), int(reading.sample.asked.max(initial=0)) + 1
    small = len(words) <= SMALL
    some = words if small else words[:FREQUENT]
    for k in range(min(BACK, length - 1) + 1):
        yield from (p.TokenIs(words=(w,), back=k) for w in some)
        yield from (p.Looks(like=x, back=k) for x in p.LOOKS if not small and k < 2)
        yield from [p.Same(back=k)] * (k > 0)
    yield from (p.Repeated(), p.Position(), p.Earlier())
    yield from _thresholds(p.Position(), range(1, length) if length <= SMALL else _quantiles(reading.sample.asked))
    yield from _thresholds(p.Earlier(), (2, 3))
    later = reading.sample.counted & (reading.places > 0)
    for w in (w for w in some if (reading.among((w,)) & later).any()):  # what only begins a text tells but the position
        yield p.Seen(words=(w,))
        yield p.Count(words=(w,))
        yield p.Share(words=(w,))
        yield p.Share(words=(w,), after_alike=True)
    if length <= SMALL:
        yield from _places(length)
    yield from _small_language(words, length) if small else _python(reading, words)


def _thresholds(number: p.Node, values: Sequence[float]) -> Iterator[p.Node]:
    yield from (p.AtLeast(of=number, value=float(v)) for v in values)


def _quantiles(x: np.ndarray) -> list[float]:
    """Values that cut a sample into parts of about equal size; all but the lowest where there are few."""
    distinct = np.unique(x)
    if len(distinct) <= THRESHOLDS:
        return distinct[1:].tolist()
    return sorted(set(np.quantile(x, np.linspace(0, 1, THRESHOLDS + 2)[1:-1], method="nearest").tolist()))


def _places(length: int) -> Iterator[p.Node]:
    for low in range(length):
        yield from (p.Between(of=p.Position(), low=low, high=high) for high in range(low, length))


def _small_language(words: Sequence[str], length: int) -> Iterator[p.Node]:
    """What would be too much to try with many words: pairs of them, and tokens at fixed positions."""
    yield p.Same(place=0)
    for w in words:
        yield from (p.TokenAt(words=(w,), place=k) for k in range(min(length, SMALL)))
        yield from (p.Share(words=(w,), last=k) for k in range(2, min(BACK, length - 1) + 1))
        yield p.Share(words=(w,), alike=True, among=(w,))
        yield p.Excess(of=p.Share(words=(w,)), value=0.5)
    for u, w in itertools.permutations(words, 2):
        rest = tuple(x for x in words if x != u)
        yield p.Recent(words=(w,), among=rest)
        yield p.Recent(words=(w,), among=(u, w))
        yield p.Count(words=(u,), minus=(w,))
        yield p.Depth(open=(u,), close=(w,))
        yield p.Share(words=(u,), among=(u, w))
        yield p.Share(words=(u,), after=(w,))
        yield p.Share(words=(u,), among=(w,), shift=True)
        difference = p.Share(words=(u,), minus=(w,))
        yield from (difference, p.Excess(of=difference, value=0.0), p.AtLeast(of=difference, value=0.0))


def _python(reading: Reading, words: Sequence[str]) -> Iterator[p.Node]:
    """Brackets, strings and lines; words that stand together; pairs of signs."""
    for o in OPENERS:
        yield p.Innermost(of=(o,))
        yield p.Open(of=(o,))
        yield from _thresholds(p.Open(of=(o,)), (1, 2))
    yield p.Innermost(of=("",))
    brackets, strings = p.Open(of=("(", "[", "{")), p.Open(of=("'", '"', "'''", '"""'))
    yield from (brackets, *_thresholds(brackets, (1, 2, 3)), *_thresholds(strings, (1,)))
    counted = reading.sample.counted
    for number, key in ((p.Indent(), "indent"), (p.LinePlace(), "line_place")):
        yield from (number, *_thresholds(number, _quantiles(reading.lexed[key][counted])))
    first = reading.lexed["line_token"][counted]
    for i, _ in Counter(first[first >= 0].tolist()).most_common(FREQUENT // 2):
        yield p.LineStarts(words=(reading.sample.words[i],))
    signs = [w for w in words if p.looks_like(w) == p.LOOKS[4]][:STRUCTURAL]
    for u, w in itertools.permutations(signs, 2):
        yield p.Recent(words=(u,), among=(u, w))
        yield p.Count(words=(u,), minus=(w,))
    yield from (p.AtLeast(of=p.Count(words=(w,)), value=k) for w in signs for k in (2, 3))
    pairs = Counter(
        (a, b)
        for row, end in zip(reading.tokens.tolist(), reading.sample.asked.tolist(), strict=True)
        for a, b in itertools.pairwise(row[: end + 1])
    )
    for (a, b), _ in pairs.most_common(FREQUENT):
        yield p.Ngram(words=(reading.sample.words[a], reading.sample.words[b]))


# -- vectors ---------------------------------------------------------------------------------------------------------


def of_vectors(reading: Reading) -> Iterator[p.Node]:
    """Candidates about features or pixels, and about right answers."""
    sample, x = reading.sample, reading.features
    answers = sorted(set(sample.right))
    if len(answers) > 2:  # of two, an answer is no more than what the model is to tell apart
        yield from (p.Answer(words=(w,)) for w in answers)
    conditions: list[p.Node] = []
    for name, column in zip(sample.names, x.T, strict=True):
        number = p.Feature(name=name)
        cuts = [p.AtLeast(of=number, value=v) for v in _quantiles(column)]
        conditions += cuts if len(cuts) == 1 else []
        yield from (number, *cuts)
    if len(conditions) <= FEW_FEATURES:
        for k in range(2, PARITY + 1):
            yield from (p.Odd(of=some) for some in itertools.combinations(conditions, k))
    if len(sample.shape) == 3:
        yield from _of_images(reading)


def _of_images(reading: Reading) -> Iterator[p.Node]:
    images = reading.images
    _, height, width = images.shape
    for h, w in ((2, 2), (3, 3)):
        for top, left in itertools.product(range(height - h + 1), range(width - w + 1)):
            number = p.Patch(top=top, left=left, height=h, width=w)
            yield from (number, *_thresholds(number, _quantiles(number.on(reading))))
    above = float((images.max() + images.min()) / 2)
    for h, w in PICTURES:
        if h > height or w > width:
            continue
        codes = reading.once(("pictures", h, w, above), lambda h=h, w=w: p.codes_of(images > above, h, w))
        has = Counter(c for example in codes.reshape(len(images), -1) for c in set(example.tolist()))
        n = len(images)
        telling = sorted(has, key=lambda c: (-has[c] * (n - has[c]), c))[:PER_SIZE]
        yield from (p.Picture(rows=_rows(c, h, w), above=above) for c in telling if 0 < has[c] < n)


def _rows(code: int, height: int, width: int) -> tuple[str, ...]:
    bits = ["#" if code >> i & 1 else "." for i in range(height * width)]
    return tuple("".join(bits[r * width : (r + 1) * width]) for r in range(height))


__all__ = ["Candidates", "candidates", "present"]
