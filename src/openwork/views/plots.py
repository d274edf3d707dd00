"""Plots of results: regimes side by side, accuracy against weights.

Knows the keys of result.json and matplotlib, which is imported only when something is drawn. Does not know folders of
runs, models or how the figures came about.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openwork.files import write_bytes

Record = Mapping[str, Any]

# Okabe and Ito's palette, told apart with any colour vision; their yellow is left out, which is too pale for a line
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#7F7F7F", "#882255", "#999933")
MARKERS = "osD^vPXd<>"
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlelocation": "left", "axes.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "xtick.minor.size": 0,
    "svg.hashsalt": "openwork",
}  # fmt: skip
CLOSE = 0.03  # of the width of a panel: regimes nearer than this are drawn beside each other
REACH = {"accuracy": 0.2, "loss": 20.0}  # how far below the target (in share, or times the loss) the search is drawn


def draw_comparison(result: Record, folder: Path) -> list[Path]:
    """Writes plot.svg and plot.png (see `comparison_figure`). ImportError without matplotlib."""
    import matplotlib

    figure, paths = comparison_figure(result), []
    with matplotlib.rc_context({**STYLE}):  # pyright: ignore[reportArgumentType]
        for kind in ("svg", "png"):
            data = io.BytesIO()
            figure.savefig(data, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
            write_bytes(folder / f"plot.{kind}", data.getbuffer())
            paths.append(folder / f"plot.{kind}")
    return paths


def comparison_figure(result: Record) -> Any:
    """Accuracy (or loss) against nonzero weights, as matplotlib's Figure.

    Every regime has a colour and a marker; small marks are seeds, large ones means with their 95 % interval. With a
    block at equal accuracy there are three panels: defaults, the settings that were tried, equal accuracy.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context({**STYLE}):  # pyright: ignore[reportArgumentType]
        names = list(dict.fromkeys(r["regime"] for r in result["rows"]))
        panels = ["default", "grid", "equal"] if result["target"] and result["grid"] else ["default"]
        layout = ConstrainedLayoutEngine(wspace=0.06)
        figure = Figure(figsize=(4.6 * len(panels) + 0.4, 3.9), dpi=160, layout=layout)
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        labels = []
        for ax, panel in zip(axes, panels, strict=True):
            labels.append((_search if panel == "grid" else _block)(ax, result, panel, names))
            _frame(ax, result, panel)
        blocks = [ax for ax, panel in zip(axes, panels, strict=True) if panel != "grid"]
        ends = [end for ax in blocks for end in ax.get_ylim()]
        for ax in blocks:
            ax.set_ylim(min(ends), max(ends))  # what is compared has one scale
        canvas.draw()  # the layout is known from here on
        for ax, at in zip(axes, labels, strict=True):
            _label(canvas, ax, at, names)
    return figure


def _look(names: Sequence[str], name: str) -> tuple[str, str]:
    """Colour and marker of a regime: by its place among all."""
    i = names.index(name)
    return COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]


def _scaled(result: Record, value: float) -> float:
    return 100 * value if result["measure"] == "accuracy" else value


def _bounds(result: Record) -> tuple[float, float]:
    """What a figure can be: an interval of a mean may reach beyond."""
    return (0.0, 100.0) if result["measure"] == "accuracy" else (1e-12, math.inf)


def _worth(result: Record, tried: Record) -> bool:
    """Whether a setting that was tried is near enough to the target to be drawn: collapsed ones leave the panel."""
    value, target = tried.get(f"discover_{result['measure']}"), result["target"]["value"]
    if value is None or tried["status"] != "ok":
        return False
    reach = REACH[result["measure"]]
    return target is None or (value >= target - reach if result["measure"] == "accuracy" else value <= target * reach)


def _width(result: Record) -> tuple[float, float]:
    """The numbers of weights between which everything lies, the same in all panels."""
    shown = [r["nonzero"] for r in result["rows"] if r["status"] == "ok"]
    shown += [g["nonzero"] for g in result["grid"] if _worth(result, g)]
    shown = [max(1, n) for n in shown] or [1]
    room = max(1.3, (max(shown) / min(shown)) ** 0.12)
    return min(shown) / room, max(shown) * room


