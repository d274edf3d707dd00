"""A program as one C99 file that needs the C library and nothing else: no allocation, constant tables, doubles.

    decide()   the steps, one statement each, in the program's order and under its names
    main()     reads examples from stdin, one per line (token ids up to the position asked, or features), and prints the
               answers' logits, one line per example

A step of a text has one value per token; since no step looks ahead, one loop over the places computes all steps that
later places look back at. What only the last place needs comes after the loop.

Knows programs and C. Does not know models, nor how a program was come by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from openwork.errors import RunError, UsageError
from openwork.explain.programs.program import (
    MIXES,
    Attend,
    Average,
    Bend,
    ByPosition,
    Feature,
    Grid,
    Latest,
    Looks,
    Lookup,
    Match,
    Norm,
    Op,
    Previous,
    Product,
    Program,
    Step,
    Sum,
    Votes,
    reads,
)

WIDTH = 110  # columns of a line
PLACES = 4096  # tokens of the longest text that the file reads
LINE = 1 << 20  # characters of the longest line

RESERVED = set(  # words of C99, then names that the file itself uses
    """
    auto break case char const continue default do double else enum extern float for goto if inline int long register
    restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
    at answers decide erf erfc exp tanh features fmax i j logits main n sqrt text tokens top total weights
    bend_gelu bend_gelu_tanh bend_relu bend_silu bend_step bend_exp entry line lookup number of_token pixels
    look fill match pool sums NULL EOF FEATURES PLACES ANSWERS LINE INFINITY NAN HUGE_VAL stdin stdout stderr
    """.split()  # noqa: SIM905  a list of strings would be longer to read than the words
)

OF_VOTES = {"answer_ids", "points", "among", "row", "all", "part", "sum", "source", "back"}  # and where places vote

Get = Callable[[str], str]  # the name of a step -> C that reads it at the place in question

BENDS = {
    "relu": "x > 0.0 ? x : 0.0",
    "gelu": "0.5 * x * (1.0 + erf(x / 1.4142135623730951))",
    "gelu_tanh": "0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))",
    "silu": "x / (1.0 + exp(-x))",
    "step": "x > 0.0 ? 1.0 : 0.0",
    "exp": "exp(x)",
}


def emit_c(program: Program, about: str = "", choosing: bool = False) -> str:
    """The C99 file of a program; `about` stands in the comment at its head.

    choosing  a line may end in "|" and the token ids of the answers that compete; the logits of others are then -inf

    Builds without a warning under -Wall -Wextra -Werror -pedantic. The file computes what `program.run` computes, up to
    the order of additions. RunError where a constant is no finite number; UsageError on a curve that C is not told.
    """
    return _Writer(program, choosing=choosing).file(about)


def emit_c_from(program: Program, about: str, look: str, numbers: int, features: int) -> str:
    """The C99 file of a program of features that are made of other numbers first.

    look      C of `static void look(const double *pixels, double *features)` and all that it needs
    numbers   how many numbers an example is; features: how many `look` makes of them
    """
    return _Writer(program, (look, numbers, features)).file(about)


class _Writer:
    """Writes one program; steps that no answer needs are left out."""

    def __init__(self, program: Program, look: tuple[str, int, int] | None = None, choosing: bool = False) -> None:
        self.program, self.look, self.choosing = program, look, choosing
        self.steps = _needed(program)
        self.series = _series(program) if program.kind == "tokens" else frozenset()
        votes = choosing or any(isinstance(s.op, Match | Votes) for s in self.steps)
        self.names = _c_names((s.name for s in self.steps), OF_VOTES if votes else set())
        self.tables: list[str] = []
        self.steps = [_without_table(s) for s in self.steps]

    # -- the file --------------------------------------------------------------------------------------------------

    def file(self, about: str) -> str:
        tokens = self.program.kind == "tokens"
        body = self._text_body() if tokens else [line for s in self.steps for line in self._step(s, False, "    ")]
        body += self._answers()
        if self.look is not None:
            body = [f"    double features[{self.look[2] + 1}];", "    look(pixels, features);", *body]
        used = {s.op.curve for s in self.steps if isinstance(s.op, Bend)}
        heads = ["#include <math.h>"] if self._needs_math() else []
        parts = [
            _comment(about or "A program, written down as C99."),
            "\n".join([*heads, "#include <stdio.h>", "#include <stdlib.h>"]),
            "\n".join(self._sizes()),
            *(_bend(c) for c in sorted(used)),
            *([LOOKUP] if any(isinstance(s.op, Lookup) for s in self.steps) else []),
            *([OF_TOKEN] if any(isinstance(s.op, Grid) or _has_rows(s.op) for s in self.steps) else []),
            *([self._answer_ids()] if self.choosing or self._copies() else []),
            *self.tables,
            *([POINTS] if any(isinstance(x, Match) for s in self.steps for x in (s.op, _how(s.op))) else []),
            *([self.look[0]] if self.look is not None else []),
            "\n".join([self._answers_comment(), self._signature(), "{", *body, "}"]),
            (MAIN_AMONG if self.choosing else MAIN_TOKENS) if tokens else MAIN_FEATURES,
        ]
        return "\n\n".join(parts) + "\n"

    def _sizes(self) -> list[str]:
        answers = f"#define ANSWERS {len(self.program.answers)}"
        if self.program.kind == "tokens":
            return [answers, f"#define PLACES {PLACES} /* tokens of the longest text */", f"#define LINE {LINE}"]
        read = [s.op.index for s in self.program.steps if isinstance(s.op, Feature)]
        numbers = max(read, default=-1) + 1 if self.look is None else self.look[1]
        about = "/* numbers per example, at least; what follows on its line is not read */"
        return [answers, f"#define FEATURES {numbers} {about}", f"#define LINE {LINE}"]

    def _signature(self) -> str:
        if self.program.kind == "tokens":
            return "void decide(const long *tokens, int n, double *logits)"
        return f"void decide(const double *{'features' if self.look is None else 'pixels'}, double *logits)"

    def _answers_comment(self) -> str:
        listed = ", ".join(f"{i}: {a.text!a}" for i, a in enumerate(self.program.answers))
        given = "tokens[0 .. n - 1], of which the last is the position asked"
        if self.program.kind == "features":
            given = f"{'features' if self.look is None else 'pixels'}[0 .. FEATURES - 1]"
        return _comment(f"From {given}, the logit of every answer. {listed}")

    def _answers(self) -> list[str]:
        lines = [
            f"    logits[{i}] = {self._end(a.step) if a.step else '0.0'}; /* {_safe(ascii(a.text))} */"
            for i, a in enumerate(self.program.answers)
        ]
        lines += [x for s in self.steps if isinstance(s.op, Votes) for x in self._voted(s, s.op)]
        reads_input = any(isinstance(s.op, Feature | Lookup | Grid | Match | Votes) for s in self.steps)
        if not reads_input:
            lines.insert(0, f"    (void){'tokens' if self.program.kind == 'tokens' else 'features'};")
        if self.program.kind == "tokens" and not self._uses_n():
            lines.insert(0, "    (void)n;")
        return lines

    def _copies(self) -> bool:
        return any(isinstance(s.op, Votes) and s.op.copy for s in self.steps)

    def _answer_ids(self) -> str:
        ids = array_of("static const long answer_ids[ANSWERS]", [str(a.index) for a in self.program.answers])
        return f"/* The token that each answer is. */\n{ids}"

    def _needs_math(self) -> bool:
        ops = [s.op.how if isinstance(s.op, Votes) else s.op for s in self.steps]
        return self.choosing or any(
            isinstance(op, Norm | Attend) or (isinstance(op, Bend) and op.curve in ("gelu", "gelu_tanh", "silu", "exp"))
            for op in ops
        )

    # -- texts -----------------------------------------------------------------------------------------------------

    def _text_body(self) -> list[str]:
        """Declarations, the loop over places, and what only the place asked needs."""
        again = [s for s in self.steps if s.name in self.series]
        last = [s for s in self.steps if s.name not in self.series and not isinstance(s.op, Votes)]
        lines = [f"    static double {self.names[s.name]}[PLACES];" for s in again]
        if any(isinstance(s.op, Attend | Votes) for s in self.steps):
            lines.append("    static double weights[PLACES];")
        if self._uses_at([s for s in self.steps if s.name not in self.series]):
            lines.append("    const int at = n - 1;")
        if again:
            lines += ["    for (int i = 0; i < n; i++) {"]
            lines += [line for s in again for line in self._step(s, True, "        ")]
            lines += ["    }"]
        return lines + [line for s in last for line in self._step(s, False, "    ")]

    def _uses_n(self) -> bool:
        return bool(self.series) or self._uses_at([s for s in self.steps if s.name not in self.series])

    def _uses_at(self, last: Sequence[Step]) -> bool:
        by_place = any(
            isinstance(s.op, Lookup | Grid | ByPosition | Attend | Average | Latest | Previous | Match | Votes)
            for s in last
        )
        read = {n for s in last for n in reads(s.op)} | {a.step for a in self.program.answers}
        return by_place or bool(read & self.series)

    # -- steps -----------------------------------------------------------------------------------------------------

    def _end(self, name: str) -> str:
        return f"{self.names[name]}[at]" if name in self.series else self.names[name]

    def _step(self, step: Step, series: bool, indent: str) -> list[str]:
        """The statements of a step: for every place inside the loop, or once for the place asked."""
        name, op, i = self.names[step.name], step.op, "i" if series else "at"
        get: Get = (lambda n: f"{self.names[n]}[{i}]") if series else self._end
        target = f"{name}[i]" if series else name
        begin = target if series else f"double {name}" if isinstance(op, MIXES) else f"const double {name}"
        about = [f"{indent}/* {_safe(step.about)} */"] if step.about else []
        if isinstance(op, MIXES):
            return [*about, *self._mix(op, begin, target, get, i, indent)]
        return [*about, *_wrapped(f"{indent}{begin} = ", self._value(name, op, get, i), indent)]

    def _value(self, name: str, op: Op, get: Get, i: str) -> list[str]:
        """The expression of a step that looks at one place, in parts between which a line may end."""
        match op:
            case Feature(index):
                return [f"features[{index}]"]
            case Sum(terms, bias):
                parts = [number_of(bias)] if bias or not terms else []
                for term, c in terms:
                    size = "" if abs(c) == 1 else f"{number_of(abs(c))} * "
                    sign = ("- " if c < 0 else "+ ") if parts else ("-" if c < 0 else "")
                    parts.append(f"{sign}{size}{get(term)}")
                return parts
            case Product(a, b):
                return [f"{get(a)} * {get(b)}"]
            case Bend(of, curve):
                if curve not in BENDS:
                    raise UsageError(f'C is not told the curve "{curve}" of step {name}; it knows {", ".join(BENDS)}.')
                return [f"bend_{curve}({get(of)})"]
            case Norm(of, rest, width, eps):
                squares = [f"{get(n)} * {get(n)}" for n in of] + ([get(rest)] if rest else [])
                parts = [f"+ {s}" if k else s for k, s in enumerate(squares or ["0.0"])]
                parts[0] = f"1.0 / sqrt(({parts[0]}"
                parts[-1] += f") / {number_of(width)} + {number_of(eps)})"
                return parts
            case Lookup():
                self._lookup_table(name, op)
                return [f"lookup({name}_of, {len(op.table)}, {number_of(op.default)}, tokens[{i}])"]
            case Grid():
                self._grid_table(name, op)
                places = len(op.default)
                place = f"{i} < {places} ? {i} : {places - 1}"
                return [f"{name}_by[of_token({name}_ids, {len(op.rows)}, tokens[{i}])][{place}]"]
            case ByPosition(values):
                self.tables.append(array_of(f"static const double {name}_at[{len(values)}]", map(number_of, values)))
                return [f"{name}_at[{i} < {len(values)} ? {i} : {len(values) - 1}]"]
        raise AssertionError(op)

    def _lookup_table(self, name: str, op: Lookup) -> None:
        words = dict(self.program.words)
        rows = [f"{{{t}, {number_of(x)}}}" for t, x in sorted(op.table)]
        said = ", ".join(ascii(words[t]) for t, _ in sorted(op.table) if t in words)
        head = f"{_comment(said)}\n" if said else ""
        self.tables.append(head + array_of(f"static const struct entry {name}_of[{len(rows)}]", rows))

    def _grid_table(self, name: str, op: Grid) -> None:
        ids = [str(t) for t, _ in op.rows]
        self.tables.append(array_of(f"static const long {name}_ids[{len(ids)}]", ids))
        rows = [array_of("", map(number_of, r)).removeprefix(" = ").removesuffix(";") for _, r in op.rows]
        rows.append(array_of("", map(number_of, op.default)).removeprefix(" = ").removesuffix(";"))
        head = f"static const double {name}_by[{len(rows)}][{len(op.default)}] = {{"
        self.tables.append("\n".join([head, ",\n".join(rows), "};"]))

    def _mix(self, op: Op, begin: str, target: str, get: Get, i: str, indent: str) -> list[str]:
        """The statements of a step that looks back; inside its own braces, so that helpers' names may recur."""
        of = self.names
        loop = f"for (int j = 0; j <= {i}; j++) {{"
        match op:
            case Attend(value, query, key, score, scale, sink):
                parts = [f"{get(q)} * {of[k]}[j]" for q, k in zip(query, key, strict=True)]
                dot = " + ".join(parts)
                weigh = f"{number_of(scale)} * ({dot})" if parts else ""
                weigh = " + ".join([*([weigh] if weigh else []), *([f"{of[score]}[j]"] if score else [])]) or "0.0"
                top = "-INFINITY" if sink is None else number_of(sink)
                total = "0.0" if sink is None else f"exp({number_of(sink)} - top)"
                inner = [
                    f"double top = {top}, total;",
                    loop, *_wrapped("    weights[j] = ", weigh.split(" + "), "    ", "+ "),
                    "    if (weights[j] > top) top = weights[j];", "}",
                    f"total = {total};", loop,
                    "    weights[j] = exp(weights[j] - top);", "    total += weights[j];",
                    f"    {target} += weights[j] * {of[value]}[j];", "}", f"{target} /= total;",
                ]  # fmt: skip
                start = "0.0"
            case Average(value, weight, nothing):
                w = f"{of[weight]}[j]" if weight else "1.0"
                inner = [
                    f"double total = {number_of(nothing)};", loop, f"    total += {w};",
                    f"    {target} += {w} * {of[value]}[j];", "}", f"if (total > 0.0) {target} /= total;",
                ]  # fmt: skip
                start = "0.0"
            case Latest(value, where, empty):
                inner = [loop, f"    if ({of[where]}[j] > 0.0) {target} = {of[value]}[j];", "}"]
                start = number_of(empty)
            case Match(value, back, weight, others):
                w = f"{of[weight]}[j]" if weight else "1.0"
                inner = [
                    "double total = 0.0, all = 0.0, sum = 0.0;", loop,
                    f"    const double part = points(tokens, {back}, j, {i}) ? {w} : {number_of(others)} * {w};",
                    f"    total += part; all += {w};",
                    f"    {target} += part * {of[value]}[j]; sum += {w} * {of[value]}[j];", "}",
                    f"if (total > 0.0) {target} /= total;", f"else {target} = all > 0.0 ? sum / all : 0.0;",
                ]  # fmt: skip
                start = "0.0"
            case Previous(value, back, empty):
                inner = []
                start = f"{i} >= {back} ? {of[value]}[{i} - {back}] : {number_of(empty)}"
            case _:
                raise AssertionError(op)
        if not inner:
            return [f"{indent}{begin} = {start};"]
        return [f"{indent}{begin} = {start};", f"{indent}{{", *(f"{indent}    {x}" for x in inner), f"{indent}}}"]

    def _voted(self, step: Step, op: Votes) -> list[str]:
        """The statements that add a vote to the logits."""
        inner = [*self._shares(op.how), "for (int j = 0; j <= at; j++) {"]
        if op.copy:
            inner += [
                "    for (int i = 0; i < ANSWERS; i++)",
                f"        if (tokens[j] == answer_ids[i]) logits[i] += {number_of(op.copy)} * weights[j];",
            ]
        if op.default:
            name = self.names[step.name]
            self._rows_table(name, op)
            inner += [
                f"    const int row = of_token({name}_ids, {len(op.rows)}, tokens[j]);",
                f"    for (int i = 0; i < ANSWERS; i++) logits[i] += {name}_by[row][i] * weights[j];",
            ]
        about = [f"    /* {_safe(step.about)} */"] if step.about else []
        return [*about, "    {", *(f"        {x}" for x in [*inner, "}"]), "    }"]

    def _rows_table(self, name: str, op: Votes) -> None:
        ids = [str(t) for t, _ in op.rows] or ["-1"]
        self.tables.append(array_of(f"static const long {name}_ids[{len(ids)}]", ids))
        rows = [array_of("", map(number_of, r)).removeprefix(" = ").removesuffix(";") for _, r in op.rows]
        rows.append(array_of("", map(number_of, op.default)).removeprefix(" = ").removesuffix(";"))
        head = f"static const double {name}_by[{len(rows)}][ANSWERS] = {{"
        self.tables.append("\n".join([head, ",\n".join(rows), "};"]))

    def _shares(self, how: Looks) -> list[str]:
        """The statements after which `weights` has what each place counts for the last one."""
        of, loop = self.names, "for (int j = 0; j <= at; j++) {"
        match how:
            case Previous(_, back):
                return [f"for (int j = 0; j <= at; j++) weights[j] = j == at - {back} ? 1.0 : 0.0;"]
            case Average(_, weight, nothing):
                w = f"{of[weight]}[j]" if weight else "1.0"
                return [f"double total = {number_of(nothing)};", f"{loop} weights[j] = {w}; total += weights[j]; }}",
                        "for (int j = 0; total > 0.0 && j <= at; j++) weights[j] /= total;"]  # fmt: skip
            case Match(_, back, weight, others):
                w = f"{of[weight]}[j]" if weight else "1.0"
                return [
                    "double total = 0.0;", loop,
                    f"    weights[j] = points(tokens, {back}, j, at) ? {w} : {number_of(others)} * {w};",
                    "    total += weights[j];", "}",
                    f"if (!(total > 0.0)) {loop} weights[j] = {w}; total += weights[j]; }}",
                    "for (int j = 0; total > 0.0 && j <= at; j++) weights[j] /= total;",
                ]  # fmt: skip
            case Attend(_, query, key, score, scale, sink):
                dot = " + ".join(f"{self._end(q)} * {of[k]}[j]" for q, k in zip(query, key, strict=True))
                weigh = " + ".join([*([f"{number_of(scale)} * ({dot})"] if dot else []),
                                    *([f"{of[score]}[j]"] if score else [])]) or "0.0"  # fmt: skip
                top = "-INFINITY" if sink is None else number_of(sink)
                total = "0.0" if sink is None else f"exp({number_of(sink)} - top)"
                return [
                    f"double top = {top}, total;", loop,
                    *_wrapped("    weights[j] = ", weigh.split(" + "), "    ", "+ "),
                    "    if (weights[j] > top) top = weights[j];", "}", f"total = {total};",
                    f"{loop} weights[j] = exp(weights[j] - top); total += weights[j]; }}",
                    "for (int j = 0; j <= at; j++) weights[j] /= total;",
                ]  # fmt: skip


