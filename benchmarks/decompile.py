"""Circuits as code: how long the files are, and how often they decide as the circuit and as the model do.

    python benchmarks/decompile.py [--run runs/evidence] [--circuits NAME ...] [--files runs/decompiled]

Decompiles circuits of a run (`openwork decompile --simplify`), each at every floor of the curve, and writes
docs/results/decompile.md. Programs are made on the discover split alone; what is told is of the verify and ood splits,
and of the files themselves, run in a process of their own.
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
    parser.add_argument("--run", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--circuits", nargs="+", help="by default all of the run")
    parser.add_argument("--files", type=Path, default=Path("runs/decompiled"), help="folder for the Python files")
    asked = parser.parse_args()
    found = []
    for name in asked.circuits or open_run(asked.run).circuits():
        found.append(decompile_circuit(asked.run, name, asked.files / f"{name}.py", FLOOR, True))
        print(name, found[-1]["lines"], flush=True)
    chosen = " --circuits " + " ".join(asked.circuits) if asked.circuits else ""
    write_text(PAGE, page(found, asked.files, chosen))
    print(PAGE)


def shares(told: dict[str, Any], split: str) -> list[str]:
    """As the circuit, as the model, and the circuit as the model, on one split."""
    ending = "" if split == "verify" else f"_{split}"
    by = {e["claim"]: e for e in told["evidence"]}
    circuit, model = by[f"program_decides_as_circuit{ending}"], by[f"program_decides_as_model{ending}"]
    low, high = circuit["interval"]
    own = model["details"]["circuit_as_model"]
    return [f"{circuit['value']:.1%} ({low:.1%} to {high:.1%})", f"{model['value']:.1%}", f"{own:.1%}"]


def page(found: list[dict[str, Any]], files: Path, chosen: str) -> str:
    """The page in Markdown; `chosen` is what the command line says of circuits."""
    files_lines = {t["circuit"]: (files / f"{t['circuit']}.py").read_text().count("\n") for t in found}
    rows = [
        [t["task"], str(files_lines[t["circuit"]]), str(t["constants"]), str(t["tokens"]), *shares(t, "verify"),
         *shares(t, "ood")]
        for t in found
    ]  # fmt: skip
    curve = [
        [t["task"], f"{r['floor']:.1%}", f"{r['pool']:.1%}", str(r["lines"]), str(r["steps"]), str(r["constants"]),
         str(r["tokens"]), *(f"{r[k]:.1%}" for k in ("verify_circuit", "verify_model", "ood_circuit", "ood_model"))]
        for t in found
        for r in t["curve"]
    ]  # fmt: skip
    verify = {t["circuit"]: {e["claim"]: e["value"] for e in t["evidence"]} for t in found}
    alike = [t for t in found if verify[t["circuit"]]["program_decides_as_circuit"] >= FLOOR]
    short = [t for t in alike if files_lines[t["circuit"]] < READ]
    both = [t for t in short if verify[t["circuit"]]["program_decides_as_model"] >= AS_MODEL]

    def names(told: list[dict[str, Any]]) -> str:
        return f"{len(told)} of {len(found)}" + (f" ({', '.join(t['task'] for t in told)})" if told else "")

    return f"""# Circuits as code

Made by `python benchmarks/decompile.py{chosen}`, which decompiles circuits of a run. Every program is made on the
discover split; what is told is of the verify and ood splits, which it never saw.

Of the files made with the floor {FLOOR:.0%}:

* {names(alike)} decide as the circuit on at least {FLOOR:.0%} of the verify split;
* {names(short)} do so in fewer than {READ} lines, head included;
* {names(both)} do both and decide as the whole model on at least {AS_MODEL:.0%}.

No program can be expected to be more like the model than its circuit is: the
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
"""


if __name__ == "__main__":
    main()
