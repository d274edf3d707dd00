"""Damage: does the explanation say on which examples the topic is missed?

Causal side of the account: descriptions of inputs alone miss what a part does to the output (Gur-Arieh et al. 2025,
arXiv 2501.08319).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy.stats import rankdata

from openwork import stats
from openwork.circuit import Evidence
from openwork.explain.words.scoring.fit import Fit, fitted
from openwork.explain.words.scoring.hearing import Hearing, Material, correlated, nothing
from openwork.explain.words.scoring.question import shaped

CLAIM = "damage"
BAR = 0.3
NEAR = 8  # positions up to and with the one that is asked, over which expected activity is summed


def damage(h: Hearing) -> Evidence:
    """Spearman's correlation of expected and measured damage (rise of the loss without the topic) over examples.

    expected  the size of the explanation's expected activity, summed over the last 8 positions up to the one that is
              asked; or, where details["effect"] is a predicate, what that expects at the position that is asked
    Verdict and nulls as in `simulation` (a stand-in's own damage is measured), but for one thing. How much is lost
    depends on what comes after, too: the description of a part further down the path may foretell this topic's damage
    better than this topic's own activity does. So the details tell how far the topic's measured activity gets in place
    of the expected one; a description that gets further is right about something else, and is not counted as doing as
    well (`beyond_reach`), unless the explanation speaks of the effect itself.
    """
    started = time.perf_counter()
    m = h.material
    fit = damage_fit(m)
    if not np.isfinite(fit.expected[h.e]).any():
        return nothing(h, CLAIM, "Spearman's rho", "The judge could not say which examples need this part.", started)
    measured = _near(m, m.acts.activity[h.k])
    known = np.isfinite(measured) & np.isfinite(fit.measured[h.k, :, 0]) & np.isfinite(fit.expected[h.e, :, 0])
    says, by_activity = _says(h.explanation.details), None
    if known.any():
        by_activity = stats.spearman(_ranks(measured[known]), _ranks(m.observed.damage[h.k][known]))
    details = {
        "by_measured_activity": by_activity,
        "mean_damage_nats": float(m.observed.damage[h.k][known].mean()) if known.any() else None,
        "said": "effect" if says else "activity",
    }
    reach = float("inf") if says or by_activity is None else by_activity
    what = f"Expected and measured damage without {h.explanation.subject} correlate over examples:"
    return fitted(h, CLAIM, "Spearman's rho", BAR, what, fit, started, details, reach)


def _says(details: Mapping[str, object]) -> bool:
    return isinstance(details.get("effect"), Mapping)


def damage_fit(m: Material) -> Fit:
    """Ranks of expected and measured damage, per example; made once."""
    if CLAIM not in m.kept:
        m.kept[CLAIM] = _fit(m)
    return m.kept[CLAIM]


def _fit(m: Material) -> Fit:
    expected = np.stack([_expected(m, e) for e in range(len(m.explanations))])
    return Fit(
        np.stack([_ranks(x) for x in expected])[:, :, None],
        _all_ranks(m, m.observed.damage),
        {name: [_all_ranks(m, o.damage) for o in draws] for name, draws in m.null_draws.items()},
        m.clusters,
        correlated(_all_ranks(m, m.observed.damage)[:, :, 0]),
    )


def _expected(m: Material, e: int) -> np.ndarray:
    """float [N], nan where the judge cannot say."""
    explanation = m.explanations[e]
    if not _says(explanation.details):
        return _near(m, m.expected[e])
    sample = m.observed.sample.take(m.pool)
    said = shaped(m.judge(replace(explanation, predicate=explanation.details["effect"]), sample), sample, "the effect")
    out = np.full(len(m.counted), np.nan)
    out[m.pool] = said[np.arange(len(said)), sample.asked if sample.is_text else 0]
    return out


def _near(m: Material, values: np.ndarray) -> np.ndarray:
    """Size of [N, T] summed over the last NEAR positions that count; nan where none is known."""
    sample = m.observed.sample
    at = np.arange(values.shape[1])[None, :]
    last = (sample.asked if sample.is_text else np.zeros(len(sample), dtype=int))[:, None]
    near = (at <= last) & (at > last - NEAR) & np.isfinite(values)
    return np.where(near.any(1), np.where(near, np.abs(np.nan_to_num(values)), 0.0).sum(1), np.nan)


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks of what is known, ties sharing their mean; nan elsewhere. What rounding parts is tied."""
    out, known = np.full(len(x), np.nan), np.isfinite(x)
    out[known] = rankdata(np.round(x[known], 9))
    return out


def _all_ranks(m: Material, values: np.ndarray) -> np.ndarray:
    """Ranks [K, N, 1] of damage on the examples on which the judge was asked."""
    out = np.full((*values.shape, 1), np.nan)
    for row, x in zip(out, values, strict=True):
        row[m.pool, 0] = _ranks(x[m.pool])
    return out


__all__ = ["BAR", "CLAIM", "NEAR", "damage", "damage_fit"]
