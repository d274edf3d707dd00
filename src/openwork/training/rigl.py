"""RigL: sparse from the first step, with masks that move (Evci et al. 2020, arXiv 1911.11134).

Every matrix starts with a random mask and keeps its number of weights. At every `every`-th step until `until`, each
matrix gives up a share of its k weights, the smallest, and grows as many where the dense gradient is largest:

    share(t) = alpha / 2 * (1 + cos(pi t / T_end)),    T_end = until * steps

As in the released code, what was dropped may be chosen again at once and then keeps its value; every other new weight
starts at zero. Between the moves, masked weights get neither gradient nor moments, whatever the optimizer is.

    uniform   every matrix has the density d
    erk       (Erdos-Renyi-kernel) density of a matrix ~ sum of its axes / product of its axes, at most 1, so that
              small matrices are denser; d overall

Departures: an optimizer step is taken at moves too; the first matrix is sparse like the others under `uniform`.

Knows one model and the moments of training. Does not know data, losses or circuits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.training.loop import Regime
from openwork.training.matrices import matrices
from openwork.training.selection import first_k, largest_outside


class RigLSettings(BaseModel):
    """The choices of RigL; shares are of the run unless said otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    density: float = Field(default=0.2, gt=0, le=1, description="share of weights that stay, over all matrices")
    spread: Literal["erk", "uniform"] = Field(default="erk", description="how matrices share the density")
    alpha: float = Field(default=0.3, ge=0, le=1, description="share of a matrix's weights moved at first")
    every: int = Field(default=50, ge=1, description="steps between two moves")
    until: float = Field(default=0.75, ge=0, le=1, description="after this the masks stay")


class RigL(Regime[RigLSettings]):
    """Sparse training with moving masks, see the head of this file."""

    name = "rigl"
    clashes: ClassVar[Mapping[str, str]] = {"topk": "each decides alone which weights are zero"}

    def __init__(self, settings: RigLSettings | None = None) -> None:
        super().__init__(settings or RigLSettings())

    @torch.no_grad()
    def prepare(self, model: nn.Module, steps: int) -> None:
        """Draws the masks, with the loop's random numbers, and sets everything outside to zero."""
        s = self.settings
        self._steps, self._moved = steps, 0.0
        self._dense: dict[str, Tensor] = {}
        weights = matrices(model)
        self._size = sum(w.numel() for w in weights.values())
        self._kept = dict(zip(weights, counts([w.shape for w in weights.values()], s.density, s.spread), strict=True))
        self._masks: dict[str, Tensor] = {}
        for name, w in weights.items():
            mask = first_k(torch.rand(w.numel()), self._kept[name]).view(w.shape)
            self._masks[name] = mask.to(w.device)
            w.mul_(self._masks[name])

    def density(self, step: int) -> float:
        """Share of kept weights over all matrices, the same at every step."""
        return sum(self._kept.values()) / self._size

    @contextmanager
    def during(self, model: nn.Module, step: int) -> Iterator[None]:
        """Takes the gradient from masked weights, and remembers its size where the next step moves the masks."""
        yield
        self._dense = {}
        for name, mask in self._masks.items():
            grad = model.get_parameter(name).grad
            if grad is not None:
                if self._share(step + 1) > 0:
                    self._dense[name] = grad.abs()
                grad.mul_(mask)

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Moves the masks where that is due, and clears weights and moments outside of them."""
        share, moved = self._share(step), 0
        for name, before in list(self._masks.items()):
            w = model.get_parameter(name)
            if share > 0 and name in self._dense:
                self._masks[name] = moved_mask(w, before, self._dense[name], share)
                moved += int((before & ~self._masks[name]).count_nonzero())
            stay = before & self._masks[name]  # what is new starts at zero, also where an optimizer moved all weights
            w.mul_(stay)
            for t in optimizer.state.get(w, {}).values():
                if isinstance(t, Tensor) and t.shape == w.shape:
                    t.mul_(stay)
        if share > 0:
            self._moved = moved / sum(self._kept.values())
        self._dense = {}

    def report(self, model: nn.Module) -> dict[str, float]:
        """Share of the kept weights that the last move put elsewhere."""
        return {"moved": self._moved}

    def state(self) -> dict[str, Any]:
        """The masks, and how much the last move moved."""
        return {"masks": self._masks, "moved": self._moved}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """The inverse of `state`."""
        self._masks = {n: m.to(device) for n, m in state["masks"].items()}
        self._moved = state["moved"]

    def _share(self, step: int) -> float:
        """The share of a matrix's weights that is moved after `step` steps; 0 where no move is due."""
        s, end = self.settings, self.settings.until * self._steps
        if step % s.every or step >= end:
            return 0.0
        return s.alpha / 2 * (1 + math.cos(math.pi * step / end))


def counts(shapes: Sequence[Sequence[int]], density: float, spread: str) -> list[int]:
    """How many weights each matrix keeps, at least one, see the head of this file.

    With the scale e of "erk", a matrix keeps e * (sum of its axes) entries; those that would keep more than all are
    dense, and e is found again for the others.
    """
    sizes = [math.prod(s) for s in shapes]
    if spread == "uniform":
        return [max(1, round(density * n)) for n in sizes]
    dense: set[int] = set()
    while len(dense) < len(sizes):
        left = density * sum(sizes) - sum(sizes[i] for i in dense)
        scale = left / sum(sum(s) for i, s in enumerate(shapes) if i not in dense)
        over = {i for i, s in enumerate(shapes) if i not in dense and scale * sum(s) > sizes[i]}
        if not over:
            return [n if i in dense else max(1, round(scale * sum(shapes[i]))) for i, n in enumerate(sizes)]
        dense |= over
    return sizes


def moved_mask(weight: Tensor, mask: Tensor, gradient: Tensor, share: float) -> Tensor:
    """The mask after one move, as many entries as before.

    weight, mask    of one shape
    gradient        size of the dense gradient, of that shape
    share           of the mask's entries that are given up, rounded down
    """
    k = int(mask.count_nonzero())
    places = int(share * k)
    stay = first_k(weight.abs().masked_fill(~mask, -1).flatten(), k - places).view(mask.shape)
    (grown,) = largest_outside([stay], [gradient], places)
    return stay | grown
