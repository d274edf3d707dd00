"""From a program over sequences to the weights of our transformer, and to the circuit that these weights are.

    a categorical expression   one residual channel per value, 1 where the expression has it, else 0
    a number                   one residual channel
    Select                     one attention head. Values of the keys that the same queries look for share a channel of
                               query and key; what every query looks for has its query from the bias
    Fetch, Average             the value channels of a head and what they write
    Same                       one neuron per value: relu(first + second - 1)
    Curve                      one neuron per bend: relu(x - bend)
    Sharp                      one neuron per value: relu(4 x - 3), which is 0 for up to three quarters of a value

An expression goes to the first sublayer after all that it reads; every expression has channels of its own, so nothing
interferes. All scores of a head are 0 or BETA, so what is not selected has a share of at most T exp(-BETA).

After Tracr (Lindner et al. 2023, arXiv 2301.05062); here there are no norms, several heads share a layer, and the
compiler also says which nodes it used. Knows programs and the transformer's layout. Does not know tasks or methods.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import UsageError
from openwork.models import Transformer, TransformerConfig
from openwork.planted.rasp import (
    Average,
    Categorical,
    Curve,
    Expression,
    Fetch,
    Indicator,
    Number,
    Positions,
    Same,
    Select,
    Sharp,
    Tokens,
)

BETA = 24.0  # score of a selected position before the softmax; e^-24 = 4e-11
GAIN = 16.0  # what the unembedding multiplies by


@dataclass(frozen=True)
class Term:
    """A part of what a node carries: `weight` where a categorical expression has a value, or that many times a number.

    value  the value in question; None for a number
    """

    of: Expression
    value: Hashable | None
    weight: float = 1.0


@dataclass(frozen=True)
class Carried:
    """What a node of a compiled circuit carries at a position, up to a positive factor: the sum of its terms.

    rectified  whether a sum below zero is cut off there, as of a neuron
    """

    terms: tuple[Term, ...]
    constant: float = 0.0
    rectified: bool = False


@dataclass(frozen=True)
class Compiled:
    """A transformer and its circuit.

    nodes     site -> bool [n]: the nodes that the program uses
    channels  residual channels of the program's value: one per value of its domain, or one
    carries   (site, node) -> what it carries, in terms of the program, of every node used
    """

    model: Transformer
    nodes: dict[str, Tensor]
    channels: tuple[int, ...]
    carries: dict[tuple[str, int], Carried]


@dataclass
class _Plan:
    """Where everything goes: a sublayer (2 i is the attention of block i, 2 i + 1 its MLP) and residual channels."""

    slot: dict[int, int] = field(default_factory=dict)  # id of the expression -> sublayer that writes it, -1: embedding
    channels: dict[int, tuple[int, ...]] = field(default_factory=dict)
    order: list[Expression] = field(default_factory=list)
    width: int = 0


def compile_program(
    program: Categorical | Number, size: int, length: int, threshold: float | None = None, gain: float = GAIN
) -> Compiled:
    """The transformer that computes a program on sequences of up to `length` of `size` token ids.

    threshold  of a number: above it the answer is output 1, below it output 0. A categorical program has one output
               per value of its domain, whose logit is `gain` where the program has that value and 0 elsewhere
    gain       what the unembedding multiplies a number's distance from its threshold, or 0 and 1, by

    Raises UsageError where a threshold is missing or has no meaning.
    """
    plan = _planned(program)
    if (threshold is None) == isinstance(program, Average | Same | Curve):
        raise UsageError("compile_program: a number needs a threshold, and a categorical program has none.")
    uses = [e for e in plan.order if isinstance(e, Average | Fetch)]
    d_head = max([1, *(max(len(_groups(e.select)), len(plan.channels[id(e)])) for e in uses)])
    layers = 1 + max(plan.slot[id(program)] // 2, 0)
    per_layer = [sum(plan.slot[id(e)] == 2 * i for e in uses) for i in range(layers)]
    neurons = [sum(len(list(_neurons(e))) for e in plan.order if plan.slot[id(e)] == 2 * i + 1) for i in range(layers)]
    config = TransformerConfig(  # type: ignore[call-arg]
        vocab=size,
        n_layer=layers,
        d_model=d_head * max(1, *per_layer, -(-plan.width // d_head)),
        d_head=d_head,
        d_mlp=max(1, *neurons),
        n_ctx=length,
        positions=any(isinstance(e, Positions) for e in plan.order),
        bigram=False,
        norm=False,
        activation="relu",
        outputs=2 if threshold is not None else len(_domain(program)),
    )
    writer = _Writer(Transformer(config), plan)
    writer.emit(program, threshold, gain)
    for p in writer.model.parameters():
        p.requires_grad_(True)
    return Compiled(writer.model, writer.nodes, plan.channels[id(program)], writer.carried())


def _domain(e: Expression) -> tuple[Hashable, ...]:
    return e.domain if isinstance(e, Tokens | Positions | Fetch | Sharp) else ()


def _reads(e: Expression) -> tuple[Expression, ...]:
    """What an expression reads from the stream; an Indicator is no expression of its own but a choice of weights."""
    if isinstance(e, Average):
        return (*_selects_on(e.select), e.of.of)
    if isinstance(e, Fetch):
        return (*_selects_on(e.select), e.of)
    if isinstance(e, Same):
        return (e.first, e.second)
    return (e.of,) if isinstance(e, Curve | Sharp) else ()


def _selects_on(select: Select) -> tuple[Expression, ...]:
    groups = _groups(select)
    keys = (select.keys,) if groups else ()
    return (*keys, *((select.queries,) if any(g.queries for g in groups) else ()))


def _planned(program: Expression) -> _Plan:
    """Every expression once, each after what it reads."""
    plan = _Plan()

    def visit(e: Expression) -> None:
        if id(e) in plan.slot:
            return
        for r in _reads(e):
            visit(r)
        ready = max([-1, *(plan.slot[id(r)] for r in _reads(e))])
        if isinstance(e, Average | Fetch):
            plan.slot[id(e)] = ready + (1 if ready % 2 else 2)
        elif isinstance(e, Same | Curve | Sharp):
            plan.slot[id(e)] = ready + (2 if ready % 2 else 1)
        else:
            plan.slot[id(e)] = -1
        n = max(1, len(_domain(e)))
        plan.channels[id(e)] = tuple(range(plan.width, plan.width + n))
        plan.width += n
        plan.order.append(e)

    visit(program)
    return plan


@dataclass(frozen=True)
class _Group:
    """Values of the keys that the same queries look for: one channel of query and key."""

    keys: tuple[int, ...]  # places in the keys' domain
    queries: tuple[int, ...]  # places in the queries' domain; none where all look for them


def _groups(select: Select) -> list[_Group]:
    """The channels that a selection needs; none where everything is selected."""
    by: dict[tuple[int, ...], list[int]] = {}
    for i, k in enumerate(select.keys.domain):
        wanted = tuple(j for j, q in enumerate(select.queries.domain) if select.predicate(k, q))
        if wanted:
            by.setdefault(wanted, []).append(i)
    everyone = len(select.queries.domain) if _always(select.queries) else -1
    groups = [_Group(tuple(ks), () if len(qs) == everyone else qs) for qs, ks in by.items()]
    alike = len(groups) == 1 and not groups[0].queries and len(groups[0].keys) == len(select.keys.domain)
    if alike and _always(select.keys):
        return []
    return groups


@dataclass(frozen=True)
class _Neuron:
    """One neuron; reads: ((which expression of those read, place of its value), weight); writes: (place, weight)."""

    reads: tuple[tuple[tuple[int, int], float], ...]
    bias: float
    writes: tuple[int, float]


def _always(e: Categorical) -> bool:
    """Whether an expression has one of its values everywhere, never none."""
    return isinstance(e, Tokens | Positions) or (isinstance(e, Fetch) and not e.keep and _always(e.of))


def _neurons(e: Expression) -> Iterator[_Neuron]:
    """The neurons of an expression."""
    if isinstance(e, Same):
        for v in e.first.domain:
            if v in e.second.domain:
                places = e.first.domain.index(v), e.second.domain.index(v)
                yield _Neuron((((0, places[0]), 1.0), ((1, places[1]), 1.0)), -1.0, (0, 1.0))
    elif isinstance(e, Curve):
        slope = 0.0
        for (x0, y0), (x1, y1) in zip(e.points[:-1], e.points[1:], strict=True):
            bend = (y1 - y0) / (x1 - x0) - slope
            slope += bend
            if abs(bend) > 1e-9:
                yield _Neuron((((0, 0), 1.0),), -x0, (0, bend))
    elif isinstance(e, Sharp):
        for i in range(len(e.domain)):
            yield _Neuron((((0, i), 4.0),), -3.0, (i, 1.0))


def _part(e: Expression, place: int) -> tuple[Expression, Hashable | None]:
    """What the channel at a place among an expression's own stands for: one of its values, or the number itself."""
    return e, _domain(e)[place] if _domain(e) else None


