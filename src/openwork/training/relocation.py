"""Where nodes sit in space, what their wires cost, and the exact best exchange of places.

The wires of a model cost sum over links of scale * sum_ab |W[a,b]| D[a,b], with D the Manhattan distance between the
spots of the two nodes. With all other sites held fixed this falls apart into one term per node of a site,

    C[n,p] = scale_in * (|W_in| D_in^T)[n,p] + scale_out * (|W_out|^T D_out)[n,p]

what node n costs on spot p: D_in[p,b] is the distance from spot p to source b, D_out[a,p] that to reader a, and several
links add up. So exchanging nodes n and m changes the cost by exactly

    C[n,q] + C[m,p] - C[n,p] - C[m,q]                    n on p, m on q

and a whole search for exchanges needs two matrix products per site instead of one evaluation of the network's cost per
candidate, as the code published with BIMT has it (Liu, Gan, Tegmark 2023, arXiv 2305.08746). The closed form is ours,
and so is letting a linear assignment find the best places of a whole site at once.

Some sites have one arrangement between them, because node i of one is node i of the other (`ties`, read off what a
graph declares): whatever adds up in a residual stream, and the queries, keys and values of an attention. The cost of a
node on a spot is then the sum over these sites, and all else stays as it is. Where nodes belong to blocks, as the
channels of a head do, a block keeps its nodes together on a block of spots: nodes exchange places within a block, and
blocks do with blocks. The best places under that rule are found exactly too: an assignment within every pair of block
and block of spots says what this pair costs, and an assignment of blocks to blocks of spots takes the cheapest.

Here a node is moved by giving it another spot. Its weights, its bias, its optimizer moments, and whatever masks and
gates other regimes keep for it stay where they are in memory: what the network computes cannot change. Moving rows and
columns instead, as published, is the same up to the order of the nodes (a test trains both).

Knows graphs, sizes of weights and places. Does not know losses, optimizers or when to move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from openwork.errors import UsageError
from openwork.graph import Graph, Link
from openwork.patching import graph_of, weight_of

Costs = NDArray[np.float64]  # [node, spot]
Order = NDArray[np.int64]  # [node]: the spot on which each node sits


@dataclass(frozen=True)
class Wires:
    """A link as seen here: sizes |W| [dst, src] of its edges, and the factor of its cost."""

    src: str
    dst: str
    size: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class Tied:
    """Sites with one arrangement: node i of each sits on the same spot. Blocks of nodes stay on blocks of spots.

    block  how many nodes a block has; 1 where each moves alone
    """

    sites: tuple[str, ...]
    block: int = 1


@dataclass(frozen=True)
class Places:
    """Which node sits where.

    spots   site -> coordinates [n, dimensions] of its spots, each in (0, 1)
    at      site -> [n], int64: the spot on which each node sits; a permutation, the same for tied sites
    """

    spots: Mapping[str, Tensor]
    at: Mapping[str, Tensor]

    def of(self, site: str) -> Tensor:
        """Coordinates [n, dimensions] of the nodes of a site."""
        return self.spots[site][self.at[site]]

    def moved(self, tied: Tied, at: Tensor) -> Places:
        """The same with the nodes of these sites elsewhere."""
        return Places(self.spots, {**self.at, **dict.fromkeys(tied.sites, at)})


# -- what a graph says of places ---------------------------------------------------------------------------------------


def ties(graph: Graph) -> tuple[Tied, ...]:
    """The sites of a graph that have places, by the arrangement that they share, in the order of their first site.

    Places have the two ends of every wire and what is tied to one. Tied are the two ends of a link of kind "sum"
    (channel c goes to channel c), and a site with the one that it steers; the latter's `group` is the block. UsageError
    where a matrix joins two sites of one arrangement: the cost is then no sum over nodes, and nothing here holds.
    """
    pairs = [(e.src, e.dst) for e in graph.links if e.kind == "sum"]
    groups = graph.groups(pairs + [(s.name, s.steers) for s in graph.sites if s.steers])
    for e in graph.links:
        if e.kind == "weight" and any(e.src in sites and e.dst in sites for sites in groups):
            raise UsageError(
                f"the regime bimt has no rule for the matrix {e.name}: the places of its two ends are one and the same."
            )
    block = {s.name: s.group or 1 for s in graph.sites}
    placed = {end for e in graph.links if is_wire(e) for end in (e.src, e.dst)}
    return tuple(Tied(sites, max(block[s] for s in sites)) for sites in groups if not placed.isdisjoint(sites))


def movable(graph: Graph, inputs: bool = False, outputs: bool | None = None) -> list[Tied]:
    """The arrangements whose nodes may move: not those of inputs, nor of outputs that are a vocabulary, unless told."""
    words = {e.dst for e in graph.links if e.counts == "unembedding"}
    found = []
    for tied in ties(graph):
        kinds = {graph.site(name).kind for name in tied.sites}
        moves = outputs if outputs is not None else words.isdisjoint(tied.sites)
        if (inputs or "input" not in kinds) and (moves or "output" not in kinds):
            found.append(tied)
    return found


def is_wire(link: Link) -> bool:
    """Whether a link's weights are wires, from one place to another. The table of an embedding is looked up instead."""
    return link.kind == "weight" and link.counts != "embedding"


