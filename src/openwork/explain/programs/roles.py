"""What a head does, as a guess in words that is tested: of programs whose answers differ from example to example.

All steps that look back alike are one head's, and get one role together, the simplest that is hardly worse than the
best of these:

    the token so many places ago; the average of all; the places behind earlier ones of the token that is here
    (`Match` with back 1: induction), or those earlier places themselves (back 0: duplicates); such places, each by what
    it counts for a mean query; and last, all places by what they count for a mean query

Later heads come first: what only a replaced query or key read is gone then. A pair of query and key whose query is on
average as good as itself goes into the score. Then what averages say of the answers becomes votes (see `votes`), and a
vote in which a word speaks for itself is written so where the decisions allow.

A role is a guess that replaces a part. It stays if the program still decides alike (see `simplify`); the means in it
are those of the pool, and nothing is fitted to answers.

Knows programs and the pool. Does not know models, circuits, right answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from openwork.explain.programs.passes import constant_of, fresh
from openwork.explain.programs.program import (
    Array,
    Attend,
    Average,
    Bend,
    Ids,
    Looks,
    Match,
    Op,
    Previous,
    Program,
    Step,
    Sum,
    Trace,
    Votes,
    reads,
)
from openwork.explain.programs.votes import copying

BACK = (1, 2, 3)  # places ago that a head may look at
POINTS = (1, 0, 2)  # see `Match.back`
SLACK = 0.2  # of what may be lost: how much worse than the best role, or than before, something simpler may be
FEW = 30  # exponents beyond it are no more told apart


class Searching(Protocol):
    """What a search offers (see `simplify`)."""

    program: Program
    trace: Trace
    floor: float

    def share_of(self, program: Program) -> float:
        """On what share of the pool another program decides as it must."""
        ...

    def accept_program(self, program: Program) -> bool:
        """Goes on from this program if it still decides as it must."""
        ...

    def fold(self) -> None:
        """Applies the exact rules."""
        ...


def heads(program: Program) -> list[tuple[Attend, tuple[str, ...]]]:
    """The ways in which steps attend, the last one in the program first, each with the names of those steps."""
    found: dict[Attend, list[str]] = {}
    for s in program.steps:
        op = s.op.how if isinstance(s.op, Votes) else s.op
        if isinstance(op, Attend):
            found.setdefault(replace(op, value=""), []).append(s.name)
    return [(how, tuple(names)) for how, names in reversed(found.items())]


def give_roles(search: Searching, at: Ids) -> None:
    """Every head the simplest role that the decisions allow, later heads first; heads without one lose pairs.

    at  [N], the positions asked in the search's pool
    """
    for last in (False, True):  # what a head reads may be simpler by then
        done: set[str] = set()
        while True:
            left = [(how, names) for how, names in heads(search.program) if not done.issuperset(names)]
            if not left:
                break
            how, names = left[0]
            done |= set(names)
            if not _take_role(search, list(_roles(search, how, names, at))) and last:
                _fewer_pairs(search, names[0], at)
            search.fold()


def _take_role(search: Searching, programs: Sequence[Program]) -> bool:
    """Takes the first of some programs that is hardly worse than the best of them; whether one is good enough."""
    shares = [search.share_of(p) for p in programs]
    least = max(search.floor, max(shares, default=0.0) - SLACK * (1.0 - search.floor))
    return any(search.accept_program(p) for p, share in zip(programs, shares, strict=True) if share >= least)


def _with(
    program: Program,
    names: Sequence[str],
    how: Looks,
    before: Sequence[Step] = (),
    firsts: Mapping[str, float] | None = None,
) -> Program:
    """The program in which these steps look back as `how` says, after some new steps.

    firsts  what each of them is at places that have none so far back; 0 by default
    """
    steps: list[Step] = []
    first = next(s.name for s in program.steps if s.name in names)
    for s in program.steps:
        if s.name == first:
            steps += before
        if s.name in names:
            assert isinstance(s.op, (Attend, Votes))
            new = replace(s.op, how=how) if isinstance(s.op, Votes) else replace(how, value=s.op.value)
            s = replace(s, op=new)
            if isinstance(s.op, Previous) and firsts:
                s = replace(s, op=replace(s.op, empty=firsts[s.name]))
        steps.append(s)
    return replace(program, steps=tuple(steps))


def _roles(search: Searching, how: Attend, names: Sequence[str], at: Ids) -> Iterator[Program]:
    """What a head might do, simplest first."""
    program = search.program
    simple: tuple[Looks, ...] = (
        *(Previous("", back) for back in (0, *BACK)), Average(""), *(Match("", back) for back in POINTS)
    )  # fmt: skip
    ops = program.by_name
    firsts = {}
    if not any(isinstance(ops[n], Votes) for n in names):
        firsts = {n: float(search.trace.series(reads(ops[n])[0])[:, 0].mean()) for n in names}  # the only choice there
    for role in simple:
        yield _with(program, names, role, firsts=firsts)
    if how.sink is not None:
        return
    scores = _Scores(search.trace, how, at)
    taken = set(program.by_name)
    score, weight = fresh(f"{names[0]}_score", taken), fresh(f"{names[0]}_weight", taken)
    terms = scores.by_key()
    about = next(s.about for s in program.steps if s.name == names[0])
    steps = (
        Step(score, Sum(terms), f"{about}: query times key, the query at its mean"),
        Step(weight, Bend(score, "exp"), f"{about}: how much a place counts"),
    )
    yield _with(program, names, Average("", weight), steps)
    for back in POINTS:
        others = scores.others(search.trace, back)
        yield _with(program, names, Match("", back, "", others))
        yield _with(program, names, Match("", back, weight, others), steps)


class _Scores:
    """Query times key of one head at the position asked, on the pool."""

    def __init__(self, trace: Trace, how: Attend, at: Ids) -> None:
        self.how, self.at = how, at
        self.query = [trace.end(q) for q in how.query]  # [N] each
        q = np.stack(self.query, -1) if how.query else np.zeros((len(at), 1))
        k = np.stack([trace.series(k) for k in how.key], -1) if how.key else np.zeros((*trace.x.shape, 1))
        z: Array = how.scale * (k @ q[:, :, None])[:, :, 0]  # [N, T]
        self.z = z + (trace.series(how.score) if how.score else 0.0)
        self.seen: NDArray[np.bool_] = np.arange(z.shape[1]) <= at[:, None]

    def by_key(self) -> tuple[tuple[str, float], ...]:
        """The score as a sum of what the place has, the query at its mean."""
        how = self.how
        terms = [(k, how.scale * float(q.mean())) for q, k in zip(self.query, how.key, strict=True)]
        return (*terms, *(((how.score, 1.0),) if how.score else ()))

    def others(self, trace: Trace, back: int) -> float:
        """What a place counts that the token does not point to, if one that it points to counts 1: by mean scores."""
        pointed = trace.shares(Match("", back), True)[:, 0] > 0
        inside, outside = self.z[self.seen & pointed], self.z[self.seen & ~pointed]
        if not len(inside) or not len(outside):
            return 0.0
        return math.exp(min(FEW, float(outside.mean() - inside.mean())))


def _fewer_pairs(search: Searching, name: str, at: Ids) -> None:
    """Pairs of query and key, the query at its mean, as parts of the score: as many as can go, the steadiest first."""
    op = search.program.by_name.get(name)
    if not isinstance(op, Attend) or not op.query:
        return
    how = replace(op, value="")
    names = next(n for h, n in heads(search.program) if h == how)
    pairs = zip(op.query, op.key, strict=True)
    spread = [float(np.std(search.trace.end(q)) * np.std(_keys(search.trace, k, at))) for q, k in pairs]
    order = np.argsort(spread, kind="stable").tolist()
    low, high, before = 0, len(order), search.program  # `low` of them can go, as far as is known
    while low < high:
        middle = (low + high + 1) // 2
        means = {how.query[i]: float(search.trace.end(how.query[i]).mean()) for i in order[:middle]}
        if search.accept_program(_without_pairs(before, means, how, names, order[:middle])):
            low = middle
        else:
            high = middle - 1


def settled(program: Program) -> Program:
    """The same program, heads without pairs of a query that is a number: such a pair is a part of the score."""
    for how, names in heads(program):
        gone = [i for i, q in enumerate(how.query) if constant_of(program.by_name[q]) is not None]
        if gone:
            means = {q: c for q in how.query if (c := constant_of(program.by_name[q])) is not None}
            program = _without_pairs(program, means, how, names, gone)
    return program


def _keys(trace: Trace, key: str, at: Ids) -> Array:
    return trace.series(key)[np.arange(trace.x.shape[1]) <= at[:, None]]


def _without_pairs(
    program: Program, means: Mapping[str, float], how: Attend, names: Sequence[str], gone: Sequence[int]
) -> Program:
    """The program whose head has some pairs less; what they are for the queries' means is in its score."""
    taken = set(program.by_name)
    score = fresh(f"{names[0]}_rest", taken)
    terms = [(how.key[i], how.scale * means[how.query[i]]) for i in sorted(gone)]
    terms += [(how.score, 1.0)] if how.score else []
    query, key = (tuple(n for i, n in enumerate(x) if i not in gone) for x in (how.query, how.key))
    step = Step(score, Sum(tuple(terms)), "query times key, of queries at their mean")
    if query or how.sink is not None:
        return _with(program, names, Attend("", query, key, score, how.scale, how.sink), (step,))
    weight = fresh(f"{names[0]}_weight", taken | {score})
    return _with(
        program, names, Average("", weight), (step, Step(weight, Bend(score, "exp"), "how much a place counts"))
    )


