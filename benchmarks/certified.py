"""What can be proved of circuits on digits: decisions on whole neighbourhoods, and the least size.

    python benchmarks/certified.py [--seeds 0 1 2] [--runs runs/certified]

Makes each run with `openwork run digits --preset smoke` where it is missing; writes docs/results/certified.md.
Certificates are on the verify split, exact sizes on the discover split that the search and the trim saw too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from quotes import table

from openwork import (
    store,
    threads,  # noqa: F401  before torch
)
from openwork.circuit import Circuit
from openwork.discover import exact_minimum
from openwork.errors import UsageError
from openwork.files import write_text
from openwork.models.folded import folded
from openwork.runs import Run, circuit_folder, open_run
from openwork.verify import Question, bounds
from openwork.verify.certified import RADIUS, ball, certify, data_range

PAGE = Path(__file__).parents[1] / "docs" / "results" / "certified.md"
TASKS = ("one_seven", "four_nine", "three_eight")
RADII = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
LIMIT, BUDGET = 25, 1 << 20


def found(path: Path, task: str) -> tuple[Run, Circuit, float]:
    """A run, the circuit of a task in it, and the target of its search."""
    run = open_run(path)
    folder = circuit_folder(run, task)
    return run, store.load_circuit(folder, run.digest), float(store.read_json(folder / "result.json")["target"])


def by_intervals(q: Question, radius: float) -> torch.Tensor:
    """Where interval arithmetic alone proves that both decide alike: bool [N]."""
    low, high = data_range(q.verify)
    box = ball(q.verify.inputs[0], radius * (high - low), (low, high))
    choices = torch.cat([q.verify.wrong, q.verify.answer[:, None]], 1)
    left = []
    for circuit in (None, q.circuit):
        least, most = bounds.intervals(folded(q.model, circuit, q.reference), box)[-1]
        least, most = least.gather(1, choices), most.gather(1, choices)
        left.append((least[:, :, None] > most[:, None]).any(1))
    return bounds.decide_alike(*left)


def main() -> None:
    """Runs what is missing, measures, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/certified"))
    asked = parser.parse_args()
    for seed in asked.seeds:
        out = asked.runs / f"seed{seed}"
        if not (out / "result.json").exists():
            command = [sys.executable, "-m", "openwork", "run", "digits", "--preset", "smoke", "--seed", str(seed)]
            subprocess.run([*command, "--out", str(out), "--workers", "1"], check=True)
    neighbourhoods = [row for model in ("sparse", "dense") for row in certificates(asked.runs, asked.seeds, model)]
    sizes = [row for seed in asked.seeds for task in TASKS for row in exact(asked.runs / f"seed{seed}", seed, task)]
    write_text(PAGE, page(neighbourhoods, sizes, asked.seeds))
    print(PAGE)


def certificates(runs: Path, seeds: list[int], model: str) -> list[list[str]]:
    """One line per radius, over all tasks and seeds together."""
    columns: dict[float, list[torch.Tensor]] = {r: [] for r in RADII}
    seconds = 0.0
    for seed in seeds:
        for task in TASKS:
            run, circuit, target = found(runs / f"seed{seed}" / model, task)
            q = Question(run.model, circuit, run.reference, run.task(task).split("verify"), None, target)
            began = time.perf_counter()
            curve = certify(q, RADII)
            seconds += time.perf_counter() - began
            for c in curve:
                columns[c.radius].append(torch.stack([c.proved, by_intervals(q, c.radius), c.parted, c.moved]))
    rows = []
    for radius, parts in columns.items():
        proved, rough, parted, moved = torch.cat(parts, 1)
        turns = moved & ~parted
        shares = (proved, rough, parted, turns, ~(proved | moved))
        rows.append(
            [model, f"{radius:g}", str(len(proved)), *(f"{100 * float(x.double().mean()):.1f} %" for x in shares)]
        )
    each = 1000 * seconds / sum(part.shape[1] for parts in columns.values() for part in parts)
    return [[*row, f"{each:.1f} ms"] for row in rows]


def exact(path: Path, seed: int, task: str) -> list[list[str]]:
    """Two lines: the least number of nodes, and of edges, of one sparse circuit."""
    run, circuit, target = found(path / "sparse", task)
    split, rows = run.task(task).split("discover"), []
    for of in ("nodes", "edges"):
        began = time.perf_counter()
        counts = circuit.counts()
        try:
            r = exact_minimum(run.model, circuit, run.reference, split, target, of=of, limit=LIMIT, budget=BUDGET)  # type: ignore[arg-type]
        except UsageError:
            rows.append([str(seed), task, f"{counts[of]} {of}", f"more than {LIMIT}: not asked", "", "", "", ""])
            continue
        least = min(level.least_loss for level in r.levels[:-1])
        same = sum(level.equivalent for level in r.levels)
        rows.append([
            str(seed), task, f"{counts[of]} {of}", str(r.size) if r.proved else f"at least {r.at_least}",
            str(r.minima) if r.proved else "", f"{least:.3f}", f"{r.evaluated:,} of {r.evaluated + same:,}",
            f"{time.perf_counter() - began:.1f} s",
        ])  # fmt: skip
    return rows


def page(neighbourhoods: list[list[str]], sizes: list[list[str]], seeds: list[int]) -> str:
    """The page as Markdown."""
    head = ["model", "radius", "examples", "proved", "by intervals alone", "counterexample", "turns", "open"]
    return (
        "# What can be proved of circuits on digits\n\n"
        f"Made by `python benchmarks/certified.py --seeds {' '.join(map(str, seeds))}`: scikit-learn's digits, the "
        f"preset `smoke`, {len(seeds)} training seeds, the tasks {', '.join(TASKS)}, one core.\n\n"
        "## Decisions on whole neighbourhoods\n\n"
        "The share of verify examples x around which model and circuit are *proved* to decide alike on every "
        "input within the radius (a share of the range of the pixels; one of their 17 grey levels is 0.06). "
        "*Counterexample*: an input was found on which they differ; at radius 0 that is x itself. *Turns*: "
        "none was found, but one of the two leaves its decision, so no margin proves anything. *Open*: "
        "neither proved nor refuted. The time is per example and radius, attack included. The radius that "
        f"decides the claim is {RADIUS:g}.\n\n" + table([*head, "time"], neighbourhoods) + "\n\n## The least size\n\n"
        "Whether any smaller part of a sparse model's trimmed circuit also reaches the target of 0.15 nats on"
        " the discover split; circuits elsewhere in the model are not excluded. *Least loss below* is the "
        "lowest loss of all smaller subsets that were run. *Run* is how many subsets had to be run; the "
        f"others, by their wiring, compute what a smaller one computes. A search gives up after {BUDGET:,} "
        "runs; what it then says holds all the same.\n\n"
        + table(["seed", "task", "circuit", "minimum", "minima", "least loss below", "run", "time"], sizes)
        + "\n"
    )


if __name__ == "__main__":
    main()
