"""Names for the steps of a program that say what they are: what an average is of, what a table holds, which neuron.

A step that stands for one node of the model is called as an explanation of that node has it, where there is one. An
average is called after the tokens that push it farthest up (and down), everything else by its part in the whole.

Knows programs and the texts of tokens. Does not know models, circuits, or what a step is worth.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Mapping

from openwork.explain.programs.passes import fresh, with_names
from openwork.explain.programs.program import (
    Average,
    Bend,
    ByPosition,
    Looks,
    Lookup,
    Match,
    Norm,
    Previous,
    Program,
    Step,
    Votes,
    reads,
)

LONG = 24  # characters of a name made of tokens
MARKS = {
    '"': "double_quote", "'": "quote", "(": "open", ")": "close", "[": "bracket", "]": "close_bracket", "{": "brace",
    "}": "close_brace", ",": "comma", ":": "colon", ".": "dot", "=": "equals", "\n": "newline", "+": "plus",
    "-": "minus", "#": "hash", "*": "star", "/": "slash", "<": "less", ">": "more", "!": "bang",
}  # fmt: skip
OURS = (
    "tokens", "rows", "row", "scores", "decide", "n", "np", "json", "sys", "math", "average", "averages", "attend",
    "latest", "previous", "by_place", "gelu", "gelus", "gelu_tanh", "gelu_tanhs", "found", "line",
    "part",
)  # fmt: skip
OURS_OF_MANY = ("points", "matched", "share", "said", "numbers", "token")  # where there are more than two answers


def slug(text: str) -> str:
    """A text as a part of a name: letters and digits as they are, marks by their names; "" where nothing is left."""
    parts = [MARKS.get(c, c if re.match(r"[A-Za-z0-9_]", c) else " ") for c in text.strip(" ") or text]
    joined = ""
    for p, c in zip(parts, text.strip(" ") or text, strict=True):
        joined += f" {p} " if c in MARKS else p
    return re.sub(r"_+", "_", "_".join(joined.lower().split()))[:LONG].strip("_")


def readable(program: Program, labels: Mapping[str, str] | None = None) -> Program:
    """The program with names for people.

    labels  node ("block0.mlp.act:136") -> what an explanation calls it, in a few words
    """
    labels = labels or {}
    words, ops = dict(program.words), program.by_name
    names: dict[str, str] = {}
    ours = (*OURS, *OURS_OF_MANY) if len(program.answers) > 2 else OURS
    taken = {*ours, *keyword.kwlist, *dir(builtins)}

    def call(step: str, name: str) -> None:
        if step not in names:
            clean = name if name.isidentifier() else f"x_{name}"
            names[step] = fresh(clean, taken)
            taken.add(names[step])

    for s in program.steps:
        node = s.about.split(",")[0].split(" ")[0]
        if node in labels and isinstance(s.op, (Bend, Average)) and slug(labels[node]):
            call(s.name, slug(labels[node]))
    looks = [s.op.how if isinstance(s.op, Votes) else s.op for s in program.steps]
    weights = list(dict.fromkeys(op.weight for op in looks if isinstance(op, (Average, Match)) and op.weight))
    for k, w in enumerate(weights):
        ending = "" if len(weights) == 1 else f"_{k + 1}"
        call(w, f"weight{ending}")
        _name_cone(program, w, f"pull{ending}", call)
    for s in program.steps:
        if isinstance(s.op, Average):
            tables = [ops[n] for n in _cone(program, s.op.value) if isinstance(ops[n], Lookup)]
            what = _after_tokens([t for t in tables if isinstance(t, Lookup)], words) or "context"
            call(s.name, f"{what}_seen")
            _name_cone(program, s.op.value, what, call)
    for s in program.steps:
        if isinstance(s.op, Norm):
            call(s.name, "scale" if "attn" in s.name else f"{s.name.split('_')[0]}_scale")
            if s.op.rest:
                _name_cone(program, s.op.rest, "size", call)
    for s in program.steps:
        if isinstance(s.op, Votes):
            call(s.name, _looked_at(s.op.how))
    for s in program.steps:
        found = re.fullmatch(r"neuron\d+_(\d+)", s.name)
        call(s.name, f"neuron_{found[1]}" if found else _plain(s))
    return with_names(program, names)


def _cone(program: Program, name: str) -> list[str]:
    """The steps that a step hangs on, other than by averages and norms; itself first."""
    out: list[str] = []
    waiting = [name]
    while waiting:
        n = waiting.pop(0)
        op = program.by_name[n]
        if n not in out and not isinstance(op, (Average, Norm)):
            out.append(n)
            waiting += reads(op)
    return out


def _name_cone(program: Program, name: str, what: str, call: object) -> None:
    """Names for a step and what it is made of: the table of tokens has the plain name, the others say what they add."""
    assert callable(call)
    for n in _cone(program, name):
        op = program.by_name[n]
        if isinstance(op, Lookup):
            call(n, what)
        elif isinstance(op, ByPosition):
            call(n, f"{what}_by_place")
    for n in reversed(_cone(program, name)):
        if not isinstance(program.by_name[n], Bend) or n != name:
            call(n, f"{what}_here")


def _after_tokens(tables: list[Lookup], words: Mapping[int, str]) -> str:
    """The token that stands out most in some tables, and the one that stands out on the other side; "" for none."""
    best: dict[int, float] = {}
    for t in tables:
        for i, x in t.table:
            if abs(x - t.default) > abs(best.get(i, 0.0)):
                best[i] = x - t.default
    up = max(best.items(), key=lambda b: (b[1], -b[0]), default=(0, 0.0))
    down = min(best.items(), key=lambda b: (b[1], b[0]), default=(0, 0.0))
    ends = sorted((e for e in {up, down} if e[1]), key=lambda e: -abs(e[1]))
    if not ends:
        return ""
    names = [slug(words.get(i, "")) for i, x in ends if abs(x) > 0.5 * abs(ends[0][1])]
    both = "_or_".join(dict.fromkeys(n for n in names if n))
    return both if len(both) <= LONG else names[0]


def _looked_at(how: Looks) -> str:
    """What the places are that vote."""
    match how:
        case Match(_, 0):
            return "same_word"
        case Match(_, 1):
            return "after_same_word"
        case Match(_, back):
            return f"{back}_after_same_word"
        case Previous(_, 0):
            return "here"
        case Previous(_, back):
            return f"before_{back}" if back > 1 else "before"
    return "looked_at"


def _plain(step: Step) -> str:
    """A step's own name without what says how it came about."""
    return re.sub(r"(_raw|_scaled|_plain|_sum|_source|_value|_both)+(?=_|$)", "", step.name) or step.name
