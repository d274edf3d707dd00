"""The page and the figures of `bimt_study.py`: what was found, with intervals, and each claim of the paper beside it.

Intervals of gaps are 95 % bootstrap intervals, 1,000 resamples in which seeds and pairs of images are both drawn anew;
those of counts and seconds are Student's over seeds, of logarithms. Knows stored results only.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bimt_study_parts import (
    FAITHFUL,
    JUDGE,
    LEARN,
    REFERENCES,
    REGIMES,
    STEPS,
    TASKS,
    TAUS,
    TIMED,
    TOPS,
    folder,
)
from quotes import table

from openwork.files import read_json, write_bytes, write_text
from openwork.stats import bootstrap_weights, percentile_interval, t_interval
from openwork.store import read_tensors
from openwork.views.plots import COLOURS, MARKERS, STYLE

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "results" / "bimt_study.md"
EDGES = 89_400  # of the architecture
DRAWS = 1_000
MAIN = "counterfactual"
SHOWN = (1e-4, 1e-3)  # thresholds in the tables
SIZE = 1_000  # edges at which gaps are compared at equal size
RIVAL = "L1, dearer"
BESIDE = ("none", "L1 + local", RIVAL)  # what BIMT is compared with one by one
PARTS_OF = {"none", "swap only", "local only", "L1", "L1 + swap", "L1 + local"}  # BIMT with something left out
SAME = ("swap only", "L1 + swap")  # as none and as L1: not drawn
HUES = dict(
    zip((k for k in REGIMES if k not in SAME), (COLOURS[0], *COLOURS[4:], *COLOURS[1:4], "#332288"), strict=True)
)

SAID = (
    "Beside plain training the claims about circuits hold by a wide margin, but places are not the reason. BIMT is "
    "hardly told apart from the same training without swaps, and L1 alone, at a price that leaves somewhat fewer "
    "weights and a little more error, has smaller circuits that are as close to their model. What counts is a price on "
    "weights, and it is paid in accuracy: L0, RigL and top-k leave fewer weights than BIMT and misname fewer digits, "
    "and their circuits need more edges. A search takes about as long as there are weights to try. More memory in "
    "training is real, and is a few MiB, most of it the swaps'."
)

Interval = tuple[float, float]


class Results:
    """Everything that was measured."""

    def __init__(self, runs: Path, seeds: Sequence[int]) -> None:
        at = {(r, s): folder(runs, r, s) for r in REGIMES for s in seeds}
        self.seeds = list(seeds)
        self.models = {k: read_json(p / "result.json") for k, p in at.items()}
        self.found = {k: read_json(p / "search.json") for k, p in at.items()}
        self.gaps = {k: read_tensors(p / "gaps.safetensors") for k, p in at.items()}
        self.timed, self.memory = read_json(runs / "timed.json"), read_json(runs / "memory.json")

    def gap(self, regime: str, task: str, reference: str, i: int) -> Any:
        """Gaps [seeds, pairs] of the i-th circuit (see `bimt_study_parts.swept`)."""
        return np.stack([self.gaps[regime, s][f"{task}/{reference}"][i].numpy() for s in self.seeds])

    def of(self, regime: str, task: str, reference: str, key: str, i: int | None = None) -> list[float]:
        """A figure of the search, one per seed."""
        all_of = [self.found[regime, s][f"{task}/{reference}"][key] for s in self.seeds]
        return all_of if i is None else [x[i] for x in all_of]


def tau_at(tau: float) -> int:
    """Place of a threshold's circuit."""
    return TAUS.index(tau)


def size_at(k: int) -> int:
    """Place of the circuit of so many edges."""
    return len(TAUS) + TOPS.index(k)


LAST = len(TAUS) + len(TOPS)  # place of the faithful circuit


def drawn(gaps: Any) -> Any:
    """Means of gaps [seeds, pairs] in every resample of seeds and pairs [draws]."""
    seeds, pairs = (
        bootstrap_weights(gaps.shape[0], draws=DRAWS, seed=0),
        bootstrap_weights(gaps.shape[1], draws=DRAWS, seed=1),
    )
    return ((seeds @ gaps) * pairs).sum(1)


