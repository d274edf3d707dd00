"""Verification of a circuit that is known (see `planted`)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from openwork import models, patching, verify
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Circuit
from openwork.errors import UsageError
from openwork.models import MLP, MLPConfig
from openwork.tasks.task import Split
from openwork.verify import Question, minimality
from openwork.verify.question import live_nodes, random_nodes, whole_pairs
from planted import PADDED, PLANTED, WRONG, circuit_of, examples, planted_model
from subject_models import hooks_on

TARGET = 0.1
ASKED = [c for c in verify.VERIFIERS if c not in verify.APPLIES]  # what can be asked of any circuit; see APPLIES
SPLITS = {"generalises": "ood", "agrees_on_mistakes": "verify + ood"}


def question(
    kept: Mapping[str, list[int]] = PLANTED, pairs: int = 40, noise: float = 0.0, n_null: int = 40
) -> Question:
    model = planted_model()
    ood = examples("ood", 40, 1, noise)
    ood.inputs[0].mul_(1.5)
    return Question(
        model, circuit_of(model, kept), patching.zero_reference(model), examples("verify", pairs, 0), ood, TARGET,
        n_null=n_null,
    )  # fmt: skip


def plain(value: object) -> bool:
    """Whether a value is plain data without nan."""
    if isinstance(value, list):
        return all(plain(v) for v in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and plain(v) for k, v in value.items())
    return value is None or type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value))


# -- the verdicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", ASKED)
def test_every_claim_holds_for_the_planted_circuit(claim: str) -> None:
    e = verify.VERIFIERS[claim](question(noise=0.4))
    assert e.claim == claim
    assert e.verdict == HOLDS, e.sentence
    assert e.p <= 0.05
    assert e.interval[0] <= e.value <= e.interval[1]


@pytest.mark.parametrize("claim", verify.VERIFIERS)
def test_no_claim_is_decided_on_too_few_examples(claim: str) -> None:
    q = replace(question(), verify=examples("verify", 15, 0))
    assert verify.VERIFIERS[claim](q).verdict == UNDECIDED


@pytest.mark.parametrize("claim", ASKED)
@pytest.mark.parametrize("kept", [PLANTED, PADDED, WRONG], ids=["planted", "padded", "wrong"])
def test_evidence_is_whole_plain_and_repeatable(claim: str, kept: dict[str, list[int]]) -> None:
    q = question(kept, noise=0.4)
    e = verify.VERIFIERS[claim](q)
    assert plain(dict(e.details)), e.details
    json.dumps(dict(e.details), allow_nan=False)
    assert (e.split, e.seed) == (SPLITS.get(claim, "verify"), 0)
    assert 0 < e.n <= 80
    assert 0 < e.seconds < 60
    assert e.null
    assert 0 <= e.p <= 1
    assert e.sentence.endswith(".")
    assert "\n" not in e.sentence
    assert "nan" not in e.sentence
    again = verify.VERIFIERS[claim](question(kept, noise=0.4))
    assert replace(again, seconds=0.0) == replace(e, seconds=0.0)


def test_a_wrong_circuit_is_neither_sufficient_nor_necessary_nor_general_nor_robust() -> None:
    q = question(WRONG)
    sufficient, necessary, generalises, robust = verify.verify(q, ["sufficient", "necessary", "generalises", "robust"])
    assert sufficient.verdict == FAILS
    assert sufficient.value == pytest.approx(math.log(2), abs=0.01)
    assert necessary.verdict == FAILS
    assert necessary.value == pytest.approx(0, abs=1e-6)
    assert necessary.p == 1.0
    assert generalises.verdict == FAILS
    assert robust.verdict == FAILS  # the nodes that decide are outside, where they are ablated


def test_the_planted_figures_are_those_worked_out_by_hand() -> None:
    q = question()
    sufficient, necessary = verify.verify(q, ["sufficient", "necessary"])
    margin = 4 * q.verify.inputs[0][:, 0].abs()
    by_hand = float(torch.log1p(torch.exp(-margin)).mean())
    assert sufficient.value == pytest.approx(by_hand, abs=1e-5)
    assert sufficient.details["whole_model_loss"] == pytest.approx(by_hand, abs=1e-4)
    assert necessary.value == pytest.approx(math.log(2) - by_hand, abs=1e-4)
    assert necessary.details["accuracy_without"] <= 0.6
    assert necessary.null_value == pytest.approx(0, abs=1e-5)
    assert necessary.details["null_accuracy"] == 1.0
    assert necessary.details["null_overlaps_circuit_at"] == []
    assert necessary.details["chance_accuracy"] == 0.5
    assert necessary.details["nothing_kept_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert necessary.details["complement_faithfulness"] == pytest.approx(0, abs=1e-4)


def test_sufficient_needs_the_target_and_the_null() -> None:
    q = question()
    loss = verify.sufficient(q).value
    assert verify.sufficient(replace(q, target=loss * 1.001)).verdict == HOLDS
    assert verify.sufficient(replace(q, target=loss * 0.999)).verdict == UNDECIDED  # missed, but within the interval
    assert verify.sufficient(replace(q, target=loss * 0.3)).verdict == FAILS
    everything = replace(q, circuit=Circuit.whole(q.circuit.graph, patching.support(q.model)))
    e = verify.sufficient(everything)
    assert (e.p, e.verdict) == (1.0, FAILS)  # a random circuit of that size is the whole model as well


def test_padding_is_named_and_only_padding() -> None:
    e = verify.one_minimal(question(PADDED))
    assert e.verdict == FAILS
    assert e.p > 0.5
    assert e.details["nodes_tested"] == 8
    nodes = {n for n in e.details["unneeded"] if " -> " not in n}
    assert nodes == {"input:3", "hidden0:5", "hidden1:4"}
    assert "input:3 -> hidden0:5" in e.details["unneeded"]
    assert "input:0 -> hidden0:0" not in e.details["unneeded"]
    assert e.value == pytest.approx(1 - e.details["unneeded_count"] / (8 + e.details["edges_tested"]))


def test_one_minimal_tests_every_node_and_edge_of_the_planted_circuit() -> None:
    q = question()
    e = verify.one_minimal(q)
    assert (e.details["nodes_tested"], e.details["edges_tested"]) == (5, q.circuit.counts()["edges"])
    assert (e.value, e.details["unneeded"], e.details["share_significant"]) == (1.0, [], 1.0)
    assert e.details["least_loss_without"] > TARGET


def test_one_minimal_of_many_close_calls_does_not_fail() -> None:
    """500 elements that are all needed, each by so little that some look unneeded in these examples."""
    q, rng, called = question(), np.random.default_rng(0), 0
    for _ in range(10):
        base = rng.exponential(0.2, len(q.sample))
        test = minimality._test(base + rng.normal(0.4, 1, (500, len(base))), base, q, q.sample)
        called += test.share < 1 and test.interval[1] < 1
    assert called <= 1
    waste = np.concatenate([rng.normal(0.4, 1, (80, len(base))), np.zeros((20, len(base)))])
    assert minimality._test(base + waste, base, q, q.sample).interval[1] < 0.85


def test_one_minimal_fails_only_where_something_could_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many elements some bootstrap draw always has one that is not needed; that alone shows nothing."""
    for share, verdict in ((1.0, UNDECIDED), (0.9, FAILS)):
        found = minimality._Test(share, (0.8, 0.95), 0.2, 0.5)
        monkeypatch.setattr(minimality, "_test", lambda *_, found=found: found)
        assert verify.one_minimal(question()).verdict == verdict


