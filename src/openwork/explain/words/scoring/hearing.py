"""One explanation under test and all that it is held against: what every score shares.

    Nulls         what else was observed: random parts of the same size, the same parts of models with random weights
    Interchanges  what the output does when a topic's activity is taken from another example
    Material      a sample's arrays, made once: where topics are active, who acts alike, what the judge expects
    Hearing       one explanation, its topic, and the rivals: explanations of topics that act otherwise

Every verdict follows one pattern. "holds": the figure meets its bar, and beats every null. "fails": the 95 % interval
lies wholly below the bar, or a null is as good. "too little data": too few places, a figure that misses a bar its
interval still reaches, or too few draws of a null to tell. Knows arrays. Does not know models, authors or files.

Shapes: E explanations, K topics, N examples, T positions (1 for vectors), M clusters, R draws of a null, B bootstrap
draws.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from openwork import stats
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Evidence, Explanation
from openwork.errors import UsageError
from openwork.explain.words.scoring.question import ACTIVE, Answers, Asks, Executed, Snippets, shaped
from openwork.explain.words.topic import Judge, Observed, Size, Topic, size_of

ENOUGH = 32  # independent places or examples; below, nothing is decided
LEAST = 8  # of either class; below, nothing is decided
ALPHA = 0.05
ALIKE = 0.8  # correlation from which two topics count as one thing to be described
DRAWS = 199  # of a null, at most
TIE = 1e-9  # scores that differ by less are the same, computed in two ways
PARTS, WEIGHTS = "random parts", "random weights"  # names of the nulls of which there are draws
ROUNDING = 1e-6  # activity, nats; two ways of computing one figure differ by less


class ScoreSettings(BaseModel):
    """How much is asked. The defaults suit a judge that is executed; of one that is dear, less is asked.

    examples   examples that the judge is shown for expected activity, the same for all explanations; None: all
    questions  questions of each kind per topic
    rivals     other topics' explanations that are asked the same questions; None: all
    draws      bootstrap draws and permutations
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    examples: int | None = Field(default=None, ge=ENOUGH)
    questions: int = Field(default=200, ge=4)
    rivals: int | None = Field(default=None, ge=1)
    draws: int = Field(default=1_999, ge=199)


@dataclass(frozen=True, eq=False)
class Nulls:
    """What the observed topics are compared with, each on the very same sample.

    parts    random parts as the topics of one Observed, or of several with as many topics each; one stands in for
             every topic of its kind with as many nodes at every site
    weights  the same topics, in the same order, in models with random weights

    Damage is dear to measure. Where a topic's row of it is nan, it was not; that draw is left out of `damage`.
    """

    parts: tuple[Observed, ...] = ()
    weights: tuple[Observed, ...] = ()


@dataclass(frozen=True, eq=False)
class Interchanges:
    """P pairs of examples of one sample; the base is run with a topic's activity taken from the source.

    topics   K topics
    base     int [P], place in the sample of the example that is run
    source   int [P], place of the example whose activity is put in, position by position
    shift    float [K, P], logits: how far the patch moves the output, from the base's answer towards the source's (or,
             where both have the same answer, towards the base's first wrong one)
    fixed    whether all examples have the same two answers; then shift is towards the one with the larger output index,
             whichever is right, so that its sign means the same in all pairs
    """

    topics: tuple[Topic, ...]
    base: np.ndarray
    source: np.ndarray
    shift: np.ndarray
    fixed: bool = False

    def __post_init__(self) -> None:
        assert self.shift.shape == (len(self.topics), len(self.base)) and len(self.base) == len(self.source)


# -- the arrays --------------------------------------------------------------------------------------------------------


