"""A user's own task: one example per line of a JSONL file.

    {"prompt": "print('hello", "answer": "')", "wrong": "\\")", "pair": "hello", "split": "verify"}

    prompt   the text right before the answer; <|endoftext|> is put before it
    answer   the right next token, wrong: the one that competes with it; each a single token of the corpus
    pair     optional, a name that two lines of one split share: each is the counterfactual of the other
    split    optional: discover, verify, ood or explain; without it, half discover and half verify, decided by a hash of
             the pair's name or the prompt

Every fault of the file is found before any is reported. Knows text and a tokenizer; does not know models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from openwork.errors import UsageError, several, unknown
from openwork.tasks.python_code import END, Tokens
from openwork.tasks.task import SPLITS, Split, Task

NEEDED, OPTIONAL = ("prompt", "answer", "wrong"), ("pair", "split")


@dataclass(frozen=True)
class _Example:
    line: int
    prompt: str
    ids: tuple[int, ...]
    answer: int
    wrong: int
    pair: str | None
    split: str


def read_jsonl_task(path: Path, corpus: Tokens, n_ctx: int | None = None) -> Task:
    """The task in a file, named after it; refuses with all of the file's faults at once.

    corpus  the tokenizer: anything with `encode(text) -> list[int]` and `token(text) -> int`, the id of a text that is
            a single token, which refuses any other with UsageError; `encode` gets <|endoftext|> before every prompt
    n_ctx   longest prompt in tokens, <|endoftext|> included (None: any length)
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as e:
        raise UsageError(f"task: there is no file {path}.") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"task {path}: byte {e.start} is not UTF-8 text.") from e
    except OSError as e:
        raise UsageError(f"task: cannot read {path}: {e.strerror or e}.") from e
    faults: list[str] = []
    examples: list[_Example] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            found = _read(number, line, corpus, n_ctx)
            if isinstance(found, _Example):
                examples.append(found)
            else:
                faults += [f"line {number}: {fault}" for fault in found]
    faults += _between(examples)
    if not faults:
        faults = [
            f'no example is in split "{s}"; discovery and verification need one each'
            for s in ("discover", "verify")
            if all(e.split != s for e in examples)
        ] if examples else ["it holds no examples"]  # fmt: skip
    if faults:
        raise several(f"task {path}", faults)
    splits = {s: _split(s, mine) for s in SPLITS if (mine := [e for e in examples if e.split == s])}
    answers = dict.fromkeys(json.loads(line)["answer"] for line in text.split("\n") if line.strip())
    return Task(path.stem, f"the user's task {path.name}", splits, tuple(answers), encode=corpus.encode)


def _read(number: int, line: str, corpus: Tokens, n_ctx: int | None) -> _Example | list[str]:
    """The example on a line, or its faults."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as e:
        return [f"not JSON ({e})"]
    if not isinstance(record, dict):
        return [f"a {type(record).__name__} where an object with {', '.join(NEEDED)} is expected"]
    faults = _keys(record)
    if faults:
        return faults
    ids = corpus.encode(END + record["prompt"])
    tokens: dict[str, int] = {}
    for key in ("answer", "wrong"):
        try:
            tokens[key] = corpus.token(record[key])
        except UsageError as e:
            faults.append(f"{key} {e}")
            continue
        if corpus.encode(END + record["prompt"] + record[key]) != [*ids, tokens[key]]:
            faults.append(
                f"{key} {record[key]!r} is tokenised together with the end of the prompt, so it is no token of its own "
                "there; a space before it belongs to the answer"
            )
    if record["answer"] == record["wrong"]:
        faults.append(f"answer and wrong are both {record['answer']!r}")
    if n_ctx is not None and len(ids) > n_ctx:
        faults.append(f"the prompt has {len(ids)} tokens; the model takes {n_ctx}")
    if faults:
        return faults
    split = record.get("split") or _hashed(record.get("pair") or record["prompt"])
    return _Example(number, record["prompt"], tuple(ids), tokens["answer"], tokens["wrong"], record.get("pair"), split)


def _keys(record: Mapping[str, Any]) -> list[str]:
    """Faults of keys and types."""
    faults = [f'"{k}" is missing' for k in NEEDED if k not in record]
    faults += [str(unknown("key", k, (*NEEDED, *OPTIONAL))) for k in record if k not in (*NEEDED, *OPTIONAL)]
    for k in (*NEEDED, *OPTIONAL):
        value = record.get(k)
        if k in record and not (isinstance(value, str) or (k in OPTIONAL and value is None)):
            faults.append(f'"{k}" is {json.dumps(value)[:40]}; a text is expected')
        elif value == "":
            faults.append(f'"{k}" is empty')
    split = record.get("split")
    if isinstance(split, str) and split and split not in SPLITS:
        faults.append(str(unknown("split", split, SPLITS)))
    return faults


def _hashed(key: str) -> str:
    return ("discover", "verify")[hashlib.sha256(key.encode()).digest()[0] % 2]


def _between(examples: list[_Example]) -> list[str]:
    """Faults that concern two lines: repeated prompts, pairs without partner or across splits."""
    faults: list[str] = []
    first: dict[str, int] = {}
    named: dict[str, list[_Example]] = {}
    for e in examples:
        if e.prompt in first:
            faults.append(f"line {e.line}: the prompt of line {first[e.prompt]} again")
        first.setdefault(e.prompt, e.line)
        if e.pair is not None:
            named.setdefault(e.pair, []).append(e)
    for name, members in named.items():
        lines = ", ".join(str(m.line) for m in members)
        if len(members) == 1:
            faults.append(f'line {lines}: pair "{name}" has no partner')
        elif len(members) > 2:
            faults.append(f'lines {lines}: pair "{name}" has {len(members)} members; a pair has two')
        elif members[0].split != members[1].split:
            faults.append(f'lines {lines}: pair "{name}" is split between {members[0].split} and {members[1].split}')
    return faults


def _split(name: str, examples: list[_Example]) -> Split:
    width = max(len(e.ids) for e in examples)
    padded = torch.tensor([[*e.ids, *[e.ids[0]] * (width - len(e.ids))] for e in examples], dtype=torch.long)
    at = torch.tensor([len(e.ids) - 1 for e in examples], dtype=torch.long)
    member: dict[str, list[int]] = {}
    for i, e in enumerate(examples):
        if e.pair is not None:
            member.setdefault(e.pair, []).append(i)
    pair = torch.full((len(examples),), -1, dtype=torch.long)
    for a, b in member.values():
        pair[a], pair[b] = b, a
    return Split(
        name,
        (padded, at),
        torch.tensor([e.answer for e in examples], dtype=torch.long),
        torch.tensor([[e.wrong] for e in examples], dtype=torch.long),
        pair,
        tuple(e.prompt for e in examples),
    )
