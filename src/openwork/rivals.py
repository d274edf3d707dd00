"""How explanations of a circuit are tested: what is observed on held-out examples, and what it is held against.

    random parts    as many nodes of every site, drawn outside the circuit where there are enough, in the whole model;
                    of a circuit: a random circuit of as many nodes, alone
    random weights  the same nodes in copies of the model with the entries of every matrix in random order (as sparse,
                    nothing learned), each with a reference of its own; of a circuit: these nodes' circuit there, alone

Topics with as many nodes at every site share their random parts: such are drawn alike. One run of a model shows the
activity of any number of its nodes and modules, so a draw costs a random model and a short run of every circuit. Damage
costs a run of each, decides of no explanation whether it is supported, and is measured on fewer draws.

Knows a run's model, a circuit and its topics. Does not know who explains them, nor how a score is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from openwork import patching, stats
from openwork.circuit import Circuit, Explanation
from openwork.explain.words.interchange import interchanges
from openwork.explain.words.measure import activities, damages, measure
from openwork.explain.words.scores import Interchanges, Nulls, ScoreSettings, score
from openwork.explain.words.topic import KINDS, Judge, Observed, Sample, Size, Topic, size_of
from openwork.explain.words.topics import random_parts
from openwork.patching import Reference
from openwork.runs import GRANULARITIES, Run, reference_of
from openwork.searches import shuffled
from openwork.tasks.task import Split

DRAWS = 99  # of each null: p as small as 0.01, which a correction for many explanations can be met with
OF_DAMAGE = 20  # of these, on which damage is measured; with fewer than 19 none can be told from chance at 0.05
SHARE = 4  # of the batches behind a run's mean reference, a random copy's own is taken over one in so many
DEAR = ScoreSettings(examples=48, questions=40, rivals=4)  # for a judge that is asked, not executed

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

    Damage is held against OF_DAMAGE draws, that of nodes against random parts alone. `tick` is called `steps(topics)`
    times.
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


def _swaps(asked: Asked, tick: Tick) -> Interchanges | None:
    """Runs with a topic's activity taken from another example; none where the reference belongs to the examples."""
    if isinstance(asked.reference, str):
        for _ in asked.topics:
            tick()
        return None
    return interchanges(
        asked.model, asked.circuit, asked.reference, asked.topics, asked.examples, asked.seed, tick=tick
    )


def _nulls(asked: Asked, tick: Tick) -> Nulls:
    if not asked.draws:
        return Nulls()
    parts = _random_parts(asked, tick)
    weights = []
    for r in range(asked.draws):
        random = GRANULARITIES[asked.granularity](shuffled(asked.run.model, asked.seed + 1 + r))
        reference = _reference(asked, random, asked.seed + 1 + r)
        missed = ("module", "circuit") if r < OF_DAMAGE else ()
        rows = _rows(asked, random, reference, asked.topics)
        weights.append(_seen(asked, random, reference, asked.topics, missed, rows))
        tick()
    return Nulls((parts,), tuple(weights))


def _random_parts(asked: Asked, tick: Tick) -> Observed:
    """All random parts as the topics of one observation: DRAWS of every size that a topic has."""
    sizes: dict[Size, Topic] = {}
    for t in asked.topics:
        sizes.setdefault(size_of(t), t)
    of_size = tuple(sizes.values())
    drawn = [
        [replace(t, name=f"{t.name}, drawn {r}") for t in random_parts(asked.model, asked.circuit, of_size, seed)]
        for r, seed in enumerate(range(asked.seed + 1, asked.seed + 1 + asked.draws))
    ]
    rows = _rows(asked, asked.model, asked.reference, [t for some in drawn for t in some])
    seen = []
    for r, some in enumerate(drawn):
        missed = KINDS if r < OF_DAMAGE else ()
        seen.append(_seen(asked, asked.model, asked.reference, some, missed, rows))
        tick()
    return Observed(
        asked.sample, tuple(t for o in seen for t in o.topics), np.concatenate([o.activity for o in seen]), "",
        np.concatenate([o.damage for o in seen]),
    )  # fmt: skip


_known: dict[tuple[str, str, str, int], Reference | str] = {}  # means of random copies, of one model at a time


def _reference(asked: Asked, random: nn.Module, seed: int) -> Reference | str:
    """What ablated nodes send in a random copy; found once for all circuits of a run that one process explains."""
    key = (asked.run.digest, asked.kind, asked.granularity, seed)
    if key not in _known:
        for old in [k for k in _known if k[0] != key[0]]:
            del _known[old]
        _known[key] = _found(asked, random)
    return _known[key]


def _found(asked: Asked, random: nn.Module) -> Reference | str:
    if asked.kind != "mean":
        return reference_of(asked.run, random, asked.kind)
    batches = list(asked.run.subject.reference_inputs())
    return patching.mean_reference(random, batches[: -(-len(batches) // SHARE)])


Rows = dict[str, np.ndarray]  # name of a topic -> its activity or damage


def _rows(asked: Asked, model: nn.Module, reference: Reference | str, topics: Sequence[Topic]) -> Rows:
    """The activity of nodes and modules in the whole model."""
    whole = [t for t in topics if t.kind != "circuit"]
    seen = activities(model, None, reference, whole, asked.examples, asked.seed)
    return {t.name: row for t, row in zip(whole, seen, strict=True)}


def _seen(
    asked: Asked,
    model: nn.Module,
    reference: Reference | str,
    topics: Sequence[Topic],
    missed: Sequence[str],
    rows: Rows,
) -> Observed:
    """Topics of a null, in their order: nodes and modules in the whole model, circuits alone.

    missed  the kinds of topics whose damage is measured; of others it is nan
    rows    see `_rows`
    """
    graph, there = patching.graph_of(model), patching.support(model)
    lost = [t for t in topics if t.kind in missed and t.kind != "circuit"]
    damage = dict(
        zip([t.name for t in lost], damages(model, None, reference, lost, asked.examples, asked.seed), strict=True)
    )
    alone: Rows = {}
    for t in topics:
        if t.kind == "circuit":
            masks = {s: m.clone() for s, m in asked.circuit.nodes.items()}
            for s in graph.prunable:
                if s.kind != "input":
                    masks[s.name][:] = False
            for site, i in t.nodes:
                masks[site][i] = True
            circuit = Circuit.from_nodes(graph, masks, there)
            (alone[t.name],) = activities(model, circuit, reference, [t], asked.examples, asked.seed)
            if t.kind in missed:
                (damage[t.name],) = damages(model, circuit, reference, [t], asked.examples, asked.seed)
    unknown = np.full(len(asked.examples), np.nan, dtype=np.float32)
    return Observed(
        asked.sample, tuple(topics), np.stack([(alone if t.kind == "circuit" else rows)[t.name] for t in topics]), "",
        np.stack([damage.get(t.name, unknown) for t in topics]),
    )  # fmt: skip


__all__ = ["DRAWS", "OF_DAMAGE", "Asked", "steps", "tested"]
