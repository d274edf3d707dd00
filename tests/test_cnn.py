"""Convolutions as links: edges are kernels, counted, ablated, stored, trained, searched and shown as such."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openwork import models, patching, store
from openwork.circuit import Circuit
from openwork.discover import find, trim
from openwork.errors import UsageError
from openwork.explain.dossier import build_dossier
from openwork.models.cnn import CNN, CNNConfig, ConvBlock
from openwork.patching import graph_of, patched, record
from openwork.tasks.task import Split, Task
from openwork.training import TopK, TopKSettings
from openwork.training.matrices import dead_neurons
from openwork.verify.question import live_nodes
from subject_models import inputs_of, make


def weight(model: nn.Module, link: str) -> Tensor:
    """The weights of a link, to be changed in place."""
    return patching.weight_of(model.get_submodule(graph_of(model).link(link).module)).data


# -- the model -------------------------------------------------------------------------------------------------------


def test_the_default_is_the_lenet_of_caffe() -> None:
    model = models.build({"kind": "cnn"})
    assert CNNConfig().maps() == [(1, 28, 28), (20, 12, 12), (50, 4, 4)]
    sizes = [p.numel() for n, p in model.named_parameters() if n.endswith("weight")]
    assert sizes == [20 * 1 * 25, 50 * 20 * 25, 800 * 500, 500 * 10]


def test_it_computes_what_plain_layers_do() -> None:
    """Conv, ReLU, pool, flatten, linear: the layer that reads maps holds the weights of nn.Linear on flat features."""
    model = make("cnn")
    _, (x,) = inputs_of(model)
    (w0, b0), (w1, b1), (w2, b2), (w3, b3), (w4, b4) = ((m.weight, m.bias) for m in model.layers)  # type: ignore[union-attr]
    h = F.max_pool2d(F.relu(F.conv2d(x, w0, b0)), 2)
    h = F.relu(F.conv2d(h, w1, b1))
    h = F.relu(F.linear(h.flatten(1), w2.flatten(1), b2))
    expected = F.linear(F.relu(F.linear(h, w3, b3)), w4, b4)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model(x.flatten(1)), expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image": [1, 4, 9]}, "block 0 does not fit the 4 x 9 positions"),
        ({"image": [1, 12, 12]}, "block 1 does not fit the 4 x 4 positions"),
        ({"image": [0, 28, 28]}, "at least 1"),
        ({"hidden": [0]}, "at least 1"),
        ({"blocks": [{"channels": 3, "kernal": 3}]}, "kernal"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models.build({"kind": "cnn", **config})


# -- ablation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", [True, False])
@torch.no_grad()
def test_masked_kernels_compute_what_a_sum_over_single_kernels_does(constant: bool) -> None:
    """out[dst] = b + sum over src of w[dst, src] * (m h[src] + (1 - m) r[src]), channel by channel, by hand."""
    model = make("cnn")
    (inputs, _), (other, _) = inputs_of(model), inputs_of(model, seed=5)
    reference = patching.mean_reference(model, [inputs, other]) if constant else record(model, other)
    g = torch.Generator().manual_seed(0)
    masks = {e.name: torch.rand(e.shape, generator=g).round() for e in graph_of(model).links}
    with patched(model, reference, edges=masks):
        out = model(*inputs)

    h = inputs[0].view(-1, *model.config.image)  # type: ignore[union-attr]
    for i, (e, layer) in enumerate(zip(graph_of(model).links, model.layers, strict=True)):  # type: ignore[arg-type]
        n_dst, n_src = e.shape
        r = reference[e.src]
        sent = []
        for dst in range(n_dst):
            total = layer.bias[dst]
            for src in range(n_src):
                ref = (r[src] if constant else r[:, src]).expand_as(h[:, src])
                x = masks[e.name][dst, src] * h[:, src] + (1 - masks[e.name][dst, src]) * ref
                w = layer.weight[dst, src]
                total = total + (F.conv2d(x[:, None], w[None, None])[:, 0] if x.dim() == 3 else w * x)
            sent.append(total)
        h = torch.stack(sent, 1)
        h = F.relu(h) if i < 4 else h
        h = F.max_pool2d(h, 2) if i == 0 else h
        h = h.flatten(1) if h.shape[2:] == (1, 1) else h
    torch.testing.assert_close(out, h, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_convolution_of_ones_own_may_pad_stride_and_dilate() -> None:
    g = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2)
    h, r = (torch.randn(2, 3, 9, 8, generator=g) for _ in range(2))
    ablated = torch.rand(4, 3, generator=g).round()
    out = layer(h) + patching.carry(layer, r, h, ablated)
    for dst in range(4):
        mixed = torch.where(ablated[dst, :, None, None] == 1, r, h)
        torch.testing.assert_close(out[:, dst], layer(mixed)[:, dst], rtol=1e-5, atol=1e-5)
    for refused in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")):
        h = torch.zeros(1, 4, 9, 9)
        with pytest.raises(UsageError, match="supported"):
            patching.carry(refused, h, h, torch.ones(4, 4))


@torch.no_grad()
def test_an_edge_is_a_kernel_with_all_its_weights() -> None:
    model = make("cnn")
    inputs = inputs_of(model)[0]
    circuit = Circuit.whole(graph_of(model), patching.support(model))
    for link in ("conv0>conv1", "conv1>hidden0"):  # the second holds a weight per position of the map
        edges = {n: m.clone() for n, m in circuit.edges.items()}
        assert edges[link][1, 2]
        edges[link][1, 2] = False
        ablated = patching.run(model, inputs, replace(circuit, edges=edges), patching.zero_reference(model))
        cut = make("cnn")
        assert int((weight(cut, link)[1, 2] != 0).sum()) > 1
        weight(cut, link)[1, 2] = 0
        torch.testing.assert_close(ablated, cut(*inputs), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(ablated, model(*inputs), rtol=1e-3, atol=1e-3)


def test_edges_are_counted_by_kernel_and_an_empty_kernel_is_none() -> None:
    model = make("cnn")
    for e in graph_of(model).links:
        weight(model, e.name).fill_(1)
    w = weight(model, "conv0>conv1")
    w[0, 0] = 0
    w[0, 1] = 0
    w[0, 1, 1, 0] = 1  # one weight is left
    graph, where = graph_of(model), patching.support(model)
    assert where["conv0>conv1"].tolist() == [[False, True, True], *[[True] * 3] * 3]
    whole = Circuit.whole(graph, where)
    assert whole.counts()["edges"] == sum(d * s for d, s in (e.shape for e in graph.links)) - 1
    w[0] = 0
    assert live_nodes(model)["conv1"].tolist() == [False, True, True, True]
    weight(model, "conv1>hidden0")[:, 3] = 0
    assert live_nodes(model)["conv1"].tolist() == [False, True, True, False]
    assert dead_neurons(model) == pytest.approx(2 / (3 + 4 + 5 + 4))


# -- storing and training --------------------------------------------------------------------------------------------


def test_sparse_kernels_are_stored_by_index_and_come_back(tmp_path: Path) -> None:
    model = make("cnn")
    w = weight(model, "conv0>conv1")
    w.mul_(torch.arange(w.numel()).view(w.shape) % 9 == 0)
    store.save_model(tmp_path / "m", model)
    assert "layers.1.weight.indices" in store.read_tensors(tmp_path / "m" / "model.safetensors")
    again = store.load_model(tmp_path / "m")
    assert store.model_digest(again) == store.model_digest(model)


def test_topk_keeps_single_weights_of_kernels_and_the_floors_of_channels() -> None:
    config = CNNConfig(image=(1, 12, 12), blocks=(ConvBlock(channels=8, kernel=3), ConvBlock(channels=6, kernel=3)))
    for floor in (0, 3):
        model = models.build(config)
        largest = {n: p.detach().abs().flatten().sort().values for n, p in model.named_parameters()}
        regime = TopK(TopKSettings(density=0.05, floor=floor, anneal_from=0, anneal_until=0))
        regime.prepare(model, 1)
        regime.after_step(model, torch.optim.SGD(model.parameters()), 1)
        for name, p in ((n, p) for n, p in model.named_parameters() if p.dim() == 4):
            kept, k = p != 0, round(0.05 * p.numel())
            if floor == 0:
                assert int(kept.sum()) == k
                assert torch.equal(p[kept].detach().abs().sort().values, largest[name][-k:])
            else:
                assert int(kept.flatten(1).sum(1).min()) >= 3
                if p.shape[1] > 1:  # what reads channels leaves each of them some weights too; the image is owed none
                    assert int(kept.transpose(0, 1).flatten(1).sum(1).min()) >= 3


# -- circuits --------------------------------------------------------------------------------------------------------


def planted() -> tuple[CNN, Circuit]:
    """Which of two colours is brighter: channels 0 and 1 carry one each, units 0 and 1 sum them; the rest is idle."""
    config = CNNConfig(image=(2, 6, 6), blocks=(ConvBlock(channels=4, kernel=3, pool=2),), hidden=(3,), outputs=2)
    model = models.build(config)
    assert isinstance(model, CNN)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for i in range(2):
            weight(model, "input>conv0")[i, i] = 1
            weight(model, "conv0>hidden0")[i, i] = 1
            weight(model, "hidden0>logits")[i, i] = 0.5
        weight(model, "input>conv0")[2:] = torch.randn(2, 2, 3, 3, generator=g) * 0.1
        weight(model, "conv0>hidden0")[2, 2:] = 0.1
        weight(model, "hidden0>logits")[:, 2] = 0.1  # the same for both answers
    graph = graph_of(model)
    nodes = {n: torch.tensor(m).bool() for n, m in (("conv0", [1, 1, 0, 0]), ("hidden0", [1, 1, 0]))}
    return model.eval(), Circuit.from_nodes(graph, nodes, patching.support(model))


def colours(name: str, n: int, seed: int) -> Split:
    """Pairs of images [2, 6, 6], flat, of which one of the colours is brighter."""
    g = torch.Generator().manual_seed(seed)
    answer = torch.arange(2 * n) % 2
    x = torch.rand(2 * n, 2, 6, 6, generator=g) * 0.2
    x[torch.arange(2 * n), answer] += 0.5
    texts = tuple(f"image {i}" for i in range(2 * n))
    return Split(name, (x.flatten(1),), answer, 1 - answer[:, None], torch.arange(2 * n) ^ 1, texts)


def test_the_planted_circuit_is_found_and_trimmed_to_its_kernels() -> None:
    model, truth = planted()
    split, reference = colours("discover", 40, 1), patching.zero_reference(model)
    found = find(model, reference, split, "masks", target=0.005, steps=150)
    assert found.circuit is not None
    trimmed = trim(model, found.circuit, reference, split, 0.005)
    assert trimmed.circuit == truth and trimmed.one_minimal
    assert truth.counts()["edges"] == 6 and truth.counts()["nodes"] == 4


def test_the_dossier_tells_a_channel_by_the_peak_of_its_map() -> None:
    model, truth = planted()
    split = colours("explain", 20, 2)
    task = Task("colours", "which colour", {"explain": split}, ("red", "blue"))
    dossier = build_dossier(model, truth, patching.zero_reference(model), task, None, None)
    nodes = {n["id"]: n for n in dossier["nodes"]}
    assert {"input:0", "conv0:0", "conv0:1", "hidden0:1", "logits:0"} <= nodes.keys() and "conv0:2" not in nodes
    maps = record(model, split.inputs)["conv0"]
    peaks = maps[:, 1].flatten(1).max(1).values
    best = nodes["conv0:1"]["top"][0]
    assert best["act"] == pytest.approx(float(peaks.max()), rel=1e-4) and len(best["pixels"]) == 72
    assert best["label"] == "1"
    assert nodes["conv0:1"]["effect"] > 0.01
    edges = {(e["src"], e["dst"]): e["weight"] for e in dossier["edges"]}
    kernels = [("input:0", "conv0:0", 3.0), ("conv0:1", "hidden0:1", 2.0), ("hidden0:0", "logits:0", 0.5)]
    for src, dst, size in kernels:  # the root of the sum of squares: 9 and 4 ones
        assert edges[src, dst] == pytest.approx(size)
    assert len(edges) == 6
