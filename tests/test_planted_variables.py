"""What the nodes of planted circuits compute: what they send is that variable, and the author `rules` names it."""

from __future__ import annotations

import numpy as np
import pytest

from openwork import patching
from openwork.errors import RunError, UsageError
from openwork.explain.words.rules import Rules, RulesJudge
from openwork.explain.words.topic import Dossier, Observed, Sample, Topic
from openwork.planted import BASES, BUSY, Case, make_case
from openwork.planted.names import ENOUGH, alike, match, named, varies
from openwork.planted.variables import CONSTANT, ONE_HOT, Node, variables, words

BESIDE = ("parity3_deep+noise16", "roof_or_valley+noise8", "previous_twice_3x6+decoys+noise16", "hand_first_4x8+decoy")
QUICK = (
    "exactly_2_of_4",
    "both_ors",
    "cross_xor_frame",
    "hand_balanced_8",
    "window_parity_3x6",
    "seen_before_3x7+decoy",
)


def base_of(name: str) -> str:
    return BUSY[name][0] if name in BUSY else name


def sent(case: Case, split: str, nodes: list[Node]) -> dict[Node, np.ndarray]:
    """What nodes send less what they send ablated, [N, T] or [N]; of a channel of maps the largest value."""
    examples = case.task.split(split)
    found = patching.record(case.model, examples.inputs[:1])
    out = {}
    for site, i in nodes:
        h = (
            found[site].detach().movedim(case.truth.graph.site(site).axis, -1)[..., i] - case.reference[site][i]
        ).numpy()
        out[site, i] = h.astype(float) if len(examples.inputs) == 2 else h.reshape(len(h), -1).max(1).astype(float)
    return out


def misfit(activity: np.ndarray, variable: np.ndarray) -> float:
    """Largest error of the best line from a variable to an activity where there is one, as a share of the size."""
    here = np.isfinite(variable)
    x, y = variable[here], activity[here]
    line = np.stack([x, np.ones_like(x)], 1)
    return float(np.abs(line @ np.linalg.lstsq(line, y, rcond=None)[0] - y).max() / max(1e-9, np.abs(y).max()))


@pytest.mark.parametrize("name", [*BASES, *BESIDE])
def test_a_node_sends_its_variable_on_a_line(name: str) -> None:
    case = make_case(name, seed=1)
    known = variables(case, base_of(name), seed=1)
    true = [
        (s.name, i) for s in case.truth.graph.prunable for i in case.truth.nodes[s.name].nonzero().flatten().tolist()
    ]
    assert sorted(known) == sorted(true), "every node of the circuit has its variable, and no other has"
    split = case.task.split("verify")
    sends = sent(case, "verify", list(known))
    for node, variable in known.items():
        values = variable.values(split)
        assert values.shape == sends[node].shape
        assert misfit(sends[node], values) < 1e-3, (node, variable.name)
        assert variable.relation != CONSTANT or not varies(values)
        if variable.relation == ONE_HOT:
            assert len(np.unique(values[np.isfinite(values)])) <= 2, (node, variable.name)


def test_another_variable_would_not_do() -> None:
    """The test above can fail: variables that are not alike do not fit one another's nodes."""
    case = make_case("induction_4x8")
    known = variables(case, "induction_4x8")
    split = case.task.split("verify")
    values = {n: v.values(split) for n, v in known.items() if varies(v.values(split))}
    sends = sent(case, "verify", list(values))
    some = [(a, b) for a in list(values)[::6] for b in list(values)[::6] if not alike(values[a], values[b])]
    pairs = [(a, b) for a, b in some if varies(sends[a][np.isfinite(values[b])])]  # where b has a value, a acts
    assert len(pairs) > 50
    assert min(misfit(sends[a], values[b]) for a, b in pairs) > 0.05


def test_variables_are_worked_out_without_the_model() -> None:
    case = make_case("exactly_two_3x8")
    before = {n: v.values(case.task.split("verify")) for n, v in variables(case, "exactly_two_3x8").items()}
    for parameter in case.model.parameters():
        parameter.data.fill_(0.0)
    for n, v in variables(case, "exactly_two_3x8").items():
        np.testing.assert_array_equal(v.values(case.task.split("verify")), before[n])


def test_a_node_that_no_variable_is_known_of_is_refused() -> None:
    with pytest.raises(RunError, match="no variable is known"):
        variables(make_case("hand_first_4x8", granularity="components"), "hand_first_4x8")
    with pytest.raises(UsageError, match="nobody"):
        variables(make_case("and2"), "nobody")


# -- rules name them -------------------------------------------------------------------------------------------------


def sample_of(case: Case, split: str) -> Sample:
    examples, of = case.task.split(split), words(base_of(case.name))
    x = examples.inputs[0].numpy()
    if of:
        return Sample(split, of, x, examples.inputs[1].numpy())
    side = round(x.shape[1] ** 0.5) if case.family == "cnn" else 0
    names = tuple(f"x{i}" for i in range(x.shape[1]))
    return Sample(split, asked=np.zeros(len(x), int), features=x, names=names, shape=(side, side, 1) if side else ())


@pytest.mark.parametrize("name", QUICK)
def test_rules_name_the_variables_and_not_one_anothers(name: str) -> None:
    """On examples that the author did not see, by the criterion of `planted.names`; in every node of these cases."""
    case = make_case(name)
    known = variables(case, base_of(name))
    truth = {n: v.values(case.task.split("verify")) for n, v in known.items()}
    nodes = [n for n in known if varies(truth[n])]
    s, held_out = sample_of(case, "explain"), sample_of(case, "verify")
    sends = sent(case, "explain", nodes)
    topics = tuple(Topic(f"{a}:{i}", "node", ((a, i),)) for a, i in nodes)
    activity = np.stack([np.where(s.counted, sends[n], np.nan) for n in nodes])
    observed = Observed(s, topics, activity, "sent", np.zeros((len(nodes), len(s))))
    author, judge = Rules(), RulesJudge()
    expected = [judge(author(Dossier({}, observed, t)), held_out) for t in topics]
    good = [named(e, truth[n], [truth[m] for m in nodes]) for n, e in zip(nodes, expected, strict=True)]
    assert all(good), [n for n, g in zip(nodes, good, strict=True) if not g]
    for n in nodes:
        strange = [e for m, e in zip(nodes, expected, strict=True) if not alike(truth[m], truth[n])]
        assert strange, "a case has nodes with another variable"
        assert all(match(e, truth[n]) < ENOUGH for e in strange), "whose explanations do not name this one"
