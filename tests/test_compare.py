"""Regimes side by side: what comes out, what is made again, what a setting is chosen by, what becomes of failures."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats as scipy_stats

from openwork import bench, cli, files, store
from openwork.compare import (
    DIALS,
    Case,
    Dial,
    choose,
    compare_regimes,
    dial_of,
    modules_of,
    readable,
    share_above,
    wire_length_of,
)
from openwork.errors import RunError, UsageError
from openwork.progress import Progress
from openwork.runs import open_run
from openwork.training import REGIMES
from openwork.views.plots import comparison_figure
from openwork.workers import Job, map_jobs

REGIMES_HERE = ("dense", "topk", "l1")
FIGURES = {
    "accuracy", "loss", "nonzero", "total", "above_1e-3", "wire_length", "seconds", "cpu_seconds", "peak_mb",
    "start_mb",
}  # fmt: skip
DIVERGING = ("l2.price=1e39",)  # more than a float32 holds
SPENT = {"seconds", "cpu_seconds", "peak_mb", "start_mb"}


def compared(out: Path, regimes: tuple[str, ...] = REGIMES_HERE, seeds: int = 2, **options: Any) -> dict[str, Any]:
    """The comparison of these tests: digits, 30 steps, two processes, no circuits."""
    asked = {"preset": "smoke", "steps": 30, "circuit": "none", "equal_accuracy": "auto", "workers": 2} | options
    return compare_regimes("digits", regimes, seeds, out, **asked)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "compared"
    return out, compared(out)


@pytest.fixture
def copy(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(done[0], tmp_path / "copy"))


def models(out: Path) -> dict[str, int]:
    """When the files of every trained model were written."""
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.glob("*/**/model/*")}


def chosen(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(g["regime"], g["setting"]) for g in result["grid"] if g["chosen"]]


# -- what comes out --------------------------------------------------------------------------------------------------


def test_every_regime_and_seed_has_its_row(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    rows = [r for r in result["rows"] if r["at"] == "default"]
    assert [(r["regime"], r["seed"]) for r in rows] == list(itertools.product(REGIMES_HERE, range(2)))
    for r in rows:
        assert r["status"] == "ok" and r["circuit_status"] == "none" and r["circuit_edges"] is None
        assert all(isinstance(r[name], int | float) for name in FIGURES), r
        assert 0 < r["accuracy"] < 1 and r["peak_mb"] > r["start_mb"] > 50
        assert r["modules"] is None
        run = open_run(out / r["run"])
        assert (run.settings["seed"], list(run.settings["regimes"])) == (r["seed"], [r["regime"]])
    settings = {r["regime"]: r["setting"] for r in rows}
    assert settings == {"dense": None, "topk": "density=0.1", "l1": "price=0.0001"}
    assert (
        json.loads(json.dumps(files.plain(result), allow_nan=False)) == result == store.read_json(out / "result.json")
    )


def test_a_model_of_a_comparison_is_what_train_makes(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    alone = bench.train_run("digits", "topk", None, tmp_path / "alone", steps=30, preset="smoke", seed=1)
    (row,) = [r for r in done[1]["rows"] if (r["at"], r["regime"], r["seed"]) == ("default", "topk", 1)]
    assert (row["accuracy"], row["loss"], row["nonzero"]) == (
        alone["verify_accuracy"], alone["verify_loss"], alone["nonzero"]
    )  # fmt: skip


def test_means_and_intervals_are_those_of_the_rows(done: tuple[Path, dict[str, Any]]) -> None:
    for s in done[1]["summary"]:
        rows = [r for r in done[1]["rows"] if (r["at"], r["regime"]) == (s["at"], s["regime"]) and r["status"] == "ok"]
        assert s["seeds"] == len(rows)
        for name in ("accuracy", "nonzero", "wire_length", "cpu_seconds") if rows else ():
            values = [r[name] for r in rows]
            assert s[name]["mean"] == pytest.approx(sum(values) / len(values))
            if len(set(values)) > 1:
                low, high = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
                assert (s[name]["low"], s[name]["high"]) == pytest.approx((low, high))


def test_csv_markdown_and_json_say_the_same(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    with open(out / "table.csv", newline="") as f:
        told = list(csv.DictReader(f))
    assert len(told) == len(result["rows"])
    for line, row in zip(told, result["rows"], strict=True):
        assert line == {k: "" if v is None else str(v) for k, v in row.items()}
    text = (out / "table.md").read_text()
    assert f"```sh\n{result['command']}\n```" in text
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    lines = [[v for k, v in line.items() if k != "at"] for line in readable(result)]
    assert all(line in cells for line in lines) and len(lines) == len(result["summary"])
    (topk,) = [line for line in readable(result) if (line["at"], line["regime"]) == ("default", "topk")]
    (summary,) = [s for s in result["summary"] if (s["at"], s["regime"]) == ("default", "topk")]
    mean, high = summary["accuracy"]["mean"], summary["accuracy"]["high"]
    assert topk["accuracy"] == f"{100 * mean:.1f} ± {100 * (high - mean):.1f} %"


def test_the_command_in_the_result_is_understood(done: tuple[Path, dict[str, Any]]) -> None:
    function, bound, _ = cli.app.parse_args(done[1]["command"].split()[1:], exit_on_error=False, print_error=False)
    o = bound.kwargs["options"]
    assert (function.__name__, o.task, o.seeds, o.preset, o.steps, o.circuit, o.equal_accuracy) == (
        "compare", "digits", 2, "smoke", 30, "none", "auto"
    )  # fmt: skip


def test_circuits_are_looked_for_where_they_are_asked_for(copy: Path) -> None:
    before = models(copy)
    result = compared(copy, ("topk",), 1, circuit="three_eight", equal_accuracy=None)
    (row,) = result["rows"]
    assert row["circuit_status"] in ("ok", "infeasible")
    found = store.read_json(copy / "topk/seed0/circuits/three_eight-masks/result.json")
    assert row["circuit_edges"] == found["edge_pruned"].get("edges")
    assert models(copy) == before


def test_show_prints_the_table(done: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    out, result = done
    assert cli.main(["show", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert result["title"] == lines[0].strip()
    for record in result["table"]:
        (line,) = [x for x in lines if all(f" {v} " in x for v in record.values())]
        assert "…" not in line
    with pytest.raises(UsageError, match="compares several models .*dense/seed0"):
        open_run(out)


# -- what is not made again ------------------------------------------------------------------------------------------


def test_what_is_done_is_only_read(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert compared(out) == result
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


def test_a_resumed_comparison_trains_what_is_left_and_ends_the_same(
    done: tuple[Path, dict[str, Any]], copy: Path
) -> None:
    (copy / "result.json").unlink()
    shutil.rmtree(copy / "topk" / "seed1")
    before = models(copy)
    result = compared(copy)
    after = models(copy)
    assert {k: after[k] for k in before} == before
    assert {k.rpartition("/model/")[0] for k in after.keys() - before.keys()} == {"topk/seed1"}

    def steady(r: dict[str, Any]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k not in SPENT} for row in r["rows"]]

    assert steady(result) == steady(done[1])


def test_a_folder_may_be_given_more_regimes_and_seeds_but_not_other_sizes(copy: Path) -> None:
    before = models(copy)
    result = compared(copy, ("topk", "l2"), 3, equal_accuracy=None)
    assert len(result["rows"]) == 6 and {r["status"] for r in result["rows"]} == {"ok"}
    assert {k: v for k, v in models(copy).items() if k in before} == before
    with pytest.raises(UsageError, match=r"other settings \(steps differ\)"):
        compared(copy, steps=31)


# -- equal accuracy --------------------------------------------------------------------------------------------------


def test_the_target_is_one_point_below_dense_and_all_settings_stand(done: tuple[Path, dict[str, Any]]) -> None:
    _, result = done
    (dense,) = [r for r in result["rows"] if (r["at"], r["regime"], r["seed"]) == ("default", "dense", 0)]
    target = result["target"]["value"]
    assert target == pytest.approx(dense["discover_accuracy"] - 0.01)
    for name in ("topk", "l1"):
        dial, tried = DIALS[name], [g for g in result["grid"] if g["regime"] == name]
        assert dial and [g["setting"] for g in tried] == [f"{dial.setting}={v:g}" for v in dial.values]
        able = [g for g in tried if g["discover_accuracy"] >= target]
        assert all(g["reaches"] == (g in able) for g in tried)
        taken = [g for g in tried if g["chosen"]]
        rows = [r for r in result["rows"] if (r["at"], r["regime"]) == ("equal", name)]
        if able:
            assert taken == [min(able, key=lambda g: g["nonzero"])]
            assert [(r["seed"], r["setting"]) for r in rows] == [(k, taken[0]["setting"]) for k in range(2)]
        else:
            assert not taken and "none of its 5 settings reaches the target" in rows[0]["status"]
    assert {g["chosen"] for g in result["grid"]} == {True, False}, "the test wants one that reaches it"


def test_the_verify_split_chooses_nothing(done: tuple[Path, dict[str, Any]], copy: Path) -> None:
    for k, at in enumerate(sorted(copy.glob("*/**/result.json"))):
        figures = store.read_json(at)
        store.write_json(at, figures | {"verify_accuracy": (k * 37 % 101) / 101, "verify_loss": float(k * 53 % 17)})
    (copy / "result.json").unlink()
    result = compared(copy)
    assert [r["accuracy"] for r in result["rows"]] != [r["accuracy"] for r in done[1]["rows"]], "nonsense was read"
    assert chosen(result) == chosen(done[1]) != []
    assert result["target"] == done[1]["target"]


def figures(nonzero: int, accuracy: float, status: str = "ok") -> dict[str, Any]:
    return {"status": status, "nonzero": nonzero, "discover_accuracy": accuracy, "held_out": 1 - accuracy}


def test_the_sparsest_that_reaches_the_target_is_chosen() -> None:
    a, b, c, d = (Case("topk", 0, v) for v in (0.02, 0.04, 0.08, 0.16))
    trained = {a: figures(10, 0.80), b: figures(20, 0.90), c: figures(40, 0.99), d: figures(5, 0.0, "diverged")}
    assert choose([a, b, c, d], trained, {"value": 0.9}, regression=False) == b
    assert choose([a, b, c, d], trained, {"value": 0.91}, regression=False) == c
    assert choose([a, b, c, d], trained, {"value": 0.995}, regression=False) is None
    assert choose([a, b, c, d], trained, {"value": None}, regression=False) is None
    assert choose([a, b, c, d], trained, {"value": 0.15}, regression=True) == b  # losses 0.2, 0.1, 0.01


def test_a_dial_that_does_not_sparsify_stands_where_it_is_nearest_to_the_target() -> None:
    a, b, c = (Case("l2", 0, v) for v in (1e-5, 1e-4, 1e-3))
    assert (
        choose([a, b, c], {a: figures(9, 0.97), b: figures(9, 0.95), c: figures(9, 0.93)}, {"value": 0.94}, False) == b
    )
    assert (
        choose([a, b, c], {a: figures(9, 0.95), b: figures(9, 0.95), c: figures(9, 0.93)}, {"value": 0.94}, False) == b
    )


def test_dense_is_trained_for_the_target_where_it_is_not_compared(tmp_path: Path) -> None:
    result = compared(tmp_path / "out", ("weight_norm",), 1)
    assert {r["regime"] for r in result["rows"]} == {"weight_norm"} and not result["grid"]
    trained = store.read_json(tmp_path / "out/dense/seed0/measured.json")
    assert result["target"]["value"] == pytest.approx(trained["discover_accuracy"] - 0.01)


def test_every_dial_is_a_setting_and_its_values_are_taken() -> None:
    assert set(DIALS) <= set(REGIMES)
    for name, dial in DIALS.items():
        if dial is not None:
            values = dial.values
            assert len(values) == 5
            ratios = [b / a for a, b in itertools.pairwise(values)]
            assert ratios == pytest.approx([dial.ratio] * 4)
            for v in values:
                REGIMES[name][1](**{dial.setting: v})


def test_a_regime_without_a_line_turns_its_density_or_its_price(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, source, dial in (
        ("new_topk", "topk", Dial("density", 0.02, 2)),
        ("new_l1", "l1", Dial("price", 1e-4 / 9, 3)),
        ("new_dense", "dense", None),
    ):
        monkeypatch.setitem(REGIMES, name, REGIMES[source])
        assert dial_of(name) == dial


# -- failures --------------------------------------------------------------------------------------------------------


def test_a_refused_pair_is_a_row_and_not_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "compare --task digits --seeds 1 --steps 2 --preset smoke --circuit none --workers 1 --set model.hidden=[8]"
    both, alone = ["--regimes", "clusterability,dense"], ["--regimes", "clusterability"]
    assert cli.main([*line.split(), *both, "--out", str(tmp_path / "two"), "--json"]) == 0
    rows = {r["regime"]: r for r in json.loads(capsys.readouterr().out)["rows"]}
    refused = rows["clusterability"]
    assert "two hidden layers" in refused["status"] and "\n" not in refused["status"]
    assert refused["accuracy"] is None and refused["nonzero"] is None
    assert rows["dense"]["status"] == "ok" and rows["dense"]["accuracy"] is not None

    assert cli.main([*line.split(), *alone, "--out", str(tmp_path / "one")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "none of the regimes worked" in err and "two hidden layers" in err


def test_a_training_that_diverges_is_a_row(tmp_path: Path) -> None:
    result = compared(tmp_path / "out", ("dense", "l2"), 1, settings=DIVERGING, equal_accuracy=None)
    status = {r["regime"]: r["status"] for r in result["rows"]}
    assert status["dense"] == "ok" and "diverged" in status["l2"]
    assert result["notes"] == [f"l2: {status['l2']}"]


def test_all_regimes_failing_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="none of the regimes worked"):
        compared(tmp_path / "out", ("l2",), 1, settings=DIVERGING, equal_accuracy=None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "digit"}, 'no task to train on named "digit". Nearest: "digits"'),
        ({"regimes": ("dense", "topkk")}, 'no regime named "topkk". Nearest: "topk"'),
        ({"regimes": ()}, "names no regime"),
        ({"circuit": "three_eigth"}, 'no task of digits named "three_eigth". Nearest: "three_eight"'),
        ({"circuit": "own.jsonl"}, 'no task of digits named "own.jsonl"'),
        ({"task": "python", "circuit": "absent.jsonl"}, "there is no such file"),
        ({"preset": "smok"}, 'Nearest: "smoke"'),
        ({"data": Path("somewhere")}, "digits brings its own data"),
        ({"task": "mnist"}, "needs --data DIR"),
        ({"task": "mnist", "data": Path("nowhere")}, "nowhere"),
        ({"settings": ("topk.density=2",)}, "density"),
        ({"settings": ("rigl.density=0.1",)}, 'no group of settings named "rigl"'),
        ({"settings": ("training.step=1",)}, 'Nearest: "steps"'),
        ({"device": "cuda:9"}, "no CUDA device"),
        ({"equal_accuracy": "best"}, "auto"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_written(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"task": "digits", "regimes": ("dense", "topk"), "seeds": 1, "out": tmp_path / "out"}
    with pytest.raises(UsageError) as refusal:
        compare_regimes(**{**asked, **change})
    assert said in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_an_accuracy_above_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="accuracy is a share"):
        compared(tmp_path / "out", ("dense",), 1, equal_accuracy=95.0)


# -- what is measured ------------------------------------------------------------------------------------------------


def test_wire_length_and_large_weights_by_hand(done: tuple[Path, dict[str, Any]]) -> None:
    run = open_run(done[0] / "l1" / "seed0")
    length, large, total = 0.0, 0, 0
    for p in (p.detach() for p in run.model.parameters() if p.dim() == 2):
        n, m = p.shape
        for i, j in itertools.product(range(n), range(m)):
            size = abs(float(p[i, j]))
            length += size * abs((i + 0.5) / n - (j + 0.5) / m)
            large += size > 1e-3
        total += n * m
    (row,) = [r for r in done[1]["rows"] if (r["at"], r["regime"], r["seed"]) == ("default", "l1", 0)]
    found = wire_length_of(run)
    assert found is not None and 0 < found == row["wire_length"] < length, "nodes were moved to where wires are short"
    assert share_above(run.model, 1e-3) == large / total == row["above_1e-3"]


@pytest.mark.parametrize("regime", ["clusterability", "gomory_hu"])
def test_modules_are_counted_where_the_model_says_which(copy: Path, regime: str) -> None:
    run, at = open_run(copy / "dense" / "seed0"), copy / "dense" / "seed0" / "model" / "config.json"
    assert modules_of(run) is None
    header = files.read_json(at)
    store.write_json(at, header | {"extra": {regime: {"modules": {"input": [0, 1, 1], "hidden0": [4, 0]}}}})
    assert modules_of(run) == 3


def test_a_fresh_process_for_every_job() -> None:
    jobs = [Job(str(i), os.getpid) for i in range(4)]
    for workers in (1, 3):
        pids = map_jobs(jobs, workers, Progress(False), fresh=True)
        assert len({*pids, os.getpid()}) == 5
    assert map_jobs([Job("one", os.getpid)], 1, Progress(False), fresh=True) != [os.getpid()]
    assert map_jobs([Job("a", int, ("3",)), Job("b", int, ("1",))], 1, Progress(False), fresh=True) == [3, 1]
    with pytest.raises(ValueError, match="invalid literal"):
        map_jobs([Job("a", int, ("3",)), Job("b", int, ("x",)), Job("c", int, ("1",))], 2, Progress(False), fresh=True)


# -- the plot --------------------------------------------------------------------------------------------------------


def test_without_matplotlib_the_rest_is_written(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("result.json", "table.md", "table.csv", "plot.svg", "plot.png"):
        (copy / name).unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = compared(copy, progress=Progress())
    assert result["plot"] == [] and not (copy / "plot.svg").exists()
    assert all((copy / name).exists() for name in ("result.json", "table.md", "table.csv"))
    assert 'pip install "openwork[plot]"' in capsys.readouterr().err


def test_the_plot_is_the_same_for_the_same_result(done: tuple[Path, dict[str, Any]], copy: Path) -> None:
    (copy / "result.json").unlink()
    compared(copy)
    assert (copy / "plot.svg").read_bytes() == (done[0] / "plot.svg").read_bytes()


def test_names_in_the_plot_hide_neither_each_other_nor_a_mean() -> None:
    pytest.importorskip("matplotlib")
    names = [*REGIMES][:8]
    rows: list[dict[str, Any]] = []
    for k, (name, seed) in enumerate(itertools.product(names, range(3))):
        accuracy, nonzero = 0.96 + 0.001 * seed, 5856 if k < 12 else 586
        rows.append(
            {"at": "default", "regime": name, "seed": seed, "status": "ok", "accuracy": accuracy, "nonzero": nonzero}
        )
    summary = [
        {
            "at": "default", "regime": r["regime"],
            "accuracy": {"mean": 0.961, "low": 0.958, "high": 0.964},
            "nonzero": {"mean": float(r["nonzero"]), "low": float(r["nonzero"]), "high": float(r["nonzero"])},
        }
        for r in rows[::3]
    ]  # fmt: skip
    figure = comparison_figure(
        {"measure": "accuracy", "seeds": 3, "target": None, "grid": [], "rows": rows, "summary": summary}
    )
    (ax,) = figure.axes
    boxes = {t.get_text(): t.get_window_extent() for t in ax.texts if t.get_text()}
    assert set(boxes) == set(names)
    for a, b in itertools.combinations(boxes.values(), 2):
        assert not (a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1)
    means = [
        ax.transData.transform((line.get_xdata()[0], line.get_ydata()[0])) for line in ax.lines if line.get_ms() == 7
    ]
    assert len(means) >= 8 and len({round(x) for x, _ in means}) == 8, "regimes in one spot are drawn beside each other"
    for x, y in means:
        assert not any(b.x0 < x < b.x1 and b.y0 < y < b.y1 for b in boxes.values())
    assert math.isclose(ax.get_ylim()[1], min(ax.get_ylim()[1], 100.5))
