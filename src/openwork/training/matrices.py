"""A model's trained matrices while it trains: where they live, under parametrizations too, and counts over them.

Knows modules and their parameters. Does not know regimes, data or losses.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from openwork.models import Subject
from openwork.patching import weight_of


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context, the model is as it is used after training: parametrizations that draw noise draw none."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def places(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where each trained matrix (two axes or more) lives: name -> module and attribute.

    A matrix under a parametrization keeps its name, and what the parametrization holds is no matrix of the model.
    """
    found: dict[str, tuple[nn.Module, str]] = {}
    inside: set[nn.Module] = set()
    seen: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        if module in inside:
            continue
        own = {n: [p] for n, p in module.named_parameters(recurse=False)}
        if parametrize.is_parametrized(module):
            held = module.get_submodule("parametrizations")
            inside |= set(held.modules())
            own |= {n: list(of.parameters(recurse=False)) for n, of in held.named_children()}
        for name, of in own.items():
            if any(p.requires_grad and p.dim() >= 2 for p in of) and seen.isdisjoint(of):
                found[f"{path}.{name}" if path else name] = (module, name)
            seen |= set(of)
    return found


def copied(model: nn.Module) -> nn.Module:
    """A deep copy whose parametrizations can be removed alone: torch's own shares the class that removal changes."""
    copy_ = copy.deepcopy(model)
    for module in copy_.modules():
        if parametrize.is_parametrized(module):
            shared: type[nn.Module] = type(module)
            body = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
            module.__class__ = cast(type[nn.Module], type(shared.__name__, shared.__bases__, body))
    return copy_


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """The trained matrices by name, as the model uses them: what sparsity is counted over and penalties act on."""
    return {n: getattr(module, attribute) for n, (module, attribute) in places(model).items()}


@torch.no_grad()
def count_nonzero(model: nn.Module) -> tuple[int, int]:
    """Nonzero and all entries of the matrices, as they are after training."""
    with evaluating(model):
        of = matrices(model).values()
    return sum(int(w.count_nonzero()) for w in of), sum(w.numel() for w in of)


@torch.no_grad()
def dead_neurons(model: nn.Module) -> float:
    """Share of neurons without a nonzero weight in, or without one out; nan for a model without neurons."""
    if not isinstance(model, Subject):
        return math.nan
    graph = model.graph()
    dead = count = 0
    for site in (s for s in graph.sites if s.kind == "neuron"):
        alive = torch.ones(site.size, dtype=torch.bool)
        for links, axis in ((graph.into(site.name), 1), (graph.out_of(site.name), 0)):
            with evaluating(model):
                weights = [weight_of(model.get_submodule(e.module)) for e in links if e.kind == "weight"]
            used = [(w.flatten(2).abs().sum(-1) if w.dim() > 2 else w).count_nonzero(axis) > 0 for w in weights]
            alive &= torch.stack(used).any(0).cpu() if used else True
        dead += site.size - int(alive.sum())
        count += site.size
    return dead / count if count else math.nan
