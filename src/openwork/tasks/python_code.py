"""Six questions about Python code with two answers each, after Gao et al. 2025 (arXiv 2511.13653, table 1).

An example is a pair of prompts that differ minimally and have the same length in tokens; one calls for the first
answer and the other for the second. Prompts are templates filled with words. Four *pools* besides the training mix
(discover, verify, ood, explain) share nothing with it or with one another, by construction:

    words      one list dealt out in turn; within a pool again dealt out into names (identifiers) and literals
    templates  written down pool by pool; those of "ood" are farther from training: statements that distract before the
               question, deeper nesting, the other quote or bracket opened and closed earlier

The templates and words of "verify" and "ood" were written once, before any model was scored on them; the other pools
were adjusted until a small model could learn the tasks. Keep it so: adjust on "discover", never on "verify".

What all pools share is what Python itself fixes (keywords, punctuation, digits), and for `with_open` the *kind* words
("input", "save", ...): that "input" sounds like reading can only be known from having seen it, so the rest of the file
name differs and the kind words do not.

Slots in a template: <v> ... <z>, <f>, <g> names; <a> ... <d> literals; <i> ... <n> numbers; <Q> and other capitals
stand for what differs between the two members of a pair.

Knows text, and of a tokenizer only what `Tokens` says. Does not know models or methods.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch

from openwork.errors import UsageError, unknown
from openwork.tasks.task import SPLITS, Split, Task

END = "<|endoftext|>"
LONGEST = 64  # tokens of a prompt, the leading END included

WORDS = """
access action active address allow append area args argv asset attr attribute back ball band bar base batch big bit
block boat bone book boot bound box bucket buffer build cable call calm cart cat cc ch chance change char chars charset
chart check child clock close code coin cold color command cond conn const cont context cook copy core cost count cover
create crew cur current curve cut data date decode deer default dest distance doc dog done door dot down dust ear echo
edge edit enable encode encoding end enter entry error errors even ex expr extra fall fan fill final find first fix
flags flow food foot force fork form found four frame fund game gate get glass group hand handle handler hat head header
headers heart heat hill hint home hook host hour house ice icon index info iron item jar join key kid king lake lamp
land last late later leader left leg level lid line lines link lion lip listing lists little local lock loop lost low
mail main math matter meal mean meat message meta method mill mind mine minor mint mode module moment moon mother motion
mount mouse move msg names neck newline news node noise nose note num number obj offer oil old one option options opts
order other pack packet page paint pair pan paper parent park parse parser part parts party patch path pause pen pin
place plain plate play point pool port pos post prefix press process profile prog queue quick quiet race rain rate ready
real red ref res reset resource rest retry returned rice rich ring river road role root rose row rule run sand scan sea
seal seat section seed seen seq server sets setup seven ship shop short side sig simple site six size soap sock socket
soft son sort sound space spec split sport spot spring stack stage stand star start stat state station stone stop stream
strip sub sun sure tab table tag tail tea temp ten term test text theme thread ticket tie tiger time timeout timer times
title tmp token tool top town trace trial trip trust turn union unit upper url usage used user val value values var
version view wait wall watch water wave wet win wing word zone
""".split()  # noqa: SIM905

READING = ("input", "source", "read", "load")
WRITING = ("output", "result", "write", "save")

POOLS = ("train", *SPLITS)
_DEAL = ("verify", "discover", "ood", "train", "train", "train", "train", "explain", "train", "train")


@cache
def words(pool: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names and the literals of a pool; no word is in two pools or in both."""
    mine = [w for i, w in enumerate(WORDS) if _DEAL[i % len(_DEAL)] == pool]
    return tuple(mine[0::2]), tuple(mine[1::2])


