"""Runs in which one edge or one node alone is ablated, many of them at a time: what activation patching is made of.

Every candidate is a run of its own of the whole model in which nothing else is ablated. The examples are repeated along
the batch axis, once per candidate, and each repetition gets its own difference: of an edge, what `patching.carry` makes
of its source's reference in its reader; of a node, a mask. So a hundred candidates are one forward pass of a hundred
times the examples. A model that offers `single(inputs, reference)` returns runs that cost less; those here are the
oracle that it is tested against.

Knows modules, a reference and one batch of inputs. Does not know tasks, metrics, or why an edge is asked about.

Shapes: C candidates, K examples, V outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import UsageError
from openwork.graph import Link
from openwork.patching import Inputs, Reference, carry, graph_of, is_constant, patched, record

POSITIONS = 2048  # candidates times examples times positions in a call


class Single:
    """One batch of inputs under one reference, with single edges or nodes ablated. Nothing carries a gradient.

    rows  about how many candidates times examples one call should have: with more, activations leave the processor's
          cache, and a call takes longer than several of fewer
    """

    def __init__(self, model: nn.Module, inputs: Inputs, reference: Reference) -> None:
        self.model, self.inputs, self.reference = model, inputs, reference
        self.graph, self.examples = graph_of(model), len(inputs[0])
        shape = inputs[0].shape[1:-1] if inputs[0].is_floating_point() else inputs[0].shape[1:]
        self.rows = max(1, POSITIONS // math.prod(shape))
        self._reads: dict[str, tuple[Tensor, Tensor]] = {}
        self._sends: dict[str, Tensor] = {}

    @torch.no_grad()
    def edges(self, link: str, dst: int, src: Tensor) -> Tensor:
        """Logits [C, K, V], each with one edge of a link ablated.

        dst, src  the reader, and the sources [C] of the candidates; of a sum, channel c is read by channel c and `dst`
                  is not looked at
        UsageError where the reference has no value for the source.
        """
        e = self.graph.link(link)
        if e.src not in self.reference:
            raise UsageError(f"the reference has no value for site {e.src}, which is ablated.")
        ends = self.graph.site(e.src), self.graph.site(e.dst)
        now, then = self._reading(e)
        if any(s.width for s in ends) or not now.is_floating_point():
            return torch.stack([self._masked(e, dst, int(u)) for u in src])
        one = _one_hot(src, now, ends[0].axis, ends[0].size).repeat_interleave(self.examples, 0)
        gain = one * _repeat(then - now, len(src))
        if e.kind == "weight":
            row = torch.zeros(e.shape, device=now.device, dtype=now.dtype)
            row[dst] = 1
            read = _repeat(now, len(src))
            gain = carry(self.model.get_submodule(e.module), read + gain, read, row)
        with _added(self.model.get_submodule(e.module), gain, before=e.kind == "sum"):
            return self._run(len(src))

    @torch.no_grad()
    def nodes(self, site: str, ids: Tensor) -> Tensor:
        """Logits [C, K, V], each with one node `ids` [C] of a site ablated."""
        s = self.graph.site(site)
        if not s.module:
            raise UsageError(f"site {site} is an input of the model, whose nodes cannot be ablated; its edges can.")
        if site not in self._sends:
            self._sends |= record(self.model, self.inputs, [site])
        axis = -2 if s.width else s.axis
        mask = 1 - _one_hot(ids, self._sends[site], axis, s.size).repeat_interleave(self.examples, 0)
        r = self.reference[site]
        r = r if is_constant(s, r) else _repeat(r, len(ids))
        with patched(self.model, {site: r}, {site: mask}):
            return self._run(len(ids))

    def _run(self, candidates: int) -> Tensor:
        out = self.model(*(_repeat(x, candidates) for x in self.inputs))
        return out.view(candidates, self.examples, *out.shape[1:])

    def _masked(self, e: Link, dst: int, src: int) -> Tensor:
        """Logits [K, V] with one edge ablated by its mask: for what cannot be told apart along the batch axis."""
        mask = torch.ones(e.shape)
        mask[(src,) if e.kind == "sum" else (dst, src)] = 0
        with patched(self.model, self.reference, edges={e.name: mask}):
            return self.model(*self.inputs)

    def _reading(self, e: Link) -> tuple[Tensor, Tensor]:
        """What a link's module reads of the source in the whole model, and what it would read of the reference."""
        if e.name in self._reads:
            return self._reads[e.name]
        s, r = self.graph.site(e.src), self.reference[e.src]
        seen: list[Tensor] = []
        handles = []

        def along(like: Tensor) -> Tensor:
            return _like(r.to(like.device), like, s.axis) if is_constant(s, r) and not s.width else r

        if e.kind == "sum":
            now = record(self.model, self.inputs, [e.src])[e.src]
            pair = now, along(now).expand_as(now)
        else:

            def mix(module: nn.Module, args: tuple[Tensor, ...], _out: Tensor) -> None:
                seen.append(module.forward(*args[:-1], along(args[-1]).expand_as(args[-1])))

            def read(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
                seen.append(args[0])

            try:
                if e.through:
                    handles.append(self.model.get_submodule(e.through).register_forward_hook(mix))
                handles.append(self.model.get_submodule(e.module).register_forward_pre_hook(read))
                self.model(*self.inputs)
            finally:
                for h in handles:
                    h.remove()
            now = seen[-1]
            exact = e.through or not now.is_floating_point() or s.width
            pair = now, (seen[0] if e.through else r if exact else along(now).expand_as(now))
        self._reads[e.name] = pair
        return pair


def single(model: nn.Module, inputs: Inputs, reference: Reference) -> Single:
    """Runs with single edges or nodes ablated; by the model's own `single` where it has one and can use it."""
    own: Callable[[Inputs, Reference], Single | None] | None = getattr(model, "single", None)
    found = own(inputs, reference) if own is not None else None
    return found if found is not None else Single(model, inputs, reference)


@contextmanager
def _added(module: nn.Module, gain: Tensor, before: bool) -> Iterator[None]:
    """Within the context a module's output, or its first input, gains this."""

    def to_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] + gain, *args[1:])

    def to_output(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        return out + gain

    handle = module.register_forward_pre_hook(to_input) if before else module.register_forward_hook(to_output)
    try:
        yield
    finally:
        handle.remove()


def _repeat(x: Tensor, times: int) -> Tensor:
    """The examples [K, ...] so many times over, [times * K, ...]."""
    return x.repeat(times, *[1] * (x.dim() - 1))


def _like(x: Tensor, like: Tensor, axis: int) -> Tensor:
    """One value per node [n], shaped to broadcast along the node axis of an activation."""
    shape = [1] * like.dim()
    shape[axis] = len(x)
    return x.view(shape)


def _one_hot(ids: Tensor, like: Tensor, axis: int, size: int) -> Tensor:
    """[C, 1, .., size at the node axis, ..1]: 1 at each candidate's node."""
    shape = [1] * like.dim()
    shape[0], shape[axis] = len(ids), size
    hot = torch.zeros(len(ids), size, dtype=like.dtype, device=like.device)
    hot[torch.arange(len(ids)), ids] = 1
    return hot.view(shape)


__all__ = ["Single", "single"]
