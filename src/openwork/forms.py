"""A circuit of named features or of an image, and a regression's model, in a form that a person can read.

    python    the circuit's own steps, one Python file and one C99 file beside it that decide alike
    rules     nested if and else that imitate the circuit's decisions (a tree over the features)
    formula   a Boolean formula, where the inputs have two values or the circuit is binarised; of a regression, which
              has no circuits, a formula per output of the whole model

The form is chosen on the discover split. What is written is then run, in a process of its own where it is a Python
file, on the verify and ood splits, and compared with the circuit and with the whole model; text and figures become an
`Explanation` of the circuit.

Knows run folders and the forms by name. Does not know how a form is come by.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from openwork import patching, store
from openwork.circuit import Circuit, Evidence, Explanation
from openwork.errors import RunError, UsageError, unknown
from openwork.explain.decided import JUDGED, Ids, answers_of, evidence_of, logits_of, preferred
from openwork.explain.programs.binarised import Binarised, BinariseSettings, binarise, with_levels
from openwork.explain.programs.bits import formula_of_binarised, merged_bits, roles
from openwork.explain.programs.boolean_formula import boolean_account
from openwork.explain.programs.decision_rules import rules_of, short_threshold
from openwork.explain.programs.emit_c import emit_c
from openwork.explain.programs.emit_features import MAIN, emit_features, formula_lines, quoted, rounded
from openwork.explain.programs.image_program import ImageProgram, emit_image_c, lower_cnn
from openwork.explain.programs.lower_perceptron import feature_names, identifiers, lower_perceptron
from openwork.explain.programs.program import Program
from openwork.explain.programs.symbolic_formula import formulas_of_model
from openwork.models import CNN, MLP
from openwork.runs import Run, circuit_folder, keep, open_run
from openwork.tasks.symbolic import SymbolicData
from openwork.tasks.task import Split, Task
from openwork.workers import report

Result = dict[str, Any]
Form = Literal["python", "rules", "formula"]
FORMS: tuple[str, ...] = ("python", "rules", "formula")
AUTHOR = "openwork decompile"
WANTED = {"circuit": 0.99, "model": 0.97}  # share of decisions that an account has to share
PATIENCE = 300  # seconds that a written file may take over one split


@dataclass(frozen=True, eq=False)
class _Asked:
    """A circuit, its task, what is sent for what it ablates, and how answers and features read."""

    run: Run
    folder: Path
    circuit: Circuit
    task: Task
    reference: patching.Reference
    ids: tuple[int, ...]
    texts: tuple[str, ...]
    features: tuple[str, ...]


def write_form(path: Path, name: str, out: Path, form: str = "python", binarised: bool = False) -> Result:
    """Writes a circuit of features or images in a form, tests it, and stores it as an explanation (a job).

    name       of the circuit, or of its task when only one method has been used
    out        the Python file to write; beside it F.c of the form "python"
    form       one of FORMS
    binarised  give every kept neuron two levels first (forms "python" and "formula")

    UsageError for a circuit of another kind of model, or a form that does not go with it.
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    if out.suffix != ".py":
        raise UsageError(f"--out {out}: the form is written as Python, so name a file that ends in .py.")
    if binarised and form == "rules":
        raise UsageError("rules are fitted to decisions and have no neurons; leave out --binarised, or choose a form.")
    asked = _asked(path, name)
    two = _binarised(asked) if binarised else None
    told: Result = {"run": str(path), "circuit": asked.folder.name, "task": asked.task.name, "form": form}
    if form == "python":
        text, more = _python(asked, two, out)
    else:
        text, more = _rules(asked) if form == "rules" else _formula(asked, two)
    evidence = _tested(asked, form, text)
    text = _with_head(text, asked, form, evidence)
    store.write_text(out, text)
    if [e.value for e in _tested(asked, form, text)] != [e.value for e in evidence]:
        raise RunError(f"{out} does not decide as its own draft did.")
    if "c" in more:
        store.write_text(out.with_suffix(".c"), more.pop("c"))
        told["c_file"] = str(out.with_suffix(".c"))
    author = f"{AUTHOR} --form {form}" + (" --binarised" if binarised else "")
    explanation = Explanation(asked.folder.name, author, more.get("says", f"runs as {out.name}"), text, tuple(evidence))
    others = tuple(x for x in asked.circuit.explanations if x.author != author)
    keep(asked.folder, replace(asked.circuit, explanations=(*others, explanation)), {})
    told |= {"file": str(out), "lines": text.count("\n"), **more}
    if two is not None:
        told |= {"nodes_of_two_levels": two.nodes, "loss_before_and_after": two.loss}
    return told | {"evidence": [vars(e) | {"details": dict(e.details)} for e in evidence]}


