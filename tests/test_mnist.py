"""The mnist subject: files are read or refused in words, splits do not overlap, tasks ask what they say."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from idx_files import NO_REAL, REAL, drawn, idx_bytes, write_files
from openwork import bench, cli
from openwork.errors import OpenworkError, RunError, UsageError
from openwork.models import CNN, MLPConfig
from openwork.runs import open_run
from openwork.tasks.images import PAIRS, SIDES
from openwork.tasks.mnist import FILES, MNIST_TASKS, MnistData, load_images, make_mnist_task, read_idx
from openwork.tasks.subjects import open_subject

TINY = ("model.blocks=[{channels: 4, kernel: 5, pool: 3}]", "model.hidden=[12]", "training.lr=0.01")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("mnist"))


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_files_are_read_as_they_were_written(tmp_path: Path, packed: bool) -> None:
    data = load_images(write_files(tmp_path / str(packed), 24, 12, packed))
    for seed, (part, n) in enumerate((("train", 24), ("t10k", 12))):
        images, labels = drawn(n, seed)
        assert np.array_equal(data.pixels[part].numpy().reshape(n, 28, 28), images)
        assert np.array_equal(data.labels[part].numpy(), labels)
    x, y = data.of("train", torch.tensor([3]))
    assert x.shape == (1, 784) and float(x.max()) == pytest.approx(drawn(24, 0)[0][3].max() / 255)
    assert y.tolist() == [int(drawn(24, 0)[1][3])]


def test_the_head_of_an_idx_file_is_read_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255]))
    assert read_idx(tmp_path / "a", 2).tolist() == [[1, 2, 3], [4, 5, 255]]


def test_a_folder_without_the_files_is_told_which_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as all_missing:
        load_images(tmp_path / "nowhere")
    assert all(name in str(all_missing.value) for pair in FILES.values() for name in pair)
    write_files(tmp_path, 24, 12)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UsageError, match=r"^t10k-labels-idx1-ubyte not found in .*train-images-idx3-ubyte"):
        load_images(tmp_path)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def labels_with(n: int, largest: int) -> bytes:
    return gzip.compress(idx_bytes(np.r_[np.zeros(n - 1), largest]))


IMAGES, LABELS = FILES["t10k"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (IMAGES, cut, "t10k-images-idx3-ubyte.gz is truncated or damaged"),
        (IMAGES, lambda d: b"<html>" + d, "t10k-images-idx3-ubyte.gz is truncated or damaged"),
        (IMAGES, lambda d: gzip.compress(cut(gzip.decompress(d))), "is truncated: its head says 12 x 28 x 28 values"),
        (IMAGES, lambda d: gzip.compress(gzip.decompress(d) + b"0"), "is damaged: its head says 12 x 28 x 28 values"),
        (IMAGES, lambda d: gzip.compress(gzip.decompress(d)[:9]), "its head takes 16 bytes, it has 9"),
        (LABELS, lambda d: gzip.compress(b""), "is not an idx file of bytes with 1 axes"),
        (LABELS, lambda d: gzip.compress(b"\0\0\x08\x03" + gzip.decompress(d)[4:]), "is not an idx file"),
        (LABELS, lambda d: labels_with(11, 9), "12 images and t10k-labels-idx1-ubyte.gz 11 labels"),
        (LABELS, lambda d: labels_with(12, 10), "holds the label 10"),
        (IMAGES, lambda d: gzip.compress(idx_bytes(np.zeros((12, 8, 8)))), "images of 8 x 8 pixels, not 28 x 28"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    write_files(tmp_path, 24, 12)
    path = tmp_path / f"{name}.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RunError, match=message):
        load_images(tmp_path)


# -- splits, tasks, batches ------------------------------------------------------------------------------------------


def test_splits_share_the_train_files_out_and_verify_is_t10k(folder: Path) -> None:
    data = load_images(folder)
    parts = {s: data.members(s) for s in ("train", "discover", "explain", "verify", "ood")}
    assert {s: part for s, (part, _) in parts.items()} == {
        "train": "train", "discover": "train", "explain": "train", "verify": "t10k", "ood": "t10k"
    }  # fmt: skip
    ids = {s: set(i.tolist()) for s, (_, i) in parts.items()}
    assert ids["train"] | ids["discover"] | ids["explain"] == set(range(1200))
    assert {s: len(i) for s, i in ids.items()} == {
        "train": 1000, "discover": 100, "explain": 100, "verify": 200, "ood": 200
    }  # fmt: skip
    assert min(ids["discover"]) == 10 and min(ids["explain"]) == 11
    with pytest.raises(UsageError, match='Nearest: "verify"'):
        data.members("verfy")


@pytest.mark.parametrize("name", MNIST_TASKS)
def test_tasks_ask_what_they_say(name: str, folder: Path) -> None:
    task = make_mnist_task(name, folder, 60)
    data = load_images(folder)
    for split in task.splits.values():
        part, members = data.members(split.name)
        assert 0 < len(split) <= 60 and split.inputs[0].shape == (len(split), 784)
        of = [int(t.split()[1]) for t in split.texts]
        assert set(of) <= set(members.tolist()) and len(set(of)) == len(of)
        assert torch.equal(data.labels[part][of], split.answer)
        if split.name != "ood":
            assert torch.equal(split.inputs[0], data.of(part, torch.tensor(of))[0])
        if name == "mnist":
            assert len(split) == 60 and int(split.pair.max()) == -1
            both = torch.cat([split.answer[:, None], split.wrong], 1).sort(1).values
            assert torch.equal(both, torch.arange(10).expand_as(both))
            continue
        assert torch.equal(split.answer[split.pair], split.wrong[:, 0])
        assert torch.equal(split.pair[split.pair], torch.arange(len(split)))
        one, other = SIDES.get(name, ((0, 6, 8, 9), (1, 2, 3, 4, 5, 7)))
        first = torch.isin(split.answer, torch.tensor(one))
        assert torch.equal(first, ~first[split.pair]) and set(split.answer[~first].tolist()) <= set(other)
        if name in PAIRS:
            assert {str(c) for c in split.answer.tolist()} == set(task.answers)


def test_out_of_distribution_images_are_the_verify_images_moved(folder: Path) -> None:
    task = make_mnist_task("mnist", folder, 60)
    x, y = (task.split(s).inputs[0].view(-1, 28, 28) for s in ("verify", "ood"))
    assert torch.equal(y[0, :, :27], x[0, :, 1:]) and not y[0, :, 27].any()  # left by one
    assert torch.equal(y[3, 1:], x[3, :27]) and not y[3, 0].any()  # down by one
    assert torch.equal(y[5, :, 2:], x[5, :, :26]) and not y[5, :, :2].any()  # right by two
    assert torch.equal(y[6, :26], x[6, 2:]) and not y[6, 26:].any()  # up by two
    assert torch.equal(task.split("ood").answer, task.split("verify").answer)


def test_batches_are_pure_functions_of_seed_and_step_and_hold_train_images_only(folder: Path) -> None:
    data = MnistData(folder, 0, 32)
    (x,), y = data.batch(7)
    assert x.shape == (32, 784) and y.shape == (32,)
    assert torch.equal(x, MnistData(folder, 0, 32).batch(7)[0][0])
    assert not torch.equal(x, data.batch(8)[0][0]) and not torch.equal(x, MnistData(folder, 1, 32).batch(7)[0][0])
    images = load_images(folder)
    train = {r.numpy().tobytes() for r in images.of(*images.members("train"))[0]}
    assert all(r.numpy().tobytes() in train for r in x)
    assert sum(len(y) for _, y in data.held_out("discover")) == 100


def test_a_task_of_text_or_of_a_wrong_name_is_refused(folder: Path) -> None:
    subject = open_subject("mnist", folder, 0)
    with pytest.raises(UsageError, match="a task about text"):
        subject.task("mine.jsonl", 8)
    with pytest.raises(UsageError, match='Nearest: "three_eight"'):
        subject.task("three_ate", 8)


# -- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --task digit", 'Nearest: "digits"'),
        ("train --task digits --corpus here", "--corpus is for --task python"),
        ("train --task mnist", "--task mnist needs --data DIR"),
        ("train --task digits --data here", "--data is for --task mnist"),
        ("train --task mnist --data nowhere", "train-images-idx3-ubyte"),
    ],
)
def test_refusals(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing is written before the files were found"


def test_a_run_finds_its_files_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained on a relative path, looked at from elsewhere: discovered, verified and laid out without a flag."""
    monkeypatch.chdir(folder.parent)
    out = tmp_path / "run"
    trained = bench.train_run("mnist", "dense", None, out, 150, "smoke", data=Path(folder.name), settings=TINY)
    assert trained["verify_loss"] < 0.3
    assert isinstance(open_run(out).model, CNN)
    monkeypatch.chdir(tmp_path)
    found = bench.discover_run(out, "loop", "masks", 0.3, 0, ("steps=60",))
    assert found["status"] == "ok" and found["edge_pruned"]["loss"] < math.log(2)
    assert 0 < found["edge_pruned"]["edges"] < trained["block_nonzero"]
    checked = bench.verify_run(out, "loop", 0)
    assert {e["claim"] for e in checked["evidence"]} >= {"sufficient", "necessary", "one_minimal"}
    assert Path(bench.view_run(out)["page"]).exists()
    named = {t["task"]: t for t in bench.list_tasks(out)["tasks"]}
    assert set(named) == set(MNIST_TASKS) and named["loop"]["circuits"] == ["loop-masks"]


