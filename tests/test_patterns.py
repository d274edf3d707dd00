"""The patterns language: combinations that no two pools share, pairs one word apart, answers that are what they say."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from openwork import bench
from openwork.errors import UsageError
from openwork.presets import PATTERNS
from openwork.runs import find_circuit, open_run
from openwork.tasks.patterns import (
    CENTURIES,
    CONJUNCTIONS,
    DIGITS,
    EVENTS,
    FRAMES,
    GIVING,
    KINDS,
    LASTS,
    LONGEST,
    NAMES,
    PATTERN_TASKS,
    POOLS,
    START,
    THINGS,
    VERBS,
    WORDS,
    PatternData,
    decode,
    encode,
    make_pattern_task,
    pool_of,
    rows,
)
from openwork.tasks.subjects import open_subject
from openwork.tasks.task import SPLITS, Split, Task, correct
from openwork.training import held_out_accuracy

TASKS = {name: make_pattern_task(name, 512) for name in PATTERN_TASKS}

each_task = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


def _told(split: Split) -> list[tuple[str, str, list[str]]]:
    """Prompt, answer and wrong answers of every example, in words."""
    wrong = [[WORDS[w] for w in ws] for ws in split.wrong.tolist()]
    return list(zip(split.texts, (WORDS[a] for a in split.answer.tolist()), wrong, strict=True))


# -- the language ----------------------------------------------------------------------------------------------------


def test_words_are_few_and_survive_a_round_trip() -> None:
    assert len(set(WORDS)) == len(WORDS) <= 200 and WORDS[0] == START
    ids = list(range(len(WORDS)))
    assert encode(decode(ids)) == ids
    assert set(NAMES).isdisjoint(THINGS), "what a task is about is told from what another is about"
    with pytest.raises(UsageError, match=r'Nearest: "mary"'):
        encode("marry gave")


def test_every_combination_is_in_one_pool() -> None:
    pools = [pool_of(name) for name in POOLS]
    dealt = {
        "follows": ([{(a, b) for a, bs in p.follows.items() for b in bs} for p in pools], len(THINGS) * 31),
        "couples": ([{frozenset(c) for c in p.couples} for p in pools], len(NAMES) * 19 // 2),
        "phrases": ([set(p.phrases) for p in pools], len(CONJUNCTIONS) * len(VERBS) * len(GIVING)),
        "years": ([set(p.years) for p in pools], len(CENTURIES) * len(DIGITS)),
        "stories": ([set(p.stories) for p in pools], len(KINDS) * len(EVENTS) * len(FRAMES)),
    }
    for what, (parts, total) in dealt.items():
        assert sum(map(len, parts)) == len(set().union(*parts)) == total, what
        assert len(parts[0]) == pytest.approx(0.6 * total, rel=0.05), what


def _couples(text: str) -> list[tuple[str, str]]:
    """Who meets whom in a text."""
    return [(m[1], m[2]) for m in re.finditer(r"(\w+) and (\w+) (?:went|came|met|walked|stayed|talked)", text)]


def test_training_text_holds_only_combinations_of_the_train_pool() -> None:
    pool = pool_of("train")
    words = [w for row in rows("train", 400, 49, "a test").tolist() for w in decode(row).split()]
    things = [(a, b) for a, b in itertools.pairwise(words) if a in THINGS and b in THINGS]
    assert len(things) > 3000 and all(b in pool.follows[a] for a, b in things)
    text = " ".join(words)
    couples = _couples(text)
    assert len(couples) > 150 and {frozenset(c) for c in couples} <= {frozenset(c) for c in pool.couples}
    said = rf"({'|'.join(CONJUNCTIONS)}) \w+ and \w+ (\w+ \w+) the \w+ , \w+ (\w+) (?:a|the) \w+ to"
    phrases = re.findall(said, text)
    assert len(phrases) > 100 and set(phrases) <= set(pool.phrases)
    years = re.findall(r"year (\d\d) (\d) (\d) (?:to|and|ended|the \w+ \w+ lasted)", text)
    assert len(years) > 80 and {(c, last) for c, _, last in years} <= set(pool.years)
    assert " with " not in text and ", and it ended" not in text, "the sentences of ood are never trained on"


def test_rows_are_pure_functions_of_pool_and_seed_and_batches_of_seed_and_step() -> None:
    data = PatternData(48, seed=0, size=8)
    (x,), y = data.batch(3)
    assert x.shape == y.shape == (8, 48) and torch.equal(x[:, 1:], y[:, :-1]) and bool((x[:, 0] == 0).all())
    assert torch.equal(x, PatternData(48, 0, 8).batch(3)[0][0])
    others = (data.batch(4), PatternData(48, 1, 8).batch(3))
    assert not any(torch.equal(x, z) for (z,), _ in others)
    held = list(data.held_out("verify"))
    assert sum(len(y) for _, y in held) == 512 and torch.equal(held[0][0][0], next(iter(data.held_out("verify")))[0][0])
    with pytest.raises(UsageError, match=r'Nearest: "verify"'):
        data.held_out("verfy")


# -- tasks -----------------------------------------------------------------------------------------------------------


@each_task
def test_pairs_differ_in_one_word_and_have_different_answers(task: Task) -> None:
    assert tuple(task.splits) == SPLITS
    for split in task.splits.values():
        tokens, at = split.inputs
        assert len(split) == 512 and tokens.shape[1] <= LONGEST and torch.equal(at, at[split.pair])
        assert torch.equal(split.pair[split.pair], torch.arange(512)) and bool((split.pair != torch.arange(512)).all())
        assert bool(((tokens != tokens[split.pair]).sum(1) == 1).all())
        assert bool((split.wrong == split.answer[split.pair][:, None]).any(1).all()), "my counterpart's answer is wrong"
        assert not bool((split.wrong == split.answer[:, None]).any())
        for i, text in enumerate(split.texts):
            assert decode(tokens[i, : at[i] + 1].tolist()) == f"{START} {text}"


@each_task
def test_no_prompt_is_in_two_splits_or_twice_in_one(task: Task) -> None:
    together = [t for split in task.splits.values() for t in split.texts]
    assert len(set(together)) == len(together) == 4 * 512
    text = decode([w for row in rows("train", 500, 49, "a test").tolist() for w in row])
    assert not [t for t in together if t in text]


@each_task
def test_whoever_ranks_the_words_always_alike_is_right_by_chance(task: Task) -> None:
    """The words in the order in which the training text holds them, and in others, the digits upwards among them."""
    counts = torch.bincount(rows("train", 500, 49, "a test").flatten(), minlength=len(WORDS)).float()
    upwards = torch.arange(len(WORDS)).float()
    rankings = [counts + upwards / 1000, upwards, -upwards]
    rankings += [torch.randperm(len(WORDS), generator=torch.Generator().manual_seed(s)).float() for s in range(5)]
    for split in task.splits.values():
        for ranking in rankings:
            share = float(correct(ranking.expand(len(split), -1), split).float().mean())
            assert share == 0.5 if split.wrong.shape[1] == 1 else share < 0.25


def test_induction_answers_with_what_followed_and_only_its_own_pool_says_so() -> None:
    for split in TASKS["induction"].splits.values():
        pool = pool_of(split.name)
        for text, answer, wrong in _told(split):
            words = text.split()
            last = words[-1]
            assert words.count(last) == 2 and words[words.index(last) + 1] == answer
            assert {answer, *wrong} <= set(pool.follows[last]) and wrong[0] not in words
    told = {name: [t.split() for t in split.texts] for name, split in TASKS["induction"].splits.items()}
    back = {name: {len(words) - words.index(words[-1]) for words in of} for name, of in told.items()}
    assert min(back["ood"]) > max(back["discover"] | back["verify"] | back["explain"]), "ood looks farther back"
    assert len(back["discover"]) >= 5, "the way back varies"


def test_ioi_answers_with_the_name_that_stands_there_once() -> None:
    for split in TASKS["ioi"].splits.values():
        pool = pool_of(split.name)
        orders: Counter[bool] = Counter()
        for text, answer, wrong in _told(split):
            names = [w for w in text.split() if w in NAMES]
            assert Counter(names) == {answer: 1, wrong[0]: 2}
            assert tuple(sorted({answer, *wrong}, key=NAMES.index)) in pool.couples
            orders[names[0] == answer] += 1
            assert (" with " in text) == (split.name == "ood")
        assert orders == {True: 256, False: 256}, "the one asked for stands first as often as second"


def test_greater_than_answers_with_a_later_decade_and_all_others_are_wrong() -> None:
    for split in TASKS["greater_than"].splits.values():
        for text, answer, wrong in _told(split):
            year = re.search(r"year (\d\d) (\d) (\d) .*year (\d\d)$", text)
            assert year and year[1] == year[4] and (year[1], year[3]) in pool_of(split.name).years
            decade = int(year[2])
            ends = {str(d) for d in range(decade + 1, decade + LASTS + 1)}
            assert answer in ends and set(wrong) == set(DIGITS) - ends and len(wrong) == 7
            assert ("and it ended" in text) == (split.name == "ood")


def test_same_seed_same_task_and_what_cannot_be_is_refused() -> None:
    a, b, c = (make_pattern_task("ioi", 32, seed=s) for s in (0, 0, 1))
    assert a.digest() == b.digest() != c.digest()
    with pytest.raises(UsageError, match=r'Nearest: "induction"'):
        make_pattern_task("inducton")
    with pytest.raises(UsageError, match="even"):
        make_pattern_task("ioi", 7)
    with pytest.raises(UsageError, match="ask for fewer"):
        make_pattern_task("greater_than", 1000)
    subject = open_subject("patterns", Path("data"), 48)
    with pytest.raises(UsageError, match="JSONL"):
        subject.task("mine.jsonl", 8)
    with pytest.raises(UsageError, match=r'Nearest: "ioi"'):
        subject.task("io", 8)
    with pytest.raises(UsageError, match=f"at least {LONGEST} tokens"):
        open_subject("patterns", Path("data"), 16)


# -- a model of it ---------------------------------------------------------------------------------------------------


def test_a_short_training_learns_the_language_and_every_stage_takes_it(tmp_path: Path) -> None:
    assert PATTERNS["cpu"].model["vocab"] == len(WORDS)
    out = tmp_path / "run"
    bench.train_run("patterns", "dense", None, out, 60, "smoke", settings=("model.d_model=32", "training.lr=0.01"))
    run = open_run(out)
    assert run.subject.task_names() == tuple(PATTERN_TASKS)
    accuracy = held_out_accuracy(run.model, run.subject.training_data(32, 0), torch.device("cpu"))
    assert accuracy is not None and accuracy > 0.2, "one in 140 by chance"
    found = find_circuit(out, "greater_than", "masks", {"target": 5.0, "steps": 10})
    assert found["status"] == "ok" and found["answers"] == 8
    assert bench.view_run(out)["page"]
    text, name = run.subject.text(4), run.subject.decode()
    assert text is not None and text.shape == (4, 48) and name is not None and name(1) == " ."
