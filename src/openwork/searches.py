"""Searching again: where there is nothing to find, with other seeds, and on halves of the data.

A circuit can be tested by itself (see `verify`); the search that found it can only be tested by repeating it. The same
method with the same settings is run on labels that mean nothing, on the opposite labels and on the same weights in
random order, where it should fail; and with other seeds and on either half of its examples, where it should find much
the same. Each repetition is a job with a folder of its own, and is not run twice.

Knows a run folder and the names of methods. Does not know how they search.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openwork import patching, store
from openwork.circuit import Circuit, Evidence
from openwork.discover import find, schema_of, trim
from openwork.errors import UsageError
from openwork.keeper import FolderKeeper
from openwork.patched_run import PatchedRun
from openwork.progress import Progress
from openwork.runs import (
    GRANULARITIES,
    Run,
    circuit_folder,
    done,
    judged,
    keep,
    key_of,
    method_of,
    open_run,
    reference_of,
    relabelled,
)
from openwork.transfer import METHOD as IMPORTED
from openwork.verify import control, stable
from openwork.verify.question import live_nodes
from openwork.workers import Job, map_jobs, report

Result = dict[str, Any]

CONTROLS = {"shuffled labels": "nonsense_control", "swapped labels": "swapped_control"}
RANDOM = "random weights"
AGAIN = ("seed + 1", "seed + 2", "first half", "second half")
VARIANTS = (*CONTROLS, RANDOM, *AGAIN)


def shuffled(model: nn.Module, seed: int) -> nn.Module:
    """A copy of a model with the entries of every matrix in random order: as sparse, and nothing learned."""
    model = copy.deepcopy(model)
    model.__dict__.pop("_openwork_graph", None)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for e in patching.graph_of(model).links:
            if e.kind == "weight":
                w = patching.weight_of(model.get_submodule(e.module))
                w.copy_(w.flatten()[torch.randperm(w.numel(), generator=rng)].view(w.shape))
    return model


def search_again(path: Path, name: str, variant: str) -> Result:
    """Repeats the search that found a circuit in one way (a job); returns its status, size and held-out loss.

    A killed search goes on from what it put away in its folder.
    """
    run = open_run(path)
    first = store.load_circuit(circuit_folder(run, name), run.digest)
    result = store.read_json(circuit_folder(run, name) / "result.json")
    folder = _folder(run, name, variant)
    key = key_of(result["key"], variant, "again")
    if (have := done(folder, key)) is not None:
        return have
    settings = dict(first.origin["settings"])
    if variant in ("seed + 1", "seed + 2"):
        settings["seed"] += int(variant[-1])
    settings["control"] = variant not in AGAIN
    way = method_of(result["method"])
    asked = schema_of(way)(**settings)
    task, labels = run.task(result["task"]), variant.split()[0] if variant in CONTROLS else "right"
    discover, held_out = (relabelled(task.split(s), labels, asked.seed) for s in ("discover", "verify"))
    if variant in ("first half", "second half"):
        discover = discover.halves()[variant == "second half"]
    model = _model(run, result, asked.seed if variant == RANDOM else None)
    reference = reference_of(run, model, result.get("reference", "mean"))
    label = f"{variant}: {name}"
    keeper = FolderKeeper(folder / ".part", key)
    found = find(model, reference, discover, way, asked, lambda now, total: report(label, now, total), keeper)
    out: Result = {"key": key, "variant": variant, "status": found.status, "examples": len(discover)}
    circuit: Circuit | None = None
    if found.circuit is not None:
        over = {"seed": asked.seed, "keeper": keeper}
        nodes = trim(model, found.circuit, reference, discover, asked.target, edges=False, **over).circuit
        circuit = trim(model, nodes, reference, discover, asked.target, **over).circuit
        circuit = circuit.with_origin(searched_again=variant)
        out |= judged(PatchedRun(model, reference, asked.seed), circuit, held_out)
    keep(folder, circuit, {"result.json": out})
    keeper.clear()
    return out


def _folder(run: Run, name: str, variant: str) -> Path:
    """Where a repetition is kept."""
    slug = variant.replace(" + ", "-plus-").replace(" ", "-")
    return run.path / "controls" / f"{circuit_folder(run, name).name}-{slug}"


def _model(run: Run, result: Result, shuffle: int | None = None) -> nn.Module:
    """The run's model at the granularity of a circuit's search; with a seed, its weights in random order."""
    model = run.model if shuffle is None else shuffled(run.model, shuffle)
    return GRANULARITIES[result.get("granularity", "weights")](model)


def repeat(
    path: Path, name: str, seed: int, workers: int, progress: Progress, variants: Sequence[str] = VARIANTS
) -> tuple[Evidence, ...]:
    """Evidence about the search that found a circuit: the controls, and whether it is stable.

    UsageError where no search found the circuit: there was none at the target, or it was imported.
    """
    run = open_run(path)
    folder = circuit_folder(run, name)
    result = store.read_json(folder / "result.json")
    if result["edge_pruned"]["status"] != "ok":
        raise UsageError(f'the search for "{name}" in {path} found no circuit, so there is none to find again.')
    if result["method"] == IMPORTED:
        raise UsageError(f'the circuit "{folder.name}" was imported: there is no search here to repeat.')
    jobs = [Job(f"{v}: {name}", search_again, (path, folder.name, v)) for v in variants]
    again = dict(zip(variants, map_jobs(jobs, workers, progress), strict=True))
    real, chance = result["edge_pruned"], math.log(result["answers"])
    evidence = []
    for variant, claim in {**CONTROLS, RANDOM: "random_weights_control"}.items():
        if variant in again:
            c = again[variant]
            evidence.append(
                control(
                    claim, real["edges"], real["loss"], c["status"], c.get("edges"), c.get("loss"),
                    n=result["whole"]["n"], chance=chance, seed=seed,
                )
            )  # fmt: skip
    repeated = [v for v in AGAIN if v in again]
    if repeated:
        circuits: list[Circuit | None] = [store.load_circuit(folder, run.digest)]
        for v in repeated:
            circuits.append(store.load_circuit(_folder(run, name, v)) if again[v]["status"] == "ok" else None)
        model = _model(run, result)
        evidence.append(
            stable(
                circuits, ("as found", *repeated), n=len(run.task(result["task"]).split("discover")), seed=seed,
                live=live_nodes(model), support=patching.support(model),
            )
        )  # fmt: skip
    return tuple(evidence)


__all__ = ["VARIANTS", "repeat", "search_again", "shuffled"]
