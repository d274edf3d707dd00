"""Circuits found for a lower loss, as code: whether they decide more like the model, and what their files then cost.

    python benchmarks/decompile_targets.py [--runs runs/evidence ...] [--tasks NAME ...] [--targets 0.15 ...]

For every target the circuit of a task is searched in a copy of the run (`openwork discover --target`), kept beside the
files so that nothing is searched again. The target is chosen on the discover split: the one whose circuit decides most
often as the model there, the largest of them where several do. Where it reaches `AS_MODEL` it is decompiled at every
floor of the curve, and of these files the shortest is chosen that decides as the circuit and as the model often enough,
again on the discover split. The verify and ood splits are looked at for the tables alone.

Where no circuit comes close enough, the search at the chosen target is repeated for the model's own decisions in place
of the right answers: it tells whether the circuit differs from the model because it was asked for the right answers.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from quotes import table

from openwork import patching, threads  # noqa: F401  threads before torch
from openwork.circuit import Circuit
from openwork.decompiled import AS_MODEL, FLOOR, decompile_circuit
from openwork.discover import find, trim
from openwork.files import write_text
from openwork.runs import Run, circuit_folder, find_circuit, method_settings, open_run
from openwork.store import load_circuit
from openwork.tasks.task import Split

PAGE = Path(__file__).parents[1] / "docs" / "results" / "decompile_targets.md"
TASKS = (
    "bracket_counting", "else_elif", "set_or_string_fixedvarname", "with_open", "while_return_true",
    "single_double_quote",
)  # fmt: skip
TARGETS = (0.15, 0.1, 0.05, 0.03)
METHOD = "masks"
SPLITS = ("discover", "verify", "ood")
READ = 120  # lines that a file should not exceed
Told = dict[str, Any]
Key = tuple[str, int]  # a task, and the seed of the run


@dataclass(frozen=True)
class Found:
    """A circuit found for a target; by split, on what share it decides as the model, and rightly."""

    target: float
    circuit: Circuit
    alike: dict[str, float]
    right: dict[str, float]


@dataclass(frozen=True)
class Asked:
    """What was found for a task.

    model  how often the whole model is right, by split
    twin   how often the circuit that was searched for the model's decisions decides so; {} where none was searched
    curve  the programs of the chosen circuit, one per floor
    file   what `decompile_circuit` told of the file of the chosen program; None where no circuit is like enough
    """

    found: tuple[Found, ...]
    model: dict[str, float]
    best: Found | None
    twin: dict[str, float]
    curve: tuple[Told, ...]
    file: Told | None


def main() -> None:
    """Searches, decompiles, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", default=[Path("runs/evidence")])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--targets", nargs="+", type=float, default=list(TARGETS))
    parser.add_argument("--files", type=Path, default=Path("runs/decompiled"), help="folder for the Python files")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page goes")
    asked = parser.parse_args()
    told: dict[Key, Asked] = {}
    for run in asked.runs:
        folder = asked.files if len(asked.runs) == 1 else asked.files / run.name
        copies = {t: copied(run, folder / f"target-{t:g}") for t in sorted(asked.targets, reverse=True)}
        seed = int(open_run(run).settings["seed"])
        told |= {(task, seed): answered(copies, task, folder) for task in asked.tasks}
    given = "" if len(asked.runs) == 1 else " --runs " + " ".join(map(str, asked.runs))
    given += "" if asked.tasks == list(TASKS) else " --tasks " + " ".join(asked.tasks)
    given += "" if asked.targets == list(TARGETS) else " --targets " + " ".join(f"{t:g}" for t in asked.targets)
    given += "" if asked.page == PAGE else f" --page {asked.page}"
    write_text(asked.page, page(told, given))
    print(asked.page)


def copied(run: Path, to: Path) -> Path:
    """A copy of a run without its circuits, with the data it shares with others; the one at hand if there is one."""
    if not to.exists():
        shutil.copytree(run, to, ignore=shutil.ignore_patterns("circuits", "controls"))
    data = open_run(run).settings["data"]
    if not (to / data).exists():
        shutil.copytree(run / data, to / data)
    return to


