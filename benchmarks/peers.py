"""Edges between heads and MLPs beside the tools of the field, on the same model and prompts: time, memory, results.

    python benchmarks/peers.py [--rounds 7] [--data FOLDER]

Writes docs/results/peers.md. FOLDER holds small.safetensors, small.json and small_quote_prompts.json: a model of 4
layers of 4 heads in TransformerLens' naming, on which the others were measured. Where it is missing, one sentence says
so and nothing is written. By default it is bench/ in the folder that OPENWORK_DATA names, or ../shared/data/bench.

One thread, CPU seconds, alternatives in turn in every round, medians over rounds. Memory is the peak of the resident
set in a process of its own, reset before the work (/proc/self/clear_refs), less what was resident before.

The others' programs are not run here. Their figures (PEERS) were taken in November 2026 on another machine of the same
kind (4 shared cores, one thread): auto-circuit 1.0.1 and the EAP-IG repository 2.0 on transformer-lens 2.18.0 and torch
2.13.0, and the original ACDC. Each is told in units of that machine's own forward (0.06 s) and forward with backward
(0.15 s) of the same model on the same prompts too, as ours are of ours, so that machines cancel out.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quotes import table

from openwork import threads  # noqa: F401  before torch
from openwork.files import write_text

import numpy as np  # isort: skip
import torch  # isort: skip
from torch import Tensor, nn  # isort: skip

from openwork import patching
from openwork.circuit import Circuit, Scores
from openwork.discover.acdc import circuit_of, prune
from openwork.discover.attribution import attributed, input_levels, mask_levels
from openwork.discover.exact_patching import exactly
from openwork.models import TransformerConfig, build
from openwork.models.components import at_granularity
from openwork.models.transformer_lens import read_transformer_lens
from openwork.patched_run import Part, PatchedRun
from openwork.tasks.metrics import METRICS
from openwork.tasks.task import Split
from openwork.verify.faithfulness import curve

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "peers.md"
DATA = Path(os.environ.get("OPENWORK_DATA", ROOT.parent / "shared" / "data")) / "bench"
SHARES = (0.05, 0.1, 0.2)  # of all edges, at which faithfulness is told
THRESHOLDS = (0.1, 0.01, 0.001)
FORWARD, BACKWARD = 0.06, 0.15  # CPU seconds of the peers' machine: plain forward, and forward with backward


@dataclass(frozen=True)
class Peer:
    """A figure of another tool: CPU seconds, extra MiB, and what came out, as a sentence."""

    tool: str
    seconds: float
    mib: int
    result: str


PEERS: dict[str, tuple[Peer, ...]] = {
    "edge attribution (EAP)": (
        Peer("AutoCircuit", 1.5, 304, ".921 / .987 / .999"),
        Peer("EAP-IG repository", 2.5, 299, ".921 / .987 / .999"),
    ),
    "EAP-IG on inputs, 5 steps": (Peer("EAP-IG repository", 8.6, 414, ".906 / .991 / 1.000"),),
    "exact patching of 479 edges": (Peer("EAP-IG repository", 341, 113, ".923 / .990 / .999"),),
    "ACDC, threshold 0.1": (Peer("AutoCircuit", 80, 175, "18 edges, .55"),),
    "ACDC, threshold 0.01": (
        Peer("AutoCircuit", 79, 175, "19 edges, .66"),
        Peer("original ACDC", 131, 260, "25 edges in its counting, KL 0.061"),
    ),
    "ACDC, threshold 0.001": (Peer("AutoCircuit", 80, 175, "24 edges, .76"),),
    "edge attribution, 8 layers of 8 heads": (
        Peer("AutoCircuit", 17.5, 2404, "-"),
        Peer("EAP-IG repository", 21.9, 1529, "-"),
    ),
}
AREAS: dict[str, tuple[tuple[str, str, str], ...]] = {  # CPR and CMD of the others
    "edge attribution (EAP)": (("AutoCircuit", ".966", ".033"), ("EAP-IG repository", ".966", ".033")),
    "EAP-IG on inputs, 5 steps": (("EAP-IG repository", ".966", ".033"),),
    "IG on masks, 5 steps": (("AutoCircuit", ".958", ".041"),),
    "exact patching of 479 edges": (("EAP-IG repository", ".966", ".033"),),
}
LARGER = "edge attribution, 8 layers of 8 heads"
LARGER_FORWARD, LARGER_BACKWARD = 0.27, 0.93


class Bench:
    """A model at the granularity of heads and MLPs, prompts and their counterparts, and the work that is timed."""

    def __init__(self, model: nn.Module, clean: Tensor, other: Tensor, answer: Tensor, wrong: Tensor) -> None:
        self.plain, self.model = model, at_granularity(model, "components")
        at = torch.full((len(clean),), clean.shape[1] - 1)
        texts = tuple(f"prompt {i}" for i in range(len(clean)))
        pair = torch.full((len(clean),), -1)
        self.split = Split("discover", (clean, at), answer, wrong[:, None], pair, texts)
        self.other = (other, at)
        self.metric = METRICS["logit_difference"]

    def run(self) -> PatchedRun:
        """The model under the counterparts; nothing is remembered from before."""
        run = PatchedRun(self.model, "counterfactual")
        run.parts = lambda split, most=3: self.parts(most)  # type: ignore[method-assign]
        return run

    def parts(self, most: int = 3) -> tuple[Part, ...]:
        """The prompts in parts, each with its own counterparts."""
        index = torch.arange(len(self.split)).chunk(most)
        return tuple(Part(self.model, i, self.split.take(i), None, tuple(x[i] for x in self.other)) for i in index)

    def forward(self) -> None:
        """The plain model, once."""
        with torch.no_grad():
            self.plain(*self.split.inputs)

    def backward(self) -> None:
        """Forward, and backward into the weights."""
        self.plain.zero_grad()
        self.metric.of(self.plain(*self.split.inputs), self.split, None).mean().backward()

    def attribution(self) -> dict[str, Tensor]:
        """Scores by one gradient."""
        return attributed(self.run(), self.split, self.metric)

    def integrated(self) -> dict[str, Tensor]:
        """Scores by five gradients on the way from the counterparts' inputs."""
        return attributed(self.run(), self.split, self.metric, "edges", input_levels(5))

    def integrated_masks(self) -> dict[str, Tensor]:
        """Scores by five gradients on the way from no edge to all."""
        return attributed(self.run(), self.split, self.metric, "edges", mask_levels(5), "masks")

    def exact(self) -> dict[str, Tensor]:
        """Scores by one run per edge."""
        return exactly(self.run(), self.parts(), self.metric)

    def acdc(self, threshold: float) -> tuple[Circuit, float, int]:
        """The circuit, its divergence from the whole model, and how many variants were run."""
        run = self.run()
        pruned = prune(run, self.parts(), METRICS["kl"], threshold)
        return circuit_of(run, pruned.masks, "edges"), pruned.value, pruned.runs

    def faithful(self, circuit: Circuit) -> float:
        """Logit difference of the circuit, 0 where all edges are ablated and 1 where none is."""
        run, values = self.run(), []
        with torch.no_grad():
            for c in (circuit, Circuit.empty(run.graph), Circuit.whole(run.graph, run.support)):
                masks = patching.masks_of(self.model, c)
                logits = [(run.logits(p, *masks), p.split) for p in self.parts()]
                values.append(float(torch.cat([self.metric.of(x, s, None) for x, s in logits]).mean()))
        return (values[0] - values[1]) / (values[2] - values[1])

    def areas(self, values: dict[str, Tensor]) -> list[str]:
        """CPR by signed score and by its size, and CMD; with intervals over prompts."""
        run = self.run()
        scores = Scores(run.graph, values, "")
        signed, by_size = (curve(run, self.split, scores, self.metric, absolute) for absolute in (False, True))
        cpr, cmd = (f"{short(c.area)} ({short(c.interval[0])} to {short(c.interval[1])})" for c in (signed, by_size))
        return [cpr, short(float(np.trapezoid(by_size.faithfulness, by_size.sizes))), cmd]

    def curve(self, values: dict[str, Tensor]) -> str:
        """Faithfulness of the edges of the largest scores, at each of SHARES."""
        run = self.run()
        sizes = Scores(run.graph, {n: v.abs() for n, v in values.items()}, "")
        total = sum(v.numel() for v in values.values())
        kept = (sizes.circuit(sizes.top(int(share * total)), run.support) for share in SHARES)
        return " / ".join(short(self.faithful(c)) for c in kept)


