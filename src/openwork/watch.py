"""`openwork watch`: flows in, alerts that answer for themselves out, one JSON line each, in an audit log.

Every good line is judged once, whatever happens: alerts, broken lines and the place in the input are committed
together, batch by batch, and a stopped watch goes on from its last commit, undoing what was written after it. Memory
holds one batch; a reader that cannot keep up with the alerts holds the input up, not the memory.

    OUT            alerts and model versions, chained (see `audit`); OUT.head its end
    OUT.state      the place in the input, sizes of the files written, counts
    OUT.rejected   broken lines as they came, for a person to look at

Knows detectors, lines and logs. Does not know how a detector was trained.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from openwork import audit
from openwork.audit import Head
from openwork.detector import Detector, load_detector, plain_value, sentence
from openwork.errors import RunError, UsageError
from openwork.files import read_json, write_json
from openwork.progress import Progress
from openwork.tasks.flows.schema import IDENTIFIERS, MISSING, Batch
from openwork.tasks.flows.stream import Place, from_file, from_pipe, with_inode

Record = dict[str, Any]


# -- lines to columns --------------------------------------------------------------------------------------------------


@dataclass
class Parser:
    """Lines of a flow log as columns: those that a detector reads and those that name a flow.

    A line is broken if it has another number of fields than the header, is no JSON object, or has text where the
    detector reads a number.
    """

    detector: Detector
    format: str = ""
    names: tuple[str, ...] = ()
    waiting: bool = False

    def begin(self, data: bytes, path: Path | None = None) -> None:
        """Learns the format and the columns from the beginning of a file."""
        head = data.lstrip()[:1]
        if head == b"{":
            self.format, self.names = "json", ()
            return
        lines = data.split(b"\n")
        if head == b"#":
            fields = [x for x in lines if x.startswith(b"#fields")]
            if not fields:
                raise UsageError("this Zeek log has no #fields line, which names its columns.")
            self.format, self.names = "zeek", tuple(fields[0].decode().rstrip("\r").split("\t")[1:])
        else:
            self.format = "csv"
            self.names = tuple(n.strip() for n in next(csv.reader([lines[0].decode(errors="replace")])))
        gone = self.detector.schema.missing_columns(self.names)
        if gone:
            raise UsageError(
                f"{path or 'the input'} has no column {', '.join(gone)}, which the detector reads; "
                f"it has {', '.join(self.names)}."
            )
        wanted = self._wanted(self.names)
        twice = sorted({n for n in wanted if wanted.count(n) > 1})
        if twice:
            raise UsageError(f"{path or 'the input'} names the column {', '.join(twice)} more than once; rename one.")

    def parse(self, data: bytes, begins: bool) -> tuple[Batch, int, list[bytes]]:
        """Columns of the good lines, how many those are, and the broken lines."""
        begins, self.waiting = begins or self.waiting, False
        if begins and all(x.startswith(b"#") for x in data.split(b"\n") if x) and b"#fields" not in data:
            self.waiting = True  # a header that is still being written
            return {}, 0, []
        if begins:
            self.begin(data)
        lines = [x.rstrip(b"\r") for x in data.split(b"\n")]
        if self.format == "json":
            return self._json([x for x in lines if x])
        if self.format == "zeek":
            return self._table([x for x in lines if x and not x.startswith(b"#")], "\t")
        return self._table([x for x in (lines[1:] if begins else lines) if x], ",")

    def _json(self, lines: list[bytes]) -> tuple[Batch, int, list[bytes]]:
        records, bad = [], []
        for x in lines:
            try:
                record = json.loads(x)
            except ValueError:
                record = None
            if isinstance(record, dict):
                records.append((x, record))
            else:
                bad.append(x)
        columns = {n: np.array([_value(r.get(n)) for _, r in records], dtype=object) for n in self._wanted(None)}
        return self._checked(columns, [x for x, _ in records], bad)

    def _table(self, lines: list[bytes], separator: str) -> tuple[Batch, int, list[bytes]]:
        try:
            import polars as pl
        except ImportError as e:
            raise UsageError('reading flow logs needs polars: pip install "openwork[data]".') from e
        tabs, mark = len(self.names) - 1, separator.encode()
        good, bad = [], []
        for x in lines:
            if b'"' in x and separator == ",":
                parts = next(csv.reader([x.decode(errors="replace")]), [])
                (good if len(parts) == len(self.names) else bad).append(x)
            else:
                (good if x.count(mark) == tabs else bad).append(x)
        if not good:
            return {}, 0, bad
        frame = pl.read_csv(
            io.BytesIO(b"\n".join(x.decode(errors="replace").encode() for x in good)), has_header=False,
            separator=separator, infer_schema=False, quote_char='"' if separator == "," else None,
            columns=[self.names.index(n) for n in self._wanted(self.names)], null_values=list(MISSING),
            new_columns=list(self._wanted(self.names)),
        )  # fmt: skip
        return self._checked({n: frame[n] for n in frame.columns}, good, bad)

    def _wanted(self, names: Iterable[str] | None) -> list[str]:
        """Columns that are read, in the file's order where it has one."""
        used = {c.name for c in self.detector.schema.used}
        if names is None:
            return [*used, *IDENTIFIERS]
        return [n for n in names if n in used or n.lower() in IDENTIFIERS]

    def _checked(
        self, columns: Mapping[str, Any], lines: list[bytes], bad: list[bytes]
    ) -> tuple[Batch, int, list[bytes]]:
        out: dict[str, np.ndarray] = {}
        broken = np.zeros(len(lines), dtype=bool)
        numbers = {c.name for c in self.detector.schema.used if c.kind == "number"}
        for name, x in columns.items():
            if name not in numbers:
                out[name] = x if isinstance(x, np.ndarray) else np.array(x.to_list(), dtype=object)
                continue
            values, wrong = _numbers(x)
            out[name], broken = values, broken | wrong
        if broken.any():
            bad = bad + [lines[i] for i in np.flatnonzero(broken)]
            out = {n: x[~broken] for n, x in out.items()}
        return out, int((~broken).sum()), bad


