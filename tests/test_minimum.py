"""The exact search against all 2^k subsets, on circuits where the loss is not monotone, and what it refuses."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from openwork import patching
from openwork.circuit import Circuit, induced_edges
from openwork.discover import ExactResult, exact_minimum
from openwork.discover.minimum import SHOWN
from openwork.errors import UsageError
from openwork.models import MLP, CNNConfig, MLPConfig, TransformerConfig, build
from openwork.models.cnn import ConvBlock
from openwork.tasks.task import Split, losses
from planted import PADDED, PLANTED, circuit_of, examples, planted_model
from subject_models import hooks_on

TARGET = 0.1


def split_of(inputs: tuple[torch.Tensor, ...], outputs: int, seed: int) -> Split:
    g = torch.Generator().manual_seed(seed)
    n = len(inputs[0])
    answer = torch.randint(outputs, (n,), generator=g)
    return Split("discover", inputs, answer, ((answer + 1) % outputs)[:, None], torch.full((n,), -1), ("",) * n)


def sparse_mlp(seed: int, activation: str = "relu", abstopk: float = 1.0) -> MLP:
    """Nine weights in three layers, so that every subset can be run."""
    config = MLPConfig(inputs=3, hidden=(3, 3), outputs=2, activation=activation, abstopk=abstopk)  # type: ignore[arg-type]
    model = build(config, seed)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.layers:  # type: ignore[union-attr]
            keep = torch.zeros(layer.weight.numel(), dtype=torch.bool)  # type: ignore[union-attr]
            keep[torch.randperm(len(keep), generator=g)[:3]] = True
            layer.weight.copy_(2 * torch.randn(layer.weight.shape, generator=g))  # type: ignore[union-attr]
            layer.weight *= keep.view(layer.weight.shape)  # type: ignore[union-attr]
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=g) / 2)  # type: ignore[union-attr]
    return model  # type: ignore[return-value]


def every_subset(
    model: nn.Module, circuit: Circuit, reference: patching.Reference, split: Split, of: str
) -> list[tuple[int, float]]:
    """Size and loss of all 2^k subsets, each by a patched run of its own."""
    graph = circuit.graph
    masks = (
        {e.name: circuit.edges[e.name] for e in graph.links if e.counts == "block" and e.kind == "weight"}
        if of == "edges"
        else {s.name: circuit.nodes[s.name] for s in graph.prunable}
    )
    entries = [(n, tuple(i)) for n, m in masks.items() for i in m.nonzero().tolist()]
    assert 0 < len(entries) <= 10, len(entries)
    out = []
    for kept in itertools.product((False, True), repeat=len(entries)):
        nodes = {n: m.clone() for n, m in circuit.nodes.items()}
        edges = {n: m.clone() for n, m in circuit.edges.items()}
        for keep, (name, at) in zip(kept, entries, strict=True):
            (edges if of == "edges" else nodes)[name][at] = keep
        sub = Circuit(graph, nodes, induced_edges(graph, nodes, edges))
        with torch.no_grad():
            out.append((sum(kept), float(losses(patching.run(model, split.inputs, sub, reference), split).mean())))
    return out


def agrees(found: ExactResult, subsets: list[tuple[int, float]], target: float) -> None:
    """Whether the size, the number of minima and the least loss among them are those of all subsets."""
    meet = [(size, loss) for size, loss in subsets if loss <= target]
    assert found.proved
    assert found.counted
    least = min((size for size, _ in meet), default=None)
    minima = [loss for size, loss in meet if size == least]
    assert (found.size, found.minima) == (least, len(minima))
    assert found.loss == pytest.approx(min(minima, default=math.inf), abs=1e-6)
    assert len(found.circuits) == min(len(minima), SHOWN)


@pytest.mark.parametrize("of", ["edges", "nodes"])
@pytest.mark.parametrize("seed", range(6))
def test_the_minimum_is_that_of_all_subsets(of: str, seed: int) -> None:
    model = sparse_mlp(seed, "silu" if seed == 5 else "relu")
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(seed))
    split = split_of((x,), 2, seed)
    reference = patching.zero_reference(model) if seed % 2 else patching.mean_reference(model, [(x,)])
    circuit = Circuit.whole(model.graph(), patching.support(model))
    with torch.no_grad():
        full = float(losses(model(x), split).mean())
    subsets = every_subset(model, circuit, reference, split, of)
    best = min(loss for _, loss in subsets)
    for target in (best - 1e-3, best + 1e-3, full + 1e-3, 1.3 * full):
        found = exact_minimum(model, circuit, reference, split, target, of=of)  # type: ignore[arg-type]
        agrees(found, subsets, target)
        if found.circuit is not None:
            with torch.no_grad():
                out = patching.run(model, split.inputs, found.circuit, reference)
            assert float(losses(out, split).mean()) <= target
            counts = found.circuit.counts()
            assert found.size == counts[of] or of == "edges"
    assert hooks_on(model) == 0


@pytest.mark.parametrize(
    "config",
    [
        MLPConfig(inputs=2, hidden=(2,), outputs=2, abstopk=0.5),
        CNNConfig(image=(1, 4, 4), blocks=(ConvBlock(channels=2, kernel=3),), hidden=(2,), outputs=2),
        TransformerConfig(vocab=5, n_layer=1, d_model=2, d_head=2, d_mlp=2, n_ctx=4),
    ],
    ids=["abstopk", "cnn", "transformer"],
)
def test_any_kind_of_model_is_searched_by_its_nodes(config: MLPConfig | CNNConfig | TransformerConfig) -> None:
    """Norms and AbsTopK let a node be felt that nothing reads, so here no subset equals another by its wiring."""
    model = build(config, 3)
    g = torch.Generator().manual_seed(0)
    if config.kind == "transformer":
        tokens, at = torch.randint(5, (12, 4), generator=g), torch.randint(1, 4, (12,), generator=g)
        inputs, outputs = (tokens, at), 5
    else:
        inputs = (torch.randn(12, 16 if config.kind == "cnn" else 2, generator=g),)
        outputs = 2
    split = split_of(inputs, outputs, 0)
    reference = patching.mean_reference(model, [inputs])
    graph = patching.graph_of(model)
    nodes = {s.name: torch.arange(s.size) < 1 for s in graph.sites if s.prunable and config.kind == "transformer"}
    circuit = Circuit.from_nodes(graph, nodes, patching.support(model))
    if len([s for s in graph.prunable if s.name in nodes]) > 11:
        nodes |= {s.name: torch.zeros(s.size, dtype=torch.bool) for s in graph.prunable[10:]}
        circuit = Circuit.from_nodes(graph, nodes, patching.support(model))
    with torch.no_grad():
        full = float(losses(patching.run(model, inputs, circuit, reference), split).mean())
    found = exact_minimum(model, circuit, reference, split, full + 1e-3, of="nodes")
    agrees(found, every_subset(model, circuit, reference, split, "nodes"), full + 1e-3)
    assert all(level.equivalent == 0 for level in found.levels)


def test_edges_of_a_model_without_a_batched_run() -> None:
    model = build(CNNConfig(image=(1, 4, 4), blocks=(ConvBlock(channels=2, kernel=3),), hidden=(), outputs=2), 1)
    x = torch.randn(10, 16, generator=torch.Generator().manual_seed(1))
    split, reference = split_of((x,), 2, 1), patching.zero_reference(model)
    graph = patching.graph_of(model)
    circuit = Circuit.whole(graph, patching.support(model))
    with torch.no_grad():
        full = float(losses(patching.run(model, (x,), circuit, reference), split).mean())
    subsets = every_subset(model, circuit, reference, split, "edges")
    for target in (full + 1e-3, full + 0.05):
        agrees(exact_minimum(model, circuit, reference, split, target), subsets, target)


def test_two_edges_that_only_together_can_go_are_found() -> None:
    """Neither of the two can go alone: the loss is not monotone, and a set may be needed whose parts are not."""
    model = MLP(MLPConfig(inputs=3, hidden=(), outputs=2))
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.tensor([[2.0, 5.0, -5.0], [-2.0, 0.0, 0.0]]))  # type: ignore[operator]
        model.layers[0].bias.zero_()  # type: ignore[operator]
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    x[:, 2] = x[:, 1]  # the two large edges cancel
    x[:, 0] = torch.where(x[:, 0] < 0, -2.0, 2.0)
    answer = (x[:, 0] < 0).long()
    split = Split("discover", (x,), answer, (1 - answer)[:, None], torch.full((40,), -1), ("",) * 40)
    circuit, reference = Circuit.whole(model.graph(), patching.support(model)), patching.zero_reference(model)
    found = exact_minimum(model, circuit, reference, split, 1e-3)
    assert (found.size, found.minima, found.proved) == (2, 1, True)
    assert found.loss == pytest.approx(math.log1p(math.exp(-8)), rel=1e-3)
    one_less = []
    for i in (1, 2):
        edges = {n: m.clone() for n, m in circuit.edges.items()}
        edges["input>logits"][0, i] = False
        with torch.no_grad():
            out = patching.run(model, (x,), replace(circuit, edges=edges), reference)
        one_less.append(float(losses(out, split).mean()))
    assert min(one_less) > 1e-3  # so no single one can go, and sets that hold one of them miss the target


def test_padding_goes_and_the_planted_circuit_stays() -> None:
    model = planted_model()
    reference, split = patching.zero_reference(model), examples("discover", 30, 7)
    found = exact_minimum(model, circuit_of(model, PADDED), reference, split, TARGET)
    assert found.circuit == circuit_of(model, PLANTED)
    assert (found.size, found.minima, found.counted) == (6, 1, True)
    again = exact_minimum(model, circuit_of(model, PADDED), reference, split, TARGET)
    assert again.circuit == found.circuit
    assert again.levels == found.levels
    nodes = exact_minimum(model, circuit_of(model, PADDED), reference, split, TARGET, of="nodes")
    assert nodes.size == 5
    assert nodes.circuit == circuit_of(model, PLANTED)


def test_the_certificate_accounts_for_every_subset() -> None:
    model = planted_model()
    circuit, split = circuit_of(model, PADDED), examples("discover", 30, 7)
    found = exact_minimum(model, circuit, patching.zero_reference(model), split, TARGET)
    k = len(circuit)
    assert [level.subsets for level in found.levels] == [math.comb(k, s) for s in range(found.levels[-1].size + 1)]
    assert all(level.equivalent + level.evaluated == level.subsets for level in found.levels)
    assert found.evaluated == sum(level.evaluated for level in found.levels)
    assert found.evaluated < sum(level.subsets for level in found.levels) / 5
    assert all(level.least_loss > TARGET and not level.hits for level in found.levels[:-1])
    assert found.levels[-1].least_loss <= TARGET
    assert f"{found.size} of {k} edges" in found.sentence


def test_what_cannot_be_met_is_proved_to_be_so() -> None:
    model = planted_model()
    circuit, split = circuit_of(model, PLANTED), examples("discover", 10, 7)
    found = exact_minimum(model, circuit, patching.zero_reference(model), split.shuffled_labels(0), 0.01)
    assert (found.circuit, found.size, found.minima, found.proved) == (None, None, 0, True)
    assert found.at_least == len(circuit) + 1
    assert math.isinf(found.loss)
    assert "None of the" in found.sentence


def test_a_spent_budget_says_how_far_the_proof_came() -> None:
    model = planted_model()
    circuit, split = circuit_of(model, PADDED), examples("discover", 30, 7)
    reference = patching.zero_reference(model)
    found = exact_minimum(model, circuit, reference, split, TARGET, budget=3)
    assert not found.proved
    assert found.circuit == circuit
    assert found.size == len(circuit)
    assert 0 < found.at_least <= 6
    assert "budget" in found.sentence


def test_refusals() -> None:
    model = planted_model()
    reference, split = patching.zero_reference(model), examples("discover", 10, 7)
    whole = Circuit.whole(model.graph(), patching.support(model))
    with pytest.raises(UsageError, match="at most 20.*Trim"):
        exact_minimum(model, whole, reference, split, TARGET)
    with pytest.raises(UsageError, match="kind of element"):
        exact_minimum(model, whole, reference, split, TARGET, of="heads")  # type: ignore[arg-type]
    small = circuit_of(model, PLANTED)
    with pytest.raises(UsageError, match="nan"):
        exact_minimum(model, small, reference, split, math.nan)
    with pytest.raises(UsageError, match="one value per input"):
        exact_minimum(model, small, patching.counterfactual_reference(model, split.inputs), split, TARGET)
    with pytest.raises(UsageError, match="empty"):
        exact_minimum(model, small, reference, split.take(torch.tensor([], dtype=torch.long)), TARGET)
