"""A transformer's circuit as a program that computes exactly the same: the first step of decompiling it.

The patched run is gone through symbolically. Until a bend or a norm comes, everything is a number per token, plus a
number per place, plus coefficients on earlier steps; what an ablated node or edge carries is a constant and folds into
biases. A norm becomes one factor for all that read it, and a head whose query is constant an `Average` with a weight
per place. The one thing that is not a sum of the two, token times place in the squares that a norm divides by, is a
`Grid`.

Knows the wiring of `models.transformer`, a circuit and a fixed reference. Does not know tasks, data, or how the circuit
was found; nothing is approximated here.

Shapes: V tokens, P places, D residual channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain.programs.program import (
    Answer,
    Array,
    Attend,
    Average,
    Bend,
    ByPosition,
    Grid,
    Lookup,
    Norm,
    Op,
    Product,
    Program,
    Step,
    Sum,
)  # fmt: skip
from openwork.models.transformer import Attention, MLPBlock, Transformer
from openwork.patching import Reference, is_constant, masks_of, weight_of


@dataclass(frozen=True)
class _Value:
    """A number per token [V] (or [1]), plus one per place [P] (or [1]), plus coefficients on steps, plus a bias."""

    token: Array = field(default_factory=lambda: np.zeros(1))
    place: Array = field(default_factory=lambda: np.zeros(1))
    terms: Mapping[str, float] = field(default_factory=dict)
    bias: float = 0.0

    @property
    def constant(self) -> float | None:
        """The one number that this is, or None."""
        return None if self.terms or self.token.any() or self.place.any() else self.bias

    def __add__(self, other: _Value) -> _Value:
        terms = {n: self.terms.get(n, 0.0) + other.terms.get(n, 0.0) for n in [*self.terms, *other.terms]}
        kept = {n: c for n, c in terms.items() if c}
        return _Value(self.token + other.token, self.place + other.place, kept, self.bias + other.bias)

    def times(self, c: float) -> _Value:
        """The value times a number."""
        return _Value(self.token * c, self.place * c, {n: c * x for n, x in self.terms.items() if c * x}, self.bias * c)


def _number(x: float) -> _Value:
    return _Value(bias=float(x))


def _step(name: str) -> _Value:
    return _Value(terms={name: 1.0})


def _total(values: Iterable[_Value]) -> _Value:
    out = _Value()
    for v in values:
        out = out + v
    return out


@dataclass(frozen=True)
class _Read:
    """What a read site sends: per channel a value, kept ones still to be multiplied by the step `scale` ("" for 1)."""

    values: Sequence[_Value]
    kept: NDArray[np.bool_]
    scale: str = ""


@dataclass(frozen=True)
class _Linear:
    """What a matrix makes of what was read: `under` times the norm's factor `scale` ("" for 1), plus a number."""

    under: _Value
    scale: str
    bias: float = 0.0

    def __add__(self, other: _Linear) -> _Linear:
        return _Linear(self.under + other.under, self.scale or other.scale, self.bias + other.bias)

    def times(self, c: float) -> _Linear:
        """The value times a number."""
        return _Linear(self.under.times(c), self.scale, self.bias * c)

    @property
    def constant(self) -> float | None:
        """The one number that this is, or None."""
        fixed = self.under.constant
        return self.bias + fixed if fixed is not None and (not self.scale or not fixed) else None


