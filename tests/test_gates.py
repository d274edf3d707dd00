"""L0: the gates are the published ones, the density asked for is reached, and gates are seen by what must see them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from openwork import files, models, patching
from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.hard_concrete import noiseless_gate, nonzero_probability
from openwork.store import load_model, model_digest, save_model
from openwork.training import L0, L1, L0Settings, L1Settings, TrainSettings, make_regime, train
from openwork.training.data import held_out_loss
from openwork.training.gates import BOUND, HardConcrete
from openwork.training.matrices import copied, count_nonzero, dead_neurons, evaluating, matrices, places
from openwork.training.optimizers import OPTIMIZERS

CONFIGS = {
    "mlp": models.MLPConfig(inputs=12, hidden=(24, 24), outputs=3),
    "transformer": models.TransformerConfig(vocab=16, n_layer=2, d_model=16, d_head=8, d_mlp=32, n_ctx=8),
}


class Toy:
    """Points whose class is their largest coordinate, or sequences that count upwards."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def batch(self, step: int) -> tuple[tuple[Tensor, ...], Tensor]:
        g = torch.Generator().manual_seed(step)
        if self.kind == "mlp":
            x = torch.randn(32, 12, generator=g)
            return (x,), x[:, :3].argmax(1)
        rows = (torch.randint(16, (8, 1), generator=g) + torch.arange(9)) % 16
        return (rows[:, :-1],), rows[:, 1:]

    def held_out(self, split: str) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        yield self.batch(9_999)


class Stop(Exception):
    """A kill, as far as the loop can tell."""


def trained(folder: Path, kind: str = "mlp", regimes: Any = None, stop: int | None = None, **more: Any) -> nn.Module:
    """A model after 200 steps under L0, or killed at the record of step `stop`."""
    model = models.build(CONFIGS[kind], seed=0)

    def progress(step: int, total: int, record: dict[str, Any]) -> None:
        if step == stop:
            raise Stop

    s = TrainSettings(**{"steps": 200, "lr": 1e-2, "log_every": 10, "eval_every": 50, "checkpoint_every": 15, **more})
    train(model, Toy(kind), regimes or (L0(),), s, folder, progress=progress)
    return model


def gated(kind: str = "mlp", **settings: Any) -> tuple[nn.Module, L0]:
    """A model with its gates spread wide, so that some are shut, some open and some between."""
    torch.manual_seed(3)
    model, regime = models.build(CONFIGS[kind], seed=0), L0(L0Settings(**settings))
    regime.prepare(model, 100)
    for p in regime.groups(model)[0]["params"]:
        p.data.normal_(0, 3)
    return model, regime


# -- the gates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [-4.0, -math.log(11), -1.0, 0.0, 1.5])
def test_the_probability_of_a_nonzero_gate_is_what_drawing_shows(a: float) -> None:
    torch.manual_seed(0)
    gate = HardConcrete((400_000,), (400_000,), torch.device("cpu"))
    gate.log_alpha.data.fill_(a)
    z = gate.draw().detach()
    p = float(nonzero_probability(torch.tensor(a)))
    error = 4 * math.sqrt(p * (1 - p) / len(z))
    assert float((z != 0).float().mean()) == pytest.approx(p, abs=error)
    one = 1 / (1 + math.exp(-a + 2 / 3 * math.log(11)))  # P(z = 1), by the symmetry of the stretched interval
    assert float((z == 1).float().mean()) == pytest.approx(one, abs=4 * math.sqrt(one * (1 - one) / len(z)))
    assert z.min() == 0 and 0 <= float(z.max()) <= 1


def test_gates_at_known_places() -> None:
    """Worked by hand: sigmoid(1.5986) = 0.832; a = -log 11 is where the test gate shuts, with P(z != 0) still 0.31."""
    assert float(nonzero_probability(torch.tensor(0.0))) == pytest.approx(0.8318, abs=1e-4)
    assert float(nonzero_probability(torch.tensor(-math.log(11)))) == pytest.approx(0.3102, abs=1e-4)
    assert float(nonzero_probability(torch.tensor(-BOUND))) == pytest.approx(0.0471, abs=1e-4)
    edge = math.log(11)
    a = torch.tensor([-edge - 1e-4, -edge + 1e-3, 0.0, 1.0, edge + 1e-4])
    shut, ajar, half, more, open_ = noiseless_gate(a).tolist()
    assert shut == 0.0 < ajar < 1e-3 and open_ == 1.0
    assert half == pytest.approx(0.5) and more == pytest.approx(0.7773, abs=1e-4)


