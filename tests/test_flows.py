"""Flow logs: how they are read, what is learned of their columns, how rows are shared out, and the generated ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.errors import RunError, UsageError
from openwork.tasks.flows import generated, nsl_kdd
from openwork.tasks.flows.flows import FlowData, make_flow_task
from openwork.tasks.flows.prepared import OF_TWENTY, SPLITS, Prepared, prepare, turns
from openwork.tasks.flows.readers import open_flows
from openwork.tasks.flows.schema import CUT, Schema, learn

Rows = dict[str, np.ndarray]


def table(n: int = 400, seed: int = 0) -> Rows:
    """Rows of every kind of column."""
    rng = np.random.default_rng(seed)
    service = rng.choice(["http", "dns", "ssh"], n, p=[0.6, 0.3, 0.1]).astype(object)
    size = np.exp(rng.normal(6, 2.5, n))
    gone = rng.random(n) < 0.1
    return {
        "uid": np.array([f"C{i}" for i in range(n)], dtype=object),
        "id.orig_p": rng.integers(1024, 65_536, n).astype(float),
        "id.resp_p": np.array([{"http": 80.0, "dns": 53.0, "ssh": 22.0}[s] for s in service]),
        "service": service,
        "bytes": np.where(gone, np.nan, size),
        "rate": rng.random(n),
        "constant": np.zeros(n),
        "free text": np.array([f"x{rng.integers(10**9)}" for _ in range(n)], dtype=object),
        "label": np.where(rng.random(n) < 0.3, "bad", "normal").astype(object),
    }


def test_columns_are_told_apart() -> None:
    s = learn([table()], "label")
    kinds = {c.name: c.kind for c in s.columns}
    assert kinds == {
        "uid": "ignored", "id.orig_p": "ignored", "id.resp_p": "category", "service": "category", "bytes": "number",
        "rate": "number", "constant": "ignored", "free text": "ignored",
    }  # fmt: skip
    assert s.classes == ("normal", "bad") and s.normal == "normal"
    assert s.column("bytes").spread and not s.column("rate").spread
    assert set(s.column("id.resp_p").values) == {"80", "53", "22"}
    assert s.features[-3:] == ("bytes", "bytes missing", "rate")


def test_features_are_what_the_schema_says() -> None:
    rows = table()
    s = learn([rows], "label")
    x = s.encode(rows)
    at = {f: i for i, f in enumerate(s.features)}
    gone = np.isnan(rows["bytes"])
    assert x.shape == (400, len(s.features))
    assert (x[:, at["bytes missing"]] == gone).all() and (x[gone, at["bytes"]] == 0).all()
    assert (x[:, at["service=ssh"]] == (rows["service"] == "ssh")).all()
    assert abs(float(x[~gone, at["bytes"]].mean())) < 1e-4 and abs(float(x[~gone, at["bytes"]].std()) - 1) < 1e-3
    there = np.flatnonzero(~gone)[3]
    assert s.unscaled("bytes", float(x[there, at["bytes"]])) == pytest.approx(rows["bytes"][there], rel=1e-4)


def test_values_never_seen_and_missing_are_data() -> None:
    s = learn([table()], "label")
    row = {"id.resp_p": [9999.0], "service": ["gopher"], "bytes": [np.nan], "rate": [1e30]}
    x = s.encode({k: np.array(v, dtype=object if k == "service" else float) for k, v in row.items()})[0]
    at = {f: i for i, f in enumerate(s.features)}
    assert x[at["service unlisted"]] == 1 and x[at["id.resp_p unlisted"]] == 1 and x[at["bytes missing"]] == 1
    assert x[at["rate"]] == CUT and np.isfinite(x).all()
    text = s.encode({k: np.array(["?" if k != "bytes" else "abc"], dtype=object) for k in row})[0]
    assert text[at["bytes missing"]] == 1
    drift = {d["column"]: d for d in s.drift({**table(seed=5), "service": np.array(["gopher"] * 400, dtype=object)})}
    assert drift["service"]["beyond"] == 1.0 and drift["rate"]["beyond"] < 0.05


def test_rows_without_a_column_are_refused() -> None:
    s = learn([table()], "label")
    with pytest.raises(UsageError, match="no column service, rate"):
        s.encode({"id.resp_p": np.zeros(1), "bytes": np.zeros(1)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": "lable"}, "no column 'lable'"),
        ({"ignore": ("nothing",)}, "no column 'nothing' to ignore"),
        ({"normal": "nice"}, 'no class "nice"|class.*nice'),
    ],
)
def test_what_is_asked_wrongly_is_told(change: Mapping[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        learn([table()], **{"label": "label", **change})  # type: ignore[arg-type]


def test_one_class_is_no_detector() -> None:
    rows = table()
    with pytest.raises(UsageError, match="two classes"):
        learn([{**rows, "label": np.array(["normal"] * 400, dtype=object)}], "label")


def test_a_schema_learned_in_parts_is_the_same() -> None:
    rows = table(1000)
    parts = [{k: v[i : i + 130] for k, v in rows.items()} for i in range(0, 1000, 130)]
    assert learn(parts, "label") == learn([rows], "label")


def test_a_schema_comes_back_from_json() -> None:
    s = learn([table()], "label", binary=True)
    again = Schema.from_dict(json.loads(json.dumps(s.to_dict())))
    assert again == s and again.digest() == s.digest() and s.classes == ("normal", "attack")
    with pytest.raises(UsageError, match="version"):
        Schema.from_dict({**s.to_dict(), "version": 99})
    with pytest.raises(UsageError, match="no schema"):
        Schema.from_dict({"version": 1})


def test_with_two_classes_a_new_label_is_an_attack() -> None:
    s = learn([table()], "label", binary=True)
    assert s.labels({"label": np.array(["normal", "bad", "never seen"], dtype=object)}).tolist() == [0, 1, 1]
    with pytest.raises(UsageError, match="never seen"):
        learn([table()], "label").labels({"label": np.array(["never seen"], dtype=object)})


# -- reading -----------------------------------------------------------------------------------------------------------

ZEEK = (
    "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n"
    "#fields\tts\tuid\tid.orig_h\tproto\tservice\tduration\torig_bytes\tlabel\n"
    "#types\ttime\tstring\taddr\tenum\tstring\tinterval\tcount\tstring\n"
)


def csv(rows: Rows) -> str:
    names = list(rows)
    lines = [",".join(names)]
    for i in range(len(rows[names[0]])):
        lines.append(",".join("" if rows[n][i] != rows[n][i] else str(rows[n][i]) for n in names))
    return "\n".join(lines) + "\n"


def same(a: Rows, b: Rows) -> None:
    assert list(a) == list(b)
    for name in a:
        for x, y in zip(a[name].tolist(), b[name].tolist(), strict=True):
            assert x == y or (x != x and y != y) or (y is None and x != x), (name, x, y)


def joined(flows: object) -> Rows:
    batches = list(flows)  # type: ignore[call-overload]
    return {k: np.concatenate([np.asarray(b[k], dtype=object) for b in batches]) for k in batches[0]}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("zipped", [False, True])
def test_csv_is_read_as_written(tmp_path: Path, ending: str, zipped: bool) -> None:
    pytest.importorskip("polars", reason="polars is not installed")
    rows, at = table(50), tmp_path / ("flows.csv.gz" if zipped else "flows.csv")
    data = csv(rows).replace("\n", ending).encode()
    at.write_bytes(gzip.compress(data) if zipped else data)
    flows = open_flows(at)
    same(rows, joined(flows))
    assert flows.broken == 0
    same(rows, joined(flows))  # a second time from the beginning


def test_broken_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    pytest.importorskip("polars", reason="polars is not installed")
    rows, at = table(50), tmp_path / "flows.csv"
    lines = csv(rows).splitlines()
    at.write_text("\n".join([*lines[:10], "broken,line", *lines[10:], "cut,sho"]))
    flows = open_flows(at)
    same(rows, joined(flows))
    assert flows.broken == 2


def test_zeek_tsv_and_json_say_the_same(tmp_path: Path) -> None:
    pytest.importorskip("polars", reason="polars is not installed")
    tsv, js = tmp_path / "conn.log", tmp_path / "conn.json"
    tsv.write_text(ZEEK + "1.5\tC1\t10.0.0.1\ttcp\thttp\t0.25\t120\tok\n2.5\tC2\t10.0.0.2\tudp\t-\t-\t-\tok\n#close\n")
    records = [
        {"ts": 1.5, "uid": "C1", "id.orig_h": "10.0.0.1", "proto": "tcp", "service": "http", "duration": 0.25,
         "orig_bytes": 120, "label": "ok"},
        {"ts": 2.5, "uid": "C2", "id.orig_h": "10.0.0.2", "proto": "udp", "label": "ok"},
    ]  # fmt: skip
    js.write_text("\n".join(map(json.dumps, records)) + "\nnot json\n")
    first, second = open_flows(tsv), open_flows(js)
    same(joined(first), joined(second))
    assert (first.format, second.format) == ("zeek", "zeek-json")
    assert first.broken == 0 and second.broken == 1


def test_parquet_is_read_in_parts(tmp_path: Path) -> None:
    pl = pytest.importorskip("polars", reason="polars is not installed")
    rows, at = table(50), tmp_path / "flows.parquet"
    pl.DataFrame({k: v.tolist() for k, v in rows.items()}).write_parquet(at)
    flows = open_flows(at)
    flows.rows = 7
    assert len(list(flows)) == 8
    same(rows, joined(flows))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.csv", None, "is not a file"),
        ("empty.csv", "", "is empty"),
        ("twice.csv", "a,a\n1,2\n", "each once"),
        ("conn.log", "#separator \\x09\n#path conn\n", "#fields"),
        ("damaged.parquet", "PAR1 and no more", "damaged"),
    ],
)
def test_files_that_are_no_flows_are_refused(tmp_path: Path, name: str, content: str | None, says: str) -> None:
    pytest.importorskip("polars", reason="polars is not installed")
    at = tmp_path / name
    if content is not None:
        at.write_text(content)
    with pytest.raises((UsageError, RunError), match=says):
        list(open_flows(at))


# -- prepared rows -----------------------------------------------------------------------------------------------------


def test_every_row_is_in_one_split_and_equal_rows_in_the_same(tmp_path: Path) -> None:
    flows = generated.Generated(12_000)
    p = prepare(tmp_path / "data", flows, generated.LABEL)
    assert len(p) == 12_000 and p.rows("ood") == 0
    assert p.rows("train") == pytest.approx(0.65 * 12_000, rel=0.05)
    seen: dict[bytes, str] = {}
    for split in SPLITS[:-1]:
        for row, label in zip(p.features(split, slice(None)), p.labels(split), strict=True):
            key = row.tobytes() + bytes([int(label)])
            assert seen.setdefault(key, split) == split
    again = prepare(tmp_path / "data", flows, generated.LABEL)
    assert again.facts == p.facts
    with pytest.raises(UsageError, match="binary differ"):
        prepare(tmp_path / "data", flows, generated.LABEL, binary=True)


def test_prepared_rows_are_the_rows(tmp_path: Path) -> None:
    flows = generated.Generated(3_000)
    [first] = [b for b in [joined(flows)]]
    p = prepare(tmp_path / "data", flows, generated.LABEL, test=generated.Generated(500, seed=9))
    s = p.schema
    turn = turns(s.codes(first), s.labels(first).astype(np.uint16))
    for split in SPLITS[:-1]:
        mine = np.isin(turn, [i for i, of in enumerate(OF_TWENTY) if of == split])
        assert (p.features(split, slice(None)) == s.encode(first)[mine]).all()
        assert (np.asarray(p.labels(split)) == s.labels(first)[mine]).all()
    assert (p.features("ood", np.arange(500)) == s.encode(joined(generated.Generated(500, seed=9)))).all()


def test_damaged_arrays_and_rare_classes_are_refused(tmp_path: Path) -> None:
    p = prepare(tmp_path / "data", generated.Generated(3_000), generated.LABEL)
    (tmp_path / "data" / "train" / "label.bin").write_bytes(b"short")
    with pytest.raises(RunError, match="label.bin is damaged"):
        p.labels("train")
    with pytest.raises(UsageError, match="too rare"):
        prepare(tmp_path / "few", generated.Generated(400), generated.LABEL)
    assert not (tmp_path / "few").exists()


def test_tasks_and_batches(tmp_path: Path) -> None:
    p = prepare(tmp_path / "data", generated.Generated(20_000), generated.LABEL)
    task = make_flow_task("scan", p, 64)
    for name in ("discover", "verify", "explain"):
        split = task.split(name)
        assert len(split) == 64 and split.answer.tolist() == [task.answers.index("scan"), 0] * 32
        assert (split.wrong[:, 0] == split.answer[split.pair]).all()
    assert len(task.split("ood")) == 0
    with pytest.raises(UsageError, match="scam"):
        make_flow_task("scam", p, 64)
    even, asis = FlowData(p, 0, 4_000, balance=1.0), FlowData(p, 0, 4_000, balance=0.0)
    counts = np.bincount(even.batch(3)[1].numpy(), minlength=6) / 4_000
    assert counts == pytest.approx(np.full(6, 1 / 6), abs=0.03)
    counts = np.bincount(asis.batch(3)[1].numpy(), minlength=6) / 4_000
    assert counts == pytest.approx(asis.shares, abs=0.03)
    assert (even.batch(3)[0][0] == even.batch(3)[0][0]).all() and not (even.batch(3)[1] == even.batch(4)[1]).all()


# -- generated flows and NSL-KDD -----------------------------------------------------------------------------------


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000))
def test_an_attack_is_what_its_rule_says_and_nothing_else_is(seed: int) -> None:
    [batch] = generated.Generated(generated.BLOCK, seed)
    for rule in generated.RULES:
        assert (generated.holds(rule, batch) == (batch["label"] == rule)).all(), rule


def test_no_condition_alone_gives_a_generated_attack_away() -> None:
    """Normal flows have each condition of each rule, as often at least as a tenth of the attack itself."""
    batches = list(generated.Generated(40_960))
    for name, rule in generated.RULES.items():
        for column in rule.columns:
            with_it = 0
            for b in batches:
                calm = b["label"] == "normal"
                changed = {k: v.copy() for k, v in b.items()}
                for other in rule.columns:
                    if other != column:
                        generated._make(np.random.default_rng(0), changed, name, rule.columns.index(other), calm)
                with_it += int((generated.holds(name, changed) & calm).sum())
            assert with_it > 0.1 * rule.share * 40_960, (name, column)


def test_generated_flows_do_not_depend_on_how_many_are_asked() -> None:
    few, many = joined(generated.Generated(100, 3)), joined(generated.Generated(10_000, 3))
    same(few, {k: v[:100] for k, v in many.items()})


def test_nsl_kdd_is_read_with_its_groups(tmp_path: Path) -> None:
    pytest.importorskip("polars", reason="polars is not installed")
    values = {"protocol_type": "tcp", "service": "http", "flag": "SF", "attack": "neptune", "difficulty": "21"}
    line = ",".join(values.get(c, "0") for c in nsl_kdd.COLUMNS)
    (tmp_path / "KDDTrain+.txt").write_text(line + "\n" + line.replace("neptune", "normal") + "\n")
    with pytest.raises(UsageError, match=r"KDDTest\+\.txt"):
        nsl_kdd.nsl_kdd(tmp_path)
    (tmp_path / "KDDTest+.txt.gz").write_bytes(gzip.compress(line.replace("neptune", "mscan").encode()))
    train, test = nsl_kdd.nsl_kdd(tmp_path)
    assert joined(train)["attack"].tolist() == ["dos", "normal"] and joined(test)["attack"].tolist() == ["probe"]
    (tmp_path / "KDDTrain+.txt").write_text(line.replace("neptune", "newattack") + "\n")
    with pytest.raises(UsageError, match="newattack"):
        list(train)


def test_prepared_folder_is_opened_lazily(tmp_path: Path) -> None:
    prepare(tmp_path / "data", generated.Generated(3_000), generated.LABEL)
    assert Prepared(tmp_path / "data").schema.classes[0] == "normal"
