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
from dataclasses import dataclass, fields
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from openwork.circuit import Masks
from openwork.discover.search import Progress, SearchSettings
from openwork.discover.state import NOWHERE, Keeper, State, named, under
from openwork.hard_concrete import SHUT, noisy_gate, nonzero_probability
from openwork.tasks.task import Split

BEGIN = 2.5  # a of a gate at tau = 1: P(z != 0) = 0.98
LEAST = (-math.log(100) - SHUT) / (BEGIN - SHUT)  # tau at a = -log 100, beyond which a gate gets no slope back
GATES = "gates"  # the name under which gates on their way are put away
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
    """How a gate opens: tau -> (the mask in this step, how many are open, with a slope); and the lowest tau.

    noise  where its noise comes from, None without any
    """

    open: Callable[[Tensor], tuple[Tensor, Tensor]]
    least: float
    noise: torch.Generator | None = None


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

    return Gate(opened, LEAST, rng)


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


class Deal:
    """Which of some batches comes next: all of them, in a new order every epoch."""

    def __init__(self, batches: int, rng: torch.Generator) -> None:
        self.batches, self.rng = batches, rng
        self.left: list[int] = []

    def next(self) -> int:
        """The place of the next batch."""
        self.left = self.left or torch.randperm(self.batches, generator=self.rng).tolist()
        return self.left.pop()


@dataclass
class Course:
    """What steers a descent, beside tau. Losses in nats.

    step    steps done; pace: share of the learning rate, beside its decay
    smooth  running mean of the loss; aim: where it should be, lower than the target where unseen examples lag behind
    best    tau of the best snapshot, None until there is one; least: its number of gates, or its exact loss
    """

    price: float
    step: int = 0
    pace: float = 1.0
    smooth: float = math.nan
    aim: float = math.nan
    best: Tau | None = None
    least: float = math.inf


NUMBERS = tuple(f.name for f in fields(Course) if f.name != "best")


class Descent:
    """Gates on their way: tau, the optimiser, which batch comes next, and the log.

    loss  mean task loss of a batch, by its place, under masks
    """

    def __init__(self, start: Tau, gate: Gate, loss: Callable[[Tau, int], Tensor], deal: Deal, s: GateSettings) -> None:
        self.gate, self.loss, self.deal, self.s = gate, loss, deal, s
        self.tau = {n: t.requires_grad_() for n, t in start.items()}
        self.adam = torch.optim.Adam(self.tau.values(), lr=s.lr, betas=(0.9, 0.95))
        self.log: list[dict[str, Any]] = []

    def forward(self) -> tuple[Tensor, Tensor]:
        """Mean task loss of the next batch under the gates, and how many are open."""
        opened = {n: self.gate.open(t) for n, t in self.tau.items()}
        task = self.loss({n: mask for n, (mask, _) in opened.items()}, self.deal.next())
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

    def state(self, course: Course) -> State:
        """All that an undisturbed descent would know here."""
        tensors = named({n: t.detach() for n, t in self.tau.items()}, "tau")
        for n, t in self.tau.items():
            tensors |= named(self.adam.state.get(t, {}), f"adam/{n}")
        tensors |= named(course.best, "best") if course.best is not None else {}
        tensors["deal"] = self.deal.rng.get_state()
        if self.gate.noise is not None:
            tensors["noise"] = self.gate.noise.get_state()
        numbers = {n: getattr(course, n) for n in NUMBERS}
        return State(tensors, {"course": numbers, "left": self.deal.left, "log": self.log})

    def resumed(self, state: State) -> Course:
        """The inverse of `state`."""
        tensors, data = state.tensors, state.data
        tau, best = under(tensors, "tau"), under(tensors, "best")
        self.back_to(tau)
        for n, t in self.tau.items():
            if moments := under(tensors, f"adam/{n}"):
                self.adam.state[t] = {k: x if k == "step" else x.to(t.device) for k, x in moments.items()}
        self.deal.rng.set_state(tensors["deal"])
        if self.gate.noise is not None:
            self.gate.noise.set_state(tensors["noise"])
        self.deal.left, self.log = list(data["left"]), list(data["log"])
        return Course(**data["course"], best={n: best[n] for n in self.tau} if best else None)


