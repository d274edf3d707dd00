"""Size of circuits against task loss, drawn: one line per task and their geometric mean.

Knows the records of `openwork discover --task all` and matplotlib, which is imported only when something is drawn. Does
not know folders of runs, models or how the figures came about.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openwork.files import write_bytes
from openwork.views.plots import COLOURS, MARKERS, STYLE

INK = "#808080"  # readable on a white page and on a black one; the background is left clear


def draw_frontier(result: Mapping[str, Any], path: Path) -> Path:
    """Writes the plot as SVG and returns its path. ImportError without matplotlib.

    result  with `tasks` (records with `task` and `points`) and `mean`
    """
    import matplotlib

    ink = {k: INK for k in ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color")}
    with matplotlib.rc_context({**STYLE, **ink}):  # pyright: ignore[reportArgumentType]
        figure, data = frontier_figure(result), io.BytesIO()
        figure.savefig(data, format="svg", transparent=True, metadata={"Date": None})
    write_bytes(path, data.getbuffer())
    return path


def frontier_figure(result: Mapping[str, Any]) -> Any:
    """Edges over the loss that was allowed, both in logarithms, as matplotlib's Figure; the mean is the thick line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.subplots()
    drawn = [t for t in result["tasks"] if t["points"]]
    for i, task in enumerate(drawn):
        x, y = zip(*((p["target"], max(p["edges"], 1)) for p in task["points"]), strict=True)
        colour, marker = COLOURS[1 + i % (len(COLOURS) - 1)], MARKERS[i % len(MARKERS)]  # their first is black
        ax.plot(x, y, lw=1, ms=3.5, label=task["task"], color=colour, marker=marker)
    if len(drawn) > 1:
        x, y = zip(*((m["target"], m["edges"]) for m in result["mean"]), strict=True)
        ax.plot(x, y, lw=3, color=INK, alpha=0.7, label="geometric mean")
    ax.set(xscale="log", yscale="log", xlabel="task loss of the circuit at most, nats", ylabel="edges of the circuit")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    ax.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


__all__ = ["draw_frontier", "frontier_figure"]
