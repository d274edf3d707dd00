"""Circuits to and from other programs' files: a run's circuit written, one found elsewhere read and judged here.

Knows run folders and the formats by name (see `exchange`). Does not know what stands in them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from openwork import patching, store
from openwork.circuit import Circuit
from openwork.errors import UsageError, unknown
from openwork.exchange import attribution_graph, read_eap_ig, to_eap_ig
from openwork.patched_run import PatchedRun
from openwork.runs import (
    GRANULARITIES,
    IN_WORDS,
    Run,
    circuit_folder,
    judged,
    keep,
    key_of,
    open_run,
    reference_of,
    slug_of,
)

Result = dict[str, Any]
FORMATS = ("eap-ig", "attribution-graph")
METHOD = "imported"


def export_circuit(path: Path, name: str, form: str, out: Path, example: int = 0) -> Result:
    """Writes a circuit of a run as one JSON file that other programs read.

    form     "eap-ig" (circuits of heads and MLPs) or "attribution-graph"
    example  of the explain split, on which an attribution graph is drawn
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    run = open_run(path)
    folder = circuit_folder(run, name)
    circuit = store.load_circuit(folder, run.digest)
    data = to_eap_ig(circuit) if form == "eap-ig" else _graph(run, folder, circuit, example)
    store.write_json(out, data)
    size = {k: len(data[k]) for k in ("nodes", "edges", "links") if k in data}
    return {"run": str(path), "circuit": folder.name, "format": form, "file": str(out), **size}


def _graph(run: Run, folder: Path, circuit: Circuit, example: int) -> Result:
    """The attribution graph of a circuit on one example; of single weights, every link has its weight."""
    result = store.read_json(folder / "result.json")
    split = run.task(result["task"]).split("explain")
    if not 0 <= example < len(split):
        raise UsageError(f"--example {example}: the explain split has {len(split)} examples, 0 to {len(split) - 1}.")
    model = GRANULARITIES[result.get("granularity", "weights")](run.model)
    asking = PatchedRun(model, reference_of(run, model, result.get("reference", "mean")))
    one = split.take(torch.tensor([example, *([int(split.pair[example])] if int(split.pair[example]) >= 0 else [])]))
    part = asking.parts(one, 1)[0]
    at = int((part.index == 0).nonzero()[0])
    with torch.no_grad():
        p = asking.logits(part, *patching.masks_of(model, circuit))[at].softmax(-1)
    decode = run.subject.decode()
    words = decode if decode is not None else str
    inputs = part.split.inputs
    is_text = len(inputs) == 2 and not inputs[0].is_floating_point() and decode is not None
    prompt = [words(int(t)) for t in inputs[0][at][: int(inputs[1][at]) + 1]] if is_text else [split.texts[example]]
    shown = [int(part.split.answer[at]), *(int(w) for w in part.split.wrong[at][:3])]
    weights = {
        e.name: w
        for e in circuit.graph.links
        if e.kind == "weight" and (w := patching.weight_of(model.get_submodule(e.module)).detach()).dim() == 2
    }
    answers = {i: (words(i), float(p[i])) for i in shown}
    return attribution_graph(circuit, prompt, answers, f"{folder.name}-{example}", run.digest[:12], weights)


def import_circuit(path: Path, file: Path, task: str, target: float, reference: str = "counterfactual") -> Result:
    """Reads a circuit that EAP-IG or MIB wrote for this run's model into the run, so that it can be verified here.

    target     task loss, nats, that the circuit is claimed to reach
    reference  what everything outside it sends
    """
    run = open_run(path)
    granularity = "components"
    model = GRANULARITIES[granularity](run.model)
    asking = PatchedRun(model, reference_of(run, model, reference))
    circuit, _ = read_eap_ig(file, asking.graph, asking.support)
    discover, held_out = (run.task(task).split(s) for s in ("discover", "verify"))
    figures = judged(asking, circuit, held_out) | {"status": "ok", "discover_loss": asking.loss(discover, circuit)}
    slug = f"{slug_of(task)}-{METHOD}_{granularity}"
    result: Result = {
        "key": key_of(run.digest, METHOD, file.name, store.files.sha256(store.files.read_bytes(file)), task, reference),
        "task": task, "method": METHOD, "labels": "right", "target": target, "seed": 0, "status": "ok",
        "full_loss": asking.loss(discover), "loss_reached": figures["discover_loss"], "model": run.digest,
        "answers": 1 + discover.wrong.shape[1], "reference": reference, "granularity": granularity, "circuit": slug,
        "node_based": figures, "edge_pruned": figures, "whole": judged(asking, None, held_out), "search": [],
        "searched": circuit.counts(), "seconds": 0.0, "cpu_seconds": 0.0,
    }  # fmt: skip
    said = run.reference_over if reference == "mean" else IN_WORDS[reference]
    circuit = circuit.with_origin(model=run.digest, task=task, labels="right", reference=said)
    keep(path / "circuits" / slug, circuit, {"result.json": result})
    return {"run": str(path), **result}


__all__ = ["FORMATS", "export_circuit", "import_circuit"]
