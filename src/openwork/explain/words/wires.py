"""What joins a topic to the rest: the strongest edges into it and out of it, and what its write does to the outputs.

    reads, writes  kept edges between the topic's nodes and others: of matrices by weight, strongest first; then sums
                   over the residual stream, whose weight is 1; then what queries and keys steer
    lens           the direct path alone: how much each output's logit rises with a change of the topic's nodes, by way
                   of writes, sums and the unembedding; norms are left out but for their gains (the logit lens, applied
                   to one write, as nostalgebraist 2020 applied it to the whole stream)

Knows a model's weights and a circuit. Does not run the model, and does not know what is said about a topic.

Shapes: V outputs, m nodes of the topic, n nodes of a site.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from openwork.circuit import Circuit
from openwork.explain.words.measure import edge_weights
from openwork.explain.words.topic import Topic
from openwork.explain.words.topics import name_of

MATRIX, RESIDUAL, STEERS = "matrix", "residual", "steers"
MOST = 24  # edges told in either direction


@dataclass(frozen=True)
class Wire:
    """One edge across a topic's border.

    mine    the topic's node, "site:index"; other: the node beyond
    weight  of the matrix; 1 for a sum, 0 where a query or key steers a value
    """

    mine: str
    other: str
    weight: float
    joins: str


@dataclass(frozen=True, eq=False)
class Wires:
    """What joins a topic to the rest.

    reads, writes  the strongest MOST edges in either direction; more_reads, more_writes: how many there are beyond
    lens           float [m, V] per unit of change of each node; None where no direct path leads to the outputs
    """

    reads: tuple[Wire, ...]
    writes: tuple[Wire, ...]
    more_reads: int
    more_writes: int
    lens: np.ndarray | None


def wires_of(model: nn.Module, circuit: Circuit, topic: Topic) -> Wires:
    """The edges across a topic's border, and its direct path to the outputs; see the head of this file."""
    mine, graph = set(topic.nodes), circuit.graph
    inside = {s: torch.zeros(graph.site(s).size, dtype=torch.bool) for s in {site for site, _ in topic.nodes}}
    for site, i in topic.nodes:
        inside[site][i] = True
    reads: list[Wire] = []
    writes: list[Wire] = []
    for e in graph.links:
        for found, near, far in ((reads, e.dst, e.src), (writes, e.src, e.dst)):
            if near not in inside:
                continue
            kept = circuit.edges[e.name]
            if e.kind == "sum":
                alive = kept & circuit.nodes[e.src] & circuit.nodes[e.dst] & inside[near]
                if graph.site(far).kind == "embed":  # channels that the circuit feeds from no token are constants
                    alive = alive & _fed(circuit, far)
                ends = [(i, i, 1.0) for i in alive.nonzero().flatten().tolist()]
            else:
                if near == e.dst:
                    kept = kept & inside[near][:, None]
                else:
                    kept = kept & inside[near][None, :]
                w = edge_weights(model, e.module)
                dst, src = kept.nonzero(as_tuple=True)
                pairs = zip(dst.tolist(), src.tolist(), w[dst, src].tolist(), strict=True)
                ends = [(d, s, x) if near == e.dst else (s, d, x) for d, s, x in pairs]
            joins = RESIDUAL if e.kind == "sum" else MATRIX
            found += [Wire(name_of((near, i)), name_of((far, j)), w, joins) for i, j, w in ends if (far, j) not in mine]
    for s in graph.sites:
        if not s.steers:
            continue
        for i in circuit.nodes[s.name].nonzero().flatten().tolist():
            for j in range(i // s.group * s.group, (i // s.group + 1) * s.group):
                if not bool(circuit.nodes[s.steers][j]):
                    continue
                steering, steered = (s.name, i), (s.steers, j)
                if steering in mine and steered not in mine:
                    writes.append(Wire(name_of(steering), name_of(steered), 0.0, STEERS))
                if steered in mine and steering not in mine:
                    reads.append(Wire(name_of(steered), name_of(steering), 0.0, STEERS))
    return Wires(
        _strongest(reads), _strongest(writes), max(0, len(reads) - MOST), max(0, len(writes) - MOST),
        _lens(model, circuit, topic),
    )  # fmt: skip


def _strongest(wires: Iterable[Wire]) -> tuple[Wire, ...]:
    order = {MATRIX: 0, RESIDUAL: 1, STEERS: 2}
    return tuple(sorted(wires, key=lambda w: (order[w.joins], -abs(w.weight), w.mine, w.other))[:MOST])


def _fed(circuit: Circuit, site: str) -> Tensor:
    """Channels [n] of an embedding site that keep at least one of their embedding weights."""
    rows = [circuit.edges[e.name].any(1) for e in circuit.graph.into(site) if e.kind == "weight"]
    return torch.stack(rows).any(0) if rows else torch.ones(circuit.graph.site(site).size, dtype=torch.bool)


def _lens(model: nn.Module, circuit: Circuit, topic: Topic) -> np.ndarray | None:
    """Change of the outputs per unit of change of each node [m, V], by linear steps alone."""
    graph = circuit.graph
    (output,) = [s for s in graph.sites if s.kind == "output"][-1:] or (None,)
    if output is None or any(s.width for s in graph.sites):
        return None
    last = {e.src for e in graph.into(output.name) if e.kind == "weight"}  # what the outputs are read from
    linear = {s.name for s in graph.sites if s.kind == "write" or (s.kind == "read" and s.name in last)}
    rows: dict[str, Tensor] = {}  # site -> [m, n]
    for k, (site, i) in enumerate(topic.nodes):
        rows.setdefault(site, torch.zeros(len(topic.nodes), graph.site(site).size))[k, i] = 1.0
    reached = False
    for s in graph.sites:  # in the order of computation, so all that a site is given stands before it is passed on
        if s.name not in rows:
            continue
        for e in graph.out_of(s.name):
            if e.dst not in linear and e.dst != output.name:
                continue
            if e.kind == "sum":
                gain = getattr(model.get_submodule(e.module), "weight", None)
                step = rows[s.name] * circuit.edges[e.name]
                step = step * gain.detach().cpu() if isinstance(gain, Tensor) and gain.shape == (s.size,) else step
            else:
                step = rows[s.name] @ (edge_weights(model, e.module) * circuit.edges[e.name]).T
            rows[e.dst] = rows.get(e.dst, torch.zeros(len(topic.nodes), graph.site(e.dst).size)) + step
            reached = reached or (e.dst == output.name and bool(step.any()))
    return rows[output.name].numpy() if reached else None


def channel_tokens(model: nn.Module, circuit: Circuit, words: Sequence[str], most: int = 6) -> dict[str, str]:
    """For every embedding channel that is read in a circuit, in words, the tokens that move it most: name -> text."""
    out: dict[str, str] = {}
    graph = circuit.graph
    for e in graph.links:
        if e.counts != "embedding" or e.src != "tokens":
            continue
        w = edge_weights(model, e.module) * circuit.edges[e.name]
        read = torch.zeros(graph.site(e.dst).size, dtype=torch.bool)
        for r in graph.out_of(e.dst):
            if r.kind == "sum":
                read |= circuit.edges[r.name] & circuit.nodes[r.dst]
        for c in read.nonzero().flatten().tolist():
            best = torch.sort(w[c].abs(), descending=True, stable=True).indices[:most].tolist()
            told = [f"{words[i]!r} {float(w[c, i]):+.2g}" for i in best if w[c, i] != 0 and i < len(words)]
            if told:
                out[name_of((e.dst, c))] = "token " + ", ".join(told)
    return out


__all__ = ["MATRIX", "RESIDUAL", "STEERS", "Wire", "Wires", "channel_tokens", "wires_of"]