def count(masks: Masks) -> int:
    """How many gates are open."""
    return sum(int(m.sum()) for m in masks.values())


def toward_loss(
    descent: Descent,
    judge: Callable[[Masks], float],
    guess: float,
    what: str,
    progress: Progress | None,
    keeper: Keeper = NOWHERE,
) -> Tau | None:
    """The smallest snapshot whose exact loss met the target; None where none did.

    judge   exact task loss (nats) with just these gates open
    guess   loss of a guess, nats: half way there nothing leads back
    what    what is counted, for the log
    """
    s = descent.s
    saved = keeper.load(GATES)
    c = descent.resumed(saved) if saved is not None else Course(s.price, aim=s.target)
    lost = (s.target + guess) / 2
    while c.step < s.steps:
        task, kept = descent.forward()
        now = task.item()
        c.smooth = now if math.isnan(c.smooth) else 0.9 * c.smooth + 0.1 * now
        push = c.price if c.smooth < 1.6 * c.aim else 0.0
        descent.backward(task + push * kept, c.pace * (1 - c.step / s.steps))
        rising = c.smooth < 0.9 * c.aim
        c.price = min(c.price * 1.03, s.price * s.price_cap) if rising else c.price / 1.06
        c.step += 1
        if c.step % s.check_every == 0 or c.step == s.steps:
            masks = descent.kept()
            size = count(masks)
            exact = judge(masks) if size < c.least and c.smooth < 1.6 * s.target else math.nan
            if exact <= s.target:
                c.best, c.least = descent.now(), size
            if not math.isnan(exact):
                c.aim = max(0.8 * c.aim, s.target / 10) if exact > s.target else min(1.1 * c.aim, s.target)
            elif c.smooth > lost and c.best is not None:
                c.pace, c.smooth = c.pace / 3, s.target
                descent.back_to(c.best)
            row = {"step": c.step, "loss": c.smooth, "exact": exact, what: size, "price": c.price, "aim": c.aim}
            descent.log.append(row)
        keeper.save(GATES, lambda: descent.state(c))
        if progress is not None:
            progress(c.step, s.steps)
    return c.best


def toward_size(
    descent: Descent,
    judge: Callable[[Masks], float],
    wanted: int,
    what: str,
    progress: Progress | None,
    keeper: Keeper = NOWHERE,
) -> Tau | None:
    """The snapshot of at most `wanted` open gates with the least exact loss; None where it never came to so few.

    The price rises while more are open than the schedule says, and falls while fewer are: the number falls
    exponentially to the one that is wanted over the first part of the run. The price stays below its cap: without one,
    the number falls far below the one that is wanted, and the ranking is lost. So in a large model the end may see more
    gates open than wanted; then the best-ranked of them are what counts.
    """
    s, begin = descent.s, count(descent.kept())
    saved = keeper.load(GATES)
    c = descent.resumed(saved) if saved is not None else Course(s.price)
    while c.step < s.steps:
        task, kept = descent.forward()
        descent.backward(task + c.price * kept, 1 - c.step / s.steps)
        allowed = wanted * (max(begin, wanted) / wanted) ** max(0.0, 1 - c.step / (FALL * s.steps))
        size = count(descent.kept())
        c.price = min(c.price * 1.1, s.price * s.price_cap) if size > 0.97 * allowed else c.price / 1.1
        c.step += 1
        if c.step % s.check_every == 0 or c.step == s.steps:
            exact = judge(descent.kept()) if size <= wanted else math.nan
            if exact < c.least:
                c.best, c.least = descent.now(), exact
            descent.log.append({"step": c.step, "loss": task.item(), "exact": exact, what: size, "price": c.price})
        keeper.save(GATES, lambda: descent.state(c))
        if progress is not None:
            progress(c.step, s.steps)
    return c.best


__all__ = [
    "Course", "Deal", "Descent", "Gate", "GateSettings", "batches_of", "count", "hard_concrete_gate", "leaders",
    "ranked_start", "step_gate", "toward_loss", "toward_size", "with_partners",
]  # fmt: skip
