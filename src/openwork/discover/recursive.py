"""Recursive activation patching: from the output back, keep what matters and look at what feeds it.

    1  every output is kept
    2  for each kept node, each of its incoming edges alone carries its reference (what its source sends on another
       input, or a mean, or zero) while the rest of the model runs as it is; the edge is kept where
       mean over examples of |change of the metric| > threshold
    3  the sources of kept edges are kept nodes: go on with them

As described by Conmy et al. 2023 (arXiv 2304.14997, section 2.3) and studied by Nainani 2024 (arXiv 2401.03646). In the
form of nodes a candidate is a whole node, with all that it sends. Queries and keys have no edge to what they steer:
they are reached where a value channel of their group is.

One pass is a ranking for every threshold. A node is reached at a threshold only if some edge out of it is kept, so

    worth of an edge = min(its own effect, worth of its reader),   worth of a node = max over its edges, of outputs inf

and the edges worth more than t are exactly those that the recursion at threshold t keeps. Without a threshold the whole
graph is explored and the decision is left to the search's target; with one, only what is reached is, which is cheaper.

Effects are those of one edge at a time: edges that stand in for each other are each worth little, and what the edges
left out do together is not measured. That is the search's `judge`, afterwards. Residual sums are edges like others; the
matrices of embedding and unembedding (a weight per token) are followed, not tested.

Knows a patched run and one split. Does not know the split that will judge the circuit, nor the kind of layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from openwork.circuit import Circuit, Scores
from openwork.discover.search import Progress, Search, SearchSettings
from openwork.graph import Link, Site
from openwork.patched_run import Part, PatchedRun
from openwork.single import Single, single
from openwork.tasks.metrics import METRICS, Metric
from openwork.tasks.metrics import metric as metric_of
from openwork.tasks.task import Split

Of = Literal["edges", "nodes"]
FOLLOWED = ("embedding", "unembedding")  # accounts of links that are passed through without a test
LOGIT_DIFFERENCE = METRICS["logit_difference"]


class RecursiveSettings(SearchSettings):
    """Settings of the search."""

    of: Of = Field("edges", description="what is patched, one at a time")
    metric: str = Field("logit_difference", description="whose change counts: a name of openwork.tasks.metrics.METRICS")
    threshold: float | None = Field(
        None, ge=0, description="least effect that is kept, in the metric's unit; none: what the target needs"
    )

    @field_validator("metric")
    @classmethod
    def _metric_exists(cls, name: str) -> str:
        return metric_of(name).name


@dataclass(frozen=True)
class Explored:
    """What a recursion found.

    scores   what every edge or node is worth, in the metric's unit; 0 where it was not reached
    tested   candidates that were patched: each is one run of the whole model on all examples
    """

    scores: Scores
    tested: int


def recursive_patching(
    search: Search, settings: RecursiveSettings, progress: Progress | None = None
) -> Scores | Circuit:
    """The ranking of all edges or nodes, or where a threshold is set the circuit of those above it."""
    threshold = settings.threshold or 0.0
    found = explore(search.run, search.learn, metric_of(settings.metric), threshold, settings.of, progress)
    if settings.threshold is None:
        return found.scores
    kept, run = found.scores.above(threshold), search.run
    circuit = found.scores.circuit(kept, run.support, reached=run.constants_are_lost)
    return search.tidy(circuit) if settings.of == "edges" else circuit


def explore(
    run: PatchedRun,
    split: Split,
    metric: Metric = LOGIT_DIFFERENCE,
    threshold: float = 0.0,
    of: Of = "edges",
    progress: Progress | None = None,
) -> Explored:
    """Recursive activation patching on all examples of a split, see the head of this file.

    threshold   least mean |change| of the metric that is kept and followed
    progress    told how many candidates were tested, and how many there are at most
    UsageError where the reference lacks a site that is reached.
    """
    way = _Recursion(run, split, metric, threshold, progress)
    values = way.edges() if of == "edges" else way.nodes()
    origin = {"patched_runs": way.tested, "examples": len(split)}
    return Explored(Scores(run.graph, values, metric.unit, origin), way.tested)


class _Recursion:
    """The worth of all nodes so far: site -> [n], 0 where nothing reached them yet."""

    def __init__(
        self, run: PatchedRun, split: Split, metric: Metric, threshold: float, progress: Progress | None
    ) -> None:
        self.graph, self.threshold, self.progress = run.graph, threshold, progress
        self.support = {n: m.cpu() for n, m in run.support.items()}
        self.parts = [_Judged(part, run, metric) for part in run.parts(split)]
        self.examples, self.tested = len(split), 0
        self.worth = {s.name: torch.zeros(s.size, dtype=torch.float64) for s in run.graph.sites}
        for s in run.graph.sites:
            if s.kind == "output":
                self.worth[s.name].fill_(torch.inf)

    def edges(self) -> dict[str, Tensor]:
        """Link -> worth of its edges; links that are only followed are left out."""
        tested = [e for e in self.graph.links if e.counts not in FOLLOWED]
        most = sum(int(self.support[e.name].sum()) for e in tested)
        worth = {e.name: torch.zeros(e.shape, dtype=torch.float64) for e in tested}
        for site in self._sites_from_the_output():
            for e in self.graph.into(site.name):
                if e.counts in FOLLOWED:
                    self._follow(e)
                elif e.kind == "sum":
                    some = (self.support[e.name] & self._kept(e.dst)).nonzero().flatten()
                    worth[e.name][some] = torch.minimum(self._effects(e, 0, some), self.worth[e.dst][some])
                    self._reach(e.src, worth[e.name])
                    self._report(most)
                else:
                    for v in self._kept(e.dst).nonzero().flatten().tolist():
                        some = self.support[e.name][v].nonzero().flatten()
                        worth[e.name][v, some] = self._effects(e, v, some).clamp(max=float(self.worth[e.dst][v]))
                        self._reach(e.src, worth[e.name][v])
                        self._report(most)
        return worth

    def nodes(self) -> dict[str, Tensor]:
        """Site -> worth of its nodes, for the sites that may be pruned."""
        most = sum(s.size for s in self.graph.prunable)
        for site in self._sites_from_the_output():
            if site.prunable:
                some = self._kept(site.name).nonzero().flatten()
                worth = torch.zeros(site.size, dtype=torch.float64)
                worth[some] = torch.minimum(self._effects(site, 0, some), self.worth[site.name][some])
                self.worth[site.name] = worth
                self._report(most)
            for e in self.graph.into(site.name):
                self._follow(e)
        return {s.name: self.worth[s.name] for s in self.graph.prunable}

    def _sites_from_the_output(self) -> Iterator[Site]:
        """Sites after all that read them; the worth of their nodes is then final."""
        for site in reversed(self.graph.sites):
            if site.steers:
                group = self.worth[site.steers].view(-1, site.group).amax(1)
                self._reach(site.name, group.repeat_interleave(site.group))
            yield site

    def _kept(self, site: str) -> Tensor:
        return self.worth[site] > self.threshold

    def _reach(self, site: str, worth: Tensor) -> None:
        self.worth[site] = torch.maximum(self.worth[site], worth)

    def _follow(self, e: Link) -> None:
        """Passes the worth of a link's readers on to its sources."""
        readers = torch.where(self._kept(e.dst), self.worth[e.dst], 0.0)
        there = self.support[e.name]
        if e.kind == "sum":
            self._reach(e.src, torch.where(there, readers, 0.0))
        else:
            self._reach(e.src, torch.where(there, readers[:, None], 0.0).amax(0))

    def _effects(self, what: Link | Site, dst: int, ids: Tensor) -> Tensor:
        """Mean |change of the metric| over all examples [C] of edges or nodes."""
        self.tested += len(ids)
        total = torch.zeros(len(ids), dtype=torch.float64)
        for part in self.parts if len(ids) else ():
            total += part.changes(what, dst, ids)
        return total / self.examples

    def _report(self, most: int) -> None:
        if self.progress is not None:
            self.progress(self.tested, most)