class Tokens(Protocol):
    """What this file asks of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        ...

    def token(self, text: str) -> int:
        """The id of a text that is a single token; refuses any other text."""
        ...


@dataclass(frozen=True)
class TaskSpec:
    """One question.

    about      what it asks, in one line
    answers    the first and the second answer, each a single token
    switches   slot in capitals -> what it stands for in the first and in the second member of a pair; where there are
               several choices, one is drawn per member
    rest       how the statement goes on after each answer (training mix only)
    templates  pool -> prompts; the first two of "train", the shortest, come most often in the training mix
    """

    about: str
    answers: tuple[str, str]
    switches: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    rest: tuple[str, str]
    templates: Mapping[str, tuple[str, ...]]


def _swap(first: str, second: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (first,), (second,)


TASKS: dict[str, TaskSpec] = {
    "single_double_quote": TaskSpec(
        about="close a string and a call with the quote that opened the string",
        answers=("')", '")'),
        switches={"Q": _swap("'", '"'), "P": _swap('"', "'")},
        rest=("", ""),
        templates={
            "train": (
                "<f>(<Q><a>",
                "<f>(<Q><a> <b>",
                "<x> = <f>(<Q><a>",
                "return <f>(<Q><a>",
                "print(<Q><a> <b>",
                "<f>(<x>, <Q><a>",
                "<f>.<x>(<Q><a>",
                "<x> = <P><a><P>\n<f>(<Q><b>",
            ),
            "discover": (
                "<x> = <y>.<f>(<Q><a> <b>",
                "<f>(<Q><a> <b> <c>",
                "for <x> in <y>:\n    <f>(<Q><a>",
                "<x>.<f>(<y>, <Q><a>",
                "assert <f>(<Q><a> <b>",
                "while <x>:\n    <y>.<f>(<Q><a>",
                "<x>[<n>] = <f>(<Q><a> <b>",
                "<x>.<y> = <f>(<Q><a> <b> <c>",
            ),
            "verify": (
                "<x> += <f>(<Q><a>",
                "<x> = not <f>(<Q><a> <b>",
                "if <x>:\n    <f>.<y>(<Q><a> <b>",
                "del <x>\n<f>(<Q><a> <b> <c>",
            ),
            "ood": (
                "<f>(<P><a><P>)\n<g>(<x>, <P><b> <c><P>)\n<y> = <f>(<Q><d>",
                "def <f>(<x>, <y>):\n    <z> = <P><a> <b><P>\n    return <g>(<z>, <Q><c>",
                "<x> = <f>(<P><a> <b> <c><P>)\nwhile <y>:\n    if <x>:\n        <g>(<Q><d>",
                "<x>[<P><a><P>] = <f>(<i>, <j>, <Q><b> <c>",
            ),
            "explain": (
                "<x> -= <f>(<Q><a> <b>",
                "<x>, <y> = <f>(<Q><a>",
                "if <x> > <i>:\n    <f>(<x>, <Q><a> <b>",
            ),
        },
    ),
    "bracket_counting": TaskSpec(
        about="close as many brackets as the list opened",
        answers=("]]", "]"),
        switches={"O": _swap("[[", "["), "P": _swap("[", "[["), "C": _swap("]", "]]")},
        rest=("", ""),
        templates={
            "train": (
                "<x> = <O><i>, <j>",
                "<x> = <O><y>, <i>",
                "<x> = <O><i>, <j>, <k>",
                "<x> = <O><i>, <j>], [<k>, <n>",
                "<x> = <O><y>, <z>",
                "return <O><y>, <i>",
                "if <x>:\n    <y> = <O><i>, <j>",
                "<x> = <O><y>, <i>], [<z>, <j>",
            ),
            "discover": (
                "<x> = <O><y>, <z>, <i>",
                "<x>.<f> = <O><y>, <i>], [<w>, <j>",
                "<x>[<i>] = <O><j>, <k>",
                "while <x>:\n    <y> = <O><z>, <i>",
                "<x> -= <O><y>, <i>",
                "<x> = <y> + <O><z>, <i>",
                "with <x>:\n    <y> = <O><i>, <j>, <k>",
                "<x>, <y> = <O><z>, <i>], [<w>, <j>",
            ),
            "verify": (
                "<f>.<x> = <O><y>, <i>, <j>",
                "<x> = <y> = <O><i>, <j>",
                "<x> = <i> + <O><y>, <j>",
                "if <x>:\n    <y>.<z> = <O><i>, <j>], [<w>, <k>",
            ),
            "ood": (
                "<x> = <P><y>, <i><C>\n<f>(<x>)\n<z> = <O><j>, <w>, <k>",
                "def <f>(<x>):\n    <y> = <P><i>, <j><C>\n    return <O><x>, <y>, <k>",
                "<x>.<y> = <O><i>, <z>, <j>], [<w>, <k>, <n>",
                "while <x>:\n    <y> = <P><z>, <i><C>\n    if <y>:\n        <w> = <O><j>, <k>",
            ),
            "explain": (
                "assert <x> == <O><y>, <i>",
                "<x> *= <O><i>, <y>, <j>",
                "if <x> > <k>:\n    <x> = <O><y>, <z>], [<i>, <j>",
            ),
        },
    ),
    "set_or_string": TaskSpec(
        # str() and not "": both members of a pair then have the same number of tokens.
        about="add to a variable as its type allows: a set by a method, a string by +=",
        answers=(".add", " +="),
        switches={"K": _swap("set", "str"), "L": _swap("str", "set")},
        rest=("(<i>)", " <v>"),
        templates={
            "train": (
                "<x> = <K>()\n<x>",
                "<x> = <K>()\n<y> = <i>\n<x>",
                "<x> = <K>()\nif <y>:\n    <x>",
                "<x> = <K>()\nfor <y> in <z>:\n    <x>",
                "<x> = <K>()\n<f>(<y>)\n<x>",
                "<x> = <K>()\nwhile <y>:\n    <x>",
            ),
            "discover": (
                "<x> = <K>()\n<y> = <f>(<z>)\n<x>",
                "<x> = <K>()\nfor <y> in <f>(<z>):\n    <x>",
                "<y> = <i>\n<x> = <K>()\n<x>",
                "<x> = <K>()\nif <y> == <i>:\n    <x>",
                "<x> = <K>()\nif not <y>:\n    <x>",
                "<x> = <K>()\n<y> += <i>\n<x>",
                "<f>(<y>)\n<x> = <K>()\nif <z>:\n    <x>",
                "<x> = <K>()\nwhile <y> < <i>:\n    <x>",
            ),
            "verify": (
                "<x> = <K>()\n<y> = <z> + <i>\n<x>",
                "<x> = <K>()\nwith <y>:\n    <x>",
                "import <y>\n<x> = <K>()\n<x>",
                "<x> = <K>()\nfor <y> in <z>.<f>():\n    <x>",
            ),
            "ood": (
                "<y> = <L>()\n<x> = <K>()\n<f>(<z>)\n<x>",
                "def <f>(<y>, <z>):\n    <x> = <K>()\n    for <w> in <z>:\n        if <w>:\n            <x>",
                "<x> = <K>()\n<y> = [<i>, <j>]\n<z> = <f>(<y>)\n<x>",
                "class <f>:\n    def <g>(self):\n        <y> = <L>()\n        <x> = <K>()\n        <x>",
            ),
            "explain": (
                "<x> = <K>()\n<y>.<f>()\n<x>",
                "def <f>():\n    <x> = <K>()\n    <x>",
                "<x> = <K>()\n<y>[<i>] = <z>\n<x>",
            ),
        },
    ),
    "for_while": TaskSpec(
        about="go on after a variable as the loop's keyword demands",
        answers=(" in", ":"),
        switches={"K": _swap("for", "while"), "L": _swap("while", "for")},
        rest=(" <v>:\n    pass", "\n    pass"),
        templates={
            "train": (
                "<K> <x>",
                "if <y>:\n    <K> <x>",
                "<y> = <i>\n<K> <x>",
                "<f>(<y>)\n<K> <x>",
                "def <f>(<y>):\n    <K> <x>",
                "with <f>():\n    <K> <x>",
            ),
            "discover": (
                "<y> += <i>\n<K> <x>",
                "with <y>:\n    <K> <x>",
                "<y> = [<i>, <z>]\n<K> <x>",
                "def <f>():\n    <K> <x>",
                "<y>.<z> = <i>\n<K> <x>",
                "if not <y>:\n    <K> <x>",
                "<y> = <z> + <i>\n<K> <x>",
                "<y> = <z>.<f>()\n<K> <x>",
            ),
            "verify": (
                "<y> = <f>(<z>, <i>)\n<K> <x>",
                "if <y> == <z>:\n    <K> <x>",
                "import <y>\n<K> <x>",
                "<y>.<f>(<z>)\n<K> <x>",
            ),
            "ood": (
                "while <y>:\n    for <z> in <w>:\n        <f>(<z>)\n<K> <x>",
                "def <f>(<y>, <z>):\n    if <y>:\n        <w> = <z>\n    <K> <x>",
                "for <y> in <z>:\n    <w> = <y>\nwhile <w>:\n    <K> <x>",
                "class <g>:\n    def <f>(self):\n        while <y>:\n            <z> = <i>\n        <K> <x>",
            ),
            "explain": (
                "<y> -= <i>\n<K> <x>",
                "assert <y>\n<K> <x>",
                "if <y> > <i>:\n    <K> <x>",
            ),
        },
    ),
    "with_open": TaskSpec(
        about="open a file for reading or for writing, as its name sounds",
        answers=("r", "w"),
        switches={"K": (READING, WRITING)},
        rest=("') as <v>:\n    pass", "') as <v>:\n    pass"),
        templates={
            "train": (
                "with open('<K>.txt', '",
                "with open('<a>/<K>', '",
                "with open('<K>/<a>.txt', '",
                "with open('<a>/<K>.txt', '",
                "with open('<a>-<K>.csv', '",
                "with open('<K>-<a>.dat', '",
                "with open('<K>-<a>', '",
                "with open('/<a>/<K>', '",
            ),
            "discover": (
                "with open('<a>/<K>-<b>.txt', '",
                "<x> = <i>\nwith open('<K>/<a>.json', '",
                "with open('<a>-<K>', '",
                "while <x>:\n    with open('<a>-<K>.txt', '",
                "with open('<a>/<b>/<K>.dat', '",
                "<x>.<f>()\nwith open('<a>/<K>.csv', '",
                "with open('<K>/<a>-<b>.txt', '",
                "if not <x>:\n    with open('<K>-<a>.csv', '",
            ),
            "verify": (
                "with open('<K>.<a>', '",
                "<f>(<x>)\nwith open('<a>-<b>/<K>.txt', '",
                "for <x> in <y>:\n    with open('<a>/<K>.json', '",
                "with open('/<a>/<K>-<b>.csv', '",
            ),
            "ood": (
                "<x> = <f>('<a>')\nif <x>:\n    with open('<b>/<c>-<K>.txt', '",
                "def <f>(<x>, <y>):\n    <x> = <y> + <i>\n    with open('/<K>/<a>.dat', '",
                "<x> = ['<a>', '<b>']\nwith open('<c>.<K>.txt', '",
                "class <f>:\n    def <g>(self, <x>):\n        while <x>:\n            with open('<K>/<a>/<b>.json', '",
            ),
            "explain": (
                "with open('<a>-<b>-<K>.txt', '",
                "<x> += <i>\nwith open('<K>/<a>.csv', '",
                "if <x> > <i>:\n    with open('<a>/<K>.dat', '",
            ),
        },
    ),
    "bracket_brace": TaskSpec(
        about="go on after a string in a dict (a colon) or in a list (a comma)",
        answers=("':", "',"),
        switches={
            "O": _swap("{", "["),
            "S": _swap(":", ","),
            "P": _swap("[", "{"),
            "T": _swap(",", ":"),
            "C": _swap("]", "}"),
        },
        rest=(" <n>}", " <n>]"),
        templates={
            "train": (
                "<x> = <O>'<a>",
                "<x> = <O>'<a> <b>",
                "<x> = <O>'<a>'<S> <i>, '<b>",
                "return <O>'<a>",
                "<x> = <O>'<a>'<S> <y>, '<b>",
                "<x>[<i>] = <O>'<a>",
            ),
            "discover": (
                "<x> += <O>'<a>",
                "while <x>:\n    <y> = <O>'<a>",
                "<x>.<y> = <O>'<a>'<S> <i>, '<b>",
                "<x> = <y>\n<z> = <O>'<a> <b>",
                "<x>[<y>] = <O>'<a>",
                "with <x>:\n    <y> = <O>'<a>",
                "<x> = <i>\n<y> = <O>'<a>'<S> <x>, '<b>",
                "<x>.<y>.<z> = <O>'<a> <b>",
            ),
            "verify": (
                "<x> = <y> = <O>'<a> <b>",
                "if <x>:\n    <y>.<z> = <O>'<a>",
                "assert <x> == <O>'<a>",
                "<x>.<f> = <y> = <O>'<a>'<S> <i>, '<b>",
            ),
            "ood": (
                "<x> = <P>'<a>'<T> <i><C>\n<y> = <P>'<b>'<T> <j><C>\n<z> = <O>'<c> <d>",
                "def <f>(<x>):\n    <y> = <P>'<a>'<T> <x><C>\n    return <O>'<b>",
                "<x>.<y> = <O>'<a>'<S> <i>, '<b>'<S> <z>, '<c>",
                "<x> = <P>'<a>'<T> <i><C>\nwhile <x>:\n    <z> = <O>'<b>'<S> <j>, '<c>",
            ),
            "explain": (
                "<x> -= <i>\n<y> = <O>'<a>",
                "if <x> > <i>:\n    <x> = <O>'<a>'<S> <y>, '<b>",
                "<x>, <y> = <z>, <O>'<a>",
            ),
        },
    ),
}

NEUTRAL = (
    "<x> = <i>",
    "<x> = <y> + <i>",
    "<x> = <f>(<y>)",
    "import <x>",
    "if <x> == <i>:\n    <y> = <z>",
    "<x> = '<a>'",
    '<x> = "<a>"',
    "# <a> <b>\n<x> = <i>",
    "<x> = <y>[<i>]",
    "<f>(<x>, <y>)",
    '<x> = ""\n<x> += <y>',
)

_SLOT = re.compile(r"<([A-Za-z])>")
_NAMES, _LITERALS, _NUMBERS = "fgvwxyz", "abcd", "ijkn"


def _draw(templates: Sequence[str], pool: str, rng: random.Random) -> dict[str, str]:
    """One filling of the small slots of some templates; different slots get different words and numbers."""
    slots = sorted(set(_SLOT.findall("".join(templates))))
    names, literals = words(pool)
    filling: dict[str, str] = {}
    for letters, source in ((_NAMES, names), (_LITERALS, literals)):
        mine = [s for s in slots if s in letters]
        filling |= zip(mine, rng.sample(source, len(mine)), strict=True)
    numbers = [s for s in slots if s in _NUMBERS]
    return filling | dict(zip(numbers, map(str, rng.sample(range(10), len(numbers))), strict=True))


def _fill(template: str, filling: Mapping[str, str]) -> str:
    return _SLOT.sub(lambda m: filling[m[1]], template)


def _switched(spec: TaskSpec, member: int, rng: random.Random) -> dict[str, str]:
    """What the slots in capitals stand for in the first (0) or second (1) member of a pair."""
    return {slot: rng.choice(choices[member]) for slot, choices in spec.switches.items()}


# -- examples --------------------------------------------------------------------------------------------------------


def pairs(name: str, pool: str, seed: int = 0) -> Iterator[tuple[str, str]]:
    """An endless stream of pairs of prompts of a task from one pool, its templates taken in turn; may repeat."""
    spec = TASKS[name]
    rng = random.Random(f"{name}/{pool}/{seed}")
    while True:
        for template in spec.templates[pool]:
            filling = _draw((template,), pool, rng)
            first, second = (_fill(template, filling | _switched(spec, m, rng)) for m in (0, 1))
            yield first, second


def _split(name: str, pool: str, tokens: Tokens, n: int, seed: int) -> Split:
    """n examples: the two members of pair i stand at 2i and 2i + 1."""
    answers = [tokens.token(a) for a in TASKS[name].answers]
    seen: set[str] = set()
    texts: list[str] = []
    rows: list[list[int]] = []
    for tried, pair in enumerate(pairs(name, pool, seed)):
        if len(texts) == n:
            break
        if tried == 50 * n:
            raise UsageError(
                f'task {name}: of {tried} pairs of prompts for split "{pool}" only {len(texts) // 2} were distinct, '
                f"alike in length and at most {LONGEST} tokens long; {n // 2} are needed. "
                "Ask for fewer examples, or build the corpus with a larger vocab."
            )
        ids = [tokens.encode(END + p) for p in pair]
        if seen.isdisjoint(pair) and len(ids[0]) == len(ids[1]) <= LONGEST:
            seen.update(pair)
            texts += pair
            rows += ids
    width = max(map(len, rows))
    padded = torch.tensor([r + [r[0]] * (width - len(r)) for r in rows], dtype=torch.long)
    at = torch.tensor([len(r) - 1 for r in rows], dtype=torch.long)
    label = torch.arange(n) % 2
    both = torch.tensor(answers, dtype=torch.long)
    return Split(pool, (padded, at), both[label], both[1 - label][:, None], torch.arange(n) ^ 1, tuple(texts))


def make_task(name: str, corpus: Tokens, n: int = 256, seed: int = 0) -> Task:
    """The task of that name: n examples per split, half of them for each answer.

    Every prompt begins with <|endoftext|> (not shown in `texts`) and ends right before the answer. Refuses an unknown
    name, an odd or empty n, and a tokenizer for which an answer is not a single token.
    """
    if name not in TASKS:
        raise unknown("python task", name, TASKS)
    if n < 2 or n % 2:
        raise UsageError(f"task {name}: n is {n}; examples come in pairs, so n must be even and at least 2.")
    spec = TASKS[name]
    return Task(name, spec.about, {p: _split(name, p, corpus, n, seed) for p in SPLITS}, spec.answers)


# -- training mix ----------------------------------------------------------------------------------------------------


def _statement(spec: TaskSpec, rng: random.Random) -> str:
    """A prompt of the train pool with its answer and the rest of the statement."""
    templates = spec.templates["train"]
    template = rng.choice(templates[:2] if rng.random() < 0.4 else templates)
    member = rng.randrange(2)
    rest = spec.rest[member]
    filling = _draw((template, rest), "train", rng) | _switched(spec, member, rng)
    text = _fill(template, filling)
    last = text.rsplit("\n", 1)[-1]
    indent = last[: len(last) - len(last.lstrip())]
    return text + spec.answers[member] + _fill(rest, filling).replace("\n", "\n" + indent)


def mix_program(rng: random.Random) -> str:
    """A small program of the training mix: statements of all tasks, of the train pool only, among neutral lines."""
    specs = list(TASKS.values())
    blocks = []
    for _ in range(rng.randint(1, 5)):
        if rng.random() < 0.9:
            blocks.append(_statement(rng.choice(specs), rng))
        else:
            line = rng.choice(NEUTRAL)
            blocks.append(_fill(line, _draw((line,), "train", rng)))
    body = "\n".join(blocks)
    if rng.random() < 0.1:
        head = "def <f>(<x>):"
        body = _fill(head, _draw((head,), "train", rng)) + "\n    " + body.replace("\n", "\n    ")
    return body + "\n"