def write_formulas(path: Path, out: Path) -> Result:
    """Writes a formula per output of a regression's whole model, beside the true one (a job).

    UsageError for a run that is no regression on formulas.
    """
    run = open_run(path)
    data = run.subject.training_data(1, int(run.settings.get("seed", 0)))
    if not isinstance(data, SymbolicData) or not isinstance(run.model, MLP):
        raise UsageError(f"{path} was not trained on a formula; name one of its circuits (--circuit) instead.")
    if out.suffix != ".py":
        raise UsageError(f"--out {out}: the formulas are written as Python, so name a file that ends in .py.")
    names = feature_names(run.model.config.inputs, run.subject.name)
    accounts = formulas_of_model(run.model, data, names)
    report("decompile: formulas", len(accounts), len(accounts))
    held = [(a.text, a.r2_model["verify"], a.r2_truth["verify"], a.model_truth["verify"]) for a in accounts]
    head = [
        f'"""{run.subject.name}. True is',
        "",
        f"    {data.formula.says}",
        "",
        "R^2 is that of the verify split.",
        '"""',
        "",
    ]
    rows = [
        f"    # with the model {m:.4f}, with the truth {t:.4f} (the model: {o:.4f})\n    {quoted(x)},"
        for x, m, t, o in held
    ]
    store.write_text(out, "\n".join([*head, f"FORMULAS = [  # over {', '.join(names)}", *rows, "]"]) + "\n")
    formulas = [vars(a) | {"true": data.formula.says} for a in accounts]
    return {"run": str(path), "file": str(out), "true": data.formula.says, "formulas": formulas}


# -- what is asked ---------------------------------------------------------------------------------------------------


def _asked(path: Path, name: str) -> _Asked:
    """The circuit that is asked for; refuses what has no such form."""
    run = open_run(path)
    folder = circuit_folder(run, name)
    result = store.read_json(folder / "result.json")
    circuit = store.load_circuit(folder, run.digest)
    kind = result.get("reference", "mean")
    if not isinstance(run.model, MLP | CNN) or result.get("granularity", "weights") != "weights":
        raise UsageError(f"{folder.name} is no circuit of a perceptron's or a convolutional network's nodes.")
    if kind not in ("mean", "zero"):
        raise UsageError(
            f"{folder.name} was found under the reference {kind}, which differs by example, so no program has it at "
            "hand; find a circuit with --reference mean or zero."
        )
    reference = run.reference if kind == "mean" else patching.zero_reference(run.model)
    task = _flat(run.task(circuit.origin.get("task", result["task"])))
    ids, texts = answers_of(task)
    width = task.split("discover").inputs[0].shape[1]
    own = tuple(getattr(run.subject, "features", ()))
    features = identifiers(own) if own else feature_names(width, run.subject.name)
    return _Asked(run, folder, circuit, task, reference, ids, texts, features)


def _flat(task: Task) -> Task:
    """The same task with every example as one row of numbers: images [N, C, H, W] as [N, F]."""
    splits = {n: replace(s, inputs=(s.inputs[0].flatten(1),)) for n, s in task.splits.items()}
    return replace(task, splits=splits) if task.split("discover").inputs[0].dim() > 2 else task


def _binarised(asked: _Asked) -> Binarised:
    return binarise(
        asked.run.model, asked.circuit, asked.reference, asked.task, BinariseSettings.model_validate({}),
        watch=lambda done, of: report(f"binarise {asked.folder.name}", done, of),
    )  # fmt: skip


def _lowered(asked: _Asked, two: Binarised | None, digits: bool = True) -> Program | ImageProgram:
    """The circuit's program, with two levels per neuron where these are given, and (`digits`) with short constants."""
    model, x = asked.run.model, asked.task.split("discover").inputs[0].double().numpy()
    if isinstance(model, CNN):
        if two is not None:
            raise UsageError("a convolutional network's maps stay maps; leave out --binarised.")
        return lower_cnn(model, asked.circuit, asked.reference, asked.ids, asked.texts)
    assert isinstance(model, MLP)
    exact = lower_perceptron(model, asked.circuit, asked.reference, asked.ids, asked.texts, asked.features)
    program = exact if two is None else merged_bits(with_levels(exact, two.levels))
    return rounded(program, x) if digits else program


# -- the forms -------------------------------------------------------------------------------------------------------


def _python(asked: _Asked, two: Binarised | None, out: Path) -> tuple[str, Result]:
    program = _lowered(asked, two)
    about = f"{asked.task.name}: {asked.task.about}. The C twin of {out.name}."
    image = isinstance(program, ImageProgram)
    c = emit_image_c(program, about) if image else emit_c(program, about)
    steps = program.program.steps if image else program.steps
    said = {"roles": roles(program)} if two is not None and not image else {}
    return emit_features(program, ["A draft."]), {"c": c, "steps": len(steps), **said}


def _rules(asked: _Asked) -> tuple[str, Result]:
    found = rules_of(asked.run.model, asked.circuit, asked.reference, asked.task, asked.features)
    more = {"leaves": found.leaves(), "cross_validated": found.folds, "says": found.text()}
    return "\n".join(['"""A draft."""', "", "import sys", "", "", found.python(), "", "", MAIN]), more


