"""Do modules work apart, and what is each for? Two tests of a partition, each beside random ones of the same sizes.

    hard cut   every weight between modules is deleted, and the model judged again. Beside it: the same for random
               partitions, whose modules have as many nodes of every layer; and for as many nonzero weights of every
               matrix, drawn at random whatever they join. The second is the harder null where training has left few
               weights between modules: random partitions then have to delete far more.
    on, off    a task with the nodes of all other modules ablated (on), and with those of this module ablated (off).
               Beside it: as many random nodes of every layer.

A module that decides a task by itself keeps it when alone on, and the task is lost when it is off. Importance of a part
beside random parts of its size: Hod et al. 2022 (arXiv 2110.08058).

Knows a patched run, labels of nodes, and examples with their loss. Does not know how the partition was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from openwork import stats, structure
from openwork.patching import Reference, patched
from openwork.structure import Labels, Wiring
from openwork.tasks.task import Split, correct, losses
from openwork.verify.question import ROUNDING

PARTS = 4  # into which the examples of a split are taken, so that short prompts do not pay for long ones

Judge = Callable[[nn.Module], tuple[float, float | None]]  # a model's loss and accuracy; None where it has none
Tick = Callable[[], None]


@dataclass(frozen=True)
class Beside:
    """A figure beside the same figure of random draws: their median, least and largest value.

    p   probability of a random draw as far on the side that speaks for modules (see `stats.rank_p`)
    """

    value: float
    median: float
    low: float
    high: float
    p: float


def beside(value: float, draws: Sequence[float], side: Literal["greater", "less"]) -> Beside:
    """A figure and its null; `side` is the one that speaks for modules. Within ROUNDING, a draw counts as a tie."""
    null = np.asarray(draws, dtype=np.float64)
    p = stats.rank_p(value, null - ROUNDING if side == "less" else null + ROUNDING, side)
    return Beside(value, float(np.median(null)), float(null.min()), float(null.max()), p)


# -- the hard cut ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HardCut:
    """What deleting every weight between modules does.

    loss, accuracy                        of the whole model
    deleted, of                           nonzero weights (kernels) between modules; all between labelled nodes
    loss_cut, accuracy_cut                of the model without those between modules
    deleted_partitions                    median of what random partitions of the same sizes delete
    loss_partitions, accuracy_partitions  the cut beside theirs
    loss_weights, accuracy_weights        the cut beside as many random nonzero weights of every matrix deleted
    """

    loss: float
    accuracy: float | None
    deleted: int
    of: int
    loss_cut: float
    accuracy_cut: float | None
    deleted_partitions: int
    loss_partitions: Beside
    accuracy_partitions: Beside | None
    loss_weights: Beside
    accuracy_weights: Beside | None


def hard_cut(
    model: nn.Module, of: Wiring, labels: Labels, judge: Judge, draws: int, seed: int = 0, tick: Tick = lambda: None
) -> HardCut:
    """The model judged whole, cut apart, and cut at random, `draws` times in both ways; `tick` after every draw."""
    rng = np.random.default_rng(seed)
    there = {n: structure.size(w.detach()).cpu() != 0 for n, w in structure.weights(model, of).items()}
    gone = structure.all_crossing(of, of.partition(labels))
    many = {n: int((gone[n] & there[n]).sum()) for n in there}
    whole, cut = judge(model), judge(structure.without(model, of, gone))
    partitions, deleted, weights = [], [], []
    for _ in range(draws):
        other = structure.all_crossing(of, of.partition(structure.dealt(of, labels, rng)))
        deleted.append(sum(int((other[n] & there[n]).sum()) for n in there))
        partitions.append(judge(structure.without(model, of, other)))
        tick()
        weights.append(judge(structure.without(model, of, {n: _some(there[n], many[n], rng) for n in there})))
        tick()

    def accuracy(null: Sequence[tuple[float, float | None]]) -> Beside | None:
        known = [a for _, a in null if a is not None]
        return beside(cut[1], known, "greater") if cut[1] is not None and len(known) == len(null) else None

    return HardCut(
        whole[0], whole[1], sum(many.values()), sum(int(m.sum()) for m in there.values()), cut[0], cut[1],
        int(np.median(deleted)),
        beside(cut[0], [loss for loss, _ in partitions], "less"), accuracy(partitions),
        beside(cut[0], [loss for loss, _ in weights], "less"), accuracy(weights),
    )  # fmt: skip


def _some(there: Tensor, many: int, rng: np.random.Generator) -> Tensor:
    """A mask of so many random entries of those that are there."""
    at = np.flatnonzero(there.numpy())
    mask = torch.zeros(there.numel(), dtype=torch.bool)
    mask[torch.from_numpy(rng.choice(at, many, replace=False))] = True
    return mask.view(there.shape)


# -- on and off --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Examples that are answered in one run, and the groups of them that count as one task each.

    groups  name of the task -> places [K] of its examples in the split
    """

    split: Split
    groups: Mapping[str, Tensor]


