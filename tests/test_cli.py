"""The command line as its users meet it: what it passes on, what it prints where, and how it says no."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import openwork
from openwork import cli
from openwork.errors import RunError, UsageError, several
from openwork.progress import Progress

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
COMMANDS = tuple(cli.EXAMPLES)


class FakeBench:
    """Stands in for `openwork.bench`: notes what it was asked and answers, or raises, as told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.answer: Any = {"run": "runs/x"}

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.calls.append((name, args))
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

        return call

    @property
    def asked(self) -> tuple[str, tuple[Any, ...]]:
        """The one call there was, without the progress that comes last."""
        ((name, args),) = self.calls
        return name, tuple(a for a in args if not isinstance(a, Progress))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> FakeBench:
    fake = FakeBench()
    monkeypatch.setitem(sys.modules, "openwork.bench", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(openwork, "bench", fake, raising=False)
    for other in (
        "compare",
        "ground_truth",
        "transfer",
        "decisions",
        "decision_rows",
        "intrusion",
        "shipping",
        "watch",
        "audit",
        "reporting",
    ):
        monkeypatch.setitem(sys.modules, f"openwork.{other}", fake)  # type: ignore[arg-type]
    return fake


def program(*args: str, cwd: Path | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """The command as a program of its own."""
    return subprocess.run(
        [sys.executable, "-m", "openwork", *args],
        env=ENV, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


# -- what it passes on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("run quotes", ("run_quotes", (Path("runs/quotes"), "cpu", 0, "cpu", None, None, None, ()))),
        (
            "run quotes --preset gpu --out o --seed 3 --corpus c --workers 2 --tasks for_while my.jsonl",
            ("run_quotes", (Path("o"), "gpu", 3, "cuda", Path("c"), 2, ("for_while", "my.jsonl"), ())),
        ),
        ("run digits --device cuda:1", ("run_digits", (Path("runs/digits"), "cpu", 0, "cuda:1", None, ()))),
        (
            "run digits --preset gpu --device cpu --set topk.biases=true masks.steps=9",
            ("run_digits", (Path("runs/digits"), "gpu", 0, "cpu", None, ("topk.biases=true", "masks.steps=9"))),
        ),
        (
            "train --task python --regime topk --density 0.05 --out runs/a",
            ("train_run", ("python", "topk", 0.05, Path("runs/a"), None, "cpu", 0, "cpu", None, None, ())),
        ),
        (
            "train --task digits --regime l1 --steps 7 --seed 1 --preset smoke",
            ("train_run", ("digits", "l1", None, Path("runs/digits-l1"), 7, "smoke", 1, "cpu", None, None, ())),
        ),
        (
            "train --task mnist --data d --regime dense",
            (
                "train_run",
                ("mnist", "dense", None, Path("runs/mnist-dense"), None, "cpu", 0, "cpu", None, Path("d"), ()),
            ),
        ),
        (
            "run flows --preset smoke --data f --label l --ignore a,b c --classes two --seeds 2",
            (
                "run_flows",
                (
                    Path("runs/flows"),
                    "smoke",
                    2,
                    0,
                    "cpu",
                    Path("f"),
                    "l",
                    None,
                    ("a", "b", "c"),
                    "",
                    True,
                    0.01,
                    None,
                    (),
                ),
            ),
        ),
        ("export r --to c --out d", ("export_model", (Path("r"), "c", Path("d")))),
        ("watch f --model m --out o", ("watch", (Path("m"), Path("f"), Path("o"), False, None, sys.stdout))),
        ("audit verify f --key-env K", ("check_log", (Path("f"), "K"))),
        ("view r --log a.jsonl --alert 3", ("view_run", (Path("r"), Path("a.jsonl"), 3))),
        ("report r", ("write_report", (Path("r"), Path("r/report.html"), None, False))),
        ("report r --out o.html --pdf --key-env K", ("write_report", (Path("r"), Path("o.html"), "K", True))),
        ("report --check o.html", ("check_report", (Path("o.html"), None))),
        ("audit replay f --model m", ("check_replay", (Path("f"), Path("m")))),
        (
            "why r --circuit c --input a,b --answer 4 --html h.html",
            ("why_run", (Path("r"), "c", "a,b", None, "4", None, 10, Path("h.html"), True)),
        ),
        (
            "why r --circuit c --example 2 --top 3 --json",
            ("why_run", (Path("r"), "c", None, 2, None, None, 3, None, False)),
        ),
        ("why r --circuit c --rows i --out o", ("why_table", (Path("r"), "c", Path("i"), Path("o"), 3))),
        (
            "compare --task digits --regimes dense,l1 topk --seeds 2 --preset smoke",
            (
                "compare_regimes",
                (
                    "digits",
                    ("dense", "l1", "topk"),
                    2,
                    Path("runs/digits-compared"),
                    "smoke",
                    "cpu",
                    None,
                    None,
                    None,
                    None,
                    (),
                    None,
                ),
            ),
        ),
        (
            "compare --task mnist --data d --regimes dense --circuit none --equal-accuracy 0.9 --steps 7 --workers 3 "
            "--device cuda:1 --out o --set topk.floor=1",
            (
                "compare_regimes",
                ("mnist", ("dense",), 5, Path("o"), "cpu", "cuda:1", Path("d"), "none", 0.9, 7, ("topk.floor=1",), 3),
            ),
        ),
        (
            "compare --task digits --regimes l1 --equal-accuracy auto",
            (
                "compare_regimes",
                ("digits", ("l1",), 5, Path("runs/digits-compared"), "cpu", "cpu", None, None, "auto", None, (), None),
            ),
        ),
        ("tasks", ("list_tasks", (None,))),
        ("tasks --run runs/a", ("list_tasks", (Path("runs/a"),))),
        (
            "discover runs/a --task single_double_quote",
            (
                "discover_run",
                (Path("runs/a"), "single_double_quote", "auto", 0.15, 0, (), "mean", "weights", None, None),
            ),
        ),
        (
            "discover runs/a --task t.jsonl --method other --target 0.3 --seed 2 --set calibrate=true",
            (
                "discover_run",
                (Path("runs/a"), "t.jsonl", "other", 0.3, 2, ("calibrate=true",), "mean", "weights", None, None),
            ),
        ),
        ("verify runs/a --circuit c --seed 4", ("verify_run", (Path("runs/a"), "c", 4, False, None))),
        ("verify runs/a --circuit c --searches --workers 2", ("verify_run", (Path("runs/a"), "c", 0, True, 2))),
        (
            "bench planted --methods a,b c --cases x --out f.json",
            ("bench_planted", (("a", "b", "c"), ("x",), 0, None, Path("f.json"), "weights")),
        ),
        ("modules runs/a", ("modules_run", (Path("runs/a"), None, None, 20, 0))),
        (
            "modules runs/a --modules 3 --partition spectral --draws 50 --seed 2",
            ("modules_run", (Path("runs/a"), 3, "spectral", 50, 2)),
        ),
        ("show runs/a", ("show_run", (Path("runs/a"),))),
        ("view runs/a", ("view_run", (Path("runs/a"), None, None))),
    ],
)
def test_flags_arrive(bench: FakeBench, line: str, asked: tuple[str, tuple[Any, ...]]) -> None:
    assert cli.main(line.split()) == 0
    assert bench.asked == asked


def test_the_bench_takes_what_the_command_line_passes() -> None:
    """The calls above, held against the real functions."""
    import inspect

    real = pytest.importorskip("openwork.bench")
    progress = Progress(enabled=False)
    for name, args in (
        ("run_quotes", (Path("o"), "cpu", 0, "cpu", None, None, None, (), progress)),
        ("run_digits", (Path("o"), "cpu", 0, "cpu", None, (), progress)),
        ("train_run", ("python", "topk", 0.05, Path("o"), None, "cpu", 0, "cpu", None, None, (), progress)),
        ("list_tasks", (None,)),
        ("discover_run", (Path("o"), "t", "masks", 0.15, 0, (), progress, None)),
        ("verify_run", (Path("o"), "c", 0, progress, True, 2)),
        ("modules_run", (Path("o"), 4, "blocks", 20, 0, progress)),
        ("show_run", (Path("o"),)),
        ("view_run", (Path("o"), Path("l"), 3, progress)),
    ):
        inspect.signature(getattr(real, name)).bind(*args)
    from openwork.compare import compare_regimes

    inspect.signature(compare_regimes).bind(
        "digits", ("dense",), 5, Path("o"), "cpu", "cpu", None, None, "auto", None, (), None, progress
    )


# -- YAML ------------------------------------------------------------------------------------------------------------


def test_a_yaml_file_gives_values_and_flags_win(bench: FakeBench, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"seed": 5, "tasks": ["for_while", "with_open"], "preset": "smoke", "out": "there"}))
    assert cli.main(["run", "quotes", "--config", str(file), "--seed", "6"]) == 0
    assert bench.asked == (
        "run_quotes", (Path("there"), "smoke", 6, "cpu", None, None, ("for_while", "with_open"), ())
    )  # fmt: skip


