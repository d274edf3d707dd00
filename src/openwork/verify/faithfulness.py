"""How much of what a model does a circuit does: the field's normalised scores, with intervals.

Notation: m(.) is a metric's mean over the examples; N the whole model, C the circuit, "empty" the model with every edge
at its reference, N \\ C the model with the circuit's edges at theirs.

    faithfulness   f(C) = (m(C) - m(empty)) / (m(N) - m(empty)) (Marks et al. 2024, arXiv 2403.19647)
    completeness   f(N \\ C), which should be near 0 (the same)
    recovered      mean over examples of 100 m(C) / m(N), without a baseline (as AutoCircuit reports it)
    CPR            integral of f(C_k) over the share k of edges kept, edges ranked by signed score
    CMD            integral of |1 - f(C_k)|, edges ranked by the size of their score
                   (both Mueller et al. 2025, arXiv 2504.13151)

C_k keeps the floor(k |E|) best edges, less those on no path from an input to the output. The integrals are trapezoids
on the linear axis from 0.001 to 1, so f = 1 throughout gives a CPR of 0.999, and the largest circuits weigh most. Every
figure depends on the reference, which stands beside it.

Knows a patched run, a metric and a ranking or circuit. Does not know which method either is from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from openwork import stats
from openwork.circuit import Circuit, Scores
from openwork.errors import UsageError
from openwork.patched_run import PatchedRun
from openwork.tasks.metrics import METRICS, Metric
from openwork.tasks.task import Split

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # the standard grid of the MIB benchmark
NO_GAP = 1e-6  # a gap between model and empty circuit below this divides nothing
LOGIT_DIFFERENCE = METRICS["logit_difference"]


@dataclass(frozen=True)
class Faithfulness:
    """One circuit's scores on one split.

    value, interval   f(C), 95 % by bootstrap over pairs; likewise `completeness`
    recovered         per cent of the metric, mean of the examples' ratios
    whole, empty      the metric of the whole model and of the empty circuit
    """

    metric: str
    reference: str
    value: float
    interval: stats.Interval
    completeness: float
    completeness_interval: stats.Interval
    recovered: float
    whole: float
    empty: float
    n: int


@dataclass(frozen=True)
class Curve:
    """Faithfulness against size for one ranking.

    ranking       "signed" (then `area` is CPR) or "absolute" (then it is CMD)
    sizes         shares of the ranked edges asked for; kept: how many edges stay after pruning
    faithfulness  f(C_k) at each size
    area          CPR or CMD, and its 95 % interval by bootstrap over pairs
    """

    metric: str
    reference: str
    ranking: str
    sizes: tuple[float, ...]
    kept: tuple[int, ...]
    faithfulness: tuple[float, ...]
    area: float
    interval: stats.Interval
    n: int


class _Normalised:
    """The whole model's and the empty circuit's metric on a split, and f of anything else, per bootstrap draw."""

    def __init__(self, run: PatchedRun, split: Split, metric: Metric, seed: int) -> None:
        self.run, self.split, self.metric = run, split, metric
        with torch.no_grad():
            self.whole = _array(run.values(split, metric=metric))
            self.empty = _array(run.of_circuit(split, Circuit.empty(run.graph), metric))
        self.weights = stats.bootstrap_weights(len(split), stats.pair_clusters(split.pair.cpu().numpy()), seed=seed)
        self.gap = float(self.whole.mean() - self.empty.mean())
        low, high = stats.percentile_interval(self.weights @ (self.whole - self.empty))
        if abs(self.gap) < NO_GAP or low <= 0 <= high:
            raise UsageError(
                f"faithfulness divides by what the reference takes from the model's {metric.name.replace('_', ' ')} on "
                f'the split "{split.name}", which is {self.gap:.3g} (95 % {low:.3g} to {high:.3g}): choose another '
                "reference, or a task that the model does."
            )

    def of(self, values: np.ndarray) -> tuple[float, np.ndarray]:
        """f of a run with this metric per example [N], and in every bootstrap draw [draws]."""
        value = float(values.mean() - self.empty.mean()) / self.gap
        drawn = (self.weights @ (values - self.empty)) / (self.weights @ (self.whole - self.empty))
        return value, drawn

    @property
    def reference(self) -> str:
        """The ablation in a word."""
        return self.run.reference if isinstance(self.run.reference, str) else "fixed"


def _array(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()


def faithfulness(
    run: PatchedRun, split: Split, circuit: Circuit, metric: Metric = LOGIT_DIFFERENCE, seed: int = 0
) -> Faithfulness:
    """f(C), completeness and recovered share of one circuit on a split.

    UsageError where the whole model and the empty circuit do not differ, so that there is nothing to divide by.
    """
    base = _Normalised(run, split, metric, seed)
    alone = _array(run.of_circuit(split, circuit, metric))
    without = {n: run.support[n] & ~m for n, m in circuit.edges.items()}
    with torch.no_grad():
        rest = _array(run.values(split, None, without, metric))
    value, drawn = base.of(alone)
    other, other_drawn = base.of(rest)
    return Faithfulness(
        metric.name, base.reference, value, stats.percentile_interval(drawn), other,
        stats.percentile_interval(other_drawn), float(100 * (alone / base.whole).mean()), float(base.whole.mean()),
        float(base.empty.mean()), len(split),
    )  # fmt: skip


def curve(
    run: PatchedRun,
    split: Split,
    scores: Scores,
    metric: Metric = LOGIT_DIFFERENCE,
    absolute: bool = False,
    sizes: tuple[float, ...] = SIZES,
    seed: int = 0,
) -> Curve:
    """f(C_k) over the sizes, and the area: CPR by signed score, or with `absolute` CMD by the size of the score.

    scores  a ranking of edges, or of nodes, whose sizes are then shares of the nodes
    """
    base = _Normalised(run, split, metric, seed)
    values = {n: v.abs() if absolute else v for n, v in scores.values.items()}
    total = sum(v.numel() for v in values.values())
    if scores.of_edges:
        total = sum(int(run.support[n].sum()) for n in values)
        values = {n: v.masked_fill(~run.support[n], -float("inf")) for n, v in values.items()}
    ranked = replace(scores, values=values)
    kept, f, drawn = [], [], []
    for size in sizes:
        circuit = ranked.circuit(ranked.top(int(size * total + 1e-9)), run.support)
        value, draws = base.of(_array(run.of_circuit(split, circuit, metric)))
        kept.append(len(circuit))
        f.append(value)
        drawn.append(draws)

    def area(of: np.ndarray) -> np.ndarray:
        return np.trapezoid(np.abs(1 - of) if absolute else of, np.array(sizes), axis=0)

    return Curve(
        metric.name, base.reference, "absolute" if absolute else "signed", tuple(sizes), tuple(kept), tuple(f),
        float(area(np.array(f))), stats.percentile_interval(area(np.array(drawn))), len(split),
    )  # fmt: skip


__all__ = ["SIZES", "Curve", "Faithfulness", "curve", "faithfulness"]
