"""The headline over several training seeds: runs `openwork run quotes` once per seed and writes docs/results/README.md.

    python benchmarks/quotes.py --seeds 0 1 2 [--preset cpu] [--runs runs/results] [--workers 2]

Every figure on that page comes from the result.json of these runs; the page says which command made it. Runs that are
done are not made again. Knows results as plain data.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openwork import threads  # noqa: F401  before torch
from openwork.bench import RATIOS, run_quotes
from openwork.files import write_text
from openwork.progress import Progress
from openwork.stats import geometric_mean_ratio

Result = dict[str, Any]
PAGE = Path(__file__).parents[1] / "docs" / "results" / "README.md"

NAMES = {
    "node_based": "dense / sparse, circuits of nodes with all their edges",
    "edge_pruned": "the same, single edges pruned in both",
    "edge_pruned_dense_to_node_based_sparse": "edge-pruned dense / node-based sparse (the harshest comparison)",
    "matched_node_based": "dense stopped at the sparse model's held-out loss / sparse, nodes",
    "matched_edge_pruned": "the same, single edges pruned in both",
}


def main() -> None:
    """Runs the seeds and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--runs", type=Path, default=Path("runs/results"))
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    results = []
    with Progress() as progress:
        for seed in asked.seeds:
            progress.log(f"seed {seed}")
            out = asked.runs / f"{asked.preset}-seed{seed}"
            results.append(run_quotes(out, asked.preset, seed, workers=asked.workers, progress=progress))
    write_text(asked.page, page(results, asked.preset, asked.seeds))
    print(asked.page)


