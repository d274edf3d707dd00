"""The modules of a trained model, in its run folder: which there are, whether they work apart, what each is for.

    RUN/modules/modules.json    every figure beside its chance level or its null; plain data
    RUN/modules/0/, 1/, ...     each module as a circuit (circuit.json, tensors.safetensors)

Both are replaced as one folder, so circuits and figures always speak of the same partition. A question that was
answered before, for the same weights, is not computed again. Structure is read off the weights without data; what
cutting and ablating does is measured on the verify split, which neither trained the model nor chose anything here.

Knows a run and the stages by name. Does not know how a partition is found, nor how a measure is computed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openwork import store, structure
from openwork.discover.modules import PARTITIONS, module_circuits, partition_of
from openwork.errors import RunError, UsageError, unknown
from openwork.files import plain
from openwork.gomory_hu import cut_tree, solver
from openwork.patching import graph_of
from openwork.runs import Result, Run, key_of, open_run
from openwork.structure import Floats, Labels, Wiring
from openwork.tables import cell
from openwork.tasks.subjects import OwnDataSubject
from openwork.training.data import held_out_figures
from openwork.verify.modules import Asked, hard_cut, on_off
from openwork.workers import report

VERSION = 1  # of modules.json
CLASSES = 20  # of a task, at most, for each to be asked about by itself
FOLDER, FIGURES = "modules", "modules.json"
TRAINED = "trained"
LEFT_BY = ("clusterability", "gomory_hu")  # regimes that leave a partition in the model's config.json
STRONGEST = 20  # edges between modules that are told one by one
ALL = "all"  # column of all examples, beside those of the classes
NULLS = ("values", "positions")


def find_modules(
    path: Path, modules: int | None = None, partition: str | None = None, draws: int = 20, seed: int = 0
) -> Result:
    """The modules of a run's model (a job): writes RUN/modules and returns what stands in modules.json.

    modules    how many; by default as many as training made, else as many as the largest eigengap says
    partition  "trained": the one that a regime left; "spectral" or "blocks": of the weights as they are. By default
               "trained" where there is one and it has that many modules, else "spectral"
    draws      random draws behind every null
    """
    run = open_run(path)
    try:
        of = structure.wiring(graph_of(run.model))
    except UsageError as e:
        raise UsageError(f"{path} cannot be taken apart into modules: {e}") from e
    way, labels, told = _partition(run, of, modules, partition, seed)
    asked = _asked(run)
    tree, folder = _tree_is_possible(), path / FOLDER
    key = key_of(VERSION, run.digest, way, labels, draws, seed, [a.split.texts for a, _ in asked], tree is None)
    if (have := _done(folder, key)) is not None:
        return have | {"run": str(path)}
    began, k = time.monotonic(), int(labels.max()) + 1
    total, done = len(NULLS) * draws + 2 * draws + draws, 0

    def tick() -> None:
        nonlocal done
        done += 1
        report(f"modules of {path.name}", done, total)

    weights = {n: w.detach() for n, w in structure.weights(run.model, of).items()}
    data, cpu = run.subject.training_data(32, 0), torch.device("cpu")

    def judge(model: nn.Module) -> tuple[float, float | None]:
        return held_out_figures(model, data, cpu, split="verify")

    parts = of.partition(labels)
    sizes = {n: structure.size(w) for n, w in weights.items()}
    between = structure.contraction(of, sizes, parts, k).double().numpy()
    cut = hard_cut(run.model, of, labels, judge, draws, seed, tick)
    result: Result = {
        "version": VERSION, "key": key, "run": str(path), "model": run.digest, "partition": way, "k": k,
        "chosen": told, "draws": draws, "seed": seed, "split": "verify",
        "groups": _groups(of, labels, k),
        "modules": _members(of, sizes, labels, between, k),
        "measures": _measures(of, weights, labels, way, draws, seed, tick),
        "cut": vars(cut) | {n: vars(b) for n, b in vars(cut).items() if hasattr(b, "median")},
        "interface_edges": cut.deleted,
        "interface": _interface(of, weights, sizes, parts),
        "between": between,
        "tree": _tree(between) if tree is None else None,
        "tree_note": tree,
        "task": next((name for _, name in asked if name), ""),
        "tasks": [
            {n: vars(v) if hasattr(v, "median") else v for n, v in vars(c).items()}
            for c in on_off(run.model, of, labels, run.reference, [a for a, _ in asked], draws, seed, tick)
        ],
    }  # fmt: skip
    result = plain(result | {"headline": headline(result), "seconds": time.monotonic() - began})
    origin = {
        "method": "modules", "settings": {"partition": way, "modules": k}, "seed": seed, "model": run.digest,
        "split": "none: the weights alone", "version": store.files.VERSION,
    }  # fmt: skip
    with store.new_folder(folder) as temp:
        for c, circuit in enumerate(module_circuits(run.model, of, labels, origin)):
            store.save_circuit(temp / str(c), circuit)
        store.write_json(temp / FIGURES, result)
    return result


def _done(folder: Path, key: str) -> Result | None:
    """What modules.json says, if it was made for this key and its circuits are there."""
    if not (folder / FIGURES).exists():
        return None
    have = store.read_json(folder / FIGURES)
    whole = all((folder / str(c) / "circuit.json").exists() for c in range(int(have.get("k", 0))))
    return have if have.get("key") == key and whole else None


def load_modules(path: Path) -> Result | None:
    """What modules.json of a run says; None where there is none."""
    at = path / FOLDER / FIGURES
    return store.read_json(at) if at.exists() else None


# -- which modules -----------------------------------------------------------------------------------------------------


def _partition(run: Run, of: Wiring, k: int | None, asked: str | None, seed: int) -> tuple[str, Labels, str]:
    """The partition's name, its labels, and how its number of modules was chosen, in words."""
    if asked is not None and asked not in (TRAINED, *PARTITIONS):
        raise unknown("partition", asked, (TRAINED, *PARTITIONS))
    left = _left(run, of)
    if asked == TRAINED and left is None:
        raise UsageError(
            f"{run.path} was trained without modules ({', '.join(LEFT_BY)}); choose --partition spectral or blocks."
        )
    if left is not None and (asked or TRAINED) == TRAINED:
        by, labels = left
        many = int(labels.max()) + 1
        if k in (None, many):
            return TRAINED, labels, f"as many as the regime {by} made"
        if asked == TRAINED:
            raise UsageError(
                f"{run.path} was trained with {many} modules, not {k}; leave out --modules or ask for --partition "
                "spectral."
            )
    way, told = asked or "spectral", "as asked"
    if k is None and left is not None:
        k, told = int(left[1].max()) + 1, f"as many as the regime {left[0]} made"
    elif k is None:
        told = f"the largest eigengap from 2 to {structure.MOST}"
    return way, partition_of(run.model, of, way, k, seed), told


