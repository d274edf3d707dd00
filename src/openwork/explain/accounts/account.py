"""The additive account of a run: with its gates frozen, what a network says is a sum over paths of kept edges.

On one input every neuron is a number of times its sum (a = h * gate(h)), every norm divides by a number, every head
averages with given weights. Hold these fixed and what every node sends is linear in what nodes before it send:

    sent = scale * (what its maps bring) + sources        sources: input, biases, what ablated nodes and edges carry

So the logit difference of two answers is exactly the sum, over all paths from a source along kept edges, of the source
times the coefficients on the way. Two sweeps tell what passes through a part, however many paths there are: forward
what each node sends, h, back the coefficient of the difference in it, g (dynamic programming). Through a node pass
h * g, along an edge g * coefficient * h, from a source its value * g; the sources add up to the difference.

In a ReLU net without biases this is gradient * input, and for its affine pieces the exact Shapley value with respect to
zero (Ancona et al. 2019, arXiv 1903.10992, section 2; a linear function's Shapley values are its terms). Where other
gates are frozen it says how this run came about, not what it would be elsewhere.

Knows linear maps between named sites, with leading batches. Does not know models, tasks, files or words.

Shapes: B inputs, * the vertices of a site, which are its nodes at every position: [n], [T, n] or [n, H, W].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from openwork.explain.accounts.maps import Map


@dataclass(frozen=True, eq=False)
class Spot:
    """What one site sends on B inputs, as a sum; ablated nodes send 0 here and their readers hold the constant.

    sent     [B, *]
    scale    [B, *] the frozen gate: activation, norm, selection; 0 for ablated nodes
    sources  kind -> [B, *], what enters here, already scaled
    axis     the axis of `sent` that counts nodes
    width    of an input: so many vertices side by side are one place (the channels of one token)
    picked   [B, *] where pooling took each vertex from, as a place on its map before pooling; None without pooling
    before   (H, W) of the maps before pooling
    """

    sent: Tensor
    scale: Tensor
    sources: Mapping[str, Tensor]
    axis: int = -1
    width: int = 1
    picked: Tensor | None = None
    before: tuple[int, int] = (0, 0)

    def gated(self, sums: Tensor) -> Tensor:
        """scale * sums, after pooling where there is some."""
        return self.scale * self.pooled(sums)

    def pooled(self, sums: Tensor) -> Tensor:
        """The sums that pooling picked: [B, *] of [B, * before pooling]."""
        if self.picked is None:
            return sums
        shape = (len(sums), *self.picked.shape[1:])
        return sums.flatten(2).gather(2, self.picked.expand(shape).flatten(2)).view(shape)

    def back(self, g: Tensor) -> Tensor:
        """Coefficients at the sums of coefficients at what is sent."""
        g = self.scale * g
        if self.picked is None:
            return g
        out = g.new_zeros(*g.shape[:2], self.before[0] * self.before[1])
        return out.scatter_add_(2, self.picked.flatten(2), g.flatten(2)).unflatten(2, self.before)

    def fed_at(self, vertex: int) -> int:
        """The vertex before pooling from which a vertex was taken; of one input."""
        if self.picked is None:
            return vertex
        channel = vertex // (self.picked.shape[2] * self.picked.shape[3])
        return channel * self.before[0] * self.before[1] + int(self.picked.flatten()[vertex])

    def row(self, b: int) -> Spot:
        """The same for input b alone."""

        def one(x: Tensor) -> Tensor:
            return x[b : b + 1]

        picked = None if self.picked is None else one(self.picked)
        sources = {k: one(v) for k, v in self.sources.items()}
        return replace(self, sent=one(self.sent), scale=one(self.scale), sources=sources, picked=picked)

    def nodes(self, x: Tensor) -> Tensor:
        """Sums over all but inputs and nodes: [B, n] of [B, *]."""
        return x.movedim(self.axis, 1).flatten(2).sum(-1) if x.dim() > 2 else x


@dataclass(frozen=True, eq=False)
class FrozenRun:
    """B inputs run through a circuit, with all that is needed to account for any two answers.

    spots    site -> what it sends, in the order of computation; the last is the logits [B, V]
    maps     in the order in which their ends are computed
    inputs   (site, kind) of the sources that are the input: "input" or "token"
    """

    spots: Mapping[str, Spot]
    maps: tuple[Map, ...]
    inputs: tuple[tuple[str, str], ...]

    @property
    def end(self) -> str:
        """The site of the logits."""
        return list(self.spots)[-1]

    @property
    def logits(self) -> Tensor:
        """[B, V] of the circuit."""
        return self.spots[self.end].sent

    def row(self, b: int) -> FrozenRun:
        """The run of input b alone."""
        spots = {n: s.row(b) for n, s in self.spots.items()}
        return FrozenRun(spots, tuple(m.row(b) for m in self.maps), self.inputs)

    def into(self, site: str) -> list[Map]:
        """The maps that feed a site."""
        return [m for m in self.maps if m.dst == site]

    def toward(self, answer: Tensor, against: Tensor) -> Account:
        """The account of logit `answer` [B] minus logit `against` [B]."""
        return Account(self, answer, against)


@dataclass(frozen=True, eq=False)
class Account:
    """The additive account of one logit difference per input; see the head of this file."""

    run: FrozenRun
    answer: Tensor
    against: Tensor

    def _between(self, logits: Tensor) -> Tensor:
        rows = torch.arange(len(self.answer))
        logits = logits.expand(len(rows), -1)
        return logits[rows, self.answer] - logits[rows, self.against]

    @cached_property
    def difference(self) -> Tensor:
        """The circuit's logit difference [B], run forward."""
        return self._between(self.run.logits)

    @cached_property
    def ends(self) -> tuple[tuple[Map, Tensor], ...]:
        """The last maps, each with the coefficients of the difference at its source [B, *]."""
        return tuple((m, m.toward(self.answer, self.against)) for m in self.run.into(self.run.end))

    @cached_property
    def gradient(self) -> dict[str, Tensor]:
        """site -> coefficient of the difference in what each vertex sends, [B, *]."""
        out: dict[str, Tensor] = {}
        for m, coefficients in self.ends:
            out[m.src] = out[m.src] + coefficients if m.src in out else coefficients
        feeding: dict[str, list[Map]] = {}
        for m in self.run.maps:
            feeding.setdefault(m.dst, []).append(m)
        for site in list(self.run.spots)[-2::-1]:
            if site not in out or site not in feeding:
                continue
            at_sums = self.run.spots[site].back(out[site])
            for m in feeding[site]:
                g = m.back(at_sums)
                out[m.src] = out[m.src] + g if m.src in out else g
        return out

    @cached_property
    def sources(self) -> dict[tuple[str, str], Tensor]:
        """(site, kind) -> what enters there times its coefficient, [B, *]; of the logits [B]."""
        out: dict[tuple[str, str], Tensor] = {}
        for site, spot in self.run.spots.items():
            for kind, value in spot.sources.items():
                if site == self.run.end:
                    out[site, kind] = self._between(value)
                elif site in self.gradient:
                    out[site, kind] = value * self.gradient[site]
        return out

    @property
    def total(self) -> Tensor:
        """The sum of all sources [B]: equal to the difference, but for rounding."""
        return torch.stack([v.reshape(len(self.answer), -1).sum(1) for v in self.sources.values()]).sum(0)

    def inputs(self) -> dict[tuple[str, str], Tensor]:
        """(site, kind) of every input -> contribution of each of its places, [B, places]."""
        out = {}
        for site, kind in self.run.inputs:
            if (site, kind) in self.sources:
                x = self.sources[site, kind].flatten(1)
                out[site, kind] = x.unflatten(1, (-1, self.run.spots[site].width)).sum(-1)
        return out

    def constants(self) -> dict[tuple[str, str], Tensor]:
        """(site, kind) -> contribution [B] of everything that is no input: biases, what ablated parts carry."""
        return {k: v.reshape(len(self.answer), -1).sum(1) for k, v in self.sources.items() if k not in self.run.inputs}

    def vertices(self, site: str) -> Tensor:
        """What passes through each vertex of a site, [B, *]."""
        return self.run.spots[site].sent * self.gradient[site]

    def nodes(self) -> dict[str, Tensor]:
        """site -> what passes through each node, summed over positions, [B, n]."""
        return {n: s.nodes(self.vertices(n)) for n, s in self.run.spots.items() if n in self.gradient}

    def edges(self) -> dict[str, Tensor]:
        """link -> what passes along each edge [B, dst, src] or [B, n]; of the last links [B, src]: both answers."""
        out = {}
        for m in self.run.maps:
            if m.dst == self.run.end:
                continue
            if m.dst in self.gradient:
                spot = self.run.spots[m.dst]
                out[m.name] = m.edges(spot.back(self.gradient[m.dst]), self.run.spots[m.src].sent)
        for m, coefficients in self.ends:
            spot = self.run.spots[m.src]
            out[m.name] = spot.nodes(coefficients * spot.sent)
        return out

    def through(self, site: str, kind: str, places: Sequence[int]) -> dict[str, Tensor]:
        """Of one input: site -> what comes from each of these places of an input and passes a node, [places, n]."""
        start = self.run.spots[site]
        flat = start.sources[kind].flatten(1).unflatten(1, (-1, start.width))
        only = flat.new_zeros(len(places), *flat.shape[1:])
        index = torch.tensor(list(places))
        only[torch.arange(len(places)), index] = flat[0, index]
        sent = {site: only.flatten(1).unflatten(1, tuple(start.sent.shape[1:]))}
        out = {}
        for name, spot in self.run.spots.items():
            if name == self.run.end or name not in self.gradient:
                continue
            sums = [m(sent[m.src]) for m in self.run.into(name) if m.src in sent]
            if sums:
                sent[name] = spot.gated(torch.stack(sums).sum(0))
            if name in sent:
                out[name] = spot.nodes(sent[name] * self.gradient[name])
        return out


__all__ = ["Account", "FrozenRun", "Spot"]
