"""Learning which of many gates can shut: one number tau per gate, the task's loss, and a price that is controlled.

A gate is kept where tau > 0. Two gates:

    step            forward tau > 0, backward the derivative of sigmoid(tau / temperature)
                    (Gao et al. 2025, arXiv 2511.13653, appendix A.5)
    hard_concrete   noisy, with a number of open gates that has a slope (Louizos, Welling and Kingma 2018, arXiv
                    1712.01312; for edges of a circuit: Bhaskar et al. 2024, arXiv 2406.16778); its a is
                    SHUT + (BEGIN - SHUT) tau, so that tau = 0 is where the gate without noise is just shut

Two aims: the fewest gates at a target loss, or the least loss at a number of gates. In both, exact runs judge
snapshots, and the best snapshot is what counts.

Knows gates and two functions, a loss to descend and a judge. Does not know what a gate stands before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from openwork.circuit import Masks
from openwork.discover.search import Progress, SearchSettings
from openwork.hard_concrete import SHUT, noisy_gate, nonzero_probability
from openwork.tasks.task import Split

BEGIN = 2.5  # a of a gate at tau = 1: P(z != 0) = 0.98
LEAST = (-math.log(100) - SHUT) / (BEGIN - SHUT)  # tau at a = -log 100, beyond which a gate gets no slope back
FALL = 0.6  # share of a run over which the number of gates falls to the one asked for

Tau = dict[str, Tensor]


class GateSettings(SearchSettings):
    """How gates learn. Losses in nats per example."""

    steps: int = Field(200, ge=1)
    pairs: int = Field(16, ge=1, description="pairs of examples per step")
    lr: float = Field(0.04, gt=0)
    temperature: float = Field(0.3, gt=0)
    init: float = Field(1.0, gt=0, le=1, description="where the highest tau starts; 1 is the upper clamp")
    price: float = Field(1e-3, gt=0, description="starting price of one gate, nats")
    price_cap: float = Field(
        30.0, ge=1, description="the price of a target loss never exceeds this multiple of its start"
    )
    clip: float = Field(1.0, gt=0)
    check_every: int = Field(10, ge=1)


class Step(torch.autograd.Function):
    """tau > 0 forward; derivative of sigmoid(tau / temperature) backward."""

    @staticmethod
    def forward(ctx: Any, tau: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(tau)
        ctx.temperature = temperature
        return (tau > 0).to(tau.dtype)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        (tau,) = ctx.saved_tensors
        s = torch.sigmoid(tau / ctx.temperature)
        return grad[0] * s * (1 - s) / ctx.temperature, None


@dataclass(frozen=True)
class Gate:
    """How a gate opens: tau -> (the mask in this step, how many are open, with a slope); and the lowest tau."""

    open: Callable[[Tensor], tuple[Tensor, Tensor]]
    least: float


def step_gate(temperature: float) -> Gate:
    """Open or shut, with a slope that is pretended."""

    def opened(tau: Tensor) -> tuple[Tensor, Tensor]:
        mask = Step.apply(tau, temperature)
        return mask, mask.sum()

    return Gate(opened, -1.0)


def hard_concrete_gate(seed: int) -> Gate:
    """Between 0 and 1 with noise, and exactly 0 or 1 with some probability; counted by P(z != 0)."""
    rng = torch.Generator().manual_seed(seed)

    def opened(tau: Tensor) -> tuple[Tensor, Tensor]:
        a = SHUT + (BEGIN - SHUT) * tau
        noise = torch.rand(tau.shape, generator=rng).to(tau.device)
        return noisy_gate(a, noise), nonzero_probability(a).sum()

    return Gate(opened, LEAST)


def ranked_start(costs: Mapping[str, Tensor], highest: float, device: torch.device) -> Tau:
    """Tau spread evenly over (0, highest] in the order of what each gate's ablation is estimated to cost."""
    flat = torch.cat([c.flatten() for c in costs.values()])
    rank = flat.argsort(stable=True).argsort(stable=True)
    parts = (highest * (1 + rank) / len(rank)).clamp(-1, 1).to(device).split([c.numel() for c in costs.values()])
    return {n: part.clone() for n, part in zip(costs, parts, strict=True)}


def batches_of(split: Split, pairs: int, rng: torch.Generator) -> Iterator[Split]:
    """Endless batches of whole pairs, each epoch in a new order."""
    lead = leaders(split)
    while True:
        order = lead[torch.randperm(len(lead), generator=rng)]
        for i in range(0, len(order) - len(order) % pairs or len(order), pairs):
            yield with_partners(split, order[i : i + pairs])


def leaders(split: Split) -> Tensor:
    """One index per pair, and every example without a partner."""
    first = torch.arange(len(split))
    return first[(split.pair < 0) | (first < split.pair)]


def with_partners(split: Split, some: Tensor) -> Split:
    """These examples and their partners, without needless padding."""
    others = split.pair[some]
    return split.take(torch.cat([some, others[others >= 0]])).tight()


