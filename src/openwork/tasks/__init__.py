"""Tasks: the behaviours whose circuits are looked for, and the data that models of each subject are trained on.

SUBJECT_TASKS is the one list of task names; `make` turns a name, or a user's JSONL file, into a Task.
"""

from __future__ import annotations

from pathlib import Path

from openwork.errors import UsageError, unknown
from openwork.tasks.corpus import Corpus, CorpusSettings, LanguageData, build_corpus, load_corpus
from openwork.tasks.images import DIGIT_TASKS, DigitsData, digits_data, make_digit_task
from openwork.tasks.jsonl import read_jsonl_task
from openwork.tasks.python_code import TASKS, make_task
from openwork.tasks.task import Split, Task, correct, losses

SUBJECT_TASKS: dict[str, tuple[str, ...]] = {"python": tuple(TASKS), "digits": tuple(DIGIT_TASKS)}


def make(name: str, corpus: Corpus | None = None, n: int = 256, n_ctx: int | None = None) -> Task:
    """The task of that name, or of a user's file whose name ends in .jsonl.

    corpus  tokenizer of the language model; tasks about digits need none
    n       examples per split of a python task
    n_ctx   longest prompt that the language model takes, for a user's file
    """
    if name in DIGIT_TASKS:
        return make_digit_task(name)
    if name not in TASKS and not name.endswith(".jsonl"):
        raise unknown("task", name, [*TASKS, *DIGIT_TASKS])
    if corpus is None:
        raise UsageError(f"task {name} is about text and needs a language model; this is a model of the digits.")
    return make_task(name, corpus, n) if name in TASKS else read_jsonl_task(Path(name), corpus, n_ctx)


__all__ = [
    "DIGIT_TASKS",
    "SUBJECT_TASKS",
    "TASKS",
    "Corpus",
    "CorpusSettings",
    "DigitsData",
    "LanguageData",
    "Split",
    "Task",
    "build_corpus",
    "correct",
    "digits_data",
    "load_corpus",
    "losses",
    "make",
    "make_digit_task",
    "make_task",
    "read_jsonl_task",
]
