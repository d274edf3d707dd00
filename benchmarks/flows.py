"""Detectors beside their rivals; writes docs/results/flows.md from finished runs of `openwork run flows`.

    openwork run flows --out runs/flows/generated
    openwork run flows --data DIR --out runs/flows/nsl      DIR: the folder with KDDTrain+.txt and KDDTest+.txt
    python benchmarks/flows.py runs/flows/generated runs/flows/nsl

Every figure on that page comes from the result.json of these runs. Knows results as plain data.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openwork.files import read_json, read_yaml, write_text
from openwork.intrusion import spread

PAGE = Path(__file__).parents[1] / "docs" / "results" / "flows.md"
Record = Mapping[str, Any]

COLUMNS = {
    "accuracy": "accuracy", "attack_accuracy": "attack or not", "macro_f1": "macro F1", "auroc": "AUROC",
    "detection_rate": "detected", "false_alarm_rate": "false alarms",
}  # fmt: skip


def main() -> None:
    """Reads the runs and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    parts = [
        "# Results: detectors of intrusions beside their rivals",
        f"Made by `python benchmarks/flows.py {' '.join(map(str, asked.runs))}` from runs of "
        "`openwork run flows`. Means of the seeds, with the 95 % t interval where there are three. Thresholds were set "
        "on the discover split for the budget of false alarms that is named; no figure is of a split that anything was "
        "chosen on. What the columns mean stands in [flows](../flows.md).",
    ]
    for at in asked.runs:
        parts += section(read_json(at / "result.json"), read_yaml(at / "run.yaml"))
    write_text(asked.page, "\n\n".join(parts) + "\n")
    print(asked.page)


def section(result: Record, asked: Record) -> list[str]:
    """The tables of one run."""
    by: dict[str, list[Record]] = {}
    for f in result["figures"]:
        by.setdefault(f["model"], []).append(f)
    generated = asked["data"] is None
    title = "Generated flows with planted rules" if generated else "NSL-KDD" if asked["label"] is None else "Flows"
    seeds = len(by["sparse"])
    rows = result["rows"]
    parts = [
        f"## {title}",
        f"`openwork run flows{'' if generated else ' --data DIR'}`: {rows['train']:,} training rows, "
        f"{result['features']} features, classes {', '.join(result['classes'])}; {seeds} seeds; false-alarm budget "
        f"{100 * result['budget']:g} %.",
    ]
    for split, words in (("verify", "Held-out flows"), ("ood", "The test file (KDDTest+: 17 of its attacks are new)")):
        if split in by["sparse"][0]["splits"]:
            head = ["", *COLUMNS.values()]
            lines = [
                [
                    m,
                    *(
                        spread([f["splits"][split][c] for f in fs if f["splits"][split][c] is not None])
                        for c in COLUMNS
                    ),
                ]
                for m, fs in by.items()
            ]
            parts += [f"{words} ({by['sparse'][0]['splits'][split]['n']:,} rows):", table(head, lines)]
    parts += ["Size and explanations:", table(*explanations(by, generated)), gap(by)]
    never = ", ".join(result["never_used"])
    parts.append(f"Columns that the sparse detector of the first seed never uses: {never or 'none'}.")
    lines = [
        [
            c["task"], c["status"], *(str(c.get(k, "-")) for k in ("nodes", "edges")),
            *(f"{c[k]:.3f}" if k in c else "-" for k in ("loss", "accuracy")),
            ", ".join(e["claim"].replace("_", " ") for e in c["evidence"] if e["verdict"] == "holds") or "-",
            ", ".join(e["claim"].replace("_", " ") for e in c["evidence"] if e["verdict"] != "holds") or "-",
        ]
        for c in result["circuits"]
    ]  # fmt: skip
    head = ["circuit of", "status", "nodes", "edges", "loss (nats)", "accuracy", "holds", "fails or too little data"]
    return [*parts, table(head, lines)]


def explanations(by: Mapping[str, Sequence[Record]], generated: bool) -> tuple[list[str], list[list[str]]]:
    """Size, bytes, latency and what became of the explanations."""
    head = ["", "size", "bytes", "µs, one by one", "µs, in batches", "fidelity", "the same, random columns"]
    head += ["planted rule named first"] if generated else []
    lines = []
    for m, fs in by.items():
        line = [
            m, f"{statistics.median(f['parts'] for f in fs):,.0f} {fs[0]['of']}",
            f"{statistics.median(f['bytes'] for f in fs):,.0f}",
            *(f"{statistics.median(f[k] for f in fs):,.2f}" for k in ("us_one_by_one", "us_in_batches")),
        ]  # fmt: skip
        for k in ("fidelity", "fidelity_null", *(["rule_first"] if generated else [])):
            line.append(spread([f[k] for f in fs]) if all(f.get(k) is not None for f in fs) else "-")
        lines.append(line)
    return head, lines


def gap(by: Mapping[str, Sequence[Record]]) -> str:
    """How much smaller the sparse network is, and at what cost."""
    edges = {m: statistics.median(f["parts"] for f in by[m]) for m in ("sparse", "dense")}
    said = []
    for split, words in (("verify", "held-out flows"), ("ood", "the test file")):
        if split in by["sparse"][0]["splits"]:
            d = [
                100 * (s["splits"][split]["accuracy"] - t["splits"][split]["accuracy"])
                for s, t in zip(by["sparse"], by["dense"], strict=True)
            ]
            said.append(f"{statistics.mean(d):+.2f} points on {words} ({min(d):+.2f} to {max(d):+.2f})")
    return (
        f"The sparse network has **{edges['dense'] / edges['sparse']:.1f}** times fewer edges than the dense one; its "
        f"accuracy differs by {' and '.join(said)}, seed by seed."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


if __name__ == "__main__":
    main()
