"""Detection: given the explanation, in which snippets is the topic active? (Paulo et al. 2024, arXiv 2410.13928)

Here half of the silent snippets are ones in which a sibling is active, where there are such: harder than random text.
"""

from __future__ import annotations

import time

import numpy as np

from openwork.circuit import Evidence
from openwork.explain.words.scoring.asked import Draft, ask, by_accuracy
from openwork.explain.words.scoring.hearing import Hearing, Material, correlated
from openwork.explain.words.scoring.question import choose

CLAIM = "detection"
BAR = 0.7


def detection(h: Hearing) -> Evidence | None:
    """Balanced accuracy of telling snippets in which the topic is active from silent ones; None for vectors.

    A snippet is 16 positions, or fewer where a tenth of the examples are shorter; only whole ones are asked about.
    Verdict and nulls as in `trigger`, with a bar of 0.7; a stand-in is right where the answer holds of it.
    """
    started = time.perf_counter()
    if not h.material.observed.sample.is_text:
        return None
    words = f"Snippets in which {h.explanation.subject} is active are told from others"
    return by_accuracy(h, CLAIM, BAR, words, ask(h, CLAIM, _draft), started)


def _draft(h: Hearing) -> Draft:
    m = h.material
    there = m.snippets.whole
    yes = there & (m.snippets.many(h.active) > 0)
    hard = there & (m.snippets.many(h.siblings_active) > 0) & ~yes
    p = choose(yes, hard, there & ~yes & ~hard, m.clusters, m.settings.questions, h.rng("snippets"))
    spots = list(zip(p.example.tolist(), p.column.tolist(), strict=True))
    return Draft(
        tuple(m.snippets.question("detection", n, w, (), h.side) for n, w in spots),
        p.yes,
        p.hard,
        h.nulls_at(_null_snippets(m), p.example, p.column),
        h.some(h.rivals(_alike(m))),
    )


def _alike(m: Material) -> np.ndarray:
    """bool [K, K]: topics that are active in much the same snippets; made once."""
    if "alike in snippets" not in m.kept:
        rows = np.stack([m.snippets.many(a)[m.snippets.whole] > 0 for a in m.acts.active])
        m.kept["alike in snippets"] = correlated(rows)
    return m.kept["alike in snippets"]


def _null_snippets(m: Material) -> dict[str, np.ndarray]:
    """Name of a null -> bool [R, K, N, W]: in which snippets its topics are active; made once."""
    if "snippets" not in m.kept:
        m.kept["snippets"] = {
            name: np.stack([np.stack([m.snippets.many(topic) > 0 for topic in draw]) for draw in there])
            for name, there in m.null_active.items()
        }
    return m.kept["snippets"]


__all__ = ["BAR", "CLAIM", "detection"]
