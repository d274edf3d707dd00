"""A planted case in a larger network that is busy with other things, none of which matters for the answers.

    noise     neurons, channels and heads with random weights. They read everything, the true circuit included, and
              write to each other and to the output, as below
    decoys    whole circuits of other cases beside the true one, computing another function of the same inputs

At the output a transformer's distractors write to all logits alike, which cancels in the softmax over the answers. The
output edges of the other networks can be cut one by one, so there they write to one more logit, which is no answer.
Nothing that the true circuit reads is written by either. So the task loss of any circuit is that of its part inside
the true network, whatever it keeps of the rest: the truth stays true, and so does its target. Yet noise and decoys vary
with the input as the truth does.

All nodes change places at random, so that no order gives the truth away. Knows how perceptrons, convolutional networks
and transformers are wired. Does not know tasks' meaning, or methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import UsageError
from openwork.models import CNN, MLP, Transformer, TransformerConfig
from openwork.planted.case import Case, circuit_of, live, reference_of, size_of

LOUD = 2.0  # standard deviation of noise weights times the root of how many a node reads
SHARED = 8.0  # what noise adds to logits, per unit


def distract(case: Case, name: str, seed: int, noise: int = 0, decoys: Sequence[Case] = ()) -> Case:
    """The case inside a network with distractors; same task, same target.

    noise   random neurons per hidden layer; in a transformer also half as many channels of the stream, and a head per
            eight (at least one) in every block
    decoys  cases of the same kind of network, of the same inputs and depth (a transformer: at most that depth)

    Raises UsageError where a decoy does not fit.
    """
    kinds = {type(case.model), *(type(d.model) for d in decoys)}
    if len(kinds) > 1:
        raise UsageError(f"case {name}: decoys have to be of the same kind of network as the case, {case.family}.")
    rng = torch.Generator().manual_seed(seed)
    models = [case.model, *(d.model for d in decoys)]
    if isinstance(case.model, Transformer):
        model, places = _widen_transformer(models, noise, rng)  # type: ignore[arg-type]
    else:
        model, places = _widen_layers(models, noise, rng)  # type: ignore[arg-type]
    graph = case.truth.graph
    nodes = {s.name: torch.zeros(s.size, dtype=torch.bool) for s in model.graph().prunable}  # type: ignore[operator]
    for s in graph.prunable:
        nodes[s.name][places[s.name][case.truth.nodes[s.name]]] = True
    beside = [f"{noise} noisy neurons per layer"] * (noise > 0) + [f"the circuit of {d.name}" for d in decoys]
    return replace(
        case,
        name=name,
        size=size_of(model),
        model=model,
        reference=reference_of(model, case.task, case.ablation),
        truth=circuit_of(model, nodes),
        about=f"{case.about}; beside {' and '.join(beside)}",
        moved=places,
    )


def _scattered(sizes: Sequence[int], total: int, rng: torch.Generator) -> list[Tensor]:
    """Disjoint random places below `total` for parts of these sizes."""
    order = torch.randperm(total, generator=rng)
    return list(order[: sum(sizes)].split(list(sizes)))


def _random(rng: torch.Generator, *shape: int) -> Tensor:
    """Weights [dst, src, ...] under which a node's input has a standard deviation of about LOUD."""
    return torch.randn(*shape, generator=rng) * LOUD / math.sqrt(max(1, math.prod(shape[1:])))


# -- perceptrons and convolutional networks --------------------------------------------------------------------------


def _widen_layers(models: Sequence[MLP | CNN], noise: int, rng: torch.Generator) -> tuple[MLP | CNN, dict[str, Tensor]]:
    """The networks side by side on one input; and per site, where the first one's nodes now are."""
    core = models[0]
    for other in models[1:]:
        if len(other.layers) != len(core.layers) or _input_of(other) != _input_of(core):
            raise UsageError("a decoy needs the inputs and the number of layers of the case that it is put beside.")
    sites = [s.name for s in core.graph().sites]
    sizes = [[m.graph().sites[i].size for m in models] for i in range(len(sites))]
    wide = _same_kind(core, [sum(s) + noise for s in sizes[1:-1]])
    where = [[torch.arange(sizes[0][0])] * len(models)]
    where += [_scattered(s, sum(s) + noise, rng) for s in sizes[1:-1]]
    outputs = sizes[-1][0]
    with torch.no_grad():
        for i, layer in enumerate(wide.layers):
            last = i == len(wide.layers) - 1
            weight, bias = layer.weight, layer.bias
            assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
            weight.zero_()
            bias.zero_()
            if not last:
                strange = _others(weight.shape[0], where[i + 1])
                weight[strange] = _random(rng, len(strange), *weight.shape[1:])
            elif noise:
                strange = _others(weight.shape[1], where[i])
                weight[outputs, strange] = SHARED * torch.randn(len(strange), *weight.shape[2:], generator=rng)
            for j, m in enumerate(models):
                source = m.layers[i]
                assert isinstance(source.weight, Tensor) and isinstance(source.bias, Tensor)
                columns = where[i][j]
                if not last:
                    rows = where[i + 1][j]
                    weight[rows[:, None], columns[None, :]] = source.weight
                    bias[rows] = source.bias
                elif j == 0:
                    weight[:outputs, columns] = source.weight
                    bias[:outputs] = source.bias
                else:
                    weight[outputs, columns] = _loudest(source.weight)[0]
    return wide, {name: w[0] for name, w in zip(sites[:-1], where, strict=True)}