def _block(ax: Any, result: Record, at: str, names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """Seeds and means of one block; where each regime's mean is drawn."""
    measure, means = result["measure"], dict[str, tuple[float, float]]()
    means_of = {s["regime"]: s for s in result["summary"] if s["at"] == at and s[result["measure"]] and s["nonzero"]}
    left, right = _width(result)
    beside = _beside({name: s["nonzero"]["mean"] for name, s in means_of.items()}, math.log10(right / left))
    for name, s in means_of.items():
        colour, marker = _look(names, name)
        rows = [r for r in result["rows"] if (r["at"], r["regime"], r["status"]) == (at, name, "ok")]
        shift = beside[name]
        x, y = [max(1, r["nonzero"]) * shift for r in rows], [_scaled(result, r[measure]) for r in rows]
        ax.plot(x, y, marker, ms=3.2, mfc=colour, mec="none", alpha=0.45, zorder=2, ls="none")
        means[name] = (max(1.0, s["nonzero"]["mean"]) * shift, _scaled(result, s[measure]["mean"]))
        ax.plot(*means[name], marker, ms=7, mfc=colour, mec="white", mew=0.8, zorder=4)
        x0, y0 = means[name]
        if s[measure]["high"] is not None:
            ends = [_scaled(result, s[measure][end]) for end in ("low", "high")]
            ax.plot([x0, x0], np.clip(ends, *_bounds(result)), color=colour, lw=1.3, zorder=3)
        if s["nonzero"]["high"] is not None:
            ends = [max(0.2 * s["nonzero"]["mean"], s["nonzero"][end]) * shift for end in ("low", "high")]
            ax.plot(ends, [y0, y0], color=colour, lw=1.3, zorder=3)
    return {name: [mean] for name, mean in means.items()}


def _beside(x: Mapping[str, float], decades: float) -> dict[str, float]:
    """Factors that move regimes with as good as the same number of weights beside each other; 1 for all others."""
    close = CLOSE * decades
    order = sorted(x, key=lambda name: x[name])
    groups: list[list[str]] = []
    for name in order:
        if groups and math.log10(max(1, x[name]) / max(1, x[groups[-1][0]])) < close:
            groups[-1].append(name)
        else:
            groups.append([name])
    return {n: 10 ** (close * (i - (len(g) - 1) / 2)) for g in groups for i, n in enumerate(g)}


def _search(ax: Any, result: Record, _at: str, names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """What was tried with one seed, per regime as a line; the chosen setting has a ring."""
    measure, labels = f"discover_{result['measure']}", dict[str, list[tuple[float, float]]]()
    tried_by = {n: [g for g in result["grid"] if g["regime"] == n and g["status"] == "ok"] for n in names}
    left, right = _width(result)
    upright = {n: t[0]["nonzero"] for n, t in tried_by.items() if t and len({g["nonzero"] for g in t}) == 1}
    beside = _beside(upright, math.log10(right / left))
    for name, tried in tried_by.items():
        if not tried:
            continue
        colour, marker = _look(names, name)
        shift = beside.get(name, 1.0)
        x, y = [max(1, g["nonzero"]) * shift for g in tried], [_scaled(result, g[measure]) for g in tried]
        ax.plot(x, y, "-" + marker, color=colour, ms=3.5, lw=1.0, alpha=0.85, mec="none", zorder=2)
        ring = [(a, b) for a, b, g in zip(x, y, tried, strict=True) if g["chosen"]]
        for a, b in ring:
            ax.plot(a, b, "o", ms=9, mfc="none", mec=colour, mew=1.2, zorder=3)
        if near := [(a, b) for a, b, g in zip(x, y, tried, strict=True) if _worth(result, g)]:
            labels[name] = near
    if result["target"]["value"] is not None:
        ends, at = _width(result), _scaled(result, result["target"]["value"])
        ax.plot(ends, [at, at], color="#555555", lw=0.8, ls=(0, (4, 3)), zorder=1)
    return labels


def _frame(ax: Any, result: Record, panel: str) -> None:
    """Axes, their names and ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    accuracy = result["measure"] == "accuracy"
    seeds, equal = result["seeds"], "accuracy" if accuracy else "loss"
    titles = {
        "default": f"At defaults ({seeds} seed{'s' * (seeds > 1)})",
        "grid": "Settings tried (seed 0; ring: chosen, dashes: target)",
        "equal": f"At equal {equal} ({seeds} seed{'s' * (seeds > 1)})",
    }
    ax.set_title(titles[panel])
    ax.set_xscale("log")
    left, right = _width(result)
    ax.set_xlim(left, right)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if right / left < 300 else (1,)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.set_xlabel("nonzero weights")
    ax.set_ylabel(f"{equal} on the {'discover' if panel == 'grid' else 'verify'} split{' (%)' if accuracy else ''}")
    if not accuracy:
        ax.set_yscale("log")
    ax.grid(axis="y", color="#E5E5E5", lw=0.7, zorder=0)
    ax.set_axisbelow(True)
    ax.margins(y=0.12)
    if panel == "grid" and (near := [g[f"discover_{equal}"] for g in result["grid"] if _worth(result, g)]):
        ends = [_scaled(result, v) for v in (min(near), max(near))]
        ax.set_ylim(*((ends[0] - 1.5, ends[1] + 1.5) if accuracy else (ends[0] / 1.2, ends[1] * 1.2)))
    if accuracy:
        ax.set_ylim(max(0.0, ax.get_ylim()[0]), min(100.5, ax.get_ylim()[1]))


# -- labels ----------------------------------------------------------------------------------------------------------


def _label(canvas: Any, ax: Any, at: Mapping[str, Sequence[tuple[float, float]]], names: Sequence[str]) -> None:
    """Writes every regime's name beside its mark: where it hides neither a mark nor another name, near if possible.

    at    regime -> the marks that its name may stand beside
    """
    scale = ax.figure.dpi / 72
    inside = ax.get_window_extent()
    spots = [ax.transData.transform(xy) for line in ax.lines for xy in _points(line)]
    spots = np.array([s for s in spots if np.isfinite(s).all()])
    taken: list[tuple[float, float, float, float]] = []
    for name in sorted(at, key=lambda n: -ax.transData.transform(at[n][0])[1]):
        text = ax.annotate(
            name, at[name][0], (0, 0), textcoords="offset points", ha="center", va="center",
            color=_look(names, name)[0], fontsize=8.5, zorder=6, annotation_clip=False,
        )  # fmt: skip
        size = text.get_window_extent(canvas.get_renderer())
        w, h = size.width / 2 + 1.5 * scale, size.height / 2 + 1 * scale
        best, beside, cost = (0.0, 0.0), at[name][0], math.inf
        for mark, reach, turn in itertools.product(at[name], (0.0, 5.0, 12.0, 21.0, 32.0, 45.0), range(24)):
            x, y = ax.transData.transform(mark)
            a = 2 * math.pi * turn / 24
            dx, dy = math.cos(a) * (w + (6 + reach) * scale), math.sin(a) * (h + (6 + reach) * scale)
            box = (x + dx - w, y + dy - h, x + dx + w, y + dy + h)
            price = reach + 4 * abs(math.sin(2 * a)) + _price(box, spots, taken, inside)
            if price < cost:
                best, beside, cost = (dx, dy), mark, price
        (x, y), (dx, dy) = ax.transData.transform(beside), best
        taken.append((x + dx - w, y + dy - h, x + dx + w, y + dy + h))
        text.xy = beside
        text.set_position((dx / scale, dy / scale))
        if math.hypot(max(0, abs(dx) - w), max(0, abs(dy) - h)) / scale > 13:  # a line from the name to its mark
            end = (np.clip(0, dx - w, dx + w) / scale, np.clip(0, dy - h, dy + h) / scale)
            ax.annotate(
                "", beside, end, textcoords="offset points", zorder=1, annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": _look(names, name)[0], "lw": 0.6, "shrinkA": 0, "shrinkB": 4},
            )  # fmt: skip


def _points(line: Any) -> list[tuple[float, float]]:
    """The points of a line, with some between them where it is drawn through."""
    x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    points = list(zip(x, y, strict=True))
    if line.get_linestyle() in ("None", "none", " ", "") or len(x) < 2 or line.get_transform() != line.axes.transData:
        return points
    steps = np.linspace(0, 1, 60)[1:-1]
    for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
        points += [
            (x0 * (x1 / x0) ** t if x0 > 0 and x1 > 0 else x0 + t * (x1 - x0), y0 + t * (y1 - y0)) for t in steps
        ]
    return points


def _price(box: tuple[float, float, float, float], spots: Any, taken: Sequence[Any], inside: Any) -> float:
    """How bad a place for a name is: marks and names it hides, and how far it leaves the panel."""
    x0, y0, x1, y1 = box
    hidden = 0
    if len(spots):
        pad = 4
        hit = (spots[:, 0] > x0 - pad) & (spots[:, 0] < x1 + pad) & (spots[:, 1] > y0 - pad) & (spots[:, 1] < y1 + pad)
        hidden = int(hit.sum())
    overlap = sum(max(0.0, min(x1, b[2]) - max(x0, b[0])) * max(0.0, min(y1, b[3]) - max(y0, b[1])) > 0 for b in taken)
    out = max(0, inside.x0 - x0) + max(0, x1 - inside.x1) + max(0, inside.y0 - y0) + max(0, y1 - inside.y1)
    return 15 * hidden + 200 * overlap + 5 * out
