"""A circuit of a run as a Python file: made, written, run on examples it was not made on, and kept as an explanation.

The same program is written in C beside it (see `explain.programs.emit_c`), which reads token ids where the Python reads
text.

The program is made from the circuit's weights and the inputs of the discover split (see `explain.programs.simplify`).
Then the written file itself decides the examples of the verify and ood splits, in a process of its own, and is compared
with the circuit and with the whole model. Text and figures become an `Explanation` of the circuit, the program and its
key program.json in the circuit's folder.

Knows run folders, and how a kind of model becomes a program. Does not know what a pass does.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openwork import patching, store
from openwork.circuit import Circuit, Evidence, Explanation
from openwork.errors import RunError, UsageError
from openwork.explain.decided import evidence_of
from openwork.explain.programs import program as programs
from openwork.explain.programs.emit_c import emit_c
from openwork.explain.programs.emit_python import emit_python, quoted
from openwork.explain.programs.lower_transformer import lower_transformer
from openwork.explain.programs.names import readable
from openwork.explain.programs.program import Array, Ids, Program
from openwork.explain.programs.simplify import VERSION, Among, Judge, Pool, pool_of, simplified
from openwork.models.transformer import Transformer
from openwork.runs import Run, circuit_folder, keep, key_of, open_run
from openwork.tasks.task import Split, Task
from openwork.workers import report

Result = dict[str, Any]
Mask = NDArray[np.bool_]
AUTHOR = "openwork decompile"
FLOOR = 0.99  # of the decisions that the program has to share with the circuit
AS_MODEL = 0.97  # of those that it should share with the whole model
CURVE = (0.99, 0.98, 0.95)  # floors of the curve of length against agreement
CURVE_OF_MANY = (0.7,)  # of tasks whose answers differ from example to example: each program takes minutes
EXACT = 1e-3  # logits of a program that leaves nothing out are this close to the circuit's
DETAILS = ("circuit_as_model", "accuracy", "circuit_accuracy", "model_accuracy")
PATIENCE = 300  # seconds that a written file may take over one split


@dataclass(frozen=True, eq=False)
class _Asked:
    """A circuit, its task, and how tokens and answers read."""

    run: Run
    folder: Path
    circuit: Circuit
    task: Task
    reference: patching.Reference
    ids: tuple[int, ...]
    words: tuple[str, ...]
    choosing: bool  # other answers compete from example to example

    def among(self, split: Split) -> Mask | None:
        """Which answers compete in each example [N, A]; None where all do in all examples of the task."""
        return among_of(split, self.ids) if self.choosing else None

    def logits(self, split: Split, circuit: Circuit | None) -> Array:
        """The answers' logits [N, A] of the circuit (or the whole model)."""
        model = self.run.model
        runner = model if circuit is None else patching.compact(model, circuit, self.reference)
        with torch.no_grad():
            return runner(*split.inputs)[:, list(self.ids)].double().numpy()

    def decisions(self, split: Split, circuit: Circuit | None) -> Ids:
        """Which answer the circuit (or the whole model) gives, by its place among the answers: [N]."""
        return programs.decisions(self.logits(split, circuit), self.among(split))

    def texts(self, split: Split) -> list[list[str]]:
        """The tokens of each example up to the position asked."""
        tokens, at = split.inputs
        rows = zip(tokens.tolist(), at.tolist(), strict=True)
        return [[self.words[t] for t in row[: end + 1]] for row, end in rows]


