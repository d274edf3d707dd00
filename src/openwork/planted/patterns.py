"""Local patterns in small images: kernels that match a pattern exactly, and a function of which patterns there are.

Pixels are -1 and +1. A kernel that is the pattern itself, with the bias -(pixels - 1), gives 1 where the image has the
pattern and at most -1, so 0 after ReLU, elsewhere; pooling over the whole map asks whether it is anywhere. The two
images of a pair share their background and differ in one pattern.

Knows images and the weights of a convolutional network. Does not know distractors or methods.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openwork.errors import RunError
from openwork.models import CNN, CNNConfig
from openwork.models.cnn import ConvBlock
from openwork.planted.boolean import GAIN
from openwork.planted.case import PAIRS, TRIES, Case, make
from openwork.tasks.task import SPLITS, Split, Task

CROSS = torch.tensor([[-1.0, 1, -1], [1, 1, 1], [-1, 1, -1]])
FRAME = torch.tensor([[1.0, 1, 1], [1, -1, 1], [1, 1, 1]])
FALLING = torch.tensor([[1.0, -1], [-1, 1]])  # a stroke from the upper left to the lower right
RISING = FALLING.flip(1)
ROOF = torch.cat([RISING, FALLING], 1)
VALLEY = torch.cat([FALLING, RISING], 1)
SHADE = {"ood": 0.35}  # share of dark pixels (+1) in the background of a split; half in the others

Row = tuple[tuple[float, ...], float]  # weights over the patterns found, bias


@dataclass(frozen=True)
class Scene:
    """A question about which of two patterns an image has.

    side      of the image, pixels
    pairs     (has the first, has the second) of the image whose answer is no, and of its counterpart: yes
    hidden    neurons over the two patterns found (each 0 or 1); none: they write to the logits themselves
    writes    per logit, what the last layer adds to it
    constant  of the two logits
    strokes   whether patterns are found in two layers, strokes first
    """

    side: int
    patterns: tuple[Tensor, Tensor]
    pairs: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    hidden: tuple[Row, ...]
    writes: tuple[tuple[float, ...], tuple[float, ...]]
    constant: tuple[float, float]
    about: str
    strokes: bool = False

    @property
    def rows(self) -> int:
        """Upper rows of the image in which patterns count: the second layer's kernels end two rows further down."""
        return self.side - 2 if self.strokes else self.side


_ALONE, _WITH_NONE = ((0, 0), (1, 0)), ((0, 1), (1, 1))
_YES = ((0.0,), (1.0,))

SCENES: dict[str, Callable[[], Scene]] = {
    "cross": lambda: Scene(
        6, (CROSS, FRAME), (_ALONE, _WITH_NONE), (), ((0.0, 0.0), (1.0, 0.0)), (0.5, 0.0), "there is a cross"
    ),
    "cross_and_frame": lambda: Scene(
        6, (CROSS, FRAME), (((0, 1), (1, 1)), ((1, 0), (1, 1))), (((1.0, 1.0), -1.0),), _YES, (0.5, 0.0),
        "there are a cross and a frame",
    ),
    "cross_without_frame": lambda: Scene(
        7, (CROSS, FRAME), (((0, 0), (1, 0)), ((1, 1), (1, 0))), (((1.0, -1.0), 0.0),), _YES, (0.5, 0.0),
        "there is a cross, and no frame",
    ),
    "cross_xor_frame": lambda: Scene(
        7, (CROSS, FRAME), (((0, 0), (1, 0)), ((0, 0), (0, 1)), ((1, 1), (1, 0)), ((1, 1), (0, 1))),
        (((1.0, -1.0), 0.0), ((-1.0, 1.0), 0.0)), ((0.0, 0.0), (1.0, 1.0)), (0.5, 0.0),
        "there is a cross or a frame, not both",
    ),
    "roof_or_valley": lambda: Scene(
        7, (ROOF, VALLEY), (((0, 1), (1, 0)),), (), ((0.0, 1.0), (1.0, 0.0)), (0.0, 0.0),
        "two strokes make a roof rather than a valley", strokes=True,
    ),
}  # fmt: skip


