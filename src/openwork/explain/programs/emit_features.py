"""A program of named features, or of an image, as one Python file: what a person reads, and what is run to test it.

    look(pixels)       of an image: the maps (NumPy), and what they saw as features
    scores(features)   the steps by their names, and the score of every answer
    decide(features)   the answer with the largest score
    main()             one example per line of stdin, numbers between spaces; prints an answer per line

A step that is read by a bend alone stands inside of it. A bit that is made of bits is written as the Boolean formula of
its truth table. The text is formatted as `ruff format` would. `rounded` shortens the constants as far as no decision
changes on the examples that it is given.

Knows programs. Does not know models, circuits, tasks, or how well the program does.
"""

from __future__ import annotations

import itertools
import json
import keyword
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from openwork.errors import UsageError
from openwork.explain.programs.bits import merged_bits
from openwork.explain.programs.image_program import ImageProgram, Look
from openwork.explain.programs.program import (
    Bend,
    Feature,
    Norm,
    Op,
    Product,
    Program,
    Step,
    Sum,
    decisions,
    reads,
    run,
)
from openwork.explain.programs.truth_tables import formula_of, rows_of

WIDTH = 88  # columns of a line, as ruff has them
MOST_BITS = 8  # read by one bit, to be written as a formula
OWN = {"features", "pixels", "scores", "decide", "look", "main", "found", "math", "sys", "np", "relu", "gelu", "silu"}
FLOOR = 0.998  # share of decisions on mixtures of two examples that shortening constants has to keep
DIGITS = (1, 2, 3, 4, 5, 6, 8, 10)  # significant ones that are tried
TEXT = {
    "relu": '''def relu(x: float) -> float:
    """x where it is positive, else 0."""
    return max(x, 0.0)''',
    "gelu": '''def gelu(x: float) -> float:
    """x times the share of the normal distribution below x."""
    return x * 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))''',
    "silu": '''def silu(x: float) -> float:
    """x times the logistic function of x."""
    return x / (1.0 + math.exp(-x)) if x > -700 else 0.0''',
}
FOUND = '''def found(kernels: list[Match], bias: float, stride: int, pool: int) -> Map:
    """Where a map matches its kernels: the best of every window, 0 where none does."""
    total = np.array(bias)
    for on, kernel in kernels:
        k = np.array(kernel)
        views = np.lib.stride_tricks.sliding_window_view(on, k.shape)
        total = total + np.einsum("rcij,ij->rc", views[::stride, ::stride], k)
    rows, columns = total.shape[0] // pool, total.shape[1] // pool
    cut = np.maximum(total, 0.0)[: rows * pool, : columns * pool]
    return cut.reshape(rows, pool, columns, pool).max((1, 3))'''


def emit_features(program: Program | ImageProgram, head: Sequence[str]) -> str:
    """The Python file of a program of features; `head` are the lines of its docstring. UsageError for one of tokens."""
    image = program if isinstance(program, ImageProgram) else None
    steps = image.program if image is not None else program
    assert isinstance(steps, Program)
    if steps.kind != "features":
        raise UsageError("this program reads tokens, not features; write it with emit_python.")
    texts = [a.text for a in steps.answers]
    taken = [s.name for s in steps.steps if keyword.iskeyword(s.name) or s.name in OWN]
    if len(set(texts)) < len(texts) or taken:
        wrong = f'"{taken[0]}" is a word of Python or of the file' if taken else "two answers read the same"
        raise UsageError(f"this program cannot be written as Python: {wrong}; give it another name.")
    body, curves = _scores(merged_bits(steps))
    imports = ["import math"] if curves & {"gelu", "silu", "exp"} or _norms(steps) else []
    imports.append("import sys")
    blocks = ["\n".join(['"""' + head[0], *head[1:], '"""']) if len(head) > 1 else f'"""{head[0]}"""']
    if image is not None:
        imports += ["", "import numpy as np", "from numpy.typing import NDArray"]
    blocks.append("\n".join(imports))
    text = "\n\n".join(blocks)
    if image is not None:
        text += "\n\nMap = NDArray[np.float64]\nMatch = tuple[Map, list[list[float]]]"
    functions = [TEXT[c] for c in ("relu", "gelu", "silu") if c in curves]
    if image is not None:
        text += "".join(f"\n{line}" for line in _kernels(image))
        functions += [*([FOUND] if image.looks else []), _look(image)]
    functions += [body, _decide(image is not None), MAIN]
    text += "".join(f"\n\n\n{f}" for f in functions)
    return text


