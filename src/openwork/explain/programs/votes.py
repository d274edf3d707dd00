"""What attention says of all answers at once, as votes of places: exact rewritings of a program with many answers.

    common   a positive factor that all logits share decides nothing, and goes
    votes    what averages of tables of tokens add to the logits is one `Votes` per way of looking: each place that is
             looked at adds a row of numbers, the row of the token that stands there
    copying  a vote whose rows say no more than that a word speaks for itself

`common` and `with_votes` change no decision; `copying` is a guess that someone has to test (see `roles`).

Knows programs alone. Does not know data, models or circuits.

Shapes: V tokens of the vocabulary, A answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from openwork.explain.programs.passes import dead, fresh
from openwork.explain.programs.program import (
    Array,
    Attend,
    Average,
    Looks,
    Lookup,
    Match,
    Norm,
    Previous,
    Product,
    Program,
    Step,
    Sum,
    Votes,
)

HERE = Previous("", 0)  # of what the last token says


def common(program: Program) -> Program:
    """The program without a norm's factor that multiplies all logits alike; else unchanged."""
    ops = program.by_name
    factors: set[str] = set()
    inner: list[str] = []
    for a in program.answers:
        op = ops.get(a.step)
        if not isinstance(op, Product):
            return program
        norms = [(x, y) for x, y in ((op.a, op.b), (op.b, op.a)) if isinstance(ops[y], Norm)]
        if not norms:
            return program
        inner.append(norms[0][0])
        factors.add(norms[0][1])
    if len(factors) != 1:
        return program
    answers = tuple(replace(a, step=n) for a, n in zip(program.answers, inner, strict=True))
    return dead(replace(program, answers=answers))


@dataclass
class _Linear:
    """Logits as a sum: coefficients on steps, rows of tokens by way of looking, and numbers; each is [A] or [V, A]."""

    a: int
    terms: dict[str, Array] = field(default_factory=dict)
    rows: dict[Looks, list[tuple[Lookup, Array]]] = field(default_factory=dict)
    mixed: dict[Looks, dict[str, Array]] = field(default_factory=dict)
    bias: Array = field(default_factory=lambda: np.zeros(1))

    def add(self, to: dict[str, Array], name: str, c: Array) -> None:
        to[name] = to.get(name, np.zeros(self.a)) + c


def with_votes(program: Program, vocab: int, first: int = 0) -> Program:
    """The same program, its answers' logits sums of votes and of steps that are no table of tokens.

    vocab  how many tokens there are
    first  the earliest place that is ever asked: what a step is where a text does not go back far enough for it is
           left out if no text is that short

    Averages that only the logits read are split: what of them is a table of tokens becomes votes. Whatever is not read
    so stays a step.
    """
    n = len(program.answers)
    out = _Linear(n)
    for k, answer in enumerate(program.answers):
        if answer.step:
            _collect(program, answer.step, np.eye(n)[k], out, first)
    steps, taken = list(program.steps), set(program.by_name)
    terms = dict(out.terms)
    for how, values in out.mixed.items():
        for name, c in values.items():
            made = fresh(f"{name}_seen", taken)
            taken.add(made)
            steps.append(Step(made, replace(how, value=name), f"{name}, averaged"))
            terms[made] = c
    for k, (how, tables) in enumerate(out.rows.items()):
        made = fresh(f"votes_{k}", taken)
        taken.add(made)
        rows = sum((np.outer(t.of(np.arange(vocab)), c) for t, c in tables), np.zeros((vocab, n)))
        listed = tuple((i, tuple(row)) for i, row in enumerate(rows.tolist()))
        steps.append(
            Step(made, Votes(how, 0.0, listed, tuple(rows.mean(0).tolist())), "what places say of the answers")
        )
    bias = np.broadcast_to(out.bias, n)
    answers = []
    for k, a in enumerate(program.answers):
        mine = tuple((name, float(c[k])) for name, c in terms.items() if c[k])
        made = ""
        if mine or bias[k]:
            made = fresh(f"logit_{k}_sum", taken)
            taken.add(made)
            steps.append(Step(made, Sum(mine, float(bias[k])), f"the logit of {a.text!r}"))
        answers.append(replace(a, step=made))
    return dead(replace(program, steps=tuple(steps), answers=tuple(answers)))


def _collect(program: Program, name: str, c: Array, out: _Linear, first: int) -> None:
    """Adds c [A] times a step to the logits."""
    match program.by_name[name]:
        case Sum(terms, bias):
            out.bias = out.bias + c * bias
            for n, x in terms:
                _collect(program, n, c * x, out, first)
        case Lookup() as table:
            out.rows.setdefault(HERE, []).append((table, c))
        case (Attend() | Average() | Match() | Previous(empty=0.0)) as op:
            _collect_mixed(program, op, op.value, c, out)
        case Previous(value, back) as op if back <= first:
            _collect_mixed(program, replace(op, empty=0.0), value, c, out)
        case _:
            out.add(out.terms, name, c)


def _collect_mixed(program: Program, how: Looks, value: str, c: Array, out: _Linear) -> None:
    """Adds c [A] times an average of a step to the logits."""
    plain = replace(how, value="")
    match program.by_name[value]:
        case Sum(terms, 0.0):
            for n, x in terms:
                _collect_mixed(program, how, n, c * x, out)
        case Sum(terms, bias) if _whole(plain):
            out.bias = out.bias + c * bias
            for n, x in terms:
                _collect_mixed(program, how, n, c * x, out)
        case Lookup() as table:
            out.rows.setdefault(plain, []).append((table, c))
        case _:
            out.add(out.mixed.setdefault(plain, {}), value, c)


def _whole(how: Looks) -> bool:
    """Whether the weights of places sum to 1 wherever one is asked."""
    match how:
        case Attend(sink=None) | Average("", "", 0.0) | Match("", _, ""):
            return True
    return False


def copying(votes: Votes, ids: Mapping[int, int], often: Array, rest: bool) -> Votes:
    """A vote in which a word speaks for itself: the mean of what it gives itself beyond what it gives others.

    ids    token -> the place of the answer that it is
    often  [V], how often each token occurs
    rest   whether every token also gives each answer something, the same whatever the token: its mean
    """
    m = votes.matrix
    tokens = np.array(sorted(ids))
    rows = m[np.minimum(tokens, len(m) - 1)]
    own = rows[np.arange(len(tokens)), [ids[int(t)] for t in tokens]]
    others = (rows.sum(1) - own) / max(1, rows.shape[1] - 1)
    weight = often[tokens] + 1e-12
    gain = float(weight @ (own - others) / weight.sum())
    default: tuple[float, ...] = ()
    if rest:
        all_rows = m[np.minimum(np.arange(len(often)), len(m) - 1)]
        default = tuple((often @ all_rows / often.sum()).tolist())
    return replace(votes, copy=votes.copy + gain, rows=(), default=default)


__all__ = ["HERE", "common", "copying", "with_votes"]
