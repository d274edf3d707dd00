"""L2, dropout and weight normalisation: what they compute, that they leave plain models, and exact resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from openwork import models
from openwork.errors import UsageError
from openwork.store import load_model, model_digest
from openwork.training import (
    L1,
    L2,
    Dropout,
    DropoutSettings,
    L1Settings,
    L2Settings,
    TrainSettings,
    WeightNorm,
    held_out_loss,
    make_regime,
    train,
)
from openwork.training.matrices import count_nonzero, matrices
from test_training import CONFIG, Counting, Stop, settings_of, timeless

CPU = torch.device("cpu")
MLP = models.MLPConfig(inputs=6, hidden=(400, 50), outputs=3)


def trained(
    folder: Path, regimes: dict[str, dict[str, Any]], stop_at: int | None = None, **more: Any
) -> tuple[nn.Module, float]:
    """A model after a short run and its held-out loss, or after one that is cut at a step."""

    def progress(done: int, total: int, record: dict[str, Any]) -> None:
        if stop_at is not None and done >= stop_at:
            raise Stop

    model = models.build(CONFIG, seed=0)
    made = tuple(make_regime(n, options) for n, options in regimes.items())
    result = train(model, Counting(), made, settings_of(**more), folder, progress=progress)
    return model, result.held_out


@pytest.mark.parametrize(
    "regimes",
    [{"dropout": {"neurons": 0.3}}, {"weight_norm": {}, "l1": {}}, {"dropout": {}, "rigl": {"density": 0.3}}],
    ids=lambda r: "+".join(r),
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    regimes: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    whole, _ = trained(tmp_path / "whole", regimes, snapshots=(30,))
    for at in (14, 28, 49):
        with pytest.raises(Stop):
            trained(tmp_path / "cut", regimes, stop_at=at, snapshots=(30,))
    assert model_digest(trained(tmp_path / "cut", regimes, snapshots=(30,))[0]) == model_digest(whole)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")


# -- L2 ----------------------------------------------------------------------------------------------------------------


def test_l2_is_half_the_price_of_the_squares_of_matrices_only() -> None:
    model = models.build(models.MLPConfig(inputs=2, hidden=(1,), outputs=2))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(5.0)
        model.get_parameter("layers.0.weight").copy_(torch.tensor([[1.0, -2.0]]))
        model.get_parameter("layers.1.weight").copy_(torch.tensor([[3.0], [0.0]]))
    assert L2(L2Settings(price=0.1)).penalty(model, 0).item() == pytest.approx(0.05 * (1 + 4 + 9))


def test_under_plain_gradient_descent_l2_is_weight_decay(tmp_path: Path) -> None:
    more: dict[str, Any] = {"optimizer": "sgd", "betas": (0.0, 0.0), "clip": "none", "lr": 0.1, "steps": 10}
    a, _ = trained(tmp_path / "a", {"l2": {"price": 0.2}}, weight_decay=0.0, **more)
    b, _ = trained(tmp_path / "b", {"dense": {}}, weight_decay=0.2, **more)
    c, _ = trained(tmp_path / "c", {"dense": {}}, weight_decay=0.0, **more)
    far = [max((p - q).abs().max().item() for p, q in zip(a.parameters(), x.parameters(), strict=True)) for x in (b, c)]
    assert far[0] < 1e-6 < 1e-2 < far[1]


# -- dropout -----------------------------------------------------------------------------------------------------------


def through(model: nn.Module, x: Tensor, *sites: str) -> list[Tensor]:
    """What modules send in one run."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(s).register_forward_hook(lambda _m, _a, out, s=s: seen.__setitem__(s, out)) for s in sites
    ]
    model(x)
    for h in handles:
        h.remove()
    return [seen[s] for s in sites]


def test_dropped_nodes_are_zero_and_the_others_are_scaled() -> None:
    model, x = models.build(MLP), torch.randn(64, 6) + 3
    (plain,) = through(model, x, "nodes.1")
    regime = Dropout(DropoutSettings(neurons=0.4, inputs=0.2))
    regime.prepare(model, 1)
    with regime.during(model, 0):
        inputs, hidden, logits = through(model, x, "nodes.0", "nodes.1", "nodes.3")
        again = model(x)
    assert torch.allclose(inputs[inputs != 0], (x / 0.8)[inputs != 0])
    assert float((inputs == 0).float().mean()) == pytest.approx(0.2, abs=0.07)  # 384 draws: 3.4 standard deviations
    alive = plain > 0
    assert float((hidden == 0)[alive].float().mean()) > 0.35  # dropped here, or silent for what was dropped before
    assert logits.count_nonzero() == logits.numel(), "the output is never dropped"
    assert not torch.equal(logits, again), "every pass draws anew"
    assert torch.equal(through(model, x, "nodes.1")[0], plain)

    only = Dropout(DropoutSettings(neurons=0.4))
    only.prepare(model, 1)
    with only.during(model, 0):
        inputs, hidden = through(model, x, "nodes.0", "nodes.1")
    assert torch.equal(inputs, x)
    assert torch.allclose(hidden[hidden != 0], (plain / 0.6)[hidden != 0])
    assert float((hidden == 0)[alive].float().mean()) == pytest.approx(0.4, abs=0.02)  # about 13,000 draws


