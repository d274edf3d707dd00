"""A subject: what a model is trained on, the tasks that can be asked of it, and the text its means are taken over.

SUBJECTS is the one list; a new subject is a class and one entry here. Knows data and tasks. Does not know models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from openwork.errors import UsageError, unknown
from openwork.tasks.algorithmic import OPERATIONS, OperationData, make_operation_task, operation
from openwork.tasks.cifar import CIFAR_TASKS, CifarData, make_cifar_task
from openwork.tasks.corpus import Corpus, LanguageData, load_corpus
from openwork.tasks.flows.flows import FlowData, flow_tasks, make_flow_task
from openwork.tasks.flows.prepared import Prepared
from openwork.tasks.flows.schema import ATTACK
from openwork.tasks.image_files import ImageFileData
from openwork.tasks.images import DIGIT_TASKS, digits_data, make_digit_task
from openwork.tasks.jsonl import read_jsonl_task
from openwork.tasks.mnist import MNIST_TASKS, MnistData, make_mnist_task
from openwork.tasks.moons import MOON_TASKS, MoonData, make_moon_task
from openwork.tasks.patterns import LONGEST, PATTERN_TASKS, WORDS, PatternData, make_pattern_task, rows
from openwork.tasks.python_code import TASKS as PYTHON_TASKS
from openwork.tasks.python_code import make_task
from openwork.tasks.symbolic import FORMULAS, IN_CONTEXT, InContextData, SymbolicData, symbolic_data
from openwork.tasks.task import Inputs, Task


class Subject(Protocol):
    """What the stages ask of a subject."""

    name: str

    def task_names(self) -> tuple[str, ...]:
        """The tasks that come with it."""
        ...

    def task(self, name: str, n: int) -> Task:
        """A task by name (or JSONL path), with up to `n` examples per split."""
        ...

    def training_data(self, batch: int, seed: int) -> Any:
        """Batches for training and for held-out loss."""
        ...

    def reference_inputs(self) -> Iterable[Inputs]:
        """Inputs of the kind the model was trained on, for the mean reference."""
        ...

    def text(self, n: int) -> Tensor | None:
        """Windows [n, T] of real text of the explain split, where the subject is text."""
        ...

    def decode(self) -> Callable[[int], str] | None:
        """Turns one token id into its text, where the subject is text."""
        ...


class PythonSubject:
    """Real Python source with generated programs mixed in."""

    name = "python"

    def __init__(self, data: Path, n_ctx: int) -> None:
        self.corpus: Corpus = load_corpus(data)
        self.n_ctx = n_ctx

    def task_names(self) -> tuple[str, ...]:
        """The tasks that the training mix exercises; the others may be asked too, where their answers are tokens."""
        return self.corpus.settings.mixed()

    def task(self, name: str, n: int) -> Task:
        if name.endswith(".jsonl"):
            return read_jsonl_task(Path(name), self.corpus, self.n_ctx)
        if name not in PYTHON_TASKS:
            raise unknown("task", name, PYTHON_TASKS)
        try:
            return make_task(name, self.corpus, n=n)
        except UsageError as e:
            if name in self.corpus.settings.mixed():
                raise
            raise UsageError(
                f"{name} is not in this run's training mix, and cannot be asked of it: {e} Train with it in the mix "
                f'(--set "corpus.mix_tasks=[all]").'
            ) from e

    def training_data(self, batch: int, seed: int) -> LanguageData:
        return LanguageData(self.corpus, self.n_ctx, batch, seed)

    def reference_inputs(self) -> Iterable[Inputs]:
        """Rows of the training mix (real text and programs in their training shares) from a seed of their own."""
        for step in range(8):
            yield (self.corpus.batch(step, 16, self.n_ctx, seed=2**31 - 1)[:, :-1],)

    def text(self, n: int) -> Tensor | None:
        return self.corpus.windows("explain", n, self.n_ctx)[:, :-1]

    def decode(self) -> Callable[[int], str] | None:
        return lambda token: self.corpus.decode([token])


class OwnDataSubject(ABC):
    """What subjects that are no text share: means that are taken over training batches, and no text."""

    @abstractmethod
    def training_data(self, batch: int, seed: int) -> Any:
        """Batches for training and for held-out loss."""

    def reference_inputs(self) -> Iterable[Inputs]:
        data = self.training_data(64, 0)
        for step in range(16):
            yield data.batch(step)[0]

    def text(self, n: int) -> Tensor | None:
        return None

    def decode(self) -> Callable[[int], str] | None:
        return None


class DigitsSubject(OwnDataSubject):
    """Scikit-learn's 8x8 images of digits."""

    name = "digits"

    def task_names(self) -> tuple[str, ...]:
        return tuple(DIGIT_TASKS)

    def task(self, name: str, n: int) -> Task:
        if name.endswith(".jsonl"):
            raise UsageError("a JSONL task is a task about text; this run was trained on images of digits.")
        if name not in DIGIT_TASKS:
            raise unknown("task", name, DIGIT_TASKS)
        return make_digit_task(name)

    def training_data(self, batch: int, seed: int) -> Any:
        return digits_data(seed, batch=batch)


