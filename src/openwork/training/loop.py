"""The training loop: one loop for every model, data set and combination of regimes.

A regime is a way of training; it acts at five moments (`Regime`) and composes with others as a tuple. All schedules
count steps, so a run is a pure function of its settings, its model and its data: resumed after a kill it equals an
uninterrupted one bit for bit on a CPU.

    folder/  model/  metrics.jsonl  training.json  snapshots/<step>/  tensorboard/  checkpoint/ (until it is done)

Knows one model, batches and the "discover" split for its held-out loss. Does not know circuits, tasks, the verify split.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from openwork import files
from openwork.errors import RunError, UsageError, unknown
from openwork.store import load_model, model_digest, save_model
from openwork.training.data import TrainData, held_out_loss, loss_of
from openwork.training.matrices import copied, count_nonzero, dead_neurons
from openwork.training.optimizers import OPTIMIZERS, gradient_point

Progress = Callable[[int, int, dict[str, Any]], None]  # steps done, steps in all, the latest record of metrics.jsonl

S = TypeVar("S", bound=BaseModel, covariant=True)

FORMAT, VERSION = "openwork-training", 1


class Regime(Generic[S]):
    """A way of training, as what it does at five moments. Each does nothing unless a regime says otherwise.

    `step` counts the optimizer steps done: 0 in the first penalty, 1 after the first step.

    clashes       name of a regime that this one cannot be combined with -> why, as the end of a sentence
    parametrizes  it computes weights from other parameters (torch.nn.utils.parametrize) and bakes them when it
                  finishes: it finishes before those that change plain weights
    """

    name: ClassVar[str]
    clashes: ClassVar[Mapping[str, str]] = {}
    parametrizes: ClassVar[bool] = False

    def __init__(self, settings: S) -> None:
        self.settings = settings

    def prepare(self, model: nn.Module, steps: int) -> None:
        """Before the optimizer is made: registers parametrizations, looks at the model's shape."""

    def during(self, model: nn.Module, step: int) -> AbstractContextManager[None]:
        """Around the forward and backward pass of a step: the place of hooks; on leaving, the gradients are there."""
        return nullcontext()

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameters that `prepare` added, as an optimizer's groups; "lr_factor" multiplies the run's learning rate."""
        return []

    def penalty(self, model: nn.Module, step: int) -> Tensor | None:
        """What is added to the loss, in nats; sees the weights that this step's loss saw."""
        return None

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """After the optimizer's step, while its gradients are still there."""

    def finish(self, model: nn.Module) -> None:
        """Leaves plain parameters. Also called on copies, for snapshots."""

    def density(self, step: int) -> float:
        """Nominal share of nonzero weights after `step` steps."""
        return 1.0

    def report(self, model: nn.Module) -> dict[str, float]:
        """More columns for metrics.jsonl; called once per record."""
        return {}

    def notes(self) -> dict[str, Any]:
        """What a reader of the stored model should know: plain data for its config.json, under the regime's name."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a resumed run must know: tensors and plain data."""
        return {}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """The inverse of `state`, called after `prepare`."""


