"""A detector's modules: exact shares of the evidence, words with evidence, none where there are none; and its seeds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork import audit, bench, files, store, structure
from openwork.between_seeds import compare_seeds, likeness, shared
from openwork.detector import load_detector, save_detector
from openwork.detector_modules import find_detector_modules, modular, rewired
from openwork.errors import RunError
from openwork.explain.accounts.along import Layer, along
from openwork.export.parts import compacted, needed
from openwork.models import build
from openwork.patching import graph_of
from openwork.reporting import check_report, gather, write_report
from openwork.tasks.flows import generated
from openwork.tasks.flows.decision import Decision
from openwork.tasks.flows.prepared import prepare
from openwork.views.flows import card
from openwork.views.report import VERSION, canonical, render
from openwork.watch import replay, watch

COLUMNS = [c for c in next(iter(generated.Generated(1))) if c != generated.LABEL]


def network(seed: int, sizes: tuple[int, ...]) -> tuple[Layer, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        (rng.normal(size=(b, a)) * (rng.random((b, a)) < 0.7), rng.normal(size=b))
        for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    )


# -- shares ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(5, 6, 3), (5, 6, 7, 3), (5, 6, 7, 4, 3)]), st.integers(1, 4))
def test_what_modules_carry_adds_up_to_the_change(seed: int, sizes: tuple[int, ...], k: int) -> None:
    layers, rng = network(seed, sizes), np.random.default_rng(seed + 1)
    start, ends, to = rng.normal(size=5), 3 * rng.normal(size=(6, 5)), rng.normal(size=(6, 3))
    modules = [rng.integers(k, size=n) for n in sizes[1:-1]]
    ways, plain = along(layers, start, ends, to, modules), along(layers, start, ends, to)
    assert ways.pairs.sum((1, 2)) == pytest.approx(ways.after - ways.before, abs=1e-9)
    assert ways.shares == pytest.approx(plain.shares, abs=1e-9)
    assert plain.pairs[:, 0, 0] == pytest.approx(plain.after - plain.before, abs=1e-9)
    if len(sizes) == 3:
        assert not ways.pairs[:, ~np.eye(ways.pairs.shape[1], dtype=bool)].any(), "one layer: no path crosses"


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_the_mean_over_the_way_of_every_path(seed: int) -> None:
    """Against a sum over all paths i -> j at very many points of the way."""
    (w1, b1), (w2, b2), (w3, _) = layers = network(seed, (5, 6, 7, 3))
    rng, k, n = np.random.default_rng(seed), 3, 20_000
    start, end, to = rng.normal(size=5), 3 * rng.normal(size=5), rng.normal(size=3)
    sides = [rng.integers(k, size=6), rng.integers(k, size=7)]
    t = (np.arange(n) + 0.5) / n
    z1 = (start + t[:, None] * (end - start)) @ w1.T + b1
    z2 = np.maximum(z1, 0) @ w2.T + b2
    on = np.einsum("tj,ti->ji", (z2 > 0).astype(float), (z1 > 0).astype(float)) / n
    path = (to @ w3)[:, None] * on * w2 * (w1 @ (end - start))  # [j, i]
    wanted = np.array([[path[sides[1] == q][:, sides[0] == p].sum() for q in range(k)] for p in range(k)])
    found = along(layers, start, end[None], to[None], sides).pairs[0]
    assert found == pytest.approx(wanted[: len(found), : len(found)], abs=5e-3)
    assert np.abs(wanted).max() > 0.1


@pytest.mark.parametrize("seed", range(5))
def test_what_is_needed_is_what_compacting_leaves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = tuple((w * (rng.random(w.shape) < 0.25), b) for w, b in network(seed, (6, 9, 8, 3)))
    small, left = compacted(layers), needed(layers)
    first, second = left
    assert (small[0][0] == layers[0][0][first]).all() and (small[0][1] == layers[0][1][first]).all()
    assert (small[1][0] == layers[1][0][second][:, first]).all() and (small[2][0] == layers[2][0][:, second]).all()
    assert len(first) < 9 or len(second) < 8


# -- whether there are modules -----------------------------------------------------------------------------------------


def test_rewiring_keeps_every_number_of_weights_and_moves_them() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(20, 15)) * (rng.random((20, 15)) < 0.2)
    new = rewired(weight, rng)
    assert ((new != 0).sum(0) == (weight != 0).sum(0)).all() and ((new != 0).sum(1) == (weight != 0).sum(1)).all()
    assert sorted(new[new != 0]) == sorted(weight[weight != 0])
    assert ((new != 0) & (weight == 0)).sum() > 10
    full = np.ones((3, 3))
    assert (rewired(full, rng) == full).all(), "nothing can move"


def two_hidden(mask: np.ndarray) -> Any:
    """A model whose only matrix between hidden neurons is a mask [12, 12]."""
    net = build({"kind": "mlp", "inputs": 4, "hidden": (12, 12), "outputs": 2}, 0)
    layers: Any = net.layers
    layers[1].weight.data[:] = torch.from_numpy(mask.astype(np.float32))
    return net


def blocks() -> np.ndarray:
    """Twelve neurons that read four of the six before them in their half."""
    mask = np.zeros((12, 12))
    for i in range(12):
        mask[i, [(i + j) % 6 + i // 6 * 6 for j in range(4)]] = 1.0
    return mask


def test_modules_are_told_where_there_are_some_and_not_in_noise() -> None:
    net = two_hidden(blocks())
    of = structure.wiring(graph_of(net))
    labels = np.array([i // 6 for i in range(12)] * 2)
    found = modular(net, of, labels)
    assert found.verdict == "holds" and found.value == pytest.approx(0.5) and found.p == 0.01
    assert found.details["pieces"] == 2 and found.details["crossing"] == 0 and "2 connected pieces" in found.sentence
    noise = two_hidden(rewired(blocks(), np.random.default_rng(1)))
    of = structure.wiring(graph_of(noise))
    sizes = {n: structure.size(w.detach()) for n, w in structure.weights(noise, of).items()}
    found = modular(noise, of, structure.spectral(structure.adjacency(of, sizes), 2))
    assert found.verdict == "fails" and found.p > 0.05
    assert "one connected piece, and no modules are told apart" in found.sentence


# -- a detector by hand ------------------------------------------------------------------------------------------------


def by_hand(schema: Any, bent: float = 1.0) -> Any:
    """A network of two parts that nothing joins: one for brute_force reads failed logins, one for flood connections."""
    net = build({"kind": "mlp", "inputs": len(schema.features), "hidden": (12, 12), "outputs": len(schema.classes)}, 0)
    for p in net.parameters():
        p.data.zero_()
    layers: Any = net.layers
    for i in range(12):
        layers[0].weight.data[i, schema.features.index("failed_logins" if i < 6 else "conns_60s")] = bent
    layers[0].bias.data[:] = -2.0
    layers[1].weight.data[:] = torch.from_numpy(blocks().astype(np.float32))
    layers[2].weight.data[schema.classes.index("brute_force"), :6] = 1.0
    layers[2].weight.data[schema.classes.index("flood"), 6:] = 1.0
    layers[2].bias.data[0] = 4.0
    return net


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two seeds of such a detector, made before modules were looked for."""
    out = tmp_path_factory.mktemp("runs") / "two-seeds"
    prepared = prepare(out / "data", generated.Generated(20_000), generated.LABEL, None)
    schema, figures = prepared.schema, []
    for seed, name, data in ((0, "sparse", "../data"), (1, "more/sparse-1", "../../data")):
        at, net = out / name, by_hand(schema, 1.0 + 0.2 * seed)
        plan = {"kind": "run", "subject": "flows", "data": data, "model": net.config.model_dump(), "seed": seed}
        more = {"training": {"seed": seed}, "regimes": {"topk": {"density": 0.1}}, "examples": 64, "batch": 8}
        store.save_model(at / "model", net)
        store.write_yaml(at / "run.yaml", files.plain(plan | more | {"device": "cpu"}))
        typical = {c.name: c.values[0] if c.kind == "category" else (c.low + c.high) / 2 for c in schema.used}
        typical |= {"failed_logins": 0, "conns_60s": 5}
        classes = len(schema.classes)
        save_detector(at, schema, Decision((0.0,) * classes, 1.0, 0.5, 0.01), typical, {})
        verify = {
            "accuracy": 0.9,
            "detection_rate": 0.5,
            "false_alarm_rate": 0.002,
            "false_alarm_interval": [0.0, 0.01],
        }
        figures.append({"model": "sparse", "seed": seed, "parts": 84, "of": "edges", "splits": {"verify": verify}})
    store.write_yaml(out / "run.yaml", {"kind": "flows", "subject": "flows", "seeds": 2, "data": None})
    rows = {"rows": prepared.facts["rows"], "budget": 0.01, "figures": figures, "circuits": [], "never_used": []}
    store.write_json(out / "result.json", rows | {"tables": {"detectors": [{"model": "sparse", "parts": "84 edges"}]}})
    return out


