"""Attribution: what ablating each edge or node would cost, to first order, all at once from a few gradients.

With h what a source sends, r its reference and g the gradient of the metric with respect to what is read, an edge's
score is (h - r) . g, oriented so that more is better to keep. Three methods, which differ in where g is taken:

    attribution   at the model as it is: edge attribution patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348)
    ig_inputs     mean over inputs (embeddings, where ids are read) on the way from the reference's to these, with the
                  differences h - r of the two ends: EAP-IG (Hanna et al. 2024, arXiv 2403.17806). The places are those
                  of its released code, k / steps for k = 0 .. steps - 1; the paper has k = 1 .. steps
    ig_masks      mean over masks on the way from 0 to 1, all moved together, with the differences of the run at hand.
                  Midpoints, so that the scores sum up to the metric of the whole model minus that of the empty one

Scores are signed and stored so. Kept are those of the largest size, since what opposes the answer is part of the
mechanism too; `ranking="signed"` keeps the largest (the MIB benchmark ranks by size for its CMD, signed for its CPR).

Edges are those of the account "block", which a circuit's size counts. Any model's scores come out of the gradients of
masks; a model that offers `edge_attribution` has its own, faster way. RelP and other rules that change the backward
pass of single layers are left out: they need to know kinds of layers, which discovery does not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from openwork import patching
from openwork.circuit import Scores
from openwork.discover.masks import frozen
from openwork.discover.search import Discovery, MetricName, Progress, Search, SearchSettings, finish
from openwork.discover.trials import Of, candidates, sent_by
from openwork.errors import UsageError
from openwork.graph import Graph, Site
from openwork.patched_run import Part, PatchedRun
from openwork.tasks.metrics import METRICS, Metric
from openwork.tasks.task import Split

Along = Literal["inputs", "masks"]
PARTS = 4  # of the examples, run one after the other: a backward pass holds what one part needs


class AttributionSettings(SearchSettings):
    """What is scored, by which metric, and how scores become a circuit."""

    of: Of = "edges"
    metric: MetricName = "loss"
    ranking: Literal["absolute", "signed"] = Field(
        "absolute", description="keep scores of the largest size, or the largest scores"
    )


class IntegratedSettings(AttributionSettings):
    """The same, with the number of places at which gradients are taken."""

    steps: int = Field(5, ge=1)


def attribution(search: Search, settings: AttributionSettings, progress: Progress | None = None) -> Discovery:
    """Keeps the fewest top-ranked edges or nodes by attribution patching that meet the target."""
    return _decided(search, settings, "attribution", (1.0,), "inputs", progress)


def ig_inputs(search: Search, settings: IntegratedSettings, progress: Progress | None = None) -> Discovery:
    """Keeps the fewest top-ranked edges or nodes by integrated gradients along the inputs that meet the target."""
    return _decided(search, settings, "ig_inputs", input_levels(settings.steps), "inputs", progress)


def ig_masks(search: Search, settings: IntegratedSettings, progress: Progress | None = None) -> Discovery:
    """Keeps the fewest top-ranked edges or nodes by integrated gradients along the masks that meet the target."""
    return _decided(search, settings, "ig_masks", mask_levels(settings.steps), "masks", progress)


def input_levels(steps: int) -> tuple[float, ...]:
    """Places between the reference's inputs (0) and the inputs (1)."""
    return tuple(k / steps for k in range(steps))


def mask_levels(steps: int) -> tuple[float, ...]:
    """Places between empty masks (0) and whole ones (1)."""
    return tuple((k + 0.5) / steps for k in range(steps))


def _decided(
    search: Search,
    s: AttributionSettings,
    method: str,
    levels: Sequence[float],
    along: Along,
    progress: Progress | None,
) -> Discovery:
    values = attributed(search.run, search.learn, METRICS[s.metric], s.of, levels, along, progress)
    return ranked(search, s, method, values)


def ranked(search: Search, s: AttributionSettings, method: str, values: Mapping[str, Tensor]) -> Discovery:
    """The circuit of the fewest edges or nodes by such signed scores that meets the target; the scores stay signed."""
    origin = {"method": method, "settings": s.model_dump(), "split": search.split.name}
    signed = Scores(search.run.graph, values, f"{METRICS[s.metric].unit} per example", origin)
    sizes = {n: v.abs() for n, v in values.items()} if s.ranking == "absolute" else values
    return replace(finish(search, replace(signed, values=sizes), origin), scores=signed)


