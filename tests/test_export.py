"""Shipped perceptrons: every format gives the model's outputs, and a detector's file judges rows as they are logged."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork import bench, store
from openwork.cli import main
from openwork.detector import Detector
from openwork.errors import RunError, UsageError
from openwork.export import FORMATS, Parts, compacted, read_npz, to_c, to_npz
from openwork.export.c import UNROLLED, quantised
from openwork.export.sparse import KERNELS, load_layer, load_network
from openwork.shipping import ARM, STRICT, export_model, flash_and_ram, has_arm, run_c
from openwork.tasks.flows import generated
from openwork.tasks.flows.decision import Decision
from openwork.tasks.flows.schema import HUGE, Schema, learn
from openwork.watch import Parser

GCC = shutil.which("gcc") or shutil.which("cc")
compiled = pytest.mark.skipif(GCC is None, reason="there is no C compiler")


def network(seed: int, sizes: tuple[int, ...], density: float, activation: str = "relu") -> Parts:
    rng = np.random.default_rng(seed)
    layers = tuple(
        ((rng.normal(size=(b, a)) * (rng.random((b, a)) < density)).astype(np.float32),
         rng.normal(size=b).astype(np.float32))
        for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    )  # fmt: skip
    names = tuple(f"in */ {i}" for i in range(sizes[0])), tuple(f'out "{i}"' for i in range(sizes[-1]))
    return Parts(compacted(layers, activation), activation, *names, "d" * 64)


CASES = {
    "sparse": network(0, (12, 20, 16, 3), 0.15),
    "silu": network(1, (12, 20, 16, 3), 0.15, "silu"),
    "tables": network(2, (60, 80, 60, 4), 0.6),
    "nothing left": network(3, (5, 6, 2), 0.0),
    "no hidden layer": network(4, (7, 2), 0.5),
    "many inputs": network(5, (400, 30, 2), 0.05),
}


def onnx_logits(content: bytes, x: np.ndarray) -> np.ndarray:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(["logits"], {"features": x})[0]


def c_logits(parts: Parts, text: str, x: np.ndarray, at: Path, *flags: str) -> np.ndarray:
    assert GCC is not None
    at.write_text(text)
    return run_c(at, parts, x, GCC, flags)


@pytest.mark.parametrize("case", CASES)
def test_every_format_gives_the_same_outputs(case: str, tmp_path: Path) -> None:
    parts = CASES[case]
    x = np.random.default_rng(9).normal(size=(200, len(parts.inputs))).astype(np.float32)
    wanted = parts.logits(x)
    rounding = 1e-6 * max(1.0, float(np.abs(wanted).max()))
    (tmp_path / "m.npz").write_bytes(to_npz(parts))
    assert read_npz(tmp_path / "m.npz").logits(x) == pytest.approx(wanted, abs=1e-6)
    if GCC:
        sanitized = ("-fsanitize=address,undefined", "-fno-sanitize-recover")
        assert c_logits(parts, to_c(parts), x, tmp_path / "m.c", *sanitized) == pytest.approx(wanted, abs=rounding)
    pytest.importorskip("onnx", reason="onnx is not installed")
    assert onnx_logits(FORMATS["onnx"][1](parts), x) == pytest.approx(wanted, abs=rounding)


def test_large_networks_are_tables_and_small_ones_lines() -> None:
    assert CASES["tables"].nonzero > UNROLLED > CASES["sparse"].nonzero
    assert "openwork_weight0" in to_c(CASES["tables"]) and "openwork_weight0" not in to_c(CASES["sparse"])


@compiled
@pytest.mark.parametrize("case", ["sparse", "silu", "nothing left", "no hidden layer"])
def test_rows_side_by_side_are_the_rows_alone(case: str, tmp_path: Path) -> None:
    parts = CASES[case]
    x = np.random.default_rng(9).normal(size=(37, len(parts.inputs))).astype(np.float32)
    many = """
