"""`openwork watch` on a long log, killed and gone on with; writes docs/results/watch.md.

    python benchmarks/watch.py RUN --rows 5000000 [--folder DIR]

RUN is a folder of `openwork run flows` on generated flows. A Zeek conn.log of so many lines is made of generated flows,
with attacks thinned out to about one line in a hundred and one line in a hundred broken. It is judged once without a
stop, and once by a process that is killed (-9) twice at random moments. What the flows are is known from before they
were written: the detector judged them as they were generated, not as they were read. Then an audit log of real alerts
is edited a thousand times at random. Wall and CPU time, and memory, are those of the whole process from its start.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openwork import threads  # noqa: F401  before torch

import numpy as np  # isort: skip

from openwork import audit
from openwork.detector import load_detector
from openwork.files import write_text
from openwork.tasks.flows import generated

Record = dict[str, Any]

PAGE = Path(__file__).parents[1] / "docs" / "results" / "watch.md"
ATTACKS = 0.01  # share of the good lines that are attacks
BROKEN = 0.01  # share of all lines
SAME = "and those that the detector gives of the flows before they were written"
EDITS = ("bit", "byte in", "byte out", "line out", "two swapped", "line twice", "cut", "added")
NEAR = 1e-4  # relative distance from the threshold that rounding may bridge
ENTRIES = 1_000  # of the log that is edited
COLUMNS = [c for c in next(iter(generated.Generated(1))) if c != generated.LABEL]
HEADER = "#separator \\x09\n#fields\tts\tuid\t" + "\t".join(COLUMNS) + "\n"


def main() -> int:
    """Measures, checks and writes the page; 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--edits", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the log and the alerts are kept")
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        folder = asked.folder or Path(temp)
        folder.mkdir(parents=True, exist_ok=True)
        result = measured(asked.run, folder, asked.rows, asked.edits, asked.seed)
    print(json.dumps(result, indent=2))
    write_text(asked.page, page(result, asked.rows, asked.edits))
    print(asked.page, file=sys.stderr)
    return 0 if all(result["checks"].values()) else 1


# -- the log -----------------------------------------------------------------------------------------------------------


@dataclass
class Made:
    """What was written: good lines, the broken ones, the uids that are to be alerts, those whose score is so near to
    the threshold that rounding decides (batches of another size are summed in another order), and attacks."""

    good: int = 0
    broken: list[bytes] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)
    near: set[str] = field(default_factory=set)
    attacks: int = 0


def thinned(seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Generated flows without end, with fewer attacks than are generated."""
    of_all = sum(r.share for r in generated.RULES.values())
    keep = ATTACKS / (1 - ATTACKS) * (1 - of_all) / of_all
    rng = np.random.default_rng([seed, 1])
    for batch in generated.Generated(sys.maxsize, seed):
        stay = (batch[generated.LABEL] == "normal") | (rng.random(len(batch[generated.LABEL])) < keep)
        yield {name: x[stay] for name, x in batch.items()}


def make_log(at: Path, run: Path, rows: int, seed: int) -> Made:
    """Writes a log of so many lines."""
    import polars as pl

    detector, made, rng, n = load_detector(run), Made(), random.Random(seed), 0
    with at.open("wb") as f:
        f.write(HEADER.encode())
        for batch in thinned(seed):
            here = min(len(batch[generated.LABEL]), rows - n)
            batch = {k: v[:here] for k, v in batch.items()}
            names = [f"C{k}" for k in range(n, n + here)]
            columns = {c: written(batch[c]) for c in COLUMNS}
            frame = pl.DataFrame({"ts": 1.7e9 + np.arange(n, n + here), "uid": names, **columns})
            lines = frame.write_csv(separator="\t", include_header=False).encode().splitlines()
            fine = np.ones(here, dtype=bool)
            for i in range(here):
                if rng.random() < BROKEN:
                    lines[i], fine[i] = broken(lines[i], rng), False
                    made.broken.append(lines[i])
            f.write(b"\n".join(lines) + b"\n")
            _, scores, classes = detector.judge(batch)
            made.alerts += [names[i] for i in np.flatnonzero((classes > 0) & fine)]
            made.near |= {names[i] for i in np.flatnonzero(np.abs(scores / detector.decision.threshold - 1) < NEAR)}
            made.good += int(fine.sum())
            made.attacks += int(((batch[generated.LABEL] != "normal") & fine).sum())
            n += here
            if n >= rows:
                return made
    raise AssertionError


def written(x: np.ndarray) -> Any:
    """A column as Zeek writes it: whole numbers without a point."""
    if x.dtype == object:
        return x.tolist()
    return x.astype(np.int64) if (x == np.floor(x)).all() else x


def broken(line: bytes, rng: random.Random) -> bytes:
    """A line that no reader may take for a flow: cut short, too long, text for a number, or noise."""
    cells = line.split(b"\t")
    how = rng.randrange(4)
    if how == 0:
        return b"\t".join(cells[: rng.randrange(1, len(cells) - 1)])
    if how == 1:
        return line + b"\textra"
    if how == 2:
        at = 2 + COLUMNS.index(rng.choice(["duration", "orig_bytes", "conns_60s"]))
        return b"\t".join([*cells[:at], b"12a7", *cells[at + 1 :]])
    return bytes(rng.choice(b"\x00\x01\xff\xfe abc") for _ in range(rng.randrange(1, 60)))


# -- processes ---------------------------------------------------------------------------------------------------------


def finished(command: list[str]) -> Record:
    """Runs a process to its end: wall and CPU seconds, the most memory it held (bytes), what it printed."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment())
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}")
    return {
        "wall": time.monotonic() - began, "cpu": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss * 1024,
        "said": said.decode(),
    }  # fmt: skip


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}


