"""Sound bounds on what ReLU perceptrons do on whole boxes of inputs: interval arithmetic and linear relaxation.

A box is all z with low <= z <= high. For every z in it, and for the weights as they are stored:

    interval     every layer's values lie between bounds that follow from the bounds of the layer before
    linear       a z + c <= value: the ReLU of [l, u] lies above the line alpha h (alpha 0 or 1, whichever leaves less
                 room) and below the line u (h - l) / (u - l); the lines are carried back to the input (CROWN, Zhang et
                 al. 2018, arXiv 1811.00866; equations of section 3.2 with ReLU)

Both are taken and the tighter one counts. A model and its circuit read the *same* z, as in the siamese encoding of
Hadad, Katz and Bassan 2026 (arXiv 2602.16823). Bounding both at once would gain nothing for decisions, so each is
bounded alone (`decide_alike` says why).

Arithmetic: bounds are computed in float64, networks are run in float32, so a margin counts only if it exceeds what
rounding can do (`slack`).

Knows weights and boxes. Does not know circuits, tasks, or which network is whose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.models.folded import Affine

Box = tuple[Tensor, Tensor]  # low and high, float64, [N, F] or [N, n]

UNIT = 2.0**-24  # unit roundoff of float32


@dataclass(frozen=True, eq=False)
class Network:
    """A ReLU perceptron to be bounded, and what its float32 run may round.

    layers  weights and biases of every layer, hidden nodes that nothing reads left out
    full    the same with all nodes
    sizes   per layer |W| [dst, src], |b| [dst], |r| [src] of the *unablated* layer and the reference: what a patched
            run adds up, terms that cancel included
    """

    layers: list[Affine]
    full: list[Affine]
    sizes: list[tuple[Tensor, Tensor, Tensor]]


def network(layers: Sequence[Affine], whole: Sequence[Affine], reference: Sequence[Tensor]) -> Network:
    """A folded network beside the whole one: (W, b) per layer, and the reference [src] of what each layer reads."""
    lean, read = [], torch.ones(len(layers[-1][1]), dtype=torch.bool)
    for w, b in reversed(layers):
        lean.append((w[read], b[read]))
        read = (w[read] != 0).any(0)
    lean = [(w, b) for w, b in reversed(lean)]
    for i in range(1, len(lean)):  # columns of nodes that were left out are zero
        lean[i] = (lean[i][0][:, (lean[i][0] != 0).any(0)], lean[i][1])
    sizes = [(w.abs(), b.abs(), r.abs()) for (w, b), r in zip(whole, reference, strict=True)]
    return Network(lean, list(layers), sizes)


# -- the two kinds of bounds -----------------------------------------------------------------------------------------


def intervals(layers: Sequence[Affine], box: Box) -> list[Box]:
    """Bounds [N, n] of every layer's values before its ReLU, by interval arithmetic; the last are the logits'."""
    out: list[Box] = []
    low, high = box
    for w, b in layers:
        up, down = w.clamp(min=0), w.clamp(max=0)
        low, high = low @ up.T + high @ down.T + b, high @ up.T + low @ down.T + b
        out.append((low, high))
        low, high = low.clamp(min=0), high.clamp(min=0)
    return out


def linear_below(layers: Sequence[Affine], hidden: Sequence[Box], rows: Tensor) -> tuple[Tensor, Tensor]:
    """a [N, K, F], c [N, K] with a z + c <= rows . logits for every z of the box that `hidden` bounds belong to.

    rows    [N, K, V] what is asked of the last layer's values
    hidden  bounds of every layer before the last, before their ReLU
    """
    w, b = layers[-1]
    a, c = rows @ w, rows @ b
    for (w, b), (low, high) in zip(reversed(layers[:-1]), reversed(hidden), strict=True):
        unstable = (low < 0) & (high > 0)
        active = (low >= 0).double()
        above = torch.where(unstable, high / (high - low).clamp(min=1e-300), active)  # slope of the upper line
        below = torch.where(unstable, (high > -low).double(), active)
        offset = torch.where(unstable, -above * low, 0.0)
        c = c + (a.clamp(max=0) @ offset[:, :, None])[..., 0]
        a = a.clamp(min=0) * below[:, None] + a.clamp(max=0) * above[:, None]
        c, a = c + a @ b, a @ w
    return a, c


def least(a: Tensor, c: Tensor, box: Box) -> Tensor:
    """The minimum [N, K] of a z + c over the box."""
    low, high = (x[:, :, None] for x in box)
    return (a.clamp(min=0) @ low + a.clamp(max=0) @ high)[..., 0] + c


def hidden_bounds(layers: Sequence[Affine], box: Box) -> list[Box]:
    """Bounds of every layer's values before its ReLU, the last layer's excepted: linear ones within the intervals."""
    out: list[Box] = []
    for i, (low, high) in enumerate(intervals(layers, box)[:-1]):
        if i:  # of the first layer the intervals are exact
            one = torch.eye(low.shape[1], dtype=torch.float64).expand(len(low), -1, -1)
            part = layers[: i + 1]
            low = torch.maximum(low, least(*linear_below(part, out, one), box))
            high = torch.minimum(high, -least(*linear_below(part, out, -one), box))
            high = torch.maximum(low, high)  # where both are one number, rounding may cross them
        out.append((low, high))
    return out


def slack(net: Network, box: Box) -> Tensor:
    """How far, at most, a float32 run of the network may be from the exact one: per logit [N, V].

    A sum of n products, in whatever order, is off by at most g |w|.|h| with g = n u / (1 - n u), u = 2**-24 (Higham
    2002, *Accuracy and Stability of Numerical Algorithms*, section 3.1). A patched run adds W h + b and (1 - M) W (r -
    h) and so has fewer than 2 n + 8 roundings of terms |W| (2 |h| + |r|) + |b|; a ReLU passes an error on as it is, a
    layer at most |W| times. The float64 arithmetic of the bounds, 2**29 times finer, is far inside this allowance.
    It is for float32 as IEEE 754 has it: not for TF32 or bfloat16.
    """
    error = torch.zeros_like(box[0])
    reach = torch.maximum(box[0].abs(), box[1].abs())
    for (folded, _), (w, b, r), (low, high) in zip(net.full, net.sizes, intervals(net.full, box), strict=True):
        terms = 2 * w.shape[1] + 8
        g = terms * UNIT / (1 - terms * UNIT)
        size = 2 * (torch.maximum(reach, r) + error) + r
        error = error @ folded.abs().T + g * (size @ w.T + b)
        reach = torch.maximum(low.abs(), high.abs())
    return error


# -- decisions on a box ----------------------------------------------------------------------------------------------


def beaten(net: Network, box: Box, choices: Tensor) -> Tensor:
    """Which answers are proved to lose to another one everywhere: bool [N, A] for boxes [N, F].

    choices  [N, A] the output indices of each example's answers
    An answer is beaten if the margin of a certain other one over it exceeds, on the whole box, what float32 can round
    in both logits; a tie is no defeat.
    """
    n, many = choices.shape
    one = torch.nn.functional.one_hot(choices, len(net.layers[-1][1])).double()
    rows = (one[:, :, None] - one[:, None]).flatten(1, 2)  # [N, A * A, V]: answer a minus answer b
    rough = intervals(net.layers, box)[-1]
    apart = least(rows, torch.zeros(rows.shape[:2], dtype=torch.float64), rough)  # each logit on its own
    margin = torch.maximum(apart, least(*linear_below(net.layers, hidden_bounds(net.layers, box), rows), box))
    off = slack(net, box).gather(1, choices)
    return (margin.view(n, many, many) > off[:, :, None] + off[:, None]).any(1)


def decide_alike(model: Tensor, circuit: Tensor) -> Tensor:
    """Where, by their beaten answers [N, A], both networks give one and the same answer on the whole box: bool [N].

    It looks stronger than deciding alike at every z, whatever is decided, but proves no less. The two are continuous:
    where the model turns from a to b, its logits of a and b tie, and a circuit that decides alike on both sides ties at
    the same z. So wherever both decide alike by a margin, neither turns.
    """
    return (~model).sum(1).eq(1) & (model == circuit).all(1)
