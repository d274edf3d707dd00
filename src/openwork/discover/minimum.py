"""The smallest sub-circuit that meets a target loss, proved by trying every smaller one.

A greedy trim ends where no single element can go; two together may still be able to. For a circuit of some twenty
elements the question has an exact answer: the cardinally minimal circuit (the top of the ladder of Hadad, Katz and
Bassan 2026, arXiv 2602.16823). The loss is *not* monotone in the set of edges (an edge may do harm that another one
repairs), so nothing is excluded because a larger set misses the target. What is sound:

* Subsets are tried by increasing size, so the first size with a hit is the minimum.
* Where nodes act on their own, an edge whose end leads on to no output changes nothing: a subset with such an edge
  computes what a smaller one computes, so only subsets without are laid out (backwards from the outputs, each element
  beside those that it leads to). Edges that no input reaches stay in question: under ablation they carry the
  reference, which is another constant than the one they carry when kept.
* Losses are positive, so a subset is given up once a part of the examples exceeds the target for all of them.

Knows a layout and a loss on one split. Does not know where the circuit came from, nor the kind of layer: whether nodes
act on their own is for the model to say, by offering `subsets` (see `models.folded`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from openwork import patching
from openwork.circuit import Circuit, Masks, induced_edges
from openwork.discover.state import NOWHERE, Keeper, State
from openwork.discover.trim import drop_dangling
from openwork.errors import UsageError, unknown
from openwork.tasks.task import Split, losses

ROUNDING = 1e-6  # nats; closer to the target than this, the patched run itself decides
SHOWN = 64  # minima that a result holds as circuits
PARTS = 4  # parts of the examples after which a subset can be given up
ROOM = 2_000_000  # numbers per layer in one run of many subsets
KINDS = ("edges", "nodes")
SUBSETS = "subsets"  # the name under which what was excluded so far is put away


@dataclass(frozen=True)
class Level:
    """What was excluded, or found, at one size.

    subsets     how many there are
    equivalent  those that compute what a smaller one computes, by their wiring
    evaluated   those that were run
    least_loss  the lowest loss among those, nats (inf where none was run)
    hits        those at or below the target
    """

    size: int
    subsets: int
    equivalent: int
    evaluated: int
    least_loss: float
    hits: int


@dataclass(frozen=True, eq=False)
class ExactResult:
    """A smallest sub-circuit and the account of all that were excluded.

    circuit     the minimum with the lowest loss; unproved, the circuit as it was given; None where nothing meets
    size        elements of `circuit` that were candidates; None without a circuit
    loss        of `circuit` on the split, nats per example (inf without one)
    proved      whether no smaller sub-circuit meets the target (without a circuit: whether none at all does)
    at_least    every sub-circuit with fewer candidates than this was excluded
    minima      sub-circuits of the least size that meet the target; a lower bound unless `counted`
    circuits    up to 64 of them, by loss
    evaluated   subsets that were run
    levels      the certificate: size by size, what was excluded and how
    """

    circuit: Circuit | None
    size: int | None
    loss: float
    proved: bool
    at_least: int
    minima: int
    counted: bool
    circuits: tuple[Circuit, ...]
    evaluated: int
    levels: tuple[Level, ...]
    sentence: str


def exact_minimum(
    model: nn.Module,
    circuit: Circuit,
    reference: patching.Reference,
    split: Split,
    target: float,
    of: Literal["edges", "nodes"] = "edges",
    limit: int = 20,
    budget: int = 1 << 20,
    keeper: Keeper = NOWHERE,
) -> ExactResult:
    """The smallest sub-circuit of `circuit` whose mean loss on `split` is at most `target` nats per example.

    reference  one value per node
    of         "edges": single edges of the blocks may go; "nodes": prunable nodes, each with its edges
    limit      most candidates that are accepted: there are 2 to that power subsets
    budget     subsets to run; where they do not suffice the result says how far the proof came (`at_least`)
    keeper     where what was excluded is put away now and then, and from where the proof goes on

    Biases and all that is no candidate stay. Raises UsageError for more than `limit` candidates, a target that is not
    a number or an unknown kind of element.
    """
    if of not in KINDS:
        raise unknown("kind of element", of, KINDS)
    if math.isnan(target):
        raise UsageError("the target is nan; give the highest mean loss in nats that still counts.")
    if len(split) == 0:
        raise UsageError(f'the split "{split.name}" is empty: there is no loss to meet a target.')
    uneven = [n for n, r in reference.items() if r.dim() != 1]
    if uneven:
        raise UsageError(f"the reference at {uneven[0]} has one value per input; an exact search needs one per node.")
    search = _Search(model, circuit, reference, split, of)
    if len(search.entries) > limit:
        raise UsageError(
            f"the circuit has {len(search.entries)} {of} to choose from; an exact search takes at most {limit}, since "
            f"every one doubles it. Trim the circuit first (openwork.trim), or raise `limit` and wait."
        )
    return search.result(target, budget, keeper)


class _Search:
    def __init__(
        self, model: nn.Module, circuit: Circuit, reference: patching.Reference, split: Split, of: str
    ) -> None:
        self.model, self.circuit, self.reference, self.split, self.of = model, circuit, reference, split, of
        graph = circuit.graph
        groups: dict[str, Tensor]
        if of == "edges":
            groups = {e.name: circuit.edges[e.name] for e in graph.links if e.kind == "weight" and e.counts == "block"}
        else:
            groups = {s.name: circuit.nodes[s.name] for s in graph.prunable}
        if of == "edges":  # an edge with an ablated end is none
            held = {s.name: circuit.nodes[s.name] | (not s.prunable) for s in graph.sites}
            whole = induced_edges(graph, held, circuit.edges)
            groups = {n: whole[n] for n in groups}
        self.entries = [(n, tuple(i)) for n, m in groups.items() for i in m.nonzero().tolist()]
        self.sets = _Wired(self) if _Wired.fits(self) else _Runs(self)

    def result(self, target: float, budget: int, keeper: Keeper) -> ExactResult:
        """Size by size until one has a hit, or the budget is spent."""
        levels: list[Level] = []
        hits: list[tuple[float, int, Circuit]] = []
        rows: list[Tensor] = []  # of the hits: which candidates are kept
        n, whole, size = len(self.entries), True, 0
        done, run, least = 0, 0, math.inf  # at one size: batches, subsets run, and the lowest loss
        if (saved := keeper.load(SUBSETS)) is not None:
            levels = [Level(**level) for level in saved.data["levels"]]
            done, run, least = (saved.data[name] for name in ("done", "run", "least"))
            rows = list(saved.tensors.get("hits", ()))
            hits = [(loss, i, self.sub_circuit(rows[i])) for i, loss in enumerate(saved.data["hits"])]

        def state() -> State:
            told = {"levels": [asdict(level) for level in levels], "done": done, "run": run, "least": least}
            return State({"hits": torch.stack(rows)} if rows else {}, told | {"hits": [loss for loss, _, _ in hits]})

        evaluated = sum(level.evaluated for level in levels)
        self.sets.prepare(budget)
        for size in range(len(levels), n + 1):
            if size > self.sets.complete:
                whole = False
                break
            for kept in itertools.islice(self.sets.of_size(size), done, None):
                if evaluated + run + len(kept) > budget:
                    whole = False
                    break
                run += len(kept)
                loss = self.sets.losses(kept, max(target + ROUNDING, least))
                least = min(least, float(loss.min()))
                for i in (loss <= target + ROUNDING).nonzero().flatten().tolist():
                    found = self.sub_circuit(kept[i])
                    exact = float(loss[i])
                    if exact > target - ROUNDING:
                        exact = self.run(found)
                    if exact <= target:
                        hits.append((exact, len(hits), found))
                        rows.append(kept[i].clone())
                done += 1
                keeper.save(SUBSETS, state)
            equivalent = self.sets.equivalent(size)
            evaluated += run
            levels.append(Level(size, math.comb(n, size), equivalent, run, least, len(hits)))
            done, run, least = 0, 0, math.inf
            if hits or not whole:
                break
        hits.sort(key=lambda hit: hit[:2])
        return self.told(hits, levels, target, whole, size if hits or not whole else n + 1)

    def told(
        self, hits: list[tuple[float, int, Circuit]], levels: list[Level], target: float, whole: bool, at_least: int
    ) -> ExactResult:
        """The result in values and in words."""
        evaluated, n = sum(level.evaluated for level in levels), len(self.entries)
        same = sum(level.equivalent for level in levels)
        best: Circuit | None = hits[0][2] if hits else None
        proved, size = bool(hits) or whole, at_least if hits else None
        if best is None and not proved and self.run(self.circuit) <= target:
            best, size = self.circuit, n
        loss = self.run(best) if best is not None else math.inf
        work = f"{evaluated} subsets were run and {same} more compute the same as a smaller one"
        if hits:
            more = "" if whole else "at least "
            sentence = (
                f"{size} of {n} {self.of} suffice for a loss of {loss:.4f} nats (target {target:g}) on "
                f"{len(self.split)} examples and no fewer do; {more}{len(hits)} such circuits; {work}."
            )
        elif proved:
            sentence = f"None of the {2**n} subsets of {n} {self.of} meets the target of {target:g} nats; {work}."
        else:
            known = f"{n} suffice" if best is not None else f"none of up to {n} is known to suffice"
            sentence = (
                f"Fewer than {at_least} of {n} {self.of} do not suffice for {target:g} nats; {known}; the budget "
                f"ended there: {work}."
            )
        circuits = tuple(found for _, _, found in hits[:SHOWN])
        return ExactResult(
            best, size, loss, proved, at_least, len(hits), whole, circuits, evaluated, tuple(levels), sentence
        )

    def run(self, circuit: Circuit) -> float:
        """Mean loss of the patched run, nats."""
        with torch.no_grad():
            return float(
                losses(patching.run(self.model, self.split.inputs, circuit, self.reference), self.split).mean()
            )

    def sub_circuit(self, kept: Tensor) -> Circuit:
        """The circuit of some candidates, bool [k]; nodes that lead nowhere go where that changes nothing."""
        graph = self.circuit.graph
        nodes = {n: m.clone() for n, m in self.circuit.nodes.items()}
        edges = {n: m.clone() for n, m in self.circuit.edges.items()}
        for keep, (name, at) in zip(kept.tolist(), self.entries, strict=True):
            (edges if self.of == "edges" else nodes)[name][at] &= keep
        sub = Circuit(graph, nodes, induced_edges(graph, nodes, edges), self.circuit.origin)
        return drop_dangling(sub) if isinstance(self.sets, _Wired) else sub


class _Wired:
    """Subsets where nodes act on their own: many in one run, and only those that no smaller one equals."""

    def __init__(self, search: _Search) -> None:
        self.search, self.n = search, len(search.split)
        self.layers = search.model.subsets(search.circuit, search.reference)  # type: ignore[operator]
        graph, nodes = search.circuit.graph, search.circuit.nodes
        place = {s.name: (nodes[s.name].cumsum(0) - 1).tolist() for s in graph.sites}
        place[graph.sites[-1].name] = list(range(graph.sites[-1].size))
        self.at: dict[str, list[tuple[int, int, int]]] = {}  # link or site -> (candidate, its place in the layout)
        for j, (name, index) in enumerate(search.entries):
            if search.of == "edges":
                link = graph.link(name)
                where = (j, place[link.dst][index[0]], place[link.src][index[1]])
            else:
                where = (j, place[name][index[0]], 0)
            self.at.setdefault(name, []).append(where)
        widest = max(max(m.shape) for m in self.layers.edges.values())
        self.batch = max(1, ROOM // (max(1, widest) * -(-self.n // PARTS)))

    @staticmethod
    def fits(search: _Search) -> bool:
        """Whether the model offers such runs."""
        offer = getattr(search.model, "subsets", None)
        return offer is not None and offer(search.circuit, search.reference) is not None

    def masks(self, kept: Tensor) -> dict[str, Tensor]:
        """Link -> bool [S, d, s] of candidates bool [S, k]."""
        out = {n: m.expand(len(kept), *m.shape).clone() for n, m in self.layers.edges.items()}
        graph = self.search.circuit.graph
        for name, places in self.at.items():
            j, first, second = (torch.tensor(column) for column in zip(*places, strict=True))
            if self.search.of == "edges":
                out[name][:, first, second] = kept[:, j]
            else:
                for e in graph.out_of(name):
                    out[e.name][:, :, first] &= kept[:, None, j]
        return out

    def leads_to(self) -> list[list[int] | None]:
        """Per candidate, the candidates of which one has to be kept for it to matter; None where it always does."""
        search, graph = self.search, self.search.circuit.graph
        last = graph.sites[-1].name
        out: list[list[int] | None] = []
        for name, index in search.entries:
            if search.of == "edges":
                dst = graph.link(name).dst
                onward = [
                    j for j, (n, at) in enumerate(search.entries) if graph.link(n).src == dst and at[1] == index[0]
                ]
                out.append(None if dst == last else onward)
            else:
                read = {e.dst: search.circuit.edges[e.name][:, index[0]] for e in graph.out_of(name)}
                onward = [j for j, (n, at) in enumerate(search.entries) if n in read and bool(read[n][at])]
                out.append(None if bool(read.get(last, torch.zeros(1)).any()) else onward)
        return out

    def prepare(self, budget: int) -> None:
        """Lays out, by size, the subsets that no smaller one equals; beyond `budget` of them the largest go."""
        k = len(self.search.entries)
        self.sizes = [torch.zeros(int(size == 0), k, dtype=torch.bool) for size in range(k + 1)]
        self.complete = k  # the greatest size of which all are here
        for j, onward in sorted(enumerate(self.leads_to()), reverse=True):
            for size in reversed(range(self.complete)):  # from large to small: none is met twice
                below = self.sizes[size]
                matters = below if onward is None else below[below[:, onward].any(1)]
                grown = matters.clone()
                grown[:, j] = True
                self.sizes[size + 1] = torch.cat([self.sizes[size + 1], grown])
            while sum(map(len, self.sizes[: self.complete + 1])) > max(budget, 1):
                self.sizes[self.complete] = self.sizes[self.complete][:0]
                self.complete -= 1

    def of_size(self, size: int) -> Iterator[Tensor]:
        """Subsets of that size that no smaller one equals, bool [up to batch, k] at a time."""
        yield from (part for part in self.sizes[size].split(self.batch) if len(part))

    def equivalent(self, size: int) -> int:
        """How many subsets of that size compute what a smaller one computes."""
        return math.comb(len(self.search.entries), size) - len(self.sizes[size])

    def losses(self, kept: Tensor, enough: float) -> Tensor:
        """Mean loss [S], nats; inf where a part of the examples shows that it exceeds `enough`."""
        total = torch.zeros(len(kept), dtype=torch.float64)
        left = torch.arange(len(kept))
        masks = self.masks(kept)
        split, done = self.search.split, 0
        for rows in torch.arange(self.n).chunk(PARTS):
            if not len(left):
                break
            with torch.no_grad():
                logits = self.layers(split.inputs[0][rows], {n: m[left] for n, m in masks.items()})
            choices = torch.cat([split.answer[rows, None], split.wrong[rows]], 1).expand(len(left), -1, -1)
            c = logits.gather(2, choices)
            total[left] += (c.logsumexp(2) - c[:, :, 0]).sum(1)
            done += len(rows)
            if done < self.n:
                left = left[total[left] <= enough * self.n]
        out = torch.full_like(total, math.inf)
        out[left] = total[left] / self.n
        return out


class _Runs:
    """Subsets of any model, one exact run each: no wiring makes two of them equal where norms feel every node."""

    def __init__(self, search: _Search) -> None:
        self.search = search
        self.layout = patching.compact(search.model, search.circuit, search.reference)
        self.masks: Masks = self.layout.edges if search.of == "edges" else self.layout.nodes
        index = self.layout.edge_index if search.of == "edges" else {n: (i,) for n, i in self.layout.node_index.items()}
        place = {n: tuple({int(v): p for p, v in enumerate(ids)} for ids in axes) for n, axes in index.items()}
        self.at = [(n, tuple(place[n][a][v] for a, v in enumerate(i))) for n, i in search.entries]

    def prepare(self, budget: int) -> None:
        """Subsets are made as they are asked for, of every size."""
        self.complete = len(self.at)

    def of_size(self, size: int) -> Iterator[Tensor]:
        """Subsets of that size, bool [1, k] at a time, in lexicographic order."""
        for chosen in itertools.combinations(range(len(self.at)), size):
            kept = torch.zeros(1, len(self.at), dtype=torch.bool)
            kept[0, list(chosen)] = True
            yield kept

    def equivalent(self, size: int) -> int:
        """None that could be told."""
        return 0

    def losses(self, kept: Tensor, enough: float) -> Tensor:
        """Mean loss [S], nats; inf where a part of the examples shows that it exceeds `enough`."""
        split, out = self.search.split, torch.full((len(kept),), math.inf, dtype=torch.float64)
        for row, keep in enumerate(kept.float()):
            for (name, at), value in zip(self.at, keep, strict=True):
                self.masks[name][at] = value
            total = 0.0
            with torch.no_grad():
                for _, part in split.buckets(PARTS):
                    total += float(losses(self.layout(*part.inputs), part).sum())
                    if total > enough * len(split):
                        break
                else:
                    out[row] = total / len(split)
        for name, at in self.at:
            self.masks[name][at] = 1.0
        return out
