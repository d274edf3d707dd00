"""Optimizers: each learns, keeps to masks and resumes bit for bit; Muon is torch's, LMO-IGT is its recursion."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork import files, models
from openwork.errors import UsageError
from openwork.store import model_digest
from openwork.training import OPTIMIZERS, DenseSettings, Regime, TrainSettings, make_regime, train
from openwork.training.matrices import count_nonzero
from openwork.training.optimizers import LmoIgt, gradient_point, hidden_matrices, orthogonal
from test_training import CONFIG, Counting, Stop, settings_of, timeless


def trained(folder: Path, optimizer: str, stop_at: int | None = None, **more: Any) -> nn.Module:
    """A model after a short run under top-k, or after one that is cut at a step."""

    def progress(done: int, total: int, record: dict[str, Any]) -> None:
        if stop_at is not None and done >= stop_at:
            raise Stop

    model = models.build(CONFIG, seed=0)
    regime = make_regime("topk", {"density": 0.25, "floor": 0})
    s = settings_of(optimizer=optimizer, lr=0.02, **more)
    train(model, Counting(), (regime,), s, folder, progress=progress)
    return model


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_at_the_density_and_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", name)
    for at in (14, 40):
        with pytest.raises(Stop):
            trained(tmp_path / "cut", name, stop_at=at)
    assert model_digest(trained(tmp_path / "cut", name)) == model_digest(whole)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
    assert count_nonzero(whole)[0] == round(0.25 * count_nonzero(whole)[1])
    held_out = [r["held_out"] for r in files.read_jsonl(tmp_path / "whole" / "metrics.jsonl") if r["held_out"]]
    assert held_out[-1] < held_out[0]


def test_hidden_matrices_neither_leave_an_input_nor_enter_the_output() -> None:
    model = models.build(CONFIG)
    want = {n for n, p in model.named_parameters() if n.startswith("blocks") and p.dim() == 2}
    found = {id(p) for p in hidden_matrices(model)}
    assert {n for n, p in model.named_parameters() if id(p) in found} == want and len(want) == 12
    mlp = models.build(models.MLPConfig(inputs=5, hidden=(4, 3), outputs=2))
    assert [p.shape for p in hidden_matrices(mlp)] == [(3, 4)]


def gradients(model: nn.Module, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g)


def test_muon_is_torchs_muon_beside_adamw_also_after_loading() -> None:
    """Step by step with a changing rate, the one optimizer does what the two do alone."""
    s = TrainSettings(lr=0.01, weight_decay=0.2, betas=(0.8, 0.9))
    one, two = models.build(CONFIG, seed=3), models.build(CONFIG, seed=3)
    together = OPTIMIZERS["muon"](one, s)
    hidden = hidden_matrices(two)
    others = [p for p in two.parameters() if all(p is not h for h in hidden)]
    alone = [
        torch.optim.Muon(hidden, 0.01, 0.2, momentum=0.8, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in others if p.dim() == 2], 0.01, (0.8, 0.9), weight_decay=0.2, fused=True),
        torch.optim.AdamW([p for p in others if p.dim() < 2], 0.01, (0.8, 0.9), weight_decay=0.0, fused=True),
    ]
    for i, lr in enumerate((0.01, 0.02, 0.005, 0.01)):
        if i == 2:  # as a resumed run does
            fresh = OPTIMIZERS["muon"](one, s)
            fresh.load_state_dict(copy.deepcopy(together.state_dict()))
            together = fresh
        for group in [g for o in (together, *alone) for g in o.param_groups]:
            group["lr"] = lr
        gradients(one, i)
        gradients(two, i)
        for optimizer in (together, *alone):
            optimizer.step()
        for (n, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
            assert torch.equal(a, b), f"step {i}: {n}"
    assert set(together.state) == set(one.parameters()), "moments of every parameter can be reached in one place"


def test_muon_refuses_what_has_no_hidden_matrix() -> None:
    with pytest.raises(UsageError, match="no matrix between two hidden layers; use adamw"):
        OPTIMIZERS["muon"](models.build(models.MLPConfig(hidden=(8,))), TrainSettings())


@pytest.mark.parametrize("name", ["muon", "lmo_igt"])
def test_spectral_steps_refuse_weights_that_are_made_of_several_parameters(name: str, tmp_path: Path) -> None:
    s = settings_of(optimizer=name)
    with pytest.raises(UsageError, match=r"to_q\.weight is computed from several parameters"):
        train(models.build(CONFIG), Counting(), (make_regime("weight_norm"),), s, tmp_path)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_orthogonal_sends_singular_values_near_one_and_keeps_the_vectors(shape: tuple[int, int]) -> None:
    m = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 37
    u, _, vh = torch.linalg.svd(m, full_matrices=False)
    inner = u.T @ orthogonal(m) @ vh.T
    values = inner.diagonal()
    assert values.min() > 0.5 and values.max() < 1.3
    assert (inner - values.diag()).abs().max() < 1e-4
    assert not orthogonal(torch.zeros(shape)).any()


# -- LMO-IGT -----------------------------------------------------------------------------------------------------------


def test_lmo_igt_follows_the_recursion_worked_by_hand() -> None:
    """f(x) = x^4 / 4, so grad f(y) = y^3; b = 1/2, so y = 2 x_t - x_{t-1}; sign steps of 0.2 lr; lr 1, then 2.

    t  x      y       grad     m                        next x
    0  0.5    0.5     0.125    0.125                    0.3
    1  0.3    0.1     0.001    0.063                    0.1
    2  0.1   -0.1    -0.001    0.031                   -0.1
    3 -0.1   -0.3    -0.027    0.002                   -0.5      lr 2: the extrapolated gradient has turned, m not yet
    4 -0.5   -0.9    -0.729   -0.3635                  -0.1
    """
    p = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = LmoIgt([{"params": [p]}], lr=1.0, momentum=0.5)
    seen = []
    for lr in (1.0, 1.0, 1.0, 2.0, 2.0):
        optimizer.param_groups[0]["lr"] = lr
        x = p.item()
        with gradient_point(optimizer):
            y = p.item()
            p.grad = p.detach() ** 3
        assert p.item() == x
        optimizer.step()
        seen.append((x, y, optimizer.state[p]["momentum"].item(), p.item()))
    want = [
        (0.5, 0.5, 0.125, 0.3),
        (0.3, 0.1, 0.063, 0.1),
        (0.1, -0.1, 0.031, -0.1),
        (-0.1, -0.3, 0.002, -0.5),
        (-0.5, -0.9, -0.3635, -0.1),
    ]
    for got, row in zip(seen, want, strict=True):
        assert got == pytest.approx(row)


@pytest.mark.parametrize(("spectral", "rel"), [(True, 0.2), (False, 1e-3)])
def test_steps_of_both_kinds_have_the_same_size(spectral: bool, rel: float) -> None:
    """A root mean square of 0.2 lr, whatever the gradient's; near it for singular values that are near one."""
    p = nn.Parameter(torch.zeros(12, 40))
    p.grad = torch.randn(12, 40, generator=torch.Generator().manual_seed(0)) * 1e-3
    LmoIgt([{"params": [p], "spectral": spectral}], lr=0.5, momentum=0.9).step()
    assert p.detach().pow(2).mean().sqrt().item() == pytest.approx(0.1, rel=rel)


