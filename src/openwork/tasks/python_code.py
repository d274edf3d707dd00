"""Six questions about Python code with two answers each, after Gao et al. 2025 (arXiv 2511.13653, table 1).

An example is a pair of prompts that differ minimally and have the same length in tokens; one calls for the first
answer and the other for the second. Prompts are templates filled with words. Four *pools* besides the training mix
(discover, verify, ood, explain) share nothing with it or with one another, by construction:

    words      one list dealt out in turn; within a pool again dealt out into names (identifiers) and literals
    templates  written down pool by pool; those of "ood" are farther from training: statements that distract before the
               question, deeper nesting, the other quote or bracket opened and closed earlier

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
able above account across active actor adapt address admit adult advice afford again agent agree ahead alarm album
alert alien allow alone amber ample anchor angle animal ankle answer apple april arch area arena arm army arrow artist
aspect asset atom attic audio august aunt author autumn avenue avoid award baby bacon badge bag baker balance ball
bamboo banana band bank barrel basin basket battle beach beam bean bear beauty bed bell belt bench berry bird birth
bishop blade blanket block blue board boat body bone book boot border bottle bottom bowl brain branch brass bread
breeze brick bridge broom brother brown brush bubble bucket budget bundle bus butter button cabin cable cake camel
camera camp canal candle cannon canvas captain car carbon card carpet carrot castle cat cave cell cement center chain
chair chalk charm cheese cherry chest chicken chief child choice church circle citizen city clay clerk client cliff
clock cloth cloud clown coach coal coast coat coffee coin collar color column comic copper coral corn corner cotton
couch council county couple course court cousin cover cow crab craft crane cream creek crew crop crowd crown cruise
crystal cup curve customer cycle dagger dairy damage dance danger daughter dawn deal debate debt decade deck deer
degree delta dental depth desert desk device diamond diet dinner dish doctor dog dollar donkey door double dozen draft
dragon drama dream dress driver drum duck dust duty eagle earth east echo edge editor effort egg elbow elder elephant
empire energy engine entry equal estate evening event exam expert fabric face factor family farm father feather
fellow fence fever fiber field figure finger fire fish flag flame flavor flock floor flour flower fog forest fork
fortune fossil frame freedom friend frog frost fruit fuel garden garlic gate ghost giant gift girl glass glove goat
gold grain grape grass green group guard guest guide guitar habit hair hammer hand harbor hat hawk heart height hero
hill hobby holiday honey horse hotel hour house human hunter ice idea iron island item ivory jacket jar jewel joke
judge juice jungle jury kettle kid king kitchen kite knee knife knot label lady lake lamp land lane large laser lawyer
leaf leather lemon letter level light lime linen lion lip liquid lunch machine magnet maker mango map marble margin
market mask master matter meadow meal meat medal member metal middle milk mill mind mirror model moment money monkey
month moon morning mother motor mountain mouse mouth movie muscle museum music nail napkin nature neck needle nerve
nest night noble noise north nose novel number nurse ocean office olive onion orange orbit order organ owner oxygen
oyster page paint palace panel paper parade parent park party patient pattern peach pearl pencil people pepper person
phone phrase piano picnic picture pilot pine planet plant plate player pocket poem point police pond pony pool potato
powder power price priest prince prize profit proof puppy purple queen quiet rabbit radio rain ranch reason record
region rice river road robin rocket roof room root rope rose ruler saddle sailor salad salmon salt sand school science
screen sea season secret seed shadow sheep shelf ship shirt shoe shop silk silver sister skill sky sleep smile smoke
snake snow soap soccer soil soldier song soup south spark speech spider spirit spoon sport spring square stable staff
star station steam steel stone storm story street sugar summer sun supper surface sweet symbol table tailor talent
target teacher temple tennis thread ticket tiger timber tissue title toast tomato tongue tooth topic tower town toy
track trade traffic train travel treat tree trial tribe truck trumpet tunnel turkey turtle uncle union valley value
vapor vehicle velvet vessel village violin visit voice wagon wall walnut water wave weather wedding west whale wheat
wheel widow wife willow window wine winter wisdom wolf woman wood wool worker world yard yellow youth zebra zone
""".split()

READING = ("input", "source", "read", "load", "raw", "import")
WRITING = ("output", "result", "write", "save", "log", "export")

