"""What a model owes us: `forward`, `graph()` and a `config` from which it can be built again.

MODELS is the one list of the kinds of model; a new kind is a new file and one line here. A model may also offer what
discovery then uses in place of its general ways:

    compact(circuit, reference)                 a circuit laid out small (see `patching.compact`)
    edge_attribution(inputs, reference, ...)    first-order scores of all its edges (see `models.edge_algebra`)
    edge_runs(inputs, reference)                runs with edges that go one after the other (see `models.edge_runs`)

`Components` views a transformer with its heads and MLPs as nodes; the nodes of other kinds are neurons and channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import BaseModel
from torch import nn

from openwork.errors import unknown
from openwork.graph import Graph
from openwork.models.cnn import CNN, CNNConfig
from openwork.models.components import Components, at_granularity
from openwork.models.gpt2 import read_gpt2
from openwork.models.mlp import MLP, MLPConfig
from openwork.models.sequential import read_sequential
from openwork.models.transformer import Transformer, TransformerConfig
from openwork.models.transformer_lens import read_transformer_lens
from openwork.settings import checked

MODELS: dict[str, tuple[type[nn.Module], type[BaseModel]]] = {
    "cnn": (CNN, CNNConfig),
    "mlp": (MLP, MLPConfig),
    "transformer": (Transformer, TransformerConfig),
}


@runtime_checkable
class Subject(Protocol):
    """A model that can be pointed at: it declares its graph and the config it was built from."""

    config: BaseModel

    def graph(self) -> Graph:
        """Sites and links of the model."""
        ...


def build(config: BaseModel | Mapping[str, Any], seed: int = 0) -> nn.Module:
    """A model with fresh weights from its config (or the plain data of one); same seed, same weights.

    UsageError for an unknown kind, and for settings that it does not have.
    """
    kind = str(config.get("kind", "") if isinstance(config, Mapping) else getattr(config, "kind", ""))
    if kind not in MODELS:
        raise unknown("kind of model", kind, MODELS)
    model_type, config_type = MODELS[kind]
    if isinstance(config, Mapping):
        config = checked(config_type, config, "settings of the model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_type(config)


__all__ = [
    "CNN", "MLP", "MODELS", "CNNConfig", "Components", "MLPConfig", "Subject", "Transformer", "TransformerConfig",
    "at_granularity", "build", "read_gpt2", "read_sequential", "read_transformer_lens",
]  # fmt: skip
