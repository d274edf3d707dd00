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

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from openwork.circuit import Circuit, Masks, Scores
from openwork.discover.search import Discovery, Progress, Search, SearchSettings
from openwork.errors import UsageError
from openwork.patching import Reference, compact, graph_of, patched, support
from openwork.tasks.task import Split, losses


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


class _Step(torch.autograd.Function):
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


def learned_masks(search: Search, settings: MaskSettings, progress: Progress | None = None) -> Discovery:
    """The smallest node circuit that this search finds at the target loss, under a fixed reference."""
    model, reference = search.run.model, search.run.fixed
    if reference is None:
        raise UsageError("learned masks need a fixed reference: mean or zero, not one that belongs to each example.")
    learn, choose = search.learn, search.choose
    with torch.no_grad():
        full = float(losses(model(*choose.inputs), choose).mean())
    origin = {"method": "masks", "settings": settings.model_dump(), "split": search.split.name}
    judge = _Judge(model, reference, choose, settings.calibrate)
    whole = _Judge(model, reference, search.split, settings.calibrate)

    def exact(nodes: Masks) -> float:
        unseen = judge(nodes)
        return unseen if settings.control or unseen > settings.target else max(unseen, whole(nodes))

    with frozen(model):
        tau, best, log = _learn(model, reference, learn, exact, settings, progress)
    graph = graph_of(model)
    scores = Scores(graph, tau, "tau", origin)
    if best is None:
        lowest = min(row["loss"] for row in log)
        return Discovery("infeasible", None, lowest, full, scores, tuple(log), origin)
    nodes = _bisect(scores, best, exact, settings.target)
    circuit = Circuit.from_nodes(graph, nodes, support(model), origin)
    return Discovery("ok", circuit, judge(nodes), full, scores, tuple(log), origin)


def _learn(
    model: nn.Module,
    reference: Reference,
    learn: Split,
    judge: Callable[[Masks], float],
    s: MaskSettings,
    progress: Progress | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, list[dict[str, Any]]]:
    """Tau after the search, the smallest snapshot that met the target, and the log."""
    graph = graph_of(model)
    device = next(model.parameters()).device
    rng = torch.Generator().manual_seed(s.seed)
    if s.start == "attribution":
        flat = torch.cat(list(_costs(model, reference, learn).values()))
        rank = flat.argsort(stable=True).argsort(stable=True)
        flat = s.init * (1 + rank) / len(rank)
    else:
        flat = s.init + s.init_noise * torch.randn(sum(site.size for site in graph.prunable), generator=rng)
    parts = flat.clamp(-1, 1).to(device).split([site.size for site in graph.prunable])
    tau = {site.name: part.clone().requires_grad_() for site, part in zip(graph.prunable, parts, strict=True)}
    adam = torch.optim.Adam(tau.values(), lr=s.lr, betas=(0.9, 0.95))
    price, smooth, best, best_size, log = s.price, math.nan, None, math.inf, []
    aim = s.target  # on the examples tau is learned from; lower where the others lag behind
    lost = (s.target + math.log(1 + learn.wrong.shape[1])) / 2  # half way to a guess: nothing leads back from there
    pace = 1.0
    batches = _batches(learn, s, rng)
    for step in range(s.steps):
        batch = next(batches)
        gates = {n: _Step.apply(t, s.temperature) for n, t in tau.items()}
        with patched(model, reference, gates):
            task = losses(model(*batch.inputs), batch).mean()
        kept = torch.stack([g.sum() for g in gates.values()]).sum()
        now = task.item()
        smooth = now if math.isnan(smooth) else 0.9 * smooth + 0.1 * now
        push = price if smooth < 1.6 * aim else 0.0
        adam.zero_grad()
        (task + push * kept).backward()
        torch.nn.utils.clip_grad_norm_(tau.values(), s.clip)
        for group in adam.param_groups:
            group["lr"] = pace * s.lr * (1 - step / s.steps)
        adam.step()
        with torch.no_grad():
            for t in tau.values():
                t.clamp_(-1, 1)
        price = min(price * 1.03, s.price * s.price_cap) if smooth < 0.9 * aim else price / 1.06
        if (step + 1) % s.check_every == 0 or step + 1 == s.steps:
            nodes = {n: t.detach() > 0 for n, t in tau.items()}
            size = sum(int(m.sum()) for m in nodes.values())
            exact = judge(nodes) if size < best_size and smooth < 1.6 * s.target else math.nan
            if exact <= s.target:
                best, best_size = {n: t.detach().cpu().clone() for n, t in tau.items()}, size
            if not math.isnan(exact):
                aim = max(0.8 * aim, s.target / 10) if exact > s.target else min(1.1 * aim, s.target)
            elif smooth > lost and best is not None:
                pace, smooth = pace / 3, s.target
                adam.state.clear()
                with torch.no_grad():
                    for n, t in tau.items():
                        t.copy_(best[n])
            log.append({"step": step + 1, "loss": smooth, "exact": exact, "nodes": size, "price": price, "aim": aim})
        if progress is not None:
            progress(step + 1, s.steps)
    return {n: t.detach().cpu() for n, t in tau.items()}, best, log


