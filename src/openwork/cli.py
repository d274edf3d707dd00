"""The command line: one typed schema per command, read from flags and from a YAML file, and an exit code.

    0  done        1  could not be done (damaged file, full disk)        2  asked wrongly        130  stopped by Ctrl-C

Results go to stdout (tables for a person, one JSON object with --json), everything else to stderr. torch is imported
after the command line has been understood, so that --help and a mistyped flag answer at once.

Knows names, functions and how to say no. Does not know what a stage does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from cyclopts import App, ArgumentCollection, CycloptsError, Parameter, Token, UnusedCliTokensError, ValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from openwork import __version__
from openwork.errors import OpenworkError, RunError, UsageError, several, unknown
from openwork.llm_options import LLMOptions
from openwork.progress import Progress

STOPPED = 130  # what a shell reports for a program that Ctrl-C ended

EXAMPLES = {
    "run": "openwork run quotes --preset smoke --out runs/quotes",
    "train": "openwork train --task python --regime topk --density 0.05 --out runs/a",
    "compare": "openwork compare --task digits --regimes dense,l1,topk --seeds 3 --preset smoke --out runs/compared",
    "tasks": "openwork tasks --run runs/a",
    "discover": "openwork discover runs/a --task single_double_quote",
    "verify": "openwork verify runs/a --circuit single_double_quote",
    "modules": "openwork modules runs/a",
    "explain": "openwork explain runs/a --circuit single_double_quote",
    "bench": "openwork bench planted --methods auto,acdc --json",
    "decompile": "openwork decompile runs/a --circuit single_double_quote --out quotes.py",
    "export": "openwork export runs/flows --to c --out detector",
    "import": "openwork import runs/a --file circuit.json --task single_double_quote",
    "why": "openwork why runs/a --circuit single_double_quote --example 0 --html why.html",
    "watch": "openwork watch conn.log --model runs/flows --out alerts.jsonl --follow",
    "audit": "openwork audit verify alerts.jsonl",
    "report": "openwork report runs/flows --out report.html",
    "show": "openwork show runs/a",
    "view": "openwork view runs/a",
}

Preset = Literal["cpu", "gpu", "smoke"]
Run = Annotated[Path, Parameter(help="Folder of a run, e.g. runs/a.")]
Result = dict[str, Any]


# -- the schema ------------------------------------------------------------------------------------------------------


class Options(BaseModel):
    """What every command accepts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    as_json: Annotated[bool, Parameter("--json")] = Field(
        default=False, description="Print one JSON object instead of tables."
    )
    config: Path | None = Field(
        default=None, description="YAML file with values for the flags below; flags win over it."
    )


class SeedOptions(Options):
    """For commands that draw random numbers."""

    seed: int = Field(default=0, ge=0, description="Seed of everything random; same seed, same result.")


class SizeOptions(Options):
    """For commands that train: how much, and where."""

    out: Path | None = Field(
        default=None, description="Folder to write; by default runs/NAME. A half-done one is resumed."
    )
    preset: Preset = Field(
        default="cpu", description="Size of the job: cpu (minutes on two cores), gpu, smoke (seconds)."
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="cpu, cuda, cuda:N; auto is cuda for the gpu preset.",
    )
    settings: Annotated[tuple[str, ...], Parameter("--set", consume_multiple=True)] = Field(
        default=(), description="Any setting of the preset, as GROUP.NAME=VALUE; a wrong name lists what there is."
    )

    def device_name(self) -> str:
        """The device with "auto" decided."""
        if self.device != "auto":
            return self.device
        return "cuda" if self.preset == "gpu" else "cpu"


class TrainingOptions(SizeOptions, SeedOptions):
    """For commands that train with one seed."""

    corpus: Path | None = Field(default=None, description="Your own Python files, instead of the standard library's.")


