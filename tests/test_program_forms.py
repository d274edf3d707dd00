"""Perceptrons, images, rules, Boolean formulas, two levels: each form computes, or agrees, with what it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from c_files import SANITIZED, ask, build, lines_of, needs_compiler
from c_files import logits_of as printed
from openwork import patching
from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain.decided import agreement, answers_of, logits_of, preferred, spread
from openwork.explain.programs.binarised import BinariseSettings, Levels, binarise, leveled, with_levels
from openwork.explain.programs.bits import depends_on, formula_of_binarised, formula_of_program, roles
from openwork.explain.programs.boolean_formula import boolean_account, differences
from openwork.explain.programs.decision_rules import (
    Branch,
    Leaf,
    decide,
    fit,
    rules_of,
    short_threshold,
    shortest_between,
)
from openwork.explain.programs.emit_c import emit_c
from openwork.explain.programs.image_program import emit_image_c, look_python, lower_cnn, maps_of, run_image
from openwork.explain.programs.lower_perceptron import feature_names, identifiers, lower_perceptron
from openwork.explain.programs.program import CURVES, Bend, Feature, from_dict, run, size, to_dict
from openwork.models import CNN, MLP, CNNConfig, MLPConfig
from openwork.models.cnn import ConvBlock
from openwork.patching import support
from openwork.planted import make_case
from openwork.planted.boolean import FORMULAS, places_of
from openwork.tasks import make_digit_task
from openwork.tasks.moons import make_moon_task
from openwork.tasks.task import Split, Task

TEN = [str(i) for i in range(10)]


def sparse(model: nn.Module, seed: int, share: float = 0.6) -> nn.Module:
    """The model with random weights, of which a share is zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (torch.rand(p.shape, generator=g) < share))
    return model.eval()


def some_circuit(model: nn.Module, seed: int) -> Circuit:
    """Random nodes, and of the edges between them a random half."""
    g = torch.Generator().manual_seed(seed)
    graph = patching.graph_of(model)
    nodes = {s.name: torch.rand(s.size, generator=g) < 0.7 for s in graph.prunable}
    whole = Circuit.from_nodes(graph, nodes, support(model))
    edges = {n: m & (torch.rand(m.shape, generator=g) < 0.7) for n, m in whole.edges.items()}
    return Circuit(graph, whole.nodes, edges)


def perceptron(seed: int = 0, activation: str = "relu", hidden: tuple[int, ...] = (7, 6)) -> MLP:
    config = MLPConfig(inputs=9, hidden=hidden, outputs=4, activation=activation)  # type: ignore[arg-type,call-arg]
    return sparse(MLP(config), seed)  # type: ignore[return-value]


# -- perceptrons -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("activation", [a for a in ("relu", "silu") if a in CURVES])
def test_a_perceptrons_program_is_the_patched_run(seed: int, activation: str) -> None:
    model = perceptron(seed, activation)
    x = torch.randn(50, 9, generator=torch.Generator().manual_seed(seed))
    reference = patching.mean_reference(model, [(x[:20] + 1,)])
    for circuit in (None, Circuit.empty(patching.graph_of(model)), some_circuit(model, seed)):
        program = lower_perceptron(model, circuit, reference, [3, 1], ["d", "b"], feature_names(9))
        with torch.no_grad():
            want = patching.run(model, (x,), circuit, reference)[:, [3, 1]]
        np.testing.assert_allclose(run(program, x.numpy()), want.numpy(), rtol=1e-4, atol=1e-4)
        assert from_dict(to_dict(program)) == program


def test_only_what_an_answer_depends_on_is_written() -> None:
    model = perceptron(1)
    with torch.no_grad():
        model.layers[-1].weight[2] = 0  # type: ignore[union-attr,index]
    program = lower_perceptron(model, None, patching.zero_reference(model), [2], ["c"], feature_names(9))
    assert size(program).steps == 1 and not any(isinstance(s.op, Feature) for s in program.steps)


