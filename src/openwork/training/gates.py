"""L0 by hard-concrete gates (Louizos, Welling and Kingma 2018, arXiv 1712.01312): every weight has a gate that learns.

While gates learn, a weight w acts as w z with z drawn anew in every step (see `hard_concrete`; its a is `log_alpha`,
one number per gate), so z is exactly 0 or exactly 1 with some probability, and P(z != 0) has a slope in a. Without
noise, as in held-out losses, z is `noiseless_gate(a)`. Two densities come of this that differ: the expected one is the
mean of P(z != 0), the test-time one counts gates that are open without noise. A gate at the threshold of the second
still has P(z != 0) = 0.31, one at the lower bound of a has 0.047: no price brings the expected density to 0.04.

The default is a density to reach instead of a price to tune (constrained formulation: Gallego-Posada et al. 2022):
loss + multiplier * expected density, the multiplier raised while the density is above its target. Ours:

* the multiplier follows the test-time density, since that is the one asked for, while gates follow the slope of the
  expected one (a proxy constraint: Cotter, Jiang and Sridharan 2019, arXiv 1804.06500). It may turn negative: the
  density is to be reached, not only undercut;
* its error is log(density / target), its step is per run and not per step, and a term proportional to the error damps
  it, for without that it overshoots; the target falls exponentially from 1, as in top-k;
* for the last part of a run (`settle`) noise and gates end: their values move into the weights, exactly the asked
  number of weights stays, those with the largest a (among equals the largest |w|; in every matrix at least one gate, or
  nothing would get through), and these train on. So what little the multiplier has missed is made up for by training,
  not by cutting a finished model.

Weight decay and its like fall on w, never on a. Gates learn faster than weights by a factor (`gate_lr`): at the
weights' own rate they hardly move, and nothing is pruned.

Knows one model and the moments of training. Does not know data, losses or circuits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from openwork.errors import UsageError
from openwork.hard_concrete import noiseless_gate, noisy_gate, nonzero_probability
from openwork.patching import graph_of
from openwork.training.loop import Regime
from openwork.training.matrices import evaluating, places

BOUND = math.log(100)  # |a| stays below it, as in the authors' code: a gate further out would get no slope back
BEGIN, SPREAD = 2.5, 0.01  # a at the start is N(BEGIN, SPREAD): P(z != 0) = 0.98
DAMPING = 0.06  # share of a run over which a lasting error adds to the multiplier what the error itself adds at once


class HardConcrete(nn.Module):
    """A parametrization: a weight times its gates, with noise in training and without it in evaluation.

    log_alpha  a, of the weight's shape, or smaller where weights share gates, such as [1, src, 1...] for one per column
    mask       bool, like log_alpha: once `settled`, what stays of the weight
    seen_as    the shape in which the weight meets its gates: [heads, d_head, src] where a gate is a head's
    """

    mask: Tensor

    def __init__(self, seen_as: tuple[int, ...], shape: tuple[int, ...], device: torch.device) -> None:
        super().__init__()
        self.seen_as = seen_as
        self.log_alpha = nn.Parameter(BEGIN + SPREAD * torch.randn(shape, device=device))
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool, device=device))
        self.settled = False

    def forward(self, weight: Tensor) -> Tensor:
        if self.settled:
            return self.times(weight, self.mask)
        return self.times(weight, self.draw() if self.training else noiseless_gate(self.log_alpha))

    def times(self, weight: Tensor, gates: Tensor) -> Tensor:
        """Every weight times its gate."""
        return (weight.reshape(self.seen_as) * gates).view(weight.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What lies under the gates when a weight is set: the weight itself."""
        return weight

    def draw(self) -> Tensor:
        """z, of the shape of a, from torch's own random state."""
        return noisy_gate(self.log_alpha, torch.rand_like(self.log_alpha))


