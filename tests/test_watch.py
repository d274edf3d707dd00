"""Watching flows: every good line judged once, whatever breaks, stops or rotates; and the log that cannot be edited."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork import audit, detector, store
from openwork.audit import Head, chained, verify_log, write_head
from openwork.cli import main
from openwork.detector import save_detector
from openwork.errors import RunError, UsageError
from openwork.models import build
from openwork.tasks.flows import generated
from openwork.tasks.flows.decision import Decision
from openwork.tasks.flows.schema import learn
from openwork.tasks.flows.stream import Place, from_file, from_pipe
from openwork.watch import Parser, alerts, replay, watch

pytest.importorskip("polars", reason="polars is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a detector written by hand: failed logins, or very many connections, are attacks."""
    [batch] = generated.Generated(2_000)
    schema = learn([batch], generated.LABEL, binary=True)
    net = build({"kind": "mlp", "inputs": len(schema.features), "hidden": (2,), "outputs": 2}, 0)
    for p in net.parameters():
        p.data.zero_()
    layers: Any = net.layers
    for k, column in enumerate(("failed_logins", "conns_60s")):
        layers[0].weight.data[k, schema.features.index(column)] = 1.0
    layers[0].bias.data[:] = -1.0
    layers[1].weight.data[1] = 10.0
    layers[1].bias.data[1] = -5.0
    at = tmp_path_factory.mktemp("run") / "detector-by-hand"
    store.save_model(at / "model", net)
    typical = {c.name: c.values[0] if c.kind == "category" else c.low for c in schema.used}
    save_detector(at, schema, Decision((0.0, 0.0), 1.0, 0.5, 0.01), typical, {})
    return at


COLUMNS = [c for c in next(iter(generated.Generated(1))) if c != generated.LABEL]
HEADER = "#separator \\x09\n#fields\tts\tuid\t" + "\t".join(COLUMNS) + "\n"


def lines(n: int, seed: int = 0, first: int = 0) -> list[str]:
    """Generated flows as lines of a Zeek log, numbered by uid."""
    out = []
    for batch in generated.Generated(n, seed):
        for i in range(len(batch["label"])):
            k = first + len(out)
            cells = [f"{v:g}" if isinstance(v, float) else str(v) for v in (batch[c][i] for c in COLUMNS)]
            out.append(f"{1.7e9 + k:.1f}\tC{k}\t" + "\t".join(cells) + "\n")
    return out


def uids(log: Path) -> list[str]:
    return [e["flow"]["uid"] for e in audit.entries(log) if e["kind"] == "alert"]


def expected(model: Path, rows: list[str]) -> list[str]:
    """The uids that are alerts, by the detector's own judgement of the rows one by one."""
    d = detector.load_detector(model)
    cells = [r.rstrip("\n").split("\t") for r in rows]
    batch = {c: np.array([x[2 + k] for x in cells], dtype=object) for k, c in enumerate(COLUMNS)}
    return [x[1] for x, c in zip(cells, d.judge(batch)[2], strict=True) if c]


# -- lines -------------------------------------------------------------------------------------------------------------


