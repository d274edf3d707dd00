"""Certificates: folding is exact, no sampled input breaks a bound, and nothing found contradicts what was proved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from openwork import patching, verify
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Circuit
from openwork.errors import UsageError
from openwork.models import MLP, MLPConfig, build
from openwork.models.folded import Subsets, folded
from openwork.models.mlp import EmbeddingConfig
from openwork.tasks.task import Split
from openwork.verify import Question, bounds
from openwork.verify.certified import Certificate, ball, certified, certify
from planted import PLANTED, WRONG, circuit_of, examples, planted_model
from subject_models import VARIANTS, inputs_of, make

SIZES = {"inputs": 4, "hidden": (6, 5), "outputs": 3}


def random_mlp(seed: int, scale: float = 1.0, **config: object) -> MLP:
    model = build(MLPConfig(**{**SIZES, **config}), seed)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=g))
    return model  # type: ignore[return-value]


def random_circuit(model: nn.Module, seed: int, share: float = 0.7) -> Circuit:
    g = torch.Generator().manual_seed(seed)
    graph = patching.graph_of(model)
    nodes = {s.name: torch.rand(s.size, generator=g) < share for s in graph.prunable}
    circuit = Circuit.from_nodes(graph, nodes, patching.support(model))
    edges = {n: m & (torch.rand(m.shape, generator=g) < 0.9) for n, m in circuit.edges.items()}
    return replace(circuit, edges=edges)


def split_of(x: Tensor, outputs: int, seed: int = 0, pairs_of: int = 2) -> Split:
    g = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(outputs, generator=g) for _ in x])
    none = torch.full((len(x),), -1)
    return Split("verify", (x,), order[:, 0], order[:, 1:pairs_of], none, ("",) * len(x))


def question(seed: int, n: int = 40, answers: int = 2, scale: float = 1.0) -> Question:
    model = random_mlp(seed, scale)
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    reference = patching.mean_reference(model, [(x,)])
    circuit = random_circuit(model, seed, 0.9)
    return Question(model, circuit, reference, split_of(x, 3, seed, answers), None, 0.5, n_null=19)


def decisions(q: Question, z: Tensor, circuit: Circuit | None) -> Tensor:
    """Which of its answers every example decides at z [N, F]."""
    choices = torch.cat([q.verify.wrong, q.verify.answer[:, None]], 1)
    with torch.no_grad():
        return patching.run(q.model, (z,), circuit, q.reference).gather(1, choices).argmax(1)


# -- folding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [n for n in VARIANTS if n.startswith("mlp") and "abstopk" not in n and "over" not in n]
)
@pytest.mark.parametrize("seed", range(4))
def test_a_folded_circuit_computes_its_patched_run(name: str, seed: int) -> None:
    model = make(name)
    (x,) = inputs_of(model)[0]
    reference = patching.mean_reference(model, [(x,)]) if seed % 2 else patching.zero_reference(model)
    for circuit in (None, random_circuit(model, seed), Circuit.empty(patching.graph_of(model))):
        z = x.double()
        layers = folded(model, circuit, reference)
        for w, b in layers[:-1]:
            z = z @ w.T + b
            z = z.clamp(min=0) if model.config.activation == "relu" else z * torch.sigmoid(z)  # type: ignore[union-attr]
        z = z @ layers[-1][0].T + layers[-1][1]
        with torch.no_grad():
            expected = patching.run(model, (x,), circuit, reference)
        assert torch.allclose(z.float(), expected, atol=1e-6, rtol=1e-6)


def test_subsets_in_one_run_are_the_patched_runs() -> None:
    model = random_mlp(1)
    circuit = random_circuit(model, 1)
    x = torch.randn(9, 4)
    reference = patching.mean_reference(model, [(x,)])
    layout = model.subsets(circuit, reference)
    assert isinstance(layout, Subsets)
    g = torch.Generator().manual_seed(0)
    masks = {n: m & (torch.rand(5, *m.shape, generator=g) < 0.7) for n, m in layout.edges.items()}
    out = layout(x, masks)
    index = patching.Layout(model, circuit, reference).edge_index
    for s in range(5):
        edges = {n: torch.zeros_like(m) for n, m in circuit.edges.items()}
        for n, (dst, src) in index.items():
            rows = dst if n != "hidden1>logits" else torch.arange(3)
            edges[n][rows[:, None], src[None]] = masks[n][s]
        with torch.no_grad():
            expected = patching.run(model, (x,), replace(circuit, edges=edges), reference)
        assert torch.allclose(out[s].float(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mlp, abstopk", "AbsTopK"),
        ("mlp over an embedding of two slots", "token ids"),
        ("transformer", "no perceptron"),
    ],
)
def test_what_cannot_be_folded_is_refused_and_has_no_such_evidence(name: str, why: str) -> None:
    model = make(name)
    with pytest.raises(UsageError, match=why):
        folded(model, None, patching.zero_reference(model))
    graph = patching.graph_of(model)
    inputs = inputs_of(model)[0]
    n = len(inputs[0])
    split = replace(split_of(torch.zeros(n, 1), 2), inputs=inputs)
    whole = Circuit.whole(graph, patching.support(model))
    q = Question(model, whole, patching.zero_reference(model), split, None, 0.5)
    assert certified(q) is None
    assert verify.verify(q, ["certified"]) == ()
    with pytest.raises(UsageError, match=why):
        certify(q)


def test_silu_is_refused_and_so_are_wrong_radii() -> None:
    model = random_mlp(0, activation="silu")
    x = torch.randn(8, 4)
    q = Question(model, random_circuit(model, 0), patching.zero_reference(model), split_of(x, 3), None, 0.5)
    with pytest.raises(UsageError, match="silu.*relu"):
        certify(q)
    assert certified(q) is None
    for radii in ((), (-0.1,), (1.5,), (float("nan"),)):
        with pytest.raises(UsageError, match="radii"):
            certify(question(0), radii)
    with pytest.raises(UsageError, match="one value per input"):
        folded(q.model, q.circuit, patching.counterfactual_reference(q.model, (x,)))
    assert (
        build(
            MLPConfig(inputs=4, hidden=(3,), outputs=2, embedding=EmbeddingConfig(symbols=3, slots=2, width=2))
        ).subsets(  # type: ignore[operator]
            q.circuit, q.reference
        )
        is None
    )


# -- bounds ----------------------------------------------------------------------------------------------------------


def layers_and_box(seed: int, radius: float) -> tuple[list[tuple[Tensor, Tensor]], bounds.Box, Tensor]:
    """Layers, a box around 5 inputs, and 400 points of each box, corners among them: [400, 5, F]."""
    model = random_mlp(seed, hidden=(6, 5, 4))
    layers = folded(model, None, patching.zero_reference(model))
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 4, generator=g)
    box = ball(x, radius, (-2.0, 2.0))
    share = torch.rand(400, 5, 4, generator=g, dtype=torch.float64)
    share[:200] = share[:200].round()
    return layers, box, box[0] + share * (box[1] - box[0])


def values(layers: list[tuple[Tensor, Tensor]], z: Tensor) -> list[Tensor]:
    """Every layer's values before its ReLU."""
    out = []
    for w, b in layers:
        out.append(z @ w.T + b)
        z = out[-1].clamp(min=0)
    return out


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), radius=st.sampled_from([0.0, 0.01, 0.1, 0.5, 2.0]))
def test_no_point_of_the_box_breaks_a_bound(seed: int, radius: float) -> None:
    layers, box, z = layers_and_box(seed, radius)
    seen = values(layers, z)
    rough, fine = bounds.intervals(layers, box), bounds.hidden_bounds(layers, box)
    for i, (low, high) in enumerate(rough):
        assert (seen[i] >= low - 1e-9).all()
        assert (seen[i] <= high + 1e-9).all()
        if i < len(fine):
            assert (seen[i] >= fine[i][0] - 1e-9).all()
            assert (seen[i] <= fine[i][1] + 1e-9).all()
            assert (fine[i][0] >= low).all() and (fine[i][1] <= high + 1e-12).all()  # never looser than intervals
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(5, 7, 3, generator=g, dtype=torch.float64)
    asked = torch.einsum("snv,nkv->snk", seen[-1], rows)
    a, c = bounds.linear_below(layers, fine, rows)
    assert (asked >= torch.einsum("nkf,snf->snk", a, z) + c - 1e-9).all()
    assert (asked >= bounds.least(a, c, box) - 1e-9).all()


