"""Regimes that share a network out among k modules: a price on weights between them, and zeros where none is needed.

Which node belongs to which module follows the weights: a spectral partition of the hidden nodes (see `structure`) is
made anew every `every` steps, its modules named after those of the partition before, until a share `freeze` of the run
has passed. Inputs and outputs belong to all modules, so at least two hidden layers are needed. To the loss is added

    loss="ncut"    price * (1/k) sum_c (vol_c - B_cc) / vol_c       (Shi and Malik 2000), labels held constant
    loss="ratio"   price * (1 - mean over matrices of C(W))         (Golechha et al. 2025, arXiv 2502.02470)

Both are ratios of weights: they fall also when weights inside modules grow, and come close to their best value while
what crosses still carries the answer. So a second force acts on the weights that cross, and on no other: after every
optimizer step each moves by `tau` learning rates towards zero and stays there once it is there (the proximal step of an
L1 price). What is left in the end are exact zeros and a list of edges. `hard_cut` deletes that list too.

The paper's setting is loss=ratio partition=blocks tau=0 price=20 (or 40): contiguous equal blocks of every layer. Its
latest version withdraws that such modules specialise in tasks; they are parts that depend little on each other.

Knows one model and the moments of training. Does not know data, losses or circuits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from openwork import structure
from openwork.errors import UsageError
from openwork.patching import graph_of, weight_of
from openwork.structure import Partition, Wiring
from openwork.training.loop import Regime
from openwork.training.matrices import evaluating


class ModuleSettings(BaseModel):
    """How many modules there are, and when their members are chosen; moments are shares of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modules: int = Field(default=4, ge=2)
    every: int = Field(default=100, ge=1, description="steps between two partitions")
    begin: float = Field(default=0.1, ge=0, le=1, description="moment from which weights between modules cost")
    freeze: float = Field(default=0.6, ge=0, le=1, description="moment after which every node stays where it is")


M = TypeVar("M", bound=ModuleSettings, covariant=True)


class Modular(Regime[M]):
    """A regime whose nodes belong to modules that follow the weights."""

    def prepare(self, model: nn.Module, steps: int) -> None:
        """Makes the first partition. UsageError where no matrix joins two hidden sites, or nodes are too few."""
        self._steps = steps
        try:
            self._wiring = structure.wiring(graph_of(model))
        except UsageError as e:
            raise UsageError(f"the regime {self.name} cannot train this {type(model).__name__}: {e}") from e
        if self._wiring.count < self.settings.modules:
            raise UsageError(
                f"the regime {self.name} has {self.settings.modules} modules for {self._wiring.count} hidden nodes."
            )
        self.repartition(model)

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Now and then, until it is frozen, finds the partition again."""
        if step % self.settings.every == 0 and step <= self.settings.freeze * self._steps:
            self.repartition(model)

    def begun(self, step: int) -> bool:
        """Whether weights between modules cost in step `step`, counted from 0."""
        return step >= self.settings.begin * self._steps

    def repartition(self, model: nn.Module) -> None:
        """The spectral partition of the weights as they are, named after the one before."""
        labels = structure.spectral(structure.adjacency(self._wiring, self.sizes(model)), self.settings.modules)
        before = getattr(self, "_partition", None)
        if before is not None:
            labels = structure.matched(labels, self._wiring.labels(before), self.settings.modules)
        self.settle_on(self._wiring.partition(labels), model)

    def settle_on(self, partition: Partition, model: nn.Module) -> None:
        """Takes over a partition; on the model's device, so that no step has to move it there."""
        device = next(model.parameters()).device
        self._partition = {site: labels.to(device) for site, labels in partition.items()}

    @torch.no_grad()
    def sizes(self, model: nn.Module) -> dict[str, Tensor]:
        """|w| of every matrix between labelled nodes as the trained model has it: link -> [dst, src]."""
        with evaluating(model):
            return {n: structure.size(w) for n, w in structure.weights(model, self._wiring).items()}

    def between(self, model: nn.Module) -> Tensor:
        """B [k, k] of the weights of this step, with their gradient."""
        sizes = {n: structure.size(w) for n, w in structure.weights(model, self._wiring).items()}
        return structure.contraction(self._wiring, sizes, self._partition, self.settings.modules)

    @property
    def wiring(self) -> Wiring:
        """The weight graph's nodes."""
        return self._wiring

    @property
    def partition(self) -> Partition:
        """Which module every node is in now."""
        return self._partition

    @torch.no_grad()
    def report(self, model: nn.Module) -> dict[str, float]:
        """Mean C over matrices, n-cut (summed over modules), and the number of nonzero weights between modules."""
        with evaluating(model):
            weights = structure.weights(model, self._wiring)
            sizes = {n: structure.size(w) for n, w in weights.items()}
            cut = structure.ncut(structure.contraction(self._wiring, sizes, self._partition, self.settings.modules))
            c = structure.mean_clusterability(self._wiring, weights, self._partition)
        crossing = structure.cross_edges(self._wiring, sizes, self._partition)
        return {"clusterability": float(c), "ncut": float(cut), "cross_edges": crossing}

    def notes(self) -> dict[str, Any]:
        """The partition, site -> module of every node."""
        return {"modules": {site: labels.tolist() for site, labels in self._partition.items()}}

    def state(self) -> dict[str, Any]:
        """Which node is in which module."""
        return {"partition": dict(self._partition)}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """The inverse of `state`."""
        self._partition = {site: labels.to(device) for site, labels in state["partition"].items()}


