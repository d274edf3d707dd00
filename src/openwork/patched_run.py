"""A model that can be run on examples with parts of it ablated: all that a search for a circuit may touch.

A reference is either fixed (zeros, means: one value per node) or a *kind* that belongs to the examples:

    counterfactual  what the node sends on the example's counterpart (activation patching)
    resample        what it sends on another example of the same split, drawn at random (resample ablation)

These stand position by position: where two examples differ in length, what is sent beyond the shorter one's end is what
the network makes of padding. Examples are run in parts of like length. Knows a model, a reference and splits. Does not
know which part of the model is asked about, nor why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from openwork import patching
from openwork.circuit import Circuit, Masks
from openwork.errors import unknown
from openwork.patching import Inputs, Reference
from openwork.tasks.metrics import METRICS, Metric
from openwork.tasks.task import Split

Kind = Literal["counterfactual", "resample"]
KINDS: tuple[str, ...] = get_args(Kind)
LOSS = METRICS["loss"]


@dataclass(frozen=True, eq=False)
class Part:
    """Some examples of a split that are run together.

    index      places [K] of these examples in the split
    split      the examples, without padding that none of them or of the others reaches
    other      inputs of the examples whose activations are the reference; None where the reference is fixed
    """

    model: nn.Module
    index: Tensor
    split: Split
    fixed: Reference | None
    other: Inputs | None

    @cached_property
    def reference(self) -> Reference:
        """What ablated nodes send on these examples, per site."""
        if self.other is None:
            assert self.fixed is not None
            return self.fixed
        return patching.record(self.model, self.other)

    @cached_property
    def whole(self) -> Tensor:
        """Logits [K, V] of the whole model."""
        with torch.no_grad():
            return self.model(*self.split.inputs)


class PatchedRun:
    """A model under one reference.

    reference  a fixed one (site -> one value per node), or a kind: "counterfactual", "resample"
    seed       of the order in which "resample" deals out the examples
    """

    def __init__(self, model: nn.Module, reference: Reference | str, seed: int = 0) -> None:
        if isinstance(reference, str) and reference not in KINDS:
            raise unknown("kind of reference", reference, KINDS)
        self.model, self.reference, self.seed = model, reference, seed
        self.graph = patching.graph_of(model)
        self.support = patching.support(model)
        self._parts: dict[tuple[int, int], tuple[Split, tuple[Part, ...]]] = {}

    @property
    def fixed(self) -> Reference | None:
        """The reference where it is the same for every example, else None."""
        return self.reference if isinstance(self.reference, Mapping) else None

    @property
    def constants_are_lost(self) -> bool:
        """Whether a node that nothing kept leads to carries just what it would carry ablated."""
        return self.fixed is None

    def parts(self, split: Split, most: int = 3) -> tuple[Part, ...]:
        """The examples of a split in at most `most` parts of like length; asked again, the same ones."""
        key = (id(split), most)
        if key not in self._parts:  # the split is held beside its parts, so that its id is not given to another
            self._parts[key] = split, tuple(self._divide(split, most))
        return self._parts[key][1]

    def _divide(self, split: Split, most: int) -> list[Part]:
        device = next(self.model.parameters()).device
        if self.fixed is not None:
            return [Part(self.model, i, s.to(device), self.fixed, None) for i, s in split.buckets(most)]
        if self.reference == "counterfactual":
            split.counterfactual()  # refuses where there is none
        other = split.pair if self.reference == "counterfactual" else another(split, self.seed)
        reach = torch.maximum(_length(split), _length(split)[other])
        parts = []
        for index in torch.argsort(reach, stable=True).chunk(most):
            width = int(reach[index].max()) + 1
            mine, theirs = (_cut(tuple(x[i] for x in split.inputs), width) for i in (index, other[index]))
            part = replace(split.take(index), inputs=mine).to(device)
            parts.append(Part(self.model, index, part, None, tuple(x.to(device) for x in theirs)))
        return parts

    def logits(self, part: Part, nodes: Masks | None = None, edges: Masks | None = None) -> Tensor:
        """Logits [K, V] with these masks (see `patching.patched`); they carry gradients where the masks do."""
        with patching.patched(self.model, part.reference, nodes, edges):
            return self.model(*part.split.inputs)

    def values(
        self, split: Split, nodes: Masks | None = None, edges: Masks | None = None, metric: Metric = LOSS
    ) -> Tensor:
        """A metric [N] of every example of a split, with these masks."""
        out, places = [], []
        for part in self.parts(split):
            out.append(metric.of(self.logits(part, nodes, edges), part.split, part.whole))
            places.append(part.index)
        return torch.cat(out)[torch.cat(places).argsort()]

    def of_circuit(self, split: Split, circuit: Circuit, metric: Metric = LOSS) -> Tensor:
        """A metric [N] of a circuit alone, everything outside it at the reference; small where the model can be."""
        layout = patching.compact(self.model, circuit, self.fixed) if self.fixed is not None else None
        with torch.no_grad():
            if layout is None:
                return self.values(split, *patching.masks_of(self.model, circuit), metric)
            parts = self.parts(split)
            out = torch.cat([metric.of(layout(*p.split.inputs), p.split, p.whole) for p in parts])
            return out[torch.cat([p.index for p in parts]).argsort()]

    def loss(self, split: Split, circuit: Circuit | None = None) -> float:
        """Mean task loss of a circuit alone in nats; without one, of the whole model."""
        if circuit is not None:
            return float(self.of_circuit(split, circuit).mean())
        with torch.no_grad():
            return float(self.values(split).mean())


def another(split: Split, seed: int) -> Tensor:
    """Another example of the split for each [N], never itself where there are two, each drawn once.

    Examples of equal length stand in one random ring and each looks at the next, so that positions mean the same in
    both; one that is alone with its length joins the ring of a neighbour in length.
    """
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    length = _length(split)
    order = order[torch.argsort(length[order], stable=True)]
    out = torch.empty(len(split), dtype=torch.long)
    sizes = torch.unique_consecutive(length[order], return_counts=True)[1].tolist()
    rings: list[list[int]] = []
    for ring in (r.tolist() for r in order.split(sizes)):
        if rings and (len(ring) == 1 or len(rings[-1]) == 1):
            rings[-1] += ring
        else:
            rings.append(ring)
    for ring in rings:
        at = torch.tensor(ring)
        out[at] = at.roll(-1)
    return out


def _is_text(inputs: Inputs) -> bool:
    """Whether inputs are padded tokens and the position that is asked."""
    return len(inputs) == 2 and not inputs[0].is_floating_point()


def _length(split: Split) -> Tensor:
    """The position that is asked, per example [N]; 0 throughout where examples are vectors."""
    return split.inputs[1].cpu() if _is_text(split.inputs) else torch.zeros(len(split), dtype=torch.long)


def _cut(inputs: Inputs, width: int) -> Inputs:
    return (inputs[0][:, :width], inputs[1]) if _is_text(inputs) else inputs


__all__ = ["KINDS", "LOSS", "Part", "PatchedRun", "another"]
