"""Comparisons: a sparse model beside dense ones, circuit by circuit, on the same tasks by the same search.

`run_quotes` and `run_digits` are the stages in order. Each job writes its own folder, is skipped when that folder
already answers the same question, and goes on after a kill. Knows names, functions and folders, no mathematics.

    out/  run.yaml  result.json  page.html  data/
          sparse/  dense/  dense_matched/  random/     each a run folder (see `runs`)

dense_matched   the dense training stopped where its held-out loss is nearest to the sparse model's
random          the sparse model with the entries of every matrix shuffled: same density, nothing learned
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from openwork import stats, store
from openwork.circuit import Evidence
from openwork.decompiled import decompile_circuit
from openwork.discover_all import discover_tasks
from openwork.errors import UsageError, unknown
from openwork.explained import explain_circuit
from openwork.explained import shown as explained_table
from openwork.files import plain, read_yaml
from openwork.forms import write_form, write_formulas
from openwork.llm_options import LLMOptions
from openwork.models import CNN, MLP, Transformer
from openwork.modules import find_modules, load_modules, shown
from openwork.presets import DIGITS, PRESETS, QUOTES, DataSettings, Preset
from openwork.progress import Progress
from openwork.runs import (
    Plan,
    Result,
    begin_own_run,
    begin_run,
    check_circuit,
    circuit_folder,
    figures_of,
    find_circuit,
    lay_out,
    lay_out_network,
    list_tasks,
    method_settings,
    open_run,
    show_run,
    slug_of,
    train_plan,
)
from openwork.searches import repeat, shuffled
from openwork.settings import assigned, filled
from openwork.tasks.corpus import build_corpus
from openwork.tasks.images import DIGIT_TASKS
from openwork.tasks.python_code import TASKS
from openwork.tasks.subjects import SUBJECTS, SubjectKind, open_subject
from openwork.threads import available_cores
from openwork.training import REGIMES, TrainSettings
from openwork.verify import control
from openwork.views.flows import build_alert
from openwork.views.page import build_page
from openwork.workers import Job, map_jobs

METHOD = "masks"
COMPARED = ("sparse", "dense", "dense_matched")
CONTROLS = {"nonsense": "shuffled", "swapped": "swapped"}  # name in the table -> labels of the search


# -- comparisons -----------------------------------------------------------------------------------------------------


def run_quotes(
    out: Path,
    preset: str = "cpu",
    seed: int = 0,
    device: str = "cpu",
    corpus: Path | None = None,
    workers: int | None = None,
    tasks: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Real Python source to checked circuits on a page: trains, discovers, verifies, lays out, compares.

    settings  changes to the preset, each as "group.name=value"; groups: corpus, model, sparse, dense, topk, masks
    """
    chosen = _preset(QUOTES, preset, settings)
    names = tuple(tasks) if tasks else chosen.tasks or chosen.corpus_for(None).mixed()
    for name in names:
        if name not in TASKS and not name.endswith(".jsonl"):
            raise unknown("task", name, TASKS)
    names = tuple(str(Path(n).resolve()) if n.endswith(".jsonl") else n for n in names)
    return _compare("python", out, chosen, preset, seed, device, corpus, workers, names, progress or Progress(False))