@torch.no_grad()
def wires_of(model: nn.Module, reduce: str = "sum") -> list[Wires]:
    """A model's weights as wires, each link's cost a "sum" or a "mean" over its weights.

    The size of a convolution's edge is the sum of |w| over its kernel: all its weights join the same two channels, so
    each costs the same length, and the cost of the weights one by one is that of their sum. A root of summed squares
    would be another penalty than the one that is added to the loss.
    """
    out = []
    for e in graph_of(model).links:
        if is_wire(e):
            w = weight_of(model.get_submodule(e.module)).detach().abs()
            scale = 1.0 if reduce == "sum" else 1 / w.numel()
            out.append(Wires(e.src, e.dst, w.flatten(2).sum(-1) if w.dim() > 2 else w, scale))
    return out


# -- places ------------------------------------------------------------------------------------------------------------


def grid(n: int, dimensions: int, block: int = 1) -> Tensor:
    """Spots of n nodes [n, dimensions], row by row in the unit interval, square or cube, in the middle of equal cells.

    In one dimension (k + 1/2) / n. In two, 784 spots are the 28 x 28 pixels of an image in their order. Where n fills
    no square or cube, there are fewer rows and the last one is cut short. With blocks, each has a cell of its own, with
    a grid in it.
    """
    if block > 1:
        inner = (grid(block, dimensions) - 0.5) / torch.tensor(_shape(n // block, dimensions))
        return (grid(n // block, dimensions)[:, None] + inner).flatten(0, 1)
    axes = [(torch.arange(s, dtype=torch.float32) + 0.5) / s for s in _shape(n, dimensions)]
    return torch.cartesian_prod(*axes).view(-1, dimensions)[:n].contiguous()


def _shape(n: int, dimensions: int) -> list[int]:
    """Cells along each axis of a grid for n spots."""
    side = next(s for s in range(1, n + 1) if s**dimensions >= n)
    return [-(-n // side ** (dimensions - 1))] + [side] * (dimensions - 1)


def start(sizes: Mapping[str, int], dimensions: int, device: torch.device, tied: Sequence[Tied] = ()) -> Places:
    """Every node on the spot of its own number; `tied` tells blocks, sites that are not named there have none."""
    block = {site: t.block for t in tied for site in t.sites}
    spots = {site: grid(n, dimensions, block.get(site, 1)).to(device) for site, n in sizes.items()}
    return Places(spots, {site: torch.arange(n, device=device) for site, n in sizes.items()})


def start_of(model: nn.Module, dimensions: int = 1) -> Places:
    """Every node of a model that has a place on the spot of its own number."""
    graph = graph_of(model)
    tied = ties(graph)
    sizes = {name: graph.site(name).size for t in tied for name in t.sites}
    return start(sizes, dimensions, next(model.parameters()).device, tied)


def wire_length_of(model: nn.Module, coordinates: Mapping[str, Any] | None = None, dimensions: int = 1) -> float:
    """Sum of |w| * distance over all matrices of a model, however it was trained.

    coordinates  site -> one list per node, as `extra.bimt.coordinates` of a stored model's config.json has them; where
                 a model has none, every node sits on the spot of its number, evenly spaced in so many `dimensions`
    """
    if coordinates is None:
        return wire_length(wires_of(model), start_of(model, dimensions))
    device = next(model.parameters()).device
    spots = {site: torch.tensor(x, device=device) for site, x in coordinates.items()}
    return wire_length(wires_of(model), Places(spots, {site: torch.arange(len(x)) for site, x in spots.items()}))


@torch.no_grad()
def shortest_wire_length(model: nn.Module, coordinates: Mapping[str, Any] | None = None) -> float:
    """Wire length after the best exchanges that we find, nodes on lines: the same search for every model.

    Moving nodes changes no function, so a model that was never told of places may have short wires too; its length as
    it happens to be numbered says nothing. Searched from the spots of the nodes' numbers and, where a model has
    `coordinates` in one dimension, from those as well; the shorter end counts.
    """
    wires, tied = wires_of(model), movable(graph_of(model))
    starts = [start_of(model)]
    if coordinates is not None and all(len(x[0]) == 1 for x in coordinates.values()):
        spots = {site: torch.tensor(x, dtype=torch.float32).cpu() for site, x in coordinates.items()}
        starts.append(Places(spots, {site: torch.arange(len(x)) for site, x in spots.items()}))
    ends = (relocate(wires, places, tied, "assignment", sweeps=5) for places in starts)
    return min(wire_length(wires, end) for end in ends)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Manhattan distances [m, n] between coordinates [m, d] and [n, d]."""
    return torch.cdist(a, b, p=1)


@torch.no_grad()
def wire_length(wires: Sequence[Wires], places: Places) -> float:
    """Sum over links of scale * |W| * distance, in weight times the side of the unit cube."""
    far = ((w, distances(places.of(w.dst), places.of(w.src))) for w in wires)
    return sum(w.scale * float((w.size * d).sum(dtype=torch.float64)) for w, d in far)


# -- exchanges ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def place_costs(tied: Tied, wires: Sequence[Wires], places: Places) -> Tensor:
    """What each node of an arrangement would cost on each spot, all others held fixed: [node, spot], float64."""
    spots = places.spots[tied.sites[0]].double()
    cost = torch.zeros(len(spots), len(spots), dtype=torch.float64, device=spots.device)
    for w in wires:
        if w.dst in tied.sites:
            cost.addmm_(w.size.double(), distances(places.of(w.src).double(), spots), alpha=w.scale)
        if w.src in tied.sites:
            cost.addmm_(w.size.double().T, distances(places.of(w.dst).double(), spots), alpha=w.scale)
    return cost


@torch.no_grad()
def importance(tied: Tied, wires: Sequence[Wires]) -> Tensor:
    """Sizes of all weights into a node and out of it, added up: [node], float64."""
    into = [w.size.sum(1, dtype=torch.float64) for w in wires if w.dst in tied.sites]
    out = [w.size.sum(0, dtype=torch.float64) for w in wires if w.src in tied.sites]
    return torch.stack(into + out).sum(0)


def by_swaps(cost: Costs, at: Order, nodes: Sequence[int], block: int = 1) -> Order:
    """Places after each of these nodes in turn made the exchange that lowers the cost most, if any does.

    With blocks, nodes exchange places with others of their block, and then blocks with blocks, those of these nodes
    first; a block moves as it stands.
    """
    at, every = at.copy(), np.arange(len(at))
    now = cost[every, at]
    for n in nodes:
        change = cost[n, at] + cost[:, at[n]] - now[n] - now  # of exchanging n with each node; 0 for n itself
        if block > 1:
            change[every // block != n // block] = 0
        m = int(change.argmin())
        if change[m] < 0:
            at[[n, m]] = at[[m, n]]
            now[[n, m]] = cost[[n, m], at[[n, m]]]
    if block == 1:
        return at
    within, blocks = at % block, np.arange(len(at) // block)
    of_blocks = np.stack([cost[every, p * block + within].reshape(-1, block).sum(1) for p in blocks], 1)
    first = dict.fromkeys([n // block for n in nodes])
    to = by_swaps(of_blocks, at[::block] // block, list(first))
    return np.repeat(to, block) * block + within


def by_assignment(cost: Costs, at: Order, block: int = 1) -> Order:
    """The places with the least cost of all, blocks kept together; those given, where nothing costs less."""
    every = np.arange(len(at))
    if block == 1:
        best = linear_sum_assignment(cost)[1].astype(np.int64)
    else:
        n = len(at) // block
        pairs = cost.reshape(n, block, n, block).swapaxes(1, 2)  # [block, block of spots, node in it, spot in it]
        within = np.stack([[linear_sum_assignment(pairs[h, p])[1] for p in range(n)] for h in range(n)])
        of_blocks = np.take_along_axis(pairs, within[..., None], -1).sum((-1, -2))
        to = linear_sum_assignment(of_blocks)[1]
        best = (to[:, None] * block + within[np.arange(n), to]).flatten().astype(np.int64)
    return best if cost[every, best].sum() < cost[every, at].sum() else at


def relocate(
    wires: Sequence[Wires],
    places: Places,
    tied: Sequence[Tied],
    how: str,
    top: int = 30,
    sweeps: int = 1,
    restarts: int = 0,
    seed: int = 0,
) -> Places:
    """Places in which the wires are shorter, or as they were.

    tied      arrangements that may change, one after the other, each with all others held fixed
    how       "swaps": the `top` most important nodes, the most important first, exchange as in `by_swaps`;
              "assignment": the best places of the whole arrangement
    sweeps    how often to go over all of them
    restarts  from how many random arrangements, drawn by `seed`, to search besides the present one; the shortest end is
              taken. Site by site no search finds out of an arrangement whose two ends are mirror images of each other
    """
    g = torch.Generator().manual_seed(seed)
    starts = [places] + [_scattered(places, tied, g) for _ in range(restarts)]
    ends = [_settled(wires, at, tied, how, top, sweeps) for at in starts]
    return min(ends, key=lambda at: wire_length(wires, at)) if restarts else ends[0]


def _scattered(places: Places, tied: Sequence[Tied], g: torch.Generator) -> Places:
    """The same with the nodes of these arrangements anywhere, blocks kept together."""
    for t in tied:
        at = places.at[t.sites[0]]
        blocks = torch.randperm(len(at) // t.block, generator=g)
        if t.block > 1:
            blocks = blocks[:, None] * t.block + torch.stack([torch.randperm(t.block, generator=g) for _ in blocks])
        places = places.moved(t, blocks.flatten().to(at.device))
    return places


def _settled(wires: Sequence[Wires], places: Places, tied: Sequence[Tied], how: str, top: int, sweeps: int) -> Places:
    for _ in range(sweeps):
        for t in tied:
            cost, at = place_costs(t, wires, places).cpu().numpy(), places.at[t.sites[0]]
            if how == "assignment":
                new = by_assignment(cost, at.cpu().numpy(), t.block)
            else:
                rank = torch.sort(importance(t, wires), descending=True, stable=True).indices[:top]
                new = by_swaps(cost, at.cpu().numpy(), rank.tolist(), t.block)
            places = places.moved(t, torch.from_numpy(new).to(at.device))
    return places


def as_lists(places: Places) -> dict[str, Any]:
    """Site -> coordinates of each of its nodes in the model's order, as plain data for JSON."""
    return {site: places.of(site).tolist() for site in places.spots}
