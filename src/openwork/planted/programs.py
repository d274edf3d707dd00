"""Cases made by the compiler: programs over short sequences, and prompts whose answers their interpreter gives.

Knows programs and how to draw prompts. Does not know weights, distractors or methods.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from openwork.planted.case import Ablation, Case, Prompt, make, sequence_task
from openwork.planted.compiler import GAIN, Compiled, compile_program
from openwork.planted.rasp import (
    UNCLEAR,
    Average,
    Categorical,
    Curve,
    Fetch,
    Indicator,
    Number,
    Positions,
    Same,
    Select,
    Sharp,
    Tokens,
    run,
)

FAVOURED = 1.8  # out of distribution, the first letters are so many times as frequent than the last
STEEP = 240.0  # unembedding of an average, which differs from its threshold by a few hundredths


@dataclass(frozen=True)
class Program:
    """A program, the prompts that are asked of it, and how to say so.

    letters    tokens that stand anywhere in a prompt, from id 0
    length     tokens of a prompt
    first      earliest position that is asked; with `last`, the only one
    begins     whether a prompt begins with a token of its own, the last id
    markers    whether the position that is asked holds a marker (ids after the letters), one per letter
    threshold  of a number; None for a categorical program
    """

    expression: Categorical | Number
    letters: int
    length: int
    about: str
    answers: tuple[str, ...]
    first: int = 1
    begins: bool = False
    markers: bool = False
    threshold: float | None = None
    gain: float = GAIN
    ablation: Ablation = "zero"

    @property
    def words(self) -> tuple[str, ...]:
        """What the token ids stand for."""
        letters = tuple("abcdefghijkl"[: self.letters])
        return letters + (tuple(w.upper() for w in letters) if self.markers else ()) + ("^",) * self.begins

    def compiled(self) -> Compiled:
        """The transformer that computes it."""
        return compile_program(self.expression, len(self.words), self.length, self.threshold, self.gain)

    def answer(self, tokens: Sequence[int], at: int) -> int | None:
        """The output that is right at a position; None where the program has no clear value there."""
        inner = tokens[: at + 1]
        letters = inner[1:] if self.begins else inner
        letters = letters[:-1] if self.markers else letters
        if any(t >= self.letters for t in letters) or (self.begins and tokens[0] != len(self.words) - 1):
            return None
        if self.markers and not self.letters <= tokens[at] < 2 * self.letters:
            return None
        value = run(self.expression, inner)[at]
        if value is UNCLEAR:
            return None
        if self.threshold is None:
            domain = self.expression.domain  # type: ignore[union-attr]
            return domain.index(value) if value in domain else None
        distance = float(value) - self.threshold  # type: ignore[arg-type]
        return None if abs(distance) < 1e-6 else int(distance > 0)


def letters_of(n: int) -> tuple[str, ...]:
    """Names of the first n letters."""
    return tuple("abcdefghijkl"[:n])


def _fraction(letters: int, length: int, ablation: Ablation = "zero") -> Program:
    tokens = Tokens(letters)
    share = Average(Select(tokens, tokens, lambda k, q: True), Indicator(tokens, lambda t: float(t == 0)))
    return Program(
        share, letters, length, "more than half of the letters so far are a", ("at most half", "more than half"),
        threshold=0.5, gain=STEEP, ablation=ablation,
    )  # fmt: skip


def _counted(letters: int, length: int) -> tuple[Average, int]:
    """1 / (1 + how many a there were): attention to a and to the token at the beginning, of which there is one."""
    tokens, begin = Tokens(letters + 1), letters
    some = Select(tokens, tokens, lambda k, q: k in (0, begin))
    return Average(some, Indicator(tokens, lambda t: float(t == begin))), begin


def _at_most_one(letters: int, length: int) -> Program:
    share, _ = _counted(letters, length)
    return Program(
        share, letters, length, "there was at most one a", ("two or more", "at most one"),
        begins=True, threshold=5 / 12, gain=STEEP,
    )  # fmt: skip


def _exactly_two(letters: int, length: int) -> Program:
    share, _ = _counted(letters, length)
    curve = Curve(share, ((1 / 4, 0.0), (1 / 3, 1.0), (1 / 2, 0.0)))  # below 0 where there is one, or none
    return Program(
        curve, letters, length, "there were exactly two a", ("another number", "exactly two"),
        begins=True, threshold=0.5, gain=2 * GAIN,
    )  # fmt: skip


def _seen_before(letters: int, length: int) -> Program:
    tokens, begin = Tokens(letters + 1), letters
    alike = Select(tokens, tokens, lambda k, q: k in (q, begin))
    share = Average(alike, Indicator(tokens, lambda t: float(t == begin)))
    return Program(
        share, letters, length, "this letter is new", ("seen before", "new"), first=2,
        begins=True, threshold=5 / 12, gain=STEEP,
    )  # fmt: skip


def _same_as_first(letters: int, length: int) -> Program:
    tokens, place = Tokens(letters), Positions(length)
    first = Fetch(Select(place, place, lambda k, q: k == 0), tokens)
    return Program(
        Same(tokens, first), letters, length, "this letter is the first one again", ("another", "the first"),
        threshold=0.5,
    )  # fmt: skip


def _back(tokens: Tokens, length: int, steps: int, keep: tuple[int, ...] = (), start: int = 0, stop: int = 0) -> Fetch:
    """The token `steps` back, at the positions from `start` and before `stop` (0: all that have one)."""
    place, end = Positions(length), stop or length
    one = Select(place, place, lambda k, q: k == q - steps and start <= q < end)  # type: ignore[operator]
    return Fetch(one, tokens, keep)


def _previous(letters: int, length: int, steps: int = 1) -> Program:
    back = _back(Tokens(letters), length, steps)
    return Program(back, letters, length, f"the letter {steps} back", letters_of(letters), first=steps)


def _previous_of_previous(letters: int, length: int) -> Program:
    tokens, place = Tokens(letters), Positions(length)
    early = Select(place, place, lambda k, q: k == q - 1 and 2 <= q < length - 1)  # type: ignore[operator]
    late = Select(place, place, lambda k, q: k == q - 1 and q > 2)  # type: ignore[operator]
    twice = Fetch(late, Fetch(early, tokens))
    about = "the letter two back, in two steps of one"
    return Program(twice, letters, length, about, letters_of(letters), first=3)


def _third(letters: int, length: int) -> Program:
    tokens, place = Tokens(letters), Positions(length)
    third = Fetch(Select(place, place, lambda k, q: k == 2), tokens)
    return Program(third, letters, length, "the third letter", letters_of(letters), first=3)


def _after_a(letters: int, length: int) -> Program:
    """Values are b, c, ...: after the only a."""
    tokens = Tokens(letters + 1)
    before = Sharp(_back(tokens, length, 1, keep=(0,), start=2))
    after = Fetch(Select(before, tokens, lambda k, q: k == 0), tokens, keep=tuple(range(1, letters)))
    return Program(
        after, letters, length, "the letter after the a", letters_of(letters)[1:], first=length - 1, begins=True
    )


def _induction(letters: int, length: int) -> Program:
    tokens, some = Tokens(letters + 1), tuple(range(letters))
    before = Sharp(_back(tokens, length, 1, keep=some, start=2))
    after = Fetch(Select(before, tokens, lambda k, q: k == q), tokens, keep=some)
    about = "the letter that followed this one last time"
    return Program(after, letters, length, about, letters_of(letters), first=length - 1, begins=True)


def _reverse_lookup(letters: int, length: int) -> Program:
    tokens, some = Tokens(2 * letters + 1), tuple(range(letters))
    before = _back(tokens, length, 1, keep=some, start=2, stop=length - 1)
    found = Fetch(Select(tokens, tokens, lambda k, q: k == q - letters and k in some), before)  # type: ignore[operator]
    about = "the letter before the one that is asked for"
    return Program(found, letters, length, about, letters_of(letters), first=length - 1, begins=True, markers=True)


def _window_parity(letters: int, length: int) -> Program:
    tokens, place = Tokens(letters), Positions(length)
    window = Select(place, place, lambda k, q: q >= 2 and q - 2 <= k <= q)  # type: ignore[operator]
    share = Average(window, Indicator(tokens, lambda t: float(t == 0)))
    curve = Curve(share, ((0.0, 0.0), (1 / 3, 1.0), (2 / 3, 0.0), (1.0, 1.0)))
    return Program(
        curve, letters, length, "an odd number of the last three letters are a", ("even", "odd"), first=2, threshold=0.5
    )


PROGRAMS: dict[str, Callable[[], Program]] = {
    "fraction_3x8": partial(_fraction, 3, 8),
    "fraction_3x10_mean": partial(_fraction, 3, 10, "mean"),
    "at_most_one_3x7": partial(_at_most_one, 3, 7),
    "exactly_two_3x8": partial(_exactly_two, 3, 8),
    "seen_before_3x7": partial(_seen_before, 3, 7),
    "seen_before_5x9": partial(_seen_before, 5, 9),
    "same_as_first_3x6": partial(_same_as_first, 3, 6),
    "same_as_first_5x8": partial(_same_as_first, 5, 8),
    "previous_3x6": partial(_previous, 3, 6),
    "two_back_4x8": partial(_previous, 4, 8, 2),
    "previous_twice_3x6": partial(_previous_of_previous, 3, 6),
    "third_4x8": partial(_third, 4, 8),
    "after_a_4x8": partial(_after_a, 4, 8),
    "induction_4x8": partial(_induction, 4, 8),
    "induction_5x9": partial(_induction, 5, 9),
    "reverse_lookup_4x8": partial(_reverse_lookup, 4, 8),
    "window_parity_3x6": partial(_window_parity, 3, 6),
    "window_parity_2x8": partial(_window_parity, 2, 8),
}


def case(name: str, seed: int) -> Case:
    """The case of a program."""
    program = PROGRAMS[name]()
    compiled = program.compiled()
    about = f"tell {'whether ' if program.threshold is not None else ''}{program.about}"
    task = sequence_task(name, about, program.words, program.answers, partial(_draw, program), program.answer, seed)
    return make(name, "rasp", compiled.model, task, program.about, program.ablation, compiled.nodes)


def _draw(program: Program, rng: random.Random, pair: int, ood: bool) -> Prompt:
    """Letters at random, the favoured ones first where out of distribution; markers and beginnings where they belong;
    all positions and answers are asked equally often."""
    n = program.letters
    weights = [1 + (FAVOURED - 1) * (n - 1 - i) / max(1, n - 1) for i in range(n)] if ood else [1.0] * n
    tokens = rng.choices(range(n), weights, k=program.length)
    at = program.first + pair // len(program.answers) % (program.length - program.first)
    if program.begins:
        tokens[0] = len(program.words) - 1
    if program.markers:
        tokens[at] = n + rng.randrange(n)
    return tuple(tokens), at
