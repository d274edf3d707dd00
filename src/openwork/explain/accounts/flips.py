"""The smallest change of an input, inside the range of the data, after which another answer is given.

Searched on the circuit, and counted only where the whole model then decides otherwise too. What is proved and what is
only searched is said in the result:

    vectors   one feature moved: every feature is tried; in a ReLU perceptron the affine pieces along the way give the
              exact point at which the circuit tips (otherwise a grid and bisection). Several features: greedy.
    tokens    one token in the place of another: every token seen at that place in the data; then pairs of the most
              promising ones

Knows functions from inputs to margins (below 0: another answer), and ranges. Does not know models, tasks or words.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Margin = Callable[[Tensor], Tensor]  # inputs [N, ...] -> margin [N]; below 0 another answer wins
Report = Callable[[float, float], None]  # how much is done, of how much

FEATURES = 8  # moved together at most
GRID = 32  # steps along one feature where its path has no exact pieces
SOME = 16  # features along which a slow network is searched: those with the steepest slopes
TRIED = 128  # ends of features that one greedy step looks at: all, of 64 features
PAIRED = 24  # single substitutions of which all pairs are tried
BEYOND = 1e-6  # of the range: how far past the tipping point a change goes
BATCH = 256


@dataclass(frozen=True)
class Affine:
    """A ReLU perceptron as (weights [dst, src], bias [dst]) per layer, float64; `answer` and `rivals` are outputs."""

    layers: Sequence[tuple[Tensor, Tensor]]
    answer: int
    rivals: Tensor

    def tips(self, x: Tensor, direction: Tensor, length: Tensor) -> Tensor:
        """How far along each line [L] the first rival draws level: exactly, piece by piece; inf where none does.

        x [F] the start; direction [L, F]; length [L] how far each line may go. On one piece the network is affine, so
        its end (a neuron turns on or off) and the crossing of two logits are solutions of linear equations.
        """
        t = torch.zeros_like(length)
        out = torch.full_like(length, torch.inf)
        live = torch.arange(len(length))
        while len(live):
            d, here = direction[live], t[live]
            h, q, ahead = x + here[:, None] * d, d, length[live] - here
            for i, (w, b) in enumerate(self.layers):
                p, q = h @ w.T + b, q @ w.T
                if i + 1 == len(self.layers):
                    h = p
                    break
                small = 1e-12 * (1 + p.abs())
                turns = torch.where((p * q < 0) & (p.abs() > small), -p / q, torch.inf)
                ahead = torch.minimum(ahead, turns.amin(1) if turns.shape[1] else ahead)
                on = (p > small) | ((p.abs() <= small) & (q > 0))
                h, q = torch.where(on, p, 0.0), torch.where(on, q, 0.0)
            margin = h[:, self.answer, None] - h[:, self.rivals]
            slope = q[:, self.answer, None] - q[:, self.rivals]
            cross = torch.where(slope < 0, (margin / -slope).clamp(min=0), torch.inf).amin(1)
            tips = cross <= ahead
            out[live[tips]] = here[tips] + cross[tips]
            t[live] = here + ahead
            live = live[~tips & (t[live] < length[live] * (1 - 1e-12))]
        return out


@dataclass(frozen=True)
class Change:
    """A change that flips both circuit and model: the inputs after it, and its size as the sum of |moves|."""

    after: Tensor
    places: tuple[int, ...]
    size: float


@dataclass(frozen=True)
class Found:
    """What a search found: the change with the fewest places, the smallest one, and in words what was tried."""

    fewest: Change | None
    least: Change | None
    tried: str


def flip_vectors(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    circuit: Margin,
    model: Margin,
    slope: Callable[[Tensor], Tensor],
    affine: Affine | None = None,
    report: Report = lambda _done, _total: None,
) -> Found:
    """Fewest features moved, and the smallest sum of moves, within low..high [F] per feature.

    x       [F]; values outside the range stay where they are unless they are moved
    slope   [F] -> the derivative [F] of the circuit's margin
    affine  the circuit as a ReLU perceptron, where it is one: then single moves are exact
    """
    room = torch.stack([(x - low).clamp(min=0), (high - x).clamp(min=0)])  # down, up
    steep = slope(x).abs() * room.amax(0)
    some = torch.arange(len(x)) if affine is not None else steep.argsort(descending=True, stable=True)[:SOME].sort()[0]
    lines = [(int(j), s) for j in some for s in (0, 1) if float(room[s, j]) > 0]
    steps = len(lines) + 2 * FEATURES
    single = _singles(x, lines, room, circuit, model, affine, lambda done: report(done, steps))
    exact = "exactly" if affine is not None else f"on a grid of {GRID} steps"
    every = "every feature" if len(some) == len(x) else f"the {len(some)} features with the steepest slopes"
    greedy = []
    for k, by in enumerate(("effect", "rate")):
        report(len(lines) + k * FEATURES, steps)
        greedy.append(_greedy(x, low, high, circuit, model, slope, by))
    found = [c for c in (single, *greedy) if c is not None]
    fewest = min(found, key=lambda c: (len(c.places), c.size), default=None)
    least = min(found, key=lambda c: c.size, default=None)
    return Found(
        fewest,
        least,
        f"{every} alone, {exact} on the circuit; up to {FEATURES} together by greedy steps, which may miss a smaller "
        "change",
    )


def _line(x: Tensor, j: int, s: int, t: Tensor) -> Tensor:
    """x [F] with feature j moved by t [N] down (s = 0) or up: [N, F]."""
    out = x.repeat(len(t), 1)
    out[:, j] += t if s else -t
    return out


def _singles(
    x: Tensor,
    lines: list[tuple[int, int]],
    room: Tensor,
    circuit: Margin,
    model: Margin,
    affine: Affine | None,
    report: Callable[[float], None],
) -> Change | None:
    """The smallest move of one feature that flips both."""
    best: Change | None = None
    tips: list[float] = []
    if affine is not None and lines:
        direction = torch.zeros(len(lines), len(x), dtype=x.dtype)
        for i, (j, s) in enumerate(lines):
            direction[i, j] = 1.0 if s else -1.0
        length = torch.stack([room[s, j] for j, s in lines])
        tips = affine.tips(x, direction, length).tolist()
    for i, (j, s) in enumerate(lines):
        report(i)
        width = float(room[s, j])
        start = tips[i] if tips else 0.0
        if start > width or (best is not None and start >= best.size):
            continue
        first = min(width, start + BEYOND * float(room[:, j].sum()))
        grid = torch.linspace(first, width, 2 if first == width else GRID, dtype=x.dtype)
        both = _both(circuit, model)(_line(x, j, s, grid))
        flipped = (both < 0).nonzero().flatten()
        if not len(flipped):
            continue
        k = int(flipped[0])
        t = float(grid[k])
        if k > 0:
            t = _bisect(lambda u, j=j, s=s: _both(circuit, model)(_line(x, j, s, u)), float(grid[k - 1]), t, x.dtype)
        if best is None or t < best.size:
            best = Change(_line(x, j, s, torch.tensor([t], dtype=x.dtype))[0], (j,), t)
    return best


def _both(circuit: Margin, model: Margin) -> Margin:
    """Below 0 where both give another answer."""
    return lambda x: torch.maximum(circuit(x), model(x))


def _bisect(of: Callable[[Tensor], Tensor], a: float, b: float, dtype: torch.dtype) -> float:
    """The point between a (not flipped) and b (flipped) where it flips; the flipped side of the last interval."""
    for _ in range(30):
        mid = (a + b) / 2
        if float(of(torch.tensor([mid], dtype=dtype))) < 0:
            b = mid
        else:
            a = mid
    return b


def _greedy(
    x: Tensor, low: Tensor, high: Tensor, circuit: Margin, model: Margin, slope: Callable[[Tensor], Tensor], by: str
) -> Change | None:
    """Feature after feature moved to the end of its range; once it flips, each goes back as far as it can.

    by  "effect": of the TRIED that promise most, the one whose end lowers the circuit's margin most; "rate": the one
        with the steepest slope
    """
    now, moved = x.clone(), list[int]()
    both = _both(circuit, model)
    for _ in range(FEATURES):
        ends = torch.cat([torch.where(now > low, low, now), torch.where(now < high, high, now)])
        index = torch.arange(2 * len(x))
        open_ = (ends != now.repeat(2)) & ~torch.isin(index % len(x), torch.tensor(moved, dtype=torch.long))
        if not bool(open_.any()):
            return None
        rate = slope(now)
        gain = torch.where(open_, torch.cat([rate, -rate]), -torch.inf)
        if by == "effect":
            promise = torch.where(open_, gain * (ends - now.repeat(2)).abs(), -torch.inf)
            some = promise.argsort(descending=True, stable=True)[: min(TRIED, int(open_.sum()))]
            trial = now.repeat(len(some), 1)
            trial[torch.arange(len(some)), some % len(x)] = ends[some]
            gain = torch.full_like(ends, -torch.inf)
            gain[some] = -torch.cat([circuit(part) for part in trial.split(BATCH)])
        i = int(gain.argmax())
        j = i % len(x)
        moved.append(j)
        now = now.clone()
        now[j] = ends[i]
        if float(both(now[None])) < 0:
            after = _shrunk(x, now, [j, *moved[:-1]], both)
            places = tuple(j for j in sorted(moved) if float(after[j]) != float(x[j]))
            return Change(after, places, float((after - x).abs().sum()))
    return None


def _shrunk(x: Tensor, after: Tensor, moved: Sequence[int], both: Margin) -> Tensor:
    """The same change with feature after feature moved back as far as it still flips."""
    for j in moved:
        back = after.clone()
        back[j] = x[j]
        if float(both(back[None])) < 0:
            after = back
            continue
        a, s = float(after[j] - x[j]), int(after[j] > x[j])
        t = _bisect(lambda u, back=back, j=j, s=s: both(_line(back, j, s, u)), 0.0, abs(a), x.dtype)
        if t < abs(a) * (1 - BEYOND):
            after = _line(back, j, s, torch.tensor([t], dtype=x.dtype))[0]
    return after


def flip_tokens(
    tokens: Tensor,
    seen: Sequence[Sequence[int]],
    circuit: Margin,
    model: Margin,
    report: Report = lambda _done, _total: None,
) -> Found:
    """One token replaced, else two; `seen` holds per place the tokens that the data have there.

    Of several changes of one size, the one after which the model is surest of its new answer.
    """
    single = [(p, v) for p, some in enumerate(seen) for v in some if v != int(tokens[p])]

    def replaced(changes: Sequence[tuple[tuple[int, int], ...]]) -> Tensor:
        out = tokens.repeat(len(changes), 1)
        for i, change in enumerate(changes):
            for p, v in change:
                out[i, p] = v
        return out

    def margins(of: Margin, changes: Sequence[tuple[tuple[int, int], ...]]) -> Tensor:
        parts = []
        for i in range(0, len(changes), BATCH):
            parts.append(of(replaced(changes[i : i + BATCH])))
            report(min(i + BATCH, len(changes)), len(changes))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def best(changes: Sequence[tuple[tuple[int, int], ...]], on_circuit: Tensor) -> Change | None:
        flips = [c for c, m in zip(changes, on_circuit.tolist(), strict=True) if m < 0]
        on_model = margins(model, flips)
        if not len(on_model) or float(on_model.min()) >= 0:
            return None
        change = flips[int(on_model.argmin())]
        return Change(replaced([change])[0], tuple(p for p, _ in change), float(len(change)))

    ones = [(c,) for c in single]
    alone = margins(circuit, ones)
    tried = f"every one of {len(ones):,} single tokens seen at their place in the data"
    found = best(ones, alone)
    if found is None and len(ones):
        order = alone.argsort(stable=True).tolist()[:PAIRED]
        some = [single[i] for i in sorted(order)]
        pairs = [(a, b) for a, b in itertools.combinations(some, 2) if a[0] != b[0]]
        tried += f", then {len(pairs):,} pairs of the {len(order)} most promising"
        found = best(pairs, margins(circuit, pairs))
    return Found(found, found, tried)


__all__ = ["Affine", "Change", "Found", "Margin", "flip_tokens", "flip_vectors"]
