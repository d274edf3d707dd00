"""A circuit as a small program: named steps from an input to one number per answer, as plain values.

    tokens    the input is the text up to the position that is asked: a step has one value per token so far (a series),
              and what is asked for is its last value
    features  the input is a vector: a step has one value

What a step may do is one of a few operations (`Op`). `run` is the reference interpreter: whatever turns a program into
another one (`passes`) or into source text (`emit_python`) is checked against it. Nothing here is specific to one kind
of model.

Knows numbers, names and NumPy. Does not know models, circuits, tasks, nor how a program was come by.

Shapes: N examples, T tokens each (right-padded; what stands after the position asked is not read), F features,
A answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from openwork.errors import UsageError

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
Kind = Literal["tokens", "features"]
Curve = Literal["relu", "gelu", "gelu_tanh", "silu", "step", "exp"]

VERSION = 1
KEPT = 1 << 26  # bytes of what a trace keeps of how one head weighs places


# -- what a step may do ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lookup:
    """A number for the token at each place: `table` has (token id, number) in order of ids, all others `default`."""

    table: tuple[tuple[int, float], ...]
    default: float = 0.0

    @cached_property
    def column(self) -> Array:
        """The numbers of ids 0, 1, ... up to the last one listed, and the default behind them."""
        out = np.full(self.table[-1][0] + 2 if self.table else 1, self.default)
        for i, x in self.table:
            out[i] = x
        return out

    def of(self, tokens: Ids) -> Array:
        """The number of each token, in the shape of `tokens`."""
        return self.column[np.minimum(tokens, len(self.column) - 1)]


@dataclass(frozen=True)
class Grid:
    """A number for the token and the place it stands at: `rows` has (token id, numbers by place); others `default`.

    What no sum of a number per token and a number per place comes to. Too large to be read: passes replace it.
    """

    rows: tuple[tuple[int, tuple[float, ...]], ...]
    default: tuple[float, ...]

    @cached_property
    def matrix(self) -> Array:
        """The numbers [ids + 1, places], the default in the last row."""
        out = np.tile(np.array(self.default), (self.rows[-1][0] + 2 if self.rows else 1, 1))
        for i, row in self.rows:
            out[i] = row
        return out

    def of(self, tokens: Ids, places: Ids) -> Array:
        """The number of each token at its place; the two have one shape."""
        m = self.matrix
        return m[np.minimum(tokens, len(m) - 1), np.minimum(places, m.shape[1] - 1)]


@dataclass(frozen=True)
class ByPosition:
    """A number for each place, counted from the first token; after the last one listed it stays."""

    values: tuple[float, ...]


@dataclass(frozen=True)
class Feature:
    """One number of the input vector."""

    index: int


@dataclass(frozen=True)
class Sum:
    """bias + the sum of coefficient * earlier step; `terms` has (name, coefficient). Without terms a constant."""

    terms: tuple[tuple[str, float], ...] = ()
    bias: float = 0.0


@dataclass(frozen=True)
class Product:
    """One earlier step times another."""

    a: str
    b: str


@dataclass(frozen=True)
class Bend:
    """An earlier step through a curve.

    relu  max(x, 0);   gelu  x * Phi(x), Phi the normal distribution function, and
    gelu_tanh  with its usual approximation by a tanh;   step  1 where x > 0, else 0;   exp
    """

    of: str
    curve: Curve


@dataclass(frozen=True)
class Norm:
    """The factor of RMSNorm: 1 / sqrt((sum of squares of `of` + `rest`) / width + eps).

    rest  an earlier step: the sum of squares of the channels that no step stands for; "" for none
    """

    of: tuple[str, ...]
    rest: str
    width: int
    eps: float


@dataclass(frozen=True)
class Attend:
    """Attention of one head: at each place the average of `value` over this and all earlier places.

    Place i weighs place j with exp(scale * sum of query_i * key_j + score_j), divided by the sum of all weights.

    query, key  earlier steps, one pair per channel
    score       an earlier step that adds to the exponent whatever the query is; "" for none
    sink        what takes part in the division and carries nothing, as an exponent; None for none
    """

    value: str
    query: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    score: str = ""
    scale: float = 1.0
    sink: float | None = None


@dataclass(frozen=True)
class Average:
    """At each place the weighted average of `value` over this and all earlier places; 0 where all weights are 0.

    What a head comes to whose query is the same everywhere: it weighs a place by what stands there alone.

    weight   an earlier step, nowhere negative: how much each place counts; "" when all count the same
    nothing  a weight that divides and carries nothing (what an attention sink is)
    """

    value: str
    weight: str = ""
    nothing: float = 0.0


@dataclass(frozen=True)
class Latest:
    """At each place `value` as it was at the last place so far where `where` is above 0; `empty` where none was."""

    value: str
    where: str
    empty: float = 0.0


@dataclass(frozen=True)
class Previous:
    """At each place `value` as it was `back` places earlier; `empty` where the text does not go back so far."""

    value: str
    back: int = 1
    empty: float = 0.0


@dataclass(frozen=True)
class Match:
    """At each place the weighted average of `value` over the places that its token points to; over all if to none.

    A place is pointed to if the token `back` places before it is the token here and stands before here. With back = 1
    these are the places behind earlier ones of the same token: what an induction head looks at (Elhage et al. 2021,
    transformer-circuits.pub/2021/framework; Olsson et al. 2022, arXiv 2209.11895). With back = 0 they are the earlier
    places of that token: a duplicate-token head (Wang et al. 2022, arXiv 2211.00593). A place that has not as many
    before it looks at the first one, as attention must look at something.

    weight  an earlier step, nowhere negative: how much each place counts; "" when all count the same
    others  what a place counts that the token does not point to, as a share of what it would count otherwise
    """

    value: str
    back: int = 1
    weight: str = ""
    others: float = 0.0


Looks = Attend | Average | Match | Previous  # operations that say how an earlier place counts


@dataclass(frozen=True)
class Votes:
    """What earlier places say of all answers at once, added to the logits; no step reads it.

    Each place up to the one asked counts as `how` weighs it (an operation whose value is ""). It adds `copy` to the
    answer whose token stands there, and to all answers the numbers that `rows` has for the token that stands there.

    rows     (token id, one number per answer) in order of ids; all others `default`; () where there are none
    """

    how: Looks
    copy: float = 0.0
    rows: tuple[tuple[int, tuple[float, ...]], ...] = ()
    default: tuple[float, ...] = ()

    @cached_property
    def matrix(self) -> Array:
        """The numbers [ids + 1, answers], the default in the last row."""
        out = np.tile(np.array(self.default), (self.rows[-1][0] + 2 if self.rows else 1, 1))
        for i, row in self.rows:
            out[i] = row
        return out


Op = (
    Lookup | Grid | ByPosition | Feature | Sum | Product | Bend | Norm | Attend | Average | Latest | Previous | Match
    | Votes
)  # fmt: skip
OPS: dict[str, type[Op]] = {
    k.__name__: k
    for k in (
        Lookup, Grid, ByPosition, Feature, Sum, Product, Bend, Norm, Attend, Average, Latest, Previous, Match, Votes,
    )
}  # fmt: skip
MIXES = (Attend, Average, Latest, Previous, Match, Votes)  # operations that look at earlier places


# -- the program -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One named number (or series): what it is called, how it is made, and what it stands for in the model."""

    name: str
    op: Op
    about: str = ""


