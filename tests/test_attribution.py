"""Attribution: algebra equals the masks' gradient equals other tools' figures; exact where a model is linear."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from bench_files import BENCH, NO_BENCH, bench_model, bench_split, read
from openwork import patching
from openwork.discover import find
from openwork.discover.attribution import attributed, input_levels, mask_levels
from openwork.discover.search import MetricName
from openwork.errors import UsageError
from openwork.models import MLP, MLPConfig
from openwork.models.components import Components
from openwork.models.transformer import Transformer
from openwork.patched_run import PatchedRun
from openwork.tasks.metrics import METRICS
from openwork.tasks.task import Split
from planted import examples, planted_model
from subject_models import VARIANTS, hooks_on, inputs_of, make

VIEWED = [n for n, c in VARIANTS.items() if n.startswith("transformer") and c.abstopk == 1]  # type: ignore[attr-defined]
LEVELS = [((1.0,), "inputs"), (input_levels(3), "inputs"), (mask_levels(3), "masks")]


class ByMasks(nn.Module):
    """A view of heads and MLPs that offers no algebra of its own."""

    def __init__(self, model: Components) -> None:
        super().__init__()
        self.sites, self.hands, self.model = model.sites, model.hands, model.model
        self.graph, self.view = model.graph, [model]  # in a list, so that its modules are not registered twice

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.view[0](*inputs)


def paired(model: nn.Module, n: int = 6, seed: int = 0, outputs: int = 0) -> Split:
    """Examples and counterparts asked at the same positions, with two wrong answers where there are enough outputs."""
    inputs = inputs_of(model, seed, 2 * n)[-1]
    if len(inputs) == 2:
        inputs = (inputs[0], inputs[1].repeat_interleave(2)[: 2 * n])
    with torch.no_grad():
        v = model(*inputs).shape[-1]
    g = torch.Generator().manual_seed(seed)
    answers = torch.stack([torch.randperm(v, generator=g)[: min(v, 3)] for _ in range(2 * n)])
    pair = torch.arange(2 * n) ^ 1
    return Split("discover", inputs, answers[:, 0], answers[:, 1:], pair, tuple(str(i) for i in range(2 * n)))


def close(a: dict[str, Tensor], b: dict[str, Tensor], share: float = 1e-5) -> None:
    """Equal to a share of the largest score."""
    assert a.keys() == b.keys()
    most = max(float(t.abs().max()) for t in b.values())
    assert most > 1e-4
    for n, t in b.items():
        assert float((a[n] - t).abs().max()) <= share * most, n


@pytest.mark.parametrize("reference", ["counterfactual", "mean", "zero"])
@pytest.mark.parametrize(("levels", "along"), LEVELS)
@pytest.mark.parametrize("name", [n for n in VIEWED if VARIANTS[n].logits > 1])  # type: ignore[attr-defined]
def test_algebra_is_the_gradient_of_masks(name: str, levels: tuple[float, ...], along: str, reference: str) -> None:
    model = make(name)
    assert isinstance(model, Transformer)
    view, split = Components(model), paired(model)
    if reference == "mean":
        given = patching.mean_reference(view, [split.inputs])
    else:
        given = patching.zero_reference(view) if reference == "zero" else reference
    metric = METRICS["logit_difference"]
    mine, masks = (
        attributed(PatchedRun(m, given), split, metric, "edges", levels, along)  # type: ignore[arg-type]
        for m in (view, ByMasks(view))
    )
    close(mine, masks, 2e-5)
    assert list(mine) == [e.name for e in view.graph().links if e.counts == "block"]


@pytest.mark.parametrize("metric", ["loss", "probability_difference", "kl"])
def test_algebra_serves_every_metric(metric: str) -> None:
    model = make("transformer, LayerNorm, unembedding bias")
    assert isinstance(model, Transformer)
    view, split = Components(model), paired(model)
    mine, masks = (
        attributed(PatchedRun(m, "counterfactual"), split, METRICS[metric], "edges", mask_levels(4), "masks")
        for m in (view, ByMasks(view))
    )
    close(mine, masks, 2e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer", "transformer, sink"])
def test_a_score_is_the_slope_of_the_metric_as_one_edge_fades(name: str) -> None:
    """Against central differences of the patched run, in double precision."""
    model = make(name)
    split = paired(model)
    model = model.double()
    split = Split(split.name, tuple(x.double() if x.is_floating_point() else x for x in split.inputs), split.answer,
                  split.wrong, split.pair, split.texts)  # fmt: skip
    run, metric = PatchedRun(model, "counterfactual"), METRICS["logit_difference"]
    scores = attributed(run, split, metric)
    tried = 0
    for link, s in scores.items():
        for at in ((0, 0), (s.shape[0] - 1, s.shape[1] - 1)):
            values = []
            for step in (1 - 1e-6, 1 + 1e-6):
                mask = torch.ones(s.shape, dtype=torch.float64)
                mask[at] = step
                with torch.no_grad():
                    values.append(float(run.values(split, None, {link: mask}, metric).mean()))
            assert float(s[at]) == pytest.approx((values[1] - values[0]) / 2e-6, abs=1e-5, rel=1e-4), (link, at)
            tried += float(s[at]) != 0
    assert tried >= 4


def linear_model() -> MLP:
    """No hidden layer: every edge acts on its own."""
    model = make("mlp without hidden layer")
    assert isinstance(model, MLP)
    return model


@pytest.mark.parametrize(("levels", "along"), LEVELS)
@pytest.mark.parametrize("of", ["edges", "nodes"])
def test_attribution_is_exact_where_the_model_is_linear(of: str, levels: tuple[float, ...], along: str) -> None:
    model = linear_model()
    split, metric = paired(model), METRICS["logit_difference"]
    run = PatchedRun(model, "counterfactual")
    scores = attributed(run, split, metric, of, levels, along)  # type: ignore[arg-type]
    with torch.no_grad():
        whole = run.values(split, metric=metric).mean()
        for name, s in scores.items():
            for at in s.new_ones(s.shape).nonzero().tolist():
                mask = torch.ones(s.shape)
                mask[tuple(at)] = 0
                nodes, edges = ({name: mask}, None) if of == "nodes" else (None, {name: mask})
                lost = whole - run.values(split, nodes, edges, metric).mean()
                torch.testing.assert_close(s[tuple(at)], lost, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("of", ["edges", "nodes"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_integrated_inputs_are_gradients_on_the_way_times_the_differences_of_the_ends(name: str, of: str) -> None:
    """Of the first nodes behind the input, worked out without masks: perturb what the site sends, by hand."""
    model = make(name)
    split, metric = paired(model), METRICS["logit_difference"]
    levels = input_levels(4)
    scores = attributed(PatchedRun(model, "counterfactual"), split, metric, of, levels, "inputs")  # type: ignore[arg-type]
    site = {"mlp": "hidden0", "cnn": "conv0", "transformer": "block0.mlp.act"}[name]
    graph = patching.graph_of(model)
    module = model.get_submodule(graph.site(site).module)
    first = {"mlp": "nodes.0", "cnn": "nodes.0", "transformer": "stream"}[name]
    start = model.get_submodule(first if name != "cnn" else graph.sites[0].module)
    other = split.counterfactual()

    def sent(m: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        kept: list[Tensor] = []
        handle = m.register_forward_hook(lambda _m, _a, out: kept.append(out.detach()))
        with torch.no_grad():
            model(*inputs)
        handle.remove()
        return kept[0]

    difference = sent(module, split.inputs) - sent(module, other)
    a, b = sent(start, other), sent(start, split.inputs)
    table = patching.record(model, split.inputs), patching.record(model, other)
    expected = torch.zeros(graph.site(site).size)
    for level in levels:
        kept: list[Tensor] = []
        handles = [
            start.register_forward_hook(lambda _m, _a, _o, level=level: torch.lerp(a, b, level)),
            module.register_forward_hook(lambda _m, _a, out, kept=kept: kept.append(out)),
        ]
        if name == "transformer":
            mixed = torch.lerp(table[1]["bigram"], table[0]["bigram"], level)
            handles.append(model.get_submodule("table").register_forward_hook(lambda *_, mixed=mixed: mixed))
        value = metric.of(model(*split.inputs), split, None).mean()
        (g,) = torch.autograd.grad(value, kept)
        for h in handles:
            h.remove()
        axis = graph.site(site).axis % g.dim()
        expected += (g * difference).sum([i for i in range(g.dim()) if i != axis]) / len(levels)
    if of == "nodes":
        got = scores[site]
    else:  # all that the node's readers lose is what the edges out of it lose together
        got = torch.stack([scores[e.name].sum(0) for e in graph.out_of(site)]).sum(0)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert float(expected.abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_integrated_masks_add_up_to_what_all_edges_do_together(name: str) -> None:
    """Smooth activations; ReLU's bends between two places would show."""
    model = make({"mlp": "mlp, silu, one output"}.get(name, name))
    if name == "mlp":
        model = MLP(MLPConfig(inputs=7, hidden=(6, 5), outputs=4, activation="silu"))
    split, metric = paired(model), METRICS["logit_difference"]
    run = PatchedRun(model, "counterfactual")
    scores = attributed(run, split, metric, "edges", mask_levels(64), "masks")
    with torch.no_grad():
        none = run.values(split, None, {n: torch.zeros(s.shape) for n, s in scores.items()}, metric).mean()
        whole = run.values(split, metric=metric).mean()
    assert abs(float(whole - none)) > 1e-3
    assert sum(float(s.sum()) for s in scores.values()) == pytest.approx(float(whole - none), rel=2e-2, abs=2e-3)


