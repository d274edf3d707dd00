"""A network drawn in space, as SVG: layer by layer from the inputs up, every node where its training put it.

Reads the plain data of layout.json. Nodes on a line are drawn as rows; in a square as sheets seen obliquely, the first
row of a grid at the back; in a cube as such sheets with height. An edge is a straight wire, blue where its weight is
positive and orange where it is negative, broader and denser the larger it is. Nodes without edges are faint. What a
sum carries on, as the residual stream does, keeps its place from layer to layer: each such channel is one thin upright
line.

Knows numbers and names. Does not know torch, models, or what put the nodes there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import escape

HERE = Path(__file__).parent
LEFT, RIGHT, TOP, BOTTOM = 168.0, 40.0, 34.0, 44.0  # margins; names stand in the left one
WIDTH = 1000.0  # of the drawing with its margins
SKEW = 0.2  # share of the width by which the back of a sheet is shifted
DEPTH = {1: 0.0, 2: 130.0, 3: 84.0}  # height of a sheet as it is drawn, by dimensions
HEIGHT = {1: 0.0, 2: 0.0, 3: 96.0}  # height of a cube above its sheet
GAP = {1: (82.0, 170.0), 2: (34.0, 64.0), 3: (30.0, 50.0)}  # least and greatest distance of two rows, beside these
TALL = 620.0  # what the distances of rows are fitted to
NEAR = 36.0  # distance of the rows of one layer, where nodes are on a line
LABELLED = 12  # inputs and outputs of sites up to this size have their numbers
KINDS = {  # what is written below a site's name, where that does not say it
    "neuron": "neurons",
    "query": "queries",
    "key": "keys",
    "value": "values",
    "read": "residual reads",
    "write": "residual writes",
    "embed": "embedding channels",
    "input": "inputs",
    "output": "outputs",
}

Record = Mapping[str, Any]
Point = tuple[float, float]


@dataclass(frozen=True)
class _Frame:
    """How coordinates become places in the drawing: the dimensions, and the height of every site's base line."""

    dimensions: int
    bases: list[float]
    height: float

    def at(self, site: int, c: Sequence[float]) -> Point:
        """Where a node of a site is drawn."""
        x, y = float(c[-1]), self.bases[site]
        if self.dimensions > 1:
            back = 1 - float(c[-2])
            x = x * (1 - SKEW) + back * SKEW
            y -= DEPTH[self.dimensions] * back
        if self.dimensions > 2:
            y -= HEIGHT[3] * (1 - float(c[-3]))
        return LEFT + x * (WIDTH - LEFT - RIGHT), y

    def outline(self, site: int) -> str:
        """Path of the sheet, or the cube, that a site's nodes are in."""
        if self.dimensions == 1:
            return _path(self.at(site, (0.0,)), self.at(site, (1.0,)))
        square = ((0, 0), (0, 1), (1, 1), (1, 0))
        if self.dimensions == 2:
            return _path(*(self.at(site, c) for c in square)) + "Z"
        floor, roof = ([self.at(site, (h, *c)) for c in square] for h in (1, 0))
        posts = "".join(_path(a, b) for a, b in zip(floor, roof, strict=True))
        return _path(*floor) + "Z" + _path(*roof) + "Z" + posts


def draw(layout: Record, alone: bool = False) -> str:
    """The drawing as one svg element; with `alone`, as a file that brings its own style.

    Raises KeyError, TypeError, ValueError or IndexError where the data are damaged. All text is escaped.
    """
    sites, edges = layout["sites"], layout["edges"]
    frame = _frame(sites)
    at = [[frame.at(k, c) for c in s["at"]] for k, s in enumerate(sites)]
    largest = max((abs(float(e[4])) for e in edges), default=1.0) or 1.0
    into: list[list[str]] = [[] for _ in sites]
    for e in reversed(edges):  # the strongest on top
        into[int(e[2])].append(_edge(e, sites, at, largest))
    parts = _threads(layout["threads"], sites, at)
    for k in sorted(range(len(sites)), key=lambda k: int(sites[k]["layer"])):  # a sheet veils what is below it
        parts += [*into[k], f'<path class="place" d="{frame.outline(k)}"/>']
    for k, s in enumerate(sites):
        parts += _nodes(s, at[k], _radius(at[k]))
    parts += [_name(s, frame.bases[k], frame.dimensions) for k, s in enumerate(sites)]
    said = f"The network in space: {words(layout)}"
    box = f'viewBox="0 0 {WIDTH:.0f} {frame.height:.0f}" role="img" aria-label="{escape(said)}"'
    body = "\n".join(parts)
    if not alone:
        return f'<svg class="network" {box}>\n{body}\n</svg>'
    style = (HERE / "wiring.css").read_text(encoding="utf-8")
    size = f'width="{WIDTH:.0f}" height="{frame.height:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="network alone" {size} {box}>\n<style>{style}</style>\n'
        f'<rect class="ground" width="100%" height="100%"/>\n{body}\n</svg>\n'
    )