class TrainSettings(BaseModel):
    """How long and how fast to train. Unknown keys are refused; shares are of the whole run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=1500, ge=1)
    optimizer: str = Field(default="adamw", description="one of OPTIMIZERS")
    lr: float = Field(default=5e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0, description="on matrices only")
    warmup: float = Field(default=0.03, ge=0, le=1, description="share of the run over which lr rises")
    decay_from: float = Field(default=0.5, ge=0, le=1, description="share of the run after which lr falls to 0")
    lr_density_power: float = Field(
        default=0.0, ge=0, description="lr is multiplied by (final density / density now) ** this; the paper: 0.5"
    )
    clip: Literal["norm", "rms", "none"] = Field(
        "norm", description="norm: global norm at most 1; rms: always divided by the global RMS (released code)"
    )
    amp: bool = Field(True, description="bfloat16 autocast on CUDA; never on a CPU, where it is 10 to 20 times slower")
    seed: int = Field(default=0, ge=0, description="of what the regimes draw at random")
    log_every: int = Field(default=20, ge=1)
    eval_every: int = Field(default=200, ge=1)
    checkpoint_every: int = Field(default=200, ge=1)
    snapshots: tuple[int, ...] = Field(
        default=(), description="steps after which the model is kept in snapshots/<step>/"
    )
    tensorboard: bool = False

    @model_validator(mode="after")
    def _snapshots_are_steps(self) -> TrainSettings:
        if any(not 1 <= s <= self.steps for s in self.snapshots):
            raise ValueError(f"snapshots {list(self.snapshots)}: each must be a step from 1 to {self.steps}")
        return self


# settings that change what is written on the way, not what is learned
_WATCHING = {"log_every", "eval_every", "checkpoint_every", "tensorboard"}


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    loss, held_out      nats per target: mean over the last records' steps, and on the "discover" split in the end
    nonzero, total      entries of the matrices (parameters of two axes or more)
    density_*           nominal: what the regimes ask for; achieved: nonzero / total
    seconds             wall time, cpu_seconds: of all threads, both over all resumed parts
    tokens              targets seen
    regimes             what the regimes reported of the final model, by name; those that report nothing are left out
    """

    steps: int
    loss: float
    held_out: float
    nonzero: int
    total: int
    density_nominal: float
    density_achieved: float
    seconds: float
    cpu_seconds: float
    tokens: int
    regimes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def train(
    model: nn.Module,
    data: TrainData,
    regimes: Sequence[Regime[BaseModel]],
    settings: TrainSettings,
    folder: Path,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TrainResult:
    """Trains a model in place, writes everything to `folder`, and resumes what it finds begun there.

    A folder that holds the same run finished is not trained again: its weights are loaded. A folder that holds a run
    with other settings is refused (UsageError), and so are a model that `openwork.build` did not make, and regimes that
    refuse it or each other.

    model   with a `config`, as `openwork.build` makes it
    data    batches and held-out batches (see `training.data.TrainData`)
    device  "cpu", "cuda" or "cuda:N"
    """
    if not isinstance(getattr(model, "config", None), BaseModel):
        raise UsageError(
            f"a {type(model).__name__} has no config to be stored with and built again from; train one that "
            "openwork.build makes, or train yours elsewhere and go on as docs/own_model.md says."
        )
    where = _device(device)
    run = _Run(model, data, tuple(regimes), settings, Path(folder), where, _plan(model, data, regimes, settings))
    known = run.finished()
    if known is not None:
        return known
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []), run.events():
        torch.manual_seed(settings.seed)
        run.begin()
        record: dict[str, Any] = {}
        while run.step < settings.steps:
            run.advance()
            due = _due(run.step, settings)
            if due:
                record = run.record()
            if run.step % settings.checkpoint_every == 0 and run.step < settings.steps:
                run.save_checkpoint()
            if due and progress is not None:
                progress(run.step, settings.steps, record)
        return run.conclude(record)


def lr_factor(step: int, s: TrainSettings) -> float:
    """Factor of the learning rate in step `step` (counted from 0): warm-up, constant, linear to 0."""
    rise = min(1.0, (step + 1) / (s.warmup * s.steps)) if s.warmup > 0 else 1.0
    fall_from = s.decay_from * s.steps
    fall = min(1.0, (s.steps - step) / (s.steps - fall_from)) if fall_from < s.steps else 1.0
    return min(rise, fall)


# -- the parts of a run ------------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    """What happened since the last record; `loss` stays on the device so that no step waits for it."""

    loss: Tensor
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    timed: float = 0.0  # seconds of the steps whose projection was timed
    projecting: float = 0.0


