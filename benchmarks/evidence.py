"""What holds of the demo model's circuits, and what does not: every task that it solves, every claim, every control.

    python benchmarks/evidence.py [--run runs/evidence] [--method masks] [--workers N]

Trains the demo's sparse model where it is missing (`openwork train --task python --regime topk --preset cpu`), takes
every task about Python code that it solves on the discover split, finds its circuit (`openwork discover`), tests it and
the search (`openwork verify --searches`), and writes docs/results/evidence.md. Figures in the tables are from splits
that no search saw.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from quotes import table

from openwork import (
    store,
    threads,  # noqa: F401  before torch
)
from openwork.bench import discover_run, train_run, verify_run
from openwork.circuit import HOLDS
from openwork.errors import UsageError
from openwork.files import write_text
from openwork.patched_run import PatchedRun
from openwork.progress import Progress
from openwork.runs import Run, judged, open_run
from openwork.tasks.python_code import TASKS
from openwork.threads import available_cores

PAGE = Path(__file__).parents[1] / "docs" / "results" / "evidence.md"
TARGET = 0.15
CONTROLS = ("nonsense_control", "swapped_control", "random_weights_control")
WORDS = {
    "sufficient": "surely meet the target on new examples",
    "necessary": "are necessary",
    "generalises": "generalise",
    "robust": "stay good under random ablations of the rest",
    "adversarial": "under the worst that a search finds",
    "reference_dependence": "under every reference",
    "keeps_attention": "keep the model's attention",
    "selective": "serve their task alone",
    "stable": "are found again by other seeds and on halves of the data",
}
GRADE = {"holds": "yes", "fails": "**no**", "too little data": "open"}


def solved(run: Run) -> tuple[list[str], list[list[str]]]:
    """The tasks whose loss on the discover split is at most the target, and a line for each of the twenty."""
    asking, names, lines = PatchedRun(run.model, run.reference), [], []
    for name in TASKS:
        try:
            task = run.task(name)
        except UsageError:
            lines.append([name, "", "", "", "", "its answers are no tokens of this corpus"])
            continue
        seen, held_out = (judged(asking, None, task.split(s)) for s in ("discover", "verify"))
        if seen["loss"] <= TARGET:
            names.append(name)
        said = "yes" if seen["loss"] <= TARGET else "no"
        lines.append([
            name, f"{seen['loss']:.3f}", f"{seen['accuracy']:.1%}", f"{held_out['loss']:.3f}",
            f"{held_out['accuracy']:.1%}", said,
        ])  # fmt: skip
    return names, lines


def main() -> None:
    """Does what is missing, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--method", default="masks")
    parser.add_argument("--workers", type=int, default=None)
    asked = parser.parse_args()
    workers = asked.workers or available_cores()
    with Progress() as progress:
        if not (asked.run / "result.json").exists():
            train_run("python", "topk", None, asked.run, progress=progress)
        run = open_run(asked.run)
        names, whole = solved(run)
        found = {n: discover_run(asked.run, n, asked.method, TARGET, 0, (), progress) for n in names}
        circuits = [n for n in names if found[n]["status"] == "ok"]
        told = {
            n: verify_run(asked.run, f"{n}-{asked.method}", 0, progress, searches=True, workers=workers)["evidence"]
            for n in circuits
        }
    write_text(PAGE, page(asked.run, asked.method, whole, found, told))
    print(PAGE)


def page(
    run: Path, method: str, whole: list[list[str]], found: dict[str, Any], told: dict[str, list[dict[str, Any]]]
) -> str:
    """The page as Markdown."""
    by = {n: {e["claim"]: e for e in evidence} for n, evidence in told.items()}
    claims = [c for c in next(iter(by.values())) if c not in CONTROLS]
    grades = [[n, *(GRADE[by[n][c]["verdict"]] if c in by[n] else "" for c in claims)] for n in told]
    held = [sum(by[n][c]["verdict"] == HOLDS for n in told if c in by[n]) for c in claims]
    grades.append(["**hold**", *(f"{k} of {len(told)}" for k in held)])
    sizes, ratios = [], []
    for n in found:
        real = found[n]["edge_pruned"]
        if found[n]["status"] != "ok":
            sizes.append([n, "none at the target", "", "", "", "", "", ""])
            continue
        cells = []
        for slug in ("shuffled-labels", "swapped-labels", "random-weights"):
            c = store.read_json(run / "controls" / f"{n}-{method}-{slug}" / "result.json")
            cells.append(f"{c['edges']:,} edges, {c['loss']:.2f}" if c["status"] == "ok" else "none")
            if c["status"] == "ok" and slug == "random-weights":
                ratios.append(c["edges"] / max(1, real["edges"]))
        sizes.append([
            n, str(real["nodes"]), str(real["edges"]), f"{real['loss']:.3f}", f"{real['accuracy']:.1%}", *cells
        ])  # fmt: skip
    failing = [
        f"* **{n}, {c.replace('_', ' ')}:** {e['sentence']}"
        for n in told
        for c, e in by[n].items()
        if e["verdict"] == "fails"
    ]
    middle = (
        f" Where shuffled weights gave one, it had {statistics.median(ratios):.1f} times as many edges (median)."
        if ratios
        else ""
    )
    return "\n".join([
        "# What holds of the demo model's circuits",
        "",
        f"Made by `python benchmarks/evidence.py --method {method}`: the demo's sparse model (one training seed), "
        + f"target {TARGET} nats, examples held out unless said otherwise. What each claim means: "
        + "[Verification](../verification.md).",
        "",
        "## What the model can do",
        "",
        "Twenty tasks were asked; six are in its training mix. A circuit is looked for where the loss on the discover "
        + "split is at most the target.",
        "",
        table(["task", "loss, discover", "accuracy", "loss, verify", "accuracy", "solved"], whole),
        "",
        "## Circuits, real and where there should be none",
        "",
        "Edges of the circuit and held-out loss; beside it what the same search, with the same settings, finds on "
        + f"labels that mean nothing, on the opposite labels, and on the same weights in random order.{middle}",
        "",
        table(
            ["task", "nodes", "edges", "loss", "accuracy", "shuffled labels", "swapped labels", "random weights"], sizes
        ),
        "",
        "## Claims",
        "",
        table(["task", *(c.replace("_", " ") for c in claims)], grades),
        "",
        f"Of {len(told)} circuits, "
        + ", ".join(f"{k} {WORDS[c]}" for c, k in zip(claims, held, strict=True) if c in WORDS)
        + ". A circuit is cut down until it just meets its target on the examples of the search, so on others it tends "
        + "to miss it by a little; what an adversary ablates takes much more. A circuit without nodes is a task that "
        + "the model's frozen table of bigrams does alone.",
        "",
        "## Every claim that fails, in a sentence",
        "",
        *failing,
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
