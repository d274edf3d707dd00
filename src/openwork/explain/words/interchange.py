"""Interchange interventions: runs of examples with a topic's activity taken from another example.

Runs the circuit, everything outside it at the reference, on a base example; the topic's nodes send, position by
position, what they send when the circuit runs on the source (activation patching inside a circuit; Geiger et al. 2021,
arXiv 2106.02997). Knows a model, a circuit, a fixed reference and a split. Does not know explanations.

Shapes: K topics, P pairs, N examples, V outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from openwork import patching
from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain.words.scoring import Interchanges
from openwork.explain.words.topic import Topic
from openwork.patched_run import another
from openwork.patching import Reference, patched
from openwork.tasks.task import Inputs, Split

BATCH = 128  # pairs run at once


def interchanges(
    model: nn.Module,
    circuit: Circuit,
    reference: Reference,
    topics: Sequence[Topic],
    split: Split,
    seed: int = 0,
    most: int = 256,
    tick: Callable[[], None] = lambda: None,
) -> Interchanges:
    """What every topic's patch does to the output, on at most `most` pairs of examples of equal length.

    reference  what ablated nodes send: one value per node
    tick       called after every topic

    Half of the pairs, where there are so many, are an example and its counterpart, half are two examples that fate has
    put together, which may share their answer. Shift: see `Interchanges`; in the logits of the circuit. UsageError
    where no two examples are equally long.
    """
    base, source = _pairs(split, seed, most)
    if not len(base):
        raise UsageError(f'no two examples of the split "{split.name}" are equally long, so none can be interchanged.')
    device = next(model.parameters()).device
    nodes, edges = patching.masks_of(model, circuit)
    graph = circuit.graph
    of, towards, fixed = _axis(split, base, source)
    off = [_off(circuit, t) for t in topics]
    sites = sorted({s for t in topics for s, _ in t.nodes}, key=[s.name for s in graph.sites].index)
    shift = torch.zeros(len(topics), len(base))

    def contrast(inputs: Inputs, at: Tensor) -> Tensor:
        logits = model(*inputs).float().cpu()
        return (logits.gather(1, towards[at, None]) - logits.gather(1, of[at, None])).squeeze(1)

    parts = torch.arange(len(base)).split(BATCH)
    with torch.no_grad():
        for at in parts:
            mine, theirs = (tuple(x[i[at]].to(device) for x in split.inputs) for i in (base, source))
            with patched(model, reference, nodes, edges):
                sent = patching.record(model, theirs, sites)
                before = contrast(mine, at)
            for k, mask in enumerate(off):
                # the patch is hooked first: the circuit's own masks then see the patched activity and leave it
                with patched(model, sent, mask), patched(model, reference, nodes, edges):
                    shift[k, at] = contrast(mine, at) - before
                if at is parts[-1]:
                    tick()
    return Interchanges(tuple(topics), base.numpy(), source.numpy(), shift.double().numpy(), fixed)


def _off(circuit: Circuit, topic: Topic) -> dict[str, Tensor]:
    """Masks that are 0 at the topic's nodes."""
    out: dict[str, Tensor] = {}
    for site, index in topic.nodes:
        out.setdefault(site, torch.ones(circuit.graph.site(site).size))[index] = 0
    return out


def _axis(split: Split, base: Tensor, source: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Per pair the answer [P] from which and the one towards which a shift is counted; whether they are always the
    same two."""
    answers = torch.cat([split.answer[:, None], split.wrong], 1).cpu().sort(1).values
    if answers.shape[1] == 2 and bool((answers == answers[0]).all()):
        low, high = answers[base].unbind(1)
        return low, high, True
    right = split.answer.cpu()
    return right[base], torch.where(right[source] != right[base], right[source], split.wrong.cpu()[base, 0]), False


def _pairs(split: Split, seed: int, most: int) -> tuple[Tensor, Tensor]:
    """Bases and sources [P], equally long: counterparts and others in turn, each pair once, in a random order."""
    n = len(split)
    tokens = len(split.inputs) == 2 and not split.inputs[0].is_floating_point()
    length = split.inputs[1].cpu() if tokens else torch.zeros(n, dtype=torch.long)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    other, pair = another(split, seed).tolist(), split.pair.tolist()
    chosen: dict[tuple[int, int], None] = {}
    for i in order:
        for j in (pair[i], other[i]):
            if j >= 0 and j != i and length[i] == length[j] and len(chosen) < most:
                chosen[i, j] = None
    found = torch.tensor(list(chosen), dtype=torch.long).reshape(-1, 2)
    return found[:, 0], found[:, 1]


__all__ = ["interchanges"]
