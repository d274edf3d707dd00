"""The parts of discovery: the trim proves what it claims, dangling nodes go, calibration helps, buckets are fair."""

from __future__ import annotations

import torch

from openwork import patching
from openwork.circuit import Circuit
from openwork.discover import find
from openwork.discover.masks import calibrated
from openwork.discover.trim import drop_dangling, trim
from openwork.models import Transformer, TransformerConfig
from openwork.tasks.task import Split, losses
from planted import PADDED, PLANTED, WRONG, circuit_of, examples, planted_model
from subject_models import make

TARGET = 0.1


def loss_of(model: torch.nn.Module, circuit: Circuit, split: Split) -> float:
    with torch.no_grad():
        out = patching.run(model, split.inputs, circuit, patching.zero_reference(model))
    return float(losses(out, split).mean())


def test_padding_is_trimmed_away() -> None:
    model, split = planted_model(), examples("discover", 40, 3)
    trimmed = trim(model, circuit_of(model, PADDED), patching.zero_reference(model), split, TARGET)
    assert trimmed.circuit == circuit_of(model, PLANTED)


def test_one_minimal_means_that_no_single_removal_meets_the_target() -> None:
    """Checked without the trim's own layout: each node and each edge is taken out of the circuit and run afresh."""
    model, split = planted_model(), examples("discover", 40, 3)
    trimmed = trim(model, circuit_of(model, PADDED), patching.zero_reference(model), split, TARGET)
    assert trimmed.one_minimal
    c = trimmed.circuit
    tried = 0
    for kind, masks in (("nodes", c.nodes), ("edges", c.edges)):
        for name, mask in masks.items():
            if kind == "nodes" and not c.graph.site(name).prunable:
                continue
            for at in mask.nonzero().tolist():
                less = mask.clone()
                less[tuple(at)] = False
                nodes = {**c.nodes, name: less} if kind == "nodes" else c.nodes
                edges = {**c.edges, name: less} if kind == "edges" else c.edges
                assert loss_of(model, Circuit(c.graph, nodes, edges), split) > TARGET
                tried += 1
    counts = c.counts()
    assert tried == counts["nodes"] + counts["edges"]


def test_a_circuit_of_nodes_keeps_every_edge_between_them() -> None:
    model, split = planted_model(), examples("discover", 40, 3)
    trimmed = trim(model, circuit_of(model, PADDED), patching.zero_reference(model), split, TARGET, edges=False)
    again = Circuit.from_nodes(model.graph(), trimmed.circuit.nodes, patching.support(model))
    assert trimmed.circuit == again


def test_a_circuit_that_misses_the_target_is_not_made_worse() -> None:
    model, split = planted_model(), examples("discover", 40, 3)
    wrong = circuit_of(model, WRONG)
    before = loss_of(model, wrong, split)
    assert before > TARGET
    trimmed = trim(model, wrong, patching.zero_reference(model), split, TARGET)
    assert trimmed.circuit == wrong
    assert trimmed.loss > TARGET


def test_dangling_nodes_go_and_what_leads_on_stays() -> None:
    model = planted_model()
    dangling = {**PLANTED, "hidden0": [0, 1, 6]}  # hidden0:6 is joined to no kept node of hidden1
    assert drop_dangling(circuit_of(model, dangling)) == circuit_of(model, PLANTED)
    assert drop_dangling(circuit_of(model, PADDED)) == circuit_of(model, PADDED)


def test_queries_and_keys_stay_only_where_their_head_carries_something() -> None:
    model = make("transformer")
    graph, support = patching.graph_of(model), patching.support(model)
    nodes = {s.name: torch.zeros(s.size, dtype=torch.bool) for s in graph.prunable}
    write = next(i for i in range(8) if support["block0.attn.v>block0.attn.write"][i, 1])  # of head 0
    for site, i in (("attn.q", 0), ("attn.q", 4), ("attn.k", 5), ("attn.v", 1), ("attn.write", write)):
        nodes[f"block0.{site}"][i] = True
    nodes["final.in"][:] = True
    left = drop_dangling(Circuit.from_nodes(graph, nodes, support)).nodes
    assert left["block0.attn.q"].nonzero().flatten().tolist() == [0]  # head 1 has no value channel
    assert not left["block0.attn.k"].any()
    assert left["block0.attn.v"][1]


def test_calibration_lowers_the_loss_and_leaves_other_outputs_alone() -> None:
    split = examples("discover", 20, 0)
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(len(split), 2, generator=g) * 0.1
    logits[torch.arange(len(split)), split.answer] += 0.3
    logits = torch.cat([logits + torch.tensor([2.0, 0.0]), torch.zeros(len(split), 1)], 1)  # one answer is favoured
    after = calibrated(logits, split)
    assert float(losses(after, split).mean()) < 0.5 * float(losses(logits, split).mean())
    assert torch.equal(after[:, 2], logits[:, 2])


def test_buckets_hold_every_example_once_and_give_the_same_losses() -> None:
    model = Transformer(TransformerConfig(vocab=11, n_layer=1, d_model=8, d_head=4, n_ctx=9))
    g = torch.Generator().manual_seed(0)
    at = torch.randint(2, 9, (20,), generator=g)
    split = examples("verify", 10, 0)
    split = Split(
        "verify", (torch.randint(11, (20, 9), generator=g), at), split.answer, split.wrong, split.pair, split.texts
    )
    with torch.no_grad():
        whole = losses(model(*split.inputs), split)
        places, parts = zip(*split.buckets(3), strict=True)
        apart = torch.cat([losses(model(*p.inputs), p) for p in parts])
    order = torch.cat(places)
    assert sorted(order.tolist()) == list(range(20))
    assert len(parts) == 3
    assert parts[0].inputs[0].shape[1] < 9
    assert torch.allclose(apart, whole[order], atol=1e-6)


def test_masks_start_in_the_order_of_what_ablation_costs() -> None:
    model, split = planted_model(), examples("discover", 40, 3)
    found = find(model, patching.zero_reference(model), split, "masks", target=TARGET, steps=1)
    assert found.scores is not None
    wanted = circuit_of(model, PLANTED)
    n = sum(int(wanted.nodes[s.name].sum()) for s in model.graph().prunable)
    top = found.scores.top(n)
    assert all(torch.equal(top[s.name], wanted.nodes[s.name]) for s in model.graph().prunable)


def test_a_model_that_is_sure_of_itself_does_not_lose_its_circuit_in_the_search() -> None:
    """Where the loss is almost zero its gradient says little, and masks that all start alike fall together."""
    model, split = planted_model(), examples("discover", 40, 3)
    with torch.no_grad():
        model.layers[-1].weight.mul_(10)
    reference = patching.zero_reference(model)
    found = find(model, reference, split, "masks", target=TARGET)
    assert found.circuit is not None
    assert found.circuit.counts()["nodes"] <= circuit_of(model, PLANTED).counts()["nodes"] + 2
    assert loss_of(model, found.circuit, split) <= TARGET
