"""What topics do on the examples of a split: their activity, and what is lost without them.

    node     what it sends less what it sends on the reference. Of a channel of maps: the largest value on its map less
             the reference's; of a head or an MLP, which send vectors: the length of the difference
    module   L2 norm of what its nodes change at the kept nodes outside it that read them, through the circuit's
             weights and before any norm; values count where they stand, before attention moves them. Queries and keys,
             which no edge reads, count as they are where they steer values outside the module. Of heads and MLPs: the
             norm of all changes that are read outside
    circuit  what it changes of the logit difference, at every position as if it were asked there: where all examples
             have the same two answers, the first one's logit less the second's (its sign says which); else the right
             one's less the mean of the wrong; in either case less the same with all its nodes ablated

Where the reference belongs to each example (its counterpart, say), the mean over all examples is subtracted: what a
node does on an example must not depend on which other one it is compared with. Of a circuit it is then its own mean.

All of it is measured inside the circuit, everything outside at the reference; without a circuit, in the whole model.
Damage is how much each example's task loss rises when the topic alone is ablated there.

Knows a model, a circuit, topics, one split. Does not know which split it is for, what is said about a topic, nor
scores.

Shapes: K topics, N examples, T positions, F features, V outputs; B examples of a part, n nodes of a site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from openwork import patching
from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain.words.topic import Observed, Sample, Topic
from openwork.graph import Site
from openwork.patched_run import Part, PatchedRun
from openwork.patching import Inputs, Reference
from openwork.tasks.metrics import logit_difference
from openwork.tasks.task import Split, Task, losses

UNIT = "nodes: what is sent less the reference's; modules: size of what they write to the rest; circuits: logits moved"
TOGETHER = 64  # examples whose activities are held at once

Tick = Callable[[], None]
NodeId = tuple[str, int]  # site, index


@dataclass(frozen=True)
class Legend:
    """How examples are read by a person.

    decode  token id -> its text; None where examples are vectors
    names   of the features of a vector; by default "feature 0", "feature 1", ...
    shape   (height, width, channels) of images, whose pixels a task gives channel by channel; else empty
    """

    decode: Callable[[int], str] | None = None
    names: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()


def is_tokens(split: Split) -> bool:
    """Whether examples are token ids."""
    return not split.inputs[0].is_floating_point()


def sample_of(task: Task, split: str, legend: Legend, vocab: int = 0) -> Sample:
    """The examples of a task's split as a person reads them.

    vocab  how many token ids there are; at least those that occur get their text
    UsageError where examples are tokens and nothing decodes them, and for features that the names or the shape miss.
    """
    examples = task.split(split)
    right, wrong = _answers(task, examples, legend)
    x = examples.inputs[0].detach().cpu()
    if not is_tokens(examples):
        features = x.flatten(1).float()
        shape = legend.shape
        if shape:
            h, w, c = shape
            if h * w * c != features.shape[1]:
                raise UsageError(f"images of {h}x{w}x{c} do not have the {features.shape[1]} features of {task.name}.")
            features = features.view(-1, c, h, w).permute(0, 2, 3, 1).flatten(1)
        names = legend.names or tuple(_feature_name(i, shape) for i in range(features.shape[1]))
        if len(names) != features.shape[1]:
            raise UsageError(f"{len(names)} names are given for the {features.shape[1]} features of {task.name}.")
        return Sample(split, asked=np.zeros(len(x), dtype=np.int64), features=features.numpy(), names=names,
                      shape=shape, right=right, wrong=wrong)  # fmt: skip
    if legend.decode is None:
        raise UsageError(f"the examples of {task.name} are token ids: a way to decode them is needed.")
    many = max(vocab, int(x.max()) + 1 if x.numel() else 0)
    words = tuple(legend.decode(i) for i in range(many))
    return Sample(split, words, x.numpy(), asked_at(examples).numpy(), right=right, wrong=wrong)


def _feature_name(i: int, shape: tuple[int, ...]) -> str:
    if not shape:
        return f"feature {i}"
    _, w, c = shape
    place = f"row {i // c // w}, column {i // c % w}"
    return place if c == 1 else f"{place}, channel {i % c}"


def _answers(task: Task, examples: Split, legend: Legend) -> tuple[tuple[str, ...], tuple[str, ...]]:
    def text(i: int) -> str:
        if is_tokens(examples) and legend.decode is not None:
            return legend.decode(i)
        return task.said(i)

    known = {i: text(i) for i in torch.cat([examples.answer, examples.wrong.flatten()]).unique().tolist()}
    right = tuple(known[i] for i in examples.answer.tolist())
    return right, tuple(" | ".join(known[i] for i in row) for row in examples.wrong.tolist())


def asked_at(examples: Split) -> Tensor:
    """The position [N] that is asked; the last one, where a model reads all tokens at once; 0 for vectors."""
    x, *at = examples.inputs
    if not is_tokens(examples):
        return torch.zeros(len(examples), dtype=torch.long)
    return at[0].cpu().long() if at else torch.full((len(examples),), x.shape[1] - 1)


# -- observing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Measured:
    """What is observed, and beside it what a card tells of the outputs.

    base   float [N], nats: task loss of the circuit itself
    shift  float [K, V]: mean rise of every output's logit at the position asked when the topic is ablated
    """

    observed: Observed
    base: np.ndarray
    shift: np.ndarray


def observe(
    model: nn.Module,
    circuit: Circuit | None,
    reference: Reference | str,
    topics: Sequence[Topic],
    examples: Split,
    sample: Sample,
    seed: int = 0,
    tick: Tick | None = None,
) -> Observed:
    """What topics do on the examples of a split; see the head of this file and `measure`."""
    return measure(model, circuit, reference, topics, examples, sample, seed, tick).observed


@torch.no_grad()
def measure(
    model: nn.Module,
    circuit: Circuit | None,
    reference: Reference | str,
    topics: Sequence[Topic],
    examples: Split,
    sample: Sample,
    seed: int = 0,
    tick: Tick | None = None,
) -> Measured:
    """What topics do on the examples of a split.

    circuit    inside which they are looked at; None: in the whole model
    reference  what ablated nodes send: one value per node, or the name of a kind that belongs to the examples
    sample     the same examples as a person reads them
    seed       of the reference, where it is drawn
    tick       called once per topic
    UsageError for a topic with a node that the circuit does not keep, and where there are no examples.
    """
    inside = _inside(model, circuit)
    for t in topics:
        for site, i in t.nodes:
            if not bool(inside.nodes[inside.graph.site(site).name][i]):
                raise UsageError(f"{t.name}: node {site}:{i} is not in the circuit; nothing can be said of it there.")
    if not len(examples):
        raise UsageError(f'split "{examples.name}" has no examples; there is nothing to observe.')
    asking = PatchedRun(model, reference, seed)
    base, damage, shift = _ablated(asking, inside, topics, examples, tick)
    activity = _activities(asking, inside, topics, examples)
    return Measured(Observed(sample, tuple(topics), activity, UNIT, damage.numpy()), base.numpy(), shift.numpy())


@torch.no_grad()
def activities(
    model: nn.Module,
    circuit: Circuit | None,
    reference: Reference | str,
    topics: Sequence[Topic],
    examples: Split,
    seed: int = 0,
) -> np.ndarray:
    """Activity alone, [K, N, T] or [K, N], as in `measure`: one run serves any number of nodes and modules."""
    inside = _inside(model, circuit)
    return _activities(PatchedRun(model, reference, seed), inside, topics, examples)


@torch.no_grad()
def damages(
    model: nn.Module,
    circuit: Circuit | None,
    reference: Reference | str,
    topics: Sequence[Topic],
    examples: Split,
    seed: int = 0,
) -> np.ndarray:
    """Damage alone, [K, N] in nats, as in `measure`: one run per topic."""
    if not topics:
        return np.zeros((0, len(examples)), dtype=np.float32)
    return _ablated(PatchedRun(model, reference, seed), _inside(model, circuit), topics, examples, None)[1].numpy()


def _inside(model: nn.Module, circuit: Circuit | None) -> Circuit:
    """The circuit, or all of the model where there is none."""
    return circuit if circuit is not None else Circuit.whole(patching.graph_of(model), patching.support(model))


@torch.no_grad()
def damage_elsewhere(
    model: nn.Module, reference: Reference | str, topics: Sequence[Topic], splits: Mapping[str, Split], most: int = 32
) -> dict[str, np.ndarray]:
    """Per task, the mean rise of its loss [K] when each topic alone is ablated in the whole model, nats.

    splits  task -> its examples, of which the first `most` are asked (with their counterparts); empty ones are left out
    """
    whole = Circuit.whole(patching.graph_of(model), patching.support(model))
    out = {}
    for name, split in splits.items():
        if len(split):
            some = split.take(_first(split, most))
            out[name] = _ablated(PatchedRun(model, reference), whole, topics, some, None)[1].mean(1).numpy()
    return out


def _first(split: Split, most: int) -> Tensor:
    """About the first examples [n], pairs whole."""
    chosen: dict[int, None] = {}
    for i, partner in enumerate(split.pair.tolist()):
        if len(chosen) >= most:
            break
        chosen |= {i: None} | ({partner: None} if partner >= 0 else {})
    return torch.tensor(list(chosen))


def _ablated(
    asking: PatchedRun, inside: Circuit, topics: Sequence[Topic], examples: Split, tick: Tick | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Base loss [N], damage [K, N] and shift [K, V]."""
    parts = asking.parts(examples)
    index = torch.cat([p.index for p in parts]).cpu()
    back = index.argsort()
    if asking.fixed is not None:
        without = _without(asking.model, inside, asking.fixed)

        def run(nodes: Sequence[NodeId]) -> Tensor:
            return torch.cat([without(nodes, p.split.inputs) for p in parts])[back].cpu()
    else:
        kept, edges = patching.masks_of(asking.model, inside)

        def run(nodes: Sequence[NodeId]) -> Tensor:
            now = dict(kept)
            for site in {s for s, _ in nodes}:
                now[site] = inside.nodes[site].clone()
                now[site][[i for s, i in nodes if s == site]] = False
            return torch.cat([asking.logits(p, now, edges) for p in parts])[back].cpu()

    on_cpu = examples.to("cpu")
    whole = run(())
    base = losses(whole, on_cpu)
    damage, shift = torch.empty(len(topics), len(examples)), torch.empty(len(topics), whole.shape[1])
    for k, t in enumerate(topics):
        out = run(t.nodes)
        damage[k] = losses(out, on_cpu) - base
        shift[k] = (out - whole).float().mean(0)
        if tick is not None:
            tick()
    return base, damage, shift