def _formula(asked: _Asked, two: Binarised | None) -> tuple[str, Result]:
    if not isinstance(asked.run.model, MLP):
        raise UsageError("a convolutional network's inputs are too many for a formula; write --form python.")
    if two is None:
        account = boolean_account(asked.run.model, asked.circuit, asked.reference, asked.task, asked.features)
        x = asked.task.split("discover").inputs[0].double().numpy()
        formula = account.formula
        bound = dict(zip(asked.features, ((x.min(0) + x.max(0)) / 2).tolist(), strict=True))
    else:
        if len(asked.ids) != 2:
            raise UsageError(f"{asked.task.name} has {len(asked.ids)} answers; a formula tells two apart.")
        program = _lowered(asked, two, digits=False)
        assert isinstance(program, Program)
        formula, exact = formula_of_binarised(program)
        x = asked.task.split("discover").inputs[0].double().numpy()
        bound = {n: short_threshold(x[:, asked.features.index(n)], t) for n, t in exact.items()}
    index = {n: i for i, n in enumerate(asked.features)}
    lines = [f"    {n} = features[{index[n]}] > {bound[n]!r}" for n in formula.inputs()]
    yes, no = asked.texts[1], asked.texts[0]
    lines += [*formula_lines("says", str(formula)), f"    return {quoted(yes)} if says else {quoted(no)}"]
    body = ["def decide(features: list[float]) -> str:", '    """The answer that the formula gives."""', *lines]
    text = "\n".join(['"""A draft."""', "", "import sys", "", "", *body, "", "", MAIN])
    over = "; ".join(f"{n}: over {bound[n]:.4g}" for n in formula.inputs()) if two is not None else ""
    says = f'"{yes}" where {formula}, else "{no}"' + (f" ({over})" if over else "")
    return text, {"formula": str(formula), "says": says}


# -- testing ---------------------------------------------------------------------------------------------------------


def _tested(asked: _Asked, form: str, text: str) -> list[Evidence]:
    """The text's decisions, run as a file of its own, beside those of the circuit and of the whole model."""
    out = []
    what = {"python": "program"}.get(form, form)
    for name in (n for n in JUDGED if n in asked.task.splits and len(asked.task.split(n))):
        split = asked.task.split(name)
        began = time.perf_counter()
        mine = run_file(text, split, asked.ids, asked.texts)
        seconds = time.perf_counter() - began
        for whose, circuit in (("circuit", asked.circuit), ("model", None)):
            theirs = _best(asked, split, circuit)
            out.append(evidence_of(what, whose, mine, theirs, WANTED[whose], split, seconds))
    return out


def _best(asked: _Asked, split: Split, circuit: Circuit | None) -> Ids:
    """The answer with the largest logit [N], among all answers of the task: what a file without candidates can say."""
    logits = logits_of(asked.run.model, circuit, asked.reference, split)
    every = len(asked.ids) == split.wrong.shape[1] + 1
    return preferred(logits, split) if every else np.array(asked.ids)[logits[:, list(asked.ids)].argmax(1).numpy()]


def run_file(text: str, split: Split, ids: Sequence[int], texts: Sequence[str]) -> Ids:
    """What the text of a Python file answers on a split's features, in a process of its own, as output indices [N]."""
    given = "".join(" ".join(map(repr, row)) + "\n" for row in split.inputs[0].double().tolist())
    with tempfile.TemporaryDirectory() as temp:
        at = Path(temp) / "form.py"
        at.write_text(text, encoding="utf-8")
        command = [sys.executable, "-X", "utf8", "-I", str(at)]
        try:
            done = subprocess.run(
                command, input=given, capture_output=True, encoding="utf-8", timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired as e:
            raise RunError(f"the file did not answer {len(split)} examples within {PATIENCE} seconds.") from e
    if done.returncode != 0:
        raise RunError(f"the file does not run: {done.stderr.strip().rsplit(chr(10), 1)[-1]}")
    place = dict(zip(texts, ids, strict=True))
    return np.array([place[a] for a in done.stdout.split("\n")[:-1]], dtype=np.int64)


def _with_head(text: str, asked: _Asked, form: str, evidence: Sequence[Evidence]) -> str:
    """The text with a docstring that says what it decides, where it comes from and how well it agrees."""
    about = asked.task.about[:1].upper() + asked.task.about[1:].rstrip(".")
    lines = [f'"""{asked.task.name}: {about}.', "", f"Form {form}, made by openwork decompile from the circuit"]
    lines += [f"{asked.folder.name} of the model {asked.run.digest[:16]}.", ""]
    for e in evidence:
        whose = "circuit" if "_as_circuit" in e.claim else "model"
        lines.append(f"    {e.split:<8} as the {whose:<8} {e.value:6.1%} of {e.n} examples")
    return text.replace('"""A draft."""', "\n".join([*lines, '"""']), 1)


__all__ = ["FORMS", "Form", "run_file", "write_form", "write_formulas"]