@dataclass(frozen=True)
class Answer:
    """One answer: its text, the output index of the model that it stands for, and the step that is its logit.

    step  "" stands for 0: where only differences matter, one answer can be the one that others are compared with
    """

    text: str
    index: int
    step: str


@dataclass(frozen=True)
class Program:
    """Steps in the order in which they are computed, and the answers; refuses a step that reads a later one.

    words  (token id, text) of every token that a table lists, for whoever writes the program down
    """

    kind: Kind
    steps: tuple[Step, ...]
    answers: tuple[Answer, ...]
    words: tuple[tuple[int, str], ...] = ()

    def __post_init__(self) -> None:
        known = set[str]()
        for s in self.steps:
            missing = [n for n in reads(s.op) if n not in known]
            if missing:
                raise UsageError(f"program: step {s.name} reads {', '.join(missing)}, which no earlier step is.")
            if not s.name.isidentifier() or s.name in known:
                raise UsageError(f'program: "{s.name}" is no name for a step, or that of an earlier one.')
            if self.kind == "features" and isinstance(s.op, (Lookup, Grid, ByPosition, *MIXES)):
                raise UsageError(f"program: step {s.name} reads tokens, but the input is a vector of features.")
            if self.kind == "tokens" and isinstance(s.op, Feature):
                raise UsageError(f"program: step {s.name} reads a feature, but the input is tokens.")
            if isinstance(s.op, Votes) and s.op.default and len(s.op.default) != len(self.answers):
                raise UsageError(f"program: step {s.name} has {len(s.op.default)} numbers, not {len(self.answers)}.")
            known.add(s.name)
        lost = [a.step for a in self.answers if a.step and a.step not in known]
        if lost:
            raise UsageError(f"program: the answers ask for {', '.join(lost)}, which no step is.")

    @cached_property
    def by_name(self) -> dict[str, Op]:
        """Operations by the name of their step."""
        return {s.name: s.op for s in self.steps}

    def with_ops(self, ops: Mapping[str, Op]) -> Program:
        """The same program with other operations for some of its steps."""
        return replace(self, steps=tuple(replace(s, op=ops[s.name]) if s.name in ops else s for s in self.steps))


