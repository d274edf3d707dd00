"""A program made short enough to read: what its decisions do not hang on is left out, and they are asked every time.

Nothing is fitted. A change replaces a part by what it is on average, lists fewer tokens (the others take the average of
those not listed), gives tokens of like numbers the same numbers, or writes a number with fewer digits. It stays if the
program still decides as the exact one does on at least a given share of the split it is given, and of texts made from
that split, of which the exact program says what the decision is (see `Pool`). So other words and longer texts than the
split has take part, and no other split is needed.

    norms    the factor of a norm becomes a constant
    places   a number per place becomes one for a few places and one for the rest, or one for all
    parts    a term, an average, a neuron becomes a constant; attention becomes something simpler
    tokens   tables list the tokens that matter, in groups of like numbers
    digits   numbers lose digits

Each stage may spend a part of the share that may be lost. Knows programs and inputs. Does not know models, circuits,
right answers, nor any split but the one it is given.

Shapes: N examples, T tokens, V tokens of the vocabulary, A answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openwork.explain.programs.passes import downstream, fold, fresh, margin, series
from openwork.explain.programs.program import (
    Array,
    Attend,
    Average,
    Bend,
    ByPosition,
    Grid,
    Ids,
    Looks,
    Lookup,
    Match,
    Norm,
    Op,
    Previous,
    Program,
    Step,
    Sum,
    Trace,
    Votes,
    decisions,
    listed,
)
from openwork.explain.programs.roles import give_roles, heads, settled, vote_plainly
from openwork.explain.programs.votes import common, with_votes

Log = Callable[[str, int, int], None]  # stage, done, of
VERSION = 2  # of what this file makes of a program
RENAMED, JOINED, CHANGED = 1.5, 1.0, 0.5  # texts made in each way per example of the split
OWN = 512  # examples of the split at most, where other answers compete in each
FAR = 2.0  # see `Pool`
TIE = 1e-4  # see `Judge.share`; in units of how far the exact logits go
RENAMES, RATE = 0.8, 0.15  # share of words that get another name, and of all tokens that are changed to any other
KEPT = (1, 2, 3, 5, 8, 12, 16, 24, 32, 48)  # places that keep numbers of their own
GROUPS = (2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64, 96)  # of tokens, the one that is not listed among them
ROUNDS = 20  # of moving tokens between groups
HALF = 0.5  # of what the tables may cost is for grouping, the rest for listing fewer tokens
PATIENCE = 12  # pairs of groups that are tried in vain before no more are joined
STAGES_OF_MANY = (
    ("roles", 0.6), ("norms", 0.65), ("votes", 0.7), ("places", 0.75), ("parts", 0.85), ("tokens", 0.9),
    ("rows", 0.97), ("digits", 1.0),
)  # fmt: skip
STAGES = (("norms", 0.1), ("places", 0.25), ("parts", 0.4), ("tokens", 0.92), ("digits", 1.0))


# -- the pool --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pool:
    """Inputs on which programs are compared.

    tokens  [N, T]; at [N] the position asked
    parts   how many there are of each kind, in this order: the split's own examples; renamed; joined or changed
    among   [N, A] which answers compete in an example; None where all do in each

    Of the split's own and of renamed ones the same share has to be decided alike; of the others, which are far from
    what the circuit was found on, FAR times as many may be decided otherwise.
    """

    tokens: Ids
    at: Ids
    parts: tuple[int, int, int]
    among: NDArray[np.bool_] | None = None

    @cached_property
    def weight(self) -> Array:
        """How much each example counts: all the same; [N], sums to 1."""
        return np.full(len(self.tokens), 1.0 / len(self.tokens))


@dataclass(frozen=True, eq=False)
class Among:
    """Which answers compete, where that differs from example to example.

    mask  [N, A], at least one in each example;  ids  [A], the token that each answer is
    """

    mask: NDArray[np.bool_]
    ids: Ids

    def in_text(self, text: Ids) -> NDArray[np.bool_]:
        """The answers that stand in a text: [A]."""
        return np.isin(self.ids, text)


def pool_of(tokens: Ids, at: Ids, kinds: Ids, places: int, seed: int = 0, among: Among | None = None) -> Pool:
    """The split's examples, and texts made from them; the same seed gives the same pool.

    renamed  some words of an example, wherever they stand in it, are other tokens of their kind
    joined   the beginning of one such text, and another behind it, up to `places` tokens
    changed  some tokens are any other token

    tokens  [N, T] right-padded; at [N] the position asked
    kinds   [V] a number for each token: words that can stand for one another have the same one; 0 for no word
    among   which answers compete; see `_pool_among`
    """
    if among is not None:
        return _pool_among(tokens, at, kinds, places, seed, among)
    rng = np.random.default_rng(seed)
    like = {int(k): np.flatnonzero(kinds == k) for k in np.unique(kinds) if k}

    def renamed(text: Ids) -> Ids:
        out = text.copy()
        for t in np.unique(text).tolist():
            if kinds[t] and rng.random() < RENAMES:
                out[text == t] = rng.choice(like[int(kinds[t])])
        return out

    def joined(a: Ids, b: Ids) -> Ids:
        text = np.concatenate([a[: rng.integers(1, len(a) + 1)], b[1:]])
        return np.concatenate([text[:1], text[1:][-(places - 1) :]])

    def changed(text: Ids) -> Ids:
        out, hit = text.copy(), rng.random(len(text)) < RATE
        hit[[0, -1]] = False  # what opens the text and what is asked at stay
        out[hit] = rng.integers(len(kinds), size=int(hit.sum()))
        return out

    rows = [tokens[i, : at[i] + 1] for i in range(len(tokens))]
    made = list(rows)
    made += [renamed(rows[i % len(rows)]) for i in range(int(RENAMED * len(rows)))]
    new = made[len(rows) :]
    for _ in range(int(JOINED * len(rows))):
        made.append(joined(new[rng.integers(len(new))], new[rng.integers(len(new))]))
    made += [changed(new[rng.integers(len(new))]) for _ in range(int(CHANGED * len(rows)))]
    return _padded(made, (len(rows), len(new), len(made) - len(rows) - len(new)), None)


def _padded(made: Sequence[Ids], parts: tuple[int, int, int], among: NDArray[np.bool_] | None) -> Pool:
    out = np.zeros((len(made), max(map(len, made))), dtype=np.int64)
    for i, text in enumerate(made):
        out[i, : len(text)] = text
    return Pool(out, np.array([len(text) - 1 for text in made], dtype=np.int64), parts, among)


def _pool_among(tokens: Ids, at: Ids, kinds: Ids, places: int, seed: int, among: Among) -> Pool:
    """The pool of a task in which other answers compete from example to example.

    The split's own examples, the first OWN of them, keep their candidates. Otherwise:

    renamed  words trade places with others of their kind, one for one, the example's candidates with them: what was the
             same word is the same word, and what were two are two; answers are a kind of their own
    joined   as in `pool_of`; the candidates of the text behind, and one answer that stands in the text
    changed  as in `pool_of`; the candidates of the text, and one answer that stands in it

    A text whose own candidates are told apart by their standing in it at all says little of how an answer is found;
    hence the one more.
    """
    rng = np.random.default_rng(seed)
    some = np.arange(min(len(tokens), OWN))
    tokens, at, among = tokens[some], at[some], Among(among.mask[some], among.ids)
    kinds = kinds.copy()
    kinds[among.ids] = kinds.max() + 1
    like = [np.flatnonzero(kinds == k) for k in np.unique(kinds).tolist() if k]
    place = {int(t): k for k, t in enumerate(among.ids)}
    texts = [tokens[i, : at[i] + 1] for i in range(len(tokens))]
    made, asked = list(texts), [among.mask[i] for i in range(len(texts))]

    def add(text: Ids, mask: NDArray[np.bool_]) -> None:
        here = np.flatnonzero(among.in_text(text))
        made.append(text)
        asked.append(mask.copy())
        if len(here):
            asked[-1][rng.choice(here)] = True

    for i in range(int(RENAMED * len(texts))):
        to = np.arange(len(kinds))
        for words in like:
            some = words[rng.random(len(words)) < RENAMES]
            to[some] = rng.permutation(some)
        mask = np.zeros(len(among.ids), dtype=bool)
        mask[[place[int(t)] for t in to[among.ids[among.mask[i % len(texts)]]]]] = True
        made.append(to[texts[i % len(texts)]])
        asked.append(mask)
    new, with_new = made[len(texts) :], asked[len(texts) :]
    for _ in range(int(JOINED * len(texts))):
        a, b = new[rng.integers(len(new))], int(rng.integers(len(new)))
        text = np.concatenate([a[: rng.integers(1, len(a) + 1)], new[b][1:]])
        add(np.concatenate([text[:1], text[1:][-(places - 1) :]]), with_new[b])
    for _ in range(int(CHANGED * len(texts))):
        i = int(rng.integers(len(new)))
        text, hit = new[i].copy(), rng.random(len(new[i])) < RATE
        hit[[0, -1]] = False
        text[hit] = rng.integers(len(kinds), size=int(hit.sum()))
        add(text, with_new[i])
    return _padded(made, (len(texts), len(new), len(made) - len(texts) - len(new)), np.stack(asked))


class Judge:
    """Compares programs with an exact one on a pool."""

    def __init__(self, exact: Program, pool: Pool) -> None:
        self.pool = pool
        self.trace = Trace(exact, pool.tokens, pool.at)
        self.truth = _spread(self.trace.logits(), pool.among)
        self.decided = decisions(self.truth, pool.among)

    def share(self, trace: Trace) -> float:
        """On what share of the pool the decision is the exact one: the least of its parts', by their measure.

        Of more than two answers, one that the exact program has within TIE of the best is as good as the best.
        """
        logits = trace.logits()
        if not np.isfinite(logits).all():
            return 0.0
        off = decisions(logits, self.pool.among) != self.decided
        if self.truth.shape[1] > 2:  # several words may speak alike for themselves: rounding decides nothing
            rows, chosen = np.arange(len(off)), decisions(logits, self.pool.among)
            off &= self.truth[rows, self.decided] - self.truth[rows, chosen] > TIE * float(np.abs(self.truth).mean())
        other = np.split(off, np.cumsum(self.pool.parts)[:-1])
        return 1.0 - max(float(x.mean()) / far for x, far in zip(other, (1.0, 1.0, FAR), strict=True) if len(x))

    def damage(self, trace: Trace) -> float:
        """How far the logits are off, on average, in units of how far those of the exact program go."""
        off = np.abs(_spread(trace.logits(), self.pool.among) - self.truth).max(1)
        return float(self.pool.weight @ off) / float(np.abs(self.truth).mean() + 1e-12)


def _spread(logits: Array, among: NDArray[np.bool_] | None) -> Array:
    """Logits less their mean over the answers that compete, 0 for those that do not: only differences count."""
    if among is None:
        return logits - logits.mean(1, keepdims=True)
    mean = np.where(among, logits, 0.0).sum(1, keepdims=True) / among.sum(1, keepdims=True)
    return np.where(among, logits - mean, 0.0)


# -- the search ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    """Something that could be left out: a term of a step (`of`), the bend or the weights of a step, or a step whole."""

    kind: str
    step: str
    of: str = ""


class _Search:
    """A program and what it has become so far."""

    def __init__(self, program: Program, judge: Judge) -> None:
        self.judge, self.floor = judge, 1.0
        self.take(program)

    def take(self, program: Program, trace: Trace | None = None) -> None:
        """Goes on from this program."""
        self.program = program
        self.trace = trace if trace is not None else Trace(program, self.judge.pool.tokens, self.judge.pool.at)
        self.everywhere = series(program)

    def traced(self, changes: Mapping[str, Op]) -> Trace:
        """The trace with some operations replaced."""
        return self.trace.after(self.program.with_ops(changes), downstream(self.program, set(changes)))

    def accept(self, changes: Mapping[str, Op]) -> bool:
        """Makes a change if the program still decides as it must."""
        trace = self.traced(changes)
        if self.judge.share(trace) < self.floor:
            return False
        self.take(trace.program, trace)
        return True

    def accept_program(self, program: Program, always: bool = False) -> bool:
        """Goes on from this program if it still decides as it must, or in any case."""
        old = self.program.by_name
        changed = {n for n, op in program.by_name.items() if old.get(n) != op}
        trace = self.trace.after(program, downstream(program, changed))
        if not always and self.judge.share(trace) < self.floor:
            return False
        self.take(program, trace)
        return True

    def share_of(self, program: Program) -> float:
        """On what share of the pool another program decides as the exact one."""
        old = self.program.by_name
        changed = {n for n, op in program.by_name.items() if old.get(n) != op}
        return self.judge.share(self.trace.after(program, downstream(program, changed)))

    def fold(self) -> None:
        """Applies the exact rules; some steps go, some get other names."""
        self.take(fold(self.program))

    def mean(self, name: str, everywhere: bool, square: bool = False) -> float:
        """A step's mean (or that of its square): over all places, or at the position asked."""
        pool, power = self.judge.pool, 2 if square else 1
        if not everywhere:
            return float(pool.weight @ self.trace.end(name) ** power)
        seen = (np.arange(pool.tokens.shape[1]) <= pool.at[:, None]) * pool.weight[:, None]
        return float((self.trace.series(name) ** power * seen).sum() / seen.sum())

    def cut(self, c: _Cut) -> dict[str, Op] | None:
        """The operation that a cut leaves; None where there is nothing to cut any more."""
        op, everywhere = self.program.by_name[c.step], c.step in self.everywhere
        match op:
            case _ if c.kind == "step":
                return {c.step: Sum((), self.mean(c.step, everywhere))}
            case Sum(terms, bias) if c.kind == "term" and c.of in dict(terms):
                left = tuple(t for t in terms if t[0] != c.of)
                return {c.step: Sum(left, bias + dict(terms)[c.of] * self.mean(c.of, everywhere))}
            case Norm(of, _, width, eps) if c.kind == "term" and c.of in of:
                left = tuple(n for n in of if n != c.of)
                return {c.step: replace(op, of=left, eps=eps + self.mean(c.of, everywhere, True) / width)}
            case Bend(of, curve) if c.kind == "bend" and curve in ("gelu", "gelu_tanh", "relu"):
                return {c.step: Sum(((of, 1.0),))}
            case Average(value, weight) if c.kind == "weight" and weight:
                return {c.step: Average(value)}
        return None

    def cuts(self) -> list[_Cut]:
        """All that could be left out now."""
        out = []
        for s in self.program.steps:
            match s.op:
                case Sum(terms) if len(terms) > 1:
                    out += [_Cut("term", s.name, n) for n, _ in terms]
                case Norm(of):
                    out += [_Cut("term", s.name, n) for n in of]
                    out.append(_Cut("step", s.name))
                case Bend(_, curve) if curve != "exp":
                    out.append(_Cut("bend", s.name))
                case Average(weight=weight) if weight:
                    out.append(_Cut("weight", s.name))
        return out

    def by_damage(self, cuts: Sequence[_Cut]) -> list[_Cut]:
        """Cuts in order of the harm that each alone does; of equal harm in the order given."""
        changes = [self.cut(c) for c in cuts]
        cost = [math.inf if c is None else self.judge.damage(self.traced(c)) for c in changes]
        return [cuts[i] for i in np.argsort(np.array(cost), kind="stable").tolist() if math.isfinite(cost[i])]

    def leave_out(self, cuts: Sequence[_Cut]) -> int:
        """Makes those cuts that the decisions do not hang on, the most harmless first; how many were made."""
        made = 0
        for c in self.by_damage(cuts):
            change = self.cut(c)
            made += change is not None and self.accept(change)
        return made


