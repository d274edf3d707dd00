"""What the accounts of all kinds of model begin with: a circuit's masks and reference, and ablated edges as constants.

A source that is ablated, or an edge that is, carries a constant r. So a link brings W' h + (W - W') r, with W' the
weights between what is kept (see `models.folded`, which does it for perceptrons of vectors).

Knows graphs, masks, weights. Does not know what layers do between the links.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from openwork import patching
from openwork.circuit import Circuit
from openwork.explain.accounts.account import Spot
from openwork.graph import Link
from openwork.models.node import Node
from openwork.patching import Reference


class Folding:
    """The masks of a circuit's patched run, and its reference, in float64 on the CPU; without a circuit all is kept."""

    def __init__(self, model: nn.Module, circuit: Circuit | None, reference: Reference) -> None:
        self.graph = patching.graph_of(model)
        self.model, self.circuit = model, circuit
        self.nodes, self.edges = patching.masks_of(model, circuit) if circuit is not None else ({}, {})
        self.ranked = getattr(getattr(model, "config", None), "abstopk", 1.0) < 1
        self._reference = {n: v.detach().double().cpu() for n, v in reference.items()}

    def kept(self, site: str) -> Tensor:
        """Which nodes of a site send what they compute: float64 [n]."""
        size = self.graph.by_site[site].size
        return self.nodes[site].double().cpu() if site in self.nodes else torch.ones(size, dtype=torch.float64)

    def rest(self, site: str) -> Tensor:
        """What ablated nodes of a site send [n]."""
        return self._reference[site]

    def weight(self, link: Link) -> tuple[Tensor, Tensor]:
        """(W', W - W') [dst, src, ...] of a link of weights: what is kept of it, and what carries the reference."""
        w = patching.weight_of(self.model.get_submodule(link.module)).detach().double().cpu()
        if self.circuit is None:
            return w, torch.zeros_like(w)
        # AbsTopK ranks ablated nodes too, by what they would send: edges into them count, where the run keeps them.
        every = self.edges.get(link.name, torch.ones(link.shape)) if self.ranked else self.circuit.edges[link.name]
        mask = every.double().cpu() * self.kept(link.src)
        kept = w * mask.view(*mask.shape, *[1] * (w.dim() - 2))
        return kept, w - kept

    def constant(self, link: Link) -> Tensor:
        """What the ablated edges of a link of weights bring [dst]; 0 where none is ablated."""
        _, ablated = self.weight(link)
        if not bool(ablated.any()):
            return torch.zeros(ablated.shape[0], dtype=torch.float64)
        return (ablated.flatten(2).sum(-1) if ablated.dim() > 2 else ablated) @ self.rest(link.src)

    def sum(self, link: Link) -> tuple[Tensor, Tensor]:
        """(mask [n], constant [n]) of a link of the residual stream."""
        mask = self.kept(link.src)
        if link.name in self.edges:
            mask = mask * self.edges[link.name].double().cpu()
        return mask, (1 - mask) * self.rest(link.src) if bool((mask == 0).any()) else torch.zeros_like(mask)


def selecting(node: object) -> Callable[[Tensor], Tensor] | None:
    """A site's Node where it selects (AbsTopK), else None."""
    return node if isinstance(node, Node) and node.k is not None else None


def summed(
    brought: Tensor | None,
    sources: dict[str, Tensor],
    kept: Tensor,
    bend: Callable[[Tensor], Tensor] | None = None,
    shift: Callable[[Tensor], dict[str, Tensor]] | None = None,
    select: Callable[[Tensor], Tensor] | None = None,
    width: int = 1,
) -> Spot:
    """What a site of vectors [B, n] or [B, T, n] sends.

    brought  the sum over its maps, None where nothing feeds it
    sources  kind -> what else enters the sum, broadcastable
    kept     [n] 1 for nodes of the circuit
    bend     the frozen gate of the sum: activation or norm; shift: constants that come after it, by kind
    select   what leaves only some of them (AbsTopK; see `selecting`)
    """
    total = brought
    for x in sources.values():
        total = x if total is None else total + x
    assert total is not None, "a site that nothing enters"
    after = shift(total) if shift is not None else {}
    gate = torch.ones_like(total) if bend is None else bend(total).expand_as(total)
    keep = kept
    if select is not None:
        keep = kept * (select(gate * total + sum(after.values())) != 0)
    scale = keep * gate
    sent, entered = scale * total, {k: scale * v for k, v in sources.items()}
    for k, x in after.items():
        x = keep * x
        sent, entered[k] = sent + x, entered[k] + x if k in entered else x
    return Spot(sent, scale, entered, width=width)


__all__ = ["Folding", "selecting", "summed"]
