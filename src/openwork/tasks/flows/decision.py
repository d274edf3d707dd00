"""From a network's outputs to an alert: calibrated probabilities, and the threshold that a false-alarm budget allows.

A detector is trained on classes drawn more evenly than they occur. One temperature tempers its logits (Guo et al. 2017,
arXiv 1706.04599), and adding log(share / share drawn) to each puts the classes' shares back (Elkan 2001, section 2;
Menon et al. 2021, arXiv 2007.07314), which no temperature may touch. The score of a flow is the probability that it is
not normal; it is an alert where the score reaches the threshold, and then the likeliest attack names it. The threshold
keeps the budget of false alarms, and does not spend it where that finds no further attack.

Knows logits and classes. Does not know networks or files.

Shapes: N flows, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from openwork.errors import UsageError

SURE = 1 - 1e-12  # scores from here on count as this, so that they have log-odds


@dataclass(frozen=True)
class Decision:
    """How logits become alerts.

    offset       [C] added to the tempered logits
    temperature  that the logits are divided by
    threshold    score from which a flow is an alert
    budget       the share of normal flows that may be alerts, for which the threshold was set
    """

    offset: tuple[float, ...]
    temperature: float
    threshold: float
    budget: float

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities [N, C] of logits [N, C]."""
        z = np.asarray(logits, dtype=np.float64) / self.temperature + np.array(self.offset)
        z -= z.max(1, keepdims=True)
        e = np.exp(z)
        return e / e.sum(1, keepdims=True)

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Probability [N] that a flow is not normal."""
        return 1 - self.probabilities(logits)[:, 0]

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """The class [N] of each flow: 0 where it is no alert, else the likeliest attack."""
        p = self.probabilities(logits)
        return np.where(1 - p[:, 0] >= self.threshold, 1 + p[:, 1:].argmax(1), 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"offset": list(self.offset)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Decision:
        """The inverse of `to_dict`."""
        return Decision(tuple(data["offset"]), data["temperature"], data["threshold"], data["budget"])


def calibrated(
    logits: np.ndarray, labels: np.ndarray, shares: np.ndarray, drawn: np.ndarray, budget: float
) -> Decision:
    """The decision that fits held-out flows; UsageError for a budget that they are too few to keep.

    logits, labels  [N, C] and [N], of flows that training did not see
    shares, drawn   [C] share of each class among all flows, and among those that training drew
    budget          share of normal flows that may be alerts
    """
    normal = int((labels == 0).sum())
    if not 0 < budget < 1:
        raise UsageError(f"the false-alarm budget is {budget}; it should be a share between 0 and 1, such as 0.001.")
    if normal * budget < 1:
        raise UsageError(
            f"a false-alarm budget of {budget:g} cannot be kept with {normal} normal flows held out for it: "
            f"give at least {math.ceil(1 / budget):,}, or a larger budget."
        )
    offset = np.log(shares / drawn)
    rows = np.arange(len(labels))

    def nll(log_t: float) -> float:
        z = logits / math.exp(log_t) + offset
        top = z.max(1)
        return float((top + np.log(np.exp(z - top[:, None]).sum(1)) - z[rows, labels]).mean())

    found: Any = minimize_scalar(nll, bounds=(math.log(0.05), math.log(20.0)), method="bounded")
    t = math.exp(found.x)
    loose = Decision(tuple(offset.tolist()), t, 1.0, budget)
    scores = loose.scores(logits)
    normals = np.sort(scores[labels == 0])[::-1]
    allowed = int(normal * budget)  # so many of the normal flows may be alerts
    least = float(np.nextafter(normals[allowed], 1.0)) if normals[allowed] < 1 else 1.0
    threshold = _no_lower_than_needed(least, scores[(labels > 0) & (scores >= least)], normals)
    return Decision(loose.offset, t, threshold, budget)


def _no_lower_than_needed(least: float, found: np.ndarray, normals: np.ndarray) -> float:
    """A threshold that finds the attacks that the budget's own (`least`) finds, and spends no more of it than that
    takes: 1/2 where that parts them from the normal flows below; else halfway, in log-odds, at most 1/2."""
    if not len(found):
        return least
    lowest = float(found.min())
    below = max(least, float(normals[normals < lowest].max(initial=0.0)))
    if below < 0.5 <= lowest:
        return 0.5
    halfway = float(expit((logit(min(below, SURE)) + logit(min(lowest, SURE))) / 2))
    return max(least, min(halfway, 0.5))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of the likeliest class: mean over bins of |confidence - accuracy| (Guo et al.)."""
    best = probabilities.argmax(1)
    confidence, right = probabilities.max(1), best == labels
    where = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(
        sum(
            abs(confidence[where == b].mean() - right[where == b].mean()) * np.mean(where == b)
            for b in np.unique(where)
        )
    )


__all__ = ["Decision", "calibrated", "calibration_error"]
