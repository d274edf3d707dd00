"""What a circuit decides on the examples of a task, and how often something else decides the same.

A decision is the output that a run prefers among those that compete on an example: the right one and the wrong ones.
What is compared with a circuit (a program, rules, a formula) is judged by the share of examples with the same decision,
whether right or wrong. Knows a model, a circuit, a reference and splits. Does not know what it is compared with.

Shapes: N examples, A answers, V outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from openwork import stats
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Circuit, Evidence
from openwork.patched_run import PatchedRun
from openwork.patching import Reference, masks_of
from openwork.tasks.task import Split, Task

Ids = NDArray[np.int64]
JUDGED = ("verify", "ood")  # the splits on which agreement is reported; everything is chosen on "discover"


@dataclass(frozen=True)
class Agreement:
    """How often two deciders decide the same: a share of n examples, with its 95 % Wilson interval."""

    share: float
    n: int
    interval: stats.Interval


def agreement(a: Ids, b: Ids) -> Agreement:
    """The share of places at which two decisions [N] are the same."""
    same, n = int((np.asarray(a) == np.asarray(b)).sum()), len(a)
    return Agreement(same / n if n else float("nan"), n, stats.wilson(same, n))


def answers_of(task: Task) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The output indices that answer a task, ascending, and how each reads.

    Those that are right or compete in any split; a task names as many answers as it has outputs, or all outputs.
    """
    seen = {int(i) for s in task.splits.values() for i in torch.cat([s.answer.flatten(), s.wrong.flatten()]).unique()}
    ids = tuple(sorted(seen))
    if len(task.answers) == len(ids):
        return ids, task.answers
    named = ids[-1] < len(task.answers)
    return ids, tuple(task.answers[i] if named else f"output {i}" for i in ids)


def preferred(logits: Tensor, split: Split) -> Ids:
    """The output with the largest logit among an example's candidates [N]; of equal ones the lowest index.

    logits  [N, V] of all outputs
    """
    candidates = torch.cat([split.answer[:, None], split.wrong], 1).sort(1).values
    best = logits.detach().cpu().gather(1, candidates.cpu()).argmax(1, keepdim=True)
    return candidates.cpu().gather(1, best)[:, 0].numpy()


@torch.no_grad()
def logits_of(model: nn.Module, circuit: Circuit | None, reference: Reference, split: Split) -> Tensor:
    """Logits [N, V] of a circuit alone, everything outside it at the reference; without one, of the whole model."""
    if circuit is None:
        return model(*split.inputs).cpu()
    run = PatchedRun(model, reference)
    parts = run.parts(split)
    nodes, edges = masks_of(model, circuit)
    out = torch.cat([run.logits(p, nodes, edges) for p in parts]).cpu()
    return out[torch.cat([p.index for p in parts]).argsort()]


def spread(logits: NDArray[np.float64], ids: tuple[int, ...]) -> Tensor:
    """Logits [N, A] of the answers as logits [N, max id + 1] of outputs, all others at minus infinity."""
    out = torch.full((len(logits), max(ids) + 1), -torch.inf, dtype=torch.float64)
    out[:, list(ids)] = torch.from_numpy(np.asarray(logits, dtype=np.float64))
    return out


def evidence_of(
    what: str,
    whose: str,
    mine: Ids,
    theirs: Ids,
    wanted: float,
    split: Split,
    seconds: float = 0.0,
    places: Ids | None = None,
) -> Evidence:
    """That one account decides as the circuit (or the model) does on a split.

    what    the account, e.g. "program"; whose: "circuit" or "model", whose decisions are `theirs`
    wanted  share of equal decisions that the claim needs
    places  `theirs` as the place among the answers of the example, in order, where examples differ in what competes

    holds            the share reaches `wanted`, and p <= 0.05
    fails            the upper end of its 95 % interval (Wilson, over pairs) does not, or p > 0.05
    too little data  in between
    null             always the decision (with `places`, the place) that is commoner there; p is binomial, on one
                     example of every pair
    """
    same = np.asarray(mine) == np.asarray(theirs)
    clusters = stats.pair_clusters(split.pair.cpu().numpy())
    m, value = len(np.unique(clusters)), float(same.mean())
    interval = stats.wilson(value * m, m)
    chance = float(np.unique(theirs if places is None else places, return_counts=True)[1].max() / len(theirs))
    one = stats.one_per_cluster(clusters)
    p = stats.binomial_p(int(same[one].sum()), len(one), chance) if chance < 1 else 1.0
    beyond = p <= 0.05 or chance == 1
    decides = "decide" if what.endswith("s") else "decides"  # rules do, a program does
    verdict = HOLDS if value >= wanted and beyond else FAILS if interval[1] < wanted or not beyond else UNDECIDED
    return Evidence(
        claim=f"{what}_decides_as_{whose}" + ("" if split.name == "verify" else f"_{split.name}"),
        verdict=verdict,
        sentence=f"The {what} {decides} as the {whose} does on {value:.1%} of {len(same)} examples of the {split.name} "
        f"split (95 % {interval[0]:.1%} to {interval[1]:.1%}; wanted {wanted:.0%}).",
        value=value,
        unit="share of decisions",
        interval=interval,
        null="always the decision that is commoner there",
        null_value=chance,
        p=p,
        n=len(same),
        split=split.name,
        seed=0,
        seconds=seconds,
    )


__all__ = ["JUDGED", "Agreement", "agreement", "answers_of", "evidence_of", "logits_of", "preferred", "spread"]
