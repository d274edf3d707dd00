"""Regimes side by side: every regime with every seed on one subject, one circuit in each, one table and one plot.

    out/  run.yaml  result.json  table.csv  table.md  plot.svg  plot.png  data/ (where the subject needs a corpus)
          <regime>/seed<k>/             a run folder (see `runs`) with measured.json beside it: the regime's own default
          <regime>/<dial>=<value>/seed<k>/     the same where its dial stands elsewhere

A regime at its default says little: one gives accuracy for sparsity where another gives sparsity for accuracy. So there
are two blocks, "default" and, where asked, "equal": every regime at the sparsest setting of its one dial (`DIALS`) with
which it is about as accurate as dense. That setting is looked for among five fixed values with one seed on the
"discover" split; what is told are figures of the "verify" split, with all seeds. All five stand in the result.

What a regime refuses, or a training that diverges, is a row with its status. Knows names, functions and folders.
"""

from __future__ import annotations

import csv
import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openwork import stats, store
from openwork.bench import changed_preset, check_device, subject_kind, training_plan
from openwork.errors import OpenworkError, RunError, UsageError, unknown
from openwork.files import plain, read_model_header, read_yaml, write_text, write_yaml
from openwork.presets import Preset
from openwork.progress import Progress
from openwork.runs import Plan, Result, Run, begin_run, find_circuit, method_settings, open_run, train_plan
from openwork.tables import cell
from openwork.tasks.corpus import build_corpus
from openwork.tasks.subjects import SUBJECTS, open_subject
from openwork.threads import available_cores
from openwork.training import REGIMES, OwnLoss, held_out_accuracy, relocation
from openwork.training.matrices import matrices
from openwork.views.plots import draw_comparison
from openwork.workers import Job, map_jobs

METHOD = "masks"
NO_CIRCUIT = "none"
MARGIN, FACTOR = 0.01, 1.1  # "auto": one percentage point below dense's accuracy, or 1.1 times its loss
LATE = ("torch._dynamo", "sklearn.datasets")  # what the first optimizer and the digits import: no part of a training
MAY_GROW = ("regimes", "seeds", "equal_accuracy", "circuit")  # may change in a folder: what is trained stays as it is


@dataclass(frozen=True)
class Dial:
    """The one setting of a regime that trades accuracy for what the regime is for, and the values that are tried."""

    setting: str
    first: float
    ratio: float

    @property
    def values(self) -> tuple[float, ...]:
        """Five values, each `ratio` times the last."""
        return tuple(float(f"{self.first * self.ratio**i:.3g}") for i in range(5))


DIALS: dict[str, Dial | None] = {
    "dense": None,
    "weight_norm": None,
    "topk": Dial("density", 0.02, 2),
    "rigl": Dial("density", 0.02, 2),
    "l0": Dial("density", 0.02, 2),
    "l1": Dial("price", 1e-4, 3),
    "l2": Dial("price", 1e-5, 10),
    "dropout": Dial("neurons", 0.05, 2),
    "bimt": Dial("price", 3e-4, 3),
    "clusterability": Dial("tau", 0.03, 3),
    "gomory_hu": Dial("price", 0.03, 3),
}


def dial_of(regime: str) -> Dial | None:
    """A regime's dial; of one that is not in DIALS its density, or its price around the default, if it has either."""
    if regime in DIALS:
        return DIALS[regime]
    fields = REGIMES[regime][1].model_fields
    if "density" in fields:
        return Dial("density", 0.02, 2)
    price = fields["price"].default if "price" in fields else None
    return Dial("price", price / 9, 3) if isinstance(price, float) and price > 0 else None


@dataclass(frozen=True)
class Case:
    """One training of the comparison: its folder below `out`, and where its dial stands (None: the default)."""

    regime: str
    seed: int
    value: float | None = None

    @property
    def folder(self) -> str:
        """Where its run lies, seen from the comparison's folder."""
        dial = dial_of(self.regime)
        at = f"/{dial.setting}={self.value:g}" if dial is not None and self.value is not None else ""
        return f"{self.regime}{at}/seed{self.seed}"


# -- the comparison --------------------------------------------------------------------------------------------------


