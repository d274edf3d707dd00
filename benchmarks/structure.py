"""Modules in weights: what finds them, what trains them, and what both cost.

    OMP_NUM_THREADS=1 python benchmarks/structure.py [--seeds 0 1 2] [--runs runs/modularity] [--workers N]

Writes docs/results/modularity.md: planted modules found by spectral clustering and by the lightest edges of a min-cut
tree; the hops of trees over all neurons; digits under every regime of modules; CPU seconds. A perceptron
64-128-128-128-10, 1,500 steps. Prices and `tau` were chosen on the discover split; the page reports the verify split.
Runs that are done are not made again. Times are CPU seconds (`time.process_time`), medians of five.
"""

from __future__ import annotations

import argparse
import copy
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from quotes import table
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from openwork import structure, threads
from openwork.files import read_json, write_text
from openwork.gomory_hu import cut_tree
from openwork.models import MLPConfig, build
from openwork.patching import weight_of
from openwork.progress import Progress
from openwork.store import load_model
from openwork.structure import Labels, Partition, Wiring
from openwork.tasks import digits_data
from openwork.training import TrainSettings, held_out_accuracy, held_out_loss, make_regime, train
from openwork.workers import Job, map_jobs

PAGE = Path(__file__).parents[1] / "docs" / "results" / "modularity.md"
CONFIG = MLPConfig(inputs=64, hidden=(128, 128, 128), outputs=10)
MODULES = 4
STEPS = 1500
SHUFFLES = 20
PUBLISHED = {"loss": "ratio", "partition": "blocks", "tau": 0, "begin": 0}
REGIMES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "L1": ("l1", {"price": 1e-4}),
    "C, blocks, price 1": ("clusterability", {**PUBLISHED, "price": 1}),
    "C, blocks, price 20 (published)": ("clusterability", {**PUBLISHED, "price": 20}),
    "n-cut, price 0.02": ("clusterability", {"tau": 0, "price": 0.02}),
    "n-cut": ("clusterability", {"tau": 0}),
    "pull on what crosses (tau)": ("clusterability", {"price": 0}),
    "n-cut and tau: `clusterability`": ("clusterability", {}),
    "the same from the first step, `begin=0`": ("clusterability", {"begin": 0}),
    "`clusterability` and `hard_cut`": ("clusterability", {"hard_cut": True}),
    "tree over modules: `gomory_hu`": ("gomory_hu", {}),
    "tree over neurons: `form=proposed`": ("gomory_hu", {"form": "proposed"}),
}


