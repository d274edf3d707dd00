"""A dossier says what is true of the model: effects, extremes, weights; checked against runs made here by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import page_runs
from openwork import models, patching
from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain import build_dossier, dossier
from openwork.tasks.task import Split, Task, losses

Built = tuple[nn.Module, Circuit, dict[str, torch.Tensor], Task, torch.Tensor, dict[str, Any]]


@pytest.fixture(scope="module")
def built() -> Built:
    model = page_runs.transformer(32, 0.2, 5)
    circuit = page_runs.grown_circuit(model, 40, 3, 0)
    reference, task, text = page_runs.reference(model), page_runs.quote_task(), page_runs.text(40, 30)
    return model, circuit, reference, task, text, build_dossier(model, circuit, reference, task, text, page_runs.decode)


def test_effects_are_what_a_patched_run_measures(built: Built) -> None:
    model, circuit, reference, task, _, told = built
    split = task.split("explain")

    def loss(c: Circuit) -> float:
        with torch.no_grad():
            return float(losses(patching.run(model, split.inputs, c, reference), split).mean())

    base = loss(circuit)
    assert told["loss"]["circuit"] == pytest.approx(base, abs=1e-4)
    with torch.no_grad():
        assert told["loss"]["model"] == pytest.approx(float(losses(model(*split.inputs), split).mean()), abs=1e-4)
    measured = [n for n in told["nodes"] if n["effect"] is not None]
    assert len(measured) == circuit.counts()["nodes"]
    for n in measured[::5]:
        nodes = {s: m.clone() for s, m in circuit.nodes.items()}
        nodes[n["site"]][n["index"]] = False
        without = Circuit.from_nodes(circuit.graph, nodes, circuit.edges)
        assert n["effect"] == pytest.approx(loss(without) - base, abs=2e-4), n["id"]
    assert max(abs(n["effect"]) for n in measured) > 1e-3, "nothing in this circuit has an effect: the test is blind"


def test_contexts_are_the_extremes_of_the_text(built: Built) -> None:
    model, _, _, _, text, told = built
    acts = patching.record(model, (text,))
    shown = 0
    for n in told["nodes"]:
        if "top" not in n:
            continue
        a = acts[n["site"]][..., n["index"]]
        best = a.max(1).values.sort(descending=True).values[: len(n["top"])].tolist()
        worst = a.min(1).values.sort().values[: len(n["bottom"])].tolist()
        assert [c["acts"][c["at"]] for c in n["top"]] == pytest.approx(best, rel=1e-3, abs=1e-5)
        assert [c["acts"][c["at"]] for c in n["bottom"]] == pytest.approx(worst, rel=1e-3, abs=1e-5)
        for c in n["top"] + n["bottom"]:
            assert len(c["tokens"]) == len(c["acts"]) <= 2 * dossier.REACH + 1
        assert len({tuple(c["tokens"]) for c in n["top"]}) == len(n["top"]) == 6
        shown += 1
    assert shown >= 40


def test_a_context_holds_the_tokens_and_activations_around_its_peak(built: Built) -> None:
    model, _, _, _, text, told = built
    n = next(n for n in told["nodes"] if n["kind"] == "neuron")
    a = patching.record(model, (text,))[n["site"]][..., n["index"]]
    row, at = divmod(int(a.argmax()), text.shape[1])
    begin = max(0, at - dossier.REACH)
    c = n["top"][0]
    assert c["at"] == at - begin
    assert c["tokens"] == [page_runs.decode(t) for t in text[row, begin : at + dossier.REACH + 1].tolist()]
    assert c["acts"] == pytest.approx(a[row, begin : at + dossier.REACH + 1].tolist(), rel=1e-3, abs=1e-5)


def test_equal_texts_are_shown_once(built: Built) -> None:
    model, circuit, reference, task, text, _ = built
    told = build_dossier(model, circuit, reference, task, text[:2].repeat(9, 1), page_runs.decode)
    assert {len(n["top"]) for n in told["nodes"] if "top" in n} == {2}


def test_edges_are_the_kept_weights(built: Built) -> None:
    model, circuit, _, _, _, told = built
    counts = circuit.counts()
    by = {e["link"]: [] for e in told["edges"]}
    for e in told["edges"]:
        by[e["link"]].append(e)
    blocks = [e.name for e in circuit.graph.links if e.counts == "block"]
    assert sum(len(by.get(n, [])) for n in blocks) == counts["edges"] > 30
    for name, edges in by.items():
        weight = patching.weight_of(model.get_submodule(circuit.graph.link(name).module)).detach()
        for e in edges:
            src, dst = (int(e[k].rpartition(":")[2]) for k in ("src", "dst"))
            assert circuit.edges[name][dst, src]
            assert e["weight"] == pytest.approx(float(weight[dst, src]), rel=1e-4)
    answers = {page_runs.CLOSE, page_runs.CLOSE_DOUBLE}
    assert {int(e["dst"].rpartition(":")[2]) for e in by["final.in>logits"]} <= answers
    inputs = {int(e["src"].rpartition(":")[2]) for e in by["tokens>embed"]}
    assert inputs <= {page_runs.QUOTE, page_runs.DOUBLE}, "only the tokens in which paired prompts differ"


def test_the_residual_joins_kept_nodes_of_one_channel(built: Built) -> None:
    _, circuit, _, _, _, told = built
    ids = {n["id"] for n in told["nodes"]}
    assert told["residual"]
    for e in told["residual"]:
        (src, a), (dst, b) = (e[k].split(":") for k in ("src", "dst"))
        assert a == b and {e["src"], e["dst"]} <= ids
        assert circuit.nodes[dst][int(b)]
        assert circuit.graph.site(src).kind in ("embed", "write")
    assert all({e["src"], e["dst"]} <= ids for e in told["edges"] + told["attends"])


def test_prompts_come_in_pairs_with_their_answers(built: Built) -> None:
    _, _, _, _, _, told = built
    assert len(told["prompts"]) == 6
    for k, p in enumerate(told["prompts"]):
        partner = told["prompts"][p["pair"]]
        assert partner["pair"] == k and partner["answer"] == p["wrong"][0] != p["answer"]
    for n in told["nodes"]:
        for t in n.get("task", []):
            assert len(t["acts"]) == len(told["prompts"][t["prompt"]]["tokens"])


def test_same_input_same_dossier_and_the_model_is_left_alone(built: Built) -> None:
    model, circuit, reference, task, text, told = built
    again = build_dossier(model, circuit, reference, task, text, page_runs.decode)
    assert json.dumps(again, allow_nan=False) == json.dumps(told, allow_nan=False)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_large_circuit_tells_contexts_of_few_and_says_so(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    model, circuit, reference, task, text, told = built
    monkeypatch.setattr(dossier, "MANY", 20)
    monkeypatch.setattr(dossier, "FEW", 7)
    few = build_dossier(model, circuit, reference, task, text, page_runs.decode)
    assert few["contexts_for"]["nodes"] == 7 and few["contexts_for"]["of"] == circuit.counts()["nodes"]
    assert sum("top" in n and n["kind"] != "embed" for n in few["nodes"]) == 7
    assert [n["effect"] for n in few["nodes"]] == [n["effect"] for n in told["nodes"]], "attribution left a trace"


def test_vectors_are_shown_as_images_with_labels() -> None:
    model = page_runs.sparse_weights(models.build(models.MLPConfig(inputs=16, hidden=(6, 5), outputs=3)), 0.7, 0)
    x = torch.rand(20, 16, generator=torch.Generator().manual_seed(0))
    answer = torch.arange(20) % 3
    wrong = torch.tensor([[k for k in range(3) if k != a] for a in answer.tolist()])
    split = Split("explain", (x,), answer, wrong, torch.full((20,), -1), ("",) * 20)
    task = Task("which", "Which it is.", {"explain": split}, ("a", "b", "c"))
    circuit = Circuit.whole(patching.graph_of(model), patching.support(model))
    told = build_dossier(model, circuit, patching.mean_reference(model, [(x,)]), task, None, None)
    acts = patching.record(model, (x,))
    assert told["inputs"] == "vectors" and told["answers"] == ["a", "b", "c"]
    node = next(n for n in told["nodes"] if n["id"] == "hidden0:2")
    best = int(acts["hidden0"][:, 2].argmax())
    assert node["top"][0]["act"] == pytest.approx(float(acts["hidden0"][best, 2]), rel=1e-4)
    assert node["top"][0]["pixels"] == pytest.approx(x[best].tolist(), rel=1e-4)
    assert node["top"][0]["label"] == str(int(answer[best]))
    assert [p["label"] for p in told["prompts"]] == ["0", "1", "2"]
    assert len(told["edges"]) == circuit.counts()["edges"]


def test_an_empty_circuit_has_a_dossier(built: Built) -> None:
    model, circuit, reference, task, text, _ = built
    told = build_dossier(model, Circuit.empty(circuit.graph), reference, task, text, page_runs.decode)
    assert told["edges"] == [] and {n["kind"] for n in told["nodes"]} == {"output"}


def test_it_refuses_what_it_cannot_tell(built: Built) -> None:
    model, circuit, reference, task, text, _ = built
    with pytest.raises(UsageError, match="windows of text"):
        build_dossier(model, circuit, reference, task, None, page_runs.decode)
    with pytest.raises(UsageError, match='no split of task .* named "explian"'):
        build_dossier(model, circuit, reference, task, text, page_runs.decode, split="explian")
