"""Scores that are correlations: what explanations expect beside what topics did, place by place.

A constant expectation tells nothing and counts as no correlation, 0. Knows hearings and arrays. Does not know what is
correlated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from openwork import stats
from openwork.circuit import Evidence
from openwork.explain.words.scoring.hearing import (
    DESCRIPTIONS,
    ENOUGH,
    NULL_WORDS,
    ROUNDING,
    TIE,
    Hearing,
    Null,
    by_chance,
    by_difference,
    by_rank,
    evidence,
    nothing,
)


@dataclass(frozen=True, eq=False)
class Fit:
    """Expectations and measurements side by side.

    expected  float [E, N, T], nan where the judge cannot say or was not asked
    measured  float [K, N, T], nan where unknown
    nulls     name of a null -> its draws, each like `measured`
    clusters  int [N]
    alike     bool [K, K]: topics that are alike in what is measured
    """

    expected: np.ndarray
    measured: np.ndarray
    nulls: Mapping[str, list[np.ndarray]]
    clusters: np.ndarray
    alike: np.ndarray

    @cached_property
    def known(self) -> np.ndarray:
        """bool [E, N T]: where the judge could say."""
        return np.isfinite(self.expected).reshape(len(self.expected), -1)

    @cached_property
    def standard(self) -> np.ndarray:
        """float [E, N T]: expectations less their mean over their standard deviation; 0 where unknown or constant."""
        return stats.standardised(np.nan_to_num(self.expected).reshape(self.known.shape), self.known)

    @cached_property
    def table(self) -> np.ndarray:
        """float [K, E]: correlation of every topic with every explanation; nan for topics that were not measured."""
        return self._correlations(self.measured)

    @cached_property
    def null_tables(self) -> dict[str, list[np.ndarray]]:
        """Name of a null -> per draw, correlations [K, E]."""
        return {name: [self._correlations(x) for x in draws] for name, draws in self.nulls.items()}

    @cached_property
    def total(self) -> np.ndarray:
        """float [N T]: sum of all standardised expectations."""
        return self.standard.sum(0)

    def _correlations(self, measured: np.ndarray) -> np.ndarray:
        y = measured.reshape(len(measured), -1)
        unmeasured = ~np.isfinite(y).any(1)
        there = np.isfinite(y[~unmeasured]).all(0)
        y = np.where(there, np.nan_to_num(y), 0.0)
        y = y - (y.sum(1) / max(1, there.sum()))[:, None] * there  # large means would drown the variation
        known = self.known & there
        if (known == known[:1]).all():  # one mask for all, as of every judge that is executed
            n = np.full((1, len(known)), known[:1].sum())
            sy, syy = y[:, known[0]].sum(1)[:, None], (y[:, known[0]] ** 2).sum(1)[:, None]
        else:
            mask = known.astype(np.float64).T
            n, sy, syy = mask.sum(0)[None, :], y @ mask, (y * y) @ mask
        z = self.standard * known
        sz, szz, n = z.sum(1)[None, :], (z * z).sum(1)[None, :], np.maximum(1, n)
        sums = np.broadcast_arrays(n, sz, sy, szz, syy, y @ z.T)
        out = stats.correlation(np.stack(sums, -1))
        out[unmeasured] = np.nan
        return out

    def pair(self, e: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What explanation e expects and topic k did, both standardised where both are known [N, T], and where."""
        y = self.measured[k]
        both = np.isfinite(y) & np.isfinite(self.expected[e])
        x, y = (stats.standardised(np.nan_to_num(v)[both], np.ones(int(both.sum()), dtype=bool))
                for v in (self.expected[e], y))  # fmt: skip
        out = np.zeros((2, *both.shape))
        out[0][both], out[1][both] = x, y
        return out[0], out[1], both

    def rivals(self, h: Hearing) -> tuple[int, ...]:
        """The explanations that are wrong here and of which the judge could say something."""
        return tuple(j for j in h.rivals(self.alike) if self.known[j].any())

    def by_cluster(self, values: np.ndarray) -> np.ndarray:
        """Sums of values [N, ...] over the examples of each cluster, [M, ...]."""
        names, index = np.unique(self.clusters, return_inverse=True)
        out = np.zeros((len(names), *values.shape[1:]))
        np.add.at(out, index, values)
        return out


def fitted(
    h: Hearing, claim: str, unit: str, bar: float, what: str, fit: Fit, started: float, details: Mapping[str, Any],
    reach: float = float("inf"),
) -> Evidence:  # fmt: skip
    """The evidence of a correlation: interval and differences by a bootstrap over clusters of examples.

    what   the figure in words, up to the number
    reach  as far as a perfect explanation gets; rivals that get further are not held against this one, and counted
    """
    x, y, both = fit.pair(h.e, h.k)
    examples = both.any(1)
    n = len(np.unique(fit.clusters[examples]))
    missing = int((np.isfinite(fit.measured[h.k]) & ~np.isfinite(fit.expected[h.e])).sum())
    details = {**details, "places": int(both.sum()), "examples": int(examples.sum()), "not_judged": missing}
    if n < 2 or not _varies(fit.measured[h.k][both]):
        return nothing(
            h, claim, unit, f"{h.explanation.subject} does the same on all examples that were judged.", started, details
        )
    value = float(stats.correlation(stats.moments(x[both], y[both]).sum(0)))
    sums = fit.by_cluster((stats.moments(x, y) * both[..., None]).sum(1))
    w = _weights(h, len(sums))
    draws = stats.correlation(np.einsum("bm,ms->bs", w, sums))
    nulls = {"chance": by_chance(0.0, stats.rank_p(0.0, draws, "less"))}
    rivals = fit.rivals(h)
    if rivals:
        theirs = fit.table[h.k, list(rivals)]
        others = [j for j in range(len(fit.standard)) if j not in set(rivals)]
        mean = ((fit.total - fit.standard[others].sum(0)) / len(rivals)).reshape(both.shape) * both
        gap = fit.by_cluster(((x - mean) * y).sum(1))
        nulls["descriptions"] = by_difference(DESCRIPTIONS, value, theirs, w @ gap, h.subjects(rivals), reach)
        details["rivals"] = len(rivals)
        if np.isfinite(reach):
            details["beyond_reach"] = int(((theirs + TIE >= value) & (theirs > reach + TIE)).sum())
    nulls |= _stand_ins(h, fit, value)
    return evidence(
        h, claim, unit, bar, value, stats.percentile_interval(draws), nulls, n, n >= ENOUGH, f"{what} {value:.2f}",
        started, details,
    )  # fmt: skip


def _weights(h: Hearing, n: int) -> np.ndarray:
    """float [B, n]: how often each cluster of examples is drawn; the same draws for all topics and correlations."""
    kept, m = h.material.kept, h.material
    if "clusters drawn" not in kept:
        kept["clusters drawn"] = stats.times_drawn(n, m.settings.draws, int(m.rng("bootstrap").integers(2**31)))
    return kept["clusters drawn"]


def _varies(x: np.ndarray) -> bool:
    return bool(len(x)) and float(x.max() - x.min()) > ROUNDING


def _stand_ins(h: Hearing, fit: Fit, own: float) -> dict[str, Null]:
    out = {}
    for name, tables in fit.null_tables.items():
        draws = np.array([tables[r][j, h.e] for r, j in h.material.stand_ins(name, h.k)])
        draws = draws[np.isfinite(draws)]  # what was not measured is no draw
        if len(draws):
            out[name] = by_rank(NULL_WORDS[name], own, draws)
    return out


__all__ = ["Fit", "fitted"]
