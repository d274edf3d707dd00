"""One-minimal: nothing in the circuit can go on its own.

The weakest rung of the minimality ladder (no *single* node or edge can be removed; arXiv 2602.16823 calls it local).
It does not say that no smaller circuit exists.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from openwork import patching, stats
from openwork.circuit import UNDECIDED, Evidence
from openwork.tasks.task import Split
from openwork.verify.question import ALPHA, ROUNDING, Question, clusters, decide, measured

MOST_EDGES = 3_000  # circuits with more are tested node by node only
FULL_SPLIT = 400  # removals up to which the whole split is used, above it the fixed sample
LISTED = 50  # unneeded elements named in the details


def one_minimal(q: Question) -> Evidence:
    """Loss of the circuit after removing each kept node, and each kept edge of the blocks, alone.

    value            share of elements that are needed: the mean loss without them is higher; interval by bootstrap over
                     pairs of examples
    holds            every element is needed, and p <= 0.05
    fails            the upper end of the share's interval is below 1
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
    layout = patching.compact(q.model, q.circuit, q.reference)
    nodes, edges = _nodes(layout), _edges(layout)
    elements = nodes + (edges if len(edges) <= MOST_EDGES else [])
    split = q.verify if len(elements) <= FULL_SPLIT else q.sample
    base = measured(layout, split, q.model).losses
    bar = float(base.mean())
    if elements:
        after = np.array([_losses_without(q, layout, e, split) for e in elements])  # [elements, N]
        test = _test(after, base, q, split)
    else:
        after, test = np.ones((0, len(split))), _Test(float("nan"), stats.NO_INTERVAL, float("nan"), 0.0)
    means = after.mean(1)
    verdict = (
        decide(q, met=test.share == 1.0 and test.p <= ALPHA, excluded=test.interval[1] < 1.0) if elements else UNDECIDED
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
    """A node or an edge by name, and the entry of the layout's masks that is it."""

    name: str
    mask: Tensor
    at: tuple[int, ...]


def _nodes(layout: patching.Layout) -> list[_Element]:
    return [
        _Element(f"{site}:{int(node)}", layout.nodes[site], (i,))
        for site, index in layout.node_index.items()
        for i, node in enumerate(index)
    ]


def _edges(layout: patching.Layout) -> list[_Element]:
    """Every kept edge of the blocks."""
    out = []
    for name, live in layout.live().items():
        link, (dst, src) = layout.circuit.graph.link(name), layout.edge_index[name]
        for i, j in live.nonzero().tolist():
            out.append(_Element(f"{link.src}:{int(src[j])} -> {link.dst}:{int(dst[i])}", layout.edges[name], (i, j)))
    return out


def _losses_without(q: Question, layout: patching.Layout, element: _Element, split: Split) -> np.ndarray:
    """Losses [N] with one element removed; it is put back afterwards."""
    element.mask[element.at] = 0.0
    try:
        return measured(layout, split, q.model).losses
    finally:
        element.mask[element.at] = 1.0


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
    return _Test(share, stats.percentile_interval(drawn), float(p.max()), significant)


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
