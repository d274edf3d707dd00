"""A transformer's circuit laid out small: only kept nodes and edges take part, so a circuit costs what it is.

With a constant reference r, an ablated edge is a constant: out = (E * W) h + [b + ((1 - E) * W) r], E the circuit's
edges. So every matrix shrinks to its kept rows and columns and the rest folds into its bias. Residual channels that
no kept node reads or writes matter only to the size that RMSNorm divides by; their squares are summed once per input.

Knows the wiring of `models.transformer`. Does not know tasks, losses, or how the circuit was found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openwork.circuit import Circuit
from openwork.patching import Layout, masks_of

if TYPE_CHECKING:
    from openwork.models.transformer import Attention, MLPBlock, Transformer


INPUTS_HELD = 16  # a layout remembers its first run on so many inputs
LANES = 16  # a softmax over fewer entries than this runs one by one in PyTorch on a CPU, several times slower


@dataclass(frozen=True)
class _Begun:
    """What the first run on some inputs left for the next ones, which differ from it by a few masks.

    inputs   held so that their ids, by which this is found, are not given to others
    rest     per norm, the sum of squares of all channels not in use: [B, T], or [B] where only one position is asked
    masks    the masks of that first run
    seen     per mask, the tensor that was last found equal to that of the first run, and its version
    streams  what entered each part (attention, MLP, attention, ...): [B, T, U] or [B, U], the channels in use

    A run goes on from the first part whose masks are not those of the first run.
    """

    inputs: tuple[Tensor, ...]
    rest: tuple[Tensor, ...]
    masks: dict[str, Tensor]
    seen: dict[str, tuple[Tensor, int]]
    streams: list[Tensor]


class TransformerLayout(Layout):
    """`patching.Layout` for a transformer without AbsTopK and a reference of one vector per site.

    Shapes: B sequences, T positions, U residual channels in use, everything else as kept.
    """

    def __init__(self, model: Transformer, circuit: Circuit, reference: Mapping[str, Tensor]) -> None:
        super().__init__(model, circuit, reference)
        self.transformer = model
        self.r = {n: v.detach().cpu() for n, v in reference.items()}
        streams = [n for n in self.node_index if n.endswith((".in", ".write"))]
        used = torch.zeros(model.config.d_model, dtype=torch.bool)
        for n in streams:
            used |= circuit.nodes[n]
        self.used = used.nonzero().flatten()  # [U]
        self.place = torch.full((model.config.d_model,), -1).index_copy(0, self.used, torch.arange(len(self.used)))
        self.at = {n: self.place[self.node_index[n]] for n in streams}  # kept nodes' places among the channels in use
        self.resting = {n: v[self.node_index[n]] for n, v in self.r.items() if n in self.node_index}
        self.written: dict[str, Tensor] = {}  # write site -> what its dropped nodes send, at the channels in use [U]
        for n in streams:
            if n.endswith(".write"):
                self.written[n] = self.r[n].index_fill(0, self.node_index[n], 0.0)[self.used]
        self._whole: dict[str, tuple[Tensor, int]] = {}  # site -> the mask last found to keep all, and its version
        self.parts: list[_AttentionPart | _MLPPart] = []
        for i, b in enumerate(model.blocks):
            self.parts.append(_AttentionPart(self, f"block{i}.attn", b.attn))  # type: ignore[arg-type]
            self.parts.append(_MLPPart(self, f"block{i}.mlp", b.mlp))  # type: ignore[arg-type]
        w = model.unembed.weight.detach()
        kept = circuit.edges["final.in>logits"].float()
        index = self.node_index["final.in"]
        self.w_out = (w * kept)[:, index]
        self.b_out = (w * (1 - kept)) @ self.r["final.in"]
        if model.unembed.bias is not None:
            self.b_out = self.b_out + model.unembed.bias.detach()
        self._begun: dict[tuple[int, ...], _Begun] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        tokens, at = inputs[0], inputs[1] if len(inputs) > 1 else None
        key = tuple(id(t) for t in inputs)
        learning = torch.is_grad_enabled() and any(m.requires_grad for m in self._masks().values())
        new = key not in self._begun and not learning  # what was learned on is hardly ever asked again
        begun = self._begun[key] if key in self._begun else self._begin(inputs)
        if new:
            if len(self._begun) >= INPUTS_HELD:
                del self._begun[next(iter(self._begun))]
            self._begun[key] = begun
        first = 0 if learning else self._first_change(begun)
        x, last = begun.streams[first], tokens
        for i in range(first, len(self.parts)):
            asked = at if i + 2 == len(self.parts) else None  # of the last block only the position asked matters
            x = self.parts[i](x, begun.rest[i], asked)
            if new:
                begun.streams.append(x.detach())
        if at is not None:
            last = tokens[torch.arange(len(tokens)), at]
        h = self.read("final.in", x, begun.rest[-1], self.transformer.norm)
        out = h @ self.w_out.T + self.b_out
        if self.transformer.bigram is not None:
            table = self.transformer.bigram[last]
            m = self.circuit.nodes["bigram"].float()
            out = out + (m * table + (1 - m) * self.r["bigram"])
        return out

    def _masks(self) -> dict[str, Tensor]:
        return {**self.nodes, **self.edges}

    def _first_change(self, begun: _Begun) -> int:
        """The first part that a mask has changed for, or that was not run yet."""
        changed = []
        for n, m in self._masks().items():
            known, version = begun.seen[n]
            if m is known and m._version == version:
                continue
            if torch.equal(m, begun.masks[n]):
                begun.seen[n] = m, m._version
            else:
                changed.append(n)
        parts = [i for i, part in enumerate(self.parts) for n in changed if n.startswith(f"{part.name}.")]
        return min([*parts, len(begun.streams) - 1])

    def _begin(self, inputs: tuple[Tensor, ...]) -> _Begun:
        """The stream as the embedding leaves it, and what the channels not in use add to each norm."""
        model, tokens = self.transformer, inputs[0]
        with torch.no_grad():
            x = model.embed(tokens)
            if model.positions is not None:
                x = x + model.positions(torch.arange(tokens.shape[1]))
            keep = self.circuit.nodes["embed"]
            x = torch.where(keep, x, self.r["embed"])
            unused = (self.place < 0).nonzero().flatten()
            rest, sums = x[..., unused], []
            for part in self.parts:
                sums.append(rest.square().sum(-1))
                rest = rest + self.r[f"{part.name}.write"][unused]
            sums.append(rest.square().sum(-1))
            if len(inputs) > 1:  # after the last attention only the position asked is left
                rows = torch.arange(len(tokens))
                sums[-2:] = [s[rows, inputs[1]] for s in sums[-2:]]
            masks = {n: m.detach().clone() for n, m in self._masks().items()}
            seen = {n: (m, m._version) for n, m in self._masks().items()}
        return _Begun(inputs, tuple(sums), masks, seen, [x[..., self.used]])

    def read(self, site: str, x: Tensor, rest: Tensor, norm: nn.Module) -> Tensor:
        """What the kept nodes of a read site send: [.., kept]."""
        h = x.index_select(-1, self.at[site])
        if not isinstance(norm, nn.RMSNorm):  # a model without norms
            return self.blend(site, h)
        eps = norm.eps if norm.eps is not None else torch.finfo(x.dtype).eps
        h = h * torch.rsqrt((x.square().sum(-1) + rest) / self.transformer.config.d_model + eps)[..., None]
        if norm.weight is not None:
            h = h * norm.weight.detach()[self.node_index[site]]
        return self.blend(site, h)

    def blend(self, site: str, h: Tensor) -> Tensor:
        """Kept nodes with their mask applied: m h + (1 - m) r."""
        m = self.nodes[site]
        if not m.requires_grad:
            known, version = self._whole.get(site, (None, -1))
            if m is known and m._version == version:
                return h
            if bool((m == 1).all()):
                self._whole[site] = m, m._version
                return h
        return torch.lerp(self.resting[site].expand_as(h), h, m.expand_as(h))

    def write(self, site: str, x: Tensor, out: Tensor) -> Tensor:
        """The stream after a sublayer whose kept write nodes send `out`; the others send their reference."""
        x = x + self.written[site]
        return x.index_add(-1, self.at[site], self.blend(site, out)) if len(self.at[site]) else x


class _Matrix:
    """One link between kept nodes: weight [kept dst, kept src] under the edge mask, the rest folded into the bias."""

    def __init__(self, layout: TransformerLayout, link: str, module: nn.Linear) -> None:
        self.layout, self.link = layout, link
        dst, src = layout.edge_index[link]
        r = layout.r[link.split(">")[0]]
        weight, kept = module.weight.detach(), layout.circuit.edges[link].float()
        self.kept = (weight * kept)[dst[:, None], src[None, :]]
        self.ablated = weight[dst] - (weight * kept)[dst]  # [kept dst, all src]
        assert module.bias is not None
        self.bias = module.bias.detach()[dst]
        self.constant = self.bias + self.ablated @ r
        self.r = r[src]
        self._known: tuple[Tensor, int, Tensor, Tensor] | None = None  # mask, its version, weight and bias under it

    def now(self) -> tuple[Tensor, Tensor]:
        """The kept weights under the present mask, and the bias with what all other edges carry."""
        mask = self.layout.edges[self.link]
        known = None if mask.requires_grad else self._known
        if known is not None and known[0] is mask and known[1] == mask._version:
            return known[2:]
        weight = self.kept * mask
        bias = self.constant + (self.kept - weight) @ self.r
        self._known = None if mask.requires_grad else (mask, mask._version, weight, bias)
        return weight, bias

    def __call__(self, h: Tensor) -> Tensor:
        return F.linear(h, *self.now())


class _MLPPart:
    def __init__(self, layout: TransformerLayout, name: str, block: MLPBlock) -> None:
        self.layout, self.name, self.norm, self.bend = layout, name, block.norm, block.bend
        self.up = _Matrix(layout, f"{name}.in>{name}.act", block.up)
        self.down = _Matrix(layout, f"{name}.act>{name}.write", block.down)
        self.silent = not len(layout.node_index[f"{name}.write"])

    def __call__(self, x: Tensor, rest: Tensor, _at: Tensor | None = None) -> Tensor:
        if self.silent:
            return self.layout.write(f"{self.name}.write", x, x)
        h = self.layout.read(f"{self.name}.in", x, rest, self.norm)
        a = self.layout.blend(f"{self.name}.act", self.bend(self.up(h)))
        return self.layout.write(f"{self.name}.write", x, self.down(a))


class _AttentionPart:
    def __init__(self, layout: TransformerLayout, name: str, block: Attention) -> None:
        self.layout, self.name, self.norm = layout, name, block.norm
        self.parts = {p: _Matrix(layout, f"{name}.in>{name}.{p}", getattr(block, f"to_{p}")) for p in "qkv"}
        self.out = _Matrix(layout, f"{name}.v>{name}.write", block.out)
        self.sink = block.attend.sink
        n_head = block.attend.n_head
        writes = layout.node_index[f"{name}.write"]
        joined = block.out.weight.detach()[writes].abs().sum(0).view(n_head, -1) != 0
        if self.sink is None:  # attention to constants is constant: only heads with a kept value channel matter
            joined = joined & layout.circuit.nodes[f"{name}.v"].view(n_head, -1)
        self.heads = joined.any(-1).nonzero().flatten()
        d_head = joined.shape[1]
        self.scale = 1 / math.sqrt(d_head)
        self.channels = (self.heads[:, None] * d_head + torch.arange(d_head)).flatten()  # [C] all of these heads
        # A key channel that is constant adds the same to the logits of all keys, which only a sink can feel.
        everything = torch.ones(n_head * d_head, dtype=torch.bool)
        keys = layout.circuit.nodes[f"{name}.k"] if self.sink is None else everything
        self.slots = {p: self._slots(keys, d_head) for p in "qk"}
        self.slots["v"] = self._slots(layout.circuit.nodes[f"{name}.v"], d_head)
        self.fixed, self.rows, self.here = {}, {}, {}  # what slots send; where kept channels go, and which these are
        for p, slots in self.slots.items():
            self.fixed[p] = torch.where(slots < 0, 0.0, layout.r[f"{name}.{p}"][slots])
            n = n_head * d_head
            place = torch.full((n + 1,), -1).index_copy(0, slots % (n + 1), torch.arange(len(slots)))
            at = place[layout.node_index[f"{name}.{p}"]]
            self.here[p] = (at >= 0).nonzero().flatten()
            self.rows[p] = at[at >= 0]
        self.silent = not len(writes)

    def _slots(self, kept: Tensor, d_head: int) -> Tensor:
        """Channels of the heads in use that matter, head by head, with -1 in front up to the same number: [H * D]."""
        some = kept.view(-1, d_head)[self.heads]
        most = int(some.sum(1).max()) if some.numel() else 0
        order = some.int().argsort(dim=1, stable=True)[:, d_head - most :]
        channel = self.heads[:, None] * d_head + order
        return torch.where(some.gather(1, order), channel, -1).flatten()

    def __call__(self, x: Tensor, rest: Tensor, at: Tensor | None = None) -> Tensor:
        """The stream after this part, [B, T, U]; with positions `at` [B], only there: [B, U]."""
        layout, name = self.layout, self.name
        rows = torch.arange(len(x))
        here = x if at is None else x[rows, at]
        if self.silent:
            return layout.write(f"{name}.write", here, here)
        if not len(self.heads):
            return layout.write(f"{name}.write", here, self.out.constant.expand(*here.shape[:-1], -1))
        h = layout.read(f"{name}.in", x, rest, self.norm)
        k, v = self._channels("k", h), self._channels("v", h)
        if (short := LANES - k.shape[-2]) > 0:  # what stands after every position takes no part
            k, v = F.pad(k, (0, 0, 0, short)), F.pad(v, (0, 0, 0, short))
        q = self._channels("q", h if at is None else h[rows, at][:, None])
        pattern = self._pattern(q, k, at)  # [B, H, T, T], or [B, H, 1, T]
        y = (pattern @ v).transpose(1, 2).flatten(-2)  # [B, T, H * D]
        w, constant = self.out.now()  # [writes, kept v], [writes]
        y = y.index_select(-1, self.rows["v"])
        if self.sink is None:
            out = F.linear(y, w[:, self.here["v"]], constant)
        else:  # what a frozen channel delivers shrinks with the share that the sink takes
            gone = self.out.ablated.clone()  # [writes, all v]: weights of edges outside the circuit or under the mask
            gone = gone.index_add(1, layout.node_index[f"{name}.v"], self.out.kept - w) * layout.r[f"{name}.v"]
            mass = pattern.sum(-1).transpose(1, 2)  # [B, T, H]
            gone = mass @ gone[:, self.channels].unflatten(-1, (len(self.heads), -1)).sum(-1).T
            out = F.linear(y, w[:, self.here["v"]], self.out.bias) + gone
        return layout.write(f"{name}.write", here, out if at is None else out[:, 0])

    def _channels(self, p: str, h: Tensor) -> Tensor:
        """The slots of the heads in use, [B, H, T, D]; channels outside the circuit send their reference."""
        live = self.layout.blend(f"{self.name}.{p}", self.parts[p](h)).index_select(-1, self.here[p])
        full = self.fixed[p].expand(*h.shape[:-1], -1).index_copy(-1, self.rows[p], live)
        return full.unflatten(-1, (len(self.heads), -1)).transpose(1, 2)

    def _pattern(self, q: Tensor, k: Tensor, at: Tensor | None) -> Tensor:
        """Attention weights [B, H, positions asked, keys]; of the keys, those that come later have none."""
        here = torch.arange(q.shape[-2])[:, None] if at is None else at[:, None, None, None]
        later = torch.arange(k.shape[-2]) > here  # [T, keys], or [B, 1, 1, keys]
        logits = torch.where(later, -torch.inf, 0.0) + q @ k.transpose(-1, -2) * self.scale
        if self.sink is None:
            return logits.softmax(-1)
        sink = self.sink.detach()[self.heads].view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        return torch.cat([sink, logits], -1).softmax(-1)[..., 1:]


def compact_transformer(model: Transformer, circuit: Circuit, reference: Mapping[str, Tensor]) -> Layout | None:
    """The small layout, or None where it does not apply: AbsTopK ranks all nodes together, so none can be left out.

    Nor does it for LayerNorm, whose mean is one more sum over the channels that are not in use.
    """
    c = model.config
    if c.norm == "layer":
        return None
    embeds = [e.name for e in circuit.graph.links if e.counts == "embedding"]
    cut = set(masks_of(model, circuit)[1])
    on_cpu = next(model.parameters()).device.type == "cpu"
    if c.abstopk < 1 or not on_cpu or any(e in cut for e in embeds) or _cuts_sums(circuit, cut):
        return None
    return TransformerLayout(model, circuit, reference)


def _cuts_sums(circuit: Circuit, cut: set[str]) -> bool:
    return any(e.kind == "sum" and e.name in cut for e in circuit.graph.links)
