"""What topics do, against runs and sums made here by hand: activity, damage, random parts, wires and the lens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import page_runs
import planted
from openwork import models, patching
from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain.words.measure import (
    Legend,
    Measured,
    damage_elsewhere,
    measure,
    observe,
    sample_of,
    two_answers,
    unit_of,
)
from openwork.explain.words.topic import Topic
from openwork.explain.words.topics import kept_nodes, live_nodes, name_of, pieces, random_parts, topics_of
from openwork.explain.words.wires import MATRIX, RESIDUAL, STEERS, channel_tokens, wires_of
from openwork.tasks.task import Split, Task, losses

READ = Legend(page_runs.decode)
Seen = tuple[nn.Module, Circuit, dict[str, Tensor], Task, Measured]


@pytest.fixture(scope="module")
def seen() -> Seen:
    model = page_runs.transformer(32, 0.2, 5)
    circuit = page_runs.grown_circuit(model, 40, 3, 0)
    reference, task = page_runs.reference(model), page_runs.quote_task()
    topics = topics_of(circuit, "quotes")
    split = task.split("explain")
    return (
        model,
        circuit,
        reference,
        task,
        measure(model, circuit, reference, topics, split, sample_of(task, "explain", READ)),
    )


def inside(model: nn.Module, circuit: Circuit, reference: Any, tokens: Tensor) -> dict[str, Tensor]:
    """What every site sends at every position in the circuit's own run."""
    with patching.patched(model, reference, *patching.masks_of(model, circuit)):
        return patching.record(model, (tokens,))


# -- topics ----------------------------------------------------------------------------------------------------------


def test_topics_are_the_kept_nodes_their_pieces_and_the_circuit(seen: Seen) -> None:
    _, circuit, _, _, measured = seen
    topics = measured.observed.topics
    nodes = [t for t in topics if t.kind == "node"]
    assert [t.nodes[0] for t in nodes] == list(kept_nodes(circuit))
    assert len(nodes) == circuit.counts()["nodes"] > 30
    assert topics[-1] == Topic("quotes", "circuit", kept_nodes(circuit))
    modules = [t for t in topics if t.kind == "module"]
    assert len(modules) >= 2
    assert [len(t.nodes) for t in modules] == [len(p) for p in pieces(circuit) if len(p) > 1]


def test_pieces_are_held_together_by_matrices_and_heads_alone() -> None:
    """Two heads of one block and an MLP, by hand: sums over the stream join nothing."""
    config = {"kind": "transformer", "vocab": 8, "n_layer": 1, "d_model": 4, "d_head": 2, "d_mlp": 4, "n_ctx": 4}
    model = models.build(config, 0)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        block: Any = model.blocks[0]  # type: ignore[index]
        block.attn.to_q.weight[0, 0] = block.attn.to_v.weight[1, 1] = block.attn.out.weight[3, 1] = 1.0
        block.mlp.up.weight[2, 0] = block.mlp.down.weight[0, 2] = 1.0
    keep = {
        "block0.attn.in": [0, 1], "block0.attn.q": [0], "block0.attn.k": [3], "block0.attn.v": [1],
        "block0.attn.write": [3], "block0.mlp.in": [0], "block0.mlp.act": [2], "block0.mlp.write": [0], "final.in": [0],
    }  # fmt: skip
    graph = patching.graph_of(model)
    masks = {s.name: torch.zeros(s.size, dtype=torch.bool) for s in graph.prunable}
    for site, kept in keep.items():
        masks[site][kept] = True
    found = {frozenset(map(name_of, p)) for p in pieces(Circuit.from_nodes(graph, masks, patching.support(model)))}
    head = {"block0.attn.in:0", "block0.attn.in:1", "block0.attn.q:0", "block0.attn.v:1", "block0.attn.write:3"}
    assert found == {
        frozenset(head),
        frozenset({"block0.attn.k:3"}),  # of the other head, whose values are not kept
        frozenset({"block0.mlp.in:0", "block0.mlp.act:2", "block0.mlp.write:0"}),
        frozenset({"final.in:0"}),
    }


