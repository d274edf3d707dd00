"""Kills a comparison at random moments, resumes it each time, and compares its end with that of a quiet run.

    python benchmarks/kills.py [--kills 10] [--seed 7] [--runs runs/kills]

Prints one line per kill and what differs at the end; exit code 1 if anything does, or if a broken file is left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TENSORS = ("model.safetensors", "tensors.safetensors")
CLOCKS = ("seconds", "cpu_seconds", "tokens_per_second", "projection_share", "run", "page")


def command(out: Path) -> list[str]:
    """The smallest comparison on Python source."""
    return [
        sys.executable, "-m", "openwork", "run", "quotes", "--preset", "smoke", "--out", str(out), "--workers", "2",
        "--json",
    ]  # fmt: skip


def run(out: Path) -> dict[str, Any]:
    """Runs to the end."""
    print(f"to the end: {out}", flush=True)
    return json.loads(subprocess.run(command(out), stdout=subprocess.PIPE, check=True).stdout)


def kill_after(out: Path, seconds: float) -> bool:
    """Starts or resumes, and kills the whole program after so many seconds; False if it was done before."""
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(2.0)  # its workers notice
        return True


def tensors_of(out: Path) -> dict[str, str]:
    """SHA-256 of every model and circuit."""
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*.safetensors"))
        if p.name in TENSORS
    }


def without_clocks(value: Any) -> Any:
    """A result without what a clock said."""
    if isinstance(value, dict):
        return {k: without_clocks(v) for k, v in value.items() if k not in CLOCKS}
    return [without_clocks(v) for v in value] if isinstance(value, list) else value


def compare(quiet: Path, killed: Path, results: Sequence[dict[str, Any]]) -> list[str]:
    """What differs, in words."""
    a, b = tensors_of(quiet), tensors_of(killed)
    wrong = [f"{name} differs or is missing" for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    wrong += [f"{p} was left behind" for p in killed.rglob(".*") if p.name != ".gitignore"]
    first, second = map(without_clocks, results)
    wrong += [f'"{k}" of the result differs' for k in first if first[k] != second.get(k)]
    print(f"{len(a)} files of tensors compared")
    return wrong


def main() -> None:
    """Kills, resumes, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--runs", type=Path, default=Path("runs/kills"))
    asked = parser.parse_args()
    moments = random.Random(asked.seed)
    shutil.rmtree(asked.runs, ignore_errors=True)
    quiet, killed = asked.runs / "quiet", asked.runs / "killed"
    expected, wrong, done = run(quiet), [], 0
    while done < asked.kills:
        if kill_after(killed, moments.uniform(3.0, expected["seconds"])):
            done += 1
            found = len(list(killed.rglob("result.json")))
            print(f"{done}: killed, with {found} results on disk", flush=True)
        else:  # this life reached the end: compare, and begin anew
            wrong += compare(quiet, killed, (expected, run(killed)))
            shutil.rmtree(killed)
    wrong += compare(quiet, killed, (expected, run(killed)))
    print("\n".join(wrong) or "the same circuits, models and figures; no broken file")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
