"""The modules of a trained model: planted ones are recognised, dense ones are not, and every figure has its null."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import page_runs
from openwork import bench, models, modules, patching, store, structure
from openwork.discover.modules import module_circuits, partition_of
from openwork.errors import RunError, UsageError
from openwork.files import plain
from openwork.modules import find_modules
from openwork.runs import circuit_folder, open_run, show_run
from openwork.structure import Labels, Wiring
from openwork.tables import show_result
from openwork.tasks.task import Split
from openwork.training import held_out_accuracy, held_out_loss
from openwork.training.data import held_out_figures
from openwork.verify import Question, sufficient
from openwork.verify.modules import Asked, hard_cut, on_off
from openwork.views import build_page
from openwork.views.modules import shade, tree

SIZE = ("model.hidden=[24,24]",)
MADE = ("clusterability.modules=3", "clusterability.partition=blocks", "clusterability.begin=0")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, trained with three contiguous modules that nothing joins in the end."""
    out = tmp_path_factory.mktemp("runs") / "planted"
    settings = (*SIZE, *MADE, "clusterability.hard_cut=true")
    bench.train_run("digits", "clusterability", None, out, 300, "smoke", settings=settings)
    return out


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, trained without a thought of modules."""
    out = tmp_path_factory.mktemp("runs") / "dense"
    bench.train_run("digits", "dense", None, out, 300, "smoke", settings=SIZE)
    return out


@pytest.fixture(scope="module")
def found(planted: Path) -> dict[str, Any]:
    return find_modules(planted, draws=19)


def wired(model: nn.Module) -> Wiring:
    return structure.wiring(patching.graph_of(model))


# -- planted and dense -------------------------------------------------------------------------------------------------


def test_planted_modules_are_recognised(planted: Path, found: dict[str, Any]) -> None:
    cut, c = found["cut"], found["measures"][0]
    assert (found["partition"], found["k"]) == ("trained", 3)
    assert [g["sizes"] for g in found["groups"]] == [[8, 8, 8], [8, 8, 8]]
    assert cut["deleted"] == 0 == found["interface_edges"] and found["interface"] == []
    assert cut["loss_cut"] == cut["loss"] and cut["accuracy_cut"] == cut["accuracy"] > 0.8
    assert cut["loss_partitions"]["p"] == pytest.approx(1 / 20) and cut["loss_partitions"]["low"] > cut["loss"] + 0.1
    assert cut["deleted_partitions"] > 50
    assert cut["loss_weights"]["p"] == 1, "nothing to delete: as many random weights are none either"
    assert c["measure"] == "clusterability" and c["value"] == 1 and c["expected"] == pytest.approx(1 / 3)
    assert c["positions"]["z"] > 3 and found["measures"][1]["positions"]["z"] < -10
    assert all(e["cut"] == 0 and e["share"] == 0 and e["expected"] > 0.5 for e in found["tree"])
    assert "No weight joins its 3 modules" in found["headline"]


def test_weights_alone_tell_them_too_and_how_many(planted: Path, found: dict[str, Any]) -> None:
    model = open_run(planted).model
    of = wired(model)
    labels = partition_of(model, of, "spectral", None)
    truth = structure.blocks(of, 3)
    assert (structure.matched(labels, truth, 3) == truth).all()


def test_dense_models_have_no_modules(dense: Path) -> None:
    found = find_modules(dense, modules=4, partition="blocks", draws=19)
    c, cut = found["measures"][0], found["cut"]
    assert abs(c["value"] - c["expected"]) < 0.05 and abs(c["values"]["z"]) < 3
    assert cut["loss_cut"] > cut["loss"] + 0.1 and cut["loss_partitions"]["p"] > 0.05
    assert cut["deleted"] == cut["deleted_partitions"] == 24 * 24 * 3 // 4
    assert found["interface_edges"] == cut["deleted"] and len(found["interface"]) == modules.STRONGEST
    assert abs(found["measures"][1]["value"] - 3) < 0.2, "n-cut is nearly k - 1"
    spectral = find_modules(dense, modules=4, draws=19)
    assert spectral["partition"] == "spectral" and spectral["chosen"] == "as asked"
    assert spectral["measures"][1]["value"] < found["measures"][1]["value"], "even noise has a smaller cut than blocks"


# -- as circuits -------------------------------------------------------------------------------------------------------


def small(kind: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A model with random weights, and inputs."""
    if kind == "transformer":
        model = page_runs.transformer(16, 0.7, 0)
        return model, (page_runs.text(3, 7), torch.tensor([6, 3, 5]))
    config = {
        "mlp": {"kind": "mlp", "inputs": 6, "hidden": (9, 8, 9), "outputs": 4},
        "cnn": {
            "kind": "cnn", "image": (1, 10, 10), "hidden": (9,), "outputs": 4,
            "blocks": ({"channels": 6, "kernel": 3, "pool": 2}, {"channels": 6, "kernel": 3}),
        },
    }[kind]  # fmt: skip
    model = page_runs.sparse_weights(models.build(config, 0), 0.7, 0)
    return model, (torch.randn(3, 6 if kind == "mlp" else 100, generator=torch.Generator().manual_seed(1)),)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer"])
