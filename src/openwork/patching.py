"""Running a model with some of its nodes and edges ablated.

Every link is linear in what it reads, so ablating edges swaps what the source sends now (h) for what it sent on a
reference (r), through the same weights:

    out = W h + b + ((1 - M) * W)(r - h)          M on [dst, src], 1 = keep, 0 = ablate

A node is a column: ablating node u, h <- m h + (1 - m) r, equals ablating every edge out of u. The reference decides
which ablation of the literature this is: zeros (zero ablation), the data's mean (mean ablation), another input
(activation patching, interchange), a shuffled batch (resample ablation).

Books that balance, for every model and reference: the whole circuit reproduces the model, the empty circuit
reproduces the reference run. Masks may be floats that carry gradients, which is how masks are learned and edges
attributed. Forward hooks inside a context manager do all of it: the model is never changed.

Knows modules, masks, a reference. Does not know tasks, losses, or why an edge is ablated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from openwork.circuit import Circuit, Masks, induced_edges
from openwork.errors import UsageError
from openwork.graph import Graph, Link, Site

Reference = Mapping[str, Tensor]  # site -> what its ablated nodes send: [n], or one value per input and position
Inputs = tuple[Tensor, ...]  # positional arguments of the model's forward


# -- what a layer makes of a difference ------------------------------------------------------------------------------


@singledispatch
def weight_of(module: nn.Module) -> Tensor:
    """The matrix [dst, src, ...] of the linear map that a module holds; register your own layer here."""
    raise UsageError(
        f"no rule for a {type(module).__name__}: register what its weight is with @weight_of.register and what it "
        "makes of a difference with @carry.register."
    )


@weight_of.register
def _(module: nn.Linear) -> Tensor:
    return module.weight


@weight_of.register
def _(module: nn.Embedding) -> Tensor:
    return module.weight.T


@weight_of.register
def _(module: nn.Conv2d) -> Tensor:
    if module.groups != 1:
        raise UsageError("a grouped convolution has no [dst, src] matrix; only groups=1 is supported.")
    if module.padding_mode != "zeros":
        raise UsageError(f'a convolution with padding_mode="{module.padding_mode}" is not supported; use "zeros".')
    return module.weight


@singledispatch
def carry(module: nn.Module, reference: Tensor, now: Tensor, ablated: Tensor) -> Tensor:
    """What a layer's output gains when a share `ablated` [dst, src] of its edges carries `reference`, not `now`."""
    return weight_of(module)  # refuses with the instruction


@carry.register
def _(module: nn.Linear, reference: Tensor, now: Tensor, ablated: Tensor) -> Tensor:
    return F.linear(reference - now, ablated * module.weight)


@carry.register
def _(module: nn.Conv2d, reference: Tensor, now: Tensor, ablated: Tensor) -> Tensor:
    difference = (reference - now).expand_as(now)
    weight = ablated[:, :, None, None] * weight_of(module)
    return F.conv2d(difference, weight, None, module.stride, module.padding, module.dilation)


@carry.register
def _(module: nn.Embedding, reference: Tensor, now: Tensor, ablated: Tensor) -> Tensor:
    weight = ablated.T * module.weight  # [src, dst]
    before = F.embedding(now, weight)
    if reference.is_floating_point():  # a distribution over ids, [src]
        return reference @ weight - before
    return F.embedding(reference, weight) - before


# -- recording and references ----------------------------------------------------------------------------------------