def simplified(exact: Program, pool: Pool, floor: float, log: Log | None = None) -> Program:
    """A short program that decides as `exact` does on at least a share `floor` of the pool.

    log  is told the stage, and how much of how much of it is done
    """
    if len(exact.answers) > 2:
        return _simplified_votes(exact, pool, floor, log)
    search = _Search(fold(margin(exact)), Judge(exact, pool))
    stages = {"norms": _norms, "places": _places, "parts": _parts, "tokens": list_tokens, "digits": round_numbers}
    for k, (name, part) in enumerate(STAGES):
        search.floor = 1.0 - (1.0 - floor) * part
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # such programs are refused
            stages[name](search)
            search.fold()
        if log is not None:
            log(name, k + 1, len(STAGES))
    return search.program


def _simplified_votes(exact: Program, pool: Pool, floor: float, log: Log | None) -> Program:
    """`simplified` of a task of more than two answers: heads get roles, and answers the votes of places.

    If every head can have a role when roles may cost all that may be lost, that is the program; it is short, and what
    is left of it can be simplified for nothing or not at all. If not, every stage has its part.
    """
    exact = common(fold(exact))
    vocab = 1 + max(int(pool.tokens.max()), *(i for op in exact.by_name.values() for i in listed(op)), 0)
    judge = Judge(exact, pool)
    often = np.bincount(_where(pool, True)[1], minlength=vocab).astype(np.float64)

    def votes(search: _Search) -> None:
        first = int(pool.at.min())
        search.accept_program(fold(with_votes(search.program, vocab, first)), always=True)
        vote_plainly(search, often)

    stages: dict[str, Callable[[_Search], None]] = {
        "roles": lambda s: give_roles(s, pool.at), "norms": _norms, "votes": votes, "places": _places,
        "parts": _parts, "tokens": list_tokens, "rows": list_rows, "digits": round_numbers,
    }  # fmt: skip
    search = _Search(exact, judge)
    for generous in (True, False):
        search = _Search(exact, judge)
        for k, (name, part) in enumerate(STAGES_OF_MANY):
            search.floor = 1.0 - (1.0 - floor) * (1.0 if generous else part)
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                stages[name](search)
                search.fold()
                search.accept_program(fold(settled(search.program)), always=True)
            if generous and heads(search.program):
                break
            if log is not None:
                log(name, k + 1, len(STAGES_OF_MANY))
        else:
            break
    return search.program


