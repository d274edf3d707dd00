"""A perceptron's circuit, run with its gates frozen.

With ReLU a run's gates are 0 or 1 and the network is affine around the input; SiLU's gate is sigmoid(h). Sources are
the features (or of an embedding the tokens in their slots), the biases and what ablated nodes and edges carry.

Knows perceptrons. Does not know tasks or words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.circuit import Circuit
from openwork.explain.accounts.account import FrozenRun, Spot
from openwork.explain.accounts.folding import Folding, selecting, summed
from openwork.explain.accounts.maps import Matrix
from openwork.models import MLP
from openwork.patching import Inputs, Reference

GATES = {"relu": lambda h: (h > 0).double(), "silu": torch.sigmoid}
FROZEN = {
    "relu": "the neurons that are on (the network is affine around this input)",
    "silu": "each neuron's gate sigmoid(h) in h * sigmoid(h)",
}


class MLPAccountant:
    """Called with features [B, F] or ids [B, slots]; see `accounts.Accountant`."""

    def __init__(self, model: MLP, circuit: Circuit | None, reference: Reference) -> None:
        self.model, c = model, model.config
        fold = Folding(model, circuit, reference)
        graph = fold.graph
        self.gate = GATES[c.activation]
        self.frozen: tuple[str, ...] = (FROZEN[c.activation],) if c.hidden else ()
        if c.abstopk < 1:
            self.frozen += ("which nodes AbsTopK keeps",)
        links = list(graph.links)
        self.table: Tensor | None = None
        if c.embedding is not None:
            first = links.pop(0)
            kept, _ = fold.weight(first)
            self.table = kept.T.unflatten(1, (c.embedding.slots, -1))  # [symbols, slots, width]
            self.carried = fold.constant(first)
        self.first = links[0].src
        self.width = c.embedding.width if c.embedding is not None else 1
        self.kept = {s.name: fold.kept(s.name) for s in graph.sites}
        # Readers hold what ablated nodes send, since their edges count as ablated; the logits are never masked.
        self.steps: list[tuple[str, Matrix, dict[str, Tensor]]] = []
        for i, link in enumerate(links):
            matrix = Matrix(link.name, link.src, link.dst, fold.weight(link)[0])
            bias = model.layers[i].bias.detach().double().cpu()  # type: ignore[union-attr,operator]
            self.steps.append((link.dst, matrix, _nonzero({"bias": bias, "reference": fold.constant(link)})))

    def __call__(self, inputs: Inputs) -> FrozenRun:
        (x,) = inputs
        if self.table is None:
            kind, given = "input", {"input": x.reshape(len(x), -1).double()}
        else:
            slot = torch.arange(x.shape[1])
            kind = "token"
            given = _nonzero({"token": self.table[x, slot].flatten(1), "reference": self.carried})
        first = summed(None, given, self.kept[self.first], select=selecting(self.model.nodes[0]), width=self.width)
        spots: dict[str, Spot] = {self.first: first}
        for i, (site, matrix, sources) in enumerate(self.steps, 1):
            last = i == len(self.steps)
            spots[site] = summed(
                matrix(spots[matrix.src].sent), sources, self.kept[site],
                None if last else self.gate, select=None if last else selecting(self.model.nodes[i]),
            )  # fmt: skip
        return FrozenRun(spots, tuple(m for _, m, _ in self.steps), ((self.first, kind),))

    @property
    def affine(self) -> list[tuple[Tensor, Tensor]] | None:
        """(weights, bias) per layer where the circuit is a plain ReLU perceptron of features, else None."""
        c = self.model.config
        if c.activation != "relu" or c.abstopk < 1 or self.table is not None:
            return None
        layers = []
        for site, matrix, sources in self.steps:
            kept = self.kept[site]
            layers.append((matrix.weight * kept[:, None], torch.stack(list(sources.values())).sum(0) * kept))
        w, b = layers[0]
        layers[0] = w * self.kept[self.first], b
        return layers


def _nonzero(sources: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without constants that are 0 throughout."""
    return {k: v for k, v in sources.items() if k in ("input", "token", "bias") or bool(v.any())}


__all__ = ["MLPAccountant"]
