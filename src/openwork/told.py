"""What a command found, in a person's words: tables of few columns, sentences with units, and the command that follows.

A result is one plain dict, which --json prints whole. Here it gets `tables`, `notes` and `next` (see
`tables.show_result`), which hide the rest of it from a terminal. What brings tables of its own stays as it is.

Knows the keys of results. Does not know folders, models or how a figure came about.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openwork.files import plain
from openwork.tables import cell
from openwork.views.words import (
    RATIOS,
    caveats,
    claim_words,
    columns,
    duration,
    headline,
    held_out_loss,
    model_words,
    number,
)

Result = dict[str, Any]
Record = Mapping[str, Any]

VERDICTS = ("holds", "fails", "too little data")
CONTROLS = {
    "nonsense": "search on shuffled labels",
    "swapped": "search on swapped labels",
    "random": "search in random weights",
}
SENT = {  # what ablated nodes send, by reference
    "mean": "its mean",
    "zero": "zero",
    "counterfactual": "what it sends on the example's counterpart",
    "resample": "what it sends on another example",
}
SAYS = 8  # lines of a form that a terminal shows; the file has all


def in_words(command: str, result: Result) -> Result:
    """The result with tables, notes and what to do next, where the command has words for it here; else as it is."""
    tell = TOLD.get(command)
    return (tell(plain(result)) if tell is not None else None) or result


# -- sentences --------------------------------------------------------------------------------------------------------


def command(*words: Any) -> str:
    """A command line that can be pasted."""
    return shlex.join(["openwork", *map(str, words)])


def share(x: Any) -> str:
    """A share as a percentage; a dash for none."""
    return "-" if x is None or math.isnan(x) else f"{x:.1%}"


def verdicts(evidence: Sequence[Record]) -> str:
    """How many claims got which verdict: "7 hold, 3 fail, 3 had too little data"; nothing where nothing was tested."""
    words = {"holds": ("holds", "hold"), "fails": ("fails", "fail"), "too little data": ("had too little data",) * 2}
    counted = [(sum(e.get("verdict") == v for e in evidence), words[v]) for v in VERDICTS]
    return ", ".join(f"{n} {one if n == 1 else many}" for n, (one, many) in counted if n)


def claims(evidence: Sequence[Record]) -> list[Result]:
    """A line per claim: its name, verdict and sentence."""
    return [{"claim": claim_words(e["claim"]), "verdict": e["verdict"], "sentence": e["sentence"]} for e in evidence]


def losses(figures: Record) -> Result:
    """A circuit's size, what it loses on the data that found it and on held-out data, and how often it is right."""
    return {
        "nodes": figures.get("nodes"), "edges": figures.get("edges"),
        "loss (discover)": figures.get("discover_loss"), "loss (verify)": figures.get("loss"),
        "right (verify)": figures.get("accuracy"),
    }  # fmt: skip


# -- one command each -------------------------------------------------------------------------------------------------


def trained(result: Result) -> Result | None:
    """train"""
    if "block_total" not in result:
        return None
    r = result
    verify = ", ".join(
        text
        for key, text in (
            ("verify_loss", f"a loss of {number(r.get('verify_loss'))}{'' if 'verify_accuracy' not in r else ' nats'}"),
            ("verify_accuracy", f"{share(r.get('verify_accuracy'))} right"),
        )
        if key in r
    )
    notes = [
        f"Trained as {r['regime']} for {r['steps']:,} steps in {duration(r['seconds'])}: {r['nonzero']:,} of "
        f"{r['total']:,} weights are not zero ({share(r['nonzero'] / r['total'])}).",
        *([f"On the verify split, which training never saw: {verify}."] if verify else []),
    ]
    return result | {"tables": {}, "notes": notes, "next": command("tasks", "--run", r["run"])}