@dataclass
class _Run:
    """The state of one training run and the few things that are done with it."""

    model: nn.Module
    data: TrainData
    regimes: tuple[Regime[BaseModel], ...]
    settings: TrainSettings
    folder: Path
    device: torch.device
    plan: dict[str, Any]
    step: int = 0
    tokens: int = 0
    spent: float = 0.0  # wall seconds of earlier parts of this run
    spent_cpu: float = 0.0
    losses: list[float] = field(default_factory=list)
    reports: dict[str, dict[str, float]] = field(default_factory=dict)  # of the latest record
    writer: Any = None

    # -- beginning and end ------------------------------------------------------------------------------------------

    def finished(self) -> TrainResult | None:
        """The result, if this very run is done already; refuses a folder that holds another run."""
        path = self.folder / "training.json"
        if not path.exists():
            return None
        stored = files.read_json(path)
        self._same_run(stored.get("plan", {}))
        try:
            figures: dict[str, Any] = {k: math.nan if v is None else v for k, v in stored["result"].items()}
            result = TrainResult(**figures)
        except (KeyError, TypeError, AttributeError) as e:
            raise RunError(f"{path} is damaged: {e!r}.") from e
        self.model.load_state_dict(load_model(self.folder / "model").state_dict())
        self.model.to(self.device)
        return result

    def begin(self) -> None:
        """Sets everything up, from the checkpoint where there is one."""
        self._start, self._start_cpu = time.perf_counter(), time.process_time()
        self.model.to(self.device).train()
        for regime in self.regimes:
            regime.prepare(self.model, self.settings.steps)
        own = [group for regime in self.regimes for group in regime.groups(self.model)]
        self.optimizer = OPTIMIZERS[self.settings.optimizer](self.model, self.settings, own)
        self.tally = _Tally(torch.zeros((), device=self.device))
        self._restore()
        kept = [r for r in files.read_jsonl(self._metrics) if r.get("step", math.inf) <= self.step]
        files.write_text(self._metrics, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))

    def conclude(self, record: Mapping[str, Any]) -> TrainResult:
        """Stores the model and the result, and drops the checkpoint."""
        nonzero, total = count_nonzero(self.model)
        result = TrainResult(
            steps=self.step,
            loss=sum(self.losses) / len(self.losses),
            held_out=record["held_out"],
            nonzero=nonzero,
            total=total,
            density_nominal=self._nominal(),
            density_achieved=nonzero / total,
            seconds=self._seconds(),
            cpu_seconds=self._cpu_seconds(),
            tokens=self.tokens,
            regimes=self.reports,
        )
        save_model(self.folder / "model", self.model, {**self._notes(), "training": asdict(result)})
        document = {"format": FORMAT, "version": VERSION, "plan": self.plan, "result": asdict(result)}
        files.write_json(self.folder / "training.json", document)
        files.remove(self._checkpoint.parent)
        return result

    # -- one step ---------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """One optimizer step and what follows it."""
        s, done = self.settings, self.step + 1
        begin = time.perf_counter()
        factor = lr_factor(self.step, s) * self._density_factor()
        for group in self.optimizer.param_groups:
            group["lr"] = s.lr * factor * group.get("lr_factor", 1.0)
        inputs, targets = self.data.batch(self.step)
        with ExitStack() as around:
            around.enter_context(parametrize.cached())  # penalties see the very sample that the loss saw
            around.enter_context(gradient_point(self.optimizer))
            for regime in self.regimes:
                around.enter_context(regime.during(self.model, self.step))
            loss = loss_of(self.model, self.data, inputs, targets, self.device, s.amp)
            penalties = [p for r in self.regimes if (p := r.penalty(self.model, self.step)) is not None]
            (loss + sum(penalties) if penalties else loss).backward()
        _clip(self.model, s.clip)
        self.optimizer.step()
        timed = self.device.type == "cpu" or _due(done, s)  # on CUDA timing needs a wait, so it is done on few steps
        before = self._now() if timed else begin
        for regime in self.regimes:
            regime.after_step(self.model, self.optimizer, done)
        after = self._now() if timed else time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        self._count(loss.detach(), targets.numel(), after - begin, after - before if timed else None)
        self.step = done
        if done == s.steps:
            self._finish(self.model)
        if done in s.snapshots:
            self._save_snapshot()

    def _finish(self, model: nn.Module) -> None:
        """Leaves plain weights: what was computed from other parameters is baked first, the last added before all."""
        parametrizing = [r for r in reversed(self.regimes) if r.parametrizes]
        for regime in (*parametrizing, *(r for r in self.regimes if not r.parametrizes)):
            regime.finish(model)

    def _count(self, loss: Tensor, tokens: int, seconds: float, projecting: float | None) -> None:
        t = self.tally
        t.loss += loss
        t.steps += 1
        t.tokens += tokens
        t.seconds += seconds
        if projecting is not None:
            t.timed += seconds
            t.projecting += projecting
        self.tokens += tokens

    def _density_factor(self) -> float:
        """(density now / final density) ** -power; the learning rate grows as the model gets sparser."""
        now, final = self._nominal(), self._nominal(self.settings.steps)
        return (now / final) ** -self.settings.lr_density_power

    def _nominal(self, step: int | None = None) -> float:
        """What the regimes together ask for: the sparsest of them counts."""
        return min((r.density(self.step if step is None else step) for r in self.regimes), default=1.0)

    # -- books ------------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """Adds one line to metrics.jsonl and returns it."""
        s, t = self.settings, self.tally
        loss = float(t.loss) / t.steps
        if not math.isfinite(loss):
            raise RunError(
                f"training diverged before step {self.step}: the loss is {loss}; try a lower lr than {s.lr}."
            )
        last = self.step == s.steps
        nonzero, total = count_nonzero(self.model)
        record = {
            "step": self.step,
            "loss": loss,
            "held_out": self._held_out() if last or self.step % s.eval_every == 0 else None,
            "density": self._nominal(),
            "achieved": nonzero / total,
            "nonzero": nonzero,
            "dead_neurons": dead_neurons(self.model),
            "lr": self.optimizer.param_groups[0]["lr"],
            "tokens": self.tokens,
            "tokens_per_s": t.tokens / t.seconds,
            "projection_share": t.projecting / t.timed if t.timed else 0.0,
            "seconds": self._seconds(),
        }
        self.reports = {r.name: told for r in self.regimes if (told := r.report(self.model))}
        for told in self.reports.values():
            record |= told
        self.losses = [*self.losses[-4:], loss]
        self.tally = _Tally(torch.zeros((), device=self.device))
        files.append_jsonl(self._metrics, record)
        if self.writer is not None:
            for name, value in record.items():
                if value is not None and name != "step":
                    self.writer.add_scalar(name, value, self.step)
        return record

    @contextmanager
    def events(self) -> Iterator[None]:
        """TensorBoard's event file, where it is asked for; events after the checkpoint are hidden by the new ones."""
        if not self.settings.tensorboard:
            yield
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise UsageError('TensorBoard is not installed: pip install "openwork[track]".') from e
        at = self._read_checkpoint()
        try:
            self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=at["step"] + 1 if at else 0)
        except OSError as e:
            raise RunError(f"cannot write {self.folder / 'tensorboard'}: {e.strerror or e}.") from e
        try:
            yield
        finally:
            self.writer.close()
            self.writer = None

    def _held_out(self) -> float:
        return held_out_loss(self.model, self.data, self.device, self.settings.amp)

    def _save_snapshot(self) -> None:
        """Keeps the model as it is now, finished like the final one."""
        plain = copied(self.model)
        if self.step < self.settings.steps:
            self._finish(plain)
        held_out = held_out_loss(plain, self.data, self.device, self.settings.amp)
        extra = {**self._notes(), "step": self.step, "held_out": held_out, "tokens": self.tokens}
        save_model(self.folder / "snapshots" / str(self.step), plain, extra)

    def _notes(self) -> dict[str, Any]:
        return {r.name: notes for r in self.regimes if (notes := r.notes())}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _seconds(self) -> float:
        return self.spent + time.perf_counter() - self._start

    def _cpu_seconds(self) -> float:
        return self.spent_cpu + time.process_time() - self._start_cpu

    @property
    def _metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    # -- checkpoints ------------------------------------------------------------------------------------------------

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint" / "state.pt"

    def save_checkpoint(self) -> None:
        """Writes everything that a resumed run needs to go on as if nothing had happened."""
        t = self.tally
        state = {
            "version": VERSION,
            "plan": json.dumps(self.plan),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self._seconds(),
            "cpu_seconds": self._cpu_seconds(),
            "losses": self.losses,
            "tally": {"loss": t.loss, "steps": t.steps, "tokens": t.tokens, "seconds": t.seconds},
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "regimes": [r.state() for r in self.regimes],
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        files.write_bytes(self._checkpoint, buffer.getbuffer())

    def _read_checkpoint(self) -> dict[str, Any] | None:
        path = self._checkpoint
        if not path.exists():
            return None
        try:
            state = torch.load(io.BytesIO(files.read_bytes(path)), map_location="cpu", weights_only=True)
            plan, version = json.loads(state["plan"]), state["version"]
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError) as e:
            raise RunError(f"{path} is damaged; remove {path.parent} to train this run from its start.") from e
        if version > VERSION:
            raise RunError(f"{path} was written by a newer openwork; upgrade with `pip install --upgrade openwork`.")
        self._same_run(plan)
        return state

    def _restore(self) -> None:
        state = self._read_checkpoint()
        if state is None:
            return
        self.step, self.tokens, self.losses = state["step"], state["tokens"], state["losses"]
        self.spent, self.spent_cpu = state["seconds"], state["cpu_seconds"]
        tally = state["tally"]
        self.tally = _Tally(tally["loss"].to(self.device), tally["steps"], tally["tokens"], tally["seconds"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for regime, of in zip(self.regimes, state["regimes"], strict=True):
            regime.restore(of, self.device)
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def _same_run(self, stored: Mapping[str, Any]) -> None:
        """Refuses to go on with a run that was begun differently."""
        if stored == self.plan:
            return
        raise UsageError(
            f"{self.folder} holds a run with other settings ({'; '.join(_differences(stored, self.plan))}): "
            "choose another folder, or remove this one."
        )


# -- small parts -------------------------------------------------------------------------------------------------------


def _plan(model: nn.Module, data: TrainData, regimes: Sequence[Regime[BaseModel]], s: TrainSettings) -> dict[str, Any]:
    """Everything a run depends on, as plain data: two runs with equal plans learn the same weights."""
    if s.optimizer not in OPTIMIZERS:
        raise unknown("optimizer", s.optimizer, OPTIMIZERS)
    names = [r.name for r in regimes]
    if len(set(names)) < len(names):
        raise UsageError(f"the regimes {', '.join(names)} do not compose: each may appear once.")
    for r in regimes:
        for other in (n for n in names if n in r.clashes):
            raise UsageError(f"the regimes {r.name} and {other} do not compose: {r.clashes[other]}.")
    inputs, targets = data.batch(0)
    first = hashlib.sha256()
    for t in (*inputs, targets):
        first.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return files.plain(
        {
            "settings": s.model_dump(mode="json", exclude=_WATCHING),
            "regimes": {r.name: r.settings.model_dump(mode="json") for r in regimes},
            "model": model_digest(model),
            "data": first.hexdigest(),
        }
    )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], within: str = "") -> list[str]:
    """What two plans disagree about, as "name: old, now new"."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), f"{within}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{name}.")
        elif a != b and key in ("model", "data") and not within:
            found.append("other initial weights" if key == "model" else "other data")
        elif a != b:
            found.append(f"{name}: {a}, now {b}")
    return found


def _due(step: int, s: TrainSettings) -> bool:
    """Whether a record is written after `step` steps."""
    return step % s.log_every == 0 or step % s.eval_every == 0 or step == s.steps


def _clip(model: nn.Module, how: str) -> None:
    """Bounds the gradient."""
    trained = [p for p in model.parameters() if p.grad is not None]
    if how == "norm":
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
    elif how == "rms":
        grads = [p.grad for p in trained if p.grad is not None]
        rms = torch.nn.utils.get_total_norm(grads) / math.sqrt(sum(g.numel() for g in grads))
        for g in grads:
            g.div_(rms + 1e-5)


def _device(name: str) -> torch.device:
    """The device of that name; refuses one that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise UsageError(f'no device named "{name}". There is: cpu, cuda.') from e
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f'cannot train on "{name}". There is: cpu, cuda.')
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f'no device "{name}": torch sees no CUDA device here. There is: cpu.')
    return device
