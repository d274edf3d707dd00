"""`openwork run flows`: from a flow log to a sparse detector beside its rivals, with circuits, in one folder.

    out/  run.yaml  result.json  data/ (prepared flows, shared by all)
          sparse/  dense/        run folders of the first seed (see `runs`), each with detector/ (see `detector`)
          more/sparse-1/ ...     the same of further seeds, with the circuit of the first task alone
          rivals/NAME-SEED.json  figures of a rival

Every job writes its own file or folder and is skipped where that answers the same question, so a stopped command goes
on. Knows names, functions and folders. Does not know how figures are measured (see `judging`), nor how modules are
found (see `detector_modules`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openwork import detector, stats, store
from openwork.contenders import CONTENDERS
from openwork.detector import Detector, load_detector, save_detector, typical_flow
from openwork.detector_modules import find_detector_modules
from openwork.errors import UsageError, unknown
from openwork.judging import ROWS, judge_detector, judge_rival, never_used
from openwork.presets import FLOWS, Preset
from openwork.progress import Progress
from openwork.runs import (
    Plan,
    begin_run,
    check_circuit,
    find_circuit,
    method_settings,
    open_run,
    train_plan,
)
from openwork.settings import assigned
from openwork.tasks.flows import generated
from openwork.tasks.flows.decision import Decision, calibrated
from openwork.tasks.flows.flows import FlowData, flow_tasks
from openwork.tasks.flows.nsl_kdd import LABEL as NSL_LABEL
from openwork.tasks.flows.nsl_kdd import nsl_kdd
from openwork.tasks.flows.prepared import Prepared, prepare
from openwork.tasks.flows.readers import open_flows
from openwork.threads import available_cores
from openwork.workers import Job, map_jobs

Record = dict[str, Any]

NETWORKS = ("sparse", "dense")
METHOD = "auto"
OPTIONAL = {"explainable_boosting": "interpret"}  # rival -> module without which it is left out, with a note


def run_flows(
    out: Path,
    preset: str = "cpu",
    seeds: int = 3,
    seed: int = 0,
    device: str = "cpu",
    data: Path | None = None,
    label: str | None = None,
    test: Path | None = None,
    ignore: Sequence[str] = (),
    normal: str = "",
    binary: bool = False,
    budget: float = 0.01,
    workers: int | None = None,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
) -> Record:
    """Trains detectors on flows and puts them beside their rivals; finds and checks the sparse one's circuits.

    data     a flow log (CSV, Parquet, Zeek), or the folder with the two files of NSL-KDD; without it, generated flows
    label    column with the class; test: a second log, the out-of-distribution split
    normal   the label without attack; binary: all other labels are one class
    budget   share of normal flows that may be alerts
    seeds    trainings of every model: seed, seed + 1, ...
    """
    progress = progress or Progress(False)
    if preset not in FLOWS:
        raise unknown("preset", preset, FLOWS)
    p = FLOWS[preset].changed(assigned(settings, FLOWS[preset].groups()))
    asked = {
        "kind": "flows", "subject": "flows", "preset": preset, "seeds": seeds, "seed": seed, "device": device,
        "data": str(data.resolve()) if data else None, "label": label, "test": str(test.resolve()) if test else None,
        "ignore": list(ignore), "normal": normal, "binary": binary, "budget": budget, "settings": p.model_dump(),
    }  # fmt: skip
    flows, extra = source_of(data, label, test, p)
    begin_run(out, asked)
    began = time.monotonic()
    progress.log("reading the flows and writing them as arrays")
    prepared = prepare(
        out / "data", flows, extra["label"], extra["test"], (*extra["ignore"], *ignore), normal, binary,
        {"data": asked["data"], "test": asked["test"], "rows": p.generated},
    )  # fmt: skip
    schema = prepared.schema
    p = p.changed({"model": {"inputs": len(schema.features), "outputs": len(schema.classes)}})
    n = workers or available_cores()
    trained = _train(out, p, seed, seeds, device, n, progress)
    progress.log("setting thresholds, training the rivals")
    map_jobs([Job(f"calibrate {at.name}", make_detector, (at, budget)) for at in trained], n, progress)
    sparse = [at for at in trained if at.name.startswith("sparse")]
    map_jobs([Job(f"modules of {at.name}", find_detector_modules, (at,)) for at in sparse], n, progress)
    jobs = [Job(f"judge {at.name}", judge_detector, (at,)) for at in trained]
    left_out = [name for name in OPTIONAL if not _there(OPTIONAL[name])]
    rivals = [name for name in CONTENDERS if name not in left_out]
    jobs += [
        Job(f"{name} {s}", judge_rival, (out, name, s, budget)) for name in rivals for s in range(seed, seed + seeds)
    ]
    figures = map_jobs(jobs, n, progress)
    tasks = [t for t in flow_tasks(schema) if t in p.tasks] if p.tasks else list(flow_tasks(schema))
    more = f", and of {tasks[0]} with every further seed" if seeds > 1 else ""
    progress.log(f"looking for the circuits of {len(tasks)} tasks{more}, and checking them")
    wanted = [(out / "sparse", t) for t in tasks] + [(at, t) for at in sparse[1:] for t in tasks[:1]]
    circuits = _circuits(wanted, p, seed, n, progress)[: len(tasks)]
    result = _result(out, prepared, figures, circuits, budget) | {
        "notes": [f'{name} is left out: it needs pip install "openwork[ebm]".' for name in left_out],
        "seconds": time.monotonic() - began,
    }
    store.write_json(out / "result.json", result)
    return result


def source_of(data: Path | None, label: str | None, test: Path | None, p: Preset) -> tuple[Any, Record]:
    """The flows to learn from, and their label, their test flows and the columns that are no features."""
    if data is None:
        if label or test:
            raise UsageError("--label and --test go with --data; the generated flows have their own.")
        return generated.Generated(p.generated), {"label": generated.LABEL, "test": None, "ignore": ()}
    if data.is_dir():
        if label or test:
            raise UsageError(f"{data} is a folder, taken as that of NSL-KDD, which has its own label and test file.")
        train, tested = nsl_kdd(data)
        return train, {"label": NSL_LABEL, "test": tested, "ignore": ("difficulty",)}
    if not label:
        raise UsageError("--data needs --label NAME, the column with the class of each flow.")
    return open_flows(data), {"label": label, "test": open_flows(test) if test else None, "ignore": ()}


def _there(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


# -- training and thresholds -------------------------------------------------------------------------------------------


def _train(out: Path, p: Preset, seed: int, seeds: int, device: str, workers: int, progress: Progress) -> list[Path]:
    jobs, folders = [], []
    for s in range(seed, seed + seeds):
        for name in NETWORKS:
            at, data = (out / name, "../data") if s == seed else (out / "more" / f"{name}-{s}", "../../data")
            training = getattr(p, name) | {"seed": s}
            regimes = {"topk": p.topk} if name == "sparse" else {"dense": {}}
            plan = Plan("flows", data, p.model, training, regimes, p.examples, s, p.batch, device)
            jobs.append(Job(f"train {name} {s}", train_plan, (at, plan, f"train {name} {s}")))
            folders.append(at)
    progress.log(f"training {len(jobs)} networks")
    map_jobs(jobs, workers, progress)
    return folders


def make_detector(at: Path, budget: float) -> None:
    """Sets what makes an alert of a trained network's outputs, on its discover split (a job)."""
    run = open_run(at)
    data = run.subject.training_data(1, 0)
    assert isinstance(data, FlowData)
    prepared = data.prepared
    x = prepared.features("discover", slice(None))
    labels = np.asarray(prepared.labels("discover")).astype(np.int64)
    layers = detector.layers_of(run.model)
    loose = Detector(prepared.schema, layers, Decision((0.0,) * len(prepared.schema.classes), 1.0, 1.0, budget), {}, "")
    decision = calibrated(loose.logits(x).astype(np.float64), labels, data.shares, data.drawn, budget)
    some = np.flatnonzero(np.asarray(prepared.labels("train")) == 0)[:ROWS]
    typical = typical_flow(prepared.schema, prepared.codes("train", some))
    save_detector(at, prepared.schema, decision, typical, {"trained_on": prepared.facts})