def small(folder: Path) -> Bench:
    """The model and the prompts that all were measured on."""
    told = json.loads((folder / "small_quote_prompts.json").read_text(encoding="utf-8"))
    tensors = [torch.tensor(told[k]) for k in ("clean", "corrupt", "answer", "wrong")]
    return Bench(read_transformer_lens(folder / "small.safetensors"), *tensors)


def larger() -> Bench:
    """8 layers of 8 heads, 256 channels, untrained; 6,637 edges."""
    config = TransformerConfig(
        vocab=50, n_layer=8, d_model=256, d_head=32, n_ctx=16, norm="layer", bigram=False, unembed_bias=True
    )
    g = torch.Generator().manual_seed(0)
    clean, other = (torch.randint(50, (64, 16), generator=g) for _ in range(2))
    return Bench(build(config, 0), clean, other, torch.full((64,), 1), torch.full((64,), 2))


WORK: dict[str, tuple[str, Callable[[Bench], object]]] = {
    "forward": ("small", Bench.forward),
    "forward with backward": ("small", Bench.backward),
    "edge attribution (EAP)": ("small", Bench.attribution),
    "EAP-IG on inputs, 5 steps": ("small", Bench.integrated),
    "exact patching of 479 edges": ("small", Bench.exact),
    **{f"ACDC, threshold {t:g}": ("small", lambda b, t=t: b.acdc(t)) for t in THRESHOLDS},
    "larger: forward": ("larger", Bench.forward),
    "larger: forward with backward": ("larger", Bench.backward),
    LARGER: ("larger", Bench.attribution),
}


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--memory", choices=WORK, help="only print the extra MiB of this work, in this process")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if not (asked.data / "small.safetensors").exists():
        print(f"The model and the prompts are not in {asked.data}; nothing was measured. --data names another folder.")
        return
    if asked.memory:
        kind, work = WORK[asked.memory]
        print(extra_memory(small(asked.data) if kind == "small" else larger(), work))
        return
    benches = {"small": small(asked.data), "larger": larger()}
    seconds: dict[str, list[float]] = {name: [] for name in WORK}
    for _ in range(asked.rounds):
        for name, (kind, work) in WORK.items():
            began = time.process_time()
            work(benches[kind])
            seconds[name].append(time.process_time() - began)
    memory = {name: extra_in_a_process(name, asked.data) for name in WORK}
    write_text(PAGE, page(benches["small"], seconds, memory, asked.rounds))
    print(PAGE)


