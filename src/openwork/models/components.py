"""A transformer seen at the granularity of heads and MLPs: the nodes of EAP-IG, ACDC and the MIB benchmark.

`Components(model)` computes what the transformer computes, from the same weights, but every head and every MLP reads a
residual stream of its own: the sum of what the components before it send. So an edge is one component's contribution
to what another one reads. H heads, L layers, D residual channels; every node sends a vector of D numbers per position:

    input                       1 node: the embedding (with positions); is always kept
    a{l}.q  a{l}.k  a{l}.v      H nodes each: what each head reads for its queries, keys and values
    a{l}                        H nodes: what each head writes
    m{l}                        1 node: what the MLP writes
    logits                      1 node: the stream that the last norm and the unembedding read
    {source}>{reader}           one edge from every node of the source to every node of the reader

4 layers of 4 heads have 479 edges, 12 of 12 have 32,491 (Hanna et al. 2024, arXiv 2403.17806, count the same).

The bias of an attention's output belongs to no head: every later reader gets it, whatever is ablated, as in EAP-IG. The
bias of an MLP is part of what it writes. A bigram table is a node of its own beside the stream, always kept.

A reference that belongs to examples is taken position by position: where it comes from a prompt asked at another
position, the empty circuit is that prompt's run at the position asked here.

MLPs and convolutional networks need no such view: their nodes are neurons and channels as they are.

Knows `models.transformer`. Does not know tasks, losses, or which edges are asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from openwork.errors import UsageError, unknown
from openwork.graph import Graph, Link, Site
from openwork.models.edge_algebra import Along, edge_scores
from openwork.models.edge_runs import EdgeRuns
from openwork.models.node import Node
from openwork.models.pieces import by_head, embedded, head_outputs
from openwork.models.transformer import Attention, Transformer
from openwork.patching import Inputs, Reference, carry, weight_of

GRANULARITIES = ("weights", "components")


class Hand(nn.Module):
    """An edge matrix of ones: hands every node of a reader the sum of what the nodes of a source send.

    [..., src, D] to [..., dst, D]; where all readers get the same, as they do here, dst is 1 and stands for all.
    """

    ones: Tensor

    def __init__(self, dst: int, src: int) -> None:
        super().__init__()
        self.register_buffer("ones", torch.ones(dst, src), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        return h.sum(-2, keepdim=True)


@weight_of.register
def _(module: Hand) -> Tensor:
    return module.ones


@carry.register
def _(module: Hand, reference: Tensor, now: Tensor, ablated: Tensor) -> Tensor:
    return torch.matmul(ablated, reference - now)  # [dst, src] times [..., src, D]


class Components(nn.Module):
    """The same outputs as the transformer that it views, with heads and MLPs as nodes. See the head of this file.

    UsageError for AbsTopK, which ranks the channels of all heads together: a head alone is not defined there.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        c = model.config
        if c.abstopk < 1:
            raise UsageError(
                f"the model has AbsTopK (abstopk={c.abstopk:g}), which ranks channels over all heads together; heads "
                'and MLPs can be nodes only where abstopk is 1. Ask at granularity "weights".'
            )
        self.model = model
        self.n_head = c.d_model // c.d_head
        graph = self.graph()
        self.sites = nn.ModuleDict({_key(s.name): Node() for s in graph.sites})
        self.hands = nn.ModuleDict({_key(e.name): Hand(*e.shape) for e in graph.links})
        self.train(model.training)

    def forward(self, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        """Logits [B, T, V], or [B, V] at one position per sequence, as the transformer's."""
        model = self.model
        sent = {"input": self._sent("input", embedded(model, tokens)[..., None, :])}
        bias = torch.zeros((), device=sent["input"].device)  # of the attention outputs so far
        stream = sent["input"]  # what a reader reads none of whose edges is patched
        for i, block in enumerate(model.blocks):
            attn: Attention = block.attn  # type: ignore[assignment]
            q, k, v = (
                by_head(_shared(self._read(f"a{i}.{p}", sent, bias, stream)), attn.norm, to, self.n_head)
                for p, to in (("q", attn.to_q), ("k", attn.to_k), ("v", attn.to_v))
            )
            sent[f"a{i}"] = self._sent(f"a{i}", head_outputs(attn, attn.attend(q, k, v), self.n_head))
            bias = bias + attn.out.bias
            stream = stream + (sent[f"a{i}"].sum(-2, keepdim=True) + attn.out.bias)
            mlp = block.mlp
            x = self._read(f"m{i}", sent, bias, stream)
            sent[f"m{i}"] = self._sent(f"m{i}", mlp.down(mlp.bend(mlp.up(mlp.norm(x)))))  # type: ignore[operator, union-attr]
            stream = stream + sent[f"m{i}"]
        x = self._read("logits", sent, bias, stream)[..., 0, :]
        last = tokens
        if at is not None:
            rows = torch.arange(len(tokens), device=tokens.device)
            x, last = x[rows, at], tokens[rows, at]
        out = model.unembed(model.norm(x))
        if model.bigram is not None:
            table = self._sent("bigram", model.bigram[last][..., None, :])
            out = out + self._hand("bigram", "logits", table)[..., 0, :]
        return out

    def _sent(self, site: str, h: Tensor) -> Tensor:
        return self.sites[_key(site)](h)

    def _hand(self, src: str, dst: str, h: Tensor) -> Tensor:
        return self.hands[_key(f"{src}>{dst}")](h)

    def _read(self, reader: str, sent: dict[str, Tensor], bias: Tensor, stream: Tensor) -> Tensor:
        """The stream of every node of a reader [..., n, D]: summed anew, edge by edge, only where one is patched."""
        hands = [self.hands[_key(f"{src}>{reader}")] for src in sent]
        total = stream
        if any(hand._forward_hooks or hand._forward_pre_hooks for hand in hands):
            total = bias + sum(hand(h) for hand, h in zip(hands, sent.values(), strict=True))
        if reader[0] == "m":
            return total
        n = 1 if reader == "logits" else self.n_head
        return self._sent(reader, total.expand(*total.shape[:-2], n, -1))

    def edge_attribution(
        self,
        inputs: Inputs,
        reference: Reference,
        judge: Callable[[Tensor], Tensor],
        levels: Sequence[float] = (1.0,),
        along: Along = "inputs",
    ) -> dict[str, Tensor]:
        """First-order scores of all edges between components by algebra (see `models.edge_algebra`)."""
        return edge_scores(self.model, inputs, reference, judge, levels, along)

    def edge_runs(self, inputs: Inputs, reference: Reference) -> EdgeRuns | None:
        """These inputs, to be run with more and more edges ablated; None where all positions are asked."""
        return EdgeRuns(self.model, inputs, reference) if len(inputs) == 2 else None

    def graph(self) -> Graph:
        """Sites and links, in the order in which they are computed."""
        c = self.model.config
        heads, width = c.d_model // c.d_head, c.d_model
        sites, links = [], []
        sources: dict[str, int] = {}

        def site(name: str, size: int, kind: str, layer: int, prunable: bool = True, steers: str = "") -> None:
            sites.append(
                Site(name, size, f"sites.{_key(name)}", kind, layer, prunable, -2, steers, 1 if steers else 0, width)
            )

        def read(reader: str, size: int) -> None:
            links.extend(
                Link(f"{s}>{reader}", s, reader, f"hands.{_key(f'{s}>{reader}')}", (size, n))
                for s, n in sources.items()
            )

        site("input", 1, "embed", 0, prunable=False)
        sources["input"] = 1
        for i in range(c.n_layer):
            for p, kind in (("q", "query"), ("k", "key"), ("v", "value")):
                site(f"a{i}.{p}", heads, kind, 4 * i + 1, steers=f"a{i}")
                read(f"a{i}.{p}", heads)
            site(f"a{i}", heads, "write", 4 * i + 2)
            sources[f"a{i}"] = heads
            read(f"m{i}", 1)
            site(f"m{i}", 1, "write", 4 * i + 4)
            sources[f"m{i}"] = 1
        if c.bigram:
            sites.append(Site("bigram", 1, "sites.bigram", "table", 4 * c.n_layer, False, -2, width=c.vocab))
        site("logits", 1, "output", 4 * c.n_layer + 1, prunable=False)
        read("logits", 1)
        if c.bigram:
            module = f"hands.{_key('bigram>logits')}"
            links.append(Link("bigram>logits", "bigram", "logits", module, (1, 1), counts="residual"))
        return Graph(tuple(sites), tuple(links))


def at_granularity(model: nn.Module, granularity: Literal["weights", "components"]) -> nn.Module:
    """The model itself ("weights"), or a view of a transformer whose nodes are heads and MLPs ("components")."""
    if granularity not in GRANULARITIES:
        raise unknown("granularity", granularity, GRANULARITIES)
    if granularity == "weights" or isinstance(model, Components):
        return model
    if not isinstance(model, Transformer):
        raise UsageError(
            f"a {type(model).__name__} has no heads to be nodes: its neurons or channels are nodes as they are, so ask "
            'at granularity "weights".'
        )
    return Components(model)


def _shared(x: Tensor) -> Tensor:
    """One stream [..., 1, D] where an expanded view says that all nodes read the same one."""
    return x[..., :1, :] if x.stride(-2) == 0 else x


def _key(name: str) -> str:
    """A name as a key of modules, which may not hold dots."""
    return name.replace(".", "_")


__all__ = ["GRANULARITIES", "Components", "Hand", "at_granularity"]
