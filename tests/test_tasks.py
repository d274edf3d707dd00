"""Tasks: pools that share nothing, pairs that differ minimally, prompts that end where a token ends; splits, losses."""

from __future__ import annotations

import ast
import itertools
import json
import math
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from openwork.errors import UsageError
from openwork.tasks import (
    DIGIT_TASKS,
    TASKS,
    Corpus,
    CorpusSettings,
    Split,
    build_corpus,
    correct,
    digits_data,
    losses,
    make_digit_task,
    make_task,
    read_jsonl_task,
)
from openwork.tasks.corpus import PIECES
from openwork.tasks.images import PAIRS, SIDES, _images, _members
from openwork.tasks.python_code import (
    END,
    LONGEST,
    MIXED,
    NEUTRAL,
    POOLS,
    WORDS,
    _draw,
    _fill,
    mix_program,
    words,
)
from openwork.tasks.python_specs.six import READING, WRITING
from openwork.tasks.subjects import open_subject
from openwork.tasks.task import SPLITS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Small, with all tasks in its mix."""
    settings = CorpusSettings(megabytes=1.0, vocab=640, mix_tasks=("all",))
    return build_corpus(tmp_path_factory.mktemp("corpus"), settings)


def _texts_by_pool(corpus: Corpus) -> dict[str, list[str]]:
    """All prompts of all tasks by pool; those of "train" are 3,000 programs of a mix of all tasks."""
    rng = random.Random(1)
    texts = {"train": [mix_program(rng, tuple(TASKS)) for _ in range(3000)]}
    for pool in SPLITS:
        texts[pool] = [t for name in TASKS for t in make_task(name, corpus).split(pool).texts]
    return texts


# -- pools -------------------------------------------------------------------------------------------------------------


def test_no_word_is_in_two_pools_or_in_both_lists_of_one() -> None:
    lists = [part for pool in POOLS for part in words(pool)]
    assert sum(map(len, lists)) == len(set(WORDS)) == len(WORDS)
    assert all(set(a).isdisjoint(b) for a, b in itertools.combinations(lists, 2))
    assert min(map(len, lists)) >= 18 and min(map(len, words("train"))) >= 100
    assert set(WORDS).isdisjoint({*READING, *WRITING})


def _shape(template: str) -> str:
    """A template without the choice of letters for its slots."""
    return re.sub(r"<([a-z])>", lambda m: "#" if m[1] in "ijkn" else "'" if m[1] in "abcd" else "x", template)


@pytest.mark.parametrize("name", TASKS)
def test_no_template_is_in_two_pools(name: str) -> None:
    by_pool = {pool: [_shape(t) for t in TASKS[name].templates[pool]] for pool in POOLS}
    together = list(itertools.chain(*by_pool.values()))
    assert len(set(together)) == len(together)
    assert len(by_pool["train"]) >= 6
    assert all(len(by_pool[p]) >= 3 for p in SPLITS)
    capitals = set(re.findall(r"<([A-Z])>", "".join(together)))
    assert capitals <= set(TASKS[name].switches)


def test_the_texts_of_a_pool_hold_only_words_of_that_pool(corpus: Corpus) -> None:
    fixed = {*READING, *WRITING}
    for spec in TASKS.values():
        switches = itertools.chain(*(a + b for a, b in spec.switches.values()))
        for text in (*itertools.chain(*spec.templates.values()), *NEUTRAL, *spec.answers, *spec.rest, *switches):
            fixed |= set(re.findall(r"[A-Za-z]+", re.sub(r"<\w>", " ", text)))
    fixed |= {"def"}
    for pool, texts in _texts_by_pool(corpus).items():
        mine = {w for part in words(pool) for w in part}
        assert mine.isdisjoint(fixed), mine & fixed
        used = set(re.findall(r"[A-Za-z]+", " ".join(texts).replace("_", " "))) - fixed
        assert used <= mine, (pool, used - mine)
        assert len(used) > 0.9 * len(mine)  # the test looks at what is really there


def test_no_prompt_is_in_two_pools_or_twice_in_one(corpus: Corpus) -> None:
    by_pool = _texts_by_pool(corpus)
    mix = "\n".join(by_pool.pop("train"))
    together = list(itertools.chain(*by_pool.values()))
    assert len(together) == len(TASKS) * len(SPLITS) * 256
    assert len(set(together)) == len(together)
    assert not [t for t in together if t in mix]


# -- pairs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_pairs_are_balanced_and_differ_only_in_what_the_task_is_about(name: str, corpus: Corpus) -> None:
    task = make_task(name, corpus)
    assert tuple(task.splits) == SPLITS
    first, second = map(corpus.token, task.answers)
    for split in task.splits.values():
        tokens, at = split.inputs
        assert tokens.shape[0] == len(split) == 256
        assert int(at.max()) < LONGEST
        assert Counter(split.answer.tolist()) == {first: 128, second: 128}
        assert torch.equal(split.pair[split.pair], torch.arange(256))
        assert torch.equal(split.answer[split.pair], split.wrong[:, 0])
        assert torch.equal(at, at[split.pair])
        differ = tokens != tokens[split.pair]
        assert bool((differ.sum(1) >= 1).all())
        pool = {w for part in words(split.name) for w in part}
        for a, b in zip(split.texts[0::2], split.texts[1::2], strict=True):
            of_pool = [[w for w in re.findall(r"[a-z]+", t) if w in pool] for t in (a, b)]
            assert of_pool[0] == of_pool[1]
            pieces, others = (Counter(re.findall(PIECES, t)) for t in (a, b))
            assert (pieces - others).total() <= 5 and (others - pieces).total() <= 5, (a, b)


@pytest.mark.parametrize("name", TASKS)
def test_prompts_end_where_a_token_ends_and_go_on_to_valid_python(name: str, corpus: Corpus) -> None:
    spec, task = TASKS[name], make_task(name, corpus)
    rng = random.Random(0)
    for split in task.splits.values():
        tokens, at = split.inputs
        for i, text in enumerate(split.texts):
            prompt = tokens[i, : at[i] + 1].tolist()
            assert corpus.decode(prompt) == END + text
            rest = spec.rest[i % 2]
            last = text.rsplit("\n", 1)[-1]
            indent = last[: len(last) - len(last.lstrip())]
            rest = _fill(rest, _draw((rest,), split.name, rng)).replace("\n", "\n" + indent)
            whole = text + spec.answers[i % 2] + rest + "\n"
            assert corpus.encode(END + whole)[: len(prompt) + 1] == [*prompt, int(split.answer[i])]
            ast.parse(whole)


def _pattern(template: str) -> str:
    """A pattern of the texts that a template without capitals can be."""
    return r"\w+".join(re.escape(p) for p in re.split(r"<[a-z]>", template))


@pytest.mark.parametrize("name", TASKS)
def test_whoever_ranks_the_tokens_always_alike_is_right_half_the_time(name: str, corpus: Corpus) -> None:
    """The token that is most frequent in the mix, and tokens in any other order: no question is answered by a habit."""
    habits = torch.from_numpy(np.bincount(corpus.ids["mix"], minlength=corpus.vocab)).float()
    habits += torch.linspace(0, 0.5, corpus.vocab)  # no ties
    for split in make_task(name, corpus, n=64).splits.values():
        for ranking in (habits, torch.randperm(corpus.vocab, generator=torch.Generator().manual_seed(0)).float()):
            assert float(correct(ranking.expand(len(split), -1), split).float().mean()) == 0.5


@pytest.mark.parametrize("name", TASKS)
def test_every_template_of_a_pool_is_used(name: str, corpus: Corpus) -> None:
    for pool, templates in ((p, TASKS[name].templates[p]) for p in SPLITS):
        texts = make_task(name, corpus).split(pool).texts
        for template in templates:
            parts = re.split(r"<(\w)>", template)  # text, slot, text, slot, ..., text
            switches = TASKS[name].switches
            either = {c: "(?:" + "|".join(map(_pattern, a + b)) + ")" for c, (a, b) in switches.items()}
            whole = "".join(either.get(p, r"\w+") if i % 2 else re.escape(p) for i, p in enumerate(parts))
            found = sum(bool(re.fullmatch(whole, t)) for t in texts)
            assert found >= 256 / len(templates) / 3, (template, found)


@pytest.mark.parametrize("tasks", [MIXED, tuple(TASKS)], ids=["six", "all"])
def test_the_mix_is_valid_python_of_its_tasks_with_both_answers(tasks: tuple[str, ...]) -> None:
    rng = random.Random(0)
    programs = [mix_program(rng, tasks) for _ in range(400 * len(tasks) // len(MIXED))]
    for program in programs:
        ast.parse(program)
    together = "".join(programs)
    for needle in ("('", '("', "')", '")', "]]", ".add(", " += ", "for ", "while ", "', 'r')", "', 'w')", "':", "',"):
        assert together.count(needle) > 50, needle
    for answer in {a for name in tasks for a in TASKS[name].answers}:
        assert together.count(answer) > 50, answer
    again = random.Random(0)
    assert programs == [mix_program(again, tasks) for _ in programs]
    if tasks == MIXED:
        assert "lambda" not in together and "async def" not in together, "no other task is in it"


def test_a_task_outside_the_mix_is_refused_with_the_setting_that_brings_it_in(tmp_path: Path) -> None:
    build_corpus(tmp_path / "data", CorpusSettings(megabytes=0.3, vocab=512))
    subject = open_subject("python", tmp_path / "data", 64)
    assert subject.task_names() == MIXED
    assert len(subject.task("for_while", 16).split("verify")) == 16
    with pytest.raises(UsageError, match=r"enumerate_range is not in this run's .*corpus\.mix_tasks=\[all\]"):
        subject.task("enumerate_range", 16)


def test_same_seed_same_task_other_seed_other_prompts(corpus: Corpus) -> None:
    a, b, c = (make_task("for_while", corpus, n=32, seed=s).split("verify") for s in (0, 0, 1))
    assert a.texts == b.texts and torch.equal(a.inputs[0], b.inputs[0])
    assert a.texts != c.texts


def test_tasks_refuse_wrong_names_odd_sizes_and_too_small_vocabularies(corpus: Corpus) -> None:
    with pytest.raises(UsageError, match=r'Nearest: "for_while"'):
        make_task("for_whle", corpus)
    with pytest.raises(UsageError, match="even"):
        make_task("for_while", corpus, n=7)

    class Bytes:
        def encode(self, text: str) -> list[int]:
            return list(text.encode())

        def token(self, text: str) -> int:
            return corpus.token("no such token")

    with pytest.raises(UsageError, match="not a single token"):
        make_task("for_while", Bytes())


# -- splits and losses -------------------------------------------------------------------------------------------------


def _split(n: int = 6, m: int = 1) -> Split:
    answer = torch.arange(n) % (m + 1)
    others = torch.tensor([[c for c in range(m + 1) if c != y] for y in answer.tolist()])
    pair = torch.arange(n) ^ 1
    return Split("discover", (torch.arange(n)[:, None].float(),), answer, others, pair, tuple(map(str, range(n))))


def test_loss_is_the_cross_entropy_over_the_answers_only() -> None:
    split = _split(2)
    logits = torch.tensor([[2.0, 1.0, 50.0], [2.0, 1.0, -50.0]])  # the third output competes with nobody
    assert losses(logits, split).tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))])
    assert correct(logits, split).tolist() == [True, False]
    assert losses(torch.zeros(2, 3), split).tolist() == pytest.approx([math.log(2)] * 2)
    assert not correct(torch.zeros(2, 3), split).any()
    ten = _split(20, m=9)
    logits = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(logits, ten.answer, reduction="none")
    assert torch.allclose(losses(logits, ten), expected)
    assert torch.equal(correct(logits, ten), logits.argmax(1) == ten.answer)


def test_take_renumbers_pairs_and_forgets_partners_left_behind() -> None:
    part = _split().take(torch.tensor([5, 0, 4]))
    assert part.texts == ("5", "0", "4")
    assert part.pair.tolist() == [2, -1, 0]
    assert part.inputs[0].flatten().tolist() == [5, 0, 4]
    with pytest.raises(UsageError, match="1 of 3 examples"):
        part.counterfactual()
    assert part.take(torch.tensor([1, 0])).pair.tolist() == [-1, -1]


def test_counterfactual_is_the_input_of_the_partner() -> None:
    (x,) = _split().counterfactual()
    assert x.flatten().tolist() == [1, 0, 3, 2, 5, 4]


def test_halves_are_disjoint_and_keep_pairs_together(corpus: Corpus) -> None:
    split = make_task("with_open", corpus, n=64).split("discover")
    a, b = split.halves()
    assert len(a) == len(b) == 32
    assert {*a.texts, *b.texts} == set(split.texts)
    assert int(a.pair.min()) >= 0 and int(b.pair.min()) >= 0
    alone = make_digit_task("digits").split("verify")
    a, b = alone.halves()
    assert abs(len(a) - len(b)) <= 1 and len({*a.texts, *b.texts}) == len(alone)


def test_nonsense_labels_are_balanced_and_say_nothing_about_the_true_ones() -> None:
    split = _split(40)
    nonsense = split.shuffled_labels(3)
    for label in (0, 1):
        mine = split.answer == label
        assert int((nonsense.answer[mine] == label).sum()) == 10
    assert bool((nonsense.answer != nonsense.wrong[:, 0]).all())
    assert torch.equal(nonsense.answer, split.shuffled_labels(3).answer)
    assert not torch.equal(nonsense.answer, split.shuffled_labels(4).answer)
    ten = _split(50, m=9).shuffled_labels(0)
    assert torch.equal(ten.answer.bincount(), torch.full((10,), 5))
    assert bool((ten.answer[:, None] != ten.wrong).all())
    assert not torch.equal(ten.answer, _split(50, m=9).answer)


def test_the_digest_of_a_task_tells_its_examples_apart(corpus: Corpus) -> None:
    task, again = (make_task("for_while", corpus, n=32) for _ in range(2))
    other = replace(task, splits={**task.splits, "ood": task.split("ood").shuffled_labels(0)})
    assert task.digest() == again.digest() != other.digest()


def test_an_unknown_split_is_refused_with_the_nearest(corpus: Corpus) -> None:
    with pytest.raises(UsageError, match=r'Nearest: "verify"'):
        make_task("for_while", corpus, n=4).split("verfy")


# -- a user's own task -------------------------------------------------------------------------------------------------

GOOD: list[dict[str, object]] = [
    {"prompt": f"{word} one", "answer": answer, "wrong": wrong, "pair": f"{split} 1", "split": split}
    for split in ("discover", "verify")
    for word, answer, wrong in ((f"for {split}", " in", ":"), (f"while {split}", ":", " in"))
]


def _file(folder: Path, lines: list[object]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def test_a_users_task_is_read(corpus: Corpus, tmp_path: Path) -> None:
    task = read_jsonl_task(_file(tmp_path, [*GOOD, ""]), corpus, n_ctx=64)
    assert task.name == "mine" and task.answers == (" in", ":")
    split = task.split("verify")
    tokens, at = split.inputs
    assert split.texts == ("for verify one", "while verify one")
    assert corpus.decode(tokens[0, : at[0] + 1].tolist()) == END + "for verify one"
    assert split.answer.tolist() == [corpus.token(" in"), corpus.token(":")]
    assert split.pair.tolist() == [1, 0]


def test_without_split_lines_are_dealt_out_by_pair_and_always_alike(corpus: Corpus, tmp_path: Path) -> None:
    lines = [
        {"prompt": f"{k} {w}", "answer": a, "wrong": b, "pair": w}
        for w in WORDS[:60]
        for k, a, b in (("for", " in", ":"), ("while", ":", " in"))
    ]
    task, again = (read_jsonl_task(_file(tmp_path, lines[:: 1 - 2 * i]), corpus) for i in (0, 1))
    assert set(task.splits) == {"discover", "verify"}
    assert 40 <= len(task.split("discover")) <= 80
    assert int(task.split("discover").pair.min()) >= 0
    assert set(task.split("verify").texts) == set(again.split("verify").texts)


def test_all_faults_of_a_file_are_reported_at_once(corpus: Corpus, tmp_path: Path) -> None:
    lines = [
        "{not json",  # 1
        ["a list"],  # 2
        {"prompt": "a", "answer": " in"},  # 3
        {"prompt": "b", "answer": "several tokens", "wrong": ":"},  # 4
        {"prompt": "c", "answer": ":", "wrong": ":"},  # 5
        {"prompt": "d", "answer": " in", "wrong": ":", "pair": "lonely"},  # 6
        {"prompt": "e", "answer": " in", "wrong": ":", "split": "verfy"},  # 7
        {"prompt": "word " * 80, "answer": " in", "wrong": ":"},  # 8
        {"prompt": "f", "answer": " in", "wrong": 3},  # 9
        {"prompt": "g", "answr": " in", "wrong": ":", "answer": " in"},  # 10
        {"prompt": "h ", "answer": "in", "wrong": ":"},  # 11: " in" would be one token
        {"prompt": "", "answer": " in", "wrong": ":"},  # 12
        {"prompt": "d", "answer": " in", "wrong": ":"},  # 13
        {"prompt": "i", "answer": " in", "wrong": ":", "pair": "apart", "split": "discover"},  # 14
        {"prompt": "j", "answer": ":", "wrong": " in", "pair": "apart", "split": "verify"},  # 15
    ]
    with pytest.raises(UsageError) as refusal:
        read_jsonl_task(_file(tmp_path, lines), corpus, n_ctx=64)
    said = str(refusal.value)
    for expected in (
        "line 1: not JSON",
        "line 2: a list where",
        'line 3: "wrong" is missing',
        "line 4: answer 'several tokens' is not a single token",
        "line 5: answer and wrong are both ':'",
        'line 6: pair "lonely" has no partner',
        'line 7: no split named "verfy". Nearest: "verify"',
        "line 8: the prompt has ",
        'line 9: "wrong" is 3',
        'line 10: no key named "answr". Nearest: "answer"',
        "line 11: answer 'in' is tokenised together",
        'line 12: "prompt" is empty',
        "line 13: the prompt of line 6 again",
        'lines 14, 15: pair "apart" is split between discover and verify',
        "14 problems",
    ):
        assert expected in said, (expected, said)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "holds no examples"),
        (GOOD[:2], 'no example is in split "verify"'),
        ([*GOOD, {**GOOD[0], "prompt": "another"}], "has 3 members"),
    ],
)
def test_files_that_make_no_task_are_refused(lines: list[object], said: str, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        read_jsonl_task(_file(tmp_path, lines), corpus)


def test_missing_and_binary_task_files_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        read_jsonl_task(tmp_path / "absent.jsonl", corpus)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="byte 0 is not UTF-8"):
        read_jsonl_task(tmp_path / "binary.jsonl", corpus)
    with pytest.raises(UsageError, match="cannot read"):
        read_jsonl_task(tmp_path, corpus)


# -- digits ------------------------------------------------------------------------------------------------------------


def test_digits_are_split_class_by_class_without_overlap() -> None:
    members = _members()
    assert sorted(torch.cat(list(members.values())).tolist()) == list(range(1797))
    shares = {name: len(ids) / 1797 for name, ids in members.items()}
    assert shares == pytest.approx({"train": 0.60, "discover": 0.13, "verify": 0.14, "explain": 0.13}, abs=0.01)
    for ids in members.values():
        counts = _images()[1][ids].bincount(minlength=10)
        assert int(counts.max() - counts.min()) <= 0.15 * int(counts.max())


@pytest.mark.parametrize("name", DIGIT_TASKS)
def test_digit_tasks_ask_what_they_say(name: str) -> None:
    task = make_digit_task(name)
    assert tuple(task.splits) == SPLITS
    classes = [int(a) for a in task.answers]
    for split in task.splits.values():
        (x,) = split.inputs
        assert x.shape == (len(split), 64) and x.aminmax() == (0, 1)
        ids = torch.tensor([int(t.split()[1]) for t in split.texts])
        assert len(ids.unique()) == len(split), "no image twice"
        assert torch.equal(split.answer, _images()[1][ids])
        if name in SIDES and name not in PAIRS:
            one, other = SIDES[name]
            first = torch.arange(len(split)) % 2 == 0
            assert set(split.answer[first].tolist()) == set(one) and set(split.answer[~first].tolist()) <= set(other)
            assert torch.equal(split.wrong[:, 0], split.answer[split.pair])
            for ranking in (torch.arange(10.0), -torch.arange(10.0)):  # of the digits, whatever the image
                assert float(correct(ranking.expand(len(split), 10), split).float().mean()) == 0.5
            continue
        assert split.wrong.shape == (len(split), len(classes) - 1)
        both = torch.cat([split.answer[:, None], split.wrong], 1).sort(1).values
        assert torch.equal(both, torch.tensor(classes).expand_as(both))
        if name != "digits":
            assert torch.equal(split.answer[split.pair], split.wrong[:, 0])
            assert torch.equal(split.pair[split.pair], torch.arange(len(split)))


def test_there_is_a_task_for_each_digit_and_one_for_loops_without_fours() -> None:
    assert [n for n in DIGIT_TASKS if n.startswith("digit_")] == [f"digit_{d}" for d in range(10)]
    assert SIDES["loops"] == ((0, 6, 8, 9), (1, 2, 3, 5, 7))
    assert tuple(DIGIT_TASKS)[:4] == ("digits", "three_eight", "four_nine", "one_seven")


def test_shifted_digits_are_the_verify_images_moved_by_one_pixel() -> None:
    task = make_digit_task("digits")
    x: Tensor = task.split("verify").inputs[0].view(-1, 8, 8)
    y: Tensor = task.split("ood").inputs[0].view(-1, 8, 8)
    assert torch.equal(y[0, :, :7], x[0, :, 1:]) and not y[0, :, 7].any()  # left
    assert torch.equal(y[1, :, 1:], x[1, :, :7]) and not y[1, :, 0].any()  # right
    assert torch.equal(y[2, :7], x[2, 1:]) and not y[2, 7].any()  # up
    assert torch.equal(y[3, 1:], x[3, :7]) and not y[3, 0].any()  # down
    assert torch.equal(task.split("ood").answer, task.split("verify").answer)


def test_digit_batches_are_pure_functions_of_seed_and_step_and_hold_train_images_only() -> None:
    data = digits_data(0, batch=32)
    (x,), y = data.batch(7)
    assert torch.equal(x, digits_data(0, batch=32).batch(7)[0][0])
    assert not torch.equal(x, data.batch(8)[0][0]) and not torch.equal(x, digits_data(1, batch=32).batch(7)[0][0])
    assert x.shape == (32, 64) and y.shape == (32,)
    train = {tuple(r) for r in _images()[0][_members()["train"]].tolist()}
    assert all(tuple(r) in train for r in x.tolist())
    [((held,), labels)] = data.held_out("discover")
    assert len(held) == len(labels) == len(_members()["discover"])
    with pytest.raises(UsageError, match="no split of the digits"):
        data.held_out("verfy")
    with pytest.raises(UsageError, match=r'Nearest: "three_eight"'):
        make_digit_task("three_ate")