def test_modules_of_the_run_take_the_place_of_pieces() -> None:
    model = planted.planted_model()
    circuit = planted.circuit_of(model, planted.PADDED)
    first = {"hidden0": torch.arange(10) < 2, "hidden1": torch.arange(8) < 2}
    other = {s: ~m for s, m in first.items()}
    topics = topics_of(circuit, "sign", {"module 0": first, "module 1": other})
    modules = {t.name: t.nodes for t in topics if t.kind == "module"}
    assert modules == {
        "module 0": (("hidden0", 0), ("hidden0", 1), ("hidden1", 0), ("hidden1", 1)),
        "module 1": (("hidden0", 5), ("hidden1", 4)),
    }
    every = {s: torch.ones_like(m) for s, m in first.items()}
    alone = {"hidden0": torch.arange(10) < 1, "hidden1": torch.arange(8) < 0}
    kinds = [t.kind for t in topics_of(circuit, "sign", {"all": every, "one": alone})]
    assert "module" not in kinds, "the whole circuit and single nodes are no modules of it"
    assert kinds == ["node"] * 6 + ["circuit"], "inputs are no topics"
    assert topics_of(Circuit.empty(circuit.graph), "none") == ()


# -- activity --------------------------------------------------------------------------------------------------------


def test_a_node_is_what_it_sends_in_the_circuit_less_the_reference(seen: Seen) -> None:
    model, circuit, reference, task, measured = seen
    tokens, at = task.split("explain").inputs
    acts, observed = inside(model, circuit, reference, tokens), measured.observed
    for k, t in enumerate(observed.topics):
        if t.kind != "node":
            continue
        ((site, i),) = t.nodes
        expected = (acts[site][..., i] - reference[site][i]).numpy()
        for row in range(len(tokens)):
            end = int(at[row]) + 1
            assert observed.activity[k, row, :end] == pytest.approx(expected[row, :end], abs=2e-5)
    assert np.array_equal(np.isnan(observed.activity[0]), ~observed.sample.counted)
    whole = patching.record(model, (tokens,))
    moved = [t for t in observed.topics if t.kind == "node" and t.nodes[0][0].startswith("block1")]
    assert any(
        not torch.allclose(whole[s][..., i], acts[s][..., i], atol=1e-3) for t in moved for s, i in t.nodes
    ), "the circuit's run equals the model's: the test cannot tell them apart"  # fmt: skip