def attributed(
    run: PatchedRun,
    split: Split,
    metric: Metric,
    of: Of = "edges",
    levels: Sequence[float] = (1.0,),
    along: Along = "inputs",
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Signed scores, link -> [dst, src] or site -> [n]: mean over the levels and over the examples of a split.

    levels  where gradients are taken, 0 the reference, 1 the model; `along` what is moved there
    UsageError where the metric compares with the whole model and is asked at the whole model, where it is flat.
    """
    if metric.name == "kl" and tuple(levels) == (1.0,):
        raise UsageError(
            'the metric "kl" is zero and flat at the whole model, so attribution sees nothing; take another metric, or '
            "ig_inputs or ig_masks."
        )
    own = getattr(run.model, "edge_attribution", None) if of == "edges" else None
    total: dict[str, Tensor] = {}
    parts = run.parts(split, PARTS)
    with frozen(run.model):
        for i, part in enumerate(parts):
            judge = _judge(part, metric)
            if own is not None:
                scores = own(part.split.inputs, sent_by(part), judge, levels, along)
            else:
                scores = _by_masks(run, part, judge, of, levels, along)
            for name, value in scores.items():
                total[name] = total.get(name, torch.zeros_like(value)) + value / len(split)
            if progress is not None:
                progress(i + 1, len(parts))
    return {n: v.cpu() for n, v in total.items()}


def _judge(part: Part, metric: Metric) -> Callable[[Tensor], Tensor]:
    """Logits -> the metric's sum over the examples, oriented so that more is better."""
    whole = part.whole if metric.name == "kl" else None

    def judge(logits: Tensor) -> Tensor:
        return metric.sign * metric.of(logits, part.split, whole).sum()

    return judge


def _by_masks(
    run: PatchedRun,
    part: Part,
    judge: Callable[[Tensor], Tensor],
    of: Of,
    levels: Sequence[float],
    along: Along,
) -> dict[str, Tensor]:
    """Scores from the gradients of masks, sum over a part's examples and mean over the levels."""
    graph, model = run.graph, run.model
    device = next(model.parameters()).device
    shapes = {n: m.shape for n, m in candidates(graph, run.support, of).items()}
    total = {n: torch.zeros(shape, device=device) for n, shape in shapes.items()}
    steered = {s.steers for s in graph.sites}  # heads are reached by way of what steers them, not by an edge
    roots = {s.name for s in graph.sites if not graph.into(s.name) and s.name not in steered}
    moving = along == "inputs" and tuple(levels) != (1.0,)
    clean = patching.record(model, part.split.inputs) if moving else {}
    for level in levels:
        reference, held = part.reference, {}
        at = dict.fromkeys(shapes, level if along == "masks" else 1.0)
        if moving:
            held = {e.name: torch.full(e.shape, level) for e in graph.links if e.src in roots}
            with patching.patched(model, reference, None, held):
                now = patching.record(model, part.split.inputs)
            reference = _shifted(graph, roots, part.reference, clean, now)
            at |= {n: level for n in shapes if n in roots or (of == "edges" and graph.link(n).src in roots)}
            if of == "nodes":  # a root that is masked itself moves by that mask, not by the edges out of it
                held = {n: m for n, m in held.items() if graph.link(n).src not in shapes}
        masks = {n: torch.full(shape, at[n], device=device).requires_grad_() for n, shape in shapes.items()}
        nodes, edges = (masks, held) if of == "nodes" else (None, {**held, **masks})
        with torch.enable_grad(), patching.patched(model, reference, nodes, edges):
            value = judge(model(*part.split.inputs))
            grads = torch.autograd.grad(value, list(masks.values()), allow_unused=True)
        for n, g in zip(masks, grads, strict=True):
            if g is not None:
                total[n] += g / len(levels)
    return total


def _shifted(
    graph: Graph,
    roots: Collection[str],
    reference: patching.Reference,
    clean: Mapping[str, Tensor],
    now: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """A reference whose difference to what is sent now is the one between reference and clean run.

    An edge's mask then has the gradient (h - r) . g with h and r of the two ends and g of the run between them.
    """
    out = dict(reference)
    for s in graph.sites:
        if s.name not in roots and s.name in reference:
            out[s.name] = now[s.name] + _along_axis(reference[s.name], s, clean[s.name]) - clean[s.name]
    return out


def _along_axis(r: Tensor, site: Site, like: Tensor) -> Tensor:
    """A reference shaped to go with what the site sends."""
    if site.width or not patching.is_constant(site, r):
        return r
    shape = [1] * like.dim()
    shape[site.axis] = site.size
    return r.view(shape)


__all__ = [
    "AttributionSettings", "IntegratedSettings", "attributed", "attribution", "ig_inputs", "ig_masks", "input_levels",
    "mask_levels", "ranked",
]  # fmt: skip