def _left(run: Run, of: Wiring) -> tuple[str, Labels] | None:
    """The regime that left a partition, and its labels."""
    extra = store.files.read_model_header(run.path / "model").get("extra", {})
    for regime in LEFT_BY:
        noted = extra.get(regime, {}).get("modules")
        if noted:
            fits = all(len(noted.get(site, ())) == len(nodes) for site, nodes in of.node_of.items())
            if not fits or min(min(noted[site]) for site in of.node_of) < 0:
                raise RunError(f"the modules in {run.path / 'model' / 'config.json'} do not fit the model's nodes.")
            return regime, of.labels({site: torch.tensor(noted[site]) for site in of.node_of})
    return None


def _groups(of: Wiring, labels: Labels, k: int) -> list[Result]:
    """Per group of sites that share their nodes: their names, and how many of its nodes each module has."""
    out, begin = [], 0
    for count in of.groups:
        sites = [s for s, nodes in of.node_of.items() if begin <= int(nodes[0]) < begin + count]
        out.append({"sites": sites, "nodes": count, "sizes": np.bincount(labels[begin : begin + count], minlength=k)})
        begin += count
    return out


def _members(of: Wiring, sizes: Mapping[str, Tensor], labels: Labels, between: Floats, k: int) -> list[Result]:
    """Per module: its nodes, its edges inside and to other modules, and its share of all weight."""
    there = {n: (s != 0).float() for n, s in sizes.items()}
    edges = structure.contraction(of, there, of.partition(labels), k).numpy()
    volume = between.sum(1)
    return [
        {
            "module": c, "nodes": int((labels == c).sum()), "edges_inside": round(float(edges[c, c]) / 2),
            "edges_to_others": round(float(edges[c].sum() - edges[c, c])),
            "volume": float(volume[c] / volume.sum()) if volume.sum() > 0 else math.nan,
            "circuit": f"{FOLDER}/{c}",
        }
        for c in range(k)
    ]  # fmt: skip


# -- figures -----------------------------------------------------------------------------------------------------------


