"""Comparisons from end to end, in their smallest form: what comes out, what is skipped, what a kill leaves behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from openwork import bench, files, store
from openwork.errors import RunError, UsageError
from openwork.progress import Progress
from openwork.runs import check_circuit, circuit_folder, open_run
from openwork.workers import Job, map_jobs

CLAIMS = {
    "sufficient", "necessary", "one_minimal", "generalises", "agrees_on_mistakes", "robust",
    "certified", "adversarial",
    "reference_dependence", "selective",
    "nonsense_control", "swapped_control", "random_weights_control",
}  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "digits"
    return out, bench.run_digits(out, "smoke", workers=2)


def circuits_of(run: Path) -> dict[str, Any]:
    """Everything that decides about a run's circuits, without the time it took."""
    kept = {}
    for at in sorted(run.glob("*/c*/*/result.json")):
        result = files.read_json(at)
        kept[str(at.relative_to(run))] = {k: v for k, v in result.items() if "seconds" not in k}
        masks = at.parent / "tensors.safetensors"
        kept[str(masks.relative_to(run))] = files.sha256(masks.read_bytes()) if masks.exists() else None
    return kept


def test_the_result_says_what_was_found(digits: tuple[Path, dict[str, Any]]) -> None:
    _, result = digits
    json.dumps(files.plain(result), allow_nan=False)
    assert {"run", "page", "seconds", "tasks", "ratio_geomean", "evidence"} <= result.keys()
    assert Path(result["page"]).stat().st_size > 10_000
    for row in result["tasks"]:
        for kind in ("sparse", "dense", "dense_edge_pruned"):
            cell = row[kind]
            assert cell["status"] in ("ok", "infeasible")
            if cell["status"] == "ok":
                assert {"nodes", "edges", "loss", "accuracy"} <= cell.keys()
        if row["dense"]["status"] == "ok":
            assert row["dense_edge_pruned"]["edges"] <= row["dense"]["edges"]
            assert row["dense_edge_pruned"]["discover_loss"] <= row["target"]
    found = {row["task"] for row in result["tasks"] if row["sparse"]["status"] == "ok"}
    assert found
    for task in found:
        assert {e["claim"] for e in result["evidence"] if e["task"] == task} == CLAIMS
    ratio = result["ratios"]["node_based"]
    assert ratio["low"] <= result["ratio_geomean"] <= ratio["high"]


def test_the_ratio_is_that_of_the_table(digits: tuple[Path, dict[str, Any]]) -> None:
    _, result = digits
    product, n = 1.0, 0
    for row in result["tasks"]:
        if row["dense"]["status"] == "ok":
            whole = result["models"]["sparse"]["block_nonzero"]
            product *= row["dense"]["edges"] / (row["sparse"].get("edges") or whole)
            n += 1
    assert result["ratio_geomean"] == pytest.approx(product ** (1 / n))


def test_a_finished_comparison_is_not_made_again(digits: tuple[Path, dict[str, Any]]) -> None:
    out, result = digits
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert bench.run_digits(out, "smoke", workers=2) == result
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


