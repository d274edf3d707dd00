"""Searches that are killed and go on: what comes out is what would have come out undisturbed, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openwork import bench, cli, patching, searches, store
from openwork.circuit import Circuit
from openwork.discover import (
    METHODS,
    ONE_PASS,
    Discovery,
    ExactResult,
    MaskSettings,
    State,
    exact_minimum,
    find,
    schema_of,
    trim,
)
from openwork.discover.acdc import prune
from openwork.discover.learning import Descent
from openwork.discover.recursive import explore
from openwork.discover.trim import _Trim
from openwork.frontier import nested, targets_for
from openwork.keeper import FolderKeeper, question_of
from openwork.models.components import Components
from openwork.models.transformer import Transformer
from openwork.patched_run import PatchedRun
from openwork.runs import find_circuit
from openwork.tasks.metrics import METRICS
from openwork.tasks.task import Split
from planted import PADDED, circuit_of, examples, planted_model
from subject_models import make
from test_attribution import paired

ENDLESS = 10**9
Ask = tuple[nn.Module, Any, Split, str, dict[str, Any]]


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of states: none waits for the disk, for it is processes that die here, not the machine."""
    monkeypatch.setattr("openwork.files.os.fsync", lambda handle: None)


class Mortal:
    """A keeper in a folder that puts away whenever it may, and dies after so many states."""

    def __init__(self, folder: Path, key: str = "k", dies_after: int = ENDLESS) -> None:
        self.inner, self.left, self.names = FolderKeeper(folder, key, 0.0), dies_after, list[str]()
        self.given = list[str]()

    def load(self, name: str) -> State | None:
        state = self.inner.load(name)
        self.given += [name] if state is not None else []
        return state

    def save(self, name: str, state: Callable[[], State]) -> None:
        self.inner.save(name, state)
        self.names.append(name)
        self.left -= 1
        if self.left <= 0:
            raise Killed


def asked(case: str) -> Ask:
    """A search, small enough to be killed very often."""
    method, _, way = case.partition(": ")
    model, split = planted_model(), examples("discover", 10, 7)
    few = {"target": 0.1, "steps": 4 if method == "auto" else 12, "check_every": 3, "pairs": 4}
    zero = patching.zero_reference(model)
    if way == "transformer":
        rest = {"drop_after": 1, "threshold": 1e-3}
        return *prompts(), method, {"target": 0.6, "steps": 12, "check_every": 3, "pairs": 4} | rest
    if way == "view":  # runs of the model's own, which hold what earlier masks left
        view = Components(make("transformer, LayerNorm, unembedding bias"))
        assert isinstance(view.model, Transformer)
        return view, "counterfactual", paired(view.model, 8), method, {"target": 1.0, "threshold": 2e-4}
    if way == "hopeless":
        return model, zero, split.shuffled_labels(1), method, few
    more: dict[str, Any] = {
        "": {},
        "large": {"exhaustive": 0, "tries": 3},
        "both kinds of masks": {"tries": 2},
        "noise": {"gate": "hard_concrete"},
        "to a size": {"edges": 6, "target": 2.0},
        "nodes": {"of": "nodes"},
        "a threshold": {"threshold": 0.02},
    }[way]
    return model, zero, split, method, few | more


def prompts(n: int = 24) -> tuple[nn.Module, dict[str, Tensor], Split]:
    """A small transformer, its mean, and prompts of different lengths that it answers as asked."""
    model = make("transformer")
    g = torch.Generator().manual_seed(0)
    tokens, at = torch.randint(11, (n, 6), generator=g), torch.randint(2, 6, (n,), generator=g)
    with torch.no_grad():
        answer = model(tokens, at).argmax(-1)
    pair = torch.arange(n) ^ 1
    split = Split("discover", (tokens, at), answer, ((answer + 1) % 11)[:, None], pair, ("",) * n)
    return model, patching.mean_reference(model, [(tokens,)]), split


def found(ask: Ask, **more: Any) -> Discovery:
    model, reference, split, method, values = ask
    fields = schema_of(method).model_fields
    settings = schema_of(method)(**{k: v for k, v in values.items() if k in fields})
    return find(model, reference, split, method, settings, **more)


def told(d: Discovery) -> dict[str, Any]:
    """All that a search says, in a form in which nan equals nan."""
    return {
        "status": d.status, "loss": repr(d.loss), "full": repr(d.full_loss), "log": json.dumps(d.log),
        "origin": json.dumps(d.origin), "circuit": d.circuit and json.dumps(d.circuit.origin),
        "scores": d.scores and (d.scores.unit, json.dumps(d.scores.origin), sorted(d.scores.values)),
    }  # fmt: skip