class _Judged:
    """Some examples that are run together, and what the whole model scores on them."""

    def __init__(self, part: Part, run: PatchedRun, metric: Metric) -> None:
        self.part, self.metric = part, metric
        self.runs: Single = single(run.model, part.split.inputs, part.reference)
        with torch.no_grad():
            self.whole = metric.of(part.whole, part.split, part.whole)  # [K]
        self._many: dict[int, tuple[Split, Tensor]] = {}

    def changes(self, what: Link | Site, dst: int, ids: Tensor) -> Tensor:
        """Sum over these examples of |change of the metric|, [C] on the CPU."""
        out = []
        for some in ids.split(max(1, self.runs.rows // len(self.part.index))):
            here = some.to(self.whole.device)
            with torch.no_grad():
                edges = isinstance(what, Link)
                logits = self.runs.edges(what.name, dst, here) if edges else self.runs.nodes(what.name, here)
                split, whole = self._repeated(len(some))
                values = self.metric.of(logits.flatten(0, 1), split, whole).view(len(some), -1)
                out.append((values - self.whole).abs().double().sum(1).cpu())
        return torch.cat(out)

    def _repeated(self, times: int) -> tuple[Split, Tensor]:
        """The answers so many times over (without the inputs, which no metric looks at), and the whole's logits."""
        if times not in self._many:
            s, n = self.part.split, times * len(self.part.split)
            answer, wrong, pair = (x.repeat(times, *[1] * (x.dim() - 1)) for x in (s.answer, s.wrong, s.pair))
            many = Split(s.name, (), answer, wrong, pair, ("",) * n)
            self._many = {times: (many, self.part.whole.repeat(times, 1))}
        return self._many[times]


__all__ = ["Explored", "RecursiveSettings", "explore", "recursive_patching"]
