"""The corpus: disjoint files, the same bytes every time, windows that are pure functions, and clear refusals."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from openwork.errors import RunError, UsageError
from openwork.tasks import Corpus, CorpusSettings, LanguageData, build_corpus, load_corpus
from openwork.tasks.corpus import LEFT_OUT, SHARES, SPLITS, _lines
from openwork.tasks.python_code import END, MIXED, TASKS, mix_program

SMALL = CorpusSettings(megabytes=0.5, vocab=512, mix=0.5)
PROGRAMS = "a3464809b582c7fb"  # of the training mix that published figures were made with


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("corpus") / "data", SMALL)


def _listed(corpus: Corpus) -> dict[str, list[dict[str, str]]]:
    return json.loads((corpus.folder / "corpus.json").read_text())["files"]


def _text_folder(folder: Path, n: int = 30, size: int = 10_000) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(n):
        line = f"value_{i} = compute('{i}', [1, 2, 3])\n"
        (folder / f"file{i}.py").write_text(line * (size // len(line)))
    return folder


# -- text and splits ---------------------------------------------------------------------------------------------------


def test_every_file_is_in_one_split_and_the_shares_hold(tmp_path: Path) -> None:
    corpus = build_corpus(tmp_path / "data", CorpusSettings(megabytes=3.0))
    listed = _listed(corpus)
    names = [f["name"] for part in listed.values() for f in part]
    assert set(listed) == set(SHARES) and len(set(names)) == len(names)
    stdlib = Path(sysconfig.get_path("stdlib"))
    most = 300_000  # a tenth of what is asked for: no file gives more
    size = {s: sum(min(most, (stdlib / f["name"]).stat().st_size) for f in part) for s, part in listed.items()}
    assert 3e6 <= sum(size.values()) < 3e6 + most
    for split, share in SHARES.items():
        assert size[split] / sum(size.values()) == pytest.approx(share, abs=0.015), split
    assert not [n for n in names if set(Path(n).parts) & LEFT_OUT]


def test_the_ids_are_the_files_with_end_between_them(corpus: Corpus) -> None:
    stdlib = Path(sysconfig.get_path("stdlib"))
    for split in ("discover", "verify", "explain"):
        ids = corpus.ids[split]
        assert ids.dtype == np.uint16 and isinstance(ids, np.memmap)
        texts = corpus.decode(ids.tolist()).split(END)
        assert texts[0] == texts[-1] == ""
        files = _listed(corpus)[split]
        assert len(texts) - 2 == len(files)
        for text, file in zip(texts[1:-1], files, strict=True):
            assert hashlib.sha256(text.encode()).hexdigest() == file["sha256"]
            assert (stdlib / file["name"]).read_text(encoding="utf-8").startswith(text)


def test_the_tokenizer_has_every_answer_and_loses_nothing(corpus: Corpus) -> None:
    for answer in {a for name in MIXED for a in TASKS[name].answers}:
        assert corpus.decode([corpus.token(answer)]) == answer
    assert corpus.vocab == 512 and corpus.encode(END) == [0]
    with pytest.raises(UsageError, match=r"not a single token of this corpus but \d+: .* larger one"):
        corpus.token("surely not a token")


def test_a_mix_of_all_tasks_makes_all_their_answers_tokens_even_of_a_small_vocabulary(tmp_path: Path) -> None:
    """512 tokens are the smoke preset's; what the text alone makes no token of is shown to the tokenizer again."""
    every = build_corpus(tmp_path / "all", SMALL.model_copy(update={"mix_tasks": ("all",)}))
    assert every.vocab == 512 and every.settings.mixed() == tuple(TASKS) and len(TASKS) == 20
    for spec in TASKS.values():
        for answer in spec.answers:
            assert every.decode([every.token(answer)]) == answer
    programs = every.decode(every.ids["mix"].tolist())
    assert all(answer in programs for spec in TASKS.values() for answer in spec.answers)
    assert load_corpus(tmp_path / "all").settings == every.settings