class Acts:
    """Activity of several topics on one sample, and where each counts as active.

    activity  float [K, N, T], nan where a position does not count
    side      int [K]: the sign of the activity of largest size
    active    bool [K, N, T]: where side * activity is at least ACTIVE of its largest value
    """

    def __init__(self, observed: Observed) -> None:
        a = observed.activity
        self.activity = a if a.ndim == 3 else a[:, :, None]
        flat = self.activity.reshape(len(self.activity), -1)
        high, low = np.fmax.reduce(flat, 1, initial=np.nan), np.fmin.reduce(flat, 1, initial=np.nan)  # passing over nan
        self.side = np.where(high >= -low, 1, -1)
        largest = np.nan_to_num(np.fmax(high, -low))[:, None, None]
        with np.errstate(invalid="ignore"):
            active = self.side[:, None, None] * self.activity >= ACTIVE * largest
        self.active = active & (largest > ROUNDING)

    @cached_property
    def filled(self) -> np.ndarray:
        """float [K, N * T]: activity, 0 where it is unknown."""
        return np.nan_to_num(self.activity).reshape(len(self.activity), -1)

    @cached_property
    def known(self) -> np.ndarray:
        """bool [K, N, T]: where activity was measured."""
        return np.isfinite(self.activity)


class Material:
    """What all hearings about one sample share.

    explanations  E of them, those under test first; others may follow that are only rivals
    topic_of      int [E]: the topic of each; -1 for one of another circuit
    """

    def __init__(
        self,
        explanations: Sequence[Explanation],
        others: Sequence[Explanation],
        observed: Observed,
        nulls: Nulls,
        judge: Judge,
        seed: int,
        clusters: Any,
        settings: ScoreSettings,
        interchanges: Interchanges | None,
    ) -> None:
        names = [t.name for t in observed.topics]
        for e in explanations:
            if e.subject not in names:
                raise UsageError(
                    f"the explanation of {e.subject} is of no topic that was observed: {', '.join(names)}."
                )
        n = len(observed.sample)
        for what, null in ((PARTS, nulls.parts), (WEIGHTS, nulls.weights)):
            like = observed.activity if what == WEIGHTS or not null else null[0].activity
            if any(o.activity.shape != (len(like), *observed.activity.shape[1:]) for o in null):
                raise UsageError(
                    f"a null of {what} was not observed on the same topics and sample as the explanations."
                )
        drawn = {size_of(t) for o in nulls.parts for t in o.topics}
        for t in observed.topics if nulls.parts else ():
            if size_of(t) not in drawn:
                raise UsageError(f"no random part is a {t.kind} with as many nodes at every site as {t.name}.")
        self.clusters = np.arange(n) if clusters is None else np.asarray(clusters)
        if len(self.clusters) != n:
            raise UsageError(f"there are {len(self.clusters)} cluster numbers for {n} examples.")
        self.explanations = (*explanations, *others)
        self.tested = len(explanations)
        self.topic_of = np.array([names.index(e.subject) if e.subject in names else -1 for e in self.explanations])
        self.observed, self.nulls, self.judge, self.seed, self.settings = observed, nulls, judge, seed, settings
        self.interchanges = interchanges
        self.acts = Acts(observed)
        self.counted = np.atleast_2d(observed.sample.counted.T).T  # [N, T]
        self.snippets = Snippets(observed.sample)
        self.kept: dict[str, Any] = {}  # what a score works out for all topics at once
        self._by_size: dict[str, dict[Size, list[tuple[int, int]]]] = {}
        self._executed = None if isinstance(judge, Asks) else Executed(judge, observed.sample)

    def rng(self, *about: str) -> np.random.Generator:
        """Random numbers of one purpose: the same whatever else is scored."""
        return np.random.default_rng([self.seed, *(zlib.crc32(a.encode()) for a in about)])

    @cached_property
    def alike(self) -> np.ndarray:
        """bool [K, K]: topics whose activity, or the places where they are active, correlate at ALIKE or more."""
        shape = (len(self.acts.activity), -1)
        known = self.acts.known.reshape(shape)
        return correlated(self.acts.filled, known) | correlated(self.acts.active.reshape(shape), known)

    @cached_property
    def pool(self) -> np.ndarray:
        """int [n]: the examples on which the judge tells expected activity; all, or some on which each topic acts."""
        n, most = len(self.observed.sample), self.settings.examples
        if most is None or most >= n:
            return np.arange(n)
        rng = self.rng("pool")
        order = rng.permutation(n)
        queues = [iter(order[x.any(1)[order]].tolist()) for x in self.acts.active] + [iter(order.tolist())]
        chosen: dict[int, None] = {}
        while len(chosen) < most:
            for queue in queues:  # every topic gets an example on which it is active, in turn; then one at random
                nxt = next((i for i in queue if i not in chosen), None)
                if nxt is not None and len(chosen) < most:
                    chosen[nxt] = None
        return np.sort(np.array(list(chosen)))

    @cached_property
    def expected(self) -> np.ndarray:
        """float [E, N, T]: activity that the judge expects; nan outside the pool and where it cannot say."""
        n, t = self.counted.shape
        if self._executed is not None and len(self.pool) == n:
            return np.stack([self._executed.expected(e) for e in self.explanations])
        out = np.full((len(self.explanations), n, t), np.nan)
        sample = self.observed.sample.take(self.pool)
        for row, e in zip(out, self.explanations, strict=True):
            row[self.pool] = shaped(self.judge(e, sample), sample, e.subject)
        return out

    def answer(self, asks: Sequence[tuple[Explanation, Sequence[Any]]]) -> Sequence[Answers]:
        """The judge's answers to questions."""
        if self._executed is not None:
            return self._executed.answer(asks)
        assert isinstance(self.judge, Asks)
        return self.judge.answer(asks)

    @cached_property
    def null_active(self) -> dict[str, np.ndarray]:
        """Name of the null -> bool [R, K, N, T]: where the topics (or random parts) of each of its draws are active."""
        return {name: np.stack([Acts(o).active for o in some]) for name, some in self.null_draws.items()}

    @property
    def null_draws(self) -> dict[str, tuple[Observed, ...]]:
        """Name of the null -> its draws."""
        draws = {PARTS: self.nulls.parts, WEIGHTS: self.nulls.weights}
        return {name: some for name, some in draws.items() if some}

    def stand_ins(self, name: str, k: int) -> list[tuple[int, int]]:
        """(draw, topic there) of a null's draws for topic k, at most DRAWS.

        Random parts: all that have as many nodes at every site, whichever topic they were drawn for; they are drawn
        alike, and one from another's draw is as good. Random weights: topic k in every model. Other nodes of its site
        would do there too, but those of one model share its fate: a rank among them would take as many draws of nodes
        for as many draws of models, and its p would be too small.
        """
        draws = self.null_draws[name]
        if name == WEIGHTS:
            return [(r, k) for r in range(len(draws))][:DRAWS]
        if name not in self._by_size:
            self._by_size[name] = found = {}
            for r, o in enumerate(draws):
                for j, t in enumerate(o.topics):
                    found.setdefault(size_of(t), []).append((r, j))
        return self._by_size[name].get(size_of(self.observed.topics[k]), [])[:DRAWS]