def _input_of(model: MLP | CNN) -> object:
    return (model.config.image, _kernels(model)) if isinstance(model, CNN) else model.config.inputs


def _kernels(model: CNN) -> list[tuple[int, int, int]]:
    return [(b.kernel, b.stride, b.pool) for b in model.config.blocks]


def _same_kind(model: MLP | CNN, hidden: Sequence[int]) -> MLP | CNN:
    """A fresh network of the same kind with other numbers of nodes in its hidden layers, and one output more."""
    if isinstance(model, MLP):
        return MLP(model.config.model_copy(update={"hidden": tuple(hidden), "outputs": model.config.outputs + 1}))
    n = len(model.config.blocks)
    blocks = tuple(b.model_copy(update={"channels": c}) for b, c in zip(model.config.blocks, hidden[:n], strict=True))
    return CNN(
        model.config.model_copy(
            update={"blocks": blocks, "hidden": tuple(hidden[n:]), "outputs": model.config.outputs + 1}
        )
    )


def _others(total: int, places: Sequence[Tensor]) -> Tensor:
    """The places below `total` that no part has."""
    free = torch.ones(total, dtype=torch.bool)
    free[torch.cat(list(places))] = False
    return free.nonzero().flatten()


def _loudest(weight: Tensor) -> Tensor:
    """Per source, the largest of its weights [outputs, src, ...] to any output: [1, src, ...]."""
    return weight.gather(0, weight.abs().argmax(0, keepdim=True))


# -- transformers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Places:
    """Where one transformer's nodes are in the wide one: residual channels, and per block heads' channels, neurons."""

    stream: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...]


