"""A circuit as an attribution graph, in the JSON that public viewers of such graphs open (schema 1.0.0, draft-07).

Required by the schema: `metadata` (slug, scan, prompt_tokens, prompt), `qParams`, `nodes` (node_id, feature, layer,
ctx_idx, feature_type, jsNodeId, clerp) and `links` (source, target, weight). What the viewers need beyond it: the words
of an output node hold "(p=0.123)", and at least one node that is no output has layer 1 or more. They also write their
own words over those of input tokens.

A circuit holds for all positions; it is drawn at the position that is asked. Knows circuits and text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from openwork import __version__
from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.graph import Site

NAME = re.compile(r"[A-Za-z0-9_.-]+")


def attribution_graph(
    circuit: Circuit,
    prompt: Sequence[str],
    answers: Mapping[int, tuple[str, float]],
    slug: str,
    scan: str,
    weights: Mapping[str, Tensor] | None = None,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The JSON of a circuit on one prompt.

    prompt   its tokens as text
    answers  output index -> (its text, its probability) of the outputs to show
    slug     name of this graph, and `scan` of its model: letters, digits, dot, dash and underscore
    weights  link -> float of its mask's shape, what each edge carries; by default 1
    labels   "site:node" -> words for a node
    """
    for what, name in (("slug", slug), ("scan", scan)):
        if not NAME.fullmatch(name):
            raise UsageError(f'the {what} "{name}" may hold letters, digits, dots, dashes and underscores only.')
    graph, at = circuit.graph, max(0, len(prompt) - 1)
    outputs = {s.name for s in graph.sites if s.kind == "output"}
    steered = {s.steers for s in graph.sites}
    inputs = {s.name for s in graph.sites if not graph.into(s.name) and s.name not in steered}
    depth = _depths(circuit, inputs)
    last = max(depth.values()) + 1
    nodes, ids = [], {}
    for s in graph.sites:
        shown = range(s.size) if s.name not in outputs else []
        for i in (i for i in shown if _drawn(circuit, s, i)):
            layer = "E" if s.name in inputs else str(depth[s.name])
            ids[s.name, i] = f"{layer}_{_number(circuit, s, i)}_{at}"
            words = (labels or {}).get(f"{s.name}:{i}", f"{s.name}:{i}")
            kind = "embedding" if s.name in inputs else "cross layer transcoder"
            nodes.append(_node(ids[s.name, i], layer, _number(circuit, s, i), at, kind, words))
    links = []
    for index, (text, p) in answers.items():
        key = f"{last}_{index}_{at}"
        nodes.append(_node(key, str(last), index, at, "logit", f'output "{text}" (p={p:.3f})'))
        for name in outputs:
            one = graph.site(name).size == 1
            ids[name, 0 if one else index] = key
    for e in graph.links:
        for place in circuit.edges[e.name].nonzero().tolist():
            dst, src = (place[0], place[0]) if len(place) == 1 else place
            if (e.src, src) in ids and (e.dst, dst) in ids:
                weight = float(weights[e.name][tuple(place)]) if weights is not None and e.name in weights else 1.0
                links.append({"source": ids[e.src, src], "target": ids[e.dst, dst], "weight": weight})
    for s in graph.sites:  # no edge joins what a head reads with what it writes, yet the one makes the other
        for i in range(s.size if s.group == 1 else 0):
            if (s.name, i) in ids and (s.steers, i) in ids:
                links.append({"source": ids[s.name, i], "target": ids[s.steers, i], "weight": 1.0})
    meta = {
        "slug": slug, "scan": scan, "prompt": "".join(prompt), "prompt_tokens": list(prompt), "transcoder_list": [],
        "schema_version": 1, "info": {"generator": {"name": "openwork", "version": __version__}},
    }  # fmt: skip
    return {"metadata": meta, "qParams": {}, "nodes": nodes, "links": links}


def _depths(circuit: Circuit, inputs: set[str]) -> dict[str, int]:
    """Per site that is neither input nor output its layer in the drawing, from 1 on."""
    inner = [s for s in circuit.graph.sites if s.name not in inputs and s.kind != "output"]
    order = {layer: i + 1 for i, layer in enumerate(sorted({s.layer for s in inner}))}
    if not order:
        raise UsageError("this circuit has inputs and outputs only; the viewers need a layer between them.")
    return {s.name: order[s.layer] for s in inner}


def _drawn(circuit: Circuit, s: Site, i: int) -> bool:
    """Whether a node is kept and joined to something: inputs that nobody reads would only fill the page."""
    out = [circuit.edges[e.name] for e in circuit.graph.out_of(s.name)]
    into = [circuit.edges[e.name] for e in circuit.graph.into(s.name)]
    joined = any(bool(m[i] if m.dim() == 1 else m[:, i].any()) for m in out) or any(bool(m[i].any()) for m in into)
    return bool(circuit.nodes[s.name][i]) and joined


def _number(circuit: Circuit, s: Site, i: int) -> int:
    """A number of a node among all those of its layer."""
    before = [t for t in circuit.graph.sites if t.layer == s.layer]
    return sum(t.size for t in before[: before.index(s)]) + i


def _node(key: str, layer: str, feature: int, at: int, kind: str, words: str) -> dict[str, Any]:
    return {
        "node_id": key, "jsNodeId": key, "feature": feature, "layer": layer, "ctx_idx": at, "feature_type": kind,
        "clerp": words, "influence": None, "activation": None,
    }  # fmt: skip


__all__ = ["attribution_graph"]
