"""The weight graph against brute force, partitions against planted modules, measures against values worked by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import adjusted_rand_score
from torch import nn

from openwork import models, structure
from openwork.errors import UsageError
from openwork.graph import Graph, Link, Site
from openwork.models.cnn import ConvBlock
from openwork.structure import Wiring

TRANSFORMER = models.TransformerConfig(vocab=11, n_layer=2, d_model=12, d_head=4, d_mlp=20, n_ctx=6)


def layered(*sizes: int) -> Wiring:
    """The wiring of a perceptron whose hidden layers have these sizes."""
    return structure.wiring(models.build(models.MLPConfig(inputs=3, hidden=sizes, outputs=2)).graph())


def planted(
    n: int, density: float, k: int, cross: float, seed: int, layers: int = 4
) -> tuple[sparse.csr_array, np.ndarray]:
    """A layered graph in which a share `cross` of the edges joins two of k modules, and the modules [n]."""
    rng, m = np.random.default_rng(seed), n // layers
    truth = np.tile(np.arange(m) * k // m, layers)
    graph = sparse.lil_array((n, n))
    for layer in range(layers - 1):
        pairs = rng.permutation(m * m)
        apart = truth[pairs // m] != truth[pairs % m]
        edges = int(density * m * m)
        many = round(cross * edges)
        for chosen in (pairs[apart][:many], pairs[~apart][: edges - many]):
            graph[layer * m + chosen // m, (layer + 1) * m + chosen % m] = np.abs(rng.normal(size=len(chosen)))
    half = graph.tocsr()
    return (half + half.T).tocsr(), truth


def random_case(seed: int = 0) -> tuple[Wiring, dict[str, torch.Tensor], dict[str, torch.Tensor], int]:
    """A transformer's wiring, sizes of its matrices, a random partition and k."""
    model = models.build(TRANSFORMER, seed)
    of = structure.wiring(model.graph())  # type: ignore[operator]
    sizes = {n: structure.size(w).detach().double() for n, w in structure.weights(model, of).items()}
    labels = np.random.default_rng(seed).integers(0, 3, of.count)
    return of, sizes, of.partition(labels), 3


# -- the graph ---------------------------------------------------------------------------------------------------------


def test_in_a_perceptron_hidden_neurons_are_nodes_and_the_ends_are_ports() -> None:
    of = layered(5, 4, 3)
    assert {s: n.tolist() for s, n in of.node_of.items()} == {
        "hidden0": [0, 1, 2, 3, 4], "hidden1": [5, 6, 7, 8], "hidden2": [9, 10, 11],
    }  # fmt: skip
    assert of.groups == (5, 4, 3) and of.count == 12
    assert [e.name for e in of.links] == ["hidden0>hidden1", "hidden1>hidden2"]


def test_in_a_transformer_the_stream_is_one_group_and_a_head_one_node() -> None:
    of = structure.wiring(models.build(TRANSFORMER).graph())  # type: ignore[operator]
    stream = {s for s in of.node_of if s == "embed" or s.endswith((".in", ".write"))}
    assert stream == {"embed", "final.in"} | {
        f"block{i}.{p}.{w}" for i in (0, 1) for p in ("attn", "mlp") for w in ("in", "write")
    }
    assert all(torch.equal(of.node_of[s], torch.arange(12)) for s in stream)
    for i in (0, 1):
        heads = [of.node_of[f"block{i}.attn.{p}"] for p in "qkv"]
        assert all(torch.equal(h, heads[0]) for h in heads)
        assert (heads[0] - heads[0][0]).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert not {"tokens", "positions", "bigram", "logits"} & set(of.node_of)
    assert of.groups == (12, 3, 20, 3, 20)
    assert not any(e.counts in ("embedding", "unembedding") for e in of.links) and len(of.links) == 12


def test_modules_of_a_transformer_do_not_reach_each_other_but_through_norms() -> None:
    """The reason for heads as nodes: without norms and cross-module weights, a channel stays in its module."""
    model = models.build(TRANSFORMER, seed=3)
    of = structure.wiring(model.graph())  # type: ignore[operator]
    partition = of.partition(structure.blocks(of, 3))
    with torch.no_grad():
        for w in model.parameters():
            w.normal_(0, 0.5)
        for e in of.links:
            weight = model.get_submodule(e.module).weight
            weight.masked_fill_(structure.crossing(partition[e.dst], partition[e.src]), 0)  # type: ignore[operator]
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.RMSNorm):
                setattr(module, name, nn.Identity())
    seen: list[torch.Tensor] = []
    model.get_submodule("read").register_forward_hook(lambda _m, _a, out: seen.append(out.detach()))
    tokens = torch.arange(6)[None]
    model(tokens)
    with torch.no_grad():
        embed: Any = model.get_submodule("embed").weight
        embed[:, partition["embed"] == 1] += torch.randn(11, 4)
    model(tokens)
    moved = (seen[0] != seen[1]).flatten(0, 1).any(0)
    assert moved.tolist() == (partition["final.in"] == 1).tolist()