def test_the_mixed_tasks_decide_the_corpus_and_an_older_one_that_does_not_name_them_is_read(
    corpus: Corpus, tmp_path: Path
) -> None:
    """Digest and files of the default are those of a corpus that knew of no choice: SHA-256 of 32 programs, then."""
    assert corpus.settings.mixed() == MIXED == tuple(TASKS)[:6]
    programs = [mix_program(random.Random(i)) for i in range(32)]
    assert hashlib.sha256("".join(programs).encode()).hexdigest()[:16] == PROGRAMS
    folder = shutil.copytree(corpus.folder, tmp_path / "older")
    record = json.loads((folder / "corpus.json").read_text())
    del record["settings"]["mix_tasks"]
    (folder / "corpus.json").write_text(json.dumps(record))
    assert load_corpus(folder).settings == corpus.settings
    assert build_corpus(folder, SMALL).digest == corpus.digest, "and it is taken for what it is"
    with pytest.raises(UsageError, match="mix_tasks"):
        build_corpus(folder, SMALL.model_copy(update={"mix_tasks": ("for_while", "var_swap")}))


@pytest.mark.parametrize(
    ("names", "said"),
    [(("for_whle",), 'Nearest: "for_while"'), ((), "one task or more"), (("for_while",) * 2, "each once")],
)
def test_mixes_that_cannot_be_are_refused(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CorpusSettings(mix_tasks=names)


def test_any_text_is_encoded_without_loss(corpus: Corpus) -> None:
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    @settings(max_examples=200, deadline=None)
    def check(text: str) -> None:
        assert corpus.decode(corpus.encode(text)) == text

    check()


def test_the_same_settings_give_the_same_bytes_whatever_the_threads_and_hashes(corpus: Corpus, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from openwork.tasks import *;"
        "build_corpus(Path(sys.argv[1]), CorpusSettings(**__import__('json').loads(sys.argv[2])))"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "77",
    }
    command = [sys.executable, "-c", program, str(tmp_path / "again"), SMALL.model_dump_json()]
    subprocess.run(command, check=True, env=environment, timeout=120)
    for file in ("corpus.json", "tokenizer.json", *(f"{s}.npy" for s in SPLITS)):
        assert (corpus.folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_another_seed_takes_other_files(corpus: Corpus, tmp_path: Path) -> None:
    other = build_corpus(tmp_path / "data", SMALL.model_copy(update={"seed": 1}))
    assert other.digest != corpus.digest
    names = [{f["name"] for part in _listed(c).values() for f in part} for c in (corpus, other)]
    assert len(names[0] & names[1]) < 0.5 * len(names[0])


@given(st.text("ab\n", max_size=200), st.integers(1, 50))
def test_pieces_of_a_text_make_up_the_text(text: str, size: int) -> None:
    pieces = _lines(text, size)
    assert "".join(pieces) == text
    assert all(0 < len(p) <= size for p in pieces)


# -- a user's text -----------------------------------------------------------------------------------------------------


def test_a_users_folder_is_used_and_its_unreadable_files_skipped_and_counted(tmp_path: Path) -> None:
    source = _text_folder(tmp_path / "mine")
    (source / "latin.py").write_bytes(b"caf\xe9 = 1\n" * 100)
    (source / "binary.py").write_bytes(b"\0" * 1000)
    (source / "notes.txt").write_text("not python")
    (source / ".hidden.py").write_text("hidden = 1\n")
    (source / "windows.py").write_bytes("\ufeffx = 1\r\ny = 2\r\n".encode())
    os.mkfifo(source / "pipe.py")
    said: list[str] = []
    corpus = build_corpus(tmp_path / "data", CorpusSettings(source=str(source), vocab=512), said.append)
    assert any("skipped 2 files" in line for line in said)
    names = {f["name"] for part in _listed(corpus).values() for f in part}
    assert names == {f"file{i}.py" for i in range(30)} | {"windows.py"}
    texts = "".join(corpus.decode(corpus.ids[s].tolist()) for s in SHARES)
    assert f"{END}x = 1\ny = 2\n{END}" in texts


def test_without_python_files_any_text_is_taken_and_one_file_is_cut_into_pieces(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"This is line {i} of a long story.\n" for i in range(10_000)))
    said: list[str] = []
    corpus = build_corpus(tmp_path / "data", CorpusSettings(source=str(path), vocab=512), said.append)
    assert any("cut into pieces" in line for line in said)
    pieces = [f["name"] for part in _listed(corpus).values() for f in part]
    assert len(set(pieces)) == len(pieces) >= 80 and all(len(corpus.ids[s]) > 500 for s in SHARES)
    lines = [line for s in SHARES for line in corpus.decode(corpus.ids[s].tolist()).replace(END, "").splitlines()]
    assert sorted(lines) == sorted(path.read_text().splitlines())
    folder = tmp_path / "texts"
    folder.mkdir()
    path.rename(folder / "book.txt")
    same = build_corpus(tmp_path / "other", CorpusSettings(source=str(folder), vocab=512))
    assert same.digest == corpus.digest


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    path.write_text("é = 'ü'\n" * 100_000)
    corpus = build_corpus(tmp_path / "data", CorpusSettings(source=str(path), vocab=400, megabytes=0.3001))
    size = sum(len(corpus.decode(corpus.ids[s].tolist()).replace(END, "").encode()) for s in SHARES)
    assert 300_000 < size <= 300_100


def _missing(p: Path) -> Path:
    return p / "absent"


def _empty_folder(p: Path) -> Path:
    (p / "empty").mkdir()
    return p / "empty"


def _empty_file(p: Path) -> Path:
    (p / "empty.py").touch()
    return p / "empty.py"


def _binary_file(p: Path) -> Path:
    (p / "picture.png").write_bytes(bytes(range(256)) * 2000)
    return p / "picture.png"


def _undecodable_folder(p: Path) -> Path:
    (p / "latin").mkdir()
    for i in range(3):
        (p / "latin" / f"{i}.py").write_bytes(b"# caf\xe9\n" * 50_000)
    return p / "latin"


def _small(p: Path) -> Path:
    return _text_folder(p / "small", n=5, size=2000)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_missing, "there is no file or folder"),
        (_empty_folder, "there are no files in"),
        (_empty_file, "nothing to read .* 1 are empty"),
        (_binary_file, "nothing to read .* 1 are binary"),
        (_undecodable_folder, "nothing to read .* 3 are binary, unreadable or not UTF-8"),
        (_small, "gives 10 kB of text in 5 file.*at least 200 kB are needed"),
    ],
)
def test_text_that_will_not_do_is_refused_and_nothing_is_written(
    make: Callable[[Path], Path], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said) as refusal:
        build_corpus(tmp_path / "data", CorpusSettings(source=str(make(tmp_path))))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "data").exists()