def decompile_circuit(path: Path, name: str, out: Path, floor: float = FLOOR, simplify: bool = False) -> Result:
    """Writes a circuit of a run as a Python file and tests the file (a job).

    out       the file to write
    floor     share of the discover split's decisions, and of texts made from it, that the program must share with the
              circuit
    simplify  also make a program for each of the floors of `CURVE` (`CURVE_OF_MANY` where answers differ from example
              to example), and tell how long each is and how well it agrees

    UsageError for a model that cannot be decompiled, and for a reference that differs by example.
    """
    if out.suffix != ".py":
        raise UsageError(f"--out {out}: the program is written as Python, so name a file that ends in .py.")
    asked = _asked(path, name)
    discover = asked.task.split("discover")
    tokens, at = (x.numpy().astype(np.int64) for x in discover.inputs)
    assert isinstance(asked.run.model, Transformer)
    texts = [asked.words[i] for i in asked.ids]
    longest = min(asked.run.model.config.n_ctx, 2 * (int(at.max()) + 1))  # what lies beyond is as the last place
    exact = lower_transformer(asked.run.model, asked.circuit, asked.reference, asked.ids, texts, longest)
    _check_exact(asked, exact, discover)
    competing = None
    if asked.choosing:
        competing = Among(among_of(discover, asked.ids), np.array(asked.ids, dtype=np.int64))
    pool = pool_of(tokens, at, kinds_of(asked.words), longest, among=competing)
    curve = CURVE_OF_MANY if asked.choosing else CURVE
    floors = sorted({floor, *(curve if simplify else ())}, reverse=True)
    sha256 = store.read_json(asked.folder / "circuit.json")["sha256"]
    key = key_of(asked.run.digest, sha256, asked.task.digest(), VERSION)
    at_hand = _made_before(asked.folder, key)
    made: dict[float, Program] = {}
    for k, f in enumerate(floors):
        if f"{f:g}" in at_hand:
            made[f] = programs.from_dict(at_hand[f"{f:g}"])
            continue
        label = f"decompile {asked.folder.name}" + (f" at {f:.1%}" if len(floors) > 1 else "")
        short = simplified(exact, pool, f, lambda _stage, done, of, label=label: report(label, done, of))
        made[f] = readable(programs.words_of(short, asked.words.__getitem__), _labels(asked.circuit))
        report("decompile: floors", k + 1, len(floors))
    rows = [_row(asked, f, made[f], exact, pool) for f in floors]
    mine = rows[floors.index(floor)]
    text, evidence = _written(asked, made[floor], floor, out)
    twin = out.with_suffix(".c")
    about = f"{asked.task.name}: {asked.task.about}. The C twin of {out.name}."
    store.write_text(twin, emit_c(made[floor], about, asked.choosing))
    explanation = Explanation(asked.folder.name, AUTHOR, f"runs as {out.name}: see its head", text, tuple(evidence))
    others = tuple(x for x in asked.circuit.explanations if x.author != AUTHOR)
    stored = {f"{f:g}": programs.to_dict(p) for f, p in made.items()}
    beside = {"key": key, "file": out.name, "floor": floor, "curve": rows, "programs": {**at_hand, **stored}}
    keep(asked.folder, replace(asked.circuit, explanations=(*others, explanation)), {"program.json": beside})
    told: Result = {"run": str(path), "circuit": asked.folder.name, "task": asked.task.name, "file": str(out)}
    told["c_file"] = str(twin)
    told |= {k: mine[k] for k in ("lines", "steps", "constants", "tokens")}
    told["evidence"] = [vars(e) | {"details": dict(e.details)} for e in evidence]
    return told | ({"curve": rows} if simplify else {}) | _advice(asked, discover)


def _asked(path: Path, name: str) -> _Asked:
    """The circuit that is asked for; refuses what cannot be decompiled."""
    run = open_run(path)
    folder = circuit_folder(run, name)
    result = store.read_json(folder / "result.json")
    circuit = store.load_circuit(folder, run.digest)
    decode = run.subject.decode()
    if not isinstance(run.model, Transformer) or decode is None or result.get("granularity", "weights") != "weights":
        raise UsageError(
            f"{folder.name} is a circuit of {_kind(run, result)}; a transformer's circuit of single weights, on text, "
            "can be decompiled."
        )
    kind = result.get("reference", "mean")
    if kind not in ("mean", "zero"):
        raise UsageError(
            f"{folder.name} was found under the reference {kind}, which differs by example, so no program has it at "
            "hand; find a circuit with --reference mean or zero."
        )
    reference = run.reference if kind == "mean" else patching.zero_reference(run.model)
    task = run.task(circuit.origin.get("task", result["task"]))
    splits = [s for n, s in task.splits.items() if n != "explain"]
    ids = answers_of(splits)
    choosing = not all(among_of(s, ids).all() for s in splits)
    return _Asked(run, folder, circuit, task, reference, ids, unique_words(decode, run.model.config.vocab), choosing)