def words(layout: Record) -> str:
    """What is drawn, in one line: nodes with edges, edges, and how many of them are shown."""
    used = sum(1 for s in layout["sites"] for x in s["size"] if float(x) > 0)
    nodes, count, shown = sum(len(s["size"]) for s in layout["sites"]), int(layout["count"]), len(layout["edges"])
    more = f", {shown:,} of the strongest shown" if shown < count else ""
    length = layout.get("wire_length")
    wires = f"; wire length {float(length):.4g}" if length is not None else ""
    return f"{used:,} of {nodes:,} nodes with edges; {count:,} edges{more}{wires}"


# -- the parts of the drawing ------------------------------------------------------------------------------------------


def _frame(sites: Sequence[Record]) -> _Frame:
    """The rows of the drawing, layer 0 lowest; sites of one layer one above the other, nearer than layers are."""
    dimensions = len(sites[0]["at"][0])
    if dimensions not in DEPTH or any(len(c) != dimensions for s in sites for c in s["at"]):
        raise ValueError("nodes have one, two or three coordinates, all as many")
    own = DEPTH[dimensions] + HEIGHT[dimensions]
    layers = sorted({int(s["layer"]) for s in sites})
    low, high = GAP[dimensions]
    gap = max(low, min(high, TALL / max(1, len(layers) - 1) - own))
    bases, y = [0.0] * len(sites), 0.0
    for layer in layers:
        row = [k for k, s in enumerate(sites) if int(s["layer"]) == layer]
        for n, k in enumerate(row):
            y -= (min(NEAR, gap) + own) * (n > 0)
            bases[k] = y
        y -= own + gap
    top = y + gap  # the top of the highest site
    return _Frame(dimensions, [b - top + TOP for b in bases], TOP - top + BOTTOM)


def _edge(edge: Sequence[Any], sites: Sequence[Record], at: Sequence[Sequence[Point]], largest: float) -> str:
    """One wire. Width is in proportion to |w|; the faintest can still be seen."""
    a, i, b, j = (int(x) for x in edge[:4])
    if min(a, i, b, j) < 0:
        raise IndexError("an edge joins a node that is not there")
    w = float(edge[4])
    share = abs(w) / largest
    sign, shown = ("plus", f"+{w:.3g}") if w > 0 else ("minus", f"−{-w:.3g}")
    said = escape(f"{sites[a]['name']}:{i} → {sites[b]['name']}:{j}  {shown}")
    return (
        f'<path class="{sign}" stroke-width="{0.5 + 3.5 * share:.2f}" opacity="{0.2 + 0.7 * share**0.5:.2f}" '
        f'd="{_path(at[a][i], at[b][j])}"><title>{said}</title></path>'
    )


def _threads(groups: Sequence[Sequence[int]], sites: Sequence[Record], at: Sequence[Sequence[Point]]) -> list[str]:
    """Upright lines through the places of one channel, from the first to the last site that uses it."""
    out = []
    for group in groups:
        for node in range(len(sites[group[0]]["at"]) if group else 0):
            used = [at[k][node] for k in group if float(sites[k]["size"][node]) > 0]
            if len(used) > 1:
                low, high = max(used, key=lambda p: p[1]), min(used, key=lambda p: p[1])
                out.append(f'<path class="thread" d="{_path(low, high)}"/>')
    return out


def _nodes(site: Record, at: Sequence[Point], radius: float) -> list[str]:
    most = max((float(x) for x in site["size"]), default=0.0) or 1.0
    out = []
    for i, ((x, y), size) in enumerate(zip(at, site["size"], strict=True)):
        share = float(size) / most
        kind, r = ("node", radius * (0.6 + 0.4 * share**0.5)) if share > 0 else ("node idle", max(0.7, 0.45 * radius))
        said = escape(f"{site['name']}:{i}")
        out.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"><title>{said}</title></circle>')
    if len(at) <= LABELLED and site["kind"] in ("input", "output"):
        below = 20 if site["kind"] == "input" else -12
        out += [f'<text class="index" x="{x:.1f}" y="{y + below:.1f}">{i}</text>' for i, (x, y) in enumerate(at)]
    return out


def _name(site: Record, y: float, dimensions: int) -> str:
    """The site's name with how many of its nodes have edges, in the left margin."""
    used = sum(1 for x in site["size"] if float(x) > 0)
    told = KINDS.get(str(site["kind"]), str(site["kind"]))
    middle = y - (DEPTH[dimensions] + HEIGHT[dimensions]) * (0.5 if dimensions > 1 else 0)
    return (
        f'<text class="site" x="8" y="{middle:.1f}">{escape(str(site["name"]))}</text>'
        f'<text class="count" x="8" y="{middle + 14:.1f}">{used:,} of {len(site["size"]):,} {escape(told)}</text>'
    )


def _radius(at: Sequence[Point]) -> float:
    """As large as the nodes of a site can be without touching, within reason."""
    places = sorted(at)
    rows: dict[float, float] = {}
    nearest = 60.0
    for x, y in places:
        if (before := rows.get(round(y, 1))) is not None:
            nearest = min(nearest, x - before)
        rows[round(y, 1)] = x
    return max(1.0, min(6.0, 0.36 * nearest))


def _path(*points: Point) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
