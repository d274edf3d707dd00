"""Brain-inspired modular training, BIMT: wires have a length and length has a price (Liu, Gan, Tegmark 2023,
arXiv 2305.08746). For networks of fully connected layers.

Every node has coordinates in space, and what is added to the loss is

    price(step) * sum over links of ( R(|W| * (distance * D + l0)) + R(|b| * l0) )

with D the Manhattan distance between the nodes that a weight joins and R the sum or the mean over a link. Every now and
then nodes exchange places so that the same weights have shorter wires (see `relocation`). The regimes that the paper
compares are settings of this one:

    none: dense - L1: distance=0 relocate=none - L1 + local: relocate=none - L1 + swap: distance=0 - BIMT: as it stands
    swap only: price=0 cut=0, a control: the places move, the weights are exactly those of dense

What L1 alone buys and what places buy are different things: compare `wire_length`, `edges` and the loss of several of
these, not of BIMT and dense alone.

Departures. A node is moved by changing its coordinates, not its place in memory: no weight and no optimizer moment has
to follow, so other regimes may keep masks and gates of their own. The coordinates are kept in the model's config.json
(`extra.bimt.coordinates`). Relocation always minimises what the wires cost with distance 1 in every layer, as the
released code does where training leaves a layer's distance out; it also runs after the last step. The exchanges follow
the node where the released code follows the place, which another node may hold by then. At the end weights up to `cut`
become exact zeros, because an edge is a nonzero weight here. No outputs on a circle: they sit on a line or grid too.

Knows one model and the moments of training. Does not know data, losses or circuits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.errors import UsageError
from openwork.graph import Link
from openwork.patching import graph_of, weight_of
from openwork.training import relocation
from openwork.training.loop import Regime
from openwork.training.matrices import matrices
from openwork.training.relocation import Places, Wires


class BIMTSettings(BaseModel):
    """What wires cost and how nodes move. Moments are shares of the run; lengths are those of the unit cell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    price: float = Field(default=1e-3, ge=0, description="loss in nats per unit of the cost of all wires")
    schedule: tuple[tuple[float, float], ...] = Field(
        default=((0.25, 10.0), (0.75, 0.1)),
        description="(moment, factor): from a moment on the price is multiplied by its factor, on top of earlier ones",
    )
    distance: float = Field(default=1.0, ge=0, description="what a unit of length adds to a weight's cost; 0: plain L1")
    distance_last: bool = Field(default=True, description="whether length counts in the links to the outputs")
    l0: float = Field(default=0.1, ge=0, description="a weight's cost at no distance, and a bias's")
    reduce: Literal["sum", "mean"] = Field(default="sum", description="over each link's weights; prices do not compare")
    biases_from: float = Field(default=0.0, ge=0, le=1, description="moment from which biases cost; 1: never")
    dimensions: Literal[1, 2, 3] = Field(default=1, description="nodes of a site sit on a line, in a square, in a cube")
    relocate: Literal["assignment", "swaps", "none"] = Field(
        default="assignment", description="the best places of a site at once; the published greedy exchanges; never"
    )
    every: int = Field(default=200, ge=1, description="steps between two relocations")
    top: int = Field(default=30, ge=1, description="with swaps: how many nodes of a site look for a better place")
    sweeps: int = Field(default=1, ge=1, description="how often a relocation goes over all sites")
    restarts: int = Field(default=0, ge=0, description="random arrangements searched besides the present one")
    move_inputs: bool = Field(
        default=False, description="whether inputs move too; in images their places mean something"
    )
    move_outputs: bool = Field(default=True, description="whether outputs move too")
    cut: float = Field(
        default=1e-3, ge=0, description="weights up to this size are set to zero at the end, and are no edges before"
    )

    @model_validator(mode="after")
    def _schedule_is_in_order(self) -> BIMTSettings:
        moments = [m for m, _ in self.schedule]
        if any(not 0 <= m <= 1 for m in moments) or moments != sorted(moments):
            raise ValueError(f"schedule: its moments {moments} are not shares of the run from 0 to 1 in order")
        if any(f < 0 for _, f in self.schedule):
            raise ValueError(f"schedule: its factors {[f for _, f in self.schedule]} must not be negative")
        return self