class _Lowering:
    """The patched run of one circuit, gone through once; steps are collected in `steps`."""

    def __init__(self, model: Transformer, circuit: Circuit, reference: Reference, places: int) -> None:
        self.model, self.circuit = model, circuit
        self.masks, self.cuts = masks_of(model, circuit)
        self.r = {n: v.detach().cpu().double().numpy() for n, v in reference.items()}
        self.places, self.vocab = places, model.config.vocab
        self.steps: list[Step] = []
        self.written: dict[str, list[_Value]] = {"embed": self._embedding()}

    # -- steps -------------------------------------------------------------------------------------------------------

    def step(self, name: str, op: Op, about: str) -> str:
        """A new step; its name."""
        self.steps.append(Step(name, op, about))
        return name

    def named(self, name: str, value: _Value, about: str) -> str:
        """A step that is this value; an old one where the value is just that."""
        terms = list(value.terms.items())
        for part, ops, what in (
            (value.token, lambda x: Lookup(tuple(enumerate(x.tolist()))), "token"),
            (value.place, lambda x: ByPosition(tuple(x.tolist())), "place"),
        ):
            if part.any():
                alone = not terms and not value.bias and (what == "place" or not value.place.any())
                at = name if alone else f"{name}_{what}"
                terms.append((self.step(at, ops(part), about if alone else f"{about}: what the {what} brings"), 1.0))
        if len(terms) == 1 and terms[0][1] == 1.0 and not value.bias:
            return terms[0][0]
        return self.step(name, Sum(tuple(terms), value.bias), about)

    def settled(self, name: str, value: _Linear, about: str) -> _Value:
        """A value with its norm's factor multiplied in."""
        under = value.under
        if value.scale and under.constant != 0.0:
            raw = self.named(f"{name}_raw", under, f"{about}, before the norm")
            under = _step(self.step(name, Product(raw, value.scale), about))
        return under + _number(value.bias)

    # -- the model ---------------------------------------------------------------------------------------------------

    def _embedding(self) -> list[_Value]:
        """What the embedding sends, per channel."""
        links = {e.src: e for e in self.circuit.graph.links if e.dst == "embed"}
        table = _weight(self.model.embed).T  # [V, D]
        tokens = self._masked_table(table, links["tokens"].name, "tokens")
        rows = np.zeros((self.places, table.shape[1]))
        if self.model.positions is not None:
            rows = _weight(self.model.positions).T[: self.places]
            rows = self._masked_table(rows, links["positions"].name, "positions")
        kept = self._kept("embed", table.shape[1])
        stream = [_Value(tokens[:, c], rows[:, c]) for c in range(table.shape[1])]
        return [x if kept[c] else _number(self.r["embed"][c]) for c, x in enumerate(stream)]

    def _masked_table(self, table: Array, link: str, src: str) -> Array:
        """A table [ids, D] with its ablated entries at what the reference's ids would bring."""
        if link not in self.cuts:
            return table
        keep = self.cuts[link].numpy().T[: len(table)]
        full = _weight(self.model.get_submodule(self.circuit.graph.link(link).module)).T
        lost = self.r[src] @ np.where(self.cuts[link].numpy().T, 0.0, full)
        return np.where(keep, table, 0.0) + lost

    def _kept(self, site: str, n: int) -> NDArray[np.bool_]:
        return self.masks[site].numpy() if site in self.masks else np.ones(n, dtype=bool)

    def sent(self, site: str, values: Sequence[_Value]) -> list[_Value]:
        """What a site sends: kept nodes their value, ablated ones their reference."""
        kept = self._kept(site, len(values))
        return [v if kept[i] else _number(self.r[site][i]) for i, v in enumerate(values)]

    def read(self, site: str, norm: nn.Module, short: str) -> _Read:
        """What a read site sends: the stream, as this site sees it, over its size."""
        d = self.model.config.d_model
        parts: list[list[_Value]] = []
        for w, values in self.written.items():
            cut = self.cuts.get(f"{w}>{site}")
            keep = cut.numpy() if cut is not None else np.ones(d, dtype=bool)
            parts.append([v if keep[c] else _number(self.r[w][c]) for c, v in enumerate(values)])
        x = [_total(channel) for channel in zip(*parts, strict=True)]
        kept = self._kept(site, d)
        if not kept.any() or not isinstance(norm, nn.RMSNorm):
            return _Read(self.sent(site, x), kept)
        eps = norm.eps if norm.eps is not None else float(torch.finfo(torch.float32).eps)
        gain = np.ones(d) if norm.weight is None else norm.weight.detach().cpu().double().numpy()
        moving = []
        for c, v in enumerate(x):
            if v.terms:
                moving.append(self.named(f"{short}_in_{c}", v, f"channel {c} of the stream before {site}"))
                x[c] = _step(moving[-1])
        rest = self._squares([v for v in x if not v.terms], f"{short}_rest", site)
        scale = self.step(f"{short}_scale", Norm(tuple(moving), rest, d, eps), f"RMSNorm before {site}")
        return _Read(self.sent(site, [v.times(float(gain[c])) for c, v in enumerate(x)]), kept, scale)

    def _squares(self, x: Sequence[_Value], name: str, site: str) -> str:
        """The sum of squares of channels that no step moves: by token, by place, and token times place; "" for none."""
        if not x:
            return ""
        token = np.stack([np.broadcast_to(v.token, self.vocab) for v in x], 1)  # [V, C]
        place = np.stack([np.broadcast_to(v.place, self.places) for v in x], 1)  # [P, C]
        bias = np.array([v.bias for v in x])
        cross, about = 2 * token @ place.T, f"squares of the other channels before {site}"
        terms = {}
        if cross.any():
            rows = tuple((i, tuple(row)) for i, row in enumerate(cross.tolist()))
            terms[self.step(f"{name}_both", Grid(rows, (0.0,) * self.places), f"{about}: token times place")] = 1.0
        by_token, by_place = (token**2).sum(1) + 2 * token @ bias, (place**2).sum(1) + 2 * place @ bias
        return self.named(name, _Value(by_token, by_place, terms, float(bias @ bias)), about)

    def matrix(self, link: str, module: nn.Module, h: _Read, need: Iterable[int]) -> dict[int, _Linear]:
        """The wanted outputs of a linear map of what was read; its ablated nodes and edges carry the reference."""
        w, src = _weight(module), link.split(">")[0]
        keep = self.cuts[link].numpy() if link in self.cuts else np.ones(w.shape, dtype=bool)
        bias = _bias(module, len(w)) + np.where(keep, 0.0, w) @ self.r[src]
        out = {}
        for i in need:
            on = np.flatnonzero(keep[i] & (w[i] != 0)).tolist()
            under = _total(h.values[j].times(float(w[i, j])) for j in on if h.kept[j] or not h.scale)
            still = sum(h.values[j].bias * float(w[i, j]) for j in on if not h.kept[j] and h.scale)
            out[i] = _Linear(under, h.scale, float(bias[i]) + still)
        return out

    def attention(self, i: int, block: Attention) -> None:
        """One attention sublayer; what it writes joins the stream."""
        name, d = f"block{i}.attn", self.model.config.d_model
        writes = np.flatnonzero(self._kept(f"{name}.write", d)).tolist()
        w_out, link = _weight(block.out), f"{name}.v>{name}.write"
        keep_out = self.cuts[link].numpy() if link in self.cuts else np.ones(w_out.shape, dtype=bool)
        r, kept_v = self.r[f"{name}.v"], self._kept(f"{name}.v", d)
        n_head, sink = block.attend.n_head, block.attend.sink
        width = d // n_head
        carried = (w_out[writes] != 0).any(0) & (kept_v | (sink is not None))
        h = self.read(f"{name}.in", block.norm, f"attn{i}") if carried.any() else _Read((), kept_v)
        moved: dict[int, _Value] = {v: _number(r[v]) for v in range(d)}  # value channels, averaged
        frozen = dict(moved)  # what their ablated edges carry
        for head in range(n_head):
            channels = [v for v in range(head * width, (head + 1) * width) if carried[v]]
            if not channels:
                continue
            logit = None if sink is None else float(sink.detach()[head])
            how = self._pattern(i, head, block, h, width, logit)
            values = self._channels(i, "v", block.to_v, h, channels)
            for v in channels:
                value = self.settled(f"value{i}_{v}", values[v], f"{name}.v:{v}")
                moved[v] = self._mixed(how, value, f"seen{i}_{v}", f"{name}.v:{v}, averaged")
            if sink is not None:
                share = self._mixed(how, _number(1.0), f"share{i}_{head}", f"{name}, head {head}: all but the sink's")
                frozen |= {v: share.times(float(r[v])) for v in channels}
        bias = _bias(block.out, d)
        values = [_Value() for _ in range(d)]
        for c in writes:
            parts = [(moved if keep_out[c, v] else frozen)[v].times(float(w_out[c, v])) for v in range(d)]
            values[c] = _total([_number(bias[c]), *parts])
        self.written[f"{name}.write"] = self.sent(f"{name}.write", values)

    def _channels(self, i: int, part: str, module: nn.Module, h: _Read, channels: Sequence[int]) -> dict[int, _Linear]:
        """Queries, keys or values of some channels."""
        site = f"block{i}.attn.{part}"
        kept = self._kept(site, len(self.r[site]))
        made = self.matrix(f"block{i}.attn.in>{site}", module, h, [c for c in channels if kept[c]])
        return {c: made[c] if kept[c] else _Linear(_Value(), "", float(self.r[site][c])) for c in channels}

    def _pattern(
        self, i: int, head: int, block: Attention, h: _Read, width: int, sink: float | None
    ) -> Average | Attend:
        """How a head weighs the places; `value` is still to be filled in."""
        channels = range(head * width, (head + 1) * width)
        q = self._channels(i, "q", block.to_q, h, channels)
        k = self._channels(i, "k", block.to_k, h, channels)
        scale, pairs, fixed = 1.0 / math.sqrt(width), [], _Linear(_Value(), "")
        for c in channels:
            always = q[c].constant
            if always is not None:
                fixed = fixed + k[c].times(scale * always)
            elif k[c].constant is None or sink is not None:  # the same key everywhere is felt by a sink alone
                pairs.append(c)
        about = f"block{i}.attn, head {head}"
        score = self.settled(f"score{i}_{head}", fixed, f"{about}: query times key, by what the place has")
        if not pairs:
            by_place = _Value(score.token, score.place, score.terms)  # without a sink a bias is in all weights alike
            if by_place.constant == 0.0 and sink is None:
                return Average("")
            named = self.named(f"score{i}_{head}", by_place, f"{about}: query times key, by what the place has")
            weight = self.step(f"weight{i}_{head}", Bend(named, "exp"), f"{about}: how much a place counts")
            return Average("", weight, 0.0 if sink is None else math.exp(sink - score.bias))
        named = ""
        if score.constant is None or sink is not None:
            named = self.named(f"score{i}_{head}_fixed", score, f"{about}: the part of the score without a query")
        queries, keys = (
            tuple(
                self.named(f"{part}{i}_{c}_sum", self.settled(f"{part}{i}_{c}", x[c], f"{about}, {part}:{c}"), about)
                for c in pairs
            )
            for part, x in (("query", q), ("key", k))
        )
        return Attend("", queries, keys, named, scale, sink)

    def _mixed(self, how: Average | Attend, value: _Value, name: str, about: str) -> _Value:
        """A value averaged over the places; without a sink weights sum to one, and what all places have stays."""
        whole = (isinstance(how, Average) and not how.nothing) or (isinstance(how, Attend) and how.sink is None)
        bias = value.bias if whole else 0.0
        part = _Value(value.token, value.place, value.terms, value.bias - bias)
        if part.constant == 0.0:
            return _number(bias)
        source = self.named(f"{name}_source", part, f"{about}: what is averaged")
        return _step(self.step(name, replace(how, value=source), about)) + _number(bias)

    def mlp(self, i: int, block: MLPBlock) -> None:
        """One MLP sublayer; what it writes joins the stream."""
        name, d = f"block{i}.mlp", self.model.config.d_model
        writes = np.flatnonzero(self._kept(f"{name}.write", d)).tolist()
        kept, n = self._kept(f"{name}.act", self.model.config.neurons), self.model.config.neurons
        need = np.flatnonzero(kept & (_weight(block.down)[writes] != 0).any(0)).tolist()
        h = self.read(f"{name}.in", block.norm, f"mlp{i}") if need else _Read((), kept)
        curve = self.model.config.activation
        acts = [_number(x) for x in self.r[f"{name}.act"]]
        for j, x in self.matrix(f"{name}.in>{name}.act", block.up, h, need).items():
            sum_ = self.settled(f"before{i}_{j}", x, f"{name}.act:{j} before its bend")
            before = self.named(f"before{i}_{j}_sum", sum_, f"{name}.act:{j} before its bend, with its bias")
            acts[j] = _step(self.step(f"neuron{i}_{j}", Bend(before, curve), f"{name}.act:{j}"))
        made = self.matrix(f"{name}.act>{name}.write", block.down, _Read(acts, np.ones(n, dtype=bool)), writes)
        values = [made[c].under + _number(made[c].bias) if c in made else _Value() for c in range(d)]
        self.written[f"{name}.write"] = self.sent(f"{name}.write", values)

    def answers(self, ids: Sequence[int], texts: Sequence[str]) -> tuple[Answer, ...]:
        """The answers' logits."""
        h = self.read("final.in", self.model.norm, "final")
        made = self.matrix("final.in>logits", self.model.unembed, h, ids)
        out = []
        for k, (i, text) in enumerate(zip(ids, texts, strict=True)):
            about = f"the logit of {text!r}"
            total = self.settled(f"stream_{k}", made[i], f"{about}: what the stream says")
            if self.model.bigram is not None:
                cut = self.cuts.get("bigram>logits")
                kept = bool(self._kept("bigram", self.vocab)[i]) and (cut is None or bool(cut[i]))
                column = self.model.bigram[:, i].detach().cpu().double().numpy()
                total = total + (_Value(column) if kept else _number(self.r["bigram"][i]))
            out.append(Answer(text, i, self.named(f"logit_{k}", total, about)))
        return tuple(out)


