"""Modules of detectors, how alike seeds are, what modules cost a watch; writes docs/results/flow_modules.md.

    python benchmarks/flow_modules.py runs/flows/generated runs/flows/nsl

Runs are finished folders of `openwork run flows`; the first is watched. One log of generated flows, about one in a
hundred an attack, is judged by the detector as it is and by a copy without modules.json, in turns, each in a process of
its own. What is compared is CPU time from start to end, and that of the judging alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openwork import threads  # noqa: F401  before torch

import numpy as np  # isort: skip

from watch import finished, make_log

from openwork.between_seeds import compare_seeds
from openwork.detector import load_detector
from openwork.files import read_json, write_text
from openwork.tasks.flows.prepared import Prepared

Record = Mapping[str, Any]

PAGE = Path(__file__).parents[1] / "docs" / "results" / "flow_modules.md"
WATCH = """
import sys, time
from pathlib import Path
from openwork.watch import watch
began = time.process_time()
watch(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
print(time.process_time() - began)
"""


def main() -> None:
    """Reads the runs, watches, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    parts = [
        "# Results: the modules of detectors, and whether seeds agree",
        f"Made by `python benchmarks/flow_modules.py {' '.join(map(str, asked.runs))} --rows {asked.rows} "
        f"--rounds {asked.rounds}` from "
        "runs of `openwork run flows`. What the words mean stands in [flows](../flows.md#modules).",
    ]
    for run in asked.runs:
        parts += section(run)
    parts += cost(asked.runs[0], asked.rows, asked.rounds)
    write_text(asked.page, "\n\n".join(parts) + "\n")
    print(asked.page)


def section(run: Path) -> list[str]:
    """The modules and the seeds of one run."""
    folders = [run / "sparse", *sorted((run / "more").glob("sparse-*"))]
    found = [read_json(at / "detector" / "modules.json") for at in folders]
    out = [f"## {run.name}", "\n".join(f"* Seed {k}: {f['note']}" for k, f in enumerate(found))]
    rows = []
    for k, f in enumerate(found):
        for m in f["modules"]:
            by = {e["claim"]: e for e in m["evidence"]}
            rows.append([
                str(k), m["name"], m["label"], *(marked(by[c]) for c in ("carries", "its_own", "told")),
            ])  # fmt: skip
    if rows:
        head = ["seed", "module", "label", "carries (random neurons)", "ended, less others (random)", "rule (random)"]
        out += ["Claims about modules, on held-out flows; * marks one that does not hold:", table(head, rows)]
        out += ["Of the evidence that true alerts add to a typical flow's, on the verify split:"]
        out += [table(["seed", "attack", "alerts", "modules", "from one module to another"], carried(run, folders))]
    return out + seeds(run)


def marked(e: Record) -> str:
    """A value with its null, and a star where the claim does not hold."""
    star = "" if e["verdict"] == "holds" else "*"
    return f"{e['value']:.2f} ({e['null_value']:.2f}){star}" if e["value"] is not None else f"-{star}"


def carried(run: Path, folders: list[Path]) -> list[list[str]]:
    """Per seed and attack, the share of modules' own paths, largest first, and of all paths that cross."""
    prepared, rows = Prepared(run / "data"), []
    x, y = prepared.features("verify", slice(None)), np.asarray(prepared.labels("verify")).astype(np.int64)
    for k, at in enumerate(folders):
        d = load_detector(at)
        if d.modules is None or not d.modules.of:
            continue
        found = d.decision.decide(d.logits(x))
        for c, attack in enumerate(d.schema.classes[1:], 1):
            true = (found == c) & (y == c)
            if not true.any():
                continue
            s = d.shares(x[true], found[true])
            off = float(np.abs(s.modules.sum((1, 2)) - (s.after - s.before)).max())
            if off > 1e-9:
                raise SystemExit(f"shares of {attack}, seed {k}, miss the evidence by {off:g}")
            total, own = float((s.after - s.before).sum()), np.diagonal(s.modules.sum(0))
            order = [int(m) for m in np.argsort(-own) if own[m] / total >= 0.05]
            said = ", ".join(f"{d.modules.names[m]} {100 * own[m] / total:.0f} %" for m in order)
            crossing = float(s.modules.sum() - own.sum()) / total
            rows.append([str(k), attack, str(int(true.sum())), said, f"{100 * crossing:.0f} %"])
    return rows


def seeds(run: Path) -> list[str]:
    """How alike the seeds are."""
    found = compare_seeds(run)
    if found is None:
        return ["Trained once: how alike seeds are is not known."]
    head = ["attack", "shared, sparse", "shared, dense", "rank correlation, sparse", "p", "dense", "other attacks"]
    rows = [
        [
            a["attack"], *(f"{100 * a[k]:.0f} %" for k in ("shared", "dense_shared")), f"{a['rank']:.2f}",
            f"{a['p']:.3f}", f"{a['dense_rank']:.2f}", f"{a['elsewhere']:.2f}",
        ]
        for a in found["attacks"]
    ]  # fmt: skip
    return [" ".join(found["sentences"]), table(head, rows)]


def cost(run: Path, rows: int, rounds: int) -> list[str]:
    """CPU time of a watch with and without modules, in turns."""
    with tempfile.TemporaryDirectory() as temp:
        log, models = Path(temp) / "conn.log", {"with": run / "sparse", "without": Path(temp) / "without"}
        made = make_log(log, run / "sparse", rows, 0)
        for part in ("model", "detector"):
            shutil.copytree(run / "sparse" / part, models["without"] / part)
        (models["without"] / "detector" / "modules.json").unlink()
        whole: dict[str, list[float]] = {name: [] for name in models}
        alone: dict[str, list[float]] = {name: [] for name in models}
        sizes = {}
        for k in range(rounds):
            for name in sorted(models, reverse=k % 2 == 1):
                out = Path(temp) / f"{name}-{k}.jsonl"
                took = finished([sys.executable, "-c", WATCH, str(models[name]), str(log), str(out)])
                whole[name].append(took["cpu"])
                alone[name].append(float(took["said"]))
                sizes[name] = out.stat().st_size
                print(json.dumps({"round": k, name: alone[name][-1]}), file=sys.stderr, flush=True)
    lines = [
        [
            name, f"{statistics.median(alone[name]):.2f}", f"{statistics.median(whole[name]):.2f}",
            f"{sizes[name] / 2**20:.1f}",
        ]
        for name in models
    ]  # fmt: skip
    ratios = sorted(a / b for a, b in zip(alone["with"], alone["without"], strict=True))
    return [
        "## What it costs a watch",
        f"{made.good:,} good flows of a log of {rows:,} lines, {len(made.alerts):,} of them alerts, judged {rounds} "
        "times with and without modules in turns, on one core that other programs use too; medians, CPU seconds.",
        table(["modules", "judging alone, s", "whole process, s", "audit log, MiB"], lines),
        f"Judging with modules takes {100 * (statistics.median(ratios) - 1):+.1f} % CPU time (median of the "
        f"{rounds} pairs; from {100 * (ratios[0] - 1):+.1f} to {100 * (ratios[-1] - 1):+.1f} %).",
    ]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


if __name__ == "__main__":
    main()
