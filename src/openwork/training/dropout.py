"""Dropout: in training every node is silent with a given probability (Srivastava et al. 2014, JMLR 15, 1929-1958).

    h <- h * z / (1 - p),   z ~ Bernoulli(1 - p)     for each node, example and position, so that E[h] is unchanged

A hook does it at the sites that the model's graph names, and only around the forward pass of a training step: between
steps, in every evaluation and in the end the model is a plain model. The random numbers are the training loop's own,
which it seeds and keeps in its checkpoint, so a resumed run draws what an uninterrupted one draws.

Knows one model's sites and the moments of training. Does not know data, losses or circuits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from openwork.errors import UsageError
from openwork.patching import graph_of
from openwork.training.loop import Regime


class DropoutSettings(BaseModel):
    """How often which nodes are silent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neurons: float = Field(default=0.1, ge=0, lt=1, description="share of the neurons dropped in a step")
    inputs: float = Field(default=0.0, ge=0, lt=1, description="share of the input features dropped in a step")


class Dropout(Regime[DropoutSettings]):
    """Silences random nodes in training, see the head of this file."""

    name = "dropout"

    def __init__(self, settings: DropoutSettings | None = None) -> None:
        super().__init__(settings or DropoutSettings())

    def prepare(self, model: nn.Module, steps: int) -> None:
        """Finds the sites. UsageError where a share is set for a kind of site that the model has none of."""
        shares = {"neuron": self.settings.neurons, "input": self.settings.inputs}
        sites = [s for s in graph_of(model).sites if s.module]
        for kind, share in shares.items():
            if share > 0 and all(s.kind != kind for s in sites):
                raise UsageError(
                    f"dropout: this {type(model).__name__} has no {kind} activations to drop; set dropout.{kind}s to 0."
                )
        self._shares = {s.module: shares[s.kind] for s in sites if shares.get(s.kind, 0) > 0}

    @contextmanager
    def during(self, model: nn.Module, step: int) -> Iterator[None]:
        """Hooks the sites, and takes the hooks away again whatever happens."""
        handles = [
            model.get_submodule(path).register_forward_hook(_silence(share)) for path, share in self._shares.items()
        ]
        try:
            yield
        finally:
            for h in handles:
                h.remove()


def _silence(share: float) -> Callable[..., Tensor]:
    def fn(_module: nn.Module, _args: Any, h: Tensor) -> Tensor:
        return F.dropout(h, share, training=True)

    return fn