def main() -> None:
    """Trains what is missing, measures, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/modularity"))
    parser.add_argument("--workers", type=int, default=None)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keys = [(name, seed) for name in REGIMES for seed in asked.seeds]
    jobs = [Job(f"{name} {seed}", figures, (name, seed, asked.runs)) for name, seed in keys]
    with Progress() as progress:
        found = dict(zip(keys, map_jobs(jobs, asked.workers or threads.available_cores(), progress), strict=True))
    write_text(PAGE, page(found, asked.seeds, asked.runs))
    print(PAGE)


def page(found: dict[tuple[str, int], dict[str, Any]], seeds: Sequence[int], runs: Path) -> str:
    """The page as Markdown."""
    of = structure.wiring(build(CONFIG).graph())  # type: ignore[operator]
    all_of = sum(e.shape[0] * e.shape[1] for e in of.links)
    images = sum(len(y) for _, y in digits_data().held_out("verify"))
    parts = [
        "# Modules in weights",
        f"Made by `OMP_NUM_THREADS=1 python benchmarks/structure.py --seeds {' '.join(map(str, seeds))}`. Means over "
        "seeds, ranges in brackets.",
        "## Training for modules",
        f"Digits, a perceptron 64-128-128-128-10, {STEPS} steps, {MODULES} modules of its hidden neurons, {all_of:,} "
        "weights between hidden layers of which by chance a quarter lies inside modules (C 0.25). Where "
        "nothing else is "
        "said, settings are the defaults. They were chosen on the discover split; accuracy (%) and loss are those of "
        f"the verify split ({images} images: one is {100 / images:.1f} points). *Cut*: with every weight between "
        f"modules deleted. *z*: n-cut beside that of weights shuffled within each matrix and partitioned anew "
        f"({SHUFFLES} times), nonzero values only or with their positions. *Stayed*: hidden neurons that end in the "
        "module to which the fresh weights would assign them, after the best renaming. A model that was "
        "trained without "
        "a partition is judged by the spectral one of its final weights.",
        digits(found, seeds),
        "* Accuracies differ by less than their ranges. What differs is whether the modules work alone: dense and L1 "
        "models break when the weights between modules go; with the published loss, n-cut, `tau` or the tree over "
        "modules nothing happens, or next to nothing.\n"
        "* A high C does not say so. At a low price (n-cut, 0.02) C looks nearly perfect, and still the "
        "weights between "
        "modules carry answers.\n"
        "* A ratio of weights makes what crosses small, not zero: nearly all edges between modules are left. "
        "Only `tau` "
        "makes zeros.\n"
        "* Modules are made, not found. With `begin=0` every neuron stays where the noise of the fresh weights put it, "
        "and contiguous blocks serve as well; on this task neither is worse than modules of weights that have trained "
        "for a tenth of the run.\n"
        "* z depends on the null. Where the zeros are what makes modules, values that change places among the nonzero "
        "ones leave the modules as they are, and z of values stays small; it is a dash where nothing "
        "crosses in some seed.",
        "## Trees over all neurons are stars",
        "The first proposal for such a loss was a Gomory-Hu tree over all neurons, whose edges are to become "
        "light. The "
        "summed weight of the tree is the sum of |w| times hop(u, v), the number of tree edges between u and "
        "v. On fresh "
        "and on dense weights hop is 2 almost everywhere, inside modules and between them, so the loss is an "
        "L1 price of "
        "twice the rate. Training with it loosens the star a little, and ends where L1 ends (above: C, cut). Hops tell "
        "modules apart only where training has parted them already. *Parts* are what remains without the "
        f"{MODULES - 1} lightest tree edges; one value per seed where they differ.",
        hops(seeds, runs),
        "## Planted modules",
        "Graphs of four layers, a share of whose edges joins different modules; adjusted Rand index with the planted "
        "modules (1: found, 0: chance), mean over seeds. Minimum cuts are not balanced, so light tree edges part "
        "single neurons until hardly anything crosses. *Not regularised* is the textbook's spectral clustering, which "
        "fails where nothing crosses at all.",
        planted_table(seeds),
        "## Time",
        "Spectral partition of a planted graph (density 5 %, 20 % crossing, 8 modules), and the tree over k modules.",
        times(),
    ]
    return "\n\n".join(parts) + "\n"


# -- digits ------------------------------------------------------------------------------------------------------------


def figures(name: str, seed: int, runs: Path) -> dict[str, Any]:
    """What one run came to (a job)."""
    torch.set_num_threads(1)
    regime, options = REGIMES[name]
    out = folder(runs, name, seed)
    model, data, cpu = build(CONFIG, seed), digits_data(seed), torch.device("cpu")
    fresh = spectral_of(model)
    settings = TrainSettings(steps=STEPS, seed=seed, eval_every=STEPS, checkpoint_every=STEPS)
    train(model, data, (make_regime(regime, options),), settings, out)
    of = structure.wiring(model.graph())  # type: ignore[operator]
    weights = structure.weights(model, of)
    sizes = {n: structure.size(w.detach()) for n, w in weights.items()}
    noted = read_json(out / "model" / "config.json")["extra"].get(regime, {}).get("modules")
    labels = of.labels({s: torch.tensor(m) for s, m in noted.items()}) if noted else spectral_of(model)
    partition = of.partition(labels)
    cut = without_crossing(model, of, partition)
    z = [
        structure.against_shuffles(of, sizes, MODULES, null=null, shuffles=SHUFFLES, seed=seed).z
        for null in ("values", "positions")
    ]
    return {
        "acc": held_out_accuracy(model, data, cpu),
        "cut acc": held_out_accuracy(cut, data, cpu),
        "loss": held_out_loss(model, data, cpu, split="verify"),
        "cut loss": held_out_loss(cut, data, cpu, split="verify"),
        "C": float(structure.mean_clusterability(of, weights, partition).detach()),
        "ncut": float(structure.ncut(structure.contraction(of, sizes, partition, MODULES))),
        "z values": z[0],
        "z positions": z[1],
        "cross": structure.cross_edges(of, sizes, partition),
        "stayed": float((structure.matched(labels, fresh, MODULES) == fresh).mean()) if "blocks" not in name else None,
    }


def folder(runs: Path, name: str, seed: int) -> Path:
    """Where a run is."""
    return runs / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-{seed}"


def spectral_of(model: torch.nn.Module) -> Labels:
    """The spectral partition of a model's weights."""
    return structure.spectral(weight_graph(model), MODULES)


