"""What is asked about a circuit, and what every check shares: measured runs, random nodes to compare with, the rule.

A check is a function of one Question and returns one Evidence. Knows a model, a circuit's masks, a reference, held-out
splits and a target. Does not know how the circuit was found: `circuit.origin` is never read.

Every verdict follows one pattern. "holds": the figure itself meets the bar, and its null does not. "fails": the 95 %
interval lies wholly beyond the bar, or the null does as well. "too little data": fewer than 32 examples, or a figure
that misses a bar its interval still reaches.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from openwork import patching, stats
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Circuit, Masks
from openwork.errors import UsageError
from openwork.tasks.task import Split, correct, losses

ENOUGH = 32  # examples; below, no claim is decided
ALPHA = 0.05
SAMPLE = 64  # examples of the fixed sample on which a circuit and its random rivals are compared
BATCH = 512  # sequences per run
ROUNDING = 1e-6  # nats; two ways of computing one loss differ by less, and a null within it counts as a tie


@dataclass(frozen=True, eq=False)
class Question:
    """Is this circuit real? Everything a check may look at.

    reference  what ablated nodes send; the same for every input (zeros or means, one value per node)
    verify     examples that discovery never saw
    ood        examples built otherwise than those of discovery and verify, or None
    target     task loss that the circuit was to reach, nats per example
    n_null     random draws per null; 19 is the least that can reach p = 0.05
    """

    model: nn.Module
    circuit: Circuit
    reference: patching.Reference
    verify: Split
    ood: Split | None
    target: float
    seed: int = 0
    n_null: int = 100

    def __post_init__(self) -> None:
        if len(self.verify) == 0:
            raise UsageError(f'the split "{self.verify.name}" is empty: there is nothing to verify on.')
        if self.n_null < 19:
            raise UsageError(f"n_null is {self.n_null}; at least 19 random draws are needed to reach p = 0.05.")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; it must not be negative.")
        if self.circuit.graph != patching.graph_of(self.model):
            raise UsageError(
                "this circuit belongs to another model: its sites and links differ from the model's graph."
            )
        uneven = [n for n, v in self.reference.items() if v.dim() != 1]
        if uneven:
            raise UsageError(
                f"the reference at {uneven[0]} has one value per input; verification compares several splits and needs "
                "one value per node, as zero_reference and mean_reference give."
            )

    @property
    def small(self) -> bool:
        """Whether there are too few examples to decide anything."""
        return len(self.verify) < ENOUGH

    def rng(self, claim: str) -> np.random.Generator:
        """Random numbers of one claim: the same whichever other claims are tested."""
        return np.random.default_rng([self.seed, zlib.crc32(claim.encode())])

    @cached_property
    def sample(self) -> Split:
        """The first SAMPLE examples of the verify split, pairs kept whole."""
        return whole_pairs(self.verify, SAMPLE)

    @cached_property
    def kept(self) -> dict[str, Tensor]:
        """Per prunable site, bool [n]: the nodes of the circuit."""
        return {s.name: self.circuit.nodes[s.name].cpu() for s in self.circuit.graph.prunable}

    @cached_property
    def live(self) -> dict[str, Tensor]:
        """Per prunable site, bool [n]: the nodes that can matter (see `live_nodes`)."""
        return live_nodes(self.model)

    @cached_property
    def whole_run(self) -> Measured:
        """The whole model on the verify split."""
        return self.measure(self.verify)

    @cached_property
    def circuit_run(self) -> Measured:
        """The circuit alone on the verify split."""
        return self.measure_circuit(self.verify)

    def measure(self, split: Split, nodes: Masks | None = None) -> Measured:
        """The model on a split, with the nodes that are False in `nodes` (site -> bool [n]) at the reference."""
        masks = {n: m for n, m in (nodes or {}).items() if not bool(m.all())}
        with patching.patched(self.model, self.reference, masks):
            return measured(self.model, split, self.model)

    def measure_circuit(self, split: Split) -> Measured:
        """The circuit alone on a split, everything outside it at the reference."""
        nodes, edges = patching.masks_of(self.model, self.circuit)
        with patching.patched(self.model, self.reference, nodes, edges):
            return measured(self.model, split, self.model)


@dataclass(frozen=True, eq=False)
class Measured:
    """One run on the N examples of a split.

    losses    [N] nats
    correct   [N] 0 or 1
    decision  [N] which of the example's answers has the largest logit: its place among them by output index, so that
              decisions of examples with different answers can be compared
    right     [N] the place of the right answer
    """

    losses: np.ndarray
    correct: np.ndarray
    decision: np.ndarray
    right: np.ndarray

    @property
    def loss(self) -> float:
        """Mean loss, nats."""
        return float(self.losses.mean())

    @property
    def accuracy(self) -> float:
        """Share of right decisions."""
        return float(self.correct.mean())


def measured(forward: Callable[..., Tensor], split: Split, model: nn.Module) -> Measured:
    """What `forward` (called like `model`) makes of a split; refuses losses that are not finite."""
    device = next(model.parameters()).device
    parts, places = [], []
    with torch.no_grad():
        for index, part in split.buckets(2 + len(split) // BATCH):
            logits = forward(*(x.to(device) for x in part.inputs)).float().cpu()
            part = part.to("cpu")
            choices = torch.cat([part.wrong, part.answer[:, None]], 1)  # a tie goes to the wrong one, as in `correct`
            best = choices.gather(1, logits.gather(1, choices).argmax(1, keepdim=True))
            place, right = ((choices < x).sum(1) for x in (best, part.answer[:, None]))
            parts.append((losses(logits, part), correct(logits, part), place, right))
            places.append(index.cpu())
    back = torch.cat(places).argsort()
    loss, good, decision, right = (torch.cat(column)[back] for column in zip(*parts, strict=True))
    if not bool(loss.isfinite().all()):
        raise UsageError(f'the model gives losses that are not finite on the split "{split.name}".')
    return Measured(loss.double().numpy(), good.double().numpy(), decision.numpy(), right.numpy())


def whole_pairs(split: Split, n: int) -> Split:
    """The first `n` examples, each together with its counterpart (so possibly one more)."""
    if len(split) <= n:
        return split
    chosen: list[int] = []
    seen: set[int] = set()
    for i, partner in enumerate(split.pair.tolist()):
        if len(chosen) >= n:
            break
        for j in (i, partner):
            if j >= 0 and j not in seen:
                seen.add(j)
                chosen.append(j)
    return split.take(torch.tensor(sorted(chosen)))


def chance_accuracy(split: Split) -> float:
    """Accuracy of a guess among the right and the wrong answers."""
    return 1 / (1 + split.wrong.shape[1])


def clusters(split: Split) -> stats.Ints:
    """A number per example, shared by the two of a pair, which are not independent."""
    return stats.pair_clusters(split.pair.cpu().numpy())


def accuracy_interval(run: Measured, split: Split) -> stats.Interval:
    """95 % Wilson interval of the accuracy, counting every pair once."""
    n = len(np.unique(clusters(split)))
    return stats.wilson(run.accuracy * n, n)


def decide(q: Question, *, met: bool, excluded: bool) -> str:
    """The verdict: `met` if figure and null both speak for the claim, `excluded` if either speaks against it."""
    if q.small:
        return UNDECIDED
    if met:
        return HOLDS
    return FAILS if excluded else UNDECIDED


def size(masks: Mapping[str, Tensor]) -> int:
    """Number of nodes in some masks."""
    return sum(int(m.sum()) for m in masks.values())


# -- random nodes to compare with ------------------------------------------------------------------------------------


def live_nodes(model: nn.Module) -> dict[str, Tensor]:
    """Per prunable site, bool [n]: nodes with a nonzero weight on each side on which the site has a weight matrix.

    In a sparse model many nodes have no weight left. Rivals drawn among them would lose without a fight.
    """
    graph, where = patching.graph_of(model), patching.support(model)
    live = {}
    for s in graph.prunable:
        mask = torch.ones(s.size, dtype=torch.bool)
        for axis, links in ((1, graph.into(s.name)), (0, graph.out_of(s.name))):
            support = [where[e.name].any(axis) for e in links if e.kind == "weight"]
            if support:
                mask &= torch.stack(support).any(0)
        live[s.name] = mask
    return live


def random_nodes(rng: np.random.Generator, how_many: int, *pools: Tensor) -> Tensor:
    """bool [n] with `how_many` nodes drawn at random from the first pool; the next ones serve only when it runs out."""
    mask = torch.zeros_like(pools[0])
    for pool in pools:
        free = (pool & ~mask).nonzero().flatten().numpy()
        take = min(how_many - int(mask.sum()), len(free))
        mask[torch.from_numpy(rng.choice(free, take, replace=False))] = True
    return mask


def random_circuits(q: Question, rng: np.random.Generator) -> Iterator[dict[str, Tensor]]:
    """Node masks with as many live nodes at every site as the circuit has; dead ones only where live ones run out."""
    others = fixed_nodes(q)
    for _ in range(q.n_null):
        drawn = {n: random_nodes(rng, int(m.sum()), q.live[n], ~q.live[n]) for n, m in q.kept.items()}
        yield {**others, **drawn}


def fixed_nodes(q: Question) -> dict[str, Tensor]:
    """Masks that the circuit has at sites that discovery may not prune: every rival gets the same."""
    nodes, _ = patching.masks_of(q.model, q.circuit)
    return {n: m for n, m in nodes.items() if n not in q.kept}