class RunOptions(TrainingOptions):
    """openwork run"""

    tasks: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True)] = Field(
        default=None, description="Only these tasks: names (see openwork tasks) or JSONL files; by default all."
    )
    workers: int | None = Field(
        default=None, ge=1, description="Processes to use; by default as many as there are cores free."
    )
    data: Path | None = Field(
        default=None, description="flows: your flow log (CSV, Parquet, Zeek conn.log), or NSL-KDD's folder; by default "
        "generated flows.",
    )  # fmt: skip
    label: str | None = Field(default=None, description="flows: column of --data with the class of each flow.")
    test: Path | None = Field(default=None, description="flows: a second log with the same columns, to test on.")
    ignore: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = Field(
        default=(), description="flows: columns that the detector may not use, as a,b,c or a b c."
    )
    normal: str = Field(default="", description="flows: the label without attack, where it cannot be told.")
    classes: Literal["all", "two"] = Field(
        default="all", description="flows: tell every attack apart, or only attacks from normal flows."
    )
    false_alarms: float = Field(
        default=0.01, gt=0, lt=1, description="flows: share of normal flows that may be alerts."
    )
    seeds: int = Field(default=3, ge=1, description="flows: how many seeds every model is trained with.")


class TrainOptions(TrainingOptions):
    """openwork train"""

    task: str = Field(
        description=(
            "What to train on: python, patterns, digits, mnist, cifar10, modular_addition_59, modular_addition_113, "
            "s4, two_moons, independence, feature_sharing, compositionality, in_context_regression."
        )
    )
    data: Path | None = Field(default=None, description="Folder of your files (tasks mnist, cifar10).")
    regime: str = Field(
        default="topk",
        description="Way of training: dense, l1, l2, dropout, topk, rigl, l0, bimt, clusterability, gomory_hu, "
        "weight_norm; or several, as in l1+dropout.",
    )
    density: float | None = Field(
        default=None, gt=0, le=1, description="Share of weights that stay nonzero (regimes topk, rigl, l0)."
    )
    steps: int | None = Field(default=None, ge=1, description="Training steps; by default the preset's.")


def listed(items: Sequence[str]) -> tuple[str, ...]:
    """Names given as a,b,c or a b c."""
    return tuple(name.strip() for item in items for name in item.split(",") if name.strip())


def auto_or_number(value: Any) -> Any:
    """Reads "auto" or a number above 0; ValueError for anything else."""
    if value is None or value == "auto":
        return value
    with contextlib.suppress(ValueError):
        if float(value) > 0:
            return float(value)
    raise ValueError("give auto, or a number above 0")


class CompareOptions(SizeOptions):
    """openwork compare"""

    task: str = Field(description="What to train on: python, digits, mnist.")
    data: Path | None = Field(default=None, description="Folder of your files (task mnist: its four files).")
    regimes: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = Field(
        description="Ways of training to compare, as a,b,c or a b c."
    )
    seeds: int = Field(default=5, ge=1, description="How many seeds each regime is trained with: 0, 1, 2, ...")
    circuit: str | None = Field(
        default=None, description="Task whose circuit is looked for in every model, or none; by default the first."
    )
    equal_accuracy: Annotated[str | float | None, BeforeValidator(auto_or_number)] = Field(
        default=None,
        description="Also compare at equal accuracy: this one (for regressions, loss), or auto: dense's minus a point.",
    )
    steps: int | None = Field(default=None, ge=1, description="Training steps; by default the preset's.")
    workers: int | None = Field(
        default=None, ge=1, description="Processes to use; by default as many as there are cores free."
    )


class TasksOptions(Options):
    """openwork tasks"""

    run: Path | None = Field(default=None, description="Run whose losses and circuits are listed beside the tasks.")


