"""What ablating nodes or edges would cost, from gradients: estimates that order candidates, and decide nothing.

The loss is differentiated with respect to all masks at once. At level 1, the whole model, that is attribution patching
by masks; where the model is sure of its answer, or its parts back each other up, all these gradients are near zero.
Averaged over levels between 0 and 1, all masks together, they are the integrated gradient along the way from the
reference to the model (Sundararajan, Taly and Yan 2017, arXiv 1703.01365; with masks as the path: Miller, Chughtai and
Saunders 2024, arXiv 2407.08734), and sum to what lies between the two.

Knows a patched run and one split's loss. Does not know the kind of layer, nor what is decided with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openwork import patching
from openwork.circuit import Circuit
from openwork.graph import Graph
from openwork.patched_run import Part, PatchedRun
from openwork.patching import Layout
from openwork.tasks.task import Split, losses

LEVELS = (0.25, 0.5, 0.75, 1.0)
WHOLE = (1.0,)


def edge_links(graph: Graph) -> list[str]:
    """The links whose entries are edges of circuits: those of the account "block" (see `Circuit.counts`)."""
    return [e.name for e in graph.links if e.kind == "weight" and e.counts == "block"]


class LaidOut:
    """A circuit laid out under the run's reference, whichever kind that is: masks to change, losses to read.

    nodes, edges    the masks of `patching.Layout`, the same for all examples
    layout          one layout of the circuit: where the masks' entries are in the graph, and what is left
    """

    def __init__(self, run: PatchedRun, circuit: Circuit, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        once = patching.compact(run.model, circuit, run.fixed) if run.fixed is not None else None
        self.layouts = [once or Layout(run.model, circuit, part.reference) for part in self.parts]
        self.layout = self.layouts[0]
        self.nodes, self.edges = self.layout.nodes, self.layout.edges
        for other in self.layouts[1:]:
            other.nodes, other.edges = self.nodes, self.edges

    def losses(self, i: int) -> Tensor:
        """Task loss [K] of the examples of part i, nats."""
        part = self.parts[i]
        return losses(self.layouts[i](*part.split.inputs), part.split)

    def total(self) -> Tensor:
        """Summed task loss of all examples, nats; it carries gradients where the masks do."""
        return torch.stack([self.losses(i).sum() for i in range(len(self.parts))]).sum()


def node_costs(run: PatchedRun, split: Split, levels: Sequence[float] = LEVELS) -> dict[str, Tensor]:
    """First-order estimate of what ablating each node adds to the loss: site -> [n], nats per example.

    Prunable sites. Averaged over `levels`, at each of which all nodes are kept to that degree.
    """
    device = next(run.model.parameters()).device
    costs = {site.name: torch.zeros(site.size) for site in run.graph.prunable}
    for level in levels:
        gates = {n: torch.full_like(c, level, device=device).requires_grad_() for n, c in costs.items()}
        sums = [losses(run.logits(part, gates), part.split).sum() for part in run.parts(split)]
        grads = torch.autograd.grad(torch.stack(sums).sum(), list(gates.values()))
        for n, g in zip(gates, grads, strict=True):
            costs[n] -= g.cpu() / (len(levels) * len(split))
    return costs


def edge_costs(run: PatchedRun, split: Split, levels: Sequence[float] = LEVELS) -> dict[str, Tensor]:
    """First-order estimate of what ablating each edge adds to the loss: link -> [dst, src], nats per example.

    Block links; 0 where the model has no edge. Averaged over `levels`, at each of which all edges are kept to that
    degree.
    """
    laid = LaidOut(run, Circuit.whole(run.graph, run.support), run.parts(split))
    costs = {n: torch.zeros(run.support[n].shape) for n in laid.edges}
    for level in levels:
        gates = {n: torch.full_like(m, level).requires_grad_() for n, m in laid.edges.items()}
        laid.edges.update(gates)
        grads = torch.autograd.grad(laid.total(), list(gates.values()), allow_unused=True)
        for n, g in zip(gates, grads, strict=True):
            if g is not None:  # of a head that writes nothing
                costs[n] -= torch.where(run.support[n], g.cpu(), 0.0) / (len(levels) * len(split))
    return costs


__all__ = ["LEVELS", "WHOLE", "LaidOut", "edge_costs", "edge_links", "node_costs"]