def _advice(asked: _Asked, split: Split) -> dict[str, str]:
    """What to do where a circuit is less like the model than its program should be; by the split it was found on."""
    alike = float((asked.decisions(split, asked.circuit) == asked.decisions(split, None)).mean())
    if alike >= AS_MODEL:
        return {}
    target = asked.circuit.origin.get("settings", {}).get("target")
    command = f"openwork discover {asked.run.path} --task {asked.task.name} --method {asked.circuit.origin['method']}"
    advice = (
        f"The circuit itself decides as the model on {alike:.1%} of the {split.name} split, and its program is seldom "
        "more like the model than that."
    )
    if not target:
        return {"advice": advice}
    lower = "One found for a lower loss may be more alike, if the model is right where the circuit is not."
    return {"advice": f"{advice} {lower}", "next": f"{command} --target {target / 3:.2g}"}


def _kind(run: Run, result: Mapping[str, Any]) -> str:
    if result.get("granularity", "weights") != "weights":
        return "whole heads and layers"
    return "a model of vectors" if run.subject.decode() is None else f"a {type(run.model).__name__}"


def answers_of(splits: Sequence[Split]) -> tuple[int, ...]:
    """The output indices that compete in any example, in order."""
    return tuple(sorted({int(i) for s in splits for i in torch.cat([s.answer, s.wrong.flatten()]).unique()}))


def among_of(split: Split, ids: Sequence[int]) -> Mask:
    """Which of the answers compete in each example: [N, A]; `ids` are the answers' output indices, in order."""
    competing = torch.cat([split.answer[:, None], split.wrong], 1)
    return (competing[:, :, None] == torch.tensor(ids)).any(1).numpy()


def unique_words(decode: Callable[[int], str], vocab: int) -> tuple[str, ...]:
    """The text of every token id; ids that share a text (bytes that are no character) read <id>."""
    texts = [decode(i) for i in range(vocab)]
    count: dict[str, int] = {}
    for t in texts:
        count[t] = count.get(t, 0) + 1
    return tuple(t if count[t] == 1 else f"<{i}>" for i, t in enumerate(texts))


def kinds_of(words: Sequence[str]) -> Ids:
    """A number per token: words that could stand for one another share one (see `programs.simplify.pool_of`)."""
    forms = ("[A-Za-z_]+", " [A-Za-z_]+", "[0-9]+", " [0-9]+")
    found = [[k for k, form in enumerate(forms, 1) if re.fullmatch(form, w)] for w in words]
    return np.array([k[0] if k else 0 for k in found], dtype=np.int64)


def _labels(circuit: Circuit) -> dict[str, str]:
    """Nodes that have an explanation in a few words."""
    return {x.subject: x.text for x in circuit.explanations if ":" in x.subject and 0 < len(x.text.split()) <= 4}


def _check_exact(asked: _Asked, exact: Program, split: Split) -> None:
    layout = patching.compact(asked.run.model, asked.circuit, asked.reference)
    with torch.no_grad():
        wanted = layout(*split.inputs)[:, list(asked.ids)].double().numpy()
    off = float(np.abs(programs.run(exact, *(x.numpy() for x in split.inputs)) - wanted).max())
    if not off < EXACT:
        raise RunError(f"the circuit as a program is off by {off:.2g} from the circuit before anything is left out.")


