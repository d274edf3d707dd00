"""A multilayer perceptron with ReLU or SiLU, for feature vectors such as images of digits or network flows.

Sites are the input, each hidden layer after its activation, and the logits; every weight matrix is a link.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from openwork.graph import Graph, Link, Site
from openwork.models.node import Node, share_of


class MLPConfig(BaseModel):
    """Shape of a multilayer perceptron. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mlp"] = "mlp"
    inputs: int = Field(64, ge=1)
    hidden: tuple[int, ...] = (48, 48)
    outputs: int = Field(10, ge=1)
    activation: Literal["relu", "silu"] = "relu"
    abstopk: float = Field(1.0, gt=0, le=1, description="share of hidden neurons AbsTopK keeps per input; 1 is off")


class MLP(nn.Module):
    """Features [B, inputs] to logits [B, outputs]."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [config.inputs, *config.hidden, config.outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        hidden = (Node(share_of(n, config.abstopk)) for n in config.hidden)
        self.nodes = nn.ModuleList([Node(), *hidden, Node()])

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, outputs] of features [B, inputs]."""
        bend = {"relu": F.relu, "silu": F.silu}[self.config.activation]
        x = self.nodes[0](x)
        for i, layer in enumerate(self.layers, 1):
            x = layer(x)
            x = self.nodes[i](x if i == len(self.layers) else bend(x))
        return x

    def graph(self) -> Graph:
        """One site per layer of nodes, one link per matrix."""
        c = self.config
        n = len(c.hidden)
        sites = [Site("input", c.inputs, "nodes.0", "input", 0)]
        sites += [Site(f"hidden{i}", s, f"nodes.{i + 1}", "neuron", i + 1) for i, s in enumerate(c.hidden)]
        sites.append(Site("logits", c.outputs, f"nodes.{n + 1}", "output", n + 1, prunable=False))
        links = [
            Link(f"{a.name}>{b.name}", a.name, b.name, f"layers.{i}", (b.size, a.size))
            for i, (a, b) in enumerate(zip(sites[:-1], sites[1:], strict=True))
        ]
        return Graph(tuple(sites), tuple(links))
