"""Running a transformer again and again with a few more of its edges between heads and MLPs ablated.

With h what a node sends, r its reference and d = h - r, a reader's stream is linear in its edges:

    stream of v = (sum of r_u over all u before v, and biases) + sum over kept edges u > v of d_u

so d of every node is all that is kept between runs, and a run that changes the edges of one reader costs only

    what lies behind   the nodes after that reader whose own stream changes with it; what is before is never run again
    what is heard      nodes from which kept edges lead to the logits
    where it is heard  positions: behind the keys and values of kept edges all of them, elsewhere the one that is asked
    once               readers of the same edges share their stream and its norm

Several variants of one reader's edges are run side by side. `models.components` under `patching.patched` is the plain,
slow way, with which all of this agrees.

Shapes: K variants, B sequences, T positions, D residual channels, d channels per head, S nodes that send.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from openwork.errors import UsageError
from openwork.models.pieces import embedded
from openwork.models.transformer import Attention, MLPBlock, Transformer
from openwork.patching import Inputs, Reference

Entry = tuple[str, tuple[int, ...]]  # link, (dst, src)
Row = NDArray[np.bool_]
PARTS = ("q", "k", "v")
UNHEARD, ASKED, EVERYWHERE = 0, 1, 2  # where a node is heard


@dataclass
class _Variants:
    """What K variants of the current edges change: nodes' differences, and queries, keys and values of heads.

    full   node -> [K, B, T, D], for nodes heard everywhere; at: node -> [K, B, D]
    parts  (layer, part, head) -> [K, B, T, d], or [K, B, d] for queries of heads heard only where asked
    """

    reader: str
    index: int
    rows: NDArray[np.bool_]
    full: dict[int, Tensor]
    at: dict[int, Tensor]
    parts: dict[tuple[int, str, int], Tensor]
    logits: Tensor


class EdgeRuns:
    """A transformer on some inputs, with the edges of `Components` kept or ablated. `begin` first, then `trial`.

    inputs     (tokens [B, T], at [B])
    reference  site of `Components` -> [n, D], or [B, T, n, D] on these inputs' counterparts
    """

    def __init__(self, model: Transformer, inputs: Inputs, reference: Reference) -> None:
        if len(inputs) != 2:
            raise UsageError("runs of edges need (tokens, at): the position of every sequence that is asked.")
        c = self.config = model.config
        self.model, (self.tokens, self.asked) = model, inputs
        self.heads, self.layers, self.width = c.d_model // c.d_head, c.n_layer, c.d_model
        batch, length = self.tokens.shape[:2]
        self.rows_at = torch.arange(batch, device=self.tokens.device)
        weight = model.unembed.weight
        self.later = torch.arange(length, device=weight.device) > self.asked[:, None]  # [B, T]
        many = self.first("logits")
        self.full = torch.zeros(many, batch, length, c.d_model, device=weight.device, dtype=weight.dtype)
        self.r_full = torch.empty_like(self.full)
        for site, begin, n in self._sites():
            r = reference[site].detach()
            self.r_full[begin : begin + n] = r.expand(batch, length, n, c.d_model).movedim(2, 0)
        self.r_at, self.at = self._at(self.r_full), torch.zeros(many, batch, c.d_model).to(weight)
        with torch.no_grad():
            self.full[0] = embedded(model, self.tokens) - self.r_full[0]
            self.at[0] = self._at(self.full[0])
            self.base_full, self.base_at = self._bases()
            self.table = None if model.bigram is None else model.bigram[self.tokens[self.rows_at, self.asked]]
        self.parts: dict[tuple[int, str, int], Tensor] = {}
        self.edges: dict[str, Row] = {}  # reader -> [its nodes, nodes before it]
        self.heard: list[int] = []
        self.logits = torch.empty(0)
        self._tried: _Variants | None = None

    # -- places ---------------------------------------------------------------------------------------------------

    def first(self, site: str) -> int:
        """The number of a site's first node among those that send; of a reader, how many nodes are before it."""
        if site == "input":
            return 0
        if site == "logits":
            return 1 + self.layers * (self.heads + 1)
        name, layer = site[0], int(site[1:].partition(".")[0])
        return 1 + layer * (self.heads + 1) + (self.heads if name == "m" else 0)

    def _sites(self) -> list[tuple[str, int, int]]:
        names = [(f"{p}{i}", n) for i in range(self.layers) for p, n in (("a", self.heads), ("m", 1))]
        return [("input", 0, 1), *((s, self.first(s), n) for s, n in names)]

    def _stage(self, reader: str) -> int:
        if reader == "logits":
            return 2 * self.layers
        return 2 * int(reader[1:].partition(".")[0]) + (reader[0] == "m")

    def _at(self, x: Tensor) -> Tensor:
        """[..., B, T, D] to [..., B, D] at the positions asked."""
        return x[..., self.rows_at, self.asked, :]

    def _bases(self) -> tuple[Tensor, Tensor]:
        """Per stage (attention, MLP, attention, ..., logits), the stream of a reader that keeps no edge."""
        out, now, n = [], torch.zeros_like(self.r_full[0]), 0
        for stage in range(2 * self.layers + 1):
            upto = 1 + (stage // 2) * (self.heads + 1) + (stage % 2) * self.heads
            now = now + self.r_full[n:upto].sum(0)
            if stage % 2:
                attn: Attention = self.model.blocks[stage // 2].attn  # type: ignore[assignment]
                now = now + attn.out.bias
            n = upto
            out.append(now)
        return torch.stack(out), torch.stack([self._at(x) for x in out])

    # -- runs -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, V] with these edges (link -> bool [dst, src]; links that are left out are kept whole)."""
        readers = [(f"a{i}.{p}", self.heads) for i in range(self.layers) for p in PARTS]
        readers += [(f"m{i}", 1) for i in range(self.layers)] + [("logits", 1)]
        for reader, n in readers:
            self.edges[reader] = np.ones((n, self.first(reader)), dtype=np.bool_)
            for site, begin, many in self._sites():
                if f"{site}>{reader}" in masks and begin < self.first(reader):
                    self.edges[reader][:, begin : begin + many] = masks[f"{site}>{reader}"].cpu().bool().numpy()
        self._listen()
        self._tried = self._run("", 0, np.empty((1, 0), dtype=np.bool_))
        self.keep(0)
        return self.logits

    @torch.no_grad()
    def trial(self, changes: Sequence[Sequence[Entry]]) -> Tensor:
        """Logits [K, B, V] of K variants, each the current edges without some; all of them edges into one node."""
        (reader, index) = {(link.partition(">")[2], at[0]) for change in changes for link, at in change}.pop()
        rows = np.repeat(self.edges[reader][index][None], len(changes), 0)
        for row, change in zip(rows, changes, strict=True):
            for link, (dst, src) in change:
                assert link.endswith(f">{reader}") and dst == index, "variants differ in the edges of one reader"
                row[self.first(link.partition(">")[0]) + src] = False
        self._tried = self._run(reader, index, rows)
        return self._tried.logits

    def keep(self, k: int) -> None:
        """Makes variant k of the last trial the current edges."""
        tried = self._tried
        assert tried is not None, "there was no trial"
        for u, x in tried.at.items():
            self.at[u] = x[k]
        for u, x in tried.full.items():
            self.full[u] = x[k]
        self.parts |= {key: x[k] for key, x in tried.parts.items()}
        self.logits = tried.logits[k]
        if tried.reader:
            self.edges[tried.reader][tried.index] = tried.rows[k]
            self._listen()
        self._tried = None

    def _listen(self) -> None:
        """Works out where every node is heard."""
        heard = [UNHEARD] * self.first("logits")

        def hear(row: Row, where: int) -> None:
            for u in row.nonzero()[0].tolist():
                heard[u] = max(heard[u], where)

        hear(self.edges["logits"][0], ASKED)
        for i in reversed(range(self.layers)):
            if where := heard[self.first(f"m{i}")]:
                hear(self.edges[f"m{i}"][0], where)
            for h in range(self.heads):
                if where := heard[self.first(f"a{i}") + h]:
                    hear(self.edges[f"a{i}.q"][h], where)
                    hear(self.edges[f"a{i}.k"][h], EVERYWHERE)
                    hear(self.edges[f"a{i}.v"][h], EVERYWHERE)
        self.heard = heard

    def _run(self, reader: str, index: int, rows: NDArray[np.bool_]) -> _Variants:
        """The variants whose reader has these rows of edges; without a reader, everything anew."""
        v = _Variants(reader, index, rows, {}, {}, {}, self.logits)
        begin = self._stage(reader) if reader else 0
        for i in range(self.layers):
            if 2 * i >= begin:
                self._attention(i, v)
            if 2 * i + 1 >= begin:
                self._mlp(i, v)
        x = self._stream("logits", 0, False, v)
        if x is None:
            v.logits = self.logits.expand(len(rows), *self.logits.shape)
        else:
            out = self.model.unembed(self.model.norm(x))
            out = out if self.table is None else out + self.table
            v.logits = out.expand(len(rows), *out.shape[1:])
        return v

    def _stream(self, reader: str, index: int, wide: bool, v: _Variants) -> Tensor | None:
        """What a node of a reader reads, [K or 1, B, T, D] or [K or 1, B, D]; None where no variant changes it."""
        stage, n = self._stage(reader), self.first(reader)
        base, sent, changed = (self.base_full, self.full, v.full) if wide else (self.base_at, self.at, v.at)
        flat = sent[:n].flatten(1)
        if reader == v.reader and index == v.index:
            weights = torch.from_numpy(v.rows.astype(np.float32)).to(flat)
            return base[stage] + (weights @ flat).view(-1, *base.shape[1:])
        row = self.edges[reader][index]
        moved = [u for u in v.at if u < n and row[u]]
        if not moved and v.reader:
            return None
        still = row.copy()
        still[moved] = False
        x = base[stage][None]
        if still.any():
            x = x + (torch.from_numpy(still.astype(np.float32)).to(flat) @ flat).view(base.shape[1:])
        for u in moved:
            x = x + changed[u]
        return x

    def _attention(self, i: int, v: _Variants) -> None:
        """Heads of a layer that are heard and read, for any of their parts, something that changes."""
        attn: Attention = self.model.blocks[i].attn  # type: ignore[assignment]
        first = self.first(f"a{i}")
        heard = [h for h in range(self.heads) if self.heard[first + h]]
        alike: dict[tuple[bytes, bool], list[tuple[str, int]]] = {}
        for p in PARTS:
            for h in heard:
                wide = p != "q" or self.heard[first + h] == EVERYWHERE
                own = (f"a{i}.{p}", h) == (v.reader, v.index)
                key = b"" if own else self.edges[f"a{i}.{p}"][h].tobytes()
                alike.setdefault((key, wide), []).append((p, h))
        maps = {"q": attn.to_q, "k": attn.to_k, "v": attn.to_v}
        d = self.config.d_head
        for (_, wide), readers in alike.items():
            x = self._stream(f"a{i}.{readers[0][0]}", readers[0][1], wide, v)
            if x is None:
                continue
            rows = [slice(h * d, (h + 1) * d) for _, h in readers]
            weight = torch.cat([maps[p].weight[s] for (p, _), s in zip(readers, rows, strict=True)])
            bias = torch.cat([maps[p].bias[s] for (p, _), s in zip(readers, rows, strict=True)])
            out = F.linear(attn.norm(x), weight, bias).split(d, -1)
            v.parts |= {(i, p, h): y for (p, h), y in zip(readers, out, strict=True)}
        for where in (ASKED, EVERYWHERE):
            moved = [h for h in heard if self.heard[first + h] == where and any((i, p, h) in v.parts for p in PARTS)]
            if moved:
                self._mix(i, attn, moved, where == EVERYWHERE, v)

    def _mix(self, i: int, attn: Attention, heads: list[int], wide: bool, v: _Variants) -> None:
        """What these heads write, n of them."""
        q, k, value = (self._stacked(i, p, heads, v) for p in PARTS)  # [n, K, B, T, d]; narrow queries [n, K, B, d]
        q = q if wide else q[..., None, :]
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.config.d_head)  # [n, K, B, T or 1, T]
        t = scores.shape[-1]
        later = torch.ones(t, t, dtype=torch.bool, device=q.device).triu(1) if wide else self.later[:, None]
        scores = scores.masked_fill(later, -torch.inf)
        if attn.attend.sink is not None:
            sink = attn.attend.sink[heads].view(-1, 1, 1, 1, 1).expand(*scores.shape[:-1], 1)
            pattern = torch.cat([sink, scores], -1).softmax(-1)[..., 1:]
        else:
            pattern = scores.softmax(-1)
        mixed = pattern @ value  # [n, K, B, T or 1, d]
        weight = attn.out.weight.view(self.width, self.heads, -1)[:, heads].permute(1, 2, 0)  # [n, d, D]
        wrote = torch.bmm(mixed.flatten(1, -2), weight).view(*mixed.shape[:-1], self.width)
        for h, x in zip(heads, wrote, strict=True):
            self._write(self.first(f"a{i}") + h, x if wide else x[..., 0, :], wide, v)

    def _stacked(self, i: int, part: str, heads: list[int], v: _Variants) -> Tensor:
        some = [v.parts[i, part, h] if (i, part, h) in v.parts else self._current(i, part, h) for h in heads]
        many = max(len(x) for x in some)
        return torch.stack([x.expand(many, *x.shape[1:]) for x in some])

    def _current(self, i: int, part: str, h: int) -> Tensor:
        """A head's queries, keys or values as they are now [1, B, T, d]; queries only where asked, if so heard."""
        x = self.parts[i, part, h][None]
        narrow = part == "q" and self.heard[self.first(f"a{i}") + h] == ASKED
        return self._at(x) if narrow and x.dim() == 4 else x

    def _mlp(self, i: int, v: _Variants) -> None:
        u = self.first(f"m{i}")
        if not self.heard[u]:
            return
        wide = self.heard[u] == EVERYWHERE
        x = self._stream(f"m{i}", 0, wide, v)
        if x is not None:
            mlp: MLPBlock = self.model.blocks[i].mlp  # type: ignore[assignment]
            self._write(u, mlp.down(mlp.bend(mlp.up(mlp.norm(x)))), wide, v)

    def _write(self, u: int, h: Tensor, wide: bool, v: _Variants) -> None:
        """A node's differences from what it sends, [K, B, T, D] or [K, B, D]."""
        if wide:
            v.full[u] = h - self.r_full[u]
            v.at[u] = self._at(v.full[u])
        else:
            v.at[u] = h - self.r_at[u]


__all__ = ["EdgeRuns", "Entry"]
