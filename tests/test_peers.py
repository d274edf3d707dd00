"""The comparison with other tools says so where its model is missing, and its page repeats the figures it quotes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import openwork

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results" / "peers.md"


def test_without_the_model_nothing_is_measured_and_nothing_written(tmp_path: Path) -> None:
    before = PAGE.stat().st_mtime_ns
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--data", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(Path(openwork.__file__).parents[1])}
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=env, timeout=120)
    assert (
        ran.stdout == f"The model and the prompts are not in {tmp_path}; nothing was measured. "
        "--data names another folder.\n"
    )
    assert PAGE.stat().st_mtime_ns == before


def test_the_page_says_whose_figures_it_quotes_and_how_they_compare() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "another machine of the same kind" in text
    for tool in ("AutoCircuit", "EAP-IG repository", "original ACDC", "**openwork**"):
        assert tool in text