def correlated(rows: np.ndarray, known: np.ndarray | None = None, opposite: bool = False) -> np.ndarray:
    """bool [K, K]: which rows [K, n] correlate at ALIKE or more, over what is known; each does with itself.

    opposite  whether rows that correlate at -ALIKE or less count as well
    """
    known = np.isfinite(rows) if known is None else known
    z = stats.standardised(np.nan_to_num(rows), known)
    r = z @ z.T
    out = (np.abs(r) if opposite else r) >= ALIKE * np.maximum(1, known.sum(1))[:, None]
    np.fill_diagonal(out, True)
    return out | out.T


# -- one explanation ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Hearing:
    """One explanation under test: the e-th of the material."""

    material: Material
    e: int

    @property
    def explanation(self) -> Explanation:
        """What is tested."""
        return self.material.explanations[self.e]

    @property
    def k(self) -> int:
        """The place of its topic among those observed."""
        return int(self.material.topic_of[self.e])

    @property
    def side(self) -> int:
        """1 where the topic's largest activity is above the reference, -1 where below."""
        return int(self.material.acts.side[self.k])

    @property
    def active(self) -> np.ndarray:
        """bool [N, T]: where the topic is active."""
        return self.material.acts.active[self.k]

    def rng(self, claim: str) -> np.random.Generator:
        """Random numbers of one claim about this topic."""
        return self.material.rng(claim, self.explanation.subject)

    def rivals(self, alike: np.ndarray | None = None) -> tuple[int, ...]:
        """Explanations that are wrong here: of topics that act otherwise, and that do not say the same.

        alike  bool [K, K]: topics that are alike in what a score looks at as well, and so no rivals in it
        """
        m, mine = self.material, self.explanation
        same = m.alike[self.k] if alike is None else m.alike[self.k] | alike[self.k]
        return tuple(
            j
            for j, e in enumerate(m.explanations)
            if (m.topic_of[j] < 0 or not same[m.topic_of[j]]) and not _same(e, mine)
        )

    def subjects(self, explanations: Sequence[int]) -> list[str]:
        """What these explanations are of."""
        return [self.material.explanations[j].subject for j in explanations]

    def some(self, rivals: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the rivals that are asked this topic's questions."""
        most = self.material.settings.rivals
        if most is None or most >= len(rivals):
            return rivals
        return tuple(sorted(self.rng("rivals").choice(rivals, most, replace=False).tolist()))

    @cached_property
    def siblings_active(self) -> np.ndarray:
        """bool [N, T]: where a topic of the same kind that acts otherwise is active and this one is not."""
        m = self.material
        kind = m.observed.topics[self.k].kind
        others = [j for j, t in enumerate(m.observed.topics) if t.kind == kind and not m.alike[self.k, j]]
        return m.acts.active[others].any(0) & ~self.active & m.counted

    def nulls_at(
        self, places: Mapping[str, np.ndarray], example: np.ndarray, column: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What the stand-ins of each null do at Q places, bool [R, Q].

        places  name of the null -> bool [draws, K, N, C]
        """
        out = {}
        for name, there in places.items():
            some = self.material.stand_ins(name, self.k)
            if some:
                r, k = np.array(some).T[:, :, None]
                out[name] = there[r, k, example, column]
        return out


def _same(a: Explanation, b: Explanation) -> bool:
    """Whether two explanations say the same: one predicate, or in words alone one text."""
    if a.predicate or b.predicate:
        return a.predicate == b.predicate
    return a.text.strip() == b.text.strip()


# -- nulls and the verdict ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Null:
    """How large a score is where the explanation cannot be right.

    words     what it is, e.g. "12 other descriptions"
    value     the mean score there
    p         probability of the explanation's score, or a larger one, under it
    reached   whether p can be as small as ALPHA with so many draws
    beaten    whether the explanation beats it: p <= ALPHA, and not more than one in twenty draws does as well
    as_good   share of its draws that do as well (nan where it has none)
    who       subjects of the descriptions that do as well
    """

    words: str
    value: float
    p: float
    reached: bool
    beaten: bool
    as_good: float
    who: tuple[str, ...] = ()

    @property
    def lost(self) -> bool:
        """Whether it is as good as the explanation, as opposed to having too few draws to tell."""
        return not self.beaten and (self.reached or self.as_good > 0)


Words = tuple[str, str]  # of one, of several


def by_chance(value: float, p: float) -> Null:
    """The null of an explanation that has nothing to do with the topic."""
    return Null("chance", value, p, True, p <= ALPHA, float("nan"))


def by_rank(words: Words, own: float, draws: np.ndarray) -> Null:
    """A null of interchangeable draws [R]: p is the rank of the explanation's score among theirs."""
    draws = draws + TIE
    p, least = stats.rank_p(own, draws), 1 / (1 + len(draws))
    return Null(
        _many(len(draws), words), float(draws.mean()), p, least <= ALPHA, p <= ALPHA, float((draws >= own).mean())
    )


def by_difference(
    words: Words,
    own: float,
    others: np.ndarray,
    draws: np.ndarray,
    subjects: Sequence[str],
    reach: float = float("inf"),
) -> Null:
    """A null of a few that are as they are, such as other descriptions: is the score above their mean?

    others    [R] their scores, and `subjects` what they are of
    draws     [B] bootstrap draws of (own - mean of the others), examples drawn anew
    reach     as far as a perfect explanation gets; others that get further are not held against this one
    p is the share of draws at or below 0, with one added (Davison & Hinkley 1997, section 4.4.1). Besides, no more than
    one in twenty of the others may do as well: what fits anything beats the mean, but not those that fit better.
    """
    good = (others + TIE >= own) & (others <= reach + TIE)
    p, as_good = stats.rank_p(TIE, draws, "less"), int(good.sum())
    who = tuple(s for s, x in zip(subjects, good.tolist(), strict=True) if x)
    return Null(
        _many(len(others), words), float(others.mean()), p, True,
        p <= ALPHA and as_good <= ALPHA * len(others), as_good / len(others), who,
    )  # fmt: skip


DESCRIPTIONS = ("description of another topic", "descriptions of other topics")
NULL_WORDS = {
    PARTS: ("random part of the same size", "random parts of the same size"),
    WEIGHTS: ("part with random weights", "parts with random weights"),
}


def _many(n: int, words: Words) -> str:
    return f"{n} {words[0] if n == 1 else words[1]}"


def evidence(
    h: Hearing,
    claim: str,
    unit: str,
    bar: float,
    value: float,
    interval: stats.Interval,
    nulls: Mapping[str, Null],
    n: int,
    enough: bool,
    what: str,
    started: float,
    details: Mapping[str, Any] | None = None,
) -> Evidence:
    """The evidence of one score; see the head of this file for the verdict.

    bar     what the score has to reach
    nulls   name -> Null, "chance" among them where it has a meaning
    enough  whether there is data enough to decide
    what    the figure in words, e.g. "tells active places of X from silent ones with AUC 0.93"
    """
    p = max((x.p for x in nulls.values()), default=float("nan"))
    lost = [x.words for x in nulls.values() if x.lost]
    open_ = [x.words for x in nulls.values() if not x.beaten and not x.lost]
    if not enough or not np.isfinite(value):
        verdict = UNDECIDED
    elif value >= bar and nulls and all(x.beaten for x in nulls.values()):
        verdict = HOLDS
    else:
        verdict = FAILS if interval[1] < bar or lost else UNDECIDED
    beside = "; ".join(f"{x.words} {x.value:z.2f}" for x in nulls.values())
    span = f"95 % {interval[0]:z.2f} to {interval[1]:z.2f}; " if np.isfinite(interval[0]) else ""
    why = "" if enough else f" Too few independent places ({n}, or those of one class) to decide."
    why += f" Not beaten: {', '.join(lost)}." if lost else ""
    why += f" Too few draws to tell: {', '.join(open_)}." if open_ else ""
    m = h.material
    return Evidence(
        claim=claim,
        verdict=verdict,
        sentence=f"{what} ({span}asked: {bar:.2g}). Beside it: {beside}.{why}",
        value=value,
        unit=unit,
        interval=interval,
        null="; ".join(x.words for x in nulls.values()),
        null_value=max((x.value for x in nulls.values()), default=float("nan")),
        p=p,
        n=n,
        split=m.observed.sample.split,
        seed=m.seed,
        seconds=time.perf_counter() - started,
        details={
            "bar": bar,
            "nulls": {
                name: {
                    "value": x.value,
                    "p": x.p,
                    "beaten": x.beaten,
                    "as_good": None if np.isnan(x.as_good) else x.as_good,
                    **({"who": list(x.who)} if x.who else {}),
                }
                for name, x in nulls.items()
            },
            **(details or {}),
        },
    )


def nothing(
    h: Hearing, claim: str, unit: str, why: str, started: float, details: Mapping[str, Any] | None = None
) -> Evidence:
    """The evidence of a score that could not be taken: too little data, no figure, and why."""
    nan, m = float("nan"), h.material
    return Evidence(
        claim, UNDECIDED, why, nan, unit, stats.NO_INTERVAL, "none", nan, nan, 0, m.observed.sample.split, m.seed,
        time.perf_counter() - started, dict(details or {}),
    )  # fmt: skip


Score = Callable[[Hearing], "Evidence | None"]