def listed(result: Result) -> Result | None:
    """tasks"""
    rows = result.get("tasks")
    if not rows or not all("about" in r for r in rows):
        return None
    if "run" not in result:
        notes = [
            "`openwork train --task SUBJECT` trains a model for the tasks of a subject; tasks --run then tells more."
        ]
        return result | {"tables": {"tasks": rows}, "notes": notes}
    told = [
        {
            "task": r["task"], "about": r["about"], "loss": r["loss"], "right": r["accuracy"],
            "circuits": ", ".join(r["circuits"]) or "-",
        }
        for r in rows
    ]  # fmt: skip
    notes = ["Loss (nats) and share right are those of the whole model on the verify split, which training never saw."]
    open_ones = [r["task"] for r in rows if not r["circuits"] and r["loss"] is not None]
    following = {"next": command("discover", result["run"], "--task", open_ones[0])} if open_ones else {}
    return result | {"tables": {"tasks": told}, "notes": notes} | following


def found(result: Result) -> Result | None:
    """discover, of one task by a search that keeps nodes or edges"""
    r = result
    if not {"status", "edge_pruned", "whole", "target", "full_loss"} <= r.keys():
        return None
    whole = r["whole"]
    if r["status"] != "ok":
        notes = [f"No circuit for {r['task']} reaches the target of {r['target']:g} nats; that is a result too."]
        if r["full_loss"] > r["target"]:
            notes.append(
                f"The whole model itself is at {number(r['full_loss'])} nats on the discover split, above that target."
            )
        elif r.get("loss_reached") is not None:
            notes.append(
                f"The lowest loss that the search met is {number(r['loss_reached'])} nats; the whole model's is "
                f"{number(r['full_loss'])}."
            )
        notes.append("A larger --target or another --method may find one.")
        return result | {"tables": {}, "notes": notes}
    kept, edges = r.get("node_based") or {}, r["edge_pruned"]
    rows: list[Result] = [
        {"": "whole model", **losses({**whole, "discover_loss": r["full_loss"]})},
        {"": r["circuit"], **losses(edges)},
    ]
    if kept.get("status") == "ok" and kept.get("edges") != edges.get("edges"):
        rows.insert(1, {"": "with all edges between its nodes", **losses(kept)})
    sent = SENT.get(r.get("reference", "mean"), str(r.get("reference")))
    above = "; there its loss is above that target" if (edges.get("loss") or 0) > r["target"] else ""
    notes = [
        f"Alone, with everything else sending {sent}, {r['circuit']} meets the target of {r['target']:g} nats on the "
        "discover split.",
        f"The verify split ({edges.get('n', 0):,} examples) chose nothing{above}. An edge is a nonzero weight between "
        f"two kept nodes{_uncounted(edges)}.",
    ]
    tables = {f"{r['circuit']} beside the whole model": rows}
    following = command("verify", r["run"], "--circuit", r["circuit"])
    return result | {"tables": tables, "notes": notes, "next": following}


def _uncounted(figures: Record) -> str:
    if not figures.get("embedding_edges") and not figures.get("unembedding_edges"):
        return ""
    return "; embedding, unembedding and the sums of the residual stream are not counted"


def checked(result: Result) -> Result | None:
    """verify"""
    evidence = result.get("evidence")
    if not evidence:
        return None
    notes = [
        f"Of {len(evidence)} claims about {result['circuit']}: {verdicts(evidence)}. Too little data is no verdict: "
        "more examples could decide."
    ]
    following = command("explain", result["run"], "--circuit", result["circuit"])
    return result | {"tables": {"claims": claims(evidence)}, "notes": notes, "next": following}


def explained(result: Result) -> Result | None:
    """explain, whose table and notes are its own"""
    r = result
    if "table" not in r or "explanations" not in r:
        return None
    notes = list(r["notes"])
    few = [e for e in r["explanations"] if e["evidence"] and e["evidence"][0]["verdict"] == "too little data"]
    if few:
        first = f"{few[0]['subject']}: {few[0]['evidence'][0]['sentence']}"
        notes.append(f"{len(few)} of them had too little data, which is no verdict. Of the first, {first}")
    words = ("subject", "explanation", "verdict")
    tables = {
        str(r["title"]): [{k: row.get(k) for k in words} for row in r["table"]],
        "how each was tested": [
            {k: v for k, v in row.items() if k == "subject" or k not in words} for row in r["table"]
        ],
    }
    return r | {"tables": tables, "notes": notes, "next": command("view", r["run"])}


