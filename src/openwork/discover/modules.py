"""Modules as circuits: parts of a model that were found by structure, from its weights alone and without any data.

A module is the nodes of one label of a partition (see `structure`) with all nonzero weights between them. Inputs,
outputs and tables are open to every module and stand in each; what joins two modules stands in none. So all modules
together are the model without its interface, and with zeros as the reference their union runs like the model whose
weights between modules are deleted.

As a way of searching (`by_modules`) the parts come from the weights alone, and data only say how many of them a task
needs: the fewest modules whose union meets the target, first without what joins them, then with it.

Knows a model's weights as a graph, and partitions of it; `by_modules` also a search's loss. Does not know what the
modules are for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import reduce
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from openwork import structure
from openwork.circuit import Circuit
from openwork.discover.search import Discovery, Progress, Search, SearchSettings
from openwork.discover.state import NOWHERE, Keeper, State
from openwork.errors import UsageError, unknown
from openwork.patching import graph_of, support
from openwork.structure import Labels, Wiring

PARTITIONS = ("spectral", "blocks")  # those that a model's weights alone give
UNIONS = 100  # of one size that are all judged
JUDGED = "unions"  # the name under which the log of unions is put away


def partition_of(model: nn.Module, of: Wiring, way: str, k: int | None, seed: int = 0) -> Labels:
    """The labels [count] of k modules; without k, as many as the largest eigengap says.

    way   "spectral": a small normalised cut; "blocks": contiguous equal blocks of every layer, a baseline that looks at
          no weight
    UsageError where there are fewer nodes than modules, and for an unknown way.
    """
    if way not in PARTITIONS:
        raise unknown("partition", way, PARTITIONS)
    if k is not None and of.count < k:
        raise UsageError(f"{k} modules are asked for, but the model has {of.count} hidden nodes to share out.")
    sizes = {name: structure.size(w.detach()) for name, w in structure.weights(model, of).items()}
    graph = structure.adjacency(of, sizes)
    many = structure.eigengap(graph, seed=seed) if k is None else k
    labels = structure.spectral(graph, many, seed) if way == "spectral" else structure.blocks(of, many)
    empty = np.flatnonzero(np.bincount(labels, minlength=many) == 0)
    if len(empty):
        raise UsageError(f"the partition {way} leaves {len(empty)} of {many} modules without a node; ask for fewer.")
    return labels


def module_nodes(of: Wiring, labels: Labels, module: int) -> dict[str, Tensor]:
    """Which nodes of each labelled site are in a module, site -> bool [n]."""
    return {site: label == module for site, label in of.partition(labels).items()}


def module_circuits(
    model: nn.Module, of: Wiring, labels: Labels, origin: Mapping[str, Any] | None = None
) -> tuple[Circuit, ...]:
    """One circuit per module, in their order; each says in its `origin` which one it is, beside what is given."""
    graph, edges = graph_of(model), support(model)
    return tuple(
        Circuit.from_nodes(graph, module_nodes(of, labels, c), edges, {**(origin or {}), "module": c})
        for c in range(int(labels.max()) + 1)
    )


class ModuleSettings(SearchSettings):
    """Which modules are put together."""

    modules: int | None = Field(
        None, ge=2, le=structure.MOST, description="how many modules; without it, as many as the largest eigengap says"
    )
    partition: Literal["spectral", "blocks"] = "spectral"


def by_modules(
    search: Search, settings: ModuleSettings, progress: Progress | None = None, keeper: Keeper = NOWHERE
) -> Discovery:
    """The union of the fewest modules of the final weights that meets the target, or none; of several, the smallest.

    Of every size all unions are judged, where there are no more than UNIONS; else those that add one module to the best
    union of the size before. A union lacks the weights between its modules; where none meets the target, the nodes of
    the same unions are judged with all weights between them, and `origin` says so under "joined".

    UsageError where a model has no hidden nodes to share out, or fewer than modules.
    """
    run, s = search.run, settings
    of = structure.wiring(run.graph)
    parts = module_circuits(run.model, of, partition_of(run.model, of, s.partition, s.modules, s.seed))
    many, found = len(parts), []
    log: list[dict[str, Any]] = []
    saved = keeper.load(JUDGED)
    known = [row["loss"] for row in saved.data["log"]] if saved is not None else []  # of unions, in their order
    best: tuple[int, ...] = ()
    for joined, size in itertools.product((False, True), range(1, many + 1)):
        tried: list[tuple[float, int, tuple[int, ...], Circuit]] = []
        for some in _unions(many, size, best):
            circuit = _union([parts[i] for i in some], run.support, joined)
            loss = known[len(log)] if len(log) < len(known) else search.judge(circuit)
            tried.append((loss, len(circuit), some, circuit))
            log.append({"modules": list(some), "joined": joined, "edges": len(circuit), "loss": loss})
            if len(log) > len(known):
                keeper.save(JUDGED, lambda: State(data={"log": log}))
        best = min(tried, key=lambda t: t[0])[2]
        found = sorted((t for t in tried if t[0] <= s.target), key=lambda t: t[1:3])
        if progress is not None:
            progress(size + joined * many, 2 * many)
        if found:
            break
    origin = {"method": "modules", "settings": s.model_dump(), "split": search.split.name, "of": many}
    full = run.loss(search.choose)
    if not found:
        return Discovery("infeasible", None, min(t["loss"] for t in log), full, None, tuple(log), origin)
    _, _, some, circuit = found[0]
    circuit = circuit.with_origin(**origin, modules=list(some), joined=log[-1]["joined"])
    return Discovery("ok", circuit, run.loss(search.choose, circuit), full, None, tuple(log), dict(circuit.origin))


def _unions(many: int, size: int, best: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Sets of `size` of `many` modules: all of them, or where these are too many those around the best smaller one."""
    if math.comb(many, size) <= UNIONS:
        return list(itertools.combinations(range(many), size))
    return [tuple(sorted((*best, i))) for i in range(many) if i not in best]


def _union(parts: list[Circuit], edges: Mapping[str, Tensor], joined: bool) -> Circuit:
    """Several modules as one circuit, without or with the weights that join them."""
    union = reduce(Circuit.__or__, parts)
    return Circuit.from_nodes(union.graph, union.nodes, edges) if joined else union


__all__ = ["PARTITIONS", "ModuleSettings", "by_modules", "module_circuits", "module_nodes", "partition_of"]