def weight_graph(model: torch.nn.Module) -> sparse.csr_array:
    """A model's weights as an adjacency."""
    of = structure.wiring(model.graph())  # type: ignore[operator]
    return structure.adjacency(of, {n: structure.size(w) for n, w in structure.weights(model, of).items()})


def without_crossing(model: torch.nn.Module, of: Wiring, partition: Partition) -> torch.nn.Module:
    """A copy without the weights between modules."""
    cut = copy.deepcopy(model)
    with torch.no_grad():
        for e in of.links:
            crossing = structure.crossing(partition[e.dst], partition[e.src])
            weight_of(cut.get_submodule(e.module)).masked_fill_(crossing, 0)
    return cut


def digits(found: dict[tuple[str, int], dict[str, Any]], seeds: Sequence[int]) -> str:
    """One row per regime."""
    head = [
        "regime",
        "accuracy",
        "cut",
        "loss (nats)",
        "cut",
        "C",
        "n-cut",
        "z, values",
        "z, positions",
        "edges between modules",
        "stayed",
    ]
    shown: dict[str, Callable[[float], str]] = {
        "acc": lambda x: f"{100 * x:.1f}", "cut acc": lambda x: f"{100 * x:.1f}",
        "loss": lambda x: f"{x:.2f}", "cut loss": lambda x: f"{x:.2f}",
        "C": lambda x: f"{x:.3f}", "ncut": lambda x: f"{x:.2f}",
        "z values": lambda x: f"{x:.0f}", "z positions": lambda x: f"{x:.0f}",
        "cross": lambda x: f"{x:,.0f}", "stayed": lambda x: f"{100 * x:.0f} %",
    }  # fmt: skip
    rows = []
    for name in REGIMES:
        cells = []
        for key, say in shown.items():
            values = [found[name, seed][key] for seed in seeds]
            known = [v for v in values if v is not None and not math.isnan(v)]
            cells.append(spread(known, say) if len(known) == len(values) else "-")
        rows.append([name, *cells])
    return table(head, rows)


def spread(values: Sequence[float], say: Callable[[float], str]) -> str:
    """The mean, and the range where there is one."""
    low, high, middle = say(min(values)), say(max(values)), say(statistics.mean(values))
    return middle if low == high else f"{middle} ({low} to {high})"


# -- trees -------------------------------------------------------------------------------------------------------------


