"""Stores: what is written is read back, what is damaged is refused in one sentence, and nothing is ever half there."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openwork import files, models, patching, store
from openwork.circuit import Circuit, Evidence, Explanation
from openwork.errors import RunError, UsageError

CONFIG = models.TransformerConfig(vocab=12, n_layer=1, d_model=8, d_head=4, d_mlp=16, n_ctx=6)


def sparse_model(density: float = 0.1) -> nn.Module:
    """A transformer whose matrices are sparse and whose other tensors are not."""
    model = models.build(CONFIG, seed=3)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
            if p.dim() == 2:
                p.mul_(torch.rand(p.shape, generator=g) < density)  # leaves -0.0 among the zeros
        for b in model.buffers():
            b.copy_(torch.randn(b.shape, generator=g))
    return model


def a_circuit(model: nn.Module) -> Circuit:
    """A circuit with some of everything, nan included."""
    graph = patching.graph_of(model)
    g = torch.Generator().manual_seed(1)
    nodes = {s.name: torch.rand(s.size, generator=g) < 0.6 for s in graph.sites if s.prunable}
    evidence = Evidence(
        "sufficient", "holds", "It is enough.", 0.11, "nats", (0.09, math.nan), "random circuits", 0.6, math.nan, 64,
        "verify", 0, 1.5, {"worst": [1, 2.5], "all": {"a": None}},
    )  # fmt: skip
    origin = {"method": "masks", "seed": 0, "model": store.model_digest(model)}
    return Circuit.from_nodes(graph, nodes, patching.support(model), origin).with_evidence(evidence).with_explanations(
        Explanation("block0.mlp.act:3", "a person", "fires on quotes", evidence=(evidence,))
    )  # fmt: skip


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden or not."""
    return sorted(p.name for p in folder.iterdir())


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, 0.1, 0.29, 0.6, 1.0])
def test_a_model_comes_back_exactly(density: float, tmp_path: Path) -> None:
    model = sparse_model(density)
    store.save_model(tmp_path / "model", model, {"step": 7})
    again = store.load_model(tmp_path / "model")
    assert store.model_digest(again) == store.model_digest(model)
    for name, t in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], t), name
    header = files.read_model_header(tmp_path / "model")
    assert header["extra"] == {"step": 7} and header["digest"] == store.model_digest(model)


def test_only_nonzeros_are_stored_where_that_is_smaller(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"bigram": False, "d_model": 64})
    sizes = []
    for density in (0.05, 1.0):
        model = models.build(config)
        for p in model.parameters():
            p.data.mul_(torch.rand_like(p) < density)
        store.save_model(tmp_path / str(density), model)
        sizes.append((tmp_path / str(density) / "model.safetensors").stat().st_size)
    assert sizes[0] < 0.2 * sizes[1]
    stored = store.read_tensors(tmp_path / "0.05" / "model.safetensors")
    assert stored["blocks.0.mlp.up.weight.indices"].dtype == torch.int32
    assert "blocks.0.mlp.up.weight" not in stored and "blocks.0.mlp.up.bias" in stored


def test_the_digest_sees_values_shapes_names_and_buffers_but_not_the_sign_of_zero() -> None:
    model = sparse_model()
    before = store.model_digest(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.0)  # turns -0.0 into 0.0
    assert store.model_digest(model) == before
    bigram = model.get_buffer("bigram")
    bigram[0, 0] += 1
    assert store.model_digest(model) != before
    bigram[0, 0] -= 1
    model.get_parameter("norm.weight").data[0] = torch.nextafter(
        model.get_parameter("norm.weight").data[0], torch.tensor(9.0)
    )
    assert store.model_digest(model) != before
    flat, tall = nn.Linear(4, 1, bias=False), nn.Linear(1, 4, bias=False)
    tall.weight.data = flat.weight.data.view(4, 1).clone()
    assert store.model_digest(flat) != store.model_digest(tall)


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a JSON file by hand."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