def test_kl_at_the_whole_model_is_refused() -> None:
    """It is zero there and flat, so every score would be zero."""
    model = planted_model()
    split = examples("discover", 8, 7)
    with pytest.raises(UsageError, match="flat"):
        find(model, "counterfactual", split, "attribution", metric="kl")
    found = find(model, "counterfactual", split, "ig_inputs", metric="kl")
    assert found.scores is not None
    assert float(found.scores.values["hidden1>logits"].abs().max()) > 0
    assert hooks_on(model) == 0


def test_sizes_are_ranked_unless_signs_are_asked_for() -> None:
    """A neuron that speaks for the wrong answer is kept for its size; by sign it is the first to go."""
    model = MLP(MLPConfig(inputs=2, hidden=(), outputs=2))
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.tensor([[1.0, -0.5], [0.0, 0.0]]))
        model.layers[0].bias.zero_()
    x = torch.tensor([[2.0, 1.0], [-2.0, -1.0]])
    split = Split("discover", (x,), torch.tensor([0, 1]), torch.tensor([[1], [0]]), torch.tensor([1, 0]), ("a", "b"))
    zero = patching.zero_reference(model)
    by_size, by_sign = (
        find(model, zero, split, "attribution", metric="logit_difference", ranking=r, target=0.3, control=True)
        for r in ("absolute", "signed")
    )
    for found in (by_size, by_sign):
        assert found.scores is not None
        torch.testing.assert_close(found.scores.values["input>logits"], torch.tensor([[2.0, -0.5], [0.0, 0.0]]))
        assert found.circuit is not None
    assert by_sign.circuit is not None
    assert by_sign.circuit.edges["input>logits"].tolist() == [[True, False], [False, False]]