# -- which steps, under which names ----------------------------------------------------------------------------------


def _needed(program: Program) -> list[Step]:
    """The steps that an answer needs, in their order."""
    wanted = {a.step for a in program.answers} | {s.name for s in program.steps if isinstance(s.op, Votes)}
    for s in reversed(program.steps):
        if s.name in wanted:
            wanted |= set(reads(s.op))
    return [s for s in program.steps if s.name in wanted]


def _series(program: Program) -> frozenset[str]:
    """The steps that are needed at every place: what a later place looks back at, and what that is made of."""
    wanted = set[str]()
    for s in reversed(_needed(program)):
        match _how(s.op):
            case Attend(value, query, key, score):
                wanted |= {n for n in (value, *key, score) if n}
                wanted |= set(query) if s.name in wanted else set()
            case Average() | Latest() | Previous() | Match():
                wanted |= set(reads(s.op))
            case _:
                wanted |= set(reads(s.op)) if s.name in wanted else set()
    return frozenset(wanted)


def _how(op: Op) -> Op:
    """How a vote weighs places; any other operation itself."""
    return op.how if isinstance(op, Votes) else op


def _has_rows(op: Op) -> bool:
    return isinstance(op, Votes) and bool(op.default)


def _c_names(names: Iterable[str], reserved: set[str]) -> dict[str, str]:
    """A name for every step that C takes: ASCII, no word of C or of this file, no two alike."""
    out: dict[str, str] = {}
    taken: set[str] = {*RESERVED, *reserved}
    for name in names:
        short = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
        while short in taken or short.startswith(("_", "bend_")) or short.endswith(("_of", "_by", "_ids", "_at")):
            short = f"v{short}" if short.startswith(("_", "bend_")) else f"{short}_x"
        taken.add(short)
        out[name] = short
    return out


