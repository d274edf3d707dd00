"""The patterns subject: a tiny language of whole words in which three behaviours of the literature live, each a task.

    induction     "... rope fern kite , ... rope" -> fern: what followed a word before follows it again
                  (Elhage et al. 2021, transformer-circuits.pub/2021/framework; Olsson et al. 2022, arXiv 2209.11895)
    ioi           "when mary and john went to the store , john gave a drink to" -> mary: the name that stood there once
                  (Wang et al. 2022, arXiv 2211.00593)
    greater_than  "the war lasted from the year 17 4 1 to the year 17" -> a later decade
                  (Hanna, Liu, Variengien 2023, arXiv 2305.00586)

A row of training text is <start>, then sentences of the three kinds and fillers in random order. Every word is in the
training text, so what is held out are combinations, dealt out once; each of these is in one pool only:

    induction     which word follows which (ordered pairs of words)
    ioi           who meets whom (pairs of names); conjunction, verb and gift of the sentence (phrases)
    greater_than  century and last digit of the first year (the digit between them is what pairs differ in);
                  event, its kind and the frame of the sentence

"ood" prompts are also built in a way that no other pool's text is: a longer way back, another sentence.

Departures from the papers, which are choices. A year is three tokens: century, decade, last digit; asked is the decade.
Events here last one, two or three decades, because with "later" alone the highest decade would always be right,
whatever the first year. So of the ten decades three are right: `answer` is one of them that is wrong for the
counterpart, `wrong` are the seven that are not: those not after the first year, and those too late. The field's
probability difference (the right years' probabilities summed, less the others') is 1 - 2 times the sum over `wrong`
where all of the probability is on decades.

Knows words and sentences. Does not know models or methods.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from openwork.errors import UsageError, unknown
from openwork.tasks.task import SPLITS, Inputs, Split, Task


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


START = "<start>"
NAMES = _words(
    "mary john tom anna james lucy paul emma mark jane adam rose luke kate simon alice david sarah peter helen"
)
PLACES = _words("store park school garden harbour market")
GIFTS = _words("drink book ring letter lamp coat")
CONJUNCTIONS = _words("when after while once as")
VERBS = ("went to", "came to", "met at", "walked to", "stayed at", "talked at")
GIVING = _words("gave handed passed sent showed brought")
EVENTS = _words("war siege reign strike voyage famine truce drought")
FRAMES = (
    "the {} lasted from the year {} {} {} to the year",
    "the {} began in the year {} {} {} and ended in the year",
    "from the year {} {} {} the {} lasted to the year",
    "the {} of the year {} {} {} ended in the year",
)
CENTURIES = _words("11 12 13 14 15 16 17 18")
DIGITS = _words("0 1 2 3 4 5 6 7 8 9")
THINGS = _words(
    "apple anchor basket bell brick candle chair clay cloud coin comb cord crown drum fern flag flute gate glove hat "
    "jar key kite leaf mask nail net oak pearl rope shell wheel"
)
ANIMALS = _words("dog cat horse bird fox wolf")
KINDS = _words("old new small great quiet")
DOING = _words("saw chased followed heard found")

LASTS = 3  # decades at most from an event's first year to its last
FIRST_DECADES = range(len(DIGITS) - LASTS)
LONGEST = 32  # tokens of a prompt at most, <start> included

PATTERN_TASKS: dict[str, str] = {
    "induction": "say what followed a word when it stood there before; it competes with the counterpart's",
    "ioi": "say who is given something: of two names the one that stood there once, not twice",
    "greater_than": "say a decade in which an event may have ended; it competes with the seven that are no end of it",
}

_FUNCTION_WORDS = (f"{START} . , and to the a with it , in " + " ".join((*VERBS, *FRAMES)).replace("{}", " ")).split()

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        itertools.chain(
            _FUNCTION_WORDS, NAMES, PLACES, GIFTS, CONJUNCTIONS, GIVING, EVENTS, CENTURIES, DIGITS, THINGS, ANIMALS,
            KINDS, DOING,
        )
    )
)  # fmt: skip
_ID = {word: i for i, word in enumerate(WORDS)}

POOLS = ("train", *SPLITS)
_DEAL = ("train", "verify", "train", "discover", "train", "ood", "train", "explain", "train", "train")

Rng = random.Random
T = TypeVar("T")


def encode(text: str) -> list[int]:
    """Token ids of words between blanks; UsageError for a word that the language does not have."""
    words = text.split()
    strange = [w for w in words if w not in _ID]
    if strange:
        raise unknown("word of the language", strange[0], WORDS)
    return [_ID[w] for w in words]


def decode(ids: Iterable[int]) -> str:
    """The words of some token ids, with blanks between them."""
    return " ".join(WORDS[i] for i in ids)


# -- pools -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """What may be combined in the texts of one pool.

    follows   thing -> things that may follow it
    couples   names that meet
    phrases   conjunction, verb, way of giving
    years     century and last digit of an event's first year
    stories   kind of event, event, frame
    """

    follows: Mapping[str, tuple[str, ...]]
    couples: tuple[tuple[str, str], ...]
    phrases: tuple[tuple[str, str, str], ...]
    years: tuple[tuple[str, str], ...]
    stories: tuple[tuple[str, str, str], ...]


def _dealt(what: str, all_of: Iterable[T], pool: str) -> tuple[T, ...]:
    """The pool's share of some combinations: of every ten, six are for training and one for each other pool."""
    order = sorted(all_of, key=str)
    Rng(f"patterns/{what}").shuffle(order)
    return tuple(x for i, x in enumerate(order) if _DEAL[i % len(_DEAL)] == pool)