def test_a_gate_that_matters_has_a_slope_and_draws_only_in_training() -> None:
    torch.manual_seed(0)
    gate, w = HardConcrete((50, 50), (50, 50), torch.device("cpu")), torch.ones(50, 50)
    assert not torch.equal(gate(w), gate(w))
    gate(w).sum().backward()
    assert gate.log_alpha.grad is not None and float(gate.log_alpha.grad.sum()) > 0
    gate.eval()
    before = torch.get_rng_state()
    assert torch.equal(gate(w), noiseless_gate(gate.log_alpha))
    assert torch.equal(torch.get_rng_state(), before)


# -- the density -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("density", [0.04, 0.2, 0.6])
def test_the_final_weights_have_the_density_asked_for(kind: str, density: float, tmp_path: Path) -> None:
    model = trained(tmp_path, kind, (L0(L0Settings(density=density)),))
    nonzero, total = count_nonzero(model)
    assert nonzero == pytest.approx(density * total, rel=0.02)
    result = files.read_json(tmp_path / "training.json")["result"]
    assert result["density_achieved"] == pytest.approx(density, rel=0.02) == result["density_nominal"]


def test_the_multiplier_brings_the_test_time_density_to_its_target(tmp_path: Path) -> None:
    """Before anything is chosen by rank; the expected density is another number, and the higher one."""
    trained(tmp_path, regimes=(L0(L0Settings(density=0.2, settle=1.0)),), steps=600)
    record = files.read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert record["test_density"] == pytest.approx(0.2, rel=0.2)
    assert record["expected_density"] > record["test_density"] + 0.01
    without = L0(L0Settings(density=0.2, settle=1.0, multiplier_lr=1e-6))
    trained(tmp_path / "off", regimes=(without,), steps=600)
    free = files.read_jsonl(tmp_path / "off" / "metrics.jsonl")[-1]
    assert free["test_density"] > 0.3, "the target would be met without a multiplier: this test shows nothing"


def test_both_densities_are_those_of_their_definitions(tmp_path: Path) -> None:
    for group in ("weight", "neuron"):
        model, regime = gated(group=group)
        report = regime.report(model)
        with evaluating(model):
            weights = matrices(model)
            assert report["test_density"] == pytest.approx(
                sum(int((w != 0).sum()) for w in weights.values()) / sum(w.numel() for w in weights.values())
            )
        draws = []
        for _ in range(300):
            drawn = matrices(model).values()
            draws.append(sum(int((w != 0).sum()) for w in drawn) / sum(w.numel() for w in drawn))
        error = float(torch.tensor(draws).std()) / math.sqrt(len(draws))
        assert report["expected_density"] == pytest.approx(sum(draws) / len(draws), abs=4 * error)


def test_what_is_chosen_has_the_widest_gates_and_among_equals_the_largest_weights() -> None:
    model, regime = gated(density=0.25)
    gates = [p for p in regime.groups(model)[0]["params"]]
    for p in gates:
        p.data.clamp_(-1, 1)  # many equals at both ends
    regime._steps, step = 100, 75
    raw = [m.parametrizations[n].original.detach().abs().flatten() for m, n in places(model).values()]  # type: ignore[union-attr]
    ranked = sorted(
        zip(torch.cat([g.detach().flatten() for g in gates]).tolist(), torch.cat(raw).tolist(), strict=True)
    )
    regime.after_step(model, torch.optim.SGD(gates), step)
    regime.finish(model)
    kept = torch.cat([w.detach().flatten() for w in matrices(model).values()]) != 0
    had = list(zip(torch.cat([g.detach().flatten() for g in gates]).tolist(), torch.cat(raw).tolist(), strict=True))
    want = ranked[-round(0.25 * len(ranked)) :]
    assert sorted(h for h, k in zip(had, kept.tolist(), strict=True) if k) == want


@pytest.mark.parametrize("kind", CONFIGS)
def test_gates_per_neuron_drop_whole_columns(kind: str, tmp_path: Path) -> None:
    model = trained(tmp_path, kind, (L0(L0Settings(density=0.5, group="neuron")),))
    columns = [(w != 0).flatten(2).any(-1) if w.dim() > 2 else w != 0 for w in matrices(model).values()]
    dropped = sum(int((~c).all(0).sum()) for c in columns)
    assert dropped == sum(int((~c[0]).sum()) for c in columns) > 0
    nonzero, total = count_nonzero(model)
    widest = max(w.shape[0] for w in matrices(model).values())
    assert abs(nonzero - 0.5 * total) <= widest


