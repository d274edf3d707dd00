"""Normalised scores against values worked out by hand, on a network whose circuit and whose every edge is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from openwork import patching
from openwork.circuit import Circuit, Scores
from openwork.errors import UsageError
from openwork.models import MLP, MLPConfig
from openwork.patched_run import PatchedRun
from openwork.tasks.metrics import METRICS
from openwork.tasks.task import Split
from openwork.verify.faithfulness import SIZES, curve, faithfulness

WEIGHTS = (4.0, 3.0, 2.0, 1.0)  # of four features that are all 1: logit 0 is 10, logit 1 is 0


def adder() -> tuple[MLP, Split]:
    """A linear model whose edges into the right logit carry 4, 3, 2 and 1."""
    model = MLP(MLPConfig(inputs=4, hidden=(), outputs=2))
    with torch.no_grad():
        model.layers[0].bias.zero_()  # type: ignore[union-attr]
        model.layers[0].weight.zero_()  # type: ignore[union-attr]
        model.layers[0].weight[0] = torch.tensor(WEIGHTS)  # type: ignore[index]
    n = 6
    pair = torch.arange(n) ^ 1
    return model, Split(
        "verify", (torch.ones(n, 4),), torch.zeros(n, dtype=torch.long), torch.ones(n, 1, dtype=torch.long), pair,
        ("",) * n,
    )  # fmt: skip


def keeping(model: MLP, features: list[int]) -> Circuit:
    edges = torch.zeros(2, 4, dtype=torch.bool)
    edges[0, features] = True
    return Circuit.from_edges(model.graph(), {"input>logits": edges}, patching.support(model))


def test_faithfulness_completeness_and_share_recovered_by_hand() -> None:
    model, split = adder()
    run = PatchedRun(model, {"input": torch.full((4,), 0.5), "logits": torch.zeros(2)})
    f = faithfulness(run, split, keeping(model, [0]))
    # whole 10, empty 5 (every feature at 0.5); with feature 0 alone 4 + 0.5 * 6 = 7; without it 2 + 6 = 8
    assert (f.whole, f.empty) == pytest.approx((10, 5))
    assert f.value == pytest.approx((7 - 5) / (10 - 5))
    assert f.completeness == pytest.approx((8 - 5) / (10 - 5))
    assert f.recovered == pytest.approx(70)
    assert f.interval == pytest.approx((0.4, 0.4))  # all examples are alike
    whole = faithfulness(run, split, Circuit.whole(run.graph, run.support))
    assert (whole.value, whole.completeness) == pytest.approx((1, 0))


def test_where_nothing_is_lost_there_is_nothing_to_divide_by() -> None:
    model, split = adder()
    run = PatchedRun(model, {"input": torch.ones(4), "logits": torch.zeros(2)})
    with pytest.raises(UsageError, match="choose another reference"):
        faithfulness(run, split, keeping(model, [0]))


def test_cpr_ranks_by_sign_and_cmd_by_size() -> None:
    model, split = adder()
    with torch.no_grad():
        model.layers[0].weight[0, 3] = -1.0  # type: ignore[index]
    run = PatchedRun(model, patching.zero_reference(model))
    scores = Scores(run.graph, {"input>logits": model.layers[0].weight.detach().clone()}, "x")  # type: ignore[union-attr]
    sizes = (0.0, 0.25, 0.5, 0.75, 1.0)
    signed = curve(run, split, scores, sizes=sizes)
    assert signed.kept == (0, 1, 2, 3, 4)
    assert signed.faithfulness == pytest.approx((0, 4 / 8, 7 / 8, 9 / 8, 1))  # 4, 3, 2, then -1
    assert signed.area == pytest.approx(0.25 * (0 / 2 + 4 / 8 + 7 / 8 + 9 / 8 + 1 / 2))
    scores.values["input>logits"][0, 3] = -3.5  # a ranking that takes the edge of -1 for the second largest
    absolute = curve(run, split, scores, absolute=True, sizes=sizes)
    assert absolute.faithfulness == pytest.approx((0, 4 / 8, 3 / 8, 6 / 8, 1))
    assert absolute.area == pytest.approx(0.25 * (1 / 2 + 4 / 8 + 5 / 8 + 2 / 8 + 0))


def test_the_standard_grid_gives_small_circuits_little_weight() -> None:
    model, split = adder()
    with torch.no_grad():
        model.layers[0].weight[0, 1:] = 0.0  # type: ignore[index]
    run = PatchedRun(model, patching.zero_reference(model))
    found = curve(run, split, Scores(run.graph, {"input>logits": torch.zeros(2, 4)}, "x"))
    assert len(SIZES) == 10
    assert found.faithfulness[-1] == pytest.approx(1)
    assert found.area == pytest.approx(np.trapezoid([0] * 9 + [1], SIZES))  # of four edges, half of |E| is none


def test_the_interval_covers_the_spread_over_examples() -> None:
    model, split = adder()
    g = torch.Generator().manual_seed(0)
    inputs = torch.rand(6, 4, generator=g)
    spread = Split(split.name, (inputs,), split.answer, split.wrong, split.pair, split.texts)
    run = PatchedRun(model, patching.zero_reference(model))
    f = faithfulness(run, spread, keeping(model, [0]), METRICS["logit_difference"])
    by_hand = float(4 * inputs[:, 0].mean() / (inputs @ torch.tensor(WEIGHTS)).mean())
    assert f.value == pytest.approx(by_hand, rel=1e-5)
    assert f.interval[0] < f.value < f.interval[1]