def geometric(values: Sequence[float]) -> tuple[float, Interval]:
    """Geometric mean, with Student's interval of the mean logarithm."""
    logs = np.log(values)
    low, high = t_interval(logs)
    return float(np.exp(logs.mean())), (float(np.exp(low)), float(np.exp(high)))


def say(value: float, digits: int = 3) -> str:
    """A number to so many significant digits, with commas where it is large."""
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def spread(value: float, interval: Interval, digits: int = 3) -> str:
    """A value and its interval."""
    low, high = (say(x, digits) for x in interval)
    return f"{say(value, digits)} ({low} to {high})" if low != high else say(value, digits)


def gap_cell(gaps: Any) -> str:
    """Mean gap and its interval."""
    return spread(float(gaps.mean()), percentile_interval(drawn(gaps)))


def count_cell(values: Sequence[float]) -> str:
    """Geometric mean of counts or seconds and its interval; where one is 0, the mean and the range."""
    if min(values) <= 0:
        return spread(statistics.mean(values), (min(values), max(values)))
    return spread(*geometric(values))


def write_page(data: Path, runs: Path, seeds: Sequence[int]) -> list[Path]:
    """Writes the page and its figures; their paths."""
    r = Results(runs, seeds)
    figures = [
        (DOCS / "assets" / "bimt_study_gap.svg", gap_figure(r)),
        (DOCS / "assets" / "bimt_study_time.svg", time_figure(r)),
        (DOCS / "assets" / "bimt_study_cost.svg", cost_figure(r)),
    ]
    for path, figure in figures:
        save(figure, path)
    write_text(PAGE, page(r, seeds))
    return [PAGE, *(path for path, _ in figures)]


def page(r: Results, seeds: Sequence[int]) -> str:
    """The page as Markdown."""
    made = f"python benchmarks/bimt_study.py --data DIR --seeds {' '.join(map(str, seeds))}"
    parts = [
        "# Does BIMT make circuits easier to find?",
        f"Made by `{made}`, DIR being the folder of MNIST's four files. Nainani 2024 (arXiv 2401.03646) reports that "
        "circuits of models trained with BIMT lie closer to their model, are found faster and are sparser. Of that "
        "paper only the abstract and the opening could be read; that training takes more memory, mostly for swaps, and "
        "inference a little longer, stands in a summary by others. So the protocol below is ours, and no number of the "
        "paper is repeated here.",
        f"**Models.** A perceptron 784-100-100-10 with SiLU, squared error on one-hot targets, {STEPS:,} steps of 100 "
        f"of 50,000 images, {len(seeds)} seeds; everything else as published with BIMT, whose runs are four times as "
        "long. *L1, dearer* is L1 at three times the price: about as many weights as BIMT, so that what places add can "
        "be told from what a higher price adds. Swaps move places and no weight, so *swap only* must be *none*, and "
        "*L1 + swap* must be *L1*, in everything but the cost of training.",
        f"**Circuits.** Recursive activation patching of single edges, the method `recursive`, on "
        f"{LEARN} images held out of training; judged on up to {JUDGE:,} test images. Tasks: a three, and a digit with "
        "a loop (0, 6, 8, 9), each against the other digits; the metric is the mean logit of the one group minus that "
        "of the other. *Counterfactual*: outside the circuit every node sends what it sends on the nearest image of "
        "another digit. The *gap* is the mean |metric of the model - metric of the circuit|. Intervals are 95 %: of "
        "gaps by 1,000 bootstrap resamples of seeds and of pairs of images, of the rest Student's over seeds.",
        "## The claims",
        claims(r),
        SAID,
        "## Models",
        models(r),
    ]
    for task in TASKS:
        parts += [f"## Circuits for {task}, counterfactual", circuits(r, task)]
    parts += [
        "![Edges kept against gap](../assets/bimt_study_gap.svg)",
        "## The other references",
        f"Edges of the smallest circuit whose gap on the images searched on is at most {100 * FAITHFUL:.0f} % of the "
        "model's metric; and the gap at threshold 1e-4.",
        references(r),
        "## What searching costs",
        searching(r),
        "![Seconds of a search](../assets/bimt_study_time.svg)",
        "## What training and running cost",
        training(r),
        "![Seconds and memory of training](../assets/bimt_study_cost.svg)",
    ]
    return "\n\n".join(parts) + "\n"


