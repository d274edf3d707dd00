"""Detectors: the exact reason for an alert, the budget of false alarms, and the run from flows to a table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork import store
from openwork.detector import Detector, layers_of, load_detector, sentence
from openwork.errors import RunError, UsageError
from openwork.explain.accounts.along import Layer, along, forward
from openwork.export.parts import compacted
from openwork.intrusion import run_flows
from openwork.judging import measure, never_used
from openwork.models import build
from openwork.tasks.flows import generated
from openwork.tasks.flows.decision import Decision, calibrated, calibration_error
from openwork.tasks.flows.schema import learn


def network(seed: int, sizes: tuple[int, ...] = (7, 9, 8, 3), density: float = 0.6) -> tuple[Layer, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        (rng.normal(size=(b, a)) * (rng.random((b, a)) < density), rng.normal(size=b))
        for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    )


def output(layers: tuple[Layer, ...], x: np.ndarray) -> np.ndarray:
    for w, b in layers[:-1]:
        x = np.maximum(w @ x + b, 0)
    return layers[-1][0] @ x + layers[-1][1]


def one(layers: tuple[Layer, ...], a: np.ndarray, b: np.ndarray, to: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Shares [F], before and after of a single way."""
    ways = along(layers, a, b[None], to[None])
    return ways.shares[0], float(ways.before[0]), float(ways.after[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_shares_add_up_to_the_change(seed: int) -> None:
    layers, rng = network(seed), np.random.default_rng(seed + 1)
    a, b, to = rng.normal(size=7), 3 * rng.normal(size=7), rng.normal(size=3)
    shares, before, after = one(layers, a, b, to)
    assert before == pytest.approx(to @ output(layers, a)) and after == pytest.approx(to @ output(layers, b))
    assert shares.sum() == pytest.approx(after - before, abs=1e-9)
    assert one(layers, b, a, to)[0] == pytest.approx(-shares, abs=1e-9)


def test_ways_side_by_side_are_the_ways_alone() -> None:
    layers, rng = network(4), np.random.default_rng(0)
    a, ends, to = rng.normal(size=7), 3 * rng.normal(size=(20, 7)), rng.normal(size=(20, 3))
    ways = along(layers, a, ends, to)
    for k in range(20):
        assert ways.shares[k] == pytest.approx(one(layers, a, ends[k], to[k])[0], abs=1e-12)
    assert len(set(ways.pieces.tolist())) > 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_a_compacted_network_is_the_same_function(seed: int) -> None:
    layers, rng = network(seed, density=0.15), np.random.default_rng(seed)
    small = compacted(layers)
    x = rng.normal(size=(10, 7))
    assert forward(small, x) == pytest.approx(forward(layers, x), abs=1e-12)
    for w, _ in small[:-1]:
        assert (w != 0).any(1).all()


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_the_mean_slope_times_the_step(seed: int) -> None:
    """Against the slope at very many points of the way, found by torch."""
    layers, rng = network(seed), np.random.default_rng(seed + 1)
    a, b, to = rng.normal(size=7), 3 * rng.normal(size=7), rng.normal(size=3)
    n = 20_000
    x = torch.tensor(a + (b - a) * ((np.arange(n) + 0.5) / n)[:, None], requires_grad=True)
    h = x
    for w, bias in layers[:-1]:
        h = torch.relu(h @ torch.tensor(w).T + torch.tensor(bias))
    y = (h @ torch.tensor(layers[-1][0]).T + torch.tensor(layers[-1][1])) @ torch.tensor(to)
    slope = torch.autograd.grad(y.sum(), x)[0].mean(0).numpy()
    assert one(layers, a, b, to)[0] == pytest.approx(slope * (b - a), abs=3e-3)


def test_a_feature_that_does_not_move_or_matter_has_no_share() -> None:
    layers = network(0)
    layers[0][0][:, 2] = 0
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=7), rng.normal(size=7)
    b[4] = a[4]
    shares, _, _ = one(layers, a, b, np.array([1.0, -1.0, 0.0]))
    assert shares[2] == 0 and shares[4] == 0 and (shares[[0, 1, 3, 5, 6]] != 0).any()


def test_a_way_of_no_length_has_no_shares() -> None:
    layers, x = network(1), np.ones(7)
    shares, before, after = one(layers, x, x, np.array([1.0, 0, 0]))
    assert not shares.any() and before == after


# -- decisions ---------------------------------------------------------------------------------------------------------


def drawn(n: int, seed: int, shares: tuple[float, ...], spread: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax over evenly drawn classes is right up to a temperature of 2, and classes [n]."""
    rng = np.random.default_rng(seed)
    y = rng.choice(len(shares), n, p=shares)
    z = rng.normal(size=(n, len(shares))) * spread
    z[np.arange(n), y] += spread**2  # log-likelihood ratios of unit Gaussians at distance `spread`
    return z * 2, y


def test_the_prior_is_put_back_and_the_temperature_found() -> None:
    shares, even = np.array([0.9, 0.07, 0.03]), np.full(3, 1 / 3)
    z, y = drawn(60_000, 0, tuple(shares))
    d = calibrated(z, y, shares, even, 0.01)
    p = d.probabilities(z)
    assert calibration_error(p, y) < 0.01
    assert p.mean(0) == pytest.approx(shares, abs=0.01)
    assert calibration_error(Decision((0.0,) * 3, 1.0, 0.5, 0.01).probabilities(z), y) > 0.02


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.005, 0.01, 0.05, 0.2]))
def test_no_more_false_alarms_than_the_budget_where_it_was_set(seed: int, budget: float) -> None:
    shares = (0.8, 0.15, 0.05)
    z, y = drawn(2_000, seed, shares, 1.0)
    d = calibrated(z, y, np.array(shares), np.array(shares), budget)
    alerts = d.decide(z) > 0
    assert alerts[y == 0].mean() <= budget
    scores = d.scores(z)
    spent = np.sort(scores[y == 0])[::-1][int((y == 0).sum() * budget)]  # a threshold just above spends all of it
    assert alerts[y > 0].sum() == (scores[y > 0] > spent).sum()  # no attack is lost by spending less


def test_a_budget_is_not_spent_where_it_finds_nothing() -> None:
    y = np.array([0] * 1000 + [1] * 100)
    z = np.stack([np.zeros(1100), np.where(y == 0, np.linspace(-20, -6, 1100), 6.0)], 1)
    d = calibrated(z, y, np.full(2, 0.5), np.full(2, 0.5), 0.05)
    assert (d.decide(z) > 0).tolist() == (y > 0).tolist() and 0.01 < d.threshold <= 0.5


def test_a_budget_that_cannot_be_kept_is_refused() -> None:
    z, y = drawn(100, 0, (0.5, 0.5))
    with pytest.raises(UsageError, match=r"at least 1,000"):
        calibrated(z, y, np.full(2, 0.5), np.full(2, 0.5), 0.001)
    with pytest.raises(UsageError, match="between 0 and 1"):
        calibrated(z, y, np.full(2, 0.5), np.full(2, 0.5), 1.5)


def test_figures_by_hand() -> None:
    d = Decision((0.0, 0.0, 0.0), 1.0, 0.5, 0.1)
    big = 20.0
    z = np.array([[big, 0, 0], [big, 0, 0], [0, big, 0], [0, big, 0], [0, 0, big], [big, 0, 0]])
    y = np.array([0, 0, 0, 1, 2, 2])
    f = measure(d, z, y)
    assert f["accuracy"] == pytest.approx(4 / 6) and f["detection_rate"] == pytest.approx(2 / 3)
    assert f["false_alarm_rate"] == pytest.approx(1 / 3) and f["attack_accuracy"] == pytest.approx(4 / 6)


# -- a detector --------------------------------------------------------------------------------------------------------


def planted_detector() -> tuple[Detector, dict[str, np.ndarray]]:
    """A network written by hand: an attack where failed_logins, as a feature, exceeds 1."""
    [batch] = generated.Generated(2_000)
    schema = learn([batch], generated.LABEL, binary=True)
    f = len(schema.features)
    w = np.zeros((1, f))
    w[0, schema.features.index("failed_logins")] = 1.0
    layers = ((w, np.array([-1.0])), (np.array([[0.0], [10.0]]), np.array([0.0, -5.0])))
    typical = {c.name: c.values[0] if c.kind == "category" else c.low for c in schema.used}
    return Detector(schema, layers, Decision((0.0, 0.0), 1.0, 0.5, 0.01), typical, "d"), dict(batch)


def test_the_reason_is_the_column_that_decides_and_all_sums_to_the_evidence() -> None:
    d, batch = planted_detector()
    x, scores, classes = d.judge(batch)
    alerts = np.flatnonzero(classes)
    assert len(alerts) and (scores[alerts] >= 0.5).all() and (scores[classes == 0] < 0.5).all()
    some = alerts[:20]
    rows, found = {k: v[some] for k, v in batch.items()}, classes[some]
    shares = d.shares(x[some], found)
    for told, i in zip(d.reasons(rows, shares), some, strict=True):
        assert [r["column"] for r in told["reasons"]] == ["failed_logins"]
        assert told["reasons"][0]["value"] == batch["failed_logins"][i]
        total = told["typical"] + sum(r["contribution"] for r in told["reasons"]) + told["rest"] + told["remainder"]
        assert total == pytest.approx(told["evidence"]) and abs(told["remainder"]) < 1e-9
        out = output(d.layers, x[i].astype(np.float64))
        assert told["evidence"] == pytest.approx(out[1] - out[0], abs=1e-9)
        assert "failed_logins is" in sentence(d.schema, "attack", told["reasons"])
        json.dumps(told, allow_nan=False)
    for flip in d.flips(x[some], shares[0]):
        assert flip == [{"column": "failed_logins", "to": 0}]
    assert never_used(d) == [c.name for c in d.schema.used if c.name != "failed_logins"]


def test_only_perceptrons_of_relus_are_detectors() -> None:
    with pytest.raises(UsageError, match="ReLU"):
        layers_of(build({"kind": "mlp", "inputs": 4, "hidden": (3,), "outputs": 2, "activation": "silu"}, 0))


# -- the run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest run on generated flows."""
    pytest.importorskip("interpret", reason="interpret is not installed")
    out = tmp_path_factory.mktemp("flows") / "run"
    run_flows(out, "smoke", seeds=1, settings=("sparse.steps=200", "dense.steps=200"))
    return out


@pytest.mark.slow
def test_the_run_gives_a_table_with_every_rival(run: Path) -> None:
    result = store.read_json(run / "result.json")
    table, circuits = result["tables"].values()
    assert [r["model"] for r in table] == [
        "sparse", "dense", "logistic regression", "decision tree", "gradient boosting", "explainable boosting machine",
    ]  # fmt: skip
    by = {f["model"]: f for f in result["figures"]}
    assert by["sparse"]["parts"] * 10 < by["dense"]["parts"]
    for f in result["figures"]:
        v = f["splits"]["verify"]
        assert v["accuracy"] > 0.9 and v["n"] == result["rows"]["verify"]
        if "fidelity" in f:
            assert f["fidelity"] > f["fidelity_null"]
    assert by["sparse"]["rule_first"] > 0.8
    assert [c["task"] for c in circuits] == ["attack"]


@pytest.mark.slow
def test_a_finished_run_is_not_made_again_and_another_is_refused(run: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}
    run_flows(run, "smoke", seeds=1, settings=("sparse.steps=200", "dense.steps=200"))
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}
    with pytest.raises(UsageError, match="other settings"):
        run_flows(run, "smoke", seeds=2)


@pytest.mark.slow
def test_a_detector_is_loaded_whole_or_not_at_all(run: Path, tmp_path: Path) -> None:
    d = load_detector(run / "sparse")
    assert d.schema.classes[0] == "normal" and len(d.digest) == 64
    with pytest.raises(UsageError, match="no detector"):
        load_detector(tmp_path)
    at = run / "dense" / "detector" / "detector.json"
    kept = at.read_text()
    at.write_text(json.dumps({**json.loads(kept), "model": "another"}))
    with pytest.raises(RunError, match="another model"):
        load_detector(run / "dense")
    at.write_text(kept)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"data": Path("nowhere.csv"), "label": "l"}, "is not a file"),
        ({"data": Path("x.csv")}, "--label"),
        ({"label": "l"}, "go with --data"),
    ],
)
def test_what_is_asked_wrongly_leaves_nothing_behind(tmp_path: Path, given: dict[str, object], says: str) -> None:
    pytest.importorskip("polars", reason="polars is not installed")
    with pytest.raises(UsageError, match=says):
        run_flows(tmp_path / "run", "smoke", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
