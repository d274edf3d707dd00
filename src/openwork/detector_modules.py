"""The modules of a detector: whether its network has any, which attack each speaks for, and what it reads.

    RUN/detector/modules.json    the partition, a label for each module, and the evidence for both

A partition of the weights can always be found, also of noise, so modules are told only where the weights between
hidden neurons stay inside them more than in networks rewired at random, with as many weights to and from every neuron
(Maslov and Sneppen 2002), that are taken apart the same way. Where they do not, that is said and there are none.

Words are written on the explain split and tested on the verify split, each beside random neurons of the same number.
Knows a detector, its run and the stages by name. Does not know alerts.

Shapes: N flows, F features, C classes, k modules.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components

from openwork import stats, structure
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Evidence
from openwork.detector import MODULES, VERSION, Detector, Modules, load_detector
from openwork.discover.modules import partition_of
from openwork.errors import UsageError
from openwork.explain.accounts.along import forward
from openwork.explain.words.predicates import execute
from openwork.explain.words.reading import Reading
from openwork.explain.words.rules import Rules
from openwork.explain.words.topic import Dossier, Observed, Sample, Topic
from openwork.export.parts import needed
from openwork.files import plain, read_json, write_json
from openwork.patching import graph_of
from openwork.runs import key_of, open_run
from openwork.structure import Labels, Wiring
from openwork.tasks.flows.prepared import Prepared

Record = dict[str, Any]

REWIRED = 99  # networks behind the first claim
SWAPS = 10  # tried per weight of each
DRAWS = 39  # random modules behind the others: p can be 0.025
ROWS = 100  # flows per class that are looked at
FEW = 20  # true alerts of a class, below which nothing is claimed of them
READS = 3  # columns that a label names
MOVES = 0.05  # share of what a module reads, below which a column is not named
ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Flows:
    """Some flows of a split, as many of each class as there are, up to ROWS: features [N, F] and classes [N]."""

    split: str
    x: np.ndarray
    y: np.ndarray


def find_detector_modules(at: Path, seed: int = 0) -> Record:
    """Looks for the modules of the detector in a run's folder (a job), writes modules.json and returns what it says.

    The partition is that of `openwork modules`: spectral, as many modules as the largest eigengap says.
    """
    began, run, d = time.monotonic(), open_run(at), load_detector(at, with_modules=False)
    prepared = Prepared(run.path / run.settings["data"])
    key = key_of(VERSION, run.digest, d.digest, prepared.facts["rows"], REWIRED, DRAWS, ROWS, seed)
    file = at / "detector" / MODULES
    if file.exists() and (have := read_json(file)).get("key") == key:
        return have
    found: Record = {
        "version": VERSION,
        "key": key,
        "model": run.digest,
        "detector": d.digest,
        "of": [],
        "modules": [],
        "evidence": None,
    }
    try:
        of = structure.wiring(graph_of(run.model))
        labels = partition_of(run.model, of, "spectral", None, seed)
    except UsageError as e:
        found["note"] = f"It has no modules to tell apart: {str(e).rstrip('.')}."
    else:
        evidence = modular(run.model, of, labels, seed)
        found |= {"evidence": vars(evidence), "note": evidence.sentence}
        if evidence.verdict == HOLDS:
            sites = [s.name for s in graph_of(run.model).sites if s.name in of.node_of]
            parts = of.partition(labels)
            found["of"] = [parts[s].tolist() for s in sites]
            sides = tuple(parts[s].numpy()[left] for s, left in zip(sites, needed(d.layers), strict=True))
            found["modules"] = said_of(d, sides, _flows(prepared, "explain"), _flows(prepared, "verify"), seed)
    found = plain(found | {"seconds": time.monotonic() - began})
    write_json(file, found)
    return found


def _flows(prepared: Prepared, split: str) -> Flows:
    y = np.asarray(prepared.labels(split)).astype(np.int64)
    of = [np.flatnonzero(y == c) for c in range(len(prepared.schema.classes))]
    at = np.sort(np.concatenate([i[np.linspace(0, len(i) - 1, min(len(i), ROWS)).astype(int)] for i in of if len(i)]))
    return Flows(split, prepared.features(split, at).astype(np.float64), y[at])


# -- whether there are modules -----------------------------------------------------------------------------------------


def modular(model: torch.nn.Module, of: Wiring, labels: Labels, seed: int = 0) -> Evidence:
    """Whether a partition [count] keeps more weight inside its modules than rewired networks: Newman's Q beside that of
    REWIRED of them, each taken apart into as many modules by the same way."""
    began, k = time.monotonic(), int(labels.max()) + 1
    weights = {n: w.detach().cpu().numpy() for n, w in structure.weights(model, of).items()}
    rng, drawn = np.random.default_rng(seed), []

    def graph(now: Mapping[str, np.ndarray]) -> Any:
        return structure.adjacency(of, {n: torch.from_numpy(np.abs(w)) for n, w in now.items()})

    own = graph(weights)
    q = structure.modularity(own, labels)
    for _ in range(REWIRED):
        now = graph({n: rewired(w, rng) for n, w in weights.items()})
        drawn.append(structure.modularity(now, structure.spectral(now, k, seed)))
    p = stats.rank_p(q, drawn)
    _, piece = connected_components(own, directed=False)
    pieces = int((np.bincount(piece) > 1).sum())
    crossing = structure.cross_edges(
        of, {n: torch.from_numpy(np.abs(w)) for n, w in weights.items()}, of.partition(labels)
    )
    total = sum(int((w != 0).sum()) for w in weights.values())
    joined = "one connected piece" if pieces == 1 else f"{pieces} connected pieces"
    beside = f"Newman's Q is {q:.2f}, that of {REWIRED} networks rewired at random {np.mean(drawn):.2f} (p {p:.2g})"
    sentence = (
        f"Its hidden neurons are {joined} and have {k} modules: {total - crossing} of {total} weights between neurons "
        f"stay inside them; {beside}."
        if p <= ALPHA
        else f"Its hidden neurons are {joined}, and no modules are told apart: the best {k} are no better than chance. "
        f"{beside}."
    )
    return Evidence(
        "modular", HOLDS if p <= ALPHA else FAILS, sentence, q, "Newman's Q", (float("nan"), float("nan")),
        "networks with as many weights to and from every neuron, rewired at random and taken apart the same way",
        float(np.mean(drawn)), p, of.count, "none: the weights alone", seed, time.monotonic() - began,
        {"modules": k, "pieces": pieces, "crossing": crossing, "weights": total},
    )  # fmt: skip


def rewired(weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A matrix [dst, src] with as many nonzero weights in every row and column, at random places: pairs of weights
    exchange their columns, SWAPS tries per weight (Maslov and Sneppen 2002)."""
    rows, columns = (i.tolist() for i in np.nonzero(weight))
    values, there = weight[rows, columns], set(zip(rows, columns, strict=True))
    for a, b in rng.integers(len(rows), size=(SWAPS * len(rows), 2)).tolist():
        new = (rows[a], columns[b]), (rows[b], columns[a])
        if new[0] in there or new[1] in there:
            continue
        there -= {(rows[a], columns[a]), (rows[b], columns[b])}
        there |= set(new)
        columns[a], columns[b] = columns[b], columns[a]
    out = np.zeros_like(weight)
    out[rows, columns] = values
    return out


