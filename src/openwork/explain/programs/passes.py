"""Programs into shorter programs that compute exactly the same: constants, sums and tables folded, dead steps gone.

Every rule is a sentence of arithmetic; `fold` applies all of them until none applies. What changes a number by more
than rounding is no business of this file (see `simplify`).

Knows programs alone. Does not know data, models or circuits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from openwork.explain.programs.program import (
    CURVES,
    MIXES,
    Attend,
    Average,
    Bend,
    ByPosition,
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
    renamed,
)

Steps = dict[str, Step]  # by name, in order


def margin(program: Program) -> Program:
    """Of two answers only the difference counts: one step, above 0 where the first answer wins; else unchanged."""
    if len(program.answers) != 2 or not program.answers[1].step:
        return program
    a, b = program.answers
    terms = tuple((x.step, c) for x, c in ((a, 1.0), (b, -1.0)) if x.step)
    name = fresh("margin", {s.name for s in program.steps})
    step = Step(name, Sum(terms), f"how far {a.text!r} is ahead of {b.text!r}")
    return replace(program, steps=(*program.steps, step), answers=(replace(a, step=name), replace(b, step="")))


def fresh(name: str, taken: set[str]) -> str:
    """A name that is not taken."""
    out, k = name, 2
    while out in taken:
        out, k = f"{name}_{k}", k + 1
    return out


def fold(program: Program) -> Program:
    """The same program with every rule of this file applied as often as it applies."""
    before = None
    while program != before:
        before = program
        for rule in (_aliases, _constants, _tables, _sums, _factors, _averages, dead):
            program = rule(program)
    return program


def series(program: Program) -> frozenset[str]:
    """The steps that are needed at every place, not only at the one asked."""
    out = set[str]()
    for s in reversed(program.steps):
        if isinstance(s.op, MIXES):
            op = s.op.how if isinstance(s.op, Votes) else s.op
            once = set(op.query) if isinstance(op, Attend) and s.name not in out else set()
            over = set(reads(op)) - once
            if isinstance(op, Attend):
                over |= {n for n in (op.value, *op.key, op.score) if n}
            out |= over
        elif s.name in out:
            out |= set(reads(s.op))
    return frozenset(out)


def uses(program: Program) -> Counter[str]:
    """How often each step is read, by steps and answers."""
    return Counter(n for s in program.steps for n in reads(s.op)) + Counter(a.step for a in program.answers if a.step)


def downstream(program: Program, changed: set[str]) -> set[str]:
    """The steps whose value may change when these do, themselves included."""
    out = set(changed)
    for s in program.steps:
        if out.intersection(reads(s.op)):
            out.add(s.name)
    return out


def dead(program: Program) -> Program:
    """The program without steps that no answer depends on."""
    silent = {s.name for s in program.steps if isinstance(s.op, Votes) and not s.op.copy and not any(s.op.default)}
    silent -= {s.name for s in program.steps if isinstance(s.op, Votes) and s.op.rows}
    needed = {a.step for a in program.answers}
    needed |= {s.name for s in program.steps if isinstance(s.op, Votes)} - silent
    for s in reversed(program.steps):
        if s.name in needed:
            needed |= set(reads(s.op))
    return replace(program, steps=tuple(s for s in program.steps if s.name in needed))


def with_names(program: Program, names: Mapping[str, str]) -> Program:
    """The program with some of its steps called otherwise."""

    def to(name: str) -> str:
        return names.get(name, name)

    steps = tuple(Step(to(s.name), renamed(s.op, to), s.about) for s in program.steps)
    return replace(program, steps=steps, answers=tuple(replace(a, step=to(a.step)) for a in program.answers))


# -- the rules -------------------------------------------------------------------------------------------------------


def _mapped(program: Program, rule: Callable[[Step, Mapping[str, Op]], Op]) -> Program:
    """The program with each operation replaced by what a rule makes of it, given the ones before as replaced."""
    done: dict[str, Op] = {}
    steps = []
    for s in program.steps:
        done[s.name] = rule(s, done)
        steps.append(replace(s, op=done[s.name]))
    return replace(program, steps=tuple(steps))


def _aliases(program: Program) -> Program:
    """A sum of one step alone is that step; a step that does what an earlier one does is the earlier one."""
    same: dict[str, str] = {}
    have: dict[Op, str] = {}
    steps = []
    for s in program.steps:
        op = renamed(s.op, lambda n: same.get(n, n))
        if isinstance(op, Sum):
            op = _gathered(op)
        if isinstance(op, Sum) and len(op.terms) == 1 and op.terms[0][1] == 1.0 and not op.bias:
            same[s.name] = op.terms[0][0]
        elif op in have:
            same[s.name] = have[op]
        else:
            have[op] = s.name
            steps.append(replace(s, op=op))
    answers = tuple(replace(a, step=same.get(a.step, a.step)) for a in program.answers)
    return replace(program, steps=tuple(steps), answers=answers)


def _gathered(op: Sum) -> Sum:
    """A sum in which every step stands once."""
    total: dict[str, float] = {}
    for n, c in op.terms:
        total[n] = total.get(n, 0.0) + c
    return Sum(tuple((n, c) for n, c in total.items() if c), op.bias)


def constant_of(op: Op) -> float | None:
    """The number that an operation always gives, or None."""
    return op.bias if isinstance(op, Sum) and not op.terms else None


def _constants(program: Program) -> Program:
    """What is made of constants is a constant."""

    def rule(s: Step, done: Mapping[str, Op]) -> Op:
        op = s.op
        known = {n: c for n in set(reads(op)) if (c := constant_of(done[n])) is not None}
        if not known:
            return op
        match op:
            case Sum(terms, bias):
                return Sum(
                    tuple(t for t in terms if t[0] not in known),
                    bias + sum(c * known[n] for n, c in terms if n in known),
                )
            case Product(a, b) if a in known:
                return Sum(((b, known[a]),))
            case Product(a, b):
                return Sum(((a, known[b]),))
            case Bend(of, curve):
                return Sum((), float(CURVES[curve](np.array(known[of]))))
            case Norm(of, rest, width, eps):
                eps += (sum(known.get(n, 0.0) ** 2 for n in of) + known.get(rest, 0.0)) / width
                of, rest = tuple(n for n in of if n not in known), "" if rest in known else rest
                return Norm(of, rest, width, eps) if of or rest else Sum((), eps**-0.5)
            case Average(value, weight, nothing) if value in known and not nothing:
                return Sum((), known[value])
            case Average(value, weight, nothing) if weight in known and known[weight] > 0:
                return Average(value, "", nothing / known[weight])
            case Attend(value, sink=None) if value in known:
                return Sum((), known[value])
            case Attend(score=score, sink=None) if score in known:
                return replace(op, score="")
            case Match(weight=weight) if weight in known and known[weight] > 0:
                return replace(op, weight="")
            case Votes():
                return replace(op, how=_weighed(op.how, known))
            case Latest(value, where, empty) if where in known:
                return Sum((), empty) if known[where] <= 0 else Sum(((value, 1.0),))
            case Latest(value, _, empty) | Previous(value, _, empty) if value in known and known[value] == empty:
                return Sum((), empty)
        return op

    return _mapped(program, rule)


def _weighed(how: Looks, known: Mapping[str, float]) -> Looks:
    """How a vote weighs places, where some steps are known to be numbers."""
    match how:
        case Average(_, weight, nothing) if known.get(weight, 0.0) > 0:
            return replace(how, weight="", nothing=nothing / known[weight])
        case Match(weight=weight) if known.get(weight, 0.0) > 0:
            return replace(how, weight="")
        case Attend(score=score, sink=None) if score in known:
            return replace(how, score="")
    return how


def _tables(program: Program) -> Program:
    """What depends on the token alone (or the place alone) is one table."""
    count = uses(program)

    def table(op: Op) -> bool:
        return isinstance(op, (Lookup, ByPosition))

    def rule(s: Step, done: Mapping[str, Op]) -> Op:
        op = s.op
        below = [done[n] for n in reads(op)]
        match op:
            case Bend(of, curve) if table(done[of]):
                return _each(lambda x: CURVES[curve](x), done[of])
            case Product(a, b) if table(done[a]) and type(done[a]) is type(done[b]):
                return _each(lambda x, y: x * y, done[a], done[b])
            case Norm((), rest, width, eps) if table(done[rest]):
                return _each(lambda x: 1 / np.sqrt(x / width + eps), done[rest])
            case Sum(terms, bias):
                for kind in (Lookup, ByPosition):
                    mine = [(n, c) for n, c in terms if isinstance(done[n], kind) and count[n] == 1]
                    whole = len(mine) == len(terms)
                    if whole and mine:
                        return _weighted([c for _, c in mine], bias, below)
        return op

    return _merged_tables(_mapped(program, rule))


def _merged_tables(program: Program) -> Program:
    """Of the tables of one kind that a sum alone reads, the first takes in the others (and the bias, of tokens)."""
    count, ops, names = uses(program), dict(program.by_name), set(program.by_name)
    for s in program.steps:
        op = ops[s.name]
        if not isinstance(op, Sum):
            continue
        for kind in (Lookup, ByPosition):
            mine = [(n, c) for n, c in op.terms if isinstance(ops[n], kind) and count[n] == 1]
            if not mine or (len(mine) == 1 and mine[0][1] == 1.0 and not (kind is Lookup and op.bias)):
                continue
            bias = op.bias if kind is Lookup else 0.0
            cs, first = [c for _, c in mine], mine[0][0]
            ops[first] = _weighted(cs, bias, [ops[n] for n, _ in mine])
            gone = {n for n, _ in mine}
            rest = tuple(t for t in op.terms if t[0] not in gone)
            op = Sum(((first, 1.0), *rest), op.bias - bias)
            ops[s.name] = op
    assert names == set(ops)
    return program.with_ops(ops)


def _weighted(coefficients: Sequence[float], bias: float, tables: Sequence[Op]) -> Op:
    """The weighted sum of tables of one kind, plus a number."""
    return _each(lambda *xs: sum((c * x for c, x in zip(coefficients, xs, strict=True)), np.array(bias)), *tables)


def _each(f: Callable[..., np.ndarray], *tables: Op) -> Op:
    """Tables of one kind, number by number."""
    if isinstance(tables[0], Lookup):
        looked = [t for t in tables if isinstance(t, Lookup)]
        ids = sorted({i for t in looked for i, _ in t.table})
        maps = [dict(t.table) for t in looked]
        columns = [
            np.array([m.get(i, t.default) for i in ids] + [t.default]) for m, t in zip(maps, looked, strict=True)
        ]
        out = np.broadcast_to(f(*columns), len(ids) + 1).tolist()
        return Lookup(tuple((i, x) for i, x in zip(ids, out[:-1], strict=True)), out[-1])
    placed = [t for t in tables if isinstance(t, ByPosition)]
    n = max(len(t.values) for t in placed)
    columns = [np.array(t.values + (t.values[-1],) * (n - len(t.values))) for t in placed]
    return ByPosition(tuple(np.broadcast_to(f(*columns), n).tolist()))


def _sums(program: Program) -> Program:
    """A sum that one sum alone reads, or that is one step scaled or moved, is written where it is read."""
    count = uses(program)
    readers: dict[str, list[Op]] = {}
    for s in program.steps:
        for n in reads(s.op):
            readers.setdefault(n, []).append(s.op)

    def rule(s: Step, done: Mapping[str, Op]) -> Op:
        if not isinstance(s.op, Sum):
            return s.op
        terms: list[tuple[str, float]] = []
        bias = s.op.bias
        for n, c in s.op.terms:
            inner = done[n]
            if isinstance(inner, Sum) and (count[n] == 1 or len(inner.terms) <= 1):
                terms += [(m, c * x) for m, x in inner.terms]
                bias += c * inner.bias
            else:
                terms.append((n, c))
        return _gathered(Sum(tuple(terms), bias))

    return _mapped(program, rule)


def _factors(program: Program) -> Program:
    """Products by one factor that a sum alone reads are one product; a number in a product stands behind it."""
    count, ops = uses(program), dict(program.by_name)
    steps: list[Step] = []
    taken = set(ops)
    for s in program.steps:
        op = s.op
        if isinstance(op, Product):
            for x, y in ((op.a, op.b), (op.b, op.a)):
                inner = ops[x]
                if isinstance(inner, Sum) and len(inner.terms) == 1 and not inner.bias:
                    name = fresh(f"{s.name}_plain", taken)
                    taken.add(name)
                    steps.append(Step(name, Product(inner.terms[0][0], y), s.about))
                    ops[name] = steps[-1].op
                    op = Sum(((name, inner.terms[0][1]),))
                    break
        if isinstance(op, Sum):
            by_factor: dict[str, list[tuple[str, float, str]]] = {}
            for n, c in op.terms:
                inner = ops[n]
                if isinstance(inner, Product) and count[n] == 1:
                    for x, y in ((inner.a, inner.b), (inner.b, inner.a)):
                        if isinstance(ops[y], Norm):
                            by_factor.setdefault(y, []).append((n, c, x))
                            break
            for factor, mine in by_factor.items():
                if len(mine) < 2:
                    continue
                raw, name = fresh(f"{s.name}_raw", taken), fresh(f"{s.name}_scaled", taken | {f"{s.name}_raw"})
                taken |= {raw, name}
                steps.append(Step(raw, Sum(tuple((x, c) for _, c, x in mine)), s.about))
                steps.append(Step(name, Product(raw, factor), s.about))
                ops |= {raw: steps[-2].op, name: steps[-1].op}
                gone = {n for n, _, _ in mine}
                op = Sum((*(t for t in op.terms if t[0] not in gone), (name, 1.0)), op.bias)
        ops[s.name] = op
        steps.append(replace(s, op=op))
    return replace(program, steps=tuple(steps))


def _averages(program: Program) -> Program:
    """Averages by one weight that a sum alone reads are one average; what all places have is outside of it."""
    count, ops = uses(program), dict(program.by_name)
    steps: list[Step] = []
    taken = set(ops)
    for s in program.steps:
        op = s.op
        if isinstance(op, Average) and not op.nothing:
            inner = ops[op.value]
            if isinstance(inner, Sum) and (inner.bias or (len(inner.terms) == 1 and inner.terms[0][1] != 1.0)):
                value, name = fresh(f"{s.name}_value", taken), fresh(f"{s.name}_plain", taken)
                taken |= {value, name}
                scale = inner.terms[0][1] if len(inner.terms) == 1 else 1.0
                steps.append(Step(value, Sum(tuple((n, c / scale) for n, c in inner.terms)), s.about))
                steps.append(Step(name, replace(op, value=value), s.about))
                ops |= {value: steps[-2].op, name: steps[-1].op}
                op = Sum(((name, scale),), inner.bias)
        if isinstance(op, Sum):
            by_weight: dict[tuple[str, float], list[tuple[str, float, str]]] = {}
            for n, c in op.terms:
                inner = ops[n]
                if isinstance(inner, Average) and count[n] == 1:
                    by_weight.setdefault((inner.weight, inner.nothing), []).append((n, c, inner.value))
            for (weight, nothing), mine in by_weight.items():
                if len(mine) < 2:
                    continue
                value, name = fresh(f"{s.name}_value", taken), fresh(f"{s.name}_seen", taken | {f"{s.name}_value"})
                taken |= {value, name}
                steps.append(Step(value, Sum(tuple((v, c) for _, c, v in mine)), s.about))
                steps.append(Step(name, Average(value, weight, nothing), s.about))
                ops |= {value: steps[-2].op, name: steps[-1].op}
                gone = {n for n, _, _ in mine}
                op = Sum((*(t for t in op.terms if t[0] not in gone), (name, 1.0)), op.bias)
        ops[s.name] = op
        steps.append(replace(s, op=op))
    return replace(program, steps=tuple(steps))


__all__ = ["constant_of", "dead", "downstream", "fold", "fresh", "margin", "series", "uses", "with_names"]
