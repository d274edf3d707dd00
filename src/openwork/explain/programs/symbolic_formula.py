"""A model of numbers as formulas: per output, the expression whose length is paid for by the variance it explains.

The search asks the model, not the data, at random points of the box that the discover split spans, and takes the
function apart by tests in the manner of AI Feynman (Udrescu and Tegmark 2020, arXiv 1905.11481):

    unused      an input whose redrawing changes nothing is left out (total sensitivity, Sobol 1993)
    sum         inputs that do not interact belong to different terms (Liu and Owen 2006: superset importance), and each
                term is the mean over the other inputs
    direction   a function whose gradients all point one way is a curve over one weighted sum of inputs
    product     a function of two groups of inputs whose table has rank one
    outer       a curve over a function that falls apart, or is a short polynomial: its square, exponential, logarithm
                or inverse is
    otherwise   a polynomial, one monomial after another while each pays for itself

One number at the end of it is matched with a library of curves (CURVES), its constants fitted and then shortened: 3.14
becomes pi where that costs less variance than it saves in length. Everything has one price: `price` is the share of an
output's variance that one symbol must explain. Where nothing fits, R^2 says so.

Knows functions of numbers. Does not know networks, formulas that may be true (they are only set beside), or the points
on which the result is judged.

Shapes: N points, F inputs, O outputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from openwork.errors import UsageError
from openwork.tasks.symbolic import SymbolicData

if TYPE_CHECKING:
    import sympy

Floats = NDArray[np.float64]
Function = Callable[[Floats], Floats]  # points [N, F] -> [N]

PRICE = 0.0005  # share of the variance per symbol
POINTS = 400  # at which the search asks
BACKGROUND = 48  # points over which a term's other inputs are averaged
DEEPEST = 2  # outer curves and products within each other
APART = (0.002, 0.02, 0.1)  # shares of the variance below which inputs count as not interacting: each is tried
MOST_TERMS = 8  # of a polynomial
REFITTED = 6  # constants up to which the rest is fitted again whenever one is shortened
BEST_CURVES = 4  # of the library that are fitted in full
SEARCHES = 8  # for parts of products and under outer curves, per output
FREE = 4  # symbols that a constant costs before it is shortened


@dataclass(frozen=True)
class FormulaAccount:
    """One output as a formula.

    text        the formula, over the names of the inputs
    length      its symbols
    r2_model    R^2 of the formula against the model's output, by split
    r2_truth    against the true values, by split; empty where there are none
    model_truth R^2 of the model itself against the true values, by split
    """

    output: int
    text: str
    length: float
    r2_model: dict[str, float]
    r2_truth: dict[str, float]
    model_truth: dict[str, float]


def formulas_of_model(
    model: nn.Module, data: SymbolicData, names: Sequence[str], price: float = PRICE, seed: int = 0
) -> list[FormulaAccount]:
    """A formula per output of a trained regression, chosen on the discover split's box and judged on verify.

    data    the formula that the model was trained on; its values are only set beside the result
    names   of the inputs
    """
    device = next(model.parameters()).device

    @torch.no_grad()
    def values(x: Floats) -> Floats:
        return model(torch.tensor(x, dtype=torch.float32, device=device)).double().cpu().numpy()

    held: dict[str, tuple[Floats, Tensor]] = {}
    for split in ("discover", "verify"):
        [((x,), y)] = data.held_out(split)
        held[split] = x.double().numpy(), y
    found = formulas_of(values, held["discover"][0], names, price, seed)
    out = []
    for k, (text, length, value) in enumerate(found):
        r2_model, r2_truth, model_truth = {}, {}, {}
        for split, (x, y) in held.items():
            sent, true, mine = values(x)[:, k], y[:, k].double().numpy(), value(x)
            r2_model[split], r2_truth[split], model_truth[split] = r2(mine, sent), r2(mine, true), r2(sent, true)
        out.append(FormulaAccount(k, text, length, r2_model, r2_truth, model_truth))
    return out


def formulas_of(
    values: Callable[[Floats], Floats], box: Floats, names: Sequence[str], price: float = PRICE, seed: int = 0
) -> list[tuple[str, float, Function]]:
    """Per output: the formula as text, its length in symbols, and the function that it is.

    values  [N, F] -> [N, O]
    box     points [M, F]; the search asks between their least and largest values
    price   share of an output's variance that one symbol must explain

    UsageError where the names do not fit, or an output is no finite number somewhere in the box.
    """
    low, high = box.min(0), box.max(0)
    if len(names) != box.shape[1]:
        raise UsageError(f"the points have {box.shape[1]} inputs, but {len(names)} names are given.")
    rng = np.random.default_rng(seed)
    x = low + (high - low) * rng.random((POINTS, len(low)))
    y = values(x)
    if not np.isfinite(y).all():
        raise UsageError(
            "the function has no finite value at some points of the box; a formula cannot be fitted to it."
        )
    out = []
    for k in range(y.shape[1]):
        search = _Search(low, high, names, price, seed)
        template = search.best(lambda z, k=k: values(z)[:, k], list(range(len(low))), 0)
        out.append(search.finish(template, x, y[:, k]))
    return out


def r2(predicted: Floats, true: Floats) -> float:
    """1 - squared error / variance; nan where the true values do not vary."""
    spread = float(((true - true.mean()) ** 2).sum())
    return 1.0 - float(((predicted - true) ** 2).sum()) / spread if spread > 0 else math.nan


# -- a formula with constants to be fitted ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """An expression over inputs and constants, with values for the constants; `shift` is added to it.

    missed  share of the variance that it leaves unexplained, where it was last fitted; nan before
    """

    expr: Any
    start: dict[Any, float]
    shift: Any  # the constant that is added
    missed: float = math.nan

    @property
    def total(self) -> Any:
        """The whole expression."""
        return self.expr + self.shift


def length_of(expr: Any, free: Iterable[Any] = ()) -> float:
    """Symbols of an expression: inputs, operations, digits of constants; a constant in `free` costs FREE."""
    import sympy

    free = set(free)
    if expr in free:
        return FREE
    if expr.is_Symbol or expr is sympy.pi:
        return 1
    if expr.is_Number:
        return _digits(expr)
    parts = [a for a in expr.args if not (expr.is_Mul and a == -1)]
    own = max(len(parts) - 1, 0) if expr.is_Add or expr.is_Mul else 1
    if expr.is_Pow and expr.exp == sympy.Rational(1, 2):
        return 1 + length_of(expr.base, free)
    return own + sum(length_of(a, free) for a in parts)


def _digits(number: Any) -> int:
    """Significant digits of a number as it is written."""
    if number.is_Rational and not number.is_Integer:
        return len(str(abs(number.p))) + len(str(number.q))
    text = f"{abs(float(number)):.12g}".split("e")[0].replace(".", "").lstrip("0")
    return max(len(text.rstrip("0")) if not number.is_Integer else len(text), 1)


# -- curves over one number ------------------------------------------------------------------------------------------

# name -> (expression over u and inner constants a, b; values of the inner constants to begin with, given u)
Starts = Callable[[Floats], Iterable[tuple[float, ...]]]
Curve = tuple[str, str, Starts]


def _none(u: Floats) -> Iterable[tuple[float, ...]]:
    return [()]


def _shifts(u: Floats) -> Iterable[tuple[float, ...]]:
    return [(b,) for b in np.linspace(-u.max(), -u.min(), 9)]


def _over_least(u: Floats) -> Iterable[tuple[float, ...]]:
    return [(b - float(u.min()),) for b in (0.001, 0.1, 0.5, 1.0, 2.0)]


def _rates(u: Floats) -> Iterable[tuple[float, ...]]:
    return [(a,) for a in np.array([0.5, 1, 1.5, 2, 3, 4, 5, 6]) * math.pi / float(np.ptp(u))]


def _growths(u: Floats) -> Iterable[tuple[float, ...]]:
    return [(a,) for a in (-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0)]


CURVES: tuple[Curve, ...] = (
    ("u", "", _none), ("u**2", "", _none), ("u**3", "", _none), ("u**4", "", _none), ("Abs(u)", "", _none),
    ("(u + b)**2", "b", _shifts), ("(u + b)**3", "b", _shifts), ("Abs(u + b)", "b", _shifts),
    ("sin(a*u)", "a", _rates), ("cos(a*u)", "a", _rates), ("exp(a*u)", "a", _growths), ("exp(u)", "", _none),
    ("tanh(a*u)", "a", _growths), ("sqrt(u + b)", "b", _over_least), ("log(u + b)", "b", _over_least),
    ("1/(u + b)", "b", _over_least),
    ("sin(a*u + b)", "ab", lambda u: [(a, b) for (a,) in _rates(u) for b in (-1.5, -0.5, 0.5, 1.5)]),
)  # fmt: skip


class _Search:
    """The search for one output's formula. All draws come from the seed; constants get names of their own."""

    def __init__(self, low: Floats, high: Floats, names: Sequence[str], price: float, seed: int) -> None:
        import sympy

        self.sympy = sympy
        self.low, self.high, self.price = low, high, price
        self.inputs = [sympy.Symbol(n, real=True) for n in names]
        rng = np.random.default_rng([seed, 1])
        self.x = low + (high - low) * rng.random((POINTS, len(low)))
        self.other = low + (high - low) * rng.random((POINTS, len(low)))
        self.background = low + (high - low) * rng.random((BACKGROUND, len(low)))
        self.made, self.left = 0, SEARCHES

    def constant(self) -> sympy.Symbol:
        """A new constant."""
        self.made += 1
        return self.sympy.Symbol(f"_{self.made}", real=True)

    # -- taking apart ----------------------------------------------------------------------------------------------

    def best(self, f: Function, live: list[int], depth: int) -> Template:
        """The template of the least score (unexplained share + price * length) for a function of the inputs `live`."""
        y = f(self.x)
        spread = float(y.var())
        c = self.constant()
        flat = Template(self.sympy.Integer(0), {c: float(y.mean())}, c, 1.0)
        if spread < 1e-12:
            return flat
        live = [i for i in live if self._changed(f, y, [i]) / (2 * spread) > self.price]
        if not live:
            return flat
        candidates = [flat]
        if len(live) == 1:
            candidates += self.curves(self.inputs[live[0]], {}, self.x[:, live[0]], y)
        else:
            candidates += self._parts(f, y, live, depth)
        return min(candidates, key=self.score)

    def _parts(self, f: Function, y: Floats, live: list[int], depth: int) -> list[Template]:
        """Templates of a function of several inputs, one per way of taking it apart; none after one that suffices."""
        out: list[Template] = []
        ways = sorted({tuple(map(tuple, self.groups(f, y, live, share))) for share in APART})
        for groups in (w for w in ways if len(w) > 1):
            terms = [self.best(self._mean_over_others(f, list(g)), list(g), depth) for g in groups]
            out.append(self.fitted(self._joined(terms), y))
        connected = not out or len(min(ways, key=len)) == 1
        others: list[Callable[[], list[Template]]] = [
            lambda: self._direction(f, y, live),
            lambda: [self._polynomial(y, live)],
            lambda: self._product(f, y, live, depth) if depth < DEEPEST else [],
            lambda: self._outer(f, y, live, depth) if depth < DEEPEST else [],
        ]
        for more in others if connected else []:
            out += [self.fitted(t, y) for t in more()]
            if out and min(t.missed for t in out) < self.price:
                break
        return out

    def _may(self, n: int) -> bool:
        """Whether n more searches within searches may be begun; then they count."""
        allowed = self.left >= n
        self.left -= n if allowed else 0
        return allowed

    def _changed(self, f: Function, y: Floats, which: list[int]) -> float:
        """Mean squared change when some inputs are drawn anew."""
        x = self.x.copy()
        x[:, which] = self.other[:, which]
        return float(((f(x) - y) ** 2).mean())

    def groups(self, f: Function, y: Floats, live: list[int], share: float) -> list[list[int]]:
        """Inputs that interact by more than a share of the variance, directly or by way of others, together."""
        alone = {}
        for i in live:
            x = self.x.copy()
            x[:, i] = self.other[:, i]
            alone[i] = f(x)
        of = {i: {i} for i in live}
        for i, j in itertools.combinations(live, 2):
            x = self.x.copy()
            x[:, [i, j]] = self.other[:, [i, j]]
            if float(((y - alone[i] - alone[j] + f(x)) ** 2).mean()) / (4 * y.var()) > share:
                both = of[i] | of[j]
                of.update(dict.fromkeys(both, both))
        return sorted(sorted(g) for g in {frozenset(g) for g in of.values()})

    def _mean_over_others(self, f: Function, group: list[int]) -> Function:
        """A function of a group of inputs: the mean over the other inputs."""

        def g(x: Floats) -> Floats:
            every = np.repeat(self.background[None], len(x), 0)
            every[:, :, group] = x[:, None, group]
            return f(every.reshape(-1, x.shape[1])).reshape(len(x), -1).mean(1)

        return g

    def _joined(self, terms: Sequence[Template]) -> Template:
        c = self.constant()
        start = {k: v for t in terms for k, v in t.start.items() if k != t.shift}
        return Template(sum(t.expr for t in terms), start | {c: 0.0}, c)

    def _direction(self, f: Function, y: Floats, live: list[int]) -> list[Template]:
        """A curve over one weighted sum of inputs, where all gradients point along one direction."""
        step = 1e-3 * (self.high - self.low)
        gradient = np.zeros((len(self.x), len(live)))
        for k, i in enumerate(live):
            move = np.zeros(len(self.low))
            move[i] = step[i]
            gradient[:, k] = (f(self.x + move) - f(self.x - move)) / (2 * step[i])
        sizes, directions = np.linalg.eigh(gradient.T @ gradient)
        if sizes[-1] < 0.9 * sizes.sum():
            return []
        w = directions[:, -1]
        first = int(np.abs(w).argmax())
        w = w / w[first]
        constants = {k: self.constant() for k in range(len(live)) if k != first}
        u = sum(constants.get(k, 1) * self.inputs[i] for k, i in enumerate(live))
        return self.curves(u, {constants[k]: float(w[k]) for k in constants}, self.x[:, live] @ w, y)

    def _product(self, f: Function, y: Floats, live: list[int], depth: int) -> list[Template]:
        """One function of some inputs times one of the others, where the table of both has rank one."""
        out = []
        for k in range(1, len(live) // 2 + 1):
            for mine in itertools.combinations(live, k):
                others = [i for i in live if i not in mine]
                if len(mine) == len(others) and live[0] not in mine:
                    continue
                table = self._table(f, list(mine), others)
                sizes = np.linalg.svd(table, compute_uv=False) ** 2
                if sizes[0] < (1 - APART[1]) * sizes.sum():
                    continue
                r, c = np.unravel_index(int(np.abs(table).argmax()), table.shape)
                if not self._may(2):
                    return out
                at_others, at_mine = self.background[c, others], self.background[r, list(mine)]
                a, b = (
                    self.best(_held(f, fixed, at), free, depth + 1)
                    for fixed, at, free in ((others, at_others, list(mine)), (list(mine), at_mine, others))
                )
                scale, shift = self.constant(), self.constant()
                start = a.start | b.start | {scale: 1.0 / float(table[r, c]), shift: 0.0}
                out.append(Template(scale * a.total * b.total, start, shift))
        return out

    def _table(self, f: Function, rows: list[int], columns: list[int]) -> Floats:
        x = np.tile(self.background[:, None, :], (1, BACKGROUND, 1))
        x[:, :, columns] = self.background[None, :, columns]
        x[:, :, rows] = self.background[:, None, rows]
        return f(x.reshape(-1, x.shape[2])).reshape(BACKGROUND, BACKGROUND)

    def _outer(self, f: Function, y: Floats, live: list[int], depth: int) -> list[Template]:
        """A curve over a polynomial; or over a sum, where undoing the curve makes the inputs fall apart."""
        s, out = self.sympy, []
        slack = 0.1 * float(y.std())
        ways: list[tuple[bool, Callable[[Floats], Floats], Callable[[Any], Any]]] = [
            (float(y.min()) > -slack, lambda v: v * v, lambda e: s.sqrt(e)),
            (float(y.min()) > 0, np.log, lambda e: s.exp(e)),
            (float(np.abs(y).max()) < 20, np.exp, lambda e: s.log(e)),
            (float(y.min()) > 0 or float(y.max()) < 0, lambda v: 1.0 / v, lambda e: 1 / e),
        ]
        for possible, undo, redo in ways:
            if not possible:
                continue

            def g(x: Floats, undo: Callable[[Floats], Floats] = undo) -> Floats:
                with np.errstate(all="ignore"):
                    return np.nan_to_num(undo(f(x)), nan=0.0, posinf=1e6, neginf=-1e6)

            z = g(self.x)
            if z.var() < 1e-12:
                continue
            inners = [self._polynomial(z, live)]
            if max(len(self.groups(g, z, live, share)) for share in APART) > 1 and self._may(1):
                inners.append(self.best(g, live, depth + 1))
            for inner in inners:
                shift = self.constant()
                out.append(Template(redo(inner.total), inner.start | {shift: 0.0}, shift))
        return out

    def _polynomial(self, y: Floats, live: list[int]) -> Template:
        """Monomials up to degree 3, each the one that explains most of what is left, while it pays for itself."""
        powers = [p for p in itertools.product(range(4), repeat=len(live)) if 0 < sum(p) <= 3]
        columns = {p: np.prod(self.x[:, live] ** np.array(p), 1) for p in powers}
        exprs = {p: self.sympy.prod([self.inputs[i] ** k for i, k in zip(live, p, strict=True)]) for p in powers}
        chosen: list[tuple[int, ...]] = []
        weights, left = np.array([y.mean()]), y - y.mean()
        while len(chosen) < min(len(powers), MOST_TERMS):
            tried = {}
            for p in (p for p in powers if p not in chosen):
                matrix = np.stack([np.ones(len(y)), *(columns[q] for q in [*chosen, p])], 1)
                tried[p] = np.linalg.lstsq(matrix, y, rcond=None)[0], matrix
            p = min(tried, key=lambda q: float(((y - tried[q][1] @ tried[q][0]) ** 2).sum()))
            residual = y - tried[p][1] @ tried[p][0]
            gain = float((left**2).mean() - (residual**2).mean()) / float(y.var())
            if gain < self.price * (length_of(exprs[p]) + FREE + 2):
                break
            chosen, weights, left = [*chosen, p], tried[p][0], residual
        constants = [self.constant() for _ in chosen]
        shift = self.constant()
        expr = sum((c * exprs[p] for c, p in zip(constants, chosen, strict=True)), self.sympy.Integer(0))
        return Template(expr, dict(zip([shift, *constants], map(float, weights), strict=True)), shift)

    # -- matching and fitting --------------------------------------------------------------------------------------

    def curves(self, u: Any, start: dict[Any, float], at: Floats, y: Floats) -> list[Template]:
        """Scaled and shifted curves of the library over an expression u [N], fitted; the best few by score."""
        found = []
        for text, inner, starts in CURVES:
            form, placeholder, symbols, curve = _curve(text, inner)
            best: tuple[float, tuple[float, ...], Any] | None = None
            for values in starts(at):
                column = np.broadcast_to(np.asarray(curve(at, *values), dtype=float), at.shape)
                if not np.isfinite(column).all() or np.ptp(column) < 1e-12:
                    continue
                matrix = np.stack([column, np.ones(len(at))], 1)
                weights = np.linalg.lstsq(matrix, y, rcond=None)[0]
                error = float(((matrix @ weights - y) ** 2).sum())
                if best is None or error < best[0]:
                    best = error, values, weights
            if best is None:
                continue
            named = {symbol: self.constant() for symbol in symbols}
            scale, shift = self.constant(), self.constant()
            expr = scale * form.subs(named).subs(placeholder, u)
            values = dict(zip(named.values(), map(float, best[1]), strict=True))
            first = Template(expr, start | values | {scale: float(best[2][0]), shift: float(best[2][1])}, shift)
            found.append((best[0], first))
        found.sort(key=lambda pair: pair[0])
        return sorted((self.fitted(t, y) for _, t in found[:BEST_CURVES]), key=self.score)[:2]

    def score(self, t: Template) -> float:
        """Unexplained share of the variance at the search's points, and the price of the length."""
        return t.missed + self.price * length_of(t.total, t.start)

    def fitted(self, t: Template, y: Floats, steps: int = 60) -> Template:
        """The template with its constants at least squares, from where they are; with no steps, only judged."""
        from scipy.optimize import least_squares

        names = [k for k in t.start if t.total.has(k)]
        value = _evaluate(self.sympy, t.total, self.inputs, names)
        weight = 1.0 / float(y.std() * math.sqrt(len(y)))

        def error(c: Floats) -> Floats:
            return np.nan_to_num((value(self.x, c) - y) * weight, nan=1e3, posinf=1e3, neginf=-1e3)

        constants = np.array([t.start[k] for k in names])
        missed = float((error(constants) ** 2).sum())
        if names and steps:
            found = least_squares(error, constants, max_nfev=steps, x_scale="jac")
            if float((found.fun**2).sum()) <= missed:
                constants, missed = found.x, float((found.fun**2).sum())
        return Template(t.expr, dict(zip(names, constants.tolist(), strict=True)), t.shift, missed)

    def finish(self, t: Template, x: Floats, y: Floats) -> tuple[str, float, Function]:
        """The formula with short constants: each takes the shortest value that pays, the rest are fitted again."""
        self.x = x
        varies = bool(y.std() > 0)
        t = self.fitted(t, y) if varies else t
        while t.start:
            name = next(iter(t.start))
            rest = {k: v for k, v in t.start.items() if k != name}
            tried = []
            for value in _short(self.sympy, t.start[name]):
                u = Template(t.expr.subs(name, value), rest, value if t.shift == name else t.shift, 0.0)
                u = self.fitted(u, y, steps=15 if len(rest) <= REFITTED else 0) if varies else u
                tried.append((self.score(u), len(tried), u))
            t = min(tried)[2]
        expr = t.total
        value = _evaluate(self.sympy, expr, self.inputs, [])
        return self.sympy.sstr(expr, full_prec=False), length_of(expr), lambda points: value(points, [])


@cache
def _curve(text: str, inner: str) -> tuple[Any, Any, list[Any], Callable[..., Any]]:
    """A curve of the library: its expression, the symbol that it is over, its inner constants, and as NumPy."""
    import sympy

    named = {k: sympy.Symbol(k, real=True) for k in "uab"}
    form: Any = sympy.sympify(text, named)  # pyright: ignore[reportCallIssue]
    symbols = [named[k] for k in inner]
    return form, named["u"], symbols, sympy.lambdify([named["u"], *symbols], form, NUMPY)


def _held(f: Function, fixed: list[int], at: Floats) -> Function:
    """A function with some inputs held."""

    def g(x: Floats) -> Floats:
        x = x.copy()
        x[:, fixed] = at
        return f(x)

    return g


NUMPY: list[Any] = [
    {
        "sqrt": lambda v: np.sqrt(np.maximum(v, 0.0)),  # a fit may dip below 0 where the model is not exact
        "log": lambda v: np.log(np.maximum(v, 1e-12)),
        "exp": lambda v: np.exp(np.minimum(v, 50.0)),
    },
    "numpy",
]


def _evaluate(s: Any, expr: Any, inputs: Sequence[Any], names: Iterable[Any]) -> Callable[[Floats, Any], Floats]:
    """Values at points [N, F] for constants in the order of `names`."""
    code = s.lambdify([*inputs, *names], expr, NUMPY)

    def value(x: Floats, constants: Any) -> Floats:
        with np.errstate(all="ignore"):
            return np.broadcast_to(np.asarray(code(*x.T, *constants), dtype=float), (len(x),))

    return value


def _short(s: Any, value: float) -> list[Any]:
    """Shorter values near a constant, from the shortest on: whole numbers, halves, thirds, parts of pi, few digits."""
    out = [s.Integer(round(value))]
    out += [s.Rational(round(value * k), k) for k in (2, 3, 4)]
    out += [s.Rational(round(value / math.pi * k), k) * s.pi for k in (1, 2, 4)]
    out += [s.Float(float(f"{value:.{digits - 1}e}")) for digits in (1, 2, 3, 4)]
    if abs(value) < 0.5:
        out.insert(0, s.Integer(0))
    return list(dict.fromkeys(out))


__all__ = ["PRICE", "FormulaAccount", "formulas_of", "formulas_of_model", "length_of", "r2"]
