"""Circuits and models in forms that a person can read: programs, rules, formulas, two levels; and how far each is true.

    python benchmarks/forms.py [--seeds 0 1] [--runs runs/forms] [--demo runs/evidence]

Trains and searches what is missing with `openwork train` and `openwork discover`; writes docs/results/forms.md. Every
form is chosen on the discover split and judged on the others. With --demo, the neurons of a language model's circuits
get two levels too (minutes per circuit).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from quotes import table

from openwork import store, threads  # noqa: F401  threads before torch
from openwork.explain.decided import answers_of, logits_of
from openwork.explain.programs.binarised import binarise
from openwork.explain.programs.boolean_formula import boolean_account, differences
from openwork.explain.programs.lower_perceptron import feature_names
from openwork.files import write_text
from openwork.forms import write_form, write_formulas
from openwork.planted import make_case
from openwork.planted.boolean import FORMULAS, places_of
from openwork.progress import Progress
from openwork.runs import circuit_folder, open_run
from openwork.tasks.symbolic import FORMULAS as SYMBOLIC

PAGE = Path(__file__).parents[1] / "docs" / "results" / "forms.md"
TASKS = ("three_eight", "four_nine", "one_seven")
HOW = (("python", False), ("python", True), ("rules", False), ("formula", True))
CIRCUITS = ("single_double_quote-masks", "with_open-masks", "bracket_brace-masks", "while_return_true-masks")


def openwork(*words: object) -> None:
    """One command of openwork, in a process of its own."""
    command = [sys.executable, "-m", "openwork", *map(str, words), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def trained(runs: Path, subject: str, regime: str, seed: int, tasks: tuple[str, ...] = ()) -> Path:
    """A run and the circuits of its tasks, made where missing."""
    at = runs / f"{subject}-{regime}-{seed}"
    if not (at / "result.json").exists():
        openwork("train", "--task", subject, "--regime", regime, "--seed", seed, "--out", at)
    for task in tasks:
        if not (at / "circuits" / f"{task}-auto" / "circuit.json").exists():
            openwork("discover", at, "--task", task, "--seed", seed)
    return at


def percent(share: float) -> str:
    """A share of decisions."""
    return f"{100 * share:.1f} %"


def written(path: Path, task: str, form: str, binarised: bool, folder: Path) -> tuple[dict[str, Any], float]:
    """A form of a circuit, and how far its C twin's logits are from the circuit's on verify (nan without a twin)."""
    told = write_form(path, task, folder / f"{task}.py", form, binarised)
    if "c_file" not in told or shutil.which("gcc") is None:
        return told, float("nan")
    run = open_run(path)
    binary = folder / "twin"
    subprocess.run(["gcc", "-std=c99", "-O2", told["c_file"], "-o", str(binary), "-lm"], check=True)
    split = run.task(told["task"]).split("verify")
    given = "".join(" ".join(map(repr, row)) + "\n" for row in split.inputs[0].double().tolist())
    out = subprocess.run([str(binary)], input=given, capture_output=True, text=True, check=True).stdout
    mine = np.array([[float(x) for x in line.split()] for line in out.splitlines()])
    circuit = store.load_circuit(circuit_folder(run, task), run.digest)
    ids, _ = answers_of(run.task(told["task"]))
    return told, float(np.abs(mine - logits_of(run.model, circuit, run.reference, split)[:, list(ids)].numpy()).max())


def digits(runs: Path, seeds: list[int]) -> Iterator[list[str]]:
    """One line per circuit and form."""
    for seed in seeds:
        for subject, tasks, forms in (("digits", TASKS, HOW), ("two_moons", ("two_moons",), (("rules", False),))):
            path = trained(runs, subject, "topk", seed, tasks)
            for task in tasks:
                for form, binarised in forms:
                    with tempfile.TemporaryDirectory() as temp:
                        told, off = written(path, task, form, binarised, Path(temp))
                        c_lines = len(Path(told["c_file"]).read_text().splitlines()) if "c_file" in told else 0
                    by = {e["claim"].partition("_decides_as_")[2]: e for e in told["evidence"]}
                    size = f"{told['leaves']} leaves" if form == "rules" else ""
                    said = f"`{told['says'].splitlines()[0]}`" if form == "formula" else size
                    yield [
                        str(seed), task, form + (", two levels" if binarised else ""), str(told["lines"]),
                        str(c_lines or ""), "" if np.isnan(off) or binarised else f"{off:.1g}",
                        str(by["circuit"]["n"]), percent(by["circuit"]["value"]), percent(by["model"]["value"]),
                        percent(by["circuit_ood"]["value"]), said,
                    ]  # fmt: skip


def planted() -> Iterator[list[str]]:
    """One line per planted Boolean function."""
    for name, make in FORMULAS.items():
        case, true = make_case(name), make()
        names = feature_names(case.model.config.inputs)  # type: ignore[union-attr,arg-type]
        account = boolean_account(case.model, case.truth, case.reference, case.task, names)  # type: ignore[arg-type]
        wrong = differences(account.formula, true.function, [names[i] for i in places_of(true, 0)])
        differ, ood = f"{wrong} of {2**true.inputs}", percent(account.agreement["ood"].share)
        yield [name, true.about, f"`{account.formula}`", differ, ood]


def symbolic(runs: Path, seeds: list[int]) -> Iterator[list[str]]:
    """One line per output of every regression."""
    for subject in SYMBOLIC:
        for regime in ("topk", "dense"):
            for seed in seeds:
                path = trained(runs, subject, regime, seed)
                with tempfile.TemporaryDirectory() as temp:
                    told = write_formulas(path, Path(temp) / "f.py")
                for f in told["formulas"]:
                    r2 = (f["r2_model"]["verify"], f["r2_truth"]["verify"], f["model_truth"]["verify"])
                    yield [subject, regime, str(seed), f"`{f['text']}`", *(f"{x:.4f}" for x in r2)]


def levels(demo: Path) -> Iterator[list[str]]:
    """One line per circuit of a language model whose neurons get two levels."""
    run = open_run(demo)
    for name in CIRCUITS:
        circuit = store.load_circuit(demo / "circuits" / name, run.digest)
        two = binarise(run.model, circuit, run.reference, run.task(circuit.origin["task"]))
        before, after = two.loss["verify"]
        a, b, c = two.with_circuit["verify"], two.with_circuit["ood"], two.circuit_with_model["verify"]
        shares = [f"{100 * x.share:.1f} %" for x in (a, b, two.with_model["verify"], c)]
        yield [name, str(two.nodes), f"{before:.3f}", f"{after:.3f}", *shares]


def main() -> None:
    """Makes what is missing, measures, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs", type=Path, default=Path("runs/forms"))
    parser.add_argument("--demo", type=Path)
    asked = parser.parse_args()
    with Progress() as progress:
        parts: list[list[list[str]]] = []
        for what, rows in (
            ("planted functions", planted()),
            ("digits and moons", digits(asked.runs, asked.seeds)),
            ("formulas", symbolic(asked.runs, asked.seeds)),
            ("the demo's circuits", levels(asked.demo) if asked.demo else iter(())),
        ):
            progress.log(what)
            parts.append(list(rows))
    write_text(PAGE, page(*parts, asked.seeds))
    print(PAGE)


