"""Min-cut trees of a weighted graph (Gomory and Hu 1961), by Gusfield's way (1990) without contractions.

In a cut tree of n nodes, for every two nodes the lightest tree edge between them weighs what their minimum cut weighs;
and taking that edge out leaves the two sides of such a cut (this second law is what "cut tree" says beyond "equivalent
flow tree", and it needs the exchange of parents in `cut_tree`). n - 1 flows find it, with OR-tools' push-relabel.

    sum of tree edges = sum over graph edges of w_uv hop(u, v)

with hop the number of tree edges between u and v; hop(u, v) is a supergradient of the left side. Over all neurons of a
network this says little about modules: a minimum cut is not balanced, so the lightest tree edges part single weak nodes
from the rest, the tree is almost a star, and hop almost 2 everywhere. Over a few modules as nodes it tells which
interfaces are narrow.

Capacities are whole numbers to the solver: others are scaled to SCALE in the sum and rounded.

Knows weighted graphs. Does not know models, training or data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from openwork.errors import UsageError

SCALE = 2**52  # what float capacities sum to as whole numbers: far from overflow, far above rounding

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CutTree:
    """A cut tree with node 0 as its root.

    parent  node -> the next one towards the root, int64 [n]; parent[0] is 0
    weight  of the edge to the parent, float64 [n]; weight[0] is infinite, so that the root bounds no cut
    """

    parent: Whole
    weight: Floats

    @property
    def total(self) -> float:
        """Sum of all tree edges."""
        return float(self.weight[1:].sum())

    @cached_property
    def order(self) -> Whole:
        """All nodes, each after its parent."""
        below: list[list[int]] = [[] for _ in self.parent]
        for node in range(1, len(self.parent)):
            below[self.parent[node]].append(node)
        seen = [0]
        for node in seen:
            seen += below[node]
        return np.array(seen, dtype=np.int64)

    @cached_property
    def hops(self) -> Whole:
        """Number of tree edges between any two nodes, [n, n]."""
        n = len(self.parent)
        hops = np.zeros((n, n), dtype=np.int64)
        for i, node in enumerate(self.order[1:], 1):
            before = self.order[:i]
            hops[node, before] = hops[before, node] = hops[self.parent[node], before] + 1
        return hops

    @cached_property
    def min_cuts(self) -> Floats:
        """Minimum cut between any two nodes, [n, n]; infinite between a node and itself."""
        n = len(self.parent)
        cuts = np.full((n, n), np.inf)
        for i, node in enumerate(self.order[1:], 1):
            before = self.order[:i]
            cuts[node, before] = cuts[before, node] = np.minimum(cuts[self.parent[node], before], self.weight[node])
        return cuts

    def side(self, node: int) -> NDArray[np.bool_]:
        """The nodes below the edge from a node to its parent, the node included: bool [n]."""
        under = np.zeros(len(self.parent), dtype=bool)
        under[node] = True
        for other in self.order[1:]:
            under[other] |= under[self.parent[other]] and other != node
        return under

    def lightest(self, k: int) -> Whole:
        """The k parts that are left without the k - 1 lightest edges, int64 [n]; seldom modules, see the head."""
        cut = np.argsort(self.weight, kind="stable")[: k - 1]
        part = np.zeros(len(self.parent), dtype=np.int64)
        part[cut] = np.arange(1, len(cut) + 1)
        for node in self.order[1:]:
            if part[node] == 0:
                part[node] = part[self.parent[node]]
        return part


def cut_tree(graph: sparse.csr_array | Floats) -> CutTree:
    """A cut tree of an undirected graph [n, n], symmetric and not negative; its diagonal does not matter.

    Nodes that nothing joins hang on edges of weight 0. Among minimum cuts of equal weight the solver's is taken: same
    graph, same tree.
    """
    upper = sparse.coo_array(sparse.triu(sparse.csr_array(graph, dtype=np.float64), 1))
    n = int(upper.shape[0])  # type: ignore[index]
    kept = upper.data > 0
    tails, heads, sizes = upper.coords[0][kept], upper.coords[1][kept], upper.data[kept]
    whole = bool((sizes == np.rint(sizes)).all()) and sizes.sum() < SCALE
    scale = 1.0 if whole or not len(sizes) else SCALE / sizes.sum()
    flow = solver()
    for a, b in ((tails, heads), (heads, tails)):
        flow.add_arcs_with_capacity(a.astype(np.int32), b.astype(np.int32), np.rint(sizes * scale).astype(np.int64))
    parent, weight = np.zeros(n, dtype=np.int64), np.full(n, np.inf)
    ends = int(max(tails.max(), heads.max())) + 1 if len(sizes) else 0  # the solver knows nodes by their arcs only
    for s in range(1, n):
        t = int(parent[s])
        if s >= ends or t >= ends:
            weight[s] = 0.0
            continue
        flow.solve(s, t)
        value = flow.optimal_flow() / scale
        mine = np.zeros(n, dtype=bool)
        mine[list(flow.get_source_side_min_cut())] = True
        mine[s] = True
        weight[s] = value
        follow = mine & (parent == t)
        follow[s] = follow[t] = False
        parent[follow] = s
        if t and mine[parent[t]]:  # s comes between t and its parent, so that each edge stays a cut between its ends
            parent[s], parent[t] = parent[t], s
            weight[s], weight[t] = weight[t], value
    return CutTree(parent, weight)


def solver() -> Any:
    """An empty OR-tools flow problem. UsageError where OR-tools is not installed."""
    try:
        from ortools.graph.python import max_flow
    except ImportError as e:
        raise UsageError('min-cut trees need OR-tools: pip install "openwork[graph]".') from e
    return max_flow.SimpleMaxFlow()
