"""A network whose circuit is known: an MLP whose weights are written by hand.

The model's answer is the sign of x0: hidden0:0 and hidden0:1 are relu(x0) and relu(-x0), hidden1:0 and hidden1:1 pass
them on, and each raises one logit. Every other neuron has weights too, but what they add to the two logits is equal.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from openwork import patching
from openwork.circuit import Circuit
from openwork.models import MLP, MLPConfig
from openwork.tasks.task import Split

PLANTED = {"input": [0], "hidden0": [0, 1], "hidden1": [0, 1], "logits": [0, 1]}
PADDED = {"input": [0, 3], "hidden0": [0, 1, 5], "hidden1": [0, 1, 4], "logits": [0, 1]}
WRONG = {"input": [3], "hidden0": [5, 6], "hidden1": [4, 5], "logits": [0, 1]}


def planted_model(dead: int = 0) -> MLP:
    """`dead` more neurons in hidden0 have no weights at all."""
    model = MLP(MLPConfig(inputs=8, hidden=(10 + dead, 8), outputs=2))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        first, second, last = (layer.weight for layer in model.layers)
        first[0, 0], first[1, 0] = 1.0, -1.0
        second[0, 0], second[1, 1] = 1.0, 1.0
        last[0, 0], last[1, 1] = 4.0, 4.0
        first[2:10, 1:] = torch.randn(8, 7, generator=g)
        second[2:, 2:10] = torch.randn(6, 8, generator=g)
        last[:, 2:] = torch.randn(1, 6, generator=g)
    return model


def examples(name: str, pairs: int, seed: int, noise: float = 0.0) -> Split:
    """x and x with x0 turned round, side by side; `noise`: share of pairs that the task labels the other way."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * pairs, 8, generator=g)
    x[1::2] = x[::2]
    x[::2, 0] = 1 + torch.rand(pairs, generator=g)
    x[1::2, 0] = -x[::2, 0]
    answer = (x[:, 0] < 0).long()
    flip = (torch.arange(pairs) < noise * pairs).repeat_interleave(2)
    answer = torch.where(flip, 1 - answer, answer)
    pair = torch.arange(2 * pairs) ^ 1
    return Split(name, (x,), answer, (1 - answer)[:, None], pair, tuple(f"example {i}" for i in range(2 * pairs)))


def circuit_of(model: MLP, kept: Mapping[str, list[int]]) -> Circuit:
    nodes = {}
    for s in model.graph().sites:
        nodes[s.name] = torch.zeros(s.size, dtype=torch.bool)
        nodes[s.name][kept[s.name]] = True
    return Circuit.from_nodes(model.graph(), nodes, patching.support(model))