def _norms(search: _Search) -> None:
    """Norms by constants; token times place in what a norm divides by as a sum of the two, in any case."""
    for n, op in list(search.program.by_name.items()):
        if isinstance(op, Grid):
            search.accept_program(_separate(search, n, op), always=True)
    search.fold()
    search.leave_out([_Cut("step", n) for n, op in search.program.by_name.items() if isinstance(op, Norm)])


def _separate(search: _Search, name: str, op: Grid) -> Program:
    """The program with a grid as a number per place plus one per token: its means, by how often each occurs."""
    pool, grid = search.judge.pool, op.matrix[:-1]
    often = np.full(grid.shape, 1e-9)
    np.add.at(often, _where(pool, name in search.everywhere)[1:], 1.0)
    by_place = (often * grid).sum(0) / often.sum(0)
    by_token = (often * (grid - by_place)).sum(1) / often.sum(1)
    taken = set(search.program.by_name)
    a, b = fresh(f"{name}_token", taken), fresh(f"{name}_place", taken)
    steps: list[Step] = []
    for s in search.program.steps:
        if s.name == name:
            steps.append(Step(a, Lookup(tuple(enumerate(by_token.tolist()))), s.about))
            steps.append(Step(b, ByPosition(tuple(by_place.tolist())), s.about))
            s = replace(s, op=Sum(((a, 1.0), (b, 1.0))))
        steps.append(s)
    return replace(search.program, steps=tuple(steps))