def broken(line: str, how: int) -> str:
    cells = line.rstrip("\n").split("\t")
    return {
        0: line[: len(line) // 3] + "\n",
        1: line.rstrip("\n") + "\textra\n",
        2: "\t".join([*cells[:6], "12a7", *cells[7:]]) + "\n",
        3: "\x00\x01\x02\n",
    }[how]


def test_broken_lines_are_set_aside_as_they_came(model: Path, tmp_path: Path) -> None:
    good, log, out = lines(600), tmp_path / "conn.log", tmp_path / "alerts.jsonl"
    bad = [broken(x, i % 4) for i, x in enumerate(lines(40, 1))]
    mixed = good.copy()
    for i, x in enumerate(bad):
        mixed.insert(i * 13, x)
    log.write_text(HEADER + "".join(mixed) + "#close\n")
    result = watch(model, log, out)
    assert (result["flows"], result["broken_lines"]) == (600, 40)
    assert sorted((tmp_path / "alerts.jsonl.rejected").read_text().splitlines()) == sorted(x.rstrip("\n") for x in bad)
    assert uids(out) == expected(model, good) and result["alerts"] == len(uids(out)) > 10


def test_formats_give_the_same_alerts(model: Path, tmp_path: Path) -> None:
    rows = lines(300)
    names = ["ts", "uid", *COLUMNS]
    cells = [r.rstrip("\n").split("\t") for r in rows]

    def number(x: str) -> Any:
        try:
            return float(x)
        except ValueError:
            return x

    written = {
        "conn.log": HEADER + "".join(rows),
        "conn.csv": ",".join(names) + "\r\n" + "".join(",".join(c) + "\r\n" for c in cells),
        "quoted.csv": "".join(",".join(f'"{x}"' for x in c) + "\n" for c in [names, *cells]),
        "conn.json": "".join(json.dumps(dict(zip(names, map(number, c), strict=True))) + "\n" for c in cells),
    }  # fmt: skip
    for name, text in written.items():
        (tmp_path / name).write_text(text, newline="")
        result = watch(model, tmp_path / name, tmp_path / f"{name}.alerts")
        assert (result["flows"], result["broken_lines"]) == (300, 0), name
        assert uids(tmp_path / f"{name}.alerts") == expected(model, rows), name


def test_without_a_file_for_them_alerts_go_where_they_are_sent(model: Path) -> None:
    rows, to = lines(300), io.StringIO()
    result = watch(model, None, None, to=to, pipe=io.BytesIO((HEADER + "".join(rows)).rstrip("\n").encode()))
    got = [json.loads(x) for x in to.getvalue().splitlines()]
    assert [a["flow"]["uid"] for a in got] == expected(model, rows) and result["alerts"] == len(got)
    for a in got:
        total = a["typical"] + sum(r["contribution"] for r in a["reasons"]) + a["rest"] + a["remainder"]
        assert total == pytest.approx(a["evidence"], abs=1e-9)
        assert a["flip"] is not None and {f["column"] for f in a["flip"]} <= {"failed_logins", "conns_60s"}


def test_a_log_without_a_column_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "conn.log").write_text(HEADER.replace("\thour", "\tminute") + lines(1)[0])
    with pytest.raises(UsageError, match="no column hour"):
        watch(model, tmp_path / "conn.log", tmp_path / "a.jsonl")
    (tmp_path / "conn.log").write_text(HEADER.replace("\thour", "\thour\thour") + lines(1)[0])
    with pytest.raises(UsageError, match="hour more than once"):
        watch(model, tmp_path / "conn.log", tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match="#fields"):
        watch(model, None, None, to=io.StringIO(), pipe=io.BytesIO(b"#separator \\x09\n1\t2\n"))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_bring_the_parser_down(data: bytes) -> None:
    d = detector.load_detector(_MODEL[0])
    batch, n, bad = Parser(d, "zeek", ("ts", "uid", *COLUMNS)).parse(data + b"\n" + lines(1)[0].encode(), False)
    assert n + len(bad) == sum(1 for x in (data + b"\n").split(b"\n") if x.rstrip(b"\r") and not x.startswith(b"#")) + 1
    alerts(d, {}, batch, n, "now")


_MODEL: list[Path] = []


@pytest.fixture(autouse=True)
def _hold(model: Path) -> None:
    _MODEL[:] = [model]


# -- stops and rotation ------------------------------------------------------------------------------------------------


def test_a_watch_goes_on_where_it_stopped(model: Path, tmp_path: Path) -> None:
    rows, log, out = lines(500), tmp_path / "conn.log", tmp_path / "a.jsonl"
    log.write_text(HEADER + "".join(rows[:200]) + rows[200][:30])
    watch(model, log, out)
    with log.open("a") as f:
        f.write(rows[200][30:] + "".join(rows[201:]))
    # the half line at the end of a file that is not followed is a line: it was set aside as broken
    second = watch(model, log, out)
    assert second["flows"] == 299 and second["all_broken_lines"] == 2
    assert uids(out) == expected(model, rows[:200] + rows[201:]) and verify_log(out)["intact"]
    assert watch(model, log, out)["flows"] == 0


def test_what_was_written_after_the_last_commit_is_undone(model: Path, tmp_path: Path) -> None:
    rows, log, out = lines(300), tmp_path / "conn.log", tmp_path / "a.jsonl"
    log.write_text(HEADER + "".join(rows[:150]))
    watch(model, log, out)
    with out.open("a") as f:
        f.write('{"n":99,"half an al')
    with (tmp_path / "a.jsonl.rejected").open("a") as f:
        f.write("half a li")
    with log.open("a") as f:
        f.write("".join(rows[150:]))
    watch(model, log, out)
    assert uids(out) == expected(model, rows) and verify_log(out)["intact"]
    assert (tmp_path / "a.jsonl.rejected").read_text() == ""


def test_files_of_another_watch_are_refused(model: Path, tmp_path: Path) -> None:
    log, out = tmp_path / "conn.log", tmp_path / "a.jsonl"
    log.write_text(HEADER + "".join(lines(50)))
    watch(model, log, out)
    (tmp_path / "other.log").write_text(HEADER)
    with pytest.raises(UsageError, match="belongs to a watch of"):
        watch(model, tmp_path / "other.log", out)
    (tmp_path / "a.jsonl.state").unlink()
    with pytest.raises(UsageError, match="choose another --out"):
        watch(model, log, out)