def _without_table(step: Step) -> Step:
    """A table that lists no token as what it is: the same number at every place, or a number by place."""
    op = step.op
    if isinstance(op, Lookup) and not op.table:
        return Step(step.name, Sum((), op.default), step.about)
    if isinstance(op, Grid) and not op.rows:
        return Step(step.name, ByPosition(op.default), step.about)
    return step


# -- pieces of C -----------------------------------------------------------------------------------------------------


def number_of(x: float) -> str:
    """A double as C writes it, to the last bit."""
    if not math.isfinite(x):
        raise RunError(f"a constant of the program is {x}, which is no number that C can be given.")
    return repr(float(x))


def _safe(text: str) -> str:
    """Text that ends no comment and is no trigraph."""
    plain = "".join(c if c.isprintable() and c.isascii() else ascii(c)[1:-1] for c in text)
    return plain.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?").rstrip("\\")


def _comment(text: str) -> str:
    """A comment of one or more lines, wrapped at spaces."""
    lines: list[str] = []
    for line in text.strip().splitlines() or [""]:
        words, now = line.split(" "), ""
        for word in words:
            if now and len(now) + len(word) + 1 > WIDTH - 6:
                lines.append(now)
                now = word
            else:
                now = f"{now} {word}" if now else word
        lines.append(now)
    lines = [_safe(x) for x in lines]
    return f"/* {lines[0]} */" if len(lines) == 1 else "\n".join(["/*", *(f" * {x}".rstrip() for x in lines), " */"])


