"""How well a method found a circuit that is known: a found circuit, or a ranking, against the truth.

    edges   entries of the block links whose weight is not zero; true are those between nodes of the truth
    nodes   nodes of the prunable sites

Precision and recall of a decision; area under the ROC curve and average precision of a ranking. The ROC has one point
per distinct score, so equal scores are decided together and count half, and straight lines between the points (as in
AutoCircuit; ACDC's staircase gives less). Average precision is that of scikit-learn: the mean precision at each
distinct score, weighted by the recall that it adds. What is not defined (no positives, nothing found) is nan.

The truth belongs to one ablation: a method that searched under another one is measured against something else.
Knows masks and numbers. Does not know models, tasks or methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from openwork import patching
from openwork.circuit import Circuit, Masks, Scores
from openwork.errors import UsageError
from openwork.graph import Graph
from openwork.planted.case import Case

Ranking = Mapping[
    str, Tensor
]  # block link -> float [dst, src], or prunable site -> float [n]; larger: more worth keeping


@dataclass(frozen=True)
class Score:
    """A decision or a ranking against the truth; shares from 0 to 1, nan where undefined.

    exact   whether the found circuit has just the true nodes and the true edges
    ranked  what the ranking ranks, "edges" or "nodes"; "" without one
    """

    exact: bool
    precision: float
    recall: float
    node_precision: float
    node_recall: float
    auroc: float
    average_precision: float
    ranked: str
    edges_true: int
    edges_found: int


def score(
    truth: Circuit, support: Masks, found: Circuit | None = None, ranking: Ranking | Scores | None = None
) -> Score:
    """A found circuit, a ranking, or both, against the truth.

    support  link -> bool [dst, src], where the model's weight is not zero (`patching.support`)

    Raises UsageError where the found circuit has another graph, or the ranking misses a link or site, mixes both, has
    a wrong shape, or holds nan.
    """
    graph = truth.graph
    true_edges, true_nodes = _edges(truth, support), _nodes(truth)
    decided = (False, math.nan, math.nan, math.nan, math.nan, 0)
    if found is not None:
        if found.graph != graph:
            raise UsageError("the found circuit belongs to another model: its graph is not that of the truth.")
        edges, nodes = _edges(found, support), _nodes(found)
        exact = bool((edges == true_edges).all() and (nodes == true_nodes).all())
        decided = (exact, *_hits(true_edges, edges), *_hits(true_nodes, nodes), int(edges.sum()))
    auroc, average, ranked = math.nan, math.nan, ""
    if ranking is not None:
        values = ranking.values if isinstance(ranking, Scores) else ranking
        ranked = _what(graph, values)
        if ranked == "edges":
            auroc, average = areas(true_edges, _ranked_edges(graph, values, support))
        else:
            auroc, average = areas(true_nodes, torch.cat([_shaped(values, s.name, (s.size,)) for s in graph.prunable]))
    return Score(
        exact=decided[0], precision=decided[1], recall=decided[2], node_precision=decided[3], node_recall=decided[4],
        auroc=auroc, average_precision=average, ranked=ranked, edges_true=int(true_edges.sum()), edges_found=decided[5],
    )  # fmt: skip


def row(
    case: Case, circuit: Circuit | None, scores: Ranking | Scores | None, seconds: float
) -> dict[str, str | int | float | bool]:
    """One line of a table: a method's result on a case; the caller adds which method it was."""
    result = score(case.truth, patching.support(case.model), circuit, scores)
    return {"case": case.name, "family": case.family, "size": case.size, **asdict(result), "seconds": seconds}


def areas(truth: Tensor, values: Tensor) -> tuple[float, float]:
    """Area under the ROC curve and average precision of scores [n] for bool [n]; nan where they are not defined.

    Infinite scores are fine: only the order counts.
    """
    from scipy.stats import rankdata
    from sklearn.metrics import average_precision_score, roc_auc_score

    t = truth.numpy()
    if not t.any():
        return math.nan, math.nan
    ranks = rankdata(values.double().numpy(), method="dense")
    return math.nan if t.all() else float(roc_auc_score(t, ranks)), float(average_precision_score(t, ranks))


def _blocks(graph: Graph) -> list[str]:
    return [e.name for e in graph.links if e.kind == "weight" and e.counts == "block"]


def _edges(circuit: Circuit, support: Masks) -> Tensor:
    """bool [E]: which of the block entries with a nonzero weight the circuit keeps, between nodes that it keeps."""
    out = [torch.zeros(0, dtype=torch.bool)]
    for name in _blocks(circuit.graph):
        e = circuit.graph.link(name)
        ends = circuit.nodes[e.dst][:, None] & circuit.nodes[e.src][None, :]
        out.append((circuit.edges[name] & ends)[support[name].bool()])
    return torch.cat(out)


def _nodes(circuit: Circuit) -> Tensor:
    return torch.cat([circuit.nodes[s.name] for s in circuit.graph.prunable])


def _hits(truth: Tensor, found: Tensor) -> tuple[float, float]:
    """Precision and recall."""
    both = float((truth & found).sum())
    return tuple(both / n if n else math.nan for n in (int(found.sum()), int(truth.sum())))  # type: ignore[return-value]


def _what(graph: Graph, values: Ranking) -> str:
    """Whether a ranking ranks edges or nodes; it has to be complete."""
    links, sites = set(_blocks(graph)), {s.name for s in graph.prunable}
    have = set(values)
    for kind, wanted in (("edges", links), ("nodes", sites)):
        if have and wanted <= have and not have & ((links | sites) - wanted):
            return kind
    raise UsageError(
        "a ranking needs a tensor for every block link, or one for every prunable site, and not both; it has "
        f"{', '.join(sorted(have)) or 'none'}."
    )


def _shaped(values: Ranking, name: str, shape: tuple[int, ...]) -> Tensor:
    v = values[name].detach().cpu()
    if tuple(v.shape) != shape or bool(v.isnan().any()):
        raise UsageError(f"the ranking of {name} is {tuple(v.shape)}; expected {shape}, and no nan.")
    return v.double()


def _ranked_edges(graph: Graph, values: Ranking, support: Masks) -> Tensor:
    parts = [_shaped(values, n, graph.link(n).shape)[support[n].bool()] for n in _blocks(graph)]
    return torch.cat(parts)


__all__ = ["Ranking", "Score", "areas", "row", "score"]
