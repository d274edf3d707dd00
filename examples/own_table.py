"""A table of one's own: a CSV with gaps and a column of words, a plain nn.Sequential, and a task with named features.

`python own_table.py` writes the table, clinic.csv: 1,600 patients, made up.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import openwork as ow

TABLE = Path("clinic.csv")
NUMBERS, WORDS = ("age", "pressure", "glucose"), {"smoker": ("no", "yes"), "ward": ("a", "b", "c")}


def features() -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Features float32 [N, F], what is right int64 [N] (0 well, 1 sick), and the features' names.

    A gap becomes the mean, and a feature of its own says so: nothing here may be nan. Words become one 0 or 1 each.
    """
    rows = list(csv.DictReader(TABLE.open(encoding="utf-8")))
    columns, names = [], []
    for name in NUMBERS:
        value = torch.tensor([float(r[name] or "nan") for r in rows])
        gap = value.isnan()
        mean, spread = value[~gap].mean(), value[~gap].std()
        columns += [torch.where(gap, 0.0, (value - mean) / spread), gap.float()]
        names += [name, f"{name} is missing"]
    for name, words in WORDS.items():
        columns += [torch.tensor([float(r[name] == w) for r in rows]) for w in words]
        names += [f"{name} is {w}" for w in words]
    return torch.stack(columns, 1), torch.tensor([int(r["sick"]) for r in rows]), tuple(names)


def model() -> nn.Module:
    """The trained network, read as one of openwork's; yours would load its weights from a file."""
    x, sick, _ = features()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    x, sick = x[:800], sick[:800]
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(300):
        adam.zero_grad()
        (F.cross_entropy(net(x), sick) + 1e-3 * sum(p.abs().sum() for p in net.parameters())).backward()
        adam.step()
    return ow.read_sequential(net)


def sick() -> ow.Task:
    """Is the patient sick? Four disjoint splits of the patients that the network was not trained on."""
    x, right, names = features()
    x, right = x[800:], right[800:]
    splits = {}
    for i, name in enumerate(("discover", "verify", "ood", "explain")):
        answer = right[i::4]
        texts = tuple(f"patient {800 + i + 4 * k}" for k in range(len(answer)))
        alone = torch.full_like(answer, -1)  # no counterparts
        splits[name] = ow.Split(name, (x[i::4],), answer, (1 - answer)[:, None], alone, texts)
    return ow.Task("sick", "is the patient sick?", splits, ("well", "sick"), names)


def write_table(n: int = 1600) -> None:
    """Made-up patients, in one cell of ten of whom something was not measured."""
    rng = random.Random(0)
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow([*NUMBERS, *WORDS, "sick"])
        for _ in range(n):
            age, pressure, glucose = rng.gauss(55, 15), rng.gauss(130, 20), rng.gauss(100, 25)
            smoker, ward = rng.choice(("no", "no", "yes")), rng.choice(("a", "b", "c"))
            risk = 0.1 * (age - 55) + 0.06 * (glucose - 100) + 2 * (smoker == "yes") - 0.7
            told = [f"{v:.1f}" if rng.random() > 0.1 else "" for v in (age, pressure, glucose)]
            out.writerow([*told, smoker, ward, int(risk > 0)])


if __name__ == "__main__":
    write_table()
