"""A circuit whose nodes have two levels each: what a node says is then yes or no, and its role a truth table.

After Gao et al. 2025 (arXiv 2511.13653, appendix C). Every node gets a step

    psi_t(x) = (1 - t) x + t (low + (high - low) sigmoid((x - threshold) / temperature))

The first threshold is the one of 1/4, 1/2, 3/4 of the node's observed range that costs least; low and high are first
the node's means below and above it. Then threshold and levels are trained while the step hardens: the temperature falls
as (1 - progress)^5, and in the end a node sends `high` where x > threshold, else `low`.

What is our own choice: the circuit's weights stay as they are; what is trained against is the circuit's distribution
over the answers, not the labels, so that the result is an account of the circuit; t rises linearly over the first half;
of the hard steps before and after training the better on the discover split is kept; only neurons (of vectors, also the
input's features) get two levels, where the paper gives them to every node, also to those that attention and norms read.
The paper has the temperature's exponent and the candidates; what else it does is not in the text that we know.

Knows a model, a circuit, a fixed reference, and the splits of a task: everything is chosen on the discover split. Does
not know how the circuit was found, nor what its nodes mean.

Shapes: n nodes of a site, N examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain.decided import JUDGED, Agreement, agreement, preferred
from openwork.explain.programs.program import Bend, Feature, Op, Program, Step, Sum, reads
from openwork.graph import Graph, Site
from openwork.patching import Reference, graph_of, is_constant, masks_of, patched
from openwork.tasks.task import Split, Task, losses

CANDIDATES = (0.25, 0.5, 0.75)  # of the observed range
Watch = Callable[[int, int], None]  # steps done, of


class BinariseSettings(BaseModel):
    """How two levels are fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(300, ge=0, description="training steps while the steps harden; 0 keeps the first levels")
    lr: float = Field(0.01, gt=0, description="learning rate, in units of each node's observed range")
    batch: int = Field(64, ge=1, description="examples per step")


@dataclass(frozen=True)
class Levels:
    """The two levels of the nodes of a site: float [n] each, of which only nodes that are `on` (bool [n]) have any.

    A node that never varied where the levels were fitted has one: `low` and `high` are the same.
    """

    on: Tensor
    threshold: Tensor
    low: Tensor
    high: Tensor

    @property
    def varies(self) -> Tensor:
        """The nodes with two different levels: bool [n]."""
        return self.on & (self.low != self.high)


@dataclass(frozen=True)
class Binarised:
    """A binarised circuit and what it cost.

    levels      site -> levels of its nodes
    nodes       how many nodes have two levels (others of a constant value keep it)
    loss        split -> task loss (nats) of the circuit, and of its binarised form
    with_circuit, with_model   split -> how often the binarised form decides as the circuit, as the whole model
    circuit_with_model         split -> how often the circuit itself decides as the whole model
    trained     whether training helped on the discover split
    """

    levels: Mapping[str, Levels]
    nodes: int
    loss: dict[str, tuple[float, float]]
    with_circuit: dict[str, Agreement]
    with_model: dict[str, Agreement]
    circuit_with_model: dict[str, Agreement]
    trained: bool


