"""What sparsity, locality and swaps each buy: the six regimes of the BIMT paper on one of its formulas, two of ours.

    python benchmarks/bimt.py [--formulas independence feature_sharing] [--seeds 0 1 2] [--runs runs/bimt]

Writes docs/results/bimt.md. Settings are those published with the paper: AdamW at 2e-3 without weight decay, 100 points
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
from openwork.files import read_json, read_jsonl, write_text
from openwork.models import MLPConfig, build
from openwork.progress import Progress
from openwork.tasks.symbolic import FORMULAS, symbolic_data
from openwork.threads import available_cores
from openwork.training import TrainSettings, held_out_loss, make_regime, train
from openwork.workers import Job, map_jobs

PAGE = Path(__file__).parents[1] / "docs" / "results" / "bimt.md"
HIDDEN = {"independence": (20, 20), "feature_sharing": (20, 20), "compositionality": (20, 20, 20, 20)}
UP_AND_DOWN = ((0.25, 10.0), (0.75, 0.1))
SCHEDULES = {"independence": UP_AND_DOWN, "feature_sharing": UP_AND_DOWN, "compositionality": ((0.25, 3.0),)}
STEPS = 20_000
PUBLISHED = {"independence": 7.4e-3, "feature_sharing": 8.5e-5, "compositionality": 1.3e-3}  # in the paper's notebook
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
    """Trains what is missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formulas", nargs="+", default=["independence"], choices=list(FORMULAS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/bimt"))
    parser.add_argument("--workers", type=int, default=None)
    asked = parser.parse_args()
    keys = [(formula, name, seed) for formula in asked.formulas for name in REGIMES for seed in asked.seeds]
    jobs = [
        Job(" ".join(map(str, k)), figures, (*k, asked.runs / "{}-{}-{}".format(*k).replace(" ", ""))) for k in keys
    ]
    with Progress() as progress:
        found = dict(zip(keys, map_jobs(jobs, asked.workers or available_cores(), progress), strict=True))
    write_text(PAGE, page(found, asked.formulas, asked.seeds))
    print(PAGE)


def page(found: dict[tuple[str, str, int], list[float]], formulas: list[str], seeds: list[int]) -> str:
    """The page as Markdown."""
    head = ["regime", "test loss", f"test loss, weights up to {SHOWN} cut", f"edges > {SHOWN}", "wire length"]
    parts = [
        "# Wires that cost their length: BIMT and its parts",
        f"Made by `python benchmarks/bimt.py --formulas {' '.join(formulas)} --seeds {' '.join(map(str, seeds))}`, "
        f"{STEPS} steps, at the settings published with the paper (Liu, Gan, Tegmark 2023, arXiv 2305.08746); median "
        f"and range over {len(seeds)} seeds. The last two rows are ours: the best places of a whole layer at once, and "
        "that from ten random arrangements besides. *Swap only* is a control: its weights are those of *none*.",
    ]
    for formula in formulas:
        cells = {name: [found[formula, name, seed] for seed in seeds] for name in REGIMES}
        rows = [[name, *(spread([f[i] for f in of]) for i in range(len(head) - 1))] for name, of in cells.items()]
        said = f"{FORMULAS[formula].says}. For BIMT the paper's notebook prints {PUBLISHED[formula]:g}, one seed."
        parts += [f"## {formula.replace('_', ' ')}", said, table(head, rows)]
    return "\n\n".join(parts) + "\n"


def figures(formula: str, name: str, seed: int, out: Path) -> list[float]:
    """Test loss, the same after cutting, edges and wire length of one run (a job)."""
    data, shape = symbolic_data(formula, seed), FORMULAS[formula]
    options = {
        "price": 1e-3, "schedule": SCHEDULES[formula], "l0": 0.1, "biases_from": 0.75, "relocate": "swaps", "top": 5,
        "every": 200, "move_inputs": True, "cut": 0.0,
    }  # fmt: skip
    config = MLPConfig(inputs=shape.inputs, hidden=HIDDEN[formula], outputs=shape.outputs, activation="silu")
    model = build(config, seed)
    settings = TrainSettings(
        steps=STEPS, lr=2e-3, weight_decay=0, betas=(0.9, 0.999), warmup=0, decay_from=1, clip="none", seed=seed,
        log_every=1000, eval_every=1000, checkpoint_every=STEPS,
    )  # fmt: skip
    train(model, data, (make_regime("bimt", options | REGIMES[name]),), settings, out)
    end = read_jsonl(out / "metrics.jsonl")[-1]
    weights = [p for p in model.parameters() if p.dim() == 2]
    kept = copy.deepcopy(model)
    for p in kept.parameters():
        p.data.mul_(p.abs() > (SHOWN if p.dim() == 2 else 0))
    cut = held_out_loss(kept, data, torch.device("cpu"))
    edges = sum(int((w.abs() > SHOWN).sum()) for w in weights)
    return [read_json(out / "training.json")["result"]["held_out"], cut, edges, end["wire_length"]]


def spread(values: list[float]) -> str:
    """The median, and the range where there are several."""
    shown = f"{statistics.median(values):.3g}"
    return shown if len(values) == 1 else f"{shown} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    main()
