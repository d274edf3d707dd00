"""Networks with a planted circuit: each case's truth is true, the compiler compiles, and scoring scores."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from openwork import patching
from openwork.circuit import Circuit
from openwork.discover import trim
from openwork.errors import RunError, UsageError
from openwork.graph import Graph, Link, Site
from openwork.models import MLP, Transformer
from openwork.planted import BASES, BUSY, CASES, Case, distract, make_case, score
from openwork.planted import row as score_row
from openwork.planted.boolean import FORMULAS, network
from openwork.planted.case import circuit_of, live, make, removals, task_loss
from openwork.planted.compiler import compile_program
from openwork.planted.distract import distractors
from openwork.planted.programs import PROGRAMS
from openwork.planted.rasp import (
    UNCLEAR,
    Average,
    Curve,
    Fetch,
    Indicator,
    Positions,
    Same,
    Select,
    Sharp,
    Tokens,
    along,
    run,
    selected,
)
from openwork.planted.score import areas
from openwork.tasks.task import SPLITS, correct, losses

small = pytest.mark.parametrize("name", [n for n in BASES if n in FORMULAS or n.startswith("constant")])
every = pytest.mark.parametrize("name", CASES)
NO_BRUTE_FORCE_BEYOND = 16  # edges


@cache
def the_case(name: str, seed: int = 0) -> Case:
    return make_case(name, seed)


# -- every case ------------------------------------------------------------------------------------------------------


def test_there_are_cases_of_every_family_plain_and_busy() -> None:
    assert len(CASES) == len(BASES) + len(BUSY) >= 30
    assert {the_case(n).family for n in BASES} == {"boolean", "cnn", "attention", "rasp"}
    assert {the_case(base).family for base, _, _ in BUSY.values()} == {"boolean", "cnn", "attention", "rasp"}


@every
def test_the_model_and_the_truth_alone_solve_the_task_on_all_splits(name: str) -> None:
    c = the_case(name)
    for split in SPLITS:
        s = c.task.split(split)
        for circuit in (None, c.truth):
            with torch.no_grad():
                logits = patching.run(c.model, s.inputs, circuit, c.reference)
            assert bool(correct(logits, s).all()), split
            assert float(losses(logits, s).mean()) <= c.target / 2, split


@every
def test_no_node_and_no_edge_of_the_truth_can_go_on_splits_that_did_not_set_the_target(name: str) -> None:
    c = the_case(name)
    counts = c.truth.counts()
    for split in ("verify", "ood", "explain") if name in BASES else ("verify",):  # `make` measured it on discover
        without = dict(removals(c.model, c.truth, c.reference, c.task.split(split)))
        assert len(without) == counts["nodes"] + counts["edges"]
        assert min(without.values()) > c.target, (split, min(without, key=lambda k: without[k]))


@pytest.mark.parametrize("name", [n for n in BASES if n not in FORMULAS][::2])
def test_the_gap_is_there_for_another_seed(name: str) -> None:
    c = the_case(name, 1)
    s = c.task.split("ood")
    assert task_loss(c.model, c.truth, c.reference, s) <= c.target / 2
    assert min(loss for _, loss in removals(c.model, c.truth, c.reference, s)) > c.target


@pytest.mark.parametrize("name", ["xor", "roof_or_valley", "same_as_first_3x6", "hand_brackets_9_mean"])
def test_removals_are_what_a_patched_run_of_the_smaller_circuit_gives(name: str) -> None:
    c = the_case(name)
    s = c.task.split("verify")
    for element, loss in removals(c.model, c.truth, c.reference, s):
        nodes = {n: m.clone() for n, m in c.truth.nodes.items()}
        edges = {n: m.clone() for n, m in c.truth.edges.items()}
        where, at = element.rsplit(":", 1)
        place = tuple(int(i) for i in at.split(","))
        (edges if ">" in where else nodes)[where][place] = False
        smaller = Circuit(c.truth.graph, nodes, edges)
        if ">" not in where:
            smaller = Circuit.from_nodes(c.truth.graph, nodes, patching.support(c.model))
        assert task_loss(c.model, smaller, c.reference, s) == pytest.approx(loss, abs=1e-3)


@every
def test_the_examples_are_pairs_and_no_example_is_in_two_splits(name: str) -> None:
    seen: set[bytes] = set()
    for split in the_case(name).task.splits.values():
        rows = {b"".join(x[i].numpy().tobytes() for x in split.inputs) for i in range(len(split))}
        assert len(rows) == len(split) >= 64
        assert not rows & seen
        seen |= rows
        assert bool((split.answer[split.pair] != split.answer).all())
        assert torch.equal(split.pair[split.pair], torch.arange(len(split)))


@pytest.mark.parametrize("name", ["parity3", "cross_xor_frame+noise8", "seen_before_3x7+decoy+noise16"])
def test_same_seed_same_case_other_seed_other_case(name: str) -> None:
    first, again, other = make_case(name, 3), make_case(name, 3), make_case(name, 4)
    assert first.truth == again.truth
    assert first.task.digest() == again.task.digest()
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.task.digest() != other.task.digest()


def test_what_is_no_case_is_refused() -> None:
    with pytest.raises(UsageError, match='Nearest: "parity3"'):
        make_case("parity33")
    with pytest.raises(UsageError, match="seed is -1"):
        make_case("parity3", -1)


def test_a_network_without_the_claimed_circuit_is_refused() -> None:
    c = the_case("xor")
    nodes = {n: m.clone() for n, m in c.truth.nodes.items()}
    nodes["hidden0"][0] = False
    with pytest.raises(RunError, match="planted circuit has a task loss of"):
        make("broken", "boolean", c.model, c.task, "", "zero", nodes)
    with pytest.raises(RunError, match="without one of its elements"):
        more = {n: torch.ones_like(m) for n, m in nodes.items()}  # inputs that do not matter
        make("too large", "boolean", c.model, c.task, "", "zero", more)


# -- no other circuit does -------------------------------------------------------------------------------------------


def brute_force(c: Case) -> tuple[Tensor, Tensor]:
    """Losses of all sets of a perceptron's edges, [2^E], and how many edges each has.

    Dropping a node is dropping all edges out of it, so every circuit of nodes and edges is one of these sets. The
    network is written out here, with the masks as one more dimension.
    """
    assert isinstance(c.model, MLP)
    layers = [(m.weight.detach(), m.bias.detach()) for m in c.model.layers]  # type: ignore[union-attr]
    places = [w.nonzero() for w, _ in layers]
    e = sum(map(len, places))
    subsets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=e)))
    s = c.task.split("verify")
    inputs = s.inputs[0]
    used = (layers[0][0] != 0).any(0).nonzero().flatten()
    key, count = torch.unique(torch.cat([inputs[:, used], s.answer[:, None]], 1), dim=0, return_counts=True)
    references = [c.reference[site.name] for site in c.truth.graph.sites]
    out = []
    for masks in subsets.split(4096):
        x = torch.zeros(len(key), inputs.shape[1])
        x[:, used] = key[:, :-1]
        h = x.expand(len(masks), -1, -1)
        at = 0
        for i, ((w, b), p) in enumerate(zip(layers, places, strict=True)):
            m = torch.ones(len(masks), *w.shape)
            m[:, p[:, 0], p[:, 1]] = masks[:, at : at + len(p)]
            at += len(p)
            h = torch.einsum("mnj,mij->mni", h, m * w) + (((1 - m) * w) @ references[i])[:, None] + b
            h = h.relu() if i < len(layers) - 1 else h
        right = key[:, -1].long()
        gap = (h[..., 0] - h[..., 1]) * torch.where(right == 0, 1.0, -1.0)
        out.append((torch.nn.functional.softplus(-gap) * count).sum(1) / len(inputs))
    return torch.cat(out), subsets.sum(1)


@small
def test_every_circuit_that_reaches_the_target_contains_the_truth(name: str) -> None:
    """By brute force, so also: no other circuit of the same or smaller size does."""
    c = the_case(name)
    e = int(sum((m.weight != 0).sum() for m in c.model.layers))  # type: ignore[union-attr, misc]
    if e > NO_BRUTE_FORCE_BEYOND:
        pytest.skip(f"{e} edges: more than can be tried out")
    loss, size = brute_force(c)
    assert loss[-1].item() == pytest.approx(task_loss(c.model, None, c.reference, c.task.split("verify")), abs=1e-6)
    good = loss <= c.target
    assert int(size[good].min()) == c.truth.counts()["edges"]
    subsets = torch.tensor(list(itertools.product((False, True), repeat=e)))
    places = [(link.name, i) for link in c.truth.graph.links for i in patching.support(c.model)[link.name].nonzero()]
    truth = torch.tensor([bool(c.truth.edges[n][tuple(i)]) for n, i in places])
    assert bool(subsets[good][:, truth].all())
    if name == "constant_mean":
        assert int(good.sum()) == 2  # the constant neuron may stay or go
    else:
        assert int(good.sum()) == 1


@pytest.mark.parametrize("name", [n for n in BASES if n not in FORMULAS and not n.startswith("constant")])
def test_random_circuits_inside_the_truth_miss_the_target(name: str) -> None:
    """Where there are too many circuits to try them all: without one element and some random others."""
    c = the_case(name)
    s = c.task.split("verify")
    rng = random.Random(0)
    layout = patching.compact(c.model, c.truth, c.reference)
    live_edges = layout.live()
    elements = [(layout.nodes[n], (i,)) for n, m in layout.nodes.items() for i in range(len(m))]
    elements += [(layout.edges[n], tuple(at)) for n, m in live_edges.items() for at in m.nonzero().tolist()]
    for _ in range(60):
        for mask, at in rng.sample(elements, rng.randint(2, min(8, len(elements)))):
            mask[at] = 0.0
        with torch.no_grad():
            assert float(losses(layout(*s.inputs), s).mean()) > c.target
        for mask, at in elements:
            mask[at] = 1.0


# -- distractors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUSY)
def test_whatever_is_kept_of_the_distractors_the_loss_is_that_of_the_rest(name: str) -> None:
    c, base = the_case(name), the_case(BUSY[name][0])
    s = c.task.split("verify")
    assert c.target == base.target
    assert c.task.digest() == base.task.digest()
    g = torch.Generator().manual_seed(0)
    shared = {site.name: torch.rand(site.size, generator=g) < 0.9 for site in c.truth.graph.prunable}
    missing = next(n for n in shared if bool(c.truth.nodes[n].any()))
    shared[missing][c.truth.nodes[missing].nonzero()[0]] = False
    seen = []
    for share in (0.0, 0.5, 1.0):
        nodes = {
            n: torch.where(m, shared[n], torch.rand(len(m), generator=g) < share)
            for n, m in c.truth.nodes.items()
            if n in shared
        }
        seen.append(task_loss(c.model, circuit_of(c.model, nodes), c.reference, s))
        nodes = {n: torch.where(m, True, torch.rand(len(m), generator=g) < share) for n, m in c.truth.nodes.items()}
        assert task_loss(c.model, circuit_of(c.model, nodes), c.reference, s) <= c.target / 2
        cut = circuit_of(c.model, nodes)  # single edges outside the truth may go as well
        edges = {n: m & (c.truth.edges[n] | (torch.rand(m.shape, generator=g) < 0.5)) for n, m in cut.edges.items()}
        blocks = {e.name for e in c.truth.graph.links if e.counts == "block"}
        cut = replace(cut, edges={n: m if n in blocks else cut.edges[n] for n, m in edges.items()})
        assert task_loss(c.model, cut, c.reference, s) <= c.target / 2
    assert seen == pytest.approx([seen[0]] * 3, rel=2e-3, abs=2e-3)
    assert seen[0] > c.target  # some of the truth is missing


@pytest.mark.parametrize("name", BUSY)
def test_distractors_vary_with_the_input_like_the_truth(name: str) -> None:
    c = the_case(name)
    sent = patching.record(c.model, c.task.split("verify").inputs)
    spare = distractors(c)
    truth, other = [], []
    for site in c.truth.graph.prunable:
        if site.kind != "neuron":
            continue
        h = sent[site.name].movedim(site.axis, -1).reshape(-1, site.size)
        truth.append(h.var(0)[c.truth.nodes[site.name]])
        other.append(h.var(0)[spare[site.name]])
    if not torch.cat(truth).numel() and not BUSY[name][1]:  # circuits of attention alone
        return
    assert float(torch.cat(other).max()) > 0.5 * float(torch.cat([*truth, torch.zeros(1)]).max())
    assert float((torch.cat(other) > 1e-3).float().mean()) > 0.4


def test_decoys_are_whole_circuits_that_still_compute_their_function() -> None:
    """The true network's answer channel apart, the decoy's neurons send what they send alone."""
    base, decoy = the_case("both_ors"), the_case("parity3_deep", 5)
    c = distract(base, "test", 0, decoys=[decoy])
    x = c.task.split("verify").inputs
    alone, beside = patching.record(decoy.model, x), patching.record(c.model, x)
    for site in ("hidden0", "hidden1"):
        spare = beside[site][:, distractors(c)[site]]
        assert spare.shape == alone[site].shape
        for neuron in alone[site].T:
            assert min(float((neuron - other).abs().max()) for other in spare.T) < 1e-6


def test_decoys_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="same kind of network"):
        distract(the_case("xor"), "x", 0, decoys=[the_case("cross")])
    with pytest.raises(UsageError, match="number of layers"):
        distract(the_case("xor"), "x", 0, decoys=[the_case("both_ors")])
    with pytest.raises(UsageError, match="needs the vocabulary"):
        distract(the_case("previous_3x6"), "x", 0, decoys=[the_case("third_4x8")])


def test_the_truth_depends_on_the_ablation() -> None:
    zero, mean = the_case("constant_zero"), the_case("constant_mean")
    for a, b in zip(zero.model.parameters(), mean.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert zero.truth.counts()["nodes"] == mean.truth.counts()["nodes"] + 1
    s = zero.task.split("verify")
    assert task_loss(zero.model, mean.truth, zero.reference, s) > zero.target
    assert task_loss(mean.model, mean.truth, mean.reference, s) < mean.target


@pytest.mark.parametrize(
    "name", ["xor+noise8", "parity3+decoys", "cross_without_frame+decoy", "seen_before_3x7", "constant_mean"]
)
def test_trimming_the_whole_model_leaves_the_truth(name: str) -> None:
    c = the_case(name)
    whole = Circuit.whole(c.truth.graph, patching.support(c.model))
    found = trim(c.model, whole, c.reference, c.task.split("discover"), c.target).circuit
    assert score_row(c, found, None, 0.0)["exact"] is True


# -- Boolean functions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMULAS)
def test_the_network_computes_the_function_on_all_inputs_not_only_on_its_border(name: str) -> None:
    formula = FORMULAS[name]()
    model = network(formula, range(formula.inputs))
    rows = list(itertools.product((False, True), repeat=formula.inputs))
    x = torch.randn(len(rows), model.config.inputs)
    x[:, : formula.inputs] = 2 * torch.tensor(rows).float() - 1
    with torch.no_grad():
        said = model(x).argmax(1)
    assert said.tolist() == [int(formula.function(r)) for r in rows]


# -- the language and its compiler -----------------------------------------------------------------------------------


def test_the_interpreter_against_values_worked_by_hand() -> None:
    tokens, place = Tokens(3), Positions(5)
    x = [1, 0, 1, 2, 1]
    alike = Select(tokens, tokens, lambda k, q: k == q)
    assert selected(alike, x) == [[0], [1], [0, 2], [3], [0, 2, 4]]
    later = Select(place, place, lambda k, q: k > q)  # type: ignore[operator]
    assert selected(later, x) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]  # nothing is everything
    assert run(Average(alike, Indicator(place, lambda p: float(p))), x) == [0, 1, 1, 3, 2]  # type: ignore[arg-type]
    before = Fetch(Select(place, place, lambda k, q: k == q - 1), tokens)  # type: ignore[operator]
    assert run(before, x) == [1, 1, 0, 1, 2]
    two_kept = Fetch(before.select, tokens, keep=(1, 0))
    assert run(two_kept, x) == [1, 1, 0, 1, None]
    assert run(Same(tokens, before), x) == [1, 0, 0, 0, 0]
    assert run(Fetch(later, tokens), x) == [1, UNCLEAR, UNCLEAR, UNCLEAR, UNCLEAR]
    assert run(Sharp(Fetch(later, tokens)), x) == [1, None, None, None, None]
    after = Fetch(Select(before, tokens, lambda k, q: k == q), tokens)
    assert run(after, x) == [1, UNCLEAR, UNCLEAR, UNCLEAR, UNCLEAR]  # none, so all; then several that differ
    assert run(after, [0, 1, 2, 1, 2]) == [0, UNCLEAR, UNCLEAR, 2, 1]


def test_a_curve_is_level_before_its_first_point_and_straight_on_after_its_last() -> None:
    points = ((0.0, 1.0), (1.0, 3.0), (2.0, 2.0))
    assert [along(points, x) for x in (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 4.0)] == [1, 1, 2, 3, 2.5, 2, 0]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_compiled_model_computes_what_the_interpreter_says_on_random_inputs(name: str) -> None:
    program = PROGRAMS[name]()
    compiled = program.compiled()
    rng = random.Random(1)
    rows = []
    for _ in range(200):
        row = rng.choices(range(program.letters), k=program.length)
        if program.begins:
            row[0] = len(program.words) - 1
        if program.markers:
            row[-1] = program.letters + rng.randrange(program.letters)
        rows.append(row)
    with torch.no_grad():
        logits = compiled.model(torch.tensor(rows))
    checked = 0
    for row, said in zip(rows, logits, strict=True):
        for at, value in enumerate(run(program.expression, row)):
            if value is UNCLEAR:
                continue
            if program.threshold is not None:
                expected = program.gain * (float(value) - program.threshold)  # type: ignore[arg-type]
                assert said[at].tolist() == pytest.approx([0.0, expected], abs=2e-3)
            else:
                expected_row = [program.gain * (v == value) for v in program.expression.domain]  # type: ignore[union-attr]
                assert said[at].tolist() == pytest.approx(expected_row, abs=2e-3)
            checked += 1
    assert checked >= 200


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_compiler_uses_just_the_nodes_that_it_says(name: str) -> None:
    compiled = PROGRAMS[name]().compiled()
    for site, mask in live(compiled.model).items():
        assert torch.equal(mask, compiled.nodes[site]), site


def random_program(rng: random.Random, size: int, length: int) -> Fetch | Average | Same | Curve:
    """A program of one to three layers with random predicates."""
    tokens, place = Tokens(size), Positions(length)
    pool: list[Tokens | Positions | Fetch | Sharp] = [tokens, place]
    for _ in range(rng.randint(0, 2)):
        pool.append(Fetch(random_select(rng, pool), rng.choice(pool)))
        if rng.random() < 0.5:
            pool.append(Sharp(pool[-1]))  # type: ignore[arg-type]
    kind = rng.randrange(4)
    if kind == 0:
        return Fetch(random_select(rng, pool), rng.choice(pool))
    if kind == 1:
        return Same(rng.choice(pool), rng.choice(pool))
    of = rng.choice(pool)
    numbers = {v: rng.choice([-1.0, 0.0, 0.5, 2.0]) for v in of.domain}
    average = Average(random_select(rng, pool), Indicator(of, lambda v: numbers[v]))
    if kind == 2:
        return average
    return Curve(average, tuple((x, rng.uniform(-1, 1)) for x in (-1.0, 0.0, 0.5, 2.0)))


def random_select(rng: random.Random, pool: list[Tokens | Positions | Fetch | Sharp]) -> Select:
    keys, queries = rng.choice(pool), rng.choice(pool)
    true = {(k, q) for k in keys.domain for q in queries.domain if rng.random() < 0.4}
    return Select(keys, queries, lambda k, q: (k, q) in true)


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_compile_to_what_the_interpreter_says(seed: int) -> None:
    rng = random.Random(seed)
    program = random_program(rng, 3, 5)
    categorical = isinstance(program, Fetch)
    compiled = compile_program(program, 3, 5, None if categorical else 0.25, gain=1.0)
    rows = [rng.choices(range(3), k=5) for _ in range(60)]
    with torch.no_grad():
        logits = compiled.model(torch.tensor(rows))
    for row, said in zip(rows, logits, strict=True):
        for at, value in enumerate(run(program, row)):
            if value is UNCLEAR:
                continue
            if isinstance(program, Fetch):
                expected = [float(v == value) for v in program.domain]
            else:
                expected = [0.0, float(value) - 0.25]  # type: ignore[arg-type]
            assert said[at].tolist() == pytest.approx(expected, abs=1e-4)
    assert isinstance(compiled.model, Transformer)
    for site, mask in live(compiled.model).items():
        assert not bool((mask & ~compiled.nodes[site]).any())


def test_a_threshold_belongs_to_numbers() -> None:
    tokens = Tokens(2)
    everything = Select(tokens, tokens, lambda k, q: True)
    with pytest.raises(UsageError, match="a number needs a threshold"):
        compile_program(Average(everything, Indicator(tokens, lambda t: 1.0)), 2, 4)
    with pytest.raises(UsageError, match="a number needs a threshold"):
        compile_program(Fetch(everything, tokens), 2, 4, 0.5)


# -- scoring ---------------------------------------------------------------------------------------------------------


def toy() -> tuple[Circuit, dict[str, Tensor]]:
    """Three inputs, two hidden neurons, one output; input 2 has no weight to neuron 1."""
    graph = Graph(
        (Site("x", 3, "a", "input", 0), Site("h", 2, "b", "neuron", 1), Site("y", 1, "c", "output", 2, prunable=False)),
        (Link("x>h", "x", "h", "ab", (2, 3)), Link("h>y", "h", "y", "bc", (1, 2))),
    )
    support = {"x>h": torch.tensor([[1, 1, 1], [1, 1, 0]]).bool(), "h>y": torch.ones(1, 2).bool()}
    nodes = {"x": torch.tensor([True, True, False]), "h": torch.tensor([True, False])}
    return Circuit.from_nodes(graph, nodes, support), support  # true: two edges into h0, and one out of it, of 7


def test_scores_of_a_decision_against_values_worked_by_hand() -> None:
    truth, support = toy()
    right = score(truth, support, truth)
    assert (right.exact, right.precision, right.recall, right.node_precision, right.node_recall) == (True, 1, 1, 1, 1)
    assert (right.edges_true, right.edges_found) == (3, 3)
    nodes = {"x": torch.tensor([True, True, False]), "h": torch.tensor([True, True])}
    wide = score(truth, support, Circuit.from_nodes(truth.graph, nodes, support))
    assert (wide.exact, wide.precision, wide.recall, wide.edges_found) == (False, 3 / 6, 1, 6)
    assert (wide.node_precision, wide.node_recall) == (3 / 4, 1)
    narrow = {"x": torch.tensor([True, False, True]), "h": torch.tensor([True, False])}
    other = score(truth, support, Circuit.from_nodes(truth.graph, narrow, support))
    assert (other.precision, other.recall, other.node_precision) == (2 / 3, 2 / 3, 2 / 3)
    nothing = score(truth, support, Circuit.empty(truth.graph))
    assert math.isnan(nothing.precision)
    assert math.isnan(nothing.node_precision)
    assert (nothing.recall, nothing.exact) == (0, False)
    assert math.isnan(nothing.auroc)
    cut = replace(truth, edges={**truth.edges, "x>h": truth.edges["x>h"] & torch.tensor([[True, False, False]])})
    edges = score(truth, support, cut)
    assert (edges.exact, edges.precision, edges.recall, edges.node_recall) == (False, 1, 2 / 3, 1)


def test_an_edge_without_a_weight_or_without_its_ends_is_no_edge() -> None:
    truth, support = toy()
    all_true = {n: torch.ones_like(m) for n, m in truth.edges.items()}
    assert score(truth, support, replace(truth, edges=all_true)).exact
    nodes = {n: torch.ones_like(m) for n, m in truth.nodes.items()}
    assert score(truth, support, Circuit(truth.graph, nodes, all_true)).edges_found == 7


def test_scores_of_a_ranking_against_values_worked_by_hand() -> None:
    truth, support = toy()
    # true edges 0.9, 0.5, 0.5; the others 0.7, 0.5, 0.1, 0.1: of 12 pairs 4 + 2 (2 + 1/2) = 9 are in the right order
    ranking = {"x>h": torch.tensor([[0.9, 0.5, 0.7], [0.5, 0.1, 9.0]]), "h>y": torch.tensor([[0.5, 0.1]])}
    ranked = score(truth, support, ranking=ranking)
    assert ranked.ranked == "edges"
    assert ranked.auroc == pytest.approx(9 / 12)
    # precision 1 at recall 1/3, then 3/5 at recall 1
    assert ranked.average_precision == pytest.approx(1 / 3 * 1 + 2 / 3 * 3 / 5)
    nodes = score(truth, support, ranking={"x": torch.tensor([3.0, 2.0, 1.0]), "h": torch.tensor([2.0, -1.0])})
    assert (nodes.ranked, nodes.auroc, nodes.average_precision) == ("nodes", 1, 1)
    assert math.isnan(nodes.recall)


def test_areas_need_both_kinds_and_take_infinite_scores_and_ties() -> None:
    truth = torch.tensor([True, False, True, False])
    assert areas(truth, torch.tensor([math.inf, 1.0, 2.0, -math.inf])) == (1, 1)
    assert areas(truth, torch.zeros(4)) == (0.5, 0.5)
    assert areas(truth, torch.tensor([0.0, 1.0, 0.0, 1.0])) == (0, 0.5)
    assert all(map(math.isnan, areas(torch.zeros(3, dtype=torch.bool), torch.ones(3))))
    auroc, average = areas(torch.ones(3, dtype=torch.bool), torch.ones(3))
    assert math.isnan(auroc)
    assert average == 1


def test_areas_are_counts_of_pairs_on_random_ties() -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        truth = torch.rand(30, generator=g) < 0.3
        values = torch.randint(6, (30,), generator=g).float()
        pairs = values[truth][:, None] - values[~truth][None, :]
        brute = ((pairs > 0).float() + 0.5 * (pairs == 0).float()).mean()
        assert areas(truth, values)[0] == pytest.approx(float(brute))


def test_incomplete_and_broken_rankings_are_refused() -> None:
    truth, support = toy()
    whole = {"x>h": torch.zeros(2, 3), "h>y": torch.zeros(1, 2)}
    for bad in ({"x>h": whole["x>h"]}, {}, {**whole, "x": torch.zeros(3)}):
        with pytest.raises(UsageError, match="a ranking needs a tensor for every block link"):
            score(truth, support, ranking=bad)
    with pytest.raises(UsageError, match=r"x>h is \(3, 2\)"):
        score(truth, support, ranking={**whole, "x>h": torch.zeros(3, 2)})
    with pytest.raises(UsageError, match="no nan"):
        score(truth, support, ranking={**whole, "h>y": torch.full((1, 2), math.nan)})
    with pytest.raises(UsageError, match="another model"):
        score(truth, support, the_case("xor").truth)


def test_a_row_is_plain_data_of_one_line() -> None:
    c = the_case("xor")
    values = {s.name: c.truth.nodes[s.name].float() for s in c.truth.graph.prunable}
    row = score_row(c, c.truth, values, 1.5)
    assert row["case"] == "xor"
    assert (row["exact"], row["auroc"], row["average_precision"], row["seconds"]) == (True, 1, 1, 1.5)
    assert all(isinstance(v, str | int | float | bool) for v in row.values())
    none = score_row(c, None, None, 0.1)
    assert none["exact"] is False
    assert none["edges_found"] == 0
    assert math.isnan(none["precision"])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["hand_previous_3x8", "fraction_3x8", "hand_balanced_8", "seen_before_3x7+decoy"])
def test_heads_and_mlps_that_carry_the_circuit_are_enough_and_each_is_needed(name: str) -> None:
    fine, coarse = make_case(name), make_case(name, granularity="components")
    split = coarse.task.split("verify")
    assert task_loss(coarse.model, coarse.truth, coarse.reference, split) <= coarse.target == fine.target
    without = [loss for _, loss in removals(coarse.model, coarse.truth, coarse.reference, split)]
    assert min(without) > coarse.target
    assert 0 < len(coarse.truth) < len(Circuit.whole(coarse.truth.graph, patching.support(coarse.model)))
    with pytest.raises(UsageError, match="no transformer"):
        make_case("xor", granularity="components")