# -- circuits and the result -------------------------------------------------------------------------------------------


def _circuits(
    wanted: Sequence[tuple[Path, str]], p: Preset, seed: int, workers: int, progress: Progress
) -> list[Record]:
    """The circuits of some run folders' tasks, found and checked, in their order."""
    settings = method_settings(METHOD, **p.masks, seed=seed)
    jobs = [
        Job(f"circuit of {t}, {at.name}", find_circuit, (at, t, METHOD, settings, f"circuit of {t}, {at.name}"))
        for at, t in wanted
    ]
    found = map_jobs(jobs, workers, progress)
    ok = [(at, f["circuit"]) for (at, _), f in zip(wanted, found, strict=True) if f["status"] == "ok"]
    checked = map_jobs(
        [Job(f"check {c}, {at.name}", check_circuit, (at, c, seed, (), p.n_null)) for at, c in ok], workers, progress
    )
    evidence = {(at, c): e["evidence"] for (at, c), e in zip(ok, checked, strict=True)}
    return [
        {"task": f["task"], "status": f["status"], **f["edge_pruned"], "evidence": evidence.get((at, f["circuit"]), [])}
        for (at, _), f in zip(wanted, found, strict=True)
    ]


SHOWN = ("accuracy", "attack_accuracy", "macro_f1", "auroc", "detection_rate", "false_alarm_rate")


