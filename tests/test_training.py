"""Training: exact selection, the schedules, the books, and runs that survive an interruption bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from openwork import files, models, threads
from openwork.errors import RunError, UsageError
from openwork.store import load_model, model_digest
from openwork.training import OPTIMIZERS, TopK, TopKSettings, TrainSettings, make_regime, train
from openwork.training.loop import lr_factor
from openwork.training.matrices import count_nonzero, dead_neurons
from openwork.training.selection import Floor, default_floor, kth_largest, largest, project_

CONFIG = models.TransformerConfig(vocab=16, n_layer=2, d_model=16, d_head=8, d_mlp=32, n_ctx=8)


class Counting:
    """Sequences that count upwards: enough to be learned, small enough to be fast."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def batch(self, step: int) -> tuple[tuple[Tensor, ...], Tensor]:
        g = torch.Generator().manual_seed(step + self.offset)
        rows = (torch.randint(16, (8, 1), generator=g) + torch.arange(9)) % 16
        return (rows[:, :-1],), rows[:, 1:]

    def held_out(self, split: str) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        assert split == "discover"
        yield self.batch(9_999)


def settings_of(**more: Any) -> TrainSettings:
    """A short run that logs and saves at odd moments."""
    return TrainSettings(**{"steps": 60, "log_every": 7, "eval_every": 20, "checkpoint_every": 11, **more})


def trained(folder: Path, regime: str = "topk", options: dict[str, Any] | None = None, **more: Any) -> nn.Module:
    """A model after such a run."""
    model = models.build(CONFIG, seed=0)
    train(model, Counting(), (make_regime(regime, options or {}),), settings_of(**more), folder)
    return model


# -- selection ---------------------------------------------------------------------------------------------------------


def by_sorting(size: np.ndarray, k: int, floors: tuple[Floor, ...]) -> np.ndarray:
    """The definition, entry by entry: what the floors ask for, then the largest; the lower index first among equals."""
    order = sorted(range(size.size), key=lambda i: (-size.flat[i], i))
    kept: set[int] = set()
    for floor in floors:
        for s in range(size.shape[floor.axis]):
            mine = [i for i in order if np.unravel_index(i, size.shape)[floor.axis] == s]
            kept |= set(mine[: floor.least])
    for i in order:
        if len(kept) >= k:
            break
        kept.add(i)
    mask = np.zeros(size.size, dtype=bool)
    mask[list(kept)] = True
    return mask.reshape(size.shape)


FLOORS = st.sampled_from([(), (Floor(0, 1),), (Floor(0, 3),), (Floor(1, 2),), (Floor(0, 2), Floor(1, 2))])