def same(one: Discovery, other: Discovery) -> None:
    assert told(one) == told(other)
    assert one.circuit == other.circuit
    if one.scores is not None and other.scores is not None:
        for name, values in one.scores.values.items():
            assert torch.equal(values, other.scores.values[name])


CASES = [
    *(m for m in METHODS if m not in ONE_PASS),
    "auto: large", "auto: both kinds of masks", "auto: hopeless", "edge_masks: noise", "edge_masks: to a size",
    "edge_masks: hopeless", "exact_patching: nodes", "exact_patching: view", "acdc: nodes", "acdc: view",
    "acdc: a threshold", "acdc: hopeless", "recursive: nodes", "recursive: view", "modules: hopeless",
    "masks: transformer", "edge_masks: transformer", "acdc: transformer",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_search_that_dies_after_every_state_ends_where_an_undisturbed_one_does(case: str, tmp_path: Path) -> None:
    """A row of processes, each of which puts one state away and is gone; so every state is gone on from."""
    ask = asked(case)
    undisturbed = found(ask)
    watched = Mortal(tmp_path / "watched")
    same(found(ask, keeper=watched), undisturbed)  # putting away changes nothing
    assert watched.names, "nothing is put away"
    assert not watched.given, "a stage took what another one had put away"
    lives = 0
    for _ in range(len(watched.names) + 1):
        try:
            last = found(ask, keeper=Mortal(tmp_path / "row", dies_after=1))
            break
        except Killed:
            lives += 1
    else:
        pytest.fail(f"{lives} states were put away, and the search has not ended")
    same(last, undisturbed)
    assert lives == len(watched.names), "some states were skipped, or some work was done twice"


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ONE_PASS])
def test_the_state_of_another_question_is_not_taken(method: str, tmp_path: Path) -> None:
    ask = asked(method)
    whole = Mortal(tmp_path / "whole")
    undisturbed = found(ask, keeper=whole)
    half = len(whole.names) // 2 + 1
    with pytest.raises(Killed):
        found(ask, keeper=Mortal(tmp_path / "part", "one", half))
    other, mine = Mortal(tmp_path / "other", "another"), Mortal(tmp_path / "part", "one")
    (tmp_path / "part").rename(tmp_path / "other")
    same(found(ask, keeper=other), undisturbed)
    assert other.names == whole.names, "the search did not begin at its beginning"
    assert mine.inner.load(whole.names[0]) is None


def test_what_is_over_in_one_pass_takes_no_keeper() -> None:
    for method in ONE_PASS:
        with pytest.raises(TypeError):
            METHODS[method][0](None, None, None, None)


def test_a_question_is_told_from_others() -> None:
    """By weights, reference, examples and settings; the same again by the same."""
    model, split = planted_model(), examples("discover", 10, 7)
    zero = patching.zero_reference(model)
    again = question_of(planted_model(), patching.zero_reference(model), examples("discover", 10, 7), target=0.1)
    first = question_of(model, zero, split, target=0.1)
    assert first == again
    others = {
        question_of(model, zero, split, target=0.2),
        question_of(model, "counterfactual", split, target=0.1),
        question_of(model, {n: r + 1 for n, r in zero.items()}, split, target=0.1),
        question_of(model, zero, split.take(torch.arange(4)), target=0.1),
        question_of(model, zero, replace(split, answer=1 - split.answer), target=0.1),
    }
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    others.add(question_of(model, zero, split, target=0.1))
    assert len(others) == 6
    assert first not in others


# -- parts of searches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("start", ["attribution", "noise"])
def test_masks_that_were_killed_learn_on(compact: bool, start: str, tmp_path: Path) -> None:
    """With nodes that have fallen away, and after one that went back to its best snapshot."""
    model, reference, split = prompts()
    settings = MaskSettings(target=0.69, steps=60, pairs=4, compact=compact, start=start, init=0.5)  # type: ignore[arg-type]
    whole = find(model, reference, split, "masks", settings)
    for dies_after in (7, 33):
        folder = tmp_path / str(dies_after)
        with pytest.raises(Killed):
            find(model, reference, split, "masks", settings, keeper=Mortal(folder, dies_after=dies_after))
        steps: list[int] = []
        keeper = FolderKeeper(folder, "k", 0.0)
        again = find(model, reference, split, "masks", settings, lambda now, _, s=steps: s.append(now), keeper)
        assert steps[0] == dies_after + 1, "the search began anew"
        assert whole.circuit is not None
        same(again, whole)