def test_a_yaml_file_may_hold_what_is_required_and_json(
    bench: FakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("task: digits\nsteps: 9\njson: true\n")
    assert cli.main(["train", "--config", str(file)]) == 0
    assert bench.asked[1][0] == "digits" and bench.asked[1][4] == 9
    assert json.loads(capsys.readouterr().out) == bench.answer


def test_an_empty_yaml_file_changes_nothing(bench: FakeBench, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing yet\n")
    assert cli.main(["show", "runs/a", "--config", str(tmp_path / "c.yaml")]) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sed: 3\n", 'no setting named "sed". Nearest: "seed".'),
        ("density: 0.1\n", 'no setting named "density"'),
        ("config: other.yaml\n", 'no setting named "config"'),
        ("sed: 3\npresett: cpu\n", "2 problems"),
        ("seed: two\n", "--seed two"),
        ("preset: cp\n", 'Nearest: "cpu"'),
        ("seed:\n", "seed needs a value"),
        ("seed: {a: 1}\n", "seed needs a value"),
        ("- seed\n", "holds a list"),
        ("seed: [\n", "not YAML"),
        ("just text\n", "holds a str"),
    ],
)
def test_a_wrong_yaml_file_is_refused(
    bench: FakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert cli.main(["run", "quotes", "--config", str(tmp_path / "c.yaml")]) == 2
    assert said in refused(capsys)
    assert not bench.calls


def test_a_missing_or_binary_yaml_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "quotes", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "there is no such file" in refused(capsys)
    (tmp_path / "b.yaml").write_bytes(b"\x80\x81")
    assert cli.main(["run", "quotes", "--config", str(tmp_path / "b.yaml")]) in (1, 2)
    assert "not UTF-8" in refused(capsys)


# -- how it says no --------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr says, after checking that stdout is empty and no traceback is shown."""
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("openwork: ") and "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rnu quotes", 'Did you mean "run"?'),
        ("run", "WHAT"),
        ("run quote", 'Did you mean "quotes"?'),
        ("run quotes digits", '"digits" is more than this command takes'),
        ("run quotes --sed 3", "Did you mean --seed?"),
        ("run quotes --density 0.1", "Unknown option"),
        ("run quotes --seed", "requires an argument"),
        ("run quotes --seed -1", "greater than or equal to 0"),
        ("run quotes --seed 1.5", "valid integer"),
        ("run quotes --preset cp", 'Nearest: "cpu"'),
        ("run quotes --workers 0", "greater than or equal to 1"),
        ("run quotes --device gpu", "--device gpu"),
        ("run quotes --preset cp --seed -1", "2 problems"),
        ("run digits --corpus here", "takes no --corpus"),
        ("run digits --corpus here --tasks a", "takes no --corpus and no --tasks"),
        ("train", "--task"),
        ("train --task python --density 0", "greater than 0"),
        ("train --task python --density 1.2", "less than or equal to 1"),
        ("compare --task digits", "--regimes"),
        ("compare --task digits --regimes dense --seeds 0", "greater than or equal to 1"),
        (
            "compare --task digits --regimes dense --equal-accuracy best",
            "--equal-accuracy best: give auto, or a number",
        ),
        (
            "compare --task digits --regimes dense --equal-accuracy 0",
            "--equal-accuracy 0: give auto, or a number above 0",
        ),
        ("compare --task digits --regimes dense --seed 1", "--seed"),
        ("discover", "RUN"),
        ("discover runs/a", "--task"),
        ("discover runs/a --task t --target 0", "greater than 0"),
        ("verify runs/a", "--circuit"),
        ("show", "RUN"),
        ("view a b", '"b" is more than'),
        ("modules", "RUN"),
        ("modules a --modules 1", "greater than or equal to 2"),
        ("modules a --partition spectrl", 'Nearest: "spectral"'),
        ("modules a --draws 1", "greater than or equal to 2"),
    ],
)
def test_wrong_usage_is_one_clear_message(
    bench: FakeBench, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    assert cli.main(line.split()) == 2
    assert said in refused(capsys)
    assert not bench.calls


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (UsageError('no task named "x".'), 2, 'openwork: no task named "x".'),
        (several("t.jsonl", ["line 1: bad", "line 2: worse"]), 2, "line 2: worse"),
        (RunError("model.safetensors is damaged."), 1, "openwork: model.safetensors is damaged."),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a/x"), 1, "the disk is full (runs/a/x)"),
        (PermissionError(errno.EACCES, "Permission denied", "/etc/x"), 1, "Permission denied (/etc/x)"),
        (KeyboardInterrupt(), 130, "Give the same command again"),
    ],
)
def test_faults_of_the_world_have_their_exit_code(
    bench: FakeBench, capsys: pytest.CaptureFixture[str], fault: BaseException, code: int, said: str
) -> None:
    bench.answer = fault
    assert cli.main(["show", "runs/a"]) == code
    assert said in refused(capsys)


