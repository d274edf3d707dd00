"""Kinds of expressions about vectors and images: features, patches, small pictures, and right answers.

Knows readings. Does not know what features mean.

Shapes: N examples; values are float [N] (of right answers of tokens [N, T]).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from openwork.errors import UsageError
from openwork.explain.words.predicates.node import KIND_BITS, NUMBER_BITS, Node, Steps, Words, quoted
from openwork.explain.words.reading import Reading

PIXELS = 49  # of a picture


class Feature(Node):
    """A feature, by its name."""

    kind: Literal["feature"] = "feature"
    name: str
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        return reading.feature(self.name).astype(float)

    def says(self) -> str:
        return self.name


class Patch(Node):
    """The mean of a rectangle of pixels."""

    kind: Literal["patch"] = "patch"
    top: Steps
    left: Steps
    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        rows, columns = slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)
        part = reading.images[:, rows, columns]
        if not part.shape[1] or not part.shape[2]:
            raise UsageError(f"this predicate is about pixels at ({self.top}, {self.left}), outside of the images.")
        return part.mean((1, 2))

    def says(self) -> str:
        last = (
            f"rows {self.top} to {self.top + self.height - 1} and columns {self.left} to {self.left + self.width - 1}"
        )
        return f"the brightness in {last}"


class Picture(Node):
    """A small picture is somewhere in the image, pixel by pixel: "#" where a pixel exceeds `above`, "." elsewhere.

    top, bottom  rows of the image that count, from `top` up to and without `bottom`; all where that is None
    """

    kind: Literal["picture"] = "picture"
    rows: Annotated[tuple[Annotated[str, Field(pattern=r"^[#.]+$")], ...], Field(min_length=1)]
    above: float = 0.0
    top: Steps = 0
    bottom: Steps | None = None

    def on(self, reading: Reading) -> np.ndarray:
        height, width = len(self.rows), len(self.rows[0])
        if height > reading.images.shape[1] or width > reading.images.shape[2]:
            return np.zeros(len(reading.images))
        key = ("pictures", height, width, self.above)
        codes = reading.once(key, lambda: codes_of(reading.images > self.above, height, width))
        last = None if self.bottom is None else max(self.top, self.bottom - height + 1)
        return (codes[:, self.top : last] == code_of(self.rows)).any((1, 2)).astype(float)

    def model_post_init(self, context: Any, /) -> None:
        """Rows are of one length, and few enough to be counted in one number."""
        if len({len(r) for r in self.rows}) > 1 or len(self.rows) * len(self.rows[0]) > PIXELS:
            raise ValueError(f"`rows` has to have rows of equal length, with at most {PIXELS} pixels together")

    def bits(self, words: int) -> float:
        """A bit per pixel, and the rows."""
        return (
            KIND_BITS + len(self.rows) * len(self.rows[0]) + NUMBER_BITS * ((self.top > 0) + (self.bottom is not None))
        )

    def says(self) -> str:
        rows = "" if self.bottom is None and not self.top else f" in rows {self.top} to {(self.bottom or 0) - 1}"
        rows = f" from row {self.top} on" if self.bottom is None and self.top else rows
        return f"the picture {' / '.join(self.rows)} is somewhere{rows}"


def codes_of(dark: np.ndarray, height: int, width: int) -> np.ndarray:
    """int [N, H - height + 1, W - width + 1]: the window at each place as a binary number; dark is bool [N, H, W]."""
    windows = np.lib.stride_tricks.sliding_window_view(dark, (height, width), (1, 2))
    return windows.reshape(*windows.shape[:3], -1) @ (1 << np.arange(height * width, dtype=np.int64))


def code_of(rows: Sequence[str]) -> int:
    """The number of one picture (see `codes_of`)."""
    return sum((c == "#") << i for i, c in enumerate("".join(rows)))


class Answer(Node):
    """The right answer is one of these."""

    kind: Literal["answer"] = "answer"
    words: Words

    def on(self, reading: Reading) -> np.ndarray:
        s = reading.sample
        if not s.right:
            raise UsageError("this predicate is about right answers, and these examples have none.")
        is_it = np.isin(np.array(s.right, dtype=object), list(self.words)).astype(float)
        return is_it if s.tokens is None else np.broadcast_to(is_it[:, None], s.tokens.shape).copy()

    def says(self) -> str:
        return f"the right answer is {quoted(self.words)}"
