"""The circuit JSON of EAP-IG (Hanna et al. 2024, arXiv 2403.17806), which the MIB benchmark takes in as well.

    {"cfg":   {"n_layers": 4, "n_heads": 4, "parallel_attn_mlp": false, "d_model": 128},
     "nodes": {"input": {"in_graph": true}, "a0.h0": ..., "m0": ..., "logits": ...},
     "edges": {"input->a0.h0<q>": {"score": 0.5, "in_graph": false}, ..., "m3->logits": ...}}

It describes a transformer at the granularity of heads and MLPs (see `models.components` for the graph): edges into a
head say whether its query, key or value reads them. Its reader takes every edge that is not in the file for kept, so
all edges are written. Knows graphs, circuits and rankings. Does not know models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from openwork.circuit import Circuit, Masks, Scores
from openwork.errors import UsageError, several
from openwork.files import plain, read_json
from openwork.graph import Graph

Entry = tuple[str, tuple[int, int]]  # link, place [dst, src] in its mask


def to_eap_ig(circuit: Circuit, scores: Scores | None = None) -> dict[str, Any]:
    """The circuit as the JSON of EAP-IG, with every edge of its graph.

    scores  the ranking behind it; without one an edge scores 1 where it is kept and 0 where not
    UsageError for a graph that is not one of heads and MLPs.
    """
    graph, edges = circuit.graph, {}
    config = _config(graph)  # refuses graphs of single weights
    for name, (link, at) in _edges(graph).items():
        kept = bool(circuit.edges[link][at])
        score = float(scores.values[link][at]) if scores is not None and link in scores.values else float(kept)
        edges[name] = {"score": score if math.isfinite(score) else 0.0, "in_graph": kept}
    nodes = {}
    for s in graph.sites:
        for i in range(s.size if not s.steers else 0):
            nodes[_node(s.name, i)] = {"in_graph": bool(circuit.nodes[s.name][i])}
    return plain({"cfg": config, "nodes": nodes, "edges": edges})


def read_eap_ig(path: Path, graph: Graph, support: Masks) -> tuple[Circuit, Scores]:
    """The circuit and the ranking in a file, for a model of heads and MLPs with this graph.

    support  link -> bool, the edges that the model has (see `patching.support`)
    UsageError with every problem of the file at once: another shape, edges that are missing or unknown, wrong values.
    """
    if path.suffix in (".pt", ".pth", ".pkl"):
        raise UsageError(
            f"{path} is a pickle, which can run code when it is opened: write the circuit as JSON instead "
            "(in EAP-IG: graph.to_json)."
        )
    data = read_json(path)
    places, problems = _edges(graph), list(_problems(data, graph))
    if problems:
        raise several(str(path), problems)
    scores = {e.name: torch.full(e.shape, -math.inf) for e in graph.links}
    kept = {e.name: torch.zeros(e.shape, dtype=torch.bool) for e in graph.links}
    for name, (link, at) in places.items():
        edge = data["edges"][name]
        scores[link][at] = float(edge.get("score", float(edge["in_graph"])))
        kept[link][at] = edge["in_graph"]
    origin = {"method": "imported", "format": "EAP-IG JSON", "file": path.name}
    return Circuit.from_edges(graph, kept, support, origin), Scores(graph, scores, "as imported", origin)


def _problems(data: Mapping[str, Any], graph: Graph) -> Iterator[str]:
    wanted = _config(graph)
    have = data.get("cfg")
    if not isinstance(have, Mapping):
        yield 'there is no "cfg" that says which model this is.'
    else:
        for key, value in wanted.items():
            if have.get(key) != value:
                yield f'cfg "{key}" is {have.get(key)}; this model has {value}.'
    edges = data.get("edges")
    if not isinstance(edges, Mapping):
        yield 'there are no "edges".'
        return
    places = _edges(graph)
    for name in [n for n in places if n not in edges][:5]:
        yield f'the edge "{name}" is missing; a file must name all {len(places)} edges.'
    for name in [n for n in edges if n not in places][:5]:
        yield f'"{name}" is no edge of this model.'
    for name, edge in edges.items():
        if not (isinstance(edge, Mapping) and isinstance(edge.get("in_graph"), bool)):
            yield f'the edge "{name}" does not say whether it is "in_graph", true or false.'
        elif not isinstance(edge.get("score", 0.0), int | float):
            yield f'the score of "{name}" is {edge["score"]!r}, not a number.'


def _config(graph: Graph) -> dict[str, Any]:
    """What EAP-IG calls the model; refuses graphs that are not of heads and MLPs."""
    heads = [s for s in graph.sites if s.kind == "query" and s.width and s.group == 1]
    if not heads or "input" not in graph.by_site or "logits" not in graph.by_site:
        raise UsageError(
            "this circuit is not one of heads and MLPs, which is all that EAP-IG's files can hold: discover it with "
            "--granularity components."
        )
    mlp_reads = {e.src for e in graph.into("m0")}
    return {
        "n_layers": len(heads),
        "n_heads": heads[0].size,
        "parallel_attn_mlp": "a0" not in mlp_reads,
        "d_model": heads[0].width,
    }


def _node(site: str, i: int) -> str:
    """What EAP-IG calls a node: heads are numbered also where there is one, MLPs never."""
    return f"{site}.h{i}" if site[0] == "a" and site[1:].isdigit() else site


def _edges(graph: Graph) -> dict[str, Entry]:
    """Every edge by the name that EAP-IG gives it, in the order of its readers."""
    out: dict[str, Entry] = {}
    for e in graph.links:
        site, _, part = e.dst.partition(".")
        src_size = graph.site(e.src).size
        for d in range(e.shape[0]):
            reader = f"{site}.h{d}<{part}>" if part else _node(e.dst, d)
            for s in range(src_size):
                out[f"{_node(e.src, s)}->{reader}"] = e.name, (d, s)
    return out


__all__ = ["read_eap_ig", "to_eap_ig"]
