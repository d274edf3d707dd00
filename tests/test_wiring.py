"""A network in space: the data of layout.json by brute force, its drawing, and the page that shows it."""

from __future__ import annotations

import copy
import itertools
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from openwork import bench, files, models, runs
from openwork.errors import RunError, UsageError
from openwork.explain import build_wiring
from openwork.models.cnn import ConvBlock
from openwork.patching import graph_of
from openwork.training.relocation import as_lists, start_of, wire_length_of
from openwork.views import build_page, wiring

HOSTILE = "</svg><script>alert(1)</script><b title='"
TRANSFORMER = models.TransformerConfig(vocab=20, n_layer=1, d_model=8, d_head=4, d_mlp=6, n_ctx=5)
NS = "{http://www.w3.org/2000/svg}"


def told(config: Any, dimensions: int = 1, cut: float = 0.0, **limits: int) -> dict[str, Any]:
    """A fresh network's data, without its small weights."""
    model = models.build(config, seed=0)
    for p in model.parameters():
        p.data.mul_(p.abs() > cut)
    return build_wiring(model, as_lists(start_of(model, dimensions)), **limits)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short BIMT run of digits, with its page."""
    out = tmp_path_factory.mktemp("runs") / "small"
    settings = ("bimt.dimensions=2", "bimt.price=3e-3", "bimt.every=20", "bimt.cut=0.03")
    bench.train_run("digits", "bimt", None, out, 60, "smoke", settings=settings)
    bench.view_run(out)
    return out


# -- the data ----------------------------------------------------------------------------------------------------------


def test_the_strongest_edges_are_told_with_their_ends() -> None:
    model = models.build(models.MLPConfig(inputs=3, hidden=(4,), outputs=2), seed=1)
    want = []
    for k, name in enumerate(("layers.0.weight", "layers.1.weight")):
        w = model.get_parameter(name).tolist()
        want += [[k, j, k + 1, i, w[i][j]] for i, j in itertools.product(range(len(w)), range(len(w[0])))]
    want.sort(key=lambda e: -abs(e[-1]))
    data = build_wiring(model, as_lists(start_of(model)), strongest=7)
    assert [e[:4] for e in data["edges"]] == [e[:4] for e in want[:7]]
    assert [e[4] for e in data["edges"]] == pytest.approx([e[4] for e in want[:7]], rel=1e-3)
    assert data["count"] == 20 and data["threads"] == []
    sizes = [sum(abs(e[4]) for e in want if (e[0], e[1]) == (0, i)) for i in range(3)]
    assert data["sites"][0]["size"] == pytest.approx(sizes, rel=1e-3)
    assert data["sites"][0]["at"] == [[pytest.approx((i + 0.5) / 3, rel=1e-3)] for i in range(3)]


def test_a_kernel_is_told_by_its_summed_size_and_the_sign_of_its_sum() -> None:
    model = models.build(
        models.CNNConfig(image=(1, 4, 4), blocks=(ConvBlock(channels=2, kernel=3),), hidden=(), outputs=2)
    )
    for p in model.parameters():
        p.data.zero_()
    model.get_parameter("layers.0.weight").data[1, 0, 0, :2] = torch.tensor([1.0, -3.0])
    data = build_wiring(model, as_lists(start_of(model)))
    assert data["edges"] == [[0, 0, 1, 1, -4.0]] and data["count"] == 1
    assert data["sites"][1]["size"] == [0.0, 4.0]


def test_a_vocabulary_does_not_crowd_out_the_rest() -> None:
    data = told(TRANSFORMER, strongest=50, of_vocabulary=10)
    names = [s["name"] for s in data["sites"]]
    ends = [{names[e[0]], names[e[2]]} for e in data["edges"]]
    assert sum(1 for e in ends if e & {"tokens", "positions", "logits"}) == 10 and len(ends) == 60
    assert [abs(e[4]) for e in data["edges"]] == sorted((abs(e[4]) for e in data["edges"]), reverse=True)
    assert "bigram" not in names, "no matrix reads or writes it"
    stream = [n for n in names if n.endswith((".in", ".write")) or n == "embed"]
    assert [[names[k] for k in group] for group in data["threads"] if len(group) > 1] == [stream]


def test_places_of_another_model_are_refused() -> None:
    model = models.build(models.MLPConfig(inputs=3, hidden=(4,), outputs=2))
    with pytest.raises(RunError, match="do not fit the model: hidden0 has 4 nodes"):
        build_wiring(model, {**as_lists(start_of(model)), "hidden0": [[0.5]]})


# -- the drawing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(
    "config", [models.MLPConfig(inputs=9, hidden=(8, 8), outputs=3), TRANSFORMER], ids=lambda c: c.kind
)
def test_every_node_and_edge_is_drawn_within_the_picture(config: Any, dimensions: int) -> None:
    data = told(config, dimensions, cut=0.01)
    svg = ElementTree.fromstring(wiring.draw(data, alone=True))
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    circles = svg.findall(f"{NS}circle")
    assert len(circles) == sum(len(s["at"]) for s in data["sites"])
    assert all(0 < float(c.attrib["cx"]) < width and 0 < float(c.attrib["cy"]) < height for c in circles)
    idle = sum(c.attrib["class"] == "node idle" for c in circles)
    assert idle == sum(x == 0 for s in data["sites"] for x in s["size"])
    wires = [p for p in svg.findall(f"{NS}path") if p.attrib["class"] in ("plus", "minus")]
    assert len(wires) == len(data["edges"])
    assert sum(p.attrib["class"] == "minus" for p in wires) == sum(e[4] < 0 for e in data["edges"])
    spots = {(c.attrib["cx"], c.attrib["cy"]) for c in circles}
    for p in wires:
        assert set(re.findall(r"([\d.]+) ([\d.]+)", p.attrib["d"])) <= spots, "a wire ends beside its nodes"
    assert ElementTree.fromstring(wiring.draw(data)).tag == "svg", "within a page it needs no namespace"


def test_rows_rise_by_layer_and_sheets_recede() -> None:
    data = told(models.MLPConfig(inputs=9, hidden=(9,), outputs=9), 2)
    svg = ElementTree.fromstring(wiring.draw(data, alone=True))
    at = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in svg.findall(f"{NS}circle")]
    for first, last in itertools.pairwise((at[:9], at[9:18], at[18:])):
        assert min(y for _, y in first) > max(y for _, y in last), "a later layer stands higher"
    back, front = at[0], at[6]  # first and last row of the grid, first column
    assert back[1] < front[1] and back[0] > front[0] and at[1][0] > at[0][0] and at[1][1] == at[0][1]


def test_a_larger_weight_is_broader_and_denser() -> None:
    data = told(models.MLPConfig(inputs=3, hidden=(4,), outputs=2))
    svg = ElementTree.fromstring(wiring.draw(data, alone=True))
    wires = {p[0].text: p.attrib for p in svg.findall(f"{NS}path") if p.attrib["class"] in ("plus", "minus")}
    sites = [s["name"] for s in data["sites"]]
    names = [f"{sites[a]}:{i} → {sites[b]}:{j}" for a, i, b, j, _ in data["edges"]]
    drawn = [next(v for k, v in wires.items() if k and k.startswith(n + " ")) for n in names]
    for key in ("stroke-width", "opacity"):
        values = [float(d[key]) for d in drawn]
        assert values == sorted(values, reverse=True) and values[0] > values[-1] > 0


def test_hostile_names_are_text() -> None:
    data = told(models.MLPConfig(inputs=3, hidden=(4,), outputs=2))
    data["sites"][1] |= {"name": HOSTILE, "kind": HOSTILE}
    for alone in (True, False):
        drawing = wiring.draw(data, alone)
        assert "<script" not in drawing and "<b " not in drawing
        svg = ElementTree.fromstring(drawing)
        assert HOSTILE in {t.text for t in svg.iter() if t.text}


def test_the_words_are_the_counts() -> None:
    data = told(models.MLPConfig(inputs=3, hidden=(4,), outputs=2), strongest=5) | {"wire_length": 12.3456}
    assert wiring.words(data) == "9 of 9 nodes with edges; 20 edges, 5 of the strongest shown; wire length 12.35"


# -- the page ----------------------------------------------------------------------------------------------------------


def test_a_bimt_run_without_circuits_has_a_page_and_a_drawing(run: Path) -> None:
    page = (run / "page.html").read_text(encoding="utf-8")
    assert '<svg class="network"' in page and "small in space" in page and "No circuits here" not in page
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?(?:https?:|//|file:)""", page) and " style=" not in page
    drawing = ElementTree.fromstring((run / "layout.svg").read_text(encoding="utf-8"))
    assert len(drawing.findall(f"{NS}circle")) == 64 + 48 + 48 + 10
    result, data = files.read_json(run / "result.json"), files.read_json(run / "layout.json")
    assert data["count"] == result["regimes"]["bimt"]["edges"] == result["nonzero"]
    assert data["wire_length"] == pytest.approx(result["regimes"]["bimt"]["wire_length"], rel=1e-4)
    stored = files.read_model_header(run / "model")["extra"]["bimt"]["coordinates"]
    opened = runs.open_run(run).model
    assert data["wire_length"] == pytest.approx(wire_length_of(opened, stored))
    assert {s["name"] for s in data["sites"]} == {s.name for s in graph_of(opened).sites}


