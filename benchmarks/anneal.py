"""How fast should the weights become sparse? The same training with several lengths of annealing, and its circuits.

    python benchmarks/anneal.py [--until 0.5 0.2 0.05] [--seeds 0 1 2] [--runs runs/anneal] [--workers 4]

Writes docs/results/anneal.md. All its figures are from the discover split, on which the value of the preset `cpu` was
chosen. Runs that are done are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from quotes import table

from openwork import threads  # noqa: F401  before torch
from openwork.bench import METHOD, plans_of
from openwork.files import write_text
from openwork.presets import QUOTES
from openwork.progress import Progress
from openwork.runs import find_circuit, method_settings, train_plan
from openwork.tasks.corpus import build_corpus
from openwork.tasks.python_code import MIXED
from openwork.training import TrainSettings
from openwork.workers import Job, map_jobs

Result = dict[str, Any]
PAGE = Path(__file__).parents[1] / "docs" / "results" / "anneal.md"
PRESET = QUOTES["cpu"]


def main() -> None:
    """Trains, searches, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", type=float, nargs="+", default=[0.5, 0.2, 0.05], help="shares of the run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/anneal"))
    parser.add_argument("--workers", type=int, default=4)
    asked = parser.parse_args()
    runs = {(u, s): asked.runs / f"until{u:g}-seed{s}" for u in asked.until for s in asked.seeds}
    settings = method_settings(METHOD, **PRESET.masks)
    with Progress() as progress:
        build_corpus(asked.runs / "data", PRESET.corpus_for(None), progress.log)
        training = [Job(f"train {out.name}", train_plan, (out, plan(u, s))) for (u, s), out in runs.items()]
        trained = dict(zip(runs, map_jobs(training, asked.workers, progress), strict=True))
        searches = {(key, t): (out, t, METHOD, settings) for key, out in runs.items() for t in MIXED}
        jobs = [Job(f"{args[0].name}: {args[1]}", find_circuit, args) for args in searches.values()]
        found = dict(zip(searches, map_jobs(jobs, asked.workers, progress), strict=True))
    rows = [
        row(u, [(trained[u, s], [found[(u, s), t] for t in MIXED], runs[u, s]) for s in asked.seeds])
        for u in asked.until
    ]
    write_text(PAGE, page(rows, asked.until, asked.seeds))
    print(PAGE)


def plan(until: float, seed: int) -> Any:
    """The sparse side of the comparison with another length of annealing."""
    chosen = PRESET.model_copy(update={"topk": PRESET.topk | {"anneal_until": until}})
    return plans_of("python", chosen, seed, "cpu")["sparse"]


def row(until: float, seeds: list[tuple[Result, list[Result], Path]]) -> list[str]:
    """One line: means over seeds, geometric means over tasks and seeds."""
    losses = [t["held_out"] for t, _, _ in seeds]
    found = [f for _, tasks, _ in seeds for f in tasks]
    ok = [f for f in found if f["status"] == "ok"]
    edges = [f["node_based"]["edges"] if f["status"] == "ok" else t["block_nonzero"] for t, fs, _ in seeds for f in fs]
    return [
        f"{until:g}", f"{statistics.fmean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})",
        f"{len(ok)} of {len(found)}", f"{math.exp(statistics.fmean(math.log(max(e, 1)) for e in edges)):.0f}",
        f"{100 * statistics.fmean(churn(out, until) for *_, out in seeds):.1f} %",
    ]  # fmt: skip


def churn(run: Path, until: float) -> float:
    """Mean share of the kept weights that were not kept one record earlier, from the end of annealing on."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return statistics.fmean(r["churn"] for r in records if r["step"] > until * PRESET.sparse["steps"])


def page(rows: list[list[str]], until: list[float], seeds: list[int]) -> str:
    """The page as Markdown."""
    command = f"python benchmarks/anneal.py --until {' '.join(f'{u:g}' for u in until)} --seeds"
    every = TrainSettings().log_every
    head = ["annealed over", "loss on real Python (nats per token)", "circuits found", "edges, geometric mean"]
    head += [f"kept weights replaced in {every} steps"]
    return (
        "# How fast should the weights become sparse?\n\n"
        f"Made by `{command} {' '.join(map(str, seeds))}`: the sparse model of the preset `cpu` "
        f"({PRESET.sparse['steps']} steps, density {PRESET.topk['density']:g}), {len(seeds)} training seeds and "
        f"{len(MIXED)} tasks. Only the share of the run over which the density falls from 1 to its final value "
        "differs. All figures are from the discover split, on which the preset's value was chosen. A task without a "
        "circuit counts with all block weights of its model. Weights replaced are counted after annealing.\n\n"
        + table(head, rows)
        + "\n"
    )


if __name__ == "__main__":
    main()
