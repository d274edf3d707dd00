"""The parts of `bimt_study.py`: settings, training, the search for circuits, and what training costs. Jobs, no tables.

Knows MNIST, the regimes and one model at a time. Does not know how results are put together.

    a task     some digits against the rest; clean images are test images of these digits, each with the nearest image
               (Euclidean) of the other digits as its counterfactual
    metric     mean logit of the task's digits - mean logit of the others
    gap        |metric of the whole model - metric of the circuit| on one image, everything outside the circuit at the
               reference
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from bimt_cost import RandomImages
from mnist import WIRES, Squared, slug, test_error
from relocation import read_kb
from torch import Tensor, nn

from openwork import patching, threads  # noqa: F401  before torch
from openwork.circuit import Circuit, Scores
from openwork.discover.recursive import Explored, explore
from openwork.files import read_json, write_json
from openwork.models import build
from openwork.patched_run import PatchedRun
from openwork.patching import Inputs, Reference
from openwork.single import Single, single
from openwork.store import load_model, model_digest, write_tensors
from openwork.tasks.metrics import Metric
from openwork.tasks.mnist import load_images
from openwork.tasks.task import Split
from openwork.training import TrainSettings, make_regime, train
from openwork.training.loop import _plan, _Run

MODEL = {"kind": "mlp", "inputs": 784, "hidden": (100, 100), "outputs": 10, "activation": "silu"}
STEPS, BATCH = 10_000, 100
TRAINING: dict[str, Any] = {
    "lr": 1e-3, "weight_decay": 0, "betas": (0.9, 0.999), "warmup": 0, "decay_from": 1, "clip": "none",
}  # fmt: skip
SWAPS, STAY = {"relocate": "swaps"}, {"relocate": "none"}
REGIMES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("bimt", {**WIRES, **STAY, "price": 0, "cut": 0}),
    "swap only": ("bimt", {**WIRES, **SWAPS, "price": 0, "cut": 0}),
    "local only": ("bimt", {**WIRES, **STAY, "l0": 0}),
    "L1": ("bimt", {**WIRES, **STAY, "distance": 0}),
    "L1 + swap": ("bimt", {**WIRES, **SWAPS, "distance": 0}),
    "L1, dearer": ("bimt", {**WIRES, **STAY, "distance": 0, "price": 0.03}),  # about as many weights as BIMT
    "L1 + local": ("bimt", {**WIRES, **STAY}),
    "BIMT": ("bimt", {**WIRES, **SWAPS}),
    "dropout": ("dropout", {"neurons": 0.2}),
    "weight decay": ("l2", {"price": 1e-4}),
    "L0": ("l0", {"density": 0.1}),
    "RigL": ("rigl", {"density": 0.1}),
    "top-k": ("topk", {"density": 0.1}),
}

TASKS: dict[str, tuple[int, ...]] = {"three": (3,), "loops": (0, 6, 8, 9)}
REFERENCES = ("counterfactual", "mean", "resample")
LEARN, JUDGE = 100, 1_000  # clean images to search on and to judge on
TAUS = (0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
TOPS = (100, 300, 1_000, 3_000, 10_000)
FAITHFUL = 0.1  # a circuit whose mean gap on the images searched on is at most this share of the model's mean metric
TIMED = (1e-4, 1e-3)  # thresholds at which the search is timed
BLOCK, ROUNDS = 500, 5  # steps of a timed block of training, which holds one relocation; blocks of each regime
MEMORY_STEPS, MEMORY_EVERY, MEMORY_RUNS = 101, 50, 3  # steps, those between two relocations, processes


def folder(runs: Path, regime: str, seed: int) -> Path:
    """Where the model of a regime and seed is kept, with what was found in it."""
    return runs / slug(regime.replace("+", "")) / f"seed{seed}"


# -- training --------------------------------------------------------------------------------------------------------


def trained(data: Path, regime: str, seed: int, runs: Path) -> dict[str, Any]:
    """Trains one model, or says what training it came to (a job)."""
    at = folder(runs, regime, seed)
    if not (at / "result.json").exists():
        name, options = REGIMES[regime]
        images, model = Squared(data, seed, BATCH), build(MODEL, seed)
        settings = TrainSettings(
            **TRAINING, steps=STEPS, seed=seed, log_every=500, eval_every=STEPS, checkpoint_every=2000
        )
        result = train(model, images, (make_regime(name, options),), settings, at)
        write_json(at / "result.json", {"weights": result.nonzero, "error": test_error(model, images)})
    return read_json(at / "result.json")


# -- tasks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pairs:
    """Clean images of a task's digits, and what stands in for each outside a circuit.

    nearest  the nearest image of another digit; other: any image of the same files, drawn at random
    """

    clean: Split
    nearest: Inputs
    other: Inputs


@cache
def pairs_of(data: Path, task: str, split: str, n: int) -> Pairs:
    """The first n images of a task's digits in a split of MNIST, with their counterparts from the same split."""
    images = load_images(data)
    part, ids = images.members(split)
    x, y = images.of(part, ids)
    mine = torch.isin(y, torch.tensor(TASKS[task]))
    clean, labels, rest = x[mine][:n], y[mine][:n], x[~mine]
    nearest = rest[torch.cdist(clean, rest).argmin(1)]
    other = x[torch.randint(len(x), (len(clean),), generator=torch.Generator().manual_seed(0))]
    wrong = torch.tensor([c for c in range(10) if c not in TASKS[task]]).expand(len(clean), -1)
    nobody = torch.full((len(clean),), -1)
    return Pairs(Split(split, (clean,), labels, wrong, nobody, ("",) * len(clean)), (nearest,), (other,))


