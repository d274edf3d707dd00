"""Real Python text, split by file, tokenised once and read from disk.

    source files -> train | discover | verify | explain     90 | 3 | 4 | 3 % of the text, a file is in one of them
    + mix: generated programs of some tasks (see python_code), for training only
    -> byte-level BPE trained on train + mix -> ids of every split as uint16, memory-mapped

A corpus is a folder: corpus.json (settings, files with their SHA-256, token counts, digest), tokenizer.json, and one
<split>.npy of ids each, in which the files, or programs, follow one another with <|endoftext|> before each and one at
the very end. The same files and settings give the same bytes.

Knows text, tokens and their batches. Does not know models.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import os
import platform
import random
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from openwork import files
from openwork.errors import RunError, UsageError, unknown
from openwork.tasks.python_code import END, MIXED, TASKS, WORDS, mix_program, pairs
from openwork.tasks.task import Inputs

VERSION = 1  # of the folder and of everything that decides its content
SHARES = {"train": 0.90, "discover": 0.03, "verify": 0.04, "explain": 0.03}
SPLITS = (*SHARES, "mix")
LEAST = 200_000  # bytes of text without which no split is worth anything
ALL = "all"  # in `mix_tasks`: every task
FEW = 20  # with fewer files than this, files are cut into pieces so that every split gets some
LEFT_OUT = frozenset({"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "ensurepip"})

# Pieces that no token crosses: a line break with the indentation after it, a word with the space or dot before it, a
# short number, punctuation, space.
PIECES = r"\n[ \t]*|[ .]?[A-Za-z_]+| ?[0-9]{1,3}| ?[^\sA-Za-z0-9_]+|[^\S\n]+(?=[^\S\n])|\s"

Log = Callable[[str], None]


class CorpusSettings(BaseModel):
    """What a corpus is made of. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | None = Field(
        default=None, description="a file or folder of text; without it the running Python's library"
    )
    site_packages: bool = Field(default=False, description="also the installed packages (only without source)")
    vocab: int = Field(default=1024, ge=320, le=65535, description="tokens, the 256 bytes and <|endoftext|> included")
    megabytes: float = Field(default=8.0, ge=0.2, description="about how much text to take")
    mix: float = Field(default=0.25, ge=0, le=0.9, description="share of training rows that are generated programs")
    seed: int = Field(default=0, ge=0)
    mix_tasks: tuple[str, ...] = Field(
        default=MIXED, description="tasks that the generated programs exercise; all for every one there is"
    )

    @field_validator("mix_tasks")
    @classmethod
    def _are_tasks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [n for n in names if n not in TASKS]
        if names != (ALL,) and wrong:
            raise ValueError(str(unknown("python task", wrong[0], [*TASKS, ALL])))
        if not names or len(set(names)) < len(names):
            raise ValueError("give one task or more, each once")
        return names

    def mixed(self) -> tuple[str, ...]:
        """The tasks that the generated programs exercise, by name."""
        return tuple(TASKS) if self.mix_tasks == (ALL,) else self.mix_tasks


# -- text --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """One file, or one piece of it; `name` is its path relative to the source."""

    name: str
    text: str


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


def _walk(root: Path, pattern: str, leave_out: frozenset[str]) -> list[Path]:
    """Files below a folder that match, hidden ones and some folders left out; links to folders are not followed."""
    found = []
    for folder, below, names in os.walk(root):
        below[:] = sorted(b for b in below if not b.startswith(".") and b not in leave_out)
        paths = [Path(folder, n) for n in sorted(names) if not n.startswith(".")]
        found += [p for p in paths if p.match(pattern) and p.is_file()]  # a pipe or socket would be waited for
    return found


