"""The house as docs/architecture.md draws it: imports point one way, files say what they are, `__all__` is public."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import openwork

SRC = Path(openwork.__file__).parent
ENV = {**os.environ, "PYTHONPATH": str(SRC.parent)}
FILES = sorted(SRC.rglob("*.py"))

# A room may import the rooms of earlier floors; rooms of one floor only where `SAME_FLOOR` says so.
FLOORS = {
    "values": {
        "errors",
        "graph",
        "circuit",
        "stats",
        "files",
        "threads",
        "progress",
        "tables",
        "settings",
        "hard_concrete",
        "llm_options",
    },
    "tools": {"patching", "single", "structure", "gomory_hu", "store", "workers", "exchange", "audit"},
    "subjects": {"tasks", "models"},
    "questions": {"patched_run"},
    "stages": {"training", "discover", "planted", "verify", "explain", "views", "export"},
    "above": {
        "own",
        "presets",
        "keeper",
        "frontier",
        "runs",
        "forms",
        "discover_all",
        "modules",
        "rivals",
        "explained",
        "bench",
        "compare",
        "ground_truth",
        "searches",
        "transfer",
        "decisions",
        "decision_rows",
        "decompiled",
        "contenders",
        "detector",
        "detector_modules",
        "judging",
        "intrusion",
        "between_seeds",
        "shipping",
        "watch",
        "reporting",
        "told",
        "cli",
        "__main__",
    },
}
FLOOR_OF = {room: i for i, rooms in enumerate(FLOORS.values()) for room in rooms}
SAME_FLOOR = {"values", "tools", "above"}
EXCEPTIONS = {("store", "models")}  # a stored model is built again from its config
FORBIDDEN_ANYWHERE = {
    "views": {"torch", "safetensors.torch"},  # a page is made where torch is not installed
    "files": {"torch"},
    "threads": {"torch.nn", "numpy"},  # has to come before whatever starts a thread pool
    "circuit": {"pathlib", "os"},
    "graph": {"torch", "pathlib", "os"},
    "patching": {"pathlib", "json"},
    "stats": {"torch"},
}


def room_of(path: Path) -> str:
    """The file or folder directly under src/openwork that a file belongs to."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in it; `from a import b` counts as a and as a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction; write openwork.… in full"
            names |= {str(node.module)} | {f"{node.module}.{a.name}" for a in node.names}
    return names


def rooms_imported(path: Path) -> set[str]:
    """The rooms of ours that a file imports."""
    parts = (name.split(".") for name in imports_of(path) if name.startswith("openwork."))
    return {p[1] for p in parts} & (set(FLOOR_OF) | {room_of(f) for f in FILES})


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(f) for f in FILES} - {"__init__"}
    assert rooms <= set(FLOOR_OF), f"say in FLOORS and docs/architecture.md where these belong: {rooms - set(FLOOR_OF)}"


@pytest.mark.parametrize("path", [f for f in FILES if room_of(f) != "__init__"], ids=lambda f: str(f.relative_to(SRC)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    floors = list(FLOORS)
    for other in rooms_imported(path) - {room}:
        if (room, other) in EXCEPTIONS:
            continue
        here, there = FLOOR_OF[room], FLOOR_OF[other]
        allowed = there < here or (there == here and floors[here] in SAME_FLOOR)
        assert allowed, f"{room} ({floors[here]}) imports {other} ({floors[there]})"


def test_rooms_do_not_import_in_a_circle() -> None:
    uses = {room: set[str]() for room in FLOOR_OF}
    for f in FILES:
        if room_of(f) != "__init__":
            uses[room_of(f)] |= rooms_imported(f) - {room_of(f)}
    for room in uses:
        seen, waiting = set[str](), set(uses[room])
        while waiting:
            r = waiting.pop()
            seen.add(r)
            waiting |= {u for u in uses[r] if (r, u) not in EXCEPTIONS} - seen
        assert room not in seen, f"{room} imports itself by way of others"


@pytest.mark.parametrize("room", FORBIDDEN_ANYWHERE)
def test_rooms_do_not_know_what_they_must_not(room: str) -> None:
    for path in (f for f in FILES if room_of(f) == room):
        known = {n for n in imports_of(path) for bad in FORBIDDEN_ANYWHERE[room] if n == bad or n.startswith(bad + ".")}
        assert not known, f"{path.name} imports {known}"


def test_the_two_most_valuable_ignorances() -> None:
    """Discovery never sees the verification data, verification never sees the method."""
    for path in (f for f in FILES if room_of(f) == "discover"):
        text = path.read_text(encoding="utf-8")
        assert not any(f in text for f in ('split("verify")', "split('verify')", 'split("ood")')), path
    for path in (f for f in FILES if room_of(f) == "verify"):
        reads = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Attribute)]
        assert "origin" not in {n.attr for n in reads}, f"{path.name} reads a circuit's origin"


