"""Sizes of the job: what each preset of `openwork run` trains and how long it searches.

Every figure is a setting that a user may give; nothing here is computed from results. Knows settings only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from openwork.discover import MaskSettings
from openwork.errors import UsageError, unknown
from openwork.models import MODELS
from openwork.settings import checked, filled
from openwork.tasks.corpus import CorpusSettings
from openwork.tasks.images import PAIRS
from openwork.tasks.patterns import WORDS
from openwork.training import TopKSettings, TrainSettings

Settings = dict[str, Any]


class DataSettings(BaseModel):
    """How much of the data a step of `openwork train` sees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(ge=1, description="sequences, images or pairs per training step; by default the preset's")


class Preset(BaseModel):
    """What one `openwork run` does.

    model           config of the model both sides share
    others          configs of other kinds of model, by kind: what `model.kind` may be set to beside the model's own
    sparse, dense   settings of the training loop for either side; equal steps and batches are equal compute
    topk, masks     settings of the sparse regime and of the search
    examples        examples per split of a task; batch: sequences (or images) per training step
    n_null          random draws behind every null; windows: text windows the page takes contexts from
    tasks           tasks to run; empty means all
    generated       rows to generate where the user brings no data (flows)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: CorpusSettings | None = None
    model: Settings
    others: Mapping[str, Settings] = Field(default_factory=dict, exclude=True)  # not part of what a run was asked
    sparse: Settings
    dense: Settings
    topk: Settings
    masks: Settings = Field(default_factory=dict)
    batch: int = 8
    examples: int = 256
    n_null: int = 100
    windows: int = 64
    tasks: tuple[str, ...] = ()
    generated: int = 0

    def corpus_for(self, source: Path | None) -> CorpusSettings:
        """The corpus settings, with the user's own files as source where given."""
        settings = self.corpus or CorpusSettings()
        return settings.model_copy(update={"source": str(source)}) if source else settings

    def groups(self) -> dict[str, type[BaseModel]]:
        """What `changed` may change, with the schema of each group."""
        schemas: dict[str, type[BaseModel]] = {
            "model": MODELS[self.model["kind"]][1], "sparse": TrainSettings, "dense": TrainSettings,
            "topk": TopKSettings, "masks": MaskSettings,
        }  # fmt: skip
        return schemas | ({"corpus": CorpusSettings} if self.corpus else {})

    def changed(self, values: Mapping[str, Settings]) -> Preset:
        """The preset with some settings of some groups replaced. UsageError with every fault of a group.

        The model's vocabulary is the corpus's, and the dense snapshots go with the dense steps, unless they are given.
        """
        kind = values.get("model", {}).get("kind", self.model["kind"])
        if kind != self.model["kind"]:
            if kind not in self.others:
                raise unknown("kind of model for this task", str(kind), [self.model["kind"], *self.others])
            return self.model_copy(update={"model": self.others[kind]}).changed(values)
        new: dict[str, Any] = {g: {**dict(getattr(self, g)), **v} for g, v in values.items()}
        if "steps" in values.get("dense", {}) and "snapshots" not in values["dense"]:
            dense = checked(TrainSettings, new["dense"] | {"snapshots": ()}, "settings of dense")
            new["dense"]["snapshots"] = _snapshots(dense.steps)
        for group, settings in new.items():
            fill = checked if group == "corpus" else filled
            new[group] = fill(self.groups()[group], settings, f"settings of {group}")
        preset = self.model_copy(update=new)
        if preset.corpus is None or preset.corpus.vocab == preset.model["vocab"]:
            return preset
        if all("vocab" in values.get(g, {}) for g in ("corpus", "model")):
            raise UsageError("corpus.vocab and model.vocab differ; one of them is enough.")
        vocab = preset.corpus.vocab if "vocab" in values.get("corpus", {}) else preset.model["vocab"]
        corpus = preset.corpus.model_copy(update={"vocab": vocab})
        return preset.model_copy(update={"corpus": corpus, "model": {**preset.model, "vocab": vocab}})


def _snapshots(steps: int) -> tuple[int, ...]:
    """Where the dense training is kept, so that one of them matches the sparse model's loss: denser early on."""
    return tuple(sorted({max(1, round(steps * share / 40)) for share in range(2, 40)}))


def _language(
    steps: int, batch: int, model: Settings, density: float, sparse_lr: float, dense_lr: float, annealed: float = 0.5
) -> Settings:
    return {
        "model": {"kind": "transformer", **model},
        "sparse": {"steps": steps, "lr": sparse_lr},
        "dense": {"steps": steps, "lr": dense_lr, "snapshots": _snapshots(steps)},
        "topk": {"density": density, "anneal_until": annealed},
        "batch": batch,
    }


