"""Explanations of a run's circuits: who sees what, what is stored, and what is marked as not supported."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import page_runs
from openwork import bench, cli, explained, files, patching, rivals, store
from openwork.circuit import Circuit, Evidence, Explanation
from openwork.errors import UsageError
from openwork.explain.words.measure import observe, sample_of
from openwork.explain.words.topic import size_of
from openwork.explain.words.topics import kept_nodes, name_of, random_parts, topics_of
from openwork.explained import explain_circuit, legend_of, shown
from openwork.runs import open_run
from openwork.views import explanations as words_of
from openwork.views.page import build_page

OWN = '''
"""The sign of one number, and authors of the tests' own."""
import planted
from openwork.circuit import Explanation
from openwork.tasks.task import Task

SEEN = []

def model():
    return planted.planted_model()

def task():
    names = ("discover", "verify", "explain")
    return Task("sign", "tell the sign of x0", {n: planted.examples(n, 60, k) for k, n in enumerate(names)}, ("+", "-"))

def unexplainable():
    splits = dict(task().splits)
    del splits["explain"]
    return Task("sign", "tell the sign of x0", splits | {"explain": splits["verify"].take(splits["verify"].answer[:0])}, ("+", "-"))

def watching(dossier):
    SEEN.append(dossier)
    return Explanation(dossier.topic.name, "watching", f"about {dossier.topic.name}")

def wrong(dossier):
    """Every part is said to follow a number that it never reads."""
    return Explanation(dossier.topic.name, "wrong", "<b>rises</b> with feature 5", predicate=PREDICATE)

def hostile(dossier):
    return Explanation("something else", "hostile", "x")
