"""Modules by training: both losses and the pull on what crosses against values worked by hand; runs, their books."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from openwork import models, structure
from openwork.errors import UsageError
from openwork.files import read_json, read_jsonl
from openwork.store import load_model, model_digest
from openwork.training import Clusterability, ClusterabilitySettings, Regime, TrainSettings, make_regime, train
from openwork.training.matrices import count_nonzero
from test_training import CONFIG, Counting, Stop, settings_of

SMALL = models.MLPConfig(inputs=4, hidden=(6, 6, 6), outputs=3)


class Blobs:
    """Classes of points that a small perceptron learns at once."""

    def batch(self, step: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(step))
        return (x,), x[:, :3].argmax(1)

    def held_out(self, split: str) -> Any:
        yield self.batch(9_999)


def prepared(model: nn.Module, steps: int = 100, **options: Any) -> Clusterability:
    """The regime with its first partition."""
    regime = Clusterability(ClusterabilitySettings(**{"begin": 0, **options}))
    regime.prepare(model, steps)
    return regime


def trained(
    folder: Path, config: Any, regimes: tuple[Regime[Any], ...], stop_at: int | None = None, **more: Any
) -> nn.Module:
    """A model after a short run, or after one that is cut at a step."""

    def progress(done: int, total: int, record: dict[str, Any]) -> None:
        if stop_at is not None and done >= stop_at:
            raise Stop

    model = models.build(config, seed=0)
    data = Blobs() if config is SMALL else Counting()
    train(model, data, regimes, settings_of(**more), folder, progress=progress)
    return model


def crossing_weights(model: nn.Module, partition: structure.Partition) -> torch.Tensor:
    """All weights between modules, flat."""
    of = structure.wiring(model.graph())  # type: ignore[operator]
    found = structure.weights(model, of)
    return torch.cat(
        [found[e.name].detach()[structure.crossing(partition[e.dst], partition[e.src])].flatten() for e in of.links]
    )


# -- the losses --------------------------------------------------------------------------------------------------------


def test_both_losses_are_their_formulas() -> None:
    model = models.build(SMALL, seed=1)
    _, first, second, _ = (layer.weight.detach() for layer in model.layers)  # type: ignore[union-attr]
    for name in ("ncut", "ratio"):
        regime = prepared(model, modules=2, partition="blocks", price=2.0, loss=name)
        cuts, volumes, inside = [0.0, 0.0], [0.0, 0.0], []
        for w in (first, second):
            for i in range(6):
                for j in range(6):
                    a, (c, d) = abs(float(w[i, j])), (i // 3, j // 3)
                    volumes[c] += a
                    volumes[d] += a
                    cuts[c] += a if c != d else 0
                    cuts[d] += a if c != d else 0
            inside.append(float(w[:3, :3].pow(2).sum() + w[3:, 3:].pow(2).sum()) / float(w.pow(2).sum()))
        want = {
            "ncut": 2.0 / 2 * (cuts[0] / volumes[0] + cuts[1] / volumes[1]),
            "ratio": 2.0 * (1 - sum(inside) / 2),
        }[name]
        found = regime.penalty(model, 0)
        assert found is not None and float(found.detach()) == pytest.approx(want, rel=1e-5)
        found.backward()
        assert all(layer.weight.grad is None for layer in (model.layers[0], model.layers[3]))  # type: ignore[index]
        assert model.layers[1].weight.grad is not None  # type: ignore[index]
    assert prepared(model, price=0).penalty(model, 0) is None


# -- the pull on what crosses ------------------------------------------------------------------------------------------


def test_only_what_crosses_moves_towards_zero_by_tau_learning_rates() -> None:
    model = models.build(SMALL, seed=1)
    regime = prepared(model, modules=2, partition="blocks", tau=0.5)
    before = copy.deepcopy(model.state_dict())
    regime.after_step(model, SGD(model.parameters(), lr=0.2), 1)
    zeros = 0
    for name, now in model.state_dict().items():
        want = before[name].clone()
        if name in ("layers.1.weight", "layers.2.weight"):
            for i in range(6):
                for j in range(6):
                    if i // 3 != j // 3:
                        w = float(want[i, j])
                        want[i, j] = 0.0 if abs(w) <= 0.1 else w - 0.1 * (1 if w > 0 else -1)
                        zeros += abs(w) <= 0.1
        torch.testing.assert_close(now, want)
    assert zeros > 3


def test_a_hard_cut_leaves_nothing_between_modules(tmp_path: Path) -> None:
    for kind in (SMALL, CONFIG):
        regime = make_regime("clusterability", {"hard_cut": True, "tau": 0})
        model = trained(tmp_path / kind.kind, kind, (regime,), snapshots=(30,))
        assert isinstance(regime, Clusterability)
        assert not crossing_weights(model, regime.partition).any()
        assert regime.report(model)["cross_edges"] == 0 and regime.report(model)["clusterability"] == pytest.approx(1)
        kept = load_model(tmp_path / kind.kind / "snapshots" / "30")
        stored = read_json(tmp_path / kind.kind / "snapshots" / "30" / "config.json")
        modules = {s: torch.tensor(m) for s, m in stored["extra"]["clusterability"]["modules"].items()}
        assert not crossing_weights(kept, modules).any()


def test_what_crosses_becomes_little_and_the_task_does_not_need_it(tmp_path: Path) -> None:
    """The test that C cannot fake: delete what crosses and measure again. Without the regime it hurts."""
    found = {}
    for name in ("dense", "clusterability"):
        model = models.build(models.MLPConfig(inputs=4, hidden=(24, 24), outputs=3), seed=0)
        settings = TrainSettings(steps=300, lr=1e-2, eval_every=300, checkpoint_every=300)
        options = {"modules": 3} if name == "clusterability" else {}
        train(model, Blobs(), (make_regime(name, options),), settings, tmp_path / name)
        judge = prepared(model, modules=3)
        if name == "clusterability":
            extra = read_json(tmp_path / name / "model" / "config.json")["extra"]["clusterability"]
            judge.settle_on({s: torch.tensor(m) for s, m in extra["modules"].items()}, model)
        of = judge.report(model)
        x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(1))
        y = x[:, :3].argmax(1)
        before = (model(x).argmax(1) == y).float().mean()
        cut = copy.deepcopy(model)
        with torch.no_grad():
            weight = cut.get_submodule("layers.1").weight
            weight.masked_fill_(structure.crossing(judge.partition["hidden1"], judge.partition["hidden0"]), 0)  # type: ignore[operator]
            after = (cut(x).argmax(1) == y).float().mean()
        found[name] = (of["cross_edges"], float(before), float(before - after))
    assert found["clusterability"][0] < 0.2 * found["dense"][0]
    assert found["clusterability"][1] > 0.9 and found["clusterability"][2] < 0.01 < 0.02 < found["dense"][2]


def test_nothing_costs_before_its_moment() -> None:
    model = models.build(SMALL, seed=1)
    regime = prepared(model, modules=2, partition="blocks", begin=0.2)
    before = model_digest(model)
    optimizer = SGD(model.parameters(), lr=0.2)
    assert regime.penalty(model, 19) is None and regime.penalty(model, 20) is not None
    regime.after_step(model, optimizer, 20)  # the step that began as number 19
    assert model_digest(model) == before
    regime.after_step(model, optimizer, 21)
    assert model_digest(model) != before


# -- the partition -----------------------------------------------------------------------------------------------------


def test_the_partition_follows_the_weights_until_it_is_frozen() -> None:
    model = models.build(SMALL, seed=0)
    regime = prepared(model, steps=100, modules=2, every=10, freeze=0.5, tau=0)
    optimizer = SGD(model.parameters(), lr=0.1)

    def plant(order: torch.Tensor) -> list[int]:
        with torch.no_grad():
            for layer in (1, 2):
                w = model.get_submodule(f"layers.{layer}").weight
                w.copy_(torch.block_diag(torch.ones(3, 3), torch.ones(3, 3))[order][:, order])  # type: ignore[operator]
        return [int(order[i] >= 3) for i in range(6)]

    def same(labels: torch.Tensor, truth: list[int]) -> bool:
        return labels.tolist() in (truth, [1 - t for t in truth])

    first = plant(torch.tensor([0, 3, 1, 4, 2, 5]))
    regime.after_step(model, optimizer, 49)
    regime.after_step(model, optimizer, 50)
    assert same(regime.partition["hidden1"], first)
    second = plant(torch.tensor([0, 1, 2, 3, 4, 5]))
    regime.after_step(model, optimizer, 60)
    assert same(regime.partition["hidden1"], first) and not same(regime.partition["hidden1"], second)


def test_a_new_partition_of_the_same_weights_keeps_the_names() -> None:
    model = models.build(CONFIG, seed=0)
    regime = prepared(model, modules=3)
    swapped = {site: (labels + 1) % 3 for site, labels in regime.partition.items()}
    regime.settle_on(swapped, model)
    regime.repartition(model)
    assert all(torch.equal(regime.partition[s], swapped[s]) for s in swapped)


def test_blocks_never_change(tmp_path: Path) -> None:
    regime = make_regime("clusterability", {"partition": "blocks", "modules": 3, "every": 5})
    trained(tmp_path, SMALL, (regime,))
    assert isinstance(regime, Clusterability)
    assert {s: m.tolist() for s, m in regime.partition.items()} == {f"hidden{i}": [0, 0, 1, 1, 2, 2] for i in range(3)}


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
@pytest.mark.parametrize("options", [{"every": 9}, {"loss": "ratio", "partition": "blocks", "hard_cut": True}])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    config = SMALL if kind == "mlp" else CONFIG
    whole = trained(tmp_path / "whole", config, (make_regime("clusterability", options),))
    for at in (14, 42):
        with pytest.raises(Stop):
            trained(tmp_path / "cut", config, (make_regime("clusterability", options),), stop_at=at)
    resumed = trained(tmp_path / "cut", config, (make_regime("clusterability", options),))
    assert model_digest(resumed) == model_digest(whole)
    extras = [read_json(tmp_path / f / "model" / "config.json")["extra"]["clusterability"] for f in ("whole", "cut")]
    assert extras[0] == extras[1]


def test_the_stored_model_says_which_node_is_in_which_module(tmp_path: Path) -> None:
    regime = make_regime("clusterability", {"modules": 3})
    model = trained(tmp_path, CONFIG, (regime,))
    modules = read_json(tmp_path / "model" / "config.json")["extra"]["clusterability"]["modules"]
    graph = model.graph()  # type: ignore[operator]
    assert {s: len(m) for s, m in modules.items()} == {s: graph.site(s).size for s in modules}
    assert {m for of in modules.values() for m in of} <= {0, 1, 2}
    assert modules["embed"] == modules["final.in"]
    last = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    crossing = crossing_weights(model, {s: torch.tensor(m) for s, m in modules.items()})
    assert last["cross_edges"] == int(crossing.count_nonzero())
    assert 0 <= last["ncut"] <= 3 and 0 < last["clusterability"] <= 1


@pytest.mark.parametrize(
    "others",
    [
        (("topk", {"density": 0.3}),), (("rigl", {"density": 0.3}),), (("l0", {"density": 0.3}),), (("l1", {}),),
        (("dropout", {}), ("l2", {})),
    ],
    ids=lambda o: "+".join(name for name, _ in o),
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_it_composes(others: Any, first: bool, tmp_path: Path) -> None:
    mine = make_regime("clusterability", {"tau": 1.0})
    more = tuple(make_regime(name, options) for name, options in others)
    model = trained(tmp_path, CONFIG, (mine, *more) if first else (*more, mine))
    assert isinstance(mine, Clusterability)
    nonzero, total = count_nonzero(model)
    assert "density" not in others[0][1] or nonzero <= 0.35 * total
    before = models.build(CONFIG, seed=0)
    share = [float((crossing_weights(m, mine.partition) != 0).float().mean()) for m in (before, model)]
    assert share[0] == 1 and share[1] < 0.75
    assert torch.isfinite(torch.cat([p.flatten() for p in model.parameters()])).all()


@pytest.mark.parametrize(
    ("regimes", "why"),
    [
        (("clusterability", "weight_norm"), "single weights cannot be set to zero"),
        (("gomory_hu", "clusterability"), "each makes a partition of its own"),
    ],
)
def test_what_does_not_compose_is_refused(regimes: tuple[str, ...], why: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=why):
        trained(tmp_path, SMALL, tuple(make_regime(name) for name in regimes))


def test_a_model_without_two_hidden_layers_is_refused(tmp_path: Path) -> None:
    shallow = models.MLPConfig(inputs=4, hidden=(8,), outputs=3)
    for name in ("clusterability", "gomory_hu"):
        with pytest.raises(UsageError, match=f"the regime {name} cannot train this MLP: .*two hidden layers"):
            train(models.build(shallow), Blobs(), (make_regime(name),), settings_of(), tmp_path / name)
        assert not (tmp_path / name / "model").exists()
    with pytest.raises(UsageError, match="20 modules for 18 hidden nodes"):
        prepared(models.build(SMALL), modules=20)
