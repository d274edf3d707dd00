"""The page of detectors, alerts, and the report: what they say is what was measured, and changes are noticed."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from openwork import audit, bench, files, store
from openwork.circuit import Circuit
from openwork.cli import main
from openwork.detector import load_detector, save_detector
from openwork.errors import RunError, UsageError
from openwork.explain import build_dossier
from openwork.models import build
from openwork.patching import graph_of, mean_reference, support
from openwork.reporting import check_report, gather, write_report
from openwork.runs import open_run
from openwork.stats import clopper_pearson
from openwork.tasks.flows import generated
from openwork.tasks.flows.decision import Decision
from openwork.tasks.flows.flows import make_flow_task
from openwork.tasks.flows.prepared import Prepared, prepare
from openwork.views.flows import card, panel
from openwork.views.report import canonical, content_of, embedded, render

HOSTILE = "</script><img src=x onerror=alert(1)>"
NOW = "2026-01-02T03:04:05+00:00"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of flows with a detector written by hand: failed logins, or very many connections, are attacks."""
    out = tmp_path_factory.mktemp("runs") / "by-hand"
    out.mkdir()
    prepared = prepare(
        out / "data", generated.Generated(4_000), generated.LABEL, generated.Generated(500, seed=9), binary=True
    )
    schema = prepared.schema
    config = {"kind": "mlp", "inputs": len(schema.features), "hidden": (2,), "outputs": 2}
    net = build(config, 0)
    for p in net.parameters():
        p.data.zero_()
    layers: Any = net.layers
    for k, column in enumerate(("failed_logins", "conns_60s")):
        layers[0].weight.data[k, schema.features.index(column)] = 1.0
    layers[0].bias.data[:] = -1.0
    layers[1].weight.data[1] = 10.0
    layers[1].bias.data[1] = -5.0
    at = out / "sparse"
    plan = {"kind": "run", "subject": "flows", "data": "../data", "model": config, "training": {"seed": 0}}
    settings = plan | {"regimes": {"topk": {"density": 0.1}}, "examples": 64, "seed": 0, "batch": 8, "device": "cpu"}
    store.save_model(at / "model", net)
    store.write_yaml(at / "run.yaml", files.plain(settings))
    typical = {c.name: c.values[0] if c.kind == "category" else c.low for c in schema.used}
    save_detector(at, schema, Decision((0.0, 0.0), 1.0, 0.5, 0.01), typical, {})
    verify = {"detection_rate": 0.5, "false_alarm_rate": 0.002, "false_alarm_interval": [0.0, 0.01]}
    figures = [
        {"model": m, "seed": 0, "parts": n, "of": "edges", "bytes": 9, "splits": {"verify": verify}}
        for m, n in (("sparse", 100), ("dense", 10_000), (HOSTILE, 30))
    ]
    table = [
        {"model": f["model"], "parts": f"{f['parts']} edges", "detection_rate (verify)": "0.5 (0.4 to 0.6)"}
        for f in figures
    ]
    circuit = {"task": "attack", "status": "infeasible", "evidence": []}
    store.write_yaml(
        out / "run.yaml", {"kind": "flows", "subject": "flows", "preset": "smoke", "seeds": 1, "data": None}
    )
    store.write_json(
        out / "result.json",
        {
            "rows": prepared.facts["rows"], "budget": 0.01, "figures": figures, "circuits": [circuit],
            "never_used": ["hour"], "tables": {"detectors": table},
        },
    )  # fmt: skip
    return out


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run, to write to."""
    return shutil.copytree(made, tmp_path / "run")


def entry(**more: Any) -> dict[str, Any]:
    """An alert as a log holds it."""
    reasons = [
        {"column": "conns_60s", "value": 878, "contribution": 4.0, "unit": HOSTILE, "normal": [1.0, 60.0]},
        {"column": "service", "value": HOSTILE, "contribution": -1.0, "unit": "", "normal_share": 0.25},
    ]
    return {
        "kind": "alert", "at": NOW, "class": "flood", "score": 0.75, "threshold": 0.5, "sentence": f"flood: {HOSTILE}",
        "evidence": 1.0, "typical": -2.5, "reasons": reasons, "rest": 0.5, "remainder": 0.0,
        "flip": [{"column": "conns_60s", "to": 5}], "circuit": {"name": "c-auto", "holds": ["necessary"], "label": ""},
        "flow": {"uid": HOSTILE}, "input": {"conns_60s": 878}, "input_digest": "d" * 64, "model": "m" * 64, **more,
    }  # fmt: skip


def log_of(path: Path, *records: dict[str, Any]) -> Path:
    data, head = audit.chained(records, audit.Head(), None)
    path.write_bytes(data)
    audit.write_head(path, head)
    return path


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.split("<body>")[1].split("<script")[0]))


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_of_detectors_says_what_the_result_says(run: Path) -> None:
    page = Path(bench.view_run(run)["page"]).read_text(encoding="utf-8")
    text = text_of(page)
    assert "finds 50 % of attacks at 0.2 % false alarms, with 100 edges" in text
    assert "The flows are generated" in text and "No circuit met its target for attack." in text
    assert "whatever their value: hour" in text and "first alerts" not in text
    assert HOSTILE not in page and "onerror=alert" in page, "shown, but as text"
    log_of(run / "alerts.jsonl", {"kind": "model"}, *(entry() for _ in range(8)))
    page = Path(bench.view_run(run)["page"]).read_text(encoding="utf-8")
    assert page.count('class="alert"') == 5 and 'id="alert-1"' in page and HOSTILE not in page
    assert bench.show_run(run)["tables"] == store.read_json(run / "result.json")["tables"]


def test_pages_of_unfinished_or_other_runs_are_refused(run: Path) -> None:
    with pytest.raises(UsageError, match="is no run of openwork run flows"):
        bench.view_run(run / "sparse", Path("alerts.jsonl"))
    with pytest.raises(UsageError, match="compares several models"):
        open_run(run)
    (run / "result.json").unlink()
    with pytest.raises(UsageError, match="not finished"):
        bench.view_run(run)
    with pytest.raises(UsageError, match="not finished"):
        write_report(run, run / "report.html")


def test_a_damaged_result_is_refused(run: Path) -> None:
    store.write_json(run / "result.json", {"figures": []})
    with pytest.raises(RunError, match="is damaged"):
        bench.view_run(run)


def test_points_stand_where_their_figures_are() -> None:
    """100 % is at the top; a model ten times larger is as far to the right as the next; the budget has its line."""
    rates = (1.0, 0.9, 0.8)
    figures = [
        {"model": f"m{k}", "parts": 10**k, "of": "edges", "splits": {"verify": {"detection_rate": r}}}
        for k, r in enumerate(rates, 1)
    ]
    svg = panel(figures, "verify", "detection_rate", "found", None)
    rings = [(float(x), float(y)) for x, y in re.findall(r'class="ring" cx="([\d.]+)" cy="([\d.]+)"', svg)]
    (x1, y1), (x2, y2), (x3, y3) = rings
    assert y1 == 24.0 and x2 - x1 == pytest.approx(x3 - x2, abs=0.2) and y2 - y1 == pytest.approx(y3 - y2, abs=0.2)
    assert y1 < y2 < y3 and x1 < x2 < x3
    (top,) = (float(y) for x, y in re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="end">100 %', svg))
    assert top == y1 + 4 and "budget" not in svg
    for f in figures:
        f["splits"]["verify"]["false_alarm_rate"] = 0.01  # type: ignore[index]
    svg = panel(figures, "verify", "false_alarm_rate", "false", 0.01)
    (line,) = re.findall(r'class="budget" [^>]*y1="([\d.]+)"', svg)
    assert {y for y in re.findall(r'class="ring" cx="[\d.]+" cy="([\d.]+)"', svg)} == {line}


# -- alerts ------------------------------------------------------------------------------------------------------------


def test_an_alert_is_drawn_with_signed_bars_that_add_up(run: Path) -> None:
    log = log_of(run / "a.jsonl", {"kind": "model"}, entry())
    page = Path(bench.view_run(run, log, 1)["page"])
    assert page == run / "alert-1.html"
    html = page.read_text(encoding="utf-8")
    assert HOSTILE not in html and "&lt;/script&gt;" in html and "<script" not in html
    bars = re.findall(r'<rect class="(\w+)" x="([\d.]+)" y="1" width="([\d.]+)"', html)
    assert bars == [("for", "100.0", "100.0"), ("against", "75.0", "25.0")]
    text = text_of(html)
    for part in (
        "+4.00",
        "-1.00",
        "+0.50",
        "-2.50",
        "+1.00",
        "1 to 60",
        "25 % of normal flows",
        "conns_60s = 5",
        "d" * 64,
    ):
        assert part in text, part
    a = card({**entry(), "n": 1, "hash": "h"})
    assert sum(r["contribution"] for r in a["reasons"]) + a["rest"] + a["typical"] == a["evidence"]


def test_entries_that_are_no_alerts_are_refused(run: Path) -> None:
    log = log_of(run / "a.jsonl", {"kind": "model"}, entry(), entry(score="x"))
    before = sorted(run.iterdir())
    with pytest.raises(UsageError, match="entry 0 .* is no alert"):
        bench.view_run(run, log, 0)
    with pytest.raises(UsageError, match="no entry 7; its entries are 0 to 2"):
        bench.view_run(run, log, 7)
    with pytest.raises(RunError, match="entry 2 of the log is no whole alert"):
        bench.view_run(run, log, 2)
    with pytest.raises(UsageError, match="is not a file"):
        bench.view_run(run, None, 1)
    assert sorted(run.iterdir()) == before


# -- named features ----------------------------------------------------------------------------------------------------


def test_nodes_of_flows_have_the_names_of_their_features(run: Path) -> None:
    prepared, model = Prepared(run / "data"), store.load_model(run / "sparse" / "model")
    names, task = prepared.schema.features, make_flow_task("attack", prepared, 32)
    graph = graph_of(model)
    nodes = {s.name: torch.ones(s.size, dtype=torch.bool) for s in graph.sites}
    circuit = Circuit(graph, nodes, support(model))
    reference = mean_reference(model, [task.split("discover").inputs])
    dossier = build_dossier(model, circuit, reference, task, None, None, features=names)
    assert dossier["inputs"] == "features"
    labels = {n["label"] for n in dossier["nodes"] if n["kind"] == "input"}
    assert {"failed_logins", "conns_60s"} <= labels <= set(names)
    assert {n["label"] for n in dossier["nodes"] if n["kind"] == "output"} == {"normal", "attack"}
    hidden = next(n for n in dossier["nodes"] if n["kind"] == "neuron")
    x = task.split("explain").inputs[0]
    top = hidden["top"][0]
    (row,) = [r for r in x.tolist() if r[names.index("failed_logins")] == x[:, names.index("failed_logins")].max()][:1]
    told = {n: pytest.approx(v, rel=1e-3) for n, v in zip(names, row, strict=True)}
    assert top["label"] == "attack" and all(told[n] == v for n, v in top["values"])
    sizes = [abs(v) for _, v in top["values"]]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 6


# -- the report --------------------------------------------------------------------------------------------------------


def test_a_report_says_what_the_detector_does(run: Path) -> None:
    """Figures and limits against the detector itself, flow by flow."""
    content = gather(run)
    d, prepared = load_detector(run / "sparse"), Prepared(run / "data")
    (model,) = content["models"]
    for split, name in (("verify", "held out"), ("ood", "test log")):
        y = np.asarray(prepared.labels(split)).astype(int)
        alert = d.decision.decide(d.logits(prepared.features(split, slice(None)))) > 0
        found, n = sum(bool(a) for a, c in zip(alert, y, strict=True) if c), int((y > 0).sum())
        (told,) = [f for f in model["figures"] if f["split"] == name and f["figure"] == "attacks that became alerts"]
        assert told["value"] == found / n and told["n"] == n and told["interval"] == list(clopper_pearson(found, n))
        (row,) = [c for c in model["classes"] if c["split"] == name]
        assert (row["found"], row["n"]) == (found, n)
        assert any(x.startswith(f"attack, {name}: {found:,} of {n:,} flows became alerts") for x in model["limits"])
    counts = dict((r[0], r[1:]) for r in content["data"]["classes"])
    assert sum(counts["attack"]) + sum(counts["normal"]) == sum(prepared.facts["rows"].values())
    (blind,) = [x for x in model["limits"] if "blind" in x]
    assert "hour" in blind and "conns_60s" not in blind
    assert any("No circuit was looked for" in x for x in model["limits"])
    assert content["data"]["facts"][-1] == ["schema, SHA-256", prepared.schema.digest()]


def test_claims_that_fail_and_unsupported_words_stand_in_the_report(run: Path) -> None:
    folder = run / "sparse" / "circuits" / "attack-auto"
    folder.mkdir(parents=True)
    holds = {"claim": "necessary", "verdict": "holds", "sentence": "It holds well."}
    fails = {"claim": "one_minimal", "verdict": "fails", "sentence": f"Two are too many {HOSTILE}."}
    said = {"subject": "circuit", "text": "tells floods", "author": "rules", "evidence": [fails]}
    header = {"format": "openwork-circuit", "version": 1, "counts": {"nodes": 3}, "origin": {}, "graph": {}}
    store.write_json(
        folder / "circuit.json", header | {"evidence": [holds, fails], "explanations": [said], "sha256": {}}
    )
    store.write_json(folder / "result.json", {"status": "ok"})
    told = write_report(run, run / "r.html", now=NOW)
    (model,) = files.read_json(run / "r.json")["models"]
    assert len(model["claims"]) == 2 and "It holds well." not in " ".join(model["claims"])
    assert "one-minimal (fails): Two are too many" in model["claims"][0] and "not supported" in model["claims"][1]
    html = (run / "r.html").read_text(encoding="utf-8")
    assert HOSTILE not in html and told["limits"] == len(model["limits"]) + 2
    assert check_report(run / "r.html")["intact"]


def test_a_report_is_the_same_every_time_and_names_its_digest(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "k")
    first = write_report(run, run / "r.html", "KEY", now=NOW)
    html = (run / "r.html").read_bytes()
    assert write_report(run, run / "r.html", "KEY", now=NOW) == first and (run / "r.html").read_bytes() == html
    assert files.sha256((run / "r.json").read_bytes()) == first["digest"]
    assert (run / "r.sha256").read_text() == f"{first['digest']}  r.json\n"
    told = check_report(run / "r.html", "KEY")
    assert told["intact"] and told["signature"] == "checked" and "failed" not in told
    assert check_report(run / "r.html")["signature"].startswith("not checked")
    assert b"unsafe" not in html and html.count(b"<script") == 2


def rewrite(html: str, change: Any, sign: bool = True) -> str:
    """The page that one would write who changes the content and makes digest and page anew, without the key."""
    content, stated = content_of(html, Path("r"))
    new = change(json.loads(canonical(content)))
    return render(new, {**stated, "sha256": files.sha256(canonical(new))} if sign else stated)


def other(content: Any) -> Any:
    return content | {"title": "The detector finds everything"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda h: h.replace("finds 50 %", "finds 99 %", 1), "what it shows"),
        (lambda h: h.replace("</main>", "<p>Approved.</p></main>"), "what it shows"),
        (lambda h: h.replace('"title":"The', '"title":"A'), "digest it states"),
        (lambda h: rewrite(h, other, sign=False), "digest it states"),
        (lambda h: rewrite(h, other), "its signature is not of this content"),
        (lambda h: re.sub(r'"hmac_sha256":"\w+"', '"hmac_sha256":null', h), "it is not signed"),
    ],
)  # fmt: skip
def test_every_change_of_a_signed_report_is_noticed(
    run: Path, monkeypatch: pytest.MonkeyPatch, change: Any, problem: str
) -> None:
    monkeypatch.setenv("KEY", "k")
    write_report(run, run / "r.html", "KEY", now=NOW)
    html = (run / "r.html").read_text(encoding="utf-8")
    changed = run / "changed.html"
    changed.write_text(change(html), encoding="utf-8")
    assert changed.read_text(encoding="utf-8") != html
    told = check_report(changed, "KEY")
    assert not told["intact"] and any(problem in p for p in told["problems"]), told["problems"]
    assert main(["report", "--check", str(changed), "--key-env", "KEY"]) == 1


def test_content_beside_and_keys_are_checked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(run, run / "r.html", now=NOW)
    monkeypatch.setenv("KEY", "k")
    assert check_report(run / "r.html", "KEY")["problems"] == ["it is not signed"]
    write_report(run, run / "r.html", "KEY", now=NOW)
    monkeypatch.setenv("KEY", "another")
    assert check_report(run / "r.html", "KEY")["problems"] == ["its signature is not of this content and this key"]
    (run / "r.json").write_text("{}")
    assert check_report(run / "r.html")["problems"] == ["its content is not that of r.json"]


def test_what_is_asked_wrongly_writes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "x.html").write_text("<p>no report</p>")
    before = sorted(run.iterdir())
    for words in (
        ["report"], ["report", str(run), "--check", "x.html"], ["report", "--check", str(run / "x.html")],
        ["report", "--check", str(run / "gone.html")], ["report", str(run), "--out", str(run / "r.txt")],
        ["report", str(run / "data")], ["report", str(run), "--key-env", "NO_SUCH_KEY"],
    ):  # fmt: skip
        assert main(words) == 2, words
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert sorted(run.iterdir()) == before


def test_a_pdf_is_printed_where_there_is_weasyprint_and_refused_where_not(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    with pytest.raises(UsageError, match=r"openwork\[pdf\]"):
        write_report(run, run / "r.html", pdf=True)
    assert not (run / "r.html").exists()
    seen = {}

    def html(string: str, url_fetcher: Any) -> Any:
        with pytest.raises(ValueError, match="loads nothing"):
            url_fetcher("https://example.org/x.png")
        seen["html"] = string
        return SimpleNamespace(write_pdf=lambda: b"%PDF-")

    monkeypatch.setitem(sys.modules, "weasyprint", SimpleNamespace(HTML=html))
    told = write_report(run, run / "r.html", pdf=True, now=NOW)
    assert Path(told["pdf"]).read_bytes() == b"%PDF-" and seen["html"] == (run / "r.html").read_text(encoding="utf-8")


def test_json_in_a_page_cannot_end_its_script() -> None:
    data = {"a": "</script><!-- \u2028 & >", "b": [1, None, 0.5]}
    text = embedded(data)
    assert not re.search("[<>&\u2028]", text) and json.loads(text) == data