class L0Settings(BaseModel):
    """What density to reach and how fast gates learn; moments are shares of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    density: float = Field(default=0.1, gt=0, le=1, description="share of weights that are nonzero in the end")
    price: float | None = Field(
        default=None, ge=0, description="nats per expected nonzero weight; takes the place of a density"
    )
    group: Literal["weight", "neuron", "head"] = Field(
        default="weight",
        description="a gate per weight; per source node of a link (of an embedding: per channel); the same, but per "
        "head of an attention in each of its matrices",
    )
    gate_lr: float = Field(default=60.0, gt=0, description="learning rate of the gates, in learning rates of the run")
    multiplier_lr: float = Field(
        default=500.0, gt=0, description="nats by which the multiplier grows over a run at e times the density asked"
    )
    anneal_until: float = Field(default=0.5, ge=0, le=1, description="when the target has fallen to the density")
    settle: float = Field(default=0.75, gt=0, le=1, description="when gates end and the chosen weights train on")

    @model_validator(mode="after")
    def _density_or_price(self) -> L0Settings:
        if self.price is not None and "density" in self.model_fields_set:
            raise ValueError("price and density are two ways of saying how sparse; one of them is enough")
        return self


class L0(Regime[L0Settings]):
    """Hard-concrete gates on every matrix, see the head of this file."""

    name = "l0"
    parametrizes = True
    clashes: ClassVar[Mapping[str, str]] = {
        "topk": "each decides alone which weights are zero",
        "rigl": "each decides alone which weights are zero",
    }

    def __init__(self, settings: L0Settings | None = None) -> None:
        super().__init__(settings or L0Settings())

    def prepare(self, model: nn.Module, steps: int) -> None:
        """Gives every trained matrix its gates."""
        self._steps = steps
        self._sum, self._multiplier = 0.0, 0.0
        self._figures: dict[str, float] = {}
        self._sizes: list[int] = []  # weights behind each gate of a matrix
        heads = _heads(model) if self.settings.group == "head" else {}
        gates: list[tuple[nn.Module, str, HardConcrete]] = []
        for full_name, (module, name) in places(model).items():
            weight: Tensor = getattr(module, name)
            seen_as = tuple(weight.shape)
            shape = seen_as if self.settings.group == "weight" else _columns(weight)
            gates.append((module, name, HardConcrete(*heads.get(full_name, (seen_as, shape)), weight.device)))
            self._sizes.append(weight.numel() // gates[-1][2].log_alpha.numel())
        self._gates = [gate for _, _, gate in gates]
        self._total = sum(n * g.log_alpha.numel() for g, n in zip(self._gates, self._sizes, strict=True))
        asked, least = self.settings.density * self._total, sum(self._sizes)
        if self.settings.price is None and asked < least:
            raise UsageError(
                f"l0.density {self.settings.density:g} leaves {asked:.0f} of {self._total} weights, but with one gate "
                f"open in each matrix there are {least} already (l0.group={self.settings.group}): ask for "
                f"{least / self._total:.2g} or more, or for smaller groups."
            )
        for module, name, gate in gates:
            parametrize.register_parametrization(module, name, gate)

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The gates: faster than weights, and without weight decay."""
        gates = [gate.log_alpha for gate in self._gates]
        return [{"params": gates, "weight_decay": 0.0, "lr_factor": self.settings.gate_lr}]

    def density(self, step: int) -> float:
        """The target after `step` steps; with a price there is none, and it counts as 1."""
        s = self.settings
        if s.price is not None:
            return 1.0
        done = step / max(1, self._steps)
        return s.density ** (1.0 if done >= s.anneal_until else done / s.anneal_until)

    def penalty(self, model: nn.Module, step: int) -> Tensor | None:
        """multiplier * expected density, or price * expected number of nonzero weights, in nats."""
        if self._gates[0].settled:
            return None
        price = self.settings.price
        return self._expected() * (self._multiplier if price is None else price * self._total)

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Bounds the gates, moves the multiplier, and settles the gates when it is time."""
        if self._gates[0].settled:
            return
        for gate in self._gates:
            gate.log_alpha.clamp_(-BOUND, BOUND)
        if self.settings.price is None:
            error = math.log(max(self._open(), 1 / self._total) / self.density(step))
            self._sum += error / self._steps
            self._multiplier = self.settings.multiplier_lr * (self._sum + DAMPING * error)
        if step >= self.settings.settle * self._steps:
            self._figures = {"expected_density": float(self._expected()), "test_density": self._open()}
            self._settle(model)

    def finish(self, model: nn.Module) -> None:
        """Leaves plain weights: the gates without noise (in snapshots), or what was settled."""
        with evaluating(model):
            for module, name, _ in _gated(model):
                parametrize.remove_parametrizations(module, name)

    @torch.no_grad()
    def report(self, model: nn.Module) -> dict[str, float]:
        """Both densities while gates learn, then as they were at the end of that; and the multiplier, in nats."""
        if not self._gates[0].settled:
            self._figures = {"expected_density": float(self._expected()), "test_density": self._open()}
        price = self.settings.price
        return {**self._figures, "multiplier": self._multiplier if price is None else price * self._total}

    def state(self) -> dict[str, Any]:
        """The multiplier's memory, and whether gates still learn; the gates themselves are part of the model."""
        settled = self._gates[0].settled
        return {"sum": self._sum, "multiplier": self._multiplier, "figures": self._figures, "settled": settled}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """The inverse of `state`."""
        self._sum, self._multiplier, self._figures = state["sum"], state["multiplier"], dict(state["figures"])
        for gate in self._gates:
            gate.settled = state["settled"]

    def _expected(self) -> Tensor:
        """Expected share of nonzero weights."""
        each = [nonzero_probability(g.log_alpha).sum() * n for g, n in zip(self._gates, self._sizes, strict=True)]
        return torch.stack(each).sum() / self._total

    def _open(self) -> float:
        """Share of weights that are nonzero at test time."""
        each = [noiseless_gate(g.log_alpha).count_nonzero() * n for g, n in zip(self._gates, self._sizes, strict=True)]
        return float(torch.stack(each).sum()) / self._total

    def _settle(self, model: nn.Module) -> None:
        """Ends the gates: chooses the weights that stay and moves the gates' values into them.

        A weight that is chosen though its gate is shut starts from zero.
        """
        gated = _gated(model)
        for _, _, gate in gated:
            gate.settled = True  # with a mask of ones, so that what lies under the gates shows
        weights: list[Tensor] = [getattr(module, name) for module, name, _ in gated]
        sizes = [
            w.abs().reshape(g.seen_as).sum_to_size(g.log_alpha.shape).flatten()
            for w, g in zip(weights, self._gates, strict=True)
        ]
        chosen = self._chosen(torch.cat(sizes)).split([len(s) for s in sizes])
        for (module, name, gate), weight, mask in zip(gated, weights, chosen, strict=True):
            setattr(module, name, gate.times(weight, noiseless_gate(gate.log_alpha)))
            gate.mask.copy_(mask.view_as(gate.mask))

    def _chosen(self, size: Tensor) -> Tensor:
        """Mask [gates] of the gates whose weights stay, all matrices in one row; size [gates] tells equals apart."""
        a = torch.cat([g.log_alpha.flatten() for g in self._gates])
        counts = [g.log_alpha.numel() for g in self._gates]
        if self.settings.price is not None:
            return noiseless_gate(a) > 0
        for part, sizes in zip(a.split(counts), size.split(counts), strict=True):
            best = part == part.max()
            part[torch.where(best, sizes, -1.0).argmax()] = torch.inf  # no matrix loses its last gate
        order = torch.argsort(size, descending=True, stable=True)
        order = order[torch.argsort(a[order], descending=True, stable=True)]
        behind = [torch.full_like(g.log_alpha, n).flatten() for g, n in zip(self._gates, self._sizes, strict=True)]
        filled = torch.cat(behind).double()[order].cumsum(0)
        keep = int((filled - self.settings.density * self._total).abs().argmin()) + 1
        return torch.zeros_like(a, dtype=torch.bool).index_fill(0, order[:keep], True)


