"""Identified: given some examples of what a topic did, is its explanation picked among those of all?

The which-module test: needs no bar on how well anything fits, only that nothing else fits better.
"""

from __future__ import annotations

import time

import numpy as np

from openwork import stats
from openwork.circuit import Evidence
from openwork.explain.words.scoring.damage import damage_fit
from openwork.explain.words.scoring.fit import Fit
from openwork.explain.words.scoring.hearing import ALPHA, Hearing, Null, evidence, nothing
from openwork.explain.words.scoring.simulation import activity_fit

CLAIM = "identified"
BAR = 0.5
BAG = 4  # clusters of examples from which one pick is made
LEAST_BAGS = 8
UNIT = "share of picks"


def identified(h: Hearing) -> Evidence:
    """How often the topic's own explanation is picked from a line-up with its rivals.

    one pick         from a few examples (4 clusters) that no other pick uses: the explanation whose expected activity
                     correlates best with the measured one. Equals share the pick
    value            share of picks that fall on its own explanation; chance is 1 / (1 + rivals)
    interval         Wilson's
    holds            half of the picks or more, none is picked more often, and more than by guessing (exact binomial,
                     shared picks rounded down)
    too little data  no rival, or fewer than 8 picks
    The details have the same by expected and measured damage, for what it is worth.
    """
    started = time.perf_counter()
    m = h.material
    if not activity_fit(m).rivals(h):
        return nothing(
            h, CLAIM, UNIT, "There is no other explanation of a topic that acts otherwise to pick from.", started
        )
    own, by_damage = _picks(h, activity_fit(m)), _picks(h, damage_fit(m))
    if not len(own) or not np.isfinite(m.expected[h.e]).any():
        return nothing(
            h, CLAIM, UNIT, "Too few examples on which the topic varies were judged for a single pick.", started
        )
    n, chance, value = len(own), 1 / own.shape[1], float(own[:, 0].mean())
    p = stats.binomial_p(int(own[:, 0].sum() + 1e-9), n, chance)
    most = float(own.mean(0)[1:].max())
    beaten = p <= ALPHA and value > most
    nulls = {
        "guessing": Null(
            f"guessing among {own.shape[1]}", chance, p, True, beaten, float((own.mean(0)[1:] >= value).mean())
        )
    }
    details = {
        "line_up": own.shape[1],
        "picks": n,
        "most_of_another": most,
        "by_damage": float(by_damage[:, 0].mean()) if len(by_damage) and by_damage.shape[1] > 1 else None,
    }
    what = (
        f"From {n} times a few examples, the explanation of {h.explanation.subject} is picked among {own.shape[1]} in "
        f"{value:.0%}"
    )
    return evidence(
        h, CLAIM, UNIT, BAR, value, stats.wilson(value * n, n), nulls, n, n >= LEAST_BAGS, what, started, details
    )


def _picks(h: Hearing, fit: Fit) -> np.ndarray:
    """float [picks, 1 + rivals]: what each explanation gets of each pick, its own first."""
    line = [h.e, *fit.rivals(h)]
    y = fit.measured[h.k]
    known = np.isfinite(y) & fit.known[h.e].reshape(y.shape)
    y = np.where(known, np.nan_to_num(y) - np.nanmean(np.where(known, y, np.nan)) if known.any() else 0.0, 0.0)
    z = fit.standard[line].reshape(len(line), *y.shape) * known
    n, sy, syy = known.sum(1), y.sum(1), (y * y).sum(1)
    sz, szz, szy = z.sum(2), np.einsum("jnt,jnt->jn", z, z), np.einsum("jnt,nt->jn", z, y)
    shape = sz.shape
    sums = np.stack(
        [np.broadcast_to(n, shape), sz, np.broadcast_to(sy, shape), szz, np.broadcast_to(syy, shape), szy], -1
    )
    clusters = fit.by_cluster(np.moveaxis(sums, 1, 0))  # [M, J, 6]
    clusters = clusters[clusters[:, 0, 0] > 0]
    order = h.rng(CLAIM).permutation(len(clusters))
    bags = [clusters[order[i : i + BAG]].sum(0) for i in range(0, len(order) - BAG + 1, BAG)]
    bags = [b for b in bags if b[0, 4] > 1e-12]  # a bag in which the topic never varies tells nothing
    if not bags:
        return np.zeros((0, len(line)))
    r = stats.correlation(np.stack(bags))
    best = r >= r.max(1, keepdims=True) - 1e-9
    return best / best.sum(1, keepdims=True)


__all__ = ["BAG", "BAR", "CLAIM", "identified"]