def _where(pool: Pool, everywhere: bool) -> tuple[Ids, Ids, Ids]:
    """Examples, tokens and places: of all places up to the one asked, or of that alone."""
    places = np.arange(pool.tokens.shape[1])
    examples, at = np.nonzero(places <= pool.at[:, None] if everywhere else places == pool.at[:, None])
    return examples, pool.tokens[examples, at], at


def _places(search: _Search) -> None:
    """Numbers by place become one number, or a few and one for all other places."""
    pool = search.judge.pool
    width = pool.tokens.shape[1]
    at_end: Array = np.bincount(pool.at, pool.weight, width).astype(np.float64)
    anywhere = np.array([pool.weight[pool.at >= p].sum() for p in range(width)])
    tables = [_Cut("step", n) for n, op in search.program.by_name.items() if isinstance(op, ByPosition)]
    for c in search.by_damage(tables):
        change = search.cut(c)
        if change is not None and search.accept(change):
            continue
        op, often = search.program.by_name[c.step], anywhere if c.step in search.everywhere else at_end
        assert isinstance(op, ByPosition)
        for k in KEPT:
            if k < len(op.values) and search.accept({c.step: shortened(op, k, often)}):
                break


def shortened(op: ByPosition, k: int, often: Array) -> ByPosition:
    """The k places that are farthest off as they are; the rest have one number, their mean by how often each occurs.

    often  [T]; places beyond it do not occur
    """
    values = np.array(op.values)
    weight = np.zeros(len(values))
    weight[: len(often)] = often[: len(values)]
    kept = np.zeros(len(values), dtype=bool)

    def rest() -> float:
        left = np.where(kept, 0.0, weight)
        return float(left @ values / left.sum()) if left.sum() else float(values[~kept].mean())

    for _ in range(k):  # what is far off depends on what the rest's mean is
        kept[int(np.argmax(np.where(kept, -1.0, weight * (values - rest()) ** 2)))] = True
    last = int(np.flatnonzero(kept)[-1])
    return ByPosition((*np.where(kept, values, rest())[: last + 1].tolist(), rest()))