def _costs(model: nn.Module, reference: Reference, split: Split, levels: int = 4) -> dict[str, Tensor]:
    """First-order estimate of what ablating each node adds to the loss, averaged over gates that open together."""
    graph = graph_of(model)
    device = next(model.parameters()).device
    costs = {site.name: torch.zeros(site.size) for site in graph.prunable}
    for level in range(1, levels + 1):
        gates = {n: torch.full_like(c, level / levels, device=device).requires_grad_() for n, c in costs.items()}
        with patched(model, reference, gates):
            total = torch.stack([losses(model(*part.inputs), part).sum() for _, part in split.buckets(3)]).sum()
        for n, g in zip(gates, torch.autograd.grad(total, list(gates.values())), strict=True):
            costs[n] -= g.cpu() / (levels * len(split))
    return costs


def _batches(split: Split, s: MaskSettings, rng: torch.Generator) -> Iterator[Split]:
    """Endless batches of whole pairs, each epoch in a new order."""
    first = torch.arange(len(split))
    partner = split.pair
    lead = first[(partner < 0) | (first < partner)]  # one index per pair, and every example without a partner
    while True:
        order = lead[torch.randperm(len(lead), generator=rng)]
        for i in range(0, len(order) - len(order) % s.pairs or len(order), s.pairs):
            some = order[i : i + s.pairs]
            others = partner[some]
            yield split.take(torch.cat([some, others[others >= 0]])).tight()


class _Judge:
    """Exact task loss of node masks on one split, nats; compact where that is possible."""

    def __init__(self, model: nn.Module, reference: Reference, split: Split, calibrate: bool) -> None:
        self.model, self.reference, self.calibrate = model, reference, calibrate
        self.parts = [split] if calibrate else [part for _, part in split.buckets(3)]
        self.graph, self.support = graph_of(model), support(model)

    def __call__(self, nodes: Masks) -> float:
        circuit = Circuit.from_nodes(self.graph, nodes, self.support)
        layout = compact(self.model, circuit, self.reference)
        with torch.no_grad():
            out = [layout(*part.inputs) for part in self.parts]
            if self.calibrate:
                out = [calibrated(out[0], self.parts[0])]
            return float(torch.cat([losses(o, part) for o, part in zip(out, self.parts, strict=True)]).mean())


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


def _bisect(scores: Scores, best: Masks, judge: Callable[[Masks], float], target: float) -> dict[str, Tensor]:
    """The fewest top-ranked nodes that meet the target, starting from a snapshot that does.

    Loss is not monotone in the number of nodes, so the answer is a crossing, not the global least.
    """
    ranked = Scores(scores.graph, dict(best), scores.unit)
    high = sum(int((t > 0).sum()) for t in best.values())
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
