"""Every method of discovery: finds the planted circuit, leaves nothing behind, repeats itself, and can say no."""

from __future__ import annotations

import pytest
import torch

from openwork import patching
from openwork.circuit import Circuit
from openwork.discover import METHODS, Discovery, SearchSettings, find, schema_of, trim
from openwork.models import build
from openwork.tasks.task import losses
from planted import PLANTED, circuit_of, examples, planted_model
from subject_models import VARIANTS, hooks_on

TARGET = 0.1


def settings_of(method: str, **values: object) -> SearchSettings:
    """Settings with those of these values that the method has: not every search has steps."""
    schema = schema_of(method)
    return schema(**{k: v for k, v in values.items() if k in schema.model_fields})  # type: ignore[arg-type]


def search(method: str, seed: int = 0, target: float = TARGET, control: bool = False, labels: str = "") -> Discovery:
    model = planted_model()
    split = examples("discover", 60, 7)
    split = split.shuffled_labels(1) if labels == "shuffled" else split
    settings = settings_of(method, target=target, seed=seed, steps=150, control=control)
    return find(model, patching.zero_reference(model), split, method, settings)


@pytest.mark.parametrize("method", METHODS)
def test_the_planted_circuit_is_found_exactly_after_the_trim(method: str) -> None:
    found = search(method)
    assert found.status == "ok"
    assert found.circuit is not None
    model = planted_model()
    trimmed = trim(model, found.circuit, patching.zero_reference(model), examples("discover", 60, 7), TARGET)
    assert trimmed.circuit == circuit_of(model, PLANTED)
    assert trimmed.one_minimal
    assert trimmed.loss <= TARGET


@pytest.mark.parametrize("method", METHODS)
def test_a_found_circuit_meets_the_target_on_the_examples_that_chose_it(method: str) -> None:
    found = search(method)
    assert found.circuit is not None
    model = planted_model()
    split = examples("discover", 60, 7)
    losses_on = []
    for examples_that_may_choose in (split.halves()[1], split):  # a method that ends with a trim decides on all
        with torch.no_grad():
            out = patching.run(model, examples_that_may_choose.inputs, found.circuit, patching.zero_reference(model))
        losses_on.append(float(losses(out, examples_that_may_choose).mean()))
    assert found.loss <= TARGET
    assert any(loss == pytest.approx(found.loss, abs=1e-5) for loss in losses_on)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_on_the_model(method: str) -> None:
    model = planted_model()
    before = {n: p.clone() for n, p in model.named_parameters()}
    find(model, patching.zero_reference(model), examples("discover", 20, 7), method, settings_of(method, steps=20))
    assert hooks_on(model) == 0
    for name, p in model.named_parameters():
        assert p.requires_grad
        assert p.grad is None
        assert torch.equal(p, before[name])


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_circuit(method: str) -> None:
    first, second = search(method, seed=3), search(method, seed=3)
    assert first.circuit == second.circuit
    assert first.log == second.log


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_done_is_infeasible_and_has_no_circuit(method: str) -> None:
    for found in (search(method, labels="shuffled"), search(method, labels="shuffled", control=True)):
        assert found.status == "infeasible"
        assert found.circuit is None
        assert found.loss > TARGET


@pytest.mark.parametrize("method", METHODS)
def test_a_control_really_searches(method: str) -> None:
    """Shuffled labels cost the whole model several nats; a search that gave up at once would report just that."""
    found = search(method, labels="shuffled", control=True)
    assert len(found.log) > 1
    assert found.loss < 0.9 * found.full_loss


@pytest.mark.parametrize("method", METHODS)
def test_a_transformer_is_searched_and_trimmed_under_its_mean(method: str) -> None:
    """Prompts of different lengths whose answer stands in the logits anyway: the whole model meets any target."""
    model = build(VARIANTS["transformer"], 1)
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(11, (24, 6), generator=g)
    at = torch.randint(2, 6, (24,), generator=g)
    with torch.no_grad():
        answer = model(tokens, at).argmax(-1)
    split = examples("discover", 12, 0)
    split = type(split)("discover", (tokens, at), answer, ((answer + 1) % 11)[:, None], split.pair, split.texts)
    reference = patching.mean_reference(model, [(tokens,)])
    found = find(model, reference, split, method, settings_of(method, target=0.69, steps=60, pairs=4))
    assert found.circuit is not None
    trimmed = trim(model, found.circuit, reference, split, 0.69)
    assert trimmed.loss <= 0.69
    assert trimmed.circuit - found.circuit == Circuit.empty(model.graph())  # type: ignore[operator]
