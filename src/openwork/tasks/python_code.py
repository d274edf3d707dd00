"""Questions about Python code with two answers each, after Gao et al. 2025 (arXiv 2511.13653, table 1).

An example is a pair of prompts that differ minimally and have the same length in tokens; one calls for the first
answer and the other for the second. Prompts are templates filled with words. Four *pools* besides the training mix
(discover, verify, ood, explain) share nothing with it or with one another, by construction:

    words      one list dealt out in turn; within a pool again dealt out into names (identifiers) and literals
    templates  written down pool by pool; those of "ood" are farther from training: statements that distract before the
               question, deeper nesting, the other quote or bracket opened and closed earlier

The templates and words of "verify" and "ood" were written once, before any model was scored on them; the other pools
were adjusted until a small model could learn the tasks. Keep it so: adjust on "discover", never on "verify".

What all pools share is what Python itself fixes (keywords, punctuation, digits), the names that are answers, and for
`with_open` the *kind* words ("input", "save", ...): that "input" sounds like reading can only be known from having seen
it, so the rest of the file name differs and the kind words do not.

Slots in a template: <v> ... <z>, <f>, <g> names; <a> ... <d> literals; <i> ... <n> numbers; <Q> and other capitals
stand for what differs between the two members of a pair.

The questions themselves are in `python_specs`. Knows text, and of a tokenizer only what `Tokens` says. Does not know
models or methods.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Protocol

import torch

from openwork.errors import UsageError, unknown
from openwork.tasks.python_specs import SIX, TASKS, TaskSpec
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

MIXED = tuple(SIX)  # tasks of the training mix unless it is told otherwise

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


def _switches(spec: TaskSpec, template: str) -> list[str]:
    """All that the capitals of a template may stand for."""
    return [text for slot in _SLOT.findall(template) for side in spec.switches.get(slot, ()) for text in side]


def _switched(spec: TaskSpec, member: int, filling: Mapping[str, str], rng: random.Random) -> dict[str, str]:
    """A filling with what the slots in capitals stand for in the first (0) or second (1) member of a pair."""
    drawn = {slot: rng.choice(choices[member]) for slot, choices in spec.switches.items()}
    needed = {slot: text for slot, text in drawn.items() if filling.keys() >= set(_SLOT.findall(text))}
    return {**filling, **{slot: _fill(text, filling) for slot, text in needed.items()}}


# -- examples --------------------------------------------------------------------------------------------------------


def pairs(name: str, pool: str, seed: int = 0) -> Iterator[tuple[str, str]]:
    """An endless stream of pairs of prompts of a task from one pool, its templates taken in turn; may repeat."""
    spec = TASKS[name]
    rng = random.Random(f"{name}/{pool}/{seed}")
    while True:
        for template in spec.templates[pool]:
            filling = _draw((template, *_switches(spec, template)), pool, rng)
            first, second = (_fill(template, _switched(spec, m, filling, rng)) for m in (0, 1))
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
                "Ask for fewer examples, or build the corpus with a larger vocab or with this task in its mix."
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
    filling = _draw((template, rest, *_switches(spec, template)), "train", rng)
    filling = _switched(spec, member, filling, rng)
    text = _fill(template, filling)
    last = text.rsplit("\n", 1)[-1]
    indent = last[: len(last) - len(last.lstrip())]
    return text + spec.answers[member] + _fill(rest, filling).replace("\n", "\n" + indent)


def mix_program(rng: random.Random, tasks: Sequence[str] = MIXED) -> str:
    """A small program of the training mix: statements of some tasks, of the train pool only, among neutral lines."""
    specs = [TASKS[name] for name in tasks]
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