@needs_compiler
def test_a_perceptrons_c_file_prints_its_logits(tmp_path: Path) -> None:
    model, x = perceptron(3), torch.randn(30, 9, generator=torch.Generator().manual_seed(0))
    reference = patching.mean_reference(model, [(x,)])
    circuit = some_circuit(model, 3)
    program = lower_perceptron(model, circuit, reference, range(4), "abcd", feature_names(9))
    got = printed(ask(build(emit_c(program), tmp_path, *SANITIZED), lines_of(x.double().numpy())))
    with torch.no_grad():
        np.testing.assert_allclose(got, patching.run(model, (x,), circuit, reference).numpy(), rtol=1e-5, atol=1e-5)


def test_perceptrons_that_have_no_program_are_refused() -> None:
    model = perceptron()
    zero = patching.zero_reference(model)
    with pytest.raises(UsageError, match="9 features, but 2 names"):
        lower_perceptron(model, None, zero, [0], ["a"], ["x", "y"])
    top = MLP(MLPConfig(inputs=9, hidden=(4,), outputs=4, abstopk=0.5))  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="AbsTopK"):
        lower_perceptron(top, None, patching.zero_reference(top), [0], ["a"], feature_names(9))
    x = torch.randn(5, 9)
    own = patching.counterfactual_reference(model, (x,))
    circuit = some_circuit(model, 1)
    with pytest.raises(UsageError, match="one value per input"):
        lower_perceptron(model, circuit, own, [0], ["a"], feature_names(9))


def test_names_of_columns_become_names_of_a_program() -> None:
    names = identifiers(("service=ssh", "service ssh", "id.resp_p=22", "60s rate", "=", "id.resp_p unlisted"))
    assert names == ("service_ssh", "service_ssh_1", "id_resp_p_22", "x_60s_rate", "x4", "id_resp_p_unlisted")
    assert all(n.isidentifier() for n in names)


def test_features_are_named_as_a_person_would() -> None:
    assert feature_names(64, "digits")[8 * 3 + 4] == "r3c4"
    assert feature_names(3072, "cifar10")[1024 + 32 * 5 + 6] == "green_r5c6"
    assert feature_names(2, "two_moons") == ("across", "up")
    assert feature_names(3, "feature_sharing") == ("x1", "x2", "x3")
    assert feature_names(3) == ("x0", "x1", "x2")


# -- images ----------------------------------------------------------------------------------------------------------