def test_all_modules_together_are_the_model_cut_apart(kind: str) -> None:
    """Their union, with zeros as the reference, against the weights deleted; and every node is in one module."""
    model, inputs = small(kind)
    of = wired(model)
    labels = partition_of(model, of, "spectral", 3)
    parts = module_circuits(model, of, labels)
    whole = parts[0] | parts[1] | parts[2]
    zeros = patching.zero_reference(model)
    with torch.no_grad():
        apart = structure.without(model, of, structure.all_crossing(of, of.partition(labels)))(*inputs)
        assert torch.allclose(patching.run(model, inputs, whole, zeros), apart, atol=1e-5)
        assert not torch.allclose(model(*inputs), apart, atol=1e-2)
    for site in of.node_of:
        assert torch.stack([p.nodes[site] for p in parts]).sum(0).eq(1).all()
    for e in of.links:
        assert not torch.stack([p.edges[e.name] for p in parts]).sum(0).gt(1).any()


def test_circuits_are_written_and_balance(planted: Path, found: dict[str, Any]) -> None:
    run = open_run(planted)
    parts = [store.load_circuit(planted / "modules" / str(c), run.digest) for c in range(3)]
    (asked, _), *_ = modules._asked(run)
    for c, part in enumerate(parts):
        assert part.origin["method"] == "modules" and part.origin["module"] == c
        assert part.origin["model"] == run.digest and part.origin["settings"]["partition"] == "trained"
        with torch.no_grad():
            right = patching.run(run.model, asked.split.inputs, part, run.reference).argmax(1) == asked.split.answer
        (cell,) = [x for x in found["tasks"] if x["module"] == c and x["task"] == "all"]
        assert cell["on_accuracy"]["value"] == pytest.approx(float(right.float().mean()))
        assert part.counts()["edges"] == 64 * 8 + 64 + 8 * 10
    edges = {n: sum(int(p.edges[n].sum()) for p in parts) for n in parts[0].edges}
    assert edges["hidden0>hidden1"] == int(run.model.get_parameter("layers.1.weight").count_nonzero())


def test_a_module_can_be_verified_like_any_circuit(planted: Path, found: dict[str, Any]) -> None:
    run = open_run(planted)
    module = store.load_circuit(planted / "modules" / "0", run.digest)
    split = run.task("digits").split("verify")
    evidence = sufficient(Question(run.model, module, run.reference, split, None, 0.2, 0, 19))
    (cell,) = [x for x in found["tasks"] if x["module"] == 0 and x["task"] == "all"]
    assert evidence.verdict == "fails" and evidence.value == pytest.approx(cell["on_loss"]["value"], rel=1e-4)


def test_a_module_of_another_model_is_refused(planted: Path, dense: Path, found: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="not in this one"):
        store.load_circuit(planted / "modules" / "0", open_run(dense).digest)


def test_modules_are_not_taken_for_circuits_of_tasks(planted: Path, found: dict[str, Any]) -> None:
    run = open_run(planted)
    assert run.circuits() == []
    with pytest.raises(UsageError, match="no circuit named"):
        circuit_folder(run, "0")
    assert show_run(planted)["modules"] == found["headline"]


