"""The reason for one decision of a model, as plain data: what its circuit's logit difference is made of.

The decision is the model's: of the answers that a task allows, the one with the largest logit, against the runner-up
(or two that are named). The account is the circuit's (see `account`); what the circuit does not carry of the model's
decision is told beside it, and so is what the model says with the circuit ablated.

Knows a model, a circuit, a constant reference, inputs and how to name things. Does not know tasks, splits or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from openwork import patching
from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain.accounts import Accountant, accountant
from openwork.explain.accounts.account import Account, FrozenRun, Spot
from openwork.explain.accounts.paths import Path, count_paths, strongest_paths
from openwork.graph import Site
from openwork.patching import Inputs, Reference

VERSION = 1
THROUGH = 5  # inputs of which is told through which nodes they act
BY = 3  # nodes told for each
END = "difference"
SHIFTS = {  # what constants are called
    "bias": "biases", "reference": "ablated parts, at their constants", "position": "position embedding",
    "bigram": "bigram table", "norm": "means that LayerNorm takes away",
}  # fmt: skip


@dataclass(frozen=True)
class Words:
    """How a person calls things: outputs by index, tokens by id (None where inputs are vectors), features by index."""

    output: Callable[[int], str]
    token: Callable[[int], str] | None
    feature: Callable[[int], str]


@dataclass(frozen=True, eq=False)
class Reasons:
    """The strongest reasons of B decisions, k of each kind, strongest first.

    answer, against  [B] output indices; model, circuit [B] their logit difference in each; remainder [B] of the sum
    constants        [B] biases and all else that is no input
    places, inputs   [B, k] places of the input and what they contribute
    nodes, through   [B, k] columns of `Explainer.profile` and what passes through them
    """

    answer: Tensor
    against: Tensor
    model: Tensor
    circuit: Tensor
    remainder: Tensor
    constants: Tensor
    places: Tensor
    inputs: Tensor
    nodes: Tensor
    through: Tensor


class Explainer:
    """The decisions of one model on one task, accounted for by one circuit.

    candidates  output indices that the task allows as answers, at least two
    """

    def __init__(
        self, model: nn.Module, circuit: Circuit, reference: Reference, candidates: Sequence[int], words: Words
    ) -> None:
        self.model, self.circuit, self.reference, self.words = model, circuit, reference, words
        self.candidates = torch.tensor(sorted(set(candidates)))
        if len(self.candidates) < 2:
            raise UsageError("a decision needs at least two answers to choose from.")
        self.of_circuit: Accountant = accountant(model, circuit, reference)

    @cached_property
    def layout(self) -> patching.Layout:
        """The circuit laid out to be run many times, in float32."""
        return patching.compact(self.model, self.circuit, self.reference)

    def whole(self, inputs: Inputs) -> Tensor:
        """Logits [B, V] of the model."""
        with torch.no_grad():
            return self.model(*inputs).double()

    def logits(self, inputs: Inputs) -> Tensor:
        """Logits [B, V] of the circuit, by the quickest way there is."""
        if self.is_text:
            with torch.no_grad():
                return self.layout(*inputs).double()
        return self.of_circuit(inputs).logits

    @property
    def is_text(self) -> bool:
        """Whether inputs are tokens."""
        return self.words.token is not None

    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The candidate with the largest logit and the runner-up, each [B], of logits [B, V]."""
        best = logits[:, self.candidates].topk(2, dim=1).indices
        return self.candidates[best[:, 0]], self.candidates[best[:, 1]]

    def between(self, inputs: Inputs, answer: int | None, against: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """(answer [B], against [B], logits of the model [B, V]): the model's decision, or what was named instead."""
        whole = self.whole(inputs)
        first, second = self.decide(whole)
        if answer is not None:
            top = torch.where(first == answer, second, first)
            first = torch.full_like(first, answer)
            second = top
        if against is not None:
            if answer is None:
                first = torch.where(first == against, second, first)
            second = torch.full_like(second, against)
        if bool((first == second).any()):
            same = self.words.output(int(second[first == second][0]))
            raise UsageError(f'"{same}" cannot be set against itself; name another answer.')
        return first, second, whole

    def account(self, inputs: Inputs, answer: Tensor, against: Tensor) -> Account:
        """The account of the circuit's logit difference."""
        return self.of_circuit(inputs).toward(answer, against)

    def profile(self, account: Account) -> Tensor:
        """What passes through each kept node that discovery may drop, side by side: [B, nodes]."""
        through, nothing = account.nodes(), torch.zeros(len(account.answer), 0, dtype=torch.float64)
        return torch.cat([nothing, *(through[s.name][:, self.circuit.nodes[s.name]] for s in self._on_paths)], 1)

    def without(self, inputs: Inputs) -> Tensor:
        """Logits [B, V] of the model with the circuit's nodes ablated, and nothing else."""
        kept = {s.name: ~self.circuit.nodes[s.name] for s in self.circuit.graph.prunable}
        with torch.no_grad(), patching.patched(self.model, self.reference, kept):
            return self.model(*inputs).double()

    def explain(
        self, inputs: Inputs, answer: int | None = None, against: int | None = None, top: int = 10
    ) -> dict[str, Any]:
        """The account of one input (B = 1) as JSON-ready data; the schema is in docs/why.md.

        answer, against  output indices; by default the model's decision and its runner-up
        top              lines per list
        """
        first, second, whole = self.between(inputs, answer, against)
        a = self.account(inputs, first, second)
        paths = strongest_paths(a, top)
        listed = sum(p.contribution for p in paths)
        total, ways = float(a.total), count_paths(a)
        says = self.decide(a.run.logits)[0]
        model = float(whole[0, first] - whole[0, second])
        by_patching = self._by_patching(inputs, first, second)
        names = _Names(self, inputs, a.run)
        return {
            "version": VERSION,
            "input": names.given(),
            "decision": {
                "answer": self._output(first),
                "against": self._output(second),
                "model_says": self._output(self.decide(whole)[0]),
                "circuit_says": self._output(says),
                "model": model,
                "circuit": float(a.difference),
                "not_carried": model - float(a.difference),
                "share_carried": float(a.difference) / model if model else None,
                "without_circuit": self._margin(self.without(inputs), first, second),
            },
            "sums": {
                "sources": total,
                "remainder": float(a.difference) - total,
                "patched_run": by_patching,
                "off_patched_run": by_patching - total,
            },
            "frozen": list(self.of_circuit.frozen),
            "off": self._off(a.run),
            "inputs": self._inputs(a, names, top),
            "all_inputs": [float(f"{c:.6g}") for x in a.inputs().values() for c in x[0].tolist()],
            "constants": self._constants(a, names, top),
            "nodes": self._nodes(a, names, top),
            "edges": self._edges(a, top),
            "paths": [names.path(p) for p in paths],
            "other_paths": {"count": max(0.0, ways - len(paths)), "contribution": total - listed},
        }

    def reasons(self, inputs: Inputs, top: int) -> Reasons:
        """The strongest reasons of many decisions at once; padding on the right of shorter prompts is not read."""
        first, second, whole = self.between(inputs, None, None)
        a = self.account(inputs, first, second)
        rows = torch.arange(len(first))
        [at_places] = a.inputs().values()
        places, inputs_ = _top(at_places, top)
        nodes, through = _top(self.profile(a), top)
        return Reasons(
            first, second, whole[rows, first] - whole[rows, second], a.difference, a.difference - a.total,
            a.total - at_places.sum(1), places, inputs_, nodes, through,
        )  # fmt: skip

    @cached_property
    def node_names(self) -> list[str]:
        """What the columns of a profile are called."""
        kept = self.circuit.nodes
        return [f"{s.name}:{i}" for s in self._on_paths for i in kept[s.name].nonzero().flatten().tolist()]

    @cached_property
    def _on_paths(self) -> list[Site]:
        """The sites of nodes that discovery may drop; queries and keys only steer, and lie on no path."""
        return [s for s in self.circuit.graph.prunable if not s.steers and s.kind != "input"]

    # -- parts of it -------------------------------------------------------------------------------------------------

    def _output(self, index: Tensor) -> dict[str, Any]:
        return {"output": int(index), "text": self.words.output(int(index))}

    def _margin(self, logits: Tensor, first: Tensor, second: Tensor) -> float:
        return float(logits[0, first] - logits[0, second])

    def _by_patching(self, inputs: Inputs, first: Tensor, second: Tensor) -> float:
        """The difference as the patched run has it, in float32: computed without any account."""
        with torch.no_grad():
            out = patching.run(self.model, inputs, self.circuit, self.reference)
        return self._margin(out.double(), first, second)

    def _off(self, run: FrozenRun) -> dict[str, int]:
        """How many of the circuit's neurons let nothing by, at no position: what they would say is in no path."""
        closed, kept = 0, 0
        for s in self.circuit.graph.sites:
            if s.kind == "neuron":
                mine = self.circuit.nodes[s.name]
                gates = run.spots[s.name].nodes((run.spots[s.name].scale != 0).double())[0]
                closed, kept = closed + int((gates[mine] == 0).sum()), kept + int(mine.sum())
        return {"neurons": closed, "of": kept}

    def _inputs(self, a: Account, names: _Names, top: int) -> list[dict[str, Any]]:
        rows = []
        for (site, kind), x in a.inputs().items():
            order = _largest(x[0], top)
            told = a.through(site, kind, order[:THROUGH]) if order else {}
            for i, place in enumerate(order):
                row = {**names.place(site, place), "contribution": float(x[0, place])}
                if i < THROUGH:
                    row["through"] = names.strongest({n: v[i] for n, v in told.items() if n != site}, BY)
                rows.append(row)
            rest = float(x.sum()) - sum(r["contribution"] for r in rows)
            if len(order) < int((x != 0).sum()):
                rows.append({"name": f"the other {int((x != 0).sum()) - len(order)}", "contribution": rest})
        return rows

    def _constants(self, a: Account, names: _Names, top: int) -> list[dict[str, Any]]:
        by_kind: dict[str, list[tuple[str, float]]] = {}
        for (site, kind), x in a.constants().items():
            by_kind.setdefault(kind, []).append((site, float(x[0])))
        rows = []
        for kind, parts in by_kind.items():
            parts.sort(key=lambda p: -abs(p[1]))
            at = [{"site": s if s != a.run.end else "answers", "contribution": c} for s, c in parts[:top] if c]
            total = sum(c for _, c in parts)
            rows.append({"kind": kind, "name": names.constant(kind), "contribution": total, "at": at})
        return sorted(rows, key=lambda r: -abs(r["contribution"]))

    def _nodes(self, a: Account, names: _Names, top: int) -> list[dict[str, Any]]:
        through = a.nodes()
        return names.strongest({s.name: through[s.name][0] for s in self._on_paths}, top, a)

    def _edges(self, a: Account, top: int) -> list[dict[str, Any]]:
        found: list[tuple[float, str, str]] = []
        for name, x in a.edges().items():
            link, ends = self.circuit.graph.link(name), x[0]
            for i in _largest(ends.flatten(), top):
                c = float(ends.flatten()[i])
                last = link.dst == a.run.end
                n = 1 if last or link.kind == "sum" else ends.shape[1]
                dst, src = (i, i) if n == 1 else divmod(i, n)
                found.append((c, f"{link.src}:{src}", END if last else f"{link.dst}:{dst}"))
        found.sort(key=lambda f: -abs(f[0]))
        return [{"src": src, "dst": dst, "contribution": c} for c, src, dst in found[:top]]


class _Names:
    """What the parts of one run are called."""

    def __init__(self, explainer: Explainer, inputs: Inputs, run: FrozenRun) -> None:
        self.of, self.inputs, self.run = explainer, inputs, run
        self.graph = explainer.circuit.graph
        self.sequence = len(inputs) == 2
        self.asked = int(inputs[1][0]) if self.sequence else -1

    def given(self) -> dict[str, Any]:
        """The input itself."""
        x = self.inputs[0][0]
        if self.of.words.token is None:
            return {"kind": "vectors", "values": [float(f"{v:.6g}") for v in x.flatten().tolist()]}
        ids = x[: self.asked + 1].tolist() if self.sequence else x.tolist()
        return {"kind": "tokens", "tokens": ids, "texts": [self.of.words.token(t) for t in ids]}

    def place(self, site: str, place: int) -> dict[str, Any]:
        """A place of the input: a token where it stands, or a feature and its value."""
        x = self.inputs[0][0]
        if self.of.words.token is not None and not x.is_floating_point():
            text = self.of.words.token(int(x[place]))
            return {"name": f"{text!r} at {place}", "place": place, "token": int(x[place]), "text": text}
        value = float(x.flatten()[place])
        return {"name": f"{self.of.words.feature(place)} = {value:.3g}", "place": place, "value": value}

    def constant(self, kind: str) -> str:
        """What a kind of constant is called; the bigram table has a row for the token that is asked."""
        if kind != "bigram" or self.of.words.token is None:
            return SHIFTS[kind]
        return f"{SHIFTS[kind]} after {self.of.words.token(int(self.inputs[0][0, self.asked]))!r}"

    def node(self, site: str, node: int) -> dict[str, Any]:
        """A node by its name, and the head it belongs to."""
        s = self.graph.site(site)
        head = {"head": node // s.group} if s.kind == "value" and s.group else {}
        return {"node": f"{site}:{node}", **head}

    def strongest(
        self, through: Mapping[str, Tensor], top: int, account: Account | None = None
    ) -> list[dict[str, Any]]:
        """The nodes through which most passes; with an account of a sequence, also at which position most does."""
        found = [(float(v[i]), n, i) for n, v in through.items() for i in _largest(v, top)]
        found.sort(key=lambda f: -abs(f[0]))
        rows = []
        for c, site, node in found[:top]:
            row = {**self.node(site, node), "contribution": c}
            if account is not None and self.sequence and self.run.spots[site].sent.dim() == 3:
                row["at"] = int(account.vertices(site)[0, :, node].abs().argmax())
            rows.append(row)
        return rows

    def path(self, p: Path) -> dict[str, Any]:
        """One path, step by step; `at` is the position of a step."""
        site, kind = p.source
        spot = self.run.spots[site]
        node, at = _locate(spot, p.vertex)
        if (site, kind) in self.run.inputs:
            source: dict[str, Any] = {"source": self.place(site, p.vertex // spot.width)["name"]}
        else:
            source = {"source": self.constant(kind) + (f" of position {at}" if kind == "position" else "")}
        steps = [] if site == self.run.end or kind == "bigram" else [self._step(site, node, at)]
        steps += [self._step(s, *_locate(self.run.spots[s], v)) for s, v in p.steps]
        if steps and (site, kind) in self.run.inputs and kind == "input":
            steps = steps[1:]  # a feature is its own node
        words = [source["source"], *(_worded(s) for s in steps), END]
        return {**source, "contribution": p.contribution, "steps": steps, "text": " → ".join(words)}

    def _step(self, site: str, node: int, at: Any) -> dict[str, Any]:
        return {**self.node(site, node), **({"at": at} if at is not None else {})}


def _worded(step: Mapping[str, Any]) -> str:
    head = f" (head {step['head']})" if "head" in step else ""
    at = step.get("at")
    return step["node"] + head + ("" if at is None else f" at {at}" if isinstance(at, int) else f" at {at[0]},{at[1]}")


def _locate(spot: Spot, vertex: int) -> tuple[int, Any]:
    """Node and position (of maps (row, column); None where there is one position only) of a vertex."""
    shape = spot.sent.shape[1:]
    if len(shape) == 1:
        return vertex, None
    if len(shape) == 2:
        at, node = divmod(vertex, shape[1])
        return node, at
    node, at = divmod(vertex, shape[1] * shape[2])
    return node, list(divmod(at, shape[2]))


def _top(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Columns of the k largest |x| of every row, and their values: [B, k] each."""
    order = x.abs().topk(min(k, x.shape[1]), dim=1).indices
    return order, x.gather(1, order)


def _largest(x: Tensor, k: int) -> list[int]:
    """Places of the k largest |x| that are not 0, largest first; of equals the first."""
    places = x.nonzero().flatten()
    order = torch.sort(x[places].abs(), descending=True, stable=True).indices[:k]
    return places[order].tolist()


__all__ = ["END", "SHIFTS", "VERSION", "Explainer", "Reasons", "Words"]
