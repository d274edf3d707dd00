"""The Python file of a program of features: it decides as the program, is tidy, and its shortening changes nothing."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openwork.errors import UsageError
from openwork.explain.programs.bits import merged_bits
from openwork.explain.programs.emit_features import FLOOR, emit_features, mixtures, rounded
from openwork.explain.programs.image_program import lower_cnn, run_image
from openwork.explain.programs.program import (
    Answer,
    Bend,
    Feature,
    Lookup,
    Norm,
    Product,
    Program,
    Step,
    Sum,
    decisions,
    run,
)
from openwork.planted import make_case

RUFF = Path(sys.executable).with_name("ruff")


def some_program(seed: int, bits: bool = False) -> Program:
    """Features, sums and bends at random; with `bits`, thresholds of features and bits of bits."""
    rng = random.Random(seed)
    names = [f"x{i}" for i in range(6)]
    steps = [Step(n, Feature(i)) for i, n in enumerate(names)]

    def add(op: Sum | Bend | Product | Norm, name: str) -> str:
        steps.append(Step(name, op))
        return name

    layer = names
    if bits:
        layer = []
        for n in names:
            add(Sum(((n, rng.choice([1.0, -1.0])),), rng.uniform(-0.5, 0.5)), f"{n}_over")
            layer.append(add(Bend(f"{n}_over", "step"), f"{n}_on"))
    for depth in range(2):
        new = []
        for k in range(6):
            terms = tuple((n, rng.choice([1.0, -1.0, rng.gauss(0, 1)])) for n in rng.sample(layer, rng.randrange(1, 6)))
            add(Sum(terms, rng.choice([0.0, rng.gauss(0, 1)])), f"h{depth}_{k}_in")
            curve = "step" if bits else rng.choice(["relu", "gelu", "step"])
            new.append(add(Bend(f"h{depth}_{k}_in", curve), f"h{depth}_{k}"))  # type: ignore[arg-type]
        layer = new
    if not bits:
        layer += [add(Product("x0", "x1"), "both"), add(Norm(("x2", "x3"), "", 2, 1e-5), "size")]
    answers = []
    for k, text in enumerate(('say "a"', "b\\n", "ç")):
        add(Sum(tuple((n, rng.gauss(0, 1)) for n in layer), rng.gauss(0, 1)), f"logit_{k}")
        answers.append(Answer(text, k, f"logit_{k}"))
    return Program("features", tuple(steps), tuple(answers))


def answers_of_file(text: str, x: np.ndarray, folder: Path) -> list[str]:
    """What the written file answers, in a process of its own."""
    (folder / "program.py").write_text(text, encoding="utf-8")
    given = "".join(" ".join(map(repr, row)) + "\n" for row in x.tolist())
    done = subprocess.run(
        [sys.executable, "-X", "utf8", str(folder / "program.py")], input=given, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def tidy(text: str, folder: Path) -> None:
    """ruff finds nothing to say and nothing to format."""
    if not RUFF.exists() and shutil.which("ruff") is None:
        pytest.skip("no ruff found: pip install ruff")
    ruff = str(RUFF) if RUFF.exists() else "ruff"
    at = folder / "tidy.py"
    at.write_text(text, encoding="utf-8")
    for command in (["format", "--diff"], ["check", "--select", "E,F,I,UP,B,SIM"]):
        done = subprocess.run([ruff, *command, "--isolated", "--no-cache", str(at)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_file_decides_as_the_program(seed: int, bits: bool, tmp_path: Path) -> None:
    program = some_program(seed, bits)
    program = replace(program, answers=tuple(replace(a, text="abc"[k]) for k, a in enumerate(program.answers)))
    x = np.random.default_rng(seed).normal(size=(60, 6))
    text = emit_features(program, ["A test.", "", "Of two lines."])
    assert answers_of_file(text, x, tmp_path) == ["abc"[k] for k in decisions(run(program, x))]
    space: dict[str, object] = {"__name__": "program"}
    exec(compile(text, "program", "exec"), space)
    scores = np.array([list(space["scores"](row).values()) for row in x.tolist()])  # type: ignore[operator]
    np.testing.assert_allclose(scores, run(program, x), atol=1e-9)


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_file_is_tidy(seed: int, bits: bool, tmp_path: Path) -> None:
    program = some_program(seed, bits)
    x = np.random.default_rng(seed).normal(size=(60, 6))
    tidy(emit_features(program, ["A test."]), tmp_path)
    tidy(emit_features(rounded(program, x), ["A test.", "", "More."]), tmp_path)


@pytest.mark.parametrize("name", ["cross", "cross_xor_frame", "roof_or_valley"])
def test_the_file_of_an_image_decides_as_its_program(name: str, tmp_path: Path) -> None:
    case = make_case(name)
    program = lower_cnn(case.model, case.truth, case.reference, (0, 1), ("no", "yes"))  # type: ignore[arg-type]
    text = emit_features(program, [f"{name}."])
    x = case.task.split("verify").inputs[0].double().numpy()
    assert answers_of_file(text, x, tmp_path) == [("no", "yes")[k] for k in decisions(run_image(program, x))]
    tidy(text, tmp_path)
    assert text.count("\n") < 120


@pytest.mark.parametrize("seed", range(20))
def test_merging_bits_changes_no_score(seed: int) -> None:
    program = some_program(seed, bits=True)
    x = np.random.default_rng(seed).normal(size=(200, 6))
    short = merged_bits(program)
    np.testing.assert_allclose(run(short, x), run(program, x), atol=1e-9)
    assert len(short.steps) <= len(program.steps)


def test_merging_finds_bits_that_say_the_same() -> None:
    def bit(name: str, terms: tuple[tuple[str, float], ...], bias: float) -> list[Step]:
        return [Step(f"{name}_in", Sum(terms, bias)), Step(name, Bend(f"{name}_in", "step"))]

    steps = [Step("x", Feature(0)), Step("y", Feature(1))]
    steps += bit("a", (("x", 1.0),), 0.0) + bit("b", (("y", 1.0),), 0.0)
    steps += bit("same", (("a", 3.0), ("b", 0.1)), -1.0) + bit("not_a", (("a", -2.0),), 1.0)
    steps += bit("both", (("a", 1.0), ("b", 1.0)), -1.5) + bit("too", (("b", 5.0), ("same", 4.0)), -7.0)
    steps += bit("ever", (("a", 1.0),), 0.5)
    last = Sum((("same", 1.0), ("not_a", 10.0), ("both", 100.0), ("too", 1000.0), ("ever", 10000.0)))
    program = Program("features", (*steps, Step("out", last)), (Answer("o", 0, "out"),))
    short = merged_bits(program)
    assert {s.name for s in short.steps} == {"x", "y", "a", "a_in", "b", "b_in", "both", "both_in", "out"}
    assert short.by_name["out"] == Sum((("a", -9.0), ("both", 1100.0)), 10010.0)


def test_rounding_keeps_every_decision_and_is_as_short_as_it_can_be() -> None:
    program = some_program(4)
    x = np.random.default_rng(1).normal(size=(300, 6))
    short = rounded(program, x)
    assert (decisions(run(short, x)) == decisions(run(program, x))).all()
    between = mixtures(x)
    assert (decisions(run(short, between)) == decisions(run(program, between))).mean() >= FLOOR

    def digits(p: Program) -> int:
        """The most significant digits of any coefficient."""
        sums = [s.op for s in p.steps if isinstance(s.op, Sum)]
        return max(len(f"{abs(c):.12e}".split("e")[0].replace(".", "").rstrip("0")) for o in sums for _, c in o.terms)

    assert digits(short) < 7 < digits(program)
    assert digits(rounded(program, x, floor=0.0)) <= digits(short)
    assert rounded(program, x, floor=1.1) == program  # no rounding can do that


def test_mixtures_lie_between_examples() -> None:
    x = np.array([[0.0, 0.0], [2.0, 4.0]])
    between = mixtures(x, n=50)
    np.testing.assert_allclose(between[:, 1], 2 * between[:, 0])
    assert between.min() >= 0 and between[:, 0].max() <= 2 and len(np.unique(between)) > 20


def test_what_cannot_be_written_is_refused() -> None:
    words = Program("tokens", (Step("t", Lookup(((1, 2.0),))),), (Answer("a", 0, "t"),))
    with pytest.raises(UsageError, match="reads tokens"):
        emit_features(words, ["x"])
    keyword = Program("features", (Step("lambda", Feature(0)),), (Answer("a", 0, "lambda"),))
    with pytest.raises(UsageError, match='"lambda"'):
        emit_features(keyword, ["x"])
    twice = Program("features", (Step("x", Feature(0)),), (Answer("a", 0, "x"), Answer("a", 1, "x")))
    with pytest.raises(UsageError, match="two answers read the same"):
        emit_features(twice, ["x"])
