"""Kinds of expressions about Python text: open brackets and strings, and the line that a token stands in.

Knows readings, which follow the text character by character. Does not know tokenizers.

Shapes: N examples, T positions; values are float [N, T].
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from openwork.explain.words.predicates.node import Node, Words, quoted
from openwork.explain.words.reading import OPENERS, Reading

Opener = Literal["(", "[", "{", "'", '"', "'''", '"""']


class Innermost(Node):
    """The innermost bracket or string that is open after the present token is one of these; "" stands for none."""

    kind: Literal["innermost"] = "innermost"
    of: Annotated[tuple[Opener | Literal[""], ...], Field(min_length=1)]

    def on(self, reading: Reading) -> np.ndarray:
        wanted = [OPENERS.index(o) if o else -1 for o in self.of]
        return np.isin(reading.lexed["innermost"], wanted).astype(float)

    def says(self) -> str:
        return " or ".join(f"it is just inside an open {o}" if o else "no bracket or string is open" for o in self.of)


class Open(Node):
    """How many brackets or strings of these kinds are open after the present token."""

    kind: Literal["open"] = "open"
    of: Annotated[tuple[Opener, ...], Field(min_length=1)]
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        return np.sum([reading.lexed[f"open:{o}"] for o in self.of], axis=0).astype(float)

    def says(self) -> str:
        return f"the number of {' and '.join(self.of)} that are open"


class LineStarts(Node):
    """The line that the token is in begins with one of these words, spaces aside."""

    kind: Literal["line_starts"] = "line_starts"
    words: Words

    def on(self, reading: Reading) -> np.ndarray:
        first, wanted = reading.lexed["line_token"], set(self.words)
        table = np.array([*(w in wanted for w in reading.sample.words), False])
        return table[first].astype(float)  # -1, no word yet, is the last entry

    def says(self) -> str:
        return f"the line begins with {quoted(self.words)}"


class Indent(Node):
    """How many spaces and tabs the line begins with, so far."""

    kind: Literal["indent"] = "indent"
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        return reading.lexed["indent"].astype(float)

    def says(self) -> str:
        return "the indentation of the line"


class LinePlace(Node):
    """How many tokens ago the line began."""

    kind: Literal["line_place"] = "line_place"
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        return reading.lexed["line_place"].astype(float)

    def says(self) -> str:
        return "the place in the line"
