# ruff: noqa: E501
"""Run folders for the tests of views and dossiers: untrained models, circuits of them, the rest as a real run has it.

Texts hold what a careless page would trip over: markup, script ends, line separators.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openwork import files, models, patching, store
from openwork.circuit import Circuit, Evidence
from openwork.explain import build_dossier
from openwork.tasks.task import Split, Task

HOSTILE = "</script><img src=x onerror=alert(1)>"
TOKENS = [
    "\n", "\n    ", "    ", " ", "def", " return", " self", ".", ",", "(", ")", "):", "('", '("', "')", '")', "[", "]", " =", " ==", " in",
    " for", " if", " not", " None", " True", "import", " os", "name", " value", " items", "append", "print", "join", "format", "open",
    " 0", " 1", "_", "s", "x", "ing", "er", "path", "args", "**", "data", "key", "é", "\ufffd", "\u2028", HOSTILE, "<b>bold</b>",
    "<!--", "{{ 7*7 }}", "&amp;", '"><svg onload=alert(2)>',
]  # fmt: skip
QUOTE, DOUBLE = TOKENS.index("('"), TOKENS.index('("')
CLOSE, CLOSE_DOUBLE = TOKENS.index("')"), TOKENS.index('")')


def decode(token: int) -> str:
    """The text of a token."""
    return TOKENS[token]


def transformer(d_model: int, density: float, seed: int, n_layer: int = 2) -> nn.Module:
    """A transformer whose matrices keep a random share of their weights."""
    shape = {"n_layer": n_layer, "d_model": d_model, "d_head": 8, "n_ctx": 40, "d_mlp": 3 * d_model}
    return sparse_weights(models.build({"kind": "transformer", "vocab": len(TOKENS), **shape}, seed), density, seed)


def sparse_weights(model: nn.Module, density: float, seed: int) -> nn.Module:
    """The model with random weights, of which each matrix keeps a random share."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=g) * 0.6 * (torch.rand(p.shape, generator=g) < density))
            elif name.endswith("bias"):
                p.copy_(torch.randn(p.shape, generator=g) * 0.2)
    return model.eval()


def text(n: int, t: int, seed: int = 0) -> Tensor:
    """Windows of token ids, [n, t]."""
    return torch.randint(len(TOKENS), (n, t), generator=torch.Generator().manual_seed(seed))


def quote_task(name: str = "single_double_quote", n: int = 12, seed: int = 0) -> Task:
    """Close a string with the quote that opened it; pairs differ in the opening token."""
    g = torch.Generator().manual_seed(seed)
    length = 14
    tokens = torch.zeros(2 * n, length, dtype=torch.long)
    at = torch.zeros(2 * n, dtype=torch.long)
    for k in range(n):
        body = torch.randint(26, 49, (6 + k % 5,), generator=g)
        for side, quote in enumerate((QUOTE, DOUBLE)):
            row = torch.cat([torch.tensor([TOKENS.index("print"), quote]), body])
            tokens[2 * k + side, : len(row)] = row
            at[2 * k + side] = len(row) - 1
    sides = torch.arange(2 * n) % 2
    answer = torch.where(sides == 0, CLOSE, CLOSE_DOUBLE)
    wrong = torch.where(sides == 0, CLOSE_DOUBLE, CLOSE)[:, None]
    pair = torch.arange(2 * n) ^ 1
    texts = tuple("".join(decode(t) for t in row[: a + 1]) for row, a in zip(tokens.tolist(), at.tolist(), strict=True))
    split = Split("explain", (tokens, at), answer, wrong, pair, texts)
    return Task(name, "Close a string with the kind of quote that opened it.", {"explain": split}, ("')", '")'))


