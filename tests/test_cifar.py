"""The cifar10 subject: both forms of its files are read alike or refused in words, and nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from idx_files import DATA
from openwork import bench
from openwork.errors import RunError, UsageError
from openwork.tasks.cifar import CIFAR_TASKS, CLASSES, TEST, TRAIN, CifarData, load_cifar, make_cifar_task

REAL = DATA / "cifar10"
TINY = ("model.blocks=[{channels: 4, kernel: 5, pool: 4}]", "model.hidden=[12]", "training.lr=0.01")


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 32, 32, 3] and classes [n]: class c is a bright bar whose place and colour follow from c."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 10)
    x = rng.integers(0, 60, (n, 32, 32, 3))
    for image, c in zip(x, y, strict=True):
        image[3 * c : 3 * c + 3, :, c % 3] += 180
    return x.astype(np.uint8), y.astype(np.uint8)


def write_binary(folder: Path, n: int = 960, verify: int = 60) -> Path:
    """The six files of the binary version."""
    folder.mkdir(parents=True, exist_ok=True)
    for names, (x, y) in (((TRAIN), drawn(n, 0)), ((TEST,), drawn(verify, 1))):
        rows = np.concatenate([y[:, None], x.transpose(0, 3, 1, 2).reshape(len(x), -1)], 1)
        for name, part in zip(names, np.split(rows, len(names)), strict=True):
            (folder / name).write_bytes(part.tobytes())
    return folder


def write_npz(folder: Path, **changes: np.ndarray) -> Path:
    """The same as one .npz file."""
    folder.mkdir(parents=True, exist_ok=True)
    (x, y), (u, v) = drawn(960, 0), drawn(60, 1)
    np.savez(folder / "c.npz", **{"x_train": x, "y_train": y, "x_test": u, "y_test": v} | changes)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("cifar"))


def test_both_forms_hold_the_same_images(tmp_path: Path) -> None:
    a, b = load_cifar(write_binary(tmp_path / "a")), load_cifar(write_npz(tmp_path / "b"))
    write_binary(tmp_path / "c" / "cifar-10-batches-bin")
    c = load_cifar(tmp_path / "c")
    x, y = drawn(960, 0)
    for data in (a, b, c):
        assert torch.equal(data.labels["train"], torch.from_numpy(y.astype(np.int64)))
        seen = data.pixels["train"].view(-1, 3, 32, 32).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(seen, x)
        assert len(data.labels["test"]) == 60


def test_missing_pickled_truncated_and_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data_batch_1\.bin, .*test_batch\.bin not found"):
        load_cifar(tmp_path / "nowhere")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "data_batch_1").write_bytes(b"\x80\x02")
    with pytest.raises(UsageError, match="pickles, which are never opened"):
        load_cifar(tmp_path / "p")
    short = write_binary(tmp_path / "s")
    (short / TRAIN[2]).write_bytes((short / TRAIN[2]).read_bytes()[:-1])
    with pytest.raises(RunError, match=r"data_batch_3\.bin is truncated or damaged"):
        load_cifar(short)
    wrong = write_binary(tmp_path / "w")
    (wrong / TEST).write_bytes(bytes([11]) + (wrong / TEST).read_bytes()[1:])
    with pytest.raises(RunError, match="class 11"):
        load_cifar(wrong)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y_train": np.full(960, 12)}, "classes 12 to 12|to 12"),
        ({"x_train": np.zeros((960, 32, 32), np.uint8)}, "uint8 .N, 32, 32, 3."),
        ({"x_test": np.array([None, {}], dtype=object)}, "not a readable .npz file of plain arrays"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, changes: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(RunError, match=said):
        load_cifar(write_npz(tmp_path, **changes))


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(RunError, match="not a readable"):
        load_cifar(tmp_path)


@pytest.mark.parametrize("name", CIFAR_TASKS)
def test_tasks_ask_what_they_say(name: str, folder: Path) -> None:
    task = make_cifar_task(name, folder, 40)
    data = load_cifar(folder)
    for split in task.splits.values():
        part, _ = data.members(split.name)
        assert 0 < len(split) <= 40 and split.inputs[0].shape == (len(split), 3072)
        of = [int(t.split()[1]) for t in split.texts]
        assert torch.equal(data.labels[part][of], split.answer)
        assert all(CLASSES[y] in t for t, y in zip(split.texts, split.answer.tolist(), strict=True))
        if name == "animal":
            animal = (split.answer >= 2) & (split.answer <= 7)
            assert torch.equal(animal, ~animal[split.pair])
        elif name != "cifar10":
            assert {CLASSES[y] for y in split.answer.tolist()} == set(task.answers) == set(name.split("_"))
    with pytest.raises(UsageError, match='Nearest: "cat_dog"'):
        make_cifar_task("cat_dogs", folder, 8)


def test_colours_move_together_out_of_distribution(folder: Path) -> None:
    task = make_cifar_task("cifar10", folder, 40)
    x, y = (task.split(s).inputs[0].view(-1, 3, 32, 32) for s in ("verify", "ood"))
    assert torch.equal(y[0, :, :, :31], x[0, :, :, 1:]) and not y[0, :, :, 31].any()


def test_a_model_trains_on_a_folder_and_a_circuit_is_looked_for(folder: Path, tmp_path: Path) -> None:
    trained = bench.train_run("cifar10", "dense", None, tmp_path / "r", 150, "smoke", data=folder, settings=TINY)
    assert trained["verify_accuracy"] > 0.5
    found = bench.discover_run(tmp_path / "r", "automobile_truck", "masks", 0.3, 0, ("steps=20",))
    assert found["status"] in ("ok", "infeasible")


def test_a_task_without_examples_is_refused_and_not_searched_for_ever(tmp_path: Path) -> None:
    _, y = drawn(960, 0)
    y[np.arange(960) % 12 == 10] = 0  # the discover split shows airplanes only
    folder = write_npz(tmp_path / "data", y_train=y)
    bench.train_run("cifar10", "dense", None, tmp_path / "r", 2, "smoke", data=folder, settings=TINY)
    with pytest.raises(UsageError, match="no examples in its discover split"):
        bench.discover_run(tmp_path / "r", "cat_dog", "masks", 0.3, 0, ("steps=20",))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no CIFAR-10 in {REAL}; OPENWORK_DATA may name the folder above it")
def test_the_real_files_are_read() -> None:
    data = load_cifar(REAL)
    assert torch.equal(data.labels["train"].bincount(), torch.full((10,), len(data.labels["train"]) // 10))
    (x,), y = CifarData(REAL, 0, 16).batch(0)
    assert x.shape == (16, 3072) and float(x.min()) >= 0 and float(x.max()) <= 1 and y.max() <= 9
