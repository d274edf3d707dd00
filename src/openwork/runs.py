"""A run folder and what can be done with it: train into it, discover, verify, lay out for viewing, show.

    run.yaml        what was asked: subject, model, training, seed, where the data lies
    metrics.jsonl   the curves; tensorboard/ the same for TensorBoard
    model/          config.json, model.safetensors
    layout.json     where the nodes are and the strongest edges between them, where training gave them places
    reference/      the mean of every node over the training mix (mean ablation), bound to the model's digest
    circuits/X/     circuit.json, tensors.safetensors, result.json, dossier.json, frontier.json (see `frontier`);
                    .part/ while a search is under way
    controls/X/     result.json of searches that should fail
    modules/        modules.json, and each module as a circuit: 0/, 1/, ... (see `modules`)

Every function reads its inputs from folders and writes its result whole, so each can be rerun alone, and a result that
was made with the same settings from the same model is not made again. Knows the stages by name and keeps the splits
apart: discovery is handed the discover split, verification the verify and ood splits, the page the explain split.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openwork import own, patching, store
from openwork.circuit import Circuit, Evidence
from openwork.discover import METHODS, Discovery, MaskSettings, OwnMethod, find, schema_of, trim
from openwork.errors import RunError, UsageError, unknown
from openwork.explain.dossier import build_dossier
from openwork.explain.wiring import VERSION as WIRING_VERSION
from openwork.explain.wiring import build_wiring
from openwork.files import plain, read_yaml
from openwork.frontier import nested
from openwork.keeper import FolderKeeper
from openwork.models import at_granularity, build
from openwork.own import guarded, imported
from openwork.patched_run import KINDS, PatchedRun
from openwork.settings import checked
from openwork.tasks.subjects import SUBJECTS, Subject, open_subject
from openwork.tasks.task import Split, Task, correct, losses
from openwork.training import TrainSettings, held_out_accuracy, held_out_loss, make_regime, train
from openwork.training.relocation import wire_length_of
from openwork.verify import VERIFIERS, Question, verify
from openwork.views.explanations import in_short
from openwork.workers import common, report

Result = dict[str, Any]


# -- what a run folder holds -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A trained model in its folder, with everything that is derived from it loaded when first needed."""

    path: Path
    settings: Result

    @cached_property
    def model(self) -> nn.Module:
        """The trained model, ready for evaluation."""
        if self.settings["subject"] == own.SUBJECT:
            header = store.files.read_model_header(self.path / "model")
            return own.own_model(self.settings["model"]["function"], header["digest"])
        return store.load_model(self.path / "model").eval()

    @cached_property
    def digest(self) -> str:
        """Digest of the model's weights; circuits carry it."""
        return store.model_digest(self.model)

    @cached_property
    def subject(self) -> Subject:
        """What the model was trained on."""
        if self.settings["subject"] == own.SUBJECT:
            return own.OwnSubject(self.settings["task"])
        n_ctx = int(self.settings["model"].get("n_ctx", 0))
        return open_subject(self.settings["subject"], self.path / self.settings["data"], n_ctx)

    @cached_property
    def reference(self) -> dict[str, Tensor]:
        """Mean of every node over the training mix; written once, when training ends, and kept beside the model."""
        folder = self.path / "reference"
        if (folder / "reference.json").exists() and store.read_json(folder / "reference.json")["model"] == self.digest:
            return store.read_tensors(folder / "mean.safetensors")
        means = patching.mean_reference(self.model, self.subject.reference_inputs())
        with store.new_folder(folder) as temp:
            store.write_tensors(temp / "mean.safetensors", means)
            store.write_json(temp / "reference.json", {"model": self.digest, "over": self.reference_over})
        return means

    @property
    def reference_over(self) -> str:
        """What the reference is, in words."""
        own_data = self.settings["subject"] == own.SUBJECT
        return "mean over the discover split" if own_data else "mean over the training mix"

    def task(self, name: str) -> Task:
        """A task of the run's subject, by name or as a JSONL file."""
        return self.subject.task(name, int(self.settings["examples"]))

    def circuits(self) -> list[str]:
        """Names of the circuits that were looked for here."""
        return sorted(p.parent.name for p in self.path.glob("circuits/*/result.json"))