def _listed(settings: CorpusSettings) -> list[tuple[str, Path]]:
    """Every candidate file with its name, in the order in which they are taken."""
    if settings.source is None:
        stdlib = Path(sysconfig.get_path("stdlib"))
        named = [(p.relative_to(stdlib).as_posix(), p) for p in _walk(stdlib, "*.py", LEFT_OUT)]
        if settings.site_packages:
            for root in sorted({Path(sysconfig.get_path(k)) for k in ("purelib", "platlib")}):
                more = _walk(root, "*.py", LEFT_OUT - {"site-packages"})
                named += [(f"{root.name}/{p.relative_to(root).as_posix()}", p) for p in more]
    else:
        root = Path(settings.source).expanduser()
        if settings.site_packages:
            raise UsageError("corpus: site_packages adds to the default source; it cannot be asked for with a source.")
        if not root.exists():
            raise UsageError(f"corpus: there is no file or folder {root}.")
        if root.is_file():
            named = [(root.name, root)]
        else:
            found = _walk(root, "*.py", frozenset({"__pycache__"})) or _walk(root, "*", frozenset({"__pycache__"}))
            named = [(p.relative_to(root).as_posix(), p) for p in found]
    return sorted(named, key=lambda item: _rank(settings.seed, item[0]))


def _decoded(path: Path, most: int) -> str | None:
    """The first `most` bytes of a file as text, line ends made \\n; None if it is no UTF-8 text or cannot be read."""
    try:
        with path.open("rb") as f:
            data = f.read(most + 1)
        if b"\0" in data:
            return None
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        return decoder.decode(data[:most], final=len(data) <= most).replace("\r\n", "\n").replace("\r", "\n")
    except (UnicodeDecodeError, OSError):
        return None


