"""What every kind of model owes us, parametrised over `models.MODELS`: a true graph, and no state left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from openwork import models, patching
from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.graph import Graph, Link
from openwork.models.mlp import SlotEmbedding
from openwork.patching import graph_of, patched, record, run
from subject_models import VARIANTS, hooks_on, inputs_of, make


def test_every_kind_of_model_is_tested_here() -> None:
    assert {getattr(c, "kind", None) for c in VARIANTS.values()} == set(models.MODELS)


@pytest.mark.parametrize("name", VARIANTS)
def test_config_and_graph_travel_as_plain_data(name: str) -> None:
    model = make(name)
    assert isinstance(model, models.Subject)
    again = models.build(model.config.model_dump(mode="json"))
    assert again.config == model.config  # type: ignore[comparison-overlap]
    assert again.state_dict().keys() == model.state_dict().keys()
    assert Graph.from_dict(model.graph().to_dict()) == model.graph()


@pytest.mark.parametrize("name", VARIANTS)
def test_same_seed_same_weights(name: str) -> None:
    one, two, other = (models.build(VARIANTS[name], seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_config_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(UsageError, match="widht"):
        models.build({"kind": "mlp", "widht": 3})
    with pytest.raises(UsageError, match="mlp"):
        models.build({"kind": "mpl"})


@pytest.mark.parametrize("name", VARIANTS)
def test_sites_and_links_have_the_sizes_they_declare(name: str) -> None:
    model = make(name)
    graph = graph_of(model)
    for inputs in inputs_of(model):
        sent = record(model, inputs)
        assert sent.keys() == graph.by_site.keys()
        for s in graph.sites:
            if sent[s.name].is_floating_point():
                assert sent[s.name].shape[s.axis] == s.size
    for e in graph.links:
        if e.kind == "weight":
            assert tuple(patching.weight_of(model.get_submodule(e.module)).shape[:2]) == e.shape
            assert e.shape == (graph.site(e.dst).size, graph.site(e.src).size)
        else:
            assert e.shape == (graph.site(e.dst).size,) == (graph.site(e.src).size,)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_matrix_is_a_link(name: str) -> None:
    """A matrix that the graph does not know could carry what no circuit sees."""
    model = make(name)
    linked = {e.module for e in graph_of(model).links if e.kind == "weight"}
    matrices = {path.removesuffix(".weight") for path, p in model.named_parameters() if p.dim() >= 2}
    assert matrices == linked


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_perturbing_a_node_changes_its_readers_by_exactly_its_column(name: str) -> None:
    model = make(name)
    graph = graph_of(model)
    inputs = inputs_of(model)[-1]
    still = record(model, inputs)
    for s in graph.sites:
        if not s.module:
            continue
        # all other sites are held at what they send now, so that the change arrives by this site's own links
        held = {
            t.name: torch.zeros(t.size) for t in graph.sites if t.module and t.name != s.name and t.kind != "output"
        }
        for node in (0, s.size - 1):
            push = torch.zeros(s.size)
            push[node] = 0.7
            push = push.view(-1, *[1] * (still[s.name].dim() - 1 - s.axis if s.axis >= 0 else 0))
            for e in graph.out_of(s.name):
                with patched(model, still, nodes=held):
                    before = linear_input(model, inputs, e, torch.zeros_like(push))
                    after = linear_input(model, inputs, e, push)
                expected = change_by_column(model, e, push, still, graph)
                torch.testing.assert_close(after - before, expected.expand_as(after), rtol=1e-5, atol=1e-5)


def linear_input(model: nn.Module, inputs: tuple[Tensor, ...], e: Link, push: Tensor) -> Tensor:
    """What the link's reader is given before any nonlinearity, while the source sends `push` more than it would."""
    seen: list[Tensor] = []
    source = model.get_submodule(graph_of(model).site(e.src).module)
    reader = model.get_submodule(e.module)
    handles = [source.register_forward_hook(lambda _m, _a, out: out + push)]
    if e.kind == "sum":
        handles.append(reader.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone())))
    else:
        handles.append(reader.register_forward_hook(lambda _m, _a, out: seen.append(out.clone())))
    try:
        model(*inputs)
    finally:
        for h in handles:
            h.remove()
    return seen[0]


def change_by_column(model: nn.Module, e: Link, push: Tensor, sent: dict[str, Tensor], graph: Graph) -> Tensor:
    """push through the link, from its weights alone; attention mixes positions first where the link says so.

    A channel pushed by the same amount everywhere changes what a convolution writes by that times the kernel's sum.
    """
    if e.kind == "sum":
        return push
    weight = patching.weight_of(model.get_submodule(e.module))
    if weight.dim() == 4:
        return (push.flatten() @ weight.sum((2, 3)).T)[:, None, None]
    if e.through:
        block = e.src.rsplit(".", 1)[0]
        q, k = sent[f"{block}.q"], sent[f"{block}.k"]
        push = model.get_submodule(e.through)(q, k, push.expand_as(sent[e.src]))
    return push @ weight.T


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_an_input_reaches_its_reader_as_its_column(name: str) -> None:
    model = make(name)
    graph = graph_of(model)
    inputs = inputs_of(model)[0]
    sent = record(model, inputs)
    for s in graph.sites:
        if s.module or sent[s.name].is_floating_point():
            continue
        for e in graph.out_of(s.name):
            columns = patching.weight_of(model.get_submodule(e.module))
            ids = sent[s.name]
            module = model.get_submodule(e.module)
            expected = columns.T[ids]
            if isinstance(module, SlotEmbedding):  # ids [B, slots]: every slot feeds its own channels
                parts = expected.unflatten(-1, (module.slots, -1))  # [B, slots, slots, width]
                expected = torch.cat([parts[:, i, i] for i in range(module.slots)], -1)
            torch.testing.assert_close(module(ids), expected)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_no_hook_and_no_change_stays_on_the_model(name: str) -> None:
    model = make(name)
    inputs = inputs_of(model)[-1]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain = model(*inputs)
    reference = patching.zero_reference(model)
    run(model, inputs, Circuit.empty(graph_of(model)), reference)
    record(model, inputs)
    patching.mean_reference(model, [inputs])
    assert hooks_on(model) == 0

    edges = {e.name: torch.zeros(e.shape) for e in graph_of(model).links}
    with pytest.raises(RuntimeError, match="stop here"), patched(model, reference, edges=edges):
        assert hooks_on(model) > 0
        raise RuntimeError("stop here")
    assert hooks_on(model) == 0

    with pytest.raises((RuntimeError, IndexError, TypeError)):
        record(model, (torch.zeros(2, 2, 2, 2, 2),))
    assert hooks_on(model) == 0

    some = next(s.name for s in graph_of(model).sites if s.module)
    with pytest.raises(UsageError, match=some), patched(model, {}, nodes={some: torch.zeros(1)}):
        pass
    assert hooks_on(model) == 0

    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(plain, model(*inputs))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_circuit_of_another_model_is_refused(name: str) -> None:
    model = make(name)
    other = make("mlp without hidden layer" if name != "mlp without hidden layer" else "mlp")
    circuit = Circuit.empty(graph_of(other))
    with pytest.raises(UsageError, match="another model"):
        run(model, inputs_of(model)[0], circuit, patching.zero_reference(model))


def test_a_model_without_a_graph_is_refused() -> None:
    with pytest.raises(UsageError, match="declares no graph"):
        record(nn.Linear(2, 2), (torch.zeros(1, 2),))
