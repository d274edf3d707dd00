"""Min-cut trees against brute force and igraph, and what they can and cannot say about modules."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from scipy.sparse.csgraph import shortest_path
from sklearn.metrics import adjusted_rand_score

from openwork import structure
from openwork.errors import UsageError
from openwork.gomory_hu import CutTree, cut_tree
from test_structure import planted

KINDS = ("whole", "ties", "floats", "apart", "tiny")


def graph_of(kind: str, n: int, seed: int) -> np.ndarray:
    """A random graph [n, n]: whole weights, few different ones, floats, floats in pieces, floats of every magnitude."""
    rng = np.random.default_rng(seed)
    weights = {
        "whole": rng.integers(0, 50, (n, n)),
        "ties": rng.integers(0, 3, (n, n)),
        "floats": rng.random((n, n)) * (rng.random((n, n)) < 0.6),
        "apart": rng.random((n, n)) * (rng.random((n, n)) < 0.15),
        "tiny": 10.0 ** rng.uniform(-9, 0, (n, n)),
    }[kind].astype(np.float64)
    return np.triu(weights, 1) + np.triu(weights, 1).T


def cut(graph: np.ndarray, side: np.ndarray) -> float:
    return float(graph[side][:, ~side].sum())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_both_laws_of_a_cut_tree_against_all_cuts(kind: str, seed: int) -> None:
    n = 8
    graph = graph_of(kind, n, seed)
    tree = cut_tree(graph)
    least = np.full((n, n), np.inf)
    for bits in itertools.product((False, True), repeat=n - 1):
        side = np.array((True, *bits))
        weight = cut(graph, side)
        least[np.ix_(side, ~side)] = np.minimum(least[np.ix_(side, ~side)], weight)
    least = np.minimum(least, least.T)
    np.testing.assert_allclose(tree.min_cuts, least, rtol=1e-9, atol=1e-12)
    for node in range(1, n):  # taking an edge out leaves a minimum cut of its ends
        side = tree.side(node)
        assert side[node] and not side[tree.parent[node]]
        assert cut(graph, side) == pytest.approx(tree.weight[node], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_values_are_those_of_igraph(kind: str) -> None:
    igraph = pytest.importorskip("igraph")
    graph = graph_of(kind, 40, 3)
    other = igraph.Graph.Weighted_Adjacency(graph, mode="undirected")
    tree = other.gomory_hu_tree(capacity="weight", flow="flow")
    assert sorted(tree.es["flow"]) == pytest.approx(sorted(cut_tree(graph).weight[1:]), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_hops_count_tree_edges_and_weigh_the_tree(kind: str) -> None:
    n = 25
    graph = graph_of(kind, n, 1)
    tree = cut_tree(graph)
    edges = np.zeros((n, n))
    edges[np.arange(1, n), tree.parent[1:]] = 1
    assert (tree.hops == shortest_path(edges, directed=False)).all()
    assert (graph * tree.hops).sum() / 2 == pytest.approx(tree.total, rel=1e-9)


def test_hops_are_the_slope_of_the_trees_weight() -> None:
    graph = graph_of("floats", 12, 5)
    tree = cut_tree(graph)
    for u, v in ((0, 5), (3, 11), (2, 7), (4, 9)):
        more = graph.copy()
        more[u, v] = more[v, u] = graph[u, v] + 1e-6
        assert (cut_tree(more).total - tree.total) / 1e-6 == pytest.approx(tree.hops[u, v], rel=1e-3)


def test_a_tree_by_hand() -> None:
    """The path 0 -5- 1 -2- 2 -7- 3 is its own cut tree."""
    graph = np.zeros((4, 4))
    for u, v, w in ((0, 1, 5), (1, 2, 2), (2, 3, 7)):
        graph[u, v] = graph[v, u] = w
    tree = cut_tree(graph)
    assert sorted(tree.weight[1:].tolist()) == [2, 5, 7] and tree.total == 14
    assert tree.hops[0].tolist() == [0, 1, 2, 3]
    assert tree.lightest(2).tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert len(set(tree.lightest(4).tolist())) == 4 and set(tree.lightest(1).tolist()) == {0}


def test_without_edges_all_hang_on_nothing() -> None:
    tree = cut_tree(np.zeros((3, 3)))
    assert tree.total == 0 and tree.parent.tolist() == [0, 0, 0]
    assert cut_tree(np.zeros((1, 1))).hops.tolist() == [[0]]


def test_a_side_does_not_hold_what_lies_above() -> None:
    tree = CutTree(np.array([0, 0, 1, 1, 0]), np.array([np.inf, 1.0, 2.0, 3.0, 4.0]))
    assert tree.side(1).tolist() == [False, True, True, True, False]
    assert tree.side(2).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("cross", [0.2, 0.01])
def test_the_lightest_edges_part_single_nodes_and_not_modules(cross: float) -> None:
    """Minimum cuts are not balanced. Modules that spectral clustering finds exactly do not show at all."""
    graph, truth = planted(400, 0.1, 4, cross, seed=0)
    parts = cut_tree(graph).lightest(4)
    assert np.bincount(parts).tolist().count(1) == 3
    assert abs(adjusted_rand_score(truth, parts)) < 0.01
    assert adjusted_rand_score(truth, structure.spectral(graph, 4)) > 0.9


def test_once_hardly_anything_crosses_the_lightest_edges_are_the_modules() -> None:
    graph, truth = planted(160, 0.3, 4, 0.0, seed=0)
    assert adjusted_rand_score(truth, cut_tree(graph).lightest(4)) == 1


def test_without_the_solver_you_are_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools.graph.python", None)
    with pytest.raises(UsageError, match=r'pip install "openwork\[graph\]"'):
        cut_tree(np.ones((3, 3)))
