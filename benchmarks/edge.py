"""A detector as exported C beside onnxruntime, and sparse layers beside dense ones; writes docs/results/edge.md.

    python benchmarks/edge.py RUN [--rounds 9]

RUN is a folder of `openwork run flows`. Everything is timed on one thread, alternatives in turn within every round;
medians of CPU time are given; ratios tell more than times on a machine that others use. The C is compiled with -O2
beforehand and called through ctypes: row by row from a loop in C over changing rows, as a program on a router would
call it. onnxruntime is called row by row from Python, as its users call it; that costs it a few microseconds a row, so
the time of an empty graph is given beside it.

With `make arm`, bytes are those of Cortex-M4 and M0 too, and the C is compiled for Cortex-A and executed by qemu; that
says what it computes there, not how fast. What weights of one byte cost is told on the whole verify split, which
neither training nor the threshold has seen.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from openwork import threads  # noqa: F401  before torch

import numpy as np  # isort: skip
import torch  # isort: skip

from openwork.export import Parts, to_c, to_onnx
from openwork.export.sparse import load_layer
from openwork.files import write_text
from openwork.runs import open_run
from openwork.shipping import ARM, flash_and_ram, has_arm, parts_of, run_c

PAGE = Path(__file__).parents[1] / "docs" / "results" / "edge.md"
ROWS = 1_024
ENOUGH = 0.01  # seconds that a measurement takes at least

LOOP = """
void openwork_rows(const float *x, float *y, int rows) {
    for (int i = 0; i < rows; i++) openwork_logits(x + (size_t)i * OPENWORK_FEATURES, y + (size_t)i * OPENWORK_OUTPUTS);
}
"""


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    run = open_run(asked.run / "sparse")
    parts = parts_of(run)
    data: Any = run.subject.training_data(1, 0)
    n = data.prepared.rows("verify")
    x = data.prepared.features("verify", np.linspace(0, n - 1, ROWS).astype(int))
    with tempfile.TemporaryDirectory() as temp:
        detector = detectors(parts, x, asked.rounds, Path(temp))
        small = machines(parts, x, Path(temp))
        bytes_cost = rounded(parts, data, Path(temp)) if parts.decision is not None else None
    layers = [layer(density, asked.rounds) for density in (0.01, 0.001)]
    write_text(asked.page, page(str(asked.run), parts, detector, layers, asked.rounds, small, bytes_cost))
    print(asked.page)


def interleaved(ways: Mapping[str, Callable[[], Any]], rounds: int, per: int = 1) -> dict[str, float]:
    """Median microseconds of each way, per so many things."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    repeats = {}
    for name, way in ways.items():
        way()
        began = time.process_time()
        way()
        repeats[name] = max(1, int(ENOUGH / max(time.process_time() - began, 1e-6)))
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.process_time()
            for _ in range(repeats[name]):
                way()
            times[name].append((time.process_time() - began) / repeats[name] / per * 1e6)
    return {name: statistics.median(t) for name, t in times.items()}


