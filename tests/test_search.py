"""Rankings of edges, circuits of edges, references that belong to the examples, and methods of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from openwork import patching
from openwork.circuit import Circuit, Scores
from openwork.discover import find
from openwork.errors import UsageError
from openwork.patched_run import PatchedRun, another
from openwork.tasks.metrics import METRICS
from openwork.tasks.task import Split
from planted import PLANTED, circuit_of, examples, planted_model
from subject_models import make

TARGET = 0.1


def true_scores(run: PatchedRun, _split: Split) -> Scores:
    """A ranking of edges that puts the planted ones first."""
    truth, g = circuit_of(run.model, PLANTED), torch.Generator().manual_seed(0)  # type: ignore[arg-type]
    values = {n: m.float() + 0.1 * torch.rand(m.shape, generator=g) for n, m in truth.edges.items()}
    return Scores(run.graph, values, "belief")


def test_a_method_of_ones_own_that_ranks_edges_is_decided_at_the_target() -> None:
    model, split = planted_model(), examples("discover", 60, 7)
    with torch.no_grad():  # what the other neurons add is equal for both answers, but not edge by edge
        model.layers[-1].weight[:, 2:] = 0  # type: ignore[index]
    found = find(model, patching.zero_reference(model), split, true_scores, target=TARGET)
    assert found.circuit == circuit_of(model, PLANTED)
    assert found.origin["method"] == "true_scores"


def test_a_method_of_ones_own_may_decide_itself_and_is_held_to_the_target() -> None:
    model, split = planted_model(), examples("discover", 60, 7)
    reference = patching.zero_reference(model)
    truth = circuit_of(model, PLANTED)
    assert find(model, reference, split, lambda run, _split: truth, target=TARGET).circuit == truth
    assert find(model, reference, split, lambda run, _split: truth, target=1e-6).status == "infeasible"
    with pytest.raises(UsageError, match="must return Scores or a Circuit"):
        find(model, reference, split, lambda run, _split: 3, target=TARGET)  # type: ignore[arg-type, return-value]


def test_a_circuit_of_edges_keeps_the_nodes_on_a_path() -> None:
    model = planted_model()
    graph, support = model.graph(), patching.support(model)
    truth = circuit_of(model, PLANTED)
    stray = {n: m.clone() for n, m in truth.edges.items()}
    stray["hidden0>hidden1"][4, 7] = True  # neither read nor written by anything kept
    assert Circuit.from_edges(graph, stray, support) == truth
    assert Circuit.from_edges(graph, {}, support).nodes["hidden0"].all()


def test_scores_of_sites_and_links_are_not_mixed() -> None:
    graph = planted_model().graph()
    site, link = torch.zeros(10), torch.zeros(8, 10)
    for values in ({"hidden0": site, "hidden0>hidden1": link}, {"elsewhere": site}):
        with pytest.raises(UsageError, match="either sites or links"):
            Scores(graph, values, "x")
    ranked = Scores(graph, {"hidden0>hidden1": torch.arange(80.0).view(8, 10)}, "x")
    assert ranked.top(3)["hidden0>hidden1"].flatten().nonzero().flatten().tolist() == [77, 78, 79]


def prompts(n: int, seed: int = 0) -> tuple[torch.nn.Module, Split]:
    """A transformer and prompts of different lengths, also within a pair."""
    model = make("transformer")
    g = torch.Generator().manual_seed(seed)
    tokens, at = torch.randint(11, (n, 6), generator=g), torch.randint(1, 6, (n,), generator=g)
    answer = torch.randint(11, (n,), generator=g)
    pair = torch.arange(n) ^ 1
    return model, Split("discover", (tokens, at), answer, ((answer + 1) % 11)[:, None], pair, ("",) * n)


@pytest.mark.parametrize("kind", ["counterfactual", "resample"])
def test_the_empty_circuit_gives_the_other_examples_answer(kind: str) -> None:
    model, split = prompts(24)
    run = PatchedRun(model, kind, seed=3)
    empty = Circuit.empty(run.graph)
    order = split.pair if kind == "counterfactual" else another(split, 3)
    with torch.no_grad():
        wanted: Tensor = model(*split.inputs)[order]
    nodes = {s.name: empty.nodes[s.name] for s in run.graph.sites if s.module and s.kind != "output"}
    out, places = [], []
    with torch.no_grad():
        for part in run.parts(split):
            out.append(run.logits(part, nodes))
            places.append(part.index)
    got = torch.cat(out)[torch.cat(places).argsort()]
    assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("reference", ["counterfactual", "resample", "zero"])
def test_the_whole_circuit_has_the_models_loss(reference: str) -> None:
    model, split = prompts(24)
    run = PatchedRun(model, patching.zero_reference(model) if reference == "zero" else reference)
    whole = Circuit.whole(run.graph, run.support)
    assert run.loss(split, whole) == pytest.approx(run.loss(split), abs=1e-6)
    assert float(run.of_circuit(split, whole, METRICS["kl"]).max()) == pytest.approx(0, abs=1e-6)


def test_what_a_reference_needs_is_asked_for() -> None:
    model, split = prompts(4)
    with pytest.raises(UsageError, match='"counterfactul".*counterfactual'):
        PatchedRun(model, "counterfactul")
    alone = split.take(torch.tensor([0, 2]))
    with pytest.raises(UsageError, match="2 of 2 examples have no counterpart"):
        PatchedRun(model, "counterfactual").loss(alone)
    with pytest.raises(UsageError, match="fixed reference"):
        find(model, "counterfactual", split, "masks")


def test_metrics_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).log_softmax(-1)
    split = Split("verify", (), torch.tensor([2]), torch.tensor([[0, 1]]), torch.tensor([-1]), ("",))
    p = logits.exp()[0]
    assert float(METRICS["logit_difference"].of(logits, split, None)) == pytest.approx(1.5)
    assert float(METRICS["probability_difference"].of(logits, split, None)) == pytest.approx(float(p[2] - p[0] - p[1]))
    other = torch.zeros(1, 3)
    wanted = float((p * (p.log() - torch.tensor(1 / 3).log())).sum())
    assert float(METRICS["kl"].of(other, split, logits)) == pytest.approx(wanted, rel=1e-5)
