"""Edge masks, modules and the automatic search: their own promises, beside those that every method makes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from openwork import patching
from openwork.circuit import Circuit
from openwork.discover import Discovery, auto, find, trim
from openwork.discover.gradients import LaidOut, edge_costs, node_costs
from openwork.discover.learning import GateSettings, hard_concrete_gate, step_gate
from openwork.discover.modules import UNIONS, _unions
from openwork.discover.search import begin
from openwork.errors import UsageError
from openwork.hard_concrete import SHUT, noiseless_gate, nonzero_probability
from openwork.models import CNN, MLP, CNNConfig, MLPConfig
from openwork.patched_run import PatchedRun
from openwork.tasks.task import Split
from planted import PLANTED, circuit_of, examples, planted_model
from subject_models import make

TARGET = 0.1


# -- gradients of masks ------------------------------------------------------------------------------------------------


def prompts(n: int = 12) -> tuple[torch.nn.Module, Split]:
    """A transformer and prompts of different lengths."""
    model = make("transformer")
    g = torch.Generator().manual_seed(0)
    tokens, at = torch.randint(11, (n, 6), generator=g), torch.randint(1, 6, (n,), generator=g)
    answer = torch.randint(11, (n,), generator=g)
    return model, Split("discover", (tokens, at), answer, ((answer + 1) % 11)[:, None], torch.arange(n) ^ 1, ("",) * n)


@pytest.mark.parametrize("link", ["block0.mlp.act>block0.mlp.write", "block1.attn.v>block1.attn.write"])
@pytest.mark.parametrize("reference", ["zero", "mean", "counterfactual", "resample"])
def test_edge_costs_are_the_slope_of_the_loss(reference: str, link: str) -> None:
    """Against differences of the loss, one edge at a time, through the general engine."""
    model, split = prompts()
    given = {"zero": patching.zero_reference, "mean": lambda m: patching.mean_reference(m, [split.inputs[:1]])}
    run = PatchedRun(model, given[reference](model) if reference in given else reference, seed=1)
    costs, step = edge_costs(run, split, (1.0,)), 0.05
    largest = costs[link].abs().flatten().argsort(descending=True)[:4]
    assert float(costs[link].abs().max()) > 1e-3  # there is something to be wrong about
    for place in largest.tolist():
        losses = []
        for change in (step, -step):
            mask = torch.ones(costs[link].shape)
            mask.view(-1)[place] += change
            with torch.no_grad():
                losses.append(float(run.values(split, edges={link: mask}).double().mean()))
        slope = (losses[0] - losses[1]) / (2 * step)
        assert float(costs[link].flatten()[place]) == pytest.approx(-slope, rel=0.02, abs=1e-5)


def test_a_nodes_cost_is_that_of_all_edges_out_of_it() -> None:
    """Where all its edges have masks: ablating a node is ablating every edge out of it."""
    model, split = planted_model(), examples("discover", 20, 3)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.3)  # so that the loss has a slope
    run = PatchedRun(model, patching.zero_reference(model))
    nodes, edges = node_costs(run, split), edge_costs(run, split)
    for site, link in (("input", "input>hidden0"), ("hidden0", "hidden0>hidden1"), ("hidden1", "hidden1>logits")):
        assert torch.allclose(nodes[site], edges[link].sum(0), atol=1e-6)
        assert float(nodes[site].abs().max()) > 1e-3


def test_edge_costs_along_the_masks_sum_to_what_lies_between() -> None:
    """The fundamental theorem along the masks, with many levels in the middle of their steps."""
    model, split = planted_model(), examples("discover", 20, 3)
    run = PatchedRun(model, patching.zero_reference(model))
    levels = [(i + 0.5) / 100 for i in range(100)]
    # at level 0 of all edges nothing is left of the input, and at level 1 everything is: only together do layers carry
    total = sum(float(c.sum()) for c in edge_costs(run, split, levels).values())
    assert total == pytest.approx(run.loss(split, Circuit.empty(run.graph)) - run.loss(split), abs=2e-3)


@pytest.mark.parametrize("reference", ["zero", "counterfactual", "resample"])
def test_a_circuit_laid_out_has_its_own_loss(reference: str) -> None:
    model, split = prompts()
    run = PatchedRun(model, patching.zero_reference(model) if reference == "zero" else reference, seed=2)
    g = torch.Generator().manual_seed(1)
    nodes = {s.name: torch.rand(s.size, generator=g) < 0.7 for s in run.graph.prunable}
    circuit = Circuit.from_nodes(run.graph, nodes, run.support)
    laid = LaidOut(run, circuit, run.parts(split))
    with torch.no_grad():
        assert float(laid.total()) / len(split) == pytest.approx(run.loss(split, circuit), abs=1e-5)


# -- gates -------------------------------------------------------------------------------------------------------------


def test_both_gates_shut_at_zero() -> None:
    tau = torch.tensor([-0.2, -1e-4, 1e-4, 0.5, 1.0])
    mask, count = step_gate(0.3).open(tau)
    assert mask.tolist() == [0, 0, 1, 1, 1]
    assert float(count) == 3
    a = SHUT + (2.5 - SHUT) * tau
    assert (noiseless_gate(a) > 0).tolist() == [False, False, True, True, True]
    _, expected = hard_concrete_gate(0).open(tau)
    assert float(expected) == pytest.approx(float(nonzero_probability(a).sum()))


def test_the_noisy_gate_is_open_as_often_as_it_says() -> None:
    tau = torch.full((20_000,), 0.1)
    mask, expected = hard_concrete_gate(3).open(tau)
    assert float((mask != 0).float().mean()) == pytest.approx(float(expected) / 20_000, abs=0.015)
    assert 0 < float(expected) / 20_000 < 1


# -- edge masks --------------------------------------------------------------------------------------------------------


def planted_search(method: str, reference: str = "zero", pairs: int = 60, **values: object) -> Discovery:
    model = planted_model()
    given = patching.zero_reference(model) if reference == "zero" else reference
    return find(model, given, examples("discover", pairs, 7), method, target=TARGET, **values)


@pytest.mark.parametrize("gate", ["step", "hard_concrete"])
@pytest.mark.parametrize("reference", ["zero", "counterfactual", "resample"])
def test_edge_masks_find_the_planted_edges_under_every_reference(gate: str, reference: str) -> None:
    """Pairs differ in the one input that decides, so the planted circuit is the true one under all of them."""
    found = planted_search("edge_masks", reference, gate=gate)
    assert found.circuit is not None
    truth = circuit_of(planted_model(), PLANTED)
    kind = patching.zero_reference(planted_model()) if reference == "zero" else reference
    trimmed = trim(planted_model(), found.circuit, kind, examples("discover", 60, 7), TARGET)
    assert trimmed.one_minimal
    assert trimmed.loss <= TARGET
    if reference == "resample":  # half of the partners have the same answer: one side of the circuit may be enough
        assert trimmed.circuit - truth == Circuit.empty(truth.graph)
    else:
        assert trimmed.circuit == truth


@pytest.mark.parametrize("gate", ["step", "hard_concrete"])
def test_a_number_of_edges_is_met_and_they_are_the_best_ones(gate: str) -> None:
    found = planted_search("edge_masks", gate=gate, edges=6)
    assert found.circuit == circuit_of(planted_model(), PLANTED)
    fewer = planted_search("edge_masks", gate=gate, edges=3)
    assert fewer.status == "infeasible"  # no three edges carry both answers
    assert fewer.loss > TARGET
    wider = planted_search("edge_masks", gate=gate, edges=20)
    assert wider.circuit is not None
    assert len(circuit_of(planted_model(), PLANTED)) <= len(wider.circuit) <= 20


def test_only_nonzero_weights_are_edges() -> None:
    found = planted_search("edge_masks", steps=20)
    support = patching.support(planted_model())
    assert found.scores is not None
    for link, values in found.scores.values.items():
        assert bool(values[~support[link]].isinf().all())
        assert bool(values[support[link]].isfinite().all())


def test_a_model_without_block_edges_is_refused() -> None:
    model = planted_model()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    with pytest.raises(UsageError, match="no block edges"):
        find(model, patching.zero_reference(model), examples("discover", 4, 7), "edge_masks")


# -- modules -----------------------------------------------------------------------------------------------------------


def test_the_modules_that_a_task_needs_are_found_by_structure() -> None:
    """The planted neurons are joined to no other hidden neuron: two modules that together are the circuit."""
    found = planted_search("modules")
    assert found.circuit is not None
    truth = circuit_of(planted_model(), PLANTED)
    assert truth - found.circuit == Circuit.empty(truth.graph)
    hidden = {n: m for n, m in found.circuit.nodes.items() if n.startswith("hidden")}
    assert all(torch.equal(m, truth.nodes[n]) for n, m in hidden.items())
    assert found.origin["joined"] is False
    judged = {tuple(row["modules"]): row["loss"] for row in found.log}
    assert all(loss > TARGET for some, loss in judged.items() if len(some) < len(found.origin["modules"]))


def test_what_joins_modules_is_added_where_they_do_not_work_apart() -> None:
    found = planted_search("modules", partition="blocks", modules=2)
    assert found.circuit is not None
    truth = circuit_of(planted_model(), PLANTED)
    assert truth - found.circuit == Circuit.empty(truth.graph)
    model = MLP(MLPConfig(inputs=8, hidden=(2, 2), outputs=2))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.layers[0].weight[:, 0] = torch.tensor([1.0, -1.0])
        model.layers[1].weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))  # every weight crosses
        model.layers[2].weight.copy_(torch.tensor([[0.0, 4.0], [4.0, 0.0]]))
    split = examples("discover", 40, 3)
    reference = patching.zero_reference(model)
    assert PatchedRun(model, reference).loss(split) < TARGET
    crossed = find(model, reference, split, "modules", target=TARGET, partition="blocks", modules=2)
    assert crossed.circuit is not None
    assert crossed.origin["joined"] is True
    assert crossed.circuit == Circuit.whole(model.graph(), patching.support(model))


def test_models_that_have_no_modules_are_refused() -> None:
    model = MLP(MLPConfig(inputs=8, hidden=(6,), outputs=2))
    with pytest.raises(UsageError, match="two hidden layers"):
        find(model, patching.zero_reference(model), examples("discover", 4, 7), "modules")


def test_unions_are_all_of_a_size_or_those_around_the_best() -> None:
    assert _unions(4, 2, (3,)) == list(itertools.combinations(range(4), 2))
    around = _unions(12, 6, (1, 2, 4, 8, 11))
    assert len(around) == 7 <= UNIONS
    assert all({1, 2, 4, 8, 11} < set(some) and len(some) == 6 for some in around)


# -- the automatic search ----------------------------------------------------------------------------------------------


def signs(k: int, width: int, pairs: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of -1 and 1 in pairs that differ in one of the first k, the parity of these k, and the pairs."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(2, (2 * pairs, width), generator=g).float() * 2 - 1
    x[1::2] = x[::2]
    rows = torch.arange(0, 2 * pairs, 2)
    flip = torch.randint(k, (pairs,), generator=g)
    x[rows + 1, flip] *= -1
    return x, ((x[:, :k] > 0).sum(1) % 2).long(), torch.arange(2 * pairs) ^ 1


def parity_model(width: int, noise: int) -> MLP:
    """Parity of the first two inputs by two neurons, and `noise` neurons that add the same to both answers."""
    model = MLP(MLPConfig(inputs=width, hidden=(2 + noise,), outputs=2))
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        first, last = model.layers
        first.weight[0, :2], first.weight[1, :2] = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])
        first.bias[:2] = -1.0
        first.weight[2:] = torch.randn(noise, width, generator=g)
        last.weight[1, :2] = 20.0
        last.bias[0] = 10.0
        last.weight[:, 2:] = torch.randn(1, noise, generator=g)
    return model


def split_of(x: Tensor, answer: Tensor, pair: Tensor) -> Split:
    return Split("discover", (x,), answer, 1 - answer[:, None], pair, ("",) * len(x))


def test_a_parity_is_found_though_no_input_matters_alone() -> None:
    model, split = parity_model(6, 20), split_of(*signs(2, 6, 60))
    reference = patching.zero_reference(model)
    run = PatchedRun(model, reference)
    slopes = [float(c.abs().max()) for c in node_costs(run, split, (1.0,)).values()]
    assert max(slopes) < 0.02 < TARGET  # the model is sure of its answers: the gradient at the clean point says nothing
    found = find(model, reference, split, "auto", target=TARGET)
    assert found.circuit == circuit_of(model, {"input": [0, 1], "hidden0": [0, 1], "logits": [0, 1]})


def backed_up() -> MLP:
    """The planted model with its first hidden layer twice: either copy is enough for the answer."""
    model = MLP(MLPConfig(inputs=8, hidden=(6,), outputs=2))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for i in (0, 2, 4):
            model.layers[0].weight[i, 0], model.layers[0].weight[i + 1, 0] = 1.0, -1.0
            model.layers[1].weight[0, i] = model.layers[1].weight[1, i + 1] = 9.0
    return model


def test_of_parts_that_stand_in_for_each_other_one_is_kept() -> None:
    model, split = backed_up(), examples("discover", 40, 3)
    reference = patching.zero_reference(model)
    found = find(model, reference, split, "auto", target=TARGET)
    assert found.circuit is not None
    counts = found.circuit.counts()
    assert (counts["nodes"], counts["edges"]) == (3, 4)  # the input and one neuron for either answer, of three each


def every_removal(model: torch.nn.Module, circuit: Circuit) -> list[Circuit]:
    """The circuit without each of its nodes and edges."""
    out = []
    for kind, masks in (("nodes", circuit.nodes), ("edges", circuit.edges)):
        for name, mask in masks.items():
            if kind == "nodes" and not circuit.graph.site(name).prunable:
                continue
            for at in mask.nonzero().tolist():
                less = {**masks, name: mask.clone()}
                less[name][tuple(at)] = False
                parts = (less, circuit.edges) if kind == "nodes" else (circuit.nodes, less)
                out.append(Circuit(circuit.graph, *parts))
    return out


@pytest.mark.parametrize("reference", ["mean", "counterfactual"])
@pytest.mark.parametrize("exhaustive", [0, 2000])
def test_what_is_found_automatically_is_one_minimal_on_all_examples(reference: str, exhaustive: int) -> None:
    torch.manual_seed(0)
    model = CNN(CNNConfig(image=(1, 4, 4), blocks=(), hidden=(12, 6), outputs=2))
    g = torch.Generator().manual_seed(1)
    x = torch.randn(48, 16, generator=g)
    with torch.no_grad():
        answer = model(x).argmax(-1)
    split = split_of(x, answer, torch.arange(48) ^ 1)
    target = 0.693
    given = patching.mean_reference(model, [(x,)]) if reference == "mean" else reference
    found = find(model, given, split, "auto", target=target, exhaustive=exhaustive, steps=40)
    assert found.circuit is not None
    run = PatchedRun(model, given)
    assert run.loss(split, found.circuit) <= target
    assert all(run.loss(split, less) > target for less in every_removal(model, found.circuit))


def test_a_larger_model_is_searched_by_learned_masks_and_rankings_only_after_them() -> None:
    small = planted_search("auto")
    assert [row["start"].split()[0] for row in small.log] == ["the", "edges", "nodes", "edges", "nodes", "learned"]
    large = planted_search("auto", exhaustive=0, tries=3)
    kinds = ["learned edge masks, seed 0", "learned node masks, seed 0", "learned edge masks, seed 1"]
    assert [row["start"] for row in large.log] == kinds
    assert large.circuit == small.circuit == circuit_of(planted_model(), PLANTED)


def parity_with_a_constant() -> tuple[MLP, Split]:
    """Parity with a neuron that has no edge into it: a constant, which the answer needs."""
    model, split = parity_model(6, 20), split_of(*signs(2, 6, 60))
    with torch.no_grad():
        model.layers[0].weight[2], model.layers[0].bias[2] = 0.0, 1.0
        model.layers[1].weight[:, 2], model.layers[1].bias[0] = torch.tensor([10.0, 0.0]), 0.0
    return model, split


def test_a_constant_that_the_answer_needs_is_kept_though_no_edge_leads_to_it() -> None:
    model, split = parity_with_a_constant()
    found = find(model, patching.zero_reference(model), split, "auto", target=TARGET, exhaustive=0, steps=20)
    assert found.circuit == circuit_of(model, {"input": [0, 1], "hidden0": [0, 1, 2], "logits": [0, 1]})
    assert [row["loss"] <= TARGET for row in found.log] == [True]


def test_where_learning_fails_the_other_starts_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "_learned", lambda *_: auto.Start("learned edge masks", None, 1.0))
    model, split = parity_with_a_constant()
    found = find(model, patching.zero_reference(model), split, "auto", target=TARGET, exhaustive=0, steps=20)
    assert found.circuit == circuit_of(model, {"input": [0, 1], "hidden0": [0, 1, 2], "logits": [0, 1]})
    assert found.log[0]["loss"] > TARGET
    assert found.log[-1]["loss"] <= TARGET


def test_where_every_edge_is_needed_all_are_kept() -> None:
    model, split = parity_model(2, 0), split_of(*signs(2, 2, 60))
    found = find(model, patching.zero_reference(model), split, "edge_masks", target=TARGET)
    assert found.circuit == Circuit.whole(model.graph(), patching.support(model))


def test_the_judge_weighs_both_halves_by_their_examples() -> None:
    model, split = planted_model(), examples("discover", 61, 7, noise=0.3)
    search = begin(PatchedRun(model, patching.zero_reference(model)), split, GateSettings(target=50.0))
    whole = Circuit.whole(search.run.graph, search.run.support)
    together = max(search.run.loss(search.choose, whole), search.run.loss(split, whole))
    assert search.judge(whole) == pytest.approx(together, rel=1e-6)