def test_a_fault_of_ours_keeps_its_traceback(bench: FakeBench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.answer = ZeroDivisionError("a bug")
    assert cli.main(["show", "runs/a", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" in err and "a bug" in err and "please report it" in err


# -- what it prints where --------------------------------------------------------------------------------------------

RESULT = {
    "run": Path("runs/q"),
    "seconds": 12.5,
    "tasks": [
        {
            "task": "for_while",
            "sparse": {"status": "ok", "nodes": 12, "edges": 1234, "loss": 0.1512, "accuracy": 0.985},
            "dense": {"status": "infeasible"},
            "ratio": float("nan"),
        }
    ],
    "ratio_geomean": float("inf"),
    "evidence": [
        {"task": "for_while", "claim": "sufficient", "verdict": "holds", "sentence": "It does [the] task.", "p": 0.01}
    ],
    "interval": (1.0, 2.0),
}


def test_json_is_one_object_and_nothing_else(bench: FakeBench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.answer = RESULT

    def chatty(*args: Any) -> Any:
        print("a library prints this")
        args[-1].log("for the person who waits")
        return RESULT

    bench.view_run = chatty  # type: ignore[attr-defined]
    assert cli.main(["view", "runs/a", "--json"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    data = json.loads(out, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert data["run"] == "runs/q" and data["ratio_geomean"] is None and data["interval"] == [1.0, 2.0]
    assert "a library prints this" in err and "for the person who waits" in err


def test_a_person_gets_tables(bench: FakeBench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.answer = RESULT
    assert cli.main(["show", "runs/a"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in ("for_while", "1,234", "0.151", "98.5%", "infeasible", "It does [the] task.", "runs/q"):
        assert text in out
    assert "0.01" not in out, "the numbers of evidence are for the page and --json"


def test_tables_show_any_plain_result(capsys: pytest.CaptureFixture[str]) -> None:
    from openwork.tables import cell, show_result

    show_result(
        {
            "model": {"kind": "mlp", "hidden": (4, 4), "note": "[bold]"},
            "figures": {},
            "circuits": [{"circuit": "a-masks", "evidence": [{"claim": "robust", "sentence": "Yes."}]}],
            "evidence": {"a": [{"claim": "necessary", "sentence": "No."}]},
            "ratios": {"node_based": {"geomean": 17.25, "left_out": ["t"]}, "pairs": {"geomean": None}},
            "wide": {name: {f"figure_{i}": i for i in range(9)} for name in ("this", "that")},
            "none": [],
        }
    )
    out = capsys.readouterr().out
    for text in (
        "hidden",
        "4, 4",
        "[bold]",
        "a-masks: evidence",
        "Yes.",
        "evidence: a",
        "No.",
        "none: none",
        "17.2",
        "that",
    ):
        assert text in out
    assert [cell(v) for v in (True, None, 0.12345, 12345.6, 12345, "x", [])] == [
        "yes", "-", "0.123", "12,346", "12,345", "x", "none"
    ]  # fmt: skip


def test_a_result_may_bring_several_tables_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    from openwork.tables import show_result

    wide = {f"column {i}": "x" * 30 for i in range(9)}
    tables = {"first": [{"a": 1}], "second": [wide], "none": []}
    show_result({"run": "runs/a", "key": "secret", "tables": tables, "notes": ["a [note]"], "tasks": [{"b": 2}]})
    out = capsys.readouterr().out
    assert out.index("first") < out.index("second") < out.index("a [note]") < out.index("run: runs/a")
    assert "secret" not in out and "none" not in out
    assert any(line.count("x" * 30) == 9 for line in out.splitlines()), "as wide as it has to be"


def test_progress_is_silent_when_asked_and_plain_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(enabled=False) as quiet:
        quiet.log("unheard")
        quiet.task("t", 3).update(1)
    assert capsys.readouterr() == ("", "")
    with Progress() as lines:
        lines.log("[heard]")
        lines.task("no bar here", 3).update(1, loss=0.5)
    assert capsys.readouterr() == ("", "[heard]\n")


def test_progress_bars_show_how_far(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(enabled=True) as bars:
        steps = bars.task("train [sparse]", total=4)
        steps.update(3, loss=0.123456, note="ok")
        assert bars._bars is not None
        (task,) = bars._bars.tasks
        assert (task.completed, task.total, task.fields["info"]) == (3, 4, "loss 0.1235 note ok")
        steps.finish()
        assert not bars._bars.tasks
        steps.update(4)
    assert capsys.readouterr().out == ""


# -- as a program ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_its_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"Example: {cli.EXAMPLES[command]}" in out
    assert "--json" in out and "--config" in out


def test_the_examples_are_all_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(c in listed for c in COMMANDS)
    assert {c for c in cli.app if not c.startswith("-")} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_are_understood(bench: FakeBench, command: str) -> None:
    assert cli.main(cli.EXAMPLES[command].split()[1:]) == 0
    assert len(bench.calls) == 1


def test_help_and_version_import_nothing_heavy() -> None:
    assert program("--version").stdout.strip() == openwork.__version__
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "openwork", "discover", "--help"],
        env=ENV, capture_output=True, text=True, timeout=120, check=True,
    ).stderr  # fmt: skip
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in told.splitlines() if line.count("|") == 2}
    assert {"openwork", "cyclopts"} <= imported
    assert not imported & {
        "torch",
        "numpy",
        "scipy",
        "sklearn",
        "polars",
        "transformers",
        "tokenizers",
        "openai",
        "onnx",
    }


def test_wrong_usage_exits_with_2_as_a_program() -> None:
    done = program("run", "quotes", "--sed", "3")
    assert (done.returncode, done.stdout) == (2, "") and "--seed" in done.stderr


def test_a_reader_that_leaves_is_no_fault(tmp_path: Path) -> None:
    script = tmp_path / "go.py"
    script.write_text(
        "import sys, types\n"
        "fake = types.ModuleType('openwork.bench')\n"
        "fake.show_run = lambda run: {f'key {i}': 'x' * 200 for i in range(5000)}\n"
        "sys.modules['openwork.bench'] = fake\n"
        "from openwork import cli\n"
        "sys.exit(cli.main(['show', 'a']))\n"
    )
    line = f"{sys.executable} {script} | head -1"
    done = subprocess.run(["bash", "-c", line], env=ENV, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("key 0") and done.stderr == ""


def test_ctrl_c_says_that_the_run_can_be_resumed(tmp_path: Path) -> None:
    import signal

    script = tmp_path / "go.py"
    script.write_text(
        "import signal, sys, time, types\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run in the background
        "fake = types.ModuleType('openwork.bench')\n"
        "def show_run(run):\n"
        "    print('ready', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "fake.show_run = show_run\n"
        "sys.modules['openwork.bench'] = fake\n"
        "from openwork import cli\n"
        "sys.exit(cli.main(['show', 'a', '--json']))\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert out == "" and "Traceback" not in err and "same command" in err


# -- end to end ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_quotes_end_to_end(tmp_path: Path) -> None:
    done = program("run", "quotes", "--preset", "smoke", "--json", cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    result = SimpleNamespace(**json.loads(done.stdout))
    assert Path(tmp_path / result.page).is_file()
    assert result.seconds > 0 and result.tasks and result.evidence
    assert hasattr(result, "ratio_geomean")
    for row in result.tasks:
        for model in ("sparse", "dense", "dense_edge_pruned"):
            circuit = row[model]
            assert circuit["status"] in ("ok", "infeasible")
            if circuit["status"] == "ok":
                assert circuit["nodes"] >= 0 and circuit["edges"] >= 0
                assert circuit["loss"] >= 0 and 0 <= circuit["accuracy"] <= 1
    assert {p.name for p in (tmp_path / "runs" / "quotes").iterdir()} >= {"result.json", "run.yaml", "page.html"}

    def written() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}

    before = written()
    again = program("run", "quotes", "--preset", "smoke", "--json", cwd=tmp_path, timeout=900)
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads(again.stdout)["tasks"] == result.tasks
    assert before and written() == before, "what is done is done again"


@pytest.mark.slow
def test_run_digits_end_to_end(tmp_path: Path) -> None:
    done = program("run", "digits", "--preset", "smoke", "--json", cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert (tmp_path / result["page"]).is_file()
    assert result["tasks"]
