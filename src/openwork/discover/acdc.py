"""ACDC: edge by edge from the output back, whatever costs less than a threshold goes (Conmy et al. 2023, 2304.14997).

    for every node, the output first; for every edge into it, the latest source first:
        if the metric without this edge is worse by less than the threshold: the edge goes, for good

"Worse" is against the circuit as it then is; the metric is by default the divergence from the whole model. Edges into
a node from which no kept edge leads on go without a run, since nothing hears them. (Under AbsTopK its neighbours do,
which compete with it; those edges go all the same, and what is left is judged as it is.) Where code in use walks a set,
in an order that changes from run to run, the order here is fixed, so the same search finds the same circuit.

The next few edges of a node are tried side by side, the first alone, the first two, ...; those before the first that
must stay go. That is the sequential result, at the price of runs in vain after an edge that stays; so few are tried
together where edges stay, more where they go. Without a threshold, the largest of a falling row is taken that meets the
target, and three bisections sharpen it.

After a node, what is kept may be put away: where the runs stand as if they had just begun, to which they are brought at
the end of every site.

Knows a patched run and one split. Does not know kinds of layers, nor the split that will judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field
from torch import Tensor

from openwork.circuit import Circuit
from openwork.discover.search import Discovery, MetricName, Progress, Search, SearchSettings, finish
from openwork.discover.state import NOWHERE, Keeper, Shelf, State, masks_of, named, under
from openwork.discover.state import circuit_of as circuit_from
from openwork.discover.trials import Entry, Of, Trials, candidates, leading, units
from openwork.patched_run import Part, PatchedRun
from openwork.tasks.metrics import METRICS, Metric

THRESHOLDS = tuple(10.0**e for e in (1, 0, -1, -2, -3, -4, -5))
BISECTIONS = 3
PASS, ATTEMPTS = "pass", "attempts"  # the names under which one pass, and the search for a threshold, are put away


class ACDCSettings(SearchSettings):
    """What goes, judged by which metric, at which threshold."""

    of: Of = "edges"
    metric: MetricName = "kl"
    threshold: float | None = Field(
        None,
        gt=0,
        description="worsening, in units of the metric, below which an edge goes; none: searched at the target",
    )


@dataclass(frozen=True)
class Pruned:
    """What one pass left.

    masks   link -> bool [dst, src], or site -> bool [n]: what is kept of that which may go
    value   the metric of what is left
    tried   edges or nodes decided by a run; runs: how many variants were run for them
    """

    masks: Mapping[str, Tensor]
    value: float
    tried: int
    runs: int


def acdc(
    search: Search, settings: ACDCSettings, progress: Progress | None = None, keeper: Keeper = NOWHERE
) -> Discovery:
    """The circuit that ACDC leaves at the threshold, or at the largest threshold found that meets the target."""
    run, s = search.run, settings
    parts, metric = run.parts(search.learn), METRICS[s.metric]
    origin = {"method": "acdc", "settings": s.model_dump(), "split": search.split.name}
    log: list[dict[str, Any]] = []
    circuit = Circuit.whole(run.graph, run.support)  # of the last attempt that met the target, or else of the last
    if (saved := keeper.load(ATTEMPTS)) is not None:
        circuit, log = circuit_from(run.graph, saved.tensors, {}), list(saved.data["log"])
    while (threshold := _next(log, s.threshold, search.target)) is not None:
        pruned = prune(run, parts, metric, threshold, s.of, progress, Shelf(keeper, f"acdc {len(log)}"))
        left = circuit_of(run, pruned.masks, s.of)
        left = search.tidy(left) if s.of == "edges" else left
        loss = search.judge(left)
        if loss <= search.target or not any(row["loss"] <= search.target for row in log):
            circuit = left
        edges = left.counts()["edges"]
        log.append({"threshold": threshold, "edges": edges, "loss": loss, "value": pruned.value, "runs": pruned.runs})
        keeper.save(ATTEMPTS, lambda kept=circuit: State(masks_of(kept), {"log": log}))
    found = finish(search, circuit, origin)
    lowest = found.loss if found.circuit is not None else min(row["loss"] for row in log)
    return replace(found, loss=lowest, log=tuple(log))


def _next(log: Sequence[Mapping[str, Any]], asked: float | None, target: float) -> float | None:
    """The threshold to try after these attempts, None after the last one.

    Falling until one meets the target; then, between the largest that does and the next one that does not, middles.
    """
    if asked is not None:
        return None if log else asked
    met = [row["threshold"] for row in log if row["loss"] <= target]
    missed = [row["threshold"] for row in log if not row["loss"] <= target]
    if not met:
        return THRESHOLDS[len(log)] if len(log) < len(THRESHOLDS) else None
    if not missed or len(log) - [row["loss"] <= target for row in log].index(True) > BISECTIONS:
        return None
    return math.sqrt(max(met) * min(missed))


def prune(
    run: PatchedRun,
    parts: Sequence[Part],
    metric: Metric,
    threshold: float,
    of: Of = "edges",
    progress: Progress | None = None,
    keeper: Keeper = NOWHERE,
) -> Pruned:
    """One pass over all edges or nodes on these examples; see the head of this file.

    threshold  worsening in units of the metric, mean over the examples, below which an edge or node goes
    keeper     where the pass is put away after a node, and from where it goes on
    """
    graph, support = run.graph, run.support
    masks = candidates(graph, support, of)
    todo = list(units(graph, masks, of))
    trials = Trials(run, parts, metric, of)
    done, tried, at_once = 0, 0, 1
    if (saved := keeper.load(PASS)) is None:
        now = trials.begin(masks)
    else:
        masks, now = under(saved.tensors, "kept"), saved.data["value"]  # the very number that the search stood at
        done, tried, at_once, trials.count = (saved.data[n] for n in ("done", "tried", "at_once", "runs"))
        trials.begin(under(saved.tensors, "run"))  # with edges that nothing hears, which went without a run
    heard, of_site = leading(graph, support, masks, of), ""
    for i, (site, node, entries) in enumerate(todo[done:], done):
        if site != of_site:  # what goes at a site does not change which of its own nodes lead on
            heard, of_site = leading(graph, support, masks, of), site
        if not heard[site][node]:
            _drop(masks, entries)
            entries = []
        tried += len(entries)
        while entries:
            some = entries[:at_once]
            values = trials.trial([some[: k + 1] for k in range(len(some))], now + threshold)
            gone = 0
            for value in values:
                if metric.sign * (now - value) >= threshold:
                    break
                now, gone = value, gone + 1
            if gone:
                trials.keep(gone - 1)
                _drop(masks, some[:gone])
            stays = gone < len(some)
            entries = entries[gone + stays :]
            at_once = max(1, at_once // 2) if stays else min(2 * at_once, trials.at_once)
        if not trials.fresh and (i + 1 == len(todo) or todo[i + 1][0] != site):
            trials.begin(masks)
        if trials.fresh:
            stands = {"done": i + 1, "tried": tried, "at_once": at_once, "runs": trials.count, "value": now}
            keeper.save(PASS, lambda at=stands: State(named(masks, "kept") | named(trials.masks, "run"), at))
        if progress is not None:
            progress(i + 1, len(todo))
    return Pruned(masks, now, tried, trials.count)


def circuit_of(run: PatchedRun, masks: Mapping[str, Tensor], of: Of) -> Circuit:
    """The circuit of what is kept."""
    if of == "nodes":
        return Circuit.from_nodes(run.graph, masks, run.support)
    return Circuit.from_edges(run.graph, masks, run.support, reached=run.constants_are_lost)


def _drop(masks: Mapping[str, Tensor], entries: Sequence[Entry]) -> None:
    for name, at in entries:
        masks[name][at] = False


__all__ = ["ACDCSettings", "Pruned", "acdc", "circuit_of", "prune"]