def test_settings_refuse_unknown_keys_and_impossible_values() -> None:
    for wrong in ({"megabyte": 1}, {"vocab": 100}, {"vocab": 70_000}, {"mix": 1.0}, {"seed": -1}):
        with pytest.raises(ValueError):
            CorpusSettings(**wrong)
    with pytest.raises(UsageError, match="site_packages"):
        build_corpus(Path("unused"), CorpusSettings(source=".", site_packages=True))


# -- the folder --------------------------------------------------------------------------------------------------------


def test_a_corpus_that_is_there_is_not_built_again(corpus: Corpus) -> None:
    before = (corpus.folder / "corpus.json").stat().st_mtime_ns
    said: list[str] = []
    assert build_corpus(corpus.folder, SMALL, said.append).digest == corpus.digest
    assert (corpus.folder / "corpus.json").stat().st_mtime_ns == before and not said
    assert load_corpus(corpus.folder).settings == SMALL


def test_another_corpus_or_other_files_are_never_overwritten(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"already holds another corpus .vocab 512, not 600"):
        build_corpus(corpus.folder, SMALL.model_copy(update={"vocab": 600}))
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        build_corpus(tmp_path, SMALL)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_damage_is_noticed(tmp_path: Path) -> None:
    source = _text_folder(tmp_path / "mine")
    data = build_corpus(tmp_path / "data", CorpusSettings(source=str(source), vocab=512)).folder
    for name in ("train.npy", "tokenizer.json"):
        whole = (data / name).read_bytes()
        (data / name).write_bytes(whole[:-100])
        with pytest.raises(RunError, match=f"{name} is damaged"):
            load_corpus(data)
        (data / name).write_bytes(whole)
    whole_json = (data / "corpus.json").read_text()
    for text, said in (
        (whole_json[:200], "not JSON"),
        (whole_json.replace("openwork-corpus", "other"), "no corpus that this openwork reads"),
        (whole_json.replace('"sha256": {', '"sha": {'), "damaged"),
    ):
        (data / "corpus.json").write_text(text)
        with pytest.raises(RunError, match=said):
            load_corpus(data)
    (data / "corpus.json").write_text(whole_json)
    (data / "mix.npy").unlink()
    with pytest.raises(RunError, match="there is no file"):
        load_corpus(data)
    with pytest.raises(RunError, match="there is no corpus in"):
        load_corpus(tmp_path)


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_a_pure_function_of_seed_and_step(corpus: Corpus) -> None:
    batch = corpus.batch(5, 8, 32, seed=0)
    assert batch.dtype == torch.int64 and batch.shape == (8, 33)
    assert torch.equal(batch, load_corpus(corpus.folder).batch(5, 8, 32, seed=0))
    assert not torch.equal(batch, corpus.batch(6, 8, 32, seed=0))
    assert not torch.equal(batch, corpus.batch(5, 8, 32, seed=1))


