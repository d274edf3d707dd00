"""A user's own model: the guide's commands run as they stand, and every fault of a model is told in one list."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import openwork
from openwork import cli, own
from openwork.errors import RunError, UsageError
from openwork.explain.words.predicates import KINDS
from openwork.explained import Work, legend_of
from openwork.forms import _flat
from openwork.graph import Graph, Link, Site
from openwork.tasks.images import make_digit_task
from openwork.tasks.task import Split, Task
from openwork.training import REGIMES
from openwork.verify import VERIFIERS
from test_docs import ROOT, blocks, openwork_lines

EXAMPLES = ("own_model", "own_table", "own_gpt", "own_parts")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples, in which commands are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in EXAMPLES:
        shutil.copy(ROOT / "examples" / f"{name}.py", tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delitem(sys.modules, "parts", raising=False)
    return tmp_path


GUIDE = ROOT / "docs" / "own_model.md"


def guide(run: str) -> list[list[str]]:
    """The guide's commands about a run, as words after `openwork`."""
    return [w for w in openwork_lines(GUIDE) if len(w) > 1 and w[1] == run]


def follow(commands: Sequence[Sequence[str]], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What these commands answer, as JSON."""
    out = []
    for words in commands:
        assert cli.main([*words, "--json"]) == 0, f"{words}: {capsys.readouterr().err}"
        out.append(json.loads(capsys.readouterr().out))
    return out


def test_the_guide_runs_on_a_module_with_a_graph(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = guide("runs/mine")
    assert [w[0] for w in commands] == ["discover", "verify", "explain", "view"]
    found, *_ = follow([*commands, ["show", "runs/mine"], ["tasks", "--run", "runs/mine"]], capsys)
    assert found["status"] == "ok"
    assert found["edge_pruned"]["discover_loss"] <= 0.15
    assert found["whole"]["accuracy"] > 0.9
    assert "four_or_nine" in (here / "runs" / "mine" / "page.html").read_text()
    assert str(here) not in (here / "runs" / "mine" / "run.yaml").read_text()
    for refused in (["why", "--example", "0"], ["decompile", "--out", "p.py"]):
        assert asked(refused[0], "runs/mine", "--circuit", "four_or_nine", *refused[1:]) == 2
        assert "read_sequential" in capsys.readouterr().err
    assert asked("export", "runs/mine", "--to", "c", "--out", "c") == 2
    assert "read_sequential" in capsys.readouterr().err


def test_the_guide_runs_on_a_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path("own_table.py", run_name="__main__")
    commands = [w for w in guide("runs/clinic") if "own_parts:by_weight" not in w and "sick-by_weight" not in w]
    assert [w[0] for w in commands] == [
        "discover", "verify", "explain", "why", "decompile", "export", "view", "explain",
    ]  # fmt: skip
    found, _, words, why, program, shipped, _, mine = follow(commands, capsys)
    assert found["status"] == "ok"
    names = own.own_task("own_table:sick").names
    assert len(names) == 11
    assert any(n in e["text"] for e in words["explanations"] for n in names), "features are called by their names"
    assert {x["name"].rpartition(" = ")[0] for x in why["inputs"]} <= set(names)
    assert why["decision"]["answer"]["text"] in ("well", "sick")
    assert [e["value"] for e in program["evidence"] if e["claim"] == "program_decides_as_circuit"] == [1.0]
    assert "smoker_is_yes" in (here / "sick.py").read_text()
    assert shipped["largest_difference"] < 1e-5
    assert "smoker is yes" in (here / "device" / "model.c").read_text()
    assert "smoker is" in (here / "runs" / "clinic" / "circuits" / "sick-auto" / "dossier.json").read_text()
    assert {e["author"] for e in mine["explanations"]} == {"loudest"}
    assert any(e["evidence"] for e in mine["explanations"])
    assert asked("why", "runs/clinic", "--circuit", "sick", "--input", "1,2") == 2
    assert "this model reads 11: age, age is missing" in capsys.readouterr().err
    for wrong, said in {
        "nothing": "returned a NoneType for",
        "fails": "the author \"parts:fails\" failed with KeyError: 'x' (parts.py, line 4)",
    }.items():
        (here / "parts.py").write_text("def nothing(d):\n    return None\ndef fails(d):\n    return {}['x']\n")
        assert asked("explain", "runs/clinic", "--circuit", "sick", "--author", f"parts:{wrong}") == 2
        assert said in capsys.readouterr().err
    assert asked("discover", "runs/clinic", "--task", "own_table:sick", "--method", "parts:fails") == 2
    assert 'the method "parts:fails" failed with TypeError' in capsys.readouterr().err
    assert asked("discover", "runs/clinic", "--task", "prompts.jsonl") == 2
    assert "read_jsonl_task(path, tokenizer)" in capsys.readouterr().err
    assert asked("decompile", "runs/clinic", "--out", "f.py") == 2
    assert "was not trained on a formula" in capsys.readouterr().err
    assert asked("modules", "runs/clinic", "--modules", "2", "--draws", "2") == 0


@pytest.mark.slow
def test_the_guide_runs_on_a_transformer(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path("own_gpt.py", run_name="__main__")
    commands = guide("runs/gpt")
    assert [w[0] for w in commands] == ["discover", "verify", "explain", "why", "export", "view", "discover"]
    found, _, words, why, *_, coarse = follow(commands, capsys)
    assert found["status"] == coarse["status"] == "ok"
    assert any("[" in e["text"] for e in words["explanations"]), "tokens are told by their letters"
    assert why["decision"]["model_says"]["text"] == "]"
    assert asked("why", "runs/gpt", "--circuit", "brackets-auto", "--input", "ABC") == 2
    assert "the tokenizer of the task" in capsys.readouterr().err


@pytest.mark.slow
def test_the_guide_runs_with_parts_of_ones_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path("own_table.py", run_name="__main__")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openwork.training, "REGIMES", dict(REGIMES))
        patch.setattr(openwork.verify, "VERIFIERS", dict(VERIFIERS))
        patch.setattr(openwork, "REGIMES", openwork.training.REGIMES, raising=False)
        patch.setattr(openwork, "VERIFIERS", openwork.verify.VERIFIERS, raising=False)
        runpy.run_path("own_parts.py", run_name="__main__")
    assert "small: " in capsys.readouterr().out
    assert "edges" not in REGIMES and "small" not in VERIFIERS
    commands = [w for w in guide("runs/clinic") if "own_parts:by_weight" in w or "sick-by_weight" in w]
    begin = guide("runs/clinic")[0]
    _, found, checked = follow([begin, *commands], capsys)
    assert found["status"] == "ok" and checked["evidence"]


BLOCKS = [b for b, _ in blocks(GUIDE, "python")]
ALONE = {"predicates": 0, "method": 0}  # page -> its block of Python that needs no run and no endpoint


@pytest.mark.parametrize("page", ALONE)
def test_python_on_other_pages_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block, _ = list(blocks(ROOT / "docs" / f"{page}.md", "python"))[ALONE[page]]
    exec(block, {})


def test_the_page_of_predicates_has_every_kind_with_its_fields() -> None:
    (table,) = (b for b, _ in blocks(ROOT / "docs" / "predicates.md", "text"))
    told = {entry.split()[0]: entry.split()[1:] for entry in re.split(r"\n| {2,}", table) if entry.strip()}
    have = {
        name: [f if i.is_required() else f"[{f}]" for f, i in kind.model_fields.items() if f != "kind"]
        for name, kind in KINDS.items()
    }
    assert told == have


@pytest.mark.parametrize("block", [b for b in BLOCKS if "transformers" not in b])
def test_the_guides_python_runs(block: str) -> None:
    exec(block, {"ow": openwork})


@pytest.mark.slow
def test_the_guides_python_for_hugging_face_runs() -> None:
    pytest.importorskip("transformers")
    (block,) = (b for b in BLOCKS if "transformers" in b)
    said: dict[str, Any] = {}
    exec(block, said)
    tokens = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(said["ours"](tokens), said["theirs"].eval()(tokens).logits, atol=1e-4, rtol=1e-4)


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


# -- tasks -----------------------------------------------------------------------------------------------------------


def good(**wrong: Any) -> Task:
    """A task on four features with nothing wrong, but for what is told."""
    x = torch.arange(32.0).reshape(8, 4)
    splits = {}
    for k, name in enumerate(("discover", "verify", "explain")):
        answer = torch.tensor([0, 1] * 4)
        split = Split(name, (x + 100 * k,), answer, (1 - answer)[:, None], torch.full((8,), -1), tuple("abcdefgh"))
        splits[name] = replace(split, **wrong.get(name, {}))
    splits = {n: s for n, s in splits.items() if n not in wrong.get("without", ())}
    return Task("good", "?", splits, ("no", "yes"), wrong.get("names", ()))


def test_a_task_without_fault_has_none() -> None:
    assert list(own.task_faults(good())) == []
    assert list(own.task_faults(good(names=tuple("abcd")))) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"without": ("verify",)}, 'it has no split "verify"'),
        ({"discover": {"inputs": (torch.full((8, 4), torch.nan),)}}, "holds nan or infinity in 8 of 8 examples"),
        ({"verify": {"inputs": (torch.arange(32.0).reshape(8, 4),)}}, "8 examples of split discover are in"),
        ({"explain": {"answer": torch.zeros(8)}}, "split explain: answer is torch.float32"),
        ({"discover": {"wrong": torch.tensor([[0], [1]] * 4)}}, "the right answer is among the wrong ones in 8 of 8"),
        ({"discover": {"wrong": torch.full((8, 1), -1)}}, "an answer is below 0"),
        ({"discover": {"wrong": torch.zeros(8, 0, dtype=torch.long)}}, "no example has a wrong answer"),
        ({"discover": {"pair": torch.full((8,), 8)}}, "pair holds the number of an example"),
        ({"names": tuple("abc")}, "names has 3 entries; expected one name for every feature, 4 here"),
    ],
)  # fmt: skip
def test_every_fault_of_a_task_is_told(wrong: dict[str, Any], said: str) -> None:
    faults = list(own.task_faults(good(**wrong)))
    assert len(faults) == 1
    assert said in faults[0]


def test_tokens_after_the_one_that_is_asked_do_not_tell_examples_apart() -> None:
    def task(first: int) -> Task:
        splits = {
            name: Split(
                name,
                (torch.tensor([[first if k else 1, 2, pad]]), torch.tensor([1])),
                torch.tensor([0]),
                torch.tensor([[1]]),
                torch.tensor([-1]),
                ("x",),
            )
            for k, (name, pad) in enumerate((("discover", 7), ("verify", 8)))
        }
        return Task("t", "?", splits, ("no", "yes"))

    assert list(own.task_faults(task(first=3))) == []
    assert "are in split verify too" in next(own.task_faults(task(first=1)))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"inputs": torch.zeros(8, 4)}, "inputs is a Tensor; expected a tuple"),
        ({"inputs": ([[0.0]] * 8,)}, r"inputs\[0\] is a list"),
        ({"wrong": torch.zeros(8, dtype=torch.long)}, r"wrong has the shape \(8,\); expected \[N, m\]"),
        ({"texts": ("a",)}, "texts has 1 examples where answer has 8"),
    ],
)
def test_a_split_whose_parts_do_not_fit_is_refused_in_words(part: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(good().split("discover"), **part)


def test_an_output_is_called_by_its_place_among_those_asked_or_among_all() -> None:
    def task(answers: tuple[str, ...], *outputs: int) -> Task:
        right, other = torch.tensor([outputs[0]]), torch.tensor([outputs[1:]])
        return Task("t", "?", {"discover": Split("discover", (), right, other, torch.tensor([-1]), ("x",))}, answers)

    assert [task(("four", "nine"), 9, 4).said(i) for i in (4, 9, 0)] == ["four", "nine", "0"]
    assert [task(("none", "mild", "severe"), 1, 2).said(i) for i in (0, 1, 2, 3)] == ["none", "mild", "severe", "3"]
    assert [task(("mild", "severe"), 1, 2).said(i) for i in (0, 1, 2)] == ["0", "mild", "severe"]


def test_a_graph_whose_parts_do_not_fit_is_refused_in_words() -> None:
    a, b = Site("a", 2, "", "input", 0), Site("b", 2, "", "output", 1)
    with pytest.raises(UsageError, match='two sites share the name "a"'):
        Graph((a, a), ())
    with pytest.raises(UsageError, match="joins c; there is no such site"):
        Graph((a, b), (Link("l", "a", "c", "", (2, 2)),))
    with pytest.raises(UsageError, match="points backwards: a stands before b"):
        Graph((a, b), (Link("l", "b", "a", "", (2, 2)),))


class Odd(Small):
    """A module that does something else."""

    def __init__(self, does: str) -> None:
        super().__init__(graph())
        self.does = does

    def forward(self, x: Tensor) -> Tensor:
        if self.does == "fails":
            raise RuntimeError("no such thing")
        return super().forward(x).softmax(-1) if self.does == "probabilities" else super().forward(x)[:, 0]

    def graph(self) -> Graph:
        if self.does == "no graph":
            raise KeyError("site")
        return super().graph()


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("fails", r"forward fails on examples of the task (float32 [8, 4]) with RuntimeError: no such thing"),
        ("probabilities", "forward returns probabilities"),
        ("one number", "does not return one row of logits"),
        ("no graph", "graph() failed with KeyError: 'site'"),
    ],
)
def test_a_module_that_does_something_else_is_seen_through(does: str, said: str) -> None:
    faults = list(own.faults(Odd(does), (torch.randn(8, 4),)))
    assert len(faults) == 1
    assert said in faults[0]


def test_an_image_keeps_its_shape_for_readers_and_is_a_row_of_numbers_to_a_program() -> None:
    rows = torch.arange(8 * 24.0).reshape(8, 24)
    task = good(**{s: {"inputs": (rows.view(8, 2, 3, 4) + 200 * k,)} for k, s in enumerate(("discover", "verify"))})
    flat = _flat(task).split("discover").inputs[0]
    assert flat.shape == (8, 24)
    assert torch.equal(flat, rows)
    assert _flat(good()).split("verify").inputs[0].shape == (8, 4)
    run: Any = SimpleNamespace(subject=SimpleNamespace(name="own"))
    assert legend_of(run, task.split("discover")).shape == (3, 4, 2)


def test_the_outputs_of_a_card_have_the_names_of_the_task() -> None:
    task = make_digit_task("three_eight")
    site = Site("logits", 10, "out", "output", 1)
    work: Any = SimpleNamespace(
        task=task, examples=task.split("explain"), circuit=SimpleNamespace(graph=Graph((site,), ()))
    )
    assert list(Work._outputs(work)) == list("0123456789")