def metric_of(task: str) -> Metric:
    """Mean logit of a task's digits minus that of the others [N]."""
    ours = torch.zeros(10, dtype=torch.bool)
    ours[list(TASKS[task])] = True

    def of(logits: Tensor, _split: Split, _whole: Tensor | None = None) -> Tensor:
        return logits[:, ours].mean(1) - logits[:, ~ours].mean(1)

    return Metric(task, of, 1, "logits")


def reference_of(model: nn.Module, data: Path, kind: str, pairs: Pairs) -> Reference:
    """What nodes outside a circuit send: one row per pair, or their mean over the images of the discover split."""
    if kind == "mean":
        images = load_images(data)
        return patching.mean_reference(model, [(images.of(*images.members("discover"))[0],)])
    return patching.record(model, pairs.nearest if kind == "counterfactual" else pairs.other)


# -- circuits --------------------------------------------------------------------------------------------------------


def searched(data: Path, regime: str, seed: int, runs: Path) -> dict[str, Any]:
    """Circuits of one model for every task, reference, threshold and size, and their gaps on test images (a job)."""
    at = folder(runs, regime, seed)
    if not (at / "search.json").exists():
        model = load_model(at / "model")
        found: dict[str, Any] = {"digest": model_digest(model)}
        gaps: dict[str, Tensor] = {}
        for task in TASKS:
            learn, judge = pairs_of(data, task, "discover", LEARN), pairs_of(data, task, "verify", JUDGE)
            for kind in REFERENCES:
                here = _Question(model, learn.clean, reference_of(model, data, kind, learn), task)
                there = _Question(model, judge.clean, reference_of(model, data, kind, judge), task)
                found[f"{task}/{kind}"], gaps[f"{task}/{kind}"] = swept(here, there)
        write_tensors(at / "gaps.safetensors", gaps)
        write_json(at / "search.json", found)
    return read_json(at / "search.json")


class _Question:
    """A model on some clean images under one reference."""

    def __init__(self, model: nn.Module, clean: Split, reference: Reference, task: str) -> None:
        self.run, self.clean, self.metric = PatchedRun(model, reference), clean, metric_of(task)
        with torch.no_grad():
            self.whole = self.run.values(clean, metric=self.metric)

    def explored(self, threshold: float) -> Explored:
        """Recursive activation patching on these images."""
        return explore(self.run, self.clean, self.metric, threshold)

    def gaps(self, circuit: Circuit) -> Tensor:
        """|metric of the model - metric of the circuit| [N]."""
        return (self.run.of_circuit(self.clean, circuit, self.metric) - self.whole).abs()


def swept(here: _Question, there: _Question) -> tuple[dict[str, Any], Tensor]:
    """Circuits found on the images `here`, and the gaps of each on the images `there` [circuits, N].

    In this order: one per threshold, one per size, and the smallest that is faithful here.
    """
    scores = here.explored(0.0).scores
    support, graph = here.run.support, here.run.graph
    circuits = [Circuit.from_edges(graph, scores.above(tau), support) for tau in TAUS]
    circuits += [Circuit.from_edges(graph, scores.top(k), support) for k in TOPS]
    circuits.append(faithful(here, scores))
    found = {
        "metric": float(there.whole.mean()),
        "edges": [len(c) for c in circuits],
        "nodes": [c.counts()["nodes"] for c in circuits],
        "runs": [runs_at(scores, support, tau) for tau in TAUS],
    }
    return found, torch.stack([there.gaps(c) for c in circuits])


def faithful(here: _Question, scores: Scores) -> Circuit:
    """The circuit of the fewest edges of most worth whose mean gap here is small, by bisection (see FAITHFUL)."""
    most = FAITHFUL * float(here.whole.mean().abs())

    def circuit(k: int) -> Circuit:
        return Circuit.from_edges(here.run.graph, scores.top(k), here.run.support)

    low, high = 0, sum(int((v > 0).sum()) for v in scores.values.values())
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if float(here.gaps(circuit(middle)).mean()) <= most else (middle, high)
    return circuit(high)


def runs_at(scores: Scores, support: patching.Masks, tau: float) -> int:
    """Edges that recursive patching tests at a threshold: all into the outputs, and into each node that is kept."""
    total = 0
    for e in scores.graph.links:
        kept = torch.ones(e.shape[0], dtype=torch.bool)
        for out in scores.graph.out_of(e.dst):
            kept = (scores.values[out.name] > tau).any(0)
        total += int(support[e.name][kept].sum())
    return total


