"""The author `rules`: no language model, but the best short predicate that a search finds; and the judge that runs it.

It sees a dossier and nothing else: the topic's activity on the explain split. Parameters are fitted on one half of
those examples and the rule is chosen on the other (see `explain.words.search`), so what it says it explains was not
what it was fitted to. Where no rule saves more than its own length, it says so and claims nothing.

Knows dossiers, predicates and the search. Does not know models, siblings' labels, or the examples that it is scored on.
"""

from __future__ import annotations

import numpy as np

from openwork.circuit import Explanation
from openwork.explain.words import predicates as p
from openwork.explain.words.candidates import Candidates, candidates
from openwork.explain.words.predicates import execute
from openwork.explain.words.reading import Reading
from openwork.explain.words.search import Found, Halves
from openwork.explain.words.topic import Dossier, Sample

NAME = "rules"
PLACES = 8_000  # places that are searched; of a larger sample, evenly spread examples
WELL = 0.3  # share of the variance below which a rule is said not to fit
SAME = 1e-6  # of the largest activity: spread below which it is always the same


class Rules:
    """The author. Candidates are made once per sample, for all topics that were observed on it."""

    def __init__(self) -> None:
        self._sample: Sample | None = None
        self._halves: Halves | None = None
        self._index = np.zeros(0, dtype=np.int64)

    def __call__(self, dossier: Dossier) -> Explanation:
        """The explanation of the dossier's topic."""
        halves = self._of(dossier.observed.sample)
        activity = halves.given.flat(dossier.activity[self._index])
        subject = dossier.topic.name
        if len(activity) == 0 or not np.isfinite(activity).all():
            return Explanation(subject, NAME, "Nothing is known of its activity.")
        size = float(np.abs(activity).max())
        if float(np.ptp(activity)) <= SAME * size or size == 0:
            value = p.Constant(value=float(activity.mean()))
            text = f"The same everywhere: {p.short(value.value)}."
            return Explanation(subject, NAME, text, predicate=p.plain(value), details={"explains": 1.0})
        found = halves.search(activity)
        if found is None:
            return Explanation(subject, NAME, "No short rule fits.", details={"explains": 0.0})
        details = {"explains": found.explains, "bits": found.bits, "worth": found.worth}
        return Explanation(subject, NAME, sentence(found), predicate=p.plain(found.expression), details=details)

    def _of(self, sample: Sample) -> Halves:
        if self._halves is None or self._sample is not sample:
            self._sample, self._index = sample, spread(sample)
            self._halves = Halves(candidates(sample.take(self._index)))
        return self._halves


def spread(sample: Sample) -> np.ndarray:
    """Which examples [n] are searched: all, or pairs of neighbours evenly spread with about PLACES places."""
    places = int(sample.counted.sum())
    if places <= PLACES:
        return np.arange(len(sample))
    pairs = (len(sample) + 1) // 2
    some = np.unique(np.linspace(0, pairs - 1, max(2, int(pairs * PLACES / places))).astype(np.int64))
    both = np.stack([2 * some, 2 * some + 1], 1).flatten()
    return both[both < len(sample)]


def sentence(found: Found) -> str:
    """A rule in words, with how much it explains."""
    said = _said(found.expression)
    share = f"{100 * found.explains:.0f} %"
    if found.explains < WELL:
        return f"No short rule fits: the best, {said[0].lower() + said[1:]}, explains {share} of its variance."
    return f"{said}. Explains {share} of its variance."


def _said(e: p.Node) -> str:
    if isinstance(e, p.Line) and e.of.holds:
        there, elsewhere = e.base + e.slope, e.base
        sizes = f"({p.short(there)} there, {p.short(elsewhere)} elsewhere)"
        if abs(there) >= abs(elsewhere):
            return f"{'Fires' if there > 0 else 'Goes below zero'} where {e.of.says()} {sizes}"
        return f"{'Fires' if elsewhere > 0 else 'Goes below zero'} except where {e.of.says()} {sizes}"
    text = e.says()
    return text[0].upper() + text[1:]


class RulesJudge:
    """The judge: an explanation expects what its predicate gives. Where it has none, nothing is said (nan)."""

    def __init__(self) -> None:
        self._reading: Reading | None = None

    def __call__(self, explanation: Explanation, sample: Sample) -> np.ndarray:
        """Expected activity: float [N, T] of tokens, nan at positions that do not count; [N] of vectors."""
        if not explanation.predicate:
            return np.full(sample.counted.shape, np.nan)
        if self._reading is None or self._reading.sample is not sample:
            self._reading = Reading(sample)
        return execute(explanation.predicate, self._reading)


__all__ = ["NAME", "Candidates", "Rules", "RulesJudge", "sentence", "spread"]
