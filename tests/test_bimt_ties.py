"""BIMT where sites share their places and nodes come in blocks: convolutions and transformers, against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from openwork import files, models
from openwork.errors import UsageError
from openwork.graph import Graph, Link, Site
from openwork.models.cnn import ConvBlock
from openwork.patching import graph_of, weight_of
from openwork.store import model_digest
from openwork.training import BIMT, BIMTSettings, TrainSettings, make_regime, train
from openwork.training.relocation import (
    Places,
    Tied,
    as_lists,
    by_assignment,
    by_swaps,
    grid,
    movable,
    place_costs,
    relocate,
    shortest_wire_length,
    start_of,
    ties,
    wire_length,
    wire_length_of,
    wires_of,
)

TRANSFORMER = models.TransformerConfig(vocab=7, n_layer=2, d_model=6, d_head=3, d_mlp=5, n_ctx=4)
CNN = models.CNNConfig(image=(2, 6, 6), blocks=(ConvBlock(channels=5, kernel=3, pool=2),), hidden=(7,), outputs=3)
STREAM = (
    *("embed", "block0.attn.in", "block0.attn.write", "block0.mlp.in", "block0.mlp.write"),
    *("block1.attn.in", "block1.attn.write", "block1.mlp.in", "block1.mlp.write", "final.in"),
)


def shaken(config: Any, seed: int = 0) -> nn.Module:
    """A model whose weights are all of a size, so that every link matters."""
    model = models.build(config, seed)
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=g))
    return model


def by_hand(model: nn.Module, places: Places, reduce: str = "sum") -> float:
    """The definition of the cost, weight by weight, in float64."""
    total = 0.0
    for e in graph_of(model).links:
        if e.kind != "weight" or e.counts == "embedding":  # tables are no wires
            continue
        w = weight_of(model.get_submodule(e.module)).detach().double()
        a, b = places.of(e.dst).double(), places.of(e.src).double()
        far = (a[:, None] - b[None]).abs().sum(-1)
        cost = (w.abs() * far.view(*far.shape, *[1] * (w.dim() - 2))).sum()
        total += float(cost) / (1 if reduce == "sum" else w.numel())
    return total


def anywhere(places: Places, tied: tuple[Tied, ...], seed: int) -> Places:
    """Every arrangement drawn anew within its rule."""
    rng = np.random.default_rng(seed)
    for t in tied:
        n = len(places.at[t.sites[0]])
        at = [b * t.block + k for b in rng.permutation(n // t.block) for k in rng.permutation(t.block)]
        places = places.moved(t, torch.tensor(at))
    return places


def keeps_the_rules(places: Places, tied: tuple[Tied, ...]) -> bool:
    """Permutations, the same for tied sites, every block of nodes on one block of spots."""
    for t in tied:
        at = places.at[t.sites[0]]
        if sorted(at.tolist()) != list(range(len(at))):
            return False
        if any(
            not torch.equal(places.at[s], at) or not torch.equal(places.of(s), places.of(t.sites[0])) for s in t.sites
        ):
            return False
        if any(len(set(b.tolist())) > 1 for b in (at // t.block).view(-1, t.block)):
            return False
    return True


# -- what a graph says -------------------------------------------------------------------------------------------------


def test_ties_are_read_off_the_graph() -> None:
    told = {t.sites: t.block for t in ties(models.build(TRANSFORMER).graph())}  # type: ignore[operator]
    heads = [tuple(f"block{i}.attn.{x}" for x in "qkv") for i in range(2)]
    free = [("block0.mlp.act",), ("block1.mlp.act",), ("bigram", "logits")]
    assert told == {STREAM: 1} | dict.fromkeys(heads, 3) | dict.fromkeys(free, 1)
    for config in (CNN, models.MLPConfig()):
        graph = graph_of(models.build(config))
        assert ties(graph) == tuple(Tied((s.name,)) for s in graph.sites)


def test_a_matrix_between_places_that_are_one_is_refused() -> None:
    """A recurrent matrix: its cost is no sum over nodes."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again = nn.Linear(3, 3)

        def graph(self) -> Graph:
            sites = [Site(n, 3, "", "neuron", i) for i, n in enumerate(("before", "after", "read"))]
            return Graph(
                tuple(sites),
                (
                    Link("before>after", "before", "after", "again", (3, 3)),
                    Link("before>read", "before", "read", "", (3,), kind="sum"),
                    Link("after>read", "after", "read", "", (3,), kind="sum"),
                ),
            )

    with pytest.raises(UsageError, match=r"no rule for the matrix before>after: the places of its two ends are one"):
        make_regime("bimt").prepare(Loop(), 10)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_a_block_has_a_cell_of_its_own(dimensions: int) -> None:
    spots = grid(32, dimensions, 8)
    assert spots.shape == (32, dimensions) and len(spots.unique(dim=0)) == 32 and spots.min() > 0 and spots.max() < 1
    if dimensions == 1:
        assert torch.allclose(spots, grid(32, 1))
    boxes = [(b.amin(0), b.amax(0)) for b in spots.view(4, 8, dimensions)]
    for (low, high), (other_low, other_high) in itertools.combinations(boxes, 2):
        assert bool(((high < other_low) | (other_high < low)).any()), "two blocks overlap in every direction"