def _measures(
    of: Wiring, weights: Mapping[str, Tensor], labels: Labels, way: str, draws: int, seed: int, tick: Any
) -> list[Result]:
    """C, n-cut and Q, each with what it is by chance and beside both kinds of shuffled weights."""
    k = int(labels.max()) + 1
    again = (lambda _: labels) if way == "blocks" else (lambda graph: structure.spectral(graph, k, seed))
    beside = {null: structure.measured(of, weights, labels, again, null, draws, seed, tick) for null in NULLS}
    expected = structure.expected(of, labels)
    return [
        {
            "measure": m, "value": beside["values"][m].value, "expected": expected[m],
            **{null: {**vars(beside[null][m]), "z": beside[null][m].z} for null in NULLS},
        }
        for m in structure.MEASURES
    ]  # fmt: skip


def _interface(
    of: Wiring, weights: Mapping[str, Tensor], sizes: Mapping[str, Tensor], parts: structure.Partition
) -> list[Result]:
    """The strongest edges between modules by name; of a kernel its summed size, with the sign of its sum."""
    link = {e.name: e for e in of.links}
    out = []
    for e in structure.interface(of, sizes, parts, STRONGEST):
        sign = -1 if float(weights[e.link][e.dst, e.src].sum()) < 0 else 1
        ends = (f"{link[e.link].src}:{e.src}", f"{link[e.link].dst}:{e.dst}")
        out.append({"src": ends[0], "dst": ends[1], "modules": list(e.modules), "weight": sign * e.weight})
    return out


def _tree_is_possible() -> str | None:
    """Why there is no min-cut tree; None where there can be one."""
    try:
        solver()
    except UsageError as e:
        return str(e)
    return None


def _tree(between: Floats) -> list[Result]:
    """The min-cut tree over modules, edge by edge.

    cut      weight of the lightest cut between the modules on its two sides
    share    that, of all weight of the lighter side's nodes
    expected the same where nodes were joined in proportion to their weight, without modules: the other side's share
    """
    tree, volume = cut_tree(between), between.sum(1)
    out = []
    for c in range(1, len(between)):
        side = float(volume[tree.side(c)].sum())
        least, total = min(side, volume.sum() - side), float(volume.sum())
        known = least > 0
        out.append({
            "module": c, "parent": int(tree.parent[c]), "cut": float(tree.weight[c]),
            "share": float(tree.weight[c]) / least if known else math.nan,
            "expected": 1 - least / total if known else math.nan,
        })  # fmt: skip
    return out


def _asked(run: Run) -> list[tuple[Asked, str]]:
    """What is asked of every module, with the main task's name: each class of the main task where the subject is no
    text and its classes are few, else every task; nothing of a subject without tasks.

    Examples are those of the verify split.
    """
    names = run.subject.task_names()
    if names and isinstance(run.subject, OwnDataSubject) and len(run.task(names[0]).answers) <= CLASSES:
        task = run.task(names[0])
        split = task.split("verify")
        groups = {ALL: torch.arange(len(split))}
        groups |= {task.answers[y]: (split.answer == y).nonzero().flatten() for y in split.answer.unique().tolist()}
        return [(Asked(split, groups), task.name)]
    splits = {name: run.task(name).split("verify") for name in names}
    return [(Asked(s, {name: torch.arange(len(s))}), "") for name, s in splits.items() if len(s)]


# -- in words ----------------------------------------------------------------------------------------------------------


def headline(result: Mapping[str, Any]) -> str:
    """What deleting the weights between modules does, in one sentence, with both nulls."""
    c, k, draws = result["cut"], result["k"], result["draws"]
    accuracy = "accuracy_partitions" if c["accuracy_cut"] is not None else None

    def both(loss: float, share: float | None) -> str:
        return f"a loss of {loss:.2g}" if share is None else f"{loss:.2f} nats and {100 * share:.1f} % right"

    def null(of: str) -> str:
        share = c[f"accuracy_{of}"]["median"] if accuracy else None
        return f"{both(c[f'loss_{of}']['median'], share)} (p {c[f'loss_{of}']['p']:.2g})"

    what = (
        f"Without the {c['deleted']:,} of {c['of']:,} weights that join its {k} modules, the model goes from "
        f"{both(c['loss'], c['accuracy'])} to {both(c['loss_cut'], c['accuracy_cut'])}"
        if c["deleted"]
        else f"No weight joins its {k} modules, and the model has {both(c['loss'], c['accuracy'])}"
    )
    beside = f"random modules of the same sizes leave {null('partitions')}"
    if c["deleted"]:
        beside += f", as many random weights deleted {null('weights')}"
    return f"{what}; {beside}: medians of {draws} draws."


