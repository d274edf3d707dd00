"""A multilayer perceptron with ReLU or SiLU, for feature vectors such as images of digits or network flows.

Sites are the input, each hidden layer after its activation, and the logits; every weight matrix is a link. With an
embedding the input is a few token ids instead, such as the operands of an operation: each is looked up in one table
that all share, and the rows side by side are the features.

Knows its own layers. Does not know data, regimes or circuits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from openwork.circuit import Circuit
from openwork.graph import Graph, Link, Site
from openwork.models.folded import Subsets, plain_perceptron
from openwork.models.node import Node, share_of
from openwork.models.single import MLPSingle
from openwork.patching import Inputs, Reference, carry, weight_of


class EmbeddingConfig(BaseModel):
    """`slots` token ids below `symbols`, each looked up in one table of rows of `width` channels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    symbols: int = Field(ge=2)
    slots: int = Field(2, ge=1)
    width: int = Field(32, ge=1)


class MLPConfig(BaseModel):
    """Shape of a multilayer perceptron. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mlp"] = "mlp"
    inputs: int = Field(64, ge=1)
    hidden: tuple[int, ...] = (48, 48)
    outputs: int = Field(10, ge=1)
    activation: Literal["relu", "silu"] = "relu"
    abstopk: float = Field(1.0, gt=0, le=1, description="share of hidden neurons AbsTopK keeps per input; 1 is off")
    embedding: EmbeddingConfig | None = Field(None, description="for token ids; `inputs` is then slots * width")

    @model_validator(mode="after")
    def _embedding_fits(self) -> MLPConfig:
        e = self.embedding
        if e is not None and self.inputs != e.slots * e.width:
            raise ValueError(f"inputs {self.inputs} is not slots * width = {e.slots} * {e.width} of the embedding")
        return self


class SlotEmbedding(nn.Embedding):
    """One table for all slots: ids [B, slots] to their rows side by side, [B, slots * width].

    As a matrix it is [slots * width, symbols]: the table once per slot, so that a symbol has an edge of its own to
    every channel of every slot. Edges that differ by their slot alone carry the same weight.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        super().__init__(config.symbols, config.width)
        self.slots = config.slots

    def forward(self, input: Tensor) -> Tensor:
        """Rows side by side [B, slots * width] of ids [B, slots]."""
        return super().forward(input).flatten(-2)


@weight_of.register
def _(module: SlotEmbedding) -> Tensor:
    return module.weight.T.repeat(module.slots, 1)


@carry.register
def _(module: SlotEmbedding, reference: Tensor, now: Tensor, ablated: Tensor) -> Tensor:
    weight = (ablated * weight_of(module)).T.unflatten(1, (module.slots, -1))  # [symbols, slots, width]
    slot = torch.arange(module.slots, device=now.device)
    before = weight[now, slot].flatten(-2)
    if reference.is_floating_point():  # a distribution over ids, [symbols], the same for every slot
        return torch.einsum("i,isc->sc", reference, weight).flatten() - before
    return weight[reference, slot].flatten(-2) - before


class MLP(nn.Module):
    """Features [B, inputs], or ids [B, slots], to logits [B, outputs]."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [config.inputs, *config.hidden, config.outputs]
        self.embed = SlotEmbedding(config.embedding) if config.embedding is not None else None
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        hidden = (Node(share_of(n, config.abstopk)) for n in config.hidden)
        self.nodes = nn.ModuleList([Node(), *hidden, Node()])

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, outputs] of features [B, inputs] or of ids [B, slots]."""
        x = self.nodes[0](x if self.embed is None else self.embed(x))
        for i, layer in enumerate(self.layers, 1):
            x = layer(x)
            x = self.nodes[i](x if i == len(self.layers) else self.bend(x))
        return x

    def bend(self, x: Tensor) -> Tensor:
        """The activation of the hidden layers, number by number."""
        return {"relu": F.relu, "silu": F.silu}[self.config.activation](x)

    def graph(self) -> Graph:
        """One site per layer of nodes, one link per matrix; with an embedding, its channels are the first nodes."""
        c = self.config
        n = len(c.hidden)
        sites = [Site("input" if c.embedding is None else "embed", c.inputs, "nodes.0", "input", 0)]
        sites += [Site(f"hidden{i}", s, f"nodes.{i + 1}", "neuron", i + 1) for i, s in enumerate(c.hidden)]
        sites.append(Site("logits", c.outputs, f"nodes.{n + 1}", "output", n + 1, prunable=False))
        links = [
            Link(f"{a.name}>{b.name}", a.name, b.name, f"layers.{i}", (b.size, a.size))
            for i, (a, b) in enumerate(zip(sites[:-1], sites[1:], strict=True))
        ]
        if c.embedding is not None:
            sites = [replace(s, kind="embed" if s.kind == "input" else s.kind, layer=s.layer + 1) for s in sites]
            sites.insert(0, Site("tokens", c.embedding.symbols, "", "input", 0, prunable=False))
            shape = (c.inputs, c.embedding.symbols)
            links.insert(0, Link("tokens>embed", "tokens", "embed", "embed", shape, counts="embedding"))
        return Graph(tuple(sites), tuple(links))

    def subsets(self, circuit: Circuit, reference: Mapping[str, Tensor]) -> Subsets | None:
        """Many subsets of a circuit in one run; None where nodes do not act on their own (AbsTopK) or ids are read."""
        return None if plain_perceptron(self) else Subsets(self, circuit, reference)

    def single(self, inputs: Inputs, reference: Reference) -> MLPSingle | None:
        """Runs with one edge ablated at a time (see `models.single`), or None where the general ones must do."""
        return None if self.config.abstopk < 1 else MLPSingle(self, inputs, reference)