def _result(
    out: Path, prepared: Prepared, figures: Sequence[Record], circuits: Sequence[Record], budget: float
) -> Record:
    schema = prepared.schema
    models = list(dict.fromkeys(f["model"] for f in figures))
    table = []
    for m in models:
        mine = [f for f in figures if f["model"] == m]
        row: Record = {"model": m, "parts": f"{np.median([f['parts'] for f in mine]):,.0f} {mine[0]['of']}"}
        row |= {"bytes": int(np.median([f["bytes"] for f in mine]))}
        for split in mine[0]["splits"]:
            values = {k: [f["splits"][split][k] for f in mine if f["splits"][split][k] is not None] for k in SHOWN}
            row |= {f"{k} ({'test' if split == 'ood' else split})": spread(v) for k, v in values.items()}
        for k in ("fidelity", "fidelity_null", "rule_first", "us_one_by_one", "us_in_batches"):
            values = [f[k] for f in mine if f.get(k) is not None]
            row[k] = spread(values) if values else None
        table.append(row)
    never = never_used(load_detector(out / "sparse"))
    return {
        "run": str(out), "classes": list(schema.classes), "rows": prepared.facts["rows"],
        "features": len(schema.features), "budget": budget, "figures": list(figures), "circuits": list(circuits),
        "never_used": never,
        "tables": {
            "detectors (mean of the seeds, 95 % interval where there are three or more)": table,
            "circuits of the sparse detector": [
                {k: c.get(k) for k in ("task", "status", "nodes", "edges", "loss", "accuracy")}
                | {"holds": ", ".join(e["claim"] for e in c["evidence"] if e["verdict"] == "holds")}
                for c in circuits
            ],
        },
    }  # fmt: skip


def spread(values: Sequence[float]) -> str:
    """The mean, and its t interval over three or more seeds; that of shares stays between 0 and 1."""
    mean = float(np.mean(values))
    if len(values) < 3 or max(values) == min(values):
        return f"{mean:.4g}"
    low, high = stats.t_interval(values)
    if min(values) >= 0 and max(values) <= 1:
        low, high = max(0.0, low), min(1.0, high)
    return f"{mean:.4g} ({low:.4g} to {high:.4g})"


__all__ = ["make_detector", "run_flows", "source_of", "spread"]