def test_where_nothing_can_be_shared_out_it_is_refused() -> None:
    for hidden in ((), (7,)):
        with pytest.raises(UsageError, match="two hidden layers at least"):
            layered(*hidden)


def test_sites_that_share_nodes_must_have_equally_many() -> None:
    a, b, c = Site("a", 4, "", "neuron", 0), Site("b", 4, "", "neuron", 1), Site("c", 5, "", "neuron", 2)
    links = (Link("a>b", "a", "b", "m", (4, 4)), Link("b>c", "b", "c", "", (5,), kind="sum"))
    with pytest.raises(UsageError, match="c has 5 nodes"):
        structure.wiring(Graph((a, b, c), links))


def test_adjacency_is_the_sum_of_all_matrices_entry_by_entry() -> None:
    of, sizes, _, _ = random_case()
    want = np.zeros((of.count, of.count))
    for e in of.links:
        for i, j in itertools.product(*map(range, sizes[e.name].shape)):
            u, v = int(of.node_of[e.dst][i]), int(of.node_of[e.src][j])
            want[u, v] += float(sizes[e.name][i, j])
            want[v, u] += float(sizes[e.name][i, j])
    np.testing.assert_allclose(structure.adjacency(of, sizes).toarray(), want, rtol=1e-12)


def test_the_edge_of_a_convolution_is_its_kernel_summed() -> None:
    config = models.CNNConfig(image=(2, 6, 6), blocks=(ConvBlock(channels=3, kernel=2),), hidden=(4,), outputs=2)
    model = models.build(config)
    of = structure.wiring(model.graph())  # type: ignore[operator]
    (weight,) = structure.weights(model, of).values()
    assert weight.shape == (4, 3, 5, 5)
    want = torch.stack([torch.stack([k.abs().sum() for k in row]) for row in weight])
    torch.testing.assert_close(structure.size(weight), want)


def test_labels_and_partitions_say_the_same() -> None:
    of, _, partition, _ = random_case()
    again = of.partition(of.labels(partition))
    assert all(torch.equal(again[s], partition[s]) for s in partition)


# -- measures ----------------------------------------------------------------------------------------------------------


def test_the_contraction_is_the_adjacency_summed_over_modules() -> None:
    of, sizes, partition, k = random_case()
    a, labels = structure.adjacency(of, sizes).toarray(), of.labels(partition)
    want = [[a[np.ix_(labels == c, labels == d)].sum() for d in range(k)] for c in range(k)]
    between = structure.contraction(of, sizes, partition, k)
    np.testing.assert_allclose(between.numpy(), want, rtol=1e-12)
    np.testing.assert_allclose(between.sum(1).numpy(), [a[labels == c].sum() for c in range(k)], rtol=1e-12)


def test_ncut_by_hand() -> None:
    """Volumes 5 and 3, of which 1 crosses: 1/5 + 1/3; a module without weight adds nothing."""
    assert float(structure.ncut(torch.tensor([[4.0, 1.0], [1.0, 2.0]]))) == pytest.approx(1 / 5 + 1 / 3)
    assert float(structure.ncut(torch.tensor([[4.0, 1.0, 0], [1.0, 2.0, 0], [0, 0, 0]]))) == pytest.approx(8 / 15)
    assert float(structure.ncut(np.diag([3.0, 1.0]))) == 0
    assert float(structure.ncut(np.array([[0.0, 2.0], [2.0, 0.0]]))) == 2


def test_the_gradient_of_ncut_is_that_of_finite_differences() -> None:
    of = layered(4, 3, 3)
    g = torch.Generator().manual_seed(0)
    partition = of.partition(torch.tensor([0, 0, 1, 2, 0, 1, 2, 2, 1, 0]))
    raw = [torch.randn(3, 4, generator=g, dtype=torch.double), torch.randn(3, 3, generator=g, dtype=torch.double)]

    def loss(*weights: torch.Tensor) -> torch.Tensor:
        sizes = {e.name: structure.size(w) for e, w in zip(of.links, weights, strict=True)}
        return structure.ncut(structure.contraction(of, sizes, partition, 3))

    assert torch.autograd.gradcheck(loss, [w.requires_grad_() for w in raw])


