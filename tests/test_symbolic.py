"""Formulas as regressions: their values by hand, data that never change, and training on a loss that data bring."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from openwork import files, models
from openwork.errors import UsageError
from openwork.tasks.symbolic import FORMULAS, symbolic_data
from openwork.training import OwnLoss, TrainSettings, held_out_loss, make_regime, train


@pytest.mark.parametrize(
    ("name", "point", "value"),
    [
        ("independence", (0.5, -0.25, 0.5, 0.5), (1.0, 0.0625 + 1.0)),
        ("feature_sharing", (0.5, -1.0, 0.25), (0.25, 1.25, 1.3125)),
        ("compositionality", (0.75, -0.75, 1.0, -1.0), (2.5,)),
    ],
)
def test_formulas_by_hand(name: str, point: tuple[float, ...], value: tuple[float, ...]) -> None:
    formula = FORMULAS[name]
    assert (len(point), len(value)) == (formula.inputs, formula.outputs)
    assert formula.value(torch.tensor([point, point])).tolist() == [pytest.approx(value, abs=1e-6)] * 2


@pytest.mark.parametrize("name", FORMULAS)
def test_data_depend_on_the_seed_alone_and_splits_share_no_point(name: str) -> None:
    data = symbolic_data(name, seed=4)
    (x,), y = data.batch(0)
    assert torch.equal(x, data.batch(77)[0][0]) and torch.equal(y, symbolic_data(name, 4).batch(1)[1])
    assert x.shape == (100, data.formula.inputs) and -1 <= x.min() < -0.9 and 0.9 < x.max() <= 1
    points = [x, *(symbolic_data(name, s).batch(0)[0][0] for s in (3, 5))]
    points += [next(iter(data.held_out(split)))[0][0] for split in ("discover", "verify")]
    assert len(torch.cat(points).unique(dim=0)) == 500
    with pytest.raises(UsageError, match='no split of a formula named "train"'):
        data.held_out("train")


def test_an_unknown_formula_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match='Nearest: "independence"'):
        symbolic_data("independance")


def test_data_with_a_loss_of_their_own_are_trained_on_it(tmp_path: Path) -> None:
    data = symbolic_data("compositionality")
    assert isinstance(data, OwnLoss)
    model = models.build(models.MLPConfig(inputs=4, hidden=(20,), outputs=1, activation="silu"), seed=0)

    def error(split: str) -> float:
        ((x,), y) = next(iter(data.held_out(split)))
        with torch.no_grad():
            return float(F.mse_loss(model(x), y))

    before = error("discover")
    assert held_out_loss(model, data, torch.device("cpu")) == pytest.approx(before)
    result = train(model, data, (make_regime("dense"),), TrainSettings(steps=150, lr=1e-2), tmp_path)
    assert result.held_out == pytest.approx(error("discover")) and result.held_out < 0.2 * before
    assert math.isfinite(files.read_jsonl(tmp_path / "metrics.jsonl")[-1]["loss"])


def test_silu_is_the_one_of_its_formula() -> None:
    model = models.build(models.MLPConfig(inputs=2, hidden=(3,), outputs=1, activation="silu"), seed=1)
    x = torch.tensor([[0.5, -2.0]])
    w1, b1, w2, b2 = (p.detach() for p in model.parameters())
    h = [v / (1 + math.exp(-v)) for v in (w1 @ x[0] + b1).tolist()]
    assert float(model(x).detach()) == pytest.approx(float(w2[0] @ torch.tensor(h) + b2), abs=1e-6)
