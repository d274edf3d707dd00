"""Operations and their pairs by brute force, points of two moons, an example in the context: data, tasks, learning."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openwork import bench, models
from openwork.errors import UsageError
from openwork.patching import graph_of, mean_reference, record
from openwork.presets import PRESETS
from openwork.runs import check_circuit, open_run
from openwork.store import model_digest
from openwork.tasks.algorithmic import OPERATIONS, OperationData, make_operation_task, operation
from openwork.tasks.moons import MOON_TASKS, make_moon_task, points
from openwork.tasks.subjects import SUBJECTS, open_subject
from openwork.tasks.symbolic import InContextData
from openwork.training import TrainSettings, held_out_accuracy, held_out_loss, make_regime, train

CPU = torch.device("cpu")


def table(name: str) -> Tensor:
    """The whole operation, [n, n]."""
    n = len(operation(name))
    a, b = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    return operation(name).apply(a.flatten(), b.flatten()).view(n, n)


# -- the tables are right --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_a_group(name: str) -> None:
    of = table(name)
    n = len(of)
    everything = torch.arange(n)
    assert torch.equal(of.sort(0).values, everything[:, None].expand(n, n))  # every column holds every element once
    assert torch.equal(of.sort(1).values, everything.expand(n, n))
    neutral = [e for e in range(n) if torch.equal(of[e], everything) and torch.equal(of[:, e], everything)]
    assert neutral == [0]
    assert ((of == 0).sum(1) == 1).all()  # every element has an inverse
    some = everything[:: max(1, n // 24)]
    a, b, c = torch.cartesian_prod(some, some, some).T
    assert torch.equal(of[of[a, b], c], of[a, of[b, c]])


def test_modular_additions_by_hand() -> None:
    assert table("modular_addition_59")[40, 30] == 11 and table("modular_addition_113")[112, 112] == 111
    assert operation("modular_addition_113").symbols == tuple(str(i) for i in range(113))
    assert operation("modular_addition_59").text(40, 30) == "40 + 30 ="


def test_s4_composes_permutations_as_functions() -> None:
    of = operation("s4")
    assert len(set(of.symbols)) == 24 == math.factorial(4) and of.symbols[0] == "1234"
    composed = table("s4")
    for (i, f), (j, g) in itertools.product(enumerate(of.symbols), repeat=2):
        expected = "".join(f[int(k) - 1] for k in g)  # first g, then f
        assert of.symbols[int(composed[i, j])] == expected
    assert not torch.equal(composed, composed.T)  # it does not commute
    even = [i for i, f in enumerate(of.symbols) if sum(x > y for x, y in itertools.combinations(f, 2)) % 2 == 0]
    assert len(even) == 12 and set(composed[even][:, even].flatten().tolist()) == set(even)  # A4 is closed


# -- the splits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_splits_are_disjoint_and_together_the_whole_table(name: str) -> None:
    data = OperationData(operation(name))
    parts = [data.members(s) for s in ("train", "discover", "verify", "explain")]
    n = len(operation(name))
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(n * n))
    assert len(parts[0]) == round(operation(name).share * n * n)
    held_out = [len(p) for p in parts[1:]]
    assert max(held_out) - min(held_out) <= 1
    (ab,), result = data.batch(0)
    assert torch.equal(ab[:, 0] * n + ab[:, 1], parts[0]) and torch.equal(result, table(name)[ab[:, 0], ab[:, 1]])
    with pytest.raises(UsageError, match="no split of an operation"):
        data.members("ood")


def test_batches_depend_on_seed_and_step_alone_and_hold_pairs_to_train_on_only() -> None:
    of = operation("s4")
    data = OperationData(of, seed=1, size=64)
    (ab,), _ = data.batch(5)
    assert torch.equal(ab, OperationData(of, seed=1, size=64).batch(5)[0][0]) and ab.shape == (64, 2)
    assert not torch.equal(ab, data.batch(6)[0][0])
    assert not torch.equal(ab, OperationData(of, seed=2, size=64).batch(5)[0][0])
    assert set((ab[:, 0] * 24 + ab[:, 1]).tolist()) <= set(data.members("train").tolist())
    (tokens, at), result = OperationData(of, seed=1, size=64, sequence=True).batch(5)
    assert torch.equal(tokens[:, :2], ab) and (tokens[:, 2] == 24).all() and (at == 2).all()
    assert torch.equal(result, data.batch(5)[1])


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_answer_competes_with_all_others_and_has_a_counterpart(name: str, sequence: bool) -> None:
    task = make_operation_task(name, 512, sequence)
    of, n = table(name), len(operation(name))
    seen: list[tuple[int, int]] = []
    for split in task.splits.values():
        a, b = split.inputs[0][:, 0], split.inputs[0][:, 1]
        assert torch.equal(split.answer, of[a, b]) and split.wrong.shape == (len(split), n - 1)
        both = torch.cat([split.answer[:, None], split.wrong], 1).sort(1).values
        assert torch.equal(both, torch.arange(n).expand_as(both))
        assert torch.equal(split.pair[split.pair], torch.arange(len(split))) and (split.pair >= 0).all()
        assert (split.answer != split.answer[split.pair]).all()
        held_out = len(OperationData(operation(name)).members(split.name))
        assert min(512, held_out - 2) <= len(split) <= 512
        assert split.texts[0] == operation(name).text(int(a[0]), int(b[0]))
        seen += zip(a.tolist(), b.tolist(), strict=True)
    assert len(set(seen)) == len(seen)
    # most counterparts differ in the second operand alone
    share = torch.cat([s.inputs[0][:, 0] == s.inputs[0][s.pair, 0] for s in task.splits.values()]).float().mean()
    assert share > (0.5 if name == "s4" else 0.8)
    assert set(task.splits) == {"discover", "verify", "explain"}
    assert len(make_operation_task(name, 21).split("verify")) == 20


def test_unknown_operations_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match='Nearest: "modular_addition_59"'):
        operation("modular_addition_58")


def test_moons_are_two_halves_and_splits_share_no_point() -> None:
    (task,) = (make_moon_task(n, 512) for n in MOON_TASKS)
    everything = [points(s)[0] for s in ("train", "discover", "verify", "explain")]
    assert len(torch.cat(everything).unique(dim=0)) == 2000
    for name in ("discover", "verify", "explain"):
        split = task.split(name)
        (x,) = split.inputs
        assert x.shape == (500, 2) and split.answer.sum() == 250
        assert torch.equal(split.answer[split.pair], split.wrong[:, 0]) and torch.equal(
            split.wrong[:, 0], 1 - split.answer
        )
        # moon 0 is the upper half of the unit circle, moon 1 the lower half of one about (1, 0.5)
        middle = torch.tensor([[0.0, 0.0], [1.0, 0.5]])[split.answer]
        off = (x - middle).norm(dim=1) - 1
        assert off.abs().max() < 0.5 and 0.08 < float(off.std()) < 0.12
    x, y = task.split("verify").inputs[0], task.split("ood").inputs[0]
    assert torch.allclose(torch.cdist(x, x), torch.cdist(y, y), atol=1e-3) and not torch.allclose(x, y, atol=0.1)
    with pytest.raises(UsageError, match="no split of the moons"):
        points("ood")


def test_the_value_asked_in_context_is_that_of_the_example() -> None:
    data = InContextData(seed=3, size=50)
    (x, at), y = data.batch(2)
    assert x.shape == (50, 3, 1) and (at == 2).all() and y.shape == (50, 1)
    w = x[:, 1] / x[:, 0]
    torch.testing.assert_close(y, w * x[:, 2], rtol=1e-5, atol=1e-6)
    assert w.abs().max() <= 1 + 1e-5 and 0.5 <= x[:, [0, 2]].abs().min() <= x[:, [0, 2]].abs().max() <= 1.5
    assert torch.equal(x, InContextData(seed=3, size=50).batch(2)[0][0]) and not torch.equal(x, data.batch(3)[0][0])
    splits = [next(iter(data.held_out(s)))[0][0] for s in ("discover", "verify")]
    assert len(torch.cat([*splits, InContextData(seed=4).batch(0)[0][0]]).unique(dim=0)) == 20_064


# -- models that can learn them --------------------------------------------------------------------------------------


def fit(name: str, tmp_path: Path, kind: str = "", **settings: float) -> tuple[torch.nn.Module, OperationData]:
    p = PRESETS[name]["cpu"]
    p = p.changed({"model": {"kind": kind}}) if kind else p
    subject = open_subject(name, tmp_path, int(p.model.get("n_ctx", 0)))
    model, data = models.build(p.model, 0), subject.training_data(p.batch, 0)
    train(model, data, (make_regime("dense"),), TrainSettings(**{**p.dense, **settings}), tmp_path)
    return model, data


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_go_with_either_kind_of_model(name: str, kind: str, tmp_path: Path) -> None:
    p = PRESETS[name]["cpu"]
    shape = (p if p.model["kind"] == kind else p.changed({"model": {"kind": kind}})).model
    assert shape["kind"] == kind
    subject = open_subject(name, tmp_path, int(shape.get("n_ctx", 0)))
    inputs, _ = subject.training_data(16, 0).batch(0)
    n = len(operation(name))
    assert models.build(shape)(*inputs).shape == (len(inputs[0]), n)
    text, decode = subject.text(5), subject.decode()
    assert text is not None and decode is not None and len(text) == 5
    assert decode(n - 1) == operation(name).symbols[-1] and decode(n) == "="


def test_modular_addition_is_learned_where_it_was_not_trained(tmp_path: Path) -> None:
    model, data = fit("modular_addition_59", tmp_path, steps=500)
    assert (held_out_accuracy(model, data, CPU, "verify") or 0) > 0.95


def test_an_example_in_the_context_is_used(tmp_path: Path) -> None:
    model, data = fit("in_context_regression", tmp_path, steps=300)
    [(_, y)] = data.held_out("verify")
    blind = float(y.var())  # what a model gets that knows only the mean
    assert held_out_loss(model, data, CPU, split="verify") < 0.3 * blind


@pytest.mark.parametrize("name", [n for n, k in SUBJECTS.items() if not k.data])
def test_every_subject_with_data_of_its_own_trains_from_the_command_line(name: str, tmp_path: Path) -> None:
    result = bench.train_run(name, "l1", None, tmp_path / "run", steps=2, preset="smoke")
    assert math.isfinite(result["verify_loss"])
    run = open_run(tmp_path / "run")
    assert set(run.subject.task_names()) == set(SUBJECTS[name].tasks)
    for task in run.subject.task_names():
        assert len(run.task(task).split("verify")) > 1
    if not run.subject.task_names():
        with pytest.raises(UsageError, match="is a regression"):
            run.task(name)


def test_how_much_a_step_sees_can_be_chosen_where_it_is_a_choice(tmp_path: Path) -> None:
    for n, held in ((7, 7), (10_000, round(0.8 * 24**2))):
        out = tmp_path / str(n)
        bench.train_run("s4", "dense", None, out, steps=1, preset="smoke", settings=(f"data.batch={n}",))
        assert open_run(out).settings["batch"] == n
        assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["tokens"] == held
    for task, said in (("two_moons", "sees all its data"), ("s4", 'no setting named "size"')):
        with pytest.raises(UsageError, match=said):
            bench.train_run(task, "dense", None, tmp_path / "x", steps=1, settings=("data.size=7",))
    with pytest.raises(UsageError, match="batch 0"):
        bench.train_run("s4", "dense", None, tmp_path / "x", steps=1, settings=("data.batch=0",))


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_a_circuit_of_an_operation_is_found_checked_and_shown(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an operation that a few steps can learn: the result is the first operand."""
    monkeypatch.setitem(OPERATIONS, "s4", replace(OPERATIONS["s4"], apply=lambda a, b: a))
    out = tmp_path / "run"
    shape = ("model.d_model=16", "model.d_head=8", "model.d_mlp=8", "training.lr=0.03") if kind == "transformer" else ()
    settings = (f"model.kind={kind}", *shape, "training.steps=100", "training.weight_decay=0")
    trained = bench.train_run("s4", "dense", None, out, preset="smoke", settings=settings)
    assert trained["verify_accuracy"] == 1
    found = bench.discover_run(out, "s4", "masks", 1.5, 0, ("steps=40",))
    assert found["status"] == "ok" and found["answers"] == 24 and found["edge_pruned"]["nodes"] > 0
    checked = check_circuit(out, "s4", 0, n_null=19)
    assert {e["claim"] for e in checked["evidence"]} >= {"sufficient", "necessary", "generalises"}
    assert Path(bench.view_run(out)["page"]).exists()
    told = json.loads((out / "circuits" / "s4-masks" / "dossier.json").read_text())
    sign = ["="] if kind == "transformer" else []
    symbols = OPERATIONS["s4"].symbols
    assert [len(p["tokens"]) for p in told["prompts"]] == [2 + len(sign)] * 6
    assert all(p["tokens"][2:] == sign and p["answer"] == p["tokens"][0] for p in told["prompts"])
    assert told["answers"] == list(symbols)
    given = {n["id"]: n["label"] for n in told["nodes"] if n["site"] == "tokens"}
    assert given and set(given.values()) <= set(symbols)
    assert set(given) == {e["src"] for e in told["edges"] if e["link"] == "tokens>embed"}
    contexts = [c for n in told["nodes"] for c in n.get("top", ())]
    assert contexts and all(len(c["acts"]) == len(c["tokens"]) for c in contexts)


