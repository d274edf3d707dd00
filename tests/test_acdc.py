"""ACDC and exact patching: what a plain loop over single edges finds, however it is batched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench_files import BENCH, NO_BENCH, bench_model, bench_split
from openwork import patching
from openwork.circuit import Circuit
from openwork.discover import find
from openwork.discover.acdc import circuit_of, prune
from openwork.discover.exact_patching import exactly
from openwork.discover.trials import Of, Trials, candidates, units
from openwork.models.components import Components
from openwork.models.transformer import Transformer
from openwork.patched_run import Part, PatchedRun
from openwork.tasks.metrics import METRICS, Metric
from openwork.tasks.task import Split
from planted import PLANTED, examples, planted_model
from planted import circuit_of as planted_circuit
from subject_models import hooks_on, make
from test_attribution import paired

CASES = [
    ("view of transformer, LayerNorm, unembedding bias", "edges"),
    ("view of transformer, sink", "edges"),
    ("view of transformer", "nodes"),
    ("mlp", "edges"),
    ("mlp", "nodes"),
    ("cnn", "edges"),
    ("transformer, no gain, one layer", "nodes"),
    ("transformer, no gain, one layer", "edges"),
]


def subject(name: str) -> tuple[PatchedRun, Split]:
    """A model in double precision, so that no rounding decides, and pairs of examples."""
    model = make(name.removeprefix("view of "))
    split = paired(model, 4)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in split.inputs)
    split = Split(split.name, inputs, split.answer, split.wrong, split.pair, split.texts)
    model = model.double()
    if name.startswith("view of "):
        assert isinstance(model, Transformer)
        model = Components(model)
    return PatchedRun(model, "counterfactual"), split


def value(run: PatchedRun, split: Split, metric: Metric, masks: dict[str, Tensor], of: Of) -> float:
    """The metric of the whole model under these masks, without any way of saving time."""
    nodes, edges = (masks, None) if of == "nodes" else (None, masks)
    with torch.no_grad():
        return float(run.values(split, nodes, edges, metric).mean())


def entries(run: PatchedRun, of: Of) -> list[tuple[str, tuple[int, ...]]]:
    """From the output back, node by node; into a node, from the latest source to the first."""
    graph, out = run.graph, []
    order = [s.name for s in graph.sites]
    for s in reversed(graph.sites):
        if of == "nodes":
            out += [(s.name, (i,)) for i in range(s.size)] if s.prunable else []
            continue
        into = [e for e in graph.into(s.name) if e.kind == "weight" and e.counts == "block"]
        into.sort(key=lambda e: -order.index(e.src))
        for i in range(s.size):
            for e in into:
                out += [(e.name, (i, j)) for j in reversed(range(e.shape[1])) if run.support[e.name][i, j]]
    return out


def plain_acdc(run: PatchedRun, split: Split, metric: Metric, threshold: float, of: Of) -> dict[str, Tensor]:
    """The published loop, one run per edge, those that nothing hears too."""
    masks = candidates(run.graph, run.support, of)
    now = value(run, split, metric, masks, of)
    for name, at in entries(run, of):
        masks[name][at] = False
        then = value(run, split, metric, masks, of)
        if metric.sign * (now - then) < threshold:
            now = then
        else:
            masks[name][at] = True
    return masks


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("metric", ["kl", "logit_difference"])
@pytest.mark.parametrize(("name", "of"), CASES)
def test_it_is_the_sequential_loop(name: str, of: Of, metric: str) -> None:
    run, split = subject(name)
    sizes = set()
    for threshold in (1e-4, 0.01):
        pruned = prune(run, run.parts(split), METRICS[metric], threshold, of)
        expected = plain_acdc(run, split, METRICS[metric], threshold, of)
        assert same(dict(pruned.masks), expected)
        assert pruned.value == pytest.approx(value(run, split, METRICS[metric], expected, of), abs=1e-9)
        sizes.add(sum(int(m.sum()) for m in expected.values()))
    most = sum(int(m.sum()) for m in candidates(run.graph, run.support, of).values())
    assert any(0 < n < most for n in sizes), sizes
    assert hooks_on(run.model) == 0


def test_the_order_is_the_documented_one() -> None:
    for name, of in CASES:
        run, _ = subject(name)
        tried = [e for *_, some in units(run.graph, candidates(run.graph, run.support, of), of) for e in some]  # type: ignore[arg-type]
        assert tried == entries(run, of)  # type: ignore[arg-type]


def test_edges_that_nothing_hears_cost_no_run() -> None:
    run, split = subject("view of transformer, LayerNorm, unembedding bias")
    parts, whole = run.parts(split), sum(int(run.support[e.name].sum()) for e in run.graph.links)
    everything = prune(run, parts, METRICS["kl"], 1e9)
    assert sum(int(m.sum()) for m in everything.masks.values()) == 0
    assert everything.tried == 1 + 2 * (2 + 1)  # the edges into the logits
    few = prune(run, parts, METRICS["kl"], 0.01)
    assert everything.tried < few.tried < whole
    assert few.runs >= few.tried


@pytest.mark.parametrize(("name", "of"), CASES)
def test_exact_patching_is_one_edge_at_a_time(name: str, of: Of) -> None:
    run, split = subject(name)
    metric = METRICS["loss"]
    scores = exactly(run, run.parts(split), metric, of)
    masks = candidates(run.graph, run.support, of)
    whole = value(run, split, metric, masks, of)
    for entry, at in entries(run, of)[:: 1 if name.startswith("view") else 3]:
        masks[entry][at] = False
        cost = value(run, split, metric, masks, of) - whole
        masks[entry][at] = True
        assert float(scores[entry][at]) == pytest.approx(cost, abs=1e-6)
    assert max(float(s.abs().max()) for s in scores.values()) > 1e-3
    for n, s in scores.items():
        assert not bool(s[~masks[n]].any())


def test_a_fast_and_a_slow_way_try_the_same() -> None:
    """One link's variants, side by side in the model's own way and one after the other in the general one."""
    run, split = subject("view of transformer, no bigram")
    mine = Trials(run, run.parts(split), METRICS["loss"], "edges")
    model = run.model
    assert mine.at_once > 1

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sites, self.hands, self.model, self.graph = model.sites, model.hands, model.model, model.graph
            self.view = [model]

        def forward(self, *inputs: Tensor) -> Tensor:
            return self.view[0](*inputs)

    other = PatchedRun(Plain(), "counterfactual")
    general = Trials(other, other.parts(split), METRICS["loss"], "edges")
    assert general.at_once == 1
    masks = candidates(run.graph, run.support, "edges")
    assert mine.begin(masks) == pytest.approx(general.begin(masks), abs=1e-9)
    for changes in ([[("a0>m0", (0, 1))], [("a0>m0", (0, 1)), ("input>m0", (0, 0))]], [[("m0>a1.k", (1, 0))]]):
        assert mine.trial(changes) == pytest.approx(general.trial(changes), abs=1e-9)
        mine.keep(0)
        general.keep(0)
    assert mine.trial([[("m0>a1.k", (0, 0))]], most=0.0) == general.trial([[("m0>a1.k", (0, 0))]], most=0.0) == []


def test_a_given_threshold_is_used_and_a_hopeless_one_is_infeasible() -> None:
    model, split = planted_model(), examples("discover", 40, 7)
    zero = patching.zero_reference(model)
    found = find(model, zero, split, "acdc", threshold=0.02, target=0.1)
    assert found.circuit == planted_circuit(model, PLANTED)
    assert [row["threshold"] for row in found.log] == [0.02]
    found = find(model, zero, split, "acdc", threshold=1e6, target=0.1)
    assert found.status == "infeasible"
    assert found.circuit is None
    assert found.loss > 0.1


def test_without_a_threshold_the_largest_that_meets_the_target_is_sharpened() -> None:
    model, split = planted_model(), examples("discover", 20, 7)
    run = PatchedRun(model, "counterfactual")
    found = find(model, "counterfactual", split, "acdc", target=0.1, control=True)
    assert found.circuit is not None
    assert found.loss <= 0.1
    met = [row["threshold"] for row in found.log if row["loss"] <= 0.1]
    missed = [row["threshold"] for row in found.log if row["loss"] > 0.1]
    assert met
    assert missed
    assert max(met) < min(m for m in missed if m > max(met)) <= max(met) * 10 ** (1 / 8) * 1.001
    pruned = prune(run, run.parts(split), METRICS["kl"], max(met))
    assert circuit_of(run, pruned.masks, "edges") == found.circuit


@pytest.mark.skipif(not BENCH.exists(), reason=NO_BENCH)
def test_the_published_figures_are_met() -> None:
    """The original ACDC ends at a divergence of 0.061; AutoCircuit keeps 19 and 24 edges, .66 and .76 faithful."""
    run, both = PatchedRun(Components(bench_model()), "counterfactual"), bench_split()
    clean, other = both.take(torch.arange(64)), tuple(x[64:] for x in both.inputs)
    parts = [Part(run.model, torch.arange(64), clean, None, other)]
    difference = METRICS["logit_difference"]
    for threshold, kept, divergence, faithful in ((0.01, 19, 0.061, 0.66), (0.001, 24, 0.0059, 0.76)):
        pruned = prune(run, parts, METRICS["kl"], threshold)
        circuit = circuit_of(run, pruned.masks, "edges")
        assert len(circuit) == kept
        assert pruned.value == pytest.approx(divergence, abs=5e-4)
        with torch.no_grad():
            logits = [
                run.logits(parts[0], *patching.masks_of(run.model, c)) for c in (circuit, Circuit.empty(run.graph))
            ]
            whole = difference.of(parts[0].whole, clean, None).mean()
        ours, none = (difference.of(x, clean, None).mean() for x in logits)
        assert float((ours - none) / (whole - none)) == pytest.approx(faithful, abs=6e-3)
