"""Regimes that act on the weights themselves: dense, L1, L2, and exact top-k (Gao et al. 2025, arXiv 2511.13653, A.2).

Top-k: after every optimizer step each matrix keeps only its k largest weights; gradients and the optimizer's moments
stay dense, so a zeroed weight can come back. The density is annealed from 1 to its final value. Left out: norm gains,
attention sinks and buffers (the bigram table).

Choices where the paper, its released code and practice differ, all settings of `TopKSettings`: one k per matrix or one
for all; biases (sparse in the paper, dense in the released code); another density for embeddings; the floor of
entries per neuron; the shape of the anneal. Ours alone: regrowth. With a projection after every step a zeroed weight
must climb past the threshold in one step, so masks hardly move once the anneal ends; regrowth moves them on purpose.

Knows one model and the moments of training. Does not know data, losses or circuits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.graph import Graph, Link
from openwork.models import Subject
from openwork.training.loop import Regime
from openwork.training.matrices import matrices
from openwork.training.selection import (
    Floor,
    default_floor,
    demanded,
    first_k,
    largest,
    largest_outside,
    project_,
)

ROWS = ("query", "key", "value", "neuron")  # kinds of site whose nodes keep a least number of weights in
COLUMNS = ("value", "neuron")  # ... and out


class DenseSettings(BaseModel):
    """Nothing to set."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Dense(Regime[DenseSettings]):
    """Plain training."""

    name = "dense"

    def __init__(self, settings: DenseSettings | None = None) -> None:
        super().__init__(settings or DenseSettings())


class L1Settings(BaseModel):
    """How hard L1 pulls, and what counts as zero in the end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    price: float = Field(default=1e-4, ge=0, description="loss in nats per unit of summed |weight| of the matrices")
    cut: float = Field(default=1e-3, ge=0, description="weights up to this size are set to zero at the end")


class L1(Regime[L1Settings]):
    """A price on the summed size of all matrices; what is small in the end is cut to exact zeros."""

    name = "l1"

    def __init__(self, settings: L1Settings | None = None) -> None:
        super().__init__(settings or L1Settings())

    def penalty(self, model: nn.Module, step: int) -> Tensor:
        """price * sum |w|, in nats."""
        return self.settings.price * torch.stack([w.abs().sum() for w in matrices(model).values()]).sum()

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        """Cuts small weights to zero."""
        for w in matrices(model).values():
            w.mul_(w.abs() > self.settings.cut)


class L2Settings(BaseModel):
    """How hard L2 pulls."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    price: float = Field(default=1e-4, ge=0, description="loss in nats per unit of half the summed square")


class L2(Regime[L2Settings]):
    """A price on half the summed square of all matrices, paid through the gradient (ridge, Tikhonov).

    Not the optimizer's `weight_decay`, which shrinks weights beside the gradient and works as well: set that to 0 to
    have L2 alone. Under plain SGD without momentum the two are one; Adam divides this one's gradient by its own scale
    (Loshchilov and Hutter 2019).
    """

    name = "l2"

    def __init__(self, settings: L2Settings | None = None) -> None:
        super().__init__(settings or L2Settings())

    def penalty(self, model: nn.Module, step: int) -> Tensor:
        """price * 1/2 sum w^2, in nats."""
        return self.settings.price / 2 * torch.stack([w.pow(2).sum() for w in matrices(model).values()]).sum()


