"""BIMT: what wires cost by hand, relocation against brute force, and the published training in another memory order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from openwork import files, models
from openwork.errors import UsageError
from openwork.patching import graph_of
from openwork.store import load_model, model_digest
from openwork.training import BIMT, BIMTSettings, TrainSettings, make_regime, train
from openwork.training.relocation import (
    Places,
    Tied,
    Wires,
    by_assignment,
    by_swaps,
    distances,
    grid,
    importance,
    place_costs,
    relocate,
    start,
    wire_length,
)

CONFIG = models.MLPConfig(inputs=6, hidden=(10, 8), outputs=3, activation="silu")


class Points:
    """Three classes of points."""

    def batch(self, step: int) -> tuple[tuple[Tensor, ...], Tensor]:
        x = torch.randn(32, 6, generator=torch.Generator().manual_seed(step))
        return (x,), x[:, :3].argmax(1)

    def held_out(self, split: str) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        yield self.batch(9_999)


def trained(folder: Path, options: dict[str, Any], regime: str = "bimt", **more: Any) -> nn.Module:
    """A perceptron after a short run."""
    model = models.build(CONFIG, seed=0)
    s = TrainSettings(**{"steps": 60, "lr": 1e-2, "log_every": 7, "eval_every": 30, "checkpoint_every": 11, **more})
    train(model, Points(), (make_regime(regime, options),), s, folder)
    return model


def price_of(regime: BIMT, model: nn.Module, step: int) -> float:
    """What the regime adds to the loss."""
    added = regime.penalty(model, step)
    assert added is not None
    return float(added.detach())


def random_wires(sizes: list[int], seed: int, mean: bool = False) -> list[Wires]:
    """Wires of a chain of layers."""
    g = torch.Generator().manual_seed(seed)
    w = [torch.randn(b, a, generator=g, dtype=torch.float64).abs() for a, b in itertools.pairwise(sizes)]
    return [Wires(f"{i}", f"{i + 1}", x, 1 / x.numel() if mean else 1.0) for i, x in enumerate(w)]


def random_places(sizes: list[int], dimensions: int, seed: int) -> Places:
    """Every node somewhere."""
    places = start({f"{i}": n for i, n in enumerate(sizes)}, dimensions, torch.device("cpu"))
    g = torch.Generator().manual_seed(seed)
    return Places(places.spots, {site: torch.randperm(len(at), generator=g) for site, at in places.at.items()})


def alone(*sites: str) -> list[Tied]:
    """Sites that share their places with no other."""
    return [Tied((s,)) for s in sites]


def by_hand(wires: list[Wires], places: Places) -> float:
    """The definition of the cost, weight by weight."""
    total = 0.0
    for w in wires:
        a, b = places.of(w.dst).tolist(), places.of(w.src).tolist()
        for i, j in itertools.product(range(len(a)), range(len(b))):
            total += w.scale * float(w.size[i, j]) * sum(abs(x - y) for x, y in zip(a[i], b[j], strict=True))
    return total


def greedy_by_evaluating(wires: list[Wires], places: Places, sites: list[str], top: int) -> Places:
    """Every exchange made and the whole network's cost taken, as the published code searches."""
    for site in sites:
        strength = importance(Tied((site,)), wires)
        for n in torch.sort(strength, descending=True, stable=True).indices[:top].tolist():
            tried = []
            for m in range(len(strength)):
                at = places.at[site].clone()
                at[[n, m]] = at[[m, n]]
                tried.append((wire_length(wires, places.moved(Tied((site,)), at)), m == n, at))
            least = min(cost for cost, *_ in tried)
            stay = next(cost for cost, same, _ in tried if same)
            if least < stay - 1e-12:
                places = places.moved(Tied((site,)), next(at for cost, _, at in tried if cost == least))
    return places


# -- places ----------------------------------------------------------------------------------------------------------


def test_spots_are_the_middles_of_equal_cells() -> None:
    assert grid(4, 1).flatten().tolist() == [0.125, 0.375, 0.625, 0.875]
    assert grid(4, 2).tolist() == [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    assert grid(8, 3)[6].tolist() == [0.75, 0.75, 0.25]
    pixels = grid(784, 2)
    assert torch.allclose(pixels[28 * 3 + 5], torch.tensor([3.5 / 28, 5.5 / 28]))
    digits = grid(10, 2)  # three rows of four, the last cut short
    assert torch.allclose(digits[9], torch.tensor([2.5 / 3, 1.5 / 4]))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 7, 10, 27, 100])