def run_digits(
    out: Path,
    preset: str = "cpu",
    seed: int = 0,
    device: str = "cpu",
    workers: int | None = None,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """The same for a multilayer perceptron and scikit-learn's embedded digits."""
    chosen = _preset(DIGITS, preset, settings)
    names = chosen.tasks or tuple(DIGIT_TASKS)
    return _compare("digits", out, chosen, preset, seed, device, None, workers, names, progress or Progress(False))


def _preset(presets: dict[str, Preset], name: str, settings: Sequence[str] = ()) -> Preset:
    if name not in presets:
        raise unknown("preset", name, presets)
    return presets[name].changed(assigned(settings, presets[name].groups()))


def _compare(
    subject: str,
    out: Path,
    p: Preset,
    preset: str,
    seed: int,
    device: str,
    corpus: Path | None,
    workers: int | None,
    tasks: tuple[str, ...],
    progress: Progress,
) -> Result:
    began = time.monotonic()
    check_device(device)
    asked = {
        "kind": "comparison", "subject": subject, "preset": preset, "seed": seed, "device": device,
        "corpus": str(corpus.resolve()) if corpus else None, "tasks": list(tasks), "settings": p.model_dump(),
    }  # fmt: skip
    finished = out / "result.json"
    resumed = finished.exists() and plain(read_yaml(out / "run.yaml")) == plain(asked) and (out / "page.html").exists()
    if resumed:
        progress.log(f"{out} is done; delete it to run it again")
        return store.read_json(finished)
    begin_run(out, asked)
    n = workers or available_cores()
    if subject == "python":
        build_corpus(out / "data", p.corpus_for(corpus), progress.log)
    plans = plans_of(subject, p, seed, device)
    progress.log("training the sparse and the dense model")
    trained = map_jobs(
        [Job(f"train {m}", train_plan, (out / m, plan, f"train {m}")) for m, plan in plans.items()], n, progress
    )
    models = dict(zip(plans, trained, strict=True))
    models["dense_matched"] = match_dense(out, models["sparse"]["held_out"])
    shuffle_weights(out, seed)
    rows = _circuits(out, p, seed, tasks, n, progress)
    evidence = _evidence(out, p, seed, rows, n, progress)
    result = summarise(rows, models, evidence) | {
        "run": str(out), "page": str(out / "page.html"), "preset": preset, "seed": seed, "subject": subject,
    }  # fmt: skip
    before = store.read_json(finished)["seconds"] if finished.exists() else 0.0
    store.write_json(finished, result | {"seconds": before + time.monotonic() - began})
    build_page(out)
    return store.read_json(finished)


def plans_of(subject: str, p: Preset, seed: int, device: str) -> dict[str, Plan]:
    """What to train, by name of the run folder; both models see the same batches in the same order."""

    def plan(training: Result, regimes: Result) -> Plan:
        return Plan(subject, "../data", p.model, training | {"seed": seed}, regimes, p.examples, seed, p.batch, device)

    return {"sparse": plan(p.sparse, {"topk": p.topk}), "dense": plan(p.dense, {"dense": {}})}


def match_dense(out: Path, held_out: float) -> Result:
    """The dense model's snapshot whose loss on the discover split's real data is nearest to `held_out` nats."""
    folder = out / "dense_matched"
    at = folder / "result.json"
    if at.exists():
        return store.read_json(at)
    snapshots = {int(s.name): store.files.read_model_header(s) for s in (out / "dense" / "snapshots").iterdir()}
    step = min(sorted(snapshots), key=lambda s: abs(snapshots[s]["extra"]["held_out"] - held_out))
    settings = read_yaml(out / "dense" / "run.yaml")
    begin_run(folder, settings | {"stopped_at": step})
    store.save_model(folder / "model", store.load_model(out / "dense" / "snapshots" / str(step)))
    figures = {"steps": step, "held_out": snapshots[step]["extra"]["held_out"], **figures_of(open_run(folder))}
    store.write_json(at, figures)
    return figures


def shuffle_weights(out: Path, seed: int) -> None:
    """A model like the sparse one with the entries of every matrix put in random order."""
    folder = out / "random"
    if (folder / "result.json").exists():
        return
    settings = read_yaml(out / "sparse" / "run.yaml")
    begin_run(folder, settings | {"weights": "those of sparse, shuffled within each matrix"})
    model = shuffled(store.load_model(out / "sparse" / "model"), seed)
    store.save_model(folder / "model", model)
    store.write_json(folder / "result.json", figures_of(open_run(folder)))


def _circuits(out: Path, p: Preset, seed: int, tasks: Sequence[str], workers: int, progress: Progress) -> list[Result]:
    """Per task, what was found in each model and by each control, all by the same search and settings."""
    settings = method_settings(METHOD, **p.masks, seed=seed)
    jobs, keys = [], []
    for model in ("dense", "dense_matched", "random", "sparse"):  # the longest first
        for task in tasks:
            label = f"{model}: {Path(task).stem}"
            jobs.append(Job(label, find_circuit, (out / model, task, METHOD, settings, label)))
            keys.append((model, task))
    for name, labels in CONTROLS.items():
        for task in tasks:
            label = f"{name} control: {Path(task).stem}"
            jobs.append(Job(label, find_circuit, (out / "sparse", task, METHOD, settings, label, labels)))
            keys.append((name, task))
    progress.log(
        f"looking for {len(tasks)} circuits in each of {len(COMPARED)} models, with {len(jobs)} searches in all"
    )
    found = dict(zip(keys, map_jobs(jobs, workers, progress), strict=True))
    rows = []
    for task in tasks:
        first = found["sparse", task]
        row: Result = {"task": Path(task).stem, "target": settings["target"]}
        row |= {"n": first["whole"]["n"], "answers": first["answers"]}
        for model in COMPARED:
            r = found[model, task]
            row[model] = r["node_based"] | {"full_loss": r["whole"]["loss"], "full_accuracy": r["whole"]["accuracy"]}
            row[model] |= {"cpu_seconds": r["cpu_seconds"]}
            row[f"{model}_edge_pruned"] = r["edge_pruned"]
        for name in (*CONTROLS, "random"):
            r = found[name, task]
            row[name] = r["edge_pruned"] | {"loss_reached": r["loss_reached"], "full_loss": r["full_loss"]}
        rows.append(row)
    return rows


def _evidence(
    out: Path, p: Preset, seed: int, rows: Sequence[Result], workers: int, progress: Progress
) -> list[Result]:
    """Evidence for every circuit of the sparse model; dossiers of all circuits for the page."""
    progress.log("checking the circuits on data that the search never saw, and laying them out")
    name = "{}-" + METHOD
    found = [(m, r) for m in COMPARED for r in rows if r[f"{m}_edge_pruned"]["status"] == "ok"]
    check = [
        Job(
            f"check {r['task']}",
            check_circuit,
            (out / m, name.format(r["task"]), seed, control_evidence(r, seed), p.n_null),
        )
        for m, r in found
        if m == "sparse"
    ]
    draw = [Job(f"lay out {m}: {r['task']}", lay_out, (out / m, name.format(r["task"]), p.windows)) for m, r in found]
    checked = map_jobs(check, workers, progress)
    map_jobs(draw, workers, progress)
    return [{"model": "sparse", "task": Path(c["task"]).stem, **e} for c in checked for e in c["evidence"]]


def control_evidence(row: Result, seed: int) -> tuple[Evidence, ...]:
    """The searches that should fail, beside the one that should not."""
    real = row["sparse_edge_pruned"]
    claims = {"nonsense": "nonsense_control", "swapped": "swapped_control", "random": "random_weights_control"}
    found = {claim: row[name] for name, claim in claims.items()}
    return tuple(
        control(
            claim, real.get("edges"), real.get("loss"), c["status"], c.get("edges"), c.get("loss"),
            n=row["n"], chance=math.log(row["answers"]), seed=seed,
        )
        for claim, c in found.items()
    )  # fmt: skip


# -- the headline ----------------------------------------------------------------------------------------------------

RATIOS = {
    "node_based": ("dense", "sparse"),
    "edge_pruned": ("dense_edge_pruned", "sparse_edge_pruned"),
    "edge_pruned_dense_to_node_based_sparse": ("dense_edge_pruned", "sparse"),
    "matched_node_based": ("dense_matched", "sparse"),
    "matched_edge_pruned": ("dense_matched_edge_pruned", "sparse_edge_pruned"),
}


def summarise(rows: Sequence[Result], models: Result, evidence: Sequence[Result]) -> Result:
    """The object that --json prints: tasks, ratios with intervals over tasks, evidence, models.

    Where the sparse model has no circuit, its whole set of block weights counts as one, so that a task cannot improve
    the mean by failing. Where the dense model has none, the task is left out of that ratio and named.
    """
    ratios: Result = {}
    whole = models["sparse"]["block_nonzero"]
    for name, (dense, sparse) in RATIOS.items():
        ratios[name] = _ratio(rows, dense, sparse, "edges", whole)
    ratios["node_pairs"] = _ratio(rows, "dense", "sparse", "pairs", whole)
    ratios["density_alone"] = {"geomean": models["dense"]["block_nonzero"] / max(whole, 1)}
    return {
        "tasks": list(rows),
        "ratio_geomean": ratios["node_based"]["geomean"],
        "ratios": ratios,
        "evidence": list(evidence),
        "models": models,
    }


def _ratio(rows: Sequence[Result], dense: str, sparse: str, what: str, whole: int) -> Result:
    usable = [r for r in rows if r[dense]["status"] == "ok"]
    left_out = [r["task"] for r in rows if r[dense]["status"] != "ok"]
    infeasible = [r["task"] for r in usable if r[sparse]["status"] != "ok"]
    top = [float(max(r[dense][what], 1)) for r in usable]
    bottom = [float(max(r[sparse].get(what, whole), 1)) for r in usable]
    value, (low, high) = stats.geometric_mean_ratio(top, bottom) if usable else (math.nan, (math.nan, math.nan))
    return {
        "geomean": value, "low": low, "high": high, "tasks": len(usable),
        "dense_infeasible": left_out, "sparse_infeasible": infeasible,
    }  # fmt: skip


# -- single runs, as the commands call them --------------------------------------------------------------------------


def train_run(
    task: str,
    regime: str,
    density: float | None,
    out: Path,
    steps: int | None = None,
    preset: str = "cpu",
    seed: int = 0,
    device: str = "cpu",
    corpus: Path | None = None,
    data: Path | None = None,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Trains one model into a run folder.

    regime    a name, or several with + between them
    density   goes to the regime that has one
    data      folder of the user's files, for subjects that have some; the run remembers it
    settings  changes to the preset, each as "group.name=value"; groups: training, model, data, the regimes' names and,
              for Python source, corpus
    """
    progress = progress or Progress(False)
    check_device(device)
    kind = subject_kind(task, data)
    names = regime.split("+")
    for name in names:
        if name not in REGIMES:
            raise unknown("regime", name, REGIMES)
    if len(set(names)) < len(names):
        raise UsageError(f"--regime {regime}: each regime may be named once.")
    sparse = [name for name in names if name in with_density()]
    if density is not None and not sparse:
        raise UsageError(f"--density is a setting of the regimes {', '.join(with_density())}; {regime} has none.")
    if corpus is not None and kind.data != "corpus":
        raise UsageError(f"--corpus is for --task python; {task} is made of {kind.made_of}.")
    p, changes = changed_preset(task, preset, settings, names)
    given: dict[str, Result] = {name: {"density": density} for name in sparse if density is not None}
    options = {name: given.get(name, {}) | changes.get(name, {}) for name in names}
    training = ({"steps": steps} if steps else {}) | changes.get("training", {})
    where = str(data.resolve()) if data else "data"
    plan = training_plan(task, p, where, training, options, seed, device)
    if kind.data == "folder":
        open_subject(task, out / where, 0)  # missing or damaged files are told before anything is written
    begin_run(out, plan.settings())
    if kind.data == "corpus":
        build_corpus(out / "data", p.corpus_for(corpus), progress.log)
    (figures,) = map_jobs([Job(f"train {out.name}", train_plan, (out, plan, f"train {out.name}"))], 1, progress)
    return {"run": str(out), "regime": regime, **figures}


def subject_kind(task: str, data: Path | None) -> SubjectKind:
    """What there is to know of a subject; refuses an unknown one, and a folder of files that it does not take."""
    if task not in SUBJECTS:
        raise unknown("task to train on", task, SUBJECTS)
    kind = SUBJECTS[task]
    if kind.data == "flows":
        raise UsageError("detectors are trained on flows by a command of their own: openwork run flows")
    if (kind.data == "folder") != (data is not None):
        if data is None:
            raise UsageError(f"--task {task} needs --data DIR, the folder of its files.")
        takers = " and ".join(f"--task {n}" for n, k in SUBJECTS.items() if k.data == "folder")
        raise UsageError(f"--data is for {takers}; {task} brings its own data.")
    return kind


def with_density() -> list[str]:
    """The regimes that are told which share of the weights stays."""
    return [name for name, (_, schema) in REGIMES.items() if "density" in schema.model_fields]


def changed_preset(task: str, preset: str, settings: Sequence[str], regimes: Sequence[str]) -> tuple[Preset, Result]:
    """A subject's preset with the settings of `corpus` and `model` changed, and all changes by group.

    settings  each as "group.name=value"; groups: training, model, data, the regimes' names and, for Python source,
              corpus
    """
    p = _preset(PRESETS[task], preset)
    changes = assigned(settings, ("training", *regimes, "model", "data", *(["corpus"] if p.corpus else [])))
    if "data" in changes:
        if not SUBJECTS[task].batches:
            raise UsageError(f"every step of training on {task} sees all its data: there is no data.batch to choose.")
        p = p.model_copy(update={"batch": filled(DataSettings, changes["data"], "settings of data")["batch"]})
    return p.changed({g: changes[g] for g in ("corpus", "model") if g in changes}), changes


def training_plan(
    task: str, p: Preset, where: str, training: Result, regimes: Mapping[str, Result], seed: int, device: str
) -> Plan:
    """One training of a preset; every setting is checked.

    where     the subject's data, seen from the run's folder
    training  changes to the preset's settings of the loop
    regimes   name -> changes to the regime's settings
    """
    loop = p.sparse if any(name in with_density() for name in regimes) else p.dense
    training = filled(TrainSettings, loop | {"seed": seed, "snapshots": ()} | training, "settings of training")
    made = {
        name: filled(REGIMES[name][1], {"topk": p.topk}.get(name, {}) | options, f"settings of {name}")
        for name, options in regimes.items()
    }
    return Plan(task, where, p.model, training, made, p.examples, seed, p.batch, device)


def discover_run(
    run: Path,
    task: str,
    method: str,
    target: float,
    seed: int,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
    reference: str = "mean",
    granularity: str = "weights",
    workers: int | None = None,
    model: str | None = None,
) -> Result:
    """Looks for the circuit of a task in a trained model; of "all" tasks, or of several as "a,b,c", side by side.

    settings     of the method, each as "name=value"
    reference    what ablated nodes send; granularity: what a node is; workers: processes for several tasks
    model        a user's own model, "module:function", for which the run folder is begun
    """
    if model is not None:
        begin_own_run(run, model, task)
    values = method_settings(method, **{"target": target, "seed": seed, **assigned(settings)})
    if task == "all" or "," in task:
        return discover_tasks(run, task, method, values, reference, granularity, workers, progress or Progress(False))
    label = f"discover {slug_of(task)}"
    job = Job(label, find_circuit, (run, task, method, values, label, "right", reference, granularity))
    (found,) = map_jobs([job], 1, progress or Progress(False))
    return {"run": str(run), **found}


def verify_run(
    run: Path,
    circuit: str,
    seed: int,
    progress: Progress | None = None,
    searches: bool = False,
    workers: int | None = None,
) -> Result:
    """Tests every claim of a circuit on data that discovery never saw.

    searches  also repeat the search that found it, where there is nothing to find and with other seeds and on halves
              of the data: three controls, and whether it is stable
    """
    progress = progress or Progress(False)
    controls = repeat(run, circuit, seed, workers or available_cores(), progress) if searches else ()
    (checked,) = map_jobs([Job("verify", check_circuit, (run, circuit, seed, controls))], 1, progress)
    return checked


def decompile_run(
    run: Path,
    circuit: str | None,
    out: Path,
    floor: float,
    simplify: bool = False,
    form: str = "python",
    binarised: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Writes a circuit as code that runs and tests it; see `decompiled.decompile_circuit` and `forms`.

    circuit  of a text's transformer, of a perceptron or of a convolutional network; None for a regression's whole model
    floor, simplify  of transformers; form, binarised: of the others
    """
    progress = progress or Progress(False)
    if circuit is None:
        (told,) = map_jobs([Job("decompile", write_formulas, (run, out))], 1, progress)
        return told
    model = open_run(run).model
    if not isinstance(model, MLP | CNN | Transformer):
        raise UsageError(
            f"{run} holds a {type(model).__name__}; programs are made of the circuits of MLP, CNN and Transformer, "
            "which openwork.read_sequential and openwork.read_gpt2 make of plain torch models."
        )
    if isinstance(model, MLP | CNN):
        if simplify:
            raise UsageError(
                "--simplify goes with circuits of transformers; of features there are --form and --binarised."
            )
        (told,) = map_jobs([Job("decompile", write_form, (run, circuit, out, form, binarised))], 1, progress)
        return told
    if form != "python" or binarised:
        raise UsageError("--form and --binarised go with circuits of features or images; this one is of a transformer.")
    job = Job("decompile", decompile_circuit, (run, circuit, out, floor, simplify))
    (told,) = map_jobs([job], 1, progress)
    return told


def modules_run(
    run: Path,
    modules: int | None = None,
    partition: str | None = None,
    draws: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """What modules a trained model has, and whether they work apart; see `modules.find_modules`."""
    job = Job("modules", find_modules, (run, modules, partition, draws, seed))
    (found,) = map_jobs([job], 1, progress or Progress(False))
    return shown(found)


def explain_run(
    run: Path,
    circuit: str,
    author: str = "rules",
    nodes: int | None = None,
    seed: int = 0,
    llm: LLMOptions | None = None,
    dossiers: Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Says in words what a circuit and its parts do, and tests every word on held-out examples; see `explained`."""
    job = Job(f"explain {circuit}", explain_circuit, (run, circuit, author, nodes, seed, llm, dossiers))
    (found,) = map_jobs([job], 1, progress or Progress(False))
    return explained_table(found)


def view_run(run: Path, log: Path | None = None, alert: int | None = None, progress: Progress | None = None) -> Result:
    """Writes the page of a run or comparison, laying out circuits that were not laid out yet.

    A run whose training gave its nodes places, as bimt does, has a page without circuits too, and layout.svg beside it;
    so has a run whose modules were looked at.

    log    of detectors of intrusions: alerts of which the first are shown
    alert  or the one of this number alone, on a page of its own
    """
    kind = read_yaml(run / "run.yaml").get("kind") if (run / "run.yaml").exists() else None
    if kind != "flows" and (log is not None or alert is not None):
        raise UsageError(f"{run} is no run of openwork run flows; --log and --alert show the alerts of its detector.")
    if alert is not None:
        return {"run": str(run), "page": str(build_alert(run, log, alert))}
    if kind == "flows":
        if not (run / "result.json").exists():
            raise UsageError(f"the run in {run} is not finished; finish it with the command that began it.")
        _lay_out_all(run / "sparse", progress)
    elif kind != "comparison":
        names = _drawn(run)
        if not lay_out_network(run) and not names and load_modules(run) is None:
            raise UsageError(
                f"{run} has no circuit yet; find one with: openwork discover {run} --task TASK, or its modules with: "
                f"openwork modules {run}"
            )
        _lay_out_all(run, progress)
    page, drawing = build_page(run, log), run / "layout.svg"
    return {"run": str(run), "page": str(page), **({"drawing": str(drawing)} if drawing.exists() else {})}


def _drawn(run: Path) -> list[str]:
    return [n for n in open_run(run).circuits() if drawable(run / "circuits" / n)]


def _lay_out_all(run: Path, progress: Progress | None) -> None:
    jobs = [Job(f"lay out {n}", lay_out, (run, n)) for n in _drawn(run)]
    map_jobs(jobs, 1, progress or Progress(False))


def drawable(folder: Path) -> bool:
    """Whether a folder holds a circuit whose nodes are channels: the page draws no heads and MLPs."""
    if not (folder / "circuit.json").exists():
        return False
    return store.read_json(folder / "result.json").get("granularity", "weights") == "weights"


def check_device(device: str) -> None:
    """Refuses a device that this machine does not have."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(
            f"--device {device}: this machine has no CUDA device that PyTorch can use; leave it out for cpu."
        )


__all__ = [
    "circuit_folder", "discover_run", "explain_run", "list_tasks", "modules_run", "run_digits", "run_quotes",
    "show_run", "train_run", "verify_run", "view_run",
]  # fmt: skip
