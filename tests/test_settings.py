"""Settings from a command line: read as YAML, checked against a schema, all faults at once."""

from __future__ import annotations

from typing import Any

import pytest

from openwork.errors import UsageError
from openwork.presets import DIGITS, QUOTES
from openwork.settings import assigned, checked
from openwork.training import TopKSettings


def test_assignments_are_read_as_yaml() -> None:
    asked = ["a.x=1", "a.y=true", "b.text=a=b", "b.list=[1, 2]", "b.nothing=null"]
    assert assigned(asked, ("a", "b")) == {
        "a": {"x": 1, "y": True}, "b": {"text": "a=b", "list": [1, 2], "nothing": None}
    }  # fmt: skip
    assert assigned(["x=1", "y=on the way"]) == {"x": 1, "y": "on the way"}


@pytest.mark.parametrize(
    ("items", "groups", "says"),
    [
        (["a.x"], ("a",), ["GROUP.NAME=VALUE"]),
        (["x=1"], ("a",), ["GROUP.NAME=VALUE"]),
        (["=1"], (), ["NAME=VALUE"]),
        (["mdel.x=1"], ("model", "topk"), ['Nearest: "model"']),
        (["a.x", "b.y=1", "a.z=[1"], ("a",), ["3 problems", '"a.x"', '"b"', "YAML"]),
    ],
)
def test_all_faults_of_assignments_are_told_at_once(items: list[str], groups: tuple[str, ...], says: list[str]) -> None:
    with pytest.raises(UsageError) as refusal:
        assigned(items, groups)
    assert all(s in str(refusal.value) for s in says), refusal.value


def test_all_faults_of_settings_are_told_at_once() -> None:
    with pytest.raises(UsageError) as refusal:
        checked(TopKSettings, {"densty": 0.1, "density": 2}, "settings of topk")
    assert all(s in str(refusal.value) for s in ("settings of topk: 2 problems", 'Nearest: "density"', "density 2:"))


@pytest.mark.parametrize(
    ("values", "group", "name", "now"),
    [
        ({"topk": {"biases": True}}, "topk", "biases", True),
        ({"corpus": {"vocab": 512}}, "model", "vocab", 512),
        ({"model": {"vocab": 512}}, "corpus", "vocab", 512),
        ({"corpus": {"site_packages": True}}, "corpus", "site_packages", True),
        ({"sparse": {"lr": "1e-3"}}, "sparse", "lr", 1e-3),
        ({"dense": {"steps": 40}}, "dense", "snapshots", tuple(range(2, 40))),
    ],
)
def test_a_preset_can_be_changed(values: dict[str, Any], group: str, name: str, now: Any) -> None:
    part = getattr(QUOTES["cpu"].changed(values), group)
    assert (part[name] if isinstance(part, dict) else getattr(part, name)) == now
    assert QUOTES["cpu"].changed({}) == QUOTES["cpu"]


@pytest.mark.parametrize(
    ("preset", "values", "says"),
    [
        (QUOTES["cpu"], {"corpus": {"vocab": 512}, "model": {"vocab": 600}}, "corpus.vocab and model.vocab differ"),
        (QUOTES["cpu"], {"dense": {"steps": "many"}}, "steps many"),
        (QUOTES["cpu"], {"model": {"d_model": 100}}, "multiple of d_head"),
        (DIGITS["cpu"], {"masks": {"stepz": 3}}, 'Nearest: "steps"'),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(preset: Any, values: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        preset.changed(values)