def answered(copies: Mapping[float, Path], task: str, files: Path) -> Asked:
    """All of a task: circuits, the choice among them, its twin if it falls short, its file."""
    found = tuple(f for t, path in copies.items() if (f := searched(path, task, t)) is not None)
    run = open_run(next(iter(copies.values())))
    splits = {s: run.task(task).splits[s] for s in SPLITS if s in run.task(task).splits}
    model = {s: float((preferred(run, x, None) == 0).double().mean()) for s, x in splits.items()}
    best = chosen(found)
    print(task, [(f.target, f.alike) for f in found], flush=True)
    if best is None:
        return Asked(found, model, None, {}, (), None)
    if best.alike["discover"] < AS_MODEL:
        imitated = imitating(run, splits["discover"], best.target)
        twin = {} if imitated is None else {s: as_model(run, x, imitated) for s, x in splits.items()}
        return Asked(found, model, best, twin, (), None)
    out = files / f"{task}-target-{best.target:g}.py"
    curve = tuple(decompile_circuit(copies[best.target], task, out, FLOOR, True)["curve"])
    print(task, best.target, [(r["floor"], r["lines"]) for r in curve], flush=True)
    file = decompile_circuit(copies[best.target], task, out, shortest(curve)["floor"])
    return Asked(found, model, best, {}, curve, file)


def searched(path: Path, task: str, target: float) -> Found | None:
    """The circuit of a task at a target; None where none meets it."""
    run = open_run(path)
    result = find_circuit(path, task, METHOD, method_settings(METHOD, seed=0, target=target))
    if result["status"] != "ok":
        return None
    splits = {s: x for s, x in run.task(task).splits.items() if s in SPLITS}
    circuit = load_circuit(circuit_folder(run, task), run.digest)
    right = {s: float((preferred(run, x, circuit) == 0).double().mean()) for s, x in splits.items()}
    return Found(target, circuit, {s: as_model(run, x, circuit) for s, x in splits.items()}, right)


def imitating(run: Run, split: Split, target: float) -> Circuit | None:
    """The circuit that is found when what the model decides counts as right; searched and trimmed like any other."""
    own = decided(run, split)
    result = find(run.model, run.reference, own, METHOD, target=target)
    if result.circuit is None:
        return None
    nodes = trim(run.model, result.circuit, run.reference, own, target, edges=False)
    return trim(run.model, nodes.circuit, run.reference, own, target).circuit


def decided(run: Run, split: Split) -> Split:
    """The split with the model's decisions as its right answers."""
    answers = torch.cat([split.answer[:, None], split.wrong], 1)
    best = preferred(run, split, None)
    others = torch.ones_like(answers, dtype=torch.bool).scatter(1, best[:, None], False)
    answer = answers.gather(1, best[:, None])[:, 0]
    return replace(split, answer=answer, wrong=answers[others].view(len(answers), -1))


def preferred(run: Run, split: Split, circuit: Circuit | None) -> torch.Tensor:
    """Which of (right, wrong, ...) the circuit, or the whole model, gives: [N]."""
    runner = run.model if circuit is None else patching.compact(run.model, circuit, run.reference)
    with torch.no_grad():
        return runner(*split.inputs).gather(1, torch.cat([split.answer[:, None], split.wrong], 1)).argmax(1)


def as_model(run: Run, split: Split, circuit: Circuit) -> float:
    """The share of a split on which a circuit decides as the whole model."""
    return float((preferred(run, split, circuit) == preferred(run, split, None)).double().mean())


def chosen(found: Sequence[Found]) -> Found | None:
    """The one that decides most often as the model on the discover split, the largest target (the first) of equals."""
    return max(found, key=lambda f: f.alike["discover"], default=None)