def rounded(program: Program, features: NDArray[np.floating], floor: float = FLOOR, seed: int = 0) -> Program:
    """The program with the fewest significant digits that change no decision on these features [N, F].

    Examples are few, so mixtures of two of them (`mixtures`) are asked too: of these, a share `floor` has to stay.
    """
    pool = mixtures(features, seed)
    wanted, between = decisions(run(program, features)), decisions(run(program, pool))
    for digits in DIGITS:
        short = replace(program, steps=tuple(replace(s, op=_rounded(s.op, digits)) for s in program.steps))
        same = bool((decisions(run(short, features)) == wanted).all())
        if same and float((decisions(run(short, pool)) == between).mean()) >= floor:
            return short
    return program


def mixtures(features: NDArray[np.floating], seed: int = 0, n: int = 2000) -> NDArray[np.float64]:
    """Points [n, F] on the lines between two examples each, drawn at random."""
    rng = np.random.default_rng(seed)
    x = np.asarray(features, dtype=np.float64)
    a, b = rng.integers(0, len(x), (2, n))
    share = rng.random((n, 1))
    return share * x[a] + (1 - share) * x[b]


def _rounded(op: Op, digits: int) -> Op:
    if not isinstance(op, Sum):
        return op
    return Sum(tuple((n, _round(c, digits)) for n, c in op.terms), _round(op.bias, digits))


def _round(x: float, digits: int) -> float:
    return float(f"{x:.{digits - 1}e}")


# -- the steps -------------------------------------------------------------------------------------------------------


def _scores(program: Program) -> tuple[str, set[str]]:
    """The function `scores`, and the curves that it calls."""
    needed = _needed(program)
    readers: dict[str, list[Step]] = {}
    for s in needed:
        for n in set(reads(s.op)):
            readers.setdefault(n, []).append(s)
    asked = {a.step for a in program.answers}
    inside = {
        s.name for s in needed
        if isinstance(s.op, Sum) and s.name not in asked and len(readers[s.name]) == 1
        and isinstance(readers[s.name][0].op, Bend)
    }  # fmt: skip
    alone = {s.name for s in needed if isinstance(s.op, Sum) and s.name in asked and s.name not in readers}
    ops, curves, lines = program.by_name, set[str](), list[str]()
    for s in needed:
        if s.name not in inside | alone:
            curves |= {s.op.curve} if isinstance(s.op, Bend) else set()
            lines += _statement(s.name, s.op, ops, inside)
    out = [
        "def scores(features: list[float]) -> dict[str, float]:",
        '    """How much speaks for each answer."""',
        *lines,
    ]
    out.append("    return {")
    for a in program.answers:
        op = ops[a.step] if a.step else Sum()
        terms = _terms(op) if isinstance(op, Sum) and (a.step in alone or not a.step) else [a.step]
        out += _entry(quoted(a.text), terms)
    return "\n".join([*out, "    }"]), curves - {"step", "exp"}


def quoted(text: str) -> str:
    """A string literal as ruff writes it: in double quotes, unless that takes more backslashes."""
    double = json.dumps(text, ensure_ascii=not text.isprintable())
    if '"' in text and "'" not in text:
        return "'" + double[1:-1].replace('\\"', '"') + "'"
    return double


def _needed(program: Program) -> list[Step]:
    wanted = {a.step for a in program.answers}
    for s in reversed(program.steps):
        if s.name in wanted:
            wanted |= set(reads(s.op))
    return [s for s in program.steps if s.name in wanted]


