"""Runs of edges, fast and batched, agree with the plain patched run of the same edges, whatever came before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from openwork import patching
from openwork.errors import UsageError
from openwork.models.components import Components
from openwork.models.edge_runs import ASKED, EVERYWHERE, EdgeRuns
from openwork.models.transformer import Transformer
from openwork.patching import Reference, patched, record
from subject_models import VARIANTS, inputs_of, make

VIEWED = [
    n
    for n, c in VARIANTS.items()
    if n.startswith("transformer") and c.abstopk == 1  # type: ignore[attr-defined]
]
CLOSE = {"rtol": 1e-4, "atol": 5e-5}


def start(name: str, kind: str) -> tuple[Components, tuple[Tensor, ...], Reference]:
    model = make(name)
    assert isinstance(model, Transformer)
    view, inputs = Components(model), inputs_of(model)[-1]
    if kind == "mean":
        return view, inputs, patching.mean_reference(view, [inputs])
    return view, inputs, record(view, (inputs_of(model, seed=7)[-1][0], inputs[1]))


def plainly(view: Components, inputs: tuple[Tensor, ...], reference: Reference, masks: dict[str, Tensor]) -> Tensor:
    with patched(view, reference, edges=masks):
        return view(*inputs)


@pytest.mark.parametrize("kind", ["counterfactual", "mean"])
@pytest.mark.parametrize("name", VIEWED)
@torch.no_grad()
def test_every_run_is_the_plain_run_of_the_same_edges(name: str, kind: str) -> None:
    """A random walk: variants of one reader's edges side by side, now and then one of them kept."""
    view, inputs, reference = start(name, kind)
    links = [e for e in view.graph().links if e.counts == "block"]
    g = torch.Generator().manual_seed(0)
    for share in (1.0, 0.6, 0.4, 0.3):
        masks = {e.name: torch.rand(e.shape, generator=g) < share for e in links}
        runs = EdgeRuns(view.model, inputs, reference)
        torch.testing.assert_close(runs.begin(masks), plainly(view, inputs, reference, masks), **CLOSE)
        for step in range(8):
            reader = links[int(torch.randint(len(links), (), generator=g))].dst
            into = [e for e in links if e.dst == reader]
            dst = int(torch.randint(into[0].shape[0], (), generator=g))
            edges = [(e.name, (dst, src)) for e in into for src in range(e.shape[1])]
            some = [edges[int(torch.randint(len(edges), (), generator=g))] for _ in range(3)]
            changes = [some[: k + 1] for k in range(3)]
            logits = runs.trial(changes)
            for change, got in zip(changes, logits, strict=True):
                tried = {n: m.clone() for n, m in masks.items()}
                for link, at in change:
                    tried[link][at] = False
                torch.testing.assert_close(got, plainly(view, inputs, reference, tried), **CLOSE)
            if step % 2:
                runs.keep(1)
                for link, at in changes[1]:
                    masks[link][at] = False


@pytest.mark.parametrize("part", ["q", "k", "v"])
@torch.no_grad()
def test_what_only_keys_or_values_read_is_heard_at_all_positions(part: str) -> None:
    """The last layer is asked at one position; its keys and values are read at all of them, its queries are not."""
    view, inputs, reference = start("transformer, LayerNorm, unembedding bias", "counterfactual")
    masks = {e.name: torch.zeros(e.shape, dtype=torch.bool) for e in view.graph().links}
    for link in ("input>a0.q", "input>a0.k", "input>a0.v", f"a0>a1.{part}", "input>a1.v", "a1>logits"):
        masks[link][:] = True
    runs = EdgeRuns(view.model, inputs, reference)
    torch.testing.assert_close(runs.begin(masks), plainly(view, inputs, reference, masks), **CLOSE)
    assert runs.heard[runs.first("a0")] == (ASKED if part == "q" else EVERYWHERE)
    tried = {n: m.clone() for n, m in masks.items()}
    tried["input>a0.v"][1, 0] = False
    (got,) = runs.trial([[("input>a0.v", (1, 0))]])
    torch.testing.assert_close(got, plainly(view, inputs, reference, tried), **CLOSE)
    assert not torch.allclose(got, runs.logits, atol=1e-4)


@torch.no_grad()
def test_nothing_that_is_unheard_or_before_is_run_again() -> None:
    """The last MLP's edges: no other block is called, and the last one only where it is asked."""
    view, inputs, reference = start("transformer, LayerNorm, unembedding bias", "counterfactual")
    runs = EdgeRuns(view.model, inputs, reference)
    runs.begin({})
    seen: list[tuple[str, torch.Size]] = []
    for path, module in view.model.named_modules():
        if path.endswith("mlp.up") or path.endswith("norm"):
            module.register_forward_hook(lambda _m, args, _o, path=path: seen.append((path, args[0].shape)))
    runs.trial([[("m0>m1", (0, 0))], [("input>m1", (0, 0))]])
    batch, width = len(inputs[0]), view.model.config.d_model
    assert seen == [(path, torch.Size([2, batch, width])) for path in ("blocks.1.mlp.norm", "blocks.1.mlp.up", "norm")]
    runs.trial([[("m1>logits", (0, 0))]])
    runs.keep(0)
    seen.clear()
    runs.trial([[("m0>m1", (0, 0))]])  # leads nowhere now
    assert seen == []


def test_without_a_position_that_is_asked_it_is_refused() -> None:
    view, inputs, reference = start("transformer", "counterfactual")
    assert view.edge_runs(inputs[:1], reference) is None
    with pytest.raises(UsageError, match="at"):
        EdgeRuns(view.model, inputs[:1], reference)
