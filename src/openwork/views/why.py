"""One self-contained HTML page of one decision: the input coloured by what it contributes, the parts, the paths.

Draws the plain data that `openwork why --json` prints. The page asks nothing of any network, has no script, and no text
from a run is ever parsed as HTML. Knows that data. Does not know torch, models, folders of runs or how it came about.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from openwork.errors import RunError
from openwork.files import write_text

HERE = Path(__file__).parent
VERSION = 1  # of the data; newer ones are refused
BAR = 100.0  # half the width of a bar's drawing
SHADES = 5  # of a colour, besides none
CELL = 24.0  # side of a feature in the drawing of a square image

Record = Mapping[str, Any]


def build_why(data: Record, path: Path) -> Path:
    """Writes the page of a decision and returns its path; RunError for data of another version, or damaged."""
    if data.get("version") != VERSION:
        raise RunError(f"this decision has version {data.get('version')} and this openwork draws version {VERSION}.")
    try:
        html = _render(data)
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise RunError(f"the decision cannot be drawn: {e!r}.") from e
    write_text(path, html.encode("utf-8", "replace").decode())
    return path


def _render(data: Record) -> str:
    env = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters["signed"] = signed
    env.filters["said"] = lambda text: _said(data, text)
    style = "".join((HERE / sheet).read_text(encoding="utf-8") for sheet in ("page.css", "why.css"))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    words = {k: _said(data, data["decision"][k]["text"]) for k in ("answer", "against", "model_says", "circuit_says")}
    parts = [*data["inputs"], *data["constants"]]
    return env.get_template("why.html.j2").render(
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        d=data,
        words=words,
        tokens=tokens(data),
        picture=picture(data),
        parts=bars(parts),
        nodes=bars(data["nodes"]),
        edges=bars(data["edges"]),
        paths=bars(data["paths"]),
        flip=[
            (k, {**data["flip"][k], "picture": flipped(data, data["flip"][k])})
            for k in ("fewest", "least")
            if k in data["flip"]
        ],
        sums=dict(data["sums"]),
        any_input=any(data["all_inputs"]),
    )


def signed(x: Any, digits: int = 3) -> str:
    """A number with its sign; a dash for none."""
    return "–" if x is None else f"{float(x):+.{digits}f}"


def _said(data: Record, text: str) -> str:
    return repr(text) if data["input"]["kind"] == "tokens" else text


def _shade(x: float, largest: float) -> str:
    """The class of a colour: p1 to p5 for what speaks for the answer, m1 to m5 against; none for little."""
    level = math.ceil(SHADES * abs(x) / largest - 0.2) if largest else 0
    return f"{'p' if x > 0 else 'm'}{min(SHADES, level)}" if level > 0 else ""


def tokens(data: Record) -> list[dict[str, Any]]:
    """The prompt's tokens with the shade and the size of what each contributes."""
    if data["input"]["kind"] != "tokens":
        return []
    values, texts = data["all_inputs"], data["input"]["texts"]
    largest = max(map(abs, values), default=0.0)
    return [
        {"text": t.replace("\n", "⏎\n"), "shade": _shade(x, largest), "value": x}
        for t, x in zip(texts, values, strict=False)
    ]


def picture(data: Record) -> dict[str, Any] | None:
    """A square image as cells: how bright each is, and the shade of what it contributes; None for other inputs."""
    values = data["input"].get("values", [])
    side = math.isqrt(len(values))
    if side < 4 or side * side != len(values):
        return None
    low, high = min(values), max(values)
    largest = max(map(abs, data["all_inputs"]), default=0.0)
    cells = [
        {
            "x": CELL * (i % side), "y": CELL * (i // side), "ink": round((v - low) / ((high - low) or 1.0), 3),
            "shade": _shade(c, largest), "name": f"row {i // side}, column {i % side} = {v:.3g}: {signed(c)}",
        }
        for i, (v, c) in enumerate(zip(values, data["all_inputs"], strict=True))
    ]  # fmt: skip
    return {"cells": cells, "side": CELL * side, "cell": CELL}


def flipped(data: Record, change: Record) -> dict[str, Any] | None:
    """A square image after a change of some pixels, which are marked as changed; None for other inputs."""
    values, moved = list(data["input"].get("values", [])), {m["place"]: m["to"] for m in change["places"]}
    after = [moved.get(i, v) for i, v in enumerate(values)]
    drawn = picture({**data, "input": {**data["input"], "values": after}})
    if drawn is None:
        return None
    return {**drawn, "cells": [{**c, "changed": i in moved} for i, c in enumerate(drawn["cells"])]}


def bars(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows with the bar of their contribution: from the middle to the right for the answer, to the left against."""
    largest = max((abs(r["contribution"]) for r in rows), default=0.0) or 1.0
    out = []
    for r in rows:
        width = round(BAR * abs(r["contribution"]) / largest, 1)
        out.append({**r, "x": BAR if r["contribution"] > 0 else BAR - width, "width": width})
    return out


__all__ = ["bars", "build_why", "flipped", "picture", "signed", "tokens"]