def test_weight_decay_shrinks_before_the_step() -> None:
    p = nn.Parameter(torch.tensor([2.0]))
    p.grad = torch.tensor([-3.0])
    LmoIgt([{"params": [p], "weight_decay": 0.5}], lr=0.1, momentum=0.9).step()
    assert p.item() == pytest.approx(0.95 * 2 + 0.1 * 0.2)


@pytest.mark.parametrize("spectral", [False, True])
def test_on_a_quadratic_the_transported_momentum_is_the_gradient_exactly(spectral: bool) -> None:
    """f = 1/2 <x, H x> - <c, x>: m_t = H x_t - c at every step, for any rates; a plain moving average lags behind."""
    g = torch.Generator().manual_seed(1)
    root = torch.randn(12, 12, generator=g, dtype=torch.float64)
    hessian, c = root @ root.T / 12, torch.randn(12, generator=g, dtype=torch.float64)
    p = nn.Parameter(torch.randn(3, 4, generator=g, dtype=torch.float64))
    optimizer = LmoIgt([{"params": [p], "weight_decay": 0.1, "spectral": spectral}], lr=0.1, momentum=0.9)

    def gradient(x: Tensor) -> Tensor:
        return (hessian @ x.detach().flatten() - c).view(3, 4)

    lagging = gradient(p)
    for step in range(40):
        optimizer.param_groups[0]["lr"] = 0.1 if step % 3 else 0.02
        here = gradient(p)
        lagging = 0.9 * lagging + 0.1 * here
        with gradient_point(optimizer):
            p.grad = gradient(p)
        optimizer.step()
        assert torch.allclose(optimizer.state[p]["momentum"], here, atol=1e-10), step
        assert step == 0 or not torch.allclose(lagging, here, atol=1e-3), step


def test_parameters_return_bit_for_bit_also_after_an_error() -> None:
    p = nn.Parameter(torch.tensor([0.1, 0.7]))
    optimizer = LmoIgt([{"params": [p]}], lr=0.3, momentum=0.9)
    p.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    x = p.detach().clone()
    with pytest.raises(ZeroDivisionError), gradient_point(optimizer):
        assert not torch.equal(p, x)
        raise ZeroDivisionError
    assert torch.equal(p, x)


def test_a_momentum_of_one_is_refused() -> None:
    with pytest.raises(UsageError, match="must be below 1"):
        OPTIMIZERS["lmo_igt"](models.build(CONFIG), TrainSettings(betas=(1.0, 0.9)))


class Probe(Regime[DenseSettings]):
    """Notes where a weight is in the forward pass and between steps."""

    name = "probe"

    def __init__(self) -> None:
        super().__init__(DenseSettings())
        self.between: list[Tensor] = []
        self.inside: list[Tensor] = []

    def prepare(self, model: nn.Module, steps: int) -> None:
        self.between.append(model.get_parameter("unembed.weight").detach().clone())

    @contextmanager
    def during(self, model: nn.Module, step: int) -> Iterator[None]:
        self.inside.append(model.get_parameter("unembed.weight").detach().clone())
        yield

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        self.between.append(model.get_parameter("unembed.weight").detach().clone())


def test_the_loop_takes_gradients_ahead_and_everything_else_where_the_masked_weights_are(tmp_path: Path) -> None:
    probe, masks = Probe(), make_regime("topk", {"density": 0.25, "floor": 0, "anneal_until": 0.02, "anneal_from": 0})
    model = models.build(CONFIG, seed=0)
    train(model, Counting(), (masks, probe), settings_of(steps=6, optimizer="lmo_igt", betas=(0.75, 0.9)), tmp_path)
    x = probe.between
    assert torch.equal(probe.inside[0], x[0])
    for t in range(1, 6):
        assert torch.allclose(probe.inside[t], x[t] + 3 * (x[t] - x[t - 1]), atol=1e-6), t
        assert int(x[t].count_nonzero()) == x[t].numel() // 4
    assert torch.equal(x[6], model.get_parameter("unembed.weight"))
