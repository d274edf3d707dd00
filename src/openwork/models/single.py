"""Perceptrons with one edge ablated at a time, without running the layers before it again.

Ablating an edge u -> v changes one pre-activation, z_v + w_vu (r_u - h_u), so one activation, by some d; and that adds
d W[:, v] to the next layer's pre-activations: a change of rank one. All candidates of one reader are one table
[candidates, examples] of numbers d, and where d is zero (the pixel is black in both images, the neuron is shut in both)
nothing has to be run at all. Exact, not a linear estimate.

Knows the layers of an MLP. Does not know metrics, circuits, or why an edge is asked about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from openwork.patching import Inputs, Reference, is_constant, record
from openwork.single import Single

if TYPE_CHECKING:
    from openwork.models.mlp import MLP

STRETCH = 4096  # candidates times examples at once behind a change: what fits the processor's cache


class MLPSingle(Single):
    """See the head of this file. For perceptrons whose activations look at one neuron each."""

    def __init__(self, model: MLP, inputs: Inputs, reference: Reference) -> None:
        super().__init__(model, inputs, reference)
        self.rows = 1 << 16  # only what changes is run, and that in stretches
        self.layers, self.bend = [m for m in model.layers if isinstance(m, nn.Linear)], model.bend
        sent = record(model, inputs)
        links = [e for e in self.graph.links if e.module.startswith("layers.")]
        self._layer = {e.name: i for i, e in enumerate(links)}
        self._now, self._then, self._sums = [], [], []
        with torch.no_grad():
            for e, layer in zip(links, self.layers, strict=True):
                now, then, site = sent[e.src], reference.get(e.src), self.graph.site(e.src)
                self._now.append(now)
                self._then.append(then.expand_as(now) if then is not None and is_constant(site, then) else then)
                self._sums.append(layer(now))  # [K, n], before the activation

    @torch.no_grad()
    def edges(self, link: str, dst: int, src: Tensor) -> Tensor:
        """Logits [C, K, V], each with one edge of a link ablated (see `Single.edges`)."""
        i = self._layer.get(link, -1)
        then = self._then[i]
        if i < 0 or then is None:
            return super().edges(link, dst, src)  # a table of ids, or the refusal
        whole = self._sums[-1]
        gain = (self.layers[i].weight[dst, src] * (then - self._now[i])[:, src]).T  # [C, K]
        out = whole.repeat(len(src), 1, 1)
        if i == len(self.layers) - 1:
            out[:, :, dst] += gain
            return out
        z = self._sums[i][:, dst]
        d = self.bend(z + gain) - self.bend(z)
        for places in d.nonzero().split(STRETCH):
            c, k = places.unbind(1)
            x = torch.addcmul(self._sums[i + 1][k], d[c, k, None], self.layers[i + 1].weight[:, dst])
            for layer in self.layers[i + 2 :]:
                x = layer(self.bend(x))
            out[c, k] = x
        return out


__all__ = ["MLPSingle"]