def page(results: Sequence[Result], preset: str, seeds: Sequence[int]) -> str:
    """The page as Markdown."""
    command = f"python benchmarks/quotes.py --seeds {' '.join(map(str, seeds))}"
    command += "" if preset == "cpu" else f" --preset {preset}"
    parts = [
        "# Results: sparse and dense circuits on real Python source",
        f"Made by `{command}` (`make results`), preset `{preset}`, {len(seeds)} training seeds. Losses are in nats per "
        "example on prompts that the search never saw; the target is "
        f"{results[0]['tasks'][0]['target']}. What each row means stands in [method](../method.md) and "
        "[verification](../verification.md).",
        "## How many times smaller",
        "Geometric mean over tasks and seeds with a 95 % bootstrap interval over them, and the range of the seeds' own "
        "means. Where the sparse model has no circuit its whole set of block weights counts; where the dense model has "
        "none, the task is left out of that row.",
        ratios(results),
        "## Models",
        models(results),
        "## Circuits by task",
        "Median over seeds (lowest to highest); *infeasible* counts the seeds in which the search met no target.",
        tasks(results),
        "## Evidence",
        "Claims about the sparse circuits (edges pruned), over all seeds: holds / fails / too little data.",
        evidence(results),
        "## Controls",
        "The same search where there should be nothing to find; edges of the circuit it found, if any, by seed.",
        controls(results),
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def ratios(results: Sequence[Result]) -> str:
    """One row per way of comparing."""
    rows = []
    for key, (dense, sparse) in RATIOS.items():
        top, bottom, left_out = [], [], 0
        for r in results:
            for t in r["tasks"]:
                if t[dense]["status"] != "ok":
                    left_out += 1
                    continue
                top.append(float(max(t[dense]["edges"], 1)))
                bottom.append(float(max(t[sparse].get("edges", r["models"]["sparse"]["block_nonzero"]), 1)))
        value, (low, high) = geometric_mean_ratio(top, bottom)
        own = [r["ratios"][key]["geomean"] for r in results if r["ratios"][key]["geomean"] is not None]
        spread = f"{min(own):.1f} to {max(own):.1f}" if own else "-"
        rows.append([NAMES[key], f"**{value:.1f}**", f"{low:.1f} to {high:.1f}", spread, str(len(top)), str(left_out)])
    for key, name in (
        ("node_pairs", "pairs of kept nodes, joined or not"),
        ("density_alone", "what density alone gives"),
    ):
        own = [r["ratios"][key]["geomean"] for r in results if r["ratios"][key]["geomean"] is not None]
        mean = math.exp(statistics.fmean(map(math.log, own)))
        rows.append([name, f"{mean:.1f}", "-", f"{min(own):.1f} to {max(own):.1f}", "-", "-"])
    return table(["ratio", "geometric mean", "95 % interval", "seeds", "pairs counted", "dense infeasible"], rows)


def spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    """The median, and the range where there is one."""
    if not values:
        return "-"
    middle = show(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({show(min(values))} to {show(max(values))})"


def models(results: Sequence[Result]) -> str:
    """Held-out loss on real Python, weights and training time."""
    rows = []
    for name in ("sparse", "dense", "dense_matched"):
        m = [r["models"][name] for r in results]
        rows.append([
            name, spread([x["verify_loss"] for x in m], "{:.3f}".format),
            spread([x["steps"] for x in m], "{:.0f}".format),
            spread([x["block_nonzero"] for x in m], "{:.0f}".format), f"{100 * m[0]['block_density']:.2f} %",
            spread([x["cpu_seconds"] for x in m if "cpu_seconds" in x], "{:.0f}".format),
        ])  # fmt: skip
    head = [
        "model",
        "held-out loss, real Python (nats per token)",
        "steps",
        "nonzero block weights",
        "density",
        "CPU s",
    ]
    return table(head, rows)


def tasks(results: Sequence[Result]) -> str:
    """Per task and model: edges, loss and accuracy of the circuit and of the whole model."""
    rows = []
    for i, first in enumerate(results[0]["tasks"]):
        for kind in (
            "sparse",
            "sparse_edge_pruned",
            "dense",
            "dense_edge_pruned",
            "dense_matched",
            "dense_matched_edge_pruned",
        ):
            cells = [r["tasks"][i][kind] for r in results]
            ok = [c for c in cells if c["status"] == "ok"]
            whole = [r["tasks"][i][kind.removesuffix("_edge_pruned")]["full_accuracy"] for r in results]
            rows.append([
                first["task"] if kind == "sparse" else "", kind.replace("_", " "),
                spread([c["nodes"] for c in ok], "{:.0f}".format), spread([c["edges"] for c in ok], "{:.0f}".format),
                spread([c["loss"] for c in ok], "{:.3f}".format),
                spread([100 * c["accuracy"] for c in ok], "{:.1f} %".format),
                spread([100 * a for a in whole], "{:.1f} %".format), str(len(cells) - len(ok)),
            ])  # fmt: skip
    head = ["task", "circuit", "nodes", "edges", "loss", "accuracy", "whole model", "infeasible"]
    return table(head, rows)


def evidence(results: Sequence[Result]) -> str:
    """How often each claim holds, by task."""
    found = [e for r in results for e in r["evidence"] if e["model"] == "sparse"]
    claims = list(dict.fromkeys(e["claim"] for e in found))
    names = list(dict.fromkeys(e["task"] for e in found))

    def cell(tasks: Sequence[str], claim: str) -> str:
        verdicts = [e["verdict"] for e in found if e["task"] in tasks and e["claim"] == claim]
        return " / ".join(str(verdicts.count(v)) for v in ("holds", "fails", "too little data"))

    rows = [[t, *(cell([t], c) for c in claims)] for t in names]
    rows.append(["**all**", *(cell(names, c) for c in claims)])
    return table(["task", *(c.replace("_", " ") for c in claims)], rows)


def controls(results: Sequence[Result]) -> str:
    """Edges found by each control beside the real circuit's; how often, and how many times as many."""
    kinds = ("sparse_edge_pruned", "nonsense", "swapped", "random")
    rows = []
    for i, first in enumerate(results[0]["tasks"]):
        row = [first["task"]]
        for kind in kinds:
            cells = [r["tasks"][i][kind] for r in results]
            row.append(", ".join(str(c["edges"]) if c["status"] == "ok" else "infeasible" for c in cells))
        rows.append(row)
    found, times = ["**found**"], ["**times the real circuit's edges**"]
    every = [t for r in results for t in r["tasks"]]
    for kind in kinds:
        both = [t for t in every if t[kind]["status"] == t[kinds[0]]["status"] == "ok"]
        top, bottom = ([float(max(t[k]["edges"], 1)) for t in both] for k in (kind, kinds[0]))
        found.append(f"{sum(t[kind]['status'] == 'ok' for t in every)} of {len(every)}")
        times.append(f"{geometric_mean_ratio(top, bottom)[0]:.1f}" if both else "-")
    rows += [found, times]
    return table(["task", "real circuit", "shuffled labels", "swapped labels", "random weights"], rows)


if __name__ == "__main__":
    main()
