"""Methods against circuits that are known: every method on every planted case, one row each.

A method is asked as any user would ask it: the case's discover split, its reference, its target. Its own answer is
scored, and so is that answer after trimming, which is what `openwork discover` stores. What a method cannot do (it
found nothing at the target, or does not take such a model) is a row too.

Knows names of cases and methods. Does not know how either works.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openwork import stats, store
from openwork.discover import METHODS, find, trim
from openwork.errors import UsageError, unknown
from openwork.files import plain
from openwork.planted import CASES, OF_HEADS, make_case
from openwork.planted.score import row
from openwork.progress import Progress
from openwork.threads import available_cores
from openwork.workers import Job, map_jobs, report

Result = dict[str, Any]


def run_case(name: str, method: str, seed: int = 0, granularity: str = "weights") -> Result:
    """One row: what a method makes of a planted case (a job)."""
    case = make_case(name, seed, granularity)
    split, began = case.task.split("discover"), time.process_time()
    about: Result = {"case": name, "family": case.family, "size": case.size, "ablation": case.ablation}
    about |= {"method": method, "target": case.target}
    try:
        found = find(case.model, case.reference, split, method, target=case.target, seed=seed)
    except UsageError as refused:
        report(f"{name}: {method}", 1, 1)
        return about | {"status": "refused", "why": str(refused), "exact": False, "trimmed_exact": False}
    seconds = time.process_time() - began
    result = about | {"status": found.status}
    if found.circuit is None:
        result |= {"exact": False, "trimmed_exact": False, "seconds": seconds}
        result |= {"auroc": row(case, None, found.scores, seconds)["auroc"] if found.scores is not None else math.nan}
    else:
        result |= row(case, found.circuit, found.scores, seconds)
        small = trim(case.model, found.circuit, case.reference, split, case.target)
        trimmed = row(case, small.circuit, None, time.process_time() - began)
        result |= {f"trimmed_{k}": trimmed[k] for k in ("exact", "precision", "recall", "edges_found", "seconds")}
    report(f"{name}: {method}", 1, 1)
    return result


def bench_planted(
    methods: Sequence[str] = (),
    cases: Sequence[str] = (),
    seed: int = 0,
    workers: int | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    granularity: str = "weights",
) -> Result:
    """Every method on every case, and a summary per method.

    methods, cases  names; by default all
    out             file to write the result to, as JSON
    granularity     "weights", or "components": the transformers, with heads and MLPs as nodes
    """
    known = OF_HEADS if granularity == "components" else tuple(CASES)
    for asked, there, what in ((methods, METHODS, "method"), (cases, known, "planted case")):
        for name in asked:
            if name not in there:
                raise unknown(what, name, there)
    chosen, on = list(methods or METHODS), list(cases or known)
    jobs = [Job(f"{c}: {m}", run_case, (c, m, seed, granularity)) for c in on for m in chosen]
    rows = map_jobs(jobs, workers or available_cores(), progress or Progress(False))
    told = [summary(m, rows) for m in chosen]
    result: Result = {
        "seed": seed,
        "granularity": granularity,
        "cases": len(on),
        "summary": told,
        "rows": rows,
        "tables": tables(told, rows),
    }
    if out is not None:
        store.write_json(out, plain(result))
    return result


def summary(method: str, rows: Sequence[Result]) -> Result:
    """How often a method recovers a circuit exactly, with a Clopper-Pearson interval, and its means over the cases."""
    mine = [r for r in rows if r["method"] == method]
    exact, trimmed = (sum(bool(r[k]) for r in mine) for k in ("exact", "trimmed_exact"))
    low, high = stats.clopper_pearson(exact, len(mine))

    def mean(key: str) -> float:
        values = [r[key] for r in mine if key in r and not math.isnan(r[key])]
        return float(np.mean(values)) if values else math.nan

    return {
        "method": method, "cases": len(mine), "exact": exact, "exact_low": low, "exact_high": high,
        "trimmed_exact": trimmed, "found": sum(r["status"] == "ok" for r in mine),
        "refused": sum(r["status"] == "refused" for r in mine),
        "precision": mean("precision"), "recall": mean("recall"),
        "trimmed_precision": mean("trimmed_precision"), "trimmed_recall": mean("trimmed_recall"),
        "auroc": mean("auroc"), "average_precision": mean("average_precision"), "seconds": mean("seconds"),
    }  # fmt: skip


def tables(told: Sequence[Result], rows: Sequence[Result]) -> dict[str, list[Result]]:
    """For a person: one line per method, and one per case that says which methods recovered it exactly."""
    shown = ["method", "exact", "trimmed_exact", "cases", "precision", "recall", "auroc", "seconds"]
    short = [{k: t[k] for k in shown} for t in told]
    cases: dict[str, Result] = {}
    for r in rows:
        line = cases.setdefault(r["case"], {"case": r["case"], "size": r["size"]})
        line[r["method"]] = "exact" if r["exact"] else "after trimming" if r["trimmed_exact"] else _miss(r)
    return {"circuits recovered": short, "case by case": list(cases.values())}


def _miss(r: Result) -> str:
    """What a method found of a circuit instead of it."""
    if r["status"] != "ok":
        return "nothing" if r["status"] == "infeasible" else r["status"]
    return f"{r['trimmed_recall']:.0%} of it, {r['trimmed_precision']:.0%} true"


__all__ = ["bench_planted", "run_case", "summary"]
