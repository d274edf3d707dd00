"""Whether the seeds of a run of detectors decide alike: figures, circuits' evidence and mechanisms, seed by seed.

A mechanism is told by what each column adds, on average, to the evidence of held-out flows of an attack (see
`detector`): with its sign, so that two detectors that use a column in opposite directions do not agree. Seeds are
compared by the rank correlation of these means over the columns that any of them uses, beside the same between
different attacks, and beside columns in random order. Knows a run's folders and its detectors. Does not know pages.

Shapes: S seeds, K columns, N flows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openwork import files, stats
from openwork.detector import Detector, load_detector
from openwork.tasks.flows.prepared import Prepared
from openwork.views.words import claim_words

Record = dict[str, Any]

ROWS = 200  # held-out flows of an attack that are looked at
FEW = 10  # flows of an attack, below which nothing is said of it
MAIN = 0.1  # share of what all columns add, in size, from which a column is named
SHUFFLES = 999  # of the columns
ALPHA = 0.05
FIGURES = ("accuracy", "detection_rate", "false_alarm_rate")


def compare_seeds(run: Path) -> Record | None:
    """The seeds of a finished run of detectors, as plain data; None where a network was trained once.

    rows       a record per sparse network: seed, FIGURES of the verify split, edges, modules, circuits with verdicts
    verdicts   per circuit that several seeds have, claims with the same verdict in all and claims without
    attacks    a record per attack, see `_attack`
    sentences  what follows
    """
    figures = files.read_json(run / "result.json")["figures"]
    at = {m: _folders(run, m) for m in ("sparse", "dense")}
    if len(at["sparse"]) < 2:
        return None
    rows = [_row(seed, folder, figures) for seed, folder in at["sparse"].items()]
    seeds = {m: {s: load_detector(f) for s, f in folders.items()} for m, folders in at.items()}
    means = {m: _mechanisms(of, Prepared(run / "data")) for m, of in seeds.items() if len(of) > 1}
    first = next(iter(seeds["sparse"].values()))
    attacks = [_attack(c, first, means) for c in means["sparse"]]
    told: Record = {"rows": rows, "verdicts": _verdicts(rows), "attacks": attacks, "rows_looked_at": ROWS}
    return told | {"sentences": _sentences(told, list(first.schema.classes[1:]))}


def _folders(run: Path, model: str) -> dict[int, Path]:
    """Seed -> its run folder."""
    found = {}
    for folder in (run / model, *(run / "more").glob(f"{model}-*")):
        if (folder / "detector" / "detector.json").is_file():
            found[int(files.read_yaml(folder / "run.yaml")["seed"])] = folder
    return dict(sorted(found.items()))


# -- figures and verdicts ----------------------------------------------------------------------------------------------


def _row(seed: int, at: Path, figures: Sequence[Mapping[str, Any]]) -> Record:
    mine = next((f for f in figures if f["model"] == "sparse" and f["seed"] == seed), None)
    verify = mine["splits"]["verify"] if mine else {}
    circuits = {}
    for folder in sorted((at / "circuits").glob("*")):
        if (folder / "circuit.json").is_file():
            header = files.read_circuit_header(folder)
            circuits[folder.name] = {
                "edges": header["counts"].get("edges"),
                "verdicts": {e["claim"]: e["verdict"] for e in header["evidence"]},
                "holding": [e["claim"] for e in header["evidence"] if e["verdict"] == "holds"],
            }
    modules = at / "detector" / "modules.json"
    return {
        "seed": seed, **{k: verify.get(k) for k in FIGURES}, "edges": mine["parts"] if mine else None,
        "modules": len(files.read_json(modules)["modules"]) if modules.is_file() else None, "circuits": circuits,
    }  # fmt: skip


def _verdicts(rows: Sequence[Record]) -> list[Record]:
    """Per circuit that several seeds have: in how many, and the claims with the same and with different verdicts."""
    names = sorted({c for r in rows for c, of in r["circuits"].items() if of["verdicts"]})
    out = []
    for name in names:
        each = [r["circuits"][name]["verdicts"] for r in rows if r["circuits"].get(name, {}).get("verdicts")]
        if len(each) < 2:
            continue
        shared = [c for c in each[0] if all(c in v for v in each)]
        same = [c for c in shared if len({v[c] for v in each}) == 1]
        out.append({"circuit": name, "seeds": len(each), "same": same, "other": [c for c in shared if c not in same]})
    return out


# -- mechanisms --------------------------------------------------------------------------------------------------------


def _mechanisms(seeds: Mapping[int, Detector], prepared: Prepared) -> dict[str, np.ndarray]:
    """Attack -> what each column adds to its evidence, mean over held-out flows of it: [S, K]."""
    y = np.asarray(prepared.labels("verify")).astype(np.int64)
    out = {}
    for i, attack in enumerate(prepared.schema.classes[1:], 1):
        at = np.flatnonzero(y == i)
        if len(at) < FEW:
            continue
        x = prepared.features("verify", at[np.linspace(0, len(at) - 1, min(len(at), ROWS)).astype(int)])
        out[attack] = np.stack([d.shares(x, np.full(len(x), i)).columns.mean(0) for d in seeds.values()])
    return out


def likeness(means: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Mean rank correlation of pairs of rows [S, K], over columns that any row uses; and its p, beside columns in
    random order, in every row by itself. nan and 1 where fewer than three columns are used."""
    used = means[:, (means != 0).any(0)]
    if len(used) < 2 or used.shape[1] < 3:
        return float("nan"), 1.0

    def mean(of: np.ndarray) -> float:
        return float(np.mean([_rank(a, b) for a, b in itertools.combinations(of, 2)]))

    rng = np.random.default_rng(seed)
    own, drawn = mean(used), [mean(rng.permuted(used, axis=1)) for _ in range(SHUFFLES)]
    return own, stats.rank_p(own, drawn)