# -- what each is for --------------------------------------------------------------------------------------------------


def said_of(d: Detector, sides: Sequence[np.ndarray], made_on: Flows, tested_on: Flows, seed: int = 0) -> list[Record]:
    """What is said of each module, as plain data.

    sides    per hidden layer of `d.exact`, the module of every neuron
    label    for which attack it speaks, and the columns that it reads most
    text     where it speaks, a rule of the author `rules`; `predicate` is the same to be run
    evidence  `carries`: that it carries more of this attack's evidence than random neurons; `its_own`: that without it
              alerts of this attack end rather than those of others; `told`: that the rule says where it speaks
    """
    rng = np.random.default_rng(seed)
    own, classes = taken_apart(d, sides), d.schema.classes
    random = [taken_apart(d, [rng.permutation(s) for s in sides]) for _ in range(DRAWS)]
    attacks = _attacks(own, made_on)
    now, by_chance = lost(own, tested_on), np.stack([lost(r, tested_on) for r in random])
    spoken = {a: _spoken(own, a, tested_on.x) for a in sorted(set(attacks))}
    at_random = {a: np.stack([_spoken(r, a, tested_on.x) for r in random]) for a in sorted(set(attacks))}
    author, sample, held, out = Rules(), _sample(d, made_on), Reading(_sample(d, tested_on)), []
    for m, a in enumerate(attacks):
        topic = Topic(f"module {m}", "module", ())
        activity = _spoken(own, a, made_on.x)[None, :, m]
        words = author(Dossier({}, Observed(sample, (topic,), activity, "log-odds", np.zeros_like(activity)), topic))
        expected = execute(words.predicate, held) if words.predicate else None
        reads = _reads(own, m, a, made_on)
        named = [r["column"] for r in reads[:READS] if r["share"] >= MOVES]
        label = f"for {classes[a]}: {', '.join(named)}" if named else "adds nothing by itself"
        true = _true(own, tested_on, a)
        evidence = (
            _carries(classes[a], own, a, spoken[a][:, m], at_random[a][:, :, m], true, tested_on, seed),
            _its_own(classes[a], a, now[m], by_chance[:, m], int(true.sum()), tested_on, seed),
            _told(expected, spoken[a][:, m], at_random[a][:, :, m], tested_on, seed),
        )
        out.append({
            "name": topic.name, "label": label, "attack": classes[a],
            "neurons": [int((s == m).sum()) for s in sides], "reads": reads, "text": words.text,
            "predicate": dict(words.predicate), "evidence": [vars(e) for e in evidence],
        })  # fmt: skip
    return out


