"""A circuit's decisions as nested if and else over named features: a small tree, fitted to what the circuit decides.

The tree imitates the circuit, not the labels, and is an account of the circuit's decisions alone: where it agrees, the
circuit may still get there in another way, which its program shows. Its size is chosen by cross-validation on the
discover split: the fewest leaves whose agreement is within one standard error of the best (Breiman et al. 1984, section
3.4.3). A threshold is the shortest decimal number between the two values that it separates, so that rounding changes no
decision on that split.

Knows features, decisions, a circuit and the splits of its task. Does not know how the circuit computes.

Shapes: N examples, F features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain.decided import JUDGED, Agreement, Ids, agreement, answers_of, logits_of, preferred
from openwork.explain.programs.program import Answer, Bend, Feature, Program, Step, Sum
from openwork.patching import Reference
from openwork.tasks.task import Task

Floats = NDArray[np.float64]
LEAVES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)  # sizes that are tried
FOLDS = 5


@dataclass(frozen=True)
class Leaf:
    """The end of a path: the output that is decided for."""

    output: int


@dataclass(frozen=True)
class Branch:
    """A question: is feature `index` above `threshold`?"""

    index: int
    threshold: float
    below: Rule
    above: Rule


Rule = Leaf | Branch


@dataclass(frozen=True)
class Rules:
    """A tree of questions over named features.

    agreement  split -> how often the rules decide what the circuit decides; `with_model` likewise for the whole model
    folds      agreement with the circuit in cross-validation on the discover split
    """

    root: Rule
    features: tuple[str, ...]
    answers: dict[int, str]
    agreement: dict[str, Agreement]
    with_model: dict[str, Agreement]
    folds: float

    def leaves(self) -> int:
        """How many different paths there are."""
        return _leaves(self.root)

    def decide(self, x: Floats) -> Ids:
        """The output decided for on features [N, F]: [N]."""
        return decide(self.root, x)

    def text(self) -> str:
        """The rules as nested if and else, one question per line."""
        return "\n".join(_lines(self.root, self, ""))

    def python(self) -> str:
        """Python source of `decide(features)`: features in the model's order; the text of an answer comes back."""
        used = sorted(_used(self.root))
        names = [f"    {self.features[i]} = features[{i}]" for i in used]
        return "\n".join(
            [
                "def decide(features: list[float]) -> str:",
                '    """The answer that the rules give."""',
                *names,
                *_lines(self.root, self, "    "),
            ]
        )

    def program(self) -> Program:
        """The rules as a `Program` whose logit of an answer is 1 where it is decided for, else 0."""
        steps = [Step(self.features[i], Feature(i)) for i in sorted(_used(self.root))]
        paths: dict[int, list[str]] = {i: [] for i in self.answers}
        _paths(self.root, self, [], steps, paths)
        for output, leaves in paths.items():
            steps.append(Step(f"logit_{output}", Sum(tuple((leaf, 1.0) for leaf in leaves)), self.answers[output]))
        return Program("features", tuple(steps), tuple(Answer(t, i, f"logit_{i}") for i, t in self.answers.items()))


def rules_of(
    model: nn.Module,
    circuit: Circuit | None,
    reference: Reference,
    task: Task,
    features: Sequence[str],
    seed: int = 0,
) -> Rules:
    """Rules that imitate a circuit (None: the whole model): chosen on the discover split, judged on the others.

    features  a name for every feature of the task's inputs
    seed      deals the examples into folds

    UsageError where the task's inputs are no features, or are not as many as the names.
    """
    split = task.split("discover")
    if len(split.inputs) != 1 or not split.inputs[0].is_floating_point():
        raise UsageError(f"rules are made of named features; the inputs of {task.name} are tokens: write a program.")
    if split.inputs[0].shape[1] != len(features):
        raise UsageError(f"{task.name} has {split.inputs[0].shape[1]} features, but {len(features)} names are given.")
    x = {n: s.inputs[0].double().numpy() for n, s in task.splits.items() if n in ("discover", *JUDGED)}
    circuits = {n: preferred(logits_of(model, circuit, reference, task.split(n)), task.split(n)) for n in x}
    models = {n: preferred(logits_of(model, None, reference, task.split(n)), task.split(n)) for n in x}
    root, folds = fit(x["discover"], circuits["discover"], seed)
    ids, texts = answers_of(task)
    mine = {n: decide(root, x[n]) for n in x if n in JUDGED}
    return Rules(
        root,
        tuple(features),
        dict(zip(ids, texts, strict=True)),
        {n: agreement(d, circuits[n]) for n, d in mine.items()},
        {n: agreement(d, models[n]) for n, d in mine.items()},
        folds,
    )


# -- fitting ---------------------------------------------------------------------------------------------------------


def fit(x: Floats, decided: Ids, seed: int = 0) -> tuple[Rule, float]:
    """A tree for decisions [N] on features [N, F], and its agreement in cross-validation (nan where N < 2)."""
    if len(np.unique(decided)) == 1:
        return Leaf(int(decided[0])), 1.0
    leaves, folds = _size(x, decided, seed)
    if leaves == 1:
        values, counts = np.unique(decided, return_counts=True)
        return Leaf(int(values[counts.argmax()])), folds
    tree = _tree(leaves, seed).fit(x, decided)
    return _pruned(_read(tree, 0, x)), folds


def _tree(leaves: int, seed: int):  # type: ignore[no-untyped-def]  # scikit-learn has no types
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(max_leaf_nodes=leaves, random_state=seed)


