"""Where a long search puts away how far it is: files in a folder, one per stage, so that a killed search goes on.

One safetensors file holds a state whole, its plain data as JSON in the file's header; it is written to the side and
renamed. A state belongs to one question (`key`) and is not given to another. Knows folders and states. Does not know
what is searched for.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from openwork import files, store
from openwork.discover import State
from openwork.patching import Reference
from openwork.tasks.task import Split

EVERY = 60.0  # seconds between two states of one stage
LAYOUT = 2  # of what searches put into a state; one of another layout counts as none


def question_of(model: nn.Module, reference: Reference | str, split: Split, **settings: Any) -> str:
    """A digest of all that a search depends on: weights, reference, examples, and its settings as plain data."""
    digest = hashlib.sha256(store.model_digest(model).encode())
    sent = {} if isinstance(reference, str) else {n: reference[n] for n in sorted(reference)}
    tensors: list[Tensor] = [*split.inputs, split.answer, split.wrong, split.pair, *sent.values()]
    for t in tensors:
        digest.update(f"{tuple(t.shape)} {t.dtype}".encode() + t.detach().cpu().contiguous().numpy().tobytes())
    said = [reference if isinstance(reference, str) else list(sent), settings]
    digest.update(json.dumps(files.plain(said), sort_keys=True).encode())
    return digest.hexdigest()[:16]


class FolderKeeper:
    """A `Keeper` in a folder.

    key      of the question, see `question_of`; a state of another question counts as none
    seconds  at least between two states that are put away under one name; by default EVERY
    """

    def __init__(self, folder: Path, key: str, seconds: float | None = None) -> None:
        self.folder, self.key, self.seconds = folder, key, EVERY if seconds is None else seconds
        self._began = time.monotonic()
        self._last: dict[str, float] = {}

    def load(self, name: str) -> State | None:
        """What was put away last under a name for this question; None where there is nothing that can be read."""
        path = self._at(name)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as f:
                said = json.loads((f.metadata() or {})["state"])
                tensors = {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118  not a dict
        except (SafetensorError, KeyError, ValueError, OSError):
            return None  # the search then begins anew: nothing is lost but time
        return State(tensors, said["data"]) if (said.get("key"), said.get("layout")) == (self.key, LAYOUT) else None

    def save(self, name: str, state: Callable[[], State]) -> None:
        """Puts a state away where it is time to; it is made only then."""
        now = time.monotonic()
        if now - self._last.get(name, self._began) < self.seconds:
            return
        made = state()  # two names may share one tensor, which the file format refuses: each gets a copy
        said = json.dumps({"key": self.key, "layout": LAYOUT, "data": made.data}, default=files.plain)  # nan stays nan
        tensors = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in made.tensors.items()}
        files.write_bytes(self._at(name), save(tensors, {"state": said}))
        self._last[name] = time.monotonic()

    def clear(self) -> None:
        """Removes the folder: the search is over."""
        files.remove(self.folder)

    def _at(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '_')}.safetensors"


__all__ = ["EVERY", "FolderKeeper", "question_of"]
