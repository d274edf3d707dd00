"""Stable: searched for again, with other seeds or other halves of the data, the circuit is much the same.

Circuits that are found again differ more than one expects (resampling studies: arXiv 2510.00845, 2606.16920); the
overlap of two says little unless it stands beside that of random circuits of their sizes, which small sites make large.

Knows circuits as plain values, in any number. Does not run searches, and does not know the method, seeds or data.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from openwork import stats
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Circuit, Evidence, Masks
from openwork.errors import UsageError
from openwork.verify.question import ALPHA

HALF = 0.5  # of what two circuits keep between them, they have to share
UNIT = "overlap: shared nodes by all nodes of two circuits"
NULL = "random circuits with as many nodes at every site"


def stable(
    circuits: Sequence[Circuit | None],
    names: Sequence[str],
    *,
    n: int,
    live: Masks | None = None,
    support: Masks | None = None,
    split: str = "discover",
    draws: int = 999,
    seed: int = 0,
    seconds: float = 0.0,
) -> Evidence:
    """Mean overlap of every two of the circuits that repeated searches found, beside that of random ones.

    circuits  what each search found, None where it found none; all of one graph
    names     what was varied, one phrase per search, e.g. "seed 1" or "first half"
    n, split  examples behind each search, and of which split
    live      site -> bool [n], the nodes that random circuits may draw (default: all); support likewise for edges of
              links (default: all entries)

    value            mean over all pairs of |a and b| / |a or b| (Jaccard 1901) over nodes of prunable sites; interval
                     by leaving out one circuit at a time (jackknife, t with one degree fewer than circuits; nan below
                     three)
    holds            at least one half is shared, p <= 0.05, and every search found a circuit
    fails            p > 0.05, or the interval lies wholly below one half, or a search found nothing where others did
    too little data  fewer than two searches found a circuit and none failed; or neither of the above
    null             circuits with as many nodes at every site as each of these, drawn at random and independently: the
                     overlap that sizes alone give, simulated exactly (hypergeometric counts); p is the rank among
                     `draws`

    The details hold the same for edges of the blocks, with as many edges of every link. Searches share the model, so
    this says how firmly the search settles, not whether another training would find the same.
    """
    if len(circuits) != len(names):
        raise UsageError(f"stable: {len(circuits)} circuits but {len(names)} names; give one name per search.")
    found = [c for c in circuits if c is not None]
    none = [name for c, name in zip(circuits, names, strict=True) if c is None]
    if any(c.graph != found[0].graph for c in found):
        raise UsageError("stable: the circuits belong to different graphs; compare circuits of one model.")
    if len(found) < 2:
        return _undecided(len(circuits), none, n, split, seed, seconds)
    rng, graph = np.random.default_rng(seed), found[0].graph
    sites = {s.name: [c.nodes[s.name] for c in found] for s in graph.prunable}
    links = {e.name: [c.edges[e.name] for c in found] for e in graph.links if e.counts == "block" and e.kind != "sum"}
    matrix = overlaps(sites)
    value, null = mean_overlap(matrix), random_overlaps(sites, live or {}, draws, rng)
    interval, p = _jackknife(matrix), stats.rank_p(value, null)
    edges, edge_null = overlaps(links), random_overlaps(links, support or {}, draws, rng)
    wide = interval[1] == interval[1]  # not nan
    verdict = HOLDS if value >= HALF and p <= ALPHA and not none else UNDECIDED
    if none or p > ALPHA or (wide and interval[1] < HALF):
        verdict = FAILS
    low, high = _extremes(matrix, [nm for c, nm in zip(circuits, names, strict=True) if c is not None])
    sentence = (
        f"{len(found)} of {len(circuits)} searches found a circuit; two of them share {value:.0%} of their nodes on "
        f"average (least {low}, most {high}) and {mean_overlap(edges):.0%} of their edges; random circuits of these "
        f"sizes share {null.mean():.1%} of nodes and {edge_null.mean():.1%} of edges."
    )
    return Evidence(
        claim="stable",
        verdict=verdict,
        sentence=sentence,
        value=value,
        unit=UNIT,
        interval=interval,
        null=NULL,
        null_value=float(null.mean()),
        p=p,
        n=n,
        split=split,
        seed=seed,
        seconds=seconds,
        details={
            "searches": list(names),
            "found_none": none,
            "overlap_of_nodes": [[round(float(x), 6) for x in row] for row in matrix],
            "overlap_of_edges": [[round(float(x), 6) for x in row] for row in edges],
            "edges": mean_overlap(edges),
            "edges_null": float(edge_null.mean()),
            "edges_p": stats.rank_p(mean_overlap(edges), edge_null),
            "draws": draws,
            "in_all": _in_all(sites),
            "in_any": _in_any(sites),
        },
    )


def overlaps(masks: Mapping[str, Sequence[Tensor]]) -> np.ndarray:
    """|a and b| / |a or b| of every two of k circuits over all names together, [k, k]; 1 where both are empty.

    masks  site or link -> the k circuits' masks
    """
    flat = np.stack([torch.cat([m.flatten() for m in each]).numpy() for each in zip(*masks.values(), strict=True)])
    shared = flat.astype(np.int64) @ flat.T.astype(np.int64)
    return _jaccard(shared, flat.sum(1))


def mean_overlap(matrix: np.ndarray) -> float:
    """Mean over all pairs of different circuits."""
    return float(matrix[np.triu_indices(len(matrix), 1)].mean())


def random_overlaps(
    masks: Mapping[str, Sequence[Tensor]], pools: Masks, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Mean overlap [draws] of circuits drawn at random, each with as many entries of every site or link as one of
    these.

    pools  name -> bool, the entries that may be drawn (default: all); entries that some circuit has may be in any case

    Subsets are not drawn but counted: of every set of circuits, how many entries are in just these. A new circuit of n
    entries takes its share of each such cell by the multivariate hypergeometric law, one cell after the other.
    """
    k = len(next(iter(masks.values())))
    shared, sizes = np.zeros((draws, k, k), dtype=np.int64), np.zeros(k, dtype=np.int64)
    for name, each in masks.items():
        kept = torch.stack([m.flatten() for m in each])
        pool = int((pools[name].flatten() | kept.any(0)).sum()) if name in pools else kept.shape[1]
        many = kept.sum(1).numpy()
        sizes += many
        cells = {0: np.full(draws, pool, dtype=np.int64)}  # which circuits (bits) -> entries that are in just these
        for j in range(k):
            left, wanted = np.full(draws, pool), np.full(draws, many[j])
            for bits, count in list(cells.items()):
                taken = rng.hypergeometric(count, left - count, wanted)
                left, wanted = left - count, wanted - taken
                if taken.any():
                    cells[bits | 1 << j], cells[bits] = taken, count - taken
        for bits, count in cells.items():
            members = [j for j in range(k) if bits >> j & 1]
            for a, b in itertools.product(members, members):
                shared[:, a, b] += count
    return _jaccard(shared, sizes)[(slice(None), *np.triu_indices(k, 1))].mean(1)