def _size(x: Floats, decided: Ids, seed: int) -> tuple[int, float]:
    """How many leaves, and how well they agree in cross-validation: the fewest within a standard error of the best."""
    folds = np.random.default_rng(seed).permutation(len(x)) % min(FOLDS, len(x))
    held: dict[int, Floats] = {}
    for leaves in LEAVES:
        hits = []
        for k in range(int(folds.max()) + 1):
            train, test = folds != k, folds == k
            if leaves == 1 or len(np.unique(decided[train])) == 1:
                values, counts = np.unique(decided[train], return_counts=True)
                hits.append(float((decided[test] == values[counts.argmax()]).mean()))
            else:
                hits.append(
                    float((_tree(leaves, seed).fit(x[train], decided[train]).predict(x[test]) == decided[test]).mean())
                )
        held[leaves] = np.array(hits)
    best = max(held, key=lambda n: (held[n].mean(), -n))
    error = float(held[best].std(ddof=1)) / math.sqrt(len(held[best])) if len(held[best]) > 1 else 0.0
    chosen = min(n for n in held if held[n].mean() >= held[best].mean() - error)
    return chosen, float(held[chosen].mean())


def _read(tree, node: int, x: Floats) -> Rule:  # type: ignore[no-untyped-def]
    """A fitted tree from a node on, with short thresholds; x are the examples that reach the node."""
    t = tree.tree_
    if t.children_left[node] < 0:
        return Leaf(int(tree.classes_[t.value[node][0].argmax()]))
    index = int(t.feature[node])
    values = x[:, index]
    low = values.astype(np.float32) <= t.threshold[node]  # scikit-learn compares single precision
    threshold = shortest_between(float(values[low].max()), float(values[~low].min()))
    below, above = (_read(tree, int(c[node]), x[m]) for c, m in ((t.children_left, low), (t.children_right, ~low)))
    return Branch(index, threshold, below, above)


def shortest_between(low: float, high: float) -> float:
    """The decimal number with the fewest digits t with low <= t < high, and of these the nearest to the middle."""
    middle = (low + high) / 2
    for digits in range(17):
        t = round(middle, digits)
        if low <= t < high:
            return t
    return low


def short_threshold(values: Floats, threshold: float) -> float:
    """A threshold with as few digits, two or more, as part these values [N] as it does."""
    for digits in range(2, 17):
        t = float(f"{threshold:.{digits - 1}e}")
        if bool(((values > t) == (values > threshold)).all()):
            return t
    return threshold


def _pruned(rule: Rule) -> Rule:
    """Without questions whose two answers lead to the same."""
    if isinstance(rule, Leaf):
        return rule
    below, above = _pruned(rule.below), _pruned(rule.above)
    return below if below == above else Branch(rule.index, rule.threshold, below, above)


# -- reading ---------------------------------------------------------------------------------------------------------


def decide(rule: Rule, x: Floats) -> Ids:
    """The output that rules decide for on features [N, F]: [N]."""
    if isinstance(rule, Leaf):
        return np.full(len(x), rule.output, dtype=np.int64)
    above = x[:, rule.index] > rule.threshold
    return np.where(above, decide(rule.above, x), decide(rule.below, x))


def _leaves(rule: Rule) -> int:
    return 1 if isinstance(rule, Leaf) else _leaves(rule.below) + _leaves(rule.above)


def _used(rule: Rule) -> set[int]:
    return set() if isinstance(rule, Leaf) else {rule.index} | _used(rule.below) | _used(rule.above)


def _lines(rule: Rule, rules: Rules, indent: str) -> list[str]:
    if isinstance(rule, Leaf):
        said = rules.answers.get(rule.output, f"output {rule.output}")
        return [f"{indent}return {json.dumps(said, ensure_ascii=False)}"]
    head = f"{indent}if {rules.features[rule.index]} > {rule.threshold!r}:"
    above, below = (_lines(r, rules, indent + "    ") for r in (rule.above, rule.below))
    return [head, *above, *(line.removeprefix("    ") for line in below)]


def _paths(
    rule: Rule, rules: Rules, taken: list[tuple[str, bool]], steps: list[Step], out: dict[int, list[str]]
) -> None:
    """Adds a step per question and one per leaf: 1 where all answers on the way to it are as they must be."""
    if isinstance(rule, Leaf):
        terms = tuple((name, 1.0 if yes else -1.0) for name, yes in taken)
        name = f"path_{sum(map(len, out.values()))}"
        met = 0.5 - sum(yes for _, yes in taken)  # the terms add up to the number of yeses where all are met
        steps.append(Step(f"{name}_met", Sum(terms, met)))
        steps.append(Step(name, Bend(f"{name}_met", "step"), f"decides for {rules.answers.get(rule.output)}"))
        out.setdefault(rule.output, []).append(name)
        return
    name = f"is_{rules.features[rule.index]}_over_{sum('_over_' in s.name for s in steps) // 2}"
    steps.append(Step(f"{name}_by", Sum(((rules.features[rule.index], 1.0),), -rule.threshold)))
    steps.append(Step(name, Bend(f"{name}_by", "step"), f"{rules.features[rule.index]} > {rule.threshold!r}"))
    _paths(rule.above, rules, [*taken, (name, True)], steps, out)
    _paths(rule.below, rules, [*taken, (name, False)], steps, out)


__all__ = ["Branch", "Leaf", "Rule", "Rules", "decide", "fit", "rules_of", "short_threshold", "shortest_between"]
