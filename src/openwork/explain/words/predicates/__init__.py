"""A small language that says where a node is active, as plain data: it can be run on a sample, and read out.

Every expression is a JSON object with its `kind` and gives a number per position (of tokens) or per example (of
vectors). A condition gives 1 where it holds and 0 elsewhere.

    tokens     token, token_at, ngram, looks, seen, recent, repeated, same     conditions
               count, share, earlier, depth, position                         numbers
    Python     innermost, line_starts                                          conditions
               open, indent, line_place                                        numbers
    vectors    answer, picture                                                 conditions
               feature, patch                                                  numbers
    made of    all, any, not, odd, at_least, between                           conditions
    others     total, excess, constant, line, levels, cases                    numbers

`line`, `levels` and `cases` are what gives a condition or a number the size of an activity. Positions before the first
are counted as the first one (its predecessor is itself). Knows samples, by way of a reading. Does not know activity,
models, or who wrote a predicate.

Shapes: N examples, T positions; float [N, T] of tokens, [N] of vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from openwork.errors import UsageError, unknown
from openwork.explain.words.predicates.code import Indent, Innermost, LinePlace, LineStarts, Open
from openwork.explain.words.predicates.joints import (
    ODD_BITS,
    All,
    AnyOf,
    AtLeast,
    Between,
    Cases,
    Constant,
    Excess,
    Expression,
    Levels,
    Line,
    Not,
    Odd,
    Total,
)
from openwork.explain.words.predicates.node import KIND_BITS, NUMBER_BITS, Node, quoted, short
from openwork.explain.words.predicates.tokens import (
    LOOKS,
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
    looks_like,
)
from openwork.explain.words.predicates.vectors import Answer, Feature, Patch, Picture, code_of, codes_of
from openwork.explain.words.reading import Reading
from openwork.explain.words.topic import Sample

_ANY: TypeAdapter[Any] = TypeAdapter(Expression)
KINDS: dict[str, type[Node]] = {m.model_fields["kind"].default: m for m in Node.__subclasses__()}


def parse(data: Mapping[str, Any]) -> Node:
    """The expression that plain data are. UsageError where a kind is unknown, or a field missing, wrong or unknown."""
    for part in _parts(data):
        if part.get("kind") not in KINDS:
            raise unknown("kind of predicate", str(part.get("kind")), KINDS)
    try:
        return _ANY.validate_python(data)
    except ValidationError as e:
        first = e.errors()[0]
        at = ".".join(str(x) for x in first["loc"])
        raise UsageError(f"this is no predicate: {at}: {first['msg']}.") from None


def _parts(data: Any) -> list[Mapping[str, Any]]:
    """Every object within plain data, itself included."""
    if isinstance(data, Mapping):
        return [data, *(p for v in data.values() for p in _parts(v))]
    return [p for v in data for p in _parts(v)] if isinstance(data, list | tuple) else []


def plain(expression: Node) -> dict[str, Any]:
    """The JSON-ready data of an expression, without fields that are as by default; `parse` is its inverse."""
    given = {f: (getattr(expression, f), i.default) for f, i in type(expression).model_fields.items() if f != "kind"}
    return {"kind": expression.kind} | {f: _plain(v) for f, (v, default) in given.items() if v != default}  # type: ignore[attr-defined]


def _plain(value: Any) -> Any:
    if isinstance(value, Node):
        return plain(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def execute(predicate: Mapping[str, Any] | Node, sample: Sample | Reading) -> np.ndarray:
    """Where a predicate expects how much: float [N, T] of tokens (nan at positions that do not count), [N] of vectors.

    UsageError where it is no predicate, or is about something that the examples do not have.
    """
    reading = sample if isinstance(sample, Reading) else Reading(sample)
    expression = predicate if isinstance(predicate, Node) else parse(predicate)
    return np.where(reading.sample.counted, expression.on(reading), np.nan)


__all__ = [
    "KINDS", "KIND_BITS", "LOOKS", "NUMBER_BITS", "ODD_BITS", "All", "Answer", "AnyOf", "AtLeast", "Between", "Cases",
    "Constant", "Count", "Depth", "Earlier", "Excess", "Expression", "Feature", "Indent", "Innermost", "Levels", "Line",
    "LinePlace", "LineStarts", "Looks", "Ngram", "Node", "Not", "Odd", "Open", "Patch", "Picture", "Position", "Recent",
    "Repeated", "Same", "Seen", "Share", "TokenAt", "TokenIs", "Total", "code_of", "codes_of", "execute", "looks_like",
    "parse", "plain", "quoted", "short",
]  # fmt: skip
