"""The page of a run, as files and in a real browser: complete, inert towards hostile text, alone, and quick enough."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import page_runs
from openwork import files
from openwork.errors import RunError, UsageError
from openwork.views import build_page, layout, words
from openwork.views.page import HERE, embed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = page_runs.comparison(tmp_path_factory.mktemp("runs") / "quotes")
    build_page(folder)
    return folder


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return (run / "page.html").read_text(encoding="utf-8")


# -- the file ----------------------------------------------------------------------------------------------------------


def test_views_do_not_import_torch() -> None:
    code = "import sys, openwork.views.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_page_is_one_file_under_a_policy_that_allows_nothing_else(html: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert policy and policy[1].startswith("default-src &#39;none&#39;") and "unsafe" not in policy[1]
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?(?:https?:|//|file:)""", html)
    assert not re.search(r"@import|url\(", html)


def test_script_puts_no_text_into_the_document_as_markup() -> None:
    script = (HERE / "page.js").read_text(encoding="utf-8")
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "</script", "<!--"):
        assert way not in script, way


def test_hostile_text_is_escaped(html: str) -> None:
    assert page_runs.HOSTILE not in html and "onerror=alert" in html, "shown, but as text"
    data = embed({"a": "</script><!-- \u2028 & >"})
    assert not re.search("[<>&\u2028]", data) and json.loads(data) == {"a": "</script><!-- \u2028 & >"}


def test_same_run_same_page(run: Path, html: str) -> None:
    assert build_page(run).read_text(encoding="utf-8") == html


def test_the_page_says_what_the_result_says(html: str) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    assert "18.5 times fewer edges" in text and "[12.1, 27.9]" in text
    assert "No circuit of the weight-sparse model met the target for set_or_string; the ratio counts all of" in text
    assert "under its target of 0.15 nats" in text and "nonsense" not in text.split("The circuits")[0]
    assert "The dense model predicts held-out data better (3.42 against 3.66 nats)" in text
    assert "One training seed" in text and "2 of 9 claims about the circuits fail" in text
    assert ">infeasible<" in html


def test_a_single_run_a_bare_result_and_bare_circuits_have_pages(run: Path, tmp_path: Path) -> None:
    single = tmp_path / "a"
    shutil.copytree(run / "sparse", single)
    assert "Alone, the circuit of" in build_page(single).read_text(encoding="utf-8")
    for d in single.rglob("dossier.json"):
        d.unlink()
    assert "has no dossier yet" in build_page(single).read_text(encoding="utf-8")
    bare = tmp_path / "bare"
    tasks = [{"task": "closing", "sparse": None, "dense": {"status": "ok", "edges": 12}}]
    files.write_json(bare / "result.json", {"ratios": {"x": None}, "tasks": tasks, "models": {"sparse": {}}})
    page = build_page(bare).read_text(encoding="utf-8")
    assert ">closing</button>" in page and "no circuit here to test" in page and "<b>12</b>" in page
    assert "Nothing to compare" in page


def test_it_refuses_what_it_cannot_show(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        build_page(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="nothing to show"):
        build_page(tmp_path / "empty")
    broken = tmp_path / "broken"
    shutil.copytree(run / "sparse", broken)
    path = next(broken.rglob("dossier.json"))
    whole = files.read_json(path)
    files.write_text(path, path.read_text(encoding="utf-8")[:-100])
    with pytest.raises(RunError, match=r"dossier\.json is damaged"):
        build_page(broken)
    files.write_json(path, {**whole, "edges": [{"src": "nowhere:1", "dst": "nowhere:2", "link": "x", "weight": 1}]})
    with pytest.raises(RunError, match=r"dossier\.json is damaged"):
        build_page(broken)
    files.write_json(path, {**whole, "version": 99})
    with pytest.raises(RunError, match="version 99"):
        build_page(broken)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0, "0"), (256, "256"), (1234, "1,234"), (0.1617, "0.162"), (-0.5, "−0.500"), (18.53, "18.5")],
        *[(2e-5, "2.0e−05"), (None, "–"), (float("nan"), "–"), ("x", "–"), (True, "–")],
    ],
)
def test_numbers_read_as_a_person_writes_them(value: Any, text: str) -> None:
    assert words.number(value) == text


def test_a_ratio_that_could_be_chance_is_not_sold() -> None:
    def said(geomean: float, low: float) -> str:
        return words.headline(
            {"ratio_geomean": geomean, "ratios": {"node_based": {"geomean": geomean, "low": low}}}, "r"
        )

    one = {"ratio_geomean": 4.2, "ratios": {"node_based": {"geomean": 4.2, "low": None, "tasks": 1}}}
    assert words.headline(one, "r").endswith("in the one task that can be compared")
    assert "chance" in said(3.0, 0.8) and "chance" not in said(3.0, 1.4) and "not smaller" in said(0.9, 0.5)