def _collect(settings: CorpusSettings, log: Log) -> tuple[list[Document], int]:
    """The documents in the order in which they are taken, and how many files were skipped as not being text."""
    named = _listed(settings)
    where = "the standard library" if settings.source is None else str(settings.source)
    limit = int(settings.megabytes * 1e6)
    most = limit // 10 if len(named) >= FEW else limit  # no single file may fill a corpus of many
    documents: list[Document] = []
    total = skipped = 0
    for name, path in named:
        if total >= limit:
            break
        text = _decoded(path, most)
        if text is None:
            skipped += 1
        elif text.strip():
            documents.append(Document(name, text))
            total += len(text.encode())
    if not named:
        raise UsageError(f"corpus: there are no files in {where}.")
    if not documents:
        raise UsageError(
            f"corpus: nothing to read in {where}: of its {len(named)} file(s) {skipped} are binary, unreadable or not "
            f"UTF-8 text and {len(named) - skipped} are empty."
        )
    if total < LEAST:
        raise UsageError(
            f"corpus: {where} gives {total / 1000:,.0f} kB of text in {len(documents)} file(s); "
            f"at least {LEAST / 1000:,.0f} kB are needed to train and judge on different files."
        )
    if skipped:
        log(f"corpus: skipped {skipped} files that are not UTF-8 text or cannot be read")
    if len(documents) < FEW:
        log(f"corpus: {len(documents)} file(s) are too few to split by file, so they are cut into pieces")
        size = max(total // (5 * FEW), 1)
        documents = [
            Document(f"{d.name}#{i}", piece) for d in documents for i, piece in enumerate(_lines(d.text, size))
        ]
        documents.sort(key=lambda d: _rank(settings.seed, d.name))
    return documents, skipped


def _lines(text: str, size: int) -> list[str]:
    """A text cut at line ends into pieces of about `size` characters; a longer line is cut anywhere."""
    pieces, at = [], 0
    while at < len(text):
        end = text.rfind("\n", at, at + size) + 1 if at + size < len(text) else len(text)
        end = end or at + size
        pieces.append(text[at:end])
        at = end
    return pieces


def _shared_out(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Documents by split: each in turn goes to the split that is furthest below its share of the text so far."""
    parts: dict[str, list[Document]] = {name: [] for name in SHARES}
    have = dict.fromkeys(SHARES, 0)
    total = 0
    for d in documents:
        total += len(d.text)
        name = max(SHARES, key=lambda s: SHARES[s] * total - have[s])
        parts[name].append(d)
        have[name] += len(d.text)
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise UsageError(
            f"corpus: {len(documents)} files leave nothing for the split {', '.join(empty)}, because one of them holds "
            "most of the text; give more files, or that file alone."
        )
    return parts


def _mix(settings: CorpusSettings, train_bytes: int) -> list[str]:
    """Programs of the training mix, in proportion to its share (0.2 to 4 MB: the tokenizer needs some in any case)."""
    size = min(max(settings.mix / (1 - settings.mix) * train_bytes, LEAST), 4e6)
    rng = random.Random(f"mix/{settings.seed}")
    programs, total = [], 0
    while total < size:
        programs.append(mix_program(rng, settings.mixed()))
        total += len(programs[-1])
    return programs


# -- building ----------------------------------------------------------------------------------------------------------


@contextmanager
def _threads() -> Iterator[None]:
    """Lets `tokenizers` use its threads for a while, unless the user has decided about them.

    Afterwards they are off: a process that forks once they have been used could wait for them for ever.
    """
    name = "TOKENIZERS_PARALLELISM"
    given = os.environ.get(name)
    try:
        os.environ.setdefault(name, "true")
        yield
    finally:
        os.environ[name] = given or "false"


def _trained(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Byte-level BPE over the pieces of PIECES; id 0 is <|endoftext|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _fitting(texts: Sequence[str], settings: CorpusSettings) -> Tokenizer:
    """A tokenizer for which the mixed tasks can be asked, if its vocabulary has room for that.

    Every answer must be one token, and the members of some pairs alike in length (one pair in 32: examples are drawn
    from those). Where the texts alone do not make it so, the answers and what pairs differ in are shown to it again,
    as often as there are texts.
    """
    tokenizer = _trained(texts, settings.vocab)
    answers = {a for name in settings.mixed() for a in TASKS[name].answers}
    drawn = {name: list(itertools.islice(pairs(name, "train"), 64)) for name in settings.mixed()}

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    def alike(name: str) -> bool:
        return 32 * sum(tokens(a) == tokens(b) for a, b in drawn[name]) >= len(drawn[name])

    if all(tokens(a) == 1 for a in answers) and all(map(alike, drawn)):
        return tokenizer
    each = ((set(re.findall(PIECES, a)), set(re.findall(PIECES, b))) for of in drawn.values() for a, b in of)
    differ = {piece for a, b in each for piece in a ^ b}
    wanted = sorted(p for p in answers | differ if p.lstrip(" .") not in WORDS)
    return _trained([*texts, *wanted * len(texts)], settings.vocab)


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.uint16]:
    """END, text, END, text, ..., END as ids."""
    end = tokenizer.token_to_id(END)
    parts: list[NDArray[np.uint16]] = []
    for start in range(0, len(texts), 256):  # bounded, since an encoding holds much more than its ids
        for e in tokenizer.encode_batch_fast(texts[start : start + 256]):
            parts.append(np.array([end, *e.ids], dtype=np.uint16))
    return np.concatenate([*parts, np.array([end], dtype=np.uint16)])


def _digest(settings: CorpusSettings, splits: Mapping[str, Sequence[Document]]) -> tuple[str, dict[str, Any]]:
    """A digest of all that decides a corpus, and its files as they are listed in corpus.json."""
    listed = {
        name: [{"name": d.name, "sha256": files.sha256(d.text.encode())} for d in part] for name, part in splits.items()
    }
    decided = {
        "version": VERSION,
        # The path itself does not matter, its content does; so do the programs and not the names of their tasks.
        "settings": settings.model_dump(exclude={"source", "mix_tasks"}),
        "files": listed,
        "pieces": PIECES,
        "programs": [mix_program(random.Random(i), settings.mixed()) for i in range(32)],
    }
    return files.sha256(json.dumps(decided, sort_keys=True).encode()), listed


def build_corpus(folder: Path, settings: CorpusSettings, log: Log | None = None) -> Corpus:
    """Reads, splits and tokenises the text into `folder`, or returns the corpus that is already there.

    Refuses a source that is missing, binary, empty or too small, and a folder that holds another corpus.
    """
    say = log or (lambda _: None)
    folder = Path(folder)
    documents, skipped = _collect(settings, say)
    splits = _shared_out(documents)
    digest, listed = _digest(settings, splits)
    if (folder / "corpus.json").exists():
        have = load_corpus(folder)
        if have.digest == digest:
            return have
        raise UsageError(
            f"{folder} already holds another corpus ({_difference(have.settings, settings)}); "
            "choose another folder, or delete this one."
        )
    train = [d.text for d in splits["train"]]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds other files and no corpus; choose a new or an empty folder.")
    programs = _mix(settings, sum(map(len, train)))
    say(f"corpus: {sum(len(d.text) for d in documents) / 1e6:.1f} MB in {len(documents)} files; making the tokenizer")
    with _threads():
        tokenizer = _fitting([*train, *programs], settings)
        ids = {name: _encoded(tokenizer, [d.text for d in part]) for name, part in splits.items()}
        ids["mix"] = _encoded(tokenizer, programs)
    with files.new_folder(folder) as new:
        tokenizer.save(str(new / "tokenizer.json"), pretty=False)
        for name, values in ids.items():
            np.save(new / f"{name}.npy", values, allow_pickle=False)
        files.write_json(
            new / "corpus.json",
            {
                "format": "openwork-corpus",
                "version": VERSION,
                "digest": digest,
                "settings": settings.model_dump(),
                "python": platform.python_version(),
                "skipped_files": skipped,
                "tokens": {name: len(values) for name, values in ids.items()},
                "sha256": {p.name: files.sha256(p.read_bytes()) for p in sorted(new.iterdir())},
                "files": listed,
            },
        )
    corpus = load_corpus(folder)
    for answer in sorted({a for name in settings.mixed() for a in TASKS[name].answers}):
        corpus.token(answer)
    say("corpus: " + ", ".join(f"{n} {len(v):,} tokens" for n, v in corpus.ids.items()))
    return corpus


def _difference(have: CorpusSettings, asked: CorpusSettings) -> str:
    other = [f"{k} {v!r}, not {getattr(asked, k)!r}" for k, v in have.model_dump().items() if v != getattr(asked, k)]
    return "; ".join(other) or "the settings are the same, the files are not"


def load_corpus(folder: Path) -> Corpus:
    """The corpus in a folder; refuses a missing, damaged or newer one."""
    folder = Path(folder)
    path = folder / "corpus.json"
    if not path.exists():
        raise RunError(f"there is no corpus in {folder}: corpus.json is missing.")
    record = files.read_json(path)
    if record.get("format") != "openwork-corpus" or record.get("version") != VERSION:
        raise RunError(f"{path} is no corpus that this openwork reads (format openwork-corpus, version {VERSION}).")
    try:
        settings = CorpusSettings(**record["settings"])
        digests = dict(record["sha256"])
        digest = str(record["digest"])
        for name in ("tokenizer.json", *(f"{s}.npy" for s in SPLITS)):
            files.check_sha256(folder / name, files.read_bytes(folder / name), digests[name])
    except (KeyError, TypeError, ValidationError) as e:
        raise RunError(f"{path} is damaged: {' '.join(str(e).split())}.") from e
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = {s: np.load(folder / f"{s}.npy", mmap_mode="r", allow_pickle=False) for s in SPLITS}
    return Corpus(folder, settings, tokenizer, ids, digest)


# -- using -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenised text in a folder.

    ids     split ("train", "discover", "verify", "explain", "mix") -> uint16 [tokens], memory-mapped
    digest  SHA-256 over settings, files and code version: two corpora with the same digest are the same
    """

    folder: Path
    settings: CorpusSettings
    tokenizer: Tokenizer
    ids: Mapping[str, NDArray[np.uint16]]
    digest: str

    @property
    def vocab(self) -> int:
        """Number of tokens; with little text it may be less than asked for."""
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; <|endoftext|> in it becomes that token."""
        return self.tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some token ids, <|endoftext|> included; bytes that are no UTF-8 show as a replacement sign."""
        return self.tokenizer.decode(list(map(int, ids)), skip_special_tokens=False)

    def token(self, text: str) -> int:
        """The id of a text that is a single token; refuses any other text and shows its tokens."""
        ids = self.encode(text)
        if len(ids) != 1:
            shown = ", ".join(repr(self.decode([i])) for i in ids) or "nothing"
            raise UsageError(
                f"{text!r} is not a single token of this corpus but {len(ids)}: {shown}. "
                f"The vocab is {self.vocab}; a larger one has longer tokens."
            )
        return ids[0]

    def part(self, split: str) -> NDArray[np.uint16]:
        """The ids of a split; refuses an unknown one."""
        if split not in self.ids:
            raise unknown("split of the corpus", split, self.ids)
        return self.ids[split]

    def _rows(self, split: str, starts: NDArray[Any], n_ctx: int) -> NDArray[np.int64]:
        """The windows [n, n_ctx + 1] of a split that begin at `starts`."""
        return np.asarray(self.ids[split][starts[:, None] + np.arange(n_ctx + 1)], dtype=np.int64)

    def _room(self, split: str, n_ctx: int) -> int:
        """Number of places where a window may begin."""
        room = len(self.part(split)) - n_ctx
        if room < 1:
            raise UsageError(
                f'corpus: split "{split}" has {len(self.part(split)):,} tokens, too few for windows of {n_ctx}; '
                "give more text or a shorter n_ctx."
            )
        return room

    @cached_property
    def _programs(self) -> NDArray[np.int64]:
        """Where the programs of the mix begin: at their <|endoftext|>."""
        return np.flatnonzero(self.ids["mix"] == self.tokenizer.token_to_id(END))

    def batch(self, step: int, batch: int, n_ctx: int, seed: int) -> Tensor:
        """Training windows int64 [batch, n_ctx + 1], a pure function of (seed, step).

        The first round(mix * batch) rows come from the mix and begin at the start of a program, as prompts of tasks
        do; the others are real text of "train" from anywhere.
        """
        rng = np.random.default_rng([seed, step])
        mixed = round(self.settings.mix * batch)
        programs = self._programs[self._programs < self._room("mix", n_ctx)]
        rows = [
            self._rows("mix", programs[rng.integers(0, len(programs), mixed)], n_ctx),
            self._rows("train", rng.integers(0, self._room("train", n_ctx), batch - mixed), n_ctx),
        ]
        return torch.from_numpy(np.concatenate(rows))

    def windows(self, split: str, n: int, n_ctx: int, seed: int = 0) -> Tensor:
        """Fixed windows int64 [n, n_ctx + 1] of a split: a random choice that does not overlap while there is room."""
        room = self._room(split, n_ctx)
        blocks = np.arange(0, room, n_ctx)
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        starts = rng.permutation(blocks)[:n] if len(blocks) >= n else rng.integers(0, room, n)
        return torch.from_numpy(self._rows(split, starts, n_ctx))

    def bigram_logits(self, smooth: float = 30.0) -> Tensor:
        """Log probability [V, V] of the next token (column) after a token (row), counted on train and mix.

        The two are weighted as training weights them. Each row is smoothed by `smooth` counts shared out like the
        tokens in general, those by one count over all tokens.
        """
        v = self.vocab
        pairs = np.zeros(v * v)
        total = len(self.ids["train"])
        for split, share in (("train", 1 - self.settings.mix), ("mix", self.settings.mix)):
            ids = self.ids[split].astype(np.int64)
            pairs += np.bincount(ids[:-1] * v + ids[1:], minlength=v * v) * (share * total / (len(ids) - 1))
        counts = pairs.reshape(v, v)
        general = (counts.sum(0) + 1) / (counts.sum() + v)
        smoothed = (counts + smooth * general) / (counts.sum(1, keepdims=True) + smooth)
        return torch.from_numpy(np.log(smoothed)).float()


@dataclass(frozen=True)
class LanguageData:
    """Training data of a language model: windows of a corpus and the token after each position.

    held_out_tokens   how much of a split is looked at to judge a model
    """

    corpus: Corpus
    n_ctx: int
    size: int
    seed: int = 0
    held_out_tokens: int = 32_768

    def batch(self, step: int) -> tuple[Inputs, Tensor]:
        """(tokens [B, T],) and targets [B, T]; a pure function of (seed, step)."""
        w = self.corpus.batch(step, self.size, self.n_ctx, self.seed)
        return (w[:, :-1],), w[:, 1:]

    def held_out(self, split: str) -> Iterable[tuple[Inputs, Tensor]]:
        """Fixed batches of real text of a split."""
        w = self.corpus.windows(split, max(1, self.held_out_tokens // self.n_ctx), self.n_ctx)
        return [((rows[:, :-1],), rows[:, 1:]) for rows in w.split(self.size)]
