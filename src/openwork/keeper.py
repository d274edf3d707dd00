"""Where a long search puts away how far it is: files in a folder, one per stage, so that a killed search goes on.

One safetensors file holds a state whole, its plain data as JSON in the file's header; it is written to the side and
renamed. A state belongs to one question (`key`) and is not given to another. Knows folders and states. Does not know
what is searched for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from openwork import files
from openwork.discover import State

EVERY = 60.0  # seconds between two states of one stage


class FolderKeeper:
    """A `Keeper` in a folder.

    key      of the question; a state of another question counts as none
    seconds  at least between two states that are put away under one name
    """

    def __init__(self, folder: Path, key: str, seconds: float = EVERY) -> None:
        self.folder, self.key, self.seconds = folder, key, seconds
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
        return State(tensors, said["data"]) if said.get("key") == self.key else None

    def save(self, name: str, state: Callable[[], State]) -> None:
        """Puts a state away where it is time to; it is made only then."""
        now = time.monotonic()
        if now - self._last.get(name, self._began) < self.seconds:
            return
        made = state()
        said = json.dumps({"key": self.key, "data": files.plain(made.data)})
        tensors = {n: t.detach().cpu().contiguous() for n, t in made.tensors.items()}
        files.write_bytes(self._at(name), save(tensors, {"state": said}))
        self._last[name] = time.monotonic()

    def clear(self) -> None:
        """Removes the folder: the search is over."""
        files.remove(self.folder)

    def _at(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '_')}.safetensors"


__all__ = ["EVERY", "FolderKeeper"]
