"""`openwork report RUN --out report.html`: what a run's models were trained on, do, and cannot do, as a document.

    report.html    the page; the whole content stands in it as JSON too
    report.json    that content alone, in its canonical form
    report.sha256  SHA-256 of report.json, as `sha256sum -c` reads it

`check_report` takes the content out of a page, computes digest and signature anew, and makes the page again: whoever
changes a shown figure, or the content, is noticed. Without a key that finds changes by who does not know this program;
with one (HMAC-SHA256, RFC 2104), by anyone who has no key.

Knows runs, detectors and their files. Does not know HTML; what is told of a run comes from its files and its model.
"""

from __future__ import annotations

import hmac
import importlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from openwork import __version__, audit, files, stats
from openwork.errors import RunError, UsageError
from openwork.views import explanations, flows
from openwork.views.report import FORMAT, VERSION, canonical, content_of, render
from openwork.views.words import claim_words, model_words, percent

Record = dict[str, Any]

FEW = 30  # flows of a class, below which its figures are called uncertain
WEAK = 0.8  # detection rate of a class that its interval has to reach for nothing to be said
SEEN = 0.001  # share of flows from which what the training rows did not have is told
SPLITS = {"train": "train", "discover": "threshold", "verify": "held out", "explain": "explanations", "ood": "test log"}
CLAIM = ("claim", "verdict", "sentence", "value", "unit", "interval", "null", "null_value", "p", "n", "split")
ONE_SEED = "Every model was trained once, so whether another training would decide the same way is not known."
NONE_BUT = '--pdf needs WeasyPrint and Pango: pip install "openwork[pdf]", and Pango from the system\'s packages'


def write_report(run: Path, out: Path, key_env: str | None = None, pdf: bool = False, now: str | None = None) -> Record:
    """Writes the report of a run, its content and its digest; returns where, and the digest.

    key_env  environment variable with a key: the report is signed
    pdf      write a PDF beside it too
    now      when it was made; by default, now
    """
    if out.suffix != ".html":
        raise UsageError(f"--out {out}: the report is a page; give it a name that ends in .html.")
    key, printer = audit.key_from(key_env), _printer() if pdf else None
    content = files.plain(gather(run) | {"made": now or datetime.now(UTC).isoformat(timespec="seconds")})
    data = canonical(content)
    stated = {"sha256": files.sha256(data), "hmac_sha256": hmac.new(key, data, "sha256").hexdigest() if key else None}
    html = render(content, stated)
    beside = out.with_suffix(".json")
    files.write_bytes(beside, data)
    files.write_text(out.with_suffix(".sha256"), f"{stated['sha256']}  {beside.name}\n")
    files.write_text(out, html)
    told: Record = {"run": str(run), "report": str(out), "content": str(beside), "digest": stated["sha256"]}
    if printer is not None:
        files.write_bytes(out.with_suffix(".pdf"), printer(html))
        told["pdf"] = str(out.with_suffix(".pdf"))
    limits = sum(len(m["limits"]) + len(m["claims"]) for m in content["models"])
    return told | {"signed": key is not None, "limits": limits}


def _printer() -> Any:
    """A function from a page to the bytes of a PDF; UsageError without WeasyPrint."""
    try:
        weasyprint = importlib.import_module("weasyprint")
    except (ImportError, OSError) as e:  # OSError: it is there and Pango is not
        raise UsageError(f"{NONE_BUT} ({e}).") from e

    def refused(url: str, *_args: Any, **_kwargs: Any) -> Any:
        raise ValueError(f"a report loads nothing, and not {url}")

    return lambda html: weasyprint.HTML(string=html, url_fetcher=refused).write_pdf()