def _made_before(folder: Path, key: str) -> dict[str, Any]:
    """The programs, by floor, that an earlier call made of the same circuit and examples."""
    at = folder / "program.json"
    have = store.read_json(at) if at.exists() else {}
    return have.get("programs", {}) if have.get("key") == key else {}


def _row(asked: _Asked, floor: float, program: Program, exact: Program, pool: Pool) -> Result:
    """How long a program is and how well it agrees: on what it was made on, and on every split of the three."""
    size = programs.size(program)
    row: Result = {"floor": floor, "lines": emit_python(program, ["."]).count("\n")}
    row |= {"steps": size.steps, "constants": size.constants, "tokens": size.tokens}
    row["pool"] = Judge(exact, pool).share(programs.Trace(program, pool.tokens, pool.at))
    for name in ("discover", "verify", "ood"):
        split = asked.task.splits.get(name)
        if split is not None and len(split):
            mine = programs.decisions(programs.run(program, *(x.numpy() for x in split.inputs)), asked.among(split))
            row[f"{name}_circuit"] = float((mine == asked.decisions(split, asked.circuit)).mean())
            row[f"{name}_model"] = float((mine == asked.decisions(split, None)).mean())
    return row


# -- the file --------------------------------------------------------------------------------------------------------


def _written(asked: _Asked, program: Program, floor: float, out: Path) -> tuple[str, list[Evidence]]:
    """Writes the file, its figures at its head; the figures are those of the file as it then stands."""
    with tempfile.TemporaryDirectory() as temp:
        draft = Path(temp) / "draft.py"
        draft.write_text(emit_python(program, ["A draft."], asked.choosing), encoding="utf-8")
        evidence = _tested(asked, draft, floor)
    text = emit_python(program, _head(asked, evidence), asked.choosing)
    store.write_text(out, text)
    final = _tested(asked, out, floor)
    same = [(e.value, e.n) for e in evidence] == [(e.value, e.n) for e in final]
    if not same:
        raise RunError(f"{out} does not decide as its own draft did.")
    return text, final


