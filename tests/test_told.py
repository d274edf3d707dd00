"""What a command says to a person: few columns, sentences that are true of the figures, and a next step that runs."""

from __future__ import annotations

import io
import shlex
from typing import Any

import pytest
from rich.console import Console

from openwork import cli, tables, told

EVIDENCE = [
    {"claim": "sufficient", "verdict": "holds", "sentence": "Alone it does [the] task."},
    {"claim": "selective", "verdict": "fails", "sentence": "It costs other tasks 22% of accuracy."},
    {"claim": "program_decides_as_model_ood", "verdict": "too little data", "sentence": "On 24 examples."},
]
KEPT = {"status": "ok", "nodes": 16, "edges": 30, "loss": 0.2725, "accuracy": 0.9167, "n": 48, "discover_loss": 0.2979}
FOUND = {
    "run": "runs/a b", "key": "df14d0d5", "task": "three_eight", "target": 0.3, "status": "ok", "full_loss": 0.0461,
    "loss_reached": 0.2979, "node_based": {**KEPT, "edges": 41}, "edge_pruned": KEPT,
    "whole": {"loss": 0.0155, "accuracy": 1.0, "n": 48}, "reference": "mean", "circuit": "three_eight-auto",
}  # fmt: skip
RUN = {
    "run": "runs/d", "subject": "digits", "regimes": {"topk": {"density": 0.2}},
    "model": {"kind": "mlp", "hidden": [48, 48], "abstopk": 1.0, "bias": True, "embedding": None, "blocks": []},
    "digest": "d1f1e352" * 8,
    "figures": {"steps": 600, "nonzero": 1171, "total": 5856, "verify_loss": 0.0919, "verify_accuracy": 0.976},
    "circuits": [
        {"circuit": "digits-masks", "status": "infeasible", "evidence": []},
        {"circuit": "three_eight-auto", **KEPT, "embedding_edges": 0, "pairs": 108, "evidence": EVIDENCE},
    ],
}  # fmt: skip


def printed(command: str, result: dict[str, Any], width: int = 140) -> str:
    console = Console(width=width, force_terminal=True, highlight=False, record=True, file=io.StringIO())
    tables.show_result(told.in_words(command, result), console)
    return console.export_text()


def test_a_run_with_tested_circuits_is_told_in_few_columns() -> None:
    text = printed("show", RUN)
    (line,) = [x for x in text.splitlines() if x.startswith("│ three_eight-auto")]
    assert [c.strip() for c in line.strip("│").split("│")] == [
        "three_eight-auto", "found", "16", "30", "0.273", "91.7%", "1 holds, 1 fails, 1 had too little data", "-",
    ]  # fmt: skip
    assert "1,171 of 5,856 (20.0%)" in text and "Alone it does [the] task." in text
    assert "hidden 48, 48" in text and "bias" not in text
    assert "embedding" not in text and "abstopk" not in text, "what says nothing of this model is left out"
    assert "three_eight-auto: claims" in text, "a circuit's name is not changed"
    assert "this task's only" in text and "program decides as model (ood)" in text


def test_nothing_is_said_of_a_model_of_your_own_that_is_not_known() -> None:
    own = RUN | {"regimes": {}, "model": {"kind": "own"}, "figures": {}, "circuits": []}
    text = printed("show", own)
    assert "own" in text and not any(word in text for word in ("regime", "shape", "steps", "not zero", "dense"))