@dataclass(frozen=True)
class Cell:
    """One module and one task.

    whole_loss, whole_accuracy  of the whole model on the task's n examples
    on_loss, on_accuracy        only this module's nodes on; p is small where it does better alone than random nodes
    off_loss, off_accuracy      this module's nodes off; p is small where it is missed more than random nodes
    """

    module: int
    task: str
    n: int
    whole_loss: float
    whole_accuracy: float
    on_loss: Beside
    on_accuracy: Beside
    off_loss: Beside
    off_accuracy: Beside


def on_off(
    model: nn.Module,
    of: Wiring,
    labels: Labels,
    reference: Reference,
    questions: Sequence[Asked],
    draws: int,
    seed: int = 0,
    tick: Tick = lambda: None,
) -> tuple[Cell, ...]:
    """Every module with every task, in order, beside `draws` random sets of nodes; `tick` after every draw."""
    rng, k = np.random.default_rng(seed), int(labels.max()) + 1
    whole = _answers(model, reference, {}, questions)
    own = _matrix(model, of, labels, reference, questions)
    null = []
    for _ in range(draws):
        null.append(_matrix(model, of, structure.dealt(of, labels, rng), reference, questions))
        tick()
    cells = []
    for c in range(k):
        for name, (n, loss, accuracy) in whole.items():
            figures = {}
            for mode, kind, at, side in (
                ("on", "loss", 1, "less"), ("on", "accuracy", 2, "greater"),
                ("off", "loss", 1, "greater"), ("off", "accuracy", 2, "less"),
            ):  # fmt: skip
                random = [m[c, mode][name][at] for m in null]
                figures[f"{mode}_{kind}"] = beside(own[c, mode][name][at], random, side)  # type: ignore[arg-type]
            cells.append(Cell(c, name, n, loss, accuracy, **figures))
    return tuple(cells)


Answers = dict[str, tuple[int, float, float]]  # task -> n, mean loss, accuracy


def _matrix(
    model: nn.Module, of: Wiring, labels: Labels, reference: Reference, questions: Sequence[Asked]
) -> dict[tuple[int, str], Answers]:
    """(module, "on" or "off") -> what the model answers then."""
    out = {}
    for c in range(int(labels.max()) + 1):
        mine = {site: label == c for site, label in of.partition(labels).items()}
        out[c, "on"] = _answers(model, reference, mine, questions)
        out[c, "off"] = _answers(model, reference, {site: ~m for site, m in mine.items()}, questions)
    return out


@torch.no_grad()
def _answers(
    model: nn.Module, reference: Reference, nodes: Mapping[str, Tensor], questions: Sequence[Asked]
) -> Answers:
    """What the model answers with only these nodes, of the sites that have any."""
    out: Answers = {}
    with patched(model, reference, nodes):
        for q in questions:
            loss, right = torch.zeros(len(q.split)), torch.zeros(len(q.split))
            for places, part in q.split.buckets(PARTS):
                logits = model(*part.inputs)
                loss[places], right[places] = losses(logits, part), correct(logits, part).float()
            for name, at in q.groups.items():
                out[name] = (len(at), float(loss[at].mean()), float(right[at].mean()))
    return out


__all__ = ["Asked", "Beside", "Cell", "HardCut", "beside", "hard_cut", "on_off"]
