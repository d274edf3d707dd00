"""How explanations of a circuit are tested: what is observed on held-out examples, and what it is held against.

    random parts    as many nodes of every site, drawn outside the circuit where there are enough, in the whole model;
                    of a circuit: a random circuit of as many nodes, alone
    random weights  the same nodes in copies of the model with the entries of every matrix in random order (as sparse,
                    nothing learned), each with a reference of its own; of a circuit: these nodes' circuit there, alone

Knows a run's model, a circuit and its topics. Does not know who explains them, nor how a score is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from openwork import patching, stats
from openwork.circuit import Circuit, Explanation
from openwork.explain.words.interchange import interchanges
from openwork.explain.words.measure import measure
from openwork.explain.words.scores import Interchanges, Nulls, ScoreSettings, score
from openwork.explain.words.topic import Judge, Observed, Sample, Topic
from openwork.explain.words.topics import random_parts
from openwork.patching import Reference
from openwork.runs import GRANULARITIES, Run, reference_of
from openwork.searches import shuffled
from openwork.tasks.task import Split

DRAWS = 20  # of each null; with fewer than 19 none can be told from chance at 0.05
OF_NODES = 4  # draws, at least, on which the damage of nodes is measured: nodes of one site serve each other
DEAR = ScoreSettings(examples=48, questions=40, rivals=4)  # for a judge that is asked, not executed
DAMAGE = "damage"

Tick = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Asked:
    """What explanations are tested on.

    kind       of reference, by name ("mean", ...)
    reference  the same as a value, or the name again where it belongs to the examples
    examples   held-out examples, and `sample` the same as a person reads them
    granularity  of the circuit's search
    draws      of each null
    """

    run: Run
    model: nn.Module
    circuit: Circuit
    kind: str
    reference: Reference | str
    topics: tuple[Topic, ...]
    examples: Split
    sample: Sample
    seed: int
    granularity: str = "weights"
    draws: int = DRAWS


def tested(asked: Asked, explanations: Sequence[Explanation], judge: Judge, tick: Tick) -> tuple[Explanation, ...]:
    """The explanations with their evidence, `trigger` first.

    Damage of nodes is held against random parts alone, on as few draws as the nodes of their site together allow.
    `tick` is called `steps(topics)` times.
    """
    own = measure(
        asked.model, asked.circuit, asked.reference, asked.topics, asked.examples, asked.sample, asked.seed, tick
    ).observed
    swaps = _swaps(asked, tick)
    nulls = _nulls(asked, tick)
    found = score(
        explanations, own, nulls, judge, asked.seed, clusters=stats.pair_clusters(asked.examples.pair.cpu()),
        interchanges=swaps, settings=DEAR if hasattr(judge, "answer") else None,
    )  # fmt: skip
    tick()
    return found


def steps(topics: Sequence[Topic]) -> int:
    """How often `tested` ticks."""
    return 2 * len(topics) + 2 * DRAWS + 1


def _needed(topics: Sequence[Topic]) -> dict[str, int]:
    """Site -> draws on which the damage of its nodes is measured: with all its nodes' draws together, enough."""
    sites = [t.nodes[0][0] for t in topics if t.kind == "node"]
    return {s: max(OF_NODES, -(-DRAWS // sites.count(s))) for s in sites}


def _part(o: Observed, at: Sequence[int]) -> Observed:
    """Some of the observed topics."""
    return Observed(o.sample, tuple(o.topics[k] for k in at), o.activity[list(at)], o.unit, o.damage[list(at)])


def _swaps(asked: Asked, tick: Tick) -> Interchanges | None:
    """Runs with a topic's activity taken from another example; none where the reference belongs to the examples."""
    if isinstance(asked.reference, str):
        for _ in asked.topics:
            tick()
        return None
    return interchanges(
        asked.model, asked.circuit, asked.reference, asked.topics, asked.examples, asked.seed, tick=tick
    )


def _some(swaps: Interchanges | None, topics: Sequence[Topic], at: Sequence[int]) -> Interchanges | None:
    if swaps is None:
        return None
    return Interchanges(tuple(topics[k] for k in at), swaps.base, swaps.source, swaps.shift[list(at)])


def _nulls(asked: Asked, tick: Tick) -> Nulls:
    parts, weights, needed = [], [], _needed(asked.topics)
    for r in range(asked.draws):
        drawn = random_parts(asked.model, asked.circuit, asked.topics, asked.seed + 1 + r)
        parts.append(_null(asked, asked.model, asked.reference, drawn, {s for s, n in needed.items() if r < n}))
        tick()
    for r in range(asked.draws):
        random = GRANULARITIES[asked.granularity](shuffled(asked.run.model, asked.seed + 1 + r))
        weights.append(_null(asked, random, _reference(asked, random, asked.seed + 1 + r), asked.topics, set()))
        tick()
    return Nulls(tuple(parts), tuple(weights))


_known: dict[tuple[str, str, str, int], Reference | str] = {}  # means of random copies, of one model at a time


def _reference(asked: Asked, random: nn.Module, seed: int) -> Reference | str:
    """What ablated nodes send in a random copy; found once for all circuits of a run that one process explains."""
    key = (asked.run.digest, asked.kind, asked.granularity, seed)
    if key not in _known:
        for old in [k for k in _known if k[0] != key[0]]:
            del _known[old]
        _known[key] = reference_of(asked.run, random, asked.kind)
    return _known[key]


def _null(
    asked: Asked, model: nn.Module, reference: Reference | str, topics: Sequence[Topic], sites: set[str]
) -> Observed:
    """One draw, observed: nodes and modules in the whole model, circuits alone.

    sites  those of which the damage of nodes is measured; of others it is nan
    """
    graph, there = patching.graph_of(model), patching.support(model)

    def seen(inside: Circuit | None, some: Sequence[Topic], lost: Sequence[Topic] | None = None) -> Observed:
        return measure(model, inside, reference, some, asked.examples, asked.sample, asked.seed, lost=lost).observed

    parts = [t for t in topics if t.kind != "circuit"]
    looked = [t for t in parts if t.kind == "module" or t.nodes[0][0] in sites]
    whole = seen(None, parts, looked)
    missed = np.array([t in looked for t in parts], dtype=bool)
    activity, damage = [whole.activity], [np.where(missed[:, None], whole.damage, np.nan)]
    for t in topics:
        if t.kind == "circuit":
            masks = {s: m.clone() for s, m in asked.circuit.nodes.items()}
            for s in graph.prunable:
                if s.kind != "input":
                    masks[s.name] = masks[s.name] & False
            for site, i in t.nodes:
                masks[site][i] = True
            o = seen(Circuit.from_nodes(graph, masks, there), [t])
            activity.append(o.activity)
            damage.append(o.damage)
    return Observed(asked.sample, tuple(topics), np.concatenate(activity), "", np.concatenate(damage))


__all__ = ["DRAWS", "Asked", "steps", "tested"]