def test_gates_per_head_drop_whole_heads_from_each_matrix(tmp_path: Path) -> None:
    model = trained(tmp_path, "transformer", (L0(L0Settings(density=0.4, group="head")),))
    d_head, whole = 8, []
    for name, w in matrices(model).items():
        blocks = None
        if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight")):
            blocks = w.unflatten(0, (-1, d_head)).abs().sum((1, 2))
        elif name.endswith("attn.out.weight"):
            blocks = w.unflatten(1, (-1, d_head)).abs().sum((0, 2))
        if blocks is None:
            assert bool(((w != 0).all(0) | (w == 0).all(0)).all()), f"{name} keeps or drops whole columns"
        else:
            assert int((w != 0).sum()) == int((blocks > 0).sum()) * w.numel() // len(blocks), name
            whole += (blocks > 0).tolist()
    assert len(whole) == 2 * 4 * 2 and not all(whole) and any(whole)


def test_no_matrix_loses_its_last_gate_and_less_than_that_is_refused(tmp_path: Path) -> None:
    """A column of the first hidden layer's weights counts 24, of the second 24 too, of the last 3: 51 of 936."""
    model = trained(tmp_path / "a", regimes=(L0(L0Settings(density=0.06, group="neuron")),))
    assert all(w.count_nonzero() > 0 for w in matrices(model).values())
    fresh = models.build(CONFIGS["mlp"], seed=0)
    with pytest.raises(UsageError, match=r"leaves 47 of 936 weights, but .* 51 already .*ask for 0\.054 or more"):
        L0(L0Settings(density=0.05, group="neuron")).prepare(fresh, 10)
    assert not any(parametrize.is_parametrized(m) for m in fresh.modules()), "what is refused is left as it was"