# -- what the models gained ------------------------------------------------------------------------------------------


def test_an_embedding_looks_every_slot_up_in_the_same_table() -> None:
    shape = models.MLPConfig.model_validate(PRESETS["s4"]["cpu"].model)
    model = models.build(shape, 0)
    ids = torch.tensor([[3, 5], [5, 3]])
    sent = record(model, (ids,))["embed"]
    rows = model.embed.weight.detach()  # type: ignore[union-attr]
    assert torch.equal(sent, torch.cat([rows[ids[:, 0]], rows[ids[:, 1]]], 1)) and sent.shape == (2, 64)
    assert sum(p.numel() for p in model.embed.parameters()) == 24 * 32  # type: ignore[union-attr]
    mean = mean_reference(model, [(ids,)])
    assert torch.equal(mean["tokens"], torch.eye(24)[[3, 5]].mean(0))
    torch.testing.assert_close(mean["embed"], sent.mean(0))
    link = graph_of(model).link("tokens>embed")
    assert link.shape == (64, 24) and link.counts == "embedding"


def test_shapes_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(UsageError, match=r"inputs 60 is not slots \* width = 2 \* 32"):
        models.build(PRESETS["s4"]["cpu"].model | {"inputs": 60})
    with pytest.raises(UsageError, match="a bigram table needs tokens at both ends"):
        models.build({"kind": "transformer", "inputs": 2})


OLD = {  # digests of models with fresh weights from seed 0, as they were before models had embeddings and real inputs
    "mlp": ({"kind": "mlp"}, "8a92e344e31db2420c6ea6de467c8e78b87d7c81c23ba8e97cf12a652808270c"),
    "transformer": (
        {"kind": "transformer", "vocab": 12, "n_layer": 1, "d_model": 8, "d_head": 4, "d_mlp": 16, "n_ctx": 6},
        "66a082d41b5d317e166225e6a07aa4f0e95e9e7515f5ed65be2f8ecc23ede076",
    ),
}


@pytest.mark.parametrize("kind", OLD)
def test_models_of_old_configs_are_built_as_ever(kind: str, tmp_path: Path) -> None:
    config, digest = OLD[kind]
    assert model_digest(models.build(config, 0)) == digest