# -- the layout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_rows_hold_their_layers_and_nodes_keep_their_distance(seed: int) -> None:
    rng = random.Random(seed)
    layers = sorted(rng.randrange(6) for _ in range(rng.choice([3, 40, 400])))
    sites = [f"s{layer}.{rng.randrange(2)}" for layer in layers]
    n = len(layers)
    pairs = [(a, b) for a, b in ((rng.randrange(n), rng.randrange(n)) for _ in range(3 * n)) if layers[a] < layers[b]]
    placed = layout.place(sites, layers, pairs)
    assert placed == layout.place(sites, layers, pairs)
    for a in range(n):
        assert 0 <= placed.places[a][0] <= placed.width and 0 <= placed.places[a][1] <= placed.height
        for b in range(a):
            dx, dy = (abs(p - q) for p, q in zip(placed.places[a], placed.places[b], strict=True))
            if layers[a] == layers[b]:
                assert max(dx, dy) >= layout.LINE - 2.01, (placed.places[a], placed.places[b])
            else:
                assert placed.places[a][1] < placed.places[b][1], "a later layer stands higher"


def test_barycentre_order_takes_crossings_away() -> None:
    pairs = [(i, 20 + (7 * i) % 20) for i in range(20)]  # a matching that can be drawn without any crossing
    placed = layout.place(["a"] * 20 + ["b"] * 20, [0] * 20 + [1] * 20, pairs)
    x = [p[0] for p in placed.places]
    crossings = sum((x[a] - x[c]) * (x[b] - x[d]) < 0 for a, b in pairs for c, d in pairs) // 2
    assert crossings == 0