def killed(command: list[str], state: Path, goal: int, rng: random.Random) -> int:
    """Starts a watch and kills it once it has judged so many flows and a random moment more; what was committed."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment())
    while process.poll() is None and flows(state) < goal:
        time.sleep(0.002)
    time.sleep(rng.random() * 0.5)
    if process.poll() is not None:
        raise SystemExit("the watch ended before it could be killed; give more --rows.")
    process.kill()
    process.wait()
    return flows(state)


def flows(state: Path) -> int:
    """How many flows a watch has committed."""
    try:
        return int(json.loads(state.read_text())["flows"])
    except (FileNotFoundError, ValueError):
        return 0


READ = """
import sys, polars as pl
frame = pl.read_csv(sys.argv[1], separator="\\t", has_header=False, comment_prefix="#", quote_char=None,
                    infer_schema=False, truncate_ragged_lines=True, encoding="utf8-lossy",
                    new_columns=[f"c{i}" for i in range(int(sys.argv[2]))])
print(frame.height)
"""


def measured(run: Path, folder: Path, rows: int, edits: int, seed: int) -> Record:
    """Everything on the page."""
    at = run / "sparse" if (run / "sparse" / "detector").is_dir() else run
    rng, log = random.Random(seed), folder / "conn.log"
    for old in folder.glob("*.jsonl*"):
        old.unlink()
    _say("making the log")
    made = make_log(log, at, rows, seed)
    outs = {name: folder / f"{name}.jsonl" for name in ("once", "killed")}
    commands = {
        name: [sys.executable, "-m", "openwork", "watch", str(log), "--model", str(run), "--out", str(o), "--json"]
        for name, o in outs.items()
    }
    _say(f"judging {rows:,} lines without a stop")
    once = finished(commands["once"])
    _say("reading alone")
    read = finished([sys.executable, "-c", READ, str(log), str(2 + len(COLUMNS))])
    state = outs["killed"].with_name(outs["killed"].name + ".state")
    stopped = []
    for part in (rng.uniform(0.05, 0.45), rng.uniform(0.5, 0.9)):
        _say("judging until killed")
        stopped.append(killed(commands["killed"], state, int(part * made.good), rng))
    _say("going on to the end")
    finished(commands["killed"])
    _say("checking")
    ends = {name: json.loads(o.with_name(o.name + ".state").read_text()) for name, o in outs.items()}
    uids = {name: uids_of(o) for name, o in outs.items()}
    aside = {name: sorted(o.with_name(o.name + ".rejected").read_bytes().split(b"\n")[:-1]) for name, o in outs.items()}
    began = time.process_time()
    intact = {name: audit.verify_log(o) for name, o in outs.items()}
    verifying = (time.process_time() - began) / sum(r["entries"] for r in intact.values())
    checks = {
        "every good line was counted once": ends["killed"]["flows"] == ends["once"]["flows"] == made.good,
        "the alerts are those of one uninterrupted run": uids["killed"] == uids["once"],
        SAME: [u for u in uids["once"] if u not in made.near] == [u for u in made.alerts if u not in made.near],
        "broken lines were set aside exactly as they came": aside["killed"] == aside["once"] == sorted(made.broken),
        "the audit logs are intact": all(r["intact"] for r in intact.values()),
    }
    _say(f"editing a log {edits:,} times")
    noticed = edited_log(outs["once"], folder / "edited.jsonl", edits, rng)
    checks["every edit of the log was noticed"] = all(n == of for n, of in noticed.values())
    return {
        "rows": rows, "good": made.good, "broken": len(made.broken), "attacks": made.attacks,
        "alerts": len(uids["once"]), "near": len(made.near),
        "log_bytes": log.stat().st_size, "once": {k: v for k, v in once.items() if k != "said"},
        "read": {k: v for k, v in read.items() if k != "said"}, "read_rows": int(read["said"]),
        "stopped": stopped, "edits": noticed, "verify_us": verifying * 1e6, "own_memory": _memory(), "checks": checks,
    }  # fmt: skip


def uids_of(log: Path) -> list[str]:
    """The uids of a log's alerts, in its order."""
    return [e["flow"]["uid"] for e in audit.entries(log) if e["kind"] == "alert"]


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