def test_a_run_is_laid_out_once_and_again_when_its_model_changes(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    before = (other / "layout.json").stat().st_mtime_ns
    assert bench.view_run(other) == {
        "run": str(other), "page": str(other / "page.html"), "drawing": str(other / "layout.svg"),
    }  # fmt: skip
    assert (other / "layout.json").stat().st_mtime_ns == before
    data = files.read_json(other / "layout.json")
    files.write_json(other / "layout.json", {**data, "key": "of another model", "count": 0})
    bench.view_run(other)
    assert files.read_json(other / "layout.json") == data


def test_a_run_without_places_and_circuits_is_still_refused(tmp_path: Path) -> None:
    bench.train_run("digits", "dense", None, tmp_path / "a", 20, "smoke")
    with pytest.raises(UsageError, match="has no circuit yet"):
        bench.view_run(tmp_path / "a")
    assert not (tmp_path / "a" / "layout.json").exists()


def test_damaged_data_are_one_sentence(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "layout.json", tmp_path / "layout.json")
    whole = files.read_json(tmp_path / "layout.json")

    def changed(**values: Any) -> None:
        files.write_json(tmp_path / "layout.json", copy.deepcopy(whole) | values)

    for wrong in (
        {"edges": [[0, 99_999, 1, 0, 1.0]]},
        {"edges": [[0, -1, 1, 0, 1.0]]},
        {"edges": [[0, 0, 1, 0, "wide"]]},
        {"sites": []},
        {"sites": [{**whole["sites"][0], "at": [[0.5] * 4] * 64}]},
        {"threads": None},
    ):
        changed(**wrong)
        with pytest.raises(RunError, match=r"layout\.json is damaged"):
            build_page(tmp_path)
    changed(version=99)
    with pytest.raises(RunError, match="version 99"):
        build_page(tmp_path)
    changed()
    assert build_page(tmp_path).exists()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_drawing_in_its_colours_and_complains_of_nothing(
    browser: Any, run: Path, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.goto((run / "page.html").as_uri())
    assert page.locator("svg.network circle").count() == 170
    style = "e => getComputedStyle(e).stroke"
    plus = {"light": "rgb(27, 102, 179)", "dark": "rgb(116, 180, 245)"}[scheme]
    assert page.locator("svg.network path.plus").first.evaluate(style) == plus
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    page.goto((run / "layout.svg").as_uri())
    assert page.locator("path.plus").first.evaluate(style) == plus
    assert said == []
    page.close()
