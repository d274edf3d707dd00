"""Models and tasks of a user's own, named as `module:function` and imported from the current folder.

The function takes no arguments. For a model it returns a trained `nn.Module` that declares `graph()`; for a task it
returns a `Task`; for a method it is `(run, split) -> Scores | Circuit`. A run folder remembers names and the digest of
the weights, never code or where the code lies: only files below the folder in which a command is given are imported.

Knows how to import, and what a model owes us. Does not know what the model is.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openwork import files, patching, store
from openwork.circuit import Circuit
from openwork.errors import OpenworkError, RunError, UsageError, several, unknown
from openwork.graph import Graph
from openwork.tasks.task import Inputs, Task
from openwork.threads import one_thread

SUBJECT = "own"
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
        raise UsageError(f'the {what} "{name}": importing {module} failed with {type(e).__name__}: {e}.') from e
    if not hasattr(loaded, function):
        raise unknown(f"function in {module}", function, [n for n, v in vars(loaded).items() if callable(v)])
    got = getattr(loaded, function)
    if not callable(got):
        raise UsageError(f'the {what} "{name}" is a {type(got).__name__}, not a function.')
    return got


def _made(name: str, what: str, wanted: type, words: str) -> Any:
    try:
        with torch.enable_grad(), one_thread():  # it may train, and has to come to the same weights in every process
            value = imported(name, what)()
    except OpenworkError:
        raise
    except Exception as e:
        raise UsageError(f'the {what} "{name}" failed with {type(e).__name__}: {e}.') from e
    if not isinstance(value, wanted):
        raise UsageError(f'the {what} "{name}" returned a {type(value).__name__}; expected {words}.')
    return value


def own_task(name: str) -> Task:
    """The task that a function returns."""
    return _made(name, "task", Task, "an openwork.Task")


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
    model, examples = own_model(function), own_task(task).split("discover")
    problems = list(faults(model, tuple(x[:8] for x in examples.inputs)))
    if not problems:
        width = int(model(*examples.inputs).shape[-1])
        highest = int(max(examples.answer.max(), examples.wrong.max()))
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


def faults(model: nn.Module, inputs: Inputs) -> Iterator[str]:
    """What is wrong with the graph that a model declares, seen on a few inputs; nothing where all books balance."""
    try:
        graph = patching.graph_of(model)
    except (OpenworkError, AssertionError) as e:
        yield f"{e}"
        return
    if not isinstance(graph, Graph):
        yield f"graph() returned a {type(graph).__name__}; expected an openwork.Graph."
        return
    missing = list(_missing(model, graph))
    yield from missing
    if missing:
        return
    with torch.no_grad():
        whole = model(*inputs)
        if not isinstance(whole, Tensor) or whole.dim() != 2 or len(whole) != len(inputs[0]):
            yield "forward does not return one row of logits per example, [B, outputs]."
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


class OwnSubject:
    """What the stages ask of a subject, for a user's own model: its tasks are functions."""

    name = SUBJECT

    def __init__(self, task: str) -> None:
        self.first = task

    def task_names(self) -> tuple[str, ...]:
        return (self.first,)

    def task(self, name: str, n: int) -> Task:
        return own_task(name)

    def training_data(self, batch: int, seed: int) -> Any:
        raise UsageError("a model of your own was trained elsewhere; there is no training data here.")

    def reference_inputs(self) -> Iterable[Inputs]:
        """The discover split of the task that the run began with."""
        yield own_task(self.first).split("discover").inputs

    def text(self, n: int) -> Tensor | None:
        """The first inputs of the explain split, where they are ids."""
        inputs = own_task(self.first).split("explain").inputs[0]
        return None if inputs.is_floating_point() else inputs[:n]

    def decode(self) -> Callable[[int], str] | None:
        return str


__all__ = ["SUBJECT", "OwnSubject", "begin_own", "faults", "imported", "own_model", "own_task"]