def reads(op: Op) -> tuple[str, ...]:
    """The steps that an operation reads, in order; a step read twice is named twice."""
    match op:
        case Sum(terms):
            return tuple(n for n, _ in terms)
        case Product(a, b):
            return a, b
        case Bend(of):
            return (of,)
        case Norm(of, rest):
            return (*of, *_named(rest))
        case Attend(value, query, key, score):
            return (*_named(value), *query, *key, *_named(score))
        case Average(value, weight) | Match(value, _, weight):
            return (*_named(value), *_named(weight))
        case Latest(value, where):
            return value, where
        case Previous(value):
            return _named(value)
        case Votes(how):
            return reads(how)
    return ()


def renamed(op: Op, to: Callable[[str], str]) -> Op:
    """The same operation on steps of other names."""

    def opt(name: str) -> str:
        return to(name) if name else ""

    match op:
        case Sum(terms, bias):
            return Sum(tuple((to(n), c) for n, c in terms), bias)
        case Product(a, b):
            return Product(to(a), to(b))
        case Bend(of, curve):
            return Bend(to(of), curve)
        case Norm(of, rest):
            return replace(op, of=tuple(map(to, of)), rest=opt(rest))
        case Attend(value, query, key, score):
            return replace(op, value=opt(value), query=tuple(map(to, query)), key=tuple(map(to, key)), score=opt(score))
        case Average(value, weight) | Match(value, _, weight):
            return replace(op, value=opt(value), weight=opt(weight))
        case Latest(value, where):
            return replace(op, value=to(value), where=to(where))
        case Previous(value):
            return replace(op, value=opt(value))
        case Votes(how):
            return replace(op, how=renamed(how, to))
    return op


def _named(name: str) -> tuple[str, ...]:
    return (name,) if name else ()


# -- the reference interpreter ---------------------------------------------------------------------------------------


