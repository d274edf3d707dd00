"""A user's own model: the guide's commands run as they stand, and every fault of a model is told in one list."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from openwork import cli, own
from openwork.errors import RunError, UsageError
from openwork.graph import Graph, Link, Site
from test_docs import ROOT, openwork_lines

ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the example, in which commands are given."""
    shutil.copy(ROOT / "examples" / "own_model.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_model", raising=False)
    return tmp_path


def test_the_guide_runs(here: Path) -> None:
    commands = [w for w in openwork_lines(ROOT / "docs" / "own_model.md") if len(w) > 1]
    assert [w[0] for w in commands] == ["discover", "verify", "view"]
    for words in [*commands, ["show", "runs/mine"], ["tasks", "--run", "runs/mine"]]:
        done = subprocess.run(
            [sys.executable, "-m", "openwork", *words, "--json"], cwd=here, env=ENV, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        if words[0] == "discover":
            assert result["status"] == "ok"
            assert result["edge_pruned"]["discover_loss"] <= 0.15
            assert result["whole"]["accuracy"] > 0.9
    assert "four_or_nine" in (here / "runs" / "mine" / "page.html").read_text()
    assert str(here) not in (here / "runs" / "mine" / "run.yaml").read_text()


def asked(*words: str) -> int:
    return cli.main(list(words))


def test_wrong_names_are_refused_in_one_sentence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "broken.py").write_text("1 / 0\n")
    (here / "other.py").write_text("number = 3\ndef model():\n    return 'a model'\ndef fails():\n    return [][1]\n")
    for model, said in {
        "own_model": "is not of the form module:function",
        "nowhere:model": "there is no module nowhere",
        "own_model:modle": 'Nearest: "model"',
        "broken:model": "importing broken failed with ZeroDivisionError",
        "other:number": "is a int, not a function",
        "other:model": "returned a str; expected an nn.Module",
        "other:fails": "failed with IndexError",
        "os:getcwd": "not below",
    }.items():
        assert asked("discover", "runs/x", "--model", model, "--task", "own_model:four_or_nine") == 2
        assert said in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_function_comes_to_the_same_weights_whatever_the_threads(here: Path) -> None:
    code = "import torch\nfrom torch import nn\n\n\ndef model():\n    net = nn.Linear(1, 1)\n"
    code += "    nn.init.constant_(net.weight, torch.get_num_threads())\n    return net\n"
    (here / "of_threads.py").write_text(code)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert float(own.own_model("of_threads:model").get_parameter("weight").detach()) == 1
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_run_keeps_to_its_model_and_weights(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_task = "own_model:four_or_nine"
    begun = "discover", "runs/mine", "--task", own_task, "--set", "steps=5"
    assert asked(*begun, "--model", "own_model:model") == 0
    assert asked(*begun, "--model", "own_model:other") == 2
    assert "is a run of another model" in capsys.readouterr().err
    code = (here / "own_model.py").read_text()
    (here / "own_model.py").write_text(code.replace("lr=0.02", "lr=0.03"))
    del sys.modules["own_model"]
    with pytest.raises(RunError, match="has other weights"):
        own.own_model("own_model:model", "0" * 64)
    assert asked("verify", "runs/mine", "--circuit", "four_or_nine") == 1
    assert "has other weights than when this run began" in capsys.readouterr().err


class Small(nn.Module):
    """Two layers whose graph can be told wrongly."""

    def __init__(self, told: Graph) -> None:
        super().__init__()
        self.first, self.mid, self.second, self.out = nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.Identity()
        self.begin, self.told = nn.Identity(), told

    def forward(self, x: Tensor) -> Tensor:
        x = self.begin(x)
        return self.out(self.second(self.mid(self.first(x))) + x[:, :2])

    def graph(self) -> Graph:
        return self.told


def graph(**wrong: str) -> Graph:
    sites = (
        Site("input", 4, wrong.get("begin", "begin"), "input", 0),
        Site("hidden", int(wrong.get("hidden", 3)), "mid", "neuron", 1),
        Site("logits", 2, "out", "output", 2, prunable=False),
    )
    links = (
        Link("input>hidden", "input", "hidden", "first", (int(wrong.get("hidden", 3)), 4)),
        Link("hidden>logits", "hidden", "logits", wrong.get("second", "second"), (2, 3)),
    )
    return Graph(sites, links)


def test_a_graph_that_does_not_describe_its_model_is_seen_through() -> None:
    x = (torch.randn(8, 4),)
    said = list(own.faults(Small(graph()), x))  # the graph leaves out what goes past the hidden layer
    assert len(said) == 1
    assert "every edge ablated" in said[0]
    said = list(own.faults(Small(graph(begin="start", second="third", hidden="5")), x))
    assert len(said) == 3
    assert 'the module "start"' in said[0]
    assert "the matrix of first is (3, 4)" in said[1]
    assert 'the module "third"' in said[2]
    with pytest.raises(UsageError, match="not of the form"):
        own.own_task("four")