def test_clusterability_by_hand() -> None:
    weight = torch.tensor([[1.0, 2.0], [0.0, -2.0]])
    assert float(structure.clusterability(weight, torch.tensor([0, 1]), torch.tensor([0, 1]))) == pytest.approx(5 / 9)
    kernels = torch.zeros(2, 2, 1, 2)
    kernels[0, 0] = torch.tensor([[3.0, 4.0]])
    kernels[1, 0] = torch.tensor([[0.0, 5.0]])
    assert float(structure.clusterability(kernels, torch.tensor([0, 1]), torch.tensor([0, 1]))) == pytest.approx(0.5)
    assert float(structure.clusterability(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([0, 1]))) == 0


def test_chance_is_what_equal_weights_have() -> None:
    rows, columns = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 1])
    assert structure.chance(rows, columns) == pytest.approx((2 * 1 + 1 * 3 + 2 * 0) / 20)
    assert structure.chance(rows, columns) == pytest.approx(
        float(structure.clusterability(torch.ones(5, 4), rows, columns))
    )
    blocks = torch.arange(64) // 16
    assert structure.chance(blocks, blocks) == 0.25


def test_modularity_is_its_definition() -> None:
    a, labels = planted(40, 0.3, 3, 0.3, 0)
    dense, degree = a.toarray(), a.toarray().sum(1)
    want = sum(
        dense[u, v] - degree[u] * degree[v] / degree.sum()
        for u in range(40)
        for v in range(40)
        if labels[u] == labels[v]
    )
    assert structure.modularity(a, labels) == pytest.approx(want / degree.sum())
    assert structure.modularity(np.zeros((3, 3)), np.array([0, 1, 2])) == 0


def test_the_interface_is_every_crossing_edge_the_heaviest_first() -> None:
    of, sizes, partition, _ = random_case()
    sizes = {n: m * (m > m.median()) for n, m in sizes.items()}
    want = {
        (e.name, j, i, int(partition[e.src][j]), int(partition[e.dst][i]))
        for e in of.links
        for i, j in sizes[e.name].nonzero().tolist()
        if partition[e.src][j] != partition[e.dst][i]
    }
    found = structure.interface(of, sizes, partition)
    assert {(f.link, f.src, f.dst, *f.modules) for f in found} == want and len(found) == len(want)
    assert [f.weight for f in found] == sorted((f.weight for f in found), reverse=True)
    assert all(f.weight == float(sizes[f.link][f.dst, f.src]) for f in found)
    assert structure.cross_edges(of, sizes, partition) == len(want)


# -- partitions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "density", "k", "cross", "least"),
    [
        (400, 0.1, 4, 0.2, 0.9), (400, 0.1, 4, 0.01, 0.99), (400, 0.1, 4, 0.0, 1.0), (120, 0.4, 3, 0.1, 0.95),
        (800, 0.05, 8, 0.2, 0.85), (800, 0.05, 8, 0.0, 0.99),
    ],
)  # fmt: skip
def test_planted_modules_are_found_also_where_nothing_joins_them(
    n: int, density: float, k: int, cross: float, least: float
) -> None:
    graph, truth = planted(n, density, k, cross, seed=1)
    assert adjusted_rand_score(truth, structure.spectral(graph, k)) >= least