@pytest.mark.parametrize("way", ["renamed", "renamed while away"])
def test_rotation_loses_and_repeats_nothing(model: Path, tmp_path: Path, way: str) -> None:
    rows, log, out = lines(600), tmp_path / "conn.log", tmp_path / "a.jsonl"
    log.write_text(HEADER + "".join(rows[:100]))
    ends = threading.Event()

    def follow() -> None:
        watch(model, log, out, follow=True, stopped=ends.is_set)

    def rotate() -> None:
        with log.open("a") as f:
            f.write("".join(rows[100:250]))
        log.rename(tmp_path / "conn.1.log")
        log.write_text(HEADER + "".join(rows[250:400]))

    if way == "renamed":
        thread = threading.Thread(target=follow)
        thread.start()
        wait_for(lambda: (tmp_path / "a.jsonl.state").exists())
        rotate()
        wait_for(lambda: flows(out) >= 400)
        with log.open("a") as f:
            f.write("".join(rows[400:]))
        wait_for(lambda: flows(out) >= 600)
        ends.set()
        thread.join(20)
    else:
        watch(model, log, out)
        rotate()
        with log.open("a") as f:
            f.write("".join(rows[400:]))
        watch(model, log, out)
    assert flows(out) == 600 and uids(out) == expected(model, rows) and verify_log(out)["intact"]