def _parts(search: _Search) -> None:
    """Attention by something simpler; then terms, bends and weights, as long as any can go."""
    for name, op in list(search.program.by_name.items()):
        if isinstance(op, Attend):
            any(search.accept_program(p) for p in _simpler_attention(search, name, op))
    search.fold()
    while search.leave_out(search.cuts()):
        search.fold()


def _simpler_attention(search: _Search, name: str, op: Attend) -> Iterator[Program]:
    """What a head might be, simplest first: the value some places ago, an average of all, one with fixed weights."""
    for simpler in (*(Previous(op.value, back) for back in (1, 2, 3)), Average(op.value)):
        yield search.program.with_ops({name: simpler})
    if op.sink is None:  # always the mean query: then what a place counts is its own
        everywhere = name in search.everywhere
        terms = [(k, op.scale * search.mean(q, everywhere)) for q, k in zip(op.query, op.key, strict=True)]
        terms += [(op.score, 1.0)] if op.score else []
        steps: list[Step] = []
        taken = set(search.program.by_name)
        score, weight = fresh(f"{name}_score", taken), fresh(f"{name}_weight", taken)
        for s in search.program.steps:
            if s.name == name:
                steps.append(Step(score, Sum(tuple(terms)), f"{s.about}: query times key, the query at its mean"))
                steps.append(Step(weight, Bend(score, "exp"), f"{s.about}: how much a place counts"))
                s = replace(s, op=Average(op.value, weight))
            steps.append(s)
        yield replace(search.program, steps=tuple(steps))


