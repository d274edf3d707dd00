"""Keeps attention: in the heads that the circuit uses, attention goes where it goes in the whole model.

A pruned circuit can answer as the model does while its heads look elsewhere, which a replication of weight-sparse
circuits found. The heads are those whose value channels have a kept edge through the module that mixes positions; what
they look at is that module's `pattern(q, k)`, in the whole model and in the circuit.

Knows a Question and the graph's links `through` a module with a `pattern`. Does not know any model. A model without
such a module gets no such claim.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openwork import patching, stats
from openwork.circuit import Evidence, Masks
from openwork.tasks.task import Split
from openwork.verify.question import ALPHA, ROUNDING, Question, clusters, decide, nothing, random_circuits

MOST = 0.1  # share of the attention that may go elsewhere
UNIT = "share of attention that goes elsewhere"
NULL = "circuits of as many random live nodes at every site, in the same heads"


def has_attention(q: Question) -> bool:
    """Whether the model has modules that mix positions and tell their pattern."""
    return bool(_mixers(q))


def keeps_attention(q: Question) -> Evidence:
    """Distance between the attention of circuit and whole model, at the position that is asked.

    value            total variation, half the sum over positions of |a - b|, and what a sink takes as one more
                     position; mean over the heads that the circuit uses and over examples (95 % bootstrap over pairs)
    holds            at most a tenth goes elsewhere, and p <= 0.05
    fails            the interval's lower end is above a tenth, or p > 0.05: random nodes keep the pattern as well, as
                     they do where a head looks everywhere alike, so it says nothing about the circuit
    too little data  fewer than 32 examples; no head in use; or a mean above a tenth that lies inside the interval
    null             circuits of as many random live nodes at every site, in the heads that this circuit uses; p is the
                     rank of the circuit's distance among theirs, on the fixed sample of examples

    Only the position that is asked is looked at (the last one, where none is): a head that does its work at an earlier
    position is judged there by what reaches the asked one, and `all_positions` in the details has the mean over all
    positions up to it.
    """
    started = time.perf_counter()
    heads = {m.module: m for m in _mixers(q) if bool(m.used.any())}
    if not heads:
        what = (
            "The circuit uses no attention head, so there is no pattern to keep."
            if has_attention(q)
            else "This model has no attention, so there is no pattern to keep."
        )
        return nothing(q, "keeps_attention", UNIT, NULL, what, started)
    alone = patching.masks_of(q.model, q.circuit)
    distance, everywhere = _distance(_patterns(q, q.verify, heads), _patterns(q, q.verify, heads, *alone))  # [N, heads]
    value = distance.mean(1)
    interval = stats.bootstrap_mean(value, clusters(q.verify), seed=q.seed)
    whole = list(_patterns(q, q.sample, heads))

    def on_sample(nodes: Masks, edges: Masks | None = None) -> float:
        return float(_distance(whole, _patterns(q, q.sample, heads, nodes, edges))[0].mean())

    own = on_sample(*alone)
    null = np.array([on_sample(nodes) for nodes in random_circuits(q, q.rng("keeps_attention"))])
    p = stats.rank_p(own, null - ROUNDING, "less")
    mean = float(value.mean())
    names = [f"{m.site} head {h}" for m in heads.values() for h in m.used.nonzero().flatten().tolist()]
    by_head = {n: round(float(x), 6) for n, x in zip(names, distance.mean(0), strict=True)}
    furthest = max(by_head, key=lambda n: by_head[n])
    verdict = decide(q, met=mean <= MOST and p <= ALPHA, excluded=interval[0] > MOST or p > ALPHA)
    sentence = (
        f"In the {len(names)} attention head{'s' * (len(names) > 1)} that the circuit uses, {mean:.1%} of attention "
        f"at the asked position goes elsewhere than in the whole model (most in {furthest}: {by_head[furthest]:.1%}; "
        f"{MOST:.0%} is allowed); in random circuits of equal size {null.mean():.1%} does, at best {null.min():.1%}."
    )
    return Evidence(
        claim="keeps_attention",
        verdict=verdict,
        sentence=sentence,
        value=mean,
        unit=UNIT,
        interval=interval,
        null=NULL,
        null_value=float(null.mean()),
        p=p,
        n=len(q.verify),
        split=q.verify.name,
        seed=q.seed,
        seconds=time.perf_counter() - started,
        details={
            "allowed": MOST,
            "heads": by_head,
            "all_positions": float(everywhere.mean()),
            "distance_on_sample": own,
            "sample": len(q.sample),
            "null_draws": q.n_null,
            "null_best": float(null.min()),
        },
    )


@dataclass(frozen=True, eq=False)
class _Mixer:
    """A module that mixes positions, the site of its values, and which of its heads [H] the circuit uses."""

    module: str
    site: str
    used: Tensor


def _mixers(q: Question) -> list[_Mixer]:
    graph, out = q.circuit.graph, []
    for link in graph.links:
        group = max((s.group for s in graph.sites if s.steers == link.src), default=0)
        if link.through and group and hasattr(q.model.get_submodule(link.through), "pattern"):
            kept = q.circuit.edges[link.name].any(0)  # value channels that some kept edge reads
            out.append(_Mixer(link.through, link.src, kept.view(-1, group).any(1)))
    return out


@contextmanager
def _recorded(model: nn.Module, modules: Mapping[str, _Mixer]) -> Iterator[dict[str, Tensor]]:
    """Within the context, the pattern [B, heads in use, T, T] of every module, as its last call had it."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, used: Tensor) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            seen[name] = module.pattern(args[0], args[1])[:, used.nonzero().flatten()].cpu()

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(keep(n, m.used)) for n, m in modules.items()]
    try:
        yield seen
    finally:
        for h in handles:
            h.remove()


_Pattern = tuple[Tensor, Tensor, Tensor]  # places [K] in the split, positions asked [K], patterns [K, heads, T, T]


def _patterns(
    q: Question, split: Split, heads: Mapping[str, _Mixer], nodes: Masks | None = None, edges: Masks | None = None
) -> Iterator[_Pattern]:
    """The patterns of all heads in use, one part of the split after the other, in the model with these masks."""
    for part in q.parts(split):
        with (
            torch.no_grad(),
            _recorded(q.model, heads) as seen,
            patching.patched(q.model, part.reference, nodes, edges),
        ):
            q.model(*part.split.inputs)
        pattern = torch.cat([seen[n] for n in heads], 1)
        last = torch.full((len(part.index),), pattern.shape[-1] - 1)
        yield part.index.cpu(), part.split.inputs[1].cpu() if len(part.split.inputs) > 1 else last, pattern


def _distance(a: Iterable[_Pattern], b: Iterable[_Pattern]) -> tuple[np.ndarray, np.ndarray]:
    """Total variation per example and head [N, heads]: at the position asked, and mean over all up to it."""
    at_asked, all_up_to, places = [], [], []
    for (index, asked, x), (_, _, y) in zip(a, b, strict=True):
        gap = 0.5 * ((x - y).abs().sum(-1) + (x.sum(-1) - y.sum(-1)).abs())  # [K, heads, T]; the sink is the rest
        rows = torch.arange(len(index))
        before = torch.arange(gap.shape[-1]) <= asked[:, None]  # [K, T]
        at_asked.append(gap[rows, :, asked])
        all_up_to.append((gap * before[:, None]).sum(-1) / before.sum(-1)[:, None])
        places.append(index)
    back = torch.cat(places).argsort()
    return torch.cat(at_asked)[back].double().numpy(), torch.cat(all_up_to)[back].double().numpy()
