"""`openwork export RUN --to c|c-int8|onnx|npz|torch --out DIR`: a trained perceptron as files for another machine.

Every export is executed before it is reported, where this machine can: its outputs on held-out inputs must agree with
PyTorch's within TOLERANCE, and the largest difference seen is part of the result. Knows runs, formats and compilers.

    DIR/  model.c | model.onnx | model.npz | model/     export.json: digest, sizes, agreement
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openwork import store
from openwork.detector import load_detector
from openwork.errors import RunError, UsageError, unknown
from openwork.export import FORMATS, Parts, compacted, read_npz
from openwork.files import new_folder, write_bytes, write_json
from openwork.models import build
from openwork.models.mlp import MLP
from openwork.own import SUBJECT
from openwork.runs import Run, open_run
from openwork.tasks.flows.flows import FlowData

Record = dict[str, Any]

TOLERANCE = 1e-5  # of outputs, relative to the larger of 1 and their size
ROWS = 2_000  # held-out inputs that exports are compared on
CC = ("cc", "gcc", "clang")
ARM = "arm-linux-gnueabihf-gcc", ("-static",), ("qemu-arm",)  # compiler for Cortex-A, its flags, what executes it here
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2")


def parts_of(run: Run) -> Parts:
    """What is shipped of a run's perceptron; UsageError for another kind of model."""
    model = run.model
    if not isinstance(model, MLP) or model.embed is not None or model.config.abstopk < 1:
        raise UsageError(
            f"{run.path} holds a {type(model).__name__}; an MLP without an embedding or AbsTopK can be exported, which "
            "openwork.read_sequential makes of a plain nn.Sequential."
        )
    subject = run.settings["subject"]
    how = "a model trained elsewhere" if subject == SUBJECT else f"trained on {subject}"
    about = [f"From the run {run.path.name}, {how}."]
    if (run.path / "detector" / "detector.json").exists():
        d = load_detector(run.path)
        layers = tuple((w.astype(np.float32), b.astype(np.float32)) for w, b in compacted(d.layers))
        return Parts(
            layers, "relu", d.schema.features, d.schema.classes, d.digest, d.schema, d.decision,
            (*about, "It judges network flows; see openwork_judge."),
        )  # fmt: skip
    activation = model.config.activation
    pairs = [
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())  # type: ignore[union-attr]
        for layer in model.layers
    ]
    layers = tuple((w.astype(np.float32), b.astype(np.float32)) for w, b in compacted(pairs, activation))
    inputs = tuple(getattr(run.subject, "features", ())) or tuple(f"x{i}" for i in range(model.config.inputs))
    outputs = tuple(str(i) for i in range(model.config.outputs))
    return Parts(layers, activation, inputs, outputs, run.digest, about=tuple(about))


def export_model(path: Path, to: str, out: Path) -> Record:
    """Writes a run's perceptron in a format, executes it, and reports sizes and agreement.

    RunError where the export does not agree with PyTorch; then nothing is left in `out`.
    """
    if to not in (*FORMATS, "torch"):
        raise unknown("format", to, (*FORMATS, "torch"))
    at = path / "sparse" if (path / "sparse" / "model").is_dir() else path
    run = open_run(at)
    parts = parts_of(run)
    if out.exists() and any(out.iterdir()) and not (out / "export.json").exists():
        raise UsageError(f"{out} holds other files; name a new folder for the export.")
    x = _inputs(run)
    with torch.no_grad():
        wanted = run.model(torch.from_numpy(x)).numpy()
    with new_folder(out) as temp:
        if to == "torch":
            name, size = "model", _torch(temp / "model", parts)
        else:
            name, make = FORMATS[to]
            content = make(parts)
            write_bytes(temp / name, content)
            size = len(content)
        got, how = _executed(to, temp / name, parts, x)
        result: Record = {
            "run": str(at), "to": to, "file": str(out / name), "bytes": size, "digest": parts.digest,
            "nodes": parts.sizes, "weights": parts.nonzero,
            "operations": 2 * parts.nonzero + sum(parts.sizes[1:]), "executed_by": how, "inputs_compared": len(x),
        }  # fmt: skip
        if got is not None:
            off = float((np.abs(got - wanted) / np.maximum(1, np.abs(wanted))).max())
            same = float((got.argmax(1) == wanted.argmax(1)).mean())
            result |= {"largest_difference": off, "same_decision": same}
            if to != "c-int8" and off > TOLERANCE:
                raise RunError(
                    f"the {to} export differs from PyTorch by {off:.2g}, more than {TOLERANCE:g}; please report this."
                )
        if to.startswith("c"):
            result |= flash_and_ram(temp / name)
        write_json(temp / "export.json", result | parts.metadata())
    return result


def _inputs(run: Run) -> np.ndarray:
    """Held-out inputs float32 [N, F]."""
    data: Any = run.subject.training_data(64, 0)
    if isinstance(data, FlowData):
        n = data.prepared.rows("verify")
        return data.prepared.features("verify", np.linspace(0, n - 1, min(n, ROWS)).astype(int))
    some = [inputs[0] for inputs, _ in data.held_out("verify")]
    return torch.cat(some)[:ROWS].float().numpy()