# -- edits -------------------------------------------------------------------------------------------------------------


def edited_log(log: Path, at: Path, edits: int, rng: random.Random) -> dict[str, tuple[int, int]]:
    """Edits the first ENTRIES alerts of a log, chained anew, so many times; kind -> how many were noticed, of how many.

    No edit leaves the file as it was: every line has its own number.
    """
    records = []
    for e in audit.entries(log):
        records.append({k: v for k, v in e.items() if k not in ("n", "prev", "hash")})
        if len(records) == ENTRIES:
            break
    data, head = audit.chained(records, audit.Head(), None)
    at.write_bytes(data)
    audit.write_head(at, head)
    assert audit.verify_log(at)["intact"]
    noticed = {how: [0, 0] for how in EDITS}
    for i in range(edits):
        how = EDITS[i % len(EDITS)]
        at.write_bytes(edited(data, how, rng))
        noticed[how][0] += not audit.verify_log(at)["intact"]
        noticed[how][1] += 1
    return {how: (n, of) for how, (n, of) in noticed.items()}


def edited(data: bytes, how: str, rng: random.Random) -> bytes:
    """A log with one random edit."""
    rows, i = data.splitlines(keepends=True), rng.randrange(len(data))
    k, j = rng.sample(range(len(rows)), 2)
    if how == "bit":
        return data[:i] + bytes([data[i] ^ 1 << rng.randrange(8)]) + data[i + 1 :]
    if how == "byte in":
        return data[:i] + bytes([rng.randrange(256)]) + data[i:]
    if how == "byte out":
        return data[:i] + data[i + 1 :]
    if how == "line out":
        return b"".join(rows[:k] + rows[k + 1 :])
    if how == "two swapped":
        rows[k], rows[j] = rows[j], rows[k]
        return b"".join(rows)
    if how == "line twice":
        return b"".join([*rows[: k + 1], rows[k], *rows[k + 1 :]])
    return data[:i] if how == "cut" else data + rows[k]


# -- the page ----------------------------------------------------------------------------------------------------------


def page(r: Record, rows: int, edits: int) -> str:
    """The page as Markdown."""
    once, read = r["once"], r["read"]

    def line(name: str, t: Record, n: int) -> str:
        return (
            f"| {name} | {t['wall']:.1f} | {t['cpu']:.1f} | {n / t['wall']:,.0f} | **{n / t['cpu']:,.0f}** | "
            f"{t['memory'] / 2**20:,.0f} |"
        )

    lines = [
        "# Results: watching a long log",
        f"Made by `python benchmarks/watch.py RUN --rows {rows}`, RUN made by `openwork run flows`. Everything on one "
        "core that other programs use too, so CPU seconds tell more than wall seconds. See [flows](../flows.md).",
        "## Speed and memory",
        f"A Zeek log of {r['rows']:,} lines ({r['log_bytes'] / 2**20:,.0f} MiB): {r['good']:,} good ones, of which "
        f"{r['attacks']:,} are attacks, and {r['broken']:,} broken ones. {r['alerts']:,} alerts with their reasons "
        "were written to the audit log. From start to end of each process:",
        "| | wall, s | CPU, s | flows per wall second | flows per CPU second | most memory, MiB |\n"
        "|---|---|---|---|---|---|\n"
        + "\n".join([
            line("`openwork watch`", once, r["good"]),
            line("`polars.read_csv` alone, all columns as text, one thread", read, r["read_rows"]),
        ])
       + f"\n\nReading alone is the limit: watching takes {once['cpu'] / read['cpu']:.1f} times its CPU time.",
        "## Killed twice",
        "A second watch of the same log was killed (`kill -9`) at random moments, when "
        + " and ".join(f"{n:,}" for n in r["stopped"])
        + " flows had been committed, and started again.",
        f"{r['near']:,} flows lay so near the threshold that rounding decides; the third check leaves them out.",
        "| check | |\n|---|---|\n" + "\n".join(f"| {k} | {'yes' if v else '**NO**'} |" for k, v in r["checks"].items()),
        "## Edits",
        f"{edits:,} random edits of a log of the first {ENTRIES:,} entries; checking costs {r['verify_us']:.0f} µs an "
        "entry.",
        "| edit | noticed | of |\n|---|---|---|\n"
        + "\n".join(f"| {how} | {n} | {of} |" for how, (n, of) in r["edits"].items()),
    ]  # fmt: skip
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