Rows = list[list[str]]


def page(functions: Rows, shown: Rows, formulas: Rows, demo: Rows, seeds: list[int]) -> str:
    """The page as Markdown."""
    command = f"python benchmarks/forms.py --seeds {' '.join(map(str, seeds))}"
    texts = [
        "# Circuits in other forms",
        f"Made by `{command}{' --demo runs/evidence' if demo else ''}`: the presets `cpu`, training seeds "
        f"{', '.join(map(str, seeds))}, one core. [What the forms are](../forms.md).",
        "## Digits and moons",
        "Each form is chosen on the discover split, written to a file, and the file is run on the others. *C is off "
        "by* is the largest difference between a logit of the C twin and the circuit's own, after constants were "
        "shortened. Agreement is the share of examples with the same decision as the circuit, or as the whole model, "
        'right or wrong. A formula reads a name as "the pixel is over its threshold".',
        table(
            ["seed", "task", "form", "lines", "lines of C", "C is off by", "n", "as the circuit", "as the model",
             "as the circuit, ood", "formula or size"], shown,
        ),
        "## Planted Boolean functions",
        "The formula of the true circuit, read off its program by truth table, beside the function it was built from: "
        "on how many assignments of all inputs the two differ, and agreement out of distribution.",
        table(["case", "built to tell whether", "formula", "differ on", "as the circuit, ood"], functions),
        "## Regressions",
        "A formula per output of the whole trained model. The library of curves holds all that the true formulas are "
        "made of, so this says that a model can be read, not that any formula can be found. R^2 on the verify split.",
        table(
            ["subject", "regime", "seed", "formula", "R^2 with the model", "with the truth", "the model's own"],
            formulas,
        ),
    ]  # fmt: skip
    if demo:
        texts += [
            "## Two levels for a language model's neurons",
            "The circuits of the demo's sparse model; their neurons get two levels each, all else stays.",
            table(
                ["circuit", "neurons", "loss before", "after", "as the circuit", "as the circuit, ood", "as the model",
                 "the circuit as the model"], demo,
            ),
        ]  # fmt: skip
    return "\n\n".join(texts) + "\n"


if __name__ == "__main__":
    main()
