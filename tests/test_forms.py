"""Forms of a run's circuits: written whole, tested as files of their own, kept with the circuit; refusals are clear."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from c_files import ask, build, lines_of, needs_compiler
from c_files import logits_of as printed
from openwork import patching, runs, store
from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain.decided import evidence_of
from openwork.explain.programs import symbolic_formula
from openwork.forms import write_form, write_formulas
from openwork.patching import support
from openwork.presets import PRESETS
from openwork.runs import Plan, circuit_folder, open_run, train_plan
from openwork.tasks.task import Split


def plan(subject: str, model: dict[str, object], steps: int, seed: int = 0) -> Plan:
    loop = {"steps": steps, "lr": 5e-3, "seed": seed, "log_every": 50, "eval_every": 50}
    return Plan(subject, "", model, loop, {"dense": {}}, 64, seed, 64)


def put_circuit(path: Path, task: str, name: str, nodes: dict[str, list[int]], reference: str = "mean") -> None:
    """A circuit of chosen nodes, as a search would leave it."""
    run = open_run(path)
    graph = patching.graph_of(run.model)
    masks = {}
    for site, kept in nodes.items():
        masks[site] = torch.zeros(graph.site(site).size, dtype=torch.bool)
        masks[site][kept] = True
    origin = {"method": "chosen", "task": task, "split": "discover", "model": run.digest, "reference": reference}
    circuit = Circuit.from_nodes(graph, masks, support(run.model), origin)
    folder = path / "circuits" / name
    result = {"key": "x", "task": task, "status": "ok", "target": 0.15, "reference": reference}
    store.save_circuit(folder, circuit)
    store.write_json(folder / "result.json", result)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forms") / "digits"
    train_plan(path, plan("digits", {"kind": "mlp", "inputs": 64, "hidden": (6,), "outputs": 10}, 250))
    put_circuit(path, "three_eight", "three_eight-chosen", {"input": [26, 27, 35, 42, 43]})
    put_circuit(path, "four_nine", "four_nine-chosen", {"input": [19, 26, 33]}, "counterfactual")
    return path


@needs_compiler
@pytest.mark.parametrize("binarised", [False, True])
def test_a_circuit_becomes_a_file_and_its_c_twin(digits: Path, binarised: bool, tmp_path: Path) -> None:
    out = tmp_path / "three.py"
    told = write_form(digits, "three_eight", out, "python", binarised)
    assert told["lines"] == len(out.read_text().splitlines()) < 120 and json.dumps(told)
    run = open_run(digits)
    split = run.task("three_eight").split("verify")
    x = split.inputs[0].double().numpy()
    twin = printed(ask(build(out.with_suffix(".c").read_text(), tmp_path), lines_of(x)))
    given = lines_of(x)
    said = subprocess.run([sys.executable, str(out)], input=given, capture_output=True, text=True, check=True).stdout
    assert said.split() == [("3", "8")[k] for k in twin.argmax(1)]
    circuit = store.load_circuit(circuit_folder(run, "three_eight-chosen"), run.digest)
    with torch.no_grad():
        own = patching.run(run.model, split.inputs, circuit, run.reference)[:, [3, 8]].argmax(1).numpy()
    by = {e["claim"]: e for e in told["evidence"]}
    assert by["program_decides_as_circuit"]["value"] == pytest.approx((twin.argmax(1) == own).mean())
    assert by["program_decides_as_circuit"]["value"] >= (0.7 if binarised else 0.97)
    [kept] = [e for e in circuit.explanations if ("binarised" in e.author) is binarised and "python" in e.author]
    assert kept.program == out.read_text() and len(kept.evidence) == 4


def test_forms_stand_side_by_side_and_again_replaces(digits: Path, tmp_path: Path) -> None:
    for _ in range(2):
        rules = write_form(digits, "three_eight", tmp_path / "r.py", "rules")
        formula = write_form(digits, "three_eight", tmp_path / "f.py", "formula", binarised=True)
    run = open_run(digits)
    circuit = store.load_circuit(circuit_folder(run, "three_eight-chosen"), run.digest)
    authors = [e.author for e in circuit.explanations]
    assert authors.count("openwork decompile --form rules") == 1
    assert authors.count("openwork decompile --form formula --binarised") == 1
    assert rules["leaves"] >= 2 and "8" in formula["says"] and formula["formula"] in formula["says"]
    for name in ("r.py", "f.py"):
        assert "as the circuit" in (tmp_path / name).read_text().split('"""')[1]