# -- relocation against brute force ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("config", [TRANSFORMER, CNN], ids=lambda c: c.kind)
def test_every_exchange_changes_the_whole_cost_by_what_the_table_says(
    config: Any, dimensions: int, reduce: str
) -> None:
    """Every pair of nodes of every arrangement, and of its blocks, exchanged and the definition evaluated."""
    model = shaken(config)
    tied, wires = ties(graph_of(model)), wires_of(model, reduce)
    places = anywhere(start_of(model, dimensions), tied, 3)
    places = Places({s: x.double() for s, x in places.spots.items()}, places.at)
    before, tried = by_hand(model, places, reduce), 0
    assert wire_length(wires, places) == pytest.approx(before, rel=1e-6)
    for t in tied:
        cost, at = place_costs(t, wires, places), places.at[t.sites[0]]
        every = torch.arange(len(at))
        moves = list(itertools.combinations(every.view(-1, 1), 2))
        moves += list(itertools.combinations(every.view(-1, t.block), 2)) if t.block > 1 else []
        for a, b in moves:
            new = at.clone()
            new[a], new[b] = at[b], at[a]
            change = float((cost[every, new] - cost[every, at]).sum())
            assert by_hand(model, places.moved(t, new), reduce) - before == pytest.approx(change, abs=1e-6)
            tried += 1
    assert tried > 30


