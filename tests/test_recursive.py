"""Recursive activation patching: single edges against masks, the recursion against its definition, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from openwork import patching
from openwork.circuit import Circuit
from openwork.discover import RecursiveSettings, find
from openwork.discover.recursive import FOLLOWED, explore
from openwork.errors import UsageError
from openwork.graph import Graph, Link, Site
from openwork.models.single import MLPSingle
from openwork.patched_run import PatchedRun
from openwork.single import Single, single
from openwork.tasks.metrics import METRICS
from openwork.tasks.task import Split
from planted import PLANTED, circuit_of, examples, planted_model
from subject_models import VARIANTS, hooks_on, inputs_of, make

SMALL = ("mlp, silu", "mlp over an embedding of two slots", "cnn", "transformer, no gain, one layer")
CASES = [(name, "counterfactual") for name in VARIANTS] + [(name, "mean") for name in ("mlp", "cnn", "transformer")]


def reference_of(model: nn.Module, kind: str) -> patching.Reference:
    other = inputs_of(model, seed=1)[-1]
    if kind == "mean":
        return patching.mean_reference(model, [other])
    return patching.counterfactual_reference(model, other)


def by_mask(
    model: nn.Module, inputs: patching.Inputs, reference: patching.Reference, e: Link, dst: int, src: int
) -> Tensor:
    mask = torch.ones(e.shape)
    mask[(src,) if e.kind == "sum" else (dst, src)] = 0
    with torch.no_grad(), patching.patched(model, reference, edges={e.name: mask}):
        return model(*inputs)


def subject(name: str, n: int = 6) -> tuple[nn.Module, Split]:
    """A small model and examples whose answers lie among its outputs, each the counterpart of its neighbour."""
    model = make("mlp" if name == "mlp, silu" else name)
    if name == "mlp, silu":
        model.config = model.config.model_copy(update={"activation": "silu"})  # type: ignore[union-attr, operator]
    inputs = inputs_of(model, seed=2, n=n)[-1]
    answer = torch.arange(n) % 3
    return model, Split(
        "discover", inputs, answer, (answer[:, None] + torch.tensor([1])) % 3, torch.arange(n) ^ 1, ("",) * n
    )


# -- single edges and nodes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_edge_alone_is_what_its_mask_says(name: str, kind: str) -> None:
    model = make(name)
    inputs, reference = inputs_of(model)[-1], reference_of(model, kind)
    ways = [Single(model, inputs, reference), single(model, inputs, reference)]
    with torch.no_grad():
        whole, moved = model(*inputs), 0
    for e in model.graph().links:  # type: ignore[operator]
        for dst in {0} if e.kind == "sum" else {0, e.shape[0] - 1}:
            src = torch.arange(e.shape[-1])[-3:]
            wanted = torch.stack([by_mask(model, inputs, reference, e, dst, int(u)) for u in src])
            moved += int((wanted - whole).abs().amax() > 1e-4)
            for way in ways:
                torch.testing.assert_close(way.edges(e.name, dst, src), wanted, rtol=1e-4, atol=1e-5)
    assert moved >= len(model.graph().links) // 2  # type: ignore[operator]
    assert hooks_on(model) == 0


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_node_alone_is_what_its_mask_says(name: str, kind: str) -> None:
    model = make(name)
    inputs, reference = inputs_of(model)[-1], reference_of(model, kind)
    runs = single(model, inputs, reference)
    for s in model.graph().prunable:  # type: ignore[operator]
        ids = torch.arange(s.size)[-3:]
        got = runs.nodes(s.name, ids)
        for node, logits in zip(ids, got, strict=True):
            mask = torch.ones(s.size)
            mask[node] = 0
            with torch.no_grad(), patching.patched(model, reference, {s.name: mask}):
                torch.testing.assert_close(logits, model(*inputs), rtol=1e-4, atol=1e-5)


class Vectors(nn.Module):
    """Three nodes that each send two numbers, and a layer of one's own that reads them."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.send, self.read = nn.Unflatten(1, (3, 2)), ReadsVectors(torch.randn(4, 3, 2, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.send(x))

    def graph(self) -> Graph:
        sites = Site("pairs", 3, "send", "neuron", 0, axis=-2, width=2), Site("logits", 4, "read", "output", 1, False)
        return Graph(sites, (Link("pairs>logits", "pairs", "logits", "read", (4, 3)),))


class ReadsVectors(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, h: Tensor) -> Tensor:
        return torch.einsum("bsw,dsw->bd", h, self.weight) ** 3


@patching.weight_of.register
def _(module: ReadsVectors) -> Tensor:
    return module.weight.norm(dim=-1)


@patching.carry.register
def _(module: ReadsVectors, reference: Tensor, now: Tensor, ablated: Tensor) -> Tensor:
    before = torch.einsum("bsw,dsw->bd", now, module.weight)
    return (before + torch.einsum("bsw,ds,dsw->bd", reference - now, ablated, module.weight)) ** 3 - before**3


