"""The regime Gomory-Hu: weights cost by the hops between their ends in a min-cut tree (see `gomory_hu`).

    form="modules"    price * sum over c != d of B_cd hop(c, d) / sum_c vol_c
                      over the modules of a spectral partition, contracted to k nodes; the tree has k - 1 edges
    form="proposed"   price * sum over weights of |w_uv| hop(u, v)
                      over all hidden nodes; this is the summed weight of the tree's edges, and hop its slope

Labels and hops are constants between two refreshes; the gradient is that of the weights.

The second form is the first idea: a loss that makes the tree's light edges lighter, so that the network falls into
parts along them. It does not do that. Minimum cuts are not balanced, the lightest edges part single weak neurons from
the rest, and the tree is almost a star, so that nearly all weights are two hops long whichever modules they join. In
a perceptron 64-128-128-128-10 on digits, fresh or trained densely, 99.2 % of the weights between hidden layers are
exactly two hops long, with a mean of 1.99 both inside modules and between them, and 382 of 384 neurons hang on one:
the loss is L1 at twice the price, and its models are about as clusterable as those of L1 and break like them when cut
apart. The figures are in docs/results/modularity.md, made by `python benchmarks/structure.py`. It is here to be
compared with.

The first form keeps the idea where it works: on a few modules that are balanced by other means. There the tree says
which interfaces are narrow, and a weight that crosses several narrow ones costs more. With four modules on digits it
comes to what n-cut comes to.

Needs OR-tools (`pip install "openwork[graph]"`). Knows one model and the moments of training. Does not know data,
losses or circuits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from openwork import structure
from openwork.gomory_hu import cut_tree, solver
from openwork.structure import Partition
from openwork.training.clusterability import Modular, ModuleSettings

PRICES = {"modules": 0.3, "proposed": 5e-5}


class GomoryHuSettings(ModuleSettings):
    """Which tree, and what its hops cost."""

    form: Literal["modules", "proposed"] = Field(
        default="modules", description="a tree over the modules, or, as first proposed, over all hidden nodes"
    )
    price: float | None = Field(
        default=None,
        ge=0,
        description="modules: nats per hop of the average unit of weight; proposed: per hop of a unit of |w|. "
        f"none: {PRICES['modules']:g} and {PRICES['proposed']:g}",
    )


class GomoryHu(Modular[GomoryHuSettings]):
    """A price on weights by the hops they make in a min-cut tree, see the head of this file."""

    name = "gomory_hu"
    clashes: ClassVar[Mapping[str, str]] = {"clusterability": "each makes a partition of its own"}

    def __init__(self, settings: GomoryHuSettings | None = None) -> None:
        super().__init__(settings or GomoryHuSettings())
        price = self.settings.price
        self._price = PRICES[self.settings.form] if price is None else price

    def prepare(self, model: nn.Module, steps: int) -> None:
        """Makes the first partition and tree. UsageError also where OR-tools is not installed."""
        solver()
        super().prepare(model, steps)

    def settle_on(self, partition: Partition, model: nn.Module) -> None:
        """Takes over a partition and grows the tree of the weights as they are."""
        super().settle_on(partition, model)
        sizes = self.sizes(model)
        if self.settings.form == "modules":
            between = structure.contraction(self._wiring, sizes, self._partition, self.settings.modules)
            graph: Any = between.double().cpu().numpy()
        else:
            graph = structure.adjacency(self._wiring, sizes)
        hops = cut_tree(graph).hops
        self._hops = torch.from_numpy(hops.astype(np.float32)).to(next(model.parameters()).device)

    def penalty(self, model: nn.Module, step: int) -> Tensor | None:
        """price * what the hops come to, in nats."""
        if self._price == 0 or not self.begun(step):
            return None
        if self.settings.form == "modules":
            between = self.between(model)
            return self._price * (between * self._hops).sum() / between.sum().clamp_min(1e-12)
        weights = structure.weights(model, self._wiring)
        nodes = {site: of.to(self._hops.device) for site, of in self._wiring.node_of.items()}
        parts = [
            (structure.size(weights[e.name]) * self._hops[nodes[e.dst]][:, nodes[e.src]]).sum()
            for e in self._wiring.links
        ]
        return self._price * torch.stack(parts).sum()

    def state(self) -> dict[str, Any]:
        """Modules and hops."""
        return {**super().state(), "hops": self._hops}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """The inverse of `state`."""
        super().restore(state, device)
        self._hops = state["hops"].to(device)