def case(name: str, seed: int) -> Case:
    """The case of a scene."""
    scene = SCENES[name]()
    task = Task(
        name,
        f"tell whether {scene.about}",
        {split: _split(name, scene, split, seed) for split in SPLITS},
        ("no", "yes"),
    )
    return make(name, "cnn", network(scene), task, scene.about)


def network(scene: Scene) -> CNN:
    """The convolutional network of a scene, with one dead channel for each pattern that the answer does not need."""
    if scene.strokes:
        blocks: tuple[ConvBlock, ...] = (
            ConvBlock(channels=2, kernel=2),
            ConvBlock(channels=2, kernel=3, pool=scene.side - 3),
        )
    else:
        blocks = (ConvBlock(channels=2, kernel=3, pool=scene.side - 2),)
    hidden = (len(scene.hidden),) if scene.hidden else ()
    model = CNN(CNNConfig(image=(1, scene.side, scene.side), blocks=blocks, hidden=hidden, outputs=2))  # type: ignore[call-arg]
    for p in model.parameters():
        p.requires_grad_(False).zero_()
    layers: list[Any] = list(model.layers)
    first = layers[0]
    used = [any(row[0][i] for row in scene.hidden) or any(w[i] for w in scene.writes) for i in range(2)]
    for i, pattern in enumerate((FALLING, RISING) if scene.strokes else scene.patterns):
        if scene.strokes or used[i]:
            first.weight[i, 0], first.bias[i] = pattern, 1.0 - pattern.numel()
    if scene.strokes:  # a roof is a rising stroke and, two pixels on, a falling one
        for i, (left, right) in enumerate(((1, 0), (0, 1))):
            layers[1].weight[i, left, 0, 0] = layers[1].weight[i, right, 0, 2] = 1.0
            layers[1].bias[i] = -1.0
    if scene.hidden:
        for i, (weights, bias) in enumerate(scene.hidden):
            layers[-2].weight[i] = torch.tensor(weights).view(2, 1, 1)
            layers[-2].bias[i] = bias
    last = layers[-1]
    last.weight.copy_(GAIN * torch.tensor(scene.writes).view_as(last.weight))
    last.bias.copy_(GAIN * torch.tensor(scene.constant))
    for p in model.parameters():
        p.requires_grad_(True)
    return model


def has(image: Tensor, pattern: Tensor) -> bool:
    """Whether an image [height, width] has a pattern anywhere, pixel by pixel."""
    found = F.conv2d(image[None, None], pattern[None, None])
    return bool((found == pattern.numel()).any())


def _split(name: str, scene: Scene, split: str, seed: int) -> Split:
    rng = random.Random(f"{name} {split} {seed}")
    images: list[Tensor] = []
    for i in range(PAIRS):
        images += _pair(name, scene, scene.pairs[i % len(scene.pairs)], rng, SHADE.get(split, 0.5))
    x = torch.stack(images).flatten(1)
    answer = torch.arange(len(x)) % 2
    texts = tuple("".join("#" if v > 0 else "." for v in row) for row in x.tolist())
    return Split(split, (x,), answer, 1 - answer[:, None], torch.arange(len(x)) ^ 1, texts)


def _pair(
    name: str, scene: Scene, wanted: tuple[tuple[int, int], tuple[int, int]], rng: random.Random, shade: float
) -> list[Tensor]:
    """Two images of one background that have just the wanted patterns; the two patterns' places share no row."""
    n, middle = scene.side, scene.rows // 2
    height, width = scene.patterns[0].shape
    for _ in range(TRIES):
        background = torch.tensor([[1.0 if rng.random() < shade else -1.0 for _ in range(n)] for _ in range(n)])
        rows = [rng.randrange(middle - height + 1), middle + rng.randrange(scene.rows - middle - height + 1)]
        rng.shuffle(rows)
        places = [(row, rng.randrange(n - width + 1)) for row in rows]
        images = []
        for present in wanted:
            image = background.clone()
            for pattern, (row, column), there in zip(scene.patterns, places, present, strict=True):
                if there:
                    image[row : row + height, column : column + width] = pattern
            images.append(image)
        if all(
            tuple(int(has(m[: scene.rows], p)) for p in scene.patterns) == w
            for m, w in zip(images, wanted, strict=True)
        ):
            return images
    raise RunError(f"case {name}: {TRIES} random images had none with just the patterns {wanted}.")