class Descent:
    """Gates on their way: tau, the optimiser, and the log."""

    def __init__(self, start: Tau, gate: Gate, loss: Callable[[Tau], Tensor], s: GateSettings) -> None:
        self.gate, self.loss, self.s = gate, loss, s
        self.tau = {n: t.requires_grad_() for n, t in start.items()}
        self.adam = torch.optim.Adam(self.tau.values(), lr=s.lr, betas=(0.9, 0.95))
        self.log: list[dict[str, Any]] = []

    def forward(self) -> tuple[Tensor, Tensor]:
        """Mean task loss of the next batch under the gates, and how many are open."""
        opened = {n: self.gate.open(t) for n, t in self.tau.items()}
        task = self.loss({n: mask for n, (mask, _) in opened.items()})
        return task, torch.stack([count for _, count in opened.values()]).sum()

    def backward(self, loss: Tensor, pace: float) -> None:
        """One step down, at a share `pace` of the learning rate."""
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.tau.values(), self.s.clip)
        for group in self.adam.param_groups:
            group["lr"] = pace * self.s.lr
        self.adam.step()
        with torch.no_grad():
            for t in self.tau.values():
                t.clamp_(self.gate.least, 1)

    def kept(self) -> dict[str, Tensor]:
        """Which gates are open without noise."""
        return {n: t.detach() > 0 for n, t in self.tau.items()}

    def now(self) -> Tau:
        """A copy of tau."""
        return {n: t.detach().cpu().clone() for n, t in self.tau.items()}

    def back_to(self, tau: Tau) -> None:
        """Tau as it was, and nothing remembered of the way since."""
        self.adam.state.clear()
        with torch.no_grad():
            for n, t in self.tau.items():
                t.copy_(tau[n])


def count(masks: Masks) -> int:
    """How many gates are open."""
    return sum(int(m.sum()) for m in masks.values())


def toward_loss(
    descent: Descent, judge: Callable[[Masks], float], guess: float, what: str, progress: Progress | None
) -> Tau | None:
    """The smallest snapshot whose exact loss met the target; None where none did.

    judge   exact task loss (nats) with just these gates open
    guess   loss of a guess, nats: half way there nothing leads back
    what    what is counted, for the log
    """
    s = descent.s
    price, smooth, best, best_size = s.price, math.nan, None, math.inf
    aim = s.target  # on the examples tau is learned from; lower where the others lag behind
    lost, pace = (s.target + guess) / 2, 1.0
    for step in range(s.steps):
        task, kept = descent.forward()
        now = task.item()
        smooth = now if math.isnan(smooth) else 0.9 * smooth + 0.1 * now
        push = price if smooth < 1.6 * aim else 0.0
        descent.backward(task + push * kept, pace * (1 - step / s.steps))
        price = min(price * 1.03, s.price * s.price_cap) if smooth < 0.9 * aim else price / 1.06
        if (step + 1) % s.check_every == 0 or step + 1 == s.steps:
            masks = descent.kept()
            size = count(masks)
            exact = judge(masks) if size < best_size and smooth < 1.6 * s.target else math.nan
            if exact <= s.target:
                best, best_size = descent.now(), size
            if not math.isnan(exact):
                aim = max(0.8 * aim, s.target / 10) if exact > s.target else min(1.1 * aim, s.target)
            elif smooth > lost and best is not None:
                pace, smooth = pace / 3, s.target
                descent.back_to(best)
            descent.log.append(
                {"step": step + 1, "loss": smooth, "exact": exact, what: size, "price": price, "aim": aim}
            )
        if progress is not None:
            progress(step + 1, s.steps)
    return best


def toward_size(
    descent: Descent, judge: Callable[[Masks], float], wanted: int, what: str, progress: Progress | None
) -> Tau | None:
    """The snapshot of at most `wanted` open gates with the least exact loss; None where it never came to so few.

    The price rises while more are open than the schedule says, and falls while fewer are: the number falls
    exponentially to the one that is wanted over the first part of the run. The price stays below its cap: without one,
    the number falls far below the one that is wanted, and the ranking is lost. So in a large model the end may see more
    gates open than wanted; then the best-ranked of them are what counts.
    """
    s = descent.s
    begin, price, best, least = count(descent.kept()), s.price, None, math.inf
    for step in range(s.steps):
        task, kept = descent.forward()
        descent.backward(task + price * kept, 1 - step / s.steps)
        allowed = wanted * (max(begin, wanted) / wanted) ** max(0.0, 1 - step / (FALL * s.steps))
        size = count(descent.kept())
        price = min(price * 1.1, s.price * s.price_cap) if size > 0.97 * allowed else price / 1.1
        if (step + 1) % s.check_every == 0 or step + 1 == s.steps:
            exact = judge(descent.kept()) if size <= wanted else math.nan
            if exact < least:
                best, least = descent.now(), exact
            descent.log.append({"step": step + 1, "loss": task.item(), "exact": exact, what: size, "price": price})
        if progress is not None:
            progress(step + 1, s.steps)
    return best


__all__ = [
    "Descent", "Gate", "GateSettings", "batches_of", "count", "hard_concrete_gate", "leaders", "ranked_start",
    "step_gate", "toward_loss", "toward_size", "with_partners",
]  # fmt: skip