def check_report(path: Path, key_env: str | None = None) -> Record:
    """Whether a report is as it was written: `intact`, its digest, its signature, and all problems; `failed` if any."""
    key = audit.key_from(key_env)
    if not path.is_file():
        raise UsageError(f"{path} is not a file; expected a page that openwork report wrote.")
    html = files.read_text(path)
    content, stated = content_of(html, path)
    data, problems = canonical(content), []
    digest = files.sha256(data)
    if digest != stated.get("sha256"):
        problems.append("its content is not the one whose digest it states")
    beside = path.with_suffix(".json")
    if beside.is_file() and beside.read_bytes() != data:
        problems.append(f"its content is not that of {beside.name}")
    signature = stated.get("hmac_sha256")
    if key is not None:
        right = hmac.new(key, data, "sha256").hexdigest()
        if signature is None:
            problems.append("it is not signed")
        elif not hmac.compare_digest(right, str(signature)):
            problems.append("its signature is not of this content and this key")
    same = content.get("openwork") == __version__
    try:
        remade = render(content, stated) if same else html
    except RunError as e:
        remade, problems = html, [*problems, str(e).rstrip(".")]
    if remade != html:
        problems.append("what it shows is not what its content says")
    told: Record = {
        "report": str(path), "intact": not problems, "digest": digest,
        "signature": "none" if signature is None else "not checked: give --key-env" if key is None else "checked",
        "shown_text": "compared" if same else f"not compared: written by openwork {content.get('openwork')}",
        "problems": problems,
    }  # fmt: skip
    return told if not problems else told | {"failed": f"{path} is not as it was written: {'; '.join(problems)}."}


# -- what is told ------------------------------------------------------------------------------------------------------


def gather(run: Path) -> Record:
    """The content of a report, as plain data, but for when it was made; UsageError for a folder without a model."""
    if not (run / "run.yaml").is_file():
        raise UsageError(f"{run} is not a run: it has no run.yaml. `openwork train --help` says how one is trained.")
    settings = files.read_yaml(run / "run.yaml")
    at = {m: run / m for m in ("sparse", "dense", "dense_matched") if (run / m / "model" / "config.json").is_file()}
    if (run / "model" / "config.json").is_file():
        at = {"": run}
    if not at:
        raise UsageError(
            f"{run} holds no trained model; finish it with the command that began it, or name one of its runs."
        )
    is_flows = settings.get("kind") == "flows"
    if is_flows and not (run / "result.json").is_file():
        raise UsageError(f"the run in {run} is not finished; finish it with the command that began it.")
    result = files.read_json(run / "result.json") if (run / "result.json").is_file() else {}
    return {
        "format": FORMAT, "version": VERSION, "openwork": __version__, "run": run.resolve().name,
        "title": flows.headline(result["figures"]) if is_flows else f"The models of {run.resolve().name}",
        "source": f"{flows.source_words(settings)} {_first(settings)}" if is_flows else _other(settings),
        "caveats": flows.caveats(settings, result) if is_flows else [],
        "tables": [_table(t, rows) for t, rows in result["tables"].items()] if is_flows else [],
        "data": _data(run, settings) if is_flows else None,
        "models": [_model(name, folder) for name, folder in at.items()],
        "seeds": _seeds(run, settings) if is_flows else None,
        "exports": list(_exports(run, at)),
    }  # fmt: skip


def _first(settings: Record) -> str:
    n = int(settings.get("seeds", 1))
    return (
        "Every model was trained once."
        if n == 1
        else f"Every model was trained with {n} seeds: tables of all models give means, what is told of one is of "
        "the first."
    )


def _seeds(run: Path, settings: Record) -> Record:
    """Whether the seeds decide alike; where every model was trained once, that this is not known."""
    from openwork.between_seeds import compare_seeds

    if int(settings.get("seeds", 1)) > 1 and (found := compare_seeds(run)) is not None:
        return found
    return {"rows": [], "verdicts": [], "attacks": [], "sentences": [ONE_SEED]}


def _other(settings: Record) -> str:
    return f"Trained on {settings.get('subject')}."


def _table(title: str, rows: Sequence[Record]) -> Record:
    heads = list(dict.fromkeys(k for r in rows for k in r))
    return {"title": title, "heads": heads, "rows": [[r.get(h) for h in heads] for r in rows]}


