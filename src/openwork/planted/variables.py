"""What every node of a planted circuit truly computes: a named variable that can be worked out from an example alone.

    boolean    an input, a gate over inputs, or the sum in excess of a threshold, from the formula's own rows
    cnn        whether a pattern of pixels is anywhere, and gates over two patterns
    rasp       values of the program's expressions, from its interpreter; none (nan) where the program has none
    attention  what the hand-set head looks at, by arithmetic on positions

A node sends its variable up to an affine map, and the tests hold it to that; `relation` says of what form the variable
is. Knows the families and their examples. Does not know weights, activations or explanations.

Shapes: N examples, T positions; values are float [N, T] of sequences, [N] of vectors and images, nan where there are
none and at positions after the one that is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from openwork.errors import RunError, UsageError
from openwork.planted import attention, boolean, patterns, programs
from openwork.planted.case import Case
from openwork.planted.compiler import Carried, Expression
from openwork.planted.rasp import (
    UNCLEAR,
    Average,
    Curve,
    Fetch,
    Indicator,
    Positions,
    Same,
    Sharp,
    Tokens,
    run,
)
from openwork.tasks.task import Split

ONE_HOT, LINEAR, THRESHOLD, CONSTANT = "one-hot", "linear", "threshold", "constant"
Node = tuple[str, int]
Values = Callable[[Split], np.ndarray]


@dataclass(frozen=True, eq=False)
class Variable:
    """What one node computes.

    name      in words, by the names of the family
    relation  ONE_HOT: one of two values; LINEAR: a number; THRESHOLD: a number, cut off at zero; CONSTANT: always the
              same
    values    split -> the variable on its examples
    """

    name: str
    relation: str
    values: Values


def variables(case: Case, base: str, seed: int = 0) -> dict[Node, Variable]:
    """(site, index) -> variable, of every node of the true circuit.

    base  the planted network that the case is, or that stands in it beside others (a key of BASES)
    seed  the one the case was made with

    UsageError where there is no such network, RunError where the circuit has a node that no variable is known of: heads
    and MLPs as nodes have none.
    """
    for known, of in (
        (boolean.FORMULAS.keys() | {"constant_zero", "constant_mean"}, _boolean),
        (patterns.SCENES.keys(), _scene),
        (attention.HEADS.keys(), _heads),
        (programs.PROGRAMS.keys(), _program),
    ):
        if base in known:
            here = of(base, seed)
            break
    else:
        raise UsageError(f'there is no planted network "{base}" whose variables are known.')
    out = {_moved(case, node): v for node, v in here.items()}
    true = [
        (s.name, i) for s in case.truth.graph.prunable for i in case.truth.nodes[s.name].nonzero().flatten().tolist()
    ]
    missing = [n for n in true if n not in out]
    if missing:
        raise RunError(f"case {case.name}: no variable is known of {missing[0][0]}:{missing[0][1]}.")
    return {n: out[n] for n in true}


def words(base: str) -> tuple[str, ...]:
    """What the token ids of a planted transformer stand for; none where examples are vectors."""
    if base in programs.PROGRAMS:
        return programs.PROGRAMS[base]().words
    return attention.HEADS[base]().words if base in attention.HEADS else ()


def _moved(case: Case, node: Node) -> Node:
    site, i = node
    return (site, int(case.moved[site][i])) if site in case.moved else node


# -- perceptrons -----------------------------------------------------------------------------------------------------


def _boolean(name: str, seed: int) -> dict[Node, Variable]:
    constant = name.startswith("constant")
    formula = boolean.all_of(3) if constant else boolean.FORMULAS[name]()
    places = boolean.places_of(formula, seed)
    out = {
        ("input", p): Variable(f"x{p}", ONE_HOT, partial(_gate, rows=(), place=i, places=places))
        for i, p in enumerate(places)
    }
    below = [f"x{p}" for p in places]
    for depth, rows in enumerate(formula.layers):
        names = [_gate_name(row, below) for row in rows]
        for j, text in enumerate(names):
            values = partial(_gate, rows=formula.layers[: depth + 1], place=j, places=places)
            out[f"hidden{depth}", j] = Variable(text, _relation(values, len(places)), values)
        below = [f"[{n}]" for n in names]
    if constant:
        out["hidden0", 1] = Variable("always 1", CONSTANT, lambda split: np.ones(len(split)))
    return out


def _gate(split: Split, rows: Sequence[Sequence[boolean.Row]], place: int, places: Sequence[int]) -> np.ndarray:
    """One value of the last of these layers, worked out row by row from the inputs that matter."""
    return _worked_out(split.inputs[0].cpu().numpy()[:, list(places)].astype(float), rows)[:, place]


def _worked_out(x: np.ndarray, rows: Sequence[Sequence[boolean.Row]]) -> np.ndarray:
    for layer in rows:
        x = np.stack([np.maximum(x @ np.array(weights) + bias, 0.0) for weights, bias in layer], 1)
    return x


def _relation(values: Values, inputs: int) -> str:
    """Whether a gate has two values over all assignments, or more. `values` is a partial of `_gate`."""
    given = values.keywords  # type: ignore[attr-defined]
    every = np.array(np.meshgrid(*[[-1.0, 1.0]] * inputs)).reshape(inputs, -1).T
    return ONE_HOT if len(np.unique(_worked_out(every, given["rows"])[:, given["place"]])) == 2 else THRESHOLD


def _gate_name(row: boolean.Row, below: Sequence[str]) -> str:
    weights, bias = row
    used = [(w, n) for w, n in zip(weights, below, strict=True) if w]
    if all(abs(w) == 1 for w, _ in used) and bias == 1 - len(used) and not below[0].startswith("["):
        return " and ".join(n if w > 0 else f"not {n}" for w, n in used)
    return "relu(" + " ".join(f"{w:+g} {n}" for w, n in used) + (f" {bias:+g}" if bias else "") + ")"


# -- images ----------------------------------------------------------------------------------------------------------


def _scene(name: str, seed: int) -> dict[Node, Variable]:
    scene = patterns.SCENES[name]()
    named = ("a roof", "a valley") if scene.strokes else ("a cross", "a frame")
    out: dict[Node, Variable] = {}
    if scene.strokes:
        for i, (pattern, text) in enumerate(((patterns.FALLING, "a falling"), (patterns.RISING, "a rising"))):
            out["conv0", i] = Variable(f"there is {text} stroke", ONE_HOT, partial(_has, scene, scene.side, pattern))
    found = [partial(_has, scene, scene.rows, p) for p in scene.patterns]
    for i, values in enumerate(found):
        out["conv1" if scene.strokes else "conv0", i] = Variable(f"there is {named[i]}", ONE_HOT, values)
    for j, row in enumerate(scene.hidden):
        out["hidden0", j] = Variable(_gate_name(row, [f"[{n}]" for n in named]), ONE_HOT, partial(_over, found, row))
    return out


def _has(scene: patterns.Scene, rows: int, pattern: torch.Tensor, split: Split) -> np.ndarray:
    images = split.inputs[0].cpu().view(len(split), scene.side, scene.side)
    return np.array([float(patterns.has(m[:rows], pattern)) for m in images])


def _over(found: Sequence[Values], row: boolean.Row, split: Split) -> np.ndarray:
    return _worked_out(np.stack([f(split) for f in found], 1), ((row,),))[:, 0]


# -- compiled programs -----------------------------------------------------------------------------------------------


def _program(name: str, seed: int) -> dict[Node, Variable]:
    program = programs.PROGRAMS[name]()
    return {
        node: Variable(_carried_name(c, program.words), _form(c), partial(_carried, c))
        for node, c in program.compiled().carries.items()
    }


def _carried(carried: Carried, split: Split) -> np.ndarray:
    tokens, at = (x.cpu().numpy() for x in split.inputs)
    out = np.full(tokens.shape, np.nan)
    for row, sequence, end in zip(out, tokens.tolist(), at.tolist(), strict=True):
        parts = [run(t.of, sequence[: end + 1]) for t in carried.terms]
        for q in range(end + 1):
            terms = zip(carried.terms, (p[q] for p in parts), strict=True)
            values = [np.nan if v is UNCLEAR else t.weight * _amount(t.value, v) for t, v in terms]
            row[q] = sum(values) + carried.constant
    return np.maximum(out, 0.0) if carried.rectified else out  # nan stays nan


def _amount(wanted: Hashable | None, value: Hashable) -> float:
    return float(value) if wanted is None else float(value == wanted)  # type: ignore[arg-type]


def _form(carried: Carried) -> str:
    if not carried.terms:
        return CONSTANT
    number = any(t.value is None for t in carried.terms)
    if carried.rectified:
        return THRESHOLD if number else ONE_HOT
    return LINEAR if number else ONE_HOT


def _carried_name(carried: Carried, words: Sequence[str]) -> str:
    if not carried.terms:
        return "always on"
    by: dict[int, list[str]] = {}
    for t in carried.terms:
        if t.weight and t.value is not None:
            by.setdefault(id(t.of), []).append(_value_name(t.of, t.value, words))
    texts = {id(t.of): _expression_name(t.of) for t in carried.terms}
    said = [f"{texts[i]} is {' or '.join(by[i])}" if i in by else texts[i] for i in texts]
    text = " and ".join(said)
    return f"{text} above {-carried.constant:.3g}" if carried.rectified and not by else text


def _value_name(e: Expression, value: Hashable, words: Sequence[str]) -> str:
    while isinstance(e, Fetch | Sharp):
        e = e.of
    return words[value] if isinstance(e, Tokens) else str(value)  # type: ignore[index]


def _expression_name(e: Expression) -> str:
    if isinstance(e, Tokens):
        return "token"
    if isinstance(e, Positions):
        return "position"
    if isinstance(e, Fetch):
        return f"fetched {_expression_name(e.of)}"
    if isinstance(e, Sharp):
        return f"clearly {_expression_name(e.of)}"
    if isinstance(e, Same):
        return f"{_expression_name(e.first)} same as {_expression_name(e.second)}"
    if isinstance(e, Indicator):
        return _expression_name(e.of)
    assert isinstance(e, Average | Curve)
    return f"{'mean' if isinstance(e, Average) else 'curve'} of {_expression_name(e.of)}"


# -- hand-set heads --------------------------------------------------------------------------------------------------

Rule = Callable[[np.ndarray], np.ndarray]  # one sequence [T] -> values [T]


def _sequences(rule: Rule, split: Split) -> np.ndarray:
    tokens, at = (x.cpu().numpy() for x in split.inputs)
    values = np.stack([rule(t).astype(float) for t in tokens])
    return np.where(np.arange(tokens.shape[1])[None] <= at[:, None], values, np.nan)


def _variable(name: str, relation: str, rule: Rule) -> Variable:
    return Variable(name, relation, partial(_sequences, rule))


def _is(w: int) -> Rule:
    return lambda t: t == w


def _fetched(source: Callable[[np.ndarray], np.ndarray], w: int) -> Rule:
    """Whether the token at a place that is worked out from the sequence is w."""
    return lambda t: t[source(t)] == w


def _place(t: np.ndarray) -> np.ndarray:
    return np.arange(len(t))


def _back(steps: int) -> Callable[[np.ndarray], np.ndarray]:
    """The place so many steps back; the head looks for the nearest position, so not before the first."""
    return lambda t: np.maximum(_place(t) - steps, 0)


def _start(t: np.ndarray) -> np.ndarray:
    return np.zeros(len(t), dtype=int)


def _last_below(letters: int) -> Callable[[np.ndarray], np.ndarray]:
    """The place of the last letter; where there is none yet, the present one."""

    def place(t: np.ndarray) -> np.ndarray:
        latest = np.maximum.accumulate(np.where(t < letters, _place(t), -1))
        return np.where(latest < 0, _place(t), latest)

    return place


def _mean_bracket(t: np.ndarray) -> np.ndarray:
    return np.cumsum(np.array([1.0, -1.0, 0.0])[t]) / (_place(t) + 1)


def _followed(w: int) -> Rule:
    """Share of w among the tokens whose predecessor is the present one; among all so far where there are none."""

    def rule(t: np.ndarray) -> np.ndarray:
        before = t[_back(1)(t)]
        out = []
        for q in range(len(t)):
            chosen = before[: q + 1] == t[q]
            some = t[: q + 1][chosen] if chosen.any() else t[: q + 1]
            out.append(float((some == w).mean()))
        return np.array(out)

    return rule


def _heads(name: str, seed: int) -> dict[Node, Variable]:
    letters, kind = _sizes(name)
    if kind in ("brackets", "balanced"):
        return _brackets(kind == "balanced")
    alphabet = "abcdefghijkl"
    out: dict[Node, Variable] = {}

    def reads(site: str, first: int, text: str, rule: Callable[[int], Rule], relation: str = ONE_HOT) -> None:
        out.update({(site, first + w): _variable(f"{text} {alphabet[w]}", relation, rule(w)) for w in range(letters)})

    square = _variable("position squared", LINEAR, lambda t: _place(t) ** 2)
    position = _variable("position", LINEAR, _place)
    always = _variable("always on", CONSTANT, lambda t: np.ones(len(t)))
    a, p = "block0.attn", (3 if kind == "induction" else 2) * letters
    reads(f"{a}.in", 0, "token is", _is)
    reads(f"{a}.v", 0, "token is", _is)
    out[f"{a}.in", p] = position
    if kind == "first":
        source, text = _start, "first token is"
        out[f"{a}.q", 0], out[f"{a}.k", 0] = always, position
    elif kind == "most_recent":
        source, text = _last_below(letters), "last letter is"
        out[f"{a}.in", p + 1] = _variable("token is a letter", ONE_HOT, lambda t: t < letters)
        ranked = _variable("position, letters first", LINEAR, lambda t: _place(t) + 11.0 * (t < letters))
        out[f"{a}.q", 0], out[f"{a}.k", 0] = always, ranked
    else:
        steps = 3 if kind == "third_back" else 1
        source, text = _back(steps), f"token {steps} back is"
        out[f"{a}.in", p + 1] = out[f"{a}.k", 1] = square
        out[f"{a}.q", 0] = out[f"{a}.k", 0] = position
        out[f"{a}.q", 1] = always
    reads(f"{a}.write", letters, text, lambda w: _fetched(source, w))
    if kind != "induction":
        reads("final.in", letters, text, lambda w: _fetched(source, w))
        return out
    b = "block1.attn"
    for site in (f"{b}.in", f"{b}.q", f"{b}.v"):
        reads(site, 0, "token is", _is)
    reads(f"{b}.in", letters, text, lambda w: _fetched(source, w))
    reads(f"{b}.k", 0, text, lambda w: _fetched(source, w))
    for site in (f"{b}.write", "final.in"):
        reads(site, 2 * letters, "share, among what followed this token, of", _followed, LINEAR)
    return out


def _sizes(name: str) -> tuple[int, str]:
    """Letters and kind of a hand-set case, by its name: hand_KIND_LETTERSxLENGTH."""
    kind, _, size = name.removeprefix("hand_").removesuffix("_mean").rpartition("_")
    return int(size.split("x")[0]), kind


def _brackets(counts: bool) -> dict[Node, Variable]:
    """The head that averages brackets, with the neurons that take the size of the average where there are some."""
    sign = _variable("+1 for (, -1 for )", LINEAR, lambda t: np.array([1.0, -1.0, 0.0])[t])
    mean = _variable("mean bracket so far", LINEAR, _mean_bracket)
    out: dict[Node, Variable] = {("block0.attn.in", 0): sign, ("block0.attn.v", 0): sign}
    out["block0.attn.write", 1] = mean
    if not counts:
        return out | {("final.in", 1): mean}
    size = _variable("size of the mean bracket, negative", LINEAR, lambda t: -np.abs(_mean_bracket(t)))
    out["block0.mlp.in", 1] = mean
    for i, s in enumerate((1.0, -1.0)):
        side = _variable(
            f"{'+-'[i]}mean bracket above 0", THRESHOLD, lambda t, s=s: np.maximum(s * _mean_bracket(t), 0)
        )
        out["block0.mlp.act", i] = side
    return out | {("block0.mlp.write", 2): size, ("final.in", 2): size}


__all__ = ["CONSTANT", "LINEAR", "ONE_HOT", "THRESHOLD", "Node", "Variable", "variables", "words"]
