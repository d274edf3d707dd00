"""Brain-inspired modular training, BIMT: wires have a length and length has a price (Liu, Gan, Tegmark 2023,
arXiv 2305.08746). For perceptrons, convolutional networks and transformers.

Every node has coordinates in space, and what is added to the loss is

    price(step) * sum over links of ( R(|W| * (distance * D + l0)) + R(|b| * l0) )

with D the Manhattan distance between the nodes that a weight joins and R the sum or the mean over a link; the table E
of an embedding has no length and adds R(|E| * l0). Every now and then nodes exchange places so that the same weights
have shorter wires (see `relocation`). The regimes that the paper compares are settings of this one:

    none: dense - L1: distance=0 relocate=none - L1 + local: relocate=none - L1 + swap: distance=0 - BIMT: as it stands
    swap only: price=0 cut=0, a control: the places move, the weights are exactly those of dense

A node of a convolution is a channel: all weights of a kernel are as long as its two channels are apart, and where in an
image or map a weight looks costs nothing. In a transformer, as published: the queries, keys and values of an attention
share one arrangement, in which a head's channels stay together and heads change places as wholes; all that adds up in
the residual stream shares one arrangement, whose cost runs over every matrix of every layer that reads or writes the
stream, the unembedding too; the neurons of each MLP are free. None of this is a rule of its own here:
`relocation.ties` reads it off the graph. Norms, attention and the bigram table join no two places and cost nothing. The
answers of a vocabulary sit in the order of their numbers and move only if the settings ask for it.

What L1 alone buys and what places buy are different things: compare `wire_length`, `edges` and the loss of several of
these, not of BIMT and dense alone.

Departures. A node is moved by changing its coordinates, not its place in memory: no weight and no optimizer moment has
to follow, so other regimes may keep masks and gates of their own. The coordinates are kept in the model's config.json
(`extra.bimt.coordinates`). Relocation always minimises what the wires cost with distance 1 in every layer, as the
released code does where training leaves a layer's distance out; it also runs after the last step. The exchanges follow
the node where the released code follows the place, which another node may hold by then. At the end weights up to `cut`
become exact zeros, because an edge is a nonzero weight here. No outputs on a circle: they sit on a line or grid too. In
a square or cube each head has a cell of its own. The channels of an embedding of several operands have places of their
own and move alone; the released code lays the operands' channels over one another and moves them together.

The table of an embedding is looked up, which is no wire: it costs R(|E| * l0), as in the released code, and has no part
in where channels go.

Knows one model and the moments of training. Does not know data, losses or circuits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from openwork.patching import graph_of, weight_of
from openwork.training import relocation
from openwork.training.loop import Regime
from openwork.training.matrices import matrices
from openwork.training.relocation import Places


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
    move_outputs: bool | None = Field(
        default=None, description="whether outputs move too; none: unless they are those of a vocabulary"
    )
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
        """Gives every node its first place. UsageError where a matrix joins nodes that share their places."""
        graph, s = graph_of(model), self.settings
        self._steps = steps
        self._links = [e for e in graph.links if relocation.is_wire(e)]
        self._tables = [e.module for e in graph.links if e.counts == "embedding"]
        self._movable = relocation.movable(graph, s.move_inputs, s.move_outputs)
        self._outputs = {site.name for site in graph.sites if site.kind == "output"}
        self._axes = {e.name: weight_of(model.get_submodule(e.module)).dim() for e in self._links}
        self._slopes: dict[str, Tensor] = {}
        self._places = relocation.start_of(model, s.dimensions)
        self._price_weights()

    def penalty(self, model: nn.Module, step: int) -> Tensor | None:
        """price(step) * cost of all wires, in nats."""
        s = self.settings
        price = self.price(step)
        if price == 0:
            return None
        names, costs, weights = [], [], []
        for e in self._links:
            module = model.get_submodule(e.module)
            names.append(e.name)
            costs.append(self._cost_of[e.name])
            weights.append(weight_of(module))
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor) and step >= s.biases_from * self._steps:
                names.append(f"{e.name} bias")
                costs.append(s.l0)
                weights.append(bias)
        for path in self._tables:
            names.append(f"{path} table")
            costs.append(s.l0)
            weights.append(cast(Tensor, model.get_submodule(path).weight))
        for name, w in zip(names, weights, strict=True):
            if name not in self._slopes:
                self._slopes[name] = torch.empty_like(w, requires_grad=False)
        scales = [price if s.reduce == "sum" else price / w.numel() for w in weights]
        slopes = [self._slopes[name] for name in names]
        cost = _Cost.apply(costs, scales, slopes, *weights)
        assert isinstance(cost, Tensor)
        return cost

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Now and then, and after the last step, gives nodes places with shorter wires. No weight changes."""
        s = self.settings
        if s.relocate == "none" or (step % s.every and step != self._steps):
            return
        wires = relocation.wires_of(model, s.reduce)
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
        """Wire length sum |w| * distance over all links, and the number of edges with a weight larger than `cut`."""
        edges = 0
        for e in self._links:
            large = weight_of(model.get_submodule(e.module)).detach().abs() > self.settings.cut
            edges += int((large.flatten(2).any(-1) if large.dim() > 2 else large).count_nonzero())
        return {"wire_length": relocation.wire_length(relocation.wires_of(model), self._places), "edges": edges}

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
        """What a unit of each weight costs as the nodes sit now: link -> distance * D + l0, [dst, src, 1 ..]."""
        s, of = self.settings, self._places.of
        self._cost_of = {}
        for e in self._links:
            distance = s.distance if s.distance_last or e.dst not in self._outputs else 0.0
            cost = distance * relocation.distances(of(e.dst), of(e.src)) + s.l0
            self._cost_of[e.name] = cost.view(*cost.shape, *[1] * (self._axes[e.name] - 2))


class _Cost(torch.autograd.Function):
    """Sum of scale * |w| * cost over all weights, with its gradient scale * sign(w) * cost, 0 at 0 as that of abs.

    The same as `scale * (w.abs() * cost).sum()` by autograd, without a new matrix for every operation: all it needs is
    written into the slopes, which the regime keeps from step to step. Asked for a gradient after they were overwritten,
    torch refuses.
    """

    @staticmethod
    def forward(
        ctx: Any, costs: list[Tensor | float], scales: list[float], slopes: list[Tensor], *weights: Tensor
    ) -> Tensor:
        """A scalar; `costs` [dst, src] or that with axes of length 1, slopes like the weights."""
        total = weights[0].new_zeros(())
        for cost, scale, slope, w in zip(costs, scales, slopes, weights, strict=True):
            torch.sign(w, out=slope).mul_(cost)
            if w.is_contiguous() and slope.is_contiguous():
                total.add_(torch.dot(slope.view(-1), w.view(-1)), alpha=scale)
            else:
                total.add_((slope * w).sum(), alpha=scale)
        ctx.save_for_backward(*slopes)
        ctx.scales = scales
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What each weight gets; the slopes are scaled where they lie."""
        (grad,) = outputs
        return None, None, None, *(s.mul_(grad * scale) for s, scale in zip(ctx.saved_tensors, ctx.scales, strict=True))
