"""The search to begin with: gradients and learned masks propose, exact runs decide, and what is left is one-minimal.

    1  starts   circuits that meet the target, each found in another way
    2  trim     of each: single edges and nodes, until none can go on all examples together (see `trim`); in a small
                model also nodes before edges, for the order decides where a trim ends
    3  answer   the smallest, counting nodes and edges; among equals the one with the least loss

The starts:

    whole       the whole model: the trim's exact runs find what no gradient shows (two inputs that matter only
                together, parts that stand in for each other, a loss too small to have a slope)
    ranked      the fewest edges, and the fewest nodes, by what their ablation is estimated to cost, along the masks
                from none to all and at the whole model
    learned     masks of edges, and with more `tries` of nodes too: they leave far less of a larger model than any
                ranking does, but need a few hundred steps

A model of at most `exhaustive` nodes and edges is searched from all of these: where a trim ends depends on where it
begins. A larger one from learned masks alone, and from the others, in turn, only where these fail. Where no start meets
the target, the answer is that none does.

Knows the ways of searching beside it and their judge. Does not know the kind of layer or of reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field

from openwork.circuit import Circuit, Scores
from openwork.discover.edge_masks import EdgeMaskSettings, learn_edges
from openwork.discover.gradients import LEVELS, WHOLE, edge_costs, node_costs
from openwork.discover.masks import MaskSettings, frozen, learned_masks
from openwork.discover.search import Discovery, Progress, Search, SearchSettings
from openwork.discover.trim import Trimmed, trim


class AutoSettings(SearchSettings):
    """How much is tried. Losses in nats per example."""

    exhaustive: int = Field(
        2000,
        ge=0,
        description="a model of at most so many nodes and edges is searched from every start, each in both orders",
    )
    steps: int = Field(200, ge=1, description="steps in which edge masks learn")
    pairs: int = Field(16, ge=1, description="pairs of examples per step")
    tries: int = Field(1, ge=1, description="times that masks learn: of edges, of nodes, again with the next seed")


@dataclass(frozen=True)
class Start:
    """A circuit that met the target, or None; the least loss (nats) reached on the way; its ranking, if any."""

    name: str
    circuit: Circuit | None
    loss: float
    scores: Scores | None = None


def search_automatically(search: Search, settings: AutoSettings, progress: Progress | None = None) -> Discovery:
    """The smallest one-minimal circuit that the starts lead to, or none where no start meets the target.

    A start meets the target on the half that chooses and on all examples. The trim decides on all of them, and so its
    loss, and that of the whole model, are given on all.
    """
    run = search.run
    small = size(Circuit.whole(run.graph, run.support)) <= settings.exhaustive
    ways = [_whole, _ranked, _learned] if small else [_learned, _ranked, _whole]
    best: tuple[Trimmed, Start] | None = None
    log: list[dict[str, Any]] = []
    with frozen(run.model):
        for way in ways:
            if best is not None and not small:
                break
            for start in way(search, settings, progress):
                log.append({"start": start.name, "loss": start.loss})
                if start.circuit is None:
                    continue
                left = _trimmed(search, start.circuit, both_orders=small)
                counts = left.circuit.counts()
                log[-1] |= {"nodes": counts["nodes"], "edges": counts["edges"]}
                log[-1] |= {"runs": left.runs, "one_minimal": left.one_minimal}
                if best is None or _worth(left) < _worth(best[0]):
                    best = left, start
                if not small and way is _ranked:
                    break
    origin = {"method": "auto", "settings": settings.model_dump(), "split": search.split.name}
    full = run.loss(search.split)
    if best is None:
        return Discovery("infeasible", None, min(row["loss"] for row in log), full, None, tuple(log), origin)
    circuit = best[0].circuit.with_origin(**origin, start=best[1].name)
    loss = run.loss(search.split, circuit)
    return Discovery("ok", circuit, loss, full, best[1].scores, tuple(log), dict(circuit.origin))


def size(circuit: Circuit) -> int:
    """Nodes and block edges."""
    counts = circuit.counts()
    return counts["nodes"] + counts["edges"]


def _trimmed(search: Search, circuit: Circuit, both_orders: bool) -> Trimmed:
    """What is left of a circuit: edges go first, then nodes; or also nodes first, and the smaller of both."""
    run = search.run

    def trimmed(this: Circuit, edges: bool = True) -> Trimmed:
        return trim(run.model, this, run.reference, search.split, search.target, edges=edges, seed=run.seed)

    edges = trimmed(circuit)
    if not both_orders:
        return edges
    nodes = trimmed(circuit, edges=False)
    then = trimmed(nodes.circuit)
    return replace(min(edges, then, key=_worth), runs=edges.runs + nodes.runs + then.runs)


def _worth(trimmed: Trimmed) -> tuple[int, float]:
    """Size, then loss: less is better."""
    return size(trimmed.circuit), trimmed.loss


def _whole(search: Search, settings: AutoSettings, progress: Progress | None) -> Iterator[Start]:
    """Everything."""
    circuit = Circuit.whole(search.run.graph, search.run.support)
    loss = search.judge(circuit)
    yield Start("the whole model", circuit if loss <= search.target else None, loss)


def _ranked(search: Search, settings: AutoSettings, progress: Progress | None) -> Iterator[Start]:
    """The fewest edges or nodes by what ablating them is estimated to cost."""
    of: dict[str, Callable[..., dict[str, Any]]] = {"edges": edge_costs, "nodes": node_costs}
    for levels, where in ((LEVELS, "along the masks"), (WHOLE, "at the whole model")):
        for what, costs in of.items():
            scores = Scores(search.run.graph, costs(search.run, search.learn, levels), "nats of loss")
            circuit, tried = search.fewest(scores)
            yield Start(f"{what} by gradients {where}", circuit, min(t["loss"] for t in tried), scores)


def _learned(search: Search, settings: AutoSettings, progress: Progress | None) -> Iterator[Start]:
    """Learned masks: of edges and, where the reference is fixed, every second time of nodes."""
    dials = {"target": search.target, "steps": settings.steps, "pairs": settings.pairs}
    for i in range(settings.tries):
        if i % 2 and search.run.fixed is not None:
            dials["seed"] = search.seed + i // 2
            nodes = learned_masks(search, MaskSettings.model_validate(dials), progress)
            yield Start(f"learned node masks, seed {dials['seed']}", nodes.circuit, nodes.loss, nodes.scores)
        else:
            dials["seed"] = search.seed + (i // 2 if search.run.fixed is not None else i)
            rarely = {"check_every": max(1, settings.steps // 10)}
            edges = learn_edges(search, EdgeMaskSettings.model_validate(dials | rarely), progress)
            yield Start(f"learned edge masks, seed {dials['seed']}", edges.circuit, edges.loss, edges.scores)


__all__ = ["AutoSettings", "Start", "search_automatically", "size"]