def record(model: nn.Module, inputs: Inputs, sites: Iterable[str] | None = None) -> dict[str, Tensor]:
    """What every site sends on these inputs: site -> activation (ids for sites that are an input themselves)."""
    graph = graph_of(model)
    wanted = set(sites) if sites is not None else {s.name for s in graph.sites}
    out: dict[str, Tensor] = {}
    handles: list[RemovableHandle] = []

    def keep_output(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: out.__setitem__(name, output.detach())

    def keep_input(name: str) -> Callable[..., None]:
        return lambda _module, args: out.__setitem__(name, args[0].detach())

    try:
        for s in graph.sites:
            if s.name not in wanted:
                continue
            if s.module:
                handles.append(model.get_submodule(s.module).register_forward_hook(keep_output(s.name)))
            else:
                first = graph.out_of(s.name)[0]
                handles.append(model.get_submodule(first.module).register_forward_pre_hook(keep_input(s.name)))
        with torch.no_grad():
            model(*inputs)
    finally:
        for h in handles:
            h.remove()
    return out


def zero_reference(model: nn.Module) -> dict[str, Tensor]:
    """Zero ablation: every ablated node sends 0."""
    device = next(model.parameters()).device
    sites = graph_of(model).sites
    return {s.name: torch.zeros((s.size, s.width) if s.width else s.size, device=device) for s in sites}


def mean_reference(model: nn.Module, batches: Iterable[Inputs]) -> dict[str, Tensor]:
    """Mean ablation: every ablated node sends its mean over these inputs and all their positions: [n] or [n, width].

    Sites that are an input of ids get the distribution of the ids. Computed in float64 sums: the order of batches
    does not show. UsageError where there are no inputs.
    """
    graph = graph_of(model)
    total: dict[str, Tensor] = {}
    count: dict[str, int] = {}
    for inputs in batches:
        for name, h in record(model, inputs).items():
            s = graph.site(name)
            flat = _rows(h, s)
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + flat.double().sum(0)
            count[name] = count.get(name, 0) + len(flat)
    if not total:
        raise UsageError("the mean reference needs at least one batch of inputs; got none.")
    return {n: (t / count[n]).float() for n, t in total.items()}


def _rows(h: Tensor, site: Site) -> Tensor:
    """Activations as rows of nodes, [anything, n] (or [anything, n, width]); ids as one-hot rows."""
    if site.width:
        return h.reshape(-1, site.size, site.width)
    if not h.is_floating_point():
        return F.one_hot(h.flatten(), site.size)
    return h.movedim(site.axis, -1).reshape(-1, site.size)


def is_constant(site: Site, value: Tensor) -> bool:
    """Whether a reference of a site is one value (or vector) per node, the same for every input."""
    return value.shape == ((site.size, site.width) if site.width else (site.size,))


def counterfactual_reference(model: nn.Module, other: Inputs) -> dict[str, Tensor]:
    """Activation patching: every ablated node sends what it sends on another input of the same shape.

    Site -> activation of that input, as `record` gives it.
    """
    return record(model, other)


def resample_reference(model: nn.Module, inputs: Inputs, seed: int) -> dict[str, Tensor]:
    """Resample ablation: every ablated node sends what it sends on another example of the batch.

    Site -> activations in another order, which the seed draws.
    """
    order = torch.randperm(len(inputs[0]), generator=torch.Generator().manual_seed(seed))
    return record(model, tuple(x[order] for x in inputs))


# -- the patched run -------------------------------------------------------------------------------------------------


def graph_of(model: nn.Module) -> Graph:
    """The graph that a model declares; refuses a model that declares none."""
    make = getattr(model, "graph", None)
    if make is None:
        raise UsageError(f"{type(model).__name__} declares no graph(): openwork needs its sites and links.")
    cached = model.__dict__.get("_openwork_graph")
    if cached is None:
        cached = make()
        model.__dict__["_openwork_graph"] = cached
    return cached


def support(model: nn.Module) -> dict[str, Tensor]:
    """Where edges exist: link -> bool [dst, src], True where the weight is not exactly zero (sums: everywhere)."""
    out = {}
    for e in graph_of(model).links:
        if e.kind == "sum":
            out[e.name] = torch.ones(e.shape, dtype=torch.bool)
        else:
            w = weight_of(model.get_submodule(e.module)).detach()
            out[e.name] = (w != 0).flatten(2).any(-1).cpu() if w.dim() > 2 else (w != 0).cpu()
    return out


@contextmanager
def patched(
    model: nn.Module, reference: Reference, nodes: Masks | None = None, edges: Masks | None = None
) -> Iterator[None]:
    """Within the context, the model runs with these masks.

    reference  what ablated nodes and edges carry, per site
    nodes      site -> [n] in 0..1 (bool or float); sites that are left out are kept whole
    edges      link -> [dst, src] or [n] in 0..1; links that are left out are kept whole
    UsageError where the reference has no value for a site that is ablated, and for a layer that nothing was registered
    for.
    """
    graph = graph_of(model)
    now: dict[str, Tensor] = {}  # site -> what it sends in this run
    handles: list[RemovableHandle] = []

    def hook(path: str, fn: Callable[..., Any], pre: bool = False) -> None:
        m = model.get_submodule(path)
        handles.append(m.register_forward_pre_hook(fn) if pre else m.register_forward_hook(fn))

    masked_links = [e for e in graph.links if e.name in (edges or {})]
    for name in list(nodes or {}) + [e.src for e in masked_links]:
        if name not in reference:
            raise UsageError(f"the reference has no value for site {graph.site(name).name}, which is ablated.")
    try:
        watched = {e.src for e in masked_links}
        for s in graph.sites:
            mask = (nodes or {}).get(s.name)
            if s.module and (mask is not None or s.name in watched):
                hook(s.module, _site_hook(s, mask, reference, now, s.name in watched))
        for e in masked_links:
            assert edges is not None
            _hook_link(graph, e, edges[e.name], reference, now, model, hook)
        yield
    finally:
        for h in handles:
            h.remove()


def _site_hook(
    s: Site, mask: Tensor | None, reference: Reference, now: dict[str, Tensor], watch: bool
) -> Callable[..., Any]:
    def fn(_module: nn.Module, _args: Any, h: Tensor) -> Tensor:
        if mask is not None:
            m = _along(mask.to(h.device, h.dtype), s, h)
            h = m * h + (1 - m) * _along(reference[s.name].to(h.device), s, h)
        if watch:
            now[s.name] = h
        return h

    return fn


def _along(x: Tensor, s: Site, like: Tensor) -> Tensor:
    """A mask or reference [n] shaped to broadcast along the site's node axis; full activations pass unchanged.

    Vectors [n, width] are the last two axes of an activation already.
    """
    if x.dim() == 1 and x.shape[0] == s.size and like.dim() > 1:
        shape = [1] * like.dim()
        shape[s.axis] = s.size
        return x.view(shape)
    return x


def _hook_link(
    graph: Graph,
    e: Link,
    mask: Tensor,
    reference: Reference,
    now: dict[str, Tensor],
    model: nn.Module,
    hook: Callable[..., None],
) -> None:
    s = graph.site(e.src)
    r = reference[e.src]
    if e.kind == "sum":

        def add(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0]
            gone = 1 - _along(mask.to(x.device, x.dtype), s, x)
            return (x + gone * (_along(r.to(x.device), s, x) - now[e.src]), *args[1:])

        hook(e.module, add, pre=True)
        return

    mixed: list[Tensor] = []
    if e.through:

        def mix(module: nn.Module, args: tuple[Tensor, ...], _out: Tensor) -> None:
            ref = _along(r.to(args[-1].device), s, args[-1]).expand_as(args[-1])
            mixed[:] = [module.forward(*args[:-1], ref)]  # same positions, the reference's values

        hook(e.through, mix)

    def fn(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        h = args[0]
        ref = mixed[0] if e.through else r.to(h.device)
        if h.is_floating_point():
            ref = _along(ref, s, h)
        return out + carry(module, ref, h, 1 - mask.to(h.device, out.dtype))

    hook(e.module, fn)


def run(model: nn.Module, inputs: Inputs, circuit: Circuit | None, reference: Reference) -> Tensor:
    """The model's output with everything outside the circuit ablated; without a circuit, the plain output.

    reference  site -> what ablated nodes send, [n] or one value per input and position
    UsageError for a circuit of another graph, and for a reference without a value where something is ablated.
    """
    if circuit is None:
        return model(*inputs)
    nodes, edges = masks_of(model, circuit)
    with patched(model, reference, nodes, edges):
        return model(*inputs)


def masks_of(model: nn.Module, circuit: Circuit) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The masks that a run of this circuit needs: edge masks only where nodes do not already say it.

    Node masks apply at every site that a run can change: input ids and the output are left alone; what the circuit
    drops of them shows in the edges that leave and enter them.
    """
    graph = graph_of(model)
    if circuit.graph != graph:
        raise UsageError("this circuit belongs to another model: its sites and links differ from the model's graph.")
    free = [s.name for s in graph.sites if s.module and s.kind != "output"]
    nodes = {n: circuit.nodes[n] for n in free if not bool(circuit.nodes[n].all())}
    held = {n: torch.ones_like(m) for n, m in circuit.nodes.items()} | {n: circuit.nodes[n] for n in free}
    implied = induced_edges(graph, held, support(model))
    edges = {}
    for e in graph.links:
        mask = circuit.edges[e.name]
        if bool((implied[e.name] & ~mask).any()):
            edges[e.name] = mask
    return nodes, edges


# -- compacted circuits ----------------------------------------------------------------------------------------------


class Layout:
    """A circuit laid out to be run many times, each time with a few more of its nodes or edges ablated.

    Called like the model. `nodes` and `edges` hold a float mask for every kept node of the prunable sites and every
    entry between kept nodes of the block links; 1 keeps, 0 ablates, in between interpolates. Change them in place
    (`nodes["block0.mlp.act"][3] = 0`), or set `requires_grad_` on them to get attributions.

    node_index  site -> ids of its kept nodes, in the order of the mask
    edge_index  link -> (ids of its kept destination nodes, ids of its kept source nodes)

    This general form runs the whole model under hooks and costs what the model costs. A model that offers
    `compact(circuit, reference)` returns a layout that costs what the circuit is.
    """

    def __init__(self, model: nn.Module, circuit: Circuit, reference: Reference) -> None:
        self.model, self.circuit, self.reference = model, circuit, reference
        graph = graph_of(model)
        self.node_index = {s.name: circuit.nodes[s.name].nonzero().flatten() for s in graph.prunable}
        self.nodes = {n: torch.ones(len(i)) for n, i in self.node_index.items()}
        kept = {s.name: circuit.nodes[s.name].nonzero().flatten() for s in graph.sites}
        self.edge_index = {
            e.name: (kept[e.dst], kept[e.src]) for e in graph.links if e.kind == "weight" and e.counts == "block"
        }
        self.edges = {n: torch.ones(len(d), len(s)) for n, (d, s) in self.edge_index.items()}
        self._base = masks_of(model, circuit)

    def __call__(self, *inputs: Tensor) -> Tensor:
        graph = self.circuit.graph
        nodes = dict(self._base[0])
        for n, index in self.node_index.items():
            if bool((self.nodes[n] != 1).any()) or self.nodes[n].requires_grad:
                nodes[n] = torch.zeros(graph.site(n).size).index_copy(0, index, self.nodes[n])
        edges = dict(self._base[1])
        for n, (dst, src) in self.edge_index.items():
            if bool((self.edges[n] != 1).any()) or self.edges[n].requires_grad:
                rows = torch.ones(len(dst), graph.link(n).shape[1]).index_copy(1, src, self.edges[n])
                full = torch.ones(graph.link(n).shape).index_copy(0, dst, rows)
                edges[n] = full * edges[n] if n in edges else full
        with patched(self.model, self.reference, nodes, edges):
            return self.model(*inputs)

    def to_circuit(self) -> Circuit:
        """The circuit that is left: nodes and edges whose mask is not zero."""
        nodes = {n: m.clone() for n, m in self.circuit.nodes.items()}
        for n, index in self.node_index.items():
            nodes[n][index] = self.nodes[n].detach() != 0
        edges = induced_edges(self.circuit.graph, nodes, self.circuit.edges)
        for n, (dst, src) in self.edge_index.items():
            edges[n][dst[:, None], src[None, :]] &= self.edges[n].detach() != 0
        return Circuit(self.circuit.graph, nodes, edges, self.circuit.origin)

    def live(self) -> dict[str, Tensor]:
        """Per link of `edges`, which entries are edges of the circuit as it now is: bool [kept dst, kept src]."""
        now = self.to_circuit()
        return {n: now.edges[n][d[:, None], s[None, :]] for n, (d, s) in self.edge_index.items()}


def compact(model: nn.Module, circuit: Circuit, reference: Reference) -> Layout:
    """The circuit laid out to be run many times; by the model's own `compact` where it has one and can use it."""
    own = getattr(model, "compact", None)
    sites = graph_of(model).by_site
    constant = all(is_constant(sites[n], v) for n, v in reference.items() if sites[n].module)
    layout = own(circuit, reference) if own is not None and constant else None
    return layout if layout is not None else Layout(model, circuit, reference)
