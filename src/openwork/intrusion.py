"""`openwork run flows`: from a flow log to a sparse detector beside its rivals, with circuits, in one folder.

    out/  run.yaml  result.json  data/ (prepared flows, shared by all)
          sparse/  dense/        run folders of the first seed (see `runs`), each with detector/ (see `detector`)
          more/sparse-1/ ...     the same of further seeds
          rivals/NAME-SEED.json  figures of a rival

Every job writes its own file or folder and is skipped where that answers the same question, so a stopped command goes
on. Knows names, functions and folders. The threshold of every model is set on the discover split, by the same budget of
false alarms; figures are of the verify split and, where a test file was given, of that (the ood split).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openwork import detector, stats, store
from openwork.contenders import CONTENDERS, Contender
from openwork.detector import Detector, load_detector, save_detector, typical_flow
from openwork.errors import UsageError, unknown
from openwork.presets import FLOWS, Preset
from openwork.progress import Progress
from openwork.runs import (
    Plan,
    begin_run,
    check_circuit,
    done,
    find_circuit,
    key_of,
    method_settings,
    open_run,
    train_plan,
)
from openwork.settings import assigned
from openwork.tasks.flows import generated
from openwork.tasks.flows.decision import Decision, calibrated, calibration_error
from openwork.tasks.flows.flows import FlowData, flow_tasks
from openwork.tasks.flows.nsl_kdd import LABEL as NSL_LABEL
from openwork.tasks.flows.nsl_kdd import nsl_kdd
from openwork.tasks.flows.prepared import Prepared, prepare
from openwork.tasks.flows.readers import open_flows
from openwork.threads import available_cores
from openwork.workers import Job, map_jobs

Record = dict[str, Any]

VERSION = 3  # of what is measured
NETWORKS = ("sparse", "dense")
ROWS = 200_000  # training rows that rivals get at most
ALERTS = 400  # alerts whose reasons are put to the test
RESET = 3  # columns that are put back to the typical flow's values, to see whether they were the reason
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
    jobs = [Job(f"judge {at.name}", judge_detector, (at,)) for at in trained]
    left_out = [name for name in OPTIONAL if not _there(OPTIONAL[name])]
    rivals = [name for name in CONTENDERS if name not in left_out]
    jobs += [
        Job(f"{name} {s}", judge_rival, (out, name, s, budget)) for name in rivals for s in range(seed, seed + seeds)
    ]
    figures = map_jobs(jobs, n, progress)
    tasks = [t for t in flow_tasks(schema) if t in p.tasks] if p.tasks else list(flow_tasks(schema))
    progress.log(f"looking for the circuits of {len(tasks)} tasks and checking them")
    circuits = _circuits(out / "sparse", tasks, p, seed, n, progress)
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


# -- figures -----------------------------------------------------------------------------------------------------------


def judge_detector(at: Path) -> Record:
    """A detector's figures on held-out flows (a job)."""
    d = load_detector(at)
    run = open_run(at)
    prepared = Prepared(run.path / run.settings["data"])
    key = key_of(d.digest, prepared.facts["rows"], VERSION)
    if (have := done(at / "detector", key)) is not None:
        return have
    kind = "sparse" if "topk" in run.settings["regimes"] else "dense"
    edges = sum(int((w != 0).sum()) for w, _ in d.layers)
    figures: Record = {
        "key": key, "model": kind, "seed": run.settings["seed"], "parts": edges, "of": "edges",
        "bytes": (at / "model" / "model.safetensors").stat().st_size, "threshold": d.decision.threshold,
        "cpu_seconds": store.read_json(at / "result.json").get("cpu_seconds"),
    }  # fmt: skip
    splits = _splits(prepared)
    figures["splits"] = {s: measure(d.decision, d.logits(x).astype(np.float64), y) for s, (x, y) in splits.items()}
    x, y = splits["verify"]

    def shares(rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
        return d.shares(rows, classes)[0]

    figures |= test_reasons(d, x, y, lambda z: d.logits(z).astype(np.float64), d.decision, shares)
    figures |= latency(d.logits, x)
    store.write_json(at / "detector" / "result.json", figures)
    return figures


def judge_rival(out: Path, name: str, seed: int, budget: float) -> Record:
    """Trains a rival and gives its figures on the same flows (a job)."""
    at = out / "rivals" / f"{name}-{seed}.json"
    prepared = Prepared(out / "data")
    key = key_of(name, seed, budget, prepared.facts, prepared.schema.digest(), VERSION)
    if at.exists() and store.read_json(at).get("key") == key:
        return store.read_json(at)
    rows = np.linspace(0, prepared.rows("train") - 1, min(prepared.rows("train"), ROWS)).astype(int)
    labels = np.asarray(prepared.labels("train"))[rows].astype(np.int64)
    rival = CONTENDERS[name](prepared.features("train", rows), labels, prepared.schema.features, seed)
    shares = np.bincount(labels, minlength=len(prepared.schema.classes)) / len(labels)

    def logits(x: np.ndarray) -> np.ndarray:
        return np.log(np.clip(rival.probabilities(x), 1e-12, 1.0))

    xd, yd = prepared.features("discover", slice(None)), np.asarray(prepared.labels("discover")).astype(np.int64)
    decision = calibrated(logits(xd), yd, shares, shares, budget)
    figures: Record = {
        "key": key, "model": rival.name, "seed": seed, "parts": rival.size, "of": rival.parts, "bytes": rival.bytes,
        "cpu_seconds": rival.seconds, "threshold": decision.threshold,
    }  # fmt: skip
    splits = _splits(prepared)
    figures["splits"] = {s: measure(decision, logits(x), y) for s, (x, y) in splits.items()}
    figures |= _reasons_of(rival, prepared, splits["verify"], logits, decision)
    figures |= latency(rival.probabilities, splits["verify"][0])
    at.parent.mkdir(exist_ok=True)
    store.write_json(at, figures)
    return figures


def _reasons_of(
    rival: Contender,
    prepared: Prepared,
    split: tuple[np.ndarray, np.ndarray],
    logits: Callable[[np.ndarray], np.ndarray],
    decision: Decision,
) -> Record:
    if rival.contributions is None:
        return {}
    schema = prepared.schema
    some = np.flatnonzero(np.asarray(prepared.labels("train")) == 0)[:ROWS]
    stand_in = Detector(schema, (), decision, typical_flow(schema, prepared.codes("train", some)), "")
    of = rival.contributions
    base = of(stand_in.start[None].astype(np.float32))[0]

    def shares(rows: np.ndarray, _classes: np.ndarray) -> np.ndarray:
        by = np.zeros((len(rows), len(schema.columns)))
        np.add.at(by.T, np.array(schema.column_of), (of(rows) - base).T)
        return by

    return test_reasons(stand_in, *split, logits, decision, shares)


def _splits(prepared: Prepared) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and classes of the held-out splits that there are."""
    return {
        s: (prepared.features(s, slice(None)), np.asarray(prepared.labels(s)).astype(np.int64))
        for s in ("verify", "ood")
        if prepared.rows(s)
    }


def measure(decision: Decision, logits: np.ndarray, labels: np.ndarray) -> Record:
    """Figures of calibrated outputs [N, C] on flows with classes [N].

    accuracy and macro F1 are of the likeliest class; detection and false alarms of the threshold.
    """
    from sklearn.metrics import f1_score, roc_auc_score

    p = decision.probabilities(logits)
    best, alert, attack = p.argmax(1), decision.decide(logits) > 0, labels > 0
    both = attack.any() and not attack.all()
    false = int((alert & ~attack).sum())
    return {
        "accuracy": float((best == labels).mean()), "attack_accuracy": float(((best > 0) == attack).mean()),
        "macro_f1": float(f1_score(labels, best, average="macro")),
        "auroc": float(roc_auc_score(attack, 1 - p[:, 0])) if both else None,
        "detection_rate": float(alert[attack].mean()) if attack.any() else None,
        "false_alarm_rate": false / max(1, int((~attack).sum())),
        "false_alarm_interval": list(stats.clopper_pearson(false, max(1, int((~attack).sum())))),
        "calibration_error": calibration_error(p, labels), "n": len(labels),
    }  # fmt: skip


def test_reasons(
    d: Detector,
    x: np.ndarray,
    labels: np.ndarray,
    logits: Callable[[np.ndarray], np.ndarray],
    decision: Decision,
    shares: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Record:
    """Whether what is told as the reason was the reason, on true alerts.

    fidelity      share of the alerts that are none any more once the RESET columns told first have the typical flow's
                  values; fidelity_null: the same with as many columns drawn at random
    rule_first    of generated flows, share of the alerts whose first reason is a column of the rule that was planted,
                  or one that says the same (`generated.SAME`)
    """
    found = decision.decide(logits(x))
    alerts = np.flatnonzero((found > 0) & (found == labels))
    alerts = alerts[np.linspace(0, len(alerts) - 1, min(len(alerts), ALERTS)).astype(int)] if len(alerts) else alerts
    if not len(alerts):
        return {"alerts": 0}
    rows, classes = x[alerts], found[alerts]
    by = shares(rows, classes)
    first = np.argsort(-by, axis=1, kind="stable")
    rng = np.random.default_rng(0)
    used = [i for i, c in enumerate(d.schema.columns) if c.kind != "ignored"]
    drawn = np.stack([rng.permutation(used)[:RESET] for _ in alerts])
    column_of, start = np.array(d.schema.column_of), d.start.astype(np.float32)

    def still(columns: np.ndarray) -> float:
        at = (column_of[None, :, None] == columns[:, None, :]).any(-1)
        return float((decision.decide(logits(np.where(at, start, rows))) > 0).mean())

    out: Record = {
        "alerts": len(alerts), "fidelity": 1 - still(first[:, :RESET]), "fidelity_null": 1 - still(drawn),
    }  # fmt: skip
    names = [c.name for c in d.schema.columns]
    if set(d.schema.classes[1:]) == set(generated.RULES):
        hits = [
            generated.SAME.get(names[int(f[0])], names[int(f[0])]) in generated.RULES[d.schema.classes[int(c)]].columns
            for f, c in zip(first, classes, strict=True)
        ]
        out |= {"rule_first": float(np.mean(hits)), "rule_first_interval": list(stats.wilson(sum(hits), len(hits)))}
    return out


def latency(judge: Callable[[np.ndarray], Any], x: np.ndarray) -> Record:
    """Microseconds per flow, one by one and in batches of 1,024: medians on this machine at this time."""

    def median(rows: np.ndarray, times: int) -> float:
        spent = []
        for _ in range(times):
            began = time.perf_counter()
            judge(rows)
            spent.append((time.perf_counter() - began) / len(rows))
        return 1e6 * float(np.median(spent))

    return {"us_one_by_one": median(x[:1], 50), "us_in_batches": median(x[:1024], 10)}


# -- circuits and the result -------------------------------------------------------------------------------------------


def _circuits(at: Path, tasks: Sequence[str], p: Preset, seed: int, workers: int, progress: Progress) -> list[Record]:
    settings = method_settings(METHOD, **p.masks, seed=seed)
    jobs = [Job(f"circuit of {t}", find_circuit, (at, t, METHOD, settings, f"circuit of {t}")) for t in tasks]
    found = map_jobs(jobs, workers, progress)
    names = [f["circuit"] for f in found if f["status"] == "ok"]
    checked = map_jobs(
        [Job(f"check {c}", check_circuit, (at, c, seed, (), p.n_null)) for c in names], workers, progress
    )
    evidence = {c["circuit"]: c["evidence"] for c in checked}
    return [
        {"task": f["task"], "status": f["status"], **f["edge_pruned"], "evidence": evidence.get(f["circuit"], [])}
        for f in found
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


def never_used(d: Detector) -> list[str]:
    """Columns none of whose features has a path to an output."""
    reach = np.ones(len(d.schema.classes), dtype=bool)
    for w, _ in reversed(d.layers):
        reach = ((w != 0) & reach[:, None]).any(0)
    by: Mapping[str, bool] = {
        c.name: bool(any(reach[i] for i, of in enumerate(d.schema.column_of) if of == k))
        for k, c in enumerate(d.schema.columns)
        if c.kind != "ignored"
    }
    return [name for name, used in by.items() if not used]


__all__ = ["judge_detector", "judge_rival", "make_detector", "measure", "never_used", "run_flows", "source_of"]
