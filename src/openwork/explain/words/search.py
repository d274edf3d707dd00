"""The search for a short expression that gives an activity: conditions joined step by step, totals, and cases.

An expression is worth what it saves: the bits that the activity takes less once it is known, of which n/2 log2(SST/SSE)
with n the number of examples (places of one example tell much the same), less its own length (minimum description
length, Rissanen 1978). Everything is fitted on one half of the examples and chosen by its worth on the other half.

Knows candidates and numbers. Does not know samples' meaning, sentences, or the examples that a rule is scored on.

Shapes: F candidates, P places; activity float [P].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openwork.explain.words import predicates as p
from openwork.explain.words.candidates import Candidates, present

FLOOR = 1e-4  # share of the variance that nobody asks about: an exact rule saves n/2 log2(1/FLOOR) bits
BEAM = 5  # conditions that are built upon
STEPS = 3  # conditions joined to one
POOL = 40  # pairs of conditions that are joined to one another
DIGITS = 4  # of the size of the activity, to which its numbers are written down
LOOKED_AT = 24  # of every kind, how many are worked out in full
QUESTIONS = 150_000_000  # conditions tried as a question of cases, times candidates times places that are fitted
CASES = 4  # questions asked one after the other
LEVELS = 16  # values of a number, each with a mean of its own
SET = 6  # words joined to a set
LITERALS = 8  # conditions counted together
GOOD = 0.9998  # share of the variance from which on nothing longer is tried


@dataclass(frozen=True, eq=False)
class Found:
    """An expression for an activity.

    expression  gives the activity itself, at every place
    worth       bits saved on the half that chose, less its length
    explains    share of the variance on that half
    """

    expression: p.Node
    worth: float
    explains: float
    bits: float


@dataclass(frozen=True, eq=False)
class _Part:
    """An ungraded expression and its values [P]."""

    expression: p.Node
    values: np.ndarray
    bits: float


class Halves:
    """Candidates dealt out: fitted on one half of the examples, chosen on the other.

    Neighbours, which are often counterparts, stay together. They are dealt at random, by a fixed seed: examples often
    come in turns (every second pair of one kind), and halves dealt in turns would each lack what the other has.
    """

    def __init__(self, given: Candidates) -> None:
        self.given = given
        pairs = int(given.example.max(initial=0)) // 2 + 1
        mine = np.random.default_rng(0).permutation(pairs) % 2 == 0
        first = mine[given.example // 2]
        self.fit, self.choose = np.flatnonzero(first), np.flatnonzero(~first)
        self.examples = len(np.unique(given.example[self.choose]))
        self.x = np.ascontiguousarray(given.values[:, self.fit])
        self.ones, self.squares = self.x.sum(1, dtype=float), (self.x.astype(np.float32) ** 2).sum(1, dtype=float)

    def search(self, activity: np.ndarray) -> Found | None:
        """The most worthwhile expression for an activity; None where none saves more than its own length."""
        return _Search(self, activity.astype(float)).best()


class _Search:
    def __init__(self, halves: Halves, activity: np.ndarray) -> None:
        self.h, self.a = halves, activity
        self.given = halves.given
        fit = activity[halves.fit]
        self.mean, self.scale = float(fit.mean()), float(fit.std()) or 1.0
        self.z = (fit - self.mean) / self.scale  # of the half that is fitted: mean 0, variance 1
        self.odd = np.array([isinstance(e, p.Odd) for e in self.given.expressions], dtype=bool)
        self.parity = False
        self.parts = self._sets()

    # -- worth -------------------------------------------------------------------------------------------------------

    def worth(self, values: np.ndarray, bits: float) -> tuple[float, float]:
        """What a prediction [P] of the activity is worth, and the share of the variance that it explains."""
        true = self.a[self.h.choose]
        sst = float(((true - self.mean) ** 2).sum())
        if sst <= 0:
            return -bits, 0.0
        rest = float(((true - values[self.h.choose]) ** 2).sum()) / sst
        return self.h.examples / 2 * math.log2((1 + FLOOR) / (rest + FLOOR)) - bits, 1 - rest

    def graded(self, part: _Part) -> Iterator[tuple[p.Node, np.ndarray, float]]:
        """A part given the size of the activity, in every way there is: expression, prediction [P], bits."""
        x, at = part.values, self.h.fit
        cost = math.log2(max(2, self.h.examples)) / 2  # bits of one fitted number
        slope, base = self._line(x[at], self.a[at])
        yield p.Line(of=part.expression, slope=slope, base=base), base + slope * x, part.bits + 2 * cost
        if part.expression.holds:
            return
        values, places = np.unique(np.round(x[at].astype(float), 6), return_inverse=True)
        if 2 < len(values) <= LEVELS:
            means = self._written(np.bincount(places, self.a[at]) / np.bincount(places))
            cuts = (values[:-1] + values[1:]) / 2
            levels = p.Levels(of=part.expression, values=tuple(values.tolist()), means=tuple(means.tolist()))
            yield levels, means[np.searchsorted(cuts, x)], part.bits + len(values) * cost

    def _line(self, x: np.ndarray, a: np.ndarray) -> tuple[float, float]:
        spread = float(((x - x.mean()) ** 2).sum())
        slope = float(((x - x.mean()) * (a - a.mean())).sum()) / spread if spread > 1e-12 else 0.0
        return self._number(slope), self._number(float(a.mean() - slope * x.mean()))

    def _written(self, x: np.ndarray) -> np.ndarray:
        """Numbers as they are written down: what is below the noise of single precision is no difference."""
        digits = DIGITS - math.floor(math.log10(self.scale))
        return np.round(x.astype(float), digits) + 0.0

    def _number(self, x: float) -> float:
        return float(self._written(np.array(x)))

    # -- the best of all ---------------------------------------------------------------------------------------------

    def best(self) -> Found | None:
        """See `Halves.search`."""
        found: Found | None = None
        stages = (self.single, self.joined, self.counted)
        for stage in (*stages, self.with_parity, *(stages[:2] if self.odd.any() else ()), self.cases):
            for part in stage():
                for expression, values, bits in (
                    self.graded(part)
                    if not isinstance(part.expression, p.Cases)
                    else ((part.expression, part.values, part.bits),)
                ):
                    worth, explains = self.worth(values, bits)
                    if worth > (found.worth if found else 0.0) + 1e-9:
                        found = Found(expression, worth, explains, bits)
            if found is not None and found.explains >= GOOD:
                break
        return found

    def of_candidates(self, order: Sequence[int] | np.ndarray) -> list[_Part]:
        """Candidates by their numbers."""
        g = self.given
        return [_Part(g.expressions[i], g.values[i], float(g.bits[i])) for i in order]

    def with_parity(self) -> tuple[_Part, ...]:
        """From here on either-or and odd numbers of conditions are tried too, which fit many things by chance of what
        examples there are: on pairs that differ in one input, every gate of two is also an either-or."""
        self.parity = True
        return ()

    def single(self) -> list[_Part]:
        """The candidates that fit best on a line, those numbers that fit best by levels, and sets of words."""
        h = self.h
        fit = self._explained(h.ones, h.squares, (h.x @ self.z.astype(np.float32)).astype(float), len(self.z))
        worth = np.where(self.odd & ~self.parity, -np.inf, self._rough(fit) - self.given.bits)
        order = np.lexsort((self.given.bits, -worth))[:LOOKED_AT]
        numbers = np.flatnonzero(~self.given.holds)
        by_level = np.array([self._by_levels(h.x[i]) for i in numbers])
        some = numbers[np.lexsort((self.given.bits[numbers], -by_level))[:LOOKED_AT]] if len(numbers) else []
        best = self.of_candidates(order)
        return best + self.of_candidates(some) + self.parts + self._in_rows(best)

    def _in_rows(self, parts: Sequence[_Part]) -> list[_Part]:
        """The pictures among some parts again, for every range of rows in which they may have to be."""
        pictures = [s.expression for s in parts if isinstance(s.expression, p.Picture)]
        reading, out = self.given.reading, []
        for picture in pictures[: 2 * BEAM]:
            tall, height = len(picture.rows), reading.images.shape[1]
            for top in range(height - tall + 1):
                for bottom in (*range(top + tall, height), None):
                    e = picture.model_copy(update={"top": top, "bottom": bottom})
                    values = self.given.flat(e.on(reading)).astype(np.float32)
                    out.append(_Part(e, values, e.bits(self.given.words)))
        return out

    def _rough(self, explained: np.ndarray) -> np.ndarray:
        """Bits saved, on the half that is fitted."""
        return self.h.examples / 2 * -np.log2(np.clip(1 - explained, 0, 1) + FLOOR)

    @staticmethod
    def _explained(ones: np.ndarray, squares: np.ndarray, with_z: np.ndarray, n: int) -> np.ndarray:
        """Share of the variance of z (mean 0, variance 1) that a line on each x explains, from sums over n places."""
        spread = squares - ones**2 / n
        return np.where(spread > 1e-6 * n, with_z**2 / np.maximum(spread, 1e-12) / n, 0.0)

    def _by_levels(self, x: np.ndarray) -> float:
        values, places = np.unique(np.round(x, 6), return_inverse=True)
        if not 2 < len(values) <= LEVELS:
            return 0.0
        return float((np.bincount(places, self.z) ** 2 / np.bincount(places)).sum()) / len(self.z)

    # -- sets of words -----------------------------------------------------------------------------------------------

    def _sets(self) -> list[_Part]:
        """Sets of words, here or a few places back (or of right answers): those whose mean activity is most unlike."""
        reading, out = self.given.reading, []
        sample = reading.sample
        if sample.tokens is not None:
            ids = {w: i for i, w in enumerate(present(reading))}
            table = np.array([ids.get(w, 0) for w in sample.words])
            longest = int(sample.asked.max(initial=0))
            for back in range(min(4, longest) + 1):
                column = self.given.flat(reading.back(table[reading.tokens], back))
                out += self._grouped(column, list(ids), lambda ws, k=back: p.TokenIs(words=ws, back=k))
        elif len(set(sample.right)) > 2:
            names, column = np.unique(np.array(sample.right), return_inverse=True)
            out += self._grouped(column, names.tolist(), lambda ws: p.Answer(words=ws))
        return out

    def _grouped(self, column: np.ndarray, names: list[str], make: Any) -> list[_Part]:
        """Of values 0 .. len(names) - 1 at each place: the first few by mean activity, from either end."""
        at = column[self.h.fit]
        number, total = np.bincount(at, minlength=len(names)), np.bincount(at, self.z, minlength=len(names))
        usual = np.flatnonzero(number > 0)
        # a word seen once says little: shrunk towards the mean by one place of noise
        order = usual[np.argsort(-(total[usual] / (number[usual] + 1.0)), kind="stable")]
        out = []
        for ends in (order, order[::-1]):
            for k in range(2, min(SET, len(order) - 1) + 1):
                words = tuple(sorted(names[i] for i in ends[:k]))
                expression = make(words)
                out.append(
                    _Part(expression, np.isin(column, ends[:k]).astype(np.float32), expression.bits(self.given.words))
                )
        return out

    # -- conditions joined -------------------------------------------------------------------------------------------

    def joined(self) -> Iterator[_Part]:
        """Conditions made of others by and, or, not and either-or: a few steps from the best ones, then one with the
        joined ones themselves, so that a choice between two pairs is found though neither of its steps tells much."""
        conditions = self._conditions()
        if not conditions:
            return
        fit = self._fit_of(conditions)
        beam = [conditions[i] for i in np.lexsort((np.array([c.bits for c in conditions]), -fit))[:BEAM]]
        pool: list[_Part] = []
        for _ in range(STEPS):
            new = self._grown_by(beam, conditions, POOL)
            pool = pool or new
            yield from new[: 2 * BEAM]
            beam = new[:BEAM]
        yield from self._grown_by(pool[: 2 * BEAM], pool, 2 * BEAM)

    def _fit_of(self, parts: Sequence[_Part]) -> np.ndarray:
        """Bits that conditions save on the half that is fitted, less their lengths."""
        x = np.stack([c.values[self.h.fit] for c in parts]).astype(np.float32)
        ones = x.sum(1, dtype=float)
        with_z = (x @ self.z.astype(np.float32)).astype(float)
        return self._rough(self._explained(ones, ones, with_z, len(self.z))) - np.array([c.bits for c in parts])

    def _grown_by(self, beam: Sequence[_Part], conditions: Sequence[_Part], most: int) -> list[_Part]:
        """The best so many joints of a part of the beam with a condition, no two of the same values."""
        x = np.stack([c.values[self.h.fit] for c in conditions]).astype(np.float32)
        n, z = len(self.z), self.z.astype(np.float32)
        bits = np.array([c.bits for c in conditions])
        ones, with_z = x.sum(1, dtype=float), (x @ z).astype(float)
        grown: list[tuple[float, int, int, int]] = []
        for b, state in enumerate(beam):
            s = state.values[self.h.fit].astype(np.float32)
            n11, z11 = (x @ s).astype(float), (x @ (s * z)).astype(float)
            n1, z1 = float(s.sum()), float((s * z).sum())
            cells = (
                (n11, z11), (n1 - n11, z1 - z11), (ones - n11, with_z - z11),
                (n - n1 - ones + n11, -z1 - with_z + z11), (n1 + ones - 2 * n11, z1 + with_z - 2 * z11),
            )  # fmt: skip
            for way, (number, total) in enumerate(cells[: 5 if self.parity else 4]):
                gain = self._rough(self._explained(number, number, total, n)) - bits - state.bits
                for i in np.argsort(-gain, kind="stable")[:most].tolist():
                    grown.append((-float(gain[i]), b, way, i))
        new: list[_Part] = []
        seen: set[bytes] = set()
        for _, b, way, i in sorted(grown):
            part = _join(beam[b], conditions[i], way)
            key = (part.values > 0.5).tobytes()
            if key not in seen:
                seen.add(key)
                new.append(part)
            if len(new) == most:
                break
        return new

    def _conditions(self) -> list[_Part]:
        usable = self.given.holds & (~self.odd | self.parity)
        return self.of_candidates(np.flatnonzero(usable)) + [c for c in self.parts if c.expression.holds]

    # -- conditions counted ------------------------------------------------------------------------------------------

    def counted(self) -> Iterator[_Part]:
        """How many of several conditions hold, of the features of vectors; a mean for every number of them."""
        if self.given.reading.sample.is_text:
            return
        literals = []
        for part in self._conditions():
            if isinstance(part.expression, p.AtLeast | p.Picture):
                turned = _Part(p.Not(of=part.expression), 1 - part.values, part.bits + p.KIND_BITS)
                literals += [part, turned]
        if not literals:
            return
        x = np.stack([c.values[self.h.fit] for c in literals]).astype(np.float32)
        fit = self._explained(x.sum(1), x.sum(1), x @ self.z.astype(np.float32), len(self.z))
        beams = [[int(i)] for i in np.argsort(-fit, kind="stable")[:BEAM]]
        for size in range(2, LITERALS + 1):
            grown: list[tuple[float, list[int]]] = []
            for chosen in beams:
                explained = self._grown(x, x[chosen].sum(0), size)
                for i in np.argsort(-explained, kind="stable")[: 2 * BEAM].tolist():
                    if i not in chosen and i ^ 1 not in chosen:
                        grown.append((-float(explained[i]), sorted([*chosen, i])))
            distinct = {tuple(c): g for g, c in sorted(grown, reverse=True)}
            beams = [list(c) for c, _ in sorted(distinct.items(), key=lambda kv: (kv[1], kv[0]))[:BEAM]]
            for chosen in beams:
                of = [literals[i] for i in chosen]
                bits = p.KIND_BITS + sum(c.bits for c in of)
                total, number = p.Total(of=tuple(c.expression for c in of)), np.sum([c.values for c in of], 0)
                yield _Part(total, number, bits)
                for k in range(2, size):
                    least = p.AtLeast(of=total, value=k)
                    yield _Part(least, (number >= k).astype(np.float32), bits + p.KIND_BITS + p.NUMBER_BITS)

    def _grown(self, x: np.ndarray, total: np.ndarray, size: int) -> np.ndarray:
        """Share of variance explained by the levels of `total` with each of the rows of x [L, P] added to it."""
        number = np.zeros((size + 1, len(x)))
        sums = np.zeros((size + 1, len(x)))
        for level in range(size):
            here = (total == level).astype(np.float32)
            n1, z1 = x @ here, x @ (here * self.z).astype(np.float32)
            number[level + 1] += n1
            sums[level + 1] += z1
            number[level] += here.sum() - n1
            sums[level] += (here * self.z).sum() - z1
        return (sums**2 / np.maximum(number, 1)).sum(0) / len(self.z)

    # -- cases -------------------------------------------------------------------------------------------------------

    def cases(self) -> Iterator[_Part]:
        """Other expressions where a condition holds than elsewhere: the best first question, then the next."""
        questions = self._questions()
        if not questions:
            return
        everywhere = np.ones(len(self.a), dtype=bool)
        asked: list[tuple[_Part, _Part]] = []  # (question, what holds there), then the rest
        for _ in range(CASES):
            answer = self._split(everywhere, questions)
            if answer is None:
                return
            when, then, rest = answer
            asked.append((when, then))
            everywhere = everywhere & (when.values < 0.5)
            out = rest
            for w, t in reversed(asked):
                out = _Part(
                    p.Cases(when=w.expression, then=t.expression, otherwise=out.expression),
                    np.where(w.values > 0.5, t.values, out.values), p.KIND_BITS + w.bits + t.bits + out.bits,
                )  # fmt: skip
            yield out

    def _questions(self) -> list[_Part]:
        """The conditions that may be asked, as many as QUESTIONS allows: half the most telling, half the shortest."""
        conditions = self._conditions()
        x = np.stack([c.values[self.h.fit] for c in conditions]).astype(np.float32) if conditions else self.h.x[:0]
        fit = self._explained(x.sum(1), x.sum(1), x @ self.z.astype(np.float32), len(self.z))
        bits = np.array([c.bits for c in conditions])
        most = max(1, QUESTIONS // max(1, self.h.x.size) // 2)
        telling, brief = np.lexsort((bits, -fit))[:most], np.argsort(bits, kind="stable")[:most]
        return [conditions[i] for i in dict.fromkeys([*telling.tolist(), *brief.tolist()])]

    def _split(self, where: np.ndarray, questions: list[_Part]) -> tuple[_Part, _Part, _Part] | None:
        """The question that leaves least unexplained of the activity at these places, with the best line on each side;
        None where there is too little left to ask about."""
        at = where[self.h.fit]
        if at.sum() < 8:
            return None
        x, z = self.h.x, self.z
        sides = []
        for turned in (False, True):
            masks = np.stack([((q.values[self.h.fit] > 0.5) != turned) & at for q in questions]).astype(np.float32)
            number = masks.sum(1, dtype=float)
            mean = (masks @ z) / np.maximum(number, 1)
            base = masks @ z**2 - number * mean**2  # left by a constant [Q]
            ones, squares = x @ masks.T, (x**2) @ masks.T
            with_z = x @ (masks * z.astype(np.float32)).T - ones * mean
            spread = squares - ones**2 / np.maximum(number, 1)
            gain = np.where(spread > 1e-4 * np.maximum(number, 1), with_z**2 / np.maximum(spread, 1e-9), 0.0)
            left = np.vstack([base - gain, base[None]])  # [F + 1, Q]; the last is the constant
            length = np.append(self.given.bits, 0.0)
            rough = self.h.examples / 2 * np.log2(np.maximum(left, 0) / len(z) + FLOOR) + length[:, None]
            choice = rough.argmin(0)
            sides.append((left[choice, np.arange(len(questions))], choice, number))
        total = (sides[0][0] + sides[1][0]) / len(z)
        length = np.append(self.given.bits, 0.0)
        cost = self.h.examples / 2 * np.log2(np.maximum(total, 0) + FLOOR)
        cost = cost + [q.bits for q in questions] + length[sides[0][1]] + length[sides[1][1]]
        cost = np.where((sides[0][2] >= 4) & (sides[1][2] >= 4), cost, np.inf)
        best = int(cost.argmin())
        if not np.isfinite(cost[best]):
            return None
        q = questions[best]
        holds = q.values > 0.5
        return q, self._leaf(int(sides[0][1][best]), where & holds), self._leaf(int(sides[1][1][best]), where & ~holds)

    def _leaf(self, choice: int, where: np.ndarray) -> _Part:
        """A candidate on a line, or a constant, fitted at these places of the half that is fitted."""
        at = self.h.fit[where[self.h.fit]]
        cost = math.log2(max(2, self.h.examples)) / 2
        if choice == len(self.given.expressions):
            value = self._number(float(self.a[at].mean()))
            return _Part(p.Constant(value=value), np.full(len(self.a), value), cost + p.KIND_BITS)
        [part] = self.of_candidates([choice])
        slope, base = self._line(part.values[at].astype(float), self.a[at])
        line = p.Line(of=part.expression, slope=slope, base=base)
        return _Part(line, base + slope * part.values, part.bits + 2 * cost)


def _join(a: _Part, b: _Part, way: int) -> _Part:
    """a and b; a and not b; b and not a; neither; one of the two."""
    x, y = a.values > 0.5, b.values > 0.5
    if way == 4:
        return _Part(
            p.Odd(of=(a.expression, b.expression)),
            (x != y).astype(np.float32),
            a.bits + b.bits + p.KIND_BITS + p.ODD_BITS,
        )
    turn_a, turn_b = way in (2, 3), way in (1, 3)
    values = (x != turn_a) & (y != turn_b)
    if way == 3:  # said as what it is not
        return _Part(p.AnyOf(of=_flat(p.AnyOf, a, b)), (x | y).astype(np.float32), a.bits + b.bits + p.KIND_BITS)
    parts = [_turned(s, t) for s, t in ((a, turn_a), (b, turn_b))]
    bits = a.bits + b.bits + p.KIND_BITS * (1 + turn_a + turn_b)
    return _Part(p.All(of=_flat(p.All, *parts)), values.astype(np.float32), bits)


def _turned(part: _Part, turn: bool) -> _Part:
    if not turn:
        return part
    of = part.expression
    return _Part(of.of if isinstance(of, p.Not) else p.Not(of=of), 1 - part.values, part.bits)


def _flat(kind: type[p.All | p.AnyOf], *parts: _Part) -> tuple[p.Node, ...]:
    """What is joined, without joints of the same kind inside."""
    return tuple(e for s in parts for e in (s.expression.of if isinstance(s.expression, kind) else (s.expression,)))


__all__ = ["Found", "Halves"]
