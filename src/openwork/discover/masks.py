"""Learned node masks (Gao et al. 2025, arXiv 2511.13653, section 2.2 and appendix A.5).

One number tau per prunable node; the node is kept where tau > 0 and otherwise sends its reference. Forward the gate is
a step, backward it has the derivative of a sigmoid with a temperature. Minimised: task loss + price * nodes kept.

    1  learn tau on one half of the split, under a price that is controlled rather than fixed
    2  rank nodes by tau and find by bisection how many meet the target, on the other half (examples tau never saw) and
       on both together

Departures from the paper, each because the published recipe fails at small size:

    tau     starts spread over (0, 1] in the order of a first-order estimate of each node's cost. All alike at 1, Adam
            drives them down together where the loss is near zero, and all nodes go within a few steps
    price   follows the loss: a fixed one that is too high drives all tau to the clamp, where the ranking is lost
    aim     of the loss on the half that teaches falls while the other half lags behind
    best    the smallest snapshot that met the target is kept; a search that has lost the task goes back to it, at a
            third of the pace

Where no mask met the target the status is "infeasible" and there is no circuit: a fallback would be a number without a
meaning.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from openwork.circuit import Circuit, Masks, Scores
from openwork.discover.learning import Step, batches_of
from openwork.discover.search import Discovery, Progress, Search, SearchSettings
from openwork.discover.state import NOWHERE, Keeper, State
from openwork.errors import UsageError
from openwork.patched_run import PatchedRun
from openwork.patching import Layout, Reference, compact, patched
from openwork.tasks.task import Split, losses

MASKS = "masks"  # the name under which a search is put away
NUMBERS = ("step", "price", "pace", "smooth", "aim", "best_step")  # what changes with the steps, beside tensors


class MaskSettings(SearchSettings):
    """Settings of the search. Losses in nats per example."""

    steps: int = Field(200, ge=1)
    pairs: int = Field(16, ge=1, description="pairs of examples per step")
    lr: float = Field(0.04, gt=0)
    temperature: float = Field(0.3, gt=0)
    init: float = Field(1.0, gt=0, le=1, description="where the highest tau starts; 1 is the upper clamp")
    start: Literal["attribution", "noise"] = Field(
        "attribution", description="tau falls evenly from init towards 0 by attribution, or all at init with some noise"
    )
    init_noise: float = Field(0.01, ge=0, description="standard deviation around init where start is noise")
    price: float = Field(1e-3, gt=0, description="starting price of one node, nats")
    price_cap: float = Field(30.0, ge=1, description="the price never exceeds this multiple of its start")
    clip: float = Field(1.0, gt=0)
    check_every: int = Field(10, ge=1)
    calibrate: bool = Field(False, description="fit scale and shift of the answers' logits before judging")
    compact: bool = Field(True, description="drop nodes for good once they have fallen away, and run what is left")
    drop_below: float = Field(-0.4, ge=-1, lt=0, description="tau at which a node has fallen away")
    drop_after: int = Field(2, ge=1, description="after so many checks in a row")
    drop_share: float = Field(0.2, gt=0, le=1, description="lay out anew once this share of the nodes has gone")
    quiet: int = Field(6, ge=1, description="with compact, stop after so many checks without a smaller snapshot")


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within the context no gradient is kept for the model's weights; afterwards everything is as before."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    for p in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)


def learned_masks(
    search: Search, settings: MaskSettings, progress: Progress | None = None, keeper: Keeper = NOWHERE
) -> Discovery:
    """The smallest node circuit that this search finds at the target loss, under a fixed reference.

    keeper  where the search is put away now and then, and from where it goes on
    """
    model, reference = search.run.model, search.run.fixed
    if reference is None:
        raise UsageError("learned masks need a fixed reference: mean or zero, not one that belongs to each example.")
    with torch.no_grad():
        full = float(losses(model(*search.choose.inputs), search.choose).mean())
    origin = {"method": "masks", "settings": settings.model_dump(), "split": search.split.name}
    judge = _Judge(search, reference, settings)
    with frozen(model):
        learner = _Learner(search, reference, settings, judge)
        if (state := keeper.load(MASKS)) is not None:
            learner.restore(state)
        else:
            learner.start()
        for _ in learner.steps():
            keeper.save(MASKS, learner.state)
            if progress is not None:
                progress(learner.step, settings.steps)
    if progress is not None:
        progress(settings.steps, settings.steps)
    graph, log = search.run.graph, tuple(learner.log)
    scores = Scores(graph, learner.ranking(), "tau", origin)
    if learner.best is None:
        lowest = min(row["loss"] for row in log)
        return Discovery("infeasible", None, lowest, full, scores, log, origin)
    nodes = _bisect(Scores(graph, learner.by_site(learner.best), "tau"), judge, settings.target)
    circuit = Circuit.from_nodes(graph, nodes, search.run.support, origin)
    return Discovery("ok", circuit, judge.on_choose(nodes), full, scores, log, origin)


class _Learner:
    """The search itself: one tau per prunable node, all in one tensor [n], and everything that changes with the steps.

    alive   bool [n], nodes still in play; the others are dropped for good and ranked below those
    below   [n] for how many checks in a row tau has been at or under `drop_below`
    dropped [n] the step at which a node was dropped; first: [n] tau at the start
    best    tau of the smallest snapshot that met the target, None until there is one
    """

    def __init__(self, search: Search, reference: Reference, settings: MaskSettings, judge: _Judge) -> None:
        self.run, self.learn, self.reference, self.s, self.judge = search.run, search.learn, reference, settings, judge
        self.sites = {site.name: site.size for site in self.run.graph.prunable}
        self.device = next(self.run.model.parameters()).device
        n = sum(self.sites.values())
        self.tau = torch.zeros(n, device=self.device, requires_grad=True)
        self.alive, self.below = torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.int32)
        self.dropped, self.first = torch.zeros(n, dtype=torch.int32), torch.zeros(n)
        self.adam = torch.optim.Adam([self.tau], lr=settings.lr, betas=(0.9, 0.95))
        self.step, self.price, self.pace, self.smooth = 0, settings.price, 1.0, math.nan
        self.aim = settings.target  # on the examples tau is learned from; lower where the others lag behind
        self.best: Tensor | None = None
        self.best_size: float = math.inf
        self.best_step = 0
        self.log: list[dict[str, Any]] = []
        self.rng = torch.Generator().manual_seed(settings.seed)
        self.layout: Layout | None = None
        if settings.compact:
            self._lay_out()

    def start(self) -> None:
        """Tau at its first values."""
        s = self.s
        if s.start == "attribution":
            flat = torch.cat(list(_costs(self.run, self.reference, self.learn, self.layout).values()))
            rank = flat.argsort(stable=True).argsort(stable=True)
            flat = s.init * (1 + rank) / len(rank)
        else:
            flat = self._noise()
        self.first = flat.clamp(-1, 1)
        self._set(self.tau, self.first)

    def steps(self) -> Iterator[None]:
        """Learns step by step until all are done, or nothing changes any more."""
        s = self.s
        lost = (s.target + math.log(1 + self.learn.wrong.shape[1])) / 2  # half way to a guess: nothing leads back
        if s.start == "noise" and self.step:
            self._noise()  # so that the batches are those of an undisturbed search
        batches = itertools.islice(batches_of(self.learn, s.pairs, self.rng), self.step, None)
        while self.step < s.steps and not self._quiet():
            self._descend(next(batches))
            self.step += 1
            if self.step % s.check_every == 0 or self.step == s.steps:
                self._check(lost)
            yield

    def _descend(self, batch: Split) -> None:
        s = self.s
        task, gates = self._task_loss(batch)
        now = task.item()
        self.smooth = now if math.isnan(self.smooth) else 0.9 * self.smooth + 0.1 * now
        push = self.price if self.smooth < 1.6 * self.aim else 0.0
        self.adam.zero_grad()
        (task + push * gates.sum()).backward()
        assert self.tau.grad is not None
        parts = self.tau.grad.split(list(self.sites.values()))
        torch.nn.utils.clip_grads_with_norm_([self.tau], s.clip, torch.nn.utils.get_total_norm(parts))
        for group in self.adam.param_groups:
            group["lr"] = self.pace * s.lr * (1 - self.step / s.steps)
        self.adam.step()
        with torch.no_grad():
            self.tau.clamp_(-1, 1)
        rising = self.smooth < 0.9 * self.aim
        self.price = min(self.price * 1.03, s.price * s.price_cap) if rising else self.price / 1.06

    def _task_loss(self, batch: Split) -> tuple[Tensor, Tensor]:
        """Mean loss of a batch under the present gates, and the gates [n] of the nodes in play."""
        if self.layout is None:
            gates = Step.apply(self.tau, self.s.temperature)
            with patched(self.run.model, self.reference, self.by_site(gates)):
                return losses(self.run.model(*batch.inputs), batch).mean(), gates
        gates = Step.apply(self.tau[self.alive], self.s.temperature)
        self.layout.nodes.update(zip(self.layout.nodes, gates.split(self.layout_sizes), strict=True))
        return losses(self.layout(*batch.inputs), batch).mean(), gates

    def _check(self, lost: float) -> None:
        """Judges the snapshot, sets the aim, goes back where the task was lost, drops what has fallen away."""
        s = self.s
        tau = self.tau.detach().cpu()
        size = int((tau > 0).sum())
        promising = size < self.best_size and self.smooth < 1.6 * s.target
        if s.compact and self.smooth < s.target / 4:  # soon to be bettered
            promising &= size <= self.best_size / 2
        exact = self.judge(self.by_site(tau > 0)) if promising else math.nan
        if exact <= s.target:
            self.best, self.best_size, self.best_step = tau.clone(), size, self.step
        if not math.isnan(exact):
            self.aim = max(0.8 * self.aim, s.target / 10) if exact > s.target else min(1.1 * self.aim, s.target)
        elif self.smooth > lost and self.best is not None:
            self.pace, self.smooth = self.pace / 3, s.target
            self.adam.state.clear()
            self._set(self.tau, self.best)
        row = {"step": self.step, "loss": self.smooth, "exact": exact, "nodes": size}
        self.log.append({**row, "price": self.price, "aim": self.aim, "alive": int(self.alive.sum())})
        if self.layout is not None:
            self._drop()

    def _drop(self) -> None:
        """Marks nodes that have been far below zero for some checks; lays out anew once enough of them are marked."""
        s, tau = self.s, self.tau.detach().cpu()
        self.below = torch.where(tau <= s.drop_below, self.below + 1, 0)
        if self.best is None:
            return  # a search that has nothing yet goes on with everything
        gone = self.alive & (self.below >= s.drop_after) & (self.best <= 0)  # what it may go back to stays in play
        if int(gone.sum()) >= s.drop_share * int(self.alive.sum()):
            self.alive &= ~gone
            self.dropped[gone] = self.step
            with torch.no_grad():
                self.tau[gone.to(self.device)] = -1.0
            self._lay_out()

    def _lay_out(self) -> None:
        circuit = Circuit.from_nodes(self.run.graph, self.by_site(self.alive), self.run.support)
        layout = compact(self.run.model, circuit, self.reference)
        self.layout = layout if type(layout) is not Layout else None  # the general layout is no smaller than the model
        self.layout_sizes = [len(i) for i in layout.node_index.values()]

    def _quiet(self) -> bool:
        """Whether the smallest snapshot that met the target has stood for many checks."""
        stood = sum(row["step"] > self.best_step for row in self.log)
        return self.s.compact and self.best is not None and stood >= self.s.quiet

    def _noise(self) -> Tensor:
        return self.s.init + self.s.init_noise * torch.randn(len(self.tau), generator=self.rng)

    def _set(self, into: Tensor, values: Tensor) -> None:
        with torch.no_grad():
            into.copy_(values)

    def by_site(self, flat: Tensor) -> dict[str, Tensor]:
        """A tensor [n] over all prunable nodes as one per site."""
        return dict(zip(self.sites, flat.split(list(self.sites.values())), strict=True))

    def ranking(self) -> dict[str, Tensor]:
        """Tau of every node by site; dropped ones are below -1, higher where they lasted longer or began higher."""
        late = -1 - (self.step - self.dropped) - (1 - self.first)
        return {n: t.clone() for n, t in self.by_site(torch.where(self.alive, self.tau.detach().cpu(), late)).items()}

    def state(self) -> State:
        """All that an uninterrupted search would know at this step."""
        tensors = {"tau": self.tau.detach(), **{n: getattr(self, n) for n in ("alive", "below", "dropped", "first")}}
        if self.best is not None:
            tensors["best"] = self.best
        for name, t in self.adam.state.get(self.tau, {}).items():
            tensors[f"adam {name}"] = t
        numbers = {n: getattr(self, n) for n in NUMBERS}
        return State({n: t.cpu().clone() for n, t in tensors.items()}, {**numbers, "log": self.log})

    def restore(self, state: State) -> None:
        """The inverse of `state`."""
        t = state.tensors
        self._set(self.tau, t["tau"])
        self.alive, self.below, self.dropped, self.first = t["alive"], t["below"], t["dropped"], t["first"]
        self.best = t.get("best")
        if self.best is not None:
            self.best_size = int((self.best > 0).sum())
        adam = {n.removeprefix("adam "): x for n, x in t.items() if n.startswith("adam ")}
        if adam:
            self.adam.state[self.tau] = {n: x if n == "step" else x.to(self.device) for n, x in adam.items()}
        for name in NUMBERS:
            setattr(self, name, state.data[name])
        self.log = list(state.data["log"])
        if self.layout is not None:
            self._lay_out()


def _costs(
    run: PatchedRun, reference: Reference, split: Split, layout: Layout | None, levels: int = 4
) -> dict[str, Tensor]:
    """First-order estimate of what ablating each node adds to the loss, averaged over gates that open together.

    layout  of the whole model, which is quicker; None for the model under hooks
    """
    device = next(run.model.parameters()).device
    costs = {site.name: torch.zeros(site.size) for site in run.graph.prunable}
    for level in range(1, levels + 1):
        gates = {n: torch.full_like(c, level / levels, device=device).requires_grad_() for n, c in costs.items()}
        with patched(run.model, reference, gates if layout is None else {}):
            if layout is not None:
                layout.nodes.update(gates)
            forward = run.model if layout is None else layout
            total = torch.stack([losses(forward(*part.inputs), part).sum() for _, part in split.buckets(3)]).sum()
        for n, g in zip(gates, torch.autograd.grad(total, list(gates.values())), strict=True):
            costs[n] -= g.cpu() / (levels * len(split))
    return costs


class _Judge:
    """Exact task loss of node masks, nats; compact where that is possible.

    Called: the loss that decides whether masks meet the target, see `Search.judge`.
    """

    def __init__(self, search: Search, reference: Reference, settings: MaskSettings) -> None:
        self.search, self.reference, self.s = search, reference, settings

    def __call__(self, nodes: Masks) -> float:
        layout, search = self._lay_out(nodes), self.search
        unseen = self._loss(layout, search.choose)
        if self.s.control or unseen > self.s.target:
            return unseen
        if self.s.calibrate:
            return max(unseen, self._loss(layout, search.split))
        n, m = len(search.choose), len(search.learn)
        return max(unseen, (n * unseen + m * self._loss(layout, search.learn)) / (n + m))

    def on_choose(self, nodes: Masks) -> float:
        """The loss on the examples tau was not learned from."""
        return self._loss(self._lay_out(nodes), self.search.choose)

    def _lay_out(self, nodes: Masks) -> Layout:
        circuit = Circuit.from_nodes(self.search.run.graph, nodes, self.search.run.support)
        return compact(self.search.run.model, circuit, self.reference)

    def _loss(self, layout: Layout, split: Split) -> float:
        with torch.no_grad():
            if self.s.calibrate:
                return float(losses(calibrated(layout(*split.inputs), split), split).mean())
            parts = [losses(layout(*part.inputs), part) for _, part in split.buckets(3)]
            return float(torch.cat(parts).mean())


def calibrated(logits: Tensor, split: Split) -> Tensor:
    """Logits after the scale and the per-answer shift that fit this split best (16 LBFGS steps, as published).

    Circuits are uncalibrated: with most of the model frozen, one answer can be favoured throughout.
    """
    answers = torch.unique(torch.cat([split.answer, split.wrong.flatten()]))
    scale = torch.ones((), requires_grad=True)
    shift = torch.zeros(len(answers), requires_grad=True)
    lbfgs = torch.optim.LBFGS([scale, shift], max_iter=16)

    def apply() -> Tensor:
        return (scale * logits).index_add(-1, answers, shift.expand(*logits.shape[:-1], -1))

    def closure() -> Tensor:
        lbfgs.zero_grad()
        loss = losses(apply(), split).mean()
        loss.backward()
        return loss

    with torch.enable_grad():
        lbfgs.step(closure)  # type: ignore[arg-type]
    return apply().detach()


def _bisect(ranked: Scores, judge: Callable[[Masks], float], target: float) -> dict[str, Tensor]:
    """The fewest top-ranked nodes that meet the target, starting from those ranked above 0, which do.

    Loss is not monotone in the number of nodes, so the answer is a crossing, not the global least.
    """
    high = sum(int((t > 0).sum()) for t in ranked.values.values())
    nodes, low = ranked.top(high), 0
    while high - low > 1:
        middle = (low + high) // 2
        trial = ranked.top(middle)
        if judge(trial) <= target:
            high, nodes = middle, trial
        else:
            low = middle
    return nodes


__all__ = ["MaskSettings", "calibrated", "frozen", "learned_masks"]
