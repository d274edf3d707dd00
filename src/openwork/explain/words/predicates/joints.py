"""Kinds of expressions made of others: by and, or, not, by counting, and by giving them the size of an activity.

Knows what an expression is, and all kinds. Does not know readings' contents.

Shapes: those of the parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from openwork.explain.words.predicates.code import Indent, Innermost, LinePlace, LineStarts, Open
from openwork.explain.words.predicates.node import Node, short
from openwork.explain.words.predicates.tokens import (
    Count,
    Depth,
    Earlier,
    Looks,
    Ngram,
    Position,
    Recent,
    Repeated,
    Same,
    Seen,
    Share,
    TokenAt,
    TokenIs,
)
from openwork.explain.words.predicates.vectors import Answer, Feature, Patch, Picture
from openwork.explain.words.reading import Reading

ODD_BITS = 10.0  # what parity costs beside


class All(Node):
    """All of these hold."""

    kind: Literal["all"] = "all"
    of: Annotated[tuple[Expression, ...], Field(min_length=1)]

    def on(self, reading: Reading) -> np.ndarray:
        return np.logical_and.reduce([e.on(reading) > 0.5 for e in self.of]).astype(float)

    def says(self) -> str:
        return " and ".join(_inner(e) for e in self.of)


class AnyOf(Node):
    """At least one of these holds."""

    kind: Literal["any"] = "any"
    of: Annotated[tuple[Expression, ...], Field(min_length=1)]

    def on(self, reading: Reading) -> np.ndarray:
        return np.logical_or.reduce([e.on(reading) > 0.5 for e in self.of]).astype(float)

    def says(self) -> str:
        return " or ".join(_inner(e) for e in self.of)


def _inner(e: Node) -> str:
    return f"({e.says()})" if isinstance(e, All | AnyOf | Odd) else e.says()


class Not(Node):
    """This does not hold."""

    kind: Literal["not"] = "not"
    of: Expression

    def on(self, reading: Reading) -> np.ndarray:
        return (self.of.on(reading) <= 0.5).astype(float)

    def says(self) -> str:
        text = self.of.says()
        return (
            text.replace(" is ", " is not ", 1) if isinstance(self.of, TokenIs | TokenAt | Looks) else f"not ({text})"
        )


class Odd(Node):
    """An odd number of these hold."""

    kind: Literal["odd"] = "odd"
    of: Annotated[tuple[Expression, ...], Field(min_length=1)]

    def bits(self, words: int) -> float:
        """Longer than a joint of the same parts by and, or or a count: where those do as well they are meant."""
        return super().bits(words) + ODD_BITS

    def on(self, reading: Reading) -> np.ndarray:
        return np.logical_xor.reduce([e.on(reading) > 0.5 for e in self.of]).astype(float)

    def says(self) -> str:
        return f"an odd number of these hold: {'; '.join(e.says() for e in self.of)}"


class AtLeast(Node):
    """A number is at least `value`."""

    kind: Literal["at_least"] = "at_least"
    of: Expression
    value: float

    def on(self, reading: Reading) -> np.ndarray:
        return (self.of.on(reading) >= self.value - 1e-9).astype(float)

    def says(self) -> str:
        if isinstance(self.of, Open) and self.value == 1:
            return f"{' or '.join(self.of.of)} is open"
        return f"{self.of.says()} is at least {short(self.value)}"


class Between(Node):
    """A number is from `low` to `high`, both included."""

    kind: Literal["between"] = "between"
    of: Expression
    low: float
    high: float

    def on(self, reading: Reading) -> np.ndarray:
        x = self.of.on(reading)
        return ((x >= self.low - 1e-9) & (x <= self.high + 1e-9)).astype(float)

    def says(self) -> str:
        if self.low == self.high:
            return f"{self.of.says()} is {short(self.low)}"
        return f"{self.of.says()} is from {short(self.low)} to {short(self.high)}"


class Total(Node):
    """How many of these hold."""

    kind: Literal["total"] = "total"
    of: Annotated[tuple[Expression, ...], Field(min_length=1)]
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        return np.sum([e.on(reading) > 0.5 for e in self.of], axis=0).astype(float)

    def says(self) -> str:
        return f"how many of these hold: {'; '.join(e.says() for e in self.of)}"


class Excess(Node):
    """By how much a number exceeds `value`, else 0."""

    kind: Literal["excess"] = "excess"
    of: Expression
    value: float
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        return np.maximum(self.of.on(reading) - self.value, 0.0)

    def says(self) -> str:
        return f"by how much {self.of.says()} exceeds {short(self.value)}"


class Constant(Node):
    """The same everywhere."""

    kind: Literal["constant"] = "constant"
    value: float
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        s = reading.sample
        return np.full(len(s) if s.tokens is None else s.tokens.shape, self.value)

    def says(self) -> str:
        return f"always {short(self.value)}"


class Line(Node):
    """base + slope times something: a condition or a number given the size of an activity."""

    kind: Literal["line"] = "line"
    of: Expression
    slope: float
    base: float
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        return self.base + self.slope * self.of.on(reading)

    def says(self) -> str:
        if self.of.holds:
            return f"{short(self.base + self.slope)} where {self.of.says()}, {short(self.base)} elsewhere"
        way = "rises" if self.slope > 0 else "falls"
        return f"{way} with {self.of.says()} ({short(self.base)} {self.slope:+.3g} times it)"


class Levels(Node):
    """A mean for every value that a number is known to have; between two values that of the nearest."""

    kind: Literal["levels"] = "levels"
    of: Expression
    values: Annotated[tuple[float, ...], Field(min_length=1)]
    means: Annotated[tuple[float, ...], Field(min_length=1)]
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        values = np.array(self.values)
        cuts = (values[:-1] + values[1:]) / 2
        return np.array(self.means)[np.searchsorted(cuts, self.of.on(reading))]

    def says(self) -> str:
        said = ", ".join(f"{short(m)} at {short(v)}" for v, m in zip(self.values, self.means, strict=True))
        return f"depends on {self.of.says()}: {said}"

    def model_post_init(self, context: Any, /) -> None:
        """Values rise, and each has its mean."""
        if len(self.values) != len(self.means) or any(
            a >= b for a, b in zip(self.values, self.values[1:], strict=False)
        ):
            raise ValueError("`values` has to rise, and `means` needs one number for each of them")


class Cases(Node):
    """One expression where a condition holds, another one elsewhere."""

    kind: Literal["cases"] = "cases"
    when: Expression
    then: Expression
    otherwise: Expression
    holds: ClassVar[bool] = False

    def on(self, reading: Reading) -> np.ndarray:
        return np.where(self.when.on(reading) > 0.5, self.then.on(reading), self.otherwise.on(reading))

    def says(self) -> str:
        return f"where {self.when.says()}: {self.then.says()}; elsewhere: {self.otherwise.says()}"


if TYPE_CHECKING:
    Expression = Node
else:  # what data are checked against: the kind decides the class
    Expression = Annotated[
        TokenIs | TokenAt | Ngram | Looks | Seen | Recent | Repeated | Same | Count | Share | Earlier | Depth | Position
        | Innermost | Open | LineStarts | Indent | LinePlace | Feature | Patch | Picture | Answer | All | AnyOf | Not
        | Odd | AtLeast | Between | Total | Excess | Constant | Line | Levels | Cases,
        Field(discriminator="kind"),
    ]  # fmt: skip

for _model in (All, AnyOf, Not, Odd, AtLeast, Between, Total, Excess, Line, Levels, Cases):
    _model.model_rebuild()