class ClusterabilitySettings(ModuleSettings):
    """What weights between modules cost."""

    loss: Literal["ncut", "ratio"] = Field(default="ncut", description="normalised cut, or 1 - C as published")
    price: float = Field(default=0.3, ge=0, description="nats per unit of that loss, which is between 0 and 1")
    partition: Literal["spectral", "blocks"] = Field(
        default="spectral", description="follows the weights, or contiguous equal blocks of every site"
    )
    tau: float = Field(
        default=0.3, ge=0, description="how far each step moves weights between modules towards 0, in learning rates"
    )
    hard_cut: bool = Field(default=False, description="delete all weights between modules at the end")


class Clusterability(Modular[ClusterabilitySettings]):
    """A price on weights between modules, see the head of this file."""

    name = "clusterability"
    clashes: ClassVar[Mapping[str, str]] = {
        "weight_norm": "it computes weights anew, so single weights cannot be set to zero",
        "gomory_hu": "each makes a partition of its own",
    }

    def __init__(self, settings: ClusterabilitySettings | None = None) -> None:
        super().__init__(settings or ClusterabilitySettings())

    def repartition(self, model: nn.Module) -> None:
        """The spectral partition, or the one that never changes."""
        if self.settings.partition == "spectral":
            super().repartition(model)
        else:
            labels = structure.blocks(self._wiring, self.settings.modules)
            self.settle_on(self._wiring.partition(labels), model)

    def settle_on(self, partition: Partition, model: nn.Module) -> None:
        """Takes over a partition and what crosses in it."""
        super().settle_on(partition, model)
        self._mark()

    def penalty(self, model: nn.Module, step: int) -> Tensor | None:
        """price * the loss that was chosen, in nats."""
        s = self.settings
        if s.price == 0 or not self.begun(step):
            return None
        if s.loss == "ncut":
            return s.price / s.modules * structure.ncut(self.between(model))
        weights = structure.weights(model, self._wiring)
        return s.price * (1 - structure.mean_clusterability(self._wiring, weights, self._partition))

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Moves what crosses towards zero; now and then finds the partition again."""
        if self.settings.tau > 0 and self.begun(step - 1):
            self._shrink(model, optimizer)
        super().after_step(model, optimizer, step)

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        """Deletes what crosses, if asked to."""
        if self.settings.hard_cut:
            for e in self._wiring.links:
                weight = weight_of(model.get_submodule(e.module))
                weight.masked_fill_(self._fitting(e.name, weight), 0)

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """The inverse of `state`."""
        super().restore(state, device)
        self._mark()

    @torch.no_grad()
    def _shrink(self, model: nn.Module, optimizer: Optimizer) -> None:
        """w <- sign(w) max(|w| - tau lr, 0) where w crosses."""
        rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for e in self._wiring.links:
            module = model.get_submodule(e.module)
            stored, weight = _stored(module)
            small = nn.functional.softshrink(weight, self.settings.tau * rate.get(id(stored), 0.0))
            weight.copy_(torch.where(self._fitting(e.name, weight), small, weight))

    def _fitting(self, link: str, weight: Tensor) -> Tensor:
        """The mask of what crosses, with as many axes as the weight."""
        mask = self._crossing[link]
        return mask.view(*mask.shape, *[1] * (weight.dim() - 2))

    def _mark(self) -> None:
        of = self._partition
        self._crossing = {e.name: structure.crossing(of[e.dst], of[e.src]) for e in self._wiring.links}


def _stored(module: nn.Module) -> tuple[Tensor, Tensor]:
    """The parameter behind a module's matrix, and that parameter [dst, src, ...]: under gates, what they multiply."""
    if parametrize.is_parametrized(module, "weight"):
        original = module.get_submodule("parametrizations").get_submodule("weight").get_parameter("original")
        return original, original
    parameter = module.get_parameter("weight")
    return parameter, weight_of(module)