def test_a_perceptron_learns_the_same_images(folder: Path, tmp_path: Path) -> None:
    trained = bench.train_run(
        "mnist", "topk", 0.1, tmp_path / "r", 100, "smoke", data=folder, settings=("model.kind=mlp",)
    )
    assert trained["verify_loss"] < 0.5
    config = open_run(tmp_path / "r").model.config
    assert isinstance(config, MLPConfig) and config.hidden == (300, 100) and config.inputs == 784


def test_another_kind_of_model_is_refused_with_what_there_is(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OpenworkError, match=r'"transformer"\. There is: cnn, mlp'):
        bench.train_run("mnist", "dense", None, tmp_path / "r", data=folder, settings=("model.kind=transformer",))
    with pytest.raises(OpenworkError, match=r'"cnn"\. There is: mlp'):
        bench.train_run("digits", "dense", None, tmp_path / "r", settings=("model.kind=cnn",))


# -- the real files --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason=NO_REAL)
def test_the_real_files_are_mnist() -> None:
    data = load_images(REAL)
    counts = {part: y.bincount(minlength=10).tolist() for part, y in data.labels.items()}
    assert counts["train"] == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert counts["t10k"] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    means = {part: float(x.double().mean()) for part, x in data.pixels.items()}
    assert means == pytest.approx({"train": 33.318, "t10k": 33.791}, abs=1e-3)
    assert {s: len(data.members(s)[1]) for s in ("train", "discover", "explain", "verify")} == {
        "train": 50_000, "discover": 5_000, "explain": 5_000, "verify": 10_000
    }  # fmt: skip