# -- tables of tokens ------------------------------------------------------------------------------------------------


def list_tokens(search: _Search) -> None:
    """Tables list the tokens that matter; the others share the mean of those not listed."""
    floor = search.floor
    for everywhere in (False, True):
        search.floor = floor if everywhere else floor + HALF * max(0.0, search.judge.share(search.trace) - floor)
        names = [n for n, op in search.program.by_name.items() if isinstance(op, Lookup)]
        names = [n for n in names if (n in search.everywhere) == everywhere]
        search.leave_out([_Cut("step", n) for n in names if n not in _alone(search.program)])
        names = [n for n in names if n in search.program.by_name and isinstance(search.program.by_name[n], Lookup)]
        if names:
            _Tables(search, names, everywhere).shorten()


def _alone(program: Program) -> set[str]:
    """Tables that are what an average averages: as constants they would be its end."""
    return {op.value for op in program.by_name.values() if isinstance(op, Average)}


def _only(groups: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[list[int]]:
    """The groups with these tokens alone; empty ones go."""
    kept = set(tokens)
    return [g for g in ([t for t in g if t in kept] for g in groups) if g]


class _Tables:
    """Some tables that list the same tokens, row by row: which tokens are listed, and which share a row."""

    def __init__(self, search: _Search, names: Sequence[str], everywhere: bool) -> None:
        self.search, self.names = search, names
        pool = search.judge.pool
        ops = [op for n in names if isinstance(op := search.program.by_name[n], Lookup)]
        self.vocab = 1 + max(int(pool.tokens.max()), *(i for op in ops for i, _ in op.table))
        self.rows = np.stack([op.of(np.arange(self.vocab)) for op in ops], 1)  # [V, tables]
        examples, tokens, _ = _where(pool, everywhere)
        self.often = np.bincount(tokens, pool.weight[examples], self.vocab) + 1e-9
        self.holding: dict[int, list[int]] = {}  # token -> examples that hold it where these tables are read
        for i, t in sorted(set(zip(examples.tolist(), tokens.tolist(), strict=True))):
            self.holding.setdefault(t, []).append(i)

    def ops(self, groups: Sequence[Sequence[int]]) -> dict[str, Op]:
        """The tables that list these groups of tokens, each group with its mean row."""
        rest = np.ones(self.vocab, dtype=bool)
        rows: dict[int, Array] = {}
        for g in groups:
            index = np.array(g)
            rest[index] = False
            mean: Array = self.often[index] @ self.rows[index] / self.often[index].sum()
            rows.update({i: mean for i in g})
        default = (self.often * rest) @ self.rows / (self.often * rest).sum() if rest.any() else self.rows.mean(0)
        return {
            n: Lookup(tuple((i, float(rows[i][k])) for i in sorted(rows)), float(default[k]))
            for k, n in enumerate(self.names)
        }

    def scaled(self) -> Array:
        """The rows with each column as wide as the decisions hang on it: [V, tables]."""
        search = self.search
        mean = self.often @ self.rows / self.often.sum()
        wide = np.sqrt(np.maximum(self.often @ (self.rows - mean) ** 2 / self.often.sum(), 1e-12))
        off = [search.judge.damage(search.traced({n: Sum((), float(mean[k]))})) for k, n in enumerate(self.names)]
        return self.rows / wide * (np.array(off) + 1e-6)

    def groups_of(self, k: int, rows: Array) -> list[list[int]]:
        """All tokens in k groups of like rows (Lloyd 1982, weighted by how often tokens occur), the largest one first.

        It begins with the mean and, one after another, the row that is farthest off by weight: no chance is in it.
        """
        centres = [self.often @ rows / self.often.sum()]
        nearest = np.full(self.vocab, np.inf)
        for _ in range(k - 1):
            nearest = np.minimum(nearest, ((rows - centres[-1]) ** 2).sum(1))
            centres.append(rows[int((nearest * self.often).argmax())])
        middle, label = np.stack(centres), np.zeros(self.vocab, dtype=np.int64)
        for _ in range(ROUNDS):
            label = ((rows[:, None] - middle) ** 2).sum(-1).argmin(1)
            for j in range(k):
                if (label == j).any():
                    middle[j] = self.often[label == j] @ rows[label == j] / self.often[label == j].sum()
        found = [np.flatnonzero(label == j).tolist() for j in range(k) if (label == j).any()]
        return sorted(found, key=lambda g: (-len(g), g[0]))

    def influence(self, groups: Sequence[Sequence[int]]) -> list[int]:
        """Listed tokens that occur, those whose row the decisions hang on most first."""
        search, pool = self.search, self.search.judge.pool
        ops = {n: op for n in self.names if isinstance(op := search.program.by_name[n], Lookup)}
        truth = _spread(search.trace.logits(), pool.among)
        room = np.abs(truth).max(1) + 1e-9
        score: dict[int, float] = {}
        for t in (t for g in groups for t in g if t in self.holding):
            changed = {n: Lookup(tuple(x for x in op.table if x[0] != t), op.default) for n, op in ops.items()}
            held = np.array(self.holding[t])
            off = Trace(search.program.with_ops(changed), pool.tokens[held], pool.at[held]).logits()
            some = None if pool.among is None else pool.among[held]
            moved = np.abs(_spread(off, some) - truth[held]).max(1) / room[held]
            score[t] = float(pool.weight[held] @ np.minimum(moved, 1.0))
        return sorted(score, key=lambda t: (-score[t], t))

    def shorten(self) -> None:
        """Few groups of like tokens, the largest one unlisted; then as few tokens in them as the decisions allow."""
        search, rows = self.search, self.scaled()
        floor, share = search.floor, search.judge.share(search.trace)
        search.floor = max(floor, floor + HALF * (share - floor))
        groups: list[list[int]] = []
        for k in GROUPS:
            groups = self.groups_of(k, rows)[1:]
            if search.accept(self.ops(groups)):
                break
        else:
            groups = [[t] for t in range(self.vocab)]
        search.floor = floor
        search.accept(self.ops(groups))
        ranked = self.influence(groups)
        low, high = 0, len(ranked)  # with `high` of them the decisions are right, as far as is known
        while low < high:
            middle = (low + high) // 2
            share = search.judge.share(search.traced(self.ops(_only(groups, ranked[:middle]))))
            low, high = (low, middle) if share >= search.floor else (middle + 1, high)
        left = _only(groups, ranked[:high])
        groups = left if search.accept(self.ops(left)) else groups
        self.merge(groups)

    def merge(self, groups: list[list[int]]) -> None:
        """Joins groups of like rows, the likest first, as long as the decisions allow."""
        search, forbidden = self.search, set[tuple[int, int]]()
        spread = np.sqrt(
            np.maximum(np.average((self.rows - self.rows.mean(0)) ** 2, axis=0, weights=self.often), 1e-12)
        )
        failed = 0
        while len(groups) > 1 and failed < PATIENCE:
            means = np.stack([self.often[g] @ self.rows[g] / self.often[g].sum() for g in groups]) / spread
            mass = np.array([self.often[g].sum() for g in groups])
            far = ((means[:, None] - means) ** 2).sum(-1) * mass[:, None] * mass / (mass[:, None] + mass)
            pairs = [
                (float(far[i, j]), i, j)
                for i in range(len(groups))
                for j in range(i)
                if (min(groups[i]), min(groups[j])) not in forbidden
            ]
            if not pairs:
                return
            _, i, j = min(pairs)
            joined = [g for k, g in enumerate(groups) if k not in (i, j)] + [sorted(groups[i] + groups[j])]
            if search.accept(self.ops(joined)):
                groups, failed = joined, 0
            else:
                forbidden |= {(min(groups[i]), min(groups[j])), (min(groups[j]), min(groups[i]))}
                failed += 1


def list_rows(search: _Search) -> None:
    """Votes list the tokens whose rows matter, in groups of like rows; the others share the mean of the rest."""
    for name, op in list(search.program.by_name.items()):
        if isinstance(op, Votes) and op.rows:
            _Rows(search, name, op).shorten()


class _Rows(_Tables):
    """The rows of one vote, as `_Tables` has those of several tables."""

    def __init__(self, search: _Search, name: str, op: Votes) -> None:
        self.search, self.names, self.op = search, [name], op
        pool = search.judge.pool
        self.vocab = 1 + max(int(pool.tokens.max()), op.rows[-1][0])
        self.rows = op.matrix[np.minimum(np.arange(self.vocab), len(op.matrix) - 1)]
        share = search.trace.shares(op.how, True)[:, 0] * pool.weight[:, None]
        self.often = np.bincount(pool.tokens.ravel(), share.ravel(), self.vocab) + 1e-9
        self.holding: dict[int, list[int]] = {}
        examples, places = np.nonzero(share > 0)
        for i, t in sorted(set(zip(examples.tolist(), pool.tokens[examples, places].tolist(), strict=True))):
            self.holding.setdefault(t, []).append(i)

    def ops(self, groups: Sequence[Sequence[int]]) -> dict[str, Op]:
        """The vote that lists these groups of tokens, each group with its mean row."""
        rest = np.ones(self.vocab, dtype=bool)
        rows: list[tuple[int, tuple[float, ...]]] = []
        for g in groups:
            index = np.array(g)
            rest[index] = False
            mean = tuple((self.often[index] @ self.rows[index] / self.often[index].sum()).tolist())
            rows += [(i, mean) for i in g]
        default = (self.often * rest) @ self.rows / (self.often * rest).sum() if rest.any() else self.rows.mean(0)
        return {self.names[0]: replace(self.op, rows=tuple(sorted(rows)), default=tuple(default.tolist()))}

    def scaled(self) -> Array:
        """The rows as they are: all of their numbers are of one kind."""
        return self.rows

    def influence(self, groups: Sequence[Sequence[int]]) -> list[int]:
        """Listed tokens that occur, those whose row moves the logits most first."""
        op = self.search.program.by_name[self.names[0]]
        assert isinstance(op, Votes)
        move = {t: float(np.abs(op.matrix[t] - op.default).max()) * self.often[t] for g in groups for t in g}
        return sorted((t for t in move if t in self.holding), key=lambda t: (-move[t], t))


# -- digits ----------------------------------------------------------------------------------------------------------


def round_numbers(search: _Search) -> None:
    """As few digits as the decisions allow: first all numbers alike, then step by step."""
    for digits in range(3, 8):
        if search.accept({n: rounded(op, digits) for n, op in search.program.by_name.items()}):
            break
    for digits in (1, 2):
        for n in search.program.by_name:
            search.accept({n: rounded(search.program.by_name[n], digits)})


def rounded(op: Op, digits: int) -> Op:
    """The operation with its numbers to so many significant digits; those of a table to one place after the point.

    Of a table the largest difference between two numbers has that many digits.
    """

    def short(x: float) -> float:
        return float(f"{x:.{digits}g}")

    def alike(values: Sequence[float]) -> list[float]:
        wide = max(values) - min(values) or max(map(abs, values)) or 1.0
        places = digits - 1 - math.floor(math.log10(wide))
        return [round(x, places) + 0.0 for x in values]

    match op:
        case Lookup(table, default):
            numbers = alike([x for _, x in table] + [default])
            return Lookup(tuple((i, x) for (i, _), x in zip(table, numbers, strict=False)), numbers[-1])
        case ByPosition(values):
            numbers = alike(values)  # later places have the commonest number, so that few are written down
            return ByPosition((*numbers[:-1], max(sorted(set(numbers)), key=numbers.count)))
        case Sum(terms, bias):
            return Sum(tuple((n, short(c)) for n, c in terms), short(bias))
        case Norm(eps=eps):
            return replace(op, eps=short(eps))
        case Attend(scale=scale, sink=sink):
            return replace(op, scale=short(scale), sink=None if sink is None else short(sink))
        case Average(nothing=nothing):
            return replace(op, nothing=short(nothing))
        case Match(others=others):
            return replace(op, others=short(others))
        case Votes(how, copy, rows, default):
            looks = rounded(how, digits)
            assert isinstance(looks, Looks)
            flat = alike([*(x for _, row in rows for x in row), *default]) if default else []
            cut = [tuple(flat[i : i + len(default)]) for i in range(0, len(flat), max(1, len(default)))]
            listed_rows = tuple((i, row) for (i, _), row in zip(rows, cut, strict=False))
            return Votes(looks, short(copy), listed_rows, cut[-1] if cut else ())
    return op