def test_no_two_nodes_share_a_spot(n: int, dimensions: int) -> None:
    spots = grid(n, dimensions)
    assert spots.shape == (n, dimensions) and len(spots.unique(dim=0)) == n
    assert spots.min() > 0 and spots.max() < 1


# -- relocation against brute force ------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    dimensions=st.integers(1, 3),
    mean=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_place_costs_are_what_the_definition_says_and_price_every_exchange(
    sizes: list[int], dimensions: int, mean: bool, seed: int
) -> None:
    wires, places = random_wires(sizes, seed, mean), random_places(sizes, dimensions, seed)
    before = by_hand(wires, places)
    assert wire_length(wires, places) == pytest.approx(before, rel=1e-5)
    for site in places.spots:
        cost, at = place_costs(Tied((site,)), wires, places), places.at[site]
        own = [w for w in wires if site in (w.src, w.dst)]
        assert float(cost.gather(1, at[:, None]).sum()) == pytest.approx(by_hand(own, places), rel=1e-5)
        for n, m in itertools.combinations(range(len(at)), 2):
            p, q = int(at[n]), int(at[m])
            moved = at.clone()
            moved[[n, m]] = at[[m, n]]
            change = float(cost[n, q] + cost[m, p] - cost[n, p] - cost[m, q])
            assert by_hand(wires, places.moved(Tied((site,)), moved)) - before == pytest.approx(change, abs=1e-5)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(
    ("sizes", "dimensions", "top"), [([4, 20, 20, 2], 1, 5), ([9, 7, 6, 3], 2, 30), ([8, 5], 3, 3)]
)
def test_swaps_are_those_of_evaluating_every_one(sizes: list[int], dimensions: int, top: int, mean: bool) -> None:
    for seed in range(3):
        wires, places = random_wires(sizes, seed, mean), random_places(sizes, dimensions, seed)
        sites = list(places.spots)
        found = relocate(wires, places, alone(*sites), "swaps", top)
        want = greedy_by_evaluating(wires, places, sites, top)
        assert wire_length(wires, found) == pytest.approx(wire_length(wires, want), abs=1e-6)
        assert wire_length(wires, found) < wire_length(wires, places)
        assert all(torch.equal(found.at[s], want.at[s]) for s in sites)


def test_a_swap_is_the_one_that_a_hand_finds() -> None:
    """Two wires cross: source 0 reads into node 1, source 1 into node 0. One exchange makes both of length 0."""
    wires = [Wires("a", "b", torch.tensor([[0.0, 2.0], [3.0, 0.0]]))]
    places = start({"a": 2, "b": 2}, 1, torch.device("cpu"))
    assert wire_length(wires, places) == pytest.approx(5 * 0.5)
    assert place_costs(Tied(("b",)), wires, places).tolist() == [[1.0, 0.0], [0.0, 1.5]]
    moved = relocate(wires, places, alone("b"), "swaps", top=1)
    assert moved.at["b"].tolist() == [1, 0] and wire_length(wires, moved) == 0


def test_an_assignment_is_the_best_of_all_orders() -> None:
    for seed in range(5):
        cost = np.random.default_rng(seed).random((6, 6))
        best = min(sum(cost[n, p] for n, p in enumerate(order)) for order in itertools.permutations(range(6)))
        found = by_assignment(cost, np.arange(6))
        assert cost[np.arange(6), found].sum() == pytest.approx(best)
        swapped = by_swaps(cost, np.arange(6), range(6))
        assert sorted(swapped) == list(range(6))
        assert best - 1e-12 <= cost[np.arange(6), swapped].sum() <= np.trace(cost) + 1e-12