@pytest.mark.parametrize("n", [80, 800])
def test_identical_modules_are_told_apart(n: int) -> None:
    """Their eigenvalues are equal, so any mixture of their eigenvectors is as good."""
    block = np.abs(np.random.default_rng(0).normal(size=(n // 4, n // 4)))
    graph = np.kron(np.eye(4), block + block.T)
    assert adjusted_rand_score(np.repeat(range(4), n // 4), structure.spectral(graph, 4)) == 1


def test_rows_and_columns_of_a_matrix_are_clustered_together() -> None:
    """A block-diagonal matrix in a random order is wholly clusterable; pairing clusters by number would miss that."""
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(64), rng.permutation(64)
    matrix = torch.from_numpy(np.kron(np.eye(4), np.ones((16, 16))) * rng.normal(size=(64, 64)))[rows][:, columns]
    of = layered(64, 64)
    partition = of.partition(structure.spectral(structure.adjacency(of, {"hidden0>hidden1": matrix.abs()}), 4))
    c = structure.clusterability(matrix, partition["hidden1"], partition["hidden0"])
    assert float(c) == pytest.approx(1.0)


def test_no_partition_of_a_small_graph_has_a_smaller_cut() -> None:
    """Brute force over all ways of making two modules of nine nodes."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        graph = rng.random((9, 9)) * 0.15
        graph[:4, :4] += 1
        graph[4:, 4:] += 1
        graph = np.triu(graph, 1) + np.triu(graph, 1).T
        sides = (np.array(s) for s in itertools.product((0, 1), repeat=9) if 0 < sum(s) < 9)

        def cut(labels: np.ndarray, graph: np.ndarray = graph) -> float:
            return sum(
                graph[labels == c][:, labels != c].sum() / graph[labels == c].sum() for c in range(2)
            )  # by definition

        assert cut(structure.spectral(graph, 2)) == pytest.approx(min(cut(s) for s in sides))


def test_the_same_graph_has_the_same_partition() -> None:
    graph, _ = planted(400, 0.1, 4, 0.4, 0)
    first = structure.spectral(graph, 4)
    np.random.default_rng().random(7)
    assert (structure.spectral(graph, 4) == first).all()
    assert sorted(set(first.tolist())) == [0, 1, 2, 3]


@pytest.mark.parametrize("sizes", [(50, 50, 50), (90, 90, 90)], ids=["dense solver", "Lanczos"])
def test_rounding_does_not_decide(sizes: tuple[int, ...]) -> None:
    """A resumed run, which may round differently, is to find the same modules, and under the same names."""
    for seed in range(3):
        model = models.build(models.MLPConfig(inputs=4, hidden=sizes, outputs=2), seed)
        of = structure.wiring(model.graph())  # type: ignore[operator]
        graph = structure.adjacency(of, {n: structure.size(w) for n, w in structure.weights(model, of).items()})
        graph = graph.multiply(graph > np.quantile(graph.data, 0.8)).tocsr()
        labels, noise = structure.spectral(graph, 4), np.random.default_rng(seed)
        assert labels[0] == 0 and [int(np.flatnonzero(labels == c)[0]) for c in range(4)] == sorted(
            int(np.flatnonzero(labels == c)[0]) for c in range(4)
        )
        for _ in range(3):
            other = graph.copy()
            other.data *= 1 + 1e-13 * noise.normal(size=len(other.data))
            assert (structure.spectral((other + other.T) / 2, 4) == labels).all()


def test_nodes_without_an_edge_fill_up_small_modules() -> None:
    graph = np.zeros((12, 12))
    graph[:4, :4] = graph[4:6, 4:6] = 1
    labels = structure.spectral(graph, 2)
    assert len(set(labels[:4])) == len(set(labels[4:6])) == 1 and labels[0] != labels[4]
    assert np.bincount(labels).tolist() == [6, 6]
    assert np.bincount(structure.spectral(np.zeros((10, 10)), 3)).tolist() == [4, 3, 3]
    with pytest.raises(UsageError, match="5 modules of 3 nodes"):
        structure.spectral(np.ones((3, 3)), 5)


def test_modules_keep_their_names_as_far_as_they_can() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        before, labels = rng.integers(0, 4, 30), rng.integers(0, 4, 30)
        best = max(int((np.array(p)[labels] == before).sum()) for p in itertools.permutations(range(4)))
        now = structure.matched(labels, before, 4)
        assert int((now == before).sum()) == best
        assert adjusted_rand_score(now, labels) == 1


def test_blocks_are_contiguous_and_leave_nobody_out() -> None:
    of = layered(8, 10)
    assert structure.blocks(of, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3]


# -- against chance ----------------------------------------------------------------------------------------------------


def matrices_with_modules(of: Wiring, k: int, cross: float, kept: float) -> dict[str, torch.Tensor]:
    """Random sizes; those that cross blocks are `cross` times as large, and a share `kept` is not zero."""
    partition, g = of.partition(structure.blocks(of, k)), torch.Generator().manual_seed(0)
    out = {}
    for e in of.links:
        size = torch.randn(e.shape, generator=g).abs() * (torch.rand(e.shape, generator=g) < kept)
        out[e.name] = torch.where(structure.crossing(partition[e.dst], partition[e.src]), cross * size, size)
    return out


def test_modules_stand_out_from_shuffled_weights_and_noise_does_not() -> None:
    of = layered(30, 30, 30)
    modular = structure.against_shuffles(of, matrices_with_modules(of, 3, 0.1, 1.0), 3, shuffles=10)
    assert modular.value < modular.mean and modular.z < -10
    noise = structure.against_shuffles(of, matrices_with_modules(of, 3, 1.0, 1.0), 3, shuffles=20)
    assert abs(noise.z) < 3
    q = structure.against_shuffles(of, matrices_with_modules(of, 3, 0.1, 1.0), 3, "modularity", shuffles=10)
    assert q.z > 10


def test_only_the_null_of_positions_moves_zeros() -> None:
    """Two separate blocks of equal weights: values that change places change nothing, positions do."""
    of = layered(10, 10)
    sizes = {"hidden0>hidden1": torch.from_numpy(np.kron(np.eye(2), np.ones((5, 5))))}
    values = structure.against_shuffles(of, sizes, 2, null="values", shuffles=3)
    assert values.value == values.mean == 0 and np.isnan(values.z)
    positions = structure.against_shuffles(of, sizes, 2, null="positions", shuffles=3)
    assert positions.mean > 0.3
