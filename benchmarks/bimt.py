"""What sparsity, locality and swaps each buy: the six regimes of the BIMT paper on one of its formulas, two of ours.

    python benchmarks/bimt.py [independence] [--seeds 0] [--steps 20000] [--runs runs/bimt]

Prints a Markdown table. Settings are those published with the paper: AdamW at 2e-3 without weight decay, 100 points
in every batch, SiLU, price 1e-3, tenfold from a quarter of the run on and as before from three quarters on (threefold
and so to the end for compositionality), biases priced in the last quarter, the 5 most important nodes of a layer
exchanged every 200 steps. Ours: own random numbers, and relocation by exact formula. Nothing is cut at the end; test
loss is that of 100 other points, both as trained and with all weights up to 0.1 set to zero. Runs that are done are not
made again.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path
from typing import Any

import torch
from quotes import table

from openwork import threads  # noqa: F401  before torch
from openwork.files import read_json, read_jsonl
from openwork.models import MLPConfig, build
from openwork.tasks.symbolic import FORMULAS, symbolic_data
from openwork.training import TrainSettings, held_out_loss, make_regime, train

HIDDEN = {"independence": (20, 20), "feature_sharing": (20, 20), "compositionality": (20, 20, 20, 20)}
UP_AND_DOWN = ((0.25, 10.0), (0.75, 0.1))
SCHEDULES = {"independence": UP_AND_DOWN, "feature_sharing": UP_AND_DOWN, "compositionality": ((0.25, 3.0),)}
SHOWN = 0.1  # weights larger than this count as edges
REGIMES: dict[str, dict[str, Any]] = {
    "none": {"price": 0, "relocate": "none"},
    "L1": {"distance": 0, "relocate": "none"},
    "L1 + local": {"relocate": "none"},
    "L1 + swap": {"distance": 0},
    "BIMT": {},
    "swap only": {"price": 0},
    "BIMT, assignment": {"relocate": "assignment"},
    "BIMT, assignment, 10 restarts": {"relocate": "assignment", "sweeps": 5, "restarts": 10},
}


def main() -> None:
    """Trains what is missing and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formula", nargs="?", default="independence", choices=list(FORMULAS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--runs", type=Path, default=Path("runs/bimt"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    head = [
        "regime",
        "test loss",
        f"test loss, weights up to {SHOWN} cut",
        f"edges > {SHOWN}",
        "wire length",
        "sum of sizes",
    ]
    rows = []
    for name in REGIMES:
        found = []
        for seed in asked.seeds:
            out = asked.runs / f"{asked.formula}-{asked.steps}" / f"{name.replace(' ', '')}-seed{seed}"
            found.append(figures(asked.formula, name, seed, asked.steps, out))
        rows.append([name, *(spread([f[i] for f in found]) for i in range(len(head) - 1))])
    print(f"{asked.formula}: {FORMULAS[asked.formula].says}; {asked.steps} steps, seeds {asked.seeds}\n")
    print(table(head, rows))


def figures(formula: str, name: str, seed: int, steps: int, out: Path) -> list[float]:
    """Test loss, the same after cutting, edges, wire length and summed |w| of one run."""
    data, shape = symbolic_data(formula, seed), FORMULAS[formula]
    options = {
        "price": 1e-3, "schedule": SCHEDULES[formula], "l0": 0.1, "biases_from": 0.75, "relocate": "swaps", "top": 5,
        "every": 200, "move_inputs": True, "cut": 0.0,
    }  # fmt: skip
    config = MLPConfig(inputs=shape.inputs, hidden=HIDDEN[formula], outputs=shape.outputs, activation="silu")
    model = build(config, seed)
    settings = TrainSettings(
        steps=steps, lr=2e-3, weight_decay=0, betas=(0.9, 0.999), warmup=0, decay_from=1, clip="none", seed=seed,
        log_every=1000, eval_every=1000, checkpoint_every=steps,
    )  # fmt: skip
    train(model, data, (make_regime("bimt", options | REGIMES[name]),), settings, out)
    end = read_jsonl(out / "metrics.jsonl")[-1]
    weights = [p for p in model.parameters() if p.dim() == 2]
    kept = copy.deepcopy(model)
    for p in kept.parameters():
        p.data.mul_(p.abs() > (SHOWN if p.dim() == 2 else 0))
    cut = held_out_loss(kept, data, torch.device("cpu"))
    edges = sum(int((w.abs() > SHOWN).sum()) for w in weights)
    size = sum(float(w.detach().abs().sum()) for w in weights)
    return [read_json(out / "training.json")["result"]["held_out"], cut, edges, end["wire_length"], size]


def spread(values: list[float]) -> str:
    """The mean, and the range where there are several."""
    shown = f"{statistics.fmean(values):.3g}"
    return shown if len(values) == 1 else f"{shown} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    main()
