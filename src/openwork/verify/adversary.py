"""Adversarial: the circuit goes on doing the task under the worst partial ablation of the rest that a search can find.

Random subsets of the outside (`robust`) ask what happens as a rule; an adversary asks for the one subset that breaks
the circuit. Commenters on weight-sparse circuits ask for it in place of full mean ablation, under which parts that
cancel vanish together.

Knows a Question. Does not know the method, and never judges a subset on the examples that chose it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openwork import patching, stats
from openwork.circuit import UNDECIDED, Evidence
from openwork.patched_run import Part
from openwork.tasks.task import Split, losses
from openwork.verify.question import (
    ALPHA,
    ENOUGH,
    RIVALS,
    ROUNDING,
    SAMPLE,
    Question,
    bound,
    clusters,
    decide,
    nothing,
    random_like,
    size,
    whole_pairs,
)

BUDGET = 80  # runs of the model that the search for the worst subset may spend
SHORT = 10  # the same for the search that is repeated for every random rival
STEPS = (1.0, 0.25, 0.0625)  # shares of the promising flips that are tried, besides the single best one
LISTED = 50  # ablated nodes named in the details
UNIT, NULL = "nats", f"the same search against {RIVALS} random sets of nodes in the circuit's place"


def adversarial(q: Question) -> Evidence:
    """Loss of the model when the worst set of nodes outside the circuit that a search finds is ablated.

    The search starts with nothing ablated, with everything outside, and with random subsets. At each step the gradient
    of the loss along the nodes' masks says which flips promise most; all of these, a quarter, a sixteenth and the best
    one are tried, and the best of them is taken while it helps. It chooses on one half of the verify split (up to 64
    examples), and the worst subset of all is judged on the other half: the figure is not the winner's curse.

    bound            max(2 * target, target + the whole model's loss), as for `robust`
    value            mean loss under the worst subset on the other half (95 % bootstrap over pairs)
    holds            the mean is within the bound, and p <= 0.05
    fails            the interval's lower end is above the bound, or p > 0.05
    too little data  fewer than 32 examples to judge on; no live node outside; or a mean above a bound that its interval
                     reaches
    null             as many random live nodes per site are spared in the circuit's place, and a search of equal,
                     shorter budget ablates the worst of the rest, the circuit's nodes among them. p is the rank of the
                     circuit's loss among theirs. Random subsets of the outside would not do as a null: that the worst
                     is worse than a random one says that the search works, nothing about the circuit.

    A subset that the search did not find may be worse still: "holds" is against this adversary. Nodes only are ablated;
    edges that the circuit lacks between nodes that it keeps stay as they are.
    """
    started = time.perf_counter()
    first, judge = q.verify.halves()
    outside = {n: q.live[n] & ~m for n, m in q.kept.items()}
    m = size(outside)
    if m == 0 or not len(first):
        what = "No live node is outside the circuit, so there is nothing to ablate."
        return nothing(q, "adversarial", UNIT, NULL, what, started)
    parts, rng = q.parts(whole_pairs(first, SAMPLE)), q.rng("adversarial")
    short = worst(q, parts, outside, rng, SHORT)
    found = worst(q, parts, outside, rng, BUDGET)
    found = found if found.loss >= short.loss else short
    run, whole = q.measure(judge, found.nodes), q.measure(judge)
    most = bound(q.target, whole.loss)
    interval = stats.bootstrap_mean(run.losses, clusters(judge), seed=q.seed)
    own = q.measure(judge, short.nodes).loss
    rivals = []
    for _ in range(RIVALS):
        spared = random_like(q, rng)
        others = {n: q.live[n] & ~k for n, k in spared.items()}
        rivals.append(q.measure(judge, worst(q, parts, others, rng, SHORT).nodes).loss)
    null = np.array(rivals)
    p = stats.rank_p(own, null - ROUNDING, "less")
    verdict = decide(q, met=run.loss <= most and p <= ALPHA, excluded=interval[0] > most or p > ALPHA)
    if len(judge) < ENOUGH:
        verdict = UNDECIDED
    within = "within" if run.loss <= most else "beyond"
    sentence = (
        f"The worst subset found, {found.ablated} of the {m} live nodes outside the circuit, takes the loss from "
        f"{whole.loss:.3f} to {run.loss:.3f} nats on {len(judge)} examples that did not choose it, {within} the bound "
        f"of {most:.3f} (accuracy {run.accuracy:.3f}; {found.loss:.3f} nats on those that did); a shorter search "
        f"reaches {own:.3f} against the circuit, {null.mean():.3f} on average against random nodes in its place."
    )
    return Evidence(
        claim="adversarial",
        verdict=verdict,
        sentence=sentence,
        value=run.loss,
        unit=UNIT,
        interval=interval,
        null=NULL,
        null_value=float(null.mean()),
        p=p,
        n=len(judge),
        split=q.verify.name,
        seed=q.seed,
        seconds=time.perf_counter() - started,
        details={
            "bound": most,
            "outside_nodes": m,
            "ablated": found.ablated,
            "loss_on_search_half": found.loss,
            "accuracy": run.accuracy,
            "whole_model_loss": whole.loss,
            "loss_of_short_search": own,
            "null_losses": [round(float(x), 6) for x in null],
            "searched_on": sum(len(part.split) for part in parts),
            "runs": found.runs,
            "worst": list(found.names[:LISTED]),
        },
    )


@dataclass(frozen=True)
class Worst:
    """The subset under which the loss is largest: node masks (False: ablated), its loss on the search's examples, nats.

    names  the ablated nodes, "site:node"; runs: forward and gradient runs that were spent
    """

    nodes: Mapping[str, Tensor]
    loss: float
    names: tuple[str, ...]
    runs: int

    @property
    def ablated(self) -> int:
        """How many nodes it ablates."""
        return len(self.names)


def worst(
    q: Question, parts: Sequence[Part], pool: Mapping[str, Tensor], rng: np.random.Generator, budget: int
) -> Worst:
    """Searches for the subset of `pool` (site -> bool [n]) whose ablation raises the loss on `parts` most.

    budget  runs of the model, a gradient counting as one; the first start is nothing ablated, the second everything
    """
    search = _Search(q, parts, pool)
    best, best_loss, start = search.none, -np.inf, 0
    while search.runs < budget:
        keep = search.start(start, rng)
        loss, keep = search.climb(keep, budget)
        if loss > best_loss:
            best, best_loss = keep, loss
        start += 1
    return Worst(search.masks(best), float(best_loss), search.names(best), search.runs)


class _Search:
    """Hill climbing over subsets of a pool, as one flat bool vector of its nodes: True keeps, False ablates."""

    def __init__(self, q: Question, parts: Sequence[Part], pool: Mapping[str, Tensor]) -> None:
        self.q, self.parts, self.pool, self.runs = q, parts, pool, 0
        self.flat = torch.cat(list(pool.values()))
        self.sizes = [len(m) for m in pool.values()]
        self.free = self.flat.nonzero().flatten()
        self.none = torch.ones(len(self.free), dtype=torch.bool)
        self.n = sum(len(p.split) for p in parts)

    def masks(self, keep: Tensor) -> dict[str, Tensor]:
        whole = torch.ones(len(self.flat), dtype=torch.bool)
        whole[self.free] = keep
        return dict(zip(self.pool, whole.split(self.sizes), strict=True))

    def names(self, keep: Tensor) -> tuple[str, ...]:
        return tuple(f"{n}:{i}" for n, m in self.masks(keep).items() for i in (~m).nonzero().flatten().tolist())

    def start(self, turn: int, rng: np.random.Generator) -> Tensor:
        if turn < 2:
            return self.none if turn == 0 else ~self.none
        return torch.from_numpy(rng.random(len(self.free)) < rng.uniform(0.1, 0.9))

    def loss(self, keep: Tensor) -> float:
        self.runs += 1
        masks = {n: m for n, m in self.masks(keep).items() if not bool(m.all())}
        total = 0.0
        with torch.no_grad():
            for part in self.parts:
                with patching.patched(self.q.model, part.reference, masks):
                    total += float(self._losses(part.split).sum())
        return total / self.n

    def gradient(self, keep: Tensor) -> tuple[float, Tensor]:
        """The loss, and how it changes per unit of each free node's mask."""
        self.runs += 1
        leaf, total, slope = keep.float().requires_grad_(), 0.0, torch.zeros(len(keep))
        for part in self.parts:
            with torch.enable_grad():
                whole = torch.ones(len(self.flat)).index_copy(0, self.free, leaf)
                masks = dict(zip(self.pool, whole.split(self.sizes), strict=True))
                with patching.patched(self.q.model, part.reference, masks):
                    loss = self._losses(part.split).sum()
                (g,) = torch.autograd.grad(loss, leaf)
            total, slope = total + float(loss.detach()), slope + g
        return total / self.n, slope / self.n

    def _losses(self, split: Split) -> Tensor:
        return losses(self.q.model(*split.inputs), split)

    def climb(self, keep: Tensor, budget: int) -> tuple[float, Tensor]:
        """The loss and the subset where no step that is tried helps, or where the budget ends."""
        loss, slope = self.gradient(keep)
        while self.runs < budget:
            gain = torch.where(keep, -slope, slope)  # what flipping promises: ablating a kept one, keeping an ablated
            order = torch.argsort(gain, descending=True, stable=True)
            promising = int((gain > 0).sum())
            step = None
            for many in sorted({max(1, round(share * promising)) for share in STEPS} | {1}, reverse=True):
                if promising == 0 or self.runs >= budget:
                    break
                new = keep.clone()
                new[order[:many]] = ~new[order[:many]]
                got = self.loss(new)
                if got > loss + ROUNDING and (step is None or got > step[0]):
                    step = (got, new)
            if step is None:
                break
            keep = step[1]
            loss, slope = self.gradient(keep) if self.runs < budget else (step[0], slope)
        return loss, keep


__all__ = ["Worst", "adversarial", "worst"]