def _torch(folder: Path, parts: Parts) -> int:
    """The compacted network as a model folder of openwork."""
    sizes = parts.sizes
    hidden = [max(1, n) for n in sizes[1:-1]]
    config = {"kind": "mlp", "inputs": sizes[0], "hidden": hidden, "outputs": sizes[-1], "activation": parts.activation}
    model = build(config, 0)
    with torch.no_grad():
        for layer, (w, b) in zip(model.layers, parts.layers, strict=True):  # type: ignore[arg-type]
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[: w.shape[0], : w.shape[1]] = torch.from_numpy(w)
            layer.bias[: len(b)] = torch.from_numpy(b)
    store.save_model(folder, model, {"exported": parts.metadata()})
    return sum(p.stat().st_size for p in folder.iterdir())


def _executed(to: str, at: Path, parts: Parts, x: np.ndarray) -> tuple[np.ndarray | None, str]:
    """Outputs [N, C] of an export on features [N, F], and by what; None where nothing here can run it."""
    if to == "torch":
        model = store.load_model(at).eval()
        with torch.no_grad():
            return model(torch.from_numpy(x)).numpy(), "torch"
    if to == "npz":
        return read_npz(at).logits(x), "numpy"
    if to == "onnx":
        try:
            import onnxruntime as ort
        except ImportError:
            return None, "nothing: onnxruntime is not installed"
        session = ort.InferenceSession(at.read_bytes(), providers=["CPUExecutionProvider"])
        # a detector's file takes rows; its features are an inner value, which can be fed as well
        if parts.schema is None:
            return np.asarray(session.run(["logits"], {"features": x})[0]), "onnxruntime"
        return ort_on_features(at, x), "onnxruntime"
    compiler = next((c for c in CC if shutil.which(c)), None)
    if compiler is None:
        return None, "nothing: there is no C compiler"
    return run_c(at, parts, x, compiler), compiler


def ort_on_features(at: Path, x: np.ndarray) -> np.ndarray:
    """What the part of a detector's ONNX file after the features makes of features [N, F]."""
    import onnx
    import onnxruntime as ort
    from onnx import utils

    with tempfile.TemporaryDirectory() as temp:
        part = Path(temp) / "part.onnx"
        utils.extract_model(str(at), str(part), ["features"], ["logits"], check_model=False)
        onnx.checker.check_model(str(part))
        session = ort.InferenceSession(part.read_bytes(), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(["logits"], {"features": x.astype(np.float32)})[0])


HARNESS = """
#include <stdio.h>
int main(void) {
    float x[OPENWORK_FEATURES], y[OPENWORK_OUTPUTS];
    while (fread(x, sizeof(float), OPENWORK_FEATURES, stdin) == OPENWORK_FEATURES) {
        openwork_logits(x, y);
        if (fwrite(y, sizeof(float), OPENWORK_OUTPUTS, stdout) != OPENWORK_OUTPUTS) return 1;
    }
    return 0;
}
"""


def run_c(
    at: Path, parts: Parts, x: np.ndarray, compiler: str, flags: tuple[str, ...] = (), by: tuple[str, ...] = ()
) -> np.ndarray:
    """Compiles a C export, warnings as errors, and gives its outputs [N, C] of features [N, F].

    by  what executes the program where this machine does not, such as ("qemu-arm",)
    """
    with tempfile.TemporaryDirectory() as temp:
        source, program = Path(temp) / "harness.c", Path(temp) / "harness"
        source.write_text(at.read_text() + HARNESS)
        command = [compiler, *STRICT, *flags, str(source), "-o", str(program), "-lm"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise RunError(f"{compiler} refuses the exported C: {made.stderr.strip().splitlines()[0]}")
        ran = subprocess.run(
            [*by, str(program)], input=x.astype(np.float32).tobytes(), capture_output=True, check=False
        )
        if ran.returncode:
            raise RunError(f"the exported C ended with code {ran.returncode}: {ran.stderr.decode()[:300]}")
        return np.frombuffer(ran.stdout, np.float32).reshape(len(x), len(parts.outputs)).copy()


def flash_and_ram(at: Path) -> Record:
    """Bytes of code and constants (flash) and of variables (RAM without the stack) as `size` tells them of an object
    file; for ARM Cortex-M4 and M0 too, where their compiler is there (`make arm`). What is called of libm and, on the
    M0, of the arithmetic that it has no instructions for is not part of it. Nothing where there is no compiler."""
    out: Record = {}
    bare = [c for c in ("arm-none-eabi-gcc",) if shutil.which(c)]
    machines = {
        "": ([c for c in CC if shutil.which(c)][:1], ()),
        "cortex_m4_": (bare, ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")),
        "cortex_m0_": (bare, ("-mcpu=cortex-m0", "-mthumb")),
    }
    for name, (compilers, flags) in machines.items():
        if not compilers:
            continue
        with tempfile.TemporaryDirectory() as temp:
            compiled = Path(temp) / "model.o"
            command = [compilers[0], "-std=c99", "-Os", *flags, "-c", str(at), "-o", str(compiled)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                continue
            tool = compilers[0].replace("gcc", "size") if name else "size"
            told = subprocess.run([tool, str(compiled)], capture_output=True, text=True, check=False)
            if told.returncode == 0:
                text, data, bss = map(int, told.stdout.splitlines()[1].split()[:3])
                out |= {f"{name}flash_bytes": text + data, f"{name}ram_bytes": data + bss}
    return out


def has_arm() -> bool:
    """Whether programs for ARM Cortex-A can be compiled and executed here."""
    return all(shutil.which(name) for name in (ARM[0], *ARM[2]))


__all__ = ["ARM", "STRICT", "export_model", "flash_and_ram", "has_arm", "ort_on_features", "parts_of", "run_c"]
