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

What is put away: the starts done and the best of them, the start under way, and the learning and trims of each.

Knows the ways of searching beside it and their judge. Does not know the kind of layer or of reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import Field
from torch import Tensor

from openwork.circuit import Circuit, Scores
from openwork.discover.edge_masks import EdgeMaskSettings, learn_edges
from openwork.discover.gradients import LEVELS, WHOLE, edge_costs, node_costs
from openwork.discover.masks import MaskSettings, frozen, learned_masks
from openwork.discover.search import Discovery, Progress, Search, SearchSettings
from openwork.discover.state import NOWHERE, Keeper, Shelf, State, circuit_of, masks_of, named, under
from openwork.discover.trim import Trimmed, trim
from openwork.graph import Graph

STARTS = "auto"  # the name under which the starts are put away


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


Way = Callable[[Keeper], Start]


@dataclass(frozen=True)
class _Standing:
    """Where the search stands: rows of the log for the starts so far, the best that was left of one, and the start
    that waits to be trimmed."""

    log: tuple[dict[str, Any], ...] = ()
    best: tuple[Trimmed, Start] | None = None
    begun: Start | None = None


def search_automatically(
    search: Search, settings: AutoSettings, progress: Progress | None = None, keeper: Keeper = NOWHERE
) -> Discovery:
    """The smallest one-minimal circuit that the starts lead to, or none where no start meets the target.

    A start meets the target on the half that chooses and on all examples. The trim decides on all of them, and so its
    loss, and that of the whole model, are given on all.
    """
    run = search.run
    small = size(Circuit.whole(run.graph, run.support)) <= settings.exhaustive
    saved = keeper.load(STARTS)
    now = _standing(saved, run.graph) if saved is not None else _Standing()
    with frozen(run.model):
        for i, (way, learns) in list(enumerate(_ways(search, settings, progress, small)))[len(now.log) :]:
            if now.best is not None and not small and not learns:
                break
            shelf = Shelf(keeper, f"start {i}")
            if now.begun is None:
                now = replace(now, begun=way(shelf))
                _put_away(keeper, now)
            now = _tried(search, now, small, shelf)
            _put_away(keeper, now)
    origin = {"method": "auto", "settings": settings.model_dump(), "split": search.split.name}
    full, best = run.loss(search.split), now.best
    if best is None:
        return Discovery("infeasible", None, min(row["loss"] for row in now.log), full, None, now.log, origin)
    circuit = best[0].circuit.with_origin(**origin, start=best[1].name)
    loss = run.loss(search.split, circuit)
    return Discovery("ok", circuit, loss, full, best[1].scores, now.log, dict(circuit.origin))


def _tried(search: Search, now: _Standing, small: bool, keeper: Keeper) -> _Standing:
    """What comes of the start that waits: a row of the log, and the best so far."""
    start, best = now.begun, now.best
    assert start is not None
    row: dict[str, Any] = {"start": start.name, "loss": start.loss}
    if start.circuit is not None:
        left = _trimmed(search, start.circuit, small, keeper)
        counts = left.circuit.counts()
        row |= {"nodes": counts["nodes"], "edges": counts["edges"]}
        row |= {"runs": left.runs, "one_minimal": left.one_minimal}
        if best is None or _worth(left) < _worth(best[0]):
            best = left, start
    return _Standing((*now.log, row), best)


def _put_away(keeper: Keeper, now: _Standing) -> None:
    keeper.save(STARTS, lambda: _saved(now))


def _saved(now: _Standing) -> State:
    tensors: dict[str, Tensor] = {}
    data: dict[str, Any] = {"log": list(now.log)}
    if now.best is not None:
        left, start = now.best
        tensors |= named(masks_of(left.circuit), "left")
        data["left"] = {n: getattr(left, n) for n in ("loss", "one_minimal", "runs")} | {"origin": left.circuit.origin}
    for label, start in (("best", now.best and now.best[1]), ("begun", now.begun)):
        if start is not None:
            data[label] = {"name": start.name, "loss": start.loss}
            if start.circuit is not None:
                tensors |= named(masks_of(start.circuit), f"{label}/circuit")
                data[label]["circuit"] = start.circuit.origin
            if start.scores is not None:
                tensors |= named(start.scores.values, f"{label}/scores")
                data[label]["scores"] = {"unit": start.scores.unit, "origin": start.scores.origin}
    return State(tensors, data)


