"""RigL: the books of its masks against brute force, nothing leaks from masked weights, and runs resume bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork import files, models
from openwork.errors import UsageError
from openwork.store import model_digest
from openwork.training import OPTIMIZERS, DenseSettings, Regime, RigL, RigLSettings, TrainSettings, make_regime, train
from openwork.training.matrices import count_nonzero, matrices
from openwork.training.rigl import counts, moved_mask
from test_training import CONFIG, Counting, Stop, settings_of, timeless

OPTIONS = {"density": 0.2, "every": 5, "until": 0.5, "alpha": 0.4}


def trained(folder: Path, regimes: tuple[Regime[Any], ...], stop_at: int | None = None, **more: Any) -> nn.Module:
    """A model after a short run, or after one that is cut at a step."""

    def progress(done: int, total: int, record: dict[str, Any]) -> None:
        if stop_at is not None and done >= stop_at:
            raise Stop

    model = models.build(CONFIG, seed=0)
    train(model, Counting(), regimes, settings_of(**more), folder, progress=progress)
    return model


# -- the densities -----------------------------------------------------------------------------------------------------


def test_densities_worked_by_hand() -> None:
    """55 of 110 entries. erk: 55 / (20 + 7) = 2.04 per axis length; the small one would keep 14 of 10, so it is dense
    and the other keeps the remaining 45. With 20 % nothing saturates: 22 / 27 * 20 = 16.3 and 22 / 27 * 7 = 5.7.
    """
    shapes = [(10, 10), (2, 5)]
    assert counts(shapes, 0.5, "uniform") == [50, 5]
    assert counts(shapes, 0.5, "erk") == [45, 10]
    assert counts(shapes, 0.2, "erk") == [16, 6]
    assert counts([(4, 3, 2, 2), (8, 6)], 0.25, "erk") == [11, 13]  # 24 / (11 + 14) = 0.96 per axis length


@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    density=st.floats(0.05, 1.0),
)
def test_erk_meets_the_density_overall(shapes: list[tuple[int, int]], density: float) -> None:
    kept, sizes = counts(shapes, density, "erk"), [math.prod(s) for s in shapes]
    assert all(1 <= k <= n for k, n in zip(kept, sizes, strict=True))
    assert abs(sum(kept) - density * sum(sizes)) <= len(shapes)


# -- one move ----------------------------------------------------------------------------------------------------------


def by_sorting(weight: Tensor, mask: Tensor, gradient: Tensor, share: float) -> set[int]:
    """The definition: give up the smallest kept weights, take the largest gradients among all that is left."""
    active = [i for i in range(weight.numel()) if mask.flatten()[i]]
    places = int(share * len(active))
    stay = sorted(active, key=lambda i: (-float(weight.flatten()[i].abs()), i))[: len(active) - places]
    others = [i for i in range(weight.numel()) if i not in stay]
    return set(stay) | set(sorted(others, key=lambda i: (-float(gradient.flatten()[i]), i))[:places])


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 35), share=st.floats(0, 1), ties=st.booleans())
def test_a_move_keeps_what_sorting_would(seed: int, k: int, share: float, ties: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    mask = (torch.randperm(35, generator=g) < k).view(7, 5)
    weight, gradient = torch.randn(7, 5, generator=g) * mask, torch.rand(7, 5, generator=g)
    if ties:
        weight, gradient = (weight * 2).round() / 2, (gradient * 3).round() / 3
    moved = moved_mask(weight, mask, gradient, share)
    assert set(moved.flatten().nonzero().flatten().tolist()) == by_sorting(weight, mask, gradient, share)
    assert int(moved.count_nonzero()) == k


def test_the_share_falls_along_a_cosine_and_ends() -> None:
    regime = RigL(RigLSettings(alpha=0.3, every=10, until=0.8))
    regime.prepare(models.build(CONFIG), 100)
    assert [round(regime._share(t), 4) for t in (10, 40, 70)] == [0.2886, 0.15, 0.0114]
    assert regime._share(41) == regime._share(80) == regime._share(90) == 0


# -- runs --------------------------------------------------------------------------------------------------------------


class Probe(Regime[DenseSettings]):
    """Looks at everything that belongs to masked weights after every step, and at what moves bring."""

    name = "probe"

    def __init__(self, rigl: RigL) -> None:
        super().__init__(DenseSettings())
        self.rigl = rigl
        self.before: dict[str, Tensor] = {}
        self.new: dict[int, int] = {}

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        masks = self.rigl.state()["masks"]
        for name, mask in masks.items():
            w = model.get_parameter(name)
            moments = [t for t in optimizer.state[w].values() if isinstance(t, Tensor) and t.shape == w.shape]
            assert moments, name
            for t in (w.detach(), *moments):
                assert not t[~mask].any(), f"{name} leaks at step {step}"
            if self.before:
                was = self.before[name]
                assert int(mask.count_nonzero()) == int(was.count_nonzero())
                assert w.grad is not None and not w.grad[~was].any(), f"{name}: a masked weight has a gradient"
                grown = mask & ~was
                for t in (w.detach(), *moments):
                    assert not t[grown].any(), f"{name}: a new weight does not start at zero at step {step}"
                self.new[step] = self.new.get(step, 0) + int(grown.count_nonzero())
        self.before = {n: m.clone() for n, m in masks.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masked_weights_are_out_of_everything_and_new_ones_start_at_zero(optimizer: str, tmp_path: Path) -> None:
    rigl = RigL(RigLSettings(**OPTIONS))  # type: ignore[arg-type]
    probe = Probe(rigl)
    model = trained(tmp_path, (rigl, probe), optimizer=optimizer, log_every=1)
    assert [t for t, n in probe.new.items() if n] == [5, 10, 15, 20, 25]
    records = files.read_jsonl(tmp_path / "metrics.jsonl")
    total = sum(int(m.count_nonzero()) for m in probe.before.values())
    density = total / count_nonzero(model)[1]
    for r in records:  # entries of a mask are zero by value where they have just been grown, and hardly elsewhere
        new = probe.new.get(r["step"], 0)
        assert 0 <= total - new - r["nonzero"] < 0.01 * total and r["density"] == pytest.approx(density)
    moved = {r["step"]: r["moved"] for r in records}
    for step in (5, 10, 15, 20, 25):
        assert moved[step] == moved[step + 1] == pytest.approx(probe.new[step] / total)
    assert count_nonzero(model)[0] == records[-1]["nonzero"]


@pytest.mark.parametrize("spread", ["uniform", "erk"])
def test_every_matrix_keeps_its_number_from_the_first_step_on(spread: str) -> None:
    model = models.build(CONFIG, seed=0)
    whole = {n: p.detach().clone() for n, p in model.named_parameters()}
    regime = RigL(RigLSettings(density=0.1, spread=spread))  # type: ignore[arg-type]
    regime.prepare(model, 10)
    weights = matrices(model)
    want = counts([w.shape for w in weights.values()], 0.1, spread)
    assert [int(w.count_nonzero()) for w in weights.values()] == want
    assert all(torch.equal(w[w != 0], whole[n][w != 0]) for n, w in weights.items())


def test_alpha_zero_is_a_fixed_random_mask_and_the_seed_draws_it(tmp_path: Path) -> None:
    kept = []
    for seed in (0, 0, 1):
        rigl = RigL(RigLSettings(density=0.2, alpha=0.0))
        trained(tmp_path / f"{len(kept)}", (rigl,), seed=seed)
        kept.append(rigl.state()["masks"]["unembed.weight"])
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    def regimes() -> tuple[Regime[Any], ...]:
        return (make_regime("rigl", OPTIONS),)

    whole = trained(tmp_path / "whole", regimes())
    for at in (14, 28, 49):
        with pytest.raises(Stop):
            trained(tmp_path / "cut", regimes(), stop_at=at)
    assert model_digest(trained(tmp_path / "cut", regimes())) == model_digest(whole)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")


@pytest.mark.parametrize("pair", [("topk", "rigl"), ("topk", "weight_norm"), ("rigl", "weight_norm")])
def test_regimes_that_do_not_compose_are_refused_with_the_reason_in_any_order(
    pair: tuple[str, str], tmp_path: Path
) -> None:
    for names in (pair, pair[::-1]):
        regimes = tuple(make_regime(n) for n in names)
        with pytest.raises(UsageError, match="do not compose: (each|one)"):
            train(models.build(CONFIG), Counting(), regimes, TrainSettings(), tmp_path)