@cache
def pool_of(name: str) -> Pool:
    """The pool of that name; refuses an unknown one with the nearest."""
    if name not in POOLS:
        raise unknown("split of the patterns", name, POOLS)
    follows: dict[str, list[str]] = {}
    for a, b in _dealt("follows", itertools.permutations(THINGS, 2), name):
        follows.setdefault(a, []).append(b)
    return Pool(
        {a: tuple(bs) for a, bs in sorted(follows.items())},
        _dealt("couples", itertools.combinations(NAMES, 2), name),
        _dealt("phrases", itertools.product(CONJUNCTIONS, VERBS, GIVING), name),
        _dealt("years", itertools.product(CENTURIES, DIGITS), name),
        _dealt("stories", itertools.product(KINDS, EVENTS, FRAMES), name),
    )


# -- sentences of the training text ----------------------------------------------------------------------------------


def _walk(pool: Pool, rng: Rng, n: int) -> list[str]:
    """Different things, up to n, each of which may follow the one before."""
    path = [rng.choice(THINGS)]
    while len(path) < n:
        free = [b for b in pool.follows.get(path[-1], ()) if b not in path]
        if not free:
            break
        path.append(rng.choice(free))
    return path


def _repetition(pool: Pool, rng: Rng) -> str:
    """Some things, then others, a comma, and the first ones again."""
    said = rng.randint(4, 8)
    path = _walk(pool, rng, said + rng.randint(0, 4))
    return " ".join([*path, ",", *path[:said], "."])


def _meeting(pool: Pool, rng: Rng) -> str:
    couple = list(rng.choice(pool.couples))
    rng.shuffle(couple)
    first, second = couple
    giver = rng.randrange(2)
    return f"{_meeting_until(pool, rng, first, second, couple[giver])} {couple[1 - giver]} ."


def _meeting_until(pool: Pool, rng: Rng, a: str, b: str, giver: str, apart: bool = False) -> str:
    """The sentence up to whom something is given; `apart`: the two names do not stand side by side."""
    when, verb, gives = rng.choice(pool.phrases)
    place, article, gift = rng.choice(PLACES), rng.choice(("a", "the")), rng.choice(GIFTS)
    first = f"{a} {verb} the {place} with {b}" if apart else f"{a} and {b} {verb} the {place}"
    return f"{when} {first} , {giver} {gives} {article} {gift} to"


def _event(pool: Pool, rng: Rng) -> str:
    decade = rng.choice(FIRST_DECADES)
    last = decade + rng.randint(1, LASTS)
    return f"{_event_until(pool, rng).format(decade)} {last} {rng.choice(DIGITS)} ."


def _event_until(pool: Pool, rng: Rng, apart: bool = False) -> str:
    """The sentence up to the last decade, with {} for the first one; `apart`: in a frame that is never trained on."""
    (kind, event, frame), (century, digit) = rng.choice(pool.stories), rng.choice(pool.years)
    year = (century, "{}", digit)
    if apart:
        frame = "in the year {} {} {} the {} began , and it ended in the year"
    named = f"{kind} {event}"
    parts = (named, *year) if frame.startswith("the {}") else (*year, named)
    return f"{frame.format(*parts)} {century}"


def _filler(_pool: Pool, rng: Rng) -> str:
    if rng.random() < 0.5:
        return f"{rng.choice(NAMES)} {rng.choice(DOING)} the {rng.choice(ANIMALS)} ."
    who, whom = (f"the {rng.choice(KINDS)} {rng.choice(ANIMALS)}" for _ in range(2))
    return f"{who} {rng.choice(DOING)} {whom} ."


_SENTENCES: tuple[tuple[Callable[[Pool, Rng], str], float], ...] = (  # and their shares
    (_repetition, 0.25), (_meeting, 0.30), (_event, 0.35), (_filler, 0.10),
)  # fmt: skip


def rows(pool: str, n: int, length: int, seed: str) -> Tensor:
    """Rows of text int64 [n, length] of a pool: <start>, then sentences, the last one cut off."""
    of, rng = pool_of(pool), Rng(f"patterns/{pool}/{seed}")
    makers, shares = zip(*_SENTENCES, strict=True)
    out = []
    for _ in range(n):
        row = [_ID[START]]
        while len(row) < length:
            row += [_ID[w] for w in rng.choices(makers, shares)[0](of, rng).split()]
        out.append(row[:length])
    return torch.tensor(out, dtype=torch.long)


# -- tasks -----------------------------------------------------------------------------------------------------------