def test_one_minimal_with_a_loss_above_the_target_asks_for_more_than_rounding() -> None:
    e = verify.one_minimal(replace(question(PADDED), target=1e-9))
    assert {"input:3", "hidden0:5", "hidden1:4"} <= set(e.details["unneeded"])


def test_one_minimal_of_nothing() -> None:
    q = question()
    e = verify.one_minimal(replace(q, circuit=Circuit.empty(q.circuit.graph)))
    assert e.verdict == UNDECIDED
    assert "nothing to test" in e.sentence


def test_one_minimal_on_a_transformer_agrees_with_removing_by_hand() -> None:
    config = models.TransformerConfig(vocab=9, n_layer=1, d_model=8, d_head=4, d_mlp=6, n_ctx=5)
    model = models.build(config, 0)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.5)
    tokens, at = torch.randint(9, (40, 5), generator=g), torch.randint(1, 5, (40,), generator=g)
    answer = torch.randint(9, (40,), generator=g)
    split = Split("verify", (tokens, at), answer, (answer[:, None] + 1) % 9, torch.full((40,), -1), ("",) * 40)
    graph = patching.graph_of(model)
    nodes = {
        s.name: torch.rand(s.size, generator=g) < 0.7 if s.prunable else torch.ones(s.size).bool() for s in graph.sites
    }
    circuit = Circuit.from_nodes(graph, nodes, patching.support(model))
    q = Question(model, circuit, patching.zero_reference(model), split, None, 1e-9)
    e = verify.one_minimal(q)
    own = q.measure_circuit(split).loss
    unneeded = set()
    for s in graph.prunable:
        for i in nodes[s.name].nonzero().flatten().tolist():
            fewer = nodes[s.name].clone()
            fewer[i] = False
            less = Circuit.from_nodes(graph, {**nodes, s.name: fewer}, patching.support(model))
            if replace(q, circuit=less).measure_circuit(split).loss <= own + 1e-6:
                unneeded.add(f"{s.name}:{i}")
    found = {n for n in e.details["unneeded"] if " -> " not in n}
    assert e.details["nodes_tested"] == sum(int(nodes[s.name].sum()) for s in graph.prunable)
    assert unneeded
    assert found == unneeded  # nodes are listed first, so the cut at 50 names leaves them whole


