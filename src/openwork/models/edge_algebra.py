"""First-order scores of all edges between heads and MLPs, by algebra on the residual stream.

The score of an edge u > v is how much the metric would lose, to first order, if v read u's reference: with h what u
sends, r its reference, x the stream that v reads and g the gradient of the metric with respect to it,

    score(u > v) = sum over examples and positions of (h_u - r_u) . g_v

(edge attribution patching, Syed et al. 2023, arXiv 2310.10348; averaged over inputs between reference and clean:
EAP-IG, Hanna et al. 2024, arXiv 2403.17806; averaged over masks between 0 and 1: integrated gradients on the masks.)

All heads of a layer read the same stream, so g_v is never needed from automatic differentiation: backpropagation goes
through the plain model, and from the gradients at q, k, v and the norms' outputs the rest is closed form. With x_hat
the normalised stream, s its scale, P the centring (LayerNorm; the identity for RMSNorm), gamma the gain, D channels:

    g_v = (1/s) (a - x_hat (x_hat . a) / D),  a = P (gamma * W_v^T gradient at q, k or v)

where x_hat . a is the gradient at q, k or v times q, k or v themselves, less what biases add to them. The bill is that
of one forward, one forward with backward, and the differences h - r of all nodes; no tensor per head enters automatic
differentiation.

Knows `models.transformer`, and what `models.components` calls its edges. Does not know what the metric means, nor what
the scores are for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from openwork.errors import UsageError
from openwork.models.pieces import embedded, head_outputs
from openwork.models.transformer import Attention, MLPBlock, Transformer
from openwork.patching import Inputs, Reference

Along = Literal["inputs", "masks"]


@dataclass(frozen=True, eq=False)
class _Reader:
    """One stream that is read, and where gradients are taken for its readers.

    names    the sites that read it: queries, keys and values of a layer; an MLP; the logits
    stream   [.., D] before the norm
    maps     what makes q, k and v of the norm's output; empty where the norm's output is itself a point
    points   tensors whose gradient is wanted: q, k and v [B, T, H d], or the norm's output [.., D]
    sources  how many nodes write to the stream
    """

    names: tuple[str, ...]
    stream: Tensor
    norm: nn.Module
    maps: tuple[nn.Linear, ...]
    points: tuple[Tensor, ...]
    sources: int


def edge_scores(
    model: Transformer,
    inputs: Inputs,
    reference: Reference,
    judge: Callable[[Tensor], Tensor],
    levels: Sequence[float] = (1.0,),
    along: Along = "inputs",
) -> dict[str, Tensor]:
    """Scores of every edge between components: link of `Components` -> [dst, src]; mean over levels, sum over examples.

    inputs     (tokens [B, T], at [B]) or (tokens,)
    reference  site of `Components` -> [n, D], or [B, T, n, D] on these inputs' counterparts
    judge      logits -> one number, the sum over the examples of what is judged
    levels     where gradients are taken: 1 is the model on these inputs, 0 the reference
    along      "inputs": the input is moved between its reference and what it is, differences are those at the two
               ends; "masks": all edges are, and differences are those of the run at hand
    UsageError where the reference lacks a site.
    """
    sources = _sources(model)
    missing = [n for n in [*sources, *(["bigram"] if model.config.bigram else [])] if n not in reference]
    if missing:
        raise UsageError(f"the reference has no value for site {missing[0]}; record one for every site of the model.")
    run = _Run(model, inputs, reference)
    whole = along == "inputs" and tuple(levels) != (1.0,)
    if whole:
        with torch.no_grad():
            run.forward(1.0, along)
    total: dict[str, Tensor] = {}
    for level in levels:
        with torch.enable_grad():
            logits, readers = run.forward(level, along, fill=not whole)
            grads = iter(torch.autograd.grad(judge(logits), [p for r in readers for p in r.points]))
        for r in readers:
            scores = run.contracted(r, [next(grads) for _ in r.points])
            for name, rows in zip(r.names, scores.chunk(len(r.names)), strict=True):
                begin = 0
                for src, n in sources.items():
                    if begin < r.sources:
                        part, link = rows[:, begin : begin + n] / len(levels), f"{src}>{name}"
                        total[link] = total[link] + part if link in total else part
                    begin += n
    return total


class _Run:
    """The plain transformer on some inputs, what its components write kept apart.

    difference  [nodes, B, T, D]: h - r of every node that writes to the stream
    """

    def __init__(self, model: Transformer, inputs: Inputs, reference: Reference) -> None:
        self.model, self.reference = model, {n: v.detach() for n, v in reference.items()}
        self.tokens, self.at = inputs[0], inputs[1] if len(inputs) > 1 else None
        self.rows = torch.arange(len(self.tokens), device=self.tokens.device)
        self.heads = model.config.d_model // model.config.d_head
        weight = model.unembed.weight
        nodes = sum(_sources(model).values())
        shape = (nodes, len(self.tokens), self.tokens.shape[1], model.config.d_model)
        self.difference = torch.empty(shape, device=weight.device, dtype=weight.dtype)

    def forward(self, level: float, along: Along, fill: bool = True) -> tuple[Tensor, list[_Reader]]:
        """Logits at this level, and where to take gradients; with `fill`, writes down the differences."""
        model, r = self.model, self.reference
        readers: list[_Reader] = []
        share = level if along == "masks" else 1.0
        x = embedded(model, self.tokens).detach()
        other = r["input"][..., 0, :]
        if fill:
            self.difference[0] = x - other
        x = torch.lerp(other.expand_as(x), x, level).requires_grad_(torch.is_grad_enabled())
        n = 1
        for i, block in enumerate(model.blocks):
            attn: Attention = block.attn  # type: ignore[assignment]
            mlp: MLPBlock = block.mlp  # type: ignore[assignment]
            maps = (attn.to_q, attn.to_k, attn.to_v)
            h = attn.norm(x)
            q, k, v = (to(h) for to in maps)
            names = tuple(f"a{i}.{p}" for p in ("q", "k", "v"))
            readers.append(_Reader(names, x.detach(), attn.norm, maps, (q, k, v), n))
            mixed = attn.attend(q, k, v)
            if fill:
                with torch.no_grad():
                    self._fill(n, self.heads, head_outputs(attn, mixed, self.heads), r[f"a{i}"])
            n += self.heads
            x = x + _blended(attn.out(mixed), r[f"a{i}"].sum(-2) + attn.out.bias, share)

            h = mlp.norm(x)
            h = h.view_as(h)  # without a norm it is the stream itself, whose gradient comes from all later readers
            readers.append(_Reader((f"m{i}",), x.detach(), mlp.norm, (), (h,), n))
            write = mlp.down(mlp.bend(mlp.up(h)))
            if fill:
                self._fill(n, 1, write.detach()[..., None, :], r[f"m{i}"])
            n += 1
            x = x + _blended(write, r[f"m{i}"][..., 0, :], share)
        last = self.tokens
        if self.at is not None:
            x, last = x[self.rows, self.at], self.tokens[self.rows, self.at]
        h = model.norm(x)
        readers.append(_Reader(("logits",), x.detach(), model.norm, (), (h,), n))
        out = model.unembed(h)
        if model.bigram is not None:
            table = model.bigram[last]
            out = out + _blended(table, r["bigram"][..., 0, :], level if along == "inputs" else 1.0)
        return out, readers

    def _fill(self, begin: int, many: int, h: Tensor, reference: Tensor) -> None:
        torch.sub(h.movedim(-2, 0), reference.expand_as(h).movedim(-2, 0), out=self.difference[begin : begin + many])

    @torch.no_grad()
    def contracted(self, r: _Reader, grads: Sequence[Tensor]) -> Tensor:
        """Scores [readers, sources] of all edges into one stream, from the gradients at its points."""
        d = self.difference.shape[-1]
        x_hat, inverse, gain, centred = _normalised(r.norm, r.stream)
        sent = self.difference[: r.sources]
        if r.names == ("logits",) and self.at is not None:
            sent = sent[:, self.rows, self.at]
        sent = sent.reshape(r.sources, -1, d)
        n = sent.shape[1]
        if r.maps:
            a = torch.empty(len(r.maps), self.heads, n, d, device=sent.device, dtype=sent.dtype)
            along = torch.empty(len(r.maps), n, self.heads, device=sent.device, dtype=sent.dtype)  # x_hat . a
            for i, (g, point, to) in enumerate(zip(grads, r.points, r.maps, strict=True)):
                g = (g * inverse).reshape(n, self.heads, -1)
                w = to.weight * gain
                w = w - w.mean(-1, keepdim=True) if centred else w
                torch.bmm(g.transpose(0, 1), w.view(self.heads, -1, d), out=a[i])
                shift = getattr(r.norm, "bias", None)
                constant = to.bias if shift is None else to.bias + to.weight @ shift
                torch.sum(g * (point - constant).reshape(n, self.heads, -1), -1, out=along[i])
            a, along = a.flatten(0, 1), along.transpose(1, 2).flatten(0, 1)
        else:
            a = (grads[0] * inverse * gain).reshape(1, n, d)
            a = a - a.mean(-1, keepdim=True) if centred else a
            along = (a * x_hat.reshape(n, d)).sum(-1) if x_hat is not None else None
        if x_hat is not None and along is not None:
            a.addcmul_(x_hat.reshape(n, d), along[..., None], value=-1 / d)
        return a.flatten(1) @ sent.flatten(1).T


def _normalised(norm: nn.Module, x: Tensor) -> tuple[Tensor | None, Tensor, Tensor, bool]:
    """(x_hat, or None without a norm; 1/s [.., 1]; gain [D]; whether the norm centres) of a stream."""
    ones = torch.ones(x.shape[-1], device=x.device, dtype=x.dtype)
    if not isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        return None, ones[:1], ones, False
    centred = isinstance(norm, nn.LayerNorm)
    x = x - x.mean(-1, keepdim=True) if centred else x
    eps = norm.eps if norm.eps is not None else torch.finfo(x.dtype).eps
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * inverse, inverse, norm.weight.detach() if norm.weight is not None else ones, centred


def _blended(write: Tensor, other: Tensor, share: float) -> Tensor:
    return write if share == 1 else torch.lerp(other.expand_as(write), write, share)


def _sources(model: Transformer) -> dict[str, int]:
    """What writes to the stream, in order -> its number of nodes."""
    heads = model.config.d_model // model.config.d_head
    parts = [(f"{p}{i}", n) for i in range(model.config.n_layer) for p, n in (("a", heads), ("m", 1))]
    return {"input": 1, **dict(parts)}


__all__ = ["Along", "edge_scores"]