def _data(run: Path, settings: Record) -> Record:
    """What the flows were: where from, how many of which class in which split, which columns."""
    from openwork.tasks.flows.prepared import Prepared

    prepared = Prepared(run / "data")
    schema, rows = prepared.schema, prepared.facts["rows"]
    splits = [s for s in SPLITS if rows.get(s)]
    counts = {s: np.bincount(np.asarray(prepared.labels(s)), minlength=len(schema.classes)).tolist() for s in splits}
    broken = prepared.facts["broken"]
    return {
        "facts": [
            ["source", str(settings["data"]) if settings.get("data") else "generated by openwork"],
            ["test log", str(settings.get("test") or ("of the same folder" if rows.get("ood") else "none"))],
            ["label column", schema.label], ["class without attack", schema.normal],
            ["lines that could not be read", f"{broken['flows']:,} of the log, {broken['test']:,} of the test log"],
            ["features", f"{len(schema.features)} of {len(schema.used)} columns"],
            ["schema, SHA-256", schema.digest()],
        ],
        "splits": [SPLITS[s] for s in splits],
        "classes": [[c, *(counts[s][i] for s in splits)] for i, c in enumerate(schema.classes)],
        "columns": [
            [c.name, c.kind, c.why or c.unit or (f"{len(c.values)} values" if c.values else ""), percent(c.missing)]
            for c in schema.columns
        ],
    }  # fmt: skip


def _model(name: str, at: Path) -> Record:
    """A model's part of the report."""
    settings, header = files.read_yaml(at / "run.yaml"), files.read_model_header(at / "model")
    figures = files.read_json(at / "result.json") if (at / "result.json").is_file() else {}
    facts = [
        ["model", ", ".join(f"{k} {_said(v)}" for k, v in header["config"].items() if v not in (None, [], {}))],
        ["trained by", ", ".join(f"{k} {_said(v)}" for k, v in dict(settings.get("training") or {}).items())],
        ["regime", "; ".join(f"{k} ({_said(v)})" if v else str(k) for k, v in dict(settings["regimes"]).items())],
        ["weights, SHA-256", header["digest"]],
    ]  # fmt: skip
    if "block_nonzero" in figures:
        facts.append(["weights that are not zero", f"{figures['block_nonzero']:,} of {figures['block_total']:,}"])
    circuits = [
        _circuit(folder) for folder in sorted((at / "circuits").glob("*")) if (folder / "result.json").is_file()
    ]
    told = [
        _figure("held out", k.removeprefix("verify_"), figures[k]) for k in ("verify_loss", "verify_accuracy")
        if figures.get(k) is not None
    ]  # fmt: skip
    out: Record = {"name": model_words(name) if name else at.resolve().name, "facts": facts, "classes": []}
    limits = []
    if (at / "detector" / "detector.json").is_file():
        more = _detector(at)
        facts, told, limits = facts + more["facts"], told[:1] + more["figures"], more["limits"]
        out["classes"] = more["classes"]
        if dict(settings["regimes"]).get("dense") is None:
            out["modules"] = flows.modules_of(at)
            limits += list(_not_held_of_modules(out["modules"]))
    elif told:
        limits.append("Its figures have no intervals: they are of one training with one seed.")
    limits += list(_not_known(circuits))
    claims = [x for c in circuits for x in _not_held(c)]
    return out | {"facts": facts, "figures": told, "limits": limits, "claims": claims, "circuits": circuits}


def _said(v: Any) -> str:
    if isinstance(v, Mapping):
        return ", ".join(f"{k} {_said(x)}" for k, x in v.items())
    return ", ".join(map(str, v)) if isinstance(v, list | tuple) else str(v)


def _figure(split: str, name: str, value: Any, interval: Sequence[float] | None = None, n: int | None = None) -> Record:
    return {"split": split, "figure": name, "value": value, "interval": list(interval) if interval else None, "n": n}


