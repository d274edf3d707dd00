"""The planted transformers at the granularity of heads and MLPs: which of these the planted circuit joins.

A head or an MLP writes a channel where a true edge into its write nodes does, and reads one where a true edge leaves
its read nodes. One joins another where it writes a channel that the other reads. All else (noise, decoys) is in no true
edge, though the same head may carry it.

Knows the wiring of transformers, and true circuits of single weights. Does not know methods.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from openwork import patching
from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.models import Transformer, at_granularity
from openwork.planted.case import Case, reference_of


def at_components(case: Case) -> Case:
    """The case with heads and MLPs as nodes, under the same ablation and target; UsageError where there are none."""
    if not isinstance(case.model, Transformer):
        raise UsageError(f'the planted case "{case.name}" is no transformer: its neurons or channels are its nodes.')
    model = at_granularity(case.model, "components")
    truth = Circuit.from_edges(patching.graph_of(model), joined(case), patching.support(model), case.truth.origin)
    size = sum(int(patching.graph_of(model).site(s.name).size) for s in patching.graph_of(model).prunable)
    reference = reference_of(model, case.task, case.ablation)
    return replace(case, model=model, truth=truth, reference=reference, size=size, moved={})


def joined(case: Case) -> dict[str, Tensor]:
    """Link between components -> bool [reader nodes, source nodes], the true edges."""
    assert isinstance(case.model, Transformer)
    c, true = case.model.config, case.truth.edges
    heads = c.d_model // c.d_head
    table = [patching.support(case.model)[e.name].any(1) for e in case.truth.graph.into("embed")]
    writes = {"input": torch.stack(table).any(0)[None]}  # component -> bool [nodes, channels]
    edges: dict[str, Tensor] = {}

    def reads(reader: str, channels: Tensor) -> None:
        for source, written in writes.items():
            edges[f"{source}>{reader}"] = (channels[:, None] & written[None]).any(-1)

    for i in range(c.n_layer):
        a, m = f"block{i}.attn", f"block{i}.mlp"
        for part in "qkv":
            reads(f"a{i}.{part}", true[f"{a}.in>{a}.{part}"].unflatten(0, (heads, -1)).any(1))
        writes[f"a{i}"] = true[f"{a}.v>{a}.write"].unflatten(1, (heads, -1)).any(2).T
        reads(f"m{i}", true[f"{m}.in>{m}.act"].any(0)[None])
        writes[f"m{i}"] = true[f"{m}.act>{m}.write"].any(1)[None]
    reads("logits", true["final.in>logits"].any(0)[None])
    return edges


__all__ = ["at_components", "joined"]