class TopKSettings(BaseModel):
    """The choices of top-k training: densities are shares of kept weights, moments are shares of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    density: float = Field(default=0.05, gt=0, le=1)
    scope: Literal["matrix", "global"] = Field(default="matrix", description="one k per matrix, or one for all")
    biases: bool = Field(default=False, description="sparsify biases too")
    embed_density: float | None = Field(
        default=None, gt=0, le=1, description="density of embedding, unembedding and positions; none means the same"
    )
    floor: int | None = Field(
        default=None,
        ge=0,
        description="weights that each neuron and channel keeps; none: min(4, ceil(density * length))",
    )
    anneal: Literal["exponential", "linear"] = "exponential"
    anneal_from: float = Field(default=0.01, ge=0, le=1)
    anneal_until: float = Field(default=0.5, ge=0, le=1)
    regrow: float = Field(default=0.0, ge=0, lt=1, description="share of kept weights replaced at a regrowth")
    regrow_every: int = Field(default=50, ge=1, description="steps between two regrowths")
    regrow_until: float = Field(default=0.75, ge=0, le=1)

    @model_validator(mode="after")
    def _anneal_runs_forward(self) -> TopKSettings:
        if self.anneal_from > self.anneal_until:
            raise ValueError(f"anneal_from {self.anneal_from} is after anneal_until {self.anneal_until}")
        return self


@dataclass(frozen=True)
class _Part:
    """One parameter that is made sparse: its final density, size and floors."""

    name: str
    density: float
    size: int
    floors: tuple[Floor, ...]


class TopK(Regime[TopKSettings]):
    """Exact top-k weights after every step, see the head of this file."""

    name = "topk"

    def __init__(self, settings: TopKSettings | None = None) -> None:
        super().__init__(settings or TopKSettings())

    def prepare(self, model: nn.Module, steps: int) -> None:
        """Finds the parameters to make sparse and their floors."""
        self._steps = steps
        self._parts = _parts(model, self.settings)
        self._seen: dict[str, Tensor] = {}

    def density(self, step: int) -> float:
        """Nominal share of kept weights over all sparse parameters after `step` steps."""
        total = sum(p.size for p in self._parts)
        return sum(self._kept(p, step) for p in self._parts) / max(1, total)

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Projects every sparse parameter onto its k largest entries; now and then regrows some."""
        named = dict(model.named_parameters())
        regrow = self._regrows(step)
        for group in self._groups():
            weights = [named[p.name] for p in group]
            k = sum(self._kept(p, step) for p in group)
            if regrow:
                _regrow_(weights, [p.floors for p in group], k, self.settings.regrow)
            elif len(group) == 1:
                project_(weights[0].data, k, group[0].floors)
            else:
                kept = _largest_of_all([w.abs() for w in weights], [p.floors for p in group], k)
                for w, mask in zip(weights, kept, strict=True):
                    w.mul_(mask)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Mask churn: share of the kept entries that were not kept at the last report (nan at the first)."""
        named = dict(model.named_parameters())
        now = {p.name: named[p.name].detach() != 0 for p in self._parts}
        kept = sum(int(m.count_nonzero()) for m in now.values())
        new = sum(int((m & ~self._seen[n]).count_nonzero()) for n, m in now.items()) if self._seen else math.nan
        self._seen = now
        return {"churn": new / max(1, kept)}

    def state(self) -> dict[str, Any]:
        """The masks of the last report."""
        return {"seen": self._seen}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """The inverse of `state`."""
        self._seen = {n: m.to(device) for n, m in state["seen"].items()}

    def _kept(self, part: _Part, step: int) -> int:
        """Entries that a parameter keeps after `step` steps; at least one."""
        s = self.settings
        done = step / max(1, self._steps)
        if done >= s.anneal_until:
            share = 1.0
        else:
            share = max(0.0, done - s.anneal_from) / (s.anneal_until - s.anneal_from)
        now = part.density**share if s.anneal == "exponential" else 1 + (part.density - 1) * share
        return max(1, round(now * part.size))

    def _groups(self) -> list[list[_Part]]:
        """Parameters that share one k: each alone, or all of one density."""
        if self.settings.scope == "matrix":
            return [[p] for p in self._parts]
        by: dict[float, list[_Part]] = {}
        for p in self._parts:
            by.setdefault(p.density, []).append(p)
        return list(by.values())

    def _regrows(self, step: int) -> bool:
        s = self.settings
        return s.regrow > 0 and step % s.regrow_every == 0 and step <= s.regrow_until * self._steps


def _parts(model: nn.Module, s: TopKSettings) -> list[_Part]:
    """The parameters that top-k makes sparse, in the model's order."""
    graph = cast(Subject, model).graph()
    links: dict[str, list[Link]] = {}
    for link in graph.links:
        if link.kind == "weight":
            links.setdefault(f"{link.module}.weight", []).append(link)
    parts = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if p.dim() >= 2:
            of = links.get(name, [])
            outside = any(e.counts in ("embedding", "unembedding") for e in of)
            density = s.embed_density if outside and s.embed_density is not None else s.density
            parts.append(_Part(name, density, p.numel(), _floors(graph, of, p, density, s.floor)))
        elif s.biases and name.endswith("bias"):
            parts.append(_Part(name, s.density, p.numel(), ()))
    return parts


def _floors(
    graph: Graph, links: Sequence[Link], weight: Tensor, density: float, least: int | None
) -> tuple[Floor, ...]:
    """What a weight [dst, src, ...] owes the neurons and channels at its two ends."""
    axes = [
        axis
        for axis, kinds, end in ((0, ROWS, "dst"), (1, COLUMNS, "src"))
        if any(graph.site(getattr(e, end)).kind in kinds for e in links)
    ]
    lengths = [weight.numel() // weight.shape[a] for a in axes]
    wanted = [default_floor(density, n) if least is None else min(least, n) for n in lengths]
    return tuple(Floor(a, w) for a, w in zip(axes, wanted, strict=True) if w > 0)


def _largest_of_all(sizes: Sequence[Tensor], floors: Sequence[Sequence[Floor]], k: int) -> list[Tensor]:
    """Masks of the k largest entries of several tensors together."""
    forced = torch.cat([demanded(s, f).flatten() for s, f in zip(sizes, floors, strict=True)])
    ranked = torch.cat([s.flatten() for s in sizes]).masked_fill(forced, torch.inf)
    kept = first_k(ranked, max(k, int(forced.sum())))
    split = kept.split([s.numel() for s in sizes])
    return [m.view(s.shape) for m, s in zip(split, sizes, strict=True)]


def _regrow_(weights: Sequence[Tensor], floors: Sequence[Sequence[Floor]], k: int, share: float) -> None:
    """Keeps the largest weights but gives a share of the k places to zeroed weights with the largest gradients.

    As in RigL (Evci et al. 2020), but a regrown weight starts at the size of the smallest kept one, in the direction
    that lowers the loss: from zero it would not survive the next projection.
    """
    sizes = [w.abs() for w in weights]
    places = int(share * k)
    kept = largest(sizes[0], k - places, floors[0]) if len(sizes) == 1 else None
    masks = [kept] if kept is not None else _largest_of_all(sizes, floors, k - places)
    places = max(0, k - sum(int(m.count_nonzero()) for m in masks))
    grown = largest_outside(masks, [torch.zeros_like(w) if w.grad is None else w.grad.abs() for w in weights], places)
    start = torch.stack(
        [s.masked_fill(~m | (s == 0), torch.inf).min() for s, m in zip(sizes, masks, strict=True)]
    ).min()
    start = torch.where(start.isfinite(), start, torch.zeros_like(start))
    for w, m, g in zip(weights, masks, grown, strict=True):
        w.mul_(m)
        if w.grad is not None:
            w.sub_(g * w.grad.sign() * start)
