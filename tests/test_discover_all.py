"""Many tasks at once, the frontier, shared memory, references, masks that fall away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jobs import touch
from openwork import bench, patching, store
from openwork.circuit import Circuit
from openwork.discover import find, trim
from openwork.discover.masks import _Learner
from openwork.errors import UsageError
from openwork.frontier import mean_frontier, nested, targets_for
from openwork.patched_run import PatchedRun
from openwork.progress import Progress
from openwork.runs import hold, open_run, reference_of
from openwork.tasks.task import Split
from openwork.workers import Job, common, map_jobs
from planted import PADDED, circuit_of, examples, planted_model
from subject_models import hooks_on, make

TARGET = 0.1


def prompts(n: int = 24) -> tuple[nn.Module, dict[str, Tensor], Split]:
    """A small transformer, its mean, and prompts of different lengths that it answers as asked."""
    model = make("transformer")
    g = torch.Generator().manual_seed(0)
    tokens, at = torch.randint(11, (n, 6), generator=g), torch.randint(2, 6, (n,), generator=g)
    with torch.no_grad():
        answer = model(tokens, at).argmax(-1)
    pair = torch.arange(n) ^ 1
    split = Split("discover", (tokens, at), answer, ((answer + 1) % 11)[:, None], pair, ("",) * n)
    return model, patching.mean_reference(model, [(tokens,)]), split


# -- masks that fall away --------------------------------------------------------------------------------------------


def test_a_search_that_drops_nothing_finds_what_the_plain_search_finds() -> None:
    """Gates in a layout are the gates under hooks: with no node ever dropped, both ways choose the same nodes."""
    model, reference, split = prompts()
    never = {"drop_below": -1.0, "drop_after": 10**6, "quiet": 10**6, "target": 0.69, "steps": 60, "pairs": 4}
    laid = find(model, reference, split, "masks", **never)
    plain = find(model, reference, split, "masks", **{**never, "compact": False})
    assert laid.circuit is not None
    assert laid.circuit == plain.circuit


def test_dropped_nodes_are_gone_for_good_and_ranked_below_the_others() -> None:
    model, reference, split = prompts()
    found = find(model, reference, split, "masks", target=0.69, steps=80, pairs=4)
    assert found.circuit is not None
    assert found.scores is not None
    alive = [row["alive"] for row in found.log]
    assert alive == sorted(alive, reverse=True)
    total = sum(s.size for s in model.graph().prunable)  # type: ignore[operator]
    assert alive[-1] < total
    flat = torch.cat(list(found.scores.values.values()))
    assert int((flat < -1).sum()) == total - alive[-1]
    assert all(bool((found.scores.values[s][found.circuit.nodes[s]] >= -1).all()) for s in found.scores.values)
    assert hooks_on(model) == 0


def test_a_search_that_never_meets_its_target_drops_nothing() -> None:
    model, reference, split = prompts()
    found = find(model, reference, split, "masks", target=1e-6, steps=60, pairs=4)
    assert found.status == "infeasible"
    assert {row["alive"] for row in found.log} == {sum(s.size for s in model.graph().prunable)}  # type: ignore[operator]


def test_a_model_without_a_layout_of_its_own_is_searched_whole() -> None:
    model, split = planted_model(), examples("discover", 40, 3)
    found = find(model, patching.zero_reference(model), split, "masks", target=TARGET, steps=60)
    assert {row["alive"] for row in found.log} == {sum(s.size for s in model.graph().prunable)}


def test_the_search_runs_less_and_less_of_the_model() -> None:
    """What the last layout holds is what is alive, not the model."""
    model, reference, split = prompts()
    seen: list[int] = []
    laid = _Learner._lay_out

    def spy(self: _Learner) -> None:
        laid(self)
        assert self.layout is not None
        seen.append(sum(len(i) for i in self.layout.node_index.values()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Learner, "_lay_out", spy)
        find(model, reference, split, "masks", target=0.69, steps=80, pairs=4)
    assert seen[-1] < 0.6 * seen[0]


# -- the frontier ----------------------------------------------------------------------------------------------------


def test_targets_are_twelve_and_the_one_asked_for() -> None:
    targets = targets_for(0.15)
    assert len(targets) == 13
    assert (targets[0], targets[-1]) == (0.01, 0.6)
    assert 0.15 in targets
    even = [x for x in targets if x != 0.15]
    ratios = [b / a for a, b in zip(even, even[1:], strict=False)]
    assert max(ratios) < 1.08 * min(ratios)  # they are rounded to a thousandth


def test_nested_circuits_are_subsets_that_meet_their_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    model, split, verify = planted_model(), examples("discover", 60, 7), examples("verify", 30, 8)
    reference = patching.zero_reference(model)
    found = find(model, reference, split, "masks", target=TARGET)
    assert found.circuit is not None
    made: list[Circuit] = []
    import openwork.frontier as frontier

    trimmed = frontier._trimmed
    monkeypatch.setattr(frontier, "_trimmed", lambda *a, **k: [t := trimmed(*a, **k), made.append(t.circuit)][0])
    run = PatchedRun(model, reference)
    points = nested(run, split, verify, found, found.circuit, TARGET, (0.02, 0.05, TARGET, 0.4, 0.65))
    assert points[-1]["target"] == 0.65
    assert len(points) >= 3
    for p in points:
        assert p["loss"] <= p["target"]
    assert [p["edges"] for p in points] == sorted((p["edges"] for p in points), reverse=True)
    for bigger, smaller in zip(made, made[1:], strict=False):
        assert (smaller & bigger) == smaller
    at = {p["target"]: p for p in points}
    assert at[TARGET]["edges"] == found.circuit.counts()["edges"]
    assert points[-1]["held_out"] == pytest.approx(run.loss(verify, made[-1]), abs=1e-6)


def test_the_mean_is_geometric_over_the_tasks_that_reach_a_target() -> None:
    def point(target: float, edges: int) -> dict[str, Any]:
        return {"target": target, "edges": edges, "nodes": edges, "held_out": target}

    tasks = [{"points": [point(0.1, 8), point(0.3, 2)]}, {"points": [point(0.3, 8)]}]
    rows = mean_frontier(tasks, (0.05, 0.1, 0.3))
    assert [(r["target"], r["tasks"]) for r in rows] == [(0.1, 1), (0.3, 2)]
    assert [r["edges"] for r in rows] == [pytest.approx(8), pytest.approx(4)]


# -- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["counterfactual", "resample"])
def test_a_trim_under_a_reference_of_the_examples_is_one_minimal_there(kind: str) -> None:
    """Checked by running every smaller circuit afresh."""
    model, split = planted_model(), examples("discover", 20, 3)
    trimmed = trim(model, circuit_of(model, PADDED), kind, split, TARGET, edges=False, seed=5)
    run = PatchedRun(model, kind, 5)
    assert run.loss(split, trimmed.circuit) == pytest.approx(trimmed.loss, abs=1e-5)
    assert trimmed.loss <= TARGET
    assert trimmed.one_minimal
    c = trimmed.circuit
    for s in c.graph.prunable:
        for i in c.nodes[s.name].nonzero().flatten().tolist():
            less = c.nodes[s.name].clone()
            less[i] = False
            smaller = Circuit.from_nodes(c.graph, {**c.nodes, s.name: less}, patching.support(model))
            assert run.loss(split, smaller) > TARGET


# -- workers that share a model --------------------------------------------------------------------------------------


def trained(path: Path) -> Path:
    """A run folder around a small trained network on digits."""
    bench.train_run("digits", "dense", None, path, 300, "smoke")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "r")


def test_workers_hold_one_model_between_them(run: Path) -> None:
    """What a worker writes, this process reads: there is one copy in memory."""
    opened = open_run(run)
    held = hold(opened)
    before = next(held.model.parameters()).detach().flatten()[:4].clone()
    jobs = [Job(str(i), touch, (i,)) for i in range(4)]
    got = map_jobs(jobs, 2, Progress(False), in_common=held)
    assert all(shared for _, shared in got)
    assert os.getpid() not in {pid for pid, _ in got}
    after = next(held.model.parameters()).detach().flatten()[:4]
    assert not torch.equal(before, after)
    assert after.tolist() == [1000.0, 1001.0, 1002.0, 1003.0]
    assert common() is None


def test_in_one_process_jobs_get_the_same_object(run: Path) -> None:
    thing = object()
    assert map_jobs([Job("a", common), Job("b", common)], 1, Progress(False), in_common=thing) == [thing, thing]
    assert common() is None


# -- the command -----------------------------------------------------------------------------------------------------

QUICK = ("steps=40",)


def figures(result: Mapping[str, Any]) -> list[Any]:
    return [{k: v for k, v in t.items() if k != "cpu_seconds"} for t in result["tasks"]]


def test_all_tasks_are_searched_and_finished_ones_are_skipped(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = "three_eight,four_nine"
    first = bench.discover_run(run, two, "masks", 0.3, 0, QUICK, workers=2)
    assert [t["task"] for t in first["tasks"]] == ["three_eight", "four_nine"]
    for t in first["tasks"]:
        assert t["status"] == "ok"
        folder = run / "circuits" / t["circuit"]
        kept = store.read_json(folder / "frontier.json")
        assert kept["points"] == t["points"]
        assert all(p["loss"] <= p["target"] for p in t["points"])
        assert not (folder / ".part").exists()
    assert [m["target"] for m in first["mean"]] == sorted(m["target"] for m in first["mean"])
    assert first["mean"][-1]["tasks"] == 2
    monkeypatch.setattr("openwork.runs.find", lambda *a, **k: pytest.fail("a finished task was searched again"))
    again = bench.discover_run(run, two, "masks", 0.3, 0, QUICK, workers=1)
    assert again["tasks"] == first["tasks"]


def test_the_circuit_is_that_of_the_task_alone(run: Path) -> None:
    """Side by side, with one model in common, nothing is found that a search alone would not find."""
    bench.discover_run(run, "three_eight,one_seven", "masks", 0.25, 0, QUICK, workers=2)
    together = store.load_circuit(run / "circuits" / "three_eight-masks")
    (run / "circuits" / "three_eight-masks" / "result.json").unlink()
    bench.discover_run(run, "three_eight", "masks", 0.25, 0, QUICK)
    assert store.load_circuit(run / "circuits" / "three_eight-masks") == together


def test_a_task_that_the_model_does_not_solve_is_named_and_left_out(run: Path) -> None:
    opened = open_run(run)
    whole = PatchedRun(opened.model, opened.reference).loss(opened.task("digits").split("discover"))
    result = bench.discover_run(run, "digits,three_eight", "masks", min(0.04, whole * 0.9), 0, QUICK, workers=1)
    digits = result["tasks"][0]
    assert digits["status"] == "unsolved"
    assert digits["whole_loss"] == pytest.approx(whole, abs=1e-6)
    assert any("digits is left out" in note for note in result["notes"])
    assert not (run / "circuits" / "digits-masks").exists()


def test_wrong_names_are_told_before_anything_is_searched(run: Path) -> None:
    for tasks, said in (("three_eight,three_eigt", "three_eigt"), ("three_eight,three_eight", "once"), (",", "once")):
        with pytest.raises(UsageError, match=said):
            bench.discover_run(run, tasks, "masks", 0.3, 0, QUICK)
    with pytest.raises(UsageError, match="granularity"):
        bench.discover_run(run, "three_eight", "masks", 0.31, 0, QUICK, granularity="atoms")
    with pytest.raises(UsageError, match="fixed reference"):
        bench.discover_run(run, "three_eight", "masks", 0.32, 0, QUICK, reference="resample")


OWN = """
import torch
from openwork.circuit import Scores