def taken_apart(d: Detector, sides: Sequence[np.ndarray]) -> Detector:
    """The detector with other modules: of each hidden layer of `d.exact`, the module of every neuron."""
    names = tuple(f"module {m}" for m in range(1 + max(int(s.max()) for s in sides)))
    whole = [np.zeros(len(b), dtype=np.int64) for _, b in d.layers[:-1]]
    for of, left, side in zip(whole, needed(d.layers), sides, strict=True):
        of[left] = side
    return replace(d, modules=Modules(tuple(whole), names, names, ((),) * len(names), ""))


def lost(d: Detector, flows: Flows) -> np.ndarray:
    """[k, C]: of the true alerts of a class, the share that are none any more where a module's neurons have the values
    of the typical flow; nan where there are none."""
    assert d.modules is not None and d.sides is not None
    rest, h = [], d.start[None]
    for w, b in d.exact[:-1]:
        h = np.maximum(h @ w.T + b, 0)
        rest.append(h)
    out = np.full((len(d.modules.names), len(d.schema.classes)), np.nan)
    for m in range(len(out)):
        h = flows.x
        for (w, b), side, typical in zip(d.exact[:-1], d.sides, rest, strict=True):
            h = np.where(side == m, typical, np.maximum(h @ w.T + b, 0))
        ends = d.decision.decide(h @ d.exact[-1][0].T + d.exact[-1][1]) == 0
        for c in range(1, out.shape[1]):
            if (true := _true(d, flows, c)).any():
                out[m, c] = ends[true].mean()
    return out


def _true(d: Detector, flows: Flows, attack: int) -> np.ndarray:
    """Which flows [N] of an attack are alerts of it."""
    return (d.decision.decide(forward(d.exact, flows.x)) == attack) & (flows.y == attack)


def _spoken(d: Detector, attack: int, x: np.ndarray) -> np.ndarray:
    """What the paths within each module add to the evidence for an attack, [N, k]."""
    return np.diagonal(d.ways(x, np.full(len(x), attack)).pairs, axis1=1, axis2=2)


def _attacks(d: Detector, flows: Flows) -> list[int]:
    """Per module, the attack to whose flows it adds most on average."""
    there = [c for c in range(1, len(d.schema.classes)) if (flows.y == c).any()]
    means = np.stack([_spoken(d, c, flows.x[flows.y == c]).mean(0) for c in there])
    return [there[i] for i in means.argmax(0).tolist()]


def _reads(d: Detector, module: int, attack: int, flows: Flows) -> list[Record]:
    """Columns by what the paths within a module make of them on the flows of an attack, largest first: the mean they
    `add`, and the `share` of its size."""
    assert d.sides is not None
    x = flows.x[flows.y == attack]
    kept = d.ways(x, np.full(len(x), attack)).slopes[module] * (d.sides[0] == module)
    by = d.by_column((kept @ d.exact[0][0]) * (x - d.start)).mean(0)
    total = float(np.abs(by).sum())
    order = [int(i) for i in np.argsort(-np.abs(by), kind="stable") if by[i] != 0]
    names = [c.name for c in d.schema.columns]
    return [{"column": names[i], "share": abs(float(by[i])) / total, "adds": float(by[i])} for i in order]


