"""A perceptron's circuit as a perceptron of its own: under a constant reference an ablated edge is a constant.

    W h + b + ((1 - M) * W)(r - h)  =  (M * W) h + [b + ((1 - M) * W) r]

so masks and reference fold into the weights and the bias of each layer, and the patched run becomes a plain one. What
wants weights instead of hooks starts here: bounds over sets of inputs, and many circuits in one run.

Knows perceptrons of vectors. Does not know tasks, losses, bounds, or how the circuit was found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openwork import patching
from openwork.circuit import Circuit, Masks
from openwork.errors import UsageError

if TYPE_CHECKING:
    from openwork.models.mlp import MLP

Affine = tuple[Tensor, Tensor]  # weights [dst, src] and bias [dst] of one layer, float64


def plain_perceptron(model: nn.Module) -> str:
    """Why a model cannot be folded, as the end of a sentence; "" where it can."""
    config = getattr(model, "config", None)
    if getattr(config, "kind", "") != "mlp":
        return f"a {type(model).__name__} is no perceptron (kind mlp)"
    if config.embedding is not None:  # type: ignore[union-attr]
        return "its inputs are token ids that are looked up in an embedding"
    if config.abstopk < 1:  # type: ignore[union-attr]
        return "under AbsTopK a neuron's output depends on its neighbours"
    return ""


def folded(model: nn.Module, circuit: Circuit | None, reference: patching.Reference) -> list[Affine]:
    """Weights and biases, in float64, of the perceptron that computes what the circuit's patched run computes.

    circuit    None folds nothing: the model itself
    reference  one value per node
    Returns one (W [dst, src], b [dst]) per layer; between layers stands the model's activation. All nodes keep their
    places; a column of zeros belongs to an ablated node. Raises UsageError for a model that is no plain perceptron or
    for a reference with one value per input.
    """
    nodes, edges = patching.masks_of(model, circuit) if circuit is not None else ({}, {})
    return folded_masks(model, nodes, edges, reference)


def folded_masks(model: nn.Module, nodes: Masks, edges: Masks, reference: patching.Reference) -> list[Affine]:
    """The same from boolean masks as `patching.patched` takes them: site -> [n], link -> [dst, src]."""
    if why := plain_perceptron(model):
        raise UsageError(f"masks cannot be folded into this model's weights: {why}.")
    layers = []
    for link in patching.graph_of(model).links:
        layer = model.get_submodule(link.module)
        w, b = layer.weight.detach().double().cpu(), layer.bias.detach().double().cpu()  # type: ignore[union-attr,operator]
        keep = torch.ones(link.shape, dtype=torch.bool)
        if link.src in nodes:
            keep = keep & nodes[link.src].bool().cpu()
        if link.name in edges:
            keep = keep & edges[link.name].bool().cpu()
        if not bool(keep.all()):
            w, b = w * keep, b + (w * ~keep) @ _constant(reference, link.src)
        layers.append((w, b))
    return layers


def _constant(reference: patching.Reference, site: str) -> Tensor:
    """The reference of a site as float64 [n]; refuses one that differs from input to input."""
    if site not in reference:
        raise UsageError(f"the reference has no value for site {site}, which is ablated.")
    r = reference[site].detach().double().cpu()
    if r.dim() != 1:
        raise UsageError(
            f"the reference at {site} has one value per input; folding needs one value per node, as zero_reference "
            "and mean_reference give."
        )
    return r


class Subsets:
    """A circuit's subsets, many in one run: only its kept nodes and edges are laid out, in float64.

    names   links in the order of the layers
    edges   link -> the circuit's edges [d, s] among its kept nodes d, s (`patching.Layout.edge_index` has their ids)

    Nodes act on their own here: what enters one changes nothing but what leaves it. So an edge from whose end no
    path of kept edges leads to an output may come and go without any change.
    """

    def __init__(self, model: MLP, circuit: Circuit, reference: patching.Reference) -> None:
        self.bend = {"relu": F.relu, "silu": F.silu}[model.config.activation]
        graph = circuit.graph
        base = {n: m for n, m in circuit.nodes.items() if graph.site(n).kind != "output"}
        kept = {n: m.nonzero().flatten() for n, m in circuit.nodes.items()}
        kept[graph.links[-1].dst] = torch.arange(graph.links[-1].shape[0])
        self.inputs, self.outputs = kept[graph.links[0].src], kept[graph.links[-1].dst]
        self.names = [e.name for e in graph.links]
        self.edges: dict[str, Tensor] = {}
        self.layers: list[tuple[Tensor, Tensor, Tensor]] = []  # W [d, s], b [d], r [s]
        for e, (w, b) in zip(graph.links, folded_masks(model, base, circuit.edges, reference), strict=True):
            rows, columns = kept[e.dst], kept[e.src]
            self.edges[e.name] = circuit.edges[e.name][rows][:, columns]
            self.layers.append((w[rows][:, columns], b[rows], _constant(reference, e.src)[columns]))

    def __call__(self, x: Tensor, edges: Masks) -> Tensor:
        """Logits [S, N, V] of features x [N, F] for S subsets; edges: link -> bool [S, d, s], all links."""
        h = x.double()[:, self.inputs][None]  # [1 or S, N, s]
        for i, (name, (w, b, r)) in enumerate(zip(self.names, self.layers, strict=True)):
            kept = edges[name] * w  # [S, d, s]
            bias = b + (w - kept) @ r  # [S, d]
            h = torch.matmul(h, kept.mT) + bias[:, None]
            h = h if i + 1 == len(self.layers) else self.bend(h)
        return h
