"""Circuits are sets of nodes and edges: the laws of set algebra, and the accounts that follow from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openwork.circuit import HOLDS, Circuit, Evidence, Explanation, Scores
from openwork.errors import UsageError
from openwork.graph import Graph, Link, Site

ACCOUNTS = ("block", "embedding", "unembedding", "residual")


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A few sites in order, joined forwards by matrices and by sums of equal width."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    prunable = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    sites = [Site(f"s{i}", n, f"m{i}", "neuron", i, p) for i, (n, p) in enumerate(zip(sizes, prunable, strict=True))]
    links = []
    for i, a in enumerate(sites):
        for b in sites[i + 1 :]:
            if not draw(st.booleans()):
                continue
            counts = draw(st.sampled_from(ACCOUNTS))
            if a.size == b.size and draw(st.booleans()):
                links.append(Link(f"{a.name}+{b.name}", a.name, b.name, b.module, (a.size,), "sum", counts))
            else:
                links.append(Link(f"{a.name}>{b.name}", a.name, b.name, b.module, (b.size, a.size), "weight", counts))
    return Graph(tuple(sites), tuple(links))


def draw_masks(draw: st.DrawFn, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """One bool tensor per name."""
    out = {}
    for name, shape in shapes.items():
        n = int(torch.Size(shape).numel())
        out[name] = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool).view(shape)
    return out


def node_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {s.name: (s.size,) for s in graph.sites}


def edge_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {e.name: e.shape for e in graph.links}


@st.composite
def circuits(draw: st.DrawFn, n: int) -> tuple[Circuit, ...]:
    """n circuits of one graph, nodes and edges drawn independently."""
    graph = draw(graphs())
    return tuple(
        Circuit(graph, draw_masks(draw, node_shapes(graph)), draw_masks(draw, edge_shapes(graph))) for _ in range(n)
    )


@given(circuits(3))
def test_set_algebra(abc: tuple[Circuit, ...]) -> None:
    a, b, c = abc
    whole, empty = a | ~a, a & ~a
    assert a & b == b & a
    assert a | b == b | a
    assert (a & b) & c == a & (b & c)
    assert (a | b) | c == a | (b | c)
    assert a & (b | c) == (a & b) | (a & c)
    assert a | (b & c) == (a | b) & (a | c)
    assert ~(a & b) == ~a | ~b
    assert ~(a | b) == ~a & ~b
    assert ~~a == a
    assert a - b == a & ~b
    assert a & a == a == a | a
    assert a | (a & b) == a
    assert a & whole == a == a | empty
    assert empty == Circuit.empty(a.graph)
    assert len(empty) == 0


@given(circuits(2))
def test_sizes(ab: tuple[Circuit, ...]) -> None:
    a, b = ab
    entries = sum(int(torch.Size(e.shape).numel()) for e in a.graph.links)
    assert len(a) + len(~a) == entries
    assert len(a | b) == len(a) + len(b) - len(a & b)
    assert len(a - b) == len(a) - len(a & b)
    assert 0.0 <= a.overlap(b) <= 1.0
    assert a.overlap(b) == b.overlap(a)
    assert a.overlap(a) == 1.0


@given(circuits(2))
def test_equality_is_of_masks_and_graph_only(ab: tuple[Circuit, ...]) -> None:
    a, b = ab
    same = all(torch.equal(m, b.nodes[n]) for n, m in a.nodes.items())
    same = same and all(torch.equal(m, b.edges[n]) for n, m in a.edges.items())
    assert (a == b) == same
    assert a.with_origin(method="x", seed=3) == a
    assert a != ~a  # every graph has a node
    assert a != "a circuit"
    with pytest.raises(TypeError):
        hash(a)


@given(circuits(2))
def test_operations_leave_their_operands_alone(ab: tuple[Circuit, ...]) -> None:
    a, b = ab
    nodes = {n: m.clone() for n, m in a.nodes.items()}
    edges = {n: m.clone() for n, m in a.edges.items()}
    results = (a & b, a | b, a - b, ~a)
    for r in results:
        for m in (*r.nodes.values(), *r.edges.values()):
            m.fill_(True)  # a result that shared memory with `a` would now change it
    assert all(torch.equal(m, a.nodes[n]) for n, m in nodes.items())
    assert all(torch.equal(m, a.edges[n]) for n, m in edges.items())


@given(st.data())
def test_the_edges_of_nodes_are_supported_and_join_kept_nodes(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    nodes = draw_masks(data.draw, node_shapes(graph))
    support = draw_masks(data.draw, edge_shapes(graph))
    circuit = Circuit.from_nodes(graph, nodes, support)
    for e in graph.links:
        mask, src, dst = circuit.edges[e.name], nodes[e.src], nodes[e.dst]
        for at in mask.flatten().nonzero().flatten().tolist():
            i, j = (at, at) if e.kind == "sum" else divmod(at, e.shape[1])
            assert dst[i] and src[j] and support[e.name].flatten()[at]
        ends = src & dst if e.kind == "sum" else torch.outer(dst, src)
        assert int(mask.sum()) == int((ends & support[e.name]).sum())
    whole = Circuit.whole(graph, support)
    assert circuit & whole == circuit
    assert all(torch.equal(whole.edges[n], m) for n, m in support.items())
    assert all(bool(m.all()) for m in whole.nodes.values())


@given(circuits(1))
def test_counts_add_up(one: tuple[Circuit, ...]) -> None:
    """Every kept edge is in one account; of the embedding, only entries of channels that a kept sum carries on."""
    (a,) = one
    counts = a.counts()
    assert counts["nodes"] == sum(int(a.nodes[s.name].sum()) for s in a.graph.sites if s.prunable)
    by = {account: [e for e in a.graph.links if e.counts == account] for account in ACCOUNTS}
    assert counts["edges"] == sum(int(a.edges[e.name].sum()) for e in by["block"])
    assert counts["unembedding_edges"] == sum(int(a.edges[e.name].sum()) for e in by["unembedding"])
    unread = 0
    for e in by["embedding"]:
        sums = [a.edges[r.name] for r in a.graph.out_of(e.dst) if r.kind == "sum"]
        for channel in range(e.shape[0] if sums else 0):
            if not any(bool(m[channel]) for m in sums):
                unread += int(a.edges[e.name][channel].sum())
    residual = sum(int(a.edges[e.name].sum()) for e in by["residual"])
    total = counts["edges"] + counts["embedding_edges"] + counts["unembedding_edges"] + residual
    assert total + unread == len(a)


@given(st.data())
def test_scores_keep_the_best(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    values = {
        s.name: torch.tensor(data.draw(st.lists(st.integers(-3, 3), min_size=s.size, max_size=s.size))).float()
        for s in graph.sites[:-1]
    }
    scores = Scores(graph, values, "nats")
    total = sum(v.numel() for v in values.values())
    k = data.draw(st.integers(0, total + 2))
    top = scores.top(k)
    assert sum(int(top[n].sum()) for n in values) == min(k, total)
    kept = torch.cat([values[n][top[n]] for n in values])
    dropped = torch.cat([values[n][~top[n]] for n in values])
    assert not len(kept) or not len(dropped) or kept.min() >= dropped.max()
    above = scores.above(0.0)
    assert all(torch.equal(above[n], v > 0) for n, v in values.items())
    assert bool(top[graph.sites[-1].name].all()) and bool(above[graph.sites[-1].name].all())


def small() -> Graph:
    sites = (Site("a", 2, "", "input", 0), Site("b", 3, "b", "neuron", 1))
    return Graph(sites, (Link("a>b", "a", "b", "b", (3, 2)),))


def test_circuits_of_different_graphs_do_not_mix() -> None:
    one = Circuit.empty(small())
    renamed = replace(small(), sites=(replace(small().sites[0], layer=4), small().sites[1]))
    other = Circuit.empty(renamed)
    assert one != other
    with pytest.raises(UsageError, match="same graph"):
        _ = one & other


@pytest.mark.parametrize(
    ("nodes", "edges", "named"),
    [
        ({"a": (2,)}, {"a>b": (3, 2)}, "site b"),
        ({"a": (2,), "b": (3,), "c": (1,)}, {"a>b": (3, 2)}, "site c"),
        ({"a": (2,), "b": (3,)}, {}, "link a>b"),
        ({"a": (2,), "b": (3,)}, {"a>b": (2, 3)}, "link a>b"),
    ],
)
def test_masks_that_do_not_fit_the_graph_are_refused(nodes: dict, edges: dict, named: str) -> None:
    def masks(shapes: dict) -> dict[str, Tensor]:
        return {n: torch.ones(s, dtype=torch.bool) for n, s in shapes.items()}

    with pytest.raises(UsageError, match=named):
        Circuit(small(), masks(nodes), masks(edges))


def test_float_masks_are_refused() -> None:
    with pytest.raises(UsageError, match=r"torch\.float32"):
        Circuit(small(), {"a": torch.ones(2), "b": torch.ones(3)}, {"a>b": torch.ones(3, 2)})


def test_a_claim_tested_again_replaces_its_older_evidence() -> None:
    def evidence(claim: str, value: float) -> Evidence:
        return Evidence(claim, HOLDS, "s", value, "nats", (0.0, 1.0), "null", 0.0, 0.5, 8, "verify", 0, 0.1)

    circuit = Circuit.empty(small()).with_evidence(evidence("sufficient", 1.0), evidence("necessary", 2.0))
    again = circuit.with_evidence(evidence("sufficient", 3.0))
    assert {e.claim: e.value for e in again.evidence} == {"sufficient": 3.0, "necessary": 2.0}
    assert [e.value for e in circuit.evidence] == [1.0, 2.0]
    told = circuit.with_explanations(Explanation("a", "me", "text")).with_explanations(Explanation("b", "me", "text"))
    assert [e.subject for e in told.explanations] == ["a", "b"]
    with pytest.raises(AssertionError):
        replace(evidence("x", 0.0), verdict="perhaps")