class DiscoverOptions(SeedOptions):
    """openwork discover"""

    task: str = Field(
        description="Name of a task (see openwork tasks), a JSONL file, or module:function of your own; several as "
        "a,b,c; or all."
    )
    model: str | None = Field(
        default=None, description="Your own model, module:function; RUN is then a new folder, or one made this way."
    )
    method: str = Field(default="auto", description="Way of searching, or your own as module:function.")
    reference: Literal["mean", "zero", "counterfactual", "resample"] = Field(
        default="mean", description="What nodes outside the circuit send: the training mix's mean, zero, what they "
        "send on the example's counterpart, or on another example.",
    )  # fmt: skip
    granularity: Literal["weights", "components"] = Field(
        default="weights", description="What counts as a node: single channels, or a transformer's heads and MLPs."
    )
    workers: int | None = Field(
        default=None, ge=1, description="Processes for several tasks; by default as many as there are cores free."
    )
    target: float = Field(default=0.15, gt=0, description="Task loss in nats that the circuit has to reach.")
    settings: Annotated[tuple[str, ...], Parameter("--set", consume_multiple=True)] = Field(
        default=(), description="Any setting of the method, as NAME=VALUE; a wrong name lists what there is."
    )


class VerifyOptions(SeedOptions):
    """openwork verify"""

    circuit: str = Field(description="Name of the circuit, or of its task when only one method has been used.")
    searches: bool = Field(
        default=False,
        description="Also repeat the search: on nonsense, where it should fail, and with other seeds and data.",
    )
    workers: int | None = Field(
        default=None, ge=1, description="Processes for --searches; by default as many as there are cores free."
    )


class ExplainOptions(SeedOptions):
    """openwork explain"""

    circuit: str = Field(description="Name of the circuit, or of its task when only one method has been used.")
    author: str = Field(
        default="rules",
        description="Who writes: rules (a search, no language model), llm, or your own module:function.",
    )
    nodes: int | None = Field(
        default=None, ge=0, description="How many nodes are explained, those that matter most; by default 100."
    )
    dossiers: Path | None = Field(
        default=None, description="Folder to write the cards to that authors see, one JSON file per node and module."
    )


class ModulesOptions(SeedOptions):
    """openwork modules"""

    modules: int | None = Field(
        default=None, ge=2, description="How many; by default as many as training made, else by the largest eigengap."
    )
    partition: Literal["trained", "spectral", "blocks"] | None = Field(
        default=None, description="Which modules: those that training left (the default where there are any), those of "
        "the final weights, or contiguous equal blocks.",
    )  # fmt: skip
    draws: int = Field(default=20, ge=2, description="Random draws behind every null.")


class BenchOptions(SeedOptions):
    """openwork bench"""

    methods: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = Field(
        default=(), description="Ways of searching, as a,b,c or a b c; by default all."
    )
    cases: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = Field(
        default=(), description="Planted networks by name; by default all."
    )
    granularity: Literal["weights", "components"] = Field(
        default="weights", description="What counts as a node: single channels, or a transformer's heads and MLPs."
    )
    out: Path | None = Field(default=None, description="File to write the result to, as JSON.")
    workers: int | None = Field(
        default=None, ge=1, description="Processes to use; by default as many as there are cores free."
    )


class WhyOptions(Options):
    """openwork why"""

    circuit: str = Field(description="Name of the circuit, or of its task when only one method has been used.")
    text: Annotated[str | None, Parameter("--input")] = Field(
        default=None, description="The input: a prompt, [token ids], numbers a,b,c, or a row of a file, as in x.csv:3 "
        "(.npy, .csv).",
    )  # fmt: skip
    example: int | None = Field(default=None, ge=0, description="Or an example of the explain split, by number.")
    answer: str | None = Field(default=None, description="Answer to account for; by default the model's.")
    against: str | None = Field(default=None, description="Answer to set it against; by default the runner-up.")
    top: int | None = Field(default=None, ge=1, description="Lines per list; by default 10, and 3 with --rows.")
    html: Path | None = Field(default=None, description="File to write a page to.")
    rows: Path | None = Field(
        default=None, description="Or many inputs: a parquet file with x0, x1, ... or input, prompt or tokens; and id."
    )
    out: Path | None = Field(default=None, description="With --rows: parquet file to write the top reasons to.")


