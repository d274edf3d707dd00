"""Training: one loop, five moments. Regimes and optimizers by name.

A new regime is a new file and one line in REGIMES; contract tests and the command line pick it up from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from openwork.errors import unknown
from openwork.settings import checked
from openwork.training.bimt import BIMT, BIMTSettings
from openwork.training.clusterability import Clusterability, ClusterabilitySettings
from openwork.training.cuts import GomoryHu, GomoryHuSettings
from openwork.training.data import OwnLoss, TrainData, held_out_accuracy, held_out_loss
from openwork.training.dropout import Dropout, DropoutSettings
from openwork.training.gates import L0, L0Settings
from openwork.training.loop import Regime, TrainResult, TrainSettings, train
from openwork.training.optimizers import OPTIMIZERS
from openwork.training.rigl import RigL, RigLSettings
from openwork.training.weight_norm import WeightNorm, WeightNormSettings
from openwork.training.weights import L1, L2, Dense, DenseSettings, L1Settings, L2Settings, TopK, TopKSettings

REGIMES: dict[str, tuple[type[Regime[Any]], type[BaseModel]]] = {
    "dense": (Dense, DenseSettings),
    "l1": (L1, L1Settings),
    "l2": (L2, L2Settings),
    "dropout": (Dropout, DropoutSettings),
    "topk": (TopK, TopKSettings),
    "rigl": (RigL, RigLSettings),
    "l0": (L0, L0Settings),
    "weight_norm": (WeightNorm, WeightNormSettings),
    "bimt": (BIMT, BIMTSettings),
    "clusterability": (Clusterability, ClusterabilitySettings),
    "gomory_hu": (GomoryHu, GomoryHuSettings),
}


def make_regime(name: str, options: Mapping[str, Any] | None = None) -> Regime[Any]:
    """The regime of that name with its settings; refuses an unknown name or setting."""
    if name not in REGIMES:
        raise unknown("regime", name, REGIMES)
    regime_type, settings_type = REGIMES[name]
    return regime_type(checked(settings_type, options or {}, f"settings of the regime {name}"))


__all__ = [
    "BIMT",
    "L0",
    "L1",
    "L2",
    "OPTIMIZERS",
    "REGIMES",
    "BIMTSettings",
    "Clusterability",
    "ClusterabilitySettings",
    "Dense",
    "DenseSettings",
    "Dropout",
    "DropoutSettings",
    "GomoryHu",
    "GomoryHuSettings",
    "L0Settings",
    "L1Settings",
    "L2Settings",
    "OwnLoss",
    "Regime",
    "RigL",
    "RigLSettings",
    "TopK",
    "TopKSettings",
    "TrainData",
    "TrainResult",
    "TrainSettings",
    "WeightNorm",
    "WeightNormSettings",
    "held_out_accuracy",
    "held_out_loss",
    "make_regime",
    "train",
]