def compare_regimes(
    task: str,
    regimes: Sequence[str],
    seeds: int,
    out: Path,
    preset: str = "cpu",
    device: str = "cpu",
    data: Path | None = None,
    circuit: str | None = None,
    equal_accuracy: float | str | None = None,
    steps: int | None = None,
    settings: Sequence[str] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Trains every regime with the seeds 0 .. seeds - 1, looks for one circuit in each, and writes tables and a plot.

    circuit         name of the task whose circuit is looked for; "none"; None: the subject's first, where it has tasks
    equal_accuracy  what every regime should reach on the discover split in a second block: an accuracy, for regressions
                    a loss, or "auto", which goes by dense; None: no second block
    settings        changes to the preset, each as "group.name=value"; groups: training, model, data, the regimes' names
                    and, for Python source, corpus

    UsageError for wrong names and settings before anything is trained; RunError where no regime works at all.
    """
    progress = progress or Progress(False)
    check_device(device)
    kind = subject_kind(task, data)
    regimes = tuple(dict.fromkeys(regimes))
    for regime in regimes:
        if regime not in REGIMES:
            raise unknown("regime", regime, REGIMES)
    if not regimes:
        raise UsageError("--regimes names no regime; name some, e.g. dense,topk.")
    if isinstance(equal_accuracy, str) and equal_accuracy != "auto":
        raise UsageError(f'--equal-accuracy {equal_accuracy}: give "auto", or a number above 0.')
    circuit = _circuit_task(task, circuit)
    p, changes = changed_preset(task, preset, settings, regimes)
    search = method_settings(METHOD, **p.masks) if circuit is not None else {}
    asked: Result = {
        "kind": "compare", "subject": task, "regimes": list(regimes), "seeds": seeds, "preset": preset,
        "device": device, "data": str(data.resolve()) if data else None, "circuit": circuit, "steps": steps,
        "equal_accuracy": equal_accuracy, "changes": changes, "settings": p.model_dump(),
    }  # fmt: skip
    where = _Where(out, task, p, changes, steps, device, data)
    cases = [Case(r, seed) for r in regimes for seed in range(seeds)]
    grid = [Case(r, 0, v) for r in regimes if (d := dial_of(r)) for v in d.values] if equal_accuracy else []
    anchor = [Case("dense", 0)] if equal_accuracy == "auto" and "dense" not in regimes else []
    plans = where.plans([*cases, *anchor, *grid])  # wrong settings are told before anything is written
    if kind.data == "folder":
        open_subject(task, Path(str(asked["data"])), 0)
    have = _finished(out, asked)
    if have is not None:
        progress.log(f"{out} is done; delete it to run it again")
        return have
    _begin(out, asked)
    if kind.data == "corpus":
        build_corpus(out / "data", p.corpus_for(None), progress.log)
    regression = _is_regression(where)
    if isinstance(equal_accuracy, float) and equal_accuracy > 1 and not regression:
        raise UsageError(f"--equal-accuracy {equal_accuracy:g}: accuracy is a share, at most 1.")
    n = workers or available_cores()

    what = f"{len(regimes)} regimes, seeds 0 to {seeds - 1}" + (", and the settings of their dials" if grid else "")
    trained = _train(where, plans, what, n, progress)
    target, chosen = None, dict[str, Case | None]()
    if equal_accuracy is not None:
        target = _target(equal_accuracy, trained.get(Case("dense", 0)), regression)
        chosen = {r: choose([c for c in trained if _competes(c, r)], trained, target, regression) for r in regimes}
        more = [replace(c, seed=s) for c in chosen.values() if c is not None for s in range(seeds)]
        more = [c for c in more if c not in trained]
        trained |= _train(where, where.plans(more), f"at equal accuracy, {target['sentence']}", n, progress)
    equal = [replace(c, seed=s) for c in chosen.values() if c is not None for s in range(seeds)]
    found = _circuits(out, dict.fromkeys([*cases, *equal]), trained, circuit, search, n, progress)
    rows = [_row("default", c, where, trained[c], found.get(c, {})) for c in cases]
    for regime, case in chosen.items():
        if case is None:
            rows.append(
                _row("equal", Case(regime, 0), where, {"status": _missed(regime, trained, target)}, {})
                | {"setting": None}
            )
        else:
            rows += [_row("equal", c, where, trained[c], found.get(c, {})) for c in equal if c.regime == regime]
    result: Result = {"command": command_line(asked, settings), "run": str(out), "subject": task}
    result |= {
        "preset": preset,
        "seeds": seeds,
        "circuit": circuit or NO_CIRCUIT,
        "measure": "loss" if regression else "accuracy",
    }
    result |= {"target": target, "grid": _grid(grid, trained, target, chosen, regression), "rows": rows}
    result["summary"] = [_summary([r for r in rows if (r["at"], r["regime"]) == key]) for key in _keys(rows)]
    result |= {"title": _title(result), "table": readable(result), "notes": _notes(result["summary"])}
    return _write(out, result, progress)


@dataclass(frozen=True)
class _Where:
    """What all trainings of a comparison share."""

    out: Path
    task: str
    preset: Preset
    changes: Result
    steps: int | None
    device: str
    data: Path | None

    def plans(self, cases: Sequence[Case]) -> dict[Case, Plan]:
        """What to train for each case; a wrong setting is refused."""
        return {c: self.plan(c) for c in cases}

    def plan(self, case: Case) -> Plan:
        """What to train for a case."""
        up = "../" * (case.folder.count("/") + 1)
        dial = dial_of(case.regime)
        options = dict(self.changes.get(case.regime, {}))
        if dial is not None and case.value is not None:
            options[dial.setting] = case.value
        training = ({"steps": self.steps} if self.steps else {}) | self.changes.get("training", {})
        where = str(self.data.resolve()) if self.data else f"{up}data"
        return training_plan(self.task, self.preset, where, training, {case.regime: options}, case.seed, self.device)

    def setting(self, case: Case) -> str | None:
        """Where the dial stands, as "name=value"."""
        dial = dial_of(case.regime)
        if dial is None:
            return None
        default = REGIMES[case.regime][1].model_fields[dial.setting].default
        value = self.plan(case).regimes[case.regime].get(dial.setting, default)
        return f"{dial.setting}={value:g}" if value is not None else None


def _circuit_task(task: str, circuit: str | None) -> str | None:
    """The task whose circuit is looked for; refuses a name that the subject does not have."""
    tasks = SUBJECTS[task].tasks
    if circuit is None:
        return next(iter(tasks), None)
    if circuit == NO_CIRCUIT:
        return None
    if circuit.endswith(".jsonl") and SUBJECTS[task].data == "corpus":
        if not Path(circuit).is_file():
            raise UsageError(f"--circuit {circuit}: there is no such file.")
        return str(Path(circuit).resolve())
    if circuit not in tasks:
        raise unknown(f"task of {task}", circuit, [*tasks, NO_CIRCUIT])
    return circuit


def _finished(out: Path, asked: Result) -> Result | None:
    """The result on disk, if it answers this very question and nothing in it failed."""
    at = out / "result.json"
    if not at.exists() or not (out / "run.yaml").exists() or plain(read_yaml(out / "run.yaml")) != plain(asked):
        return None
    result = store.read_json(at)
    return result if all(r["status"] == "ok" for r in result["rows"] if r["at"] == "default") else None


def _begin(out: Path, asked: Result) -> None:
    """Writes run.yaml; a folder may be given more regimes and seeds, not other sizes."""
    at = out / "run.yaml"
    have = read_yaml(at) if at.exists() else {}
    kept = {k: have[k] for k in MAY_GROW if k in have}
    begin_run(out, asked | kept if have else asked)
    if have:
        write_yaml(at, asked)


def _is_regression(where: _Where) -> bool:
    """Whether the subject's data bring a loss of their own, so that there is no accuracy."""
    context = int(where.preset.model.get("n_ctx", 0))
    folder = where.data.resolve() if where.data else where.out / "data"
    return isinstance(open_subject(where.task, folder, context).training_data(where.preset.batch, 0), OwnLoss)


# -- training and what is measured of it -----------------------------------------------------------------------------


def _train(
    where: _Where, plans: Mapping[Case, Plan], what: str, workers: int, progress: Progress
) -> dict[Case, Result]:  # fmt: skip
    """All trainings, each in a process of its own; those that are done are only read."""
    done = {c: r for c, plan in plans.items() if (r := _measured(where.out / c.folder, plan)) is not None}
    left = {c: c.folder.replace("/", " ") for c in plans if c not in done}
    if left:
        there = f" ({len(done)} are there)" if done else ""
        progress.log(f"training {len(left)} models{there}: {what}")
    jobs = [Job(name, train_case, (where.out / c.folder, plans[c], name)) for c, name in left.items()]
    return done | dict(zip(left, map_jobs(jobs, workers, progress, fresh=True, preload=LATE), strict=True))


def _measured(folder: Path, plan: Plan) -> Result | None:
    """The figures of a training that is done."""
    needed = ("run.yaml", "result.json", "measured.json", "model/config.json")
    if not all((folder / name).exists() for name in needed) or read_yaml(folder / "run.yaml") != plain(plan.settings()):
        return None
    return {"status": "ok", **store.read_json(folder / "result.json"), **store.read_json(folder / "measured.json")}


def train_case(folder: Path, plan: Plan, name: str) -> Result:
    """Trains as planned and measures (a job, in a process of its own); what is refused or diverges has a status.

    peak_mb   the most memory that the process held (on CUDA: that PyTorch held on the device); None where the training
              was finished by an earlier process. Of a resumed training it is that of its last part
    start_mb  what the process had held before it began: Python, PyTorch and openwork
    """
    try:
        begun_before = (folder / "result.json").exists()
        start = peak_mb("cpu")
        figures = train_plan(folder, plan, name)
        peak = None if begun_before else peak_mb(plan.device)
        run = open_run(folder)
        data, where = run.subject.training_data(plan.batch, plan.seed), torch.device(plan.device)
        more = {
            "discover_accuracy": held_out_accuracy(run.model.to(where), data, where, split="discover"),
            "above_1e-3": share_above(run.model.to("cpu"), 1e-3),
            "wire_length": wire_length_of(run),
            "modules": modules_of(run),
            "peak_mb": peak,
            "start_mb": start if plan.device == "cpu" else None,
        }
        store.write_json(folder / "measured.json", more)
    except OpenworkError as e:
        return {"status": " ".join(str(e).split())}
    return {"status": "ok", **figures, **more}


def peak_mb(device: str) -> float | None:
    """The most memory, in MiB, that this process has held so far, or PyTorch on a CUDA device; None if unknown."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


@torch.no_grad()
def share_above(model: nn.Module, size: float) -> float:
    """Share of the weights of all matrices that are larger than `size`."""
    of = [w.abs() > size for w in matrices(model).values()]
    return sum(int(m.count_nonzero()) for m in of) / sum(m.numel() for m in of)


def wire_length_of(run: Run) -> float | None:
    """The shortest wires found for the run's model, nodes on lines; None where its nodes have no places."""
    notes = read_model_header(run.path / "model")["extra"].get("bimt", {})
    try:
        return relocation.shortest_wire_length(run.model, notes.get("coordinates"))
    except UsageError:
        return None


def modules_of(run: Run) -> int | None:
    """Number of modules where the regime left a partition of the nodes in the stored model."""
    extra = read_model_header(run.path / "model")["extra"]
    for regime in extra.values():
        labels = regime.get("modules") if isinstance(regime, Mapping) else None
        if isinstance(labels, Mapping):
            return len({label for of in labels.values() for label in (of if isinstance(of, list) else [of])})
    return None


# -- equal accuracy --------------------------------------------------------------------------------------------------


def _target(asked: float | str, dense: Result | None, regression: bool) -> Result:
    """What every regime has to reach on the discover split, with a sentence; value None where dense has failed."""
    what = "loss" if regression else "accuracy"
    if asked != "auto":
        value = float(asked)
        return {
            "value": value,
            "sentence": f"{what} of at {'most' if regression else 'least'} {value:.4g} on the discover split",
        }
    if dense is None or dense["status"] != "ok":
        return {"value": None, "sentence": "none, since dense has failed"}
    if regression:
        value = FACTOR * dense["held_out"]
        return {
            "value": value,
            "sentence": f"a loss of at most {value:.4g} on the discover split ({FACTOR} times dense's)",
        }
    value = dense["discover_accuracy"] - MARGIN
    return {
        "value": value,
        "sentence": f"an accuracy of at least {100 * value:.1f} % on the discover split"
        f" (dense's {100 * (value + MARGIN):.1f} % minus one point)",
    }


def _competes(case: Case, regime: str) -> bool:
    """Whether a case is one of those that a regime's setting is chosen among."""
    return case.regime == regime and case.seed == 0 and (case.value is not None or dial_of(regime) is None)


def choose(cases: Sequence[Case], trained: Mapping[Case, Result], target: Result, regression: bool) -> Case | None:
    """The case with the fewest nonzero weights among those that reach the target on the discover split.

    Where these do not differ in it, as a dial that does not sparsify leaves them, the one nearest to the target, and
    among equals the largest value. Looks at no figure of the verify split.
    """

    def rank(case: Case) -> tuple[float, float, float]:
        r = trained[case]
        far = abs((r["held_out"] if regression else r["discover_accuracy"]) - target["value"])
        return (r["nonzero"], far, -(case.value or 0.0))

    able = [c for c in cases if _reaches(trained[c], target, regression)]
    return min(able, key=rank) if able else None


def _reaches(figures: Result, target: Result | None, regression: bool) -> bool:
    if target is None or target["value"] is None or figures["status"] != "ok":
        return False
    if regression:
        return figures["held_out"] <= target["value"]
    return figures["discover_accuracy"] >= target["value"] - 1e-9


def _missed(regime: str, trained: Mapping[Case, Result], target: Result | None) -> str:
    """Why a regime has no row at equal accuracy."""
    tried = [trained[c] for c in trained if _competes(c, regime)]
    failed = [r["status"] for r in tried if r["status"] != "ok"]
    if target is None or target["value"] is None:
        return "there is no target, since dense has failed"
    if len(failed) == len(tried):
        return failed[0]
    return f"none of its {len(tried)} settings reaches the target on the discover split"


def _grid(
    grid: Sequence[Case], trained: Mapping[Case, Result], target: Result | None, chosen: Mapping[str, Case | None],
    regression: bool,
) -> list[Result]:  # fmt: skip
    """Every setting that was tried, with what it was judged by: figures of the discover split, seed 0."""
    rows: list[Result] = []
    for c in grid:
        r, dial = trained[c], dial_of(c.regime)
        rows.append({
            "regime": c.regime, "setting": f"{dial.setting if dial else ''}={c.value:g}", "status": r["status"],
            "discover_accuracy": r.get("discover_accuracy"), "discover_loss": r.get("held_out"),
            "nonzero": r.get("nonzero"), "total": r.get("total"), "above_1e-3": r.get("above_1e-3"),
            "reaches": _reaches(r, target, regression), "chosen": chosen.get(c.regime) == c,
        })  # fmt: skip
    return rows


# -- circuits --------------------------------------------------------------------------------------------------------


def _circuits(
    out: Path, cases: Mapping[Case, Any], trained: Mapping[Case, Result], task: str | None, search: Result,
    workers: int, progress: Progress,
) -> dict[Case, Result]:  # fmt: skip
    """What the same search finds in every trained model."""
    if task is None:
        return {}
    usable = [c for c in cases if trained[c]["status"] == "ok"]
    progress.log(f'looking for the circuit of "{Path(task).stem}" in {len(usable)} models')
    jobs = [
        Job(name, circuit_case, (out / c.folder, task, {**search, "seed": c.seed}, name))
        for c in usable
        for name in [f"circuit in {c.folder.replace('/', ' ')}"]
    ]
    return dict(zip(usable, map_jobs(jobs, workers, progress), strict=True))


def circuit_case(folder: Path, task: str, settings: Result, name: str) -> Result:
    """Looks for a circuit (a job); a search that fails has a status."""
    try:
        found = find_circuit(folder, task, METHOD, settings, name)
    except OpenworkError as e:
        return {"status": " ".join(str(e).split())}
    return {"status": found["status"], "edges": found["edge_pruned"].get("edges")}


# -- the result ------------------------------------------------------------------------------------------------------

FIGURES = (
    "accuracy", "loss", "nonzero", "above_1e-3", "wire_length", "modules", "circuit_edges", "seconds", "cpu_seconds",
    "peak_mb",
)  # fmt: skip


def _row(at: str, case: Case, where: _Where, r: Result, circuit: Result) -> Result:
    """One regime with one seed."""
    return {
        "at": at, "regime": case.regime, "seed": case.seed, "setting": where.setting(case), "status": r["status"],
        "accuracy": r.get("verify_accuracy"), "loss": r.get("verify_loss"),
        "nonzero": r.get("nonzero"), "total": r.get("total"), "above_1e-3": r.get("above_1e-3"),
        "wire_length": r.get("wire_length"), "modules": r.get("modules"),
        "circuit_edges": circuit.get("edges"), "circuit_status": circuit.get("status", NO_CIRCUIT),
        "seconds": r.get("seconds"), "cpu_seconds": r.get("cpu_seconds"),
        "peak_mb": r.get("peak_mb"), "start_mb": r.get("start_mb"),
        "discover_accuracy": r.get("discover_accuracy"), "discover_loss": r.get("held_out"), "run": case.folder,
    }  # fmt: skip


def _keys(rows: Sequence[Result]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((r["at"], r["regime"]) for r in rows))


def _summary(rows: Sequence[Result]) -> Result:
    """One regime over its seeds: mean and 95 % interval of every figure, over the seeds that have it."""
    ok = [r for r in rows if r["status"] == "ok"]
    failed = [r for r in rows if r["status"] != "ok"]
    status = (
        "ok"
        if not failed
        else f"{len(failed)} of {len(rows)} failed: {failed[0]['status']}"
        if ok
        else failed[0]["status"]
    )
    out: Result = {k: rows[0][k] for k in ("at", "regime", "setting")} | {"status": status, "seeds": len(ok)}
    out |= {"total": ok[0]["total"] if ok else None, "circuits": sum(r["circuit_status"] == "ok" for r in ok)}
    for name in FIGURES:
        values = [float(r[name]) for r in ok if r[name] is not None]
        low, high = stats.t_interval(values)
        out[name] = {"mean": sum(values) / len(values), "low": low, "high": high, "n": len(values)} if values else None
    return plain(out)


def _told(figure: Result | None, share: bool = False) -> str:
    """A mean with the half-width of its interval."""
    if figure is None:
        return "-"
    mean, high = figure["mean"], figure["high"]
    if share:
        half = "" if high is None else f" ± {100 * (high - mean):.1f}"
        return f"{100 * mean:.1f}{half} %"
    half = "" if high is None or cell(high - mean) == "0" else f" ± {cell(high - mean)}"
    return f"{cell(mean)}{half}"


def _title(result: Result) -> str:
    """What the table shows."""
    seeds = result["seeds"]
    over = f"mean and half-width of the 95 % interval over {seeds} seeds" if seeds > 1 else "one seed"
    return f"{result['subject']}, {result['measure']} on the verify split: {over}"


def _notes(summary: Sequence[Result]) -> list[str]:
    """Why a line of the table is empty, or stands for fewer seeds."""
    names = {"default": "", "equal": " at equal accuracy"}
    return [f"{s['regime']}{names[s['at']]}: {s['status']}" for s in summary if s["status"] != "ok"]


def readable(result: Result) -> list[Result]:
    """The summary as a person reads it: means with half-widths; columns in which nothing stands are left out."""

    def mean(figure: Result | None, share: bool = False) -> str:
        return _told(figure and {**figure, "high": None}, share)

    circuit = result["circuit"] != NO_CIRCUIT
    lines: list[Result] = []
    for s in result["summary"]:
        found = "" if s["circuits"] == s["seeds"] else f" ({s['circuits']} of {s['seeds']})"
        measure = result["measure"]
        lines.append({
            "at": s["at"], "regime": s["regime"], "setting": s["setting"] or "-",
            measure: _told(s[measure], share=measure == "accuracy"),
            "nonzero": _told(s["nonzero"]),
            "> 1e-3": mean(s["above_1e-3"], share=True),
            "wire length": _told(s["wire_length"]), "modules": _told(s["modules"]),
            "circuit edges": _told(s["circuit_edges"]) + found if circuit and s["seeds"] else "-",
            "train s": mean(s["seconds"]), "CPU s": mean(s["cpu_seconds"]), "peak MB": mean(s["peak_mb"]),
        })  # fmt: skip
    empty = {k for k in lines[0] if k not in ("at", "regime") and all(line[k] == "-" for line in lines)}
    empty |= {"at"} if result["target"] is None else set()
    return [{k: v for k, v in line.items() if k not in empty} for line in lines]


def command_line(asked: Result, settings: Sequence[str]) -> str:
    """The command that makes this comparison, without the names of folders."""
    words = ["openwork", "compare", "--task", asked["subject"], "--regimes", ",".join(asked["regimes"])]
    words += ["--seeds", str(asked["seeds"]), "--preset", asked["preset"]]
    if asked["data"]:
        words += ["--data", "DIR"]
    if asked["circuit"] != _circuit_task(asked["subject"], None):
        words += ["--circuit", Path(asked["circuit"] or NO_CIRCUIT).name]
    if asked["equal_accuracy"] is not None:
        words += ["--equal-accuracy", str(asked["equal_accuracy"])]
    if asked["steps"]:
        words += ["--steps", str(asked["steps"])]
    if asked["device"] != ("cuda" if asked["preset"] == "gpu" else "cpu"):
        words += ["--device", asked["device"]]
    return shlex.join([*words, *(["--set", *settings] if settings else [])])


# -- files -----------------------------------------------------------------------------------------------------------


def _write(out: Path, result: Result, progress: Progress) -> Result:
    """Writes the tables, the plot and the result; RunError where nothing at all worked."""
    result = plain(result)
    write_text(out / "table.csv", as_csv(result["rows"]))
    write_text(out / "table.md", as_markdown(result))
    worked = any(r["status"] == "ok" for r in result["rows"])
    try:
        result["plot"] = [str(p) for p in draw_comparison(result, out)] if worked else []
    except ImportError:
        progress.log(
            'no plot: matplotlib is not installed; pip install "openwork[plot]" and give the same command again.'
        )
        result["plot"] = []
    store.write_json(out / "result.json", result)
    if not worked:
        raise RunError(f"none of the regimes worked in {out}: {result['rows'][0]['status']}")
    return result


def as_csv(rows: Sequence[Result]) -> str:
    """All rows, one per regime and seed, every figure in full; what there is not is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(result: Result) -> str:
    """The table with its command, its units, and every setting that was tried."""
    circuit, total = result["circuit"], next((s["total"] for s in result["summary"] if s["total"]), None)
    start = sorted(r["start_mb"] for r in result["rows"] if r["start_mb"] is not None)
    parts = [f"# Regimes compared on {result['subject']}", f"```sh\n{result['command']}\n```"]
    about = [
        f"Mean and half-width of the 95 % interval (Student's t) over the seeds 0 to {result['seeds'] - 1};"
        f" {result['measure']} on the verify split, which nothing was chosen by."
        if result["seeds"] > 1
        else f"One seed; {result['measure']} on the verify split, which nothing was chosen by.",
        f"*Nonzero* counts the weights that are stored as other than zero, of {total:,}; *> 1e-3* is the share that is"
        " larger than that in size." if total else "",
        "*Wire length*: nodes on lines, exchanged for the shortest wires by the same search in every model.",
        f'*Circuit edges*: the circuit of "{Path(circuit).stem}", the same search in every model, single edges pruned;'
        " where a search met no target, the mean is over those that did." if circuit != NO_CIRCUIT else "",
        "Seconds are those of training alone; peak memory is that of the process that trained"
        + (f", of which {start[len(start) // 2]:.0f} MB are Python and PyTorch before it begins." if start else "."),
    ]  # fmt: skip
    parts.append(" ".join(a for a in about if a))
    blocks = ["default", "equal"] if result["target"] else ["default"]
    titles = {
        "default": "At their defaults",
        "equal": "At equal accuracy" if result["measure"] == "accuracy" else "At equal loss",
    }
    for at in blocks:
        lines = [line for line, s in zip(result["table"], result["summary"], strict=True) if s["at"] == at]
        parts.append(f"## {titles[at]}")
        if at == "equal":
            parts.append(
                f"Asked for: {result['target']['sentence']}. Of each regime's five settings below, the one with the"
                " fewest nonzero weights that reaches this with seed 0; where they all have equally many, the one"
                " nearest to it. Then all seeds."
            )
        parts.append(_markdown([{k: v for k, v in line.items() if k != "at"} for line in lines]))
        if notes := _notes([s for s in result["summary"] if s["at"] == at]):
            parts.append("\n".join(f"* {note}" for note in notes))
    if result["grid"]:
        measure = f"discover_{result['measure']}"
        parts.append("## Every setting that was tried")
        parts.append("Seed 0, on the discover split.")
        parts.append(
            _markdown([
                {
                    "regime": g["regime"], "setting": g["setting"],
                    measure.replace("_", " "): "-" if g[measure] is None else cell(g[measure], result["measure"]),
                    "nonzero": cell(g["nonzero"]), "> 1e-3": cell(g["above_1e-3"], "accuracy"),
                    "reaches the target": cell(g["reaches"]), "chosen": "**yes**" if g["chosen"] else "",
                    **({} if all(x["status"] == "ok" for x in result["grid"]) else {"status": g["status"]}),
                }
                for g in result["grid"]
            ])
        )  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _markdown(rows: Sequence[Result]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + ["| " + " | ".join(str(v).replace("|", "\\|") for v in r.values()) + " |" for r in rows])


__all__ = ["DIALS", "Case", "Dial", "choose", "compare_regimes", "dial_of", "readable"]