#include <stdio.h>
int main(void) {
    static float x[37 * OPENWORK_FEATURES], y[37 * OPENWORK_OUTPUTS];
    if (fread(x, sizeof(float), 37 * OPENWORK_FEATURES, stdin) != 37 * OPENWORK_FEATURES) return 1;
    openwork_logits_many(x, y, 37);
    return fwrite(y, sizeof(float), 37 * OPENWORK_OUTPUTS, stdout) != 37 * OPENWORK_OUTPUTS;
}
"""
    (tmp_path / "m.c").write_text(to_c(parts) + many)
    sanitized = ("-fsanitize=address,undefined", "-fno-sanitize-recover", "-DOPENWORK_MANY")
    command = [str(GCC), *STRICT, *sanitized, str(tmp_path / "m.c"), "-o", str(tmp_path / "m"), "-lm"]
    subprocess.run(command, check=True)
    done = subprocess.run([str(tmp_path / "m")], input=x.tobytes(), capture_output=True, check=True)
    got = np.frombuffer(done.stdout, np.float32).reshape(37, -1)
    assert got == pytest.approx(parts.logits(x), abs=1e-6 * max(1.0, float(np.abs(parts.logits(x)).max())))


@compiled
def test_int8_weights_are_off_by_at_most_half_a_step(tmp_path: Path) -> None:
    parts = CASES["sparse"]
    for w, _ in parts.layers:
        small, scales = quantised(w)
        assert (np.abs(small * scales[:, None] - w) <= scales[:, None] / 2 + 1e-7).all()
    x = np.random.default_rng(9).normal(size=(50, 12)).astype(np.float32)
    rounded = tuple((q * s[:, None], b) for (w, b) in parts.layers for q, s in [quantised(w)])
    wanted = Parts(rounded, "relu", parts.inputs, parts.outputs, "").logits(x)
    assert c_logits(parts, to_c(parts, int8=True), x, tmp_path / "m.c") == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_npz_is_refused(tmp_path: Path, damage: str) -> None:
    data = to_npz(CASES["sparse"])
    (tmp_path / "m.npz").write_bytes(data[: len(data) // 2] if damage == "cut" else b"PK other")
    with pytest.raises(RunError, match="damaged"):
        read_npz(tmp_path / "m.npz")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["relu", "silu"]))
def test_compacting_changes_nothing(seed: int, activation: str) -> None:
    rng = np.random.default_rng(seed)
    sizes = (5, 8, 7, 3)
    layers = tuple(
        (rng.normal(size=(b, a)) * (rng.random((b, a)) < 0.15), rng.normal(size=b))
        for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    )
    x = rng.normal(size=(6, 5)).astype(np.float32)
    names = ("x",) * 5, ("y",) * 3
    whole = Parts(layers, activation, *names, "").logits(x)
    small = Parts(compacted(layers, activation), activation, *names, "")
    assert small.logits(x) == pytest.approx(whole, abs=1e-5)
    assert small.nonzero <= sum(int((w != 0).sum()) for w, _ in layers)


# -- detectors ---------------------------------------------------------------------------------------------------------


def detector(seed: int = 0) -> tuple[Detector, Parts, dict[str, np.ndarray]]:
    """Random weights over generated flows, a seventh of whose numbers are missing."""
    [batch] = generated.Generated(3_000)
    rows = {k: v.copy() for k, v in batch.items()}
    rng = np.random.default_rng(seed)
    for name in ("duration", "orig_bytes", "service"):
        rows[name][rng.random(len(rows[name])) < 1 / 7] = None if rows[name].dtype == object else np.nan
    rows["resp_bytes"][::500] = 1e300
    schema: Schema = learn([rows], generated.LABEL)
    sizes = (len(schema.features), 24, 16, len(schema.classes))
    parts = network(seed, sizes, 0.15)
    decision = Decision((2.0, 0.5, 2.0, -1.0, -1.5, 1.0), 1.7, 0.9, 0.01)
    (w, b), rest = parts.layers[-1], parts.layers[:-1]
    parts = Parts(
        (*rest, (w * np.float32(0.4), 0 * b)), "relu", schema.features, schema.classes, "d" * 64, schema, decision
    )
    layers = tuple((w.astype(np.float64), b.astype(np.float64)) for w, b in parts.layers)
    return Detector(schema, layers, decision, {}, "d"), parts, rows


def field(v: Any) -> str:
    return "-" if v is None or v != v else f"{v:.17g}" if isinstance(v, float) else str(v)


def log_of(rows: dict[str, np.ndarray], separator: str = ",") -> str:
    names = ["uid", *rows][::-1]
    lines = [separator.join(names)]
    for i in range(len(rows["hour"])):
        lines.append(separator.join("C1" if n == "uid" else field(rows[n][i]) for n in names))
    return "\n".join(lines) + "\n"


def program(parts: Parts, at: Path, *flags: str) -> Callable[[str | bytes], subprocess.CompletedProcess[str]]:
    assert GCC is not None
    (at / "model.c").write_text(to_c(parts))
    made = subprocess.run(
        [GCC, *STRICT, *flags, "-DOPENWORK_MAIN", str(at / "model.c"), "-o", str(at / "judge"), "-lm"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr

    def run(text: str | bytes) -> subprocess.CompletedProcess[str]:
        data = text.encode() if isinstance(text, str) else text
        done = subprocess.run([str(at / "judge")], input=data, capture_output=True, check=False)
        return subprocess.CompletedProcess([], done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@compiled
@pytest.mark.parametrize("separator", [",", "\t"])
def test_the_program_judges_a_log_as_the_detector_does(tmp_path: Path, separator: str) -> None:
    d, parts, rows = detector()
    judge = program(parts, tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover")
    done = judge(log_of(rows, separator))
    assert done.returncode == 0 and done.stderr == ""
    got = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    _, scores, classes = d.judge(rows)
    assert len(got) == len(scores) and len(set(classes.tolist())) > 2
    assert [float(s) for _, s in got] == pytest.approx(scores, abs=1e-5)
    near = np.abs(scores - d.decision.threshold) < 1e-5
    assert [c for (c, _), n in zip(got, near, strict=True) if not n] == [
        d.schema.classes[c] for c, n in zip(classes, near, strict=True) if not n
    ]


@compiled
def test_broken_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    _, parts, rows = detector()
    judge = program(parts, tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover")
    few = {k: v[:5] for k, v in rows.items()}
    lines = log_of(few).splitlines()
    good = judge("\n".join(lines) + "\n").stdout
    cells = lines[1].split(",")
    cells[lines[0].split(",").index("hour")] = "12abc"
    bad = ["a,b", ",".join(cells), '"no end', "x" * 40_000, lines[2] + ",more"]
    mixed = [lines[0], bad[0], lines[1], bad[1], bad[2], *lines[2:4], bad[3], "", bad[4], *lines[4:]]
    done = judge("\r\n".join(mixed))
    assert done.stdout == good and "5 broken lines" in done.stderr and done.returncode == 0
    quoted = "\n".join(",".join(f'"{x}"' for x in line.split(",")) for line in lines)
    assert judge(quoted).stdout == good
    assert judge("a,b,c\n1,2,3\n").returncode == 2
    assert judge("").returncode == 0


CELLS = (
    "0x10", "12 ", " 12", "1_000", "inf", "-inf", "infinity", "Inf", "nan", "NAN", "nan(1)", "1e5", "+5", ".5", "5.",
    "1e999", "-1e999", "1e300", "-1e300", "1d5", "True", "T", " T", "F ", "TT", "1e", "--1", "1e-320", "0b1", "NULL",
    "1.5f", " ", "\v3", "-0", "-", "", " -", "(empty)", "?",
)  # fmt: skip


@compiled
@pytest.mark.parametrize("column", ["orig_bytes", "hour", "duration"])
def test_an_odd_cell_is_read_as_the_watch_reads_it(tmp_path: Path, column: str) -> None:
    pytest.importorskip("polars", reason="polars is not installed")
    d, parts, _ = detector()
    judge = program(parts, tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover")
    usual = {c.name: c.values[0] if c.kind == "category" else f"{c.low:.6g}" for c in d.schema.used}
    head = ",".join(usual) + "\n"
    refused = 0
    for cell in CELLS:
        line = ",".join((usual | {column: cell}).values()) + "\n"
        batch, n, bad = Parser(d).parse((head + line).encode(), True)
        done = judge(head + line)
        assert ("1 broken lines" in done.stderr) == (len(bad) == 1) == (n == 0), (cell, n, done)
        refused += len(bad)
        if n:
            _, [score], _ = d.judge(batch)
            assert float(done.stdout.split()[1]) == pytest.approx(score, abs=1e-5), cell
    assert 10 < refused < len(CELLS) - 10
    twice = ",".join([*usual, column]) + "\n"
    assert judge(twice + ",".join(usual.values()) + ",1\n").returncode == 2


@compiled
@pytest.mark.slow
def test_random_bytes_do_not_break_the_program(tmp_path: Path) -> None:
    _, parts, rows = detector()
    judge = program(parts, tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover")
    rng = np.random.default_rng(0)
    text = log_of({k: v[:50] for k, v in rows.items()}).encode()
    head = text.split(b"\n")[0] + b"\n"
    for _ in range(150):
        data = bytearray(text)
        for i in rng.integers(0, len(data), rng.integers(1, 60)):
            data[i] = rng.integers(0, 256)
        done = subprocess.run([str(tmp_path / "judge")], input=bytes(data), capture_output=True, check=False)
        assert done.returncode in (0, 2) and b"Sanitizer" not in done.stderr and b"runtime error" not in done.stderr
        noise = head + rng.integers(0, 256, 3_000, dtype=np.uint8).tobytes()
        done = subprocess.run([str(tmp_path / "judge")], input=noise, capture_output=True, check=False)
        assert done.returncode == 0 and b"Sanitizer" not in done.stderr
    assert judge(text).returncode == 0


def test_the_onnx_file_judges_rows_as_the_detector_does() -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    d, parts, rows = detector()
    session = ort.InferenceSession(FORMATS["onnx"][1](parts), providers=["CPUExecutionProvider"])
    used = d.schema.used
    numbers = np.stack([rows[c.name] for c in used if c.kind == "number"], 1).clip(-HUGE, HUGE).astype(np.float32)
    codes = [np.array([field(v) for v in rows[c.name]], dtype=object) for c in used if c.kind == "category"]
    codes = [np.array([x.removesuffix(".0") for x in c], dtype=object) for c in codes]
    logits, score, named = session.run(
        ["logits", "score", "class"], {"numbers": numbers, "categories": np.stack(codes, 1)}
    )
    x, scores, classes = d.judge(rows)
    assert logits == pytest.approx(d.logits(x), abs=2e-5, rel=1e-5) and score == pytest.approx(scores, abs=1e-5)
    near = np.abs(scores - d.decision.threshold) < 1e-5
    assert (named == classes)[~near].all()
    kept = json.loads(session.get_modelmeta().custom_metadata_map["openwork"])
    assert Schema.from_dict(kept["schema"]) == d.schema


# -- ARM ---------------------------------------------------------------------------------------------------------------

arm = pytest.mark.skipif(not has_arm(), reason="no compiler for ARM, or no qemu-arm: make arm")


@arm
@compiled
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("int8", [False, True])
def test_arm_computes_what_this_machine_does(case: str, int8: bool, tmp_path: Path) -> None:
    parts = CASES[case]
    x = np.random.default_rng(9).normal(size=(100, len(parts.inputs))).astype(np.float32)
    (tmp_path / "m.c").write_text(to_c(parts, int8))
    here = run_c(tmp_path / "m.c", parts, x, str(GCC))
    there = run_c(tmp_path / "m.c", parts, x, ARM[0], ARM[1], ARM[2])
    assert (np.abs(here - there) / np.maximum(1, np.abs(here))).max() < 1e-5
    assert np.abs(there).max() > 0


@arm
def test_a_log_is_judged_on_arm_as_by_the_detector(tmp_path: Path) -> None:
    d, parts, rows = detector()
    few = {k: v[:600] for k, v in rows.items()}
    (tmp_path / "model.c").write_text(to_c(parts))
    command = [ARM[0], *STRICT, *ARM[1], "-DOPENWORK_MAIN", str(tmp_path / "model.c"), "-o", str(tmp_path / "judge")]
    subprocess.run([*command, "-lm"], check=True)
    done = subprocess.run(
        [*ARM[2], str(tmp_path / "judge")], input=log_of(few).encode(), capture_output=True, check=True
    )
    scores = [float(line.rsplit(b" ", 1)[1]) for line in done.stdout.splitlines()]
    assert scores == pytest.approx(d.judge(few)[1], abs=1e-5) and done.stderr == b""


@pytest.mark.skipif(not shutil.which("arm-none-eabi-gcc"), reason="no compiler for ARM Cortex-M: make arm")
def test_bytes_are_told_for_small_machines(tmp_path: Path) -> None:
    _, parts, _ = detector()
    told = {}
    for name, int8 in (("c", False), ("int8", True)):
        (tmp_path / "m.c").write_text(to_c(parts, int8))
        told[name] = flash_and_ram(tmp_path / "m.c")
        for machine in ("cortex_m4_", "cortex_m0_"):
            # at least the weights, at most what a small controller has
            assert parts.nonzero * (1 if int8 else 4) < told[name][f"{machine}flash_bytes"] < 65_536
            assert told[name][f"{machine}ram_bytes"] < 4_096
    assert told["int8"]["cortex_m4_flash_bytes"] < told["c"]["cortex_m4_flash_bytes"]


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sparse network on digits."""
    at = tmp_path_factory.mktemp("digits") / "run"
    bench.train_run("digits", "topk", 0.1, at, 300, "smoke")
    return at


