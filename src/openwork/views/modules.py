"""The modules of a model as the page shows them: a sentence, sizes, what each is for as a heat map, and their tree.

Reads the plain data of modules/modules.json. Colour in the heat map is the difference from random nodes, blue where the
module does better and orange where it does worse; the numbers stand in every cell, so nothing is told by colour alone.

Knows numbers and names. Does not know torch, models, or how the modules were found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from openwork.views.words import number, percent, probability, task_words

STEPS = (0.05, 0.2, 0.4, 0.7)  # differences in accuracy from which a cell is coloured, and from which more so
MEASURES = {
    "clusterability": ("clusterability C", "share of squared weight inside modules"),
    "ncut": ("n-cut", "weight that crosses, summed over modules; small is separate"),
    "modularity": ("Newman Q", "weight inside modules beyond what sizes give"),
}
MODES = {
    "on": "With only this module on",
    "off": "With this module off",
}
STEP, ROW, SIDE, TEXT = 48.0, 42.0, 24.0, 210.0  # of the tree: to a module below, rows, margin, room for words
LARGEST = 18.0  # radius of the largest module

Record = Mapping[str, Any]


def section(result: Record) -> dict[str, Any]:
    """What the page's template shows. KeyError, TypeError, ValueError or IndexError where the data are damaged."""
    k = int(result["k"])
    tasks = list(dict.fromkeys(str(c["task"]) for c in result["tasks"]))
    return {
        "k": k,
        "how": how(result),
        "headline": str(result["headline"]),
        "groups": [_name(g["sites"]) for g in result["groups"]],
        "rows": [
            {**m, "sizes": [g["sizes"][int(m["module"])] for g in result["groups"]]} for m in result["modules"]
        ],
        "cut": _cut(result["cut"]),
        "measures": [{**m, "name": MEASURES[m["measure"]][0], "about": MEASURES[m["measure"]][1]}
                     for m in result["measures"]],
        "task": task_words(result["task"]),
        "tasks": [task_words(t) for t in tasks],
        "heat": [{"title": title, "rows": heat(result["tasks"], tasks, k, mode)} for mode, title in MODES.items()],
        "whole": [percent(_of(result["tasks"], 0, t)["whole_accuracy"]) for t in tasks],
        "edges": result["interface"][:8],
        "edges_in_all": int(result["interface_edges"]),
        "tree": Markup(tree(result["tree"], [int(m["nodes"]) for m in result["modules"]])) if result["tree"] else None,
        "tree_note": result["tree_note"],
        "draws": int(result["draws"]),
    }  # fmt: skip


def how(result: Record) -> str:
    """Where the partition comes from, in words."""
    ways = {
        "trained": "that training made",
        "spectral": "of a spectral partition of the final weights",
        "blocks": "of contiguous equal blocks, which look at no weight",
    }
    return f"{result['k']} modules {ways.get(str(result['partition']), result['partition'])}"


def _name(sites: Sequence[str]) -> str:
    return str(sites[0]) + (f" + {len(sites) - 1}" if len(sites) > 1 else "")


def _of(cells: Sequence[Record], module: int, task: str) -> Record:
    return next(c for c in cells if c["module"] == module and str(c["task"]) == task)


def _cut(c: Record) -> list[dict[str, str]]:
    """The hard cut and both nulls as lines of a table."""
    lines = [
        ("whole model", 0, c["loss"], c["accuracy"], None),
        ("cut apart", c["deleted"], c["loss_cut"], c["accuracy_cut"], None),
        ("random modules of the same sizes", c["deleted_partitions"], c["loss_partitions"], c["accuracy_partitions"],
         c["loss_partitions"]["p"]),
        ("as many random weights", c["deleted"], c["loss_weights"], c["accuracy_weights"], c["loss_weights"]["p"]),
    ]  # fmt: skip
    out = []
    for name, deleted, loss, accuracy, p in lines:
        spread = isinstance(loss, Mapping)
        said = f"{number(loss['low'])} to {number(loss['high'])}" if spread else ""
        out.append({
            "name": name, "deleted": number(deleted), "loss": number(loss["median"] if spread else loss), "range": said,
            "accuracy": percent(accuracy["median"] if isinstance(accuracy, Mapping) else accuracy),
            "p": probability(p) if p is not None else "",
        })  # fmt: skip
    return out