class ExportOptions(Options):
    """openwork export"""

    circuit: str | None = Field(
        default=None, description="eap-ig, attribution-graph: name of the circuit, or of its task when only one method "
        "has been used.",
    )  # fmt: skip
    to: Literal["c", "c-int8", "onnx", "npz", "torch", "eap-ig", "attribution-graph"] = Field(
        description="A perceptron as C99 (c-int8: with weights of one byte), ONNX, NumPy arrays or a model folder; a "
        "circuit as the JSON of EAP-IG and MIB (heads and MLPs), or that of viewers of attribution graphs."
    )  # fmt: skip
    out: Path = Field(description="File to write; of a perceptron, the folder.")
    example: int = Field(default=0, ge=0, description="Example of the explain split that an attribution graph shows.")


class DecompileOptions(Options):
    """openwork decompile"""

    circuit: str | None = Field(
        default=None, description="Name of the circuit, or of its task when only one method has been used; without it, "
        "formulas of a regression's whole model.",
    )  # fmt: skip
    out: Path = Field(description="Python file to write; its twin in C is written beside it.")
    form: Literal["python", "rules", "formula"] = Field(
        default="python", description="A program; or, of a circuit of features, nested if and else, or a formula."
    )
    binarised: bool = Field(
        default=False, description="Give every kept neuron two levels first, so that its role is a truth table "
        "(circuits of features).",
    )  # fmt: skip
    agreement: float = Field(
        default=0.99, gt=0.5, le=1, description="Share of the circuit's decisions on the discover split, and on texts "
        "made from it, that the program has to share.",
    )  # fmt: skip
    simplify: bool = Field(
        default=False, description="Also trade agreement for length, and tell how long the program is at each price."
    )


class ImportOptions(Options):
    """openwork import"""

    file: Path = Field(description="Circuit in the JSON of EAP-IG or MIB, for this run's model.")
    task: str = Field(description="Task that it is claimed to do.")
    target: float = Field(default=0.15, gt=0, description="Task loss in nats that it is claimed to reach.")
    reference: Literal["mean", "zero", "counterfactual", "resample"] = Field(
        default="counterfactual", description="What everything outside it sends."
    )


class WatchOptions(Options):
    """openwork watch"""

    model: Path = Field(description="Folder of openwork run flows, or of one of its detectors.")
    out: Path | None = Field(
        default=None, description="File for the alerts, in a chain that can be verified; a stopped watch goes on from "
        "it. Without it alerts go to stdout.",
    )  # fmt: skip
    follow: bool = Field(default=False, description="Wait for more at the end of the file, also after its rotation.")
    key_env: str | None = Field(
        default=None, description="Environment variable with a key: only who has it can write a chain that verifies."
    )


class ViewOptions(Options):
    """openwork view"""

    log: Path | None = Field(
        default=None, description="Of openwork run flows: log of openwork watch whose first alerts are shown; by "
        "default alerts.jsonl in the run's folder.",
    )  # fmt: skip
    alert: int | None = Field(
        default=None, ge=0, description="Of openwork run flows: draw only this entry of the log, on a page of its own."
    )


class ReportOptions(Options):
    """openwork report"""

    out: Path | None = Field(
        default=None, description="Page to write, by default report.html in the run's folder; its content is written "
        "beside it as JSON, with its SHA-256.",
    )  # fmt: skip
    pdf: bool = Field(default=False, description='Write a PDF beside it too; it needs pip install "openwork[pdf]".')
    check: Path | None = Field(default=None, description="In place of a run: a report to check.")
    key_env: str | None = Field(
        default=None, description="Environment variable with a key: the report is signed, or its signature checked."
    )


class AuditOptions(Options):
    """openwork audit"""

    model: Path | None = Field(default=None, description="replay: the detector that wrote the log.")
    key_env: str | None = Field(default=None, description="verify: environment variable with the chain's key.")


