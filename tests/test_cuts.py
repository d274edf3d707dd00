"""Prices on hops in min-cut trees: both forms against their formulas, why the proposed one is L1, and exact resume."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD

from openwork import models, structure
from openwork.errors import UsageError
from openwork.files import read_json
from openwork.gomory_hu import cut_tree
from openwork.store import model_digest
from openwork.training import GomoryHu, GomoryHuSettings, make_regime
from test_clusterability import SMALL, trained
from test_training import CONFIG, Stop


def prepared(model: torch.nn.Module, **options: Any) -> GomoryHu:
    """The regime with its first partition and tree."""
    regime = GomoryHu(GomoryHuSettings(**{"begin": 0, **options}))
    regime.prepare(model, 100)
    return regime


def priced(regime: GomoryHu, model: torch.nn.Module) -> torch.Tensor:
    found = regime.penalty(model, 0)
    assert found is not None
    return found


def sizes_of(regime: GomoryHu, model: torch.nn.Module) -> np.ndarray:
    """The weight graph's adjacency, dense."""
    return structure.adjacency(regime.wiring, regime.sizes(model)).toarray()


@pytest.mark.parametrize("config", [SMALL, CONFIG], ids=["mlp", "transformer"])
def test_the_form_with_modules_is_its_formula(config: Any) -> None:
    model = models.build(config, seed=2)
    regime = prepared(model, modules=4, price=3.0)
    a, labels = sizes_of(regime, model), regime.wiring.labels(regime.partition)
    between = np.array([[a[np.ix_(labels == c, labels == d)].sum() for d in range(4)] for c in range(4)])
    hops = cut_tree(between).hops
    want = 3.0 * sum(between[c, d] * hops[c, d] for c in range(4) for d in range(4) if c != d) / between.sum()
    assert float(priced(regime, model).detach()) == pytest.approx(want, rel=1e-5)


def test_the_proposed_form_is_the_weight_of_the_tree_and_its_slope() -> None:
    model = models.build(SMALL, seed=2)
    regime = prepared(model, form="proposed", price=0.5)
    tree = cut_tree(sizes_of(regime, model))
    loss = priced(regime, model)
    assert float(loss.detach()) == pytest.approx(0.5 * tree.total, rel=1e-5)
    loss.backward()
    of = regime.wiring.node_of
    for e in regime.wiring.links:
        weight = model.get_submodule(e.module).weight
        want = 0.5 * tree.hops[np.ix_(of[e.dst], of[e.src])] * np.sign(weight.detach().numpy())  # type: ignore[union-attr]
        np.testing.assert_allclose(weight.grad.numpy(), want, rtol=1e-6)  # type: ignore[union-attr]


def test_on_fresh_weights_the_proposed_form_is_twice_l1() -> None:
    """The tree is almost a star: nearly every edge is two hops, whichever modules it joins."""
    model = models.build(models.MLPConfig(inputs=8, hidden=(40, 40, 40), outputs=3), seed=0)
    regime = prepared(model, form="proposed", price=1.0)
    a = sizes_of(regime, model)
    assert float(priced(regime, model).detach()) / (a.sum() / 2) == pytest.approx(2, abs=0.1)
    hops, labels = cut_tree(a).hops, regime.wiring.labels(regime.partition)
    apart = labels[:, None] != labels
    assert (hops[a > 0] == 2).mean() > 0.95
    assert abs(hops[(a > 0) & apart].mean() - hops[(a > 0) & ~apart].mean()) < 0.05


def test_the_tree_grows_anew_with_the_partition_until_both_are_frozen() -> None:
    model = models.build(SMALL, seed=0)
    regime = prepared(model, modules=3, every=10, freeze=0.5)
    optimizer = SGD(model.parameters(), lr=0.1)
    chain = torch.block_diag(*[torch.ones(2, 2)] * 3)
    chain[0:2, 2:4], chain[2:4, 4:6] = 0.1, 0.02  # module 0 - 1 - 2, so 0 and 2 are two hops apart
    with torch.no_grad():
        for layer in (1, 2):
            model.get_submodule(f"layers.{layer}").weight.copy_(chain)  # type: ignore[operator]
    regime.after_step(model, optimizer, 50)
    at = [int(regime.partition["hidden1"][i]) for i in (0, 2, 4)]
    assert sorted(at) == [0, 1, 2]
    hops = regime.state()["hops"]
    assert (hops[at[0], at[1]], hops[at[1], at[2]], hops[at[0], at[2]]) == (1, 1, 2)
    with torch.no_grad():
        for layer in (1, 2):
            model.get_submodule(f"layers.{layer}").weight.normal_()  # type: ignore[operator]
    regime.after_step(model, optimizer, 60)
    assert torch.equal(regime.state()["hops"], hops)


@pytest.mark.parametrize("form", ["modules", "proposed"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(form: str, tmp_path: Path) -> None:
    def regimes() -> Any:
        return (make_regime("gomory_hu", {"form": form, "every": 9}), make_regime("topk", {"density": 0.4}))

    whole = trained(tmp_path / "whole", CONFIG, regimes())
    for at in (14, 42):
        with pytest.raises(Stop):
            trained(tmp_path / "cut", CONFIG, regimes(), stop_at=at)
    assert model_digest(trained(tmp_path / "cut", CONFIG, regimes())) == model_digest(whole)
    extras = [read_json(tmp_path / f / "model" / "config.json")["extra"]["gomory_hu"] for f in ("whole", "cut")]
    assert extras[0] == extras[1] and extras[0]["modules"].keys()


def test_without_a_price_there_is_no_penalty() -> None:
    model = models.build(SMALL)
    for form in ("modules", "proposed"):
        assert prepared(model, form=form, price=0).penalty(model, 0) is None
        assert float(priced(prepared(model, form=form), model).detach()) > 0


def test_without_the_solver_training_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ortools.graph.python", None)
    with pytest.raises(UsageError, match=r'pip install "openwork\[graph\]"'):
        trained(tmp_path, SMALL, (make_regime("gomory_hu"),))