def _circuit(folder: Path) -> Record:
    """What was found, claimed and said of a circuit."""
    result = files.read_json(folder / "result.json")
    header = files.read_circuit_header(folder) if (folder / "circuit.json").is_file() else {}
    counts = header.get("counts", {})
    return {
        "name": folder.name, "status": str(result.get("status", "ok")),
        "size": ", ".join(f"{v:,} {k.replace('_', ' ')}" for k, v in counts.items() if v),
        "evidence": [{k: e.get(k) for k in CLAIM} for e in header.get("evidence", [])],
        "explanations": explanations.rows(explanations.of_header(header)) if header else [],
        "nodes_said": explanations.in_numbers(explanations.of_header(header)) if header else "",
    }  # fmt: skip


def _not_known(circuits: Sequence[Record]) -> Iterator[str]:
    """What is not known of how a model decides."""
    if not circuits:
        yield "No circuit was looked for: nothing here says how it decides."
    for c in circuits:
        if c["status"] != "ok":
            yield f"{c['name']}: no circuit met the target ({c['status']})."
        elif not c["evidence"]:
            yield f"{c['name']}: nothing about this circuit was tested."
    if circuits and not any(c["explanations"] or c["nodes_said"] for c in circuits):
        yield "No circuit was explained in words."


def _not_held(circuit: Record) -> Iterator[str]:
    """The claims and explanations of a circuit that are not supported, in their own words."""
    for e in circuit["evidence"]:
        if e["verdict"] != "holds":
            yield f"{circuit['name']}, {claim_words(e['claim'])} ({e['verdict']}): {e['sentence']}"
    for x in circuit["explanations"]:
        if x["mark"] != "supported":
            yield f"{circuit['name']}, explanation of {x['subject']} by {x['author']} ({x['mark']}): {x['text']}"


def _not_held_of_modules(known: Record | None) -> Iterator[str]:
    """What is not known of a detector's modules, and the claims about them that do not hold."""
    if known is None:
        yield "Nothing is known of its modules: they were not looked for when this run was made."
        return
    if not known["modules"]:
        yield known["note"]
    for m in known["modules"]:
        for e in m["evidence"]:
            if e["verdict"] != "holds":
                yield f"{m['name']}, {e['claim']} ({e['verdict']}): {e['sentence']}"


def _exports(run: Path, at: Mapping[str, Path]) -> Iterator[Record]:
    """Exports in the run's folder, and whether they are of a model of this report."""
    from openwork.detector import load_detector

    of = {files.read_model_header(folder / "model")["digest"]: name for name, folder in at.items()}
    of |= {load_detector(f).digest: name for name, f in at.items() if (f / "detector" / "detector.json").is_file()}
    for path in sorted([*run.glob("*/export.json"), *run.glob("*/*/export.json")]):
        e = files.read_json(path)
        digest = str(e.get("digest", ""))
        yield {
            "file": str(path.parent.relative_to(run) / Path(str(e.get("file", ""))).name), "to": str(e.get("to", "")),
            "bytes": e.get("bytes"), "digest": digest,
            "of": model_words(of[digest]) or run.name if digest in of else "another version of the model",
        }  # fmt: skip


# -- detectors ---------------------------------------------------------------------------------------------------------