class BIMT(Regime[BIMTSettings]):
    """Wires have a length and length has a price, see the head of this file."""

    name = "bimt"

    def __init__(self, settings: BIMTSettings | None = None) -> None:
        super().__init__(settings or BIMTSettings())

    def prepare(self, model: nn.Module, steps: int) -> None:
        """Gives every node its first place. UsageError where the model is more than fully connected layers."""
        graph = graph_of(model)
        self._links = graph.links
        foreign = [e for e in graph.links if e.kind != "weight" or e.through]
        foreign += [e for e in graph.links if e not in foreign and _dims(model, e) != 2]
        if foreign or any(s.steers for s in graph.sites):
            raise UsageError(
                f"the regime bimt knows places for fully connected layers only, not for {type(model).__name__}"
                f"{' (' + foreign[0].name + ')' if foreign else ''}: use it with a perceptron (kind mlp)."
            )
        s = self.settings
        fixed = {"input": not s.move_inputs, "output": not s.move_outputs}
        self._steps = steps
        self._movable = [site.name for site in graph.sites if not fixed.get(site.kind, False)]
        self._outputs = {site.name for site in graph.sites if site.kind == "output"}
        sizes = {site.name: site.size for site in graph.sites}
        self._places = relocation.start(sizes, s.dimensions, next(model.parameters()).device)
        self._price_weights()

    def penalty(self, model: nn.Module, step: int) -> Tensor | None:
        """price(step) * cost of all wires, in nats."""
        s = self.settings
        price = self.price(step)
        if price == 0:
            return None
        reduce = torch.sum if s.reduce == "sum" else torch.mean
        parts: list[Tensor] = []
        for e in self._links:
            module = model.get_submodule(e.module)
            parts.append(reduce(weight_of(module).abs() * self._cost_of[e.name]))
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor) and step >= s.biases_from * self._steps:
                parts.append(reduce(bias.abs()) * s.l0)
        return price * torch.stack(parts).sum()

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Now and then, and after the last step, gives nodes places with shorter wires. No weight changes."""
        s = self.settings
        if s.relocate == "none" or (step % s.every and step != self._steps):
            return
        wires = self._wires(model, s.reduce)
        self._places = relocation.relocate(
            wires, self._places, self._movable, s.relocate, s.top, s.sweeps, s.restarts, seed=step
        )
        self._price_weights()

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        """Cuts small weights to zero."""
        for w in matrices(model).values():
            w.mul_(w.abs() > self.settings.cut)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Wire length sum |w| * distance over all links, and the number of weights larger than `cut`."""
        wires = self._wires(model, "sum")
        edges = sum(int((w.size > self.settings.cut).count_nonzero()) for w in wires)
        return {"wire_length": relocation.wire_length(wires, self._places), "edges": edges}

    def notes(self) -> dict[str, Any]:
        """Coordinates of every node, site -> one list per node in the model's order: for drawing."""
        return {"coordinates": relocation.as_lists(self._places)}

    def state(self) -> dict[str, Any]:
        """Which node sits where."""
        return {"at": dict(self._places.at)}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """The inverse of `state`."""
        self._places = Places(self._places.spots, {site: at.to(device) for site, at in state["at"].items()})
        self._price_weights()

    @property
    def places(self) -> Places:
        """Where the nodes sit now."""
        return self._places

    def price(self, step: int) -> float:
        """The price in step `step`, counted from 0."""
        price = self.settings.price
        for moment, factor in self.settings.schedule:
            if step >= moment * self._steps:
                price *= factor
        return price

    def _price_weights(self) -> None:
        """What a unit of each weight costs as the nodes sit now: link -> distance * D + l0, [dst, src]."""
        s, of = self.settings, self._places.of
        self._cost_of = {
            e.name: (s.distance if s.distance_last or e.dst not in self._outputs else 0.0)
            * relocation.distances(of(e.dst), of(e.src))
            + s.l0
            for e in self._links
        }

    def _wires(self, model: nn.Module, reduce: str) -> list[Wires]:
        """The model's weights as wires, each link's cost a sum or a mean."""
        sizes = [(e, weight_of(model.get_submodule(e.module)).detach().abs()) for e in self._links]
        return [Wires(e.src, e.dst, size, 1.0 if reduce == "sum" else 1 / size.numel()) for e, size in sizes]


def _dims(model: nn.Module, link: Link) -> int:
    """How many axes a link's weight has."""
    return weight_of(model.get_submodule(link.module)).dim()