def _columns(weight: Tensor) -> tuple[int, ...]:
    """The shape of one gate per column of a weight [dst, src, ...]; an embedding [ids, channels] has channels there."""
    return (1, weight.shape[1], *[1] * (weight.dim() - 2))


def _heads(model: nn.Module) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Of every matrix from or to the channels of heads: how a weight and how its gates are laid out, a gate per head.

    UsageError where the model has no heads.
    """
    graph = graph_of(model)
    found: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for e in (e for e in graph.links if e.kind == "weight"):
        src, dst = graph.site(e.src), graph.site(e.dst)
        if dst.group > 1:
            n = dst.size // dst.group
            found[f"{e.module}.weight"] = (n, dst.group, src.size), (n, 1, 1)
        elif src.group > 1:
            n = src.size // src.group
            found[f"{e.module}.weight"] = (dst.size, n, src.group), (1, n, 1)
    if not found:
        raise UsageError(f"l0.group=head: a {type(model).__name__} has no attention heads; use neuron or weight.")
    return found


def _gated(model: nn.Module) -> list[tuple[nn.Module, str, HardConcrete]]:
    """Every gated matrix of a model, or of a copy of it: module, attribute and gates, in the order of `places`."""
    found = []
    for module, name in places(model).values():
        if parametrize.is_parametrized(module, name):
            over = cast(nn.ModuleDict, module.parametrizations)[name]
            found += [(module, name, p) for p in over.children() if isinstance(p, HardConcrete)]
    return found
