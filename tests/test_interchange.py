"""Interchange interventions against brute force, on networks whose circuit is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from openwork import patching
from openwork.circuit import FAILS, HOLDS, Circuit, Explanation
from openwork.errors import UsageError
from openwork.explain.words.interchange import interchanges
from openwork.explain.words.scores import Interchanges, Nulls, ScoreSettings, score
from openwork.explain.words.topic import Observed, Sample, Topic
from openwork.planted import Case, make_case

NAMES = ("multiplexer4", "exactly_two_3x8", "cross_without_frame+decoy", "hand_previous_6x12")


def nodes_of(case: Case) -> list[Topic]:
    """Every node of the true circuit as a topic."""
    graph = case.truth.graph
    return [
        Topic(f"{s.name}:{i}", "node", ((s.name, i),))
        for s in graph.prunable
        for i in case.truth.nodes[s.name].nonzero().flatten().tolist()
    ]


def axis(case: Case, runs: Interchanges) -> tuple[torch.Tensor, torch.Tensor]:
    """Per pair, the answer towards which and the one from which a shift is counted."""
    split = case.task.split("verify")
    if runs.fixed:
        both = torch.cat([split.answer[:, None], split.wrong], 1)[0].sort().values
        return both[1].expand(len(runs.base)), both[0].expand(len(runs.base))
    a, b = split.answer[torch.from_numpy(runs.base)], split.answer[torch.from_numpy(runs.source)]
    return torch.where(a != b, b, split.wrong[torch.from_numpy(runs.base), 0]), a


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_is_what_setting_the_node_by_hand_does(name: str) -> None:
    case = make_case(name)
    split = case.task.split("verify")
    some = nodes_of(case)[-4:]
    runs = interchanges(case.model, case.truth, case.reference, some, split, most=40)
    towards, of = axis(case, runs)
    graph = case.truth.graph
    masks = patching.masks_of(case.model, case.truth)

    def logits(index: int, site: str | None = None, node: int = 0, value: torch.Tensor | None = None) -> torch.Tensor:
        def put(_module: nn.Module, _args: object, h: torch.Tensor) -> torch.Tensor:
            assert value is not None
            h = h.clone()
            h.select(graph.site(str(site)).axis, node).copy_(value)
            return h

        handle = None
        if site is not None:
            handle = case.model.get_submodule(graph.site(site).module).register_forward_hook(put)
        try:
            with torch.no_grad(), patching.patched(case.model, case.reference, *masks):
                return case.model(*(x[index : index + 1] for x in split.inputs))[0]
        finally:
            if handle is not None:
                handle.remove()

    for k, topic in enumerate(some):
        ((site, node),) = topic.nodes
        for p in range(0, 40, 3):
            base, source = int(runs.base[p]), int(runs.source[p])
            with patching.patched(case.model, case.reference, *masks):
                sent = patching.record(case.model, tuple(x[source : source + 1] for x in split.inputs), [site])[site]
            after = logits(base, site, node, sent.select(graph.site(site).axis, node))
            before = logits(base)
            a, b = int(towards[p]), int(of[p])
            assert runs.shift[k, p] == pytest.approx(float(after[a] - after[b] - before[a] + before[b]), abs=1e-4)
    assert np.abs(runs.shift).max() > 1


def test_all_nodes_of_a_layer_bring_the_whole_output_of_the_source() -> None:
    case = make_case("multiplexer4")
    split = case.task.split("verify")
    hidden = tuple(("hidden0", i) for i in case.truth.nodes["hidden0"].nonzero().flatten().tolist())
    runs = interchanges(case.model, case.truth, case.reference, [Topic("layer", "module", hidden)], split)
    towards, of = axis(case, runs)
    with torch.no_grad():
        out = patching.run(case.model, split.inputs, case.truth, case.reference)

    def contrast(at: np.ndarray) -> torch.Tensor:
        rows = out[torch.from_numpy(at)]
        return (rows.gather(1, towards[:, None]) - rows.gather(1, of[:, None])).squeeze(1)

    assert runs.shift[0] == pytest.approx((contrast(runs.source) - contrast(runs.base)).numpy(), abs=1e-4)


def test_pairs_are_equally_long_and_of_both_sorts_and_leave_the_model_alone() -> None:
    case = make_case("exactly_two_3x8")
    split = case.task.split("verify")
    before = {n: p.clone() for n, p in case.model.state_dict().items()}
    runs = interchanges(case.model, case.truth, case.reference, nodes_of(case)[:1], split)
    again = interchanges(case.model, case.truth, case.reference, nodes_of(case)[:1], split)
    assert (runs.base == again.base).all()
    assert (runs.shift == again.shift).all()
    assert len(runs.base) == 256 == len(set(zip(runs.base.tolist(), runs.source.tolist(), strict=True)))
    assert (split.inputs[1][torch.from_numpy(runs.base)] == split.inputs[1][torch.from_numpy(runs.source)]).all()
    counterpart = (split.pair[torch.from_numpy(runs.base)] == torch.from_numpy(runs.source)).float().mean()
    assert 0.4 < float(counterpart) < 0.6
    assert all(torch.equal(p, case.model.state_dict()[n]) for n, p in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in case.model.modules())
    lonely = replace(split.take(torch.tensor([0])), name="verify")
    with pytest.raises(UsageError, match="no two examples"):
        interchanges(case.model, case.truth, case.reference, nodes_of(case)[:1], lonely)


def held(case: Case, circuit: Circuit, some: list[Topic]) -> tuple[Observed, Interchanges]:
    """What these nodes of a perceptron do, and their patches."""
    split = case.task.split("verify")
    with torch.no_grad(), patching.patched(case.model, case.reference, *patching.masks_of(case.model, circuit)):
        sent = patching.record(case.model, split.inputs)
    activity = np.stack([sent[s][:, i].double().numpy() for t in some for s, i in t.nodes])
    s = Sample("verify", asked=np.zeros(len(split), dtype=np.int64), features=split.inputs[0].numpy())
    o = Observed(s, tuple(some), activity, "what it sends", np.zeros(activity.shape))
    return o, interchanges(case.model, circuit, case.reference, some, split)


def test_the_true_variable_is_carried_and_another_is_not() -> None:
    """Four gates, each open for one setting of two switches: of them the explanation names the right or a wrong one."""
    case = make_case("multiplexer4")
    gates = [t for t in nodes_of(case) if t.nodes[0][0] == "hidden0"]
    o, runs = held(case, case.truth, gates)

    def by_gate(e: Explanation, s: Sample) -> np.ndarray:
        """What the gate of that number sends, worked out from the features."""
        with torch.no_grad(), patching.patched(case.model, case.reference, *patching.masks_of(case.model, case.truth)):
            sent = patching.record(case.model, (torch.from_numpy(s.features),), ["hidden0"])["hidden0"]
        return sent[:, gates[e.predicate["gate"]].nodes[0][1]].double().numpy()

    for shift, verdict in ((0, HOLDS), (1, FAILS), (2, FAILS)):
        words = [Explanation(t.name, "nobody", predicate={"gate": (k + shift) % 4}) for k, t in enumerate(gates)]
        found = score(
            words, o, Nulls(), by_gate, claims=["interchange"], interchanges=runs, settings=ScoreSettings(draws=499)
        )
        for e in found:
            (evidence,) = e.evidence
            assert evidence.verdict == verdict, evidence.sentence
            assert evidence.value > 0.9 if verdict == HOLDS else evidence.value < 0.6


def test_without_runs_or_a_variable_there_is_no_such_evidence() -> None:
    case = make_case("multiplexer4")
    gates = [t for t in nodes_of(case) if t.nodes[0][0] == "hidden0"]
    o, runs = held(case, case.truth, gates)
    mute = Explanation(gates[0].name, "nobody", "in words alone")

    def silent(_e: Explanation, s: Sample) -> np.ndarray:
        return np.full(len(s), np.nan)

    assert score([mute], o, Nulls(), silent, claims=["interchange"], interchanges=runs)[0].evidence == ()
    assert score([mute], o, Nulls(), lambda _e, s: np.ones(len(s)), claims=["interchange"])[0].evidence == ()
    (constant,) = score([mute], o, Nulls(), lambda _e, s: np.ones(len(s)), interchanges=runs, claims=["interchange"])
    assert constant.evidence[0].verdict == "too little data"
    assert "differs in none" in constant.evidence[0].sentence