def shown(result: Result) -> Result:
    """The result with tables and notes for a person beside its data (see `tables.show_result`)."""
    k, draws, measures = result["k"], result["draws"], {m["measure"]: m for m in result["measures"]}
    sizes = [
        {"module": m["module"], **{group_name(g["sites"]): g["sizes"][m["module"]] for g in result["groups"]},
         "edges inside": m["edges_inside"], "edges to others": m["edges_to_others"], "share of weight": m["volume"]}
        for m in result["modules"]
    ]  # fmt: skip
    words = {"clusterability": "clusterability C", "ncut": "n-cut", "modularity": "Newman Q"}
    structural = [
        {"measure": words[m], "value": row["value"], "by chance": row["expected"],
         **{f"shuffled {n}": f"{cell(row[n]['mean'])} (z {cell(row[n]['z'])})" for n in NULLS}}
        for m, row in measures.items()
    ]  # fmt: skip
    c = result["cut"]
    cut: list[Result] = [
        {"": "whole model", "weights deleted": 0, "loss": c["loss"], "accuracy": c["accuracy"], "p": None},
        {"": "cut apart", "weights deleted": c["deleted"], "loss": c["loss_cut"], "accuracy": c["accuracy_cut"]},
    ]
    many = {"partitions": c["deleted_partitions"], "weights": c["deleted"]}
    for null, name in (("partitions", "random modules of the same sizes"), ("weights", "as many random weights")):
        loss, share = c[f"loss_{null}"], c[f"accuracy_{null}"]
        cut.append({
            "": name, "weights deleted": many[null], "loss": loss["median"],
            "range of loss": f"{cell(loss['low'])} to {cell(loss['high'])}",
            "accuracy": share["median"] if share else None, "p": loss["p"],
        })  # fmt: skip
    tables = {
        f"{k} modules ({result['partition']})": sizes,
        f"Structure, beside {draws} shuffles of each matrix": structural,
        "All weights between modules deleted": cut,
        f"Strongest of {result['interface_edges']:,} edges between modules": [
            {**e, "modules": f"{e['modules'][0]} to {e['modules'][1]}"} for e in result["interface"][:8]
        ],
        f"{result['task'] or 'Tasks'}: per cent right with only this module on": matrix(result, "on"),
        f"{result['task'] or 'Tasks'}: per cent right with this module off": matrix(result, "off"),
        "Min-cut tree over modules": result["tree"] or [],
    }
    outside, cells = far(result), 2 * len(result["tasks"])
    random_rows = (
        f"Random rows: median and range of {draws} random draws; those below a module are sets of as many nodes of "
        f"every layer. * marks an accuracy outside that range: {outside} of {cells}, by chance at most about "
        f"{2 * cells / (draws + 1):.2g}."
    )
    notes = [
        f"Number of modules: {result['chosen']}. Measured on the {result['split']} split.",
        *([random_rows] if cells else []),
        *([result["tree_note"]] if result["tree_note"] else []),
        result["headline"],
    ]
    return {**result, "tables": tables, "notes": notes}


def group_name(sites: list[str]) -> str:
    """Sites that share their nodes by the name of the first and the number of the others."""
    return sites[0] + (f" + {len(sites) - 1}" if len(sites) > 1 else "")


def matrix(result: Mapping[str, Any], mode: str) -> list[Result]:
    """Per cent right: one line per module and one for random nodes beside it, a column per task; mode "on" or "off"."""
    cells = result["tasks"]
    if not cells:
        return []
    names = list(dict.fromkeys(c["task"] for c in cells))
    of = {(c["module"], c["task"]): c for c in cells}
    rows: list[Result] = [{"module": "whole", **{n: f"{100 * of[0, n]['whole_accuracy']:.0f}" for n in names}}]
    for m in range(result["k"]):
        figures = {n: of[m, n][f"{mode}_accuracy"] for n in names}
        rows.append({"module": str(m), **{n: f"{100 * f['value']:.0f}{_star(f)}" for n, f in figures.items()}})
        rows.append({"module": "random", **{n: _range(f) for n, f in figures.items()}})
    return rows


def far(result: Mapping[str, Any]) -> int:
    """How many accuracies of the on/off matrix lie outside the range of all their random draws."""
    return sum(_star(c[f"{mode}_accuracy"]) == "*" for c in result["tasks"] for mode in ("on", "off"))


def _range(figure: Mapping[str, float]) -> str:
    low, high = (f"{100 * figure[end]:.0f}" for end in ("low", "high"))
    return f"{100 * figure['median']:.0f}" + (f" ({low}-{high})" if low != high else "")


def _star(figure: Mapping[str, float]) -> str:
    return "" if figure["low"] <= figure["value"] <= figure["high"] else "*"


__all__ = ["FIGURES", "FOLDER", "LEFT_BY", "VERSION", "find_modules", "headline", "load_modules", "matrix", "shown"]