def _value(v: Any) -> Any:
    return (
        None if isinstance(v, str) and v in MISSING else v if v is None or isinstance(v, str | int | float) else str(v)
    )


def _numbers(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Values float64 (nan where missing), and where text stands instead of a number."""
    if isinstance(x, np.ndarray):
        values, wrong = np.full(len(x), np.nan), np.zeros(len(x), dtype=bool)
        for i, v in enumerate(x.tolist()):
            if v is not None:
                try:
                    values[i] = {"T": 1.0, "F": 0.0}.get(v, v) if isinstance(v, str) else v
                except (TypeError, ValueError):
                    wrong[i] = True
        return values, wrong
    import polars as pl

    y = x.str.strip_chars().replace({"T": "1", "F": "0"}).cast(pl.Float64, strict=False)
    return y.to_numpy().astype(np.float64), (y.is_null() & x.is_not_null()).to_numpy()


# -- alerts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """What is known of the circuit behind an attack: its name, claims that hold of it, and what it is said to do."""

    circuit: str
    holds: tuple[str, ...]
    label: str


def known_circuits(run: Path, classes: Iterable[str]) -> dict[str, Known]:
    """Attack -> its circuit, or the one that tells attacks of any kind; attacks without a circuit are left out."""
    found = {}
    for at in sorted(run.glob("circuits/*/circuit.json")):
        header = read_json(at)
        holds = tuple(e["claim"] for e in header["evidence"] if e["verdict"] == "holds")
        said = [
            x["text"]
            for x in header["explanations"]
            if x["text"] and x["evidence"] and x["evidence"][0]["verdict"] == "holds"
        ]
        found[str(header["origin"].get("task"))] = Known(at.parent.name, holds, said[-1] if said else "")
    return {c: found.get(c, found.get("attack")) for c in classes if c in found or "attack" in found}  # type: ignore[misc]


def alerts(detector: Detector, known: Mapping[str, Known], batch: Batch, n: int, now: str) -> list[Record]:
    """The alerts among n flows, in their order."""
    if not n:
        return []
    x, scores, classes = detector.judge(batch)
    at = np.flatnonzero(classes)
    if not len(at):
        return []
    rows = {name: column[at] for name, column in batch.items()}
    shares = detector.shares(x[at], classes[at])
    told, flips = detector.reasons(rows, shares), detector.flips(x[at], shares.columns)
    used = [c.name for c in detector.schema.used]
    named = [n for n in batch if n not in used]
    out = []
    for k, i in enumerate(at):
        attack = detector.schema.classes[int(classes[i])]
        given = {name: plain_value(rows[name][k]) for name in used}
        of = known.get(attack)
        out.append({
            "kind": "alert", "at": now, "class": attack, "score": float(scores[i]),
            "threshold": detector.decision.threshold, "sentence": sentence(detector.schema, attack, told[k]["reasons"]),
            **told[k], "flip": flips[k],
            "circuit": None if of is None else {"name": of.circuit, "holds": list(of.holds), "label": of.label},
            "flow": {name: plain_value(rows[name][k]) for name in named}, "input": given,
            "input_digest": digest_of(given), "model": detector.digest,
        })  # fmt: skip
    return out


def digest_of(given: Mapping[str, Any]) -> str:
    """SHA-256 of a flow as the detector read it."""
    return hashlib.sha256(json.dumps(given, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# -- committing --------------------------------------------------------------------------------------------------------


@dataclass
class Output:
    """The files of a watch, and what was committed to them last."""

    out: Path
    key: bytes | None
    source: str
    head: Head = field(default_factory=Head)
    place: Place = field(default_factory=Place)
    rejected: int = 0  # bytes
    flows: int = 0
    broken: int = 0
    found: int = 0
    model: str = ""

    @property
    def state_at(self) -> Path:
        """Where the state is."""
        return self.out.with_name(self.out.name + ".state")

    @property
    def rejected_at(self) -> Path:
        """Where broken lines are."""
        return self.out.with_name(self.out.name + ".rejected")

    def open(self) -> None:
        """Goes on from the last commit, undoing what was written after it; refuses files of another watch."""
        if self.state_at.exists():
            state = read_json(self.state_at)
            if state["source"] != self.source:
                raise UsageError(
                    f"{self.out} belongs to a watch of {state['source']}; choose another --out for {self.source}."
                )
            self.head, self.place = Head(**state["head"]), Place(**state["place"])
            for name in ("rejected", "flows", "broken", "found", "model"):
                setattr(self, name, state[name])
            for path, size in ((self.out, self.head.size), (self.rejected_at, self.rejected)):
                have = path.stat().st_size if path.exists() else 0
                if have < size:
                    raise RunError(f"{path} is shorter than what was committed to it ({have} of {size} bytes).")
                if have > size:
                    with path.open("r+b") as f:
                        f.truncate(size)
            noted = audit.read_head(self.out)
            if noted is None or noted.entries < self.head.entries:  # stopped between the state and the head
                audit.write_head(self.out, self.head)
        elif self.out.exists() and self.out.stat().st_size:
            raise UsageError(
                f"{self.out} exists and no {self.state_at.name} says how far it went; choose another --out."
            )
        self.out.parent.mkdir(parents=True, exist_ok=True)

    def commit(self, records: list[Record], bad: list[bytes], n: int, place: Place) -> None:
        """Writes alerts and broken lines, then the state that counts them as written."""
        data, head = audit.chained(records, self.head, self.key)
        broken = b"".join(x + b"\n" for x in bad)
        for path, some in ((self.out, data), (self.rejected_at, broken)):
            if some or not path.exists():
                with path.open("ab") as f:
                    f.write(some)
                    f.flush()
                    os.fsync(f.fileno())
        self.head, self.place = head, place
        self.rejected += len(broken)
        self.flows, self.broken = self.flows + n, self.broken + len(bad)
        self.found += sum(r["kind"] == "alert" for r in records)
        state = {"head": vars(head), "place": vars(place), "source": self.source}
        names = ("rejected", "flows", "broken", "found", "model")
        write_json(self.state_at, state | {n: getattr(self, n) for n in names})
        audit.write_head(self.out, head)


def watch(
    model: Path,
    source: Path | None,
    out: Path | None,
    follow: bool = False,
    key_env: str | None = None,
    progress: Progress | None = None,
    to: Any = None,
    pipe: BinaryIO | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Record:
    """Judges the flows of a file, or of a pipe, and returns counts.

    model    a run folder with a detector, or a `run flows` folder
    source   the log; None reads the pipe (by default standard input)
    out      where alerts go; None writes them to `to`, without a chain and without going on after a stop
    follow   wait for more lines at the end of the file
    stopped  asked between batches, ends the watch; by default SIGTERM does
    """
    stopped = stopped or stop_on_signals()
    at = model / "sparse" if (model / "sparse" / "detector").is_dir() else model
    detector = load_detector(at)
    known = known_circuits(at, detector.schema.classes[1:])
    key = audit.key_from(key_env)
    progress = progress or Progress(False)
    if follow and source is None:
        raise UsageError("--follow needs a file to follow; standard input is followed until it ends.")
    if source is None and out is not None and pipe is None and sys.stdin.isatty():
        raise UsageError("name a flow log, or send one to standard input: openwork watch --model RUN < conn.log")
    written = Output(out, key, str(source.resolve()) if source else "standard input") if out else None
    if written:
        written.open()
    parser, began, counts = Parser(detector), time.monotonic(), [0, 0, 0]
    if written and written.place.offset and source is not None:
        _header(parser, source, written.place)
    place = written.place if written and source is not None else Place()
    pieces = from_file(source, place, follow, stopped) if source else from_pipe(pipe or sys.stdin.buffer)
    total = source.stat().st_size if source and not follow else 0
    bar = progress.task("watch", total) if total else None
    for piece in pieces:
        begins = piece.begins and piece.place.offset == len(
            piece.data
        )  # of a file gone on with, the middle comes first
        batch, n, bad = parser.parse(piece.data, begins)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        found = alerts(detector, known, batch, n, now)
        counts = [counts[0] + n, counts[1] + len(bad), counts[2] + len(found)]
        if written:
            records = found
            if written.model != detector.digest:
                note = None if detector.modules is None else detector.modules.note
                records = [
                    {"kind": "model", "at": now, "model": detector.digest, "run": str(at), "modules": note},
                    *found,
                ]
                written.model = detector.digest
            written.commit(records, bad, n, piece.place)
        elif to is not None:
            for alert in found:
                to.write(json.dumps(alert, separators=(",", ":"), allow_nan=False) + "\n")
            to.flush()
        if bar:
            bar.update(piece.place.offset)
    if bar:
        bar.finish()
    seconds = time.monotonic() - began
    result: Record = {
        "flows": counts[0], "broken_lines": counts[1], "alerts": counts[2], "seconds": seconds,
        "flows_per_second": counts[0] / seconds if seconds else None, "model": detector.digest,
    }  # fmt: skip
    if written:
        result |= {
            "log": str(out), "rejected": str(written.rejected_at), "all_flows": written.flows,
            "all_broken_lines": written.broken, "all_alerts": written.found,
        }  # fmt: skip
    return result


def _header(parser: Parser, source: Path, place: Place) -> None:
    """Learns the columns from the beginning of the file that is gone on with."""
    at = source if source.is_file() and os.stat(source).st_ino == place.inode else with_inode(source, place.inode)
    if at is not None:
        with at.open("rb") as f:
            parser.begin(f.read(1 << 16), at)


# -- replay ------------------------------------------------------------------------------------------------------------


def replay(log: Path, model: Path, tolerance: float = 1e-9) -> Record:
    """Computes every alert of a log anew from its stored input and compares: class, score, evidence, contributions, and
    what its modules carried, where it says so.

    Alerts of other versions of the model are counted and left out.
    """
    at = model / "sparse" if (model / "sparse" / "detector").is_dir() else model
    detector = load_detector(at)
    same, other, differ = 0, 0, []
    for some in _groups(audit.entries(log), 2_000):
        mine = [e for e in some if e.get("kind") == "alert"]
        other += sum(e["model"] != detector.digest for e in mine)
        mine = [e for e in mine if e["model"] == detector.digest]
        if not mine:
            continue
        batch = {
            c.name: np.array([e["input"].get(c.name) for e in mine], dtype=object if c.kind == "category" else float)
            for c in detector.schema.used
        }
        x, scores, classes = detector.judge(batch)
        told = detector.reasons(batch, detector.shares(x, np.maximum(classes, 1)))
        for k, e in enumerate(mine):
            problems = [] if digest_of(e["input"]) == e["input_digest"] else ["the digest of its input differs"]
            if not classes[k] or detector.schema.classes[int(classes[k])] != e["class"]:
                problems.append(f"it is judged {detector.schema.classes[int(classes[k])]}, not {e['class']}")
            elif abs(float(scores[k]) - e["score"]) > max(tolerance, 1e-5):
                problems.append(f"its score is {float(scores[k]):.9g}, not {e['score']:.9g}")
            elif _far(told[k], e, tolerance):
                problems.append("its reasons differ")
            elif e.get("modules") and _modules_far(told[k]["modules"], e["modules"], tolerance):
                problems.append("what its modules carried differs")
            same += not problems
            differ += [{"entry": e["n"], "problem": p} for p in problems]
    return {"log": str(log), "same": same, "of_other_models": other, "reproduced": not differ, "problems": differ}


def check_replay(log: Path, model: Path) -> Record:
    """`replay`; a log that is not reproduced is said to have `failed`."""
    result = replay(log, model)
    if result["reproduced"]:
        return result
    return result | {"failed": f"{log} is not reproduced by {model}: {audit.first_of(result)}"}


def _far(a: Mapping[str, Any], b: Mapping[str, Any], tolerance: float) -> bool:
    if [r["column"] for r in a["reasons"]] != [r["column"] for r in b["reasons"]]:
        return True
    pairs = [(a[k], b[k]) for k in ("evidence", "typical", "rest")]
    pairs += [(r["contribution"], s["contribution"]) for r, s in zip(a["reasons"], b["reasons"], strict=True)]
    return any(abs(x - y) > tolerance * (1 + abs(x)) for x, y in pairs)


def _modules_far(a: Mapping[str, Any] | None, b: Mapping[str, Any], tolerance: float) -> bool:
    """Whether modules carried other shares than an entry says; also where the detector has no modules now."""
    if a is None:
        return True
    names = [[[s["module"] for s in x["shares"]], [(s["from"], s["to"]) for s in x["between"]]] for x in (a, b)]
    values = [[x["rest"], *(s["share"] for s in (*x["shares"], *x["between"]))] for x in (a, b)]
    return names[0] != names[1] or any(abs(x - y) > tolerance * (1 + abs(x)) for x, y in zip(*values, strict=True))


def _groups(records: Iterable[Record], n: int) -> Iterator[list[Record]]:
    some: list[Record] = []
    for r in records:
        some.append(r)
        if len(some) == n:
            yield some
            some = []
    if some:
        yield some


def stop_on_signals() -> Callable[[], bool]:
    """A function that tells whether the program was asked to end; the batch at hand is finished first."""
    asked = False

    def ask(_signal: int, _frame: Any) -> None:
        nonlocal asked
        asked = True

    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, ask)
    return lambda: asked


__all__ = ["Parser", "alerts", "check_replay", "known_circuits", "replay", "stop_on_signals", "watch"]
