"""A program as one Python file that needs NumPy alone: what a person reads, and what is run to test it.

The file has the tables of tokens at its head, a function `scores(tokens)` that goes through the steps by their names,
`decide(tokens)`, and a `main` that takes tokens from the command line or, one JSON list per line, from stdin. Steps
that are read once stand where they are read, as far as the line has room. The text is formatted as `ruff format` would.

Knows programs. Does not know models, circuits, tasks, or how well the program does.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from openwork.errors import UsageError
from openwork.explain.programs import emit_votes
from openwork.explain.programs.passes import series, uses
from openwork.explain.programs.program import (
    Attend,
    Average,
    Bend,
    ByPosition,
    Feature,
    Grid,
    Latest,
    Lookup,
    Match,
    Norm,
    Op,
    Previous,
    Product,
    Program,
    Sum,
    Votes,
    reads,
)

WIDE = 88  # characters of a line of code; ruff's own default
TABLE = 118  # of a line of a table, which ruff is told to leave as it is
INLINE = 56  # characters of an expression that may stand inside of another

HELPERS = {
    "gelu": '''def gelu(x: float) -> float:
    """x times the share of the normal distribution below x."""
    return x * 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))''',
    "gelus": '''def gelus(x: Series) -> Series:
    """Of each number, it times the share of the normal distribution below it."""
    return np.array([v * 0.5 * (1.0 + math.erf(v / math.sqrt(2.0))) for v in x])''',
    "gelu_tanh": '''def gelu_tanh(x: float) -> float:
    """x times about the share of the normal distribution below x."""
    return 0.5 * x * (1.0 + math.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))''',
    "gelu_tanhs": '''def gelu_tanhs(x: Series) -> Series:
    """Of each number, it times about the share of the normal distribution below it."""
    return 0.5 * x * (1.0 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))''',
    "by_place": '''def by_place(numbers: dict[int, float], other: float, n: int) -> Series:
    """The number of each of the first n places."""
    return np.array([numbers.get(place, other) for place in range(n)])''',
    "average": '''def average(values: Series, weights: Series, nothing: float = 0.0) -> float:
    """The average of some values, each counting as much as its weight says."""
    total = weights.sum() + nothing
    return float(values @ weights / total) if total > 0 else 0.0''',
    "averages": '''def averages(values: Series, weights: Series, nothing: float = 0.0) -> Series:
    """At each place the weighted average of the values up to there."""
    total = np.cumsum(weights) + nothing
    return np.cumsum(values * weights) / np.where(total > 0, total, 1.0)''',
    "latest": '''def latest(values: Series, where: Series, empty: float) -> Series:
    """At each place the value at the last place so far where `where` is above 0."""
    out, now = [], empty
    for value, hit in zip(values, where, strict=True):
        now = float(value) if hit > 0 else now
        out.append(now)
    return np.array(out)''',
    "previous": '''def previous(values: Series, back: int, empty: float) -> Series:
    """At each place the value some places earlier."""
    return np.concatenate([np.full(back, empty), values])[: len(values)]''',
    "attend": '''def attend(values: Series, scores: Series, sink: float) -> Series:
    """At each place [row] the average of the values so far, by exp(score [row, column])."""
    top = np.maximum(np.where(np.tri(len(values)) > 0, scores, -np.inf).max(1), sink)
    weights = np.tril(np.exp(np.minimum(scores - top[:, None], 0.0)))
    return weights @ values / (weights.sum(1) + np.exp(sink - top))''',
    **emit_votes.HELPERS,
}


DECIDE = '''

def decide(tokens: list[str]) -> str:
    """The answer that most speaks for."""
    found = scores(tokens)
    return max(found, key=found.__getitem__)


if __name__ == "__main__":
    for line in [json.dumps(sys.argv[1:])] if sys.argv[1:] else sys.stdin:
        print(json.dumps(decide(json.loads(line))))'''

DECIDE_AMONG = '''

def decide(tokens: list[str], among: Sequence[str] = ANSWERS) -> str:
    """The answer that most speaks for, of those that compete."""
    found = scores(tokens)
    return max((a for a in ANSWERS if a in among), key=found.__getitem__)


if __name__ == "__main__":  # a line of stdin: tokens, or {"tokens": tokens, "among": answers}
    for line in [json.dumps(sys.argv[1:])] if sys.argv[1:] else sys.stdin:
        asked = json.loads(line)
        print(json.dumps(decide(**asked if isinstance(asked, dict) else {"tokens": asked})))'''


def quoted(text: str) -> str:
    """A string literal as ruff writes it: in double quotes, unless that takes more backslashes."""
    plain = json.dumps(text, ensure_ascii=not text.isprintable())
    if '"' not in text or plain.count("\\") <= repr(text).count("\\"):
        return plain
    return repr(text)


@dataclass
class _Writer:
    """The body of `scores`: statements so far, and what each step is called or may be replaced by."""

    program: Program
    lines: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    inline: dict[str, tuple[str, int]] = field(default_factory=dict)  # step -> expression, how tightly it binds

    def __post_init__(self) -> None:
        self.everywhere = series(self.program)
        self.count = uses(self.program)

    # How tightly an expression binds: 0 a sum, 1 a product, 2 a name or a call.

    def get(self, name: str, end: bool, tight: int = 0) -> str:
        """How a step is read: as a series, or at its last place (`end`); in brackets where it binds too loosely."""
        if name in self.inline:
            text, binds = self.inline[name]
            return f"({text})" if binds < tight else text
        return f"{name}[-1]" if end and name in self.everywhere else name

    def helper(self, name: str) -> str:
        """A helper that the file will have."""
        self.used.add(name)
        return name

    def write(self, name: str, op: Op, about: str) -> None:
        """One step: inside of its reader where it fits, else as a statement."""
        end = name not in self.everywhere
        text, binds = self.expression(op, end)
        once = self.count[name] == 1 and not isinstance(op, (Average, Attend, Latest, Previous, Match))
        answers = {a.step for a in self.program.answers}
        crossed = not end and self._read_at_end(name)
        if once and name not in answers and not crossed and len(text) <= INLINE:
            self.inline[name] = text, binds
            return
        note = f"  # {about}" if about and len(f"    {name} = {text}  # {about}") <= WIDE else ""
        if len(f"    {name} = {text}") <= WIDE:
            self.lines.append(f"{name} = {text}{note}")
        elif isinstance(op, Sum):
            self._long_sum(name, op, end, about)
        else:
            self._spelt_out(name, op, end)

    def _read_at_end(self, name: str) -> bool:
        """Whether a series is read by a step that is wanted at the end alone, other than by averaging it."""
        mixed = (Average, Attend, Latest, Previous, Match)
        ends = [s.op for s in self.program.steps if s.name not in self.everywhere and name in reads(s.op)]
        ends = [op.how if isinstance(op, Votes) else op for op in ends]
        return any(not isinstance(op, mixed) or (isinstance(op, Attend) and name in op.query) for op in ends)

    def _long_sum(self, name: str, op: Sum, end: bool, about: str) -> None:
        """A sum in several statements, each of which fits its line."""
        if about and len(about) < WIDE - 8:
            self.lines.append(f"# {about}")
        line, first = "", True
        more = f"{name} += " if end else f"{name} = {name} + "  # a series may be another step's own
        for sign, text in self._terms(op, end):
            head = f"{name} = " if first else more
            if len(f"    {more}{text}") > WIDE:  # too long to be added where it stands: it gets a name first
                if line:
                    self.lines.append(head + line)
                    head, line, first = more, "", False
                self.lines.append(f"part = {text}")
                text = "part"
            longer = f"{line} {sign} {text}" if line else (f"-{text}" if sign == "-" else text)
            if line and len(f"    {head}{longer}") > WIDE:
                self.lines.append(head + line)
                line, first = (f"-{text}" if sign == "-" else text), False
            else:
                line = longer
        self.lines.append((f"{name} = " if first else more) + line)

    def _spelt_out(self, name: str, op: Op, end: bool) -> None:
        """An operation whose reads are too long to stand inside of it: they get names first."""
        for n in dict.fromkeys(reads(op)):
            if n in self.inline and len(self.inline[n][0]) > len(n):
                text, _ = self.inline.pop(n)
                inner = self.program.by_name[n]
                if len(f"    {n} = {text}") <= WIDE:
                    self.lines.append(f"{n} = {text}")
                elif isinstance(inner, Sum):
                    self._long_sum(n, inner, n not in self.everywhere, "")
                else:
                    self.lines.append(f"{n} = {text}")
        text, _ = self.expression(op, end)
        if isinstance(op, Norm) and len(f"    {name} = {text}") > WIDE:
            self.lines.append(f"{name} = {self._number(op.eps)}")
            for n in (*op.of, *((op.rest,) if op.rest else ())):
                square = f"{self.get(n, end, 2)}**2" if n in op.of else self.get(n, end, 1)
                self.lines.append(f"{name} += {square} / {op.width}")
            text = f"1 / np.sqrt({name})"
        self.lines.append(f"{name} = {text}")

    @staticmethod
    def _number(x: float) -> str:
        return repr(float(x))

    def _terms(self, op: Sum, end: bool) -> list[tuple[str, str]]:
        """Sign and text of each summand, the plus ones first."""
        out = []
        for n, c in op.terms:
            text = self.get(n, end, 1)
            out.append(("-" if c < 0 else "+", text if abs(c) == 1 else f"{self._number(abs(c))} * {text}"))
        if op.bias or not op.terms:
            out.append(("-" if op.bias < 0 else "+", self._number(abs(op.bias))))
        return sorted(out, key=lambda t: t[0] == "-")

    def expression(self, op: Op, end: bool) -> tuple[str, int]:
        """The operation as an expression, and how tightly it binds."""
        match op:
            case Sum((), bias) if not end:
                self.used.add("n")
                return f"np.full(n, {self._number(bias)})", 2
            case Sum():
                parts = self._terms(op, end)
                text = f"-{parts[0][1]}" if parts[0][0] == "-" else parts[0][1]
                text += "".join(f" {sign} {t}" for sign, t in parts[1:])
                return text, 0 if len(parts) > 1 or text.startswith("-") else 1
            case Product(a, b):
                return f"{self.get(a, end, 1)} * {self.get(b, end, 1)}", 1
            case Bend(of, "gelu" | "gelu_tanh" as curve):
                return f"{self.helper(curve if end else f'{curve}s')}({self.get(of, end)})", 2
            case Bend(of, "relu"):
                return (f"max({self.get(of, end)}, 0.0)" if end else f"np.maximum({self.get(of, end)}, 0.0)"), 2
            case Bend(of, "step"):
                return f"{'float' if end else 'np.float64'}({self.get(of, end)} > 0)", 2
            case Bend(of, "exp"):
                return f"np.exp({self.get(of, end)})", 2
            case Norm(of, rest, width, eps):
                squares = [f"{self.get(n, end, 2)}**2" for n in of] + ([self.get(rest, end)] if rest else [])
                inner = " + ".join(squares)
                inner = f"({inner})" if " " in inner else inner
                return f"1 / np.sqrt({inner} / {width} + {self._number(eps)})", 1
            case Lookup():
                raise AssertionError("tables of tokens are read at the head")
            case ByPosition():
                raise AssertionError("tables of places are read at the head")
            case Feature(index):
                return f"features[{index}]", 2
        return self._mixed(op, end), 2

    def _mixed(self, op: Op, end: bool) -> str:
        match op:
            case Average(value, weight, nothing):
                extra = f", {self._number(nothing)}" if nothing else ""
                v = self.get(value, False)
                if end and not weight and not nothing:
                    return f"{self.get(value, False, 2)}.mean()"
                if not weight:
                    self.used.add("n")
                w = self.get(weight, False) if weight else "np.ones(n)"
                return f"{self.helper('average' if end else 'averages')}({v}, {w}{extra})"
            case Match(value, back, weight, others):
                if not weight:
                    self.used.add("n")
                w = self.get(weight, False) if weight else "np.ones(n)"
                pointed = f"{self.helper('points')}(tokens, {back})"
                call = f"{self.helper('matched')}({self.get(value, False)}, {pointed}, {w}, {self._number(others)})"
                return f"{call}[-1]" if end else call
            case Latest(value, where, empty):
                call = f"{self.helper('latest')}({self.get(value, False)}, {self.get(where, False)}, {empty!r})"
                return f"{call}[-1]" if end else call
            case Previous(value, back, empty):
                call = f"{self.helper('previous')}({self.get(value, False)}, {back}, {empty!r})"
                return f"{call}[-1]" if end else call
            case Attend(value, query, key, score, scale, sink):
                pairs = [(self.get(q, end, 1), self.get(k, False, 1)) for q, k in zip(query, key, strict=True)]
                terms = [f"{q} * {k}" if end else f"np.outer({q}, {k})" for q, k in pairs]
                z = " + ".join(terms)
                if scale != 1.0 and terms:
                    z = f"{self._number(scale)} * {z}" if len(terms) == 1 else f"{self._number(scale)} * ({z})"
                if score:
                    z = f"{z} + {self.get(score, False)}" if z else self.get(score, False)
                if end:
                    extra = "" if sink is None else f", np.exp({self._number(sink)})"
                    return f"{self.helper('average')}({self.get(value, False)}, np.exp({z}){extra})"
                bottom = "-np.inf" if sink is None else self._number(sink)
                return f"{self.helper('attend')}({self.get(value, False)}, {z}, {bottom})"
        raise UsageError(f"a {type(op).__name__} cannot be written in Python.")


def _grouped(tables: Sequence[Lookup]) -> tuple[list[tuple[list[int], tuple[float, ...]]], tuple[float, ...]]:
    """Tokens with the same row, and their row; and the row of all others."""
    maps = [dict(t.table) for t in tables]
    other = tuple(t.default for t in tables)
    groups: dict[tuple[float, ...], list[int]] = {}
    for i in sorted({i for m in maps for i in m}):
        row = tuple(m.get(i, t.default) for m, t in zip(maps, tables, strict=True))
        if row != other:
            groups.setdefault(row, []).append(i)
    return [(ids, row) for row, ids in groups.items()], other


def _row(row: Iterable[float]) -> str:
    numbers = [repr(float(x)) for x in row]
    return f"({', '.join(numbers)}{',' if len(numbers) == 1 else ''})"


def _token_table(name: str, columns: Sequence[str], tables: Sequence[Lookup], words: Mapping[int, str]) -> list[str]:
    """A table of tokens by kind: each line some tokens and their row."""
    groups, other = _grouped(tables)
    out = [f"{name}_OTHER = {_row(other)}", f"{name} = {{"]
    out[0:0] = textwrap.wrap(", ".join(columns), TABLE - 4, initial_indent="# ", subsequent_indent="#   ")
    for ids, row in groups:
        line = "    **dict.fromkeys(("
        for k, i in enumerate(ids):
            text = quoted(words[i]) + ("," if k == 0 or k < len(ids) - 1 else "")
            if len(line) + len(text) + 1 > TABLE:
                out.append(line.rstrip())
                line = " " * 8
            line += text + (" " if k < len(ids) - 1 else "")
        tail = f"), {_row(row)}),"
        if len(ids) == 1:
            line, tail = f"    {quoted(words[ids[0]])}: ", f"{_row(row)},"
        if len(line) + len(tail) > TABLE:
            out.append(line.rstrip())
            line = " " * 8
        out.append(line + tail)
    return [*out, "}"]


def _by_place(name: str, op: ByPosition) -> list[str]:
    """The places that have a number of their own, over as many lines as it takes."""
    own = ", ".join(f"{k}: {float(x)!r}" for k, x in enumerate(op.values) if x != op.values[-1])
    return textwrap.wrap(f"{name} = {{{own}}}", TABLE, subsequent_indent="    ", break_long_words=False)


def _unpacked(columns: Sequence[str], source: str) -> list[str]:
    """The columns of a table of tokens under their names, in lines that fit."""
    lines, now, begin = [], [], 0

    def line(names: Sequence[str], end: int) -> str:
        left = ", ".join(names) if len(names) > 1 else f"({names[0]},)"
        part = "" if len(names) == len(columns) else f"[{begin or ''}:{end if end < len(columns) else ''}]"
        return f"{left} = {source}{part}"

    for k, c in enumerate(columns):
        if now and len(line([*now, c], k + 1)) + 4 > WIDE - 4:
            lines.append(line(now, k))
            now, begin = [], k
        now.append(c)
    return [*lines, line(now, len(columns))] if now else []


def emit_python(program: Program, head: Sequence[str], choosing: bool = False) -> str:
    """The source text of a program of tokens.

    head      lines of the docstring: what is decided, where it comes from, how well it agrees
    choosing  other answers compete from text to text: `decide` is told which

    UsageError where the program has a step that is too large to be written down (a `Grid`) or reads features.
    """
    if program.kind != "tokens" or any(isinstance(s.op, Grid) for s in program.steps):
        raise UsageError("only a simplified program of tokens can be written as Python: this one is not.")
    w = _Writer(program)
    words = dict(program.words)
    near = [s for s in program.steps if isinstance(s.op, Lookup) and s.name in w.everywhere]
    last = [s for s in program.steps if isinstance(s.op, Lookup) and s.name not in w.everywhere]
    placed = [s for s in program.steps if isinstance(s.op, ByPosition)]
    tables: list[str] = []
    body: list[str] = []
    for constant, steps, source, what in (
        ("TOKENS", near, "np.array([TOKENS.get(t, TOKENS_OTHER) for t in tokens]).T", "each token brings"),
        ("LAST", last, "LAST.get(tokens[-1], LAST_OTHER)", "the last token brings"),
    ):
        if steps:
            columns = [s.name for s in steps]
            found = [s.op for s in steps if isinstance(s.op, Lookup)]
            tables += [f"# What {what}; one that is not listed brings what {constant}_OTHER says. In each row:"]
            tables += _token_table(constant, columns, found, words)
            if len(f"{', '.join(columns)} = {source}") + 8 > WIDE:
                name = "rows" if constant == "TOKENS" else "row"
                body.append(f"{name} = {source}")
                source = name
            body += _unpacked(columns, source)
    for s in placed:
        assert isinstance(s.op, ByPosition)
        constant = s.name.upper()
        tables += ["# By place:"] if s is placed[0] else []
        tables += _by_place(constant, s.op)
        end = "" if s.name in w.everywhere else "[-1]"
        w.used.add("n")
        w.inline[s.name] = f"{w.helper('by_place')}({constant}, {s.op.values[-1]!r}, n){end}", 2
        if w.count[s.name] > 1 or s.name in {a.step for a in program.answers}:
            body.append(f"{s.name} = {w.inline.pop(s.name)[0]}")
    many = len(program.answers) > 2 or any(isinstance(s.op, Votes) for s in program.steps)
    read = {n for s in program.steps for n in reads(s.op)}
    sums = {a.step for a in program.answers if isinstance(program.by_name.get(a.step), Sum)} - read
    for s in program.steps:
        if not isinstance(s.op, (Lookup, ByPosition, Votes)) and not (many and s.name in sums):
            w.write(s.name, s.op, s.about)
    if many:
        more, last_lines = emit_votes.closing(program, w.get, w._number, w.helper, quoted, TABLE)
        tables += more
        w.lines += [*last_lines, "return found"]
        w.used |= {"n"} if any(re.search(r"\bn\b", line) for line in last_lines) else set()
    else:
        scores = ", ".join(
            f"ANSWERS[{k}]: {w.get(a.step, True) if a.step else '0.0'}" for k, a in enumerate(program.answers)
        )
        w.lines.append(f"return {{{scores}}}")
    body = ["n = len(tokens)", *body] if "n" in w.used else body
    answers = [f"ANSWERS = ({', '.join(quoted(a.text) for a in program.answers)})"]
    if len(answers[0]) > WIDE:
        texts = [quoted(a.text) for a in program.answers]
        answers = ["# fmt: off", *emit_votes.packed("ANSWERS = (", texts, ")", TABLE, "    "), "# fmt: on"]
    helpers = [HELPERS[h] for h in HELPERS if h in w.used]
    series_used = any("Series" in h for h in helpers)
    imports = ["import json", *(["import math"] if any("math." in h for h in helpers) else []), "import sys"]
    numpy = any("np." in x for x in [*helpers, *body, *w.lines]) or series_used
    docstring = ['"""' + head[0] + '"""'] if len(head) == 1 else ['"""' + head[0], *head[1:], '"""']
    text = [*docstring, "", "from __future__ import annotations", "", *imports]
    text += ["from collections.abc import Sequence"] if choosing else []
    text += ["", "import numpy as np"] if numpy else []
    text += ["", *answers]
    text += ["Series = np.ndarray  # one number per token"] if series_used else []
    text += ["", "# fmt: off", *tables, "# fmt: on"] if tables else []
    for h in helpers:
        text += ["", "", *h.split("\n")]
    text += ["", "", "def scores(tokens: list[str]) -> dict[str, float]:"]
    text += ['    """How much speaks for each answer after these tokens."""']
    text += [f"    {line}" for line in (*body, *w.lines)]
    text += (DECIDE_AMONG if choosing else DECIDE).split("\n")
    return "\n".join([*text, ""])
