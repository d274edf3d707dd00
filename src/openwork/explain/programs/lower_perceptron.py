"""A perceptron's circuit as a program that computes exactly the same, with features under names a person knows.

Masks and a fixed reference fold into weights and biases (`models.folded`). A neuron that nothing reaches is a constant
and folds into its readers; one that reaches no answer is left out. What is left: features, sums, bends.

Knows the wiring of `models.mlp`, a circuit and a fixed reference. Does not know tasks, data, or how the circuit was
found; nothing is approximated here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from openwork.circuit import Circuit
from openwork.errors import UsageError
from openwork.explain.programs.program import CURVES, Answer, Array, Bend, Feature, Program, Step, Sum
from openwork.models.folded import folded, plain_perceptron
from openwork.models.mlp import MLP
from openwork.patching import Reference, graph_of

IMAGES = {64: (1, 8, 8), 784: (1, 28, 28), 3072: (3, 32, 32)}  # pixels of a subject's image -> channels, height, width
COLOURS = ("red", "green", "blue")

Sent = str | float  # what a node sends: a step, or a constant


def feature_names(n: int, subject: str = "") -> tuple[str, ...]:
    """Names of n features: pixels by row and column (`r3c4`) where the subject is images, coordinates, or numbers.

    subject  name of the subject: "digits", "mnist", "cifar10", "two_moons", a formula; anything else: x0, x1, ...
    """
    if (image := image_shape(n, subject)) is not None:
        return pixel_names(*image)
    if subject == "two_moons" and n == 2:
        return "across", "up"
    if subject in ("independence", "feature_sharing", "compositionality"):
        return tuple(f"x{i + 1}" for i in range(n))  # as the formulas count them
    return tuple(f"x{i}" for i in range(n))


def image_shape(n: int, subject: str) -> tuple[int, int, int] | None:
    """Channels, height and width of a subject's images of n numbers; None where its examples are no images."""
    return IMAGES.get(n) if subject in ("digits", "mnist", "cifar10") else None


def identifiers(names: Sequence[str]) -> tuple[str, ...]:
    """Names as a program may use them: letters, digits and underscores, each once; "service=ssh" is service_ssh."""
    out: list[str] = []
    for i, name in enumerate(names):
        word = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or f"x{i}"
        word = f"x_{word}" if word[0].isdigit() else word
        out.append(word if word not in out else f"{word}_{i}")
    return tuple(out)


def pixel_names(channels: int, height: int, width: int) -> tuple[str, ...]:
    """Row and column of every pixel, counted from 0 at the upper left, channel after channel."""
    marks = COLOURS if channels == 3 else tuple(f"k{k}" for k in range(channels))
    return tuple(
        f"r{r}c{c}" if channels == 1 else f"{marks[k]}_r{r}c{c}"
        for k in range(channels) for r in range(height) for c in range(width)
    )  # fmt: skip


def lower_perceptron(
    model: MLP,
    circuit: Circuit | None,
    reference: Reference,
    ids: Sequence[int],
    texts: Sequence[str],
    features: Sequence[str],
) -> Program:
    """The program that computes what a circuit of a perceptron computes, to rounding.

    circuit     None for the whole model
    reference   what ablated nodes send: one value per node
    ids, texts  the output indices that are answers, and how each reads
    features    a name for every input

    The `about` of a step that is a node is "site:node". UsageError for AbsTopK, an embedding or a curve that programs
    have not, and for a reference that differs by example.
    """
    if why := plain_perceptron(model):
        raise UsageError(f"this model cannot be written as a program of features: {why}.")
    if len(features) != model.config.inputs:
        raise UsageError(f"the model reads {model.config.inputs} features, but {len(features)} names are given.")
    curve = model.config.activation
    if curve not in CURVES:
        raise UsageError(
            f'a perceptron with the activation "{curve}" cannot be a program: there is {", ".join(CURVES)}.'
        )
    layers = [(w.numpy(), b.numpy()) for w, b in folded(model, circuit, reference)]
    sites = [s.name for s in graph_of(model).sites]
    wanted = wanted_of([w for w, _ in layers], ids)
    steps = [Step(features[i], Feature(i), f"{sites[0]}:{i}") for i in np.flatnonzero(wanted[0]).tolist()]
    sent: list[Sent] = [name if wanted[0][i] else 0.0 for i, name in enumerate(features)]
    for k, (w, b) in enumerate(layers):
        last = k + 1 == len(layers)
        new: list[Sent] = [0.0] * len(w)
        for j in np.flatnonzero(wanted[k + 1]).tolist():
            total = sum_of(w[j], float(b[j]), sent)
            name, about = (f"logit_{j}", f"output {j}") if last else (f"{sites[k + 1]}_{j}", f"{sites[k + 1]}:{j}")
            if last:
                steps.append(Step(name, total, about))
            elif total.terms:
                steps.append(Step(f"{name}_in", total, f"what {about} reads"))
                steps.append(Step(name, Bend(f"{name}_in", curve), about))  # type: ignore[arg-type]  # one of CURVES
            new[j] = name if last or total.terms else float(CURVES[curve](np.array(total.bias)))
        sent = new
    answers = tuple(Answer(text, i, f"logit_{i}") for i, text in zip(ids, texts, strict=True))
    return Program("features", tuple(steps), answers)


def wanted_of(weights: Sequence[Array], ids: Sequence[int]) -> list[Array]:
    """Per layer of nodes, bool: which an answer depends on, through matrices or kernels [dst, src, ...]."""
    now = np.zeros(len(weights[-1]), dtype=bool)
    now[list(ids)] = True
    out = [now]
    for w in reversed(weights):
        now = (w != 0).reshape(*w.shape[:2], -1).any(2)[now].any(0)
        out.append(now)
    return out[::-1]


def sum_of(row: Array, bias: float, sent: Sequence[Sent]) -> Sum:
    """What enters a node, from what the nodes below send."""
    terms = tuple((s, float(c)) for c, s in zip(row, sent, strict=True) if isinstance(s, str) and c)
    return Sum(terms, bias + sum(float(c) * s for c, s in zip(row, sent, strict=True) if isinstance(s, float)))


__all__ = ["feature_names", "identifiers", "image_shape", "lower_perceptron", "pixel_names", "sum_of", "wanted_of"]