def test_evidence_never_stands_in_a_cell_where_another_record_has_none() -> None:
    """The plain tables, too: a list that is empty in one record and full of records in another is no column."""
    rows = [{"circuit": "a", "evidence": []}, {"circuit": "b", "evidence": EVIDENCE}]
    assert [c.header for c in tables.table("circuits", rows).columns] == ["circuit"]
    assert [c.header for c in tables.table("t", [{"a": 1, "circuits": []}]).columns] == ["a", "circuits"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_numbers_are_not_cut_and_tables_fit_the_terminal(width: int) -> None:
    text = printed("discover", FOUND, width)
    for number in ("0.0461", "0.0155", "100.0%", "0.298", "0.273", "91.7%"):
        assert number in text
    wide = [x for x in text.splitlines() if x[:1] in "│┃┏└" and len(x) > width]
    assert not wide or width == 60


def test_a_found_circuit_is_told_beside_the_model_with_the_next_step() -> None:
    text = printed("discover", FOUND)
    assert "df14d0d5" not in text and "0.3 nats" in text and "48 examples" in text
    assert "with all edges between its nodes" in text
    assert "above that target" not in text
    missed = FOUND | {"target": 0.2, "reference": "zero"}
    assert "there its loss is above that target" in printed("discover", missed)
    assert "everything else sending zero" in printed("discover", missed)
    assert "with all edges" not in printed("discover", FOUND | {"node_based": KEPT}), "the same circuit stands once"
    step = shlex.split(next(x for x in text.splitlines() if x.startswith("next: ")).removeprefix("next: "))
    assert step == ["openwork", "verify", "runs/a b", "--circuit", "three_eight-auto"]


def test_what_is_no_edge_is_said_where_nodes_outnumber_edges() -> None:
    tokens = FOUND | {
        "edge_pruned": {**KEPT, "nodes": 117, "edges": 69, "embedding_edges": 340, "unembedding_edges": 9}
    }
    assert "embedding, unembedding and the sums" in printed("discover", tokens)
    assert "unembedding" not in printed("discover", FOUND)


def test_an_export_is_told_with_units() -> None:
    result = {
        "run": "r", "to": "c", "file": "o/model.c", "bytes": 51316, "nodes": [64, 48, 10], "weights": 612,
        "operations": 1330, "executed_by": "cc", "inputs_compared": 250, "largest_difference": 2.77e-7,
        "same_decision": 1.0, "flash_bytes": 17459, "ram_bytes": 80,
    }  # fmt: skip
    text = " ".join(printed("export", result).split())
    for words in ("51,316 bytes", "64-48-10 nodes", "on 100.0%", "17,459", "RAM without the stack (bytes)"):
        assert words in text
    assert "Cortex" not in text, "only what was measured"
    unrun = {k: v for k, v in result.items() if k not in ("largest_difference", "same_decision")}
    assert "decides as" not in printed("export", unrun | {"executed_by": "nothing: there is no C compiler"})


def test_a_table_of_regimes_explains_the_columns_that_it_has() -> None:
    result = {
        "run": "runs/compared", "title": "digits", "table": [{"regime": "topk", "circuit edges": "- (0 of 3)"}],
        "notes": [], "summary": [{"regime": "l0", "status": "diverged", "at": "default"},
                                 {"regime": "topk", "status": "ok", "at": "default"}],
        "circuit": "digits", "command": "openwork compare", "plot": ["p.svg"],
    }  # fmt: skip
    for command in ("compare", "show"):
        text = printed(command, result)
        assert "circuit edges: of the circuit for digits" in text and "wire length" not in text and "p.svg" in text
        assert "next: openwork tasks --run runs/compared/topk/seed0" in text


def test_formulas_stand_beside_the_true_one_with_their_fit() -> None:
    fit = {"r2_model": {"verify": 0.999}, "r2_truth": {"verify": 0.748}, "model_truth": {"verify": 0.749}}
    result = {"run": "r", "file": "f.py", "true": "x1^2", "formulas": [{"output": 0, "text": "0.2*exp(x2)", **fit}]}
    text = printed("decompile", result)
    assert all(word in text for word in ("0.2*exp(x2)", "0.999", "0.748", "0.749", "True is: x1^2."))


def test_where_no_circuit_was_found_the_reason_is_named() -> None:
    none = FOUND | {"status": "infeasible", "edge_pruned": {"status": "infeasible"}}
    text = printed("discover", none)
    assert "No circuit for three_eight reaches the target of 0.3 nats" in text and "0.298 nats" in text
    assert "next:" not in text
    above = printed("discover", none | {"full_loss": 0.36})
    assert "The whole model itself is at 0.360 nats" in above and "0.298" not in above


def test_the_next_step_is_the_first_that_is_missing() -> None:
    def after(*circuits: dict[str, Any]) -> str:
        return told.in_words("show", RUN | {"circuits": list(circuits)})["next"]

    tested, untested = RUN["circuits"][1], {"circuit": "b-auto", **KEPT, "evidence": []}
    said = tested | {"explanations": [{"subject": "three_eight-auto", "mark": "supported"}]}
    assert after() == "openwork discover runs/d --task TASK"
    assert after(RUN["circuits"][0]) == "openwork tasks --run runs/d"
    assert after(tested, untested) == "openwork verify runs/d --circuit b-auto"
    assert after(tested) == "openwork explain runs/d --circuit three_eight-auto"
    assert after(said) == "openwork view runs/d"


def test_every_next_step_is_a_command_line_that_is_understood() -> None:
    verified = {"run": "runs/d", "circuit": "c", "evidence": EVIDENCE}
    report = {
        "run": "r",
        "report": "r/report.html",
        "content": "r/report.json",
        "digest": "ab",
        "signed": False,
        "limits": 3,
    }
    results = {
        "show": RUN, "discover": FOUND, "verify": verified, "report": report,
        "decompile": verified | {"file": "x.py", "lines": 3},
        "train": {"run": "r", "regime": "topk", "steps": 6, "seconds": 1.0, "nonzero": 1, "total": 2, "block_total": 2},
    }  # fmt: skip
    for command, result in results.items():
        step = shlex.split(told.in_words(command, result)["next"])
        assert step[0] == "openwork"
        cli.app.parse_args(step[1:], exit_on_error=False, print_error=False)


def test_results_that_have_no_words_here_stay_as_they_are() -> None:
    for command in ("compare", "show", "discover", "train", "verify", "explain", "decompile", "report"):
        other = {"run": "r", "tasks": [{"a": 1}]}
        assert told.in_words(command, other) is other


def test_the_words_of_an_explanation_stand_apart_from_its_scores() -> None:
    undecided = {"evidence": [{"verdict": "too little data", "sentence": "Too few independent places (24)."}]}
    result = {
        "run": "r", "key": "df14", "title": "t", "notes": ["one"],
        "table": [{"subject": "h:1", "explanation": "Rises.", "nats": 0.1, "trigger": "1*", "verdict": "x"}],
        "explanations": [{"subject": "h:1", **undecided}],
    }  # fmt: skip
    out = told.in_words("explain", result)
    words, scores = out["tables"].values()
    assert list(words[0]) == ["subject", "explanation", "verdict"] and list(scores[0]) == ["subject", "nats", "trigger"]
    assert out["notes"][-1].endswith("Of the first, h:1: Too few independent places (24).")
    assert "df14" not in printed("explain", result)


def test_a_run_of_detectors_goes_on_to_its_page() -> None:
    said = told.in_words(
        "run", {"run": "runs/flows", "never_used": [], "notes": ["a note"], "tables": {"detectors": []}}
    )
    assert said["next"] == "openwork view runs/flows" and said["tables"] == {"detectors": []}
    assert said["notes"][0] == "a note" and "microseconds" in said["notes"][1]