def _wrapped(begin: str, parts: Sequence[str], indent: str, join: str = "") -> list[str]:
    """One statement of parts over as many lines as it takes."""
    lines, now = [], begin + parts[0]
    for part in (join + p for p in parts[1:]):
        if len(now) + len(part) + 2 > WIDTH:
            lines.append(now)
            now = f"{indent}    {part}"
        else:
            now = f"{now} {part}"
    return [*lines, now + ";"]


def array_of(head: str, items: Iterable[str]) -> str:
    """`head = {items};` over as many lines as it takes."""
    items = list(items)
    lines, now = [], "   "
    for k, item in enumerate(items):
        item = item + ("," if k + 1 < len(items) else "")
        if len(now) + len(item) + 1 > WIDTH:
            lines.append(now)
            now = "   "
        now = f"{now} {item}"
    if not lines and len(head) + len(now) < WIDTH - 4:
        return f"{head} = {{{now.strip()}}};"
    return "\n".join([f"{head} = {{", *lines, now, "};"])


def _bend(curve: str) -> str:
    if curve not in BENDS:
        raise UsageError(f'C is not told the curve "{curve}"; it knows {", ".join(BENDS)}.')
    return f"static double bend_{curve}(double x)\n{{\n    return {BENDS[curve]};\n}}"