def _jaccard(shared: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    union = sizes[:, None] + sizes[None, :] - shared
    return np.where(union > 0, shared / np.maximum(union, 1), 1.0)


def _jackknife(matrix: np.ndarray) -> stats.Interval:
    """Interval of the mean overlap: circuits are the sample, pairs only their comparisons (Efron & Stein 1981)."""
    k = len(matrix)
    if k < 3:
        return stats.NO_INTERVAL
    left_out = np.array([mean_overlap(np.delete(np.delete(matrix, i, 0), i, 1)) for i in range(k)])
    error = float(np.sqrt((k - 1) / k * ((left_out - left_out.mean()) ** 2).sum()))
    half, middle = float(scipy_stats.t.ppf(0.975, k - 1)) * error, mean_overlap(matrix)
    return (max(0.0, middle - half), min(1.0, middle + half))


def _extremes(matrix: np.ndarray, names: Sequence[str]) -> tuple[str, str]:
    pairs = list(zip(*np.triu_indices(len(matrix), 1), strict=True))
    least, most = (f(pairs, key=lambda ab: matrix[ab]) for f in (min, max))
    return tuple(f"{matrix[a, b]:.0%}, {names[a]} and {names[b]}" for a, b in (least, most))  # type: ignore[return-value]


def _in_all(sites: Mapping[str, Sequence[Tensor]]) -> int:
    return sum(int(torch.stack(list(each)).all(0).sum()) for each in sites.values())


def _in_any(sites: Mapping[str, Sequence[Tensor]]) -> int:
    return sum(int(torch.stack(list(each)).any(0).sum()) for each in sites.values())


def _undecided(asked: int, none: Sequence[str], n: int, split: str, seed: int, seconds: float) -> Evidence:
    """Fewer than two circuits: nothing to compare; a claim that fails where one search found a circuit, others none."""
    nan = float("nan")
    found = asked - len(none)
    verdict = FAILS if found and none else UNDECIDED
    sentence = f"{found} of {asked} searches found a circuit, so there are no two to compare."
    details = {"searches": asked, "found_none": list(none)}
    return Evidence(
        "stable", verdict, sentence, nan, UNIT, stats.NO_INTERVAL, NULL, nan, nan, n, split, seed, seconds, details
    )


__all__ = ["mean_overlap", "overlaps", "random_overlaps", "stable"]
