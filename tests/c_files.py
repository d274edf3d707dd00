"""C files of programs, built and run: what the tests of everything that is written down as C share."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

GCC = shutil.which("gcc") or shutil.which("cc")
needs_compiler = pytest.mark.skipif(GCC is None, reason="no C compiler found: apt-get install gcc")
STRICT = ["-Wall", "-Wextra", "-Werror", "-std=c99", "-pedantic", "-O1"]
SANITIZED = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build(text: str, folder: Path, *flags: str) -> Path:
    """The executable of a C file."""
    assert GCC is not None
    source, out = folder / "program.c", folder / "program"
    source.write_text(text, encoding="utf-8")
    made = subprocess.run([GCC, *STRICT, *flags, str(source), "-o", str(out), "-lm"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return out


def ask(binary: Path, text: str) -> subprocess.CompletedProcess[str]:
    """What the executable makes of this stdin."""
    return subprocess.run([str(binary)], input=text, capture_output=True, text=True, timeout=60)


def lines_of(*inputs: np.ndarray) -> str:
    """Examples as the executable reads them."""
    if len(inputs) == 1:
        return "".join(" ".join(map(repr, row.tolist())) + "\n" for row in inputs[0])
    tokens, at = inputs
    return "".join(" ".join(map(str, row[: a + 1].tolist())) + "\n" for row, a in zip(tokens, at, strict=True))


def logits_of(done: subprocess.CompletedProcess[str]) -> np.ndarray:
    assert done.returncode == 0, done.stderr
    return np.array([[float(x) for x in line.split()] for line in done.stdout.splitlines()])
