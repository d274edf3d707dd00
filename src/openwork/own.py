"""Models and tasks of a user's own, named as `module:function` and imported from the current folder.

The function takes no arguments. For a model it returns a trained `nn.Module` that declares `graph()`; for a task it
returns a `Task`; for a method it is `(run, split) -> Scores | Circuit`. A run folder remembers names and the digest of
the weights, never code or where the code lies: only files below the folder in which a command is given are imported.

Knows how to import, and what a model owes us. Does not know what the model is.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from openwork import files, patching, store
from openwork.circuit import Circuit
from openwork.errors import OpenworkError, RunError, UsageError, several, unknown
from openwork.graph import Graph
from openwork.tasks.task import SPLITS, Inputs, Split, Task
from openwork.threads import one_thread

SUBJECT = "own"
NEEDED = ("discover", "verify")
Made = TypeVar("Made")
CLOSE = 1e-4  # two ways of computing the same logits differ by less, relative to the largest


def imported(name: str, what: str) -> Callable[..., Any]:
    """The function that `module:function` names, from a file below the current folder.

    what  what it is for, e.g. "model"; it stands in the refusals
    """
    module, colon, function = name.partition(":")
    if not (colon and module and function):
        raise UsageError(f'the {what} "{name}" is not of the form module:function, such as mynet:model.')
    here = Path.cwd().resolve()
    if str(here) not in sys.path:
        sys.path.insert(0, str(here))
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError) as e:
        raise UsageError(f'the {what} "{name}": {e}.') from e
    if found is None:
        raise UsageError(f'the {what} "{name}": there is no module {module} in {here}.')
    if not (found.has_location and found.origin and here in Path(found.origin).resolve().parents):
        raise UsageError(
            f'the {what} "{name}": {module} comes from {found.origin}, which is not below {here}; give the '
            "command in the folder of your code."
        )
    try:
        loaded = importlib.import_module(module)
    except Exception as e:
        raise UsageError(f'the {what} "{name}": importing {module} failed with {told(e)}.') from e
    if not hasattr(loaded, function):
        raise unknown(f"function in {module}", function, [n for n, v in vars(loaded).items() if callable(v)])
    got = getattr(loaded, function)
    if not callable(got):
        raise UsageError(f'the {what} "{name}" is a {type(got).__name__}, not a function.')
    return got


def guarded(call: Callable[..., Made], name: str, what: str) -> Callable[..., Made]:
    """A user's own function, whose failures are told as its own: UsageError with the line where it failed."""

    @functools.wraps(call)
    def answer(*given: Any) -> Made:
        try:
            return call(*given)
        except OpenworkError:
            raise
        except Exception as e:
            raise UsageError(f'the {what} "{name}" failed with {told(e)}.') from e

    answer.__name__ = getattr(call, "__name__", type(call).__name__)
    return answer


def told(error: Exception) -> str:
    """An error of a user's code: its kind, its words, and the file and line that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    paths = [Path(f.filename).resolve() for f in frames]
    mine = [Path.cwd().resolve() in p.parents and "site-packages" not in p.parts for p in paths]
    here = [f for f, is_mine in zip(frames, mine, strict=True) if is_mine]
    at = f" ({Path(here[-1].filename).name}, line {here[-1].lineno})" if here else ""
    return f"{type(error).__name__}: {str(error).rstrip('.')}{at}"


def _made(name: str, what: str, wanted: type, words: str) -> Any:
    try:
        with torch.enable_grad(), one_thread():  # it may train, and has to come to the same weights in every process
            value = imported(name, what)()
    except OpenworkError:
        raise
    except Exception as e:
        raise UsageError(f'the {what} "{name}" failed with {told(e)}.') from e
    if not isinstance(value, wanted):
        raise UsageError(f'the {what} "{name}" returned a {type(value).__name__}; expected {words}.')
    return value


def own_task(name: str) -> Task:
    """The task that a function returns; UsageError with every fault of its examples at once."""
    if name.endswith(".jsonl"):
        raise UsageError(
            f'the task "{name}" is a file of prompts, and a run on a model of your own has no tokenizer to read them '
            "with; name a function, module:function, that returns openwork.read_jsonl_task(path, tokenizer)."
        )
    task = _made(name, "task", Task, "an openwork.Task")
    problems = list(task_faults(task))
    if problems:
        raise several(f'the task "{name}"', problems)
    return task


def own_model(name: str, digest: str = "") -> nn.Module:
    """The model that a function returns, in evaluation mode; with a digest, refused where its weights are others."""
    model = _made(name, "model", nn.Module, "an nn.Module").eval()
    if digest and store.model_digest(model) != digest:
        raise RunError(
            f'the model "{name}" has other weights than when this run began, so its circuits do not hold for it. Let '
            "the function load stored weights, or begin a new run."
        )
    return model


def begin_own(function: str, task: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands in run.yaml and in model/config.json of a run on a user's own model.

    The model is checked on the task's examples first: UsageError with every fault of it at once.
    """
    asked, model = own_task(task), own_model(function)
    examples = asked.split("discover")
    problems = list(faults(model, tuple(x[:8] for x in examples.inputs)))
    if not problems:
        with torch.no_grad():
            width = int(model(*(x[:1] for x in examples.inputs)).shape[-1])
        highest = max(int(max(s.answer.max(), s.wrong.max())) for s in asked.splits.values() if len(s))
        if highest >= width:
            problems.append(f'the task "{task}" asks for output {highest}, but the model has {width} outputs.')
    if problems:
        raise several(f'the model "{function}"', problems)
    header = {
        "format": files.MODEL, "version": files.VERSION, "config": {"kind": SUBJECT, "function": function},
        "digest": store.model_digest(model), "sha256": "", "extra": {},
    }  # fmt: skip
    settings = {
        "kind": "run", "subject": SUBJECT, "data": "", "examples": 0, "regimes": {},
        "model": {"kind": SUBJECT, "function": function}, "task": task,
    }  # fmt: skip
    return settings, header


