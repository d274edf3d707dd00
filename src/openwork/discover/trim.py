"""Trimming a circuit until no single node or edge can go: what is left is one-minimal on the examples it was given.

    1  dangling nodes: those from which no path leads on to the output
    2  nodes, then single edges, each in two ways: in bulk, the cheapest share by the gradient of the loss with respect
       to their masks, judged anew after every removal; then one by one
    3  from the top until a whole pass removes nothing

The gradient only orders the candidates; every removal is decided by an exact run at or below the target.
Knows a layout and a loss on one split. Does not know where the circuit came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openwork.circuit import Circuit, induced_edges
from openwork.patching import Layout, Reference, compact
from openwork.tasks.task import Split, losses

FINEST = 64  # the bulk removal ends when it fails for 1 / FINEST of what is left
Entry = tuple[str, tuple[int, ...]]  # site or link, place in its mask


@dataclass(frozen=True)
class Trimmed:
    """A trimmed circuit, its loss on the examples it was trimmed on, and what was tried.

    one_minimal   whether every remaining element was tried alone in the last pass and none could go
    runs          exact runs it took
    """

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
    patience: int = 100,
    progress: Callable[[str], None] | None = None,
) -> Trimmed:
    """The circuit without what it does not need to stay at or below `target` nats on `split`.

    edges     whether single edges may go; False keeps it a circuit of nodes with all their edges
    patience  a pass of single removals ends after this many failures in a row (then `one_minimal` is False unless
              everything was tried): large circuits have thousands of edges, and cheap ones stand first
    """
    state = _Trim(model, reference, split, target, patience)
    kinds = ("nodes", "edges") if edges else ("nodes",)
    circuit = state.without_dangling(circuit)
    complete = True
    while True:
        before, complete = _size(circuit, edges), True
        for kind in kinds:
            circuit, all_tried = state.pass_over(circuit, kind)
            complete &= all_tried
            circuit = state.without_dangling(circuit)
            if progress is not None:
                counts = circuit.counts()
                progress(f"{counts['nodes']} nodes, {counts['edges']} edges after {state.runs} runs")
        if _size(circuit, edges) == before:
            break
    return Trimmed(circuit, state.loss(compact(model, circuit, reference)), complete, state.runs)


def _size(circuit: Circuit, edges: bool) -> tuple[int, int]:
    counts = circuit.counts()
    return counts["nodes"], counts["edges"] if edges else 0


class _Trim:
    def __init__(self, model: nn.Module, reference: Reference, split: Split, target: float, patience: int) -> None:
        self.model, self.reference, self.target, self.patience = model, reference, target, patience
        self.parts, self.n, self.runs = [part for _, part in split.buckets(3)], len(split), 0

    def loss(self, layout: Layout) -> float:
        self.runs += 1
        with torch.no_grad():
            return float(self._total(layout)) / self.n

    def _total(self, layout: Layout) -> Tensor:
        return torch.stack([losses(layout(*part.inputs), part).sum() for part in self.parts]).sum()

    def pass_over(self, circuit: Circuit, kind: str) -> tuple[Circuit, bool]:
        """One pass over all nodes or edges: in bulk, then alone; and whether every survivor was tried alone."""
        circuit = self._in_bulk(circuit, kind)
        layout, masks, left = self._begin(circuit, kind)
        failed = 0
        for entry in left:
            if self._go(layout, masks, [entry]):
                failed = 0
                continue
            failed += 1
            if failed >= self.patience and failed < len(left):
                return layout.to_circuit(), False
        return layout.to_circuit(), True

    def _in_bulk(self, circuit: Circuit, kind: str) -> Circuit:
        """Removes the cheapest share again and again, each time laid out smaller; the share halves where it fails."""
        layout, masks, left = self._begin(circuit, kind)
        share = 4
        while share <= FINEST and len(left) > share:
            if self._go(layout, masks, left[: len(left) // share]):
                layout, masks, left = self._begin(layout.to_circuit(), kind)
            else:
                share *= 2
        return layout.to_circuit()

    def _begin(self, circuit: Circuit, kind: str) -> tuple[Layout, dict[str, Tensor], list[Entry]]:
        """A layout, its masks of that kind, and the elements of the circuit, cheapest first."""
        layout = compact(self.model, circuit, self.reference)
        masks = layout.nodes if kind == "nodes" else layout.edges
        live = {n: torch.ones_like(m, dtype=torch.bool) for n, m in masks.items()} if kind == "nodes" else layout.live()
        left = [(n, tuple(i)) for n, m in live.items() for i in m.nonzero().tolist()]
        if left:
            cost = self._attribution(layout, masks)
            left.sort(key=lambda e: float(cost[e[0]][e[1]]))
        return layout, masks, left

    def _go(self, layout: Layout, masks: dict[str, Tensor], entries: list[Entry]) -> bool:
        """Whether these can go together; if not, they are back."""
        for name, at in entries:
            masks[name][at] = 0.0
        if self.loss(layout) <= self.target:
            return True
        for name, at in entries:
            masks[name][at] = 1.0
        return False

    def _attribution(self, layout: Layout, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """First-order estimate of what removing each entry adds to the loss: minus the gradient at mask 1."""
        for m in masks.values():
            m.requires_grad_(True)
        try:
            grads = torch.autograd.grad(self._total(layout), list(masks.values()), allow_unused=True)
        finally:
            for m in masks.values():
                m.requires_grad_(False)
        return {n: -g if g is not None else torch.zeros_like(m) for (n, m), g in zip(masks.items(), grads, strict=True)}

    def without_dangling(self, circuit: Circuit) -> Circuit:
        """The circuit without nodes that lead nowhere, if it still meets the target (norms can feel them)."""
        trial = drop_dangling(circuit)
        if trial == circuit:
            return circuit
        return trial if self.loss(compact(self.model, trial, self.reference)) <= self.target else circuit


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
    return Circuit(graph, alive, induced_edges(graph, alive, circuit.edges), circuit.origin)
