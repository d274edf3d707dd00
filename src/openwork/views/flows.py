"""A run of detectors of intrusions as its page shows it: figures beside rivals', sizes against rates, and alerts.

Knows result.json and run.yaml of `openwork run flows`, and entries of a log of alerts, as plain data. Does not know
torch, networks, or how an alert came about. Every text stays a text: templates escape it.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from openwork import audit, files
from openwork.errors import RunError, UsageError
from openwork.views.explanations import ICONS
from openwork.views.why import bars, signed
from openwork.views.words import Record, claim_words, mapping, number, percent

HERE = Path(__file__).parent
SPLITS = {"verify": "held-out flows", "ood": "the test log"}  # split -> what it is, for a person
IN_TABLE = {"verify": "verify", "ood": "test"}  # split -> its name in the run's table
RATES = ("detection_rate", "false_alarm_rate", "accuracy", "macro_f1", "auroc")
REASONS = ("fidelity", "fidelity_null", "rule_first", "us_one_by_one", "us_in_batches")
HEADS = {
    "detection_rate": "attacks found", "false_alarm_rate": "false alarms", "macro_f1": "macro F1", "auroc": "AUROC",
    "fidelity": "reasons: fidelity", "fidelity_null": "same, random columns", "rule_first": "rule told first",
    "us_one_by_one": "µs per flow, one by one", "us_in_batches": "µs in batches",
}  # fmt: skip
FIRST = 5  # alerts of a log on the run's page
LOG = "alerts.jsonl"  # log that is shown where none is named
MODULES = "modules.json"
DIGESTS = {"input": "input_digest", "model": "model", "entry": "hash"}  # what -> where it stands in an entry
SIDE, TALL, LEFT, FOOT = 440.0, 220.0, 52.0, 34.0  # of a panel of the plot: width, height, room for its scales


# -- the run -----------------------------------------------------------------------------------------------------------


def is_flows(run: Path) -> bool:
    """Whether a folder is one of `openwork run flows`."""
    at = run / "run.yaml"
    return at.is_file() and files.read_yaml(at).get("kind") == "flows"


def section(run: Path, result: Record, log: Path | None = None) -> dict[str, Any]:
    """All that the page says of detectors; RunError for a damaged result or log.

    log  alerts to show the first of; without it those in the run's folder, where there are any
    """
    settings = files.read_yaml(run / "run.yaml")
    log = log or (run / LOG if (run / LOG).is_file() else None)
    try:
        figures = list(result["figures"])
        splits = [s for s in SPLITS if s in figures[0]["splits"]]
        return {
            "headline": headline(figures),
            "lede": f"{source_words(settings)} Thresholds were set on other held-out flows, for at most "
            f"{percent(result['budget'])} false alarms. {_seeds_words(settings)}",
            "caveats": caveats(settings, result),
            "facts": [f"{settings.get('preset')} preset", f"{sum(result['rows'].values()):,} flows"],
            "tables": [*_tables(result, splits)],
            "plots": [{"of": SPLITS[s], "panels": _panels(figures, s, float(result["budget"]))} for s in splits],
            "models": [
                {"name": m, "parts": _sizes(figures, m), "mark": f"m{k % 8}"} for k, m in enumerate(_models(figures))
            ],
            "never_used": [str(c) for c in result["never_used"]],
            "modules": modules_of(run),
            "log": log.name if log else "",
            "alerts": [card(e, modules_of(run)) for e in itertools.islice(_alerts(log), FIRST)] if log else [],
        }  # fmt: skip
    except (KeyError, TypeError, IndexError, ValueError) as e:
        raise RunError(f"{run / 'result.json'} is damaged: {e!r}.") from e


def headline(figures: Sequence[Record]) -> str:
    """The sparse detector in one sentence: means over its seeds, held out."""
    mine = [f for f in figures if f["model"] == "sparse"]
    found = _mean([f["splits"]["verify"]["detection_rate"] for f in mine])
    false = _mean([f["splits"]["verify"]["false_alarm_rate"] for f in mine])
    edges = median([f["parts"] for f in mine])
    rates = f"{percent(found)} of attacks at {percent(false)} false alarms"
    return f"The sparse detector finds {rates}, with {edges:,.0f} edges"


def source_words(settings: Record) -> str:
    """Where the flows are from, as a sentence."""
    if settings.get("data") is None:
        return "Trained on generated flows, whose attacks follow documented rules."
    test = f" and tested also on {Path(str(settings['test'])).name}" if settings.get("test") else ""
    return f"Trained on {Path(str(settings['data'])).name}{test}."


def _seeds_words(settings: Record) -> str:
    n = int(settings.get("seeds", 1))
    return "Every model was trained once." if n == 1 else f"Every model was trained with {n} seeds; figures are means."


def caveats(settings: Record, result: Record) -> list[str]:
    """What a reader must know before believing the headline, from the run's own figures."""
    out = []
    sparse = [f for f in result["figures"] if f["model"] == "sparse"]
    if settings.get("data") is None:
        out.append("The flows are generated: figures are about the method, not about any network's traffic.")
    if int(settings.get("seeds", 1)) == 1:
        out.append("One training of each model: another seed may do better or worse.")
    over = [f for f in sparse if f["splits"]["verify"]["false_alarm_interval"][0] > result["budget"]]
    mean = _mean([f["splits"]["verify"]["false_alarm_rate"] for f in sparse])
    if mean > result["budget"]:
        out.append(
            f"False alarms on held-out flows, {percent(mean)}, are above the budget of {percent(result['budget'])}, "
            + (f"in {len(over)} of {len(sparse)} trainings by more" if over else "by no more")
            + " than chance explains."
        )
    if "ood" in sparse[0]["splits"]:
        here, there = (_mean([f["splits"][s]["detection_rate"] or 0 for f in sparse]) for s in ("verify", "ood"))
        false = _mean([f["splits"]["ood"]["false_alarm_rate"] for f in sparse])
        out.append(
            f"On the test log the sparse detector finds {percent(there)} of attacks, not {percent(here)}, at "
            f"{percent(false)} false alarms."
        )
    else:
        out.append("There was no test log: nothing is known of how it does on other traffic.")
    evidence = [e for c in result["circuits"] for e in c["evidence"]]
    failed = sum(e["verdict"] == "fails" for e in evidence)
    none = [c["task"] for c in result["circuits"] if c["status"] != "ok"]
    if failed:
        out.append(f"{failed} of {len(evidence)} claims about the circuits fail. Each task lists them.")
    if none:
        out.append(f"No circuit met its target for {', '.join(none)}.")
    return out


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _models(figures: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(str(f["model"]) for f in figures))