def _statement(name: str, op: Op, ops: dict[str, Op], inside: set[str]) -> list[str]:
    match op:
        case Feature(index):
            return [f"    {name} = features[{index}]"]
        case Sum():
            return _fitted(f"{name} = ", "(", _terms(op), ")")
        case Product(a, b):
            return [f"    {name} = {a} * {b}"]
        case Norm(of, rest, width, eps):
            squares = [f"{'+ ' if k else ''}{n}**2" for k, n in enumerate(of)] + ([f"+ {rest}"] if rest else [])
            return [f"    {name} = 1 / math.sqrt(({' '.join(squares)}) / {width} + {eps!r})"]
        case Bend(of, curve):
            inner = ops[of]
            total = inner if of in inside and isinstance(inner, Sum) else Sum(((of, 1.0),))
            if curve == "step":
                return _bit(name, total, ops)
            return _fitted(f"{name} = {'math.exp' if curve == 'exp' else curve}(", "", _terms(total), ")")
    raise UsageError(f"step {name} does {type(op).__name__}, which is not written for features.")


def _bit(name: str, total: Sum, ops: dict[str, Op]) -> list[str]:
    """A step that is 1 or 0: as a formula of other bits, as a threshold of one number, or as a comparison of a sum."""
    names = [n for n, _ in total.terms]
    if names and len(names) <= MOST_BITS and all(isinstance(o := ops[n], Bend) and o.curve == "step" for n in names):
        table = rows_of(len(names)) @ np.array([c for _, c in total.terms]) + total.bias > 0
        return formula_lines(name, str(formula_of(table, names)))
    if len(names) == 1 and total.terms[0][1] in (1.0, -1.0):
        [(of, c)] = total.terms
        sign, bound = (">", -total.bias) if c > 0 else ("<", total.bias)
        return [f"    {name} = {of} {sign} {bound + 0.0!r}"]
    *first, last = _terms(total)
    inner = f"        {' '.join([*first, last])}"
    if len(f"{inner} > 0") <= WIDTH:
        return _fitted(f"{name} = ", "(", [*first, f"{last} > 0"], ")")
    rows = [inner] if len(inner) <= WIDTH else [f"        {p}" for p in (*first, last)]
    return [f"    {name} = (", *rows, "        > 0", "    )"]


def formula_lines(name: str, text: str) -> list[str]:
    """A bit that is a Boolean formula; one that compares a count breaks inside the count's own brackets."""
    counted = re.fullmatch(r"\((.*)\) ((?:[<>=]=|in|%).*)", text)
    if len(name) + len(text) + 7 > WIDTH and counted is not None and _balanced(counted[1]):
        inner = f"        {counted[1]}"
        rows = [inner] if len(inner) <= WIDTH else [f"        {x}" for x in _operands(counted[1], ("+",))]
        return [f"    {name} = (", *rows, f"    ) {counted[2]}"]
    return _fitted(f"{name} = ", "(", _operands(text), ")")


def _balanced(text: str) -> bool:
    depth = list(itertools.accumulate({"(": 1, ")": -1}.get(c, 0) for c in text))
    return not depth or (min(depth) >= 0 and depth[-1] == 0)


def _operands(text: str, at: tuple[str, ...] = ("and", "or")) -> list[str]:
    """A formula in the parts between which a line may end: at its outermost operators."""
    parts, depth, now = [], 0, ""
    for word in text.split(" "):
        if not depth and word in at and now:
            parts.append(now)
            now = word
        else:
            now = f"{now} {word}" if now else word
        depth += word.count("(") - word.count(")")
    return [*parts, now]


def _terms(total: Sum) -> list[str]:
    """A sum in parts, each with its sign."""
    parts = []
    for name, c in total.terms:
        size = "" if abs(c) == 1 else f"{abs(c)!r} * "
        sign = ("- " if c < 0 else "+ ") if parts else ("-" if c < 0 else "")
        parts.append(f"{sign}{size}{name}")
    if total.bias or not parts:
        sign = ("- " if total.bias < 0 else "+ ") if parts else ("-" if total.bias < 0 else "")
        parts.append(f"{sign}{abs(total.bias)!r}")
    return parts


