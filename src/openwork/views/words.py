"""Numbers, names and results of a comparison in a person's words, as strong as the numbers allow and no stronger.

Knows the keys of result.json. Does not know folders, HTML or circuits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MODELS = {  # known names of the runs of a comparison, in the order in which they are shown
    "sparse": "weight-sparse",
    "dense": "dense",
    "dense_matched": "dense, matched loss",
    "random": "random weights",
}
EDGE_PRUNED = "_edge_pruned"
RATIOS = {  # what is divided by what
    "node_based": "edges of the dense model by those of the weight-sparse one",
    "edge_pruned": "the same, both with single edges pruned",
    "edge_pruned_dense_to_node_based_sparse": "the same, only the dense with single edges pruned",
    "matched_node_based": "dense model of matched held-out loss",
    "matched_edge_pruned": "dense model of matched loss, both with single edges pruned",
    "node_pairs": "pairs of kept nodes, joined or not, in place of edges",
    "density_alone": "what density alone would give",
}
CLAIMS = {
    "adversarial": "robust to an adversary",
    "reference_dependence": "independent of the reference",
    "keeps_attention": "keeps the attention",
    "agrees_on_mistakes": "errs where the model errs",
    "selective": "this task's only",
    "stable": "found again",
    "its_own": "its own attack's",
    "told": "told by its rule",
    "modular": "has modules",
    "swapped_control": "swapped-labels control",
    "one_minimal": "one-minimal",
    "nonsense_control": "nonsense control",
    "random_weights_control": "random-weights control",
}

MARKS = {"holds": "supported", "fails": "not supported", "too little data": "too little data"}  # of explanations

WIRING = (
    "Each node of this network has a place in space. Its way of training, BIMT, puts a price on the length of wires "
    "and moves nodes to where their wires are short. Every node is drawn where it ended up."
)
MODULES = (
    "The hidden nodes of this network are shared out among modules. Whether these are parts that work by themselves is "
    "seen by deleting every weight between them; what each is for, by leaving it alone on, and by turning it off."
)

Record = Mapping[str, Any]


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one: absent parts of a result are shown as absent."""
    return value if isinstance(value, Mapping) else {}


# -- words and numbers -------------------------------------------------------------------------------------------------


def model_words(name: str) -> str:
    """A model of a comparison in words; an unknown name is shown as it stands."""
    base = name.removesuffix(EDGE_PRUNED)
    return MODELS.get(base, base.replace("_", " ")) + (", edges pruned" if name.endswith(EDGE_PRUNED) else "")


def claim_words(claim: str) -> str:
    """A claim as a person says it."""
    plain = f"{claim.removesuffix('_ood')} (ood)" if claim.endswith("_ood") else claim
    return CLAIMS.get(claim, plain.replace("_", " "))


def mark_words(evidence: Sequence[Any]) -> str:
    """What stands beside an explanation wherever it is shown, by its first evidence."""
    return MARKS.get(str(mapping(evidence[0]).get("verdict")), "not tested") if evidence else "not tested"


def task_words(name: Any) -> str:
    """A task's name without its underscores."""
    return str(name).replace("_", " ")


def number(x: Any, digits: int = 3) -> str:
    """A number to so many significant digits, without exponents where a person would write none."""
    if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
        return "–"
    if isinstance(x, int) or abs(x) >= 1000:
        return f"{x:,.0f}".replace("-", "−")
    if x != 0 and abs(x) < 0.001:
        return f"{x:.1e}".replace("-", "−")
    text = f"{x:.{digits}g}" if abs(x) >= 1 else f"{x:.3f}"
    return text.replace("-", "−")


def percent(x: Any) -> str:
    """A share as a percentage."""
    if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
        return "–"
    return f"{100 * x:.3g} %" if x >= 0.995 or x < 0.1 else f"{100 * x:.0f} %"