def run_file(file: Path, texts: Sequence[Sequence[str]], among: Sequence[Sequence[str]] | None = None) -> list[str]:
    """What a written file answers to each list of tokens, in a process of its own. RunError where it cannot be run.

    among  per text, the answers that compete; the file has to know of such
    """
    asked: list[Any] = [list(t) for t in texts]
    if among is not None:
        asked = [{"tokens": t, "among": list(a)} for t, a in zip(asked, among, strict=True)]
    lines = "".join(json.dumps(x) + "\n" for x in asked)
    command = [sys.executable, "-I", str(file)]
    try:
        done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as e:
        raise RunError(f"{file} did not answer {len(texts)} examples within {PATIENCE} seconds.") from e
    if done.returncode != 0:
        raise RunError(f"{file} does not run: {done.stderr.strip().rsplit(chr(10), 1)[-1]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _tested(asked: _Asked, file: Path, floor: float) -> list[Evidence]:
    """The file's decisions beside those of the circuit and of the whole model, split by split."""
    out = []
    place = {asked.words[i]: k for k, i in enumerate(asked.ids)}
    for name in ("verify", "ood"):
        split = asked.task.splits.get(name)
        if split is None or not len(split):
            continue
        began = time.perf_counter()
        among = asked.among(split)
        offered = None
        if among is not None:
            offered = [[asked.words[asked.ids[k]] for k in np.flatnonzero(row)] for row in among]
        mine = np.array([place[a] for a in run_file(file, asked.texts(split), offered)], dtype=np.int64)
        seconds = time.perf_counter() - began
        circuit, model = asked.decisions(split, asked.circuit), asked.decisions(split, None)
        wide = _among_all(asked, file, split, place) if asked.choosing else {}
        right = np.array([asked.ids.index(a) for a in split.answer.tolist()], dtype=np.int64)
        shares = (circuit == model, mine == right, circuit == right, model == right)
        details = {k: float(x.mean()) for k, x in zip(DETAILS, shares, strict=True)} | wide
        for what, theirs, wanted in (("circuit", circuit, floor), ("model", model, AS_MODEL)):
            places = None if among is None else among.cumsum(1)[np.arange(len(theirs)), theirs]
            out.append(_agreement(what, mine, theirs, wanted, split, seconds, details, places))
    return out


def _among_all(asked: _Asked, file: Path, split: Split, place: Mapping[str, int]) -> dict[str, float]:
    """How often the file decides as the circuit and as the model where all answers of the task compete.

    Two candidates of which one alone stands in the text can be told apart by that; among all answers they cannot.
    """
    mine = np.array([place[a] for a in run_file(file, asked.texts(split))], dtype=np.int64)
    theirs = {whose: asked.logits(split, c).argmax(1) for whose, c in (("circuit", asked.circuit), ("model", None))}
    out = {f"among_all_as_{whose}": float((mine == x).mean()) for whose, x in theirs.items()}
    return out | {"among_all_circuit_as_model": float((theirs["circuit"] == theirs["model"]).mean())}


def _agreement(
    what: str,
    mine: Ids,
    theirs: Ids,
    wanted: float,
    split: Split,
    seconds: float,
    details: Mapping[str, float],
    places: Ids | None,
) -> Evidence:
    """That the program decides as the circuit (or the model) does (see `decided.evidence_of`), with the circuit's own
    agreement beside it."""
    e = evidence_of("program", what, mine, theirs, wanted, split, seconds, places)
    own = f"; the circuit itself decides as the model on {details['circuit_as_model']:.1%}." if what == "model" else "."
    return replace(e, sentence=e.sentence.removesuffix(".") + own, details=dict(details))


def _head(asked: _Asked, evidence: Sequence[Evidence]) -> list[str]:
    """The docstring of the file: what it decides, where it comes from, how well it agrees."""
    origin, answers = asked.circuit.origin, " or ".join(quoted(asked.words[i]) for i in asked.ids)
    if asked.choosing:
        answers = f"of those of {len(asked.ids)} words that compete"
    lines = [f"{asked.task.name}: {asked.task.about[:1].upper()}{asked.task.about[1:]}".rstrip(".") + ".", ""]
    lines += [f"Decides which token comes next, {answers}, as a circuit of a trained network does."]
    lines += ["Every number comes from the network's weights; written by openwork decompile.", ""]
    found = f"{origin.get('method', 'unknown')} on the {origin.get('split', 'discover')} split"
    lines += [f"    circuit    {asked.folder.name}, found by {found}"]
    lines += [f"    model      {asked.run.digest[:16]}; everything outside the circuit: {origin.get('reference', '?')}"]
    for e in evidence:
        if e.claim.startswith("program_decides_as_circuit"):
            model = next(x for x in evidence if x.split == e.split and x is not e)
            own, right, circuit_right, model_right = (e.details[k] for k in DETAILS)
            lines += [f"    {e.split:<11}{e.n} examples: as the circuit {e.value:.1%}, as the model {model.value:.1%}"]
            lines[-1] += f" (the circuit: {own:.1%})"
            lines += [f"{'':15}right {right:.1%}, circuit {circuit_right:.1%}, model {model_right:.1%}"]
            if asked.choosing:
                wide = [model.details[f"among_all_{k}"] for k in ("as_circuit", "as_model", "circuit_as_model")]
                lines += [
                    f"{'':15}among all {len(asked.ids)}: as the circuit {wide[0]:.1%}, as the model {wide[1]:.1%}"
                ]
                lines[-1] += f" (the circuit: {wide[2]:.1%})"
    return [line.replace("\\", "\\\\").replace('"""', '\\"\\"\\"') for line in lines]


__all__ = [
    "AS_MODEL",
    "AUTHOR",
    "CURVE",
    "FLOOR",
    "among_of",
    "answers_of",
    "decompile_circuit",
    "kinds_of",
    "run_file",
]