@pytest.mark.parametrize("seed", range(4))
def test_an_assignment_of_blocks_is_the_best_of_all_orders_that_keep_them(seed: int) -> None:
    cost = np.random.default_rng(seed).random((6, 6))
    every = np.arange(6)
    for block in (2, 3):
        orders = [
            np.array([b * block + k for b, ks in zip(blocks, inner, strict=True) for k in ks])
            for blocks in itertools.permutations(range(6 // block))
            for inner in itertools.product(itertools.permutations(range(block)), repeat=6 // block)
        ]
        found = by_assignment(cost, every, block)
        assert any(np.array_equal(found, o) for o in orders)
        assert cost[every, found].sum() == pytest.approx(min(cost[every, o].sum() for o in orders))


def test_swaps_are_those_within_a_block_and_then_of_blocks_as_they_stand() -> None:
    right = np.array([3, 2, 1, 0])
    cost = np.ones((4, 4))
    cost[np.arange(4), right] = 0.0
    assert by_swaps(cost, np.array([1, 0, 3, 2]), [2], 2).tolist() == right.tolist(), "the heads exchange"
    assert by_swaps(cost, np.array([2, 3, 0, 1]), range(4), 2).tolist() == right.tolist(), "within both heads"
    assert by_swaps(cost, np.array([2, 3, 0, 1]), [0], 2).tolist() == [3, 2, 0, 1], "only node 0 looks"
    stuck = np.array([0, 1, 2, 3])  # neither alone is any better: the assignment finds both at once
    assert by_swaps(cost, stuck, range(4), 2).tolist() == stuck.tolist()
    assert by_assignment(cost, stuck, 2).tolist() == right.tolist()
    for seed in range(20):  # whatever is found, the table's cost does not rise
        cost, at = np.random.default_rng(seed).random((6, 6)), np.arange(6)
        new = by_swaps(cost, at, range(6), 3)
        assert sorted(new) == list(range(6)) and (new.reshape(2, 3) // 3 == new[::3, None] // 3).all()
        assert cost[at, new].sum() <= np.trace(cost) + 1e-12


@pytest.mark.parametrize("how", ["assignment", "swaps"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("config", [TRANSFORMER, CNN], ids=lambda c: c.kind)
def test_no_move_makes_wires_longer_and_every_rule_is_kept(config: Any, dimensions: int, how: str) -> None:
    for seed in range(3):
        model = shaken(config, seed)
        tied, wires = ties(graph_of(model)), wires_of(model)
        places = anywhere(start_of(model, dimensions), tied, seed)
        length = wire_length(wires, places)
        for t in tied:  # one at a time: each must pay for itself
            places = relocate(wires, places, [t], how)
            assert wire_length(wires, places) <= length + 1e-4
            length = wire_length(wires, places)
            assert keeps_the_rules(places, tied)
        again = relocate(wires, places, tied, how, sweeps=3, restarts=3, seed=seed)
        assert wire_length(wires, again) <= length + 1e-4 and keeps_the_rules(again, tied)


# -- the regime --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("config", [TRANSFORMER, CNN], ids=lambda c: c.kind)
def test_the_penalty_is_the_formula_over_every_weight(config: Any, reduce: str) -> None:
    model = shaken(config)
    options = {"price": 0.5, "schedule": (), "distance": 2.0, "l0": 0.3, "reduce": reduce, "dimensions": 2}
    regime = BIMT(BIMTSettings(**options))  # type: ignore[arg-type]
    regime.prepare(model, 10)
    want = 2.0 * by_hand(model, regime.places, reduce)
    for e in (e for e in graph_of(model).links if e.kind == "weight"):
        module = model.get_submodule(e.module)
        for w in (weight_of(module), getattr(module, "bias", None)):
            if w is not None:
                want += 0.3 * float(w.detach().abs().sum() if reduce == "sum" else w.detach().abs().mean())
    added = regime.penalty(model, 0)
    assert added is not None and float(added.detach()) == pytest.approx(0.5 * want, rel=1e-5)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("config", [TRANSFORMER, CNN], ids=lambda c: c.kind)
def test_the_gradient_is_that_of_autograd_beside_another_loss(config: Any, reduce: str) -> None:
    model = shaken(config)
    for p in model.parameters():
        p.data.flatten()[::3] = 0.0  # abs has the gradient 0 there
    options = {"price": 0.5, "schedule": (), "distance": 2.0, "l0": 0.3, "reduce": reduce, "dimensions": 2}
    regime = BIMT(BIMTSettings(**options))  # type: ignore[arg-type]
    regime.prepare(model, 10)
    other = sum(p.pow(3).sum() for p in model.parameters())
    (other + regime.penalty(model, 0)).backward()  # type: ignore[operator,union-attr]
    got = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    plain = sum(p.pow(3).sum() for p in model.parameters())
    taken = torch.sum if reduce == "sum" else torch.mean
    for e in (e for e in graph_of(model).links if e.kind == "weight"):
        module = model.get_submodule(e.module)
        w, bias = weight_of(module), getattr(module, "bias", None)
        if e.counts == "embedding":
            plain = plain + 0.5 * taken(w.abs() * 0.3)
            continue
        far = (regime.places.of(e.dst)[:, None] - regime.places.of(e.src)[None]).abs().sum(-1)
        plain = plain + 0.5 * taken(w.abs() * (2.0 * far + 0.3).view(*far.shape, *[1] * (w.dim() - 2)))
        plain = plain if bias is None else plain + 0.5 * taken(bias.abs() * 0.3)
    plain.backward()  # type: ignore[union-attr]
    for n, p in model.named_parameters():
        assert got[n] is not None and p.grad is not None
        assert torch.allclose(got[n], p.grad, rtol=1e-5, atol=1e-6), n


def test_a_gradient_is_never_that_of_another_step() -> None:
    model = shaken(CNN)
    regime = BIMT(BIMTSettings(schedule=()))
    regime.prepare(model, 10)
    w = model.get_parameter("layers.0.weight")
    regime.penalty(model, 0).backward()  # type: ignore[union-attr]
    assert w.grad is not None
    first = w.grad.clone()
    late = regime.penalty(model, 1)
    w.data.neg_()
    regime.penalty(model, 2).backward()  # type: ignore[union-attr]
    assert torch.allclose(w.grad, torch.zeros_like(first), atol=1e-9), "the first gradient was kept, its opposite added"
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        late.backward()  # type: ignore[union-attr]


def test_a_kernel_costs_the_sum_of_its_weights() -> None:
    model = models.build(
        models.CNNConfig(image=(1, 4, 4), blocks=(ConvBlock(channels=2, kernel=3),), hidden=(), outputs=2)
    )
    for p in model.parameters():
        p.data.zero_()
    first, last = model.get_parameter("layers.0.weight"), model.get_parameter("layers.1.weight")
    first.data[1, 0, 0, 0], first.data[1, 0, 2, 1] = 3.0, -1.0
    last.data[0, 1, 1, 1] = -2.0
    # the one input sits at 1/2; channels and outputs at 1/4 and 3/4
    assert wire_length_of(model) == pytest.approx(4.0 * 0.25 + 2.0 * 0.5)
    regime = BIMT(BIMTSettings(cut=1.5))
    regime.prepare(model, 1)
    assert regime.report(model)["edges"] == 2, "a kernel is one edge"


class Counting:
    """Sequences that count upwards, or which half of an image is bright."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def batch(self, step: int) -> tuple[tuple[Tensor, ...], Tensor]:
        g = torch.Generator().manual_seed(step)
        if self.kind == "cnn":
            y = torch.randint(3, (16,), generator=g)
            return (torch.eye(3).repeat_interleave(24, 1)[y] + 0.3 * torch.randn(16, 72, generator=g),), y
        rows = (torch.randint(7, (16, 1), generator=g) + torch.arange(5)) % 7
        return (rows[:, :-1],), rows[:, 1:]

    def held_out(self, split: str) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        yield self.batch(9_999)


def trained(config: Any, folder: Path, options: dict[str, Any], regime: str = "bimt", **more: Any) -> nn.Module:
    """A model after a short run."""
    model = models.build(config, seed=0)
    s = TrainSettings(steps=60, lr=1e-2, log_every=20, eval_every=30, checkpoint_every=11)
    train(model, Counting(config.kind), (make_regime(regime, options),), s, folder, **more)
    return model


@pytest.mark.parametrize("how", ["swaps", "assignment"])
@pytest.mark.parametrize("config", [TRANSFORMER, CNN], ids=lambda c: c.kind)
def test_moving_changes_no_weight(config: Any, how: str, tmp_path: Path) -> None:
    """The control: places are found for a network that knows nothing of them, and they are better ones."""
    dense = trained(config, tmp_path / "a", {}, "dense")
    control = trained(config, tmp_path / "b", {"price": 0, "cut": 0, "every": 20, "relocate": how})
    assert model_digest(dense) == model_digest(control)
    told = files.read_model_header(tmp_path / "b" / "model")["extra"]["bimt"]["coordinates"]
    assert wire_length_of(control, told) < 0.97 * wire_length_of(control)


@pytest.mark.parametrize("config", [TRANSFORMER, CNN], ids=lambda c: c.kind)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(config: Any, tmp_path: Path) -> None:
    options = {"every": 8, "price": 1e-3, "dimensions": 2, "restarts": 1}
    whole = trained(config, tmp_path / "whole", options)

    def stop(done: int, total: int, record: dict[str, Any]) -> None:
        if done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(config, tmp_path / "cut", options, progress=stop)
    assert (tmp_path / "cut" / "checkpoint").exists()
    resumed = trained(config, tmp_path / "cut", options)
    assert model_digest(whole) == model_digest(resumed)
    told = [files.read_model_header(tmp_path / x / "model")["extra"]["bimt"] for x in ("whole", "cut")]
    assert told[0] == told[1]


def test_a_vocabulary_moves_only_when_asked() -> None:
    model = shaken(TRANSFORMER)
    optimizer = torch.optim.SGD(model.parameters())

    def moved(**options: Any) -> set[str]:
        regime = BIMT(BIMTSettings(every=1, **options))
        regime.prepare(model, 10)
        before = regime.places
        regime.after_step(model, optimizer, 1)
        assert keeps_the_rules(regime.places, ties(graph_of(model)))
        return {s for s, at in before.at.items() if not torch.equal(at, regime.places.at[s])}

    words = {"tokens", "positions", "bigram", "logits"}
    assert moved().isdisjoint(words) and moved() >= {*STREAM, "block0.attn.q", "block1.mlp.act"}
    assert moved(move_inputs=True, move_outputs=True) >= {"bigram", "logits"}
    assert "logits" not in moved(move_inputs=True)


def test_the_result_says_how_long_the_wires_are(tmp_path: Path) -> None:
    for config in (TRANSFORMER, CNN):
        model = trained(config, tmp_path / config.kind, {"price": 1e-3, "dimensions": 3})
        told = files.read_json(tmp_path / config.kind / "training.json")["result"]["regimes"]["bimt"]
        at = files.read_model_header(tmp_path / config.kind / "model")["extra"]["bimt"]["coordinates"]
        assert told["wire_length"] == pytest.approx(wire_length_of(model, at), rel=1e-5)
        assert told["edges"] == files.read_jsonl(tmp_path / config.kind / "metrics.jsonl")[-1]["edges"]
    dense = trained(CNN, tmp_path / "dense", {}, "dense")
    assert files.read_json(tmp_path / "dense" / "training.json")["result"]["regimes"] == {}
    assert wire_length_of(dense, dimensions=2) == pytest.approx(by_hand(dense, start_of(dense, 2)), rel=1e-5)


def test_it_composes_with_topk_in_a_transformer(tmp_path: Path) -> None:
    model = models.build(TRANSFORMER, seed=0)
    regimes = (make_regime("topk", {"density": 0.25, "floor": 0}), make_regime("bimt", {"every": 5, "cut": 0}))
    train(model, Counting("transformer"), regimes, TrainSettings(steps=30, lr=1e-2), tmp_path)
    w = model.get_parameter("blocks.0.mlp.up.weight")
    assert int(w.count_nonzero()) == round(0.25 * w.numel())


@pytest.mark.parametrize("config", [TRANSFORMER, CNN], ids=lambda c: c.kind)
def test_the_shortest_wires_are_no_longer_than_those_as_numbered_and_places_only_help(config: Any) -> None:
    model = shaken(config, 3)
    found = shortest_wire_length(model)
    assert found <= wire_length_of(model)
    scattered = anywhere(start_of(model), tuple(movable(graph_of(model))), seed=4)
    told = shortest_wire_length(model, as_lists(scattered))
    assert told <= found, "more starts are never worse"
    plane = as_lists(start_of(model, 2))
    assert shortest_wire_length(model, plane) == found, "places in a plane say nothing about a line"
