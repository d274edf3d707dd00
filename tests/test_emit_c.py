"""A program's C99 file builds without a warning, is clean under sanitizers, and computes what the interpreter does."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from c_files import SANITIZED, ask, build, lines_of, logits_of, needs_compiler
from openwork.errors import RunError, UsageError
from openwork.explain.programs.emit_c import RESERVED, emit_c
from openwork.explain.programs.program import (
    CURVES,
    Answer,
    Attend,
    Average,
    Bend,
    ByPosition,
    Feature,
    Grid,
    Latest,
    Lookup,
    Norm,
    Op,
    Previous,
    Product,
    Program,
    Step,
    Sum,
    run,
)


def some_program(kind: str, seed: int, steps: int = 60) -> Program:
    """A program of random steps, every operation of its kind among them."""
    rng = random.Random(seed)
    made: list[Step] = []

    def number() -> float:
        return rng.choice([0.0, 1.0, -1.0, rng.uniform(-1, 1), rng.gauss(0, 1) * 1e-3])

    def name() -> str:
        return rng.choice(made).name

    def positive() -> str:
        made.append(Step(f"weight{len(made)}", Bend(name(), "relu")))
        return made[-1].name

    def table() -> Lookup:
        return Lookup(tuple((i, number()) for i in sorted(rng.sample(range(12), 5))), number())

    leaves = {
        "features": [lambda: Feature(rng.randrange(6))],
        "tokens": [
            table,
            lambda: Lookup((), number()),
            lambda: Grid(tuple((i, (number(), number(), number())) for i in (2, 3, 7)), (number(), 0.5, number())),
            lambda: Grid((), (number(), 0.5)),
            lambda: ByPosition(tuple(number() for _ in range(4))),
        ],
    }[kind]
    inner = [
        lambda: Sum(tuple((name(), number()) for _ in range(rng.randrange(14))), number()),
        lambda: Product(name(), name()),
        lambda: Bend(name(), rng.choice(["relu", "gelu", "gelu_tanh", "step"])),  # type: ignore[arg-type]
        lambda: Norm((name(), name()), positive(), 7, 1e-5),
        lambda: Norm((name(),), "", 3, 1e-5),
    ]
    mixes = [
        lambda: Attend(name(), (name(), name()), (name(), name()), "", 0.5, rng.choice([None, 0.3])),
        lambda: Attend(name(), (), (), name(), 1.0, rng.choice([None, -0.5])),
        lambda: Attend(name(), (name(),), (name(),), name(), -0.25),
        lambda: Average(name()),
        lambda: Average(name(), positive(), rng.choice([0.0, 0.7])),
        lambda: Latest(name(), name(), number()),
        lambda: Previous(name(), rng.randrange(1, 4), number()),
    ]
    odd = ["double", "main", "x", "größe", "y0", "line_of", "logits", "_private", "bend_relu", "i"]
    while len(made) < steps:
        sources = leaves if len(made) < 6 else [*leaves, *inner, *inner, *(mixes if kind == "tokens" else [])]
        op: Op = rng.choice(sources)()
        called = odd.pop() if odd and rng.random() < 0.5 else f"s{len(made)}"
        made.append(Step(called, op, rng.choice(["", "what */ it /* is ??/", "tab\t \\"])))
    asked = [*(s.name for s in made[-15:]), ""]  # many, so that little of the program is left out
    answers = [Answer(f'"{i}*/', i, step) for i, step in enumerate(asked)]
    words = tuple((i, f"word{i}\n") for i in range(12))
    return Program("tokens" if kind == "tokens" else "features", tuple(made), tuple(answers), words)


def some_inputs(kind: str, seed: int, n: int = 40) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    if kind == "features":
        return (rng.normal(size=(n, 6)),)
    return rng.integers(0, 14, (n, 9)), rng.integers(0, 9, n)


@needs_compiler
@pytest.mark.parametrize("kind", ["features", "tokens"])
@pytest.mark.parametrize("seed", range(4))
def test_random_programs_compute_the_same(kind: str, seed: int, tmp_path: Path) -> None:
    program = some_program(kind, seed)
    inputs = some_inputs(kind, seed)
    binary = build(emit_c(program, "A test.\nIt has two lines, */ and ??/ in them."), tmp_path, *SANITIZED)
    np.testing.assert_allclose(logits_of(ask(binary, lines_of(*inputs))), run(program, *inputs), rtol=1e-9, atol=1e-9)


@needs_compiler
def test_every_curve_is_the_interpreters(tmp_path: Path) -> None:
    steps = [Step("x", Feature(0)), *(Step(f"b_{c}", Bend("x", c)) for c in CURVES)]  # type: ignore[arg-type]
    program = Program("features", tuple(steps), tuple(Answer(c, i, f"b_{c}") for i, c in enumerate(CURVES)))
    x = np.concatenate([np.linspace(-30, 30, 121), [0.0, 1e-300]])[:, None]
    got = logits_of(ask(build(emit_c(program), tmp_path), lines_of(x)))
    np.testing.assert_allclose(got, run(program, x), rtol=1e-9, atol=1e-12)


@needs_compiler
def test_a_program_that_reads_nothing_builds(tmp_path: Path) -> None:
    for kind, given in (("features", "1\n"), ("tokens", "3 4\n")):
        program = Program(kind, (Step("c", Sum((), 2.5)),), (Answer("a", 0, "c"), Answer("b", 1, "")))  # type: ignore[arg-type]
        assert logits_of(ask(build(emit_c(program), tmp_path, *SANITIZED), given)).tolist() == [[2.5, 0.0]]


@needs_compiler
@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("features", "1 2 3 4 5 6\n1 2\n", "line 2: expected at least 6 numbers"),
        ("features", "1 2 3 4 five 6\n", "line 1"),
        ("features", "\n", "line 1"),
        ("tokens", "1 2\n\n", "line 2: expected token ids"),
        ("tokens", "1 -2\n", "none of them negative"),
        ("tokens", "1 2.5\n", "line 1: expected token ids"),
        ("tokens", "7 " * 5000 + "\n", "at most 4096"),
    ],
)
def test_bad_lines_are_refused_by_number(kind: str, given: str, said: str, tmp_path: Path) -> None:
    steps = [Step(f"f{i}", Feature(i)) for i in range(6)] if kind == "features" else [Step("f5", Lookup(((1, 2.0),)))]
    program = Program(kind, tuple(steps), (Answer("a", 0, "f5"),))  # type: ignore[arg-type]
    done = ask(build(emit_c(program), tmp_path), given)
    assert done.returncode == 2 and said in done.stderr


@needs_compiler
def test_a_last_line_without_its_end_is_read_and_windows_ends_are(tmp_path: Path) -> None:
    program = Program("tokens", (Step("t", Lookup(((1, 2.0), (4, -1.0)))),), (Answer("a", 0, "t"),))
    got = ask(build(emit_c(program), tmp_path, *SANITIZED), "9 1\r\n1 4\t\n9")
    assert logits_of(got).ravel().tolist() == [2.0, -1.0, 0.0]


def test_steps_that_no_answer_needs_are_left_out() -> None:
    steps = (Step("x", Feature(0)), Step("idle", Bend("x", "gelu")), Step("y", Sum((("x", 2.0),), 1.0)))
    text = emit_c(Program("features", steps, (Answer("a", 0, "y"),)))
    assert "idle" not in text and "gelu" not in text and "#include <math.h>" not in text


def test_a_constant_that_is_no_number_is_refused() -> None:
    program = Program("features", (Step("c", Sum((), float("nan"))),), (Answer("a", 0, "c"),))
    with pytest.raises(RunError, match="nan"):
        emit_c(program)


def test_an_unknown_curve_is_refused() -> None:
    steps = (Step("x", Feature(0)), Step("b", Bend("x", "sigmoid")))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="sigmoid"):
        emit_c(Program("features", steps, (Answer("a", 0, "b"),)))


def test_every_name_of_the_files_own_is_reserved() -> None:
    """No step may be called what the frame of the file declares."""
    import re

    from openwork.explain.programs import emit_c as module

    for text in (module.MAIN_TOKENS, module.MAIN_FEATURES, module.LOOKUP, module.OF_TOKEN):
        text = re.sub(r'"[^"]*"|/\*.*?\*/', "", text)
        declared = re.findall(r"\b(?:int|long|double|char)\s+\*?(?:const\s+)?(\w+)", text)
        # names that live inside a function of the frame alone cannot meet a step
        inside = {"otherwise", "low", "high", "middle", "end", "feature", "token", "n", "table", "ids", "text"}
        assert {d for d in declared if d not in inside} <= RESERVED