def gelu(x: Array) -> Array:
    """x * Phi(x), Phi the standard normal distribution function (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    return x * 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))


_erf: Callable[[Array], Array] = np.vectorize(math.erf, otypes=[np.float64])

CURVES: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": gelu,
    "gelu_tanh": lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1.0 + np.exp(-x)),
    "step": lambda x: (x > 0).astype(np.float64),
    "exp": np.exp,
}


class Trace:
    """What the steps of a program come to on some inputs, each computed when it is first asked for.

    inputs  tokens [N, T] and the positions asked [N]; or features [N, F] alone
    """

    def __init__(self, program: Program, *inputs: NDArray[Any]) -> None:
        self.program = program
        expected = 2 if program.kind == "tokens" else 1
        if len(inputs) != expected:
            raise UsageError(
                f"a program of {program.kind} reads {expected} arrays (tokens and positions, or features), "
                f"not {len(inputs)}."
            )
        self.x = np.asarray(inputs[0])
        self.at = np.asarray(inputs[1]) if expected == 2 else np.zeros(len(self.x), dtype=np.int64)
        self.rows = np.arange(len(self.x))
        self._ends: dict[str, Array] = {}
        self._series: dict[str, Array] = {}
        self._votes: dict[str, Array] = {}
        self._shares: dict[tuple[Looks, bool], Array] = {}  # by how places are weighed, and whether at the end alone

    def after(self, program: Program, changed: set[str]) -> Trace:
        """The trace of a changed program on the same inputs; steps not in `changed` keep what is known of them."""
        new = Trace.__new__(Trace)
        new.program, new.x, new.at, new.rows = program, self.x, self.at, self.rows
        kept = program.by_name.keys() - changed
        new._ends = {n: v for n, v in self._ends.items() if n in kept}
        new._series = {n: v for n, v in self._series.items() if n in kept}
        new._votes = {n: v for n, v in self._votes.items() if n in kept}
        new._shares = {k: v for k, v in self._shares.items() if not changed.intersection(reads(k[0]))}
        return new

    def end(self, name: str) -> Array:
        """A step at the position asked: [N]."""
        if name not in self._ends:
            if name in self._series:
                self._ends[name] = self._series[name][self.rows, self.at]
            else:
                self._ends[name] = np.broadcast_to(self._value(self.program.by_name[name], True), (len(self.x),))
        return self._ends[name]

    def series(self, name: str) -> Array:
        """A step at every place: [N, T]. What stands after the position asked means nothing."""
        if name not in self._series:
            self._series[name] = np.broadcast_to(self._value(self.program.by_name[name], False), self.x.shape)
        return self._series[name]

    def logits(self) -> Array:
        """One number per answer: [N, A]."""
        zero = np.zeros(len(self.x))
        scalars = np.stack([self.end(a.step) if a.step else zero for a in self.program.answers], 1)
        for s in self.program.steps:
            if isinstance(s.op, Votes):
                if s.name not in self._votes:
                    self._votes[s.name] = self._voted(s.op)
                scalars = scalars + self._votes[s.name]
        return scalars

    def _voted(self, op: Votes) -> Array:
        """What a vote adds to the logits: [N, A]."""
        share = self.shares(op.how, True)[:, 0]
        out = np.zeros((len(self.x), len(self.program.answers)))
        if op.copy:
            for k, a in enumerate(self.program.answers):
                out[:, k] += op.copy * (share * (self.x == a.index)).sum(1)
        if op.default:
            tokens = np.minimum(self.x, len(op.matrix) - 1)
            given = np.zeros((len(self.x), len(op.matrix)))
            np.add.at(given, (self.rows[:, None], tokens), share)
            out += given @ op.matrix
        return out

    def shares(self, how: Looks, end: bool) -> Array:
        """How much each place counts, [N, 1, T] of the position asked, or [N, T, T] of every place; its value unread.

        Nothing of what is not seen; they sum to 1, or to less where a part is of nothing.
        """
        key = replace(how, value=""), end
        if key in self._shares:
            return self._shares[key]
        made = self._shared(how, end)
        if made.nbytes <= KEPT:
            self._shares[key] = made
        return made

    def _shared(self, how: Looks, end: bool) -> Array:
        n, t = self.x.shape
        here = self.at[:, None] if end else np.broadcast_to(np.arange(t), (n, t))  # [N, R] places that are asked
        seen = np.arange(t) <= here[:, :, None]  # [N, R, T]
        match how:
            case Attend(_, query, key, score, scale, sink):
                q = np.stack([self.end(x)[:, None] if end else self.series(x) for x in query], -1) if query else None
                k = np.stack([self.series(x) for x in key], -1) if key else None
                z = np.zeros(seen.shape) if q is None or k is None else scale * (q @ k.swapaxes(1, 2))
                z = np.where(seen, z + (self.series(score)[:, None, :] if score else 0.0), -np.inf)
                top = z.max(-1, keepdims=True)
                top = top if sink is None else np.maximum(top, sink)
                w = np.exp(z - top)
                return w / (w.sum(-1, keepdims=True) + (0.0 if sink is None else np.exp(sink - top)))
            case Average(_, weight, nothing):
                w = np.where(seen, self.series(weight)[:, None, :] if weight else 1.0, 0.0)
                total = w.sum(-1, keepdims=True) + nothing
            case Match(_, back, weight, others):
                own = np.where(seen, self.series(weight)[:, None, :] if weight else 1.0, 0.0)
                w = own * np.where(self._pointed(back, here), 1.0, others)
                total = w.sum(-1, keepdims=True)
                w = np.where(total > 0, w, own)
                total = w.sum(-1, keepdims=True)
            case Previous(_, back):
                w = (np.arange(t) == here[:, :, None] - back).astype(np.float64)
                total = np.ones(1)
        return w / np.where(total > 0, total, 1.0)

    def _pointed(self, back: int, here: Ids) -> NDArray[np.bool_]:
        """Whether the token some places before a place is that at the place asked, and before it: [N, R, T]."""
        t = self.x.shape[1]
        source = np.maximum(np.arange(t) - back, 0)
        token = self.x[:, source]  # [N, T], the token some places before each
        mine = np.take_along_axis(self.x, here, 1)  # [N, R]
        return (source < here[:, :, None]) & (token[:, None, :] == mine[:, :, None])

    def _value(self, op: Op, end: bool) -> Array:
        get = self.end if end else self.series
        match op:
            case Lookup():
                return op.of(self.x[self.rows, self.at] if end else self.x)
            case Grid():
                places = np.broadcast_to(np.arange(self.x.shape[1]), self.x.shape)
                return op.of(self.x[self.rows, self.at], self.at) if end else op.of(self.x, places)
            case ByPosition(values):
                places = self.at if end else np.arange(self.x.shape[1])
                return np.array(values)[np.minimum(places, len(values) - 1)]
            case Feature(index):
                return self.x[:, index].astype(np.float64)
            case Sum(terms, bias):
                return sum((c * get(n) for n, c in terms), np.array(bias))
            case Product(a, b):
                return get(a) * get(b)
            case Bend(of, curve):
                return CURVES[curve](get(of))
            case Norm(of, rest, width, eps):
                squares = sum((get(n) ** 2 for n in of), get(rest) if rest else np.array(0.0))
                with np.errstate(invalid="ignore"):  # a shortened sum may fall below 0: then nothing is decided
                    return 1.0 / np.sqrt(squares / width + eps)
            case _:
                return self._mixed(op, end)

    def _mixed(self, op: Op, end: bool) -> Array:
        """An operation that looks at earlier places; [N] at the position asked, or [N, T]."""
        n, t = self.x.shape
        here = self.at[:, None] if end else np.broadcast_to(np.arange(t), (n, t))  # [N, R] places that are asked
        seen = np.arange(t) <= here[:, :, None]  # [N, R, T]
        match op:
            case Attend(value) | Match(value):
                out = (self.shares(op, end) * self.series(value)[:, None, :]).sum(-1)
            case Average(value, weight, nothing):
                w = np.where(seen, self.series(weight)[:, None, :] if weight else 1.0, 0.0)
                total = w.sum(-1) + nothing
                out = (w * self.series(value)[:, None, :]).sum(-1) / np.where(total > 0, total, 1.0)
            case Latest(value, where, empty):
                hit = seen & (self.series(where)[:, None, :] > 0)
                last = t - 1 - np.argmax(hit[:, :, ::-1], -1)  # [N, R]
                out = np.where(hit.any(-1), np.take_along_axis(self.series(value), last, 1), empty)
            case Previous(value, back, empty):
                before = here - back
                out = np.where(before >= 0, np.take_along_axis(self.series(value), np.maximum(before, 0), 1), empty)
            case _:
                raise AssertionError(op)
        return out[:, 0] if end else out


def run(program: Program, *inputs: NDArray[Any]) -> Array:
    """The logits of the answers [N, A], in the program's order.

    inputs  tokens [N, T] and the positions asked [N]; or features [N, F]. UsageError on another number of arrays.
    """
    return Trace(program, *inputs).logits()


# -- size, and JSON --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """How long a program is.

    steps      numbers that have a name
    constants  numbers written down: distinct ones of a table, one per place that is not as the last one, every
               coefficient other than 1 and -1, biases but 0
    tokens     different tokens that tables list
    """

    steps: int
    constants: int
    tokens: int


def size(program: Program) -> Size:
    """The size of a program."""
    tokens = {i for s in program.steps for i in listed(s.op)}
    return Size(len(program.steps), sum(len(constants(s.op)) for s in program.steps), len(tokens))


def listed(op: Op) -> tuple[int, ...]:
    """The tokens that an operation's table lists."""
    if isinstance(op, Lookup):
        return tuple(i for i, _ in op.table)
    return tuple(i for i, _ in op.rows) if isinstance(op, (Grid, Votes)) else ()


