"""Whole circuit = the model, empty circuit = the reference run: every model, every reference, by nodes and by edges."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from openwork import patching
from openwork.circuit import Circuit
from openwork.patching import Reference, graph_of, patched, run, support
from subject_models import VARIANTS, Inputs, inputs_of, make

REFERENCES = ("zero", "mean", "counterfactual", "resample")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def reference_of(kind: str, model: nn.Module, inputs: Inputs) -> tuple[Reference, Tensor]:
    """A reference, and the output of the model when nothing but the reference reaches its output."""
    other = inputs_of(model, seed=7)[len(inputs) - 1]
    if kind == "zero":
        reference: Reference = patching.zero_reference(model)
    elif kind == "mean":
        reference = patching.mean_reference(model, [inputs, other])
    elif kind == "counterfactual":
        return patching.counterfactual_reference(model, other), model(*other)
    else:
        order = torch.randperm(len(inputs[0]), generator=torch.Generator().manual_seed(3))
        return patching.resample_reference(model, inputs, seed=3), model(*(x[order] for x in inputs))
    return reference, output_of_constants(model, reference, model(*inputs))


def output_of_constants(model: nn.Module, reference: Reference, like: Tensor) -> Tensor:
    """What the links into the output make of one vector per site, worked out without any patching."""
    graph = graph_of(model)
    (output,) = (s.name for s in graph.sites if s.kind == "output")
    total = torch.zeros(graph.site(output).size)
    for e in graph.into(output):
        module = model.get_submodule(e.module)
        if e.kind == "sum":
            total = total + reference[e.src]
        else:
            bias = getattr(module, "bias", None)
            weight = patching.weight_of(module)
            weight = weight.sum((2, 3)) if weight.dim() == 4 else weight  # a map that is the same everywhere
            total = total + weight @ reference[e.src] + (0 if bias is None else bias)
    return total.expand_as(like)


def all_nodes(model: nn.Module, value: float) -> dict[str, Tensor]:
    """One mask per site that a run can change."""
    return {s.name: torch.full((s.size,), value) for s in graph_of(model).sites if s.module and s.kind != "output"}


def all_edges(model: nn.Module, value: float) -> dict[str, Tensor]:
    """One mask per link."""
    return {e.name: torch.full(e.shape, value) for e in graph_of(model).links}


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_the_whole_circuit_is_the_model(name: str, kind: str) -> None:
    model = make(name)
    for inputs in inputs_of(model):
        reference, nothing = reference_of(kind, model, inputs)
        plain = model(*inputs)
        assert not torch.allclose(plain, nothing, **CLOSE), "the test needs a reference that differs from the input"
        with patched(model, reference, nodes=all_nodes(model, 1.0)):
            torch.testing.assert_close(model(*inputs), plain, **CLOSE)
        with patched(model, reference, edges=all_edges(model, 1.0)):
            torch.testing.assert_close(model(*inputs), plain, **CLOSE)
        whole = Circuit.whole(graph_of(model), support(model))
        torch.testing.assert_close(run(model, inputs, whole, reference), plain, **CLOSE)
        torch.testing.assert_close(run(model, inputs, None, reference), plain, rtol=0, atol=0)


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_the_empty_circuit_is_the_reference_run(name: str, kind: str) -> None:
    model = make(name)
    for inputs in inputs_of(model):
        reference, nothing = reference_of(kind, model, inputs)
        with patched(model, reference, nodes=all_nodes(model, 0.0)):
            torch.testing.assert_close(model(*inputs), nothing, **CLOSE)
        with patched(model, reference, edges=all_edges(model, 0.0)):
            torch.testing.assert_close(model(*inputs), nothing, **CLOSE)
        empty = Circuit.empty(graph_of(model))
        torch.testing.assert_close(run(model, inputs, empty, reference), nothing, **CLOSE)


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_ablating_a_node_is_ablating_every_edge_out_of_it(name: str, kind: str) -> None:
    model = make(name)
    graph = graph_of(model)
    inputs = inputs_of(model)[-1]
    reference, _ = reference_of(kind, model, inputs)
    g = torch.Generator().manual_seed(1)
    tested = 0
    for s in graph.sites:
        readers = graph.out_of(s.name)
        if not s.module or not readers:
            continue
        keep = (torch.rand(s.size, generator=g) < 0.5).float()
        keep[0] = 0.0
        with patched(model, reference, nodes={s.name: keep}):
            by_nodes = model(*inputs)
        with patched(model, reference, edges={e.name: keep.expand(e.shape) for e in readers}):
            by_edges = model(*inputs)
        torch.testing.assert_close(by_nodes, by_edges, **CLOSE)
        tested += 1
    assert tested >= 1


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_circuit_runs_as_its_masks_say(name: str, kind: str) -> None:
    """Dropping nodes is ablating the edges out of them; queries and keys, which no edge leaves, stay node masks.

    What a dropped node reads is left alone: it still counts in the size that an RMSNorm divides by, and it still
    competes in an AbsTopK.
    """
    model = make(name)
    graph = graph_of(model)
    inputs = inputs_of(model)[-1]
    reference, _ = reference_of(kind, model, inputs)
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        nodes = {s.name: torch.rand(s.size, generator=g) < 0.6 for s in graph.prunable}
        circuit = Circuit.from_nodes(graph, nodes, support(model))
        unread = {n: m for n, m in nodes.items() if not graph.out_of(n)}
        with patched(model, reference, unread, {e.name: circuit.nodes[e.src].expand(e.shape) for e in graph.links}):
            by_edges = model(*inputs)
        torch.testing.assert_close(run(model, inputs, circuit, reference), by_edges, **CLOSE)

        cut = {n: m & (torch.rand(m.shape, generator=g) < 0.7) for n, m in support(model).items()}
        circuit = replace(Circuit.whole(graph, support(model)), edges=cut)
        with patched(model, reference, edges=cut):
            by_edges = model(*inputs)
        torch.testing.assert_close(run(model, inputs, circuit, reference), by_edges, **CLOSE)


@pytest.mark.parametrize("kind", ("zero", "mean"))
@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_compacted_circuit_computes_what_the_circuit_does(name: str, kind: str) -> None:
    model = make(name)
    graph = graph_of(model)
    for inputs in inputs_of(model):
        reference, _ = reference_of(kind, model, inputs)
        for seed, share in ((0, 0.3), (1, 0.7)):
            g = torch.Generator().manual_seed(seed)
            nodes = {s.name: torch.rand(s.size, generator=g) < share for s in graph.prunable}
            circuit = Circuit.from_nodes(graph, nodes, support(model))
            layout = patching.compact(model, circuit, reference)
            torch.testing.assert_close(layout(*inputs), run(model, inputs, circuit, reference), **CLOSE)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_layout_forgets_nothing_between_runs(name: str) -> None:
    """Masks are changed and put back part by part, on two inputs in turn; every run is that of a general layout."""
    model = make(name)
    graph = graph_of(model)
    inputs = inputs_of(model)[-1]
    others = (inputs[0].roll(1, 0), *inputs[1:])
    reference, _ = reference_of("mean", model, inputs)
    g = torch.Generator().manual_seed(0)
    nodes = {s.name: torch.rand(s.size, generator=g) < 0.8 for s in graph.prunable}
    circuit = Circuit.from_nodes(graph, nodes, support(model))
    layout, plain = patching.compact(model, circuit, reference), patching.Layout(model, circuit, reference)
    layout(*inputs)
    masks = [n for group in ("nodes", "edges") for n, m in getattr(layout, group).items() if m.numel()]
    for step in range(4 * len(masks)):
        n = masks[int(torch.randint(len(masks), (), generator=g))]
        value = torch.rand((), generator=g).round().item()
        for either in (layout, plain):
            (either.nodes if n in either.nodes else either.edges)[n].flatten()[0] = value
        x = (inputs, others)[step % 2]
        torch.testing.assert_close(layout(*x), plain(*x), **CLOSE)