POOLS = ("train", *SPLITS)
_DEAL = ("train", "discover", "train", "verify", "train", "ood", "train", "explain", "train", "train")


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
    templates  pool -> prompts
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
                "print(<Q><a> <b>",
                "<x> = <f>(<Q><a>",
                "<x>.<f>(<Q><a> <b>",
                "def <g>(<x>):\n    return <f>(<Q><a> <b> <c>",
                "if <x>:\n    <f>(<Q><a> <b>",
                "raise ValueError(<Q><a> <b> <c>",
                "<x> = <f>(<y>, <Q><a>",
                "<f>(<x>, <Q><a> <b>",
                "<x> += <f>(<Q><a>",
                "<x> = <P><a><P>\n<f>(<Q><b>",
            ),
            "discover": (
                "<x> = <y>.<f>(<Q><a> <b>",
                "<f>(<Q><a> <b> <c>",
                "for <x> in <y>:\n    <f>(<Q><a>",
                "<x>.<f>(<y>, <Q><a>",
            ),
            "verify": (
                "assert <f>(<Q><a> <b>",
                "while <x>:\n    <y>.<f>(<Q><a>",
                "<x>[<n>] = <f>(<Q><a> <b>",
                "<x>.<y> = <f>(<Q><a> <b> <c>",
            ),
            "ood": (
                "<x> = <f>(<P><a> <b><P>)\n<y> = <g>(<Q><c> <d>",
                "class <x>:\n    def <f>(self):\n        self.<y> = <P><a><P>\n        self.<g>(<Q><b> <c>",
                "<f>(<P><a><P>, <P><b><P>)\nif <x> == <n>:\n    <g>(<y>, <Q><c>",
                "<x> = [<P><a><P>, <P><b><P>]\nfor <y> in <x>:\n    <z> = <f>(<y>, <n>, <Q><c> <d>",
            ),
            "explain": (
                "<x> -= <f>(<Q><a> <b>",
                "<x>, <y> = <f>(<Q><a>",
                "else:\n    <f>(<x>, <Q><a> <b>",
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
                "<x> = <O><y>, <z>",
                "<x> = <O><i>, <j>, <k>",
                "<x>.<f> = <O><y>, <i>",
                "def <f>(<x>):\n    return <O><y>, <z>",
                "<x> = <O><i>, <j>], [<k>, <n>",
                "<x> += <O><y>, <z>, <w>",
                "if <x>:\n    <y> = <O><i>, <z>",
                "<x> = <O><y>, <z>], [<w>, <v>",
                "for <x> in <y>:\n    <z> = <O><x>, <i>",
                "<x> = <P><y>, <i><C>\n<z> = <O><j>, <k>",
            ),
            "discover": (
                "<x> = <O><y>, <i>, <z>",
                "<x>.<f> = <O><y>, <z>], [<w>, <i>",
                "<x>[<i>] = <O><j>, <k>",
                "while <x>:\n    <y> = <O><z>, <w>",
            ),
            "verify": (
                "<x> -= <O><y>, <i>",
                "<x> = <y> + <O><z>, <w>",
                "with <x>:\n    <y> = <O><i>, <j>, <k>",
                "<x>, <y> = <O><z>, <i>], [<w>, <j>",
            ),
            "ood": (
                "<x> = <P><y>, <z>, <i><C>\n<w> = <O><j>, <k>, <n>",
                "class <f>:\n    def <g>(self):\n        <x> = <P><y>, <i><C>\n        self.<z> = <O><w>, <j>",
                "<x> = <O><i>, <j>], [<y>, <z>], [<w>, <k>",
                "<x> = <y>[<i>]\nif <x> == <P><z>, <j><C>:\n    return <O><x>, <w>, <k>",
            ),
            "explain": (
                "assert <x> == <O><y>, <i>",
                "<x> *= <O><i>, <j>, <y>",
                "else:\n    <x> = <O><y>, <z>], [<i>, <j>",
            ),
        },
    ),
    "set_or_string": TaskSpec(
        # str() and not "": both members of a pair then have the same number of tokens.
        about="add to a variable as its type allows: a set by a method, a string by +=",
        answers=(".", " +="),
        switches={"K": _swap("set", "str"), "L": _swap("str", "set")},
        rest=("add(<v>)", " <v>"),
        templates={
            "train": (
                "<x> = <K>()\nfor <y> in <z>:\n    <x>",
                "<x> = <K>()\nif <y>:\n    <x>",
                "<x> = <K>()\nwhile <y>:\n    <x>",
                "<x> = <K>()\n<x>",
                "<x> = <K>()\n<y> = <i>\n<x>",
                "def <f>(<y>):\n    <x> = <K>()\n    for <z> in <y>:\n        <x>",
                "<x> = <K>()\n<f>(<y>)\n<x>",
                "<x> = <K>()\nwith <y>:\n    <x>",
                "<x> = <K>()\n<y> = <L>()\n<x>",
                "<y> = <L>()\n<x> = <K>()\n<x>",
            ),
            "discover": (
                "<x> = <K>()\n<y> = <f>(<z>)\n<x>",
                "<x> = <K>()\nfor <y> in <f>(<z>):\n    <x>",
                "<y> = <i>\n<x> = <K>()\n<x>",
                "<x> = <K>()\nif <y> == <i>:\n    <x>",
            ),
            "verify": (
                "<x> = <K>()\nif not <y>:\n    <x>",
                "<x> = <K>()\n<y>.<f>()\n<x>",
                "<f>(<y>)\n<x> = <K>()\nif <z>:\n    <x>",
                "<x> = <K>()\nwhile <y> < <i>:\n    <x>",
            ),
            "ood": (
                "<x> = <K>()\n<y> = <L>()\nfor <z> in <w>:\n    <x>",
                "class <g>:\n    def <f>(self, <y>):\n        <x> = <K>()\n        <z> = <y>[<i>]\n        <x>",
                "<y> = <L>()\n<z> = <i>\n<x> = <K>()\nif <z>:\n    for <w> in <v>:\n        <x>",
                "<x> = <K>()\nif <y>:\n    <z> = <f>(<w>, <i>)\n    <v> = <z> + <j>\n<x>",
            ),
            "explain": (
                "<x> = <K>()\n<y> += <i>\n<x>",
                "def <f>():\n    <x> = <K>()\n    <x>",
                "<x> = <K>()\ntry:\n    <x>",
            ),
        },
    ),
    "for_while": TaskSpec(
        about="go on after a variable as the loop's keyword demands",
        answers=(" in", ":"),
        switches={"K": _swap("for", "while"), "L": _swap("while", "for")},
        rest=(" <v>:\n    <f>(<w>)", "\n    <w> = <v>"),
        templates={
            "train": (
                "<K> <x>",
                "<y> = <i>\n<K> <x>",
                "def <f>(<y>):\n    <K> <x>",
                "if <y>:\n    <K> <x>",
                "<y> = <z>\n<K> <x>",
                "<f>(<y>)\n<K> <x>",
                "try:\n    <K> <x>",
                "import <y>\n<K> <x>",
                "<y> = <f>(<z>)\n<K> <x>",
                "<y>.<f>()\n<K> <x>",
            ),
            "discover": (
                "<y> += <i>\n<K> <x>",
                "with <y>:\n    <K> <x>",
                "<y> = [<i>, <z>]\n<K> <x>",
                "def <f>():\n    <K> <x>",
            ),
            "verify": (
                "<y>.<z> = <i>\n<K> <x>",
                "if not <y>:\n    <K> <x>",
                "<y> = <z> + <i>\n<K> <x>",
                "<y> = <z>.<f>()\n<K> <x>",
            ),
            "ood": (
                "for <y> in <z>:\n    <f>(<y>)\n<K> <x>",
                "while <y>:\n    <z> = <f>(<y>, <i>)\n<K> <x>",
                "class <g>:\n    def <f>(self, <y>):\n        <z> = <y>[<i>]\n        <K> <x>",
                "for <y> in <z>:\n    while <w>:\n        <K> <x>",
            ),
            "explain": (
                "<y> -= <i>\n<K> <x>",
                "assert <y>\n<K> <x>",
                "else:\n    <K> <x>",
            ),
        },
    ),
    "with_open": TaskSpec(
        about="open a file for reading or for writing, as its name sounds",
        answers=("r", "w"),
        switches={"K": (READING, WRITING)},
        rest=("') as <v>:\n    <w> = <v>.read()", "') as <v>:\n    <v>.write(<w>)"),
        templates={
            "train": (
                "with open('<K>/<a>.txt', '",
                "with open('<a>/<K>.txt', '",
                "with open('<a>-<K>.csv', '",
                "with open('<K>-<a>.dat', '",
                "with open('<K>.<a>', '",
                "def <f>(<x>):\n    with open('<a>/<K>.json', '",
                "if <x>:\n    with open('<K>-<a>.txt', '",
                "<x> = <y>\nwith open('<a>/<K>/<b>.csv', '",
                "with open('/<a>/<K>', '",
                "for <x> in <y>:\n    with open('<K>/<a>/<b>.dat', '",
            ),
            "discover": (
                "with open('<a>/<K>-<b>.txt', '",
                "<x> = <i>\nwith open('<K>/<a>.json', '",
                "with open('<a>.<K>', '",
                "while <x>:\n    with open('<a>-<K>.txt', '",
            ),
            "verify": (
                "with open('<a>/<b>/<K>.dat', '",
                "<x>.<f>()\nwith open('<a>/<K>.csv', '",
                "with open('<K>/<a>-<b>.txt', '",
                "if not <x>:\n    with open('<K>-<a>.csv', '",
            ),
            "ood": (
                "<x> = '<a>'\n<y> = <f>(<x>, <i>)\n<z> = open('<b>/<K>.txt', '",
                "class <f>:\n    def <g>(self, <x>):\n        self.<y> = <x>\n        with open('/<a>/<b>/<K>-<c>.json', '",
                "<x> = [<i>, <j>]\nfor <y> in <x>:\n    if <y>:\n        with open('<a>-<b>/<K>.dat', '",
                "def <f>(<x>):\n    return open('<K>/<a>/<b>/<c>.csv', '",
            ),
            "explain": (
                "with open('<a>-<b>-<K>.txt', '",
                "<x> += <i>\nwith open('<K>/<a>.csv', '",
                "else:\n    with open('<a>/<K>.dat', '",
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
                "<x> = <O>'<a>'<S> <i>, '<b>",
                "<x>.<y> = <O>'<a>",
                "def <f>(<x>):\n    return <O>'<a>",
                "if <x>:\n    <y> = <O>'<a>",
                "<x> = <O>'<a>'<S> <y>, '<b>",
                "<x>[<i>] = <O>'<a>",
                "<x> = <O>'<a> <b>",
                "for <x> in <y>:\n    <z> = <O>'<a>",
                "<x> = <P>'<a>'<T> <i><C>\n<y> = <O>'<b>",
            ),
            "discover": (
                "<x> += <O>'<a>",
                "while <x>:\n    <y> = <O>'<a>",
                "<x>.<y> = <O>'<a>'<S> <i>, '<b>",
                "<x> = <y>\n<z> = <O>'<a> <b>",
            ),
            "verify": (
                "<x>[<y>] = <O>'<a>",
                "with <x>:\n    <y> = <O>'<a>",
                "<x> = <i>\n<y> = <O>'<a>'<S> <x>, '<b>",
                "<x>.<y>.<z> = <O>'<a> <b>",
            ),
            "ood": (
                "<x> = <P>'<a>'<T> <i>, '<b>'<T> <j><C>\n<y>.<z> = <O>'<c>",
                "class <f>:\n    def <g>(self):\n        self.<x> = <P>'<a>'<T> <i><C>\n        self.<y> = <O>'<b>",
                "<x> = <O>'<a>'<S> <i>, '<b>'<S> <y>, '<c>'<S> <j>, '<d>",
                "<x> = <P>'<a>'<T> <y><C>\nif <x> == <z>:\n    <w> = <f>(<i>, <O>'<b>",
            ),
            "explain": (
                "<x> -= <i>\n<y> = <O>'<a>",
                "else:\n    <x> = <O>'<a>'<S> <y>, '<b>",
                "<x>, <y> = <z>, <O>'<a>",
            ),
        },
    ),
}