def probability(p: Any) -> str:
    """A p-value; small ones as a bound."""
    if isinstance(p, bool) or not isinstance(p, int | float) or not math.isfinite(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def interval(pair: Any) -> str:
    """An interval as "[low, high]"; nothing where there is none."""
    if not isinstance(pair, Sequence) or len(pair) != 2 or any(number(x) == "–" for x in pair):
        return ""
    return f"[{number(pair[0])}, {number(pair[1])}]"


def times(x: Any) -> str:
    """A ratio: "18.5×"."""
    return "–" if number(x) == "–" else f"{x:.1f}×" if x < 100 else f"{x:,.0f}×"


def duration(seconds: Any) -> str:
    """Seconds as a person says them."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return ""
    s = round(seconds)
    if s < 120:
        return f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 7200 else f"{s // 3600} h {s % 3600 // 60:02d} min"


# -- what is said about a comparison -----------------------------------------------------------------------------------


def headline(result: Record, run: str) -> str:
    """The result in one sentence, as strong as the numbers allow."""
    ratio = result.get("ratio_geomean")
    main = mapping(mapping(result.get("ratios")).get(main_ratio(result) or ""))
    low = main.get("low")
    if number(ratio) == "–":
        return (
            "Nothing to compare: no task has a circuit in the dense model"
            if result.get("tasks")
            else f"The circuits of {run}"
        )
    assert isinstance(ratio, int | float)
    if ratio <= 1:
        return "Circuits of the weight-sparse model are not smaller than those of the dense model"
    sentence = f"The weight-sparse model answers with {times(ratio)[:-1]} times fewer edges than the dense model"
    if main.get("tasks") == 1:
        return f"{sentence}, in the one task that can be compared"
    return sentence + (", but that could be chance" if isinstance(low, int | float) and low <= 1 else "")


def main_ratio(result: Record) -> str | None:
    """The key of the ratio that the headline states: the one whose mean equals ratio_geomean."""
    ratio = result.get("ratio_geomean")
    for key, r in mapping(result.get("ratios")).items():
        value = mapping(r).get("geomean")
        if not isinstance(ratio, int | float) or not isinstance(value, int | float):
            continue
        if math.isclose(ratio, value, rel_tol=1e-6):
            return key
    return None


def ratio_rows(result: Record) -> list[dict[str, Any]]:
    """The ratios with their interval as shares of a logarithmic axis that starts at or below 1."""
    rows = []
    for key, r in mapping(result.get("ratios")).items():
        r = mapping(r)
        if number(r.get("geomean")) == "–" or r["geomean"] <= 0:
            continue
        tasks = r.get("tasks")
        rows.append(
            {
                "label": str(r.get("label") or ratio_words(key)),
                "value": r["geomean"],
                "low": r.get("low") if number(r.get("low")) != "–" else None,
                "high": r.get("high") if number(r.get("high")) != "–" else None,
                "tasks": len(tasks) if isinstance(tasks, Sequence | Mapping) and not isinstance(tasks, str) else tasks,
                "main": key == main_ratio(result),
            }
        )
    if not any(r["main"] for r in rows):  # without the headline's ratio the others have nothing to qualify
        return []
    numbers = [x for r in rows for x in (r["value"], r["low"], r["high"]) if x and x > 0]
    low, high = math.log(min([*numbers, 1.0])), math.log(max([*numbers, 10.0])) * 1.05

    def share(x: float | None) -> float | None:
        return None if not x or x <= 0 else round(100 * (math.log(x) - low) / (high - low), 2)

    ticks = [t for t in (0.1, 1, 10, 100, 1000) if low <= math.log(t) <= high]
    for r in rows:
        r |= {"at": share(r["value"]), "from": share(r["low"]), "to": share(r["high"])}
        r["ticks"] = [(share(t), f"{t:g}×") for t in ticks]
    return sorted(rows, key=lambda r: not r["main"])


def ratio_words(key: str) -> str:
    """A ratio in words; an unknown one is shown as it stands."""
    return RATIOS.get(key, key.replace("_", " "))


def caveats(result: Record, models: Sequence[str]) -> list[str]:
    """What a reader must know before believing the headline: what the run says itself, and what its numbers say."""
    out = [str(c) for c in result.get("caveats", []) if isinstance(c, str)]
    out += _infeasible(result, models)
    losses = {m: held_out_loss(mapping(mapping(result.get("models")).get(m))) for m in ("sparse", "dense")}
    if all(number(x) != "–" for x in losses.values()):
        s, d = float(losses["sparse"] or 0), float(losses["dense"] or 0)
        better = "The dense" if d < s else "The weight-sparse"
        out.append(
            f"{better} model predicts held-out data better ({number(min(s, d))} against {number(max(s, d))} nats): "
            "equal task loss is not equal ability."
        )
    evidence = [e for e in result.get("evidence", []) if isinstance(e, Mapping)]
    failed = [e for e in evidence if e.get("verdict") == "fails"]
    unsure = [e for e in evidence if e.get("verdict") == "too little data"]
    if failed or unsure:
        more = f"; {len(unsure)} had too little data" if unsure else ""
        out.append(f"{len(failed)} of {len(evidence)} claims about the circuits fail{more}. Each task lists them.")
    if "seed" in result and not result.get("seeds"):
        out.append("One training seed: the interval speaks for other tasks, not for other trainings.")
    return out


def _infeasible(result: Record, models: Sequence[str]) -> list[str]:
    """The tasks without a circuit, by model, and what became of them in the headline's ratio."""
    rows = [t for t in result.get("tasks", []) if isinstance(t, Mapping)]
    ratio = mapping(mapping(result.get("ratios")).get(main_ratio(result) or ""))
    became = {
        "sparse": (ratio.get("sparse_infeasible"), "the ratio counts all of that model's block weights for it"),
        "dense": (ratio.get("dense_infeasible"), "the ratio leaves it out"),
    }
    said: dict[str, list[str]] = {}  # what befell which tasks -> the models
    for m in models:
        bad = [str(t.get("task")) for t in rows if mapping(t.get(m)).get("status", "ok") != "ok"]
        if m.endswith(EDGE_PRUNED) or not bad:
            continue
        counted, what = became.get(m, ([], ""))
        more = f"; {what if len(bad) == 1 else what.replace(' it', ' them')}" if counted else ""
        said.setdefault(f"met the target for {_and(bad)}{more}.", []).append(model_words(m))
    return [f"No circuit of the {_or(names)} model {what}" for what, names in said.items()]


def _or(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', the '.join(words[:-1])} or the {words[-1]}"


def held_out_loss(figures: Record) -> Any:
    """The loss of a model on held-out data, nats; the verify split's, which chose nothing, where it is known."""
    return figures.get("verify_loss", figures.get("held_out_loss", figures.get("held_out")))


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def lede(result: Record, vectors: bool) -> str:
    """What was done, in plain words; `vectors` says that the models read vectors and not tokens."""
    if result.get("about"):
        return str(result["about"])
    found = (
        "For each task the search keeps as few nodes as it can while the loss stays under its target"
        f"{_target(result)}; everything else is replaced by its mean. "
        "An edge is a nonzero weight between two kept nodes."
    )
    if not result.get("tasks"):
        return found
    what = (
        "Small networks were trained on images of handwritten digits"
        if vectors
        else "Small transformers were trained on real Python source mixed with simple generated programs"
    )
    return f"{what}: in one kind nearly all weights are held at zero, in the other none. {found}"


def _target(result: Record) -> str:
    """The target loss, if all tasks share one."""
    targets = {mapping(t).get("target") for t in result.get("tasks", [])}
    return f" of {next(iter(targets))} nats" if len(targets) == 1 and number(next(iter(targets))) != "–" else ""


def columns(result: Record) -> list[str]:
    """The models that the tasks' table compares, in a fixed order; edge-pruned variants right after their model."""
    seen = {k for t in result.get("tasks", []) for k, v in mapping(t).items() if isinstance(v, Mapping)}
    return [k for m in MODELS if m != "random" for k in (m, m + EDGE_PRUNED) if k in seen]


def task_rows(result: Record, names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of the tasks' table: per model its cell, with the edges as a share of the row's largest."""
    out = []
    for t in result.get("tasks", []):
        t = mapping(t)
        cells = []
        most = max([mapping(t.get(m)).get("edges") or 0 for m in names], default=0)
        for m in names:
            c = dict(mapping(t.get(m)))
            ok = bool(c) and c.get("status", "ok") == "ok"
            cells.append({**c, "there": bool(c), "ok": ok, "share": _share(c.get("edges"), most) if ok else 0})
        out.append({"task": str(t.get("task", "")), "cells": cells})
    return out


def _share(edges: Any, most: float) -> float:
    return round(100 * edges / most, 2) if isinstance(edges, int | float) and most else 0