def task_faults(task: Task) -> Iterator[str]:
    """What is wrong with the examples of a task; nothing where they can be searched, verified and explained on."""
    for name in NEEDED:
        if name not in task.splits:
            yield f'it has no split "{name}"; discover and verify are needed, and explain for words and pages.'
        elif not len(task.splits[name]):
            yield f'its split "{name}" has no examples.'
    splits = {n: s for n, s in task.splits.items() if n in SPLITS and len(s)}
    for name, s in splits.items():
        for i, x in enumerate(s.inputs):
            if x.is_floating_point() and not bool(x.isfinite().all()):
                rows = int((~x.flatten(1).isfinite()).any(1).sum())
                yield (
                    f"split {name}: inputs[{i}] holds nan or infinity in {rows} of {len(s)} examples; fill in what is "
                    "missing first, and say so in a feature of its own."
                )
        whole = {n: x for n, x in (("answer", s.answer), ("wrong", s.wrong), ("pair", s.pair)) if x.dtype != torch.long}
        yield from (f"split {name}: {n} is {x.dtype}; expected torch.int64." for n, x in whole.items())
        if whole:
            continue
        if not s.wrong.shape[1]:
            yield f"split {name}: no example has a wrong answer; wrong is [N, m] with m at least 1."
        elif bool((s.answer < 0).any()) or bool((s.wrong < 0).any()):
            yield f"split {name}: an answer is below 0; answers are indices of outputs."
        if same := int((s.wrong == s.answer[:, None]).any(1).sum()):
            yield f"split {name}: the right answer is among the wrong ones in {same} of {len(s)} examples."
        if bool((s.pair >= len(s)).any()) or bool((s.pair < -1).any()):
            yield f"split {name}: pair holds the number of an example of this split, or -1 where it has no counterpart."
    for (a, first), (b, second) in combinations(splits.items(), 2):
        if shared := len(_rows(first) & _rows(second)):
            yield f"{shared} examples of split {a} are in split {b} too; deal all copies of an example to one split."
    x = splits["discover"].inputs[0] if "discover" in splits else None
    if task.names and x is not None:
        wanted = int(x.max()) + 1 if not x.is_floating_point() else x[0].numel()
        if len(task.names) < wanted or (x.is_floating_point() and len(task.names) > wanted):
            ids = "the text of every token id" if not x.is_floating_point() else "one name for every feature"
            yield f"names has {len(task.names)} entries; expected {ids}, {wanted} here."


def _rows(split: Split) -> set[bytes]:
    """The examples of a split as far as a model can tell them apart; of tokens, up to the position asked."""
    x = split.inputs[0].cpu().contiguous()
    if x.is_floating_point() or len(split.inputs) != 2:
        return {b"".join(p[i].cpu().contiguous().numpy().tobytes() for p in split.inputs) for i in range(len(split))}
    ends = split.inputs[1].tolist()
    return {row[: end + 1].numpy().tobytes() for row, end in zip(x, ends, strict=True)}


