"""Training: one loop, four moments. Regimes and optimizers by name.

A new regime is a new file and one line in REGIMES; contract tests and the command line pick it up from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from openwork.errors import unknown
from openwork.settings import checked
from openwork.training.loop import Regime, TrainData, TrainResult, TrainSettings, held_out_loss, train
from openwork.training.optimizers import OPTIMIZERS
from openwork.training.weights import L1, Dense, DenseSettings, L1Settings, TopK, TopKSettings

REGIMES: dict[str, tuple[type[Regime[Any]], type[BaseModel]]] = {
    "dense": (Dense, DenseSettings),
    "l1": (L1, L1Settings),
    "topk": (TopK, TopKSettings),
}


def make_regime(name: str, options: Mapping[str, Any] | None = None) -> Regime[Any]:
    """The regime of that name with its settings; refuses an unknown name or setting."""
    if name not in REGIMES:
        raise unknown("regime", name, REGIMES)
    regime_type, settings_type = REGIMES[name]
    return regime_type(checked(settings_type, options or {}, f"settings of the regime {name}"))


__all__ = [
    "L1",
    "OPTIMIZERS",
    "REGIMES",
    "Dense",
    "DenseSettings",
    "L1Settings",
    "Regime",
    "TopK",
    "TopKSettings",
    "TrainData",
    "TrainResult",
    "TrainSettings",
    "held_out_loss",
    "make_regime",
    "train",
]