def test_gates_per_head_need_heads(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no attention heads"):
        trained(tmp_path, "mlp", (L0(L0Settings(group="head")),))


def test_a_higher_price_leaves_fewer_weights_and_excludes_a_density(tmp_path: Path) -> None:
    kept = [count_nonzero(trained(tmp_path / str(p), regimes=(L0(L0Settings(price=p)),)))[0] for p in (0, 1e-4, 1e-2)]
    assert kept[0] > 1.5 * kept[1] > 2 * kept[2]
    with pytest.raises(UsageError, match="one of them is enough"):
        make_regime("l0", {"price": 1e-3, "density": 0.1})


# -- what must see the gates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_gated_model_is_counted_like_the_plain_one_that_it_becomes(kind: str) -> None:
    model, regime = gated(kind)
    plain = copied(model)
    regime.finish(plain)
    assert not any(parametrize.is_parametrized(m) for m in plain.modules())
    assert any(parametrize.is_parametrized(m) for m in model.modules()), (
        "the copy's gates are gone, the model's are not"
    )
    assert list(places(model)) == list(places(plain)) == list(places(models.build(CONFIGS[kind])))
    assert count_nonzero(model) == count_nonzero(plain) and 0 < count_nonzero(plain)[0] < count_nonzero(plain)[1]
    assert dead_neurons(model) == dead_neurons(plain)
    device = torch.device("cpu")
    assert held_out_loss(model, Toy(kind), device) == held_out_loss(plain, Toy(kind), device)
    assert model.training and all(m.training for m in model.modules()), "counting leaves the model in training"
    inputs, _ = Toy(kind).batch(0)
    with evaluating(model), torch.no_grad():
        seen = patching.support(model)
        assert all(torch.equal(seen[n], s) for n, s in patching.support(plain).items())
        graph, reference = patching.graph_of(model), patching.zero_reference(model)
        for circuit in (Circuit.empty(graph), Circuit.whole(graph, seen)):
            masks = dict(circuit.edges)
            masks[graph.links[-1].name] = ~masks[graph.links[-1].name]  # something to carry, in both circuits
            with patching.patched(model, reference, edges=masks), patching.patched(plain, reference, edges=masks):
                assert torch.allclose(model(*inputs), plain(*inputs), atol=1e-6)


def test_penalties_of_other_regimes_act_on_the_very_weights_of_the_step() -> None:
    model, _ = gated()
    l1 = L1(L1Settings(price=1.0))
    with parametrize.cached():
        used = [model.get_submodule(f"layers.{i}").weight for i in range(3)]
        price = l1.penalty(model, 0)
    assert float(price.detach()) == pytest.approx(sum(float(w.detach().abs().sum()) for w in used), rel=1e-6)
    raw = sum(float(m.parametrizations[n].original.detach().abs().sum()) for m, n in places(model).values())  # type: ignore[union-attr]
    assert float(price.detach()) < 0.8 * raw


def test_l1_beside_l0_still_cuts_what_is_small(tmp_path: Path) -> None:
    for i, regimes in enumerate(((L0(), L1(L1Settings(price=1e-3, cut=0.02))), (L1(L1Settings(cut=0.02)), L0()))):
        model = trained(tmp_path / str(i), regimes=regimes)
        kept = torch.cat([w.detach().flatten() for w in matrices(model).values()])
        assert int(kept.count_nonzero()) > 0 and float(kept[kept != 0].abs().min()) > 0.02


def test_gates_lie_on_top_of_a_weight_norm(tmp_path: Path) -> None:
    model = models.build(CONFIGS["mlp"], seed=0)
    for layer in model.get_submodule("layers").children():
        parametrizations.weight_norm(layer)
    regime = L0(L0Settings(density=0.2))
    assert list(places(model)) == [f"layers.{i}.weight" for i in range(3)]
    regime.prepare(model, 1)
    regime.after_step(model, torch.optim.SGD(model.parameters()), 1)
    with evaluating(model):
        want = {n: w.detach().clone() for n, w in matrices(model).items()}
    regime.finish(model)
    nonzero, total = count_nonzero(model)
    assert nonzero == round(0.2 * total)
    assert all(torch.equal(w, want[n]) for n, w in matrices(model).items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gates_learn_at_their_own_rate_and_do_not_decay(name: str, tmp_path: Path) -> None:
    model, regime = gated(gate_lr=7.0)
    s = TrainSettings(weight_decay=0.3)
    groups = OPTIMIZERS[name](model, s, regime.groups(model)).param_groups
    gates = {p for n, p in model.named_parameters() if n.endswith("log_alpha")}
    (own,) = [g for g in groups if gates & set(g["params"])]
    assert set(own["params"]) == gates and own["weight_decay"] == 0 and own["lr_factor"] == 7.0
    decayed = {p for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {p for n, p in model.named_parameters() if n.endswith("original")}
    every = [p for g in groups for p in g["params"]]
    assert len(every) == len(set(every)) == len(list(model.parameters()))


def test_weight_decay_moves_no_gate() -> None:
    """One step without a gradient from the loss: weights shrink by exactly their decay, gates stay where they are."""
    model, regime = gated()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = OPTIMIZERS["adamw"](model, TrainSettings(weight_decay=0.5, lr=0.1), regime.groups(model))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        if name.endswith("original"):
            assert torch.allclose(p, 0.95 * before[name])
        else:
            assert torch.equal(p, before[name]), name


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_killed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(kind: str, tmp_path: Path) -> None:
    """Killed while gates learn, twice, and after they have settled; a snapshot of each part besides."""
    snapshots = (40, 170)
    whole = trained(tmp_path / "whole", kind, snapshots=snapshots)
    for at in (50, 100, 180):
        with pytest.raises(Stop):
            trained(tmp_path / "cut", kind, stop=at, snapshots=snapshots)
    resumed = trained(tmp_path / "cut", kind, snapshots=snapshots)
    assert model_digest(resumed) == model_digest(whole)
    clocks = ("tokens_per_s", "projection_share", "seconds")
    a, b = (
        [{k: v for k, v in r.items() if k not in clocks} for r in files.read_jsonl(tmp_path / x / "metrics.jsonl")]
        for x in ("whole", "cut")
    )
    assert a == b
    assert {"expected_density", "test_density", "multiplier"} <= a[0].keys()
    for step in snapshots:
        headers = [files.read_model_header(tmp_path / x / "snapshots" / str(step)) for x in ("whole", "cut")]
        assert headers[0]["digest"] == headers[1]["digest"]
    settled = load_model(tmp_path / "whole" / "snapshots" / "170")
    assert count_nonzero(settled)[0] == pytest.approx(0.1 * count_nonzero(settled)[1], rel=0.02)


def test_the_random_numbers_of_a_run_do_not_depend_on_when_it_is_looked_at(tmp_path: Path) -> None:
    often = trained(tmp_path / "a", log_every=1, eval_every=3)
    seldom = trained(tmp_path / "b", log_every=100, eval_every=200)
    assert model_digest(often) == model_digest(seldom)


def test_another_choice_of_weights_beside_l0_is_refused_in_either_order(tmp_path: Path) -> None:
    for names in (("l0", "topk"), ("topk", "l0"), ("rigl", "l0")):
        with pytest.raises(
            UsageError, match="l0 and (topk|rigl) do not compose: each decides alone which weights are zero"
        ):
            trained(tmp_path, regimes=tuple(make_regime(n) for n in names))


def test_a_gated_model_is_not_stored(tmp_path: Path) -> None:
    model, _ = gated()
    with pytest.raises(UsageError, match=r"layers\.0 still has its parametrizations"):
        save_model(tmp_path / "model", model)
    assert not (tmp_path / "model").exists()
