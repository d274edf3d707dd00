"""Tasks: the behaviours whose circuits are looked for, and the data that models of each subject are trained on.

SUBJECT_TASKS lists the names of tasks by subject; `subjects` turns a name, or a user's JSONL file, into a Task.
"""

from __future__ import annotations

from openwork.tasks.corpus import Corpus, CorpusSettings, LanguageData, build_corpus, load_corpus
from openwork.tasks.images import DIGIT_TASKS, DigitsData, digits_data, make_digit_task
from openwork.tasks.jsonl import read_jsonl_task
from openwork.tasks.mnist import MNIST_TASKS
from openwork.tasks.python_code import TASKS, make_task
from openwork.tasks.subjects import SUBJECTS
from openwork.tasks.task import Split, Task, correct, losses

SUBJECT_TASKS: dict[str, tuple[str, ...]] = {name: tuple(kind.tasks) for name, kind in SUBJECTS.items()}

__all__ = [
    "DIGIT_TASKS",
    "MNIST_TASKS",
    "SUBJECTS",
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
    "make_digit_task",
    "make_task",
    "read_jsonl_task",
]
