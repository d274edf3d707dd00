"""How exact and how quick the accounts of decisions are, what flips decisions, and what planted networks say of both.

    python benchmarks/why.py [--digits runs/why/digits] [--language runs/evidence] [--inputs 1000] [--rows 1000000]

Makes the digits run with `openwork run digits --preset smoke` where it is missing; the language run is that of
`benchmarks/evidence.py`. Writes docs/results/why.md. One core; times are of one process on the machine that ran it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quotes import table

from openwork import (
    patching,
    threads,  # noqa: F401  before torch
)
from openwork.circuit import Circuit
from openwork.decisions import Setting, flip, open_setting
from openwork.explain.accounts.decision import Explainer, Words
from openwork.explain.accounts.flips import Affine, flip_vectors
from openwork.explain.accounts.paths import count_paths, strongest_paths
from openwork.files import write_text
from openwork.patching import Inputs
from openwork.planted import boolean, make_case

PAGE = Path(__file__).parents[1] / "docs" / "results" / "why.md"
PATHS = 10
FLIPPED = 100  # decisions per kind of which the flip is searched
PLANTED = (*boolean.FORMULAS, "xor+noise64", "majority5+noise32", "multiplexer4+noise32", "parity3+decoys")


def settings_of(paths: list[Path]) -> list[Setting]:
    """Every circuit of these runs that was found with its target met."""
    return [
        open_setting(path, folder.parent.name)
        for path in paths
        for folder in sorted(path.glob("circuits/*/circuit.json"))
    ]


def examples(settings: list[Setting], n: int) -> list[tuple[Setting, Inputs]]:
    """n inputs dealt out over the circuits: examples that the search did not see first, then those that it saw."""
    each = -(-n // len(settings))
    out: list[tuple[Setting, Inputs]] = []
    for s in settings:
        mine: list[tuple[Setting, Inputs]] = []
        for name in ("explain", "verify", "ood", "discover"):
            split = s.task.splits.get(name)
            for i in range(min(len(split), each - len(mine)) if split is not None else 0):
                mine.append((s, split.take(torch.tensor([i])).tight().inputs))
        out += mine
    return out[:n]


def account(given: list[tuple[Setting, Inputs]]) -> dict[str, Any]:
    """Errors of the sums and times, over these inputs."""
    off, remainder, times, cpu, whole, carried, agree, silent = [], [], [], [], [], [], [], 0
    for s, inputs in given:
        e = s.explainer
        first, second, model = e.between(inputs, None, None)
        began, used = time.perf_counter(), time.process_time()
        a = e.account(inputs, first, second)
        total = float(a.total)
        by_input, _, _, _ = a.inputs(), a.constants(), a.nodes(), a.edges()
        strongest_paths(a, PATHS), count_paths(a)
        times.append(1000 * (time.perf_counter() - began))
        cpu.append(1000 * (time.process_time() - used))
        with torch.no_grad():
            run = patching.run(e.model, inputs, e.circuit, e.reference).double()
        off.append(abs(total - float(run[0, first] - run[0, second])))
        remainder.append(abs(total - float(a.difference)))
        difference = float(model[0, first] - model[0, second])
        carried.append(float(a.difference) / difference)
        agree.append(int(e.decide(a.run.logits)[0]) == int(first))
        silent += not any(bool(x.any()) for x in by_input.values())
    for s, inputs in given[:: max(1, len(given) // FLIPPED)]:
        began = time.perf_counter()
        s.explainer.explain(inputs)
        whole.append(1000 * (time.perf_counter() - began))
    return {
        "n": len(given), "off": max(off), "remainder": max(remainder), "median": statistics.median(times),
        "cpu": statistics.median(cpu), "p95": float(np.quantile(times, 0.95)), "explain": statistics.median(whole),
        "carried": statistics.median(carried), "agree": sum(agree) / len(agree), "silent": silent,
    }  # fmt: skip


def flipped(given: list[tuple[Setting, Inputs]]) -> dict[str, Any]:
    """What the search for the smallest change found, and what it costs."""
    times, places, asked = [], [], 0
    for s, inputs in given[:: max(1, len(given) // FLIPPED)]:
        told = s.explainer.explain(inputs)
        began = time.perf_counter()
        found = flip(s, inputs, told, None)
        if found["asked"]:
            asked += 1
            times.append(1000 * (time.perf_counter() - began))
            places.append(len(found["fewest"]["places"]) if found["found"] else 0)
    return {
        "n": len(given[:: max(1, len(given) // FLIPPED)]), "asked": asked, "one": sum(p == 1 for p in places),
        "two": sum(p == 2 for p in places), "more": sum(p > 2 for p in places), "none": sum(p == 0 for p in places),
        "median": statistics.median(times), "p95": float(np.quantile(times, 0.95)),
    }  # fmt: skip


def planted(name: str) -> list[str]:
    """One line: whether the top reason, and what flips the decision, is a variable of the formula."""
    case = make_case(name)
    whole = Circuit.whole(patching.graph_of(case.model), patching.support(case.model))
    e = Explainer(case.model, whole, case.reference, [0, 1], Words(str, None, str))
    variables = set(case.truth.nodes["input"].nonzero().flatten().tolist())
    split = case.task.split("explain")
    found = e.reasons(split.inputs, 1)
    has = found.inputs[:, 0] != 0
    top = [p in variables for p in found.places[has, 0].tolist()]
    ends = torch.ones(split.inputs[0].shape[1], dtype=torch.float64)
    hit, n = 0, min(FLIPPED, len(split))
    for i in range(n):
        x, answer = split.inputs[0][i].double(), int(found.answer[i])

        def margin(logits: torch.Tensor, answer: int = answer) -> torch.Tensor:
            return logits[:, answer] - logits[:, 1 - answer]

        def slope(at: torch.Tensor, answer: int = answer) -> torch.Tensor:
            run = e.of_circuit((at[None],))
            return run.toward(torch.tensor([answer]), torch.tensor([1 - answer])).gradient["input"][0]

        layers = e.of_circuit.affine  # type: ignore[attr-defined]
        change = flip_vectors(
            x, -ends, ends, lambda y: margin(e.logits((y,))), lambda y: margin(e.whole((y.float(),))), slope,
            Affine(layers, answer, torch.tensor([1 - answer])),
        ).fewest  # fmt: skip
        hit += change is not None and len(change.places) == 1 and set(change.places) <= variables
    return [
        name, str(len(variables)), f"{int(has.sum())} of {len(split)}", f"{sum(top)} of {len(top)}" if top else "–",
        f"{hit} of {n}",
    ]  # fmt: skip


def many(path: Path, circuit: str, rows: int) -> dict[str, Any]:
    """The command over a table of so many rows, in a process of its own."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn.datasets import load_digits

    x = (load_digits().data / 16).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "in.parquet", Path(folder) / "out.parquet"
        rng, writer = np.random.default_rng(0), None
        for start in range(0, rows, 50_000):
            some = x[rng.integers(0, len(x), min(50_000, rows - start))]
            part = pa.table({f"x{j}": some[:, j] for j in range(64)})
            writer = writer or pq.ParquetWriter(given, part.schema)
            writer.write_table(part)
        assert writer is not None
        writer.close()
        watched = (
            "import sys; from openwork.cli import main; code = main(sys.argv[1:]); "
            "told = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]; "
            "print(told, file=sys.stderr); sys.exit(code)"
        )
        asked = ["why", str(path), "--circuit", circuit, "--rows", str(given), "--out", str(out), "--json"]
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", watched, *asked], capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - began
        assert pq.ParquetFile(out).metadata.num_rows == rows
        told = json.loads(done.stdout)
        return {
            "rows": rows, "seconds": seconds, "mib": int(done.stderr.split()[-1]) / 1024,
            "remainder": told["largest_remainder"], "out_mib": out.stat().st_size / 2**20,
        }  # fmt: skip


