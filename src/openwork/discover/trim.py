"""Trimming a circuit until no single node or edge can go: what is left is one-minimal on the examples it was given.

    1  dangling nodes: those from which no path leads on to the output
    2  nodes, then single edges: cheapest first by the gradient of the loss with respect to their mask, in groups that
       double while removal succeeds and halve when it fails, down to single ones
    3  from the top until a whole pass removes nothing

The gradient only orders the candidates; every removal is decided by an exact run at or below the target.
Knows a layout and a loss on one split. Does not know where the circuit came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openwork.circuit import Circuit
from openwork.patching import Layout, Reference, compact
from openwork.tasks.task import Split, losses


@dataclass(frozen=True)
class Trimmed:
    """A trimmed circuit, its loss on the examples it was trimmed on, and whether the last pass removed nothing."""

    circuit: Circuit
    loss: float
    one_minimal: bool
    runs: int


def trim(
    model: nn.Module,
    circuit: Circuit,
    reference: Reference,
    split: Split,
    target: float,
    edges: bool = True,
    max_runs: int = 20_000,
    progress: Callable[[str], None] | None = None,
) -> Trimmed:
    """The circuit without what it does not need to stay at or below `target` nats on `split`.

    edges     whether single edges may go; False keeps it a circuit of nodes with all their edges
    max_runs  stop after this many exact runs (then `one_minimal` is False); counted, not timed, to stay deterministic
    """
    state = _Trim(model, reference, split, target, max_runs)
    kinds = ("nodes", "edges") if edges else ("nodes",)
    circuit = state.without_dangling(circuit)
    while True:
        before = _size(circuit, edges)
        for kind in kinds:
            circuit = state.pass_over(circuit, kind)
            circuit = state.without_dangling(circuit)
            if progress is not None:
                counts = circuit.counts()
                progress(f"{counts['nodes']} nodes, {counts['edges']} edges after {state.runs} runs")
        if _size(circuit, edges) == before or state.runs >= max_runs:
            break
    done = state.runs < max_runs
    return Trimmed(circuit, state.loss(compact(model, circuit, reference)), done, state.runs)


def _size(circuit: Circuit, edges: bool) -> tuple[int, int]:
    counts = circuit.counts()
    return counts["nodes"], counts["edges"] if edges else 0


class _Trim:
    def __init__(self, model: nn.Module, reference: Reference, split: Split, target: float, max_runs: int) -> None:
        self.model, self.reference, self.split = model, reference, split
        self.target, self.max_runs, self.runs = target, max_runs, 0

    def loss(self, layout: Layout) -> float:
        self.runs += 1
        with torch.no_grad():
            return float(losses(layout(*self.split.inputs), self.split).mean())

    def pass_over(self, circuit: Circuit, kind: str) -> Circuit:
        """One pass over all nodes or edges: groups first, then every survivor alone."""
        layout = compact(self.model, circuit, self.reference)
        masks = layout.nodes if kind == "nodes" else layout.edges
        live = {n: torch.ones_like(m, dtype=torch.bool) for n, m in masks.items()} if kind == "nodes" else layout.live()
        where = [(n, tuple(i)) for n, m in live.items() for i in m.nonzero().tolist()]
        cost = _attribution(layout, masks, self.split)
        where.sort(key=lambda w: float(cost[w[0]][w[1]]))
        i, size = 0, max(1, len(where) // 8)
        while i < len(where) and self.runs < self.max_runs:
            group = where[i : i + size]
            for name, at in group:
                masks[name][at] = 0.0
            if self.loss(layout) <= self.target:
                i += len(group)
                size *= 2
                continue
            for name, at in group:
                masks[name][at] = 1.0
            if len(group) == 1:
                i += 1
            size = max(1, len(group) // 4)
        return layout.to_circuit()

    def without_dangling(self, circuit: Circuit) -> Circuit:
        """The circuit without nodes that lead nowhere, if it still meets the target (norms can feel them)."""
        trial = drop_dangling(circuit)
        if trial == circuit:
            return circuit
        return trial if self.loss(compact(self.model, trial, self.reference)) <= self.target else circuit


def _attribution(layout: Layout, masks: dict[str, Tensor], split: Split) -> dict[str, Tensor]:
    """First-order estimate of what removing each entry adds to the loss: minus the gradient at mask 1, nats."""
    for m in masks.values():
        m.requires_grad_(True)
    try:
        grads = torch.autograd.grad(
            losses(layout(*split.inputs), split).mean(), list(masks.values()), allow_unused=True
        )
    finally:
        for m in masks.values():
            m.requires_grad_(False)
    return {n: -g if g is not None else torch.zeros_like(m) for (n, m), g in zip(masks.items(), grads, strict=True)}


def drop_dangling(circuit: Circuit) -> Circuit:
    """The circuit without prunable nodes from which no path of kept edges leads to a site that is not prunable.

    Nodes that steer others (queries and keys) have no edge to them: they lead on where a node of the group that they
    steer is alive.
    """
    graph = circuit.graph
    alive = {s.name: circuit.nodes[s.name].clone() for s in graph.sites}
    for s in reversed(graph.sites):
        if not s.prunable:
            continue
        leads = torch.zeros(s.size, dtype=torch.bool)
        for e in graph.out_of(s.name):
            kept = circuit.edges[e.name]
            leads |= (kept & alive[e.dst]) if e.kind == "sum" else (kept & alive[e.dst][:, None]).any(0)
        if s.steers:
            leads |= alive[s.steers].view(-1, s.group).any(1).repeat_interleave(s.group)
        alive[s.name] &= leads
    nodes = alive
    edges = {}
    for e in graph.links:
        ends = nodes[e.src] & nodes[e.dst] if e.kind == "sum" else nodes[e.dst][:, None] & nodes[e.src][None, :]
        edges[e.name] = circuit.edges[e.name] & ends
    return Circuit(graph, nodes, edges, circuit.origin)