def test_more_sweeps_never_cost_more_and_fixed_sites_stay() -> None:
    sizes = [12, 16, 16, 5]
    wires, places = random_wires(sizes, 3), random_places(sizes, 1, 3)
    lengths = [wire_length(wires, relocate(wires, places, alone("1", "2"), "assignment", sweeps=n)) for n in (1, 2, 5)]
    assert wire_length(wires, places) > lengths[0] > lengths[1] >= lengths[2]
    moved = relocate(wires, places, alone("1", "2"), "assignment")
    assert torch.equal(moved.at["0"], places.at["0"]) and torch.equal(moved.at["3"], places.at["3"])


def test_restarts_find_out_of_a_mirror_image_where_sweeps_do_not() -> None:
    """Two threads a > b > c that cross: whichever layer moves alone, no wire gets shorter."""
    into, out = torch.zeros(4, 2), torch.zeros(2, 4)
    into[0, 0] = into[3, 1] = out[1, 0] = out[0, 3] = 1.0
    wires, sites = [Wires("a", "b", into), Wires("b", "c", out)], alone("b", "c")
    places = start({"a": 2, "b": 4, "c": 2}, 1, torch.device("cpu")).moved(Tied(("b",)), torch.tensor([2, 0, 3, 1]))
    assert wire_length(wires, places) == pytest.approx(1.0)
    assert wire_length(wires, relocate(wires, places, sites, "assignment", sweeps=9)) == pytest.approx(1.0)
    free = relocate(wires, places, sites, "assignment", sweeps=9, restarts=10, seed=1)
    assert wire_length(wires, free) == pytest.approx(4 * 0.125)
    assert torch.equal(free.at["a"], places.at["a"])
    again = relocate(wires, places, sites, "assignment", sweeps=9, restarts=10, seed=1)
    assert all(torch.equal(free.at[s], again.at[s]) for s in "bc")
    assert wire_length(wires, relocate(wires, free, sites, "swaps", restarts=1)) == pytest.approx(0.5)


def test_places_as_good_as_any_are_kept() -> None:
    assert by_assignment(np.zeros((4, 4)), np.array([2, 0, 3, 1])).tolist() == [2, 0, 3, 1]
    assert by_swaps(np.zeros((4, 4)), np.array([2, 0, 3, 1]), range(4)).tolist() == [2, 0, 3, 1]


# -- what is added to the loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("last", [True, False])
def test_the_penalty_is_the_formula(reduce: str, last: bool) -> None:
    model = models.build(CONFIG, seed=3)
    options = {"price": 0.5, "distance": 2.0, "l0": 0.3, "reduce": reduce, "distance_last": last, "schedule": ()}
    regime = BIMT(BIMTSettings(**options))  # type: ignore[arg-type]
    regime.prepare(model, 10)
    sizes, want = (6, 10, 8, 3), 0.0
    for i in range(3):
        layer = model.get_submodule(f"layers.{i}")
        w, b = layer.weight.tolist(), layer.bias.tolist()  # type: ignore[union-attr]
        far = 0.0 if i == 2 and not last else 2.0
        xs, ys = ([(k + 0.5) / n for k in range(n)] for n in (sizes[i], sizes[i + 1]))
        costs = [abs(w[r][c]) * (far * abs(y - x) + 0.3) for r, y in enumerate(ys) for c, x in enumerate(xs)]
        biases = [abs(v) * 0.3 for v in b]
        want += sum(
            part if reduce == "sum" else part / n for part, n in ((sum(costs), len(costs)), (sum(biases), len(b)))
        )
    assert price_of(regime, model, 0) == pytest.approx(0.5 * want, rel=1e-5)


def test_the_price_follows_its_schedule_and_biases_join_late() -> None:
    regime = BIMT(BIMTSettings(price=1e-3, schedule=((0.25, 10), (0.75, 0.1)), biases_from=0.75))
    model = models.build(CONFIG, seed=3)
    regime.prepare(model, 100)
    assert [regime.price(s) for s in (0, 24, 25, 74, 75, 99)] == pytest.approx([1e-3, 1e-3, 1e-2, 1e-2, 1e-3, 1e-3])
    before = [price_of(regime, model, s) for s in (74, 75)]
    for i in range(3):
        model.get_submodule(f"layers.{i}").bias.data.add_(100)  # type: ignore[union-attr]
    after = [price_of(regime, model, s) for s in (74, 75)]
    assert after[0] == pytest.approx(before[0]) and after[1] > before[1] + 1e-3 * 0.1 * 20 * 90