def binarise(
    model: nn.Module,
    circuit: Circuit,
    reference: Reference,
    task: Task,
    settings: BinariseSettings | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> Binarised:
    """Two levels for every kept neuron of a circuit, fitted on the discover split and judged on verify and ood.

    reference  what ablated nodes send: one value per node; UsageError where it differs by example, or where the
               circuit keeps no node that can have two levels
    seed       draws the examples of each step
    watch      told how far the work is
    """
    s = settings or BinariseSettings.model_validate({})
    graph = graph_of(model)
    if any(not is_constant(graph.site(n), v) for n, v in reference.items() if graph.site(n).module):
        raise UsageError(
            "a circuit is binarised under a fixed reference (mean, zero), not one that differs by example."
        )
    run = _Leveled(model, circuit, reference)
    split = task.split("discover").tight()
    first = run.first_levels(split)
    nodes = sum(int(v.varies.sum()) for v in first.values())
    if not nodes:
        raise UsageError(
            "the circuit keeps no neuron or feature that varies on the discover split; nothing to binarise."
        )
    told = watch or (lambda _done, _of: None)
    first = run.chosen(split, first, lambda done: told(done, nodes + s.steps))
    trained = run.trained(split, first, s, seed, lambda done: told(nodes + done, nodes + s.steps))
    better = run.cost(split, trained) < run.cost(split, first)
    levels = trained if better else first
    loss, circuits, models, before = {}, {}, {}, {}
    for name in (n for n in JUDGED if n in task.splits):
        part = task.split(name).tight()
        with torch.no_grad():
            whole, kept, two = model(*part.inputs).cpu(), run.logits(part, None), run.logits(part, levels)
        loss[name] = float(losses(kept, part).mean()), float(losses(two, part).mean())
        choices = [preferred(x, part) for x in (whole, kept, two)]
        circuits[name] = agreement(choices[2], choices[1])
        models[name] = agreement(choices[2], choices[0])
        before[name] = agreement(choices[1], choices[0])
    return Binarised(levels, nodes, loss, circuits, models, before, better)


class _Leveled:
    """One circuit, run with or without levels at its nodes."""

    def __init__(self, model: nn.Module, circuit: Circuit, reference: Reference) -> None:
        self.model, self.circuit, self.reference = model, circuit, reference
        self.graph: Graph = graph_of(model)
        self.masks = masks_of(model, circuit)
        self._target: tuple[Split, Tensor] | None = None
        self._rows: dict[str, Tensor] = {}
        self.sites = [
            s for s in self.graph.prunable
            if s.module and not s.width and (s.kind == "neuron" or (s.kind == "input" and s.axis == -1))
        ]  # fmt: skip

    def logits(
        self, split: Split, levels: Mapping[str, Levels] | None, soft: tuple[float, float] | None = None
    ) -> Tensor:
        """Logits [N, V]; soft: (t, temperature in units of high - low), without it the hard steps."""
        with leveled(self.model, levels or {}, soft), patched(self.model, self.reference, *self.masks):
            return self.model(*split.inputs)

    def first_levels(self, split: Split) -> dict[str, Levels]:
        """Levels about the middle of each kept node's range in the circuit's run."""
        seen: dict[str, Tensor] = {}
        with _watched(self.model, self.sites, seen), torch.no_grad():
            self.logits(split, None)
        out = {}
        for s in self.sites:
            rows = seen[s.name].movedim(s.axis, -1).reshape(-1, s.size)
            if len(split.inputs) == 2 and rows.shape[0] != len(split):  # of tokens, those that are read
                rows = seen[s.name][torch.arange(seen[s.name].shape[1]) <= split.inputs[1][:, None]]
            on = self.circuit.nodes[s.name].to(rows.device)
            out[s.name] = _at(rows, on, CANDIDATES[1])
            self._rows[s.name] = rows
        return out

    def chosen(self, split: Split, levels: dict[str, Levels], told: Callable[[int], None]) -> dict[str, Levels]:
        """Node by node in the graph's order, the candidate threshold with which the circuit's decisions cost least."""
        held = {n: replace(v, on=v.on & ~v.varies) for n, v in levels.items()}
        done = 0
        for s in self.sites:
            rows = self._rows[s.name]
            options = [_at(rows, levels[s.name].on, q) for q in CANDIDATES]
            for node in levels[s.name].varies.nonzero().flatten().tolist():
                tried = []
                for option in options:
                    now = {k: v.clone() for k, v in vars(held[s.name]).items()}
                    for k in now:
                        now[k][node] = vars(option)[k][node]
                    tried.append(Levels(**now))
                costs = [self.cost(split, {**held, s.name: t}) for t in tried]
                held[s.name] = tried[min(range(len(tried)), key=lambda i: (costs[i], abs(CANDIDATES[i] - 0.5)))]
                done += 1
                told(done)
        return held

    def target(self, split: Split) -> Tensor:
        """The circuit's own distribution over each example's candidates, as log-probabilities [N, 1 + m]."""
        if self._target is None or self._target[0] is not split:
            with torch.no_grad():
                self._target = split, _candidates(self.logits(split, None), split).log_softmax(1)
        return self._target[1]

    def cost(self, split: Split, levels: Mapping[str, Levels]) -> float:
        """Divergence (nats) of the binarised form's distribution over the answers from the circuit's."""
        with torch.no_grad():
            return float(_divergence(self.target(split), _candidates(self.logits(split, levels), split)))

    def trained(
        self, split: Split, first: dict[str, Levels], s: BinariseSettings, seed: int, told: Callable[[int], None]
    ) -> dict[str, Levels]:
        """The levels after training with steps that harden; `first` where there are no steps."""
        unit = {n: torch.where(v.varies, (v.high - v.low).abs(), 0.0) for n, v in first.items()}
        moves = {n: torch.zeros(3, len(v.low), requires_grad=True) for n, v in first.items()}
        optimizer = torch.optim.Adam(list(moves.values()), lr=s.lr)
        generator = torch.Generator().manual_seed(seed)
        target = self.target(split)

        def now() -> dict[str, Levels]:
            return {
                n: Levels(v.on, *(x + m * unit[n] for x, m in zip((v.threshold, v.low, v.high), moves[n], strict=True)))
                for n, v in first.items()
            }

        for step in range(s.steps):
            progress = step / s.steps
            index = torch.randperm(len(split), generator=generator)[: s.batch]
            part = split.take(index).tight()
            soft = min(1.0, 2 * progress), max(1e-3, (1 - progress) ** 5)
            loss = _divergence(target[index], _candidates(self.logits(part, now(), soft), part))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for group in optimizer.param_groups:
                group["lr"] = s.lr * (1 - progress)
            told(step + 1)
        with torch.no_grad():
            return {n: Levels(v.on, v.threshold.detach(), v.low.detach(), v.high.detach()) for n, v in now().items()}


def _at(rows: Tensor, on: Tensor, share: float) -> Levels:
    """Levels with the threshold at a share of the range of rows [anything, n], and the means on either side of it."""
    low, high = rows.amin(0), rows.amax(0)
    threshold = low + share * (high - low)
    above = rows > threshold
    mean = [
        torch.where(mask.any(0) & (high > low), (rows * mask).sum(0) / mask.sum(0).clamp_min(1), otherwise)
        for mask, otherwise in ((~above, low), (above, high))
    ]
    return Levels(on, threshold, mean[0], mean[1])


def _candidates(logits: Tensor, split: Split) -> Tensor:
    return logits.gather(1, torch.cat([split.answer[:, None], split.wrong], 1))


def _divergence(target: Tensor, logits: Tensor) -> Tensor:
    return (target.exp() * (target - logits.log_softmax(1))).sum(1).mean()


# -- hooks -----------------------------------------------------------------------------------------------------------


@contextmanager
def leveled(model: nn.Module, levels: Mapping[str, Levels], soft: tuple[float, float] | None = None) -> Iterator[None]:
    """Within the context, nodes with levels send them. Entered before `patched`, so that ablation has the last word.

    soft  (t, temperature in units of high - low); without it the steps are hard
    """
    graph, handles = graph_of(model), []
    try:
        for name, v in levels.items():
            s = graph.site(name)
            handles.append(model.get_submodule(s.module).register_forward_hook(_hook(s, v, soft)))
        yield
    finally:
        for h in handles:
            h.remove()


def _hook(site: Site, v: Levels, soft: tuple[float, float] | None) -> Callable[..., Tensor]:
    def hook(_module: nn.Module, _args: tuple[Tensor, ...], h: Tensor) -> Tensor:
        shape = [1] * h.dim()
        shape[site.axis] = site.size
        on, threshold, low, high = (x.to(h.device).view(shape) for x in (v.on, v.threshold, v.low, v.high))
        if soft is None:
            return torch.where(on, torch.where(h > threshold, high, low), h)
        t, temperature = soft
        scale = temperature * (high - low).detach().abs().clamp_min(1e-6)
        step = low + (high - low) * torch.sigmoid((h - threshold) / scale)
        return torch.where(on, (1 - t) * h + t * step, h)

    return hook


@contextmanager
def _watched(model: nn.Module, sites: list[Site], seen: dict[str, Tensor]) -> Iterator[None]:
    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _args, out: seen.__setitem__(name, out.detach())

    handles = [model.get_submodule(s.module).register_forward_hook(keep(s.name)) for s in sites]
    try:
        yield
    finally:
        for h in handles:
            h.remove()


# -- as a program ----------------------------------------------------------------------------------------------------


def with_levels(program: Program, levels: Mapping[str, Levels]) -> Program:
    """The program of the binarised circuit, from the program of the circuit: nodes become steps that are 0 or 1.

    A node is a step whose `about` is "site:node" (as lowering writes it); its levels go into the sums that read it. The
    program has to be as lowering made it: passes that fold or round change what the nodes are.
    """
    steps: list[Step] = []
    sent: dict[str, tuple[str, float, float]] = {}  # node's step -> (its 0 or 1, scale, offset)
    whole = {n for s in program.steps if not isinstance(s.op, Sum) for n in reads(s.op)}
    whole |= {a.step for a in program.answers}  # nodes that are read as numbers, not in a sum

    def put(name: str, about: str) -> None:
        bit, scale, offset = sent[name]
        steps.append(Step(name, Sum(((bit, scale),) if bit else (), offset), about))

    for s in program.steps:
        step = Step(s.name, _through(s.op, sent), s.about)
        two = _levels_at(s, levels)
        if two is None:
            steps.append(step)
            continue
        threshold, low, high = two
        if isinstance(step.op, Bend) and step.op.curve == "relu" and threshold < 0:
            low = high  # always above
        if low == high:
            sent[s.name] = "", 0.0, low
        else:
            of = s.name if isinstance(step.op, Feature) and s.name not in whole else f"{s.name}_sent"
            if isinstance(step.op, Bend) and step.op.curve == "relu" and threshold >= 0:
                of = step.op.of  # relu(z) > t where z > t, for t >= 0
            else:
                steps.append(Step(of, step.op, s.about))
            steps.append(Step(f"{s.name}_over", _over(of, threshold, steps)))
            said = f"{s.about}: {high:.3g} where 1, {low:.3g} where 0"
            steps.append(Step(f"{s.name}_on", Bend(f"{s.name}_over", "step"), said))
            sent[s.name] = f"{s.name}_on", high - low, low
        if s.name in whole:
            put(s.name, s.about)
    return _without_unread(replace(program, steps=tuple(steps)))


def _over(of: str, threshold: float, steps: list[Step]) -> Sum:
    """`of` - threshold; into one sum where `of` is one already."""
    before = next(s for s in steps if s.name == of)
    if isinstance(before.op, Sum):
        return Sum(before.op.terms, before.op.bias - threshold)
    return Sum(((of, 1.0),), -threshold)


def _levels_at(step: Step, levels: Mapping[str, Levels]) -> tuple[float, float, float] | None:
    site, _, node = step.about.rpartition(":")
    if site not in levels or not node.isdigit() or not isinstance(step.op, Bend | Feature):
        return None
    v, i = levels[site], int(node)
    return (float(v.threshold[i]), float(v.low[i]), float(v.high[i])) if bool(v.on[i]) else None


def _through(op: Op, sent: Mapping[str, tuple[str, float, float]]) -> Op:
    """A sum over nodes with levels as one over their bits; other operations as they are."""
    if not isinstance(op, Sum):
        return op
    terms, bias = [], op.bias
    for name, c in op.terms:
        bit, scale, offset = sent.get(name, (name, 1.0, 0.0))
        bias += c * offset
        if bit and c * scale:
            terms.append((bit, c * scale))
    return Sum(tuple(terms), bias)


def _without_unread(program: Program) -> Program:
    wanted = {a.step for a in program.answers}
    kept = []
    for s in reversed(program.steps):
        if s.name in wanted:
            wanted |= set(reads(s.op))
            kept.append(s)
    return replace(program, steps=tuple(reversed(kept)))


__all__ = ["BinariseSettings", "Binarised", "Levels", "binarise", "leveled", "with_levels"]