# -- figures by hand ---------------------------------------------------------------------------------------------------


def two_wires() -> tuple[nn.Module, Wiring, Labels]:
    """2-2-2-2, the identity in every layer, and module i = neuron i of both hidden layers."""
    model = models.build({"kind": "mlp", "inputs": 2, "hidden": (2, 2), "outputs": 2}, 0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.eye(2) if name.endswith("weight") else torch.zeros(2))
    return model, wired(model), np.array([0, 1, 0, 1])


def test_on_and_off_by_hand() -> None:
    """With only neuron 0 on, all that is left of the input (0, 3) is (0, 0): a tie, which is a mistake."""
    model, of, labels = two_wires()
    x = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    answer = torch.tensor([0, 0, 1])
    split = Split("verify", (x,), answer, 1 - answer[:, None], torch.full((3,), -1), ("a", "b", "c"))
    groups = {"all": torch.arange(3), "first": torch.tensor([0, 1]), "second": torch.tensor([2])}
    asked = [Asked(split, groups)]
    cells = {(c.module, c.task): c for c in on_off(model, of, labels, patching.zero_reference(model), asked, 8)}
    assert len(cells) == 6
    right, tie = float(np.log1p(np.exp(-3))), float(np.log(2))
    for module, mine, other in ((0, "first", "second"), (1, "second", "first")):
        own, others = cells[module, mine], cells[module, other]
        assert (own.whole_accuracy, own.on_accuracy.value, own.off_accuracy.value) == (1, 1, 0)
        assert (others.whole_accuracy, others.on_accuracy.value, others.off_accuracy.value) == (1, 0, 1)
        assert own.on_loss.value == pytest.approx(right) and own.off_loss.value == pytest.approx(tie)
        assert others.on_loss.value == pytest.approx(tie)
    assert cells[0, "all"].on_accuracy.value == pytest.approx(2 / 3) and cells[0, "all"].n == 3
    null = cells[0, "first"].on_accuracy  # random neurons of both layers: the same wire, two ends that do not meet
    assert (null.low, null.high) == (0, 1) and null.p > 1 / 9


def test_the_hard_cut_by_hand() -> None:
    """Judged by the sum of what is left of one matrix, 1 + 2 + 4 + 8: inside are 1 and 8."""
    model, of, labels = two_wires()
    with torch.no_grad():
        model.get_parameter("layers.1.weight").copy_(torch.tensor([[1.0, 2.0], [4.0, 8.0]]))

    def judge(m: nn.Module) -> tuple[float, float]:
        left = float(m.get_parameter("layers.1.weight").detach().sum())
        return left, left / 15

    cut = hard_cut(model, of, labels, judge, 30)
    assert (cut.loss, cut.loss_cut, cut.deleted, cut.of) == (15, 9, 2, 4)
    assert (cut.loss_partitions.low, cut.loss_partitions.high) == (6, 9), "the other way to pair them leaves 2 and 4"
    assert (cut.loss_weights.low, cut.loss_weights.high) == (3, 12), "any two of four weights"
    assert cut.accuracy_cut == pytest.approx(0.6) and judge(model)[0] == 15
    sparse = hard_cut(model, of, labels, lambda m: (judge(m)[0], None), 3)
    assert sparse.accuracy_weights is None and sparse.accuracy_partitions is None


def test_loss_and_accuracy_of_one_pass_are_those_of_two(dense: Path) -> None:
    run, cpu = open_run(dense), torch.device("cpu")
    data = run.subject.training_data(32, 0)
    both = held_out_figures(run.model, data, cpu, split="verify")
    assert both == (
        held_out_loss(run.model, data, cpu, split="verify"),
        held_out_accuracy(run.model, data, cpu, split="verify"),
    )

    class Regression:
        def batch(self, step: int) -> Any:
            return (torch.ones(4, 64),), torch.ones(4)

        def held_out(self, split: str) -> Any:
            yield self.batch(0)

        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return (outputs.sum(1) - targets).pow(2).mean()

    own = Regression()
    assert held_out_figures(run.model, own, cpu) == (held_out_loss(run.model, own, cpu, split="verify"), None)