# -- the commands ----------------------------------------------------------------------------------------------------

app = App(
    name="openwork",
    version=__version__,
    help="Train networks that can be read, find the circuit behind a behaviour, check that it is real, and show it.",
    help_format="plaintext",
    default_parameter=Parameter(negative=""),
)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Registers a command under its function's name, with its example at the foot of its help."""
    name = function.__name__.removesuffix("_")
    return app.command(function, name=name, help_epilogue=f"Example:  {EXAMPLES[name]}")


Flat = Parameter("*")  # the fields of a schema are the flags of the command
LLMFlags = Parameter("*", name_transform=lambda field: "llm-" + field.replace("_", "-"))


@command
def run(what: Literal["quotes", "digits", "flows"], /, *, options: Annotated[RunOptions, Flat] = RunOptions()) -> None:
    """Everything in order: data, training, circuits, checks, page. Skips what is done, resumes what was stopped."""
    out = options.out or Path("runs") / what
    device, corpus, tasks = options.device_name(), options.corpus, options.tasks
    if what in ("digits", "flows"):
        given = [flag for flag, value in (("--corpus", corpus), ("--tasks", tasks)) if value is not None]
        if given:
            raise UsageError(
                f"openwork run {what} takes no {' and no '.join(given)}: it brings its own data and tasks."
            )

    own = {
        "--data": options.data, "--label": options.label, "--test": options.test, "--ignore": options.ignore,
        "--normal": options.normal,
    }  # fmt: skip
    given = [flag for flag, value in own.items() if value] if what != "flows" else []
    if given:
        raise UsageError(f"{' and '.join(given)}: only openwork run flows takes these.")

    def body(progress: Progress) -> Result:
        from openwork import bench

        if what == "flows":
            from openwork.intrusion import run_flows

            o = options
            return run_flows(
                out, o.preset, o.seeds, o.seed, device, o.data, o.label, o.test, listed(o.ignore), o.normal,
                o.classes == "two", o.false_alarms, o.workers, o.settings, progress,
            )  # fmt: skip
        if what == "digits":
            return bench.run_digits(
                out, options.preset, options.seed, device, options.workers, options.settings, progress
            )
        return bench.run_quotes(
            out, options.preset, options.seed, device, corpus, options.workers, tasks, options.settings, progress
        )

    execute(body, options, "run")


@command
def train(*, options: Annotated[TrainOptions, Flat]) -> None:
    """Train one model under one regime into a run folder; the same command resumes it."""
    o = options
    out = o.out or Path("runs") / f"{o.task}-{o.regime}"

    def body(progress: Progress) -> Result:
        from openwork import bench

        return bench.train_run(
            o.task, o.regime, o.density, out, o.steps, o.preset, o.seed, o.device_name(), o.corpus, o.data, o.settings,
            progress,
        )  # fmt: skip

    execute(body, options, "train")


@command
def compare(*, options: Annotated[CompareOptions, Flat]) -> None:
    """Train several regimes with several seeds and put them side by side: one table, one plot."""
    o = options
    out = o.out or Path("runs") / f"{o.task}-compared"
    regimes = listed(o.regimes)

    def body(progress: Progress) -> Result:
        from openwork.compare import compare_regimes

        return compare_regimes(
            o.task, regimes, o.seeds, out, o.preset, o.device_name(), o.data, o.circuit, o.equal_accuracy, o.steps,
            o.settings, o.workers, progress,
        )  # fmt: skip

    execute(body, options, "compare")


@command
def tasks(*, options: Annotated[TasksOptions, Flat] = TasksOptions()) -> None:
    """List the tasks; with a run, also what its model makes of them."""

    def body(_progress: Progress) -> Result:
        from openwork import bench

        return bench.list_tasks(options.run)

    execute(body, options, "tasks")


