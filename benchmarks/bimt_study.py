"""Does training with BIMT make circuits easier to find? Thirteen ways of training on MNIST, two tasks.

    python benchmarks/bimt_study.py --data DIR [--parts train search cost page] [--seeds 0 1 2 3 4] [--runs DIR]

The question and the measures are those of Nainani 2024 (arXiv 2401.03646), of which only the abstract and the opening
could be read; the protocol is ours. A perceptron 784-100-100-10 with SiLU learns MNIST's 50,000 training images by
squared error on one-hot targets, at the settings published with BIMT (Liu, Gan, Tegmark 2023, arXiv 2305.08746) but for
the number of steps. What each part does and its settings stand in `bimt_study_parts.py`.

    train    every regime and seed, the same first weights and batches per seed
    search   recursive activation patching from the logits back (`openwork.discover.recursive`) on images that were held
             out of training; the circuits of every threshold and size are judged on pairs of test images
    cost     seconds of training steps, searches and inference, regimes in turn; peak memory, in processes of their own
    page     docs/results/bimt_study.md and docs/assets/bimt_study_*.svg

What is done is not done again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bimt_study_page import write_page
from bimt_study_parts import MEMORY_RUNS, REGIMES, memory, searched, timed, trained

from openwork import threads  # noqa: F401  before torch
from openwork.files import write_json
from openwork.progress import Progress
from openwork.threads import available_cores
from openwork.workers import Job, map_jobs

PARTS = ("train", "search", "cost", "page")


def main() -> None:
    """Does what is asked and missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the four files of MNIST")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs/bimt_study"))
    parser.add_argument("--workers", type=int, default=None)
    asked = parser.parse_args()
    data, runs, workers = asked.data.resolve(), asked.runs, asked.workers or available_cores()
    keys = [(regime, seed) for seed in asked.seeds for regime in REGIMES]
    with Progress() as progress:
        if "train" in asked.parts:
            map_jobs([Job(f"train {k} {s}", trained, (data, k, s, runs)) for k, s in keys], workers, progress)
        if "search" in asked.parts:
            map_jobs([Job(f"search {k} {s}", searched, (data, k, s, runs)) for k, s in keys], workers, progress)
        if "cost" in asked.parts:
            if not (runs / "memory.json").exists():
                each = [(k, i) for i in range(MEMORY_RUNS) for k in REGIMES]
                jobs = [Job(f"memory {k}", memory, (k, runs / "memory" / f"{j}")) for j, (k, _) in enumerate(each)]
                grown = map_jobs(jobs, workers, progress, fresh=True)
                write_json(
                    runs / "memory.json",
                    {r: [g for (k, _), g in zip(each, grown, strict=True) if k == r] for r in REGIMES},
                )
            map_jobs([Job("timing", timed, (data, runs, asked.seeds))], 1, progress)
    if "page" in asked.parts:
        for path in write_page(data, runs, asked.seeds):
            print(path)


if __name__ == "__main__":
    main()