NEUTRAL = (
    "<x> = <i>",
    "<x> = <y> + <i>",
    "<x> = <f>(<y>)",
    "<x>.<y> = <z>",
    "import <x>",
    "if <x> == <i>:\n    <y> = <z>",
    "<x> = '<a> <b>'",
    '<x> = "<a>"',
    "# <a> <b> <c>",
    "<x> = <y>[<i>]",
    "<f>(<x>, <y>)",
    "<x> += <i>",
    '<x> = ""\nfor <y> in <z>:\n    <x> += <y>',
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
    for s in slots:
        if s in _NAMES and rng.random() < 0.2:
            filling[s] += "_" + rng.choice(names)
    numbers = [s for s in slots if s in _NUMBERS]
    return filling | dict(zip(numbers, map(str, rng.sample(range(100), len(numbers))), strict=True))


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
    tried = 0
    for pair in pairs(name, pool, seed):
        if len(texts) == n:
            break
        tried += 1
        if tried > 50 * n:
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
    template, member = rng.choice(spec.templates["train"]), rng.randrange(2)
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
    for _ in range(rng.randint(2, 6)):
        if rng.random() < 0.75:
            blocks.append(_statement(rng.choice(specs), rng))
        else:
            line = rng.choice(NEUTRAL)
            blocks.append(_fill(line, _draw((line,), "train", rng)))
    body = "\n".join(blocks)
    if rng.random() < 0.2:
        head = "def <f>(<x>):"
        body = _fill(head, _draw((head,), "train", rng)) + "\n    " + body.replace("\n", "\n    ")
    return body + "\n"
