"""Circuits as code: how long the files are, and how often they decide as the circuit and as the model do.

    python benchmarks/decompile.py [--run runs/evidence] [--circuits NAME ...] [--files runs/decompiled]
    python benchmarks/decompile.py --run RUN ... --circuits NAME ... --floor 0.7 --page docs/results/NAME.md

Decompiles circuits of one or more runs (`openwork decompile --simplify`), each at every floor of the curve, and writes
docs/results/decompile.md or another page; a run that has no circuit of a name is passed over. Programs are made on the
discover split alone; what is told is of the verify and ood splits, and of the files themselves, run in a process of
their own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quotes import table

from openwork import threads  # noqa: F401  before torch
from openwork.decompiled import AS_MODEL, FLOOR, decompile_circuit
from openwork.files import write_text
from openwork.runs import open_run

PAGE = Path(__file__).parents[1] / "docs" / "results" / "decompile.md"
READ = 120  # lines that a file should not exceed


def main() -> None:
    """Decompiles, measures, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", default=[Path("runs/evidence")])
    parser.add_argument("--circuits", nargs="+", help="by default all of the run")
    parser.add_argument("--files", type=Path, default=Path("runs/decompiled"), help="folder for the Python files")
    parser.add_argument("--floor", type=float, default=FLOOR, help="share of decisions that the files must share")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page goes")
    asked = parser.parse_args()
    found = []
    for run in asked.run:
        folder = asked.files if len(asked.run) == 1 else asked.files / run.name
        at_hand = open_run(run).circuits()
        for name in [n for n in asked.circuits if n in at_hand] if asked.circuits else at_hand:
            told = decompile_circuit(run, name, folder / f"{name}.py", asked.floor, True)
            told["task"] += "" if len(asked.run) == 1 else f" ({run.name})"
            found.append(told)
            print(run.name, name, told["lines"], flush=True)
    chosen = "" if asked.run == [Path("runs/evidence")] else " --run " + " ".join(f"runs/{r.name}" for r in asked.run)
    chosen += " --circuits " + " ".join(asked.circuits) if asked.circuits else ""
    chosen += "" if asked.floor == FLOOR else f" --floor {asked.floor:g}"
    chosen += "" if asked.page == PAGE else f" --page docs/results/{asked.page.name}"
    write_text(asked.page, page(found, chosen, asked.floor))
    print(asked.page)


def shares(told: dict[str, Any], split: str) -> list[str]:
    """As the circuit, as the model, and the circuit as the model, on one split."""
    ending = "" if split == "verify" else f"_{split}"
    by = {e["claim"]: e for e in told["evidence"]}
    circuit, model = by[f"program_decides_as_circuit{ending}"], by[f"program_decides_as_model{ending}"]
    low, high = circuit["interval"]
    own = model["details"]["circuit_as_model"]
    return [f"{circuit['value']:.1%} ({low:.1%} to {high:.1%})", f"{model['value']:.1%}", f"{own:.1%}"]


def page(found: list[dict[str, Any]], chosen: str, floor: float) -> str:
    """The page in Markdown; `chosen` is what the command line says of runs and circuits."""
    files_lines = {t["file"]: Path(t["file"]).read_text().count("\n") for t in found}
    rows = [
        [t["task"], str(files_lines[t["file"]]), str(t["constants"]), str(t["tokens"]), *shares(t, "verify"),
         *shares(t, "ood")]
        for t in found
    ]  # fmt: skip
    curve = [
        [t["task"], f"{r['floor']:.1%}", f"{r['pool']:.1%}", str(r["lines"]), str(r["steps"]), str(r["constants"]),
         str(r["tokens"]), *(f"{r[k]:.1%}" for k in ("verify_circuit", "verify_model", "ood_circuit", "ood_model"))]
        for t in found
        for r in t["curve"]
    ]  # fmt: skip
    verify = {t["file"]: {e["claim"]: e["value"] for e in t["evidence"]} for t in found}
    alike = [t for t in found if verify[t["file"]]["program_decides_as_circuit"] >= floor]
    short = [t for t in alike if files_lines[t["file"]] < READ]
    both = [t for t in short if verify[t["file"]]["program_decides_as_model"] >= AS_MODEL]

    def names(told: list[dict[str, Any]]) -> str:
        return f"{len(told)} of {len(found)}" + (f" ({', '.join(t['task'] for t in told)})" if told else "")

    return f"""# Circuits as code

Made by `python benchmarks/decompile.py{chosen}`, which decompiles circuits of a run. Every program is made on the
discover split; what is told is of the verify and ood splits, which it never saw.

Of the files made with the floor {floor:.0%}:

* {names(alike)} decide as the circuit on at least {floor:.0%} of the verify split;
* {names(short)} do so in fewer than {READ} lines, head included;
* {names(both)} do both and decide as the whole model on at least {AS_MODEL:.0%}.

A program is seldom more like the model than its circuit is: the
columns "circuit as model" say how like it that is.

{
        table(
            [
                "task",
                "lines",
                "constants",
                "tokens listed",
                "verify: as circuit (95 %)",
                "as model",
                "circuit as model",
                "ood: as circuit (95 %)",
                "as model",
                "circuit as model",
            ],
            rows,
        )
    }

## Length against agreement

One program per floor: the share of decisions that it had to share with the circuit on the discover split and on texts
made from it ("reached" is what it did there). Lines are without the head.

{
        table(
            [
                "task",
                "floor",
                "reached",
                "lines",
                "steps",
                "constants",
                "tokens listed",
                "verify: as circuit",
                "as model",
                "ood: as circuit",
                "as model",
            ],
            curve,
        )
    }
{wide(found)}"""


def wide(found: list[dict[str, Any]]) -> str:
    """How the files decide where all answers of the task compete; "" where they always do."""
    rows = [
        [t["task"], e["split"]]
        + [f"{e['details'][f'among_all_{k}']:.1%}" for k in ("as_circuit", "as_model", "circuit_as_model")]
        for t in found
        for e in t["evidence"]
        if e["claim"].startswith("program_decides_as_model") and "among_all_as_model" in e["details"]
    ]
    if not rows:
        return ""
    return f"""
## Among all answers

In each example few answers compete, and one that alone stands in the text can be told by that. The same files where all
answers of the task compete:

{table(["task", "split", "as circuit", "as model", "circuit as model"], rows)}
"""


if __name__ == "__main__":
    main()