def _fitted(begin: str, opening: str, parts: Sequence[str], closing: str) -> list[str]:
    """A statement of one expression as ruff lays it out: on one line, inside brackets, or one operand per line."""
    whole = f"    {begin}{' '.join(parts)}{'' if opening else closing}"
    if len(whole) <= WIDTH:
        return [whole]
    inner = f"        {' '.join(parts)}"
    rows = [inner] if len(inner) <= WIDTH else [f"        {p}" for p in parts]
    return [f"    {begin}{opening}", *rows, f"    {closing}"]


def _entry(key: str, parts: Sequence[str]) -> list[str]:
    """One entry of the dict that `scores` returns."""
    whole = f"        {key}: {' '.join(parts)},"
    if len(whole) <= WIDTH or len(parts) == 1:
        return [whole]
    return [f"        {key}: {parts[0]}", *(f"        {p}" for p in parts[1:-1]), f"        {parts[-1]},"]


def _norms(program: Program) -> bool:
    return any(isinstance(s.op, Norm) for s in program.steps)


# -- maps ------------------------------------------------------------------------------------------------------------


def _kernels(image: ImageProgram) -> list[str]:
    """The kernels as constants, row by row, which ruff is told to leave as they are."""
    if not image.looks:
        return []
    lines = ["# fmt: off"]
    for m in image.looks:
        for n, (_, kernel) in enumerate(m.kernels):
            rows = [f"    [{', '.join(map(repr, row))}]," for row in kernel]
            lines.append(f"{_constant(m, n)} = [")
            lines += [row if len(row) <= WIDTH else f"{row}  # noqa: E501" for row in rows]
            lines.append("]")
    return [*lines, "# fmt: on"]


def _constant(m: Look, n: int) -> str:
    return f"{m.name.upper()}_{n}"


def _look(image: ImageProgram) -> str:
    lines = ["def look(pixels: list[float]) -> list[float]:", '    """What the maps see in an image."""']
    lines.append(f"    image = np.array(pixels, dtype=np.float64).reshape({image.image})")
    for m in image.looks:
        matches = [f"({_source(on)}, {_constant(m, n)})" for n, (on, _) in enumerate(m.kernels)]
        call = f"    {m.name} = found([{', '.join(matches)}], {m.bias!r}, {m.stride}, {m.pool})"
        if len(call) <= WIDTH:
            lines.append(call)
            continue
        lines.append(f"    {m.name} = found(")
        inner = f"        [{', '.join(matches)}], {m.bias!r}, {m.stride}, {m.pool}"
        if len(inner) <= WIDTH:
            lines.append(inner)
        else:
            listed = f"        [{', '.join(matches)}],"
            lines += (
                [listed]
                if len(listed) <= WIDTH
                else ["        [", *(f"            {x}," for x in matches), "        ],"]
            )
            lines += [f"        {m.bias!r},", f"        {m.stride},", f"        {m.pool},"]
        lines.append("    )")
    seen = [f"float({_source(on)}[{r}, {c}])" for on, r, c in image.seen]
    whole = f"    return [{', '.join(seen)}]"
    return "\n".join(
        [*lines, *([whole] if len(whole) <= WIDTH else ["    return [", *(f"        {s}," for s in seen), "    ]"])]
    )


def _source(on: int | str) -> str:
    return on if isinstance(on, str) else f"image[{on}]"


# -- deciding --------------------------------------------------------------------------------------------------------


def _decide(image: bool) -> str:
    given, made = ("pixels", "look(pixels)") if image else ("features", "features")
    return "\n".join(
        [
            f"def decide({given}: list[float]) -> str:",
            '    """The answer for which most speaks."""',
            f"    found = scores({made})" if not image else f"    best = scores({made})",
            f"    return max({'best' if image else 'found'}, key={'best' if image else 'found'}.__getitem__)",
        ]
    )


MAIN = '''def main() -> None:
    """Answers every line of stdin: the numbers of one example, between spaces."""
    for line in sys.stdin:
        print(decide([float(x) for x in line.split()]))


if __name__ == "__main__":
    main()
'''

__all__ = ["MAIN", "emit_features", "formula_lines", "mixtures", "quoted", "rounded"]