def session_of(content: bytes) -> Any:
    """An onnxruntime session on one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def detectors(parts: Parts, x: np.ndarray, rounds: int, temp: Path) -> dict[str, Any]:
    """Microseconds per row of the exported C and of onnxruntime, both from features to outputs."""
    plain = Parts(parts.layers, parts.activation, parts.inputs, parts.outputs, parts.digest)
    compiler = next(c for c in ("gcc", "cc", "clang") if shutil.which(c))
    (temp / "model.c").write_text(to_c(plain) + LOOP)
    shared = [compiler, "-std=c99", "-O2", "-shared", "-fPIC", "-DOPENWORK_MANY"]
    command = [*shared, str(temp / "model.c"), "-o", str(temp / "model.so"), "-lm"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(temp / "model.so"))
    y = np.zeros((len(x), len(parts.outputs)), np.float32)
    x = np.ascontiguousarray(x)
    at = [v.ctypes.data_as(ctypes.c_void_p) for v in (x, y)]
    session = session_of(to_onnx(plain))
    empty = session_of(
        to_onnx(Parts(((np.zeros((1, 1), np.float32), np.zeros(1, np.float32)),), "relu", ("x",), ("y",), ""))
    )
    one, rows = np.zeros((1, 1), np.float32), [x[i : i + 1] for i in range(len(x))]

    def each(run: Callable[[np.ndarray], Any]) -> Callable[[], None]:
        def all_rows() -> None:
            for row in rows:
                run(row)

        return all_rows

    result: dict[str, Any] = interleaved(
        {
            "C": lambda: library.openwork_rows(at[0], at[1], len(x)),
            "C_many": lambda: library.openwork_logits_many(at[0], at[1], ctypes.c_size_t(len(x))),
            "ort_rows": each(lambda row: session.run(None, {"features": row})),
            "ort_empty": each(lambda _row: empty.run(None, {"features": one})),
            "ort_batch": lambda: session.run(None, {"features": x}),
        },
        rounds, len(x),
    )  # fmt: skip
    wanted = session.run(None, {"features": x})[0]
    library.openwork_rows(at[0], at[1], len(x))
    result["difference"] = float((np.abs(wanted - y) / np.maximum(1, np.abs(wanted))).max())
    subprocess.run([compiler, "-std=c99", "-Os", "-c", str(temp / "model.c"), "-o", str(temp / "model.o")], check=True)
    told = subprocess.run(["size", str(temp / "model.o")], capture_output=True, text=True, check=True).stdout
    result["flash"] = sum(map(int, told.splitlines()[1].split()[:2]))
    return result


def machines(parts: Parts, x: np.ndarray, temp: Path) -> dict[str, Any]:
    """Bytes of the exported C per format, and how far its outputs on Cortex-A are from those here."""
    out: dict[str, Any] = {}
    for name in ("c", "c-int8"):
        at = temp / f"{name}.c"
        at.write_text(to_c(parts, int8=name == "c-int8"))
        out[name] = {"bytes": flash_and_ram(at)}
        if has_arm():
            here = run_c(at, parts, x, next(c for c in ("gcc", "cc") if shutil.which(c)))
            there = run_c(at, parts, x, ARM[0], ARM[1], ARM[2])
            out[name]["arm"] = float((np.abs(here - there) / np.maximum(1, np.abs(here))).max())
    return out


def rounded(parts: Parts, data: Any, temp: Path) -> dict[str, dict[str, float]]:
    """Rates on the whole verify split of the C with weights of four bytes and of one."""
    assert parts.decision is not None
    prepared = data.prepared
    n = prepared.rows("verify")
    x, labels = prepared.features("verify", np.arange(n)), prepared.labels("verify")
    compiler = next(c for c in ("gcc", "cc", "clang") if shutil.which(c))
    out: dict[str, dict[str, float]] = {}
    decided: dict[str, np.ndarray] = {}
    for name in ("c", "c-int8"):
        at = temp / f"whole-{name}.c"
        at.write_text(to_c(parts, int8=name == "c-int8"))
        logits = run_c(at, parts, x, compiler)
        best, decided[name] = parts.decision.probabilities(logits).argmax(1), parts.decision.decide(logits)
        out[name] = {
            "n": n, "accuracy": float((best == labels).mean()),
            "attack_accuracy": float(((best > 0) == (labels > 0)).mean()),
            "detection_rate": float((decided[name][labels > 0] > 0).mean()),
            "false_alarm_rate": float((decided[name][labels == 0] > 0).mean()),
        }  # fmt: skip
    out["c-int8"]["decided_otherwise"] = int((decided["c"] != decided["c-int8"]).sum())
    return out


def layer(density: float, rounds: int) -> dict[str, Any]:
    """Microseconds of a 2048 x 2048 layer, chosen kernel beside dense torch and onnxruntime, by batch size."""
    rng = np.random.default_rng(0)
    w = (rng.normal(size=(2048, 2048)) * (rng.random((2048, 2048)) < density)).astype(np.float32)
    b = np.zeros(2048, np.float32)
    loaded = load_layer((w, b))
    linear = torch.nn.Linear(2048, 2048)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(w))
        linear.bias.zero_()
    names = tuple(map(str, range(2048)))
    session = session_of(to_onnx(Parts(((w, b),), "relu", names, names, "")))
    out: dict[str, Any] = {"density": density}
    for n in (1, 16, 256):
        x = rng.normal(size=(n, 2048)).astype(np.float32)
        columns, tensor = np.ascontiguousarray(x.T), torch.from_numpy(x)

        def dense(tensor: torch.Tensor = tensor) -> torch.Tensor:
            with torch.no_grad():
                return linear(tensor)

        out[n] = interleaved(
            {
                "sparse": lambda c=columns: loaded(c),
                "torch": dense,
                "onnxruntime": lambda x=x: session.run(None, {"features": x}),
            },
            rounds,
        )
        out[n]["kernel"] = loaded.chosen[n]
        out[n]["difference"] = float(np.abs(loaded(columns).T - dense().numpy()).max())
    return out


def small_machines(small: Mapping[str, Any], cost: Mapping[str, Mapping[str, float]] | None) -> list[str]:
    """The sections about bytes, ARM, and weights of one byte."""
    names = {"": "this machine", "cortex_m4_": "Cortex-M4", "cortex_m0_": "Cortex-M0"}
    rows = [
        f"| {'weights of one byte' if name == 'c-int8' else 'weights of four bytes'} | {machine} | "
        f"{r['bytes'][f'{key}flash_bytes'] / 1024:.1f} | {r['bytes'][f'{key}ram_bytes']} |"
        for name, r in small.items()
        for key, machine in names.items()
        if f"{key}flash_bytes" in r["bytes"]
    ]
    lines = [
        "## Bytes",
        "The whole judge, from a row's values to its class, compiled with -Os; the stack, and what is called of libm, "
        "come on top; so does, on the M0, arithmetic with floats, for which it has no instructions.",
        "| | machine | flash, KiB | RAM, bytes |\n|---|---|---|---|\n" + "\n".join(rows),
    ]
    if all("arm" in r for r in small.values()):
        lines.append(
            f"Compiled for Cortex-A (`{ARM[0]} {' '.join(ARM[1])}`) and executed by `{ARM[2][0]}` on {ROWS:,} held-out "
            "rows, the outputs "
            + " and ".join(
                (f"differ from those here by at most {r['arm']:.1e}" if r["arm"] else "are those here, bit for bit")
                + f" ({name})"
                for name, r in small.items()
            )
            + "; differences are relative to the larger of 1 and the output."
        )
    else:
        lines.append("Nothing was compiled for ARM Cortex-A: run `make arm` first.")
    if cost is not None:
        head = ["accuracy", "attack_accuracy", "detection_rate", "false_alarm_rate"]
        a, b = cost["c"], cost["c-int8"]
        lines += [
            "## Weights of one byte",
            f"On all {int(a['n']):,} held-out flows (verify split), by the compiled C; calibration and threshold are "
            f"those of the four-byte weights. {int(b['decided_otherwise']):,} flows are decided otherwise.",
            "| weights | accuracy | attack or not | detected | false alarms |\n|---|---|---|---|---|\n"
            + "\n".join(
                f"| {words} | " + " | ".join(f"{100 * r[k]:.2f} %" for k in head) + " |"
                for words, r in (("four bytes", a), ("one byte", b))
            )
            + "\n| difference, points | "
            + " | ".join(f"{100 * (b[k] - a[k]):+.2f}" for k in head)
            + " |",
        ]
    return lines


def page(
    name: str, parts: Parts, d: Mapping[str, Any], layers: list[dict[str, Any]], rounds: int, small: Mapping[str, Any],
    cost: Mapping[str, Mapping[str, float]] | None,
) -> str:  # fmt: skip
    """The page as Markdown."""
    lines = [
        "# Results: on the device",
        f"Made by `python benchmarks/edge.py {name}`, a run of `openwork run flows`. One thread, alternatives "
        f"in turn, medians of {rounds} rounds; ratios are what to read. See [flows](../flows.md).",
        "## A detector, from features to outputs",
        f"{' - '.join(map(str, parts.sizes))} nodes, {parts.nonzero} weights; {d['flash'] / 1024:.1f} KiB of code and "
        f"constants (gcc -Os). The outputs differ from onnxruntime's by at most {d['difference']:.1e}.",
        "| | µs per row | times the C |\n|---|---|---|\n"
        f"| exported C, row by row | {d['C']:.2f} | 1 |\n"
        f"| onnxruntime, row by row | {d['ort_rows']:.2f} | **{d['ort_rows'] / d['C']:.1f}** |\n"
        f"| onnxruntime, an empty graph row by row | {d['ort_empty']:.2f} | {d['ort_empty'] / d['C']:.1f} |\n"
        f"| exported C, batches of {ROWS:,} (`-DOPENWORK_MANY`) | {d['C_many']:.2f} | {d['C_many'] / d['C']:.2f} |\n"
        f"| onnxruntime, batches of {ROWS:,} | {d['ort_batch']:.2f} | "
        f"{d['ort_batch'] / d['C']:.1f} (**{d['ort_batch'] / d['C_many']:.1f}** times the C in batches) |",
        *small_machines(small, cost),
        "## Sparse layers of 2048 x 2048",
        "The kernel is chosen by measurement when a layer is loaded (`openwork.export.sparse`).",
        "| density | batch | kernel | µs | dense torch, times | onnxruntime, times | largest difference |\n"
        "|---|---|---|---|---|---|---|\n"
        + "\n".join(
            f"| {100 * r['density']:g} % | {n} | {r[n]['kernel']} | {r[n]['sparse']:.0f} | "
            f"**{r[n]['torch'] / r[n]['sparse']:.1f}** | **{r[n]['onnxruntime'] / r[n]['sparse']:.1f}** | "
            f"{r[n]['difference']:.1e} |"
            for r in layers
            for n in (1, 16, 256)
        ),
    ]
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
