"""A sample read once: the arrays that predicates are worked out from, made when first asked for.

Of Python text it follows characters, not tokens: which brackets and strings are open after a token, how the line begins
and how far it is indented, so that it does not matter how a tokenizer cuts them. Knows samples. Does not know
predicates, activity or models.

Shapes: N examples, T positions, F features. Positions after the one that is asked hold something, without meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from openwork.errors import UsageError
from openwork.explain.words.topic import Sample

OPENERS = ("(", "[", "{", "'", '"', "'''", '"""')  # what can be open, in Python
CLOSES = {")": "(", "]": "[", "}": "{"}
STRINGS = OPENERS[3:]

Made = TypeVar("Made")


class Reading:
    """A sample, and what has been worked out of it so far."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self._made: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Made]) -> Made:
        """What `make` gives, made only when it is asked for first under this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @cached_property
    def tokens(self) -> np.ndarray:
        """int [N, T]; UsageError where examples are no tokens."""
        if self.sample.tokens is None:
            raise UsageError("this predicate is about tokens, and the examples are vectors.")
        return self.sample.tokens

    @cached_property
    def features(self) -> np.ndarray:
        """float [N, F]; UsageError where examples are tokens."""
        if self.sample.features is None:
            raise UsageError("this predicate is about named features or pixels, and the examples are tokens.")
        return self.sample.features

    @cached_property
    def images(self) -> np.ndarray:
        """float [N, height, width], the mean over channels; UsageError where features are no pixels."""
        if len(self.sample.shape) != 3:
            raise UsageError("this predicate is about pixels, and the features of these examples are none.")
        height, width, channels = self.sample.shape
        return self.features.reshape(-1, height, width, channels).mean(-1)

    def feature(self, name: str) -> np.ndarray:
        """float [N], the feature of that name."""
        if name not in self.sample.names:
            raise UsageError(f'these examples have no feature "{name}".')
        return self.features[:, self.sample.names.index(name)]

    def among(self, words: Sequence[str]) -> np.ndarray:
        """bool [N, T]: whether the token reads as one of these words."""
        return self.once(("among", tuple(words)), lambda: self._among(frozenset(words)))

    def _among(self, words: frozenset[str]) -> np.ndarray:
        table = np.fromiter((w in words for w in self.sample.words), bool, len(self.sample.words))
        return table[self.tokens] if len(table) else np.zeros(self.tokens.shape, dtype=bool)

    @cached_property
    def places(self) -> np.ndarray:
        """int [N, T]: the position itself, from 0."""
        return np.broadcast_to(np.arange(self.tokens.shape[1]), self.tokens.shape)

    def back(self, values: np.ndarray, steps: int) -> np.ndarray:
        """Values [N, T] of so many positions back, of the first one where there are not so many."""
        return values[:, np.maximum(np.arange(values.shape[1]) - steps, 0)]

    def at(self, values: np.ndarray, place: int) -> np.ndarray:
        """Values [N, T] of one position, of the present one before that."""
        return values[:, np.minimum(np.arange(values.shape[1]), place)]

    @cached_property
    def alike(self) -> np.ndarray:
        """bool [N, T, T]: whether the token at a position up to [.., q, ..] is the one at q."""
        return self._causal & (self.tokens[:, :, None] == self.tokens[:, None, :])

    @cached_property
    def after_alike(self) -> np.ndarray:
        """bool [N, T, T]: whether the token before a position up to q is the one at q; the first precedes itself."""
        return self._causal & (self.tokens[:, :, None] == self.back(self.tokens, 1)[:, None, :])

    @cached_property
    def _causal(self) -> np.ndarray:
        n = self.tokens.shape[1]
        return np.tril(np.ones((n, n), dtype=bool))

    @cached_property
    def earlier(self) -> np.ndarray:
        """int [N, T]: how often the present token occurred before."""
        return self.alike.sum(-1) - 1

    # -- Python, character by character ------------------------------------------------------------------------------

    @cached_property
    def lexed(self) -> dict[str, np.ndarray]:
        """int [N, T] after each token: `innermost` (place in OPENERS, -1), `open:X` (how many X), `indent` (columns),
        `line_place` (tokens since the line began), `line_token` (id of the first word of the line, -1 before one)."""
        n, width = self.tokens.shape
        out = {k: np.zeros((n, width), dtype=np.int64) for k in ("indent", "line_place")}
        out |= {k: np.full((n, width), -1, dtype=np.int64) for k in ("innermost", "line_token")}
        out |= {f"open:{o}": np.zeros((n, width), dtype=np.int64) for o in OPENERS}
        for i, (row, end) in enumerate(zip(self.tokens.tolist(), self.sample.asked.tolist(), strict=True)):
            lexer = _Lexer()
            for t, token in enumerate(row[: end + 1]):
                lexer.read(self.sample.words[token], token)
                stack = lexer.stack
                out["innermost"][i, t] = OPENERS.index(stack[-1]) if stack else -1
                for o in stack:
                    out[f"open:{o}"][i, t] += 1
                out["indent"][i, t], out["line_place"][i, t] = lexer.indent, lexer.since
                out["line_token"][i, t] = lexer.first
        return out


class _Lexer:
    """Brackets, strings, comments and lines of Python text that comes token by token."""

    def __init__(self) -> None:
        self.stack: list[str] = []  # what is open, outermost first
        self.run = ""  # the last characters as far as they are one quote sign repeated
        self.just_closed = ""  # a quote that closed an empty string right now: one more makes it three
        self.escaped = self.comment = self.spent = False
        self.leading = True
        self.indent, self.since, self.first = 0, -1, -1

    def read(self, word: str, token: int) -> None:
        """Takes in one token."""
        self.since += 1
        for c in word:
            self._character(c)
            if self.first < 0 and not c.isspace():
                self.first = token

    def _character(self, c: str) -> None:
        if c == "\n":
            self._line()
        elif self.leading and c in " \t":
            self.indent += 1
        else:
            self.leading = False
        after = "" if c not in "'\"" else self.run + c if self.run[-1:] == c else c
        in_string = bool(self.stack) and self.stack[-1] in STRINGS
        if self.escaped:
            self.escaped = False
        elif in_string:
            self._in_string(c)
        elif not self.comment:
            self._in_code(c)
        self.run = "" if self.spent else after
        self.spent = False

    def _line(self) -> None:
        self.comment, self.leading = False, True
        self.indent, self.since, self.first = 0, 0, -1
        if self.stack and self.stack[-1] in "'\"":
            self.stack.pop()

    def _in_string(self, c: str) -> None:
        quote = self.stack[-1]
        if c == "\\":
            self.escaped = True
        elif len(quote) == 1 and c == quote:
            self.stack.pop()
            self.just_closed = quote if self.run[-1:] == quote and len(self.run) == 1 else ""
            return
        elif len(quote) == 3 and (self.run + c)[-3:] == quote and len(self.run) >= 2:
            self.stack.pop()
            self.spent = True
        self.just_closed = ""

    def _in_code(self, c: str) -> None:
        if c in "'\"":
            triple = self.just_closed == c
            self.stack.append(3 * c if triple else c)
            self.spent = triple  # what opened the string does not help to close it
        elif c == "#":
            self.comment = True
        elif c in "([{":
            self.stack.append(c)
        elif c in CLOSES and self.stack and self.stack[-1] == CLOSES[c]:
            self.stack.pop()
        self.just_closed = ""


__all__ = ["OPENERS", "Reading"]
