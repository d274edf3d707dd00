"""Boolean functions in perceptrons: a few inputs of many matter, and every weight of a few ReLU neurons is needed.

Inputs are -1 (false) and +1 (true), so that zero is "unknown". A neuron relu(sum of k signed inputs - (k - 1)) is 1
where all k have the right sign, else 0. The neurons write to one of the two logits; the other has a constant.
Examples are pairs on the border of the function: they differ in one input that matters, and in their answer. All such
pairs are in every split, each with other values of the inputs that do not matter.

Knows Boolean functions and the weights of a perceptron. Does not know distractors or methods.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from openwork.models import MLP, MLPConfig
from openwork.planted.case import PAIRS, Ablation, Case, live, make
from openwork.tasks.task import SPLITS, Split, Task

GAIN = 16.0  # logits differ by half of it: a right answer costs about exp(-8) = 3e-4 nats
WIDTH = 20  # inputs of every network, most of which no answer depends on
BIASED = 0.75  # out of distribution, an irrelevant input is true with this probability

Row = tuple[Sequence[float], float]  # weights from the layer below, bias


@dataclass(frozen=True)
class Formula:
    """A Boolean function of `inputs` inputs and the network that computes it.

    layers   per hidden layer its neurons, each (weights over the layer below, bias)
    writes   what each neuron of the last layer adds to its logit, in units of GAIN
    yes      whether the neurons speak for "yes" (else for "no"); the other logit is GAIN / 2
    """

    inputs: int
    function: Callable[[Sequence[bool]], bool]
    layers: tuple[tuple[Row, ...], ...]
    writes: tuple[float, ...]
    about: str
    yes: bool = True


def conjunction(signs: Sequence[int]) -> Row:
    """relu(signs . x - (k - 1)): 1 where the k inputs with a sign have just these signs, else 0."""
    return tuple(float(s) for s in signs), -float(sum(map(abs, signs)) - 1)


def all_of(k: int) -> Formula:
    """An AND of k inputs."""
    return Formula(k, all, ((conjunction([1] * k),),), (1.0,), f"all {k} inputs are true")


def _or(k: int) -> Formula:
    return Formula(k, any, ((conjunction([-1] * k),),), (1.0,), f"any of {k} inputs is true", yes=False)


def _flat_parity(k: int) -> Formula:
    """One neuron for every odd pattern of inputs."""
    odd = [signs for signs in itertools.product((-1, 1), repeat=k) if signs.count(1) % 2]
    rows = tuple(conjunction(s) for s in odd)
    about = f"an odd number of {k} inputs is true; a neuron for every odd pattern"
    return Formula(k, lambda x: sum(x) % 2 == 1, (rows,), (1.0,) * len(rows), about)


def _deep_parity(k: int) -> Formula:
    """XOR by XOR: every layer folds in one more input, and hands on the others as 0 or 1."""
    layers: list[tuple[Row, ...]] = []
    first = [conjunction([1, -1] + [0] * (k - 2)), conjunction([-1, 1] + [0] * (k - 2))]
    first += [(tuple(1.0 if i == j else 0.0 for i in range(k)), 0.0) for j in range(2, k)]
    layers.append(tuple(first))
    for left in range(k - 2, 0, -1):  # below stand the two halves of the XOR so far, then `left` inputs as 0 or 1
        rest = [0.0] * (left - 1)
        rows: list[Row] = [((1.0, 1.0, -1.0, *rest), 0.0), ((-1.0, -1.0, 1.0, *rest), 0.0)]
        rows += [(tuple(1.0 if i == 3 + j else 0.0 for i in range(2 + left)), 0.0) for j in range(left - 1)]
        layers.append(tuple(rows))
    about = f"an odd number of {k} inputs is true; one XOR per layer"
    return Formula(k, lambda x: sum(x) % 2 == 1, tuple(layers), (1.0, 1.0), about)


def _majority(k: int) -> Formula:
    return Formula(k, lambda x: 2 * sum(x) > k, ((((1.0,) * k, 0.0),),), (1.0,), f"most of {k} inputs are true")


def _at_least(least: int, k: int) -> Formula:
    # the sum of k signs with n true ones is 2n - k; half of what exceeds the last sum that is too small
    row: Row = ((0.5,) * k, -float(2 * (least - 1) - k) / 2)
    return Formula(k, lambda x: sum(x) >= least, ((row,),), (1.0,), f"at least {least} of {k} inputs are true")


def _exactly(n: int, k: int) -> Formula:
    """A triangle over the number of true inputs: 1 at n, 0 at n - 1 and n + 1, below 0 beyond."""
    rise: Row = ((0.5,) * k, -float(2 * (n - 1) - k) / 2)
    fall: Row = ((0.5,) * k, -float(2 * n - k) / 2)
    return Formula(k, lambda x: sum(x) == n, ((rise, fall),), (1.0, -2.0), f"exactly {n} of {k} inputs are true")


def _multiplexer(bits: int) -> Formula:
    """`bits` inputs choose which of 2 ** bits others is the answer: one neuron per choice."""
    choices = list(itertools.product((-1, 1), repeat=bits))
    rows = [
        conjunction([*choice, *(1 if i == j else 0 for i in range(len(choices)))]) for j, choice in enumerate(choices)
    ]

    def function(x: Sequence[bool]) -> bool:
        return x[bits + int("".join("01"[b] for b in x[:bits]), 2)]

    about = f"the one of {len(choices)} inputs that {bits} others choose is true"
    return Formula(bits + len(choices), function, (tuple(rows),), (1.0,) * len(choices), about)


def _implications(k: int) -> Formula:
    """x0 implies x1 implies ...: one neuron per broken link."""
    rows = tuple(conjunction([(i == j) - (i == j + 1) for i in range(k)]) for j in range(k - 1))
    about = f"of {k} inputs each implies the next; a neuron per broken implication"
    holds = lambda x: all(b or not a for a, b in itertools.pairwise(x))  # noqa: E731
    return Formula(k, holds, (rows,), (1.0,) * (k - 1), about, yes=False)


def _both_ors() -> Formula:
    """(x0 or x1) and (x2 or x3), in two layers."""
    first = (conjunction([-1, -1, 0, 0]), conjunction([0, 0, -1, -1]))
    second: tuple[Row, ...] = (((-1.0, -1.0), 1.0),)
    about = "one of the first two inputs and one of the next two are true"
    return Formula(4, lambda x: (x[0] or x[1]) and (x[2] or x[3]), (first, second), (1.0,), about)


def _tree() -> Formula:
    """An AND of two ORs of two ANDs each, over eight inputs, in three layers."""
    first = tuple(conjunction([1 if i // 2 == j else 0 for i in range(8)]) for j in range(4))
    second: tuple[Row, ...] = (((-1.0, -1.0, 0.0, 0.0), 1.0), ((0.0, 0.0, -1.0, -1.0), 1.0))
    third: tuple[Row, ...] = (((-1.0, -1.0), 1.0),)

    def function(x: Sequence[bool]) -> bool:
        return ((x[0] and x[1]) or (x[2] and x[3])) and ((x[4] and x[5]) or (x[6] and x[7]))

    return Formula(8, function, (first, second, third), (1.0,), "an AND of two ORs of two ANDs of two inputs each")


FORMULAS: dict[str, Callable[[], Formula]] = {
    "and2": lambda: all_of(2),
    "and4": lambda: all_of(4),
    "or3": lambda: _or(3),
    "xor": lambda: _flat_parity(2),
    "parity3": lambda: _flat_parity(3),
    "parity3_deep": lambda: _deep_parity(3),
    "parity4_deep": lambda: _deep_parity(4),
    "majority3": lambda: _majority(3),
    "majority5": lambda: _majority(5),
    "at_least_2_of_5": lambda: _at_least(2, 5),
    "exactly_2_of_4": lambda: _exactly(2, 4),
    "multiplexer2": lambda: _multiplexer(1),
    "multiplexer4": lambda: _multiplexer(2),
    "implications3": lambda: _implications(3),
    "implications5": lambda: _implications(5),
    "both_ors": _both_ors,
    "and_or_and": _tree,
}


def case(name: str, seed: int) -> Case:
    """The case of a formula; the inputs that matter stand at places drawn with `seed`."""
    formula = FORMULAS[name]()
    places = places_of(formula, seed)
    task = _task(name, formula, places, seed)
    return make(name, "boolean", network(formula, places), task, formula.about)


def constant_case(name: str, ablation: Ablation, seed: int) -> Case:
    """An AND with a neuron that is always on, instead of the constant of the other logit.

    Under zero ablation the circuit needs it; ablated to its mean it sends what it always sends, so it is no part of it.
    """
    formula = all_of(3)
    places = places_of(formula, seed)
    always: Row = ((0.0,) * formula.inputs, 1.0)
    rows = (*formula.layers[0], always)
    model = network(replace(formula, layers=(rows,), writes=(1.0, -0.5)), places)
    with torch.no_grad():
        list(model.parameters())[-1].zero_()  # the constant of the other logit
    nodes = live(model)
    nodes["hidden0"][-1] = ablation == "zero"
    about = f"{formula.about}; one neuron is always on, and is in the circuit only where the ablation is zero"
    return make(name, "boolean", model, _task(name, formula, places, seed), about, ablation, nodes)


def places_of(formula: Formula, seed: int) -> list[int]:
    """Which of the WIDTH inputs of a network with this seed are the inputs of the formula, in their order."""
    return torch.randperm(WIDTH, generator=torch.Generator().manual_seed(seed))[: formula.inputs].tolist()


def network(formula: Formula, places: Sequence[int]) -> MLP:
    """The perceptron of a formula whose i-th input is input `places[i]` of WIDTH."""
    hidden = tuple(len(rows) for rows in formula.layers)
    model = MLP(MLPConfig(inputs=WIDTH, hidden=hidden, outputs=2))  # type: ignore[call-arg]
    layers: list[Any] = list(model.layers)
    speaks = int(formula.yes)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for i, rows in enumerate(formula.layers):
            weight, bias = layers[i].weight, layers[i].bias
            columns = places if i == 0 else range(len(rows[0][0]))
            for j, (row, b) in enumerate(rows):
                weight[j, list(columns)] = torch.tensor(row)
                bias[j] = b
        last = layers[-1]
        last.weight[speaks] = GAIN * torch.tensor(formula.writes)
        last.bias[1 - speaks] = GAIN / 2
    return model


def border(formula: Formula) -> list[tuple[tuple[bool, ...], int]]:
    """All pairs on the border, as (the assignment whose answer is no, the input to flip for a yes)."""
    out = []
    for x in itertools.product((False, True), repeat=formula.inputs):
        if not formula.function(x):
            flips = ((*x[:i], not x[i], *x[i + 1 :]) for i in range(formula.inputs))
            out += [(x, i) for i, y in enumerate(flips) if formula.function(y)]
    return out


def _task(name: str, formula: Formula, places: Sequence[int], seed: int) -> Task:
    pairs = border(formula)
    repeats = -(-PAIRS // len(pairs))
    seen: set[tuple[bool, ...]] = set()
    splits = {}
    for split in SPLITS:
        rng = random.Random(f"{name} {split} {seed}")
        rows: list[tuple[bool, ...]] = []
        for x, flip in pairs * repeats:
            while True:
                row = [rng.random() < (BIASED if split == "ood" else 0.5) for _ in range(WIDTH)]
                for place, value in zip(places, x, strict=True):
                    row[place] = value
                other = list(row)
                other[places[flip]] = not x[flip]
                if tuple(row) not in seen and tuple(other) not in seen:
                    break
            seen |= {tuple(row), tuple(other)}
            rows += [tuple(row), tuple(other)]
        splits[split] = _split(split, rows)
    return Task(name, f"tell whether {formula.about}", splits, ("no", "yes"))


def _split(name: str, rows: Sequence[tuple[bool, ...]]) -> Split:
    """Rows in pairs (no, yes)."""
    x = 2 * torch.tensor(rows).float() - 1
    answer = torch.arange(len(rows)) % 2
    texts = tuple("".join("-+"[v] for v in row) for row in rows)
    return Split(name, (x,), answer, 1 - answer[:, None], torch.arange(len(rows)) ^ 1, texts)
