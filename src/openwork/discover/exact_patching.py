"""Exact patching: what ablating each edge or node alone really costs, one run each (activation patching).

    score = how much worse the metric is when this edge carries its reference and everything else is kept

The slow oracle of attribution, which estimates the same number from a gradient (Syed et al. 2023, arXiv 2310.10348).
Scores are signed; ranking and decision are those of `attribution`. After each node the scores may be put away.

Knows a patched run and one split. Does not know kinds of layers, nor the split that will judge.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openwork.discover.attribution import AttributionSettings, ranked
from openwork.discover.search import Discovery, Progress, Search
from openwork.discover.state import NOWHERE, Keeper, State
from openwork.discover.trials import Of, Trials, candidates, units
from openwork.patched_run import Part, PatchedRun
from openwork.tasks.metrics import METRICS, Metric

SCORED = "exact patching"  # the name under which the scores are put away


def exact_patching(
    search: Search, settings: AttributionSettings, progress: Progress | None = None, keeper: Keeper = NOWHERE
) -> Discovery:
    """Keeps the fewest top-ranked edges or nodes by exact patching that meet the target."""
    parts, metric = search.run.parts(search.learn), METRICS[settings.metric]
    values = exactly(search.run, parts, metric, settings.of, progress, keeper)
    return ranked(search, settings, "exact_patching", values)


def exactly(
    run: PatchedRun,
    parts: Sequence[Part],
    metric: Metric,
    of: Of = "edges",
    progress: Progress | None = None,
    keeper: Keeper = NOWHERE,
) -> dict[str, Tensor]:
    """Signed scores, link -> [dst, src] or site -> [n], mean over the examples; edges that do not exist have 0.

    keeper  where the scores so far are put away after a node, and from where they go on
    """
    masks = candidates(run.graph, run.support, of)
    scores = {n: torch.zeros(m.shape, dtype=torch.float64) for n, m in masks.items()}
    done = 0
    if (saved := keeper.load(SCORED)) is not None:
        scores, done = {n: saved.tensors[n] for n in scores}, int(saved.data["done"])
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
            keeper.save(SCORED, lambda done=i: State(scores, {"done": done}))
            if progress is not None:
                progress(i, len(parts) * len(todo))
    return {name: s.float() for name, s in scores.items()}


__all__ = ["exact_patching", "exactly"]