def hops(seeds: Sequence[int], runs: Path) -> str:
    """One row per network: hops of its tree."""
    head = [
        "network",
        "mean hop inside",
        "mean hop between",
        "edges with hop 2",
        "tree weight / sum of weights",
        "nodes at the hub",
        "parts",
        "CPU s",
    ]
    rows = []
    for name in ("fresh weights", "dense", "n-cut and tau: `clusterability`", "tree over neurons: `form=proposed`"):
        cells: list[list[str]] = []
        for seed in seeds:
            if name == "fresh weights":
                model = build(CONFIG, seed)
            else:
                model = load_model(folder(runs, name, seed) / "model")
            a = weight_graph(model)
            begin = time.process_time()
            tree = cut_tree(a)
            seconds = time.process_time() - begin
            u, v = a.nonzero()
            apart = (labels := structure.spectral(a, MODULES))[u] != labels[v]
            hop = tree.hops[u, v]
            parts = sorted(np.bincount(tree.lightest(MODULES)).tolist(), reverse=True)
            hub = int(np.bincount(tree.parent[1:]).max())
            between = f"{hop[apart].mean():.3f}" if apart.any() else "none"
            cells.append([
                f"{hop[~apart].mean():.3f}", between, f"{100 * (hop == 2).mean():.1f} %",
                f"{2 * tree.total / a.sum():.3f}", str(hub), "+".join(map(str, parts)), f"{seconds:.1f}",
            ])  # fmt: skip
        rows.append([name, *(" / ".join(dict.fromkeys(column)) for column in zip(*cells, strict=True))])
    return table(head, rows)


# -- planted modules ---------------------------------------------------------------------------------------------------


def planted(n: int, density: float, k: int, cross: float, seed: int) -> tuple[sparse.csr_array, Labels]:
    """A graph of four layers with k modules, a share `cross` of whose edges joins two of them; and the modules."""
    rng, m = np.random.default_rng(seed), n // 4
    truth = np.tile(np.arange(m) * k // m, 4)
    rows, columns = [], []
    for layer in range(3):
        pairs = rng.permutation(m * m)
        apart = truth[pairs // m] != truth[pairs % m]
        edges = round(density * m * m)
        many = round(cross * edges)
        chosen = np.concatenate([pairs[apart][:many], pairs[~apart][: edges - many]])
        rows.append(layer * m + chosen // m)
        columns.append((layer + 1) * m + chosen % m)
    at = (np.concatenate(rows), np.concatenate(columns))
    half = sparse.coo_array((np.abs(rng.normal(size=len(at[0]))), at), shape=(n, n)).tocsr()
    return (half + half.T).tocsr(), truth


def planted_table(seeds: Sequence[int]) -> str:
    """One row per share of crossing edges."""
    rows = []
    for n, density, k in ((400, 0.1, 4), (800, 0.05, 8)):
        for cross in (0.4, 0.3, 0.2, 0.1, 0.01, 0.005, 0.001, 0.0):
            spectral, plain, lightest = [], [], []
            for seed in seeds:
                graph, truth = planted(n, density, k, cross, seed)
                spectral.append(adjusted_rand_score(truth, structure.spectral(graph, k)))
                with mock.patch.object(structure, "REGULAR", 0.0):
                    plain.append(adjusted_rand_score(truth, structure.spectral(graph, k)))
                lightest.append(adjusted_rand_score(truth, cut_tree(graph).lightest(k)))
            cells = [f"{abs(round(statistics.mean(x), 2)):.2f}" for x in (spectral, plain, lightest)]
            rows.append([f"{n}, {100 * density:g} %, {k}", f"{100 * cross:g} %", *cells])
    return table(["nodes, density, modules", "crossing", "spectral", "not regularised", "lightest tree edges"], rows)


# -- time --------------------------------------------------------------------------------------------------------------


def times() -> str:
    """CPU seconds of a refresh."""
    rows = []
    for n in (1_000, 2_000, 5_000, 10_000):
        graph, _ = planted(n, 0.05, 8, 0.2, 0)
        rows.append(
            [
                f"spectral partition, {n:,} nodes, {graph.nnz // 2:,} edges",
                f"{seconds(lambda g=graph: structure.spectral(g, 8)):.3f}",
            ]
        )
    for k in (4, 8, 64):
        between = np.random.default_rng(0).random((k, k))
        between += between.T
        rows.append([f"tree over {k} modules with its hops", f"{seconds(lambda b=between: cut_tree(b).hops):.4f}"])
    return table(["what", "CPU s"], rows)


def seconds(call: Callable[[], Any]) -> float:
    """Median CPU seconds of five calls."""
    call()
    taken = []
    for _ in range(5):
        begin = time.process_time()
        call()
        taken.append(time.process_time() - begin)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
