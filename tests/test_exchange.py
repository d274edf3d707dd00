"""Circuits in other programs' files: what is written reads back, their own sample reads, what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from idx_files import DATA
from openwork.circuit import Circuit, Scores
from openwork.errors import UsageError
from openwork.exchange import attribution_graph, read_eap_ig, to_eap_ig
from openwork.graph import Graph, Link, Site
from planted import PLANTED, circuit_of, planted_model

SAMPLE = DATA / "bench" / "small_quote_eap_ig_format.json"


def heads(n_layers: int, n_heads: int, d_model: int = 8) -> Graph:
    """The graph of a transformer at the granularity of heads and MLPs."""
    wide: dict[str, Any] = {"width": d_model, "axis": -2}
    sites, links = [Site("input", 1, "", "embed", 0, prunable=False, **wide)], []
    writers = [("input", 1)]

    def reads(name: str, n: int) -> None:
        links.extend(Link(f"{w}>{name}", w, name, "x", (n, size)) for w, size in writers)

    for i in range(n_layers):
        for part, kind in (("q", "query"), ("k", "key"), ("v", "value")):
            sites.append(Site(f"a{i}.{part}", n_heads, "x", kind, 3 * i + 1, steers=f"a{i}", group=1, **wide))
            reads(f"a{i}.{part}", n_heads)
        sites.append(Site(f"a{i}", n_heads, "x", "write", 3 * i + 2, **wide))
        writers.append((f"a{i}", n_heads))
        sites.append(Site(f"m{i}", 1, "x", "write", 3 * i + 3, **wide))
        reads(f"m{i}", 1)
        writers.append((f"m{i}", 1))
    sites.append(Site("logits", 1, "x", "output", 3 * n_layers + 1, prunable=False, **wide))
    reads("logits", 1)
    return Graph(tuple(sites), tuple(links))


def everything(graph: Graph) -> dict[str, torch.Tensor]:
    return {e.name: torch.ones(e.shape, dtype=torch.bool) for e in graph.links}


def some_circuit(graph: Graph, seed: int = 0) -> tuple[Circuit, Scores]:
    g = torch.Generator().manual_seed(seed)
    values = {e.name: torch.randn(e.shape, generator=g) for e in graph.links}
    scores = Scores(graph, values, "x")
    return scores.circuit(scores.top(len(Circuit.whole(graph, everything(graph))) // 2), everything(graph)), scores


@pytest.mark.parametrize(("layers", "n_heads", "edges"), [(4, 4, 479), (12, 12, 32_491)])
def test_every_edge_is_written_and_their_number_is_the_published_one(layers: int, n_heads: int, edges: int) -> None:
    graph = heads(layers, n_heads)
    data = to_eap_ig(Circuit.empty(graph))
    assert len(data["edges"]) == edges
    assert len(data["nodes"]) == 2 + layers * (n_heads + 1)
    assert not any(e["in_graph"] for e in data["edges"].values())


def test_a_circuit_and_its_ranking_come_back(tmp_path: Path) -> None:
    graph = heads(3, 2)
    circuit, scores = some_circuit(graph)
    at = tmp_path / "c.json"
    at.write_text(json.dumps(to_eap_ig(circuit, scores)))
    again, ranking = read_eap_ig(at, graph, everything(graph))
    assert again == circuit
    assert len(circuit) > 20
    assert all(torch.allclose(ranking.values[n], v) for n, v in scores.values.items())
    assert again.origin["format"] == "EAP-IG JSON"


@pytest.mark.skipif(not SAMPLE.exists(), reason="needs the stored sample of EAP-IG's format")
def test_a_file_that_eap_ig_wrote_is_read() -> None:
    graph = heads(4, 4, 128)
    circuit, scores = read_eap_ig(SAMPLE, graph, everything(graph))
    stored = json.loads(SAMPLE.read_text())
    assert len(circuit) == sum(e["in_graph"] for e in stored["edges"].values()) == 20
    assert float(scores.values["input>a0.v"][0, 0]) == stored["edges"]["input->a0.h0<v>"]["score"]
    assert float(scores.values["a1>a2.k"][3, 2]) == pytest.approx(stored["edges"]["a1.h2->a2.h3<k>"]["score"])
    kept = {n for n, d in stored["nodes"].items() if d["in_graph"]}
    ours = to_eap_ig(circuit, scores)
    assert {n for n, d in ours["nodes"].items() if d["in_graph"]} == kept
    assert ours["edges"].keys() == stored["edges"].keys()


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    graph = heads(2, 2)
    data = to_eap_ig(Circuit.empty(graph))
    data["cfg"]["n_heads"] = 3
    del data["edges"]["input->m0"]
    data["edges"]["m0->a9.h0<q>"] = {"score": 0.0, "in_graph": True}
    data["edges"]["m1->logits"]["in_graph"] = "yes"
    data["edges"]["m0->logits"]["score"] = "high"
    at = tmp_path / "c.json"
    at.write_text(json.dumps(data))
    with pytest.raises(UsageError) as e:
        read_eap_ig(at, graph, everything(graph))
    for said in ('"n_heads" is 3; this model has 2', '"input->m0" is missing', '"m0->a9.h0<q>" is no edge',
                 '"m1->logits" does not say', "'high', not a number"):  # fmt: skip
        assert said in str(e.value)


def test_pickles_and_circuits_of_single_weights_are_refused(tmp_path: Path) -> None:
    graph = heads(2, 2)
    with pytest.raises(UsageError, match="can run code"):
        read_eap_ig(tmp_path / "graph.pt", graph, everything(graph))
    model = planted_model()
    with pytest.raises(UsageError, match="heads and MLPs"):
        to_eap_ig(circuit_of(model, PLANTED))


def check_schema(data: dict[str, Any]) -> None:
    """The keys that the public schema requires, and what the viewers trip over."""
    assert {"slug", "scan", "prompt_tokens", "prompt"} <= data["metadata"].keys()
    assert isinstance(data["qParams"], dict)
    ids = [n["node_id"] for n in data["nodes"]]
    assert len(ids) == len(set(ids))
    needed = {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"}
    assert all(needed <= n.keys() for n in data["nodes"])
    assert all({"source", "target", "weight"} <= x.keys() for x in data["links"])
    assert {x["source"] for x in data["links"]} | {x["target"] for x in data["links"]} <= set(ids)
    outputs = [n for n in data["nodes"] if n["feature_type"] == "logit"]
    assert outputs
    assert all("(p=0." in n["clerp"] for n in outputs)
    assert any(n["layer"].isdigit() and int(n["layer"]) >= 1 for n in data["nodes"] if n not in outputs)
    json.dumps(data, allow_nan=False)


def test_an_attribution_graph_has_every_kept_edge() -> None:
    model = planted_model()
    circuit = circuit_of(model, PLANTED)
    weights = {e.name: model.get_submodule(e.module).weight.detach() for e in model.graph().links}
    data = attribution_graph(circuit, ["x"], {0: ("plus", 0.9), 1: ("minus", 0.1)}, "planted", "mlp", weights)
    check_schema(data)
    assert len(data["links"]) == len(circuit) == 6
    assert sorted(x["weight"] for x in data["links"]) == [-1.0, 1.0, 1.0, 1.0, 4.0, 4.0]


def test_an_attribution_graph_of_heads() -> None:
    circuit, _ = some_circuit(heads(3, 2))
    data = attribution_graph(circuit, ["a", "b"], {7: ("c", 0.5)}, "some", "small")
    check_schema(data)
    heads_read = sum(int(m.sum()) for n, m in circuit.nodes.items() if "." in n)
    assert len(data["links"]) == len(circuit) + heads_read
    with pytest.raises(UsageError, match="slug"):
        attribution_graph(circuit, ["a"], {7: ("c", 0.5)}, "some thing", "small")
