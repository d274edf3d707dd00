"""Operations to be learned from part of their table: modular addition, and the composition of permutations.

An operation takes two of n elements to a third. Part of its n * n pairs is for training; the rest is dealt out evenly
into discover, verify and explain, so every held-out pair is one that training never saw. Which pairs go where is always
the same, whatever the seed of a run. There is no out-of-distribution split: beyond the table there is nothing to ask.
Where the operation commutes, the mirrored pair (b, a) of a held-out pair (a, b) is trained on with the probability that
any pair is, as in the papers.

    modular_addition_59    0.8 of the pairs, as for BIMT (Liu, Gan, Tegmark 2023, arXiv 2305.08746)
    modular_addition_113   0.3 of the pairs, as by Nanda et al. 2023 (arXiv 2301.05217)
    s4                     0.8 of the pairs, as for BIMT; f * g is the permutation i -> f(g(i))

A perceptron over an embedding is given the pair [N, 2]; a transformer the sequence a, b, = [N, 3], where the sign "="
is token n, and is asked at the last position only.

Knows operations and their pairs. Does not know models or methods.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from openwork.errors import unknown
from openwork.tasks.task import Inputs, Split, Task

HELD_OUT = ("discover", "verify", "explain")
PERMUTATIONS = tuple(itertools.permutations(range(4)))  # of S4, in the order of their words


@dataclass(frozen=True)
class Operation:
    """An operation on n elements, as a table and in words.

    says      what is asked of a model
    symbols   the elements as a person reads them; element i is token i
    sign      what stands between two of them
    share     of the pairs that are trained on
    apply     ids [N], ids [N] -> ids [N]
    """

    says: str
    symbols: tuple[str, ...]
    sign: str
    share: float
    apply: Callable[[Tensor, Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.symbols)

    def text(self, a: int, b: int) -> str:
        """The question as a person reads it: "3 + 5 ="."""
        return f"{self.symbols[a]} {self.sign} {self.symbols[b]} ="


def _addition(p: int, share: float) -> Operation:
    return Operation(
        f"add two numbers modulo {p}; the sum competes with the other {p - 1} numbers",
        tuple(map(str, range(p))), "+", share,
        lambda a, b: (a + b) % p,
    )  # fmt: skip


def _compose(a: Tensor, b: Tensor) -> Tensor:
    """The permutation i -> a(b(i)) of S4, by number: ids [N], ids [N] -> ids [N]."""
    table = torch.tensor(PERMUTATIONS)  # [24, 4]
    images = table[a].gather(1, table[b])
    return (images[:, None, :] == table).all(-1).int().argmax(-1)


OPERATIONS: dict[str, Operation] = {
    "modular_addition_59": _addition(59, 0.8),
    "modular_addition_113": _addition(113, 0.3),
    "s4": Operation(
        "compose two permutations of four things; the result competes with the other 23 permutations",
        tuple("".join(str(i + 1) for i in p) for p in PERMUTATIONS), "*", 0.8,
        _compose,
    ),
}  # fmt: skip


@cache
def _members(n: int, share: float) -> dict[str, Tensor]:
    """Split -> numbers a * n + b of its pairs, in a random order that is always the same."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(n * n))
    train = round(share * n * n)
    rest = order[train:].tensor_split(len(HELD_OUT))
    return {"train": order[:train], **dict(zip(HELD_OUT, rest, strict=True))}


@dataclass(frozen=True)
class OperationData:
    """Pairs of an operation for training.

    size       pairs per step, drawn with replacement; as many as there are to train on, or more: each once, every time
    sequence   whether inputs are sequences a, b, = with the position that is asked, or pairs
    """

    operation: Operation
    seed: int = 0
    size: int = 1 << 20
    sequence: bool = False

    def batch(self, step: int) -> tuple[Inputs, Tensor]:
        """Inputs and results [B]; a pure function of (seed, step)."""
        train = self.members("train")
        if self.size < len(train):
            rows = np.random.default_rng([self.seed, step]).integers(0, len(train), self.size)
            train = train[torch.from_numpy(rows)]
        return self.of(train)

    def held_out(self, split: str) -> Iterable[tuple[Inputs, Tensor]]:
        """All pairs of a split, in one batch."""
        return [self.of(self.members(split))]

    def members(self, split: str) -> Tensor:
        """Numbers a * n + b of the pairs of a split; refuses an unknown one with the nearest."""
        found = _members(len(self.operation), self.operation.share)
        if split not in found:
            raise unknown("split of an operation", split, found)
        return found[split]

    def of(self, pairs: Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and results [N] of pairs by number [N]: ([N, 2],), or ([N, 3], [N]) as sequences."""
        n = len(self.operation)
        ab = torch.stack([pairs // n, pairs % n], 1)
        result = self.operation.apply(ab[:, 0], ab[:, 1])
        if not self.sequence:
            return (ab,), result
        tokens = torch.cat([ab, torch.full_like(ab[:, :1], n)], 1)
        return (tokens, torch.full_like(result, 2)), result


def operation(name: str) -> Operation:
    """The operation of that name; refuses another with the nearest one."""
    if name not in OPERATIONS:
        raise unknown("operation", name, OPERATIONS)
    return OPERATIONS[name]


def make_operation_task(name: str, n: int, sequence: bool = False) -> Task:
    """The task of that name with up to n examples per split; its result competes with all other elements.

    The counterpart of a pair (a, b) is a pair (a, c) of the same split while there is one left, and then any pair with
    another result; at most one or two pairs of a split find none and are left out.
    """
    of = operation(name)
    data = OperationData(of, sequence=sequence)
    return Task(name, of.says, {s: _split(s, data, n) for s in HELD_OUT}, of.symbols)


def _split(name: str, data: OperationData, n: int) -> Split:
    of = data.operation
    pairs = _in_twos(data, name)[: n - n % 2]
    inputs, answer = data.of(pairs)
    others = torch.tensor([[w for w in range(len(of)) if w != y] for y in range(len(of))])
    texts = tuple(of.text(p // len(of), p % len(of)) for p in pairs.tolist())
    return Split(name, inputs, answer, others[answer], torch.arange(len(pairs)) ^ 1, texts)


def _in_twos(data: OperationData, split: str) -> Tensor:
    """The pairs of a split with counterparts next to each other; those that share their first operand come first."""
    pairs = data.members(split)
    results = dict(zip(pairs.tolist(), data.of(pairs)[1].tolist(), strict=True))
    n = len(data.operation)
    alone: dict[int, int] = {}  # first operand -> a pair that has no counterpart yet
    out: list[int] = []
    for p in results:
        if p // n in alone:
            out += (alone.pop(p // n), p)
        else:
            alone[p // n] = p
    waiting: list[int] = []
    for p in alone.values():
        other = next((q for q in waiting if results[q] != results[p]), None)
        if other is None:
            waiting.append(p)
        else:
            waiting.remove(other)
            out += (other, p)
    return torch.tensor(out, dtype=torch.long)
