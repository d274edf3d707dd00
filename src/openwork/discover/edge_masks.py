"""Learned masks before single edges ("Edge Pruning": Bhaskar et al. 2024, arXiv 2406.16778).

One number tau per edge, that is per nonzero weight of the block links; a shut edge carries what its source sends on the
reference. Any reference will do, also one that belongs to each example. Edges start in the order of attribution
(see `gradients`), learn on one half of the examples under a controlled price (see `learning`), are ranked by tau, and
the fewest that meet the target on the other half and on both together are kept. Where no snapshot met the target though
all edges together do, the order of attribution decides.

    gate    "step" (straight-through, as masks of nodes are learned) or "hard_concrete" (as published)
    edges   if given, how many edges there may be: then the number is controlled, the loss is what comes of it, and the
            result must still meet the target. A search for the best 20 edges, whatever their loss, has a high target

Departures from Edge Pruning: a price that follows loss or size in place of two Lagrange multipliers, so that one rule
serves both; single weights rather than edges between heads and layers; an exact run decides, never a threshold.

A link of the account "block" is gated; the nodes that are left are those on a path of kept edges, so nodes without any
such edge (a transformer's final reads) stay until the trim. Knows a patched run. Does not know the kind of layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from openwork.circuit import Circuit, Masks, Scores
from openwork.discover.gradients import LaidOut, edge_costs, edge_links
from openwork.discover.learning import (
    Deal,
    Descent,
    GateSettings,
    count,
    hard_concrete_gate,
    leaders,
    ranked_start,
    step_gate,
    toward_loss,
    toward_size,
    with_partners,
)
from openwork.discover.masks import frozen
from openwork.discover.search import Discovery, Progress, Search
from openwork.discover.state import NOWHERE, Keeper
from openwork.errors import UsageError


class EdgeMaskSettings(GateSettings):
    """Settings of the search. Losses in nats per example."""

    gate: Literal["step", "hard_concrete"] = "step"
    edges: int | None = Field(None, ge=1, description="most edges there may be; without it, as few as meet the target")
    price: float = Field(1e-4, gt=0, description="starting price of one edge, nats")


@dataclass(frozen=True)
class Learned:
    """What came of learning: the circuit that met the target or None, its ranking, the lowest loss, and the log."""

    circuit: Circuit | None
    scores: Scores
    loss: float
    log: tuple[dict[str, Any], ...]


def learned_edge_masks(
    search: Search, settings: EdgeMaskSettings, progress: Progress | None = None, keeper: Keeper = NOWHERE
) -> Discovery:
    """The smallest circuit of edges found at the target loss, or the best one of at most `edges` edges.

    UsageError where the model has no edges to search.
    """
    run = search.run
    found = learn_edges(search, settings, progress, keeper)
    origin = {"method": "edge_masks", "settings": settings.model_dump(), "split": search.split.name}
    full, circuit = run.loss(search.choose), found.circuit
    if circuit is None:
        return Discovery("infeasible", None, found.loss, full, found.scores, found.log, origin)
    loss = run.loss(search.choose, circuit)
    return Discovery("ok", circuit.with_origin(**origin), loss, full, found.scores, found.log, origin)


def learn_edges(
    search: Search, s: EdgeMaskSettings, progress: Progress | None = None, keeper: Keeper = NOWHERE
) -> Learned:
    """Learns which edges can go, and decides."""
    run = search.run
    support = {n: run.support[n] for n in edge_links(run.graph) if bool(run.support[n].any())}
    if not support:
        raise UsageError(f"this {type(run.model).__name__} has no block edges: there is nothing to put a mask on.")

    def circuit_of(edges: Masks) -> Circuit:
        return search.tidy(Circuit.from_edges(run.graph, edges, run.support, reached=run.constants_are_lost))

    def exact(kept: Masks) -> float:
        return search.judge(circuit_of(_laid(kept, support)))

    lowest = math.inf
    with frozen(run.model):
        descent = _descent(search, s, support)
        if s.edges is None:
            begin = descent.now()
            guess = math.log(1 + search.learn.wrong.shape[1])
            best = toward_loss(descent, exact, guess, "edges", progress, keeper)
            if best is None:
                lowest = exact({n: t > 0 for n, t in begin.items()})
                best = begin if lowest <= s.target else None  # all are needed, or learning lost the task at once
                lowest = min(lowest, exact(descent.kept()))
        else:
            best = toward_size(descent, exact, s.edges, "edges", progress, keeper)
    tau = best if best is not None else descent.now()
    none = {n: torch.full(run.support[n].shape, -math.inf) for n in edge_links(run.graph)}
    scores = Scores(run.graph, none | _laid(tau, support, fill=-math.inf), "tau")
    circuit, log = None, tuple(descent.log)
    if s.edges is not None:
        circuit = circuit_of(scores.top(s.edges))
        lowest = search.judge(circuit)
        circuit = circuit if lowest <= s.target else None
    elif best is not None:
        circuit, tried = search.fewest(scores, count({n: t > 0 for n, t in best.items()}))
        log += tuple({"step": s.steps, "edges": t["edges"], "exact": t["loss"]} for t in tried)
        lowest = min(t["loss"] for t in tried)
    return Learned(circuit, scores, lowest, log)


def _laid(flat: Masks, support: Masks, fill: float = 0.0) -> dict[str, Tensor]:
    """One value per edge, link -> [edges], where it belongs: link -> [dst, src]; no value for what is no edge."""
    empty = {n: torch.full(support[n].shape, fill, device=m.device).to(m.dtype) for n, m in flat.items()}
    return {n: empty[n].masked_scatter(support[n].to(m.device), m) for n, m in flat.items()}


def _descent(search: Search, s: EdgeMaskSettings, support: Masks) -> Descent:
    """Tau as it starts, and the loss of the next batch with gates before edges.

    Batches are dealt out once and come in a new order every epoch: what their layouts and references hold is reused.
    """
    run = search.run
    costs = {n: c[support[n]] for n, c in edge_costs(run, search.learn).items() if n in support}
    rng = torch.Generator().manual_seed(s.seed)
    lead = leaders(search.learn)
    dealt = lead[torch.randperm(len(lead), generator=rng)].split(s.pairs)
    batches = [run.parts(with_partners(search.learn, some), most=1)[0] for some in dealt]
    laid = LaidOut(run, Circuit.whole(run.graph, run.support), batches)

    def loss(gates: Masks, batch: int) -> Tensor:
        laid.edges.update(_laid(gates, support))
        return laid.losses(batch).mean()

    gate = step_gate(s.temperature) if s.gate == "step" else hard_concrete_gate(s.seed)
    start = ranked_start(costs, s.init, next(run.model.parameters()).device)
    return Descent(start, gate, loss, Deal(len(batches), rng), s)


__all__ = ["EdgeMaskSettings", "Learned", "learn_edges", "learned_edge_masks"]