class ImageFileSubject(OwnDataSubject):
    """Images in the files of a folder, which are read, or refused, at once."""

    def __init__(
        self,
        name: str,
        folder: Path,
        tasks: Mapping[str, str],
        make: Callable[[str, Path, int], Task],
        data: type[ImageFileData],
    ) -> None:
        self.name, self.folder = name, folder.resolve()
        self._tasks, self._make, self._data = tasks, make, data
        data(self.folder).images()

    def task_names(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    def task(self, name: str, n: int) -> Task:
        if name.endswith(".jsonl"):
            raise UsageError("a JSONL task is a task about text; this run was trained on images.")
        return self._make(name, self.folder, n)

    def training_data(self, batch: int, seed: int) -> ImageFileData:
        return self._data(self.folder, seed, batch)


class OperationSubject(OwnDataSubject):
    """An operation on two elements, learned from part of its table; its pairs in words are the subject's text."""

    def __init__(self, name: str, n_ctx: int) -> None:
        self.name = name
        self.operation = operation(name)
        self.sequence = n_ctx > 0  # a transformer reads a, b, =; a perceptron has no context and reads a and b

    def task_names(self) -> tuple[str, ...]:
        return (self.name,)

    def task(self, name: str, n: int) -> Task:
        if name != self.name:
            raise unknown("task", name, self.task_names())
        return make_operation_task(name, n, self.sequence)

    def training_data(self, batch: int, seed: int) -> OperationData:
        return OperationData(self.operation, seed, batch, self.sequence)

    def text(self, n: int) -> Tensor | None:
        [(inputs, _)] = self.training_data(1, 0).held_out("explain")
        return inputs[0][:n]

    def decode(self) -> Callable[[int], str] | None:
        return lambda token: (*self.operation.symbols, "=")[token]


class PatternSubject(OwnDataSubject):
    """A tiny language in which inductions, indirect objects and years that follow years are to be told."""

    name = "patterns"

    def __init__(self, n_ctx: int) -> None:
        if n_ctx < LONGEST:
            raise UsageError(
                f"patterns is a language for models that read at least {LONGEST} tokens; this one reads {n_ctx} "
                "(model.n_ctx)."
            )
        self.n_ctx = n_ctx

    def task_names(self) -> tuple[str, ...]:
        return tuple(PATTERN_TASKS)

    def task(self, name: str, n: int) -> Task:
        if name.endswith(".jsonl"):
            raise UsageError("a JSONL task is a task about Python; this run was trained on another language.")
        if name not in PATTERN_TASKS:
            raise unknown("task", name, PATTERN_TASKS)
        return make_pattern_task(name, n)

    def training_data(self, batch: int, seed: int) -> PatternData:
        return PatternData(self.n_ctx, seed, batch)

    def text(self, n: int) -> Tensor | None:
        return rows("explain", n, self.n_ctx, "text")

    def decode(self) -> Callable[[int], str] | None:
        return lambda token: f" {WORDS[token]}"


class MoonSubject(OwnDataSubject):
    """Points of two half circles in the plane."""

    name = "two_moons"

    def task_names(self) -> tuple[str, ...]:
        return tuple(MOON_TASKS)

    def task(self, name: str, n: int) -> Task:
        return make_moon_task(name, n)

    def training_data(self, batch: int, seed: int) -> MoonData:
        return MoonData()


class FlowSubject(OwnDataSubject):
    """Network flows that were prepared in a folder."""

    name = "flows"

    def __init__(self, folder: Path) -> None:
        if not (folder / "prepared.json").exists():
            raise UsageError(f"{folder} holds no prepared flows; openwork run flows prepares them.")
        self.prepared = Prepared(folder)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what a model of flows reads."""
        return self.prepared.schema.features

    def task_names(self) -> tuple[str, ...]:
        return tuple(flow_tasks(self.prepared.schema))

    def task(self, name: str, n: int) -> Task:
        if name.endswith(".jsonl"):
            raise UsageError("a JSONL task is a task about text; this run was trained on flows.")
        return make_flow_task(name, self.prepared, n)

    def training_data(self, batch: int, seed: int) -> FlowData:
        return FlowData(self.prepared, seed, batch)


class RegressionSubject(OwnDataSubject):
    """A formula, or the regression of an example in the context; values are told, not chosen, so it has no tasks."""

    def __init__(self, name: str) -> None:
        self.name = name

    def task_names(self) -> tuple[str, ...]:
        return ()

    def task(self, name: str, n: int) -> Task:
        raise UsageError(
            f"{self.name} is a regression: its models tell a value and choose no answer, so there are no tasks whose "
            "circuits could be looked for."
        )

    def training_data(self, batch: int, seed: int) -> SymbolicData | InContextData:
        return InContextData(seed, batch) if self.name == IN_CONTEXT else symbolic_data(self.name, seed)


@dataclass(frozen=True)
class SubjectKind:
    """What there is to know of a subject before it is opened.

    made_of   what its examples are, as the end of a sentence
    tasks     name -> what is asked; none where there are no answers to choose from
    data      "": it brings its own; "corpus": a corpus is built for it; "folder": the user names a folder of files;
              "flows": a flow log is prepared for it
    opener    the subject, from the folder of its data and the length of a model's context
    batches   whether a training step sees some of the data; if not, it sees all
    """

    made_of: str
    tasks: Mapping[str, str]
    data: Literal["", "corpus", "folder", "flows"]
    opener: Callable[[Path, int], Subject]
    batches: bool = True


def _image_files(
    name: str, tasks: Mapping[str, str], make: Callable[[str, Path, int], Task], data: type[ImageFileData]
) -> SubjectKind:
    return SubjectKind("images", tasks, "folder", lambda at, _n_ctx: ImageFileSubject(name, at, tasks, make, data))


def _operation(name: str) -> Callable[[Path, int], Subject]:
    return lambda _data, n_ctx: OperationSubject(name, n_ctx)


def _flows(data: Path, _n_ctx: int) -> Subject:
    return FlowSubject(data)


def _regression(name: str) -> Callable[[Path, int], Subject]:
    return lambda _data, _n_ctx: RegressionSubject(name)


SUBJECTS: dict[str, SubjectKind] = {
    "python": SubjectKind("Python source", {n: s.about for n, s in PYTHON_TASKS.items()}, "corpus", PythonSubject),
    "patterns": SubjectKind("a tiny language", PATTERN_TASKS, "", lambda _data, n_ctx: PatternSubject(n_ctx)),
    "digits": SubjectKind("images", DIGIT_TASKS, "", lambda _data, _n_ctx: DigitsSubject()),
    "mnist": _image_files("mnist", MNIST_TASKS, make_mnist_task, MnistData),
    "cifar10": _image_files("cifar10", CIFAR_TASKS, make_cifar_task, CifarData),
    **{
        name: SubjectKind("pairs of elements", {name: of.says}, "", _operation(name)) for name, of in OPERATIONS.items()
    },
    "flows": SubjectKind("network flows", {ATTACK: "tell attacks from normal flows"}, "flows", _flows),
    "two_moons": SubjectKind("points", MOON_TASKS, "", lambda _data, _n_ctx: MoonSubject(), batches=False),
    **{name: SubjectKind("numbers", {}, "", _regression(name), batches=False) for name in FORMULAS},
    IN_CONTEXT: SubjectKind("numbers", {}, "", _regression(IN_CONTEXT)),
}


def open_subject(name: str, data: Path, n_ctx: int) -> Subject:
    """The subject of that name; `data` is the folder of its corpus or of its files, where it has one."""
    if name not in SUBJECTS:
        raise unknown("subject", name, SUBJECTS)
    return SUBJECTS[name].opener(data, n_ctx)
