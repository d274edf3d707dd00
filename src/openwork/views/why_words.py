"""One decision as text tables and sentences, for a terminal.

Knows the plain data that `openwork why --json` prints. Does not know torch, models or how it came about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Result = dict[str, Any]


def in_tables(result: Result) -> Result:
    """The same as tables and sentences; see `tables.show_result`."""
    d, sums, flipped = result["decision"], result["sums"], result["flip"]
    say = repr if result["input"]["kind"] == "tokens" else str
    names = {k: say(d[k]["text"]) for k in ("answer", "against")}
    title = f"{names['answer']} against {names['against']}: what the circuit's {d['circuit']:.3f} is made of"
    parts = [{"part": r["name"], "contribution": r["contribution"], "through": _through(r)} for r in result["inputs"]]
    parts += [{"part": r["name"], "contribution": r["contribution"], "through": ""} for r in result["constants"]]
    tables: Result = {title: parts}
    if result["nodes"]:
        tables["nodes: what passes through each"] = [
            {"node": r["node"], **({"mostly_at": r["at"]} if "at" in r else {}), "contribution": r["contribution"]}
            for r in result["nodes"]
        ]
    if result["edges"]:
        tables["edges"] = [
            {"edge": f"{r['src']} → {r['dst']}", "contribution": r["contribution"]} for r in result["edges"]
        ]
    rows = [{"path": p["text"], "contribution": p["contribution"]} for p in result["paths"]]
    rest = result["other_paths"]
    if rest["count"]:
        rows.append({"path": f"the other {rest['count']:,.0f}", "contribution": rest["contribution"]})
    tables["single paths"] = rows
    if result["nearest"]:
        tables["discover examples that pass the same way"] = [
            {k: (v.strip() if k == "text" else v) for k, v in r.items() if k != "split"} for r in result["nearest"]
        ]
    share = d["share_carried"]
    notes = [
        f"The model prefers {names['answer']} to {names['against']} by {d['model']:.4g} logits, the circuit by "
        f"{d['circuit']:.4g}" + ("" if share is None else f" ({share:.0%})") + f"; {d['not_carried']:.4g} are carried "
        f"by what is outside it. With the circuit ablated, the model prefers {names['answer']} by "
        f"{d['without_circuit']:.4g}.",
        f"The paths sum to {sums['sources']:.6g}; the remainder is {sums['remainder']:.1e}, and the circuit's patched "
        f"run differs by {sums['off_patched_run']:.1e}.",
        f"Held fixed at this input: {'; '.join(result['frozen']) or 'nothing'}.",
    ]
    if not any(result["all_inputs"]):
        notes.append(
            f"No input contributes: {result['off']['neurons']} of the circuit's {result['off']['of']} neurons are off "
            "here, and a decision that rests on what is off has no reason among what flows; what flips it tells more."
        )
    if d["model_says"] != d["answer"]:
        notes.append(f"The model itself says {say(d['model_says']['text'])}.")
    if d["circuit_says"] != d["model_says"]:
        other = say(d["circuit_says"]["text"])
        notes.append(f"Careful: the circuit says {other}, so its account is not of the model's decision.")
    right = result["input"].get("right")
    if right is not None:
        notes.append(f"The right answer is {say(right['text'])}.")
    sent = result["reference"]
    if sent["found_under"] != sent["account"]:
        notes.append(
            f"The circuit was found under the reference {sent['found_under']}, which belongs to examples; here what is "
            f"ablated sends its {sent['account']}."
        )
    return {**result, "tables": tables, "notes": notes + flip_words(flipped)}


def _through(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{t['node']} {t['contribution']:+.2f}" for t in row.get("through", []))


def flip_words(flipped: Mapping[str, Any]) -> list[str]:
    """What flips the decision, in sentences."""
    if not flipped["asked"]:
        return [f"What flips it was not asked: {flipped['why_not']}"]
    if not flipped["found"]:
        return [f"No change that flips it was found. Tried: {flipped['tried']}."]
    out = []
    for key, how in (("fewest", "the fewest places found"), ("least", "the smallest sum of moves found")):
        if key in flipped:
            f = flipped[key]
            moves = ", ".join(f"{m['name']} from {_value(m['from'])} to {_value(m['to'])}" for m in f["places"])
            size = "" if "text" in f else f" (sum of moves {f['size']:.4g})"
            out.append(f"It flips to {f['answer_after']['text']!r}, in the whole model too, with {moves}{size}: {how}.")
    return [*out, f"Tried: {flipped['tried']}."]


def _value(x: Any) -> str:
    return repr(x) if isinstance(x, str) else f"{x:.4g}"


__all__ = ["flip_words", "in_tables"]
