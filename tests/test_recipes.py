"""Every file of recipes/ is understood and begins to train what it says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from idx_files import write_files
from openwork import bench, cli
from openwork.files import read_json, read_yaml
from openwork.tasks.subjects import SUBJECTS

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


def test_there_are_recipes_for_the_suite_and_each_says_where_it_is_from() -> None:
    tasks = {read_yaml(path)["task"] for path in RECIPES}
    assert tasks == {n for n in SUBJECTS if n not in ("python", "patterns", "digits", "cifar10", "flows")}
    for path in RECIPES:
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert head == path.read_text().splitlines()[: len(head)], f"{path.name}: the comment comes first"
        assert any("arXiv" in line for line in head) and any(line.startswith("# Departs: ") for line in head), path.name


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_trains(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = read_yaml(path)
    out = tmp_path / "run"
    line = ["train", "--config", str(path), "--steps", "2", "--out", str(out), "--json"]
    if SUBJECTS[recipe["task"]].data:
        line += ["--data", str(write_files(tmp_path / "data"))]
    assert cli.main(line) == 0, capsys.readouterr().err
    assert math.isfinite(read_json(out / "result.json")["verify_loss"])
    planned = read_yaml(out / "run.yaml")
    assert planned["subject"] == recipe["task"] and list(planned["regimes"]) == [recipe["regime"]]
    asked = [item.partition("=")[0].split(".") for item in recipe["set"]]
    groups = {"training": planned["training"], "model": planned["model"], "data": planned, **planned["regimes"]}
    assert all(name in groups[group] for group, name in asked)


def test_steps_of_a_recipe_are_its_own_where_no_flag_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(bench, "train_run", lambda *a: seen.append(a[4]) or {"run": "x", "regime": "bimt"})
    assert all(cli.main(["train", "--config", str(path)]) == 0 for path in RECIPES)
    assert seen == [read_yaml(path)["steps"] for path in RECIPES]