def test_nodes_that_send_vectors_are_patched_as_wholes() -> None:
    model, g = Vectors(), torch.Generator().manual_seed(1)
    x, other = torch.randn(5, 6, generator=g), torch.randn(5, 6, generator=g)
    runs = single(model, (x,), patching.counterfactual_reference(model, (other,)))
    nodes, edges = runs.nodes("pairs", torch.tensor([0, 2])), runs.edges("pairs>logits", 1, torch.tensor([2]))
    for node, logits in zip((0, 2), nodes, strict=True):
        mixed = x.clone()
        mixed[:, 2 * node : 2 * node + 2] = other[:, 2 * node : 2 * node + 2]
        torch.testing.assert_close(logits, model(mixed))
    wanted = model(x)
    wanted[:, 1] = nodes[1][:, 1]
    torch.testing.assert_close(edges[0], wanted)


def test_perceptrons_run_what_one_edge_changes_and_others_the_whole_model() -> None:
    for name, own in (("mlp", True), ("mlp, abstopk", False), ("cnn", False), ("transformer", False)):
        model = make(name)
        assert isinstance(single(model, inputs_of(model)[-1], patching.zero_reference(model)), MLPSingle) == own
    model = planted_model()
    with pytest.raises(UsageError, match="no value for site hidden0"):
        single(model, (torch.zeros(1, 8),), {"input": torch.zeros(8)}).edges("hidden0>hidden1", 0, torch.tensor([0]))


# -- the recursion ---------------------------------------------------------------------------------------------------


def effects_by_mask(run: PatchedRun, split: Split, metric: str) -> dict[str, Tensor]:
    """Mean |change| of every edge's ablation alone, from whole runs with masks."""
    judge = METRICS[metric]
    with torch.no_grad():
        whole = run.values(split, metric=judge)
        out = {}
        for e in run.graph.links:
            if e.counts in FOLLOWED:
                continue
            out[e.name] = torch.zeros(e.shape, dtype=torch.float64)
            for at in run.support[e.name].nonzero().tolist():
                mask = torch.ones(e.shape)
                mask[tuple(at)] = 0
                values = run.values(split, edges={e.name: mask}, metric=judge)
                out[e.name][tuple(at)] = (values - whole).abs().double().mean()
    return out


def recursion(run: PatchedRun, effects: dict[str, Tensor], threshold: float) -> tuple[dict[str, Tensor], int]:
    """The definition: edges kept from the outputs back, and how many were looked at."""
    graph = run.graph
    nodes = {s.name: torch.full((s.size,), s.kind == "output") for s in graph.sites}
    kept, tested = {n: torch.zeros(x.shape, dtype=torch.bool) for n, x in effects.items()}, 0
    for site in reversed(graph.sites):
        if site.steers:
            for node in range(site.size):
                first = node - node % site.group
                nodes[site.name][node] |= bool(nodes[site.steers][first : first + site.group].any())
        for e in graph.into(site.name):
            for at in run.support[e.name].nonzero().tolist():
                if not nodes[site.name][at[0]]:
                    continue
                if e.name in effects:
                    tested += 1
                    if effects[e.name][tuple(at)] <= threshold:
                        continue
                    kept[e.name][tuple(at)] = True
                nodes[e.src][at[-1]] = True
    return kept, tested


