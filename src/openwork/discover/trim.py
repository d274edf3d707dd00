"""Trimming a circuit until no single node or edge can go: what is left is one-minimal on the examples it was given.

    1  dangling nodes: those from which no path leads on to the output
    2  single edges (where asked), then nodes: the cheapest first by the gradient of the loss with respect to their
       masks, in groups that grow where they can go and shrink where they cannot
    3  again until a pass over each removes nothing

The gradient only orders the candidates; every removal is decided by an exact run at or below the target.
Knows a layout and a loss on one split. Does not know where the circuit came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from openwork.circuit import Circuit, induced_edges, leading_on
from openwork.discover.state import NOWHERE, Keeper, State, circuit_of, masks_of
from openwork.patched_run import Part, PatchedRun
from openwork.patching import Layout, Reference, compact
from openwork.tasks.task import Split, losses

Entry = tuple[str, tuple[int, ...]]  # site or link, place in its mask


@dataclass(frozen=True)
class Trimmed:
    """A trimmed circuit, its loss on the examples it was trimmed on, and what was tried.

    one_minimal   whether every remaining element was tried alone in the last pass and none could go
    runs          exact runs it took
    """

    circuit: Circuit
    loss: float
    one_minimal: bool
    runs: int


def trim(
    model: nn.Module,
    circuit: Circuit,
    reference: Reference | str,
    split: Split,
    target: float,
    edges: bool = True,
    patience: int = 64,
    exhaustive: int = 500,
    progress: Callable[[str], None] | None = None,
    rounds: int = 0,
    keep: Circuit | None = None,
    seed: int = 0,
    keeper: Keeper = NOWHERE,
) -> Trimmed:
    """The circuit without what it does not need to stay at or below `target` nats on `split`.

    reference   what is outside sends: one value per node, or "counterfactual" or "resample" (dealt out by `seed`)
    edges       whether single edges may go; False keeps it a circuit of nodes with all their edges
    patience    in circuits of more than `exhaustive` nodes and edges a pass ends after this many failures in a row
                (then `one_minimal` is False): there are thousands of edges, and the cheap ones stand first
    rounds      end after so many rounds over each kind; 0: when a round removes nothing
    keep        what is in this circuit is not tried and stays (then `one_minimal` is False)
    keeper      where the trim is put away now and then, and from where it goes on
    """
    state = _Trim(PatchedRun(model, reference, seed), split, target, patience, exhaustive)
    if keep is not None:
        masks = {**keep.nodes, **keep.edges}
        state.fixed = {(n, tuple(at)) for n, m in masks.items() for at in m.nonzero().tolist()}
    kinds = ("edges", "nodes") if edges else ("nodes",)
    name = f"trim {kinds[0]}"
    if (saved := keeper.load(name)) is not None:
        here, state.runs = _standing(saved, circuit), int(saved.data["runs"])
    else:
        here = _Standing(state.without_dangling(circuit), 0, None, frozenset(), 0, (), ())

    def put_away(now: _Standing) -> None:
        keeper.save(name, lambda: _saved(now, state.runs))

    while len(here.quiet) < len(kinds) and (not rounds or here.turn < rounds * len(kinds)):
        kind = kinds[here.turn % len(kinds)]
        before = here.before or _size(here.circuit)
        here = replace(here, before=before)
        circuit, tried = state.pass_over(here, kind, put_away)
        circuit = state.without_dangling(circuit)
        if progress is not None:
            counts = circuit.counts()
            progress(f"{counts['nodes']} nodes, {counts['edges']} edges after {state.runs} runs")
        same = _size(circuit) == before
        here = _Standing(
            circuit, here.turn + 1, None, frozenset(), 0, (*here.quiet, kind) if same else (),
            tuple(sorted({*(k for k in here.tried if k != kind), *([kind] if tried else [])})),
        )  # fmt: skip
        put_away(here)
    loss = state.loss(state.lay_out(here.circuit))
    proved = keep is None and len(here.quiet) == len(kinds) == len(here.tried)
    return Trimmed(here.circuit, loss, proved, state.runs)


def _size(circuit: Circuit) -> tuple[int, int]:
    counts = circuit.counts()
    return counts["nodes"], counts["edges"]


@dataclass(frozen=True)
class _Standing:
    """Where a trim stands: at the beginning of a pass, where it lays out anew within one, or after a failure.

    turn    number of passes done
    before  nodes and edges when this pass began, None before it has begun
    stay    elements that were tried alone in this pass and stay
    failed  how many of them in a row, the last ones
    quiet   kinds whose last passes, in a row, removed nothing
    tried   kinds of which the last pass tried every survivor alone
    """

    circuit: Circuit
    turn: int
    before: tuple[int, int] | None
    stay: frozenset[Entry]
    failed: int
    quiet: tuple[str, ...]
    tried: tuple[str, ...]


def _saved(here: _Standing, runs: int) -> State:
    rest = {n: getattr(here, n) for n in ("turn", "before", "failed", "quiet", "tried")}
    stay = sorted([n, *at] for n, at in here.stay)
    return State(masks_of(here.circuit), {**rest, "stay": stay, "runs": runs})


def _standing(state: State, like: Circuit) -> _Standing:
    d = state.data
    return _Standing(
        circuit_of(like.graph, state.tensors, like.origin), d["turn"], tuple(d["before"]) if d["before"] else None,
        frozenset((n, tuple(at)) for n, *at in d["stay"]), d["failed"], tuple(d["quiet"]), tuple(d["tried"]),
    )  # fmt: skip


class _Trim:
    def __init__(self, run: PatchedRun, split: Split, target: float, patience: int, exhaustive: int) -> None:
        self.run, self.target = run, target
        self.patience, self.exhaustive = patience, exhaustive
        self.fixed: set[Entry] = set()
        self.parts, self.n, self.runs = run.parts(split, 4), len(split), 0

    def lay_out(self, circuit: Circuit) -> Layout:
        if self.run.fixed is not None:
            return compact(self.run.model, circuit, self.run.fixed)
        return Layout(self.run.model, circuit, self.parts[0].reference)

    def loss(self, layout: Layout) -> float:
        self.runs += 1
        with torch.no_grad():
            return float(self._total(layout)) / self.n

    def _losses(self, layout: Layout, part: Part) -> Tensor:
        """Sum of the losses of some examples; a reference that belongs to the examples is theirs."""
        if part.other is not None:
            layout.reference = part.reference
        return losses(layout(*part.split.inputs), part.split).sum()

    def _total(self, layout: Layout) -> Tensor:
        return torch.stack([self._losses(layout, part) for part in self.parts]).sum()

    def pass_over(self, here: _Standing, kind: str, put_away: Callable[[_Standing], None]) -> tuple[Circuit, bool]:
        """One pass over all nodes or edges, and whether every survivor was tried alone.

        The cheapest go first, many at a time: the group doubles where it can go and halves where it cannot, down to a
        single element, which then stays. Laid out and ordered anew whenever a fifth is gone, and before giving up on
        one: each removal changes what the others are worth, and the order is cheap beside the runs that it saves.
        """
        stay: set[Entry] = set(here.stay)
        within = bool(stay) or _size(here.circuit) != here.before
        layout, masks, left = self._begin(here.circuit, kind, stay)
        group, failed, gone = max(1, len(left) // (16 if within else 4)), here.failed, 0
        if failed:  # put away where a single element had just failed
            group = 1
        while left:
            if self._go(layout, masks, left[:group]):
                left, gone, failed = left[group:], gone + group, 0
                group *= 2
            elif group > 1:
                group = min(group, len(left)) // 2
            elif not gone:
                stay.add(_element(layout, kind, left.pop(0)))
                failed += 1
                if failed >= self.patience and left and sum(_size(layout.circuit)) > self.exhaustive:
                    return layout.to_circuit(), False
                put_away(replace(here, stay=frozenset(stay), failed=failed))
            if gone > len(left) // 4 or (gone and group <= 1):
                here = replace(here, circuit=layout.to_circuit(), stay=frozenset(stay), failed=0)
                put_away(here)
                layout, masks, left = self._begin(here.circuit, kind, stay)
                group, gone = max(1, len(left) // 16), 0
        return layout.to_circuit(), True

    def _begin(self, circuit: Circuit, kind: str, stay: set[Entry]) -> tuple[Layout, dict[str, Tensor], list[Entry]]:
        """A layout, its masks of that kind, and the elements of the circuit but those that stay, cheapest first."""
        layout = self.lay_out(circuit)
        masks = layout.nodes if kind == "nodes" else layout.edges
        live = {n: torch.ones_like(m, dtype=torch.bool) for n, m in masks.items()} if kind == "nodes" else layout.live()
        left = [(n, tuple(i)) for n, m in live.items() for i in m.nonzero().tolist()]
        if left:
            cost = self._attribution(layout, masks)
            left.sort(key=lambda e: float(cost[e[0]][e[1]]))
        if stay or self.fixed:
            left = [e for e in left if (x := _element(layout, kind, e)) not in stay and x not in self.fixed]
        return layout, masks, left

    def _go(self, layout: Layout, masks: dict[str, Tensor], entries: list[Entry]) -> bool:
        """Whether these can go together; if not, they are back."""
        for name, at in entries:
            masks[name][at] = 0.0
        if self._meets_target(layout):
            return True
        for name, at in entries:
            masks[name][at] = 1.0
        return False

    def _meets_target(self, layout: Layout) -> bool:
        """Whether the mean loss is at most the target; losses are positive, so a part of the examples can refuse."""
        self.runs += 1
        total = 0.0
        with torch.no_grad():
            for part in self.parts:
                total += float(self._losses(layout, part))
                if total > self.target * self.n:
                    return False
        return True

    def _attribution(self, layout: Layout, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """First-order estimate of what removing each entry adds to the loss: minus the gradient at mask 1."""
        for m in masks.values():
            m.requires_grad_(True)
        try:
            grads = torch.autograd.grad(self._total(layout), list(masks.values()), allow_unused=True)
        finally:
            for m in masks.values():
                m.requires_grad_(False)
        return {n: -g if g is not None else torch.zeros_like(m) for (n, m), g in zip(masks.items(), grads, strict=True)}

    def without_dangling(self, circuit: Circuit) -> Circuit:
        """The circuit without nodes that lead nowhere, if it still meets the target (norms can feel them)."""
        trial = drop_dangling(circuit)
        if trial == circuit:
            return circuit
        return trial if self.loss(self.lay_out(trial)) <= self.target else circuit


def _element(layout: Layout, kind: str, entry: Entry) -> Entry:
    """The entry of a layout's mask as the element of the graph that it is, whatever the layout."""
    name, at = entry
    index = (layout.node_index[name],) if kind == "nodes" else layout.edge_index[name]
    return name, tuple(int(ids[i]) for ids, i in zip(index, at, strict=True))


def drop_dangling(circuit: Circuit) -> Circuit:
    """The circuit without prunable nodes from which no path of kept edges leads on to the output."""
    graph = circuit.graph
    alive = leading_on(graph, circuit.edges, circuit.nodes)
    return Circuit(graph, alive, induced_edges(graph, alive, circuit.edges), circuit.origin)
