"""A trained detector of intrusions, ready to judge flows: its schema, its network and what makes an alert of a score.

    detector.json   beside a run's model: decision, typical flow, the model's and the schema's digests
    schema.json     the columns that it reads
    modules.json    its modules and what is said of them (see `detector_modules`); not of every detector

The reason for an alert is exact: on the straight way from a typical normal flow to this one (see
`explain.accounts.along`), what each column adds to the evidence for the attack, log-odds against normal; what the
typical flow has already and the columns' shares sum to the evidence; so do its modules' shares, with those of paths
from one module to another. Judges in float32 and reasons in float64, by NumPy alone.

Knows schemas and weights. Does not know where flows come from, nor what becomes of alerts.

Shapes: N flows, F features, C classes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openwork.errors import RunError, UsageError
from openwork.explain.accounts.along import Layer, Ways, along, forward
from openwork.export.parts import compacted, needed
from openwork.files import new_folder, read_json, read_model_header, write_json
from openwork.models.mlp import MLP
from openwork.store import load_model
from openwork.tasks.flows.decision import Decision
from openwork.tasks.flows.schema import Batch, Schema, texts_of

VERSION = 1
FLIPS = 3  # columns that the smallest flip may change
TOP = 8  # columns that are tried for it
MODULES = "modules.json"
TOLD = 3  # modules, and pairs of them, that are told of an alert one by one
LEAST = 0.02  # share of what all modules and pairs add, in size, from which one is told

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Modules:
    """What is known of a detector's modules.

    of      per hidden layer of the network as trained, the module of every neuron; () where there are none
    names, labels  of each module; a label says for which attack it speaks and what it reads
    holds  claims that hold of each (see `detector_modules`)
    note    what was found of modules, in a sentence, also where there are none
    """

    of: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    holds: tuple[tuple[str, ...], ...]
    note: str


class Shares(NamedTuple):
    """What the evidence of N flows is made of.

    columns  [N, columns of the schema], what each adds
    before, after  [N], the evidence of the typical flow, and of each flow
    modules  [N, k, k], what paths from each module to each add (one module where none are known)
    """

    columns: np.ndarray
    before: np.ndarray
    after: np.ndarray
    modules: np.ndarray


@dataclass(frozen=True, eq=False)
class Detector:
    """See the head of this file.

    layers   weights and biases in float64, a ReLU after all but the last
    typical  column -> value of a typical normal flow, as a person reads it (median, or most usual value)
    digest   of the model's weights, schema and decision together: what an alert is signed with
    modules  None where nothing is known of them
    """

    schema: Schema
    layers: tuple[Layer, ...]
    decision: Decision
    typical: Mapping[str, Any]
    digest: str
    modules: Modules | None = None

    @cached_property
    def start(self) -> np.ndarray:
        """Features [F] of the typical flow."""
        row = {c.name: np.array([self.typical[c.name]], dtype=object) for c in self.schema.used}
        return self.schema.encode(row)[0].astype(np.float64)

    @cached_property
    def _fast(self) -> tuple[Layer, ...]:
        return tuple((w.astype(np.float32), b.astype(np.float32)) for w, b in self.exact)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Outputs float32 [N, C] of features [N, F]."""
        for w, b in self._fast[:-1]:
            x = np.maximum(x @ w.T + b, 0)
        return x @ self._fast[-1][0].T + self._fast[-1][1]

    @cached_property
    def exact(self) -> tuple[Layer, ...]:
        """The layers in float64 without the hidden neurons that nothing enters or leaves."""
        return compacted(self.layers)

    @cached_property
    def sides(self) -> tuple[np.ndarray, ...] | None:
        """Per layer of `exact`, the module of every hidden neuron; None where there are no modules."""
        if self.modules is None or not self.modules.of:
            return None
        return tuple(of[left] for of, left in zip(self.modules.of, needed(self.layers), strict=True))

    def judge(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features float32 [N, F], scores [N] and classes [N] (0: no alert) of rows."""
        x = self.schema.encode(batch)
        out = self.logits(x)
        return x, self.decision.scores(out), self.decision.decide(out)

    def shares(self, x: np.ndarray, attacks: np.ndarray) -> Shares:
        """What the evidence of flows (features [N, F]) for the attack that each is told to be [N] is made of.

        The evidence is the attack's logit less the normal one's.
        """
        ways = self.ways(x, attacks)
        return Shares(self.by_column(ways.shares), ways.before, ways.after, ways.pairs)

    def ways(self, x: np.ndarray, attacks: np.ndarray) -> Ways:
        """The straight ways from the typical flow to others (features [N, F]), for the evidence of their attacks."""
        to = np.zeros((len(x), len(self.schema.classes)))
        to[np.arange(len(x)), attacks] = 1.0
        to[:, 0] = -1.0
        return along(self.exact, self.start, x.astype(np.float64), to, self.sides)

    def by_column(self, shares: np.ndarray) -> np.ndarray:
        """Shares of features [N, F] summed over each column of the schema [N, columns]."""
        by = np.zeros((len(self.schema.columns), len(shares)))
        np.add.at(by, np.array(self.schema.column_of), shares.T)
        return by.T

    def reasons(self, rows: Batch, shares: Shares, top: int = 5) -> list[Record]:
        """Why flows are alerts, as plain data.

        rows    as they were read, N
        shares  of their evidence, as `shares` gives them

        Of each, `reasons` has the columns that add or take most, with value, unit, normal range and contribution;
        `rest` what the others add together; `typical` what the typical flow has already: all sum to `evidence`, but
        for the `remainder`, which is rounding. `modules` tells the same sum by modules, see `_by_module`.
        """
        by, before, after = shares.columns, shares.before, shares.after
        out = []
        for k in range(len(by)):
            order = [int(i) for i in np.argsort(-np.abs(by[k]), kind="stable") if by[k, i] != 0]
            told = [self._told(i, rows[self.schema.columns[i].name][k], float(by[k, i])) for i in order[:top]]
            rest = float(sum(by[k, i] for i in order[top:]))
            out.append({
                "evidence": float(after[k]), "typical": float(before[k]), "reasons": told, "rest": rest,
                "remainder": float(after[k] - before[k] - by[k].sum()), "modules": self._by_module(shares, k),
            })  # fmt: skip
        return out

    def _by_module(self, shares: Shares, k: int) -> Record | None:
        """What modules add to the evidence of flow k, None where none are known.

        `shares` has at most TOLD modules, those that add or take most, with name, label and the claims that hold of
        each; `between` the same of paths from one module to another; `rest` is what all others add together. With what
        the typical flow has they sum to the evidence, but for the `remainder`.
        """
        known = self.modules
        if known is None or not known.of:
            return None
        of = shares.modules[k].copy()
        size, total = np.abs(of), float(of.sum())
        large = np.argwhere(size >= max(LEAST * size.sum(), 1e-300))
        pairs = [(int(m), int(n)) for m, n in large[np.argsort(-size[tuple(large.T)], kind="stable")]]
        own, crossing = [m for m, n in pairs if m == n][:TOLD], [(m, n) for m, n in pairs if m != n][:TOLD]
        told = [
            {
                "module": known.names[m],
                "label": known.labels[m],
                "holds": list(known.holds[m]),
                "share": float(of[m, m]),
            }
            for m in own
        ]
        between = [{"from": known.names[m], "to": known.names[n], "share": float(of[m, n])} for m, n in crossing]
        for m, n in [*zip(own, own, strict=True), *crossing]:
            of[m, n] = 0
        remainder = float(shares.after[k] - shares.before[k] - total)
        return {"shares": told, "between": between, "rest": float(of.sum()), "remainder": remainder}

    @cached_property
    def _normal(self) -> list[list[float]]:
        """Per column, the range of normal flows, to six digits."""
        return [[float(f"{v:.6g}") for v in (c.low, c.high)] for c in self.schema.columns]

    def _told(self, i: int, value: Any, share: float) -> Record:
        c = self.schema.columns[i]
        told: Record = {"column": c.name, "value": plain_value(value), "contribution": share}
        if c.kind == "number":
            return told | {"unit": c.unit, "normal": self._normal[i]}
        usual = dict(zip(c.values, c.usual, strict=True))
        return told | {"unit": "", "normal_share": usual.get(texts_of(np.array([value], dtype=object))[0] or "", 0.0)}

    def flips(self, x: np.ndarray, by: np.ndarray) -> list[list[Record] | None]:
        """Of each flow (features [N, F], shares of its columns [N, columns]), the fewest columns whose typical values
        would have made it no alert; None if more than FLIPS of the TOP columns that add most are needed. Among as few,
        those that leave the lowest score."""
        order = np.argsort(-by, axis=1, kind="stable")[:, :TOP]
        column_of = np.array(self.schema.column_of)
        out: list[list[Record] | None] = [None] * len(x)
        open_ = np.arange(len(x))
        for many in range(1, FLIPS + 1):
            sets = np.array(list(itertools.combinations(range(order.shape[1]), many)))
            if not len(sets) or not len(open_):
                break
            columns = order[open_][:, sets]  # [alerts, sets, many]
            moves = (column_of[None, None, :, None] == columns[:, :, None, :]).any(-1)
            moved = np.where(moves, self.start, x[open_][:, None, :]).reshape(-1, x.shape[1])
            scores = self.decision.scores(forward(self.exact, moved)).reshape(len(open_), len(sets))
            best = scores.argmin(1)
            done = scores[np.arange(len(open_)), best] < self.decision.threshold
            for i, k, s in zip(open_[done], np.flatnonzero(done), best[done], strict=True):
                names = [self.schema.columns[int(c)].name for c in columns[k, s]]
                out[int(i)] = [{"column": n, "to": plain_value(self.typical[n])} for n in names if n in self.typical]
            open_ = open_[~done]
        return out


def sentence(schema: Schema, attack: str, reasons: Sequence[Record]) -> str:
    """An alert's reasons in one sentence."""
    said = []
    for r in reasons[:3]:
        if r["contribution"] <= 0:
            continue
        c = schema.column(r["column"])
        value = f"{r['value']:,.6g}" if isinstance(r["value"], int | float) else str(r["value"])
        unit = f" {r['unit']}" if r["unit"] else ""
        if c.kind == "number":
            usual = "normally " + " to ".join(f"{float(f'{v:.4g}'):,.12g}" for v in r["normal"])  # 31,090,000
        else:
            usual = f"{100 * r['normal_share']:.3g} % of normal flows"
        said.append(f"{r['column']} is {value}{unit} ({usual})")
    return f"{attack}: " + ("; ".join(said) if said else "no single column speaks for it")


def plain_value(v: Any) -> Any:
    """A value of a row for JSON: whole numbers without a point, and None for what is not finite."""
    if isinstance(v, float | np.floating):
        return None if not np.isfinite(v) else int(v) if float(v).is_integer() and abs(v) < 2**53 else float(v)
    return v.item() if isinstance(v, np.generic) else v


def typical_flow(schema: Schema, codes: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Column -> median, or most usual value, of normal flows (columns as `Schema.codes` gives them)."""
    out: dict[str, Any] = {}
    for c in schema.used:
        x = codes[c.name]
        if c.kind == "number":
            good = x[~np.isnan(x)]
            out[c.name] = float(np.median(good)) if len(good) else c.low
        else:
            most = int(np.bincount(x, minlength=len(c.values) + 1).argmax())
            out[c.name] = c.values[most] if most < len(c.values) else None
    return out


def save_detector(run: Path, schema: Schema, decision: Decision, typical: Mapping[str, Any], facts: Record) -> None:
    """Writes detector.json and schema.json into a run's folder `detector`; facts: anything else worth noting."""
    header = read_model_header(run / "model")
    with new_folder(run / "detector") as temp:
        write_json(temp / "schema.json", schema.to_dict())
        data = {"format": "openwork detector", "version": VERSION, "model": header["digest"], "schema": schema.digest()}
        write_json(temp / "detector.json", data | {"decision": decision.to_dict(), "typical": dict(typical), **facts})


def load_detector(run: Path, with_modules: bool = True) -> Detector:
    """The detector in a run's folder; UsageError where there is none, RunError where its parts do not fit together.

    with_modules  read what is known of its modules too
    """
    at = run / "detector"
    if not (at / "detector.json").exists():
        raise UsageError(f"{run} holds no detector; make one with: openwork run flows --out {run}")
    data = read_json(at / "detector.json")
    if data.get("version") != VERSION:
        raise RunError(f"{at / 'detector.json'} has version {data.get('version')!r}; this openwork reads {VERSION}.")
    schema = Schema.from_dict(read_json(at / "schema.json"))
    header = read_model_header(run / "model")
    if data["model"] != header["digest"] or data["schema"] != schema.digest():
        raise RunError(f"{at} belongs to another model or schema than the ones beside it; make the detector again.")
    layers = layers_of(load_model(run / "model"))
    decision = Decision.from_dict(data["decision"])
    digest = hashlib.sha256(f"{data['model']} {data['schema']} {sorted(data['decision'].items())}".encode()).hexdigest()
    modules = _modules(at / MODULES, data["model"], layers) if with_modules else None
    return Detector(schema, layers, decision, data["typical"], digest, modules)


def _modules(at: Path, model: str, layers: Sequence[Layer]) -> Modules | None:
    """What modules.json says; None where there is none; RunError where it is of another model."""
    if not at.exists():
        return None
    data = read_json(at)
    of = tuple(np.array(m, dtype=np.int64) for m in data["of"])
    fits = not of or [len(m) for m in of] == [len(b) for _, b in layers[:-1]]
    if data.get("version") != VERSION or data["model"] != model or not fits:
        raise RunError(f"{at} belongs to another model or version; delete it, or run openwork run flows again.")
    said = data["modules"]
    holds = tuple(tuple(e["claim"] for e in m["evidence"] if e["verdict"] == "holds") for m in said)
    return Modules(of, tuple(m["name"] for m in said), tuple(m["label"] for m in said), holds, data["note"])


def layers_of(model: Any) -> tuple[Layer, ...]:
    """Weights and biases, in float64, of a perceptron of ReLUs; UsageError for anything else."""
    if not isinstance(model, MLP) or model.config.activation != "relu" or model.config.abstopk < 1 or model.embed:
        raise UsageError("a detector is a perceptron of ReLUs without an embedding.")
    return tuple(
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())  # type: ignore[union-attr]
        for layer in model.layers
    )


__all__ = [
    "MODULES",
    "Detector",
    "Modules",
    "Shares",
    "layers_of",
    "load_detector",
    "plain_value",
    "save_detector",
    "sentence",
    "typical_flow",
]
