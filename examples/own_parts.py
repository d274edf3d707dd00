"""Parts of one's own: an author and its judge, a way of searching, a way of training, a check.

An author and a way of searching are named on the command line as own_parts:loudest and own_parts:by_weight. A way of
training and a check are used from Python: `python own_parts.py`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

import openwork as ow
from openwork.explain.words.topic import Dossier, Sample
from openwork.patched_run import PatchedRun
from openwork.training import Regime
from openwork.verify import verify


def loudest(dossier: Dossier) -> ow.Explanation:
    """An author: the one feature that the activity goes with most, as a line that can be run."""
    x, activity = dossier.observed.sample.features, dossier.activity  # [N, F] and [N], of the explain split
    if x is None:
        return ow.Explanation(dossier.topic.name, "loudest")  # nothing to say of tokens
    spread = x.std(0)
    slopes = ((x - x.mean(0)) * (activity - activity.mean())[:, None]).mean(0) / np.where(spread > 0, spread**2, 1.0)
    i = int(np.abs(slopes * spread).argmax())
    name, slope = dossier.observed.sample.names[i], float(slopes[i])
    base = float(activity.mean() - slope * x[:, i].mean())
    predicate = {"kind": "line", "of": {"kind": "feature", "name": name}, "slope": slope, "base": base}
    return ow.Explanation(dossier.topic.name, "loudest", f"Goes with {name}.", predicate=predicate)


def guess(dossier: Dossier) -> ow.Explanation:
    """An author that says something in words alone; its attribute `judge` tells what they lead one to expect."""
    return ow.Explanation(dossier.topic.name, "guess", "Always the same.")


def expects(explanation: ow.Explanation, sample: Sample) -> np.ndarray:
    """The judge of `guess`: expected activity, [N, T] of tokens or [N] of vectors; nan where it has none."""
    return np.where(sample.counted, 1.0, np.nan)


guess.judge = expects  # type: ignore[attr-defined]


def by_weight(run: PatchedRun, split: ow.Split) -> ow.Scores:
    """A way of searching: large weights first. `run` is the model under a reference, `split` examples to learn on."""
    matrices = {e.name: run.model.get_submodule(e.module).weight for e in run.graph.links if e.kind == "weight"}
    sizes = {n: w.detach().flatten(2).norm(dim=-1) if w.dim() > 2 else w.detach().abs() for n, w in matrices.items()}
    return ow.Scores(run.graph, sizes, "size of the weight")


class EdgesSettings(BaseModel):
    """How hard the price pulls."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    price: float = Field(default=0.05, ge=0, description="nats per unit of the sum of the root of |weight|, per weight")


class Edges(Regime[EdgesSettings]):
    """A way of training: a price on the root of every weight's size, which small weights feel most."""

    name = "edges"

    def penalty(self, model: nn.Module, step: int) -> Tensor:
        """price * mean sqrt(|w| + 1e-6), nats."""
        matrices = [p for p in model.parameters() if p.dim() > 1]
        return self.settings.price * torch.stack([(w.abs() + 1e-6).sqrt().mean() for w in matrices]).sum()

    def finish(self, model: nn.Module) -> None:
        """What is small in the end is zero."""
        with torch.no_grad():
            for w in model.parameters():
                w[w.abs() < 1e-3] = 0


def small(question: ow.Question) -> ow.Evidence:
    """A check: has the circuit fewer than a tenth of the model's edges? It needs no data and has no null."""
    whole = sum(int(m.sum()) for m in ow.support(question.model).values())
    share = len(question.circuit) / whole
    return ow.Evidence(
        "small", "holds" if share < 0.1 else "fails", f"{share:.1%} of the model's {whole} edges are in the circuit.",
        share, "share of edges", (float("nan"), float("nan")), "none", float("nan"), float("nan"), 0, "none", 0, 0.0,
    )  # fmt: skip


def main() -> None:
    """Trains with the regime, searches with the method, and asks every check, one's own among them."""
    ow.REGIMES["edges"] = (Edges, EdgesSettings)
    ow.VERIFIERS["small"] = small
    model = ow.build(ow.MLPConfig(inputs=64, hidden=(32,), outputs=10), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        settings = ow.TrainSettings(steps=300, lr=5e-3)
        ow.train(model, ow.digits_data(seed=0), (ow.make_regime("edges"),), settings, Path(folder) / "run")
    task = ow.make_digit_task("three_eight")
    reference = ow.zero_reference(model)
    found = ow.find(model, reference, task.split("discover"), by_weight, target=0.3)
    print(f"search: {found.status}")
    if found.circuit is not None:
        question = ow.Question(model, found.circuit, reference, task.split("verify"), None, target=0.3)
        for evidence in verify(question, ("sufficient", "small")):
            print(f"{evidence.claim}: {evidence.verdict}. {evidence.sentence}")


if __name__ == "__main__":
    main()
