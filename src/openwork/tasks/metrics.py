"""What a run is judged by, example by example: the metrics of the field over logits, and whether more is better.

METRICS is the one list. Knows logits and the answers of a split. Does not know models, circuits or methods.

Shapes: N examples, V outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from openwork.errors import unknown
from openwork.tasks.task import Split, losses


def logit_difference(logits: Tensor, split: Split, whole: Tensor | None = None) -> Tensor:
    """Logit of the right answer minus the mean logit of the wrong ones [N] (Wang et al. 2022, arXiv 2211.00593)."""
    return logits.gather(1, split.answer[:, None])[:, 0] - logits.gather(1, split.wrong).mean(1)


def probability_difference(logits: Tensor, split: Split, whole: Tensor | None = None) -> Tensor:
    """Probability of the right answer minus that of all wrong ones together [N], softmax over the whole vocabulary.

    The metric of the greater-than task (Hanna et al. 2023, arXiv 2305.00586), where several years are right and
    several wrong.
    """
    p = logits.softmax(-1)
    return p.gather(1, split.answer[:, None])[:, 0] - p.gather(1, split.wrong).sum(1)


def divergence(logits: Tensor, split: Split, whole: Tensor | None = None) -> Tensor:
    """KL(whole model || this run) in nats per example [N]: the sum over the vocabulary, not its mean.

    whole  logits [N, V] of the whole model on the same examples
    """
    assert whole is not None, "the divergence compares with the whole model's logits"
    return F.kl_div(logits.log_softmax(-1), whole.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def task_loss(logits: Tensor, split: Split, whole: Tensor | None = None) -> Tensor:
    """Cross-entropy over the right and the wrong answers, nats per example [N] (see `task.losses`)."""
    return losses(logits, split)


@dataclass(frozen=True)
class Metric:
    """One way of judging a run.

    of      (logits [N, V], split, logits of the whole model [N, V]) -> [N]
    sign    1 where more is better for the task, -1 where less is
    unit    what it is measured in
    """

    name: str
    of: Callable[[Tensor, Split, Tensor | None], Tensor]
    sign: int
    unit: str


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("loss", task_loss, -1, "nats of loss"),
        Metric("logit_difference", logit_difference, 1, "logits"),
        Metric("probability_difference", probability_difference, 1, "probability"),
        Metric("kl", divergence, -1, "nats of divergence"),
    )
}


def metric(name: str) -> Metric:
    """The metric of that name; refuses with the nearest one."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


__all__ = ["METRICS", "Metric", "divergence", "logit_difference", "metric", "probability_difference", "task_loss"]
