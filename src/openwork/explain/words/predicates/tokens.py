"""Kinds of expressions about tokens: what stands here, what has come so far and how often, and where one is.

Positions before the first are counted as the first one (its predecessor is itself). Knows readings. Does not know what
the tokens mean.

Shapes: N examples, T positions; values are float [N, T].
"""

from __future__ import annotations

import json
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from openwork.explain.words.predicates.node import Node, Steps, Words, quoted
from openwork.explain.words.reading import Reading

LOOKS = ("a line break", "a space", "a number", "a word", "a sign")


def _where(back: int) -> str:
    return ("the token", "the token before")[back] if back < 2 else f"the token {back} back"


class TokenIs(Node):
    """The token `back` positions ago is one of these words; 0 is the present one."""

    kind: Literal["token"] = "token"
    words: Words
    back: Steps = 0

    def on(self, reading: Reading) -> np.ndarray:
        return reading.back(reading.among(self.words), self.back).astype(float)

    def says(self) -> str:
        return f"{_where(self.back)} is {quoted(self.words)}"


class TokenAt(Node):
    """The token at a position counted from the start is one of these; before that position, the present token is."""

    kind: Literal["token_at"] = "token_at"
    words: Words
    place: Steps

    def on(self, reading: Reading) -> np.ndarray:
        return reading.at(reading.among(self.words), self.place).astype(float)

    def says(self) -> str:
        return f"the token at position {self.place} is {quoted(self.words)}"


class Ngram(Node):
    """The last tokens are just these words, in this order."""

    kind: Literal["ngram"] = "ngram"
    words: Words

    def on(self, reading: Reading) -> np.ndarray:
        steps = range(len(self.words) - 1, -1, -1)
        fits = [
            reading.back(reading.among((w,)), k) & (reading.places >= k) for w, k in zip(self.words, steps, strict=True)
        ]
        return np.logical_and.reduce(fits).astype(float)

    def says(self) -> str:
        return f"the last tokens are {' '.join(json.dumps(w, ensure_ascii=False) for w in self.words)}"


class Looks(Node):
    """The token `back` positions ago is of a sort, by its characters without the spaces around them."""

    kind: Literal["looks"] = "looks"
    like: Literal["a line break", "a space", "a number", "a word", "a sign"]
    back: Steps = 0

    def on(self, reading: Reading) -> np.ndarray:
        words = tuple(w for w in dict.fromkeys(reading.sample.words) if looks_like(w) == self.like)
        return reading.back(reading.among(words), self.back).astype(float)

    def says(self) -> str:
        return f"{_where(self.back)} is {self.like}"


def looks_like(word: str) -> str:
    """Which of LOOKS a word is."""
    if "\n" in word:
        return LOOKS[0]
    inner = word.strip()
    if not inner:
        return LOOKS[1]
    if inner.replace(".", "").isdigit():
        return LOOKS[2]
    return LOOKS[3] if inner.replace("_", "").isalnum() else LOOKS[4]


class Seen(Node):
    """One of these words has come before the present token."""

    kind: Literal["seen"] = "seen"
    words: Words

    def on(self, reading: Reading) -> np.ndarray:
        here = reading.among(self.words)
        return (np.cumsum(here, 1) - here > 0).astype(float)

    def says(self) -> str:
        return f"{quoted(self.words)} came before"


class Recent(Node):
    """Of the words in `among`, the most recent one (the present one included) is in `words`; 0 where none has come."""

    kind: Literal["recent"] = "recent"
    words: Words
    among: Words

    def on(self, reading: Reading) -> np.ndarray:
        among, is_it = reading.among(self.among), reading.among(self.words)
        last = np.maximum.accumulate(np.where(among, reading.places, -1), 1)
        return ((last >= 0) & np.take_along_axis(is_it, np.maximum(last, 0), 1)).astype(float)

    def says(self) -> str:
        return f"the most recent of {quoted(self.among, 'and')} is {quoted(self.words)}"


class Repeated(Node):
    """The present token has come before."""

    kind: Literal["repeated"] = "repeated"

    def on(self, reading: Reading) -> np.ndarray:
        return (reading.earlier > 0).astype(float)

    def says(self) -> str:
        return "this token came before"


