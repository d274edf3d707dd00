"""The circuits of many tasks of one run, side by side, and how their size grows as the loss asked for falls.

Every task is a job of its own that is skipped where its folder has the answer already, so a stopped command goes on.
All workers read one model in shared memory. Tasks that the whole model does not solve are named with their loss and
left out. Knows names, jobs and folders. Does not know how a circuit is found.

    circuits/<task>-<method>/frontier.json   one record per target (see `frontier`)
    frontier.svg                             edges against loss, every task and their mean (needs openwork[plot])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openwork import store
from openwork.errors import UsageError
from openwork.frontier import mean_frontier, targets_for
from openwork.progress import Progress
from openwork.runs import Run, find_circuit, hold, open_run, slug_of
from openwork.tasks.subjects import SUBJECTS
from openwork.threads import available_cores
from openwork.views.frontier import draw_frontier
from openwork.workers import Job, map_jobs

Result = dict[str, Any]


def discover_tasks(
    path: Path,
    tasks: str,
    method: str,
    settings: Mapping[str, Any],
    reference: str,
    granularity: str,
    workers: int | None,
    progress: Progress,
) -> Result:
    """What `openwork discover --task all` prints: a record per task, the frontier, and the mean over tasks.

    tasks  "all", or names with commas between them
    """
    run = open_run(path)
    names = askable(run) if tasks == "all" else tuple(t.strip() for t in tasks.split(",") if t.strip())
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--task {tasks}: name each task once, as a,b,c; or say all.")
    for name in names:
        run.task(name)  # a wrong name is told before anything is searched
    targets = targets_for(float(settings["target"]))
    rest = ("right", reference, granularity, targets)
    labels = {t: f"discover {Path(t).stem}" for t in names}
    jobs = [Job(t, find_circuit, (path, t, method, settings, labels[t], *rest)) for t in names]
    results = map_jobs(jobs, workers or available_cores(), progress, in_common=hold(run))
    rows = [_row(path, t, r) for t, r in zip(names, results, strict=True)]
    found = [r for r in rows if r["points"]]
    mean = mean_frontier(found, targets)
    result: Result = {
        "run": str(path), "method": method, "reference": reference, "target": settings["target"],
        "tasks": rows, "mean": mean,
    }  # fmt: skip
    skipped = [r for r in rows if r["status"] == "unsolved"]
    notes = [
        f"{r['task']} is left out: the whole model's loss is {r['whole_loss']:.3g}, above the target {r['target']:g}."
        for r in skipped
    ]
    try:
        if found:
            result["plot"] = str(draw_frontier(result, path / "frontier.svg"))
    except ImportError:
        notes.append('There is no plot: it needs pip install "openwork[plot]".')
    return result | {"tables": _tables(rows, mean), "notes": notes}


def askable(run: Run) -> tuple[str, ...]:
    """All tasks of a run's subject whose answers its model can give: of text, those that are tokens of its corpus."""
    kind = SUBJECTS.get(run.subject.name)
    names = []
    for name in kind.tasks if kind is not None else run.subject.task_names():
        try:
            run.task(name)
        except UsageError:
            continue
        names.append(name)
    return tuple(names)


def _row(path: Path, task: str, result: Mapping[str, Any]) -> Result:
    """One task's record; `points` is its frontier, empty where no circuit was found."""
    row: Result = {"task": slug_of(task), "status": result["status"], "target": result["target"]}
    if result["status"] == "unsolved":
        return row | {"whole_loss": result["whole_loss"], "points": []}
    folder = path / "circuits" / result["circuit"]
    row |= {"circuit": folder.name, "cpu_seconds": result["cpu_seconds"], "whole_loss": result["whole_loss"]}
    if result["status"] != "ok":
        return row | {"points": []}
    kept = {k: result["edge_pruned"][k] for k in ("nodes", "edges", "loss", "accuracy")}
    return row | kept | {"points": store.read_json(folder / "frontier.json")["points"]}


def _tables(rows: Sequence[Mapping[str, Any]], mean: Sequence[Mapping[str, Any]]) -> dict[str, list[Result]]:
    """For a person: the circuits, then edges (held-out loss) at each target, task by task."""
    shown = ("task", "status", "nodes", "edges", "loss", "accuracy", "whole_loss", "cpu_seconds")
    frontier = []
    for m in mean:
        line: Result = {"target": m["target"], "mean edges": m["edges"], "mean nodes": m["nodes"], "tasks": m["tasks"]}
        for r in rows:
            at = [p for p in r["points"] if p["target"] == m["target"]]
            if r["points"]:
                line[str(r["task"])] = f"{at[0]['edges']:,} ({at[0]['held_out']:.2f})" if at else "-"
        frontier.append(line)
    tables = {"circuits": [{k: r.get(k) for k in shown} for r in rows]}
    return tables | ({"edges (held-out loss) by target, geometric mean first": frontier} if frontier else {})


__all__ = ["discover_tasks"]
