"""What sparsity costs: exact top-k projection beside a dense training step, AbsTopK beside the forward pass without it.

    python benchmarks/cost.py [--rounds 15] [--device cpu]

Writes docs/results/cost.md. Everything runs on one thread in one process, alternatives in turn in every round, on the
clock of that thread (on CUDA: the wall clock, waited for); ratios are medians over rounds. The projection comes right
after the step whose weights it projects, as in training, so it finds the caches as a step leaves them. The weights
train meanwhile under exact top-k at a density of 0.05.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from quotes import table
from torch import Tensor, nn

from openwork import threads  # noqa: F401  before torch
from openwork.files import write_text
from openwork.models import TransformerConfig, build
from openwork.models.node import Node
from openwork.training import make_regime
from openwork.training.matrices import matrices

PAGE = Path(__file__).parents[1] / "docs" / "results" / "cost.md"
SHAPES: dict[str, dict[str, Any]] = {
    "2 layers of 128": {"n_layer": 2, "d_model": 128},
    "4 layers of 256": {"n_layer": 4, "d_model": 256},
}
DENSITY, VOCAB, T = 0.05, 1024, 128


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    projections = [projection(name, batch, asked.rounds, asked.device) for name in SHAPES for batch in (8, 32)]
    forwards = [abstopk(name, batch, asked.rounds, asked.device) for name in SHAPES for batch in (8, 32)]
    said = "python benchmarks/cost.py" + ("" if asked.device == "cpu" else f" --device {asked.device}")
    write_text(
        PAGE,
        "\n\n".join(
            [
                "# What sparsity costs",
                f"Made by `{said}`, on one thread; alternatives in turn in every round, medians over {asked.rounds} "
                "rounds. The goals were: projection at most 1.5 % of a dense step, AbsTopK at most 1.5 times the "
                "forward pass without it.",
                "## Exact top-k projection of all matrices, in % of a dense training step",
                f"Transformer, density {DENSITY}. *Floors*: every neuron and attention channel keeps at least four "
                "weights, as published. *Full top-k*: `torch.topk` over each matrix and a mask, without floors. What a "
                "projection costs does not depend on how many tokens a step has, what the step costs does.",
                table(["model", "tokens a step", "with floors", "without", "full top-k", "step, ms"], projections),
                "## AbsTopK, in forward passes without it",
                "A quarter of the entries kept at all eight places of every block. *By topk*: the same by `torch.topk` "
                "and `scatter`.",
                table(["model", "tokens", "ours", "by topk", "forward, ms"], forwards),
            ]
        )
        + "\n",
    )
    print(PAGE)


def projection(name: str, batch: int, rounds: int, device: str) -> list[str]:
    """One line of the first table."""
    model = build(TransformerConfig(vocab=VOCAB, n_ctx=T, bigram=False, **SHAPES[name]), 0).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, fused=True)
    regimes = {
        k: make_regime("topk", {"density": DENSITY, "anneal_from": 0, "anneal_until": 0.5} | o)
        for k, o in (("floors", {}), ("without", {"floor": 0}))
    }
    for regime in regimes.values():
        regime.prepare(model, 2 * rounds)
    took: dict[str, list[float]] = {"step": [], "floors": [], "without": [], "full": []}
    for i in range(2 * rounds):  # the first half is the anneal
        step = timed(lambda i=i: train_step(model, optimizer, i, batch, device), device)
        weights = [w.detach().clone() for w in matrices(model).values()]

        def project(regime_name: str, i: int = i) -> None:
            regimes[regime_name].after_step(model, optimizer, i + 1)

        costs = {}
        for which in ("without", "floors", "full"):
            for w, old in zip(matrices(model).values(), weights, strict=True):
                w.data.copy_(old)
            if device == "cpu":
                spoil_caches()
            costs[which] = timed(
                (lambda: full(model)) if which == "full" else (lambda which=which: project(which)), device
            )
        for w, old in zip(matrices(model).values(), weights, strict=True):
            w.data.copy_(old)
        project("floors")
        optimizer.zero_grad()
        if i >= rounds:
            took["step"].append(step)
            for which, cost in costs.items():
                took[which].append(cost)

    def share(which: str) -> str:
        return f"{100 * statistics.median(a / b for a, b in zip(took[which], took['step'], strict=True)):.2g}"

    ms = f"{1e3 * statistics.median(took['step']):.0f}"
    return [name, str(batch * T), share("floors"), share("without"), share("full"), ms]


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, i: int, batch: int, device: str) -> None:
    """Forward, backward and optimizer, without the projection."""
    start = torch.randint(VOCAB, (batch, 1), generator=torch.Generator().manual_seed(i))
    rows = ((start + 7 * torch.arange(T + 1)) % VOCAB).to(device)
    F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
    optimizer.step()


@torch.no_grad()
def full(model: nn.Module) -> None:
    """Top-k over each matrix in full, as the public code does it."""
    for w in matrices(model).values():
        best = w.abs().flatten().topk(max(1, round(DENSITY * w.numel()))).indices
        mask = torch.zeros(w.numel(), dtype=w.dtype, device=w.device).index_fill_(0, best, 1.0)
        w.mul_(mask.view_as(w))


class ByTopk(nn.Module):
    """AbsTopK by torch.topk and scatter."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        best = x.abs().topk(self.k, dim=-1, sorted=False).indices
        return torch.zeros_like(x).scatter(-1, best, x.gather(-1, best))


@torch.no_grad()
def abstopk(name: str, batch: int, rounds: int, device: str) -> list[str]:
    """One line of the second table."""
    shape: dict[str, Any] = {"vocab": VOCAB, "n_ctx": T, "bigram": False, **SHAPES[name]}
    models = {k: build(TransformerConfig(**shape, **o), 0).to(device) for k, o in (("none", {}), ("ours", QUARTER))}
    models["topk"] = build(TransformerConfig(**shape, **QUARTER), 0).to(device)
    for path, module in list(models["topk"].named_modules()):
        if isinstance(module, Node) and module.k:
            parent, _, leaf = path.rpartition(".")
            setattr(models["topk"].get_submodule(parent), leaf, ByTopk(module.k))
    tokens = torch.randint(VOCAB, (batch, T), generator=torch.Generator().manual_seed(0)).to(device)
    x = torch.randn(64, 512, device=device)
    assert torch.equal(Node(128)(x), ByTopk(128)(x)), "both ways keep the same entries"
    took: dict[str, list[float]] = {k: [] for k in models}
    for _ in range(rounds):
        for k, m in models.items():
            took[k].append(timed(lambda m=m: m(tokens), device))

    def ratio(k: str) -> str:
        return f"{statistics.median(a / b for a, b in zip(took[k], took['none'], strict=True)):.2f}"

    return [name, str(batch * T), ratio("ours"), ratio("topk"), f"{1e3 * statistics.median(took['none']):.0f}"]


QUARTER: dict[str, Any] = {"abstopk": 0.25}
_SPOIL = torch.zeros(24 * 2**20)


def spoil_caches() -> None:
    """Writes 96 MB, so that what comes next finds nothing of its own in the caches."""
    _SPOIL.add_(1)


def timed(what: Callable[[], object], device: str) -> float:
    """Seconds of this thread, or of the wall where the work is on CUDA."""
    if device == "cpu":
        began = time.thread_time()
        what()
        return time.thread_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    what()
    torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
