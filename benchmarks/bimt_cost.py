"""What BIMT costs: a training step with priced wires and relocation beside a dense step, on 784-100-100-10.

    python benchmarks/bimt_cost.py [--sizes 784 100 100 10] [--batch 100] [--every 200] [--dimensions 2]
                                   [--how assignment] [--rounds 15] [--seed 0]

Prints a Markdown table and the ratio. All take steps of the same loop on the same random images, in blocks of `--every`
steps whose order changes from round to round, on one thread, by the processor's time; each block of BIMT holds one
relocation. The ratio is the median of the rounds' own ratios. What one relocation takes is measured apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from quotes import table

from openwork import threads  # noqa: F401  before torch
from openwork.models import MLPConfig, build
from openwork.training import BIMT, TrainSettings, make_regime
from openwork.training.loop import _plan, _Run


class RandomImages:
    """One batch of random images and classes, again and again: what a step costs does not depend on them."""

    def __init__(self, inputs: int, classes: int, batch: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.x, self.y = torch.rand(batch, inputs, generator=g), torch.randint(classes, (batch,), generator=g)

    def batch(self, step: int) -> Any:
        """The batch."""
        return (self.x,), self.y

    def held_out(self, split: str) -> Any:
        """The batch."""
        return [self.batch(0)]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[784, 100, 100, 10])
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--dimensions", type=int, default=2)
    parser.add_argument("--how", default="assignment", choices=["assignment", "swaps"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    bimt = {"reduce": "mean", "price": 0.01, "distance": 2.0, "l0": 0.5, "dimensions": asked.dimensions}
    bimt |= {"every": asked.every, "relocate": asked.how, "schedule": (), "move_inputs": False}
    with tempfile.TemporaryDirectory() as out:
        ways: dict[str, tuple[str, dict[str, Any]]] = {
            "dense": ("dense", {}),
            "BIMT": ("bimt", bimt),
            "BIMT without relocation": ("bimt", bimt | {"relocate": "none"}),
        }
        runs = {name: prepared(asked, *way, Path(out) / name.replace(" ", "-")) for name, way in ways.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            timed(run.advance, asked.every)  # warms up; all are at a multiple of `every` from here on
        for k in range(asked.rounds):
            names = list(runs)[k % len(runs) :] + list(runs)[: k % len(runs)]
            for name in names:
                seconds[name].append(timed(runs[name].advance, asked.every))
        bimt_run = runs["BIMT"]
        (regime,) = (r for r in bimt_run.regimes if isinstance(r, BIMT))
        once = timed(lambda: regime.after_step(bimt_run.model, bimt_run.optimizer, asked.every), 20)
    rows = [[name, *(f"{1e3 * f(s):.3f}" for f in (statistics.median, min, max))] for name, s in seconds.items()]
    print(f"{'-'.join(map(str, asked.sizes))}, batch {asked.batch}, {asked.rounds} rounds of {asked.every} steps\n")
    print(table(["step", "median, ms", "least, ms", "most, ms"], rows))
    for name in ("BIMT", "BIMT without relocation"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["dense"], strict=True)]
        print(f"\n{name} over dense: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    share = once / asked.every / statistics.median(seconds["BIMT"])
    print(f"\nOne relocation: {1e3 * once:.2f} ms, {100 * share:.2f} % of the time of its {asked.every} steps.")


def prepared(asked: argparse.Namespace, regime: str, options: dict[str, Any], out: Path) -> _Run:
    """A training run that is about to take its first step."""
    sizes = asked.sizes
    model = build(
        MLPConfig(inputs=sizes[0], hidden=tuple(sizes[1:-1]), outputs=sizes[-1], activation="silu"), asked.seed
    )
    data = RandomImages(sizes[0], sizes[-1], asked.batch, asked.seed)
    settings = TrainSettings(steps=10**9, lr=1e-3, weight_decay=0, warmup=0, clip="none")
    regimes = (make_regime(regime, options),)
    run = _Run(model, data, regimes, settings, out, torch.device("cpu"), _plan(model, data, regimes, settings))
    run.begin()
    return run


def timed(call: Callable[[], object], n: int) -> float:
    """Processor seconds of one of n calls."""
    begin = time.process_time()
    for _ in range(n):
        call()
    return (time.process_time() - begin) / n


if __name__ == "__main__":
    main()
