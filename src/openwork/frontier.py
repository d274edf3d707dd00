"""How small a circuit can be at which task loss: nested circuits of one task, and the mean over tasks.

One search gives a ranking and a circuit at the target asked for. From these, without another search:

    1  the lowest target: the circuit and top-ranked nodes or edges, a third more at a time until they meet it
    2  each higher target: the one before, trimmed further, but for what the circuit keeps
    3  the target asked for: the circuit itself; above it, trimmed further still

So every circuit is a subset of the one before. After each target the points so far may be put away. Knows patched runs,
trims and figures. Does not know folders, nor which method searched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from openwork.circuit import Circuit
from openwork.discover import NOWHERE, Discovery, Keeper, State, Trimmed, trim
from openwork.discover.state import Shelf, circuit_of, masks_of
from openwork.patched_run import PatchedRun
from openwork.tasks.task import Split

Result = dict[str, Any]

LOWEST, HIGHEST, MANY = 0.01, 0.6, 12
GROWTH = 1.3
ROUNDING = 1e-6  # nats; two ways of adding up one loss differ by less
POINTS = "frontier"  # the name under which the points so far are put away
PATIENCE = 8  # failures in a row that end a pass of a trim: the points are to be cheap, not one-minimal


def targets_for(asked: float) -> tuple[float, ...]:
    """Twelve task losses from 0.01 to 0.6 nats, evenly in their logarithm, and the one asked for; the lowest first."""
    step = math.log(HIGHEST / LOWEST) / (MANY - 1)
    return tuple(sorted({asked, *(round(LOWEST * math.exp(step * i), 3) for i in range(MANY))}))


def nested(
    run: PatchedRun,
    discover: Split,
    verify: Split,
    found: Discovery,
    circuit: Circuit,
    asked: float,
    targets: Sequence[float],
    keeper: Keeper = NOWHERE,
) -> list[Result]:
    """One record per target that was reached, the lowest first: loss, held-out loss, and the circuit's counts.

    found    the search; circuit: its trimmed circuit, which meets `asked`
    targets  nats. At `asked` it is the circuit, on the whole discover split; at the others what counts is the half that
             masks are not learned from, since all would double the cost. Those not reached have no record
    keeper   where the points so far are put away, and from where the rest goes on
    """
    half = discover.halves()[1]
    points: list[Result] = []
    now: Circuit | None = None
    done = 0
    if (saved := keeper.load(POINTS)) is not None:
        points, done = list(saved.data["points"]), int(saved.data["done"])
        now = circuit_of(run.graph, saved.tensors, circuit.origin) if saved.tensors else None
    for i, target in list(enumerate(sorted(targets)))[done:]:
        shelf = Shelf(keeper, f"frontier {i}")
        if target == asked:
            now, loss = circuit, run.loss(discover, circuit)
        elif target < asked:
            if now is None:
                now = _start(run, half, found, circuit, target)
                if now is None:
                    continue
                now = _trimmed(run, now, half, target, shelf, circuit, edges=False).circuit
            now, loss = (t := _trimmed(run, now, half, target, shelf, circuit)).circuit, t.loss
        else:
            now, loss = (t := _trimmed(run, now or circuit, half, target, shelf)).circuit, t.loss
        if loss <= target + ROUNDING:
            points.append({"target": target, "loss": loss, "held_out": run.loss(verify, now), **now.counts()})
        stands = {"points": points, "done": i + 1}
        keeper.save(POINTS, lambda kept=now, stands=stands: State(masks_of(kept), stands))
    return points


def _trimmed(
    run: PatchedRun,
    circuit: Circuit,
    split: Split,
    target: float,
    keeper: Keeper,
    keep: Circuit | None = None,
    edges: bool = True,
) -> Trimmed:
    return trim(
        run.model, circuit, run.reference, split, target, edges, PATIENCE, 0, rounds=1, keep=keep, seed=run.seed,
        keeper=keeper,
    )  # fmt: skip


def _start(run: PatchedRun, split: Split, found: Discovery, circuit: Circuit, target: float) -> Circuit | None:
    """The circuit with as many top-ranked nodes or edges as meet a lower target; None where the ranking has none."""
    if found.scores is None:
        return None
    counts, scores = circuit.counts(), found.scores
    kept = counts["edges" if scores.of_edges else "nodes"]
    total = sum(v.numel() for v in scores.values.values())
    while kept < total:
        kept = min(total, math.ceil(GROWTH * kept) + 1)
        masks = scores.top(kept)
        mine = circuit.edges if scores.of_edges else circuit.nodes
        start = scores.circuit({n: m | mine[n] for n, m in masks.items()}, run.support, reached=run.constants_are_lost)
        if run.loss(split, start) <= target:
            return start
    return None


def mean_frontier(tasks: Sequence[Mapping[str, Any]], targets: Sequence[float]) -> list[Result]:
    """Per target, the geometric mean over tasks of edges and nodes, with how many tasks reach it.

    tasks  records with `points`, as `nested` gives them
    """
    rows: list[Result] = []
    for target in sorted(targets):
        at = [p for t in tasks for p in t["points"] if p["target"] == target]
        if not at:
            continue
        row: Result = {"target": target, "tasks": len(at)}
        for what in ("edges", "nodes"):
            row[what] = math.exp(sum(math.log(max(p[what], 1)) for p in at) / len(at))
        row["held_out"] = sum(p["held_out"] for p in at) / len(at)
        rows.append(row)
    return rows


__all__ = ["mean_frontier", "nested", "targets_for"]
