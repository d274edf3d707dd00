"""Every way of searching on every network whose circuit is known by construction.

    python benchmarks/planted.py [--from runs/planted.json] [--workers N]

Runs `openwork bench planted` (or takes the JSON that `openwork bench planted --out FILE` wrote) and writes
docs/results/planted.md.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from quotes import table

from openwork import (
    store,
    threads,  # noqa: F401  before torch
)
from openwork.files import write_text
from openwork.ground_truth import bench_planted
from openwork.progress import Progress

PAGE = Path(__file__).parents[1] / "docs" / "results" / "planted.md"


def main() -> None:
    """Runs what is missing, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="file", type=Path, default=None)
    parser.add_argument("--workers", type=int, default=None)
    asked = parser.parse_args()
    if asked.file is not None:
        result = store.read_json(asked.file)
    else:
        with Progress() as progress:
            result = bench_planted(workers=asked.workers, progress=progress)
    write_text(PAGE, page(result))
    print(PAGE)


def share(x: Any) -> str:
    """A share with two digits, or nothing where there is none."""
    return "" if x is None or (isinstance(x, float) and math.isnan(x)) else f"{x:.2f}"


def page(result: dict[str, Any]) -> str:
    """The page as Markdown."""
    order = sorted(result["summary"], key=lambda s: (-s["trimmed_exact"], -s["exact"], s["seconds"] or 0))
    methods = [s["method"] for s in order]
    lines = [
        [
            s["method"], f"{s['exact']} of {s['cases']}",
            f"{s['exact_low']:.0%} to {s['exact_high']:.0%}", f"{s['trimmed_exact']} of {s['cases']}",
            str(s["cases"] - s["found"] - s["refused"]), str(s["refused"]), share(s["precision"]), share(s["recall"]),
            share(s["auroc"]), share(s["average_precision"]), f"{s['seconds']:.1f}",
        ]
        for s in order
    ]  # fmt: skip
    families = sorted({r["family"] for r in result["rows"]})
    by_family = []
    for m in methods:
        cells = []
        for f in families:
            mine = [r for r in result["rows"] if r["method"] == m and r["family"] == f]
            cells.append(f"{sum(bool(r['trimmed_exact']) for r in mine)} of {len(mine)}")
        by_family.append([m, *cells])
    cases = result["tables"]["case by case"]
    return "\n".join([
        "# Ways of searching against known circuits",
        "",
        f"Made by `python benchmarks/planted.py`: {result['cases']} networks whose circuit is known by construction "
        + "([Planted networks](../planted.md)), searched by every method with its default settings, at the case's own "
        + f"target and reference, seed {result['seed']}. *Exact* means all true nodes and edges and no other, as the "
        + "method answered; *after trimming*, what `openwork discover` stores. The 95 % interval is Clopper and "
        + "Pearson's. *Nothing* counts cases in which no circuit met the target, *refused* those that the method does "
        + "not take. Precision and recall are of the edges of the method's own answer; AUROC and average precision of "
        + "its ranking, of edges or of nodes, whichever it ranks, so they compare only among like. After "
        + "trimming most agree, because networks this small are trimmed to their circuit from the whole model as well; "
        + "what a method's own answer is worth stands before. CPU seconds: "
        + "means of the search alone.",
        "",
        table(
            ["method", "exact", "95 %", "exact after trimming", "nothing", "refused", "precision", "recall", "AUROC",
             "average precision", "CPU s"],
            lines,
        ),
        "",
        "## By family, exact after trimming",
        "",
        table(["method", *families], by_family),
        "",
        "## Case by case",
        "",
        "Where a method did not recover a circuit: how much of it was found, and how much of what was found is true, "
        "after trimming.",
        "",
        table(["case", "nodes", *methods], [[c["case"], str(c["size"]), *(c[m] for m in methods)] for c in cases]),
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
