"""One-minimal: nothing in the circuit can go on its own.

The weakest rung of the minimality ladder (no *single* node or edge can be removed; arXiv 2602.16823 calls it local).
It does not say that no smaller circuit exists.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from openwork import patching, stats
from openwork.circuit import UNDECIDED, Evidence
from openwork.tasks.task import Split
from openwork.verify.question import ALPHA, ROUNDING, Question, clusters, decide, judged, measured

MOST_EDGES = 3_000  # circuits with more are tested node by node only
FULL_SPLIT = 400  # removals up to which the whole split is used, above it the fixed sample
LISTED = 50  # unneeded elements named in the details


def one_minimal(q: Question) -> Evidence:
    """Loss of the circuit after removing each kept node, and each kept edge of the blocks, alone.

    value            share of elements that are needed: the mean loss without them is higher; interval by bootstrap over
                     pairs of examples, from the lower end to the upper of the percentile and the basic one (Davison &
                     Hinkley 1997, sections 5.2 and 5.3): redrawn examples add noise to hundreds of close calls, which
                     makes the first too low; turned round, the second is too low where shares can only be 1 or less
    holds            every element is needed, and p <= 0.05
    fails            some element is not needed, and the upper end of the share's interval is below 1
    too little data  fewer than 32 examples; nothing to remove; or neither of the above
    null             an element that does nothing (a node outside the circuit): its removal changes no loss. p is the
                     largest one-sided paired-t p over the elements, valid for "all of them matter" as an
                     intersection-union test (Berger 1982). `share_significant` counts the elements whose removal raises
                     the loss at 0.05 after Holm's correction.

    The bar is the circuit's own loss, so that a circuit is not called wasteful for doing better here than the target
    that it was trimmed to on other data; how many removals would keep the target is counted beside it. Removed nodes
    and edges carry the reference. Edges of embedding and unembedding, and sums over the residual stream, are not
    removed one by one. Circuits with more than 3,000 edges are tested node by node; with more than 400 removals, on the
    fixed sample of examples. Differences below 1e-6 nats are rounding and count as none.
    """
    started = time.perf_counter()
    layout = _Layouts(q, q.verify)
    nodes, edges = _nodes(layout.first), _edges(layout.first)
    elements = nodes + (edges if len(edges) <= MOST_EDGES else [])
    split = q.verify if len(elements) <= FULL_SPLIT else q.sample
    layout = layout if split is q.verify or not isinstance(q.reference, str) else _Layouts(q, split)
    base = layout.losses(split)
    bar = float(base.mean())
    if elements:
        after = np.array([layout.losses(split, e) for e in elements])  # [elements, N]
        test = _test(after, base, q, split)
    else:
        after, test = np.ones((0, len(split))), _Test(float("nan"), stats.NO_INTERVAL, float("nan"), 0.0)
    means = after.mean(1)
    verdict = (
        decide(q, met=test.share == 1.0 and test.p <= ALPHA, excluded=test.share < 1.0 and test.interval[1] < 1.0)
        if elements
        else UNDECIDED
    )
    unneeded = [elements[i].name for i in np.flatnonzero(means <= bar + ROUNDING)]
    return Evidence(
        claim="one_minimal",
        verdict=verdict,
        sentence=_sentence(elements, len(nodes), means, bar, q.target, test),
        value=test.share,
        unit="share of nodes and edges that are needed",
        interval=test.interval,
        null="removing a node that does nothing, such as any outside the circuit, changes no loss",
        null_value=0.0,
        p=test.p,
        n=len(split),
        split=q.verify.name,
        seed=q.seed,
        seconds=time.perf_counter() - started,
        details={
            "circuit_loss": bar,
            "target": q.target,
            "could_go_at_target": int((means <= q.target + ROUNDING).sum()),
            "nodes_tested": len(nodes),
            "edges_tested": len(elements) - len(nodes),
            "edges_not_tested": len(nodes) + len(edges) - len(elements),
            "unneeded_count": len(unneeded),
            "unneeded": unneeded[:LISTED],
            "share_significant": test.share_significant,
            "least_loss_without": float(means.min()) if elements else None,
        },
    )


@dataclass(frozen=True)
class _Element:
    """A node or an edge by name, and the entry of a layout's masks (of its nodes or edges, by key) that is it."""

    name: str
    kind: Literal["nodes", "edges"]
    key: str
    at: tuple[int, ...]