def by_hand(run, split):
    torch.manual_seed(0)
    return Scores(run.graph, {s.name: torch.rand(s.size) for s in run.graph.prunable}, "luck")

def broken(run, split):
    return 3
"""


def test_a_method_of_ones_own_under_any_reference(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ways_of_mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    for kind in ("zero", "counterfactual", "resample"):
        found = bench.discover_run(run, "three_eight", "ways_of_mine:by_hand", 0.3, 0, reference=kind)
        assert found["status"] == "ok"
        assert found["reference"] == kind
        opened = open_run(run)
        circuit = store.load_circuit(run / "circuits" / "three_eight-by_hand", opened.digest)
        assert circuit.origin["reference"] != "mean over the training mix"
        sent = reference_of(opened, opened.model, kind)
        alone = PatchedRun(opened.model, sent, 0).loss(opened.task("three_eight").split("verify"), circuit)
        assert found["edge_pruned"]["loss"] == pytest.approx(alone, abs=1e-5)
        checked = {e["claim"]: e for e in bench.verify_run(run, "three_eight-by_hand", 0)["evidence"]}
        assert checked["sufficient"]["value"] == pytest.approx(alone, abs=1e-5)
    for name, said in (("ways_of_mine:broken", "must return"), ("ways_of_mine:nope", "nope"), ("nowhere:x", "nowhere")):
        with pytest.raises(UsageError, match=said):
            bench.discover_run(run, "three_eight", name, 0.3, 0)


def test_a_stopped_command_exits_130_and_goes_on(run: Path) -> None:
    """Killed while it searches, as Ctrl-C does; the same command then ends well, with the first task's result kept."""
    command = [
        sys.executable, "-m", "openwork", "discover", str(run), "--task", "one_seven,four_nine", "--workers", "1",
        "--target", "0.2", "--json", "--set", "steps=40",
    ]  # fmt: skip
    stop = "import openwork.runs as r, sys\nfrom openwork import cli\nreal = r.trim\n"
    stop += "def trim(*a, **k):\n    raise KeyboardInterrupt\nr.trim = trim\n"
    stop += f"sys.exit(cli.main({command[3:]!r}))"
    stopped = subprocess.run([sys.executable, "-c", stop], capture_output=True, text=True, check=False)
    assert stopped.returncode == 130, stopped.stderr
    assert "go on" in stopped.stderr
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [t["status"] for t in json.loads(done.stdout)["tasks"]] == ["ok", "ok"]


def test_the_frontier_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from openwork.views.frontier import draw_frontier

    points = [{"target": t, "edges": e} for t, e in ((0.01, 90), (0.1, 30), (0.6, 4))]
    tasks = [{"task": name, "points": points} for name in ("first", "second")] + [{"task": "none", "points": []}]
    svg = draw_frontier({"tasks": tasks, "mean": points}, tmp_path / "f.svg").read_text()
    assert svg.count("<svg") == 1
    assert "geometric mean" in svg
    assert "second" in svg
    assert "none</text>" not in svg
