"""A circuit as code: the interpreter against plain loops, the lowering against the patched run, passes against both.

What is written is run as its own process, on a planted transformer whose circuit is known: it tells the token before.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openwork import bench, cli, models, own, patching, runs, store
from openwork.circuit import HOLDS, Circuit
from openwork.decompiled import answers_of, decompile_circuit, kinds_of, run_file, unique_words
from openwork.errors import RunError, UsageError
from openwork.explain.programs import emit_python, passes, simplify
from openwork.explain.programs.lower_transformer import lower_transformer
from openwork.explain.programs.names import readable, slug
from openwork.explain.programs.program import (
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
    Trace,
    decisions,
    from_dict,
    run,
    size,
    to_dict,
    words_of,
)
from openwork.planted import make_case
from openwork.tasks.task import Split

VOCAB, PLACES = 12, 9


# -- a second interpreter: one example, one place at a time, nothing shared with the first ---------------------------


def slowly(program: Program, tokens: Sequence[int]) -> list[float]:
    """The logits after some tokens, by plain loops."""
    known: dict[str, list[float]] = {}
    places = range(len(tokens))

    def value(op: Op, i: int) -> float:
        match op:
            case Lookup(table, default):
                return dict(table).get(tokens[i], default)
            case Grid(rows, default):
                return dict(rows).get(tokens[i], default)[min(i, len(default) - 1)]
            case ByPosition(values):
                return values[min(i, len(values) - 1)]
            case Sum(terms, bias):
                return bias + sum(c * known[n][i] for n, c in terms)
            case Product(a, b):
                return known[a][i] * known[b][i]
            case Bend(of, curve):
                x = known[of][i]
                normal = 0.5 * (1 + math.erf(x / math.sqrt(2)))
                about = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
                curves = {"relu": max(x, 0.0), "gelu": x * normal, "gelu_tanh": x * about, "step": float(x > 0)}
                return {**curves, "exp": math.exp(x)}[curve]
            case Norm(of, rest, width, eps):
                squares = sum(known[n][i] ** 2 for n in of) + (known[rest][i] if rest else 0.0)
                return 1 / math.sqrt(squares / width + eps)
            case Attend(v, query, key, score, scale, sink):
                z = [
                    scale * sum(known[q][i] * known[k][j] for q, k in zip(query, key, strict=True))
                    for j in range(i + 1)
                ]
                w = [math.exp(x + (known[score][j] if score else 0.0)) for j, x in enumerate(z)]
                total = sum(w) + (0.0 if sink is None else math.exp(sink))
                return sum(x * known[v][j] for j, x in enumerate(w)) / total
            case Average(v, weight, nothing):
                w = [known[weight][j] if weight else 1.0 for j in range(i + 1)]
                return sum(x * known[v][j] for j, x in enumerate(w)) / (sum(w) + nothing or 1.0)
            case Latest(v, where, empty):
                hits = [j for j in range(i + 1) if known[where][j] > 0]
                return known[v][hits[-1]] if hits else empty
            case Previous(v, back, empty):
                return known[v][i - back] if i >= back else empty
        raise AssertionError(op)

    for s in program.steps:
        known[s.name] = []
        for i in places:
            known[s.name].append(value(s.op, i))
    return [known[a.step][-1] if a.step else 0.0 for a in program.answers]


def random_program(rng: np.random.Generator, length: int = 22) -> Program:
    """A program in which any operation may read any earlier step."""
    ids = tuple(sorted(rng.choice(VOCAB, 5, replace=False).tolist()))
    ops: list[Op] = [
        Lookup(tuple((i, float(rng.normal())) for i in ids), 0.3),
        Grid(tuple((i, tuple(rng.normal(size=4).tolist())) for i in ids), (0.1, 0.2, 0.3, 0.4)),
        ByPosition(tuple(rng.normal(size=5).tolist())),
        Lookup(((2, 1.0), (5, 0.5)), -0.5),
    ]
    kinds = [
        "Sum", "Product", "relu", "gelu", "step", "exp", "Norm", "Attend", "Average", "Latest", "Previous", "gelu_tanh",
    ]  # fmt: skip
    for k in range(length):
        a, b, c = (f"s{i}" for i in rng.integers(len(ops), size=3))
        x, y = rng.normal(size=2).tolist()
        kind = kinds[k % len(kinds)]
        if kind == "Average" or kind == "Norm":
            ops.append(Bend(b, "step"))
            b = f"s{len(ops) - 1}"
        made: dict[str, Op] = {
            "Sum": Sum(((a, x), (b, -1.0), (c, 1.0)), y),
            "Product": Product(a, b),
            "Norm": Norm((a, c), b, 7, 0.5),
            "Attend": Attend(a, (b,), (c,), f"s{int(rng.integers(4))}" if k % 2 else "", 0.4, y if x > 0 else None),
            "Average": Average(a, b if x > 0 else "", abs(y) if y > 0 else 0.0),
            "Latest": Latest(a, b, x),
            "Previous": Previous(a, 1 + k % 3, y),
        }
        ops.append(made[kind] if kind in made else Bend(f"s{int(rng.integers(4))}", kind))  # type: ignore[arg-type]
        ops[-1] = ops[-1] if kind != "Product" else Product(f"s{int(rng.integers(4))}", b)
    steps = tuple(Step(f"s{i}", op) for i, op in enumerate(ops))
    last = len(ops) - 1
    return Program("tokens", steps, (Answer("a", 0, f"s{last}"), Answer("b", 1, f"s{last - 4}"), Answer("c", 2, "")))


def inputs(rng: np.random.Generator, n: int = 7) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(VOCAB, size=(n, PLACES)), rng.integers(PLACES, size=n)


@pytest.mark.parametrize("seed", range(6))
def test_the_interpreter_does_what_plain_loops_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    program, (tokens, at) = random_program(rng), inputs(rng)
    wanted = [slowly(program, tokens[i, : at[i] + 1].tolist()) for i in range(len(tokens))]
    np.testing.assert_allclose(run(program, tokens, at), wanted, rtol=1e-9, atol=1e-9)
    trace = Trace(program, tokens, at)
    for s in program.steps:  # a series ends with what the step is at the end
        np.testing.assert_allclose(trace.end(s.name), Trace(program, tokens, at).series(s.name)[trace.rows, at], 1e-9)


def test_every_operation_is_in_the_programs_that_are_tried() -> None:
    found = {type(s.op) for seed in range(6) for s in random_program(np.random.default_rng(seed)).steps}
    assert found >= {Lookup, Grid, ByPosition, Sum, Product, Bend, Norm, Attend, Average, Latest, Previous}


def test_features_are_read_by_their_place() -> None:
    steps = (Step("x", Feature(1)), Step("y", Bend("x", "relu")), Step("z", Sum((("y", 2.0),), 1.0)))
    program = Program("features", steps, (Answer("a", 0, "z"),))
    np.testing.assert_array_equal(run(program, np.array([[9.0, 3.0], [9.0, -3.0]])), [[7.0], [1.0]])
    with pytest.raises(UsageError, match="reads 1 arrays"):
        run(program, np.zeros((1, 2)), np.zeros(1))


@pytest.mark.parametrize("seed", range(3))
def test_a_program_comes_back_from_json_as_it_left(seed: int) -> None:
    program = words_of(random_program(np.random.default_rng(seed)), lambda i: f"t{i}")
    data = json.loads(json.dumps(to_dict(program)))
    assert from_dict(data) == program
    with pytest.raises(UsageError, match="version 99"):
        from_dict({**data, "version": 99})
    with pytest.raises(UsageError, match='does "Guess"'):
        from_dict({**data, "steps": [{"name": "x", "op": "Guess", "about": ""}]})


@pytest.mark.parametrize(
    ("kind", "steps", "answer", "says"),
    [
        ("tokens", (Step("a", Sum((("b", 1.0),))), Step("b", Sum((), 1.0))), "a", "reads b, which no earlier step is"),
        ("tokens", (Step("a", Sum()), Step("a", Sum())), "a", '"a" is no name'),
        ("tokens", (Step("a b", Sum()),), "", "no name for a step"),
        ("tokens", (Step("a", Feature(0)),), "a", "reads a feature"),
        ("features", (Step("a", Lookup(())),), "a", "reads tokens"),
        ("tokens", (Step("a", Sum()),), "z", "ask for z"),
    ],
)
def test_a_program_that_makes_no_sense_is_refused(kind: Any, steps: Any, answer: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Program(kind, steps, (Answer("x", 0, answer),))


def test_size_counts_what_is_written_down() -> None:
    steps = (
        Step("t", Lookup(((1, 0.5), (2, 0.5), (4, 2.0)), 0.0)),
        Step("s", Sum((("t", 1.0), ("t", -2.0)), 3.0)),
        Step("m", Average("s")),
    )
    found = size(Program("tokens", steps, (Answer("x", 0, "m"),)))
    assert (found.steps, found.constants, found.tokens) == (3, 3 + 2, 3)


# -- lowering --------------------------------------------------------------------------------------------------------


def random_case(seed: int, **config: Any) -> tuple[Any, Circuit, dict[str, torch.Tensor]]:
    """A random sparse transformer, a random circuit of it (nodes and edges, sums among them), a random reference."""
    g = torch.Generator().manual_seed(seed)
    shape = {"vocab": VOCAB, "n_layer": 2, "d_model": 8, "d_head": 4, "d_mlp": 6, "n_ctx": PLACES}
    model = models.build({"kind": "transformer", **shape, **config}, seed)
    with torch.no_grad():
        for p in [*model.parameters(), *model.buffers()]:
            p.copy_(torch.randn(p.shape, generator=g) * 0.7)
    graph = patching.graph_of(model)
    nodes = {s.name: torch.rand(s.size, generator=g) < 0.7 for s in graph.sites if s.prunable}
    whole = Circuit.from_nodes(graph, nodes, patching.support(model))
    edges = {n: m & (torch.rand(m.shape, generator=g) < 0.8) for n, m in whole.edges.items()}
    reference = {
        s.name: torch.randn(s.size, generator=g) * 0.5
        if s.module or s.kind != "input"
        else torch.softmax(torch.randn(s.size, generator=g), 0)
        for s in graph.sites
    }
    return model, Circuit(graph, whole.nodes, edges), reference


CONFIGS: list[dict[str, Any]] = [
    {},
    {"sink": True},
    {"norm": False, "activation": "relu", "bigram": False, "unembed_bias": True},
    {"positions": False, "norm_gain": False},
    {"n_layer": 1, "bigram": False, "outputs": 5},
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(c) or "plain")
def test_a_lowered_circuit_computes_what_the_patched_run_does(config: dict[str, Any], seed: int) -> None:
    model, circuit, reference = random_case(seed, **config)
    rng = np.random.default_rng(seed)
    tokens, at = inputs(rng, 20)
    ids = (1, 3, 4)
    for c in (circuit, Circuit.whole(circuit.graph, patching.support(model)), Circuit.empty(circuit.graph)):
        given = (torch.tensor(tokens), torch.tensor(at))
        with torch.no_grad():
            wanted = patching.run(model, given, c, reference)[:, list(ids)].numpy()
        program = lower_transformer(model, c, reference, ids, ("a", "b", "c"), PLACES)
        np.testing.assert_allclose(run(program, tokens, at), wanted, rtol=1e-3, atol=2e-4)
        folded = passes.fold(program)
        np.testing.assert_allclose(run(folded, tokens, at), run(program, tokens, at), rtol=1e-9, atol=1e-9)
        assert len(folded.steps) <= len(program.steps)


def test_what_cannot_be_lowered_is_refused() -> None:
    model, circuit, reference = random_case(0)
    with pytest.raises(UsageError, match="differs by example"):
        lower_transformer(model, circuit, {n: v[None, None] for n, v in reference.items()}, (0,), ("a",), PLACES)
    layered = models.build({"kind": "transformer", "vocab": 4, "d_model": 8, "d_head": 4, "norm": "layer"}, 0)
    with pytest.raises(UsageError, match="LayerNorm"):
        lower_transformer(layered, circuit, reference, (0,), ("a",), PLACES)  # type: ignore[arg-type]


# -- passes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_folding_changes_no_number(seed: int) -> None:
    rng = np.random.default_rng(seed)
    program, (tokens, at) = random_program(rng, 40), inputs(rng, 15)
    for n in rng.choice([s.name for s in program.steps], 3, replace=False):  # constants here and there
        program = program.with_ops({n: Sum((), float(abs(rng.normal())))})
    np.testing.assert_allclose(run(passes.fold(program), tokens, at), run(program, tokens, at), rtol=1e-8, atol=1e-8)


def test_folding_leaves_what_computes() -> None:
    steps = (
        Step("a", Lookup(((1, 2.0), (2, 4.0)), 0.0)),
        Step("b", Sum((("a", 0.5),), 1.0)),
        Step("c", Sum((("b", 2.0), ("a", 1.0)))),
        Step("w", Sum((), 3.0)),
        Step("m", Average("c", "w")),
        Step("lost", Bend("a", "gelu")),
        Step("k", Bend("w", "relu")),
        Step("z", Product("m", "k")),
    )
    folded = passes.fold(Program("tokens", steps, (Answer("x", 0, "z"),)))
    # c = 2 (a/2 + 1) + a = 2 a + 2, averaged and times 3: 3 * (average of 2 a + 2)
    assert [type(s.op).__name__ for s in folded.steps] == ["Lookup", "Average", "Sum"]
    np.testing.assert_allclose(run(folded, np.array([[1, 2]]), np.array([1])), [[3 * (2 * 3.0 + 2)]])


def test_a_margin_is_above_zero_where_the_first_answer_wins() -> None:
    program = random_program(np.random.default_rng(1))
    two = Program("tokens", program.steps, program.answers[:2])
    tokens, at = inputs(np.random.default_rng(2), 30)
    both, one = run(two, tokens, at), run(passes.margin(two), tokens, at)
    np.testing.assert_allclose(one[:, 0] - one[:, 1], both[:, 0] - both[:, 1])
    assert passes.margin(program) is program  # three answers


# -- simplifying -----------------------------------------------------------------------------------------------------


def two_marks(noise: float) -> Program:
    """Which of tokens 1 and 2 has stood in the text more often, beside many numbers that hardly matter."""
    rng = np.random.default_rng(0)
    value = [noise * float(rng.normal()) for _ in range(VOCAB)]
    value[1], value[2] = 1.0, -1.0
    steps = (
        Step("value", Lookup(tuple(enumerate(value)))),
        Step("weight", Lookup(tuple((i, 1.0 + noise * float(rng.random())) for i in range(VOCAB)))),
        Step("seen", Average("value", "weight")),
        Step("place", ByPosition(tuple((noise * rng.normal(size=PLACES)).tolist()))),
        Step("bent", Bend("place", "gelu")),
        Step("yes", Sum((("seen", 3.0), ("bent", 0.1)), 0.01)),
        Step("no", Sum((("seen", -2.0),))),
    )
    return Program("tokens", steps, (Answer("one", 1, "yes"), Answer("two", 2, "no")))


def small_pool(seed: int = 0) -> simplify.Pool:
    rng = np.random.default_rng(seed)
    tokens, at = rng.integers(VOCAB, size=(120, PLACES)), rng.integers(3, PLACES, size=120)
    tokens[:, 0] = 0
    kinds = np.array([0, 0, 0] + [1] * (VOCAB - 3))
    return simplify.pool_of(tokens, at, kinds, PLACES, seed)


def test_what_matters_is_left() -> None:
    pool, exact = small_pool(), two_marks(0.001)
    short = simplify.simplified(exact, pool, 0.95)
    tables = [s.op for s in short.steps if isinstance(s.op, Lookup)]
    assert {i for t in tables for i, _ in t.table} == {1, 2}
    assert {type(s.op) for s in short.steps} <= {Lookup, Average, Sum}
    assert size(short).constants < 8


@pytest.mark.parametrize("floor", [1.0, 0.97, 0.9])
def test_a_program_decides_alike_as_often_as_it_was_asked_to(floor: float) -> None:
    pool, exact = small_pool(3), two_marks(0.4)
    short = simplify.simplified(exact, pool, floor)
    mine, theirs = (decisions(run(p, pool.tokens, pool.at)) for p in (short, exact))
    own, renamed, _ = pool.parts
    assert (mine == theirs)[:own].mean() >= floor
    assert (mine == theirs)[own : own + renamed].mean() >= floor
    assert (mine == theirs)[own + renamed :].mean() >= 1 - simplify.FAR * (1 - floor)
    if floor == 0.9:
        assert size(short).constants < size(passes.fold(exact)).constants
    assert simplify.simplified(exact, pool, floor) == short  # the same again


def test_attention_to_the_token_before_is_found_to_be_that() -> None:
    steps = (
        Step("what", Lookup(((1, 1.0), (2, -1.0)), 0.5)),
        Step("place", ByPosition(tuple(float(p) for p in range(PLACES)))),
        Step("square", Product("place", "place")),
        Step("one", Sum((), 1.0)),
        # -30 (there - (here - 1))^2 = 60 here there - 30 there^2 - 60 there - what is the same for all
        Step("query", Sum((("place", 60.0),))),
        Step("key", Sum((("square", -30.0), ("place", -60.0)))),
        Step("before", Attend("what", ("query", "one"), ("place", "key"))),
    )
    exact = Program("tokens", steps, (Answer("one", 1, "before"), Answer("two", 2, "")))
    short = simplify.simplified(exact, small_pool(), 0.97)
    assert [type(s.op) for s in short.steps if not isinstance(s.op, (Lookup, Sum))] == [Previous]
    assert next(s.op for s in short.steps if isinstance(s.op, Previous)).back == 1


def test_the_pool_is_made_as_it_says() -> None:
    rng = np.random.default_rng(0)
    tokens, at = rng.integers(1, VOCAB, size=(50, PLACES)), rng.integers(2, PLACES, size=50)
    kinds = np.array([0, 0, 0, 0] + [1] * 4 + [2] * (VOCAB - 8))
    pool = simplify.pool_of(tokens, at, kinds, 12, 5)
    again = simplify.pool_of(tokens, at, kinds, 12, 5)
    np.testing.assert_array_equal(pool.tokens, again.tokens)
    own, renamed, _ = pool.parts
    assert own == 50 and len(pool.tokens) == sum(pool.parts) and int(pool.at.max()) < 12
    np.testing.assert_array_equal(pool.at[:own], at)
    other = 0
    for i in range(own, own + renamed):
        old, new = tokens[i % 50, : at[i % 50] + 1], pool.tokens[i, : pool.at[i] + 1]
        np.testing.assert_array_equal(kinds[old], kinds[new])  # a word by one of its kind, wherever it stands
        assert all(len(set(new[old == t].tolist())) == 1 for t in set(old.tolist()))
        np.testing.assert_array_equal(new[kinds[old] == 0], old[kinds[old] == 0])
        other += int((old != new).any())
    assert other > renamed / 2


def test_digits_go_where_they_are_not_missed() -> None:
    assert simplify.rounded(Sum((("a", 1.2345),), -0.0678), 2) == Sum((("a", 1.2),), -0.068)
    assert simplify.rounded(Lookup(((1, 10.12), (2, 10.98)), 12.0), 1) == Lookup(((1, 10.0), (2, 11.0)), 12.0)
    assert simplify.rounded(ByPosition((0.111, 0.113, 0.111)), 1) == ByPosition((0.111, 0.113, 0.111))
    assert simplify.rounded(ByPosition((0.0, 5.0, 0.1, 5.1)), 1) == ByPosition((0.0, 5.0, 0.0, 0.0))
    often = np.array([1.0, 3.0, 1.0])
    assert simplify.shortened(ByPosition((5.0, 1.0, 3.0)), 1, often) == ByPosition((5.0, 1.5))
    assert simplify.shortened(ByPosition((1.0, 9.0, 1.0, 7.0)), 1, often) == ByPosition((1.0, 9.0, 1.0))


# -- the text --------------------------------------------------------------------------------------------------------


def namespace(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "a_file"}
    exec(compile(text, "a_file", "exec"), names)
    return names


@pytest.mark.parametrize("seed", range(6))
def test_the_text_computes_what_the_program_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    program, (tokens, at) = random_program(rng, 33), inputs(rng)
    steps = tuple(Step(s.name, ByPosition((0.5, -1.0)) if isinstance(s.op, Grid) else s.op) for s in program.steps)
    program = words_of(Program("tokens", steps, program.answers), lambda i: f'{i}"\n')
    for p in (program, readable(program), readable(passes.fold(program))):
        scores = namespace(emit_python.emit_python(p, ["A text."]))["scores"]
        told = [list(scores([f'{t}"\n' for t in tokens[i, : at[i] + 1]]).values()) for i in range(len(tokens))]
        np.testing.assert_allclose(told, run(p, tokens, at), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_text_is_as_ruff_would_have_it(seed: int, tmp_path: Path) -> None:
    ruff = shutil.which("ruff") or shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip("ruff is not installed")
    model, circuit, reference = random_case(seed, n_layer=1)
    program = lower_transformer(model, circuit, reference, (1, 3), ('"', "'\n"), PLACES)
    rng = np.random.default_rng(seed)
    tokens, at = rng.integers(VOCAB, size=(60, PLACES)), rng.integers(2, PLACES, size=60)
    pool = simplify.pool_of(tokens, at, np.zeros(VOCAB, dtype=np.int64), PLACES)
    short = readable(words_of(simplify.simplified(program, pool, 0.9), lambda i: "\"'\n\\ x"[i % 6] * (i + 1)))
    out = tmp_path / "f.py"
    out.write_text(emit_python.emit_python(short, ["What it does.", "", 'More """of\\" it.'.replace('"', "'")]))
    for command in (["check"], ["format", "--check", "--diff"]):
        done = subprocess.run([ruff, *command, "--isolated", out], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_long_names_take_more_lines_not_longer_ones() -> None:
    places = [Step(f"{c * 30}_by_place", ByPosition((0.123456789, 1.5, 0.25 * k))) for k, c in enumerate("abc")]
    total = Step("d" * 34, Sum(tuple((s.name, -1.0) for s in places)))
    steps = (*places, total, Step("mean", Average(total.name)))
    program = Program("tokens", steps, (Answer("a", 0, "mean"),))
    text = emit_python.emit_python(program, ["."])
    assert max(map(len, text.split("\n"))) <= emit_python.WIDE
    told = namespace(text)["scores"](["x"] * 5)["a"]
    np.testing.assert_allclose(told, run(program, np.zeros((1, 5), dtype=np.int64), np.array([4]))[0, 0])


def test_what_cannot_be_written_is_refused() -> None:
    program = Program("tokens", (Step("g", Grid((), (1.0, 2.0))),), (Answer("a", 0, "g"),))
    with pytest.raises(UsageError, match="cannot|can be written"):
        emit_python.emit_python(program, ["."])


@pytest.mark.parametrize("text", ["a", '"', "'", "'\"", "\n    ", "\\", "é", "\x00", "\ufffd", "'''\"\"\""])
def test_a_string_reads_as_it_was(text: str) -> None:
    assert eval(emit_python.quoted(text)) == text


def test_names_say_what_stands_out() -> None:
    assert slug(' ("') == "open_double_quote"
    assert slug("\n    ") == "newline"
    steps = (Step("a", Lookup(((3, 1.0), (4, 0.2)))), Step("w", Lookup(((3, 9.0),), 1.0)), Step("m", Average("a", "w")))
    program = Program("tokens", steps, (Answer("x", 0, "m"),), ((3, "('"), (4, "class")))
    assert [s.name for s in readable(program).steps] == ["open_quote", "weight", "open_quote_seen"]
    told = Program("tokens", (*steps, Step("n", Bend("m", "gelu"), "block0.mlp.act:7")), (Answer("x", 0, "n"),))
    assert readable(told, {"block0.mlp.act:7": "saw a quote"}).steps[-1].name == "saw_a_quote"


# -- whole, on a run -------------------------------------------------------------------------------------------------

PLANTED = """
from openwork.planted import make_case
def model():
    return make_case("hand_previous_3x8", 0).model
def task():
    return make_case("hand_previous_3x8", 0).task
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose circuit tells the token before, found under the mean; its name is task-planted."""
    (tmp_path / "planted_before.py").write_text(PLANTED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "planted_before", raising=False)
    monkeypatch.setattr(own, "task_faults", lambda _task: iter(()))  # three letters: every split has nearly all inputs
    path = tmp_path / "run"
    runs.begin_own_run(path, "planted_before:model", "planted_before:task")
    truth = make_case("hand_previous_3x8", 0).truth
    said = {"method": "planted", "task": "planted_before:task", "model": runs.open_run(path).digest}
    result = {"key": "k", "task": "planted_before:task", "status": "ok", "reference": "mean", "granularity": "weights"}
    runs.keep(path / "circuits" / "task-planted", truth.with_origin(**said), {"result.json": result})
    return path


def test_a_circuit_becomes_a_file_that_runs_and_its_explanation(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "before.py"
    told = bench.decompile_run(planted, "task-planted", out, 0.99, simplify=True)
    assert {e["claim"]: e["verdict"] for e in told["evidence"]} == dict.fromkeys(
        [f"program_decides_as_{what}{split}" for split in ("", "_ood") for what in ("circuit", "model")], HOLDS
    )
    assert "advice" not in told  # the circuit decides as the model
    text = out.read_text()
    assert "np.arange(n) == n - 2" in text and told["lines"] <= text.count("\n") < 120
    assert "verify     192 examples: as the circuit 100.0%" in text
    assert run_file(out, [["2", "0", "1"], ["1", "2", "0"]]) == ["0", "2"]
    by_hand = subprocess.run([sys.executable, out, "1", "2", "0"], capture_output=True, text=True, check=True)
    assert json.loads(by_hand.stdout) == "2"
    floors = [row["floor"] for row in told["curve"]]
    assert floors == sorted(floors, reverse=True) and len(floors) >= 3
    for row in told["curve"]:
        assert row["discover_circuit"] >= row["pool"] >= row["floor"]  # the discover split is a part of the pool
    run_ = runs.open_run(planted)
    (explanation,) = store.load_circuit(planted / "circuits" / "task-planted", run_.digest).explanations
    assert explanation.program == text and len(explanation.evidence) == 4
    before = out.read_bytes()
    decompile_circuit(planted, "task-planted", out)  # from what is put away: the same file, one explanation
    assert out.read_bytes() == before
    assert len(store.load_circuit(planted / "circuits" / "task-planted").explanations) == 1


def test_of_a_circuit_unlike_its_model_the_next_step_is_said(planted: Path, tmp_path: Path) -> None:
    whole = store.load_circuit(planted / "circuits" / "task-planted")
    result = json.loads((planted / "circuits" / "task-planted" / "result.json").read_text())
    for settings, step in (({}, None), ({"target": 0.15}, f"openwork discover {planted} --task")):
        empty = (whole - whole).with_origin(**{**whole.origin, "settings": settings})
        runs.keep(planted / "circuits" / "task-empty", empty, {"result.json": result})
        told = decompile_circuit(planted, "task-empty", tmp_path / "empty.py")
        assert "of the discover split" in told["advice"]
        assert ("next" in told) == (step is not None) and (step or "") in told.get("next", "")
    assert told["next"].endswith("--target 0.05")


def test_the_command_says_no_in_one_sentence(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["decompile", str(planted), "--circuit", "task-planted", "--out"]
    assert cli.main([*ask, str(tmp_path / "f.txt")]) == 2
    assert "ends in .py" in capsys.readouterr().err
    assert cli.main(["decompile", str(planted), "--circuit", "nothing", "--out", "f.py"]) == 2
    result = planted / "circuits" / "task-planted" / "result.json"
    had = json.loads(result.read_text())
    for change, says in (
        ({"reference": "counterfactual"}, "differs by example"),
        ({"granularity": "components"}, "heads"),
    ):
        result.write_text(json.dumps(had | change))
        assert cli.main([*ask, str(tmp_path / "f.py")]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "f.py").exists()
    result.write_text(json.dumps(had))
    assert cli.main([*ask, str(tmp_path / "f.py"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["circuit"] == "task-planted"


def test_a_file_that_does_not_run_is_no_evidence(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("raise ValueError('no')")
    with pytest.raises(RunError, match="does not run: ValueError: no"):
        run_file(bad, [["a"]])


def test_answers_and_words() -> None:
    def split(answer: list[int], wrong: list[list[int]]) -> Split:
        n = len(answer)
        return Split(
            "x", (torch.zeros(n, 2),), torch.tensor(answer), torch.tensor(wrong), torch.full((n,), -1), ("",) * n
        )

    assert answers_of([split([3, 1], [[1], [3]])]) == (1, 3)
    assert answers_of([split([3, 1], [[1], [3]]), split([5], [[1]])]) == (1, 3, 5)
    assert unique_words(lambda i: "ab?"[min(i, 2)], 4) == ("a", "b", "<2>", "<3>")
    assert kinds_of(["for", " of", "7", "(", " +", "_x"]).tolist() == [1, 2, 3, 0, 0, 1]
