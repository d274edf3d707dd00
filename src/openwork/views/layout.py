"""Where to draw the nodes of a layered graph: rows by layer from the inputs up, few crossings, edges short.

Rows are ordered by barycentre sweeps (Sugiyama et al. 1981). A node's place along its row then is the least-squares fit
to the mean place of its neighbours that keeps a least distance to the next node: isotonic regression, solved by pooling
adjacent violators. Crowded rows are staggered over several lines.

Knows names, layers and pairs of nodes. Does not know what they mean, nor pixels: a unit is about one at full size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH = 560.0  # to which rows are fitted as long as they can be
LOOSE, TIGHT = 46.0, 4.5  # greatest and least distance of neighbours in a row
LINE = 13.0  # distance of the lines of a staggered row, and the least distance of two nodes
ROW_LOW, ROW_HIGH = 46.0, 130.0  # least and greatest distance of two rows
ASPECT = 2.0  # height over width that rows are set apart for
BETWEEN = 26.0  # extra distance between two sites that share a row
SWEEPS = 12


@dataclass(frozen=True)
class Row:
    """One row of the drawing: a layer, the names of its sites left to right, and its extent in y."""

    layer: int
    sites: tuple[str, ...]
    top: float
    bottom: float


@dataclass(frozen=True)
class Placed:
    """Places (x, y) of all nodes in the order given; y grows downwards, layer 0 is lowest. Rows from the lowest up."""

    places: list[tuple[float, float]]
    rows: list[Row]
    width: float
    height: float


def place(
    sites: Sequence[str],
    layers: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    widths: Sequence[float] | None = None,
    tall: float = LINE,
) -> Placed:
    """Lays out nodes of a layered graph.

    sites   per node, the name of its site; nodes of a site stay together in their row
    layers  per node, its layer
    pairs   the edges, as positions in these lists
    widths  per node, how wide it is drawn where that is more than a dot (a label); 0 by default
    tall    how tall a label is
    """
    n = len(sites)
    wide = widths or [0.0] * n
    if n == 0:
        return Placed([], [], WIDTH, ROW_LOW)
    near: list[list[int]] = [[] for _ in range(n)]
    for a, b in pairs:
        near[a].append(b)
        near[b].append(a)
    rows = [[i for i in range(n) if layers[i] == layer] for layer in sorted(set(layers))]
    groups = [list(dict.fromkeys(sites[i] for i in row)) for row in rows]
    gaps = [_gaps(row, sites, wide) for row in rows]
    x = [0.0] * n
    for row, gap in zip(rows, gaps, strict=True):
        _spread(row, gap, x)
    for sweep in range(SWEEPS):
        order = range(len(rows)) if sweep % 2 == 0 else range(len(rows) - 1, -1, -1)
        for r in order:
            rank = {s: k for k, s in enumerate(groups[r])}
            wish = {i: _mean([x[j] for j in near[i]], x[i]) for i in rows[r]}
            rows[r].sort(key=lambda i: (rank[sites[i]], wish[i], i))
            gaps[r] = _gaps(rows[r], sites, wide)
            _fit(rows[r], gaps[r], wish, x)
    low, high = min(x), max(x)
    width = max(WIDTH, high - low)
    shift = (width - (high - low)) / 2 - low
    lines_of = [(_lines(row, wide), tall if any(wide[i] for i in row) else LINE) for row in rows]
    staggered = sum(line * (lines - 1) for lines, line in lines_of)
    step = max(ROW_LOW, min(ROW_HIGH, (ASPECT * width - staggered) / max(1, len(rows) - 1)))
    places = [(0.0, 0.0)] * n
    out: list[Row] = []
    y = 0.0
    for row, group, (lines, line) in zip(rows, groups, lines_of, strict=True):
        for k, i in enumerate(row):
            places[i] = (x[i] + shift, y - line * (k % lines))
        out.append(Row(layers[row[0]], tuple(group), y - line * (lines - 1), y))
        y -= line * (lines - 1) + step
    base = -out[-1].top
    return Placed(
        [(a, b + base) for a, b in places],
        [Row(r.layer, r.sites, r.top + base, r.bottom + base) for r in out],
        width,
        base,
    )


def _distance(row: Sequence[int]) -> float:
    """Distance of neighbours in a row, so that it fits WIDTH if it can."""
    return max(TIGHT, min(LOOSE, WIDTH / max(1, len(row))))


def _lines(row: Sequence[int], wide: Sequence[float]) -> int:
    """Lines that a row is staggered over, so that nodes of a line do not touch, and labels fit WIDTH."""
    d, widest = _distance(row), max(wide[i] for i in row)
    labels = int(-(-widest * len(row) // WIDTH)) if widest * len(row) > 1.5 * WIDTH else 1
    return max(labels, 1 if d >= LINE else int(-(-LINE // d)))


def _gaps(row: Sequence[int], sites: Sequence[str], wide: Sequence[float]) -> list[float]:
    """Least distance of each node to the one before it; the first is 0."""
    d, lines, widest = _distance(row), _lines(row, wide), max(wide[i] for i in row)

    def least(a: int, b: int) -> float:
        label = widest / lines if widest and lines > 1 else (wide[a] + wide[b]) / 2
        return max(d, label) + (BETWEEN if sites[a] != sites[b] else 0.0)

    steps = [least(a, b) for a, b in pairwise(row)]
    return [0.0, *steps]


def _spread(row: Sequence[int], gaps: Sequence[float], x: list[float]) -> None:
    """Places a row evenly, centred on 0."""
    at = -sum(gaps) / 2
    for i, gap in zip(row, gaps, strict=True):
        at += gap
        x[i] = at


def _fit(row: Sequence[int], gaps: Sequence[float], wish: dict[int, float], x: list[float]) -> None:
    """Places a row as near to its wishes as its gaps allow, and within WIDTH where they allow it.

    With z_i = x_i - (sum of gaps up to i) the gaps say that z does not decrease: isotonic least squares.
    """
    offset, total = [], 0.0
    for gap in gaps:
        total += gap
        offset.append(total)
    blocks: list[list[float]] = []  # sum, count
    for i, o in zip(row, offset, strict=True):
        blocks.append([wish[i] - o, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            s, c = blocks.pop()
            blocks[-1][0] += s
            blocks[-1][1] += c
    z = [s / c for s, c in blocks for _ in range(int(c))]
    low, high = -WIDTH / 2, WIDTH / 2 - total
    if low > high:  # wider than the drawing: as compact as it goes
        low = high = -total / 2
    for i, o, v in zip(row, offset, z, strict=True):
        x[i] = min(max(v, low), high) + o


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default
