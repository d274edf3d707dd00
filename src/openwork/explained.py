"""Explanations of the circuits of a run: written on one split, tested on another, kept in the circuit's folder.

    RUN/circuits/X/explanations-AUTHOR.json   every explanation with its evidence, and what was left unexplained
    RUN/circuits/X/circuit.json               the same explanations, as part of the circuit

Authors see dossiers made from the explain split and nothing else: nodes first, in the order of the graph, then modules,
then the circuit, each with what was said before it. Their explanations are tested on the verify split (see `rivals`).
What was made with the same settings from the same model is not made again. Knows a run, authors and scores by name.
Does not know how an author finds its words, nor how a score is computed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from openwork import store
from openwork.circuit import Circuit, Explanation
from openwork.errors import UsageError, unknown
from openwork.explain import AUTHORS
from openwork.explain.words.card import VERSION as CARD_VERSION
from openwork.explain.words.card import clip, make_card, told
from openwork.explain.words.measure import (
    Legend,
    Measured,
    damage_elsewhere,
    is_tokens,
    measure,
    sample_of,
    unit_of,
)
from openwork.explain.words.rules import Rules, RulesJudge
from openwork.explain.words.scores import SCORES, levels, support
from openwork.explain.words.topic import Author, Dossier, Judge, Topic
from openwork.explain.words.topics import topics_of
from openwork.explain.words.wires import channel_tokens, wires_of
from openwork.files import plain
from openwork.llm_options import LLMOptions
from openwork.modules import FOLDER, load_modules
from openwork.own import guarded, imported
from openwork.rivals import DRAWS, Asked, steps, tested
from openwork.runs import GRANULARITIES, Result, Run, circuit_folder, keep, key_of, open_run, reference_of, slug_of
from openwork.tables import cell
from openwork.tasks.task import Split, Task
from openwork.views.words import mark_words
from openwork.workers import report

VERSION = 2  # of explanations-AUTHOR.json
MADE_ON, TESTED_ON = "explain", "verify"
EXAMPLES = 256  # of the verify split, on which explanations are tested
NODES = 100  # that are explained by default, those whose ablation changes most
ALPHA = 0.05
PATIENCE = {"key_env", "concurrency", "timeout", "retries", "dry_run", "price_in", "price_out"}  # change no answer
SHOWN = 160  # characters of an explanation in the table
CHANNELS = {"cifar10": 3}  # of images that are not grey


def explain_circuit(
    path: Path,
    name: str,
    author: str = "rules",
    nodes: int | None = None,
    seed: int = 0,
    llm: LLMOptions | None = None,
    dossiers: Path | None = None,
) -> Result:
    """Explains a circuit of a run (a job) and stores the tested explanations; returns what the file holds.

    author    "rules", "llm", or a function of your own as `module:function` (Dossier -> Explanation); its explanations
              are judged by their predicate, or by the function's attribute `judge` where it has one
    nodes     how many nodes are explained, those whose ablation changes most; NODES by default
    llm       the language model, for the author "llm"
    dossiers  folder to which the cards are written too, one JSON file per topic
    UsageError where the circuit has no nodes, a split has no examples, and for an unknown author.
    """
    if author != "llm" and llm is not None and llm != LLMOptions():
        raise UsageError(f"the flags --llm-... are for --author llm; the author {author} asks no language model.")
    run = open_run(path)
    folder = circuit_folder(run, name)
    found = store.read_json(folder / "result.json")
    circuit = store.load_circuit(folder, run.digest)
    task = run.task(found["task"])
    most = NODES if nodes is None else nodes
    modules = _modules(run)
    asked = None if llm is None or author != "llm" else llm.model_dump(exclude=PATIENCE)
    key = key_of(
        VERSION, CARD_VERSION, found["key"], author, asked, most, seed, task.digest(),
        None if modules is None else modules[0], *task.names,
    )  # fmt: skip
    at = folder / _file(author)
    have = store.read_json(at) if at.exists() else {}
    dry = llm is not None and llm.dry_run
    own = ":" in author  # its code may have changed
    if have.get("key") == key and dossiers is None and not dry and not own:
        return have
    began, maker = time.monotonic(), _author(author, run, llm, seed)
    for split in (MADE_ON, TESTED_ON):
        if not len(task.split(split)):
            raise UsageError(f'the task "{task.name}" has no examples in its {split} split; explanations need some.')
    topics = topics_of(circuit, folder.name, None if modules is None else modules[1])
    if not topics:
        raise UsageError(f'the circuit "{folder.name}" has no nodes: there is nothing to explain.')
    work = Work(run, task, circuit, found, folder.name, topics, most, seed)
    work.look()
    if dossiers is not None:
        for t in work.chosen:
            store.write_json(dossiers / f"{t.name.replace('/', '-').replace(':', '-')}.json", told(work.card(t, {})))
    written = work.write(maker.author)
    explanations = work.test(written, maker.judge, 0 if dry else DRAWS)
    if dry:
        return {"run": str(path), "circuit": folder.name, "author": author, "dry_run": maker.summary()}
    result = _result(work, explanations, author, key) | ({"asked": cost} if (cost := maker.summary()) else {})
    result["seconds"] = time.monotonic() - began
    by = {e.author for e in explanations}
    others = tuple(e for e in circuit.explanations if e.author not in by)
    result = plain(result)
    keep(folder, replace(circuit, explanations=(*others, *explanations)), {at.name: result})
    return result


# -- who writes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Maker:
    author: Author
    judge: Judge
    summary: Callable[[], Result]


def _author(name: str, run: Run, llm: LLMOptions | None, seed: int) -> _Maker:
    """The author of that name with its judge; `summary` tells what it cost, where it costs anything."""
    if ":" in name:
        own = imported(name, "author")
        judge = getattr(own, "judge", None)
        author = guarded(own, name, "author")
        if (many := getattr(own, "many", None)) is not None:
            author.many = guarded(many, name, "author")  # type: ignore[attr-defined]
        return _Maker(author, RulesJudge() if judge is None else guarded(judge, name, "judge of"), dict)
    if name == "rules":
        return _Maker(Rules(), RulesJudge(), dict)
    if name == "llm":
        from openwork.explain.words.llm import make_llm_author

        author, judge, ledger = make_llm_author(llm or LLMOptions(), run.path / "llm", seed)
        return _Maker(author, cast(Judge, judge), ledger.summary)
    raise unknown("author", name, AUTHORS)


# -- the work --------------------------------------------------------------------------------------------------------


class Work:
    """One circuit on its way from observations to tested explanations; tells how far it is."""

    def __init__(
        self, run: Run, task: Task, circuit: Circuit, found: Result, name: str, topics: tuple[Topic, ...],
        most: int, seed: int,
    ) -> None:  # fmt: skip
        self.run, self.task, self.circuit, self.found, self.name = run, task, circuit, found, name
        self.topics, self.most, self.seed = topics, most, seed
        self.granularity = found.get("granularity", "weights")
        self.model = GRANULARITIES[self.granularity](run.model)
        self.kind = found.get("reference", "mean")
        self.reference = reference_of(run, self.model, self.kind)
        self.examples = task.split(MADE_ON)
        self.legend = legend_of(run, self.examples)
        self.sample = sample_of(task, MADE_ON, self.legend, self._vocab())
        self.measured: Measured
        self.chosen: tuple[Topic, ...] = ()
        self.done, self.total = 0, 2 * len(topics) + steps(topics)

    def tick(self) -> None:
        """One step of the work is done."""
        self.done += 1
        report(f"explain {self.name}", self.done, max(self.total, self.done))

    def look(self) -> None:
        """Observes the topics on the explain split, and chooses those that are explained."""
        self.measured = measure(
            self.model, self.circuit, self.reference, self.topics, self.examples, self.sample, self.seed, self.tick
        )
        damage = abs(self.measured.observed.damage).mean(1)
        nodes = [k for k, t in enumerate(self.topics) if t.kind == "node"]
        kept = set(sorted(nodes, key=lambda k: -damage[k])[: self.most])
        self.chosen = tuple(t for k, t in enumerate(self.topics) if t.kind != "node" or k in kept)
        self.total = len(self.topics) + len(self.chosen) + steps(self.chosen)
        others = {n: self.run.task(n) for n in self.run.subject.task_names()}
        splits = {n: t.splits[MADE_ON] for n, t in others.items() if n != self.task.name and MADE_ON in t.splits}
        if self.kind == "counterfactual":
            splits = {n: s for n, s in splits.items() if bool((s.pair >= 0).all())}
        self.elsewhere = damage_elsewhere(self.model, self.reference, self.chosen, splits)
        self.inputs = self._said_of_inputs()

    def write(self, author: Author) -> list[Explanation]:
        """The explanations of the chosen topics: those of one site together, then modules, then the circuit."""
        labels: dict[str, str] = {}
        out: list[Explanation] = []
        levels: dict[tuple[str, str], list[Topic]] = {}
        for t in self.chosen:
            levels.setdefault((t.kind, t.nodes[0][0] if t.kind == "node" else ""), []).append(t)
        many = getattr(author, "many", None)
        for some in levels.values():
            dossiers = [self.dossier(t, labels) for t in some]
            said = many(dossiers) if many is not None else [author(d) for d in dossiers]
            for t, e in zip(some, said, strict=True):
                if not isinstance(e, Explanation):
                    raise UsageError(f"the author returned a {type(e).__name__} for {t.name}; expected an Explanation.")
                if e.subject != t.name:
                    raise UsageError(f"the author explained {e.subject} where it was asked about {t.name}.")
                labels[e.subject] = e.text
                self.tick()
            out += said
        return out

    def test(self, explanations: Sequence[Explanation], judge: Judge, draws: int) -> tuple[Explanation, ...]:
        """The explanations with evidence from the verify split, against so many draws of each null; those without
        words have none. Siblings of a topic are the other topics that are explained."""
        split = self.task.split(TESTED_ON)
        held = split.take(torch.arange(min(EXAMPLES, len(split))))
        sample = sample_of(replace(self.task, splits={TESTED_ON: held}), TESTED_ON, self.legend, self._vocab())
        asked = Asked(
            self.run, self.model, self.circuit, self.kind, self.reference, self.chosen, held, sample, self.seed,
            self.granularity, draws,
        )  # fmt: skip
        said = [e for e in explanations if e.text or e.predicate]
        found = {e.subject: e for e in tested(asked, said, judge, self.tick)} if said else {}
        return tuple(found.get(e.subject, e) for e in explanations)

    def dossier(self, t: Topic, labels: Mapping[str, str]) -> Dossier:
        """What the author of one topic sees."""
        return Dossier(told(self.card(t, labels)), self.measured.observed, t, dict(labels))

    def card(self, t: Topic, labels: Mapping[str, str]) -> Any:
        """The card of a topic, with the labels written so far."""
        outputs = self._outputs()
        place = [c.name for c in self.chosen].index(t.name)
        return make_card(
            t, self.measured, wires_of(self.model, self.circuit, t), task=self.task.name, about=self.task.about,
            answers=[outputs[a] for a in self._answers() if a < len(outputs)], outputs=outputs,
            unit=unit_of(t, self.examples, lambda i: outputs[i] if i < len(outputs) else str(i)), labels=labels,
            said_of_inputs=self.inputs, elsewhere={n: float(d[place]) for n, d in self.elsewhere.items()},
        )  # fmt: skip

    def _answers(self) -> list[int]:
        return torch.cat([self.examples.answer, self.examples.wrong.flatten()]).unique().tolist()

    def _outputs(self) -> Sequence[str]:
        """What every output is called."""
        if is_tokens(self.examples):
            return self.sample.words
        return [self.task.said(i) for s in self.circuit.graph.sites if s.kind == "output" for i in range(s.size)]

    def _vocab(self) -> int:
        """How many token ids the model knows."""
        ids = [s.size for s in self.circuit.graph.sites if s.kind == "input" and not s.module]
        ends = [s.size for s in self.circuit.graph.sites if s.kind == "output"]
        tokens = is_tokens(self.examples) and self.granularity == "weights"
        return max([*ids[:1], *(ends if self.legend.decode is not None else []), 0]) if tokens else 0

    def _said_of_inputs(self) -> dict[str, str]:
        """What is known of nodes that are no topics: embedding channels by their tokens, inputs by their names."""
        out = channel_tokens(self.model, self.circuit, self.sample.words) if self.granularity == "weights" else {}
        for s in self.circuit.graph.sites:
            if s.kind == "input" and s.size == len(self.sample.names) and self.sample.shape[2:] in ((), (1,)):
                out |= {f"{s.name}:{i}": name for i, name in enumerate(self.sample.names)}
        return out


def _file(author: str) -> str:
    return f"explanations-{slug_of(author)}.json"


def legend_of(run: Run, examples: Split) -> Legend:
    """How the examples of a run's tasks are read by a person."""
    if is_tokens(examples):
        return Legend(run.subject.decode() or str)
    name, features = run.subject.name, examples.inputs[0].flatten(1).shape[1]
    if name == "two_moons":
        return Legend(names=("x", "y"))
    if own := tuple(getattr(run.subject, "features", ())):
        return Legend(names=own)
    if examples.inputs[0].dim() == 4:
        channels, height, width = examples.inputs[0].shape[1:]
        return Legend(shape=(height, width, channels))
    colours = CHANNELS.get(name, 1)
    side = math.isqrt(features // colours)
    is_image = name in ("digits", "mnist", "cifar10") and side * side * colours == features
    return Legend(shape=(side, side, colours) if is_image else ())


def _modules(run: Run) -> tuple[str, dict[str, dict[str, torch.Tensor]]] | None:
    """The modules of the run, where it was taken apart: their key, and name -> nodes of each site."""
    have = load_modules(run.path)
    if have is None or have.get("model") != run.digest:
        return None
    parts = {}
    for c in range(int(have["k"])):
        circuit = store.load_circuit(run.path / FOLDER / str(c), run.digest)
        parts[f"module {c}"] = {s.name: circuit.nodes[s.name] for s in circuit.graph.prunable}
    return have["key"], parts


# -- what is stored and shown ----------------------------------------------------------------------------------------


def _result(work: Work, explanations: Sequence[Explanation], author: str, key: str) -> Result:
    names = [t.name for t in work.topics]
    damage = work.measured.observed.damage.mean(1)
    kinds = {t.name: t.kind for t in work.topics}
    explained = {e.subject for e in explanations}
    at = levels(explanations)
    return {
        "version": VERSION, "key": key, "run": str(work.run.path), "circuit": work.name, "task": work.task.name,
        "author": author, "model": work.run.digest, "made_on": MADE_ON, "tested_on": TESTED_ON,
        "examples": len(work.examples), "draws": DRAWS, "seed": work.seed,
        "explanations": [
            {
                "kind": kinds[e.subject], "nodes": len(work.topics[names.index(e.subject)].nodes),
                "damage": float(damage[names.index(e.subject)]), "supported": e.supported,
                **(vars(at[k]) if k in at else {"p": None, "q": None, "q_any": None}),
                **vars(e), "evidence": [vars(x) for x in e.evidence],
            }
            for k, e in enumerate(explanations)
        ],
        "unexplained": [n for n in names if n not in explained],
        "support": {c: vars(support(explanations, c)) for c in SCORES},
    }  # fmt: skip


def shown(result: Result) -> Result:
    """The result with a table and notes for a person beside its data (see `tables.show_result`)."""
    if "explanations" not in result:
        return result
    rows = []
    order = {"circuit": 0, "module": 1, "node": 2}
    for e in sorted(result["explanations"], key=lambda e: (order[e["kind"]], -abs(e["damage"] or 0))):
        row: Result = {"subject": e["subject"], "explanation": clip(e["text"] or "(none)", SHOWN), "nats": e["damage"]}
        for k, x in enumerate(e["evidence"]):
            beside = f" ({cell(x['null_value'])})" if k == 0 else ""
            row[x["claim"]] = f"{cell(x['value'])}{beside}{'' if x['verdict'] == 'holds' else '*'}"
            row |= {"p": cell(e["p"]), "q": cell(e["q"])} if k == 0 else {}
        rows.append(row | {"verdict": mark_words(e["evidence"])})
    of = result["support"]["trigger"]
    could = f" ({result['draws']} draws of a null allow none)" if of["least_p"] * of["of"] > ALPHA else ""
    notes = [
        f"{of['holds']} of {of['of']} explanations are supported: they tell where their subject is active on the "
        f"{result['tested_on']} split (trigger, AUC), better than every null.",
        f"{_false(of)} By Holm's correction {of['corrected']} could stand without even one being false{could}.",
        "p: of the null that is hardest to beat; 1 where the bar or the data are missed. q: the share of false ones at "
        "which this explanation would still be kept (Benjamini-Hochberg).",
        "nats: rise of the task loss without the subject. In parentheses the best null of the trigger; * marks a claim "
        f"that does not hold. Texts are cut at {SHOWN} characters; {_file(result['author'])} has all of them.",
    ]
    if result["unexplained"]:
        notes.append(f"{len(result['unexplained'])} nodes are unexplained (--nodes asks for more).")
    title = f"{result['circuit']}, explained by {result['author']}"
    return {**result, "title": title, "table": rows, "notes": notes}


def _false(of: Mapping[str, Any]) -> str:
    """How many of the supported explanations may be false, in a sentence."""
    if not of["holds"]:
        return "None is supported, so none of these can be false."
    share, any_share = (f"{100 * of[k]:.1f} %" for k in ("false_share", "false_share_any"))
    return (
        f"Of the {of['holds']} supported at most {share} are expected to be false ({any_share} whatever the "
        f"dependence between them); {of['kept']} have q at {ALPHA} or less."
    )


__all__ = ["NODES", "VERSION", "explain_circuit", "legend_of", "shown"]
