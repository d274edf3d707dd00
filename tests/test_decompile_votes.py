"""Programs whose answers differ from example to example: what heads do, the votes of places, and who competes.

The planted case is a transformer set by hand whose circuit is induction: its program must come out as the two steps.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c_files import SANITIZED, ask, build, lines_of, logits_of, needs_compiler
from openwork import models, patching, runs, store
from openwork.circuit import HOLDS, Circuit
from openwork.decompiled import among_of, answers_of, decompile_circuit, run_file
from openwork.errors import UsageError
from openwork.explain.decided import evidence_of
from openwork.explain.programs import passes, roles, simplify
from openwork.explain.programs.emit_c import emit_c
from openwork.explain.programs.emit_python import emit_python
from openwork.explain.programs.lower_transformer import lower_transformer
from openwork.explain.programs.names import readable
from openwork.explain.programs.program import (
    Answer,
    Attend,
    Average,
    Bend,
    ByPosition,
    Looks,
    Lookup,
    Match,
    Norm,
    Previous,
    Product,
    Program,
    Step,
    Sum,
    Votes,
    decisions,
    from_dict,
    run,
    size,
    to_dict,
    words_of,
)
from openwork.explain.programs.votes import common, copying, with_votes
from openwork.planted import make_case
from openwork.tasks.patterns import make_pattern_task
from openwork.tasks.task import Split

VOCAB, PLACES, ANSWERS = 7, 9, 4
HOWS: tuple[Looks, ...] = (
    Previous("", 0), Previous("", 2), Average(""), Average("", "w", 0.3), Match("", 1), Match("", 0, "w", 0.2),
    Match("", 2, "w"), Attend("", ("q",), ("k",), "w", 0.5), Attend("", ("q", "p"), ("k", "q"), "", 0.5, 0.3),
)  # fmt: skip


def weigh(how: Looks, known: dict[str, list[float]], tokens: Sequence[int], i: int) -> list[float]:
    """How much places 0 to i count for place i, by plain loops."""
    places = range(i + 1)
    match how:
        case Previous(_, back):
            return [float(j == i - back) for j in places]
        case Average(_, weight, nothing):
            w = [known[weight][j] if weight else 1.0 for j in places]
            return [x / (sum(w) + nothing) for x in w]
        case Match(_, back, weight, others):
            own = [known[weight][j] if weight else 1.0 for j in places]
            hit = []
            for j in places:
                source = j - back if j >= back else 0
                hit.append(source < i and tokens[source] == tokens[i])
            w = [x * (1.0 if h else others) for x, h in zip(own, hit, strict=True)]
            w = w if sum(w) > 0 else own
            return [x / sum(w) for x in w]
        case Attend(_, query, key, score, scale, sink):
            z = [scale * sum(known[q][i] * known[k][j] for q, k in zip(query, key, strict=True)) for j in places]
            e = [math.exp(x + (known[score][j] if score else 0.0)) for j, x in enumerate(z)]
            return [x / (sum(e) + (0.0 if sink is None else math.exp(sink))) for x in e]
    raise AssertionError(how)


def voting(how: Looks, seed: int) -> Program:
    """Votes and an average of one way of looking, beside logits of their own."""
    rng = np.random.default_rng(seed)

    def table() -> Lookup:
        return Lookup(tuple((i, float(rng.normal())) for i in range(1, VOCAB, 2)), float(rng.normal()))

    rows = tuple((i, tuple(rng.normal(size=ANSWERS).tolist())) for i in (1, 2, 5))
    steps = (
        Step("v", table()), Step("q", table()), Step("k", table()),
        Step("p", ByPosition(tuple(rng.normal(size=PLACES).tolist()))), Step("raw", table()),
        Step("w", Bend("raw", "exp")), Step("seen", replace(how, value="v")), Step("twice", Sum((("p", 2.0),))),
        Step("votes", Votes(how, 1.5, rows, tuple(rng.normal(size=ANSWERS).tolist())), "what places */ say"),
        Step("words", Votes(how, -0.5)), Step("a", Sum((("seen", 2.0), ("p", -1.0)), 0.3)),
        Step("b", Sum((("seen", 0.5),))),
    )  # fmt: skip
    answers = tuple(Answer(f"t{i}", i, step) for i, step in ((1, "a"), (2, "b"), (4, ""), (6, "twice")))
    return words_of(Program("tokens", steps, answers), lambda i: f"t{i}")


def slowly(program: Program, tokens: Sequence[int]) -> list[float]:
    """The logits of a program of `voting`, by plain loops."""
    known: dict[str, list[float]] = {}
    votes = [0.0] * ANSWERS
    last = len(tokens) - 1
    for s in program.steps:
        match s.op:
            case Lookup(table, default):
                known[s.name] = [dict(table).get(t, default) for t in tokens]
            case ByPosition(values):
                known[s.name] = [values[i] for i in range(len(tokens))]
            case Bend(of, "exp"):
                known[s.name] = [math.exp(x) for x in known[of]]
            case Sum(terms, bias):
                known[s.name] = [bias + sum(c * known[n][i] for n, c in terms) for i in range(len(tokens))]
            case Votes(how, copy, rows, default):
                for j, w in enumerate(weigh(how, known, tokens, last)):
                    for k, a in enumerate(program.answers):
                        votes[k] += w * (copy * (tokens[j] == a.index))
                        votes[k] += w * dict(rows).get(tokens[j], default or (0.0,) * ANSWERS)[k]
            case Attend(v) | Average(v) | Match(v) | Previous(v):
                w = [weigh(s.op, known, tokens, i) for i in range(len(tokens))]
                known[s.name] = [sum(x * known[v][j] for j, x in enumerate(w[i])) for i in range(len(tokens))]
    return [(known[a.step][last] if a.step else 0.0) + votes[k] for k, a in enumerate(program.answers)]


def inputs(seed: int, n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(VOCAB, size=(n, PLACES)), rng.integers(PLACES, size=n)


# -- the operations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOWS, ids=lambda h: f"{type(h).__name__}-{getattr(h, 'back', '')}")
def test_votes_and_matches_are_what_plain_loops_say(how: Looks) -> None:
    program, (tokens, at) = voting(how, 1), inputs(2)
    wanted = [slowly(program, tokens[i, : at[i] + 1].tolist()) for i in range(len(tokens))]
    np.testing.assert_allclose(run(program, tokens, at), wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(run(passes.fold(program), tokens, at), wanted, rtol=1e-9, atol=1e-9)
    assert from_dict(json.loads(json.dumps(to_dict(program)))) == program


@pytest.mark.parametrize("how", HOWS, ids=lambda h: f"{type(h).__name__}-{getattr(h, 'back', '')}")
@pytest.mark.parametrize("choosing", [False, True])
def test_the_text_computes_what_the_program_does(how: Looks, choosing: bool) -> None:
    program, (tokens, at) = voting(how, 3), inputs(4)
    for p in (program, readable(program)):
        names: dict[str, Any] = {"__name__": "a_file"}
        exec(compile(emit_python(p, ["A text."], choosing), "a_file", "exec"), names)
        told = [list(names["scores"]([f"t{t}" for t in tokens[i, : at[i] + 1]]).values()) for i in range(len(tokens))]
        np.testing.assert_allclose(told, run(program, tokens, at), rtol=1e-9, atol=1e-9)


@needs_compiler
@pytest.mark.parametrize("how", HOWS, ids=lambda h: f"{type(h).__name__}-{getattr(h, 'back', '')}")
def test_the_c_file_computes_what_the_program_does(how: Looks, tmp_path: Path) -> None:
    program, (tokens, at) = voting(how, 5), inputs(6)
    binary = build(emit_c(program, "votes", choosing=True), tmp_path, *SANITIZED)
    wanted = run(program, tokens, at)
    np.testing.assert_allclose(logits_of(ask(binary, lines_of(tokens, at))), wanted, rtol=1e-9, atol=1e-9)
    some = "".join(f"{line} | 1 6\n" for line in lines_of(tokens, at).splitlines())
    told = logits_of(ask(binary, some))
    np.testing.assert_allclose(told[:, [0, 3]], wanted[:, [0, 3]], rtol=1e-9, atol=1e-9)
    assert np.isneginf(told[:, 1:3]).all()
    assert ask(binary, "1 2 | x\n").returncode == 2
    plain = build(emit_c(program), tmp_path, *SANITIZED)
    np.testing.assert_allclose(logits_of(ask(plain, lines_of(tokens, at))), wanted, rtol=1e-9, atol=1e-9)
    assert ask(plain, "1 2 | 1\n").returncode == 2


def test_a_match_by_hand() -> None:
    def seen(back: int, tokens: list[int]) -> float:
        steps = (Step("v", Lookup(tuple((i, float(i)) for i in range(9)))), Step("m", Match("v", back)))
        program = Program("tokens", steps, (Answer("a", 0, "m"),))
        return float(run(program, np.array([tokens]), np.array([len(tokens) - 1]))[0, 0])

    assert seen(1, [0, 5, 7, 6, 5, 8, 5]) == (7 + 8) / 2  # what followed 5 each time
    assert seen(0, [0, 5, 7, 6, 5, 8, 5]) == 5.0  # where 5 stood before
    assert seen(2, [0, 5, 7, 6, 3, 8, 5]) == 6.0  # two after it
    assert seen(1, [0, 1, 2, 3]) == 1.5  # 3 never stood there: the average of all


def test_votes_of_another_number_of_answers_are_refused() -> None:
    with pytest.raises(UsageError, match="has 2 numbers, not 1"):
        Program("tokens", (Step("x", Votes(Average(""), 0.0, (), (1.0, 2.0))),), (Answer("a", 0, ""),))


def test_the_size_of_a_vote_is_what_is_written_down() -> None:
    rows = ((1, (0.5, 1.0)), (2, (0.5, 1.0)), (3, (0.0, 2.0)))
    votes = Votes(Match("", 1, "", 0.25), 3.0, rows, (0.0, 0.0))
    found = size(Program("tokens", (Step("x", votes),), (Answer("a", 0, ""), Answer("b", 1, ""))))
    assert (found.constants, found.tokens) == (1 + 1 + 3 * 2, 3)  # others, copy, three different rows


# -- exact rewritings ------------------------------------------------------------------------------------------------


def attention_only(seed: int, norm: bool) -> tuple[Program, np.ndarray, np.ndarray]:
    """The program of a random circuit of two layers without neurons, and inputs."""
    g = torch.Generator().manual_seed(seed)
    shape = {"vocab": VOCAB, "n_layer": 2, "d_model": 8, "d_head": 4, "d_mlp": 1, "n_ctx": PLACES, "norm": norm}
    model = models.build({"kind": "transformer", **shape, "bigram": False}, seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.7)
    graph = patching.graph_of(model)
    nodes = {s.name: torch.rand(s.size, generator=g) < 0.8 for s in graph.sites if s.prunable}
    circuit = Circuit.from_nodes(graph, nodes, patching.support(model))
    reference = {
        s.name: torch.randn(s.size, generator=g) * 0.5
        if s.module or s.kind != "input"
        else torch.softmax(torch.randn(s.size, generator=g), 0)
        for s in graph.sites
    }
    answers = (1, 2, 4, 6)
    program = lower_transformer(model, circuit, reference, answers, [f"t{i}" for i in answers], PLACES)  # type: ignore[arg-type]
    return program, *inputs(seed, 40)


@pytest.mark.parametrize("seed", range(4))
def test_votes_are_the_same_logits_written_otherwise(seed: int) -> None:
    program, tokens, at = attention_only(seed, norm=False)
    folded = passes.fold(program)
    voted = passes.fold(with_votes(folded, VOCAB))
    assert any(isinstance(s.op, Votes) for s in voted.steps)
    np.testing.assert_allclose(run(voted, tokens, at), run(program, tokens, at), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_a_factor_of_all_logits_decides_nothing(seed: int) -> None:
    factored = (
        Step("x", Lookup(((1, 2.0), (3, -1.0)), 0.5)), Step("scale", Norm(("x",), "", 4, 0.1)),
        Step("y", Lookup(((2, 1.0),))), Step("a", Product("x", "scale")), Step("b", Product("scale", "y")),
    )  # fmt: skip
    program = Program("tokens", factored, (Answer("a", 0, "a"), Answer("b", 1, "b"), Answer("c", 2, "a")))
    tokens, at = inputs(seed)
    plain = common(program)
    assert "scale" not in plain.by_name
    np.testing.assert_array_equal(decisions(run(plain, tokens, at)), decisions(run(program, tokens, at)))
    other = Program("tokens", factored, (Answer("a", 0, "a"), Answer("b", 1, "y"), Answer("c", 2, "a")))
    assert common(other) is other  # one logit has not that factor


def test_copying_is_what_words_give_themselves_beyond_what_they_give_others() -> None:
    rows = ((1, (5.0, 1.0)), (2, (2.0, 4.0)), (3, (9.0, 9.0)))
    often = np.array([0.0, 3.0, 1.0, 0.0])
    plain = copying(Votes(Average(""), 0.0, rows, (0.0, 0.0)), {1: 0, 2: 1}, often, rest=False)
    assert plain.copy == pytest.approx((3 * (5 - 1) + 1 * (4 - 2)) / 4) and not plain.rows and not plain.default
    kept = copying(Votes(Average(""), 0.0, rows, (0.0, 0.0)), {1: 0, 2: 1}, often, rest=True)
    assert kept.default == ((3 * 5.0 + 2.0) / 4, (3 * 1.0 + 4.0) / 4)


# -- who competes ----------------------------------------------------------------------------------------------------


def test_a_decision_is_made_among_those_that_compete() -> None:
    logits = np.array([[3.0, 2.0, 1.0], [0.0, 5.0, 5.0]])
    assert decisions(logits).tolist() == [0, 1]
    assert decisions(logits, np.array([[False, True, True], [True, False, True]])).tolist() == [1, 2]


@pytest.mark.parametrize("name", ["induction", "ioi", "greater_than"])
def test_who_competes_is_the_right_answer_and_the_wrong_ones(name: str) -> None:
    task = make_pattern_task(name, 20)
    ids = answers_of(list(task.splits.values()))
    for split in task.splits.values():
        mask = among_of(split, ids)
        for row, right, wrong in zip(mask, split.answer.tolist(), split.wrong.tolist(), strict=True):
            assert {ids[k] for k in np.flatnonzero(row)} == {right, *wrong}


def test_the_pool_keeps_patterns_and_offers_what_stands_in_the_text() -> None:
    task = make_pattern_task("induction", 40)
    split = task.split("discover")
    ids = np.array(answers_of(list(task.splits.values())))
    mask = among_of(split, ids.tolist())
    tokens, at = (x.numpy() for x in split.inputs)
    kinds = np.ones(140, dtype=np.int64)
    kinds[:4] = 0
    among = simplify.Among(mask, ids)
    pool, again = (simplify.pool_of(tokens, at, kinds, 48, 3, among) for _ in range(2))
    assert pool.among is not None and again.among is not None
    np.testing.assert_array_equal(pool.tokens, again.tokens)
    np.testing.assert_array_equal(pool.among, again.among)
    own, renamed, _ = pool.parts
    np.testing.assert_array_equal(pool.among[:own], mask)
    different = 0
    for i in range(own, len(pool.tokens)):
        text = pool.tokens[i, : pool.at[i] + 1]
        assert pool.among[i].any()
        if i >= own + renamed and np.isin(ids, text).any():
            assert pool.among[i][np.isin(ids, text)].any()  # one that stands there competes
            assert pool.among[i].sum() <= 3
        if i < own + renamed:
            old = tokens[i % own, : at[i % own] + 1]
            np.testing.assert_array_equal(old[:, None] == old, text[:, None] == text)  # one word for one word
            assert set(text[np.isin(old, ids)].tolist()) <= set(ids.tolist())  # answers for answers
            different += int((old != text).any())
            followed = text[np.flatnonzero(text[:-1] == text[-1])[0] + 1]  # what is right in the new text
            assert pool.among[i][np.flatnonzero(ids == followed)].all()
    assert different > renamed / 2


def test_rounding_does_not_decide_between_words_that_are_as_good() -> None:
    steps = (Step("x", Lookup(((1, 1.0),))), Step("y", Lookup(((1, 1.0 + 1e-9), (2, 3.0)))), Step("z", Lookup(())))
    exact = Program("tokens", steps, tuple(Answer(n, k, n) for k, n in enumerate("xyz")))
    pool = simplify.Pool(np.array([[1], [2]]), np.array([0, 0]), (2, 0, 0))
    judge = simplify.Judge(exact, pool)

    def share(y: float, z: float) -> float:
        other = exact.with_ops({"y": Lookup(((1, y), (2, 3.0))), "z": Lookup((), z)})
        return judge.share(simplify.Trace(other, pool.tokens, pool.at))

    assert share(0.9, 0.0) == 1.0  # x instead of y, which is ahead by a rounding
    assert share(0.9, 2.0) == 0.5  # z, which is not


def test_the_null_of_agreement_counts_places_among_the_candidates() -> None:
    n = 40
    theirs = np.arange(n) % 20
    split = Split(
        "verify", (torch.zeros(n, 2),), torch.zeros(n, dtype=torch.long), torch.ones(n, 1, dtype=torch.long),
        torch.full((n,), -1), ("",) * n,
    )  # fmt: skip
    assert evidence_of("program", "circuit", theirs, theirs, 0.9, split).null_value == 1 / 20
    halves = evidence_of("program", "circuit", theirs, theirs, 0.9, split, places=np.arange(n) % 2)
    assert halves.null_value == 0.5


# -- roles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letters", [4, 6])
def test_the_induction_circuit_reads_as_induction(letters: int) -> None:
    case = make_case({4: "hand_induction_4x9", 6: "hand_induction_6x12"}[letters], 0)
    split = case.task.split("discover")
    tokens, at = (x.numpy().astype(np.int64) for x in split.inputs)
    ids = tuple(range(letters))
    zero = patching.zero_reference(case.model)
    exact = lower_transformer(case.model, case.truth, zero, ids, [str(i) for i in ids], tokens.shape[1])  # type: ignore[arg-type]
    assert len(roles.heads(exact)) == 2
    pool = simplify.pool_of(tokens, at, np.ones(letters, dtype=np.int64), tokens.shape[1])
    short = simplify.simplified(exact, pool, 0.99)
    (step,) = short.steps  # the two heads are one sentence: what followed the earlier ones of this word
    assert isinstance(step.op, Votes)
    assert step.op.how == Match("", back=1) and step.op.copy > 0 and not step.op.rows
    assert simplify.simplified(exact, pool, 0.99) == short


def test_a_head_that_looks_back_is_no_induction_head() -> None:
    """The roles are told apart: where what stood before the last word decides, `Match` is not taken for it."""
    steps = (
        Step("place", ByPosition(tuple(float(p) for p in range(PLACES)))), Step("square", Product("place", "place")),
        Step("one", Sum((), 1.0)), Step("query", Sum((("place", 60.0),))),
        Step("key", Sum((("square", -30.0), ("place", -60.0)))),
        *(Step(f"is{i}", Lookup(((i, 1.0),))) for i in (1, 2, 4)),
        *(Step(f"seen{i}", Attend(f"is{i}", ("query", "one"), ("place", "key"))) for i in (1, 2, 4)),
        *(Step(f"logit{i}", Sum(((f"seen{i}", 8.0),))) for i in (1, 2, 4)),
    )  # fmt: skip
    exact = Program("tokens", steps, tuple(Answer(f"t{i}", i, f"logit{i}") for i in (1, 2, 4)))
    tokens, at = inputs(0, 150)
    pool = simplify.pool_of(tokens, np.maximum(at, 1), np.ones(VOCAB, dtype=np.int64), PLACES)
    short = simplify.simplified(exact, pool, 0.98)
    assert [s.op.how for s in short.steps if isinstance(s.op, Votes)] == [Previous("", 1)]
    assert not any(isinstance(s.op, (Attend, Match)) for s in short.steps)


# -- whole, on a run -------------------------------------------------------------------------------------------------

PLANTED = """
from dataclasses import replace
import torch
from openwork.planted import make_case
def model():
    return make_case("hand_induction_6x12", 0).model
