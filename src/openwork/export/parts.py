"""What is shipped of a perceptron: its compacted layers, what its inputs and outputs are called, and how rows get in.

Compacting drops hidden neurons that lead nowhere and folds those that nothing enters into the next biases; inputs keep
their places. Knows arrays, schemas and decisions. Does not know file formats.

Shapes: F features, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from openwork.tasks.flows.decision import Decision
from openwork.tasks.flows.schema import Schema

Layer = tuple[np.ndarray, np.ndarray]  # weight [out, in] and bias [out]


@dataclass(frozen=True, eq=False)
class Parts:
    """A perceptron as it is shipped.

    layers      float32; `activation` ("relu" or "silu") follows all but the last
    inputs      F names, outputs C names
    schema      how a row becomes features, and decision, what an alert is; None where the inputs are the features
    digest      of the run's model (or detector) that these parts are of
    about       lines for the head of a file: where it comes from and what it was judged to do
    """

    layers: tuple[Layer, ...]
    activation: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    digest: str
    schema: Schema | None = None
    decision: Decision | None = None
    about: tuple[str, ...] = field(default=())

    @property
    def nonzero(self) -> int:
        """Nonzero weights."""
        return sum(int((w != 0).sum()) for w, _ in self.layers)

    @property
    def sizes(self) -> list[int]:
        """Nodes per layer, from the inputs to the outputs."""
        return [len(self.inputs), *(len(b) for _, b in self.layers)]

    def metadata(self) -> dict[str, Any]:
        """What every format stores beside the numbers."""
        return {
            "digest": self.digest, "activation": self.activation, "inputs": list(self.inputs),
            "outputs": list(self.outputs), "sizes": self.sizes, "weights": self.nonzero, "about": list(self.about),
            "schema": self.schema.to_dict() if self.schema else None,
            "decision": self.decision.to_dict() if self.decision else None,
        }  # fmt: skip

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Outputs float32 [N, C] of features [N, F], as every format is to give them."""
        x = x.astype(np.float32)
        for w, b in self.layers[:-1]:
            z = x @ w.T + b
            x = np.maximum(z, 0) if self.activation == "relu" else z / (1 + np.exp(-z))
        return x @ self.layers[-1][0].T + self.layers[-1][1]


def compacted(layers: Sequence[Layer], activation: str = "relu") -> tuple[Layer, ...]:
    """The same function of the same inputs, without the hidden neurons that it does not need."""
    return _compacted(layers, activation)[0]


def needed(layers: Sequence[Layer]) -> tuple[np.ndarray, ...]:
    """Of each hidden layer, the numbers of the neurons that `compacted` leaves, in its order."""
    return _compacted(layers, "relu")[1]


def _compacted(layers: Sequence[Layer], activation: str) -> tuple[tuple[Layer, ...], tuple[np.ndarray, ...]]:
    made = [(w.copy(), b.copy()) for w, b in layers]
    left = [np.arange(len(b)) for _, b in layers[:-1]]
    for i in reversed(range(len(made) - 1)):
        leads = (made[i + 1][0] != 0).any(0)
        made[i] = made[i][0][leads], made[i][1][leads]
        made[i + 1] = made[i + 1][0][:, leads], made[i + 1][1]
        left[i] = left[i][leads]
    for i in range(len(made) - 1):
        (w, b), (v, c) = made[i], made[i + 1]
        entered = (w != 0).any(1)
        constant = np.maximum(b, 0) if activation == "relu" else b / (1 + np.exp(-b))
        made[i + 1] = v[:, entered], c + v[:, ~entered] @ constant[~entered]
        made[i] = w[entered], b[entered]
        left[i] = left[i][entered]
    return tuple(made), tuple(left)


__all__ = ["Layer", "Parts", "compacted", "needed"]
