"""A convolutional network's circuit, run with its gates frozen.

The network is affine around an image: ReLUs are on or off, pooling picks one place. A node is a channel with its whole
map, an edge a kernel; single paths run through places of maps.

Knows convolutional networks. Does not know tasks or words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from openwork.circuit import Circuit
from openwork.explain.accounts.account import FrozenRun, Spot
from openwork.explain.accounts.folding import Folding, selecting, summed
from openwork.explain.accounts.maps import Kernels, Map, Matrix
from openwork.models import CNN
from openwork.patching import Inputs, Reference


class CNNAccountant:
    """Called with images [B, channels, H, W] or their pixels flat [B, F]; see `accounts.Accountant`."""

    def __init__(self, model: CNN, circuit: Circuit | None, reference: Reference) -> None:
        self.model, c = model, model.config
        fold = Folding(model, circuit, reference)
        self.frozen: tuple[str, ...] = ("the neurons that are on and the places that pooling picks (the network is "
                                        "affine around this input)",)  # fmt: skip
        if c.abstopk < 1:
            self.frozen += ("which channels and neurons AbsTopK keeps",)
        self.kept = {s.name: fold.kept(s.name) for s in fold.graph.sites}
        maps, self.steps = c.maps(), list[tuple[str, Map, dict[str, Tensor]]]()
        for i, link in enumerate(fold.graph.links):
            weight, _ = fold.weight(link)
            bias = model.layers[i].bias.detach().double().cpu()  # type: ignore[union-attr,operator]
            rest = fold.constant(link)
            of: Map
            if i < len(c.blocks):
                of = Kernels(link.name, link.src, link.dst, weight, c.blocks[i].stride, maps[i][1:])
            else:
                of = Matrix(link.name, link.src, link.dst, weight.flatten(1), weight[0, 0].numel())
            self.steps.append((link.dst, of, {"bias": bias, **({"reference": rest} if bool(rest.any()) else {})}))

    def __call__(self, inputs: Inputs) -> FrozenRun:
        (x,) = inputs
        c = self.model.config
        x = x.reshape(len(x), *c.image).double()
        kept = self.kept["input"][:, None, None].expand_as(x)
        spots: dict[str, Spot] = {"input": Spot(kept * x, kept, {"input": kept * x}, axis=1)}
        for i, (site, of, sources) in enumerate(self.steps):
            brought, node = of(spots[of.src].sent), self.model.nodes[i + 1]
            if i < len(c.blocks):
                spots[site] = self._pooled(i, site, brought, sources)
                continue
            last = i == len(self.steps) - 1
            gate = None if last else lambda h: (h > 0).double()
            spots[site] = summed(brought, sources, self.kept[site], gate, select=None if last else selecting(node))
        return FrozenRun(spots, tuple(m for _, m, _ in self.steps), (("input", "input"),))

    def _pooled(self, i: int, site: str, brought: Tensor, sources: dict[str, Tensor]) -> Spot:
        """What a block sends: of every window the largest sum, where it is above 0."""
        total = brought + torch.stack(list(sources.values())).sum(0)[:, None, None]
        pool, picked = self.model.config.blocks[i].pool, None
        value = total
        if pool > 1:
            value, picked = F.max_pool2d(total, pool, return_indices=True)
        gate = (value > 0).double() * self.kept[site][:, None, None]
        node = self.model.nodes[i + 1]
        select = selecting(node)
        if select is not None:
            gate = gate * (select(value.relu()) != 0)
        entered = {k: gate * v[:, None, None] for k, v in sources.items()}
        side = (total.shape[2], total.shape[3])
        return Spot(gate * value, gate, entered, axis=1, picked=picked, before=side)


__all__ = ["CNNAccountant"]