def _detector(at: Path) -> Record:
    """Figures of a detector with intervals, class by class, and what they say it cannot do."""
    from openwork.detector import load_detector
    from openwork.judging import never_used
    from openwork.tasks.flows.prepared import Prepared

    d, settings = load_detector(at), files.read_yaml(at / "run.yaml")
    prepared = Prepared(at / settings["data"])
    have = files.read_json(at / "detector" / "result.json") if (at / "detector" / "result.json").is_file() else {}
    figures, classes, limits = [], [], []
    found_in: dict[str, tuple[float, float]] = {}
    for s in ("verify", "ood"):
        if not prepared.rows(s):
            continue
        split, y = SPLITS[s], np.asarray(prepared.labels(s)).astype(np.int64)
        out = d.logits(prepared.features(s, slice(None)))
        alert, attack = d.decision.decide(out) > 0, y > 0
        rates = (
            ("attacks that became alerts", alert[attack]), ("normal flows that became alerts", alert[~attack]),
            ("likeliest class is right", d.decision.probabilities(out).argmax(1) == y),
        )  # fmt: skip
        for what, hits in rates:
            span = stats.clopper_pearson(int(hits.sum()), len(hits))
            figures.append(_figure(split, what, float(hits.mean()) if len(hits) else None, span, len(hits)))
        found_in[s] = stats.clopper_pearson(int(alert[attack].sum()), int(attack.sum()))
        for name, k in (("macro F1", "macro_f1"), ("AUROC", "auroc"), ("calibration error", "calibration_error")):
            value = have.get("splits", {}).get(s, {}).get(k)
            if value is not None:
                figures.append(_figure(split, name, value, None, len(y)))
        false = stats.clopper_pearson(int(alert[~attack].sum()), int((~attack).sum()))
        if false[0] > d.decision.budget:
            limits.append(
                f"False alarms, {split}: {percent(float(alert[~attack].mean()))} of normal flows (95 % "
                f"{percent(false[0])} to {percent(false[1])}), above the budget of {percent(d.decision.budget)}."
            )
        for i, c in enumerate(d.schema.classes[1:], 1):
            hits = alert[y == i]
            span, rate = stats.clopper_pearson(int(hits.sum()), len(hits)), float(hits.mean()) if len(hits) else None
            classes.append({**_figure(split, c, rate, span, len(hits)), "found": int(hits.sum())})
            if not len(hits):
                limits.append(f"{c}, {split}: no flow of this class, so nothing is known.")
            elif len(hits) < FEW or span[0] < WEAK:
                few = f": {len(hits)} flows are few to tell" if len(hits) < FEW else ""
                limits.append(
                    f"{c}, {split}: {int(hits.sum()):,} of {len(hits):,} flows became alerts (95 % "
                    f"{percent(span[0])} to {percent(span[1])}){few}."
                )
    if "ood" not in found_in:
        limits.insert(0, "It was not tried on a test log: nothing is known of other traffic.")
    elif found_in["ood"][1] < found_in["verify"][0]:
        limits.insert(
            0,
            "On the test log it finds less: "
            + ", ".join(f"{SPLITS[s]} {percent(a)} to {percent(b)} of attacks" for s, (a, b) in found_in.items())
            + " (95 %).",
        )
    limits += list(_strange(prepared))
    if unused := never_used(d):
        limits.append(f"It is blind to these columns, which no path leads from: {', '.join(unused)}.")
    limits.append("It judges flows one by one: what takes several flows to see is seen only where a column counts it.")
    facts = [
        ["threshold", f"an alert from a probability of {d.decision.threshold:.4g} that a flow is no normal one"],
        ["false-alarm budget", f"{percent(d.decision.budget)} of normal flows, on the split that set the threshold"],
        ["schema, SHA-256", d.schema.digest()], ["detector, SHA-256", d.digest],
    ]  # fmt: skip
    return {"facts": facts, "figures": figures, "classes": classes, "limits": limits}


def _strange(prepared: Any) -> Iterator[str]:
    """What held-out flows have that the training rows had not, or too rarely for a feature, most frequent first."""
    for s in ("verify", "ood"):
        if not prepared.rows(s):
            continue
        codes, told = prepared.codes(s, slice(None)), []
        for c in prepared.schema.used:
            x = np.asarray(codes[c.name])
            if c.kind == "category":
                share, what = float((x == len(c.values)).mean()), f"a value of {c.name} without a feature of its own"
            else:
                least, most = np.float32(c.least), np.float32(c.most)
                share, what = float(((x < least) | (x > most)).mean()), f"a {c.name} beyond all it was trained on"
            if share >= SEEN:
                told.append((share, what))
        for share, what in sorted(told, key=lambda t: -t[0])[:5]:
            yield f"{SPLITS[s].capitalize()}: {percent(share)} of flows have {what}."


__all__ = ["check_report", "gather", "write_report"]