@command
def discover(run: Run, /, *, options: Annotated[DiscoverOptions, Flat]) -> None:
    """Find the circuit that decides a task in a trained model, or report that none reaches the target."""

    def body(progress: Progress) -> Result:
        from openwork import bench

        o = options
        return bench.discover_run(
            run, o.task, o.method, o.target, o.seed, o.settings, progress, o.reference, o.granularity, o.workers,
            o.model,
        )  # fmt: skip

    execute(body, options, "discover")


@command
def verify(run: Run, /, *, options: Annotated[VerifyOptions, Flat]) -> None:
    """Test a circuit's claims, each against its null, on data that its discovery never saw."""

    def body(progress: Progress) -> Result:
        from openwork import bench

        o = options
        return bench.verify_run(run, o.circuit, o.seed, progress, o.searches, o.workers)

    execute(body, options, "verify")


@command
def explain(
    run: Run, /, *, options: Annotated[ExplainOptions, Flat], llm: Annotated[LLMOptions, LLMFlags] = LLMOptions()
) -> None:
    """Say in words what a circuit, its modules and nodes do, and test every word on examples its author never saw."""

    def body(progress: Progress) -> Result:
        from openwork import bench

        o = options
        return bench.explain_run(run, o.circuit, o.author, o.nodes, o.seed, llm, o.dossiers, progress)

    execute(body, options, "explain")


@command
def modules(run: Run, /, *, options: Annotated[ModulesOptions, Flat] = ModulesOptions()) -> None:
    """Take a model apart into modules, delete all weights between them, and see what is left and what each is for."""

    def body(progress: Progress) -> Result:
        from openwork import bench

        o = options
        return bench.modules_run(run, o.modules, o.partition, o.draws, o.seed, progress)

    execute(body, options)


@command
def bench(what: Literal["planted"], /, *, options: Annotated[BenchOptions, Flat] = BenchOptions()) -> None:
    """Every way of searching on networks whose circuit is known by construction: who finds it, and how exactly."""
    o = options

    def body(progress: Progress) -> Result:
        from openwork.ground_truth import bench_planted

        return bench_planted(listed(o.methods), listed(o.cases), o.seed, o.workers, o.out, progress, o.granularity)

    execute(body, options)


@command
def export(run: Run, /, *, options: Annotated[ExportOptions, Flat]) -> None:
    """Write a trained perceptron for another machine, or a circuit in a file of another program's format."""
    o = options
    of_circuit = o.to in ("eap-ig", "attribution-graph")
    if of_circuit != (o.circuit is not None):
        needs = "needs --circuit NAME" if of_circuit else "ships the whole model: leave --circuit out"
        raise UsageError(f"--to {o.to} {needs}.")

    def body(_progress: Progress) -> Result:
        if o.circuit is None:
            from openwork.shipping import export_model

            return export_model(run, o.to, o.out)
        from openwork.transfer import export_circuit

        return export_circuit(run, o.circuit, o.to, o.out, o.example)

    execute(body, options, "export")


@command
def decompile(run: Run, /, *, options: Annotated[DecompileOptions, Flat]) -> None:
    """Write a circuit as a Python file that a person can read, and test the file on examples that it never saw."""

    def body(progress: Progress) -> Result:
        from openwork import bench

        o = options
        return bench.decompile_run(run, o.circuit, o.out, o.agreement, o.simplify, o.form, o.binarised, progress)

    execute(body, options, "decompile")


@command
def import_(run: Run, /, *, options: Annotated[ImportOptions, Flat]) -> None:
    """Read a circuit that another program found in this run's model, so that it can be verified here."""

    def body(_progress: Progress) -> Result:
        from openwork.transfer import import_circuit

        return import_circuit(run, options.file, options.task, options.target, options.reference)

    execute(body, options)