def constants(op: Op) -> tuple[float, ...]:
    """The numbers that an operation brings, as they would be written down (see `Size`)."""
    match op:
        case Lookup(table, default):
            return tuple(sorted({x for _, x in table} | {default}))
        case Grid(rows, default):
            return tuple(x for _, row in rows for x in row) + default
        case ByPosition(values):
            return (*(x for x in values[:-1] if x != values[-1]), values[-1])
        case Sum(terms, bias):
            return tuple(c for _, c in terms if c not in (1.0, -1.0)) + ((bias,) if bias or not terms else ())
        case Norm(_, _, width, eps):
            return float(width), eps
        case Attend(_, _, _, _, scale, sink):
            return ((scale,) if scale != 1.0 else ()) + ((sink,) if sink is not None else ())
        case Average(nothing=extra) | Latest(empty=extra) | Previous(empty=extra) | Match(others=extra):
            return (extra,) if extra else ()
        case Votes(how, copy, rows, default):
            written = sorted({row for _, row in rows} | ({default} if any(default) or rows else set()))
            return (*constants(how), *((copy,) if copy else ()), *(x for row in written for x in row))
    return ()


def to_dict(program: Program) -> dict[str, Any]:
    """Plain data for JSON."""
    steps = [{"name": s.name, "op": "", "about": s.about} | _plain(s.op) for s in program.steps]
    answers = [vars(a) for a in program.answers]
    data = {"version": VERSION, "kind": program.kind, "steps": steps, "answers": answers, "words": program.words}
    return json.loads(json.dumps(data))