TWO_BLOCKS = (ConvBlock(channels=4, kernel=3, pool=2), ConvBlock(channels=3, kernel=2))
SHAPES = {
    "pooled": CNNConfig(image=(2, 9, 8), blocks=TWO_BLOCKS, hidden=(5,), outputs=3),
    "strided": CNNConfig(
        image=(1, 9, 9), blocks=(ConvBlock(channels=5, kernel=2, stride=2, pool=3),), hidden=(), outputs=3
    ),
    "without maps": CNNConfig(image=(1, 3, 4), blocks=(), hidden=(6,), outputs=3),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_an_image_program_is_the_patched_run(shape: str, seed: int) -> None:
    model = CNN(SHAPES[shape])
    sparse(model, seed)
    channels, height, width = SHAPES[shape].image
    x = torch.randn(12, channels * height * width, generator=torch.Generator().manual_seed(seed))
    reference = patching.mean_reference(model, [(x + 0.5,)])
    for circuit in (None, Circuit.empty(patching.graph_of(model)), some_circuit(model, seed)):
        program = lower_cnn(model, circuit, reference, [2, 0], ["c", "a"])
        with torch.no_grad():
            want = patching.run(model, (x,), circuit, reference)[:, [2, 0]].numpy()
        np.testing.assert_allclose(run_image(program, x.numpy()), want, rtol=1e-3, atol=1e-3)
        space: dict[str, Any] = {"np": np}
        exec(look_python(program), space)
        seen = np.stack([space["look"](row) for row in x.double().numpy()])
        np.testing.assert_allclose(run(program.program, seen), run_image(program, x.double().numpy()), atol=1e-9)


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_an_images_c_file_prints_its_logits(shape: str, tmp_path: Path) -> None:
    model = CNN(SHAPES[shape])
    sparse(model, 5)
    x = np.random.default_rng(0).normal(size=(10, int(np.prod(SHAPES[shape].image))))
    reference = patching.mean_reference(model, [(torch.tensor(x).float(),)])
    for i, circuit in enumerate((some_circuit(model, 1), Circuit.empty(patching.graph_of(model)))):
        program = lower_cnn(model, circuit, reference, range(3), "abc")
        folder = tmp_path / str(i)
        folder.mkdir()
        got = printed(ask(build(emit_image_c(program), folder, *SANITIZED), lines_of(x)))
        np.testing.assert_allclose(got, run_image(program, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["cross", "cross_xor_frame", "roof_or_valley"])
def test_a_planted_pattern_is_the_kernel_of_its_map(name: str) -> None:
    case = make_case(name)
    ids, texts = answers_of(case.task)
    program = lower_cnn(case.model, case.truth, case.reference, ids, texts)  # type: ignore[arg-type]
    split = case.task.split("verify")
    mine = preferred(spread(run_image(program, split.inputs[0].numpy()), ids), split)
    assert agreement(mine, split.answer.numpy()).share == 1.0
    patterns = {(((-1.0, 1.0, -1.0), (1.0, 1.0, 1.0), (-1.0, 1.0, -1.0)))}
    if name == "cross":
        assert {k for look in program.looks for _, k in look.kernels} == patterns
        assert maps_of(program, split.inputs[0].numpy())[program.looks[0].name].shape[1:] == program.looks[0].shape


# -- rules -----------------------------------------------------------------------------------------------------------


def test_a_tree_is_found_again() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((600, 5))
    true = Branch(3, 0.4, Branch(1, 0.7, Leaf(2), Leaf(5)), Leaf(9))
    root, folds = fit(x[:300], decide(true, x[:300]))
    assert agreement(decide(root, x[300:]), decide(true, x[300:])).share > 0.97 and folds > 0.95
    assert isinstance(root, Branch) and root.index == 3 and abs(root.threshold - 0.4) < 0.02


def test_where_features_say_nothing_one_answer_is_left() -> None:
    """Noise is not learned: cross-validation sees through it."""
    rng = np.random.default_rng(0)
    root, _ = fit(rng.random((200, 6)), np.where(rng.random(200) < 0.7, 4, 1))
    assert root == Leaf(4)


@pytest.mark.parametrize(
    ("low", "high", "t"), [(0.0, 1.0, 0.0), (0.2, 0.9, 0.6), (0.41, 0.44, 0.42), (-3.0, 5.0, 1.0), (1.23, 1.2301, 1.23)]
)
def test_thresholds_are_short(low: float, high: float, t: float) -> None:
    assert shortest_between(low, high) == t and low <= t < high


def test_a_threshold_loses_digits_and_no_example() -> None:
    x = np.array([0.0, 0.25, 0.314, 0.5])
    assert short_threshold(x, 0.31312) == 0.31
    assert short_threshold(x, 0.3141) == 0.314  # 0.31 would let 0.314 over
    assert short_threshold(x, 0.0861) == 0.086


def told_by(x: Tensor, function: Any) -> Task:
    """A task on features in which the same points serve every split."""
    answer = torch.tensor([int(function(row)) for row in x])
    parts = torch.full((len(x),), -1)
    splits = {
        n: Split(n, (x,), answer, 1 - answer[:, None], parts, ("",) * len(x))
        for n in ("discover", "verify", "ood", "explain")
    }
    return Task("told", "told", splits, ("no", "yes"))


def test_rules_imitate_the_circuit_and_not_the_labels() -> None:
    """The circuit looks at the first feature, the labels at the second."""
    model = MLP(MLPConfig(inputs=3, hidden=(2,), outputs=2))  # type: ignore[call-arg]
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.layers[0].weight[0, 0] = 1.0  # type: ignore[union-attr,index]
        model.layers[1].weight[1, 0] = 1.0  # type: ignore[union-attr,index]
        model.layers[1].bias[0] = 0.3  # type: ignore[union-attr,index]
    task = told_by(torch.rand(200, 3, generator=torch.Generator().manual_seed(0)), lambda row: row[1] > 0.5)
    rules = rules_of(model, None, patching.zero_reference(model), task, ("first", "second", "third"))
    assert rules.leaves() == 2 and "first" in rules.text() and "second" not in rules.text()
    assert rules.agreement["verify"].share == 1.0
    assert isinstance(rules.root, Branch) and abs(rules.root.threshold - 0.3) < 0.02


@needs_compiler
def test_rules_as_python_as_a_program_and_as_c_decide_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    task = make_moon_task("two_moons", 400)
    model = sparse(MLP(MLPConfig(inputs=2, hidden=(6,), outputs=2)), 2, 1.0)  # type: ignore[call-arg]
    rules = rules_of(model, None, patching.zero_reference(model), task, ("across", "up"))
    assert rules.leaves() > 2
    x = rng.normal(size=(200, 2))
    want = rules.decide(x)
    space: dict[str, Any] = {}
    exec(rules.python(), space)
    assert [space["decide"](row) for row in x] == [rules.answers[int(i)] for i in want]
    program = rules.program()
    ids = np.array([a.index for a in program.answers])
    np.testing.assert_array_equal(ids[run(program, x).argmax(1)], want)
    assert run(program, x).sum(1).tolist() == [1.0] * 200  # one path, and one only
    np.testing.assert_array_equal(ids[printed(ask(build(emit_c(program), tmp_path), lines_of(x))).argmax(1)], want)


def test_rules_of_tokens_are_refused() -> None:
    case = make_case("induction_4x8")
    with pytest.raises(UsageError, match="tokens"):
        rules_of(case.model, case.truth, case.reference, case.task, ["x"])


# -- Boolean formulas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FORMULAS, "xor+noise8", "parity3+decoys"])
def test_planted_boolean_circuits_become_their_formula(name: str) -> None:
    case = make_case(name, seed=1)
    model: Any = case.model
    base = FORMULAS[name.split("+")[0]]()
    account = boolean_account(model, case.truth, case.reference, case.task, feature_names(model.config.inputs))
    assert differences(account.formula, base.function, [f"x{i}" for i in places_of(base, 1)]) == 0
    assert account.agreement["verify"].share == account.agreement["ood"].share == 1.0


def test_a_wrong_formula_differs() -> None:
    case = make_case("and2")
    model: Any = case.model
    account = boolean_account(model, case.truth, case.reference, case.task, feature_names(20))
    names = [f"x{i}" for i in places_of(FORMULAS["and2"](), 0)]
    assert differences(account.formula, any, names) == 2
    assert differences(account.formula, all, ["x0", names[1]]) > 0


def test_a_formula_of_a_broken_circuit_is_the_broken_circuits() -> None:
    """Without one true neuron the formula is another, and agreement is still with the circuit."""
    case = make_case("xor")
    model: Any = case.model
    nodes = {n: m.clone() for n, m in case.truth.nodes.items()}
    nodes["hidden0"][nodes["hidden0"].nonzero()[0]] = False
    broken = Circuit.from_nodes(case.truth.graph, nodes, support(model))
    account = boolean_account(model, broken, case.reference, case.task, feature_names(20))
    assert differences(account.formula, lambda x: x[0] != x[1], [f"x{i}" for i in places_of(FORMULAS["xor"](), 0)]) > 0
    assert account.agreement["verify"].share == 1.0 and account.with_model["verify"].share < 1.0


def test_inputs_of_many_values_have_no_truth_table() -> None:
    model = MLP(MLPConfig(inputs=2, hidden=(3,), outputs=2))  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="two values"):
        boolean_account(model, None, patching.zero_reference(model), make_moon_task("two_moons", 50), ("a", "b"))


# -- two levels ------------------------------------------------------------------------------------------------------


def digits_case() -> tuple[MLP, Circuit, dict[str, Tensor], Task]:
    """A perceptron trained for a moment on threes and eights, whole."""
    task = make_digit_task("three_eight")
    split = task.split("discover")
    model = MLP(MLPConfig(hidden=(5, 4)))  # type: ignore[call-arg]
    sparse(model, 0, 0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.3)
    keep = [p != 0 for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(120):
        loss = nn.functional.cross_entropy(model(*split.inputs), split.answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for p, k in zip(model.parameters(), keep, strict=True):
                p.mul_(k)
    nodes = {"input": torch.zeros(64, dtype=torch.bool)}
    nodes["input"][[20, 26, 27, 35, 42, 44, 50]] = True
    circuit = Circuit.from_nodes(patching.graph_of(model), nodes, support(model))
    return model.eval(), circuit, patching.mean_reference(model, [split.inputs]), task


def test_a_binarised_circuit_and_its_program_compute_the_same() -> None:
    model, circuit, reference, task = digits_case()
    two = binarise(model, circuit, reference, task, BinariseSettings.model_validate({"steps": 40}))
    ids, texts = answers_of(task)
    program = with_levels(
        lower_perceptron(model, circuit, reference, ids, texts, feature_names(64, "digits")), two.levels
    )
    split = task.split("verify")
    with (
        torch.no_grad(),
        leveled(model, two.levels),
        patching.patched(model, reference, *patching.masks_of(model, circuit)),
    ):
        want = model(*split.inputs)
    np.testing.assert_allclose(run(program, split.inputs[0].numpy()), want[:, list(ids)].numpy(), atol=1e-4)
    own = preferred(want, split)
    assert two.with_circuit["verify"] == agreement(own, preferred(logits_of(model, circuit, reference, split), split))
    assert {s.op.curve for s in program.steps if isinstance(s.op, Bend)} == {"step"}  # nothing else bends any more
    assert not model._forward_hooks and not any(m._forward_hooks for m in model.modules())


def test_the_roles_of_two_valued_nodes_are_what_they_compute() -> None:
    model, circuit, reference, task = digits_case()
    two = binarise(model, circuit, reference, task, BinariseSettings.model_validate({"steps": 0}))
    ids, texts = answers_of(task)
    program = with_levels(
        lower_perceptron(model, circuit, reference, ids, texts, feature_names(64, "digits")), two.levels
    )
    from openwork.explain.programs.program import Trace

    x = task.split("verify").inputs[0].double().numpy()
    trace = Trace(program, x)
    told = roles(program)
    assert len(told) >= 8
    for name, role in told.items():
        values = [{s.name: v for s, v in zip(program.steps, row, strict=True)} for row in np.stack(
            [trace.end(s.name) for s in program.steps], 1).tolist()]  # fmt: skip
        space = [{k: bool(v) if k.endswith("_on") else v for k, v in row.items()} for row in values]
        if ">" in role and "_on" not in role:  # thresholds are told to four digits: keep away from them
            continue
        assert [bool(eval(role, {}, row)) for row in space] == [bool(row[name]) for row in values], role


def test_the_formula_of_a_binarised_circuit_decides_as_it_does() -> None:
    model, circuit, reference, task = digits_case()
    two = binarise(model, circuit, reference, task, BinariseSettings.model_validate({"steps": 20}))
    ids, texts = answers_of(task)
    program = with_levels(
        lower_perceptron(model, circuit, reference, ids, texts, feature_names(64, "digits")), two.levels
    )
    formula, thresholds = formula_of_binarised(program)
    x = task.split("verify").inputs[0].double().numpy()
    index = {s.name: s.op.index for s in program.steps if isinstance(s.op, Feature)}
    value = formula.value({n: x[:, index[n]] > t for n, t in thresholds.items()})
    logits = run(program, x)
    np.testing.assert_array_equal(np.broadcast_to(value, len(x)), logits[:, 1] > logits[:, 0])
    assert set(formula.inputs()) <= set(depends_on(program, program.answers[0].step)) | set(
        depends_on(program, program.answers[1].step)
    )


def test_levels_are_two_and_only_where_asked() -> None:
    model = perceptron(2)
    levels = {
        "hidden0": Levels(torch.arange(7) < 3, torch.full((7,), 0.5), torch.full((7,), -2.0), torch.full((7,), 9.0))
    }
    x = torch.randn(40, 9, generator=torch.Generator().manual_seed(1))
    plain = patching.record(model, (x,), ["hidden0"])["hidden0"]
    with leveled(model, levels):
        now = patching.record(model, (x,), ["hidden0"])["hidden0"]
    assert torch.equal(now[:, 3:], plain[:, 3:])
    assert torch.equal(now[:, :3], torch.where(plain[:, :3] > 0.5, 9.0, -2.0))


def test_training_lowers_what_it_is_trained_on() -> None:
    model, circuit, reference, task = digits_case()
    from openwork.explain.programs.binarised import _Leveled

    run_of = _Leveled(model, circuit, reference)
    split = task.split("discover")
    costs = [
        run_of.cost(
            split, binarise(model, circuit, reference, task, BinariseSettings.model_validate({"steps": n})).levels
        )
        for n in (0, 60)
    ]
    assert costs[1] < costs[0]


def test_binarising_the_planted_xor_changes_no_decision() -> None:
    case = make_case("xor")
    told: list[tuple[int, int]] = []
    two = binarise(
        case.model, case.truth, case.reference, case.task, BinariseSettings.model_validate({"steps": 5}),
        watch=lambda done, of: told.append((done, of)),
    )  # fmt: skip
    assert two.nodes == 4 and two.with_circuit["verify"].share == 1.0 and two.with_model["ood"].share == 1.0
    assert told[0] == (1, 9) and told[-1] == (9, 9)
    model: Any = case.model
    program = with_levels(
        lower_perceptron(model, case.truth, case.reference, (0, 1), ("no", "yes"), feature_names(20)), two.levels
    )
    formula, _ = formula_of_binarised(program)
    assert differences(formula, lambda x: x[0] != x[1], [f"x{i}" for i in places_of(FORMULAS["xor"](), 0)]) == 0


def test_a_transformer_is_binarised_at_its_neurons() -> None:
    """Neurons that are yes or no by construction keep every decision; neurons that count cannot."""
    settings = BinariseSettings.model_validate({"steps": 0})
    for name, nodes, kept in (("induction_4x8", 4, True), ("exactly_two_3x8", 2, False)):
        case = make_case(name)
        two = binarise(case.model, case.truth, case.reference, case.task, settings)
        assert two.nodes == nodes and two.circuit_with_model["verify"].share == 1.0
        assert (two.with_circuit["verify"].share == 1.0) is kept
        before, after = two.loss["verify"]
        assert (after < before + 0.1) is kept


def test_what_cannot_be_binarised_is_refused() -> None:
    model, circuit, reference, task = digits_case()
    with pytest.raises(UsageError, match="nothing to binarise"):
        binarise(model, Circuit.empty(circuit.graph), reference, task)
    own = patching.counterfactual_reference(model, task.split("discover").inputs)
    with pytest.raises(UsageError, match="fixed reference"):
        binarise(model, circuit, own, task)


def test_formulas_of_programs_with_other_thresholds_are_refused() -> None:
    model, circuit, reference, task = digits_case()
    ids, texts = answers_of(task)
    program = lower_perceptron(model, circuit, reference, ids, texts, feature_names(64, "digits"))
    with pytest.raises(UsageError, match="binarise"):
        formula_of_binarised(program)
    assert formula_of_program(program, np.zeros(64), np.zeros(64)).gate in ("true", "false")


# -- decisions -------------------------------------------------------------------------------------------------------


def test_decisions_are_among_the_candidates() -> None:
    split = Split(
        "verify", (torch.zeros(2, 1),), torch.tensor([1, 3]), torch.tensor([[2], [0]]), torch.tensor([-1, -1]), ("", "")
    )
    logits = torch.tensor([[9.0, 1.0, 2.0, 0.0], [1.0, 9.0, 9.0, 1.0]])
    assert preferred(logits, split).tolist() == [2, 0]  # 0 and 1 do not compete; a tie falls to the lower index


def test_answers_are_named_by_their_outputs() -> None:
    assert answers_of(make_digit_task("three_eight")) == ((3, 8), ("3", "8"))
    assert answers_of(make_digit_task("digits"))[1] == tuple(TEN)
    assert answers_of(make_digit_task("loops"))[0] == (0, 1, 2, 3, 5, 6, 7, 8, 9)