def extra_memory(bench: Bench, work: Callable[[Bench], object]) -> float:
    """MiB by which the resident set peaks above what it was, after the plain model has run forward and backward."""
    bench.forward()
    bench.backward()
    bench.plain.zero_grad()
    ctypes.CDLL(None).malloc_trim(0)  # what that left free goes back first, else it would hide as much of the work
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    work(bench)
    return (status("VmHWM") - before) / 1024


def status(key: str) -> int:
    """A line of /proc/self/status, KiB."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1])


def extra_in_a_process(name: str, data: Path) -> float:
    """`extra_memory` in a fresh process."""
    command = [sys.executable, __file__, "--data", str(data), "--memory", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def page(bench: Bench, seconds: dict[str, list[float]], memory: dict[str, float], rounds: int) -> str:
    """The page in Markdown."""
    results = {
        "edge attribution (EAP)": bench.curve(bench.attribution()),
        "EAP-IG on inputs, 5 steps": bench.curve(bench.integrated()),
        "exact patching of 479 edges": bench.curve(bench.exact()),
    }
    for threshold in THRESHOLDS:
        circuit, value, runs = bench.acdc(threshold)
        said = f"{len(circuit)} edges, {short(bench.faithful(circuit))}; KL {value:.3g}; {runs} runs"
        results[f"ACDC, threshold {threshold:g}"] = said
    f, fb = median(seconds["forward"]), median(seconds["forward with backward"])
    larger_fb = median(seconds["larger: forward with backward"])
    parts = [
        "# Beside the tools of the field",
        f"Made by `python benchmarks/peers.py`, on one thread; CPU seconds, alternatives in turn in every round, "
        f"medians over {rounds} rounds; extra memory in a process of its own. The same model (4 layers of 4 heads, 128 "
        "channels, LayerNorm), the same 64 prompts of 16 tokens with their counterparts, the same 479 edges between "
        "input, heads, MLPs and logits; what is ablated carries what the counterpart sends.",
        "The others were not run here. Their figures were taken in November 2026 on another machine of the same kind, "
        "so what may be compared are the columns *in forwards* and *in f+b*: units of the same machine's own plain "
        f"forward ({FORWARD:g} s there, {f:.3f} s here) and forward with backward ({BACKWARD:g} s there, {fb:.3f} s "
        "here). *Times ours* is in f+b. Their two units are known to one or two digits, so the ratios are too.",
        "## Time and memory",
        table(
            ["what", "by", "CPU s", "in forwards", "in f+b", "extra MiB", "times ours"],
            [row for name in PEERS for row in rows(name, seconds, memory)],
        ),
        "*8 layers of 8 heads*: 256 channels, 6.4 million weights, untrained, 6,637 edges; f+b "
        f"{LARGER_BACKWARD:g} s there, {larger_fb:.3f} s here. The extra memory of our own f+b, measured the same way, "
        f"is {memory['forward with backward']:.0f} MiB ({memory['larger: forward with backward']:.0f} MiB for the "
        "larger model). Before ours is measured, memory that is free but not given back is, which can only raise it; "
        "whether the others' was treated so is not known.",
        "## What comes out",
        "Of scores: how faithful the edges of the largest scores are at 5, 10 and 20 % of all edges, (m - m of "
        "nothing) / (m of everything - m of nothing) of the logit difference m. Of ACDC, whose metric is the "
        "divergence from the whole model: edges kept, the same faithfulness, divergence, and how many variants of the "
        "circuit were run. Ours are edges on a path from the input to the logits; EAP's scores equal those that the "
        "EAP-IG repository stored, to a hundred-thousandth of the largest (a test).",
        table(
            ["what", "ours", "theirs"],
            [[name, results[name], "; ".join(f"{p.tool}: {p.result}" for p in PEERS[name])] for name in results],
        ),
    ]
    return "\n\n".join([*parts, *over_all_sizes(bench)]) + "\n"


def over_all_sizes(bench: Bench) -> list[str]:
    """CPR and CMD, ours and theirs."""
    scores = {
        "edge attribution (EAP)": bench.attribution(), "EAP-IG on inputs, 5 steps": bench.integrated(),
        "IG on masks, 5 steps": bench.integrated_masks(), "exact patching of 479 edges": bench.exact(),
    }  # fmt: skip
    lines = []
    for name, values in scores.items():
        lines.append([name, "**openwork**", *bench.areas(values)])
        lines += [["", tool, "", cpr, cmd] for tool, cpr, cmd in AREAS[name]]
    return [
        "## Over all sizes",
        "CPR (integral of the faithfulness over the share of edges kept; f = 1 throughout gives .999) and CMD (that of "
        "its distance from 1; 0 is best), on the ten sizes of the MIB benchmark, with a 95 % interval over the 64 "
        "prompts; theirs have none. The benchmark ranks edges by signed score for CPR and by its size for CMD. The "
        "others' CPR agrees with ours by *size*: it was not taken by signed score, which leaves out edges that matter "
        "by holding the answer back, and tells plain attribution from the rest.",
        table(["what", "by", "CPR, signed", "CPR, by size", "CMD"], lines),
    ]


def rows(name: str, seconds: dict[str, list[float]], memory: dict[str, float]) -> list[list[str]]:
    """Ours and theirs."""
    prefix = "larger: " if name == LARGER else ""
    forward, backward = (LARGER_FORWARD, LARGER_BACKWARD) if name == LARGER else (FORWARD, BACKWARD)
    forwards, ours = (ratio(seconds, name, f"{prefix}{unit}") for unit in ("forward", "forward with backward"))
    figures = [("**openwork**", median(seconds[name]), forwards, ours, memory[name])]
    figures += [(p.tool, p.seconds, p.seconds / forward, p.seconds / backward, p.mib) for p in PEERS[name]]
    return [
        ["" if i else name, by, digits(s), digits(f), digits(fb), f"{mib:.0f}", digits(fb / ours) if i else "1"]
        for i, (by, s, f, fb, mib) in enumerate(figures)
    ]


def digits(x: float) -> str:
    """Two or three digits that count."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}" if x < 1 else f"{x:.1f}"


def median(values: list[float]) -> float:
    """Median."""
    return statistics.median(values)


def ratio(seconds: dict[str, list[float]], name: str, unit: str) -> float:
    """Median over rounds of one time over another of the same round."""
    return median([a / b for a, b in zip(seconds[name], seconds[unit], strict=True)])


def short(x: float) -> str:
    """Three digits, without a leading zero, as the peers' figures are written."""
    return f"{x:.3f}".removeprefix("0")


if __name__ == "__main__":
    main()
