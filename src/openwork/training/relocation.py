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

Here a node is moved by giving it another spot. Its weights, its bias, its optimizer moments, and whatever masks and
gates other regimes keep for it stay where they are in memory: what the network computes cannot change. Moving rows and
columns instead, as published, is the same up to the order of the nodes (a test trains both).

Knows sizes of weights and places. Does not know models, losses, optimizers or when to move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Costs = NDArray[np.float64]  # [node, spot]
Order = NDArray[np.int64]  # [node]: the spot on which each node sits


@dataclass(frozen=True)
class Wires:
    """A link as seen here: sizes |W| [dst, src] of its weights, and the factor of its cost."""

    src: str
    dst: str
    size: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class Places:
    """Which node sits where.

    spots   site -> coordinates [n, dimensions] of its spots, each in (0, 1)
    at      site -> [n], int64: the spot on which each node sits; a permutation
    """

    spots: Mapping[str, Tensor]
    at: Mapping[str, Tensor]

    def of(self, site: str) -> Tensor:
        """Coordinates [n, dimensions] of the nodes of a site."""
        return self.spots[site][self.at[site]]

    def moved(self, site: str, at: Tensor) -> Places:
        """The same with the nodes of one site elsewhere."""
        return Places(self.spots, {**self.at, site: at})


def grid(n: int, dimensions: int) -> Tensor:
    """Spots of n nodes [n, dimensions], row by row in the unit interval, square or cube, in the middle of equal cells.

    In one dimension (k + 1/2) / n. In two, 784 spots are the 28 x 28 pixels of an image in their order. Where n fills
    no square or cube, there are fewer rows and the last one is cut short.
    """
    side = next(s for s in range(1, n + 1) if s**dimensions >= n)
    shape = [-(-n // side ** (dimensions - 1))] + [side] * (dimensions - 1)
    axes = [(torch.arange(s, dtype=torch.float32) + 0.5) / s for s in shape]
    return torch.cartesian_prod(*axes).view(-1, dimensions)[:n].contiguous()


def start(sizes: Mapping[str, int], dimensions: int, device: torch.device) -> Places:
    """Every node on the spot of its own number."""
    spots = {site: grid(n, dimensions).to(device) for site, n in sizes.items()}
    return Places(spots, {site: torch.arange(n, device=device) for site, n in sizes.items()})


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Manhattan distances [m, n] between coordinates [m, d] and [n, d]."""
    return torch.cdist(a, b, p=1)


@torch.no_grad()
def wire_length(wires: Sequence[Wires], places: Places) -> float:
    """Sum over links of scale * |W| * distance, in weight times the side of the unit cube."""
    far = ((w, distances(places.of(w.dst), places.of(w.src))) for w in wires)
    return sum(w.scale * float((w.size * d).sum(dtype=torch.float64)) for w, d in far)


@torch.no_grad()
def place_costs(site: str, wires: Sequence[Wires], places: Places) -> Tensor:
    """What each node of a site would cost on each of its spots, all other sites held fixed: [node, spot], float64."""
    spots = places.spots[site].double()
    cost = torch.zeros(len(spots), len(spots), dtype=torch.float64, device=spots.device)
    for w in wires:
        if w.dst == site:
            cost.addmm_(w.size.double(), distances(places.of(w.src).double(), spots), alpha=w.scale)
        if w.src == site:
            cost.addmm_(w.size.double().T, distances(places.of(w.dst).double(), spots), alpha=w.scale)
    return cost


@torch.no_grad()
def importance(site: str, wires: Sequence[Wires]) -> Tensor:
    """Sizes of all weights into a node and out of it, added up: [node], float64."""
    into = [w.size.sum(1, dtype=torch.float64) for w in wires if w.dst == site]
    return torch.stack(into + [w.size.sum(0, dtype=torch.float64) for w in wires if w.src == site]).sum(0)


def by_swaps(cost: Costs, at: Order, nodes: Sequence[int]) -> Order:
    """Places after each of these nodes in turn made the exchange that lowers the cost most, if any does."""
    at = at.copy()
    now = cost[np.arange(len(at)), at]
    for n in nodes:
        change = cost[n, at] + cost[:, at[n]] - now[n] - now  # of exchanging n with each node; 0 for n itself
        m = int(change.argmin())
        if change[m] < 0:
            at[[n, m]] = at[[m, n]]
            now[[n, m]] = cost[[n, m], at[[n, m]]]
    return at


def by_assignment(cost: Costs, at: Order) -> Order:
    """The places with the least cost of all; those given, where nothing costs less."""
    best = linear_sum_assignment(cost)[1].astype(np.int64)
    nodes = np.arange(len(at))
    return best if cost[nodes, best].sum() < cost[nodes, at].sum() else at


def relocate(
    wires: Sequence[Wires],
    places: Places,
    sites: Sequence[str],
    how: str,
    top: int = 30,
    sweeps: int = 1,
    restarts: int = 0,
    seed: int = 0,
) -> Places:
    """Places in which the wires are shorter, or as they were.

    sites     whose nodes may move, one site after the other, each with all others held fixed
    how       "swaps": the `top` most important nodes of a site, the most important first, exchange as in `by_swaps`;
              "assignment": the best places of the whole site
    sweeps    how often to go over all sites
    restarts  from how many random arrangements, drawn by `seed`, to search besides the present one; the shortest end is
              taken. Site by site no search finds out of an arrangement whose two ends are mirror images of each other
    """
    g = torch.Generator().manual_seed(seed)
    starts = [places] + [_scattered(places, sites, g) for _ in range(restarts)]
    ends = [_settled(wires, at, sites, how, top, sweeps) for at in starts]
    return min(ends, key=lambda at: wire_length(wires, at)) if restarts else ends[0]


def _scattered(places: Places, sites: Sequence[str], g: torch.Generator) -> Places:
    """The same with the nodes of these sites anywhere."""
    for site in sites:
        at = places.at[site]
        places = places.moved(site, torch.randperm(len(at), generator=g).to(at.device))
    return places


def _settled(wires: Sequence[Wires], places: Places, sites: Sequence[str], how: str, top: int, sweeps: int) -> Places:
    for _ in range(sweeps):
        for site in sites:
            cost, at = place_costs(site, wires, places).cpu().numpy(), places.at[site]
            if how == "assignment":
                new = by_assignment(cost, at.cpu().numpy())
            else:
                rank = torch.sort(importance(site, wires), descending=True, stable=True).indices[:top]
                new = by_swaps(cost, at.cpu().numpy(), rank.tolist())
            places = places.moved(site, torch.from_numpy(new).to(at.device))
    return places


def as_lists(places: Places) -> dict[str, Any]:
    """Site -> coordinates of each of its nodes in the model's order, as plain data for JSON."""
    return {site: places.of(site).tolist() for site in places.spots}