# -- tables ----------------------------------------------------------------------------------------------------------


def models(r: Results) -> str:
    """What was trained."""
    rows = []
    for k in REGIMES:
        of = [r.models[k, s] for s in r.seeds]
        error, weights = [m["error"] for m in of], [m["weights"] for m in of]
        cells = [spread(statistics.mean(error), t_interval(error)), f"{100 * statistics.mean(weights) / EDGES:.1f}"]
        cells += [say(statistics.mean(r.of(k, task, MAIN, "metric"))) for task in TASKS]
        rows.append([k, *cells])
    return table(["regime", "test error, %", "weights left, %", *(f"metric, {t}" for t in TASKS)], rows)


def circuits(r: Results, task: str) -> str:
    """Circuits at two thresholds, at one size, and at one faithfulness."""
    head = ["regime"]
    for tau in SHOWN:
        head += [f"edges at {tau:g}", "of the model's, %", "gap"]
    head += [f"gap of the top {SIZE:,}", f"edges for a gap of {100 * FAITHFUL:.0f} %", "of the model's, %", "gap"]
    rows = []
    for k in REGIMES:
        row = [k]
        weights = statistics.mean(r.models[k, s]["weights"] for s in r.seeds)
        for i in [*map(tau_at, SHOWN), LAST]:
            if i == LAST:
                row.append(gap_cell(r.gap(k, task, MAIN, size_at(SIZE))))
            edges = r.of(k, task, MAIN, "edges", i)
            row += [count_cell(edges), say(100 * statistics.mean(edges) / weights), gap_cell(r.gap(k, task, MAIN, i))]
        rows.append(row)
    return table(head, rows)


def references(r: Results) -> str:
    """All references side by side."""
    rows = []
    for task in TASKS:
        for k in REGIMES:
            cells = [count_cell(r.of(k, task, ref, "edges", LAST)) for ref in REFERENCES]
            cells += [say(float(r.gap(k, task, ref, tau_at(1e-4)).mean())) for ref in REFERENCES]
            rows.append([task, k, *cells])
    head = ["task", "regime", *(f"edges, {ref}" for ref in REFERENCES), *(f"gap, {ref}" for ref in REFERENCES)]
    return table(head, rows)


def searching(r: Results) -> str:
    """Runs and seconds of a search."""
    rows = []
    for k in REGIMES:
        row = [k]
        for tau in TIMED:
            seconds = r.timed["search"][f"{tau:g}"]
            row += [say(statistics.mean(r.of(k, "three", MAIN, "runs", tau_at(tau)))), count_cell(seconds[k])]
            row.append(count_cell([a / b for a, b in zip(seconds[k], seconds["none"], strict=True)]))
        rows.append(row)
    head = ["regime"]
    for tau in TIMED:
        head += [f"patched runs at {tau:g}", "seconds", "times none"]
    fast = r.timed["fast"]
    said = (
        f"Task three, counterfactual, {LEARN} images, one core; processor seconds, regimes in turn. A *patched run* is "
        "one edge tested on all images. Runs are made as changes of rank one (`src/openwork/models/single.py`): the "
        f"784 edges into one neuron of the dense model take {1e3 * fast['fast']:.0f} ms so, and "
        f"{1e3 * fast['whole']:.0f} ms by whole forward passes, {fast['whole'] / fast['fast']:.0f} times as long."
    )
    return said + "\n\n" + table(head, rows)


