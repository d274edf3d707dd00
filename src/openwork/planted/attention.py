"""Attention set by hand: heads that look back by arithmetic on positions, and what is read off with them.

A position is one number p (and its square) in the residual stream. A key of -(p - q)^2, up to what all keys share, is
2 q p - p^2: two channels of query and key suffice to look at any place relative to one's own. So these circuits are
smaller than compiled ones, and no edge serves one position alone.

Knows the weights of a transformer and small languages. Does not know the compiler, distractors or methods.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from openwork.models import Transformer, TransformerConfig
from openwork.planted.case import Ablation, Answer, Case, Prompt, make, sequence_task

SHARP = 20.0  # difference of scores between the position that is meant and the next best
GAIN = 16.0  # logit of the answer
STEEP = 120.0  # unembedding of an average, which differs from its threshold by about a tenth


@dataclass(frozen=True)
class Circuitry:
    """A hand-set transformer and its language.

    words    what token ids stand for
    answers  what outputs stand for
    right    the output that is right, judged without the model
    weights  how frequent words are, and how frequent out of distribution
    first    earliest position that is asked
    """

    model: Transformer
    words: tuple[str, ...]
    answers: tuple[str, ...]
    right: Answer
    about: str
    weights: tuple[Sequence[float], Sequence[float]]
    length: int
    first: int = 1
    ablation: Ablation = "zero"


def blank(words: int, length: int, outputs: int, layers: int, heads: int, d_head: int, neurons: int = 1) -> Transformer:
    """A transformer all of whose weights are zero; it has positions, and no norms."""
    config = TransformerConfig(  # type: ignore[call-arg]
        vocab=words, n_layer=layers, d_model=heads * d_head, d_head=d_head, d_mlp=neurons, n_ctx=length,
        bigram=False, norm=False, activation="relu", outputs=outputs,
    )  # fmt: skip
    model = Transformer(config)
    for p in model.parameters():
        p.requires_grad_(False).zero_()
    return model


def _letters(n: int) -> tuple[str, ...]:
    return tuple("abcdefghijkl"[:n])


def _copy(model: Transformer, layer: int, letters: int, source: int, target: int, d_head: int) -> None:
    """The head's values are `letters` channels from `source` on; they are written to those from `target` on."""
    block: Any = model.blocks[layer].attn
    assert letters <= d_head
    for i in range(letters):
        block.to_v.weight[i, source + i] = 1.0
        block.out.weight[target + i, i] = 1.0


def _look_back(model: Transformer, layer: int, p: int, steps: int) -> None:
    """Scores -SHARP (key's position - (own position - steps))^2: channel p holds positions, p + 1 their squares."""
    block: Any = model.blocks[layer].attn
    s = SHARP * math.sqrt(model.config.d_head)
    block.to_k.weight[0, p], block.to_k.weight[1, p + 1] = 1.0, 1.0
    block.to_q.weight[0, p], block.to_q.bias[0], block.to_q.bias[1] = 2 * s, -2 * s * steps, -s


def _embed(model: Transformer, letters: int, p: int) -> None:
    """Letter i is channel i; channels p and p + 1 hold the position and its square."""
    model.embed.weight[:letters, :letters] = torch.eye(letters)
    assert model.positions is not None
    place = torch.arange(model.config.n_ctx).float()
    model.positions.weight[:, p], model.positions.weight[:, p + 1] = place, place**2


def _previous(letters: int, length: int, steps: int) -> Circuitry:
    d = max(2, letters)
    model = blank(letters, length, letters, 1, 3, d)
    _embed(model, letters, 2 * letters)
    _look_back(model, 0, 2 * letters, steps)
    _copy(model, 0, letters, 0, letters, d)
    model.unembed.weight[:, letters : 2 * letters] = GAIN * torch.eye(letters)
    return Circuitry(
        model, _letters(letters), _letters(letters), lambda t, at: t[at - steps] if at >= steps else None,
        f"the letter {steps} back", _even(letters), length, first=steps,
    )  # fmt: skip


def _even(n: int) -> tuple[Sequence[float], Sequence[float]]:
    return [1.0] * n, [1.8] + [1.0] * (n - 1)


def _first(letters: int, length: int) -> Circuitry:
    model = blank(letters, length, letters, 1, 3, max(2, letters))
    _embed(model, letters, 2 * letters)
    block: Any = model.blocks[0].attn
    block.to_k.weight[0, 2 * letters] = -1.0
    block.to_q.bias[0] = SHARP * math.sqrt(model.config.d_head)
    _copy(model, 0, letters, 0, letters, letters)
    model.unembed.weight[:, letters : 2 * letters] = GAIN * torch.eye(letters)
    right: Answer = lambda t, at: t[0]  # noqa: E731
    return Circuitry(model, _letters(letters), _letters(letters), right, "the first letter", _even(letters), length)