# -- the browser -------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(browser: Any, run: Path) -> Iterator[Any]:
    """The page, open; ends with the assertion that it asked nothing, complained of nothing and ran nothing foreign."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda r: asked.append(r.url))
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("dialog", lambda d: (said.append(f"dialog {d.message}"), d.dismiss()))
    page.goto((run / "page.html").as_uri())
    page.wait_for_selector(".panel .nodes-list button")
    yield page
    assert said == []
    assert asked == [(run / "page.html").as_uri()]
    assert page.locator("img").count() == 0 and page.locator("[onerror], [onload]").count() == 0
    page.close()


def find(page: Any, pane: int, name: str) -> None:
    box = page.locator(".task:not([hidden]) .pane").nth(pane).locator("input[type=search]")
    box.fill(name)
    box.press("Enter")


SCAN = """(canvas, name) => {  // moves a pointer along the drawing until it is told that it is over that node
    const box = canvas.getBoundingClientRect();
    for (let y = box.top + 10; y < box.bottom - 10; y += 5) {
        for (let x = box.left + 110; x < box.right - 5; x += 5) {
            canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: y }));
            const tip = document.getElementById("tip");
            if (!tip.hidden && tip.textContent.startsWith(name + " ")) return [x, y];
        }
    }
    return null;
}"""


def painted(page: Any, pane: int) -> int:
    """How many different colours a drawing shows; 1 is a blank canvas."""
    return page.evaluate(
        """k => { const c = document.querySelectorAll('.task:not([hidden]) .pane canvas')[k];
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const s = new Set();
        for (let i = 0; i < d.length; i += 4) s.add((d[i] << 16) | (d[i+1] << 8) | d[i+2]); return s.size; }""",
        pane,
    )


def test_both_circuits_are_drawn(page: Any) -> None:
    page.wait_for_timeout(400)
    assert painted(page, 0) > 20 and painted(page, 1) > 20
    titles = page.locator(".pane .which select").evaluate_all("all => all.map(s => s.selectedOptions[0].text)")
    assert titles[:2] == ["weight-sparse", "dense"]


def test_a_click_on_a_node_shows_its_contexts(page: Any, run: Path) -> None:
    page.locator(".circuits").scroll_into_view_if_needed()
    find(page, 0, "block0.mlp.act")
    title = page.locator(".panel h3").first.inner_text()
    canvas = page.locator(".pane canvas").first
    canvas.press("Escape")
    assert page.locator(".panel h3").count() == 0
    hit = canvas.evaluate(SCAN, title)
    assert hit, f"{title} is nowhere in the drawing"
    page.mouse.click(*hit)
    assert page.locator(".panel h3").first.inner_text() == title
    assert page.locator(".panel .context").count() == 6
    told = files.read_json(run / "sparse/circuits/single_double_quote-masks/dossier.json")
    node = next(n for n in told["nodes"] if n["id"] == title)
    shown = page.locator(".panel .context div").first.evaluate("e => e.textContent")
    assert shown.replace("↵", "") == "".join(node["top"][0]["tokens"])
    colours = page.locator(".panel .context .t").evaluate_all("all => all.map(e => e.style.backgroundColor)")
    assert len(set(colours)) > 3
    page.get_by_role("tab", name="On the task").click()
    assert (
        page.locator(".panel .context").count() == 6 and "answer" in page.locator(".panel .context").first.inner_text()
    )


def test_edges_in_the_panel_lead_to_their_nodes(page: Any, run: Path) -> None:
    told = files.read_json(run / "sparse/circuits/single_double_quote-masks/dossier.json")
    edge = next(e for e in told["edges"] if e["link"].endswith("mlp.act"))
    find(page, 0, edge["dst"])
    assert page.locator(".panel h3").first.inner_text() == edge["dst"]
    page.locator(".panel .nodes-list button", has_text=edge["src"]).first.click()
    assert page.locator(".panel h3").first.inner_text() == edge["src"]


def test_the_keyboard_walks_the_nodes(page: Any) -> None:
    canvas = page.locator(".pane canvas").first
    canvas.focus()
    seen = []
    for key in ("ArrowUp", "ArrowUp", "ArrowRight", "ArrowUp"):
        canvas.press(key)
        seen.append(page.locator(".panel p").first.inner_text())
    assert len(set(seen)) >= 3, seen
    canvas.press("+")
    canvas.press("0")
    canvas.press("Escape")
    assert page.locator(".panel .guide").count() == 2


def test_evidence_names_every_claim_with_its_verdict(page: Any) -> None:
    rows = page.locator(".task:not([hidden]) .evidence tr[data-claim]")
    got = rows.evaluate_all("all => all.map(r => [r.dataset.claim, r.querySelector('.verdict').innerText.trim()])")
    assert got == [
        ["sufficient", "holds"],
        ["necessary", "holds"],
        ["one_minimal", "fails"],
        ["generalises", "too little data"],
        ["nonsense_control", "holds"],
    ]
    assert "random circuits of equal size per site" in rows.first.inner_text() and "< 0.001" in rows.first.inner_text()


def test_an_infeasible_task_says_so_in_place_of_a_drawing(page: Any) -> None:
    page.get_by_role("tab", name="set or string").click()
    pane = page.locator(".task:not([hidden]) .pane").first
    assert "met the target loss" in pane.inner_text() and pane.locator("canvas").count() == 0
    assert "Nothing has been tested" in page.locator(".task:not([hidden])").inner_text()


def test_three_thousand_edges_still_answer(page: Any, run: Path) -> None:
    counts = files.read_json(run / "dense/circuits/single_double_quote-masks/circuit.json")["counts"]
    assert counts["edges"] >= 3000
    page.locator(".circuits").scroll_into_view_if_needed()
    find(page, 1, "block0.mlp.act")
    page.wait_for_function("document.querySelectorAll('.panel .context').length > 0")
    page.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    zoom = page.evaluate(
        """async () => {
            const pane = document.querySelectorAll('.task:not([hidden]) .pane')[1];
            const buttons = pane.querySelectorAll('.tools button');
            const frame = () => new Promise(r => requestAnimationFrame(r));
            let worst = 0;
            for (let k = 0; k < 8; k++) {
                const begun = performance.now();
                buttons[k % 2 ? 0 : 2].click();
                await frame();
                await frame();
                worst = Math.max(worst, performance.now() - begun);
            }
            return worst;
        }"""
    )
    assert zoom < 10_000, "a page that hangs; how fast it is, is no test's business"


def test_dark_and_narrow_pages_have_no_sideways_scroll(browser: Any, run: Path) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
    page.goto((run / "page.html").as_uri())
    page.wait_for_selector(".panel .nodes-list button")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 24)"
    cut = page.evaluate(
        """[...document.querySelectorAll(".evidence td, .evidence th, .tasks th")]
            .filter(e => e.offsetParent && (e.closest(".tasks") ? e.getBoundingClientRect().width < 80
                : e.getBoundingClientRect().right > 400)).map(e => e.textContent.trim())"""
    )
    assert not cut, "every word of the evidence is read without scrolling sideways, and names are not cut into letters"
    page.locator(".choose button").nth(1).click()
    assert not page.locator(".pane").first.is_visible() and page.locator(".pane").nth(1).is_visible()
    page.close()