def vote_plainly(search: Searching, often: Array) -> None:
    """Votes that say nothing, or that say a word for itself alone; then no numbers but the votes, as far as can be.

    often  [V], how often each token occurs
    """
    ids = {a.index: k for k, a in enumerate(search.program.answers)}

    def accept(ops: dict[str, Op]) -> bool:
        least = search.share_of(search.program) - SLACK * (1.0 - search.floor)
        program = search.program.with_ops(ops)
        return search.share_of(program) >= least and search.accept_program(program)

    for name, op in list(search.program.by_name.items()):
        if isinstance(op, Votes) and op.rows:
            empty = replace(op, rows=(), default=())
            plain = (empty, copying(op, ids, often, False), copying(op, ids, often, True))
            any(accept({name: p}) for p in plain)
    answers = {a.step for a in search.program.answers if a.step}
    sums = {n: op for n, op in search.program.by_name.items() if n in answers and isinstance(op, Sum)}
    columns = dict.fromkeys(n for op in sums.values() for n, _ in op.terms)
    spread = {n: float(np.std(search.trace.end(n))) * _weight_of(sums, n) for n in columns}
    for name in sorted(columns, key=lambda n: (spread[n], n)):
        if not isinstance(search.program.by_name[name], Votes):
            accept({name: Sum((), float(search.trace.end(name).mean()))})
    search.fold()
    sums = {n: op for n, op in search.program.by_name.items() if n in answers and isinstance(op, Sum)}
    if sums:
        accept({n: replace(op, bias=0.0) for n, op in sums.items()})


def _weight_of(sums: Mapping[str, Sum], name: str) -> float:
    """How differently the answers take a step."""
    return float(np.std([dict(op.terms).get(name, 0.0) for op in sums.values()]))


__all__ = ["give_roles", "heads", "settled", "vote_plainly"]
