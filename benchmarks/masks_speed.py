"""What it saves to drop nodes for good while masks are learned: the same search both ways, in turn, task by task.

    python benchmarks/masks_speed.py runs/quotes [--rounds 1] [--tasks for_while with_open]

Takes the `sparse` and the `dense` model of a run of `openwork run quotes` and writes docs/results/masks_speed.md. On
one thread, on the clock of the process; both ways alternate within every round, ratios are those of the medians over
rounds. What is found is trimmed as a circuit of nodes and judged on the verify split.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from quotes import table

from openwork import threads  # noqa: F401  before torch
from openwork.discover import find, trim
from openwork.files import write_text
from openwork.patched_run import PatchedRun
from openwork.runs import Run, open_run
from openwork.tasks.python_code import TASKS

PAGE = Path(__file__).parents[1] / "docs" / "results" / "masks_speed.md"
TARGET = 0.15
WAYS = {"plain": {"compact": False}, "dropping": {"compact": True}}


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines, means = [], []
    for model in ("sparse", "dense"):
        run = open_run(asked.run / model)
        rows = [measured(run, task, asked.rounds) for task in asked.tasks]
        lines += [line(model, task, row) for task, row in zip(asked.tasks, rows, strict=True)]
        means.append(mean(model, rows))
        for text in (*lines[-len(rows) :], means[-1]):
            print(*text, sep=" | ", flush=True)
    how = f"rounds {asked.rounds}" if asked.rounds > 1 else "one round"
    write_text(
        PAGE,
        "\n\n".join(
            [
                "# Learning masks while nodes fall away",
                "Made by `python benchmarks/masks_speed.py runs/quotes` on both models of preset `cpu`, seed 0; "
                f"{how}, one thread, CPU seconds of the search alone. *Plain* runs the whole model under hooks at "
                "every step (`--set compact=false`), *dropping* lays the model out anew without the nodes that have "
                f"fallen away. Target {TARGET} nats. Nodes and edges are those of the circuit after its trim (nodes "
                "with all their edges); losses are of the verify split, which neither way has seen. A step costs less "
                "and less until a few hundred nodes are left; from then on it costs its number of operations, whatever "
                "their size. That, the thirty first steps with nearly all nodes, their attribution before, and the "
                "judging between is what keeps the ratio where it is.",
                table(["model", "task", "plain, s", "dropping, s", "ratio", "nodes", "edges", "held-out loss"], lines),
                "## Over all tasks",
                "Geometric means; plain, then dropping. *Infeasible* counts tasks without a circuit.",
                table(
                    ["model", "plain, s", "dropping, s", "ratio", "nodes", "edges", "held-out loss", "infeasible"],
                    means,
                ),
            ]
        )
        + "\n",
    )
    print(PAGE)


def measured(run: Run, task: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Per way: CPU seconds of every round, and what was found, trimmed and judged held out."""
    discover, verify = (run.task(task).split(s) for s in ("discover", "verify"))
    asking = PatchedRun(run.model, run.reference)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    found = {}
    for _ in range(rounds):
        for way, settings in WAYS.items():
            began = time.process_time()
            found[way] = find(run.model, run.reference, discover, "masks", target=TARGET, **settings)
            seconds[way].append(time.process_time() - began)
    out: dict[str, dict[str, Any]] = {}
    for way, f in found.items():
        out[way] = {"seconds": statistics.median(seconds[way])}
        if f.circuit is not None:
            circuit = trim(run.model, f.circuit, run.reference, discover, TARGET, edges=False).circuit
            out[way] |= {**circuit.counts(), "loss": asking.loss(verify, circuit)}
    return out


def line(model: str, task: str, row: dict[str, dict[str, Any]]) -> list[str]:
    """One line of the first table."""
    a, b = row["plain"], row["dropping"]
    both = [f"{a.get(k, 'none')} / {b.get(k, 'none')}" for k in ("nodes", "edges")]
    losses = " / ".join(f"{x['loss']:.3f}" if "loss" in x else "none" for x in (a, b))
    return [model, task, *(f"{x['seconds']:.1f}" for x in (a, b)), f"{a['seconds'] / b['seconds']:.1f}", *both, losses]


def mean(model: str, rows: list[dict[str, dict[str, Any]]]) -> list[str]:
    """One line of the second table, over the tasks that have a circuit both ways."""

    def over(way: str, what: str) -> float:
        values = [r[way][what] for r in rows if all("edges" in r[w] for w in WAYS)]
        return math.exp(sum(math.log(max(v, 1e-9)) for v in values) / len(values))

    pairs = {k: [over(way, k) for way in WAYS] for k in ("seconds", "nodes", "edges", "loss")}
    cells = [f"{a:.0f} / {b:.0f}" for a, b in (pairs["nodes"], pairs["edges"])]
    missed = " / ".join(str(sum("edges" not in r[w] for r in rows)) for w in WAYS)
    a, b = pairs["seconds"]
    return [model, f"{a:.1f}", f"{b:.1f}", f"{a / b:.1f}", *cells, "{:.3f} / {:.3f}".format(*pairs["loss"]), missed]


if __name__ == "__main__":
    main()