def test_linear_bounds_are_much_tighter_than_intervals_where_it_matters() -> None:
    wins = []
    for seed in range(20):
        layers, box, _ = layers_and_box(seed, 0.1)
        one = torch.eye(3, dtype=torch.float64).expand(5, -1, -1)
        low = bounds.least(*bounds.linear_below(layers, bounds.hidden_bounds(layers, box), one), box)
        high = -bounds.least(*bounds.linear_below(layers, bounds.hidden_bounds(layers, box), -one), box)
        rough = bounds.intervals(layers, box)[-1]
        wins.append(float((high - low).mean() / (rough[1] - rough[0]).mean()))
    assert sum(wins) / len(wins) < 0.5


def test_bounds_of_a_point_are_its_values_and_of_a_network_without_bends_exact() -> None:
    layers, box, z = layers_and_box(3, 0.0)
    low, high = bounds.intervals(layers, box)[-1]
    assert torch.allclose(low, high)
    assert torch.allclose(low, values(layers, z)[-1][0])
    w, b = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([3.0]).double()
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    unit = (-torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    assert bounds.least(*bounds.linear_below([(w, b)], [], one), unit).item() == 0.0  # 3 - 1 - 2
    assert bounds.least(*bounds.linear_below([(w, b)], [], -one), unit).item() == -6.0


def test_the_relaxation_is_the_one_worked_out_by_hand() -> None:
    """relu(z) on [-1, 2]: above it the line 2 (z + 1) / 3, below it z; on [-2, 1]: 0 below it."""
    net = [(torch.ones(1, 1).double(), torch.zeros(1).double())] * 2
    for (low, high), (slope, above, offset) in {
        (-1.0, 2.0): (1.0, 2 / 3, 2 / 3),
        (-2.0, 1.0): (0.0, 1 / 3, 2 / 3),
    }.items():
        box = (torch.tensor([[low]]).double(), torch.tensor([[high]]).double())
        one = torch.ones(1, 1, 1, dtype=torch.float64)
        a, c = bounds.linear_below(net, bounds.hidden_bounds(net, box), one)
        assert (a.item(), c.item()) == (slope, 0.0)
        a, c = bounds.linear_below(net, bounds.hidden_bounds(net, box), -one)
        assert (-a.item(), -c.item()) == pytest.approx((above, offset))


@pytest.mark.parametrize("seed", range(8))
def test_the_slack_covers_what_float32_does(seed: int) -> None:
    model = random_mlp(seed, 3.0, inputs=60, hidden=(50, 50))
    circuit = random_circuit(model, seed)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 60, generator=g)
    reference = patching.mean_reference(model, [(x,)])
    layers, whole = folded(model, circuit, reference), folded(model, None, reference)
    net = bounds.network(layers, whole, [reference[e.src].double() for e in circuit.graph.links])
    allowed = bounds.slack(net, (x.double(), x.double()))
    with torch.no_grad():
        off = (patching.run(model, (x,), circuit, reference).double() - values(layers, x.double())[-1]).abs()
    assert (off <= allowed).all()
    assert float(off.max()) > 0
    assert float(allowed.max() / values(layers, x.double())[-1].abs().max()) < 1e-2  # and is no blank cheque