def heat(cells: Sequence[Record], tasks: Sequence[str], k: int, mode: str) -> list[dict[str, Any]]:
    """One line per module, a cell per task: value, random median and range, colour class, whether outside the range."""
    rows = []
    for m in range(k):
        line = []
        for t in tasks:
            f = _of(cells, m, t)[f"{mode}_accuracy"]
            value, median = float(f["value"]), float(f["median"])
            outside = not float(f["low"]) <= value <= float(f["high"])
            line.append({
                "value": _points(value), "random": _points(median),
                "range": f"{_points(float(f['low']))} to {_points(float(f['high']))}" if f["low"] != f["high"] else "",
                "shade": shade(value - median), "outside": outside,
            })  # fmt: skip
        rows.append({"module": m, "cells": line})
    return rows


def shade(difference: float) -> str:
    """The class of a cell's colour: "" or p1 to p4 (better than random), m1 to m4 (worse)."""
    step = sum(abs(difference) >= s for s in STEPS)
    return "" if step == 0 else f"{'p' if difference > 0 else 'm'}{step}"


def _points(share: float) -> str:
    return f"{100 * share:.0f}"


# -- the tree ----------------------------------------------------------------------------------------------------------


def tree(edges: Sequence[Record], nodes: Sequence[int]) -> str:
    """The min-cut tree as one svg element: a module per row, module 0 on top, each to the right below its parent.

    Beside a module stands the share of weight that the edge to its parent lets through. ValueError where the edges are
    not one tree over all modules.
    """
    below: dict[int, list[Record]] = {}
    for e in edges:
        below.setdefault(int(e["parent"]), []).append(e)
    at: dict[int, tuple[float, float]] = {}
    waiting = [(0, 0)]
    while waiting:
        module, depth = waiting.pop()
        if module in at:
            raise ValueError("the tree has a circle")
        at[module] = (SIDE + STEP * depth, SIDE + ROW * len(at))
        waiting += [(int(e["module"]), depth + 1) for e in reversed(below.get(module, []))]
    if set(at) != set(range(len(nodes))):
        raise ValueError("the tree does not reach every module")
    lines, marks = [], []
    for e in edges:
        (x1, y1), (x2, y2) = at[int(e["parent"])], at[int(e["module"])]
        share, expected = _share(e["share"]), _share(e["expected"])
        said = f"between modules {e['parent']} and {e['module']}: cut {number(e['cut'])}"
        thick = 1 + 7 * min(1.0, e["share"] if isinstance(e["share"], int | float) else 0.0)
        lines.append(
            f'<path d="M{x1:.1f} {y1:.1f}V{y2:.1f}H{x2:.1f}" stroke-width="{thick:.2f}"><title>{escape(said)}</title>'
            "</path>"
        )
        marks.append(
            f'<text class="share" x="{x2 + LARGEST + 10:.1f}" y="{y2 + 4.5:.1f}">{escape(share)}'
            f'<tspan class="least" dx="8">by chance {escape(expected)}</tspan></text>'
        )
    most = max([*nodes, 1])
    for m, (x, y) in sorted(at.items()):
        r = max(9.0, LARGEST * math.sqrt(nodes[m] / most))
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"><title>module {m}: {nodes[m]:,} nodes</title></circle>'
            f'<text class="name" x="{x:.1f}" y="{y + 4.5:.1f}">{m}</text>'
        )
    width, height = max(x for x, _ in at.values()) + TEXT, max(y for _, y in at.values()) + SIDE
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    said = f"Min-cut tree over {len(nodes)} modules"
    return f'<svg class="cuts" {size} role="img" aria-label="{said}">{"".join([*lines, *marks])}</svg>'


def _share(x: Any) -> str:
    """A share as a percentage; what is too small to matter is said to be so."""
    return "< 0.1 %" if isinstance(x, int | float) and 0 < x < 0.001 else percent(x)


__all__ = ["heat", "section", "shade", "tree"]