def open_run(path: Path) -> Run:
    """The run in a folder; refuses a folder that holds none, naming what is there."""
    if not path.exists():
        near = [p.name for p in path.parent.glob("*") if (p / "run.yaml").exists()] if path.parent.exists() else []
        raise unknown("run", str(path), [str(path.parent / n) for n in near])
    if not (path / "run.yaml").exists():
        raise UsageError(f"{path} is not a run: it has no run.yaml. `openwork train --help` says how one is trained.")
    settings = read_yaml(path / "run.yaml")
    if settings.get("kind") in ("comparison", "compare", "flows"):
        parts = sorted(str(p.parent.parent.relative_to(path)) for p in path.glob("**/model/config.json"))
        names = ", ".join(parts[:8] + ["..."] * (len(parts) > 8))
        example = path / ("sparse" if "sparse" in parts or not parts else parts[0])
        raise UsageError(f"{path} compares several models ({names}); name one of them, e.g. {example}.")
    missing = [k for k in ("subject", "model", "data", "examples") if k not in settings]
    if missing:
        raise RunError(f"{path / 'run.yaml'} is damaged: it does not say {', '.join(missing)}.")
    if not (path / "model" / "config.json").exists():
        raise UsageError(f"the run in {path} is not trained yet; finish it with the command that began it.")
    run, held = Run(path, settings), common()
    if isinstance(held, Held) and held.path == path.resolve():
        vars(run).update(model=held.model, digest=held.digest, reference=held.reference)
    return run


@dataclass(frozen=True)
class Held:
    """What all workers on one run read from the same memory, instead of a copy each."""

    path: Path
    model: nn.Module
    digest: str
    reference: dict[str, Tensor]


def hold(run: Run) -> Held:
    """A run's model and reference with their storage in shared memory; for `map_jobs(in_common=...)`."""
    held = Held(run.path.resolve(), run.model.share_memory(), run.digest, run.reference)
    for t in held.reference.values():
        t.share_memory_()
    return held


REFERENCES = ("mean", "zero", *KINDS)
GRANULARITIES: dict[str, Callable[[nn.Module], nn.Module]] = {  # what counts as a node: the one place to add to
    "weights": lambda model: model,
    "components": lambda model: at_granularity(model, "components"),
}


def reference_of(run: Run, model: nn.Module, kind: str) -> patching.Reference | str:
    """What ablated nodes send: a fixed reference, or the name of a kind that belongs to the examples.

    model  the run's, at whatever granularity
    """
    if kind == "mean":
        same = model is run.model
        return run.reference if same else patching.mean_reference(model, run.subject.reference_inputs())
    if kind == "zero":
        return patching.zero_reference(model)
    if kind not in KINDS:
        raise unknown("reference", kind, REFERENCES)
    return kind


def method_of(name: str) -> str | OwnMethod:
    """A method by its name, or a user's own as `module:function`."""
    return guarded(imported(name, "method"), name, "method") if ":" in name and name not in METHODS else name