@pytest.mark.slow
@pytest.mark.parametrize("to", [*FORMATS, "torch"])
def test_a_run_is_exported_executed_and_reported(digits: Path, tmp_path: Path, to: str) -> None:
    if to == "onnx":
        pytest.importorskip("onnx", reason="onnx is not installed")
    result = export_model(digits, to, tmp_path / "out")
    assert result["largest_difference"] < (0.5 if to == "c-int8" else 1e-5)
    assert store.read_json(tmp_path / "out" / "export.json")["digest"] == store.model_digest(
        store.load_model(digits / "model")
    )
    if to == "c" and GCC:
        assert 0 < result["flash_bytes"] < 65_536
    again = export_model(digits, to, tmp_path / "out")
    assert {k: v for k, v in again.items() if "bytes" not in k} == {k: v for k, v in result.items() if "bytes" not in k}


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="onx"):
        export_model(digits, "onx", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="other files"):
        export_model(digits, "npz", tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    bench.train_run("patterns", "dense", None, tmp_path / "words", 1, "smoke")
    with pytest.raises(UsageError, match="Transformer"):
        export_model(tmp_path / "words", "c", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert main(["export", str(digits), "--to", "c", "--circuit", "x", "--out", str(tmp_path / "o")]) == 2
    assert "leave --circuit out" in capsys.readouterr().err
    assert main(["export", str(digits), "--to", "eap-ig", "--out", str(tmp_path / "o")]) == 2
    assert main(["export", str(digits), "--to", "npz", "--out", str(tmp_path / "o"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["executed_by"] == "numpy"


# -- sparse inference --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", sorted(KERNELS))
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
def test_every_kernel_is_the_same_product(kernel: str, batch: int, density: float) -> None:
    rng = np.random.default_rng(0)
    w = (rng.normal(size=(9, 14)) * (rng.random((9, 14)) < density)).astype(np.float32)
    x = rng.normal(size=(14, batch)).astype(np.float32)
    assert KERNELS[kernel](w)(x) == pytest.approx(w @ x, abs=1e-5)


def test_the_fastest_kernel_is_taken_at_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {
        1: {"dense": 2.0, "scipy_csr": 1.0, "torch_csr": 3.0},
        64: {"dense": 1.0, "scipy_csr": 2.0, "torch_csr": 3.0},
    }
    monkeypatch.setattr("openwork.export.sparse.measured", lambda kernels, x: times[x.shape[1]])
    layer = load_layer(CASES["sparse"].layers[0], sizes=(1, 64))
    assert dict(layer.chosen) == {1: "scipy_csr", 64: "dense"}
    taken: list[str] = []

    def taking(name: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: taken.append(name) or np.zeros((len(layer.bias), x.shape[1]))  # type: ignore[func-returns-value]

    layer = replace(layer, kernels={name: taking(name) for name in layer.kernels})
    for batch in (1, 2, 40, 500):
        layer(np.zeros((12, batch), dtype=np.float32))
    assert taken == ["scipy_csr", "scipy_csr", "dense", "dense"]


@pytest.mark.parametrize("case", ["sparse", "silu", "many inputs"])
def test_a_network_of_sparse_layers_is_the_network(case: str) -> None:
    parts = CASES[case]
    run = load_network(parts.layers, parts.activation, sizes=(1, 8))
    for batch in (1, 8, 30):
        x = np.random.default_rng(batch).normal(size=(batch, len(parts.inputs))).astype(np.float32)
        assert run(x) == pytest.approx(parts.logits(x), abs=1e-4)
    assert [c["shape"] for c in run.choices()] == [w.shape for w, _ in parts.layers]
    with pytest.raises(UsageError, match="gelu"):
        load_network(parts.layers, "gelu")