# -- cost ------------------------------------------------------------------------------------------------------------


def timed(data: Path, runs: Path, seeds: list[int]) -> dict[str, Any]:
    """Processor seconds of training steps, of searches and of inference, regimes in turn in every round (a job)."""
    at = runs / "timed.json"
    if not at.exists():
        torch.set_num_threads(1)
        write_json(at, {"step": _steps(runs), **_searches(data, runs, seeds), "fast": _fast_against_whole(data, runs)})
    return read_json(at)


def _steps(runs: Path) -> dict[str, list[float]]:
    """Seconds per training step, one figure per block."""
    going = {regime: prepared(regime, runs / "timed" / slug(regime)) for regime in REGIMES}
    seconds: dict[str, list[float]] = {regime: [] for regime in REGIMES}
    for _ in range(ROUNDS):
        for regime, run in going.items():
            seconds[regime].append(cpu(lambda run=run: [run.advance() for _ in range(BLOCK)]) / BLOCK)
    return {regime: s[1:] for regime, s in seconds.items()}  # the first block warms up


def prepared(regime: str, out: Path, **more: Any) -> _Run:
    """A training run on random images that is about to take its first step, as `bimt_cost.py` has it."""
    name, options = REGIMES[regime]
    options = options | (more if name == "bimt" else {})
    model, data = build(MODEL, 0), RandomImages(784, 10, BATCH, 0)
    settings = TrainSettings(**TRAINING, steps=STEPS, log_every=STEPS, eval_every=STEPS, checkpoint_every=STEPS)
    regimes = (make_regime(name, options),)
    run = _Run(model, data, regimes, settings, out, torch.device("cpu"), _plan(model, data, regimes, settings))
    run.begin()
    return run


def _searches(data: Path, runs: Path, seeds: list[int]) -> dict[str, Any]:
    """Seconds of a search at each threshold, and of 1,000 images of inference, one figure per seed."""
    search: dict[str, dict[str, list[float]]] = {f"{tau:g}": {r: [] for r in REGIMES} for tau in TIMED}
    inference: dict[str, list[float]] = {r: [] for r in REGIMES}
    pairs, images = pairs_of(data, "three", "discover", LEARN), pairs_of(data, "three", "verify", JUDGE).clean.inputs
    for seed in seeds:
        questions = {}
        for regime in REGIMES:
            model = load_model(folder(runs, regime, seed) / "model").eval()
            reference = reference_of(model, data, "counterfactual", pairs)
            questions[regime] = _Question(model, pairs.clean, reference, "three")
        for tau in TIMED:
            for regime, question in questions.items():
                found: list[Explored] = []
                search[f"{tau:g}"][regime].append(cpu(lambda q=question, t=tau, f=found: f.append(q.explored(t))))
                known = read_json(folder(runs, regime, seed) / "search.json")["three/counterfactual"]["runs"]
                assert found[0].tested == known[TAUS.index(tau)], "one ranking does not hold the recursion"
        blocks: dict[str, list[float]] = {r: [] for r in REGIMES}
        with torch.no_grad():
            for _ in range(5):
                for regime, question in questions.items():
                    model = question.run.model
                    blocks[regime].append(cpu(lambda m=model: [m(*images) for _ in range(20)]) / 20)
        for regime, some in blocks.items():
            inference[regime].append(sorted(some)[len(some) // 2])
    return {"search": search, "inference": inference}


def _fast_against_whole(data: Path, runs: Path) -> dict[str, float]:
    """Seconds for the edges from all pixels to one neuron of a dense model: by whole forward passes, and as it is."""
    model = load_model(folder(runs, "none", 0) / "model")
    pairs = pairs_of(data, "three", "discover", LEARN)
    reference, pixels = reference_of(model, data, "counterfactual", pairs), torch.arange(784)
    fast, whole = single(model, pairs.clean.inputs, reference), Single(model, pairs.clean.inputs, reference)

    def all_pixels(runs: Single) -> None:
        for some in pixels.split(max(1, runs.rows // LEARN)):
            runs.edges("input>hidden0", 0, some)

    seconds = {"fast": 0.0, "whole": 0.0}
    for _ in range(4):
        seconds["fast"] += cpu(lambda: all_pixels(fast)) / 4
        seconds["whole"] += cpu(lambda: all_pixels(whole)) / 4
    return seconds


def memory(regime: str, out: Path) -> float:
    """MiB by which a process grows at most while it trains, relocations included (a job with its own process)."""
    torch.set_num_threads(1)
    warm = nn.Linear(2, 2)
    warm(torch.zeros(1, 2)).sum().backward()
    torch.optim.AdamW(warm.parameters()).step()
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = read_kb(status, "VmRSS")
    run = prepared(regime, out, every=MEMORY_EVERY)
    for _ in range(MEMORY_STEPS):
        run.advance()
    return (read_kb(status, "VmHWM") - before) / 1024


def cpu(call: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began