def test_what_has_no_form_is_refused_and_nothing_is_written(digits: Path, tmp_path: Path) -> None:
    for name, form, binarised, out, match in (
        ("three_eight", "prose", False, "a.py", 'no form named "prose"'),
        ("three_eight", "rules", False, "a.txt", "ends in .py"),
        ("three_eight", "rules", True, "a.py", "leave out --binarised"),
        ("three_eight", "formula", False, "a.py", "two values"),
        ("four_nine", "python", False, "a.py", "differs by example"),
    ):
        with pytest.raises(UsageError, match=match):
            write_form(digits, name, tmp_path / out, form, binarised)
    with pytest.raises(UsageError, match="not trained on a formula"):
        write_formulas(digits, tmp_path / "a.py")
    assert not list(tmp_path.iterdir())


def test_a_convolutional_circuit_becomes_maps(tmp_path: Path) -> None:
    path = tmp_path / "cnn"
    blocks = ({"channels": 4, "kernel": 3, "pool": 2},)
    model = {"kind": "cnn", "image": (1, 8, 8), "blocks": blocks, "hidden": (5,), "outputs": 10}
    train_plan(path, plan("digits", model, 150))
    put_circuit(path, "three_eight", "three_eight-chosen", {"conv0": [0, 2, 3]})
    told = write_form(path, "three_eight", tmp_path / "maps.py")
    by = {e["claim"]: e["value"] for e in told["evidence"]}
    assert by["program_decides_as_circuit"] == by["program_decides_as_circuit_ood"] == 1.0
    assert "def look(pixels" in (tmp_path / "maps.py").read_text() and (tmp_path / "maps.c").exists()
    with pytest.raises(UsageError, match="maps stay maps"):
        write_form(path, "three_eight", tmp_path / "b.py", "python", binarised=True)


def test_a_regression_becomes_formulas_beside_the_true_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolic_formula, "SEARCHES", 0)  # a network that learned nothing is not searched for long
    path = tmp_path / "run"
    small = {**PRESETS["feature_sharing"]["cpu"].model, "hidden": (12,)}
    train_plan(path, plan("feature_sharing", small, 2))
    told = write_formulas(path, tmp_path / "f.py")
    assert len(told["formulas"]) == 3 and told["true"].startswith("x1^2")
    space: dict[str, object] = {}
    exec((tmp_path / "f.py").read_text(), space)
    assert space["FORMULAS"] == [f["text"] for f in told["formulas"]]
    assert all(-1 < f["r2_model"]["verify"] <= 1 for f in told["formulas"])


def test_a_transformers_circuit_is_referred_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "run"
    model = {"kind": "transformer", "vocab": 60, "outputs": 59, "n_layer": 1, "d_model": 16, "d_head": 8, "d_mlp": 8,
             "n_ctx": 3, "norm": False, "activation": "relu", "bigram": False}  # fmt: skip
    train_plan(path, plan("modular_addition_59", model, 2))
    put_circuit(path, "modular_addition_59", "modular_addition_59-chosen", {})
    with pytest.raises(UsageError, match="no circuit of a perceptron"):
        write_form(path, "modular_addition_59", tmp_path / "a.py")


# -- evidence --------------------------------------------------------------------------------------------------------


def pairs(n: int, answer: np.ndarray) -> Split:
    a = torch.tensor(answer)
    return Split("verify", (torch.zeros(n, 1),), a, 1 - a[:, None], torch.arange(n) ^ 1, ("",) * n)


def test_agreement_is_evidence_with_a_null() -> None:
    theirs = np.arange(200) % 2
    split = pairs(200, theirs)
    same = evidence_of("program", "circuit", theirs, theirs, 0.99, split)
    assert (
        same.verdict == "holds" and same.value == 1.0 and same.p < 1e-20 and same.claim == "program_decides_as_circuit"
    )
    worse = np.where(np.arange(200) < 60, 1 - theirs, theirs)
    assert evidence_of("program", "circuit", worse, theirs, 0.99, split).verdict == "fails"
    nearly = np.where(np.arange(200) < 4, 1 - theirs, theirs)
    assert evidence_of("program", "circuit", nearly, theirs, 0.99, split).verdict == "too little data"


def test_agreeing_with_one_answer_throughout_says_nothing_by_itself() -> None:
    """Nearly always the same decision: agreement is high by chance, and the null says so."""
    theirs = np.zeros(40, dtype=int)
    theirs[0] = 1
    always = np.zeros(40, dtype=int)
    e = evidence_of("rules", "model", always, theirs, 0.97, pairs(40, theirs))
    assert e.value == 0.975 and e.verdict == "fails" and e.p > 0.05


def test_evidence_survives_the_store(digits: Path) -> None:
    run = open_run(digits)
    circuit = store.load_circuit(circuit_folder(run, "three_eight-chosen"), run.digest)
    assert circuit.explanations and all(e.evidence for e in circuit.explanations)
    assert runs.circuit_folder(run, "three_eight").name == "three_eight-chosen"