QUOTES: dict[str, Preset] = {
    "cpu": Preset(
        corpus=CorpusSettings(vocab=1024, megabytes=8.0, mix=0.5),
        **_language(2600, 8, {"vocab": 1024, "n_layer": 2, "d_model": 128, "n_ctx": 128}, 0.05, 1.5e-2, 4e-3, 0.05),
        examples=512,
    ),
    "gpu": Preset(
        corpus=CorpusSettings(vocab=2048, megabytes=64.0, site_packages=True),
        **_language(8000, 128, {"vocab": 2048, "n_layer": 4, "d_model": 512, "n_ctx": 256}, 0.02, 5e-3, 2e-3),
        examples=512,
    ),
    "smoke": Preset(
        corpus=CorpusSettings(vocab=512, megabytes=1.0, mix=0.75),
        **_language(800, 16, {"vocab": 512, "n_layer": 1, "d_model": 32, "n_ctx": 64}, 0.2, 2e-2, 1e-2),
        masks={"target": 0.3, "steps": 60, "pairs": 8, "lr": 0.1, "price": 5e-3},
        examples=64,
        n_null=19,
        windows=8,
        tasks=("for_while", "bracket_brace"),
    ),
}

PATTERNS: dict[str, Preset] = {
    name: Preset(
        model={
            "kind": "transformer", "vocab": len(WORDS), "n_layer": 2, "d_model": 64, "d_head": 16, "n_ctx": 48,
            "bigram": False,
        },
        sparse={"steps": sparse, "lr": 1e-2},
        dense={"steps": dense, "lr": 3e-3},
        topk={"density": 0.2, "anneal_from": 0.2, "anneal_until": 0.8},
        batch=32,
        examples=512 if name != "smoke" else 64,
        n_null=19 if name == "smoke" else 100,
    )
    for name, sparse, dense in (("cpu", 3000, 2500), ("gpu", 10_000, 10_000), ("smoke", 200, 200))
}  # fmt: skip

DIGITS: dict[str, Preset] = {
    name: Preset(
        model={"kind": "mlp", "inputs": 64, "hidden": (48, 48), "outputs": 10},
        sparse={"steps": steps, "lr": 5e-3},
        dense={"steps": steps, "lr": 3e-3, "snapshots": _snapshots(steps)},
        topk={"density": 0.1},
        batch=64,
        masks={"steps": search},
        n_null=draws,
        tasks=("digits", *PAIRS),
    )
    for name, steps, search, draws in (("cpu", 2500, 300, 100), ("gpu", 2500, 300, 100), ("smoke", 600, 60, 19))
}

FLOWS: dict[str, Preset] = {  # inputs and outputs are those of the flows
    name: Preset(
        model={"kind": "mlp", "inputs": 1, "hidden": (64, 64), "outputs": 2},
        sparse={"steps": steps, "lr": 1e-2},
        dense={"steps": steps, "lr": 3e-3},
        topk={"density": 0.03},
        batch=256,
        examples=512 if name != "smoke" else 128,
        n_null=19 if name == "smoke" else 100,
        generated=rows,
        tasks=("attack",) if name == "smoke" else (),
    )
    for name, steps, rows in (("cpu", 4000, 100_000), ("gpu", 8000, 100_000), ("smoke", 400, 20_000))
}

LENET_5: Settings = {  # Caffe's
    "kind": "cnn",
    "image": (1, 28, 28),
    "blocks": ({"channels": 20, "kernel": 5, "pool": 2}, {"channels": 50, "kernel": 5, "pool": 2}),
    "hidden": (500,),
    "outputs": 10,
}
LENET_300_100: Settings = {"kind": "mlp", "inputs": 784, "hidden": (300, 100), "outputs": 10}

MNIST: dict[str, Preset] = {
    name: Preset(
        model=LENET_5,
        others={"mlp": LENET_300_100},
        sparse={"steps": steps, "lr": 3e-3},
        dense={"steps": steps, "lr": 2e-3},
        topk={"density": 0.1},
        batch=64,
        examples=512,
    )
    for name, steps in (("cpu", 2500), ("gpu", 2500), ("smoke", 200))
}

CIFAR10: dict[str, Preset] = {
    name: Preset(
        model={
            "kind": "cnn",
            "image": (3, 32, 32),
            "blocks": ({"channels": 24, "kernel": 5, "pool": 2}, {"channels": 48, "kernel": 5, "pool": 2}),
            "hidden": (128,),
            "outputs": 10,
        },
        others={"mlp": {"kind": "mlp", "inputs": 3072, "hidden": (256, 128), "outputs": 10}},
        sparse={"steps": steps, "lr": 3e-3},
        dense={"steps": steps, "lr": 1e-3},
        topk={"density": 0.1},
        batch=64,
        examples=512,
    )
    for name, steps in (("cpu", 2500), ("gpu", 10_000), ("smoke", 200))
}