LOOKUP = """struct entry {
    long token;
    double number;
};

/* The number of a token in a table of n rows in order of their tokens; `otherwise` where it is not listed. */
static double lookup(const struct entry *table, int n, double otherwise, long token)
{
    int low = 0, high = n;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (table[middle].token < token) low = middle + 1;
        else high = middle;
    }
    return low < n && table[low].token == token ? table[low].number : otherwise;
}"""

OF_TOKEN = """/* The row of a token among n ids in order; n where it is not listed. */
static int of_token(const long *ids, int n, long token)
{
    int low = 0, high = n;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (ids[middle] < token) low = middle + 1;
        else high = middle;
    }
    return low < n && ids[low] == token ? low : n;
}"""

POINTS = """/* Whether the token so many places before place j is that of place i, and stands before it. */
static int points(const long *tokens, int back, int j, int i)
{
    const int source = j >= back ? j - back : 0;
    return source < i && tokens[source] == tokens[i];
}"""

_PRINT = """        decide({inputs}logits);
        for (int i = 0; i < ANSWERS; i++) printf("%.17g%c", logits[i], i + 1 < ANSWERS ? ' ' : '\\n');
    }}
    if (ferror(stdin) || fflush(stdout) != 0) {{
        fprintf(stderr, "the examples could not be read or the logits not be written\\n");
        return 1;
    }}
    return 0;
}}"""