class _Layouts:
    """The circuit laid out to be run many times: once, or part by part where examples have a reference each."""

    def __init__(self, q: Question, split: Split) -> None:
        self.q = q
        parts = q.parts(split) if isinstance(q.reference, str) else []
        self.parts = [(p, patching.Layout(q.model, q.circuit, p.reference)) for p in parts]
        self.first = (
            self.parts[0][1] if isinstance(q.reference, str) else patching.compact(q.model, q.circuit, q.reference)
        )

    def losses(self, split: Split, without: _Element | None = None) -> np.ndarray:
        """Losses [N] of the circuit, with one element removed while it runs."""
        layouts = [layout for _, layout in self.parts] or [self.first]
        masks = [getattr(layout, without.kind)[without.key] for layout in layouts] if without is not None else []
        at = without.at if without is not None else ()
        for mask in masks:
            mask[at] = 0.0
        try:
            if not self.parts:
                return measured(self.first, split, self.q.model).losses
            with torch.no_grad():
                return judged(split, ((p.index, p.split, layout(*p.split.inputs)) for p, layout in self.parts)).losses
        finally:
            for mask in masks:
                mask[at] = 1.0


def _nodes(layout: patching.Layout) -> list[_Element]:
    return [
        _Element(f"{site}:{int(node)}", "nodes", site, (i,))
        for site, index in layout.node_index.items()
        for i, node in enumerate(index)
    ]


def _edges(layout: patching.Layout) -> list[_Element]:
    """Every kept edge of the blocks."""
    out = []
    for name, live in layout.live().items():
        link, (dst, src) = layout.circuit.graph.link(name), layout.edge_index[name]
        for i, j in live.nonzero().tolist():
            out.append(_Element(f"{link.src}:{int(src[j])} -> {link.dst}:{int(dst[i])}", "edges", name, (i, j)))
    return out


@dataclass(frozen=True)
class _Test:
    """What the removals say together: see the docstring of `one_minimal`."""

    share: float
    interval: stats.Interval
    p: float
    share_significant: float


def _test(after: np.ndarray, base: np.ndarray, q: Question, split: Split) -> _Test:
    """Share of needed elements, its interval, and the tests of the single rises.

    after, base  [elements, N] losses without each element, and [N] of the circuit
    """
    groups = clusters(split)
    rise = after - base
    p = stats.paired_t_p(np.where(np.abs(rise) <= ROUNDING, 0.0, rise), groups)
    weights = stats.bootstrap_weights(len(base), groups, seed=q.seed)  # [draws, N]
    drawn = (after @ weights.T > weights @ base + ROUNDING).mean(0)
    share = float((after.mean(1) > base.mean() + ROUNDING).mean())
    significant = float((stats.holm(p) <= ALPHA).mean())
    low, high = stats.percentile_interval(drawn)
    interval = (max(0.0, min(low, 2 * share - high)), min(1.0, max(high, 2 * share - low)))
    return _Test(share, interval, float(p.max()), significant)


def _sentence(elements: list[_Element], n_nodes: int, means: np.ndarray, bar: float, target: float, test: _Test) -> str:
    if not elements:
        return "The circuit keeps no node and no edge that could be removed, so there is nothing to test."
    edges = f" and {len(elements) - n_nodes} edges" if len(elements) > n_nodes else ""
    what = f"{len(elements)} elements kept ({n_nodes} nodes{edges})"
    least = int(means.argmin())
    raised = round(test.share_significant * len(elements))
    spare = round((1 - test.share) * len(elements))
    first = (
        f"Removing any one of the {what} raises the loss of {bar:.3f} nats"
        if test.share == 1.0
        else f"{spare} of the {what} could go one at a time without raising the loss of {bar:.3f} nats"
    )
    return (
        f"{first} (least for {elements[least].name}, {means[least]:.3f} without it); {raised} of {len(elements)} "
        f"removals raise it significantly, and {int((means <= target + ROUNDING).sum())} would keep the target of "
        f"{target:g}."
    )