def test_random_partitions_keep_the_sizes_of_every_layer() -> None:
    model, _ = small("transformer")
    of = wired(model)
    labels, rng = structure.blocks(of, 3), np.random.default_rng(0)
    ends = np.cumsum((0, *of.groups))
    other = structure.dealt(of, labels, rng)
    assert not (other == labels).all()
    for a, b in zip(ends, ends[1:], strict=False):
        assert (np.bincount(other[a:b], minlength=3) == np.bincount(labels[a:b], minlength=3)).all()


@pytest.mark.parametrize("k", [2, 3, 5, 8])
@pytest.mark.parametrize("cross", [0.0, 0.1])
def test_the_eigengap_tells_how_many_planted_modules_there_are(k: int, cross: float) -> None:
    rng, truth = np.random.default_rng(k), np.arange(240) * k // 240
    a = (rng.random((240, 240)) < np.where(truth[:, None] == truth, 0.4, 0.4 * cross)).astype(float)
    a = np.triu(a, 1) + np.triu(a, 1).T
    assert structure.eigengap(a) == k
    with pytest.raises(UsageError, match="too few"):
        structure.eigengap(np.zeros((5, 5)))


def test_measures_beside_shuffles_are_those_of_one_measure_at_a_time() -> None:
    model, _ = small("mlp")
    of = wired(model)
    weights = structure.weights(model, of)
    sizes = {n: structure.size(w) for n, w in weights.items()}
    labels = partition_of(model, of, "spectral", 3)

    def again(graph: Any) -> Labels:
        return structure.spectral(graph, 3, 1)

    for null in ("values", "positions"):
        both = structure.measured(of, weights, labels, again, null, 5, 1)
        for m in ("ncut", "modularity"):
            alone = structure.against_shuffles(of, sizes, 3, m, null, 5, 1)
            assert vars(both[m]) == pytest.approx(vars(alone))
    c = [
        structure.clusterability(weights[e.name], *(of.partition(labels)[s] for s in (e.dst, e.src))) for e in of.links
    ]
    assert both["clusterability"].value == pytest.approx(float(torch.stack(c).mean().detach()))


def test_kernels_are_shuffled_as_wholes() -> None:
    kernel = torch.arange(2 * 3 * 4, dtype=torch.float32).view(2, 3, 2, 2)
    kernel[0, 0] = 0
    rng = np.random.default_rng(0)
    values, positions = (structure._shuffled(kernel, null, rng) for null in ("values", "positions"))
    for other in (values, positions):
        assert sorted(other.flatten(0, 1).flatten(1).tolist()) == sorted(kernel.flatten(0, 1).flatten(1).tolist())
        assert not torch.equal(other, kernel)
    assert not values[0, 0].any(), "zeros stay"


def test_the_heaviest_edges_are_the_first_of_all() -> None:
    model, _ = small("mlp")
    of = wired(model)
    sizes = {n: structure.size(w.detach()) for n, w in structure.weights(model, of).items()}
    parts = of.partition(structure.blocks(of, 3))
    every = structure.interface(of, sizes, parts)
    assert structure.interface(of, sizes, parts, 5) == every[:5] and len(every) > 20


def test_what_modules_are_by_chance() -> None:
    """Against the mean over random partitions of a graph that has no modules."""
    model, _ = small("mlp")
    of = wired(model)
    flat = {n: torch.ones_like(w) for n, w in structure.weights(model, of).items()}
    labels, rng = structure.blocks(of, 3), np.random.default_rng(0)
    drawn = [structure.measures(of, flat, structure.dealt(of, labels, rng)) for _ in range(5)]
    for m, value in structure.expected(of, labels).items():
        assert np.mean([d[m] for d in drawn]) == pytest.approx(value, abs=0.02), m


# -- the result --------------------------------------------------------------------------------------------------------