def test_the_command_line_imports_torch_only_when_needed() -> None:
    """--help, --version, a mistyped flag, and a page are answered without torch."""
    for module in ("openwork", "openwork.cli", "openwork.files", "openwork.tables", "openwork.views"):
        code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], env=ENV, check=False).returncode == 0, (
            f"{module} imports torch"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda f: str(f.relative_to(SRC)))
def test_every_file_begins_by_saying_what_it_is(path: Path) -> None:
    head = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert head and len(head.split()) >= 4 and head.split("\n")[0].rstrip(), path


def methods_described() -> set[str]:
    """Names of methods that some class of the package describes."""
    classes = (n for f in FILES for n in ast.parse(f.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef))
    methods = (m for c in classes for m in c.body if isinstance(m, ast.FunctionDef))
    return {m.name for m in methods if ast.get_docstring(m)} | {"forward", "backward"}


@pytest.mark.parametrize("path", FILES, ids=lambda f: str(f.relative_to(SRC)))
def test_every_public_function_and_class_says_what_it_does(path: Path) -> None:
    bare, described = [], methods_described()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            bare.append(node.name)
        inner = node.body if isinstance(node, ast.ClassDef) else []
        # a method that implements a protocol is described there, and a module's forward by its class
        bare += [
            f"{node.name}.{m.name}"
            for m in inner
            if isinstance(m, ast.FunctionDef) and not m.name.startswith("_") and m.name not in described
            if ast.get_docstring(m) is None
        ]
    assert not bare, f"{path.name}: no docstring on {', '.join(bare)}"


def test_nothing_is_ever_unpickled() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert called.split(".")[0] not in {"pickle", "dill", "joblib", "shelve", "marshal"}, f"{path}: {called}"
            if called == "torch.load":
                assert options.get("weights_only") == "True", f"{path}: torch.load without weights_only=True"
            if called in {"np.load", "numpy.load"}:
                assert options.get("allow_pickle", "False") == "False", f"{path}: numpy.load that unpickles"


def test_the_public_names() -> None:
    """The surface is this list; a change of it is a decision, written here and in the changelog."""
    assert set(openwork.__all__) == set(PUBLIC.split())


def test_every_public_name_exists_and_is_the_one_of_its_home() -> None:
    for name in openwork.__all__:
        assert getattr(openwork, name) is not None
        assert name in dir(openwork)
    from openwork.circuit import Circuit

    assert openwork.Circuit is Circuit
    with pytest.raises(AttributeError, match="Circus"):
        _ = openwork.Circus  # type: ignore[attr-defined]


def test_type_checkers_are_told_the_same_names() -> None:
    tree = ast.parse((SRC / "__init__.py").read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    told = {
        a.name: str(n.module).removeprefix("openwork.")
        for n in block.body
        if isinstance(n, ast.ImportFrom)
        for a in n.names
    }
    assert told == openwork._HOME
    assert (SRC / "py.typed").exists()


PUBLIC = """
Circuit Evidence Explanation Scores Graph Link Site OpenworkError RunError UsageError Progress
compact counterfactual_reference mean_reference patched record resample_reference run support zero_reference
load_circuit load_model model_digest save_circuit save_model
SUBJECT_TASKS Corpus CorpusSettings LanguageData Split Task build_corpus correct digits_data load_corpus losses
make_digit_task make_task read_jsonl_task
MLP MODELS Components MLPConfig Transformer TransformerConfig at_granularity build read_gpt2 read_sequential
read_transformer_lens
REGIMES L1 Dense TopK TopKSettings TrainSettings make_regime train
METHODS MaskSettings find trim VERIFIERS Question build_dossier build_page
"""
