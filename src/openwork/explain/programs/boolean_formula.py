"""A circuit of two-valued inputs as one Boolean formula.

Nothing is fitted: the program of the circuit is run on every assignment of the inputs that it reads, and the formula
has the same table. So it is the circuit's function exactly, in a domain of two values per input; the shares of
agreement say what that is worth on the task's examples, and how the circuit compares with the whole model.

Knows programs, truth tables, a perceptron's circuit and the splits of its task. Does not know the true function, which
whoever has one may compare (`differences`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain.decided import JUDGED, Agreement, Ids, agreement, answers_of, logits_of, preferred
from openwork.explain.programs.bits import formula_of_program
from openwork.explain.programs.lower_perceptron import lower_perceptron
from openwork.explain.programs.program import Feature
from openwork.explain.programs.truth_tables import Formula, rows_of
from openwork.models.mlp import MLP
from openwork.patching import Reference
from openwork.tasks.task import Task


@dataclass(frozen=True)
class BooleanAccount:
    """The formula of a circuit with two answers.

    formula     true where the circuit decides for `answers[1]`; over the names of features, true at the larger value
    agreement   split -> how often it decides what the circuit decides; `with_model` likewise for the whole model
    """

    formula: Formula
    answers: tuple[str, str]
    agreement: dict[str, Agreement]
    with_model: dict[str, Agreement]

    def text(self) -> str:
        """The formula as a sentence."""
        return f'"{self.answers[1]}" where {self.formula}; else "{self.answers[0]}"'


def boolean_account(
    model: MLP, circuit: Circuit | None, reference: Reference, task: Task, features: Sequence[str]
) -> BooleanAccount:
    """The Boolean formula of a perceptron's circuit (None: of the whole model), judged on the verify and ood splits.

    features  a name for every input of the model

    UsageError where the task has more than two answers, an input more than two values on the discover split, or the
    circuit reads more inputs than a truth table may have (`truth_tables.MOST_INPUTS`).
    """
    ids, texts = answers_of(task)
    if len(ids) != 2:
        raise UsageError(f"{task.name} has {len(ids)} answers; a Boolean formula tells two apart. Write rules instead.")
    program = lower_perceptron(model, circuit, reference, ids, texts, features)
    x = task.split("discover").inputs[0].double().numpy()
    read = [s.op.index for s in program.steps if isinstance(s.op, Feature)]
    more = [features[i] for i in read if len(np.unique(x[:, i])) > 2]
    if more:
        raise UsageError(
            f"a Boolean formula needs inputs of two values; {', '.join(more[:5])} have more. Binarise the circuit, or "
            "write rules."
        )
    formula = formula_of_program(program, x.min(0), x.max(0))
    mine: dict[str, Ids] = {}
    circuits: dict[str, Ids] = {}
    models: dict[str, Ids] = {}
    for name in (n for n in JUDGED if n in task.splits):
        split = task.split(name)
        held = split.inputs[0].double().numpy() == x.max(0)
        values = {f: held[:, i] for i, f in enumerate(features)}
        yes = np.broadcast_to(formula.value(values), len(split))
        mine[name] = np.where(yes, ids[1], ids[0])
        circuits[name] = preferred(logits_of(model, circuit, reference, split), split)
        models[name] = preferred(logits_of(model, None, reference, split), split)
    return BooleanAccount(
        formula,
        (texts[0], texts[1]),
        {n: agreement(d, circuits[n]) for n, d in mine.items()},
        {n: agreement(d, models[n]) for n, d in mine.items()},
    )


def differences(formula: Formula, truth: Callable[[Sequence[bool]], bool], names: Sequence[str]) -> int:
    """Assignments, of all inputs that either names, on which a formula and a function of these names differ."""
    every = [*names, *(n for n in formula.inputs() if n not in names)]
    rows = rows_of(len(every))
    mine = np.broadcast_to(formula.value({n: rows[:, i] for i, n in enumerate(every)}), len(rows))
    theirs = np.array([bool(truth(row)) for row in rows[:, : len(names)].tolist()])
    return int((mine != theirs).sum())


__all__ = ["BooleanAccount", "boolean_account", "differences"]
