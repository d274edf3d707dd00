"""What every regime owes us: the loss falls, the same seed gives the same weights, the parameters end plain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from openwork import models
from openwork.errors import UsageError
from openwork.models.cnn import ConvBlock
from openwork.models.mlp import EmbeddingConfig
from openwork.store import load_model, model_digest
from openwork.training import REGIMES, TrainResult, TrainSettings, make_regime, train

CONFIGS = {
    "mlp": models.MLPConfig(inputs=12, hidden=(16, 16), outputs=3),
    "mlp with one hidden layer": models.MLPConfig(inputs=12, hidden=(16,), outputs=3),
    "mlp over an embedding": models.MLPConfig(
        inputs=16, hidden=(24,), outputs=3, embedding=EmbeddingConfig(symbols=6, slots=2, width=8)
    ),
    "cnn": models.CNNConfig(
        image=(1, 6, 6), blocks=(ConvBlock(channels=6, kernel=3, pool=2),), hidden=(16,), outputs=3
    ),
    "transformer": models.TransformerConfig(vocab=16, n_layer=2, d_model=16, d_head=8, d_mlp=32, n_ctx=8),
    "transformer of real numbers": models.TransformerConfig(
        inputs=1, outputs=3, n_layer=1, d_model=16, d_head=8, d_mlp=32, n_ctx=3, norm=False, activation="relu",
        bigram=False, init_std=0.25,
    ),
}  # fmt: skip

REFUSED = {  # (regime, kind of model) -> what the refusal says
    ("clusterability", "mlp with one hidden layer"): "modules need two hidden layers",
    ("gomory_hu", "mlp with one hidden layer"): "modules need two hidden layers",
}
PAIRS = [(name, kind) for name in REGIMES for kind in CONFIGS if (name, kind) not in REFUSED]


class Toy:
    """Learnable toy data: classes of points, or sequences that count upwards in steps of one or two."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def batch(self, step: int) -> tuple[tuple[Tensor, ...], Tensor]:
        g = torch.Generator().manual_seed(step)
        if self.kind in ("mlp", "mlp with one hidden layer"):
            x = torch.randn(32, 12, generator=g)
            return (x,), x[:, :3].argmax(1)
        if self.kind == "cnn":  # which third of the rows is bright
            y = torch.randint(3, (32,), generator=g)
            bright = torch.eye(3).repeat_interleave(12, 1)[y]
            return (bright + 0.3 * torch.randn(32, 36, generator=g),), y
        if self.kind == "mlp over an embedding":
            ids = torch.randint(6, (32, 2), generator=g)
            return (ids,), (ids[:, 0] - ids[:, 1]).sign() + 1
        if self.kind == "transformer of real numbers":  # the sign of the last of three
            x = torch.randn(32, 3, 1, generator=g)
            return (x, torch.full((32,), 2)), x[:, 2, 0].sign().long() + 1
        start, by = torch.randint(16, (16, 1), generator=g), torch.randint(1, 3, (16, 1), generator=g)
        rows = (start + by * torch.arange(9)) % 16
        return (rows[:, :-1],), rows[:, 1:]

    def held_out(self, split: str) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        assert split == "discover", "training may look at the discover split only"
        yield from (self.batch(10_000 + i) for i in range(3))


def run(kind: str, name: str, folder: Path, **options: Any) -> tuple[nn.Module, TrainResult]:
    """A model of that kind after a short training under a regime, and the result."""
    model = models.build(CONFIGS[kind], seed=1)
    settings = TrainSettings(steps=120, lr=1e-2, log_every=20, eval_every=60, checkpoint_every=50)
    return model, train(model, Toy(kind), (make_regime(name, options),), settings, folder)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_loss_falls_and_the_parameters_end_plain(kind: str, name: str, tmp_path: Path) -> None:
    before = models.build(CONFIGS[kind], seed=1)
    model, result = run(kind, name, tmp_path)
    x, y = Toy(kind).batch(10_000)
    with torch.no_grad():
        first = nn.functional.cross_entropy(before(*x).flatten(0, -2), y.flatten())
    assert result.held_out < 0.8 * float(first)
    assert not any(parametrize.is_parametrized(m) for m in model.modules())
    assert model.state_dict().keys() == before.state_dict().keys()
    assert model_digest(load_model(tmp_path / "model")) == model_digest(model)
    for name_of, p in model.named_parameters():
        assert type(p) is nn.Parameter and p.is_leaf and torch.isfinite(p).all(), name_of


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_is_written(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=REFUSED[name, kind]):
        run(kind, name, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_same_seed_same_weights(kind: str, name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    a, _ = run(kind, name, tmp_path / "a")
    torch.manual_seed(2)  # the caller's random state does not matter
    b, _ = run(kind, name, tmp_path / "b")
    assert model_digest(a) == model_digest(b)


@pytest.mark.parametrize("name", REGIMES)
def test_training_leaves_the_callers_random_state_alone(name: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    run("mlp", name, tmp_path)
    assert torch.equal(torch.rand(3), want)
