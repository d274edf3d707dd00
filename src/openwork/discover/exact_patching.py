"""Exact patching: what ablating each edge or node alone really costs, one run each (activation patching).

    score = how much worse the metric is when this edge carries its reference and everything else is kept

The slow oracle of attribution, which estimates the same number from a gradient (Syed et al. 2023, arXiv 2310.10348).
Scores are signed; ranking and decision are those of `attribution`. With a `folder`, the table of scores is written
after each node, and the same search begun again goes on where it was broken off.

Knows a patched run and one split. Does not know kinds of layers, nor the split that will judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from openwork.discover.attribution import AttributionSettings, ranked
from openwork.discover.search import Discovery, Progress, Search
from openwork.discover.trials import Notebook, Of, Trials, candidates, key_of, units
from openwork.patched_run import Part, PatchedRun
from openwork.tasks.metrics import METRICS, Metric


class ExactSettings(AttributionSettings):
    """What is scored, by which metric, and how scores become a circuit."""

    folder: Path | None = Field(None, exclude=True, description="where to write the table of a long search")


def exact_patching(search: Search, settings: ExactSettings, progress: Progress | None = None) -> Discovery:
    """Keeps the fewest top-ranked edges or nodes by exact patching that meet the target."""
    parts, metric = search.run.parts(search.learn), METRICS[settings.metric]
    values = exactly(search.run, parts, metric, settings.of, settings.folder, progress)
    return ranked(search, settings, "exact_patching", values)


def exactly(
    run: PatchedRun,
    parts: Sequence[Part],
    metric: Metric,
    of: Of = "edges",
    folder: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Signed scores, link -> [dst, src] or site -> [n], mean over the examples; edges that do not exist have 0.

    folder  where the table is written, or read from where the same search was broken off; RunError for another's
    """
    masks = candidates(run.graph, run.support, of)
    key = key_of(run, parts, method="exact_patching", metric=metric.name, of=of)
    book = Notebook(folder and folder / "exact_patching.json", key)
    scores = {n: torch.zeros(m.shape, dtype=torch.float64) for n, m in masks.items()}
    told = book.read()
    done = int(told["done"]) if told is not None else 0
    if told is not None:
        scores = {n: torch.tensor(told["scores"][n], dtype=s.dtype).view(s.shape) for n, s in scores.items()}
    todo = list(units(run.graph, masks, of))
    n = sum(len(p.split) for p in parts)
    for p, part in enumerate(parts):  # one after the other, so that only one part's runs are held
        skipped = max(0, done - p * len(todo))
        if skipped >= len(todo):
            continue
        trials = Trials(run, (part,), metric, of)
        whole, share = trials.begin(masks), metric.sign * len(part.split) / n
        for i, (_, _, entries) in enumerate(todo[skipped:], p * len(todo) + skipped + 1):
            for some in (entries[k : k + trials.at_once] for k in range(0, len(entries), trials.at_once)):
                for (name, at), value in zip(some, trials.trial([[e] for e in some]), strict=True):
                    scores[name][at] += share * (whole - value)
            if folder is not None:
                book.write(done=i, scores={name: s.flatten().tolist() for name, s in scores.items()})
            if progress is not None:
                progress(i, len(parts) * len(todo))
    return {name: s.float() for name, s in scores.items()}


__all__ = ["ExactSettings", "exact_patching", "exactly"]