def test_leaving_out_what_nothing_reads_changes_no_bound() -> None:
    q = question(2)
    layers = folded(q.model, random_circuit(q.model, 5, 0.4), q.reference)
    net = bounds.network(layers, layers, [w[0] for w, _ in layers])
    assert sum(w.numel() for w, _ in net.layers) < sum(w.numel() for w, _ in layers)
    z = torch.randn(20, 4, dtype=torch.float64)
    assert torch.allclose(values(net.layers, z)[-1], values(layers, z)[-1])


# -- certificates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("answers", [2, 3])
def test_certified_true_and_attacked_stand_in_this_order(seed: int, answers: int) -> None:
    """Random points and corners of every ball contradict no certificate; shares fall as the radius grows."""
    q = question(seed, answers=answers, scale=0.7)
    radii = (0.0, 0.01, 0.03, 0.1, 0.3)
    found = certify(q, radii)
    x = q.verify.inputs[0]
    limits = (float(x.min()), float(x.max()))
    centre = decisions(q, x, None)
    g = torch.Generator().manual_seed(seed)
    for c in found:
        assert not (c.proved & c.moved).any()
        assert not (c.parted & ~c.moved).any()
        low, high = (t.float() for t in ball(x, c.radius * (limits[1] - limits[0]), limits))
        for k in range(40):
            share = torch.rand(x.shape, generator=g)
            z = low + (share.round() if k % 2 else share) * (high - low)
            z = torch.minimum(torch.maximum(z, low), high)
            model, circuit = decisions(q, z, None), decisions(q, z, q.circuit)
            assert not (c.proved & ((model != centre) | (circuit != centre))).any()
    for near, far in zip(found[:-1], found[1:], strict=True):
        assert not (far.proved & ~near.proved).any()
        assert not (near.moved & ~far.moved).any()
    at_x = found[0]
    assert torch.equal(at_x.parted, decisions(q, x, q.circuit) != centre)
    assert torch.equal(at_x.proved, ~at_x.parted)  # a point needs no relaxation
    assert int(found[1].proved.sum()) > 0


def linear(*margin: float) -> bounds.Network:
    """Two logits of x0, x1: the first is w0 x0 + w1 x1 + b, the second 0."""
    layers = [(torch.tensor([margin[:2], (0.0, 0.0)]).double(), torch.tensor([margin[2], 0.0]).double())]
    return bounds.network(layers, layers, [torch.zeros(2).double()])


