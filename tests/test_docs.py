"""README and docs tell the truth: every path, command, flag and name in them exists, and marked examples run."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from openwork import cli
from openwork.discover import METHODS
from openwork.models import MODELS
from openwork.presets import QUOTES, DataSettings
from openwork.tasks import SUBJECT_TASKS
from openwork.training import REGIMES, TrainSettings
from openwork.verify import VERIFIERS
from test_architecture import FLOORS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])
MADE = {".venv/bin/openwork", ".venv/bin/pytest", ".venv/bin/python"}  # by make setup

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def blocks(page: Path, language: str) -> Iterator[tuple[str, bool]]:
    """Fenced blocks of a language, and whether each is marked as runnable."""
    pattern = rf"(<!-- runnable -->\n)?```{language}\n(.*?)```"
    for m in re.finditer(pattern, page.read_text(encoding="utf-8"), re.DOTALL):
        yield m[2], m[1] is not None


def command_lines(text: str) -> list[list[str]]:
    """The lines of a shell block as words, comments left out."""
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def code_spans(page: Path) -> set[str]:
    """What stands between single backticks, fenced blocks left out."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return set(re.findall(r"`([^`\n]+)`", text))


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


# -- paths -----------------------------------------------------------------------------------------------------------


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


@each_page
def test_every_path_exists(page: Path) -> None:
    for span in code_spans(page):
        if re.match(r"(src|tests|docs|examples|benchmarks|recipes|\.ci)/", span) and " " not in span:
            assert (ROOT / span).exists(), f"{page.name} names {span}, which does not exist"
        if span.startswith(".venv/bin/"):
            assert span.split()[0] in MADE


@each_page
def test_every_file_named_in_a_command_exists(page: Path) -> None:
    for block, _ in blocks(page, "sh"):
        for words in command_lines(block):
            for word in words:
                if re.match(r"(src|tests|docs|examples|benchmarks|recipes)/", word):
                    assert (ROOT / word).exists(), f"{page.name}: {word} does not exist"


def test_the_readme_tree_is_the_tree() -> None:
    (tree,) = (b for b, _ in blocks(ROOT / "README.md", "text"))
    told: dict[str, str] = {}
    folders: list[str] = []
    for line in tree.splitlines():
        m = re.fullmatch(r"( *)(\S+)(?: +(.*))?", line)
        assert m, line
        depth, name, phrase = len(m[1]) // 2, m[2], m[3] or ""
        if name == "--":
            continue
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
            continue
        told["".join(folders) + name] = phrase
    files = (f for f in (ROOT / "src" / "openwork").rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    have = {str(f.relative_to(ROOT)) for f in files if not f.name.startswith(".")}
    assert set(told) == have, f"only told: {sorted(set(told) - have)}; not told: {sorted(have - set(told))}"
    assert all(len(phrase.split()) >= 2 for phrase in told.values()), "every file has its phrase"


def test_every_page_is_in_the_site() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = {page for entry in config["nav"] for page in entry.values()}
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert pages == listed
    linked = set(re.findall(r"\]\(([^)#]+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert linked == pages - {"index.md"}, "the first page leads to every other"


# -- commands --------------------------------------------------------------------------------------------------------


@each_page
def test_every_make_target_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {w[1] for b, _ in blocks(page, "sh") for w in command_lines(b) if w[0] == "make"}
    named |= set(re.findall(r"`make ([a-z]+)`", text))
    assert named <= make_targets(), f"{page.name} names {named - make_targets()}"


def openwork_lines(page: Path) -> list[list[str]]:
    """All `openwork ...` command lines of a page, in blocks and in running text, without the program's name."""
    lines = [w[1:] for b, _ in blocks(page, "sh") for w in command_lines(b) if w[0] == "openwork"]
    return lines + [s.split()[1:] for s in code_spans(page) if s.removeprefix(".venv/bin/").startswith("openwork ")]


@each_page
def test_every_command_line_is_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for text, _ in blocks(page, "yaml"):
        (tmp_path / "smoke.yaml").write_text(text)
    for words in openwork_lines(page):
        if len(words) == 1:  # the command's bare name in running text
            assert words[0] in cli.EXAMPLES or words[0].startswith("--"), f"{page.name}: openwork {words[0]}"
            continue
        function, _, _ = cli.app.parse_args(words, exit_on_error=False, print_error=False)
        assert function.__name__.removesuffix("_") in cli.EXAMPLES


def test_the_commands_page_shows_each_commands_example() -> None:
    page = ROOT / "docs" / "commands.md"
    lines = [" ".join(w) for b, _ in blocks(page, "sh") for w in command_lines(b)]
    headings = re.findall(r"^## (\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    for command, example in cli.EXAMPLES.items():
        assert example in lines, f"docs/commands.md does not show: {example}"
        assert command in headings


def test_the_commands_page_names_every_flag_and_no_other() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    named = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
    named |= {w for b, _ in blocks(ROOT / "docs" / "commands.md", "sh") for line in command_lines(b) for w in line}
    flags = {"--help"}
    for command in cli.EXAMPLES:
        for argument in cli.app[command].assemble_argument_collection(default_parameter=cli.app.default_parameter):
            flags |= {n for n in argument.names if n.startswith("--")}
    assert {n for n in named if n.startswith("--")} == flags


# -- names -----------------------------------------------------------------------------------------------------------


def test_the_figures_of_the_readme_are_those_of_the_results() -> None:
    told = (ROOT / "README.md").read_text(encoding="utf-8").split("## What comes out")[1].split("##")[0]
    results = (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8")
    figures = re.findall(r"\d+\.\d", told)
    assert len(figures) == 8
    assert not [f for f in figures if not re.search(rf"(?<![\d.]){re.escape(f)}(?![\d.])", results)]
    head, *_, last = [
        line.strip("| ").split(" | ") for line in results.splitlines() if re.match(r"\| (\*\*all|task \| suff)", line)
    ]
    count = {claim: [int(n) for n in cell.split(" / ")] for claim, cell in zip(head[1:], last[1:], strict=True)}
    assert sum(count["sufficient"]) == int(re.search(r"Of the (\d+) sparse", told)[1])  # type: ignore[index]
    for claim, wording in {
        "necessary": r"(\d+) are necessary",
        "sufficient": r"only (\d+) meet",
        "generalises": r"and (\d+)\s+generalise",
    }.items():
        assert count[claim][0] == int(re.search(wording, told)[1]), claim  # type: ignore[index]
    assert count["sufficient"][2] == int(re.search(r"\((\d+) more may", told)[1])  # type: ignore[index]


def test_the_settings_that_the_commands_page_names_exist() -> None:
    groups = {**{n: schema for n, (_, schema) in REGIMES.items()}, **QUOTES["cpu"].groups()}
    names = {group: set(schema.model_fields) for group, schema in groups.items()}
    names |= {"training": set(TrainSettings.model_fields), "data": set(DataSettings.model_fields)}
    names["model"] = {name for _, schema in MODELS.values() for name in schema.model_fields}
    named = [
        s.split(".")
        for s in code_spans(ROOT / "docs" / "commands.md")
        if re.fullmatch(r"[a-z][a-z0-9]*\.(?!jsonl)[a-z_]+", s)
    ]
    assert len(named) > 10
    for group, name in named:
        assert name in names[group], f"{group}.{name}"


def test_the_docs_list_what_there_is() -> None:
    tasks, commands = (code_spans(ROOT / "docs" / f"{n}.md") for n in ("tasks", "commands"))
    for names in SUBJECT_TASKS.values():
        assert set(names) <= tasks
    assert set(REGIMES) <= commands
    assert set(METHODS) and set(MODELS)
    claims = (ROOT / "docs" / "verification.md").read_text(encoding="utf-8")
    for claim in VERIFIERS:
        assert f"| {claim.replace('_', '-')} |" in claims, f"docs/verification.md has no line for {claim}"
    house = code_spans(ROOT / "docs" / "architecture.md")
    for lists in ("MODELS", "REGIMES", "METHODS", "VERIFIERS", "SUBJECTS"):
        assert lists in house


def test_the_architecture_page_draws_the_floors_that_are_tested() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    have = {p.relative_to(ROOT / "src" / "openwork").parts[0] for p in (ROOT / "src" / "openwork").rglob("*.py")}
    have = {name.removesuffix(".py") for name in have}
    for floor, rooms in FLOORS.items():
        (line,) = re.findall(rf"^\| {floor} \| ([^|]+)\|", text, re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", line)) == {r for r in rooms if r in have and r != "__main__"}


def test_the_example_task_has_the_form_that_the_docs_describe() -> None:
    (described,) = (json.loads(b) for b, _ in blocks(ROOT / "docs" / "tasks.md", "json"))
    rows = [json.loads(line) for line in (ROOT / "examples" / "own_task.jsonl").read_text().splitlines()]
    assert all(row.keys() == described.keys() for row in rows)
    pairs = [row["pair"] for row in rows]
    assert all(pairs.count(p) == 2 for p in pairs)


# -- running ---------------------------------------------------------------------------------------------------------

RUNNABLE = [(p, b) for p in PAGES for b, marked in blocks(p, "sh") if marked]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "block"), RUNNABLE, ids=[f"{p.name}-{i}" for i, (p, _) in enumerate(RUNNABLE)])
def test_marked_examples_run(page: Path, block: str, tmp_path: Path) -> None:
    """As a reader would: line by line in an empty folder, with the repository's examples beside it."""
    for name, target in (("openwork", "-m openwork"), ("python", "")):
        shim = tmp_path / "bin" / name
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" {target} "$@"\n')
        shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{page.name}:\n{block}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"


@pytest.mark.parametrize(("make_test", "make_browser", "expected"), [(0, 0, 0), (0, 1, 0), (3, 0, 3), (3, 1, 3)])
def test_ci_fails_exactly_when_the_tests_fail(tmp_path: Path, make_test: int, make_browser: int, expected: int) -> None:
    make = tmp_path / "make"
    make.write_text(
        f'#!/bin/sh\necho "$1"\ncase "$1" in test) exit {make_test};; browser) exit {make_browser};; esac\n'
    )
    make.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([ROOT / ".ci" / "run"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == expected
    assert done.stdout.split() == ["browser", "test"]