def shortest(curve: Sequence[Told]) -> Told:
    """The shortest program that decides as it should on the discover split, or that of the first floor."""
    good = [r for r in curve if r["discover_circuit"] >= FLOOR and r["discover_model"] >= AS_MODEL]
    return min(good, key=lambda r: (r["lines"], -r["floor"]), default=curve[0])


def page(told: Mapping[Key, Asked], given: str) -> str:
    """The page in Markdown; `given` is what the command line says of runs, tasks and targets."""
    of_targets, of_floors, of_twins = [], [], []
    reached = []
    for (task, seed), a in told.items():
        for f in a.found:
            counts = f.circuit.counts()
            of_targets.append(
                [task, str(seed), f"{f.target:g}", "chosen" if f is a.best else ""]
                + [str(counts["nodes"]), str(counts["edges"])]
                + [f"{x[s]:.1%}" for s in SPLITS for x in (f.alike, f.right, a.model)]
            )
        if a.best is not None and a.twin:
            of_twins.append(
                [task, str(seed), f"{a.best.target:g}"]
                + [f"{x[s]:.1%}" for s in SPLITS for x in (a.best.alike, a.twin)]
            )
        if a.best is None or a.file is None:
            continue
        lines = Path(a.file["file"]).read_text().count("\n")
        head = lines - a.file["lines"]
        best = shortest(a.curve)
        for r in a.curve:
            chosen_here = "chosen" if r is best else ""
            of_floors.append(
                [task, str(seed), f"{a.best.target:g}", f"{r['floor']:.1%}", chosen_here, str(r["lines"] + head)]
                + [f"{r[f'{s}_{whose}']:.1%}" for s in SPLITS for whose in ("circuit", "model")]
            )
        if meets(a.file, lines):
            reached.append(f"{task} (seed {seed})")
    columns = [f"{s}: {x}" for s in SPLITS for x in ("circuit as model", "circuit right", "model right")]
    shares = [f"{s}: {x}" for s in SPLITS for x in ("as circuit", "as model")]
    twins = [f"{s}: {x}" for s in SPLITS for x in ("searched for the right answers", "for the model's decisions")]
    which = f"{len(reached)} of {len(told)} circuits"
    return f"""# Circuits as code: the target of the search

Made by `python benchmarks/decompile_targets.py{given}`. Targets and files are chosen on the discover split; the verify
and ood splits are for the tables alone.

For {which} the chosen file decides on the verify split as its circuit on at least {FLOOR:.0%} and
as the whole model on at least {AS_MODEL:.0%}, in fewer than {READ} lines: {", ".join(reached) or "none"}.

## Target against agreement

How often the circuit decides as the whole model, and how often each is right. Chosen is the target whose circuit
decides most often as the model on the discover split, the largest where several do equally often.

{table(["task", "seed", "target", "", "nodes", "edges", *columns], of_targets)}

## The chosen circuits as files

Of the chosen circuits those that decide as the model on {AS_MODEL:.0%} of the discover split; no file can be expected
to make up for what a circuit lacks. Lines include the head. Chosen is the shortest file that on the discover split
decides as the circuit on {FLOOR:.0%} and as the model on {AS_MODEL:.0%}; where none does, that of the highest floor.

{table(["task", "seed", "target", "floor", "", "lines", *shares], of_floors)}

## Searched for the model's own decisions

Where no circuit decides as the model on {AS_MODEL:.0%} of the discover split: the search at the chosen target once
more, with what the model decides, mistakes and all, in place of the right answers. Share of examples decided as the
model does.

{table(["task", "seed", "target", *twins], of_twins) if of_twins else "None had to be."}
"""


def meets(file: Told, lines: int) -> bool:
    """Whether a file is as short and, when run on the verify split, decides as much alike as one should."""
    value = {e["claim"]: e["value"] for e in file["evidence"]}
    alike = value["program_decides_as_circuit"] >= FLOOR and value["program_decides_as_model"] >= AS_MODEL
    return lines < READ and alike


if __name__ == "__main__":
    main()