def written(result: Result) -> Result | None:
    """decompile"""
    r = result
    if r.get("formulas"):
        return formulas(r)
    if not r.get("evidence"):
        return None
    tables: Result = {}
    if isinstance(r.get("roles"), Mapping):
        tables["what each kept node says"] = [{"node": k, "is on where": v} for k, v in r["roles"].items()]
    before = r.get("loss_before_and_after")
    if isinstance(before, Mapping):
        tables["the circuit's loss (nats), before and after its neurons were given two levels"] = [
            {"split": k, "before": v[0], "after": v[1]} for k, v in before.items()
        ]
    if r.get("curve"):
        tables["length and agreement"] = [
            {k: v for k, v in row.items() if not isinstance(v, Mapping | list)} for row in r["curve"]
        ]
    tables["how often the file decides alike"] = claims(r["evidence"])
    twin = f" and its twin in C, {r['c_file']}" if "c_file" in r else ""
    sizes = [f"{r[k]:,} {k}" for k in ("lines", "steps", "constants", "leaves") if k in r]
    notes = [f"Written: {r['file']} ({', '.join(sizes)}){twin}. Nothing of ours is needed to run it."]
    if "cross_validated" in r:
        notes.append(
            f"The rules' size was chosen where they decide as the circuit on {share(r['cross_validated'])} of the "
            "discover split, in cross-validation."
        )
    if "says" in r:
        lines = str(r["says"]).splitlines()
        more = [f"... and {len(lines) - SAYS} lines more"] if len(lines) > SAYS else []
        notes.append("It says:\n" + "\n".join("    " + line for line in [*lines[:SAYS], *more]))
    if "advice" in r:
        notes.append(r["advice"])
    return result | {"tables": tables, "notes": notes, "next": r.get("next", command("view", r["run"]))}


def formulas(result: Result) -> Result:
    """decompile, of a regression's whole model"""
    rows = [
        {
            "output": f["output"], "formula": f["text"], "R^2 with the model": f["r2_model"]["verify"],
            "R^2 with the truth": f["r2_truth"]["verify"], "the model's": f["model_truth"]["verify"],
        }
        for f in result["formulas"]
    ]  # fmt: skip
    notes = [
        f"Written: {result['file']}. R^2 is that of the verify split; the last column is how well the model itself "
        "fits the truth.",
        f"True is: {result['true']}.",
    ]
    return result | {"tables": {"formulas of the whole model": rows}, "notes": notes}


def shipped(result: Result) -> Result | None:
    """export, of a perceptron"""
    r = result
    if "executed_by" not in r:
        return None
    notes = [
        f"Written: {r['file']} ({r['bytes']:,} bytes), a perceptron of {'-'.join(map(str, r['nodes']))} nodes with "
        f"{r['weights']:,} weights that are not zero; {r['operations']:,} arithmetic operations per input.",
        f"Executed by {r['executed_by']}."
        if "same_decision" not in r
        else f"Executed by {r['executed_by']} on {r['inputs_compared']:,} held-out inputs, it decides as PyTorch on "
        f"{share(r['same_decision'])}; its logits differ by at most {r['largest_difference']:.1e} of their size.",
    ]
    rows = [
        {"on": name, "flash (bytes)": r[f"{key}flash_bytes"], "RAM without the stack (bytes)": r[f"{key}ram_bytes"]}
        for key, name in (("", "this machine"), ("cortex_m4_", "Cortex-M4"), ("cortex_m0_", "Cortex-M0"))
        if f"{key}flash_bytes" in r
    ]
    return r | {"tables": {"what it takes": rows}, "notes": notes}