MAIN_TOKENS = """int main(void)
{
    static char line[LINE];
    static long tokens[PLACES];
    double logits[ANSWERS];
    for (long number = 1; fgets(line, LINE, stdin) != NULL; number++) {
        int n = 0;
        char *text = line, *end = line;
        for (;; text = end, n++) {
            const long token = strtol(text, &end, 10);
            if (end == text) break;
            if (token < 0 || n == PLACES) {
                fprintf(stderr, "line %ld: expected at most %d token ids, none of them negative\\n", number, PLACES);
                return 2;
            }
            tokens[n] = token;
        }
        while (*end == ' ' || *end == '\\t' || *end == '\\r') end++;
        if (n == 0 || (*end != '\\n' && !(*end == '\\0' && feof(stdin)))) {
            fprintf(stderr, "line %ld: expected token ids and nothing else\\n", number);
            return 2;
        }
""" + _PRINT.format(inputs="tokens, n, ")

_AMONG = """        int among[ANSWERS], all = *end != '|';
        for (int i = 0; i < ANSWERS; i++) among[i] = all;
        for (text = all ? end : end + 1; !all; text = end) {
            const long token = strtol(text, &end, 10);
            if (end == text) break;
            for (int i = 0; i < ANSWERS; i++) if (answer_ids[i] == token) among[i] = 1;
        }
        while (*end == ' ' || *end == '\\t' || *end == '\\r') end++;
"""