def faults(model: nn.Module, inputs: Inputs) -> Iterator[str]:
    """What is wrong with the graph that a model declares, seen on a few inputs; nothing where all books balance."""
    try:
        graph = patching.graph_of(model)
    except OpenworkError as e:
        yield f"{e}"
        return
    except Exception as e:
        yield f"graph() failed with {told(e)}."
        return
    if not isinstance(graph, Graph):
        yield f"graph() returned a {type(graph).__name__}; expected an openwork.Graph."
        return
    missing = list(_missing(model, graph))
    yield from missing
    if missing:
        return
    with torch.no_grad():
        try:
            whole = model(*inputs)
        except Exception as e:
            given = ", ".join(f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in inputs)
            yield f"forward fails on examples of the task ({given}) with {told(e)}."
            return
        if not isinstance(whole, Tensor) or whole.dim() != 2 or len(whole) != len(inputs[0]):
            yield "forward does not return one row of logits per example, [B, outputs]."
            return
        if whole.shape[1] > 1 and bool((whole >= 0).all()) and bool(((whole.sum(1) - 1).abs() < CLOSE).all()):
            yield "forward returns probabilities; losses are taken of logits, so leave the softmax out."
            return
        sent = patching.record(model, inputs)
        uneven = [
            f"site {s.name} has {s.size} nodes on axis {s.axis}, but its module sends {tuple(sent[s.name].shape)}."
            for s in graph.sites
            if s.name in sent and sent[s.name].is_floating_point() and sent[s.name].shape[s.axis] != s.size
        ]
        uneven += [f"site {s.name} sends nothing when the model runs." for s in graph.sites if s.name not in sent]
        yield from uneven
        if uneven:
            return
        everything = Circuit.whole(graph, patching.support(model))
        other = tuple(x.flip(0) for x in inputs)
        reference = patching.counterfactual_reference(model, other)
        for circuit, wanted, law in (
            (everything, whole, "with every edge kept the model does not give its own logits"),
            (Circuit.empty(graph), model(*other), "with every edge ablated it does not give the reference's logits"),
        ):
            with patching.patched(model, reference, None, circuit.edges):  # by edges alone: no way round them is left
                off = float((model(*inputs) - wanted).abs().max())
            if off > CLOSE * max(1.0, float(wanted.abs().max())):
                yield f"{law} (off by {off:.2g}): a link or site is missing, or joins the wrong ones."


def _missing(model: nn.Module, graph: Graph) -> Iterator[str]:
    modules = dict(model.named_modules())
    for s in graph.sites:
        if s.module and s.module not in modules:
            yield f'site {s.name} names the module "{s.module}", which the model does not have.'
    for e in graph.links:
        if e.module not in modules:
            yield f'link {e.name} names the module "{e.module}", which the model does not have.'
        elif e.kind == "weight":
            try:
                shape = tuple(patching.weight_of(modules[e.module]).shape[:2])
            except UsageError as refused:
                yield f"link {e.name}: {refused}"
                continue
            if shape != e.shape:
                yield f"link {e.name} says that it is {e.shape}; the matrix of {e.module} is {shape}."


@dataclass(frozen=True)
class OwnExamples:
    """What a user's own model is judged by: its task's answers among all outputs."""

    task: Task

    def batch(self, step: int) -> tuple[Inputs, Tensor]:
        """UsageError: the model was trained elsewhere."""
        raise UsageError("a model of your own was trained elsewhere; there is no training data here.")

    def held_out(self, split: str) -> Iterable[tuple[Inputs, Tensor]]:
        """The inputs of a split and their right outputs [N]."""
        examples = self.task.split(split)
        yield examples.inputs, examples.answer


class OwnSubject:
    """What the stages ask of a subject, for a user's own model: its tasks are functions."""

    name = SUBJECT

    def __init__(self, task: str) -> None:
        self.first = task

    @cached_property
    def _task(self) -> Task:
        """The task that the run began with."""
        return own_task(self.first)

    @property
    def _is_text(self) -> bool:
        return not self._task.split("discover").inputs[0].is_floating_point()

    @property
    def features(self) -> tuple[str, ...]:
        """What the task calls the features of a vector; () where it does not say."""
        return () if self._is_text else self._task.names

    def task_names(self) -> tuple[str, ...]:
        return (self.first,)

    def task(self, name: str, n: int) -> Task:
        return self._task if name == self.first else own_task(name)

    def training_data(self, batch: int, seed: int) -> OwnExamples:
        """No batches to train on; held out are the splits of the first task."""
        return OwnExamples(self._task)

    def reference_inputs(self) -> Iterable[Inputs]:
        """The discover split of the task that the run began with."""
        yield self._task.split("discover").inputs

    def text(self, n: int) -> Tensor | None:
        """The first inputs of the explain split, where they are ids."""
        return self._task.split("explain").inputs[0][:n] if self._is_text else None

    def decode(self) -> Callable[[int], str] | None:
        """The text of a token id where the task has names, else its number."""
        names = self._task.names if self._is_text else ()
        return lambda i: names[i] if i < len(names) else str(i)


__all__ = [
    "SUBJECT", "OwnExamples", "OwnSubject", "begin_own", "faults", "guarded", "imported", "own_model", "own_task",
    "task_faults",
]  # fmt: skip