def training(r: Results) -> str:
    """Seconds and memory of training, seconds of inference."""
    rows = []
    for k in REGIMES:
        step, grown, run = r.timed["step"], r.memory, r.timed["inference"]
        ratio = [a / b for a, b in zip(step[k], step["none"], strict=True)]
        row = [k, f"{1e3 * statistics.median(step[k]):.3f}", count_cell(ratio), f"{statistics.median(grown[k]):.1f}"]
        row += [f"{min(grown[k]):.1f} to {max(grown[k]):.1f}", f"{1e3 * statistics.median(run[k]):.2f}"]
        row.append(count_cell([a / b for a, b in zip(run[k], run["none"], strict=True)]))
        rows.append(row)
    head = ["regime", "ms per step", "times none", "memory, MiB", "least to most", "ms per 1,000 images", "times none"]
    said = (
        "Steps: blocks of 500 steps on random images with one relocation each, regimes in turn, median. Memory: by how "
        "much a process of its own grows at most in 101 steps with two relocations, median of 3. *none* is BIMT at "
        "price 0, which keeps distances that it does not use; *dropout* is as near to plain training. Inference: the "
        "dense matrices of the trained model, whatever is zero in them."
    )
    return said + "\n\n" + table(head, rows)


# -- claims ----------------------------------------------------------------------------------------------------------


def claims(r: Results) -> str:
    """Every claim of the paper's abstract beside what stands here."""
    others, won = [k for k in REGIMES if k != "BIMT"], dict.fromkeys(BESIDE, 0)
    rows: list[list[str]] = []

    def line(claim: str, measure: str, value: Callable[[str], float], against: Callable[[str], str]) -> None:
        values = {k: value(k) for k in REGIMES}
        best = min(others, key=lambda k: values[k])
        better = [k for k in others if values[k] < values["BIMT"]]
        holds = "holds" if not better else f"does not hold: {len(better)} of {len(others)} do better"
        ratios = [against(k) for k in BESIDE]
        for k in BESIDE:
            won[k] += values["BIMT"] < values[k]
        rows.append([claim, measure, say(values["BIMT"]), f"{say(values[best])} ({best})", *ratios, holds])

    def gap_ratio(k: str, task: str, i: int) -> str:
        a, b = r.gap("BIMT", task, MAIN, i), r.gap(k, task, MAIN, i)
        return spread(float(a.mean() / b.mean()), percentile_interval(drawn(a) / drawn(b)))

    def ratio(a: Sequence[float], b: Sequence[float]) -> str:
        return count_cell([x / y for x, y in zip(a, b, strict=True)])

    for task in TASKS:
        for name, i in (("threshold 1e-4", tau_at(1e-4)), (f"the top {SIZE:,} edges", size_at(SIZE))):
            line(
                "smallest gap", f"gap, {name}, {task}",
                lambda k, t=task, i=i: float(r.gap(k, t, MAIN, i).mean()), lambda k, t=task, i=i: gap_ratio(k, t, i),
            )  # fmt: skip
    for task in TASKS:
        for name, i in (("threshold 1e-4", tau_at(1e-4)), (f"a gap of {100 * FAITHFUL:.0f} %", LAST)):
            edges = {k: r.of(k, task, MAIN, "edges", i) for k in REGIMES}
            line(
                "sparsest circuits", f"edges at {name}, {task}",
                lambda k, e=edges: statistics.mean(e[k]), lambda k, e=edges: ratio(e["BIMT"], e[k]),
            )  # fmt: skip
    for tau in TIMED:
        seconds = r.timed["search"][f"{tau:g}"]
        line(
            "fastest discovery", f"seconds at {tau:g}, three",
            lambda k, s=seconds: geometric(s[k])[0], lambda k, s=seconds: ratio(s["BIMT"], s[k]),
        )  # fmt: skip
    wins = (
        f"Of these {len(rows)} measures of circuits BIMT does better than *none* in {won['none']}, than *L1 + local*, "
        f"which is BIMT without swaps, in {won['L1 + local']}, and than *{RIVAL}* in {won[RIVAL]}."
    )
    memory, step, run = r.memory, r.timed["step"], r.timed["inference"]
    swaps = statistics.median(memory["BIMT"]) - statistics.median(memory["L1 + local"])
    for claim, measure, of, scale in (
        ("more memory in training", "MiB", memory, 1.0),
        ("a little slower at inference", "ms per 1,000 images", run, 1e3),
    ):
        now, then = (scale * statistics.median(of[k]) for k in ("BIMT", "none"))
        ratios = [[a / b for a, b in zip(of["BIMT"], of[k], strict=True)] for k in BESIDE]
        holds = "holds" if geometric(ratios[0])[1][0] > 1 else "not told apart from none"
        rows.append([claim, measure, f"{now:.2f}", f"{then:.2f} (none)", *map(count_cell, ratios), holds])
    head = ["claim", "measure", "BIMT", "best other", *(f"BIMT / {k}" for k in BESIDE), "here"]
    times = geometric([a / b for a, b in zip(step["BIMT"], step["none"], strict=True)])[0]
    said = f"Swaps alone add {swaps:+.1f} MiB to *L1 + local*; a step of BIMT takes {times:.2f} times that of *none*."
    return "\n\n".join([table(head, rows), wins, control(r), said])


