"""How well a detector or a rival of it does on held-out flows: rates, reasons put to the test, time per flow.

Every model gets its threshold on the discover split, by the same budget of false alarms; figures are of the verify
split and, where a test file was given, of that (the ood split). Each judgement is a job that writes its own file and is
skipped where that answers the same question. Knows detectors, rivals and prepared flows. Does not know how a detector
was trained, nor what is made of the figures.

Shapes: N flows, F features, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openwork import stats, store
from openwork.contenders import CONTENDERS, Contender
from openwork.detector import Detector, load_detector, typical_flow
from openwork.runs import done, key_of, open_run
from openwork.tasks.flows import generated
from openwork.tasks.flows.decision import Decision, calibrated, calibration_error
from openwork.tasks.flows.prepared import Prepared

Record = dict[str, Any]

VERSION = 3  # of what is measured
ROWS = 200_000  # training rows that rivals, and the typical flow, are made from at most
ALERTS = 400  # alerts whose reasons are put to the test
RESET = 3  # columns that are put back to the typical flow's values, to see whether they were the reason


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


__all__ = ["ROWS", "judge_detector", "judge_rival", "latency", "measure", "never_used"]
