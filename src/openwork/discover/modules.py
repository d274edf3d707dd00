"""Modules as circuits: parts of a model that were found by structure, from its weights alone and without any data.

A module is the nodes of one label of a partition (see `structure`) with all nonzero weights between them. Inputs,
outputs and tables are open to every module and stand in each; what joins two modules stands in none. So all modules
together are the model without its interface, and with zeros as the reference their union runs like the model whose
weights between modules are deleted.

Knows a model's weights as a graph, and partitions of it. Does not know data, losses, or what the modules are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from openwork import structure
from openwork.circuit import Circuit
from openwork.errors import UsageError, unknown
from openwork.patching import graph_of, support
from openwork.structure import Labels, Wiring

PARTITIONS = ("spectral", "blocks")  # those that a model's weights alone give


def partition_of(model: nn.Module, of: Wiring, way: str, k: int | None, seed: int = 0) -> Labels:
    """The labels [count] of k modules; without k, as many as the largest eigengap says.

    way   "spectral": a small normalised cut; "blocks": contiguous equal blocks of every layer, a baseline that looks at
          no weight
    UsageError where there are fewer nodes than modules, and for an unknown way.
    """
    if way not in PARTITIONS:
        raise unknown("partition", way, PARTITIONS)
    if k is not None and of.count < k:
        raise UsageError(f"{k} modules are asked for, but the model has {of.count} hidden nodes to share out.")
    sizes = {name: structure.size(w.detach()) for name, w in structure.weights(model, of).items()}
    graph = structure.adjacency(of, sizes)
    many = structure.eigengap(graph, seed=seed) if k is None else k
    labels = structure.spectral(graph, many, seed) if way == "spectral" else structure.blocks(of, many)
    empty = np.flatnonzero(np.bincount(labels, minlength=many) == 0)
    if len(empty):
        raise UsageError(f"the partition {way} leaves {len(empty)} of {many} modules without a node; ask for fewer.")
    return labels


def module_nodes(of: Wiring, labels: Labels, module: int) -> dict[str, Tensor]:
    """Which nodes of each labelled site are in a module, site -> bool [n]."""
    return {site: label == module for site, label in of.partition(labels).items()}


def module_circuits(
    model: nn.Module, of: Wiring, labels: Labels, origin: Mapping[str, Any] | None = None
) -> tuple[Circuit, ...]:
    """One circuit per module, in their order; each says in its `origin` which one it is, beside what is given."""
    graph, edges = graph_of(model), support(model)
    return tuple(
        Circuit.from_nodes(graph, module_nodes(of, labels, c), edges, {**(origin or {}), "module": c})
        for c in range(int(labels.max()) + 1)
    )


__all__ = ["PARTITIONS", "module_circuits", "module_nodes", "partition_of"]