def _sample(d: Detector, flows: Flows) -> Sample:
    """Flows without their classes: a rule that named the right answer would say nothing of what a module reads."""
    asked = np.zeros(len(flows.y), dtype=np.int64)
    return Sample(flows.split, asked=asked, features=flows.x.astype(np.float32), names=d.schema.features)


def _carries(
    attack: str, d: Detector, of: int, spoken: np.ndarray, at_random: np.ndarray, true: np.ndarray, flows: Flows,
    seed: int,
) -> Evidence:  # fmt: skip
    """That a module carries more of what the true alerts of an attack add to a typical flow's evidence than as many
    random neurons do."""
    n = int(true.sum())
    ways = d.ways(flows.x[true], np.full(n, of))
    total = float((ways.after - ways.before).sum())
    if n < FEW or total <= 0:
        return _too_few("carries", attack, n, "share of the evidence", flows, seed)
    own, drawn = float(spoken[true].sum()) / total, at_random[:, true].sum(1) / total
    p = stats.rank_p(own, drawn)
    sentence = (
        f"It carries {100 * own:.0f} % of the evidence of {n} true alerts of {attack}; as many random neurons carry "
        f"{100 * float(drawn.mean()):.0f} % (p {p:.2g})."
    )
    return _evidence("carries", p, sentence, own, "share of the evidence", float(drawn.mean()), n, flows, seed)


def _its_own(
    attack: str, of: int, ended: np.ndarray, by_chance: np.ndarray, n: int, flows: Flows, seed: int
) -> Evidence:
    """That without a module the alerts of its attack end and others do not, more than without random neurons.

    ended, by_chance  [C] and [DRAWS, C], as `lost` gives them
    """
    unit = "share of alerts, less the mean of other attacks"
    others = [c for c in range(1, len(ended)) if c != of and not np.isnan(ended[c])]
    if n < FEW or not others:
        return _too_few("its_own", attack, n, unit, flows, seed)
    elsewhere = float(ended[others].mean())
    own, drawn = float(ended[of]) - elsewhere, by_chance[:, of] - by_chance[:, others].mean(1)
    p = stats.rank_p(own, drawn)
    sentence = (
        f"Without it {100 * ended[of]:.0f} % of {n} true alerts of {attack} end and {100 * elsewhere:.0f} % of the "
        f"others; without as many random neurons {100 * by_chance[:, of].mean():.0f} % and "
        f"{100 * by_chance[:, others].mean():.0f} % (p {p:.2g})."
    )
    return _evidence("its_own", p, sentence, own, unit, float(drawn.mean()), n, flows, seed)


def _told(expected: np.ndarray | None, spoken: np.ndarray, at_random: np.ndarray, flows: Flows, seed: int) -> Evidence:
    """That the rule ranks flows as the module does, more than as random modules of the same size do."""
    unit, n = "rank correlation", len(spoken)
    if expected is None or np.ptp(expected) == 0 or np.ptp(spoken) == 0:
        return _evidence("told", 1.0, "No rule says where it speaks.", float("nan"), unit, float("nan"), n, flows, seed)
    rho = stats.spearman(expected, spoken)
    drawn = np.array([stats.spearman(expected, r) if np.ptp(r) > 0 else 0.0 for r in at_random])
    p = stats.rank_p(rho, drawn)
    sentence = (
        f"Its rule ranks {n:,} held-out flows as it does with a correlation of {rho:.2f}; for as many random neurons "
        f"{float(drawn.mean()):.2f} (p {p:.2g})."
    )
    return _evidence("told", p, sentence, rho, unit, float(drawn.mean()), n, flows, seed)


def _evidence(
    claim: str, p: float, sentence: str, value: float, unit: str, null: float, n: int, flows: Flows, seed: int
) -> Evidence:
    span, beside = (float("nan"), float("nan")), "random neurons of the same number in every layer"
    verdict = HOLDS if p <= ALPHA else FAILS
    return Evidence(claim, verdict, sentence, value, unit, span, beside, null, p, n, flows.split, seed, 0.0)


def _too_few(claim: str, attack: str, n: int, unit: str, flows: Flows, seed: int) -> Evidence:
    said = f"There are {n} true alerts of {attack}, too few to tell."
    nan = float("nan")
    return Evidence(claim, UNDECIDED, said, nan, unit, (nan, nan), "", nan, nan, n, flows.split, seed, 0.0)


__all__ = ["find_detector_modules", "lost", "modular", "rewired", "said_of", "taken_apart"]
