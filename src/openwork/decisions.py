"""Why a run's model decided as it did on one input: what its circuit's logit difference is made of, what would flip it.

Opens a run and one of its circuits, reads the input that a person gives (a prompt, ids, numbers, a file's row, or an
example of the explain split), asks `explain` for the account, and adds what needs the data: the smallest change inside
their range, from the discover split and the training data, and the discover examples that pass the same way.

Knows run folders and what inputs look like. Does not know how an account is made or drawn.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openwork import store
from openwork.errors import RunError, UsageError, unknown
from openwork.explain.accounts import Accountant
from openwork.explain.accounts.decision import Explainer, Words
from openwork.explain.accounts.flips import Affine, Change, Found, flip_tokens, flip_vectors
from openwork.explain.programs.lower_perceptron import image_shape
from openwork.models import MLP
from openwork.own import guarded
from openwork.patched_run import KINDS
from openwork.patching import Inputs
from openwork.progress import Progress
from openwork.runs import Run, circuit_folder, open_run, reference_of
from openwork.tasks.python_code import END
from openwork.tasks.task import Split, Task
from openwork.views import build_why
from openwork.views.why_words import in_tables
from openwork.workers import Job, map_jobs, report

Result = dict[str, Any]
NEAREST = 5
BATCHES = 12  # parts of like length in which the data's decisions are accounted for


@dataclass(frozen=True, eq=False)
class Setting:
    """A run, one of its circuits, and the task it is of, with everything that a decision is asked with.

    found_under  the reference of the search; reference: that of the account, "mean" or "zero"
    """

    run: Run
    name: str
    found_under: str
    reference: str
    task: Task
    explainer: Explainer

    @cached_property
    def data(self) -> Split:
        """The discover split: what the search for the circuit saw."""
        return self.task.split("discover")

    @cached_property
    def profiles(self) -> tuple[Tensor, Tensor]:
        """Of every discover example what passes through each kept node [N, nodes], and the model's answer [N]."""
        rows, places, said = [], [], []
        parts = self.data.buckets(BATCHES)
        for i, (index, part) in enumerate(parts):
            first, second, _ = self.explainer.between(part.inputs, None, None)
            rows.append(self.explainer.profile(self.explainer.account(part.inputs, first, second)))
            places.append(index)
            said.append(first)
            report("compare with the data", i + 1, len(parts))
        order = torch.cat(places).argsort()
        return torch.cat(rows)[order], torch.cat(said)[order]

    @cached_property
    def span(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of every feature in the training data, [F] each."""
        low, high = None, None
        for (x,) in self.run.subject.reference_inputs():
            x = x.reshape(len(x), -1).double()
            low = x.amin(0) if low is None else torch.minimum(low, x.amin(0))
            high = x.amax(0) if high is None else torch.maximum(high, x.amax(0))
        if low is None or high is None:
            raise RunError("the run's subject has no training data, so the range of its features is not known.")
        return low, high

    def seen(self, length: int) -> list[list[int]]:
        """Of every place the tokens that the discover examples have there, in order."""
        tokens = self.data.inputs[0]
        ends = self.data.inputs[1] if len(self.data.inputs) == 2 else torch.full((len(tokens),), tokens.shape[1] - 1)
        return [tokens[ends >= p, p].unique().tolist() if p < tokens.shape[1] else [] for p in range(length)]

    def answer(self, text: str | None, flag: str) -> int | None:
        """The output that a person names: its text, or its index; None where none is named."""
        if text is None:
            return None
        names = {self.explainer.words.output(c): c for c in self.explainer.candidates.tolist()}
        for key in (text, text.strip()):
            if key in names:
                return names[key]
        stripped = {n.strip(): c for n, c in names.items()}
        if text.strip() in stripped:
            return stripped[text.strip()]
        width = int(self.explainer.whole(tuple(x[:1] for x in self.data.inputs)).shape[1])
        if text.strip().isdigit() and int(text) < width:
            return int(text)
        raise UsageError(
            f"{flag} {text}: the answers of {self.task.name} are {', '.join(map(repr, names))}; give one of them, or "
            f"the index of any of the model's {width} outputs."
        )


def open_setting(path: Path, name: str) -> Setting:
    """A run's circuit, ready to be asked about decisions; refuses circuits whose nodes are heads and MLPs."""
    run = open_run(path)
    folder = circuit_folder(run, name)
    circuit = store.load_circuit(folder, run.digest)
    result = store.read_json(folder / "result.json")
    if result.get("granularity", "weights") != "weights":
        raise UsageError(
            f"{folder.name} is a circuit of heads and MLPs; decisions are accounted for along single channels; find "
            f"one with: openwork discover {path} --task {result['task']}."
        )
    task = run.task(result["task"])
    split = task.split("discover")
    candidates = {*split.answer.tolist(), *split.wrong.flatten().tolist()}
    decode = run.subject.decode()
    is_text = decode is not None and not split.inputs[0].is_floating_point()
    words = Words(
        output=decode if is_text and decode is not None else task.said,
        token=decode if is_text else None,
        feature=_feature(run),
    )
    found = result.get("reference", "mean")
    fixed = "mean" if found in KINDS else found  # an account needs one value per node
    sent = reference_of(run, run.model, fixed)
    assert not isinstance(sent, str)
    explainer = Explainer(run.model, circuit, sent, sorted(candidates), words)
    return Setting(run, folder.name, found, fixed, task, explainer)


def _feature(run: Run) -> Callable[[int], str]:
    image = getattr(getattr(run.model, "config", None), "image", None)
    own = tuple(getattr(run.subject, "features", ()))
    if own:
        return lambda i: own[i]
    if image is None:
        image = image_shape(run.model.config.inputs, run.subject.name) if isinstance(run.model, MLP) else None
    if image is None:
        return lambda i: f"feature {i}"

    def pixel(i: int) -> str:
        channel, at = divmod(i, image[1] * image[2])
        row, column = divmod(at, image[2])
        return f"row {row}, column {column}" + (f" of channel {channel}" if image[0] > 1 else "")

    return pixel


# -- reading an input ------------------------------------------------------------------------------------------------


def read_input(setting: Setting, text: str) -> Inputs:
    """The input that `--input` names: a prompt, [token ids], numbers a,b,c or a row of a file (.npy, .csv)."""
    like = setting.data.inputs
    if like[0].is_floating_point():
        names = tuple(getattr(setting.run.subject, "features", ()))
        return (vector(text, like[0][0].numel(), names).reshape(1, *like[0].shape[1:]),)
    return sequence(setting, read_ids(setting, text))


def vocabulary(setting: Setting) -> int:
    """How many token ids the model reads."""
    config: Any = setting.run.model.config
    return config.embedding.symbols if config.kind == "mlp" else config.vocab


def sequence(setting: Setting, ids: list[int]) -> Inputs:
    """Token ids as the model takes them, its last token asked; refuses ids and lengths that it cannot read."""
    like, vocab = setting.data.inputs, vocabulary(setting)
    config: Any = setting.run.model.config
    wrong = [i for i in ids if not 0 <= i < vocab]
    if wrong:
        raise UsageError(f"token id {wrong[0]} is not below {vocab}, the size of the vocabulary.")
    if len(like) == 1 and len(ids) != like[0].shape[1]:
        raise UsageError(f"the input has {len(ids)} tokens; this model reads exactly {like[0].shape[1]}.")
    if len(like) == 2 and not 0 < len(ids) <= config.n_ctx:
        raise UsageError(f"the input has {len(ids)} tokens; this model reads 1 to {config.n_ctx}.")
    tokens = torch.tensor([ids])
    return (tokens,) if len(like) == 1 else (tokens, torch.tensor([len(ids) - 1]))


def read_ids(setting: Setting, text: str) -> list[int]:
    """Token ids of a prompt; <|endoftext|> is put before it as in the task's own prompts. `[1, 2, 3]` are ids."""
    if text.startswith("[") and text.endswith("]") and text.strip("[] ").replace(",", "").replace(" ", "").isdigit():
        return [int(i) for i in json.loads(text)]
    corpus = getattr(setting.run.subject, "corpus", None)
    if corpus is not None:
        return corpus.encode(text if text.startswith(END) else END + text)
    if setting.task.encode is not None:
        encode = guarded(setting.task.encode, setting.task.name, "tokenizer of the task")
        return encode(text if text.startswith(END) else END + text)
    assert setting.explainer.words.token is not None
    index = {setting.explainer.words.token(i).strip(): i for i in range(vocabulary(setting))}
    for word in text.split():
        if word not in index:
            raise unknown("word of this model's vocabulary", word, index)
    return [index[w] for w in text.split()]


def vector(text: str, size: int, names: Sequence[str] = ()) -> Tensor:
    """`size` float32 numbers: a,b,c or the row of a file, as in data.csv:3 (the first is 0).

    names  what they are called, where they have names; UsageError says which are expected
    """
    wanted = f"{size}: {', '.join(names)}" if names else str(size)
    name, colon, row = text.rpartition(":")
    path = Path(name if colon and row.isdigit() else text)
    try:
        if path.suffix in (".npy", ".csv"):
            values = _row(path, int(row) if colon and row.isdigit() else 0)
        else:
            values = np.array([float(v) for v in text.split(",")])
    except ValueError as e:
        raise UsageError(
            f"--input {text}: {e}; give numbers as a,b,c, or a row of a .npy or .csv file; this model reads {wanted}."
        ) from e
    if values.shape != (size,):
        raise UsageError(f"the input has {values.size} numbers; this model reads {wanted}.")
    if not bool(np.isfinite(values).all()):
        raise UsageError("the input holds numbers that are not finite; replace them first.")
    return torch.from_numpy(values.astype(np.float32))


def _row(path: Path, row: int) -> np.ndarray[Any, Any]:
    if not path.is_file():
        raise UsageError(f"there is no file {path}.")
    if path.suffix == ".npy":
        rows = np.atleast_2d(np.load(path, allow_pickle=False).astype(np.float64))
        rows = rows.reshape(len(rows), -1)
    else:
        with open(path, newline="", encoding="utf-8-sig") as f:
            lines = [line for line in csv.reader(f) if line]
        if lines and not _is_number(lines[0][0]):
            lines = lines[1:]  # names of columns
        rows = [[float(v) for v in line] for line in lines[row : row + 1]]
        if not rows:
            raise UsageError(f"{path} has {len(lines)} rows of numbers; row {row} is not one of them.")
        return np.array(rows[0])
    if row >= len(rows):
        raise UsageError(f"{path} has {len(rows)} rows, 0 to {len(rows) - 1}; row {row} is not one of them.")
    return rows[row]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# -- one decision ----------------------------------------------------------------------------------------------------


def why(
    path: Path,
    circuit: str,
    text: str | None = None,
    example: int | None = None,
    answer: str | None = None,
    against: str | None = None,
    top: int = 10,
) -> Result:
    """The reason for one decision (a job); see docs/why.md for what it holds.

    text     the input as `read_input` takes it, or else
    example  the number of an example of the explain split
    """
    setting = open_setting(path, circuit)
    if (text is None) == (example is None):
        raise UsageError("name one input: --input for your own, or --example for one of the explain split.")
    inputs, told = _example(setting, example) if example is not None else (read_input(setting, text or ""), {})
    named = setting.answer(answer, "--answer"), setting.answer(against, "--against")
    began = time.perf_counter()
    out = setting.explainer.explain(inputs, *named, top=top)
    seconds = {"account": time.perf_counter() - began}
    began = time.perf_counter()
    out["flip"] = flip(setting, inputs, out, named[1])
    seconds["flip"] = time.perf_counter() - began
    began = time.perf_counter()
    out["nearest"] = nearest(setting, inputs, out)
    seconds["nearest"] = time.perf_counter() - began
    out["input"] |= told
    head = {
        "run": str(path), "circuit": setting.name, "task": setting.task.name,
        "reference": {"account": setting.reference, "found_under": setting.found_under},
    }  # fmt: skip
    return head | out | {"seconds": seconds}


def _example(setting: Setting, number: int) -> tuple[Inputs, Result]:
    split = setting.task.split("explain")
    if not 0 <= number < len(split):
        raise UsageError(f"--example {number}: the explain split has {len(split)} examples, 0 to {len(split) - 1}.")
    one = split.take(torch.tensor([number])).tight()
    right = int(one.answer[0])
    shown = {"output": right, "text": setting.explainer.words.output(right)}
    return one.inputs, {"example": number, "text": one.texts[0], "right": shown}


def flip(setting: Setting, inputs: Inputs, account: Mapping[str, Any], against: int | None) -> Result:
    """The smallest change inside the data's range after which circuit and model decide otherwise."""
    e, d = setting.explainer, account["decision"]
    answer = d["answer"]["output"]
    rivals = [against] if against is not None else [c for c in e.candidates.tolist() if c != answer]
    for who, says, difference in (("model", d["model_says"], d["model"]), ("circuit", d["circuit_says"], d["circuit"])):
        if (says["output"] != answer) if against is None else (difference <= 0):
            return {"asked": False, "why_not": f"the {who} does not decide for {d['answer']['text']!r} here."}

    def margin(of: Callable[[Inputs], Tensor], logits_of: Callable[[Tensor], Inputs]) -> Callable[[Tensor], Tensor]:
        def measured(x: Tensor) -> Tensor:
            logits = of(logits_of(x))
            return logits[:, answer] - logits[:, rivals].amax(1)

        return measured

    if setting.explainer.is_text:
        found = _flip_tokens(setting, inputs, margin)
    else:
        found = _flip_vectors(setting, inputs, margin, answer, rivals)
    out: Result = {"asked": True, "found": found.fewest is not None, "tried": found.tried}
    for key, change in (("fewest", found.fewest), ("least", found.least)):
        if change is not None and (key == "fewest" or change is not found.fewest):
            out[key] = _told(setting, inputs, change, answer, rivals)
    return out


Margins = Callable[[Callable[[Inputs], Tensor], Callable[[Tensor], Inputs]], Callable[[Tensor], Tensor]]


def _flip_tokens(setting: Setting, inputs: Inputs, margin: Margins) -> Found:
    e = setting.explainer
    at = inputs[1] if len(inputs) == 2 else None
    length = int(at[0]) + 1 if at is not None else inputs[0].shape[1]

    def as_inputs(x: Tensor) -> Inputs:
        return (x,) if at is None else (x, at.expand(len(x)))

    return flip_tokens(
        inputs[0][0, :length], setting.seen(length), margin(e.logits, as_inputs), margin(e.whole, as_inputs),
        lambda done, total: report("try other tokens", done, total),
    )  # fmt: skip


def _flip_vectors(setting: Setting, inputs: Inputs, margin: Margins, answer: int, rivals: list[int]) -> Found:
    e, shape = setting.explainer, inputs[0].shape[1:]

    def exact(x: Tensor) -> Inputs:
        return (x.reshape(len(x), *shape),)

    def single(x: Tensor) -> Inputs:
        return (x.reshape(len(x), *shape).float(),)

    def slope(x: Tensor) -> Tensor:
        run = e.of_circuit(exact(x[None]))
        rival = rivals[int(run.logits[0, rivals].argmax())]
        gradient = run.toward(torch.tensor([answer]), torch.tensor([rival])).gradient
        site = run.inputs[0][0]
        return (gradient[site] * run.spots[site].scale)[0].flatten()

    low, high = setting.span
    return flip_vectors(
        inputs[0][0].flatten().double(), low, high, margin(e.logits, exact), margin(e.whole, single), slope,
        _affine(e.of_circuit, answer, rivals), lambda done, total: report("move features", done, total),
    )  # fmt: skip


def _affine(of: Accountant, answer: int, rivals: list[int]) -> Affine | None:
    """The circuit as a plain ReLU perceptron, where it is one."""
    layers = getattr(of, "affine", None)
    return Affine(layers, answer, torch.tensor(rivals)) if layers else None


def _told(setting: Setting, inputs: Inputs, change: Change, answer: int, rivals: list[int]) -> Result:
    e = setting.explainer
    before, length = inputs[0][0], len(change.after)
    after = (change.after[None].to(inputs[0].dtype).reshape(1, *before.shape) if not e.is_text else change.after[None],)
    after = (*after, *inputs[1:])
    whole, circuit = e.whole(after)[0], e.logits(after)[0]
    new = rivals[int(whole[rivals].argmax())]
    moves = []
    for p in change.places:
        if e.words.token is not None:
            was, now = int(before.flatten()[p]), int(change.after[p])
            moves.append({"name": f"place {p}", "place": p, "from": e.words.token(was), "to": e.words.token(now)})
        else:
            was, now = float(before.flatten()[p]), float(change.after[p])
            moves.append({"name": e.words.feature(p), "place": p, "from": was, "to": now})
    out = {
        "places": moves, "size": change.size, "answer_after": {"output": new, "text": e.words.output(new)},
        "model_margin": float(whole[answer] - whole[rivals].max()),
        "circuit_margin": float(circuit[answer] - circuit[rivals].max()),
    }  # fmt: skip
    if e.words.token is not None:
        out["text"] = "".join(e.words.token(int(t)) for t in change.after[:length])
    return out


def nearest(setting: Setting, inputs: Inputs, account: Mapping[str, Any]) -> list[Result]:
    """The discover examples whose decisions pass through the circuit's nodes most alike (cosine), with answers."""
    e, d = setting.explainer, account["decision"]
    rows, said = setting.profiles
    pair = (torch.tensor([d[k]["output"]]) for k in ("answer", "against"))
    mine = e.profile(e.account(inputs, *pair))[0]
    sizes = rows.norm(dim=1) * mine.norm()
    if not float(mine.norm()):
        return []
    cosine = torch.where(sizes > 0, (rows @ mine) / sizes, 0.0)
    out = []
    for i in torch.sort(cosine, descending=True, stable=True).indices[:NEAREST].tolist():
        right, answer = int(setting.data.answer[i]), int(said[i])
        out.append({
            "example": i, "split": setting.data.name, "cosine": float(cosine[i]), "text": setting.data.texts[i],
            "right": e.words.output(right), "model_says": e.words.output(answer),
        })  # fmt: skip
    return out


def why_run(
    path: Path,
    circuit: str,
    text: str | None = None,
    example: int | None = None,
    answer: str | None = None,
    against: str | None = None,
    top: int = 10,
    html: Path | None = None,
    in_words: bool = False,
    progress: Progress | None = None,
) -> Result:
    """The same as `why`, with progress told, a page where one is wanted, and with `in_words` tables and sentences."""
    job = Job("why", why, (path, circuit, text, example, answer, against, top))
    (result,) = map_jobs([job], 1, progress or Progress(False))
    page = {"page": str(build_why(result, html))} if html is not None else {}
    return (in_tables(result) if in_words else result) | page


__all__ = [
    "Setting", "flip", "nearest", "open_setting", "read_ids", "read_input", "sequence",
    "vector", "why", "why_run",
]  # fmt: skip