# -- generalisation and mistakes -------------------------------------------------------------------------------------


def test_agreement_on_mistakes_is_tested_where_there_are_enough() -> None:
    none = verify.agrees_on_mistakes(question())
    assert (none.verdict, none.n) == (UNDECIDED, 0)
    assert "no mistake" in none.sentence
    few = verify.agrees_on_mistakes(question(noise=0.2))
    assert (few.n, few.details["pairs_with_mistakes"], few.verdict) == (16, 8, UNDECIDED)
    assert "too few to tell" in few.sentence
    some = verify.agrees_on_mistakes(question(noise=0.3))
    assert (some.n, some.details["pairs_with_mistakes"], some.verdict, some.value) == (24, 12, HOLDS, 1.0)
    assert some.null_value < 0.3
    general = verify.generalises(question(noise=0.3))
    assert general.verdict == HOLDS  # the circuit errs with the model: that is what it is for
    assert general.details["accuracy"] == pytest.approx(0.7)


def test_a_circuit_that_is_right_for_its_own_reasons_does_not_err_alike() -> None:
    """The model follows x0; this 'circuit' follows x1, which happens to be right where x0 misleads."""
    q = question(noise=0.3)
    with torch.no_grad():
        first, second, last = (layer.weight for layer in q.model.layers)  # type: ignore[union-attr]
        first[2:4] = 0
        first[2, 1], first[3, 1] = 1.0, -1.0
        second[2:4] = 0
        second[2, 2], second[3, 3] = 1.0, 1.0
        last[:, 2:4] = 0
        last[0, 2], last[1, 3] = 1.0, 1.0
    for split in (q.verify, q.ood):
        assert split is not None
        split.inputs[0][:, 1] = 1.0 - 2.0 * split.answer
    other = circuit_of(q.model, {"input": [1], "hidden0": [2, 3], "hidden1": [2, 3], "logits": [0, 1]})  # type: ignore[arg-type]
    e = verify.agrees_on_mistakes(replace(q, circuit=other))
    assert e.details["circuit_mistakes"] == 0
    assert (e.n, e.value, e.verdict) == (24, 0.0, FAILS)