@command
def why(run: Run, /, *, options: Annotated[WhyOptions, Flat]) -> None:
    """Say what one decision is made of: the exact sum along the circuit's paths, and what would flip it."""
    o = options
    if (o.rows is None) != (o.out is None):
        raise UsageError("--rows and --out go together: the table to read and the table to write.")
    one = {"input": o.text, "example": o.example, "answer": o.answer, "against": o.against, "html": o.html}
    given = [f"--{name}" for name, value in one.items() if value is not None]
    if o.rows is not None and given:
        raise UsageError(f"--rows asks about many inputs and takes no {' and no '.join(given)}.")

    def body(progress: Progress) -> Result:
        if o.rows is not None and o.out is not None:
            from openwork.decision_rows import why_table

            return why_table(run, o.circuit, o.rows, o.out, o.top or 3, progress)
        from openwork.decisions import why_run

        return why_run(
            run, o.circuit, o.text, o.example, o.answer, o.against, o.top or 10, o.html, not o.as_json, progress
        )

    execute(body, options)


@command
def watch(file: Path | None = None, /, *, options: Annotated[WatchOptions, Flat]) -> None:
    """Judge flows as they come, from a log or standard input: one line per alert, with the reason for it."""
    o, to = options, sys.stdout
    if o.as_json and o.out is None:
        raise UsageError("--json prints one object at the end, where alerts go without --out; give --out FILE.")

    def body(progress: Progress) -> Result:
        from openwork.watch import watch

        result = watch(o.model, file, o.out, o.follow, o.key_env, progress, to)
        if o.out is None:
            print(", ".join(f"{k}: {v}" for k, v in result.items()), file=sys.stderr)
        return result

    execute(body, options, shown=o.out is not None)


@command
def audit(
    what: Literal["verify", "replay"], log: Path, /, *, options: Annotated[AuditOptions, Flat] = AuditOptions()
) -> None:
    """Check that no line of a log of alerts was changed, removed or moved; or compute every alert anew and compare."""
    o = options
    if (what == "replay") != (o.model is not None):
        raise UsageError("openwork audit replay needs --model, and openwork audit verify takes none.")

    def body(_progress: Progress) -> Result:
        if o.model is None:
            from openwork.audit import check_log

            return check_log(log, o.key_env)
        from openwork.watch import check_replay

        return check_replay(log, o.model)

    execute(body, options)


@command
def report(run: Path | None = None, /, *, options: Annotated[ReportOptions, Flat] = ReportOptions()) -> None:
    """Write what a run's models were trained on, do and cannot do as a page that can be checked; or check one."""
    o = options
    if (run is None) == (o.check is None):
        raise UsageError("name a run to report on, or a report to check with --check FILE; one of the two.")
    if o.check is not None and (o.out is not None or o.pdf):
        raise UsageError("--check writes nothing and takes no --out and no --pdf.")

    def body(_progress: Progress) -> Result:
        from openwork.reporting import check_report, write_report

        if run is None:
            return check_report(o.check or Path(), o.key_env)
        return write_report(run, o.out or run / "report.html", o.key_env, o.pdf)

    execute(body, options, "report")


@command
def show(run: Run, /, *, options: Annotated[Options, Flat] = Options()) -> None:
    """Print what a run holds: its model, circuits and evidence."""

    def body(_progress: Progress) -> Result:
        from openwork import bench

        return bench.show_run(run)

    execute(body, options, "show")


@command
def view(run: Run, /, *, options: Annotated[ViewOptions, Flat] = ViewOptions()) -> None:
    """Write a run's page: one HTML file that needs no network."""

    def body(progress: Progress) -> Result:
        from openwork import bench

        return bench.view_run(run, options.log, options.alert, progress)

    execute(body, options, "view")


def execute(body: Callable[[Progress], Result], options: Options, words: str = "", shown: bool = True) -> None:
    """Runs a command's body and prints its result; what the body itself prints goes to stderr.

    words  the command whose words a person is told it in (see `told`)

    A result that says what `failed` is printed all the same, and then raised as a RunError.
    """
    from openwork import threads  # noqa: F401  before torch, which reads its thread settings once

    with contextlib.redirect_stdout(sys.stderr), Progress() as progress:
        result = body(progress)
    from openwork import files, tables

    failed = result.pop("failed", None)
    if options.as_json:
        print(json.dumps(files.plain(result), allow_nan=False))
    elif shown:
        from openwork import told

        tables.show_result(told.in_words(words, result))
    if failed:
        raise RunError(failed)