def test_half_of_the_rows_are_programs_from_their_start_and_the_rest_real_text(corpus: Corpus) -> None:
    batch = corpus.batch(0, 8, 32, seed=0)
    text = {split: corpus.decode(corpus.ids[split].tolist()) for split in ("mix", "train")}
    assert (batch[:4, 0] == corpus.token(END)).all()
    for rows, split in ((batch[:4], "mix"), (batch[4:], "train")):
        for row in rows.tolist():
            ids = corpus.ids[split]
            starts = np.flatnonzero(ids[:-32] == row[0])
            assert any(ids[s : s + 33].tolist() == row for s in starts)
    assert "def " in text["mix"] and text["mix"] != text["train"]


def test_windows_are_fixed_and_do_not_overlap_while_there_is_room(corpus: Corpus) -> None:
    ids = corpus.ids["verify"]
    w = corpus.windows("verify", 20, 64)
    assert w.shape == (20, 65) and torch.equal(w, corpus.windows("verify", 20, 64))
    assert not torch.equal(w, corpus.windows("verify", 20, 64, seed=1))
    starts = [next(s for s in range(0, len(ids), 64) if ids[s : s + 65].tolist() == r) for r in w.tolist()]
    assert len(set(starts)) == 20
    assert corpus.windows("verify", len(ids), 64).shape == (len(ids), 65)
    with pytest.raises(UsageError, match="too few for windows"):
        corpus.windows("verify", 1, len(ids))
    with pytest.raises(UsageError, match="no split of the corpus"):
        corpus.windows("verfy", 1, 8)


def test_bigram_logits_are_log_probabilities_that_beat_the_unigram_on_held_out_text(corpus: Corpus) -> None:
    table = corpus.bigram_logits()
    assert table.shape == (512, 512) and table.dtype == torch.float32
    assert torch.allclose(table.exp().sum(1), torch.ones(512), atol=1e-4)
    ids = torch.from_numpy(corpus.ids["verify"].astype(np.int64))
    unigram = (torch.bincount(torch.from_numpy(corpus.ids["train"].astype(np.int64)), minlength=512) + 1.0).log()
    unigram = unigram - unigram.logsumexp(0)
    assert -table[ids[:-1], ids[1:]].mean() < -unigram[ids].mean() - 1.0
    opened, closed = corpus.token("("), corpus.token(")")
    assert table[corpus.token(":"), corpus.token(" in")] < table[corpus.token(":"), corpus.encode("\n    ")[0]]
    assert table[opened].argmax() != closed or table[opened, closed] > table[closed, opened]


def test_language_data_asks_for_the_next_token(corpus: Corpus) -> None:
    data = LanguageData(corpus, 32, 8, seed=3)
    (tokens,), targets = data.batch(2)
    assert tokens.shape == targets.shape == (8, 32)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    held = list(data.held_out("discover"))
    assert sum(len(y) for _, y in held) == data.held_out_tokens // 32
    assert all(torch.equal(a[0], b[0]) for (a, _), (b, _) in zip(held, data.held_out("discover"), strict=True))


def test_tokenizer_threads_are_off_after_a_build(corpus: Corpus) -> None:
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