def test_a_module_is_the_size_of_what_it_changes_outside(seen: Seen) -> None:
    """The same vector, written out reader by reader."""
    model, circuit, reference, task, measured = seen
    tokens, at = task.split("explain").inputs
    acts, observed = inside(model, circuit, reference, tokens), measured.observed
    graph, tried = circuit.graph, 0
    for k, t in enumerate(observed.topics):
        if t.kind != "module":
            continue
        tried += 1
        mine = set(t.nodes)
        for row, position in ((0, 1), (3, 4), (7, int(at[7]))):
            change = {(s, i): float(acts[s][row, position, i] - reference[s][i]) for s, i in t.nodes}
            outside: dict[tuple[str, int], float] = {}
            for e in graph.links:
                weight = None if e.kind == "sum" else patching.weight_of(model.get_submodule(e.module)).detach()
                for (s, i), c in change.items():
                    if s != e.src:
                        continue
                    for j in [i] if e.kind == "sum" else range(graph.site(e.dst).size):
                        kept = circuit.edges[e.name][i] if weight is None else circuit.edges[e.name][j, i]
                        if kept and (e.dst, j) not in mine:
                            w = 1.0 if weight is None else float(weight[j, i])
                            outside[e.dst, j] = outside.get((e.dst, j), 0.0) + w * c
            total = sum(x * x for x in outside.values())
            for (s, i), c in change.items():
                steers, group = graph.site(s).steers, graph.site(s).group
                head = range(i // group * group, (i // group + 1) * group) if steers else ()
                if any(circuit.nodes[steers][j] and (steers, j) not in mine for j in head):
                    total += c * c
            assert observed.activity[k, row, position] == pytest.approx(math.sqrt(total), rel=1e-3, abs=1e-4)
    assert tried >= 2


def test_a_circuit_is_the_logit_difference_at_every_position(seen: Seen) -> None:
    model, circuit, reference, task, measured = seen
    split = task.split("explain")
    with torch.no_grad():
        out = patching.run(model, split.inputs, circuit, reference)
    pair = two_answers(split)
    assert pair is not None and pair == tuple(sorted((page_runs.CLOSE, page_runs.CLOSE_DOUBLE)))
    mine = measured.observed.activity[-1]
    asked = mine[np.arange(len(split)), measured.observed.sample.asked]
    empty = without(circuit, measured.observed.topics[-1])
    none = patching.run(model, split.inputs, empty, reference).detach()
    moved = out - none
    assert asked == pytest.approx((moved[:, pair[0]] - moved[:, pair[1]]).numpy(), abs=1e-4)
    assert float(asked.std()) > 0.01
    at = (split.inputs[0], torch.full((len(split),), 3))
    early, none = (patching.run(model, at, c, reference).detach() for c in (circuit, empty))
    early = early - none
    assert mine[:, 3] == pytest.approx((early[:, pair[0]] - early[:, pair[1]]).numpy(), abs=1e-4)
    assert np.array_equal(np.isfinite(mine), measured.observed.sample.counted)
    assert "')" in unit_of(measured.observed.topics[-1], split, page_runs.decode)


def test_more_answers_than_two_are_right_less_the_mean_of_the_wrong() -> None:
    model = models.build({"kind": "mlp", "inputs": 7, "hidden": (6,), "outputs": 4}, 0)
    x, answer = torch.randn(9, 7, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4
    wrong = torch.tensor([[j for j in range(4) if j != a] for a in answer.tolist()])
    split = Split("explain", (x,), answer, wrong, torch.full((9,), -1), ("",) * 9)
    task = Task("t", "", {"explain": split}, tuple("abcd"))
    circuit = Circuit.whole(patching.graph_of(model), patching.support(model))
    reference = patching.zero_reference(model)
    sample = sample_of(task, "explain", Legend())
    seen = observe(model, circuit, reference, topics_of(circuit, "c"), split, sample)
    out = (
        model(x).detach() - patching.run(model, (x,), without(circuit, topics_of(circuit, "c")[-1]), reference).detach()
    )
    expected = [float(out[i, a] - out[i, wrong[i]].mean()) for i, a in enumerate(answer.tolist())]
    assert seen.activity[-1] == pytest.approx(np.asarray(expected), abs=1e-5)
    assert seen.activity.shape == (7, 9)
    assert sample.right[:4] == tuple("abcd") and sample.wrong[0] == "b | c | d"


def test_of_more_answers_every_position_is_asked_for_the_example_s_own(seen: Seen) -> None:
    model, circuit, reference, task, _ = seen
    split = task.split("explain")
    third = torch.full((len(split), 1), page_runs.QUOTE)
    more = Split("explain", split.inputs, split.answer, torch.cat([split.wrong, third], 1), split.pair, split.texts)
    topic = topics_of(circuit, "c")[-1]
    seen_again = observe(model, circuit, reference, [topic], more, sample_of(task, "explain", READ))
    at = (split.inputs[0], torch.full((len(split),), 2))
    whole, none = (patching.run(model, at, c, reference).detach() for c in (circuit, without(circuit, topic)))
    out = whole - none
    for i in range(4):
        expected = out[i, more.answer[i]] - out[i, more.wrong[i]].mean()
        assert seen_again.activity[0, i, 2] == pytest.approx(float(expected), abs=1e-4)


def test_of_counterparts_the_mean_is_subtracted() -> None:
    """What a node does on an example does not depend on which one it is compared with."""
    model = page_runs.transformer(16, 0.5, 3)
    circuit, task = page_runs.grown_circuit(model, 16, 2, 0), page_runs.quote_task(n=5)
    split = task.split("explain")
    tokens, at = split.inputs
    topics = topics_of(circuit, "c")
    seen = observe(model, circuit, "counterfactual", topics, split, sample_of(task, "explain", READ))
    other = patching.record(model, (tokens[split.pair],))
    acts = inside(model, circuit, other, tokens)
    different = 0
    for k, t in enumerate(topics):
        if t.kind == "node":
            ((site, i),) = t.nodes
            counted = torch.arange(tokens.shape[1])[None, :] <= at[split.pair][:, None]
            expected = (acts[site][..., i] - other[site][..., i][counted].mean()).numpy()
            for row in range(len(tokens)):
                end = int(at[row]) + 1
                assert seen.activity[k, row, :end] == pytest.approx(expected[row, :end], abs=2e-5)
            different += int(np.nanmax(np.abs(seen.activity[k])) > 1e-4)
    assert different
    assert float(np.nanmean(seen.activity[-1])) == pytest.approx(0, abs=1e-4) and np.nanstd(seen.activity[-1]) > 1e-3
    exact = patching.counterfactual_reference(model, (tokens[split.pair], at[split.pair]))
    with torch.no_grad():
        base = losses(patching.run(model, split.inputs, circuit, exact), split)
        gone = losses(patching.run(model, split.inputs, without(circuit, topics[0]), exact), split)
    assert seen.damage[0] == pytest.approx((gone - base).numpy(), abs=1e-4)


def test_a_channel_of_maps_is_its_largest_value() -> None:
    config = {"kind": "cnn", "image": (1, 8, 8), "blocks": [{"channels": 3, "kernel": 3}], "hidden": (5,), "outputs": 2}
    model = models.build(config, 0)
    x = torch.rand(6, 64, generator=torch.Generator().manual_seed(0))
    answer = torch.arange(6) % 2
    split = Split("explain", (x,), answer, (1 - answer)[:, None], torch.full((6,), -1), ("",) * 6)
    task = Task("t", "", {"explain": split}, ("even", "odd"))
    circuit = Circuit.whole(patching.graph_of(model), patching.support(model))
    reference = patching.mean_reference(model, [(x,)])
    sample = sample_of(task, "explain", Legend(shape=(8, 8, 1)))
    topics = topics_of(circuit, "c")
    seen = observe(model, circuit, reference, topics, split, sample)
    site = next(s.name for s in patching.graph_of(model).prunable if s.axis == 1)
    maps = patching.record(model, (x,))[site]
    k = [t.name for t in topics].index(f"{site}:1")
    expected = maps[:, 1].flatten(1).amax(1) - reference[site][1]
    assert seen.activity[k] == pytest.approx(expected.numpy(), abs=1e-5)
    assert sample.names[9] == "row 1, column 1"


def test_heads_and_mlps_are_the_length_of_what_they_add() -> None:
    model = models.at_granularity(page_runs.transformer(16, 0.5, 3), "components")
    task = page_runs.quote_task(n=4)
    split, graph = task.split("explain"), patching.graph_of(model)
    reference = patching.mean_reference(model, [split.inputs])
    circuit = Circuit.whole(graph, patching.support(model))
    topics = [t for t in topics_of(circuit, "c") if t.kind == "node"]
    seen = observe(model, circuit, reference, topics, split, sample_of(task, "explain", READ))
    acts = patching.record(model, split.inputs[:1])
    loud = 0
    for k, t in enumerate(topics):
        ((site, i),) = t.nodes
        expected = (acts[site] - reference[site])[..., i, :].norm(dim=-1).numpy()
        assert seen.activity[k, 0, :4] == pytest.approx(expected[0, :4], abs=1e-4)
        loud += float(expected.max()) > 0.1
    assert loud > 3


# -- damage ----------------------------------------------------------------------------------------------------------


def without(circuit: Circuit, t: Topic) -> Circuit:
    nodes = {s: m.clone() for s, m in circuit.nodes.items()}
    for site, i in t.nodes:
        nodes[site][i] = False
    return Circuit.from_nodes(circuit.graph, nodes, circuit.edges)


def test_damage_is_what_a_patched_run_loses_example_by_example(seen: Seen) -> None:
    model, circuit, reference, task, measured = seen
    split = task.split("explain")

    def run(c: Circuit) -> Tensor:
        with torch.no_grad():
            return patching.run(model, split.inputs, c, reference)

    whole = run(circuit)
    base = losses(whole, split)
    assert measured.base == pytest.approx(base.numpy(), abs=1e-4)
    topics = measured.observed.topics
    large = 0.0
    for k in [*range(0, len(topics), 4), *range(len(topics) - 4, len(topics))]:
        out = run(without(circuit, topics[k]))
        assert measured.observed.damage[k] == pytest.approx((losses(out, split) - base).numpy(), abs=3e-4)
        assert measured.shift[k] == pytest.approx((out - whole).mean(0).numpy(), abs=3e-4)
        large = max(large, float(measured.observed.damage[k].max()))
    assert large > 0.05, "nothing here does damage: the test is blind"


def test_damage_elsewhere_is_in_the_whole_model(seen: Seen) -> None:
    model, circuit, reference, task, measured = seen
    topics = [measured.observed.topics[0], measured.observed.topics[-1]]
    found = damage_elsewhere(model, reference, topics, {"quotes": task.split("explain")}, 8)["quotes"]
    some = task.split("explain").take(torch.arange(8))
    whole = Circuit.whole(circuit.graph, patching.support(model))
    with torch.no_grad():
        base = losses(model(*some.inputs), some)
        gone = [losses(patching.run(model, some.inputs, without(whole, t), reference), some) for t in topics]
    assert found == pytest.approx([float((g - base).mean()) for g in gone], abs=3e-4)


def test_in_the_whole_model_nothing_is_at_the_reference(seen: Seen) -> None:
    model, circuit, reference, task, _ = seen
    parts = random_parts(model, circuit, topics_of(circuit, "c"), 0)
    tokens, at = task.split("explain").inputs
    observed = observe(model, None, reference, parts, task.split("explain"), sample_of(task, "explain", READ))
    acts = patching.record(model, (tokens,))
    ((site, i),) = parts[3].nodes
    end = int(at[0]) + 1
    assert observed.activity[3, 0, :end] == pytest.approx((acts[site] - reference[site])[0, :end, i].numpy(), abs=2e-5)


def test_same_observations_again_and_the_model_is_left_alone(seen: Seen) -> None:
    model, circuit, reference, task, measured = seen
    again = observe(
        model, circuit, reference, measured.observed.topics, task.split("explain"), measured.observed.sample
    )
    assert np.array_equal(again.activity, measured.observed.activity, equal_nan=True)
    assert np.array_equal(again.damage, measured.observed.damage)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_cannot_be_observed_is_refused(seen: Seen) -> None:
    model, circuit, reference, task, measured = seen
    split, sample = task.split("explain"), measured.observed.sample
    gone = next(i for i in range(32) if not circuit.nodes["final.in"][i])
    with pytest.raises(UsageError, match="not in the circuit"):
        observe(model, circuit, reference, [Topic("x", "node", (("final.in", gone),))], split, sample)
    nobody = split.take(torch.tensor([], dtype=torch.long))
    with pytest.raises(UsageError, match="no examples"):
        observe(model, circuit, reference, [], nobody, sample)
    with pytest.raises(UsageError, match="decode"):
        sample_of(task, "explain", Legend())


# -- samples and rivals ----------------------------------------------------------------------------------------------


def test_a_sample_reads_as_its_examples(seen: Seen) -> None:
    _, _, _, task, measured = seen
    sample, split = measured.observed.sample, task.split("explain")
    for i, text in enumerate(split.texts):
        assert sample.tokens is not None
        words = [sample.words[t] for t in sample.tokens[i, : sample.asked[i] + 1]]
        assert "".join(words) == text
    assert sample.right[:2] == ("')", '")') and sample.wrong[:2] == ('")', "')")


def test_pixels_of_an_image_stand_row_by_row_with_their_channels() -> None:
    """A task gives channel by channel; a sample place by place."""
    x = torch.arange(2 * 12).float().view(2, 12)  # 2 channels of 2 x 3
    split = Split("explain", (x,), torch.zeros(2).long(), torch.ones(2, 1).long(), torch.tensor([-1, -1]), ("", ""))
    sample = sample_of(Task("t", "", {"explain": split}, ("a", "b")), "explain", Legend(shape=(2, 3, 2)))
    assert sample.features is not None
    assert sample.features[0].tolist() == [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]
    assert sample.names[7] == "row 1, column 0, channel 1"
    with pytest.raises(UsageError, match="features"):
        sample_of(Task("t", "", {"explain": split}, ("a", "b")), "explain", Legend(shape=(2, 2, 2)))


def test_random_parts_have_as_many_nodes_of_every_site_and_live_outside_where_they_can(seen: Seen) -> None:
    model, circuit, _, _, measured = seen
    topics = measured.observed.topics
    parts = random_parts(model, circuit, topics, 1)
    assert parts == random_parts(model, circuit, topics, 1) != random_parts(model, circuit, topics, 2)
    live = live_nodes(model)
    for t, p in zip(topics, parts, strict=True):
        assert (p.name, p.kind) == (t.name, t.kind) and len(set(p.nodes)) == len(t.nodes)
        for site in {s for s, _ in t.nodes}:
            mine, theirs = ([i for s, i in x.nodes if s == site] for x in (t, p))
            assert len(mine) == len(theirs)
            room = int((live[site] & ~circuit.nodes[site]).sum())
            outside = [i for i in theirs if live[site][i] and not circuit.nodes[site][i]]
            assert len(outside) == min(len(mine), room)


# -- wires -----------------------------------------------------------------------------------------------------------


def test_wires_are_the_kept_edges_across_the_border(seen: Seen) -> None:
    model, circuit, _, _, measured = seen
    told = {MATRIX: 0, RESIDUAL: 0, STEERS: 0}
    for t in measured.observed.topics:
        wires, mine = wires_of(model, circuit, t), {name_of(n) for n in t.nodes}
        expected = 0
        for e in circuit.graph.links:
            if e.kind != "weight":
                continue
            for dst, src in circuit.edges[e.name].nonzero().tolist():
                expected += ((e.src, src) in t.nodes) != ((e.dst, dst) in t.nodes)
        matrices = [w for w in (*wires.reads, *wires.writes) if w.joins == MATRIX]
        if not wires.more_reads and not wires.more_writes:
            assert len(matrices) == expected
        for w in (*wires.reads, *wires.writes):
            assert w.mine in mine and w.other not in mine
            told[w.joins] += 1
        for w in matrices:
            (a, i), (b, j) = (x.rsplit(":", 1) for x in (w.mine, w.other))
            link = next(e for e in circuit.graph.links if {e.src, e.dst} == {a, b} and e.kind == "weight")
            dst, src = (int(i), int(j)) if link.dst == a else (int(j), int(i))
            weight = patching.weight_of(model.get_submodule(link.module))
            assert w.weight == pytest.approx(float(weight[dst, src].detach()), rel=1e-4)
    assert all(told.values()), told


def test_the_lens_is_the_direct_path_to_the_outputs() -> None:
    """Without norms the path is linear: moving a last neuron moves the logits by as much as the lens says."""
    config = {
        "kind": "transformer", "vocab": 9, "n_layer": 2, "d_model": 8, "d_head": 4, "d_mlp": 6, "n_ctx": 5,
        "norm": False, "init_std": 0.4,
    }  # fmt: skip
    model = models.build(config, 0).eval()
    circuit = Circuit.whole(patching.graph_of(model), patching.support(model))
    tokens, at = torch.randint(9, (3, 5), generator=torch.Generator().manual_seed(0)), torch.full((3,), 4)
    sent = patching.record(model, (tokens, at))["block1.mlp.act"]
    moved = patching.zero_reference(model) | {"block1.mlp.act": sent + 1.0}
    for i in (0, 4):
        keep = torch.ones(6)
        keep[i] = 0
        with torch.no_grad(), patching.patched(model, moved, {"block1.mlp.act": keep}):
            rise = model(tokens, at)
        rise = (rise - model(tokens, at).detach()).numpy()
        lens = wires_of(model, circuit, Topic("n", "node", (("block1.mlp.act", i),))).lens
        assert lens is not None and np.abs(lens).max() > 0.05
        assert rise == pytest.approx(np.repeat(lens, 3, 0), abs=1e-5)
    earlier = wires_of(model, circuit, Topic("n", "node", (("block0.mlp.act", 1),))).lens
    assert earlier is not None, "a write of an earlier block reaches the outputs over the stream"
    assert wires_of(model, circuit, Topic("n", "node", (("block1.mlp.in", 1),))).lens is None, "not by sums alone"


def test_channels_are_told_by_the_tokens_that_move_them_most(seen: Seen) -> None:
    model, circuit, _, _, measured = seen
    told = channel_tokens(model, circuit, measured.observed.sample.words, 1)
    assert told
    weight: Tensor = model.embed.weight.detach()  # type: ignore[union-attr, assignment]
    for name, text in told.items():
        c = int(name.rpartition(":")[2])
        best = int(weight[: len(measured.observed.sample.words), c].abs().argmax())
        if best == int(weight[:, c].abs().argmax()):
            assert repr(page_runs.decode(best)) in text