def begin_run(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes run.yaml; refuses a folder that holds data or results of a run with other settings."""
    wanted = json.loads(json.dumps(plain(settings)))
    at = path / "run.yaml"
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; --out names the folder to write.")
    names = {p.name for p in path.iterdir()} if path.exists() else set()
    if at.exists():
        have = read_yaml(at)
        changed = sorted(k for k in have.keys() | wanted.keys() if have.get(k) != wanted.get(k))
        if not changed:
            return
        if names != {"run.yaml"}:  # alone it is what a run left that was refused its data
            raise UsageError(
                f"{path} holds a run with other settings ({', '.join(changed)} differ); "
                "choose another --out or delete that folder."
            )
    elif names - {"data"}:
        raise UsageError(f"{path} is not empty and holds no run; choose another --out.")
    path.mkdir(parents=True, exist_ok=True)
    store.write_yaml(at, wanted)


def key_of(*parts: Any) -> str:
    """A short digest of settings, to tell whether a result on disk answers the same question."""
    return hashlib.sha256(json.dumps(plain(list(parts)), sort_keys=True).encode()).hexdigest()[:16]


def done(folder: Path, key: str) -> Result | None:
    """The result on disk, if it was made for this key."""
    at = folder / "result.json"
    if not at.exists():
        return None
    result = store.read_json(at)
    return result if result.get("key") == key else None


def begin_own_run(path: Path, model: str, task: str) -> None:
    """Begins a run on a user's own model, or finds it begun; refuses a folder that holds a run of something else.

    model, task  "module:function" of each (see `own`); later tasks may be others
    """
    if (path / "run.yaml").exists():
        settings = read_yaml(path / "run.yaml")
        have = settings.get("model") if settings.get("subject") == own.SUBJECT else None
        if not isinstance(have, dict) or have.get("function") != model:
            raise UsageError(f"{path} is a run of another model; give --model {model} a folder of its own.")
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} holds other files; name a new folder for the run.")
    settings, header = own.begin_own(model, task)
    with store.new_folder(path) as temp:
        store.write_yaml(temp / "run.yaml", settings)
        (temp / "model").mkdir()
        store.write_json(temp / "model" / "config.json", header)


# -- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What to train: plain data that travels to a worker and stands in run.yaml.

    subject, data   what on, and where its corpus lies (relative to the run's folder; of mnist, the user's folder)
    model           config of the model, as plain data
    training        settings of the loop, as plain data
    regimes         name -> settings of each regime, as plain data
    examples        examples per split of a task
    batch           sequences or images per step
    """

    subject: str
    data: str
    model: Result
    training: Result
    regimes: Result
    examples: int
    seed: int
    batch: int
    device: str = "cpu"

    def settings(self) -> Result:
        """What stands in run.yaml."""
        return {"kind": "run", **vars(self)}


def train_plan(path: Path, plan: Plan, name: str = "train") -> Result:
    """Trains as planned into a folder (a job); goes on from a checkpoint; returns the figures of the trained model."""
    begin_run(path, plan.settings())
    at = path / "result.json"
    if at.exists() and (path / "model" / "config.json").exists():
        return store.read_json(at)
    settings = TrainSettings(**plan.training)
    subject = open_subject(plan.subject, path / plan.data, int(plan.model.get("n_ctx", 0)))
    data = subject.training_data(plan.batch, plan.seed)
    model = build(plan.model, plan.seed)
    corpus, table = getattr(subject, "corpus", None), getattr(model, "bigram", None)
    if corpus is not None and isinstance(table, Tensor):  # the frozen table of a language model: counts, not training
        table.copy_(corpus.bigram_logits())
    regimes = tuple(make_regime(n, options) for n, options in plan.regimes.items())
    result = train(
        model, data, regimes, settings, path, plan.device,
        progress=lambda now, total, info: report(name, now, total, **info),
    )  # fmt: skip
    figures = {**plain(vars(result)), **figures_of(open_run(path), plan.device)}
    store.write_json(at, figures)
    return figures


def figures_of(run: Run, device: str = "cpu") -> Result:
    """What a trained model is judged by; also writes its reference, before several jobs want it at once."""
    links = [e for e in patching.graph_of(run.model).links if e.counts == "block"]
    kept = patching.support(run.model)
    nonzero, total = sum(int(kept[e.name].sum()) for e in links), sum(kept[e.name].numel() for e in links)
    assert run.reference
    data, model, where = run.subject.training_data(32, 0), run.model.to(device), torch.device(device)
    return {
        "verify_loss": held_out_loss(model, data, where, split="verify"),
        "verify_accuracy": held_out_accuracy(model, data, where, split="verify"),
        "block_nonzero": nonzero,
        "block_total": total,
        "block_density": nonzero / total,
    }


# -- circuits --------------------------------------------------------------------------------------------------------


def find_circuit(
    path: Path,
    task_name: str,
    method: str,
    settings: Mapping[str, Any],
    name: str = "",
    labels: str = "right",
    reference: str = "mean",
    granularity: str = "weights",
    targets: Sequence[float] = (),
) -> Result:
    """Looks for the circuit of a task in a run (a job) and writes it; returns what was found, judged held out.

    A killed search goes on from what it put away in the circuit's folder.

    method       a name, or a user's own as `module:function`
    labels       "right"; or, for controls, "shuffled" (labels that the inputs do not determine) and "swapped" (the
                 wrong answer throughout). Controls learn and choose on the same examples, which is all to their
                 advantage.
    reference    one of REFERENCES; granularity: one of GRANULARITIES
    targets      task losses for which nested circuits are made too (see `frontier`); then a task that the whole model
                 does not solve is not searched for: status "unsolved"
    """
    run, way = open_run(path), method_of(method)
    asked = schema_of(way)(**{**settings, "control": labels != "right"})
    task = run.task(task_name)
    finer = "" if granularity == "weights" else f"_{granularity}"
    slug = f"{slug_of(task_name)}-{method.rpartition(':')[2]}{finer}"
    folder = path / "circuits" / slug if labels == "right" else path / "controls" / f"{slug}-{labels}"
    other = [x for x, usual in ((reference, "mean"), (granularity, "weights")) if x != usual]
    key = key_of(run.digest, method, asked.model_dump(), labels, task.digest(), *other)
    if (have := done(folder, key)) is not None and (not targets or _frontier_of(folder, key, targets) is not None):
        return have
    if granularity not in GRANULARITIES:
        raise unknown("granularity", granularity, GRANULARITIES)
    began, cpu = time.monotonic(), time.process_time()
    empty = [s for s in ("discover", "verify") if not len(task.split(s))]
    if empty:
        raise UsageError(f'the task "{task_name}" has no examples in its {" and no ".join(empty)} split.')
    discover, verify_split = (relabelled(task.split(s), labels, asked.seed) for s in ("discover", "verify"))
    label = name or f"{path.name} {task_name}"
    model = GRANULARITIES[granularity](run.model)
    sent = reference_of(run, model, reference)
    asking = PatchedRun(model, sent, asked.seed)
    whole = asking.loss(discover)
    if targets and whole > asked.target:
        return {"task": task_name, "method": method, "status": "unsolved", "target": asked.target, "whole_loss": whole}
    keeper = FolderKeeper(folder / ".part", key)
    found: Discovery = find(model, sent, discover, way, asked, lambda now, total: report(label, now, total), keeper)
    result: Result = {
        "key": key, "task": task_name, "method": method, "labels": labels, "target": asked.target, "seed": asked.seed,
        "status": found.status, "full_loss": found.full_loss, "loss_reached": found.loss, "model": run.digest,
        "answers": 1 + discover.wrong.shape[1],
        "node_based": {"status": found.status}, "edge_pruned": {"status": found.status},
        "whole": judged(asking, None, verify_split), "search": list(found.log[-1:]), "reference": reference,
        "granularity": granularity, "circuit": slug,
        "whole_loss": whole,
    }  # fmt: skip
    circuit, beside = None, {}
    if found.circuit is not None:
        over = {"seed": asked.seed, "keeper": keeper}
        by_nodes = trim(model, found.circuit, sent, discover, asked.target, edges=False, **over)
        result["node_based"] |= judged(asking, by_nodes.circuit, verify_split) | {"discover_loss": by_nodes.loss}
        by_edges = trim(model, by_nodes.circuit, sent, discover, asked.target, **over)
        result["edge_pruned"] |= judged(asking, by_edges.circuit, verify_split) | {"discover_loss": by_edges.loss}
        result["searched"] = found.circuit.counts()
        result["one_minimal"], result["trim_runs"] = by_edges.one_minimal, by_nodes.runs + by_edges.runs
        circuit = by_edges.circuit.with_origin(
            **found.origin, model=run.digest, task=task_name, labels=labels,
            reference=run.reference_over if reference == "mean" else IN_WORDS[reference],
            trimmed="nodes, then edges", version=store.files.VERSION,
        )  # fmt: skip
        if targets:
            frontier = nested(asking, discover, verify_split, found, by_edges.circuit, asked.target, targets, keeper)
            beside["frontier.json"] = {"key": key, "targets": list(targets), "task": task_name, "points": frontier}
    result |= {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
    keep(folder, circuit if labels == "right" else None, {"result.json": result, **beside})
    keeper.clear()
    return result


def slug_of(task: str) -> str:
    """What a task is called in the names of folders: its name, or that of its file or function."""
    return Path(task).stem.rpartition(":")[2]


IN_WORDS = {
    "zero": "zeros", "counterfactual": "the example's counterpart",
    "resample": "another example of the same split",
}  # fmt: skip


def _frontier_of(folder: Path, key: str, targets: Sequence[float]) -> Result | None:
    """The nested circuits on disk, if they were made for this key and these targets."""
    at = folder / "frontier.json"
    have = store.read_json(at) if at.exists() else {}
    return have if have.get("key") == key and have.get("targets") == list(targets) else None


def relabelled(split: Split, labels: str, seed: int) -> Split:
    """The split with right, shuffled or swapped labels."""
    if labels == "right":
        return split
    if labels == "shuffled":
        return split.shuffled_labels(seed + 1)
    if labels == "swapped":  # with several wrong answers, the next one takes the place of the right one
        return replace(split, answer=split.wrong[:, 0], wrong=torch.cat([split.wrong[:, 1:], split.answer[:, None]], 1))
    raise unknown("kind of labels", labels, ("right", "shuffled", "swapped"))


def judged(asking: PatchedRun, circuit: Circuit | None, split: Split) -> Result:
    """Held-out loss and accuracy of a circuit (or the whole model), with its counts."""
    with torch.no_grad():
        if circuit is None or asking.fixed is not None:
            out = patching.run(asking.model, split.inputs, circuit, asking.fixed or {})
        else:
            parts = asking.parts(split)
            masks = patching.masks_of(asking.model, circuit)
            out = torch.cat([asking.logits(p, *masks) for p in parts])[torch.cat([p.index for p in parts]).argsort()]
    figures: Result = {
        "loss": float(losses(out, split).mean()),
        "accuracy": float(correct(out, split).float().mean()),
        "n": len(split),
    }
    if circuit is not None:
        figures |= circuit.counts() | {"pairs": node_pairs(circuit)}
    return figures


def node_pairs(circuit: Circuit) -> int:
    """Pairs of kept nodes that a matrix could join, joined or not: what is left of the ratio without density."""
    return sum(
        int(circuit.nodes[e.src].sum()) * int(circuit.nodes[e.dst].sum())
        for e in circuit.graph.links
        if e.counts == "block"
    )


def keep(folder: Path, circuit: Circuit | None, beside: Mapping[str, Result]) -> None:
    """Writes a circuit and the JSON files that belong to it as one folder, whole; other files in it are kept."""
    with store.new_folder(folder) as temp:
        if circuit is not None:
            store.write_circuit(temp, circuit)
        for name, data in beside.items():
            store.write_json(temp / name, data)
        if circuit is not None and folder.exists():
            for old in folder.glob("*.json"):
                if not (temp / old.name).exists():
                    shutil.copy(old, temp / old.name)


def circuit_folder(run: Run, name: str) -> Path:
    """The folder of a circuit by its name, or by its task's name when only one method found one."""
    have = [p.parent.name for p in sorted(run.path.glob("circuits/*/circuit.json"))]
    match = [c for c in have if c == name] or [c for c in have if c.rpartition("-")[0] == name]
    if len(match) == 1:
        return run.path / "circuits" / match[0]
    if match:
        raise UsageError(f'"{name}" has several circuits; name one: {", ".join(match)}.')
    infeasible = run.path / "circuits" / f"{name}-masks" / "result.json"
    if infeasible.exists():
        raise UsageError(f'the search for "{name}" in {run.path} found no circuit that meets its target.')
    raise unknown("circuit", name, have)


def check_circuit(path: Path, name: str, seed: int, controls: tuple[Evidence, ...] = (), n_null: int = 100) -> Result:
    """Verifies a circuit on the verify and ood splits (a job) and stores the evidence in its folder."""
    run = open_run(path)
    folder = circuit_folder(run, name)
    circuit = store.load_circuit(folder, run.digest)
    result = store.read_json(folder / "result.json")
    key = key_of(result["key"], seed, n_null, [plain(vars(c)) for c in controls], list(VERIFIERS))
    have = store.read_json(folder / "evidence.json") if (folder / "evidence.json").exists() else {}
    if have.get("key") != key:
        task = run.task(result["task"])
        ood = task.splits.get("ood")
        others = {n: run.task(n).split("verify") for n in run.subject.task_names() if n != result["task"]}
        model = GRANULARITIES[result.get("granularity", "weights")](run.model)
        sent = reference_of(run, model, result.get("reference", "mean"))
        if sent == "counterfactual":  # tasks whose examples have no counterparts cannot be asked then
            others = {n: s for n, s in others.items() if bool((s.pair >= 0).all())}
        question = Question(model, circuit, sent, task.split("verify"), ood, result["target"], seed, n_null, others)
        circuit = circuit.with_evidence(*verify(question), *controls)
        have = {"key": key, "task": result["task"], "evidence": [plain(vars(e)) for e in circuit.evidence]}
        keep(folder, circuit, {"evidence.json": have})
    return {"run": str(path), "circuit": folder.name, "task": result["task"], "evidence": have["evidence"]}


def lay_out(path: Path, name: str, windows: int = 64) -> Result:
    """Collects what a person may look at (a job): contexts, weights and effects of every node, on the explain split."""
    run = open_run(path)
    folder = circuit_folder(run, name)
    circuit = store.load_circuit(folder, run.digest)
    features = tuple(getattr(run.subject, "features", ()))
    key = key_of(store.read_json(folder / "result.json")["key"], windows, *features)
    at = folder / "dossier.json"
    if not at.exists() or store.read_json(at).get("key") != key:
        task = run.task(circuit.origin["task"])
        subject = run.subject
        sent = reference_of(run, run.model, store.read_json(folder / "result.json").get("reference", "mean"))
        fixed = run.reference if isinstance(sent, str) else sent  # its effects need one value per node
        dossier = build_dossier(
            run.model, circuit, fixed, task, subject.text(windows), subject.decode(), features=features
        )
        store.write_text(at, json.dumps(plain({**dossier, "key": key}), separators=(",", ":")))  # long lists of floats
    return {"circuit": folder.name}


def lay_out_network(path: Path) -> bool:
    """Writes layout.json, the network in space, beside the run; False where its training gave nodes no places."""
    run, at = open_run(path), path / "layout.json"
    extra = store.files.read_model_header(path / "model").get("extra", {})
    coordinates = extra.get("bimt", {}).get("coordinates")
    if coordinates is None:
        return False
    key = key_of(run.digest, coordinates, WIRING_VERSION)
    if not at.exists() or store.read_json(at).get("key") != key:
        wiring = build_wiring(run.model, coordinates)
        wiring |= {"wire_length": wire_length_of(run.model, coordinates), "key": key}
        store.write_text(at, json.dumps(plain(wiring), separators=(",", ":")))
    return True


# -- looking ---------------------------------------------------------------------------------------------------------


def list_tasks(path: Path | None) -> Result:
    """All tasks; with a run, those of its subject with the model's held-out loss and the circuits found so far.

    A task that the run's tokenizer has no words for has no loss.
    """
    rows: list[Result] = [
        {"task": task, "subject": name, "about": about}
        for name, kind in SUBJECTS.items()
        for task, about in kind.tasks.items()
    ]
    if path is None:
        return {"tasks": rows}
    run = open_run(path)
    mine: list[Result] = [r for r in rows if r["subject"] == run.subject.name]
    if isinstance(run.subject, own.OwnSubject):
        mine = [{"task": n, "subject": own.SUBJECT, "about": run.task(n).about} for n in run.subject.task_names()]
    for row in mine:
        row |= _figures(run, row["task"])
        names = [c for c in run.circuits() if c.rpartition("-")[0] == slug_of(row["task"])]
        row["circuits"] = [c for c in names if (path / "circuits" / c / "circuit.json").exists()]
    return {"run": str(path), "tasks": mine}


KEPT = ("loss", "accuracy", "n")


def _figures(run: Run, task: str) -> Result:
    """Loss and accuracy of the whole model on a task's verify split; nothing where it cannot be asked."""
    try:
        split = run.task(task).split("verify")
    except UsageError:
        if task in run.subject.task_names():
            raise
        return {"loss": None, "accuracy": None, "n": 0}
    return {k: v for k, v in judged(PatchedRun(run.model, run.reference), None, split).items() if k in KEPT}


def show_run(path: Path) -> Result:
    """What a run holds: its model's figures, its circuits and their evidence; a comparison shows its table."""
    if (path / "run.yaml").exists() and read_yaml(path / "run.yaml").get("kind") in ("comparison", "compare", "flows"):
        if not (path / "result.json").exists():
            raise UsageError(f"the comparison in {path} is not finished; finish it with the command that began it.")
        return store.read_json(path / "result.json")
    run = open_run(path)
    circuits = []
    for name in run.circuits():
        folder = path / "circuits" / name
        r = store.read_json(folder / "result.json")
        evidence = store.read_json(folder / "evidence.json")["evidence"] if (folder / "evidence.json").exists() else []
        is_there = (folder / "circuit.json").exists()
        said = in_short(store.files.read_circuit_header(folder)["explanations"]) if is_there else []
        circuits.append(
            {"circuit": name, "status": r["status"], **r["edge_pruned"], "evidence": evidence}
            | ({"explanations": said} if said else {})
        )
    header = store.files.read_model_header(path / "model")
    figures = store.read_json(path / "result.json") if (path / "result.json").exists() else {}
    parts = path / "modules" / "modules.json"
    said = {"modules": store.read_json(parts)["headline"]} if parts.exists() else {}
    return {
        "run": str(path), "subject": run.settings["subject"], "regimes": run.settings["regimes"],
        "model": header["config"], "digest": header["digest"], "figures": figures, "circuits": circuits, **said,
    }  # fmt: skip


def method_settings(method: str, **values: Any) -> Result:
    """Settings of a method with some values set, as plain data; a wrong one is refused in its own words."""
    return checked(schema_of(method_of(method)), values, f"settings of the method {method}").model_dump()


__all__ = [
    "GRANULARITIES", "REFERENCES", "Held", "MaskSettings", "Plan", "Run", "begin_own_run", "begin_run",
    "check_circuit", "figures_of", "find_circuit", "hold", "lay_out", "lay_out_network", "list_tasks",
    "method_settings", "open_run", "show_run", "slug_of", "train_plan",
]  # fmt: skip
