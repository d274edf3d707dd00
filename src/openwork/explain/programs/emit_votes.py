"""The last lines of a program with many answers as Python: one table, one product, and words that speak for themselves.

    SPEAKS      answer -> how much each of a few numbers speaks for it: the logits are one product
    ..._ROWS    token -> what a place with that token says of each answer
    the rest    each place adds to the answer whose word stands there

Knows programs and how `emit_python` reads a step. Does not know models, circuits, tasks.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

from openwork.explain.programs.program import Attend, Average, Looks, Match, Previous, Program, Sum, Votes, reads

Read = Callable[[str, bool, int], str]  # a step, at its end or not, how tightly what it stands in binds
Quoted = Callable[[str], str]

WIDE = 84  # characters of a line in a function

HELPERS = {
    "points": '''def points(tokens: list[str], back: int) -> np.ndarray:
    """Row by row, whether the token so many places before each place is the row's own, earlier."""
    place = np.arange(len(tokens))
    source = np.maximum(place - back, 0)
    same = np.array([[tokens[j] == here for j in source] for here in tokens])
    return same & (source < place[:, None])''',
    "matched": '''def matched(values: Series, points: np.ndarray, weights: Series, others: float) -> Series:
    """At each place the average of the values that it points to, or of all so far if of none."""
    own = np.tril(np.tile(weights, (len(values), 1)))
    parts = own * np.where(points, 1.0, others)
    parts = np.where(parts.sum(1, keepdims=True) > 0, parts, own)
    total = parts.sum(1)
    return parts @ values / np.where(total > 0, total, 1.0)''',
    "share": '''def share(weights: Series, otherwise: float | Series = 0.0, nothing: float = 0.0) -> Series:
    """Weights as shares of their sum; where all are 0, those of `otherwise`."""
    weights = weights if weights.any() else weights + otherwise
    total = weights.sum() + nothing
    return weights / total if total > 0 else weights''',
}


def shares(how: Looks, get: Read, number: Callable[[float], str], helper: Callable[[str], str]) -> str:
    """What each place counts for the last one, as an expression: [n], at most 1 together."""
    match how:
        case Previous(_, back):
            return f"np.float64(np.arange(n) == n - {back + 1})"
        case Average(_, weight, nothing):
            w = get(weight, False, 0) if weight else "np.ones(n)"
            return f"{helper('share')}({w}{f', 0.0, {number(nothing)}' if nothing else ''})"
        case Match(_, back, weight, others):
            pointed = f"{helper('points')}(tokens, {back})[-1]"
            w = get(weight, False, 1) if weight else ""
            text = f"np.where({pointed}, 1.0, {number(others)})" if others else pointed
            text = f"{w} * {text}" if w else (text if others else f"np.float64({pointed})")
            return f"{helper('share')}({text}, {w or '1.0'})"
        case Attend(_, query, key, score, scale, sink):
            z = " + ".join(f"{get(q, True, 1)} * {get(k, False, 1)}" for q, k in zip(query, key, strict=True))
            z = f"{number(scale)} * ({z})" if scale != 1.0 and z else z
            z = " + ".join(x for x in (z, get(score, False, 0) if score else "") if x) or "np.zeros(n)"
            return f"{helper('share')}(np.exp({z}){'' if sink is None else f', 0.0, np.exp({number(sink)})'})"


def summands(program: Program) -> list[tuple[dict[str, float], float]]:
    """Each answer as coefficients on steps and a number; a step that is no sum, or that others read, is one of them."""
    read = {n for s in program.steps for n in reads(s.op)}
    out: list[tuple[dict[str, float], float]] = []
    for a in program.answers:
        op = program.by_name.get(a.step)
        if isinstance(op, Sum) and a.step not in read:
            out.append((dict(op.terms), op.bias))
        else:
            out.append(({a.step: 1.0} if a.step else {}, 0.0))
    return out


def packed(begin: str, items: Sequence[str], end: str, wide: int, indent: str) -> list[str]:
    """`begin` + items between commas + `end`, over as many lines as it takes; an item is never broken."""
    lines, now = [], begin
    for k, item in enumerate(items):
        text = item + (", " if k + 1 < len(items) else end)
        if now.strip() and len(now) + len(text.rstrip()) > wide:
            lines.append(now.rstrip())
            now = indent
        now += text
    return [*lines, now.rstrip()] if items else [begin + end]


def _row(row: Sequence[float]) -> list[str]:
    return [repr(float(x)) for x in row]


def table_of(
    name: str, rows: Mapping[tuple[float, ...], Sequence[str]], quoted: Quoted, wide: int, other: Sequence[float] = ()
) -> list[str]:
    """A table of words by row: each line some words and their row; `other` the row of all others, if there is one."""
    one = "," if len(other or next(iter(rows), ())) == 1 else ""
    out = packed(f"{name}_OTHER = (", _row(other), f"{one})", wide, "    ") if other else []
    out.append(f"{name} = {{")
    for row, words in rows.items():
        head = packed("    **dict.fromkeys((", [*map(quoted, words)], "), (", wide, " " * 8)
        if len(words) == 1:
            head = [f"    {quoted(words[0])}: ("]
        *before, last = head
        out += [*before, *packed(last, _row(row), f"{one}))," if len(words) > 1 else f"{one}),", wide, " " * 8)]
    return [*out, "}"]


def closing(
    program: Program,
    get: Read,
    number: Callable[[float], str],
    helper: Callable[[str], str],
    quoted: Quoted,
    wide: int,
) -> tuple[list[str], list[str]]:
    """Tables for the head of the file, and the last lines of `scores`.

    get     how a step is read;  number  how a number is written;  helper  names a helper that the file will have
    """
    words = dict(program.words)
    tables: list[str] = []
    lines: list[str] = []
    sums = summands(program)
    terms = list(dict.fromkeys(n for own, _ in sums for n in own))
    biased = any(b for _, b in sums)
    said: list[str] = []
    if terms or biased:
        rows: dict[tuple[float, ...], list[str]] = {}
        for a, (own, bias) in zip(program.answers, sums, strict=True):
            rows.setdefault((*(own.get(n, 0.0) for n in terms), *((bias,) if biased else ())), []).append(a.text)
        names = ", ".join([*terms, *(["1"] if biased else [])])
        tables += textwrap.wrap(f"# How much speaks for each answer: {names}", wide, subsequent_indent="#   ")
        tables += table_of("SPEAKS", rows, quoted, wide)
        lines += _array("numbers = ", [*(get(n, True, 0) for n in terms), *(["1.0"] if biased else [])])
        said.append("np.array([SPEAKS[a] for a in ANSWERS]) @ numbers")
    copies = []
    for s in program.steps:
        op = s.op
        if not isinstance(op, Votes):
            continue
        lines += _shares(s.name, op.how, get, number, helper)
        if op.copy:
            copies.append((s.name, op.copy))
        if op.rows or any(op.default):
            table = s.name.upper()
            groups: dict[tuple[float, ...], list[str]] = {}
            for i, row in op.rows:
                if row != op.default:
                    groups.setdefault(row, []).append(words[i])
            tables += ["# What a place with that token says of each answer, in their order."]
            tables += table_of(table, groups, quoted, wide, op.default)
            lines.append(f"{s.name}_say = np.array([{table}.get(t, {table}_OTHER) for t in tokens])")
            said.append(f"{s.name} @ {s.name}_say")
    if said:
        lines.append(f"said = {said[0]}")
        lines += [f"said = said + {x}" for x in said[1:]]
        lines.append("found = dict(zip(ANSWERS, said.tolist(), strict=True))")
    else:
        lines.append("found = dict.fromkeys(ANSWERS, 0.0)")
    for name, copy in copies:
        lines += [
            f"for token, part in zip(tokens, {name}.tolist(), strict=True):",
            "    if token in found:",
            f"        found[token] {'-' if copy < 0 else '+'}= {number(abs(copy))} * part  # the word speaks "
            f"{'against' if copy < 0 else 'for'} itself",
        ]
    return tables, lines


def _shares(
    name: str, how: Looks, get: Read, number: Callable[[float], str], helper: Callable[[str], str]
) -> list[str]:
    """The statement of how much each place counts; products of query and key one by one where they are too many."""
    line = f"{name} = {shares(how, get, number, helper)}"
    if len(line) <= WIDE or not isinstance(how, Attend) or not how.query:
        return [line]
    lines = []
    for k, (q, key) in enumerate(zip(how.query, how.key, strict=True)):
        scale = "" if how.scale == 1.0 else f"{number(how.scale)} * "
        lines.append(f"{name} {'+' if k else ''}= {scale}{get(q, True, 1)} * {get(key, False, 1)}")
    if how.score:
        lines.append(f"{name} += {get(how.score, False, 0)}")
    sink = "" if how.sink is None else f", 0.0, np.exp({number(how.sink)})"
    return [*lines, f"{name} = {helper('share')}(np.exp({name}){sink})"]


def _array(begin: str, items: Sequence[str]) -> list[str]:
    """An array of some expressions, on one line or one line each."""
    line = f"{begin}np.array([{', '.join(items)}])"
    if len(line) <= WIDE:
        return [line]
    return [f"{begin}np.array(", "    [", *(f"        {x}," for x in items), "    ]", ")"]


__all__ = ["HELPERS", "closing", "packed", "shares", "summands", "table_of"]