def _standing(state: State, graph: Graph) -> _Standing:
    """The inverse of `_saved`."""
    data = state.data

    def start(label: str) -> Start | None:
        if label not in data:
            return None
        said, circuit, scores = data[label], None, None
        if "circuit" in said:
            circuit = circuit_of(graph, under(state.tensors, f"{label}/circuit"), said["circuit"])
        if "scores" in said:
            scores = Scores(graph, under(state.tensors, f"{label}/scores"), **said["scores"])
        return Start(said["name"], circuit, said["loss"], scores)

    best = None
    if (first := start("best")) is not None:
        said: Mapping[str, Any] = data["left"]
        circuit = circuit_of(graph, under(state.tensors, "left"), said["origin"])
        best = Trimmed(circuit, said["loss"], said["one_minimal"], said["runs"]), first
    return _Standing(tuple(data["log"]), best, start("begun"))


def size(circuit: Circuit) -> int:
    """Nodes and block edges."""
    counts = circuit.counts()
    return counts["nodes"] + counts["edges"]


def _trimmed(search: Search, circuit: Circuit, both_orders: bool, keeper: Keeper) -> Trimmed:
    """What is left of a circuit: edges go first, then nodes; or also nodes first, and the smaller of both."""
    run = search.run

    def trimmed(this: Circuit, shelf: Keeper, edges: bool = True) -> Trimmed:
        return trim(
            run.model, this, run.reference, search.split, search.target, edges=edges, seed=run.seed, keeper=shelf
        )

    edges = trimmed(circuit, keeper)
    if not both_orders:
        return edges
    nodes = trimmed(circuit, keeper, edges=False)
    then = trimmed(nodes.circuit, Shelf(keeper, "then"))
    return replace(min(edges, then, key=_worth), runs=edges.runs + nodes.runs + then.runs)


def _worth(trimmed: Trimmed) -> tuple[int, float]:
    """Size, then loss: less is better."""
    return size(trimmed.circuit), trimmed.loss


def _ways(search: Search, settings: AutoSettings, progress: Progress | None, small: bool) -> list[tuple[Way, bool]]:
    """The starts, each made when it is asked for, in the order of their turns; and whether masks learn for it."""
    whole: Way = partial(_whole, search)
    ranked: list[Way] = [
        partial(_ranked, search, where, levels, what, costs)
        for levels, where in ((LEVELS, "along the masks"), (WHOLE, "at the whole model"))
        for what, costs in (("edges", edge_costs), ("nodes", node_costs))
    ]
    learned: list[Way] = [partial(_learned, search, settings, i, progress) for i in range(settings.tries)]
    given, taught = [(w, False) for w in (whole, *ranked)], [(w, True) for w in learned]
    return given + taught if small else taught + given[1:] + given[:1]


def _whole(search: Search, keeper: Keeper) -> Start:
    """Everything."""
    circuit = Circuit.whole(search.run.graph, search.run.support)
    loss = search.judge(circuit)
    return Start("the whole model", circuit if loss <= search.target else None, loss)


def _ranked(
    search: Search,
    where: str,
    levels: Sequence[float],
    what: str,
    costs: Callable[..., dict[str, Tensor]],
    keeper: Keeper,
) -> Start:
    """The fewest edges or nodes by what ablating them is estimated to cost."""
    scores = Scores(search.run.graph, costs(search.run, search.learn, levels), "nats of loss")
    circuit, tried = search.fewest(scores)
    return Start(f"{what} by gradients {where}", circuit, min(t["loss"] for t in tried), scores)


def _learned(search: Search, settings: AutoSettings, i: int, progress: Progress | None, keeper: Keeper) -> Start:
    """Learned masks: of edges and, where the reference is fixed, every second time of nodes."""
    fixed = search.run.fixed is not None
    seed = search.seed + (i // 2 if fixed else i)
    dials = {"target": search.target, "steps": settings.steps, "pairs": settings.pairs, "seed": seed}
    if i % 2 and fixed:
        nodes = learned_masks(search, MaskSettings.model_validate(dials), progress, keeper)
        return Start(f"learned node masks, seed {seed}", nodes.circuit, nodes.loss, nodes.scores)
    rarely = {"check_every": max(1, settings.steps // 10)}
    edges = learn_edges(search, EdgeMaskSettings.model_validate(dials | rarely), progress, keeper)
    return Start(f"learned edge masks, seed {seed}", edges.circuit, edges.loss, edges.scores)


__all__ = ["AutoSettings", "Start", "search_automatically", "size"]
