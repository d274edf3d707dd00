"""The dossier of a circuit: what each of its nodes does, as plain data.

For every kept node the texts (or images) on which it is highest and lowest, what it sends on a few prompts of the
task, and what the task loses without it; for every kept edge its weight. A page draws it and an explainer reads it;
neither needs the model any more.

Knows a model, a circuit, a task's explain split and some real text. Does not know how the circuit was found or whether
it holds. Activations are those of the whole, unablated model; effects are measured inside the circuit.

    nodes      kept nodes, and the input tokens, embedding channels and answers that they hang on
    edges      kept weights between them: all of the blocks, the unembedding's rows of the answers, and of the
               embedding the tokens in which paired prompts differ
    residual   where a write (or the embedding) meets a read on the same channel of the residual stream
    attends    query and key channels to the value channels of the same head, whose average they steer
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.graph import Graph, Link, Site
from openwork.patching import Layout, Reference, compact, graph_of, record, weight_of
from openwork.tasks.task import Split, Task
from openwork.tasks.task import losses as task_losses

VERSION = 1
MANY = 600  # nodes; a circuit with more gets contexts only for the FEW with the largest estimated effect
FEW = 300
REACH = 12  # tokens shown on either side of an extreme activation
SEQUENCES = 12_000  # (node, example) runs spent on effects: small circuits get all examples, large ones fewer
PAIRS = 3  # pairs of task prompts shown
INPUT_TOKENS = 12  # input tokens drawn
CHANNEL_TOKENS = 8  # strongest tokens told per embedding channel
FAR = 6  # named features told per example

Losses = Callable[[Tensor, Split], Tensor]  # logits, split -> nats per example
Decode = Callable[[int], str]
NodeId = tuple[str, int]  # site, index


def build_dossier(
    model: nn.Module,
    circuit: Circuit,
    reference: Reference,
    task: Task,
    text: Tensor | None,
    decode: Decode | None,
    losses: Losses = task_losses,
    split: str = "explain",
    top: int = 6,
    facts: Mapping[str, Any] | None = None,
    features: Sequence[str] = (),
) -> dict[str, Any]:
    """The dossier as JSON-ready data; see the head of this file.

    reference  what ablated nodes send, as for the circuit's other runs
    text       [n, T] windows of real text as token ids, never used to find the circuit; None for models of vectors,
               whose examples are the split's own inputs
    decode     token id -> its text; None for models of vectors
    losses     task loss per example, nats
    top        contexts per end of a node's range
    facts      anything about the model worth passing on, kept under "model"
    features   names of the inputs of a model of vectors, where these have names
    """
    graph = graph_of(model)
    examples = task.split(split)
    if len(examples) == 0:
        raise UsageError(f'task {task.name} has no examples in split "{split}"; a dossier needs some.')
    is_text = not examples.inputs[0].is_floating_point()
    if is_text and (text is None or decode is None):
        raise UsageError("a dossier of a model of tokens needs windows of text and a way to decode token ids.")
    name_of = decode if is_text and decode is not None else str

    drawing = _draw(model, graph, circuit, examples)
    kept = [(s, i) for s, i in drawing.nodes if graph.site(s).prunable]
    few = _some(examples, max(32, min(256, SEQUENCES // max(1, len(kept)))))
    layout = compact(model, circuit, reference)
    with torch.no_grad():
        whole = float(losses(model(*few.inputs), few).mean())
        base = float(losses(layout(*few.inputs), few).mean())
    effects = _effects(layout, few, losses, base)
    ranked = _told(layout, few, losses, kept)
    fixed = [(s, i) for s, i in drawing.nodes if graph.site(s).kind == "embed" and not graph.site(s).prunable]
    place = {node: k for k, node in enumerate(drawing.nodes)}
    told = sorted(ranked + fixed, key=place.__getitem__)  # site by site
    if not told:
        contexts, prompts, shown = {}, [], 0
    elif is_text:
        assert text is not None
        contexts, prompts, shown = _text_contexts(model, told, examples, text, name_of, top)
    else:
        contexts, prompts, shown = _vector_contexts(model, told, examples, top, task.said, features)

    nodes = []
    for s, i in drawing.nodes:
        site = graph.site(s)
        node: dict[str, Any] = {"id": _id(s, i), "site": s, "index": i, "kind": site.kind, "layer": site.layer}
        node["effect"] = _short(effects.get((s, i)))
        node["mean"] = _short(_mean(reference, s, i))
        node |= _labels(graph, circuit, model, s, i, name_of)
        if features and site.kind in ("input", "output"):
            named = site.kind == "output" or site.size == len(features)  # of images, a node is a channel of pixels
            node["label"] = (task.said(i) if site.kind == "output" else features[i]) if named else f"{s}:{i}"
        node |= contexts.get((s, i), {})
        nodes.append(node)
    return {
        "version": VERSION,
        "task": task.name,
        "about": task.about,
        "answers": [name_of(a) for a in drawing.answers] if is_text else list(task.answers),
        "split": split,
        "inputs": "tokens" if is_text else "features" if features else "vectors",
        "model": _model_facts(model, facts),
        "counts": circuit.counts(),
        "loss": {"circuit": _short(base), "model": _short(whole), "examples": len(few)},
        "contexts_for": {"nodes": len(ranked), "of": len(kept), "examples": shown},
        "sites": [
            {"name": s.name, "kind": s.kind, "layer": s.layer, "size": s.size, "kept": int(circuit.nodes[s.name].sum())}
            for s in graph.sites
        ],
        "prompts": prompts,
        "nodes": nodes,
        "edges": drawing.edges,
        "residual": drawing.residual,
        "attends": _attends(model, drawing.nodes, graph),
    }


# -- what is drawn ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawing:
    nodes: list[NodeId]  # in the order of the graph
    edges: list[dict[str, Any]]
    residual: list[dict[str, str]]
    answers: list[int]


def _draw(model: nn.Module, graph: Graph, circuit: Circuit, examples: Split) -> _Drawing:
    """The nodes and edges of the drawing; embedding channels and tokens only where the circuit reads them."""
    answers = sorted({*examples.answer.tolist(), *examples.wrong.flatten().tolist()})
    tokens = _telling_tokens(examples)
    links = [e for e in graph.links if e.kind == "weight"]
    embeds = [s.name for s in graph.sites if s.kind == "embed"]
    fed = {s: _fed(graph, circuit, s) for s in embeds}
    residual: list[tuple[NodeId, NodeId]] = []
    for e in graph.links:
        if e.kind != "sum" or graph.site(e.src).kind not in ("embed", "write"):
            continue
        alive = circuit.edges[e.name] & circuit.nodes[e.src] & circuit.nodes[e.dst]
        if e.src in fed:
            alive = alive & fed[e.src]
        residual += [((e.src, c), (e.dst, c)) for c in alive.nonzero().flatten().tolist()]
    read = {src for src, _ in residual}

    kept = {s.name: circuit.nodes[s.name].nonzero().flatten().tolist() for s in graph.prunable}
    found: set[NodeId] = {(s, i) for s, indices in kept.items() for i in indices}
    found |= read
    reached = frozenset(found)
    edges: list[dict[str, Any]] = []
    for e in links:
        for dst, src, w in _entries(model, circuit, e, answers, tokens):
            if e.counts == "embedding" and (e.dst, dst) not in reached:
                continue
            found |= {(e.src, src), (e.dst, dst)}
            edges.append({"src": _id(e.src, src), "dst": _id(e.dst, dst), "link": e.name, "weight": _short(w)})
    found |= {(s.name, a) for s in graph.sites if s.kind == "output" for a in answers}
    order = {s.name: k for k, s in enumerate(graph.sites)}
    return _Drawing(
        sorted(found, key=lambda n: (order[n[0]], n[1])),
        edges,
        [{"src": _id(*a), "dst": _id(*b)} for a, b in residual],
        answers,
    )


def _entries(
    model: nn.Module, circuit: Circuit, e: Link, answers: Sequence[int], tokens: Sequence[int]
) -> list[tuple[int, int, float]]:
    """Kept entries of a link as (dst, src, weight); of the embedding and unembedding only those that are drawn."""
    mask = circuit.edges[e.name].clone()
    if e.counts == "embedding":
        if e.src != "tokens":
            return []
        only = torch.zeros(mask.shape[1], dtype=torch.bool)
        only[list(tokens)] = True
        mask &= only[None, :]
    if e.counts == "unembedding":
        only = torch.zeros(mask.shape[0], dtype=torch.bool)
        only[list(answers)] = True
        mask &= only[:, None]
    weight = weight_of(model.get_submodule(e.module)).detach()
    dst, src = mask.nonzero(as_tuple=True)
    values = weight.cpu()[dst, src]
    if values.dim() > 1:  # a convolution: the size of the kernel
        values = values.flatten(1).norm(dim=1)
    return list(zip(dst.tolist(), src.tolist(), values.tolist(), strict=True))


def _fed(graph: Graph, circuit: Circuit, site: str) -> Tensor:
    """Channels [n] of an embedding site that keep at least one of their embedding weights."""
    rows = [circuit.edges[e.name].any(1) for e in graph.into(site) if e.kind == "weight"]
    return torch.stack(rows).any(0) if rows else torch.ones(graph.site(site).size, dtype=torch.bool)


def _telling_tokens(examples: Split) -> list[int]:
    """The tokens in which paired prompts differ, most frequent first, at most INPUT_TOKENS."""
    x = examples.inputs[0]
    if x.is_floating_point():
        return []
    has = (examples.pair >= 0).nonzero().flatten()
    if len(has) == 0:
        return []
    partner, at = examples.pair[has], _ends(examples)
    asked = torch.arange(x.shape[1], device=x.device)[None, :] <= torch.maximum(at[has], at[partner])[:, None]
    ids, counts = x[has][(x[has] != x[partner]) & asked].unique(return_counts=True)
    best = sorted(zip((-counts).tolist(), ids.tolist(), strict=True))[:INPUT_TOKENS]
    return sorted(i for _, i in best)


def _ends(examples: Split) -> Tensor:
    """The position [N] that is asked; the last one, where a model reads all tokens at once."""
    tokens, *at = examples.inputs
    return at[0] if at else torch.full((len(tokens),), tokens.shape[1] - 1)


def _attends(model: nn.Module, nodes: Sequence[NodeId], graph: Graph) -> list[dict[str, str]]:
    """Query and key nodes to the value nodes of their head, for models that say how wide a head is."""
    width = getattr(getattr(model, "config", None), "d_head", None)
    if not width:
        return []
    layer = {s.name: s.layer for s in graph.sites}
    kind = {s.name: s.kind for s in graph.sites}
    heads: dict[tuple[int, int], list[NodeId]] = {}
    for s, i in nodes:
        if kind[s] == "value":
            heads.setdefault((layer[s], i // width), []).append((s, i))
    return [
        {"src": _id(s, i), "dst": _id(*v)}
        for s, i in nodes
        if kind[s] in ("query", "key")
        for v in heads.get((layer[s], i // width), [])
    ]


def _labels(graph: Graph, circuit: Circuit, model: nn.Module, site: str, index: int, name_of: Decode) -> dict[str, Any]:
    """What a node is called beside its number: tokens for inputs, answers and embedding channels; its head."""
    s = graph.site(site)
    if s.kind in ("input", "output") and (s.kind == "output" or not s.module):
        return {"label": name_of(index)}
    width = getattr(getattr(model, "config", None), "d_head", None)
    if s.kind in ("query", "key", "value") and width:
        return {"head": index // width}
    if s.kind != "embed":
        return {}
    out: dict[str, Any] = {}
    for e in graph.into(site):
        if e.kind != "weight":
            continue
        row = weight_of(model.get_submodule(e.module)).detach().cpu()[index] * circuit.edges[e.name][index]
        best = torch.sort(row.abs(), descending=True, stable=True).indices[:CHANNEL_TOKENS].tolist()
        strong = [(k, float(row[k])) for k in best if row[k] != 0]
        if e.src == "tokens":
            out["tokens"] = [{"token": name_of(k), "id": k, "weight": _short(w)} for k, w in strong]
        else:
            out[e.src] = [{"index": k, "weight": _short(w)} for k, w in strong]
    return out


# -- effects ---------------------------------------------------------------------------------------------------------


def _effects(layout: Layout, examples: Split, losses: Losses, base: float) -> dict[NodeId, float]:
    """Change of the task loss, in nats, when one node alone is ablated inside the circuit."""
    out: dict[NodeId, float] = {}
    with torch.no_grad():
        for site, index in layout.node_index.items():
            mask = layout.nodes[site]
            for k, i in enumerate(index.tolist()):
                mask[k] = 0
                out[site, i] = float(losses(layout(*examples.inputs), examples).mean()) - base
                mask[k] = 1
    return out


def _told(layout: Layout, examples: Split, losses: Losses, kept: list[NodeId]) -> list[NodeId]:
    """The nodes that get contexts: all, or in a large circuit the FEW with the largest effect to first order.

    To first order ablating a node changes the loss by -dL/dm, with m its mask (attribution patching).
    """
    if len(kept) <= MANY:
        return list(kept)
    masks = [m.requires_grad_() for m in layout.nodes.values()]
    loss = losses(layout(*examples.inputs), examples).mean()
    grads = torch.autograd.grad(loss, masks, allow_unused=True)
    size: dict[NodeId, float] = {}
    for (site, index), g in zip(layout.node_index.items(), grads, strict=True):
        values = torch.zeros(len(index)) if g is None else g.abs().cpu()
        size |= {(site, i): v for i, v in zip(index.tolist(), values.tolist(), strict=True)}
    best = set(sorted(kept, key=lambda n: -size[n])[:FEW])
    return [n for n in kept if n in best]


def _some(examples: Split, n: int) -> Split:
    """About the first n examples, pairs whole."""
    chosen: dict[int, None] = {}
    for i, partner in enumerate(examples.pair.tolist()):
        if len(chosen) >= n:
            break
        chosen[i] = None
        if partner >= 0:
            chosen[partner] = None
    return examples.take(torch.tensor(list(chosen)))


# -- contexts --------------------------------------------------------------------------------------------------------

Told = tuple[dict[NodeId, dict[str, Any]], list[dict[str, Any]], int]  # per node, the shared prompts, examples read


def _text_contexts(
    model: nn.Module, told: list[NodeId], examples: Split, text: Tensor, name_of: Decode, top: int, batch: int = 16
) -> Told:
    """Extremes on real text, and activations on a few paired prompts.

    Text is read once, in batches; per node only the best windows so far are held.
    """
    sites = list(dict.fromkeys(s for s, _ in told))
    high, low = _Best(4 * top), _Best(4 * top)
    for at in range(0, len(text), batch):
        rows = text[at : at + batch]
        acts = _spread(_columns(record(model, (rows,), sites), told), rows)  # [B, T, N]
        high.add(acts, at)
        low.add(-acts, at)
    prompts, task_acts = _prompts(model, told, sites, examples, name_of)
    ids = text.tolist()
    strings: dict[int, str] = {}
    out = {}
    for n, node in enumerate(told):
        out[node] = {
            "top": high.contexts(n, ids, strings, name_of, top, 1.0),
            "bottom": low.contexts(n, ids, strings, name_of, top, -1.0),
            "task": [{"prompt": k, "acts": _list(a[:, n])} for k, a in enumerate(task_acts)],
        }
    return out, prompts, len(text)


class _Best:
    """The windows of text with the largest activation so far, for every node at once; one per sequence."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.value = torch.empty(0)  # [k, N]
        self.row = torch.empty(0)
        self.at = torch.empty(0)
        self.window = torch.empty(0)  # [k, 2 REACH + 1, N]

    def add(self, acts: Tensor, first: int) -> None:
        """Takes in acts [B, T, N] of the sequences first, first + 1, ..."""
        b, t, n = acts.shape
        value, at = acts.max(1)  # [B, N]
        reach = at[:, None, :] + torch.arange(-REACH, REACH + 1)[None, :, None]
        window = acts.gather(1, reach.clamp(0, t - 1))
        row = torch.arange(first, first + b)[:, None].expand(b, n)
        if self.value.numel():
            value, at, row = torch.cat([self.value, value]), torch.cat([self.at, at]), torch.cat([self.row, row])
            window = torch.cat([self.window, window])
        order = torch.sort(value, dim=0, descending=True, stable=True).indices[: self.k]
        self.value, self.at, self.row = value.gather(0, order), at.gather(0, order), row.gather(0, order)
        self.window = window.gather(0, order[:, None, :].expand(-1, window.shape[1], -1))

    def contexts(
        self, n: int, ids: list[list[int]], strings: dict[int, str], name_of: Decode, top: int, sign: float
    ) -> list[dict[str, Any]]:
        """The best windows of node n, largest first; of equal texts only one."""
        if not self.value.numel():
            return []
        out: list[dict[str, Any]] = []
        seen: set[tuple[int, ...]] = set()
        for row, at, window in zip(self.row[:, n].tolist(), self.at[:, n].tolist(), self.window[:, :, n], strict=True):
            begin, end = max(0, at - REACH), min(len(ids[row]), at + REACH + 1)
            tokens = tuple(ids[row][begin:end])
            if tokens in seen:
                continue
            seen.add(tokens)
            skip = begin - (at - REACH)
            for t in tokens:
                strings.setdefault(t, name_of(t))
            acts = sign * window[skip : skip + len(tokens)]
            out.append({"tokens": [strings[t] for t in tokens], "acts": _list(acts), "at": at - begin})
            if len(out) == top:
                break
        return out


