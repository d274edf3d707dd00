"""The claims beyond the first five: searches against brute force, figures against hand-worked ones, both verdicts."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openwork import models, patched_run, patching, verify
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Circuit
from openwork.errors import UsageError
from openwork.graph import Site
from openwork.models import MLP, MLPConfig
from openwork.tasks.task import Split, losses
from openwork.verify import Question, adversary, mistakes, stability
from planted import PLANTED, WRONG, circuit_of, examples, planted_model
from subject_models import hooks_on, inputs_of, make

TARGET = 0.1


def planted_question(kept: dict[str, list[int]] = PLANTED, n_null: int = 40, **more: Any) -> Question:
    model = planted_model()
    asked: dict[str, Any] = {"reference": patching.zero_reference(model), "ood": None, **more}
    return Question(
        model, circuit_of(model, kept), verify=examples("verify", 40, 0), target=TARGET, n_null=n_null, **asked
    )


def prompts(n: int = 24, seed: int = 0) -> tuple[torch.nn.Module, Split]:
    """A transformer with random weights, and pairs of prompts of different lengths."""
    model = make("transformer, sink", 3)
    g = torch.Generator().manual_seed(seed)
    tokens, at = torch.randint(11, (n, 6), generator=g), torch.randint(1, 6, (n,), generator=g)
    at[1::4] = at[::4]  # every other pair has one length
    answer = torch.randint(11, (n,), generator=g)
    split = Split("verify", (tokens, at), answer, ((answer + 1) % 11)[:, None], torch.arange(n) ^ 1, ("",) * n)
    return model, split


def half_of(model: torch.nn.Module, seed: int = 0, share: float = 0.5) -> Circuit:
    g = torch.Generator().manual_seed(seed)
    graph = patching.graph_of(model)
    nodes = {s.name: torch.rand(s.size, generator=g) < share for s in graph.sites if s.prunable}
    return Circuit.from_nodes(graph, nodes, patching.support(model))


# -- references of every example -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", patched_run.KINDS)
def test_a_reference_of_every_example_is_what_one_example_at_a_time_gives(kind: str) -> None:
    model, split = prompts()
    circuit = half_of(model)
    q = Question(model, circuit, kind, split, None, TARGET, seed=5)
    partner = split.pair if kind == "counterfactual" else patched_run.another(split, 5)
    by_hand = []
    for i, j in enumerate(partner.tolist()):
        own, other = (tuple(x[k : k + 1] for x in split.inputs) for k in (i, j))
        reference = patching.counterfactual_reference(model, other)
        with torch.no_grad():
            out = patching.run(model, own, circuit, reference)
        by_hand.append(float(losses(out, split.take(torch.tensor([i])))))
    assert q.measure_circuit(split).losses == pytest.approx(by_hand, abs=1e-5)
    assert hooks_on(model) == 0


def test_the_empty_circuit_answers_as_the_counterpart_does() -> None:
    model, split = prompts()
    nothing = Circuit.empty(patching.graph_of(model))
    q = Question(model, nothing, "counterfactual", split, None, TARGET)
    with torch.no_grad():
        out = model(*split.counterfactual())
    assert q.measure_circuit(split).losses == pytest.approx(losses(out, split).tolist(), abs=1e-5)


def test_one_minimal_under_a_counterfactual_is_removing_by_hand() -> None:
    model, split = prompts(40)
    circuit = half_of(model, share=0.25)
    q = Question(model, circuit, "counterfactual", split, None, 1e-9)
    e = verify.one_minimal(q)
    own, unneeded = q.measure_circuit(split).loss, set()
    for s in circuit.graph.prunable:
        for i in circuit.nodes[s.name].nonzero().flatten().tolist():
            fewer = circuit.nodes[s.name].clone()
            fewer[i] = False
            less = Circuit.from_nodes(circuit.graph, {**circuit.nodes, s.name: fewer}, patching.support(model))
            if replace(q, circuit=less).measure_circuit(split).loss <= own + 1e-6:
                unneeded.add(f"{s.name}:{i}")
    assert e.details["circuit_loss"] == pytest.approx(own, abs=1e-5)
    assert unneeded
    assert len(unneeded) <= 50  # nodes are listed first, so they are all there
    assert {n for n in e.details["unneeded"] if " -> " not in n} == unneeded


def test_another_example_is_never_oneself_and_of_equal_length() -> None:
    _, split = prompts(40)
    partner = patched_run.another(split, 1)
    assert sorted(partner.tolist()) == list(range(40))
    assert not bool((partner == torch.arange(40)).any())
    assert torch.equal(split.inputs[1][partner], split.inputs[1])  # every length occurs at least twice here
    assert not torch.equal(partner, patched_run.another(split, 2))
    odd = replace(split, inputs=(split.inputs[0], torch.tensor([5] + [2] * 39)))
    alone = patched_run.another(odd, 1)
    assert sorted(alone.tolist()) == list(range(40))
    assert alone[0] != 0
    assert patched_run.another(split.take(torch.tensor([3])), 0).tolist() == [0]


def test_every_claim_can_be_asked_under_a_reference_of_every_example() -> None:
    for kind in patched_run.KINDS:
        for e in verify.verify(planted_question(reference=kind, n_null=19, ood=examples("ood", 20, 3))):
            assert e.sentence.endswith("."), e.claim
    # turned round, the counterpart has every node of the circuit at its other value; the answer is the counterpart's
    q = planted_question(reference="counterfactual")
    assert verify.sufficient(q).verdict == HOLDS
    assert verify.necessary(q).details["accuracy_without"] == 0.0


@pytest.mark.parametrize("kind", patched_run.KINDS)
@pytest.mark.parametrize(
    "name",
    ["cnn, abstopk", "mlp over an embedding of two slots", "transformer, sink", "transformer of real numbers, no norm"],
)
def test_every_kind_of_model_answers_every_question(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversary, "BUDGET", 6)
    monkeypatch.setattr(adversary, "SHORT", 3)
    model = make(name)
    torch.manual_seed(0)
    inputs = inputs_of(model, n=36)[-1]
    with torch.no_grad():
        best = model(*inputs).argsort(-1, descending=True)
    answer, wrong = best[:, 0], best[:, 1:2]
    split = Split("verify", inputs, answer, wrong, torch.arange(36) ^ 1, ("",) * 36)
    ood, other = replace(split, name="ood"), replace(split, answer=wrong[:, 0], wrong=answer[:, None])
    q = Question(
        model, half_of(model, share=0.25), kind, split, ood, TARGET, n_null=19, others={"a": split, "b": other}
    )
    found = verify.verify(q)
    has_attention = "keeps_attention" in {e.claim for e in found}
    assert len(found) == len(verify.VERIFIERS) - (not has_attention) - 1  # bounds are of one network, not of examples
    assert has_attention == name.startswith("transformer")
    assert not [e.sentence for e in found if "nan" in e.sentence]
    assert hooks_on(model) == 0
    assert all(p.grad is None for p in model.parameters())


def test_a_constant_reference_may_hold_vectors_only_where_nodes_are_vectors() -> None:
    plain, wide = Site("x", 3, "x", "neuron", 1), Site("x", 3, "x", "neuron", 1, width=2, axis=-2)
    assert patching.is_constant(plain, torch.zeros(3))
    assert not patching.is_constant(plain, torch.zeros(3, 2))
    assert patching.is_constant(wide, torch.zeros(3, 2))
    assert not patching.is_constant(wide, torch.zeros(3))


# -- the adversary ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_the_search_comes_near_the_worst_of_all_subsets(seed: int) -> None:
    torch.manual_seed(seed)
    model = MLP(MLPConfig(inputs=4, hidden=(6, 5), outputs=2))
    x = torch.randn(40, 4)
    answer = (x[:, 0] > 0).long()
    split = Split("verify", (x,), answer, (1 - answer)[:, None], torch.full((40,), -1), ("",) * 40)
    circuit = half_of(model, seed, 0.4)
    q = Question(model, circuit, patching.mean_reference(model, [(x,)]), split, None, TARGET)
    outside = {n: ~m for n, m in q.kept.items()}
    free = [(n, int(i)) for n, m in outside.items() for i in m.nonzero()]
    assert 4 <= len(free) <= 11
    by_hand = []
    for gone in itertools.chain.from_iterable(itertools.combinations(free, k) for k in range(len(free) + 1)):
        masks = {n: torch.ones(len(m), dtype=torch.bool) for n, m in outside.items()}
        for n, i in gone:
            masks[n][i] = False
        by_hand.append(q.measure(split, masks).loss)
    found = adversary.worst(q, q.parts(split), outside, np.random.default_rng(0), adversary.BUDGET)
    assert by_hand[0] + 0.9 * (max(by_hand) - by_hand[0]) <= found.loss <= max(by_hand) + 1e-5
    assert q.measure(split, found.nodes).loss == pytest.approx(found.loss, abs=1e-5)
    assert set(found.names) <= {f"{n}:{i}" for n, i in free}
    assert found.runs <= adversary.BUDGET


def cancelling() -> Question:
    """The sign of x0 decides; beside it 12 pairs of neurons add 0.8 to one logit, and take it away again."""
    k = 12
    model = MLP(MLPConfig(inputs=8, hidden=(2 + 2 * k,), outputs=2))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        first, last = (layer.weight for layer in model.layers)
        first[0, 0], first[1, 0] = 1.0, -1.0
        first[2:, 1], model.layers[0].bias[2:] = 1e-4, 1.0  # type: ignore[index]
        last[0, 0], last[1, 1] = 4.0, 4.0
        last[0, 2 : 2 + k], last[0, 2 + k :] = 0.8, -0.8
    circuit = circuit_of(model, {"input": [0], "hidden0": [0, 1], "logits": [0, 1]})
    return Question(model, circuit, patching.zero_reference(model), examples("verify", 40, 0), None, TARGET, n_null=40)


def test_the_adversary_breaks_what_random_ablations_do_not() -> None:
    q = cancelling()
    assert verify.robust(q).verdict == HOLDS
    e = verify.adversarial(q)
    assert e.verdict == FAILS
    assert e.p == 0.05  # random nodes in the circuit's place fare worse still
    gone = {n for n in e.details["worst"] if n.startswith("hidden0")}
    one_side = ({f"hidden0:{i}" for i in range(2, 14)}, {f"hidden0:{i}" for i in range(14, 26)})
    assert gone in one_side
    judge = q.verify.halves()[1]
    sign = 1 if gone == one_side[1] else -1  # which logit 12 * 0.8 more speak for
    margin = (4 * judge.inputs[0][:, 0] + sign * 9.6) * (1 - 2 * judge.answer)
    assert e.value == pytest.approx(float(torch.log1p(torch.exp(-margin)).mean()), abs=1e-2)


def test_the_worst_subset_is_judged_on_examples_that_did_not_choose_it() -> None:
    q = cancelling()
    first, judge = q.verify.halves()
    split = replace(q.verify, answer=q.verify.answer.clone(), inputs=(q.verify.inputs[0].clone(),))
    spoiled = [i for i in range(80) if split.texts[i] in set(judge.texts)]
    split.inputs[0][spoiled, 0] *= 100  # on these, nothing that is outside the circuit can do harm
    e = verify.adversarial(replace(q, verify=split))
    assert e.value < 1e-6 < 0.5 < e.details["loss_on_search_half"]
    assert (e.n, e.details["searched_on"]) == (len(judge), len(first))


def test_the_adversary_has_nothing_to_do_where_nothing_is_outside() -> None:
    q = planted_question()
    e = verify.adversarial(replace(q, circuit=Circuit.whole(q.circuit.graph, patching.support(q.model))))
    assert (e.verdict, e.n) == (UNDECIDED, 0)


# -- mistakes --------------------------------------------------------------------------------------------------------


def test_of_a_pair_with_a_mistake_the_mistake_is_drawn() -> None:
    group = np.repeat(np.arange(50), 2)
    wrong = np.zeros(100, dtype=bool)
    wrong[:40:4] = True
    for seed in range(5):
        one = mistakes._one_per_pair(group, wrong, seed)
        assert len(one) == 50
        assert len(set(group[one])) == 50
        assert set(np.flatnonzero(wrong)) <= set(one)
    assert not np.array_equal(mistakes._one_per_pair(group, wrong, 0), mistakes._one_per_pair(group, wrong, 1))


# -- references beside each other ------------------------------------------------------------------------------------


def test_a_circuit_that_leans_on_its_reference_is_told_so() -> None:
    """A neuron outside the circuit would push one logit; only at zero does it keep quiet."""
    q = planted_question()
    with torch.no_grad():
        q.model.layers[2].weight[0, 2:] += 3.0  # type: ignore[index, union-attr]
    e = verify.reference_dependence(q)
    assert verify.sufficient(q).verdict == HOLDS
    assert e.verdict == FAILS
    told = e.details["references"]
    assert list(told) == ["zero, as found", "mean", "resample"]
    x = q.verify.inputs[0]
    mean = patching.mean_reference(q.model, [(x,)])
    with torch.no_grad():
        by_hand = float(losses(patching.run(q.model, (x,), q.circuit, mean), q.verify).mean())
    assert told["mean"]["loss"] == pytest.approx(by_hand, abs=1e-4)
    assert told["zero, as found"]["meets_target"] and not told["mean"]["meets_target"]
    largest = max(abs(told[n]["loss"] - told["zero, as found"]["loss"]) for n in ("mean", "resample"))
    assert e.value == pytest.approx(largest, abs=1e-6)
    assert e.interval[0] <= e.value <= e.interval[1]


def test_a_mean_over_prompts_leaves_padding_out() -> None:
    model, split = prompts()
    split = replace(split, inputs=(split.inputs[0].clone(), split.inputs[1]))
    q = Question(model, half_of(model), patching.zero_reference(model), split, None, TARGET)
    before = verify.reference_dependence(q).details["references"]["mean"]["loss"]
    beyond = torch.arange(6) > split.inputs[1][:, None]
    split.inputs[0][beyond] = (split.inputs[0][beyond] + 3) % 11
    assert verify.reference_dependence(q).details["references"]["mean"]["loss"] == pytest.approx(before, abs=1e-6)


# -- attention -------------------------------------------------------------------------------------------------------


def looking() -> Question:
    """One head attends by two of its eight channels, to tokens of one kind; the other six hardly speak."""
    config = models.TransformerConfig(
        vocab=9, n_layer=1, d_model=8, d_head=8, d_mlp=4, n_ctx=6, norm=False, bigram=False, positions=False
    )
    model = models.build(config, 0)
    g = torch.Generator().manual_seed(0)
    attn: Any = model.blocks[0].attn  # type: ignore[index, union-attr]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.5 if p.dim() > 1 else 0.0))
        for m in (attn.to_q, attn.to_k):
            m.weight[:, :2] *= 3
            m.weight[2:] *= 0.05
        attn.to_q.bias[:2] = torch.tensor([3.0, -3.0])
        attn.to_q.bias[2:] = 0.1
    tokens = torch.randint(9, (64, 6), generator=g)
    answer = torch.randint(9, (64,), generator=g)
    split = Split(
        "verify", (tokens, torch.full((64,), 5)), answer, ((answer + 1) % 9)[:, None], torch.full((64,), -1), ("",) * 64
    )
    graph = patching.graph_of(model)
    nodes = {f"block0.attn.{p}": torch.arange(8) < 2 for p in "qk"}
    circuit = Circuit.from_nodes(graph, nodes, patching.support(model))
    return Question(model, circuit, patching.zero_reference(model), split, None, TARGET, n_null=40)


def pattern_of(model: Any, tokens: Tensor, kept: Tensor) -> Tensor:
    """Attention of the last position by the formula, from q and k with only the kept channels."""
    with torch.no_grad():
        x = model.embed(tokens)
        attn = model.blocks[0].attn
        q, k = attn.to_q(x)[:, -1] * kept, attn.to_k(x) * kept
        return (torch.einsum("bc,btc->bt", q, k) / math.sqrt(8)).softmax(-1)


def test_attention_that_stays_where_it_is() -> None:
    q = looking()
    e = verify.keeps_attention(q)
    tokens = q.verify.inputs[0]
    whole, alone = (pattern_of(q.model, tokens, torch.arange(8) < k) for k in (8, 2))
    assert e.value == pytest.approx(float(0.5 * (whole - alone).abs().sum(-1).mean()), abs=1e-5)
    assert (e.verdict, list(e.details["heads"])) == (HOLDS, ["block0.attn.v head 0"])
    assert e.null_value > 0.1 > e.value > 1e-4
    assert hooks_on(q.model) == 0


def test_attention_that_goes_elsewhere() -> None:
    q = looking()
    nodes = {f"block0.attn.{p}": torch.arange(8) >= 6 for p in "qk"}
    lost = replace(q, circuit=Circuit.from_nodes(q.circuit.graph, nodes, patching.support(q.model)))
    e = verify.keeps_attention(lost)
    whole, alone = (
        pattern_of(q.model, q.verify.inputs[0], torch.ones(8)),
        pattern_of(q.model, q.verify.inputs[0], torch.arange(8) >= 6),
    )
    assert e.value == pytest.approx(float(0.5 * (whole - alone).abs().sum(-1).mean()), abs=1e-5)
    assert e.verdict == FAILS


def test_a_sink_is_one_more_place_to_look_at() -> None:
    model, split = prompts(40)
    q = Question(model, half_of(model, 2), patching.zero_reference(model), split, None, TARGET, n_null=19)
    e = verify.keeps_attention(q)
    heads = [h for h in e.details["heads"] if h.startswith("block0")]
    site, head = heads[0].split(" head ")
    attend = model.blocks[0].attn.attend  # type: ignore[index, union-attr]
    gaps = []
    for i in range(len(split)):
        own = tuple(x[i : i + 1] for x in split.inputs)
        patterns = []
        for masks in ({}, patching.masks_of(model, q.circuit)[0]):
            seen: list[Tensor] = []
            handle = attend.register_forward_pre_hook(lambda m, a, seen=seen: seen.append(m.pattern(a[0], a[1])))
            with torch.no_grad(), patching.patched(model, q.reference, masks):  # type: ignore[arg-type]
                model(*own)
            handle.remove()
            row = seen[0][0, int(head), int(own[1])].detach()
            patterns.append(torch.cat([row, 1 - row.sum()[None]]))
        gaps.append(0.5 * float((patterns[0] - patterns[1]).abs().sum()))
    assert site == "block0.attn.v"
    assert e.details["heads"][heads[0]] == pytest.approx(np.mean(gaps), abs=1e-5)


def test_no_attention_no_claim() -> None:
    q = planted_question()
    e = verify.keeps_attention(q)
    assert (e.verdict, e.n) == (UNDECIDED, 0)
    assert "no attention" in e.sentence
    assert "keeps_attention" not in {e.claim for e in verify.verify(q)}
    model, split = prompts(8)
    empty = Question(model, Circuit.empty(patching.graph_of(model)), patching.zero_reference(model), split, None, 1.0)
    assert "uses no attention head" in verify.keeps_attention(empty).sentence


# -- other tasks -----------------------------------------------------------------------------------------------------


def two_tasks(kept: dict[str, list[int]], noise: float = 0.0) -> Question:
    """The sign of x0 chooses between outputs 0 and 1, that of x1 between 2 and 3; 36 neurons do neither.

    Wide enough that a random node at every site is seldom one that matters.
    """
    model = MLP(MLPConfig(inputs=80, hidden=(40,), outputs=4))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        first, last = (layer.weight for layer in model.layers)
        for i, (column, sign) in enumerate(((0, 1), (0, -1), (1, 1), (1, -1))):
            first[i, column], last[i, i] = sign, 4.0
        first[4:, 2:] = torch.randn(36, 78, generator=g)
        last[:, 4:] = torch.randn(1, 36, generator=g) / 10
    x = torch.randn(80, 80, generator=g)
    x[:, :2] = (1 + torch.rand(80, 2, generator=g)) * torch.where(torch.rand(80, 2, generator=g) < 0.5, -1, 1)
    pair = torch.full((80,), -1)
    a, b = ((x[:, i] < 0).long() for i in (0, 1))
    b = torch.where(torch.rand(80, generator=g) < noise, 1 - b, b)
    own = Split("verify", (x,), a, (1 - a)[:, None], pair, ("",) * 80)
    other = Split("verify", (x,), b + 2, (3 - b)[:, None], pair, ("",) * 80)
    circuit = circuit_of(model, kept)
    return Question(
        model, circuit, patching.zero_reference(model), own, None, TARGET, n_null=100, others={"second": other}
    )


ONE = {"input": [0], "hidden0": [0, 1], "logits": [0, 1, 2, 3]}
BOTH = {"input": [0, 1], "hidden0": [0, 1, 2, 3], "logits": [0, 1, 2, 3]}


def test_selective_holds_for_the_circuit_of_one_task_and_not_for_that_of_both() -> None:
    e = verify.selective(two_tasks(ONE))
    assert (e.claim, e.verdict, e.value) == ("selective", HOLDS, 0.0)
    told = e.details["tasks"]["second"]
    assert told["told_apart"] and told["accuracy_alone"] <= 0.75
    both = verify.selective(two_tasks(BOTH))
    assert both.verdict == FAILS
    assert both.details["tasks"]["second"]["accuracy_lost"] == 1.0  # a tie is a mistake
    assert both.details["tasks"]["second"]["accuracy_alone"] == 1.0


def test_selective_asks_only_tasks_that_the_model_can_do() -> None:
    assert "none was given" in verify.selective(planted_question()).sentence
    e = verify.selective(two_tasks(ONE, noise=0.5))
    assert (e.verdict, e.n) == (UNDECIDED, 0)
    assert "none of its 1" in e.sentence


# -- stability -------------------------------------------------------------------------------------------------------


def test_random_overlaps_have_the_law_of_all_subsets() -> None:
    sizes, pool = (1, 2, 2), 4
    masks = {"a": [torch.arange(pool) < n for n in sizes], "b": [torch.tensor([True, False])] * 3}
    law: dict[float, int] = {}
    for three in itertools.product(*(list(itertools.combinations(range(pool), n)) for n in sizes)):
        for b in itertools.product(range(2), repeat=3):
            sets = [set(s) | {10 + j} for s, j in zip(three, b, strict=True)]
            mean = np.mean([len(x & y) / len(x | y) for x, y in itertools.combinations(sets, 2)])
            law[round(float(mean), 9)] = law.get(round(float(mean), 9), 0) + 1
    drawn = stability.random_overlaps(masks, {}, 40_000, np.random.default_rng(0)).round(9)
    assert set(drawn) == set(law)
    for value, times in law.items():
        share = times / sum(law.values())
        assert (drawn == value).mean() == pytest.approx(share, abs=4 * math.sqrt(share / 40_000))


def test_a_pool_holds_only_what_can_be_drawn() -> None:
    masks = {"a": [torch.tensor([1, 1, 0, 0, 0, 0]).bool()] * 2}
    wide, tight = (
        stability.random_overlaps(masks, pools, 4000, np.random.default_rng(0)).mean()
        for pools in ({}, {"a": torch.tensor([1, 1, 0, 0, 0, 0]).bool()})
    )
    assert tight == 1.0
    assert wide == pytest.approx((6 / 15) * 0 + (8 / 15) / 3 + 1 / 15, abs=0.02)


def test_stable_and_not() -> None:
    model = planted_model()
    same = [circuit_of(model, PLANTED)] * 3
    names = ["seed 0", "seed 1", "seed 2"]
    e = verify.stable(same, names, n=120)
    assert (e.verdict, e.value, e.interval, e.split) == (HOLDS, 1.0, (1.0, 1.0), "discover")
    assert e.p <= 0.05 and e.null_value < 0.3
    apart = verify.stable([same[0], circuit_of(model, WRONG), same[0]], names, n=120)
    assert apart.value == pytest.approx(1 / 3)
    assert apart.details["overlap_of_nodes"][0] == [1.0, 0.0, 1.0]
    assert apart.verdict != HOLDS
    one_none = verify.stable([*same, None], [*names, "seed 3"], n=120)
    assert (one_none.verdict, one_none.details["found_none"]) == (FAILS, ["seed 3"])
    assert verify.stable([same[0]], names[:1], n=120).verdict == UNDECIDED
    assert verify.stable([same[0], None], names[:2], n=120).verdict == FAILS
    whole = [Circuit.whole(model.graph(), patching.support(model))] * 2
    assert verify.stable(whole, names[:2], n=120).p == 1.0  # nothing else of that size can be drawn
    with pytest.raises(UsageError, match="one name per search"):
        verify.stable(same, names[:2], n=120)