MAIN_AMONG = MAIN_TOKENS.replace("        if (n == 0 ||", f"{_AMONG}        if (n == 0 ||").replace(
    "        for (int i = 0; i < ANSWERS; i++) printf",
    "        for (int i = 0; i < ANSWERS; i++) if (!among[i]) logits[i] = -INFINITY;\n"
    "        for (int i = 0; i < ANSWERS; i++) printf",
)  # fmt: skip

MAIN_FEATURES = """int main(void)
{
    static char line[LINE];
    static double features[FEATURES + 1];
    double logits[ANSWERS];
    for (long number = 1; fgets(line, LINE, stdin) != NULL; number++) {
        int n = 0;
        char *text = line, *end = line;
        for (;; text = end, n++) {
            const double feature = strtod(text, &end);
            if (end == text) break;
            if (n < FEATURES) features[n] = feature;
        }
        while (*end == ' ' || *end == '\\t' || *end == '\\r') end++;
        if (n < FEATURES || (*end != '\\n' && !(*end == '\\0' && feof(stdin)))) {
            fprintf(stderr, "line %ld: expected at least %d numbers and nothing else\\n", number, FEATURES);
            return 2;
        }
""" + _PRINT.format(inputs="features, ")

__all__ = ["LINE", "PLACES", "array_of", "emit_c", "emit_c_from", "number_of"]