def _sizes(figures: Sequence[Record], model: str) -> str:
    mine = [f for f in figures if f["model"] == model]
    return f"{median([f['parts'] for f in mine]):,.0f} {mine[0]['of']}"


def _tables(result: Record, splits: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The run's table of detectors in pieces that fit a page: one per split, then reasons and cost."""
    table = next(iter(result["tables"].values()))
    pieces = [(f"On {SPLITS[s]}", [(f"{k} ({IN_TABLE[s]})", k) for k in RATES]) for s in splits]
    pieces.append(("Reasons and cost", [(k, k) for k in REASONS]))
    for title, keys in pieces:
        have = [(k, short) for k, short in keys if any(row.get(k) is not None for row in table)]
        yield {
            "title": title,
            "heads": [HEADS.get(short, short) for _, short in have],
            "rows": [
                {"model": row["model"], "parts": row["parts"], "cells": [_cell(row.get(k)) for k, _ in have]}
                for row in table
            ],
        }  # fmt: skip


def _cell(value: Any) -> dict[str, str]:
    """ "0.98 (0.97 to 0.99)" as a value and its interval."""
    text, _, span = ("–" if value is None else str(value)).partition(" (")
    return {"value": text, "span": f"({span}" if span else ""}


# -- sizes against rates -----------------------------------------------------------------------------------------------


def _panels(figures: Sequence[Record], split: str, budget: float) -> list[Markup]:
    """Detection and false alarms over size, as SVG; a dot per training, a ring around the mean."""
    return [
        panel(figures, split, "detection_rate", "attacks found, higher is better", None),
        panel(figures, split, "false_alarm_rate", "false alarms, lower is better", budget),
    ]


def panel(figures: Sequence[Record], split: str, key: str, title: str, budget: float | None) -> Markup:
    """One panel: a rate of every model over the number of its parts, in logarithms."""
    points = [
        (m, f["parts"], f["splits"][split].get(key)) for m in _models(figures) for f in figures if f["model"] == m
    ]
    points = [(m, max(1.0, float(x)), float(y)) for m, x, y in points if y is not None]
    if not points:
        return Markup("")
    rates = [y for _, _, y in points] + ([budget] if budget is not None else [])
    low, high = (0.0, max(rates) * 1.15 or 0.01) if budget is not None else (min(rates), 1.0)
    if budget is None:
        low -= max(0.01, 0.15 * (1 - low))
    a, b = (math.log10(v) for v in (min(x for _, x, _ in points) / 1.6, max(x for _, x, _ in points) * 1.6))

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (SIDE - LEFT - 8) * (math.log10(x) - a) / (b - a)
        return round(across, 1), round(24 + (TALL - FOOT - 24) * (high - y) / (high - low), 1)

    out = [f'<svg class="rates" viewBox="0 0 {SIDE:g} {TALL:g}" role="img" aria-label="{escape(title)}">']
    out.append(f'<text class="title" x="{LEFT:g}" y="12">{escape(title)}</text>')
    for y in _ticks(low, high):
        _, v = at(1, y)
        out.append(f'<line class="tick" x1="{LEFT:g}" x2="{SIDE - 8:g}" y1="{v}" y2="{v}"/>')
        out.append(f'<text x="{LEFT - 6:g}" y="{v + 4}" text-anchor="end">{100 * y:.4g} %</text>')
    for power in range(math.ceil(a), math.floor(b) + 1):
        u, _ = at(10**power, low)
        out.append(f'<text x="{u}" y="{TALL - 16:g}" text-anchor="middle">{10**power:,}</text>')
    out.append(f'<text x="{SIDE - 8:g}" y="{TALL - 2:g}" text-anchor="end">parts (edges, weights, nodes, bins)</text>')
    if budget is not None:
        _, v = at(1, budget)
        out.append(f'<line class="budget" x1="{LEFT:g}" x2="{SIDE - 8:g}" y1="{v}" y2="{v}"/>')
        out.append(f'<text class="of" x="{SIDE - 8:g}" y="{v - 4}" text-anchor="end">budget</text>')
    for k, m in enumerate(_models(figures)):
        mine = [(x, y) for name, x, y in points if name == m]
        if not mine:
            continue
        dots = [at(x, y) for x, y in mine]
        u, v = at(_mean([x for x, _ in mine]), _mean([y for _, y in mine]))
        name = escape(f"{m}: {_sizes(figures, m)}, {percent(_mean([y for _, y in mine]))}")
        out.append(f'<g class="m{k % 8}"><title>{name}</title>')
        out += [f'<circle cx="{x}" cy="{y}" r="2.5"/>' for x, y in dots]
        out.append(f'<circle class="ring" cx="{u}" cy="{v}" r="6"/></g>')
    return Markup("".join(out) + "</svg>")


def _ticks(low: float, high: float) -> list[float]:
    """Up to six round values between two."""
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


# -- alerts ------------------------------------------------------------------------------------------------------------


def _alerts(log: Path) -> Iterator[Record]:
    return (e for e in audit.entries(log) if e.get("kind") == "alert")


def build_alert(run: Path, log: Path | None, n: int) -> Path:
    """Writes alert-N.html into a run's folder: one alert of a log, drawn. Refuses a number that is no alert's.

    log  without it that in the run's folder
    """
    log = log or run / LOG
    last = -1
    for e in audit.entries(log):
        last = e.get("n", last)
        if last == n:
            if e.get("kind") != "alert":
                raise UsageError(f"entry {n} of {log} is no alert but says which model wrote the next ones.")
            path = run / f"alert-{n}.html"
            files.write_text(path, _alert_page(card(e, modules_of(run)), log.name))
            return path
    raise UsageError(f"{log} has no entry {n}; its entries are 0 to {last}." if last >= 0 else f"{log} is empty.")


def modules_of(run: Path) -> dict[str, Any] | None:
    """What is known of the modules of a run's detector, for a page; None where nothing is; RunError if damaged.

    note, detector  the finding in a sentence, and the digest of the detector
    modules         name, label, rule, and each claim's icon, verdict, name and sentence
    """
    at = (run / "sparse" if (run / "sparse" / "detector").is_dir() else run) / "detector" / MODULES
    if not at.is_file():
        return None
    data = files.read_json(at)
    try:
        return {
            "note": str(data["note"]), "detector": str(data["detector"]),
            "modules": [
                {
                    "name": str(m["name"]), "label": str(m["label"]), "rule": str(m["text"]),
                    "evidence": [
                        {
                            "icon": ICONS.get(str(e["verdict"]), "open"), "verdict": str(e["verdict"]),
                            "claim": claim_words(str(e["claim"])), "sentence": str(e["sentence"]),
                        }
                        for e in m["evidence"]
                    ],
                }
                for m in data["modules"]
            ],
        }  # fmt: skip
    except (KeyError, TypeError) as e:
        raise RunError(f"{at} is damaged: {e!r}.") from e


def card(entry: Record, known_modules: Record | None = None) -> dict[str, Any]:
    """An alert as it is drawn; RunError for an entry that is no whole alert.

    known_modules  of the run (see `modules_of`): said where the entry names no modules and is of that detector
    """
    try:
        shares = bars([dict(r) for r in entry["reasons"]])
        known = mapping(entry["circuit"])
        flip = entry["flip"]
        return {
            "n": entry["n"], "class": str(entry["class"]), "at": str(entry["at"]), "score": f"{entry['score']:.4g}",
            "threshold": f"{entry['threshold']:.4g}", "sentence": str(entry["sentence"]),
            "reasons": [
                {**r, "told": _value(r["value"]), "usual": _usual(r), "contribution": float(r["contribution"])}
                for r in shares
            ],
            "typical": float(entry["typical"]), "rest": float(entry["rest"]), "evidence": float(entry["evidence"]),
            "flip": None if flip is None else [f"{f['column']} = {_value(f['to'])}" for f in flip],
            "modules": _modules(entry.get("modules")), "modules_note": _modules_note(entry, known_modules),
            "circuit": str(known.get("name", "")), "holds": [str(c) for c in known.get("holds", ())],
            "label": str(known.get("label", "")), "flow": [(str(k), _value(v)) for k, v in entry["flow"].items()],
            "input": [(str(k), _value(v)) for k, v in entry["input"].items()],
            "digests": [(what, str(entry[key])) for what, key in DIGESTS.items()],
        }  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise RunError(f"entry {entry.get('n')} of the log is no whole alert: {e!r}.") from e


def _modules(told: Any) -> dict[str, Any] | None:
    """What modules carried of an alert, with bars; None where its entry names none."""
    if told is None:
        return None
    rows = [
        {"name": str(m["module"]), "label": str(m["label"]), "holds": [claim_words(c) for c in m["holds"]], **_share(m)}
        for m in told["shares"]
    ]
    rows += [
        {"name": f"{m['from']} to {m['to']}", "label": "paths from one to the other", "holds": [], **_share(m)}
        for m in told["between"]
    ]
    return {"rows": bars(sorted(rows, key=lambda m: -abs(m["contribution"]))), "rest": float(told["rest"])}


def _share(m: Record) -> dict[str, float]:
    return {"contribution": float(m["share"])}


def _modules_note(entry: Record, known: Record | None) -> str:
    """Why an alert names no modules, or what was found of them."""
    if known is not None and known["detector"] == entry["model"]:
        return str(known["note"])
    return "" if entry.get("modules") else "Nothing was known of its modules when it was written."


def _value(v: Any) -> str:
    return "missing" if v is None else f"{v:,.6g}" if isinstance(v, int | float) else str(v)


def _usual(r: Mapping[str, Any]) -> str:
    if "normal" in r:
        return " to ".join(f"{float(f'{v:.4g}'):,.12g}" for v in r["normal"])
    return f"{100 * r['normal_share']:.3g} % of normal flows"


def environment() -> Environment:
    """Templates with autoescape, and the filters that these pages use."""
    env = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for filter_ in (signed, number, percent):
        env.filters[filter_.__name__] = filter_
    return env


def style_of(*sheets: str) -> tuple[str, str]:
    """Style sheets as one text, and the policy that allows it and nothing else."""
    style = "".join((HERE / s).read_text(encoding="utf-8") for s in sheets)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return style, f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _alert_page(alert: Record, log: str) -> str:
    style, policy = style_of("page.css", "flows.css")
    html = environment().get_template("alert.html.j2").render(style=Markup(style), policy=policy, a=alert, log=log)
    return html.encode("utf-8", "replace").decode()


__all__ = [
    "build_alert",
    "card",
    "caveats",
    "environment",
    "headline",
    "is_flows",
    "modules_of",
    "panel",
    "section",
    "source_words",
    "style_of",
]