def grown_circuit(model: nn.Module, size: int, fan: int, seed: int, origin: dict[str, Any] | None = None) -> Circuit:
    """A connected circuit of about `size` nodes, grown from the answers down along strong weights, `fan` per node."""
    g = torch.Generator().manual_seed(seed)
    graph = patching.graph_of(model)
    nodes = {s.name: torch.zeros(s.size, dtype=torch.bool) for s in graph.prunable}
    answers = model.unembed.weight.detach()[[CLOSE, CLOSE_DOUBLE]].abs().sum(0)  # type: ignore[union-attr, index]
    queue = [("final.in", int(c)) for c in answers.topk(max(2, size // 40)).indices]
    while queue and sum(int(m.sum()) for m in nodes.values()) < size:
        site, i = queue.pop(0)
        if nodes[site][i]:
            continue
        nodes[site][i] = True
        if graph.site(site).kind == "value":
            for part in ("q", "k"):
                same_head = i // 8 * 8 + int(torch.randint(8, (1,), generator=g))
                queue.append((site.removesuffix("v") + part, same_head))
        for e in graph.into(site):
            if e.kind == "weight":
                row = patching.weight_of(model.get_submodule(e.module)).detach()[i].abs()
                best = row.topk(min(fan, len(row)))
                queue += [(e.src, int(c)) for c, w in zip(best.indices, best.values, strict=True) if w > 0]
            elif e.src in nodes and torch.rand((), generator=g) < 0.7:
                queue.append((e.src, i))
    return Circuit.from_nodes(graph, nodes, patching.support(model), origin)


def reference(model: nn.Module) -> dict[str, Tensor]:
    """The mean over some text."""
    tokens = text(8, 20, seed=9)
    return patching.mean_reference(model, [(tokens, torch.full((8,), 19))])


def evidence(task: str) -> tuple[Evidence, ...]:
    """One of each verdict, with and without the numbers that may be missing."""
    nan = float("nan")
    return (
        Evidence("sufficient", "holds", f"Alone, the circuit of {task} answers 0.16 nats from the target.", 0.162, "nats", (0.14, 0.19),
                 "random circuits of equal size per site", 0.693, 0.0004, 256, "verify", 0, 1.2),
        Evidence("necessary", "holds", "Without it the model answers at chance.", 0.781, "nats", (0.74, 0.83),
                 "as many nodes elsewhere", 0.092, 0.012, 256, "verify", 0, 1.0),
        Evidence("one_minimal", "fails", "3 of 80 nodes can go without harm.", 3, "nodes", (nan, nan), "no node can go", 0, nan, 80, "verify", 0, 4.0),
        Evidence("generalises", "too little data", f"Only 11 out-of-distribution prompts {HOSTILE}.", 0.31, "nats", (0.05, 0.9),
                 "the whole model", 0.12, 0.4, 11, "ood", 0, 0.2),
    )  # fmt: skip


def save(
    folder: Path, model: nn.Module, circuit: Circuit, task: Task, windows: int = 48, **more: Any
) -> dict[str, Any]:
    """Writes a circuit and its dossier as a run does, and returns the dossier."""
    store.save_circuit(folder, circuit)
    dossier = build_dossier(model, circuit, reference(model), task, text(windows, 40), decode, **more)
    files.write_text(folder / "dossier.json", json.dumps(dossier))
    return dossier


def comparison(run: Path) -> Path:
    """A comparison of three models on three tasks: one infeasible in the sparse model, one without evidence.

    The dense circuit of the first task has about 3,000 edges, the sparse one about 120.
    """
    sparse, dense, matched = transformer(96, 0.05, 1), transformer(64, 1.0, 2), transformer(32, 1.0, 3)
    names = ("single_double_quote", "bracket_counting", "set_or_string")
    rows = []
    for k, name in enumerate(names):
        task = quote_task(name, seed=k)
        row: dict[str, Any] = {"task": name, "target": 0.15, "nonsense": {"status": "ok", "nodes": 9, "edges": 9}}
        for model_name, model, size, fan in (
            ("sparse", sparse, 80 - 30 * k, 2),
            ("dense", dense, 250 - 60 * k, 4),
            ("dense_matched", matched, 160, 3),
        ):
            if (k, model_name) == (2, "sparse"):
                row[model_name] = {"status": "infeasible", "nodes": None, "edges": None, "loss": None, "accuracy": None}
                continue
            origin = {"task": name, "method": "masks", "model": store.model_digest(model)}
            circuit = grown_circuit(model, size, fan, 10 * k + 1, origin)
            if model_name == "sparse" and k < 2:
                circuit = circuit.with_evidence(*evidence(name))
            save(run / model_name / "circuits" / f"{name}-masks", model, circuit, task)
            c = circuit.counts()
            row[model_name] = {
                "status": "ok",
                "nodes": c["nodes"],
                "edges": c["edges"],
                "loss": 0.1617,
                "accuracy": 0.984,
            }
            if model_name != "dense_matched":
                pruned = {"nodes": c["nodes"], "edges": int(c["edges"] * 0.61), "loss": 0.1512, "accuracy": 1.0}
                row[f"{model_name}_edge_pruned"] = {"status": "ok", **pruned}
        rows.append(row)
    result = {
        "run": str(run), "page": str(run / "page.html"), "seconds": 522.3, "preset": "cpu", "seed": 0, "tasks": rows, "ratio_geomean": 18.53,
        "ratios": {
            "node_based": {"geomean": 18.53, "low": 12.1, "high": 27.9, "tasks": 3, "sparse_infeasible": [names[2]]},
            "edge_pruned": {"geomean": 11.2, "low": 7.9, "high": 15.2, "tasks": 3, "sparse_infeasible": [names[2]]},
            "matched_node_based": {"geomean": 46.0, "low": None, "high": None, "tasks": 1},
            "matched_edge_pruned": {"geomean": None, "low": None, "high": None, "tasks": 0},
            "node_pairs": {"geomean": 4.2, "low": 3.1, "high": 5.8, "tasks": 3},
            "density_alone": {"geomean": 18.1},
        },
        "evidence": [
            {"model": "sparse", "task": names[0], "claim": "nonsense_control", "verdict": "holds", "sentence": "Shuffled labels need 9 times more nodes.",
             "value": 702, "unit": "nodes", "interval": [None, None], "null": "the same search on shuffled labels", "null_value": 80.0,
             "p": None, "n": 256, "split": "verify"},
            *[{"model": "sparse", "task": n, "claim": e.claim, "verdict": e.verdict, "sentence": e.sentence} for n in names[:2] for e in evidence(n)],
        ],
        "models": {
            "sparse": {"held_out": 3.66, "verify_loss": 3.657, "block_nonzero": 19711, "block_total": 393216, "block_density": 0.0501},
            "dense": {"held_out": 3.43, "verify_loss": 3.424, "block_nonzero": 393216, "block_total": 393216, "block_density": 1.0},
            "dense_matched": {"held_out": 3.662, "verify_loss": 3.66, "block_nonzero": 393216, "block_total": 393216, "block_density": 1.0},
        },
    }  # fmt: skip
    files.write_json(run / "result.json", result)
    return run
