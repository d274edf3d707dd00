"""A whole network in space as plain data: where its nodes sit and which of them its strongest edges join.

Knows a model and the places that its training gave to its nodes. Does not know how they were found, nor how they are
drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import RunError
from openwork.patching import graph_of, weight_of

VERSION = 1
STRONGEST = 2000  # edges told; a drawing with more is a grey cloud
OF_VOCABULARY = 400  # edges told of embedding and unembedding, which would crowd out the rest


@torch.no_grad()
def build_wiring(
    model: nn.Module,
    coordinates: Mapping[str, Sequence[Sequence[float]]],
    strongest: int = STRONGEST,
    of_vocabulary: int = OF_VOCABULARY,
) -> dict[str, Any]:
    """The network as JSON-ready data. RunError where the places are not those of this model's nodes.

    coordinates    site -> one list per node, as `extra.bimt.coordinates` of a stored model has them
    strongest      how many edges are told at most, beside
    of_vocabulary  those of the unembedding, at most

        sites    name, kind, layer, `at` (coordinates of each node) and `size` (sum of |w| of the node's edges; 0 where
                 it has none), of every site that a matrix reads or writes
        edges    [site, node, reading site, its node, weight], the strongest first, sites by their position in `sites`;
                 of a kernel the weight is the sum of |w| over it, with the sign of its sum
        count    edges in all; threads: sites that carry on the same nodes, as sums do (the residual stream), as lists
    """
    graph = graph_of(model)
    links = [e for e in graph.links if e.kind == "weight" and e.counts != "embedding"]  # a table is no wire
    joined = {name for e in links for name in (e.src, e.dst)}
    sites = [s for s in graph.sites if s.name in joined]
    for s in sites:
        if len(coordinates.get(s.name, ())) != s.size:
            raise RunError(f"the stored places do not fit the model: {s.name} has {s.size} nodes.")
    number = {s.name: k for k, s in enumerate(sites)}
    strength = [torch.zeros(s.size) for s in sites]
    told: list[tuple[Tensor, Tensor, bool]] = []  # per link its edges' ends [edges, 4], weights, whether of vocabulary
    for e in links:
        w = _by_edge(weight_of(model.get_submodule(e.module)).detach().cpu().float())
        strength[number[e.src]] += w.abs().sum(0)
        strength[number[e.dst]] += w.abs().sum(1)
        dst, src = w.nonzero(as_tuple=True)
        ends = (torch.full_like(src, number[e.src]), src, torch.full_like(dst, number[e.dst]), dst)
        told.append((torch.stack(ends, 1), w[dst, src], e.counts == "unembedding"))
    parts = [_strongest(told, most, words) for most, words in ((strongest, False), (of_vocabulary, True))]
    edges = [[*at, x] for ends, w in parts for at, x in zip(ends.tolist(), _short(w), strict=True)]
    return {
        "version": VERSION,
        "sites": [
            {"name": s.name, "kind": s.kind, "layer": s.layer, "at": _short(coordinates[s.name]), "size": _short(size)}
            for s, size in zip(sites, strength, strict=True)
        ],
        "edges": sorted(edges, key=lambda e: -abs(e[-1])),
        "count": sum(len(w) for _, w, _ in told),
        "threads": [
            [number[name] for name in names if name in number]
            for names in graph.groups((e.src, e.dst) for e in graph.links if e.kind == "sum")
            if len(names) > 1
        ],
    }


def _strongest(told: Sequence[tuple[Tensor, Tensor, bool]], most: int, words: bool) -> tuple[Tensor, Tensor]:
    """Ends and weights of the strongest edges of the links that are, or are not, of a vocabulary."""
    ends = torch.cat([torch.zeros(0, 4, dtype=torch.long), *(e for e, _, of_words in told if of_words == words)])
    w = torch.cat([torch.zeros(0), *(w for _, w, of_words in told if of_words == words)])
    first = torch.sort(w.abs(), descending=True, stable=True).indices[:most]
    return ends[first], w[first]


def _by_edge(w: Tensor) -> Tensor:
    """One number per edge [dst, src]; of a kernel its summed size, with the sign of its sum."""
    if w.dim() == 2:
        return w
    kernel = w.flatten(2)
    return torch.where(kernel.sum(-1) < 0, -1.0, 1.0) * kernel.abs().sum(-1)


def _short(values: Any) -> Any:
    """Numbers to four significant digits: more cannot be drawn."""
    if isinstance(values, Tensor):
        values = values.tolist()
    return [_short(v) for v in values] if isinstance(values, list | tuple) else float(f"{values:.4g}")
