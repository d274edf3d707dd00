"""Tasks and training batches over prepared flows.

A task tells flows of one class from normal ones ("scan" of a network with that class), or any attack from normal flows
("attack"). Pairs are the k-th flow of the one and the k-th of the other, so half of the examples are normal.

Knows prepared rows. Does not know models or methods.

Shapes: N examples, F features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from openwork.errors import UsageError, unknown
from openwork.tasks.flows.prepared import Prepared
from openwork.tasks.flows.schema import ATTACK, Schema
from openwork.tasks.task import Inputs, Split, Task

HELD_OUT = 8_192  # rows in one batch of held-out data
MOST_HELD_OUT = 65_536  # rows of a split that a training loop looks at


def flow_tasks(schema: Schema) -> dict[str, str]:
    """What can be asked of a network with these classes."""
    attacks = schema.classes[1:]
    each = {} if attacks == (ATTACK,) else {c: f"tell flows of {c} from {schema.classes[0]} ones" for c in attacks}
    return {ATTACK: f"tell attacks from {schema.classes[0]} flows", **each}


def make_flow_task(name: str, prepared: Prepared, n: int) -> Task:
    """The task of that name with up to n examples per split; refuses another with the nearest one."""
    tasks = flow_tasks(prepared.schema)
    if name not in tasks:
        raise unknown("task about these flows", name, tasks)
    splits = {s: _split(s, name, prepared, n) for s in ("discover", "verify", "ood", "explain")}
    return Task(name, tasks[name], splits, prepared.schema.classes)


def _split(split: str, name: str, prepared: Prepared, n: int) -> Split:
    labels = np.asarray(prepared.labels(split)).astype(np.int64)
    classes = prepared.schema.classes
    mine = labels > 0 if name == ATTACK else labels == classes.index(name)
    a, b = np.flatnonzero(mine), np.flatnonzero(labels == 0)
    k = min(len(a), len(b), n // 2)
    rows = np.stack([_even(a, k), _even(b, k)], 1).ravel()
    answer = torch.from_numpy(labels[rows])
    pair = torch.arange(2 * k) ^ 1
    x = torch.from_numpy(prepared.features(split, rows))
    texts = tuple(f"flow {i} of {split}: {classes[c]}" for i, c in zip(rows.tolist(), answer.tolist(), strict=True))
    return Split(split, (x,), answer, answer[pair][:, None], pair, texts)


def _even(rows: np.ndarray, k: int) -> np.ndarray:
    """k of some rows, evenly over the file, whose rows are often in order of time."""
    return rows[np.linspace(0, len(rows) - 1, k).round().astype(np.int64)] if k else rows[:0]


@dataclass(frozen=True)
class FlowData:
    """Training data: batches of the train rows, drawn with replacement.

    balance  how far rare classes are drawn more often than they are: a class with a share p is drawn in proportion to
             p^(1 - balance); 0 draws as it is, 1 all classes alike
    """

    prepared: Prepared
    seed: int = 0
    size: int = 256
    balance: float = 0.5

    @cached_property
    def _members(self) -> list[np.ndarray]:
        labels = np.asarray(self.prepared.labels("train"))
        return [np.flatnonzero(labels == c) for c in range(len(self.prepared.schema.classes))]

    @cached_property
    def drawn(self) -> np.ndarray:
        """Share [C] of every class among what is drawn."""
        counts = np.array([len(m) for m in self._members], dtype=np.float64)
        if not counts.all():
            raise UsageError("a class has no rows in the train split.")
        weight = counts ** (1 - self.balance)
        return weight / weight.sum()

    @property
    def shares(self) -> np.ndarray:
        """Share [C] of every class among the train rows."""
        counts = np.array([len(m) for m in self._members], dtype=np.float64)
        return counts / counts.sum()

    def batch(self, step: int) -> tuple[Inputs, Tensor]:
        """Features ([B, F],) and classes [B]; a pure function of (seed, step)."""
        rng = np.random.default_rng([self.seed, step])
        classes = rng.choice(len(self.drawn), self.size, p=self.drawn)
        u = rng.random(self.size)
        rows = np.array([self._members[c][int(x * len(self._members[c]))] for c, x in zip(classes, u, strict=True)])
        x = self.prepared.features("train", rows)
        return (torch.from_numpy(x),), torch.from_numpy(classes.astype(np.int64))

    def held_out(self, split: str) -> Iterable[tuple[Inputs, Tensor]]:
        """The rows of a split in batches; of very many, an even choice."""
        n = self.prepared.rows(split)
        rows = _even(np.arange(n), min(n, MOST_HELD_OUT))
        labels = self.prepared.labels(split)
        for at in range(0, len(rows), HELD_OUT):
            some = rows[at : at + HELD_OUT]
            y = torch.from_numpy(np.asarray(labels[some]).astype(np.int64))
            yield (torch.from_numpy(self.prepared.features(split, some)),), y


__all__ = ["FlowData", "flow_tasks", "make_flow_task"]