def test_places_change_the_price_of_a_weight() -> None:
    model = models.build(CONFIG, seed=3)
    regime = BIMT(BIMTSettings(relocate="assignment", every=1))
    regime.prepare(model, 10)
    before = price_of(regime, model, 0)
    regime.after_step(model, torch.optim.AdamW(model.parameters()), 1)
    assert price_of(regime, model, 0) < before


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["swaps", "assignment"])
def test_relocation_leaves_weights_and_moments_alone(how: str) -> None:
    model, data = models.build(CONFIG, seed=0), Points()
    regime = BIMT(BIMTSettings(relocate=how, every=1, move_inputs=True))  # type: ignore[arg-type]
    regime.prepare(model, 100)
    optimizer = torch.optim.AdamW(model.parameters())
    (x,), y = data.batch(0)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    digest, out = model_digest(model), model(x)
    moments = [v.clone() for s in optimizer.state.values() for v in s.values()]
    spots = regime.notes()
    regime.after_step(model, optimizer, 1)
    assert regime.notes() != spots
    assert model_digest(model) == digest and torch.equal(model(x), out)
    now = [v for s in optimizer.state.values() for v in s.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, now, strict=True))


def literal_training(model: nn.Module, steps: int, every: int) -> list[Tensor]:
    """BIMT as published, hidden nodes only: weights, biases and Adam's moments change places, spots stay.

    Returns layer by layer which of the first nodes sits on each spot.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    sizes = [layers[0].in_features, *(m.out_features for m in layers)]
    x = [grid(n, 1) for n in sizes]
    sits = [torch.arange(n) for n in sizes]
    for step in range(steps):
        (batch,), y = Points().batch(step)
        loss = nn.functional.cross_entropy(model(batch), y)
        for i, m in enumerate(layers):
            loss = loss + 1e-3 * (m.weight.abs() * (distances(x[i + 1], x[i]) + 0.1)).sum()
            loss = loss + 1e-3 * 0.1 * m.bias.abs().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % every == 0:
            for i in range(1, len(layers)):
                wires = [Wires(f"{j}", f"{j + 1}", m.weight.detach().abs()) for j, m in enumerate(layers)]
                at = relocate(
                    wires, start({f"{j}": n for j, n in enumerate(sizes)}, 1, batch.device), alone(f"{i}"), "swaps", 4
                )
                order = torch.argsort(at.at[f"{i}"])  # order[p]: the node that moves to spot p
                sits[i] = sits[i][order]
                for p, axis in ((layers[i - 1].weight, 0), (layers[i - 1].bias, 0), (layers[i].weight, 1)):
                    for t in (p.data, *(v for v in optimizer.state[p].values() if v.shape == p.shape)):
                        t.copy_(t.index_select(axis, order))
    return sits


def test_moving_coordinates_is_moving_weights_biases_and_moments() -> None:
    """Both ways of relocation train the same network, up to the order of its nodes."""
    here, there = models.build(CONFIG, seed=0), models.build(CONFIG, seed=0)
    options = {"price": 1e-3, "schedule": (), "relocate": "swaps", "top": 4, "every": 10, "move_outputs": False}
    regime = BIMT(BIMTSettings(**options))  # type: ignore[arg-type]
    regime.prepare(here, 1000)
    optimizer = torch.optim.AdamW(here.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(60):
        (x,), y = Points().batch(step)
        loss = nn.functional.cross_entropy(here(x), y) + regime.penalty(here, step)  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        regime.after_step(here, optimizer, step + 1)
    sits = literal_training(there, 60, 10)
    moved = [at for site, at in regime.places.at.items() if site.startswith("hidden")]
    assert any(not torch.equal(at, torch.arange(len(at))) for at in moved)
    assert all(torch.equal(torch.argsort(at), s) for at, s in zip(moved, sits[1:3], strict=True))
    (x,), _ = Points().batch(777)
    assert torch.allclose(here(x), there(x), atol=1e-4)
    first, last = here.get_parameter("layers.0.weight"), there.get_parameter("layers.0.weight")
    assert torch.allclose(first[sits[1]], last, atol=1e-4)


def test_swap_only_is_dense_with_other_places(tmp_path: Path) -> None:
    """The control: places are found for a network that knows nothing of them."""
    dense = trained(tmp_path / "a", {}, "dense")
    control = trained(tmp_path / "b", {"price": 0, "cut": 0, "every": 20})
    still = trained(tmp_path / "c", {"price": 0, "cut": 0, "relocate": "none"})
    assert model_digest(dense) == model_digest(control) == model_digest(still)
    wires = [files.read_jsonl(tmp_path / x / "metrics.jsonl")[-1]["wire_length"] for x in "bc"]
    assert wires[0] < 0.9 * wires[1]


def test_without_distance_it_is_l1(tmp_path: Path) -> None:
    plain = {"schedule": (), "biases_from": 1, "distance": 0, "relocate": "none"}
    l1 = trained(tmp_path / "a", {"price": 2e-3, "cut": 0.01}, "l1")
    same = trained(tmp_path / "b", plain | {"price": 2e-2, "l0": 0.1, "cut": 0.01})
    for a, b in zip(l1.parameters(), same.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-3)


def test_bimt_has_shorter_wires_than_l1_of_the_same_sparsity(tmp_path: Path) -> None:
    common = {"price": 2e-2, "schedule": (), "cut": 0.01, "every": 20}
    ends = {}
    for name, options in {"l1": {"distance": 0, "relocate": "none"}, "bimt": {"move_inputs": True}}.items():
        trained(tmp_path / name, common | options, steps=400)
        ends[name] = files.read_jsonl(tmp_path / name / "metrics.jsonl")[-1]
    assert ends["bimt"]["wire_length"] < 0.4 * ends["l1"]["wire_length"]
    assert ends["bimt"]["edges"] == ends["bimt"]["nonzero"] <= ends["l1"]["edges"] == ends["l1"]["nonzero"] < 120


def test_the_stored_model_says_where_its_nodes_are(tmp_path: Path) -> None:
    trained(tmp_path, {"dimensions": 2, "every": 20}, snapshots=(40,))
    for folder, record in ((tmp_path / "model", -1), (tmp_path / "snapshots" / "40", None)):
        told = files.read_model_header(folder)["extra"]["bimt"]["coordinates"]
        model = load_model(folder)
        sites = {s.name: s.size for s in graph_of(model).sites}
        assert {s: len(c) for s, c in told.items()} == sites and all(len(c[0]) == 2 for c in told.values())
        if record is None:
            continue
        length = 0.0
        for e in graph_of(model).links:
            w = model.get_parameter(f"{e.module}.weight").detach()
            a, b = told[e.dst], told[e.src]
            length += sum(
                abs(float(w[i, j])) * (abs(a[i][0] - b[j][0]) + abs(a[i][1] - b[j][1]))
                for i, j in itertools.product(range(len(a)), range(len(b)))
            )
        end = files.read_jsonl(tmp_path / "metrics.jsonl")[record]
        assert length == pytest.approx(end["wire_length"], rel=1e-4)
    assert told["input"] == grid(6, 2).tolist(), "inputs stay unless they are asked to move"


@pytest.mark.parametrize("how", ["swaps", "assignment"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(how: str, tmp_path: Path) -> None:
    options = {"relocate": how, "every": 8, "top": 5, "price": 1e-2, "restarts": 2}
    whole = trained(tmp_path / "whole", options)

    def stop(done: int, total: int, record: dict[str, Any]) -> None:
        if done >= 28:
            raise KeyboardInterrupt

    s = TrainSettings(steps=60, lr=1e-2, log_every=7, eval_every=30, checkpoint_every=11)
    with pytest.raises(KeyboardInterrupt):
        regimes = (make_regime("bimt", options),)
        train(models.build(CONFIG, seed=0), Points(), regimes, s, tmp_path / "cut", progress=stop)
    resumed = trained(tmp_path / "cut", options)
    assert model_digest(whole) == model_digest(resumed)
    told = [files.read_model_header(tmp_path / x / "model")["extra"]["bimt"] for x in ("whole", "cut")]
    assert told[0] == told[1]
    curves = [[r["wire_length"] for r in files.read_jsonl(tmp_path / x / "metrics.jsonl")] for x in ("whole", "cut")]
    assert curves[0] == curves[1] and len(set(curves[0])) > 5


def test_relocation_comes_at_its_steps_and_after_the_last() -> None:
    model = models.build(CONFIG, seed=0)
    regime = BIMT(BIMTSettings(every=10))
    regime.prepare(model, 25)
    optimizer = torch.optim.AdamW(model.parameters())
    changed = []
    model.requires_grad_(False)
    for step in range(1, 26):
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(step)))
        before = regime.notes()
        regime.after_step(model, optimizer, step)
        changed += [step] if regime.notes() != before else []
    assert changed == [10, 20, 25]


def test_edges_are_the_weights_larger_than_the_cut() -> None:
    model = models.build(models.MLPConfig(inputs=2, hidden=(2,), outputs=1), seed=0)
    regime = BIMT(BIMTSettings(cut=0.1))
    regime.prepare(model, 10)
    with torch.no_grad():
        for p, value in zip(
            model.parameters(), ([[0.5, -0.05], [-0.2, 0.1]], [9.0, 9.0], [[2.0, 0.01]], [9.0]), strict=True
        ):
            p.copy_(torch.tensor(value))
    report = regime.report(model)
    assert report["edges"] == 3
    # inputs and hidden nodes sit at 1/4 and 3/4, the output at 1/2: two wires across of length 1/2, two of 1/4
    assert report["wire_length"] == pytest.approx(0.5 * (0.05 + 0.2) + 0.25 * 2.01)
    regime.finish(model)
    assert sum(int(p.count_nonzero()) for p in model.parameters() if p.dim() == 2) == 3
    assert regime.report(model)["wire_length"] == pytest.approx(0.5 * 0.2 + 0.25 * 2.0)


def test_it_composes_with_topk(tmp_path: Path) -> None:
    """Masks and places do not meet: a node that moves keeps its weights."""
    model = models.build(CONFIG, seed=0)
    regimes = (make_regime("topk", {"density": 0.25, "floor": 0}), make_regime("bimt", {"every": 5, "cut": 0}))
    train(model, Points(), regimes, TrainSettings(steps=40, lr=1e-2), tmp_path)
    assert all(int(p.count_nonzero()) == round(0.25 * p.numel()) for p in model.parameters() if p.dim() == 2)


def test_an_embedding_costs_its_size_and_only_its_channels_have_places() -> None:
    """Two operands of three channels side by side: six places; the table is paid for once, without any length."""
    shape = {"kind": "mlp", "inputs": 6, "hidden": (4,), "outputs": 5}
    plain, embedded = (
        models.build(shape | more, seed=0) for more in ({}, {"embedding": {"symbols": 7, "slots": 2, "width": 3}})
    )
    embedded.load_state_dict(plain.state_dict(), strict=False)
    regimes = [make_regime("bimt", {"l0": 0.5, "price": 1.0, "schedule": ()}) for _ in range(2)]
    costs = []
    for regime, model in zip(regimes, (plain, embedded), strict=True):
        regime.prepare(model, 10)
        costs.append(float(regime.penalty(model, 0).detach()))  # type: ignore[union-attr]
    table = float(embedded.embed.weight.detach().abs().sum())  # type: ignore[union-attr]
    assert costs[1] - costs[0] == pytest.approx(0.5 * table, rel=1e-5)
    places = regimes[1].notes()["coordinates"]
    assert {site: len(at) for site, at in places.items()} == {"embed": 6, "hidden0": 4, "logits": 5}


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": ((0.5, 2), (0.25, 1))}, "moments .0.5, 0.25. are not shares of the run"),
        ({"schedule": ((1.5, 2),)}, "not shares of the run"),
        ({"schedule": ((0.5, -1),)}, "must not be negative"),
        ({"dimensions": 4}, "dimensions 4"),
        ({"relocate": "swap"}, "relocate swap"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_regime("bimt", options)


def test_infinite_and_missing_numbers_never_appear(tmp_path: Path) -> None:
    trained(tmp_path, {"dimensions": 3, "reduce": "mean", "every": 9})
    for r in files.read_jsonl(tmp_path / "metrics.jsonl"):
        assert math.isfinite(r["wire_length"]) and r["edges"] >= 0