# -- YAML ------------------------------------------------------------------------------------------------------------


def read_config(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Gives every flag that was not on the command line its value from the file named by --config."""
    flags = {a.name.removeprefix("--"): a for a in arguments if a.name.startswith("--")}
    if "config" not in flags or not flags["config"].tokens:
        return
    from openwork.files import read_yaml

    path = Path(flags.pop("config").tokens[0].value)
    if not path.is_file():
        raise UsageError(f"--config {path}: there is no such file.")
    problems = []
    for name, value in read_yaml(path).items():
        key = str(name).replace("_", "-")
        if key not in flags:
            problems.append(str(unknown("setting", key, flags)))
        elif isinstance(value, dict) or value is None:
            problems.append(f"{key} needs a value, not {'a mapping' if value else 'nothing'}.")
        elif not flags[key].tokens:
            for i, item in enumerate(value if isinstance(value, list) else [value]):
                text = str(item).lower() if isinstance(item, bool) else str(item)
                flags[key].append(Token(keyword=f"--{key}", value=text, source=str(path), index=i))
    if problems:
        raise several(str(path), problems)


app.config = (read_config,)


# -- saying no -------------------------------------------------------------------------------------------------------


def refusal(error: CycloptsError) -> UsageError:
    """A command line that was not understood, as one clear sentence (or a list, where several things are wrong)."""
    cause = error.__cause__
    if not (isinstance(error, ValidationError) and isinstance(cause, pydantic.ValidationError)):
        if isinstance(error, UnusedCliTokensError):
            extra = " ".join(error.unused_tokens or [])
            return UsageError(f'"{extra}" is more than this command takes; its --help shows what it does take.')
        return UsageError(str(error))
    problems = []
    for p in cause.errors():
        named = "-".join(str(part) for part in p["loc"] if isinstance(part, str))  # llm.price_in is --llm-price-in
        named = f"llm-{named}" if cause.title == LLMOptions.__name__ and not named.startswith("llm") else named
        flag = "--" + named.removeprefix("as_").replace("_", "-") if named else "options"
        message = p["msg"].removeprefix("Value error, ")
        choices = p.get("ctx", {}).get("expected") if p["type"] == "literal_error" else None
        if p["type"] == "missing":
            problems.append(f"{flag} is required.")
        elif choices:
            names = choices.replace(" or ", ", ").replace("'", "").split(", ")
            problems.append(str(unknown(f"choice for {flag}", str(p["input"]), names)))
        else:
            problems.append(f"{flag} {p['input']}: {message[0].lower()}{message[1:]}.")
    return several("openwork", problems)


def sentence(error: OSError) -> str:
    """What the operating system refused, and what to do about it."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}. Free some space and give the same command again: it goes on where it stopped."
    return f"{error.strerror or error}{where}."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    try:
        try:
            function, bound, _ = app.parse_args(argv, exit_on_error=False, print_error=False)
        except CycloptsError as e:
            raise refusal(e) from None
        function(*bound.args, **bound.kwargs)
        sys.stdout.flush()
    except OpenworkError as e:
        return say(f"openwork: {str(e).removeprefix('openwork: ')}", e.exit_code)
    except KeyboardInterrupt:
        return say("openwork: stopped. Give the same command again to go on where it stopped.", STOPPED)
    except BrokenPipeError:  # the reader of our output has left, as in `openwork show runs/a | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        return say(f"openwork: {sentence(e)}", 1)
    except Exception:
        traceback.print_exc()
        return say("openwork: this is a fault in openwork itself; please report it with the lines above.", 1)
    return 0


def say(text: str, code: int) -> int:
    """One message on stderr; returns the exit code that goes with it."""
    print(text, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