def _prompts(
    model: nn.Module, told: list[NodeId], sites: list[str], examples: Split, name_of: Decode
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """The first PAIRS pairs of prompts up to their answer, and what the nodes send on them [T, N] each."""
    some = _some(examples, 2 * PAIRS)
    tokens, ends = some.inputs[0], _ends(some).tolist()
    acts = _spread(_columns(record(model, (tokens,), sites), told), tokens)  # at every position, not only the answer's
    prompts, out = [], []
    for k, end in enumerate(ends):
        begin = max(0, end + 1 - 6 * REACH)
        right = int(some.answer[k])
        prompts.append(
            {
                "tokens": [name_of(t) for t in tokens[k, begin : end + 1].tolist()],
                "answer": name_of(right),
                "wrong": [name_of(w) for w in some.wrong[k].tolist()],
                "pair": int(some.pair[k]),
            }
        )
        out.append(acts[k, begin : end + 1])
    return prompts, out


def _vector_contexts(
    model: nn.Module,
    told: list[NodeId],
    examples: Split,
    top: int,
    said: Callable[[int], str],
    features: Sequence[str],
) -> Told:
    """Extremes over the split's own inputs, with the vectors (pixels of an image) and labels; one prompt per answer.

    What a channel of a convolution does on an image is told by the largest value on its map. Where the inputs have
    names, an example is told by the features that are farthest from zero, which is usual.
    """
    sites = list(dict.fromkeys(s for s, _ in told))
    graph = graph_of(model)
    sent = {s: _peak(h, graph.site(s)) for s, h in record(model, examples.inputs, sites).items()}
    acts = _columns(sent, told)  # [B, N]
    x, labels = examples.inputs[0], examples.answer.tolist()
    images: dict[int, list[float]] = {}

    def picture(b: int) -> dict[str, Any]:
        if not features:
            return {"pixels": images.setdefault(b, _list(x[b].flatten())), "label": str(labels[b])}
        far = torch.sort(x[b].abs(), descending=True, stable=True).indices[:FAR].tolist()
        values = [[features[i], _short(float(x[b, i]))] for i in far if x[b, i] != 0]
        return {"values": values, "label": said(labels[b])}

    firsts = sorted({label: b for b, label in reversed(list(enumerate(labels)))}.values(), key=lambda b: labels[b])
    prompts = [picture(b) for b in firsts]
    order = torch.sort(acts, dim=0, descending=True, stable=True).indices
    out = {}
    for n, node in enumerate(told):

        def context(b: int, n: int = n) -> dict[str, Any]:
            return {**picture(b), "act": _short(float(acts[b, n]))}

        ranked = order[:, n].tolist()
        out[node] = {
            "top": [context(b) for b in ranked[:top]],
            "bottom": [context(b) for b in ranked[::-1][:top]],
            "task": [{"prompt": k, "act": _short(float(acts[b, n]))} for k, b in enumerate(firsts)],
        }
    return out, prompts, len(examples)


def _peak(h: Tensor, site: Site) -> Tensor:
    """Activations [B, n]: of vectors as they are, of channels with maps [B, n, H, W] the largest on each map."""
    return h.movedim(site.axis, 1).flatten(2).amax(-1) if h.dim() > 2 else h


def _spread(acts: Tensor, tokens: Tensor) -> Tensor:
    """Activations [B, T, N]; a model that reads all tokens [B, T] at once sends the same [B, N] at each."""
    return acts if acts.dim() == 3 else acts[:, None].expand(-1, tokens.shape[1], -1)


def _columns(acts: Mapping[str, Tensor], told: Sequence[NodeId]) -> Tensor:
    """The activations of these nodes side by side, [..., N]."""
    by: dict[str, list[int]] = {}
    for s, i in told:
        by.setdefault(s, []).append(i)
    assert [n for s in by for n in ((s, i) for i in by[s])] == list(told), "nodes must come site by site"
    return torch.cat([acts[s][..., torch.tensor(i)].float().cpu() for s, i in by.items()], -1)


# -- small things ----------------------------------------------------------------------------------------------------


def _model_facts(model: nn.Module, facts: Mapping[str, Any] | None) -> dict[str, Any]:
    config = getattr(model, "config", None)
    weights = [p.detach() for p in model.parameters()]
    return {
        "config": config.model_dump(mode="json") if config is not None else {},
        "parameters": sum(p.numel() for p in weights),
        "nonzero": sum(int((p != 0).sum()) for p in weights),
        **(facts or {}),
    }


def _mean(reference: Reference, site: str, index: int) -> float | None:
    value = reference.get(site)
    return float(value[index]) if value is not None and value.is_floating_point() and value.dim() == 1 else None


def _id(site: str, index: int) -> str:
    return f"{site}:{index}"


def _short(x: float | None) -> float | None:
    """Five significant digits; what is not a number is null."""
    return float(f"{x:.5g}") if x is not None and math.isfinite(x) else None


def _list(x: Tensor) -> list[float]:
    return [float(f"{v:.5g}") if math.isfinite(v) else 0.0 for v in x.tolist()]