@settings(max_examples=150, deadline=None)
@given(
    shape=st.sampled_from([(7, 5), (4, 9), (6, 6), (5, 3, 2)]),
    floors=FLOORS,
    shares=st.lists(st.floats(0.02, 1.0), min_size=1, max_size=4),
    ties=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_selection_keeps_exactly_what_sorting_would_step_after_step(
    shape: tuple[int, ...], floors: tuple[Floor, ...], shares: list[float], ties: bool, seed: int
) -> None:
    g = np.random.default_rng(seed)
    weight = torch.from_numpy(g.normal(size=shape).astype(np.float32))
    for share in sorted(shares, reverse=True) + shares:  # falling as in an anneal, then in any order
        weight += torch.from_numpy(g.normal(size=shape).astype(np.float32)) * 0.3
        if ties:
            weight = (weight * 2).round() / 2
        k = max(1, int(share * weight.numel()))
        want = by_sorting(weight.abs().numpy(), k, floors)
        assert np.array_equal(largest(weight.abs(), k, floors).numpy(), want)
        expected = torch.where(torch.from_numpy(want), weight, 0.0)
        project_(weight, k, floors)
        assert torch.equal(weight, expected)


@pytest.mark.parametrize("make", ["normal", "zeros", "few values", "rising", "a step"])
def test_the_kth_largest_is_exact_whatever_the_numbers_look_like(make: str) -> None:
    g, n = np.random.default_rng(1), 40_000
    flat = {
        "normal": np.abs(g.normal(size=n).astype(np.float32)).view(np.int32),
        "zeros": (g.random(n) < 0.1) * g.integers(1, 2**30, n),
        "few values": g.integers(0, 3, n),
        "rising": np.arange(n),
        "a step": np.where(np.arange(n) % (n // 4096 | 1) == 0, 0, 1 + np.arange(n)),  # the sample sees only zeros
    }[make].astype(np.int32)
    falling = np.sort(flat)[::-1]
    for k in (1, 2, 100, 2000, n // 2, n - 3, n):
        assert kth_largest(flat, k) == falling[k - 1]


@pytest.mark.parametrize(("density", "length", "least"), [(0.05, 128, 4), (0.01, 128, 2), (0.02, 128, 3), (1.0, 3, 3)])
def test_the_default_floor_is_what_the_density_can_pay_for(density: float, length: int, least: int) -> None:
    assert default_floor(density, length) == least


# -- top-k -------------------------------------------------------------------------------------------------------------


def test_topk_ends_at_its_density_and_says_what_it_achieved(tmp_path: Path) -> None:
    model = trained(tmp_path, options={"density": 0.25, "floor": 0})
    for name, p in model.named_parameters():
        if p.dim() == 2:
            assert int(p.count_nonzero()) == round(0.25 * p.numel()), name
        elif name.endswith(("norm.weight", "up.bias", "down.bias")):
            assert p.count_nonzero() == p.numel(), f"{name} should stay dense"
    result = files.read_json(tmp_path / "training.json")["result"]
    assert result["density_nominal"] == pytest.approx(0.25) == result["density_achieved"]
    assert (result["nonzero"], result["total"]) == count_nonzero(model)


def test_floors_hold_where_the_published_code_puts_them_and_raise_the_achieved_density(tmp_path: Path) -> None:
    model = trained(tmp_path, options={"density": 0.02, "floor": 2})
    weights = dict(model.named_parameters())
    for i in range(2):
        b = f"blocks.{i}"
        for name in ("attn.to_q", "attn.to_k", "attn.to_v", "mlp.up"):
            assert weights[f"{b}.{name}.weight"].count_nonzero(1).min() == 2, name
        for name in ("attn.out", "mlp.down"):
            assert weights[f"{b}.{name}.weight"].count_nonzero(0).min() == 2, name
    assert weights["embed.weight"].count_nonzero() == round(0.02 * 16 * 16)
    result = files.read_json(tmp_path / "training.json")["result"]
    assert result["density_achieved"] > 2 * result["density_nominal"]
    assert dead_neurons(model) == 0.0


def test_without_a_floor_neurons_die_and_are_counted(tmp_path: Path) -> None:
    model = trained(tmp_path, options={"density": 0.01, "floor": 0})
    dead = 0
    for i in range(2):
        up, down = (model.get_parameter(f"blocks.{i}.mlp.{m}.weight") for m in ("up", "down"))
        dead += int(((up.count_nonzero(1) == 0) | (down.count_nonzero(0) == 0)).sum())
    assert dead > 0
    assert dead_neurons(model) == pytest.approx(dead / 64)
    assert files.read_jsonl(tmp_path / "metrics.jsonl")[-1]["dead_neurons"] == pytest.approx(dead / 64)


def test_embeddings_may_have_a_density_of_their_own_and_biases_be_sparse(tmp_path: Path) -> None:
    model = trained(tmp_path, options={"density": 0.125, "floor": 0, "embed_density": 0.5, "biases": True})
    for name in ("embed.weight", "positions.weight", "unembed.weight"):
        p = model.get_parameter(name)
        assert int(p.count_nonzero()) == p.numel() // 2, name
    assert int(model.get_parameter("blocks.0.mlp.up.weight").count_nonzero()) == 64
    assert int(model.get_parameter("blocks.0.mlp.up.bias").count_nonzero()) == 4


def test_global_scope_spends_one_budget_over_all_matrices(tmp_path: Path) -> None:
    model = trained(tmp_path, options={"density": 0.1, "floor": 0, "scope": "global"})
    nonzero, total = count_nonzero(model)
    assert nonzero == pytest.approx(0.1 * total, abs=len(list(model.parameters())))
    shares = [int(p.count_nonzero()) / p.numel() for p in model.parameters() if p.dim() == 2]
    assert max(shares) > 2 * min(shares)


def test_a_model_with_the_same_weights_is_kept_whole_at_density_one(tmp_path: Path) -> None:
    dense, topk = trained(tmp_path / "a", "dense"), trained(tmp_path / "b", "topk", {"density": 1.0})
    assert model_digest(dense) == model_digest(topk)


@pytest.mark.parametrize("anneal", ["exponential", "linear"])
def test_the_anneal_starts_dense_and_falls_to_the_density(anneal: str) -> None:
    regime = TopK(TopKSettings(density=0.1, anneal=anneal, anneal_from=0.2, anneal_until=0.6))  # type: ignore[arg-type]
    regime.prepare(models.build(CONFIG), 100)
    assert regime.density(20) == 1.0
    assert regime.density(60) == regime.density(100) == pytest.approx(0.1, abs=0.002)
    assert regime.density(40) == pytest.approx(0.1**0.5 if anneal == "exponential" else 0.55, abs=0.002)


def test_regrowth_moves_masks_at_the_same_density(tmp_path: Path) -> None:
    options = {"density": 0.2, "floor": 0, "anneal_until": 0.1}
    still = trained(tmp_path / "a", options=options, lr=1e-4)
    moved = trained(tmp_path / "b", options=options | {"regrow": 0.25, "regrow_every": 10}, lr=1e-4)
    churn = [max(r["churn"] or 0 for r in files.read_jsonl(tmp_path / x / "metrics.jsonl")[2:]) for x in "ab"]
    assert churn[0] < 0.05 < 0.15 < churn[1]
    assert count_nonzero(still) == count_nonzero(moved)


def test_l1_shrinks_and_ends_with_exact_zeros(tmp_path: Path) -> None:
    light, heavy = (trained(tmp_path / str(p), "l1", {"price": p, "cut": 0.01}) for p in (0.0, 1e-2))
    assert count_nonzero(heavy)[0] < count_nonzero(light)[0]
    smallest = [p[p != 0].abs().min() for p in heavy.parameters() if p.dim() == 2 and p.count_nonzero()]
    assert min(smallest) > 0.01


# -- schedules and gradients -------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_holds_and_falls_to_zero() -> None:
    s = TrainSettings(steps=100, warmup=0.1, decay_from=0.5)
    assert [round(lr_factor(i, s), 3) for i in (0, 4, 9, 30, 50, 75, 99)] == [0.1, 0.5, 1, 1, 1, 0.5, 0.02]


def test_the_learning_rate_follows_the_density(tmp_path: Path) -> None:
    """With power 1/2 it starts at the square root of the final density, as published, and rises to lr."""
    options = {"density": 0.04, "floor": 0, "anneal_from": 0.5, "anneal_until": 0.6}
    trained(tmp_path, options=options, warmup=0, decay_from=1, lr=0.01, lr_density_power=0.5, log_every=1)
    rates = [r["lr"] for r in files.read_jsonl(tmp_path / "metrics.jsonl")]
    assert rates[0] == pytest.approx(0.01 * 0.2, rel=0.02)
    assert rates[-1] == pytest.approx(0.01)


@pytest.mark.parametrize(("clip", "norm"), [("norm", 1.0), ("rms", None), ("none", None)])
def test_gradients_are_clipped_or_normalised(clip: str, norm: float | None, tmp_path: Path) -> None:
    """One step of plain gradient descent shows the gradient that was used."""
    model = models.build(CONFIG)
    model.unembed.weight.data.mul_(50)  # a large gradient
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    s = TrainSettings(
        steps=1, optimizer="sgd", lr=1.0, weight_decay=0, warmup=0, decay_from=1, betas=(0.0, 0.0), clip=clip,  # type: ignore[arg-type]
    )  # fmt: skip
    train(model, Counting(), (), s, tmp_path)
    steps = torch.cat([(p - before[n]).detach().flatten() for n, p in model.named_parameters()])
    length, rms = float(steps.norm()), float(steps.pow(2).mean().sqrt())
    if clip == "norm":
        assert length == pytest.approx(1.0, rel=1e-3)
    elif clip == "rms":
        assert rms == pytest.approx(1.0, rel=1e-2)
    else:
        assert length > 2.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_falls_on_matrices_only(name: str) -> None:
    optimizer = OPTIMIZERS[name](models.build(CONFIG), TrainSettings(weight_decay=0.3))
    for group in optimizer.param_groups:
        assert {p.dim() >= 2 for p in group["params"]} == {group["weight_decay"] == 0.3}


# -- resuming ----------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """Stands for a kill."""


def interrupted(folder: Path, at: int, fault: BaseException, **more: Any) -> None:
    """The run of `trained`, cut short at its first record after step `at`."""

    def stop(done: int, total: int, record: dict[str, Any]) -> None:
        if done >= at:
            raise fault

    model = models.build(CONFIG, seed=0)
    with pytest.raises(type(fault)):
        train(model, Counting(), (make_regime("topk"),), settings_of(**more), folder, progress=stop)


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The records of a run without what a clock measured."""
    clocks = ("tokens_per_s", "projection_share", "seconds")
    return [{k: v for k, v in r.items() if k not in clocks} for r in files.read_jsonl(folder / "metrics.jsonl")]


@pytest.mark.parametrize("fault", [Stop(), KeyboardInterrupt()])
def test_a_run_resumed_again_and_again_equals_an_uninterrupted_one_bit_for_bit(
    fault: BaseException, tmp_path: Path
) -> None:
    whole = trained(tmp_path / "whole", snapshots=(30,))
    for at in (14, 28, 56):
        interrupted(tmp_path / "cut", at, fault, snapshots=(30,))
        assert not (tmp_path / "cut" / "model").exists()
    resumed = trained(tmp_path / "cut", snapshots=(30,))
    assert model_digest(resumed) == model_digest(whole)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
    headers = [files.read_model_header(tmp_path / x / "snapshots" / "30") for x in ("whole", "cut")]
    assert headers[0]["digest"] == headers[1]["digest"]
    assert not (tmp_path / "cut" / "checkpoint").exists()


def test_resuming_starts_from_the_checkpoint_and_not_from_the_start(tmp_path: Path) -> None:
    interrupted(tmp_path, 40, Stop())
    asked: list[int] = []

    class Watched(Counting):
        def batch(self, step: int) -> tuple[tuple[Tensor, ...], Tensor]:
            asked.append(step)
            return super().batch(step)

    train(models.build(CONFIG, seed=0), Watched(), (make_regime("topk"),), settings_of(), tmp_path)
    steps = [s for s in asked if s != 9_999]
    assert steps == [0, *range(33, 60)]  # the first batch tells whether the data is the same


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = trained(tmp_path)
    stamp = (tmp_path / "training.json").stat().st_mtime_ns
    again = models.build(CONFIG, seed=0)
    calls: list[int] = []
    result = train(
        again, Counting(), (make_regime("topk"),), settings_of(), tmp_path, progress=lambda *a: calls.append(a[0])
    )
    assert model_digest(again) == model_digest(first) and not calls
    assert result.steps == 60 and (tmp_path / "training.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"more": {"lr": 0.125}}, "settings.lr: 0.005, now 0.125"),
        ({"options": {"density": 0.5}}, "regimes.topk.density: 0.05, now 0.5"),
        ({"seed": 3}, "other initial weights"),
        ({"offset": 7}, "other data"),
    ],
)
def test_a_folder_with_another_run_is_refused(
    finished: bool, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    trained(tmp_path) if finished else interrupted(tmp_path, 30, Stop())
    with pytest.raises(UsageError, match="remove this one") as refusal:
        train(
            models.build(CONFIG, seed=change.get("seed", 0)),
            Counting(change.get("offset", 0)),
            (make_regime("topk", change.get("options", {})),),
            settings_of(**change.get("more", {})),
            tmp_path,
        )
    assert said in str(refusal.value)


def test_settings_that_only_watch_may_change(tmp_path: Path) -> None:
    interrupted(tmp_path, 30, Stop())
    trained(tmp_path, log_every=9, eval_every=60, checkpoint_every=60)
    assert load_model(tmp_path / "model") is not None


def test_a_truncated_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    interrupted(tmp_path, 30, Stop())
    state = tmp_path / "checkpoint" / "state.pt"
    for keep in (0, 10, state.stat().st_size // 2):
        state.write_bytes(state.read_bytes()[:keep])
        with pytest.raises(RunError, match=r"state\.pt is damaged; remove"):
            trained(tmp_path)


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    """A checkpoint is read as plain tensors: a crafted one is refused without running anything."""
    interrupted(tmp_path, 30, Stop())

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"plan": Evil()}, tmp_path / "checkpoint" / "state.pt")
    with pytest.raises(RunError, match="damaged"):
        trained(tmp_path)
    assert not (tmp_path / "ran").exists()


# -- books -------------------------------------------------------------------------------------------------------------


def test_metrics_hold_every_curve_once_per_record(tmp_path: Path) -> None:
    trained(tmp_path, tensorboard=False)
    records = files.read_jsonl(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [7, 14, 20, 21, 28, 35, 40, 42, 49, 56, 60]
    assert [r["step"] for r in records if r["held_out"] is not None] == [20, 40, 60]
    columns = {"step", "loss", "held_out", "density", "achieved", "nonzero", "dead_neurons", "lr", "tokens"}
    columns |= {"tokens_per_s", "projection_share", "seconds", "churn"}
    assert all(r.keys() == columns for r in records)
    assert records[0]["churn"] is None and all(0 <= r["churn"] <= 1 for r in records[1:])
    assert records[-1]["tokens"] == 60 * 64
    assert all(0 < r["projection_share"] < 1 for r in records)


def test_tensorboard_holds_the_same_curves_also_after_a_resume(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    interrupted(tmp_path, 40, Stop(), tensorboard=True)
    trained(tmp_path, tensorboard=True)
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    records = files.read_jsonl(tmp_path / "metrics.jsonl")
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("loss")] == [
        (r["step"], round(r["loss"], 4)) for r in records
    ]


def test_a_run_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"diverged before step 7: the loss is nan; try a lower lr"):
        trained(tmp_path, "dense", optimizer="sgd", lr=1e6, clip="none", warmup=0)


def test_snapshots_are_plain_models_with_their_held_out_loss(tmp_path: Path) -> None:
    trained(tmp_path, "l1", {"price": 1e-3, "cut": 0.02}, snapshots=(20, 60))
    early = load_model(tmp_path / "snapshots" / "20")
    weights = torch.cat([p.detach().flatten() for p in early.parameters() if p.dim() == 2])
    assert weights[weights != 0].abs().min() > 0.02, "a snapshot is finished like the final model"
    extra = [files.read_model_header(tmp_path / "snapshots" / s)["extra"] for s in ("20", "60")]
    assert extra[0]["step"] == 20 and extra[0]["held_out"] > extra[1]["held_out"]
    last = files.read_json(tmp_path / "training.json")["result"]["held_out"]
    assert extra[1]["held_out"] == pytest.approx(last)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_wrong_names_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='no regime named "topkk".*Nearest: "topk"'):
        make_regime("topkk")
    with pytest.raises(UsageError, match="2 problems"):
        make_regime("topk", {"density": 2, "flor": 1})
    with pytest.raises(UsageError, match='no optimizer named "adam"'):
        trained(tmp_path, optimizer="adam")
    with pytest.raises(UsageError, match="do not compose"):
        train(models.build(CONFIG), Counting(), (make_regime("l1"), make_regime("l1")), settings_of(), tmp_path)


@pytest.mark.parametrize("device", ["cuda", "tpu", "mps"])
def test_a_device_that_is_not_there_is_refused(device: str, tmp_path: Path) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(UsageError, match="There is: cpu"):
        train(models.build(CONFIG), Counting(), (), settings_of(), tmp_path, device=device)


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"steps": 0}, {"lr": -1}, {"clip": "l2"}, {"warm_up": 0.1}, {"snapshots": (5000,)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TrainSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="anneal_from"):
        TopKSettings(anneal_from=0.9, anneal_until=0.5)


def test_threads_follow_the_user_then_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert threads.set_threads(None) == torch.get_num_threads() == 1
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert threads.set_threads(None) == threads.available_cores() >= 1
        assert threads.set_threads(2) == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_metrics_are_readable_json(tmp_path: Path) -> None:
    trained(tmp_path, "dense")
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