def shared(means: np.ndarray) -> float:
    """How much of what columns add [S, K] two seeds share, mean over pairs: each seed's sizes made to sum to 1, the sum
    over columns of the smaller one where both have the same sign. 1: the same; 0: other columns or the other way."""
    of = means / np.maximum(np.abs(means).sum(1, keepdims=True), 1e-300)
    pairs = [np.minimum(np.abs(a), np.abs(b))[np.sign(a) == np.sign(b)].sum() for a, b in itertools.combinations(of, 2)]
    return float(np.mean(pairs)) if pairs else float("nan")


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation; 0 where one of them is the same everywhere."""
    return stats.spearman(a, b) if len(a) and np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


def _attack(attack: str, d: Detector, means: Mapping[str, Mapping[str, np.ndarray]]) -> Record:
    """How alike the seeds are on one attack.

    columns    those that make up MAIN of it in any sparse seed, most first, with what they add in each seed
    rank, p    of the sparse seeds, see `likeness`; dense_rank: of the dense ones
    shared     how much of what columns add two sparse seeds share, on average, see `shared`; dense_shared
    elsewhere  mean rank correlation between seeds on different attacks, over the columns that any of them uses
    least      the smallest rank correlation of a pair of sparse seeds
    same_way   whether every column named has the same sign in all sparse seeds
    """
    of = means["sparse"][attack]
    shares = np.abs(of) / np.maximum(np.abs(of).sum(1, keepdims=True), 1e-300)
    main = [int(i) for i in np.argsort(-shares.mean(0), kind="stable") if shares[:, i].max() >= MAIN]
    rank, p = likeness(of)
    dense = means.get("dense", {}).get(attack)
    used = of[:, (of != 0).any(0)]
    pairs = [_rank(a, b) for a, b in itertools.combinations(used, 2)]
    return {
        "attack": attack, "rank": rank, "least": min(pairs, default=float("nan")), "p": p,
        "shared": shared(of), "dense_rank": None if dense is None else likeness(dense)[0],
        "dense_shared": None if dense is None else shared(dense),
        "elsewhere": _elsewhere(attack, means["sparse"]),
        "columns": [{"column": d.schema.columns[i].name, "adds": of[:, i].tolist()} for i in main],
        "same_way": all(bool((np.sign(of[:, i]) == np.sign(of[0, i])).all()) for i in main),
    }  # fmt: skip


def _elsewhere(attack: str, means: Mapping[str, np.ndarray]) -> float | None:
    found, mine = [], means[attack]
    for other, of in means.items():
        if other == attack:
            continue
        used = (mine != 0).any(0) | (of != 0).any(0)
        found += [_rank(mine[i, used], of[j, used]) for i, j in itertools.permutations(range(len(mine)), 2)]
    return float(np.mean(found)) if found else None


# -- in words ----------------------------------------------------------------------------------------------------------


def agrees(attack: Mapping[str, Any]) -> bool:
    """Whether the seeds decide alike on an attack: ranks that chance does not give, and every main column one way."""
    return attack["p"] <= ALPHA and attack["same_way"]


def _sentences(told: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    attacks, seeds = told["attacks"], len(told["rows"])
    out = []
    if not attacks:
        out.append("No attack has enough held-out flows to tell whether the seeds decide alike.")
    elif all(agrees(a) for a in attacks):
        least, most = (f(100 * a["shared"] for a in attacks) for f in (min, max))
        out.append(
            f"The {seeds} seeds decide alike: for every attack they use the same main columns, each in the same "
            f"direction, and two seeds share {least:.0f} to {most:.0f} % of what the columns add. What is said of the "
            "first seed's main columns can be said of all; what is said of the others cannot."
        )
    else:
        bad = [a for a in attacks if not agrees(a)]
        good = ", ".join(a["attack"] for a in attacks if agrees(a))
        out.append(
            f"The {seeds} seeds do not decide alike on {', '.join(a['attack'] for a in bad)}"
            + (f", and do on {good}" if good else "")
            + ": what is said of the first seed's columns there holds of that training alone."
        )
        out += [_why(a) for a in bad]
    few = [c for c in classes if c not in {a["attack"] for a in attacks}]
    if few and attacks:
        out.append(f"Too few held-out flows to compare on {', '.join(few)}.")
    counts = [r["modules"] for r in told["rows"]]
    if None not in counts and any(counts):
        some = ", ".join(str(c) for c in counts)
        out.append(
            f"Their modules differ: the seeds have {some}."
            if len(set(counts)) > 1
            else f"Each has {counts[0]} modules."
        )
    for v in told["verdicts"]:
        of, same = len(v["same"]) + len(v["other"]), len(v["same"])
        differ = f"; {', '.join(claim_words(c) for c in v['other'])} differ" if v["other"] else ""
        out.append(f"Of {of} claims about {v['circuit']}, {same} have the same verdict in {v['seeds']} seeds{differ}.")
    without = [str(r["seed"]) for r in told["rows"] if not r["circuits"]]
    if without:
        out.append(
            f"No circuit was looked for with seed {', '.join(without)}: whether its circuits agree is not known."
        )
    return out


def _why(a: Mapping[str, Any]) -> str:
    signs = {c["column"]: set(np.sign(c["adds"]).tolist()) for c in a["columns"]}
    opposite = [c for c, of in signs.items() if {1.0, -1.0} <= of]
    some = [c for c, of in signs.items() if len(of) > 1 and c not in opposite]
    said = [f"{', '.join(some)} used by some seeds only"] if some else []
    said += [f"{', '.join(opposite)} in opposite directions"] if opposite else []
    said = said or ["no more alike than columns in random order"]
    return f"{a['attack']}: {'; '.join(said)} (shared {100 * a['shared']:.0f} %, rank correlation {a['rank']:.2f})."


__all__ = ["agrees", "compare_seeds", "likeness", "shared"]
