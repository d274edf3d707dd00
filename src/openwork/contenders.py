"""What else a person would detect intrusions with, trained on the same features: scikit-learn's models and the EBM.

Each rival gives probabilities of all classes, and those that can be read also give what each feature adds to the
evidence for an attack, so that their explanations meet the same test as the network's. A new rival is one entry of
CONTENDERS. The Explainable Boosting Machine (Nori et al. 2019, arXiv 1909.09223) needs the extra `ebm`.

Knows features and classes as arrays. Does not know networks, schemas or folders.

Shapes: N flows, F features, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from openwork.errors import UsageError

Contributions = Callable[[np.ndarray], np.ndarray]  # features [N, F] -> what each adds to the evidence, [N, F]
MOST = 60_000  # rows that the slow rivals are trained on


@dataclass(frozen=True)
class Contender:
    """A trained rival.

    probabilities  features [N, F] -> [N, C]
    contributions  what each feature adds to the evidence for an attack, or None where the model cannot say
    size           how many parts it has, and of what: "edges", "nodes", "bins"
    bytes          of its parameters as stored
    seconds        CPU time of its training
    """

    name: str
    probabilities: Callable[[np.ndarray], np.ndarray]
    contributions: Contributions | None
    size: int
    parts: str
    bytes: int
    seconds: float


def logistic_regression(x: np.ndarray, y: np.ndarray, names: tuple[str, ...], seed: int) -> Contender:
    """Multinomial logistic regression with weak L2."""
    from sklearn.linear_model import LogisticRegression

    began = time.process_time()
    model = LogisticRegression(max_iter=1000, C=10.0).fit(x, y)
    w = model.coef_
    to_attack = w[0] if len(w) == 1 else w[1:].mean(0) - w[0]  # log-odds of the attacks, on average, against normal
    return Contender(
        "logistic regression", model.predict_proba, lambda z: z * to_attack, int((w != 0).sum()), "weights",
        w.size * 4, time.process_time() - began,
    )  # fmt: skip


def decision_tree(x: np.ndarray, y: np.ndarray, names: tuple[str, ...], seed: int) -> Contender:
    """One tree of at least 10 rows per leaf."""
    from sklearn.tree import DecisionTreeClassifier

    began = time.process_time()
    model = DecisionTreeClassifier(min_samples_leaf=10, random_state=seed).fit(x, y)
    tree = model.tree_
    share = tree.value[:, 0, :] / tree.value[:, 0, :].sum(1, keepdims=True)
    attack = 1 - share[:, 0]  # per node

    def contributions(z: np.ndarray) -> np.ndarray:
        """Along each row's path, the change of the share of attacks goes to the feature that is asked (Saabas 2014)."""
        z = np.ascontiguousarray(z, dtype=np.float32)
        out, at = np.zeros(z.shape), np.zeros(len(z), dtype=np.int64)
        alive = tree.children_left[at] >= 0
        while alive.any():
            rows = np.flatnonzero(alive)
            here = at[rows]
            feature = tree.feature[here]
            left = z[rows, feature] <= tree.threshold[here]
            new = np.where(left, tree.children_left[here], tree.children_right[here])
            out[rows, feature] += attack[new] - attack[here]
            at[rows] = new
            alive = tree.children_left[at] >= 0
        return out

    return Contender(
        "decision tree", lambda z: np.asarray(model.predict_proba(z)), contributions, tree.node_count, "nodes",
        tree.node_count * 16, time.process_time() - began,
    )  # fmt: skip


def gradient_boosting(x: np.ndarray, y: np.ndarray, names: tuple[str, ...], seed: int) -> Contender:
    """Histogram gradient boosting with scikit-learn's defaults."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    began = time.process_time()
    model = HistGradientBoostingClassifier(random_state=seed).fit(x, y)
    nodes = sum(len(p.nodes) for row in model._predictors for p in row)
    return Contender(
        "gradient boosting", model.predict_proba, None, nodes, "nodes", nodes * 16, time.process_time() - began
    )


def explainable_boosting(x: np.ndarray, y: np.ndarray, names: tuple[str, ...], seed: int) -> Contender:
    """The Explainable Boosting Machine without interactions, whose terms add up; of many rows, an even choice."""
    try:
        from interpret.glassbox import ExplainableBoostingClassifier
    except ImportError as e:
        raise UsageError('the Explainable Boosting Machine needs interpret: pip install "openwork[ebm]".') from e
    began = time.process_time()
    keep = np.linspace(0, len(x) - 1, min(len(x), MOST)).astype(int)
    model: Any = ExplainableBoostingClassifier(
        interactions=0, outer_bags=2, n_jobs=1, random_state=seed, feature_names=list(names)
    ).fit(x[keep], y[keep])

    def contributions(z: np.ndarray) -> np.ndarray:
        terms = model.eval_terms(z)
        if terms.ndim == 2:
            return terms
        return terms[:, :, 1:].mean(2) - terms[:, :, 0]

    bins = int(sum(np.asarray(t).size for t in model.term_scores_))
    return Contender(
        "explainable boosting machine", model.predict_proba, contributions, bins, "bins", bins * 4,
        time.process_time() - began,
    )  # fmt: skip


CONTENDERS: dict[str, Callable[[np.ndarray, np.ndarray, tuple[str, ...], int], Contender]] = {
    "logistic_regression": logistic_regression,
    "decision_tree": decision_tree,
    "gradient_boosting": gradient_boosting,
    "explainable_boosting": explainable_boosting,
}

__all__ = ["CONTENDERS", "Contender"]
