"""Simulation: does the activity that the explanation leads one to expect go up and down with the real one?

As Bills et al. 2023 score explanations of neurons: one correlation over all tokens of all examples laid end to end, not
the mean over examples.
"""

from __future__ import annotations

import time

import numpy as np

from openwork.circuit import Evidence
from openwork.explain.words.scoring.fit import Fit, fitted
from openwork.explain.words.scoring.hearing import Hearing, Material, nothing

CLAIM = "simulation"
BAR = 0.3
UNIT = "Pearson's r"


def simulation(h: Hearing) -> Evidence:
    """Pearson's correlation of expected and measured activity over all positions that count.

    interval         percentile bootstrap over clusters of examples
    holds            r >= 0.3, and above every null: no correlation (bootstrap), the mean of the other topics'
                     explanations (bootstrap of the difference; and no more than one in twenty of them does as well),
                     random parts of the same size and models with random weights (rank)
    too little data  fewer than 32 clusters of examples, or activity that does not vary
    """
    started = time.perf_counter()
    m = h.material
    if not np.isfinite(m.expected[h.e]).any():
        return nothing(h, CLAIM, UNIT, "The judge could not say where activity is to be expected.", started)
    what = f"Expected and measured activity of {h.explanation.subject} correlate over all places:"
    return fitted(h, CLAIM, UNIT, BAR, what, activity_fit(m), started, {})


def activity_fit(m: Material) -> Fit:
    """Expected and measured activity, place by place; made once."""
    if CLAIM not in m.kept:
        nulls = {name: [_deep(o.activity) for o in draws] for name, draws in m.null_draws.items()}
        m.kept[CLAIM] = Fit(m.expected, np.where(m.counted, m.acts.activity, np.nan), nulls, m.clusters, m.alike)
    return m.kept[CLAIM]


def _deep(activity: np.ndarray) -> np.ndarray:
    """Activity [K, N, T]; of vectors T is 1."""
    return activity if activity.ndim == 3 else activity[:, :, None]


__all__ = ["BAR", "CLAIM", "activity_fit", "simulation"]
