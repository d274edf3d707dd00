"""BIMT's relocation: the closed form against evaluating the network's cost for every exchange of two nodes.

    python benchmarks/relocation.py [--sizes 784 100 100 10] [--top 30] [--rounds 5] [--seed 0] [--inputs]

Prints a Markdown table: medians over interleaved rounds, and the peak of memory during a first call. Both sides make
the same greedy search without gradients: hidden nodes and outputs move, with --inputs the inputs too, and the `--top`
most important nodes of a layer look for a partner; weights at initialisation, two dimensions, the mean per layer.
"Distances made again" evaluates as the code published with BIMT does; "distances kept" spares it that. Exit code 1 if
the costs that the two sides find differ by more than 1e-6.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from quotes import table

from openwork import threads  # noqa: F401  before torch
from openwork.models import MLPConfig, build
from openwork.training.relocation import Places, Tied, Wires, distances, importance, relocate, start, wire_length

Way = Callable[[Sequence[Wires], Places, Sequence[Tied], int], Places]
CALLS = 20  # of the fast ways in a round


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[784, 100, 100, 10])
    parser.add_argument("--top", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", action="store_true", help="inputs move too")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wires, places = problem(asked.sizes, asked.seed)
    sites = [Tied((site,)) for site in places.spots][0 if asked.inputs else 1 :]
    memory: dict[str, str] = {}
    found: dict[str, Places] = {}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for name, way in WAYS.items():
        way(*problem([3, 4, 2], 0), [Tied(("1",)), Tied(("2",))], 2)  # loads what it needs
        memory[name] = peak(lambda n=name: found.update({n: WAYS[n](wires, places, sites, asked.top)}))
    for _ in range(asked.rounds):
        for name, way in WAYS.items():
            calls = 1 if name.startswith("every") else CALLS
            begin = time.perf_counter()
            for _ in range(calls):
                way(wires, places, sites, asked.top)
            seconds[name].append((time.perf_counter() - begin) / calls)
    middle = {name: statistics.median(s) for name, s in seconds.items()}
    costs = {name: wire_length(wires, at) for name, at in found.items()}
    candidates = sum(min(asked.top, n) * n for n in asked.sizes[0 if asked.inputs else 1 :])
    print(f"{'-'.join(map(str, asked.sizes))}, {candidates} candidates, cost before {wire_length(wires, places):.7f}\n")
    rows = [
        [name, f"{1e3 * middle[name]:.2f}", f"{min(s) * 1e3:.2f} to {max(s) * 1e3:.2f}",
         f"{middle[SLOW] / middle[name]:.0f}", memory[name], f"{costs[name]:.7f}"]
        for name, s in seconds.items()
    ]  # fmt: skip
    head = ["way", "median, ms", "range, ms", "times faster", "extra memory, MB", "cost after"]
    print(table(head, rows))
    off = max(abs(costs[name] - costs[SLOW]) for name in WAYS if name != BEST)
    print(f"\nLargest difference between the costs of the greedy ways: {off:.1e}.")
    sys.exit(off > 1e-6)


def problem(sizes: Sequence[int], seed: int) -> tuple[list[Wires], Places]:
    """A perceptron's weights at initialisation as wires, each node on the spot of its number."""
    model = build(MLPConfig(inputs=sizes[0], hidden=tuple(sizes[1:-1]), outputs=sizes[-1]), seed)
    weights = [p.detach().abs() for p in model.parameters() if p.dim() == 2]
    wires = [Wires(f"{i}", f"{i + 1}", w, 1 / w.numel()) for i, w in enumerate(weights)]
    return wires, start({f"{i}": n for i, n in enumerate(sizes)}, 2, torch.device("cpu"))


@torch.no_grad()
def every_swap(wires: Sequence[Wires], places: Places, sites: Sequence[Tied], top: int, keep: bool) -> Places:
    """The greedy search by evaluation: rows and columns change places, the whole network's cost is taken, and back."""
    sizes = [w.size.clone() for w in wires]
    spots = [places.of(w.src) for w in wires] + [places.of(wires[-1].dst)]
    kept = [distances(b, a) for a, b in zip(spots[:-1], spots[1:], strict=True)]

    def cost() -> float:
        far = kept if keep else [distances(b, a) for a, b in zip(spots[:-1], spots[1:], strict=True)]
        return float(torch.stack([(s * d).mean() for s, d in zip(sizes, far, strict=True)]).sum())

    def exchange(layer: int, p: int, q: int) -> None:
        if layer > 0:
            sizes[layer - 1][[p, q]] = sizes[layer - 1][[q, p]]
        if layer < len(sizes):
            sizes[layer][:, [p, q]] = sizes[layer][:, [q, p]]

    for tied in sites:
        (site,) = tied.sites
        layer = list(places.spots).index(site)
        where = places.at[site].tolist()  # node -> place
        rank = torch.sort(importance(tied, wires), descending=True, stable=True).indices[:top]
        for node in rank.tolist():
            p, tried = where[node], []
            for q in range(len(where)):
                exchange(layer, p, q)
                tried.append(cost())
                exchange(layer, p, q)
            best = min(range(len(where)), key=lambda q, p=p, tried=tried: (tried[q], q != p))
            exchange(layer, p, best)
            other = where.index(best)
            where[node], where[other] = best, p
        places = places.moved(tied, torch.tensor(where))
    return places


SLOW, BEST = "every swap, distances made again", "closed form, assignment"
WAYS: dict[str, Way] = {
    "closed form, swaps": lambda *a: relocate(*a[:3], "swaps", a[3]),
    BEST: lambda *a: relocate(*a[:3], "assignment"),
    "every swap, distances kept": lambda *a: every_swap(*a, True),
    SLOW: lambda *a: every_swap(*a, False),
}


def peak(call: Callable[[], object]) -> str:
    """Megabytes by which the process grew at most during a call; "-" where the system does not tell."""
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        before = read_kb(status, "VmRSS")
        call()
        return f"{(read_kb(status, 'VmHWM') - before) / 1024:.1f}"
    except OSError:
        call()
        return "-"


def read_kb(status: Path, name: str) -> int:
    """A line of /proc/self/status, in kB."""
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text())
    if found is None:
        raise OSError(f"{status} has no {name}")
    return int(found[1])


if __name__ == "__main__":
    main()