@pytest.mark.parametrize("reference", ["zero", "counterfactual"])
@pytest.mark.parametrize("edges", [False, True])
def test_a_trim_dies_after_every_state(edges: bool, reference: str, tmp_path: Path) -> None:
    """Of a circuit much of which can go; what was found out is never lost."""
    model, split = planted_model(dead=3), examples("discover", 10, 7)
    sent = patching.zero_reference(model) if reference == "zero" else reference
    everything = Circuit.whole(patching.graph_of(model), patching.support(model))
    for patience, exhaustive in ((64, 500), (3, 0)):  # the second gives up after three failures in a row

        def go(keeper: Any, patience: int = patience, exhaustive: int = exhaustive) -> Any:
            return trim(model, everything, sent, split, 0.05, edges, patience, exhaustive, keeper=keeper)

        watched = Mortal(tmp_path / f"watched {patience}")
        whole = go(watched)
        lives, runs = 0, [0]
        folder = tmp_path / f"row {patience}"
        for _ in range(len(watched.names) + 1):
            try:
                last = go(Mortal(folder, dies_after=1))
                break
            except Killed:
                lives += 1
                state = FolderKeeper(folder, "k").load(watched.names[0])
                assert state is not None
                runs.append(int(state.data["runs"]))
        assert lives == len(watched.names)
        assert last.circuit == whole.circuit
        assert (last.loss, last.one_minimal, last.runs) == (whole.loss, whole.one_minimal, whole.runs)
        assert runs == sorted(runs)


def test_a_trim_in_which_everything_is_needed_dies_after_every_failure(tmp_path: Path) -> None:
    """Where nothing can go there is a state after every single failure, and it goes on with the next single one."""
    model, reference, split = prompts()
    everything = Circuit.whole(patching.graph_of(model), patching.support(model))

    def go(keeper: Any) -> Any:
        return trim(model, everything, reference, split, 0.0, True, 24, 0, rounds=1, keeper=keeper)

    watched = Mortal(tmp_path / "watched")
    whole = go(watched)
    assert whole.circuit == everything
    assert len(watched.names) > 24
    runs = [0]
    for _ in watched.names:
        with pytest.raises(Killed):
            go(Mortal(tmp_path / "row", dies_after=1))
        state = FolderKeeper(tmp_path / "row", "k").load("trim edges")
        assert state is not None
        runs.append(int(state.data["runs"]))
    last = go(Mortal(tmp_path / "row", dies_after=1))
    assert last.circuit == whole.circuit
    assert (last.loss, last.one_minimal, last.runs) == (whole.loss, whole.one_minimal, whole.runs)
    assert max(b - a for a, b in zip(runs, runs[1:], strict=False)) < 20, "failures were not put away"


def test_nested_circuits_die_after_every_state(tmp_path: Path) -> None:
    model, split = planted_model(), examples("discover", 20, 7)
    zero = patching.zero_reference(model)
    run, verify = PatchedRun(model, zero), examples("verify", 10, 8)
    first = find(model, zero, split, "attribution", target=0.15)
    assert first.circuit is not None
    small = trim(model, first.circuit, zero, split, 0.15).circuit
    targets = targets_for(0.15)[::3]

    def go(*keeper: Any) -> Any:
        return nested(run, split, verify, first, small, 0.15, targets, *keeper)

    watched = Mortal(tmp_path / "watched")
    whole = go()
    assert go(watched) == whole
    lives = 0
    for _ in range(len(watched.names) + 1):
        try:
            last = go(Mortal(tmp_path / "row", dies_after=1))
            break
        except Killed:
            lives += 1
    assert lives == len(watched.names)
    assert last == whole


