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

What was measured so far may be put away; the way through the graph is gone again from it, without a run.

Knows a patched run and one split. Does not know the split that will judge the circuit, nor the kind of layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from openwork.circuit import Circuit, Scores
from openwork.discover.search import Progress, Search, SearchSettings
from openwork.discover.state import NOWHERE, Keeper, State
from openwork.graph import Link, Site
from openwork.patched_run import Part, PatchedRun
from openwork.single import Single, single
from openwork.tasks.metrics import METRICS, Metric
from openwork.tasks.metrics import metric as metric_of
from openwork.tasks.task import Split

Of = Literal["edges", "nodes"]
FOLLOWED = ("embedding", "unembedding")  # accounts of links that are passed through without a test
AT_ONCE = 256  # candidates that are tested between two states
TESTED = "recursion"  # the name under which what was measured is put away
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
    search: Search, settings: RecursiveSettings, progress: Progress | None = None, keeper: Keeper = NOWHERE
) -> Scores | Circuit:
    """The ranking of all edges or nodes, or where a threshold is set the circuit of those above it."""
    threshold = settings.threshold or 0.0
    found = explore(search.run, search.learn, metric_of(settings.metric), threshold, settings.of, progress, keeper)
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
    keeper: Keeper = NOWHERE,
) -> Explored:
    """Recursive activation patching on all examples of a split, see the head of this file.

    threshold   least mean |change| of the metric that is kept and followed
    progress    told how many candidates were tested, and how many there are at most
    keeper      where what was measured is put away now and then, and from where the recursion goes on
    UsageError where the reference lacks a site that is reached.
    """
    way = _Recursion(run, split, metric, threshold, progress, keeper)
    values = way.edges() if of == "edges" else way.nodes()
    origin = {"patched_runs": way.tested, "examples": len(split)}
    return Explored(Scores(run.graph, values, metric.unit, origin), way.tested)


class _Recursion:
    """A way through the graph from the output back.

    worth   of all nodes so far: site -> [n], 0 where nothing reached them yet
    found   worth of what was tested: link -> as its edges, or site -> [n]; 0 where nothing was. All else follows
    tested  candidates so far; step: how many groups of them this process has come to, of which `done` were in `found`
    """

    def __init__(
        self,
        run: PatchedRun,
        split: Split,
        metric: Metric,
        threshold: float,
        progress: Progress | None,
        keeper: Keeper,
    ) -> None:
        self.graph, self.threshold, self.progress, self.keeper = run.graph, threshold, progress, keeper
        self.support = {n: m.cpu() for n, m in run.support.items()}
        self.parts = [_Judged(part, run, metric) for part in run.parts(split)]
        self.examples, self.tested, self.step, self.done = len(split), 0, 0, 0
        self.worth = {s.name: torch.zeros(s.size, dtype=torch.float64) for s in run.graph.sites}
        for s in run.graph.sites:
            if s.kind == "output":
                self.worth[s.name].fill_(torch.inf)
        self.found: dict[str, Tensor] = {}

    def _begin(self, shapes: Mapping[str, tuple[int, ...]], most: int) -> None:
        """Nothing found yet, or what was put away. At most so many candidates are to be tested."""
        self.most = most
        self.found = {n: torch.zeros(shape, dtype=torch.float64) for n, shape in shapes.items()}
        if (saved := self.keeper.load(TESTED)) is not None:
            self.found = {n: saved.tensors[n] for n in shapes}
            self.tested, self.done = int(saved.data["tested"]), int(saved.data["done"])

    def _untested(self, ids: Tensor) -> Iterator[Tensor]:
        """Candidates, some at a time, but for those that are found already; each group is to be found before the next.

        Groups are the same in a search that goes on, which so comes to the same batches and the same numbers.
        """
        for some in ids.split(AT_ONCE):
            self.step += 1
            if self.step > self.done:
                yield some
                self.keeper.save(TESTED, lambda: State(self.found, {"tested": self.tested, "done": self.step}))
                if self.progress is not None:
                    self.progress(self.tested, self.most)

    def edges(self) -> dict[str, Tensor]:
        """Link -> worth of its edges; links that are only followed are left out."""
        tested = [e for e in self.graph.links if e.counts not in FOLLOWED]
        self._begin({e.name: tuple(e.shape) for e in tested}, sum(int(self.support[e.name].sum()) for e in tested))
        worth = self.found
        for site in self._sites_from_the_output():
            for e in self.graph.into(site.name):
                if e.counts in FOLLOWED:
                    self._follow(e)
                elif e.kind == "sum":
                    some = (self.support[e.name] & self._kept(e.dst)).nonzero().flatten()
                    for ids in self._untested(some):
                        worth[e.name][ids] = torch.minimum(self._effects(e, 0, ids), self.worth[e.dst][ids])
                    self._reach(e.src, worth[e.name])
                else:
                    for v in self._kept(e.dst).nonzero().flatten().tolist():
                        some = self.support[e.name][v].nonzero().flatten()
                        for ids in self._untested(some):
                            worth[e.name][v, ids] = self._effects(e, v, ids).clamp(max=float(self.worth[e.dst][v]))
                        self._reach(e.src, worth[e.name][v])
        return worth

    def nodes(self) -> dict[str, Tensor]:
        """Site -> worth of its nodes, for the sites that may be pruned."""
        self._begin({s.name: (s.size,) for s in self.graph.prunable}, sum(s.size for s in self.graph.prunable))
        for site in self._sites_from_the_output():
            if site.prunable:
                worth = self.found[site.name]
                for ids in self._untested(self._kept(site.name).nonzero().flatten()):
                    worth[ids] = torch.minimum(self._effects(site, 0, ids), self.worth[site.name][ids])
                self.worth[site.name] = worth
            for e in self.graph.into(site.name):
                self._follow(e)
        return self.found

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