def test_the_metrics_that_may_be_asked_for_are_all_there_are() -> None:
    assert set(get_args(MetricName)) == set(METRICS)


@pytest.mark.skipif(not BENCH.exists(), reason=NO_BENCH)
def test_scores_are_those_of_eap_ig() -> None:
    """Stored by its released code: EAP, one gradient; it divides by the number of prompts twice (a mean metric)."""
    model, both = bench_model(), bench_split()
    view = Components(model)
    clean = both.take(torch.arange(64))
    other = tuple(x[64:] for x in both.inputs)
    metric = METRICS["logit_difference"]
    scores = view.edge_attribution(
        clean.inputs, patching.record(view, other), lambda logits: metric.of(logits, clean, None).sum()
    )
    stored = {n: e["score"] for n, e in read("small_quote_eap_ig_format.json")["edges"].items()}
    mine = {}
    for link, s in scores.items():
        src, dst = link.split(">")
        for (i, j), value in zip(s.new_ones(s.shape).nonzero().tolist(), (s / 64**2).flatten().tolist(), strict=True):
            head, _, part = dst.partition(".")
            mine[f"{src}.h{j}" * (src[0] == "a") or src, f"{head}.h{i}<{part}>" if part else dst] = value
    assert {f"{a}->{b}" for a, b in mine} == stored.keys()
    most = max(abs(v) for v in stored.values())
    assert max(abs(v - stored[f"{a}->{b}"]) for (a, b), v in mine.items()) <= 1e-5 * most
