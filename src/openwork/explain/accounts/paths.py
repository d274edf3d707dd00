"""The strongest single paths of an account, exactly, without looking at the others.

A path goes from a source (a feature, a token, a bias) along kept edges to the logit difference; its contribution is the
source times all coefficients on its way. There are more paths than can be listed, but one sweep forward tells for every
vertex the largest |product| with which any path arrives there (Viterbi's recursion). With it as an exact estimate of
what is still ahead, a best-first search from the end back (A*, Hart et al. 1968, doi 10.1109/TSSC.1968.300136) takes a
step only where one of the k best paths goes on.

Knows accounts of one input. Does not know models or words.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openwork.explain.accounts.account import Account
from openwork.explain.accounts.maps import Map

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Path:
    """One path and what it contributes.

    source  (site, kind) of where it begins; `vertex` of that site
    steps   (site, vertex) it passes after the source's own site, up to the last one before the difference
    """

    contribution: float
    source: tuple[str, str]
    vertex: int
    steps: tuple[tuple[str, int], ...]


def strongest_paths(account: Account, k: int) -> list[Path]:
    """The k paths with the largest |contribution|, largest first; fewer where there are fewer that are not 0.

    account  of one input (B = 1)
    """
    run = account.run
    reach = {n: v.flatten().numpy() for n, v in _reach(account).items()}
    kinds = {site: [(kind, _flat(v)) for kind, v in spot.sources.items()] for site, spot in run.spots.items()}
    scale = {n: s.scale.expand_as(s.sent)[0].flatten().numpy() for n, s in run.spots.items()}
    into: dict[str, list[Map]] = {site: run.into(site) for site in run.spots}
    turn = itertools.count()
    # (-|what it can still come to|, turn, coefficient so far, site, vertex, steps so far, kind once it is complete)
    heap: list[tuple[float, int, float, str, int, tuple[tuple[str, int], ...], str]] = []
    for (site, kind), value in account.sources.items():
        if site == run.end and float(value):
            heapq.heappush(heap, (-abs(float(value)), next(turn), float(value), site, 0, (), kind))
    for m, coefficients in account.ends:
        c = _flat(coefficients)
        for v in _best(np.abs(c) * reach[m.src], k):
            heapq.heappush(heap, (-abs(c[v]) * reach[m.src][v], next(turn), float(c[v]), m.src, v, (), ""))
    out: list[Path] = []
    while heap and len(out) < k:
        _, _, product, site, vertex, steps, kind = heapq.heappop(heap)
        if kind:
            out.append(Path(product, (site, kind), vertex, steps))
            continue
        for name, values in kinds[site]:
            if values[vertex]:
                p = product * float(values[vertex])
                heapq.heappush(heap, (-abs(p), next(turn), p, site, vertex, steps, name))
        here = product * float(scale[site][vertex])
        for m in into[site] if here else ():
            index, coefficients = m.feed(run.spots[site].fed_at(vertex))
            hope = np.abs(here * coefficients) * reach[m.src][index]
            for i in _best(hope, k):
                step = ((site, vertex), *steps)
                c = here * float(coefficients[i])
                heapq.heappush(heap, (-hope[i], next(turn), c, m.src, int(index[i]), step, ""))
    return out


def _reach(account: Account) -> dict[str, Tensor]:
    """site -> the largest |product| with which any path arrives at each vertex, [1, *]."""
    run, out = account.run, dict[str, Tensor]()
    for site, spot in run.spots.items():
        if site not in account.gradient:
            continue
        best = torch.zeros_like(spot.sent)
        for value in spot.sources.values():
            best = torch.maximum(best, value.abs())
        for m in run.into(site):
            best = torch.maximum(best, spot.scale.abs() * spot.pooled(m.strongest(out[m.src])))
        out[site] = best
    return out


def count_paths(account: Account) -> float:
    """How many paths there are whose coefficients and source are not 0; of one input. A float: they may be many."""
    run, out, total = account.run, dict[str, Tensor](), 0.0
    for site, spot in run.spots.items():
        if site not in account.gradient:
            continue
        n = torch.zeros_like(spot.sent)
        for value in spot.sources.values():
            n = n + (value != 0)
        for m in run.into(site):
            n = n + (spot.scale != 0) * spot.pooled(m.count(out[m.src]))
        out[site] = n
    for m, coefficients in account.ends:
        total += float(((coefficients != 0) * out[m.src]).sum())
    return total + sum(float(v) != 0 for (site, _), v in account.sources.items() if site == run.end)


def _flat(x: Tensor) -> Array:
    return x[0].flatten().numpy()


def _best(values: Array, k: int) -> list[int]:
    """Places of the k largest values that are not 0, in the order of places: more cannot be among the k best paths."""
    index = values.nonzero()[0]
    if len(index) > k:
        kept = np.argpartition(-values[index], k - 1)[:k]
        index = index[np.sort(kept)]
    return index.tolist()


__all__ = ["Path", "count_paths", "strongest_paths"]