def _term(e: Expression, place: int) -> Term:
    return Term(*_part(e, place))


class _Writer:
    """Writes weights, and notes every node that one of them touches and what it carries."""

    def __init__(self, model: Transformer, plan: _Plan) -> None:
        self.model, self.plan = model, plan
        self.nodes = {s.name: torch.zeros(s.size, dtype=torch.bool) for s in model.graph().prunable}
        self.inner: dict[tuple[str, int], Carried] = {}  # of queries, keys, values and neurons
        self.stream: dict[int, Carried] = {}  # of residual channels
        self.next_head = [0] * model.config.n_layer
        self.next_neuron = [0] * model.config.n_layer
        for p in model.parameters():
            p.requires_grad_(False).zero_()

    def emit(self, program: Categorical | Number, threshold: float | None, gain: float) -> None:
        """All expressions, then the output."""
        for e in self.plan.order:
            mine = self.plan.channels[id(e)]
            shift = -threshold if threshold is not None and e is program else 0.0
            self.stream |= {c: Carried((_term(e, i),), shift) for i, c in enumerate(mine)}
            if isinstance(e, Tokens | Positions):
                table = self.model.embed if isinstance(e, Tokens) else self.model.positions
                assert table is not None
                for i, c in enumerate(mine):
                    table.weight[i, c] = 1.0
            elif isinstance(e, Average | Fetch):
                self._attend(e, mine, shift)
            else:
                assert isinstance(e, Same | Curve | Sharp)
                self._think(e, mine, shift)
        for i, c in enumerate(self.plan.channels[id(program)]):
            self.nodes["final.in"][c] = True
            self.model.unembed.weight[i if threshold is None else 1, c] = gain

    def carried(self) -> dict[tuple[str, int], Carried]:
        """What every node used carries; those outside attention heads and neurons stand for residual channels."""
        used = [(site, int(i)) for site, mask in self.nodes.items() for i in mask.nonzero().flatten()]
        return {n: self.inner[n] if n in self.inner else self.stream[n[1]] for n in used}

    def _attend(self, e: Average | Fetch, mine: Sequence[int], bias: float) -> None:
        layer = self.plan.slot[id(e)] // 2
        block: Any = self.model.blocks[layer].attn
        name = f"block{layer}.attn"
        d = self.model.config.d_head
        first = self.next_head[layer] * d
        self.next_head[layer] += 1
        select = e.select
        for g, group in enumerate(_groups(select)):
            self.nodes[f"{name}.q"][first + g] = self.nodes[f"{name}.k"][first + g] = True
            wanted = tuple(_term(select.queries, i) for i in group.queries)
            self.inner[f"{name}.q", first + g] = Carried(wanted, 0.0 if wanted else 1.0)
            self.inner[f"{name}.k", first + g] = Carried(tuple(_term(select.keys, i) for i in group.keys))
            for i in group.keys:
                self._weight(block.to_k, first + g, f"{name}.in", self.plan.channels[id(select.keys)][i], 1.0)
            strength = BETA * math.sqrt(d)
            for i in group.queries:
                self._weight(block.to_q, first + g, f"{name}.in", self.plan.channels[id(select.queries)][i], strength)
            if not group.queries:
                block.to_q.bias[first + g] = strength
        source = e.of.of if isinstance(e, Average) else e.of
        for place, c in enumerate(mine):
            v = first + place
            if isinstance(e, Average):
                terms = tuple(Term(source, value, e.of.value(value)) for value in source.domain)
                self.inner[f"{name}.v", v] = Carried(terms)
                for i, value in enumerate(source.domain):
                    self._weight(block.to_v, v, f"{name}.in", self.plan.channels[id(source)][i], e.of.value(value))
            else:
                i = source.domain.index(e.domain[place])
                self.inner[f"{name}.v", v] = Carried((_term(source, i),))
                self._weight(block.to_v, v, f"{name}.in", self.plan.channels[id(source)][i], 1.0)
            self._weight(block.out, c, f"{name}.v", v, 1.0)
            self.nodes[f"{name}.write"][c] = True
            block.out.bias[c] = bias

    def _think(self, e: Same | Curve | Sharp, mine: Sequence[int], bias: float) -> None:
        layer = self.plan.slot[id(e)] // 2
        block: Any = self.model.blocks[layer].mlp
        name = f"block{layer}.mlp"
        sources = _reads(e)
        for neuron in _neurons(e):
            n = self.next_neuron[layer]
            self.next_neuron[layer] += 1
            terms = tuple(Term(*_part(sources[which], place), w) for (which, place), w in neuron.reads)
            self.inner[f"{name}.act", n] = Carried(terms, neuron.bias, rectified=True)
            for (which, place), w in neuron.reads:
                self._weight(block.up, n, f"{name}.in", self.plan.channels[id(sources[which])][place], w)
            block.up.bias[n] = neuron.bias
            self.nodes[f"{name}.act"][n] = True
            self._weight(block.down, mine[neuron.writes[0]], f"{name}.act", n, neuron.writes[1])
        start = e.points[0][1] if isinstance(e, Curve) else 0.0
        for c in mine:
            self.nodes[f"{name}.write"][c] = True
            block.down.bias[c] = start + bias

    def _weight(self, matrix: nn.Module, dst: int, site: str, src: int, value: float) -> None:
        """Adds to one weight; zero is no weight, and leaves its source unused."""
        if value:
            matrix.weight[dst, src] += value  # type: ignore[index, operator]
            self.nodes[site][src] = True


__all__ = ["BETA", "GAIN", "Carried", "Compiled", "Indicator", "Term", "compile_program"]
