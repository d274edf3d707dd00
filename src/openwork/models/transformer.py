"""The weight-sparse transformer of Gao et al. 2025 (arXiv 2511.13653, appendix A.1), a pre-norm decoder like GPT-2.

RMSNorm, GELU, biases on every matrix of the blocks, untied embedding and unembedding, heads of 16 channels, optional
attention sink, a frozen bigram table added to the logits, optional AbsTopK at any node location. Every location where
a node lives is a `Node` submodule, so that a site is a place in the module tree, and every matrix is a link.

Other settings make the small transformers of the literature on algorithmic tasks: ReLU, no norms, real numbers instead
of tokens at the input (read by a matrix in the place of the embedding), another number of outputs than of tokens; and
those of the GPT-2 kind: LayerNorm, a bias on the unembedding.

Shapes: B sequences, T positions, D residual channels, H heads, C = D channels of q, k and v, F neurons, V outputs.

Departures from the released code, which are choices: q, k and v are three matrices (each is a link); positions are a
learned table that can be switched off (the paper uses none); the bigram table is set from counts and never trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from openwork.circuit import Circuit
from openwork.graph import Graph, Link, Site
from openwork.models.compact import compact_transformer
from openwork.models.node import Node, share_of
from openwork.patching import Layout

BENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # Hendrycks and Gimpel 2016 (arXiv 1606.08415), section 2
    "relu": F.relu,
}
Location = Literal["attn_in", "attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out"]


class TransformerConfig(BaseModel):
    """Shape of a transformer. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["transformer"] = "transformer"
    vocab: int = Field(1024, ge=2)
    n_layer: int = Field(2, ge=1)
    d_model: int = Field(128, ge=1)
    d_head: int = Field(16, ge=1)
    d_mlp: int = Field(0, ge=0, description="0 means 4 * d_model")
    n_ctx: int = Field(128, ge=1)
    positions: bool = True
    sink: bool = False
    bigram: bool = True
    norm_gain: bool = True
    norm: bool | Literal["rms", "layer"] = Field(
        True,
        description="before every sublayer and the unembedding: rms (or true) RMSNorm, layer LayerNorm, false none",
    )
    activation: Literal["gelu", "gelu_tanh", "relu"] = Field("gelu", description="gelu_tanh is GPT-2's")
    init_std: float = Field(
        0.02, gt=0, description="of fresh matrices; small models without norms want about 1/sqrt(d)"
    )
    inputs: int = Field(0, ge=0, description="width of real-valued inputs; 0 means token ids below `vocab`")
    outputs: int = Field(0, ge=0, description="0 means one per token of the vocabulary")
    unembed_bias: bool = Field(False, description="a bias on the logits")
    abstopk: float = Field(1.0, gt=0, le=1, description="share of entries that AbsTopK keeps per token; 1 is off")
    abstopk_at: tuple[Location, ...] = (
        "attn_in", "attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out",
    )  # fmt: skip

    @model_validator(mode="after")
    def _heads_fit(self) -> TransformerConfig:
        if self.d_model % self.d_head:
            raise ValueError(f"d_model {self.d_model} is not a multiple of d_head {self.d_head}")
        return self

    @model_validator(mode="after")
    def _bigrams_are_of_tokens(self) -> TransformerConfig:
        if self.bigram and (self.inputs or self.outputs):
            raise ValueError("a bigram table needs tokens at both ends; set bigram=false beside inputs or outputs")
        return self

    @property
    def neurons(self) -> int:
        """Neurons per block."""
        return self.d_mlp or 4 * self.d_model

    @property
    def logits(self) -> int:
        """Outputs per position."""
        return self.outputs or self.vocab


