"""Trimming a circuit until no single node or edge can go: what is left is one-minimal on the examples it was given.

    1  dangling nodes: those from which no path leads on to the output
    2  single edges (where asked), then nodes: the cheapest first by the gradient of the loss with respect to their
       masks, in groups that grow where they can go and shrink where they cannot
    3  again until a pass over each removes nothing

The gradient only orders the candidates; every removal is decided by an exact run at or below the target.
Knows a layout and a loss on one split. Does not know where the circuit came from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openwork.circuit import Circuit, induced_edges, leading_on
from openwork.patching import Layout, Reference, compact
from openwork.tasks.task import Split, losses

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
    patience: int = 64,
    exhaustive: int = 500,
    progress: Callable[[str], None] | None = None,
) -> Trimmed:
    """The circuit without what it does not need to stay at or below `target` nats on `split`.

    edges       whether single edges may go; False keeps it a circuit of nodes with all their edges
    patience    in circuits of more than `exhaustive` nodes and edges a pass ends after this many failures in a row
                (then `one_minimal` is False): there are thousands of edges, and the cheap ones stand first
    """
    state = _Trim(model, reference, split, target, patience, exhaustive)
    circuit = state.without_dangling(circuit)
    kinds = ("edges", "nodes") if edges else ("nodes",)
    quiet, all_tried = 0, dict.fromkeys(kinds, False)
    for kind in itertools.cycle(kinds):
        before = _size(circuit)
        circuit, all_tried[kind] = state.pass_over(circuit, kind)
        circuit = state.without_dangling(circuit)
        if progress is not None:
            counts = circuit.counts()
            progress(f"{counts['nodes']} nodes, {counts['edges']} edges after {state.runs} runs")
        quiet = quiet + 1 if _size(circuit) == before else 0
        if quiet == len(kinds):
            break
    loss = state.loss(compact(model, circuit, reference))
    return Trimmed(circuit, loss, all(all_tried.values()), state.runs)


def _size(circuit: Circuit) -> tuple[int, int]:
    counts = circuit.counts()
    return counts["nodes"], counts["edges"]


class _Trim:
    def __init__(
        self, model: nn.Module, reference: Reference, split: Split, target: float, patience: int, exhaustive: int
    ) -> None:
        self.model, self.reference, self.target = model, reference, target
        self.patience, self.exhaustive = patience, exhaustive
        self.parts, self.n, self.runs = [part for _, part in split.buckets(4)], len(split), 0

    def loss(self, layout: Layout) -> float:
        self.runs += 1
        with torch.no_grad():
            return float(self._total(layout)) / self.n

    def _total(self, layout: Layout) -> Tensor:
        return torch.stack([losses(layout(*part.inputs), part).sum() for part in self.parts]).sum()

    def pass_over(self, circuit: Circuit, kind: str) -> tuple[Circuit, bool]:
        """One pass over all nodes or edges, and whether every survivor was tried alone.

        The cheapest go first, many at a time: the group doubles where it can go and halves where it cannot, down to a
        single element, which then stays. Laid out and ordered anew whenever a fifth is gone, and before giving up on
        one: each removal changes what the others are worth, and the order is cheap beside the runs that it saves.
        """
        layout, masks, left = self._begin(circuit, kind)
        group, failed, gone = max(1, len(left) // 4), 0, 0
        stay: set[Entry] = set()
        while left:
            if self._go(layout, masks, left[:group]):
                left, gone, failed = left[group:], gone + group, 0
                group *= 2
            elif group > 1:
                group = min(group, len(left)) // 2
            elif not gone:
                stay.add(_element(layout, kind, left.pop(0)))
                failed += 1
                if failed >= self.patience and left and sum(_size(layout.circuit)) > self.exhaustive:
                    return layout.to_circuit(), False
            if gone > len(left) // 4 or (gone and group <= 1):
                layout, masks, left = self._begin(layout.to_circuit(), kind)
                left = [e for e in left if _element(layout, kind, e) not in stay]
                group, gone = max(1, len(left) // 16), 0
        return layout.to_circuit(), True

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
        if self._meets_target(layout):
            return True
        for name, at in entries:
            masks[name][at] = 1.0
        return False

    def _meets_target(self, layout: Layout) -> bool:
        """Whether the mean loss is at most the target; losses are positive, so a part of the examples can refuse."""
        self.runs += 1
        total = 0.0
        with torch.no_grad():
            for part in self.parts:
                total += float(losses(layout(*part.inputs), part).sum())
                if total > self.target * self.n:
                    return False
        return True

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


def _element(layout: Layout, kind: str, entry: Entry) -> Entry:
    """The entry of a layout's mask as the element of the graph that it is, whatever the layout."""
    name, at = entry
    index = (layout.node_index[name],) if kind == "nodes" else layout.edge_index[name]
    return name, tuple(int(ids[i]) for ids, i in zip(index, at, strict=True))


def drop_dangling(circuit: Circuit) -> Circuit:
    """The circuit without prunable nodes from which no path of kept edges leads on to the output."""
    graph = circuit.graph
    alive = leading_on(graph, circuit.edges, circuit.nodes)
    return Circuit(graph, alive, induced_edges(graph, alive, circuit.edges), circuit.origin)