def wait_for(what: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def flows(out: Path) -> int:
    try:
        return int(json.loads((out.parent / f"{out.name}.state").read_text())["flows"])
    except (FileNotFoundError, ValueError):
        return 0


@pytest.mark.slow
def test_killed_twice_every_good_line_is_judged_once(model: Path, tmp_path: Path) -> None:
    good = lines(30_000)
    rng = random.Random(0)
    mixed = [broken(x, rng.randrange(4)) if rng.random() < 0.01 else x for x in good]
    kept = [x for x, y in zip(good, mixed, strict=True) if x is y]
    log, out = tmp_path / "conn.log", tmp_path / "a.jsonl"
    log.write_text(HEADER)
    command = [
        sys.executable,
        "-m",
        "openwork",
        "watch",
        str(log),
        "--model",
        str(model),
        "--out",
        str(out),
        "--follow",
    ]
    sent = 0
    for kills in range(3):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        until = 10_000 * (kills + 1)
        while sent < until:
            with log.open("a") as f:
                f.write("".join(mixed[sent : sent + 500]))
            sent += 500
            time.sleep(0.01)
        goal = until - 3_000 if kills < 2 else len(kept)
        wait_for(lambda goal=goal: flows(out) >= goal, 120)
        process.kill()
        process.wait()
    watch(model, log, out)
    assert uids(out) == expected(model, kept) and verify_log(out)["intact"]
    state = json.loads((tmp_path / "a.jsonl.state").read_text())
    assert state["flows"] == len(kept) and state["broken"] == 30_000 - len(kept)


def test_stopped_between_its_state_and_its_head_a_log_is_made_whole(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, log, out = lines(600), tmp_path / "conn.log", tmp_path / "a.jsonl"
    log.write_text(HEADER + "".join(rows))

    def killed(*_: Any) -> None:
        raise InterruptedError

    with monkeypatch.context() as m, pytest.raises(InterruptedError):
        m.setattr(audit, "write_head", killed)
        watch(model, log, out)
    assert flows(out) == 600 and not verify_log(out)["intact"]
    watch(model, log, out)  # nothing is left to be judged
    assert uids(out) == expected(model, rows) and verify_log(out)["intact"]


def test_pieces_are_whole_lines(tmp_path: Path) -> None:
    class Drops:
        """A pipe that gives a few bytes at a time."""

        def __init__(self, data: bytes) -> None:
            self.data = data

        def read1(self, _n: int) -> bytes:
            part, self.data = self.data[:7], self.data[7:]
            return part

    data = b"one\ntwo and more\n\nthree\nlast"
    pieces = list(from_pipe(Drops(data)))  # type: ignore[arg-type]
    assert b"".join(p.data for p in pieces) == data and all(p.data.endswith(b"\n") for p in pieces[:-1])
    assert pieces[-1].place.offset == len(data) and [p.begins for p in pieces].count(True) == 1
    (tmp_path / "f").write_bytes(data)
    [piece] = [p for p in from_file(tmp_path / "f", Place(), False) if p.data.startswith(b"one")]
    rest = b"".join(p.data for p in from_file(tmp_path / "f", piece.place, False))
    assert piece.data + rest == data


# -- the log -----------------------------------------------------------------------------------------------------------


def chain(tmp_path: Path, n: int = 40, key: bytes | None = None) -> tuple[Path, bytes]:
    data, head = chained(({"kind": "alert", "score": i / 7, "text": 'é"\n'} for i in range(n)), Head(), key)
    at = tmp_path / "log.jsonl"
    at.write_bytes(data)
    write_head(at, head)
    return at, data


EDITS = ("bit", "byte in", "byte out", "line out", "two swapped", "line twice", "cut", "added")


def edited(data: bytes, how: str, rng: random.Random) -> bytes:
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
    if how == "cut":
        return data[:i]
    return data + rows[k]


@pytest.mark.parametrize("how", EDITS)
def test_every_edit_is_noticed_and_named(tmp_path: Path, how: str) -> None:
    at, data = chain(tmp_path)
    assert verify_log(at) == {"log": str(at), "intact": True, "entries": 40, "problems": []}
    rng = random.Random(how)
    for _ in range(125):
        new = edited(data, how, rng)
        at.write_bytes(new)
        result = verify_log(at)
        assert not result["intact"], (how, new)
        old, rows = data.splitlines(), new.splitlines()
        first = next((i for i, (a, b) in enumerate(zip(old, rows, strict=False)) if a != b), min(len(old), len(rows)))
        assert abs(result["problems"][0]["line"] - (first + 1)) <= 1, (how, result["problems"][0], first + 1)


def test_an_entry_rewritten_with_a_right_hash_is_noticed_by_the_next(tmp_path: Path) -> None:
    at, data = chain(tmp_path)
    rows = data.splitlines(keepends=True)
    entry = json.loads(rows[5])
    body = {k: v for k, v in entry.items() if k not in ("n", "prev", "hash")} | {"score": 0.0}
    new, _ = chained([body], Head(5, entry["prev"], 0), None)
    at.write_bytes(b"".join([*rows[:5], new, *rows[6:]]))
    [problem] = verify_log(at)["problems"]
    assert problem == {"line": 7, "problem": "entry 6 does not follow the entry before it: one of them was replaced"}


def test_only_the_key_verifies_a_keyed_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at, _ = chain(tmp_path, key=b"secret")
    assert verify_log(at, b"secret")["intact"]
    assert not verify_log(at)["intact"] and not verify_log(at, b"other")["intact"]
    with pytest.raises(UsageError, match="NOT_SET"):
        audit.key_from("NOT_SET")
    monkeypatch.setenv("A_KEY", "secret")
    assert audit.key_from("A_KEY") == b"secret"


def test_a_missing_head_is_told(tmp_path: Path) -> None:
    at, _ = chain(tmp_path)
    audit.head_of(at).unlink()
    assert "head is missing" in verify_log(at)["problems"][0]["problem"]


def test_alerts_are_replayed_and_a_changed_one_is_not(model: Path, tmp_path: Path) -> None:
    log, out = tmp_path / "conn.log", tmp_path / "a.jsonl"
    log.write_text(HEADER + "".join(lines(400)))
    watch(model, log, out)
    n = len(uids(out))
    assert replay(out, model) == {
        "log": str(out), "same": n, "of_other_models": 0, "reproduced": True, "problems": []
    }  # fmt: skip
    rows = out.read_text().splitlines()
    for change, says in (
        ({"score": 0.5}, "score"),
        ({"class": "normal"}, "judged attack"),
        ({"rest": 3.0}, "reasons differ"),
        ({"input": {**json.loads(rows[1])["input"], "duration": 5}}, "digest"),
    ):
        out.write_text("\n".join([rows[0], json.dumps({**json.loads(rows[1]), **change}), *rows[2:]]) + "\n")
        result = replay(out, model)
        assert not result["reproduced"] and result["same"] == n - 1
        assert any(says in p["problem"] for p in result["problems"]), (change, result["problems"])
    out.write_text("\n".join(rows).replace(json.loads(rows[1])["model"], "f" * 64) + "\n")
    assert replay(out, model)["of_other_models"] == n


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a file"):
        verify_log(tmp_path / "none")
    (tmp_path / "x").write_text("[1]\n")
    with pytest.raises(RunError, match="no entry"):
        list(audit.entries(tmp_path / "x"))


def test_the_commands(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*args: str) -> int:
        return main(list(args))

    log, out = tmp_path / "conn.log", tmp_path / "a.jsonl"
    log.write_text(HEADER + "".join(lines(200)))
    assert command("watch", str(log), "--model", str(model), "--out", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out)["flows"] == 200
    assert command("audit", "verify", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out)["intact"] is True
    assert command("audit", "replay", str(out), "--model", str(model), "--json") == 0
    assert json.loads(capsys.readouterr().out)["reproduced"] is True
    out.write_bytes(out.read_bytes().replace(b'"score":0.', b'"score":1.', 1))
    assert command("audit", "verify", str(out), "--json") == 1
    got = capsys.readouterr()
    assert json.loads(got.out)["intact"] is False and "line 2: entry 1 was changed" in got.err
    assert command("watch", str(log), "--model", str(model), "--json") == 2
    assert command("audit", "replay", str(out)) == 2
    assert command("watch", "--model", str(model), "--follow") == 2