def test_agreement_is_no_easier_where_every_example_has_answers_of_its_own() -> None:
    """Who guesses between two answers agrees in half of the examples, however many answers other examples have."""
    q, n = question(WRONG), 80
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        wide = MLP(MLPConfig(inputs=8, hidden=(10, 8), outputs=2 * n))
        wide.load_state_dict({**wide.state_dict(), **{k: v for k, v in q.model.state_dict().items() if "2." not in k}})
        wide.layers[2].weight.copy_(torch.randn(2 * n, 8, generator=g))
    own = torch.arange(n) * 2 + torch.randint(2, (n,), generator=g)
    split = replace(examples("ood", n // 2, 1), answer=own, wrong=(own ^ 1)[:, None])
    guess = circuit_of(wide, {**WRONG, "logits": list(range(2 * n))})
    e = verify.generalises(
        replace(
            q,
            model=wide,
            circuit=guess,
            reference=patching.zero_reference(wide),
            verify=replace(split, name="verify"),
            ood=split,
        )
    )
    assert 0.4 < e.null_value < 0.6


def test_without_ood_examples_nothing_is_claimed() -> None:
    e = verify.generalises(replace(question(), ood=None))
    assert (e.verdict, e.n) == (UNDECIDED, 0)
    assert math.isnan(e.value)


# -- robustness ------------------------------------------------------------------------------------------------------


def test_robust_is_undecided_when_nothing_is_outside() -> None:
    q = question()
    e = verify.robust(replace(q, circuit=Circuit.whole(q.circuit.graph, patching.support(q.model))))
    assert e.verdict == UNDECIDED
    assert "No live node" in e.sentence


def test_robust_ablates_only_the_outside_and_never_dead_nodes() -> None:
    model = planted_model(dead=50)
    kept = circuit_of(model, PLANTED)
    q = replace(question(), model=model, circuit=kept, reference=patching.zero_reference(model))
    e = verify.robust(q)
    live = sum(int(m.sum()) for m in q.live.values())
    assert e.details["outside_nodes"] == live - 5 <= 21
    assert min(e.details["sizes"]) >= 2
    assert max(e.details["sizes"]) <= 19
    assert len(set(e.details["sizes"])) > 5
    assert e.details["worst_accuracy"] == 1.0
    assert e.null_value < 0.8


# -- what the checks share -------------------------------------------------------------------------------------------


def test_dead_nodes_are_no_rivals() -> None:
    live = live_nodes(planted_model(dead=3))
    assert {n: m.nonzero().flatten().tolist() for n, m in live.items()} == {
        "input": list(range(8)),
        "hidden0": list(range(10)),
        "hidden1": list(range(8)),
    }
    model = planted_model()
    with torch.no_grad():
        model.layers[1].weight[:, 4] = 0  # hidden0:4 still reads but nothing reads it
    assert not live_nodes(model)["hidden0"][4]


def test_random_nodes_come_from_the_first_pool_while_it_lasts() -> None:
    rng = np.random.default_rng(0)
    first = torch.tensor([True, True, False, False, False])
    for _ in range(20):
        assert not random_nodes(rng, 2, first, ~first)[2:].any()
        more = random_nodes(rng, 4, first, ~first)
        assert int(more.sum()) == 4
        assert more[:2].all()
    drawn = torch.stack([random_nodes(rng, 1, torch.ones(4, dtype=torch.bool)) for _ in range(400)]).float().mean(0)
    assert ((drawn > 0.15) & (drawn < 0.35)).all()


def test_the_sample_keeps_pairs_whole() -> None:
    split = examples("verify", 50, 0)
    far = replace(split, pair=torch.arange(100).roll(50))  # partners far apart
    for s in (split, far):
        sample = whole_pairs(s, 33)
        assert len(sample) == 34
        assert (sample.pair >= 0).all()
        assert (sample.pair[sample.pair] == torch.arange(34)).all()
    assert whole_pairs(split, 100) is split


def test_a_circuit_with_cut_edges_is_judged_without_them() -> None:
    q = question()
    edges = {n: m.clone() for n, m in q.circuit.edges.items()}
    edges["hidden1>logits"][0, 0] = False
    cut = replace(q, circuit=replace(q.circuit, edges=edges))
    assert verify.sufficient(cut).value > verify.sufficient(q).value + 0.1


class Unread(Mapping[str, object]):
    """An origin that nobody may look into."""

    def __getitem__(self, key: str) -> object:
        raise AssertionError(f"origin[{key!r}] was read")

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("origin was read")

    def __len__(self) -> int:
        raise AssertionError("origin was read")


def test_checks_never_read_the_origin_and_leave_the_model_as_it_was() -> None:
    q = question()
    before = {k: v.clone() for k, v in q.model.state_dict().items()}
    evidence = verify.verify(replace(q, circuit=replace(q.circuit, origin=Unread())))
    assert [e.claim for e in evidence] == ASKED
    assert all(torch.equal(v, before[k]) for k, v in q.model.state_dict().items())
    assert hooks_on(q.model) == 0


def test_bad_questions_are_refused() -> None:
    q = question()
    with pytest.raises(UsageError, match=r'no claim named "suficient".*Nearest: "sufficient"'):
        verify.verify(q, ["suficient"])
    with pytest.raises(UsageError, match="at least 19"):
        replace(q, n_null=10)
    with pytest.raises(UsageError, match="is empty"):
        replace(q, verify=q.verify.take(torch.arange(0)))
    with pytest.raises(UsageError, match="another model"):
        replace(q, model=MLP(MLPConfig(inputs=8, hidden=(4,), outputs=2)))
    with pytest.raises(UsageError, match="one value per input"):
        replace(q, reference=patching.counterfactual_reference(q.model, q.verify.inputs))
    with pytest.raises(UsageError, match=r'no kind of reference named "resampled".*Nearest: "resample"'):
        replace(q, reference="resampled")
    alone = replace(q.verify, pair=torch.full((len(q.verify),), -1))
    with pytest.raises(UsageError, match="have no counterpart"):
        replace(q, reference="counterfactual", verify=alone)
    with pytest.raises(UsageError, match="negative"):
        replace(q, seed=-1)
    with torch.no_grad():
        q.model.layers[0].weight[0, 0] = math.nan  # type: ignore[index, union-attr]
    with pytest.raises(UsageError, match="not finite"):
        verify.sufficient(q)


# -- controls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", verify.CONTROLS)
@pytest.mark.parametrize(
    ("status", "edges", "loss", "verdict", "reasons"),
    [
        ("infeasible", None, None, HOLDS, ["infeasible"]),
        ("ok", 250, 0.2, HOLDS, ["larger circuit"]),
        ("ok", 199, 0.2, FAILS, []),
        ("ok", 50, 0.69, HOLDS, ["held-out loss at chance"]),
        ("ok", 300, 0.71, HOLDS, ["larger circuit", "held-out loss at chance"]),
        ("not run", None, None, UNDECIDED, []),
    ],
)
def test_controls(
    claim: str,
    status: str,
    edges: int | None,
    loss: float | None,
    verdict: str,
    reasons: list[str],
) -> None:
    if claim == "nonsense_control":  # shuffled labels cannot be predicted, so a loss at chance proves nothing
        reasons = [r for r in reasons if r != "held-out loss at chance"]
        verdict = FAILS if verdict == HOLDS and not reasons else verdict
    e = verify.control(claim, 100, 0.12, status, edges, loss, n=256)
    assert (e.claim, e.verdict, e.details["reasons"]) == (claim, verdict, reasons)
    assert "100 edges" in e.sentence
    if edges is not None:
        assert f"{edges} edges" in e.sentence
        assert e.value == edges / 100
    assert plain(dict(e.details))


def test_a_control_needs_a_real_circuit_to_stand_beside() -> None:
    e = verify.control("nonsense_control", None, 0.5, "ok", 10, 0.7, n=256)
    assert e.verdict == UNDECIDED
    assert "nothing to set beside" in e.sentence


def test_chance_depends_on_the_number_of_answers() -> None:
    two = verify.control("random_weights_control", 100, 0.1, "ok", 100, 1.0, n=256)
    ten = verify.control("random_weights_control", 100, 0.1, "ok", 100, 1.0, n=256, chance=math.log(10))
    assert (two.verdict, ten.verdict) == (HOLDS, FAILS)