def _plain(op: Op) -> dict[str, Any]:
    own = {f.name: getattr(op, f.name) for f in fields(op)}
    if isinstance(op, Votes):
        own["how"] = _plain(op.how)
    return {"op": type(op).__name__, **own}


def _op(data: Mapping[str, Any]) -> Op:
    given: dict[str, Any] = {
        k: _op(v) if k == "how" else _tuples(v) for k, v in data.items() if k not in ("name", "op", "about")
    }
    return OPS[data["op"]](**given)


def from_dict(data: Mapping[str, Any]) -> Program:
    """The inverse of `to_dict`; UsageError on another version or an operation that there is not."""
    if data.get("version") != VERSION:
        raise UsageError(f"this program is of version {data.get('version')}; this openwork reads version {VERSION}.")
    steps = []
    for s in data["steps"]:
        if s["op"] not in OPS:
            raise UsageError(f'program: step {s["name"]} does "{s["op"]}"; there are {", ".join(OPS)}.')
        steps.append(Step(s["name"], _op(s), s["about"]))
    answers = tuple(Answer(**a) for a in data["answers"])
    return Program(data["kind"], tuple(steps), answers, _tuples(data["words"]))


def _tuples(x: Any) -> Any:
    return tuple(_tuples(v) for v in x) if isinstance(x, list) else x


def words_of(program: Program, name: Callable[[int], str]) -> Program:
    """The program with the texts of the tokens that its tables list; `name` gives the text of an id."""
    ids: Iterable[int] = sorted({i for s in program.steps for i in listed(s.op)})
    return replace(program, words=tuple((i, name(i)) for i in ids))


def decisions(logits: Array, among: NDArray[np.bool_] | None = None) -> Ids:
    """The place of the answer with the largest logit, [N]; of equal ones the first.

    among  [N, A], which answers compete in an example, at least one in each; by default all
    """
    return (logits if among is None else np.where(among, logits, -np.inf)).argmax(1)