def task():
    whole = make_case("hand_induction_6x12", 0).task
    def fewer(s):
        one = torch.stack([row[int(a) % row.numel()] for row, a in zip(s.wrong, s.answer)])
        return replace(s, wrong=one[:, None])
    return replace(whole, splits={n: fewer(s) for n, s in whole.splits.items()})
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose circuit is induction, of a task in which two letters compete; its name is task-planted."""
    (tmp_path / "planted_induction.py").write_text(PLANTED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "planted_induction", raising=False)
    path = tmp_path / "run"
    runs.begin_own_run(path, "planted_induction:model", "planted_induction:task")
    truth = make_case("hand_induction_6x12", 0).truth
    said = {"method": "planted", "task": "planted_induction:task", "model": runs.open_run(path).digest}
    result = {
        "key": "k", "task": "planted_induction:task", "status": "ok", "reference": "zero", "granularity": "weights"
    }  # fmt: skip
    runs.keep(path / "circuits" / "task-planted", truth.with_origin(**said), {"result.json": result})
    return path


def test_a_circuit_of_a_task_with_other_answers_each_time_becomes_a_file(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "induction.py"
    told = decompile_circuit(planted, "task-planted", out, 0.99)
    assert {e["claim"]: e["verdict"] for e in told["evidence"]} == dict.fromkeys(
        [f"program_decides_as_{what}{split}" for split in ("", "_ood") for what in ("circuit", "model")], HOLDS
    )
    text = out.read_text()
    assert "points(tokens, 1)[-1]" in text and text.count("\n") < 75
    tokens = list("135025430")
    assert run_file(out, [tokens]) == ["2"]  # 2 followed 0
    assert run_file(out, [tokens, tokens], [["1", "3"], ["2", "1"]])[1] == "2"
    by_hand = subprocess.run([sys.executable, out, *tokens], capture_output=True, text=True, check=True)
    assert json.loads(by_hand.stdout) == "2"
    circuit = store.load_circuit(planted / "circuits" / "task-planted")
    assert circuit.explanations[0].program == text
    before = out.read_bytes()
    decompile_circuit(planted, "task-planted", out, 0.99)  # from what is put away
    assert out.read_bytes() == before


@needs_compiler
def test_the_c_twin_decides_among_the_same_answers(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "induction.py"
    decompile_circuit(planted, "task-planted", out, 0.99)
    binary = build(out.with_suffix(".c").read_text(), tmp_path, *SANITIZED)
    run_ = runs.open_run(planted)
    split = run_.task("planted_induction:task").split("verify")
    mask = among_of(split, range(6))
    texts = [[str(t) for t in row[: int(a) + 1].tolist()] for row, a in zip(*split.inputs, strict=True)]
    wanted = run_file(out, texts, [[str(k) for k in np.flatnonzero(m)] for m in mask])
    lines = "".join(
        f"{' '.join(t)} | {' '.join(map(str, np.flatnonzero(m)))}\n" for t, m in zip(texts, mask, strict=True)
    )
    assert logits_of(ask(binary, lines)).argmax(1).tolist() == [int(w) for w in wanted]