# -- small subjects, at the sizes of the papers they are from ----------------------------------------------------------

ALL = 1 << 20  # pairs per step: more than there are, so every step sees each pair once


def _small(
    model: Settings, dense: Settings, density: float, sparse: Settings | None = None, anneal: Settings | None = None,
    others: Mapping[str, Settings] | None = None, batch: int = ALL,
) -> dict[str, Preset]:  # fmt: skip
    """Presets of one subject; the smoke preset differs in its steps alone."""

    def preset(smoke: bool) -> Preset:
        few = {"steps": 400} if smoke else {}
        return Preset(
            model=model, others=others or {}, sparse=(sparse or dense) | few, dense=dense | few,
            topk={"density": density, **(anneal or {})}, masks={"steps": 60} if smoke else {}, batch=batch,
            examples=512, n_null=19 if smoke else 100,
        )  # fmt: skip

    return {name: preset(name == "smoke") for name in ("cpu", "gpu", "smoke")}


def _perceptron(inputs: int, hidden: tuple[int, ...], outputs: int) -> Settings:
    return {"kind": "mlp", "inputs": inputs, "hidden": hidden, "outputs": outputs, "activation": "silu"}


def _over_embedding(n: int) -> Settings:
    """A perceptron for an operation on n elements."""
    return _perceptron(64, (50, 50), n) | {"embedding": {"symbols": n, "slots": 2, "width": 32}}


def _one_layer(n: int) -> Settings:
    """The transformer of Nanda et al. 2023 (arXiv 2301.05217) for an operation on n elements.

    Fresh weights are a little smaller than theirs (1/sqrt(128) = 0.088): at this size it generalises within minutes.
    """
    return {
        "kind": "transformer", "vocab": n + 1, "outputs": n, "n_layer": 1, "d_model": 128, "d_head": 32, "d_mlp": 512,
        "n_ctx": 3, "norm": False, "activation": "relu", "bigram": False, "init_std": 0.06,
    }  # fmt: skip


CONSTANT: Settings = {"betas": (0.9, 0.999), "warmup": 0.0, "decay_from": 1.0, "weight_decay": 0.0, "clip": "none"}
FORMULA: Settings = CONSTANT | {"steps": 20_000, "lr": 2e-3}
PAIRS: Settings = {"betas": (0.9, 0.98), "warmup": 0.01, "decay_from": 1.0, "weight_decay": 1.0}
LATE: Settings = {"anneal_from": 0.35, "anneal_until": 0.85}  # first learn what the operation is, then with few weights
IN_CONTEXT: Settings = {
    "kind": "transformer", "inputs": 1, "outputs": 1, "n_layer": 2, "d_model": 32, "d_head": 32, "n_ctx": 3,
    "norm": False, "bigram": False, "init_std": 0.2,
}  # fmt: skip

SMALL: dict[str, dict[str, Preset]] = {
    "independence": _small(_perceptron(4, (20, 20), 2), FORMULA, 0.2),
    "feature_sharing": _small(_perceptron(3, (20, 20), 3), FORMULA, 0.2),
    "compositionality": _small(_perceptron(4, (20, 20, 20, 20), 1), FORMULA, 0.2),
    "two_moons": _small(_perceptron(2, (20, 20), 2), FORMULA | {"steps": 10_000}, 0.2),
    "in_context_regression": _small(IN_CONTEXT, CONSTANT | {"steps": 40_000, "lr": 1e-3}, 0.3, batch=64),
    "modular_addition_59": _small(
        _over_embedding(59), PAIRS | {"steps": 1500, "lr": 3e-3}, 0.3,
        PAIRS | {"steps": 6000, "lr": 2e-3, "weight_decay": 0.3, "decay_from": 0.9},
        {"anneal_from": 0.1, "anneal_until": 0.8}, {"transformer": _one_layer(59)},
    ),
    "s4": _small(
        _over_embedding(24), PAIRS | {"steps": 4000, "lr": 3e-3}, 0.3,
        PAIRS | {"steps": 8000, "lr": 3e-3, "decay_from": 0.85}, LATE, {"transformer": _one_layer(24)},
    ),
    "modular_addition_113": _small(
        _one_layer(113), PAIRS | {"steps": 3000, "lr": 2e-3}, 0.2,
        PAIRS | {"steps": 4500, "lr": 2e-3, "decay_from": 0.85}, LATE, {"mlp": _over_embedding(113)}, batch=1024,
    ),
}  # fmt: skip

PRESETS: dict[str, dict[str, Preset]] = {  # by subject
    "python": QUOTES, "patterns": PATTERNS, "digits": DIGITS, "mnist": MNIST, "cifar10": CIFAR10, "flows": FLOWS,
    **SMALL,
}  # fmt: skip
