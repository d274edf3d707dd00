"""A circuit of heads and MLPs leaves a run in another program's file, comes back, and is verified like any other."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from openwork import bench, own, store
from openwork.errors import UsageError
from openwork.tasks.task import Task
from openwork.transfer import export_circuit, import_circuit

PLANTED = """
from openwork.planted import make_case
def model():
    return make_case("hand_previous_3x8", 0).model
def task():
    return make_case("hand_previous_3x8", 0).task
"""


def no_faults(_task: Task) -> Iterator[str]:
    """Three letters: every split has nearly all inputs, which a task of one's own may not have."""
    return iter(())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a planted transformer, with circuits at both granularities."""
    here = tmp_path_factory.mktemp("transfer")
    (here / "planted_net.py").write_text(PLANTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(sys, "path", [str(here), *sys.path])
        patch.setattr(own, "task_faults", no_faults)
        asked = here / "run", "planted_net:task", "acdc", 0.15, 0
        for granularity in ("weights", "components"):
            found = bench.discover_run(
                *asked, reference="counterfactual", granularity=granularity, model="planted_net:model"
            )
            assert found["status"] == "ok"
    return here / "run"


@pytest.fixture(autouse=True)
def _in_its_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    monkeypatch.syspath_prepend(str(run.parent))
    monkeypatch.setattr(own, "task_faults", no_faults)


def test_a_circuit_comes_back_as_it_left_and_is_verified(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "circuit.json"
    left = export_circuit(run, "task-acdc_components", "eap-ig", out)
    result = import_circuit(run, out, "planted_net:task", 0.15)
    first, again = (store.load_circuit(run / "circuits" / n) for n in (left["circuit"], result["circuit"]))
    assert again == first
    assert 0 < left["edges"] == len(json.loads(out.read_text())["edges"])
    assert again.origin["format"] == "EAP-IG JSON"
    assert result["edge_pruned"]["discover_loss"] <= 0.15
    told = {e["claim"]: e for e in bench.verify_run(run, result["circuit"], 0)["evidence"]}
    assert told["sufficient"]["value"] == pytest.approx(result["edge_pruned"]["loss"], abs=1e-5)
    assert told["sufficient"]["value"] <= 0.15


def test_an_attribution_graph_shows_the_prompt_and_the_answers(run: Path, tmp_path: Path) -> None:
    for name in ("task-acdc", "task-acdc_components"):
        out = tmp_path / f"{name}.json"
        export_circuit(run, name, "attribution-graph", out, example=3)
        data = json.loads(out.read_text())
        assert len(data["metadata"]["prompt_tokens"]) > 1
        assert [n for n in data["nodes"] if n["feature_type"] == "logit" and "(p=" in n["clerp"]]
        assert data["links"]


def test_what_a_format_cannot_hold_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="heads and MLPs"):
        export_circuit(run, "task-acdc", "eap-ig", tmp_path / "c.json")
    with pytest.raises(UsageError, match="0 to"):
        export_circuit(run, "task-acdc", "attribution-graph", tmp_path / "c.json", example=10_000)
    with pytest.raises(UsageError, match='no format named "eapig"'):
        export_circuit(run, "task-acdc", "eapig", tmp_path / "c.json")
    (tmp_path / "c.json").write_text('{"cfg": {"n_layers": 1}, "edges": {}}')
    with pytest.raises(UsageError, match=r"is missing; a file must name all"):
        import_circuit(run, tmp_path / "c.json", "planted_net:task", 0.15)


def test_a_search_is_repeated_as_it_was_made(run: Path, tmp_path: Path) -> None:
    """At the granularity and under the reference that found the circuit, not those of a default search."""
    told = {
        e["claim"]: e for e in bench.verify_run(run, "task-acdc_components", 0, searches=True, workers=1)["evidence"]
    }
    assert told["stable"]["details"]["searches"][0] == "as found"
    assert len(told["stable"]["details"]["searches"]) == 5
    assert {"nonsense_control", "swapped_control", "random_weights_control"} <= told.keys()
    again = store.load_circuit(run / "controls" / "task-acdc_components-first-half")
    assert "a0>logits" in again.edges
    out = tmp_path / "circuit.json"
    export_circuit(run, "task-acdc_components", "eap-ig", out)
    imported = import_circuit(run, out, "planted_net:task", 0.15)
    with pytest.raises(UsageError, match="no search here to repeat"):
        bench.verify_run(run, imported["circuit"], 0, searches=True)
