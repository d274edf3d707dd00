"""Fuzzing: are the marked words those on which the topic is active? (Paulo et al. 2024, arXiv 2410.13928)

Half of the wrong markings stand in snippets in which the topic is active, on other words: to know the snippet is not
enough. The other half are as many random words of silent snippets.
"""

from __future__ import annotations

import time

import numpy as np

from openwork.circuit import Evidence
from openwork.explain.words.scoring.asked import Draft, ask, by_accuracy
from openwork.explain.words.scoring.hearing import Hearing
from openwork.explain.words.scoring.question import choose

CLAIM = "fuzzing"
BAR = 0.7


def fuzzing(h: Hearing) -> Evidence | None:
    """Balanced accuracy of telling right markings from wrong ones; None for vectors, which have no places to mark.

    right  the active places of a snippet (see `detection`), of half the snippet at most
    wrong  silent places of a snippet, as many as in some right marking, so that to count them tells nothing
    Verdict and nulls as in `trigger`, with a bar of 0.7; of a stand-in a marking is right if at least half of the
    marked places are active.
    """
    started = time.perf_counter()
    if not h.material.observed.sample.is_text:
        return None
    words = f"Marks on the words on which {h.explanation.subject} is active are told from marks on others"
    return by_accuracy(h, CLAIM, BAR, words, ask(h, CLAIM, _draft), started)


def _draft(h: Hearing) -> Draft:
    m, rng = h.material, h.rng("marks")
    active, silent = h.active & m.counted, m.counted & ~h.active
    many, room, there = m.snippets.many(active), m.snippets.many(silent), m.snippets.whole
    yes = there & (many > 0)
    most = int(min(max(1, m.snippets.width // 2), many[yes].max(initial=1)))
    p = choose(yes, yes & (room >= most), there & ~yes, m.clusters, m.settings.questions, rng)
    if not p.yes.any():  # a part that is active in no whole snippet
        return Draft((), p.yes[:0], p.hard[:0], {}, ())
    marks = np.minimum(many[p.example, p.column], most)
    marks[~p.yes] = rng.choice(marks[p.yes], int((~p.yes).sum()))
    questions, places = [], []
    for n, w, right, k in zip(p.example.tolist(), p.column.tolist(), p.yes.tolist(), marks.tolist(), strict=True):
        span = m.snippets.span(n, w)
        at = span.start + np.flatnonzero((active if right else silent)[n, span])
        marked = np.sort(rng.choice(at, min(k, len(at)), replace=False)).tolist()
        questions.append(m.snippets.question("fuzzing", n, w, marked, h.side))
        places.append((n, marked))
    sizes = np.array([len(at) for _, at in places], dtype=np.int64)
    example = np.repeat(p.example, sizes)
    column = np.array([t for _, at in places for t in at], dtype=np.int64)
    first = np.cumsum(sizes) - sizes
    nulls = {
        name: np.add.reduceat(there.astype(np.int64), first, 1) / sizes >= 0.5 if len(first) else there
        for name, there in h.nulls_at(m.null_active, example, column).items()
    }
    return Draft(tuple(questions), p.yes, p.hard, nulls, h.some(h.rivals()))


__all__ = ["BAR", "CLAIM", "fuzzing"]