@pytest.fixture(scope="module")
def with_modules(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its modules looked for."""
    run = Path(shutil.copytree(made, tmp_path_factory.mktemp("with") / "run"))
    for at in (run / "sparse", run / "more" / "sparse-1"):
        find_detector_modules(at)
    return run


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated flows as a CSV file."""
    at = tmp_path_factory.mktemp("log") / "flows.csv"
    [batch] = generated.Generated(600, 3)
    rows = zip(*(batch[c].tolist() for c in COLUMNS), strict=True)
    at.write_text(",".join(COLUMNS) + "\n" + "".join(",".join(map(str, r)) + "\n" for r in rows))
    return at


def watched(run: Path, log: Path, out: Path) -> list[dict[str, Any]]:
    watch(run, log, out)
    return list(audit.entries(out))


def test_words_about_modules_have_evidence(with_modules: Path) -> None:
    found = files.read_json(with_modules / "sparse" / "detector" / "modules.json")
    assert [m["label"] for m in found["modules"]] == ["for brute_force: failed_logins", "for flood: conns_60s"]
    assert found["of"] == [[0] * 6 + [1] * 6] * 2 and "have 2 modules: 48 of 48 weights" in found["note"]
    for m in found["modules"]:
        evidence = {e["claim"]: e for e in m["evidence"]}
        assert list(evidence) == ["carries", "its_own", "told"] and {e["split"] for e in m["evidence"]} == {"verify"}
        assert evidence["carries"]["value"] == pytest.approx(1.0) and evidence["carries"]["null_value"] < 0.5
        assert {evidence[c]["verdict"] for c in ("carries", "its_own")} == {"holds"}, m["evidence"]
        assert evidence["its_own"]["value"] > 0.9 and evidence["told"]["value"] > 0.9
        assert m["reads"][0]["share"] == pytest.approx(1.0) and "answer" not in m["text"]
    before = (with_modules / "sparse" / "detector" / "modules.json").read_bytes()
    find_detector_modules(with_modules / "sparse")
    assert (with_modules / "sparse" / "detector" / "modules.json").read_bytes() == before, "not made again"


def test_an_alert_says_which_modules_carried_it(with_modules: Path, log: Path, tmp_path: Path) -> None:
    head, *alerts = watched(with_modules, log, tmp_path / "a.jsonl")
    assert "2 modules" in head["modules"] and {a["class"] for a in alerts} == {"brute_force", "flood"}
    for a in alerts:
        told = a["modules"]
        carried = sum(s["share"] for s in (*told["shares"], *told["between"])) + told["rest"]
        assert a["typical"] + carried == pytest.approx(a["evidence"], abs=1e-9) and abs(told["remainder"]) < 1e-9
        assert told["shares"][0]["label"].startswith(f"for {a['class']}:") and not told["between"]
        assert {"carries", "its_own"} <= set(told["shares"][0]["holds"])
    assert replay(tmp_path / "a.jsonl", with_modules)["reproduced"]
    a = json.loads(json.dumps(alerts[0]))
    a["modules"]["shares"][0]["share"] += 0.01
    records = [{k: v for k, v in e.items() if k not in ("n", "prev", "hash")} for e in (head, a)]
    data, end = audit.chained(records, audit.Head(), None)
    (tmp_path / "b.jsonl").write_bytes(data)
    audit.write_head(tmp_path / "b.jsonl", end)
    assert audit.verify_log(tmp_path / "b.jsonl")["intact"], "who rewrites the chain is found by replay"
    problems = replay(tmp_path / "b.jsonl", with_modules)["problems"]
    assert [p["problem"] for p in problems] == ["what its modules carried differs"]


def test_the_page_of_an_alert_draws_what_modules_carried(with_modules: Path, log: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(with_modules, tmp_path / "run"))
    alerts = watched(run, log, run / "alerts.jsonl")[1:]
    html = Path(bench.view_run(run, None, 1)["page"]).read_text(encoding="utf-8")
    assert "Which modules carried it" in html and "its own attack&#39;s" in html and "have 2 modules" in html
    a = card(alerts[0])
    shown = sum(r["contribution"] for r in a["modules"]["rows"]) + a["modules"]["rest"] + a["typical"]
    assert shown == pytest.approx(a["evidence"], abs=1e-9)
    bad = json.loads(json.dumps(alerts[0]))
    bad["modules"]["shares"][0]["label"] = "</script><img src=x>"
    records = [{k: v for k, v in bad.items() if k not in ("n", "prev", "hash")}]
    (run / "bad.jsonl").write_bytes(audit.chained(records, audit.Head(), None)[0])
    assert "<img" not in Path(bench.view_run(run, run / "bad.jsonl", 0)["page"]).read_text(encoding="utf-8")


def test_modules_that_are_none_are_told_in_plain_words(made: Path, log: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    at = run / "sparse"
    net = by_hand(load_detector(at).schema)
    net.layers[1].weight.data[:] = torch.from_numpy(rewired(blocks(), np.random.default_rng(1)).astype(np.float32))
    store.save_model(at / "model", net)
    d = load_detector(made / "sparse")
    save_detector(at, d.schema, d.decision, d.typical, {})
    found = find_detector_modules(at)
    assert found["modules"] == [] and found["of"] == [] and found["evidence"]["verdict"] == "fails"
    head, *alerts = watched(run, log, run / "alerts.jsonl")
    assert "no modules are told apart" in head["modules"] and {a["modules"] for a in alerts} == {None}
    html = Path(bench.view_run(run, None, 1)["page"]).read_text(encoding="utf-8")
    assert "no modules are told apart" in html and "Which modules carried it" not in html
    assert any("no modules are told apart" in x for x in gather(run)["models"][0]["limits"])


def test_one_hidden_layer_has_no_modules(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    d = load_detector(run / "sparse")
    net = build({"kind": "mlp", "inputs": len(d.schema.features), "hidden": (5,), "outputs": len(d.schema.classes)}, 0)
    store.save_model(run / "sparse" / "model", net)
    save_detector(run / "sparse", d.schema, d.decision, d.typical, {})
    found = find_detector_modules(run / "sparse")
    assert found["modules"] == [] and found["note"].startswith("It has no modules to tell apart:")


# -- runs and logs made before -----------------------------------------------------------------------------------------


def test_a_run_made_before_is_watched_audited_shown_and_reported(
    made: Path, with_modules: Path, log: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    head, *alerts = watched(run, log, run / "alerts.jsonl")
    assert head["modules"] is None and {a["modules"] for a in alerts} == {None}
    older = [{k: v for k, v in e.items() if k not in ("n", "prev", "hash", "modules")} for e in (head, *alerts)]
    data, end = audit.chained(older, audit.Head(), None)
    (run / "old.jsonl").write_bytes(data)
    audit.write_head(run / "old.jsonl", end)
    assert audit.verify_log(run / "old.jsonl")["intact"]
    for model in (run, with_modules):
        assert replay(run / "old.jsonl", model)["reproduced"], model
    html = Path(bench.view_run(run, run / "old.jsonl", 1)["page"]).read_text(encoding="utf-8")
    assert "Nothing was known of its modules when it was written." in html
    assert "Nothing is known of its modules" in Path(bench.view_run(run)["page"]).read_text(encoding="utf-8")
    write_report(run, run / "r.html")
    assert check_report(run / "r.html")["intact"]
    assert any("modules: they were not looked for" in x for x in gather(run)["models"][0]["limits"])


def test_a_log_with_modules_is_not_reproduced_by_a_detector_without(
    made: Path, with_modules: Path, log: Path, tmp_path: Path
) -> None:
    watched(with_modules, log, tmp_path / "a.jsonl")
    result = replay(tmp_path / "a.jsonl", made)
    assert not result["reproduced"] and result["same"] == 0


def test_content_of_a_report_made_before_gives_the_page_it_gave(made: Path) -> None:
    content: dict[str, Any] = gather(made) | {"made": "2026-01-02T03:04:05+00:00"}
    new = render(files.plain(content), {"sha256": "", "hmac_sha256": None})
    older = {k: v for k, v in content.items() if k != "seeds"}
    older["models"] = [{k: v for k, v in m.items() if k != "modules"} for m in list(content["models"])]
    page = render(files.plain(older), {"sha256": "", "hmac_sha256": None})
    assert VERSION == 1 and "Whether the seeds" in new and "Whether the seeds" not in page and "Its modules" not in page


def test_modules_of_another_model_are_refused(with_modules: Path, made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    shutil.copy(with_modules / "more/sparse-1/detector/modules.json", run / "sparse" / "detector" / "modules.json")
    with pytest.raises(RunError, match="belongs to another model"):
        load_detector(run / "sparse")
    assert find_detector_modules(run / "sparse")["modules"], "they are looked for again"
    load_detector(run / "sparse")


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_likeness_and_what_is_shared_by_hand() -> None:
    same = np.array([[5.0, 3.0, 1.0, -2.0, 0.5, 0.1, -0.3]] * 2)
    assert likeness(same)[0] == pytest.approx(1.0) and likeness(same)[1] < 0.01 and shared(same) == pytest.approx(1.0)
    other = same * np.array([[1.0], [-1.0]])
    assert likeness(other)[0] == pytest.approx(-1.0) and likeness(other)[1] > 0.99 and shared(other) == 0.0
    assert shared(np.array([[3.0, 1.0, 0.0], [1.0, 0.0, -1.0]])) == pytest.approx(0.5)
    two = np.array([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    assert np.isnan(likeness(two)[0]) and likeness(two)[1] == 1.0, "two columns cannot tell"


def test_seeds_are_compared_and_reported(with_modules: Path, tmp_path: Path) -> None:
    found = compare_seeds(with_modules)
    assert found is not None
    assert [(r["seed"], r["accuracy"], r["edges"], r["modules"]) for r in found["rows"]] == [
        (0, 0.9, 84, 2),
        (1, 0.9, 84, 2),
    ]
    by = {a["attack"]: a for a in found["attacks"]}
    assert [c["column"] for c in by["flood"]["columns"]] == ["conns_60s"] and by["flood"]["same_way"]
    first, second = by["brute_force"]["columns"][0]["adds"]
    d = load_detector(with_modules / "sparse")
    assert 0 < first < second and d.schema.classes.index("brute_force") > 0
    assert "No circuit was looked for with seed 0, 1" in " ".join(found["sentences"])
    write_report(with_modules, tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert check_report(tmp_path / "r.html")["intact"] and "The sparse network, seed by seed" in html
    content = json.loads((tmp_path / "r.json").read_bytes())
    content["seeds"]["rows"][0]["accuracy"] = 1.0
    assert canonical(content) != (tmp_path / "r.json").read_bytes()


def test_one_training_says_that_nothing_is_known_of_others(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    shutil.rmtree(run / "more")
    store.write_yaml(run / "run.yaml", files.read_yaml(run / "run.yaml") | {"seeds": 1})
    assert compare_seeds(run) is None
    assert "whether another training would decide the same way is not known" in gather(run)["seeds"]["sentences"][0]


def test_verdicts_of_circuits_are_set_side_by_side(with_modules: Path, tmp_path: Path) -> None:
    from openwork.circuit import Circuit, Evidence

    run = Path(shutil.copytree(with_modules, tmp_path / "run"))
    for at, verdicts in ((run / "sparse", ("holds", "holds")), (run / "more" / "sparse-1", ("holds", "fails"))):
        model = store.load_model(at / "model")
        evidence = tuple(
            Evidence(c, v, "", 1.0, "", (0.0, 1.0), "", 0.0, 0.1, 9, "verify", 0, 0.0)
            for c, v in zip(("sufficient", "necessary"), verdicts, strict=True)
        )
        store.save_circuit(at / "circuits" / "attack-auto", Circuit(graph_of(model), *_whole(model), {}, evidence))
    found = compare_seeds(run)
    assert found is not None
    assert found["verdicts"] == [{"circuit": "attack-auto", "seeds": 2, "same": ["sufficient"], "other": ["necessary"]}]
    assert "Of 2 claims about attack-auto, 1 have the same verdict in 2 seeds; necessary differ." in found["sentences"]


def _whole(model: Any) -> tuple[Any, Any]:
    from openwork.circuit import Circuit
    from openwork.patching import support

    whole = Circuit.whole(graph_of(model), support(model))
    return whole.nodes, whole.edges