def _most_recent(letters: int, length: int) -> Circuitry:
    """Among letters and dots, the last letter: a letter counts more than any distance."""
    model = blank(letters + 1, length, letters, 1, 3, max(2, letters))
    p, is_letter = 2 * letters, 2 * letters + 1
    _embed(model, letters, p)
    assert model.positions is not None
    model.positions.weight[:, is_letter] = 0.0
    model.embed.weight[:letters, is_letter] = 1.0
    block: Any = model.blocks[0].attn
    block.to_k.weight[0, p], block.to_k.weight[0, is_letter] = 1.0, float(length + 1)
    block.to_q.bias[0] = SHARP * math.sqrt(model.config.d_head)
    _copy(model, 0, letters, 0, letters, letters)
    model.unembed.weight[:, letters : 2 * letters] = GAIN * torch.eye(letters)

    def right(tokens: Sequence[int], at: int) -> int | None:
        return next((t for t in reversed(tokens[: at + 1]) if t < letters), None)

    weights = [1.0] * letters + [float(letters)]
    rarer = [1.0] * letters + [2.0 * letters]
    return Circuitry(
        model, (*_letters(letters), "."), _letters(letters), right, "the most recent letter", (weights, rarer), length
    )


def _depth(length: int) -> Circuitry:
    """Attention to everything alike: the mean of +1 per opening and -1 per closing bracket."""
    model = blank(3, length, 2, 1, 2, 2)
    model.embed.weight[0, 0], model.embed.weight[1, 0] = 1.0, -1.0
    block: Any = model.blocks[0].attn
    block.to_v.weight[0, 0] = block.out.weight[1, 0] = 1.0
    model.unembed.weight[1, 1] = STEEP

    def right(tokens: Sequence[int], at: int) -> int | None:
        depth = sum((1, -1, 0)[t] for t in tokens[: at + 1])
        return int(depth > 0) if depth else None

    return Circuitry(
        model, ("(", ")", "."), ("closing", "opening"), right, "more brackets opened or closed",
        ([1.0, 1.0, 1.0], [1.0, 1.0, 4.0]), length, ablation="mean",
    )  # fmt: skip


def _balanced(length: int) -> Circuitry:
    """The mean bracket again, and two neurons for its size on either side of zero."""
    model = blank(3, length, 2, 1, 2, 2, neurons=2)
    model.embed.weight[0, 0], model.embed.weight[1, 0] = 1.0, -1.0
    block: Any = model.blocks[0].attn
    block.to_v.weight[0, 0] = block.out.weight[1, 0] = 1.0
    mlp: Any = model.blocks[0].mlp
    mlp.up.weight[0, 1], mlp.up.weight[1, 1] = 1.0, -1.0
    mlp.down.weight[2, :2], mlp.down.bias[2] = -1.0, 0.5 / length
    model.unembed.weight[1, 2] = 4 * STEEP

    def right(tokens: Sequence[int], at: int) -> int:
        return int(sum((1, -1, 0)[t] for t in tokens[: at + 1]) == 0)

    return Circuitry(
        model, ("(", ")", "."), ("not balanced", "balanced"), right, "as many brackets opened as closed",
        ([1.0, 1.0, 1.0], [1.0, 1.0, 4.0]), length,
    )  # fmt: skip


def _induction(letters: int, length: int) -> Circuitry:
    """Two layers: every position fetches the letter before it; the next head looks for the present letter there."""
    d = max(2, letters)
    model = blank(letters, length, letters, 2, 4, d)
    p = 3 * letters
    _embed(model, letters, p)
    _look_back(model, 0, p, 1)
    _copy(model, 0, letters, 0, letters, d)
    block: Any = model.blocks[1].attn
    for i in range(letters):
        block.to_k.weight[i, letters + i] = 1.0
        block.to_q.weight[i, i] = SHARP * math.sqrt(d)
    _copy(model, 1, letters, 0, 2 * letters, d)
    model.unembed.weight[:, 2 * letters : 3 * letters] = GAIN * torch.eye(letters)

    def right(tokens: Sequence[int], at: int) -> int | None:
        if tokens[0] == tokens[at]:  # the first position has no letter before it, and fetches its own
            return None
        after = [tokens[i + 1] for i in range(1, at) if tokens[i] == tokens[at]]
        return after[0] if len(after) == 1 else None

    return Circuitry(
        model, _letters(letters), _letters(letters), right, "the letter that followed this one last time",
        _even(letters), length, first=length - 1,
    )  # fmt: skip


HEADS: dict[str, Callable[[], Circuitry]] = {
    "hand_previous_3x8": partial(_previous, 3, 8, 1),
    "hand_previous_6x12": partial(_previous, 6, 12, 1),
    "hand_third_back_4x10": partial(_previous, 4, 10, 3),
    "hand_first_4x8": partial(_first, 4, 8),
    "hand_most_recent_4x10": partial(_most_recent, 4, 10),
    "hand_brackets_9_mean": partial(_depth, 9),
    "hand_balanced_8": partial(_balanced, 8),
    "hand_induction_4x9": partial(_induction, 4, 9),
    "hand_induction_6x12": partial(_induction, 6, 12),
}


def case(name: str, seed: int) -> Case:
    """The case of a hand-set transformer."""
    c = HEADS[name]()

    def draw(rng: random.Random, pair: int, ood: bool) -> Prompt:
        tokens = rng.choices(range(len(c.words)), c.weights[ood], k=c.length)
        return tuple(tokens), c.first + pair // len(c.answers) % (c.length - c.first)

    for p in c.model.parameters():
        p.requires_grad_(True)
    task = sequence_task(name, f"tell {c.about}", c.words, c.answers, draw, c.right, seed)
    return make(name, "attention", c.model, task, c.about, c.ablation)