@pytest.mark.parametrize("kind", ["by wiring", "by runs"])
def test_a_proof_that_a_circuit_is_the_smallest_dies_after_every_state(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openwork.discover.minimum.ROOM", 1)  # one subset at a time
    if kind == "by wiring":
        model, split = planted_model(), examples("discover", 10, 7)
        reference, circuit, target, of = patching.zero_reference(model), circuit_of(model, PADDED), 0.1, "edges"
        budget = 200
    else:
        model, reference, split = prompts()
        nodes = {s.name: torch.arange(s.size) < 2 for s in patching.graph_of(model).prunable}
        circuit = Circuit.from_nodes(patching.graph_of(model), nodes, patching.support(model))
        target, of, budget = 0.02, "nodes", 40

    def go(**keeper: Any) -> ExactResult:
        return exact_minimum(model, circuit, reference, split, target, of, limit=64, budget=budget, **keeper)  # type: ignore[arg-type]

    whole, watched = go(), Mortal(tmp_path / "watched")
    assert told_of(go(keeper=watched)) == told_of(whole)
    assert len(watched.names) > 20
    assert bool(whole.minima) == (kind == "by wiring")
    lives = 0
    for _ in range(len(watched.names) + 1):
        try:
            last = go(keeper=Mortal(tmp_path / "row", dies_after=1))
            break
        except Killed:
            lives += 1
    assert lives == len(watched.names)
    assert told_of(last) == told_of(whole)
    assert last.circuit == whole.circuit


def told_of(found: ExactResult) -> dict[str, Any]:
    """All that is said of a smallest circuit, but for the circuits themselves."""
    rest = {k: v for k, v in vars(found).items() if k not in ("circuit", "circuits")}
    return rest | {"edges": [c.counts() for c in found.circuits]}


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    """Told by counts: a recursion and a pass of ACDC that were killed half way run only the other half."""
    model, split = planted_model(), examples("discover", 10, 7)
    run = PatchedRun(model, "counterfactual")
    keeper = Mortal(tmp_path / "a")
    whole = explore(run, split, keeper=keeper)
    half = len(keeper.names) // 2
    with pytest.raises(Killed):
        explore(run, split, keeper=Mortal(tmp_path / "b", dies_after=half))
    told_of: list[int] = []
    again = explore(run, split, progress=lambda now, _: told_of.append(now), keeper=Mortal(tmp_path / "b"))
    assert again.tested == whole.tested
    assert len(told_of) == len(keeper.names) - half
    state = FolderKeeper(tmp_path / "a", "k").load("recursion")
    assert state is not None
    assert state.data["tested"] == whole.tested

    parts, metric, places = run.parts(split), METRICS["kl"], list[int]()
    pruned = prune(run, parts, metric, 0.01, progress=lambda now, _: places.append(now), keeper=Mortal(tmp_path / "c"))
    with pytest.raises(Killed):
        prune(run, parts, metric, 0.01, keeper=Mortal(tmp_path / "d", dies_after=5))
    rest: list[int] = []
    other = prune(run, parts, metric, 0.01, progress=lambda now, _: rest.append(now), keeper=Mortal(tmp_path / "d"))
    assert rest == places[5:]
    assert (other.runs, other.tried, other.value) == (pruned.runs, pruned.tried, pruned.value)


# -- a keeper --------------------------------------------------------------------------------------------------------


def test_a_state_of_another_question_or_a_damaged_one_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = FolderKeeper(tmp_path / ".part", "a", 0.0)
    shared = torch.tensor([0.1, 2.0])
    data = {"step": 3, "lost": float("inf"), "third": 1 / 3, "rows": [{"a": (1, 2)}]}
    kept.save("masks", lambda: State({"x": shared, "y": shared, "r": torch.Generator().get_state()}, data))
    loaded = kept.load("masks")
    assert loaded is not None
    assert torch.equal(loaded.tensors["x"], shared)
    assert torch.equal(loaded.tensors["r"], torch.Generator().get_state())
    assert loaded.data == data | {"rows": [{"a": [1, 2]}]}
    assert FolderKeeper(tmp_path / ".part", "b", 0.0).load("masks") is None
    assert kept.load("trim nodes") is None
    with monkeypatch.context() as patch:
        patch.setattr("openwork.keeper.LAYOUT", 1)
        assert kept.load("masks") is None
    (tmp_path / ".part" / "masks.safetensors").write_bytes(b"\x00" * 50)
    assert kept.load("masks") is None
    slow = FolderKeeper(tmp_path / "slow", "a", 3600.0)
    slow.save("masks", lambda: pytest.fail("not yet time for a state"))
    kept.clear()
    assert not (tmp_path / ".part").exists()


# -- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder around a small trained network on digits."""
    path = tmp_path_factory.mktemp("runs") / "r"
    bench.train_run("digits", "dense", None, path, 300, "smoke")
    return path


def test_a_search_killed_in_a_run_goes_on_from_its_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies in the trim leaves the state of the search; what is found is what would have been found."""
    settings = MaskSettings(target=0.22, steps=40).model_dump()
    monkeypatch.setattr("openwork.keeper.EVERY", 0.0)
    whole = find_circuit(run, "four_nine", "masks", settings)
    folder = run / "circuits" / "four_nine-masks"
    circuit = store.load_circuit(folder)
    (folder / "result.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("openwork.runs.trim", lambda *a, **k: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            find_circuit(run, "four_nine", "masks", settings)
    assert (folder / ".part" / "masks.safetensors").exists()
    again = find_circuit(run, "four_nine", "masks", settings)
    assert store.load_circuit(folder) == circuit
    assert again["edge_pruned"] == whole["edge_pruned"]
    assert not (folder / ".part").exists()


def test_a_repeated_search_goes_on_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `openwork verify --searches` asks for."""
    monkeypatch.setattr("openwork.keeper.EVERY", 0.0)
    find_circuit(run, "three_eight", "masks", MaskSettings(target=0.22, steps=40).model_dump())
    folder = run / "controls" / "three_eight-masks-seed-plus-1"
    whole = searches.search_again(run, "three_eight", "seed + 1")
    assert whole["status"] == "ok"
    (folder / "result.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("openwork.searches.trim", lambda *a, **k: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            searches.search_again(run, "three_eight", "seed + 1")
    assert (folder / ".part" / "masks.safetensors").exists()
    assert searches.search_again(run, "three_eight", "seed + 1") == whole
    assert not (folder / ".part").exists()


COUNTED = ((Descent, "forward"), (_Trim, "loss"), (_Trim, "_meets_target"), (PatchedRun, "loss"))


def work(patch: pytest.MonkeyPatch, dies_after: int = ENDLESS) -> list[int]:
    """Counts from now on: runs of a model, and states that are put away; after so many, `kill -9` of this process."""
    count = [0, 0]
    for kind, name in COUNTED:

        def run(*args: Any, real: Any = getattr(kind, name), **more: Any) -> Any:
            count[0] += 1
            return real(*args, **more)

        patch.setattr(kind, name, run)
    put = FolderKeeper.save

    def save(self: FolderKeeper, name: str, state: Callable[[], State]) -> None:
        put(self, name, state)
        count[1] += 1
        if count[1] == dies_after:
            print(json.dumps(count), file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    patch.setattr(FolderKeeper, "save", save)
    patch.setattr("openwork.keeper.EVERY", 0.0)
    patch.setattr("openwork.files.os.fsync", lambda handle: None)
    return count


PROCESS = """
import json, pytest, sys
from test_resume import work
from openwork import cli
count = work(pytest.MonkeyPatch(), int(sys.argv[1]))
code = cli.main(sys.argv[2:])
print(json.dumps(count), file=sys.stderr)
sys.exit(code)
"""


def test_the_command_is_killed_for_good_and_finishes_the_same_with_less_work(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`kill -9` of `openwork discover --method auto` in the middle of its states, then the same command again."""
    folder = run / "circuits" / "one_seven-auto"
    command = ["discover", str(run), "--task", "one_seven", "--target", "0.2", "--json"]
    command += ["--set", "steps=20", "--set", "exhaustive=0"]

    def process(dies_after: int) -> tuple[int, int, int]:
        """Return code, runs of the model, and states put away."""
        line = [sys.executable, "-c", PROCESS, str(dies_after), *command]
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        got = subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths})
        runs, put = json.loads(got.stderr.splitlines()[-1])
        return got.returncode, runs, put

    def result() -> dict[str, Any]:
        return {k: v for k, v in store.read_json(folder / "result.json").items() if not k.endswith("seconds")}

    with monkeypatch.context() as patch:
        count = work(patch)
        assert cli.main(command) == 0
    capsys.readouterr()
    whole, states = count
    expected, circuit = result(), store.load_circuit(folder)
    assert expected["status"] == "ok"
    shutil.rmtree(folder)
    code, before, put = process(states // 2)
    assert (code, put) == (-signal.SIGKILL, states // 2)
    assert not (folder / "result.json").exists()
    code, after, put = process(ENDLESS)
    assert code == 0
    assert result() == expected
    again = store.load_circuit(folder)
    assert again == circuit
    assert again.origin == circuit.origin
    assert put == states - states // 2
    assert before + after < 1.1 * whole, "what was done is done again"
    assert 0 < after < 0.9 * whole
    assert not (folder / ".part").exists()
