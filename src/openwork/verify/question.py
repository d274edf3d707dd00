"""What is asked about a circuit, and what every check shares: measured runs, random nodes to compare with, the rule.

A check is a function of one Question and returns one Evidence. Knows a model, a circuit's masks, a reference, held-out
splits and a target. Does not know how the circuit was found: `circuit.origin` is never read.

Every verdict follows one pattern. "holds": the figure itself meets the bar, and its null does not. "fails": the 95 %
interval lies wholly beyond the bar, or the null does as well. "too little data": fewer than 32 examples, or a figure
that misses a bar its interval still reaches.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from openwork import patching, stats
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Circuit, Evidence, Masks
from openwork.errors import UsageError, unknown
from openwork.patched_run import KINDS, Part, PatchedRun
from openwork.tasks.task import Split, correct, losses

ENOUGH = 32  # examples; below, no claim is decided
ALPHA = 0.05
SAMPLE = 64  # examples of the fixed sample on which a circuit and its random rivals are compared
BATCH = 512  # sequences per run
RIVALS = 19  # random draws where one draw is dear: the least that can reach ALPHA, and then only if none is as good
ROUNDING = 1e-6  # nats; two ways of computing one loss differ by less, and a null within it counts as a tie


@dataclass(frozen=True, eq=False)
class Question:
    """Is this circuit real? Everything a check may look at.

    reference  what ablated nodes send: the same for every input (zeros or means, one value [n] per node, or [n, width]
               at a site whose nodes are vectors); or a kind that is worked out for every example, "counterfactual"
               (what the example's pair sends) or "resample" (what another example of the split sends)
    verify     examples that discovery never saw
    ood        examples built otherwise than those of discovery and verify, or None
    target     task loss that the circuit was to reach, nats per example
    n_null     random draws per null; 19 is the least that can reach p = 0.05
    others     held-out examples of other tasks of the same model, by name of the task
    """

    model: nn.Module
    circuit: Circuit
    reference: patching.Reference | str
    verify: Split
    ood: Split | None
    target: float
    seed: int = 0
    n_null: int = 100
    others: Mapping[str, Split] = field(default_factory=dict)

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
        if isinstance(self.reference, str):
            if self.reference not in KINDS:
                raise unknown("kind of reference", self.reference, KINDS)
            if self.reference == "counterfactual":
                for split in (self.verify, *([self.ood] if self.ood is not None else []), *self.others.values()):
                    split.counterfactual()  # refuses a split with an example that has no pair
            return
        graph = self.circuit.graph
        uneven = [n for n, v in self.reference.items() if not patching.is_constant(graph.site(n), v)]
        if uneven:
            raise UsageError(
                f"the reference at {uneven[0]} has one value per input; verification compares several splits and needs "
                "one value per node, as zero_reference and mean_reference give, or the name of a kind that is worked "
                f"out for every example: {' or '.join(KINDS)}."
            )

    @property
    def fixed(self) -> patching.Reference:
        """The reference where it is the same for every example; refuses where it is not."""
        if isinstance(self.reference, str):
            raise UsageError(
                f'the reference "{self.reference}" is another one for every example; bounds on what a network can do '
                "need a fixed one: zeros or means."
            )
        return self.reference

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
        return self._run(split, {n: m for n, m in (nodes or {}).items() if not bool(m.all())})

    def measure_circuit(self, split: Split) -> Measured:
        """The circuit alone on a split, everything outside it at the reference."""
        return self._run(split, *patching.masks_of(self.model, self.circuit))

    def _run(self, split: Split, nodes: Masks, edges: Masks | None = None) -> Measured:
        if not isinstance(self.reference, str):
            with patching.patched(self.model, self.reference, nodes, edges):
                return measured(self.model, split, self.model)
        return judged(split, (self._logits(part, nodes, edges) for part in self.parts(split)))

    def _logits(self, part: Part, nodes: Masks, edges: Masks | None) -> tuple[Tensor, Split, Tensor]:
        with torch.no_grad(), patching.patched(self.model, part.reference, nodes, edges):
            return part.index, part.split, self.model(*part.split.inputs)

    def parts(self, split: Split) -> Sequence[Part]:
        """The split in parts that are run at once, each with the reference that its ablated nodes send."""
        return self._patched_run.parts(split, 2 + len(split) // BATCH)

    @cached_property
    def _patched_run(self) -> PatchedRun:
        return PatchedRun(self.model, self.reference, self.seed)


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

    def run(part: Split) -> Tensor:
        with torch.no_grad():
            return forward(*(x.to(device) for x in part.inputs))

    return judged(split, ((index, part, run(part)) for index, part in split.buckets(2 + len(split) // BATCH)))


def judged(split: Split, runs: Iterable[tuple[Tensor, Split, Tensor]]) -> Measured:
    """What the logits of a split's parts say.

    runs  per part: the places [K] of its examples in the split, the examples, their logits [K, V]; each example once
    """
    parts, places = [], []
    for index, part, out in runs:
        logits, part = out.float().cpu(), part.to("cpu")
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


def bound(target: float, whole_loss: float) -> float:
    """The loss, nats, that a model with parts outside the circuit ablated may reach: twice the target, or the target on
    top of the whole model's own loss where that is larger."""
    return max(2 * target, target + whole_loss)


def nothing(q: Question, claim: str, unit: str, null: str, sentence: str, started: float, split: str = "") -> Evidence:
    """The evidence of a claim about which there is nothing to test: too little data, no figure, and why."""
    nan = float("nan")
    return Evidence(
        claim, UNDECIDED, sentence, nan, unit, stats.NO_INTERVAL, null, nan, nan, 0, split or q.verify.name, q.seed,
        time.perf_counter() - started,
    )  # fmt: skip


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
    fixed = fixed_nodes(q)
    for _ in range(q.n_null):
        yield {**fixed, **random_like(q, rng)}


def random_like(q: Question, rng: np.random.Generator) -> dict[str, Tensor]:
    """Per prunable site, as many random live nodes as the circuit has; dead ones only where live ones run out."""
    return {n: random_nodes(rng, int(m.sum()), q.live[n], ~q.live[n]) for n, m in q.kept.items()}


def fixed_nodes(q: Question) -> dict[str, Tensor]:
    """Masks that the circuit has at sites that discovery may not prune: every rival gets the same."""
    nodes, _ = patching.masks_of(q.model, q.circuit)
    return {n: m for n, m in nodes.items() if n not in q.kept}