Member = tuple[str, str, tuple[str, ...]]  # a prompt, its answer, the wrong ones


def _induction(name: str, rng: Rng) -> tuple[Member, Member]:
    pool = pool_of(name)
    before = rng.choice([a for a, bs in pool.follows.items() if len(bs) > 1])
    one, other = rng.sample(pool.follows[before], 2)
    said, between = rng.randint(4, 8), rng.randint(9, 12) if name == "ood" else rng.randint(0, 4)
    rest = rng.sample([t for t in THINGS if t not in (before, one, other)], said + between - 2)
    at = rng.randrange(said - 1)
    prompts = []
    for after in (one, other):
        path = [*rest[:at], before, after, *rest[at:]]
        prompts.append(" ".join([*path, ",", *path[: at + 1]]))
    return (prompts[0], one, (other,)), (prompts[1], other, (one,))


def _ioi(name: str, rng: Rng) -> tuple[Member, Member]:
    pool = pool_of(name)
    a, b = rng.sample(rng.choice(pool.couples), 2)
    state = rng.getstate()
    first = _meeting_until(pool, rng, a, b, b, apart=name == "ood")
    rng.setstate(state)
    return (first, a, (b,)), (_meeting_until(pool, rng, a, b, a, apart=name == "ood"), b, (a,))


def _ends(decade: int) -> set[int]:
    """The decades in which an event of some first decade may end."""
    return set(range(decade + 1, decade + LASTS + 1))


def _greater_than(name: str, rng: Rng) -> tuple[Member, Member]:
    text = _event_until(pool_of(name), rng, apart=name == "ood")
    decades = rng.sample(FIRST_DECADES, 2)

    def member(mine: int, others: int) -> Member:
        answer = rng.choice(sorted(_ends(mine) - _ends(others)))
        return text.format(mine), str(answer), tuple(d for d in DIGITS if int(d) not in _ends(mine))

    return member(*decades), member(*decades[::-1])


_MAKERS: dict[str, Callable[[str, Rng], tuple[Member, Member]]] = {
    "induction": _induction, "ioi": _ioi, "greater_than": _greater_than,
}  # fmt: skip
_ANSWERS: dict[str, Sequence[str]] = {"induction": THINGS, "ioi": NAMES, "greater_than": DIGITS}


def _split(task: str, name: str, n: int, seed: int) -> Split:
    """n examples of a pool; the two members of pair i stand at 2i and 2i + 1."""
    rng = Rng(f"patterns/{task}/{name}/{seed}")
    members: list[Member] = []
    seen: set[str] = set()
    for tried in itertools.count():
        if len(members) == n:
            break
        if tried == 20 * n:
            raise UsageError(
                f'task {task}: split "{name}" has {len(members)} different prompts, not {n}; ask for fewer examples.'
            )
        pair = _MAKERS[task](name, rng)
        prompts = [prompt for prompt, _, _ in pair]
        if seen.isdisjoint(prompts):
            seen.update(prompts)
            members += pair
    ids = [encode(f"{START} {prompt}") for prompt, _, _ in members]
    width = max(map(len, ids))
    tokens = torch.tensor([row + [_ID[START]] * (width - len(row)) for row in ids])
    at = torch.tensor([len(row) - 1 for row in ids])
    answer = torch.tensor([_ID[a] for _, a, _ in members])
    wrong = torch.tensor([[_ID[w] for w in ws] for _, _, ws in members])
    return Split(name, (tokens, at), answer, wrong, torch.arange(n) ^ 1, tuple(p for p, _, _ in members))


def make_pattern_task(name: str, n: int = 256, seed: int = 0) -> Task:
    """The task of that name (see PATTERN_TASKS): n examples per split, in pairs of prompts that differ in one word.

    Every prompt begins with <start> (not shown in `texts`) and ends right before the answer. UsageError for an unknown
    name, an odd or empty n, and more examples than there are.
    """
    if name not in PATTERN_TASKS:
        raise unknown("pattern task", name, PATTERN_TASKS)
    if n < 2 or n % 2:
        raise UsageError(f"task {name}: n is {n}; examples come in pairs, so n must be even and at least 2.")
    return Task(name, PATTERN_TASKS[name], {s: _split(name, s, n, seed) for s in SPLITS}, tuple(_ANSWERS[name]))


# -- training data -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PatternData:
    """Rows of the language and the word after each position.

    n_ctx   tokens of a row; size: rows per step
    """

    n_ctx: int
    seed: int = 0
    size: int = 32

    def batch(self, step: int) -> tuple[Inputs, Tensor]:
        """(tokens [B, T],) and targets [B, T] of the train pool; a pure function of (seed, step)."""
        new = rows("train", self.size, self.n_ctx + 1, f"{self.seed}/{step}")
        return (new[:, :-1],), new[:, 1:]

    def held_out(self, split: str) -> Iterable[tuple[Inputs, Tensor]]:
        """512 fixed rows of a split's pool, in batches."""
        new = rows(split, 512, self.n_ctx + 1, "held out")
        return [((part[:, :-1],), part[:, 1:]) for part in new.split(self.size)]