@pytest.mark.parametrize(("name", "metric"), [*((n, "logit_difference") for n in SMALL), ("cnn", "kl")])
def test_the_ranking_holds_the_recursion_at_every_threshold(name: str, metric: str) -> None:
    model, split = subject(name)
    run = PatchedRun(model, "counterfactual")
    effects = effects_by_mask(run, split, metric)
    everything = explore(run, split, METRICS[metric])
    flat = torch.cat([x.flatten() for x in effects.values()])
    ranked = flat[flat > 1e-4].sort().values
    gaps = (ranked[1:] / ranked[:-1]).log()  # thresholds where no effect is near: the two ways round differently
    sizes = []
    for share in (0.1, 0.3, 0.5):
        near = range(int(share * len(ranked)), int(share * len(ranked)) + len(ranked) // 10 + 1)
        i = max(near, key=lambda k: float(gaps[k]))
        threshold = float((ranked[i] * ranked[i + 1]).sqrt())
        kept, tested = recursion(run, effects, threshold)
        direct = explore(run, split, METRICS[metric], threshold)
        for found in (everything, direct):
            above = found.scores.above(threshold)
            for e, mask in kept.items():
                assert torch.equal(above[e], mask), e
        assert direct.tested == tested
        sizes.append(sum(int(m.sum()) for m in kept.values()))
    assert sizes[0] > sizes[1] > sizes[2] >= 0
    assert sizes[1] > 0
    assert everything.scores.origin["patched_runs"] == everything.tested


@pytest.mark.parametrize("name", ["mlp, silu", "transformer, no gain, one layer"])
def test_nodes_are_reached_by_edges_to_kept_nodes(name: str) -> None:
    model, split = subject(name)
    run = PatchedRun(model, "counterfactual")
    everything = explore(run, split, of="nodes")
    worth = torch.cat(list(everything.scores.values.values()))
    threshold = float(worth[worth > 0].median())
    direct = explore(run, split, threshold=threshold, of="nodes")
    assert direct.tested < everything.tested
    masks = everything.scores.above(threshold)
    assert all(torch.equal(m, direct.scores.above(threshold)[n]) for n, m in masks.items())
    whole = run.values(split, metric=METRICS["logit_difference"])
    for s in run.graph.prunable:
        readers = torch.zeros(s.size, dtype=torch.bool)
        for e in run.graph.out_of(s.name):
            there = masks[e.dst] if e.kind == "sum" else (run.support[e.name] & masks[e.dst][:, None]).any(0)
            readers |= there
        if s.steers:
            readers |= masks[s.steers].view(-1, s.group).any(1).repeat_interleave(s.group)
        for node in range(s.size):
            mask = torch.ones(s.size)
            mask[node] = 0
            with torch.no_grad():
                moved = run.values(split, {s.name: mask}, metric=METRICS["logit_difference"]) - whole
            effect = float(moved.abs().mean())
            if abs(effect - threshold) > 1e-6:
                assert bool(masks[s.name][node]) == (bool(readers[node]) and effect > threshold), (s.name, node)


def test_an_effect_worked_by_hand() -> None:
    """The planted edge hidden1:0 > logits:0 carries 4 relu(x0), and nothing else of its source reaches the logits."""
    model, split = planted_model(), examples("discover", 30, 7)
    scores = explore(PatchedRun(model, patching.zero_reference(model)), split).scores
    wanted = 4 * split.inputs[0][:, 0].relu().mean()
    assert float(scores.values["hidden1>logits"][0, 0]) == pytest.approx(float(wanted), rel=1e-5)
    assert float(scores.values["hidden0>hidden1"][0, 0]) == pytest.approx(float(wanted), rel=1e-5)
    assert float(scores.values["hidden1>logits"][1, 0]) == 0  # no weight, no edge
    assert scores.unit == "logits"


# -- the method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["edges", "nodes"])
@pytest.mark.parametrize("reference", ["zero", "counterfactual", "resample"])
def test_the_planted_circuit_is_found_under_every_reference(of: str, reference: str) -> None:
    model, split = planted_model(), examples("discover", 60, 7)
    given = patching.zero_reference(model) if reference == "zero" else reference
    found = find(model, given, split, "recursive", of=of, target=0.1)
    assert found.circuit == circuit_of(model, PLANTED)
    assert found.origin["patched_runs"] > 0
    assert found.origin["examples"] == len(split.halves()[0])


def test_a_threshold_decides_and_is_held_to_the_target() -> None:
    model, split = planted_model(), examples("discover", 60, 7)
    zero = patching.zero_reference(model)
    found = find(model, zero, split, "recursive", threshold=1.0)
    assert found.circuit == circuit_of(model, PLANTED)
    assert found.scores is None
    everything = find(model, zero, split, "recursive", threshold=0.0)
    assert found.origin["patched_runs"] < everything.origin["patched_runs"]
    assert find(model, zero, split, "recursive", threshold=1e9).status == "infeasible"
    only = Circuit.from_edges(
        model.graph(), explore(PatchedRun(model, zero), split, threshold=1.0).scores.above(1.0), patching.support(model)
    )
    assert only == found.circuit


def test_progress_is_told() -> None:
    model, split = planted_model(), examples("discover", 10, 7)
    seen: list[tuple[int, int]] = []
    explored = explore(PatchedRun(model, "counterfactual"), split, progress=lambda now, most: seen.append((now, most)))
    assert [now for now, _ in seen] == sorted(now for now, _ in seen)
    assert seen[-1][0] == explored.tested <= seen[-1][1]


def test_what_makes_no_sense_is_refused() -> None:
    model, split = planted_model(), examples("discover", 10, 7)
    zero = patching.zero_reference(model)
    with pytest.raises(UsageError, match='no metric named "logit_diff".*Nearest: "logit_difference"'):
        RecursiveSettings(metric="logit_diff")
    with pytest.raises(UsageError, match="threshold -1"):
        find(model, zero, split, "recursive", threshold=-1)
    with pytest.raises(UsageError, match="no value for site input"):
        explore(PatchedRun(model, {n: v for n, v in zero.items() if n != "input"}), split)
    alone = replace(split, pair=torch.full((len(split),), -1))
    with pytest.raises(UsageError, match="no counterpart"):
        explore(PatchedRun(model, "counterfactual"), alone)
