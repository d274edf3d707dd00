"""Trying out single edges or nodes, one metric, on examples run in parts: what ACDC and exact patching share.

A model that offers `edge_runs(inputs, reference)` runs variants side by side and nothing twice; any other runs whole,
once per variant. Knows a patched run and examples. Does not know what is done with the values.

Shapes: K variants, N examples, V outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from openwork import patching
from openwork.circuit import Masks, leading_on
from openwork.graph import Graph
from openwork.patched_run import Part, PatchedRun
from openwork.patching import Reference
from openwork.tasks.metrics import Metric

Of = Literal["edges", "nodes"]
Entry = tuple[str, tuple[int, ...]]  # link or site, place in its mask
AT_ONCE = 4  # more variants fill no cache better and are in vain where an early one is refused


class Runs(Protocol):
    """Some inputs under one reference, with edges or nodes that go one after the other."""

    def begin(self, masks: Masks) -> Tensor:
        """Logits [N, V] with these masks, which are then the current ones."""
        ...

    def trial(self, changes: Sequence[Sequence[Entry]]) -> Tensor:
        """Logits [K, N, V] of variants, each the current masks without some entries."""
        ...

    def keep(self, k: int) -> None:
        """Makes variant k of the last trial the current one."""
        ...


class WholeRuns:
    """The general way: every variant is a patched run of the whole model."""

    def __init__(self, run: PatchedRun, part: Part, of: Of) -> None:
        self.run, self.part, self.of = run, part, of
        self.masks: dict[str, Tensor] = {}
        self.changes: Sequence[Sequence[Entry]] = ()

    def begin(self, masks: Masks) -> Tensor:
        self.masks = {n: m.float() for n, m in masks.items()}
        return self._logits(self.masks)

    def trial(self, changes: Sequence[Sequence[Entry]]) -> Tensor:
        self.changes = changes
        return torch.stack([self._logits(self._without(change)) for change in changes])

    def keep(self, k: int) -> None:
        self.masks = self._without(self.changes[k])

    def _without(self, change: Sequence[Entry]) -> dict[str, Tensor]:
        new = {n: self.masks[n].clone() for n, _ in change}
        for name, at in change:
            new[name][at] = 0.0
        return {**self.masks, **new}

    def _logits(self, masks: Mapping[str, Tensor]) -> Tensor:
        cut = {n: m for n, m in masks.items() if not bool(m.all())}
        nodes, edges = (cut, None) if self.of == "nodes" else (None, cut)
        return self.run.logits(self.part, nodes, edges)


class Trials:
    """A metric over all examples, of the current masks and of variants of them.

    parts    examples in parts, each with its reference
    at_once  how many variants are worth trying side by side; count: how many were tried
    masks    the current ones
    fresh    whether nothing is left of how these came about: to `begin` with them again would change no number. Runs of
             a model's own hold what was worked out under earlier masks, in another order of the same sums
    """

    def __init__(self, run: PatchedRun, parts: Sequence[Part], metric: Metric, of: Of) -> None:
        self.run, self.parts, self.metric, self.of = run, tuple(parts), metric, of
        self.n = sum(len(p.split) for p in self.parts)
        own = getattr(run.model, "edge_runs", None) if of == "edges" else None
        self._runs: list[Runs] = []
        self.at_once, self.count, self.fresh = 1, 0, True
        self.masks: dict[str, Tensor] = {}
        self._changes: Sequence[Sequence[Entry]] = ()
        for part in self.parts:
            mine = own(part.split.inputs, sent_by(part)) if own is not None else None
            self.at_once = 1 if mine is None else AT_ONCE
            self._runs.append(WholeRuns(run, part, of) if mine is None else mine)

    def begin(self, masks: Masks) -> float:
        """The metric of these masks, mean over the examples."""
        self.fresh, self.masks = True, {n: m.clone() for n, m in masks.items()}
        with torch.no_grad():
            return sum(self._sum(r.begin(masks), p) for r, p in zip(self._runs, self.parts, strict=True)) / self.n

    def trial(self, changes: Sequence[Sequence[Entry]], most: float = float("inf")) -> list[float]:
        """The metric of each variant, mean over the examples.

        most  the first variant is of no use above it: where it is bound to end there, an empty list comes back early
        """
        sums, self._changes = [0.0] * len(changes), changes
        bounded = self.metric.sign < 0  # what is better small, losses and divergences, is never negative
        self.count += len(changes)
        with torch.no_grad():
            for run, part in zip(self._runs, self.parts, strict=True):
                sums = [s + self._sum(x, part) for s, x in zip(sums, run.trial(changes), strict=True)]
                if bounded and sums[0] > most * self.n:
                    return []
        return [s / self.n for s in sums]

    def keep(self, k: int) -> None:
        """Makes variant k of the last trial the current masks."""
        for r in self._runs:
            r.keep(k)
            self.fresh &= isinstance(r, WholeRuns)
        for name, at in self._changes[k]:
            self.masks[name][at] = False

    def _sum(self, logits: Tensor, part: Part) -> float:
        whole = part.whole if self.metric.name == "kl" else None
        return float(self.metric.of(logits, part.split, whole).double().sum())


def sent_by(part: Part) -> Reference:
    """The reference of a part at the sites that links leave; worked out anew, so that no part has to hold it."""
    if part.other is None:
        return part.reference
    graph = patching.graph_of(part.model)
    return patching.record(part.model, part.other, [s.name for s in graph.sites if graph.out_of(s.name)])


def candidates(graph: Graph, support: Masks, of: Of) -> dict[str, Tensor]:
    """What may go: link -> bool [dst, src] of the edges of the account "block", or site -> bool [n], all prunable."""
    if of == "nodes":
        return {s.name: torch.ones(s.size, dtype=torch.bool) for s in graph.prunable}
    links = (e for e in graph.links if e.kind == "weight" and e.counts == "block")
    return {e.name: support[e.name].clone() for e in links}


def units(graph: Graph, masks: Masks, of: Of) -> Iterator[tuple[str, int, list[Entry]]]:
    """Site, node, and what is tried there in turn: from the output back, node by node; the latest source first.

    The order is fixed, so the same search takes the same way each time.
    """
    for s in reversed(graph.sites):
        if of == "nodes":
            if s.name in masks:
                yield from ((s.name, i, [(s.name, (i,))]) for i in range(s.size))
            continue
        into = [e.name for e in reversed(graph.into(s.name)) if e.name in masks]
        for i in range(s.size) if into else ():
            yield s.name, i, [(n, (i, j)) for n in into for j in masks[n][i].nonzero().flatten().flip(0).tolist()]


def leading(graph: Graph, support: Masks, masks: Masks, of: Of) -> dict[str, Tensor]:
    """Per site, which nodes still lead to the output: bool [n].

    A channel of a residual stream always does: norms feel its size even where nobody reads it.
    """
    summed = {e.src for e in graph.links if e.kind == "sum"}
    graph = replace(graph, sites=tuple(replace(s, prunable=s.name not in summed and s.prunable) for s in graph.sites))
    if of == "nodes":
        nodes = {s.name: masks.get(s.name, torch.ones(s.size, dtype=torch.bool)) for s in graph.sites}
        return leading_on(graph, support, nodes)
    return leading_on(graph, {**support, **masks})


__all__ = ["Entry", "Of", "Runs", "Trials", "WholeRuns", "candidates", "leading", "units"]