def _weight(module: nn.Module) -> Array:
    return weight_of(module).detach().cpu().double().numpy()


def _bias(module: nn.Module, n: int) -> Array:
    bias = getattr(module, "bias", None)
    return np.zeros(n) if bias is None else bias.detach().cpu().double().numpy()


def lower_transformer(
    model: Transformer, circuit: Circuit, reference: Reference, ids: Sequence[int], texts: Sequence[str], places: int
) -> Program:
    """The program that computes what a circuit of a transformer computes, to rounding.

    reference   what ablated nodes send: one value per node
    ids, texts  the output indices that are answers, and how each reads
    places      positions that a prompt can have; later ones are taken for the last of these

    UsageError for a model of real inputs, with LayerNorm or AbsTopK, and for a reference that differs by example.
    """
    c = model.config
    for wrong, what in (
        (bool(c.inputs), "real numbers as inputs"), (c.norm == "layer", "LayerNorm"), (c.abstopk < 1, "AbsTopK"),
    ):  # fmt: skip
        if wrong:
            raise UsageError(f"a transformer with {what} cannot be decompiled; one of tokens with RMSNorm or none can.")
    sites = circuit.graph.by_site
    if not all(is_constant(sites[n], v) for n, v in reference.items() if sites[n].module):
        raise UsageError(
            "the circuit was found under a reference that differs by example, which no program has at hand; find one "
            "with --reference mean or zero to decompile it."
        )
    low = _Lowering(model, circuit, reference, min(places, c.n_ctx))
    for i, block in enumerate(model.blocks):
        low.attention(i, block.attn)  # type: ignore[arg-type]
        low.mlp(i, block.mlp)  # type: ignore[arg-type]
    answers = low.answers(ids, texts)
    return Program("tokens", tuple(low.steps), answers)