def test_a_run_that_was_refused_its_corpus_may_be_given_another(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file or folder"):
        bench.train_run("python", "topk", 0.5, tmp_path / "run", corpus=tmp_path / "absent")
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no files in"):
        bench.train_run("python", "topk", 0.5, tmp_path / "run", preset="smoke", corpus=empty)


def test_other_settings_do_not_overwrite_a_comparison(digits: tuple[Path, dict[str, Any]]) -> None:
    out, _ = digits
    with pytest.raises(UsageError, match=r"other settings \(seed differ\)"):
        bench.run_digits(out, "smoke", seed=1, workers=2)


def test_one_process_and_two_find_the_same(digits: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = digits
    bench.run_digits(tmp_path / "alone", "smoke", workers=1)
    assert circuits_of(tmp_path / "alone") == circuits_of(out)


def test_random_weights_are_those_of_the_sparse_model_in_another_order(digits: tuple[Path, dict[str, Any]]) -> None:
    out, _ = digits
    sparse, shuffled = open_run(out / "sparse").model, open_run(out / "random").model
    for (name, a), (_, b) in zip(sparse.named_parameters(), shuffled.named_parameters(), strict=True):
        assert sorted(a.flatten().tolist()) == sorted(b.flatten().tolist()), name
        if a.dim() == 2:
            assert not a.equal(b)


def test_a_circuit_of_another_model_is_refused(digits: tuple[Path, dict[str, Any]]) -> None:
    out, result = digits
    task = next(row["task"] for row in result["tasks"] if row["sparse"]["status"] == "ok")
    folder = circuit_folder(open_run(out / "sparse"), task)
    with pytest.raises(RunError, match="found in model"):
        store.load_circuit(folder, open_run(out / "dense").digest)


def test_evidence_survives_a_second_look_and_dossiers_are_kept(digits: tuple[Path, dict[str, Any]]) -> None:
    out, result = digits
    task = next(row["task"] for row in result["tasks"] if row["sparse"]["status"] == "ok")
    folder = circuit_folder(open_run(out / "sparse"), task)
    dossier = (folder / "dossier.json").read_bytes()
    again = check_circuit(out / "sparse", task, seed=5, n_null=19)
    assert {e["claim"] for e in again["evidence"]} == CLAIMS  # the controls of the first look stay
    assert all(e["seed"] == 5 for e in again["evidence"] if "control" not in e["claim"])
    assert (folder / "dossier.json").read_bytes() == dossier
    stored = store.load_circuit(folder, open_run(out / "sparse").digest)
    assert [e.claim for e in stored.evidence] == [e["claim"] for e in again["evidence"]]


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda out: bench.train_run("python", "topkk", None, out), 'no regime named "topkk". Nearest: "topk"'),
        (lambda out: bench.train_run("pyton", "topk", None, out), 'no task to train on named "pyton"'),
        (
            lambda out: bench.train_run("digits", "dense", 0.1, out),
            "a setting of the regimes topk, rigl, l0; dense has none",
        ),
        (lambda out: bench.run_quotes(out, "cpuu"), 'no preset named "cpuu"'),
        (lambda out: bench.run_quotes(out, "smoke", tasks=("for_whlie",)), 'Nearest: "for_while"'),
        (lambda out: bench.discover_run(out, "digits", "maskz", 0.1, 0), 'no method named "maskz"'),
        (lambda out: bench.discover_run(out, "digits", "masks", -1.0, 0), "target"),
        (lambda out: bench.show_run(out / "nothing"), "no run named"),
        (lambda out: bench.run_digits(out, "smoke", device="cuda:7"), "no CUDA device"),
    ],
)
def test_what_does_not_exist_is_refused_and_nothing_is_written(ask: Any, says: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UsageError) as refusal:
        ask(out)
    assert says in str(refusal.value)
    assert not out.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_fails_says_why(workers: int, tmp_path: Path) -> None:
    assert map_jobs([Job("a", int, ("0",)), Job("b", int, ("2",))], workers, Progress(False)) == [0, 2]
    jobs = [Job("a", int, ("0",)), Job("b", open_run, (tmp_path / "absent",)), Job("c", int, ("2",))]
    with pytest.raises(UsageError, match="absent"):
        map_jobs(jobs, workers, Progress(False))


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_in_the_same_place(digits: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """kill -9 of the whole program at random moments, then once more to the end."""
    out = tmp_path / "digits"
    command = [sys.executable, "-m", "openwork", "run", "digits", "--preset", "smoke", "--out", str(out), "--json"]
    moments = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(2.0, 12.0))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    end = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, check=False)
    assert end.returncode == 0, end.stderr
    assert json.loads(end.stdout)["ratio_geomean"] == digits[1]["ratio_geomean"]
    assert circuits_of(out) == circuits_of(digits[0])
    assert not [p for p in out.rglob(".*") if p.name.endswith((".tmp", ".old"))]


def test_regimes_combine_and_each_has_its_settings(tmp_path: Path) -> None:
    result = bench.train_run(
        "digits", "topk+dropout", 0.2, tmp_path / "r", 20, "smoke", settings=("dropout.neurons=0.3", "topk.floor=0")
    )
    assert result["density_achieved"] == pytest.approx(0.2, abs=1e-3)
    regimes = files.read_yaml(tmp_path / "r" / "run.yaml")["regimes"]
    assert list(regimes) == ["topk", "dropout"]
    assert (regimes["topk"]["density"], regimes["topk"]["floor"], regimes["dropout"]["neurons"]) == (0.2, 0, 0.3)


@pytest.mark.parametrize(
    ("regime", "density", "said"),
    [
        ("topk+drpout", None, 'Nearest: "dropout"'),
        ("l1+l1", None, "named once"),
        ("l1+dropout", 0.1, "l1\\+dropout has none"),
        ("topk+l0", None, "do not compose: each decides alone"),
    ],
)
def test_regimes_that_do_not_combine_are_refused(regime: str, density: float | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        bench.train_run("digits", regime, density, tmp_path / "r", 20, "smoke")


def test_flows_have_a_command_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="openwork run flows"):
        bench.train_run("flows", "topk", 0.1, tmp_path / "run", 10, "smoke")
    assert not (tmp_path / "run").exists()