def reported(result: Result) -> Result | None:
    """report"""
    if "limits" not in result:
        return None
    signed = "signed with your key" if result["signed"] else "not signed"
    notes = [
        f"{result['limits']} limits are listed: what is not known, and claims that fail or had too little data.",
        f"Its content stands in {result['content']} too, with the SHA-256 {result['digest']}; it is {signed}.",
    ]
    following = command("report", "--check", result["report"])
    return {k: v for k, v in result.items() if k != "page"} | {
        "tables": {}, "notes": notes, "page": result["report"], "next": following
    }  # fmt: skip


def viewed(result: Result) -> Result | None:
    """view"""
    if "page" not in result:
        return None
    return result | {"tables": {}, "notes": [f"Open {result['page']} in any browser; it needs no network."]}


def held(result: Result) -> Result | None:
    """show and run: of one model, of a comparison of several, or of detectors"""
    if "ratios" in result and "models" in result:
        return compared(result)
    if "summary" in result:
        return side_by_side(result)
    if "never_used" in result:
        timed = "us: microseconds per flow, one by one and in batches of 1,024, on this machine at this time."
        return result | {"notes": [*result["notes"], timed], "next": command("view", result["run"])}
    if "circuits" not in result or "model" not in result or "figures" not in result:
        return None
    r, figures = result, result["figures"]
    about = {
        "kind": str(r["model"].get("kind", "")),
        "shape": ", ".join(f"{k} {cell(v)}" for k, v in r["model"].items() if _is_size(v)),
        "subject": r["subject"],
        "regime": ", ".join(f"{k} ({cell(v)})" if v else k for k, v in r["regimes"].items()),
        **({"steps": cell(figures["steps"])} if "steps" in figures else {}),
        **_weights(figures),
        **({"loss (verify)": number(held_out_loss(figures))} if held_out_loss(figures) is not None else {}),
        **({"right (verify)": share(figures["verify_accuracy"])} if "verify_accuracy" in figures else {}),
        "weights, SHA-256": str(r["digest"])[:16],
    }
    tables: Result = {"model": [{"model": k, "": v} for k, v in about.items() if v]}
    if r["circuits"]:
        tables["circuits"] = [_circuit(c) for c in r["circuits"]]
    for c in r["circuits"]:
        if c.get("evidence"):
            tables[f"{c['circuit']}: claims"] = claims(c["evidence"])
        if c.get("explanations"):
            tables[f"{c['circuit']}: in words"] = c["explanations"]
    notes = ["Loss in nats. Held-out figures are of the verify split, which neither training nor search saw."]
    if r.get("modules"):
        notes.append(str(r["modules"]))
    return result | {"tables": tables, "notes": notes, "next": _after(r)}


def _is_size(value: Any) -> bool:
    """Whether a setting of a model says how large something is: a count, or several."""
    many = value if isinstance(value, list) and value else [value]
    return all(isinstance(v, int) and not isinstance(v, bool) for v in many)


def _weights(figures: Record) -> Result:
    if not figures.get("total"):
        return {}
    n, of = figures["nonzero"], figures["total"]
    return {"weights that are not zero": f"{n:,} of {of:,} ({share(n / of)})"}


def _circuit(c: Record) -> Result:
    return {
        "circuit": c["circuit"], "status": "found" if c["status"] == "ok" else c["status"], "nodes": c.get("nodes"),
        "edges": c.get("edges"), "loss": c.get("loss"), "right": c.get("accuracy"),
        "claims": verdicts(c.get("evidence") or ()) or ("not tested" if c["status"] == "ok" else "-"),
        "explanations": str(len(c["explanations"])) if c.get("explanations") else "-",
    }  # fmt: skip


def _after(r: Record) -> str:
    """The step that a run has not made yet."""
    there = [c for c in r["circuits"] if c["status"] == "ok"]
    if not there:
        return command("tasks", "--run", r["run"]) if r["circuits"] else command("discover", r["run"], "--task", "TASK")
    for word, key in (("verify", "evidence"), ("explain", "explanations")):
        missing = [c for c in there if not c.get(key)]
        if missing:
            return command(word, r["run"], "--circuit", missing[0]["circuit"])
    return command("view", r["run"])


