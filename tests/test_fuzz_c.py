"""The fuzzer of the exported C: it finds what is planted, and nothing in a few seconds of the C as it is."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from openwork.export import Parts, to_c
from openwork.tasks.flows import generated
from openwork.tasks.flows.decision import Decision
from openwork.tasks.flows.schema import learn


def loaded() -> ModuleType:
    """benchmarks/fuzz_c.py as a module."""
    at = Path(__file__).parents[1] / "benchmarks" / "fuzz_c.py"
    spec = importlib.util.spec_from_file_location("fuzz_c", at)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fuzz_c = loaded()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A detector of random weights; skips where clang or its fuzzer's runtime is missing."""
    at = tmp_path_factory.mktemp("clang")
    (at / "a.c").write_text("int LLVMFuzzerTestOneInput(const char *x, long n) { (void)x; (void)n; return 0; }\n")
    try:
        command = [fuzz_c.clang(), "-fsanitize=fuzzer,address", str(at / "a.c"), "-o", str(at / "a")]
        subprocess.run(command, check=True, capture_output=True)
    except Exception as e:
        pytest.skip(f"clang or its fuzzer is not installed: {e}")
    [batch] = generated.Generated(1_000)
    schema = learn([batch], generated.LABEL)
    rng, sizes = np.random.default_rng(0), (len(schema.features), 6, len(schema.classes))
    layers = tuple(
        (rng.normal(size=(b, a)).astype(np.float32), rng.normal(size=b).astype(np.float32))
        for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    )
    decision = Decision((0.0,) * len(schema.classes), 1.0, 0.5, 0.01)
    return Parts(layers, "relu", schema.features, schema.classes, "d" * 64, schema, decision)


@pytest.mark.slow
def test_nothing_is_found_in_the_exported_c(parts: Parts, tmp_path: Path) -> None:
    result = fuzz_c.fuzzed(parts, 2, 1, tmp_path)
    assert result["findings"] == [] and result["inputs"] == []
    assert result["executions"] > 100 and 0 < result["edges_covered"] <= result["edges"]
    assert result["lines"]["executed"] > 0.9 * result["lines"]["of"]


PLANTED = {
    "too many fields": ("if (n == OPENWORK_FIELDS) return -1;", ""),
    "a feature without bounds": ("? -8.0f : z > 8.0f ? 8.0f : z;", "? z : z;"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_found(parts: Parts, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = PLANTED[what]
    assert to_c(parts).count(old) == 1
    monkeypatch.setattr(fuzz_c, "to_c", lambda p: to_c(p).replace(old, new))
    result = fuzz_c.fuzzed(parts, 20, 1, tmp_path)
    assert result["findings"] and result["inputs"]