class Attend(nn.Module):
    """Causal attention of all heads at once: a weighted average of v over earlier positions. Holds no matrix.

    With a sink, every head has one learned logit that takes part in the softmax but carries nothing.
    """

    def __init__(self, n_head: int, sink: bool) -> None:
        super().__init__()
        self.n_head = n_head
        self.sink = nn.Parameter(torch.zeros(n_head)) if sink else None

    def pattern(self, q: Tensor, k: Tensor) -> Tensor:
        """Attention weights [B, H, T, T]; rows sum to one, or to less with a sink."""
        q, k = self._heads(q), self._heads(k)
        t = q.shape[-2]
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        logits = logits.masked_fill(torch.ones(t, t, dtype=torch.bool, device=q.device).triu(1), -torch.inf)
        if self.sink is None:
            return logits.softmax(-1)
        sink = self.sink.view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        return torch.cat([sink, logits], -1).softmax(-1)[..., 1:]

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.sink is None:
            y = F.scaled_dot_product_attention(self._heads(q), self._heads(k), self._heads(v), is_causal=True)
        else:
            y = self.pattern(q, k) @ self._heads(v)
        return y.transpose(1, 2).flatten(-2)  # [B, T, C]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # [B, H, T, d_head]


class Attention(nn.Module):
    """One attention sublayer, from the residual stream to what it adds to the stream."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.norm = _norm(c)
        self.read = _node(c, "attn_in", c.d_model)
        self.to_q = nn.Linear(c.d_model, c.d_model)
        self.to_k = nn.Linear(c.d_model, c.d_model)
        self.to_v = nn.Linear(c.d_model, c.d_model)
        self.q = _node(c, "attn_q", c.d_model)
        self.k = _node(c, "attn_k", c.d_model)
        self.v = _node(c, "attn_v", c.d_model)
        self.attend = Attend(c.d_model // c.d_head, c.sink)
        self.out = nn.Linear(c.d_model, c.d_model)
        self.write = _node(c, "attn_out", c.d_model)

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(self.norm(x))
        return self.write(self.out(self.attend(self.q(self.to_q(h)), self.k(self.to_k(h)), self.v(self.to_v(h)))))


class MLPBlock(nn.Module):
    """One MLP sublayer, from the residual stream to what it adds to the stream."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.norm = _norm(c)
        self.read = _node(c, "mlp_in", c.d_model)
        self.up = nn.Linear(c.d_model, c.neurons)
        self.bend = BENDS[c.activation]
        self.act = _node(c, "mlp_neuron", c.neurons)
        self.down = nn.Linear(c.neurons, c.d_model)
        self.write = _node(c, "mlp_out", c.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self.down(self.act(self.bend(self.up(self.read(self.norm(x)))))))


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.attn = Attention(c)
        self.mlp = MLPBlock(c)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class Transformer(nn.Module):
    """Tokens [B, T] (or real numbers [B, T, inputs]) to logits [B, T, V], or [B, V] at one position per sequence.

    Init as published: N(0, init_std), matrices that write to the stream divided by sqrt(2 n_layer), biases zero.
    """

    bigram: Tensor | None

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embed = nn.Linear(c.inputs, c.d_model, bias=False) if c.inputs else nn.Embedding(c.vocab, c.d_model)
        self.positions = nn.Embedding(c.n_ctx, c.d_model) if c.positions else None
        self.stream = Node()
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.norm = _norm(c)
        self.read = Node()
        self.unembed = nn.Linear(c.d_model, c.logits, bias=c.unembed_bias)
        self.register_buffer("bigram", torch.zeros(c.vocab, c.vocab) if c.bigram else None)
        self.table = Node()
        self.logits = Node()
        for name, p in self.named_parameters():
            if p.dim() == 2:
                writes = name.endswith(("attn.out.weight", "mlp.down.weight"))
                nn.init.normal_(p, 0.0, c.init_std / math.sqrt(2 * c.n_layer) if writes else c.init_std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        """Logits of the next token.

        tokens  [B, T] token ids, or real numbers [B, T, inputs]; T at most n_ctx
        at      [B] the position whose logits are wanted; without it, all positions
        """
        x = self.embed(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.stream(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        last = tokens
        if at is not None:
            rows = torch.arange(len(tokens), device=tokens.device)
            x, last = x[rows, at], tokens[rows, at]
        out = self.unembed(self.read(x))
        if self.bigram is not None:
            out = out + self.table(self.bigram[last])
        return self.logits(out)

    def graph(self) -> Graph:
        """Sites and links; residual reads are sums over everything written before them."""
        c = self.config
        given = "values" if c.inputs else "tokens"
        sites = [Site(given, c.inputs or c.vocab, "", "input", 0, prunable=False)]
        links: list[Link] = []
        if c.positions:
            sites.append(Site("positions", c.n_ctx, "", "input", 0, prunable=False))
        sites.append(Site("embed", c.d_model, "stream", "embed", 1, prunable=False))
        shape = (c.d_model, c.inputs or c.vocab)
        links.append(Link(f"{given}>embed", given, "embed", "embed", shape, counts="embedding"))
        if c.positions:
            shape = (c.d_model, c.n_ctx)
            links.append(Link("positions>embed", "positions", "embed", "positions", shape, counts="embedding"))
        writes, layer = ["embed"], 2

        def read(name: str, module: str, norm: str) -> None:
            sites.append(Site(name, c.d_model, module, "read", layer))
            for w in writes:
                links.append(Link(f"{w}>{name}", w, name, norm, (c.d_model,), kind="sum", counts="residual"))

        def matrix(src: str, dst: str, module: str, shape: tuple[int, int], through: str = "") -> None:
            links.append(Link(f"{src}>{dst}", src, dst, module, shape, through=through))

        for i in range(c.n_layer):
            a, m, path = f"block{i}.attn", f"block{i}.mlp", f"blocks.{i}"
            read(f"{a}.in", f"{path}.attn.read", f"{path}.attn.norm")
            for part, kind in (("q", "query"), ("k", "key"), ("v", "value")):
                steers = "" if part == "v" else f"{a}.v"
                module = f"{path}.attn.{part}"
                sites.append(Site(f"{a}.{part}", c.d_model, module, kind, layer + 1, steers=steers, group=c.d_head))
                matrix(f"{a}.in", f"{a}.{part}", f"{path}.attn.to_{part}", (c.d_model, c.d_model))
            sites.append(Site(f"{a}.write", c.d_model, f"{path}.attn.write", "write", layer + 2))
            matrix(f"{a}.v", f"{a}.write", f"{path}.attn.out", (c.d_model, c.d_model), through=f"{path}.attn.attend")
            writes.append(f"{a}.write")
            layer += 3
            read(f"{m}.in", f"{path}.mlp.read", f"{path}.mlp.norm")
            sites.append(Site(f"{m}.act", c.neurons, f"{path}.mlp.act", "neuron", layer + 1))
            sites.append(Site(f"{m}.write", c.d_model, f"{path}.mlp.write", "write", layer + 2))
            matrix(f"{m}.in", f"{m}.act", f"{path}.mlp.up", (c.neurons, c.d_model))
            matrix(f"{m}.act", f"{m}.write", f"{path}.mlp.down", (c.d_model, c.neurons))
            writes.append(f"{m}.write")
            layer += 3
        read("final.in", "read", "norm")
        if c.bigram:
            sites.append(Site("bigram", c.vocab, "table", "table", layer, prunable=False))
        sites.append(Site("logits", c.logits, "logits", "output", layer + 1, prunable=False))
        shape = (c.logits, c.d_model)
        links.append(Link("final.in>logits", "final.in", "logits", "unembed", shape, counts="unembedding"))
        if c.bigram:
            links.append(Link("bigram>logits", "bigram", "logits", "logits", (c.vocab,), kind="sum", counts="residual"))
        return Graph(tuple(sites), tuple(links))

    def compact(self, circuit: Circuit, reference: Mapping[str, Tensor]) -> Layout | None:
        """The circuit laid out small (see `models.compact`), or None where the general layout must do."""
        return compact_transformer(self, circuit, reference)


def _node(c: TransformerConfig, location: Location, size: int) -> Node:
    return Node(share_of(size, c.abstopk) if location in c.abstopk_at else None)


def _norm(c: TransformerConfig) -> nn.Module:
    """The norm that the config asks for; LayerNorm's gain comes with a bias."""
    if not c.norm:
        return nn.Identity()
    return (nn.LayerNorm if c.norm == "layer" else nn.RMSNorm)(c.d_model, elementwise_affine=c.norm_gain)