def compared(result: Result) -> Result:
    """run quotes and run digits: the sparse model beside the dense ones, circuit by circuit"""
    r = result
    names = columns(r)
    circuits = []
    for t in r["tasks"]:
        task = t["task"]
        for name in [n for n in (*names, *CONTROLS) if isinstance(t.get(n), Mapping)]:
            c = t[name]
            circuits.append(
                {
                    "task": task, "circuit of": CONTROLS.get(name) or model_words(name),
                    "status": "found" if c["status"] == "ok" else c["status"], "nodes": c.get("nodes"),
                    "edges": c.get("edges"), "loss": c.get("loss") if c["status"] == "ok" else None,
                    "right": c.get("accuracy"),
                }
            )  # fmt: skip
            task = ""
    models = [
        {
            "model": model_words(name), "held-out loss": held_out_loss(m), "right": m.get("verify_accuracy"),
            "nonzero weights": m.get("block_nonzero"), "of": m.get("block_total"),
        }
        for name, m in r["models"].items()
    ]  # fmt: skip
    ratios = [
        {
            "how many times": RATIOS.get(key, key), "ratio": x.get("geomean"),
            "95 % interval": f"{number(x['low'])} to {number(x['high'])}" if x.get("low") else "-",
            "tasks": x.get("tasks"),
        }
        for key, x in r["ratios"].items()
    ]  # fmt: skip
    matrix: dict[str, Result] = {}
    for e in r["evidence"]:
        line = matrix.setdefault(e["claim"], {"claim": claim_words(e["claim"])})
        line[e["task"]] = e["verdict"]
    sparse = f"{r['run']}/sparse"
    tables = {
        "circuits": circuits, "models": models, "how many times larger the dense model's circuits are": ratios,
        "claims about the weight-sparse model's circuits": list(matrix.values()),
    }  # fmt: skip
    notes = [
        f"{headline(r, r['run'])}.",
        *caveats(r, names),
        "Loss in nats and share right are of the circuit alone, on the verify split. The searches on wrong labels and "
        f"in random weights should find nothing as small. `{command('show', sparse)}` tells every claim in a sentence.",
    ]
    return result | {"tables": tables, "notes": notes, "next": command("show", sparse)}


def side_by_side(result: Result) -> Result | None:
    """compare, whose table is its own"""
    r = result
    if "table" not in r or "summary" not in r:
        return None
    columns_there = {k for row in r["table"] for k in row}
    legend = [
        text
        for column, text in (
            ("nonzero", "nonzero: weights that are not zero"),
            ("> 1e-3", "> 1e-3: the share of weights larger than that"),
            ("wire length", "wire length: sum of |weight| times distance, nodes exchanged as well as was found"),
            (
                "circuit edges",
                f"circuit edges: of the circuit for {r['circuit']}, in parentheses in how many seeds one was found "
                "where that is not in all",
            ),
            ("train s", "train s, CPU s: seconds of one training"),
        )
        if column in columns_there
    ]
    plot = [f"Plot: {', '.join(r['plot'])}."] if r.get("plot") else []
    first = next((s for s in r["summary"] if s["status"] == "ok" and s["at"] == "default"), None)
    following = {"next": command("tasks", "--run", f"{r['run']}/{first['regime']}/seed0")} if first else {}
    return r | {
        "tables": {str(r["title"]): r["table"]}, **following,
        "notes": [*r["notes"], f"{'; '.join(legend)}.", *plot, f"Made by: {r['command']}"],
    }  # fmt: skip


TOLD: dict[str, Callable[[Result], Result | None]] = {
    "run": held,
    "train": trained,
    "compare": side_by_side,
    "tasks": listed,
    "discover": found,
    "verify": checked,
    "explain": explained,
    "decompile": written,
    "export": shipped,
    "report": reported,
    "view": viewed,
    "show": held,
}

__all__ = ["TOLD", "in_words"]