def _widen_transformer(
    models: Sequence[Transformer], noise: int, rng: torch.Generator
) -> tuple[Transformer, dict[str, Tensor]]:
    """The transformers side by side in one stream; and per site, where the first one's nodes now are."""
    configs = [m.config for m in models]
    c = configs[0]
    for o in configs[1:]:
        if o.vocab != c.vocab or o.n_ctx != c.n_ctx or o.n_layer > c.n_layer:
            raise UsageError(
                f"a decoy needs the vocabulary ({c.vocab}), the length ({c.n_ctx}) and at most the depth ({c.n_layer}) "
                f"of the case that it is put beside; it has {o.vocab}, {o.n_ctx} and {o.n_layer}."
            )
    d = max(o.d_head for o in configs)
    channels, noisy_heads = (noise + 1) // 2, -(-noise // 8)
    heads = sum(o.d_model // o.d_head for o in configs) + noisy_heads
    heads = max(heads, -(-(sum(o.d_model for o in configs) + channels) // d))
    wide = Transformer(
        TransformerConfig(  # type: ignore[call-arg]
            vocab=c.vocab,
            n_layer=c.n_layer,
            d_model=heads * d,
            d_head=d,
            d_mlp=sum(o.neurons for o in configs) + noise,
            n_ctx=c.n_ctx,
            positions=any(o.positions for o in configs),
            bigram=False,
            norm=False,
            activation="relu",
            outputs=c.logits,
        )
    )
    places = _placed(configs, wide.config, rng)
    with torch.no_grad():
        for p in wide.parameters():
            p.zero_()
        for m, place in zip(models, places, strict=True):
            _insert(m, wide, place)
        if noise:
            _add_noise(wide, places, channels, noisy_heads, noise, rng)
        wide.unembed.weight[:, places[0].stream] = models[0].unembed.weight
        for m, place in zip(models[1:], places[1:], strict=True):
            wide.unembed.weight[:, place.stream] = _loudest(m.unembed.weight).expand(c.logits, -1)
    first = places[0]
    sites = {"final.in": first.stream}
    for i in range(c.n_layer):
        a, m = f"block{i}.attn", f"block{i}.mlp"
        sites |= {f"{a}.in": first.stream, f"{a}.write": first.stream, f"{m}.in": first.stream}
        sites |= {f"{m}.write": first.stream, f"{m}.act": first.neurons[i]}
        sites |= {f"{a}.q": first.keys[i], f"{a}.k": first.keys[i], f"{a}.v": first.values[i]}
    return wide, sites


def _placed(configs: Sequence[TransformerConfig], wide: TransformerConfig, rng: torch.Generator) -> list[_Places]:
    streams = _scattered([c.d_model for c in configs], wide.d_model, rng)
    n_heads = [c.d_model // c.d_head for c in configs]
    d = wide.d_head
    keys: list[list[Tensor]] = [[] for _ in configs]
    values: list[list[Tensor]] = [[] for _ in configs]
    neurons: list[list[Tensor]] = [[] for _ in configs]
    for _ in range(wide.n_layer):
        heads = _scattered(n_heads, wide.d_model // d, rng)
        cells = _scattered([c.neurons for c in configs], wide.neurons, rng)
        for j, c in enumerate(configs):
            for kind in (keys, values):
                inner = torch.stack([torch.randperm(d, generator=rng)[: c.d_head] for _ in range(n_heads[j])])
                kind[j].append((heads[j][:, None] * d + inner).flatten())
            neurons[j].append(cells[j])
    return [_Places(s, tuple(k), tuple(v), tuple(n)) for s, k, v, n in zip(streams, keys, values, neurons, strict=True)]


def _insert(model: Transformer, wide: Transformer, p: _Places) -> None:
    """The weights of one transformer at its places; queries make up for heads that have become wider."""
    wide.embed.weight[:, p.stream] = model.embed.weight
    if model.positions is not None and wide.positions is not None:
        wide.positions.weight[:, p.stream] = model.positions.weight
    louder = math.sqrt(wide.config.d_head / model.config.d_head)
    block: Any
    for i, block in enumerate(model.blocks):
        to: Any = wide.blocks[i]
        _copied(block.attn.to_q, to.attn.to_q, p.keys[i], p.stream, louder)
        _copied(block.attn.to_k, to.attn.to_k, p.keys[i], p.stream)
        _copied(block.attn.to_v, to.attn.to_v, p.values[i], p.stream)
        _copied(block.attn.out, to.attn.out, p.stream, p.values[i])
        _copied(block.mlp.up, to.mlp.up, p.neurons[i], p.stream)
        _copied(block.mlp.down, to.mlp.down, p.stream, p.neurons[i])


def _copied(source: nn.Module, target: nn.Module, rows: Tensor, columns: Tensor, factor: float = 1.0) -> None:
    assert isinstance(source, nn.Linear) and isinstance(target, nn.Linear)
    target.weight[rows[:, None], columns[None, :]] = factor * source.weight
    target.bias[rows] = factor * source.bias


def _add_noise(
    wide: Transformer, places: Sequence[_Places], channels: int, heads: int, neurons: int, rng: torch.Generator
) -> None:
    """Noisy channels of the stream, and heads and neurons that read all of it and write only there."""
    c, d = wide.config, wide.config.d_head
    stream = _others(c.d_model, [p.stream for p in places])[:channels]
    wide.embed.weight[:, stream] = torch.randn(c.vocab, channels, generator=rng)
    if wide.positions is not None:
        wide.positions.weight[:, stream] = torch.randn(c.n_ctx, channels, generator=rng)
    wide.unembed.weight[:, stream] = SHARED * torch.randn(1, channels, generator=rng)
    given = [wide.embed.weight, *([wide.positions.weight] if wide.positions is not None else [])]
    scale = torch.stack([w.abs().amax(0) for w in given]).amax(0).clamp(min=1)  # squares of positions are large
    block: Any
    for i, block in enumerate(wide.blocks):
        taken = torch.cat([p.values[i] for p in places]) // d
        free = [h for h in range(c.d_model // d) if h not in set(taken.tolist())][:heads]
        own = (torch.tensor(free)[:, None] * d + torch.arange(d)).flatten()
        for matrix in (block.attn.to_q, block.attn.to_k, block.attn.to_v):
            matrix.weight[own] = _random(rng, len(own), c.d_model) / scale
        block.attn.out.weight[stream] = _random(rng, channels, c.d_model)
        cells = _others(c.neurons, [p.neurons[i] for p in places])[:neurons]
        block.mlp.up.weight[cells] = _random(rng, len(cells), c.d_model) / scale
        block.mlp.down.weight[stream] = _random(rng, channels, c.neurons)


def distractors(case: Case) -> Mapping[str, Tensor]:
    """Per prunable site, bool [n]: the nodes that have a weight and are not of the truth."""
    return {n: m & ~case.truth.nodes[n] for n, m in live(case.model).items()}