def test_the_result_is_whole_and_plain(planted: Path, found: dict[str, Any]) -> None:
    on_disk = json.loads((planted / "modules" / "modules.json").read_text())
    assert on_disk == found == plain(found)
    json.dumps(found, allow_nan=False)
    assert set(found) >= {
        "key", "model", "partition", "k", "draws", "seed", "modules", "measures", "cut", "interface", "tasks", "tree",
        "headline",
    }  # fmt: skip
    names = ["all", *map(str, range(10))]
    assert [(c["module"], c["task"]) for c in found["tasks"]] == [(m, t) for m in range(3) for t in names]
    for c in found["tasks"]:
        for figure in ("on_loss", "on_accuracy", "off_loss", "off_accuracy"):
            assert set(c[figure]) == {"value", "median", "low", "high", "p"}
            assert c[figure]["low"] <= c[figure]["median"] <= c[figure]["high"] and 0 < c[figure]["p"] <= 1
    for m in found["modules"]:
        assert m["nodes"] == 16 and m["edges_inside"] == 64 and m["edges_to_others"] == 0
        assert (planted / m["circuit"] / "circuit.json").exists()
    assert sum(m["volume"] for m in found["modules"]) == pytest.approx(1)


def test_an_unchanged_question_is_not_computed_again(
    planted: Path, found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(planted, run)

    def refuse(*_: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(modules, "hard_cut", refuse)
    again = find_modules(run, draws=19)
    assert again == found | {"run": str(run)}
    for other in ({"seed": 1}, {"draws": 20}, {"partition": "blocks"}, {"modules": 2}):
        with pytest.raises(AssertionError, match="computed again"):
            find_modules(run, **{"draws": 19, **other})
    store.files.remove(run / "modules" / "2")
    with pytest.raises(AssertionError, match="computed again"):
        find_modules(run, draws=19)


def test_same_seed_same_result_and_a_new_question_replaces_the_old(planted: Path, tmp_path: Path) -> None:
    results = []
    for name in ("a", "b"):
        run = tmp_path / name
        shutil.copytree(planted, run)
        find_modules(run, modules=4, draws=3)
        assert (run / "modules" / "3").is_dir()
        results.append(find_modules(run, modules=2, draws=3))
        assert sorted(p.name for p in (run / "modules").iterdir()) == ["0", "1", "modules.json"]
    for r in results:
        assert r.pop("seconds") > 0 and r.pop("run")
    assert results[0] == results[1]


def test_without_a_solver_there_is_no_tree_and_a_reason(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise UsageError("min-cut trees need OR-tools.")

    run = tmp_path / "run"
    shutil.copytree(planted, run)
    monkeypatch.setattr(modules, "solver", missing)
    found = find_modules(run, draws=3)
    assert found["tree"] is None and found["tree_note"] == "min-cut trees need OR-tools."
    assert "min-cut trees need OR-tools." in build_page(run).read_text(encoding="utf-8")
    monkeypatch.undo()
    assert find_modules(run, draws=3)["tree"], "once it is there, the question is another"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"modules": 49}, "49 modules are asked for, but the model has 48 hidden nodes"),
        ({"modules": 40, "partition": "blocks"}, "leaves 16 of 40 modules without a node"),
        ({"partition": "leiden"}, 'no partition named "leiden"'),
        ({"modules": 2, "partition": "trained"}, "was trained with 3 modules, not 2"),
    ],
)
def test_what_cannot_be_is_refused(planted: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_modules(planted, **options)


def test_runs_without_modules_are_refused_with_a_reason(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was trained without modules"):
        find_modules(dense, partition="trained")
    with pytest.raises(UsageError, match="no run named"):
        find_modules(tmp_path / "nowhere")
    bench.train_run("digits", "dense", None, tmp_path / "flat", 2, "smoke", settings=("model.hidden=[8]",))
    with pytest.raises(UsageError, match="two hidden layers at least"):
        find_modules(tmp_path / "flat")


def test_a_partition_that_does_not_fit_the_model_is_damage(planted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(planted, run)
    at = run / "model" / "config.json"
    header = store.read_json(at)
    header["extra"]["clusterability"]["modules"]["hidden0"].pop()
    store.write_json(at, header)
    with pytest.raises(RunError, match="do not fit the model's nodes"):
        find_modules(run, draws=3)


# -- for a person ------------------------------------------------------------------------------------------------------


def test_a_person_gets_tables_with_the_headline(
    planted: Path, found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    show_result(bench.modules_run(planted, draws=19))
    out = capsys.readouterr().out
    for text in ("3 modules (trained)", "cut apart", "Newman Q", "only this module on", "this module off", "Min-cut"):
        assert text in out
    assert found["headline"] in out and "Number of modules: as many as the regime clusterability made" in out
    lines = [line for line in out.splitlines() if "random" in line and "(" in line]
    assert lines, "random nodes stand beside modules with their range"


def test_the_page_of_a_run_without_circuits_shows_its_modules(planted: Path, found: dict[str, Any]) -> None:
    bench.view_run(planted)
    html = (planted / "page.html").read_text(encoding="utf-8")
    assert "The modules of planted" in html and found["headline"] in html
    assert html.count('<table class="heat">') == 2 and '<svg class="cuts"' in html and "No circuits here" not in html
    assert not [w for w in ("style=", "nan", "None") if w in html.split("<main>")[1].split("</main>")[0]]


def test_a_page_about_another_model_is_refused(planted: Path, dense: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(planted, run)
    shutil.rmtree(run / "model")
    shutil.copytree(dense / "model", run / "model")
    with pytest.raises(RunError, match="about a model that is no longer here"):
        build_page(run)
    shutil.rmtree(run / "model")
    shutil.copytree(planted / "model", run / "model")
    at = run / "modules" / "modules.json"
    result = store.read_json(at)
    store.write_json(at, {**result, "tasks": result["tasks"][:-1]})
    with pytest.raises(RunError, match="is damaged"):
        build_page(run)
    store.write_json(at, {**result, "version": 99})
    with pytest.raises(RunError, match="version 99"):
        build_page(run)


def test_a_run_with_neither_circuits_nor_modules_has_no_page(dense: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(dense, run, ignore=shutil.ignore_patterns("modules"))
    with pytest.raises(UsageError, match="openwork modules"):
        bench.view_run(run)


def test_the_tree_is_drawn_whole_or_not_at_all() -> None:
    edge = {"cut": 1.0, "share": 0.5, "expected": 0.7}
    drawn = tree([{"module": 1, "parent": 0, **edge}, {"module": 2, "parent": 1, **edge}], [4, 2, 1])
    assert drawn.count("<circle") == 3 and drawn.count("<path") == 2 and "by chance 70 %" in drawn
    with pytest.raises(ValueError, match="every module"):
        tree([{"module": 1, "parent": 0, **edge}], [4, 2, 1])
    with pytest.raises(ValueError, match="circle"):
        tree([{"module": 0, "parent": 1, **edge}, {"module": 1, "parent": 0, **edge}], [4, 2])
    with pytest.raises(ValueError, match="every module"):
        tree([{"module": 7, "parent": 0, **edge}], [4])
    assert [shade(x) for x in (0.0, 0.04, 0.05, -0.05, 0.5, -0.9)] == ["", "", "p1", "m1", "p3", "m4"]


def test_tasks_of_text_are_columns(tmp_path: Path) -> None:
    """One column per task where the subject is text: asked of the real tasks, with an untrained model."""
    from openwork.tasks.python_code import MIXED

    out = tmp_path / "py"
    tiny = ("model.d_model=16", "model.d_head=8", "model.n_ctx=64", "corpus.megabytes=0.3")
    bench.train_run("python", "dense", None, out, 2, "smoke", settings=tiny)
    found = find_modules(out, modules=2, draws=2)
    assert {c["task"] for c in found["tasks"]} == set(MIXED) and found["task"] == ""
    assert any(len(g["sites"]) > 1 for g in found["groups"])


def test_a_regression_has_modules_but_no_tasks_to_ask_them_about(tmp_path: Path) -> None:
    bench.train_run("independence", "clusterability", None, tmp_path / "r", 40, "smoke")
    result = find_modules(tmp_path / "r", draws=2)
    assert result["tasks"] == [] and "a loss of" in result["headline"] and "nats" not in result["headline"]
    assert not any("only this module" in title for title, rows in modules.shown(result)["tables"].items() if rows)
    bench.view_run(tmp_path / "r")
    page = (tmp_path / "r" / "page.html").read_text(encoding="utf-8")
    assert "Cut apart" in page and "With only this module on" not in page
