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

With a `folder`, the table of what is kept is written after each node, and the same search begun again goes on where it
was broken off. Knows a patched run and one split. Does not know kinds of layers, nor the split that will judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from openwork.circuit import Circuit
from openwork.discover.search import Discovery, MetricName, Progress, Search, SearchSettings, finish
from openwork.discover.trials import Entry, Notebook, Of, Trials, candidates, key_of, leading, units
from openwork.patched_run import Part, PatchedRun
from openwork.tasks.metrics import METRICS, Metric

THRESHOLDS = tuple(10.0**e for e in (1, 0, -1, -2, -3, -4, -5))
BISECTIONS = 3


class ACDCSettings(SearchSettings):
    """What goes, judged by which metric, at which threshold."""

    of: Of = "edges"
    metric: MetricName = "kl"
    threshold: float | None = Field(
        None,
        gt=0,
        description="worsening, in units of the metric, below which an edge goes; none: searched at the target",
    )
    folder: Path | None = Field(None, exclude=True, description="where to write the table of a long search")


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


def acdc(search: Search, settings: ACDCSettings, progress: Progress | None = None) -> Discovery:
    """The circuit that ACDC leaves at the threshold, or at the largest threshold found that meets the target."""
    run, s = search.run, settings
    parts, metric = run.parts(search.learn), METRICS[s.metric]
    origin = {"method": "acdc", "settings": s.model_dump(), "split": search.split.name}
    log: list[dict[str, Any]] = []

    def attempt(threshold: float) -> tuple[Circuit, bool]:
        pruned = prune(run, parts, metric, threshold, s.of, s.folder, progress)
        circuit = circuit_of(run, pruned.masks, s.of)
        circuit = search.tidy(circuit) if s.of == "edges" else circuit
        loss = search.judge(circuit)
        edges = circuit.counts()["edges"]
        log.append({"threshold": threshold, "edges": edges, "loss": loss, "value": pruned.value, "runs": pruned.runs})
        return circuit, loss <= search.target

    if s.threshold is not None:
        circuit, _ = attempt(s.threshold)
    else:
        low, high = THRESHOLDS[0], math.nan
        circuit, met = attempt(low)
        while not met and low > THRESHOLDS[-1]:
            low, high = THRESHOLDS[THRESHOLDS.index(low) + 1], low
            circuit, met = attempt(low)
        for _ in range(BISECTIONS if met and not math.isnan(high) else 0):
            middle = math.sqrt(low * high)
            smaller, met = attempt(middle)
            circuit, low, high = (smaller, middle, high) if met else (circuit, low, middle)
    found = finish(search, circuit, origin)
    lowest = found.loss if found.circuit is not None else min(row["loss"] for row in log)
    return replace(found, loss=lowest, log=tuple(log))


def prune(
    run: PatchedRun,
    parts: Sequence[Part],
    metric: Metric,
    threshold: float,
    of: Of = "edges",
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Pruned:
    """One pass over all edges or nodes on these examples; see the head of this file.

    threshold  worsening in units of the metric, mean over the examples, below which an edge or node goes
    folder     where the table is written, or read from where the same pass was broken off; RunError for another's
    """
    graph, support = run.graph, run.support
    masks = candidates(graph, support, of)
    todo = list(units(graph, masks, of))
    trials = Trials(run, parts, metric, of)
    key = key_of(run, parts, method="acdc", metric=metric.name, of=of, threshold=threshold)
    book = Notebook(folder and folder / f"acdc-{threshold:g}.json", key)
    told = book.read() or {"done": 0, "kept": None, "tried": 0, "runs": 0, "at_once": 1, "value": None}
    if told["kept"] is not None:
        masks = {n: torch.tensor(told["kept"][n], dtype=torch.bool).view(m.shape) for n, m in masks.items()}
    now, tried, at_once = trials.begin(masks), told["tried"], told["at_once"]
    now = now if told["value"] is None else told["value"]  # the very number that the search stood at
    heard, of_site = leading(graph, support, masks, of), ""
    for i, (site, node, entries) in enumerate(todo[told["done"] :], told["done"] + 1):
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
        if folder is not None:
            kept = {n: m.flatten().tolist() for n, m in masks.items()}
            count = trials.count + told["runs"]
            book.write(done=i, kept=kept, tried=tried, runs=count, at_once=at_once, value=now)
        if progress is not None:
            progress(i, len(todo))
    return Pruned(masks, now, tried, trials.count + told["runs"])


def circuit_of(run: PatchedRun, masks: Mapping[str, Tensor], of: Of) -> Circuit:
    """The circuit of what is kept."""
    if of == "nodes":
        return Circuit.from_nodes(run.graph, masks, run.support)
    return Circuit.from_edges(run.graph, masks, run.support, reached=run.constants_are_lost)


def _drop(masks: Mapping[str, Tensor], entries: Sequence[Entry]) -> None:
    for name, at in entries:
        masks[name][at] = False


__all__ = ["ACDCSettings", "Pruned", "acdc", "circuit_of", "prune"]
