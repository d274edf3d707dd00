"""The values that travel: Scores, Circuit, Evidence, Explanation. None knows modules, files, tasks or devices.

    after        a Circuit gains
    discover     its masks and `origin` (and Scores beside it, where the method ranks)
    verify       `evidence`: one per claim (sufficient, necessary, ...: `verify.VERIFIERS`) and control, with its null
    explain      `explanations`, each with its own held-out evidence
    views        nothing: they only read

A circuit is a claim about a model: *these nodes and edges, on this task, do this*. Its masks are one bool tensor per
site (nodes [n]) and one per link (edges [dst, src], or [n] on the residual stream). All values are immutable: every
operation returns a new one, and the tensors inside are never written to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from openwork.errors import UsageError
from openwork.graph import Graph

Masks = Mapping[str, Tensor]  # site or link name -> mask (bool when decided, float while being learned)

HOLDS, FAILS, UNDECIDED = "holds", "fails", "too little data"


@dataclass(frozen=True)
class Evidence:
    """One tested claim about a circuit.

    claim       the property, e.g. "sufficient"
    verdict     "holds", "fails" or "too little data"
    sentence    the result in one plain sentence
    value       the effect measured, in `unit`
    interval    95 % interval of `value` (nan where none can be given)
    null        what it was compared with, in words; `null_value` is how large the effect is there
    p           probability of a value as extreme under the null (nan where the null gives none)
    n           number of examples behind `value`
    split       the data it was measured on; never the one that found the circuit
    """

    claim: str
    verdict: str
    sentence: str
    value: float
    unit: str
    interval: tuple[float, float]
    null: str
    null_value: float
    p: float
    n: int
    split: str
    seed: int
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.verdict in (HOLDS, FAILS, UNDECIDED), self.verdict


@dataclass(frozen=True)
class Explanation:
    """One account of what a node, module or circuit does: in words (`text`) or as code that runs (`program`).

    predicate  where it expects activity, as plain data that can be executed (see `explain.words.predicates`); {} if it
               is in words alone
    details    what else its author said, field by field: what is read, computed, written, and so on
    """

    subject: str
    author: str
    text: str = ""
    program: str = ""
    evidence: tuple[Evidence, ...] = ()
    predicate: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def supported(self) -> bool | None:
        """Whether it beat what it was compared with: the verdict on its first evidence; None while there is none."""
        return self.evidence[0].verdict == HOLDS if self.evidence else None


@dataclass(frozen=True)
class Scores:
    """A ranking of nodes or of edges; larger means more worth keeping. Not yet a decision.

    values  float tensors: site -> [n] ranks nodes, link -> [dst, src] or [n] ranks edges; never both kinds at once
    unit    what a score is, e.g. "nats of loss"
    """

    graph: Graph
    values: Mapping[str, Tensor]
    unit: str
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sites, links = self.values.keys() & self.graph.by_site.keys(), self.values.keys() & self.graph.by_link.keys()
        if len(sites) + len(links) < len(self.values) or (sites and links):
            raise UsageError("scores rank either sites or links of their graph, and nothing else.")

    @property
    def of_edges(self) -> bool:
        """Whether edges are ranked, not nodes."""
        return bool(self.values.keys() & self.graph.by_link.keys())

    def above(self, threshold: float) -> dict[str, Tensor]:
        """Masks of everything scored above the threshold; sites without scores are kept whole."""
        return self._masks(lambda v: v > threshold)

    def top(self, k: int) -> dict[str, Tensor]:
        """Masks of the k best-scored nodes (or edges) over all sites (or links); ties fall in the graph's order."""
        names = self.names()
        flat = torch.cat([self.values[n].flatten() for n in names]).cpu()
        keep = torch.zeros(flat.numel(), dtype=torch.bool)
        keep[torch.argsort(flat, descending=True, stable=True)[: max(0, k)]] = True
        parts = keep.split([self.values[n].numel() for n in names])
        return self._unranked() | {n: m.view(self.values[n].shape) for n, m in zip(names, parts, strict=True)}

    def names(self) -> list[str]:
        """The ranked sites or links, in the graph's order."""
        items = self.graph.links if self.of_edges else self.graph.sites
        return [x.name for x in items if x.name in self.values]

    def circuit(
        self, masks: Masks, support: Masks, origin: Mapping[str, Any] | None = None, reached: bool = True
    ) -> Circuit:
        """The circuit of some of these nodes or edges (see `Circuit.from_nodes` and `Circuit.from_edges`)."""
        if self.of_edges:
            return Circuit.from_edges(self.graph, masks, support, origin or self.origin, reached)
        return Circuit.from_nodes(self.graph, masks, support, origin or self.origin)

    def _unranked(self) -> dict[str, Tensor]:
        return {} if self.of_edges else {s.name: torch.ones(s.size, dtype=torch.bool) for s in self.graph.sites}

    def _masks(self, decide: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return self._unranked() | {n: decide(v).cpu() for n, v in self.values.items()}


@dataclass(frozen=True, eq=False)
class Circuit:
    """A decision: which nodes and which edges of a graph are kept. See the table at the head of this file.

    nodes   site name -> bool [n], for every site
    edges   link name -> bool [dst, src] or [n], for every link
    origin  how it was found: method, settings, seed, split, code version, digest of the model's weights
    """

    graph: Graph
    nodes: Mapping[str, Tensor]
    edges: Mapping[str, Tensor]
    origin: Mapping[str, Any] = field(default_factory=dict)
    evidence: tuple[Evidence, ...] = ()
    explanations: tuple[Explanation, ...] = ()

    def __post_init__(self) -> None:
        for kind, masks, items in (
            ("site", self.nodes, {s.name: (s.size,) for s in self.graph.sites}),
            ("link", self.edges, {e.name: e.shape for e in self.graph.links}),
        ):
            for name in items.keys() ^ masks.keys():
                have = "has no mask" if name in items else "is not in the graph"
                raise UsageError(f"circuit: {kind} {name} {have}; every {kind} of the graph needs exactly one mask.")
            for name, shape in items.items():
                m = masks[name]
                if m.dtype != torch.bool or tuple(m.shape) != tuple(shape):
                    raise UsageError(
                        f"circuit: the mask of {kind} {name} is {m.dtype} {tuple(m.shape)}; "
                        f"expected torch.bool {tuple(shape)}."
                    )

    # -- makers ----------------------------------------------------------------------------------------------------

    @staticmethod
    def from_nodes(graph: Graph, nodes: Masks, support: Masks, origin: Mapping[str, Any] | None = None) -> Circuit:
        """The circuit of some nodes: its edges are the nonzero weights that join two kept nodes.

        nodes    site -> bool [n]; a site that is left out is kept whole
        support  link -> bool, where the model's weight is nonzero (see `patching.support`)
        """
        full = {s.name: nodes.get(s.name, torch.ones(s.size, dtype=torch.bool)).bool().cpu() for s in graph.sites}
        return Circuit(graph, full, induced_edges(graph, full, support), origin or {})

    @staticmethod
    def from_edges(
        graph: Graph, edges: Masks, support: Masks, origin: Mapping[str, Any] | None = None, reached: bool = True
    ) -> Circuit:
        """The circuit of some edges: its nodes are those from which a path of kept edges leads on to the output.

        edges    link -> bool of its mask's shape; a link that is left out is kept whole
        support  link -> bool, where the model's weight is nonzero (see `patching.support`)
        reached  whether a path from an input has to lead to a node as well. Where the reference belongs to each
                 example, a node that none leads to carries what it would carry ablated; under a fixed reference it
                 carries a constant of its own, such as its bias, which the circuit may need
        """
        kept = {e.name: support[e.name].bool().cpu() for e in graph.links}
        kept = {n: m & edges[n].bool().cpu() if n in edges else m for n, m in kept.items()}
        nodes = connected(graph, kept) if reached else leading_on(graph, kept)
        return Circuit(graph, nodes, induced_edges(graph, nodes, kept), origin or {})

    @staticmethod
    def whole(graph: Graph, support: Masks) -> Circuit:
        """Everything kept."""
        return Circuit.from_nodes(graph, {}, support)

    @staticmethod
    def empty(graph: Graph) -> Circuit:
        """Nothing kept."""
        return Circuit(
            graph,
            {s.name: torch.zeros(s.size, dtype=torch.bool) for s in graph.sites},
            {e.name: torch.zeros(e.shape, dtype=torch.bool) for e in graph.links},
        )

    # -- set algebra -----------------------------------------------------------------------------------------------

    def _with(self, other: Circuit, op: Callable[[Tensor, Tensor], Tensor]) -> Circuit:
        if self.graph != other.graph:
            raise UsageError("two circuits can only be combined when they belong to the same graph.")
        return Circuit(
            self.graph,
            {n: op(m, other.nodes[n]) for n, m in self.nodes.items()},
            {n: op(m, other.edges[n]) for n, m in self.edges.items()},
        )

    def __and__(self, other: Circuit) -> Circuit:
        return self._with(other, torch.logical_and)

    def __or__(self, other: Circuit) -> Circuit:
        return self._with(other, torch.logical_or)

    def __sub__(self, other: Circuit) -> Circuit:
        return self._with(other, lambda a, b: a & ~b)

    def __invert__(self) -> Circuit:
        return Circuit(self.graph, {n: ~m for n, m in self.nodes.items()}, {n: ~m for n, m in self.edges.items()})

    def __eq__(self, other: object) -> bool:
        """Same graph, same nodes, same edges; origin and evidence do not enter."""
        if not isinstance(other, Circuit):
            return NotImplemented
        return (
            self.graph == other.graph
            and all(torch.equal(m, other.nodes[n]) for n, m in self.nodes.items())
            and all(torch.equal(m, other.edges[n]) for n, m in self.edges.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        """Number of kept edges over all links; `counts` tells them apart."""
        return sum(int(m.sum()) for m in self.edges.values())

    def __bool__(self) -> bool:
        return True  # an empty circuit is still a circuit

    def overlap(self, other: Circuit) -> float:
        """len(a & b) / len(a | b) of two circuits; 1 where both are empty."""
        union = len(self | other)
        return len(self & other) / union if union else 1.0

    # -- accounts --------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Kept nodes (of prunable sites) and kept edges by account.

        `edges` follows the rule of Gao et al. 2025 (arXiv 2511.13653, section 2.2): nonzero weights of the blocks
        between kept nodes. `embedding_edges` and `unembedding_edges` stand apart (of the embedding, only channels that
        a kept node reads); residual sums are not edges. A kernel of a convolution is one edge, however many of its
        weights are left.
        """
        by: dict[str, int] = {}
        for e in self.graph.links:
            kept = self.edges[e.name]
            if e.counts == "embedding":
                readers = [self.edges[r.name] for r in self.graph.out_of(e.dst) if r.kind == "sum"]
                kept = kept[torch.stack(readers).any(0)] if readers else kept
            by[e.counts] = by.get(e.counts, 0) + int(kept.sum())
        return {
            "nodes": sum(int(self.nodes[s.name].sum()) for s in self.graph.prunable),
            "edges": by.get("block", 0),
            "embedding_edges": by.get("embedding", 0),
            "unembedding_edges": by.get("unembedding", 0),
        }

    def with_evidence(self, *evidence: Evidence) -> Circuit:
        """The same circuit with more evidence; a claim tested again replaces its older evidence."""
        new = {e.claim for e in evidence}
        return replace(self, evidence=tuple(e for e in self.evidence if e.claim not in new) + evidence)

    def with_explanations(self, *explanations: Explanation) -> Circuit:
        """The same circuit with more explanations."""
        return replace(self, explanations=self.explanations + explanations)

    def with_origin(self, **more: Any) -> Circuit:
        """The same circuit with more said about how it was found."""
        return replace(self, origin={**self.origin, **more})


def induced_edges(graph: Graph, nodes: Masks, support: Masks) -> dict[str, Tensor]:
    """Per link, the supported edges whose two ends are both kept."""
    edges = {}
    for e in graph.links:
        src, dst = nodes[e.src], nodes[e.dst]
        ends = src & dst if e.kind == "sum" else dst[:, None] & src[None, :]
        edges[e.name] = ends & support[e.name].bool().cpu()
    return edges


def leading_on(graph: Graph, edges: Masks, nodes: Masks | None = None) -> dict[str, Tensor]:
    """The nodes from which a path of kept edges leads to a site that is not prunable; those sites stay as they are.

    Nodes that steer others (queries and keys) have no edge to them: they lead on where a node of the group that they
    steer does.

    nodes  site -> bool [n] to begin with; by default all
    """
    alive = {s.name: nodes[s.name].clone() if nodes else torch.ones(s.size, dtype=torch.bool) for s in graph.sites}
    for s in reversed(graph.sites):
        if not s.prunable:
            continue
        leads = torch.zeros(s.size, dtype=torch.bool)
        for e in graph.out_of(s.name):
            kept = edges[e.name]
            leads |= (kept & alive[e.dst]) if e.kind == "sum" else (kept & alive[e.dst][:, None]).any(0)
        if s.steers:
            leads |= alive[s.steers].view(-1, s.group).any(1).repeat_interleave(s.group)
        alive[s.name] &= leads
    return alive


def connected(graph: Graph, edges: Masks) -> dict[str, Tensor]:
    """The nodes on a path of kept edges from an input to the output; sites that are not prunable are kept whole.

    A site that no link enters is an input, unless others steer it: its nodes are reached where one of those is.
    """
    alive = {s.name: torch.ones(s.size, dtype=torch.bool) for s in graph.sites}
    for s in graph.sites:
        links, steering = graph.into(s.name), [t for t in graph.sites if t.steers == s.name]
        if not s.prunable or not (links or steering):
            continue
        reached = torch.zeros(s.size, dtype=torch.bool)
        for t in steering if not links else []:
            reached |= alive[t.name].view(-1, t.group).any(1).repeat_interleave(t.group)
        for e in links:
            kept = edges[e.name]
            reached |= (kept & alive[e.src]) if e.kind == "sum" else (kept & alive[e.src]).any(1)
        alive[s.name] = reached
    return leading_on(graph, edges, alive)