def test_answers_are_beaten_exactly_where_a_margin_keeps_its_sign() -> None:
    box = (torch.tensor([[-1.0, -1.0]] * 3).double(), torch.tensor([[1.0, 1.0]] * 3).double())
    choices = torch.tensor([[0, 1], [1, 0], [0, 1]])
    for bias, expected in ((3.1, [False, True]), (-3.1, [True, False]), (2.9, [False, False]), (3.0, [False, False])):
        got = bounds.beaten(linear(1.0, -2.0, bias), box, choices)  # the margin is bias +- 3; a tie beats nobody
        assert got[0].tolist() == expected
        assert got[1].tolist() == expected[::-1]
        assert torch.equal(got[0], got[2])


def test_alike_is_one_answer_and_the_same_one() -> None:
    left, right, open_ = [False, True], [True, False], [False, False]
    table = [
        (left, left, True),
        (right, right, True),
        (left, right, False),
        (left, open_, False),
        (open_, open_, False),
    ]
    model, circuit = (torch.tensor([row[i] for row in table]) for i in (0, 1))
    assert bounds.decide_alike(model, circuit).tolist() == [row[2] for row in table]


def test_a_chain_of_defeats_counts_too() -> None:
    """Answer 2 loses to 1 everywhere and 1 to 0: that 2 loses to 0 need not be shown as well."""
    beaten = torch.tensor([[False, True, True]])
    assert bounds.decide_alike(beaten, beaten).tolist() == [True]


def test_the_ball_holds_its_centre_and_keeps_to_the_data() -> None:
    x = torch.tensor([[0.0, 0.5, 1.0]])
    low, high = ball(x, 0.1, (0.0, 1.0))
    assert low.tolist()[0] == pytest.approx([0.0, 0.4, 0.9])
    assert high.tolist()[0] == pytest.approx([0.1, 0.6, 1.0])
    assert (low <= x).all() and (x <= high).all()
    assert torch.equal(low.float().double(), low)


# -- the evidence ----------------------------------------------------------------------------------------------------


def planted(kept: dict[str, list[int]], pairs: int = 40) -> Question:
    model = planted_model()
    return Question(
        model, circuit_of(model, kept), patching.zero_reference(model), examples("verify", pairs, 0), None, 0.1,
        n_null=40,
    )  # fmt: skip


def test_the_planted_circuit_is_certified_up_to_the_margin_and_no_further() -> None:
    """Both networks decide by the sign of x0, and |x0| >= 1: every smaller ball is safe, every larger one is not."""
    q = planted(PLANTED)
    x = q.verify.inputs[0]
    width = float(x.max() - x.min())
    margin = x[:, 0].abs() / width
    inside, outside = float(margin.min()) * 0.99, float(margin.max()) * 1.01
    near, far = certify(q, (inside, outside))
    assert near.proved.all()
    assert not near.moved.any()
    assert far.moved.all()  # the attack finds the way, whichever corner it starts from
    assert not far.proved.any()


def test_evidence_holds_fails_and_is_open_where_it_should() -> None:
    good, bad = certified(planted(PLANTED)), certified(planted(WRONG))
    assert good is not None and bad is not None
    assert (good.verdict, good.value) == (HOLDS, 1.0)
    assert (bad.verdict, bad.value) == (FAILS, 0.0)
    assert bad.details["attacked_interval"][0] > 1 - bad.details["bar"]
    wide = certified(planted(PLANTED), radii=(), radius=0.4)
    assert wide is not None
    (point,) = wide.details["curve"]
    assert wide.value < wide.details["bar"]
    assert wide.verdict == UNDECIDED or point["parted"] > 0  # unproved alone is never a failure
    few = certified(planted(PLANTED, 10))
    assert few is not None
    assert few.verdict == UNDECIDED
    everything = planted(PLANTED)
    everything = replace(
        everything, circuit=Circuit.whole(everything.circuit.graph, patching.support(everything.model))
    )
    e = certified(everything)
    assert e is not None
    assert (e.value, e.p, e.verdict) == (1.0, 1.0, UNDECIDED)  # a random circuit of that size is the model as well


def test_the_curve_is_what_certify_says() -> None:
    q = question(1)
    e = certified(q, radii=(0.05, 0.01), radius=0.02)
    assert e is not None
    points = e.details["curve"]
    assert [p["radius"] for p in points] == [0.01, 0.02, 0.05]
    for point, c in zip(points, certify(q, (0.01, 0.02, 0.05)), strict=True):
        assert isinstance(c, Certificate)
        assert point["proved"] == pytest.approx(float(c.proved.double().mean()))
        assert point["parted"] == pytest.approx(float(c.parted.double().mean()))
        assert point["moved"] == pytest.approx(float(c.moved.double().mean()))
        assert point["proved"] + point["parted"] <= point["proved"] + point["moved"] <= 1
    assert e.value == points[1]["proved"]