MODEL_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda f: [p.unlink() for p in f.iterdir()], "there is no file"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), "there is no file"),
    "truncated tensors": (lambda f: os.truncate(f / "model.safetensors", 300), "damaged or was changed"),
    "empty tensors": (lambda f: os.truncate(f / "model.safetensors", 0), "damaged or was changed"),
    "truncated json": (lambda f: os.truncate(f / "config.json", 50), "not JSON"),
    "empty json": (lambda f: os.truncate(f / "config.json", 0), "not JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), "a list where an object"),
    "not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "not UTF-8"),
    "another format": (lambda f: edit_json(f / "config.json", lambda d: d.update(format="x")), "not of the format"),
    "newer": (lambda f: edit_json(f / "config.json", lambda d: d.update(version=99)), "version 99 .* upgrade"),
    "no version": (lambda f: edit_json(f / "config.json", lambda d: d.pop("version")), "its version is None"),
    "no config": (lambda f: edit_json(f / "config.json", lambda d: d.pop("config")), "config missing"),
    "unknown kind": (lambda f: edit_json(f / "config.json", lambda d: d["config"].update(kind="rnn")), "damaged.*rnn"),
    "other shape": (lambda f: edit_json(f / "config.json", lambda d: d["config"].update(d_mlp=20)), "does not fit"),
    "missing part": (lambda f: edit_json(f / "config.json", lambda d: d["config"].update(n_layer=2)), "is missing"),
    "too many": (lambda f: edit_json(f / "config.json", lambda d: d["config"].update(positions=False)), "no parameter"),
    "other digest": (lambda f: edit_json(f / "config.json", lambda d: d.update(digest="0")), "not the ones"),
}


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_a_damaged_model_is_refused_in_one_sentence(fault: str, tmp_path: Path) -> None:
    store.save_model(tmp_path / "model", sparse_model())
    damage, said = MODEL_FAULTS[fault]
    damage(tmp_path / "model")
    with pytest.raises(RunError, match=said) as refusal:
        store.load_model(tmp_path / "model")
    assert "\n" not in str(refusal.value) or fault == "unknown kind"
    assert str(tmp_path) in str(refusal.value)


# -- circuits ----------------------------------------------------------------------------------------------------------


def test_a_circuit_comes_back_exactly(tmp_path: Path) -> None:
    model = sparse_model(0.5)
    circuit = a_circuit(model)
    store.save_circuit(tmp_path / "c", circuit)
    again = store.load_circuit(tmp_path / "c", store.model_digest(model))
    assert again == circuit and again.graph == circuit.graph
    assert again.origin == circuit.origin and again.counts() == circuit.counts()
    e, f = again.evidence[0], circuit.evidence[0]
    assert math.isnan(e.p) and math.isnan(e.interval[1]) and e.interval[0] == f.interval[0]
    assert (e.claim, e.value, e.n, dict(e.details)) == (f.claim, f.value, f.n, dict(f.details))
    assert again.explanations[0].text == "fires on quotes" and again.explanations[0].evidence[0].n == 64


@pytest.mark.parametrize("of", [Circuit.empty, lambda g: Circuit.whole(g, patching.support(sparse_model()))])
def test_the_empty_and_the_whole_circuit_come_back(of: Callable[..., Circuit], tmp_path: Path) -> None:
    circuit = of(patching.graph_of(sparse_model()))
    store.save_circuit(tmp_path / "c", circuit)
    assert store.load_circuit(tmp_path / "c") == circuit