def control(r: Results) -> str:
    """Whether models that differ by swaps alone are the same, in their weights and in all that was measured."""
    said = []
    for a, b in (("swap only", "none"), ("L1 + swap", "L1")):
        weights = sum(r.found[a, s]["digest"] == r.found[b, s]["digest"] for s in r.seeds)
        same = sum(all(bool((x == r.gaps[b, s][k]).all()) for k, x in r.gaps[a, s].items()) for s in r.seeds)
        many = len(r.seeds)
        said.append(
            f"*{a}* has the weights of *{b}* in {weights} of {many} seeds, and its gap on every image in {same}."
        )
    return "**Controls.** " + " ".join(said)


# -- figures ---------------------------------------------------------------------------------------------------------


def look(k: str) -> dict[str, Any]:
    """Colour, marker and line of a regime: BIMT and its parts in full lines, the others dashed."""
    return {
        "color": HUES[k], "marker": MARKERS[list(HUES).index(k) % len(MARKERS)], "markersize": 4, "label": k,
        "linewidth": 2.2 if k == "BIMT" else 1.0, "linestyle": "-" if k in PARTS_OF | {"BIMT", RIVAL} else "--",
    }  # fmt: skip


def figure_of(columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure with panels in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def gap_figure(r: Results) -> Any:
    """Edges kept, as a share of the architecture's, against the gap, at every threshold."""
    figure, axes = figure_of(len(TASKS), 10, 4.2)
    for axis, task in zip(axes, TASKS, strict=True):
        for k in HUES:
            x = [
                statistics.geometric_mean([max(e, 1) / EDGES for e in r.of(k, task, MAIN, "edges", i)])
                for i in range(1, len(TAUS))
            ]
            y = [float(r.gap(k, task, MAIN, i).mean()) for i in range(1, len(TAUS))]
            axis.plot(x, y, **look(k))
        axis.set(xscale="log", yscale="log", xlabel="edges kept / 89,400", ylabel="gap, logits", title=task)
    axes[-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def time_figure(r: Results) -> Any:
    """Seconds of a search per regime."""
    figure, axes = figure_of(len(TIMED), 9, 3.8)
    for axis, tau in zip(axes, TIMED, strict=True):
        bars(axis, r.timed["search"][f"{tau:g}"], f"processor seconds of a search, threshold {tau:g}")
    return figure


def cost_figure(r: Results) -> Any:
    """Milliseconds per training step and peak memory per regime."""
    figure, axes = figure_of(2, 9, 3.8)
    bars(axes[0], {k: [1e3 * s for s in v] for k, v in r.timed["step"].items()}, "ms per training step")
    bars(axes[1], r.memory, "memory of training, MiB")
    return figure


def bars(axis: Any, values: Mapping[str, Sequence[float]], label: str) -> None:
    """Medians, with every single value as a dot."""
    names = list(values)
    axis.barh(
        names,
        [statistics.median(values[k]) for k in names],
        color=[HUES["BIMT"] if k == "BIMT" else "#BBBBBB" for k in names],
    )
    for i, k in enumerate(names):
        axis.plot(values[k], [i] * len(values[k]), "o", color="black", markersize=2)
    axis.invert_yaxis()
    axis.set_xlabel(label)


def save(figure: Any, path: Path) -> None:
    """Writes a figure whole, the same bytes for the same figure."""
    import matplotlib

    with matplotlib.rc_context({**STYLE}):  # pyright: ignore[reportArgumentType]
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    write_bytes(path, out.getvalue())
