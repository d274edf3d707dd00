"""What a model is trained on and judged by: batches, their loss, and a model's loss and accuracy on held-out splits.

Knows one model and batches. Does not know regimes, steps or tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openwork.training.matrices import evaluating

Inputs = tuple[Tensor, ...]  # positional arguments of the model's forward


class TrainData(Protocol):
    """Where batches come from. Integer targets are [B, T] for a language model, [B] for a classifier.

    The loss is cross-entropy, unless the data have a method `loss(outputs, targets)` of their own (see `OwnLoss`).
    """

    def batch(self, step: int) -> tuple[Inputs, Tensor]:
        """Inputs and targets of one step: a pure function of the step."""
        ...

    def held_out(self, split: str) -> Iterable[tuple[Inputs, Tensor]]:
        """Fixed batches of the "discover" or "verify" data."""
        ...


@runtime_checkable
class OwnLoss(Protocol):
    """Data that say what a model's outputs are worth, such as a regression."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss per target, in float32 on the outputs' device; targets may be of any shape and type."""
        ...


def loss_of(
    model: nn.Module, data: TrainData, inputs: Inputs, targets: Tensor, device: torch.device, amp: bool
) -> Tensor:
    """Mean loss per target: the data's own, or cross-entropy in nats."""
    cuda = device.type == "cuda"
    inputs = tuple(x.to(device, non_blocking=cuda) for x in inputs)
    targets = targets.to(device, non_blocking=cuda)
    with torch.autocast("cuda", torch.bfloat16, enabled=amp and cuda):
        logits = model(*inputs)
    if isinstance(data, OwnLoss):
        return data.loss(logits.float(), targets)
    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten())


@torch.no_grad()
def held_out_loss(
    model: nn.Module, data: TrainData, device: torch.device, amp: bool = False, split: str = "discover"
) -> float:
    """Mean loss per target on a split, in nats unless the data bring their own; the loop only asks for "discover"."""
    total, n = 0.0, 0
    with evaluating(model):
        for inputs, targets in data.held_out(split):
            loss = loss_of(model, data, inputs, targets, device, amp)
            total, n = total + float(loss) * targets.numel(), n + targets.numel()
    return total / n if n else math.nan


@torch.no_grad()
def held_out_accuracy(model: nn.Module, data: TrainData, device: torch.device, split: str = "verify") -> float | None:
    """Share of a split's targets that have the largest logit; None where the data bring a loss of their own."""
    if isinstance(data, OwnLoss):
        return None
    right, n = 0, 0
    with evaluating(model):
        for inputs, targets in data.held_out(split):
            best = model(*(x.to(device) for x in inputs)).flatten(0, -2).argmax(-1)
            right, n = right + int((best == targets.to(device).flatten()).sum()), n + targets.numel()
    return right / n if n else None


@torch.no_grad()
def held_out_figures(
    model: nn.Module, data: TrainData, device: torch.device, split: str = "verify"
) -> tuple[float, float | None]:
    """`held_out_loss` and `held_out_accuracy` at the price of one, for whoever judges a model many times."""
    own, total, right, n = isinstance(data, OwnLoss), 0.0, 0, 0
    with evaluating(model):
        for inputs, targets in data.held_out(split):
            targets = targets.to(device)
            outputs = model(*(x.to(device) for x in inputs))
            if isinstance(data, OwnLoss):
                loss = data.loss(outputs.float(), targets)
            else:
                logits, wanted = outputs.float().flatten(0, -2), targets.flatten()
                loss = F.cross_entropy(logits, wanted)
                right += int((logits.argmax(-1) == wanted).sum())
            total, n = total + float(loss) * targets.numel(), n + targets.numel()
    return (total / n, None if own else right / n) if n else (math.nan, None)