'''  # noqa: E501


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a model whose neurons are known, with its circuit."""
    here = tmp_path_factory.mktemp("explained")
    (here / "own_net.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(sys, "path", [str(here), *sys.path])
        found = bench.discover_run(here / "run", "own_net:task", "acdc", 0.02, 0, model="own_net:model")
        assert found["status"] == "ok"
    return here / "run"


@pytest.fixture(autouse=True)
def _in_its_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    monkeypatch.syspath_prepend(str(run.parent))


@pytest.fixture(scope="module")
def result(run: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run.parent)
        patch.setattr(sys, "path", [str(run.parent), *sys.path])
        return explain_circuit(run, "task", "rules")


def own() -> Any:
    import own_net  # type: ignore[import-not-found]

    return own_net


def test_the_known_neurons_are_explained_by_what_they_compute(run: Path, result: dict[str, Any]) -> None:
    """hidden0:0 and hidden1:0 are relu(x0), hidden0:1 and hidden1:1 relu(-x0)."""
    by = {e["subject"]: e for e in result["explanations"]}
    for k in (0, 1):
        for site in ("hidden0", "hidden1"):
            e = by[f"{site}:{k}"]
            assert "feature 0" in e["text"], e["text"]
            (first, *_) = e["evidence"]
            assert first["claim"] == "trigger" and first["verdict"] == "holds" and e["supported"] is True
            assert first["split"] == "verify" and first["value"] > 0.95 > first["null_value"]
    assert by[result["circuit"]]["kind"] == "circuit" and "feature 0" in by[result["circuit"]]["text"]
    assert result["support"]["trigger"]["holds"] >= 5 and result["draws"] == rivals.DRAWS >= 99
    for e in result["explanations"]:
        claims = [x["claim"] for x in e["evidence"]]
        assert claims == [c for c in explained.SCORES if c in claims] and {"trigger", "simulation", "damage"} <= {
            *claims
        }


def test_they_are_stored_beside_and_in_the_circuit(run: Path, result: dict[str, Any]) -> None:
    folder = run / "circuits" / result["circuit"]
    assert files.read_json(folder / "explanations-rules.json") == result
    circuit = store.load_circuit(folder)
    assert [e.subject for e in circuit.explanations] == [e["subject"] for e in result["explanations"]]
    first = circuit.explanations[0]
    assert first.author == "rules" and first.predicate and first.supported
    assert first.evidence[0].value == result["explanations"][0]["evidence"][0]["value"]
    assert (folder / "result.json").exists() and (folder / "tensors.safetensors").exists()


def test_every_explanation_has_its_p_and_q_and_all_together_a_share_that_may_be_false(result: dict[str, Any]) -> None:
    of, all_ = result["support"]["trigger"], result["explanations"]
    least = 1 / (1 + result["draws"])
    for e in all_:
        assert least - 1e-12 <= e["p"] <= e["q"] <= e["q_any"] <= 1
        (first, *_) = e["evidence"]
        assert not e["supported"] or e["p"] == first["p"] <= 0.05
    good = [e for e in all_ if e["supported"]]
    assert (
        of["false_share"]
        == max(e["q"] for e in good)
        == pytest.approx(len(all_) * max(e["p"] for e in good) / len(good))
    ), "m times the largest p among those that hold, over their number"
    assert of["kept"] == len([e for e in good if e["q"] <= 0.05]) >= 5
    table, notes = shown(result)["table"], " ".join(shown(result)["notes"])
    by = {e["subject"]: e for e in all_}
    for row in table:
        assert float(row["q"]) == pytest.approx(by[row["subject"]]["q"], rel=0.01)
        assert float(row["p"]) == pytest.approx(by[row["subject"]]["p"], rel=0.01)
    assert f"Of the {len(good)} supported at most {100 * of['false_share']:.1f} % are expected to be false" in notes


def test_the_same_question_is_not_answered_twice(
    run: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("explained again")

    with monkeypatch.context() as patch:
        patch.setattr(explained, "tested", never)
        assert explain_circuit(run, "task", "rules") == result
        with pytest.raises(AssertionError):
            explain_circuit(run, "task", "rules", seed=1)
    at = run / "circuits" / result["circuit"] / "explanations-rules.json"
    assert files.read_json(at) == result, "what failed has changed nothing"
    at.unlink()
    again = explain_circuit(run, "task", "rules")

    def timeless(r: dict[str, Any]) -> str:
        return re.sub(r'"seconds": [^,}]+', "", json.dumps(r))

    assert timeless(again) == timeless(result)
    circuit = store.load_circuit(at.parent)
    assert len(circuit.explanations) == len(result["explanations"]), "an author's explanations are replaced, not added"


def test_authors_see_the_explain_split_alone_and_what_was_said_before(run: Path, result: dict[str, Any]) -> None:
    seen = own().SEEN
    seen.clear()
    explain_circuit(run, "task", "own_net:watching")
    assert [d.topic.name for d in seen] == [e["subject"] for e in result["explanations"]]
    kinds = [d.topic.kind for d in seen]
    assert kinds == sorted(kinds, key=("node", "module", "circuit").index) and kinds[-1] == "circuit"
    assert "module" in kinds
    splits = open_run(run).task("own_net:task").splits
    hidden = {tuple(x) for name in ("verify", "discover") for x in splits[name].inputs[0].tolist()}
    for d in seen:
        assert d.card["split"] == d.observed.sample.split == "explain"
        assert not hidden & {tuple(x) for x in d.observed.sample.features.tolist()}
        assert len(d.observed.sample) == len(splits["explain"])
        earlier = {s.topic.name for s in seen[: seen.index(d)]}
        now = [s.topic.name for s in seen if s.topic.nodes[0][0] == d.topic.nodes[0][0] and s.topic.kind == "node"]
        assert set(d.labels) <= earlier
        if d.topic.kind == "node":
            assert set(d.labels) == {n for n in earlier if n not in now}, "those of earlier sites"
        assert all(t == f"about {n}" for n, t in d.labels.items())
    values = {f"{v:.3g}" for x in splits["verify"].inputs[0].tolist() for v in x} - {
        f"{v:.3g}" for x in splits["explain"].inputs[0].tolist() for v in x
    }
    shown_values = {f"{v:.3g}" for d in seen for e in d.card["top"] + d.card["silent"] for _, v in e["values"]}
    assert len(values) > 100 and not values & shown_values
    circuit = seen[-1].card
    assert next(m for m in circuit["members"] if m[0].startswith("module"))[1].startswith("about module")


def test_what_is_not_so_is_marked_wherever_it_is_shown(
    run: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    told = next(e for e in result["explanations"] if e["subject"] == "hidden0:0")["predicate"]
    own().PREDICATE = json.loads(json.dumps(told).replace("feature 0", "feature 5"))
    bad = explain_circuit(run, "task", "own_net:wrong")
    assert told != own().PREDICATE and {e["supported"] for e in bad["explanations"]} == {False}
    rows = shown(bad)["table"]
    assert {r["verdict"] for r in rows} == {"not supported"}
    assert bad["support"]["trigger"]["holds"] == 0 and {e["q"] for e in bad["explanations"]} == {1.0}
    assert "None is supported" in " ".join(shown(bad)["notes"])
    assert cli.main(["show", str(run), "--json"]) == 0
    (circuit,) = json.loads(capsys.readouterr().out)["circuits"]
    marks = {(e["author"], e["subject"]): e["mark"] for e in circuit["explanations"]}
    assert marks["wrong", "module 0"] == "not supported" and marks["rules", "module 0"] == "supported"
    assert marks["wrong", "4 nodes"] == "4 not supported"
    bench.view_run(run)
    html = (run / "page.html").read_text(encoding="utf-8")
    section = html.split("What it does, in words")[1].split("<h3>Evidence</h3>")[0]
    assert "not supported" in section and "<b>rises" not in section and "&lt;b&gt;rises" in section
    header = files.read_circuit_header(run / "circuits" / bad["circuit"])
    at = words_of.said(header["explanations"])["hidden0:0"]
    assert {(e["author"], e["mark"]) for e in at} == {("rules", "supported"), ("wrong", "not supported"),
                                                      ("watching", "too little data")}  # fmt: skip


def test_only_the_nodes_that_matter_most_and_the_rest_is_said_to_be_unexplained(
    run: Path, result: dict[str, Any]
) -> None:
    few = explain_circuit(run, "task", "own_net:watching", nodes=1)
    kinds = [e["kind"] for e in few["explanations"]]
    assert kinds.count("node") == 1 and kinds[-1] == "circuit"
    nodes = [e for e in result["explanations"] if e["kind"] == "node"]
    most = {e["subject"]: e["damage"] for e in nodes}
    chosen = few["explanations"][0]["subject"]
    assert most[chosen] >= max(most.values()) - 0.2  # the size of a damage and its mean differ by a little
    assert sorted([*few["unexplained"], chosen]) == sorted(most)
    assert any("unexplained" in n for n in shown(few)["notes"])


def test_cards_are_written_where_asked(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["explain", str(run), "--circuit", "task", "--dossiers", str(tmp_path / "cards"), "--json"]
    assert cli.main(command) == 0
    out = capsys.readouterr()
    (line,) = out.out.splitlines()
    written = {p.name for p in (tmp_path / "cards").iterdir()}
    assert {f"{e['subject'].replace(':', '-')}.json" for e in json.loads(line)["explanations"]} == written
    card = files.read_json(tmp_path / "cards" / "hidden0-0.json")
    assert card["subject"] == "hidden0:0" and [e["other"] for e in card["reads"]] == ["input:0"]
    assert card["reads"][0]["label"] == "feature 0"


def test_refusals(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, said in (
        (["--author", "poet"], 'no author named "poet"'),
        (["--author", "own_net:poet"], 'no function in own_net named "poet"'),
        (["--llm-model", "x"], "are for --author llm"),
        (["--author", "llm"], "needs a language model"),
        (["--circuit", "nowhere"], "no circuit"),
        (["--nodes", "-1"], "--nodes"),
        (["--author", "own_net:hostile"], "explained something else where it was asked about"),
    ):
        circuit = [] if "--circuit" in more else ["--circuit", "task"]
        assert cli.main(["explain", str(run), *circuit, *more]) == 2, more
        assert said in capsys.readouterr().err
    assert not (run / "circuits" / "task-acdc" / "explanations-hostile.json").exists()


def test_a_circuit_without_nodes_or_examples_is_refused(run: Path, tmp_path: Path) -> None:
    folder = run / "circuits" / "empty-acdc"
    found = files.read_json(run / "circuits" / "task-acdc" / "result.json")
    circuit = store.load_circuit(run / "circuits" / "task-acdc")
    store.save_circuit(folder, dataclasses.replace(Circuit.empty(circuit.graph), origin=circuit.origin))
    files.write_json(folder / "result.json", found)
    with pytest.raises(UsageError, match="has no nodes"):
        explain_circuit(run, "empty")
    store.save_circuit(folder, circuit)
    files.write_json(folder / "result.json", {**found, "task": "own_net:unexplainable"})
    with pytest.raises(UsageError, match="no examples in its explain split"):
        explain_circuit(run, "empty")


# -- rivals ----------------------------------------------------------------------------------------------------------


def test_nulls_are_random_parts_in_the_whole_model_and_circuits_alone(run: Path) -> None:
    opened = open_run(run)
    task = opened.task("own_net:task")
    circuit = store.load_circuit(run / "circuits" / "task-acdc")
    topics = topics_of(circuit, "c")
    held = task.split("verify")
    sample = sample_of(task, "verify", legend_of(opened, held))
    asked = rivals.Asked(opened, opened.model, circuit, "mean", opened.reference, topics, held, sample, 0)
    drawn = random_parts(opened.model, circuit, topics, 7)
    rows = rivals._rows(asked, opened.model, opened.reference, drawn)
    null = rivals._seen(asked, opened.model, opened.reference, drawn, ("module", "circuit"), rows)
    whole = observe(opened.model, None, opened.reference, [t for t in drawn if t.kind != "circuit"], held, sample)
    n = len(whole.topics)
    assert [t.name for t in null.topics] == [t.name for t in topics]
    assert np.allclose(null.activity[:n], whole.activity, atol=1e-5)
    for k, t in enumerate(null.topics[:n]):
        if t.kind == "module":
            assert np.allclose(null.damage[k], whole.damage[k], atol=1e-5)
        else:
            assert np.isnan(null.damage[k]).all()
    nodes = {s: torch.zeros_like(m) if s.startswith("hidden") else m for s, m in circuit.nodes.items()}
    for site, i in drawn[-1].nodes:
        nodes[site][i] = True
    alone = Circuit.from_nodes(circuit.graph, nodes, patching.support(opened.model))
    here = observe(opened.model, alone, opened.reference, [drawn[-1]], held, sample)
    assert np.allclose(null.activity[-1], here.activity[0], atol=1e-4)
    assert float(np.abs(null.activity[-1]).max()) < 0.5 * float(
        np.abs(observe(opened.model, circuit, opened.reference, [topics[-1]], held, sample).activity).max()
    ), "a random circuit decides as much as the real one"


def test_topics_of_one_size_share_their_random_parts_and_damage_is_measured_on_the_first(run: Path) -> None:
    opened = open_run(run)
    task = opened.task("own_net:task")
    circuit = store.load_circuit(run / "circuits" / "task-acdc")
    topics = topics_of(circuit, "c")
    held = task.split("verify")
    sample = sample_of(task, "verify", legend_of(opened, held))
    asked = rivals.Asked(
        opened, opened.model, circuit, "mean", opened.reference, topics, held, sample, 0, draws=rivals.OF_DAMAGE + 1
    )
    ticks: list[int] = []
    nulls = rivals._nulls(asked, lambda: ticks.append(1))
    (parts,) = nulls.parts
    sizes = {size_of(t) for t in topics}
    assert len(sizes) < len(topics), "some topics are of one size"
    for size in sizes:
        rows = [k for k, t in enumerate(parts.topics) if size_of(t) == size]
        assert len(rows) == asked.draws
        measured = [k for k in rows if np.isfinite(parts.damage[k]).all()]
        assert measured == rows[: rivals.OF_DAMAGE] and np.isnan(parts.damage[rows[-1]]).all()
    assert len({t.name for t in parts.topics}) == len(parts.topics)
    for r, o in enumerate(nulls.weights):
        assert o.topics == topics
        for k, t in enumerate(topics):
            assert np.isfinite(o.damage[k]).all() == (t.kind != "node" and r < rivals.OF_DAMAGE)
    assert len(nulls.weights) == asked.draws and len(ticks) == 2 * asked.draws
    none = rivals._nulls(dataclasses.replace(asked, draws=0), lambda: None)
    assert none.parts == none.weights == ()


# -- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explained_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The page of a run whose circuit is explained, by hostile words among others; and a node of which was spoken."""
    run = tmp_path_factory.mktemp("page") / "run"
    model, task = page_runs.transformer(24, 0.3, 1), page_runs.quote_task()
    nan = float("nan")

    def tested(verdict: str) -> tuple[Evidence, ...]:
        said = f"AUC {page_runs.HOSTILE}"
        return (Evidence("trigger", verdict, said, 0.5, "AUC", (nan, nan), "n", 0.4, 0.3, 9, "verify", 0, 0.0),)

    circuit = page_runs.grown_circuit(model, 20, 2, 1, {"task": task.name, "method": "masks"})
    node = name_of(kept_nodes(circuit)[0])
    said = (
        Explanation(node, "rules", f"fires on {page_runs.HOSTILE}", evidence=tested("fails")),
        Explanation(node, "llm", "reads a quote"),
        Explanation("module 0", "rules", f"{page_runs.HOSTILE} in a module", evidence=tested("holds")),
        Explanation("single_double_quote-masks", "rules", "closes the string", evidence=tested("too little data")),
    )
    folder = run / "circuits" / "single_double_quote-masks"
    page_runs.save(folder, model, circuit.with_explanations(*said), task, windows=4)
    page_runs.save(run / "circuits" / "other-masks", model, circuit, page_runs.quote_task("other"), windows=4)
    return build_page(run), node


def test_words_stand_on_the_page_with_their_marks_as_text(explained_page: tuple[Path, str]) -> None:
    html = explained_page[0].read_text(encoding="utf-8")
    assert page_runs.HOSTILE not in html
    section = html.split("What it does, in words")[1].split("<h3>Evidence</h3>")[0]
    rows = re.findall(r'<tr data-subject="([^"]*)">(.*?)</tr>', section, re.DOTALL)
    marks = {name: re.findall(r"<span>([^<]*)</span>", row) for name, row in rows}
    assert marks == {"single_double_quote-masks": ["too little data"], "module 0": ["supported"]}
    assert "Of 1 nodes explained by rules, 0 have one that is supported and 1 one that is not" in section
    assert html.count("What it does, in words") == 1, "tasks of which nothing was said have no such section"


def test_a_selected_node_tells_what_was_said_of_it(browser: Any, explained_page: tuple[Path, str]) -> None:
    path, node = explained_page
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    alarms: list[str] = []
    page.on("dialog", lambda d: (alarms.append(d.message), d.dismiss()))
    page.goto(path.as_uri())
    page.click("text=single double quote")
    page.fill("input[type=search]:visible >> nth=0", node)
    page.keyboard.press("Enter")
    panel = page.locator(".panel:visible").first
    panel.locator(".said").first.wait_for()
    texts = panel.locator(".said").all_inner_texts()
    assert texts == [f"fires on {page_runs.HOSTILE}", "reads a quote"]
    marks = panel.locator(".mark b").all_inner_texts()
    assert marks == ["not supported", "not tested"] and not alarms
    page.close()