def _without(model: nn.Module, inside: Circuit, reference: Reference) -> Callable[[Sequence[NodeId], Inputs], Tensor]:
    """Runs a circuit laid out small on some inputs, with some of its nodes ablated too."""
    layout = patching.compact(model, inside, reference)
    place = {
        (site, i): (layout.nodes[site], k)
        for site, ids in layout.node_index.items() for k, i in enumerate(ids.tolist())
    }  # fmt: skip

    def run(nodes: Sequence[NodeId], inputs: Inputs) -> Tensor:
        for n in nodes:
            mask, k = place[n]
            mask[k] = 0
        out = layout(*inputs)
        for n in nodes:
            mask, k = place[n]
            mask[k] = 1
        return out

    return run


def _activities(asking: PatchedRun, inside: Circuit, topics: Sequence[Topic], examples: Split) -> np.ndarray:
    """[K, N, T] with nan where a position does not count, or [K, N]."""
    graph = inside.graph
    fixed = asking.fixed
    looked = {n for t in topics if t.kind != "circuit" for n in t.nodes}
    wanted = {
        s.name: torch.tensor(sorted(i for site, i in looked if site == s.name))
        for s in graph.sites if any(s.name == site for site, _ in looked)
    }  # fmt: skip
    sites = list(wanted)
    places = {(s, i): k for s in sites for k, i in enumerate(wanted[s].tolist())}
    sizes = {t.name: _written(asking.model, inside, t) for t in topics if t.kind == "module"}
    is_text, n = is_tokens(examples), len(examples)
    width = examples.inputs[0].shape[1] if is_text else 1
    out = np.full((len(topics), n, width), np.nan, dtype=np.float32)
    asked = asked_at(examples)
    masks = patching.masks_of(asking.model, inside)
    circuits = any(t.kind == "circuit" for t in topics)
    without = _without(asking.model, inside, fixed) if fixed is not None and circuits else None
    parts = asking.parts(examples, max(1, -(-n // TOGETHER)))
    resting = fixed or _resting(asking.model, parts, [graph.site(s) for s in sites], is_text)
    for part in parts:
        inputs = part.split.inputs[:1] if is_text else part.split.inputs  # every position, not only the one asked
        sent, said = {}, torch.empty(0)
        if sites or (circuits and fixed is None):
            reference = part.fixed if part.fixed is not None else _others(asking.model, part, is_text)
            with patching.patched(asking.model, reference, *masks):
                sent = patching.record(asking.model, inputs, sites)
                said = _decision(asking.model(*inputs), part.split) if circuits and fixed is None else said
        change = {
            s: _change(sent[s], resting[s], graph.site(s))[..., wanted[s]].float().cpu() for s in sites
        }  # [B, T, n], [B, n]
        rows, long = part.index.cpu().numpy(), inputs[0].shape[1] if is_text else 1
        for k, t in enumerate(topics):
            if t.kind == "circuit" and without is None:
                value = said.cpu()
            elif t.kind == "circuit":
                assert without is not None
                now, gone = (_decision(without(nodes, inputs), part.split) for nodes in ((), t.nodes))
                value = (now - gone).cpu()
            elif t.kind == "node":
                value = _columns(change, places, t)[..., 0]
            else:
                columns = _columns(change, places, t)
                value = (columns @ sizes[t.name] * columns).sum(-1).clamp_min(0).sqrt()
            if value.dim() == 1 and is_text:  # read all at once: it has no position but the one that is asked
                out[k, rows, asked[part.index.cpu()].numpy()] = value.numpy()
            elif value.dim() == 1:
                out[k, rows, 0] = value.numpy()
            else:
                out[k, rows, :long] = value.numpy()
    if is_text:
        counted = np.arange(width)[None, :] <= asked.numpy()[:, None]
        out[:, ~counted] = np.nan
    for k in (k for k, t in enumerate(topics) if t.kind == "circuit" and fixed is None):
        out[k] -= np.nanmean(out[k])
    return out if is_text else out[:, :, 0]


def _others(model: nn.Module, part: Part, is_text: bool) -> dict[str, Tensor]:
    """What every site sends on the examples that a part is compared with, at every position."""
    assert part.other is not None
    return patching.record(model, part.other[:1] if is_text else part.other)


def _resting(model: nn.Module, parts: Sequence[Part], sites: Sequence[Site], is_text: bool) -> dict[str, Tensor]:
    """The mean of what sites send on the compared examples, over all of these and their positions that count."""
    total: dict[str, Tensor] = {}
    count: dict[str, float] = {}
    for part in parts:
        sent = _others(model, part, is_text)
        assert part.other is not None
        for s in sites:
            h = sent[s.name]
            h = h.movedim(s.axis, -1) if s.axis == 1 else h  # maps: their positions are flattened with the examples
            ends = h.dim() - (2 if s.width else 1)
            rows = h.reshape(-1, *h.shape[ends:]).double()
            keep = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
            if is_text and ends == 2 and len(part.other) > 1:
                at = part.other[1]
                keep = (torch.arange(h.shape[1], device=at.device)[None, :] <= at[:, None]).flatten()
            total[s.name] = total.get(s.name, torch.zeros((), dtype=torch.float64)) + rows[keep].sum(0)
            count[s.name] = count.get(s.name, 0.0) + float(keep.sum())
    return {name: (t / count[name]).float() for name, t in total.items()}


def _columns(change: Mapping[str, Tensor], places: Mapping[NodeId, int], t: Topic) -> Tensor:
    """Changes of a topic's nodes side by side, [B, T, m] or [B, m], in the topic's order; positions where any has."""
    picked = [change[n[0]][..., places[n]] for n in t.nodes]
    most = max(p.dim() for p in picked)
    assert all(p.dim() == most for p in picked), "some nodes of a topic have positions and others have none"
    return torch.stack(picked, -1)


def _change(now: Tensor, reference: Tensor, site: Site) -> Tensor:
    """What a site sends less the reference, one number per node: [B, T, n] or [B, n]."""
    if site.width:
        return (now - reference).norm(dim=-1)
    if site.axis == 1 and now.dim() > 2:  # maps [B, n, H, W]
        before = reference if reference.dim() == 1 else reference.flatten(2).amax(-1)
        return now.flatten(2).amax(-1) - before
    return now - reference


def _written(model: nn.Module, inside: Circuit, t: Topic) -> Tensor:
    """The matrix G [m, m] by which d G d is the squared size of what changes d of a module's nodes do outside it."""
    graph, m = inside.graph, len(t.nodes)
    place = {n: k for k, n in enumerate(t.nodes)}
    mine = {s: torch.tensor([i for site, i in t.nodes if site == s]) for s in {site for site, _ in t.nodes}}
    plain = any(s.width for s in graph.sites)
    into: dict[str, Tensor] = {}  # reading site -> [nodes there, m]
    for e in graph.links:
        if e.src not in mine:
            continue
        outside = inside.nodes[e.dst].clone()
        if e.dst in mine:
            outside[mine[e.dst]] = False
        at = torch.tensor([place[e.src, i] for i in mine[e.src].tolist()])
        rows = into.setdefault(e.dst, torch.zeros(graph.site(e.dst).size, m))
        if e.kind == "sum":
            for i, k in zip(mine[e.src].tolist(), at.tolist(), strict=True):
                rows[i, k] = float(inside.edges[e.name][i] and outside[i])
            continue
        weight = edge_weights(model, e.module)
        some = mine[e.src]
        rows[:, at] = weight[:, some] * inside.edges[e.name][:, some] * outside[:, None]
    gram = torch.zeros(m, m)
    for a in into.values():
        gram += a.T @ a
    if plain:  # what nodes send are vectors: only their sizes are at hand
        return torch.diag((gram.diagonal() > 0).float())
    for s in graph.sites:
        if s.steers and s.name in mine:
            for i in mine[s.name].tolist():
                block = range(i // s.group * s.group, (i // s.group + 1) * s.group)
                steered = [j for j in block if bool(inside.nodes[s.steers][j])]
                if any((s.steers, j) not in place for j in steered):
                    gram[place[s.name, i], place[s.name, i]] += 1
    return gram


def edge_weights(model: nn.Module, module: str) -> Tensor:
    """One number per edge [dst, src] of a matrix; of a kernel its size, with the sign of its sum."""
    w = patching.weight_of(model.get_submodule(module)).detach().cpu().float()
    if w.dim() == 2:
        return w
    kernel = w.flatten(2)
    return torch.where(kernel.sum(-1) < 0, -1.0, 1.0) * kernel.norm(dim=-1)


def two_answers(examples: Split) -> tuple[int, int] | None:
    """The two outputs, smaller first, that every example chooses between; None where they are others or more."""
    if examples.wrong.shape[1] != 1:
        return None
    both = torch.stack([examples.answer, examples.wrong[:, 0]], 1).sort(1).values.unique(dim=0)
    return (int(both[0, 0]), int(both[0, 1])) if len(both) == 1 else None


def _decision(logits: Tensor, examples: Split) -> Tensor:
    """What a circuit says [B, T] or [B], from logits [B, T, V] or [B, V]."""
    pair = two_answers(examples)
    if pair is not None:
        return (logits[..., pair[0]] - logits[..., pair[1]]).float()
    if logits.dim() == 2:
        return logit_difference(logits, examples).float()
    right, wrong = (x[:, None].expand(-1, logits.shape[1], -1) for x in (examples.answer[:, None], examples.wrong))
    return (logits.gather(2, right)[..., 0] - logits.gather(2, wrong).mean(2)).float()


def unit_of(topic: Topic, examples: Split, name: Callable[[int], str]) -> str:
    """What the activity of a topic is, in words. `name`: an output's text."""
    if topic.kind == "node":
        return "what it sends, less what it sends on average (the reference)"
    if topic.kind == "module":
        return "size of what its nodes write to the rest of the circuit, less the reference"
    pair = two_answers(examples)
    if pair is None:
        return "how far it moves the logit of the right answer from the mean of the wrong ones"
    return f"how far it moves the logit of {name(pair[0])!r} from that of {name(pair[1])!r}"


__all__ = [
    "Legend",
    "Measured",
    "activities",
    "asked_at",
    "damage_elsewhere",
    "damages",
    "edge_weights",
    "is_tokens",
    "measure",
    "observe",
    "sample_of",
    "two_answers",
    "unit_of",
]  # fmt: skip