class Same(Node):
    """The present token is the one at a position counted from the start (`place`), or the one `back` positions ago."""

    kind: Literal["same"] = "same"
    place: Steps | None = None
    back: Steps = 0

    def on(self, reading: Reading) -> np.ndarray:
        t = reading.tokens
        return (t == (reading.back(t, self.back) if self.place is None else reading.at(t, self.place))).astype(float)

    def says(self) -> str:
        other = _where(self.back) if self.place is None else f"the token at position {self.place}"
        return f"this token is the same as {other}"


class Count(Node):
    """How many tokens so far, the present one included, are one of these words, less those in `minus`."""

    kind: Literal["count"] = "count"
    words: Words
    minus: tuple[str, ...] = ()
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        return np.cumsum(_signs(reading, self.words, self.minus), 1)

    def says(self) -> str:
        return f"the number of {quoted(self.words, 'and')} so far{_less(self.minus)}"


class Share(Node):
    """Of some tokens so far, the share that is one of these words, less the share that is in `minus`.

    The tokens in question: all so far (the present one included), or the `last` so many of them; of these those in
    `among`, or like the present one (`alike`), or preceded by a token in `after`, or by one like the present one
    (`after_alike`); of all so far where there are none such. With `shift` it is not these tokens that are looked at
    but the ones before them. So does an attention head that cares for such tokens.
    """

    kind: Literal["share"] = "share"
    words: Words
    minus: tuple[str, ...] = ()
    last: Annotated[int, Field(ge=1)] | None = None
    among: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    alike: bool = False
    after_alike: bool = False
    shift: bool = False
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        value = reading.back(_signs(reading, self.words, self.minus), int(self.shift))
        n = value.shape[1]
        whole = np.cumsum(value, 1) / np.arange(1, n + 1)
        if self.alike or self.after_alike:
            like = reading.alike if self.alike else reading.after_alike
            also = np.ones_like(value, dtype=bool)
            if self.among:
                also = reading.among(self.among)
                like = like | (np.tril(np.ones((n, n), dtype=bool)) & also[:, None, :])
            total = np.matmul(like, value[:, :, None])[..., 0]
            number = like.sum(-1)
        else:
            chosen = np.ones_like(value, dtype=bool)
            if self.among:
                chosen = chosen & reading.among(self.among)
            if self.after:
                chosen = chosen & reading.back(reading.among(self.after), 1)
            total, number = _window(value * chosen, self.last), _window(chosen.astype(float), self.last)
        return np.where(number > 0, total / np.maximum(number, 1), whole)

    def says(self) -> str:
        of = "the tokens so far" if self.last is None else f"the last {self.last} tokens"
        if self.alike:
            of = f"the tokens so far that are this one{' or ' + quoted(self.among) if self.among else ''}"
        elif self.after_alike:
            of = "the tokens so far that followed this one"
        elif self.among:
            of = f"the tokens so far that are {quoted(self.among)}"
        if self.after:
            of += f" that follow {quoted(self.after)}"
        of = of.replace("the tokens", "what came just before the tokens", 1) if self.shift else of
        return f"the share of {quoted(self.words)}{_less(self.minus)} among {of}"


def _signs(reading: Reading, words: tuple[str, ...], minus: tuple[str, ...]) -> np.ndarray:
    plus = reading.among(words).astype(float)
    return plus - reading.among(minus) if minus else plus


def _less(minus: tuple[str, ...]) -> str:
    return f" less that of {quoted(minus, 'and')}" if minus else ""


def _window(values: np.ndarray, last: int | None) -> np.ndarray:
    total = np.cumsum(values, 1)
    if last is not None and last < values.shape[1]:
        total[:, last:] -= total[:, :-last].copy()
    return total


class Earlier(Node):
    """How often the present token has come before."""

    kind: Literal["earlier"] = "earlier"
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        return reading.earlier.astype(float)

    def says(self) -> str:
        return "how often this token came before"


class Depth(Node):
    """How many of the words in `open` are not closed yet by one in `close`; a close without an open counts nothing."""

    kind: Literal["depth"] = "depth"
    open: Words
    close: Words
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        total = np.cumsum(_signs(reading, self.open, self.close), 1)
        return total - np.minimum(np.minimum.accumulate(total, 1), 0)

    def says(self) -> str:
        return f"how many {quoted(self.open, 'and')} are not yet closed by {quoted(self.close)}"


class Position(Node):
    """The position, from 0."""

    kind: Literal["position"] = "position"
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        return reading.places.astype(float)

    def says(self) -> str:
        return "the position"
