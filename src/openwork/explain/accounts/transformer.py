"""A transformer's circuit, run with its gates frozen: where heads look, what norms divide by, what neurons let by.

Frozen, the stream is linear: values travel along attention patterns, neurons are h * gate(h) (GELU's gate is Phi(h)),
a norm is a factor per position (LayerNorm's mean a constant beside it). Sources are tokens and positions through the
embedding, the row of the bigram table, biases, and what ablated nodes and edges carry. Queries and keys decide where
heads look and carry nothing themselves: no path leads through them, and their part in the decision is not told here.

Knows transformers. Does not know tasks or words.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain.accounts.account import FrozenRun, Spot
from openwork.explain.accounts.folding import Folding, selecting, summed
from openwork.explain.accounts.maps import Map, Matrix, Mix, Sum
from openwork.graph import Link
from openwork.models import Transformer
from openwork.patching import Inputs, Reference

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda h: (h > 0).double(),
    "gelu": lambda h: 0.5 * torch.erfc(-h / math.sqrt(2)),  # Phi(h)
    "gelu_tanh": lambda h: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))),
}
GATE = "each neuron's gate Phi(h) in h * Phi(h)"
FROZEN = {"relu": "the neurons that are on", "gelu": GATE, "gelu_tanh": GATE + ", Phi by a tanh"}


class TransformerAccountant:
    """Called with (tokens [B, T] or real numbers [B, T, inputs], at [B]); see `accounts.Accountant`."""

    def __init__(self, model: Transformer, circuit: Circuit | None, reference: Reference) -> None:
        self.model, c = model, model.config
        self.fold = fold = Folding(model, circuit, reference)
        self.graph = graph = fold.graph
        self.frozen: tuple[str, ...] = ("where each head looks", FROZEN[c.activation])
        if c.norm:
            self.frozen += ("what each norm divides by",)
        if c.norm == "layer":
            self.frozen += ("the mean that LayerNorm takes away",)
        if c.abstopk < 1:
            self.frozen += ("which nodes AbsTopK keeps",)
        self.kept = {s.name: fold.kept(s.name) for s in graph.sites}
        self.sums = {e.name: fold.sum(e) for e in graph.links if e.kind == "sum"}
        weights = {e.name: e for e in graph.links if e.kind == "weight"}
        self.weights = {n: fold.weight(e)[0] for n, e in weights.items()}
        self.constants = {n: fold.constant(e) for n, e in weights.items() if not e.through}
        self.behind = {n: self._behind(e) for n, e in weights.items() if e.through}
        self.entering = {n: self._entering(e) for n, e in weights.items() if e.counts == "block"}
        self.matrices = {
            n: Matrix(n, e.src, e.dst, self.weights[n]) for n, e in weights.items() if e.counts == "block" or
            e.counts == "unembedding"
        }  # fmt: skip
        self.given = "values" if c.inputs else "tokens"
        self.rows = self.weights[f"{self.given}>embed"].T.contiguous()  # [V, D]
        self.places = self.weights["positions>embed"].T if c.positions else None
        self.start = torch.stack([v for n, v in self.constants.items() if n.endswith(">embed")]).sum(0)
        self.bigram = None if model.bigram is None else model.bigram.detach().double().cpu()

    def _behind(self, link: Link) -> Tensor:
        """What ablated edges behind attention bring for each unit of attention that a head pays: [H, dst]."""
        _, ablated = self.fold.weight(link)
        if not bool(ablated.any()):
            return ablated.new_zeros(self.model.config.d_model // self.model.config.d_head, len(ablated))
        return (ablated * self.fold.rest(link.src)).unflatten(1, (-1, self.model.config.d_head)).sum(-1).T

    def _entering(self, link: Link) -> dict[str, Tensor]:
        """kind -> constants [dst] that enter the end of a link; without those that are 0."""
        bias = self.model.get_submodule(link.module).bias
        out = {} if bias is None else {"bias": bias.detach().double().cpu()}  # type: ignore[union-attr,operator]
        carried = self.constants.get(link.name)
        return out | ({"reference": carried} if carried is not None and bool(carried.any()) else {})

    def __call__(self, inputs: Inputs) -> FrozenRun:
        if len(inputs) != 2:
            raise UsageError(
                f"an account of a transformer needs tokens and the position that is asked; got {len(inputs)} inputs."
            )
        run = _Run(self, *inputs)
        return FrozenRun(run.spots, tuple(run.maps), run.inputs)


class _Run:
    """One forward pass; `spots` and `maps` are what it leaves."""

    def __init__(self, of: TransformerAccountant, tokens: Tensor, at: Tensor) -> None:
        self.of, self.at, self.length = of, at, tokens.shape[1]
        self.spots: dict[str, Spot] = {}
        self.maps: list[Map] = []
        model, c = of.model, of.model.config
        self._embed(tokens)
        writers = ["embed"]
        for i, block in enumerate(model.blocks):
            self._attention(f"block{i}.attn", block.attn, writers)  # type: ignore[arg-type]
            writers.append(f"block{i}.attn.write")
            self._mlp(f"block{i}.mlp", block.mlp, writers)  # type: ignore[arg-type]
            writers.append(f"block{i}.mlp.write")
        self._read("final.in", writers, model.norm, model.read, at)
        sources, table = {"reference": of.constants["final.in>logits"]}, None
        if c.unembed_bias:
            sources["bias"] = model.unembed.bias.detach().double().cpu()
        if of.bigram is not None:
            row = of.bigram[tokens[torch.arange(len(tokens)), at]]
            mask, constant = of.sums["bigram>logits"]
            self.spots["bigram"] = summed(None, {"bigram": row}, of.kept["bigram"])
            self.maps.append(Sum("bigram>logits", "bigram", "logits", mask))
            table = self.maps[-1](self.spots["bigram"].sent)
            sources["reference"] = sources["reference"] + constant
        self.maps.append(of.matrices["final.in>logits"])
        brought = self.maps[-1](self.spots["final.in"].sent)
        brought = brought if table is None else brought + table
        self._keep("logits", summed(brought, sources, of.kept["logits"]))

    def _embed(self, tokens: Tensor) -> None:
        of = self.of
        sources, brought, kind = {"reference": of.start}, None, "token"
        if of.places is not None:
            sources["position"] = of.places[: self.length]
        if of.given == "tokens":
            sources["token"] = torch.nn.functional.embedding(tokens, of.rows)
            self.inputs = (("embed", "token"),)
        else:
            kind = "input"
            self.spots["values"] = summed(None, {kind: tokens.double()}, of.kept["values"])
            of.matrices.setdefault("values>embed", Matrix("values>embed", "values", "embed", of.rows.T))
            self.maps.append(of.matrices["values>embed"])
            brought = self.maps[-1](self.spots["values"].sent)
            self.inputs = (("values", kind),)
        width = of.model.config.d_model
        self._keep("embed", summed(brought, sources, of.kept["embed"], width=width))

    def _keep(self, site: str, spot: Spot) -> None:
        """Constants that are 0 throughout are no sources."""
        full = {k: v for k, v in spot.sources.items() if bool(v.any()) or (site, k) in self.inputs}
        self.spots[site] = Spot(spot.sent, spot.scale, full, spot.axis, spot.width)

    def _read(self, site: str, writers: list[str], norm: nn.Module, node: nn.Module, at: Tensor | None = None) -> None:
        """What a reader takes from the stream; with `at` [B], at one position only."""
        of, brought, constant = self.of, [], torch.zeros((), dtype=torch.float64)
        for w in writers:
            mask, rest = of.sums[f"{w}>{site}"]
            self.maps.append(Sum(f"{w}>{site}", w, site, mask, at, self.length))
            brought.append(self.maps[-1](self.spots[w].sent))
            constant = constant + rest
        gain = None if isinstance(norm, nn.Identity) or norm.weight is None else norm.weight.detach().double().cpu()  # type: ignore[union-attr,operator]
        bend = None if isinstance(norm, nn.Identity) else lambda h: _size(norm, h) * (1.0 if gain is None else gain)
        bias = getattr(norm, "bias", None)

        def centred(h: Tensor) -> dict[str, Tensor]:
            mean = -h.mean(-1, keepdim=True) * _size(norm, h) * (1.0 if gain is None else gain)
            after = {"norm": mean.expand_as(h)}
            return after | ({} if bias is None else {"bias": bias.detach().double().cpu().expand_as(h)})

        shift = centred if isinstance(norm, nn.LayerNorm) else None
        total = brought[0]
        for x in brought[1:]:
            total = total + x
        sources = {"reference": constant} if bool(constant.any()) else {}
        self.spots[site] = summed(total, sources, of.kept[site], bend, shift, selecting(node))

    def _weight(self, name: str, node: nn.Module, gate: Callable[[Tensor], Tensor] | None = None) -> Spot:
        """A matrix at every position, and what its end sends."""
        of, m = self.of, self.of.matrices[name]
        self.maps.append(m)
        brought = m(self.spots[m.src].sent)
        self.spots[m.dst] = summed(brought, of.entering[name], of.kept[m.dst], gate, None, selecting(node))
        return self.spots[m.dst]

    def _steering(self, site: str, name: str, node: nn.Module) -> Tensor:
        """Queries or keys [B, T, D], ablated ones at their constants; no path leads through them."""
        of, m = self.of, self.of.matrices[name]
        x = m(self.spots[m.src].sent) + sum(of.entering[name].values())
        select, kept = selecting(node), of.kept[site]
        x = x if select is None else select(x)
        return x if bool(kept.all()) else kept * x + (1 - kept) * of.fold.rest(site)

    def _attention(self, name: str, attn: nn.Module, writers: list[str]) -> None:
        of = self.of
        self._read(f"{name}.in", writers, attn.norm, attn.read)  # type: ignore[arg-type]
        q, k = (self._steering(f"{name}.{p}", f"{name}.in>{name}.{p}", getattr(attn, p)) for p in "qk")
        values = self._weight(f"{name}.in>{name}.v", attn.v)  # type: ignore[arg-type]
        pattern = _pattern(attn.attend, q, k)  # type: ignore[arg-type]
        link = f"{name}.v>{name}.write"
        mix = Mix(of.matrices[link], pattern)
        self.maps.append(mix)
        site, sources = f"{name}.write", dict(of.entering[link])
        if bool(of.behind[link].any()):  # a sink takes some of the attention away
            sources["reference"] = pattern.sum(-1).transpose(1, 2) @ of.behind[link]
        spot = summed(mix(values.sent), sources, of.kept[site], None, None, selecting(attn.write))
        self.spots[site] = spot

    def _mlp(self, name: str, mlp: nn.Module, writers: list[str]) -> None:
        self._read(f"{name}.in", writers, mlp.norm, mlp.read)  # type: ignore[arg-type]
        self._weight(f"{name}.in>{name}.act", mlp.act, GATES[self.of.model.config.activation])  # type: ignore[arg-type]
        self._weight(f"{name}.act>{name}.write", mlp.write)  # type: ignore[arg-type]


def _size(norm: nn.Module, h: Tensor) -> Tensor:
    """What a norm multiplies by at every position [.., 1]; its eps is that of float32, in which the model runs."""
    if isinstance(norm, nn.LayerNorm):
        return torch.rsqrt(h.var(-1, unbiased=False, keepdim=True) + norm.eps)
    assert isinstance(norm, nn.RMSNorm)
    eps = norm.eps if norm.eps is not None else torch.finfo(torch.float32).eps
    return torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)


def _pattern(attend: nn.Module, q: Tensor, k: Tensor) -> Tensor:
    """Attention weights [B, H, T, T] in float64 (see `models.transformer.Attend`)."""
    heads = attend.n_head
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))  # type: ignore[arg-type]
    t = q.shape[-2]
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    logits = logits.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -torch.inf)
    if attend.sink is None:
        return logits.softmax(-1)
    sink = attend.sink.detach().double().cpu().view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)  # type: ignore[union-attr,operator]
    return torch.cat([sink, logits], -1).softmax(-1)[..., 1:]


__all__ = ["TransformerAccountant"]
