"""What of a circuit is explained: its nodes, its modules, itself; and random parts of the same size beside them.

Knows circuits, a model's graph and where its weights are not zero. Does not run anything, and does not know authors.

    node     every kept node that discovery might have dropped; inputs are what explanations speak of, and have none
    module   the circuit's share of each module of the run where it was taken apart (`openwork modules`); else its
             pieces: kept nodes that kept matrix weights join, by way of others too, with the queries and keys of a head
             beside the values that they steer. Sums over the residual stream join no piece: they join everything
    circuit  all of them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from openwork.circuit import Circuit
from openwork.explain.words.topic import Topic
from openwork.patching import graph_of, support

NodeId = tuple[str, int]  # site, index


def kept_nodes(circuit: Circuit) -> tuple[NodeId, ...]:
    """The kept nodes of prunable sites but inputs, in the order of the graph."""
    sites = [s.name for s in circuit.graph.prunable if s.kind != "input"]
    return tuple((name, i) for name in sites for i in circuit.nodes[name].nonzero().flatten().tolist())


def topics_of(
    circuit: Circuit, name: str, modules: Mapping[str, Mapping[str, Tensor]] | None = None
) -> tuple[Topic, ...]:
    """Nodes, then modules of two nodes or more, then the circuit itself; none where the circuit has no nodes.

    name     the circuit's, which the last topic gets
    modules  name -> the nodes [n] of each site that a module of the run has; by default the circuit's own pieces
    A module that is all of the circuit is left out: it would be explained twice.
    """
    nodes = kept_nodes(circuit)
    if not nodes:
        return ()
    if modules is None:
        parts = {f"module {k}": part for k, part in enumerate(p for p in pieces(circuit) if len(p) > 1)}
    else:
        parts = {m: tuple(n for n in nodes if n[0] in of and bool(of[n[0]][n[1]])) for m, of in modules.items()}
    return (
        *(Topic(name_of(n), "node", (n,)) for n in nodes),
        *(Topic(m, "module", part) for m, part in parts.items() if 1 < len(part) < len(nodes)),
        Topic(name, "circuit", nodes),
    )


def name_of(node: NodeId) -> str:
    """A node as files and people name it: "block0.mlp.act:17"."""
    return f"{node[0]}:{node[1]}"


def pieces(circuit: Circuit) -> tuple[tuple[NodeId, ...], ...]:
    """The kept nodes in pieces that kept matrix weights hold together, ordered by their first node."""
    graph, nodes = circuit.graph, kept_nodes(circuit)
    head: dict[NodeId, NodeId] = {n: n for n in nodes}

    def root(n: NodeId) -> NodeId:
        while head[n] != n:
            head[n] = head[head[n]]
            n = head[n]
        return n

    def join(a: NodeId, b: NodeId) -> None:
        if a in head and b in head:
            head[root(b)] = root(a)

    for e in graph.links:
        if e.kind == "weight":
            for dst, src in circuit.edges[e.name].nonzero().tolist():
                join((e.src, src), (e.dst, dst))
    for s in graph.sites:
        if s.steers:
            for i in circuit.nodes[s.name].nonzero().flatten().tolist():
                block = range(i // s.group * s.group, (i // s.group + 1) * s.group)
                for j in block:
                    join((s.name, i), (s.steers, j))
                    join((s.name, i), (s.name, j))
    by: dict[NodeId, list[NodeId]] = {}
    for n in nodes:
        by.setdefault(root(n), []).append(n)
    return tuple(tuple(part) for part in by.values())


def random_parts(model: nn.Module, circuit: Circuit, topics: Sequence[Topic], seed: int) -> tuple[Topic, ...]:
    """One random part of the model per topic, with as many nodes of every site, under the topic's name.

    Drawn without replacement within a part: from the nodes outside the circuit that have weights on either side, then
    from any with weights, then from any. A node without weights would make an easy rival.
    """
    rng, live = np.random.default_rng(seed), live_nodes(model)
    outside = {name: mask & ~circuit.nodes[name] for name, mask in live.items()}
    out = []
    for t in topics:
        many: dict[str, int] = {}
        for site, _ in t.nodes:
            many[site] = many.get(site, 0) + 1
        drawn: list[NodeId] = []
        for site, count in many.items():
            pools = (outside[site], live[site], torch.ones_like(live[site]))
            drawn += [(site, i) for i in sorted(_drawn(rng, count, pools))]
        out.append(Topic(t.name, t.kind, tuple(drawn)))
    return tuple(out)


def _drawn(rng: np.random.Generator, many: int, pools: Sequence[Tensor]) -> list[int]:
    """Indices drawn from the first pool; the next ones serve only when it runs out."""
    taken: list[int] = []
    for pool in pools:
        free = [i for i in pool.nonzero().flatten().tolist() if i not in taken]
        taken += [int(i) for i in rng.choice(free, min(many - len(taken), len(free)), replace=False)] if free else []
    return taken


def live_nodes(model: nn.Module) -> dict[str, Tensor]:
    """Per prunable site, bool [n]: nodes with a nonzero weight on each side on which the site has a weight matrix."""
    graph, where = graph_of(model), support(model)
    live = {}
    for s in graph.prunable:
        mask = torch.ones(s.size, dtype=torch.bool)
        for axis, links in ((1, graph.into(s.name)), (0, graph.out_of(s.name))):
            there = [where[e.name].any(axis) for e in links if e.kind == "weight"]
            if there:
                mask &= torch.stack(there).any(0)
        live[s.name] = mask
    return live


__all__ = ["kept_nodes", "live_nodes", "name_of", "pieces", "random_parts", "topics_of"]