def main() -> None:
    """Runs what is missing, measures, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, default=Path("runs/why/digits"))
    parser.add_argument("--language", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if not (asked.digits / "result.json").exists():
        command = [sys.executable, "-m", "openwork", "run", "digits", "--preset", "smoke", "--out", str(asked.digits)]
        subprocess.run([*command, "--workers", "1"], check=True)
    kinds = {
        "digits, perceptrons": settings_of([asked.digits / "sparse", asked.digits / "dense"]),
        "Python, transformer": settings_of([asked.language]),
    }
    accounts, flips = [], []
    for kind, settings in kinds.items():
        given = examples(settings, asked.inputs)
        a, f = account(given), flipped(given)
        times = [f"{a[k]:.1f} ms" for k in ("cpu", "median", "p95")]
        accounts.append([
            kind, str(len(settings)), f"{a['n']:,}", f"{a['off']:.1e}", f"{a['remainder']:.1e}", *times,
            f"{a['explain']:.0f} ms", f"{100 * a['carried']:.0f} %", f"{100 * a['agree']:.1f} %", str(a["silent"]),
        ])  # fmt: skip
        flips.append([
            kind, str(f["n"]), str(f["asked"]), str(f["one"]), str(f["two"]), str(f["more"]), str(f["none"]),
            f"{f['median']:.0f} ms", f"{f['p95']:.0f} ms",
        ])  # fmt: skip
        print(accounts[-1], flips[-1], sep="\n")
    lines = [planted(name) for name in PLANTED]
    big = many(asked.digits / "dense", kinds["digits, perceptrons"][-1].name, asked.rows)
    write_text(PAGE, page(accounts, flips, lines, big, asked.inputs))
    print(PAGE)


def page(accounts: list[list[str]], flips: list[list[str]], lines: list[list[str]], big: dict[str, Any], n: int) -> str:
    """The page as Markdown."""
    names, counts = [r[0] for r in lines], [r[2].split(" of ") for r in lines]
    has, total = ([int(c[k]) for c in counts] for k in (0, 1))
    without = sum(total) - sum(has)
    head = ["inputs", "circuits", "n", "off", "remainder", "account, CPU median", "clock median", "95 %", "all told"]
    return (
        "# The reasons for single decisions\n\n"
        f"Made by `python benchmarks/why.py --inputs {n} --rows {big['rows']}` on one core "
        f"({platform.machine()}, torch {torch.__version__}). What is computed stands in [Why](../why.md). Circuits are "
        "all those of the digits run (`openwork run digits --preset smoke`, sparse and dense) and of the run of "
        "`benchmarks/evidence.py`; inputs are dealt out over them, unseen examples first.\n\n"
        "## How exact, how quick\n\n"
        "*Off*: the largest difference between the account's sum (float64) and the logit difference of the circuit's "
        "patched run (float32), which knows nothing of accounts. *Remainder*: of the sum against the account's own "
        "forward pass in float64. The account is the sums over inputs, constants, nodes and edges, the ten strongest "
        "paths and the number of all paths; its times are those of the processor and of the clock, on a machine that "
        "others used too. *All told* adds the checks, the model itself and the words. *Carried*: the circuit's "
        "logit difference as a share of the model's, median. *Agrees*: the circuit's answer is the model's. *Silent*: "
        "no input contributes, since all the circuit's paths from the input are closed or it has none.\n\n"
        + table([*head, "carried", "agrees", "silent"], accounts)
        + "\n\n## What flips a decision\n\n"
        "The smallest change that was found, inside the range of the data, after which circuit *and* whole model say "
        "something else. Asked where both make the decision. Of vectors one place is exact on the circuit, more are "
        "greedy; of tokens all single ones that the data have at that place are tried, then some pairs. The time is "
        "that of the search, beside the account.\n\n"
        + table(["inputs", "n", "asked", "1 place", "2", "more", "not found", "median", "95 %"], flips)
        + "\n\n## Planted Boolean networks\n\n"
        "The whole network is accounted for, noise and other circuits included; the variables are known. *Has a "
        "reason*: some input contributes. A neuron that is off lets nothing by, so a decision that rests on one has "
        f"no reason among what flows: {without:,} of all {sum(total):,} decisions here, and every one of "
        f"{', '.join(n for n, h in zip(names, has, strict=True) if not h) or 'no network'}. *Flip*: one variable, and "
        f"one of the formula's, was found to flip the decision (first {FLIPPED} examples).\n\n"
        + table(["network", "variables", "has a reason", "top reason is a variable", "flip is a variable"], lines)
        + "\n\n## Many rows\n\n"
        f"`openwork why RUN --circuit C --rows in.parquet --out out.parquet` over {big['rows']:,} digits (64 columns, "
        f"dense model): {big['seconds']:.0f} s with start, at most {big['mib']:,.0f} MiB of memory, largest remainder "
        f"{big['remainder']:.1e}, {big['out_mib']:.0f} MiB written.\n"
    )


if __name__ == "__main__":
    main()
