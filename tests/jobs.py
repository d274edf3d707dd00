"""Jobs that tests give to worker processes, which import them by name from here (a test module has none there)."""

from __future__ import annotations

import os

import torch

from openwork.workers import common


def touch(place: int) -> tuple[int, bool]:
    """A job: writes into the model that it was given, so that others can see whose memory it is."""
    held = common()
    with torch.no_grad():
        first = next(held.model.parameters())
        first.view(-1)[place] = 1000.0 + place
    return os.getpid(), all(p.is_shared() for p in held.model.parameters()) and held.reference["hidden0"].is_shared()