def test_hooks_are_gone_after_a_step_whatever_happened_in_it() -> None:
    model = models.build(CONFIG)
    regime = Dropout()
    regime.prepare(model, 1)
    with pytest.raises(ZeroDivisionError), regime.during(model, 0):
        assert sum(len(m._forward_hooks) for m in model.modules()) == 2  # the neurons of two blocks
        raise ZeroDivisionError
    assert not any(m._forward_hooks for m in model.modules())


def test_evaluations_see_the_whole_model(tmp_path: Path) -> None:
    model, held_out = trained(tmp_path, {"dropout": {"neurons": 0.5}})
    assert held_out == held_out_loss(model, Counting(), CPU)
    dense, _ = trained(tmp_path / "dense", {"dense": {}})
    assert model_digest(model) != model_digest(dense)


def test_no_share_is_plain_training(tmp_path: Path) -> None:
    none, _ = trained(tmp_path / "none", {"dropout": {"neurons": 0.0}})
    dense, _ = trained(tmp_path / "dense", {"dense": {}})
    assert model_digest(none) == model_digest(dense)


def test_tokens_cannot_be_dropped(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"this Transformer has no input activations to drop; set dropout\.inputs"):
        trained(tmp_path, {"dropout": {"inputs": 0.1}})


# -- weight normalisation ----------------------------------------------------------------------------------------------


def test_preparing_and_finishing_leave_the_function_and_the_names() -> None:
    model, x = models.build(CONFIG, seed=2), Counting().batch(0)[0]
    want, names, before = model(*x), model.state_dict().keys(), {n: w.clone() for n, w in matrices(model).items()}
    regime = WeightNorm()
    regime.prepare(model, 1)
    assert parametrize.is_parametrized(model.get_submodule("unembed"), "weight")
    assert not parametrize.is_parametrized(model.get_submodule("embed"))
    assert matrices(model).keys() == before.keys()
    for n, w in matrices(model).items():
        assert torch.allclose(w, before[n], atol=1e-7), n
    assert torch.allclose(model(*x), want, atol=1e-5)
    regime.finish(model)
    assert model.state_dict().keys() == names
    assert all(type(p) is nn.Parameter and p.is_leaf and p.requires_grad for p in model.parameters())
    assert torch.allclose(model(*x), want, atol=1e-5)


def test_penalties_and_counts_are_of_the_effective_weights() -> None:
    """The size of v is no weight of the model: scaling it changes nothing that is counted or paid for."""
    model = models.build(MLP, seed=0)
    prices = [L1(L1Settings(price=1.0)), L2(L2Settings(price=1.0))]
    plain = [p.penalty(model, 0).item() for p in prices]
    WeightNorm().prepare(model, 1)
    count = count_nonzero(model)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n.endswith("original1"):
                p.mul_(7)
    assert [p.penalty(model, 0).item() for p in prices] == pytest.approx(plain, rel=1e-5)
    assert count_nonzero(model) == count == (6 * 400 + 400 * 50 + 50 * 3,) * 2


def test_gradients_are_those_of_the_paper() -> None:
    """dL/dg = <dL/dw, v> / ||v||;  dL/dv = g / ||v|| (dL/dw - <dL/dw, w> w / ||w||^2), row by row."""
    model = models.build(MLP, seed=0)
    WeightNorm().prepare(model, 1)
    g, v = (model.get_parameter(f"layers.0.parametrizations.weight.original{i}") for i in (0, 1))
    with torch.no_grad():
        v.mul_(3)
    toward = torch.randn(400, 6)
    (matrices(model)["layers.0.weight"] * toward).sum().backward()
    w, length = (g * v / v.norm(dim=1, keepdim=True)).detach(), v.detach().norm(dim=1, keepdim=True)
    assert g.grad is not None and v.grad is not None
    assert torch.allclose(g.grad, (toward * v.detach()).sum(1, keepdim=True) / length, atol=1e-5)
    along = (toward * w).sum(1, keepdim=True) * w / w.pow(2).sum(1, keepdim=True)
    assert torch.allclose(v.grad, g.detach() / length * (toward - along), atol=1e-5)


@pytest.mark.parametrize("order", [("l1", "weight_norm"), ("weight_norm", "l1")])
def test_l1_cuts_the_baked_weights_in_any_order_in_snapshots_too(order: tuple[str, str], tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {"l1": {"price": 1e-3, "cut": 0.02}, "weight_norm": {}}
    model, _ = trained(tmp_path, {n: options[n] for n in order}, snapshots=(30,))
    for m in (model, load_model(tmp_path / "snapshots" / "30"), load_model(tmp_path / "model")):
        weights = torch.cat([w.detach().flatten() for w in matrices(m).values()])
        assert weights[weights != 0].abs().min() > 0.02 and int((weights == 0).sum()) > 100
        assert not any(parametrize.is_parametrized(x) for x in m.modules())


def test_a_row_of_zeros_is_refused(tmp_path: Path) -> None:
    model = models.build(CONFIG)
    with torch.no_grad():
        model.get_parameter("unembed.weight")[3:5] = 0
    with pytest.raises(UsageError, match=r"2 rows of unembed\.weight are all zero"):
        train(model, Counting(), (WeightNorm(),), TrainSettings(), tmp_path)
