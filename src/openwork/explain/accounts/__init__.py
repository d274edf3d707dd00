"""A circuit of each kind of model, run with its gates frozen: ACCOUNTS, by the model's class.

An accountant is made once per circuit (its ablated edges and nodes become constants) and called with inputs; what it
returns is a `FrozenRun` whose logits are those of the circuit's patched run. A new kind of model is a new file and one
line here.

Knows models, circuits and a constant reference. Does not know tasks, splits or words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import nn

from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain.accounts.account import FrozenRun
from openwork.explain.accounts.cnn import CNNAccountant
from openwork.explain.accounts.mlp import MLPAccountant
from openwork.explain.accounts.transformer import TransformerAccountant
from openwork.models import CNN, MLP, Transformer
from openwork.patching import Inputs, Reference, graph_of, is_constant


class Accountant(Protocol):
    """A circuit ready to be accounted for; `frozen` says in words what is held fixed."""

    frozen: tuple[str, ...]

    def __call__(self, inputs: Inputs) -> FrozenRun:
        """The run of these inputs, in float64."""
        ...


ACCOUNTS: dict[type[nn.Module], Callable[..., Accountant]] = {
    CNN: CNNAccountant,
    MLP: MLPAccountant,
    Transformer: TransformerAccountant,
}


def accountant(model: nn.Module, circuit: Circuit | None, reference: Reference) -> Accountant:
    """The accountant of a circuit, or without one of the whole model.

    reference  what ablated nodes send, one value per node
    UsageError for a model of another kind, or for a reference that belongs to examples.
    """
    if type(model) not in ACCOUNTS:
        names = ", ".join(sorted(t.__name__ for t in ACCOUNTS))
        raise UsageError(
            f"there is no account of the decisions of a {type(model).__name__}; there is of {names} with single "
            "channels as nodes, which openwork.read_sequential and openwork.read_gpt2 make of plain torch models."
        )
    sites = graph_of(model).by_site
    free = sorted(n for n, v in reference.items() if not is_constant(sites[n], v))
    if free:
        raise UsageError(
            f"the reference has one value per input at {', '.join(free)}; an account needs one value per node, as the "
            "mean and the zero reference have."
        )
    return ACCOUNTS[type(model)](model, circuit, reference)


__all__ = ["ACCOUNTS", "Accountant", "accountant"]
