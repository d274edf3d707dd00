"""Weight normalisation (Salimans and Kingma 2016, arXiv 1602.07868): a direction and a length for every node's weights.

    w = g v / ||v||        one length g per output node, v [dst, src, ...] with the norm over all but the first axis

The linear maps and convolutions of the model's graph are parametrized, embeddings are not: their rows are not the
weights of one output node. Loss, penalties and counts see w. Decay of g is decay of w; decay of v changes no weight,
only how fast v turns. Initial weights are those of the model (g = ||v||): the paper's initialisation from data is left
out. In the end w is baked and the model is plain.

Does not compose with top-k and RigL, which set single weights to zero in place: here there is no weight in memory to
be set, and in v a zero would hold but sizes in different rows would not compare.

Knows one model and the moments of training. Does not know data, losses or circuits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from openwork.errors import UsageError
from openwork.patching import graph_of
from openwork.training.loop import Regime

_NO_MASKS = "one sets single weights to zero in place, the other computes weights anew from directions and lengths"


class WeightNormSettings(BaseModel):
    """Nothing to set."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WeightNorm(Regime[WeightNormSettings]):
    """Trains direction and length of every node's weights apart, see the head of this file."""

    name = "weight_norm"
    clashes: ClassVar[Mapping[str, str]] = {"topk": _NO_MASKS, "rigl": _NO_MASKS}
    parametrizes = True

    def __init__(self, settings: WeightNormSettings | None = None) -> None:
        super().__init__(settings or WeightNormSettings())

    def prepare(self, model: nn.Module, steps: int) -> None:
        """Parametrizes the maps. UsageError where a node's weights are all zero: they have no direction."""
        paths = dict.fromkeys(e.module for e in graph_of(model).links if e.kind == "weight")
        modules = {p: model.get_submodule(p) for p in paths}
        self._paths = [p for p, m in modules.items() if isinstance(m, nn.Linear | nn.Conv2d)]
        for path in self._paths:
            weight = modules[path].get_parameter("weight")
            silent = int((weight.detach().flatten(1).count_nonzero(1) == 0).sum())
            if silent:
                raise UsageError(
                    f"weight_norm needs a direction for every node: {silent} rows of {path}.weight are all zero."
                )
            weight_norm(modules[path], "weight", dim=0)

    def finish(self, model: nn.Module) -> None:
        """Bakes the weights; not under no_grad, where torch would leave them frozen."""
        for path in self._paths:
            parametrize.remove_parametrizations(model.get_submodule(path), "weight", leave_parametrized=True)
