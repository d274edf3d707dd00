"""Small models of every kind for the tests, with weights that make every part matter, and inputs for them.

A kind of model that is new in `models.MODELS` is tested with its default config until it gets variants here.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from openwork import models, patching
from openwork.graph import Graph
from openwork.models.cnn import ConvBlock
from openwork.models.mlp import EmbeddingConfig

SMALL = {"vocab": 11, "n_layer": 2, "d_model": 8, "d_head": 4, "d_mlp": 12, "n_ctx": 6}

VARIANTS: dict[str, BaseModel] = {
    "mlp": models.MLPConfig(inputs=7, hidden=(6, 5), outputs=4),
    "mlp, silu, one output": models.MLPConfig(inputs=7, hidden=(6, 5), outputs=1, activation="silu"),
    "mlp, abstopk": models.MLPConfig(inputs=7, hidden=(6, 5), outputs=4, abstopk=0.5),
    "mlp without hidden layer": models.MLPConfig(inputs=5, hidden=(), outputs=3),
    "mlp over an embedding of two slots": models.MLPConfig(
        inputs=6, hidden=(5,), outputs=4, embedding=EmbeddingConfig(symbols=7, slots=2, width=3)
    ),
    "mlp over an embedding of one slot, without hidden layer": models.MLPConfig(
        inputs=4, hidden=(), outputs=3, embedding=EmbeddingConfig(symbols=5, slots=1, width=4)
    ),
    "cnn": models.CNNConfig(
        image=(2, 9, 8),
        blocks=(ConvBlock(channels=3, kernel=3, pool=2), ConvBlock(channels=4, kernel=2)),
        hidden=(5, 4),
    ),
    "cnn, abstopk": models.CNNConfig(
        image=(2, 9, 8), blocks=(ConvBlock(channels=6, kernel=3, pool=2),), hidden=(5,), outputs=4, abstopk=0.5
    ),
    "cnn with strides, logits from maps": models.CNNConfig(
        image=(1, 9, 9), blocks=(ConvBlock(channels=4, kernel=3, stride=2),), hidden=(), outputs=3
    ),
    "cnn without convolutions": models.CNNConfig(image=(3, 5, 5), blocks=(), hidden=(6,), outputs=4),
    "transformer": models.TransformerConfig(**SMALL),
    "transformer, sink": models.TransformerConfig(**SMALL, sink=True),
    "transformer, abstopk": models.TransformerConfig(**SMALL, abstopk=0.5),
    "transformer, abstopk after norm and GELU": models.TransformerConfig(
        **SMALL, abstopk=0.25, abstopk_at=("attn_in", "mlp_neuron")
    ),
    "transformer, no positions": models.TransformerConfig(**SMALL, positions=False),
    "transformer, no bigram": models.TransformerConfig(**SMALL, bigram=False),
    "transformer, no gain, one layer": models.TransformerConfig(**SMALL | {"n_layer": 1}, norm_gain=False),
    "transformer, no norm, ReLU, other outputs": models.TransformerConfig(
        **SMALL | {"n_layer": 1}, norm=False, activation="relu", bigram=False, outputs=4
    ),
    "transformer, no norm, sink, abstopk": models.TransformerConfig(**SMALL, norm=False, sink=True, abstopk=0.5),
    "transformer of real numbers": models.TransformerConfig(**SMALL, inputs=3, outputs=1, bigram=False),
    "transformer of real numbers, no norm": models.TransformerConfig(
        **SMALL, inputs=1, outputs=2, bigram=False, norm=False, positions=False
    ),
    "transformer, LayerNorm, unembedding bias": models.TransformerConfig(
        **SMALL, norm="layer", bigram=False, unembed_bias=True
    ),
    "transformer, RMSNorm, unembedding bias": models.TransformerConfig(**SMALL, norm="rms", unembed_bias=True),
    "transformer, everything": models.TransformerConfig(**SMALL, sink=True, abstopk=0.5, positions=False, bigram=False),
}
VARIANTS |= {
    k: c() for k, (_, c) in models.MODELS.items() if k not in {getattr(v, "kind", "") for v in VARIANTS.values()}
}

Inputs = tuple[Tensor, ...]


def make(name: str, seed: int = 0) -> nn.Module:
    """The variant with weights that make its biases, gains, sinks and tables matter; 40 % of matrix entries are 0."""
    model = models.build(VARIANTS[name], seed)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.5 if p.dim() > 1 else 0.2) + (p.dim() == 1) * 0.3)
            if p.dim() > 1:
                p.mul_((torch.rand(p.shape, generator=g) < 0.6).to(p.dtype))
        for b in model.buffers():
            b.copy_(torch.randn(b.shape, generator=g))
    return model.eval()


def inputs_of(model: nn.Module, seed: int = 0, n: int = 5) -> list[Inputs]:
    """The ways in which the model may be called, each with n examples."""
    g = torch.Generator().manual_seed(seed + 100)
    config = model.config
    kind = getattr(config, "kind", "")
    if kind == "mlp" and config.embedding is not None:  # type: ignore[union-attr]
        e = config.embedding  # type: ignore[union-attr]
        return [(torch.randint(e.symbols, (n, e.slots), generator=g),)]
    if kind == "mlp":
        return [(torch.randn(n, config.inputs, generator=g),)]  # type: ignore[union-attr]
    if kind == "cnn":
        images = torch.randn(n, *config.image, generator=g)  # type: ignore[union-attr]
        return [(images.flatten(1),), (images,)]
    if kind == "transformer":
        tokens = torch.randint(config.vocab, (n, config.n_ctx), generator=g)  # type: ignore[union-attr]
        if config.inputs:  # type: ignore[union-attr]
            tokens = torch.randn(n, config.n_ctx, config.inputs, generator=g)  # type: ignore[union-attr]
        at = torch.randint(config.n_ctx, (n,), generator=g)  # type: ignore[union-attr]
        return [(tokens,), (tokens, at)]
    raise AssertionError(f'say in tests/subject_models.py what the inputs of a model of kind "{kind}" look like')


def graph_of(model: nn.Module) -> Graph:
    """The model's graph."""
    return patching.graph_of(model)


def hooks_on(model: nn.Module) -> int:
    """Number of forward hooks and forward pre-hooks on the model and everything in it."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
