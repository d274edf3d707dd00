"""Where a long search stands, put away now and then, so that a killed one goes on in another process.

What comes out of a search that went on is what would have come out undisturbed, to the bit, because:

    all      a state holds everything that changes as the search goes on. The rest is worked out again from the question
    only     it is made where the next step depends on the state alone, not on how the search came there
    apart    every stage puts its state away under a name of its own; stages within stages have a `shelf` of their own

How often is for the keeper to say; so a stage that ends between two of its states is done again from the last one, and
each stage loses no more than the time between two. Knows tensors, plain data and names. Does not know what is searched
for, nor where states lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from openwork.circuit import Circuit, Masks
from openwork.graph import Graph


@dataclass(frozen=True)
class State:
    """Where a long search stands: tensors by name, and plain data for JSON (nan and inf stay what they are)."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)


class Keeper(Protocol):
    """Where long searches put away how far they are, so that a killed one goes on; several by their names."""

    def load(self, name: str) -> State | None:
        """What was put away last under a name, None where nothing was."""
        ...

    def save(self, name: str, state: Callable[[], State]) -> None:
        """Puts a state away where it is time to; it is made only then."""
        ...


class Nowhere:
    """The keeper of searches that are not put away."""

    def load(self, name: str) -> State | None:
        """Nothing."""
        return None

    def save(self, name: str, state: Callable[[], State]) -> None:
        """Nothing."""


NOWHERE = Nowhere()


@dataclass(frozen=True)
class Shelf:
    """A keeper's room for one stage of a search, whose own stages have names that others use too."""

    keeper: Keeper
    label: str

    def load(self, name: str) -> State | None:
        """What was put away last under a name on this shelf."""
        return self.keeper.load(f"{self.label} {name}")

    def save(self, name: str, state: Callable[[], State]) -> None:
        """Puts a state away on this shelf where it is time to."""
        self.keeper.save(f"{self.label} {name}", state)


def named(tensors: Mapping[str, Tensor], under: str) -> dict[str, Tensor]:
    """Tensors for a state that holds several sets of them: each name behind `under/`."""
    return {f"{under}/{n}": t for n, t in tensors.items()}


def under(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The inverse of `named`: the set of that name."""
    return {n.removeprefix(f"{name}/"): t for n, t in tensors.items() if n.startswith(f"{name}/")}


def masks_of(circuit: Circuit) -> dict[str, Tensor]:
    """A circuit's masks, for a state."""
    return named(circuit.nodes, "nodes") | named(circuit.edges, "edges")


def circuit_of(graph: Graph, masks: Masks, origin: Mapping[str, Any]) -> Circuit:
    """The inverse of `masks_of`."""
    return Circuit(graph, under(masks, "nodes"), under(masks, "edges"), origin)


__all__ = ["NOWHERE", "Keeper", "Nowhere", "Shelf", "State", "circuit_of", "masks_of", "named", "under"]