def test_counts_evidence_and_masks_are_readable_without_torch(tmp_path: Path) -> None:
    circuit = a_circuit(sparse_model(0.5))
    store.save_circuit(tmp_path / "c", circuit)
    assert "NaN" not in (tmp_path / "c" / "circuit.json").read_text()
    code = (
        "import sys; from pathlib import Path; from openwork import files; f = Path(sys.argv[1]); "
        "h = files.read_circuit_header(f); nodes, edges = files.read_masks(f); "
        "print(h['counts']['edges'], h['evidence'][0]['p'], sum(int(m.sum()) for m in edges.values()), "
        "'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], capture_output=True, text=True, check=True)
    assert out.stdout.split() == [str(circuit.counts()["edges"]), "None", str(len(circuit)), "False"]


def test_a_circuit_of_another_model_is_refused(tmp_path: Path) -> None:
    store.save_circuit(tmp_path / "c", a_circuit(sparse_model(0.5)))
    with pytest.raises(RunError, match="was found in model .* discover it again"):
        store.load_circuit(tmp_path / "c", store.model_digest(sparse_model(0.6)))


def test_an_older_version_is_read_and_a_newer_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = a_circuit(sparse_model(0.5))
    store.save_circuit(tmp_path / "c", circuit)
    monkeypatch.setattr(files, "VERSION", 5)
    assert store.load_circuit(tmp_path / "c") == circuit
    store.save_circuit(tmp_path / "new", circuit)
    monkeypatch.setattr(files, "VERSION", 1)
    with pytest.raises(RunError, match="version 5 and this openwork reads up to 1; upgrade"):
        store.load_circuit(tmp_path / "new")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes the tensors of a circuit and notes the new SHA-256, as a careful vandal would."""
    tensors = store.read_tensors(folder / "tensors.safetensors")
    change(tensors)
    written = store.write_tensors(folder / "tensors.safetensors", tensors)
    edit_json(folder / "circuit.json", lambda d: d.update(sha256=written))


LINK = "edges/block0.mlp.in>block0.mlp.act"
CIRCUIT_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated tensors": (lambda f: os.truncate(f / "tensors.safetensors", 100), "damaged or was changed"),
    "truncated json": (lambda f: os.truncate(f / "circuit.json", 900), "not JSON"),
    "index too large": (
        lambda f: rewrite(f, lambda t: t.update({LINK: torch.tensor([128])})),
        "does not fit its shape",
    ),
    "negative index": (lambda f: rewrite(f, lambda t: t.update({LINK: torch.tensor([-1])})), "does not fit its shape"),
    "floats": (lambda f: rewrite(f, lambda t: t.update({LINK: torch.tensor([1.0])})), "does not fit its shape"),
    "a mask too few": (lambda f: rewrite(f, lambda t: t.pop(LINK)), "is missing"),
    "a mask too many": (lambda f: rewrite(f, lambda t: t.update(x=torch.tensor([1]))), "is not in the graph"),
    "no evidence": (lambda f: edit_json(f / "circuit.json", lambda d: d.pop("evidence")), "evidence missing"),
    "bad evidence": (
        lambda f: edit_json(f / "circuit.json", lambda d: d["evidence"][0].pop("interval")),
        "circuit.json is damaged",
    ),
    "bad verdict": (
        lambda f: edit_json(f / "circuit.json", lambda d: d["evidence"][0].update(verdict="maybe")),
        "circuit.json is damaged",
    ),
    "bad graph": (
        lambda f: edit_json(f / "circuit.json", lambda d: d["graph"]["sites"][0].pop("size")),
        "its graph cannot be read",
    ),
}


@pytest.mark.parametrize("fault", CIRCUIT_FAULTS)
def test_a_damaged_circuit_is_refused_in_one_sentence(fault: str, tmp_path: Path) -> None:
    store.save_circuit(tmp_path / "c", a_circuit(sparse_model(0.5)))
    damage, said = CIRCUIT_FAULTS[fault]
    damage(tmp_path / "c")
    with pytest.raises(RunError, match=said) as refusal:
        store.load_circuit(tmp_path / "c")
    assert "\n" not in str(refusal.value)


def test_safetensors_that_are_not_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for data in (b"", b"\x00" * 7, b"\xff" * 64, b'\x08\x00\x00\x00\x00\x00\x00\x00{"a":1}!'):
        path.write_bytes(data)
        for read in (store.read_tensors, files.read_arrays):
            with pytest.raises(RunError, match="is damaged"):
                read(path)


# -- JSON, YAML --------------------------------------------------------------------------------------------------------


numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), values, max_size=4))
def test_json_and_yaml_come_back(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("x")
    store.write_json(folder / "a.json", data)
    assert store.read_json(folder / "a.json") == data
    store.write_yaml(folder / "a.yaml", data)
    assert store.read_yaml(folder / "a.yaml") == data
    files.append_jsonl(folder / "a.jsonl", data)
    files.append_jsonl(folder / "a.jsonl", {"n": 1})
    assert files.read_jsonl(folder / "a.jsonl") == [data, {"n": 1}]
    assert names(folder) == ["a.json", "a.jsonl", "a.yaml"]


def test_settings_come_back_from_yaml_and_plain_things_are_made_plain(tmp_path: Path) -> None:
    store.write_yaml(tmp_path / "run.yaml", {"b": 1, "a": [1.5, None, "x: y"], "path": Path("runs/a"), "t": (1, 2)})
    assert store.read_yaml(tmp_path / "run.yaml") == {"b": 1, "a": [1.5, None, "x: y"], "path": "runs/a", "t": [1, 2]}
    store.write_json(tmp_path / "a.json", {
        "nan": math.nan, "inf": -math.inf, "torch": torch.tensor([1.0, math.nan]), "numpy": np.int64(3),
        "model": CONFIG,
    })  # fmt: skip
    back = store.read_json(tmp_path / "a.json")
    assert back.pop("model")["d_mlp"] == 16
    assert back == {"nan": None, "inf": None, "torch": [1.0, None], "numpy": 3}
    with pytest.raises(TypeError, match="no plain form"):
        store.write_json(tmp_path / "b.json", {"x": object()})


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [1", "is not YAML"), ("- 1", "holds a list"), ("!!python/object:os.system {}", "is not YAML")],
)
def test_yaml_faults_are_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError, match=said) as refusal:
        store.read_yaml(tmp_path / "x.yaml")
    assert "\n" not in str(refusal.value)


def test_a_line_cut_short_by_a_kill_is_left_out_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    assert files.read_jsonl(path) == [{"a": 1}]
    path.write_text('{"a": 1\n{"a": 2}\n')
    with pytest.raises(RunError, match="line 1 is not JSON"):
        files.read_jsonl(path)
    assert files.read_jsonl(tmp_path / "none.jsonl") == []


# -- whole or absent ---------------------------------------------------------------------------------------------------


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(RunError, match=r"cannot write .*a\.txt: No space left on device\. Make room"):
        store.write_text(tmp_path / "a.txt", "new")
    with pytest.raises(RunError, match="No space left"):
        store.save_model(tmp_path / "model", sparse_model())
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_line_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RunError, match="cannot write /dev/full: "):
        files.append_jsonl(Path("/dev/full"), {"a": 1})


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (
        lambda p: store.write_text(p, "x"),
        lambda p: files.append_jsonl(p, {}),
        lambda p: store.save_model(p, sparse_model()),
    ):
        with pytest.raises(RunError, match="cannot write"):
            write(tmp_path / "file" / "below")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with store.new_folder(target) as temp:
        (temp / "x").write_text("1")
        assert not target.exists() and temp.parent == target.parent
    with pytest.raises(KeyboardInterrupt), store.new_folder(target) as temp:
        (temp / "x").write_text("2")
        raise KeyboardInterrupt
    assert names(target.parent) == ["b"] and (target / "x").read_text() == "1"
    with store.new_folder(target) as temp:
        (temp / "y").write_text("3")
    assert names(target.parent) == ["b"] and names(target) == ["y"]


KILLED = """
import os, signal, sys
from pathlib import Path
from openwork import files
target, moment = Path(sys.argv[1]), int(sys.argv[2])
calls = 0
real = os.replace
def replace(a, b):
    global calls
    calls += 1
    if calls > moment:
        os.kill(os.getpid(), signal.SIGKILL)
    real(a, b)
os.replace = replace
with files.new_folder(target) as temp:
    (temp / "x").write_text("new")
"""


@pytest.mark.parametrize("moment", [0, 1])  # before the old folder is moved away; between that and the second rename
def test_a_kill_while_a_folder_is_replaced_loses_nothing(moment: int, tmp_path: Path) -> None:
    target = tmp_path / "f"
    with store.new_folder(target) as temp:
        (temp / "x").write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, str(target), str(moment)], check=False)
    assert len(names(tmp_path)) == 2, "the killed process should have left its temporary folder"
    with pytest.raises(ValueError, match="fails"), store.new_folder(target):
        raise ValueError("fails")
    assert names(tmp_path) == ["f"] and (target / "x").read_text() == "old"


def test_what_a_killed_process_left_is_swept_but_not_what_a_living_one_writes(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".a.txt.{dead.pid}-0.tmp").write_text("half")
    (tmp_path / f".a.txt.{os.getpid()}-999999.tmp").write_text("half, of an earlier process of our number")
    living = tmp_path / f".a.txt.{os.getppid()}-0.tmp"
    living.write_text("being written")
    store.write_text(tmp_path / "a.txt", "whole")
    assert names(tmp_path) == [living.name, "a.txt"]
